//! Walks beneath a directory, for every path that comes from outside: an image, an archive, a build context, a
//! container.
//!
//! The kernel resolves such a path (`openat2`), so nobody can swap a component between a check and its use, and what
//! comes back is a descriptor: all later work goes through that. Checking strings instead was the bug in every engine
//! that tried it. [`Root`] takes paths, [`Dir`] takes single names in an open directory, and [`node`] changes what a
//! descriptor names. Modes are exact: the umask does not enter.

mod dir;
pub mod node;
mod remove;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

pub use dir::{Dir, Entries, Entry};
pub use node::{Kind, Metadata, Timestamp, set_mode, set_owner, set_times, set_xattr, xattr, xattrs};

/// How often a walk is tried when a rename elsewhere keeps the kernel from vouching for a `..`.
const ATTEMPTS: usize = 512;

/// How the components of a path are resolved. Absolute paths start at the root in every case, and the links of `/proc`
/// never lead anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walk {
    /// Links are followed as if the root were `/`, and `..` stops there: image and container paths.
    InRoot,
    /// Links are followed; leaving the root is an error (`EXDEV`): archives.
    Beneath,
    /// A link on the way is an error (`ELOOP`), and so is leaving: the store's own paths, whiteouts, stubs.
    NoLinks,
}

/// A directory and everything below it, and nothing else.
#[derive(Debug)]
pub struct Root {
    dir: Dir,
}

impl Root {
    /// The directory that the host path `path` names. The path itself is trusted.
    pub fn open(path: &Path) -> io::Result<Root> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Root::from_fd(rustix::fs::open(path, flags, Mode::empty())?)
    }

    /// The directory that `fd` is open on, for instance the root of a mount that is attached nowhere.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Root> {
        Ok(Root { dir: Dir::from_fd(fd)? })
    }

    /// The top directory itself.
    pub fn top(&self) -> &Dir {
        &self.dir
    }

    /// An `O_PATH` descriptor of what `path` names, after following a link that is its last component. (With
    /// [`Walk::NoLinks`] there is no following, and the link itself comes back.)
    pub fn walk(&self, path: &Path, how: Walk) -> io::Result<OwnedFd> {
        match how {
            Walk::NoLinks => self.openat2(path, OFlags::PATH | OFlags::NOFOLLOW, how),
            _ => self.openat2(path, OFlags::PATH, how),
        }
    }

    /// As [`Root::walk`], but a link that is the last component is not followed and comes back itself.
    pub fn walk_to_link(&self, path: &Path, how: Walk) -> io::Result<OwnedFd> {
        self.openat2(path, OFlags::PATH | OFlags::NOFOLLOW, how)
    }

    pub fn open_dir(&self, path: &Path, how: Walk) -> io::Result<Dir> {
        Dir::from_fd(self.openat2(path, OFlags::PATH | OFlags::DIRECTORY, how)?)
    }

    /// A regular file for reading. Anything else is refused (`EISDIR`, or `EINVAL`) without having been opened, so that
    /// neither a FIFO blocks nor a device acts.
    pub fn open_file(&self, path: &Path, how: Walk) -> io::Result<File> {
        node::reopen_file(self.walk(path, how)?.as_fd(), OFlags::RDONLY)
    }

    /// A new file, open for reading and writing; it is an error if the name is taken.
    pub fn create_file(&self, path: &Path, how: Walk, mode: u32) -> io::Result<File> {
        let (dir, name) = self.parent(path, how)?;
        dir.create_file(&name, mode)
    }

    /// What `path` is, after following a link that is its last component.
    pub fn stat(&self, path: &Path, how: Walk) -> io::Result<Metadata> {
        Metadata::of(self.walk(path, how)?.as_fd())
    }

    /// What `path` is, a link included.
    pub fn lstat(&self, path: &Path, how: Walk) -> io::Result<Metadata> {
        Metadata::of(self.walk_to_link(path, how)?.as_fd())
    }

    pub fn read_link(&self, path: &Path, how: Walk) -> io::Result<PathBuf> {
        node::read_link(self.walk_to_link(path, how)?.as_fd())
    }

    /// What the directory holds, sorted by name.
    pub fn read_dir(&self, path: &Path, how: Walk) -> io::Result<Vec<Entry>> {
        let mut entries = self.open_dir(path, how)?.entries()?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// A new directory.
    pub fn mkdir(&self, path: &Path, how: Walk, mode: u32) -> io::Result<Dir> {
        let (dir, name) = self.parent(path, how)?;
        dir.mkdir(&name, mode)
    }

    /// The directory `path`, made with what lacks above it. A component that is a link to a directory is followed as
    /// `how` says; those that are made get `mode`.
    pub fn mkdir_all(&self, path: &Path, how: Walk, mode: u32) -> io::Result<Dir> {
        match self.open_dir(path, how) {
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {}
            done => return done,
        }
        let mut sofar = PathBuf::new();
        let mut dir = self.dir.try_clone()?;
        for component in path.components() {
            match component {
                Component::RootDir | Component::CurDir => continue,
                other => sofar.push(other),
            }
            dir = match self.open_dir(&sofar, how) {
                Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {
                    match self.mkdir(&sofar, how, mode) {
                        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.open_dir(&sofar, how)?,
                        made => made?,
                    }
                }
                found => found?,
            };
        }
        Ok(dir)
    }

    /// A link at `path` with the text `target`.
    pub fn symlink(&self, target: &OsStr, path: &Path, how: Walk) -> io::Result<()> {
        let (dir, name) = self.parent(path, how)?;
        dir.symlink(target, &name)
    }

    /// A second name `to` for `from`, which is not followed if it is a link.
    pub fn link(&self, from: &Path, to: &Path, how: Walk) -> io::Result<()> {
        let (from_dir, from_name) = self.parent(from, how)?;
        let (dir, name) = self.parent(to, how)?;
        from_dir.link(&from_name, &dir, &name)
    }

    /// A device, FIFO or socket. `device` is the kernel's number of a device and ignored for others.
    pub fn mknod(&self, path: &Path, how: Walk, kind: Kind, mode: u32, device: u64) -> io::Result<()> {
        let (dir, name) = self.parent(path, how)?;
        dir.mknod(&name, kind, mode, device)
    }

    pub fn unlink(&self, path: &Path, how: Walk) -> io::Result<()> {
        let (dir, name) = self.parent(path, how)?;
        dir.unlink(&name)
    }

    pub fn rmdir(&self, path: &Path, how: Walk) -> io::Result<()> {
        let (dir, name) = self.parent(path, how)?;
        dir.rmdir(&name)
    }

    /// Removes what `path` names, with everything below it. Returns the bytes of disk that became free.
    pub fn remove_all(&self, path: &Path, how: Walk) -> io::Result<u64> {
        let (dir, name) = self.parent(path, how)?;
        dir.remove_all(&name)
    }

    pub fn rename(&self, from: &Path, to: &Path, how: Walk) -> io::Result<()> {
        let (from_dir, from_name) = self.parent(from, how)?;
        let (dir, name) = self.parent(to, how)?;
        from_dir.rename(&from_name, &dir, &name)
    }

    /// The directory that `path` is in, and its last component, which is a plain name.
    pub fn parent(&self, path: &Path, how: Walk) -> io::Result<(Dir, OsString)> {
        let mut bytes = path.as_os_str().as_bytes();
        while let [rest @ .., b'/'] = bytes {
            bytes = rest;
        }
        let (above, name) = match bytes.iter().rposition(|&b| b == b'/') {
            Some(slash) => (&bytes[..slash], &bytes[slash + 1..]),
            None => (&b""[..], bytes),
        };
        let name = OsStr::from_bytes(name);
        dir::check_name(name)?;
        Ok((self.open_dir(Path::new(OsStr::from_bytes(above)), how)?, name.to_owned()))
    }

    fn openat2(&self, path: &Path, flags: OFlags, how: Walk) -> io::Result<OwnedFd> {
        let mut resolve = ResolveFlags::NO_MAGICLINKS;
        resolve |= match how {
            Walk::InRoot => ResolveFlags::IN_ROOT,
            Walk::Beneath => ResolveFlags::BENEATH,
            Walk::NoLinks => ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        };
        let mut bytes = path.as_os_str().as_bytes();
        while let [b'/', rest @ ..] = bytes {
            bytes = rest;
        }
        let path = if bytes.is_empty() { Path::new(".") } else { Path::new(OsStr::from_bytes(bytes)) };
        for attempt in 0.. {
            match rustix::fs::openat2(&self.dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN) if attempt < ATTEMPTS => {
                    // Someone renamed something while a `..` was resolved.
                    if attempt > 16 {
                        std::thread::yield_now();
                    }
                }
                Err(Errno::INTR) => {}
                done => return Ok(done?),
            }
        }
        unreachable!("the loop ends by returning")
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}
