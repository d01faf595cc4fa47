//! Writes into the uppermost directory of a snapshot as if the whole tree were there.
//!
//! A step that only copies files needs no mount: what it makes goes straight into the directory that becomes the
//! snapshot, and what is below is looked at beside it ([`Below`]). So a path is looked up here in two
//! places, component by component and never through a link that the kernel would follow; links are the image's own and
//! are resolved against its root, as a process inside would see them.
//!
//! A directory that is only needed as a parent is copied up with its owner, mode, attributes and times, and those of
//! parents that were there before are put back at the end: adding a file to `/etc` does not change `/etc`. (A mount
//! would change its time to now, and no two builds would agree.)

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::below::Below;
use super::meta::{Kind, Meta};
use super::walk::{join, open_beneath, open_dir_beneath, read_link, split_parent};
use super::xattrs;
use crate::ExecutorError;

/// Links followed before a path counts as a loop, as the kernel counts.
const LINKS: usize = 40;

/// What a path is in the merged tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Absent,
    Directory(Meta),
    Link(Vec<u8>),
    Other(Meta),
}

/// How a new entry looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
}

/// A path with all links resolved, and what is there.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Relative to the root, clean.
    pub path: Vec<u8>,
    pub found: Found,
}

/// An open directory of the upper tree.
#[derive(Debug)]
pub struct UpperDir {
    pub fd: OwnedFd,
    pub path: Vec<u8>,
    /// Nothing below this directory exists in the view below.
    pub fresh: bool,
}

/// The tree of a snapshot in the making.
pub struct TreeWriter {
    upper: OwnedFd,
    below: Option<Below>,
    /// Directories that were there before, and the times to put back.
    touched: BTreeMap<Vec<u8>, Meta>,
    /// Directories made here, and the time they get at the end.
    made: BTreeMap<Vec<u8>, (i64, u32)>,
    /// Paths whose state below no longer counts.
    removed: HashSet<Vec<u8>>,
    changed: bool,
}

impl TreeWriter {
    /// `upper` is the directory to write into; `below` shows what lies under it, `None` when `upper` already is the
    /// whole tree (or nothing is below).
    ///
    /// # Errors
    /// `upper` cannot be opened.
    pub fn new(upper: &Path, below: Option<Below>) -> Result<TreeWriter, ExecutorError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let upper = rustix::fs::open(upper, flags, Mode::empty())
            .map_err(|errno| ExecutorError::write(upper.as_os_str().as_bytes(), errno))?;
        Ok(TreeWriter {
            upper,
            below,
            touched: BTreeMap::new(),
            made: BTreeMap::new(),
            removed: HashSet::new(),
            changed: false,
        })
    }

    /// Whether anything was made, replaced or removed.
    pub fn changed(&self) -> bool {
        self.changed
    }

    pub(crate) fn mark_changed(&mut self) {
        self.changed = true;
    }

    /// What `path` is; its parents hold no links.
    ///
    /// # Errors
    /// As `fstatat`.
    pub fn look(&self, path: &[u8]) -> rustix::io::Result<Found> {
        if let Some(found) = look_in(&self.upper, path)? {
            return Ok(found);
        }
        match &self.below {
            Some(below) if !self.is_removed(path) => Ok(below.look(path)?.unwrap_or(Found::Absent)),
            _ => Ok(Found::Absent),
        }
    }

    fn is_removed(&self, path: &[u8]) -> bool {
        if self.removed.is_empty() {
            return false;
        }
        let mut at = path;
        loop {
            if self.removed.contains(at) {
                return true;
            }
            if at.is_empty() {
                return false;
            }
            at = split_parent(at).0;
        }
    }

    /// Follows `path` as a process inside would; what does not exist any more on the way is taken as it is written.
    ///
    /// # Errors
    /// Too many links, or something on the way that is no directory.
    pub fn resolve(&self, path: &[u8], follow_last: bool) -> rustix::io::Result<Resolved> {
        let mut rest: VecDeque<Vec<u8>> = components(path);
        let mut at: Vec<u8> = Vec::new();
        let mut found = self.look(b"")?;
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == b".." {
                at = split_parent(&at).0.to_vec();
                found = self.look(&at)?;
                continue;
            }
            match found {
                Found::Other(_) => return Err(Errno::NOTDIR),
                Found::Absent => {
                    at = join(&at, &name);
                    continue;
                }
                _ => {}
            }
            let next = join(&at, &name);
            found = self.look(&next)?;
            match &found {
                Found::Link(target) if follow_last || !rest.is_empty() => {
                    links += 1;
                    if links > LINKS {
                        return Err(Errno::LOOP);
                    }
                    if target.starts_with(b"/") {
                        at.clear();
                    }
                    for component in components(target).into_iter().rev() {
                        rest.push_front(component);
                    }
                    found = self.look(&at)?;
                }
                _ => at = next,
            }
        }
        Ok(Resolved { path: at, found })
    }

    /// Makes `path` (no links in it) and its missing parents directories that look like `look`.
    ///
    /// # Errors
    /// Something that is no directory is in the way.
    pub fn make_dirs(&mut self, path: &[u8], look: &Look) -> Result<(), ExecutorError> {
        match self.look(path).map_err(|errno| ExecutorError::write(path, errno))? {
            Found::Directory(_) => Ok(()),
            Found::Absent => {
                let (parent, name) = split_parent(path);
                if !name.is_empty() {
                    self.make_dirs(parent, look)?;
                }
                self.make_dir(path, look)
            }
            _ => Err(ExecutorError::write(path, Errno::NOTDIR)),
        }
    }

    /// Makes one directory; its parent exists and it does not.
    ///
    /// # Errors
    /// As `mkdirat`.
    pub fn make_dir(&mut self, path: &[u8], look: &Look) -> Result<(), ExecutorError> {
        let (parent, name) = split_parent(path);
        let dir = self.open_dir(parent)?;
        let fail = |errno: Errno| ExecutorError::write(path, errno);
        let name = CString::new(name).map_err(|_| fail(Errno::INVAL))?;
        let hides = self.is_removed(path);
        if hides {
            unlink_if_there(&dir.fd, &name).map_err(fail)?;
        }
        rustix::fs::mkdirat(&dir.fd, name.as_c_str(), Mode::from_raw_mode(0o700)).map_err(fail)?;
        let fd = open_dir_beneath(dir.fd.as_fd(), name.to_bytes()).map_err(fail)?;
        if hides && self.below.is_some() {
            rustix::fs::fsetxattr(&fd, c"trusted.overlay.opaque", b"y", XattrFlags::empty()).map_err(fail)?;
        }
        apply_look(&fd, look, true).map_err(fail)?;
        self.made.insert(path.to_vec(), look.mtime);
        self.changed = true;
        Ok(())
    }

    /// Opens a directory that exists in the merged tree, copying it up if it is only below.
    ///
    /// # Errors
    /// It does not exist or is no directory.
    pub fn open_dir(&mut self, path: &[u8]) -> Result<UpperDir, ExecutorError> {
        let fail = |errno: Errno| ExecutorError::write(path, errno);
        let below = match &self.below {
            Some(below) if !self.is_removed(path) => match below.open_dir(path) {
                Ok(fd) => Some(fd),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
                Err(errno) => return Err(fail(errno)),
            },
            _ => None,
        };
        match open_dir_beneath(self.upper.as_fd(), path) {
            Ok(fd) => {
                let known = self.made.contains_key(path) || self.touched.contains_key(path);
                if !known {
                    // Without a view below, the upper tree itself is what was there before.
                    self.touched.insert(path.to_vec(), Meta::of_fd(&fd).map_err(fail)?);
                }
                let fresh = below.is_none() && (self.below.is_some() || self.made.contains_key(path));
                Ok(UpperDir { fd, path: path.to_vec(), fresh })
            }
            Err(Errno::NOENT) => {
                let below = below.ok_or_else(|| fail(Errno::NOENT))?;
                let meta = Meta::of_fd(&below).map_err(fail)?;
                let (parent, name) = split_parent(path);
                let dir = self.open_dir(parent)?;
                let name = CString::new(name).map_err(|_| fail(Errno::INVAL))?;
                rustix::fs::mkdirat(&dir.fd, name.as_c_str(), Mode::from_raw_mode(0o700)).map_err(fail)?;
                let fd = open_dir_beneath(dir.fd.as_fd(), name.to_bytes()).map_err(fail)?;
                let look = Look { mode: meta.mode, uid: meta.uid, gid: meta.gid, mtime: meta.mtime };
                apply_look(&fd, &look, false).map_err(fail)?;
                xattrs::write(&fd, &xattrs::read(&below).map_err(fail)?).map_err(fail)?;
                self.touched.insert(path.to_vec(), meta);
                Ok(UpperDir { fd, path: path.to_vec(), fresh: false })
            }
            Err(errno) => Err(fail(errno)),
        }
    }

    /// Sets how a directory of the merged tree looks.
    ///
    /// # Errors
    /// As `fchown`, `fchmod`.
    pub fn change_dir(&mut self, path: &[u8], look: &Look, attributes: &xattrs::Xattrs) -> Result<(), ExecutorError> {
        let dir = self.open_dir(path)?;
        let fail = |errno: Errno| ExecutorError::write(path, errno);
        apply_look(&dir.fd, look, true).map_err(fail)?;
        xattrs::write(&dir.fd, attributes).map_err(fail)?;
        self.touched.remove(path);
        self.made.insert(path.to_vec(), look.mtime);
        self.changed = true;
        Ok(())
    }

    /// Makes sure that a file, link or node can be made as `name` in `dir`: another one in the way goes.
    ///
    /// # Errors
    /// A directory is in the way.
    pub fn clear(&mut self, dir: &UpperDir, name: &CString) -> Result<(), ExecutorError> {
        let path = join(&dir.path, name.to_bytes());
        let found = if dir.fresh {
            look_in(&dir.fd, name.to_bytes()).map(|f| f.unwrap_or(Found::Absent))
        } else {
            self.look(&path)
        };
        match found.map_err(|errno| ExecutorError::write(&path, errno))? {
            Found::Directory(_) => Err(ExecutorError::FileOnDirectory { path }),
            _ => unlink_if_there(&dir.fd, name).map_err(|errno| ExecutorError::write(&path, errno)),
        }
    }

    /// Writes a small file; whatever is at `path` (but a directory) is replaced.
    ///
    /// # Errors
    /// As `openat`, `write`.
    pub fn write_file(&mut self, path: &[u8], content: &[u8], look: &Look) -> Result<(), ExecutorError> {
        let mut rest = content;
        self.stream_file(path, &mut rest, look)
    }

    /// Writes a file from a stream; whatever is at `path` (but a directory) is replaced.
    ///
    /// # Errors
    /// As `openat`, `write`, and what reading says.
    pub fn stream_file(&mut self, path: &[u8], content: &mut dyn Read, look: &Look) -> Result<(), ExecutorError> {
        let (parent, name) = split_parent(path);
        let dir = self.open_dir(parent)?;
        let fail = |errno: Errno| ExecutorError::write(path, errno);
        let name = CString::new(name).map_err(|_| fail(Errno::INVAL))?;
        self.clear(&dir, &name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&dir.fd, name.as_c_str(), flags, Mode::from_raw_mode(0o600)).map_err(fail)?;
        let mut file = File::from(fd);
        std::io::copy(content, &mut file).map_err(|error| fail(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        apply_look(&OwnedFd::from(file), look, true).map_err(fail)?;
        self.changed = true;
        Ok(())
    }

    /// Removes a path with all that is below it.
    ///
    /// # Errors
    /// It does not exist (`ENOENT`), or cannot be removed.
    pub fn remove(&mut self, path: &[u8]) -> Result<(), ExecutorError> {
        let fail = |errno: Errno| ExecutorError::write(path, errno);
        if self.look(path).map_err(fail)? == Found::Absent {
            return Err(fail(Errno::NOENT));
        }
        let (parent, name) = split_parent(path);
        let dir = self.open_dir(parent)?;
        let name = CString::new(name).map_err(|_| fail(Errno::INVAL))?;
        remove_tree(&dir.fd, &name).map_err(fail)?;
        let below = self.below.as_ref().map(|below| below.look(path)).transpose().map_err(fail)?.flatten();
        if below.is_some_and(|found| found != Found::Absent) && !self.is_removed(path) {
            let kind = rustix::fs::FileType::CharacterDevice;
            rustix::fs::mknodat(&dir.fd, name.as_c_str(), kind, Mode::empty(), 0).map_err(fail)?;
        }
        self.removed.insert(path.to_vec());
        self.made.retain(|made, _| !is_below(made, path));
        self.touched.retain(|touched, _| !is_below(touched, path));
        self.changed = true;
        Ok(())
    }

    /// The merged tree's files for reading: `path` (no links in it), from wherever it is.
    ///
    /// # Errors
    /// As `openat2`.
    pub fn open_existing(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        match open_beneath(self.upper.as_fd(), path, flags) {
            Err(Errno::NOENT) => match &self.below {
                Some(below) if !self.is_removed(path) => below.open(path, flags),
                _ => Err(Errno::NOENT),
            },
            done => done,
        }
    }

    /// Gives every directory its final time, deepest first. Call it once, at the end.
    ///
    /// # Errors
    /// As `utimensat`.
    pub fn finish(self) -> Result<bool, ExecutorError> {
        let touched = self.touched.iter().map(|(path, meta)| (path, meta.mtime));
        let made = self.made.iter().map(|(path, mtime)| (path, *mtime));
        for (path, mtime) in touched.chain(made) {
            let fail = |errno: Errno| ExecutorError::write(path, errno);
            let fd = open_dir_beneath(self.upper.as_fd(), path).map_err(fail)?;
            set_times(&fd, mtime).map_err(fail)?;
        }
        Ok(self.changed)
    }
}

fn components(path: &[u8]) -> VecDeque<Vec<u8>> {
    path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".").map(<[u8]>::to_vec).collect()
}

fn is_below(path: &[u8], root: &[u8]) -> bool {
    path == root || path.starts_with(root) && path.get(root.len()) == Some(&b'/')
}

/// What `path` is in one tree; `None` when that tree says nothing about it, `Absent` when it says that it is gone.
pub(super) fn look_in(root: &OwnedFd, path: &[u8]) -> rustix::io::Result<Option<Found>> {
    let (parent, name) = split_parent(path);
    if name.is_empty() {
        return Ok(Some(Found::Directory(Meta::of_fd(root)?)));
    }
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    let opened;
    let dir = if parent.is_empty() {
        root.as_fd()
    } else {
        match open_beneath(root.as_fd(), parent, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(fd) => {
                opened = fd;
                opened.as_fd()
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(errno) => return Err(errno),
        }
    };
    let meta = match Meta::at(dir, &name) {
        Ok(meta) => meta,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    Ok(Some(match meta.kind {
        Kind::Directory => Found::Directory(meta),
        Kind::Symlink => Found::Link(read_link(dir, &name)?.into_bytes()),
        Kind::CharDevice if meta.rdev == 0 => Found::Absent,
        _ => Found::Other(meta),
    }))
}

/// Owner, then mode (which a change of owner would clear bits of), then, if wanted, the time.
pub(crate) fn apply_look(fd: &OwnedFd, look: &Look, times: bool) -> rustix::io::Result<()> {
    rustix::fs::fchown(fd, Some(Uid::from_raw(look.uid)), Some(Gid::from_raw(look.gid)))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(look.mode & 0o7777))?;
    if times { set_times(fd, look.mtime) } else { Ok(()) }
}

/// Both times of an open file.
pub(crate) fn set_times(fd: &OwnedFd, mtime: (i64, u32)) -> rustix::io::Result<()> {
    rustix::fs::futimens(fd, &timestamps(mtime))
}

pub(crate) fn timestamps(mtime: (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: mtime.0, tv_nsec: mtime.1.into() };
    Timestamps { last_access: time, last_modification: time }
}

pub(crate) fn unlink_if_there(dir: &OwnedFd, name: &CString) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(dir, name.as_c_str(), AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        done => done,
    }
}

/// Removes an entry with all below it, through descriptors and without recursion.
fn remove_tree(dir: &OwnedFd, name: &CString) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(dir, name.as_c_str(), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    let mut pending = vec![name.to_bytes().to_vec()];
    while let Some(path) = pending.last().cloned() {
        let fd = open_dir_beneath(dir.as_fd(), &path)?;
        let mut subdirs = Vec::new();
        for entry in rustix::fs::Dir::read_from(&fd)? {
            let entry = entry?;
            let child = entry.file_name();
            if child == c"." || child == c".." {
                continue;
            }
            match rustix::fs::unlinkat(&fd, child, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => subdirs.push(join(&path, child.to_bytes())),
                Err(errno) => return Err(errno),
            }
        }
        if subdirs.is_empty() {
            pending.pop();
            rustix::fs::unlinkat(dir, OsStr::from_bytes(&path), AtFlags::REMOVEDIR)?;
        } else {
            pending.extend(subdirs);
        }
    }
    Ok(())
}
