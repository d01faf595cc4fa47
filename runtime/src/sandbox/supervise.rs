//! The process in the middle: entered through [`helper_main`], it makes the cgroup and the init, then watches both sides.
//!
//! It learns of its starter's death by end of file on their socket, never by `PR_SET_PDEATHSIG`, which fires when the
//! *thread* that spawned ends. The init does ask for that signal: its parent is this process, which has one thread.

use std::env;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use oci_spec::runtime::{Process, Spec};
use rbuild_store::Mounts;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, Signal, pidfd_send_signal, set_dumpable_behavior, setsid};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use serde::{Deserialize, Serialize};

use super::apart::{self, Apart};
use super::bundle;
use super::cgroups::Cgroup;
use super::external::ExternalRuntime;
use super::hierarchies::Hierarchies;
use super::init::{self, Order, Report};
use super::namespaces::Namespaces;
use super::running::Exit;
use super::stubs::{self, Prepared};
use super::sys::{self, Cloned};
use super::{process, wire};
use crate::error::{Doing, Failure};
use crate::ids::IdMaps;

/// Argument zero of the re-executed program.
pub(super) const MARKER: &str = "rbuild-sandbox";

#[derive(Serialize, Deserialize)]
pub(super) enum Request {
    Start(Box<Start>),
    Enter(Box<Enter>),
    /// By another runtime.
    Outer(Box<Outer>),
    OuterEnter(Box<OuterEnter>),
    /// Makes a user namespace, or takes the one that is its only descriptor, and makes no sandbox.
    UserNamespace {
        maps: IdMaps,
        network: bool,
    },
}

/// A [`super::ProcessSpec`] with places in the frame's descriptors instead of descriptors.
#[derive(Serialize, Deserialize)]
pub(super) struct Start {
    pub(super) spec: Spec,
    pub(super) rootfs: Mounts,
    pub(super) volatile: bool,
    pub(super) stub_dir: PathBuf,
    /// An empty directory to hang the sandbox's own mounts on until it changes its root.
    pub(super) anchor: PathBuf,
    /// An empty directory to serve as a second layer.
    pub(super) empty: PathBuf,
    pub(super) net: Net,
    pub(super) binds: Vec<Bind>,
    pub(super) stdio: [Stream; 3],
    pub(super) cgroup: PathBuf,
    pub(super) hierarchies: Hierarchies,
    /// A limit of processes for the pid namespace, in place of the cgroup's.
    pub(super) most_pids: Option<i64>,
    /// Seccomp instructions, packed; none for unconfined.
    pub(super) filter: Vec<u64>,
    /// See [`super::ProcessSpec::init`].
    pub(super) init: bool,
    pub(super) ids: Option<Ids>,
}

/// The user namespace of a sandbox that has its own: the place of its descriptor, and what it maps.
#[derive(Serialize, Deserialize)]
pub(super) struct Ids {
    pub(super) namespace: usize,
    pub(super) maps: IdMaps,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Enter {
    pub(super) target: usize,
    pub(super) process: Process,
    pub(super) stdio: [Stream; 3],
    pub(super) cgroup: PathBuf,
    pub(super) hierarchies: Hierarchies,
    pub(super) filter: Vec<u64>,
    pub(super) ids: Option<IdMaps>,
}

/// A sandbox that another runtime makes.
#[derive(Serialize, Deserialize)]
pub(super) struct Outer {
    pub(super) runtime: ExternalRuntime,
    pub(super) id: String,
    /// Its filter is in the specification; nothing is said of `most_pids` and `init`.
    pub(super) start: Start,
}

#[derive(Serialize, Deserialize)]
pub(super) struct OuterEnter {
    pub(super) runtime: ExternalRuntime,
    pub(super) id: String,
    pub(super) process: Process,
    pub(super) stdio: [Stream; 3],
    pub(super) cgroup: PathBuf,
    pub(super) hierarchies: Hierarchies,
}

#[derive(Serialize, Deserialize)]
pub(super) enum Net {
    Host,
    New,
    Joined(usize),
}

#[derive(Serialize, Deserialize)]
pub(super) struct Bind {
    pub(super) destination: PathBuf,
    pub(super) options: Vec<String>,
    pub(super) source: BindSource,
}

#[derive(Serialize, Deserialize)]
pub(super) enum BindSource {
    Path(PathBuf),
    Fd(usize),
    Layers {
        mounts: Mounts,
        path: PathBuf,
    },
    /// The content of a file, in a descriptor of its own.
    Memory {
        content: usize,
        mode: u32,
        uid: u32,
        gid: u32,
    },
    Tmpfs {
        size: Option<u64>,
    },
}

#[derive(Clone, Serialize, Deserialize)]
pub(super) enum Stream {
    Null,
    Fd(usize),
    Terminal { rows: u16, columns: u16 },
}

#[derive(Serialize, Deserialize)]
pub(super) enum Reply {
    /// Carries the init's pidfd and, if there is one, the terminal's master.
    Started {
        pid: i32,
    },
    Failed(Failure),
    Exited(Exit),
    /// Carries the user namespace, and the network namespace if one was asked for.
    UserNamespace,
}

/// Becomes the sandbox's supervisor when the program was started as one, and says with which status to exit; `None` in
/// every other process. Must come first in `main`: before threads, before anything reads the environment.
pub fn helper_main() -> Option<i32> {
    if env::args_os().next()? != MARKER {
        return None;
    }
    // Whatever goes wrong with the socket itself can be told to nobody.
    Some(i32::from(serve().is_err()))
}

fn serve() -> Result<(), Failure> {
    sys::close_on_exec_from(3).doing(|| "close descriptors".to_owned())?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).doing(|| "hide from debuggers".to_owned())?;
    let _ = setsid();
    let socket = sys::take_stdin();
    let starter = rustix::io::fcntl_dupfd_cloexec(&socket, 3).doing(|| "keep the socket".to_owned())?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .doing(|| "open /dev/null".to_owned())?;
    rustix::stdio::dup2_stdin(&null).doing(|| "close standard input".to_owned())?;
    std::mem::forget(socket);
    // The caller's mask has no say in what is made here.
    rustix::process::umask(Mode::empty());
    rustix::process::chdir("/").doing(|| "change to /".to_owned())?;
    let starter = UnixStream::from(starter);
    let Some((request, fds)) = wire::receive::<Request>(&starter).doing(|| "read the request".to_owned())? else {
        return Ok(());
    };
    let mut fds = Fds(fds.into_iter().map(Some).collect());
    let served = match request {
        Request::Start(start) => start_sandbox(&starter, *start, fds),
        Request::Enter(enter) => enter_sandbox(&starter, *enter, fds),
        Request::Outer(outer) => bundle::start(&starter, *outer, fds),
        Request::OuterEnter(enter) => bundle::enter(&starter, *enter, fds),
        Request::UserNamespace { maps, network } => {
            let joined = if fds.0.is_empty() { None } else { Some(fds.take(0)?) };
            apart::make(&starter, &maps, joined, network)
        }
    };
    if let Err(failure) = served {
        wire::send(&starter, &Reply::Failed(failure), &[]).doing(|| "answer".to_owned())?;
    }
    Ok(())
}

/// The request's descriptors, each taken once.
pub(super) struct Fds(Vec<Option<OwnedFd>>);

impl Fds {
    pub(super) fn take(&mut self, place: usize) -> Result<OwnedFd, Failure> {
        self.0
            .get_mut(place)
            .and_then(Option::take)
            .ok_or_else(|| Failure::refused("a sandbox request lacks a descriptor it names"))
    }

    /// Gives the streams among them to a user of the machine's, see [`process::own`].
    pub(super) fn own(&self, streams: &[Stream; 3], uid: u32) {
        for stream in streams {
            if let Stream::Fd(place) = stream
                && let Some(Some(fd)) = self.0.get(*place)
            {
                process::own(fd, rustix::process::Uid::from_raw(uid));
            }
        }
    }
}

fn start_sandbox(starter: &UnixStream, start: Start, mut fds: Fds) -> Result<(), Failure> {
    let namespaces = Namespaces::of(&start.spec, &start.net, &mut fds)?;
    let mut resources = start.spec.linux().as_ref().and_then(|linux| linux.resources().clone());
    if let (Some(_), Some(resources)) = (start.most_pids, &mut resources) {
        resources.set_pids(None);
    }
    let cgroup = Cgroup::create(&start.hierarchies, &start.cgroup, resources.as_ref())?;
    // Limits that were changed meanwhile may have brought hierarchies of their own.
    let at_end = || Cgroup::open(&start.hierarchies, &start.cgroup);
    let guard = Removed(&at_end);
    let user = start.ids.as_ref().map(|ids| fds.take(ids.namespace)).transpose()?;
    let Prepared { trees, made } = stubs::prepare(&start, &mut fds, user.as_ref())?;
    let watched = match (&start.ids, user) {
        (Some(ids), Some(user)) => {
            let apart = Apart { maps: &ids.maps, user };
            let child = Child::clone(libc::CLONE_NEWNS, &cgroup, |channel| {
                apart::start(&start, fds, &namespaces, &cgroup, trees, &apart, channel)
            })?;
            child.succeed(starter, &cgroup, &start.spec)?.watch(starter, &cgroup, Scope::Sandbox, &at_end)
        }
        _ => {
            namespaces.join_before_clone()?;
            let child = Child::clone(namespaces.to_create(), &cgroup, |channel| {
                init::start(&start, fds, &namespaces, &cgroup, trees, channel)
            })?;
            child.watch(starter, &cgroup, Scope::Sandbox, &at_end)
        }
    };
    drop(made);
    let exit = watched?;
    if let Some(exit) = exit {
        let _ = wire::send(starter, &Reply::Exited(exit), &[]);
    }
    drop(guard);
    Ok(())
}

fn enter_sandbox(starter: &UnixStream, enter: Enter, mut fds: Fds) -> Result<(), Failure> {
    let target = fds.take(enter.target)?;
    let cgroup = Cgroup::open(&enter.hierarchies, &enter.cgroup);
    // The pid namespace holds for children only, so it is joined here and the others by the child.
    move_into_thread_name_spaces(target.as_fd(), ThreadNameSpaceType::PROCESS_ID)
        .doing(|| "join the pid namespace".to_owned())?;
    let child = Child::clone(0, &cgroup, |channel| init::enter(&enter, fds, &target, channel))?;
    let exit = child.watch(starter, &cgroup, Scope::Process, &|| cgroup.clone())?;
    if let Some(exit) = exit {
        let _ = wire::send(starter, &Reply::Exited(exit), &[]);
    }
    Ok(())
}

/// Removes the cgroup, killing what is left in it, however the supervisor's work ends.
pub(super) struct Removed<'a>(pub(super) &'a dyn Fn() -> Cgroup);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        let cgroup = (self.0)();
        cgroup.kill();
        cgroup.remove();
    }
}

/// What the end of the child takes with it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Everything in the cgroup.
    Sandbox,
    /// The process alone: others live in the same cgroup.
    Process,
}

struct Child {
    pid: i32,
    pidfd: OwnedFd,
    channel: UnixStream,
    /// Whether it was in its cgroup from the beginning, in every hierarchy.
    joined: bool,
}

impl Child {
    fn clone(namespaces: i32, cgroup: &Cgroup, child: impl FnOnce(UnixStream) -> Failure) -> Result<Self, Failure> {
        let (channel, theirs) = UnixStream::pair().doing(|| "make a socket pair".to_owned())?;
        let directory = cgroup.unified_directory()?;
        let cloned = sys::clone3(namespaces, directory.as_ref().map(AsFd::as_fd));
        match cloned.doing(|| "create the namespaces of the sandbox".to_owned())? {
            Cloned::Parent { pid, pidfd } => {
                drop(theirs);
                Ok(Child { pid, pidfd, channel, joined: false })
            }
            Cloned::Child => {
                drop(channel);
                let report = theirs.try_clone();
                let failure = child(theirs);
                if let Ok(report) = report {
                    let _ = wire::send(&report, &Report::Failed(failure), &[]);
                }
                sys::exit_now(1)
            }
        }
    }

    /// Lets the first child of a sandbox with its own users do its part, and goes on with the one it leaves behind, which
    /// is in the same cgroup. What that one may not do for itself any more is done here.
    fn succeed(self, starter: &UnixStream, cgroup: &Cgroup, spec: &Spec) -> Result<Self, Failure> {
        let heard = self.join(cgroup).and_then(|()| match wait_readable(&self.channel, starter)? {
            Side::Starter => Err(Failure::refused("the starter of the sandbox is gone")),
            Side::Sandbox => wire::receive::<Report>(&self.channel).doing(|| "hear from the sandbox".to_owned()),
        });
        if !matches!(heard, Ok(Some((Report::Succeeded, _)))) {
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        }
        let ended = sys::wait4(self.pid);
        match heard? {
            Some((Report::Succeeded, mut fds)) => {
                let pidfd = fds.pop().ok_or_else(|| Failure::refused("the sandbox has no process"))?;
                let pid = apart::pid_of(&pidfd)?;
                if let Some(process) = spec.process() {
                    process::prepare_other(pid, process)?;
                }
                Ok(Child { pid, pidfd, channel: self.channel, joined: true })
            }
            Some((Report::Failed(failure), _)) => Err(failure),
            _ => Err(died(ended.map(|ended| ended.status).unwrap_or_default(), cgroup, Scope::Sandbox)),
        }
    }

    /// From setup to the end; `None` when the starter has gone meanwhile. `at_end` is the cgroup as it is by then.
    fn watch(
        self,
        starter: &UnixStream,
        cgroup: &Cgroup,
        scope: Scope,
        at_end: &dyn Fn() -> Cgroup,
    ) -> Result<Option<Exit>, Failure> {
        let ready = self.join(cgroup).and_then(|()| self.set_up(starter));
        if !matches!(ready, Ok(Ready::Executing(_))) {
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
            let ended = sys::wait4(self.pid);
            return match ready {
                Ok(Ready::Abandoned) => Ok(None),
                Ok(Ready::Died) => Err(died(ended.map(|ended| ended.status).unwrap_or_default(), cgroup, scope)),
                Err(failure) => Err(failure),
                Ok(Ready::Executing(_)) => unreachable!("tested above"),
            };
        }
        if let Ok(Ready::Executing(terminal)) = ready {
            let fds: Vec<_> = [Some(&self.pidfd), terminal.as_ref()].into_iter().flatten().map(AsFd::as_fd).collect();
            let _ = wire::send(starter, &Reply::Started { pid: self.pid }, &fds);
        }
        let kept = self.wait_for_end(starter)?;
        let cgroup = at_end();
        if !kept {
            if scope == Scope::Sandbox {
                cgroup.kill();
            }
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        }
        let ended = sys::wait4(self.pid).doing(|| "wait for the sandbox".to_owned())?;
        if scope == Scope::Sandbox {
            cgroup.kill();
        }
        let cpu = match scope {
            Scope::Sandbox => cgroup.cpu_time().unwrap_or(Duration::from_nanos(ended.cpu_nanoseconds)),
            Scope::Process => Duration::from_nanos(ended.cpu_nanoseconds),
        };
        Ok(Some(Exit {
            code: libc::WIFEXITED(ended.status).then(|| libc::WEXITSTATUS(ended.status)),
            signal: libc::WIFSIGNALED(ended.status).then(|| libc::WTERMSIG(ended.status)),
            oom: cgroup.oom_kills() > 0,
            peak_memory: cgroup.peak_memory().or(Some(ended.peak_memory)),
            cpu,
        }))
    }

    fn join(&self, cgroup: &Cgroup) -> Result<(), Failure> {
        if !self.joined {
            cgroup.take_in(self.pid)?;
        }
        // An init that has failed meanwhile has said so, and reads no more.
        let _ = wire::send(&self.channel, &Order::Joined, &[]);
        Ok(())
    }

    fn set_up(&self, starter: &UnixStream) -> Result<Ready, Failure> {
        let mut terminal = None;
        loop {
            match wait_readable(&self.channel, starter)? {
                Side::Starter => return Ok(Ready::Abandoned),
                Side::Sandbox => {}
            }
            match wire::receive::<Report>(&self.channel).doing(|| "hear from the sandbox".to_owned())? {
                None => return Ok(Ready::Died),
                Some((Report::Failed(failure), _)) => return Err(failure),
                Some((Report::Terminal, mut fds)) => terminal = fds.pop(),
                Some((Report::Executing, _)) => break,
                Some((Report::Succeeded, _)) => return Err(Failure::refused("a sandbox with two beginnings")),
            }
        }
        // Only now is it decided: the channel closes with a successful exec, or brings its error.
        match wire::receive::<Report>(&self.channel).doing(|| "hear from the sandbox".to_owned())? {
            Some((Report::Failed(failure), _)) => Err(failure),
            _ => Ok(Ready::Executing(terminal)),
        }
    }

    /// Whether the starter is still there at the end.
    fn wait_for_end(&self, starter: &UnixStream) -> Result<bool, Failure> {
        Ok(wait_readable(&self.pidfd, starter)? == Side::Sandbox)
    }
}

enum Ready {
    Executing(Option<OwnedFd>),
    /// The starter closed its socket.
    Abandoned,
    /// The child ended without a word.
    Died,
}

fn died(status: i32, cgroup: &Cgroup, scope: Scope) -> Failure {
    if scope == Scope::Sandbox && cgroup.oom_kills() > 0 {
        return Failure::refused("the memory limit is too small to start a process");
    }
    Failure::refused(format!("the init of the sandbox died while setting it up (wait status {status})"))
}

#[derive(PartialEq, Eq)]
pub(super) enum Side {
    Sandbox,
    Starter,
}

/// Waits for something from the sandbox, or for the starter's end of the socket to close. The starter never writes after
/// its request, so readable means closed.
pub(super) fn wait_readable(sandbox: impl AsFd, starter: &UnixStream) -> Result<Side, Failure> {
    let mut fds = [PollFd::new(&sandbox, PollFlags::IN), PollFd::new(starter, PollFlags::IN)];
    loop {
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            polled => polled.doing(|| "poll".to_owned())?,
        };
        if !fds[0].revents().is_empty() {
            return Ok(Side::Sandbox);
        }
        if !fds[1].revents().is_empty() {
            return Ok(Side::Starter);
        }
    }
}
