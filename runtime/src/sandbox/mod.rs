//! Sandboxes: what may run in one ([`ProcessSpec`]), what starts one ([`Sandbox`]) and what is running ([`Running`]).
//!
//! How a start goes. The caller's process prepares a request ([`native`]) and spawns the binary again, which lands in
//! [`helper_main`]. That process builds stub directories, makes the cgroup and clones the init; the init makes
//! namespaces and the root, confines itself and executes the program. The middle process stays as the
//! init's parent: it reports the exit, and when its socket to the starter closes it kills everything.
//! Why three: only a parent can read an exit status with its resource usage, and only a process
//! outside can clean up after a starter that was killed.

mod apart;
mod bundle;
mod caps;
mod cgroups;
mod dev;
mod devices;
mod external;
mod hierarchies;
mod init;
mod limits;
pub mod lsm;
mod mounts;
mod namespaces;
mod native;
mod overlay;
mod process;
mod reaper;
mod root;
mod running;
pub mod seccomp;
mod spec;
mod spec_check;
mod stubs;
mod supervise;
mod supervisors;
mod sys;
mod targets;
mod usage;
mod wire;

pub use cgroups::Cgroup;
pub use external::{ExternalRuntime, ExternalSandbox};
pub use hierarchies::Hierarchies;
pub use mounts::WRITABLE_BELOW;
pub use native::{NativeSandbox, SandboxOptions, UserNamespace};
pub use overlay::mount_detached;
pub use running::{Exit, Running};
pub use spec::{
    ALL_CAPABILITIES, CgroupSpec, DEFAULT_CAPABILITIES, EnterSpec, EtcFiles, ExtraMount, MASKED_PATHS, MemoryFile,
    MountSource, Network, ProcessSpec, READ_ONLY_PATHS, Seccomp, Stdio, Upper, UserIds, capability_sets, default_spec,
    set_shm_size,
};
pub use supervise::helper_main;
pub use usage::{Listed, Usage};

use crate::error::Result;

/// Runs what a [`ProcessSpec`] says.
///
/// Success means that the program was executed: every mount is in place, every limit holds. Failing to execute it is
/// [`crate::Error::Exec`]; in every failure nothing of the sandbox is left.
pub trait Sandbox: Send + Sync {
    fn start(&self, spec: ProcessSpec) -> Result<Running>;
    /// Runs one more process in the sandbox of a living process, under the same confinement.
    fn enter(&self, spec: EnterSpec) -> Result<Running>;
    /// Says that a start is likely soon, so that what can be done before may be; costs the caller nothing.
    fn warm(&self) {}
}

/// Runs `work` on a thread of its own for which files are made by that user and group, with every right it had. What is
/// made in a container with other users must be somebody's there.
pub fn making_files_as<T: Send>((uid, gid): (u32, u32), work: impl FnOnce() -> T + Send) -> Result<T> {
    let failed = |e: rustix::io::Errno| crate::Error::system("make files for another user", e);
    std::thread::scope(|scope| {
        let inside = || {
            sys::set_file_ids(uid, gid);
            // Who makes files for others loses the rights to them; they are still permitted.
            let mut sets = rustix::thread::capabilities(None).map_err(failed)?;
            sets.effective = sets.permitted;
            rustix::thread::set_capabilities(None, sets).map_err(failed)?;
            Ok(work())
        };
        let thread = std::thread::Builder::new().name("files".to_owned()).spawn_scoped(scope, inside);
        let thread = thread.map_err(|e| crate::Error::system("start a thread", e))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Blocks the signals that ask a program to end. For the beginning of a process: threads and children inherit it, up to the
/// programs in sandboxes, which begin with no signal blocked.
pub(crate) fn block_end() -> std::io::Result<()> {
    sys::block_end()
}

/// Waits for one of those signals.
pub(crate) fn wait_for_end() -> std::io::Result<()> {
    sys::wait_for_end()
}

/// Closes all but the three standard descriptors. For the beginning of a process, before anything owns one.
pub(crate) fn close_inherited() {
    sys::close_from(3);
}
