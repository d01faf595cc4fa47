//! Snapshots that are full copies, for file systems and kernels without overlay. Users call it `vfs`.
//!
//! `snapshots/<id>/fs` holds the whole tree. Nothing needs mounting privileges, and nothing is shared but what the file
//! system shares by itself (reflinks). Hard links between snapshots would be quicker, and would show: `cp -a` would join
//! what was never joined.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use super::{Active, Driver, Mounts, Snapshot, SnapshotId, Snapshotter, rows, tree};
use crate::collect;
use crate::error::{Context, Result, StoreError};
use crate::lease::Lease;
use crate::root::{Dir, Root};
use crate::store::Core;

/// The driver `vfs`.
pub struct Copy {
    core: Arc<Core>,
}

impl Copy {
    pub(super) fn new(core: &Arc<Core>) -> Copy {
        Copy { core: Arc::clone(core) }
    }

    /// Makes `fs` in `dir`, a copy of `parent`.
    fn fill(&self, dir: &Dir, parent: Option<&SnapshotId>) -> Result<()> {
        let fs = dir.mkdir(OsStr::new("fs"), 0o755).context(|| "making a writable layer".to_owned())?;
        let Some(parent) = parent else { return Ok(()) };
        rows::chain_below(&self.core, parent)?;
        let from = rows::open_fs(&self.core, parent)?;
        tree::copy_tree(from.top(), &fs).context(|| format!("copying snapshot {parent}"))
    }
}

fn bind(dir: &Path, read_only: bool) -> Mounts {
    Mounts::Bind { source: dir.join("fs"), read_only }
}

impl Snapshotter for Copy {
    fn driver(&self) -> Driver {
        Driver::Vfs
    }

    fn prepare(&self, lease: &Lease, parent: Option<&SnapshotId>) -> Result<Active> {
        Active::make(lease, parent, Driver::Vfs, |path, dir| {
            self.fill(dir, parent)?;
            Ok((bind(path, false), None))
        })
    }

    fn prepare_delta(&self, _lease: &Lease, _of: &SnapshotId) -> Result<Option<Active>> {
        Ok(None)
    }

    fn commit(&self, active: Active) -> Result<Snapshot> {
        active.publish(&self.core, Driver::Vfs)
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
        Ok(bind(dir, false))
    }

    fn layer_mounts(&self, dir: &Path, _parent: Option<&SnapshotId>) -> Result<Mounts> {
        Ok(bind(dir, false))
    }

    fn commit_copy(&self, dir: &Path, parent: Option<&SnapshotId>, lease: &Lease) -> Result<Snapshot> {
        let active = Active::make(lease, parent, Driver::Vfs, |path, active| {
            let what = || format!("copying {dir:?}");
            let from = Root::open(&dir.join("fs")).context(what)?;
            let to = active.mkdir(OsStr::new("fs"), 0o755).context(what)?;
            tree::copy_tree(from.top(), &to).context(what)?;
            Ok((bind(path, false), None))
        })?;
        self.commit(active)
    }
}
