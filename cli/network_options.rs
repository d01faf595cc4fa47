//! How a container is connected: the options that `run` and `create` share about networks and ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rbuild_engine::containers::{Membership, NetworkMode};
use rbuild_engine::runtime::network::{Mac, PortRequest};

use crate::error::CliError;
use crate::ports::{self, Expose, Publish};

#[derive(Debug, clap::Args)]
pub struct NetworkOptions {
    /// Port it listens on beside those the image names
    #[arg(long, value_name = "PORT[/PROTOCOL]", value_parser = ports::expose)]
    expose: Vec<Expose>,
    /// IPv4 address in the network
    #[arg(long, value_name = "ADDRESS", value_parser = ipv4)]
    ip: Option<Ipv4Addr>,
    /// IPv6 address in the network
    #[arg(long, value_name = "ADDRESS", value_parser = ipv6)]
    ip6: Option<Ipv6Addr>,
    /// Address of the link alone that it has beside its own: 169.254.x.y or fe80::…
    #[arg(long, value_name = "ADDRESS", value_parser = link_local)]
    link_local_ip: Vec<IpAddr>,
    /// Container that it knows by a name of its own
    #[arg(long = "link", value_name = "CONTAINER[:NAME]", value_parser = link)]
    links: Vec<Link>,
    /// Hardware address in the network
    #[arg(long, value_name = "ADDRESS", value_parser = mac)]
    mac_address: Option<Mac>,
    /// Network: its name, bridge, host, none or container:NAME; or name=…,alias=…,ip=…,ip6=…,mac-address=…
    #[arg(long = "network", visible_alias = "net", value_name = "NETWORK", value_parser = network)]
    networks: Vec<Wish>,
    /// Name by which others in the network find it
    #[arg(long = "network-alias", alias = "net-alias", value_name = "NAME")]
    aliases: Vec<String>,
    /// Port of this machine's that leads to one of the container's
    #[arg(short, long, value_name = "[[ADDRESS:][HOST]:]PORT[/PROTOCOL]", value_parser = ports::publish)]
    publish: Vec<Publish>,
    /// Publish every port it exposes, on free ports of this machine's
    #[arg(short = 'P', long)]
    pub publish_all: bool,
}

/// One `--network`.
#[derive(Debug, Clone)]
pub struct Wish(Membership);

/// One `--link`: container, name.
#[derive(Debug, Clone)]
pub struct Link(pub String, pub String);

impl NetworkOptions {
    /// Ports it says it listens on.
    pub fn exposed(&self) -> Vec<String> {
        self.expose.iter().flat_map(|e| e.0.clone()).collect()
    }

    /// The ports asked for, each once.
    pub fn ports(&self) -> Vec<PortRequest> {
        let mut ports = Vec::new();
        for port in self.publish.iter().flat_map(|p| &p.0) {
            if !ports.contains(port) {
                ports.push(port.clone());
            }
        }
        ports
    }

    /// Whether ports are asked for that a container on the host's network has anyhow.
    pub fn publishes_in_vain(&self) -> bool {
        self.first() == "host" && (!self.publish.is_empty() || self.publish_all)
    }

    fn first(&self) -> &str {
        self.networks.first().map_or("bridge", |wish| wish.0.network.as_str())
    }

    pub fn mode(&self) -> Result<NetworkMode, CliError> {
        let mode = mode(self.first())?;
        let mixes = self.networks.len() > 1
            && self.networks.iter().any(|wish| !matches!(mode_of(&wish.0.network), Some(NetworkMode::Named(_))));
        if mixes {
            return Err(CliError::new(
                "conflicting options: cannot attach both user-defined and non-user-defined network-modes",
            ));
        }
        Ok(mode)
    }

    /// What is wished of the networks; the options that name none are about the first.
    pub fn memberships(&self) -> Result<Vec<Membership>, CliError> {
        let mut memberships: Vec<Membership> = self.networks.iter().map(|wish| wish.0.clone()).collect();
        if memberships.is_empty() {
            memberships.push(Membership { network: "bridge".into(), ..Membership::default() });
        }
        let first = &mut memberships[0];
        let twice = |option: &str| {
            CliError::new(format!("conflicting options: cannot specify both --{option} and per-network {option}"))
        };
        if self.ip.is_some() && first.ip.is_some() {
            return Err(twice("ip"));
        }
        if self.ip6.is_some() && first.ip6.is_some() {
            return Err(twice("ip6"));
        }
        if self.mac_address.is_some() && first.mac.is_some() {
            return Err(twice("mac-address"));
        }
        if !self.aliases.is_empty() && !first.aliases.is_empty() {
            return Err(twice("network-alias"));
        }
        first.ip = self.ip.or(first.ip);
        first.ip6 = self.ip6.or(first.ip6);
        first.mac = self.mac_address.or(first.mac);
        first.link_local.extend(&self.link_local_ip);
        first.aliases.extend(self.aliases.iter().cloned());
        first.links.extend(self.links.iter().map(|link| (link.0.clone(), link.1.clone())));
        Ok(memberships)
    }
}

fn mode_of(text: &str) -> Option<NetworkMode> {
    match text {
        "bridge" | "default" => Some(NetworkMode::Bridge),
        "host" => Some(NetworkMode::Host),
        "none" => Some(NetworkMode::None),
        "" | "container:" => None,
        other => Some(match other.strip_prefix("container:") {
            Some(name) => NetworkMode::Container(name.to_owned()),
            None => NetworkMode::Named(other.to_owned()),
        }),
    }
}

fn mode(text: &str) -> Result<NetworkMode, CliError> {
    mode_of(text).ok_or_else(|| {
        CliError::new(match text {
            "" => "the name of a network is missing".to_owned(),
            _ => "Invalid container format container:<name|id>".to_owned(),
        })
    })
}

/// A name, or `name=…,alias=…`.
fn network(text: &str) -> Result<Wish, String> {
    let mut wish = Membership::default();
    if !text.contains('=') {
        text.clone_into(&mut wish.network);
        return Ok(Wish(wish));
    }
    for part in text.split(',') {
        let (key, value) = part.split_once('=').ok_or_else(|| format!("invalid field {part}"))?;
        match key.trim() {
            "name" => value.clone_into(&mut wish.network),
            "alias" => wish.aliases.push(value.to_owned()),
            "ip" => wish.ip = Some(ipv4(value)?),
            "ip6" => wish.ip6 = Some(ipv6(value)?),
            "mac-address" => wish.mac = Some(mac(value)?),
            "link-local-ip" => wish.link_local.push(link_local(value)?),
            "driver-opt" | "gw-priority" => return Err(format!("{key} is not supported")),
            _ => return Err(format!("invalid field key {key}")),
        }
    }
    if wish.network.is_empty() { Err("the name of a network is missing".to_owned()) } else { Ok(Wish(wish)) }
}

/// # Errors
/// Not such an address.
pub fn ipv4(text: &str) -> Result<Ipv4Addr, String> {
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => Ok(address),
        _ => Err(format!("invalid IPv4 address: {text}")),
    }
}

/// # Errors
/// Not such an address.
pub fn ipv6(text: &str) -> Result<Ipv6Addr, String> {
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => Ok(address),
        _ => Err(format!("invalid IPv6 address: {text}")),
    }
}

/// An address that routers do not pass on.
///
/// # Errors
/// Not such an address.
pub fn link_local(text: &str) -> Result<IpAddr, String> {
    let parsed = text.parse::<IpAddr>().ok().filter(|address| match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.segments()[0] & 0xffc0 == 0xfe80,
    });
    parsed.ok_or_else(|| format!("invalid link-local address: {text}"))
}

fn mac(text: &str) -> Result<Mac, String> {
    text.replace('-', ":").parse().map_err(|()| format!("{text} is not a valid mac address"))
}

/// `CONTAINER[:NAME]`
///
/// # Errors
/// A part is empty.
pub fn link(text: &str) -> Result<Link, String> {
    let (container, name) = text.split_once(':').unwrap_or((text, text));
    if container.is_empty() || name.is_empty() || name.contains(':') {
        return Err(format!("bad format for links: {text}"));
    }
    Ok(Link(container.to_owned(), name.trim_start_matches('/').to_owned()))
}
