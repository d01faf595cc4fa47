//! The options that `run` and `create` share, and the request they make.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rbuild_engine::containers::{
    CreateRequest, DeviceRequest, HostSettings, MountRequest, NamespaceMode, RestartPolicy,
};
use rbuild_engine::oci::Platform;
use rbuild_engine::runtime::cdi::is_device_name;
use rbuild_engine::{ExtraHost, Ulimit};

use crate::error::{CliError, exit};
use crate::isolation_options::IsolationOptions;
use crate::mounts;
use crate::network_options::NetworkOptions;
use crate::refused::{self, Missing};
use crate::runtimes;
use crate::settings::Settings;
use crate::supervision::Supervision;
use crate::values;

/// What kind of container is wanted.
#[derive(Debug, clap::Args)]
pub struct ContainerOptions {
    /// Name for an address in the container's hosts file; the address 'host-gateway' is this machine
    #[arg(long = "add-host", value_name = "NAME:ADDRESS", value_parser = values::extra_host)]
    add_host: Vec<ExtraHost>,
    /// Capability that the processes get in addition
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Capability that the processes do not get
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// Stream to be connected with: stdin, stdout or stderr (default: what fits the other options)
    #[arg(short, long, value_name = "STREAM", value_parser = stream)]
    pub attach: Vec<Standard>,
    /// Parent of the container's cgroup
    #[arg(long, value_name = "CGROUP")]
    cgroup_parent: Option<String>,
    /// Write the container's id to a file, which must not exist
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,
    /// Length of the period of the processor quota, in microseconds
    #[arg(long, value_name = "N")]
    cpu_period: Option<u64>,
    /// Processor time in each period, in microseconds
    #[arg(long, value_name = "N")]
    cpu_quota: Option<i64>,
    /// Weight among the containers that want the processors (default 1024)
    #[arg(short = 'c', long, value_name = "N")]
    cpu_shares: Option<u64>,
    /// How many processors' time it may use
    #[arg(long, value_name = "NUMBER", value_parser = cpus)]
    cpus: Option<i64>,
    /// Processors it may run on: 0-3, 0,1
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes it may use: 0-3, 0,1
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Device of the host's, and where and how it may be used; or one by its name, vendor/class=name
    #[arg(long = "device", value_name = "HOST[:INSIDE[:RWM]]", value_parser = device)]
    devices: Vec<DeviceWish>,
    /// Name server
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    dns: Vec<String>,
    /// Option of the resolver
    #[arg(long = "dns-option", alias = "dns-opt", value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Domain in which names are looked up
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// NIS domain name
    #[arg(long, value_name = "NAME")]
    domainname: Option<String>,
    /// Program in place of the image's entrypoint; empty takes it away
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Environment variable; a bare name takes the caller's value
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// File of environment variables, one a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Group of the processes in addition
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Name of the container's host
    #[arg(short = 'h', long, value_name = "NAME")]
    hostname: Option<String>,
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// IPC namespace: private, host or container:NAME
    #[arg(long, value_name = "MODE")]
    ipc: Option<String>,
    /// Label of the container
    #[arg(short, long = "label", value_name = "NAME[=VALUE]")]
    labels: Vec<String>,
    /// File of labels, one a line
    #[arg(long, value_name = "FILE")]
    label_file: Vec<PathBuf>,
    /// Most memory it may use
    #[arg(short, long, value_name = "BYTES", value_parser = values::bytes)]
    memory: Option<u64>,
    /// Memory it is held to when memory is scarce
    #[arg(long, value_name = "BYTES", value_parser = values::bytes)]
    memory_reservation: Option<u64>,
    /// Most memory and swap together; -1 is without limit
    #[arg(long, value_name = "BYTES", value_parser = bytes_or_unlimited)]
    memory_swap: Option<i64>,
    /// Mount: type=bind|volume|tmpfs|image,source=…,target=…[,readonly]
    #[arg(long = "mount", value_name = "OPTIONS", value_parser = mounts::mount)]
    mounts: Vec<MountRequest>,
    /// Name of the container
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    isolation: IsolationOptions,
    #[command(flatten)]
    pub network: NetworkOptions,
    /// How readily the kernel kills it when memory runs out (-1000 to 1000)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    oom_score_adj: Option<i32>,
    /// PID namespace: host or container:NAME
    #[arg(long, value_name = "MODE")]
    pid: Option<String>,
    /// Most processes it may have; -1 is without limit
    #[arg(long, value_name = "N")]
    pids_limit: Option<i64>,
    /// Platform of the image
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<String>,
    /// Give it all capabilities and devices, and no filter of system calls
    #[arg(long)]
    privileged: bool,
    /// When to ask the registry for the image: always, missing or never
    #[arg(long, value_name = "WHEN", default_value = "missing", value_parser = ["always", "missing", "never"])]
    pub pull: String,
    /// Say nothing about pulling the image
    #[arg(short, long)]
    pub quiet: bool,
    /// Make its file system read-only
    #[arg(long)]
    read_only: bool,
    /// Who makes its sandbox: a name of the configuration, runc, crun, youki, runsc or kata-runtime, or the path of a program
    #[arg(long, value_name = "NAME|PATH")]
    runtime: Option<String>,
    /// Remove the container when it ends
    #[arg(long)]
    rm: bool,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES", value_parser = values::bytes)]
    shm_size: Option<u64>,
    /// Signal that asks it to end
    #[arg(long, value_name = "SIGNAL", value_parser = signal)]
    stop_signal: Option<String>,
    /// Seconds between that signal and the kill
    #[arg(long, value_name = "SECONDS")]
    stop_timeout: Option<i64>,
    /// Kernel parameter of its namespaces
    #[arg(long, value_name = "NAME=VALUE")]
    sysctl: Vec<String>,
    /// Directory in memory
    #[arg(long, value_name = "PATH[:OPTIONS]", value_parser = mounts::tmpfs)]
    tmpfs: Vec<MountRequest>,
    /// Limit of its writable layer: size=BYTES
    #[arg(long, value_name = "OPTION", value_parser = storage_size)]
    storage_opt: Vec<u64>,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Limit of its processes
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]", value_parser = values::ulimit)]
    ulimits: Vec<Ulimit>,
    #[command(flatten)]
    pub supervision: Supervision,
    /// User, and group, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// UTS namespace: host
    #[arg(long, value_name = "MODE")]
    uts: Option<String>,
    /// Directory of the host's, or volume, at a place inside
    #[arg(short, long = "volume", value_name = "[SOURCE:]PATH[:OPTIONS]", value_parser = mounts::volume)]
    volumes: Vec<MountRequest>,
    /// Container whose mounts it gets too
    #[arg(long, value_name = "NAME[:ro]")]
    volumes_from: Vec<String>,
    /// Directory in which the program starts
    #[arg(short, long, value_name = "PATH")]
    workdir: Option<String>,
}

impl ContainerOptions {
    /// The request, for an image and a command; `attached` says that its streams are ours.
    ///
    /// # Errors
    /// Values that make no sense, files that cannot be read.
    pub fn request(&self, words: &[String], settings: &Settings, attached: bool) -> Result<CreateRequest, CliError> {
        let (image, command) = words.split_first().ok_or_else(|| CliError::new("an image is missing"))?;
        let mut env = Vec::new();
        for file in &self.env_file {
            env.extend(env_file(file, settings)?);
        }
        env.extend(self.env.iter().map(|text| from_environment(text, settings)));
        let mut labels = BTreeMap::new();
        for file in &self.label_file {
            // Without a value it is none, as docker reads such a file.
            labels.extend(lines(file)?.iter().filter(|line| line.contains('=')).map(|line| label(line)));
        }
        labels.extend(self.labels.iter().map(|text| label(text)));
        // The same volume twice at the same place is there once.
        let mut mounts: Vec<MountRequest> = Vec::new();
        for mount in &self.volumes {
            if !mounts.contains(mount) {
                mounts.push(mount.clone());
            }
        }
        mounts.extend(self.mounts.iter().chain(&self.tmpfs).cloned());
        Ok(CreateRequest {
            image: image.clone(),
            platform: self.wanted_platform()?,
            name: self.name.clone(),
            command: command.to_vec(),
            entrypoint: self.entrypoint.as_ref().map(|program| vec![program.clone()]),
            user: self.user.clone(),
            working_dir: self.workdir.clone(),
            hostname: self.hostname.clone(),
            domainname: self.domainname.clone(),
            env,
            labels,
            tty: self.tty,
            stdin: self.interactive,
            stdin_once: attached && self.attaches(Standard::Input),
            stop_signal: self.stop_signal.clone(),
            stop_timeout: self.stop_timeout,
            healthcheck: self.supervision.healthcheck()?,
            mounts,
            volumes_from: self.volumes_from.clone(),
            expose: self.network.exposed(),
            networks: self.network.memberships()?,
            host: self.host_with(settings)?,
        })
    }

    fn host_with(&self, settings: &Settings) -> Result<HostSettings, CliError> {
        let mut host = self.host()?;
        let config = settings.daemon_config()?;
        host.runtime = runtimes::chosen(self.runtime.as_deref(), settings, &config)?;
        self.isolation.set_users(&mut host, config.userns_remap.as_deref())?;
        Ok(host)
    }

    /// # Errors
    /// What is given is none.
    pub fn wanted_platform(&self) -> Result<Option<Platform>, CliError> {
        let parsed = self.platform.as_deref().filter(|text| !text.is_empty()).map(Platform::parse);
        parsed.transpose().map_err(|e| CliError::new(e.to_string()))
    }

    fn host(&self) -> Result<HostSettings, CliError> {
        if self.rm && self.supervision.restart != RestartPolicy::Never {
            return Err(CliError::new("conflicting options: cannot specify both --restart and --rm"));
        }
        let signed = |bytes: Option<u64>| bytes.map(|b| i64::try_from(b).unwrap_or(i64::MAX));
        let (log, log_options) = self.supervision.log()?;
        let mut host = HostSettings {
            auto_remove: self.rm,
            network: self.network.mode()?,
            ports: self.network.ports(),
            publish_all: self.network.publish_all,
            read_only: self.read_only,
            privileged: self.privileged,
            cap_add: self.cap_add.clone(),
            cap_drop: self.cap_drop.clone(),
            memory: signed(self.memory).filter(|m| *m > 0),
            memory_swap: self.memory_swap.filter(|m| *m != 0),
            memory_reservation: signed(self.memory_reservation).filter(|m| *m > 0),
            nano_cpus: self.cpus.filter(|n| *n > 0),
            cpu_shares: self.cpu_shares,
            cpu_period: self.cpu_period,
            cpu_quota: self.cpu_quota,
            cpuset_cpus: self.cpuset_cpus.clone(),
            cpuset_mems: self.cpuset_mems.clone(),
            pids_limit: self.pids_limit,
            ulimits: self.ulimits.clone(),
            shm_size: self.shm_size,
            extra_hosts: self.add_host.iter().map(|h| format!("{}:{}", h.host, h.address)).collect(),
            dns: self.dns.clone(),
            dns_search: self.dns_search.clone(),
            dns_options: self.dns_option.clone(),
            group_add: self.group_add.clone(),
            pid: namespace("PID", self.pid.as_deref(), true)?,
            ipc: namespace("IPC", self.ipc.as_deref(), true)?,
            uts: namespace("UTS", self.uts.as_deref(), false)?,
            cgroup_parent: self.cgroup_parent.clone(),
            oom_score_adj: self.oom_score_adj,
            devices: self.devices.iter().filter_map(DeviceWish::node).collect(),
            named_devices: self.devices.iter().filter_map(DeviceWish::name).collect(),
            restart: self.supervision.restart,
            init: self.supervision.init,
            log,
            log_options,
            storage_size: self.storage_opt.last().copied(),
            ..HostSettings::default()
        };
        self.isolation.set(&mut host)?;
        for text in &self.sysctl {
            let (name, value) = text.split_once('=').ok_or_else(|| CliError::new(format!("invalid sysctl: {text}")))?;
            host.sysctls.insert(name.to_owned(), value.to_owned());
        }
        Ok(host)
    }

    /// Whether a stream is to be connected with, of a container that is not left alone.
    pub fn attaches(&self, stream: Standard) -> bool {
        match self.attach.is_empty() {
            true => stream != Standard::Input || self.interactive,
            false => self.attach.contains(&stream) && (stream != Standard::Input || self.interactive),
        }
    }
}

/// Failures of these commands have docker's code for "the engine failed", and its word before the message.
pub fn engine_error(error: impl Into<CliError>) -> CliError {
    let error = error.into();
    with_prefix(error, exit::ENGINE)
}

fn with_prefix(error: CliError, failure: u8) -> CliError {
    let code = if error.code == exit::FAILURE { failure } else { error.code };
    let prefix = if error.prefix.is_empty() { "" } else { "rbuild" };
    error.with_code(code).with_prefix(prefix)
}

fn namespace(kind: &str, text: Option<&str>, of_others: bool) -> Result<NamespaceMode, CliError> {
    match text {
        None | Some("" | "private") => Ok(NamespaceMode::Private),
        Some("host") => Ok(NamespaceMode::Host),
        Some(other) => match other.strip_prefix("container:").filter(|name| of_others && !name.is_empty()) {
            Some(name) => Ok(NamespaceMode::Container(name.to_owned())),
            None => Err(CliError::new(format!("invalid {kind} mode: {other}"))),
        },
    }
}

/// `size=10g`, in bytes.
fn storage_size(text: &str) -> Result<u64, String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("invalid storage option: {text}"))?;
    if !name.eq_ignore_ascii_case("size") {
        return Err(format!("unknown option {name}"));
    }
    match values::bytes(value)? {
        0 => Err("the size of the writable layer is 0".to_owned()),
        bytes => Ok(bytes),
    }
}

/// `1.5` processors in billionths.
///
/// # Errors
/// No number, or one out of range.
pub fn cpus(text: &str) -> Result<i64, String> {
    let value: f64 = text.parse().map_err(|_| format!("failed to parse {text} as a rational number"))?;
    let nano = (value * 1e9).round();
    if nano.is_finite() && (0.0..=1e15).contains(&nano) { Ok(nano as i64) } else { Err("value is out of range".into()) }
}

/// A size in bytes; `-1` is without limit.
///
/// # Errors
/// No size.
pub fn bytes_or_unlimited(text: &str) -> Result<i64, String> {
    if text == "-1" {
        return Ok(-1);
    }
    values::bytes(text).map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX))
}

fn address(text: &str) -> Result<String, String> {
    match text.parse::<std::net::IpAddr>() {
        Ok(address) => Ok(address.to_string()),
        Err(_) => Err(format!("{text} is not an ip address")),
    }
}

/// A standard stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standard {
    Input,
    Output,
    Error,
}

fn stream(text: &str) -> Result<Standard, String> {
    match text.to_ascii_lowercase().as_str() {
        "stdin" => Ok(Standard::Input),
        "stdout" => Ok(Standard::Output),
        "stderr" => Ok(Standard::Error),
        _ => Err("valid streams are STDIN, STDOUT and STDERR".to_owned()),
    }
}

fn signal(text: &str) -> Result<String, String> {
    match rbuild_engine::containers::signal_number(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err(format!("invalid signal: {text}")),
    }
}

/// A device as it is asked for.
#[derive(Debug, Clone)]
enum DeviceWish {
    Node(DeviceRequest),
    /// By its name in a specification (Container Device Interface).
    Named(String),
}

impl DeviceWish {
    fn node(&self) -> Option<DeviceRequest> {
        match self {
            DeviceWish::Node(request) => Some(request.clone()),
            DeviceWish::Named(_) => None,
        }
    }

    fn name(&self) -> Option<String> {
        match self {
            DeviceWish::Named(name) => Some(name.clone()),
            DeviceWish::Node(_) => None,
        }
    }
}

fn device(text: &str) -> Result<DeviceWish, String> {
    if is_device_name(text) {
        return Ok(DeviceWish::Named(text.to_owned()));
    }
    let parts: Vec<&str> = text.split(':').collect();
    let is_mode = |word: &str| !word.is_empty() && word.bytes().all(|b| b"rwm".contains(&b));
    let (host, inside, permissions) = match parts[..] {
        [host] => (host, host, "rwm"),
        [host, mode] if is_mode(mode) => (host, host, mode),
        [host, inside] => (host, inside, "rwm"),
        [host, inside, mode] if is_mode(mode) => (host, inside, mode),
        _ => return Err(format!("invalid device specification: {text}")),
    };
    if !Path::new(host).is_absolute() || !Path::new(inside).is_absolute() {
        return Err(format!("{text} is not an absolute path"));
    }
    Ok(DeviceWish::Node(DeviceRequest { host: host.into(), inside: inside.into(), permissions: permissions.into() }))
}

/// `NAME=VALUE` as it is; a bare `NAME` with the caller's value, if he has one.
pub fn from_environment(text: &str, settings: &Settings) -> String {
    match (text.contains('='), settings.variable(text)) {
        (false, Some(value)) => format!("{text}={value}"),
        _ => text.to_owned(),
    }
}

/// The variables of a file: one a line, `#` begins a comment line, values as they are.
///
/// # Errors
/// It cannot be read, or a name has white space in it.
pub fn env_file(path: &Path, settings: &Settings) -> Result<Vec<String>, CliError> {
    let mut variables = Vec::new();
    let invalid = |why: String| CliError::new(format!("invalid env file ({}): {why}", path.display()));
    for line in lines(path)? {
        let name = line.split('=').next().unwrap_or_default();
        if name.is_empty() {
            return Err(invalid(format!("no variable name on line '{line}'")));
        }
        if name.contains([' ', '\t']) {
            return Err(invalid(format!("variable '{name}' contains whitespaces")));
        }
        let with_value = from_environment(&line, settings);
        if with_value.contains('=') {
            variables.push(with_value);
        }
    }
    Ok(variables)
}

/// What went wrong, in the words of the C library and without its number.
fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// The lines of a file that are neither empty nor comments, without leading white space.
fn lines(path: &Path) -> Result<Vec<String>, CliError> {
    let text =
        std::fs::read_to_string(path).map_err(|e| CliError::new(format!("open {}: {}", path.display(), reason(&e))))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines = text.lines().map(|line| line.trim_start().trim_end_matches('\r'));
    Ok(lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect())
}

fn label(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    (name.to_owned(), value.to_owned())
}

/// Options of `docker run` that are not there yet.
#[derive(Debug)]
pub struct NotYet;

impl refused::Table for NotYet {
    const OPTIONS: &'static [Missing] = &[Missing::switch("use-api-socket")];
}
