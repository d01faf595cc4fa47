//! The terms on which a container lives, which a command may change while it runs: its limits, and when it is started again.

use std::sync::{Mutex, MutexGuard, PoisonError};

use oci_spec::runtime::LinuxResources;

use crate::container::{ContainerNetwork, ContainerSpec, Handles, NewTerms, RestartPolicy};
use crate::error::{Error, Result};
use crate::sandbox::{NativeSandbox, ProcessSpec};

pub(super) struct Terms(Mutex<Now>);

struct Now {
    restart: RestartPolicy,
    /// The limits in place of those it was started with.
    resources: Option<LinuxResources>,
    /// Its namespaces, for the next life; nobody else keeps them.
    kept: Option<Handles>,
}

impl Terms {
    pub(super) fn new(restart: RestartPolicy, kept: Option<Handles>) -> Self {
        Self(Mutex::new(Now { restart, resources: None, kept }))
    }

    pub(super) fn restart(&self) -> RestartPolicy {
        self.lock().restart
    }

    /// Changes them for the container that runs, whose first process is `pid`.
    pub(super) fn change(&self, spec: &ContainerSpec, new: &NewTerms, pid: i32) -> Result<()> {
        let mut now = self.lock();
        if let Some(resources) = &new.resources {
            NativeSandbox::new(spec.sandbox_options())?.update(&spec.cgroup(), &spec.id, resources)?;
            now.resources = Some(resources.clone());
        }
        if let Some(restart) = new.restart {
            // One that was to live once has given its namespaces away.
            if restart != RestartPolicy::Never && now.kept.is_none() {
                now.kept = Some(handles_of(spec, pid)?);
            }
            now.restart = restart;
        }
        Ok(())
    }

    /// What its next life is to be.
    pub(super) fn next_life(&self, spec: &ContainerSpec) -> Result<ProcessSpec> {
        let now = self.lock();
        let kept = now.kept.as_ref().map(Handles::try_clone).transpose();
        let mut next =
            spec.process_spec(kept.map_err(|e| Error::system("keep the network", e))?.unwrap_or_default())?;
        if let (Some(new), Some(linux)) = (&now.resources, next.spec.linux_mut()) {
            let mut resources = new.clone();
            // Which devices it may use is none of the limits.
            resources.set_devices(linux.resources().as_ref().and_then(|old| old.devices().clone()));
            linux.set_resources(Some(resources));
        }
        Ok(next)
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The namespaces that a running container was given.
fn handles_of(spec: &ContainerSpec, pid: i32) -> Result<Handles> {
    let network = match spec.network {
        ContainerNetwork::Attached => Some(super::wiring::namespace_of(pid)?.into_fd()),
        ContainerNetwork::Host | ContainerNetwork::None => None,
    };
    let user = match spec.ids {
        Some(_) => {
            let file = std::fs::File::open(format!("/proc/{pid}/ns/user"));
            Some(file.map_err(|e| Error::system("keep the user namespace", e))?.into())
        }
        None => None,
    };
    Ok(Handles { user, network })
}
