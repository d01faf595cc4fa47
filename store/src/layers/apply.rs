//! Unpacks archives that nobody vouches for.
//!
//! A layer is unpacked into a new directory of its own, in which nothing is but what the archive itself put there, and
//! every name is resolved below it without following a link: so neither `..`, nor links planted before, nor hard links
//! lead outside. What an entry replaces is removed first; a new file is created exclusively, and gets its owner, mode,
//! attributes and times through its own name only, in that order, because a change of owner takes set-uid bits away.
//!
//! Directories get their times back after each visit rather than in a pass at the end, which would have to remember
//! them all. Only directories that the archive uses but does not name are remembered ([`Unpacked::settle`]).

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use rustix::io::Errno;

use super::diff::{entry_of, xattrs};
use super::read::{Reader, shown};
use super::tar::{Entry, EntryKind, IMPLIED_TIME, Xattrs, travels};
use super::whiteout::{self, Below, Lowers, Name, as_path};
use crate::error::{Context, Result, StoreError};
use crate::root::{Dir, Kind, Metadata, Root, Timestamp, Walk, node};

/// Bytes of names that one archive may leave to be settled later: directories it does not name, links to other layers.
/// Real layers have some dozens.
const REMEMBERED: usize = 32 << 20;

/// What `.wh.` names become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marks {
    /// Overlay's: character devices 0/0 and opaque attributes.
    Overlay,
    /// Files of these names, for [`super::merge`] to act on.
    Files,
    /// They mean nothing in an archive that is no layer: an error, since no layer could hold such a file.
    Refused,
}

/// What is known after unpacking, and what is still to be settled with the layers below.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    /// Directories that were made for what they hold, and the root, unless the archive names them.
    implied: BTreeSet<Vec<u8>>,
    /// Hard links to what the archive does not hold: path and target.
    foreign_links: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether the root hides all that is below it. (Overlay has no mark for that.)
    root_opaque: bool,
    remembered: usize,
}

/// Unpacks a whole archive into the empty directory `root`.
pub(crate) fn unpack<R: Read>(reader: &mut Reader<R>, root: &Root, marks: Marks) -> Result<Unpacked> {
    let mut unpacker = Unpacker { root, marks, parent: None, unpacked: Unpacked::default() };
    unpacker.unpacked.implied.insert(Vec::new());
    while let Some(entry) = reader.next()? {
        unpacker.entry(reader, &entry)?;
    }
    unpacker.leave()?;
    Ok(unpacker.unpacked)
}

struct Unpacker<'a> {
    root: &'a Root,
    marks: Marks,
    /// The directory of the last entry, open, with its path and the time it must have when we leave it.
    parent: Option<(Vec<u8>, Dir, Timestamp)>,
    unpacked: Unpacked,
}

impl Unpacker<'_> {
    fn entry<R: Read>(&mut self, reader: &mut Reader<R>, entry: &Entry) -> Result<()> {
        let what = || format!("unpacking {}", shown(&entry.path));
        if entry.path.is_empty() {
            self.leave()?;
            self.unpacked.implied.remove(&entry.path);
            return describe_dir(self.root.top(), entry).context(what);
        }
        let (parent, name) = split(&entry.path);
        if parent.split(|b| *b == b'/').any(|component| component.starts_with(whiteout::PREFIX)) {
            return match parent.split(|b| *b == b'/').any(|component| Name::of(component) == Name::Aufs) {
                true => Ok(()),
                false => Err(invalid(entry, "a whiteout holds nothing")),
            };
        }
        match (Name::of(name), self.marks) {
            (Name::Plain, _) => {}
            (Name::Aufs, Marks::Overlay | Marks::Files) => return Ok(()),
            (Name::Gone(gone), Marks::Overlay) => return self.gone(entry, parent, OsStr::from_bytes(gone)),
            (Name::Opaque, Marks::Overlay) => return self.opaque(entry, parent),
            (Name::Gone(_) | Name::Opaque, Marks::Files) => return self.mark_file(entry, parent, name),
            (Name::Invalid, Marks::Overlay | Marks::Files) => return Err(invalid(entry, "it is no valid whiteout")),
            (_, Marks::Refused) => {
                return Err(invalid(entry, "names that start with .wh. mean removed files in a layer"));
            }
        }
        let name = OsStr::from_bytes(name);
        if matches!(entry.kind, EntryKind::CharDevice { major: 0, minor: 0 }) {
            tracing::debug!("{} is overlay's own mark for a removed file: left out", shown(&entry.path));
            return Ok(());
        }
        self.enter(parent, entry)?;
        let there = self.look(name).context(what)?;
        if entry.kind == EntryKind::Directory {
            return self.directory(entry, name, there);
        }
        if let EntryKind::HardLink { target } = &entry.kind {
            return self.hard_link(entry, name, target, there);
        }
        self.clear(entry, name, there)?;
        let dir = self.dir()?;
        match &entry.kind {
            EntryKind::File { size } => {
                let mut file = dir.create_file(name, 0o600).context(what)?;
                fill(reader, &mut file, *size, &entry.path)?;
                describe_file(&file, entry).context(what)
            }
            _ => make_special(dir, name, entry).context(what),
        }
    }

    fn directory(&mut self, entry: &Entry, name: &OsStr, there: Option<Metadata>) -> Result<()> {
        let what = || format!("unpacking {}", shown(&entry.path));
        let dir = match there {
            Some(metadata) if metadata.kind == Kind::Dir => self.dir()?.open_dir(name).context(what)?,
            there => {
                self.clear(entry, name, there.clone())?;
                let dir = self.dir()?.mkdir(name, 0o700).context(what)?;
                if there.is_some_and(|metadata| metadata.is_whiteout()) {
                    whiteout::set_opaque(&dir).context(what)?;
                }
                dir
            }
        };
        self.unpacked.implied.remove(&entry.path);
        describe_dir(&dir, entry).context(what)
    }

    fn hard_link(&mut self, entry: &Entry, name: &OsStr, target: &[u8], there: Option<Metadata>) -> Result<()> {
        let what = || format!("linking {} to {}", shown(&entry.path), shown(target));
        if *target == entry.path {
            return Err(invalid(entry, "it is a hard link to itself"));
        }
        let (target_parent, target_name) = split(target);
        let target_name = OsStr::from_bytes(target_name);
        let found = self.root.open_dir(as_path(target_parent), Walk::NoLinks).and_then(|dir| {
            let metadata = dir.stat(target_name)?;
            Ok((dir, metadata))
        });
        let (target_dir, metadata) = match found {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.clear(entry, name, there)?;
                let link = (entry.path.clone(), target.to_vec());
                self.remember(link.0.len() + link.1.len())?;
                self.unpacked.foreign_links.push(link);
                return Ok(());
            }
            Err(error) => {
                return Err(blocked(entry, "its link target", error).unwrap_or_else(|e| StoreError::io(what(), e)));
            }
        };
        match metadata.kind {
            Kind::Dir => return Err(invalid(entry, "it is a hard link to a directory")),
            _ if metadata.is_whiteout() => return Err(invalid(entry, "it is a hard link to what the layer removes")),
            _ => {}
        }
        if there.as_ref().is_some_and(|there| (there.device, there.inode) == (metadata.device, metadata.inode)) {
            return Ok(());
        }
        self.clear(entry, name, there)?;
        target_dir.link(target_name, self.dir()?, name).context(what)
    }

    /// Makes overlay's mark for a name that is gone below. What this layer has under that name itself stays, but shows
    /// nothing of what was there before.
    fn gone(&mut self, entry: &Entry, parent: &[u8], name: &OsStr) -> Result<()> {
        let what = || format!("unpacking {}", shown(&entry.path));
        self.enter(parent, entry)?;
        let dir = self.dir()?;
        match self.look(name).context(what)? {
            None => whiteout::make_whiteout(dir, name).context(what),
            Some(metadata) if metadata.kind == Kind::Dir => {
                dir.open_dir(name).and_then(|dir| whiteout::set_opaque(&dir)).context(what)
            }
            Some(_) => Ok(()),
        }
    }

    fn opaque(&mut self, entry: &Entry, parent: &[u8]) -> Result<()> {
        self.enter(parent, entry)?;
        if parent.is_empty() {
            self.unpacked.root_opaque = true;
            return Ok(());
        }
        whiteout::set_opaque(self.dir()?).context(|| format!("unpacking {}", shown(&entry.path)))
    }

    fn mark_file(&mut self, entry: &Entry, parent: &[u8], name: &[u8]) -> Result<()> {
        let what = || format!("unpacking {}", shown(&entry.path));
        self.enter(parent, entry)?;
        let name = OsStr::from_bytes(name);
        match self.look(name).context(what)? {
            None => self.dir()?.create_file(name, 0o600).map(drop).context(what),
            Some(_) => Ok(()),
        }
    }

    /// Makes `parent` the directory we work in, with what lacks above it.
    fn enter(&mut self, parent: &[u8], entry: &Entry) -> Result<()> {
        if self.parent.as_ref().is_some_and(|(path, ..)| path == parent) {
            return Ok(());
        }
        self.leave()?;
        let what = || format!("unpacking {}", shown(&entry.path));
        let dir = match self.root.open_dir(as_path(parent), Walk::NoLinks) {
            Ok(dir) => dir,
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => self.make_parents(parent, entry)?,
                _ => return Err(blocked(entry, "its directory", error).unwrap_or_else(|e| StoreError::io(what(), e))),
            },
        };
        let modified = dir.metadata().context(what)?.modified;
        self.parent = Some((parent.to_vec(), dir, modified));
        Ok(())
    }

    /// Opens `parent` component by component and makes those that lack.
    fn make_parents(&mut self, parent: &[u8], entry: &Entry) -> Result<Dir> {
        let what = || format!("unpacking {}", shown(&entry.path));
        let mut dir = self.root.top().try_clone().context(what)?;
        let mut end = 0;
        for component in parent.split(|b| *b == b'/') {
            end += component.len() + usize::from(end > 0);
            let name = OsStr::from_bytes(component);
            let there = match dir.stat(name) {
                Ok(metadata) => Some(metadata),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(StoreError::io(what(), error)),
            };
            let gone = there.as_ref().is_some_and(Metadata::is_whiteout) && self.marks == Marks::Overlay;
            dir = match there {
                Some(metadata) if metadata.kind == Kind::Dir => dir.open_dir(name).context(what)?,
                Some(_) if !gone => {
                    let errno = Errno::NOTDIR.into();
                    return Err(blocked(entry, "its directory", errno).unwrap_or_else(|e| StoreError::io(what(), e)));
                }
                _ => {
                    let modified = dir.metadata().context(what)?.modified;
                    if gone {
                        dir.unlink(name).context(what)?;
                    }
                    let made = dir.mkdir(name, 0o755).context(what)?;
                    if gone {
                        whiteout::set_opaque(&made).context(what)?;
                    }
                    node::set_times(dir.as_fd(), modified, modified).context(what)?;
                    self.remember(end)?;
                    self.unpacked.implied.insert(parent[..end].to_vec());
                    made
                }
            };
        }
        Ok(dir)
    }

    /// Gives the directory we were in its time back.
    fn leave(&mut self) -> Result<()> {
        match self.parent.take() {
            Some((path, dir, modified)) => {
                node::set_times(dir.as_fd(), modified, modified).context(|| format!("unpacking {}", shown(&path)))
            }
            None => Ok(()),
        }
    }

    fn dir(&self) -> Result<&Dir> {
        let parent = self.parent.as_ref().ok_or_else(|| StoreError::invalid("unpacking", "no directory is open"))?;
        Ok(&parent.1)
    }

    fn look(&self, name: &OsStr) -> io::Result<Option<Metadata>> {
        let Some((_, dir, _)) = &self.parent else { return Ok(None) };
        match dir.stat(name) {
            Ok(metadata) => Ok(Some(metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes what an earlier entry of the same archive left under this name.
    fn clear(&mut self, entry: &Entry, name: &OsStr, there: Option<Metadata>) -> Result<()> {
        let what = || format!("unpacking {}", shown(&entry.path));
        match there {
            None => Ok(()),
            Some(metadata) if metadata.kind == Kind::Dir => {
                self.unpacked.forget(&entry.path);
                self.dir()?.remove_all(name).map(drop).context(what)
            }
            Some(_) => self.dir()?.unlink(name).context(what),
        }
    }

    fn remember(&mut self, bytes: usize) -> Result<()> {
        self.unpacked.remembered += bytes + 64;
        if self.unpacked.remembered > REMEMBERED {
            let what = "the names of directories that a layer uses and does not describe".into();
            return Err(StoreError::Limit { what, limit: REMEMBERED as u64, unit: "bytes" });
        }
        Ok(())
    }
}

impl Unpacked {
    /// A directory is gone again, and all in it.
    fn forget(&mut self, path: &[u8]) {
        self.implied.remove(path);
        let below = [path, b"/"].concat();
        let gone: Vec<Vec<u8>> =
            self.implied.range(below.clone()..).take_while(|p| p.starts_with(&below)).cloned().collect();
        for path in gone {
            self.implied.remove(&path);
        }
    }

    /// Finishes what depends on the layers below: directories that the layer does not describe look as they do there,
    /// or get root's, 0755 and a fixed time, where there are none; hard links to what lies below copy it up.
    pub(crate) fn settle(self, root: &Root, lowers: &Lowers) -> Result<()> {
        if self.root_opaque {
            hide_all(root, lowers)?;
        }
        for (path, target) in &self.foreign_links {
            copy_up_and_link(root, lowers, path, target)
                .context(|| format!("linking {} to {}, which is not in this layer", shown(path), shown(target)))?;
        }
        // Sorted, so a directory usually comes right before those in it, and deep trees need no walk from the top each.
        let mut last: Option<(&[u8], Below)> = None;
        for path in &self.implied {
            let what = || format!("unpacking {}", shown(path));
            let below = match &last {
                Some((above, below)) if split(path).0 == *above && !path.is_empty() => {
                    below.descend(OsStr::from_bytes(split(path).1)).context(what)?
                }
                _ => lowers.at(as_path(path)).context(what)?,
            };
            let dir = root.open_dir(as_path(path), Walk::NoLinks).context(what)?;
            describe_dir(&dir, &implied_looks(path, &below).context(what)?).context(what)?;
            last = Some((path, below));
        }
        Ok(())
    }
}

/// What a directory that nobody described looks like.
fn implied_looks(path: &[u8], below: &Below) -> io::Result<Entry> {
    let (path, kind) = (path.to_vec(), EntryKind::Directory);
    match below.uppermost() {
        Some(before) => Ok(entry_of(path, &before.metadata()?, kind, xattrs(before)?)),
        None => Ok(Entry { path, kind, mode: 0o755, uid: 0, gid: 0, mtime: IMPLIED_TIME, xattrs: Xattrs::new() }),
    }
}

/// Whites out everything that shows in the root below.
fn hide_all(root: &Root, lowers: &Lowers) -> Result<()> {
    let what = || "unpacking an opaque root".to_owned();
    let top = root.top();
    let modified = top.metadata().context(what)?.modified;
    for name in lowers.top().context(what)?.names().context(what)? {
        match top.open_dir(&name) {
            Ok(dir) => whiteout::set_opaque(&dir).context(what)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                whiteout::make_whiteout(top, &name).context(what)?
            }
            Err(_) => {} // something else of this name hides what is below
        }
    }
    node::set_times(top.as_fd(), modified, modified).context(what)
}

/// A hard link to a file of a lower layer: the file comes up under its own name, as it would in a mounted overlay.
fn copy_up_and_link(root: &Root, lowers: &Lowers, path: &[u8], target: &[u8]) -> io::Result<()> {
    let (dir_path, name) = split(path);
    let (target_dir_path, target_name) = split(target);
    let (name, target_name) = (OsStr::from_bytes(name), OsStr::from_bytes(target_name));
    let dir = root.open_dir(as_path(dir_path), Walk::NoLinks)?;
    if dir.stat(name).is_ok() {
        return Ok(()); // a later entry took the name
    }
    let below = lowers.at(as_path(target_dir_path))?;
    let found = below.find(target_name)?.filter(|(_, metadata)| metadata.kind == Kind::File);
    let (source_dir, metadata) = found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let target_dir = copy_up_dirs(root, lowers, target_dir_path)?;
    if target_dir.stat(target_name).is_err() {
        let mut source = source_dir.open_file(target_name)?;
        let mut file = target_dir.create_file(target_name, 0o600)?;
        io::copy(&mut source, &mut file)?;
        let entry = entry_of(target.to_vec(), &metadata, EntryKind::File { size: metadata.size }, xattrs(&source)?);
        describe_file(&file, &entry)?;
    }
    let modified = dir.metadata()?.modified;
    target_dir.link(target_name, &dir, name)?;
    node::set_times(dir.as_fd(), modified, modified)
}

/// The directory `path`, made with the looks it has below where it lacks.
fn copy_up_dirs(root: &Root, lowers: &Lowers, path: &[u8]) -> io::Result<Dir> {
    let mut dir = root.top().try_clone()?;
    let mut below = lowers.top()?;
    for component in path.split(|b| *b == b'/').filter(|component| !component.is_empty()) {
        let name = OsStr::from_bytes(component);
        below = below.descend(name)?;
        dir = match dir.open_dir(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let modified = dir.metadata()?.modified;
                let made = dir.mkdir(name, 0o700)?;
                let before = below.uppermost().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
                let entry = entry_of(Vec::new(), &before.metadata()?, EntryKind::Directory, xattrs(before)?);
                describe_dir(&made, &entry)?;
                node::set_times(dir.as_fd(), modified, modified)?;
                made
            }
            opened => opened?,
        };
    }
    Ok(dir)
}

/// Writes an entry's content, holes as holes.
fn fill<R: Read>(reader: &mut Reader<R>, file: &mut File, size: u64, path: &[u8]) -> Result<()> {
    let what = || format!("unpacking {}", shown(path));
    let mut end = 0;
    while let Some(piece) = reader.piece()? {
        file.write_all_at(piece.bytes, piece.offset).context(what)?;
        end = piece.offset + piece.bytes.len() as u64;
    }
    if end < size {
        file.set_len(size).context(what)?;
    }
    Ok(())
}

fn make_special(dir: &Dir, name: &OsStr, entry: &Entry) -> io::Result<()> {
    let (kind, device) = match &entry.kind {
        EntryKind::Symlink { target } => {
            dir.symlink(OsStr::from_bytes(target), name)?;
            dir.set_owner(name, entry.uid, entry.gid)?;
            return dir.set_times(name, entry.mtime, entry.mtime);
        }
        EntryKind::CharDevice { major, minor } => (Kind::CharDevice, rustix::fs::makedev(*major, *minor)),
        EntryKind::BlockDevice { major, minor } => (Kind::BlockDevice, rustix::fs::makedev(*major, *minor)),
        _ => (Kind::Fifo, 0),
    };
    dir.mknod(name, kind, 0, device)?;
    dir.set_owner(name, entry.uid, entry.gid)?;
    dir.set_mode(name, entry.mode)?;
    for (attribute, value) in &entry.xattrs {
        // The kernel lets devices and FIFOs have ACLs and nothing else.
        if attribute.starts_with(b"system.") {
            dir.set_xattr(name, OsStr::from_bytes(attribute), value)?;
        }
    }
    dir.set_times(name, entry.mtime, entry.mtime)
}

fn describe_file(file: &File, entry: &Entry) -> io::Result<()> {
    node::set_owner(file.as_fd(), entry.uid, entry.gid)?;
    node::set_mode(file.as_fd(), entry.mode)?;
    for (name, value) in &entry.xattrs {
        set_xattr(file.as_fd(), name, value)?;
    }
    node::set_times(file.as_fd(), entry.mtime, entry.mtime)
}

/// As [`describe_file`], but the directory may have been described before.
pub(super) fn describe_dir(dir: &Dir, entry: &Entry) -> io::Result<()> {
    node::set_owner(dir.as_fd(), entry.uid, entry.gid)?;
    node::set_mode(dir.as_fd(), entry.mode)?;
    for (name, _) in node::xattrs(dir.as_fd())? {
        if travels(name.as_bytes()) && !entry.xattrs.contains_key(name.as_bytes()) {
            node::remove_xattr(dir.as_fd(), &name)?;
        }
    }
    for (name, value) in &entry.xattrs {
        set_xattr(dir.as_fd(), name, value)?;
    }
    node::set_times(dir.as_fd(), entry.mtime, entry.mtime)
}

fn set_xattr(fd: std::os::fd::BorrowedFd<'_>, name: &[u8], value: &[u8]) -> io::Result<()> {
    node::set_xattr(fd, OsStr::from_bytes(name), value)
        .map_err(|error| io::Error::new(error.kind(), format!("extended attribute {}: {error}", shown(name))))
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

fn invalid(entry: &Entry, reason: &str) -> StoreError {
    StoreError::invalid(format!("tar entry {}", shown(&entry.path)), reason)
}

/// The refusal of an entry whose way leads through something that is no directory; the error itself for other causes.
fn blocked(entry: &Entry, what: &str, error: io::Error) -> std::result::Result<StoreError, io::Error> {
    let errno = error.raw_os_error();
    let through = [Errno::LOOP, Errno::NOTDIR, Errno::XDEV].iter().any(|e| errno == Some(e.raw_os_error()));
    match through || error.kind() == io::ErrorKind::NotADirectory {
        true => Ok(invalid(entry, &format!("{what} lies behind something that is no directory"))),
        false => Err(error),
    }
}
