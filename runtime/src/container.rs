//! A container at run time: what its monitor is given, the state it keeps on disk, and the ways to reach it.
//!
//! A container's directory holds `lock`, `state.json`, `log` and `socket`. `lock` is locked by the monitor for as
//! long as the container runs; that lock, and nothing written anywhere, is what "running" means, so a killed monitor
//! needs no repair. `state.json` is replaced as a whole at each change, by the monitor only.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use oci_spec::runtime::{LinuxResources, LinuxSeccomp, MountBuilder, Process, Spec};
use rbuild_store::{EventJournal, Mounts, Root, Walk};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ids::IdMaps;
use crate::logs::{LogTerms, Stream};
use crate::monitor::wire::{Frame, Hello};
use crate::network::{BridgeOptions, Endpoint, PortBinding, PortRequest, Wish};
use crate::sandbox::{
    CgroupSpec, EnterSpec, EtcFiles, ExternalRuntime, ExternalSandbox, ExtraMount, MountSource, NativeSandbox, Network,
    ProcessSpec, Sandbox, SandboxOptions, Seccomp, Stdio, Upper, UserIds,
};

/// Everything a monitor needs to run a container: a [`ProcessSpec`] in a form that crosses to another process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub id: String,
    /// As others call it.
    pub name: String,
    /// The container's own directory.
    pub directory: PathBuf,
    pub spec: Spec,
    pub rootfs: Mounts,
    /// Whether the writable layer is worthless after a power cut.
    pub volatile: bool,
    /// See [`ProcessSpec::stub_dir`].
    pub stub_dir: PathBuf,
    pub network: ContainerNetwork,
    /// What the namespace handed over is attached to, in the order of its interfaces; nothing for one that is another
    /// container's.
    pub connections: Vec<Connection>,
    /// Ports of the first connection that has a way out.
    pub publish: Vec<PortRequest>,
    /// Who is asked for names that no neighbour has.
    pub name_servers: Vec<IpAddr>,
    pub hosts: Option<PathBuf>,
    pub hostname: Option<PathBuf>,
    pub resolv_conf: Option<PathBuf>,
    /// Mounted after what `spec` names: memory first, the others in this order.
    pub mounts: Vec<InsideMount>,
    /// Size of the terminal, if it has one.
    pub terminal: Option<(u16, u16)>,
    pub stdin: Input,
    pub cgroup_parent: Option<PathBuf>,
    pub seccomp: SeccompChoice,
    /// See [`ProcessSpec::init`].
    #[serde(default)]
    pub init: bool,
    /// What the user namespace maps that is handed over beside this value, if the container has one.
    #[serde(default)]
    pub ids: Option<IdMaps>,
    /// Who makes the sandbox, where it is not this program.
    #[serde(default)]
    pub runtime: Option<ExternalRuntime>,
    /// How its output is kept; `None` keeps none.
    pub log: Option<LogTerms>,
    /// How its health is found out, if it is.
    #[serde(default)]
    pub health: Option<Box<HealthProbe>>,
    #[serde(default)]
    pub restart: RestartPolicy,
    /// The signal that asks its program to end, where it is not the usual one.
    #[serde(default)]
    pub stop_signal: Option<i32>,
    pub helper: PathBuf,
    pub state_dir: PathBuf,
    /// What is told of its life, and where; `None` tells nobody.
    #[serde(default)]
    pub told: Option<Told>,
}

/// What the events of a container's life say of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Told {
    pub journal: EventJournal,
    /// Its image and labels.
    pub attributes: BTreeMap<String, String>,
    pub volumes: Vec<ToldVolume>,
}

/// A volume that is mounted while the container lives.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ToldVolume {
    pub name: String,
    pub destination: String,
    pub read_only: bool,
}

/// Whether a container is started again after its program ended. One that a command stopped or killed never is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum RestartPolicy {
    #[default]
    Never,
    Always,
    /// As `Always`; they differ after the machine was started anew.
    UnlessStopped,
    /// After an exit status other than 0, at most so many times (0: without limit).
    OnFailure {
        most: u32,
    },
}

/// A program that is run inside again and again, and says by its exit status whether the container does its work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HealthProbe {
    pub exec: ExecSpec,
    /// From the end of one probe to the beginning of the next.
    pub interval: Duration,
    /// After which a probe is killed and has failed.
    pub timeout: Duration,
    /// While the container is this young failures do not count.
    pub start_period: Duration,
    /// The interval within the start period.
    pub start_interval: Duration,
    /// Failures in a row that make the container unhealthy.
    pub retries: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ContainerNetwork {
    Host,
    None,
    /// A namespace handed over beside this value.
    Attached,
}

/// A container's place in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// The network's id and name.
    pub network: String,
    pub network_name: String,
    /// Names one connection of one container.
    pub endpoint_id: String,
    /// The names by which others in the network find the container; none where names are not resolved.
    pub names: Vec<String>,
    /// Names that only this container knows, to the ids of containers in the network.
    #[serde(default)]
    pub links: BTreeMap<String, String>,
    pub endpoint: Endpoint,
}

/// One more network for a running container; the fields of a [`Connection`] that is to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Joining {
    pub network: String,
    pub network_name: String,
    pub endpoint_id: String,
    pub names: Vec<String>,
    pub links: BTreeMap<String, String>,
    pub bridge: BridgeOptions,
    pub wish: Wish,
}

/// What can change about a running container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Change {
    Join(Box<Joining>),
    /// By the network's id.
    Leave {
        network: String,
    },
    /// The container's name, by which its neighbours find it.
    Rename {
        from: String,
        to: String,
    },
    Terms(Box<NewTerms>),
}

/// On which terms a container lives from now on; `None` leaves what is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct NewTerms {
    /// All its limits.
    pub resources: Option<LinuxResources>,
    pub restart: Option<RestartPolicy>,
}

/// Something at a place inside.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InsideMount {
    /// A path of the host's, or of a volume.
    pub source: Option<PathBuf>,
    /// In place of it a tree of layers; without both it is memory.
    #[serde(default)]
    pub layers: Option<Mounts>,
    /// Of either only this path, in which links lead nowhere else.
    #[serde(default)]
    pub subpath: Option<PathBuf>,
    pub destination: PathBuf,
    pub options: Vec<String>,
}

/// What the process reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// Nothing.
    Closed,
    /// What is attached; it ends with the first one's.
    Once,
    /// What is attached, now and later.
    Open,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum SeccompChoice {
    Default,
    Unconfined,
    Profile(Box<LinuxSeccomp>),
}

impl From<SeccompChoice> for Seccomp {
    fn from(choice: SeccompChoice) -> Self {
        match choice {
            SeccompChoice::Default => Seccomp::Default,
            SeccompChoice::Unconfined => Seccomp::Unconfined,
            SeccompChoice::Profile(profile) => Seccomp::Profile(profile),
        }
    }
}

impl ContainerSpec {
    pub(crate) fn sandbox(&self) -> Result<Box<dyn Sandbox>> {
        sandbox(self.sandbox_options(), self.runtime.as_ref())
    }

    pub(crate) fn sandbox_options(&self) -> SandboxOptions {
        SandboxOptions { helper: self.helper.clone(), state_dir: self.state_dir.clone() }
    }

    pub(crate) fn cgroup(&self) -> CgroupSpec {
        CgroupSpec { parent: self.cgroup_parent.clone() }
    }

    /// The sandbox's own form, with the sources of the binds opened.
    pub(crate) fn process_spec(&self, Handles { user, network: namespace }: Handles) -> Result<ProcessSpec> {
        let network = match (&self.network, namespace) {
            (ContainerNetwork::Host, _) => Network::Host,
            (ContainerNetwork::None, _) => Network::None,
            (ContainerNetwork::Attached, Some(fd)) => Network::Namespace(Arc::new(fd)),
            (ContainerNetwork::Attached, None) => {
                return Err(Error::Refused("a container with a network was given none".to_owned()));
            }
        };
        let ids = match (self.ids.clone(), user) {
            (Some(maps), Some(fd)) => Some(UserIds { maps, namespace: Arc::new(fd) }),
            (None, _) => None,
            (Some(_), None) => return Err(Error::Refused("a container with its own users was given none".to_owned())),
        };
        let stdio = match (self.terminal, self.stdin) {
            (Some((rows, columns)), _) => Stdio::Terminal { rows, columns },
            (None, Input::Closed) => Stdio::Output,
            (None, _) => Stdio::Pipes,
        };
        let mut spec = self.spec.clone();
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        for mount in self.mounts.iter().filter(|mount| mount.source.is_none() && mount.layers.is_none()) {
            let tmpfs = MountBuilder::default()
                .destination(&mount.destination)
                .typ("tmpfs")
                .source("tmpfs")
                .options(mount.options.clone())
                .build();
            mounts.push(tmpfs.map_err(|e| Error::Refused(e.to_string()))?);
        }
        spec.set_mounts(Some(mounts));
        Ok(ProcessSpec {
            id: self.id.clone(),
            spec,
            rootfs: self.rootfs.clone(),
            upper: if self.volatile { Upper::Volatile } else { Upper::Durable },
            stub_dir: self.stub_dir.clone(),
            network,
            etc: EtcFiles {
                hosts: self.hosts.clone(),
                hostname: self.hostname.clone(),
                resolv_conf: self.resolv_conf.clone(),
            },
            mounts: self.mounts.iter().filter_map(|m| m.open().transpose()).collect::<Result<_>>()?,
            stdio,
            cgroup: self.cgroup(),
            seccomp: self.seccomp.clone().into(),
            init: self.init,
            ids,
        })
    }
}

/// Namespaces that a container is given.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    pub(crate) user: Option<OwnedFd>,
    pub(crate) network: Option<OwnedFd>,
}

impl Handles {
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        let again = |fd: &Option<OwnedFd>| fd.as_ref().map(OwnedFd::try_clone).transpose();
        Ok(Self { user: again(&self.user)?, network: again(&self.network)? })
    }
}

/// What makes sandboxes: this program, or the runtime that is named.
pub(crate) fn sandbox(options: SandboxOptions, runtime: Option<&ExternalRuntime>) -> Result<Box<dyn Sandbox>> {
    let native = NativeSandbox::new(options)?;
    Ok(match runtime {
        Some(runtime) => Box::new(ExternalSandbox::new(native, runtime.clone())),
        None => Box::new(native),
    })
}

impl InsideMount {
    /// What a sandbox is given to mount; `None` for memory.
    ///
    /// # Errors
    /// The source cannot be opened.
    pub fn open(&self) -> Result<Option<ExtraMount>> {
        if let Some(layers) = &self.layers {
            let path = self.subpath.clone().unwrap_or_else(|| PathBuf::from("/"));
            return Ok(Some(ExtraMount {
                destination: self.destination.clone(),
                source: MountSource::Layers { mounts: layers.clone(), path },
                options: self.options.clone(),
            }));
        }
        let Some(source) = &self.source else { return Ok(None) };
        let fd = rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| Error::system(format!("mount {}", source.display()), e))?;
        let fd = match &self.subpath {
            Some(subpath) => Root::from_fd(fd)
                .and_then(|root| root.walk(subpath, Walk::InRoot))
                .map_err(|e| Error::system(format!("access path {} of {}", subpath.display(), source.display()), e))?,
            None => fd,
        };
        Ok(Some(ExtraMount {
            destination: self.destination.clone(),
            source: MountSource::Opened(fd),
            options: self.options.clone(),
        }))
    }
}

/// One more process for a running container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecSpec {
    pub id: String,
    pub process: Process,
    pub terminal: Option<(u16, u16)>,
    pub stdin: bool,
    pub cgroup_parent: Option<PathBuf>,
    pub seccomp: SeccompChoice,
    /// Who made the container's sandbox, where it was not this program.
    #[serde(default)]
    pub runtime: Option<ExternalRuntime>,
    /// Names it in what is told of it.
    #[serde(default)]
    pub exec_id: String,
    /// What the container's own user namespace maps.
    #[serde(default)]
    pub ids: Option<IdMaps>,
}

impl ExecSpec {
    pub(crate) fn enter_spec(&self, target: OwnedFd, stdio: Stdio) -> EnterSpec {
        EnterSpec {
            target,
            id: self.id.clone(),
            cgroup: CgroupSpec { parent: self.cgroup_parent.clone() },
            process: self.process.clone(),
            seccomp: self.seccomp.clone().into(),
            stdio,
            ids: self.ids.clone(),
        }
    }
}

/// Why a process was not started, as it crosses from a monitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartFailure {
    pub message: String,
    /// 126 or 127 when the program inside could not be executed; `None` for every other reason.
    pub exit_code: Option<u8>,
}

impl From<&Error> for StartFailure {
    fn from(error: &Error) -> Self {
        let exit_code = match error {
            Error::Exec(failure) => Some(failure.exit_code),
            _ => None,
        };
        Self { message: error.to_string(), exit_code }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The exit status, or 128 and the signal.
    pub status: i32,
    pub oom: bool,
}

/// What the monitor wrote last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// RFC 3339; `None` when it never ran.
    pub started: Option<String>,
    /// RFC 3339; `None` while it runs, and when its monitor was killed.
    pub finished: Option<String>,
    pub pid: i32,
    pub exit_code: i32,
    pub oom: bool,
    /// Why it could not be started.
    pub error: String,
    /// Where it is attached while it runs.
    #[serde(default)]
    pub connections: Vec<Connection>,
    /// What is published while it runs.
    #[serde(default)]
    pub ports: Vec<PortBinding>,
    /// It ended and is about to be started again.
    #[serde(default)]
    pub restarting: bool,
    /// A command asked for its end.
    #[serde(default)]
    pub stopped: bool,
    /// How often it was started again since a command started it.
    #[serde(default)]
    pub restarts: u32,
    /// `None` when its health is not checked.
    #[serde(default)]
    pub health: Option<Health>,
}

/// What the probes of a container's health add up to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    pub status: HealthStatus,
    /// Failures in a row.
    pub failing_streak: u32,
    /// The last results, oldest first.
    pub log: Vec<ProbeResult>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    #[default]
    Starting,
    Healthy,
    Unhealthy,
}

impl HealthStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            HealthStatus::Starting => "starting",
            HealthStatus::Healthy => "healthy",
            HealthStatus::Unhealthy => "unhealthy",
        }
    }
}

/// One probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeResult {
    /// RFC 3339.
    pub start: String,
    pub end: String,
    /// -1 when it could not be run, or was killed for taking too long.
    pub exit_code: i32,
    /// The beginning of its output.
    pub output: String,
}

impl State {
    /// The state in a container's directory; a container without one was never started. A damaged file is the same.
    pub fn read(directory: &Path) -> State {
        fs::read(directory.join("state.json"))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    /// Replaces the state as a whole. Not flushed: after a power cut no container runs, whatever this file says.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        let aside = directory.join("state.json.new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(aside, directory.join("state.json"))
    }
}

/// The lock that is held while a container runs, or is being started, changed or removed.
#[derive(Debug)]
pub struct ContainerLock(File);

impl ContainerLock {
    /// Takes the lock at once or not at all. Whoever asks [`is_locked`] has it for some microseconds, so "at once" is a few
    /// milliseconds.
    pub fn try_take(directory: &Path) -> io::Result<Option<Self>> {
        let file = lock_file(directory)?;
        for _ in 0..20 {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // Locked when it was removed already: then there is nothing left to lock.
                Ok(()) if rustix::fs::fstat(&file)?.st_nlink == 0 => return Err(io::ErrorKind::NotFound.into()),
                Ok(()) => return Ok(Some(Self(file))),
                Err(rustix::io::Errno::WOULDBLOCK) => thread::sleep(Duration::from_millis(1)),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Waits for the lock, at most so long.
    pub fn take_within(directory: &Path, patience: Duration) -> io::Result<Option<Self>> {
        let until = Instant::now() + patience;
        loop {
            match Self::try_take(directory)? {
                None if Instant::now() < until => {}
                other => return Ok(other),
            }
        }
    }

    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self(fd.into())
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0.into()
    }
}

/// Whether somebody holds the container's lock.
pub fn is_locked(directory: &Path) -> bool {
    let Ok(file) = File::open(directory.join("lock")) else { return false };
    flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
}

fn lock_file(directory: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(directory.join("lock"))
}

/// The address of a container's socket, short whatever the length of the store's path: through an open directory.
pub(crate) fn socket_address(directory: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let fd = rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/socket", fd.as_raw_fd()));
    Ok((fd, path))
}

/// What an attached process tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attached {
    Started { pid: i32 },
    Failed(StartFailure),
    Output(Stream, Vec<u8>),
    Ended(Ended),
}

/// A connection to a process's streams. Dropping it detaches.
#[derive(Debug)]
pub struct Attachment {
    socket: UnixStream,
}

impl Attachment {
    pub(crate) fn new(socket: UnixStream) -> Self {
        Self { socket }
    }

    /// Attaches to a running container; `None` when it has no monitor that listens.
    pub fn to(directory: &Path, stdin: bool, output: bool) -> io::Result<Option<Self>> {
        match connect(directory, Hello::Attach { stdin, output }) {
            Ok(socket) => Ok(Some(Self { socket })),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What comes next; `None` when the other side is gone without a word.
    pub fn next_event(&mut self) -> io::Result<Option<Attached>> {
        loop {
            let frame = match Frame::receive(&mut self.socket) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                other => other?,
            };
            return Ok(Some(match frame {
                None => return Ok(None),
                Some(Frame::Started { pid }) => Attached::Started { pid },
                Some(Frame::Failed(failure)) => Attached::Failed(failure),
                Some(Frame::Output(stream, bytes)) => Attached::Output(stream, bytes),
                Some(Frame::Ended(ended)) => Attached::Ended(ended),
                Some(_) => continue,
            }));
        }
    }

    /// As [`next_event`](Self::next_event), waiting at most so long (`None`: for ever) for it to begin. The outer `None` is
    /// the time that ran out.
    pub fn next_within(&mut self, patience: Option<Duration>) -> io::Result<Option<Option<Attached>>> {
        if let Some(patience) = patience {
            let timeout = Timespec {
                tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: patience.subsec_nanos().into(),
            };
            let mut poll_for = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut poll_for, Some(&timeout)) {
                Ok(0) => return Ok(None),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.next_event().map(Some)
    }

    /// The way in, usable from another thread.
    pub fn input(&self) -> io::Result<AttachedInput> {
        Ok(AttachedInput { socket: self.socket.try_clone()? })
    }
}

/// The sending half of an [`Attachment`].
#[derive(Debug)]
pub struct AttachedInput {
    socket: UnixStream,
}

impl AttachedInput {
    pub fn stdin(&mut self, bytes: &[u8]) -> io::Result<()> {
        Frame::Stdin(bytes.to_vec()).send(&mut self.socket)
    }

    /// The input is at its end.
    pub fn stdin_end(&mut self) -> io::Result<()> {
        Frame::StdinEnd.send(&mut self.socket)
    }

    pub fn resize(&mut self, rows: u16, columns: u16) -> io::Result<()> {
        Frame::Resize { rows, columns }.send(&mut self.socket)
    }

    pub fn signal(&mut self, signal: i32) -> io::Result<()> {
        Frame::Signal(signal).send(&mut self.socket)
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { socket: self.socket.try_clone()? })
    }

    /// Ends the connection for both halves: the reader sees its end.
    pub fn detach(&self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

/// Connects to the container's monitor and says what for.
///
/// # Errors
/// `NotFound` and `ConnectionRefused` when there is no monitor that listens; one that ends before it has listened to us is none.
pub(crate) fn connect(directory: &Path, hello: Hello) -> io::Result<UnixStream> {
    let (_directory, address) = socket_address(directory)?;
    let mut socket = UnixStream::connect(address)?;
    match Frame::Hello(hello).send(&mut socket) {
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
            Err(io::ErrorKind::ConnectionRefused.into())
        }
        sent => sent.map(|()| socket),
    }
}
