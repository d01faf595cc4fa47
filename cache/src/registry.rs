//! Caches in a repository of a registry.

use futures::FutureExt;
use futures::future::BoxFuture;
use rbuild_oci::{Descriptor, DiffId, Document, ImageConfig, Platform, Reference, limits};
use rbuild_registry::{Client, Error as RegistryError, LayerPacking, LayerSource, PackedLayer, Sending};
use rbuild_store::{Lease, Snapshot, Store};
use serde::Deserialize;
use tokio::sync::OnceCell;

use crate::backend::{Backend, Report, Stored};
use crate::error::Error;
use crate::portable::Written;

/// The type of the document in which BuildKit lists its records.
const BUILDKIT_CONFIG: &str = "application/vnd.buildkit.cacheconfig.v0";

/// A cache under a tag of a repository, and the records beside it.
pub struct RegistryBackend {
    client: Client,
    reference: Reference,
    place: String,
    sending: OnceCell<Sending>,
}

impl RegistryBackend {
    pub fn new(client: Client, reference: Reference) -> RegistryBackend {
        let place = format!("registry:{}", reference.familiar());
        RegistryBackend { client, reference, place, sending: OnceCell::new() }
    }

    fn named(&self, name: &str) -> Result<Reference, Error> {
        Ok(self.reference.without_tag().with_tag(name)?)
    }

    async fn sending(&self, store: &Store, lease: &Lease) -> Result<&Sending, Error> {
        Ok(self.sending.get_or_try_init(|| self.client.sending(&self.reference, store, lease)).await?)
    }

    async fn find(&self, reference: &Reference) -> Result<Option<Stored>, Error> {
        let fetched = match self.client.fetch_manifest(reference).await {
            Err(RegistryError::ManifestNotFound { .. } | RegistryError::RepositoryNotFound { .. }) => return Ok(None),
            fetched => fetched?,
        };
        let manifest = match fetched.document {
            Document::Manifest(manifest) => manifest,
            Document::Index(index) => {
                if index.manifests.iter().any(|entry| entry.media_type.as_str() == BUILDKIT_CONFIG) {
                    return Err(Error::BuildKit(reference.familiar()));
                }
                self.client.resolve(reference, &Platform::host()).await?.manifest
            }
        };
        if manifest.config.media_type.as_str() == BUILDKIT_CONFIG {
            return Err(Error::BuildKit(reference.familiar()));
        }
        let config = self.config_of(reference, &manifest.config).await?;
        Ok(Some(Stored { manifest, config }))
    }

    async fn config_of(&self, reference: &Reference, config: &Descriptor) -> Result<ImageConfig, Error> {
        let what = format!("the config of {}", reference.familiar());
        let bytes = self.client.fetch_blob(reference, config).await?.bytes(limits::CONFIG, &what).await?;
        let parsed = ImageConfig::parse(&bytes)?;
        /// Where BuildKit keeps the records of an image that carries its own.
        #[derive(Deserialize)]
        struct Inline {
            #[serde(rename = "moby.buildkit.cache.v0")]
            cache: Option<serde::de::IgnoredAny>,
        }
        let foreign = serde_json::from_slice::<Inline>(&bytes).is_ok_and(|inline| inline.cache.is_some());
        match foreign && parsed.cache.is_none() {
            true => Err(Error::BuildKit(reference.familiar())),
            false => Ok(parsed),
        }
    }
}

impl Backend for RegistryBackend {
    fn place(&self) -> &str {
        &self.place
    }

    fn base(&self) -> Option<&str> {
        self.reference.tag().filter(|_| self.reference.digest().is_none())
    }

    fn read<'a>(&'a self, name: Option<&'a str>) -> BoxFuture<'a, Result<Option<Stored>, Error>> {
        async move {
            match name {
                Some(name) => self.find(&self.named(name)?).await,
                None => self.find(&self.reference).await,
            }
        }
        .boxed()
    }

    fn names(&self) -> BoxFuture<'_, Result<Vec<String>, Error>> {
        async {
            match self.client.tags(&self.reference).await {
                Err(RegistryError::ManifestNotFound { .. } | RegistryError::RepositoryNotFound { .. }) => {
                    Ok(Vec::new())
                }
                names => Ok(names?),
            }
        }
        .boxed()
    }

    fn config<'a>(&'a self, config: &'a Descriptor) -> BoxFuture<'a, Result<ImageConfig, Error>> {
        self.config_of(&self.reference, config).boxed()
    }

    fn bring<'a>(
        &'a self,
        layers: &'a [PackedLayer],
        store: &'a Store,
        lease: &'a Lease,
        report: Report<'a>,
    ) -> BoxFuture<'a, Result<Option<Snapshot>, Error>> {
        async move {
            let snapshot = self.client.bring_layers(&self.reference, layers, store, lease, report).await?;
            crate::import::date(layers, snapshot.as_ref(), store)?;
            Ok(snapshot)
        }
        .boxed()
    }

    fn bring_packed<'a>(
        &'a self,
        layers: &'a [PackedLayer],
        store: &'a Store,
        lease: &'a Lease,
        report: Report<'a>,
    ) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            let blobs: Vec<Descriptor> = layers.iter().map(|layer| layer.blob.clone()).collect();
            Ok(self.client.bring_packed(&self.reference, &blobs, store, lease, report).await?)
        }
        .boxed()
    }

    fn source(&self, layer: &Descriptor) -> LayerSource {
        self.client.layer_source(&self.reference, layer)
    }

    fn has<'a>(
        &'a self,
        layer: &'a Descriptor,
        origin: &'a str,
        store: &'a Store,
        lease: &'a Lease,
    ) -> BoxFuture<'a, Result<bool, Error>> {
        async move {
            let sending = self.sending(store, lease).await?;
            let origin = origin.strip_prefix("registry:").and_then(|name| Reference::parse(name).ok());
            let near = origin.filter(|origin| origin.registry() == self.reference.registry());
            Ok(sending.has_or_mounts(&layer.digest, near.as_ref().map(Reference::repository)).await?)
        }
        .boxed()
    }

    fn remove<'a>(&'a self, names: &'a [String]) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            for name in names {
                self.client.remove_tag(&self.named(name)?).await?;
            }
            Ok(())
        }
        .boxed()
    }

    fn put_layer<'a>(
        &'a self,
        diff_id: &'a DiffId,
        packing: LayerPacking,
        store: &'a Store,
        lease: &'a Lease,
    ) -> BoxFuture<'a, Result<Descriptor, Error>> {
        async move { Ok(self.sending(store, lease).await?.layer(diff_id, packing).await?) }.boxed()
    }

    fn put<'a>(
        &'a self,
        name: &'a str,
        image: &'a Written,
        store: &'a Store,
        lease: &'a Lease,
    ) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            let sending = self.sending(store, lease).await?;
            sending.bytes(&image.config).await?;
            sending.manifest(name, &image.media_type, image.manifest.clone()).await?;
            Ok(())
        }
        .boxed()
    }
}
