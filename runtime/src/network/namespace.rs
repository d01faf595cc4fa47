//! A network namespace: made by a short-lived thread, which can enter it without taking the program along.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;

use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use super::netlink::Socket;
use super::{Bridge, Error, Mac, Subnet, link};

const INNER: &str = "eth0";
const LOOPBACK: u32 = 1;
/// How many addresses are tried by chance before the range is gone through in order.
const BY_CHANCE: usize = 32;

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
}

/// A network namespace with loopback up. It ends when this handle and the last process inside are gone; the
/// interfaces go with it.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
    endpoint: Option<Endpoint>,
}

impl Namespace {
    /// A namespace with nothing but loopback.
    pub fn isolated() -> Result<Self, Error> {
        on_thread(|| {
            let (fd, _) = enter_new()?;
            Ok(Self { fd, endpoint: None })
        })
    }

    /// A namespace attached to the bridge, with `address` or any free one of its range.
    pub fn attached(bridge: &Bridge, address: Option<Ipv4Addr>) -> Result<Self, Error> {
        // Opened here: a netlink socket stays in the namespace it was opened in.
        let mut host = link::open().map_err(|e| Error::kernel("open a netlink socket", e))?;
        let bridge = bridge.clone();
        on_thread(move || {
            let (fd, mut inside) = enter_new()?;
            let endpoint = attach(&mut host, &mut inside, fd.as_fd(), &bridge, address)?;
            Ok(Self { fd, endpoint: Some(endpoint) })
        })
    }

    /// Where it is attached; `None` for an isolated one.
    pub fn endpoint(&self) -> Option<&Endpoint> {
        self.endpoint.as_ref()
    }

    /// A namespace that came from another process.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd, endpoint: None }
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
    let mut inside = link::open().map_err(|e| Error::kernel("open a netlink socket", e))?;
    link::configure(&mut inside, LOOPBACK, None, None).map_err(|e| Error::kernel("set loopback up", e))?;
    Ok((fd, inside))
}

fn attach(
    host: &mut Socket,
    inside: &mut Socket,
    namespace: BorrowedFd<'_>,
    bridge: &Bridge,
    wanted: Option<Ipv4Addr>,
) -> Result<Endpoint, Error> {
    let (address, host_interface) = claim(host, namespace, bridge, wanted)?;
    let failed = |e: io::Error| Error::kernel(format!("set up {INNER}"), e);
    let inner = link::find(inside, INNER).map_err(failed)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let prefix = bridge.subnet.prefix();
    link::address_and_route(inside, inner.index, address, prefix, Some(bridge.gateway)).map_err(failed)?;
    Ok(Endpoint {
        bridge: bridge.name.clone(),
        address,
        subnet: bridge.subnet,
        gateway: bridge.gateway,
        mac: Mac::of(address),
        host_interface,
    })
}

/// Makes the veth pair under the name of an address nobody has.
fn claim(
    host: &mut Socket,
    namespace: BorrowedFd<'_>,
    bridge: &Bridge,
    wanted: Option<Ipv4Addr>,
) -> Result<(Ipv4Addr, String), Error> {
    let subnet = bridge.subnet;
    let mut attempt = |address: Ipv4Addr| {
        let name = format!("veth{:08x}", address.to_bits());
        let veth = link::Veth {
            host_name: &name,
            bridge: bridge.index,
            inner_name: INNER,
            mac: Mac::of(address),
            mtu: bridge.mtu,
            namespace,
        };
        match link::create_veth(host, &veth) {
            Ok(()) => Ok(Some((address, name))),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(Error::kernel(format!("attach to {}", bridge.name), error)),
        }
    };
    let usable = |a: Ipv4Addr| a != bridge.gateway && a != subnet.first() && a != subnet.last();
    if let Some(address) = wanted {
        if !subnet.contains(address) || !usable(address) {
            return Err(Error::OutOfRange { address, subnet });
        }
        return attempt(address)?.ok_or(Error::Taken(address));
    }
    let hosts = subnet.hosts();
    let by_chance = (0..BY_CHANCE).map(|_| random() % hosts.max(1) + 1);
    for n in by_chance.chain(1..=hosts) {
        let address = subnet.host(n);
        if usable(address)
            && let Some(claimed) = attempt(address)?
        {
            return Ok(claimed);
        }
    }
    Err(Error::Exhausted(subnet))
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
