//! Interfaces, addresses and routes: the rtnetlink messages, one function each.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::netlink::{ACK, CREATE, DUMP, EXCLUSIVE, Messages, REQUEST, Socket, attributes, u32_at};
use super::{Mac, Subnet};

const NEWLINK: u16 = 16;
const GETLINK: u16 = 18;
const NEWADDR: u16 = 20;
const GETADDR: u16 = 22;
const NEWROUTE: u16 = 24;
const GETROUTE: u16 = 26;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const VETH_PEER: u16 = 1;
const IFF_UP: u32 = 1;
const RT_TABLE_MAIN: u8 = 254;

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
pub(super) fn create_bridge(socket: &mut Socket, name: &str, mac: Mac) -> io::Result<()> {
    let mut messages = Messages::new();
    messages
        .message(NEWLINK, ACK | CREATE | EXCLUSIVE, &ifinfo(0, 0))
        .text(IFLA_IFNAME, name)
        .attribute(IFLA_ADDRESS, &mac.0)
        .nested(IFLA_LINKINFO, |m| {
            m.text(INFO_KIND, "bridge");
        });
    socket.command(messages)
}

/// Gives an interface its address (if it has not this one yet) and its largest packet, and sets it up.
///
/// A bridge takes its own size from its ports, and 1500 when the last has gone, unless a size was *changed* explicitly: to
/// have been made with one does not count.
pub(super) fn configure(
    socket: &mut Socket,
    index: u32,
    address: Option<(Ipv4Addr, u8)>,
    mtu: Option<u32>,
) -> io::Result<()> {
    let mut messages = Messages::new();
    messages.message(NEWLINK, ACK, &ifinfo(index, IFF_UP));
    if let Some(mtu) = mtu {
        messages.number(IFLA_MTU, mtu);
    }
    if let Some((address, prefix)) = address {
        address_message(&mut messages, index, address, prefix);
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

/// Sets a namespace's only outside interface up, with its address and the default route.
pub(super) fn address_and_route(
    socket: &mut Socket,
    index: u32,
    address: Ipv4Addr,
    prefix: u8,
    gateway: Option<Ipv4Addr>,
) -> io::Result<()> {
    let mut messages = Messages::new();
    messages.message(NEWLINK, ACK, &ifinfo(index, IFF_UP));
    address_message(&mut messages, index, address, prefix);
    if let Some(gateway) = gateway {
        // family, dst_len, src_len, tos, table, protocol boot, scope universe, type unicast, flags
        messages
            .message(NEWROUTE, ACK | CREATE | EXCLUSIVE, &[2, 0, 0, 0, RT_TABLE_MAIN, 3, 0, 1, 0, 0, 0, 0])
            .attribute(5, &gateway.octets())
            .number(4, index);
    }
    socket.command(messages)
}

fn address_message(messages: &mut Messages, index: u32, address: Ipv4Addr, prefix: u8) {
    let mut header = [2, prefix, 0, 0, 0, 0, 0, 0];
    header[4..].copy_from_slice(&index.to_ne_bytes());
    let broadcast = Subnet::around(address, prefix).last();
    messages
        .message(NEWADDR, ACK | CREATE | EXCLUSIVE, &header)
        .attribute(2, &address.octets())
        .attribute(1, &address.octets())
        .attribute(4, &broadcast.octets());
}

/// `struct ifinfomsg`: the interface and the flags to set.
fn ifinfo(index: u32, flags: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&flags.to_ne_bytes());
    header
}
