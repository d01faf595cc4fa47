//! Finding the place of a mount: resolving a path of the image step by step, by descriptors, as far as it exists.
//!
//! `openat2` resolves what exists but says of what does not only that it is missing. A stub needs to know where the links
//! led and which part is missing, so this walks itself: one component at a time, never following a link in the kernel.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, mkdirat, openat};
use rustix::io::Errno;

use super::mounts;
use crate::error::{Doing, Failure};

/// Links followed before it must be a loop; the kernel's own number.
const MOST_LINKS: usize = 40;

/// A path of the image, links resolved.
#[derive(Debug)]
pub(super) struct Place {
    /// Names from the root to the deepest thing that exists, and its descriptors; the root itself is the first.
    steps: Vec<(OsString, OwnedFd)>,
    /// What is missing below it; empty when all is there.
    pub(super) missing: Vec<OsString>,
}

/// What to make where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
}

impl Place {
    /// Resolves `path` within `root`. Links and `..` cannot lead out.
    pub(super) fn resolve(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<Place> {
        let mut todo: VecDeque<OsString> = names(path.as_os_str());
        let root = mounts::walk(root, Path::new("."), ResolveFlags::empty())?;
        let mut steps = vec![(OsString::new(), root)];
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == ".." {
                if steps.len() > 1 {
                    steps.pop();
                }
                continue;
            }
            let here = steps.last().map(|(_, fd)| fd.as_fd()).ok_or(Errno::NOENT)?;
            let found = match openat(here, &name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
                Err(Errno::NOENT) => {
                    let missing = below(std::iter::once(name).chain(todo))?;
                    return Ok(Place { steps, missing });
                }
                found => found?,
            };
            if mounts::kind(&found)? != FileType::Symlink {
                steps.push((name, found));
                continue;
            }
            links += 1;
            if links > MOST_LINKS {
                return Err(Errno::LOOP);
            }
            let target = OsString::from_vec(rustix::fs::readlinkat(&found, c"", Vec::new())?.into_bytes());
            if target.as_bytes().first() == Some(&b'/') {
                steps.truncate(1);
            }
            let mut rest = names(&target);
            rest.append(&mut todo);
            todo = rest;
        }
        Ok(Place { steps, missing: Vec::new() })
    }

    /// The deepest thing that exists.
    pub(super) fn deepest(&self) -> BorrowedFd<'_> {
        self.steps[self.steps.len() - 1].1.as_fd()
    }

    /// Each existing thing on the way with its name, the root left out.
    pub(super) fn steps(&self) -> &[(OsString, OwnedFd)] {
        &self.steps[1..]
    }

    /// The resolved path below the root.
    pub(super) fn path(&self) -> PathBuf {
        self.steps().iter().map(|(name, _)| name).chain(&self.missing).collect()
    }

    /// Makes what is missing: directories of mode 0755, the last as `kind`.
    pub(super) fn create(self, kind: Kind) -> rustix::io::Result<OwnedFd> {
        let mut here = self.deepest().try_clone_to_owned().map_err(|_| Errno::MFILE)?;
        let count = self.missing.len();
        for (n, name) in self.missing.iter().enumerate() {
            if n + 1 < count || kind == Kind::Directory {
                match mkdirat(&here, name, Mode::from_raw_mode(0o755)) {
                    Err(Errno::EXIST) => {}
                    made => made?,
                }
            } else {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
                openat(&here, name, flags, Mode::from_raw_mode(0o644))?;
            }
            here = openat(&here, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            if n + 1 < count && mounts::kind(&here)? != FileType::Directory {
                return Err(Errno::NOTDIR);
            }
        }
        Ok(here)
    }
}

/// Opens the target of a mount in the finished part of a root. It exists, or is made inside an earlier mount of ours.
pub(super) fn target(root: BorrowedFd<'_>, path: &Path, kind: Kind) -> Result<OwnedFd, Failure> {
    let action = || format!("open the mount point {}", path.display());
    match mounts::walk(root, path, ResolveFlags::empty()) {
        Err(Errno::NOENT) => {}
        found => return found.doing(action),
    }
    Place::resolve(root, path).and_then(|place| place.create(kind)).doing(action)
}

fn names(path: &OsStr) -> VecDeque<OsString> {
    let parts = path.as_bytes().split(|&byte| byte == b'/');
    parts.filter(|part| !part.is_empty() && *part != b".").map(|part| OsStr::from_bytes(part).to_owned()).collect()
}

/// Names of things that do not exist yet: `..` among them is taken away with the name before it.
fn below(names: impl Iterator<Item = OsString>) -> rustix::io::Result<Vec<OsString>> {
    let mut missing = Vec::new();
    for name in names {
        if name == ".." {
            missing.pop().ok_or(Errno::NOENT)?;
        } else {
            missing.push(name);
        }
    }
    if missing.is_empty() { Err(Errno::NOENT) } else { Ok(missing) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_stay_inside_and_missing_parts_are_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("usr/etc")).unwrap();
        symlink("/usr/etc", dir.path().join("etc")).unwrap();
        symlink("../run/resolv.conf", dir.path().join("usr/etc/resolv.conf")).unwrap();
        symlink("../../../../..", dir.path().join("up")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        let root = fs::File::open(dir.path()).unwrap();
        let resolve = |path: &str| Place::resolve(root.as_fd(), Path::new(path));

        let place = resolve("/etc/resolv.conf").unwrap();
        assert_eq!(place.path(), Path::new("usr/run/resolv.conf"));
        assert_eq!(place.missing, ["run", "resolv.conf"]);
        assert_eq!(resolve("/up/etc").unwrap().path(), Path::new("usr/etc"));
        assert_eq!(resolve("/a/b/../c").unwrap().missing, ["a", "c"]);
        assert_eq!(resolve("/loop/x").unwrap_err(), Errno::LOOP);
        assert_eq!(resolve("..").unwrap().path(), Path::new(""));

        resolve("/etc/resolv.conf").unwrap().create(Kind::File).unwrap();
        assert!(dir.path().join("usr/run/resolv.conf").is_file());
        assert_eq!(resolve("/etc/resolv.conf/x").unwrap_err(), Errno::NOTDIR);
    }
}
