//! Mount points the image lacks, and the trees that go onto them: prepared before the init exists.
//!
//! An overlay gets missing mount points from a directory of our own, its uppermost lower layer, whose parents copy the
//! owner, mode, times and attributes of the image's. So no upper is touched: made in the upper and removed again, `/etc`
//! would stay behind with a new time. A bind has no layers; there they are made in place, remembered by parent, name
//! and inode, and removed only if they are still that and empty.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rbuild_store::Mounts;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, Stat, Timespec, Timestamps, XattrFlags, chmodat, chownat, lsetxattr, mkdirat, open,
    openat, statat, unlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::apart;
use super::mounts::{self, BindDepth, Options};
use super::overlay;
use super::supervise::{Bind, BindSource, Fds, Start};
use super::targets::{Kind, Place};
use crate::error::{Doing, Failure};

/// What the init needs to have been done outside.
pub(super) struct Prepared {
    pub(super) trees: Trees,
    pub(super) made: Made,
}

/// Detached trees for the binds, in their order: first those of the spec's mounts, then the request's own.
#[derive(Default)]
pub(super) struct Trees {
    pub(super) spec: Vec<Option<OwnedFd>>,
    pub(super) extra: Vec<Option<OwnedFd>>,
    /// Whether the stub directory holds anything.
    pub(super) stubs: bool,
}

/// `user` is the sandbox's own user namespace.
pub(super) fn prepare(start: &Start, fds: &mut Fds, user: Option<&OwnedFd>) -> Result<Prepared, Failure> {
    let mut trees = Trees::default();
    let mut wanted: Vec<(PathBuf, Kind)> = Vec::new();
    for mount in start.spec.mounts().iter().flatten() {
        let options = Options::parse(mount.options().as_deref().unwrap_or_default())?;
        let bind = options.bind.or((mount.typ().as_deref() == Some("bind")).then_some(BindDepth::Single));
        let tree = match (bind, mount.source()) {
            (Some(depth), Some(source)) => Some(
                mounts::clone_path(source, depth).doing(|| format!("bind the mount source {}", source.display()))?,
            ),
            (Some(_), None) => return Err(Failure::refused("a bind mount without source")),
            (None, _) => None,
        };
        let recursive = bind == Some(BindDepth::Recursive);
        show_mapped(tree.as_ref(), &options, recursive, user, mount.destination())?;
        wanted.push((mount.destination().clone(), tree.as_ref().map_or(Ok(Kind::Directory), kind_of)?));
        trees.spec.push(tree);
    }
    for bind in &start.binds {
        let tree = bind_tree(bind, fds, user)?;
        let kind = match &tree {
            Some(tree) => kind_of(tree)?,
            None => layers_kind(bind, &start.empty)?,
        };
        wanted.push((bind.destination.clone(), kind));
        trees.extra.push(tree);
    }
    for device in start.spec.linux().as_ref().and_then(|linux| linux.devices().as_ref()).into_iter().flatten() {
        if !device.path().starts_with("/dev") {
            wanted.push((device.path().clone(), Kind::File));
        }
    }
    let view = overlay::view(&start.rootfs, &start.empty)?;
    let mut made = Made::default();
    let mut covered: Vec<PathBuf> = Vec::new();
    let mut copied = Vec::new();
    for (path, kind) in wanted {
        let place = Place::resolve(view.as_fd(), &path).doing(|| format!("open the mount point {}", path.display()))?;
        let resolved = place.path();
        // Inside an earlier mount the image does not show; there the init makes it.
        if !covered.iter().any(|earlier| resolved.starts_with(earlier)) && !place.missing.is_empty() {
            match &start.rootfs {
                Mounts::Overlay { .. } => {
                    trees.stubs = true;
                    stub(&start.stub_dir, &place, kind, &mut copied)
                        .doing(|| format!("make a stub for {}", path.display()))?;
                }
                Mounts::Bind { .. } => {
                    made.make(&place, kind).doing(|| format!("make the mount point {}", path.display()))?;
                }
            }
        }
        covered.push(resolved);
    }
    // Last, because making something in a directory changes its time.
    for (path, stat) in copied.iter().rev() {
        set_times(path, stat).doing(|| format!("set the times of {}", path.display()))?;
    }
    if trees.stubs {
        let root = statat(&view, c"", AtFlags::EMPTY_PATH).doing(|| "look at the root".to_owned())?;
        copy_metadata(&start.stub_dir, &root, &view).doing(|| "copy the root's attributes".to_owned())?;
        set_times(&start.stub_dir, &root).doing(|| "copy the root's times".to_owned())?;
    }
    Ok(Prepared { trees, made })
}

/// The source of a bind, cloned; `None` for one that is found later.
fn bind_tree(bind: &Bind, fds: &mut Fds, user: Option<&OwnedFd>) -> Result<Option<OwnedFd>, Failure> {
    let options = Options::parse(&bind.options)?;
    let depth = options.bind.unwrap_or(BindDepth::Single);
    let action = || format!("bind the source of {}", bind.destination.display());
    let tree = match &bind.source {
        BindSource::Path(path) => Some(mounts::clone_path(path, depth).doing(action)?),
        BindSource::Fd(place) => {
            let fd = fds.take(*place)?;
            // A descriptor of an unattached mount cannot be cloned before Linux 6.15; its root can be moved as it is.
            Some(
                mounts::clone_fd(&fd, depth)
                    .or_else(|error| if error == Errno::INVAL { Ok(fd) } else { Err(error) })
                    .doing(action)?,
            )
        }
        BindSource::Layers { .. } => None,
        // Its content; the init makes the file.
        BindSource::Memory { content, .. } => Some(fds.take(*content)?),
        BindSource::Tmpfs { size } => {
            let mut parameters = vec![("mode".to_owned(), Some("1777".to_owned()))];
            parameters.extend(size.map(|size| ("size".to_owned(), Some(size.to_string()))));
            Some(mounts::make("tmpfs", &Options { parameters, ..Options::default() })?)
        }
    };
    show_mapped(tree.as_ref(), &options, depth == BindDepth::Recursive, user, &bind.destination)?;
    Ok(tree)
}

/// The option `idmap` of a mount. Layers are mapped in any case.
fn show_mapped(
    tree: Option<&OwnedFd>,
    options: &Options,
    recursive: bool,
    user: Option<&OwnedFd>,
    at: &Path,
) -> Result<(), Failure> {
    match (tree, user) {
        _ if !options.map_ids => Ok(()),
        (Some(tree), Some(user)) => apart::map_ids(tree, recursive, user, || format!("the source of {}", at.display())),
        (_, Some(_)) => Ok(()),
        (_, None) => {
            let message = format!("{} cannot be mounted with idmap: there is no user namespace", at.display());
            Err(Failure::refused(message))
        }
    }
}

fn kind_of(tree: &OwnedFd) -> Result<Kind, Failure> {
    let kind = mounts::kind(tree).doing(|| "look at a mount source".to_owned())?;
    Ok(if kind.is_dir() { Kind::Directory } else { Kind::File })
}

fn layers_kind(bind: &Bind, empty: &Path) -> Result<Kind, Failure> {
    let BindSource::Layers { mounts: layers, path } = &bind.source else { return Ok(Kind::Directory) };
    let view = overlay::view(layers, empty)?;
    let source = mounts::walk(view.as_fd(), path, rustix::fs::ResolveFlags::empty())
        .doing(|| format!("find the mount source {}", path.display()))?;
    kind_of(&source)
}

/// Makes `place` below the stub directory, with parents that look like the image's.
fn stub(stub_dir: &Path, place: &Place, kind: Kind, copied: &mut Vec<(PathBuf, Stat)>) -> rustix::io::Result<()> {
    let mut path = stub_dir.to_owned();
    for (name, fd) in place.steps() {
        path.push(name);
        match mkdirat(CWD, &path, Mode::from_raw_mode(0o755)) {
            Err(Errno::EXIST) => continue,
            made => made?,
        }
        let stat = statat(fd, c"", AtFlags::EMPTY_PATH)?;
        copy_metadata(&path, &stat, fd)?;
        copied.push((path.clone(), stat));
    }
    let count = place.missing.len();
    for (n, name) in place.missing.iter().enumerate() {
        path.push(name);
        let made = if n + 1 < count || kind == Kind::Directory {
            mkdirat(CWD, &path, Mode::from_raw_mode(0o755))
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            open(&path, flags, Mode::from_raw_mode(0o644)).map(drop)
        };
        match made {
            Ok(()) => {
                chmodat(CWD, &path, Mode::from_raw_mode(if path.is_dir() { 0o755 } else { 0o644 }), AtFlags::empty())?
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Owner, mode and extended attributes of a directory of the image. The stub directory is private to us, so its paths are safe.
fn copy_metadata(path: &Path, stat: &Stat, from: &OwnedFd) -> rustix::io::Result<()> {
    chownat(CWD, path, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)), AtFlags::SYMLINK_NOFOLLOW)?;
    chmodat(CWD, path, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
    let from = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(from));
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::listxattr(from.as_str(), &mut names[..]) {
        Err(Errno::NOTSUP) => return Ok(()),
        length => length?,
    };
    let mut value = vec![0; 64 << 10];
    for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"security.selinux") {
            continue;
        }
        let length = rustix::fs::getxattr(from.as_str(), name, &mut value[..])?;
        lsetxattr(path, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

fn set_times(path: &Path, stat: &Stat) -> rustix::io::Result<()> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime as _, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ },
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// Mount points made inside a bound root; dropping removes them.
#[derive(Default)]
pub(super) struct Made(Vec<MadeOne>);

struct MadeOne {
    parent: OwnedFd,
    parent_before: Stat,
    /// As making this left it: otherwise somebody inside changed it, or said what its time is to be.
    parent_after: Stat,
    name: OsString,
    inode: u64,
    kind: Kind,
}

impl Made {
    fn make(&mut self, place: &Place, kind: Kind) -> rustix::io::Result<()> {
        let mut parent = place.deepest().try_clone_to_owned().map_err(|_| Errno::MFILE)?;
        let count = place.missing.len();
        for (n, name) in place.missing.iter().enumerate() {
            let parent_before = statat(&parent, c"", AtFlags::EMPTY_PATH)?;
            let kind = if n + 1 < count { Kind::Directory } else { kind };
            match kind {
                Kind::Directory => mkdirat(&parent, name, Mode::from_raw_mode(0o755))?,
                Kind::File => {
                    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                    openat(&parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)?;
                }
            }
            let here = openat(&parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            let inode = statat(&here, c"", AtFlags::EMPTY_PATH)?.st_ino;
            let parent_after = statat(&parent, c"", AtFlags::EMPTY_PATH)?;
            self.0.push(MadeOne { parent, parent_before, parent_after, name: name.clone(), inode, kind });
            parent = here;
        }
        Ok(())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        while let Some(made) = self.0.pop() {
            let Ok(stat) = statat(&made.parent, &made.name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if stat.st_ino != made.inode || (made.kind == Kind::File && stat.st_size != 0) {
                continue;
            }
            let flags = if made.kind == Kind::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            let Ok(now) = statat(&made.parent, c"", AtFlags::EMPTY_PATH) else { continue };
            let modified = |stat: &Stat| (stat.st_mtime, stat.st_mtime_nsec);
            let is_untouched = modified(&now) == modified(&made.parent_after);
            if unlinkat(&made.parent, &made.name, flags).is_ok() {
                let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&made.parent));
                let before = if is_untouched { &made.parent_before } else { &now };
                let times = Timestamps {
                    last_access: Timespec { tv_sec: before.st_atime as _, tv_nsec: before.st_atime_nsec as _ },
                    last_modification: Timespec { tv_sec: before.st_mtime as _, tv_nsec: before.st_mtime_nsec as _ },
                };
                let _ = utimensat(CWD, path.as_str(), &times, AtFlags::empty());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removed_mount_points_leave_the_times_that_others_gave() {
        let temp = tempfile::tempdir().unwrap();
        let times = |seconds: i64| Timestamps {
            last_access: Timespec { tv_sec: seconds, tv_nsec: 0 },
            last_modification: Timespec { tv_sec: seconds, tv_nsec: 0 },
        };
        for (inside, want) in [(None, 1000), (Some(2000), 2000)] {
            let path = temp.path().join(format!("etc-{want}"));
            std::fs::create_dir(&path).unwrap();
            utimensat(CWD, &path, &times(1000), AtFlags::empty()).unwrap();
            let root = open(temp.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
            let mut made = Made::default();
            for name in ["hosts", "hostname"] {
                let place = Place::resolve(root.as_fd(), &Path::new("/").join(path.file_name().unwrap()).join(name));
                made.make(&place.unwrap(), Kind::File).unwrap();
            }
            assert!(path.join("hosts").exists());
            if let Some(seconds) = inside {
                utimensat(CWD, &path, &times(seconds), AtFlags::empty()).unwrap();
            }
            drop(made);
            assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
            assert_eq!(statat(CWD, &path, AtFlags::empty()).unwrap().st_mtime, want);
        }
    }
}
