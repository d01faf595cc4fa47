//! The cache in a store: what every cache promises, what only one in a store does, and several processes at once.

mod backends;
mod contract;
mod local;
mod portable;
mod processes;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rbuild_cache::{Encoded, LocalCache, Stored};
use rbuild_solver::{CacheKey, Entry, Keep, RunRecord, Usage};
use rbuild_store::{Lease, Store, StoreOptions, Target};
use tempfile::TempDir;

/// Numbers, each kept as a blob. Negative ones cannot be kept.
pub(crate) struct Numbers {
    store: Store,
    lease: Lease,
}

impl Stored<i64> for Numbers {
    fn encode(&self, value: &i64) -> Option<Encoded> {
        let bytes = (*value >= 0).then(|| value.to_string())?;
        let digest = self.store.blobs().put_bytes(bytes.as_bytes(), &self.lease).unwrap();
        Some(Encoded { data: digest.to_string().into(), targets: vec![Target::Blob(digest)] })
    }

    fn decode(&self, data: &serde_json::Value) -> Option<i64> {
        let digest = data.as_str()?.parse().ok()?;
        self.lease.hold(&Target::Blob(digest)).ok()?;
        let bytes = self.store.blobs().read(&data.as_str()?.parse().ok()?, 100).ok()?;
        String::from_utf8(bytes).ok()?.parse().ok()
    }
}

/// One process: a handle on the store, a lease, a cache.
pub(crate) struct Process {
    pub(crate) store: Store,
    pub(crate) cache: Arc<LocalCache<Numbers>>,
}

impl Process {
    pub(crate) fn start(root: &TempDir) -> Process {
        let store = Store::open(StoreOptions::new(root.path().join("store"))).unwrap();
        let lease = store.lease("test").unwrap();
        let codec = Numbers { store: store.clone(), lease: lease.clone() };
        let cache = Arc::new(LocalCache::new(store.clone(), lease, codec));
        Process { store, cache }
    }
}

pub(crate) fn key(name: &str) -> CacheKey {
    CacheKey::of(name.as_bytes())
}

pub(crate) fn entry(name: &str, aliases: &[&str], value: i64, keep: Keep) -> Entry<i64> {
    let record = RunRecord {
        name: format!("step {name}"),
        build: "b".into(),
        parts: vec![],
        inputs: vec![],
        results: vec![],
        started: SystemTime::UNIX_EPOCH,
        took: Duration::from_millis(5),
        usage: Usage::default(),
    };
    Entry {
        key: key(name),
        aliases: aliases.iter().map(|name| key(name)).collect(),
        outputs: vec![value],
        record,
        keep,
    }
}
