//! Makes the operations of a build graph real.
//!
//! For each kind of operation there is one file that says how it is cached and one way to run it. Results are
//! [`Value`]s, nearly always snapshots in the store; the solver moves them about without knowing what they are.
//!
//! No operation resolves an image's name, reads a user's directory it was not lent, or decides what may run with which
//! powers: that comes in through [`Session`], [`Images`] and [`ExecSettings`], which the engine makes.

mod error;
pub mod files;
mod lazy;
mod mounts;
mod ops;
mod session;
pub mod sources;
mod value;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rbuild_graph::Vertex;
use rbuild_graph::ops::{FileOp, Network, Op, SourceOp};
use rbuild_registry::Client;
use rbuild_runtime::Sandbox;
use rbuild_runtime::network::Pool;
use rbuild_solver::{OpError, OpFactory, RunOp};
use rbuild_store::{Lease, Store};

use lazy::Brought;

pub use ops::devices::{DeviceGrants, DeviceSettings};
pub use ops::unpack::{starts_tar, unpack_into};

pub use error::{ExecutorError, ProcessStatus};
pub use lazy::{Lazy, RemoteTree, brought};
pub use mounts::{ContextCopies, cache_objects};
pub use session::{AgentStream, Images, PinnedImage, Secret, Session};
pub use value::{Context, Value};

/// What makes the operations of one build real.
pub struct Executor {
    pub store: Store,
    /// Keeps what the build makes until it is named.
    pub lease: Lease,
    pub sandbox: Arc<dyn Sandbox>,
    pub networks: Pool,
    pub session: Arc<dyn Session>,
    pub copies: ContextCopies,
    pub images: Arc<dyn Images>,
    /// What fetches files from the web.
    pub web: Client,
    /// What fetches from git repositories, where it is installed.
    pub git: Option<sources::git::GitOptions>,
    pub settings: ExecSettings,
}

/// What the caller of the build decided about its processes.
#[derive(Debug, Clone)]
pub struct ExecSettings {
    /// What `--network=default` means: [`Network::Host`] when the caller said so.
    pub default_network: Network,
    /// Whether a Dockerfile may ask for the host's network.
    pub allow_host_network: bool,
    /// Whether a Dockerfile may ask for processes that are not confined.
    pub allow_insecure: bool,
    /// Devices that a Dockerfile may ask for.
    pub devices: DeviceSettings,
    /// Processes one step may have at a time.
    pub pids_limit: Option<i64>,
    /// What one step may use at most. Part of no key: a limit does not say what to make.
    pub limits: ResourceLimits,
    /// The host's `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// The address that `host-gateway` stands for.
    pub host_gateway: String,
}

/// What the processes of one step may use; `None` is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResourceLimits {
    /// Bytes.
    pub memory: Option<i64>,
    /// Bytes of memory and swap together; -1 is without limit. Not said, it is twice the memory.
    pub memory_swap: Option<i64>,
    /// Weight against others; 1024 is usual.
    pub cpu_shares: Option<u64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
    /// Microseconds of processor time in each period; -1 is without limit.
    pub cpu_quota: Option<i64>,
    /// Processors, such as `0-2,7`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes.
    pub cpuset_mems: Option<String>,
}

impl Executor {
    /// How the solver gets from vertices to operations.
    pub fn factory(self: &Arc<Self>) -> OpFactory<Value> {
        let executor = self.clone();
        Arc::new(move |vertex: &Vertex| {
            let operation = executor.operation(&vertex.op)?;
            Ok(if vertex.inputs.is_empty() { operation } else { Arc::new(Brought(operation)) })
        })
    }

    /// Whether an operation may do what it asks for; nothing runs. Asked of every step before the first one runs, so
    /// that a build that cannot succeed does nothing.
    ///
    /// # Errors
    /// A privilege or a device that the caller did not allow, or a device that is not there.
    pub fn permits(&self, op: &Op) -> Result<(), ExecutorError> {
        match op {
            Op::Exec(op) => ops::exec::permits(&self.settings, op).map(drop),
            _ => Ok(()),
        }
    }

    fn operation(self: &Arc<Self>, op: &Op) -> Result<Arc<dyn RunOp<Value>>, OpError> {
        let executor = self.clone();
        let unsupported = |what: &str| -> Result<Arc<dyn RunOp<Value>>, OpError> {
            Err(Arc::new(ExecutorError::Unsupported { what: what.to_owned() }))
        };
        match op {
            Op::Source(SourceOp::Image(source)) => {
                Ok(Arc::new(ops::source::ImageRun { executor, source: source.clone() }))
            }
            Op::Source(SourceOp::Context(source)) => {
                Ok(Arc::new(ops::source::ContextRun { executor, source: source.clone() }))
            }
            Op::Source(SourceOp::Http(source)) => Ok(Arc::new(ops::http::HttpRun::new(executor, source.clone()))),
            Op::Source(SourceOp::Git(source)) => Ok(Arc::new(ops::git::GitRun::new(executor, source.clone()))),
            Op::Source(_) => unsupported("this kind of source"),
            Op::Exec(op) => Ok(Arc::new(ops::exec::ExecRun::new(executor, op.clone()))),
            Op::File(op) => self.file_operation(op),
            Op::Merge(op) => Ok(Arc::new(ops::merge::MergeRun { executor, op: op.clone() })),
            Op::Diff(_) => unsupported("taking file trees from each other"),
            _ => unsupported("this kind of operation"),
        }
    }

    fn file_operation(self: &Arc<Self>, op: &FileOp) -> Result<Arc<dyn RunOp<Value>>, OpError> {
        Ok(Arc::new(ops::file::FileRun::new(self.clone(), op.clone())))
    }

    /// An open directory with nothing in it: what the empty file tree looks like.
    pub(crate) fn empty_directory(&self) -> Result<OwnedFd, ExecutorError> {
        use rustix::fs::{Mode, OFlags};
        let path = self.lease.ingest_path("empty")?;
        let make = || -> rustix::io::Result<OwnedFd> {
            rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755))?;
            rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        };
        make().map_err(|errno| ExecutorError::Start(format!("cannot make an empty directory: {errno}")))
    }

    /// The name servers a process gets: the host's, save those that only answer on the host's own loopback.
    pub(crate) fn resolv_conf(&self, network: Network) -> String {
        let host = network == Network::Host || self.settings.default_network == Network::Host;
        if host { self.settings.resolv_conf.clone() } else { without_loopback(&self.settings.resolv_conf) }
    }
}

/// A server that listens on the host's loopback cannot be reached from another network namespace. When none is left,
/// a public one is better than nothing (docker's rule).
fn without_loopback(text: &str) -> String {
    let is_loopback = |line: &str| {
        let mut words = line.split_whitespace();
        words.next() == Some("nameserver") && words.next().is_some_and(|at| at.starts_with("127.") || at == "::1")
    };
    let mut kept: String = text.lines().filter(|line| !is_loopback(line)).flat_map(|line| [line, "\n"]).collect();
    if !kept.lines().any(|line| line.trim_start().starts_with("nameserver")) {
        kept.push_str("nameserver 8.8.8.8\nnameserver 8.8.4.4\n");
    }
    kept
}

/// Does work that takes a while on a thread made for that.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ExecutorError> + Send + 'static,
) -> Result<T, OpError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| Arc::new(error) as OpError),
        Err(stopped) => match stopped.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Arc::new(ExecutorError::Cancelled("the build was cancelled"))),
        },
    }
}
