//! From the store into a registry.
//!
//! For each layer the cheapest way that works: the registry has it; it takes it from another of its repositories; the
//! blob that came is sent as it came; else the layer is compressed while it is sent, and what it became is remembered,
//! so that the next push asks instead of compressing. The manifest is rewritten only where a layer's form changed: an
//! image that was pulled is pushed with the digest it had.

use std::io::{self, Write};
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use rbuild_oci::{Compression, Descriptor, DiffId, Digest, Manifest, MediaType, Platform, Reference};
use rbuild_store::layers::compress::{Compressor, DEFAULT_LEVEL};
use rbuild_store::{ImageRecord, Lease, Store, StoreError};
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Method, StatusCode};
use tokio::sync::mpsc;

use crate::Error;
use crate::client::{Client, content_digest, failure};
use crate::ledger;
use crate::source::{Progress, ProgressSink, Stage, forward};
use crate::upload::{Content, Destination, Uploaded};

/// An image that was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Of the manifest, as the registry has it.
    pub digest: Digest,
    /// Bytes of the manifest.
    pub size: u64,
}

impl Client {
    /// Sends the image's manifest for `platform`, with all it consists of, to the tag (or digest) of `reference`.
    ///
    /// # Errors
    /// The registry does not take it, or a part of the image is not in the store. What arrived stays there, unnamed.
    pub async fn push(
        &self,
        image: &ImageRecord,
        platform: &Platform,
        reference: &Reference,
        store: &Store,
        lease: &Lease,
        progress: ProgressSink<'_>,
    ) -> Result<Pushed, Error> {
        let (told, receiver) = mpsc::unbounded_channel();
        let push = Push::begin(self, reference, store, lease, told).await?;
        forward(push.image(image.clone(), platform.clone(), reference), receiver, progress).await
    }

    /// The way into the repository of `reference` for layers and documents that are sent one by one.
    ///
    /// # Errors
    /// The registry cannot be reached.
    pub async fn sending(&self, reference: &Reference, store: &Store, lease: &Lease) -> Result<Sending, Error> {
        // Nobody listens: what is sent one by one is reported by whoever asks for it.
        let (told, _) = mpsc::unbounded_channel();
        Ok(Sending { push: Push::begin(self, reference, store, lease, told).await? })
    }
}

/// How a layer travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerPacking {
    pub compression: Compression,
    /// On the compression's own scale.
    pub level: i32,
    /// Compress again what is known only in another form. Otherwise any compressed form will do.
    pub force: bool,
}

impl Default for LayerPacking {
    fn default() -> LayerPacking {
        LayerPacking { compression: Compression::Gzip, level: DEFAULT_LEVEL, force: false }
    }
}

impl LayerPacking {
    /// The name under which the store remembers a blob that was made so.
    pub fn options(&self) -> String {
        format!("{:?}:{}", self.compression, self.level).to_ascii_lowercase()
    }

    /// Whether a layer that is known in this form may travel in it.
    pub fn takes(&self, media_type: &MediaType) -> bool {
        match media_type.layer_compression() {
            Some(Compression::None) | None => false,
            Some(how) => how == self.compression || !self.force,
        }
    }
}

/// Parts of images on their way into one repository. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Sending {
    push: Push,
}

impl Sending {
    /// Brings a layer of the store there, the cheapest way that works; gives the descriptor under which the registry has it.
    ///
    /// # Errors
    /// The registry does not take it; the layer is not in the store.
    pub async fn layer(&self, diff: &DiffId, packing: LayerPacking) -> Result<Descriptor, Error> {
        self.push.layer(None, diff.clone(), packing).await
    }

    /// Whether the registry has the blob in this repository, or takes it there from `repository` of its own.
    ///
    /// # Errors
    /// The registry refuses to say.
    pub async fn has_or_mounts(&self, blob: &Digest, repository: Option<&str>) -> Result<bool, Error> {
        let destination = &self.push.destination;
        if destination.has(blob).await? {
            return Ok(true);
        }
        match repository.filter(|from| *from != destination.repository) {
            Some(from) => destination.mount(blob, from).await,
            None => Ok(false),
        }
    }

    /// Sends a small blob, unless it is there.
    ///
    /// # Errors
    /// The registry does not take it.
    pub async fn bytes(&self, bytes: &[u8]) -> Result<Digest, Error> {
        let digest = Digest::sha256_of(bytes);
        if !self.push.destination.has(&digest).await? {
            let (known, bytes) = ((digest.clone(), bytes.len() as u64), bytes.to_vec());
            let produce = move |out: &mut dyn Write| out.write_all(&bytes);
            self.push
                .destination
                .put(&Content { produce: Arc::new(produce), known: Some(known) }, None, &|_| {})
                .await?;
        }
        Ok(digest)
    }

    /// Names a manifest whose blobs are there.
    ///
    /// # Errors
    /// The registry does not take it.
    pub async fn manifest(&self, reference: &Reference, kind: &MediaType, bytes: Vec<u8>) -> Result<Pushed, Error> {
        self.push.put_manifest(reference, kind, bytes).await
    }
}

/// One image on its way to a registry.
#[derive(Clone)]
struct Push {
    destination: Destination,
    registry: String,
    store: Store,
    lease: Lease,
    told: mpsc::UnboundedSender<Progress>,
}

impl Push {
    async fn begin(
        client: &Client,
        reference: &Reference,
        store: &Store,
        lease: &Lease,
        told: mpsc::UnboundedSender<Progress>,
    ) -> Result<Push, Error> {
        let access = client.access(&client.origin(reference)?).await?;
        let repository = reference.repository().to_owned();
        let destination = Destination { client: client.clone(), access, repository };
        let (store, lease) = (store.clone(), lease.clone());
        Ok(Push { destination, registry: reference.registry().to_owned(), store, lease, told })
    }

    async fn image(&self, record: ImageRecord, wanted: Platform, reference: &Reference) -> Result<Pushed, Error> {
        let (manifest, config, descriptor) =
            self.blocking(move |p| p.store.images().manifest(&record, &wanted)).await?;
        let diffs = config.rootfs.diff_ids;
        if diffs.len() != manifest.layers.len() {
            let reason = "manifest and config list different numbers of layers".into();
            return Err(Error::Document { what: reference.familiar(), reason });
        }
        for diff in &diffs {
            self.tell(diff, Stage::Preparing);
        }
        let pairs: Vec<_> = manifest.layers.iter().cloned().zip(diffs).collect();
        let layers: Vec<Descriptor> = futures::stream::iter(pairs)
            .map(|(layer, diff)| self.layer(Some(layer), diff, LayerPacking::default()))
            .buffered(self.destination.client.parallel())
            .try_collect()
            .await?;
        self.config(&manifest.config).await?;
        let (kind, bytes) = self.manifest_bytes(&manifest, &descriptor, &layers).await?;
        let pushed = self.put_manifest(reference, &kind, bytes).await?;
        let mut blobs: Vec<Digest> = layers.into_iter().map(|l| l.digest).collect();
        blobs.push(manifest.config.digest);
        self.blocking(move |p| ledger::remember_origins(&p.store, &blobs, &p.registry, &p.destination.repository))
            .await?;
        Ok(pushed)
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

    /// Brings one layer there; gives the descriptor under which the registry has it. `layer` is the form that is wanted
    /// first, where there is one.
    async fn layer(&self, layer: Option<Descriptor>, diff: DiffId, packing: LayerPacking) -> Result<Descriptor, Error> {
        let compressed = |l: &Descriptor| !matches!(l.media_type.layer_compression(), None | Some(Compression::None));
        let (mine, known, options) = (diff.clone(), layer.filter(compressed), packing.options());
        let forms: Vec<(Descriptor, bool)> = self
            .blocking(move |p| {
                let mut forms = Vec::new();
                if let Some(known) = &known {
                    forms.push((known.clone(), p.store.blobs().hold(&known.digest, &p.lease)?));
                }
                for blob in ledger::compressed_blobs(&p.store, &mine)? {
                    let first = known.as_ref().is_some_and(|known| known.digest == blob.descriptor.digest);
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
        let content = Content { produce: Arc::new(produce), known: Some((plain.digest.clone(), plain.size)) };
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
        let from = origins.first().map(String::as_str);
        if !here {
            let Some(from) = from else { return Ok(false) };
            if !self.destination.mount(&form.digest, from).await? {
                return Ok(false);
            }
            self.tell(diff, Stage::Mounted { from: from.to_owned() });
            return Ok(true);
        }
        let total = Some(form.size);
        let progress = |current| self.tell_amount(diff, current, total);
        match self.destination.put(&self.stored(form), from, &progress).await? {
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
        Content { produce: Arc::new(produce), known: Some((blob.digest.clone(), blob.size)) }
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
        let streamed = Content { produce: Arc::new(compress), known: None };
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

    async fn config(&self, config: &Descriptor) -> Result<(), Error> {
        if !self.destination.has(&config.digest).await? {
            self.destination.put(&self.stored(config), None, &|_| {}).await?;
        }
        Ok(())
    }

    /// The manifest as it came when nothing about it changed, else with its new layers.
    async fn manifest_bytes(
        &self,
        manifest: &Manifest,
        descriptor: &Descriptor,
        layers: &[Descriptor],
    ) -> Result<(MediaType, Vec<u8>), Error> {
        if manifest.layers.iter().zip(layers).all(|(a, b)| a.digest == b.digest) {
            let digest = descriptor.digest.clone();
            let bytes = self.blocking(move |p| p.store.blobs().read(&digest, rbuild_oci::limits::MANIFEST)).await?;
            return Ok((manifest.media_type.clone().unwrap_or(descriptor.media_type.clone()), bytes));
        }
        let rewritten = rewritten(manifest, layers);
        let kind = rewritten.media_type.clone().unwrap_or(MediaType::OciManifest);
        let bytes = serde_json::to_vec(&rewritten).map_err(|e| Error::Options(format!("writing the manifest: {e}")))?;
        Ok((kind, bytes))
    }

    async fn put_manifest(&self, reference: &Reference, kind: &MediaType, bytes: Vec<u8>) -> Result<Pushed, Error> {
        let digest = Digest::sha256_of(&bytes);
        let name = reference.tag().map_or_else(|| digest.to_string(), str::to_owned);
        let destination = &self.destination;
        let path = format!("{}/manifests/{name}", destination.repository);
        let mut ask = destination.access.ask(Method::PUT, &path)?;
        let kind =
            HeaderValue::from_str(kind.as_str()).map_err(|_| Error::Options("a media type is no header".into()))?;
        ask.headers.insert(CONTENT_TYPE, kind);
        ask.body = bytes.into();
        let size = ask.body.len() as u64;
        let answer = destination.client.call(&destination.access, &destination.scope(), &ask).await?;
        if answer.status() != StatusCode::CREATED && !answer.status().is_success() {
            return Err(failure(&ask.shown(), answer).await);
        }
        match content_digest(answer.headers()) {
            Some(actual) if actual.algorithm() == digest.algorithm() && actual != digest => {
                let what = "the manifest the registry says it stored".into();
                Err(Error::WrongDigest { what, expected: digest, actual })
            }
            _ => Ok(Pushed { digest, size }),
        }
    }
}

/// `manifest` with `layers` in place of its own. It becomes docker's schema 2 where that can say everything the manifest
/// says: every registry and every client understands it, also those that do not ask for OCI's types.
fn rewritten(manifest: &Manifest, layers: &[Descriptor]) -> Manifest {
    let plain = |d: &Descriptor| d.annotations.is_empty() && d.urls.is_empty() && d.artifact_type.is_none();
    let gzip = |d: &Descriptor| d.media_type.layer_compression() == Some(Compression::Gzip);
    let docker = manifest.annotations.is_empty()
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
