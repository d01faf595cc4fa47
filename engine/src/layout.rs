//! Images in an OCI layout directory of the caller's (image specification, "Image Layout"), as build contexts.
//!
//! What the build needs is copied into the store, checked, and kept by the build's lease; it gets no name there. So a
//! layout is read once, and nothing in it can change under a build.

use std::io::Read;
use std::path::{Path, PathBuf};

use rbuild_oci::{Descriptor, Digest, Document, ImageConfig, Index, Platform, Reference, limits};
use rbuild_store::root::{Root, Walk};
use rbuild_store::transfer::{ImageSink, ImageSource, StoreSink, copy};
use rbuild_store::{Lease, Store, StoreError};

use crate::error::Error;
use crate::request::LayoutImage;

/// The tag that is meant when none is said.
const USUAL_TAG: &str = "latest";
/// Annotation with an image's tag or name.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What a layout's image turned out to be.
pub(crate) struct Lent {
    pub(crate) digest: Digest,
    /// Manifests that are in the store now.
    pub(crate) manifests: Vec<(Platform, Descriptor)>,
}

/// Brings the image into the store, for those of the platforms that it has.
///
/// # Errors
/// The directory is no layout, has no such image or only a part of it, or not the content it says.
pub(crate) fn bring(image: &LayoutImage, platforms: &[Platform], store: &Store, lease: &Lease) -> Result<Lent, Error> {
    let refused = |error: Error| Error { message: format!("{}: {}", prefix(image), error.message), ..error };
    let layout = Layout::open(image).map_err(refused)?;
    let root = layout.find(image).map_err(refused)?;
    let mut manifests = Vec::new();
    layout.manifests(&root, 0, &mut manifests).map_err(refused)?;
    let mut chosen: Vec<(Platform, Descriptor)> = Vec::new();
    for wanted in platforms {
        let ranked = manifests.iter().filter_map(|found| Some((found.0.rank_for(wanted)?, found)));
        if let Some((_, best)) = ranked.min_by_key(|(rank, _)| *rank)
            && !chosen.contains(best)
        {
            chosen.push(best.clone());
        }
    }
    for (_, manifest) in &chosen {
        let mut sink = Unnamed(StoreSink::new(store, lease));
        copy(&layout, manifest, &[], &mut sink).map_err(|error| refused(error.into()))?;
    }
    Ok(Lent { digest: root.digest, manifests: chosen })
}

fn prefix(image: &LayoutImage) -> String {
    format!("oci-layout reference {:?} could not be resolved", image.what)
}

pub(crate) struct Layout(Root);

impl Layout {
    pub(crate) fn open(image: &LayoutImage) -> Result<Layout, Error> {
        let bad = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Error::not_found(format!("{}: no such file or directory", image.dir.display()))
            }
            _ => Error::invalid(format!("{}: {error}", image.dir.display())),
        };
        let root = Root::open(&image.dir).map_err(bad)?;
        match root.open_file(Path::new("index.json"), Walk::InRoot) {
            Ok(_) => Ok(Layout(root)),
            Err(_) => Err(Error::invalid(format!("{} is no OCI layout: it has no index.json", image.dir.display()))),
        }
    }

    fn read(&self, path: &Path, limit: u64) -> Result<Vec<u8>, StoreError> {
        let shown = path.display().to_string();
        let unreadable = |error: std::io::Error| StoreError::invalid(shown.clone(), error.to_string());
        let file = self.0.open_file(path, Walk::InRoot).map_err(unreadable)?;
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        match bytes.len() as u64 > limit {
            true => Err(StoreError::Limit { what: shown, limit, unit: "bytes" }),
            false => Ok(bytes),
        }
    }

    fn index(&self) -> Result<Index, Error> {
        match Document::parse(&self.read(Path::new("index.json"), limits::INDEX)?, None) {
            Ok(Document::Index(index)) => Ok(index),
            Ok(Document::Manifest(_)) => Err(Error::invalid("index.json is a manifest")),
            Err(error) => Err(Error::invalid(format!("index.json: {error}"))),
        }
    }

    /// The entry that is meant: by digest, else by name, else the only one there is.
    pub(crate) fn find(&self, image: &LayoutImage) -> Result<Descriptor, Error> {
        let index = self.index()?;
        if let Some(digest) = &image.digest {
            if let Some(entry) = index.manifests.iter().find(|entry| entry.digest == *digest) {
                return Ok(entry.clone());
            }
            // It may be below an index; then what kind it is its own text tells.
            let bytes = self.read(&blob(digest), limits::INDEX)?;
            let document = Document::parse(&bytes, None).map_err(|error| Error::invalid(error.to_string()))?;
            return Ok(Descriptor::new(document.media_type(), digest.clone(), bytes.len() as u64));
        }
        let tag = image.tag.as_deref().unwrap_or(USUAL_TAG);
        let is_it = |entry: &&Descriptor| {
            let name = entry.annotations.get(REF_NAME);
            name.is_some_and(|name| {
                name == tag || Reference::parse(name).is_ok_and(|name| name.tag() == Some(tag)) && name.contains(':')
            })
        };
        let images: Vec<&Descriptor> = index.manifests.iter().filter(|entry| !entry.is_attestation()).collect();
        match (images.iter().copied().find(|entry| is_it(entry)), images.as_slice()) {
            (Some(found), _) => Ok(found.clone()),
            (None, [one]) if image.tag.is_none() || !one.annotations.contains_key(REF_NAME) => Ok((*one).clone()),
            (None, _) => {
                let known: Vec<&str> =
                    images.iter().filter_map(|entry| entry.annotations.get(REF_NAME)).map(String::as_str).collect();
                let error = Error::not_found(format!("the layout has no image {tag}"));
                Err(if known.is_empty() { error } else { error.with_hint(format!("it has {}", known.join(", "))) })
            }
        }
    }

    /// The manifests below an entry, each with the platform it is for.
    fn manifests(
        &self,
        entry: &Descriptor,
        depth: usize,
        found: &mut Vec<(Platform, Descriptor)>,
    ) -> Result<(), Error> {
        let Some(bytes) = self.document(entry)? else { return Ok(()) };
        match Document::parse(&bytes, Some(&entry.media_type)).map_err(|error| Error::invalid(error.to_string()))? {
            Document::Manifest(manifest) => {
                let config = self.read(&blob(&manifest.config.digest), limits::CONFIG)?;
                let config = ImageConfig::parse(&config).map_err(|error| Error::invalid(error.to_string()))?;
                let plain = Descriptor::new(entry.media_type.clone(), entry.digest.clone(), entry.size);
                found.push((config.platform().normalized(), plain));
            }
            Document::Index(_) if depth >= limits::INDEX_DEPTH => {
                return Err(Error::invalid(format!("index {} is nested too deep", entry.digest)));
            }
            Document::Index(index) => {
                for child in index.manifests.iter().filter(|child| !child.is_attestation()) {
                    self.manifests(child, depth + 1, found)?;
                }
            }
        }
        Ok(())
    }
}

impl ImageSource for Layout {
    fn document(&self, descriptor: &Descriptor) -> Result<Option<Vec<u8>>, StoreError> {
        let path = blob(&descriptor.digest);
        if self.0.open_file(&path, Walk::InRoot).is_err() {
            return Ok(None);
        }
        let bytes = self.read(&path, limits::MANIFEST.max(limits::INDEX))?;
        match descriptor.digest.matches(&bytes) {
            true => Ok(Some(bytes)),
            false => Err(StoreError::invalid(path.display().to_string(), "its content is not what its name says")),
        }
    }

    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>, StoreError> {
        let path = blob(&descriptor.digest);
        let file = self.0.open_file(&path, Walk::InRoot);
        let file = file.map_err(|error| StoreError::invalid(path.display().to_string(), error.to_string()))?;
        Ok(Box::new(file))
    }
}

fn blob(digest: &Digest) -> PathBuf {
    Path::new("blobs").join(digest.algorithm().name()).join(digest.hex())
}

/// The store, where nothing gets a name.
struct Unnamed(StoreSink);

impl ImageSink for Unnamed {
    fn has(&mut self, content: &Descriptor) -> Result<bool, StoreError> {
        self.0.has(content)
    }

    fn put(&mut self, content: &Descriptor, bytes: &mut dyn Read) -> Result<(), StoreError> {
        self.0.put(content, bytes)
    }

    fn name(&mut self, _image: &Descriptor, _names: &[Reference]) -> Result<(), StoreError> {
        Ok(())
    }
}
