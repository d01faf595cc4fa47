//! The terms on which a container lives, which a command may change while it runs: its limits, and when it is started again.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use oci_spec::runtime::LinuxResources;

use crate::container::{ContainerNetwork, ContainerSpec, NewTerms, RestartPolicy};
use crate::error::{Error, Result};
use crate::sandbox::{NativeSandbox, ProcessSpec};

pub(super) struct Terms(Mutex<Now>);

struct Now {
    restart: RestartPolicy,
    /// The limits in place of those it was started with.
    resources: Option<LinuxResources>,
    /// Its network, for the next life; nobody else keeps it.
    namespace: Option<OwnedFd>,
}

impl Terms {
    pub(super) fn new(restart: RestartPolicy, namespace: Option<OwnedFd>) -> Self {
        Self(Mutex::new(Now { restart, resources: None, namespace }))
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
            // One that was to live once has given its network away.
            let keeps = restart != RestartPolicy::Never && matches!(spec.network, ContainerNetwork::Attached);
            if keeps && now.namespace.is_none() {
                now.namespace = Some(super::wiring::namespace_of(pid)?.into_fd());
            }
            now.restart = restart;
        }
        Ok(())
    }

    /// What its next life is to be.
    pub(super) fn next_life(&self, spec: &ContainerSpec) -> Result<ProcessSpec> {
        let now = self.lock();
        let namespace = now.namespace.as_ref().map(OwnedFd::try_clone).transpose();
        let mut next = spec.process_spec(namespace.map_err(|e| Error::system("keep the network", e))?)?;
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
