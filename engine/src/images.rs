//! Images: what there is, what it is called, and its ways in and out.
//!
//! The store keeps manifests and names; people think in image ids. The same image may be here as several manifests (as
//! it was built, and as it came back from a registry with compressed layers); whoever lists or removes it means all of
//! them. [`Images`] is where these two views meet. Listings print nothing: rows, in docker's order, are for the faces.

mod archives;
mod compare;
mod copy;
mod filter;
mod remove;
mod sizes;
mod variants;

use std::time::SystemTime;

use rbuild_oci::{Descriptor, ImageConfig, ImageId, Platform, Reference};
use rbuild_registry::{Client, ProgressSink, Pulled, Pushed};
use rbuild_store::{Event, EventKind, ImageRecord, Store, StoreError};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::engine::Engine;
use crate::error::{Error, Kind};

pub use archives::{ImportRequest, Loaded};
pub use compare::{Difference, DifferenceKind};
pub use copy::{CopiedImage, Named, Place, split_path};
pub use filter::ImageFilter;
pub use rbuild_store::Removed;
pub use remove::Pruned;
pub use variants::Variant;

/// The images of an engine.
#[derive(Clone)]
pub struct Images {
    store: Store,
    registry: Client,
}

/// An image as people see it.
#[derive(Debug, Clone)]
pub struct Image {
    pub id: ImageId,
    /// Names with a tag.
    pub tags: Vec<Reference>,
    /// Names with a digest: where registries have it.
    pub digests: Vec<Reference>,
    /// When it was made, as its config says.
    pub created: Option<SystemTime>,
    /// When it came into this store.
    pub made_here: SystemTime,
    pub config: ImageConfig,
    /// The manifests or indexes that are this image, the preferred one first.
    pub targets: Vec<Descriptor>,
}

/// One step of an image's history, the newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryStep {
    /// The image, for its last step only: what steps in between were is not kept.
    pub id: Option<ImageId>,
    pub created: Option<SystemTime>,
    pub created_by: String,
    pub comment: String,
    /// Bytes of the files of its layer.
    pub size: u64,
    pub tags: Vec<Reference>,
}

impl Engine {
    /// Its images.
    ///
    /// # Errors
    /// The options make no client for registries.
    pub fn images(&self) -> Result<Images, Error> {
        Ok(Images::new(self.store().clone(), self.registry()?.clone()))
    }
}

impl Images {
    pub fn new(store: Store, registry: Client) -> Images {
        Images { store, registry }
    }

    /// The name of the driver that keeps their file trees.
    pub fn driver(&self) -> String {
        self.store.driver().to_string()
    }

    /// The images that `filter` lets through, the newest here first.
    ///
    /// # Errors
    /// A filter names an image that is not there.
    pub fn list(&self, filter: &ImageFilter) -> Result<Vec<Image>, Error> {
        let limits = filter.limits(self)?;
        let mut images = group(self.store.images().list()?);
        images.retain_mut(|image| limits.take(image));
        Ok(images)
    }

    /// The image that somebody means by a name, a name with a digest, an id or the beginning of one.
    ///
    /// # Errors
    /// [`Kind::NotFound`], or the beginning of several ids.
    pub fn get(&self, name: &str) -> Result<Image, Error> {
        let record = self.store.images().resolve(name)?;
        self.whole(record)
    }

    /// The same as it is for one platform.
    ///
    /// # Errors
    /// As [`Images::get`], or the image is not here for that platform.
    pub fn get_for(&self, name: &str, platform: &Platform) -> Result<Image, Error> {
        let image = self.get(name)?;
        let record = self.store.images().by_target(&image.targets[0].digest)?;
        let record = record.ok_or_else(|| Error::not_found(format!("No such image: {name}")))?;
        match self.store.images().manifest(&record, platform) {
            Ok((manifest, config, descriptor)) if config.platform().matches(platform) => {
                let created = config.created.as_deref().and_then(parse_time);
                Ok(Image { id: ImageId(manifest.config.digest), config, created, targets: vec![descriptor], ..image })
            }
            Ok(_) | Err(StoreError::NoPlatform { .. }) => Err(Error::not_found(format!(
                "image with reference {name} was found but does not provide the specified platform ({platform})"
            ))),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives an image another name, which leaves the image that had it.
    ///
    /// # Errors
    /// No such image; a name with a digest.
    pub fn tag(&self, source: &str, name: &Reference) -> Result<(), Error> {
        if name.digest().is_some() {
            return Err(Error::invalid("refusing to create a tag with a digest reference"));
        }
        let record = self.store.images().resolve(source)?;
        self.store.images().tag(&record.target.digest, name)?;
        self.tell("tag", &record.id.0.to_string(), &name.familiar());
        Ok(())
    }

    /// Notes that something happened to an image, of which `id` is its id or, as with docker, the name.
    fn tell(&self, action: &str, id: &str, name: &str) {
        self.store.events().note(&Event::new(EventKind::Image, action, id).with("name", name));
    }

    /// The steps that made an image, the newest first; the one of a platform, where one is named.
    ///
    /// # Errors
    /// No such image.
    pub fn history(&self, name: &str, platform: Option<&Platform>) -> Result<Vec<HistoryStep>, Error> {
        let image = match platform {
            Some(platform) => self.get_for(name, platform)?,
            None => self.get(name)?,
        };
        let mut sizes = self.layer_sizes(&image)?.into_iter();
        let mut steps: Vec<HistoryStep> = image
            .config
            .history
            .iter()
            .map(|entry| HistoryStep {
                id: None,
                created: entry.created.as_deref().and_then(parse_time),
                created_by: entry.created_by.clone(),
                comment: entry.comment.clone(),
                size: if entry.empty_layer { 0 } else { sizes.next().unwrap_or(0) },
                tags: Vec::new(),
            })
            .collect();
        // Layers that no entry tells of.
        steps.extend(sizes.map(|size| HistoryStep {
            id: None,
            created: None,
            created_by: String::new(),
            comment: String::new(),
            size,
            tags: Vec::new(),
        }));
        steps.reverse();
        if let Some(last) = steps.first_mut() {
            last.id = Some(image.id);
            last.tags = image.tags;
        }
        Ok(steps)
    }

    /// Brings an image from its registry and names it.
    ///
    /// # Errors
    /// The registry's, in its words; then nothing changed here.
    pub async fn pull(
        &self,
        reference: &Reference,
        platform: &Platform,
        progress: ProgressSink<'_>,
    ) -> Result<Pulled, Error> {
        let lease = self.store.lease(&format!("pull of {}", reference.familiar()))?;
        let pulled = self.registry.pull(reference, platform, &self.store, &lease, progress).await?;
        self.tell("pull", &reference.familiar(), &reference.familiar());
        Ok(pulled)
    }

    /// The tags that a repository has in its registry.
    ///
    /// # Errors
    /// The registry's.
    pub async fn remote_tags(&self, repository: &Reference) -> Result<Vec<String>, Error> {
        Ok(self.registry.tags(repository).await?)
    }

    /// The names that a repository has here.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn local_tags(&self, repository: &Reference) -> Result<Vec<Reference>, Error> {
        let wanted = repository.without_tag();
        let mut tags: Vec<Reference> = self.store.images().list()?.into_iter().flat_map(|i| i.names).collect();
        tags.retain(|name| name.digest().is_none() && name.without_tag() == wanted);
        tags.sort_by_key(Reference::canonical);
        Ok(tags)
    }

    /// Sends the image of this name to its registry (all platforms that are here, unless one is named), and notes the digest it has there.
    ///
    /// # Errors
    /// No image of this name; the registry's, in its words.
    pub async fn push(
        &self,
        reference: &Reference,
        platform: Option<&Platform>,
        progress: ProgressSink<'_>,
    ) -> Result<Pushed, Error> {
        let Some(image) = self.store.images().get(reference)? else {
            if !self.local_tags(reference)?.is_empty() {
                return Err(Error::not_found(format!("tag does not exist: {}", reference.familiar())));
            }
            let name = reference.familiar_name();
            return Err(Error::not_found(format!("An image does not exist locally with the tag: {name}")));
        };
        let lease = self.store.lease(&format!("push of {}", reference.familiar()))?;
        let pushed = self.registry.push(&image, platform, reference, &self.store, &lease, progress).await?;
        let by_digest = reference.without_tag().with_digest(pushed.digest.clone());
        self.store.images().tag(&image.target.digest, &by_digest)?;
        self.tell("push", &reference.familiar(), &reference.familiar());
        Ok(pushed)
    }

    /// All manifests that are the image of `record`.
    fn whole(&self, record: ImageRecord) -> Result<Image, Error> {
        let mut same = self.store.images().list()?;
        same.retain(|other| other.id == record.id && other.target.digest != record.target.digest);
        same.insert(0, record);
        let mut grouped = group(same);
        grouped.pop().ok_or_else(|| Error::new(Kind::Internal, "an image vanished while it was looked at"))
    }
}

/// Joins the records of one image id, in the order they come.
fn group(records: Vec<ImageRecord>) -> Vec<Image> {
    let mut images: Vec<Image> = Vec::new();
    for record in records {
        let (digests, tags): (Vec<_>, Vec<_>) = record.names.into_iter().partition(|n| n.digest().is_some());
        match images.iter_mut().find(|image| image.id == record.id) {
            Some(image) => {
                // A manifest that has names stands for the image, not one that is left over.
                let place = if image.tags.is_empty() && !tags.is_empty() { 0 } else { image.targets.len() };
                image.targets.insert(place, record.target);
                image.tags.extend(tags);
                image.digests.extend(digests);
                image.made_here = image.made_here.max(record.created_here);
            }
            None => images.push(Image {
                id: record.id,
                tags,
                digests,
                created: record.config.created.as_deref().and_then(parse_time),
                made_here: record.created_here,
                config: record.config,
                targets: vec![record.target],
            }),
        }
    }
    for image in &mut images {
        image.tags.sort_by_key(Reference::canonical);
        image.digests.sort_by_key(Reference::canonical);
    }
    images
}

/// A time as configs write it (RFC 3339).
fn parse_time(text: &str) -> Option<SystemTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok().map(SystemTime::from)
}
