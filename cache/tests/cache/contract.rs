//! What every cache promises.

use std::sync::Arc;

use rbuild_solver::{Cache, Claim, Keep, MemoryCache};
use tempfile::TempDir;

use crate::{Process, entry, key};

async fn keeps_its_promises(cache: Arc<dyn Cache<i64>>) {
    // Nothing is known by a name that nobody gave.
    assert_eq!(cache.resolve(key("a")).await.unwrap(), None);
    assert_eq!(cache.load(key("a")).await.unwrap(), None);
    // A name of what is not there means nothing.
    cache.alias(vec![key("a2")], key("a")).await.unwrap();
    assert_eq!(cache.resolve(key("a2")).await.unwrap(), None);
    // All names of what is saved lead to it, and only the canonical one loads it.
    cache.save(entry("a", &["a1"], 1, Keep::First)).await.unwrap();
    for name in ["a", "a1", "a2"] {
        assert_eq!(cache.resolve(key(name)).await.unwrap(), Some(key("a")), "{name}");
    }
    assert_eq!(cache.load(key("a")).await.unwrap(), Some(vec![1]));
    assert_eq!(cache.load(key("a1")).await.unwrap(), None);
    // The first stays, until somebody wants the newest; its names are taken in either case.
    cache.save(entry("a", &["a3"], 2, Keep::First)).await.unwrap();
    assert_eq!(cache.load(key("a")).await.unwrap(), Some(vec![1]));
    assert_eq!(cache.resolve(key("a3")).await.unwrap(), Some(key("a")));
    cache.save(entry("a", &[], 3, Keep::Newest)).await.unwrap();
    assert_eq!(cache.load(key("a")).await.unwrap(), Some(vec![3]));
    // A name can come to mean something else.
    cache.save(entry("b", &["a1"], 4, Keep::First)).await.unwrap();
    assert_eq!(cache.resolve(key("a1")).await.unwrap(), Some(key("b")));
    cache.alias(vec![key("a1")], key("a")).await.unwrap();
    assert_eq!(cache.resolve(key("a1")).await.unwrap(), Some(key("a")));
    // A claim nobody else has is had at once, and again once it was let go.
    for _ in 0..2 {
        assert!(matches!(cache.claim(key("c")).await.unwrap(), Claim::Mine(_)));
    }
}

#[tokio::test]
async fn the_memory_cache_keeps_its_promises() {
    keeps_its_promises(Arc::new(MemoryCache::new())).await;
}

#[tokio::test]
async fn the_local_cache_keeps_its_promises() {
    let root = TempDir::new().unwrap();
    keeps_its_promises(Process::start(&root).cache).await;
}
