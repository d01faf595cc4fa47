//! [`ProcessSpec`]: the complete description of one sandboxed process, and docker's defaults for it.
//!
//! The core is the OCI runtime `Spec`, so that an external runtime could take the same value. Beside it stands what the
//! specification cannot say: how the root is assembled, descriptors instead of paths, and where the streams go.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResourcesBuilder, LinuxSeccomp, Mount, MountBuilder,
    ProcessBuilder, RootBuilder, Spec, SpecBuilder, User,
};
use rbuild_store::Mounts;

use crate::ids::IdMaps;

/// What a [`super::Sandbox`] runs.
#[derive(Debug)]
pub struct ProcessSpec {
    /// Names the cgroup; letters, digits, `.`, `_` and `-` only, unique among what runs on the machine.
    pub id: String,
    /// Process, mounts, namespaces, limits and devices. `root.path` is not looked at, `root.readonly` is; a network
    /// namespace in it is ignored in favour of `network`, and `linux.seccomp` in favour of `seccomp`.
    pub spec: Spec,
    /// Layers of the root. Mounted inside the sandbox's own mount namespace and gone with it.
    pub rootfs: Mounts,
    /// How much the writable layer is worth if the machine loses power.
    pub upper: Upper,
    /// An empty directory of the caller's where mount points the image lacks are made. It becomes the uppermost lower
    /// layer and is the caller's to remove after the end. Not used when `rootfs` is a bind.
    pub stub_dir: PathBuf,
    pub network: Network,
    pub etc: EtcFiles,
    /// Mounted after those of `spec`, in order.
    pub mounts: Vec<ExtraMount>,
    pub stdio: Stdio,
    pub cgroup: CgroupSpec,
    pub seccomp: Seccomp,
    /// Whether the program runs under a first process that passes signals on and takes in orphans.
    pub init: bool,
    /// Users of its own; `None` are the caller's.
    pub ids: Option<UserIds>,
}

/// A user namespace made ready by [`super::NativeSandbox::user_namespace`]. A sandbox in it has its own root, who is
/// somebody without rights on the machine: every other namespace that it makes belongs to that user namespace, and the
/// files of its layers are shown with its ids. A network or other namespace that it joins must belong to it already.
#[derive(Debug, Clone)]
pub struct UserIds {
    pub maps: IdMaps,
    pub namespace: Arc<OwnedFd>,
}

/// What a [`super::Sandbox`] runs beside a living process ("exec").
#[derive(Debug)]
pub struct EnterSpec {
    /// The process whose namespaces and root are joined, by a descriptor so that its number cannot be reused.
    pub target: OwnedFd,
    /// Where the sandbox of `target` has its cgroup: the `id` and `cgroup` it was started with.
    pub id: String,
    pub cgroup: CgroupSpec,
    /// Program, user, environment, capabilities, limits of the new process.
    pub process: oci_spec::runtime::Process,
    pub seccomp: Seccomp,
    pub stdio: Stdio,
    /// The ids of the user namespace that `target` is in, unless it is the caller's.
    pub ids: Option<IdMaps>,
}

/// How an overlay's writable layer treats `sync` calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upper {
    /// `sync` inside reaches the disk.
    Durable,
    /// `sync` inside is dropped (overlay's `volatile`): for layers that are worth nothing until committed.
    Volatile,
}

#[derive(Debug, Clone)]
pub enum Network {
    /// The network of the caller.
    Host,
    /// A new namespace with nothing but loopback.
    None,
    /// A namespace made ready by somebody else.
    Namespace(Arc<OwnedFd>),
}

/// Files made for one container, bound over those of its image; writable inside.
#[derive(Debug, Clone, Default)]
pub struct EtcFiles {
    pub hosts: Option<PathBuf>,
    pub hostname: Option<PathBuf>,
    pub resolv_conf: Option<PathBuf>,
}

/// A mount the OCI specification cannot describe.
#[derive(Debug)]
pub struct ExtraMount {
    /// Absolute path inside; links are resolved inside the root.
    pub destination: PathBuf,
    pub source: MountSource,
    /// OCI mount options: `ro`, `nosuid`, `noexec`, …; `idmap` shows its files with the ids of the sandbox's user namespace.
    pub options: Vec<String>,
}

#[derive(Debug)]
pub enum MountSource {
    /// A file or directory by an open descriptor (`O_PATH` will do), bound as it is.
    Opened(OwnedFd),
    /// A path in a tree of layers. It is resolved within the tree, so a link cannot lead elsewhere.
    Layers { mounts: Mounts, path: PathBuf },
    /// A file that is on no disk.
    Memory(MemoryFile),
    /// An empty file system in memory of at most `size` bytes; without a size half of the machine's.
    Tmpfs { size: Option<u64> },
}

/// A file that exists in memory only, on a file system that only the sandbox has. It goes with the sandbox, is never
/// swapped out where the kernel can promise that, and no path of the host leads to it.
pub struct MemoryFile {
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

impl std::fmt::Debug for MemoryFile {
    /// The content is nobody's business.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let MemoryFile { content, mode, uid, gid } = self;
        write!(f, "MemoryFile({} bytes, mode {mode:o}, owner {uid}:{gid})", content.len())
    }
}

#[derive(Debug)]
pub enum Stdio {
    /// Reads nothing, writes to nowhere.
    Null,
    /// Reads nothing; pipes from standard output and error.
    Output,
    /// Pipes for all three.
    Pipes,
    /// A new pseudo terminal of the sandbox's own devpts; its master is [`super::Running::terminal`].
    Terminal { rows: u16, columns: u16 },
    /// Descriptors of the caller's. Never pass a terminal.
    Files { stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd },
}

/// Where the cgroup goes: `<parent>/<id>` in every visible hierarchy.
#[derive(Debug, Clone, Default)]
pub struct CgroupSpec {
    /// Absolute path from the root of the hierarchies; `None` is `/rbuild`.
    pub parent: Option<PathBuf>,
}

#[derive(Debug, Clone)]
pub enum Seccomp {
    /// Docker's default profile for the process's capabilities, less a few dangerous calls.
    Default,
    /// No filter: only for callers entitled to it.
    Unconfined,
    Profile(std::boxed::Box<LinuxSeccomp>),
}

/// Docker's fourteen default capabilities.
pub const DEFAULT_CAPABILITIES: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::SysChroot,
    Capability::Mknod,
    Capability::AuditWrite,
    Capability::Setfcap,
];

/// Every capability of Linux 5.9 and later.
pub const ALL_CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Paths of procfs and sysfs that nobody inside sees, where they exist.
pub const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths of procfs that nobody inside may write, where they exist.
pub const READ_ONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Docker's default container around `args`: capabilities, namespaces, mounts, devices, masks; 64 MiB of `/dev/shm`.
///
/// Callers change the value afterwards; see [`set_shm_size`] and [`capability_sets`] for the awkward parts.
pub fn default_spec(args: Vec<String>, env: Vec<String>, cwd: &str, user: User) -> Spec {
    const COMPLETE: &str = "every field without a default is given";
    let process = ProcessBuilder::default()
        .terminal(false)
        .user(user)
        .args(args)
        .env(env)
        .cwd(cwd)
        .capabilities(capability_sets(&DEFAULT_CAPABILITIES))
        .build()
        .expect(COMPLETE);
    let mut process = process;
    process.set_rlimits(None);
    process.set_no_new_privileges(Some(false));
    let namespaces = [
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Cgroup,
    ];
    let namespaces = namespaces.map(|typ| LinuxNamespaceBuilder::default().typ(typ).build().expect(COMPLETE));
    let resources = LinuxResourcesBuilder::default().devices(default_device_rules()).build().expect(COMPLETE);
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces.to_vec())
        .resources(resources)
        .masked_paths(MASKED_PATHS.map(str::to_owned).to_vec())
        .readonly_paths(READ_ONLY_PATHS.map(str::to_owned).to_vec())
        .build()
        .expect(COMPLETE);
    linux.set_devices(None);
    let mut spec = SpecBuilder::default()
        .version("1.0.2")
        .process(process)
        .root(RootBuilder::default().path("rootfs").readonly(false).build().expect(COMPLETE))
        .mounts(default_mounts())
        .linux(linux)
        .build()
        .expect(COMPLETE);
    spec.set_hostname(None);
    spec
}

/// The five sets docker makes of one list: bounding, permitted and effective alike, the others empty.
pub fn capability_sets(of: &[Capability]) -> oci_spec::runtime::LinuxCapabilities {
    let set: oci_spec::runtime::Capabilities = of.iter().copied().collect();
    LinuxCapabilitiesBuilder::default()
        .bounding(set.clone())
        .effective(set.clone())
        .permitted(set)
        .inheritable(oci_spec::runtime::Capabilities::default())
        .ambient(oci_spec::runtime::Capabilities::default())
        .build()
        .expect("all five are given")
}

/// Sets the size of `/dev/shm` in bytes.
pub fn set_shm_size(spec: &mut Spec, bytes: u64) {
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if mount.destination().as_os_str() == "/dev/shm" {
            let mut options = mount.options().clone().unwrap_or_default();
            options.retain(|option| !option.starts_with("size="));
            options.push(format!("size={bytes}"));
            mount.set_options(Some(options));
        }
    }
}

fn default_mounts() -> Vec<Mount> {
    let mount = |destination: &str, typ: &str, options: &[&str]| {
        MountBuilder::default()
            .destination(destination)
            .typ(typ)
            .source(if destination == "/dev/shm" { "shm" } else { typ })
            .options(options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>())
            .build()
            .expect("all fields are given")
    };
    vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]),
    ]
}

/// Nothing but the usual nodes and pseudo terminals can be opened; any node can be made.
fn default_device_rules() -> Vec<LinuxDeviceCgroup> {
    let rule = |allow, typ, major: Option<i64>, minor: Option<i64>, access: &str| {
        let mut rule = LinuxDeviceCgroupBuilder::default().allow(allow).typ(typ).access(access).build();
        if let Ok(rule) = &mut rule {
            rule.set_major(major);
            rule.set_minor(minor);
        }
        rule.expect("all fields are given")
    };
    let open = |major, minor| rule(true, LinuxDeviceType::C, Some(major), minor, "rwm");
    vec![
        rule(false, LinuxDeviceType::A, None, None, "rwm"),
        rule(true, LinuxDeviceType::C, None, None, "m"),
        rule(true, LinuxDeviceType::B, None, None, "m"),
        open(1, Some(3)),
        open(1, Some(5)),
        open(1, Some(7)),
        open(1, Some(8)),
        open(1, Some(9)),
        open(5, Some(0)),
        open(5, Some(1)),
        open(5, Some(2)),
        open(136, None),
    ]
}
