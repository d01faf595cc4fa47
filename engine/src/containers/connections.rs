//! A container's networks: which it is to be in, and its connections to them while it runs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use rbuild_oci::Digest;
use rbuild_runtime::container::{Change, Connection, Joining, State};
use rbuild_runtime::monitor;
use rbuild_runtime::network::{Bridge, Namespace, Wish};
use rbuild_store::Durability;

use super::record::{self, Container, Seen};
use super::request::{CreateRequest, Membership, NetworkMode};
use super::{Containers, etc};
use crate::error::{Error, Kind};
use crate::networks::{Driver, Network, failed, is_connected};

impl Container {
    /// The networks it is to be in. One made before there were others is in the default one.
    pub fn memberships(&self) -> Vec<Membership> {
        match (&self.networks, &self.host.network) {
            (Some(networks), _) => networks.clone(),
            (None, NetworkMode::Bridge) => vec![Membership { network_name: "bridge".into(), ..Membership::default() }],
            (None, _) => Vec::new(),
        }
    }
}

impl Seen {
    /// Its connections now.
    pub fn connections(&self) -> &[Connection] {
        if is_connected(self.status) { &self.state.connections } else { &[] }
    }
}

impl Containers {
    /// The networks a request asks for, found and checked.
    pub(super) fn wanted_networks(&self, request: &CreateRequest) -> Result<Vec<Membership>, Error> {
        let refuse = |message: &str| Err(Error::invalid(message));
        match &request.host.network {
            NetworkMode::Bridge => {
                let wish = request.networks.first().cloned().unwrap_or_default();
                Ok(vec![self.membership(&self.predefined("bridge"), wish)?])
            }
            NetworkMode::Named(_) => {
                let mut memberships: Vec<Membership> = Vec::new();
                for wish in &request.networks {
                    let membership = self.membership(&self.find_network(&wish.network)?, wish.clone())?;
                    if memberships.iter().any(|other| other.network == membership.network) {
                        return Err(Error::invalid(format!(
                            "network \"{}\" is specified multiple times",
                            wish.network
                        )));
                    }
                    memberships.push(membership);
                }
                Ok(memberships)
            }
            mode => {
                let wish = request.networks.first().cloned().unwrap_or_default();
                if !wish.links.is_empty() {
                    return refuse("conflicting options: this network mode can't be used with links");
                }
                if wish.mac.is_some() {
                    return refuse("conflicting options: mac-address and the network mode");
                }
                if !wish.aliases.is_empty() {
                    return refuse("network-scoped aliases are only supported for user-defined networks");
                }
                if wish.ip.is_some() || wish.ip6.is_some() || !wish.link_local.is_empty() {
                    return refuse("user specified IP address is supported on user defined networks only");
                }
                if matches!(mode, NetworkMode::Container(_)) && !request.host.dns.is_empty() {
                    return refuse("conflicting options: dns and the network mode");
                }
                Ok(Vec::new())
            }
        }
    }

    /// A wish with the network it means, if that can fulfil it.
    fn membership(&self, network: &Network, mut wish: Membership) -> Result<Membership, Error> {
        let of_user = !network.is_predefined();
        if !of_user && !wish.aliases.is_empty() {
            return Err(Error::invalid("network-scoped aliases are only supported for user-defined networks"));
        }
        if !of_user && (wish.ip.is_some() || wish.ip6.is_some() || !wish.link_local.is_empty()) {
            return Err(Error::invalid("user specified IP address is supported on user defined networks only"));
        }
        if wish.ip.is_some() && !network.chosen {
            return Err(Error::invalid(
                "user specified IP address is supported only when connecting to networks with user configured subnets",
            ));
        }
        if let Some(address) = wish.ip
            && !network.bridge.subnet.is_some_and(|subnet| subnet.contains(address))
        {
            return Err(Error::invalid(format!(
                "invalid config for network {}: invalid endpoint settings: no configured subnet contains IP address {address}",
                network.name
            )));
        }
        if let Some(address) = wish.ip6
            && !network.bridge.subnet6.is_some_and(|(subnet, _)| subnet.contains(address))
        {
            return Err(Error::invalid(format!(
                "invalid config for network {}: invalid endpoint settings: no configured subnet contains IP address {address}",
                network.name
            )));
        }
        for (target, _) in &mut wish.links {
            *target = match self.find(target) {
                Ok(found) => found.container.id,
                Err(error) if error.kind == Kind::NotFound => {
                    return Err(Error::not_found(format!("could not get container for {target}: {error}")));
                }
                Err(error) => return Err(error),
            };
        }
        Ok(Membership { network: network.id.clone(), network_name: network.name.clone(), ..wish })
    }

    /// A namespace connected to the container's networks.
    pub(super) fn connected(
        &self,
        container: &Container,
        directory: &Path,
    ) -> Result<(Namespace, Vec<Connection>), Error> {
        let memberships = container.memberships();
        // Where it was before, so that it has its addresses again if nobody took them.
        let before = State::read(directory).connections;
        let mut networks = Vec::with_capacity(memberships.len());
        let mut bridges = Vec::with_capacity(memberships.len());
        for membership in &memberships {
            let network = self.network_of(membership)?;
            bridges.push((Bridge::ensure(&network.bridge).map_err(failed)?, wish(membership, &network, &before)));
            networks.push(network);
        }
        let pairs: Vec<(&Bridge, Wish)> = bridges.iter().map(|(bridge, wish)| (bridge, wish.clone())).collect();
        let namespace = Namespace::connected(&pairs).map_err(failed)?;
        for network in networks.iter().filter(|network| !network.is_predefined()) {
            if !self.has_network(&network.id)? {
                // Removed while we were at it: its bridge is ours alone now.
                drop(namespace);
                Bridge::remove_freed(&network.bridge).map_err(failed)?;
                return Err(Error::not_found(format!("network {} not found", network.name)));
            }
        }
        let connections = memberships.iter().zip(&networks).zip(namespace.endpoints());
        let connections = connections
            .map(|((membership, network), endpoint)| {
                let Joining { network, network_name, endpoint_id, names, links, .. } =
                    joining(container, membership, network);
                Connection { network, network_name, endpoint_id, names, links, endpoint: endpoint.clone() }
            })
            .collect();
        Ok((namespace, connections))
    }

    fn network_of(&self, membership: &Membership) -> Result<Network, Error> {
        if membership.network_name == "bridge" {
            return Ok(self.predefined("bridge"));
        }
        let found = self.find_network(&membership.network);
        found.map_err(|error| match error.kind {
            Kind::NotFound => Error::not_found(format!("network {} not found", membership.network_name)),
            _ => error,
        })
    }

    /// Connects a container to one more network, at once if it runs.
    pub(crate) fn connect(&self, network: &Network, seen: &Seen, wanted: Membership) -> Result<(), Error> {
        let container = &seen.container;
        connectable(network, container)?;
        let membership = self.membership(network, wanted)?;
        self.change_networks(&container.id, |networks| {
            if networks.iter().any(|other| is_of(other, network)) {
                let message =
                    format!("endpoint with name {} already exists in network {}", container.name, network.name);
                return Err(Error::new(Kind::Conflict, message));
            }
            networks.push(membership.clone());
            Ok(())
        })?;
        let joining = Joining {
            wish: wish(&membership, network, &seen.state.connections),
            ..joining(container, &membership, network)
        };
        let joined = self.change_running(container, Change::Join(Box::new(joining)));
        if joined.is_err() {
            self.change_networks(&container.id, |networks| {
                networks.retain(|other| !is_of(other, network));
                Ok(())
            })?;
        }
        joined
    }

    /// Takes a container out of a network, at once if it runs.
    pub(crate) fn disconnect(&self, network: &Network, seen: &Seen) -> Result<(), Error> {
        let container = &seen.container;
        connectable(network, container)?;
        self.change_networks(&container.id, |networks| {
            let before = networks.len();
            networks.retain(|other| !is_of(other, network));
            if networks.len() < before {
                return Ok(());
            }
            let message = format!("container {} is not connected to network {}", container.id, network.name);
            Err(Error::new(Kind::Conflict, message))
        })?;
        self.change_running(container, Change::Leave { network: network.id.clone() })
    }

    fn change_networks(
        &self,
        id: &str,
        change: impl FnOnce(&mut Vec<Membership>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.store.db().write(Durability::Named, |tx| {
            let Some(mut container) = record::by_id(tx, id)? else {
                return Ok(Err(Error::not_found(format!("No such container: {id}"))));
            };
            let mut networks = container.memberships();
            if let Err(error) = change(&mut networks) {
                return Ok(Err(error));
            }
            container.networks = Some(networks);
            record::update(tx, &container)?;
            Ok(Ok(()))
        })?
    }

    /// Has the monitor of a running container change its network, and the files inside that tell of it.
    pub(super) fn change_running(&self, container: &Container, change: Change) -> Result<(), Error> {
        let directory = self.directory(&container.id);
        // Only of its networks do files inside tell.
        let elsewhere = matches!(change, Change::Rename { .. } | Change::Terms(_));
        match monitor::change(&directory, change)? {
            None => return Ok(()),
            Some(Err(failure)) => return Err(Error::new(Kind::Conflict, failure.message)),
            Some(Ok(())) if elsewhere => return Ok(()),
            Some(Ok(())) => {}
        }
        let connections = State::read(&directory).connections;
        let links = self.linked(container)?;
        etc::write(container, &directory, &self.parts.names, &connections, &links).map_err(Error::internal)?;
        Ok(())
    }

    /// What the container's links on the default bridge lead to: addresses with their names.
    pub(super) fn linked(&self, container: &Container) -> Result<Vec<Link>, Error> {
        let mut linked = Vec::new();
        for membership in container.memberships().into_iter().filter(|m| m.network_name == "bridge") {
            for (target, alias) in membership.links {
                let target = self.find(&target)?;
                let connection = target.connections().iter().find(|c| c.network_name == "bridge");
                let Some(connection) = connection else {
                    let message = format!(
                        "Cannot link to a non running container: /{} AS /{}/{alias}",
                        target.container.name, container.name
                    );
                    return Err(Error::new(Kind::Conflict, message));
                };
                linked.push(Link { alias, address: connection.endpoint.address.into(), target: target.container });
            }
        }
        Ok(linked)
    }
}

/// A container on the default bridge that another one knows by a name of its own.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) alias: String,
    pub(super) address: IpAddr,
    pub(super) target: Container,
}

impl Link {
    /// The variables that tell the container of it, as docker's links always did.
    pub(super) fn variables(&self, of: &Container) -> Vec<String> {
        let prefix = self.alias.to_ascii_uppercase().replace('-', "_");
        let mut variables = Vec::new();
        let mut ports: Vec<(u16, &str)> = Vec::new();
        for text in self.target.config.exposed_ports.keys() {
            let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
            ports.extend(port.parse().ok().map(|port| (port, protocol)));
        }
        ports.sort_unstable();
        let address = self.address;
        if let Some((port, protocol)) = ports.first() {
            variables.push(format!("{prefix}_PORT={protocol}://{address}:{port}"));
        }
        for (port, protocol) in &ports {
            let name = format!("{prefix}_PORT_{port}_{}", protocol.to_ascii_uppercase());
            variables.push(format!("{name}={protocol}://{address}:{port}"));
            variables.push(format!("{name}_ADDR={address}"));
            variables.push(format!("{name}_PORT={port}"));
            variables.push(format!("{name}_PROTO={protocol}"));
        }
        variables.push(format!("{prefix}_NAME=/{}/{}", of.name, self.alias));
        for variable in self.target.config.env.iter().filter(|v| !v.starts_with("HOME=") && !v.starts_with("PATH=")) {
            variables.push(format!("{prefix}_ENV_{variable}"));
        }
        variables
    }
}

fn is_of(membership: &Membership, network: &Network) -> bool {
    membership.network == network.id || (network.is_predefined() && membership.network_name == network.name)
}

/// Whether a container may be connected to the network, and disconnected from it.
fn connectable(network: &Network, container: &Container) -> Result<(), Error> {
    let refuse = |message: &str| Err(Error::new(Kind::Denied, message.to_owned()));
    match (&container.host.network, network.driver) {
        (NetworkMode::Host, _) | (_, Driver::Host) => {
            refuse("container cannot be disconnected from host network or connected to host network")
        }
        (NetworkMode::Container(_), _) => refuse(
            "container sharing network namespace with another container or host cannot be connected to any other network",
        ),
        (NetworkMode::None, _) | (_, Driver::Null) => {
            refuse("container cannot be connected to multiple networks with one of the networks in private (none) mode")
        }
        _ => Ok(()),
    }
}

fn wish(membership: &Membership, network: &Network, before: &[Connection]) -> Wish {
    let before = before.iter().find(|connection| connection.network == network.id);
    Wish {
        address: membership.ip,
        preferred: before.map(|connection| connection.endpoint.address),
        range: network.range,
        address6: membership.ip6,
        range6: network.range6,
        avoid: network.auxiliary.values().copied().collect(),
        mac: membership.mac,
        link_local: membership.link_local.clone(),
    }
}

/// What is known of a connection before there is an address.
fn joining(container: &Container, membership: &Membership, network: &Network) -> Joining {
    let names = if network.is_predefined() { Vec::new() } else { names(container, membership) };
    let links: BTreeMap<String, String> = match network.is_predefined() {
        true => BTreeMap::new(),
        false => membership.links.iter().map(|(target, alias)| (alias.clone(), target.clone())).collect(),
    };
    let endpoint = Digest::sha256_of(format!("{} {}", container.id, network.id).as_bytes());
    Joining {
        network: network.id.clone(),
        network_name: network.name.clone(),
        endpoint_id: endpoint.hex().to_owned(),
        names,
        links,
        bridge: network.bridge.clone(),
        wish: Wish::default(),
    }
}

/// The names by which neighbours find it: its own first.
fn names(container: &Container, membership: &Membership) -> Vec<String> {
    let mut names = vec![container.name.clone()];
    let more = membership.aliases.iter().cloned().chain([container.short_id().to_owned(), container.hostname.clone()]);
    for name in more {
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
