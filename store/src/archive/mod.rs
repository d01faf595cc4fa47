//! Images in archives: what `save` writes and `load` reads, and file systems without an image.
//!
//! Saved archives are two things in one: a docker archive (`manifest.json`, `repositories`) and an OCI layout
//! (`oci-layout`, `index.json`), over the same blobs. Loading takes every form docker has written since 2013, OCI
//! layouts, and both in one, compressed or not. Nothing is shown in the store before all of an archive proved right; of
//! a refused one nothing stays.

mod docker;
mod layout;
mod spool;

use std::collections::BTreeSet;
use std::io::Read;

use rbuild_oci::{
    ChainId, Compression, Descriptor, DiffId, Digest, HistoryEntry, ImageConfig, Manifest, MediaType, Reference, limits,
};

use crate::collect::{CollectOptions, Records};
use crate::error::{Context, Result, StoreError};
use crate::images::{ImageRecord, NewImage};
use crate::layers::compress::{Codec, Decompressed};
use crate::layers::from_io;
use crate::layers::read::Reader;
use crate::lease::Lease;
use crate::store::Store;
use crate::transfer::put_manifest;

pub use layout::{DirectorySink, REF_NAME, Saved, TarSink, name_of, save, select, whole};

use spool::{Spool, invalid};

/// An image that was loaded. Without names it is shown by its id.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub record: ImageRecord,
    /// The names the archive gave it.
    pub names: Vec<Reference>,
    /// The tag that an OCI layout gave it in place of a name.
    pub tag: Option<String>,
}

/// Headers looked at to tell whether a layer may be one of ours.
const LOOK_AT: usize = 64;

/// An image as an archive describes it.
struct Planned {
    config_bytes: Vec<u8>,
    config: ImageConfig,
    names: Vec<Reference>,
    tag: Option<String>,
    /// Its layers' blobs, lowest first.
    layers: Vec<Descriptor>,
    /// The manifest or index that came with it and what of it is in the archive; without one, a manifest is made.
    target: Option<Descriptor>,
}

/// Loads all images of an archive. `progress` is told how many bytes have been read.
///
/// # Errors
/// [`StoreError::Invalid`] naming the member that is wrong, missing or there twice. Nothing is in the store then that was
/// not there before.
pub fn load(input: impl Read + Send, store: &Store, lease: &Lease, progress: &dyn Fn(u64)) -> Result<Vec<Loaded>> {
    load_as(input, store, lease, progress, true)
}

/// As [`load`], but nothing gets a name in the store: for images on their way to somewhere else.
///
/// # Errors
/// As [`load`].
pub fn hold(input: impl Read + Send, store: &Store, lease: &Lease, progress: &dyn Fn(u64)) -> Result<Vec<Loaded>> {
    load_as(input, store, lease, progress, false)
}

fn load_as(
    input: impl Read + Send,
    store: &Store,
    lease: &Lease,
    progress: &dyn Fn(u64),
    named: bool,
) -> Result<Vec<Loaded>> {
    let own = store.lease("loading an archive")?;
    let loaded = load_with(input, store, &own, progress, named);
    if let Ok(loaded) = &loaded {
        for image in loaded {
            lease.hold(&crate::lease::Target::Image(image.record.target.digest.clone()))?;
        }
    }
    drop(own);
    if loaded.is_err()
        && let Err(error) = store.collect(&CollectOptions { records: Records::None })
    {
        tracing::warn!("removing what a refused archive brought: {error}"); // the next collection will
    }
    loaded
}

fn load_with(
    input: impl Read + Send,
    store: &Store,
    lease: &Lease,
    progress: &dyn Fn(u64),
    named: bool,
) -> Result<Vec<Loaded>> {
    let mut spool = Spool::read(input, store, lease, progress)?;
    let plans = if spool.has("manifest.json") {
        docker::read(&mut spool)?
    } else if spool.has("index.json") {
        layout::read(&mut spool)?
    } else if spool.has("repositories") {
        docker::read_legacy(&mut spool)?
    } else {
        let reason = "it has neither manifest.json nor index.json nor repositories";
        return Err(StoreError::invalid("image archive", reason));
    };
    let mut needed = BTreeSet::new();
    let mut ready = Vec::new();
    for plan in plans {
        ready.push((prepare(&mut spool, &plan, &mut needed)?, plan));
    }
    // Before images refer to them.
    spool.discard(&needed)?;
    let mut loaded: Vec<Loaded> = Vec::new();
    for (image, Planned { names, tag, .. }) in ready {
        let given = if named { names.clone() } else { Vec::new() };
        let record = store.images().put(&NewImage { names: given, ..image }, lease)?;
        match loaded.iter_mut().find(|other| other.record.target.digest == record.target.digest) {
            Some(other) => {
                other.names.extend(names);
                other.tag = other.tag.take().or(tag);
                other.record = record;
            }
            None => loaded.push(Loaded { record, names, tag }),
        }
    }
    Ok(loaded)
}

/// Unpacks an image and decides what of it has to be kept as it came.
fn prepare(spool: &mut Spool, plan: &Planned, needed: &mut BTreeSet<Digest>) -> Result<NewImage> {
    let store = spool.store.clone();
    let (config_digest, config_size) = spool.put(&plan.config_bytes)?;
    let config_type = MediaType::OciConfig;
    let mut manifest =
        Manifest::new(Descriptor::new(config_type, config_digest.clone(), config_size), plan.layers.clone());
    store.layers().unpack(&manifest, &plan.config, &spool.lease)?;
    needed.insert(config_digest.clone());
    for (at, layer) in plan.layers.iter().enumerate() {
        let diff_ids = &plan.config.rootfs.diff_ids[..=at];
        manifest.layers[at] = match again(spool, layer, diff_ids)? {
            Some(own) => own,
            None => {
                let kept = keep(spool, layer, &diff_ids[at])?;
                needed.insert(kept.digest.clone());
                kept
            }
        };
    }
    let target = match &plan.target {
        Some(target) => {
            // Its own manifest names compressed layers by their compressed digests.
            needed.extend(plan.layers.iter().filter(|layer| !is_plain(layer)).map(|layer| layer.digest.clone()));
            bring(spool, target, needed, 0)?;
            target.clone()
        }
        None => put_manifest(store.blobs(), &manifest, &spool.lease)?,
    };
    needed.insert(target.digest.clone());
    Ok(NewImage { target, config: config_digest, names: Vec::new() })
}

fn is_plain(layer: &Descriptor) -> bool {
    layer.media_type.layer_compression() == Some(Compression::None)
}

/// Stores an index or manifest of the archive, and of an index whatever else the archive has whole.
fn bring(spool: &mut Spool, document: &Descriptor, needed: &mut BTreeSet<Digest>, depth: usize) -> Result<()> {
    use crate::transfer::ImageSource;
    let Some(bytes) = spool.document(document)? else {
        return Ok(());
    };
    match rbuild_oci::Document::parse(&bytes, Some(&document.media_type))? {
        rbuild_oci::Document::Manifest(manifest) => {
            let parts: Vec<Descriptor> = [manifest.config].into_iter().chain(manifest.layers).collect();
            if depth > 0 && !parts.iter().all(|part| spool.has(&spool::blob_name(&part.digest))) {
                return Ok(()); // another platform, of which only the manifest was saved
            }
            for part in parts {
                // A plain layer that can be made again is not needed as a blob; the one who unpacked it decided.
                if depth > 0 && !needed.contains(&part.digest) {
                    spool.content(&part)?;
                    needed.insert(part.digest);
                }
            }
        }
        rbuild_oci::Document::Index(_) if depth >= limits::INDEX_DEPTH => {
            let what = format!("index {}", document.digest);
            return Err(StoreError::Limit { what, limit: limits::INDEX_DEPTH as u64, unit: "levels" });
        }
        rbuild_oci::Document::Index(index) => {
            for child in &index.manifests {
                bring(spool, child, needed, depth + 1)?;
            }
        }
    }
    spool.content(document)?;
    needed.insert(document.digest.clone());
    Ok(())
}

/// The plain tar of an unpacked layer, when its snapshot gives the same bytes again.
fn again(spool: &Spool, layer: &Descriptor, diff_ids: &[DiffId]) -> Result<Option<Descriptor>> {
    let store = &spool.store;
    let (Some(diff_id), Some(chain)) = (diff_ids.last(), ChainId::of(diff_ids)) else {
        return Ok(None);
    };
    let blob = store.blobs().reader(&layer.digest)?;
    let plain = Decompressed::new(blob).map_err(|e| from_io(&format!("reading layer {}", layer.digest), e))?;
    if !may_be_ours(plain) {
        return Ok(None);
    }
    let Some(snapshot) = store.snapshots().by_chain_id(&chain, &spool.lease)? else {
        return Ok(None);
    };
    let canonical = store.layers().canonical(snapshot.id())?;
    let same = canonical.diff_id == *diff_id;
    Ok(same.then(|| Descriptor::new(MediaType::OciLayer, canonical.diff_id.0, canonical.size)))
}

/// The blob that came as a layer, decompressed where no media type has a word for how it is compressed.
fn keep(spool: &Spool, layer: &Descriptor, diff_id: &DiffId) -> Result<Descriptor> {
    let store = &spool.store;
    let what = || format!("reading layer {}", layer.digest);
    let mut plain = Decompressed::new(store.blobs().reader(&layer.digest)?).map_err(|e| from_io(&what(), e))?;
    if plain.codec.compression().is_some() {
        return Ok(layer.clone());
    }
    let mut blob = store.blobs().writer(&spool.lease)?;
    std::io::copy(&mut plain, &mut blob).map_err(|e| from_io(&what(), e))?;
    let (digest, size) = blob.commit(Some(&diff_id.0), None)?;
    Ok(Descriptor::new(MediaType::OciLayer, digest, size))
}

/// Whether the first headers of a tar are as our own writer makes them.
fn may_be_ours(tar: impl Read) -> bool {
    let mut reader = Reader::new(tar);
    for _ in 0..LOOK_AT {
        match reader.next() {
            Ok(Some(_)) if reader.is_canonical() => {}
            Ok(None) => break,
            _ => return false,
        }
    }
    true
}

/// How a blob of an archive is compressed, by its content: archives do not say.
fn layer_descriptor(spool: &Spool, digest: Digest, size: u64) -> Result<Descriptor> {
    let mut start = Vec::new();
    let mut file = spool.store.blobs().open(&digest)?.take(6);
    file.read_to_end(&mut start).context(|| format!("reading blob {digest}"))?;
    let media_type = match Codec::detect(&start) {
        Codec::Gzip => MediaType::OciLayerGzip,
        Codec::Zstd => MediaType::OciLayerZstd,
        // For the others there is no word; what unpacks looks at the content.
        Codec::Plain | Codec::Bzip2 | Codec::Xz => MediaType::OciLayer,
    };
    Ok(Descriptor::new(media_type, digest, size))
}

fn config_of(name: &str, bytes: &[u8]) -> Result<ImageConfig> {
    let config = ImageConfig::parse(bytes).map_err(|error| invalid(name.as_bytes(), &error.to_string()))?;
    if config.rootfs.diff_ids.len() > limits::LAYERS {
        let what = format!("layers in {name} of the image archive");
        return Err(StoreError::Limit { what, limit: limits::LAYERS as u64, unit: "layers" });
    }
    Ok(config)
}

/// Makes an image of one layer from an archive of a file system, compressed or not. `config` is complete but for its
/// layers; its last history entry, if it has one, is about this layer.
pub fn import(
    input: impl Read + Send,
    config: ImageConfig,
    names: Vec<Reference>,
    store: &Store,
    lease: &Lease,
) -> Result<ImageRecord> {
    let own = store.lease("importing a file system")?;
    let imported = import_with(input, config, names, store, &own);
    match &imported {
        Ok(image) => lease.hold(&crate::lease::Target::Image(image.target.digest.clone()))?,
        Err(_) => {
            drop(own);
            if let Err(error) = store.collect(&CollectOptions { records: Records::None }) {
                tracing::warn!("removing what a refused archive brought: {error}");
            }
        }
    }
    imported
}

fn import_with(
    input: impl Read + Send,
    mut config: ImageConfig,
    names: Vec<Reference>,
    store: &Store,
    lease: &Lease,
) -> Result<ImageRecord> {
    let staged = store.layers().stage_rootfs(input, lease)?;
    let applied = store.layers().stack_anew(staged, None)?;
    config.rootfs.diff_ids = vec![applied.diff_id.clone()];
    if config.history.is_empty() {
        config.history.push(HistoryEntry { created: config.created.clone(), ..HistoryEntry::default() });
    }
    let bytes = config.to_canonical_json();
    let digest = store.blobs().put_bytes(&bytes, lease)?;
    let config_descriptor = Descriptor::new(MediaType::OciConfig, digest.clone(), bytes.len() as u64);
    let layer = Descriptor::new(MediaType::OciLayer, applied.diff_id.0, applied.size);
    let target = put_manifest(store.blobs(), &Manifest::new(config_descriptor, vec![layer]), lease)?;
    store.images().put(&NewImage { target, config: digest, names }, lease)
}
