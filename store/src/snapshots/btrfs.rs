//! Snapshots that btrfs makes.
//!
//! `snapshots/<id>/fs` is a subvolume with the whole tree, a snapshot of its parent's: it shares everything with it but
//! what was changed, down to single blocks of a file. Committed, it is read-only for everybody. Nothing needs mounting.
//! A subvolume without a row is recognised by where it lies, like any directory: a death leaves nothing special.
//!
//! The calls are the runtime's, since they need `unsafe`; whoever opens the store lends them as [`Subvolumes`].

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use super::Driver;
use super::whole::Trees;
use crate::error::{Context, Result, StoreError};
use crate::root::{Dir, node};
use crate::store::Core;

/// What `statfs` calls btrfs.
const MAGIC: u32 = 0x9123_683e;

/// What btrfs can do beyond other file systems. Directories are given open for reading.
pub trait Subvolumes: Send + Sync + fmt::Debug {
    /// Makes an empty subvolume in `parent`.
    ///
    /// # Errors
    /// The file system's, here as in all that follow.
    fn create(&self, parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()>;

    /// Makes a writable snapshot of the subvolume `of`.
    fn snapshot(&self, of: BorrowedFd<'_>, parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()>;

    /// Removes a subvolume and all in it, unless there are subvolumes in it. Returns the bytes that were written in it.
    fn remove(&self, parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<u64>;

    /// Makes a subvolume read-only.
    fn seal(&self, subvolume: BorrowedFd<'_>) -> io::Result<()>;

    /// Whether there are subvolumes in a subvolume: its snapshots would lack what those hold.
    fn has_nested(&self, subvolume: BorrowedFd<'_>) -> io::Result<bool>;

    /// What was written in a subvolume since it was, by one or several snapshots, made from the sealed one `below`, or
    /// since it was made empty. `None` where that cannot be told.
    fn changes(&self, subvolume: BorrowedFd<'_>, below: Option<BorrowedFd<'_>>)
    -> io::Result<Option<SubvolumeChanges>>;
}

/// What was written in a subvolume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubvolumeChanges {
    /// Inodes that are new, or of which anything changed: content, attributes, names.
    pub inodes: HashSet<u64>,
    /// Bytes of file content written, of which only those count that are still there.
    pub bytes: u64,
}

/// The driver `btrfs`.
pub(super) struct Btrfs {
    /// The calls, unless whoever opened the store lent none.
    subvolumes: Option<Arc<dyn Subvolumes>>,
}

impl Btrfs {
    pub(super) fn new(core: &Core) -> Btrfs {
        Btrfs { subvolumes: core.subvolumes.clone() }
    }

    fn subvolumes(&self) -> Result<&dyn Subvolumes> {
        let lent = self.subvolumes.as_deref();
        lent.ok_or_else(|| StoreError::Unsupported("the driver btrfs in this program".to_owned()))
    }
}

impl Trees for Btrfs {
    const DRIVER: Driver = Driver::Btrfs;

    fn empty(&self, dir: &Dir) -> Result<()> {
        let what = || "making a subvolume".to_owned();
        self.subvolumes()?.create(dir.as_fd(), OsStr::new("fs")).context(what)?;
        let fs = dir.open_dir(OsStr::new("fs")).context(what)?;
        node::set_mode(fs.as_fd(), 0o755).context(what)
    }

    fn duplicate(&self, of: &Dir, dir: &Dir) -> Result<()> {
        let what = || "making a snapshot of a subvolume".to_owned();
        let of = of.readable().context(what)?;
        self.subvolumes()?.snapshot(of.as_fd(), dir.as_fd(), OsStr::new("fs")).context(what)
    }

    fn seal(&self, fs: &Dir) -> Result<()> {
        let what = || "committing a subvolume".to_owned();
        let fs = fs.readable().context(what)?;
        if self.subvolumes()?.has_nested(fs.as_fd()).context(what)? {
            return Err(StoreError::Unsupported(
                "a subvolume of btrfs in a snapshot: what was made holds one, and it would be lost".to_owned(),
            ));
        }
        self.subvolumes()?.seal(fs.as_fd()).context(what)
    }
}

/// Whether the store at `path` lies on btrfs and snapshots can be made there: tried out, for it takes privileges too.
pub(super) fn works(path: &Path, dir: &Dir, subvolumes: &dyn Subvolumes) -> Result<bool> {
    if rustix::fs::fstatfs(dir).context(|| format!("looking at {path:?}"))?.f_type as u32 != MAGIC {
        return Ok(false);
    }
    let what = || format!("trying btrfs in {path:?}");
    let ingest = dir.open_dir(OsStr::new("ingest")).context(what)?;
    let names = ["probe-subvolume", "probe-snapshot"].map(OsStr::new);
    let attempt = || -> io::Result<()> {
        subvolumes.create(ingest.as_fd(), names[0])?;
        let made = ingest.open_dir(names[0])?;
        subvolumes.snapshot(made.as_fd(), ingest.as_fd(), names[1])?;
        subvolumes.remove(ingest.as_fd(), names[1]).map(drop)
    };
    // The caller has the store alone: what is there was left by one that died here.
    for name in names {
        ingest.remove_all(name).context(what)?;
    }
    let outcome = attempt();
    for name in names {
        ingest.remove_all(name).context(what)?;
    }
    if let Err(error) = &outcome {
        tracing::info!("subvolumes cannot be made in {path:?}: {error}");
    }
    Ok(outcome.is_ok())
}
