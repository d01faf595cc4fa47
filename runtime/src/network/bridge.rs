//! The bridge: found or made, with its range, its rules, and forwarding switched on.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use super::firewall::Rules;
use super::netlink::Socket;
use super::{Error, Mac, Subnet, link};

/// The name of the bridge that containers and RUN steps get unless told otherwise.
pub const DEFAULT_BRIDGE: &str = "rbuild0";

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// Which bridge is wanted.
#[derive(Clone, Debug)]
pub struct BridgeOptions {
    /// Interface name, at most 15 bytes.
    pub name: String,
    /// The range; `None` takes the first free private one.
    pub subnet: Option<Subnet>,
    /// The bridge's own address; `None` takes the first of the range.
    pub gateway: Option<Ipv4Addr>,
}

impl Default for BridgeOptions {
    fn default() -> Self {
        Self { name: DEFAULT_BRIDGE.to_owned(), subnet: None, gateway: None }
    }
}

/// A bridge that is up, has an address, and reaches the outside by address translation.
#[derive(Clone, Debug)]
pub struct Bridge {
    pub name: String,
    pub subnet: Subnet,
    pub gateway: Ipv4Addr,
    pub(super) index: u32,
    pub(super) mtu: u32,
}

impl Bridge {
    /// Finds or makes the bridge in the calling thread's network namespace. Cheap when it is there: four questions to
    /// the kernel. Any number of processes may do so at once.
    pub fn ensure(options: &BridgeOptions) -> Result<Self, Error> {
        let mut socket = link::open().map_err(|e| Error::kernel("open a netlink socket", e))?;
        let bridge = match existing(&mut socket, &options.name)? {
            Some(bridge) => bridge,
            None => create(&mut socket, options)?,
        };
        Rules { bridge: &bridge.name, subnet: bridge.subnet }.ensure()?;
        forward()?;
        Ok(bridge)
    }
}

/// The bridge as it is, when it is whole (up and with an address).
fn existing(socket: &mut Socket, name: &str) -> Result<Option<Bridge>, Error> {
    let found = link::find(socket, name).map_err(|e| Error::kernel(format!("look for {name}"), e))?;
    let Some(found) = found.filter(|link| link.up) else {
        return Ok(None);
    };
    let addresses = link::addresses(socket).map_err(|e| Error::kernel("list addresses", e))?;
    let own = addresses.into_iter().find(|(index, ..)| *index == found.index);
    Ok(own.map(|(_, gateway, subnet)| Bridge {
        name: name.to_owned(),
        subnet,
        gateway,
        index: found.index,
        mtu: found.mtu,
    }))
}

fn create(socket: &mut Socket, options: &BridgeOptions) -> Result<Bridge, Error> {
    let name = &options.name;
    let failed = |e: io::Error| Error::kernel(format!("make bridge {name}"), e);
    let routes = link::routes(socket).map_err(failed)?;
    let subnet = match options.subnet {
        Some(subnet) => subnet,
        None => {
            let mut taken: Vec<Subnet> =
                link::addresses(socket).map_err(failed)?.into_iter().map(|(_, _, subnet)| subnet).collect();
            taken.extend(routes.iter().map(|r| r.to).filter(|to| to.prefix() > 0));
            free_range(&taken).ok_or_else(|| Error::NoRange(name.clone()))?
        }
    };
    let gateway = options.gateway.unwrap_or_else(|| subnet.host(1));
    // Packets larger than the way out takes would be lost where path discovery is filtered.
    let mtu = match routes.iter().find(|r| r.to.prefix() == 0).and_then(|r| r.link) {
        Some(index) => link::by_index(socket, index).map_err(failed)?.map_or(1500, |l| l.mtu.min(65535)),
        None => 1500,
    };
    match link::create_bridge(socket, name, Mac::of(gateway)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        // Somebody else is at it, or was killed at it: both do the same now, and the kernel keeps one of each.
        _ => {}
    }
    let found = link::find(socket, name).map_err(failed)?.ok_or_else(|| Error::NoAddress(name.clone()))?;
    link::configure(socket, found.index, Some((gateway, subnet.prefix())), Some(mtu)).map_err(failed)?;
    // Two that made it at once may have chosen different ranges; the first address listed is the one all use.
    for _ in 0..20 {
        if let Some(bridge) = existing(socket, name)? {
            return Ok(bridge);
        }
        thread::sleep(Duration::from_millis(5));
    }
    Err(Error::NoAddress(name.clone()))
}

/// The first private range that no interface or route uses: docker's order.
fn free_range(taken: &[Subnet]) -> Option<Subnet> {
    let sixteens = (17..=31).map(|n| Subnet::around(Ipv4Addr::new(172, n, 0, 0), 16));
    let twenties = (0..16).map(|n| Subnet::around(Ipv4Addr::new(192, 168, n * 16, 0), 20));
    let tens = (0..=255).map(|n| Subnet::around(Ipv4Addr::new(10, n, 0, 0), 16));
    sixteens.chain(twenties).chain(tens).find(|range| !taken.iter().any(|t| t.overlaps(range)))
}

/// Switches forwarding on in this namespace; reading first, since `/proc/sys` may be read-only with it already on.
fn forward() -> Result<(), Error> {
    if fs::read(FORWARDING).is_ok_and(|v| v.first() == Some(&b'1')) {
        return Ok(());
    }
    fs::write(FORWARDING, "1").map_err(Error::Forwarding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_skip_what_is_taken() {
        let net = |a, b, p| Subnet::around(Ipv4Addr::new(a, b, 0, 0), p);
        assert_eq!(free_range(&[]), Some(net(172, 17, 16)));
        assert_eq!(free_range(&[net(172, 17, 24)]), Some(net(172, 18, 16)));
        assert_eq!(free_range(&[net(172, 16, 12)]), Some(net(192, 168, 20)));
        assert_eq!(free_range(&[net(0, 0, 1), net(128, 0, 1)]), None);
    }
}
