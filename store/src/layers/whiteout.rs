//! What is gone: overlay's marks on disk, the image specification's names in archives, and the view they give.
//!
//! In a directory of overlay's, a removed name is a character device 0/0 and a directory that hides what is below it
//! has an `opaque` attribute. In a layer archive a removed name is a file `.wh.<name>`, and `.wh..wh..opq` hides a
//! directory's whole content. [`Below`] reads directories with the former marks the way the kernel would show them,
//! without mounting anything: mounts are the runtime's.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;

use crate::root::{Dir, Kind, Metadata, Root, Walk, node};

/// Before the name of what is gone, in archives.
pub(crate) const PREFIX: &[u8] = b".wh.";
/// Marks a directory whose content below is gone, in archives.
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";

const OPAQUE_ATTRIBUTES: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];

/// What a name in an archive says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Name<'a> {
    Plain,
    /// This name is gone below.
    Gone(&'a [u8]),
    Opaque,
    /// What aufs kept for itself; it means nothing to others.
    Aufs,
    Invalid,
}

impl Name<'_> {
    pub(crate) fn of(name: &[u8]) -> Name<'_> {
        match name.strip_prefix(PREFIX) {
            None => Name::Plain,
            Some(_) if name == OPAQUE => Name::Opaque,
            Some(b"" | b"." | b"..") => Name::Invalid,
            Some(rest) if rest.starts_with(PREFIX) => Name::Aufs,
            Some(rest) => Name::Gone(rest),
        }
    }
}

/// Whether a directory hides what is below it.
pub(crate) fn is_opaque(dir: &Dir) -> io::Result<bool> {
    for attribute in OPAQUE_ATTRIBUTES {
        if node::xattr(dir.as_fd(), OsStr::new(attribute))?.as_deref() == Some(b"y") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Makes a directory hide what is below it: with the attribute only root may set where possible.
pub(crate) fn set_opaque(dir: &Dir) -> io::Result<()> {
    match node::set_xattr(dir.as_fd(), OsStr::new(OPAQUE_ATTRIBUTES[0]), b"y") {
        Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {
            node::set_xattr(dir.as_fd(), OsStr::new(OPAQUE_ATTRIBUTES[1]), b"y")
        }
        done => done,
    }
}

/// Makes overlay's mark that `name` is gone.
pub(crate) fn make_whiteout(dir: &Dir, name: &OsStr) -> io::Result<()> {
    dir.mknod(name, Kind::CharDevice, 0, 0)
}

/// Directories that lie over one another, uppermost first: those below a layer (all lower directories of an overlay, the one full
/// tree of the `vfs` driver, or none), or a layer's own where it is spread over several.
#[derive(Debug, Default)]
pub(crate) struct Lowers {
    roots: Vec<Root>,
}

impl Lowers {
    pub(crate) fn open<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> io::Result<Lowers> {
        Ok(Lowers { roots: paths.into_iter().map(|path| Root::open(path.as_ref())).collect::<io::Result<_>>()? })
    }

    /// Directories that are open, uppermost first.
    pub(crate) fn of(roots: Vec<Root>) -> Lowers {
        Lowers { roots }
    }

    pub(crate) fn len(&self) -> usize {
        self.roots.len()
    }

    /// What they show together in their top directory.
    pub(crate) fn top(&self) -> io::Result<Below> {
        let dirs = self.roots.iter().enumerate().map(|(at, root)| Ok((at, root.top().try_clone()?)));
        Ok(Below { dirs: dirs.collect::<io::Result<_>>()? })
    }

    /// The view of the directory `path` whose parts are known to lie in the roots `parts`.
    pub(crate) fn reopen(&self, path: &Path, parts: &[usize]) -> io::Result<Below> {
        let dirs = parts.iter().map(|at| Ok((*at, self.roots[*at].open_dir(path, Walk::NoLinks)?)));
        Ok(Below { dirs: dirs.collect::<io::Result<_>>()? })
    }

    /// The view of the directory `path`; empty when what they show there is none.
    pub(crate) fn at(&self, path: &Path) -> io::Result<Below> {
        let mut below = self.top()?;
        for component in path {
            below = below.descend(component)?;
        }
        Ok(below)
    }
}

/// One directory as the layers below show it: its parts, uppermost first, each with the number of its root.
#[derive(Debug, Default)]
pub(crate) struct Below {
    dirs: Vec<(usize, Dir)>,
}

impl Below {
    /// There is no such directory.
    pub(crate) fn is_empty(&self) -> bool {
        self.dirs.is_empty()
    }

    pub(crate) fn parts(&self) -> Vec<usize> {
        self.dirs.iter().map(|(at, _)| *at).collect()
    }

    /// Its parts, uppermost first.
    pub(crate) fn dirs(&self) -> impl Iterator<Item = &Dir> {
        self.dirs.iter().map(|(_, dir)| dir)
    }

    /// The part that lies in the root of this number.
    pub(crate) fn part(&self, root: usize) -> Option<&Dir> {
        self.dirs.iter().find(|(at, _)| *at == root).map(|(_, dir)| dir)
    }

    /// Whether one of its parts hides what is below them all.
    pub(crate) fn is_opaque(&self) -> io::Result<bool> {
        for dir in self.dirs() {
            if is_opaque(dir)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The directory that gives this one its metadata.
    pub(crate) fn uppermost(&self) -> Option<&Dir> {
        self.dirs.first().map(|(_, dir)| dir)
    }

    /// What has this name, and the directory that holds it.
    pub(crate) fn find(&self, name: &OsStr) -> io::Result<Option<(&Dir, Metadata)>> {
        Ok(self.find_in(name)?.map(|(_, dir, metadata)| (dir, metadata)))
    }

    /// What has this name, and the number of the root that holds it.
    pub(crate) fn find_part(&self, name: &OsStr) -> io::Result<Option<(usize, Metadata)>> {
        Ok(self.find_in(name)?.map(|(at, _, metadata)| (at, metadata)))
    }

    fn find_in(&self, name: &OsStr) -> io::Result<Option<(usize, &Dir, Metadata)>> {
        for (at, dir) in &self.dirs {
            match dir.stat(name) {
                Ok(metadata) if metadata.is_whiteout() || metadata.kind == Kind::Socket => return Ok(None),
                Ok(metadata) => return Ok(Some((*at, dir, metadata))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The directory of this name.
    pub(crate) fn descend(&self, name: &OsStr) -> io::Result<Below> {
        let mut dirs = Vec::new();
        for (at, dir) in &self.dirs {
            match dir.open_dir(name) {
                Ok(found) => {
                    // What the marks hide need not be looked at; a last part has nothing to hide.
                    let opaque = *at != self.dirs[self.dirs.len() - 1].0 && is_opaque(&found)?;
                    dirs.push((*at, found));
                    if opaque {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => break,
                Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(Below { dirs })
    }

    /// All names it shows.
    pub(crate) fn names(&self) -> io::Result<BTreeSet<OsString>> {
        let mut names = BTreeSet::new();
        let mut gone = BTreeSet::new();
        for (_, dir) in &self.dirs {
            let mut gone_here = Vec::new();
            for entry in dir.entries()? {
                let entry = entry?;
                if names.contains(&entry.name) || gone.contains(&entry.name) {
                    continue;
                }
                let hides = match entry.kind {
                    Some(Kind::Socket) => true,
                    Some(Kind::CharDevice) | None => {
                        let metadata = dir.stat(&entry.name)?;
                        metadata.is_whiteout() || metadata.kind == Kind::Socket
                    }
                    Some(_) => false,
                };
                if hides {
                    gone_here.push(entry.name);
                } else {
                    names.insert(entry.name);
                }
            }
            gone.extend(gone_here);
        }
        Ok(names)
    }
}

/// A path of components as the archive has it.
pub(crate) fn as_path(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_archives() {
        for (name, want) in [
            ("file", Name::Plain),
            (".whale", Name::Plain),
            (".wh.file", Name::Gone(b"file")),
            (".wh..hidden", Name::Gone(b".hidden")),
            (".wh..wh..opq", Name::Opaque),
            (".wh..wh.plnk", Name::Aufs),
            (".wh.", Name::Invalid),
            (".wh..", Name::Invalid),
            (".wh...", Name::Invalid),
        ] {
            assert_eq!(Name::of(name.as_bytes()), want, "{name}");
        }
    }

    #[test]
    fn the_view_is_the_kernels() {
        let temp = tempfile::tempdir().unwrap();
        let (upper, lower) = (temp.path().join("u"), temp.path().join("l"));
        for dir in ["u/d", "u/o", "u/now-dir", "l/d", "l/o", "l/now-file", "l/gone"] {
            std::fs::create_dir_all(temp.path().join(dir)).unwrap();
        }
        for file in ["u/d/a", "u/o/new", "u/now-file", "l/d/a", "l/d/b", "l/d/c", "l/o/old", "l/now-dir", "l/gone/x"] {
            std::fs::write(temp.path().join(file), file).unwrap();
        }
        let root = Root::open(&upper).unwrap();
        make_whiteout(root.top(), OsStr::new("gone")).unwrap();
        make_whiteout(&root.top().open_dir(OsStr::new("d")).unwrap(), OsStr::new("c")).unwrap();
        set_opaque(&root.top().open_dir(OsStr::new("o")).unwrap()).unwrap();
        let lowers = Lowers::open([&upper, &lower]).unwrap();
        let names = |path: &str| {
            let below = lowers.at(Path::new(path)).unwrap();
            below.names().unwrap().into_iter().map(|name| name.into_string().unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(""), "d now-dir now-file o");
        assert_eq!(names("d"), "a b");
        assert_eq!(names("o"), "new");
        assert_eq!(names("now-file"), "");
        assert_eq!(names("now-dir"), "");
        assert_eq!(names("gone"), "");
        let top = lowers.top().unwrap();
        assert!(top.find(OsStr::new("gone")).unwrap().is_none());
        assert_eq!(top.find(OsStr::new("now-file")).unwrap().unwrap().1.kind, Kind::File);
    }
}
