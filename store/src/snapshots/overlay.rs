//! Snapshots that the kernel's overlay file system stacks.
//!
//! `snapshots/<id>/fs` holds what differs from the parent, in overlay's own terms: it was the upper directory when it was
//! written. A name that was removed is a character device 0/0, and a directory that replaced another is marked opaque.
//!
//! A *delta* holds what differs from another snapshot on the same parent. Where it is mounted, that one's directory comes right
//! below its own, so nothing is copied and no inode is shared; to everybody else the two are one layer.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};

use super::active::WORK;
use super::{Active, Driver, Mounts, Snapshot, SnapshotId, Snapshotter, rows, tree};
use crate::collect;
use crate::error::{Context, Result, StoreError};
use crate::lease::{Lease, Target};
use crate::root::{Dir, Root, Walk, node};
use crate::store::Core;

/// Layers of one stack that may be spread over two directories each: what is mounted over one another stays within what the
/// kernel takes, however tall the stack becomes.
const MOST_DELTAS: usize = 4;

/// The driver `overlay`.
pub struct Overlay {
    core: Arc<Core>,
}

impl Overlay {
    pub(super) fn new(core: &Arc<Core>) -> Overlay {
        Overlay { core: Arc::clone(core) }
    }

    /// The directories below a layer on `parent`, uppermost first. An empty one is the lowest of all where it is needed.
    fn lowers(&self, parent: Option<&SnapshotId>) -> Result<Vec<PathBuf>> {
        let Some(parent) = parent else { return Ok(vec![self.core.path.join("empty")]) };
        let chain = rows::chain_below(&self.core, parent)?;
        Ok(self.paths(chain))
    }

    /// The directories of a stack, uppermost first.
    fn paths(&self, chain: Vec<rows::Link>) -> Vec<PathBuf> {
        rows::stacked(chain).rev().map(|id| rows::fs_path(&self.core, &id)).collect()
    }

    /// Makes `fs` in `dir`, whose root looks like that of `parent`.
    fn fill(&self, dir: &Dir, parent: Option<&SnapshotId>) -> Result<()> {
        let what = || "making a writable layer".to_owned();
        let fs = dir.mkdir(OsStr::new("fs"), 0o755).context(what)?;
        if let Some(parent) = parent {
            let above = rows::open_fs(&self.core, parent)?;
            copy_root_attributes(above.top(), &fs).context(what)?;
        }
        Ok(())
    }

    fn mounts(&self, dir: &Path, lowers: Vec<PathBuf>) -> Mounts {
        Mounts::Overlay { lowers, upper: Some(dir.join("fs")), work: Some(dir.join(WORK)) }
    }

    fn view_of(&self, mut lowers: Vec<PathBuf>) -> Mounts {
        if lowers.len() == 1 {
            lowers.push(self.core.path.join("empty"));
        }
        Mounts::Overlay { lowers, upper: None, work: None }
    }
}

impl Snapshotter for Overlay {
    fn driver(&self) -> Driver {
        Driver::Overlay
    }

    fn prepare(&self, lease: &Lease, parent: Option<&SnapshotId>) -> Result<Active> {
        Active::make(lease, parent, Driver::Overlay, |path, dir| {
            let lowers = self.lowers(parent)?;
            self.fill(dir, parent)?;
            let below = parent.map(|_| self.view_of(lowers.clone()));
            Ok((self.mounts(path, lowers), below))
        })
    }

    fn prepare_delta(&self, lease: &Lease, of: &SnapshotId) -> Result<Option<Active>> {
        let Some(row) = self.core.db.read(|tx| rows::get(tx, of))? else {
            return Err(StoreError::NoSnapshot(of.to_string()));
        };
        let chain = rows::chain(&self.core, of)?;
        if row.delta_of.is_some() || chain.iter().filter(|link| link.delta_of.is_some()).count() >= MOST_DELTAS {
            return Ok(None);
        }
        lease.hold(&Target::Snapshot(of.clone()))?;
        let mut active = Active::make(lease, row.parent.as_ref(), Driver::Overlay, |path, dir| {
            let lowers = self.paths(chain);
            self.fill(dir, Some(of))?;
            Ok((self.mounts(path, lowers.clone()), Some(self.view_of(lowers))))
        })?;
        active.set_delta_of(of);
        Ok(Some(active))
    }

    fn commit(&self, active: Active) -> Result<Snapshot> {
        active.publish(&self.core, Driver::Overlay)
    }

    fn view(&self, id: &SnapshotId) -> Result<Mounts> {
        let chain = rows::chain(&self.core, id)?;
        Ok(self.view_of(self.paths(chain)))
    }

    fn remove(&self, id: &SnapshotId) -> Result<()> {
        collect::remove_snapshot(&self.core, id)
    }

    fn make_layer(&self, dir: &Path, parent: Option<&SnapshotId>) -> Result<Mounts> {
        let open = tree::open_or_make(dir).context(|| format!("making {dir:?}"))?;
        let lowers = self.lowers(parent)?;
        open.mkdir(OsStr::new(WORK), 0o700).context(|| format!("making {dir:?}"))?;
        self.fill(&open, parent)?;
        Ok(self.mounts(dir, lowers))
    }

    fn layer_mounts(&self, dir: &Path, parent: Option<&SnapshotId>) -> Result<Mounts> {
        Ok(self.mounts(dir, self.lowers(parent)?))
    }

    fn commit_copy(&self, dir: &Path, parent: Option<&SnapshotId>, lease: &Lease) -> Result<Snapshot> {
        let from = Root::open(&dir.join("fs")).context(|| format!("opening {dir:?}"))?;
        let active = self.prepare(lease, parent)?;
        let to = Root::open(active.upper()).context(|| format!("opening {:?}", active.upper()))?;
        tree::copy_tree(from.top(), to.top()).context(|| format!("copying {dir:?}"))?;
        self.commit(active)
    }
}

/// What works in the store at `path`: overlay, if the kernel takes an upper directory there.
pub(super) fn probe(path: &Path, dir: &Dir) -> Result<Driver> {
    let what = || format!("trying overlay in {path:?}");
    let ingest = dir.open_dir(OsStr::new("ingest")).context(what)?;
    let name = OsStr::new("probe");
    // The caller has the store alone: what is there was left by one that died here.
    ingest.remove_all(name).context(what)?;
    let probe = ingest.mkdir(name, 0o700).context(what)?;
    for part in ["lower", "upper", "work"] {
        probe.mkdir(OsStr::new(part), 0o700).context(what)?;
    }
    let outcome = try_mount(&path.join("ingest").join(name));
    ingest.remove_all(name).context(what)?;
    Ok(match outcome {
        Ok(()) => Driver::Overlay,
        Err(error) => {
            tracing::info!("overlay does not work in {path:?}: {error}");
            Driver::Vfs
        }
    })
}

/// Makes an overlay mount that is attached nowhere, and writes and removes a file in it.
fn try_mount(path: &Path) -> std::io::Result<()> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let top = Root::open(path)?;
    for (key, part) in [("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work")] {
        // By descriptor, since a value has at most 255 bytes here and overlay gives colons and commas a meaning.
        let dir = top.open_dir(Path::new(part), Walk::NoLinks)?;
        fsconfig_set_string(fs.as_fd(), key, node::proc_path(dir.as_fd()).as_c_str())?;
    }
    fsconfig_create(fs.as_fd())?;
    let mount = fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let root = Root::from_fd(mount)?;
    root.top().create_file(OsStr::new("file"), 0o600)?;
    root.top().unlink(OsStr::new("file"))
}

/// A new upper directory's root looks like its parent's, overlay's own marks left out.
fn copy_root_attributes(from: &Dir, to: &Dir) -> std::io::Result<()> {
    let metadata = from.metadata()?;
    node::set_owner(to.as_fd(), metadata.uid, metadata.gid)?;
    for (name, value) in node::xattrs(from.as_fd())? {
        let bytes = name.as_bytes();
        if !bytes.starts_with(b"trusted.overlay.") && !bytes.starts_with(b"user.overlay.") {
            node::set_xattr(to.as_fd(), &name, &value)?;
        }
    }
    node::set_mode(to.as_fd(), metadata.mode)?;
    node::set_times(to.as_fd(), metadata.accessed, metadata.modified)
}
