//! `cp` with an archive on one side: files of a container as a tar stream, and a tar stream into a container.
//!
//! As in [`super::copy`] every path is walked in the container's tree with links resolved inside it. Owners are those the
//! archive names, which is what an archive is for.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rbuild_store::layers::compress::Decompressed;
use rbuild_store::layers::read::Reader;
use rbuild_store::layers::tar::{Entry, EntryKind, Writer, Xattrs, travels};
use rbuild_store::root::{Dir, Kind as FileKind, Metadata, set_mode, set_owner, set_times, xattrs};
use rbuild_store::{Root, StoreError, Walk};

use super::Containers;
use super::copy::{CopyOptions, ends_in_dot, not_there, source};
use super::record::Seen;
use crate::error::Error;

impl Containers {
    /// Writes what is at a path of a container's as a tar archive, named by the last part of the path.
    ///
    /// # Errors
    /// `NotFound`, in docker's words; the archive cannot be written.
    pub fn copy_out_as_tar(
        &self,
        seen: &Seen,
        from: &Path,
        options: CopyOptions,
        out: &mut dyn Write,
    ) -> Result<(), Error> {
        let (root, inside) = self.tree(seen, from, false)?;
        let place = source(&root, &inside, options).map_err(|e| not_there(&seen.container, from, &e))?;
        let failed =
            |e: io::Error| Error::internal(format!("cannot copy {}:{}: {e}", seen.container.name, from.display()));
        let mut archive = Archive { out: Writer::new(out), linked: HashMap::new() };
        match &place.name {
            // As the user named it, also where that is a link that was followed.
            Some(name) => {
                let shown = from.file_name().unwrap_or(name).as_bytes().to_vec();
                archive.node(&place.dir, name, shown)
            }
            None => {
                let own = from.file_name().filter(|_| !ends_in_dot(from));
                archive.directory(place.dir, own.map(OsStr::as_bytes).unwrap_or_default().to_vec())
            }
        }
        .map_err(failed)?;
        archive.out.finish().map_err(failed)?;
        self.tell(&seen.container, "archive-path", &[]);
        Ok(())
    }

    /// Unpacks a tar archive, compressed or not, into a directory of a container's.
    ///
    /// # Errors
    /// No such directory; what is wrong with the archive, of which the part before that is unpacked by then.
    pub fn copy_in_from_tar(&self, seen: &Seen, archive: impl Read + Send, to: &Path) -> Result<(), Error> {
        let (root, inside) = self.tree(seen, to, true)?;
        let there = root.walk(&inside, Walk::InRoot).and_then(|fd| Metadata::of(fd.as_fd()));
        let is_there = match &there {
            Ok(there) => there.kind == FileKind::Dir,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(not_there(&seen.container, to, error)),
        };
        if !is_there {
            let shown = format!("{}:{}", seen.container.name, to.display());
            return Err(Error::invalid(format!("destination \"{shown}\" must be a directory")));
        }
        let input = Decompressed::new(archive).map_err(|e| Error::invalid(format!("cannot read the archive: {e}")))?;
        unpack(Reader::new(input), &root, &inside)?;
        self.tell(&seen.container, "extract-to-dir", &[]);
        Ok(())
    }
}

/// An archive that is being written.
struct Archive<W: Write> {
    out: Writer<W>,
    /// Where files with several names were written first, by device and number.
    linked: HashMap<(u64, u64), Vec<u8>>,
}

impl<W: Write> Archive<W> {
    /// A directory and everything in it. An empty path is the top.
    fn directory(&mut self, dir: Dir, path: Vec<u8>) -> io::Result<()> {
        let mut open = vec![(dir, path)];
        while let Some((dir, path)) = open.pop() {
            let metadata = dir.metadata()?;
            let attributes = xattrs(dir.as_fd())?;
            self.out.entry(&entry(path.clone(), &metadata, EntryKind::Directory, attributes))?;
            let mut names: Vec<OsString> = dir.entries()?.map(|one| Ok(one?.name)).collect::<io::Result<_>>()?;
            names.sort_unstable();
            for name in names {
                let child = if path.is_empty() {
                    name.as_bytes().to_vec()
                } else {
                    [&path, &b"/"[..], name.as_bytes()].concat()
                };
                match dir.stat(&name) {
                    Ok(found) if found.kind == FileKind::Dir => open.push((dir.open_dir(&name)?, child)),
                    Ok(_) => self.node(&dir, &name, child)?,
                    // The container is at work meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Anything by name.
    fn node(&mut self, dir: &Dir, name: &OsStr, path: Vec<u8>) -> io::Result<()> {
        let metadata = dir.stat(name)?;
        let number = |device: u64| (rustix::fs::major(device), rustix::fs::minor(device));
        let (major, minor) = number(metadata.rdev);
        let kind = match metadata.kind {
            FileKind::Dir => return self.directory(dir.open_dir(name)?, path),
            // As tar does: a socket is nothing without its process.
            FileKind::Socket => return Ok(()),
            FileKind::Symlink => EntryKind::Symlink { target: dir.read_link(name)?.into_os_string().into_vec() },
            FileKind::Fifo => EntryKind::Fifo,
            FileKind::CharDevice => EntryKind::CharDevice { major, minor },
            FileKind::BlockDevice => EntryKind::BlockDevice { major, minor },
            FileKind::File => {
                let inode = (metadata.device, metadata.inode);
                match self.linked.get(&inode).filter(|_| metadata.links > 1) {
                    Some(target) => EntryKind::HardLink { target: target.clone() },
                    None => {
                        self.linked.insert(inode, path.clone());
                        EntryKind::File { size: metadata.size }
                    }
                }
            }
        };
        let attributes = dir.xattrs(name)?;
        let is_file = matches!(kind, EntryKind::File { .. });
        self.out.entry(&entry(path, &metadata, kind, attributes))?;
        if is_file { self.content(dir, name) } else { Ok(()) }
    }

    /// As much of a file as its header says; zeros for what was cut off meanwhile.
    fn content(&mut self, dir: &Dir, name: &OsStr) -> io::Result<()> {
        let mut file = dir.open_file(name)?;
        let mut buffer = vec![0; 128 << 10];
        while self.out.owed() > 0 {
            let most = usize::try_from(self.out.owed()).unwrap_or(usize::MAX).min(buffer.len());
            let n = match file.read(&mut buffer[..most])? {
                0 => {
                    buffer[..most].fill(0);
                    most
                }
                n => n,
            };
            self.out.body(&buffer[..n])?;
        }
        Ok(())
    }
}

fn entry(path: Vec<u8>, metadata: &Metadata, kind: EntryKind, attributes: Vec<(OsString, Vec<u8>)>) -> Entry {
    let attributes = attributes.into_iter().map(|(name, value)| (name.into_vec(), value));
    let xattrs: Xattrs = attributes.filter(|(name, _)| travels(name)).collect();
    let Metadata { mode, uid, gid, modified, .. } = *metadata;
    Entry { path, kind, mode, uid, gid, mtime: modified, xattrs }
}

/// Unpacks into the directory `to` of a tree; what is there already stays unless the archive has it too.
fn unpack<R: Read>(mut archive: Reader<R>, root: &Root, to: &Path) -> Result<(), Error> {
    // Directories get their times last: what is written into them changes them.
    let mut directories: Vec<(PathBuf, Entry)> = Vec::new();
    while let Some(entry) = archive.next()? {
        let shown = String::from_utf8_lossy(&entry.path).into_owned();
        let path = to.join(OsStr::from_bytes(&entry.path));
        place(&mut archive, &entry, root, to, &path).map_err(|error| match error {
            Placing::Archive(error) => error.into(),
            Placing::Files(error) => Error::internal(format!("cannot unpack {shown}: {error}")),
        })?;
        if entry.kind == EntryKind::Directory {
            directories.push((path, entry));
        }
    }
    for (path, entry) in directories.into_iter().rev() {
        let dated = root.open_dir(&path, Walk::InRoot).and_then(|dir| set_times(dir.as_fd(), entry.mtime, entry.mtime));
        dated.map_err(|e| Error::internal(format!("cannot unpack {}: {e}", path.display())))?;
    }
    Ok(())
}

/// What went wrong with one entry.
enum Placing {
    Archive(StoreError),
    Files(io::Error),
}

impl From<StoreError> for Placing {
    fn from(error: StoreError) -> Self {
        Placing::Archive(error)
    }
}

impl From<io::Error> for Placing {
    fn from(error: io::Error) -> Self {
        Placing::Files(error)
    }
}

fn place<R: Read>(archive: &mut Reader<R>, entry: &Entry, root: &Root, to: &Path, path: &Path) -> Result<(), Placing> {
    if entry.kind == EntryKind::Directory {
        let dir = root.mkdir_all(path, Walk::InRoot, 0o755)?;
        set_owner(dir.as_fd(), entry.uid, entry.gid)?;
        return Ok(set_mode(dir.as_fd(), entry.mode)?);
    }
    if let Some(parent) = path.parent() {
        root.mkdir_all(parent, Walk::InRoot, 0o755)?;
    }
    let (dir, name) = root.parent(path, Walk::InRoot)?;
    match dir.stat(&name) {
        Ok(there) if there.kind == FileKind::Dir => {
            return Err(io::Error::other("cannot overwrite directory with non-directory").into());
        }
        Ok(_) => dir.unlink(&name)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let device = |major: u32, minor: u32| rustix::fs::makedev(major, minor);
    match &entry.kind {
        EntryKind::Directory => {}
        EntryKind::File { size } => {
            let file = dir.create_file(&name, 0o600)?;
            while let Some(piece) = archive.piece()? {
                file.write_all_at(piece.bytes, piece.offset)?;
            }
            file.set_len(*size)?;
        }
        EntryKind::Symlink { target } => dir.symlink(OsStr::from_bytes(target), &name)?,
        EntryKind::HardLink { target } => {
            let (from, from_name) = root.parent(&to.join(OsStr::from_bytes(target)), Walk::InRoot)?;
            // It has the attributes of its other name.
            return Ok(from.link(&from_name, &dir, &name)?);
        }
        EntryKind::CharDevice { major, minor } => {
            dir.mknod(&name, FileKind::CharDevice, entry.mode, device(*major, *minor))?;
        }
        EntryKind::BlockDevice { major, minor } => {
            dir.mknod(&name, FileKind::BlockDevice, entry.mode, device(*major, *minor))?;
        }
        EntryKind::Fifo => dir.mknod(&name, FileKind::Fifo, entry.mode, 0)?,
    }
    dir.set_owner(&name, entry.uid, entry.gid)?;
    if !matches!(entry.kind, EntryKind::Symlink { .. }) {
        dir.set_mode(&name, entry.mode)?;
    }
    for (attribute, value) in &entry.xattrs {
        dir.set_xattr(&name, OsStr::from_bytes(attribute), value)?;
    }
    Ok(dir.set_times(&name, entry.mtime, entry.mtime)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn packed(dir: &Path) -> Vec<u8> {
        let mut archive = Archive { out: Writer::new(Vec::new()), linked: HashMap::new() };
        let root = Root::open(dir).expect("open");
        archive.directory(root.open_dir(Path::new("."), Walk::InRoot).expect("dir"), b"top".to_vec()).expect("pack");
        archive.out.finish().expect("the end").0
    }

    #[test]
    fn a_tree_goes_through_an_archive() {
        let from = tempfile::tempdir().expect("tempdir");
        let path = from.path();
        fs::create_dir(path.join("d")).expect("mkdir");
        fs::write(path.join("d/file"), "text").expect("write");
        fs::set_permissions(path.join("d/file"), fs::Permissions::from_mode(0o640)).expect("chmod");
        fs::hard_link(path.join("d/file"), path.join("same")).expect("link");
        symlink("d/file", path.join("link")).expect("symlink");
        let to = tempfile::tempdir().expect("tempdir");
        fs::create_dir(to.path().join("into")).expect("mkdir");
        let root = Root::open(to.path()).expect("open");
        unpack(Reader::new(&packed(path)[..]), &root, Path::new("/into")).expect("unpack");
        let at = |name: &str| to.path().join("into/top").join(name);
        assert_eq!(fs::read_to_string(at("d/file")).expect("read"), "text");
        assert_eq!(fs::metadata(at("d/file")).expect("stat").mode() & 0o7777, 0o640);
        let inode = |name: &str| fs::metadata(at(name)).expect("stat").ino();
        assert_eq!(inode("d/file"), inode("same"));
        assert_eq!(fs::read_link(at("link")).expect("link"), Path::new("d/file"));
        let time = |path: &Path| fs::metadata(path).expect("stat").mtime();
        assert_eq!(time(&at("d")), time(&path.join("d")));
        unpack(Reader::new(&packed(path)[..]), &root, Path::new("/into")).expect("over what is there");
    }

    #[test]
    fn an_archive_stays_inside() {
        let outside = tempfile::tempdir().expect("tempdir");
        let to = tempfile::tempdir().expect("tempdir");
        fs::create_dir(to.path().join("into")).expect("mkdir");
        symlink(outside.path(), to.path().join("into/top")).expect("symlink");
        let from = tempfile::tempdir().expect("tempdir");
        fs::write(from.path().join("planted"), "x").expect("write");
        let root = Root::open(to.path()).expect("open");
        // The link leads to a path of the tree's own, which is made or refused, never to the machine's.
        let _ = unpack(Reader::new(&packed(from.path())[..]), &root, Path::new("/into"));
        assert!(!outside.path().join("planted").exists());
    }
}
