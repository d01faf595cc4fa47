//! An open directory and the names in it.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::node::{self, Kind, Metadata, Timestamp};
use super::remove;

/// An open directory. Its methods take single names (no `/`, no `.` or `..`: `EINVAL`) and never follow a link.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
}

impl Dir {
    /// The directory `fd` is open on, `O_PATH` or not; `ENOTDIR` for another kind.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Dir> {
        match Metadata::of(fd.as_fd())?.kind {
            Kind::Dir => Ok(Dir { fd }),
            _ => Err(Errno::NOTDIR.into()),
        }
    }

    pub fn try_clone(&self) -> io::Result<Dir> {
        Ok(Dir { fd: self.fd.try_clone()? })
    }

    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// What the directory itself is.
    pub fn metadata(&self) -> io::Result<Metadata> {
        Metadata::of(self.fd.as_fd())
    }

    /// What it holds, in no order, without `.` and `..`.
    pub fn entries(&self) -> io::Result<Entries> {
        // A description of its own: readers of one directory do not share a position, and `O_PATH` cannot read.
        Ok(Entries { dir: rustix::fs::Dir::new(self.readable()?)? })
    }

    pub fn stat(&self, name: &OsStr) -> io::Result<Metadata> {
        check_name(name)?;
        Metadata::from_stat(&rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// An `O_PATH` descriptor of whatever has this name.
    pub fn open_path(&self, name: &OsStr) -> io::Result<OwnedFd> {
        self.open(name, OFlags::PATH, 0)
    }

    pub fn open_dir(&self, name: &OsStr) -> io::Result<Dir> {
        Ok(Dir { fd: self.open(name, OFlags::RDONLY | OFlags::DIRECTORY, 0)? })
    }

    /// A regular file for reading; other kinds are refused, unopened.
    pub fn open_file(&self, name: &OsStr) -> io::Result<File> {
        node::reopen_file(self.open_path(name)?.as_fd(), OFlags::RDONLY)
    }

    /// A new file, open for reading and writing; it is an error if the name is taken.
    pub fn create_file(&self, name: &OsStr, mode: u32) -> io::Result<File> {
        let file = self.open(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, 0o600)?;
        if mode != 0o600 {
            node::set_mode(file.as_fd(), mode)?;
        }
        Ok(File::from(file))
    }

    /// A new directory.
    pub fn mkdir(&self, name: &OsStr, mode: u32) -> io::Result<Dir> {
        check_name(name)?;
        rustix::fs::mkdirat(&self.fd, name, Mode::RWXU)?;
        let dir = self.open_dir(name)?;
        if mode != 0o700 {
            node::set_mode(dir.as_fd(), mode)?;
        }
        Ok(dir)
    }

    /// The directory of that name, made with `mode` if it lacks.
    pub fn ensure_dir(&self, name: &OsStr, mode: u32) -> io::Result<Dir> {
        match self.mkdir(name, mode) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.open_dir(name),
            made => made,
        }
    }

    pub fn symlink(&self, target: &OsStr, name: &OsStr) -> io::Result<()> {
        check_name(name)?;
        Ok(rustix::fs::symlinkat(target, &self.fd, name)?)
    }

    pub fn read_link(&self, name: &OsStr) -> io::Result<PathBuf> {
        check_name(name)?;
        let text = rustix::fs::readlinkat(&self.fd, name, Vec::new())?;
        Ok(PathBuf::from(OsString::from_vec(text.into_bytes())))
    }

    /// A device, FIFO or socket. `device` is the kernel's number of a device and ignored for others.
    pub fn mknod(&self, name: &OsStr, kind: Kind, mode: u32, device: u64) -> io::Result<()> {
        check_name(name)?;
        let device = match kind {
            Kind::CharDevice | Kind::BlockDevice => device,
            Kind::Fifo | Kind::Socket => 0,
            Kind::File | Kind::Dir | Kind::Symlink => return Err(Errno::INVAL.into()),
        };
        let file_type: FileType = kind.file_type();
        rustix::fs::mknodat(&self.fd, name, file_type, Mode::empty(), device)?;
        match mode {
            0 => Ok(()),
            mode => node::set_mode(self.open_path(name)?.as_fd(), mode),
        }
    }

    /// A second name `to_name` in `to` for what is called `name` here.
    pub fn link(&self, name: &OsStr, to: &Dir, to_name: &OsStr) -> io::Result<()> {
        check_name(name)?;
        check_name(to_name)?;
        Ok(rustix::fs::linkat(&self.fd, name, &to.fd, to_name, AtFlags::empty())?)
    }

    pub fn unlink(&self, name: &OsStr) -> io::Result<()> {
        check_name(name)?;
        Ok(rustix::fs::unlinkat(&self.fd, name, AtFlags::empty())?)
    }

    pub fn rmdir(&self, name: &OsStr) -> io::Result<()> {
        check_name(name)?;
        Ok(rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR)?)
    }

    /// Removes what is called `name`, with everything below it, in constant stack and with few descriptors however deep
    /// it is. Returns the bytes of disk that became free. A name that is not there is no error.
    pub fn remove_all(&self, name: &OsStr) -> io::Result<u64> {
        check_name(name)?;
        remove::remove_all(self, name, None)
    }

    /// As [`Dir::remove_all`], trying `quick` on every directory that may be a subvolume.
    pub(crate) fn remove_all_with(&self, name: &OsStr, quick: remove::Quick<'_>) -> io::Result<u64> {
        check_name(name)?;
        remove::remove_all(self, name, Some(quick))
    }

    /// Renames, replacing a file or an empty directory of the new name.
    pub fn rename(&self, name: &OsStr, to: &Dir, to_name: &OsStr) -> io::Result<()> {
        check_name(name)?;
        check_name(to_name)?;
        Ok(rustix::fs::renameat(&self.fd, name, &to.fd, to_name)?)
    }

    /// Renames unless the new name is taken (`EEXIST`).
    pub fn rename_new(&self, name: &OsStr, to: &Dir, to_name: &OsStr) -> io::Result<()> {
        check_name(name)?;
        check_name(to_name)?;
        Ok(rustix::fs::renameat_with(&self.fd, name, &to.fd, to_name, RenameFlags::NOREPLACE)?)
    }

    /// Sets the owner; see [`node::set_owner`].
    pub fn set_owner(&self, name: &OsStr, uid: u32, gid: u32) -> io::Result<()> {
        check_name(name)?;
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        Ok(rustix::fs::chownat(&self.fd, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    pub fn set_mode(&self, name: &OsStr, mode: u32) -> io::Result<()> {
        node::set_mode(self.open_path(name)?.as_fd(), mode)
    }

    pub fn set_times(&self, name: &OsStr, accessed: Timestamp, modified: Timestamp) -> io::Result<()> {
        check_name(name)?;
        let times = Timestamps { last_access: accessed.timespec(), last_modification: modified.timespec() };
        Ok(rustix::fs::utimensat(&self.fd, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// All extended attributes of a name, sorted.
    pub fn xattrs(&self, name: &OsStr) -> io::Result<Vec<(OsString, Vec<u8>)>> {
        node::xattrs_at(&self.proc_path(name)?, false)
    }

    pub fn xattr(&self, name: &OsStr, attribute: &OsStr) -> io::Result<Option<Vec<u8>>> {
        node::xattr_at(&self.proc_path(name)?, attribute, false)
    }

    pub fn set_xattr(&self, name: &OsStr, attribute: &OsStr, value: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::lsetxattr(self.proc_path(name)?, attribute, value, XattrFlags::empty())?)
    }

    /// Brings the directory's own entries to the disk.
    pub fn sync(&self) -> io::Result<()> {
        match rustix::fs::fsync(&self.fd) {
            Err(Errno::BADF) => Ok(rustix::fs::fsync(self.readable()?)?),
            done => Ok(done?),
        }
    }

    /// A new descriptor of this directory that can be read and locked.
    pub fn readable(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.fd, c".", flags, Mode::empty())?)
    }

    fn open(&self, name: &OsStr, flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
        check_name(name)?;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode);
        Ok(rustix::io::retry_on_intr(|| rustix::fs::openat(&self.fd, name, flags, mode))?)
    }

    fn proc_path(&self, name: &OsStr) -> io::Result<CString> {
        check_name(name)?;
        let mut path = node::proc_path(self.fd.as_fd()).into_bytes();
        path.push(b'/');
        path.extend_from_slice(name.as_bytes());
        Ok(CString::new(path)?)
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: OsString,
    /// `None` where the file system does not say; [`Dir::stat`] does.
    pub kind: Option<Kind>,
    pub inode: u64,
}

/// Reads a directory.
#[derive(Debug)]
pub struct Entries {
    dir: rustix::fs::Dir,
}

impl Iterator for Entries {
    type Item = io::Result<Entry>;

    fn next(&mut self) -> Option<io::Result<Entry>> {
        loop {
            let entry = match self.dir.read()? {
                Ok(entry) => entry,
                Err(error) => return Some(Err(error.into())),
            };
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                return Some(Ok(Entry {
                    name: OsStr::from_bytes(name).to_owned(),
                    kind: Kind::of_type(entry.file_type()),
                    inode: entry.ino(),
                }));
            }
        }
    }
}

pub(super) fn check_name(name: &OsStr) -> io::Result<()> {
    match name.as_bytes() {
        b"" | b"." | b".." => Err(Errno::INVAL.into()),
        bytes if bytes.contains(&b'/') || bytes.contains(&0) => Err(Errno::INVAL.into()),
        _ => Ok(()),
    }
}
