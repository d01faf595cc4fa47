//! Limits on what a directory may hold.
//!
//! On xfs and ext4 by a project: the directory and all that is made in it carry a number, and the file system counts
//! and limits by it. On btrfs by the quota group of the subvolume, which counts what it does not share with others. The
//! number is found anew for each directory, among those nobody uses, so nothing has to be kept beside it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::ioctl::{Call, FileAttributes, GroupLimit, Plain, QuotaBlock, QuotaControl, project_quota};

const BTRFS_MAGIC: u32 = 0x9123_683e;

const QUOTA_CONTROL: Call = Call::both(0x94, 40, 16);
const GROUP_LIMIT: Call = Call::gives(0x94, 43, 48);
const ENABLE: u64 = 1;
const MAX_EXCLUSIVE: u64 = 1 << 1;

const GET_ATTRIBUTES: Call = Call::gives(b'X', 31, 28);
const SET_ATTRIBUTES: Call = Call::takes(b'X', 32, 28);
const INHERIT_PROJECT: u32 = 0x200;
const GET_QUOTA: u32 = 0x80_0007;
const SET_QUOTA: u32 = 0x80_0008;
const BLOCK_LIMITS: u32 = 1;

/// Project numbers that are tried before one gives up.
const TRIES: usize = 64;

/// Limits what the directory `path`, which is empty, will hold to `bytes`; on btrfs it is the root of a subvolume, and
/// may hold what it shares with others besides.
///
/// # Errors
/// `Unsupported`: its file system counts nothing: it is no btrfs, and not mounted with project quotas.
pub fn limit(path: &Path, bytes: u64) -> io::Result<()> {
    let dir = open(path)?;
    if is_btrfs(dir.as_fd())? { limit_subvolume(dir.as_fd(), bytes) } else { limit_project(dir.as_fd(), bytes) }
}

/// Takes back the limit of a directory that is about to be removed. Where it has none, nothing happens.
///
/// # Errors
/// The directory cannot be read.
pub fn lift(path: &Path) -> io::Result<()> {
    let dir = open(path)?;
    if is_btrfs(dir.as_fd())? {
        // The group goes with the subvolume.
        return Ok(());
    }
    let mut attributes = FileAttributes::zeroed();
    if GET_ATTRIBUTES.on(dir.as_fd(), &mut attributes).is_err() || attributes.project == 0 {
        return Ok(());
    }
    let mut none = QuotaBlock::zeroed();
    none.valid = BLOCK_LIMITS;
    project_quota(dir.as_fd(), SET_QUOTA, attributes.project, &mut none)
}

fn open(path: &Path) -> io::Result<std::os::fd::OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn is_btrfs(dir: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(rustix::fs::fstatfs(dir)?.f_type as u32 == BTRFS_MAGIC)
}

fn limit_subvolume(subvolume: BorrowedFd<'_>, bytes: u64) -> io::Result<()> {
    let set = || {
        let mut limit = GroupLimit::zeroed();
        (limit.flags, limit.exclusive) = (MAX_EXCLUSIVE, bytes);
        GROUP_LIMIT.on(subvolume, &mut limit)
    };
    match set() {
        Ok(()) => Ok(()),
        // Counting is off: it is turned on for the whole file system, as docker does.
        Err(_) => {
            let mut control = QuotaControl { command: ENABLE, status: 0 };
            QUOTA_CONTROL.on(subvolume, &mut control).map_err(unsupported)?;
            set()
        }
    }
}

fn limit_project(dir: BorrowedFd<'_>, bytes: u64) -> io::Result<()> {
    let project = free_project(dir).map_err(unsupported)?;
    let mut attributes = FileAttributes::zeroed();
    GET_ATTRIBUTES.on(dir, &mut attributes).map_err(unsupported)?;
    let mut block = QuotaBlock::zeroed();
    (block.hard, block.soft, block.valid) = (bytes.div_ceil(1024), bytes.div_ceil(1024), BLOCK_LIMITS);
    project_quota(dir, SET_QUOTA, project, &mut block).map_err(unsupported)?;
    (attributes.project, attributes.flags) = (project, attributes.flags | INHERIT_PROJECT);
    SET_ATTRIBUTES.on(dir, &mut attributes).map_err(unsupported)
}

/// A project that holds nothing and has no limit.
fn free_project(dir: BorrowedFd<'_>) -> io::Result<u32> {
    for _ in 0..TRIES {
        let mut bytes = [0; 4];
        rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())?;
        // Small numbers are what people give.
        let project = u32::from_ne_bytes(bytes) >> 2 | 1 << 24;
        let mut block = QuotaBlock::zeroed();
        match project_quota(dir, GET_QUOTA, project, &mut block) {
            // Never counted.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(project),
            asked => asked?,
        }
        if (block.space, block.inodes, block.hard, block.soft) == (0, 0, 0, 0) {
            return Ok(project);
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// What the kernel says in many words is one thing to the caller.
fn unsupported(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ESRCH | libc::ENOTTY | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::EPERM) => {
            io::Error::new(io::ErrorKind::Unsupported, error)
        }
        _ => error,
    }
}
