//! What a descriptor names: its kind, owner, mode, times and extended attributes.
//!
//! The functions take any descriptor, `O_PATH` ones of links and devices included, which is why some go through
//! `/proc/self/fd`: the kernel resolves that to the very object, whatever its name has become.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

/// What sort of file something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    File,
    Dir,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

impl Kind {
    pub(crate) fn of_type(file_type: FileType) -> Option<Kind> {
        Some(match file_type {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Dir,
            FileType::Symlink => Kind::Symlink,
            FileType::CharacterDevice => Kind::CharDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::Unknown => return None,
        })
    }

    pub(crate) fn file_type(self) -> FileType {
        match self {
            Kind::File => FileType::RegularFile,
            Kind::Dir => FileType::Directory,
            Kind::Symlink => FileType::Symlink,
            Kind::CharDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            Kind::Fifo => FileType::Fifo,
            Kind::Socket => FileType::Socket,
        }
    }
}

/// Seconds and nanoseconds since 1970; seconds may be negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    pub seconds: i64,
    pub nanos: u32,
}

impl Timestamp {
    pub fn new(seconds: i64, nanos: u32) -> Timestamp {
        Timestamp { seconds, nanos }
    }

    pub(crate) fn timespec(self) -> Timespec {
        Timespec { tv_sec: self.seconds, tv_nsec: i64::from(self.nanos) }
    }
}

/// What `stat` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    pub kind: Kind,
    /// Permission bits with set-uid, set-gid and sticky (`07777`).
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes of a file, length of a link's text.
    pub size: u64,
    /// Disk use in bytes.
    pub disk: u64,
    pub accessed: Timestamp,
    pub modified: Timestamp,
    pub changed: Timestamp,
    /// The device it lies on, and its number there.
    pub device: u64,
    pub inode: u64,
    pub links: u64,
    /// The device it is, for devices.
    pub rdev: u64,
}

impl Metadata {
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Metadata> {
        Metadata::from_stat(&rustix::fs::fstat(fd)?)
    }

    // The widths of these fields differ between architectures.
    #[allow(clippy::unnecessary_cast)]
    pub(crate) fn from_stat(stat: &Stat) -> io::Result<Metadata> {
        let kind = Kind::of_type(FileType::from_raw_mode(stat.st_mode)).ok_or_else(|| io::Error::from(Errno::INVAL))?;
        Ok(Metadata {
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: stat.st_size as u64,
            disk: stat.st_blocks as u64 * 512,
            accessed: Timestamp::new(stat.st_atime as i64, stat.st_atime_nsec as u32),
            modified: Timestamp::new(stat.st_mtime as i64, stat.st_mtime_nsec as u32),
            changed: Timestamp::new(stat.st_ctime as i64, stat.st_ctime_nsec as u32),
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            links: stat.st_nlink as u64,
            rdev: stat.st_rdev as u64,
        })
    }

    /// Whether this is overlay's sign for a removed name: a character device 0/0.
    pub fn is_whiteout(&self) -> bool {
        self.kind == Kind::CharDevice && self.rdev == 0
    }
}

/// Opens the regular file that `fd` (usually an `O_PATH` one) names. Other kinds are refused, unopened.
pub fn reopen_file(fd: BorrowedFd<'_>, access: OFlags) -> io::Result<File> {
    match Metadata::of(fd)?.kind {
        Kind::File => {}
        Kind::Dir => return Err(Errno::ISDIR.into()),
        Kind::Symlink => return Err(Errno::LOOP.into()),
        _ => return Err(Errno::INVAL.into()),
    }
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(proc_path(fd), flags, Mode::empty())?))
}

/// The text of the link that `fd` names.
pub fn read_link(fd: BorrowedFd<'_>) -> io::Result<PathBuf> {
    let text = rustix::fs::readlinkat(fd, c"", Vec::new())?;
    Ok(PathBuf::from(OsString::from_vec(text.into_bytes())))
}

/// Sets the owner. The kernel takes set-uid bits and file capabilities away with it, so this comes before those.
pub fn set_owner(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    Ok(rustix::fs::chownat(fd, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?)
}

/// Sets the permission bits, umask or not. Links have none: `EOPNOTSUPP`.
pub fn set_mode(fd: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    match rustix::fs::fchmod(fd, Mode::from_raw_mode(mode & 0o7777)) {
        Err(Errno::BADF) => Ok(rustix::fs::chmod(proc_path(fd), Mode::from_raw_mode(mode & 0o7777))?),
        done => Ok(done?),
    }
}

pub fn set_times(fd: BorrowedFd<'_>, accessed: Timestamp, modified: Timestamp) -> io::Result<()> {
    let times = Timestamps { last_access: accessed.timespec(), last_modification: modified.timespec() };
    Ok(rustix::fs::utimensat(fd, c"", &times, AtFlags::EMPTY_PATH)?)
}

/// All extended attributes, sorted by name. Empty where the file system has none.
pub fn xattrs(fd: BorrowedFd<'_>) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    xattrs_at(&proc_path(fd), true)
}

/// The value of one extended attribute, or `None` where there is none of that name.
pub fn xattr(fd: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
    xattr_at(&proc_path(fd), name, true)
}

pub fn set_xattr(fd: BorrowedFd<'_>, name: &OsStr, value: &[u8]) -> io::Result<()> {
    match rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()) {
        Err(Errno::BADF) => Ok(rustix::fs::setxattr(proc_path(fd), name, value, XattrFlags::empty())?),
        done => Ok(done?),
    }
}

/// Removes an extended attribute; one that is not there is no error.
pub fn remove_xattr(fd: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match rustix::fs::removexattr(proc_path(fd), name) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        done => Ok(done?),
    }
}

/// Gives `to` the owner, mode, extended attributes and times of `from`.
pub fn copy_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let metadata = Metadata::of(from)?;
    set_owner(to, metadata.uid, metadata.gid)?;
    for (name, value) in xattrs(from)? {
        set_xattr(to, &name, &value)?;
    }
    if metadata.kind != Kind::Symlink {
        set_mode(to, metadata.mode)?;
    }
    set_times(to, metadata.accessed, metadata.modified)
}

pub(crate) fn proc_path(fd: BorrowedFd<'_>) -> CString {
    CString::new(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())).expect("digits hold no zero byte")
}

pub(crate) fn xattrs_at(path: &CString, follow: bool) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    let names = match grow(|buffer| match follow {
        true => rustix::fs::listxattr(path, buffer),
        false => rustix::fs::llistxattr(path, buffer),
    }) {
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        names => names?,
    };
    let mut found = Vec::new();
    for name in names.split(|&b| b == 0).filter(|name| !name.is_empty()) {
        let name = OsStr::from_bytes(name);
        if let Some(value) = xattr_at(path, name, follow)? {
            found.push((name.to_owned(), value));
        }
    }
    found.sort();
    Ok(found)
}

pub(crate) fn xattr_at(path: &CString, name: &OsStr, follow: bool) -> io::Result<Option<Vec<u8>>> {
    match grow(|buffer| match follow {
        true => rustix::fs::getxattr(path, name, buffer),
        false => rustix::fs::lgetxattr(path, name, buffer),
    }) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        value => Ok(Some(value?)),
    }
}

/// Calls `read` with more and more room until its answer fits.
fn grow(read: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut small = [0u8; 512];
    match read(&mut small) {
        Err(Errno::RANGE) => {}
        done => return Ok(small[..done?].to_vec()),
    }
    // The kernel's own limit for a value and for a list.
    let mut large = vec![0u8; 64 << 10];
    let length = read(&mut large)?;
    large.truncate(length);
    Ok(large)
}
