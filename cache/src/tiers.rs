//! The local cache first, then those elsewhere.
//!
//! What is found elsewhere is written down here, with where it came from, when it is used: from then on it is a record
//! like any other, except that its files may not have come yet. Nothing is asked of a network before something is missing
//! here.

use std::collections::HashMap;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use rbuild_solver::{Cache, CacheError, CacheKey, Claim, Entry, RunRecord, Usage};
use rbuild_store::Store;
use tokio::sync::{OnceCell, mpsc};

use crate::backend::Backend;
use crate::import::execution;
use crate::local::LocalCache;
use crate::portable::PortableRecord;
use crate::rows::{self, StoredRecord};
use crate::trace;

/// Records of the same step that are written down when it had to run, so that the difference can be explained.
const EVIDENCE: usize = 4;

/// How a result that lies elsewhere is written down.
pub trait Elsewhere: Send + Sync {
    /// Output `output` of `record`, as data that [`Stored::decode`] understands.
    fn encode_elsewhere(&self, record: &PortableRecord, output: usize, place: &str) -> serde_json::Value;
}

/// A cache elsewhere with the records it was found to have.
pub struct Imported {
    pub backend: Arc<dyn Backend>,
    pub records: Vec<PortableRecord>,
}

/// Finds out what the caches elsewhere hold. Called once, when something is missing here for the first time.
pub type Open = Box<dyn Fn() -> BoxFuture<'static, Vec<Imported>> + Send + Sync>;

/// The local cache with others behind it.
pub struct Tiers<C> {
    local: LocalCache<C>,
    store: Store,
    open: Open,
    evidence: Evidence,
    saved: Option<mpsc::UnboundedSender<CacheKey>>,
}

/// What the caches elsewhere were found to say of steps, for comparison with those that ran here.
#[derive(Clone)]
pub struct Evidence {
    store: Store,
    found: Arc<OnceCell<Found>>,
}

/// All records of the caches elsewhere. Those named first go before the others.
#[derive(Default)]
struct Found {
    caches: Vec<Imported>,
    by_key: HashMap<CacheKey, (usize, usize)>,
    by_alias: HashMap<CacheKey, CacheKey>,
    /// By the step as people wrote it, wherever it stood.
    by_label: HashMap<String, Vec<(usize, usize)>>,
    /// By where the step stood, however it was written.
    by_spot: HashMap<String, Vec<(usize, usize)>>,
}

impl Found {
    fn new(caches: Vec<Imported>) -> Found {
        let mut found = Found::default();
        for (cache, imported) in caches.iter().enumerate() {
            for (n, record) in imported.records.iter().enumerate() {
                found.by_key.entry(record.key).or_insert((cache, n));
                found.by_label.entry(trace::label(&record.name).to_owned()).or_default().push((cache, n));
                if let Some(spot) = trace::spot(&record.name) {
                    found.by_spot.entry(spot).or_default().push((cache, n));
                }
                for alias in &record.aliases {
                    found.by_alias.entry(*alias).or_insert(record.key);
                }
            }
        }
        found.caches = caches;
        found
    }

    fn at(&self, (cache, n): (usize, usize)) -> (&dyn Backend, &PortableRecord) {
        (self.caches[cache].backend.as_ref(), &self.caches[cache].records[n])
    }
}

impl<C> Tiers<C> {
    /// `saved` is told the key of each result that is saved here.
    pub fn new(
        local: LocalCache<C>,
        store: Store,
        open: Open,
        saved: Option<mpsc::UnboundedSender<CacheKey>>,
    ) -> Tiers<C> {
        let evidence = Evidence { store: store.clone(), found: Arc::default() };
        Tiers { local, store, open, evidence, saved }
    }

    pub fn evidence(&self) -> Evidence {
        self.evidence.clone()
    }

    async fn found(&self) -> &Found {
        self.evidence.found.get_or_init(|| async { Found::new((self.open)().await) }).await
    }
}

impl<C: Elsewhere> Tiers<C> {
    /// Writes down here what was found elsewhere.
    async fn adopt(&self, backend: &dyn Backend, record: &PortableRecord) -> Result<(), CacheError> {
        // What came along is enough for a hit; only what came without any description is asked for.
        let run = match &record.run {
            Some(run) => Some(run.clone()),
            None => described(backend, record).await,
        };
        let outputs =
            (0..record.outputs.len()).map(|n| self.local.codec().encode_elsewhere(record, n, backend.place()));
        let adopted = StoredRecord {
            outputs: outputs.collect(),
            run: run.unwrap_or_else(|| unknown(record)),
            aliases: record.aliases.clone(),
        };
        rows::adopt(&self.store, record.key, &adopted, backend.place()).map_err(|error| Arc::new(error) as CacheError)
    }
}

impl Evidence {
    /// Writes down records of the step `name`, which ran here under the key `own`, well or not, so that people can be told
    /// what was different. Nothing when no cache elsewhere was asked.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn keep(&self, name: &str, own: CacheKey) -> Result<(), CacheError> {
        let Some(found) = self.found.get() else { return Ok(()) };
        let alike = found.by_label.get(trace::label(name)).into_iter().flatten().take(EVIDENCE);
        let spot = trace::spot(name).and_then(|spot| found.by_spot.get(&spot));
        let mut seen = std::collections::HashSet::new();
        for at in alike.chain(spot.into_iter().flatten().take(EVIDENCE)).filter(|at| seen.insert(**at)) {
            let (backend, record) = found.at(*at);
            if record.key != own
                && let Some(run) = described(backend, record).await
            {
                rows::keep_evidence(&self.store, record.key, &run).map_err(|error| Arc::new(error) as CacheError)?;
            }
        }
        Ok(())
    }
}

/// What is known of the execution behind a record, if that can be had.
async fn described(backend: &dyn Backend, record: &PortableRecord) -> Option<RunRecord> {
    execution(backend, record).await.unwrap_or_else(|error| {
        tracing::debug!(%error, "a record came without its description");
        record.run.clone()
    })
}

/// What can be said of an execution that nobody described.
fn unknown(record: &PortableRecord) -> RunRecord {
    RunRecord {
        name: record.name.clone(),
        build: String::new(),
        parts: Vec::new(),
        inputs: Vec::new(),
        results: Vec::new(),
        started: std::time::SystemTime::UNIX_EPOCH,
        took: std::time::Duration::ZERO,
        usage: Usage::default(),
    }
}

impl<R, C> Cache<R> for Tiers<C>
where
    R: Send + Sync + 'static,
    C: Elsewhere + 'static,
    LocalCache<C>: Cache<R>,
{
    fn resolve(&self, key: CacheKey) -> BoxFuture<'_, Result<Option<CacheKey>, CacheError>> {
        async move {
            if let Some(canonical) = self.local.resolve(key).await? {
                return Ok(Some(canonical));
            }
            let found = self.found().await;
            Ok(found.by_key.contains_key(&key).then_some(key).or_else(|| found.by_alias.get(&key).copied()))
        }
        .boxed()
    }

    fn load(&self, canonical: CacheKey) -> BoxFuture<'_, Result<Option<Vec<R>>, CacheError>> {
        async move {
            if let Some(outputs) = self.local.load(canonical).await? {
                return Ok(Some(outputs));
            }
            let found = self.found().await;
            let Some(at) = found.by_key.get(&canonical) else { return Ok(None) };
            let (backend, record) = found.at(*at);
            self.adopt(backend, record).await?;
            self.local.load(canonical).await
        }
        .boxed()
    }

    fn save(&self, entry: Entry<R>) -> BoxFuture<'_, Result<(), CacheError>> {
        async move {
            let key = entry.key;
            self.evidence.keep(&entry.record.name, key).await?;
            self.local.save(entry).await?;
            if let Some(saved) = &self.saved {
                // Nobody listens any more when the build is over.
                let _ = saved.send(key);
            }
            Ok(())
        }
        .boxed()
    }

    fn alias(&self, from: Vec<CacheKey>, canonical: CacheKey) -> BoxFuture<'_, Result<(), CacheError>> {
        self.local.alias(from, canonical)
    }

    fn claim(&self, key: CacheKey) -> BoxFuture<'_, Result<Claim, CacheError>> {
        self.local.claim(key)
    }
}
