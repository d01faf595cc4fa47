//! A snapshot in the making.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Driver, Mounts, Snapshot, SnapshotId, rows};
use crate::db::Durability;
use crate::error::{Context, Result, StoreError};
use crate::lease::{Lease, Target};
use crate::root::Dir;
use crate::store::Core;

/// A file tree that can be written to. Dropped, it leaves nothing; [`Snapshotter::commit`](super::Snapshotter::commit)
/// makes it a snapshot.
#[derive(Debug)]
pub struct Active {
    lease: Lease,
    parent: Option<SnapshotId>,
    driver: Driver,
    name: OsString,
    path: PathBuf,
    mounts: Mounts,
    below: Option<Mounts>,
    upper: PathBuf,
    committed: bool,
}

impl Active {
    /// How to see it, for writing.
    pub fn mounts(&self) -> &Mounts {
        &self.mounts
    }

    /// The directory into which one may write directly, while it is not mounted.
    pub fn upper(&self) -> &Path {
        &self.upper
    }

    /// How to see what it stands on, for reading, where `upper` does not hold that too.
    pub fn below(&self) -> Option<&Mounts> {
        self.below.as_ref()
    }

    pub fn parent(&self) -> Option<&SnapshotId> {
        self.parent.as_ref()
    }

    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Puts it on another parent: for layers that are unpacked all at once and stacked afterwards. Only where a layer's
    /// directory does not depend on what is below it; vfs and btrfs refuse.
    pub fn set_parent(&mut self, parent: Option<&Snapshot>) -> Result<()> {
        if self.driver != Driver::Overlay {
            return Err(StoreError::Unsupported(format!(
                "stacking a layer after the fact with driver {}",
                self.driver
            )));
        }
        if let Some(parent) = parent {
            rows::chain_below(self.lease.core(), parent.id())?;
            self.lease.hold(&Target::Snapshot(parent.id().clone()))?;
        }
        self.parent = parent.map(|parent| parent.id().clone());
        Ok(())
    }

    /// A fresh directory in the lease's ingest, filled by `fill`, which returns mounts, view of the parent and upper
    /// directory.
    pub(super) fn make(
        lease: &Lease,
        parent: Option<&SnapshotId>,
        driver: Driver,
        fill: impl FnOnce(&Path, &Dir) -> Result<(Mounts, Option<Mounts>)>,
    ) -> Result<Active> {
        if let Some(parent) = parent {
            lease.hold(&Target::Snapshot(parent.clone()))?;
        }
        let name = lease.fresh_name("snapshot-");
        let path = lease.ingest()?.join(&name);
        let dir = lease.ingest_fd()?.mkdir(&name, 0o700).context(|| format!("making {path:?}"))?;
        let mut active = Active {
            lease: lease.clone(),
            parent: parent.cloned(),
            driver,
            name,
            upper: path.join("fs"),
            mounts: Mounts::Bind { source: path.join("fs"), read_only: false },
            below: None,
            path,
            committed: false,
        };
        // From here on a failure drops `active`, and the directory with it.
        (active.mounts, active.below) = fill(&active.path, &dir)?;
        Ok(active)
    }

    pub(super) fn publish(mut self, core: &Arc<Core>, driver: Driver) -> Result<Snapshot> {
        if !Arc::ptr_eq(self.lease.core(), core) || self.driver != driver {
            return Err(StoreError::invalid("snapshot in the making", "it belongs to another store or driver"));
        }
        let what = || "publishing a snapshot".to_owned();
        let ingest = self.lease.ingest_fd()?;
        ingest.open_dir(&self.name).and_then(|dir| dir.remove_all(OsStr::new("work"))).context(what)?;
        let snapshots = core.open_dir("snapshots")?;
        core.faults.pass("snapshot.written")?;
        let id = core.db.write(Durability::Cache, |tx| {
            if let Some(parent) = &self.parent
                && rows::get(tx, parent)?.is_none()
            {
                return Err(StoreError::NoSnapshot(parent.to_string()));
            }
            let id = rows::next_id(tx)?;
            let final_name = OsStr::new(id.as_str());
            if snapshots.stat(final_name).is_ok() {
                // A publisher died before its row: it has no row, so it is nobody's.
                snapshots.rename(final_name, ingest, &self.lease.fresh_name("stray-")).context(what)?;
            }
            ingest.rename(&self.name, &snapshots, final_name).context(what)?;
            self.committed = true;
            core.faults.pass("snapshot.renamed")?;
            rows::insert(tx, &id, self.parent.as_ref(), driver)?;
            self.lease.hold_in(tx, &Target::Snapshot(id.clone()))?;
            Ok(id)
        })?;
        core.faults.pass("snapshot.row")?;
        self.lease.note(&[Target::Snapshot(id.clone())]);
        Ok(Snapshot::new(id, self.parent.clone(), self.lease.clone()))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        if !self.committed
            && let Ok(ingest) = self.lease.ingest_fd()
            && let Err(error) = self.lease.core().remove_tree(ingest, &self.name)
        {
            // It goes with the lease.
            tracing::debug!("removing {:?}: {error}", self.path);
        }
    }
}
