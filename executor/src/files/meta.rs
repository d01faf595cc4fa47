//! What `stat` says about a file, as far as copying and hashing care.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, Stat};

/// What kind of thing a directory entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// One `stat`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
    pub dev: u64,
    pub ino: u64,
    pub nlink: u64,
    pub rdev: u64,
}

impl Meta {
    pub fn of(stat: &Stat) -> Meta {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::CharacterDevice => Kind::CharDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            _ => Kind::File,
        };
        Meta {
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: stat.st_size as u64,
            mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
            ctime: (stat.st_ctime, stat.st_ctime_nsec as u32),
            dev: stat.st_dev,
            ino: stat.st_ino,
            nlink: stat.st_nlink,
            rdev: stat.st_rdev,
        }
    }

    /// The entry `name` of a directory, itself (links are not followed).
    ///
    /// # Errors
    /// As `fstatat`.
    pub fn at(dir: impl AsFd, name: &CStr) -> rustix::io::Result<Meta> {
        rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| Meta::of(&stat))
    }

    /// An open file.
    ///
    /// # Errors
    /// As `fstat`.
    pub fn of_fd(fd: impl AsFd) -> rustix::io::Result<Meta> {
        rustix::fs::fstat(fd).map(|stat| Meta::of(&stat))
    }

    /// Whether `self` and `other`, two looks at one file, saw the same bytes: size, inode and both times agree. (Not the
    /// device number: the same file has another one in each mount of an overlay.)
    pub fn same_state(&self, other: &Meta) -> bool {
        self.kind == other.kind
            && self.size == other.size
            && self.ino == other.ino
            && self.mtime == other.mtime
            && self.ctime == other.ctime
    }

    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Directory
    }
}
