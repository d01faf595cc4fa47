//! OCI image layouts: in archives, where docker's own documents may stand beside, and in directories.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::path::Path;

use rbuild_oci::{Descriptor, Digest, Document, Index, Manifest, Platform, Reference, limits};
use serde::{Deserialize, Serialize};

use super::docker::{Item, Repositories};
use super::spool::{Spool, blob_name, invalid, missing, parse};
use super::{Planned, config_of};
use crate::error::{Context, Result, StoreError};
use crate::images::ImageRecord;
use crate::layers::from_io;
use crate::layers::tar::{Entry, EntryKind, Writer, Xattrs};
use crate::root::{Dir, Root, Timestamp, Walk};
use crate::store::Store;
use crate::transfer::{ImageSink, ImageSource, StoreSource, choose, copy};

/// Annotation with an image's full name (containerd's, which docker reads too).
const IMAGE_NAME: &str = "io.containerd.image.name";
/// Annotation with its tag, or with a name.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
const VERSION: &str = "1.0.0";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayoutFile {
    image_layout_version: String,
}

/// Images that `index.json` lists, directly or below indexes, with the descriptor that should name each: an index when
/// the archive has all of it, else the manifest.
pub(super) fn manifests(spool: &Spool) -> Result<Vec<(Descriptor, Manifest)>> {
    let mut found = Vec::new();
    for root in index(spool)?.manifests {
        collect(spool, &plain(&root), None, &mut found, 0)?;
    }
    Ok(found)
}

fn collect(
    spool: &Spool,
    descriptor: &Descriptor,
    whole: Option<&Descriptor>,
    found: &mut Vec<(Descriptor, Manifest)>,
    depth: usize,
) -> Result<()> {
    let Some(bytes) = spool.document(descriptor)? else {
        return Ok(());
    };
    match Document::parse(&bytes, Some(&descriptor.media_type))? {
        Document::Manifest(manifest) => found.push((whole.unwrap_or(descriptor).clone(), manifest)),
        Document::Index(_) if depth >= limits::INDEX_DEPTH => {
            let what = format!("index {} of the image archive", descriptor.digest);
            return Err(StoreError::Limit { what, limit: limits::INDEX_DEPTH as u64, unit: "levels" });
        }
        Document::Index(index) => {
            let complete = index.manifests.iter().all(|child| spool.has(&blob_name(&child.digest)));
            let whole = whole.or(complete.then_some(descriptor));
            for child in index.manifests.iter().filter(|child| !child.is_attestation()) {
                collect(spool, &plain(child), whole, found, depth + 1)?;
            }
        }
    }
    Ok(())
}

fn index(spool: &Spool) -> Result<Index> {
    match Document::parse(&spool.bytes("index.json", limits::INDEX)?, None) {
        Ok(Document::Index(index)) => Ok(index),
        Ok(Document::Manifest(_)) => Err(invalid(b"index.json", "it is a manifest")),
        Err(error) => Err(invalid(b"index.json", &error.to_string())),
    }
}

/// The tag that `index.json` gives an image in place of a name.
pub(super) fn tag_of(spool: &Spool, digest: &Digest) -> Result<Option<String>> {
    let entry = index(spool)?.manifests.into_iter().find(|entry| entry.digest == *digest);
    Ok(entry.and_then(|mut entry| match entry.annotations.contains_key(IMAGE_NAME) {
        true => None,
        false => entry.annotations.remove(REF_NAME),
    }))
}

/// The images of an OCI layout.
pub(super) fn read(spool: &mut Spool) -> Result<Vec<Planned>> {
    if spool.has("oci-layout") {
        let layout: LayoutFile = parse("oci-layout", &spool.bytes("oci-layout", limits::MANIFEST)?)?;
        if !layout.image_layout_version.starts_with("1.") {
            return Err(invalid(b"oci-layout", &format!("version {:?} is not known", layout.image_layout_version)));
        }
    }
    let roots = index(spool)?.manifests;
    if roots.is_empty() {
        return Err(invalid(b"index.json", "it lists no image"));
    }
    let mut plans = Vec::new();
    for root in roots {
        let name = name_of(&root)?;
        let tag = root.annotations.get(REF_NAME).filter(|_| name.is_none()).cloned();
        let root = plain(&root);
        let (chosen, manifest) = choose(spool, &root, 0)?.ok_or_else(|| missing(&blob_name(&root.digest)))?;
        if manifest.config.media_type.is_layer() || !manifest.config.media_type.is_config() {
            let reason = format!("{} is no image: its config is {}", chosen.digest, manifest.config.media_type);
            return Err(invalid(b"index.json", &reason));
        }
        let config_name = blob_name(&manifest.config.digest);
        let config_bytes = spool.bytes(&config_name, limits::CONFIG)?;
        let config = config_of(&config_name, &config_bytes)?;
        for layer in &manifest.layers {
            spool.content(layer)?;
        }
        let names = name.into_iter().collect();
        plans.push(Planned { config_bytes, config, names, tag, layers: manifest.layers, target: Some(root) });
    }
    Ok(plans)
}

/// A descriptor as the store keeps it: what an index says about it stays there.
fn plain(descriptor: &Descriptor) -> Descriptor {
    Descriptor::new(descriptor.media_type.clone(), descriptor.digest.clone(), descriptor.size)
}

/// The name that annotations give an image. A bare tag is no name.
///
/// # Errors
/// Its full name is none.
pub fn name_of(root: &Descriptor) -> Result<Option<Reference>> {
    if let Some(name) = root.annotations.get(IMAGE_NAME) {
        return super::docker::name_of(name, "index.json").map(Some);
    }
    let name = root.annotations.get(REF_NAME).filter(|name| name.contains(['/', ':']));
    Ok(name.and_then(|name| Reference::parse(name).ok()))
}

/// An image to save, with the names it is to have in the archive.
#[derive(Debug, Clone)]
pub struct Saved {
    pub record: ImageRecord,
    pub names: Vec<Reference>,
    /// Only what it is for this platform.
    pub platform: Option<Platform>,
}

/// The images that somebody means by these names: a name with a tag is that, a name without is all tags it has, an id is
/// an image without name. An image that is named twice is there once.
pub fn select(store: &Store, texts: &[String]) -> Result<Vec<Saved>> {
    let mut all: Vec<Saved> = Vec::new();
    for text in texts {
        for (record, name) in mean(store, text)? {
            let known = all.iter_mut().find(|saved| saved.record.target.digest == record.target.digest);
            let names = match known {
                Some(saved) => &mut saved.names,
                None => {
                    all.push(Saved { record, names: Vec::new(), platform: None });
                    let last = all.len() - 1;
                    &mut all[last].names
                }
            };
            if let Some(name) = name
                && !names.contains(&name)
            {
                names.push(name);
            }
        }
    }
    Ok(all)
}

fn mean(store: &Store, text: &str) -> Result<Vec<(ImageRecord, Option<Reference>)>> {
    if let Ok(name) = Reference::parse_untagged(text) {
        if name.tag().is_none() && name.digest().is_none() {
            let same =
                |other: &Reference| other.registry() == name.registry() && other.repository() == name.repository();
            let mut found: Vec<(ImageRecord, Option<Reference>)> = Vec::new();
            for image in store.images().list()? {
                let names: Vec<Reference> = image.names.iter().filter(|name| same(name)).cloned().collect();
                found.extend(names.into_iter().map(|name| (image.clone(), Some(name))));
            }
            found.sort_by(|a, b| a.1.cmp(&b.1));
            if !found.is_empty() {
                return Ok(found);
            }
        } else if let Some(image) = store.images().get(&name)? {
            let name = name.tag().is_some().then_some(name);
            return Ok(vec![(image, name)]);
        }
    }
    Ok(vec![(store.images().resolve(text)?, None)])
}

/// Writes images as one archive, docker's and OCI's at once. The same images give the same bytes.
pub fn save(images: &[Saved], store: &Store, out: &mut dyn Write) -> Result<()> {
    let source = StoreSource::new(store);
    let mut sink = TarSink::new(out)?;
    for image in images {
        let target = match &image.platform {
            Some(platform) => plain(&store.images().manifest(&image.record, platform)?.2),
            None => whole(store, &image.record)?,
        };
        copy(&source, &target, &image.names, &mut sink)?;
    }
    sink.finish()
}

/// The index of an image when the store has all of it, else the manifest for this machine.
///
/// # Errors
/// The store cannot be read, or has no manifest of it.
pub fn whole(store: &Store, image: &ImageRecord) -> Result<Descriptor> {
    let source = StoreSource::new(store);
    if has_all(store, &source, &image.target, 0)? {
        return Ok(image.target.clone());
    }
    let (manifest, _) =
        choose(&source, &image.target, 0)?.ok_or_else(|| StoreError::NoBlob(image.target.digest.clone()))?;
    Ok(plain(&manifest))
}

fn has_all(store: &Store, source: &StoreSource, descriptor: &Descriptor, depth: usize) -> Result<bool> {
    let Some(bytes) = source.document(descriptor)? else {
        return Ok(false);
    };
    match Document::parse(&bytes, Some(&descriptor.media_type))? {
        Document::Manifest(manifest) => {
            for part in manifest.layers.iter().chain([&manifest.config]) {
                if !store.layers().has(&part.digest)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        Document::Index(_) if depth >= limits::INDEX_DEPTH => Ok(false),
        Document::Index(index) => {
            for child in &index.manifests {
                if !has_all(store, source, child, depth + 1)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
    }
}

/// What a layout says about its images, gathered while they are put.
#[derive(Default)]
struct Documents {
    index: Vec<Descriptor>,
    items: Vec<Item>,
    repositories: Repositories,
    /// Documents and configs by digest, to say which config and layers belong to an image.
    small: BTreeMap<Digest, Vec<u8>>,
    put: BTreeSet<Digest>,
}

impl Documents {
    fn name(&mut self, image: &Descriptor, names: &[Reference]) -> Result<()> {
        if names.is_empty() {
            self.index.push(image.clone());
        }
        for name in names {
            let mut named = image.clone();
            named.annotations.insert(IMAGE_NAME.into(), name.canonical());
            if let Some(tag) = name.tag() {
                named.annotations.insert(REF_NAME.into(), tag.into());
            }
            self.index.push(named);
        }
        let Some((_, manifest)) = choose(self, image, 0)? else {
            return Err(StoreError::NoBlob(image.digest.clone()));
        };
        let layers: Vec<String> = manifest.layers.iter().map(|layer| blob_name(&layer.digest)).collect();
        let top = manifest.layers.last().map(|layer| layer.digest.hex().to_owned());
        for (name, top) in names.iter().filter_map(|name| Some((name, top.clone()?))) {
            let tag = name.tag().unwrap_or("latest").to_owned();
            self.repositories.entry(name.familiar_name()).or_default().insert(tag, top);
        }
        let config = blob_name(&manifest.config.digest);
        let tags: Vec<String> = names.iter().map(Reference::familiar).collect();
        match self.items.iter_mut().find(|item| item.config == config) {
            Some(item) => item.repo_tags.get_or_insert_default().extend(tags),
            None => {
                let repo_tags = (!tags.is_empty()).then_some(tags);
                self.items.push(Item { config, repo_tags, layers: Some(layers) });
            }
        }
        Ok(())
    }

    /// The documents at the top of the layout by name.
    fn files(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let layout = LayoutFile { image_layout_version: VERSION.into() };
        let json = |value: io::Result<Vec<u8>>| value.context(|| "writing an image layout".to_owned());
        let mut files = vec![
            ("index.json", json(serde_json::to_vec(&Index::new(self.index.clone())).map_err(io::Error::from))?),
            ("manifest.json", json(serde_json::to_vec(&self.items).map_err(io::Error::from))?),
            ("oci-layout", json(serde_json::to_vec(&layout).map_err(io::Error::from))?),
        ];
        if !self.repositories.is_empty() {
            files.push(("repositories", json(serde_json::to_vec(&self.repositories).map_err(io::Error::from))?));
        }
        Ok(files)
    }

    /// Takes note of a document, and gives the content back to be written.
    fn keep<'a>(
        &mut self,
        content: &Descriptor,
        bytes: &'a mut dyn Read,
        held: &'a mut Vec<u8>,
    ) -> Result<Box<dyn Read + 'a>> {
        self.put.insert(content.digest.clone());
        if !(content.media_type.is_manifest() || content.media_type.is_index()) {
            return Ok(Box::new(bytes));
        }
        bytes.take(limits::MANIFEST).read_to_end(held).map_err(|e| from_io("copying a manifest", e))?;
        self.small.insert(content.digest.clone(), held.clone());
        Ok(Box::new(held.as_slice()))
    }
}

impl ImageSource for Documents {
    fn document(&self, descriptor: &Descriptor) -> Result<Option<Vec<u8>>> {
        Ok(self.small.get(&descriptor.digest).cloned())
    }

    fn open(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>> {
        Err(StoreError::NoBlob(blob.digest.clone()))
    }
}

/// Writes images into a tar archive that is a docker archive and an OCI layout at once.
pub struct TarSink<W: Write> {
    tar: Writer<W>,
    documents: Documents,
}

impl<W: Write> TarSink<W> {
    pub fn new(out: W) -> Result<TarSink<W>> {
        let mut sink = TarSink { tar: Writer::new(out), documents: Documents::default() };
        for dir in ["blobs", "blobs/sha256"] {
            sink.header(dir, EntryKind::Directory)?;
        }
        Ok(sink)
    }

    /// Writes the documents that make it an archive of images.
    pub fn finish(mut self) -> Result<()> {
        for (name, bytes) in self.documents.files()? {
            self.header(name, EntryKind::File { size: bytes.len() as u64 })?;
            self.tar.body(&bytes).context(|| format!("writing {name}"))?;
        }
        self.tar.finish().map(drop).context(|| "writing the archive".to_owned())
    }

    fn header(&mut self, name: &str, kind: EntryKind) -> Result<()> {
        let mode = if kind == EntryKind::Directory { 0o755 } else { 0o644 };
        let (mtime, xattrs) = (Timestamp::new(0, 0), Xattrs::new());
        let entry = Entry { path: name.into(), kind, mode, uid: 0, gid: 0, mtime, xattrs };
        self.tar.entry(&entry).context(|| format!("writing {name}"))
    }
}

impl<W: Write> ImageSink for TarSink<W> {
    fn has(&mut self, content: &Descriptor) -> Result<bool> {
        Ok(self.documents.put.contains(&content.digest))
    }

    fn put(&mut self, content: &Descriptor, bytes: &mut dyn Read) -> Result<()> {
        let mut held = Vec::new();
        let name = blob_name(&content.digest);
        self.header(&name, EntryKind::File { size: content.size })?;
        let mut bytes = self.documents.keep(content, bytes, &mut held)?;
        let mut buffer = vec![0; 128 << 10];
        loop {
            match bytes.read(&mut buffer).map_err(|e| from_io(&format!("reading {name}"), e))? {
                0 => return Ok(()),
                len => self.tar.body(&buffer[..len]).context(|| format!("writing {name}"))?,
            }
        }
    }

    fn name(&mut self, image: &Descriptor, names: &[Reference]) -> Result<()> {
        self.documents.name(image, names)
    }
}

/// Writes images into a directory as an OCI layout. Images that are in it already stay, save those whose names are taken
/// and, where an image has no name, others without one.
pub struct DirectorySink {
    root: Root,
    documents: Documents,
}

impl DirectorySink {
    /// `path` is the caller's own; it is made where it lacks.
    pub fn new(path: &Path) -> Result<DirectorySink> {
        let what = || format!("making {path:?}");
        std::fs::create_dir_all(path).context(what)?;
        let root = Root::open(path).context(what)?;
        root.mkdir_all(Path::new("blobs/sha256"), Walk::NoLinks, 0o755).context(what)?;
        Ok(DirectorySink { root, documents: Documents::default() })
    }

    /// Writes the documents that make it a layout.
    pub fn finish(mut self) -> Result<()> {
        let stay = self.those_that_stay()?;
        self.documents.index.splice(0..0, stay);
        for (name, bytes) in self.documents.files()? {
            if name == "index.json" || name == "oci-layout" {
                write_file(self.root.top(), name, &mut bytes.as_slice())?;
            }
        }
        Ok(())
    }
}

impl DirectorySink {
    /// Entries of the index that is there, without those that are replaced.
    fn those_that_stay(&self) -> Result<Vec<Descriptor>> {
        let file = match self.root.open_file(Path::new("index.json"), Walk::NoLinks) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context(|| "reading index.json".to_owned()),
        };
        let mut bytes = Vec::new();
        file.take(limits::INDEX).read_to_end(&mut bytes).context(|| "reading index.json".to_owned())?;
        let Document::Index(index) = Document::parse(&bytes, None)? else {
            return Err(invalid(b"index.json", "it is a manifest"));
        };
        let name = |entry: &Descriptor| {
            let of = |annotation: &str| entry.annotations.get(annotation).cloned();
            of(IMAGE_NAME).or(of(REF_NAME))
        };
        let new = &self.documents.index;
        let stays = |entry: &Descriptor| !new.iter().any(|other| name(other) == name(entry));
        Ok(index.manifests.into_iter().filter(stays).collect())
    }
}

impl ImageSink for DirectorySink {
    fn has(&mut self, content: &Descriptor) -> Result<bool> {
        Ok(self.documents.put.contains(&content.digest))
    }

    fn put(&mut self, content: &Descriptor, bytes: &mut dyn Read) -> Result<()> {
        let mut held = Vec::new();
        let dir = Path::new("blobs").join(content.digest.algorithm().name());
        let dir = self.root.mkdir_all(&dir, Walk::NoLinks, 0o755).context(|| format!("making {dir:?}"))?;
        let mut bytes = self.documents.keep(content, bytes, &mut held)?;
        write_file(&dir, content.digest.hex(), &mut bytes)
    }

    fn name(&mut self, image: &Descriptor, names: &[Reference]) -> Result<()> {
        self.documents.name(image, names)
    }
}

/// Writes beside and renames, so that a file is there whole or not at all.
fn write_file(dir: &Dir, name: &str, bytes: &mut dyn Read) -> Result<()> {
    let what = || format!("writing {name}");
    let aside = format!(".{name}.part");
    let (name, aside) = (OsStr::new(name), OsStr::new(&aside));
    dir.remove_all(aside).context(what)?;
    let mut file = dir.create_file(aside, 0o644).context(what)?;
    io::copy(bytes, &mut file).map_err(|e| from_io(&what(), e))?;
    dir.rename(aside, dir, name).context(what)
}
