//! The files every container gets of its own: `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rbuild_runtime::container::Connection;
use rbuild_runtime::network::NAME_SERVER;

use super::connections::Link;
use super::record::Container;
use super::request::NetworkMode;

/// What the host says about names, read once.
#[derive(Debug, Clone, Default)]
pub struct HostNames {
    /// Text of `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// Text of the file that a resolver on loopback itself uses (systemd's), if there is one.
    pub upstream_resolv_conf: Option<String>,
    /// Text of `/etc/hosts`.
    pub hosts: String,
}

impl HostNames {
    /// The host's, with the text of its `resolv.conf` as the caller has it.
    pub fn read(resolv_conf: String) -> Self {
        let text = |path: &str| fs::read(path).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Self {
            resolv_conf,
            upstream_resolv_conf: text("/run/systemd/resolve/resolv.conf"),
            hosts: text("/etc/hosts").unwrap_or_default(),
        }
    }

    /// The `resolv.conf` for a container that does not share the host's network: servers on loopback are out of its
    /// reach, so those behind them, or public ones, take their place.
    pub fn reachable_resolv_conf(&self) -> String {
        let texts = [Some(&self.resolv_conf), self.upstream_resolv_conf.as_ref()];
        for text in texts.into_iter().flatten() {
            let lines: Vec<&str> = text.lines().filter(|line| !is_local_server(line)).collect();
            if lines.iter().any(|line| nameserver(line).is_some()) {
                return lines.join("\n") + "\n";
            }
        }
        let rest = self.resolv_conf.lines().filter(|line| nameserver(line).is_none());
        rest.chain(["nameserver 8.8.8.8", "nameserver 8.8.4.4"]).map(|line| format!("{line}\n")).collect()
    }

    /// The servers that a container's own name server asks: those given, else the host's, which it reaches also on the host's
    /// loopback, else public ones.
    pub(super) fn servers(&self, given: &[String]) -> Vec<IpAddr> {
        if !given.is_empty() {
            return given.iter().filter_map(|server| server.parse().ok()).collect();
        }
        let listed =
            |text: &str| text.lines().filter_map(|line| nameserver(line)?.parse().ok()).collect::<Vec<IpAddr>>();
        match listed(&self.resolv_conf) {
            servers if servers.is_empty() => listed(&self.reachable_resolv_conf()),
            servers => servers,
        }
    }
}

fn nameserver(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    if words.next() == Some("nameserver") { words.next() } else { None }
}

fn is_local_server(line: &str) -> bool {
    let Some(server) = nameserver(line) else { return false };
    // `fe80::1%eth0` names an interface that the container does not have.
    server.contains('%') || server.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// The files of one start, written into the container's directory.
#[derive(Debug)]
pub(super) struct EtcPaths {
    pub(super) hosts: PathBuf,
    pub(super) hostname: PathBuf,
    pub(super) resolv_conf: PathBuf,
}

/// Where the files are.
pub(super) fn paths(directory: &Path) -> EtcPaths {
    EtcPaths {
        hosts: directory.join("hosts"),
        hostname: directory.join("hostname"),
        resolv_conf: directory.join("resolv.conf"),
    }
}

/// Writes the files, in place: a running container sees them change.
pub(super) fn write(
    container: &Container,
    directory: &Path,
    names: &HostNames,
    connections: &[Connection],
    links: &[Link],
) -> io::Result<EtcPaths> {
    let paths = paths(directory);
    put(&paths.hosts, &hosts(container, names, connections, links))?;
    put(&paths.hostname, &format!("{}\n", container.hostname))?;
    put(&paths.resolv_conf, &resolv_conf(container, names, connections))?;
    Ok(paths)
}

fn put(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text)?;
    // Whatever the caller's umask: everybody inside reads these.
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}

fn hosts(container: &Container, names: &HostNames, connections: &[Connection], links: &[Link]) -> String {
    let gateway = connections.first().map(|connection| connection.endpoint.gateway);
    let mut text = match container.host.network {
        NetworkMode::Host => names.hosts.clone(),
        _ => "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
              ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
            .to_owned(),
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for extra in &container.host.extra_hosts {
        if let Some((name, to)) = extra.split_once([':', '=']) {
            let to = match (to, gateway) {
                ("host-gateway", Some(gateway)) => gateway.to_string(),
                _ => to.trim_matches(['[', ']']).to_owned(),
            };
            text.push_str(&format!("{to}\t{name}\n"));
        }
    }
    for link in links {
        let Link { alias, address, target } = link;
        text.push_str(&format!("{address}\t{alias} {} {}\n", target.short_id(), target.name));
    }
    let full = full_name(container);
    let own = match full.split_once('.') {
        Some((short, _)) => format!("{full} {short}"),
        None => full,
    };
    for endpoint in connections.iter().map(|connection| &connection.endpoint) {
        text.push_str(&format!("{}\t{own}\n", endpoint.address));
        if let Some(address) = endpoint.address6 {
            text.push_str(&format!("{address}\t{own}\n"));
        }
    }
    text
}

fn full_name(container: &Container) -> String {
    if container.domainname.is_empty() {
        container.hostname.clone()
    } else {
        format!("{}.{}", container.hostname, container.domainname)
    }
}

fn resolv_conf(container: &Container, names: &HostNames, connections: &[Connection]) -> String {
    let host = &container.host;
    if connections.iter().any(|connection| !connection.names.is_empty()) {
        return own_resolv_conf(container, names);
    }
    let base = match host.network {
        NetworkMode::Host => names.resolv_conf.clone(),
        _ => names.reachable_resolv_conf(),
    };
    if host.dns.is_empty() && host.dns_search.is_empty() && host.dns_options.is_empty() {
        return base;
    }
    let starts = |line: &str, word: &str| line.split_whitespace().next() == Some(word);
    let mut lines: Vec<String> = Vec::new();
    let kept = |word: &str| base.lines().filter(|l| starts(l, word)).map(str::to_owned).collect::<Vec<_>>();
    if host.dns.is_empty() {
        lines.extend(kept("nameserver"));
    } else {
        lines.extend(host.dns.iter().map(|server| format!("nameserver {server}")));
    }
    match host.dns_search.as_slice() {
        [] => lines.extend(kept("search")),
        [only] if only == "." => {}
        domains => lines.push(format!("search {}", domains.join(" "))),
    }
    if host.dns_options.is_empty() {
        lines.extend(kept("options"));
    } else {
        lines.push(format!("options {}", host.dns_options.join(" ")));
    }
    lines.join("\n") + "\n"
}

/// For a container with a name server of its own: what the host says about other servers is that one's business.
fn own_resolv_conf(container: &Container, names: &HostNames) -> String {
    let host = &container.host;
    let mut text = format!("nameserver {NAME_SERVER}\n");
    let of_host = |word: &str| {
        let lines = names.resolv_conf.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        lines.filter(|words| words.first() == Some(&word)).flat_map(|words| words[1..].to_vec()).collect::<Vec<_>>()
    };
    let search: Vec<&str> = match host.dns_search.as_slice() {
        [] => of_host("search"),
        [only] if only == "." => Vec::new(),
        domains => domains.iter().map(String::as_str).collect(),
    };
    if !search.is_empty() {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    let mut options: Vec<&str> = match host.dns_options.as_slice() {
        [] => of_host("options"),
        options => options.iter().map(String::as_str).collect(),
    };
    // A name without a dot is a neighbour's: it is asked for as it is, first.
    if !options.iter().any(|option| option.starts_with("ndots:")) {
        options.push("ndots:0");
    }
    text + &format!("options {}\n", options.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_on_loopback_are_replaced() {
        let names = |resolv: &str, upstream: Option<&str>| HostNames {
            resolv_conf: resolv.into(),
            upstream_resolv_conf: upstream.map(Into::into),
            hosts: String::new(),
        };
        for (given, upstream, want) in [
            ("nameserver 10.0.0.1\nsearch x\n", None, "nameserver 10.0.0.1\nsearch x\n"),
            ("nameserver 127.0.0.1\nnameserver 10.0.0.1\n", None, "nameserver 10.0.0.1\n"),
            ("nameserver 127.0.0.53\n", Some("nameserver 10.0.0.2\n"), "nameserver 10.0.0.2\n"),
            ("search x\nnameserver ::1\n", None, "search x\nnameserver 8.8.8.8\nnameserver 8.8.4.4\n"),
            ("", None, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"),
        ] {
            assert_eq!(names(given, upstream).reachable_resolv_conf(), want, "{given:?}");
        }
    }
}
