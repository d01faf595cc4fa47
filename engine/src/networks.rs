//! Networks: what containers are connected to. The three that every store has, and those that users make.
//!
//! A user's network is a row of the table `networks` and a bridge of the kernel's. The row says what the bridge is to be; the
//! bridge is made with the row, and made again by the first container that is started after the machine was. Which
//! range a new network has is settled by the kernel ([`Bridge::make`]), because other stores, and other programs, take ranges
//! of the same machine.

mod record;
mod show;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::SystemTime;

use rbuild_runtime::container::Connection;
use rbuild_runtime::network::{Bridge, BridgeOptions, Error as NetworkError, Subnet, Subnet6};
use rbuild_store::{Durability, Event, EventKind, db};

pub use record::{Driver, Network};

use crate::containers::{Containers, Membership, Seen, Status, random_id};
use crate::error::{Error, Kind};

/// Names that no network of a user's may have.
const PREDEFINED: [&str; 3] = ["bridge", "host", "none"];

/// The range that the default bridge has where it can: left to it.
const DEFAULT_RANGE: (Ipv4Addr, u8) = (Ipv4Addr::new(172, 17, 0, 0), 16);

/// A network to be made.
#[derive(Debug, Clone, Default)]
pub struct NetworkRequest {
    pub name: String,
    /// Ranges, at most one of each family; without one of IPv4 a free one is taken.
    pub subnets: Vec<(IpAddr, u8)>,
    /// The bridge's own addresses, each in one of the ranges.
    pub gateways: Vec<IpAddr>,
    /// The parts of the ranges that addresses are taken from, at most one of each family.
    pub ip_ranges: Vec<(IpAddr, u8)>,
    /// Addresses in the ranges that are somebody else's, by his name.
    pub auxiliary: BTreeMap<String, IpAddr>,
    /// Only shown: it is for swarms.
    pub attachable: bool,
    pub ipv6: bool,
    /// No way out and none in.
    pub internal: bool,
    pub labels: BTreeMap<String, String>,
    /// Docker's options of a bridge, by their long names.
    pub options: BTreeMap<String, String>,
}

/// The networks of a store.
#[derive(Debug, Clone)]
pub struct Networks {
    containers: Containers,
}

impl crate::Engine {
    pub fn networks(&self) -> Networks {
        Networks { containers: self.containers() }
    }
}

impl Networks {
    /// Makes a network, with its bridge.
    ///
    /// # Errors
    /// `Conflict` for a name or a range that is taken, `Invalid` for what makes no sense, `Unsupported` for an option of
    /// docker's that there is not.
    pub fn create(&self, request: &NetworkRequest) -> Result<Network, Error> {
        check_name(&request.name)?;
        let store = self.containers.store();
        let rows = store.db().read(|tx| Ok(record::all(tx)?))?;
        let exists = || Error::new(Kind::Conflict, format!("network with name {} already exists", request.name));
        if rows.iter().any(|network| network.name == request.name) {
            return Err(exists());
        }
        let id = random_id()?;
        let (mut options, Parts { range, range6 }) = bridge(request, &id)?;
        options.home = Some(store.root().to_owned());
        // Whose ranges are to be had again.
        Bridge::remove_orphans();
        let mut avoid: Vec<Subnet> = rows.iter().filter_map(|network| network.bridge.subnet).collect();
        if let Some(subnet) = options.subnet.filter(|subnet| avoid.iter().any(|other| other.overlaps(subnet))) {
            return Err(failed(NetworkError::Overlaps(subnet.to_string())));
        }
        if options.subnet.is_none() {
            avoid.push(Subnet::around(DEFAULT_RANGE.0, DEFAULT_RANGE.1));
        }
        let bridge = Bridge::make(&options, &avoid).map_err(failed)?;
        let network = Network {
            id,
            name: request.name.clone(),
            created: db::nanos(SystemTime::now()),
            driver: Driver::Bridge,
            bridge: BridgeOptions { subnet: Some(bridge.subnet), gateway: Some(bridge.gateway), ..options.clone() },
            range,
            range6,
            auxiliary: request.auxiliary.clone(),
            attachable: request.attachable,
            chosen: options.subnet.is_some(),
            options: request.options.clone(),
            labels: request.labels.clone(),
        };
        let written = store.db().write(Durability::Named, |tx| {
            if record::by_name(tx, &network.name)?.is_some() {
                return Ok(false);
            }
            record::insert(tx, &network)?;
            Ok(true)
        });
        if !matches!(written, Ok(true)) {
            Bridge::remove(&network.bridge).map_err(failed)?;
        }
        if !written? {
            return Err(exists());
        }
        self.tell("create", &network);
        Ok(network)
    }

    /// All of them by name, the predefined ones among them.
    pub fn list(&self) -> Result<Vec<Network>, Error> {
        let mut all = self.containers.store().db().read(|tx| Ok(record::all(tx)?))?;
        all.extend(PREDEFINED.iter().map(|name| self.containers.predefined(name)));
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// By name, id, or the beginning of an id.
    pub fn find(&self, text: &str) -> Result<Network, Error> {
        self.containers.find_network(text)
    }

    /// The running containers that are connected to it.
    pub fn members(&self, network: &Network) -> Result<Vec<(Seen, Connection)>, Error> {
        let mut members = Vec::new();
        for seen in self.containers.list()? {
            let connection = seen.connections().iter().find(|c| c.network == network.id).cloned();
            members.extend(connection.map(|connection| (seen, connection)));
        }
        Ok(members)
    }

    /// Removes a network to which no running container is connected.
    pub fn remove(&self, network: &Network) -> Result<(), Error> {
        if network.is_predefined() {
            let message = format!("{} is a pre-defined network and cannot be removed", network.name);
            return Err(Error::new(Kind::Denied, message));
        }
        let members = self.members(network)?;
        if !members.is_empty() {
            return Err(in_use(network, &members));
        }
        let id = network.id.as_str();
        let removed = self.containers.store().remove_durably(|tx| Ok(record::delete(tx, id)?))?;
        if !removed {
            return Err(Error::not_found(format!("network {} not found", network.name)));
        }
        // Whoever was being connected meanwhile finds the row gone, and takes the bridge with him.
        Bridge::remove_freed(&network.bridge).map_err(failed)?;
        self.tell("destroy", network);
        Ok(())
    }

    fn tell(&self, action: &str, network: &Network) {
        let event = Event::new(EventKind::Network, action, &network.id).with("name", &network.name);
        self.containers.store().events().note(&event.with("type", "bridge"));
    }

    /// Removes the networks to which no running container is connected and that `wanted` allows, and bridges that other
    /// stores left with their directory; their names.
    pub fn prune(&self, wanted: impl Fn(&Network) -> bool) -> Result<Vec<String>, Error> {
        let mut gone = Bridge::remove_orphans();
        for network in self.list()?.into_iter().filter(|n| !n.is_predefined() && wanted(n)) {
            match self.remove(&network) {
                Ok(()) => gone.push(network.name),
                // In use, or just removed by somebody else.
                Err(error) if matches!(error.kind, Kind::Conflict | Kind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(gone)
    }

    /// Connects a container, at once if it runs.
    pub fn connect(&self, network: &Network, seen: &Seen, membership: Membership) -> Result<(), Error> {
        self.containers.connect(network, seen, membership)
    }

    /// Disconnects a container, at once if it runs.
    pub fn disconnect(&self, network: &Network, seen: &Seen) -> Result<(), Error> {
        self.containers.disconnect(network, seen)
    }
}

impl Containers {
    /// A network by name, id, or the beginning of an id.
    pub(crate) fn find_network(&self, text: &str) -> Result<Network, Error> {
        let missing = || Error::not_found(format!("network {text} not found"));
        if let Some(name) = PREDEFINED.iter().find(|name| **name == text) {
            return Ok(self.predefined(name));
        }
        let is_hex = !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let mut rows = self.store().db().read(|tx| match record::by_name(tx, text)? {
            Some(found) => Ok(vec![found]),
            None if is_hex => Ok(record::by_prefix(tx, text)?),
            None => Ok(Vec::new()),
        })?;
        if is_hex && rows.is_empty() {
            rows.extend(PREDEFINED.iter().map(|name| self.predefined(name)).filter(|n| n.id.starts_with(text)));
        }
        let mut rows = rows.into_iter();
        match (rows.next(), rows.next()) {
            (Some(network), None) => Ok(network),
            (Some(_), Some(_)) => {
                Err(Error::invalid(format!("network {text} is ambiguous (2 matches found based on ID prefix)")))
            }
            (None, _) => Err(missing()),
        }
    }

    /// Whether the network is still there.
    pub(crate) fn has_network(&self, id: &str) -> Result<bool, Error> {
        Ok(self.store().db().read(|tx| Ok(record::by_id(tx, id)?.is_some()))?)
    }

    /// One of the networks that every store has.
    pub(crate) fn predefined(&self, name: &str) -> Network {
        let driver = match name {
            "bridge" => Driver::Bridge,
            "host" => Driver::Host,
            _ => Driver::Null,
        };
        Network::predefined(name, driver, self.default_bridge().clone())
    }
}

/// An error of the network's in docker's words, where it has some.
pub(crate) fn failed(error: NetworkError) -> Error {
    match error {
        NetworkError::Overlaps(_) => Error::new(
            Kind::Conflict,
            format!("invalid pool request: Pool overlaps with other one on this address space: {error}"),
        ),
        NetworkError::NoRange(_) => {
            Error::new(Kind::Conflict, "all predefined address pools have been fully subnetted".to_owned())
        }
        NetworkError::Taken(_) | NetworkError::Taken6(_) => {
            Error::new(Kind::Conflict, "Address already in use".to_owned())
        }
        NetworkError::OutOfRange { .. } | NetworkError::OutOfRange6 { .. } => {
            Error::invalid(format!("no configured subnet contains the address: {error}"))
        }
        NetworkError::Exists(_) => Error::new(Kind::Conflict, error.to_string()),
        NetworkError::NeedsNftables => Error::unsupported(error.to_string()),
        error => Error::internal(format!("cannot set up the network: {error}")),
    }
}

fn in_use(network: &Network, members: &[(Seen, Connection)]) -> Error {
    let shown = |(seen, _): &(Seen, Connection)| {
        format!("name:\"{}\" id:\"{}\"", seen.container.name, seen.container.short_id())
    };
    let members: Vec<String> = members.iter().map(shown).collect();
    let message =
        format!("error while removing network: network {} has active endpoints ({})", network.name, members.join(", "));
    Error::new(Kind::Conflict, message)
}

fn check_name(name: &str) -> Result<(), Error> {
    if PREDEFINED.contains(&name) || name == "default" || name.starts_with("container:") {
        return Err(Error::new(Kind::Denied, format!("operation is not permitted on predefined {name} network")));
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    let good =
        name.len() <= 255 && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) && name.bytes().all(plain);
    if good {
        return Ok(());
    }
    Err(Error::invalid(format!("invalid network name \"{name}\": only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed")))
}

/// The parts of a bridge's ranges that addresses are taken from.
#[derive(Debug, Default)]
struct Parts {
    range: Option<Subnet>,
    range6: Option<Subnet6>,
}

/// The bridge that a request describes, and the parts of its ranges that addresses are taken from.
fn bridge(request: &NetworkRequest, id: &str) -> Result<(BridgeOptions, Parts), Error> {
    if request.subnets.is_empty() && !(request.gateways.is_empty() && request.ip_ranges.is_empty()) {
        return Err(Error::invalid("every ip-range or gateway must have a corresponding subnet"));
    }
    let mut options =
        BridgeOptions { name: format!("rb-{}", &id[..12]), internal: request.internal, ..BridgeOptions::default() };
    let mut long = None;
    for (address, prefix) in &request.subnets {
        match address {
            IpAddr::V4(address) => {
                let subnet = Subnet::around(*address, *prefix);
                check_subnet((*address).into(), subnet.first().into(), *prefix, 1..=30)?;
                if options.subnet.replace(subnet).is_some() {
                    return Err(Error::unsupported("a network has one IPv4 subnet: several are not supported"));
                }
            }
            IpAddr::V6(address) => {
                let subnet = Subnet6::around(*address, *prefix);
                check_subnet((*address).into(), subnet.first().into(), *prefix, 1..=126)?;
                if long.replace(subnet).is_some() {
                    return Err(Error::unsupported("a network has one IPv6 subnet: several are not supported"));
                }
            }
        }
    }
    if long.is_none() && request.ipv6 {
        long = Some(unique_local()?);
    }
    let mut gateway6 = None;
    for gateway in &request.gateways {
        let stray = || Error::invalid(format!("no matching subnet for gateway {gateway}"));
        match gateway {
            IpAddr::V4(address) => {
                let subnet =
                    options.subnet.filter(|s| s.contains(*address) && *address != s.first() && *address != s.last());
                subnet.ok_or_else(stray)?;
                options.gateway = Some(*address);
            }
            IpAddr::V6(address) => {
                long.filter(|s| s.contains(*address) && *address != s.first()).ok_or_else(stray)?;
                gateway6 = Some(*address);
            }
        }
    }
    options.subnet6 = long.and_then(|subnet: Subnet6| Some((subnet, gateway6.or(subnet.host(1))?)));
    let parts = parts(request, options.subnet, long)?;
    for address in request.auxiliary.values() {
        let inside = match address {
            IpAddr::V4(address) => options.subnet.is_some_and(|subnet| subnet.contains(*address)),
            IpAddr::V6(address) => long.is_some_and(|subnet| subnet.contains(*address)),
        };
        if !inside {
            return Err(Error::invalid(format!("no matching subnet for aux-address {address}")));
        }
    }
    driver_options(request, &mut options)?;
    Ok((options, parts))
}

fn parts(request: &NetworkRequest, subnet: Option<Subnet>, long: Option<Subnet6>) -> Result<Parts, Error> {
    let mut parts = Parts::default();
    for (address, prefix) in &request.ip_ranges {
        let (again, inside) = match address {
            IpAddr::V4(address) => {
                let range = Subnet::around(*address, *prefix);
                let inside = subnet.is_some_and(|s| s.prefix() <= *prefix && s.contains(range.first()));
                (parts.range.replace(range).is_some(), inside)
            }
            IpAddr::V6(address) => {
                let range = Subnet6::around(*address, *prefix);
                let inside = long.is_some_and(|s| s.prefix() <= *prefix && s.contains(range.first()));
                (parts.range6.replace(range).is_some(), inside)
            }
        };
        if again {
            let message = format!("cannot configure multiple ranges ({address}/{prefix}) on the same subnet");
            return Err(Error::invalid(message));
        }
        if !inside {
            return Err(Error::invalid(format!("no matching subnet for range {address}/{prefix}")));
        }
    }
    Ok(parts)
}

fn check_subnet(given: IpAddr, first: IpAddr, prefix: u8, sizes: std::ops::RangeInclusive<u8>) -> Result<(), Error> {
    if given != first {
        return Err(Error::invalid(format!("invalid subnet {given}/{prefix}: it should be {first}/{prefix}")));
    }
    if !sizes.contains(&prefix) {
        return Err(Error::invalid(format!("invalid subnet {given}/{prefix}: it has no room for containers")));
    }
    Ok(())
}

/// A range of IPv6 that nobody else has: 40 bits by chance, as RFC 4193 has it, and a subnet.
fn unique_local() -> Result<Subnet6, Error> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes[1..8], rustix::rand::GetRandomFlags::empty()).map_err(Error::internal)?;
    bytes[0] = 0xfd;
    Ok(Subnet6::around(Ipv6Addr::from(bytes), 64))
}

/// Docker's options of the driver `bridge`; those that rbuild does not have are refused.
fn driver_options(request: &NetworkRequest, bridge: &mut BridgeOptions) -> Result<(), Error> {
    for (key, value) in &request.options {
        let invalid = || Error::invalid(format!("invalid value for {key}: \"{value}\""));
        let flag = || match value.as_str() {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(invalid()),
        };
        match key.as_str() {
            "com.docker.network.bridge.name" => {
                let good = (1..=15).contains(&value.len())
                    && value.bytes().all(|b| b.is_ascii_graphic() && !b"/:\"".contains(&b))
                    && !value.starts_with('.');
                if !good {
                    return Err(invalid());
                }
                bridge.name.clone_from(value);
            }
            "com.docker.network.driver.mtu" | "com.docker.network.bridge.mtu" => {
                let mtu = value.parse().ok().filter(|mtu| (576..=65535).contains(mtu)).ok_or_else(invalid)?;
                bridge.mtu = Some(mtu);
            }
            "com.docker.network.bridge.enable_icc" => bridge.separate = !flag()?,
            "com.docker.network.bridge.enable_ip_masquerade" => bridge.routed = !flag()?,
            record::HOST_BINDING => {
                value.parse::<Ipv4Addr>().map_err(|_| invalid())?;
            }
            _ => return Err(Error::unsupported(format!("the network option {key}={value} is not supported"))),
        }
    }
    Ok(())
}

/// Whether a container in this state has its networks now.
pub(crate) fn is_connected(status: Status) -> bool {
    matches!(status, Status::Running | Status::Paused)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(
        subnets: &[&str],
        gateways: &[&str],
        range: Option<&str>,
        options: &[(&str, &str)],
    ) -> Result<String, String> {
        let cidr = |text: &str| {
            let (address, prefix) = text.split_once('/').expect("a range");
            (address.parse().expect("an address"), prefix.parse().expect("a number"))
        };
        let request = NetworkRequest {
            name: "n".into(),
            subnets: subnets.iter().map(|s| cidr(s)).collect(),
            gateways: gateways.iter().map(|g| g.parse().expect("an address")).collect(),
            ip_ranges: range.map(cidr).into_iter().collect(),
            options: options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..NetworkRequest::default()
        };
        let (options, Parts { range, .. }) = bridge(&request, &"ab".repeat(32)).map_err(|e| e.message)?;
        let shown = |value: Option<String>| value.unwrap_or_default();
        Ok(format!(
            "{} {} {} {} {}",
            options.name,
            shown(options.subnet.map(|s| s.to_string())),
            shown(options.gateway.map(|g| g.to_string())),
            shown(options.subnet6.map(|(s, g)| format!("{s} {g}"))),
            shown(range.map(|r| r.to_string())),
        ))
    }

    #[test]
    fn a_request_becomes_a_bridge() {
        assert_eq!(made(&[], &[], None, &[]).as_deref(), Ok("rb-abababababab    "));
        let whole = made(
            &["10.9.0.0/16", "fd00:9::/64"],
            &["10.9.0.254", "fd00:9::9"],
            Some("10.9.5.0/24"),
            &[("com.docker.network.bridge.name", "mine0")],
        );
        assert_eq!(whole.as_deref(), Ok("mine0 10.9.0.0/16 10.9.0.254 fd00:9::/64 fd00:9::9 10.9.5.0/24"));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (subnets, gateways, range, options, want) in [
            (&["10.9.0.1/16"][..], &[][..], None, &[][..], "invalid subnet 10.9.0.1/16: it should be 10.9.0.0/16"),
            (&["10.9.0.0/31"], &[], None, &[], "invalid subnet 10.9.0.0/31: it has no room for containers"),
            (&["10.9.0.0/16"], &["10.8.0.1"], None, &[], "no matching subnet for gateway 10.8.0.1"),
            (&["10.9.0.0/16"], &["10.9.255.255"], None, &[], "no matching subnet for gateway 10.9.255.255"),
            (&[], &[], Some("10.9.0.0/24"), &[], "every ip-range or gateway must have a corresponding subnet"),
            (&["10.9.0.0/24"], &[], Some("fd00:9::/80"), &[], "no matching subnet for range fd00:9::/80"),
            (
                &[],
                &[],
                None,
                &[("com.docker.network.bridge.host_binding_ipv4", "here")],
                "invalid value for com.docker.network.bridge.host_binding_ipv4: \"here\"",
            ),
            (&["10.9.0.0/24"], &[], Some("10.9.0.0/16"), &[], "no matching subnet for range 10.9.0.0/16"),
            (
                &["10.9.0.0/24", "10.8.0.0/24"],
                &[],
                None,
                &[],
                "a network has one IPv4 subnet: several are not supported",
            ),
            (
                &[],
                &[],
                None,
                &[("com.docker.network.bridge.name", "a/b")],
                "invalid value for com.docker.network.bridge.name: \"a/b\"",
            ),
            (&[], &[], None, &[("parent", "eth0")], "the network option parent=eth0 is not supported"),
        ] {
            assert_eq!(made(subnets, gateways, range, options), Err(want.to_owned()));
        }
        for name in ["", "-a", "a b", "../x", "bridge", "container:x"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
