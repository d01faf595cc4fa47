//! Which namespaces a sandbox makes, which it joins, and which stay the caller's.

use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{Mode, OFlags, open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::supervise::{Fds, Net};
use super::sys;
use crate::error::{Doing, Failure};

pub(super) struct Namespaces {
    create: i32,
    cgroup: bool,
    join: Vec<(LinkNameSpaceType, OwnedFd)>,
    pid: Option<OwnedFd>,
    new_network: bool,
}

impl Namespaces {
    pub(super) fn of(spec: &Spec, net: &Net, fds: &mut Fds) -> Result<Self, Failure> {
        let mut of = Namespaces { create: 0, cgroup: false, join: Vec::new(), pid: None, new_network: false };
        let named = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
        for namespace in named {
            let path = namespace.path().as_ref();
            let open = || -> Result<Option<OwnedFd>, Failure> {
                path.map(|path| {
                    open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                        .doing(|| format!("open the namespace {}", path.display()))
                })
                .transpose()
            };
            match namespace.typ() {
                LinuxNamespaceType::Mount if path.is_none() => of.create |= libc::CLONE_NEWNS,
                LinuxNamespaceType::Cgroup if path.is_none() => of.cgroup = true,
                LinuxNamespaceType::Pid => match open()? {
                    Some(fd) => of.pid = Some(fd),
                    None => of.create |= libc::CLONE_NEWPID,
                },
                LinuxNamespaceType::Ipc => match open()? {
                    Some(fd) => of.join.push((LinkNameSpaceType::InterProcessCommunication, fd)),
                    None => of.create |= libc::CLONE_NEWIPC,
                },
                LinuxNamespaceType::Uts => match open()? {
                    Some(fd) => of.join.push((LinkNameSpaceType::HostNameAndNISDomainName, fd)),
                    None => of.create |= libc::CLONE_NEWUTS,
                },
                // The request's own field says it.
                LinuxNamespaceType::Network => {}
                other => return Err(Failure::Unsupported(format!("a {other} namespace of this kind"))),
            }
        }
        if of.create & libc::CLONE_NEWNS == 0 {
            return Err(Failure::Unsupported("a sandbox without its own mount namespace".to_owned()));
        }
        match net {
            Net::Host => {}
            Net::New => {
                of.create |= libc::CLONE_NEWNET;
                of.new_network = true;
            }
            Net::Joined(place) => of.join.push((LinkNameSpaceType::Network, fds.take(*place)?)),
        }
        Ok(of)
    }

    /// Flags for the clone. The cgroup namespace is not among them: its root is the cgroup one is in when it is made.
    pub(super) fn to_create(&self) -> i32 {
        self.create
    }

    pub(super) fn own_uts(&self) -> bool {
        self.create & libc::CLONE_NEWUTS != 0
    }

    pub(super) fn own_ipc(&self) -> bool {
        self.create & libc::CLONE_NEWIPC != 0
    }

    /// Whether sysctls of the network would not be the host's.
    pub(super) fn own_network(&self) -> bool {
        self.new_network || self.join.iter().any(|(kind, _)| matches!(kind, LinkNameSpaceType::Network))
    }

    pub(super) fn own_cgroup(&self) -> bool {
        self.cgroup
    }

    /// A pid namespace holds for children only, so it is joined by their parent.
    pub(super) fn join_before_clone(&self) -> Result<(), Failure> {
        match &self.pid {
            Some(fd) => move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::ProcessID))
                .doing(|| "join the pid namespace".to_owned()),
            None => Ok(()),
        }
    }

    /// The cgroup namespace, by the init once it is in its cgroup.
    pub(super) fn make_cgroup(&self) -> Result<(), Failure> {
        if self.cgroup { sys::unshare_cgroup().doing(|| "create a cgroup namespace".to_owned()) } else { Ok(()) }
    }

    /// The same and all that [`Namespaces::make_cgroup`] makes, for one who is in the cgroup already.
    pub(super) fn to_create_with_cgroup(&self) -> i32 {
        self.create | if self.cgroup { libc::CLONE_NEWCGROUP } else { 0 }
    }

    /// Those of others, by whoever is to be in them.
    pub(super) fn join(&self) -> Result<(), Failure> {
        for (kind, fd) in &self.join {
            move_into_link_name_space(fd.as_fd(), Some(*kind)).doing(|| format!("join a namespace ({kind:?})"))?;
        }
        Ok(())
    }

    /// By the init, in its network.
    pub(super) fn raise_loopback(&self) -> Result<(), Failure> {
        if self.new_network {
            sys::bring_up(c"lo").doing(|| "bring the loopback interface up".to_owned())?;
        }
        Ok(())
    }
}
