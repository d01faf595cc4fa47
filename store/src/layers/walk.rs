//! Walks a snapshot's own directory side by side with what lies below it.
//!
//! One walk serves all drivers. Overlay's upper directory holds only what changed; a directory that is opaque, or new,
//! or any directory of the drivers `vfs` and `btrfs`, holds everything: there, what it lacks is gone. Names come sorted as the
//! archive will have them, parents before what they hold.
//!
//! The stack is a vector, and only the innermost levels keep their directories open, so that a tree of any depth can
//! be walked with few descriptors.

use std::collections::{BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use rbuild_oci::limits;

use super::read::shown;
use super::whiteout::{Below, Lowers, Name, OPAQUE, PREFIX, as_path};
use crate::error::{Context, Result, StoreError};
use crate::root::{Dir, Kind, Metadata};

/// Levels that keep their directories open.
const OPEN_LEVELS: usize = 16;

/// A snapshot's own directory, or two that are one layer, and what it lies on.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) own: Lowers,
    pub(crate) lowers: Lowers,
    /// Whether `own` shows everything (`vfs`, `btrfs`), not only what differs from `lowers` (overlay).
    pub(crate) full: bool,
    /// The inodes that are not as they are in `lowers`, where the file system tells; any other one is the same file there.
    pub(crate) fresh: Option<HashSet<u64>>,
}

impl Tree {
    /// Whether the file system says that `now` is what `before` is, unchanged.
    pub(crate) fn is_same(&self, now: &Metadata, before: &Metadata) -> bool {
        let fresh = self.fresh.as_ref();
        fresh.is_some_and(|fresh| now.inode == before.inode && !fresh.contains(&now.inode))
    }
}

/// What the walk comes upon.
pub(crate) enum Visit {
    /// A directory; what it holds comes next, and then its [`Visit::Leave`].
    Enter(Node),
    Leave,
    /// Anything else.
    Node(Node),
    /// The name in the archive, `.wh.` included, of something that is gone.
    Whiteout(Vec<u8>),
}

/// Something that exists.
pub(crate) struct Node {
    pub(crate) path: Vec<u8>,
    pub(crate) metadata: Metadata,
    name: OsString,
    /// Which of the tree's own roots it lies in.
    part: usize,
}

pub(crate) struct Walker<'a> {
    tree: &'a Tree,
    levels: Vec<Level>,
}

struct Level {
    path: Vec<u8>,
    full: bool,
    /// Items still to come, last first.
    items: Vec<Item>,
    /// The roots it lies in, of the tree's own and of those below.
    parts: (Vec<usize>, Vec<usize>),
    open: Option<(Below, Below)>,
}

enum Item {
    Node(OsString),
    Whiteout(Vec<u8>),
}

impl Item {
    fn archive_name(&self) -> &[u8] {
        match self {
            Item::Node(name) => name.as_bytes(),
            Item::Whiteout(name) => name,
        }
    }
}

impl<'a> Walker<'a> {
    /// Starts in the root, which is not visited itself.
    pub(crate) fn new(tree: &'a Tree) -> Result<Walker<'a>> {
        let what = || "opening a snapshot".to_owned();
        let own = tree.own.top().context(what)?;
        let below = tree.lowers.top().context(what)?;
        let mut walker = Walker { tree, levels: Vec::new() };
        walker.push(Vec::new(), tree.full, own, below)?;
        Ok(walker)
    }

    pub(crate) fn next(&mut self) -> Result<Option<Visit>> {
        let Some(level) = self.levels.last_mut() else {
            return Ok(None);
        };
        let Some(item) = level.items.pop() else {
            self.levels.pop();
            return Ok(if self.levels.is_empty() { None } else { Some(Visit::Leave) });
        };
        let path = join(&level.path, item.archive_name())?;
        let name = match item {
            Item::Whiteout(_) => return Ok(Some(Visit::Whiteout(path))),
            Item::Node(name) => name,
        };
        let what = || format!("reading {} of a snapshot", shown(&path));
        let full = level.full;
        let (own, below) = self.here()?;
        let (part, metadata) = own
            .find_part(&name)
            .and_then(|found| found.ok_or_else(|| std::io::ErrorKind::NotFound.into()))
            .context(what)?;
        if metadata.kind != Kind::Dir {
            return Ok(Some(Visit::Node(Node { path, metadata, name, part })));
        }
        let inner = own.descend(&name).context(what)?;
        let inner_below = below.descend(&name).context(what)?;
        self.push(path.clone(), full, inner, inner_below)?;
        Ok(Some(Visit::Enter(Node { path, metadata, name, part })))
    }

    /// The directory we are in, and the view below it: after [`Visit::Enter`] the one just entered, after
    /// [`Visit::Node`] the one that holds the node ([`Node::dir`]).
    pub(crate) fn here(&mut self) -> Result<(&Below, &Below)> {
        let tree = self.tree;
        let level = self.levels.last_mut().ok_or_else(|| StoreError::invalid("walk", "it has ended"))?;
        if level.open.is_none() {
            let what = || format!("reading {} of a snapshot", shown(&level.path));
            let path = as_path(&level.path);
            let own = tree.own.reopen(path, &level.parts.0).context(what)?;
            level.open = Some((own, tree.lowers.reopen(path, &level.parts.1).context(what)?));
        }
        let (own, below) = level.open.as_ref().ok_or_else(|| StoreError::invalid("walk", "its directory is closed"))?;
        Ok((own, below))
    }

    fn push(&mut self, path: Vec<u8>, full: bool, own: Below, below: Below) -> Result<()> {
        let what = || format!("reading {} of a snapshot", shown(&path));
        let full = full || (!below.is_empty() && !self.levels.is_empty() && own.is_opaque().context(what)?);
        let items = list(&path, &own, &below, full)?;
        if let Some(outer) = self.levels.len().checked_sub(OPEN_LEVELS) {
            self.levels[outer].open = None;
        }
        self.levels.push(Level { path, full, items, parts: (own.parts(), below.parts()), open: Some((own, below)) });
        Ok(())
    }
}

impl Node {
    /// Its name in the directory that holds it.
    pub(crate) fn name(&self) -> &OsStr {
        &self.name
    }

    /// The directory that holds it, of the parts that [`Walker::here`] gives.
    pub(crate) fn dir<'a>(&self, own: &'a Below) -> std::io::Result<&'a Dir> {
        own.part(self.part).ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }
}

/// What a directory holds and lacks, last first.
fn list(path: &[u8], own: &Below, below: &Below, full: bool) -> Result<Vec<Item>> {
    let what = || format!("listing {} of a snapshot", shown(path));
    let mut nodes = BTreeSet::new();
    let mut gone = BTreeSet::new();
    for dir in own.dirs() {
        list_part(path, dir, &mut nodes, &mut gone)?;
    }
    let mut items = removed(below, full, &nodes, gone).context(what)?;
    items.extend(nodes.into_iter().map(Item::Node));
    items.sort_by(|a, b| b.archive_name().cmp(a.archive_name()));
    Ok(items)
}

/// Adds what one part of a directory holds and lacks to what those over it do.
fn list_part(path: &[u8], dir: &Dir, nodes: &mut BTreeSet<OsString>, gone: &mut BTreeSet<OsString>) -> Result<()> {
    let what = || format!("listing {} of a snapshot", shown(path));
    let first = nodes.is_empty() && gone.is_empty();
    for entry in dir.entries().context(what)? {
        let entry = entry.context(what)?;
        if !first && (nodes.contains(&entry.name) || gone.contains(&entry.name)) {
            continue;
        }
        let marks = match entry.kind {
            Some(Kind::Socket) => true, // no archive can hold one, and no program can use one that is left behind
            Some(Kind::CharDevice) | None => {
                let metadata = dir.stat(&entry.name).context(what)?;
                metadata.is_whiteout() || metadata.kind == Kind::Socket
            }
            Some(_) => false,
        };
        if marks {
            gone.insert(entry.name);
            continue;
        }
        if Name::of(entry.name.as_bytes()) != Name::Plain {
            let name = shown(&join(path, entry.name.as_bytes())?);
            return Err(StoreError::Unsupported(format!(
                "{name} in a layer: names that start with .wh. mean removed files there"
            )));
        }
        nodes.insert(entry.name);
    }
    Ok(())
}

/// What of the directory below is gone. Marks that hide nothing give nothing.
///
/// It depends only on what was shown before and what is shown now, not on the marks by which a driver got there, so
/// that all drivers give the same layer. A directory that holds something, but nothing of what it held before, is
/// opaque; otherwise each lost name is one whiteout.
fn removed(
    below: &Below,
    full: bool,
    nodes: &BTreeSet<OsString>,
    gone: BTreeSet<OsString>,
) -> std::io::Result<Vec<Item>> {
    if below.is_empty() || (!full && gone.is_empty()) {
        return Ok(Vec::new());
    }
    let replaced;
    let lost: Vec<OsString> = if full {
        let before = below.names()?;
        replaced = before.is_disjoint(nodes);
        before.into_iter().filter(|name| !nodes.contains(name)).collect()
    } else {
        let mut lost = Vec::new();
        for name in gone {
            if below.find(&name)?.is_some() {
                lost.push(name);
            }
        }
        replaced = !nodes.is_empty() && !lost.is_empty() && below.names()?.len() == lost.len();
        lost
    };
    if replaced && !lost.is_empty() && !nodes.is_empty() {
        return Ok(vec![Item::Whiteout(OPAQUE.to_vec())]);
    }
    Ok(lost.into_iter().map(|name| Item::Whiteout([PREFIX, name.as_bytes()].concat())).collect())
}

/// A name in a directory as an archive has it; an error where no archive of ours can be read back.
fn join(path: &[u8], name: &[u8]) -> Result<Vec<u8>> {
    let joined = if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
    let limit = |what: &str, limit: usize| {
        Err(StoreError::Limit {
            what: format!("{what} {} in a layer", shown(&joined)),
            limit: limit as u64,
            unit: "bytes",
        })
    };
    match () {
        () if joined.len() >= limits::PATH => limit("the path", limits::PATH),
        () if name.len() > limits::COMPONENT => limit("the name", limits::COMPONENT),
        () => Ok(joined),
    }
}
