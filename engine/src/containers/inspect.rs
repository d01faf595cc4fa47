//! A container as docker's JSON shows it.

use rbuild_runtime::container::{Connection, Health, RestartPolicy};
use serde_json::{Map, Value, json};

use super::logging::LogDriver;
use super::record::{Container, MountKind, MountPoint, Seen, Status};
use super::request::{HostSettings, Membership, NamespaceMode, NetworkMode};
use super::{Containers, ports};
use crate::networks::is_connected;
use crate::volumes;

/// What docker prints for a time that has not come.
const NEVER: &str = "0001-01-01T00:00:00Z";

impl Containers {
    /// The whole of what `inspect` prints for a container.
    pub fn inspect(&self, seen: &Seen) -> Value {
        let Seen { container, state, status } = seen;
        let args = container.args();
        let directory = self.directory(&container.id);
        let mut value = json!({
            "Id": container.id,
            "Created": timestamp(container.created),
            "Path": args.first().cloned().unwrap_or_default(),
            "Args": args.get(1..).unwrap_or_default(),
            "State": {
                "Status": status.as_str(),
                "Running": status.is_alive(),
                "Paused": *status == Status::Paused,
                "Restarting": *status == Status::Restarting,
                "OOMKilled": state.oom,
                "Dead": false,
                "Pid": if matches!(status, Status::Running | Status::Paused) { state.pid } else { 0 },
                "ExitCode": state.exit_code,
                "Error": state.error,
                "StartedAt": state.started.as_deref().unwrap_or(NEVER),
                "FinishedAt": state.finished.as_deref().unwrap_or(NEVER),
            },
            "Image": container.image_id,
            "ResolvConfPath": directory.join("resolv.conf"),
            "HostnamePath": directory.join("hostname"),
            "HostsPath": directory.join("hosts"),
            "LogPath": directory.join("log"),
            "Name": format!("/{}", container.name),
            "RestartCount": state.restarts,
            "Driver": self.store.driver().to_string(),
            "Platform": "linux",
            "MountLabel": "",
            "ProcessLabel": "",
            "AppArmorProfile": container.host.security.apparmor.as_deref().unwrap_or_default(),
            "ExecIDs": Value::Null,
            "HostConfig": host_config(container),
            "GraphDriver": { "Name": self.store.driver().to_string(), "Data": Value::Null },
            "Mounts": container.mounts.iter().map(|m| self.mount(m)).collect::<Vec<_>>(),
            "Config": config(container),
            "NetworkSettings": network_settings(seen),
        });
        if let Some(known) = &state.health {
            value["State"]["Health"] = health(known);
        }
        value
    }

    fn mount(&self, mount: &MountPoint) -> Value {
        let mode = if mount.read_only { "ro" } else { "" };
        let common = |kind: &str, source: Value, propagation: &str| {
            json!({
                "Type": kind,
                "Source": source,
                "Destination": mount.destination,
                "Mode": mode,
                "RW": !mount.read_only,
                "Propagation": propagation,
            })
        };
        match &mount.kind {
            MountKind::Bind { source, propagation, .. } => {
                common("bind", json!(source), propagation.as_deref().unwrap_or("rprivate"))
            }
            MountKind::Volume { name, .. } => {
                let mut value = common("volume", json!(volumes::path(self.store.root(), name)), "");
                value["Name"] = json!(name);
                value["Driver"] = json!("local");
                value
            }
            MountKind::Tmpfs { .. } => common("tmpfs", json!(""), ""),
            MountKind::Image { name, .. } => common("image", json!(name), ""),
        }
    }
}

fn health(health: &Health) -> Value {
    let result = |result: &rbuild_runtime::container::ProbeResult| {
        json!({
            "Start": result.start, "End": result.end, "ExitCode": result.exit_code, "Output": result.output,
        })
    };
    json!({
        "Status": health.status.as_str(),
        "FailingStreak": health.failing_streak,
        "Log": health.log.iter().map(result).collect::<Vec<_>>(),
    })
}

fn log_config(host: &HostSettings) -> Value {
    let given = &host.log_options.given;
    let mut config: Map<String, Value> = given.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    // Of a container that was made when only its limits were kept.
    if let LogDriver::JsonFile(limits) = &host.log
        && given.is_empty()
    {
        if let Some(size) = limits.max_size {
            config.insert("max-size".to_owned(), json!(size.to_string()));
        }
        if limits.max_file > 0 {
            config.insert("max-file".to_owned(), json!(limits.max_file.to_string()));
        }
    }
    json!({ "Type": host.log.name(), "Config": config })
}

fn restart_policy(policy: RestartPolicy) -> Value {
    let (name, most) = match policy {
        RestartPolicy::Never => ("no", 0),
        RestartPolicy::Always => ("always", 0),
        RestartPolicy::UnlessStopped => ("unless-stopped", 0),
        RestartPolicy::OnFailure { most } => ("on-failure", most),
    };
    json!({ "Name": name, "MaximumRetryCount": most })
}

pub(crate) fn timestamp(nanos: i64) -> String {
    let time =
        time::OffsetDateTime::from_unix_timestamp_nanos(nanos.into()).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    rbuild_runtime::logs::rfc3339(time)
}

fn config(container: &Container) -> Value {
    let config = &container.config;
    let mut value = json!({
        "Hostname": container.hostname,
        "Domainname": container.domainname,
        "User": config.user,
        "AttachStdin": container.stdin_once,
        "AttachStdout": true,
        "AttachStderr": true,
        "Tty": container.tty,
        "OpenStdin": container.stdin,
        "StdinOnce": container.stdin_once,
        "Env": config.env,
        "Cmd": config.cmd,
        "Image": container.image,
        "Volumes": if config.volumes.is_empty() { Value::Null } else { json!(config.volumes) },
        "WorkingDir": config.working_dir,
        "Entrypoint": config.entrypoint,
        "OnBuild": Value::Null,
        "Labels": config.labels,
    });
    if !config.exposed_ports.is_empty() {
        value["ExposedPorts"] = json!(config.exposed_ports);
    }
    if !config.stop_signal.is_empty() {
        value["StopSignal"] = json!(config.stop_signal);
    }
    if let Some(timeout) = config.stop_timeout {
        value["StopTimeout"] = json!(timeout);
    }
    if let Some(healthcheck) = &config.healthcheck {
        value["Healthcheck"] = json!(healthcheck);
    }
    value
}

fn host_config(container: &Container) -> Value {
    let host = &container.host;
    let binds: Vec<String> = container
        .mounts
        .iter()
        .filter_map(|mount| {
            let source = match &mount.kind {
                MountKind::Bind { source, .. } => source.display().to_string(),
                MountKind::Volume { name, anonymous: false } => name.clone(),
                _ => return None,
            };
            let mode = if mount.read_only { ":ro" } else { "" };
            Some(format!("{source}:{}{mode}", mount.destination))
        })
        .collect();
    let tmpfs: Map<String, Value> = container
        .mounts
        .iter()
        .filter_map(|mount| match &mount.kind {
            MountKind::Tmpfs { options } => Some((mount.destination.clone(), json!(options.join(",")))),
            _ => None,
        })
        .collect();
    let devices: Vec<Value> = host
        .devices
        .iter()
        .map(|d| json!({ "PathOnHost": d.host, "PathInContainer": d.inside, "CgroupPermissions": d.permissions }))
        .collect();
    let mut value = json!({
        "Binds": if binds.is_empty() { Value::Null } else { json!(binds) },
        "NetworkMode": network_mode(&host.network),
        "RestartPolicy": restart_policy(host.restart),
        "AutoRemove": host.auto_remove,
        "LogConfig": log_config(host),
        "Init": if host.init { json!(true) } else { Value::Null },
        "PortBindings": ports::bindings(container),
        "PublishAllPorts": host.publish_all,
        "CapAdd": list(&host.cap_add),
        "CapDrop": list(&host.cap_drop),
        "Dns": host.dns,
        "DnsOptions": host.dns_options,
        "DnsSearch": host.dns_search,
        "ExtraHosts": list(&host.extra_hosts),
        "GroupAdd": list(&host.group_add),
        "IpcMode": namespace_mode(&host.ipc, "private"),
        "PidMode": namespace_mode(&host.pid, ""),
        "UTSMode": namespace_mode(&host.uts, ""),
        "Cgroup": "",
        "CgroupParent": host.cgroup_parent.as_deref().unwrap_or_default(),
        "OomScoreAdj": host.oom_score_adj.unwrap_or(0),
        "Privileged": host.privileged,
        "ReadonlyRootfs": host.read_only,
        "SecurityOpt": security_options(host),
        "Tmpfs": if tmpfs.is_empty() { Value::Null } else { Value::Object(tmpfs) },
        "ShmSize": host.shm_size.unwrap_or(64 << 20),
        "Memory": host.memory.unwrap_or(0),
        "MemorySwap": host.memory.map_or(0, |m| host.memory_swap.unwrap_or(m.saturating_mul(2))),
        "MemoryReservation": host.memory_reservation.unwrap_or(0),
        "NanoCpus": host.nano_cpus.unwrap_or(0),
        "CpuShares": host.cpu_shares.unwrap_or(0),
        "CpuPeriod": host.cpu_period.unwrap_or(0),
        "CpuQuota": host.cpu_quota.unwrap_or(0),
        "CpusetCpus": host.cpuset_cpus.as_deref().unwrap_or_default(),
        "CpusetMems": host.cpuset_mems.as_deref().unwrap_or_default(),
        "PidsLimit": host.pids_limit,
        "Ulimits": host.ulimits.iter().map(|l| json!({"Name": l.name, "Soft": l.soft, "Hard": l.hard})).collect::<Vec<_>>(),
        "Devices": devices,
        "DeviceRequests": device_requests(&host.named_devices),
        "Sysctls": host.sysctls,
    });
    if let Value::Object(map) = &mut value {
        map.extend(isolation(host));
    }
    value["Runtime"] = json!(host.runtime.as_ref().map_or("rbuild", |runtime| runtime.name.as_str()));
    value["StorageOpt"] = host.storage_size.map_or(Value::Null, |bytes| json!({ "size": bytes.to_string() }));
    value
}

fn device_requests(names: &[String]) -> Value {
    if names.is_empty() {
        return Value::Null;
    }
    json!([{ "Driver": "cdi", "Count": 0, "DeviceIDs": names, "Capabilities": null, "Options": null }])
}

fn list(values: &[String]) -> Value {
    if values.is_empty() { Value::Null } else { json!(values) }
}

fn security_options(host: &HostSettings) -> Value {
    let mut options = Vec::new();
    if host.no_new_privileges {
        options.push("no-new-privileges".to_owned());
    }
    if host.seccomp_unconfined {
        options.push("seccomp=unconfined".to_owned());
    }
    let security = &host.security;
    options.extend(security.seccomp_profile.iter().map(|text| format!("seccomp={text}")));
    options.extend(security.apparmor.iter().map(|name| format!("apparmor={name}")));
    options.extend(security.labels.iter().map(|label| format!("label={label}")));
    options.extend(security.masked.iter().map(|path| format!("mask={path}")));
    options.extend(security.unmasked.iter().map(|path| format!("unmask={path}")));
    list(&options)
}

/// Limits of disks, as docker lists them.
fn rates(of: &[(std::path::PathBuf, u64)]) -> Value {
    let one = |(path, rate): &(std::path::PathBuf, u64)| json!({ "Path": path, "Rate": rate });
    if of.is_empty() { Value::Null } else { of.iter().map(one).collect() }
}

/// What the container's start makes of its isolation beyond the usual.
fn isolation(host: &HostSettings) -> Map<String, Value> {
    let io = &host.block_io;
    let weights: Vec<Value> =
        io.weight_of.iter().map(|(path, weight)| json!({ "Path": path, "Weight": weight })).collect();
    let (masked, read_only) = super::isolation::system_paths_of(host);
    let value = json!({
        "Annotations": if host.annotations.is_empty() { Value::Null } else { json!(host.annotations) },
        "BlkioDeviceReadBps": rates(&io.read_bps),
        "BlkioDeviceReadIOps": rates(&io.read_iops),
        "BlkioDeviceWriteBps": rates(&io.write_bps),
        "BlkioDeviceWriteIOps": rates(&io.write_iops),
        "BlkioWeight": io.weight.unwrap_or(0),
        "BlkioWeightDevice": weights,
        "CgroupnsMode": if host.cgroup_host { "host" } else { "private" },
        "CpuRealtimePeriod": host.cpu_rt_period.unwrap_or(0),
        "CpuRealtimeRuntime": host.cpu_rt_runtime.unwrap_or(0),
        "DeviceCgroupRules": list(&host.device_cgroup_rules),
        "Isolation": "",
        "MaskedPaths": masked,
        "MemorySwappiness": host.memory_swappiness,
        "OomKillDisable": host.oom_kill_disable,
        "ReadonlyPaths": read_only,
        "UsernsMode": "",
        "VolumeDriver": host.volume_driver.as_deref().unwrap_or_default(),
    });
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

pub(super) fn network_mode(mode: &NetworkMode) -> String {
    match mode {
        NetworkMode::Bridge => "bridge".into(),
        NetworkMode::Host => "host".into(),
        NetworkMode::None => "none".into(),
        NetworkMode::Container(id) => format!("container:{id}"),
        NetworkMode::Named(name) => name.clone(),
    }
}

fn namespace_mode(mode: &NamespaceMode, private: &str) -> String {
    match mode {
        NamespaceMode::Private => private.into(),
        NamespaceMode::Host => "host".into(),
        NamespaceMode::Container(id) => format!("container:{id}"),
    }
}

fn network_settings(seen: &Seen) -> Value {
    let running = is_connected(seen.status);
    // Docker's fields of old, from before there were several networks, are about the default one.
    let first = seen.connections().iter().find(|c| c.network_name == "bridge").map(|c| &c.endpoint);
    let text = |value: Option<String>| value.unwrap_or_default();
    let mut networks: Map<String, Value> = seen
        .container
        .memberships()
        .iter()
        .map(|membership| {
            let connection = seen.connections().iter().find(|c| c.network_name == membership.network_name);
            (membership.network_name.clone(), membership_settings(membership, connection))
        })
        .collect();
    let mode = network_mode(&seen.container.host.network);
    if matches!(seen.container.host.network, NetworkMode::Host | NetworkMode::None) {
        networks.insert(mode, membership_settings(&Membership::default(), None));
    }
    json!({
        "Bridge": "",
        "SandboxKey": if running { format!("/proc/{}/ns/net", seen.state.pid) } else { String::new() },
        "Ports": ports::settings(seen),
        "Gateway": text(first.map(|e| e.gateway.to_string())),
        "GlobalIPv6Address": text(first.and_then(|e| e.address6).map(|a| a.to_string())),
        "IPAddress": text(first.map(|e| e.address.to_string())),
        "IPPrefixLen": first.map_or(0, |e| e.subnet.prefix()),
        "MacAddress": text(first.map(|e| e.mac.to_string())),
        "Networks": networks,
    })
}

fn membership_settings(membership: &Membership, connection: Option<&Connection>) -> Value {
    let endpoint = connection.map(|connection| &connection.endpoint);
    let text = |value: Option<String>| value.unwrap_or_default();
    let mut addresses = Map::new();
    addresses.extend(membership.ip.map(|ip| ("IPv4Address".to_owned(), json!(ip))));
    addresses.extend(membership.ip6.map(|ip| ("IPv6Address".to_owned(), json!(ip))));
    if !membership.link_local.is_empty() {
        addresses.insert("LinkLocalIPs".to_owned(), json!(membership.link_local));
    }
    let links: Vec<String> = membership.links.iter().map(|(target, alias)| format!("{target}:{alias}")).collect();
    let network6 = endpoint.and_then(|e| e.subnet6);
    json!({
        "IPAMConfig": if addresses.is_empty() { Value::Null } else { Value::Object(addresses) },
        "Links": list(&links),
        "Aliases": list(&membership.aliases),
        "MacAddress": text(endpoint.map(|e| e.mac.to_string())),
        "NetworkID": membership.network,
        "EndpointID": text(connection.map(|c| c.endpoint_id.clone())),
        "Gateway": text(endpoint.map(|e| e.gateway.to_string())),
        "IPAddress": text(endpoint.map(|e| e.address.to_string())),
        "IPPrefixLen": endpoint.map_or(0, |e| e.subnet.prefix()),
        "IPv6Gateway": text(network6.map(|(_, gateway)| gateway.to_string())),
        "GlobalIPv6Address": text(endpoint.and_then(|e| e.address6).map(|a| a.to_string())),
        "GlobalIPv6PrefixLen": network6.map_or(0, |(subnet, _)| subnet.prefix()),
        "DNSNames": connection.filter(|c| !c.names.is_empty()).map(|c| &c.names),
    })
}
