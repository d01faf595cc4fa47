//! Images in and out of archives.

use std::io::{Read, Write};

use rbuild_oci::{HistoryEntry, ImageConfig, ImageId, Platform, Reference};
use rbuild_store::archive;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Images;
use crate::error::Error;

/// An image that an archive brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    pub id: ImageId,
    /// The names the archive gave it.
    pub names: Vec<Reference>,
}

/// What to make of an archive of a file system.
#[derive(Debug, Clone)]
pub struct ImportRequest {
    /// The name of the image, if it is to have one.
    pub name: Option<Reference>,
    /// What its history says about it; the name of the archive when nothing was said.
    pub message: String,
    pub platform: Platform,
    pub created: std::time::SystemTime,
}

impl Images {
    /// Takes in the images of an archive: docker's in any of its forms or an OCI layout, compressed or not. `progress` is
    /// told how many bytes were read.
    ///
    /// # Errors
    /// What is wrong with the archive; then nothing of it stays.
    pub fn load(&self, archive: impl Read + Send, progress: &dyn Fn(u64)) -> Result<Vec<Loaded>, Error> {
        let lease = self.store.lease("load")?;
        let loaded = archive::load(archive, &self.store, &lease, progress)?;
        Ok(loaded.into_iter().map(|one| Loaded { id: one.record.id, names: one.names }).collect())
    }

    /// Writes images as one archive, which docker's tools and OCI's both read. A name without a tag means all its tags.
    ///
    /// # Errors
    /// No such image; the archive cannot be written.
    pub fn save(&self, names: &[String], out: &mut dyn Write) -> Result<(), Error> {
        let mut images = archive::select(&self.store, names)?;
        for image in &mut images {
            image.names.retain(|name| name.digest().is_none());
        }
        Ok(archive::save(&images, &self.store, out)?)
    }

    /// Makes an image of one layer from an archive of a file system.
    ///
    /// # Errors
    /// What is wrong with the archive.
    pub fn import(&self, archive: impl Read + Send, request: &ImportRequest) -> Result<ImageId, Error> {
        let created = OffsetDateTime::from(request.created).format(&Rfc3339).ok();
        let mut config = ImageConfig {
            architecture: request.platform.architecture.clone(),
            os: request.platform.os.clone(),
            variant: request.platform.variant.clone().unwrap_or_default(),
            created: created.clone(),
            ..ImageConfig::default()
        };
        config.history.push(HistoryEntry { created, comment: request.message.clone(), ..HistoryEntry::default() });
        let lease = self.store.lease("import")?;
        let names = request.name.iter().cloned().collect();
        Ok(archive::import(archive, config, names, &self.store, &lease)?.id)
    }
}
