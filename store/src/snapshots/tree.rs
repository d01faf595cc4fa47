//! Copying and measuring whole trees.
//!
//! Both walk with a queue instead of recursion and keep a handful of descriptors open, so neither the depth nor the
//! width of a tree that somebody else made matters.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::root::{Dir, Kind, Metadata, Root, Walk, node};

/// One walk resolves a path of at most this many bytes; longer ones are taken in pieces.
const PIECE: usize = 3000;

/// Copies what is in `from` into `to`, which is empty, and gives `to` itself the attributes of `from`. Hard links within
/// the tree, holes, devices, owners, modes, times and extended attributes are kept; blocks are shared where the file
/// system can.
pub fn copy_tree(from: &Dir, to: &Dir) -> io::Result<()> {
    let mut copy = TreeCopy { from, to, entries: EntryCopy::new(to)? };
    let mut queue = vec![PathBuf::new()];
    while let Some(path) = queue.pop() {
        copy.dir(&path, &mut queue)?;
    }
    Ok(())
}

/// The disk a tree uses, in bytes. A file of several names counts once.
pub fn disk_use(top: &Dir) -> io::Result<u64> {
    let mut used = top.metadata()?.disk;
    let mut seen = HashSet::new();
    let mut queue = vec![PathBuf::new()];
    while let Some(path) = queue.pop() {
        let dir = open_deep(top, &path)?;
        for entry in dir.entries()? {
            let entry = entry?;
            let metadata = dir.stat(&entry.name)?;
            if metadata.kind == Kind::Dir {
                queue.push(path.join(&entry.name));
            } else if metadata.links > 1 && !seen.insert((metadata.device, metadata.inode)) {
                continue;
            }
            used += metadata.disk;
        }
    }
    Ok(used)
}

/// The directory at a path of our own, made if it is not there.
pub(super) fn open_or_make(path: &Path) -> io::Result<Dir> {
    let above = path.parent().ok_or(Errno::INVAL)?;
    let name = path.file_name().ok_or(Errno::INVAL)?;
    Root::open(above)?.top().ensure_dir(name, 0o700)
}

struct TreeCopy<'a> {
    from: &'a Dir,
    to: &'a Dir,
    entries: EntryCopy,
}

impl TreeCopy<'_> {
    /// Copies one directory's entries; its directories are made, and queued to be filled.
    fn dir(&mut self, path: &Path, queue: &mut Vec<PathBuf>) -> io::Result<()> {
        let from = open_deep(self.from, path)?;
        let to = open_deep(self.to, path)?;
        for entry in from.entries()? {
            let name = entry?.name;
            let metadata = from.stat(&name)?;
            if metadata.kind == Kind::Dir {
                to.mkdir(&name, 0o700)?;
                queue.push(path.join(&name));
                continue;
            }
            self.entries.copy(&from, &to, path, &name, &metadata)?;
        }
        // Filling the directories in it does not change its own time.
        node::copy_attributes(from.as_fd(), to.as_fd())
    }
}

/// Copies single entries into a tree, and remembers what those of several names became.
pub(crate) struct EntryCopy {
    top: Dir,
    /// Where a file of several names was copied to first.
    links: HashMap<(u64, u64), PathBuf>,
    /// False once the file system said that it cannot share blocks.
    reflink: bool,
}

impl EntryCopy {
    /// For a tree with this root.
    pub(crate) fn new(top: &Dir) -> io::Result<EntryCopy> {
        Ok(EntryCopy { top: top.try_clone()?, links: HashMap::new(), reflink: true })
    }

    /// Copies what is called `name`, and is no directory, from the directory `from` to the directory `to`, which lies at
    /// `path` in the tree. The name is free there.
    pub(crate) fn copy(
        &mut self,
        from: &Dir,
        to: &Dir,
        path: &Path,
        name: &OsStr,
        metadata: &Metadata,
    ) -> io::Result<()> {
        if metadata.links > 1 {
            let key = (metadata.device, metadata.inode);
            if let Some(first) = self.links.get(&key) {
                let above = open_deep(&self.top, first.parent().unwrap_or(Path::new("")))?;
                return above.link(first.file_name().unwrap_or_default(), to, name);
            }
            self.links.insert(key, path.join(name));
        }
        self.entry(from, to, name, metadata)
    }

    fn entry(&mut self, from: &Dir, to: &Dir, name: &OsStr, metadata: &Metadata) -> io::Result<()> {
        match metadata.kind {
            Kind::File => {
                let source = from.open_file(name)?;
                let target = to.create_file(name, 0o600)?;
                self.content(&source, &target, metadata.size)?;
                return node::copy_attributes(source.as_fd(), target.as_fd());
            }
            Kind::Symlink => to.symlink(from.read_link(name)?.as_os_str(), name)?,
            kind => to.mknod(name, kind, 0, metadata.rdev)?,
        }
        let (source, target) = (from.open_path(name)?, to.open_path(name)?);
        node::copy_attributes(source.as_fd(), target.as_fd())
    }

    fn content(&mut self, from: &File, to: &File, size: u64) -> io::Result<()> {
        if size == 0 {
            return Ok(());
        }
        if self.reflink {
            match rustix::fs::ioctl_ficlone(to, from) {
                Ok(()) => return Ok(()),
                Err(_) => self.reflink = false,
            }
        }
        let mut offset = 0;
        while offset < size {
            let data = match rustix::fs::seek(from, SeekFrom::Data(offset)) {
                Ok(data) => data,
                // Nothing but a hole to the end.
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL) => offset,
                Err(error) => return Err(error.into()),
            };
            let hole = rustix::fs::seek(from, SeekFrom::Hole(data)).unwrap_or(size);
            copy_range(from, to, data, hole.min(size))?;
            offset = hole;
        }
        Ok(rustix::fs::ftruncate(to, size)?)
    }
}

/// Copies the bytes from `start` to `end`, in the kernel if it can.
fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        let length = usize::try_from(end - read_at).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), length) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let mut buffer = vec![0; 256 << 10];
    while read_at < end {
        let want = buffer.len().min(usize::try_from(end - read_at).unwrap_or(usize::MAX));
        match from.read_at(&mut buffer[..want], read_at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                to.write_all_at(&buffer[..read], read_at)?;
                read_at += read as u64;
            }
        }
    }
    Ok(())
}

/// Opens a directory of a tree however long its path is.
fn open_deep(top: &Dir, path: &Path) -> io::Result<Dir> {
    let mut dir = top.try_clone()?;
    let mut piece = OsString::new();
    for component in path.iter() {
        if piece.len() + component.len() > PIECE {
            dir = Root::from_fd(dir.into_fd())?.open_dir(Path::new(&piece), Walk::NoLinks)?;
            piece.clear();
        }
        if !piece.as_bytes().is_empty() {
            piece.push("/");
        }
        piece.push(component);
    }
    Root::from_fd(dir.into_fd())?.open_dir(Path::new(&piece), Walk::NoLinks)
}
