//! `--squash`: the layers of a result made one.
//!
//! The layer is the difference of the whole result to what is kept of it, made as any layer is, so a file that one step
//! wrote and another removed is not in it. Steps are cached as always; this is done to their result, each time.
//! The history keeps its entries, as docker's does, but only the one added at the end has a layer.

use std::fs::File;
use std::io::BufWriter;

use rbuild_oci::{Descriptor, HistoryEntry, MediaType};
use rbuild_runtime::mount_detached;
use rbuild_store::layers::LayerDigest;
use rbuild_store::{Lease, Root, Snapshot, Store};

use super::image::Described;
use crate::error::Error;

/// Which layers become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Squash {
    /// Those that the build added to its base image.
    New,
    /// All.
    All,
}

/// What is kept as it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kept {
    pub(crate) layers: usize,
    /// Entries of the history.
    pub(crate) history: usize,
}

/// Makes one layer of those above the kept ones; `files` is the image's whole tree. With one or none there is nothing to
/// do.
///
/// # Errors
/// The tree cannot be read, or its layer cannot be kept.
pub(crate) fn squash(
    store: &Store,
    lease: &Lease,
    mut image: Described,
    files: Snapshot,
    kept: Kept,
) -> Result<(Described, Snapshot), Error> {
    let chain = store.snapshots().chain(files.id())?;
    if chain.len() <= kept.layers + 1 {
        return Ok((image, files));
    }
    let parent = kept.layers.checked_sub(1).map(|last| store.snapshots().get(&chain[last], lease)).transpose()?;
    let path = lease.ingest_path("squash")?;
    let root = mount_detached(&store.snapshots().view(files.id())?)?;
    let root = Root::from_fd(root).map_err(Error::internal)?;
    let out = BufWriter::new(File::create_new(&path).map_err(Error::internal)?);
    store.layers().write_tree_on(root, parent.as_ref().map(Snapshot::id), out)?;
    let staged = store.layers().stage(File::open(&path).map_err(Error::internal)?, lease)?;
    let made = store.layers().stack(staged, parent.as_ref())?;
    // The lease would take it as well, only later.
    drop(std::fs::remove_file(&path));
    let LayerDigest { diff_id, size, .. } = store.layers().diff(made.id())?;
    image.manifest.layers.truncate(kept.layers);
    image.manifest.layers.push(Descriptor::new(MediaType::OciLayer, diff_id.0.clone(), size));
    image.config.rootfs.diff_ids.truncate(kept.layers);
    image.config.rootfs.diff_ids.push(diff_id);
    for entry in image.config.history.iter_mut().skip(kept.history) {
        entry.empty_layer = true;
    }
    let count = chain.len() - kept.layers;
    image.config.history.push(HistoryEntry {
        created: image.config.created.clone(),
        comment: format!("{count} layers squashed"),
        ..HistoryEntry::default()
    });
    image.manifest.config = image.config.descriptor();
    Ok((image, made))
}
