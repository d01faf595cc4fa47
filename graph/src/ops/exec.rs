//! The operation that runs a process.

use serde::{Deserialize, Serialize};

/// Runs a process over mounts; each writable mount can become a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecOp {
    pub args: Vec<String>,
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    /// Absolute.
    pub cwd: String,
    /// `user[:group]` as the image names them; empty is root.
    pub user: String,
    pub hostname: Option<String>,
    pub network: Network,
    pub security: Security,
    /// The one at `/` is the root file system.
    pub mounts: Vec<Mount>,
    pub extra_hosts: Vec<ExtraHost>,
    /// Proxy variables: given to the process, part of no key.
    pub proxy_env: Vec<String>,
    /// Bytes of `/dev/shm`; `None` is docker's 64 MiB.
    pub shm_size: Option<u64>,
    pub ulimits: Vec<Ulimit>,
    pub cgroup_parent: Option<String>,
    /// Exit statuses that count as success.
    pub valid_exit_codes: Vec<i32>,
    #[serde(default)]
    pub devices: Vec<Device>,
}

impl ExecOp {
    /// How many mounts become results.
    pub fn outputs(&self) -> u32 {
        self.mounts.iter().filter_map(|mount| mount.output).map(|output| output + 1).max().unwrap_or(0)
    }

    pub(crate) fn validate(&self) -> Result<(), String> {
        if self.args.is_empty() {
            return Err("a process needs arguments".into());
        }
        if !self.cwd.starts_with('/') {
            return Err(format!("the working directory {:?} is not absolute", self.cwd));
        }
        if self.mounts.iter().filter(|mount| mount.target == b"/").count() != 1 {
            return Err("exactly one mount must be at /".into());
        }
        let named: Vec<&str> =
            self.args.iter().chain(&self.env).map(String::as_str).chain([self.cwd.as_str(), &self.user]).collect();
        if named.iter().any(|text| text.contains('\0')) {
            return Err("arguments, environment, directory and user cannot hold a NUL byte".into());
        }
        Ok(())
    }

    /// The root file system's mount.
    pub fn root(&self) -> Option<&Mount> {
        self.mounts.iter().find(|mount| mount.target == b"/")
    }
}

/// What network a process sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// A bridge with address translation to the outside.
    Default,
    None,
    Host,
}

/// How far a process is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Security {
    Sandbox,
    Insecure,
}

/// Something a process sees at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path in the container.
    pub target: Vec<u8>,
    /// Index of the vertex input it shows; `None` is an empty one (scratch) or a kind that needs none.
    pub input: Option<usize>,
    /// Index of the result that its state becomes.
    pub output: Option<u32>,
    pub read_only: bool,
    /// Path within the input.
    pub selector: Option<Vec<u8>>,
    pub kind: MountKind,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum MountKind {
    /// The input's files. Writable without an output, what is written is thrown away.
    Bind,
    /// A directory that survives the build. `id` is a key, not a path. Owner and mode apply when it is made.
    Cache {
        id: String,
        sharing: CacheSharing,
        mode: u32,
        uid: u32,
        gid: u32,
    },
    Tmpfs {
        size: Option<u64>,
    },
    /// A file (or a variable) that the client lends and that no layer, key or record ever holds.
    Secret {
        id: String,
        env: Option<String>,
        file: bool,
        required: bool,
        mode: u32,
        uid: u32,
        gid: u32,
    },
    /// The client's ssh agent.
    Ssh {
        id: String,
        required: bool,
        mode: u32,
        uid: u32,
        gid: u32,
    },
    /// Text of the Dockerfile itself, as a file (scripts of heredocs); part of the key.
    Inline {
        content: Vec<u8>,
        mode: u32,
    },
}

/// Who may use a cache directory at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheSharing {
    Shared,
    Private,
    Locked,
}

/// A device of the machine, by a name of the Container Device Interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// `vendor/class=name`, `vendor/class`, or a class that devices are annotated with.
    pub name: String,
    /// Whether the process cannot do without.
    pub required: bool,
}

/// A line for `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraHost {
    pub host: String,
    /// An address, or `host-gateway`.
    pub address: String,
}

/// A resource limit of the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    pub name: String,
    /// -1 is unlimited.
    pub soft: i64,
    pub hard: i64,
}
