//! A snapshot in the making.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
    delta_of: Option<SnapshotId>,
    copied: Option<String>,
    /// Whether there is a directory for the kernel to work in.
    mountable: AtomicBool,
    committed: bool,
}

/// The directory beside `upper` that overlay works in while it is mounted.
pub(super) const WORK: &str = "work";

/// The file beside a snapshot's own directory that says what was copied into it.
const COPIED: &str = "copied";
/// A note of more bytes is not read.
const LONGEST_NOTE: u64 = 1 << 30;

impl Active {
    /// How to see it, for writing.
    ///
    /// # Errors
    /// What a mount needs beside `upper` cannot be made. It is made here: most are only written into.
    pub fn mounts(&self) -> Result<&Mounts> {
        if matches!(self.mounts, Mounts::Overlay { .. }) && !self.mountable.swap(true, Ordering::Relaxed) {
            let dir = self.lease.ingest_fd()?.open_dir(&self.name);
            dir.and_then(|dir| dir.mkdir(OsStr::new(WORK), 0o700))
                .context(|| format!("making {:?}", self.path.join(WORK)))?;
        }
        Ok(&self.mounts)
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

    /// Notes how its files were copied (`copied`, which says what to do and not with which files) and which they were: `note`, for
    /// [`Snapshots::whole_copy`](super::Snapshots::whole_copy) to give back.
    ///
    /// # Errors
    /// The note cannot be written.
    pub fn set_copied(&mut self, copied: &str, note: &[u8]) -> Result<()> {
        let what = || "noting what was copied".to_owned();
        let dir = self.lease.ingest_fd()?.open_dir(&self.name).context(what)?;
        let mut file = dir.create_file(OsStr::new(COPIED), 0o600).context(what)?;
        file.write_all(note).context(what)?;
        self.copied = Some(copied.to_owned());
        Ok(())
    }

    pub(super) fn set_delta_of(&mut self, of: &SnapshotId) {
        self.delta_of = Some(of.clone());
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
            delta_of: None,
            copied: None,
            mountable: AtomicBool::new(false),
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
        if self.mountable.load(Ordering::Relaxed) {
            ingest.open_dir(&self.name).and_then(|dir| dir.remove_all(OsStr::new(WORK))).context(what)?;
        }
        let snapshots = core.open_dir("snapshots")?;
        core.faults.pass("snapshot.written")?;
        let id = core.db.write(Durability::Cache, |tx| {
            for below in self.parent.iter().chain(&self.delta_of) {
                if rows::get(tx, below)?.is_none() {
                    return Err(StoreError::NoSnapshot(below.to_string()));
                }
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
            rows::insert(
                tx,
                &rows::New {
                    id: &id,
                    parent: self.parent.as_ref(),
                    driver,
                    delta_of: self.delta_of.as_ref(),
                    copied: self.copied.as_deref(),
                },
            )?;
            self.lease.hold_in(tx, &Target::Snapshot(id.clone()))?;
            Ok(id)
        })?;
        core.faults.pass("snapshot.row")?;
        self.lease.note(&[Target::Snapshot(id.clone())]);
        Ok(Snapshot::new(id, self.parent.clone(), self.lease.clone()))
    }
}

/// What [`Active::set_copied`] noted of a snapshot; `None` when that is gone.
pub(super) fn read_copied(core: &Core, id: &SnapshotId) -> Result<Option<Vec<u8>>> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut note = Vec::new();
        let dir = core.dir.open_dir(OsStr::new("snapshots"))?.open_dir(OsStr::new(id.as_str()))?;
        dir.open_file(OsStr::new(COPIED))?.take(LONGEST_NOTE).read_to_end(&mut note)?;
        Ok(note)
    };
    match read() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).context(|| format!("reading what was copied into snapshot {id}")),
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
