//! An image by its platforms.

use rbuild_oci::{Digest, Document, ImageConfig, ImageId, Manifest, Platform, limits};
use rbuild_store::StoreError;

use super::{Image, Images};
use crate::error::Error;

/// What an image is for one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variant {
    pub platform: Platform,
    /// Of its manifest.
    pub digest: Digest,
    /// Bytes of its files, and of its layers as they travel; `None` when it is not in the store.
    pub sizes: Option<(u64, u64)>,
}

impl Images {
    /// The platforms of an image in the order of its index; a single one for an image that has none.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn variants(&self, image: &Image) -> Result<Vec<Variant>, Error> {
        let Some(target) = image.targets.first() else { return Ok(Vec::new()) };
        let read = |digest: &Digest, limit| self.store.blobs().read(digest, limit);
        let bytes = read(&target.digest, limits::INDEX)?;
        let index = match Document::parse(&bytes, Some(&target.media_type)).map_err(StoreError::from)? {
            Document::Manifest(manifest) => {
                let sizes = Some((self.size(image)?, travels(&manifest)));
                return Ok(vec![Variant { platform: image.config.platform(), digest: target.digest.clone(), sizes }]);
            }
            Document::Index(index) => index,
        };
        let mut variants = Vec::new();
        for child in index.manifests.iter().filter(|child| !child.is_attestation()) {
            let Some(platform) = child.platform.clone() else { continue };
            let digest = child.digest.clone();
            let sizes = match self.store.blobs().has(&digest)? {
                false => None,
                true => match Document::parse(&read(&digest, limits::MANIFEST)?, Some(&child.media_type)) {
                    Ok(Document::Manifest(manifest)) if self.store.blobs().has(&manifest.config.digest)? => {
                        let config = read(&manifest.config.digest, limits::CONFIG)?;
                        let config = ImageConfig::parse(&config).map_err(StoreError::from)?;
                        let id = ImageId(manifest.config.digest.clone());
                        let one = Image { id, config, targets: vec![child.clone()], ..image.clone() };
                        Some((self.size(&one)?, travels(&manifest)))
                    }
                    _ => None,
                },
            };
            variants.push(Variant { platform, digest, sizes });
        }
        Ok(variants)
    }
}

fn travels(manifest: &Manifest) -> u64 {
    manifest.layers.iter().map(|layer| layer.size).sum::<u64>().saturating_add(manifest.config.size)
}
