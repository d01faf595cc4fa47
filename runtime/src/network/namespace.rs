//! A network namespace: made by a short-lived thread, which can enter it without taking the program along.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use super::netlink::Socket;
use super::{Bridge, Error, Mac, Subnet, Subnet6, link};

const LOOPBACK: u32 = 1;
/// How many addresses are tried by chance before the range is gone through in order.
const BY_CHANCE: usize = 32;
/// How long an address is waited for that the container had before: when it was asked for by number, and when not.
const FOR_OWN: Duration = Duration::from_secs(20);
const FOR_PREFERRED: Duration = Duration::from_millis(300);

/// Where a namespace is attached: what `inspect` shows of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub bridge: String,
    pub address: Ipv4Addr,
    pub subnet: Subnet,
    pub gateway: Ipv4Addr,
    pub mac: Mac,
    /// The host's end of the veth pair.
    pub host_interface: String,
    /// The end inside.
    #[serde(default = "first_interface")]
    pub interface: String,
    #[serde(default)]
    pub address6: Option<Ipv6Addr>,
    #[serde(default)]
    pub subnet6: Option<(Subnet6, Ipv6Addr)>,
    /// The bridge has no way out.
    #[serde(default)]
    pub internal: bool,
}

fn first_interface() -> String {
    "eth0".to_owned()
}

/// What an attachment is to be like. The default: any free address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// This address and no other.
    pub address: Option<Ipv4Addr>,
    /// This one if it is free: what the container had before.
    pub preferred: Option<Ipv4Addr>,
    /// Part of the bridge's range that addresses are taken from.
    pub range: Option<Subnet>,
    /// This IPv6 address; else one is derived from the other.
    pub address6: Option<Ipv6Addr>,
    /// Part of the bridge's IPv6 range that addresses are taken from.
    #[serde(default)]
    pub range6: Option<Subnet6>,
    /// Addresses that are somebody else's.
    #[serde(default)]
    pub avoid: Vec<IpAddr>,
    /// In place of the hardware address that follows from the address.
    pub mac: Option<Mac>,
    /// Addresses of the link alone that the interface has beside its own.
    #[serde(default)]
    pub link_local: Vec<IpAddr>,
}

/// A network namespace with loopback up. It ends when this handle and the last process inside are gone; the
/// interfaces go with it.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
    endpoints: Vec<Endpoint>,
}

impl Namespace {
    /// A namespace with nothing but loopback.
    pub fn isolated() -> Result<Self, Error> {
        Self::connected(&[])
    }

    /// A namespace attached to the bridge, with `address` or any free one of its range.
    pub fn attached(bridge: &Bridge, address: Option<Ipv4Addr>) -> Result<Self, Error> {
        Self::connected(&[(bridge, Wish { address, ..Wish::default() })])
    }

    /// A namespace attached to each of the bridges; the first that is not internal is its way out.
    pub fn connected(bridges: &[(&Bridge, Wish)]) -> Result<Self, Error> {
        // Opened here: a netlink socket stays in the namespace it was opened in.
        let mut host = open()?;
        on_thread(move || {
            let (fd, mut inside) = enter_new()?;
            let mut namespace = Self { fd, endpoints: Vec::with_capacity(bridges.len()) };
            for (bridge, wish) in bridges {
                let way_out = !bridge.internal && namespace.endpoints.iter().all(|e| e.internal);
                let place = Place { namespace: namespace.fd.as_fd(), number: namespace.endpoints.len(), way_out };
                let endpoint = attach(&mut host, &mut inside, place, bridge, wish)?;
                namespace.endpoints.push(endpoint);
            }
            Ok(namespace)
        })
    }

    /// Attaches it to one more bridge, as interface number `number`; whether this is to be its way out is the caller's to
    /// know.
    pub fn attach(&self, bridge: &Bridge, wish: &Wish, number: usize, way_out: bool) -> Result<Endpoint, Error> {
        let mut host = open()?;
        let place = Place { namespace: self.fd.as_fd(), number, way_out: way_out && !bridge.internal };
        self.inside(move || attach(&mut host, &mut open()?, place, bridge, wish))?
    }

    /// Makes the endpoint the way out.
    pub fn route_through(&self, endpoint: &Endpoint) -> Result<(), Error> {
        let failed = |e: io::Error| Error::kernel(format!("set the route through {}", endpoint.interface), e);
        self.inside(|| {
            let mut inside = open()?;
            let found = link::find(&mut inside, &endpoint.interface).map_err(failed)?;
            let index = found.ok_or_else(|| Error::NoInterface(endpoint.interface.clone()))?.index;
            let mut gateways = vec![IpAddr::V4(endpoint.gateway)];
            gateways.extend(endpoint.subnet6.map(|(_, gateway)| IpAddr::V6(gateway)));
            link::addresses_and_routes(&mut inside, index, &[], &gateways).map_err(failed)
        })?
    }

    /// Takes an endpoint away: both ends of its pair go, with addresses and routes.
    pub fn detach(endpoint: &Endpoint) -> Result<(), Error> {
        let failed = |e: io::Error| Error::kernel(format!("detach from {}", endpoint.bridge), e);
        let mut host = open()?;
        match link::find(&mut host, &endpoint.host_interface).map_err(failed)? {
            Some(found) => link::remove(&mut host, found.index).map_err(failed),
            None => Ok(()),
        }
    }

    /// Runs `work` on a thread inside the namespace: for sockets that shall belong to it.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        on_thread(|| {
            move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|e| Error::kernel("enter the network namespace", e))?;
            Ok(work())
        })
    }

    /// Where it is attached first; `None` for an isolated one.
    pub fn endpoint(&self) -> Option<&Endpoint> {
        self.endpoints.first()
    }

    /// Where it is attached.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// A namespace that came from another process.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd, endpoints: Vec::new() }
    }

    /// Gives up the handle for the bare descriptor.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn open() -> Result<Socket, Error> {
    link::open().map_err(|e| Error::kernel("open a netlink socket", e))
}

fn on_thread<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    thread::scope(|scope| {
        thread::Builder::new()
            .stack_size(256 * 1024)
            .spawn_scoped(scope, work)
            .map_err(|e| Error::kernel("start a thread", e))?
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Moves the calling thread into a new namespace with loopback up; the namespace and a netlink socket in it.
fn enter_new() -> Result<(OwnedFd, Socket), Error> {
    // SAFETY: only CLONE_NEWNET is unshared; descriptors and memory stay shared, and this thread ends soon.
    #[allow(unsafe_code)]
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
        .map_err(|e| Error::kernel("make a network namespace", e))?;
    let fd = File::open("/proc/thread-self/ns/net").map_err(|e| Error::kernel("open the network namespace", e))?.into();
    let mut inside = open()?;
    link::configure(&mut inside, LOOPBACK, &[], None).map_err(|e| Error::kernel("set loopback up", e))?;
    Ok((fd, inside))
}

/// Where the inner end of a pair goes.
#[derive(Clone, Copy)]
struct Place<'a> {
    namespace: BorrowedFd<'a>,
    /// That of the interface: `eth0`, `eth1`.
    number: usize,
    way_out: bool,
}

fn attach(
    host: &mut Socket,
    inside: &mut Socket,
    place: Place<'_>,
    bridge: &Bridge,
    wish: &Wish,
) -> Result<Endpoint, Error> {
    let interface = format!("eth{}", place.number);
    let (address, host_interface) = claim(host, place.namespace, bridge, &interface, wish)?;
    let failed = |e: io::Error| Error::kernel(format!("set up {interface}"), e);
    let inner =
        link::find(inside, &interface).map_err(failed)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let mut addresses = vec![(IpAddr::V4(address), bridge.subnet.prefix())];
    let mut gateways = vec![IpAddr::V4(bridge.gateway)];
    let mut address6 = None;
    if let Some((subnet, gateway)) = bridge.subnet6 {
        let own = claim6(host, bridge, (subnet, gateway), wish, address, &host_interface)?;
        addresses.push((IpAddr::V6(own), subnet.prefix()));
        gateways.push(IpAddr::V6(gateway));
        address6 = Some(own);
    }
    addresses.extend(wish.link_local.iter().map(|&own| (own, if own.is_ipv4() { 16 } else { 64 })));
    if bridge.separate {
        let port = link::find(host, &host_interface).map_err(failed)?;
        port.map_or(Ok(()), |port| link::isolate_port(host, port.index)).map_err(failed)?;
    }
    if !place.way_out {
        gateways.clear();
    }
    link::addresses_and_routes(inside, inner.index, &addresses, &gateways).map_err(failed)?;
    Ok(Endpoint {
        bridge: bridge.name.clone(),
        address,
        subnet: bridge.subnet,
        gateway: bridge.gateway,
        mac: wish.mac.unwrap_or_else(|| Mac::of(address)),
        host_interface,
        interface,
        address6,
        subnet6: bridge.subnet6,
        internal: bridge.internal,
    })
}

/// Makes the veth pair under the name of an address nobody has.
fn claim(
    host: &mut Socket,
    namespace: BorrowedFd<'_>,
    bridge: &Bridge,
    interface: &str,
    wish: &Wish,
) -> Result<(Ipv4Addr, String), Error> {
    let subnet = bridge.subnet;
    let mut attempt = |address: Ipv4Addr| {
        let name = format!("veth{:08x}", address.to_bits());
        let veth = link::Veth {
            host_name: &name,
            bridge: bridge.index,
            inner_name: interface,
            mac: wish.mac.unwrap_or_else(|| Mac::of(address)),
            mtu: bridge.mtu,
            namespace,
        };
        match link::create_veth(host, &veth) {
            Ok(()) => Ok(Some((address, name))),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(Error::kernel(format!("attach to {}", bridge.name), error)),
        }
    };
    let usable = |a: Ipv4Addr| {
        let is_own = a == bridge.gateway || a == subnet.first() || a == subnet.last();
        subnet.contains(a) && !is_own && !wish.avoid.contains(&IpAddr::V4(a))
    };
    // The kernel takes down the namespace of an earlier life in its own time.
    let mut attempt_within = |address: Ipv4Addr, patience: Duration| {
        let until = Instant::now() + patience;
        loop {
            match attempt(address)? {
                None if Instant::now() < until => thread::sleep(Duration::from_millis(5)),
                other => return Ok::<_, Error>(other),
            }
        }
    };
    if let Some(address) = wish.address {
        if !usable(address) {
            return Err(Error::OutOfRange { address, subnet });
        }
        let patience = if wish.preferred == Some(address) { FOR_OWN } else { Duration::ZERO };
        return attempt_within(address, patience)?.ok_or(Error::Taken(address));
    }
    let range = wish.range.unwrap_or(subnet);
    if let Some(address) = wish.preferred.filter(|a| range.contains(*a) && usable(*a))
        && let Some(claimed) = attempt_within(address, FOR_PREFERRED)?
    {
        return Ok(claimed);
    }
    // All addresses of a part of the range can be had, also those that would be its own and its broadcast address.
    let (first, count) = if range == subnet { (1, subnet.hosts()) } else { (0, range.size()) };
    let by_chance = (0..BY_CHANCE).map(|_| random() % count.max(1) + first);
    for address in by_chance.chain(first..first.saturating_add(count)).map(|n| range.host(n)) {
        if usable(address)
            && let Some(claimed) = attempt_within(address, Duration::ZERO)?
        {
            return Ok(claimed);
        }
    }
    Err(Error::Exhausted(range))
}

/// Takes the IPv6 address asked for, or the one as far into its range as the other is into its own. It is taken by giving
/// the host's end of the pair a second name.
fn claim6(
    host: &mut Socket,
    bridge: &Bridge,
    (subnet, gateway): (Subnet6, Ipv6Addr),
    wish: &Wish,
    address: Ipv4Addr,
    host_interface: &str,
) -> Result<Ipv6Addr, Error> {
    let failed = |e: io::Error| Error::kernel(format!("attach to {}", bridge.name), e);
    let port =
        link::find(host, host_interface).map_err(failed)?.ok_or(Error::NoInterface(host_interface.to_owned()))?;
    let mut attempt =
        |address: Ipv6Addr| match link::add_name(host, port.index, &format!("veth-{:032x}", address.to_bits())) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(failed(error)),
        };
    let usable = |a: Ipv6Addr| a != gateway && a != subnet.first() && !wish.avoid.contains(&IpAddr::V6(a));
    if let Some(address) = wish.address6 {
        if !subnet.contains(address) || !usable(address) {
            return Err(Error::OutOfRange6 { address, subnet });
        }
        return if attempt(address)? { Ok(address) } else { Err(Error::Taken6(address)) };
    }
    let derived = address.to_bits() - bridge.subnet.first().to_bits();
    for n in [derived].into_iter().chain(1..=u32::from(u16::MAX)) {
        if let Some(address) = wish.range6.unwrap_or(subnet).host(n).filter(|a| usable(*a))
            && attempt(address)?
        {
            return Ok(address);
        }
    }
    Err(Error::Exhausted(bridge.subnet))
}

/// Chance without a state: a start picks its address at once instead of asking after every one in use, and an address
/// just given up is not given out again right away.
fn random() -> u32 {
    let mut bytes = [0; 4];
    match rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty()) {
        Ok(_) => u32::from_ne_bytes(bytes),
        Err(_) => std::process::id().wrapping_mul(2_654_435_761),
    }
}
