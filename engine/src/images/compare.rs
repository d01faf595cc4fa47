//! What two images differ in: every path with the bytes that it adds or frees.
//!
//! Told from the layers' tars and not from mounted trees, so that it needs no privileges and no container. Content is
//! compared by digest; a layer that both images have is read once.

use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;
use std::sync::Arc;

use rbuild_oci::{DiffId, Digest, Sha256};
use rbuild_store::layers::read::Reader;
use rbuild_store::layers::tar::{Entry, EntryKind};

use super::{Image, Images};
use crate::error::Error;

/// A path in which two images differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub kind: DifferenceKind,
    /// From the root, with a leading slash.
    pub path: Vec<u8>,
    /// Bytes of its content in the one image and in the other; 0 for what has none.
    pub before: u64,
    pub after: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DifferenceKind {
    Added,
    Changed,
    Deleted,
}

/// What is compared of a path; its time is not.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    kind: EntryKind,
    mode: u32,
    owner: (u32, u32),
    xattrs: rbuild_store::layers::tar::Xattrs,
    content: Option<Digest>,
}

impl Node {
    fn size(&self) -> u64 {
        match self.kind {
            EntryKind::File { size } => size,
            _ => 0,
        }
    }
}

type Tree = BTreeMap<Vec<u8>, Node>;
type Layer = Arc<Vec<(Vec<u8>, Node)>>;

/// Marks of the image specification ("Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

impl Images {
    /// What `other` has differently from `one`, by path.
    ///
    /// # Errors
    /// No such image, or a layer that is not here.
    pub fn compare(&self, one: &str, other: &str) -> Result<Vec<Difference>, Error> {
        let (one, other) = (self.get(one)?, self.get(other)?);
        let mut layers = HashMap::new();
        let before = self.tree(&one, &mut layers)?;
        let after = self.tree(&other, &mut layers)?;
        Ok(differences(&before, &after))
    }

    fn tree(&self, image: &Image, layers: &mut HashMap<DiffId, Layer>) -> Result<Tree, Error> {
        let mut tree = Tree::new();
        for diff_id in &image.config.rootfs.diff_ids {
            let layer = match layers.get(diff_id) {
                Some(known) => known.clone(),
                None => {
                    let read = Arc::new(self.entries(diff_id)?);
                    layers.insert(diff_id.clone(), read.clone());
                    read
                }
            };
            apply(&mut tree, &layer);
        }
        Ok(tree)
    }

    fn entries(&self, diff_id: &DiffId) -> Result<Vec<(Vec<u8>, Node)>, Error> {
        let mut reader = Reader::new(self.store.layers().open_diff(diff_id)?);
        let mut entries = Vec::new();
        let mut buffer = vec![0; 256 << 10];
        while let Some(entry) = reader.next()? {
            let content = match entry.kind {
                EntryKind::File { .. } => {
                    let (mut body, mut hash) = (reader.body(), Sha256::new());
                    loop {
                        match body.read(&mut buffer).map_err(Error::internal)? {
                            0 => break Some(hash.finish()),
                            len => hash.update(&buffer[..len]),
                        }
                    }
                }
                _ => None,
            };
            let Entry { path, kind, mode, uid, gid, xattrs, .. } = entry;
            entries.push((path, Node { kind, mode, owner: (uid, gid), xattrs, content }));
        }
        Ok(entries)
    }
}

/// Puts a layer on a tree. Its marks act on what was below, wherever they stand in it.
fn apply(tree: &mut Tree, layer: &[(Vec<u8>, Node)]) {
    for (path, _) in layer {
        let (parent, name) = split(path);
        if name == OPAQUE {
            remove_below(tree, parent);
        } else if let Some(gone) = name.strip_prefix(WHITEOUT) {
            let path = join(parent, gone);
            remove_below(tree, &path);
            tree.remove(&path);
        }
    }
    for (path, node) in layer {
        if split(path).1.starts_with(WHITEOUT) {
            continue;
        }
        let node = match &node.kind {
            // Another name of a file is that file.
            EntryKind::HardLink { target } => tree.get(target).unwrap_or(node).clone(),
            _ => node.clone(),
        };
        if node.kind != EntryKind::Directory {
            remove_below(tree, path);
        }
        tree.insert(path.clone(), node);
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

fn remove_below(tree: &mut Tree, path: &[u8]) {
    let prefix = if path.is_empty() { Vec::new() } else { [path, b"/"].concat() };
    let below: Vec<Vec<u8>> = tree
        .range(prefix.clone()..)
        .map(|(path, _)| path)
        .take_while(|path| path.starts_with(&prefix))
        .filter(|path| !path.is_empty())
        .cloned()
        .collect();
    for path in below {
        tree.remove(&path);
    }
}

fn differences(before: &Tree, after: &Tree) -> Vec<Difference> {
    let mut all = Vec::new();
    let path_of = |path: &[u8]| [b"/", path].concat();
    for (path, was) in before {
        let (kind, size) = match after.get(path) {
            Some(is) if is == was => continue,
            Some(is) => (DifferenceKind::Changed, is.size()),
            None => (DifferenceKind::Deleted, 0),
        };
        all.push(Difference { kind, path: path_of(path), before: was.size(), after: size });
    }
    for (path, is) in after.iter().filter(|(path, _)| !before.contains_key(*path)) {
        all.push(Difference { kind: DifferenceKind::Added, path: path_of(path), before: 0, after: is.size() });
    }
    all.sort_by(|a, b| a.path.cmp(&b.path));
    all
}
