//! [`ExternalSandbox`]: sandboxes that another program makes, by the command line of the OCI runtime specification.
//!
//! The seam is the same as for our own: a [`ProcessSpec`] goes in, a [`Running`] comes out. What differs is done by the
//! process in the middle ([`super::bundle`]): it mounts the root, writes the bundle, has the runtime create and start the
//! container, takes in its first process as an orphan, and waits for it. Why not call the runtime from here: only a parent
//! reads an exit status, and mounts that belong to a process of our own go with it, however that ends.

use std::path::PathBuf;
use std::process::{Command, Stdio as ChildStdio};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::Sandbox;
use super::native::{NativeSandbox, cgroup_path};
use super::running::Running;
use super::seccomp;
use super::spec::{EnterSpec, ProcessSpec, Seccomp};
use super::supervise::{Outer, OuterEnter, Request};
use crate::error::{Error, Result};

/// A program that makes sandboxes: runc and what is called like it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalRuntime {
    /// As the user named it.
    pub name: String,
    /// Absolute.
    pub program: PathBuf,
    /// Options before the command.
    pub arguments: Vec<String>,
    /// The container's private directory for the runtime's state and the bundle; made if missing.
    pub directory: PathBuf,
}

impl ExternalRuntime {
    /// The program with what stands before each of its commands; it inherits nothing.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg("--root").arg(self.directory.join("state"));
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .current_dir("/");
        command.stdin(ChildStdio::null()).stdout(ChildStdio::null()).stderr(ChildStdio::null());
        command
    }

    /// Sends a signal to the container's first process; whether the runtime did.
    pub(super) fn kill(&self, id: &str, signal: Signal) -> bool {
        let number = signal.as_raw().to_string();
        self.command().args(["kill", id, &number]).status().is_ok_and(|status| status.success())
    }
}

/// A [`Sandbox`] of another program's making.
#[derive(Debug)]
pub struct ExternalSandbox {
    native: NativeSandbox,
    runtime: ExternalRuntime,
}

impl ExternalSandbox {
    /// `native` lends the processes in the middle.
    pub fn new(native: NativeSandbox, runtime: ExternalRuntime) -> ExternalSandbox {
        ExternalSandbox { native, runtime }
    }

    fn refuse(&self, what: &str) -> Error {
        Error::Unsupported(format!("{what} with the runtime {}", self.runtime.name))
    }
}

impl Sandbox for ExternalSandbox {
    fn start(&self, mut spec: ProcessSpec) -> Result<Running> {
        if spec.init {
            return Err(self.refuse("an init of ours (--init)"));
        }
        let bounding = spec
            .spec
            .process()
            .as_ref()
            .and_then(|process| process.capabilities().as_ref().and_then(|sets| sets.bounding().clone()));
        let filter = match &spec.seccomp {
            Seccomp::Unconfined => None,
            Seccomp::Default => Some(seccomp::default_profile(&bounding.unwrap_or_default())),
            Seccomp::Profile(profile) => Some((**profile).clone()),
        };
        if let Some(linux) = spec.spec.linux_mut() {
            linux.set_seccomp(filter);
        }
        let id = spec.id.clone();
        let (start, fds, streams) = self.native.request(spec, Vec::new(), None)?;
        let cgroup = start.cgroup.clone();
        let outer = Outer { runtime: self.runtime.clone(), id: id.clone(), start };
        let running = self.native.run(&Request::Outer(Box::new(outer)), &fds.0, streams, Some(&cgroup))?;
        Ok(running.of_runtime(self.runtime.clone(), id))
    }

    fn enter(&self, spec: EnterSpec) -> Result<Running> {
        let mut fds = super::native::Fds::default();
        let (streams, stdio) = fds.stdio(spec.stdio)?;
        let enter = OuterEnter {
            runtime: self.runtime.clone(),
            cgroup: cgroup_path(&spec.cgroup, &spec.id)?,
            hierarchies: self.native.hierarchies().clone(),
            id: spec.id,
            process: spec.process,
            stdio,
        };
        self.native.run(&Request::OuterEnter(Box::new(enter)), &fds.0, streams, None)
    }
}
