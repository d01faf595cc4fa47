//! RUN as the solver sees it.
//!
//! **In the key:** arguments, each variable of the environment, working directory, user, hostname, network mode,
//! security mode, extra hosts, each mount with its options, devices (see [`super::devices`]); the root file system by its own
//! key; what bind mounts show, by content where they are read-only.
//! **Left out:** proxy variables (they say how to reach the world, not what to make), limits (shared memory, ulimits,
//! cgroup), values of secrets and keys of ssh agents (they must never be written down), the content of cache mounts (that
//! is their point), the name shown for the step and where in the Dockerfile it stands.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, PosixRlimitBuilder, PosixRlimitType, Spec, UserBuilder,
};
use rbuild_graph::ops::{ExecOp, ExtraHost, MountKind, Network, Security, Ulimit};
use rbuild_runtime::{
    CgroupSpec, EtcFiles, Exit, Network as Attach, ProcessSpec, Running, Seccomp, Stdio, Upper, default_spec,
    mount_detached, users,
};
use rbuild_solver::{
    ContentHash, InputContent, InputKey, KeyPart, KeySpec, LogStream, OpError, Ran, RunContext, RunOp, Usage,
};
use rbuild_store::{Active, Mounts, Root};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::devices::{self, Granted};
use super::source::fail;
use crate::error::ProcessStatus;
use crate::files::select::Selected;
use crate::mounts;
use crate::{ExecSettings, Executor, ExecutorError, ResourceLimits, Value};

/// The path of a process whose image names none (BuildKit's default).
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How often a silent step looks whether somebody gave up on it, in milliseconds.
const CANCEL_CHECK: i64 = 50;
/// How much of the end of a step's output a failure keeps, in bytes.
const TAIL: usize = 16 << 10;
/// A file system with less free than this, in bytes, is full.
const ALMOST_NOTHING: u64 = 1 << 20;

pub(crate) struct ExecRun {
    pub(crate) executor: Arc<Executor>,
    pub(crate) op: ExecOp,
    /// For each bind mount of a build context, what `content` hashed: exactly that is shown.
    selections: Mutex<HashMap<usize, (Selected, ContentHash)>>,
}

impl RunOp<Value> for ExecRun {
    fn key(&self) -> BoxFuture<'_, Result<KeySpec, OpError>> {
        let ready = self.key_spec().map_err(fail);
        futures::future::ready(ready).boxed()
    }

    fn content(&self, input: usize, value: &Value) -> BoxFuture<'_, Result<InputContent, OpError>> {
        let mounts = self.op.mounts.iter().enumerate().filter(|(_, mount)| mount.input == Some(input));
        let (numbers, selectors): (Vec<usize>, Vec<Vec<u8>>) =
            mounts.map(|(n, mount)| (n, mount.selector.clone().unwrap_or_default())).unzip();
        let value = value.clone();
        let executor = self.executor.clone();
        async move {
            let lent = matches!(value, Value::Context(_));
            let (content, selected) =
                crate::blocking(move || super::file::content_of(&executor, &value, &selectors)).await?;
            if lent {
                self.selections
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend(numbers.into_iter().zip(selected));
            }
            Ok(content)
        }
        .boxed()
    }

    fn run(&self, inputs: Vec<Value>, context: RunContext) -> BoxFuture<'_, Result<Ran<Value>, OpError>> {
        let selections = std::mem::take(&mut *self.selections.lock().unwrap_or_else(PoisonError::into_inner));
        let (executor, op) = (self.executor.clone(), self.op.clone());
        crate::blocking(move || run(&executor, &op, &inputs, selections, &context)).boxed()
    }
}

impl ExecRun {
    pub(crate) fn new(executor: Arc<Executor>, op: ExecOp) -> ExecRun {
        ExecRun { executor, op, selections: Mutex::default() }
    }

    fn key_spec(&self) -> Result<KeySpec, ExecutorError> {
        let op = &self.op;
        let mut parts = vec![KeyPart::text("op", "exec")];
        parts.push(KeyPart::text("command", json(&op.args)?));
        for variable in &op.env {
            let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
            parts.push(KeyPart::text(format!("env {name}"), value));
        }
        parts.push(KeyPart::text("directory", &op.cwd));
        parts.push(KeyPart::text("user", &op.user));
        if let Some(hostname) = &op.hostname {
            parts.push(KeyPart::text("hostname", hostname));
        }
        parts.push(KeyPart::text("network", json(&op.network)?));
        parts.push(KeyPart::text("security", json(&op.security)?));
        for host in &op.extra_hosts {
            parts.push(KeyPart::text(format!("host {}", host.host), &host.address));
        }
        for mount in &op.mounts {
            let name = format!("mount {}", String::from_utf8_lossy(&mount.target));
            parts.push(KeyPart::text(name, json(mount)?));
        }
        for device in devices::grant(&self.executor.settings.devices, &op.devices)?.names {
            parts.push(KeyPart::text("device", device));
        }
        if !op.valid_exit_codes.is_empty() {
            parts.push(KeyPart::text("valid exit codes", json(&op.valid_exit_codes)?));
        }
        let mut spec = KeySpec::new(parts);
        let count = op.mounts.iter().filter_map(|mount| mount.input).max().map_or(0, |highest| highest + 1);
        spec.inputs = (0..count)
            .map(|input| {
                let mounts: Vec<_> = op.mounts.iter().filter(|mount| mount.input == Some(input)).collect();
                // What is written to a bind or a cache is no result, so what they begin as is all that counts.
                let by_content = mounts
                    .iter()
                    .all(|m| m.output.is_none() && matches!(m.kind, MountKind::Bind | MountKind::Cache { .. }));
                let selector = mounts.iter().find_map(|mount| mount.selector.as_ref());
                InputKey { selector: selector.map(|path| String::from_utf8_lossy(path).into_owned()), by_content }
            })
            .collect();
        Ok(spec)
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, ExecutorError> {
    serde_json::to_string(value).map_err(|error| ExecutorError::Invalid(error.to_string()))
}

/// Runs the process and makes its writable mounts results.
fn run(
    executor: &Executor,
    op: &ExecOp,
    inputs: &[Value],
    selections: HashMap<usize, (Selected, ContentHash)>,
    context: &RunContext,
) -> Result<Ran<Value>, ExecutorError> {
    let devices = permits(&executor.settings, op)?;
    if op.outputs() > 1 {
        return Err(ExecutorError::Unsupported { what: "a process with several results".into() });
    }
    for name in &devices.absent {
        let message = format!("optional device {name:?} is not registered\n");
        context.events.log(context.step, LogStream::Stderr, message);
    }
    let root = op.root().ok_or_else(|| ExecutorError::Invalid("a process needs a root file system".into()))?;
    let parent = root.input.map(|input| &inputs[input]);
    let parent_id = match parent {
        None | Some(Value::Scratch) => None,
        Some(Value::Snapshot(snapshot)) => Some(snapshot.id()),
        Some(Value::Context(_)) => return Err(ExecutorError::Invalid("a build context cannot be a root".into())),
        Some(Value::Lazy(_)) => return Err(ExecutorError::not_brought()),
    };
    let active = executor.store.snapshots().prepare(&executor.lease, parent_id)?;
    let scratch = Workspace::new(executor)?;
    let workspace = &scratch.dir;
    let mut mounts = mounts::prepare(mounts::Step { executor, op, inputs, workspace, selections, context })?;
    let process = process_spec(executor, op, &mut mounts, &active, &scratch, context)?;
    let spec = with_devices(process, &devices)?;
    let running = executor.sandbox.start(spec).map_err(|error| start_error(op, error))?;
    let (exit, log_tail) = follow(running, context)?;
    drop(mounts);
    scratch.remove();
    let status = status_of(&exit);
    let ok = match status {
        ProcessStatus::Code(code) if op.valid_exit_codes.is_empty() => code == 0,
        ProcessStatus::Code(code) => op.valid_exit_codes.contains(&code),
        _ => false,
    };
    if !ok {
        let disk_full = is_full(active.upper());
        return Err(ExecutorError::Process { command: command_line(&op.args), status, log_tail, disk_full });
    }
    let usage = Usage { exit: exit.code, peak_memory: exit.peak_memory, cpu: Some(exit.cpu), ..Usage::default() };
    let snapshot = executor.store.snapshots().commit(active)?;
    let outputs = vec![Value::Snapshot(snapshot); op.outputs() as usize];
    Ok(Ran { outputs, usage })
}

/// What only the caller of a build can give a process, and the devices it gets.
pub(crate) fn permits(settings: &ExecSettings, op: &ExecOp) -> Result<Granted, ExecutorError> {
    if op.security == Security::Insecure && !settings.allow_insecure {
        return Err(ExecutorError::Invalid(
            "security.insecure is not allowed: RUN --security=insecure needs the caller's --allow security.insecure"
                .into(),
        ));
    }
    if op.network == Network::Host && !settings.allow_host_network {
        return Err(ExecutorError::Invalid(
            "network.host is not allowed: RUN --network=host needs the caller's --network=host or --allow network.host"
                .into(),
        ));
    }
    devices::grant(&settings.devices, &op.devices)
}

/// The process with what its devices need. Their mounts go with the others in the order of their places.
fn with_devices(mut process: ProcessSpec, devices: &Granted) -> Result<ProcessSpec, ExecutorError> {
    if !devices.names.is_empty() {
        let theirs = devices.inject(&mut process.spec)?;
        process.mounts = theirs.into_iter().chain(process.mounts).collect();
        process.mounts.sort_by(|a, b| a.destination.cmp(&b.destination));
    }
    Ok(process)
}

/// Files made for one process: name service files, inline scripts, the stub directory.
struct Workspace {
    dir: PathBuf,
}

impl Workspace {
    fn new(executor: &Executor) -> Result<Workspace, ExecutorError> {
        let dir = executor.lease.ingest_path("run")?;
        std::fs::create_dir(&dir).and_then(|()| std::fs::create_dir(dir.join("stub"))).map_err(local)?;
        Ok(Workspace { dir })
    }

    fn file(&self, name: &str, content: &[u8], mode: u32) -> Result<PathBuf, ExecutorError> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.dir.join(name);
        std::fs::write(&path, content).map_err(local)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).map_err(local)?;
        Ok(path)
    }

    fn stub(&self) -> PathBuf {
        self.dir.join("stub")
    }

    /// Whatever stays behind lies in the lease's directory and goes with it.
    fn remove(self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            tracing::debug!(%error, "a step's workspace stays until the lease ends");
        }
    }
}

fn local(error: std::io::Error) -> ExecutorError {
    ExecutorError::Start(format!("cannot prepare the step: {error}"))
}

fn process_spec(
    executor: &Executor,
    op: &ExecOp,
    mounts: &mut mounts::Prepared,
    active: &Active,
    scratch: &Workspace,
    context: &RunContext,
) -> Result<ProcessSpec, ExecutorError> {
    let identity = identity(executor, op, active)?;
    let network = match op.network {
        Network::Host => Attach::Host,
        Network::None => Attach::None,
        Network::Default if executor.settings.default_network == Network::Host => Attach::Host,
        Network::Default => Attach::Namespace(Arc::new(executor.networks.take().map_err(network_error)?.into_fd())),
    };
    let spec = oci_spec(executor, op, &mounts.env, &identity)?;
    let hostname = op.hostname.as_deref().unwrap_or("buildkitsandbox");
    let etc = EtcFiles {
        hosts: Some(scratch.file("hosts", hosts(executor, op, hostname).as_bytes(), 0o644)?),
        hostname: Some(scratch.file("hostname", format!("{hostname}\n").as_bytes(), 0o644)?),
        resolv_conf: Some(scratch.file("resolv.conf", executor.resolv_conf(op.network).as_bytes(), 0o644)?),
    };
    Ok(ProcessSpec {
        id: format!("{}-{:x}", executor.lease.id(), context.step.0),
        spec,
        rootfs: active.mounts()?.clone(),
        upper: Upper::Volatile,
        stub_dir: scratch.stub(),
        network,
        etc,
        mounts: std::mem::take(&mut mounts.mounts),
        stdio: Stdio::Output,
        cgroup: CgroupSpec { parent: op.cgroup_parent.as_ref().map(PathBuf::from) },
        seccomp: if op.security == Security::Insecure { Seccomp::Unconfined } else { Seccomp::Default },
        init: false,
        ids: None,
    })
}

fn network_error(error: impl std::fmt::Display) -> ExecutorError {
    ExecutorError::Start(format!("cannot set up the network: {error}"))
}

/// Who the process is, looked up in its own image.
fn identity(executor: &Executor, op: &ExecOp, active: &Active) -> Result<users::Identity, ExecutorError> {
    let view = match active.mounts()? {
        Mounts::Overlay { lowers, .. } if lowers.is_empty() => None,
        mounts => Some(mounts),
    };
    let root = match active.below() {
        Some(below) => Some(mount_detached(below)?),
        None => match view {
            Some(Mounts::Bind { source, .. }) => Some(
                rustix::fs::open(
                    source.as_path(),
                    rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
                    rustix::fs::Mode::empty(),
                )
                .map_err(|errno| local(errno.into()))?,
            ),
            _ => None,
        },
    };
    let root = match root {
        Some(fd) => fd,
        None => executor.empty_directory()?,
    };
    Ok(users::resolve(&Root::from_fd(root).map_err(local)?, &op.user)?)
}

/// `secrets` are variables for this process alone; each replaces one of the same name.
fn oci_spec(
    executor: &Executor,
    op: &ExecOp,
    secrets: &[String],
    identity: &users::Identity,
) -> Result<Spec, ExecutorError> {
    let mut env = op.env.clone();
    if !env.iter().any(|variable| variable.starts_with("PATH=")) {
        env.insert(0, DEFAULT_PATH.to_owned());
    }
    if !env.iter().any(|variable| variable.starts_with("HOME=")) {
        env.push(format!("HOME={}", identity.home));
    }
    env.extend(op.proxy_env.iter().cloned());
    for secret in secrets {
        let name = secret.split_inclusive('=').next().unwrap_or_default();
        env.retain(|variable| !variable.starts_with(name));
        env.push(secret.clone());
    }
    let user = UserBuilder::default()
        .uid(identity.uid)
        .gid(identity.gid)
        .additional_gids(identity.groups.clone())
        .build()
        .map_err(|error| ExecutorError::Invalid(error.to_string()))?;
    let mut spec = default_spec(op.args.clone(), env, &op.cwd, user);
    spec.set_hostname(Some(op.hostname.clone().unwrap_or_else(|| "buildkitsandbox".to_owned())));
    if let Some(bytes) = op.shm_size {
        rbuild_runtime::sandbox::set_shm_size(&mut spec, bytes);
    }
    set_limits(&mut spec, &op.ulimits, executor.settings.pids_limit)?;
    set_resources(&mut spec, &executor.settings.limits)?;
    if op.security == Security::Insecure {
        super::insecure::unconfine(&mut spec)?;
    }
    Ok(spec)
}

fn set_limits(spec: &mut Spec, ulimits: &[Ulimit], pids: Option<i64>) -> Result<(), ExecutorError> {
    let mut limits = Vec::new();
    for Ulimit { name, soft, hard } in ulimits {
        let kind = format!("RLIMIT_{}", name.to_ascii_uppercase());
        let kind: PosixRlimitType = serde_json::from_value(serde_json::Value::String(kind))
            .map_err(|_| ExecutorError::Invalid(format!("invalid ulimit type: {name}")))?;
        // -1 is unlimited, which is the largest number here too.
        let limit = PosixRlimitBuilder::default().typ(kind).soft(*soft as u64).hard(*hard as u64).build();
        limits.push(limit.map_err(|error| ExecutorError::Invalid(error.to_string()))?);
    }
    if let Some(process) = spec.process_mut()
        && !limits.is_empty()
    {
        process.set_rlimits(Some(limits));
    }
    if let (Some(pids), Some(linux)) = (pids, spec.linux_mut()) {
        let mut resources = linux.resources().clone().unwrap_or_default();
        let limit = LinuxPidsBuilder::default().limit(pids).build();
        resources.set_pids(Some(limit.map_err(|error| ExecutorError::Invalid(error.to_string()))?));
        linux.set_resources(Some(resources));
    }
    Ok(())
}

fn set_resources(spec: &mut Spec, limits: &ResourceLimits) -> Result<(), ExecutorError> {
    if *limits == ResourceLimits::default() {
        return Ok(());
    }
    let bad = |error: oci_spec::OciSpecError| ExecutorError::Invalid(error.to_string());
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    let mut resources = linux.resources().clone().unwrap_or_default();
    if let Some(bytes) = limits.memory {
        let swap = limits.memory_swap.unwrap_or(bytes.saturating_mul(2));
        resources.set_memory(Some(LinuxMemoryBuilder::default().limit(bytes).swap(swap).build().map_err(bad)?));
    }
    let mut cpu = LinuxCpuBuilder::default().build().map_err(bad)?;
    cpu.set_shares(limits.cpu_shares);
    cpu.set_period(limits.cpu_period);
    cpu.set_quota(limits.cpu_quota);
    cpu.set_cpus(limits.cpuset_cpus.clone());
    cpu.set_mems(limits.cpuset_mems.clone());
    resources.set_cpu(Some(cpu));
    linux.set_resources(Some(resources));
    Ok(())
}

fn hosts(executor: &Executor, op: &ExecOp, hostname: &str) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for ExtraHost { host, address } in &op.extra_hosts {
        let address = if address == "host-gateway" { executor.settings.host_gateway.as_str() } else { address };
        text.push_str(&format!("{address}\t{host}\n"));
    }
    text.push_str(&format!("127.0.1.1\t{hostname}\n"));
    text
}

/// Passes on what the process writes until it ends, or nobody waits for it any more.
fn follow(mut running: Running, context: &RunContext) -> Result<(Exit, Vec<u8>), ExecutorError> {
    let mut tail = Vec::new();
    let mut open: Vec<(LogStream, OwnedFd)> = Vec::new();
    open.extend(running.stdout.take().map(|fd| (LogStream::Stdout, fd)));
    open.extend(running.stderr.take().map(|fd| (LogStream::Stderr, fd)));
    let mut buffer = vec![0u8; 64 << 10];
    let timeout = Timespec { tv_sec: 0, tv_nsec: CANCEL_CHECK * 1_000_000 };
    while !open.is_empty() {
        if context.cancel.is_cancelled() {
            drop(running);
            return Err(ExecutorError::Cancelled("the step was cancelled"));
        }
        let mut fds: Vec<PollFd<'_>> = open.iter().map(|(_, fd)| PollFd::new(fd, PollFlags::IN)).collect();
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(local(errno.into())),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut ready = ready.into_iter();
        open.retain(|(stream, fd)| {
            if !ready.next().unwrap_or(false) {
                return true;
            }
            match rustix::io::read(fd.as_fd(), &mut buffer[..]) {
                Ok(0) => false,
                Ok(n) => {
                    keep_tail(&mut tail, &buffer[..n]);
                    context.events.log(context.step, *stream, &buffer[..n]);
                    true
                }
                Err(errno) => errno == rustix::io::Errno::INTR || errno == rustix::io::Errno::AGAIN,
            }
        });
    }
    Ok((running.wait()?, tail))
}

fn keep_tail(tail: &mut Vec<u8>, bytes: &[u8]) {
    tail.extend_from_slice(bytes);
    if tail.len() > 2 * TAIL {
        tail.drain(..tail.len() - TAIL);
    }
}

fn status_of(exit: &Exit) -> ProcessStatus {
    match (exit.code, exit.signal) {
        (_, Some(9)) | (Some(137), _) if exit.oom => ProcessStatus::OutOfMemory,
        (Some(code), _) => ProcessStatus::Code(code),
        (None, Some(signal)) => ProcessStatus::Signal(signal),
        (None, None) => ProcessStatus::Code(-1),
    }
}

/// Whether the file system of `path` has as good as no room.
fn is_full(path: &Path) -> bool {
    rustix::fs::statvfs(path)
        .is_ok_and(|fs| fs.f_bavail * fs.f_frsize < ALMOST_NOTHING || fs.f_favail == 0 && fs.f_files > 0)
}

fn start_error(op: &ExecOp, error: rbuild_runtime::Error) -> ExecutorError {
    match &error {
        rbuild_runtime::Error::Exec(failure) => ExecutorError::Process {
            command: command_line(&op.args),
            status: ProcessStatus::NotStarted { code: failure.exit_code.into(), message: failure.message.clone() },
            log_tail: Vec::new(),
            disk_full: false,
        },
        _ => mounts::explain(op, error),
    }
}

fn command_line(args: &[String]) -> String {
    args.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_there_is_not_is_named() {
        let limit = Ulimit { name: "speed".into(), soft: 1, hard: 1 };
        let error = set_limits(&mut Spec::default(), &[limit], None).unwrap_err();
        assert_eq!(error.to_string(), "invalid ulimit type: speed");
    }
}
