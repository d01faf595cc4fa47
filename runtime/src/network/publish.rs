//! Published ports: ports of the host's that lead to ports of a container.
//!
//! A port is taken by listening on it, so the kernel decides who has it, among all stores and all other programs, and takes
//! it back when the process ends, however it ends. The same holds for the rules that redirect packets: they are in a
//! table of the container's own, which nf_tables removes with the socket of the process that made it. So a killed monitor leaves
//! nothing behind, and nobody sweeps.
//!
//! Packets for an IPv4 port are redirected on their way in (and, from the host itself, on their way out), so the
//! container sees who asks. What the rules do not take arrives at the listening socket and is carried across by
//! [`proxy`](super::proxy): the host's loopback addresses, whose packets the kernel routes nowhere else without the
//! dangerous `route_localnet`; IPv6; containers on the same bridge, whose answers would not come back through the host; and
//! everything where the kernel has no nf_tables.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::str::FromStr;

use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
use serde::{Deserialize, Serialize};

use super::netlink::Socket;
use super::nft::{self, Batch, Family, Hook, Rule, Side};
use super::proxy::{Listener, Proxy};
use super::{Endpoint, Error};

/// How often a port by chance is tried that is free for IPv4 and not for IPv6.
const ATTEMPTS: usize = 64;
const BACKLOG: i32 = 1024;

/// A transport protocol that can be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// Its number in the header of IP.
    pub(super) fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

impl FromStr for Protocol {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Protocol::Tcp),
            "udp" => Ok(Protocol::Udp),
            _ => Err(()),
        }
    }
}

/// A port of a container's that is to be reachable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRequest {
    pub container_port: u16,
    pub protocol: Protocol,
    /// The host's address; `None` is every address of both families.
    pub host_ip: Option<IpAddr>,
    /// The host's port, or the first free one from the one to the other; `None` is any free one.
    pub host_ports: Option<(u16, u16)>,
}

/// A port of a container's that is reachable.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortBinding {
    pub container_port: u16,
    pub protocol: Protocol,
    pub host_ip: IpAddr,
    pub host_port: u16,
}

/// The published ports of a running container; they are as long as this is.
#[derive(Debug)]
pub struct Published {
    bindings: Vec<PortBinding>,
    _proxy: Option<Proxy>,
    /// The owner of the table with the rules.
    _rules: Option<Socket>,
}

impl Published {
    /// Publishes the ports in the calling thread's network namespace. `name` is for the table of the rules.
    ///
    /// # Errors
    /// `PortTaken`; then nothing is published.
    pub fn open(name: &str, requests: &[PortRequest], endpoint: &Endpoint) -> Result<Self, Error> {
        let with_ipv6 = Path::new("/proc/net/if_inet6").exists();
        let mut taken = Vec::new();
        for request in requests {
            taken.extend(take(request, with_ipv6)?);
        }
        let mut bindings: Vec<PortBinding> = taken.iter().map(|(binding, _)| binding.clone()).collect();
        bindings.sort();
        if taken.is_empty() {
            return Ok(Self { bindings, _proxy: None, _rules: None });
        }
        let table = format!("rbuild_{name}_{}", std::process::id());
        let rules = redirect(&table, &bindings, endpoint);
        let rules = rules.inspect_err(|error| tracing::debug!(%error, "ports are carried across without rules")).ok();
        let listeners = taken.into_iter().map(|(binding, socket)| listener(&binding, socket, endpoint)).collect();
        let proxy = Proxy::start(listeners).map_err(|e| Error::kernel("start a thread", e))?;
        Ok(Self { bindings, _proxy: Some(proxy), _rules: rules })
    }

    /// What is published, sorted.
    pub fn bindings(&self) -> &[PortBinding] {
        &self.bindings
    }
}

fn listener(binding: &PortBinding, socket: std::os::fd::OwnedFd, endpoint: &Endpoint) -> Listener {
    let address = match (binding.host_ip, endpoint.address6) {
        (IpAddr::V6(_), Some(address)) => IpAddr::V6(address),
        _ => IpAddr::V4(endpoint.address),
    };
    let to = SocketAddr::new(address, binding.container_port);
    match binding.protocol {
        Protocol::Tcp => Listener::Tcp(socket.into(), to),
        Protocol::Udp => Listener::Udp(socket.into(), to),
    }
}

type Taken = (PortBinding, std::os::fd::OwnedFd);

/// Listens on the first port that is free on every address wanted.
fn take(request: &PortRequest, with_ipv6: bool) -> Result<Vec<Taken>, Error> {
    let addresses: Vec<IpAddr> = match request.host_ip {
        Some(address) => vec![address],
        None if with_ipv6 => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        None => vec![Ipv4Addr::UNSPECIFIED.into()],
    };
    let mut last = None;
    let candidates: Box<dyn Iterator<Item = u16>> = match request.host_ports {
        Some((first, end)) => Box::new(first..=end),
        None => Box::new(std::iter::repeat_n(0, ATTEMPTS)),
    };
    for port in candidates {
        match take_on(request, &addresses, port) {
            Ok(taken) => return Ok(taken),
            Err(error @ Error::PortTaken(_)) => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| Error::PortTaken(addresses[0].to_string())))
}

fn take_on(request: &PortRequest, addresses: &[IpAddr], mut port: u16) -> Result<Vec<Taken>, Error> {
    let mut taken = Vec::with_capacity(addresses.len());
    for address in addresses {
        let socket_address = SocketAddr::new(*address, port);
        let (socket, bound) = listen(request.protocol, socket_address).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => Error::PortTaken(socket_address.to_string()),
            _ => Error::Listen { address: socket_address.to_string(), source },
        })?;
        // The other family gets the port that the first one got.
        port = bound;
        let binding = PortBinding {
            container_port: request.container_port,
            protocol: request.protocol,
            host_ip: *address,
            host_port: bound,
        };
        taken.push((binding, socket));
    }
    Ok(taken)
}

/// A socket that listens, without waiting for anything, and its port.
fn listen(protocol: Protocol, address: SocketAddr) -> io::Result<(std::os::fd::OwnedFd, u16)> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let socket = net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if protocol == Protocol::Tcp {
        // Connections of an earlier life that are still closing do not keep the port.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    net::bind(&socket, &address)?;
    if protocol == Protocol::Tcp {
        net::listen(&socket, BACKLOG)?;
    }
    let bound = SocketAddr::try_from(net::getsockname(&socket)?)?;
    Ok((socket, bound.port()))
}

/// Makes the rules, in a table that goes with the socket.
fn redirect(table: &str, bindings: &[PortBinding], endpoint: &Endpoint) -> io::Result<Socket> {
    let mut socket = nft::open()?;
    let mut batch = Batch::new(Family::Ip4, table);
    batch.owned_table();
    batch.base_chain("prerouting", "nat", Hook::Prerouting, nft::PRIORITY_DESTINATION_NAT);
    batch.base_chain("output", "nat", Hook::Output, nft::PRIORITY_DESTINATION_NAT);
    batch.base_chain("postrouting", "nat", Hook::Postrouting, nft::PRIORITY_SOURCE_NAT);
    for binding in bindings {
        let IpAddr::V4(host) = binding.host_ip else { continue };
        if host.is_loopback() {
            continue;
        }
        let (protocol, port) = (binding.protocol.number(), binding.host_port);
        let to = |rule: &mut Rule<'_>| {
            if host.is_unspecified() {
                rule.destination_here();
            } else {
                rule.destination(host);
            }
            rule.port(protocol, port).redirect_to(endpoint.address, binding.container_port);
        };
        batch.rule("prerouting", |rule| {
            match binding.protocol {
                Protocol::Tcp => rule.interface(Side::In, &endpoint.bridge, false),
                // A bridge does not send back to where it came from.
                Protocol::Udp => rule.source_not(endpoint.address),
            };
            to(rule);
        });
        batch.rule("output", |rule| {
            rule.destination_not_loopback();
            to(rule);
        });
        if binding.protocol == Protocol::Udp {
            // A proxy would answer from the address nearest to the asker, not from the one that was asked. So
            // datagrams of neighbours are redirected too, and seem to come from the bridge, for the answers to come back.
            batch.rule("postrouting", |rule| {
                rule.source_in(&endpoint.subnet.first().octets(), &endpoint.subnet.mask().octets())
                    .destination(endpoint.address)
                    .port(protocol, binding.container_port)
                    .redirected()
                    .masquerade();
            });
        }
    }
    batch.send(&mut socket)?;
    Ok(socket)
}
