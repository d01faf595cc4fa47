//! Layers: the difference a snapshot makes, as a stream of bytes, and back.
//!
//! A layer that was made here is not stored: its tar is regenerated from the snapshot, bit for bit, whenever somebody
//! wants it ([`Layers::open_layer`]). A layer that came from elsewhere is kept as the blob that came, because nobody can make
//! those bytes again. Either way what is read is checked against its digest while it streams.
//!
//! Unpacking has two halves, so that layers can be unpacked side by side and while they arrive: [`Layers::stage`] puts
//! one layer into a directory of its own, which depends on nothing else; [`Layers::stack`] puts it on its parent.

mod apply;
mod changes;
pub mod compress;
mod diff;
mod merge;
mod pax;
mod pipe;
pub mod read;
mod staged;
pub mod tar;
mod walk;
mod whiteout;

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rbuild_oci::{ChainId, Compression, Descriptor, DiffId, Digest, ImageConfig, Manifest, MediaType, Sha256};

use crate::db::Durability;
use crate::error::{Context, Result, StoreError};
use crate::lease::Lease;
use crate::root::Root;
use crate::snapshots::{Driver, Snapshot, SnapshotId};
use crate::store::Store;

pub use changes::Change;
pub use staged::Staged;

use compress::{Compressor, Decompressed};
use walk::Tree;
use whiteout::Lowers;

/// Layers unpacked at the same time. More would only fight for the disk.
const AT_ONCE: usize = 4;

/// What identifies a layer, and the size of its tar in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDigest {
    pub diff_id: DiffId,
    pub size: u64,
    /// The newest time of an entry, in seconds since 1970; `None` for a layer of nothing, or one made elsewhere.
    pub newest: Option<i64>,
}

/// A layer that was unpacked.
#[derive(Debug, Clone)]
pub struct Applied {
    pub snapshot: Snapshot,
    pub diff_id: DiffId,
    /// Bytes of its tar.
    pub size: u64,
}

/// The layers of a store's snapshots.
#[derive(Clone)]
pub struct Layers {
    store: Store,
}

impl Store {
    /// Layers of this store's snapshots.
    pub fn layers(&self) -> Layers {
        Layers { store: self.clone() }
    }
}

impl Layers {
    /// The identity of a snapshot's layer. Computed once and then kept in its row.
    pub fn diff(&self, id: &SnapshotId) -> Result<LayerDigest> {
        let row = self.store.snapshots().row(id)?;
        if let (Some(diff_id), Some(size)) = (row.diff_id, row.tar_size) {
            return Ok(LayerDigest { diff_id, size, newest: row.newest });
        }
        let made = match &row.layer_of {
            Some(layer) => self.diff(layer)?,
            None => self.canonical(id)?,
        };
        self.store.snapshots().set_dated_layer(id, &made.diff_id, made.size, made.newest)?;
        Ok(made)
    }

    /// As [`Layers::diff`]; a layer that has to be read for it is compressed in the same pass, when it is to travel anyway:
    /// [`Layers::compress`] finds the blob, which `lease` holds.
    ///
    /// # Errors
    /// Those of both.
    pub fn diff_compressed(&self, id: &SnapshotId, how: Compression, level: i32, lease: &Lease) -> Result<LayerDigest> {
        let row = self.store.snapshots().row(id)?;
        if how == Compression::None || row.diff_id.is_some() || row.layer_of.is_some() {
            return self.diff(id);
        }
        let what = || format!("compressing the layer of snapshot {id}");
        let mut compressor = Compressor::new(self.store.blobs().writer(lease)?, how, level).context(what)?;
        let (digest, size, newest) = diff::digest_into(&self.tree(id)?, &mut compressor)?;
        let (blob, packed) = compressor.finish().context(what)?.commit(None, None)?;
        let diff_id = DiffId(digest);
        self.store.snapshots().set_dated_layer(id, &diff_id, size, newest)?;
        let blob = Descriptor::new(MediaType::oci_layer(how), blob, packed);
        self.note_blob(&diff_id, &blob, &compress::made_with(how, level))?;
        Ok(LayerDigest { diff_id, size, newest })
    }

    /// Tells what the layer of a snapshot does to files. Removed ones count as far as layers above the first `base` of
    /// the snapshot's stack hold them. (The drivers `vfs` and `btrfs` cannot tell whose a file is: there they count on base 0 only.)
    ///
    /// # Errors
    /// The snapshot is gone or cannot be read.
    pub fn changes(&self, id: &SnapshotId, base: usize, tell: &mut dyn FnMut(Change<'_>)) -> Result<()> {
        let snapshots = self.store.snapshots();
        let below = snapshots.row(id)?.parent.map(|parent| snapshots.chain(&parent)).transpose()?.unwrap_or_default();
        let tree = self.tree(id)?;
        // A layer may be spread over two directories.
        let lower = match base.checked_sub(1).and_then(|last| below.get(last.min(below.len().saturating_sub(1)))) {
            Some(top) if self.store.driver() == Driver::Overlay => snapshots.stack(top)?.len(),
            _ => base,
        };
        changes::visit(&tree, tree.lowers.len().saturating_sub(lower), tell)
    }

    /// Bytes of the files and links in a snapshot's own layer, each counted once however many names it has; the `vfs` driver counts
    /// those below it too.
    ///
    /// # Errors
    /// The snapshot is gone or cannot be read.
    pub fn content_bytes(&self, id: &SnapshotId) -> Result<u64> {
        let tree = Tree { lowers: Lowers::default(), ..self.tree(id)? };
        changes::content_bytes(&tree)
    }

    /// What the canonical tar of a snapshot is, whatever its row says.
    pub(crate) fn canonical(&self, id: &SnapshotId) -> Result<LayerDigest> {
        let (digest, size, newest) = diff::digest_of(&self.tree(id)?)?;
        Ok(LayerDigest { diff_id: DiffId(digest), size, newest })
    }

    /// Writes the tar of a snapshot's layer; returns its size.
    pub fn write_tar(&self, id: &SnapshotId, out: &mut dyn Write) -> Result<u64> {
        match self.store.snapshots().row(id)?.diff_id {
            Some(diff_id) => {
                let mut tar = self.open_diff(&diff_id)?;
                io::copy(&mut tar, out).map_err(|e| from_io("writing a layer", e))
            }
            None => diff::write_diff(&self.tree(id)?, out),
        }
    }

    /// The bytes that `layer` describes: the blob that came, or the tar made again from a snapshot. Reading fails at
    /// its end when they are not what the digest says.
    ///
    /// # Errors
    /// [`StoreError::NoBlob`] when there is neither.
    pub fn open_layer(&self, layer: &Descriptor) -> Result<Box<dyn Read + Send>> {
        self.open_diff(&DiffId(layer.digest.clone()))
    }

    /// Whether [`Layers::open_layer`] would find the bytes that this digest names.
    pub fn has(&self, digest: &Digest) -> Result<bool> {
        if self.store.blobs().has(digest)? {
            return Ok(true);
        }
        let diff_id = DiffId(digest.clone());
        for (blob, _) in self.known_blobs(&diff_id)? {
            if self.store.blobs().has(&blob)? {
                return Ok(true);
            }
        }
        Ok(!self.store.snapshots().by_diff_id(&diff_id)?.is_empty())
    }

    /// The uncompressed tar of a layer.
    pub fn open_diff(&self, diff_id: &DiffId) -> Result<Box<dyn Read + Send>> {
        if self.store.blobs().has(&diff_id.0)? {
            return Ok(Box::new(self.store.blobs().reader(&diff_id.0)?));
        }
        for (digest, _) in self.known_blobs(diff_id)? {
            if self.store.blobs().has(&digest)? {
                let blob = self.store.blobs().reader(&digest)?;
                let plain = Decompressed::new(blob).map_err(|e| from_io("reading a layer", e))?;
                return Ok(Box::new(Checked::new(plain, diff_id.0.clone())));
            }
        }
        self.regenerate(diff_id)?.ok_or_else(|| StoreError::NoBlob(diff_id.0.clone()))
    }

    fn regenerate(&self, diff_id: &DiffId) -> Result<Option<Box<dyn Read + Send>>> {
        let Some(tree) = self.tree_of(diff_id)? else { return Ok(None) };
        let tar = pipe::spawn(move |out| diff::write_diff(&tree, out).map(drop));
        Ok(Some(Box::new(Checked::new(tar, diff_id.0.clone()))))
    }

    /// A snapshot whose tar is this layer. Several may be said to be it, of which one is gone from the disk, and another
    /// was unpacked from an archive whose bytes nobody can make again: those whose tar was made here come first, and
    /// where there is a choice the others are read before they are believed.
    fn tree_of(&self, diff_id: &DiffId) -> Result<Option<Tree>> {
        let snapshots = self.store.snapshots();
        let mut rows = Vec::new();
        for id in snapshots.by_diff_id(diff_id)? {
            match snapshots.row(&id) {
                Err(error) if error.is_not_found() => {} // collected meanwhile
                row => rows.push(row?),
            }
        }
        rows.sort_by_key(|row| row.newest.is_none());
        let alone = rows.len() == 1;
        let mut failure = None;
        for row in rows {
            let tree = match self.tree(&row.id) {
                Ok(tree) => tree,
                Err(error) => {
                    failure.get_or_insert(error);
                    continue;
                }
            };
            if alone || row.newest.is_some() || diff::digest_of(&tree)?.0 == diff_id.0 {
                return Ok(Some(tree));
            }
        }
        failure.map_or(Ok(None), Err)
    }

    /// A blob with this layer compressed, held by `lease`: one that is known, else it is made and remembered. For
    /// [`Compression::None`] the tar itself is what is described, and nothing is stored.
    pub fn compress(&self, diff_id: &DiffId, how: Compression, level: i32, lease: &Lease) -> Result<Descriptor> {
        let media_type = MediaType::oci_layer(how);
        if how == Compression::None {
            return Ok(Descriptor::new(media_type, diff_id.0.clone(), self.tar_size(diff_id)?));
        }
        let options = compress::made_with(how, level);
        for (digest, made_with) in self.known_blobs(diff_id)? {
            if made_with == options && self.store.blobs().hold(&digest, lease)? {
                let size = self.store.blobs().size(&digest)?;
                return Ok(Descriptor::new(media_type, digest, size));
            }
        }
        let what = || format!("compressing layer {diff_id}");
        let mut tar = self.open_diff(diff_id)?;
        let blob = self.store.blobs().writer(lease)?;
        let mut compressor = Compressor::new(blob, how, level).context(what)?;
        io::copy(&mut tar, &mut compressor).map_err(|e| from_io(&what(), e))?;
        let (digest, size) = compressor.finish().context(what)?.commit(None, None)?;
        let layer = Descriptor::new(media_type, digest, size);
        self.note_blob(diff_id, &layer, &options)?;
        Ok(layer)
    }

    fn tar_size(&self, diff_id: &DiffId) -> Result<u64> {
        for id in self.store.snapshots().by_diff_id(diff_id)? {
            if let Some(size) = self.store.snapshots().row(&id)?.tar_size {
                return Ok(size);
            }
        }
        self.store.blobs().size(&diff_id.0)
    }

    /// Remembers that the blob `layer` is the layer `diff_id`, as it came from elsewhere (`options` is empty) or made by
    /// [`Layers::compress`].
    pub fn note_blob(&self, diff_id: &DiffId, layer: &Descriptor, options: &str) -> Result<()> {
        let size = i64::try_from(layer.size).map_err(|_| StoreError::invalid("layer", "its size is no size"))?;
        self.store.db().write(Durability::Cache, |tx| {
            tx.prepare_cached(
                "INSERT INTO layer_blobs (diff_id, digest, media_type, size, options) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO UPDATE SET options = ?5 WHERE ?5 <> ''",
            )?
            .execute((
                diff_id.0.to_string(),
                layer.digest.to_string(),
                layer.media_type.as_str(),
                size,
                options,
            ))?;
            Ok(())
        })
    }

    /// Blobs that were this layer at some time, whether or not they are still here, each with the options it was made with;
    /// those are empty for one that came from elsewhere.
    pub fn blobs_of(&self, diff_id: &DiffId) -> Result<Vec<(Descriptor, String)>> {
        let rows: Vec<(String, String, i64, String)> = self.store.db().read(|tx| {
            let sql = "SELECT digest, media_type, size, options FROM layer_blobs WHERE diff_id = ? ORDER BY digest";
            let mut query = tx.prepare_cached(sql)?;
            let rows =
                query.query_map([diff_id.0.to_string()], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })?;
        let described = rows.into_iter().map(|(digest, media_type, size, options)| {
            let media_type = MediaType::from(media_type.as_str());
            Ok((Descriptor::new(media_type, digest.parse()?, size.unsigned_abs()), options))
        });
        described.collect()
    }

    /// Blobs that were this layer at some time, and the options they were made with.
    fn known_blobs(&self, diff_id: &DiffId) -> Result<Vec<(Digest, String)>> {
        let rows: Vec<(String, String)> = self.store.db().read(|tx| {
            let mut query = tx
                .prepare_cached("SELECT digest, options FROM layer_blobs WHERE diff_id = ? ORDER BY options, digest")?;
            let rows = query.query_map([diff_id.0.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })?;
        rows.into_iter().map(|(digest, options)| Ok((digest.parse()?, options))).collect()
    }

    /// Unpacks one layer, compressed or not, on `parent`.
    pub fn apply(&self, reader: &mut (dyn Read + Send), parent: Option<&SnapshotId>, lease: &Lease) -> Result<Applied> {
        let parent = parent.map(|id| self.store.snapshots().get(id, lease)).transpose()?;
        let staged = self.stage(reader, lease)?;
        let (diff_id, size) = (staged.diff_id.clone(), staged.size);
        Ok(Applied { snapshot: self.stack(staged, parent.as_ref())?, diff_id, size })
    }

    /// Unpacks a layer, compressed or not, beside the others.
    pub fn stage(&self, reader: impl Read + Send, lease: &Lease) -> Result<Staged> {
        Staged::unpack(&self.store, reader, lease, staged::Meaning::Layer)
    }

    /// As [`Layers::stage`] for an archive of a whole file system, in which `.wh.` names are an error.
    pub fn stage_rootfs(&self, reader: impl Read + Send, lease: &Lease) -> Result<Staged> {
        Staged::unpack(&self.store, reader, lease, staged::Meaning::Rootfs)
    }

    /// Puts a staged layer on its parent and makes it a snapshot, whose layer is what was unpacked.
    pub fn stack(&self, staged: Staged, parent: Option<&Snapshot>) -> Result<Snapshot> {
        let (diff_id, size) = (staged.diff_id.clone(), staged.size);
        let snapshot = staged.stack(&self.store, parent)?;
        self.store.snapshots().set_layer(snapshot.id(), &diff_id, size)?;
        Ok(snapshot)
    }

    /// As [`Layers::stack`], but the snapshot's layer is its canonical tar: nothing of the archive needs to be kept.
    pub fn stack_anew(&self, staged: Staged, parent: Option<&Snapshot>) -> Result<Applied> {
        let snapshot = staged.stack(&self.store, parent)?;
        let LayerDigest { diff_id, size, .. } = self.diff(snapshot.id())?;
        Ok(Applied { snapshot, diff_id, size })
    }

    /// The snapshot of an image in the store, unpacked where it lacks; `None` for an image without layers.
    ///
    /// Layers are staged side by side, and each is checked against its `DiffId` before it becomes a snapshot.
    pub fn unpack(&self, manifest: &Manifest, config: &ImageConfig, lease: &Lease) -> Result<Option<Snapshot>> {
        let layers = layers_of(manifest, config)?;
        let diff_ids: Vec<DiffId> = layers.iter().map(|(_, diff_id)| (*diff_id).clone()).collect();
        let (done, mut top) = self.deepest(&diff_ids, lease)?;
        let missing = &layers[done..];
        let mut staged = self.stage_all(missing, lease)?.into_iter();
        for (at, (layer, diff_id)) in missing.iter().enumerate() {
            let next = staged.next().ok_or_else(|| StoreError::invalid("image", "a layer was not unpacked"))?;
            let chain = ChainId::of(&diff_ids[..=done + at]);
            let made_meanwhile =
                chain.map(|chain| self.store.snapshots().by_chain_id(&chain, lease)).transpose()?.flatten();
            top = Some(match made_meanwhile {
                Some(snapshot) => snapshot,
                None => self.stack(next, top.as_ref())?,
            });
            if layer.digest != diff_id.0 {
                self.note_blob(diff_id, layer, "")?;
            }
        }
        Ok(top)
    }

    /// How many of these layers, from the base, are a snapshot already, and that snapshot.
    pub fn deepest(&self, diff_ids: &[DiffId], lease: &Lease) -> Result<(usize, Option<Snapshot>)> {
        for count in (1..=diff_ids.len()).rev() {
            if let Some(chain) = ChainId::of(&diff_ids[..count])
                && let Some(snapshot) = self.store.snapshots().by_chain_id(&chain, lease)?
            {
                return Ok((count, Some(snapshot)));
            }
        }
        Ok((0, None))
    }

    fn stage_all(&self, layers: &[(&Descriptor, &DiffId)], lease: &Lease) -> Result<Vec<Staged>> {
        let next = AtomicUsize::new(0);
        let done: Vec<Mutex<Option<Result<Staged>>>> = layers.iter().map(|_| Mutex::default()).collect();
        let work = || {
            while let Some((layer, diff_id)) = layers.get(next.fetch_add(1, Ordering::Relaxed)) {
                let staged = self.stage_one(layer, diff_id, lease);
                if staged.is_err() {
                    next.store(layers.len(), Ordering::Relaxed);
                }
                let at = layers.iter().position(|(other, _)| std::ptr::eq(*other, *layer)).unwrap_or(0);
                *done[at].lock().unwrap_or_else(PoisonError::into_inner) = Some(staged);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..layers.len().min(AT_ONCE) {
                scope.spawn(work);
            }
            work();
        });
        let mut all = Vec::new();
        let mut skipped = false;
        for slot in done {
            match slot.into_inner().unwrap_or_else(PoisonError::into_inner) {
                Some(staged) => all.push(staged?),
                None => skipped = true, // another one failed, and its error is in its own place
            }
        }
        if skipped {
            return Err(StoreError::invalid("image", "a layer was not unpacked"));
        }
        Ok(all)
    }

    fn stage_one(&self, layer: &Descriptor, diff_id: &DiffId, lease: &Lease) -> Result<Staged> {
        let staged = self.stage(self.open_layer(layer)?, lease)?;
        staged.expect(diff_id)?;
        Ok(staged)
    }

    /// As [`write_tree`], as a layer on the snapshot `base`: only what differs from that.
    ///
    /// # Errors
    /// One of them cannot be read, or `out` not be written.
    pub fn write_tree_on(&self, root: Root, base: Option<&SnapshotId>, out: impl Write) -> Result<u64> {
        let lowers = base.map(|id| self.lowers(id)).transpose()?.unwrap_or_default();
        diff::write_diff(&Tree { own: Lowers::of(vec![root]), lowers, full: true, fresh: None }, out)
    }

    /// A snapshot's own directory and those below it; of one that is another's layer on something, that other one's.
    fn tree(&self, id: &SnapshotId) -> Result<Tree> {
        let snapshots = self.store.snapshots();
        let row = snapshots.row(id)?;
        let (id, row) = match row.layer_of {
            Some(layer) => (layer.clone(), snapshots.row(&layer)?),
            None => (id.clone(), row),
        };
        let lowers = match &row.parent {
            Some(parent) => self.lowers(parent)?,
            None => Lowers::default(),
        };
        let fresh = snapshots.written(&id)?.map(|changes| changes.inodes);
        let own = [Some(id), row.delta_of].into_iter().flatten().map(|id| snapshots.open(&id));
        Ok(Tree { own: Lowers::of(own.collect::<Result<_>>()?), lowers, full: row.driver.is_whole(), fresh })
    }

    /// The directories that show the snapshot `id`.
    fn lowers(&self, id: &SnapshotId) -> Result<Lowers> {
        let snapshots = self.store.snapshots();
        let what = || format!("opening snapshot {id}");
        match self.store.driver() {
            Driver::Vfs | Driver::Btrfs => Lowers::open([snapshots.path(id)]).context(what),
            Driver::Overlay => {
                let stack = snapshots.stack(id)?;
                Lowers::open(stack.iter().rev().map(|id| snapshots.path(id))).context(what)
            }
        }
    }
}

/// Writes everything below `root` as one canonical tar, as if it were a layer on nothing; returns its size. For a
/// container's whole file system, seen through a mount.
pub fn write_tree(root: Root, out: impl Write) -> Result<u64> {
    diff::write_diff(&Tree { own: Lowers::of(vec![root]), lowers: Lowers::default(), full: true, fresh: None }, out)
}

/// The layers of an image with their `DiffId`s, lowest first.
fn layers_of<'a>(manifest: &'a Manifest, config: &'a ImageConfig) -> Result<Vec<(&'a Descriptor, &'a DiffId)>> {
    let (layers, diff_ids) = (&manifest.layers, &config.rootfs.diff_ids);
    if layers.len() != diff_ids.len() {
        let reason = format!("its manifest has {} layers, its config has {}", layers.len(), diff_ids.len());
        return Err(StoreError::invalid("image", reason));
    }
    if let Some(strange) = layers.iter().find(|layer| !layer.media_type.is_layer()) {
        return Err(StoreError::Unsupported(format!("layers of type {}", strange.media_type)));
    }
    Ok(layers.iter().zip(diff_ids).collect())
}

/// Takes an error of ours out of the I/O error it travelled in.
pub(crate) fn from_io(what: &str, error: io::Error) -> StoreError {
    if error.get_ref().is_some_and(|inner| inner.is::<StoreError>()) {
        return match error.into_inner().map(|inner| inner.downcast::<StoreError>()) {
            Some(Ok(ours)) => *ours,
            _ => StoreError::io(what, io::ErrorKind::Other),
        };
    }
    StoreError::io(what, error)
}

/// A stream that fails at its end when it was not what its digest says.
struct Checked<R> {
    inner: R,
    hash: Option<Sha256>,
    expected: Digest,
}

impl<R: Read> Checked<R> {
    fn new(inner: R, expected: Digest) -> Checked<R> {
        Checked { inner, hash: Some(Sha256::new()), expected }
    }
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(out)?;
        if let Some(hash) = &mut self.hash {
            hash.update(&out[..len]);
        }
        if len == 0
            && !out.is_empty()
            && let Some(hash) = self.hash.take()
        {
            let (found, expected) = (hash.finish(), self.expected.clone());
            if found != expected {
                return Err(pipe::to_io(StoreError::WrongDigest { what: "a layer".into(), expected, found }));
            }
        }
        Ok(len)
    }
}
