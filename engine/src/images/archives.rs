//! Images in and out of archives.

use std::io::{Read, Write};

use rbuild_oci::{Descriptor, HistoryEntry, ImageConfig, ImageId, Platform, Reference};
use rbuild_store::{ImageRecord, Lease, NewImage, StoreError, archive};
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
    /// Lines of a Dockerfile that change the configuration.
    pub changes: Vec<String>,
}

impl Images {
    /// Takes in the images of an archive: docker's in any of its forms or an OCI layout, compressed or not. `progress` is
    /// told how many bytes were read. With a platform, of images for several only that one is kept.
    ///
    /// # Errors
    /// What is wrong with the archive; then nothing of it stays. An image that is not for the platform.
    pub fn load(
        &self,
        archive: impl Read + Send,
        platform: Option<&Platform>,
        progress: &dyn Fn(u64),
    ) -> Result<Vec<Loaded>, Error> {
        let lease = self.store.lease("load")?;
        let mut loaded = archive::load(archive, &self.store, &lease, progress)?;
        if let Some(platform) = platform {
            for one in &mut loaded {
                one.record = self.only(&one.record, &one.names, platform, &lease)?;
            }
        }
        for one in &loaded {
            let id = one.record.id.0.to_string();
            self.tell("load", &id, &one.names.first().map_or_else(|| id.clone(), Reference::familiar));
        }
        Ok(loaded.into_iter().map(|one| Loaded { id: one.record.id, names: one.names }).collect())
    }

    /// Reduces an image to what it is for one platform.
    fn only(
        &self,
        record: &ImageRecord,
        names: &[Reference],
        platform: &Platform,
        lease: &Lease,
    ) -> Result<ImageRecord, Error> {
        let chosen = match self.store.images().manifest(record, platform) {
            Ok((manifest, config, target)) if config.platform().matches(platform) => (manifest, config, target),
            Ok(_) | Err(StoreError::NoPlatform { .. }) => {
                self.store.images().remove(&record.target.digest, true)?;
                let name = names.first().map_or_else(|| record.id.0.to_string(), Reference::familiar);
                return Err(Error::not_found(format!(
                    "image {name} of the archive is not for the platform {platform}"
                )));
            }
            Err(error) => return Err(error.into()),
        };
        let (manifest, config, target) = chosen;
        if target.digest == record.target.digest {
            return Ok(record.clone());
        }
        self.store.layers().unpack(&manifest, &config, lease)?;
        let target = Descriptor::new(target.media_type, target.digest, target.size);
        let image = NewImage { target, config: manifest.config.digest, names: names.to_vec() };
        let only = self.store.images().put(&image, lease)?;
        self.store.images().remove(&record.target.digest, true)?;
        Ok(only)
    }

    /// Writes images as one archive, which docker's tools and OCI's both read. A name without a tag means all its tags.
    /// Without a platform, an image for several that is here whole is written whole.
    ///
    /// # Errors
    /// No such image, or it is not here for the platform; the archive cannot be written.
    pub fn save(&self, names: &[String], platform: Option<&Platform>, out: &mut dyn Write) -> Result<(), Error> {
        let mut images = archive::select(&self.store, names)?;
        if let Some(platform) = platform {
            for image in &mut images {
                let name = image.names.first().map_or_else(|| image.record.id.0.to_string(), Reference::familiar);
                self.get_for(&name, platform)?;
                image.platform = Some(platform.clone());
            }
        }
        for image in &mut images {
            image.names.retain(|name| name.digest().is_none());
        }
        archive::save(&images, &self.store, out)?;
        for image in &images {
            let id = image.record.id.0.to_string();
            self.tell("save", &id, &image.names.first().map_or_else(|| id.clone(), Reference::familiar));
        }
        Ok(())
    }

    /// As [`Images::import`], from a web server, unpacked while it comes.
    ///
    /// # Errors
    /// Those of the server, and of [`Images::import`].
    pub async fn import_from(&self, url: &str, request: &ImportRequest) -> Result<ImageId, Error> {
        let mut web = self.registry.open_web(url).await?;
        let (sender, incoming) = Incoming::new();
        let (images, request) = (self.clone(), request.clone());
        let importing = tokio::task::spawn_blocking(move || images.import(incoming, &request));
        loop {
            let piece = match web.chunk().await {
                Ok(None) => break,
                Ok(Some(piece)) => Ok(piece),
                // The reader must not take the end for the archive's.
                Err(error) => Err(std::io::Error::other(error.to_string())),
            };
            let last = piece.is_err();
            if sender.send(piece).await.is_err() || last {
                break;
            }
        }
        drop(sender);
        importing.await.map_err(Error::internal)?
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
        config.config = rbuild_frontend::change(&config.config, &request.changes).map_err(|problems| {
            let told: Vec<String> = problems.into_iter().map(|problem| problem.message).collect();
            Error::invalid(told.join("; "))
        })?;
        config.history.push(HistoryEntry { created, comment: request.message.clone(), ..HistoryEntry::default() });
        let lease = self.store.lease("import")?;
        let names = request.name.iter().cloned().collect();
        let id = archive::import(archive, config, names, &self.store, &lease)?.id;
        let name = request.name.as_ref().map_or_else(|| id.0.to_string(), Reference::familiar);
        self.tell("import", &id.0.to_string(), &name);
        Ok(id)
    }
}

/// What comes from a task, to be read on a thread.
pub(super) struct Incoming {
    incoming: tokio::sync::mpsc::Receiver<std::io::Result<bytes::Bytes>>,
    piece: bytes::Bytes,
}

impl Incoming {
    /// The reader, and where what it reads is put in. It waits while a few pieces lie there.
    pub(super) fn new() -> (tokio::sync::mpsc::Sender<std::io::Result<bytes::Bytes>>, Incoming) {
        let (sender, incoming) = tokio::sync::mpsc::channel(16);
        (sender, Incoming { incoming, piece: bytes::Bytes::new() })
    }
}

impl Read for Incoming {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        while self.piece.is_empty() && !out.is_empty() {
            match self.incoming.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let len = self.piece.len().min(out.len());
        out[..len].copy_from_slice(&self.piece.split_to(len));
        Ok(len)
    }
}
