//! Images from any place to any other.
//!
//! What has images is read as an [`ImageSource`], what takes them written as an [`ImageSink`], and the copy between is the
//! store's one. Streams (archives, a daemon's export) tell at their end what they are, so their content goes through the
//! store, where it has no name and stays no longer than the copy; a registry is read piece by piece, and from one
//! registry to another nothing is kept here.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use rbuild_oci::{Descriptor, Digest, Platform, Reference};
use rbuild_registry::daemon::{Daemon, Exported};
use rbuild_registry::{ProgressSink, RegistrySource};
use rbuild_store::archive::{self, DirectorySink, TarSink};
use rbuild_store::transfer::{self, ImageSink, ImageSource, StoreSink, StoreSource};
use rbuild_store::{ImageRecord, Lease, NewImage, StoreError};

use super::Images;
use super::archives::Incoming;
use crate::error::Error;
use crate::export::archive::fill;
use crate::layout::Layout;
use crate::output::Destination;
use crate::request::LayoutImage;

/// Where an image is, or is to be.
#[derive(Debug, Clone)]
pub enum Place {
    /// The store, by a name or, as a source, an id.
    Store(String),
    Registry(Reference),
    Archive(Named),
    /// A directory that is an OCI layout.
    Layout(Named),
    /// A docker daemon. Without a name, as a destination, the image keeps its own.
    Daemon {
        daemon: Daemon,
        image: Option<String>,
    },
}

/// An image in a file or directory of the caller's.
#[derive(Debug, Clone)]
pub struct Named {
    pub path: PathBuf,
    /// What it is called there. A source with one image needs none; a destination without one takes the name it had.
    pub image: Option<String>,
    /// For docker, which takes one platform of an image and knows full names only.
    pub docker: bool,
}

/// What a copy came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopiedImage {
    /// Of the manifest or index that was copied.
    pub digest: Digest,
    /// What the other end said about it, line by line.
    pub said: Vec<String>,
}

/// An image of the store that is to go elsewhere.
struct Held {
    record: ImageRecord,
    name: Option<Reference>,
    /// What a layout calls it in place of a name.
    tag: Option<String>,
    /// It came for this copy.
    guest: bool,
}

/// What a destination calls the image.
struct Names {
    names: Vec<Reference>,
    /// A tag alone, as layouts have it.
    tag: Option<String>,
}

impl Images {
    /// Copies an image. With a platform, of an image for several only that one goes; without, all of it that the source
    /// has goes where several can be, and what suits this machine elsewhere.
    ///
    /// # Errors
    /// The source does not have it, whole and as its digests say; the destination does not take it. Then it has no name
    /// there.
    pub async fn copy(
        &self,
        from: &Place,
        to: &Place,
        platform: Option<&Platform>,
        progress: ProgressSink<'_>,
    ) -> Result<CopiedImage, Error> {
        match (from, to) {
            (Place::Registry(from), Place::Registry(to)) => self.relay(from, to, platform).await,
            (Place::Registry(from), Place::Store(to)) => self.pull_as(from, to, platform, progress).await,
            (Place::Registry(from), _) => self.fetch_to(from, to, platform).await,
            _ => {
                let lease = self.store.lease("copy of an image")?;
                let held = self.held(from, &lease).await?;
                let copied = self.hand_on(&held, to, platform, &lease, progress).await;
                if held.guest && !matches!(to, Place::Store(_)) {
                    // Somebody may have begun to use it meanwhile; then it is theirs.
                    if let Err(error) = self.store.images().remove(&held.record.target.digest, false) {
                        tracing::debug!(%error, "an image that was copied stays");
                    }
                }
                copied
            }
        }
    }

    async fn relay(&self, from: &Reference, to: &Reference, platform: Option<&Platform>) -> Result<CopiedImage, Error> {
        let fetched = match platform {
            Some(platform) => self.registry.resolve(from, platform).await?.chosen,
            None => self.registry.fetch_manifest(from).await?,
        };
        self.registry.relay(from, &fetched, to).await?;
        let kind = fetched.descriptor.media_type.clone();
        let pushed = self.registry.put_manifest(to, &kind, fetched.bytes).await?;
        Ok(CopiedImage { digest: pushed.digest, said: Vec::new() })
    }

    /// Pulls an image and gives it another name than the registry's.
    async fn pull_as(
        &self,
        from: &Reference,
        to: &str,
        platform: Option<&Platform>,
        progress: ProgressSink<'_>,
    ) -> Result<CopiedImage, Error> {
        let name = tag_name(to)?;
        let lease = self.store.lease(&format!("copy of {}", from.familiar()))?;
        let before = self.store.images().get(from)?;
        let host = Platform::host();
        let pulled = self.registry.pull(from, platform.unwrap_or(&host), &self.store, &lease, progress).await?;
        self.store.images().tag(&pulled.image.target.digest, &name)?;
        let by_digest = from.without_tag().with_digest(pulled.digest.clone());
        match before {
            Some(image) => self.store.images().tag(&image.target.digest, from)?,
            None if name != *from => {
                self.store.images().untag(from)?;
                self.store.images().untag(&by_digest)?;
            }
            None => {}
        }
        self.tell("pull", &name.familiar(), &name.familiar());
        Ok(CopiedImage { digest: pulled.digest, said: Vec::new() })
    }

    async fn fetch_to(&self, from: &Reference, to: &Place, platform: Option<&Platform>) -> Result<CopiedImage, Error> {
        let host = Platform::host();
        let descriptor = match platform.or(to.takes_one().then_some(&host)) {
            Some(platform) => self.registry.resolve(from, platform).await?.chosen.descriptor,
            None => self.registry.fetch_manifest(from).await?.descriptor,
        };
        let source = RegistrySource::new(&self.registry, from);
        let had =
            Names { names: Some(from.clone()).filter(|name| name.tag().is_some()).into_iter().collect(), tag: None };
        self.send(source, plain(&descriptor), had, to).await
    }

    async fn hand_on(
        &self,
        held: &Held,
        to: &Place,
        platform: Option<&Platform>,
        lease: &Lease,
        progress: ProgressSink<'_>,
    ) -> Result<CopiedImage, Error> {
        let record = &held.record;
        if let Place::Registry(reference) = to {
            let pushed = self.registry.push(record, platform, reference, &self.store, lease, progress).await?;
            return Ok(CopiedImage { digest: pushed.digest, said: Vec::new() });
        }
        let source = StoreSource::new(&self.store);
        let target = match platform {
            Some(platform) => match self.store.images().manifest(record, platform) {
                Ok((_, config, target)) if config.platform().matches(platform) => plain(&target),
                Ok(_) | Err(StoreError::NoPlatform { .. }) => {
                    let name = held.name.as_ref().map_or_else(|| record.id.0.to_string(), Reference::familiar);
                    return Err(Error::not_found(format!("image {name} is not there for the platform {platform}")));
                }
                Err(error) => return Err(error.into()),
            },
            None if to.takes_one() => {
                let chosen = transfer::choose(&source, &record.target, 0)?;
                plain(&chosen.ok_or_else(|| StoreError::NoBlob(record.target.digest.clone()))?.0)
            }
            None => archive::whole(&self.store, record)?,
        };
        if let Place::Store(name) = to {
            let name = tag_name(name)?;
            let manifest = self.store.images().manifest(record, platform.unwrap_or(&record.config.platform()))?.0;
            let config = manifest.config.digest.clone();
            let image = match platform {
                Some(_) => NewImage { target: target.clone(), config, names: vec![name] },
                None => {
                    self.store.images().tag(&record.target.digest, &name)?;
                    return Ok(CopiedImage { digest: record.target.digest.clone(), said: Vec::new() });
                }
            };
            self.store.images().put(&image, lease)?;
            return Ok(CopiedImage { digest: target.digest, said: Vec::new() });
        }
        let had = Names { names: held.name.iter().cloned().collect(), tag: held.tag.clone() };
        self.send(source, target, had, to).await
    }

    /// Copies into what takes a stream or files, on a thread that may block.
    async fn send(
        &self,
        source: impl ImageSource + Send + 'static,
        target: Descriptor,
        had: Names,
        to: &Place,
    ) -> Result<CopiedImage, Error> {
        let digest = target.digest.clone();
        let copied = |said| Ok(CopiedImage { digest, said });
        match to.clone() {
            Place::Archive(there) => {
                let names = Names::of(there.image.as_deref(), had, there.docker)?;
                let write = move || {
                    fill(&Destination::File(there.path), |out| Ok(write_archive(&source, &target, &names, out)?))
                };
                tokio::task::spawn_blocking(write).await.map_err(Error::internal)??;
                copied(Vec::new())
            }
            Place::Layout(there) => {
                let names = Names::of(there.image.as_deref(), had, false)?;
                let write = move || {
                    let mut sink = DirectorySink::new(&there.path)?;
                    copy(&source, &target, &names, &mut sink)?;
                    sink.finish()
                };
                tokio::task::spawn_blocking(write).await.map_err(Error::internal)??;
                copied(Vec::new())
            }
            Place::Daemon { daemon, image } => {
                let names = Names::of(image.as_deref(), had, true)?;
                copied(daemon.load(move |out| write_archive(&source, &target, &names, out)).await?)
            }
            Place::Store(_) | Place::Registry(_) => Err(Error::internal("this place takes no stream")),
        }
    }

    /// The image of a place that is no registry, in the store.
    async fn held(&self, from: &Place, lease: &Lease) -> Result<Held, Error> {
        match from {
            Place::Store(text) => {
                let record = self.store.images().resolve(text)?;
                let name = Reference::parse(text).ok().filter(|name| record.names.contains(name));
                Ok(Held { record, name: name.filter(|name| name.tag().is_some()), tag: None, guest: false })
            }
            Place::Archive(archive) => {
                let path = &archive.path;
                let opened = File::open(path);
                let file = opened.map_err(|e| Error::invalid(format!("open {}: {e}", path.display())))?;
                let (images, lease) = (self.clone(), lease.clone());
                let loading = tokio::task::spawn_blocking(move || {
                    let known = images.targets()?;
                    Ok::<_, Error>((archive::hold(file, &images.store, &lease, &|_| {})?, known))
                });
                let (loaded, known) = loading.await.map_err(Error::internal)??;
                self.choose_one(loaded, &known, archive.image.as_deref(), &path.display().to_string())
            }
            Place::Daemon { daemon, image } => {
                let name = image.as_deref().ok_or_else(|| Error::invalid("docker-daemon: names no image"))?;
                let asked = Reference::parse(name);
                let asked_for = asked.as_ref().map_or_else(|_| name.to_owned(), Reference::familiar);
                // An id is none that a reference would understand.
                let exact = if name.starts_with("sha256:") { name } else { &asked_for };
                let (loaded, known) = self.exported(daemon.export(exact).await?, lease).await?;
                let wanted = asked.is_ok().then_some(name).filter(|_| loaded.len() > 1);
                self.choose_one(loaded, &known, wanted, "the docker daemon's archive")
            }
            Place::Layout(there) => {
                let image = LayoutImage {
                    dir: there.path.clone(),
                    tag: there.image.clone().filter(|image| !image.contains("sha256:")),
                    digest: there.image.as_deref().and_then(|image| image.trim_start_matches('@').parse().ok()),
                    what: there.path.display().to_string(),
                };
                let (images, lease) = (self.clone(), lease.clone());
                tokio::task::spawn_blocking(move || images.of_layout(&image, &lease)).await.map_err(Error::internal)?
            }
            Place::Registry(_) => Err(Error::internal("an image of a registry is not brought here to be copied")),
        }
    }

    /// Reads a daemon's archive into the store while it comes.
    async fn exported(
        &self,
        mut exported: Exported,
        lease: &Lease,
    ) -> Result<(Vec<archive::Loaded>, Vec<Digest>), Error> {
        let (images, lease) = (self.clone(), lease.clone());
        let (sender, incoming) = Incoming::new();
        let loading = tokio::task::spawn_blocking(move || {
            let known = images.targets()?;
            Ok::<_, Error>((archive::hold(incoming, &images.store, &lease, &|_| {})?, known))
        });
        let mut broken = None;
        loop {
            let piece = match exported.chunk().await {
                Ok(None) => break,
                Ok(Some(piece)) => Ok(piece),
                Err(error) => {
                    // The reader must not take the end for the archive's.
                    let told = std::io::Error::other(error.to_string());
                    broken = Some(error);
                    Err(told)
                }
            };
            if sender.send(piece).await.is_err() || broken.is_some() {
                break;
            }
        }
        drop(sender);
        let loaded = loading.await.map_err(Error::internal)?;
        broken.map_or(loaded, |error| Err(error.into()))
    }

    fn of_layout(&self, image: &LayoutImage, lease: &Lease) -> Result<Held, Error> {
        let layout = Layout::open(image)?;
        let root = layout.find(image)?;
        let guest = self.store.images().by_target(&root.digest)?.is_none();
        let target = plain(&root);
        transfer::copy(&layout, &target, &[], &mut StoreSink::new(&self.store, lease))?;
        let record = self.store.images().by_target(&target.digest)?;
        let record = record.ok_or_else(|| StoreError::NoImage(target.digest.to_string()))?;
        let name = archive::name_of(&root).ok().flatten();
        let tag = root.annotations.get(archive::REF_NAME).filter(|_| name.is_none()).cloned();
        Ok(Held { record, name, tag, guest })
    }

    fn targets(&self) -> Result<Vec<Digest>, Error> {
        Ok(self.store.images().list()?.into_iter().map(|image| image.target.digest).collect())
    }

    /// The image that is meant of those that an archive had. The others go.
    fn choose_one(
        &self,
        loaded: Vec<archive::Loaded>,
        known: &[Digest],
        wanted: Option<&str>,
        place: &str,
    ) -> Result<Held, Error> {
        let is_it = |one: &archive::Loaded, text: &str| {
            let named = Reference::parse(text).is_ok_and(|name| one.names.contains(&name));
            named || one.tag.as_deref() == Some(text) || one.record.id.0.to_string() == text
        };
        let found = match wanted {
            Some(text) => loaded.iter().position(|one| is_it(one, text)),
            None => (loaded.len() == 1).then_some(0),
        };
        let mut held = None;
        let mut others = Vec::new();
        for (at, one) in loaded.into_iter().enumerate() {
            let guest = !known.contains(&one.record.target.digest);
            if Some(at) == found {
                let name = one
                    .names
                    .iter()
                    .find(|name| wanted.is_none_or(|text| Reference::parse(text).ok().as_ref() == Some(name)));
                held = Some(Held { name: name.cloned(), record: one.record, tag: one.tag, guest });
                continue;
            }
            others.extend(one.names.iter().map(Reference::familiar).chain(one.tag));
            if guest {
                self.store.images().remove(&one.record.target.digest, false)?;
            }
        }
        held.ok_or_else(|| {
            let error = match wanted {
                Some(text) => Error::not_found(format!("{place} has no image {text}")),
                None => Error::invalid(format!("{place} has several images: say which, behind a colon")),
            };
            if others.is_empty() { error } else { error.with_hint(format!("it has {}", others.join(", "))) }
        })
    }
}

impl Place {
    /// Whether one platform of an image is all it takes.
    fn takes_one(&self) -> bool {
        matches!(self, Place::Daemon { .. } | Place::Archive(Named { docker: true, .. }))
    }
}

impl Names {
    /// What `text` says the image is called, or the name it had. For docker every name is a full one.
    fn of(text: Option<&str>, had: Names, docker: bool) -> Result<Names, Error> {
        match text {
            None => Ok(Names { tag: had.tag.filter(|_| !docker), ..had }),
            Some(text) if !docker && !text.contains(['/', ':']) => {
                Ok(Names { names: Vec::new(), tag: Some(text.to_owned()) })
            }
            Some(text) => Ok(Names { names: vec![tag_name(text)?], tag: None }),
        }
    }
}

/// A name that an image can be given.
fn tag_name(text: &str) -> Result<Reference, Error> {
    let name = Reference::parse(text).map_err(|error| Error::invalid(error.to_string()))?;
    match name.digest() {
        Some(_) => Err(Error::invalid(format!("{text}: a name with a digest cannot be given"))),
        None => Ok(name),
    }
}

fn plain(descriptor: &Descriptor) -> Descriptor {
    Descriptor::new(descriptor.media_type.clone(), descriptor.digest.clone(), descriptor.size)
}

fn write_archive(
    source: &dyn ImageSource,
    target: &Descriptor,
    names: &Names,
    out: &mut dyn Write,
) -> Result<(), StoreError> {
    let mut sink = TarSink::new(out)?;
    copy(source, target, names, &mut sink)?;
    sink.finish()
}

fn copy(
    source: &dyn ImageSource,
    target: &Descriptor,
    names: &Names,
    sink: &mut dyn ImageSink,
) -> Result<(), StoreError> {
    let mut target = target.clone();
    if let Some(tag) = &names.tag {
        target.annotations.insert(archive::REF_NAME.into(), tag.clone());
    }
    transfer::copy(source, &target, &names.names, sink).map(drop)
}

/// Where a path and the name of an image in it, `PATH[:IMAGE]`, part.
pub fn split_path(text: &str) -> (&Path, Option<&str>) {
    match text.split_once(':') {
        Some((path, image)) => (Path::new(path), Some(image).filter(|image| !image.is_empty())),
        None => (Path::new(text), None),
    }
}
