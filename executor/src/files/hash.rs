//! Content hashes of selected trees.
//!
//! In the hash: path within the tree, kind, permission bits, owner, bytes, link target, device number, travelling
//! extended attributes, and which entries are hard links of each other.
//! Left out: all times (a checkout must not miss), inode and device numbers, link counts, what a filter excludes,
//! everything outside of the selection, and the owners of what a user lends: it arrives as root's, whosever it is there.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rayon::prelude::*;
use rbuild_solver::ContentHash;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::index::StatIndex;
use super::meta::{Kind, Meta};
use super::walk::{Directory, Entry, Tree, join, open_dir_beneath};
use super::xattrs;
use crate::ExecutorError;

/// Files from this size on are hashed by all threads together.
const LARGE: u64 = 8 << 20;

/// The hash of one path of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathHash {
    /// Relative to the source's root.
    pub path: Vec<u8>,
    pub hash: ContentHash,
}

/// How a tree is read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reading<'a> {
    /// Files that it knows are not opened.
    pub index: Option<&'a StatIndex>,
    /// Everything counts as root's.
    pub without_owners: bool,
}

/// Hashes every entry of `tree`, in the tree's order. `root` is the descriptor the walk started from.
///
/// # Errors
/// A file that cannot be read or that is no longer the one the walk saw.
pub fn tree(root: BorrowedFd<'_>, tree: &Tree, reading: Reading<'_>) -> Result<Vec<PathHash>, ExecutorError> {
    let first_names = hard_links(tree);
    if !tree.root.meta.is_dir() {
        let (parent, _) = super::walk::split_parent(&tree.path);
        let dir = open_dir_beneath(root, parent).map_err(|e| ExecutorError::read(parent, e))?;
        let hash = entry(dir.as_fd(), &tree.path, &tree.root, None, reading)?;
        return Ok(vec![PathHash { path: tree.path.clone(), hash }]);
    }
    let per_dir: Vec<Vec<PathHash>> =
        tree.dirs.par_iter().map(|dir| directory(root, tree, dir, &first_names, reading)).collect::<Result<_, _>>()?;
    Ok(per_dir.into_iter().flatten().collect())
}

/// One hash for a whole selection.
pub fn combine<'a>(parts: impl IntoIterator<Item = (&'a [u8], &'a ContentHash)>) -> ContentHash {
    let mut hasher = blake3::Hasher::new();
    for (path, hash) in parts {
        field(&mut hasher, path);
        hasher.update(hash.as_bytes());
    }
    ContentHash::from_bytes(*hasher.finalize().as_bytes())
}

/// For each (device, inode) with several names in the tree, the first of them.
fn hard_links(tree: &Tree) -> HashMap<(u64, u64), Vec<u8>> {
    let mut first = HashMap::new();
    for dir in &tree.dirs {
        for entry in dir.entries.iter().filter(|entry| entry.meta.nlink > 1) {
            first.entry((entry.meta.dev, entry.meta.ino)).or_insert_with(|| join(&dir.path, entry.name.to_bytes()));
        }
    }
    first
}

fn directory(
    root: BorrowedFd<'_>,
    tree: &Tree,
    dir: &Directory,
    first_names: &HashMap<(u64, u64), Vec<u8>>,
    reading: Reading<'_>,
) -> Result<Vec<PathHash>, ExecutorError> {
    let path = join(&tree.path, &dir.path);
    let fd = open_dir_beneath(root, &path).map_err(|e| ExecutorError::read(&path, e))?;
    let mut found = Vec::with_capacity(dir.entries.len() + 1);
    let mut hasher = start(b'd', &dir.meta, reading.without_owners);
    attributes(&mut hasher, &fd, &path)?;
    found.push(PathHash { path: path.clone(), hash: finish(hasher) });
    let one = |item: &Entry| {
        let own = join(&dir.path, item.name.to_bytes());
        let full = join(&tree.path, &own);
        let link =
            first_names.get(&(item.meta.dev, item.meta.ino)).filter(|first| **first != own && item.meta.nlink > 1);
        entry(fd.as_fd(), &full, item, link.map(Vec::as_slice), reading).map(|hash| PathHash { path: full, hash })
    };
    let hashes: Vec<PathHash> = if dir.entries.len() > 16 {
        dir.entries.par_iter().map(one).collect::<Result<_, _>>()?
    } else {
        dir.entries.iter().map(one).collect::<Result<_, _>>()?
    };
    found.extend(hashes);
    Ok(found)
}

fn entry(
    dir: BorrowedFd<'_>,
    path: &[u8],
    entry: &Entry,
    link_to: Option<&[u8]>,
    reading: Reading<'_>,
) -> Result<ContentHash, ExecutorError> {
    let fail = |errno: Errno| ExecutorError::read(path, errno);
    let meta = &entry.meta;
    let start = |tag| start(tag, meta, reading.without_owners);
    if let Some(first) = link_to {
        let mut hasher = start(b'h');
        field(&mut hasher, first);
        return Ok(finish(hasher));
    }
    match meta.kind {
        Kind::File => {
            if let Some(known) = reading.index.and_then(|index| index.find(path, meta)) {
                return Ok(known);
            }
            let fd = open_file(dir, &entry.name, meta, path)?;
            let mut hasher = start(b'f');
            attributes(&mut hasher, &fd, path)?;
            hasher.update(file_bytes(&fd, meta.size).map_err(fail)?.as_bytes());
            unchanged(&fd, meta, path)?;
            let hash = finish(hasher);
            if let Some(index) = reading.index {
                index.record(path, meta, hash);
            }
            Ok(hash)
        }
        Kind::Symlink => {
            let mut hasher = start(b'l');
            field(&mut hasher, super::walk::read_link(dir, &entry.name).map_err(fail)?.to_bytes());
            Ok(finish(hasher))
        }
        Kind::CharDevice | Kind::BlockDevice => {
            let mut hasher = start(if meta.kind == Kind::CharDevice { b'c' } else { b'b' });
            hasher.update(&meta.rdev.to_le_bytes());
            Ok(finish(hasher))
        }
        Kind::Fifo => Ok(finish(start(b'p'))),
        Kind::Socket => Ok(finish(start(b's'))),
        Kind::Directory => Err(fail(Errno::ISDIR)),
    }
}

/// Opens a file that a walk saw, without blocking on what it may have become.
///
/// # Errors
/// It cannot be opened, or it is another file now.
pub(crate) fn open_file(dir: BorrowedFd<'_>, name: &CStr, meta: &Meta, path: &[u8]) -> Result<OwnedFd, ExecutorError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let fd = rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(|errno| ExecutorError::read(path, errno))?;
    unchanged(&fd, meta, path)?;
    Ok(fd)
}

/// Fails unless the open file is still what the walk saw.
pub(crate) fn unchanged(fd: &OwnedFd, meta: &Meta, path: &[u8]) -> Result<(), ExecutorError> {
    let now = Meta::of_fd(fd).map_err(|errno| ExecutorError::read(path, errno))?;
    if now.same_state(meta) { Ok(()) } else { Err(ExecutorError::Changed { path: path.to_vec() }) }
}

fn file_bytes(fd: &OwnedFd, size: u64) -> rustix::io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let chunk = if size >= LARGE { 4 << 20 } else { (size as usize + 1).clamp(512, 128 << 10) };
    let mut buffer = vec![0u8; chunk];
    loop {
        let n = match rustix::io::read(fd, &mut buffer[..]) {
            Ok(0) => return Ok(hasher.finalize()),
            Ok(n) => n,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        if size >= LARGE {
            hasher.update_rayon(&buffer[..n]);
        } else {
            hasher.update(&buffer[..n]);
        }
    }
}

fn start(tag: u8, meta: &Meta, without_owner: bool) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[tag]);
    if tag != b'l' {
        hasher.update(&meta.mode.to_le_bytes());
    }
    let (uid, gid) = if without_owner { (0, 0) } else { (meta.uid, meta.gid) };
    hasher.update(&uid.to_le_bytes());
    hasher.update(&gid.to_le_bytes());
    hasher
}

fn attributes(hasher: &mut blake3::Hasher, fd: &OwnedFd, path: &[u8]) -> Result<(), ExecutorError> {
    for (name, value) in xattrs::read(fd).map_err(|errno| ExecutorError::read(path, errno))? {
        field(hasher, name.to_bytes());
        field(hasher, &value);
    }
    Ok(())
}

fn field(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

fn finish(hasher: blake3::Hasher) -> ContentHash {
    ContentHash::from_bytes(*hasher.finalize().as_bytes())
}
