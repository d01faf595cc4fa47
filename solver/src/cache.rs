//! What the solver asks of a cache, and a cache in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::{self, BoxFuture, FutureExt};

use crate::key::CacheKey;
use crate::record::RunRecord;

/// Why a cache could not answer. Shared, since many may wait for one answer.
pub type CacheError = Arc<dyn std::error::Error + Send + Sync>;

/// Results by key.
///
/// A computation has exactly one canonical key, under which its result and record are saved; every other key it is
/// found by is an alias of that one. An answer is right or a miss: what is damaged is a miss.
pub trait Cache<R>: Send + Sync {
    /// The canonical form of a key that has a result; `None` when nothing is known by it.
    fn resolve(&self, key: CacheKey) -> BoxFuture<'_, Result<Option<CacheKey>, CacheError>>;

    /// The result saved under a canonical key. `None`: never saved, or lost since; what is lost is forgotten, so that it
    /// can be saved again.
    fn load(&self, canonical: CacheKey) -> BoxFuture<'_, Result<Option<Vec<R>>, CacheError>>;

    /// Makes a result known under its canonical key and all its other names, at once and whole.
    fn save(&self, entry: Entry<R>) -> BoxFuture<'_, Result<(), CacheError>>;

    /// Makes more names for a result that is already saved. A name that meant something else now means this.
    fn alias(&self, from: Vec<CacheKey>, canonical: CacheKey) -> BoxFuture<'_, Result<(), CacheError>>;

    /// Says that this process is about to run what the key names, so that others who share the cache wait for it
    /// instead of doing the same. Never waits itself.
    fn claim(&self, key: CacheKey) -> BoxFuture<'_, Result<Claim, CacheError>>;
}

/// A result to be saved.
#[derive(Debug, Clone)]
pub struct Entry<R> {
    pub key: CacheKey,
    /// Other names of the same result.
    pub aliases: Vec<CacheKey>,
    pub outputs: Vec<R>,
    pub record: RunRecord,
    pub keep: Keep,
}

/// Which result stays when one is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// The one that was saved first: both are results of the same key, and others may have built on the first.
    First,
    /// This one: it was run although the other was there, because somebody asked for that.
    Newest,
}

/// The answer to [`Cache::claim`].
pub enum Claim {
    /// Nobody else is at it. Dropping the guard lets go.
    Mine(ClaimGuard),
    /// Another process is at it.
    Theirs {
        /// The process that is waited for, where known.
        pid: Option<u32>,
        /// Ends when the other is done, dead or stopped; then look up again, and claim again if nothing is there.
        over: BoxFuture<'static, ()>,
    },
}

/// Holds a claim until dropped.
pub struct ClaimGuard {
    _release: Option<Box<dyn Send + Sync>>,
}

impl ClaimGuard {
    /// A claim that dropping `release` lets go of.
    pub fn new(release: impl Send + Sync + 'static) -> ClaimGuard {
        ClaimGuard { _release: Some(Box::new(release)) }
    }

    /// The claim of a cache that only one process has.
    pub fn alone() -> ClaimGuard {
        ClaimGuard { _release: None }
    }
}

/// A cache that ends with the process. For tests and for embedders without a store.
#[derive(Debug)]
pub struct MemoryCache<R> {
    state: Mutex<Memory<R>>,
}

#[derive(Debug)]
struct Memory<R> {
    entries: HashMap<CacheKey, (Vec<R>, RunRecord)>,
    aliases: HashMap<CacheKey, CacheKey>,
}

impl<R> Default for MemoryCache<R> {
    fn default() -> MemoryCache<R> {
        MemoryCache { state: Mutex::new(Memory { entries: HashMap::new(), aliases: HashMap::new() }) }
    }
}

impl<R> MemoryCache<R> {
    pub fn new() -> MemoryCache<R> {
        MemoryCache::default()
    }

    /// The record saved under a canonical key.
    pub fn record(&self, canonical: CacheKey) -> Option<RunRecord> {
        self.with(|memory| memory.entries.get(&canonical).map(|(_, record)| record.clone()))
    }

    /// All canonical keys, in no order.
    pub fn keys(&self) -> Vec<CacheKey> {
        self.with(|memory| memory.entries.keys().copied().collect())
    }

    /// How many other names there are.
    pub fn aliases(&self) -> usize {
        self.with(|memory| memory.aliases.len())
    }

    /// Loses the result of a canonical key, its names stay.
    pub fn forget(&self, canonical: CacheKey) {
        self.with(|memory| memory.entries.remove(&canonical));
    }

    fn with<T>(&self, work: impl FnOnce(&mut Memory<R>) -> T) -> T {
        // Nothing in here can panic half-way, so a poisoned lock guards whole state.
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<R: Clone + Send + Sync> Cache<R> for MemoryCache<R> {
    fn resolve(&self, key: CacheKey) -> BoxFuture<'_, Result<Option<CacheKey>, CacheError>> {
        let found = self.with(|memory| {
            let canonical = memory.aliases.get(&key).copied().unwrap_or(key);
            memory.entries.contains_key(&canonical).then_some(canonical)
        });
        future::ready(Ok(found)).boxed()
    }

    fn load(&self, canonical: CacheKey) -> BoxFuture<'_, Result<Option<Vec<R>>, CacheError>> {
        let found = self.with(|memory| memory.entries.get(&canonical).map(|(outputs, _)| outputs.clone()));
        future::ready(Ok(found)).boxed()
    }

    fn save(&self, entry: Entry<R>) -> BoxFuture<'_, Result<(), CacheError>> {
        self.with(|memory| {
            if entry.keep == Keep::Newest || !memory.entries.contains_key(&entry.key) {
                memory.entries.insert(entry.key, (entry.outputs, entry.record));
            }
            memory.aliases.extend(entry.aliases.into_iter().map(|alias| (alias, entry.key)));
        });
        future::ready(Ok(())).boxed()
    }

    fn alias(&self, from: Vec<CacheKey>, canonical: CacheKey) -> BoxFuture<'_, Result<(), CacheError>> {
        self.with(|memory| memory.aliases.extend(from.into_iter().map(|alias| (alias, canonical))));
        future::ready(Ok(())).boxed()
    }

    fn claim(&self, _key: CacheKey) -> BoxFuture<'_, Result<Claim, CacheError>> {
        future::ready(Ok(Claim::Mine(ClaimGuard::alone()))).boxed()
    }
}
