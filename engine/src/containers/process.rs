//! From a container's configuration to what its sandbox is told.

use std::path::Path;

use oci_spec::runtime::{
    Capability, LinuxCpuBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxMemoryBuilder,
    LinuxNamespaceType, LinuxPidsBuilder, LinuxResources, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process,
    Spec, UserBuilder,
};
use rbuild_graph::ops::Ulimit;
use rbuild_runtime::default_spec;
use rbuild_runtime::sandbox::ALL_CAPABILITIES;
use rbuild_runtime::sandbox::{DEFAULT_CAPABILITIES, capability_sets, set_shm_size};
use rbuild_runtime::users::{self, Identity};
use rbuild_store::Root;

use super::isolation;
use super::record::Container;
use super::request::{HostSettings, NamespaceMode};
use crate::error::Error;

/// What a process gets as `PATH` when neither its image nor its caller says.
pub(super) const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Adds variables that the process has not.
pub(super) fn add_variables(spec: &mut Spec, variables: impl Iterator<Item = String>) {
    let Some(process) = spec.process_mut() else { return };
    let mut env = process.env().clone().unwrap_or_default();
    for variable in variables {
        let name = variable.split_inclusive('=').next().unwrap_or_default();
        if !env.iter().any(|known| known.starts_with(name)) {
            env.push(variable);
        }
    }
    process.set_env(Some(env));
}

/// The first process of a container, and everything around it that the runtime specification knows. `root` is the image's
/// file tree, in which names of users are looked up.
pub(super) fn spec(container: &Container, root: &Root) -> Result<Spec, Error> {
    let host = &container.host;
    let identity = identity(root, &container.config.user, &host.group_add)?;
    let cwd = match container.config.working_dir.as_str() {
        "" => "/",
        path => path,
    };
    let mut env = environment(container);
    add_home(&mut env, &identity);
    let mut spec = default_spec(container.args(), env, cwd, user(&identity)?);
    spec.set_hostname(Some(container.hostname.clone()));
    if !container.domainname.is_empty() {
        spec.set_domainname(Some(container.domainname.clone()));
    }
    if let Some(root) = spec.root_mut() {
        root.set_readonly(Some(host.read_only));
    }
    if let Some(process) = spec.process_mut() {
        process.set_terminal(Some(container.tty));
        process.set_no_new_privileges(Some(host.no_new_privileges));
        process.set_capabilities(Some(capability_sets(&capabilities(host)?)));
        process.set_oom_score_adj(host.oom_score_adj);
    }
    if !host.ulimits.is_empty()
        && let Some(process) = spec.process_mut()
    {
        process.set_rlimits(Some(host.ulimits.iter().map(rlimit).collect::<Result<_, Error>>()?));
    }
    if let Some(bytes) = host.shm_size {
        set_shm_size(&mut spec, bytes);
    }
    namespaces(&mut spec, host);
    if let Some(linux) = spec.linux_mut() {
        if let Some(resources) = linux.resources_mut() {
            limit(resources, host)?;
        }
        if host.privileged {
            linux.set_masked_paths(None);
            linux.set_readonly_paths(None);
        }
        if !host.sysctls.is_empty() {
            linux.set_sysctl(Some(host.sysctls.clone().into_iter().collect()));
        }
    }
    if host.privileged {
        writable_kernel_mounts(&mut spec);
    }
    isolation::apply(container, &mut spec)?;
    Ok(spec)
}

/// One more process of a running container, confined as the first.
pub(super) fn exec_process(
    container: &Container,
    root: &Root,
    request: &super::request::ExecRequest,
) -> Result<Process, Error> {
    let user_text = request.user.as_deref().unwrap_or(&container.config.user);
    let identity = identity(root, user_text, &container.host.group_add)?;
    let mut env = environment(container);
    if request.tty && !container.tty {
        replace_or_append(&mut env, ["TERM=xterm".to_owned()].iter());
    }
    replace_or_append(&mut env, request.env.iter());
    add_home(&mut env, &identity);
    let cwd = request.working_dir.as_deref().unwrap_or(&container.config.working_dir);
    let cwd = if cwd.is_empty() { "/" } else { cwd };
    let spec = default_spec(request.command.clone(), env, cwd, user(&identity)?);
    let mut process = spec.process().clone().ok_or_else(|| Error::internal("a spec without process"))?;
    let everything = HostSettings { privileged: true, ..HostSettings::default() };
    let host = if request.privileged { &everything } else { &container.host };
    process.set_capabilities(Some(capability_sets(&capabilities(host)?)));
    process.set_no_new_privileges(Some(container.host.no_new_privileges));
    process.set_terminal(Some(request.tty));
    let apparmor = if request.privileged { Some("unconfined".to_owned()) } else { container.host.apparmor() };
    process.set_apparmor_profile(apparmor.filter(|_| container.host.security.apparmor.is_some()));
    process.set_selinux_label(isolation::process_label(container)?);
    Ok(process)
}

fn rlimit(limit: &Ulimit) -> Result<PosixRlimit, Error> {
    let unknown = |_| Error::invalid(format!("invalid ulimit type: {}", limit.name));
    // -1 is unlimited, which is what it becomes as an unsigned number.
    PosixRlimitBuilder::default()
        .typ(format!("RLIMIT_{}", limit.name.to_ascii_uppercase()).parse::<PosixRlimitType>().map_err(unknown)?)
        .soft(limit.soft as u64)
        .hard(limit.hard as u64)
        .build()
        .map_err(internal)
}

/// The user a process runs as, with the groups added to it.
fn identity(root: &Root, text: &str, extra_groups: &[String]) -> Result<Identity, Error> {
    let mut identity = users::resolve(root, text).map_err(|e| Error::invalid(e.to_string()))?;
    // Else a process could get rid of a file's denial to its own group by leaving that group (CVE-2022-36109).
    if !identity.groups.contains(&identity.gid) {
        identity.groups.insert(0, identity.gid);
    }
    for group in extra_groups {
        let gid = users::group_id(root, group).map_err(|e| Error::invalid(e.to_string()))?;
        if !identity.groups.contains(&gid) {
            identity.groups.push(gid);
        }
    }
    Ok(identity)
}

fn user(identity: &Identity) -> Result<oci_spec::runtime::User, Error> {
    UserBuilder::default()
        .uid(identity.uid)
        .gid(identity.gid)
        .additional_gids(identity.groups.clone())
        .build()
        .map_err(internal)
}

fn internal(error: impl std::fmt::Display) -> Error {
    Error::internal(error)
}

/// The variables of a container's first process: docker's own first, the configuration's over them.
fn environment(container: &Container) -> Vec<String> {
    let mut env = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={}", container.hostname)];
    if container.tty {
        env.push("TERM=xterm".to_owned());
    }
    replace_or_append(&mut env, container.config.env.iter());
    env
}

fn add_home(env: &mut Vec<String>, identity: &Identity) {
    if !env.iter().any(|variable| variable.starts_with("HOME=")) {
        env.push(format!("HOME={}", identity.home));
    }
}

/// Sets variables: each in its old place if it was there. A bare name takes a variable away.
pub(super) fn replace_or_append<'a>(env: &mut Vec<String>, changes: impl Iterator<Item = &'a String>) {
    for change in changes {
        let (name, takes_away) = match change.split_once('=') {
            Some((name, _)) => (name, false),
            None => (change.as_str(), true),
        };
        let at = env.iter().position(|v| v.split_once('=').is_some_and(|(n, _)| n == name));
        match (at, takes_away) {
            (Some(at), true) => drop(env.remove(at)),
            (Some(at), false) => env[at].clone_from(change),
            (None, true) => {}
            (None, false) => env.push(change.clone()),
        }
    }
}

/// The capabilities that docker's rules make of the default and what was added and dropped.
pub(super) fn capabilities(host: &HostSettings) -> Result<Vec<Capability>, Error> {
    let all = || ALL_CAPABILITIES.iter().filter_map(|name| name.parse().ok()).collect::<Vec<Capability>>();
    if host.privileged {
        return Ok(all());
    }
    let parse = |list: &[String], flag: &str| {
        let one = |name: &String| {
            let plain = name.to_ascii_uppercase();
            let plain = plain.strip_prefix("CAP_").unwrap_or(&plain);
            plain.parse().map_err(|_| Error::invalid(format!("invalid {flag}: unknown capability: \"{name}\"")))
        };
        list.iter().filter(|n| !n.eq_ignore_ascii_case("ALL")).map(one).collect::<Result<Vec<Capability>, Error>>()
    };
    let names_all = |list: &[String]| list.iter().any(|n| n.eq_ignore_ascii_case("ALL"));
    let (add, dropped) = (parse(&host.cap_add, "CapAdd")?, parse(&host.cap_drop, "CapDrop")?);
    let base = match (names_all(&host.cap_add), names_all(&host.cap_drop)) {
        (true, _) => all(),
        (false, true) => Vec::new(),
        (false, false) => DEFAULT_CAPABILITIES.to_vec(),
    };
    let mut set: Vec<Capability> = base.into_iter().filter(|c| !dropped.contains(c)).collect();
    for capability in add {
        if !set.contains(&capability) {
            set.push(capability);
        }
    }
    Ok(set)
}

/// Takes away the namespaces that the container shares. Those of other containers are resolved at the start.
fn namespaces(spec: &mut Spec, host: &HostSettings) {
    let shared = [
        (LinuxNamespaceType::Pid, &host.pid),
        (LinuxNamespaceType::Ipc, &host.ipc),
        (LinuxNamespaceType::Uts, &host.uts),
    ];
    if host.uts == NamespaceMode::Host {
        spec.set_hostname(None);
        spec.set_domainname(None);
    }
    let Some(list) = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut()) else { return };
    for (kind, mode) in shared {
        if *mode == NamespaceMode::Host {
            list.retain(|namespace| namespace.typ() != kind);
        }
    }
}

/// Puts the container into the namespace at `path` in place of one of its own.
pub(super) fn join_namespace(spec: &mut Spec, kind: LinuxNamespaceType, path: &Path) {
    let Some(list) = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut()) else { return };
    for namespace in list.iter_mut().filter(|namespace| namespace.typ() == kind) {
        namespace.set_path(Some(path.to_owned()));
    }
}

/// Adds the limits to what the runtime is told.
pub(super) fn limit(resources: &mut LinuxResources, host: &HostSettings) -> Result<(), Error> {
    let mut memory = LinuxMemoryBuilder::default();
    if let Some(bytes) = host.memory {
        // As docker: as much swap again, unless said otherwise.
        memory = memory.limit(bytes).swap(host.memory_swap.unwrap_or(bytes.saturating_mul(2)));
    }
    if let Some(bytes) = host.memory_reservation {
        memory = memory.reservation(bytes);
    }
    if host.memory.is_some() || host.memory_reservation.is_some() {
        resources.set_memory(Some(memory.build().map_err(internal)?));
    }
    let (mut period, mut quota) = (host.cpu_period, host.cpu_quota);
    if let Some(nano) = host.nano_cpus {
        (period, quota) = (Some(100_000), Some(nano / 10_000));
    }
    let mut cpu = LinuxCpuBuilder::default();
    let mut asked = false;
    let mut ask = || asked = true;
    if let Some(period) = period {
        (cpu, _) = (cpu.period(period), ask());
    }
    if let Some(quota) = quota {
        (cpu, _) = (cpu.quota(quota), ask());
    }
    if let Some(shares) = host.cpu_shares {
        (cpu, _) = (cpu.shares(shares), ask());
    }
    if let Some(cpus) = &host.cpuset_cpus {
        (cpu, _) = (cpu.cpus(cpus.clone()), ask());
    }
    if let Some(mems) = &host.cpuset_mems {
        (cpu, _) = (cpu.mems(mems.clone()), ask());
    }
    if asked {
        resources.set_cpu(Some(cpu.build().map_err(internal)?));
    }
    if let Some(pids) = host.pids_limit.filter(|n| *n > 0) {
        resources.set_pids(Some(LinuxPidsBuilder::default().limit(pids).build().map_err(internal)?));
    }
    if host.privileged {
        resources.set_devices(Some(vec![device_rule(LinuxDeviceType::A, None, "rwm")?]));
    }
    Ok(())
}

/// Allows a device; `None` is every one of the kind.
pub(super) fn device_rule(
    kind: LinuxDeviceType,
    number: Option<(i64, i64)>,
    access: &str,
) -> Result<LinuxDeviceCgroup, Error> {
    let mut rule =
        LinuxDeviceCgroupBuilder::default().allow(true).typ(kind).access(access).build().map_err(internal)?;
    rule.set_major(number.map(|n| n.0));
    rule.set_minor(number.map(|n| n.1));
    Ok(rule)
}

/// A privileged container may write to sysfs and the cgroup tree.
fn writable_kernel_mounts(spec: &mut Spec) {
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if matches!(mount.typ().as_deref(), Some("sysfs" | "cgroup")) {
            let mut options = mount.options().clone().unwrap_or_default();
            options.retain(|option| option != "ro");
            mount.set_options(Some(options));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced_in_place_appended_and_taken_away() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let mut env = words("PATH=/bin A=1 AB=2");
        replace_or_append(&mut env, words("A=9 AB NEW=x NONE").iter());
        assert_eq!(env, words("PATH=/bin A=9 NEW=x"));
    }

    #[test]
    fn capabilities_follow_dockers_rules() {
        let count = |add: &[&str], dropped: &[&str]| {
            let list = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
            let host = HostSettings { cap_add: list(add), cap_drop: list(dropped), ..HostSettings::default() };
            capabilities(&host).map(|set| set.len())
        };
        assert_eq!(ALL_CAPABILITIES.iter().filter(|name| name.parse::<Capability>().is_ok()).count(), 41);
        for (add, dropped, want) in [
            (&[][..], &[][..], 14),
            (&["CAP_SYS_TIME"], &[], 15),
            (&["chown"], &[], 14),
            (&[], &["ALL"], 0),
            (&["NET_ADMIN"], &["all"], 1),
            (&["ALL"], &["CHOWN"], 40),
            (&["ALL"], &["ALL"], 41),
        ] {
            assert_eq!(count(add, dropped).ok(), Some(want), "{add:?} {dropped:?}");
        }
        let message = count(&["NO_SUCH"], &[]).err().map(|e| e.message);
        assert_eq!(message.as_deref(), Some("invalid CapAdd: unknown capability: \"NO_SUCH\""));
    }
}
