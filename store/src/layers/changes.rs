//! What a layer does to files, without making its tar: for advice about layers that could be smaller.
//!
//! The same walk as for the tar. Only files count, for only they have bytes.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;

use super::diff::{open_file, same_content, same_metadata};
use super::read::shown;
use super::walk::{Node, Tree, Visit, Walker};
use super::whiteout::{Below, Lowers, Name, as_path};
use crate::error::{Context, Result};
use crate::root::Kind;

const BUFFER: usize = 64 << 10;

/// A file in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// It is new, or its content is.
    Written { path: &'a [u8], bytes: u64 },
    /// A layer below has the same content at this path; only owner, mode, times or attributes differ.
    Repeated { path: &'a [u8], bytes: u64 },
    /// A name that is gone, and what the layers from the one asked for upwards still hold of it.
    Removed { path: &'a [u8], files: u64, bytes: u64 },
}

/// Tells all changes. What is removed counts in the `own` uppermost directories below the tree's.
pub(crate) fn visit(tree: &Tree, own: usize, tell: &mut dyn FnMut(Change<'_>)) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut links = HashSet::new();
    let mut walker = Walker::new(tree)?;
    while let Some(visit) = walker.next()? {
        match visit {
            Visit::Enter(_) | Visit::Leave => {}
            Visit::Whiteout(path) => {
                let what = || format!("reading what lies below {} of a snapshot", shown(&path));
                let gone = Gone::behind(&path, &tree.lowers, own).context(what)?;
                if gone.files > 0 {
                    tell(Change::Removed { path: &gone.path, files: gone.files, bytes: gone.bytes });
                }
            }
            Visit::Node(node) => {
                let metadata = &node.metadata;
                let is_first = metadata.links < 2 || links.insert((metadata.device, metadata.inode));
                if metadata.kind == Kind::File && metadata.size > 0 && is_first {
                    file(&mut walker, &node, &mut buffer, tell)?;
                }
            }
        }
    }
    Ok(())
}

/// Bytes of all that is no directory, each counted once.
pub(crate) fn content_bytes(tree: &Tree) -> Result<u64> {
    let mut bytes = 0;
    let mut links = HashSet::new();
    let mut walker = Walker::new(tree)?;
    while let Some(visit) = walker.next()? {
        let Visit::Node(node) = visit else { continue };
        let metadata = &node.metadata;
        if metadata.links < 2 || links.insert((metadata.device, metadata.inode)) {
            bytes += metadata.size;
        }
    }
    Ok(bytes)
}

fn file(walker: &mut Walker<'_>, node: &Node, buffer: &mut [u8], tell: &mut dyn FnMut(Change<'_>)) -> Result<()> {
    let what = || format!("reading {} of a snapshot", shown(&node.path));
    let (own, below) = walker.here()?;
    let dir = node.dir(own).context(what)?;
    let (path, bytes) = (node.path.as_slice(), node.metadata.size);
    let Some((before_dir, before)) = below.find(node.name()).context(what)? else {
        tell(Change::Written { path, bytes });
        return Ok(());
    };
    if same_metadata(&node.metadata, &before) {
        // As good as untouched; whether it really is only the tar's writer has to know.
        return Ok(());
    }
    let mut same = || -> io::Result<bool> {
        let mut now = open_file(dir, node.name(), &node.metadata)?;
        let mut was = open_file(before_dir, node.name(), &before)?;
        same_content(&mut now, &mut was, buffer)
    };
    if before.kind == Kind::File && before.size == bytes && same().context(what)? {
        tell(Change::Repeated { path, bytes });
    } else {
        tell(Change::Written { path, bytes });
    }
    Ok(())
}

/// What a whiteout hides.
#[derive(Default)]
struct Gone {
    /// What is gone, or the directory that was emptied.
    path: Vec<u8>,
    files: u64,
    bytes: u64,
}

impl Gone {
    /// Each directory is opened anew from the top, so that a tree of any depth takes few descriptors.
    fn behind(whiteout: &[u8], lowers: &Lowers, own: usize) -> io::Result<Gone> {
        let (parent, name) = match whiteout.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&whiteout[..slash], &whiteout[slash + 1..]),
            None => (&[][..], whiteout),
        };
        let mut gone = Gone::default();
        let mut directories = Vec::new();
        match Name::of(name) {
            Name::Gone(name) => {
                gone.path = joined(parent, name);
                let below = lowers.at(as_path(parent))?;
                gone.add(OsStr::from_bytes(name), parent, &below, own, &mut directories)?;
            }
            Name::Opaque => {
                gone.path = parent.to_vec();
                directories.push(parent.to_vec());
            }
            Name::Plain | Name::Aufs | Name::Invalid => {}
        }
        while let Some(directory) = directories.pop() {
            let below = lowers.at(as_path(&directory))?;
            // Of a directory that only the layers further down have, nothing counts.
            if below.parts().iter().any(|at| *at < own) {
                for name in below.names()? {
                    gone.add(&name, &directory, &below, own, &mut directories)?;
                }
            }
        }
        Ok(gone)
    }

    fn add(
        &mut self,
        name: &OsStr,
        parent: &[u8],
        below: &Below,
        own: usize,
        directories: &mut Vec<Vec<u8>>,
    ) -> io::Result<()> {
        match below.find_part(name)? {
            Some((at, metadata)) if metadata.kind == Kind::File && at < own => {
                self.files += 1;
                self.bytes += metadata.size;
            }
            Some((_, metadata)) if metadata.kind == Kind::Dir => {
                directories.push(joined(parent, name.as_bytes()));
            }
            _ => {}
        }
        Ok(())
    }
}

fn joined(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}
