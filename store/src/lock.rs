//! Advisory locks on files of the store.
//!
//! `flock`, because it belongs to the open file and not to the process: the kernel releases it when its holder dies,
//! so no clock decides whether somebody lives. Rank, lowest first: store version, lease, cache mount, container; they
//! are taken in that order and never while waiting for a task, the network or a user.

use std::os::fd::AsFd;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Context, Result};

/// Waits for a lock.
pub fn lock(file: impl AsFd, how: Lock) -> Result<()> {
    let operation = match how {
        Lock::Shared => FlockOperation::LockShared,
        Lock::Alone => FlockOperation::LockExclusive,
    };
    rustix::io::retry_on_intr(|| flock(file.as_fd(), operation)).context(|| "locking a file of the store".to_owned())
}

/// Takes a lock if nobody else holds it; false when somebody does.
pub fn try_lock(file: impl AsFd, how: Lock) -> Result<bool> {
    let operation = match how {
        Lock::Shared => FlockOperation::NonBlockingLockShared,
        Lock::Alone => FlockOperation::NonBlockingLockExclusive,
    };
    match rustix::io::retry_on_intr(|| flock(file.as_fd(), operation)) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error).context(|| "locking a file of the store".to_owned()),
    }
}

/// How a file is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    Shared,
    Alone,
}
