//! The result of a build as an image in the store.
//!
//! Nothing is packed: the image's layers are its snapshots. What is written is a config and a manifest whose layers are
//! named by their uncompressed digests; a layer's tar is made again, bit for bit, when somebody wants it.

use std::sync::Arc;

use rbuild_executor::Value;
use rbuild_frontend::Lowered;
use rbuild_graph::{BuildGraph, Edge};
use rbuild_oci::{Descriptor, DiffId, Digest, HistoryEntry, ImageConfig, ImageId, Manifest, MediaType, Reference};
use rbuild_solver::{Build, OpFactory};
use rbuild_store::layers::LayerDigest;
use rbuild_store::{Lease, NewImage, SnapshotId, Store};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::error::Error;

/// A finished graph, about to become an image.
pub(crate) struct Finished<'a> {
    pub(crate) store: &'a Store,
    pub(crate) build: &'a Build<Value>,
    pub(crate) graph: Arc<BuildGraph>,
    pub(crate) ops: OpFactory<Value>,
    pub(crate) lowered: &'a Lowered,
    /// Layers of the base image as its manifest has them.
    pub(crate) base_layers: Vec<Descriptor>,
    pub(crate) result: Value,
    /// Seconds since 1970 that the image dates itself to; `None` goes by what is in it.
    pub(crate) epoch: Option<i64>,
}

/// An image that has been described, not yet named.
#[derive(Clone)]
pub(crate) struct Described {
    pub(crate) config: ImageConfig,
    pub(crate) manifest: Manifest,
}

impl Described {
    fn manifest_bytes(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(&self.manifest).map_err(Error::internal)
    }

    pub(crate) fn manifest_descriptor(&self) -> Result<Descriptor, Error> {
        let bytes = self.manifest_bytes()?;
        let media_type = self.manifest.media_type.clone().unwrap_or(MediaType::OciManifest);
        Ok(Descriptor::new(media_type, Digest::sha256_of(&bytes), bytes.len() as u64))
    }
}

impl Finished<'_> {
    /// Config and manifest of the image.
    ///
    /// # Errors
    /// A layer that cannot be computed.
    pub(crate) async fn describe(&self) -> Result<Described, Error> {
        let base = self.lowered.base.as_ref();
        let base_ids: &[DiffId] = base.map_or(&[], |base| &base.config.rootfs.diff_ids);
        let chain = match self.result.snapshot() {
            Some(snapshot) => self.store.snapshots().chain(snapshot.id())?,
            None => Vec::new(),
        };
        if chain.len() < base_ids.len() || self.base_layers.len() != base_ids.len() {
            return Err(Error::internal("the result does not stand on its base image"));
        }
        let own = chain[base_ids.len()..].to_vec();
        let gives_layer = self.steps_with_layer(&own).await?;
        let (store, ids) = (self.store.clone(), own);
        let layers: Vec<LayerDigest> = tokio::task::spawn_blocking(move || {
            ids.iter().map(|id| store.layers().diff(id)).collect::<Result<Vec<_>, _>>()
        })
        .await
        .map_err(Error::internal)??;
        let created = self.created(base.and_then(|base| base.config.created.as_deref()), &layers);
        let mut config = self.lowered.config.clone();
        config.rootfs.diff_ids =
            base_ids.iter().cloned().chain(layers.iter().map(|layer| layer.diff_id.clone())).collect();
        config.history = self.history(base.map_or(&[], |base| &base.config.history), &gives_layer, &created);
        config.created = Some(created);
        let mut descriptors: Vec<Descriptor> = self.base_layers.iter().map(as_oci).collect();
        descriptors.extend(
            layers.iter().map(|layer| Descriptor::new(MediaType::OciLayer, layer.diff_id.0.clone(), layer.size)),
        );
        let manifest = Manifest::new(config.descriptor(), descriptors);
        Ok(Described { config, manifest })
    }

    /// For each history step that stands for a file tree, whether it added a layer.
    async fn steps_with_layer(&self, own: &[SnapshotId]) -> Result<Vec<bool>, Error> {
        let edges: Vec<Edge> = self.lowered.history.iter().filter_map(|step| step.edge).collect();
        if edges.len() == own.len() {
            return Ok(vec![true; edges.len()]);
        }
        let values = self
            .build
            .solve(self.graph.clone(), &edges, self.ops.clone())
            .await
            .map_err(|error| crate::build::failure(error, None))?;
        let base = self.lowered.base.as_ref().and_then(|base| base.edge);
        let mut before = match base {
            Some(_) if own.len() < self.chain_len()? => self.base_snapshot()?,
            _ => None,
        };
        let mut found = Vec::with_capacity(values.len());
        for solved in values {
            let now = solved.value.snapshot().map(|snapshot| snapshot.id().clone());
            found.push(now.is_some() && now != before);
            before = now.or(before);
        }
        if found.iter().filter(|layer| **layer).count() != own.len() {
            return Err(Error::internal("the steps of the build do not add up to its layers"));
        }
        Ok(found)
    }

    fn chain_len(&self) -> Result<usize, Error> {
        match self.result.snapshot() {
            Some(snapshot) => Ok(self.store.snapshots().chain(snapshot.id())?.len()),
            None => Ok(0),
        }
    }

    /// The snapshot the base image ends with.
    fn base_snapshot(&self) -> Result<Option<SnapshotId>, Error> {
        let Some(snapshot) = self.result.snapshot() else { return Ok(None) };
        let chain = self.store.snapshots().chain(snapshot.id())?;
        Ok(self.base_layers.len().checked_sub(1).and_then(|top| chain.get(top).cloned()))
    }

    /// The newest of the base's own date and of the times in the layers made here; never the clock's, so that the same
    /// files give the same image whenever it is built.
    fn created(&self, base: Option<&str>, layers: &[LayerDigest]) -> String {
        let base = base.and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok()).map(OffsetDateTime::unix_timestamp);
        let newest = layers.iter().filter_map(|layer| layer.newest).chain(base).max().unwrap_or(0);
        let seconds = self.epoch.unwrap_or(newest);
        let time = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        time.format(&Rfc3339).unwrap_or_else(|_| "1970-01-01T00:00:00Z".to_owned())
    }

    fn history(&self, base: &[HistoryEntry], gives_layer: &[bool], created: &str) -> Vec<HistoryEntry> {
        let mut layers = gives_layer.iter();
        let own = self.lowered.history.iter().map(|step| {
            let layer = step.edge.is_some() && layers.next().copied().unwrap_or(false);
            HistoryEntry { created: Some(created.to_owned()), empty_layer: !layer, ..step.entry.clone() }
        });
        base.iter().cloned().chain(own).collect()
    }
}

/// The same layer under OCI's name for its type, since one manifest has types of one family.
pub(crate) fn as_oci(layer: &Descriptor) -> Descriptor {
    let media_type = match (layer.media_type.layer_compression(), layer.media_type.is_foreign_layer()) {
        (Some(compression), false) => MediaType::oci_layer(compression),
        _ => layer.media_type.clone(),
    };
    Descriptor { media_type, platform: None, ..layer.clone() }
}

/// Writes what describes an image into the store: its config, whose digest is returned, and its manifest.
///
/// # Errors
/// The store cannot be written.
pub(crate) fn write_documents(
    store: &Store,
    lease: &Lease,
    described: &Described,
) -> Result<(Digest, Descriptor), Error> {
    let config = store.blobs().put_bytes(&described.config.to_canonical_json(), lease)?;
    store.blobs().put_bytes(&described.manifest_bytes()?, lease)?;
    Ok((config, described.manifest_descriptor()?))
}

/// Writes an image into the store and gives it its names; they move from the images that had them.
///
/// # Errors
/// The store cannot be written.
pub(crate) fn publish(
    store: &Store,
    lease: &Lease,
    described: &Described,
    names: &[Reference],
) -> Result<(ImageId, Descriptor), Error> {
    let (config, target) = write_documents(store, lease, described)?;
    store.images().put(&NewImage { target: target.clone(), config: config.clone(), names: names.to_vec() }, lease)?;
    Ok((ImageId(config), target))
}
