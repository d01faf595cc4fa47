//! File trees at rest.
//!
//! A snapshot is a directory that is never changed again, on top of its parent. To make one, prepare an [`Active`] one
//! on a parent, write into it through its mounts or its upper directory, and commit it: the very directory becomes the
//! snapshot, nothing is copied or scanned. An active one that is dropped leaves nothing. The store says how to mount and
//! mounts nothing, so it needs no privileges for that and no mount can be left behind by it.
//!
//! A parent is kept by its children. Ids are numbers in base 36 and never used again.

mod active;
mod btrfs;
mod copy;
mod overlay;
mod rows;
mod tree;
mod whole;

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rbuild_oci::{ChainId, DiffId};
use serde::{Deserialize, Serialize};

use crate::db::Durability;
use crate::error::{Context, Result, StoreError};
use crate::lease::Lease;
use crate::root::{Dir, Root};
use crate::store::Core;

pub use active::Active;
use btrfs::Btrfs;
pub use btrfs::{SubvolumeChanges, Subvolumes};
use copy::Copy;
pub use overlay::Overlay;
pub use rows::SnapshotRow;
pub(crate) use tree::EntryCopy;
pub use tree::{copy_tree, disk_use};
use whole::Whole;

/// The most snapshots in one stack. The kernel stacks 500 directories in an overlay and one overlay on another, so
/// whoever mounts so many folds the lowest into one; a sandbox needs some places itself.
pub const DEEPEST: usize = rbuild_oci::limits::LAYERS;

/// The id of a snapshot: a number in base 36.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotId(Arc<str>);

impl SnapshotId {
    pub(crate) fn of_number(mut number: u64) -> SnapshotId {
        let mut digits = Vec::new();
        loop {
            digits.push(char::from_digit((number % 36) as u32, 36).expect("a digit"));
            number /= 36;
            if number == 0 {
                break;
            }
        }
        SnapshotId(digits.iter().rev().collect::<String>().into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SnapshotId {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<SnapshotId> {
        let plain = text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
        if text.is_empty() || text.len() > 13 || !plain {
            return Err(StoreError::invalid(format!("snapshot id {text:?}"), "it is no number in base 36"));
        }
        Ok(SnapshotId(text.into()))
    }
}

impl TryFrom<String> for SnapshotId {
    type Error = StoreError;

    fn try_from(text: String) -> Result<SnapshotId> {
        text.parse()
    }
}

impl From<SnapshotId> for String {
    fn from(id: SnapshotId) -> String {
        id.0.to_string()
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How snapshots lie on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// Each holds what differs from its parent; the kernel stacks them.
    Overlay,
    /// Each is a full copy. Works everywhere.
    Vfs,
    /// Each is a subvolume that btrfs makes as a snapshot of its parent's.
    Btrfs,
}

impl Driver {
    /// Whether a snapshot's own directory shows everything, not only what differs from its parent.
    pub fn is_whole(self) -> bool {
        match self {
            Driver::Overlay => false,
            Driver::Vfs | Driver::Btrfs => true,
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Driver::Overlay => "overlay",
            Driver::Vfs => "vfs",
            Driver::Btrfs => "btrfs",
        })
    }
}

impl FromStr for Driver {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Driver> {
        match text {
            "overlay" | "overlay2" | "overlayfs" => Ok(Driver::Overlay),
            "vfs" | "native" => Ok(Driver::Vfs),
            "btrfs" => Ok(Driver::Btrfs),
            _ => Err(StoreError::invalid(format!("storage driver {text:?}"), "known are overlay, btrfs and vfs")),
        }
    }
}

/// How to see a file tree. All paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mounts {
    /// An overlay mount, read-only without `upper`. It must be mounted with `index=off,metacopy=off,redirect_dir=off`.
    Overlay {
        /// Uppermost first; never empty, and at least two when there is no `upper`.
        lowers: Vec<PathBuf>,
        upper: Option<PathBuf>,
        work: Option<PathBuf>,
    },
    Bind {
        source: PathBuf,
        read_only: bool,
    },
}

/// One way for snapshots to lie on disk.
pub trait Snapshotter: Send + Sync {
    fn driver(&self) -> Driver;

    /// A writable tree that begins as `parent`, or empty. `lease` keeps the parent, and later the snapshot.
    fn prepare(&self, lease: &Lease, parent: Option<&SnapshotId>) -> Result<Active>;

    /// A writable tree that begins as `of` and will take its place: on `of`'s parent, and one layer with it. What is committed
    /// keeps `of`. `None` where all of it has to be written again: the driver stacks nothing, or `of` is such a one itself.
    ///
    /// # Errors
    /// `of` is gone.
    fn prepare_delta(&self, lease: &Lease, of: &SnapshotId) -> Result<Option<Active>>;

    /// Makes what was written the snapshot, without a copy. Nothing may be mounted on it any more.
    fn commit(&self, active: Active) -> Result<Snapshot>;

    /// How to see a snapshot, for reading.
    fn view(&self, id: &SnapshotId) -> Result<Mounts>;

    /// Removes a snapshot; an error when it has children or somebody refers to it.
    fn remove(&self, id: &SnapshotId) -> Result<()>;

    /// Makes a writable layer on `parent` in the directory `dir`, which the caller owns and which is empty or missing: for
    /// a container, whose layer outlives its process. The caller keeps the parent with a row in `refs`.
    fn make_layer(&self, dir: &Path, parent: Option<&SnapshotId>) -> Result<Mounts>;

    /// The mounts that [`Snapshotter::make_layer`] gave.
    fn layer_mounts(&self, dir: &Path, parent: Option<&SnapshotId>) -> Result<Mounts>;

    /// Copies a layer made by [`Snapshotter::make_layer`] into a new snapshot on the same parent.
    fn commit_copy(&self, dir: &Path, parent: Option<&SnapshotId>, lease: &Lease) -> Result<Snapshot>;
}

/// A snapshot that somebody uses. Clones are cheap; together they keep it, and what it stands on, alive.
#[derive(Debug, Clone)]
pub struct Snapshot {
    id: SnapshotId,
    parent: Option<SnapshotId>,
    lease: Lease,
}

impl Snapshot {
    pub fn id(&self) -> &SnapshotId {
        &self.id
    }

    pub fn parent(&self) -> Option<&SnapshotId> {
        self.parent.as_ref()
    }

    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    pub(crate) fn new(id: SnapshotId, parent: Option<SnapshotId>, lease: Lease) -> Snapshot {
        Snapshot { id, parent, lease }
    }
}

impl PartialEq for Snapshot {
    fn eq(&self, other: &Snapshot) -> bool {
        self.id == other.id
    }
}

/// The snapshots of a store. Dereferences to the store's driver.
#[derive(Clone)]
pub struct Snapshots {
    core: Arc<Core>,
    driver: Arc<dyn Snapshotter>,
}

impl std::ops::Deref for Snapshots {
    type Target = dyn Snapshotter;

    fn deref(&self) -> &(dyn Snapshotter + 'static) {
        self.driver.as_ref()
    }
}

impl Snapshots {
    pub(crate) fn new(core: &Arc<Core>) -> Snapshots {
        let driver: Arc<dyn Snapshotter> = match core.driver {
            Driver::Overlay => Arc::new(Overlay::new(core)),
            Driver::Vfs => Arc::new(Whole::new(core, Copy)),
            Driver::Btrfs => Arc::new(Whole::new(core, Btrfs::new(core))),
        };
        Snapshots { core: Arc::clone(core), driver }
    }

    /// A snapshot by its id, kept by `lease` from now on.
    pub fn get(&self, id: &SnapshotId, lease: &Lease) -> Result<Snapshot> {
        rows::hold(&self.core, lease, |tx| {
            let row = rows::get(tx, id)?.filter(|row| row.driver == self.core.driver);
            row.ok_or_else(|| StoreError::NoSnapshot(id.to_string()))
        })
    }

    /// The snapshot of a stack of layers, if there is one, kept by `lease` from now on.
    pub fn by_chain_id(&self, chain: &ChainId, lease: &Lease) -> Result<Option<Snapshot>> {
        let found = rows::hold(&self.core, lease, |tx| {
            let row = rows::by_chain_id(tx, chain, self.core.driver)?;
            row.ok_or_else(|| StoreError::NoSnapshot(chain.0.to_string()))
        });
        match found {
            Err(StoreError::NoSnapshot(_)) => Ok(None),
            found => found.map(Some),
        }
    }

    /// The snapshot of a stack of layers, for those who only want to know.
    pub fn id_of_chain(&self, chain: &ChainId) -> Result<Option<SnapshotId>> {
        let row = self.core.db.read(|tx| rows::by_chain_id(tx, chain, self.core.driver))?;
        Ok(row.map(|row| row.id))
    }

    /// The snapshots whose own layer has this `DiffId`.
    pub fn by_diff_id(&self, diff: &DiffId) -> Result<Vec<SnapshotId>> {
        let sql = "SELECT id FROM snapshots WHERE diff_id = ? AND driver = ? ORDER BY length(id), id";
        self.ids(sql, &[&diff.0.to_string(), &self.core.driver.to_string()])
    }

    /// The stack a snapshot is the top of, its base first.
    pub fn chain(&self, id: &SnapshotId) -> Result<Vec<SnapshotId>> {
        Ok(rows::chain(&self.core, id)?.into_iter().map(|link| link.id).collect())
    }

    /// The snapshots whose directories show this one, the lowest first: its stack, each delta above what it is one of.
    pub fn stack(&self, id: &SnapshotId) -> Result<Vec<SnapshotId>> {
        Ok(rows::stacked(rows::chain(&self.core, id)?).collect())
    }

    /// The newest snapshot on `parent` whose files were copied as `copied` says ([`Active::set_copied`]) and lie all in its own
    /// directory, with what was noted of them; kept by `lease` from now on.
    ///
    /// # Errors
    /// The store cannot be read. A note that is gone is as good as no snapshot.
    pub fn whole_copy(
        &self,
        copied: &str,
        parent: Option<&SnapshotId>,
        lease: &Lease,
    ) -> Result<Option<(Snapshot, Vec<u8>)>> {
        let find = |tx: &rusqlite::Transaction<'_>| rows::whole_copy(tx, copied, parent, self.core.driver);
        if self.core.db.read(find)?.is_none() {
            return Ok(None);
        }
        let found = rows::hold(&self.core, lease, |tx| {
            find(tx)?.ok_or_else(|| StoreError::NoSnapshot(format!("copied as {copied}")))
        });
        let snapshot = match found {
            Err(StoreError::NoSnapshot(_)) => return Ok(None),
            found => found?,
        };
        Ok(active::read_copied(&self.core, snapshot.id())?.map(|note| (snapshot, note)))
    }

    /// What is known of a snapshot.
    pub fn row(&self, id: &SnapshotId) -> Result<SnapshotRow> {
        let row = self.core.db.read(|tx| rows::get(tx, id))?;
        row.ok_or_else(|| StoreError::NoSnapshot(id.to_string()))
    }

    /// All of them, in the order in which they were made.
    pub fn list(&self) -> Result<Vec<SnapshotRow>> {
        self.core.db.read(rows::list)
    }

    /// The directory that holds what is a snapshot's own: with overlay what differs from its parent, with overlay's own
    /// marks for what is removed (of a delta, what differs from what it is a delta of); with vfs and btrfs everything.
    pub fn path(&self, id: &SnapshotId) -> PathBuf {
        rows::fs_path(&self.core, id)
    }

    /// [`Snapshots::path`], open.
    pub fn open(&self, id: &SnapshotId) -> Result<Root> {
        rows::open_fs(&self.core, id)
    }

    /// Notes what layer a snapshot is, once that is known. Its chain id, and those of snapshots above that waited for it,
    /// follow.
    pub fn set_layer(&self, id: &SnapshotId, diff: &DiffId, tar_size: u64) -> Result<()> {
        self.core.db.write(Durability::Cache, |tx| rows::set_layer(tx, id, diff, tar_size))
    }

    /// As [`Snapshots::set_layer`], with the newest time in the layer, in seconds since 1970.
    ///
    /// # Errors
    /// There is no such snapshot.
    pub fn set_dated_layer(&self, id: &SnapshotId, diff: &DiffId, tar_size: u64, newest: Option<i64>) -> Result<()> {
        self.core.db.write(Durability::Cache, |tx| {
            rows::set_layer(tx, id, diff, tar_size)?;
            newest.map_or(Ok(()), |newest| rows::set_newest(tx, id, newest))
        })
    }

    /// Notes that the layer of `id` is that of `layer`, which stands on nothing and was put onto `id`'s parent as it is:
    /// whatever lies below, it ships as the same bytes. `layer` stays as long as `id` does.
    ///
    /// # Errors
    /// `layer` is gone or stands on something.
    pub fn set_layer_of(&self, id: &SnapshotId, layer: &SnapshotId) -> Result<()> {
        self.core.db.write(Durability::Cache, |tx| rows::set_layer_of(tx, id, layer))
    }

    /// Notes how long a snapshot took to make.
    pub fn set_cost(&self, id: &SnapshotId, cost: Duration) -> Result<()> {
        let nanos = i64::try_from(cost.as_nanos()).unwrap_or(i64::MAX);
        self.core.db.write(Durability::Cache, |tx| {
            tx.prepare_cached("UPDATE snapshots SET cost = ? WHERE id = ?")?.execute((nanos, id.as_str()))?;
            Ok(())
        })
    }

    /// The disk that a snapshot's own directory uses, in bytes; with btrfs what was written in it, for the rest is its
    /// parent's. Counted at the first call.
    pub fn size(&self, id: &SnapshotId) -> Result<u64> {
        if let Some(size) = self.row(id)?.size {
            return Ok(size);
        }
        let root = self.open(id)?;
        let size = match self.core.driver {
            // What is not written out yet has no place, and would not count.
            Driver::Btrfs => {
                write_out(&root).context(|| format!("measuring snapshot {id}"))?;
                self.written(id)?.map(|changes| changes.bytes)
            }
            Driver::Overlay | Driver::Vfs => None,
        };
        let size = match size {
            Some(bytes) => bytes,
            None => tree::disk_use(root.top()).context(|| format!("measuring snapshot {id}"))?,
        };
        if !self.core.read_only {
            let known = i64::try_from(size).unwrap_or(i64::MAX);
            self.core.db.write(Durability::Cache, |tx| {
                tx.prepare_cached("UPDATE snapshots SET size = ? WHERE id = ?")?.execute((known, id.as_str()))?;
                Ok(())
            })?;
        }
        Ok(size)
    }

    /// What was written in a snapshot since it was made from its parent, where the driver knows that without looking at
    /// files.
    pub(crate) fn written(&self, id: &SnapshotId) -> Result<Option<SubvolumeChanges>> {
        let row = self.row(id)?;
        if row.driver != Driver::Btrfs {
            return Ok(None);
        }
        let below = row.parent.as_ref().map(|parent| self.open(parent)).transpose()?;
        self.changes(&self.open(id)?, below.as_ref()).context(|| format!("asking what is new in snapshot {id}"))
    }

    /// The bytes written in a layer made by [`Snapshotter::make_layer`] on `parent`, where the driver knows that without
    /// looking at files.
    ///
    /// # Errors
    /// The layer or its parent cannot be read.
    pub fn layer_bytes(&self, dir: &Path, parent: Option<&SnapshotId>) -> Result<Option<u64>> {
        if self.core.driver != Driver::Btrfs {
            return Ok(None);
        }
        let what = || format!("measuring {dir:?}");
        let layer = Root::open(&dir.join("fs")).context(what)?;
        write_out(&layer).context(what)?;
        let below = parent.map(|parent| self.open(parent)).transpose()?;
        Ok(self.changes(&layer, below.as_ref()).context(what)?.map(|changes| changes.bytes))
    }

    fn changes(&self, layer: &Root, below: Option<&Root>) -> std::io::Result<Option<SubvolumeChanges>> {
        let Some(subvolumes) = &self.core.subvolumes else { return Ok(None) };
        let below = below.map(|root| root.top().readable()).transpose()?;
        subvolumes.changes(layer.top().readable()?.as_fd(), below.as_ref().map(AsFd::as_fd))
    }

    /// Who refers to a snapshot directly, and the snapshots that stand on it.
    pub fn users(&self, id: &SnapshotId) -> Result<Vec<String>> {
        self.core.db.read(|tx| rows::users(tx, id))
    }

    fn ids(&self, sql: &str, parameters: &[&dyn rusqlite::ToSql]) -> Result<Vec<SnapshotId>> {
        self.core.db.read(|tx| {
            let mut query = tx.prepare_cached(sql)?;
            let rows = query.query_map(parameters, |row| row.get::<_, String>(0))?;
            rows.map(|id| id?.parse()).collect()
        })
    }
}

/// All snapshots, for others that ask inside a transaction of their own.
///
/// # Errors
/// The database cannot be read.
pub fn list_in(tx: &rusqlite::Transaction<'_>) -> Result<Vec<SnapshotRow>> {
    rows::list(tx)
}

fn write_out(tree: &Root) -> std::io::Result<()> {
    Ok(rustix::fs::syncfs(tree.top().readable()?)?)
}

/// What works in the new store at `path`: what its file system makes by itself, else overlay, if the kernel takes an upper
/// directory there, else copies.
pub(crate) fn probe(path: &Path, dir: &Dir, subvolumes: Option<&dyn Subvolumes>) -> Result<Driver> {
    match subvolumes.map(|subvolumes| btrfs::works(path, dir, subvolumes)).transpose()? {
        Some(true) => Ok(Driver::Btrfs),
        _ => overlay::probe(path, dir),
    }
}

/// Refuses a driver that cannot work in the new store at `path`.
pub(crate) fn check(driver: Driver, path: &Path, dir: &Dir, subvolumes: Option<&dyn Subvolumes>) -> Result<()> {
    if driver != Driver::Btrfs {
        return Ok(());
    }
    match subvolumes.map(|subvolumes| btrfs::works(path, dir, subvolumes)).transpose()? {
        Some(true) => Ok(()),
        _ => Err(StoreError::Refused {
            root: path.to_path_buf(),
            reason: "driver btrfs makes no subvolumes there: it takes a btrfs file system, and root".to_owned(),
        }),
    }
}

/// Whether the directory of a snapshot is there.
fn is_on_disk(core: &Core, id: &SnapshotId) -> bool {
    core.open_dir("snapshots").is_ok_and(|dir| dir.stat(OsStr::new(id.as_str())).is_ok())
}
