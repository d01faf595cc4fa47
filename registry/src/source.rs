//! From a registry into the store.
//!
//! Layers come down in parallel, each straight into a blob of the store, which checks its digest; the lowest ones are
//! unpacked while the upper ones are still on their way. Nothing gets a name before all of it is there.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use rbuild_oci::{ChainId, Descriptor, DiffId, Digest, Index, Platform, Reference};
use rbuild_store::{ImageRecord, Lease, NewImage, Snapshot, Store, StoreError};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use crate::client::{Client, Resolved};
use crate::download::Download;
use crate::mirrors::Endpoint;
use crate::{Error, ledger};

/// What happens to one layer of an image that is pulled or pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The blob's digest when pulling, the layer's DiffId when pushing.
    pub layer: Digest,
    pub stage: Stage,
}

/// Stages of a layer, in order of appearance.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// The image has this layer and it is not here yet.
    PullingLayer,
    /// It is here already.
    AlreadyExists,
    Downloading { current: u64, total: u64 },
    DownloadComplete,
    Extracting,
    PullComplete,
    /// It is to be pushed.
    Preparing,
    /// `total` is unknown for a layer that is compressed on the way.
    Pushing { current: u64, total: Option<u64> },
    Pushed,
    /// The registry has it.
    LayerAlreadyExists,
    /// The registry took it from another of its repositories.
    Mounted { from: String },
}

/// Where progress goes. Called from several tasks.
pub type ProgressSink = Arc<dyn Fn(Progress) + Send + Sync>;

/// An image that was pulled.
#[derive(Debug, Clone)]
pub struct Pulled {
    pub image: ImageRecord,
    /// What the reference named: the manifest, or the index the platform's manifest was chosen from.
    pub digest: Digest,
    /// The name led to this very image before.
    pub up_to_date: bool,
}

/// The entry of an index that suits `platform` best: attestations are no images, an exact variant goes before an older
/// one, an entry that names no platform is the last resort.
pub fn choose<'a>(index: &'a Index, platform: &Platform) -> Option<&'a Descriptor> {
    let rank = |d: &Descriptor| match &d.platform {
        Some(have) => have.rank_for(platform),
        None => Some(u32::MAX),
    };
    index
        .manifests
        .iter()
        .filter(|d| !d.is_attestation() && (d.media_type.is_manifest() || d.media_type.is_index()))
        .filter_map(|d| rank(d).map(|r| (r, d)))
        .min_by_key(|(r, _)| *r)
        .map(|(_, d)| d)
}

impl Client {
    /// Brings the image of `platform` under `reference` into the store, unpacked, and names it there: by its tag and by
    /// its digest, or by the digest alone when the reference has one. `lease` keeps what comes until the name does.
    ///
    /// # Errors
    /// Those of [`Client::resolve`] and of the store; then nothing has a name, and the bytes go with the lease.
    pub async fn pull(
        &self,
        reference: &Reference,
        platform: &Platform,
        store: &Store,
        lease: &Lease,
        progress: ProgressSink,
    ) -> Result<Pulled, Error> {
        let (resolved, endpoints) = self.resolve_at(reference, platform).await?;
        let digest = resolved.target.descriptor.digest.clone();
        let names = names(reference, &digest);
        let journey = Journey {
            client: self.clone(),
            endpoints: endpoints.into(),
            reference: reference.clone(),
            store: store.clone(),
            lease: lease.clone(),
            progress,
        };
        let before = journey.blocking(move |j| j.store.images().get(&j.reference)).await?;
        let up_to_date = before.is_some_and(|image| image.target.digest == digest);
        journey.layers(&resolved).await?;
        let image = journey.blocking(move |j| j.keep(&resolved, names)).await?;
        Ok(Pulled { image, digest, up_to_date })
    }
}

/// The names an image gets by being pulled.
fn names(reference: &Reference, digest: &Digest) -> Vec<Reference> {
    let by_digest = reference.without_tag().with_digest(digest.clone());
    match (reference.digest(), reference.tag()) {
        (None, Some(_)) => vec![reference.clone(), by_digest],
        _ => vec![by_digest],
    }
}

/// One image on its way into the store.
#[derive(Clone)]
struct Journey {
    client: Client,
    endpoints: Arc<[Endpoint]>,
    reference: Reference,
    store: Store,
    lease: Lease,
    progress: ProgressSink,
}

impl Journey {
    fn tell(&self, layer: &Digest, stage: Stage) {
        (self.progress)(Progress { layer: layer.clone(), stage });
    }

    /// The store blocks, so it is asked on threads that may.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Journey) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Error> {
        let this = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&this)).await;
        Ok(done.map_err(|e| Error::Options(format!("a task of the pull failed: {e}")))??)
    }

    /// Downloads what is missing, and unpacks it from the lowest layer up as it comes.
    async fn layers(&self, resolved: &Resolved) -> Result<(), Error> {
        let diffs = resolved.config.rootfs.diff_ids.clone();
        let mut coming = self.start_downloads(resolved).await?;
        let chains: Vec<ChainId> = diffs.iter().scan(None, next_chain).collect();
        let known = chains.clone();
        let (mut done, mut parent) = self.blocking(move |j| j.highest(&known)).await?;
        for (at, (blob, diff)) in resolved.manifest.layers.iter().zip(&diffs).enumerate() {
            if let Some(download) = coming.remove(&blob.digest) {
                download.await.map_err(|e| Error::Options(format!("a download task failed: {e}")))??;
            } else if at < done {
                self.tell(&blob.digest, Stage::AlreadyExists);
                continue;
            }
            if at >= done {
                self.tell(&blob.digest, Stage::Extracting);
                let (blob, diff) = (blob.clone(), diff.clone());
                let below = parent.take();
                parent = Some(self.blocking(move |j| j.unpack(&blob, &diff, below)).await?);
                done = at + 1;
            }
            self.tell(&blob.digest, Stage::PullComplete);
        }
        Ok(())
    }

    /// Starts the download of every blob that is not here, the lowest first, and a bounded number at once.
    async fn start_downloads(
        &self,
        resolved: &Resolved,
    ) -> Result<HashMap<Digest, AbortOnDropHandle<Result<(), Error>>>, Error> {
        let slots = Arc::new(Semaphore::new(self.client.parallel()));
        let mut coming = HashMap::new();
        for blob in &resolved.manifest.layers {
            let digest = blob.digest.clone();
            if coming.contains_key(&digest) || self.blocking(move |j| j.store.blobs().hold(&digest, &j.lease)).await? {
                continue;
            }
            self.tell(&blob.digest, Stage::PullingLayer);
            let (this, wanted, slots) = (self.clone(), blob.clone(), slots.clone());
            let task = tokio::spawn(async move {
                let _slot = slots.acquire_owned().await;
                this.download(&wanted).await
            });
            coming.insert(blob.digest.clone(), AbortOnDropHandle::new(task));
        }
        Ok(coming)
    }

    async fn download(&self, blob: &Descriptor) -> Result<(), Error> {
        let first = self.download_once(blob).await;
        let outcome = match first {
            // Pieces that do not fit together: a registry that is wrong about ranges. Once more in one go.
            Err((Error::Store(StoreError::WrongDigest { .. }), true)) => {
                self.download_once(blob).await.map_err(|(error, _)| error)
            }
            other => other.map_err(|(error, _)| error),
        };
        outcome?;
        self.tell(&blob.digest, Stage::DownloadComplete);
        Ok(())
    }

    /// One download; with an error goes whether the bytes came in several pieces.
    async fn download_once(&self, blob: &Descriptor) -> Result<(), (Error, bool)> {
        let mut download = Download::new(self.client.clone(), self.endpoints.to_vec(), &self.reference, blob);
        let (pieces, writer) = self.begin_blob(blob);
        let mut received = 0;
        let failed = loop {
            match download.chunk().await {
                Ok(Some(chunk)) => {
                    received += chunk.len() as u64;
                    if pieces.send(chunk).await.is_err() {
                        break None; // the writer has an error to tell
                    }
                    self.tell(&blob.digest, Stage::Downloading { current: received, total: blob.size });
                }
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        let cut = download.was_cut();
        if let Some(error) = failed {
            return Err((error, cut)); // without its last piece the writer drops what it has
        }
        drop(pieces);
        match writer.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err((error.into(), cut)),
            Err(error) => Err((Error::Options(format!("the task that writes a blob failed: {error}")), cut)),
        }
    }

    /// A thread that writes what is sent to it into a blob, and makes it known if it is what `blob` says.
    fn begin_blob(&self, blob: &Descriptor) -> (mpsc::Sender<Bytes>, tokio::task::JoinHandle<Result<(), StoreError>>) {
        let (pieces, mut incoming) = mpsc::channel::<Bytes>(16);
        let (store, lease, blob) = (self.store.clone(), self.lease.clone(), blob.clone());
        let writer = tokio::task::spawn_blocking(move || {
            let failed = |e| StoreError::io(format!("writing blob {}", blob.digest), e);
            let mut writer = store.blobs().writer_for(&blob.digest, &lease)?;
            writer.reserve(blob.size)?;
            while let Some(piece) = incoming.blocking_recv() {
                writer.write_all(&piece).map_err(failed)?;
            }
            if writer.size() < blob.size {
                return Ok(()); // given up by the sender, which knows why
            }
            writer.commit(Some(&blob.digest), Some(blob.size))?;
            Ok(())
        });
        (pieces, writer)
    }

    /// How many of the lowest layers are unpacked already, and their snapshot.
    fn highest(&self, chains: &[ChainId]) -> Result<(usize, Option<Snapshot>), StoreError> {
        for (at, chain) in chains.iter().enumerate().rev() {
            if let Some(found) = self.store.snapshots().by_chain_id(chain, &self.lease)? {
                return Ok((at + 1, Some(found)));
            }
        }
        Ok((0, None))
    }

    fn unpack(&self, blob: &Descriptor, diff: &DiffId, parent: Option<Snapshot>) -> Result<Snapshot, StoreError> {
        let mut reader = self.store.blobs().reader(&blob.digest)?;
        let applied = self.store.layers().apply(&mut reader, parent.as_ref(), &self.lease)?;
        if applied.diff_id != *diff {
            return Err(StoreError::WrongDigest {
                what: format!("layer {}", blob.digest),
                expected: diff.0.clone(),
                found: applied.diff_id.0,
            });
        }
        Ok(applied.snapshot)
    }

    /// Makes the image known, with all that can be said about where its parts came from.
    fn keep(&self, resolved: &Resolved, names: Vec<Reference>) -> Result<ImageRecord, StoreError> {
        let config = &resolved.manifest.config.digest;
        for (digest, bytes) in [
            (&resolved.target.descriptor.digest, &resolved.target.bytes),
            (&resolved.chosen.descriptor.digest, &resolved.chosen.bytes),
            (config, &resolved.config_bytes),
        ] {
            if !self.store.blobs().hold(digest, &self.lease)? {
                let mut writer = self.store.blobs().writer_for(digest, &self.lease)?;
                writer.write_all(bytes).map_err(|e| StoreError::io(format!("writing blob {digest}"), e))?;
                writer.commit(Some(digest), Some(bytes.len() as u64))?;
            }
        }
        for (blob, diff) in resolved.manifest.layers.iter().zip(&resolved.config.rootfs.diff_ids) {
            ledger::remember_layer(&self.store, diff, blob, "")?;
        }
        let mut blobs: Vec<Digest> = resolved.manifest.layers.iter().map(|l| l.digest.clone()).collect();
        blobs.push(config.clone());
        ledger::remember_origins(&self.store, &blobs, self.reference.registry(), self.reference.repository())?;
        let image = NewImage { target: resolved.target.descriptor.clone(), config: config.clone(), names };
        self.store.images().put(&image, &self.lease)
    }
}

fn next_chain(below: &mut Option<ChainId>, diff: &DiffId) -> Option<ChainId> {
    let chain = match below.as_ref() {
        Some(below) => below.then(diff),
        None => ChainId(diff.0.clone()),
    };
    *below = Some(chain.clone());
    Some(chain)
}
