//! From a registry into the store.
//!
//! Layers come down in parallel. Each goes straight into a blob of the store, which checks its digest, and is unpacked in
//! the same pass into a directory of its own; when all below it are there it is stacked on them. Nothing gets a name
//! before all of it is there.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use rbuild_oci::{ChainId, Descriptor, DiffId, Digest, Index, Platform, Reference};
use rbuild_store::layers::Staged;
use rbuild_store::{BlobWriter, ImageRecord, Lease, NewImage, Snapshot, Store, StoreError};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use crate::client::{Client, Resolved};
use crate::download::Download;
use crate::mirrors::Endpoint;
use crate::{Error, ledger};

/// A layer as it lies somewhere else, with all that is known of it here once it was brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackedLayer {
    pub blob: Descriptor,
    pub diff_id: DiffId,
    /// Bytes of its tar.
    pub size: u64,
    /// The newest time of an entry, in seconds since 1970, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<i64>,
}

/// What happens to one layer of an image that is pulled or pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The blob's digest when pulling, the layer's DiffId when pushing.
    pub blob: Digest,
    pub stage: Stage,
    /// Bytes of the present stage that are done.
    pub current: u64,
    /// Bytes in all; unknown for a layer that is compressed on the way.
    pub total: Option<u64>,
    /// Nothing more will happen to this layer.
    pub done: bool,
}

/// Stages of a layer, in order of appearance.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// The image has this layer and it is not here yet.
    PullingLayer,
    /// It is here already.
    AlreadyExists,
    Downloading,
    DownloadComplete,
    Extracting,
    PullComplete,
    /// It is to be pushed.
    Preparing,
    Pushing,
    Pushed,
    /// The registry has it.
    LayerAlreadyExists,
    /// Its publisher does not let others distribute it: the manifest says where it is.
    SkippedForeign,
    /// The registry took it from another of its repositories.
    Mounted {
        from: String,
    },
}

impl Progress {
    pub(crate) fn of(blob: &Digest, stage: Stage) -> Progress {
        use Stage::{AlreadyExists, LayerAlreadyExists, Mounted, PullComplete, Pushed, SkippedForeign};
        let done = matches!(
            stage,
            AlreadyExists | PullComplete | Pushed | LayerAlreadyExists | SkippedForeign | Mounted { .. }
        );
        Progress { blob: blob.clone(), stage, current: 0, total: None, done }
    }

    pub(crate) fn amount(self, current: u64, total: Option<u64>) -> Progress {
        Progress { current, total, ..self }
    }
}

/// Who is told about progress.
pub type ProgressSink<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// Runs `work`, whose tasks tell `told`, and passes on what they tell.
pub(crate) async fn forward<T>(
    work: impl Future<Output = T>,
    mut told: mpsc::UnboundedReceiver<Progress>,
    progress: ProgressSink<'_>,
) -> T {
    let mut work = std::pin::pin!(work);
    let done = loop {
        tokio::select! {
            biased;
            Some(one) = told.recv() => progress(one),
            done = &mut work => break done,
        }
    };
    while let Ok(one) = told.try_recv() {
        progress(one);
    }
    done
}

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
        progress: ProgressSink<'_>,
    ) -> Result<Pulled, Error> {
        let (resolved, endpoints) = self.resolve_at(reference, platform).await?;
        let (journey, told) = Journey::new(self, endpoints, reference, store, lease);
        let digest = resolved.target.descriptor.digest.clone();
        let names = names(reference, &digest);
        let named = reference.clone();
        let before = journey.blocking(move |j| j.store.images().get(&named)).await?;
        // What was pushed from here comes back as another manifest of the same image.
        let id = resolved.manifest.config.digest.clone();
        let up_to_date = before.is_some_and(|image| image.target.digest == digest || image.id.0 == id);
        let diff_ids = &resolved.config.rootfs.diff_ids;
        forward(journey.layers(&resolved.manifest.layers, diff_ids), told, progress).await?;
        let image = journey.blocking(move |j| j.keep(&resolved, names)).await?;
        Ok(Pulled { image, digest, up_to_date })
    }

    /// Brings the layers of an image that was [resolved](Client::resolve) into the store, unpacked, without making the
    /// image known there: what a build needs of its base. `None` for an image without layers.
    ///
    /// # Errors
    /// As [`Client::pull`].
    pub async fn fetch_layers(
        &self,
        reference: &Reference,
        resolved: &Resolved,
        store: &Store,
        lease: &Lease,
        progress: ProgressSink<'_>,
    ) -> Result<Option<Snapshot>, Error> {
        let (journey, told) = Journey::new(self, self.endpoints(reference)?, reference, store, lease);
        let diff_ids = &resolved.config.rootfs.diff_ids;
        let snapshot = forward(journey.layers(&resolved.manifest.layers, diff_ids), told, progress).await?;
        let resolved = resolved.clone();
        journey.blocking(move |j| j.remember_image(&resolved)).await?;
        Ok(snapshot)
    }

    /// Brings a stack of layers, the lowest first, from the repository of `reference` into the store, unpacked: what a
    /// build needs of a cached result. Each layer is checked against its digest and its `DiffId`. `None` for no layers.
    ///
    /// # Errors
    /// A layer that is not there or is not what it should be; those of the store.
    pub async fn bring_layers(
        &self,
        reference: &Reference,
        layers: &[PackedLayer],
        store: &Store,
        lease: &Lease,
        progress: ProgressSink<'_>,
    ) -> Result<Option<Snapshot>, Error> {
        let (journey, told) = Journey::new(self, self.endpoints(reference)?, reference, store, lease);
        let blobs: Vec<Descriptor> = layers.iter().map(|layer| layer.blob.clone()).collect();
        let diff_ids: Vec<DiffId> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let snapshot = forward(journey.layers(&blobs, &diff_ids), told, progress).await?;
        journey.blocking(move |j| j.remember(&blobs, &diff_ids, None)).await?;
        Ok(snapshot)
    }

    /// Brings layers as they are, compressed, from the repository of `reference` into the store: for an archive that takes
    /// them so. Each is checked against its digest.
    ///
    /// # Errors
    /// A layer that is not there or is not what it should be; those of the store.
    pub async fn bring_packed(
        &self,
        reference: &Reference,
        layers: &[Descriptor],
        store: &Store,
        lease: &Lease,
        progress: ProgressSink<'_>,
    ) -> Result<(), Error> {
        let (journey, told) = Journey::new(self, self.endpoints(reference)?, reference, store, lease);
        let work = async {
            for (blob, task) in journey.start(layers, layers.len()).await? {
                task.await.map_err(|e| Error::Options(format!("a task of the pull failed: {e}")))??;
                journey.tell(&blob, Stage::PullComplete);
            }
            Ok(())
        };
        forward(work, told, progress).await
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
    told: mpsc::UnboundedSender<Progress>,
}

impl Journey {
    fn new(
        client: &Client,
        endpoints: Vec<Endpoint>,
        reference: &Reference,
        store: &Store,
        lease: &Lease,
    ) -> (Journey, mpsc::UnboundedReceiver<Progress>) {
        let (told, receiver) = mpsc::unbounded_channel();
        let (client, reference, store, lease) = (client.clone(), reference.clone(), store.clone(), lease.clone());
        (Journey { client, endpoints: endpoints.into(), reference, store, lease, told }, receiver)
    }

    fn tell(&self, blob: &Digest, stage: Stage) {
        // Nobody listens any more when the pull was given up.
        drop(self.told.send(Progress::of(blob, stage)));
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

    /// Brings down and unpacks what is missing, all layers side by side, and stacks them from the lowest up.
    async fn layers(&self, layers: &[Descriptor], diff_ids: &[DiffId]) -> Result<Option<Snapshot>, Error> {
        let diffs = diff_ids.to_vec();
        let ids = diffs.clone();
        let (done, mut parent) = self.blocking(move |j| j.store.layers().deepest(&ids, &j.lease)).await?;
        let mut coming = self.start(layers, done).await?;
        let mut chain = None;
        for (at, (blob, diff)) in layers.iter().zip(diffs).enumerate() {
            let task = coming.remove(&blob.digest);
            let untouched = task.is_none() && at < done;
            let came = match task {
                Some(task) => task.await.map_err(|e| Error::Options(format!("a task of the pull failed: {e}")))??,
                None => None,
            };
            let next = next_chain(chain.take(), &diff);
            chain = Some(next.clone());
            if at >= done {
                self.tell(&blob.digest, Stage::Extracting);
                let (blob, below) = (blob.clone(), parent.take());
                parent = Some(self.blocking(move |j| j.stack(&blob, came, &diff, &next, below)).await?);
            }
            if !untouched {
                self.tell(&blob.digest, Stage::PullComplete);
            }
        }
        Ok(parent)
    }

    /// Starts the work on every blob that is missing or not unpacked, the lowest first, a bounded number at once.
    async fn start(&self, layers: &[Descriptor], done: usize) -> Result<HashMap<Digest, Coming>, Error> {
        let slots = Arc::new(Semaphore::new(self.client.parallel()));
        let mut coming: HashMap<Digest, Coming> = HashMap::new();
        let mut seen = HashSet::new();
        for (at, blob) in layers.iter().enumerate() {
            if !seen.insert(&blob.digest) {
                continue;
            }
            let digest = blob.digest.clone();
            let here = self.blocking(move |j| j.store.blobs().hold(&digest, &j.lease)).await?;
            let unpack = layers.iter().enumerate().any(|(i, l)| i >= done && l.digest == blob.digest);
            if here && !unpack {
                self.tell(&blob.digest, Stage::AlreadyExists);
                continue;
            }
            if here && at < done {
                continue;
            }
            self.tell(&blob.digest, if here { Stage::DownloadComplete } else { Stage::PullingLayer });
            let (this, wanted, slots) = (self.clone(), blob.clone(), slots.clone());
            let task = tokio::spawn(async move {
                let _slot = slots.acquire_owned().await;
                match here {
                    true => this.blocking(move |j| j.stage(&wanted).map(Some)).await,
                    false => this.download(&wanted, unpack).await,
                }
            });
            coming.insert(blob.digest.clone(), AbortOnDropHandle::new(task));
        }
        Ok(coming)
    }

    async fn download(&self, blob: &Descriptor, unpack: bool) -> Result<Option<Staged>, Error> {
        let staged = match self.download_once(blob, unpack).await {
            // Pieces that do not fit together: a registry that is wrong about ranges. Once more in one go.
            Err((Error::Store(StoreError::WrongDigest { .. }), true)) => self.download_once(blob, unpack).await,
            other => other,
        };
        let staged = staged.map_err(|(error, _)| error)?;
        self.tell(&blob.digest, Stage::DownloadComplete);
        Ok(staged)
    }

    /// One download; with an error goes whether the bytes came in several pieces.
    async fn download_once(&self, blob: &Descriptor, unpack: bool) -> Result<Option<Staged>, (Error, bool)> {
        let mut download = Download::new(self.client.clone(), self.endpoints.to_vec(), &self.reference, blob);
        let (pieces, incoming) = mpsc::channel::<Bytes>(16);
        let (this, wanted) = (self.clone(), blob.clone());
        let taker = tokio::task::spawn_blocking(move || this.take(&wanted, unpack, incoming));
        let mut received = 0;
        let failed = loop {
            match download.chunk().await {
                Ok(Some(chunk)) => {
                    received += chunk.len() as u64;
                    if pieces.send(chunk).await.is_err() {
                        break None; // the taker has an error to tell
                    }
                    let progress = Progress::of(&blob.digest, Stage::Downloading).amount(received, Some(blob.size));
                    drop(self.told.send(progress));
                }
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        drop(pieces);
        let cut = download.was_cut();
        let taken = taker.await.map_err(|e| (Error::Options(format!("a task of the pull failed: {e}")), cut))?;
        match failed {
            Some(error) => Err((error, cut)),
            None => taken.map_err(|e| (e.into(), cut)),
        }
    }

    /// Writes what comes into a blob and, if asked for, unpacks it in the same pass. The blob is known, and the unpacked
    /// layer handed out, only when the digest is right.
    fn take(
        &self,
        blob: &Descriptor,
        unpack: bool,
        incoming: mpsc::Receiver<Bytes>,
    ) -> Result<Option<Staged>, StoreError> {
        let failed = |e| StoreError::io(format!("writing blob {}", blob.digest), e);
        let mut writer = self.store.blobs().writer_for(&blob.digest, &self.lease)?;
        writer.reserve(blob.size)?;
        let mut tee = Tee { incoming, piece: Bytes::new(), writer: &mut writer };
        let staged = unpack.then(|| self.store.layers().stage(&mut tee, &self.lease));
        // What the archive reader left, or all of it. That a layer cannot be unpacked may be because its bytes are
        // wrong: then that is the thing to say.
        io::copy(&mut tee, &mut io::sink()).map_err(failed)?;
        writer.commit(Some(&blob.digest), Some(blob.size))?;
        staged.transpose()
    }

    fn stage(&self, blob: &Descriptor) -> Result<Staged, StoreError> {
        self.store.layers().stage(self.store.blobs().reader(&blob.digest)?, &self.lease)
    }

    fn stack(
        &self,
        blob: &Descriptor,
        staged: Option<Staged>,
        diff: &DiffId,
        chain: &ChainId,
        parent: Option<Snapshot>,
    ) -> Result<Snapshot, StoreError> {
        if let Some(made_meanwhile) = self.store.snapshots().by_chain_id(chain, &self.lease)? {
            return Ok(made_meanwhile);
        }
        let staged = match staged {
            Some(staged) => staged,
            None => self.stage(blob)?, // the same layer for the second time
        };
        staged.expect(diff)?;
        self.store.layers().stack(staged, parent.as_ref())
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
        self.remember_image(resolved)?;
        let image = NewImage { target: resolved.target.descriptor.clone(), config: config.clone(), names };
        self.store.images().put(&image, &self.lease)
    }

    fn remember_image(&self, resolved: &Resolved) -> Result<(), StoreError> {
        let config = &resolved.manifest.config.digest;
        self.remember(&resolved.manifest.layers, &resolved.config.rootfs.diff_ids, Some(config))
    }

    /// Writes down what the layers' blobs are and where they can be had.
    fn remember(&self, layers: &[Descriptor], diff_ids: &[DiffId], config: Option<&Digest>) -> Result<(), StoreError> {
        for (blob, diff) in layers.iter().zip(diff_ids) {
            if blob.digest != diff.0 {
                self.store.layers().note_blob(diff, blob, "")?;
            }
        }
        let blobs: Vec<Digest> = layers.iter().map(|layer| &layer.digest).chain(config).cloned().collect();
        ledger::remember_origins(&self.store, &blobs, self.reference.registry(), self.reference.repository())
    }
}

type Coming = AbortOnDropHandle<Result<Option<Staged>, Error>>;

fn next_chain(below: Option<ChainId>, diff: &DiffId) -> ChainId {
    match below {
        Some(below) => below.then(diff),
        None => ChainId(diff.0.clone()),
    }
}

/// Reads what comes and writes it into a blob on the way.
struct Tee<'a> {
    incoming: mpsc::Receiver<Bytes>,
    piece: Bytes,
    writer: &'a mut BlobWriter,
}

impl Read for Tee<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        while self.piece.is_empty() {
            match self.incoming.blocking_recv() {
                Some(piece) => {
                    self.writer.write_all(&piece)?;
                    self.piece = piece;
                }
                None => return Ok(0),
            }
        }
        let len = self.piece.len().min(out.len());
        out[..len].copy_from_slice(&self.piece.split_to(len));
        Ok(len)
    }
}
