//! Removing a tree.
//!
//! Recursion would end in the stack or in the descriptor limit for a tree that somebody made deep on purpose. Here the
//! walk keeps a bounded number of directories open; what lies deeper is first renamed up to the top of the tree.

use std::ffi::{OsStr, OsString};
use std::io;

use rustix::io::Errno;

use super::dir::Dir;
use super::node::{self, Kind, Metadata};

/// Directories open at once.
const DEPTH: usize = 16;
/// How often a directory that somebody keeps filling is emptied again.
const PASSES: usize = 8;

/// Removes a directory as a whole where its file system can; returns the bytes freed, or `None` when it did not.
pub(crate) type Quick<'a> = &'a dyn Fn(&Dir, &OsStr) -> Option<u64>;

/// The inode of the root of a subvolume of btrfs: what may be removed as a whole.
const SUBVOLUME: u64 = 256;

pub(super) fn remove_all(parent: &Dir, name: &OsStr, quick: Option<Quick<'_>>) -> io::Result<u64> {
    let metadata = match parent.stat(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        metadata => metadata?,
    };
    if metadata.kind != Kind::Dir {
        parent.unlink(name)?;
        return Ok(if metadata.links == 1 { metadata.disk } else { 0 });
    }
    if let Some(freed) = at_once(parent, name, &metadata, quick) {
        return Ok(freed);
    }
    let mut freed = 0;
    for pass in 0.. {
        freed += empty(parent, name, quick)?;
        match parent.rmdir(name) {
            Err(error) if pass < PASSES && is(&error, Errno::NOTEMPTY) => {}
            done => {
                done?;
                break;
            }
        }
    }
    Ok(freed + metadata.disk)
}

/// A directory on the way down.
struct Level {
    dir: Dir,
    name: OsString,
    /// Directories in it that are still to be emptied.
    rest: Vec<OsString>,
}

/// Removes everything in the directory `name`.
fn empty(parent: &Dir, name: &OsStr, quick: Option<Quick<'_>>) -> io::Result<u64> {
    let mut freed = 0;
    let mut renamed = 0u64;
    let mut levels = vec![enter(parent, name, &mut freed, quick)?];
    while let Some(level) = levels.last_mut() {
        let Some(child) = level.rest.pop() else {
            let done = levels.pop().expect("the loop looked at it");
            if let Some(above) = levels.last() {
                freed += done.dir.metadata()?.disk;
                match above.dir.rmdir(&done.name) {
                    // Filled again meanwhile: the pass over the whole tree that follows sees it.
                    Err(error) if is(&error, Errno::NOTEMPTY) || is(&error, Errno::NOENT) => {}
                    removed => removed?,
                }
            }
            continue;
        };
        if levels.len() < DEPTH {
            let level = levels.last().expect("the loop looked at it");
            let next = enter(&level.dir, &child, &mut freed, quick)?;
            levels.push(next);
            continue;
        }
        let aside = loop {
            renamed += 1;
            let aside = OsString::from(format!(".removed-{renamed}"));
            let level = levels.last().expect("the loop looked at it");
            match level.dir.rename_new(&child, &levels[0].dir, &aside) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                done => {
                    done?;
                    break aside;
                }
            }
        };
        levels[0].rest.push(aside);
    }
    Ok(freed)
}

/// Opens a directory and removes all in it but directories that are not empty, which it notes.
fn enter(parent: &Dir, name: &OsStr, freed: &mut u64, quick: Option<Quick<'_>>) -> io::Result<Level> {
    let dir = match parent.open_dir(name) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            node::set_mode(std::os::fd::AsFd::as_fd(&parent.open_path(name)?), 0o700)?;
            parent.open_dir(name)?
        }
        dir => dir?,
    };
    let mut rest = Vec::new();
    let mut made_writable = false;
    for entry in dir.entries()? {
        let entry = entry?;
        loop {
            match remove_one(&dir, &entry.name, freed, quick) {
                Err(error) if is(&error, Errno::NOTEMPTY) || is(&error, Errno::EXIST) => rest.push(entry.name),
                Err(error) if is(&error, Errno::NOENT) => {}
                Err(error) if is(&error, Errno::ACCESS) && !made_writable => {
                    made_writable = true;
                    node::set_mode(std::os::fd::AsFd::as_fd(&dir), 0o700)?;
                    continue;
                }
                done => done?,
            }
            break;
        }
    }
    Ok(Level { dir, name: name.to_owned(), rest })
}

fn remove_one(dir: &Dir, name: &OsStr, freed: &mut u64, quick: Option<Quick<'_>>) -> io::Result<()> {
    let metadata = dir.stat(name)?;
    if let Some(bytes) = at_once(dir, name, &metadata, quick) {
        *freed += bytes;
    } else if metadata.kind == Kind::Dir {
        dir.rmdir(name)?;
        *freed += metadata.disk;
    } else {
        dir.unlink(name)?;
        if metadata.links == 1 {
            *freed += metadata.disk;
        }
    }
    Ok(())
}

fn at_once(dir: &Dir, name: &OsStr, metadata: &Metadata, quick: Option<Quick<'_>>) -> Option<u64> {
    let may_be = metadata.kind == Kind::Dir && metadata.inode == SUBVOLUME;
    quick.filter(|_| may_be).and_then(|quick| quick(dir, name))
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}
