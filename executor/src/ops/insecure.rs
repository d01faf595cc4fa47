//! `RUN --security=insecure`: a process that is not confined, as docker's `--privileged` makes one.
//!
//! It keeps namespaces of its own and its root, but has every capability, every device and no filter. Only the caller of
//! the build can allow that, never the Dockerfile alone, and the check is made where the sandbox is made.

use oci_spec::runtime::{Capability, LinuxDeviceBuilder, LinuxDeviceCgroupBuilder, LinuxDeviceType, Spec};
use rbuild_runtime::sandbox::capability_sets;

use rbuild_runtime::sandbox::ALL_CAPABILITIES;

use crate::ExecutorError;

/// What `/dev` of a sandbox has anyway.
const OWN_DEVICES: [&str; 8] = ["console", "ptmx", "tty", "null", "zero", "full", "random", "urandom"];

/// Takes the confinement off `spec`.
pub(crate) fn unconfine(spec: &mut Spec) -> Result<(), ExecutorError> {
    let invalid = |error: &dyn std::fmt::Display| ExecutorError::Invalid(error.to_string());
    let all: Vec<Capability> = ALL_CAPABILITIES.iter().filter_map(|name| name.parse().ok()).collect();
    if let Some(process) = spec.process_mut() {
        process.set_capabilities(Some(capability_sets(&all)));
    }
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if matches!(mount.typ().as_deref(), Some("sysfs" | "cgroup")) {
            let mut options = mount.options().clone().unwrap_or_default();
            options.retain(|option| option != "ro");
            mount.set_options(Some(options));
        }
    }
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    linux.set_masked_paths(None);
    linux.set_readonly_paths(None);
    let every = LinuxDeviceCgroupBuilder::default().allow(true).typ(LinuxDeviceType::A).access("rwm").build();
    let mut resources = linux.resources().clone().unwrap_or_default();
    resources.set_devices(Some(vec![every.map_err(|error| invalid(&error))?]));
    linux.set_resources(Some(resources));
    linux.set_devices(Some(host_devices()?));
    Ok(())
}

fn host_devices() -> Result<Vec<oci_spec::runtime::LinuxDevice>, ExecutorError> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let invalid =
        |error: &dyn std::fmt::Display| ExecutorError::Invalid(format!("the devices of this machine: {error}"));
    let mut devices = Vec::new();
    for entry in std::fs::read_dir("/dev").map_err(|error| invalid(&error))?.flatten() {
        let Ok(metadata) = entry.path().symlink_metadata() else { continue };
        let kind = match metadata.file_type() {
            kind if kind.is_char_device() => LinuxDeviceType::C,
            kind if kind.is_block_device() => LinuxDeviceType::B,
            _ => continue,
        };
        if OWN_DEVICES.iter().any(|own| entry.file_name() == *own) {
            continue;
        }
        let number = metadata.rdev();
        let device = LinuxDeviceBuilder::default()
            .path(entry.path())
            .typ(kind)
            .major(i64::from(rustix::fs::major(number)))
            .minor(i64::from(rustix::fs::minor(number)))
            .file_mode(metadata.mode() & 0o7777)
            .uid(metadata.uid())
            .gid(metadata.gid())
            .build();
        devices.push(device.map_err(|error| invalid(&error))?);
    }
    Ok(devices)
}
