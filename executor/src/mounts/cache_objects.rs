//! The caches of `RUN --mount=type=cache` as things that people list and remove.
//!
//! What is known of a slot lies in its own files, so that a step that takes one touches no database: the file `lock` says
//! what for, how often and how it was last taken, and its time is that of the last use; `size` keeps what measuring
//! found, for that time. Nothing is measured while a step runs: whoever lists measures what was used since.
//!
//! Listing takes the right to choose for the moment it looks at a lock, since a step that met a slot locked by a looker
//! would take another. Removing holds it until the slot is out of reach.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rbuild_graph::ops::CacheSharing;
use rbuild_store::lock::{Lock, try_lock};
use rbuild_store::snapshots::disk_use;
use rbuild_store::{Root, Store};
use serde::{Deserialize, Serialize};

use super::cache::{PAUSE, lock_file};
use super::local;
use crate::ExecutorError;

/// How often a lister or remover asks for the right to choose before it takes the slot for one in use.
const ATTEMPTS: u32 = 40;

/// One directory that steps mount as a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMount {
    /// The hash that names the cache: of its id, owner, mode, and what it began as.
    pub key: String,
    /// Which of the cache's directories: more than one where several steps did not want to share.
    pub slot: u32,
    /// The id that Dockerfiles give it; by default the target's path.
    pub id: String,
    /// For people: where it was mounted, for which command.
    pub description: String,
    /// How it was last taken: shared, private or locked.
    pub sharing: String,
    /// Disk use in bytes.
    pub size: u64,
    pub created: SystemTime,
    pub used: SystemTime,
    /// How often it was taken.
    pub uses: u64,
    /// Whether a step has it at this moment.
    pub in_use: bool,
}

/// What the file `lock` of a slot holds.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Notes {
    uses: u64,
    sharing: String,
    description: String,
    /// Nanoseconds since 1970.
    created: i64,
}

/// All of them, in the order of their keys.
///
/// # Errors
/// The store's directory cannot be read.
pub fn list(store: &Store) -> Result<Vec<CacheMount>, ExecutorError> {
    let root = directory(store);
    let mut found = Vec::new();
    for key in names(&root)? {
        let dir = root.join(&key);
        let id = fs::read_to_string(dir.join("id")).unwrap_or_default();
        for slot in names(&dir)?.iter().filter_map(|name| name.parse().ok()) {
            // One that goes meanwhile is not there.
            if let Some(mount) = look(store, &key, slot, id.trim_end_matches('\n'))? {
                found.push(mount);
            }
        }
    }
    found.sort_by(|a, b| (&a.key, a.slot).cmp(&(&b.key, b.slot)));
    Ok(found)
}

/// Removes one, and returns the bytes that became free; `None` when a step has it, or somebody else removed it.
///
/// # Errors
/// Its files resist.
pub fn remove(store: &Store, mount: &CacheMount) -> Result<Option<u64>, ExecutorError> {
    let lease = store.lease("removing a cache mount")?;
    let cache = directory(store).join(&mount.key);
    let Some(_choosing) = choosing(&cache)? else { return Ok(None) };
    let slot = cache.join(mount.slot.to_string());
    let Ok(lock) = File::open(slot.join("lock")) else { return Ok(None) };
    if !try_lock(&lock, Lock::Alone)? {
        return Ok(None);
    }
    // Into the lease's directory first: whoever is killed while removing leaves garbage that is known to be that.
    let aside = lease.ingest_path("cache-mount-")?;
    fs::rename(&slot, &aside).map_err(local)?;
    if names(&cache)?.iter().all(|name| name.parse::<u32>().is_err()) {
        // Whoever waits for the right to choose finds its file without a name, and starts over.
        let aside = lease.ingest_path("cache-mount-")?;
        fs::rename(&cache, &aside).map_err(local)?;
        fs::remove_dir_all(&aside).map_err(local)?;
    }
    let bytes = measure(&aside)?;
    fs::remove_dir_all(&aside).map_err(local)?;
    Ok(Some(bytes))
}

/// Notes in the open `lock` of a slot that it was taken. Only with the right to choose.
pub(super) fn note_use(lock: &File, sharing: CacheSharing, description: &str) -> io::Result<()> {
    let mut notes = read_notes(lock);
    notes.uses += 1;
    notes.sharing = name_of(sharing).to_owned();
    notes.description = description.to_owned();
    if notes.created == 0 {
        notes.created = rbuild_store::db::nanos(SystemTime::now());
    }
    let text = serde_json::to_vec(&notes).map_err(io::Error::other)?;
    lock.set_len(0)?;
    lock.write_all_at(&text, 0)
}

fn name_of(sharing: CacheSharing) -> &'static str {
    match sharing {
        CacheSharing::Shared => "shared",
        CacheSharing::Private => "private",
        CacheSharing::Locked => "locked",
    }
}

/// Notes that are half written were written by somebody who died then: as good as none.
fn read_notes(lock: &File) -> Notes {
    let mut text = String::new();
    let mut from = lock;
    let read = from.rewind().and_then(|()| from.take(1 << 20).read_to_string(&mut text));
    read.ok().and_then(|_| serde_json::from_str(&text).ok()).unwrap_or_default()
}

fn look(store: &Store, key: &str, slot: u32, id: &str) -> Result<Option<CacheMount>, ExecutorError> {
    let cache = directory(store).join(key);
    let dir = cache.join(slot.to_string());
    let Ok(lock) = File::open(dir.join("lock")) else { return Ok(None) };
    let in_use = !store.is_read_only() && is_in_use(&cache, &lock)?;
    let notes = read_notes(&lock);
    let metadata = lock.metadata().map_err(local)?;
    let used = metadata.modified().map_err(local)?;
    let stamp = (metadata.mtime(), metadata.mtime_nsec());
    let size = match known_size(&dir, stamp).filter(|_| !in_use) {
        Some(size) => size,
        None => {
            let size = match measure(&dir) {
                Err(_) if !dir.exists() => return Ok(None),
                size => size?,
            };
            let unchanged = lock.metadata().is_ok_and(|now| (now.mtime(), now.mtime_nsec()) == stamp);
            if !in_use && unchanged && !store.is_read_only() {
                keep_size(&dir, stamp, size);
            }
            size
        }
    };
    Ok(Some(CacheMount {
        key: key.to_owned(),
        slot,
        id: id.to_owned(),
        description: if notes.description.is_empty() { format!("cached mount {id}") } else { notes.description },
        sharing: if notes.sharing.is_empty() { name_of(CacheSharing::Shared).to_owned() } else { notes.sharing },
        size,
        created: if notes.created == 0 { used } else { rbuild_store::db::time(notes.created) },
        used,
        uses: notes.uses,
        in_use,
    }))
}

/// Asked with the right to choose in hand, so that nobody takes another slot because of the question.
fn is_in_use(cache: &Path, lock: &File) -> Result<bool, ExecutorError> {
    let Some(_choosing) = choosing(cache)? else { return Ok(true) };
    let free = try_lock(lock, Lock::Alone)?;
    if free {
        rustix::fs::flock(lock, rustix::fs::FlockOperation::Unlock).map_err(|errno| local(errno.into()))?;
    }
    Ok(!free)
}

/// The right to choose, if nobody else keeps it for long.
fn choosing(cache: &Path) -> Result<Option<File>, ExecutorError> {
    for _ in 0..ATTEMPTS {
        if !cache.exists() {
            return Ok(None);
        }
        let lock = lock_file(&cache.join("choose"))?;
        if try_lock(&lock, Lock::Alone)? && lock.metadata().map_err(local)?.nlink() > 0 {
            return Ok(Some(lock));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(None)
}

fn known_size(slot: &Path, stamp: (i64, i64)) -> Option<u64> {
    let text = fs::read_to_string(slot.join("size")).ok()?;
    let mut words = text.split_whitespace().map(str::parse::<i64>);
    let (size, seconds, nanos) = (words.next()?.ok()?, words.next()?.ok()?, words.next()?.ok()?);
    ((seconds, nanos) == stamp).then_some(size.unsigned_abs())
}

/// A size that cannot be kept is measured again.
fn keep_size(slot: &Path, (seconds, nanos): (i64, i64), size: u64) {
    let made = File::create(slot.join("size"));
    if let Err(error) = made.and_then(|mut file| writeln!(file, "{size} {seconds} {nanos}")) {
        tracing::debug!(%error, "the size of a cache mount is not kept");
    }
}

fn measure(dir: &Path) -> Result<u64, ExecutorError> {
    Root::open(dir).and_then(|root| disk_use(root.top())).map_err(local)
}

fn directory(store: &Store) -> PathBuf {
    store.root().join("cachemounts")
}

/// The names in a directory, sorted; none when it is not there.
fn names(dir: &Path) -> Result<Vec<String>, ExecutorError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(local)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(local)?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}
