//! Runs processes in sandboxes: the steps of a build and containers alike.
//!
//! The one crate with `unsafe` and with namespaces. Its input is an OCI runtime `Spec` and the mounts
//! a snapshot gives; its output is a [`Running`] whose drop leaves nothing behind. Synchronous: async
//! callers put it on a blocking pool.
//!
//! Nothing forks from the threaded program. A sandbox is set up by the same binary executed again as a
//! small single-threaded process; [`helper_main`] is its entry and must be the first call of `main`.

pub mod cdi;
pub mod container;
pub mod disk;
mod error;
pub mod ids;
pub mod logs;
pub mod monitor;
mod neighbours;
pub mod network;
mod passing;
pub mod sandbox;
pub mod users;

pub use error::{Error, ExecFailure, Result};
pub use sandbox::{
    CgroupSpec, EnterSpec, EtcFiles, Exit, ExternalRuntime, ExtraMount, MemoryFile, MountSource, NativeSandbox,
    Network, ProcessSpec, Running, Sandbox, SandboxOptions, Seccomp, Stdio, Upper, UserIds, UserNamespace,
    default_spec, helper_main, mount_detached,
};
