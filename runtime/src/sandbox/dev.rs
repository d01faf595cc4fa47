//! `/dev`: a fresh tmpfs with docker's default nodes and what the request adds, complete before it is attached.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, chmodat, chownat, makedev, mkdirat, mknodat, openat, symlinkat};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::mounts::{self, BindDepth};
use super::targets::{self, Kind};
use crate::error::{Doing, Failure};

/// Name, major, minor of the nodes every container has.
const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 6] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
];

/// Where device nodes come from.
pub(super) enum Nodes {
    /// They are made where they are wanted.
    Made,
    /// Made by [`make_all`], each a mount: in a user namespace nobody can make one.
    Bound(Vec<OwnedFd>),
}

/// All the nodes that a container has, first the usual ones and then its own, made in a directory and cloned out of it. The
/// usual ones belong to `root`, the others to whom the request says.
pub(super) fn make_all(spec: &Spec, own: BorrowedFd<'_>, root: (u32, u32)) -> Result<Vec<OwnedFd>, Failure> {
    let mut made = Vec::new();
    let mut clone = |name: &str| {
        let source = openat(own, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        let source = source.doing(|| format!("open {name}"))?;
        made.push(mounts::clone_fd(&source, BindDepth::Single).doing(|| format!("clone {name}"))?);
        Ok::<_, Failure>(())
    };
    for (name, major, minor) in NODES {
        let file = format!("usual-{name}");
        node(own, Path::new(&file), FileType::CharacterDevice, 0o666, (major, minor), root)?;
        clone(&file)?;
    }
    for (n, device) in devices(spec).enumerate() {
        let file = format!("own-{n}");
        device_node(own, Path::new(&file), device)?;
        clone(&file)?;
    }
    Ok(made)
}

/// Fills a tmpfs that will be `/dev`, or is.
pub(super) fn populate(dev: BorrowedFd<'_>, spec: &Spec, nodes: &Nodes) -> Result<(), Failure> {
    if let Nodes::Bound(bound) = nodes {
        let own = devices(spec).map(|device| device.path().strip_prefix("/dev").ok());
        let names = NODES.iter().map(|(name, ..)| Some(Path::new(name))).chain(own);
        for (name, tree) in names.zip(bound).filter_map(|(name, tree)| Some((name?, tree))) {
            bind_node(dev, name, tree)?;
        }
    } else {
        for (name, major, minor) in NODES {
            node(dev, Path::new(name), FileType::CharacterDevice, 0o666, (major, minor), (0, 0))?;
        }
    }
    for (name, target) in LINKS {
        symlinkat(target, dev, name).doing(|| format!("link /dev/{name}"))?;
    }
    for name in ["pts", "mqueue", "shm"] {
        mkdirat(dev, name, Mode::from_raw_mode(0o755)).doing(|| format!("make /dev/{name}"))?;
    }
    for device in devices(spec).filter(|_| matches!(nodes, Nodes::Made)) {
        if let Ok(below) = device.path().strip_prefix("/dev") {
            device_node(dev, below, device)?;
        }
    }
    Ok(())
}

/// Devices asked for at other places: a node of our own, bound there, so that the image gets none.
pub(super) fn outside(spec: &Spec, root: BorrowedFd<'_>, own: BorrowedFd<'_>, nodes: &Nodes) -> Result<(), Failure> {
    if let Nodes::Bound(bound) = nodes {
        for (device, tree) in devices(spec).zip(bound.iter().skip(NODES.len())) {
            if !device.path().starts_with("/dev") {
                let target = targets::target(root, device.path(), Kind::File)?;
                mounts::attach(tree, target.as_fd()).doing(|| format!("mount {}", device.path().display()))?;
            }
        }
        return Ok(());
    }
    for (n, device) in devices(spec).filter(|device| !device.path().starts_with("/dev")).enumerate() {
        let name = format!("device{n}");
        device_node(own, Path::new(&name), device)?;
        let source = openat(own, &name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        let source = source.doing(|| format!("open {name}"))?;
        let tree = mounts::clone_fd(&source, BindDepth::Single).doing(|| format!("clone {name}"))?;
        let target = targets::target(root, device.path(), Kind::File)?;
        mounts::attach(&tree, target.as_fd()).doing(|| format!("mount {}", device.path().display()))?;
    }
    Ok(())
}

fn devices(spec: &Spec) -> impl Iterator<Item = &LinuxDevice> {
    spec.linux().as_ref().and_then(|linux| linux.devices().as_ref()).into_iter().flatten()
}

fn device_node(directory: BorrowedFd<'_>, path: &Path, device: &LinuxDevice) -> Result<(), Failure> {
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::A => {
            return Err(Failure::refused(format!("the device {} has no type", device.path().display())));
        }
    };
    let number = |number: i64| {
        u32::try_from(number)
            .map_err(|_| Failure::refused(format!("the device {} has a number out of range", device.path().display())))
    };
    let numbers = (number(device.major())?, number(device.minor())?);
    let owner = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
    let mode = device.file_mode().unwrap_or(0o666) & 0o7777;
    node(directory, path, kind, mode, numbers, owner)
}

/// Mounts a node on a file of its name, with the directories above it; over one that is there.
fn bind_node(directory: BorrowedFd<'_>, path: &Path, tree: &OwnedFd) -> Result<(), Failure> {
    let action = || format!("mount the device {}", path.display());
    directories_above(directory, path)?;
    match openat(directory, path, OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR) {
        Err(Errno::EXIST) => {}
        made => drop(made.doing(action)?),
    }
    let target =
        openat(directory, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).doing(action)?;
    mounts::attach(tree, target.as_fd()).doing(action)
}

/// Makes the directories above a plain path.
fn directories_above(directory: BorrowedFd<'_>, path: &Path) -> Result<(), Failure> {
    let action = || format!("make the device {}", path.display());
    if path.as_os_str().is_empty() || path.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Err(Failure::refused(format!("the device path {} is not plain", path.display())));
    }
    let mut at = std::path::PathBuf::new();
    for part in path.parent().into_iter().flat_map(Path::components) {
        at.push(part);
        match mkdirat(directory, &at, Mode::from_raw_mode(0o755)) {
            Err(Errno::EXIST) => {}
            made => made.doing(action)?,
        }
    }
    Ok(())
}

/// Makes a node, replacing one of ours, with the directories above it.
fn node(
    directory: BorrowedFd<'_>,
    path: &Path,
    kind: FileType,
    mode: u32,
    numbers: (u32, u32),
    owner: (u32, u32),
) -> Result<(), Failure> {
    let action = || format!("make the device {}", path.display());
    directories_above(directory, path)?;
    let make = || mknodat(directory, path, kind, Mode::from_raw_mode(mode), makedev(numbers.0, numbers.1));
    match make() {
        Err(Errno::EXIST) => {
            rustix::fs::unlinkat(directory, path, AtFlags::empty()).doing(action)?;
            make().doing(action)?;
        }
        made => made.doing(action)?,
    }
    chmodat(directory, path, Mode::from_raw_mode(mode), AtFlags::empty()).doing(action)?;
    if owner != (0, 0) {
        let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
        chownat(directory, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).doing(action)?;
    }
    Ok(())
}
