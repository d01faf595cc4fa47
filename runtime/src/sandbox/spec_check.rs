//! Refuses what a request asks for and this runtime does not do, before anything is made.

use oci_spec::runtime::{Linux, Process};

use super::lsm;
use super::spec::ProcessSpec;
use crate::error::{Error, Result};

pub(super) fn check(request: &ProcessSpec) -> Result<()> {
    let spec = &request.spec;
    let Some(process) = spec.process() else {
        return Err(Error::Refused("a spec without process".to_owned()));
    };
    check_process(process)?;
    refuse(&[
        ("a spec with hooks", spec.hooks().is_some()),
        ("a spec for another system", spec.solaris().is_some() || spec.windows().is_some() || spec.vm().is_some()),
        ("a user namespace", filled(spec.uid_mappings()) || filled(spec.gid_mappings())),
    ])?;
    spec.linux().as_ref().map_or(Ok(()), check_linux)
}

pub(super) fn check_process(process: &Process) -> Result<()> {
    lsm::check(process)?;
    refuse(&[
        ("an io priority", process.io_priority().is_some()),
        ("a scheduler policy", process.scheduler().is_some()),
        ("a cpu affinity for entered processes", process.exec_cpu_affinity().is_some()),
    ])
}

fn check_linux(linux: &Linux) -> Result<()> {
    refuse(&[
        ("a user namespace", filled(linux.uid_mappings()) || filled(linux.gid_mappings())),
        (
            "a mount label on a machine without SELinux",
            linux.mount_label().as_deref().is_some_and(|label| !label.is_empty()) && !lsm::has_selinux(),
        ),
        ("Intel RDT", linux.intel_rdt().is_some()),
        ("a memory policy", linux.memory_policy().is_some()),
        ("a personality", linux.personality().is_some()),
        ("a time namespace", linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty())),
        ("moving network devices", linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty())),
        (
            "root propagation other than private",
            linux.rootfs_propagation().as_deref().is_some_and(|name| !matches!(name, "" | "private" | "rprivate")),
        ),
    ])?;
    let Some(resources) = linux.resources() else { return Ok(()) };
    refuse(&[
        ("a huge page limit", filled(resources.hugepage_limits())),
        (
            "a network class",
            resources
                .network()
                .as_ref()
                .is_some_and(|network| network.class_id().is_some() || filled(network.priorities())),
        ),
        ("an RDMA limit", resources.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty())),
    ])
}

fn filled<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_some_and(|list| !list.is_empty())
}

fn refuse(conditions: &[(&str, bool)]) -> Result<()> {
    match conditions.iter().find(|(_, met)| *met) {
        Some((what, _)) => Err(Error::Unsupported((*what).to_owned())),
        None => Ok(()),
    }
}
