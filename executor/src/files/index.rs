//! Remembers what files hashed to, by what `stat` says of them, so that an unchanged tree is walked and not read.
//!
//! An entry is believed when size, inode, mode and both times are alike *and* the entry was made clearly later than the
//! file's last change: a file changed twice within the clock's granularity looks the same both times (git's "racily
//! clean" rule). Whatever is not believed is hashed again. A file that cannot be read, or is from another version, is an
//! empty index: losing it costs time and nothing else, so it is written aside and renamed but never flushed.
//!
//! One file for each context directory rather than rows in the database: it is read whole, written whole, and belongs to
//! nobody else.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rbuild_solver::ContentHash;

use super::meta::Meta;

const MAGIC: &[u8; 8] = b"rbidx\0\0\x01";
/// A change this recent, in nanoseconds, may be followed by another with the same time. Far above any clock tick.
const GRANULARITY: i128 = 100_000_000;
/// Bytes of an entry besides its path.
const FIXED: usize = 4 + 8 + 12 + 12 + 8 + 4 + 32;
/// An index of more bytes is not read: ten million files do not belong in a context.
const LIMIT: u64 = 1 << 30;

/// What is known of the files below one directory.
#[derive(Debug)]
pub struct StatIndex {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Box<[u8]>, Entry>,
    /// Entries seen since loading; those of files that went are dropped when there are many of them.
    used: usize,
    changed: bool,
}

#[derive(Debug, Clone)]
struct Entry {
    size: u64,
    mtime: (i64, u32),
    ctime: (i64, u32),
    ino: u64,
    mode: u32,
    hash: ContentHash,
    used: bool,
}

impl Entry {
    fn is_of(&self, meta: &Meta) -> bool {
        self.size == meta.size
            && self.mtime == meta.mtime
            && self.ctime == meta.ctime
            && self.ino == meta.ino
            && self.mode == meta.mode
    }
}

impl StatIndex {
    /// The index kept at `path`; empty if there is none that can be read.
    pub fn load(path: PathBuf) -> StatIndex {
        let entries = read(&path).unwrap_or_default();
        StatIndex { path, state: Mutex::new(State { entries, used: 0, changed: false }) }
    }

    /// What the file at `path` hashed to, if it is still the same file.
    pub fn find(&self, path: &[u8], meta: &Meta) -> Option<ContentHash> {
        let mut state = self.lock();
        let entry = state.entries.get_mut(path).filter(|entry| entry.is_of(meta))?;
        let first = !std::mem::replace(&mut entry.used, true);
        let hash = entry.hash;
        state.used += usize::from(first);
        Some(hash)
    }

    /// Remembers a hash; not for a file that changed a moment ago.
    pub fn record(&self, path: &[u8], meta: &Meta, hash: ContentHash) {
        let newest = nanos(meta.ctime).max(nanos(meta.mtime));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i128);
        if now - newest < GRANULARITY {
            return;
        }
        let entry = Entry {
            size: meta.size,
            mtime: meta.mtime,
            ctime: meta.ctime,
            ino: meta.ino,
            mode: meta.mode,
            hash,
            used: true,
        };
        let mut state = self.lock();
        state.entries.insert(path.into(), entry);
        state.used += 1;
        state.changed = true;
    }

    /// Writes the index if it changed. A failure costs the next build time, so it is only logged.
    pub fn save(&self) {
        let mut state = self.lock();
        if !std::mem::take(&mut state.changed) {
            return;
        }
        if state.entries.len() > 2 * state.used + 1024 {
            state.entries.retain(|_, entry| entry.used);
        }
        if let Err(error) = write(&self.path, &state.entries) {
            tracing::debug!(%error, path = %self.path.display(), "the stat index is not kept");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn nanos((seconds, nanos): (i64, u32)) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanos)
}

fn write(path: &Path, entries: &HashMap<Box<[u8]>, Entry>) -> io::Result<()> {
    let mut out = Vec::with_capacity(entries.len() * (FIXED + 32) + 64);
    out.extend_from_slice(MAGIC);
    for (path, entry) in entries {
        out.extend_from_slice(&(path.len() as u32).to_le_bytes());
        out.extend_from_slice(path);
        out.extend_from_slice(&entry.size.to_le_bytes());
        for (seconds, nanos) in [entry.mtime, entry.ctime] {
            out.extend_from_slice(&seconds.to_le_bytes());
            out.extend_from_slice(&nanos.to_le_bytes());
        }
        out.extend_from_slice(&entry.ino.to_le_bytes());
        out.extend_from_slice(&entry.mode.to_le_bytes());
        out.extend_from_slice(entry.hash.as_bytes());
    }
    // A torn file must not be believed: rename alone may survive a power cut that its content does not.
    let sum = blake3::hash(&out);
    out.extend_from_slice(sum.as_bytes());
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    let aside = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = fs::File::create(&aside)?;
    file.write_all(&out)?;
    fs::rename(&aside, path)
}

fn read(path: &Path) -> Option<HashMap<Box<[u8]>, Entry>> {
    if fs::metadata(path).ok()?.len() > LIMIT {
        return None;
    }
    let bytes = fs::read(path).ok()?;
    let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
    if blake3::hash(body).as_bytes() != sum {
        return None;
    }
    let mut rest = body.strip_prefix(MAGIC)?;
    let mut entries = HashMap::with_capacity(rest.len() / (FIXED + 24));
    while !rest.is_empty() {
        let length = u32::from_le_bytes(take(&mut rest)?) as usize;
        let (path, after) = rest.split_at_checked(length)?;
        rest = after;
        let entry = Entry {
            size: u64::from_le_bytes(take(&mut rest)?),
            mtime: (i64::from_le_bytes(take(&mut rest)?), u32::from_le_bytes(take(&mut rest)?)),
            ctime: (i64::from_le_bytes(take(&mut rest)?), u32::from_le_bytes(take(&mut rest)?)),
            ino: u64::from_le_bytes(take(&mut rest)?),
            mode: u32::from_le_bytes(take(&mut rest)?),
            hash: ContentHash::from_bytes(take(&mut rest)?),
            used: false,
        };
        entries.insert(path.into(), entry);
    }
    Some(entries)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// Git's "racily clean": the file is hashed, and changed right after it, in the same tick of the clock, to as many bytes
    /// with the same time. Were it remembered, it would look unchanged for ever.
    #[test]
    fn a_file_that_changes_within_a_tick_is_never_taken_for_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (file, at) = (dir.path().join("f"), dir.path().join("index"));
        let open = fs::File::create(&file).unwrap();
        let mut alike = 0;
        for n in 0..500u32 {
            let (before, after) = (format!("{n:06}"), format!("{:06}", n + 1));
            let write = |text: &str| {
                use std::os::unix::fs::FileExt as _;
                open.write_all_at(text.as_bytes(), 0).unwrap();
                open.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            };
            write(&before);
            let index = StatIndex::load(at.clone());
            let seen = meta(&file);
            index.record(b"f", &seen, ContentHash::of(before.as_bytes()));
            index.save();
            write(&after);
            let now = meta(&file);
            alike += u32::from(now.same_state(&seen));
            for index in [index, StatIndex::load(at.clone())] {
                assert_eq!(index.find(b"f", &now), None, "{n}: stat says the same: {}", now.same_state(&seen));
            }
        }
        // Whether the clock ticked in between is chance: the rule must not need to know.
        println!("{alike} of 500 changes were invisible to stat");
    }

    fn meta(path: &Path) -> Meta {
        Meta::of_fd(fs::File::open(path).unwrap().as_fd()).unwrap()
    }

    #[test]
    fn only_an_unchanged_file_that_rested_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let (file, at) = (dir.path().join("f"), dir.path().join("i/index"));
        fs::write(&file, "1").unwrap();
        let hash = ContentHash::of(b"1");
        let index = StatIndex::load(at.clone());
        index.record(b"f", &meta(&file), hash);
        assert_eq!(index.find(b"f", &meta(&file)), None, "a file changed just now was remembered");

        let mut rested = meta(&file);
        rested.ctime.0 -= 10;
        rested.mtime.0 -= 10;
        index.record(b"f", &rested, hash);
        assert_eq!(index.find(b"f", &rested), Some(hash));
        index.save();
        let again = StatIndex::load(at.clone());
        assert_eq!(again.find(b"f", &rested), Some(hash));
        for change in [
            |m: &mut Meta| m.size += 1,
            |m: &mut Meta| m.ino += 1,
            |m: &mut Meta| m.mode ^= 1,
            |m: &mut Meta| m.mtime.1 ^= 1,
            |m: &mut Meta| m.ctime.0 += 1,
        ] {
            let mut other = rested.clone();
            change(&mut other);
            assert_eq!(again.find(b"f", &other), None);
        }

        let mut bytes = fs::read(&at).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&at, &bytes).unwrap();
        assert_eq!(StatIndex::load(at.clone()).find(b"f", &rested), None, "a damaged index was believed");
        fs::write(&at, &bytes[..20]).unwrap();
        assert_eq!(StatIndex::load(at).find(b"f", &rested), None);
    }
}
