//! Which of the build cache goes.
//!
//! Without limits everything that fits the filters goes. With limits only as much as is needed, the least valuable first.
//! The value of an entry is what it costs to make it again, for each byte that it takes, and it fades with the time that
//! nobody used it: what goes first has the highest
//!
//! ```text
//! seconds unused × (bytes + 4096) ÷ (seconds it took to make + 0.1)
//! ```
//!
//! so of two that were last used together, the large one that is made in no time goes before the small one that took
//! minutes, and whatever nobody used for long enough goes before both. What others stand on frees nothing while they are
//! there, so only the outermost of a stack can be chosen; its parent can be next.

use std::collections::{BTreeMap, BinaryHeap};
use std::time::{Duration, SystemTime};

use rbuild_executor::cache_objects;
use rbuild_store::{CollectOptions, Records, SnapshotId};

use super::cache::{CacheEntry, What};
use super::filter::CacheFilter;
use crate::engine::Engine;
use crate::error::Error;

/// What to remove of the build cache.
#[derive(Debug, Clone, Default)]
pub struct CachePrune {
    /// Results that images have too: they free nothing, but their steps run again.
    pub all: bool,
    /// What matches all filters of one of the lists; empty is everything.
    pub any_of: Vec<Vec<CacheFilter>>,
    /// Only what nobody used for so long.
    pub unused_for: Option<Duration>,
    pub limits: CacheLimits,
}

/// How much may stay, in bytes; 0 says nothing. With none of them all that matches goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheLimits {
    /// So much stays in any case.
    pub reserved: u64,
    /// No more than this stays.
    pub max_used: u64,
    /// So much of the disk is to be free.
    pub min_free: u64,
}

impl CacheLimits {
    /// How much of a cache of `total` bytes may stay, on a disk with `free` bytes.
    pub(super) fn keep(&self, total: u64, free: u64) -> u64 {
        if *self == CacheLimits::default() {
            return 0;
        }
        let most = if self.max_used == 0 && self.min_free > 0 { total } else { self.max_used };
        let lacking = self.min_free.saturating_sub(free);
        most.min(total.saturating_sub(lacking)).max(self.reserved)
    }
}

/// What a prune did.
#[derive(Debug, Clone, Default)]
pub struct PrunedCache {
    pub entries: Vec<CacheEntry>,
    /// Disk that became free.
    pub bytes: u64,
    /// Keys of the results that are forgotten.
    pub records: Vec<String>,
}

impl Engine {
    /// Removes from the build cache. What something running holds stays, whatever is asked.
    ///
    /// # Errors
    /// The store cannot be read or changed.
    pub fn prune_cache(&self, prune: &CachePrune) -> Result<PrunedCache, Error> {
        let entries = self.cache_entries()?;
        let chosen = choose(&entries, prune, self.free_bytes()?, SystemTime::now());
        self.remove_entries(chosen.into_iter().map(|at| entries[at].clone()).collect())
    }

    fn remove_entries(&self, entries: Vec<CacheEntry>) -> Result<PrunedCache, Error> {
        let mut done = PrunedCache::default();
        let mut keys = Vec::new();
        for entry in entries {
            match &entry.what {
                What::Record { key, .. } => keys.push(key.clone()),
                What::Snapshot(_) => {}
                What::Mount(mount) => match cache_objects::remove(self.store(), mount).map_err(Error::internal)? {
                    Some(bytes) => done.bytes += bytes,
                    // A step took it meanwhile.
                    None => continue,
                },
                What::Index(path) => match std::fs::remove_file(path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Error::internal(error)),
                    _ => done.bytes += entry.size,
                },
            }
            done.entries.push(entry);
        }
        let collected = self.store().collect(&CollectOptions { records: Records::Keys(keys) })?;
        done.bytes += collected.bytes;
        done.records = collected.records;
        Ok(done)
    }

    pub(super) fn free_bytes(&self) -> Result<u64, Error> {
        let fs = rustix::fs::statvfs(self.store().root())
            .map_err(|errno| Error::internal(format!("looking at {}: {errno}", self.store().root().display())))?;
        Ok(fs.f_bavail * fs.f_frsize)
    }
}

/// The entries that go, as places in `entries`.
pub(super) fn choose(entries: &[CacheEntry], prune: &CachePrune, free: u64, now: SystemTime) -> Vec<usize> {
    let limited = prune.limits != CacheLimits::default();
    // What images have too is asked for by name only: it frees nothing, so no limit is a reason.
    let candidate = |entry: &CacheEntry| {
        let unused = now.duration_since(entry.used).unwrap_or_default();
        !entry.in_use
            && (!entry.shared || (prune.all && !limited))
            && prune.unused_for.is_none_or(|least| unused >= least)
            && (prune.any_of.is_empty()
                || prune.any_of.iter().any(|all| all.iter().all(|filter| filter.matches(entry))))
            && !matches!(entry.what, What::Snapshot(_))
    };
    let total: u64 = entries.iter().filter(|entry| !entry.shared).map(|entry| entry.size).sum();
    let mut stack = Stack::new(entries);
    let mut left = total;
    let keep = prune.limits.keep(total, free);
    let mut heap: BinaryHeap<(u64, usize)> = BinaryHeap::new();
    let mut waiting: BTreeMap<&SnapshotId, Vec<usize>> = BTreeMap::new();
    for (at, entry) in entries.iter().enumerate().filter(|(_, entry)| candidate(entry)) {
        match entry.what.snapshot().filter(|id| limited && stack.has_children(id)) {
            Some(id) => waiting.entry(id).or_default().push(at),
            None => heap.push((score(entry, now), at)),
        }
    }
    let mut chosen = Vec::new();
    while !limited || left > keep {
        let Some((_, at)) = heap.pop() else { break };
        chosen.push(at);
        for gone in stack.take(at) {
            left = left.saturating_sub(stack.size_of(&gone));
            // Those it was the last to stand on can be chosen now.
            let freed: Vec<usize> =
                stack.below(&gone).iter().filter_map(|below| waiting.remove(below)).flatten().collect();
            for at in freed {
                if stack.has_children(entries[at].what.snapshot().expect("it waited as one")) {
                    waiting.entry(entries[at].what.snapshot().expect("the same")).or_default().push(at);
                } else {
                    heap.push((score(&entries[at], now), at));
                }
            }
        }
        if entries[at].what.snapshot().is_none() {
            left = left.saturating_sub(entries[at].size);
        }
    }
    // What only they kept goes with them.
    chosen.extend(stack.bare_gone());
    chosen.sort_unstable();
    chosen
}

/// How little an entry is worth: see the module.
fn score(entry: &CacheEntry, now: SystemTime) -> u64 {
    let unused = now.duration_since(entry.used).unwrap_or_default().as_secs_f64() + 1.0;
    let score = unused * (entry.size as f64 + 4096.0) / (entry.cost.as_secs_f64() + 0.1);
    // Saturates, as casts of floats do.
    score as u64
}

/// Snapshots that stand on one another, and which of them the entries that are left keep.
struct Stack<'a> {
    entries: &'a [CacheEntry],
    nodes: BTreeMap<&'a SnapshotId, Node<'a>>,
}

#[derive(Default)]
struct Node<'a> {
    /// What it stands on, and what it has its files from.
    below: Vec<&'a SnapshotId>,
    /// Entries of results that are left.
    records: usize,
    children: usize,
    /// The entry of a snapshot without a record.
    bare: Option<usize>,
    size: u64,
    /// By images, containers, or what runs.
    kept: bool,
    gone: bool,
}

impl<'a> Stack<'a> {
    fn new(entries: &'a [CacheEntry]) -> Stack<'a> {
        let of_id: BTreeMap<&str, &SnapshotId> =
            entries.iter().filter_map(|entry| Some((entry.id.as_str(), entry.what.snapshot()?))).collect();
        let mut nodes: BTreeMap<&SnapshotId, Node<'a>> = BTreeMap::new();
        for (at, entry) in entries.iter().enumerate() {
            let Some(id) = entry.what.snapshot() else { continue };
            let node = nodes.entry(id).or_default();
            node.size += entry.size;
            node.kept |= entry.shared || entry.in_use;
            node.below = entry.parents.iter().filter_map(|parent| of_id.get(parent.as_str()).copied()).collect();
            match entry.what {
                What::Snapshot(_) => node.bare = Some(at),
                _ => node.records += 1,
            }
        }
        let parents: Vec<&SnapshotId> = nodes.values().flat_map(|node| node.below.iter().copied()).collect();
        for parent in parents {
            if let Some(node) = nodes.get_mut(parent) {
                node.children += 1;
            }
        }
        Stack { entries, nodes }
    }

    fn has_children(&self, id: &SnapshotId) -> bool {
        self.nodes.get(id).is_some_and(|node| node.children > 0)
    }

    fn size_of(&self, id: &SnapshotId) -> u64 {
        self.nodes.get(id).map_or(0, |node| node.size)
    }

    fn below(&self, id: &SnapshotId) -> Vec<&'a SnapshotId> {
        self.nodes.get(id).map(|node| node.below.clone()).unwrap_or_default()
    }

    /// Takes an entry away; the snapshots that nothing keeps any more.
    fn take(&mut self, at: usize) -> Vec<SnapshotId> {
        let mut gone = Vec::new();
        let Some(id) = self.entries[at].what.snapshot() else { return gone };
        if let Some(node) = self.nodes.get_mut(id) {
            node.records = node.records.saturating_sub(1);
        }
        let mut queue = vec![id];
        while let Some(id) = queue.pop() {
            let Some(node) = self.nodes.get_mut(id) else { continue };
            if node.gone || node.kept || node.records > 0 || node.children > 0 {
                continue;
            }
            node.gone = true;
            gone.push(id.clone());
            for below in node.below.clone() {
                if let Some(node) = self.nodes.get_mut(below) {
                    node.children -= 1;
                }
                queue.push(below);
            }
        }
        gone
    }

    /// The entries of snapshots without a record that went.
    fn bare_gone(&self) -> Vec<usize> {
        self.nodes.values().filter(|node| node.gone).filter_map(|node| node.bare).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::cache::CacheKind;
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + 1000 * HOUR
    }

    /// A result of so many bytes on the entry `parent`, made in `cost`, last used so long ago.
    fn result(id: &str, parent: Option<&str>, size: u64, cost: Duration, unused: Duration) -> CacheEntry {
        CacheEntry {
            id: id.to_owned(),
            kind: CacheKind::Regular,
            parents: parent.map(str::to_owned).into_iter().collect(),
            description: String::new(),
            mutable: false,
            in_use: false,
            shared: false,
            size,
            created: SystemTime::UNIX_EPOCH,
            used: now() - unused,
            uses: None,
            cost,
            what: What::Record { key: id.to_owned(), snapshot: Some(id.parse().unwrap()) },
        }
    }

    fn bare(entry: CacheEntry) -> CacheEntry {
        CacheEntry { what: What::Snapshot(entry.id.parse().unwrap()), ..entry }
    }

    fn chosen(entries: &[CacheEntry], prune: &CachePrune) -> Vec<String> {
        choose(entries, prune, u64::MAX, now()).into_iter().map(|at| entries[at].id.clone()).collect()
    }

    fn keep(bytes: u64) -> CachePrune {
        CachePrune { limits: CacheLimits { max_used: bytes, ..CacheLimits::default() }, ..CachePrune::default() }
    }

    #[test]
    fn what_is_worth_least_goes_first() {
        let second = Duration::from_secs(1);
        let entries = [
            result("cheap", None, 1 << 20, second / 100, HOUR),
            result("dear", None, 1 << 20, 600 * second, HOUR),
            result("old", None, 1 << 20, 600 * second, 900 * HOUR),
            result("large", None, 100 << 20, 600 * second, HOUR),
        ];
        assert_eq!(chosen(&entries, &keep(103 << 20)), [] as [&str; 0]);
        assert_eq!(chosen(&entries, &keep(102 << 20)), ["cheap"]);
        assert_eq!(chosen(&entries, &keep(101 << 20)), ["cheap", "old"]);
        assert_eq!(chosen(&entries, &keep(1 << 20)), ["cheap", "old", "large"]);
        assert_eq!(chosen(&entries, &CachePrune::default()).len(), 4);
        let unused = CachePrune { unused_for: Some(10 * HOUR), ..CachePrune::default() };
        assert_eq!(chosen(&entries, &unused), ["old"]);
        let reserved = CacheLimits { reserved: 200 << 20, max_used: 1, min_free: 0 };
        assert_eq!(chosen(&entries, &CachePrune { limits: reserved, ..CachePrune::default() }).len(), 0);
    }

    #[test]
    fn of_a_stack_the_outermost_goes_first() {
        let stack = |in_use: bool| {
            let old = 500 * HOUR;
            let mut top = result("top", Some("middle"), 10, Duration::ZERO, HOUR);
            top.in_use = in_use;
            [
                bare(result("base", None, 1000, Duration::ZERO, old)),
                result("low", Some("base"), 100, Duration::ZERO, old),
                result("middle", Some("low"), 100, Duration::ZERO, old),
                top,
            ]
        };
        assert_eq!(chosen(&stack(false), &keep(1205)), ["top"]);
        assert_eq!(chosen(&stack(false), &keep(1105)), ["middle", "top"]);
        // With the last that stands on it goes what has no result of its own.
        assert_eq!(chosen(&stack(false), &keep(1050)), ["base", "low", "middle", "top"]);
        assert_eq!(chosen(&stack(true), &keep(1)), [] as [&str; 0], "what is in use keeps what it stands on");
    }

    #[test]
    fn limits() {
        let of = |reserved, max_used, min_free| CacheLimits { reserved, max_used, min_free };
        assert_eq!(of(0, 0, 0).keep(100, 0), 0);
        assert_eq!(of(0, 60, 0).keep(100, 0), 60);
        assert_eq!(of(0, 0, 50).keep(100, 30), 80);
        assert_eq!(of(0, 90, 50).keep(100, 30), 80);
        assert_eq!(of(95, 90, 50).keep(100, 30), 95);
        assert_eq!(of(10, 0, 0).keep(100, 0), 10);
    }
}
