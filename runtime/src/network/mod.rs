//! The network of containers and RUN steps: a bridge with address translation, and namespaces attached to it.
//!
//! Everything is kernel state of the caller's network namespace, made on demand by a few netlink messages and found
//! again by asking the kernel; no file or table of ours says what exists. Addresses too are the kernel's to give: the
//! host's end of a container's veth pair is named after the address, and making an interface of a name that is taken fails, so
//! two stores, or two users of one store, that share a bridge can never hand out an address twice, and an address is free
//! again the moment the namespace that had it is gone. A table of addresses would have to be swept after every
//! crash, and would know nothing of the other stores on the machine.
//!
//! A namespace lives as long as something holds it: the descriptor in [`Namespace`] or a process inside. Nothing is
//! mounted to keep it, so a killed starter leaves no interface behind, and nobody waits for the kernel's slow
//! taking down of it.

mod bridge;
mod firewall;
mod link;
mod namespace;
mod netlink;
mod nft;
mod pool;
mod proxy;
mod publish;
mod resolver;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

pub use bridge::{Bridge, BridgeOptions, DEFAULT_BRIDGE};
pub use firewall::{Filter, packet_filter};
pub use namespace::{Endpoint, Namespace, Wish};
pub use pool::Pool;
pub use publish::{PortBinding, PortRequest, Protocol, Published};
pub use resolver::{NAME_SERVER, Names, Resolver};

/// What went wrong with the network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("cannot {what}: {source}")]
    Kernel {
        what: String,
        #[source]
        source: io::Error,
    },
    /// Every private range is in use by an interface or a route.
    #[error("no private address range is free for bridge {0}")]
    NoRange(String),
    /// The interface of the bridge's name is not a bridge of ours with an address.
    #[error("interface {0} has no IPv4 address and none could be given to it")]
    NoAddress(String),
    /// Every address of the bridge's range is taken.
    #[error("no address is free in {0}")]
    Exhausted(Subnet),
    /// The address asked for is taken or outside of the range.
    #[error("address {0} is already in use")]
    Taken(Ipv4Addr),
    #[error("address {address} is not a host address of {subnet}")]
    OutOfRange { address: Ipv4Addr, subnet: Subnet },
    #[error("address {0} is already in use")]
    Taken6(Ipv6Addr),
    #[error("address {address} is not a host address of {subnet}")]
    OutOfRange6 { address: Ipv6Addr, subnet: Subnet6 },
    /// The range asked for is, in part, somebody's already.
    #[error("the range {0} overlaps with one that this machine uses already")]
    Overlaps(String),
    /// The interface exists already.
    #[error("interface {0} exists already")]
    Exists(String),
    /// The namespace is not attached to the bridge, or not any more.
    #[error("interface {0} is not there")]
    NoInterface(String),
    /// What was asked for cannot be done with the older firewall.
    #[error("the kernel has no nf_tables, without which networks cannot be kept apart")]
    NeedsNftables,
    /// Somebody listens on the port of the host's.
    #[error("Bind for {0} failed: port is already allocated")]
    PortTaken(String),
    /// A port of the host's cannot be listened on for another reason.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        address: String,
        #[source]
        source: io::Error,
    },
    /// Neither nf_tables nor an iptables program.
    #[error("the kernel has no nf_tables and there is no iptables program to masquerade with")]
    NoFirewall,
    #[error("{program} could not set the masquerading rules")]
    Program { program: &'static str },
    /// Forwarding is off and may not be switched on.
    #[error("net.ipv4.ip_forward is off and cannot be switched on: {0}")]
    Forwarding(#[source] io::Error),
}

impl Error {
    fn kernel(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Kernel { what: what.into(), source: source.into() }
    }
}

/// A hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address an interface with this IPv4 address gets: it depends on nothing else, so what neighbours remember
    /// of an address stays true when another container gets it later.
    pub fn of(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x02, 0x42, a, b, c, d])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// `02:42:ac:11:00:02`, in either case.
impl std::str::FromStr for Mac {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit())).ok_or(())?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| ())?;
        }
        if parts.next().is_some() { Err(()) } else { Ok(Self(bytes)) }
    }
}

/// An IPv4 range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    first: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    /// The range of `prefix` bits (0 to 32) that holds `address`.
    pub fn around(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self { first: Ipv4Addr::from_bits(address.to_bits() & mask_bits(prefix)), prefix }
    }

    /// The network's own address.
    pub fn first(&self) -> Ipv4Addr {
        self.first
    }

    /// The broadcast address.
    pub fn last(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first.to_bits() | !mask_bits(self.prefix))
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask_bits(self.prefix))
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask_bits(self.prefix) == self.first.to_bits()
    }

    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }

    /// How many addresses lie between the network's own and the broadcast address.
    pub fn hosts(&self) -> u32 {
        (!mask_bits(self.prefix)).saturating_sub(1)
    }

    /// How many addresses there are, its own and the broadcast address among them.
    fn size(&self) -> u32 {
        (!mask_bits(self.prefix)).saturating_add(1)
    }

    /// The n-th host address, counted from 1.
    pub fn host(&self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first.to_bits().wrapping_add(n))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

/// An IPv6 range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet6 {
    first: Ipv6Addr,
    prefix: u8,
}

impl Subnet6 {
    /// The range of `prefix` bits (0 to 128) that holds `address`.
    pub fn around(address: Ipv6Addr, prefix: u8) -> Self {
        let prefix = prefix.min(128);
        Self { first: Ipv6Addr::from_bits(address.to_bits() & mask6_bits(prefix)), prefix }
    }

    /// The network's own address.
    pub fn first(&self) -> Ipv6Addr {
        self.first
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    pub fn mask(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(mask6_bits(self.prefix))
    }

    pub fn contains(&self, address: Ipv6Addr) -> bool {
        address.to_bits() & mask6_bits(self.prefix) == self.first.to_bits()
    }

    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }

    /// The n-th address after the network's own; `None` past the end.
    pub fn host(&self, n: u32) -> Option<Ipv6Addr> {
        let address = Ipv6Addr::from_bits(self.first.to_bits().wrapping_add(u128::from(n)));
        self.contains(address).then_some(address)
    }
}

impl fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

fn mask6_bits(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

fn mask_bits(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets() {
        let net = Subnet::around(Ipv4Addr::new(172, 17, 3, 4), 16);
        assert_eq!(net.to_string(), "172.17.0.0/16");
        assert_eq!(net.last(), Ipv4Addr::new(172, 17, 255, 255));
        assert_eq!((net.hosts(), net.host(1)), (65534, Ipv4Addr::new(172, 17, 0, 1)));
        let everything = Subnet::around(Ipv4Addr::new(1, 2, 3, 4), 0);
        assert!(everything.contains(Ipv4Addr::BROADCAST) && everything.overlaps(&net));
        let one = Subnet::around(Ipv4Addr::new(10, 0, 0, 1), 32);
        assert_eq!((one.hosts(), one.first(), one.last()), (0, one.first(), one.first()));
        assert!(!one.overlaps(&net));
        assert_eq!(Mac::of(Ipv4Addr::new(172, 17, 0, 2)).to_string(), "02:42:ac:11:00:02");
        assert_eq!("02:42:AC:11:00:02".parse(), Ok(Mac::of(Ipv4Addr::new(172, 17, 0, 2))));
        for bad in ["", "02:42:ac:11:00", "02:42:ac:11:00:02:03", "02:42:ac:11:00:+2", "g2:42:ac:11:00:02"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn long_subnets() {
        let net = Subnet6::around("fd00:1::5".parse().unwrap(), 126);
        assert_eq!(net.to_string(), "fd00:1::4/126");
        assert_eq!(net.host(3).map(|a| a.to_string()).as_deref(), Some("fd00:1::7"));
        assert_eq!(net.host(4), None);
        assert!(net.overlaps(&Subnet6::around("fd00::".parse().unwrap(), 8)));
        assert!(!net.overlaps(&Subnet6::around("fd01::".parse().unwrap(), 64)));
        assert!(Subnet6::around("::1".parse().unwrap(), 0).contains("ff::".parse().unwrap()));
    }
}
