//! Writing a cache elsewhere.
//!
//! Each record goes there as soon as it is known, under a name made of what it says: nobody ever puts anything else under
//! that name, so writers cannot take anything from each other. At the end all records that are there, whoever wrote them,
//! are put together under the cache's own name, which saves readers most of their requests. Of several who do that
//! at once one wins, and nothing is lost by it: what the winner did not know of still has its own name.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures::{FutureExt, StreamExt, TryStreamExt};
use rbuild_oci::{Descriptor, DiffId, Digest, MediaType};
use rbuild_registry::{LayerPacking, PackedLayer};
use rbuild_solver::{CacheKey, KeyPart, RunRecord};
use rbuild_store::{LayerDigest, Lease, SnapshotId, Store};
use tokio::sync::OnceCell;

use crate::backend::Backend;
use crate::error::Error;
use crate::import::{Contents, contents};
use crate::portable::{ALIASES, MediaFamily, PortableRecord, record_name, union, write_record, write_records};
use crate::rows::{described_record, stored_record};

/// Records on their way at the same time.
const AT_ONCE: usize = 4;

/// A result as it is stored here, in terms of layers.
#[derive(Debug, Clone, PartialEq)]
pub enum Tree {
    Empty,
    Here(SnapshotId),
    Elsewhere { place: String, layers: Vec<PackedLayer> },
}

/// Says what the outputs of records are.
pub trait Trees: Send + Sync {
    /// `None` for what has no layers and stays here.
    fn tree(&self, output: &serde_json::Value) -> Option<Tree>;

    /// The cache elsewhere that is called so, if it is one of this build's.
    fn backend(&self, place: &str) -> Option<Arc<dyn Backend>>;
}

/// How a cache is written.
#[derive(Debug, Clone, Copy, Default)]
pub struct PublishOptions {
    pub packing: LayerPacking,
    pub family: MediaFamily,
    /// Records that no build used for so long are removed; `None` keeps all.
    pub keep: Option<Duration>,
}

/// What is forgotten sooner could still be read by a build that goes on.
pub const KEEP_AT_LEAST: Duration = Duration::from_secs(3600);
/// A use is noted anew when the last one noted is this old.
const NOTED: Duration = Duration::from_secs(24 * 3600);
/// Names that are removed at once.
const REMOVED: usize = 1000;

/// One cache elsewhere, being written.
pub struct Publisher {
    backend: Arc<dyn Backend>,
    trees: Arc<dyn Trees>,
    store: Store,
    lease: Lease,
    options: PublishOptions,
    /// What was there when this began.
    before: OnceCell<Contents>,
    layers: Mutex<HashMap<DiffId, Arc<OnceCell<PackedLayer>>>>,
    sent: Mutex<HashMap<CacheKey, PortableRecord>>,
}

/// What became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    /// Records of this build that are there.
    pub records: usize,
    /// Records that are there in all, as far as is known.
    pub all: usize,
    /// Records that were removed, since no build used them for long.
    pub removed: usize,
    /// Why the names of such are still there; they are not read any more.
    pub unremoved: Option<String>,
}

impl Publisher {
    pub fn new(
        backend: Arc<dyn Backend>,
        trees: Arc<dyn Trees>,
        store: Store,
        lease: Lease,
        options: PublishOptions,
    ) -> Publisher {
        let (layers, sent) = (Mutex::default(), Mutex::default());
        Publisher { backend, trees, store, lease, options, before: OnceCell::new(), layers, sent }
    }

    pub fn place(&self) -> &str {
        self.backend.place()
    }

    /// Makes the record of `key` known there, if it can travel. Doing it again costs nothing.
    ///
    /// # Errors
    /// The place cannot be reached or written; a layer is not here any more.
    pub async fn record(&self, key: CacheKey) -> Result<(), Error> {
        let Some(mut stored) = described_record(&self.store, key)? else { return Ok(()) };
        // Base images are had where they come from.
        if stored.run.parts.contains(&KeyPart::text("op", "image")) {
            return Ok(());
        }
        stored.aliases.truncate(ALIASES);
        let before = self.before().await?;
        let known = before.records.iter().find(|known| known.key == key);
        let named = |known: &PortableRecord| stored.aliases.iter().all(|a| known.aliases.binary_search(a).is_ok());
        if let Some(known) = known.filter(|known| named(known)) {
            self.note(known.clone());
            return Ok(());
        }
        let mut outputs = Vec::new();
        for output in &stored.outputs {
            outputs.push(match self.trees.tree(output) {
                None => return Ok(()),
                Some(Tree::Empty) => None,
                Some(Tree::Here(id)) => Some(self.stack(&id).await?),
                Some(Tree::Elsewhere { place, layers }) => Some(self.carry(&place, layers).await?),
            });
        }
        let (name, aliases) = (stored.run.name.clone(), stored.aliases);
        let run = Some(RunRecord { results: Vec::new(), ..stored.run });
        let mut record =
            PortableRecord { key, aliases, name, outputs, run, detail: None, covers: Vec::new(), used: None };
        let base = self.backend.base().ok_or_else(|| Error::refused(self.place(), "a digest cannot be written"))?;
        let written = write_record(&record, self.options.family)?;
        let (config, size) = (Digest::sha256_of(&written.config), written.config.len() as u64);
        record.detail = Some(Descriptor::new(MediaType::OciConfig, config, size));
        record.covers = vec![record.identity()];
        self.backend.put(&record_name(base, &record.covers[0]), &written, &self.store, &self.lease).await?;
        self.note(record);
        Ok(())
    }

    fn note(&self, record: PortableRecord) {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).insert(record.key, record);
    }

    /// Sends what was not sent yet of `keys`, then puts everything that is there together under the cache's own name.
    ///
    /// # Errors
    /// As [`Publisher::record`].
    pub async fn finish(&self, keys: &[CacheKey]) -> Result<Published, Error> {
        let sent: HashSet<CacheKey> = self.sent().into_iter().map(|record| record.key).collect();
        let missing = keys.iter().filter(|key| !sent.contains(key));
        let records: Vec<_> = missing.map(|key| self.record(*key).boxed()).collect();
        futures::stream::iter(records).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        let base = self.backend.base().ok_or_else(|| Error::refused(self.place(), "a digest cannot be written"))?;
        let there = contents(self.backend.as_ref()).await?;
        let now = SystemTime::now();
        let mut mine = self.sent();
        let published = mine.len();
        let noted = mine.iter_mut().filter_map(|record| note_use(record, now).then_some(())).count() > 0;
        let all = union(there.records.into_iter().chain(mine));
        let unused = |record: &PortableRecord| self.options.keep.is_some_and(|keep| is_unused(record, keep, now));
        let (old, mut all): (Vec<_>, Vec<_>) = all.into_iter().partition(unused);
        let own: HashSet<&String> = all.iter().flat_map(|record| &record.covers).collect();
        let gone = old.iter().flat_map(|record| &record.covers).chain(&there.gone);
        let gone: BTreeSet<String> =
            gone.filter(|identity| there.listed.contains(*identity) && !own.contains(identity)).cloned().collect();
        let gone: Vec<String> = gone.into_iter().collect();
        let complete = all.iter().flat_map(|record| &record.covers).all(|identity| there.covered.contains(identity));
        let total = all.len();
        if !(complete && there.exists && old.is_empty() && !noted) {
            // The newest first: they are what the next build wants.
            all.sort_by_key(|record| std::cmp::Reverse(record.run.as_ref().map(|run| run.started)));
            let written = write_records(&all, &gone, self.options.family)?;
            self.backend.put(base, &written, &self.store, &self.lease).await?;
        }
        let mut done = Published { records: published, all: total, removed: old.len(), unremoved: None };
        if self.options.keep.is_some() {
            // Only now, when nobody is told any more to read them.
            let names: Vec<String> = gone.iter().take(REMOVED).map(|identity| record_name(base, identity)).collect();
            done.unremoved = self.backend.remove(&names).await.err().map(|error| error.to_string());
        }
        Ok(done)
    }

    fn sent(&self) -> Vec<PortableRecord> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    async fn before(&self) -> Result<&Contents, Error> {
        self.before.get_or_try_init(|| contents(self.backend.as_ref())).await
    }

    /// The layers of a snapshot, there.
    async fn stack(&self, id: &SnapshotId) -> Result<Vec<PackedLayer>, Error> {
        let chain = self.store.snapshots().chain(id)?;
        let layers: Vec<_> = chain.into_iter().map(|id| self.layer(id).boxed()).collect();
        futures::stream::iter(layers).buffered(AT_ONCE).try_collect().await
    }

    async fn layer(&self, id: SnapshotId) -> Result<PackedLayer, Error> {
        let store = self.store.clone();
        let digest = tokio::task::spawn_blocking(move || store.layers().diff(&id)).await;
        let digest = digest.map_err(|error| Error::refused("a layer", error.to_string()))??;
        let cell = {
            let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
            layers.entry(digest.diff_id.clone()).or_default().clone()
        };
        let put = || async {
            let blob = self.backend.put_layer(&digest.diff_id, self.options.packing, &self.store, &self.lease).await?;
            Ok::<_, Error>(PackedLayer {
                blob,
                diff_id: digest.diff_id.clone(),
                size: digest.size,
                newest: digest.newest,
            })
        };
        Ok(cell.get_or_try_init(put).await?.clone())
    }

    /// Layers that lie elsewhere: left where they are if that is here, handed over if the place can do that, else brought.
    async fn carry(&self, place: &str, layers: Vec<PackedLayer>) -> Result<Vec<PackedLayer>, Error> {
        let mut all_there = true;
        for layer in &layers {
            let fits = self.options.packing.takes(&layer.blob.media_type);
            let there = fits && self.backend.has(&layer.blob, place, &self.store, &self.lease).await?;
            if !there {
                all_there = false;
                break;
            }
        }
        if all_there {
            return Ok(layers);
        }
        let origin = self.trees.backend(place).ok_or_else(|| Error::NotFound(place.to_owned()))?;
        let brought = origin.bring(&layers, &self.store, &self.lease, &|_| {}).await?;
        match brought {
            Some(snapshot) => self.stack(snapshot.id()).await,
            None => Ok(layers),
        }
    }
}

/// Notes that a build uses the record, if that is worth it.
fn note_use(record: &mut PortableRecord, now: SystemTime) -> bool {
    let recent = |used: SystemTime| now.duration_since(used).is_ok_and(|since| since < NOTED);
    if record.last_use().is_some_and(|used| recent(used) || used > now) {
        return false;
    }
    record.used = now.duration_since(SystemTime::UNIX_EPOCH).ok().map(|since| since.as_secs());
    true
}

/// Whether nobody used the record for `keep`. One that does not say when it was made is not called old.
fn is_unused(record: &PortableRecord, keep: Duration, now: SystemTime) -> bool {
    record.last_use().and_then(|used| now.duration_since(used).ok()).is_some_and(|since| since > keep)
}

/// A record as it would travel in an image, with its layers as they are here: plain. It names base images, and no paths that
/// steps read: whoever may see the image need not know those.
///
/// # Errors
/// The database cannot be read; a layer cannot be computed.
pub async fn local_record(store: &Store, trees: &dyn Trees, key: CacheKey) -> Result<Option<PortableRecord>, Error> {
    let Some(mut stored) = described_record(store, key)? else { return Ok(None) };
    for input in stored.run.inputs.iter_mut().filter(|input| input.content.is_some()) {
        input.parts.clear();
    }
    let mut outputs = Vec::new();
    for output in &stored.outputs {
        outputs.push(match trees.tree(output) {
            None => return Ok(None),
            Some(Tree::Empty) => None,
            Some(Tree::Elsewhere { layers, .. }) => Some(layers),
            Some(Tree::Here(id)) => Some(plain_stack(store.clone(), id).await?),
        });
    }
    let (name, mut aliases, run) = (stored.run.name.clone(), stored.aliases, Some(stored.run));
    aliases.truncate(ALIASES);
    Ok(Some(PortableRecord { key, aliases, name, outputs, run, detail: None, covers: Vec::new(), used: None }))
}

async fn plain_stack(store: Store, id: SnapshotId) -> Result<Vec<PackedLayer>, Error> {
    let work = move || {
        let chain = store.snapshots().chain(&id)?;
        let layers = chain.iter().map(|id| {
            let LayerDigest { diff_id, size, newest } = store.layers().diff(id)?;
            let blob = Descriptor::new(MediaType::OciLayer, diff_id.0.clone(), size);
            Ok(PackedLayer { blob, diff_id, size, newest })
        });
        layers.collect::<Result<Vec<_>, Error>>()
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::refused("a layer", error.to_string()))?
}

/// The keys of all records that lead to those of `keys`, themselves included: what a build read to get there.
///
/// # Errors
/// The database cannot be read.
pub fn ancestry(store: &Store, keys: &[CacheKey]) -> Result<Vec<CacheKey>, Error> {
    let mut seen: HashSet<CacheKey> = keys.iter().copied().collect();
    let mut next: Vec<CacheKey> = keys.to_vec();
    let mut found = Vec::new();
    while let Some(key) = next.pop() {
        let Some(record) = stored_record(store, key)? else { continue };
        found.push(key);
        next.extend(record.run.inputs.iter().map(|input| input.key).filter(|key| seen.insert(*key)));
    }
    Ok(found)
}
