//! Base images: the local store first, else a registry.
//!
//! A name is resolved once per build. What was resolved is what the graph names and what is unpacked, so a tag that
//! moves meanwhile changes nothing. Only a manifest and a config travel before the build knows that it needs more.

use std::collections::HashMap;

use futures::FutureExt;
use futures::future::BoxFuture;
use rbuild_executor::{ExecutorError, Images, PinnedImage};
use rbuild_frontend::ImageFact;
use rbuild_graph::ops::ImageSource;
use rbuild_oci::{Descriptor, Digest, Document, ImageConfig, Manifest, Platform, Reference, limits};
use rbuild_registry::Resolved;
use rbuild_solver::{RunContext, Unit};
use rbuild_store::{Lease, Snapshot, StoreError};
use tokio::sync::Mutex;

use crate::engine::Engine;
use crate::error::{Error, Kind};

/// The base images of one build.
pub(crate) struct BaseImages {
    engine: Engine,
    lease: Lease,
    /// Ask the registry even if the store has the name.
    pull: bool,
    /// Images of this build alone, with the manifests that were brought here.
    lent: LentImages,
    known: Mutex<HashMap<(Reference, Platform), Known>>,
}

/// Images that the caller lends, by the names the build gives them.
pub(crate) type LentImages = HashMap<Reference, Vec<(Platform, Descriptor)>>;

#[derive(Clone)]
struct Known {
    /// What the name stands for: a manifest or an index.
    digest: Digest,
    manifest: Manifest,
    config: ImageConfig,
    /// As a registry answered; `None` when all of it is in the store.
    remote: Option<Box<Resolved>>,
}

impl BaseImages {
    pub(crate) fn new(engine: Engine, lease: Lease, pull: bool, lent: LentImages) -> BaseImages {
        BaseImages { engine, lease, pull, lent, known: Mutex::new(HashMap::new()) }
    }

    /// What the frontend wants to know about an image.
    pub(crate) async fn fact(&self, reference: &Reference, platform: &Platform) -> Result<ImageFact, Error> {
        let known = self.find(reference, platform).await?;
        Ok(ImageFact { digest: known.digest, config: known.config, pinned: true })
    }

    /// The layers of a resolved image as its manifest has them.
    pub(crate) async fn layers(&self, reference: &Reference, platform: &Platform) -> Result<Vec<Descriptor>, Error> {
        Ok(self.find(reference, platform).await?.manifest.layers)
    }

    async fn find(&self, reference: &Reference, platform: &Platform) -> Result<Known, Error> {
        let key = (reference.clone(), platform.clone());
        if let Some(known) = self.known.lock().await.get(&key) {
            return Ok(known.clone());
        }
        let lent = self.lent.get(reference).map(|images| self.lent(reference, images, platform)).transpose()?;
        let found = match lent.map_or_else(|| self.local(reference, platform), |lent| Ok(Some(lent)))? {
            Some(found) if !self.pull || self.lent.contains_key(reference) => found,
            local => match self.remote(reference, platform).await {
                Ok(found) => found,
                // `--pull` of an image that exists nowhere but here: what is here is the newest.
                Err(error) if error.kind == Kind::NotFound && local.is_some() => {
                    local.ok_or_else(|| Error::internal("an image vanished"))?
                }
                Err(error) => return Err(error),
            },
        };
        self.known.lock().await.insert(key, found.clone());
        Ok(found)
    }

    fn lent(
        &self,
        reference: &Reference,
        images: &[(Platform, Descriptor)],
        platform: &Platform,
    ) -> Result<Known, Error> {
        let best = images.iter().filter_map(|(of, manifest)| Some((of.rank_for(platform)?, manifest)));
        let Some((_, best)) = best.min_by_key(|(rank, _)| *rank) else {
            let name = reference.familiar_name();
            return Err(Error::not_found(format!("the build context {name} has no image for {platform}")));
        };
        let blobs = self.engine.store().blobs();
        let bytes = blobs.read(&best.digest, limits::MANIFEST)?;
        let Document::Manifest(manifest) =
            Document::parse(&bytes, Some(&best.media_type)).map_err(|error| Error::invalid(error.to_string()))?
        else {
            return Err(Error::internal("a manifest is an index"));
        };
        let config = blobs.read(&manifest.config.digest, limits::CONFIG)?;
        let config = ImageConfig::parse(&config).map_err(|error| Error::invalid(error.to_string()))?;
        Ok(Known { digest: best.digest.clone(), manifest, config, remote: None })
    }

    fn local(&self, reference: &Reference, platform: &Platform) -> Result<Option<Known>, Error> {
        let images = self.engine.store().images();
        let Some(record) = images.get(reference)? else { return Ok(None) };
        match images.manifest(&record, platform) {
            Ok((manifest, config, _)) => {
                Ok(Some(Known { digest: record.target.digest.clone(), manifest, config, remote: None }))
            }
            Err(StoreError::NoPlatform { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn remote(&self, reference: &Reference, platform: &Platform) -> Result<Known, Error> {
        let resolved = self.engine.registry()?.resolve(reference, platform).await.map_err(|error| {
            let mut error = Error::from(error);
            error.message =
                format!("failed to resolve source metadata for {}: {}", reference.canonical(), error.message);
            error
        })?;
        Ok(Known {
            digest: resolved.target.descriptor.digest.clone(),
            manifest: resolved.manifest.clone(),
            config: resolved.config.clone(),
            remote: Some(Box::new(resolved)),
        })
    }

    async fn fetch(
        &self,
        source: &ImageSource,
        known: &Known,
        context: &RunContext,
    ) -> Result<Option<Snapshot>, Error> {
        let store = self.engine.store();
        if let Some(resolved) = &known.remote {
            // The layers may be here under another name.
            if let Some(chain) = known.config.chain_id()
                && let Some(snapshot) = store.snapshots().by_chain_id(&chain, &self.lease)?
            {
                return Ok(Some(snapshot));
            }
            let report = |progress: rbuild_registry::Progress| {
                context.events.send(rbuild_solver::Event::Progress {
                    id: context.step,
                    item: progress.blob.to_string(),
                    current: progress.current,
                    total: progress.total,
                    unit: Unit::Bytes,
                    done: progress.done,
                });
            };
            let registry = self.engine.registry()?;
            return Ok(registry.fetch_layers(&source.reference, resolved, store, &self.lease, &report).await?);
        }
        let (store, lease) = (store.clone(), self.lease.clone());
        let (manifest, config) = (known.manifest.clone(), known.config.clone());
        let unpacked = tokio::task::spawn_blocking(move || store.layers().unpack(&manifest, &config, &lease)).await;
        Ok(unpacked.map_err(Error::internal)??)
    }
}

impl Images for BaseImages {
    fn pin<'a>(&'a self, source: &'a ImageSource) -> BoxFuture<'a, Result<PinnedImage, ExecutorError>> {
        async move {
            let known =
                self.find(&source.reference, &source.platform).await.map_err(|error| failure(source, &error))?;
            Ok(PinnedImage { manifest: known.digest, chain: known.config.chain_id() })
        }
        .boxed()
    }

    fn unpack<'a>(
        &'a self,
        source: &'a ImageSource,
        _lease: &'a Lease,
        context: &'a RunContext,
    ) -> BoxFuture<'a, Result<Option<Snapshot>, ExecutorError>> {
        async move {
            let known =
                self.find(&source.reference, &source.platform).await.map_err(|error| failure(source, &error))?;
            self.fetch(source, &known, context).await.map_err(|error| failure(source, &error))
        }
        .boxed()
    }
}

fn failure(source: &ImageSource, error: &Error) -> ExecutorError {
    ExecutorError::Image { reference: source.reference.familiar(), message: error.message.clone() }
}
