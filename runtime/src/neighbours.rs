//! Who is who in a container's networks: the names its name server answers with.
//!
//! Read from the containers' own states each time somebody asks: a container is in a network as long as its monitor holds
//! its lock, so a name goes with its container however that ends, and there is no table to be kept true. A state that is
//! still the same file is not read again.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::container::{Connection, State, is_locked};
use crate::network::Names;

/// The neighbours of one container.
pub(crate) struct Neighbours {
    /// The directory that the directories of all containers are in.
    containers: PathBuf,
    /// The container's own place in its networks, as it is now.
    own: Arc<Mutex<Vec<Connection>>>,
    servers: Vec<IpAddr>,
    read: Mutex<HashMap<OsString, Known>>,
}

/// A state as it was in one file, which is never changed, only replaced.
struct Known {
    file: (u64, i64, i64),
    connections: Arc<Vec<Connection>>,
}

impl Neighbours {
    /// `servers` know the names that no neighbour has.
    pub(crate) fn new(containers: PathBuf, own: Arc<Mutex<Vec<Connection>>>, servers: Vec<IpAddr>) -> Self {
        Self { containers, own, servers, read: Mutex::default() }
    }

    fn own(&self) -> Vec<Connection> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the running containers are connected to: (container's id, connections).
    fn all(&self) -> Vec<(String, Arc<Vec<Connection>>)> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = HashMap::with_capacity(read.len());
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.containers).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(metadata) = fs::metadata(path.join("state.json")) else { continue };
            let file = (metadata.ino(), metadata.mtime(), metadata.mtime_nsec());
            let name = entry.file_name();
            let known = match read.remove(&name).filter(|known| known.file == file) {
                Some(known) => known,
                None => {
                    let state = State::read(&path);
                    let runs = state.started.is_some() && state.finished.is_none();
                    let connections = if runs { state.connections } else { Vec::new() };
                    Known { file, connections: Arc::new(connections) }
                }
            };
            if !known.connections.is_empty() && is_locked(&path) {
                all.push((name.to_string_lossy().into_owned(), Arc::clone(&known.connections)));
            }
            now.insert(name, known);
        }
        *read = now;
        all
    }
}

impl Names for Neighbours {
    fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
        let all = self.all();
        let own = self.own();
        for here in &own {
            let linked =
                here.links.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(name)).map(|(_, id)| id.as_str());
            let bare = name.strip_suffix(&here.network_name.to_ascii_lowercase()).and_then(|n| n.strip_suffix('.'));
            let called = |connection: &Connection| {
                let is = |wanted: &str| connection.names.iter().any(|known| known.eq_ignore_ascii_case(wanted));
                is(name) || bare.is_some_and(is)
            };
            let others = all.iter().flat_map(|(id, connections)| connections.iter().map(move |c| (id.as_str(), c)));
            // Its own state may not be written yet.
            let mut found: Vec<&Connection> = others
                .filter(|(_, connection)| connection.network == here.network)
                .filter(|(id, connection)| linked == Some(*id) || (linked.is_none() && called(connection)))
                .map(|(_, connection)| connection)
                .collect();
            if called(here) && !found.iter().any(|c| c.endpoint_id == here.endpoint_id) {
                found.push(here);
            }
            if !found.is_empty() {
                return Some(found.into_iter().flat_map(addresses_of).collect());
            }
        }
        None
    }

    fn name_of(&self, address: IpAddr) -> Option<String> {
        let own = self.own();
        let all = self.all();
        let connections = all.iter().flat_map(|(_, connections)| connections.iter()).chain(&own);
        connections
            .filter(|connection| own.iter().any(|here| here.network == connection.network))
            .find(|connection| addresses_of(connection).any(|a| a == address))
            .and_then(|connection| Some(format!("{}.{}", connection.names.first()?, connection.network_name)))
    }

    fn servers(&self) -> Vec<IpAddr> {
        // A container without a way out is not to reach anything by asking for names either.
        if self.own().iter().all(|connection| connection.endpoint.internal) { Vec::new() } else { self.servers.clone() }
    }
}

fn addresses_of(connection: &Connection) -> impl Iterator<Item = IpAddr> {
    let endpoint = &connection.endpoint;
    [IpAddr::V4(endpoint.address)].into_iter().chain(endpoint.address6.map(IpAddr::V6))
}
