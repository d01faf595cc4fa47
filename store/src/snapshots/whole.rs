//! Snapshots that show everything by themselves: `snapshots/<id>/fs` is a whole tree, and nothing needs mounting.
//!
//! The drivers differ in how a tree comes to be ([`Trees`]); when one is made, published, shown and removed is the same.

use std::path::Path;
use std::sync::Arc;

use super::{Active, Driver, Mounts, Snapshot, SnapshotId, Snapshotter, rows, tree};
use crate::collect;
use crate::error::{Context, Result, StoreError};
use crate::lease::Lease;
use crate::root::{Dir, Root};
use crate::store::Core;

/// How whole trees are made on one kind of file system. Each is `fs` in a directory of its own.
pub(super) trait Trees: Send + Sync {
    const DRIVER: Driver;

    /// Makes an empty tree in `dir`.
    fn empty(&self, dir: &Dir) -> Result<()>;

    /// Makes a tree in `dir` that begins as the tree `of`, and shares with it what it can without showing.
    fn duplicate(&self, of: &Dir, dir: &Dir) -> Result<()>;

    /// Looks at a tree that is about to be a snapshot, and closes it to changes where the file system can.
    fn seal(&self, _fs: &Dir) -> Result<()> {
        Ok(())
    }
}

/// A driver whose snapshots are whole trees.
pub(super) struct Whole<T> {
    core: Arc<Core>,
    trees: T,
}

impl<T: Trees> Whole<T> {
    pub(super) fn new(core: &Arc<Core>, trees: T) -> Whole<T> {
        Whole { core: Arc::clone(core), trees }
    }

    /// Makes `fs` in `dir`, which shows `parent`.
    fn fill(&self, dir: &Dir, parent: Option<&SnapshotId>) -> Result<()> {
        let Some(parent) = parent else { return self.trees.empty(dir) };
        rows::chain_below(&self.core, parent)?;
        self.trees.duplicate(rows::open_fs(&self.core, parent)?.top(), dir)
    }
}

impl<T: Trees> Snapshotter for Whole<T> {
    fn driver(&self) -> Driver {
        T::DRIVER
    }

    fn prepare(&self, lease: &Lease, parent: Option<&SnapshotId>) -> Result<Active> {
        Active::make(lease, parent, T::DRIVER, |path, dir| {
            self.fill(dir, parent)?;
            Ok((bind(path), None))
        })
    }

    fn prepare_delta(&self, _lease: &Lease, _of: &SnapshotId) -> Result<Option<Active>> {
        // A whole tree shares with its parent what it can, and needs nothing below it.
        Ok(None)
    }

    fn commit(&self, active: Active) -> Result<Snapshot> {
        let fs = Root::open(active.upper()).context(|| "committing a snapshot".to_owned())?;
        self.trees.seal(fs.top())?;
        active.publish(&self.core, T::DRIVER)
    }

    fn view(&self, id: &SnapshotId) -> Result<Mounts> {
        match super::is_on_disk(&self.core, id) {
            true => Ok(Mounts::Bind { source: rows::fs_path(&self.core, id), read_only: true }),
            false => Err(StoreError::NoSnapshot(id.to_string())),
        }
    }

    fn remove(&self, id: &SnapshotId) -> Result<()> {
        collect::remove_snapshot(&self.core, id)
    }

    fn make_layer(&self, dir: &Path, parent: Option<&SnapshotId>) -> Result<Mounts> {
        let open = tree::open_or_make(dir).context(|| format!("making {dir:?}"))?;
        self.fill(&open, parent)?;
        Ok(bind(dir))
    }

    fn layer_mounts(&self, dir: &Path, _parent: Option<&SnapshotId>) -> Result<Mounts> {
        Ok(bind(dir))
    }

    fn commit_copy(&self, dir: &Path, parent: Option<&SnapshotId>, lease: &Lease) -> Result<Snapshot> {
        let active = Active::make(lease, parent, T::DRIVER, |path, active| {
            let from = Root::open(&dir.join("fs")).context(|| format!("opening the layer in {dir:?}"))?;
            self.trees.duplicate(from.top(), active)?;
            Ok((bind(path), None))
        })?;
        self.commit(active)
    }
}

fn bind(dir: &Path) -> Mounts {
    Mounts::Bind { source: dir.join("fs"), read_only: false }
}
