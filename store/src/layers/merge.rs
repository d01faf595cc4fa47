//! Lays an unpacked layer over a full tree, for the drivers `vfs` and `btrfs`.
//!
//! The layer was unpacked on its own first, as with overlay, with whiteouts as files of their names. So both drivers
//! read an archive alike, and nothing in it is resolved within what lower layers hold. Files are moved, not copied; to another
//! subvolume of btrfs, where nothing can be moved to, they are copied and share their blocks.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;

use super::apply::describe_dir;
use super::diff::{entry_of, xattrs};
use super::read::shown;
use super::tar::{Entry, EntryKind};
use super::whiteout::{Name, as_path};
use crate::error::{Context, Result};
use crate::root::{Kind, Root, Walk};
use crate::snapshots::EntryCopy;

/// Moves everything in `layer` over `tree`.
pub(crate) fn merge(layer: &Root, tree: &Root) -> Result<()> {
    let mut copies = EntryCopy::new(tree.top()).context(|| "merging a layer".to_owned())?;
    let mut waiting = vec![Step::Enter(Vec::new())];
    while let Some(step) = waiting.pop() {
        match step {
            Step::Enter(path) => {
                let (entry, dirs) =
                    merge_dir(layer, tree, &path, &mut copies).context(|| format!("merging {}", shown(&path)))?;
                waiting.push(Step::Describe(entry));
                waiting.extend(dirs.into_iter().map(|name| {
                    Step::Enter(if path.is_empty() {
                        name.into_encoded_bytes()
                    } else {
                        [&path, &b"/"[..], name.as_bytes()].concat()
                    })
                }));
            }
            Step::Describe(entry) => {
                let dir = tree.open_dir(as_path(&entry.path), Walk::NoLinks);
                dir.and_then(|dir| describe_dir(&dir, &entry)).context(|| format!("merging {}", shown(&entry.path)))?;
            }
        }
    }
    Ok(())
}

enum Step {
    Enter(Vec<u8>),
    /// After what the directory holds, which changes its time.
    Describe(Entry),
}

/// Merges what one directory holds; returns what it is to look like, and the directories in it, made where they lacked.
fn merge_dir(layer: &Root, tree: &Root, path: &[u8], copies: &mut EntryCopy) -> io::Result<(Entry, Vec<OsString>)> {
    let from = layer.open_dir(as_path(path), Walk::NoLinks)?;
    // Now: moving things out changes its time.
    let looks = entry_of(path.to_vec(), &from.metadata()?, EntryKind::Directory, xattrs(&from)?);
    let to = tree.open_dir(as_path(path), Walk::NoLinks)?;
    let mut entries: Vec<(OsString, Kind)> = Vec::new();
    for entry in from.entries()? {
        let entry = entry?;
        let kind = match entry.kind {
            Some(kind) => kind,
            None => from.stat(&entry.name)?.kind,
        };
        entries.push((entry.name, kind));
    }
    // Whiteouts are about what was there before, so they come first.
    for (name, _) in &entries {
        match Name::of(name.as_bytes()) {
            Name::Opaque => {
                for gone in to.entries()? {
                    to.remove_all(&gone?.name)?;
                }
            }
            Name::Gone(gone) => to.remove_all(OsStr::from_bytes(gone)).map(drop)?,
            _ => {}
        }
    }
    let mut dirs = Vec::new();
    for (name, kind) in entries {
        if Name::of(name.as_bytes()) != Name::Plain {
            continue;
        }
        let there = match to.stat(&name) {
            Ok(metadata) => Some(metadata.kind),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if kind == Kind::Dir {
            if there != Some(Kind::Dir) {
                to.remove_all(&name)?;
                to.mkdir(&name, 0o700)?;
            }
            dirs.push(name);
        } else {
            if there == Some(Kind::Dir) {
                to.remove_all(&name)?;
            }
            match from.rename(&name, &to, &name) {
                Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                    if there.is_some() {
                        to.remove_all(&name)?;
                    }
                    copies.copy(&from, &to, as_path(path), &name, &from.stat(&name)?)?;
                }
                moved => moved?,
            }
        }
    }
    Ok((looks, dirs))
}
