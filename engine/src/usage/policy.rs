//! Collecting the build cache by itself.
//!
//! A policy is a list of rules in the terms of BuildKit's: each removes what it selects, the least valuable first (see
//! [`prune`](super::prune)), until its limits hold. A build asks when it has ended whether a collection is due, which
//! reads one small file and asks the file system for its free space; the collection itself is another process', so
//! that nobody waits for it. What runs, containers and images keep what they need, as with any prune.
//!
//! `gc.stamp` in the state directory says when the last collection was, and what it found; its lock is held while one is at
//! work, so that there is one at a time.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, SystemTime};

use rbuild_store::lock::{Lock, try_lock};
use serde::{Deserialize, Serialize};

use super::cache::CacheKind;
use super::filter::CacheFilter;
use super::prune::{CacheLimits, CachePrune, PrunedCache};
use crate::engine::Engine;
use crate::error::Error;

/// A cache under no pressure is looked at so often.
const USUALLY: Duration = Duration::from_secs(3600);
/// One that is over its limits, or on a disk that is, is not looked at more often than this.
const AT_MOST: Duration = Duration::from_secs(60);

/// When and what to collect.
#[derive(Debug, Clone)]
pub struct CachePolicy {
    pub enabled: bool,
    /// Applied in this order.
    pub rules: Vec<PolicyRule>,
    /// Whether somebody wrote it, so that it counts from the first build on.
    pub written: bool,
}

/// One rule.
#[derive(Debug, Clone, Default)]
pub struct PolicyRule {
    /// Results that images have too may be forgotten.
    pub all: bool,
    /// What it is about: what matches all filters of one of the lists; empty is everything.
    pub any_of: Vec<Vec<CacheFilter>>,
    /// Only what nobody used for so long.
    pub unused_for: Option<Duration>,
    pub reserved: Space,
    pub max_used: Space,
    pub min_free: Space,
}

/// Room on the disk that holds the state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    Bytes(u64),
    Percent(u8),
    /// The smaller of a share and so many bytes.
    AtMost(u8, u64),
}

impl Default for Space {
    fn default() -> Space {
        Space::Bytes(0)
    }
}

impl Space {
    fn of(self, disk: u64) -> u64 {
        match self {
            Space::Bytes(bytes) => bytes,
            Space::Percent(percent) => disk / 100 * u64::from(percent),
            Space::AtMost(percent, bytes) => bytes.min(disk / 100 * u64::from(percent)),
        }
    }
}

impl Default for CachePolicy {
    /// What is cheap to have again (indexes, checkouts, cache mounts) goes after two days once the cache has 512 MB; what
    /// nobody used for 60 days, and then anything, goes where the cache has more than 60 % of the disk or 100 GB, or
    /// leaves less than 20 % of the disk free; 10 % of the disk, but no more than 10 GB, stays in any case.
    fn default() -> CachePolicy {
        let of_kind = |kind: CacheKind| vec![CacheFilter::of_kind(kind)];
        let limited = PolicyRule {
            reserved: Space::AtMost(10, 10 << 30),
            max_used: Space::AtMost(60, 100 << 30),
            min_free: Space::Percent(20),
            ..PolicyRule::default()
        };
        let rules = vec![
            PolicyRule {
                any_of: [CacheKind::Local, CacheKind::CacheMount, CacheKind::GitCheckout].map(of_kind).into(),
                unused_for: Some(Duration::from_secs(48 * 3600)),
                max_used: Space::Bytes(512 << 20),
                ..PolicyRule::default()
            },
            PolicyRule { unused_for: Some(Duration::from_secs(60 * 24 * 3600)), ..limited.clone() },
            limited,
        ];
        CachePolicy { enabled: true, rules, written: false }
    }
}

/// What `gc.stamp` holds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Stamp {
    /// Nanoseconds since 1970.
    checked: i64,
    /// Bytes that were free then.
    free: u64,
    /// Bytes by which the cache could have grown without passing a limit.
    room: u64,
}

impl Engine {
    /// Whether it is time to collect. Cheap, and errs on the side of no: a collection can always come later.
    pub fn is_collection_due(&self, policy: &CachePolicy) -> bool {
        if !policy.enabled || policy.rules.is_empty() || self.store().is_read_only() {
            return false;
        }
        let Ok((disk, free)) = self.disk() else { return false };
        let stamp = self.open_stamp().ok().and_then(|mut file| read_stamp(&mut file));
        let Some(stamp) = stamp else {
            // Nothing is known of a new store. Its policy is the usual one: then there is nothing in it yet.
            if !policy.written && self.open_stamp().and_then(|file| write_stamp(&file, free, 0)).is_ok() {
                return false;
            }
            return policy.written;
        };
        let since = SystemTime::now().duration_since(rbuild_store::db::time(stamp.checked)).unwrap_or_default();
        let lacks = policy.rules.iter().any(|rule| free < rule.min_free.of(disk));
        // Whatever was written since, by whomever, is the most that the cache can have grown.
        let grown = stamp.free.saturating_sub(free) > stamp.room;
        since >= USUALLY || (since >= AT_MOST && (lacks || grown)) || (policy.written && grown)
    }

    /// Applies a policy now. `None` when another process is at it.
    ///
    /// # Errors
    /// The store cannot be read or changed.
    pub fn collect_cache(&self, policy: &CachePolicy) -> Result<Option<PrunedCache>, Error> {
        let stamp = self.open_stamp().map_err(Error::internal)?;
        if !try_lock(&stamp, Lock::Alone)? {
            return Ok(None);
        }
        let mut done = PrunedCache::default();
        let mut most = u64::MAX;
        let (disk, _) = self.disk()?;
        for rule in &policy.rules {
            let limits = CacheLimits {
                reserved: rule.reserved.of(disk),
                max_used: rule.max_used.of(disk),
                min_free: rule.min_free.of(disk),
            };
            if limits.max_used > 0 {
                most = most.min(limits.max_used.max(limits.reserved));
            }
            let prune = CachePrune { all: rule.all, any_of: rule.any_of.clone(), unused_for: rule.unused_for, limits };
            let pruned = self.prune_cache(&prune)?;
            done.entries.extend(pruned.entries);
            done.records.extend(pruned.records);
            done.bytes += pruned.bytes;
        }
        let entries = self.cache_entries()?;
        let used: u64 = entries.iter().filter(|entry| !entry.shared).map(|entry| entry.size).sum();
        write_stamp(&stamp, self.disk()?.1, most.saturating_sub(used)).map_err(Error::internal)?;
        Ok(Some(done))
    }

    /// Bytes of the disk, and how many of them are free.
    fn disk(&self) -> Result<(u64, u64), Error> {
        let fs = rustix::fs::statvfs(self.store().root()).map_err(Error::internal)?;
        Ok((fs.f_blocks * fs.f_frsize, fs.f_bavail * fs.f_frsize))
    }

    fn open_stamp(&self) -> std::io::Result<File> {
        let path = self.store().root().join("gc.stamp");
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
    }
}

/// `None` for a new stamp, and one whose writer died.
fn read_stamp(file: &mut File) -> Option<Stamp> {
    let mut text = String::new();
    file.take(4096).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

fn write_stamp(mut file: &File, free: u64, room: u64) -> std::io::Result<()> {
    let stamp = Stamp { checked: rbuild_store::db::nanos(SystemTime::now()), free, room };
    let text = serde_json::to_vec(&stamp).map_err(std::io::Error::other)?;
    file.rewind()?;
    file.set_len(0)?;
    file.write_all(&text)
}
