//! What a caller asks for when it wants a container: plain data, in docker's notions.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use rbuild_graph::ops::Ulimit;
use rbuild_oci::{Healthcheck, Platform};
use rbuild_runtime::ExternalRuntime;
use rbuild_runtime::container::RestartPolicy;
use rbuild_runtime::network::{Mac, PortRequest};
use serde::{Deserialize, Serialize};

use super::isolation::{BlockIo, Security};
use super::logging::{LogDriver, LogOptions};

/// A container to be made.
#[derive(Debug, Clone, Default)]
pub struct CreateRequest {
    /// As the user wrote it: a name, an id or the beginning of one.
    pub image: String,
    /// Of the image; `None`: what fits this machine, or the only one there is.
    pub platform: Option<Platform>,
    pub name: Option<String>,
    /// The program and its arguments, in place of the image's.
    pub command: Vec<String>,
    /// In place of the image's; an empty string takes it away.
    pub entrypoint: Option<Vec<String>>,
    pub user: Option<String>,
    pub working_dir: Option<String>,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    /// `NAME=value`; a bare `NAME` takes the image's away.
    pub env: Vec<String>,
    pub labels: BTreeMap<String, String>,
    pub tty: bool,
    /// Keep the input open.
    pub stdin: bool,
    /// The first one who feeds the input ends it.
    pub stdin_once: bool,
    pub stop_signal: Option<String>,
    pub stop_timeout: Option<i64>,
    /// What is set in it stands in place of the image's.
    pub healthcheck: Option<Healthcheck>,
    /// Binds, volumes and tmpfs, in the user's order.
    pub mounts: Vec<MountRequest>,
    /// Containers whose mounts this one gets too, `NAME[:ro|rw]`.
    pub volumes_from: Vec<String>,
    /// Ports it listens on beside those the image names, `80/tcp`.
    pub expose: Vec<String>,
    /// What is wished of the networks, that of [`HostSettings::network`] first.
    pub networks: Vec<Membership>,
    pub host: HostSettings,
}

/// One thing to be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRequest {
    pub source: MountWish,
    /// Absolute path inside.
    pub destination: String,
    pub read_only: bool,
    /// Of the volume or image only this path.
    pub subpath: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountWish {
    /// A path of the host's. Whether a missing one is made as a directory (`-v` does, `--mount` does not).
    Bind { source: PathBuf, make: bool, propagation: Option<String>, depth: BindDepth },
    /// A volume; without a name a new one of this container's own. The terms are for one that has to be made.
    Volume { name: Option<String>, copy: bool, terms: Option<Box<VolumeTerms>> },
    /// Memory, with the options of `mount`.
    Tmpfs { options: Vec<String> },
    /// The files of an image, as the user named it; never writable.
    Image { name: String },
}

/// What becomes of the mounts below a bind's source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BindDepth {
    /// They are there, and read-only where the bind is.
    #[default]
    Whole,
    /// They are there, and as writable as they were, also where the bind is read-only.
    WritableBelow,
    /// They are not there.
    Single,
}

/// How a volume is to be made, if there is none of its name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VolumeTerms {
    pub labels: BTreeMap<String, String>,
    /// As `volume create -o` has them.
    pub options: BTreeMap<String, String>,
}

/// How a container stands to its host: what docker calls `HostConfig`. Kept with the container.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct HostSettings {
    pub auto_remove: bool,
    pub network: NetworkMode,
    /// Ports to be published.
    #[serde(default)]
    pub ports: Vec<PortRequest>,
    /// Publish every port that is exposed, on ports by chance.
    #[serde(default)]
    pub publish_all: bool,
    pub read_only: bool,
    pub privileged: bool,
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub no_new_privileges: bool,
    pub seccomp_unconfined: bool,
    /// Bytes.
    pub memory: Option<i64>,
    /// Bytes of memory and swap; -1 is without limit.
    pub memory_swap: Option<i64>,
    pub memory_reservation: Option<i64>,
    /// Billionths of a processor.
    pub nano_cpus: Option<i64>,
    pub cpu_shares: Option<u64>,
    pub cpu_period: Option<u64>,
    pub cpu_quota: Option<i64>,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    pub pids_limit: Option<i64>,
    pub ulimits: Vec<Ulimit>,
    /// Bytes of `/dev/shm`.
    pub shm_size: Option<u64>,
    /// `NAME:ADDRESS`.
    pub extra_hosts: Vec<String>,
    pub dns: Vec<String>,
    pub dns_search: Vec<String>,
    pub dns_options: Vec<String>,
    pub group_add: Vec<String>,
    pub pid: NamespaceMode,
    pub ipc: NamespaceMode,
    pub uts: NamespaceMode,
    pub cgroup_parent: Option<String>,
    pub oom_score_adj: Option<i32>,
    pub devices: Vec<DeviceRequest>,
    /// Devices by their names in specifications (`vendor/class=name`).
    #[serde(default)]
    pub named_devices: Vec<String>,
    pub sysctls: BTreeMap<String, String>,
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Run the program under an init that passes signals on and takes in orphans.
    #[serde(default)]
    pub init: bool,
    #[serde(default)]
    pub log: LogDriver,
    #[serde(default)]
    pub log_options: LogOptions,
    /// Most bytes its writable layer may hold.
    #[serde(default)]
    pub storage_size: Option<u64>,
    /// Who makes its sandbox, where it is not this program.
    #[serde(default)]
    pub runtime: Option<RuntimeRequest>,
    #[serde(default)]
    pub security: Security,
    #[serde(default)]
    pub block_io: BlockIo,
    /// Lines like `c 42:* rmw`.
    #[serde(default)]
    pub device_cgroup_rules: Vec<String>,
    /// Microseconds.
    #[serde(default)]
    pub cpu_rt_period: Option<u64>,
    #[serde(default)]
    pub cpu_rt_runtime: Option<i64>,
    /// From 0 to 100.
    #[serde(default)]
    pub memory_swappiness: Option<i64>,
    /// Who wants more memory than there is waits in place of being killed.
    #[serde(default)]
    pub oom_kill_disable: bool,
    /// It sees the cgroups of the host.
    #[serde(default)]
    pub cgroup_host: bool,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Of volumes that it names: there is `local` only.
    #[serde(default)]
    pub volume_driver: Option<String>,
}

/// A program that is called as the OCI runtime specification says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeRequest {
    /// As the user named it.
    pub name: String,
    /// Absolute.
    pub program: PathBuf,
    /// Options before the command.
    pub arguments: Vec<String>,
}

impl RuntimeRequest {
    /// For the container in `directory`.
    pub(super) fn external(&self, directory: &Path) -> ExternalRuntime {
        ExternalRuntime {
            name: self.name.clone(),
            program: self.program.clone(),
            arguments: self.arguments.clone(),
            directory: directory.join("runtime"),
        }
    }
}

/// A device of the host's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRequest {
    pub host: PathBuf,
    pub inside: PathBuf,
    /// Of `rwm`.
    pub permissions: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum NetworkMode {
    /// The default bridge.
    #[default]
    Bridge,
    Host,
    None,
    /// That of another container, by its id.
    Container(String),
    /// A network of the user's, as he named it; there may be more, among the container's memberships.
    Named(String),
}

/// A network that a container is to be in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Membership {
    /// In a request as the user named it, in a record the id.
    pub network: String,
    pub network_name: String,
    /// Names by which neighbours find the container, beside its own.
    pub aliases: Vec<String>,
    pub ip: Option<Ipv4Addr>,
    pub ip6: Option<Ipv6Addr>,
    pub mac: Option<Mac>,
    /// Beside the others, 169.254.x.y or fe80::….
    #[serde(default)]
    pub link_local: Vec<IpAddr>,
    /// Containers (in a record by id) with the names that this one has for them.
    pub links: Vec<(String, String)>,
}

/// Which namespace of a kind a container is in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// Its own.
    #[default]
    Private,
    Host,
    /// That of another container, by its id.
    Container(String),
}

/// One more process for a running container.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    pub command: Vec<String>,
    pub env: Vec<String>,
    pub user: Option<String>,
    pub working_dir: Option<String>,
    pub tty: bool,
    pub stdin: bool,
    pub privileged: bool,
    /// Rows and columns, with `tty`.
    pub size: (u16, u16),
}
