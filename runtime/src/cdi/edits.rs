//! Giving devices to a container: its specification is changed as theirs say.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceType, Spec};

use super::document::{Edits, HostMount, Node};
use super::{Device, SpecFile};
use crate::container::InsideMount;
use crate::error::{Error, Result};

/// Gives `devices` to the container of `spec`; the mounts they need are returned, ordered by their place.
///
/// What every device of a file needs is given once. A node without an owner of its own belongs to the process's user.
///
/// # Errors
/// A node of the host's that is not there, or what is not done here (hooks, network devices, resource directors); each
/// names the device.
pub fn inject(spec: &mut Spec, devices: &[&Device]) -> Result<Vec<InsideMount>> {
    let mut files: Vec<*const SpecFile> = Vec::new();
    let mut mounts = Vec::new();
    for device in devices {
        let file = std::sync::Arc::as_ptr(&device.spec);
        if !files.contains(&file) {
            files.push(file);
            apply(spec, &device.name, &device.spec.edits, &mut mounts)?;
        }
        apply(spec, &device.name, &device.edits, &mut mounts)?;
    }
    mounts.sort_by(|a: &InsideMount, b| a.destination.cmp(&b.destination));
    Ok(mounts)
}

fn apply(spec: &mut Spec, name: &str, edits: &Edits, mounts: &mut Vec<InsideMount>) -> Result<()> {
    refuse(name, edits)?;
    if let Some(process) = spec.process_mut() {
        let mut env = process.env().clone().unwrap_or_default();
        for entry in &edits.env {
            let variable = entry.split_inclusive('=').next().unwrap_or_default();
            env.retain(|other| !other.starts_with(variable));
            env.push(entry.clone());
        }
        process.set_env(Some(env));
        let mut user = process.user().clone();
        let mut groups = user.additional_gids().clone().unwrap_or_default();
        let new: Vec<u32> = edits.additional_gids.iter().copied().filter(|gid| *gid != 0).collect();
        if !new.is_empty() {
            groups.extend(new);
            groups.sort_unstable();
            groups.dedup();
            user.set_additional_gids(Some(groups));
            process.set_user(user);
        }
    }
    for node in &edits.device_nodes {
        add_node(spec, name, node)?;
    }
    for mount in &edits.mounts {
        let destination = PathBuf::from(&mount.container_path);
        mounts.retain(|other: &InsideMount| other.destination != destination);
        mounts.push(inside(mount, destination));
    }
    Ok(())
}

fn refuse(name: &str, edits: &Edits) -> Result<()> {
    let what = if let Some(hook) = edits.hooks.first() {
        format!("the hook {} ({})", hook.path, hook.hook_name)
    } else if !edits.net_devices.is_empty() {
        "a network device".to_owned()
    } else if edits.intel_rdt.is_some() {
        "intelRdt".to_owned()
    } else if let Some(mount) =
        edits.mounts.iter().find(|mount| !matches!(mount.kind.as_deref(), None | Some("" | "bind")))
    {
        format!("a mount of the type {}", mount.kind.as_deref().unwrap_or_default())
    } else {
        return Ok(());
    };
    Err(Error::Unsupported(format!("the device {name} asks for {what}, which")))
}

fn inside(mount: &HostMount, destination: PathBuf) -> InsideMount {
    let mut options = mount.options.clone();
    if !options.iter().any(|option| option == "bind" || option == "rbind") {
        options.push("bind".to_owned());
    }
    let source = Some(PathBuf::from(&mount.host_path));
    InsideMount { source, layers: None, subpath: None, destination, options }
}

fn add_node(spec: &mut Spec, name: &str, node: &Node) -> Result<()> {
    let owner = spec.process().as_ref().map(|process| (process.user().uid(), process.user().gid()));
    let made = on_host(name, node, owner.unwrap_or_default())?;
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    if made.typ() != LinuxDeviceType::P {
        let mut rule = LinuxDeviceCgroup::from(&made);
        if let Some(access) = node.permissions.as_ref().filter(|access| !access.is_empty()) {
            rule.set_access(Some(access.clone()));
        }
        let mut resources = linux.resources().clone().unwrap_or_default();
        let mut rules = resources.devices().clone().unwrap_or_default();
        rules.push(rule);
        resources.set_devices(Some(rules));
        linux.set_resources(Some(resources));
    }
    let mut nodes = linux.devices().clone().unwrap_or_default();
    nodes.retain(|other| other.path() != made.path());
    nodes.push(made);
    linux.set_devices(Some(nodes));
    Ok(())
}

/// The node with what the host's own says where the specification is silent.
fn on_host(name: &str, node: &Node, owner: (u32, u32)) -> Result<LinuxDevice> {
    let written = match node.kind.as_deref() {
        Some("b") => Some(LinuxDeviceType::B),
        Some("c" | "u") => Some(LinuxDeviceType::C),
        Some("p") => Some(LinuxDeviceType::P),
        _ => None,
    };
    let (kind, numbers) = match (written, node.major.filter(|major| *major != 0)) {
        (Some(LinuxDeviceType::P), _) => (LinuxDeviceType::P, (0, 0)),
        (Some(kind), Some(major)) => (kind, (major, node.minor.unwrap_or(0))),
        _ => {
            let path = Path::new(node.host_path.as_deref().unwrap_or(&node.path));
            let (found, numbers) = look(name, path)?;
            if written.is_some_and(|written| written != found) {
                let message =
                    format!("the device {name}: {} is not of the type its specification says", path.display());
                return Err(Error::Refused(message));
            }
            (found, numbers)
        }
    };
    let mut made = LinuxDeviceBuilder::default()
        .path(&node.path)
        .typ(kind)
        .major(numbers.0)
        .minor(numbers.1)
        .build()
        .map_err(|error| Error::Refused(format!("the device {name}: {error}")))?;
    made.set_file_mode(node.file_mode.map(|mode| mode & 0o7777));
    made.set_uid(node.uid.or((owner.0 > 0).then_some(owner.0)));
    made.set_gid(node.gid.or((owner.1 > 0).then_some(owner.1)));
    Ok(made)
}

fn look(name: &str, path: &Path) -> Result<(LinuxDeviceType, (i64, i64))> {
    let metadata = std::fs::symlink_metadata(path)
        .map_err(|error| Error::system(format!("look at {} of the device {name}", path.display()), error))?;
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_block_device() => LinuxDeviceType::B,
        kind if kind.is_fifo() => return Ok((LinuxDeviceType::P, (0, 0))),
        _ => return Err(Error::Refused(format!("the device {name}: {} is not a device node", path.display()))),
    };
    let number = metadata.rdev();
    Ok((kind, (i64::from(rustix::fs::major(number)), i64::from(rustix::fs::minor(number)))))
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::UserBuilder;

    use super::*;
    use crate::cdi::DeviceSpecs;
    use crate::default_spec;

    fn injected(device: &str, uid: u32) -> (Result<Vec<InsideMount>>, Spec) {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "cdiVersion: 1.1.0\nkind: acme.com/thing\ncontainerEdits:\n  env: [ALL=1, PATH=/acme]\ndevices:\n\
             - name: one\n  containerEdits: {device}\n- name: two\n  containerEdits: {{env: [ALL=2, TWO=2]}}\n"
        );
        std::fs::write(dir.path().join("acme.yaml"), text).unwrap();
        let specs = DeviceSpecs::read(&[dir.path().to_owned()]);
        assert_eq!(specs.faults(), []);
        let devices: Vec<_> = specs.of_kind("acme.com/thing").collect();
        let user = UserBuilder::default().uid(uid).gid(uid).build().unwrap();
        let mut spec = default_spec(vec!["x".into()], vec!["PATH=/bin".into(), "HOME=/".into()], "/", user);
        let done = inject(&mut spec, &devices);
        (done, spec)
    }

    #[test]
    fn nodes_variables_mounts_and_groups() {
        let device = "{deviceNodes: [{path: /dev/nothing, hostPath: /dev/null, permissions: r, fileMode: 0640}, \
                       {path: /dev/made, type: b, major: 7, minor: 3, gid: 5}], additionalGids: [0, 44], \
                       mounts: [{hostPath: /usr, containerPath: /opt/z, options: [ro, rbind]}, \
                       {hostPath: /etc, containerPath: /opt/a}]}";
        let (mounts, spec) = injected(device, 1000);
        let mounts = mounts.unwrap();
        let places: Vec<_> = mounts.iter().map(|m| (m.destination.to_str().unwrap(), m.options.join(","))).collect();
        assert_eq!(places, [("/opt/a", "bind".to_owned()), ("/opt/z", "ro,rbind".to_owned())]);
        let process = spec.process().clone().unwrap();
        assert_eq!(process.env().clone().unwrap(), ["HOME=/", "PATH=/acme", "ALL=2", "TWO=2"]);
        assert_eq!(process.user().additional_gids().clone().unwrap(), [44]);
        let linux = spec.linux().clone().unwrap();
        let [null, made] = &linux.devices().clone().unwrap()[..] else { panic!("{linux:?}") };
        assert_eq!(
            (null.path().to_str(), null.typ(), null.major(), null.minor()),
            (Some("/dev/nothing"), LinuxDeviceType::C, 1, 3)
        );
        assert_eq!((null.file_mode(), null.uid(), null.gid()), (Some(0o640), Some(1000), Some(1000)));
        assert_eq!((made.typ(), made.major(), made.minor(), made.gid()), (LinuxDeviceType::B, 7, 3, Some(5)));
        let rules = linux.resources().clone().unwrap().devices().clone().unwrap();
        let last: Vec<_> =
            rules[rules.len() - 2..].iter().map(|r| (r.allow(), r.major(), r.access().clone())).collect();
        assert_eq!(last, [(true, Some(1), Some("r".into())), (true, Some(7), Some("rwm".into()))]);
    }

    #[test]
    fn what_is_not_done_is_named() {
        for (device, want) in [
            (
                "{hooks: [{hookName: createContainer, path: /bin/x, args: [a]}]}",
                "the device acme.com/thing=one asks for the hook /bin/x (createContainer), which is not supported",
            ),
            (
                "{netDevices: [{hostInterfaceName: a, name: b}]}",
                "the device acme.com/thing=one asks for a network device, which is not supported",
            ),
            ("{intelRdt: {closID: x}}", "the device acme.com/thing=one asks for intelRdt, which is not supported"),
            (
                "{mounts: [{hostPath: /x, containerPath: /x, type: tmpfs}]}",
                "the device acme.com/thing=one asks for a mount of the type tmpfs, which is not supported",
            ),
            (
                "{deviceNodes: [{path: /no/such/node}]}",
                "cannot look at /no/such/node of the device acme.com/thing=one: no such file or directory",
            ),
            (
                "{deviceNodes: [{path: /dev/null, type: b}]}",
                "the device acme.com/thing=one: /dev/null is not of the type its specification says",
            ),
            ("{deviceNodes: [{path: /etc}]}", "the device acme.com/thing=one: /etc is not a device node"),
        ] {
            assert_eq!(injected(device, 0).0.unwrap_err().to_string(), want, "{device}");
        }
    }
}
