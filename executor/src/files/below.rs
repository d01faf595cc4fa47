//! What lies below a tree in the making.
//!
//! Either a mount shows it, or its directories are looked through one after the other, with the marks that overlay keeps
//! in them read as the kernel reads them. A mount is right for many looks: each costs one call, however high the stack.
//! It is wrong for a few: letting go of it makes the kernel wait for all processors, and a build of a thousand small steps
//! spent most of its time in that.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::meta::Meta;
use super::walk::{join, open_beneath, open_dir_beneath, split_parent};
use super::writer::{Found, look_in};
use crate::ExecutorError;

/// A read-only view of the merged tree. Nothing in it changes while it is looked at.
#[derive(Debug)]
pub struct Below(Kind);

#[derive(Debug)]
enum Kind {
    Shown(OwnedFd),
    Stacked(Stack),
}

impl From<OwnedFd> for Below {
    /// What the directory `root` shows.
    fn from(root: OwnedFd) -> Below {
        Below(Kind::Shown(root))
    }
}

impl Below {
    /// What directories of overlay's show together, the uppermost first.
    ///
    /// # Errors
    /// One of them cannot be opened, or there is none.
    pub fn stacked(layers: &[PathBuf]) -> Result<Below, ExecutorError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |path: &PathBuf| {
            rustix::fs::open(path, flags, rustix::fs::Mode::empty())
                .map_err(|errno| ExecutorError::Start(format!("cannot open layer {path:?}: {errno}")))
        };
        let roots = layers.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        if roots.is_empty() {
            return Err(ExecutorError::Invalid("a tree of no layers".into()));
        }
        Ok(Below(Kind::Stacked(Stack { roots, parts: Mutex::default(), looked: Mutex::default() })))
    }

    /// What `path` is; `None` when there is nothing. Its parents hold no links.
    pub(super) fn look(&self, path: &[u8]) -> rustix::io::Result<Option<Found>> {
        match &self.0 {
            Kind::Shown(root) => look_in(root, path),
            Kind::Stacked(stack) => stack.look(path),
        }
    }

    /// Opens a directory: of one in several layers the uppermost part, which says how it looks.
    pub(super) fn open_dir(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        match &self.0 {
            Kind::Shown(root) => open_dir_beneath(root.as_fd(), path),
            Kind::Stacked(stack) => {
                let parts = stack.parts(path)?;
                open_dir_beneath(stack.roots[*parts.first().ok_or(Errno::NOENT)?].as_fd(), path)
            }
        }
    }

    /// Opens what is no directory.
    pub(super) fn open(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        match &self.0 {
            Kind::Shown(root) => open_beneath(root.as_fd(), path, flags),
            Kind::Stacked(stack) => {
                let (root, _) = stack.find(path)?.ok_or(Errno::NOENT)?;
                open_beneath(stack.roots[root].as_fd(), path, flags)
            }
        }
    }
}

/// Which layers have a directory, uppermost first.
type Parts = Arc<[usize]>;

/// Layers, and what is known of them: the same few paths are looked at several times.
#[derive(Debug)]
struct Stack {
    roots: Vec<OwnedFd>,
    parts: Mutex<HashMap<Vec<u8>, Parts>>,
    looked: Mutex<HashMap<Vec<u8>, Option<Found>>>,
}

impl Stack {
    fn look(&self, path: &[u8]) -> rustix::io::Result<Option<Found>> {
        if let Some(found) = self.looked.lock().unwrap_or_else(PoisonError::into_inner).get(path) {
            return Ok(found.clone());
        }
        let found = self.find(path)?.map(|(_, found)| found);
        self.looked.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_vec(), found.clone());
        Ok(found)
    }

    /// What `path` is, and in which layer.
    fn find(&self, path: &[u8]) -> rustix::io::Result<Option<(usize, Found)>> {
        let (parent, name) = split_parent(path);
        if name.is_empty() {
            return Ok(Some((0, Found::Directory(Meta::of_fd(&self.roots[0])?))));
        }
        for at in self.parts(parent)?.iter() {
            // Most have nothing of this name, which one call says.
            match open_beneath(self.roots[*at].as_fd(), path, OFlags::PATH) {
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
                Ok(_) => {}
            }
            match look_in(&self.roots[*at], path)? {
                None => {}
                Some(Found::Absent) => return Ok(None),
                Some(found) => return Ok(Some((*at, found))),
            }
        }
        Ok(None)
    }

    /// The layers that show something of the directory `path`; none when it is no directory.
    fn parts(&self, path: &[u8]) -> rustix::io::Result<Parts> {
        let (parent, name) = split_parent(path);
        if name.is_empty() {
            return Ok((0..self.roots.len()).collect());
        }
        if let Some(parts) = self.parts.lock().unwrap_or_else(PoisonError::into_inner).get(path) {
            return Ok(parts.clone());
        }
        let above = self.parts(parent)?;
        let mut parts = Vec::new();
        for (n, at) in above.iter().enumerate() {
            match open_dir_beneath(self.roots[*at].as_fd(), path) {
                Ok(dir) => {
                    parts.push(*at);
                    if n + 1 < above.len() && is_opaque(&dir)? {
                        break;
                    }
                }
                Err(Errno::NOENT) => {}
                // A file or a mark that hides what is further down.
                Err(Errno::NOTDIR | Errno::LOOP) => break,
                Err(errno) => return Err(errno),
            }
        }
        let parts: Parts = parts.into();
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).insert(join(parent, name), parts.clone());
        Ok(parts)
    }
}

/// Whether a directory hides what is below it.
fn is_opaque(dir: &OwnedFd) -> rustix::io::Result<bool> {
    let mut value = [0u8; 8];
    for mark in [c"trusted.overlay.opaque", c"user.overlay.opaque"] {
        match rustix::fs::fgetxattr(dir, mark, &mut value[..]) {
            Ok(1) if value[0] == b'y' => return Ok(true),
            Ok(_) | Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(false)
}
