//! Sandboxes with users of their own: a user namespace, and what somebody with the machine's rights must do before a
//! process is in it.
//!
//! Two processes begin such a sandbox. The first is the machine's root in a mount namespace of its own: it mounts the layers,
//! each shown with the ids of the user namespace, and makes device nodes; none of that can be done inside. Then it becomes
//! the root of the user namespace and leaves a sibling behind in new namespaces, which therefore belong to the user
//! namespace; that one mounts procfs and the like and becomes the program. With one process alone either the layers
//! could not be mounted or the namespaces would be the machine's, and root inside would have no right to any of them.
//!
//! Nothing on the disk is changed for it: the layers are mapped by their mounts, so the same image serves every container,
//! and what a container writes has on the disk the ids that it has inside.

use std::cell::Cell;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rbuild_store::Mounts;
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Gid, Signal, Uid, pidfd_send_signal};
use rustix::thread::{
    LinkNameSpaceType, move_into_link_name_space, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::cgroups::Cgroup;
use super::init::{self, Report};
use super::mounts::{self, BindDepth, Options};
use super::namespaces::Namespaces;
use super::overlay::{self, Overlay};
use super::root::Anchor;
use super::stubs::Trees;
use super::supervise::{BindSource, Fds, Reply, Start};
use super::sys::{self, Cloned};
use super::{caps, dev, wire};
use crate::error::{Doing, Failure};
use crate::ids::{IdMaps, IdRange};

/// The user namespace of a sandbox.
pub(super) struct Apart<'a> {
    pub(super) maps: &'a IdMaps,
    pub(super) user: OwnedFd,
}

/// What was made outside for a process inside, mounted nowhere yet.
pub(super) struct Outside {
    pub(super) root: OwnedFd,
    pub(super) null: OwnedFd,
    pub(super) nodes: Vec<OwnedFd>,
}

/// Begins a sandbox and leaves the rest of it to a sibling; returns only with the reason why not.
pub(super) fn start(
    start: &Start,
    fds: Fds,
    namespaces: &Namespaces,
    cgroup: &Cgroup,
    mut trees: Trees,
    apart: &Apart<'_>,
    channel: UnixStream,
) -> Failure {
    let mut made = || {
        let anchor = Anchor::new(&start.anchor)?;
        let root = apart.maps.owner_outside((0, 0));
        let mapped = Mapped { user: apart.user.as_fd(), root, anchor: &anchor, shown: Cell::new(0) };
        let outside = Outside {
            root: super::root::layers(start, trees.stubs, Some(&mapped))?,
            null: anchor.null_for(root)?,
            nodes: dev::make_all(&start.spec, anchor.as_fd(), root)?,
        };
        for (bind, tree) in start.binds.iter().zip(&mut trees.extra) {
            match &bind.source {
                BindSource::Layers { mounts, path } => {
                    *tree = Some(super::root::subtree(&mapped.layers(mounts)?, path, &anchor)?);
                }
                BindSource::Memory { .. } | BindSource::Tmpfs { .. } => {
                    let what = "a mount in memory of a sandbox with users of its own";
                    return Err(Failure::Unsupported(what.to_owned()));
                }
                BindSource::Path(_) | BindSource::Fd(_) => {}
            }
        }
        let user = start.spec.process().as_ref().map_or(0, |process| process.user().uid());
        fds.own(&start.stdio, apart.maps.owner_outside((user, 0)).0);
        init::wait_for_cgroup(&channel)?;
        // As the machine's root: theirs may be another's.
        namespaces.join_before_clone()?;
        namespaces.join()?;
        move_into_link_name_space(apart.user.as_fd(), Some(LinkNameSpaceType::User))
            .doing(|| "enter the user namespace".to_owned())?;
        become_root()?;
        let cloned = sys::clone_sibling(namespaces.to_create_with_cgroup());
        Ok((cloned.doing(|| "create the namespaces of the sandbox".to_owned())?, outside))
    };
    match made() {
        Err(failure) => failure,
        Ok((Cloned::Child, outside)) => init::start_apart(start, fds, namespaces, cgroup, trees, outside, channel),
        Ok((Cloned::Parent { pidfd, .. }, _)) => {
            let sent = wire::send(&channel, &Report::Succeeded, &[pidfd.as_fd()]);
            if sent.is_err() {
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            }
            sys::exit_now(i32::from(sent.is_err()))
        }
    }
}

/// Becomes the root of the user namespace one has entered.
pub(super) fn become_root() -> Result<(), Failure> {
    let action = || "become the root of the user namespace".to_owned();
    set_thread_groups(&[]).doing(action)?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).doing(action)?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).doing(action)
}

/// The number of the process that a pidfd stands for, as the caller's procfs has it.
pub(super) fn pid_of(pidfd: &OwnedFd) -> Result<i32, Failure> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = std::fs::read_to_string(path).doing(|| "look at the sandbox's process".to_owned())?;
    let number = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    number.filter(|pid| *pid > 0).ok_or_else(|| Failure::refused("the sandbox's process is gone"))
}

/// Mounts shown with the ids of a user namespace.
pub(super) struct Mapped<'a> {
    user: BorrowedFd<'a>,
    /// Its root, as the machine has it.
    root: (u32, u32),
    anchor: &'a Anchor,
    shown: Cell<usize>,
}

impl Mapped<'_> {
    /// As `Overlay::mount`, of mapped layers. An overlay cannot be mapped itself.
    pub(super) fn overlay(&self, of: &Overlay<'_>, options: &Options) -> Result<OwnedFd, Failure> {
        let mut held = Vec::new();
        let mut show = |path: &Path| -> Result<PathBuf, Failure> {
            let tree = self.show(path)?;
            let shown = PathBuf::from(format!("/proc/self/fd/{}", tree.as_raw_fd()));
            held.push(tree);
            Ok(shown)
        };
        let lowers = of.lowers.iter().map(|lower| show(lower)).collect::<Result<Vec<_>, _>>()?;
        // Both must be of one mount.
        let both = match of.upper {
            Some((upper, work)) => {
                let (Some(parent), Some(name), Some(work_name)) = (upper.parent(), upper.file_name(), work.file_name())
                else {
                    return Err(Failure::refused("a writable layer without a name"));
                };
                if work.parent() != Some(parent) {
                    return Err(Failure::refused("a writable layer and its work directory in two places"));
                }
                let shown = show(parent)?;
                Some((shown.join(name), shown.join(work_name)))
            }
            None => None,
        };
        let upper = both.as_ref().map(|(upper, work)| (upper.as_path(), work.as_path()));
        let lowers = lowers.iter().map(PathBuf::as_path).collect();
        // An overlay makes files in its upper as who mounted it, and the machine's root is nobody there.
        sys::set_file_ids(self.root.0, self.root.1);
        let mounted =
            caps::raise_permitted().and_then(|()| Overlay { lowers, upper, volatile: of.volatile }.mount(options));
        sys::set_file_ids(0, 0);
        mounted.map_err(|failure| match failure {
            Failure::System { errno: libc::EINVAL, .. } => Failure::Unsupported(
                "an overlay of layers with mapped ids on this machine (Linux 5.19 has it)".to_owned(),
            ),
            other => other,
        })
    }

    /// A tree of layers.
    pub(super) fn layers(&self, mounts: &Mounts) -> Result<OwnedFd, Failure> {
        match mounts {
            Mounts::Overlay { lowers, upper, work } => {
                let empty = self.anchor.path_of("empty");
                let lowers = lowers.iter().map(PathBuf::as_path);
                // The kernel wants two layers where none is writable.
                let lowers = lowers.chain(upper.is_none().then_some(empty.as_path())).collect();
                let upper = upper.as_deref().zip(work.as_deref());
                self.overlay(&Overlay { lowers, upper, volatile: true }, &Options::default())
            }
            Mounts::Bind { source, .. } => {
                let tree = overlay::detached(mounts, false)?;
                map_ids(&tree, false, self.user, || source.display().to_string())?;
                Ok(tree)
            }
        }
    }

    /// A directory, attached where the kernel finds it in this mount namespace: before Linux 6.15 an overlay takes no other.
    fn show(&self, path: &Path) -> Result<OwnedFd, Failure> {
        let tree = mounts::clone_path(path, BindDepth::Single).doing(|| format!("open {}", path.display()))?;
        map_ids(&tree, false, self.user, || path.display().to_string())?;
        let number = self.shown.replace(self.shown.get() + 1);
        self.anchor.hang(&tree, &format!("shown{number}"))?;
        Ok(tree)
    }
}

/// Shows an unattached mount with the ids of a user namespace.
pub(super) fn map_ids(
    tree: &OwnedFd,
    recursive: bool,
    user: impl AsFd,
    name: impl Fn() -> String,
) -> Result<(), Failure> {
    sys::map_ids(tree.as_fd(), recursive, user.as_fd()).map_err(|error| match error.raw_os_error() {
        // The kernel does not know the attribute, or the file system does not.
        Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP) => Failure::Unsupported(format!(
            "an id-mapped mount of {} (its file system or this kernel has none): that",
            name()
        )),
        errno => {
            Failure::System { action: format!("show {} with mapped ids", name()), errno: errno.unwrap_or(libc::EIO) }
        }
    })
}

/// Makes a user namespace or takes `joined`, makes a network namespace in it if `network`, and sends both.
pub(super) fn make(starter: &UnixStream, maps: &IdMaps, joined: Option<OwnedFd>, network: bool) -> Result<(), Failure> {
    let (held, theirs) = UnixStream::pair().doing(|| "make a socket pair".to_owned())?;
    let user = if joined.is_none() { libc::CLONE_NEWUSER } else { 0 };
    let flags = user | if network && joined.is_none() { libc::CLONE_NEWNET } else { 0 };
    match sys::clone3(flags, None).doing(|| "make a user namespace".to_owned())? {
        Cloned::Child => {
            drop(held);
            let there = match &joined {
                Some(user) => move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User))
                    .map_err(std::io::Error::from)
                    .and_then(|()| sys::unshare_network()),
                None => Ok(()),
            };
            if there.is_ok() {
                // It is there for the namespaces to be somebody's until they have descriptors.
                let _ = (&theirs).write_all(b".");
                let _ = (&theirs).read(&mut [0]);
            }
            sys::exit_now(0)
        }
        Cloned::Parent { pid, pidfd } => {
            drop(theirs);
            let made = match (&held).read_exact(&mut [0]) {
                Ok(()) => fill(pid, maps, joined.is_none(), network),
                Err(_) => Err(Failure::refused("the kernel makes no network in the user namespace of a container")),
            };
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            drop(held);
            let _ = sys::wait4(pid);
            let made = made?;
            let fds: Vec<BorrowedFd<'_>> = made.iter().map(AsFd::as_fd).collect();
            wire::send(starter, &Reply::UserNamespace, &fds).doing(|| "answer".to_owned())
        }
    }
}

fn fill(pid: i32, maps: &IdMaps, fresh: bool, network: bool) -> Result<Vec<OwnedFd>, Failure> {
    let write = |file: &str, map: &[IdRange]| {
        std::fs::write(format!("/proc/{pid}/{file}"), IdMaps::kernel_text(map))
            .doing(|| format!("write the {file} of a user namespace"))
    };
    if fresh {
        write("uid_map", &maps.users)?;
        write("gid_map", &maps.groups)?;
    }
    let names: &[&str] = if network { &["user", "net"] } else { &["user"] };
    let open_one = |name: &&str| {
        open(format!("/proc/{pid}/ns/{name}"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .doing(|| format!("open the {name} namespace"))
    };
    names.iter().map(open_one).collect()
}
