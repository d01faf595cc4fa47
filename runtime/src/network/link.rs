//! Interfaces, addresses and routes: the rtnetlink messages, one function each.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::netlink::{ACK, APPEND, CREATE, DUMP, EXCLUSIVE, Messages, REQUEST, Socket, attributes, u32_at};
use super::{Mac, Subnet};

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const NEWADDR: u16 = 20;
const GETADDR: u16 = 22;
const NEWROUTE: u16 = 24;
const GETROUTE: u16 = 26;
const NEWLINKPROP: u16 = 108;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const INFO_SLAVE_KIND: u16 = 4;
const INFO_SLAVE_DATA: u16 = 5;
const BRPORT_ISOLATED: u16 = 33;
const VETH_PEER: u16 = 1;
const IFF_UP: u32 = 1;
const RT_TABLE_MAIN: u8 = 254;
const INET: u8 = 2;
const INET6: u8 = 10;
const IFA_F_NODAD: u8 = 2;

/// An interface of the namespace the socket was opened in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) mtu: u32,
    pub(super) up: bool,
}

/// An IPv4 route: where it leads and through which interface.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    pub(super) to: Subnet,
    pub(super) link: Option<u32>,
}

/// The two ends of a veth pair to be made.
pub(super) struct Veth<'a> {
    pub(super) host_name: &'a str,
    pub(super) bridge: u32,
    pub(super) inner_name: &'a str,
    pub(super) mac: Mac,
    pub(super) mtu: u32,
    pub(super) namespace: BorrowedFd<'a>,
}

pub(super) fn open() -> io::Result<Socket> {
    Socket::open(None) // protocol 0 is NETLINK_ROUTE
}

/// The interface called `name`, if there is one.
pub(super) fn find(socket: &mut Socket, name: &str) -> io::Result<Option<Link>> {
    let mut messages = Messages::new();
    messages.message(GETLINK, ACK | REQUEST, &ifinfo(0, 0)).text(IFLA_IFNAME, name);
    one(socket, messages)
}

pub(super) fn by_index(socket: &mut Socket, index: u32) -> io::Result<Option<Link>> {
    let mut messages = Messages::new();
    messages.message(GETLINK, ACK | REQUEST, &ifinfo(index, 0));
    one(socket, messages)
}

fn one(socket: &mut Socket, messages: Messages) -> io::Result<Option<Link>> {
    let mut found = None;
    let answers = socket.exchange(messages, |_, kind, payload| {
        if kind == NEWLINK && payload.len() >= 16 {
            let mtu = attributes(&payload[16..]).find(|(k, v)| *k == IFLA_MTU && v.len() == 4);
            found = Some(Link {
                index: u32_at(payload, 4),
                up: u32_at(payload, 8) & IFF_UP != 0,
                mtu: mtu.map_or(1500, |(_, v)| u32_at(v, 0)),
            });
        }
    })?;
    match answers.into_iter().next() {
        Some(Err(error)) if error.raw_os_error() == Some(19) => Ok(None), // ENODEV
        Some(Err(error)) => Err(error),
        _ => Ok(found),
    }
}

/// Every IPv4 address as (interface, address, range it is in).
pub(super) fn addresses(socket: &mut Socket) -> io::Result<Vec<(u32, Ipv4Addr, Subnet)>> {
    let mut messages = Messages::new();
    messages.message(GETADDR, REQUEST | DUMP, &[2, 0, 0, 0, 0, 0, 0, 0]);
    let mut found = Vec::new();
    socket.exchange(messages, |_, kind, payload| {
        if kind != NEWADDR || payload.len() < 8 {
            return;
        }
        let index = u32_at(payload, 4);
        // IFA_LOCAL is the interface's own address; IFA_ADDRESS the peer's on point-to-point links.
        let pick = |want| attributes(&payload[8..]).find(|(k, v)| *k == want && v.len() == 4);
        if let Some((_, v)) = pick(2).or_else(|| pick(1)) {
            let address = Ipv4Addr::new(v[0], v[1], v[2], v[3]);
            found.push((index, address, Subnet::around(address, payload[1].min(32))));
        }
    })?;
    Ok(found)
}

/// Every IPv6 address as (interface, address, bits of its range).
pub(super) fn addresses6(socket: &mut Socket) -> io::Result<Vec<(u32, Ipv6Addr, u8)>> {
    let mut messages = Messages::new();
    messages.message(GETADDR, REQUEST | DUMP, &[INET6, 0, 0, 0, 0, 0, 0, 0]);
    let mut found = Vec::new();
    socket.exchange(messages, |_, kind, payload| {
        if kind != NEWADDR || payload.len() < 8 {
            return;
        }
        let address = attributes(&payload[8..]).find(|(k, v)| *k == 1 && v.len() == 16);
        if let Some(octets) = address.and_then(|(_, v)| <[u8; 16]>::try_from(v).ok()) {
            found.push((u32_at(payload, 4), Ipv6Addr::from(octets), payload[1]));
        }
    })?;
    Ok(found)
}

/// Every IPv4 route of the main table.
pub(super) fn routes(socket: &mut Socket) -> io::Result<Vec<Route>> {
    let mut messages = Messages::new();
    messages.message(GETROUTE, REQUEST | DUMP, &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut found = Vec::new();
    socket.exchange(messages, |_, kind, payload| {
        if kind != NEWROUTE || payload.len() < 12 || payload[4] != RT_TABLE_MAIN {
            return;
        }
        let mut to = Ipv4Addr::UNSPECIFIED;
        let mut link = None;
        for (kind, v) in attributes(&payload[12..]).filter(|(_, v)| v.len() == 4) {
            match kind {
                1 => to = Ipv4Addr::new(v[0], v[1], v[2], v[3]),
                4 => link = Some(u32_at(v, 0)),
                _ => {}
            }
        }
        found.push(Route { to: Subnet::around(to, payload[1].min(32)), link });
    })?;
    Ok(found)
}

/// Makes a bridge, down and without address; `AlreadyExists` when the name is taken.
pub(super) fn create_bridge(socket: &mut Socket, name: &str) -> io::Result<()> {
    let mut messages = Messages::new();
    messages.message(NEWLINK, ACK | CREATE | EXCLUSIVE, &ifinfo(0, 0)).text(IFLA_IFNAME, name).nested(
        IFLA_LINKINFO,
        |m| {
            m.text(INFO_KIND, "bridge");
        },
    );
    socket.command(messages)
}

/// Writes a note on an interface, which `ip link` shows as its alias.
pub(super) fn set_note(socket: &mut Socket, index: u32, note: &str) -> io::Result<()> {
    let mut messages = Messages::new();
    messages.message(NEWLINK, ACK, &ifinfo(index, 0)).text(IFLA_IFALIAS, note);
    socket.command(messages)
}

/// Gives an interface its addresses (those it has not yet) its hardware address and its largest packet, and sets it up.
///
/// A bridge takes its own size from its ports, and 1500 when the last has gone, unless a size was *changed* explicitly: to
/// have been made with one does not count. Its hardware address too is a port's unless it was given one.
pub(super) fn configure(
    socket: &mut Socket,
    index: u32,
    addresses: &[(IpAddr, u8)],
    own: Option<(Mac, u32)>,
) -> io::Result<()> {
    let mut messages = Messages::new();
    messages.message(NEWLINK, ACK, &ifinfo(index, IFF_UP));
    if let Some((mac, mtu)) = own {
        messages.attribute(IFLA_ADDRESS, &mac.0).number(IFLA_MTU, mtu);
    }
    for (address, prefix) in addresses {
        address_message(&mut messages, index, *address, *prefix);
    }
    for answer in socket.exchange(messages, |_, _, _| {})? {
        match answer {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
    }
    Ok(())
}

/// Makes the pair in one message: the host's end up and in the bridge, the other inside the namespace, still down (the
/// kernel opens no veth whose peer is not yet there).
pub(super) fn create_veth(socket: &mut Socket, veth: &Veth<'_>) -> io::Result<()> {
    let mut messages = Messages::new();
    messages
        .message(NEWLINK, ACK | CREATE | EXCLUSIVE, &ifinfo(0, IFF_UP))
        .text(IFLA_IFNAME, veth.host_name)
        .number(IFLA_MTU, veth.mtu)
        .number(IFLA_MASTER, veth.bridge)
        .nested(IFLA_LINKINFO, |m| {
            m.text(INFO_KIND, "veth").nested(INFO_DATA, |m| {
                m.nested_after(VETH_PEER, &ifinfo(0, 0), |m| {
                    m.text(IFLA_IFNAME, veth.inner_name)
                        .attribute(IFLA_ADDRESS, &veth.mac.0)
                        .number(IFLA_MTU, veth.mtu)
                        .number(IFLA_NET_NS_FD, veth.namespace.as_raw_fd() as u32);
                });
            });
        });
    socket.command(messages)
}

/// Sets an interface up and gives it its addresses and the default routes.
pub(super) fn addresses_and_routes(
    socket: &mut Socket,
    index: u32,
    addresses: &[(IpAddr, u8)],
    gateways: &[IpAddr],
) -> io::Result<()> {
    let mut messages = Messages::new();
    messages.message(NEWLINK, ACK, &ifinfo(index, IFF_UP));
    for (address, prefix) in addresses {
        address_message(&mut messages, index, *address, *prefix);
    }
    for gateway in gateways {
        route_message(&mut messages, index, *gateway);
    }
    socket.command(messages)
}

/// Removes an interface; one that is not there is as good as removed.
pub(super) fn remove(socket: &mut Socket, index: u32) -> io::Result<()> {
    let mut messages = Messages::new();
    messages.message(DELLINK, ACK, &ifinfo(index, 0));
    match socket.command(messages) {
        Err(error) if error.raw_os_error() == Some(19) => Ok(()), // ENODEV
        other => other,
    }
}

/// Gives an interface one more name, which nothing else in the namespace may have; `AlreadyExists` when something has.
pub(super) fn add_name(socket: &mut Socket, index: u32, name: &str) -> io::Result<()> {
    let mut messages = Messages::new();
    messages.message(NEWLINKPROP, ACK | CREATE | EXCLUSIVE | APPEND, &ifinfo(index, 0)).nested(IFLA_PROP_LIST, |m| {
        m.text(IFLA_ALT_IFNAME, name);
    });
    socket.command(messages)
}

/// Keeps a port of a bridge from reaching the other ports that are kept so; it still reaches the bridge itself.
pub(super) fn isolate_port(socket: &mut Socket, index: u32) -> io::Result<()> {
    let mut messages = Messages::new();
    messages.message(NEWLINK, ACK, &ifinfo(index, 0)).nested(IFLA_LINKINFO, |m| {
        m.text(INFO_SLAVE_KIND, "bridge").nested(INFO_SLAVE_DATA, |m| {
            m.attribute(BRPORT_ISOLATED, &[1]);
        });
    });
    socket.command(messages)
}

/// Whether some interface is a port of the bridge.
pub(super) fn has_ports(socket: &mut Socket, bridge: u32) -> io::Result<bool> {
    let mut messages = Messages::new();
    messages.message(GETLINK, REQUEST | DUMP, &ifinfo(0, 0));
    let mut found = false;
    socket.exchange(messages, |_, kind, payload| {
        if kind == NEWLINK && payload.len() >= 16 {
            let master = attributes(&payload[16..]).find(|(k, v)| *k == IFLA_MASTER && v.len() == 4);
            found |= master.is_some_and(|(_, v)| u32_at(v, 0) == bridge);
        }
    })?;
    Ok(found)
}

fn address_message(messages: &mut Messages, index: u32, address: IpAddr, prefix: u8) {
    let mut header = [INET, prefix, 0, 0, 0, 0, 0, 0];
    header[4..].copy_from_slice(&index.to_ne_bytes());
    match address {
        IpAddr::V4(address) => {
            let broadcast = Subnet::around(address, prefix).last();
            messages
                .message(NEWADDR, ACK | CREATE | EXCLUSIVE, &header)
                .attribute(2, &address.octets())
                .attribute(1, &address.octets())
                .attribute(4, &broadcast.octets());
        }
        IpAddr::V6(address) => {
            // Nobody else can have it, so nobody need be asked before it is used.
            (header[0], header[2]) = (INET6, IFA_F_NODAD);
            messages
                .message(NEWADDR, ACK | CREATE | EXCLUSIVE, &header)
                .attribute(2, &address.octets())
                .attribute(1, &address.octets());
        }
    }
}

fn route_message(messages: &mut Messages, index: u32, gateway: IpAddr) {
    // family, dst_len, src_len, tos, table, protocol boot, scope universe, type unicast, flags
    let header = |family| [family, 0, 0, 0, RT_TABLE_MAIN, 3, 0, 1, 0, 0, 0, 0];
    let flags = ACK | CREATE | EXCLUSIVE;
    match gateway {
        IpAddr::V4(gateway) => messages.message(NEWROUTE, flags, &header(INET)).attribute(5, &gateway.octets()),
        IpAddr::V6(gateway) => messages.message(NEWROUTE, flags, &header(INET6)).attribute(5, &gateway.octets()),
    }
    .number(4, index);
}

/// `struct ifinfomsg`: the interface and the flags to set.
fn ifinfo(index: u32, flags: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&flags.to_ne_bytes());
    header
}
