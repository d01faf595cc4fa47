//! From the source words of a COPY to the trees they mean.

use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rbuild_graph::pattern::{Component, PathGlob, has_wildcards};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::meta::{Kind, Meta};
use super::missing::missing;
use super::walk::{PathFilter, Tree, join, open_beneath, open_dir_beneath, read_link, split_parent, walk};
use crate::ExecutorError;
use crate::error::show;

/// One match of a source word.
#[derive(Debug, Clone)]
pub struct Selected {
    /// What the path is called at the destination: the last component as it was written or matched.
    pub name: Vec<u8>,
    /// As it was written or matched, without leading slash; links not resolved.
    pub path: Vec<u8>,
    /// Where `/./` cuts `path` for `--parents`: the length of what is dropped.
    pub pivot: usize,
    pub tree: Tree,
}

/// What to look for.
pub struct Query<'a> {
    pub sources: &'a [Vec<u8>],
    pub wildcards: bool,
    /// `**` stands for any number of directories (`--parents`).
    pub deep: bool,
    pub allow_empty: bool,
    pub follow_links: bool,
    /// What does not exist (`.dockerignore`): part of the source.
    pub hidden: Option<&'a Arc<dyn PathFilter>>,
    /// What is left out (`--exclude`).
    pub exclude: Option<&'a Arc<dyn PathFilter>>,
}

/// A filter whose paths are relative to a directory of the source, not to its root.
struct Within {
    prefix: Vec<u8>,
    filter: Arc<dyn PathFilter>,
}

impl Within {
    fn relative<'a>(&self, path: &'a [u8]) -> &'a [u8] {
        if self.prefix.is_empty() { path } else { path.get(self.prefix.len() + 1..).unwrap_or_default() }
    }
}

impl PathFilter for Within {
    fn excludes(&self, path: &[u8], is_dir: bool) -> bool {
        let path = self.relative(path);
        !path.is_empty() && self.filter.excludes(path, is_dir)
    }

    fn reincludes_below(&self, path: &[u8]) -> bool {
        self.filter.reincludes_below(self.relative(path))
    }
}

/// Finds the trees of `query` below `root`, in the order of the sources, matches of a wildcard sorted.
///
/// # Errors
/// A source that does not exist, named; a file that cannot be read.
pub fn select(root: BorrowedFd<'_>, query: &Query<'_>) -> Result<Vec<Selected>, ExecutorError> {
    let mut found = Vec::new();
    for source in query.sources {
        let (components, pivot_after) = clean(source);
        let cleaned = components.join(&b'/');
        let paths = if query.wildcards {
            let glob = PathGlob::parse(&cleaned, query.deep)
                .map_err(|error| ExecutorError::Invalid(format!("{error}: {}", show(source))))?;
            if has_wildcards(&cleaned) { expand(root, &glob.components, query)? } else { vec![plain(&glob.components)] }
        } else {
            vec![cleaned]
        };
        if paths.is_empty() && !query.allow_empty {
            return Err(missing(root, source, query));
        }
        for path in paths {
            let resolved = match resolve(root, &path, query.follow_links) {
                Ok(Some(resolved)) if !is_hidden(root, &resolved, query) => resolved,
                Ok(_) | Err(Errno::NOTDIR | Errno::LOOP) => return Err(missing(root, &path, query)),
                Err(errno) => return Err(ExecutorError::read(&path, errno)),
            };
            let is_dir = stat(root, &resolved).is_ok_and(|meta| meta.is_dir());
            let name = split_parent(&path).1;
            if !is_dir && query.exclude.is_some_and(|exclude| exclude.excludes(name, false)) {
                continue;
            }
            let within = |filter: &Arc<dyn PathFilter>| -> Arc<dyn PathFilter> {
                Arc::new(Within { prefix: resolved.clone(), filter: filter.clone() })
            };
            let filters: Vec<_> = query.hidden.cloned().into_iter().chain(query.exclude.map(within)).collect();
            let tree = walk(root, &resolved, &filters)?;
            let pivot = pivot_after.map_or(0, |n| path.split(|b| *b == b'/').take(n).map(|c| c.len() + 1).sum());
            found.push(Selected { name: split_parent(&path).1.to_vec(), pivot: pivot.min(path.len()), path, tree });
        }
    }
    Ok(found)
}

/// Components without `.`, `..` clamped at the root; and how many of them stand before a `/./`.
pub(super) fn clean(source: &[u8]) -> (Vec<Vec<u8>>, Option<usize>) {
    let mut out: Vec<Vec<u8>> = Vec::new();
    let mut pivot = None;
    for (position, component) in source.split(|b| *b == b'/').enumerate() {
        match component {
            b"" => {}
            b"." if position > 0 && pivot.is_none() => pivot = Some(out.len()),
            b"." => {}
            b".." => {
                out.pop();
            }
            name => out.push(name.to_vec()),
        }
    }
    (out, pivot)
}

pub(super) fn is_hidden(root: BorrowedFd<'_>, path: &[u8], query: &Query<'_>) -> bool {
    let Some(filter) = query.hidden.filter(|_| !path.is_empty()) else { return false };
    let is_dir = stat(root, path).is_ok_and(|meta| meta.is_dir());
    filter.excludes(path, is_dir) && !(is_dir && filter.reincludes_below(path))
}

pub(super) fn stat(root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<Meta> {
    let (parent, name) = split_parent(path);
    if name.is_empty() {
        return Meta::of_fd(root);
    }
    let dir = open_beneath(root, parent, OFlags::PATH | OFlags::DIRECTORY)?;
    Meta::at(&dir, &CString::new(name).map_err(|_| Errno::INVAL)?)
}

/// Follows the links of `path` below `root`, clamped to it. `None` when it does not exist.
///
/// # Errors
/// Loops, and what `fstatat` says.
pub fn resolve(root: BorrowedFd<'_>, path: &[u8], follow_last: bool) -> rustix::io::Result<Option<Vec<u8>>> {
    let split = |p: &[u8]| -> VecDeque<Vec<u8>> {
        p.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".").map(<[u8]>::to_vec).collect()
    };
    let mut rest = split(path);
    let mut at: Vec<u8> = Vec::new();
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        if name == b".." {
            at = split_parent(&at).0.to_vec();
            continue;
        }
        let next = join(&at, &name);
        let meta = match stat(root, &next) {
            Ok(meta) => meta,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        if meta.kind != Kind::Symlink || (rest.is_empty() && !follow_last) {
            at = next;
            continue;
        }
        links += 1;
        if links > 40 {
            return Err(Errno::LOOP);
        }
        let (parent, name) = split_parent(&next);
        let dir = open_beneath(root, parent, OFlags::PATH | OFlags::DIRECTORY)?;
        let target = read_link(&dir, &CString::new(name).map_err(|_| Errno::INVAL)?)?.into_bytes();
        if target.starts_with(b"/") {
            at.clear();
        }
        for component in split(&target).into_iter().rev() {
            rest.push_front(component);
        }
    }
    Ok(Some(at))
}

/// A path without wildcards, escapes undone.
fn plain(components: &[Component]) -> Vec<u8> {
    let names = components.iter().filter_map(|component| match component {
        Component::Name(name) => Some(name.as_slice()),
        _ => None,
    });
    names.collect::<Vec<_>>().join(&b'/')
}

/// The paths that match, sorted, one component after the other.
fn expand(root: BorrowedFd<'_>, components: &[Component], query: &Query<'_>) -> Result<Vec<Vec<u8>>, ExecutorError> {
    let mut paths: Vec<Vec<u8>> = vec![Vec::new()];
    for (position, component) in components.iter().enumerate() {
        let last = position + 1 == components.len();
        let mut next = Vec::new();
        for path in &paths {
            match component {
                Component::Name(name) => next.push(join(path, name)),
                Component::Wild(pattern) => {
                    let names = list(root, path)?.into_iter().filter(|name| pattern.matches(name));
                    next.extend(names.map(|name| join(path, &name)));
                }
                Component::Deep => descend(root, path, last, &mut next)?,
            }
        }
        paths = next;
    }
    let exists = |path: &Vec<u8>| matches!(resolve(root, path, query.follow_links), Ok(Some(resolved)) if !is_hidden(root, &resolved, query));
    paths.retain(exists);
    paths.sort();
    paths.dedup();
    Ok(paths)
}

pub(super) fn list(root: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<Vec<u8>>, ExecutorError> {
    let resolved = match resolve(root, path, true) {
        Ok(Some(resolved)) => resolved,
        Ok(None) | Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Vec::new()),
        Err(errno) => return Err(ExecutorError::read(path, errno)),
    };
    let fd = match open_dir_beneath(root, &resolved) {
        Ok(fd) => fd,
        Err(Errno::NOTDIR) => return Ok(Vec::new()),
        Err(errno) => return Err(ExecutorError::read(path, errno)),
    };
    let fail = |errno| ExecutorError::read(path, errno);
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(fd.as_fd()).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort();
    Ok(names)
}

/// `**`: any number of directories, or, at the end, everything below.
fn descend(root: BorrowedFd<'_>, path: &[u8], last: bool, out: &mut Vec<Vec<u8>>) -> Result<(), ExecutorError> {
    let mut pending = vec![path.to_vec()];
    while let Some(dir) = pending.pop() {
        if !last {
            out.push(dir.clone());
        }
        for name in list(root, &dir)? {
            let child = join(&dir, &name);
            let is_dir = stat(root, &child).is_ok_and(|meta| meta.is_dir());
            if is_dir {
                pending.push(child.clone());
            }
            if last && !is_dir {
                out.push(child);
            }
        }
    }
    Ok(())
}
