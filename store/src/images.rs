//! Images: names, and what they lead to.
//!
//! An image is the digest of a manifest or index; a name is a row that points at one. An image that lost its last name
//! stays, dangling, until somebody removes it. What an image consists of is written down as references when it is put,
//! so that collection needs to parse nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use rbuild_oci::{
    ChainId, Descriptor, Digest, Document, ImageConfig, ImageId, Manifest, MediaType, Platform, Reference, limits,
};
use rusqlite::{OptionalExtension, Row, Transaction, params};

use crate::blobs::Blobs;
use crate::db::{self, Durability, nanos};
use crate::error::{Result, StoreError};
use crate::flush;
use crate::lease::{Lease, Target};
use crate::store::Core;

const COLUMNS: &str = "target, media_type, size, image_id, chain_id, created";

/// The images of a store.
#[derive(Clone)]
pub struct Images {
    core: Arc<Core>,
    blobs: Blobs,
}

/// An image to be made known. Its manifest or index and its config are in the store already.
#[derive(Debug, Clone)]
pub struct NewImage {
    pub target: Descriptor,
    /// The config of the manifest that `target` is, or that was chosen from the index it is.
    pub config: Digest,
    pub names: Vec<Reference>,
}

/// An image in the store.
#[derive(Debug, Clone)]
pub struct ImageRecord {
    pub target: Descriptor,
    pub id: ImageId,
    /// Sorted. Empty for one that dangles.
    pub names: Vec<Reference>,
    /// When it was put into this store for the first time.
    pub created_here: SystemTime,
    pub config: ImageConfig,
    /// Of its file system; `None` when it has no layers.
    pub chain_id: Option<ChainId>,
}

/// What came of taking a name away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Untagged {
    pub name: Reference,
    pub target: Digest,
    /// Names that the image still has.
    pub left: usize,
}

/// One line of what a removal did, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    Untagged(Reference),
    Deleted(ImageId),
    /// A layer with all that is below it, which nothing else used; for those who collect to tell.
    Layer(ChainId),
}

impl Images {
    pub(crate) fn new(core: &Arc<Core>) -> Images {
        Images { core: Arc::clone(core), blobs: Blobs::new(core) }
    }

    /// All images, newest here first, those that dangle included. One whose config cannot be read is left out with a
    /// warning.
    pub fn list(&self) -> Result<Vec<ImageRecord>> {
        let rows = self.core.db.read(|tx| {
            let mut names: BTreeMap<String, Vec<Reference>> = BTreeMap::new();
            let mut query = tx.prepare_cached("SELECT target, name FROM names ORDER BY name")?;
            for row in query.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))? {
                let (target, name) = row?;
                names.entry(target).or_default().push(Reference::parse(&name)?);
            }
            let mut query =
                tx.prepare_cached(&format!("SELECT {COLUMNS} FROM images ORDER BY created DESC, target"))?;
            let rows = query.query_map([], |row| Ok(ImageRow::of(row)))?;
            let mut images = Vec::new();
            for row in rows {
                let row = row??;
                let names = names.remove(&row.target.digest.to_string()).unwrap_or_default();
                images.push((row, names));
            }
            Ok(images)
        })?;
        let mut images = Vec::new();
        for (row, names) in rows {
            let id = row.id.clone();
            match self.complete(row, names) {
                Ok(image) => images.push(image),
                Err(error) => tracing::warn!("image {} cannot be listed: {error}", id.0),
            }
        }
        Ok(images)
    }

    /// The image that somebody means by `text`: a full id, a name, a name with a digest, or the beginning of an id, in
    /// that order.
    pub fn resolve(&self, text: &str) -> Result<ImageRecord> {
        self.find(text)?.ok_or_else(|| StoreError::NoImage(shown(text)))
    }

    /// As [`Images::resolve`], with `None` for one that is not there.
    pub fn find(&self, text: &str) -> Result<Option<ImageRecord>> {
        let bare = text.strip_prefix("sha256:").unwrap_or(text);
        let is_hex =
            !bare.is_empty() && bare.len() <= 64 && bare.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let found = self.core.db.read(|tx| {
            if is_hex && bare.len() == 64 {
                return by_id_prefix(tx, bare, text);
            }
            if let Ok(reference) = Reference::parse(text)
                && let Some(found) = by_reference(tx, &reference)?
            {
                return Ok(Some(found));
            }
            if is_hex { by_id_prefix(tx, bare, text) } else { Ok(None) }
        })?;
        found.map(|(row, names)| self.complete(row, names)).transpose()
    }

    /// The image of this name, or of this repository and digest.
    pub fn get(&self, name: &Reference) -> Result<Option<ImageRecord>> {
        let found = self.core.db.read(|tx| by_reference(tx, name))?;
        found.map(|(row, names)| self.complete(row, names)).transpose()
    }

    /// The image whose manifest or index has this digest.
    pub fn by_target(&self, target: &Digest) -> Result<Option<ImageRecord>> {
        let found = self.core.db.read(|tx| with_names(tx, row_of(tx, target)?))?;
        found.map(|(row, names)| self.complete(row, names)).transpose()
    }

    /// Makes an image known and gives it its names, on disk when this returns. An old image of one of the names keeps its
    /// others, or dangles.
    pub fn put(&self, image: &NewImage, lease: &Lease) -> Result<ImageRecord> {
        let config_bytes = self.blobs.read(&image.config, limits::CONFIG)?;
        let config = ImageConfig::parse(&config_bytes)?;
        let chain_id = config.chain_id();
        // What an index names may have come since it was put.
        if image.target.media_type.is_index() || !self.is_put(image)? {
            let parts = self.parts(image)?;
            let generation = flush::flush_files(&self.core)?;
            self.core.faults.pass("image.flushed")?;
            self.core.db.write(Durability::Named, |tx| {
                if let Some(generation) = generation {
                    flush::clear_marks(tx, generation)?;
                }
                self.insert(tx, image, chain_id.as_ref(), &parts)?;
                lease.hold_in(tx, &Target::Image(image.target.digest.clone()))
            })?;
            self.core.faults.pass("image.row")?;
            lease.note(&[Target::Image(image.target.digest.clone())]);
        }
        let record = self.by_target(&image.target.digest)?;
        record.ok_or_else(|| StoreError::NoImage(image.target.digest.to_string()))
    }

    /// Gives an image one more name, on disk when this returns; the name leaves another image that had it.
    pub fn tag(&self, target: &Digest, name: &Reference) -> Result<()> {
        let known = self.core.db.read(|tx| target_of(tx, name))?;
        if known.as_ref() == Some(target) {
            return Ok(());
        }
        self.core.db.write(Durability::Named, |tx| {
            if row_of(tx, target)?.is_none() {
                return Err(StoreError::NoImage(target.to_string()));
            }
            set_name(tx, name, target)
        })
    }

    /// Takes a name away and leaves the image. `None` when there is no such name.
    pub fn untag(&self, name: &Reference) -> Result<Option<Untagged>> {
        self.core.make_room();
        self.core.db.write(Durability::Named, |tx| {
            let Some(target) = target_of(tx, name)? else { return Ok(None) };
            tx.prepare_cached("DELETE FROM names WHERE name = ?")?.execute([name.canonical()])?;
            let left = names_of(tx, &target)?.len();
            Ok(Some(Untagged { name: name.clone(), target, left }))
        })
    }

    /// Removes an image with all its names. An error when a container uses it, unless `despite_users`: then only the
    /// names go and the image stays, dangling. Its content goes with the next collection.
    pub fn remove(&self, target: &Digest, despite_users: bool) -> Result<Vec<Removed>> {
        self.core.make_room();
        let removed = self.core.db.write(Durability::Named, |tx| {
            let Some((row, names)) = with_names(tx, row_of(tx, target)?)? else {
                return Err(StoreError::NoImage(target.to_string()));
            };
            let users = users(tx, target)?;
            if !users.is_empty() && !despite_users {
                return Err(StoreError::ImageInUse { image: row.id.0.short().to_owned(), users });
            }
            let digest = target.to_string();
            tx.prepare_cached("DELETE FROM names WHERE target = ?")?.execute([&digest])?;
            let mut removed: Vec<Removed> = names.into_iter().map(Removed::Untagged).collect();
            if users.is_empty() {
                tx.prepare_cached("DELETE FROM images WHERE target = ?")?.execute([&digest])?;
                removed.push(Removed::Deleted(row.id));
            }
            Ok(removed)
        })?;
        self.core.faults.pass("image.removed")?;
        Ok(removed)
    }

    /// The containers that use an image: owners of references to it, like `container:<id>`.
    pub fn users(&self, target: &Digest) -> Result<Vec<String>> {
        self.core.db.read(|tx| users(tx, target))
    }

    /// The manifest of an image for a platform, with its config and its descriptor.
    pub fn manifest(&self, image: &ImageRecord, platform: &Platform) -> Result<(Manifest, ImageConfig, Descriptor)> {
        let descriptor = self.choose(&image.target, platform, 0)?;
        let Some(descriptor) = descriptor else {
            let name = image.names.first().map_or_else(|| image.id.0.to_string(), Reference::familiar);
            return Err(StoreError::NoPlatform { image: name, platform: platform.to_string() });
        };
        let manifest = match self.document(&descriptor)? {
            Document::Manifest(manifest) => manifest,
            Document::Index(_) => unreachable!("choose goes through indexes"),
        };
        let config = ImageConfig::parse(&self.blobs.read(&manifest.config.digest, limits::CONFIG)?)?;
        Ok((manifest, config, descriptor))
    }

    /// The manifest below `descriptor` that suits `platform` best; a plain manifest suits always.
    fn choose(&self, descriptor: &Descriptor, platform: &Platform, depth: usize) -> Result<Option<Descriptor>> {
        let index = match self.document(descriptor)? {
            Document::Manifest(_) => return Ok(Some(descriptor.clone())),
            Document::Index(index) => index,
        };
        if depth >= limits::INDEX_DEPTH {
            let what = format!("index {}", descriptor.digest);
            return Err(StoreError::Limit { what, limit: limits::INDEX_DEPTH as u64, unit: "levels" });
        }
        let mut candidates: Vec<(u32, &Descriptor)> = Vec::new();
        for child in index.manifests.iter().filter(|child| !child.is_attestation()) {
            let rank = match &child.platform {
                Some(offered) => offered.rank_for(platform),
                None => Some(u32::MAX),
            };
            if let Some(rank) = rank
                && self.blobs.has(&child.digest)?
            {
                candidates.push((rank, child));
            }
        }
        candidates.sort_by_key(|(rank, _)| *rank);
        for (_, child) in candidates {
            if let Some(found) = self.choose(child, platform, depth + 1)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn document(&self, descriptor: &Descriptor) -> Result<Document> {
        let bytes = self.blobs.read(&descriptor.digest, limits::MANIFEST.max(limits::INDEX))?;
        Ok(Document::parse(&bytes, Some(&descriptor.media_type))?)
    }

    /// Whether all of `image` is as it should be already: then a no-op build has nothing to write.
    fn is_put(&self, image: &NewImage) -> Result<bool> {
        self.core.db.read(|tx| {
            let Some(row) = row_of(tx, &image.target.digest)? else { return Ok(false) };
            if row.id.0 != image.config {
                return Ok(false);
            }
            for name in &image.names {
                if target_of(tx, name)?.as_ref() != Some(&image.target.digest) {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// What `image` consists of.
    fn parts(&self, image: &NewImage) -> Result<Parts> {
        let mut blobs = BTreeSet::from([image.config.clone()]);
        let mut layers = None;
        let mut queue = vec![(image.target.clone(), 0)];
        while let Some((descriptor, depth)) = queue.pop() {
            blobs.insert(descriptor.digest.clone());
            match self.document(&descriptor)? {
                Document::Manifest(manifest) => {
                    let own: Vec<Digest> = manifest.layers.into_iter().map(|layer| layer.digest).collect();
                    blobs.extend(own.iter().cloned());
                    if manifest.config.digest == image.config {
                        layers = Some(own);
                    }
                    blobs.insert(manifest.config.digest);
                }
                Document::Index(_) if depth >= limits::INDEX_DEPTH => {
                    let what = format!("index {}", descriptor.digest);
                    return Err(StoreError::Limit { what, limit: limits::INDEX_DEPTH as u64, unit: "levels" });
                }
                Document::Index(index) => {
                    for child in index.manifests {
                        let known = child.media_type.is_manifest() || child.media_type.is_index();
                        if known && !blobs.contains(&child.digest) && self.blobs.has(&child.digest)? {
                            queue.push((child, depth + 1));
                        }
                    }
                }
            }
        }
        let what = || format!("image {}", image.target.digest);
        let layers = layers
            .ok_or_else(|| StoreError::invalid(what(), format!("it has no manifest with config {}", image.config)))?;
        Ok(Parts { blobs, layers })
    }

    fn insert(&self, tx: &Transaction<'_>, image: &NewImage, chain_id: Option<&ChainId>, parts: &Parts) -> Result<()> {
        let target = image.target.digest.to_string();
        for digest in [&image.target.digest, &image.config] {
            if !has_blob(tx, digest)? {
                return Err(StoreError::NoBlob(digest.clone()));
            }
        }
        tx.prepare_cached(
            "INSERT INTO images (target, media_type, size, image_id, config_digest, chain_id, created)
             VALUES (?1, ?2, ?3, ?4, ?4, ?5, ?6)
             ON CONFLICT (target) DO UPDATE SET image_id = ?4, config_digest = ?4, chain_id = ?5",
        )?
        .execute(params![
            target,
            image.target.media_type.as_str(),
            i64::try_from(image.target.size).unwrap_or(i64::MAX),
            image.config.to_string(),
            chain_id.map(|chain| chain.0.to_string()),
            nanos(SystemTime::now())
        ])?;
        let owner = format!("image:{target}");
        for digest in &parts.blobs {
            tx.prepare_cached(
                "INSERT OR IGNORE INTO refs (owner, target) SELECT ?1, 'blob:' || digest FROM blobs WHERE digest = ?2",
            )?
            .execute([&owner, &digest.to_string()])?;
        }
        keep_layers(tx, &owner, image, chain_id, parts)?;
        for name in &image.names {
            set_name(tx, name, &image.target.digest)?;
        }
        Ok(())
    }

    fn complete(&self, row: ImageRow, names: Vec<Reference>) -> Result<ImageRecord> {
        let config = ImageConfig::parse(&self.blobs.read(&row.id.0, limits::CONFIG)?)?;
        Ok(ImageRecord {
            target: row.target,
            id: row.id,
            names,
            created_here: row.created,
            config,
            chain_id: row.chain_id,
        })
    }
}

/// What an image consists of.
struct Parts {
    /// Manifests, configs and layers of all its platforms, as far as they are blobs in the store.
    blobs: BTreeSet<Digest>,
    /// The layers of the manifest whose config was named.
    layers: Vec<Digest>,
}

struct ImageRow {
    target: Descriptor,
    id: ImageId,
    chain_id: Option<ChainId>,
    created: SystemTime,
}

impl ImageRow {
    fn of(row: &Row<'_>) -> Result<ImageRow> {
        let media_type = MediaType::from(row.get::<_, String>("media_type")?.as_str());
        let size = row.get::<_, i64>("size")?.unsigned_abs();
        let chain_id: Option<String> = row.get("chain_id")?;
        Ok(ImageRow {
            target: Descriptor::new(media_type, row.get::<_, String>("target")?.parse()?, size),
            id: ImageId(row.get::<_, String>("image_id")?.parse()?),
            chain_id: chain_id.map(|text| text.parse().map(ChainId)).transpose()?,
            created: db::time(row.get("created")?),
        })
    }
}

fn row_of(tx: &Transaction<'_>, target: &Digest) -> Result<Option<ImageRow>> {
    let mut query = tx.prepare_cached(&format!("SELECT {COLUMNS} FROM images WHERE target = ?"))?;
    query.query_row([target.to_string()], |row| Ok(ImageRow::of(row))).optional()?.transpose()
}

fn with_names(tx: &Transaction<'_>, row: Option<ImageRow>) -> Result<Option<(ImageRow, Vec<Reference>)>> {
    let Some(row) = row else { return Ok(None) };
    let names = names_of(tx, &row.target.digest)?;
    Ok(Some((row, names)))
}

fn names_of(tx: &Transaction<'_>, target: &Digest) -> Result<Vec<Reference>> {
    let mut query = tx.prepare_cached("SELECT name FROM names WHERE target = ? ORDER BY name")?;
    let rows = query.query_map([target.to_string()], |row| row.get::<_, String>(0))?;
    rows.map(|name| Ok(Reference::parse(&name?)?)).collect()
}

fn target_of(tx: &Transaction<'_>, name: &Reference) -> Result<Option<Digest>> {
    let mut query = tx.prepare_cached("SELECT target FROM names WHERE name = ?")?;
    let target: Option<String> = query.query_row([name.canonical()], |row| row.get(0)).optional()?;
    Ok(target.map(|text| text.parse()).transpose()?)
}

fn set_name(tx: &Transaction<'_>, name: &Reference, target: &Digest) -> Result<()> {
    tx.prepare_cached(
        "INSERT INTO names (name, target, updated) VALUES (?1, ?2, ?3)
         ON CONFLICT (name) DO UPDATE SET target = ?2, updated = ?3",
    )?
    .execute(params![name.canonical(), target.to_string(), nanos(SystemTime::now())])?;
    Ok(())
}

fn has_blob(tx: &Transaction<'_>, digest: &Digest) -> Result<bool> {
    Ok(tx.prepare_cached("SELECT 1 FROM blobs WHERE digest = ?")?.exists([digest.to_string()])?)
}

/// Makes sure that every layer is a blob or a snapshot. Snapshots that are the image's very stack are found by its chain
/// id; others, in a stack that holds more than the image does, are kept by references of their own.
fn keep_layers(
    tx: &Transaction<'_>,
    owner: &str,
    image: &NewImage,
    chain_id: Option<&ChainId>,
    parts: &Parts,
) -> Result<()> {
    if let Some(chain) = chain_id
        && tx.prepare_cached("SELECT 1 FROM snapshots WHERE chain_id = ?")?.exists([chain.0.to_string()])?
    {
        return Ok(());
    }
    for layer in &parts.layers {
        if has_blob(tx, layer)? {
            continue;
        }
        let kept = tx
            .prepare_cached(
                "INSERT OR REPLACE INTO refs (owner, target)
                 SELECT ?1, 'snapshot:' || id FROM snapshots WHERE diff_id = ?2 ORDER BY length(id), id LIMIT 1",
            )?
            .execute([owner, &layer.to_string()])?;
        if kept == 0 {
            let what = format!("image {}", image.target.digest);
            return Err(StoreError::invalid(what, format!("its layer {layer} is not in the store")));
        }
    }
    Ok(())
}

fn users(tx: &Transaction<'_>, target: &Digest) -> Result<Vec<String>> {
    let mut query = tx.prepare_cached(
        "SELECT owner FROM refs WHERE target = 'image:' || ? AND owner NOT LIKE 'lease:%' ORDER BY owner",
    )?;
    let rows = query.query_map([target.to_string()], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// By name; or by digest, where the repository must be one that the image has a name in.
fn by_reference(tx: &Transaction<'_>, reference: &Reference) -> Result<Option<(ImageRow, Vec<Reference>)>> {
    if let Some(target) = target_of(tx, reference)? {
        return with_names(tx, row_of(tx, &target)?);
    }
    let Some(digest) = reference.digest() else { return Ok(None) };
    let found = with_names(tx, row_of(tx, digest)?)?;
    Ok(found.filter(|(_, names)| names.iter().any(|name| name.without_tag() == repository(reference))))
}

fn repository(reference: &Reference) -> Reference {
    reference.without_tag()
}

/// By the digits an image id (or the digest of its manifest) begins with.
fn by_id_prefix(tx: &Transaction<'_>, hex: &str, text: &str) -> Result<Option<(ImageRow, Vec<Reference>)>> {
    let find = |column: &str| -> Result<Vec<ImageRow>> {
        // The digits were checked, so the bounds hold exactly those that begin with them.
        let mut query = tx.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM images WHERE {column} >= 'sha256:' || ?1 AND {column} < 'sha256:' || ?1 || 'g'
             ORDER BY EXISTS (SELECT 1 FROM names WHERE names.target = images.target) DESC, created DESC"
        ))?;
        query.query_map([hex], |row| Ok(ImageRow::of(row)))?.map(|row| row?).collect()
    };
    let mut found = find("image_id")?;
    if found.is_empty() {
        found = find("target")?;
    }
    if found.iter().any(|row| row.id != found[0].id) {
        return Err(StoreError::AmbiguousImage(text.to_owned()));
    }
    with_names(tx, found.into_iter().next())
}

/// How a message names what was asked for: `busybox:latest`.
fn shown(text: &str) -> String {
    match Reference::parse(text) {
        Ok(reference) => reference.familiar(),
        Err(_) => text.to_owned(),
    }
}
