//! Copies again what changed since a directory was copied the last time.
//!
//! A tree that was copied whole leaves a [`Note`]: each path with its content hash, time and kind. When the same COPY runs
//! again on the same tree, what the note says of a path and what the walk saw are compared; the paths that differ are copied
//! over the earlier result, those that went are taken out of it. The outcome is, entry by entry, what copying everything would
//! have given, times included, and is refused ([`Changes::between`], [`copy_changes`]) where that is not plain: a file that
//! became a directory, one of several names, a path that shows something of the tree below when it goes, or too much of it.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};

use rbuild_solver::ContentHash;

use super::copy::{CopyRules, copy};
use super::meta::Kind;
use super::select::Selected;
use super::walk::{Directory, Tree, join, split_parent};
use super::writer::{Found, TreeWriter, look_in};
use super::xattrs::Xattrs;
use crate::ExecutorError;

const MAGIC: &[u8; 8] = b"rbcopy\0\x01";
/// With fewer entries and bytes than this a tree is copied anew: that costs nothing.
const FEWEST_ENTRIES: usize = 32;
const FEWEST_BYTES: u64 = 4 << 20;
/// With more entries no note is made: what is written down must not outgrow what is copied.
const MOST_ENTRIES: usize = 500_000;
/// Changes that are always worth it; of more entries or bytes, a quarter may differ. (What differs is kept twice.)
const FEW_CHANGES: usize = 8;
const FEW_BYTES: u64 = 1 << 20;

/// What was copied, path by path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    entries: Vec<Noted>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Noted {
    /// Relative to what was copied; empty is that itself.
    path: Vec<u8>,
    kind: Kind,
    /// It had other names.
    linked: bool,
    mtime: (i64, u32),
    size: u64,
    hash: ContentHash,
}

impl Note {
    /// Of a directory, whose hashes are those of `files::hash::tree`. `None` when it is not worth a note.
    pub fn of(tree: &Tree, hashes: &[ContentHash]) -> Option<Note> {
        let entries = noted(tree, hashes)?;
        let bytes: u64 = entries.iter().map(|entry| entry.size).sum();
        let worth = (FEWEST_ENTRIES..=MOST_ENTRIES).contains(&entries.len()) || bytes >= FEWEST_BYTES;
        (worth && entries.len() <= MOST_ENTRIES).then_some(Note { entries })
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(MAGIC.len() + self.entries.len() * 96);
        out.extend_from_slice(MAGIC);
        for entry in &self.entries {
            out.extend_from_slice(&(entry.path.len() as u32).to_le_bytes());
            out.extend_from_slice(&entry.path);
            out.push(number(entry.kind) | u8::from(entry.linked) << 7);
            out.extend_from_slice(&entry.mtime.0.to_le_bytes());
            out.extend_from_slice(&entry.mtime.1.to_le_bytes());
            out.extend_from_slice(&entry.size.to_le_bytes());
            out.extend_from_slice(entry.hash.as_bytes());
        }
        let sum = blake3::hash(&out);
        out.extend_from_slice(sum.as_bytes());
        out
    }

    /// `None` when it is not whole, or another version's.
    pub fn from_bytes(bytes: &[u8]) -> Option<Note> {
        let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
        if blake3::hash(body).as_bytes() != sum {
            return None;
        }
        let mut rest = body.strip_prefix(MAGIC)?;
        let mut entries = Vec::with_capacity(rest.len() / 96);
        while !rest.is_empty() {
            let length = u32::from_le_bytes(take(&mut rest)?) as usize;
            let (path, after) = rest.split_at_checked(length)?;
            rest = after;
            let [kind] = take(&mut rest)?;
            entries.push(Noted {
                path: path.to_vec(),
                kind: *KINDS.get(usize::from(kind & 0x7f))?,
                linked: kind & 0x80 != 0,
                mtime: (i64::from_le_bytes(take(&mut rest)?), u32::from_le_bytes(take(&mut rest)?)),
                size: u64::from_le_bytes(take(&mut rest)?),
                hash: ContentHash::from_bytes(take(&mut rest)?),
            });
        }
        Some(Note { entries })
    }
}

const KINDS: [Kind; 7] =
    [Kind::File, Kind::Directory, Kind::Symlink, Kind::Fifo, Kind::Socket, Kind::CharDevice, Kind::BlockDevice];

fn number(kind: Kind) -> u8 {
    KINDS.iter().position(|known| *known == kind).map_or(0x7f, |at| at as u8)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*head)
}

/// Every entry of a directory, in the order in which it is hashed; `None` when the hashes are not its own.
fn noted(tree: &Tree, hashes: &[ContentHash]) -> Option<Vec<Noted>> {
    let count = tree.dirs.iter().map(|dir| dir.entries.len() + 1).sum::<usize>();
    if !tree.root.meta.is_dir() || hashes.len() != count {
        return None;
    }
    let mut entries = Vec::with_capacity(count);
    let mut hashes = hashes.iter();
    for dir in &tree.dirs {
        let top = (dir.path.clone(), &dir.meta);
        let held = dir.entries.iter().map(|entry| (join(&dir.path, entry.name.to_bytes()), &entry.meta));
        for (path, meta) in std::iter::once(top).chain(held) {
            entries.push(Noted {
                path,
                kind: meta.kind,
                linked: !meta.is_dir() && meta.nlink > 1,
                mtime: meta.mtime,
                size: if meta.kind == Kind::File { meta.size } else { 0 },
                hash: *hashes.next()?,
            });
        }
    }
    Some(entries)
}

/// What differs between what was copied and what is to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Paths that are new or not as they were, relative to the directory; sorted.
    written: Vec<Vec<u8>>,
    /// Paths that are no more, without those below others of them.
    removed: Vec<Vec<u8>>,
    /// The directory itself has another time.
    top: bool,
}

impl Changes {
    /// What the directory `tree` differs in from what `note` says, if that is little and plain. Times count unless
    /// everything gets the same (`timed`).
    pub fn between(note: &Note, now: &Note, timed: bool) -> Option<Changes> {
        let mut before: HashMap<&[u8], &Noted> = note.entries.iter().map(|e| (e.path.as_slice(), e)).collect();
        let mut changes = Changes::default();
        let (mut count, mut bytes) = (0, 0);
        for entry in &now.entries {
            let was = before.remove(entry.path.as_slice());
            let same = was.is_some_and(|was| was.hash == entry.hash && (timed || was.mtime == entry.mtime));
            if entry.path.is_empty() {
                changes.top = !same;
                continue;
            }
            if same {
                continue;
            }
            if !is_plain(entry) || was.is_some_and(|was| !is_plain(was) || was.kind != entry.kind) {
                return None;
            }
            // What a directory holds is told apart, but not which of its own attributes went.
            if entry.kind == Kind::Directory && was.is_some_and(|was| was.hash != entry.hash) {
                return None;
            }
            (count, bytes) = (count + 1, bytes + entry.size);
            changes.written.push(entry.path.clone());
        }
        if before.values().any(|gone| !is_plain(gone)) {
            return None;
        }
        let all = note.entries.len().max(now.entries.len());
        let most = now.entries.iter().map(|entry| entry.size).sum::<u64>() / 4;
        if count + before.len() > (all / 4).max(FEW_CHANGES) || bytes > most.max(FEW_BYTES) {
            return None;
        }
        let goes = |path: &[u8]| before.contains_key(path);
        changes.removed = before
            .keys()
            .filter(|path| !goes(split_parent(path).0) || split_parent(path).0.is_empty())
            .map(|path| path.to_vec())
            .collect();
        changes.removed.sort_unstable();
        changes.written.sort_unstable();
        Some(changes)
    }

    /// Whether the same would be copied as was.
    pub fn is_empty(&self) -> bool {
        self.written.is_empty() && self.removed.is_empty() && !self.top
    }

    /// The part of what was selected that is to be copied.
    fn select(&self, selected: &Selected) -> Selected {
        let is_written = |path: &Vec<u8>| self.written.binary_search(path).is_ok();
        let part = |dir: &Directory| {
            let named = |name: &std::ffi::CString| join(&dir.path, name.to_bytes());
            let entries: Vec<_> = dir.entries.iter().filter(|entry| is_written(&named(&entry.name))).cloned().collect();
            let wanted = !entries.is_empty() || is_written(&dir.path);
            wanted.then(|| Directory { entries, path: dir.path.clone(), meta: dir.meta.clone(), wanted: dir.wanted })
        };
        let dirs = selected.tree.dirs.iter().filter_map(part).collect();
        let tree = Tree { dirs, path: selected.tree.path.clone(), root: selected.tree.root.clone() };
        Selected { tree, name: selected.name.clone(), path: selected.path.clone(), pivot: selected.pivot }
    }
}

/// A socket is copied as nothing, and names of one file belong together.
fn is_plain(entry: &Noted) -> bool {
    entry.kind != Kind::Socket && !entry.linked
}

/// Brings what `writer` shows, an earlier copy of the directory `selected` by the same rules, to what it is now.
/// `parent` is what both were copied onto. False, with nothing of use written, where that cannot be said.
///
/// # Errors
/// As [`copy`].
pub fn copy_changes(
    writer: &mut TreeWriter,
    parent: Option<&OwnedFd>,
    root: BorrowedFd<'_>,
    selected: &Selected,
    changes: &Changes,
    rules: &CopyRules,
) -> Result<bool, ExecutorError> {
    let fail = |errno| ExecutorError::write(&rules.dest, errno);
    let top = writer.resolve(&rules.dest, true).map_err(fail)?;
    if !matches!(top.found, Found::Directory(_)) {
        return Ok(false);
    }
    let below = |path: &[u8]| match parent {
        Some(parent) => look_in(parent, path).map(|found| found.unwrap_or(Found::Absent)),
        None => Ok(Found::Absent),
    };
    for path in &changes.removed {
        let path = join(&top.path, path);
        if below(&path).map_err(fail)? != Found::Absent {
            return Ok(false);
        }
        writer.remove(&path)?;
    }
    copy(writer, root, &[changes.select(selected)], rules)?;
    // The directory that was made to hold it has its time; one that was there kept its own.
    let takes_time = rules.timestamp.is_none() && !rules.dest.ends_with(b"/") && !top.path.is_empty();
    if changes.top && takes_time && below(&top.path).map_err(fail)? == Found::Absent {
        writer.change_dir(&top.path, &rules.made(selected.tree.root.meta.mtime), &Xattrs::new())?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, text: &str) -> Noted {
        Noted {
            path: path.as_bytes().to_vec(),
            kind: if text.is_empty() { Kind::Directory } else { Kind::File },
            linked: false,
            mtime: (1, 2),
            size: text.len() as u64,
            hash: ContentHash::of(text.as_bytes()),
        }
    }

    fn note() -> Note {
        let mut entries = vec![entry("", ""), entry("d", ""), entry("d/e", "")];
        entries.extend((0..60).map(|n| entry(&format!("d/e/{n}"), &format!("text {n}"))));
        Note { entries }
    }

    #[test]
    fn a_note_comes_back_whole_or_not_at_all() {
        let note = note();
        let bytes = note.to_bytes();
        assert_eq!(Note::from_bytes(&bytes), Some(note));
        for at in (0..bytes.len()).step_by(97) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert_eq!(Note::from_bytes(&damaged), None, "byte {at}");
            assert_eq!(Note::from_bytes(&bytes[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn changes_are_what_is_new_different_or_gone() {
        let (before, mut now) = (note(), note());
        assert!(Changes::between(&before, &now, false).unwrap().is_empty());
        now.entries[5] = entry("d/e/2", "other");
        now.entries[6].mtime = (9, 9);
        now.entries.retain(|entry| entry.path != b"d/e/7");
        now.entries.push(entry("new", "new"));
        let changes = Changes::between(&before, &now, false).unwrap();
        let text =
            |paths: &[Vec<u8>]| paths.iter().map(|p| String::from_utf8_lossy(p).into_owned()).collect::<Vec<_>>();
        assert_eq!(text(&changes.written), ["d/e/2", "d/e/3", "new"]);
        assert_eq!(text(&changes.removed), ["d/e/7"]);
        assert_eq!(text(&Changes::between(&before, &now, true).unwrap().written), ["d/e/2", "new"]);
        // A directory goes with what it holds, as one.
        let gone = Note { entries: now.entries[..1].to_vec() };
        let most = Note { entries: [before.entries.as_slice(), &[entry("x", ""), entry("x/y", "1")]].concat() };
        assert_eq!(text(&Changes::between(&most, &before, false).unwrap().removed), ["x"]);
        assert_eq!(Changes::between(&before, &gone, false), None, "too much");
    }

    #[test]
    fn what_is_not_plain_is_copied_whole() {
        let before = note();
        let changed = |change: &dyn Fn(&mut Noted)| {
            let mut now = note();
            change(&mut now.entries[9]);
            Changes::between(&before, &now, false)
        };
        assert!(changed(&|entry| entry.hash = ContentHash::of(b"x")).is_some());
        assert_eq!(changed(&|entry| (entry.hash, entry.linked) = (ContentHash::of(b"x"), true)), None);
        assert_eq!(changed(&|entry| (entry.hash, entry.kind) = (ContentHash::of(b"x"), Kind::Directory)), None);
        assert_eq!(changed(&|entry| (entry.path, entry.kind) = (b"s".to_vec(), Kind::Socket)), None);
        let mut now = note();
        now.entries[1].hash = ContentHash::of(b"attributes");
        assert_eq!(Changes::between(&before, &now, false), None);
    }
}
