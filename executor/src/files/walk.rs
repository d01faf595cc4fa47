//! Walks what a COPY selects and remembers it: the same walk serves the hash, the copy and the record.
//!
//! A tree is read directory by directory through open descriptors, one component at a time and never through a link,
//! so a directory that is swapped for a link during the walk changes nothing outside. What a filter excludes is not
//! opened. The memory of a walk is one small record per entry; contents are never held.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::Errno;

use super::meta::{Kind, Meta};
use crate::ExecutorError;

/// Decides what of a source exists at all (`.dockerignore`) or is left out (`--exclude`).
///
/// Paths are relative to the root that is walked, without leading slash, components separated by `/`.
pub trait PathFilter: Send + Sync {
    fn excludes(&self, path: &[u8], is_dir: bool) -> bool;

    /// Whether something below the excluded directory `path` may still be wanted.
    fn reincludes_below(&self, path: &[u8]) -> bool;
}

/// One selected path with all that is below it.
#[derive(Debug, Clone)]
pub struct Tree {
    /// Where it is in its source, without leading slash; empty is the source's root.
    pub path: Vec<u8>,
    pub root: Entry,
    /// Every directory of the tree, parents first; empty when the root is no directory.
    pub dirs: Vec<Directory>,
}

/// An entry of a directory.
#[derive(Debug, Clone)]
pub struct Entry {
    pub name: CString,
    pub meta: Meta,
}

/// A directory of a tree and what it holds.
#[derive(Debug, Clone)]
pub struct Directory {
    /// Relative to the tree's root; empty is the root itself.
    pub path: Vec<u8>,
    pub meta: Meta,
    /// All but directories, sorted by name.
    pub entries: Vec<Entry>,
    /// False when the filter leaves it out and nothing below brought it back.
    pub wanted: bool,
}

/// Opens a directory by its components below `root`, never through a link.
///
/// # Errors
/// As `openat`; a component that is a link or no directory is `ELOOP` or `ENOTDIR`.
pub fn open_dir_beneath(root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    open_beneath(root, path, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Opens a path below `root`, never through a link.
///
/// # Errors
/// As `openat2`.
pub fn open_beneath(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    use rustix::fs::ResolveFlags;
    let name = if path.is_empty() { c".".to_owned() } else { CString::new(path).map_err(|_| Errno::INVAL)? };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..64 {
        match rustix::fs::openat2(
            root,
            name.as_c_str(),
            flags | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::empty(),
            resolve,
        ) {
            Err(Errno::AGAIN) => {}
            done => return done,
        }
    }
    Err(Errno::AGAIN)
}

/// The target of a symbolic link.
///
/// # Errors
/// As `readlinkat`.
pub fn read_link(dir: impl AsFd, name: &CStr) -> rustix::io::Result<CString> {
    rustix::fs::readlinkat(dir, name, Vec::new())
}

/// Walks `path` (no links in it) below `root`.
///
/// `at` is where the filter's paths start: the path of the tree in the filter's own terms.
///
/// # Errors
/// An entry that cannot be read, named by its path.
pub fn walk(root: BorrowedFd<'_>, path: &[u8], filters: &[Arc<dyn PathFilter>]) -> Result<Tree, ExecutorError> {
    let (parent, name) = split_parent(path);
    let fail = |errno: Errno, at: &[u8]| ExecutorError::read(at, errno);
    let (meta, name) = if path.is_empty() {
        (Meta::of_fd(root).map_err(|e| fail(e, b"."))?, c".".to_owned())
    } else {
        let dir = open_dir_beneath(root, parent).map_err(|e| fail(e, parent))?;
        let name = CString::new(name).map_err(|_| fail(Errno::INVAL, path))?;
        (Meta::at(&dir, &name).map_err(|e| fail(e, path))?, name)
    };
    let mut tree = Tree { path: path.to_vec(), root: Entry { name, meta }, dirs: Vec::new() };
    if tree.root.meta.is_dir() {
        let fd = open_dir_beneath(root, path).map_err(|e| fail(e, path))?;
        walk_dirs(fd, &mut tree, filters)?;
    }
    Ok(tree)
}

fn walk_dirs(top: OwnedFd, tree: &mut Tree, filters: &[Arc<dyn PathFilter>]) -> Result<(), ExecutorError> {
    let mut buffer = Vec::with_capacity(64 << 10);
    // Depth first; a descriptor is opened when its turn comes, so a wide tree holds few of them.
    let mut pending: Vec<(Vec<u8>, Meta, bool)> = vec![(Vec::new(), tree.root.meta.clone(), true)];
    while let Some((path, meta, wanted)) = pending.pop() {
        let at = join(&tree.path, &path);
        let fail = |errno: Errno| ExecutorError::read(&at, errno);
        let fd = open_dir_beneath(top.as_fd(), &path).map_err(fail)?;
        let mut entries = Vec::new();
        let mut below = Vec::new();
        let mut names: Vec<CString> = Vec::new();
        let mut listing = RawDir::new(&fd, buffer.spare_capacity_mut());
        while let Some(entry) = listing.next() {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        for name in names {
            let own = join(&path, name.to_bytes());
            let full = join(&tree.path, &own);
            let meta = match Meta::at(&fd, &name) {
                Ok(meta) => meta,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(ExecutorError::read(&full, errno)),
            };
            let excluded = filters.iter().any(|filter| filter.excludes(&full, meta.is_dir()));
            if meta.is_dir() {
                if !excluded || filters.iter().all(|f| !f.excludes(&full, true) || f.reincludes_below(&full)) {
                    below.push((own, meta, !excluded));
                }
            } else if !excluded {
                entries.push(Entry { name, meta });
            }
        }
        tree.dirs.push(Directory { path, meta, entries, wanted });
        pending.extend(below.into_iter().rev());
    }
    keep_parents(tree);
    Ok(())
}

/// A directory that was left out comes back when something below it did; others that were left out go.
fn keep_parents(tree: &mut Tree) {
    if tree.dirs.iter().all(|dir| dir.wanted) {
        return;
    }
    let mut needed = std::collections::HashSet::new();
    for dir in tree.dirs.iter().filter(|dir| dir.wanted || !dir.entries.is_empty()) {
        let mut at = dir.path.as_slice();
        while needed.insert(at.to_vec()) && !at.is_empty() {
            at = split_parent(at).0;
        }
    }
    tree.dirs.retain(|dir| needed.contains(&dir.path));
}

/// `a/b/c` is (`a/b`, `c`); `c` is (``, `c`).
pub fn split_parent(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// Two relative paths as one.
pub fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() {
        return name.to_vec();
    }
    if name.is_empty() {
        return parent.to_vec();
    }
    [parent, b"/", name].concat()
}

impl Tree {
    /// How many entries it has, itself included.
    pub fn len(&self) -> usize {
        1 + self.dirs.iter().map(|dir| dir.entries.len()).sum::<usize>() + self.dirs.len().saturating_sub(1)
    }

    /// Whether the tree is a directory with nothing in it that anybody wants.
    pub fn is_empty(&self) -> bool {
        self.root.meta.is_dir() && self.dirs.len() <= 1 && self.dirs.iter().all(|dir| dir.entries.is_empty())
    }

    /// Bytes of its files.
    pub fn bytes(&self) -> u64 {
        let entries = self.dirs.iter().flat_map(|dir| &dir.entries).chain([&self.root]);
        entries.filter(|entry| entry.meta.kind == Kind::File).map(|entry| entry.meta.size).sum()
    }

    /// Whether something in it is overlay's mark of a name that is gone.
    pub fn has_whiteouts(&self) -> bool {
        let entries = self.dirs.iter().flat_map(|dir| &dir.entries).chain([&self.root]);
        entries.into_iter().any(|entry| entry.meta.kind == Kind::CharDevice && entry.meta.rdev == 0)
    }

    /// Whether the root is a plain file.
    pub fn is_file(&self) -> bool {
        self.root.meta.kind == Kind::File
    }
}
