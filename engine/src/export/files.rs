//! The files of a result in a directory of the caller's.
//!
//! Every path is walked beneath the destination without following links, for the destination may hold what an earlier,
//! hostile result left there: such a link is replaced. Files belong to the caller; set-user-id bits and devices are an
//! image's business and are left out. Each file takes its name when it is whole.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rbuild_executor::files::meta::{Kind, Meta};
use rbuild_executor::files::walk::{Directory, Entry, Tree, join, walk};
use rbuild_store::root::{self, Dir, Root, Timestamp, Walk};
use rustix::fd::OwnedFd;

use super::timestamps::Times;
use crate::error::Error;
use crate::output::FilesMode;

/// What was written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Exported {
    pub(crate) bytes: u64,
    /// Files and directories that the result does not have.
    pub(crate) removed: u64,
    /// Devices, sockets and pipes, which are not exported.
    pub(crate) left_out: u64,
}

/// Copies the tree at `source` into the directory `dest`, which is made if it is not there.
///
/// # Errors
/// A file where a directory should go or the other way round; what the file system says.
pub(crate) fn export(source: OwnedFd, dest: &Path, epoch: Option<i64>, mode: FilesMode) -> Result<Exported, Error> {
    let shown = |error: io::Error| Error::invalid(format!("cannot write to {}: {error}", dest.display()));
    if dest.exists() && !dest.is_dir() {
        return Err(Error::invalid(format!("destination directory {} is a file", dest.display())));
    }
    std::fs::create_dir_all(dest).map_err(shown)?;
    let tree = walk(source.as_fd(), b"", &[]).map_err(|error| Error::internal(error.to_string()))?;
    let mut copier = Copier {
        from: Root::from_fd(source).map_err(Error::internal)?,
        to: Root::open(dest).map_err(shown)?,
        aside: OsString::from(format!(".rbuild-{}.part", std::process::id())),
        times: epoch.map(Times::All),
        mode,
        below: match mode {
            FilesMode::Copy => HashMap::new(),
            FilesMode::Delete => directories_below(&tree),
        },
        first_names: HashMap::new(),
        exported: Exported::default(),
    };
    copier.tree(&tree)?;
    Ok(copier.exported)
}

struct Copier {
    from: Root,
    to: Root,
    /// The name of a file that is not whole yet.
    aside: OsString,
    times: Option<Times>,
    mode: FilesMode,
    /// The names of the directories in each directory, if files are to be removed.
    below: HashMap<Vec<u8>, Vec<Vec<u8>>>,
    /// Where the first name of a file with several went: its directory and name.
    first_names: HashMap<(u64, u64), (PathBuf, OsString)>,
    exported: Exported,
}

impl Copier {
    fn tree(&mut self, tree: &Tree) -> Result<(), Error> {
        for dir in &tree.dirs {
            self.directory(dir)?;
        }
        // Deepest first, when nothing changes any more.
        for dir in tree.dirs.iter().rev().filter(|dir| !dir.path.is_empty()) {
            let (to, name) = self.to.parent(path_of(&dir.path), Walk::NoLinks).map_err(|e| failed(&dir.path, &e))?;
            let time = self.time(&dir.meta);
            to.set_mode(&name, dir.meta.mode & 0o1777).map_err(|e| failed(&dir.path, &e))?;
            to.set_times(&name, time, time).map_err(|e| failed(&dir.path, &e))?;
        }
        Ok(())
    }

    fn directory(&mut self, dir: &Directory) -> Result<(), Error> {
        let fail = |error: io::Error| failed(&dir.path, &error);
        let path = path_of(&dir.path);
        let to = if dir.path.is_empty() {
            self.to.top().try_clone().map_err(fail)?
        } else {
            let (parent, name) = self.to.parent(path, Walk::NoLinks).map_err(fail)?;
            match stat(&parent, &name).map_err(fail)? {
                Some(root::Kind::Dir) => {}
                Some(root::Kind::Symlink) => {
                    parent.unlink(&name).map_err(fail)?;
                    parent.mkdir(&name, 0o700).map_err(fail)?;
                }
                Some(_) => return Err(Error::invalid(format!("cannot copy to non-directory: {}", shown(&dir.path)))),
                None => drop(parent.mkdir(&name, 0o700).map_err(fail)?),
            }
            parent.open_dir(&name).map_err(fail)?
        };
        if self.mode == FilesMode::Delete {
            let below = self.below.get(&dir.path).map(Vec::as_slice).unwrap_or_default();
            self.exported.removed += clear(&to, dir, below).map_err(fail)?;
        }
        if dir.entries.is_empty() {
            return Ok(());
        }
        let from = match dir.path.is_empty() {
            true => self.from.top().try_clone().map_err(fail)?,
            false => self.from.open_dir(path, Walk::NoLinks).map_err(fail)?,
        };
        for entry in &dir.entries {
            self.entry(&from, &to, entry, &dir.path)?;
        }
        Ok(())
    }

    fn entry(&mut self, from: &Dir, to: &Dir, entry: &Entry, dir: &[u8]) -> Result<(), Error> {
        let name = OsStr::from_bytes(entry.name.to_bytes());
        let path = join(dir, entry.name.to_bytes());
        let fail = |error: io::Error| failed(&path, &error);
        let aside = self.aside.clone();
        to.remove_all(&aside).map_err(fail)?;
        match entry.meta.kind {
            Kind::File => self.file(from, to, entry, dir).map_err(fail)?,
            Kind::Symlink => {
                let target = from.read_link(name).map_err(fail)?;
                to.symlink(target.as_os_str(), &aside).map_err(fail)?;
                let time = self.time(&entry.meta);
                to.set_times(&aside, time, time).map_err(fail)?;
            }
            _ => {
                self.exported.left_out += 1;
                return Ok(());
            }
        }
        if stat(to, name).map_err(fail)? == Some(root::Kind::Dir) {
            to.remove_all(&aside).map_err(fail)?;
            return Err(Error::invalid(format!("cannot replace to directory {} with file", shown(&path))));
        }
        to.rename(&aside, to, name).map_err(fail)
    }

    /// A regular file under the name aside.
    fn file(&mut self, from: &Dir, to: &Dir, entry: &Entry, dir: &[u8]) -> io::Result<()> {
        let (meta, name) = (&entry.meta, OsStr::from_bytes(entry.name.to_bytes()));
        let inode = (meta.dev, meta.ino);
        if let Some((first_dir, first)) = self.first_names.get(&inode) {
            let first_dir = match first_dir.as_os_str().is_empty() {
                true => self.to.top().try_clone()?,
                false => self.to.open_dir(first_dir, Walk::NoLinks)?,
            };
            return first_dir.link(first, to, &self.aside);
        }
        if meta.nlink > 1 {
            self.first_names.insert(inode, (path_of(dir).to_owned(), name.to_owned()));
        }
        let mut source = from.open_file(name)?;
        let mut file = to.create_file(&self.aside, 0o600)?;
        self.exported.bytes += io::copy(&mut source, &mut file)?;
        drop(file);
        let time = self.time(meta);
        to.set_mode(&self.aside, meta.mode & 0o1777)?;
        to.set_times(&self.aside, time, time)
    }

    fn time(&self, meta: &Meta) -> Timestamp {
        let own = Timestamp::new(meta.mtime.0, meta.mtime.1);
        self.times.map_or(own, |times| times.of(own))
    }
}

fn directories_below(tree: &Tree) -> HashMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut below: HashMap<Vec<u8>, Vec<Vec<u8>>> = HashMap::new();
    for dir in tree.dirs.iter().filter(|dir| !dir.path.is_empty()) {
        let cut = dir.path.iter().rposition(|byte| *byte == b'/');
        let (parent, name) = match cut {
            Some(at) => (&dir.path[..at], &dir.path[at + 1..]),
            None => (&[][..], dir.path.as_slice()),
        };
        below.entry(parent.to_vec()).or_default().push(name.to_vec());
    }
    below
}

/// Removes from `to` what neither `dir` nor `below` (its directories) has, and what is of another kind there.
fn clear(to: &Dir, dir: &Directory, below: &[Vec<u8>]) -> io::Result<u64> {
    let mut removed = 0;
    for found in to.entries()?.collect::<io::Result<Vec<_>>>()? {
        let name = found.name.as_bytes();
        let stays = match to.stat(&found.name)?.kind {
            root::Kind::Dir => below.iter().any(|wanted| wanted == name),
            _ => dir.entries.iter().any(|entry| entry.name.to_bytes() == name),
        };
        if !stays {
            to.remove_all(&found.name)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// A file at the top of `dest`, replacing what is in its place.
///
/// # Errors
/// A directory is in its place; what the file system says.
pub(crate) fn put(dest: &Path, name: &str, content: &[u8], epoch: Option<i64>) -> Result<(), Error> {
    let fail = |error: io::Error| failed(name.as_bytes(), &error);
    let to = Root::open(dest).map_err(fail)?;
    let (dir, last) = to.parent(Path::new(name), Walk::NoLinks).map_err(fail)?;
    let aside = OsString::from(format!(".rbuild-{}.part", std::process::id()));
    dir.remove_all(&aside).map_err(fail)?;
    dir.create_file(&aside, 0o600).and_then(|mut file| file.write_all(content)).map_err(fail)?;
    dir.set_mode(&aside, 0o644).map_err(fail)?;
    if let Some(epoch) = epoch {
        let time = Timestamp::new(epoch, 0);
        dir.set_times(&aside, time, time).map_err(fail)?;
    }
    dir.rename(&aside, &dir, &last).map_err(fail)
}

fn path_of(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

fn stat(dir: &Dir, name: &OsStr) -> io::Result<Option<root::Kind>> {
    match dir.stat(name) {
        Ok(found) => Ok(Some(found.kind)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    format!("/{}", text.replace(|c: char| c.is_control(), "\u{fffd}"))
}

fn failed(path: &[u8], error: &io::Error) -> Error {
    Error::invalid(format!("cannot write {} of the result: {error}", shown(path)))
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
