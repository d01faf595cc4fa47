//! Copies images from anywhere to anywhere.
//!
//! What can give images is an [`ImageSource`], what can take them an [`ImageSink`]; the store, archives and layout
//! directories are both or either, and [`copy`] is written once. Content comes before what points at it, so a sink never
//! shows an image that is not whole.

use std::collections::HashSet;
use std::io::Read;

use rbuild_oci::{
    Compression, Descriptor, DiffId, Digest, Document, ImageConfig, Index, Manifest, MediaType, Reference, limits,
};

use crate::blobs::Blobs;
use crate::error::{Context, Result, StoreError};
use crate::layers::from_io;
use crate::layers::read::Reader;
use crate::layers::tar::Writer;
use crate::lease::Lease;
use crate::root::Timestamp;
use crate::store::Store;

/// Something that has images.
pub trait ImageSource {
    /// The exact bytes of a manifest or an index; `None` when this source has only other parts of the index that names
    /// it, say other platforms.
    fn document(&self, descriptor: &Descriptor) -> Result<Option<Vec<u8>>>;

    /// Streams a config or a layer. Reading fails at its end when the bytes are not what the digest says.
    fn open(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>>;
}

/// Something that takes images.
pub trait ImageSink {
    /// Whether it has this content already, and need not be given it.
    fn has(&mut self, content: &Descriptor) -> Result<bool>;

    /// Takes a config, a layer, a manifest or an index. What it points at came before.
    fn put(&mut self, content: &Descriptor, bytes: &mut dyn Read) -> Result<()>;

    /// Makes an image known under these names; all of it has been put.
    fn name(&mut self, image: &Descriptor, names: &[Reference]) -> Result<()>;
}

/// What a copy moved; content that the sink had already does not count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    pub blobs: u64,
    pub bytes: u64,
}

/// Copies an image and gives it names at the other end.
pub fn copy(
    source: &dyn ImageSource,
    image: &Descriptor,
    names: &[Reference],
    sink: &mut dyn ImageSink,
) -> Result<Copied> {
    let mut transfer = Transfer { source, sink, seen: HashSet::new(), copied: Copied::default() };
    if !transfer.document(image, 0)? {
        return Err(StoreError::NoBlob(image.digest.clone()));
    }
    transfer.sink.name(image, names)?;
    Ok(transfer.copied)
}

struct Transfer<'a> {
    source: &'a dyn ImageSource,
    sink: &'a mut dyn ImageSink,
    seen: HashSet<Digest>,
    copied: Copied,
}

impl Transfer<'_> {
    /// Copies a document and all below it; false when the source does not have it.
    fn document(&mut self, descriptor: &Descriptor, depth: usize) -> Result<bool> {
        if self.seen.contains(&descriptor.digest) {
            return Ok(true);
        }
        let Some(bytes) = self.source.document(descriptor)? else {
            return Ok(false);
        };
        match Document::parse(&bytes, Some(&descriptor.media_type))? {
            Document::Manifest(manifest) => {
                self.blob(&manifest.config)?;
                manifest.layers.iter().try_for_each(|layer| self.blob(layer))?;
            }
            Document::Index(_) if depth >= limits::INDEX_DEPTH => {
                let what = format!("index {}", descriptor.digest);
                return Err(StoreError::Limit { what, limit: limits::INDEX_DEPTH as u64, unit: "levels" });
            }
            Document::Index(index) => {
                for child in &index.manifests {
                    self.document(child, depth + 1)?;
                }
            }
        }
        self.put(descriptor, &mut bytes.as_slice())?;
        Ok(true)
    }

    fn blob(&mut self, blob: &Descriptor) -> Result<()> {
        if self.seen.contains(&blob.digest) || self.sink.has(blob)? {
            return Ok(());
        }
        let mut bytes = self.source.open(blob)?;
        self.put(blob, &mut bytes)
    }

    fn put(&mut self, content: &Descriptor, bytes: &mut dyn Read) -> Result<()> {
        if self.seen.insert(content.digest.clone()) && !self.sink.has(content)? {
            self.sink.put(content, bytes)?;
            self.copied.blobs += 1;
            self.copied.bytes += content.size;
        }
        Ok(())
    }
}

/// The store as a source: layers that it does not keep are made again.
#[derive(Clone)]
pub struct StoreSource {
    store: Store,
}

impl StoreSource {
    pub fn new(store: &Store) -> StoreSource {
        StoreSource { store: store.clone() }
    }
}

impl ImageSource for StoreSource {
    fn document(&self, descriptor: &Descriptor) -> Result<Option<Vec<u8>>> {
        match self.store.blobs().has(&descriptor.digest)? {
            true => self.store.blobs().read(&descriptor.digest, limits::MANIFEST.max(limits::INDEX)).map(Some),
            false => Ok(None),
        }
    }

    fn open(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>> {
        self.store.layers().open_layer(blob)
    }
}

/// The store as a sink. Naming an image unpacks it, so that a layer which is not what the config says is found first.
pub struct StoreSink {
    store: Store,
    lease: Lease,
}

impl StoreSink {
    /// What is put stays as long as `lease` lives, and what is named as long as it has its name.
    pub fn new(store: &Store, lease: &Lease) -> StoreSink {
        StoreSink { store: store.clone(), lease: lease.clone() }
    }
}

impl ImageSink for StoreSink {
    fn has(&mut self, content: &Descriptor) -> Result<bool> {
        self.store.blobs().hold(&content.digest, &self.lease)
    }

    fn put(&mut self, content: &Descriptor, bytes: &mut dyn Read) -> Result<()> {
        let mut blob = self.store.blobs().writer_for(&content.digest, &self.lease)?;
        std::io::copy(bytes, &mut blob).map_err(|e| from_io(&format!("copying {}", content.digest), e))?;
        blob.commit(Some(&content.digest), Some(content.size)).map(drop)
    }

    fn name(&mut self, image: &Descriptor, names: &[Reference]) -> Result<()> {
        let chosen = choose(&StoreSource::new(&self.store), image, 0)?;
        let (_, manifest) = chosen.ok_or_else(|| StoreError::NoBlob(image.digest.clone()))?;
        let config = ImageConfig::parse(&self.store.blobs().read(&manifest.config.digest, limits::CONFIG)?)?;
        self.store.layers().unpack(&manifest, &config, &self.lease)?;
        let target = Descriptor::new(image.media_type.clone(), image.digest.clone(), image.size);
        let new = crate::images::NewImage { target, config: manifest.config.digest, names: names.to_vec() };
        self.store.images().put(&new, &self.lease).map(drop)
    }
}

/// The manifest below `image` that suits this machine best among those that the source has; any, when none does.
pub fn choose(source: &dyn ImageSource, image: &Descriptor, depth: usize) -> Result<Option<(Descriptor, Manifest)>> {
    let Some(bytes) = source.document(image)? else {
        return Ok(None);
    };
    let index = match Document::parse(&bytes, Some(&image.media_type))? {
        Document::Manifest(manifest) => return Ok(Some((image.clone(), manifest))),
        Document::Index(index) => index,
    };
    if depth >= limits::INDEX_DEPTH {
        let what = format!("index {}", image.digest);
        return Err(StoreError::Limit { what, limit: limits::INDEX_DEPTH as u64, unit: "levels" });
    }
    for child in by_preference(&index) {
        if let Some(found) = choose(source, child, depth + 1)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn by_preference(index: &Index) -> Vec<&Descriptor> {
    let host = rbuild_oci::Platform::host();
    let rank = |child: &&Descriptor| match &child.platform {
        Some(platform) => platform.rank_for(&host).unwrap_or(u32::MAX),
        None => u32::MAX - 1,
    };
    let mut children: Vec<&Descriptor> = index.manifests.iter().filter(|child| !child.is_attestation()).collect();
    children.sort_by_key(rank);
    children
}

/// A manifest of the same image whose layers are compressed as `how`; it and they are in the store, kept by `lease`.
/// Layers that are compressed in some way stay as they are, unless `all` are to be in the same way.
pub fn compressed(
    store: &Store,
    manifest: &Manifest,
    diff_ids: &[DiffId],
    how: Compression,
    level: i32,
    all: bool,
    lease: &Lease,
) -> Result<Descriptor> {
    if manifest.layers.len() != diff_ids.len() {
        return Err(StoreError::invalid("image", "its manifest and its config have different numbers of layers"));
    }
    let mut changed = manifest.clone();
    for (layer, diff_id) in changed.layers.iter_mut().zip(diff_ids) {
        let now = layer.media_type.layer_compression();
        if now != Some(how) && (all || now == Some(Compression::None)) {
            let annotations = std::mem::take(&mut layer.annotations);
            *layer = store.layers().compress(diff_id, how, level, lease)?;
            layer.annotations = annotations;
        }
    }
    put_manifest(store.blobs(), &changed, lease)
}

/// An image with no file in its own layers newer than `epoch` (seconds since 1970): those above the first `base` layers
/// are written again, as blobs kept by `lease`. For builds that are to give the same digest at any time.
pub fn clamped(
    store: &Store,
    manifest: &Manifest,
    config: &ImageConfig,
    base: usize,
    epoch: i64,
    lease: &Lease,
) -> Result<(Manifest, ImageConfig)> {
    let (mut manifest, mut config) = (manifest.clone(), config.clone());
    if manifest.layers.len() != config.rootfs.diff_ids.len() {
        return Err(StoreError::invalid("image", "its manifest and its config have different numbers of layers"));
    }
    for (layer, diff_id) in manifest.layers.iter_mut().zip(&mut config.rootfs.diff_ids).skip(base) {
        let blob = clamp_layer(store, diff_id, epoch, lease)?;
        *diff_id = DiffId(blob.digest.clone());
        *layer = blob;
    }
    let bytes = config.to_canonical_json();
    let digest = store.blobs().put_bytes(&bytes, lease)?;
    manifest.config = Descriptor { digest, size: bytes.len() as u64, ..manifest.config };
    Ok((manifest, config))
}

fn clamp_layer(store: &Store, diff_id: &DiffId, epoch: i64, lease: &Lease) -> Result<Descriptor> {
    let what = || format!("rewriting layer {diff_id}");
    let mut reader = Reader::new(store.layers().open_diff(diff_id)?);
    let mut writer = Writer::new(store.blobs().writer(lease)?);
    while let Some(mut entry) = reader.next()? {
        if entry.mtime.seconds >= epoch {
            entry.mtime = Timestamp::new(epoch, 0);
        }
        writer.entry(&entry).context(what)?;
        let mut body = reader.body();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match body.read(&mut buffer).map_err(|e| from_io(&what(), e))? {
                0 => break,
                len => writer.body(&buffer[..len]).context(what)?,
            }
        }
    }
    let (blob, _) = writer.finish().context(what)?;
    let (digest, size) = blob.commit(None, None)?;
    Ok(Descriptor::new(MediaType::OciLayer, digest, size))
}

/// Stores a manifest, kept by `lease`.
pub fn put_manifest(blobs: &Blobs, manifest: &Manifest, lease: &Lease) -> Result<Descriptor> {
    let bytes =
        serde_json::to_vec(manifest).map_err(std::io::Error::from).context(|| "writing a manifest".to_owned())?;
    let digest = blobs.put_bytes(&bytes, lease)?;
    let media_type = manifest.media_type.clone().unwrap_or(MediaType::OciManifest);
    Ok(Descriptor::new(media_type, digest, bytes.len() as u64))
}
