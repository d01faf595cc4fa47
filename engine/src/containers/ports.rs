//! The ports of a container: which are to be published, and how docker shows those that are.

use std::collections::BTreeMap;

use rbuild_runtime::network::{PortBinding, PortRequest, Protocol};
use serde_json::{Map, Value, json};

use super::record::{Container, Seen, Status};
use super::request::NetworkMode;

/// What is published when the container is started: the ports asked for, and with `--publish-all` the exposed ones that
/// were not.
pub(super) fn wanted(container: &Container) -> Vec<PortRequest> {
    let host = &container.host;
    let mut wanted = host.ports.clone();
    if host.publish_all {
        for (container_port, protocol) in exposed(container) {
            if !host.ports.iter().any(|p| (p.container_port, p.protocol) == (container_port, protocol)) {
                wanted.push(PortRequest { container_port, protocol, host_ip: None, host_ports: None });
            }
        }
    }
    wanted
}

/// The ports the container says it listens on. What is none of ours (SCTP) cannot be published and is left out.
fn exposed(container: &Container) -> impl Iterator<Item = (u16, Protocol)> {
    container.config.exposed_ports.keys().filter_map(|text| {
        let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        Some((port.parse().ok()?, protocol.parse().ok()?))
    })
}

impl Seen {
    /// What is published now.
    pub fn ports(&self) -> &[PortBinding] {
        match self.status {
            Status::Running | Status::Paused => &self.state.ports,
            _ => &[],
        }
    }

    /// The column PORTS: `0.0.0.0:8080->80/tcp, 443/tcp`, runs of the same number on both sides shortened.
    pub fn ports_column(&self) -> String {
        if !matches!(self.status, Status::Running | Status::Paused) || self.container.host.network == NetworkMode::Host
        {
            return String::new();
        }
        let published = self.ports();
        let mut ports: Vec<(u16, String, u16, Protocol)> =
            published.iter().map(|b| (b.container_port, bracketed(b), b.host_port, b.protocol)).collect();
        let is_published =
            |port, protocol| published.iter().any(|b| (b.container_port, b.protocol) == (port, protocol));
        ports.extend(
            exposed(&self.container)
                .filter(|&(port, protocol)| !is_published(port, protocol))
                .map(|(port, protocol)| (port, String::new(), 0, protocol)),
        );
        ports.sort();
        column(&ports)
    }
}

/// (container's port, host's address or nothing, host's port, protocol), sorted.
fn column(ports: &[(u16, String, u16, Protocol)]) -> String {
    /// The run that is being collected for one address and protocol.
    struct Run {
        prefix: String,
        protocol: Protocol,
        first: u16,
        last: u16,
    }
    let shown = |run: &Run| {
        let range = if run.first == run.last { run.first.to_string() } else { format!("{}-{}", run.first, run.last) };
        match run.prefix.as_str() {
            "" => format!("{range}/{}", run.protocol),
            address => format!("{address}:{range}->{range}/{}", run.protocol),
        }
    };
    let mut done = Vec::new();
    let mut runs: Vec<Run> = Vec::new();
    let mut moved = Vec::new();
    for (port, address, host_port, protocol) in ports {
        if !address.is_empty() && host_port != port {
            moved.push(format!("{address}:{host_port}->{port}/{protocol}"));
            continue;
        }
        match runs.iter_mut().find(|run| run.prefix == *address && run.protocol == *protocol) {
            Some(run) if port.checked_sub(1) == Some(run.last) => run.last = *port,
            Some(run) => {
                done.push(shown(run));
                (run.first, run.last) = (*port, *port);
            }
            None => runs.push(Run { prefix: address.clone(), protocol: *protocol, first: *port, last: *port }),
        }
    }
    done.extend(runs.iter().map(shown));
    done.extend(moved);
    done.join(", ")
}

fn bracketed(binding: &PortBinding) -> String {
    match binding.host_ip {
        std::net::IpAddr::V4(address) => address.to_string(),
        std::net::IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// `NetworkSettings.Ports`: each exposed port with what leads to it.
pub(super) fn settings(seen: &Seen) -> Value {
    let mut ports = Map::new();
    let runs = matches!(seen.status, Status::Running | Status::Paused);
    if runs && !matches!(seen.container.host.network, NetworkMode::Host | NetworkMode::None) {
        ports.extend(exposed(&seen.container).map(|(port, protocol)| (format!("{port}/{protocol}"), Value::Null)));
    }
    for binding in seen.ports() {
        let name = format!("{}/{}", binding.container_port, binding.protocol);
        let value = json!({"HostIp": binding.host_ip, "HostPort": binding.host_port.to_string()});
        match ports.get_mut(&name) {
            Some(Value::Array(list)) => list.push(value),
            _ => drop(ports.insert(name, json!([value]))),
        }
    }
    Value::Object(ports)
}

/// `HostConfig.PortBindings`: what was asked for.
pub(super) fn bindings(container: &Container) -> Value {
    let mut bindings: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for port in &container.host.ports {
        let host_port = match port.host_ports {
            None => String::new(),
            Some((first, last)) if first == last => first.to_string(),
            Some((first, last)) => format!("{first}-{last}"),
        };
        let host_ip = port.host_ip.map(|address| address.to_string()).unwrap_or_default();
        let name = format!("{}/{}", port.container_port, port.protocol);
        bindings.entry(name).or_default().push(json!({"HostIp": host_ip, "HostPort": host_port}));
    }
    json!(bindings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_column_shortens_runs_of_equal_numbers() {
        let port = |port, address: &str, host, protocol| (port, address.to_owned(), host, protocol);
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        for (ports, want) in [
            (
                vec![port(80, "0.0.0.0", 8080, tcp), port(80, "[::]", 8080, tcp)],
                "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp",
            ),
            (vec![port(80, "", 0, tcp), port(81, "", 0, tcp), port(83, "", 0, tcp)], "80-81/tcp, 83/tcp"),
            (
                vec![port(80, "0.0.0.0", 80, tcp), port(81, "0.0.0.0", 81, tcp), port(82, "0.0.0.0", 82, udp)],
                "0.0.0.0:80-81->80-81/tcp, 0.0.0.0:82->82/udp",
            ),
            (vec![port(53, "", 0, udp), port(80, "127.0.0.1", 81, tcp)], "53/udp, 127.0.0.1:81->80/tcp"),
            (vec![], ""),
        ] {
            assert_eq!(column(&ports), want);
        }
    }
}
