//! In the process in the middle: a container that another runtime makes.
//!
//! All mounts lie in a mount namespace of this process's own, so that nothing of them is left when it ends: the bundle is a
//! tmpfs there, with the root and every bind attached below it. The binds are cloned before, out of the caller's
//! namespace, and so keep what they are to mounts of the host (propagation).

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio as ChildStdio};
use std::time::Duration;

use oci_spec::runtime::{
    BoxBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, Mount, MountBuilder, Process, RootBuilder, Spec,
};
use rustix::fs::ResolveFlags;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal, set_child_subreaper};
use rustix::termios::{Winsize, tcsetwinsize};
use serde::Deserialize;

use super::cgroups::Cgroup;
use super::external::ExternalRuntime;
use super::mounts::{self, BindDepth, Options, WRITABLE_BELOW};
use super::overlay;
use super::root;
use super::running::Exit;
use super::stubs::{self, Made, Prepared};
use super::supervise::{BindSource, Fds, Net, Outer, OuterEnter, Removed, Reply, Side, Start, Stream, wait_readable};
use super::{sys, wire};
use crate::error::{Doing, ExecFailure, Failure};

/// What is read of a runtime's log, from its end.
const LOG_END: u64 = 64 << 10;

/// Has the runtime make and start a container, and sees it to its end.
pub(super) fn start(starter: &UnixStream, outer: Outer, mut fds: Fds) -> Result<(), Failure> {
    set_child_subreaper(Some(getpid())).doing(|| "take in orphans".to_owned())?;
    let Outer { runtime, id, start } = &outer;
    // The runtime makes it.
    let at_end = || Cgroup::open(&start.hierarchies, &start.cgroup);
    let bundle = Bundle::lay_out(runtime, start, &mut fds)?;
    let network = match &start.net {
        Net::Joined(place) => Some(fds.take(*place)?),
        Net::Host | Net::New => None,
    };
    let mut spec = describe(start, &bundle, network.as_ref())?;
    let streams = Streams::take(&start.stdio, &mut fds)?;
    if let Some(process) = spec.process_mut() {
        streams.tell(process);
    }
    bundle.write("config.json", &spec)?;
    // What an earlier life left when it was killed; usually nothing.
    if runtime.directory.join("state").join(id).exists() {
        let _ = runtime.command().args(["delete", "--force", id]).status();
    }
    let removed = Removed(&at_end);
    let deleted = Deleted { runtime, id };
    let call = Call { runtime, verb: "create", log: bundle.path.join("log.json") };
    let mut command = call.command();
    command.arg("--bundle").arg(&bundle.path).arg("--pid-file").arg(bundle.path.join("pid"));
    let container = streams.run(&call, command, &bundle.path, &[id])?;
    drop(network);
    let call = Call { runtime, verb: "start", log: bundle.path.join("log-start.json") };
    call.run(call.command().arg(id))?;
    container.report(starter);
    if !container.wait_for_end(starter)? {
        let _ = runtime.command().args(["kill", id, "KILL"]).status();
        let _ = pidfd_send_signal(&container.pidfd, Signal::KILL);
    }
    let exit = container.reap(&at_end())?;
    // Before anybody is told: the layers are free again.
    drop((deleted, bundle));
    let _ = wire::send(starter, &Reply::Exited(exit), &[]);
    drop(removed);
    Ok(())
}

/// Has the runtime run one more process in a container of its.
pub(super) fn enter(starter: &UnixStream, mut enter: OuterEnter, mut fds: Fds) -> Result<(), Failure> {
    set_child_subreaper(Some(getpid())).doing(|| "take in orphans".to_owned())?;
    let cgroup = Cgroup::open(&enter.hierarchies, &enter.cgroup);
    let runtime = &enter.runtime;
    let streams = Streams::take(&enter.stdio, &mut fds)?;
    streams.tell(&mut enter.process);
    let directory = Temporary::new(runtime.directory.join(format!("exec-{}", getpid().as_raw_nonzero())))?;
    let process = directory.0.join("process.json");
    write(&process, &enter.process)?;
    let call = Call { runtime, verb: "exec", log: directory.0.join("log.json") };
    let mut command = call.command();
    command.arg("--detach").arg("--process").arg(process).arg("--pid-file").arg(directory.0.join("pid"));
    let inside = streams.run(&call, command, &directory.0, &[&enter.id])?;
    drop(directory);
    inside.report(starter);
    if !inside.wait_for_end(starter)? {
        let _ = pidfd_send_signal(&inside.pidfd, Signal::KILL);
    }
    let exit = inside.reap(&cgroup)?;
    let _ = wire::send(starter, &Reply::Exited(exit), &[]);
    Ok(())
}

/// The directory that the runtime is given.
struct Bundle {
    path: PathBuf,
    /// What the binds of the request became.
    binds: Vec<Mount>,
    /// Mount points in a root that is no overlay.
    _made: Made,
}

impl Bundle {
    fn lay_out(runtime: &ExternalRuntime, start: &Start, fds: &mut Fds) -> Result<Bundle, Failure> {
        let path = runtime.directory.join("bundle");
        // The root's place, since who enters later looks for it from outside: some runtimes start there.
        for directory in [runtime.directory.join("state"), path.join("rootfs")] {
            fs::create_dir_all(&directory).doing(|| format!("create {}", directory.display()))?;
        }
        if start.binds.iter().any(|bind| matches!(bind.source, BindSource::Memory { .. })) {
            return Err(Failure::Unsupported(format!("a file in memory with the runtime {}", runtime.name)));
        }
        let Prepared { trees, made } = stubs::prepare(start, fds, None)?;
        let root = root::layers(start, trees.stubs, None)?;
        sys::unshare_mounts().doing(|| "make a mount namespace".to_owned())?;
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
            .doing(|| "keep mounts to ourselves".to_owned())?;
        let tmpfs = mounts::make(
            "tmpfs",
            &Options { parameters: vec![("mode".into(), Some("0700".into()))], ..Options::default() },
        )?;
        attach(&tmpfs, &path)?;
        let mut bundle = Bundle { path, binds: Vec::new(), _made: made };
        attach(&root, &bundle.directory("rootfs")?)?;
        for (at, (bind, tree)) in start.binds.iter().zip(trees.extra).enumerate() {
            let tree = match (&bind.source, tree) {
                (BindSource::Layers { mounts: layers, path }, _) => {
                    let view = overlay::detached(layers, false)?;
                    attach(&view, &bundle.directory(&format!("layers-{at}"))?)?;
                    let source = mounts::walk(view.as_fd(), path, ResolveFlags::empty())
                        .doing(|| format!("find the mount source {}", path.display()))?;
                    Some(mounts::clone_fd(source, BindDepth::Single).doing(|| format!("bind {}", path.display()))?)
                }
                (_, tree) => tree,
            };
            let mount = match (&bind.source, tree) {
                (BindSource::Tmpfs { size }, _) => {
                    let mut options = bind.options.clone();
                    options.extend(size.map(|size| format!("size={size}")));
                    entry(&bind.destination, "tmpfs", Path::new("tmpfs"), options)?
                }
                (_, Some(tree)) => {
                    let source = bundle.place(at, &tree)?;
                    attach(&tree, &source)?;
                    entry(&bind.destination, "bind", &source, bind_options(&bind.options))?
                }
                (_, None) => return Err(Failure::refused("a mount without a source")),
            };
            bundle.binds.push(mount);
        }
        Ok(bundle)
    }

    fn directory(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.path.join(name);
        fs::create_dir(&path).doing(|| format!("create {}", path.display()))?;
        Ok(path)
    }

    /// Something of the kind of `tree`, to mount it on.
    fn place(&self, at: usize, tree: &OwnedFd) -> Result<PathBuf, Failure> {
        let name = format!("mount-{at}");
        if mounts::kind(tree).doing(|| "look at a mount source".to_owned())?.is_dir() {
            return self.directory(&name);
        }
        let path = self.path.join(name);
        fs::write(&path, "").doing(|| format!("create {}", path.display()))?;
        Ok(path)
    }

    fn write(&self, name: &str, value: &impl serde::Serialize) -> Result<(), Failure> {
        write(&self.path.join(name), value)
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // With all that is mounted in it; what resists goes with this process.
        let _ = unmount(&self.path, UnmountFlags::DETACH);
    }
}

fn write(path: &Path, value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_vec(value).map_err(|error| Failure::refused(error.to_string()))?;
    fs::write(path, text).doing(|| format!("write {}", path.display()))
}

fn attach(tree: &OwnedFd, path: &Path) -> Result<(), Failure> {
    use rustix::fs::{Mode, OFlags};
    let action = || format!("mount {}", path.display());
    let target = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).doing(action)?;
    mounts::attach(tree, target.as_fd()).doing(action)
}

fn entry(destination: &Path, kind: &str, source: &Path, options: Vec<String>) -> Result<Mount, Failure> {
    MountBuilder::default()
        .destination(destination)
        .typ(kind)
        .source(source)
        .options(options)
        .build()
        .map_err(|error| Failure::refused(error.to_string()))
}

/// Ours say with one word what a runtime takes two for: a bind, and read-only all the way down.
fn bind_options(ours: &[String]) -> Vec<String> {
    let has = |name: &str| ours.iter().any(|option| option == name);
    let mut options: Vec<String> = ours.iter().filter(|option| *option != WRITABLE_BELOW).cloned().collect();
    if !has("bind") && !has("rbind") {
        options.push("bind".to_owned());
    }
    if has("ro") && has("rbind") && !has(WRITABLE_BELOW) {
        options.push("rro".to_owned());
    }
    if !["private", "rprivate", "slave", "rslave", "shared", "rshared"].iter().any(|name| has(name)) {
        options.push("rprivate".to_owned());
    }
    options
}

/// The request as the specification of the runtime has it.
fn describe(start: &Start, bundle: &Bundle, network: Option<&OwnedFd>) -> Result<Spec, Failure> {
    let refused = |error: oci_spec::OciSpecError| Failure::refused(error.to_string());
    let mut spec = start.spec.clone();
    let read_only = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    let root = RootBuilder::default().path(bundle.path.join("rootfs")).readonly(read_only).build();
    spec.set_root(Some(root.map_err(refused)?));
    let mut all = spec.mounts().clone().unwrap_or_default();
    all.extend(bundle.binds.iter().cloned());
    spec.set_mounts(Some(all));
    if let Some(linux) = spec.linux_mut() {
        let mut namespaces = linux.namespaces().clone().unwrap_or_default();
        namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Network);
        let own = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Network);
        match (&start.net, network) {
            (Net::Host, _) => {}
            (Net::Joined(_), Some(fd)) => namespaces.push(own.path(path_of(fd)).build().map_err(refused)?),
            _ => namespaces.push(own.build().map_err(refused)?),
        }
        linux.set_namespaces(Some(namespaces));
        linux.set_cgroups_path(Some(Path::new("/").join(&start.cgroup)));
    }
    Ok(spec)
}

/// By which another process finds a descriptor of this one.
fn path_of(fd: &OwnedFd) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/{}/fd/{}", getpid().as_raw_nonzero(), fd.as_raw_fd()))
}

/// What the container's process reads and writes.
enum Streams {
    Three([OwnedFd; 3]),
    Terminal { rows: u16, columns: u16 },
}

impl Streams {
    fn take(stdio: &[Stream; 3], fds: &mut Fds) -> Result<Streams, Failure> {
        if let Stream::Terminal { rows, columns } = stdio[0] {
            return Ok(Streams::Terminal { rows, columns });
        }
        let mut take = |stream: &Stream| match stream {
            Stream::Fd(place) => fds.take(*place),
            Stream::Null | Stream::Terminal { .. } => {
                use rustix::fs::{Mode, OFlags};
                rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
                    .doing(|| "open /dev/null".to_owned())
            }
        };
        let [stdin, stdout, stderr] = stdio;
        Ok(Streams::Three([take(stdin)?, take(stdout)?, take(stderr)?]))
    }

    fn tell(&self, process: &mut Process) {
        process.set_terminal(Some(matches!(self, Streams::Terminal { .. })));
        if let Streams::Terminal { rows, columns } = self
            && *rows > 0
        {
            let size = BoxBuilder::default().height(u64::from(*rows)).width(u64::from(*columns)).build();
            process.set_console_size(size.ok());
        }
    }

    /// Runs the command that makes the process; `directory` is ours, and has its number in `pid` afterwards.
    fn run(self, call: &Call<'_>, mut command: Command, directory: &Path, last: &[&str]) -> Result<Inside, Failure> {
        let mut size = None;
        let mut listener = None;
        match self {
            Streams::Three([stdin, stdout, stderr]) => {
                command.stdin(stdin).stdout(stdout).stderr(stderr);
            }
            Streams::Terminal { rows, columns } => {
                size = Some(Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 });
                // By way of our own directory, since the address of a socket is short.
                rustix::process::chdir(directory).doing(|| "change to the bundle".to_owned())?;
                listener = Some(UnixListener::bind("console").doing(|| "make the console's socket".to_owned())?);
                command.arg("--console-socket");
                command.arg(format!("/proc/{}/cwd/console", getpid().as_raw_nonzero()));
            }
        }
        let ran = call.run(command.args(last));
        // With it go our ends of the container's streams.
        drop(command);
        ran?;
        let terminal = listener.map(|listener| receive_terminal(&listener)).transpose()?;
        let _ = rustix::process::chdir("/");
        if let (Some(terminal), Some(size)) = (&terminal, size.filter(|size| size.ws_row > 0)) {
            // A terminal of another size works too.
            let _ = tcsetwinsize(terminal, size);
        }
        let path = directory.join("pid");
        let text = fs::read_to_string(&path).doing(|| format!("read {}", path.display()))?;
        let unknown = || Failure::refused(format!("the runtime {} told no process", call.runtime.name));
        let pid = text.trim().parse().ok().and_then(Pid::from_raw).ok_or_else(unknown)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).doing(|| "open the container's process".to_owned())?;
        Ok(Inside { pid: pid.as_raw_nonzero().get(), pidfd, terminal })
    }
}

/// The terminal's master, which the runtime sends.
fn receive_terminal(listener: &UnixListener) -> Result<OwnedFd, Failure> {
    let action = || "receive the terminal".to_owned();
    let (socket, _) = listener.accept().doing(action)?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 4096];
    let buffer = std::io::IoSliceMut::new(&mut name);
    recvmsg(&socket, &mut [buffer], &mut ancillary, RecvFlags::CMSG_CLOEXEC).doing(action)?;
    let mut sent = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    sent.next().and_then(|mut fds| fds.next()).ok_or_else(|| Failure::refused("the runtime sent no terminal"))
}

/// One call of a runtime, and where it says what went wrong.
struct Call<'a> {
    runtime: &'a ExternalRuntime,
    verb: &'static str,
    log: PathBuf,
}

/// A line of the log.
#[derive(Deserialize)]
struct LogLine {
    #[serde(default)]
    level: String,
    msg: String,
}

impl Call<'_> {
    fn command(&self) -> Command {
        let mut command = self.runtime.command();
        command.arg("--log").arg(&self.log).args(["--log-format", "json", self.verb]);
        command
    }

    fn run(&self, command: &mut Command) -> Result<(), Failure> {
        let action = || format!("execute {}", self.runtime.program.display());
        let status = command.status().doing(action)?;
        if status.success() {
            return Ok(());
        }
        Err(self.failure(status))
    }

    fn failure(&self, status: std::process::ExitStatus) -> Failure {
        let said = self.said();
        let why = said.clone().unwrap_or_else(|| format!("{} ended without a word ({status})", self.runtime.name));
        let message = format!("OCI runtime {} failed: {why}: unknown", self.verb);
        let why = why.to_lowercase();
        let exit_code = match () {
            () if why.contains("executable file") && why.contains("not found") => 127,
            () if why.contains("exec") && why.contains("no such file or directory") && !why.contains("mount") => 127,
            () if why.contains("exec") && (why.contains("permission denied") || why.contains("exec format error")) => {
                126
            }
            () if why.contains("is a directory") => 126,
            () => return Failure::refused(message),
        };
        Failure::Exec(ExecFailure { message, exit_code })
    }

    /// The last error in the log.
    fn said(&self) -> Option<String> {
        let mut file = fs::File::open(&self.log).ok()?;
        let length = file.metadata().ok()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_END))).ok()?;
        let mut bytes = Vec::new();
        file.take(LOG_END).read_to_end(&mut bytes).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<LogLine> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let is_error = |line: &&LogLine| line.level == "error" || line.level == "fatal";
        lines.iter().rev().find(is_error).or(lines.last()).map(|line| line.msg.trim().to_owned())
    }
}

/// A process in the container that is a child of ours by now.
struct Inside {
    pid: i32,
    pidfd: OwnedFd,
    terminal: Option<OwnedFd>,
}

impl Inside {
    fn report(&self, starter: &UnixStream) {
        let fds: Vec<_> = [Some(&self.pidfd), self.terminal.as_ref()].into_iter().flatten().map(AsFd::as_fd).collect();
        // A starter that is gone is noticed next.
        let _ = wire::send(starter, &Reply::Started { pid: self.pid }, &fds);
    }

    /// Whether the starter is still there at the end.
    fn wait_for_end(&self, starter: &UnixStream) -> Result<bool, Failure> {
        Ok(wait_readable(&self.pidfd, starter)? == Side::Sandbox)
    }

    fn reap(self, cgroup: &Cgroup) -> Result<Exit, Failure> {
        drop(self.terminal);
        let ended = sys::wait4(self.pid).doing(|| "wait for the container".to_owned())?;
        Ok(Exit {
            code: libc::WIFEXITED(ended.status).then(|| libc::WEXITSTATUS(ended.status)),
            signal: libc::WIFSIGNALED(ended.status).then(|| libc::WTERMSIG(ended.status)),
            oom: cgroup.oom_kills() > 0,
            peak_memory: cgroup.peak_memory().or(Some(ended.peak_memory)),
            cpu: cgroup.cpu_time().unwrap_or(Duration::from_nanos(ended.cpu_nanoseconds)),
        })
    }
}

/// Has the runtime forget the container, however our work ends.
struct Deleted<'a> {
    runtime: &'a ExternalRuntime,
    id: &'a str,
}

impl Drop for Deleted<'_> {
    fn drop(&mut self) {
        let _ = self.runtime.command().args(["delete", "--force", self.id]).stderr(ChildStdio::null()).status();
    }
}

/// A directory that goes with this value.
struct Temporary(PathBuf);

impl Temporary {
    fn new(path: PathBuf) -> Result<Temporary, Failure> {
        fs::create_dir_all(&path).doing(|| format!("create {}", path.display()))?;
        Ok(Temporary(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
