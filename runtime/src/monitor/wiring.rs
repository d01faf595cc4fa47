//! What a monitor does for its container's network: ports, the name server, and changes while it runs.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags};

use crate::container::{Connection, ContainerSpec, Joining};
use crate::error::{Error, Result};
use crate::neighbours::Neighbours;
use crate::network::{Bridge, Namespace, PortBinding, PortRequest, Published, Resolver};

/// The network of a running container; all that listens in it ends with this.
pub(super) struct Wiring {
    id: String,
    name: String,
    /// The directory of all containers.
    containers: PathBuf,
    wanted: Vec<PortRequest>,
    servers: Vec<std::net::IpAddr>,
    connections: Arc<Mutex<Vec<Connection>>>,
    /// With the endpoint that they lead to.
    published: Mutex<Option<(String, Published)>>,
    resolver: Mutex<Option<Resolver>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wiring {
    pub(super) fn start(spec: &ContainerSpec, namespace: Option<&Namespace>) -> Result<Self> {
        let wiring = Self {
            id: spec.id.clone(),
            name: spec.name.clone(),
            containers: spec.directory.parent().map(PathBuf::from).unwrap_or_default(),
            wanted: spec.publish.clone(),
            servers: spec.name_servers.clone(),
            connections: Arc::new(Mutex::new(spec.connections.clone())),
            published: Mutex::default(),
            resolver: Mutex::default(),
        };
        wiring.publish()?;
        if let Some(namespace) = namespace {
            wiring.resolve(namespace)?;
        }
        Ok(wiring)
    }

    pub(super) fn connections(&self) -> Vec<Connection> {
        lock(&self.connections).clone()
    }

    pub(super) fn ports(&self) -> Vec<PortBinding> {
        lock(&self.published).as_ref().map(|(_, published)| published.bindings().to_vec()).unwrap_or_default()
    }

    /// Ends what listens: who starts the container again at once finds its ports free.
    pub(super) fn end(&self) {
        *lock(&self.published) = None;
        *lock(&self.resolver) = None;
    }

    /// Connects the running container to one more network.
    pub(super) fn join(&self, joining: &Joining, pid: i32) -> Result<()> {
        let namespace = namespace_of(pid)?;
        let mut connections = lock(&self.connections);
        if connections.iter().any(|connection| connection.network == joining.network) {
            let message =
                format!("endpoint with name {} already exists in network {}", self.name, joining.network_name);
            return Err(Error::Refused(message));
        }
        let bridge = Bridge::ensure(&joining.bridge)?;
        let is_free = |number: &usize| !connections.iter().any(|c| c.endpoint.interface == format!("eth{number}"));
        let number = (0..).find(is_free).unwrap_or_default();
        let way_out = connections.iter().all(|connection| connection.endpoint.internal);
        let endpoint = namespace.attach(&bridge, &joining.wish, number, way_out)?;
        connections.push(Connection {
            network: joining.network.clone(),
            network_name: joining.network_name.clone(),
            endpoint_id: joining.endpoint_id.clone(),
            names: joining.names.clone(),
            links: joining.links.clone(),
            endpoint,
        });
        drop(connections);
        self.resolve(&namespace)?;
        self.publish()
    }

    /// Takes the running container out of a network; what led there leads through another one from now on.
    pub(super) fn leave(&self, network: &str, pid: i32) -> Result<()> {
        let namespace = namespace_of(pid)?;
        let mut connections = lock(&self.connections);
        let Some(at) = connections.iter().position(|connection| connection.network == network) else {
            return Err(Error::Refused(format!("container {} is not connected to network {network}", self.id)));
        };
        let was_way_out = way_out(&connections).is_some_and(|c| c.network == network);
        Namespace::detach(&connections[at].endpoint)?;
        connections.remove(at);
        if let Some(next) = way_out(&connections).filter(|_| was_way_out) {
            namespace.route_through(&next.endpoint)?;
        }
        drop(connections);
        self.publish()
    }

    /// The container has another name.
    pub(super) fn rename(&self, from: &str, to: &str) {
        for connection in lock(&self.connections).iter_mut() {
            for name in connection.names.iter_mut().filter(|name| *name == from) {
                to.clone_into(name);
            }
        }
    }

    /// Publishes the ports where the way out is, if they are not there already; docker's words when one is taken.
    fn publish(&self) -> Result<()> {
        let connections = lock(&self.connections);
        let mut published = lock(&self.published);
        let Some(connection) = way_out(&connections).filter(|_| !self.wanted.is_empty()) else {
            *published = None;
            return Ok(());
        };
        if published.as_ref().is_some_and(|(endpoint, _)| *endpoint == connection.endpoint_id) {
            return Ok(());
        }
        *published = None;
        let table = self.id.get(..12).unwrap_or(&self.id);
        let made = Published::open(table, &self.wanted, &connection.endpoint).map_err(|error| {
            Error::Refused(format!(
                "driver failed programming external connectivity on endpoint {} ({}): {error}",
                self.name, connection.endpoint_id
            ))
        })?;
        *published = Some((connection.endpoint_id.clone(), made));
        Ok(())
    }

    /// Sees to it that names are answered, if the container is in a network that has them.
    fn resolve(&self, namespace: &Namespace) -> Result<()> {
        let mut resolver = lock(&self.resolver);
        let has_names = lock(&self.connections).iter().any(|connection| !connection.names.is_empty());
        if has_names && resolver.is_none() {
            let own = Arc::clone(&self.connections);
            let names = Neighbours::new(self.containers.clone(), own, self.servers.clone());
            *resolver = Some(Resolver::start(namespace, Arc::new(names))?);
        }
        Ok(())
    }
}

/// The connection that the default route goes through: the first with a way out.
fn way_out(connections: &[Connection]) -> Option<&Connection> {
    connections.iter().find(|connection| !connection.endpoint.internal)
}

/// The network that a process is in.
pub(super) fn namespace_of(pid: i32) -> Result<Namespace> {
    let path = format!("/proc/{pid}/ns/net");
    let fd = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::system(format!("open {path}"), e))?;
    Ok(Namespace::from_fd(fd))
}
