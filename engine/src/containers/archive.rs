//! A container's files from outside: what it changed, all of them as an archive, how much they are.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rbuild_store::layers::write_tree;
use rbuild_store::root::{Kind as FileKind, Metadata};
use rbuild_store::{Mounts, Root, Walk};

use super::record::Container;
use super::{Containers, root_of};
use crate::error::Error;

/// A path that a container's layer adds, changes or takes away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub kind: ChangeKind,
    /// Absolute.
    pub path: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    Changed,
    Added,
    Deleted,
}

impl Containers {
    /// What the container's layer changes in its image, sorted by path.
    pub fn diff(&self, container: &Container) -> Result<Vec<Change>, Error> {
        let upper = self.upper(container)?;
        let lower = match &container.parent {
            Some(_) => Some(self.image_root(container)?),
            None => None,
        };
        let whole = self.store.driver().is_whole();
        compare(&upper, lower.as_ref(), whole)
            .map_err(|e| Error::internal(format!("cannot compare container {} with its image: {e}", container.name)))
    }

    /// Writes the container's whole file system as a tar archive; volumes and other mounts are not in it.
    pub fn export(&self, container: &Container, out: &mut dyn Write) -> Result<u64, Error> {
        let bytes = write_tree(self.root(container)?, out)?;
        self.tell(container, "export", &[]);
        Ok(bytes)
    }

    /// The container's file system as it is now, for reading, mounted nowhere; without its volumes.
    pub(super) fn root(&self, container: &Container) -> Result<Root, Error> {
        let mounts = match self.mounts(container)? {
            Mounts::Overlay { lowers, upper, .. } => {
                let mut all: Vec<PathBuf> = upper.into_iter().collect();
                all.extend(lowers);
                match <[PathBuf; 1]>::try_from(all) {
                    Ok([source]) => Mounts::Bind { source, read_only: true },
                    Err(lowers) => Mounts::Overlay { lowers, upper: None, work: None },
                }
            }
            bind @ Mounts::Bind { .. } => bind,
        };
        root_of(&mounts)
    }
}

/// Compares a layer with what it lies on. `whole`: the layer holds everything, not only what differs.
fn compare(upper: &Root, lower: Option<&Root>, whole: bool) -> io::Result<Vec<Change>> {
    let mut changes: BTreeMap<PathBuf, ChangeKind> = BTreeMap::new();
    // Directories to be visited: the path, whether it is below, whether only what is here counts.
    let mut queue = vec![(PathBuf::new(), lower.is_some(), whole)];
    while let Some((path, below, whole)) = queue.pop() {
        let names_above = names(upper, &path)?;
        let names_below = match lower.filter(|_| below) {
            Some(lower) => names(lower, &path)?,
            None => BTreeSet::new(),
        };
        for name in &names_above {
            let child = path.join(name);
            let now = upper.lstat(&child, Walk::NoLinks)?;
            let was = match lower.filter(|_| names_below.contains(name)) {
                Some(lower) => Some(lower.lstat(&child, Walk::NoLinks)?),
                None => None,
            };
            if now.is_whiteout() {
                if was.is_some() {
                    changes.insert(child, ChangeKind::Deleted);
                }
                continue;
            }
            let was_directory = was.as_ref().is_some_and(|m| m.kind == FileKind::Dir);
            match &was {
                None => drop(changes.insert(child.clone(), ChangeKind::Added)),
                Some(was) if differs(&now, was, whole) => drop(changes.insert(child.clone(), ChangeKind::Changed)),
                Some(_) => {}
            }
            if now.kind == FileKind::Dir {
                let opaque = !whole && was_directory && is_opaque(upper, &child)?;
                queue.push((child, was_directory, whole || opaque));
            }
        }
        if whole {
            for name in names_below.difference(&names_above) {
                changes.insert(path.join(name), ChangeKind::Deleted);
            }
        }
    }
    // A directory with something changed in it counts as changed, as docker counts.
    let parents: Vec<PathBuf> = changes.keys().flat_map(|p| p.ancestors().skip(1).map(Path::to_owned)).collect();
    for parent in parents.into_iter().filter(|p| !p.as_os_str().is_empty()) {
        changes.entry(parent).or_insert(ChangeKind::Changed);
    }
    Ok(changes.into_iter().map(|(path, kind)| Change { kind, path: Path::new("/").join(path) }).collect())
}

fn names(root: &Root, path: &Path) -> io::Result<BTreeSet<OsString>> {
    let here = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    Ok(root.read_dir(here, Walk::NoLinks)?.into_iter().map(|entry| entry.name).collect())
}

/// What an overlay's layer holds of a file is a change; of a directory it may be there only for what is in it.
fn differs(now: &Metadata, was: &Metadata, whole: bool) -> bool {
    let about = |m: &Metadata| (m.mode, m.uid, m.gid, m.rdev);
    if now.kind != was.kind || about(now) != about(was) {
        return true;
    }
    match now.kind {
        FileKind::Dir => now.modified != was.modified,
        _ => !whole || now.modified != was.modified || now.size != was.size,
    }
}

fn is_opaque(root: &Root, path: &Path) -> io::Result<bool> {
    let (dir, name) = root.parent(path, Walk::NoLinks)?;
    let mark = dir.xattr(&name, std::ffi::OsStr::from_bytes(b"trusted.overlay.opaque"))?;
    Ok(mark.is_some_and(|value| value == b"y"))
}

/// The bytes in the files below `root`, each hard-linked file once: docker's idea of a layer's size.
pub(crate) fn content_size(root: &Root) -> io::Result<u64> {
    let mut total = 0;
    let mut seen = HashSet::new();
    let mut queue = vec![PathBuf::new()];
    while let Some(path) = queue.pop() {
        for name in names(root, &path)? {
            let child = path.join(name);
            let metadata = match root.lstat(&child, Walk::NoLinks) {
                Ok(metadata) => metadata,
                // The container is at work meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            match metadata.kind {
                FileKind::Dir => queue.push(child),
                _ if metadata.links > 1 && !seen.insert((metadata.device, metadata.inode)) => {}
                _ => total += metadata.size,
            }
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn whole_trees_are_compared() {
        let (below, above) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
        for dir in [&below, &above] {
            fs::create_dir_all(dir.path().join("d/same")).expect("mkdir");
            fs::write(dir.path().join("d/changed"), "a").expect("write");
        }
        fs::write(below.path().join("gone"), "").expect("write");
        fs::write(above.path().join("d/changed"), "longer").expect("write");
        fs::create_dir(above.path().join("new")).expect("mkdir");
        fs::write(above.path().join("new/file"), "").expect("write");
        let epoch = std::time::SystemTime::UNIX_EPOCH;
        for dir in [&below, &above] {
            for path in ["d", "d/same", "."] {
                fs::File::open(dir.path().join(path)).and_then(|f| f.set_modified(epoch)).expect("utimes");
            }
        }
        let (below, above) = (Root::open(below.path()).expect("open"), Root::open(above.path()).expect("open"));
        let found: Vec<String> = compare(&above, Some(&below), true)
            .expect("compare")
            .iter()
            .map(|c| format!("{:?} {}", c.kind, c.path.display()))
            .collect();
        assert_eq!(found, ["Changed /d", "Changed /d/changed", "Deleted /gone", "Added /new", "Added /new/file"]);
        assert_eq!(content_size(&above).expect("size"), 6);
    }
}
