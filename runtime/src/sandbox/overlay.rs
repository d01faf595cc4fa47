//! Overlay mounts of layers, detached.
//!
//! Always with `index=off,metacopy=off,redirect_dir=off`, whatever the distribution's defaults: otherwise an upper
//! directory is not a layer (a chmod leaves an empty file with a mark, a rename a pointer).

use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rbuild_store::Mounts;
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsconfig_set_flag, fsconfig_set_string, fsopen};

use super::mounts::{self, BindDepth, Options};
use crate::error::{Doing, Failure, Result};

/// Directories that the kernel stacks in one overlay (`OVL_MAX_STACK`).
const MOST: usize = 500;
/// Directories left in the upper of two overlays, when there are more: its lowest is the other overlay.
const UPPER_PART: usize = 490;

/// Layers to mount over one another. More than [`MOST`] are folded: the lowest become a read-only overlay of their own,
/// on which the others are stacked. Only the lowest can be: an overlay does not show what its layers remove from what is
/// below it. The kernel does this once and not twice, which gives the limit of some 990.
pub(super) struct Overlay<'a> {
    /// Uppermost first.
    pub(super) lowers: Vec<&'a Path>,
    pub(super) upper: Option<(&'a Path, &'a Path)>,
    pub(super) volatile: bool,
}

/// Mounts a snapshot's layers without attaching them anywhere, for walking through `store::Root::from_fd`. The mount is in
/// no mount table and goes with the last descriptor into it. Usable from any thread; needs root.
pub fn mount_detached(mounts: &Mounts) -> Result<OwnedFd> {
    Ok(detached(mounts, false)?)
}

/// The layers read-only, for the program's own use.
pub(super) fn read_only(lowers: &[&Path]) -> Result<OwnedFd, Failure> {
    let overlay = Overlay { lowers: lowers.to_vec(), upper: None, volatile: false };
    overlay.mount(&Options { set: libc::MOUNT_ATTR_RDONLY, ..Options::default() })
}

pub(super) fn detached(mounts: &Mounts, volatile: bool) -> Result<OwnedFd, Failure> {
    match mounts {
        Mounts::Overlay { lowers, upper, work } => {
            let upper = upper.as_deref().zip(work.as_deref());
            let lowers: Vec<&Path> = lowers.iter().map(PathBuf::as_path).collect();
            let mount = |lowers| Overlay { lowers, upper, volatile }.mount(&Options::default());
            if lowers.len() > 1 || upper.is_some() {
                return mount(lowers);
            }
            // The kernel wants two layers where none is writable.
            let beside = lowers.first().and_then(|lower| lower.parent()).unwrap_or(Path::new("/"));
            let empty = Temporary::beside(beside)?;
            mount(lowers.into_iter().chain([empty.0.as_path()]).collect())
        }
        Mounts::Bind { source, read_only } => {
            let tree = mounts::clone_path(source, BindDepth::Single).doing(|| format!("bind {}", source.display()))?;
            let set = if *read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
            let options = Options { set, propagation: libc::MS_PRIVATE, ..Options::default() };
            mounts::configure_bind(&tree, &options).doing(|| format!("bind {}", source.display()))?;
            Ok(tree)
        }
    }
}

impl Overlay<'_> {
    pub(super) fn mount(&self, options: &Options) -> Result<OwnedFd, Failure> {
        if self.lowers.len() <= MOST {
            return self.mount_lowers(&self.lowers, options);
        }
        let (upper, lowest) = self.lowers.split_at(UPPER_PART);
        if lowest.len() > MOST {
            return Err(Failure::refused(format!("a root of {} layers", self.lowers.len())));
        }
        let folded = read_only(lowest)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", folded.as_raw_fd()));
        let lowers: Vec<&Path> = upper.iter().copied().chain([path.as_path()]).collect();
        self.mount_lowers(&lowers, options)
    }

    fn mount_lowers(&self, lowers: &[&Path], options: &Options) -> Result<OwnedFd, Failure> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).doing(|| "open overlay".to_owned())?;
        let mut held = Vec::new();
        let set = |key: &str, value: &Path| {
            fsconfig_set_string(&context, key, value).doing(|| format!("set {key}={}", value.display()))
        };
        fsconfig_set_string(&context, "source", "overlay").doing(|| "name an overlay".to_owned())?;
        for key in ["index", "metacopy", "redirect_dir"] {
            set(key, Path::new("off"))?;
        }
        let mut by_one = true;
        let mut joined = OsString::new();
        for lower in lowers {
            let short = shorten(lower, &mut held)?;
            if by_one {
                match fsconfig_set_string(&context, "lowerdir+", &short) {
                    Ok(()) => continue,
                    // Before Linux 6.8 all layers go into one value.
                    Err(Errno::INVAL) if joined.is_empty() => by_one = false,
                    Err(error) => return Err(error).doing(|| format!("use the layer {}", lower.display())),
                }
            }
            let file = open(*lower, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                .doing(|| format!("open the layer {}", lower.display()))?;
            if !joined.is_empty() {
                joined.push(":");
            }
            joined.push(format!("/proc/self/fd/{}", file.as_raw_fd()));
            held.push(file);
        }
        if !by_one {
            set("lowerdir", Path::new(&joined))?;
        }
        if let Some((upper, work)) = self.upper {
            set("upperdir", &shorten(upper, &mut held)?)?;
            set("workdir", &shorten(work, &mut held)?)?;
            if self.volatile {
                fsconfig_set_flag(&context, "volatile").doing(|| "set volatile".to_owned())?;
            }
        }
        for (key, value) in &options.parameters {
            set(key, Path::new(value.as_deref().unwrap_or_default()))?;
        }
        mounts::finish("overlay", &context, options)
    }
}

/// The kernel takes 255 bytes a value; a longer path goes by its descriptor.
fn shorten(path: &Path, held: &mut Vec<OwnedFd>) -> Result<PathBuf, Failure> {
    if path.as_os_str().len() < 255 {
        return Ok(path.to_owned());
    }
    let file =
        open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).doing(|| format!("open {}", path.display()))?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    held.push(file);
    Ok(short)
}

/// An empty directory that is gone by the time anybody could look; a mount keeps using it.
struct Temporary(PathBuf);

impl Temporary {
    fn beside(parent: &Path) -> Result<Self, Failure> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(".lower-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = parent.join(name);
        rustix::fs::mkdirat(CWD, &path, Mode::from_raw_mode(0o700)).doing(|| format!("create {}", path.display()))?;
        Ok(Temporary(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// A read-only view of everything a root will show, to look for mount points in before it is mounted.
pub(super) fn view(mounts: &Mounts, empty: &Path) -> Result<OwnedFd, Failure> {
    match mounts {
        Mounts::Overlay { lowers, upper, .. } => {
            let all: Vec<&Path> = upper.iter().chain(lowers).map(PathBuf::as_path).chain([empty]).collect();
            if all.len() == 1 {
                return mounts::clone_path(empty, BindDepth::Single).doing(|| "open an empty root".to_owned());
            }
            read_only(&all)
        }
        Mounts::Bind { source, .. } => {
            mounts::clone_path(source, BindDepth::Single).doing(|| format!("bind {}", source.display()))
        }
    }
}
