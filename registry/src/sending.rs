//! Layers and documents that go into a repository one by one, not as parts of an image of the store.

use std::io::Write;
use std::sync::Arc;

use rbuild_oci::{Compression, Descriptor, DiffId, Digest, MediaType, Reference};
use rbuild_store::layers::compress::{DEFAULT_LEVEL, made_with};
use rbuild_store::{Lease, Store};
use tokio::sync::mpsc;

use crate::Error;
use crate::client::Client;
use crate::sink::{Push, Pushed};
use crate::upload::{Content, Named};

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
        made_with(self.compression, self.level)
    }

    /// Whether a layer that is known in this form may travel in it.
    pub fn takes(&self, media_type: &MediaType) -> bool {
        match media_type.layer_compression() {
            Some(Compression::None) | None => false,
            Some(how) => how == self.compression || !self.force,
        }
    }
}

/// The way into one repository. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Sending {
    push: Push,
}

impl Client {
    /// The way into the repository of `reference`.
    ///
    /// # Errors
    /// The registry cannot be reached.
    pub async fn sending(&self, reference: &Reference, store: &Store, lease: &Lease) -> Result<Sending, Error> {
        // Nobody listens: what is sent one by one is reported by whoever asks for it.
        let (told, _) = mpsc::unbounded_channel();
        Ok(Sending { push: Push::begin(self, reference, store, lease, told).await? })
    }
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
        let destination = &self.push.destination;
        if !destination.has(&digest).await? {
            let (named, bytes) = (Named::Blob(digest.clone(), bytes.len() as u64), bytes.to_vec());
            let produce = move |out: &mut dyn Write| out.write_all(&bytes);
            let content = Content { produce: Arc::new(produce), named };
            destination.put(&content, None, &|_| {}).await?;
        }
        Ok(digest)
    }

    /// Puts a manifest, whose blobs are there, under a tag.
    ///
    /// # Errors
    /// The registry does not take it.
    pub async fn manifest(&self, tag: &str, kind: &MediaType, bytes: Vec<u8>) -> Result<Pushed, Error> {
        self.push.destination.manifest(Some(tag), kind, bytes.into()).await
    }
}
