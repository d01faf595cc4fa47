//! The init: what the cloned child does until it is the container's first process.
//!
//! The order is the point. Cgroup before cgroup namespace; every source opened before the image can be seen; masks while the
//! old root is still there; the root switched before anything of the image is used; limits and identity last, the
//! filter after everything that needs a forbidden call.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use oci_spec::runtime::Spec;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::process::{chdir, fchdir, pivot_root, setsid};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use serde::{Deserialize, Serialize};

use super::apart::{self, Outside};
use super::cgroups::Cgroup;
use super::dev::Nodes;
use super::namespaces::Namespaces;
use super::process::{self, Stage};
use super::root::{Anchor, Root};
use super::stubs::Trees;
use super::supervise::{Enter, Fds, Start, Stream};
use super::{lsm, mounts, wire};
use crate::error::{Doing, Failure};

/// What the init tells the supervisor.
#[derive(Serialize, Deserialize)]
pub(super) enum Report {
    /// Carries the terminal's master.
    Terminal,
    /// The next thing is `execve`: the channel closing is its success.
    Executing,
    /// The one who was to set up a sandbox with users of its own has done what needs the machine's root, and leaves the
    /// rest to another process, whose pidfd this carries.
    Succeeded,
    Failed(Failure),
}

/// What the supervisor tells the init.
#[derive(Serialize, Deserialize)]
pub(super) enum Order {
    /// The init is in its cgroup in every hierarchy.
    Joined,
}

/// Becomes the first process of a new sandbox; returns only with the reason why not.
pub(super) fn start(
    start: &Start,
    mut fds: Fds,
    namespaces: &Namespaces,
    cgroup: &Cgroup,
    trees: Trees,
    channel: UnixStream,
) -> Failure {
    go_on(&channel, || {
        let _ = setsid();
        namespaces.join()?;
        let anchor = Anchor::new(&start.anchor)?;
        let layers = super::root::layers(start, trees.stubs, None)?;
        let root = Root::new(layers, &anchor, Nodes::Made)?;
        furnish(start, &mut fds, namespaces, cgroup, trees, &channel, Place { anchor, root, apart: false })
    })
}

/// As [`start`], in a user namespace: what `outside` has was made by the machine's root.
pub(super) fn start_apart(
    start: &Start,
    mut fds: Fds,
    namespaces: &Namespaces,
    cgroup: &Cgroup,
    trees: Trees,
    outside: Outside,
    channel: UnixStream,
) -> Failure {
    go_on(&channel, || {
        let _ = setsid();
        // Whoever began this has ended by then, and the supervisor has done its part.
        wait_for_cgroup(&channel)?;
        let anchor = Anchor::apart(&outside.null)?;
        let root = Root::new(outside.root, &anchor, Nodes::Bound(outside.nodes))?;
        furnish(start, &mut fds, namespaces, cgroup, trees, &channel, Place { anchor, root, apart: true })
    })
}

/// Where a sandbox is being set up.
struct Place {
    anchor: Anchor,
    root: Root,
    /// In a user namespace of its own: it is in its cgroup, and has its cgroup namespace.
    apart: bool,
}

fn furnish<'a>(
    start: &'a Start,
    fds: &mut Fds,
    namespaces: &Namespaces,
    cgroup: &Cgroup,
    trees: Trees,
    channel: &UnixStream,
    place: Place,
) -> Result<Stage<'a>, Failure> {
    let Place { anchor, mut root, apart } = place;
    namespaces.raise_loopback()?;
    name_host(&start.spec, namespaces)?;
    let cgroup_mount = root.mount_all(start, trees, &anchor)?;
    let process = start.spec.process().as_ref().ok_or_else(|| Failure::refused("a spec without process"))?;
    let stdio = match start.stdio[0] {
        Stream::Terminal { rows, columns } => {
            let terminal = root.open_terminal()?;
            let slave = open_slave(&terminal, rows, columns)?;
            root.mount_console(&slave)?;
            wire::send(channel, &Report::Terminal, &[terminal.as_fd()]).doing(|| "send the terminal".to_owned())?;
            terminal_stdio(slave)?
        }
        _ => plain_stdio(&start.stdio, fds, || anchor.null())?,
    };
    root.create_cwd(process.cwd())?;
    let private_proc = mounts::make("proc", &mounts::Options::default())?;
    root.confine(&start.spec, &anchor)?;
    if let Some(most) = start.most_pids {
        process::limit_pids(&private_proc, most)?;
    }
    if !apart {
        wait_for_cgroup(channel)?;
        namespaces.make_cgroup()?;
    }
    if let Some(mount) = cgroup_mount {
        root.mount_cgroup(mount, cgroup, namespaces)?;
    }
    root.protect(&start.spec, cgroup.guards_devices())?;
    switch(root)?;
    process::sysctls(&start.spec, namespaces, &private_proc)?;
    let filter = &start.filter;
    Ok(Stage { process, stdio, filter, private_proc: Some(private_proc), init: start.init, limited: apart })
}

/// Takes the last steps when what is before them succeeds.
fn go_on<'a>(channel: &UnixStream, before: impl FnOnce() -> Result<Stage<'a>, Failure>) -> Failure {
    match before() {
        Ok(stage) => process::become_it(stage, channel),
        Err(failure) => failure,
    }
}

/// Becomes one more process of a living sandbox.
pub(super) fn enter(enter: &Enter, mut fds: Fds, target: &OwnedFd, channel: UnixStream) -> Failure {
    go_on(&channel, || {
        let _ = setsid();
        let mut kinds = ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::NETWORK
            | ThreadNameSpaceType::CONTROL_GROUP;
        // Made outside: inside, nobody may mount a procfs of which more is seen than there is.
        let mut private_proc = None;
        if let Some(maps) = &enter.ids {
            kinds |= ThreadNameSpaceType::USER;
            if lsm::wants_label(&enter.process) {
                private_proc = Some(mounts::make("proc", &mounts::Options::default())?);
            }
            process::set_limits(&enter.process)?;
            fds.own(&enter.stdio, maps.owner_outside((enter.process.user().uid(), 0)).0);
        }
        // Joining a mount namespace also changes root and working directory to its root.
        move_into_thread_name_spaces(target.as_fd(), kinds).doing(|| "join the container's namespaces".to_owned())?;
        if enter.ids.is_some() {
            apart::become_root()?;
        }
        let stdio = match enter.stdio[0] {
            Stream::Terminal { rows, columns } => {
                let root = open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).doing(|| "open /".to_owned())?;
                let terminal = super::root::terminal_of(root.as_fd())?;
                let slave = open_slave(&terminal, rows, columns)?;
                wire::send(&channel, &Report::Terminal, &[terminal.as_fd()])
                    .doing(|| "send the terminal".to_owned())?;
                terminal_stdio(slave)?
            }
            _ => plain_stdio(&enter.stdio, &mut fds, super::root::null_of)?,
        };
        if enter.ids.is_none() && lsm::wants_label(&enter.process) {
            private_proc = Some(mounts::make("proc", &mounts::Options::default())?);
        }
        wait_for_cgroup(&channel)?;
        let limited = enter.ids.is_some();
        Ok(Stage { process: &enter.process, stdio, filter: &enter.filter, private_proc, init: false, limited })
    })
}

/// Moving into a v1 cgroup may take ten milliseconds, so the supervisor does it while the root is built.
pub(super) fn wait_for_cgroup(channel: &UnixStream) -> Result<(), Failure> {
    let order = wire::receive::<Order>(channel).doing(|| "hear from the supervisor".to_owned())?;
    match order {
        Some((Order::Joined, _)) => Ok(()),
        None => Err(Failure::refused("the supervisor of the sandbox died")),
    }
}

fn name_host(spec: &Spec, namespaces: &Namespaces) -> Result<(), Failure> {
    if !namespaces.own_uts() {
        return Ok(());
    }
    if let Some(name) = spec.hostname() {
        rustix::system::sethostname(name.as_bytes()).doing(|| format!("set the host name {name}"))?;
    }
    if let Some(name) = spec.domainname() {
        rustix::system::setdomainname(name.as_bytes()).doing(|| format!("set the domain name {name}"))?;
    }
    Ok(())
}

/// Makes `root` the root of the mount namespace and lets go of everything else.
fn switch(root: Root) -> Result<(), Failure> {
    let old =
        open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).doing(|| "open /".to_owned())?;
    fchdir(root.as_fd()).doing(|| "enter the root".to_owned())?;
    match pivot_root(".", ".") {
        Ok(()) => {
            // The old root now lies on the new one; its whole tree goes at once. What lies on it itself, as an anchor may,
            // is what `.` means first: until nothing is left, or who enters later finds the machine's files at the top.
            fchdir(&old).doing(|| "enter the old root".to_owned())?;
            let detach = || rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH);
            detach().doing(|| "detach the old root".to_owned())?;
            while detach().is_ok() {}
        }
        Err(Errno::INVAL) => {
            return Err(Failure::Unsupported("a machine that runs from its initial ramdisk".to_owned()));
        }
        Err(error) => return Err(error).doing(|| "change the root".to_owned()),
    }
    chdir("/").doing(|| "change to /".to_owned())
}

fn open_slave(terminal: &OwnedFd, rows: u16, columns: u16) -> Result<OwnedFd, Failure> {
    unlockpt(terminal).doing(|| "unlock the terminal".to_owned())?;
    if rows > 0 && columns > 0 {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(terminal, size).doing(|| "size the terminal".to_owned())?;
    }
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(terminal, flags).doing(|| "open the terminal".to_owned())?;
    rustix::process::ioctl_tiocsctty(&slave).doing(|| "take the terminal".to_owned())?;
    Ok(slave)
}

fn terminal_stdio(slave: OwnedFd) -> Result<[OwnedFd; 3], Failure> {
    let again = || slave.try_clone().doing(|| "duplicate the terminal".to_owned());
    Ok([again()?, again()?, slave])
}

fn plain_stdio(
    streams: &[Stream; 3],
    fds: &mut Fds,
    null: impl Fn() -> Result<OwnedFd, Failure>,
) -> Result<[OwnedFd; 3], Failure> {
    let mut open = |stream: &Stream| match stream {
        Stream::Fd(place) => fds.take(*place),
        _ => null(),
    };
    Ok([open(&streams[0])?, open(&streams[1])?, open(&streams[2])?])
}
