//! What keeps a container apart beyond docker's defaults, and what it may use of the machine's devices and disks:
//! the wishes as data, and how they change the sandbox's specification.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    LinuxBlockIo, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespaceType, LinuxResources, LinuxThrottleDevice,
    LinuxThrottleDeviceBuilder, LinuxWeightDeviceBuilder, Spec,
};
use rbuild_runtime::container::SeccompChoice;
use rbuild_runtime::sandbox::{MASKED_PATHS, READ_ONLY_PATHS, lsm, seccomp};
use serde::{Deserialize, Serialize};

use super::process;
use super::record::Container;
use super::request::{HostSettings, Relabel};
use crate::error::Error;

/// What `--security-opt` can say beside "no new privileges" and "no filter of system calls".
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Security {
    /// The text of a profile of system calls in docker's format, in place of the default one.
    pub seccomp_profile: Option<String>,
    /// The AppArmor profile, which the kernel must know, or `unconfined`.
    pub apparmor: Option<String>,
    /// SELinux: `disable`, or fields of the label, `type:container_t`.
    pub labels: Vec<String>,
    /// Nothing of procfs and sysfs is masked or read-only.
    pub bare_system_paths: bool,
    /// Paths masked beside the usual ones.
    pub masked: Vec<String>,
    /// Paths, or patterns of one, that are neither masked nor read-only; `ALL` is each.
    pub unmasked: Vec<String>,
}

/// How much of the disks a container may use.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockIo {
    /// From 10 to 1000, among the containers that want a disk.
    pub weight: Option<u16>,
    pub weight_of: Vec<(PathBuf, u16)>,
    /// Bytes in a second.
    pub read_bps: Vec<(PathBuf, u64)>,
    pub write_bps: Vec<(PathBuf, u64)>,
    /// Operations in a second.
    pub read_iops: Vec<(PathBuf, u64)>,
    pub write_iops: Vec<(PathBuf, u64)>,
}

impl HostSettings {
    /// Which system calls its processes may make.
    ///
    /// # Errors
    /// The profile is none.
    pub(super) fn seccomp(&self) -> Result<SeccompChoice, Error> {
        // A profile of the caller's holds even for a privileged container, as docker has it.
        if let Some(text) = &self.security.seccomp_profile {
            let capabilities = process::capabilities(self)?.into_iter().collect();
            let profile = seccomp::parse_docker_profile(text, &capabilities)
                .and_then(|profile| seccomp::check(&profile).map(|()| profile))
                .map_err(|e| Error::invalid(e.to_string()))?;
            return Ok(SeccompChoice::Profile(Box::new(profile)));
        }
        let unconfined = self.privileged || self.seccomp_unconfined;
        Ok(if unconfined { SeccompChoice::Unconfined } else { SeccompChoice::Default })
    }

    /// The AppArmor profile of its processes; `None` where nothing is to be said to the kernel.
    pub(super) fn apparmor(&self) -> Option<String> {
        self.security.apparmor.clone().filter(|name| !name.is_empty() && lsm::has_apparmor())
    }
}

/// Refuses, while a container is being made, what its start would find out.
pub(super) fn check(host: &HostSettings) -> Result<(), Error> {
    host.seccomp()?;
    let security = &host.security;
    if let Some(name) = security.apparmor.as_deref().filter(|name| !name.is_empty() && *name != "unconfined")
        && !lsm::has_apparmor()
    {
        return Err(Error::invalid(format!(
            "invalid --security-opt: \"apparmor={name}\": the kernel of this machine has no AppArmor"
        )));
    }
    if labels_wanted(security) && !lsm::has_selinux() {
        let option = &security.labels[0];
        return Err(Error::invalid(format!(
            "invalid --security-opt: \"label={option}\": the kernel of this machine has no SELinux"
        )));
    }
    for path in security.masked.iter().chain(security.unmasked.iter().filter(|path| *path != "ALL")) {
        if !path.starts_with('/') {
            return Err(Error::invalid(format!("invalid --security-opt: {path:?} is not an absolute path")));
        }
    }
    for rule in &host.device_cgroup_rules {
        device_rules(rule)?;
    }
    check_numbers(host)
}

fn check_numbers(host: &HostSettings) -> Result<(), Error> {
    let of_weights = host.block_io.weight.iter().chain(host.block_io.weight_of.iter().map(|(_, weight)| weight));
    if of_weights.into_iter().any(|weight| *weight != 0 && !(10..=1000).contains(weight)) {
        return Err(Error::invalid("Range of blkio weight is from 10 to 1000"));
    }
    if let Some(swappiness) = host.memory_swappiness.filter(|n| !(0..=100).contains(n)) {
        let message = format!("Invalid value: {swappiness}, valid memory swappiness range is 0-100");
        return Err(Error::invalid(message));
    }
    if let (Some(period), Some(runtime)) = (host.cpu_rt_period, host.cpu_rt_runtime)
        && runtime > 0
        && runtime.unsigned_abs() > period
    {
        return Err(Error::invalid("cpu real-time runtime cannot be higher than cpu real-time period"));
    }
    match host.volume_driver.as_deref() {
        None | Some("" | "local") => Ok(()),
        Some(name) => {
            Err(Error::invalid(format!("error looking up volume plugin {name}: plugin \"{name}\" not found")))
        }
    }
}

/// Changes the specification to what the wishes say.
pub(super) fn apply(container: &Container, spec: &mut Spec) -> Result<(), Error> {
    let host = &container.host;
    if !host.annotations.is_empty() {
        spec.set_annotations(Some(host.annotations.clone().into_iter().collect()));
    }
    if let Some(labels) = selinux_labels(&host.security, &container.id)? {
        if let Some(process) = spec.process_mut() {
            process.set_selinux_label(Some(labels.process));
        }
        if let Some(linux) = spec.linux_mut() {
            linux.set_mount_label(Some(labels.file));
        }
    }
    if let Some(process) = spec.process_mut() {
        process.set_apparmor_profile(host.apparmor());
    }
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    if host.cgroup_host
        && let Some(namespaces) = linux.namespaces_mut()
    {
        namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Cgroup);
    }
    let (masked, read_only) = system_paths(host, linux.masked_paths(), linux.readonly_paths());
    linux.set_masked_paths(masked);
    linux.set_readonly_paths(read_only);
    if let Some(resources) = linux.resources_mut() {
        limit(resources, host)?;
    }
    Ok(())
}

/// The paths of procfs and sysfs that a container of these settings has masked, and read-only.
pub(super) fn system_paths_of(host: &HostSettings) -> (Vec<String>, Vec<String>) {
    if host.privileged {
        return (Vec::new(), Vec::new());
    }
    let usual = |paths: &[&str]| Some(paths.iter().map(|&path| path.to_owned()).collect());
    let (masked, read_only) = system_paths(host, &usual(&MASKED_PATHS), &usual(&READ_ONLY_PATHS));
    (masked.unwrap_or_default(), read_only.unwrap_or_default())
}

/// The paths that are masked, and those that are read-only.
fn system_paths(
    host: &HostSettings,
    masked: &Option<Vec<String>>,
    read_only: &Option<Vec<String>>,
) -> (Option<Vec<String>>, Option<Vec<String>>) {
    let security = &host.security;
    let kept = |paths: &Option<Vec<String>>| -> Vec<String> {
        let paths = paths.iter().flatten().filter(|_| !security.bare_system_paths);
        paths.filter(|path| !security.unmasked.iter().any(|pattern| fits(pattern, path))).cloned().collect()
    };
    let mut masked = kept(masked);
    masked.extend(security.masked.iter().cloned());
    let some = |paths: Vec<String>| Some(paths).filter(|paths| !paths.is_empty());
    (some(masked), some(kept(read_only)))
}

/// Whether a pattern of an `unmask` names the path; `*` stands for anything within a name.
fn fits(pattern: &str, path: &str) -> bool {
    if pattern == "ALL" {
        return true;
    }
    let (pattern, path): (Vec<&str>, Vec<&str>) = (pattern.split('/').collect(), path.split('/').collect());
    let name = |pattern: &str, name: &str| match pattern.split_once('*') {
        Some((start, end)) => name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end),
        None => pattern == name,
    };
    pattern.len() == path.len() && pattern.iter().zip(&path).all(|(pattern, path)| name(pattern, path))
}

/// Adds the limits that are not among [`super::process::limit`]'s.
pub(super) fn limit(resources: &mut LinuxResources, host: &HostSettings) -> Result<(), Error> {
    if host.memory_swappiness.is_some() || host.oom_kill_disable {
        let mut memory = resources.memory().unwrap_or_default();
        if let Some(swappiness) = host.memory_swappiness {
            memory.set_swappiness(u64::try_from(swappiness).ok());
        }
        memory.set_disable_oom_killer(host.oom_kill_disable.then_some(true));
        resources.set_memory(Some(memory));
    }
    if host.cpu_rt_period.is_some() || host.cpu_rt_runtime.is_some() {
        let mut cpu = resources.cpu().clone().unwrap_or_default();
        cpu.set_realtime_period(host.cpu_rt_period);
        cpu.set_realtime_runtime(host.cpu_rt_runtime);
        resources.set_cpu(Some(cpu));
    }
    if host.block_io != BlockIo::default() {
        resources.set_block_io(Some(block_io(&host.block_io)?));
    }
    if !host.device_cgroup_rules.is_empty() && !host.privileged {
        let mut rules = resources.devices().clone().unwrap_or_default();
        for rule in &host.device_cgroup_rules {
            rules.extend(device_rules(rule)?);
        }
        resources.set_devices(Some(rules));
    }
    Ok(())
}

fn block_io(wish: &BlockIo) -> Result<LinuxBlockIo, Error> {
    let mut io = LinuxBlockIo::default();
    io.set_weight(wish.weight);
    let mut weights = Vec::new();
    for (path, weight) in &wish.weight_of {
        let (major, minor) = block_device(path)?;
        let one = LinuxWeightDeviceBuilder::default().major(major).minor(minor).weight(*weight).build();
        weights.push(one.map_err(Error::internal)?);
    }
    io.set_weight_device(Some(weights).filter(|weights| !weights.is_empty()));
    let throttles = |of: &[(PathBuf, u64)]| -> Result<Option<Vec<LinuxThrottleDevice>>, Error> {
        let one = |(path, rate): &(PathBuf, u64)| {
            let (major, minor) = block_device(path)?;
            let built = LinuxThrottleDeviceBuilder::default().major(major).minor(minor).rate(*rate).build();
            built.map_err(Error::internal)
        };
        let all = of.iter().map(one).collect::<Result<Vec<_>, Error>>()?;
        Ok(Some(all).filter(|all| !all.is_empty()))
    };
    io.set_throttle_read_bps_device(throttles(&wish.read_bps)?);
    io.set_throttle_write_bps_device(throttles(&wish.write_bps)?);
    io.set_throttle_read_iops_device(throttles(&wish.read_iops)?);
    io.set_throttle_write_iops_device(throttles(&wish.write_iops)?);
    Ok(io)
}

fn block_device(path: &Path) -> Result<(i64, i64), Error> {
    let metadata = std::fs::metadata(path).map_err(|e| {
        Error::invalid(format!("error gathering device information of the block device \"{}\": {e}", path.display()))
    })?;
    if !metadata.file_type().is_block_device() {
        return Err(Error::invalid(format!("\"{}\" is not a block device", path.display())));
    }
    Ok((rustix::fs::major(metadata.rdev()).into(), rustix::fs::minor(metadata.rdev()).into()))
}

/// The rules that a line like `c 42:* rmw` stands for: `a` with a number is both kinds of device.
///
/// # Errors
/// It is no such line.
fn device_rules(text: &str) -> Result<Vec<LinuxDeviceCgroup>, Error> {
    let refuse = || Error::invalid(format!("invalid device cgroup format '{text}'"));
    let [kind, numbers, access] = text.split(' ').collect::<Vec<_>>()[..] else { return Err(refuse()) };
    let (major, minor) = numbers.split_once(':').ok_or_else(refuse)?;
    let number = |text: &str| match text {
        "*" => Ok(None),
        _ if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
            text.parse::<u32>().map(|n| Some(i64::from(n))).map_err(|_| refuse())
        }
        _ => Err(refuse()),
    };
    let (major, minor) = (number(major)?, number(minor)?);
    if access.is_empty() || access.len() > 3 || !access.bytes().all(|b| b"rwm".contains(&b)) {
        return Err(refuse());
    }
    let kinds: &[LinuxDeviceType] = match kind {
        "a" => &[LinuxDeviceType::B, LinuxDeviceType::C],
        "b" => &[LinuxDeviceType::B],
        "c" => &[LinuxDeviceType::C],
        _ => return Err(refuse()),
    };
    let one = |kind: &LinuxDeviceType| {
        let mut rule = process::device_rule(*kind, None, access)?;
        rule.set_major(major);
        rule.set_minor(minor);
        Ok(rule)
    };
    kinds.iter().map(one).collect()
}

/// SELinux labels of a container's processes and files.
#[derive(Debug, PartialEq, Eq)]
struct Labels {
    process: String,
    file: String,
}

fn labels_wanted(security: &Security) -> bool {
    !security.labels.is_empty() && !security.labels.iter().any(|option| option == "disable")
}

fn selinux_labels(security: &Security, id: &str) -> Result<Option<Labels>, Error> {
    if !labels_wanted(security) || !lsm::has_selinux() {
        return Ok(None);
    }
    labels(&lsm::container_contexts(), &security.labels, id).map(Some)
}

/// The SELinux label of a container's processes, if it has one.
pub(super) fn process_label(container: &Container) -> Result<Option<String>, Error> {
    let labels = selinux_labels(&container.host.security, &container.id)?;
    Ok(labels.map(|labels| labels.process))
}

/// Refuses to label what the machine itself lives on, which would lock its own programs out of it.
pub(super) fn check_relabelling(source: &Path) -> Result<(), Error> {
    const KEPT: [&str; 18] = [
        "/",
        "/bin",
        "/boot",
        "/dev",
        "/etc",
        "/etc/passwd",
        "/etc/pki",
        "/etc/shadow",
        "/home",
        "/lib",
        "/lib64",
        "/proc",
        "/root",
        "/run",
        "/sys",
        "/tmp",
        "/usr",
        "/var",
    ];
    let plain: PathBuf = source.components().filter(|part| !matches!(part, std::path::Component::CurDir)).collect();
    if lsm::has_selinux() && KEPT.iter().any(|kept| plain == Path::new(kept)) {
        return Err(Error::invalid(format!("SELinux relabeling of {} is not allowed", source.display())));
    }
    Ok(())
}

/// Gives what is mounted the label of files that the container may use; without SELinux there are no labels.
pub(super) fn relabel(container: &Container, source: &Path, how: Relabel) -> Result<(), Error> {
    let security = &container.host.security;
    if !lsm::has_selinux() || security.labels.iter().any(|option| option == "disable") {
        return Ok(());
    }
    check_relabelling(source)?;
    let label = file_label(&lsm::container_contexts(), &security.labels, &container.id, how)?;
    lsm::relabel(source, &label)
        .map_err(|e| Error::internal(format!("cannot give {} the SELinux label {label}: {e}", source.display())))
}

/// Without categories every container may use what is labelled so.
fn file_label(contexts: &lsm::Contexts, options: &[String], id: &str, how: Relabel) -> Result<String, Error> {
    let own = labels(contexts, options, id)?.file;
    match how {
        Relabel::Private => Ok(own),
        Relabel::Shared => Ok(own.splitn(4, ':').take(3).chain(["s0"]).collect::<Vec<_>>().join(":")),
    }
}

/// The labels that the policy has for containers, with fields of the caller's; without a level of his the processes of
/// each container get two categories of their own.
fn labels(contexts: &lsm::Contexts, options: &[String], id: &str) -> Result<Labels, Error> {
    let mut process: Vec<String> = contexts.process.splitn(4, ':').map(str::to_owned).collect();
    let mut file: Vec<String> = contexts.file.splitn(4, ':').map(str::to_owned).collect();
    if process.len() != 4 || file.len() != 4 {
        return Err(Error::invalid("the SELinux policy of this machine has no labels for containers"));
    }
    let seed = u32::from_str_radix(&id[..8.min(id.len())], 16).unwrap_or(0);
    let (one, other) = (seed % 1024, seed / 1024 % 1023);
    let (low, high) = if other >= one { (one, other + 1) } else { (other, one) };
    process[3] = format!("s0:c{low},c{high}");
    file[3].clone_from(&process[3]);
    for option in options {
        let refuse = || Error::invalid(format!("Bad label option {option:?}"));
        match option.split_once(':').ok_or_else(refuse)? {
            ("user", value) => value.clone_into(&mut process[0]),
            ("role", value) => value.clone_into(&mut process[1]),
            ("type", value) => value.clone_into(&mut process[2]),
            ("filetype", value) => value.clone_into(&mut file[2]),
            ("level", value) => {
                value.clone_into(&mut process[3]);
                value.clone_into(&mut file[3]);
            }
            _ => return Err(refuse()),
        }
    }
    Ok(Labels { process: process.join(":"), file: file.join(":") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_device_rules() {
        let count = |text| device_rules(text).map(|rules| rules.len()).ok();
        for (text, want) in [("c 1:3 rwm", Some(1)), ("b *:* m", Some(1)), ("a 7:* r", Some(2)), ("c *:3 wr", Some(1))]
        {
            assert_eq!(count(text), want, "{text}");
        }
        for text in
            ["", "c 1:3", "x 1:3 r", "c 1 r", "c 1:-3 r", "c 1:3 x", "c 1:3 rwmr", "c  1:3 r", "c 99999999999:1 r"]
        {
            assert_eq!(count(text), None, "{text}");
        }
    }

    #[test]
    fn paths_are_unmasked_by_name_and_pattern() {
        for (pattern, path, want) in [
            ("ALL", "/proc/kcore", true),
            ("/proc/kcore", "/proc/kcore", true),
            ("/proc/*", "/proc/kcore", true),
            ("/proc/k*e", "/proc/kcore", true),
            ("/proc/*", "/sys/firmware", false),
            ("/proc", "/proc/kcore", false),
            ("/*", "/proc/kcore", false),
        ] {
            assert_eq!(fits(pattern, path), want, "{pattern} {path}");
        }
    }

    #[test]
    fn labels_take_the_callers_fields() {
        let contexts = lsm::Contexts {
            process: "system_u:system_r:container_t:s0".to_owned(),
            file: "system_u:object_r:container_file_t:s0".to_owned(),
        };
        let of = |options: &[&str]| {
            labels(&contexts, &options.iter().map(|&o| o.to_owned()).collect::<Vec<_>>(), "00000805aaaa")
        };
        let both = of(&["type:spc_t", "level:s0:c1,c2"]).unwrap();
        assert_eq!(both.process, "system_u:system_r:spc_t:s0:c1,c2");
        assert_eq!(both.file, "system_u:object_r:container_file_t:s0:c1,c2");
        assert_eq!(of(&["filetype:x_t"]).unwrap().file, "system_u:object_r:x_t:s0:c2,c5");
        let shared = file_label(&contexts, &[], "00000805aaaa", Relabel::Shared).unwrap();
        assert_eq!(shared, "system_u:object_r:container_file_t:s0");
        let private = file_label(&contexts, &[], "00000805aaaa", Relabel::Private).unwrap();
        assert_eq!(private, "system_u:object_r:container_file_t:s0:c2,c5");
        assert!(of(&["shoe:size"]).is_err());
        assert!(of(&["nothing"]).is_err());
    }
}
