//! Tags taken away.
//!
//! Removing a manifest by its digest takes away every tag that leads to it, also one that is somebody else's. So the tag
//! itself is removed where the registry can (the specification's way, which older registries do not know). Elsewhere the
//! tag is first made to lead to a manifest of its own, which nobody else can have, and that is removed.

use rbuild_oci::{Descriptor, Digest, Manifest, MediaType, Reference};
use reqwest::{Method, StatusCode};

use crate::Error;
use crate::auth::Scope;
use crate::client::{Client, failure};
use crate::upload::{Content, Destination, Named};

/// What a registry without removal answers to one: refused as a method, or as something it does not know.
const CANNOT: [StatusCode; 4] = [
    StatusCode::BAD_REQUEST,
    StatusCode::METHOD_NOT_ALLOWED,
    StatusCode::UNSUPPORTED_MEDIA_TYPE,
    StatusCode::NOT_IMPLEMENTED,
];
const EMPTY: &[u8] = b"{}";

impl Client {
    /// Takes the tag of `reference` away and nothing else. What it led to stays until the registry collects it. A tag that
    /// is not there is as good as one removed.
    ///
    /// # Errors
    /// The registry does not remove anything, or not for this user.
    pub async fn remove_tag(&self, reference: &Reference) -> Result<(), Error> {
        let tag = reference.tag().ok_or_else(|| Error::Options(format!("{} has no tag", reference.familiar())))?;
        let destination = self.destination(reference).await?;
        match destination.remove(tag).await {
            Err(Refusal::Cannot(_)) => {}
            Err(Refusal::Other(error)) => return Err(error),
            Ok(()) => return Ok(()),
        }
        // Whether it removes by digest is asked before anything is changed: of a manifest that nobody has.
        let nobodys = Digest::sha256_of(format!("not the manifest of {tag}").as_bytes());
        destination.remove(&nobodys.to_string()).await.map_err(Refusal::into_error)?;
        let own = destination.own_manifest(tag).await?;
        destination.remove(&own.to_string()).await.map_err(Refusal::into_error)
    }
}

enum Refusal {
    /// This registry does not do that.
    Cannot(Error),
    Other(Error),
}

impl Refusal {
    fn into_error(self) -> Error {
        match self {
            Refusal::Cannot(error) | Refusal::Other(error) => error,
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal::Other(error)
    }
}

impl Destination {
    async fn remove(&self, which: &str) -> Result<(), Refusal> {
        let ask = self.access.ask(Method::DELETE, &format!("{}/manifests/{which}", self.repository))?;
        let answer = self.client.call(&self.access, &Scope::delete(&self.repository), &ask).await?;
        match answer.status() {
            status if status.is_success() || status == StatusCode::NOT_FOUND => Ok(()),
            status if CANNOT.contains(&status) => Err(Refusal::Cannot(failure(&ask.shown(), answer).await)),
            _ => Err(Refusal::Other(failure(&ask.shown(), answer).await)),
        }
    }

    /// Makes `tag` lead to a manifest that no other tag has.
    async fn own_manifest(&self, tag: &str) -> Result<Digest, Error> {
        let config = Descriptor::new(MediaType::OciConfig, Digest::sha256_of(EMPTY), EMPTY.len() as u64);
        if !self.has(&config.digest).await? {
            let produce = |out: &mut dyn std::io::Write| out.write_all(EMPTY);
            let named = Named::Blob(config.digest.clone(), config.size);
            self.put(&Content { produce: std::sync::Arc::new(produce), named }, None, &|_| {}).await?;
        }
        let mut manifest = Manifest { media_type: Some(MediaType::OciManifest), ..Manifest::new(config, Vec::new()) };
        manifest.annotations.insert("rbuild.removed".to_owned(), format!("{}:{tag}", self.repository));
        let bytes = serde_json::to_vec(&manifest).map_err(|e| Error::Options(format!("writing a manifest: {e}")))?;
        Ok(self.manifest(Some(tag), &MediaType::OciManifest, bytes.into()).await?.digest)
    }
}
