//! Indexes made of images that are in registries already.

use std::collections::BTreeMap;

use bytes::Bytes;
use rbuild_oci::{Descriptor, Document, ImageConfig, Index, MediaType, Platform, Reference, limits};

use crate::client::{Client, Fetched};
use crate::{BlobStream, Error};

/// An image that goes into an index: where it is, and its entry.
#[derive(Debug, Clone)]
pub struct Part {
    pub from: Reference,
    pub descriptor: Descriptor,
}

/// A manifest or index to be put somewhere.
#[derive(Debug, Clone)]
pub struct Composed {
    pub media_type: MediaType,
    pub bytes: Bytes,
}

impl Client {
    /// The entries that `fetched` gives to an index: those it has, or itself, with the platform that its config tells.
    ///
    /// # Errors
    /// The config cannot be had.
    pub async fn parts(&self, from: &Reference, fetched: &Fetched) -> Result<Vec<Part>, Error> {
        let part = |descriptor: &Descriptor| Part { from: from.clone(), descriptor: descriptor.clone() };
        match &fetched.document {
            Document::Index(index) => Ok(index.manifests.iter().map(part).collect()),
            Document::Manifest(_) => {
                let mut descriptor = fetched.descriptor.clone();
                descriptor.platform = self.platform_of(from, fetched).await?;
                Ok(vec![part(&descriptor)])
            }
        }
    }

    /// The platform that the config of an image tells; `None` for what is no image.
    ///
    /// # Errors
    /// The config cannot be had or read.
    pub async fn platform_of(&self, from: &Reference, fetched: &Fetched) -> Result<Option<Platform>, Error> {
        Ok(self.config_of(from, fetched).await?.map(|config| config.platform()))
    }

    /// The config of an image; `None` for what is no image.
    ///
    /// # Errors
    /// The config cannot be had or read.
    pub async fn config_of(&self, from: &Reference, fetched: &Fetched) -> Result<Option<ImageConfig>, Error> {
        let Document::Manifest(manifest) = &fetched.document else { return Ok(None) };
        if !manifest.config.media_type.is_config() {
            return Ok(None);
        }
        let what = format!("the config of {}", from.familiar());
        let blob: BlobStream = self.fetch_blob(from, &manifest.config).await?;
        let bytes = blob.bytes(limits::CONFIG, &what).await?;
        Ok(Some(ImageConfig::parse(&bytes)?))
    }
}

/// An index of `parts`: docker's manifest list when all of them are docker's, OCI's otherwise. Of parts that are the same
/// manifest for the same platform the last one counts.
///
/// # Errors
/// Annotations cannot stand in docker's list.
pub fn compose(parts: &[Part], annotations: BTreeMap<String, String>) -> Result<Composed, Error> {
    let mut entries: Vec<Descriptor> = Vec::new();
    for part in parts {
        let same =
            |entry: &Descriptor| entry.digest == part.descriptor.digest && entry.platform == part.descriptor.platform;
        entries.retain(|entry| !same(entry));
        entries.push(part.descriptor.clone());
    }
    let docker = !entries.is_empty()
        && annotations.is_empty()
        && entries.iter().all(|entry| entry.media_type == MediaType::DockerManifest && entry.annotations.is_empty());
    let media_type = if docker { MediaType::DockerManifestList } else { MediaType::OciIndex };
    let index = Index { media_type: Some(media_type.clone()), annotations, ..Index::new(entries) };
    let bytes = serde_json::to_vec_pretty(&index).map_err(|e| Error::Options(format!("writing the index: {e}")))?;
    if bytes.len() as u64 > limits::INDEX {
        return Err(Error::TooLarge { what: "the index".into(), limit: limits::INDEX });
    }
    Ok(Composed { media_type, bytes: bytes.into() })
}
