//! Assembling a sandbox's root inside its own mount namespace, by descriptors from beginning to end.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use rbuild_store::Mounts;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, chownat, makedev, mkdirat, mknodat, openat, statat};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Gid, Uid};

use super::apart::Mapped;
use super::cgroups::Cgroup;
use super::dev::Nodes;
use super::mounts::{self, BindDepth, Options};
use super::namespaces::Namespaces;
use super::overlay::{self, Overlay};
use super::stubs::Trees;
use super::supervise::{Bind, BindSource, Start};
use super::targets::{self, Kind, Place};
use super::{dev, sys};
use crate::error::{Doing, Failure};

/// A small file system of our own, in the sandbox's mount namespace and hidden from it later: the place to hang the root
/// until it becomes the root, and the sources of masks. Nothing of the image ever is in it.
pub(super) struct Anchor(OwnedFd);

impl Anchor {
    /// Cuts this mount namespace off from the caller's first.
    pub(super) fn new(at: &Path) -> Result<Self, Failure> {
        let tree = Self::make()?;
        mknodat(&tree, c"null", FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, 3))
            .doing(|| "make a null device".to_owned())?;
        let target = openat(rustix::fs::CWD, at, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .doing(|| format!("open {}", at.display()))?;
        mounts::attach(&tree, target.as_fd()).doing(|| "attach the anchor".to_owned())?;
        Ok(Anchor(tree))
    }

    /// The same in a user namespace, where nobody can make a device: `null` is one. It lies over the root, the one place that
    /// is there and that its root may reach on every machine.
    pub(super) fn apart(null: &OwnedFd) -> Result<Self, Failure> {
        let tree = Self::make()?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&tree, c"null", flags, Mode::from_raw_mode(0o600)).doing(|| "prepare the anchor".to_owned())?;
        let target = openat(rustix::fs::CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .doing(|| "open /".to_owned())?;
        mounts::attach(&tree, target.as_fd()).doing(|| "attach the anchor".to_owned())?;
        let anchor = Anchor(tree);
        mounts::attach(null, anchor.open("null")?.as_fd()).doing(|| "attach a null device".to_owned())?;
        Ok(anchor)
    }

    fn make() -> Result<OwnedFd, Failure> {
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .doing(|| "make the mounts private".to_owned())?;
        let options = Options::parse(&["nosuid".to_owned(), "noexec".to_owned(), "mode=700".to_owned()])?;
        let tree = mounts::make("tmpfs", &options)?;
        for name in [c"root", c"empty", c"layers"] {
            mkdirat(&tree, name, Mode::from_raw_mode(0o755)).doing(|| "prepare the anchor".to_owned())?;
        }
        Ok(tree)
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The way to one of its directories, for this process.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd())).join(name)
    }

    /// A null device of that owner, mounted nowhere.
    pub(super) fn null_for(&self, (uid, gid): (u32, u32)) -> Result<OwnedFd, Failure> {
        chownat(&self.0, c"null", Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)
            .doing(|| "give the null device away".to_owned())?;
        mounts::clone_fd(self.open("null")?, BindDepth::Single).doing(|| "clone the null device".to_owned())
    }

    /// Attaches a mount at a new directory.
    pub(super) fn hang(&self, tree: &OwnedFd, name: &str) -> Result<(), Failure> {
        mkdirat(&self.0, name, Mode::from_raw_mode(0o755)).doing(|| format!("make the anchor's {name}"))?;
        mounts::attach(tree, self.open(name)?.as_fd()).doing(|| format!("attach the anchor's {name}"))
    }

    fn open(&self, name: &str) -> Result<OwnedFd, Failure> {
        openat(&self.0, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .doing(|| format!("open the anchor's {name}"))
    }

    /// An open null device.
    pub(super) fn null(&self) -> Result<OwnedFd, Failure> {
        openat(&self.0, c"null", OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .doing(|| "open the null device".to_owned())
    }

    fn clone_of(&self, name: &str, set: u64) -> Result<OwnedFd, Failure> {
        let tree =
            mounts::clone_fd(self.open(name)?, BindDepth::Single).doing(|| format!("clone the anchor's {name}"))?;
        sys::mount_setattr(tree.as_fd(), false, set, 0, libc::MS_PRIVATE)
            .doing(|| format!("protect the anchor's {name}"))?;
        Ok(tree)
    }
}

/// The layers of the root, mounted nowhere yet; with `stubs` those over the image's, and shown as `mapped` says.
pub(super) fn layers(start: &Start, stubs: bool, mapped: Option<&Mapped<'_>>) -> Result<OwnedFd, Failure> {
    match &start.rootfs {
        Mounts::Overlay { lowers, upper, work } => {
            let mut all: Vec<&Path> = stubs.then_some(start.stub_dir.as_path()).into_iter().collect();
            all.extend(lowers.iter().map(PathBuf::as_path));
            let upper = upper.as_deref().zip(work.as_deref());
            if all.len() < if upper.is_some() { 1 } else { 2 } {
                all.push(&start.empty);
            }
            if upper.is_none() && all.len() < 2 {
                return Err(Failure::refused("a root without layers"));
            }
            let overlay = Overlay { lowers: all, upper, volatile: start.volatile };
            let options = labelled(&start.spec, Options::default());
            match mapped {
                Some(mapped) => mapped.overlay(&overlay, &options),
                None => overlay.mount(&options),
            }
        }
        bind @ Mounts::Bind { .. } => match mapped {
            Some(mapped) => mapped.layers(bind),
            None => overlay::detached(bind, false),
        },
    }
}

/// The root under construction.
pub(super) struct Root {
    fd: OwnedFd,
    devpts: Option<OwnedFd>,
    dev: Option<OwnedFd>,
    nodes: Nodes,
}

impl Root {
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Of these layers.
    pub(super) fn new(layers: OwnedFd, anchor: &Anchor, nodes: Nodes) -> Result<Self, Failure> {
        mounts::attach(&layers, anchor.open("root")?.as_fd()).doing(|| "attach the root".to_owned())?;
        Ok(Root { fd: layers, devpts: None, dev: None, nodes })
    }

    /// Everything but the view of the cgroup, which is handed back: the sandbox may not be in it yet.
    pub(super) fn mount_all<'a>(
        &mut self,
        start: &'a Start,
        mut trees: Trees,
        anchor: &Anchor,
    ) -> Result<Option<&'a Mount>, Failure> {
        let mut cgroup = None;
        let mut specs = trees.spec.drain(..);
        for mount in start.spec.mounts().iter().flatten() {
            let tree = specs.next().flatten();
            if tree.is_none() && matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2")) {
                cgroup = Some(mount);
                continue;
            }
            self.mount(&start.spec, mount, tree).map_err(|failure| name_mount(failure, mount.destination()))?;
        }
        for (bind, tree) in start.binds.iter().zip(trees.extra.drain(..)) {
            self.bind(bind, tree, anchor).map_err(|failure| name_mount(failure, &bind.destination))?;
        }
        dev::outside(&start.spec, self.fd.as_fd(), anchor.0.as_fd(), &self.nodes)?;
        Ok(cgroup)
    }

    /// Shows the sandbox its own cgroup.
    pub(super) fn mount_cgroup(&self, mount: &Mount, cgroup: &Cgroup, namespaces: &Namespaces) -> Result<(), Failure> {
        let options = Options::parse(mount.options().as_deref().unwrap_or_default())?;
        let shown = cgroup.shown(&options, namespaces.own_cgroup())?;
        self.attach(&shown.tree, mount.destination(), Kind::Directory)?;
        if shown.below.is_empty() {
            return Ok(());
        }
        for (name, tree) in &shown.below {
            let target = openat(&shown.tree, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                .doing(|| format!("open {name}"))?;
            mounts::attach(tree, target.as_fd()).doing(|| format!("mount the hierarchy {name}"))?;
        }
        sys::mount_setattr(shown.tree.as_fd(), false, options.set, options.clear, 0)
            .doing(|| "protect the hierarchies".to_owned())
    }

    fn mount(&mut self, spec: &Spec, mount: &Mount, tree: Option<OwnedFd>) -> Result<(), Failure> {
        let mut options = Options::parse(mount.options().as_deref().unwrap_or_default())?;
        options.source = mount.source().as_ref().and_then(|source| source.to_str()).map(str::to_owned);
        let destination = mount.destination();
        if let Some(tree) = tree {
            return self.attach_bind(&tree, destination, &options);
        }
        if matches!(mount.typ().as_deref(), Some("tmpfs" | "mqueue")) {
            options = labelled(spec, options);
        }
        let kind = mount.typ().as_deref().unwrap_or("none");
        match kind {
            "proc" => self.kernel_filesystem(kind, destination, &options, libc::PROC_SUPER_MAGIC),
            "sysfs" => self.kernel_filesystem(kind, destination, &options, libc::SYSFS_MAGIC),
            "tmpfs" => {
                let tree = mounts::make(kind, &options)?;
                if destination == Path::new("/dev") {
                    let target = self.plain_directory(destination)?;
                    // Complete before it is attached, unless its nodes are mounts, which want a place.
                    let bound = matches!(self.nodes, Nodes::Bound(_));
                    if !bound {
                        dev::populate(tree.as_fd(), spec, &self.nodes)?;
                    }
                    mounts::attach(&tree, target.as_fd()).doing(|| "attach /dev".to_owned())?;
                    if bound {
                        dev::populate(tree.as_fd(), spec, &self.nodes)?;
                    }
                    self.dev = Some(tree);
                    return Ok(());
                }
                self.attach(&tree, destination, Kind::Directory)
            }
            "devpts" => {
                let tree = mounts::make(kind, &options)?;
                self.attach(&tree, destination, Kind::Directory)?;
                self.devpts = Some(tree);
                Ok(())
            }
            "mqueue" => {
                let tree = mounts::make(kind, &options)?;
                self.attach(&tree, destination, Kind::Directory)
            }
            other => Err(Failure::Unsupported(format!("a mount of type {other}"))),
        }
    }

    /// procfs and sysfs: onto a real directory of the image, and what is mounted must be what it says.
    fn kernel_filesystem(&self, kind: &str, at: &Path, options: &Options, magic: i64) -> Result<(), Failure> {
        let target = self.plain_directory(at)?;
        let tree = mounts::make(kind, options)?;
        if !mounts::is_filesystem(&tree, magic) {
            return Err(Failure::refused(format!("a {kind} mount turned out to be something else")));
        }
        mounts::attach(&tree, target.as_fd()).doing(|| format!("attach {kind}"))
    }

    /// A mount point reached without any link.
    fn plain_directory(&self, at: &Path) -> Result<OwnedFd, Failure> {
        let ordinary = || Failure::refused(format!("{} of the image is not an ordinary directory", at.display()));
        let target = match mounts::walk(self.fd.as_fd(), at, ResolveFlags::NO_SYMLINKS) {
            Err(Errno::LOOP | Errno::NOTDIR) => return Err(ordinary()),
            target => target.doing(|| format!("open the mount point {}", at.display()))?,
        };
        match mounts::kind(&target) {
            Ok(FileType::Directory) => Ok(target),
            _ => Err(ordinary()),
        }
    }

    fn bind(&self, bind: &Bind, tree: Option<OwnedFd>, anchor: &Anchor) -> Result<(), Failure> {
        let options = Options::parse(&bind.options)?;
        let tree = match (&bind.source, tree) {
            (BindSource::Memory { mode, uid, gid, .. }, Some(content)) => {
                let whole = memory_file(content, *mode, (*uid, *gid))?;
                subtree(&whole, Path::new(IN_MEMORY), anchor)?
            }
            (_, Some(tree)) => tree,
            (BindSource::Layers { mounts: layers, path }, None) => {
                subtree(&overlay::detached(layers, true)?, path, anchor)?
            }
            (_, None) => return Err(Failure::refused("a mount lost its source")),
        };
        self.attach_bind(&tree, &bind.destination, &options)
    }

    fn attach_bind(&self, tree: &OwnedFd, destination: &Path, options: &Options) -> Result<(), Failure> {
        if !options.parameters.is_empty() {
            let (name, _) = &options.parameters[0];
            return Err(Failure::Unsupported(format!("the bind mount option {name}")));
        }
        mounts::configure_bind(tree, options).doing(|| "set the options of a bind mount".to_owned())?;
        let kind = mounts::kind(tree).doing(|| "look at a mount source".to_owned())?;
        self.attach(tree, destination, if kind.is_dir() { Kind::Directory } else { Kind::File })
    }

    fn attach(&self, tree: &OwnedFd, destination: &Path, kind: Kind) -> Result<(), Failure> {
        let target = targets::target(self.fd.as_fd(), destination, kind)?;
        if mounts::is_filesystem(&target, libc::PROC_SUPER_MAGIC) && !may_cover(destination) {
            return Err(Failure::refused(format!(
                "nothing can be mounted to {:?} because it is inside /proc",
                destination.display()
            )));
        }
        let is_directory = mounts::kind(&target).is_ok_and(FileType::is_dir);
        if is_directory != (kind == Kind::Directory) {
            let (source, target) = if is_directory { ("file", "directory") } else { ("directory", "file") };
            return Err(Failure::refused(format!(
                "a {source} cannot be mounted on the {target} {}",
                destination.display()
            )));
        }
        mounts::attach(tree, target.as_fd()).doing(|| format!("mount on {}", destination.display()))
    }

    /// The master of a new terminal of the devpts mounted here.
    pub(super) fn open_terminal(&self) -> Result<OwnedFd, Failure> {
        let devpts = self.devpts.as_ref().ok_or_else(|| Failure::refused("a terminal needs a devpts mount"))?;
        open_ptmx(devpts.as_fd(), "ptmx")
    }

    /// Shows the terminal as `/dev/console`.
    pub(super) fn mount_console(&self, slave: &OwnedFd) -> Result<(), Failure> {
        let Some(dev) = &self.dev else { return Ok(()) };
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(dev, c"console", flags, Mode::from_raw_mode(0o600)).doing(|| "make /dev/console".to_owned())?;
        let target = openat(dev, c"console", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .doing(|| "open /dev/console".to_owned())?;
        let tree = mounts::clone_fd(slave, BindDepth::Single).doing(|| "clone the terminal".to_owned())?;
        mounts::attach(&tree, target.as_fd()).doing(|| "mount /dev/console".to_owned())
    }

    /// Makes the working directory where it is missing: this one is the container's and stays.
    pub(super) fn create_cwd(&self, cwd: &Path) -> Result<(), Failure> {
        let action = || format!("mkdir {}", cwd.display());
        let place = Place::resolve(self.fd.as_fd(), cwd).doing(action)?;
        if !place.missing.is_empty() {
            place.create(Kind::Directory).doing(action)?;
        }
        Ok(())
    }

    /// Masks and read-only paths.
    pub(super) fn confine(&self, spec: &Spec, anchor: &Anchor) -> Result<(), Failure> {
        let linux = spec.linux().as_ref();
        for path in linux.and_then(|linux| linux.readonly_paths().as_ref()).into_iter().flatten() {
            let Some(target) = self.kernel_path(path)? else { continue };
            let tree = mounts::clone_fd(&target, BindDepth::Recursive).doing(|| format!("clone {path}"))?;
            sys::mount_setattr(tree.as_fd(), true, libc::MOUNT_ATTR_RDONLY, 0, libc::MS_PRIVATE)
                .doing(|| format!("make {path} read-only"))?;
            mounts::attach(&tree, target.as_fd()).doing(|| format!("make {path} read-only"))?;
        }
        for path in linux.and_then(|linux| linux.masked_paths().as_ref()).into_iter().flatten() {
            let Some(target) = self.kernel_path(path)? else { continue };
            let directory = mounts::kind(&target).is_ok_and(FileType::is_dir);
            let nothing = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
            let tree = if directory {
                anchor.clone_of("empty", nothing | libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV)?
            } else {
                anchor.clone_of("null", nothing)?
            };
            mounts::attach(&tree, target.as_fd()).doing(|| format!("mask {path}"))?;
        }
        Ok(())
    }

    /// The root's own attributes; last, since the cgroup view still wants its mount point.
    pub(super) fn protect(&self, spec: &Spec, guards_devices: bool) -> Result<(), Failure> {
        let read_only = spec.root().as_ref().is_some_and(|root| root.readonly().unwrap_or(false));
        let mut set = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
        if !guards_devices {
            set |= libc::MOUNT_ATTR_NODEV;
        }
        if set == 0 {
            return Ok(());
        }
        sys::mount_setattr(self.fd.as_fd(), false, set, 0, 0).doing(|| "protect the root".to_owned())
    }

    /// A path to protect: no link on the way, and below /proc and /sys really of those file systems. `None` where missing.
    fn kernel_path(&self, path: &str) -> Result<Option<OwnedFd>, Failure> {
        let target = match mounts::walk(self.fd.as_fd(), Path::new(path), ResolveFlags::NO_SYMLINKS) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => return Ok(None),
            target => target.doing(|| format!("open {path}"))?,
        };
        let expected = if path.starts_with("/proc/") {
            libc::PROC_SUPER_MAGIC
        } else if path.starts_with("/sys/") {
            libc::SYSFS_MAGIC
        } else {
            return Ok(Some(target));
        };
        if mounts::is_filesystem(&target, expected) { Ok(Some(target)) } else { Ok(None) }
    }
}

/// The master of a new terminal in a root somebody else lives in.
pub(super) fn terminal_of(root: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
    let action = || "open the container's /dev/pts".to_owned();
    let devpts = mounts::walk(root, Path::new("/dev/pts"), ResolveFlags::NO_SYMLINKS).doing(action)?;
    if !mounts::is_filesystem(&devpts, DEVPTS_SUPER_MAGIC) {
        return Err(Failure::refused("/dev/pts of the container is not a devpts mount"));
    }
    open_ptmx(devpts.as_fd(), "ptmx")
}

/// The null device of a root somebody else lives in, which is `/` by now.
pub(super) fn null_of() -> Result<OwnedFd, Failure> {
    let action = || "open the container's /dev/null".to_owned();
    let root = openat(rustix::fs::CWD, c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).doing(action)?;
    // Whatever somebody inside has put there: neither blocks nor becomes a controlling terminal, and is looked at then.
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY;
    let null = mounts::open_in(root.as_fd(), Path::new("/dev/null"), flags, ResolveFlags::NO_SYMLINKS).doing(action)?;
    let stat = rustix::fs::fstat(&null).doing(action)?;
    if !FileType::from_raw_mode(stat.st_mode).is_char_device() || stat.st_rdev != makedev(1, 3) {
        return Err(Failure::refused("/dev/null of the container is not the null device"));
    }
    Ok(null)
}

const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

fn open_ptmx(devpts: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Failure> {
    let action = || "open a terminal".to_owned();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let stat = statat(devpts, name, AtFlags::SYMLINK_NOFOLLOW).doing(action)?;
    if !FileType::from_raw_mode(stat.st_mode).is_char_device() || stat.st_rdev != makedev(5, 2) {
        return Err(Failure::refused("/dev/pts/ptmx is not the terminal device"));
    }
    openat(devpts, name, flags, Mode::empty()).doing(action)
}

/// The name of a file in memory on its own file system.
const IN_MEMORY: &str = "file";

/// A file system with one file, a copy of `content`.
fn memory_file(content: OwnedFd, mode: u32, (uid, gid): (u32, u32)) -> Result<OwnedFd, Failure> {
    let options = |swap: &[&str]| Options::parse(&swap.iter().map(|&option| option.to_owned()).collect::<Vec<_>>());
    // Linux before 6.4 cannot promise to keep it out of the swap.
    let whole = mounts::make("tmpfs", &options(&["mode=700", "noswap"])?)
        .or_else(|_| mounts::make("tmpfs", &options(&["mode=700"])?))?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
    let mut file = openat(&whole, IN_MEMORY, flags, Mode::from_raw_mode(0o600))
        .map(std::fs::File::from)
        .doing(|| "make a file in memory".to_owned())?;
    let mut copy = || -> std::io::Result<()> {
        rustix::fs::seek(&content, rustix::fs::SeekFrom::Start(0))?;
        std::io::copy(&mut std::fs::File::from(content.try_clone()?), &mut file)?;
        rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777))?)
    };
    copy().doing(|| "fill a file in memory".to_owned())?;
    Ok(whole)
}

/// A part of an unattached mount as a mount of its own. It is attached for a moment, because only a mount of this
/// namespace can be cloned.
pub(super) fn subtree(whole: &OwnedFd, path: &Path, anchor: &Anchor) -> Result<OwnedFd, Failure> {
    mounts::attach(whole, anchor.open("layers")?.as_fd()).doing(|| "attach a mount source".to_owned())?;
    let source = mounts::walk(whole.as_fd(), path, ResolveFlags::empty())
        .doing(|| format!("find the mount source {}", path.display()))?;
    let tree = mounts::clone_fd(&source, BindDepth::Single).doing(|| "clone a mount source".to_owned())?;
    rustix::process::fchdir(anchor.0.as_fd()).doing(|| "enter the anchor".to_owned())?;
    rustix::mount::unmount("layers", rustix::mount::UnmountFlags::DETACH)
        .doing(|| "detach a mount source".to_owned())?;
    Ok(tree)
}

/// Files of procfs that may be covered: what only tells, and is made up for containers by some. Everything else there is
/// what masks and labels rely on.
fn may_cover(destination: &Path) -> bool {
    const TELLING: [&str; 9] = [
        "/proc/cpuinfo",
        "/proc/diskstats",
        "/proc/loadavg",
        "/proc/meminfo",
        "/proc/net/dev",
        "/proc/slabinfo",
        "/proc/stat",
        "/proc/swaps",
        "/proc/uptime",
    ];
    TELLING.iter().any(|path| destination == Path::new(path))
}

/// The options of a file system whose files all bear the container's SELinux label, if it has one.
fn labelled(spec: &Spec, mut options: Options) -> Options {
    let label = spec.linux().as_ref().and_then(|linux| linux.mount_label().clone());
    options.parameters.extend(label.filter(|label| !label.is_empty()).map(|label| ("context".to_owned(), Some(label))));
    options
}

fn name_mount(failure: Failure, destination: &Path) -> Failure {
    match failure {
        Failure::System { action, errno } => {
            Failure::System { action: format!("{action} for {}", destination.display()), errno }
        }
        other => other,
    }
}
