//! From the store into a registry.
//!
//! For each layer the cheapest way that works: the registry has it; it takes it from another of its repositories; the
//! blob that came is sent as it came; else the layer is compressed while it is sent, and what it became is remembered,
//! so that the next push asks instead of compressing. The manifest is rewritten only where a layer's form changed: an
//! image that was pulled is pushed with the digest it had.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use rbuild_oci::{
    Compression, Descriptor, DiffId, Digest, Document, ImageConfig, Index, Manifest, MediaType, Platform, Reference,
    limits,
};
use rbuild_store::layers::compress::Compressor;
use rbuild_store::{ImageRecord, Lease, Store, StoreError};
use tokio::sync::mpsc;

use crate::Error;
use crate::client::Client;
use crate::ledger;
use crate::relay::LayerSource;
use crate::sending::LayerPacking;
use crate::source::{Progress, ProgressSink, Stage, forward};
use crate::upload::{Content, Destination, Named, Sessions, Uploaded};

/// An image that was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Of the manifest, as the registry has it.
    pub digest: Digest,
    /// Bytes of the manifest.
    pub size: u64,
}

impl Client {
    /// Sends an image, with all it consists of, to the tag (or digest) of `reference`: its manifest for `platform`; without
    /// one, the whole index when all of it is in the store, else the manifest for this machine.
    ///
    /// # Errors
    /// The registry does not take it, or a part of the image is not in the store. What arrived stays there, unnamed.
    pub async fn push(
        &self,
        image: &ImageRecord,
        platform: Option<&Platform>,
        reference: &Reference,
        store: &Store,
        lease: &Lease,
        progress: ProgressSink<'_>,
    ) -> Result<Pushed, Error> {
        let (told, receiver) = mpsc::unbounded_channel();
        let push = Push::begin(self, reference, store, lease, told).await?;
        forward(push.image(image.clone(), platform.cloned(), reference), receiver, progress).await
    }

    /// Sends the manifest or index `target`, whose documents are in the store, with all it consists of. Layers that
    /// are not here go from where they lie, as `away` says by the digests of their blobs: not at all where the registry has
    /// them, mounted from a repository of its own, else passed through.
    ///
    /// # Errors
    /// As [`Client::push`]; a layer that cannot be had from where it lies.
    pub async fn push_target(
        &self,
        target: &Descriptor,
        away: HashMap<Digest, LayerSource>,
        reference: &Reference,
        (store, lease): (&Store, &Lease),
        progress: ProgressSink<'_>,
    ) -> Result<Pushed, Error> {
        let (told, receiver) = mpsc::unbounded_channel();
        let push = Push { away: Arc::new(away), ..Push::begin(self, reference, store, lease, told).await? };
        forward(push.target(target, reference), receiver, progress).await
    }
}

/// One image on its way to a registry.
#[derive(Clone)]
pub(crate) struct Push {
    pub(crate) destination: Destination,
    /// Layers that are not here, by the digests of their blobs.
    away: Arc<HashMap<Digest, LayerSource>>,
    registry: String,
    store: Store,
    lease: Lease,
    told: mpsc::UnboundedSender<Progress>,
}

impl Push {
    pub(crate) async fn begin(
        client: &Client,
        reference: &Reference,
        store: &Store,
        lease: &Lease,
        told: mpsc::UnboundedSender<Progress>,
    ) -> Result<Push, Error> {
        let sessions = Sessions::kept_in(store);
        let destination = Destination { sessions, ..client.destination(reference).await? };
        let (store, lease) = (store.clone(), lease.clone());
        Ok(Push { destination, away: Arc::default(), registry: reference.registry().to_owned(), store, lease, told })
    }

    async fn image(
        &self,
        record: ImageRecord,
        wanted: Option<Platform>,
        reference: &Reference,
    ) -> Result<Pushed, Error> {
        let (target, whole) = (record.target.clone(), wanted.is_none());
        if whole && let Some(index) = self.blocking(move |p| whole_index(&p.store, &target)).await? {
            let sent = self.index(&record.target, index).await?;
            return self.destination.manifest(reference.tag(), &sent.kind, sent.bytes).await;
        }
        let wanted = wanted.unwrap_or_else(Platform::host);
        let (.., descriptor) = self.blocking(move |p| p.store.images().manifest(&record, &wanted)).await?;
        let sent = self.manifest(&descriptor, Form::Docker).await?;
        self.destination.manifest(reference.tag(), &sent.kind, sent.bytes).await
    }

    async fn target(&self, target: &Descriptor, reference: &Reference) -> Result<Pushed, Error> {
        let sent = match target.media_type.is_index() {
            false => self.manifest(target, Form::Docker).await?,
            true => {
                let digest = target.digest.clone();
                let bytes = self.blocking(move |p| p.store.blobs().read(&digest, limits::INDEX)).await?;
                match Document::parse(&bytes, Some(&target.media_type))? {
                    Document::Index(index) => self.index(target, index).await?,
                    Document::Manifest(_) => return Err(Error::Options("an index that is a manifest".into())),
                }
            }
        };
        self.destination.manifest(reference.tag(), &sent.kind, sent.bytes).await
    }

    /// Sends what an index consists of; gives the index as it is to be put.
    async fn index(&self, descriptor: &Descriptor, index: Index) -> Result<Sent, Error> {
        let mut changed = index.clone();
        let mut became: Vec<(String, String)> = Vec::new();
        for child in &mut changed.manifests {
            let sent = self.manifest(child, Form::Oci).await?;
            let pushed = self.destination.manifest(None, &sent.kind, sent.bytes).await?;
            became.push((child.digest.to_string(), pushed.digest.to_string()));
            (child.digest, child.size, child.media_type) = (pushed.digest, pushed.size, sent.kind);
        }
        // Attestations say which manifest they are about.
        for about in changed.manifests.iter_mut().flat_map(|child| child.annotations.values_mut()) {
            if let Some((_, now)) = became.iter().find(|(before, _)| before == about) {
                about.clone_from(now);
            }
        }
        let kind = descriptor.media_type.clone();
        if changed == index {
            let digest = descriptor.digest.clone();
            let bytes = self.blocking(move |p| p.store.blobs().read(&digest, limits::INDEX)).await?;
            return Ok(Sent { kind, bytes: bytes.into() });
        }
        let bytes = serde_json::to_vec(&changed).map_err(|e| Error::Options(format!("writing the index: {e}")))?;
        Ok(Sent { kind, bytes: bytes.into() })
    }

    /// Sends what a manifest consists of; gives the manifest as it is to be put.
    async fn manifest(&self, descriptor: &Descriptor, form: Form) -> Result<Sent, Error> {
        let wanted = descriptor.clone();
        let (manifest, diffs) = self.blocking(move |p| image_parts(&p.store, &wanted)).await?;
        let layers = match diffs {
            Some(diffs) => {
                for diff in &diffs {
                    self.tell(diff, Stage::Preparing);
                }
                let pairs: Vec<_> = manifest.layers.iter().cloned().zip(diffs).collect();
                futures::stream::iter(pairs)
                    .map(|(layer, diff)| self.layer(Some(layer), diff, LayerPacking::default()))
                    .buffered(self.destination.client.parallel())
                    .try_collect()
                    .await?
            }
            // No image: its blobs are sent as they are.
            None => {
                for blob in manifest.layers.iter().filter(|blob| !self.keeps_back(blob)) {
                    self.blob(blob).await?;
                }
                manifest.layers.clone()
            }
        };
        self.blob(&manifest.config).await?;
        let (kind, bytes) = self.manifest_bytes(&manifest, descriptor, &layers, form).await?;
        let mut blobs: Vec<Digest> = layers.into_iter().map(|l| l.digest).collect();
        blobs.push(manifest.config.digest);
        self.blocking(move |p| ledger::remember_origins(&p.store, &blobs, &p.registry, &p.destination.repository))
            .await?;
        Ok(Sent { kind, bytes: bytes.into() })
    }

    fn tell(&self, layer: &DiffId, stage: Stage) {
        // Nobody listens any more when the push was given up.
        drop(self.told.send(Progress::of(&layer.0, stage)));
    }

    fn tell_amount(&self, layer: &DiffId, current: u64, total: Option<u64>) {
        drop(self.told.send(Progress::of(&layer.0, Stage::Pushing).amount(current, total)));
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Push) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Error> {
        let this = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&this)).await;
        Ok(done.map_err(|e| Error::Options(format!("a task of the push failed: {e}")))??)
    }

    /// Brings one layer there; gives the descriptor under which the registry has it. `layer` is the form to try first, where
    /// there is one.
    pub(crate) async fn layer(
        &self,
        layer: Option<Descriptor>,
        diff: DiffId,
        packing: LayerPacking,
    ) -> Result<Descriptor, Error> {
        if let Some(foreign) = layer.as_ref().filter(|layer| self.keeps_back(layer)) {
            self.tell(&diff, Stage::SkippedForeign);
            return Ok(foreign.clone());
        }
        let (mine, options) = (diff.clone(), packing.options());
        let forms: Vec<(Descriptor, bool)> = self
            .blocking(move |p| {
                let mut forms = Vec::new();
                if let Some(first) = &layer {
                    let plain = matches!(first.media_type.layer_compression(), None | Some(Compression::None));
                    // A plain tar goes as it is only where it came from so: others are given less to carry.
                    if !plain || ledger::is_seen(&p.store, &first.digest, &p.registry)? {
                        forms.push((first.clone(), p.store.blobs().hold(&first.digest, &p.lease)?));
                    }
                }
                for blob in ledger::compressed_blobs(&p.store, &mine)? {
                    let first = layer.as_ref().is_some_and(|first| first.digest == blob.descriptor.digest);
                    if !first && packing.takes(&blob.descriptor.media_type) {
                        let here = p.store.blobs().hold(&blob.descriptor.digest, &p.lease)?;
                        if here || blob.options == options {
                            forms.push((blob.descriptor, here));
                        }
                    }
                }
                Ok(forms)
            })
            .await?;
        for (form, _) in &forms {
            if self.destination.has(&form.digest).await? {
                self.tell(&diff, Stage::LayerAlreadyExists);
                return Ok(form.clone());
            }
        }
        for (form, here) in forms {
            if self.mount_or_send(&form, here, &diff).await? {
                return Ok(form);
            }
        }
        match packing.compression {
            Compression::None => self.send_plain(&diff).await,
            _ => self.compress_and_send(&diff, packing).await,
        }
    }

    /// Whether a layer is not given away: its publisher does not want that, and its manifest says where it can be had. The
    /// user may say that this registry gets it all the same.
    fn keeps_back(&self, layer: &Descriptor) -> bool {
        let allowed = || self.destination.client.gets_all(&self.registry);
        layer.media_type.is_foreign_layer() && !layer.urls.is_empty() && !allowed()
    }

    /// The tar as it is.
    async fn send_plain(&self, diff: &DiffId) -> Result<Descriptor, Error> {
        let id = diff.clone();
        let plain = self.blocking(move |p| p.store.layers().compress(&id, Compression::None, 0, &p.lease)).await?;
        if self.destination.has(&plain.digest).await? {
            self.tell(diff, Stage::LayerAlreadyExists);
            return Ok(plain);
        }
        let (store, id) = (self.store.clone(), diff.clone());
        let produce = move |out: &mut dyn Write| {
            let mut tar = store.layers().open_diff(&id).map_err(io::Error::other)?;
            io::copy(&mut tar, out).map(drop)
        };
        let content = Content { produce: Arc::new(produce), named: Named::Blob(plain.digest.clone(), plain.size) };
        let progress = |current| self.tell_amount(diff, current, Some(plain.size));
        self.destination.put(&content, None, &progress).await?;
        self.tell(diff, Stage::Pushed);
        Ok(plain)
    }

    /// Tries what needs no new bytes; false when nothing worked because the bytes are not here.
    async fn mount_or_send(&self, form: &Descriptor, here: bool, diff: &DiffId) -> Result<bool, Error> {
        let digest = form.digest.clone();
        let origins =
            self.blocking(move |p| ledger::origins(&p.store, &digest, &p.registry, &p.destination.repository)).await?;
        let away = self.away.get(&form.digest).filter(|_| !here);
        let near = away.and_then(|away| away.repository.as_ref()).filter(|at| at.registry() == self.registry);
        let from = near.map(Reference::repository).or(origins.first().map(String::as_str));
        if !here && away.is_none() {
            let Some(from) = from else { return Ok(false) };
            if !self.destination.mount(&form.digest, from).await? {
                return Ok(false);
            }
            self.tell(diff, Stage::Mounted { from: from.to_owned() });
            return Ok(true);
        }
        let total = Some(form.size);
        let progress = |current| self.tell_amount(diff, current, total);
        let content = match away {
            Some(away) => Content { produce: away.bytes.clone(), named: Named::Blob(form.digest.clone(), form.size) },
            None => self.stored(form),
        };
        match self.destination.put(&content, from, &progress).await? {
            Uploaded::Mounted { from } => self.tell(diff, Stage::Mounted { from }),
            Uploaded::Sent { .. } => self.tell(diff, Stage::Pushed),
        }
        Ok(true)
    }

    /// A blob of the store, checked again while it is read.
    fn stored(&self, blob: &Descriptor) -> Content {
        let (store, digest) = (self.store.clone(), blob.digest.clone());
        let produce = move |out: &mut dyn Write| {
            let mut reader = store.blobs().reader(&digest).map_err(io::Error::other)?;
            io::copy(&mut reader, out).map(drop)
        };
        Content { produce: Arc::new(produce), named: Named::Blob(blob.digest.clone(), blob.size) }
    }

    /// Compresses the layer on its way. A registry that takes no streams gets a blob made beforehand.
    async fn compress_and_send(&self, diff: &DiffId, packing: LayerPacking) -> Result<Descriptor, Error> {
        let (store, id) = (self.store.clone(), diff.clone());
        let compress = move |out: &mut dyn Write| {
            let mut tar = store.layers().open_diff(&id).map_err(io::Error::other)?;
            let mut compressor = Compressor::new(out, packing.compression, packing.level)?;
            io::copy(&mut tar, &mut compressor)?;
            compressor.finish().map(drop)
        };
        let progress = |current| self.tell_amount(diff, current, None);
        // Made of this in this way, it is the same at any time.
        let name = Digest::sha256_of(format!("{diff} as {}", packing.options()).as_bytes());
        let streamed = Content { produce: Arc::new(compress), named: Named::Stream(name) };
        let sent = match self.destination.put(&streamed, None, &progress).await {
            Err(Error::Status { status, .. }) if no_streams(&status) => {
                let id = diff.clone();
                let (how, level) = (packing.compression, packing.level);
                let blob = self.blocking(move |p| p.store.layers().compress(&id, how, level, &p.lease)).await?;
                self.destination.put(&self.stored(&blob), None, &progress).await?
            }
            sent => sent?,
        };
        let Uploaded::Sent { digest, size } = sent else {
            return Err(Error::Options("a stream cannot be mounted".into()));
        };
        self.tell(diff, Stage::Pushed);
        let blob = Descriptor::new(MediaType::oci_layer(packing.compression), digest, size);
        let (remembered, id) = (blob.clone(), diff.clone());
        self.blocking(move |p| p.store.layers().note_blob(&id, &remembered, &packing.options())).await?;
        Ok(blob)
    }

    async fn blob(&self, blob: &Descriptor) -> Result<(), Error> {
        if !self.destination.has(&blob.digest).await? {
            self.destination.put(&self.stored(blob), None, &|_| {}).await?;
        }
        Ok(())
    }

    /// The manifest as it came when nothing about it changed, else with its new layers.
    async fn manifest_bytes(
        &self,
        manifest: &Manifest,
        descriptor: &Descriptor,
        layers: &[Descriptor],
        form: Form,
    ) -> Result<(MediaType, Vec<u8>), Error> {
        if manifest.layers.iter().zip(layers).all(|(a, b)| a.digest == b.digest) {
            let digest = descriptor.digest.clone();
            let bytes = self.blocking(move |p| p.store.blobs().read(&digest, limits::MANIFEST)).await?;
            return Ok((manifest.media_type.clone().unwrap_or(descriptor.media_type.clone()), bytes));
        }
        let rewritten = rewritten(manifest, layers, form);
        let kind = rewritten.media_type.clone().unwrap_or(MediaType::OciManifest);
        let bytes = serde_json::to_vec(&rewritten).map_err(|e| Error::Options(format!("writing the manifest: {e}")))?;
        Ok((kind, bytes))
    }
}

/// A manifest or index whose parts have been sent.
struct Sent {
    kind: MediaType,
    bytes: Bytes,
}

/// What a manifest becomes that has to be written anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Docker's, where that says everything.
    Docker,
    Oci,
}

/// The index that `target` is, if the store has all of it.
fn whole_index(store: &Store, target: &Descriptor) -> Result<Option<Index>, StoreError> {
    if !target.media_type.is_index() {
        return Ok(None);
    }
    let bytes = store.blobs().read(&target.digest, limits::INDEX)?;
    let Document::Index(index) = Document::parse(&bytes, Some(&target.media_type))? else { return Ok(None) };
    for child in &index.manifests {
        if !child.media_type.is_manifest() || !store.blobs().has(&child.digest)? {
            return Ok(None);
        }
        let (manifest, diffs) = image_parts(store, child)?;
        for (at, layer) in manifest.layers.iter().enumerate() {
            let known = diffs.as_ref().and_then(|diffs| diffs.get(at));
            let here = store.layers().has(&layer.digest)?
                || known.is_some_and(|diff| store.layers().has(&diff.0).unwrap_or(false));
            if !here && !layer.media_type.is_foreign_layer() {
                return Ok(None);
            }
        }
    }
    Ok(Some(index))
}

/// A manifest of the store with the DiffIds of its layers; without these when it is no image.
fn image_parts(store: &Store, descriptor: &Descriptor) -> Result<(Manifest, Option<Vec<DiffId>>), StoreError> {
    let bytes = store.blobs().read(&descriptor.digest, limits::MANIFEST)?;
    let Document::Manifest(manifest) = Document::parse(&bytes, Some(&descriptor.media_type))? else {
        return Err(StoreError::invalid(format!("manifest {}", descriptor.digest), "it is an index"));
    };
    if !manifest.config.media_type.is_config() || manifest.layers.iter().any(|layer| !layer.media_type.is_layer()) {
        return Ok((manifest, None));
    }
    let config = ImageConfig::parse(&store.blobs().read(&manifest.config.digest, limits::CONFIG)?)?;
    let diffs = config.rootfs.diff_ids;
    if diffs.len() != manifest.layers.len() {
        let reason = "it and its config list different numbers of layers";
        return Err(StoreError::invalid(format!("manifest {}", descriptor.digest), reason));
    }
    Ok((manifest, Some(diffs)))
}

/// `manifest` with `layers` in place of its own. It becomes docker's schema 2 where that can say everything the manifest
/// says: every registry and every client understands it, also those that do not ask for OCI's types.
fn rewritten(manifest: &Manifest, layers: &[Descriptor], form: Form) -> Manifest {
    let plain = |d: &Descriptor| d.annotations.is_empty() && d.urls.is_empty() && d.artifact_type.is_none();
    let gzip = |d: &Descriptor| d.media_type.layer_compression() == Some(Compression::Gzip);
    let docker = form == Form::Docker
        && manifest.annotations.is_empty()
        && manifest.artifact_type.is_none()
        && manifest.subject.is_none()
        && plain(&manifest.config)
        && layers.iter().all(|layer| gzip(layer) && plain(layer));
    let typed = |from: &Descriptor, media_type: MediaType| Descriptor { media_type, ..from.clone() };
    let (kind, config) = match docker {
        true => (MediaType::DockerManifest, typed(&manifest.config, MediaType::DockerConfig)),
        false => (MediaType::OciManifest, typed(&manifest.config, MediaType::OciConfig)),
    };
    let layer_type = |layer: &Descriptor| match (docker, layer.media_type.layer_compression()) {
        (_, _) if layer.media_type == MediaType::DockerForeignLayerGzip => MediaType::OciForeignLayerGzip,
        (_, _) if layer.media_type.is_foreign_layer() => layer.media_type.clone(),
        (true, _) => MediaType::DockerLayerGzip,
        (false, Some(how)) => MediaType::oci_layer(how),
        (false, None) => layer.media_type.clone(),
    };
    let layers = layers.iter().map(|layer| typed(layer, layer_type(layer))).collect();
    Manifest { media_type: Some(kind), config, layers, ..manifest.clone() }
}

fn no_streams(status: &str) -> bool {
    ["405", "411", "501"].iter().any(|code| status.starts_with(code))
}
