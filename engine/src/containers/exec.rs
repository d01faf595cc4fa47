//! One more process in a running container.

use std::path::{Path, PathBuf};

use rbuild_runtime::container::{Attached, Attachment, ExecSpec, SeccompChoice, StartFailure};
use rbuild_runtime::monitor;
use rbuild_runtime::sandbox::SandboxOptions;
use rbuild_store::Root;

use super::record::Seen;
use super::request::ExecRequest;
use super::start::start_error;
use super::{Containers, process};
use crate::error::{Error, Kind};

/// A process that was started in a container.
#[derive(Debug)]
pub enum Executed {
    /// With its streams here; it ends with this process.
    Attached(Attachment),
    /// In the care of the container's monitor.
    Detached,
}

impl Containers {
    /// Runs a process in a running container. When this returns its program has been executed.
    ///
    /// # Errors
    /// `Conflict` for a container that does not run; `CommandNotFound` and `NotExecutable` for the program.
    pub fn exec(&self, seen: &Seen, request: &ExecRequest, detached: bool) -> Result<Executed, Error> {
        self.running(seen)?;
        if request.command.is_empty() {
            return Err(Error::invalid("No exec command specified"));
        }
        if let Some(path) = request.working_dir.as_deref().filter(|path| !path.starts_with('/')) {
            return Err(Error::invalid(format!(
                "the working directory '{path}' is invalid, it needs to be an absolute path"
            )));
        }
        let container = &seen.container;
        let not_begun = |error: Error| match error.kind {
            Kind::Invalid => Error::new(Kind::NotExecutable, error.message),
            _ => error,
        };
        let root = Root::open(Path::new(&format!("/proc/{}/root", seen.state.pid))).map_err(Error::internal)?;
        let host = &container.host;
        let spec = ExecSpec {
            id: container.id.clone(),
            exec_id: super::random_id()?,
            process: process::exec_process(container, &root, request).map_err(not_begun)?,
            terminal: request.tty.then_some(request.size),
            stdin: request.stdin,
            cgroup_parent: host.cgroup_parent.as_ref().map(PathBuf::from),
            seccomp: if request.privileged { SeccompChoice::Unconfined } else { host.seccomp()? },
            runtime: host.runtime.as_ref().map(|runtime| runtime.external(&self.directory(&container.id))),
        };
        let exec_id = spec.exec_id.clone();
        let command = request.command.join(" ");
        self.tell(container, &format!("exec_create: {command}"), &[("execID", &exec_id)]);
        if detached {
            let answer = monitor::exec_detached(&self.directory(&container.id), spec)?;
            answer.map_err(not_started)?;
            self.tell(container, &format!("exec_start: {command}"), &[("execID", &exec_id)]);
            return Ok(Executed::Detached);
        }
        let options = SandboxOptions { helper: self.parts.helper.clone(), state_dir: self.parts.state_dir.clone() };
        let (here, its) = (self.clone(), container.clone());
        let id = exec_id.clone();
        let at_end =
            move |status: i32| here.tell(&its, "exec_die", &[("execID", &id), ("exitCode", &status.to_string())]);
        let mut attachment = monitor::exec(options, &spec, seen.state.pid, Box::new(at_end))
            .map_err(|error| not_started(StartFailure::from(&error)))?;
        match attachment.next_event().map_err(Error::internal)? {
            Some(Attached::Started { .. }) => {
                self.tell(container, &format!("exec_start: {command}"), &[("execID", &exec_id)]);
                Ok(Executed::Attached(attachment))
            }
            Some(Attached::Failed(failure)) => Err(not_started(failure)),
            _ => Err(Error::internal("the process was not started")),
        }
    }
}

/// Whatever kept a process from starting in a container that runs: there was no program to have an exit code, as docker
/// counts.
fn not_started(failure: StartFailure) -> Error {
    let error = start_error(failure);
    if error.kind == Kind::Internal { Error::new(Kind::NotExecutable, error.message) } else { error }
}
