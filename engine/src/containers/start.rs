//! Starting a container: network, files, mounts, and a monitor that takes it from there.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDeviceBuilder, LinuxDeviceType, LinuxNamespaceType, Spec};
use rbuild_runtime::cdi::{self, DeviceSpecs};
use rbuild_runtime::container::{
    Attached as Event, Attachment, Connection, ContainerLock, ContainerNetwork, ContainerSpec, Input, InsideMount,
    RestartPolicy, StartFailure,
};
use rbuild_runtime::monitor::{self, Start};
use rbuild_runtime::network::{Namespace, PortRequest};
use rbuild_runtime::sandbox::WRITABLE_BELOW;
use rbuild_store::Store;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::record::{Container, MountKind, Status};
use super::request::{NamespaceMode, NetworkMode};
use super::{ContainerParts, Containers, etc, health, logging, ports, process, signal_number};
use crate::error::{Error, Kind};
use crate::volumes::{self, Place};

/// How a container is started.
#[derive(Debug, Clone, Copy, Default)]
pub struct StartRequest {
    /// Feed its input from here.
    pub stdin: bool,
    /// Show its output here.
    pub output: bool,
    /// The container may end with this process: no second process is started for it.
    pub here: bool,
    /// Rows and columns, for a container with a terminal.
    pub size: (u16, u16),
}

/// What a monitor process is to do after the end of its container.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    root: PathBuf,
    id: String,
    /// Remove it.
    remove: bool,
    /// Whose file systems it uses until then.
    volumes: Vec<String>,
}

/// The network of a container that is being started.
struct Attached {
    network: ContainerNetwork,
    namespace: Option<Namespace>,
    connections: Vec<Connection>,
}

impl Containers {
    /// Starts a container; `None` when it runs already. When this returns its program has been executed.
    ///
    /// # Errors
    /// `CommandNotFound` and `NotExecutable` for the program; `Conflict` while somebody else starts or removes it.
    pub fn start(&self, container: &Container, request: &StartRequest) -> Result<Option<Attachment>, Error> {
        let directory = self.directory(&container.id);
        let lock = ContainerLock::try_take(&directory).map_err(Error::internal)?;
        let Some(lock) = lock else {
            return match self.see(container.clone()).status {
                status if status.is_alive() => Ok(None),
                _ => Err(Error::new(Kind::Conflict, format!("container {} is being changed", container.name))),
            };
        };
        self.start_held(container, request, lock).map(Some)
    }

    /// As [`Containers::start`], of a container whose lock the caller has.
    ///
    /// # Errors
    /// As [`Containers::start`].
    pub fn start_held(
        &self,
        container: &Container,
        request: &StartRequest,
        lock: ContainerLock,
    ) -> Result<Attachment, Error> {
        let directory = self.directory(&container.id);
        let (spec, namespace) = match self.prepare(container, request, &directory) {
            Ok(prepared) => prepared,
            Err(error) => {
                self.give_up(container);
                return Err(error);
            }
        };
        let note = self.note(container)?;
        if request.output {
            self.tell(container, "attach", &[]);
        }
        let start = Start { spec, namespace, lock, stdin: request.stdin, output: request.output, note };
        // What is to be started again needs somebody who lives longer than this command.
        let begun = if request.here && start.spec.restart == RestartPolicy::Never {
            let containers = self.clone();
            monitor::run_here(start, Box::new(move |_, note| containers.after_end(note)))
        } else {
            monitor::spawn(start)
        };
        let mut attachment = begun.inspect_err(|_| self.give_up(container))?;
        match attachment.next_event().map_err(Error::internal)? {
            Some(Event::Started { .. }) => Ok(attachment),
            Some(Event::Failed(failure)) => Err(start_error(failure)),
            _ => Err(Error::internal("the container's monitor ended early")),
        }
    }

    /// What its monitor is to do at its end; empty where that is nothing.
    fn note(&self, container: &Container) -> Result<String, Error> {
        let root = self.store.root();
        let is_held = |name: &&str| matches!(volumes::place(root, name), Ok(Place::Filesystem(_)));
        let volumes: Vec<String> = volumes::volume_names(container).filter(is_held).map(str::to_owned).collect();
        let remove = container.host.auto_remove;
        if !remove && volumes.is_empty() {
            return Ok(String::new());
        }
        let note = Note { root: root.to_owned(), id: container.id.clone(), remove, volumes };
        serde_json::to_string(&note).map_err(Error::internal)
    }

    /// Ends the use of its volumes.
    pub(super) fn release_volumes(&self, container: &Container) {
        for name in volumes::volume_names(container) {
            volumes::release(self.store.root(), name, &container.id);
        }
    }

    /// Removes a container that was to be removed at its end, and could not begin. The reason is told, not what its
    /// removal may meet.
    fn give_up(&self, container: &Container) {
        self.release_volumes(container);
        if container.host.auto_remove
            && let Err(error) = self.remove_locked(&container.id, true, rbuild_store::Durability::Cache)
        {
            tracing::warn!(%error, container = %container.name, "the container is not removed");
        }
    }

    /// After the end of a container, in the process that was its monitor.
    fn after_end(&self, note: &str) {
        let Ok(note) = serde_json::from_str::<Note>(note) else { return };
        note.release();
        if note.remove
            && let Err(error) = self.remove_locked(&note.id, true, rbuild_store::Durability::Cache)
        {
            tracing::warn!(%error, "the container is not removed");
        }
    }

    fn prepare(
        &self,
        container: &Container,
        request: &StartRequest,
        directory: &Path,
    ) -> Result<(ContainerSpec, Option<Namespace>), Error> {
        let host = &container.host;
        let Attached { network, namespace, connections } = self.network(container, directory)?;
        let links = self.linked(container)?;
        let files = match &host.network {
            // Who shares a network shares what is known of it.
            NetworkMode::Container(other) => etc::paths(&self.directory(other)),
            _ => etc::write(container, directory, &self.parts.names, &connections, &links).map_err(Error::internal)?,
        };
        // The mark of an earlier life that ended while paused.
        let _ = fs::remove_file(directory.join("paused"));
        let stub_dir = directory.join("stubs");
        fs::create_dir_all(&stub_dir).map_err(Error::internal)?;
        let root = self.image_root(container)?;
        let mut spec = process::spec(container, &root)?;
        process::add_variables(&mut spec, links.iter().flat_map(|link| link.variables(container)));
        self.join(container, &mut spec)?;
        devices(container, &mut spec)?;
        let mut mounts = self.inside_mounts(container)?;
        if !container.host.named_devices.is_empty() {
            mounts.splice(0..0, self.named_devices(container, &mut spec)?);
            mounts.sort_by(|a, b| a.destination.cmp(&b.destination));
        }
        // A place that something of the user's is mounted on is not ours to fill.
        let theirs: BTreeSet<&Path> = mounts.iter().map(|m| m.destination.as_path()).collect();
        let own = |place: &str, path: PathBuf| (!theirs.contains(Path::new(place))).then_some(path);
        let spec = ContainerSpec {
            id: container.id.clone(),
            name: container.name.clone(),
            directory: directory.to_owned(),
            spec,
            rootfs: self.mounts(container)?,
            volatile: host.auto_remove,
            stub_dir,
            network,
            publish: self.published(container, &connections)?,
            name_servers: self.parts.names.servers(&host.dns),
            connections,
            hosts: own("/etc/hosts", files.hosts),
            hostname: own("/etc/hostname", files.hostname),
            resolv_conf: own("/etc/resolv.conf", files.resolv_conf),
            mounts,
            terminal: container.tty.then_some(request.size),
            stdin: match (container.stdin, container.stdin_once) {
                (false, _) => Input::Closed,
                (true, true) => Input::Once,
                (true, false) => Input::Open,
            },
            told: Some(self.told(container)),
            cgroup_parent: host.cgroup_parent.as_ref().map(PathBuf::from),
            seccomp: host.seccomp()?,
            init: host.init,
            runtime: host.runtime.as_ref().map(|runtime| runtime.external(directory)),
            log: logging::terms(container)?,
            health: health::probe(container, &root, directory)?.map(Box::new),
            restart: host.restart,
            stop_signal: signal_number(&container.config.stop_signal),
            helper: self.parts.helper.clone(),
            state_dir: self.parts.state_dir.clone(),
        };
        Ok((spec, namespace))
    }

    /// The ports to be published, on the address that its network has for that where nothing else is said.
    fn published(&self, container: &Container, connections: &[Connection]) -> Result<Vec<PortRequest>, Error> {
        let mut wanted = ports::wanted(container);
        if wanted.iter().any(|port| port.host_ip.is_none())
            && matches!(container.host.network, NetworkMode::Named(_))
            && let Some(first) = connections.first()
            && let Some(address) = self.find_network(&first.network)?.binding()
        {
            wanted.iter_mut().for_each(|port| port.host_ip = port.host_ip.or(Some(address.into())));
        }
        Ok(wanted)
    }

    fn network(&self, container: &Container, directory: &Path) -> Result<Attached, Error> {
        let alone = |network| Attached { network, namespace: None, connections: Vec::new() };
        Ok(match &container.host.network {
            NetworkMode::Host => alone(ContainerNetwork::Host),
            NetworkMode::None => alone(ContainerNetwork::None),
            NetworkMode::Bridge | NetworkMode::Named(_) => {
                let (namespace, connections) = self.connected(container, directory)?;
                Attached { network: ContainerNetwork::Attached, namespace: Some(namespace), connections }
            }
            NetworkMode::Container(other) => {
                let path = self.namespace_of(other, "net")?;
                let fd = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                    .map_err(|e| Error::internal(format!("cannot join the network of container {other}: {e}")))?;
                let namespace = Some(Namespace::from_fd(fd));
                Attached { network: ContainerNetwork::Attached, namespace, connections: Vec::new() }
            }
        })
    }

    /// The namespaces of other containers that this one is to be in.
    fn join(&self, container: &Container, spec: &mut Spec) -> Result<(), Error> {
        let host = &container.host;
        for (mode, kind, name) in
            [(&host.pid, LinuxNamespaceType::Pid, "pid"), (&host.ipc, LinuxNamespaceType::Ipc, "ipc")]
        {
            if let NamespaceMode::Container(other) = mode {
                process::join_namespace(spec, kind, &self.namespace_of(other, name)?);
            }
        }
        Ok(())
    }

    fn namespace_of(&self, id: &str, name: &str) -> Result<PathBuf, Error> {
        let seen = self.find(id)?;
        if seen.status != Status::Running {
            let message = format!("cannot join the {name} namespace of container {id}: it is not running");
            return Err(Error::new(Kind::Conflict, message));
        }
        Ok(PathBuf::from(format!("/proc/{}/ns/{name}", seen.state.pid)))
    }

    /// Gives the container the devices it names, which come with mounts.
    fn named_devices(&self, container: &Container, spec: &mut Spec) -> Result<Vec<InsideMount>, Error> {
        let specs = DeviceSpecs::read(&self.parts.device_specs);
        let names = &container.host.named_devices;
        let unknown: Vec<&str> = names.iter().map(String::as_str).filter(|name| specs.get(name).is_none()).collect();
        if !unknown.is_empty() {
            let message = format!("CDI device injection failed: unresolvable CDI devices {}", unknown.join(", "));
            let faults = specs.faults().iter().map(|fault| format!("a specification cannot be used: {fault}"));
            return Err(faults.fold(Error::invalid(message), Error::with_hint));
        }
        let devices: Vec<&cdi::Device> = names.iter().filter_map(|name| specs.get(name)).collect();
        cdi::inject(spec, &devices)
            .map_err(|error| Error::invalid(format!("CDI device injection failed: failed to inject devices: {error}")))
    }

    fn inside_mounts(&self, container: &Container) -> Result<Vec<InsideMount>, Error> {
        let mut mounts = Vec::new();
        for point in &container.mounts {
            let mut options = Vec::new();
            if point.read_only {
                options.push("ro".to_owned());
            }
            let mut layers = None;
            let source = match &point.kind {
                MountKind::Bind { source, propagation, recursive, writable_below } => {
                    options.push(if *recursive { "rbind".to_owned() } else { "bind".to_owned() });
                    if point.read_only && *writable_below {
                        options.push(WRITABLE_BELOW.to_owned());
                    }
                    options.extend(propagation.clone());
                    Some(source.clone())
                }
                MountKind::Volume { name, .. } => {
                    options.push("rbind".to_owned());
                    Some(volumes::hold(self.store.root(), name, &container.id)?)
                }
                MountKind::Tmpfs { options: given } => {
                    options.extend(["nosuid".to_owned(), "nodev".to_owned()]);
                    if !given.iter().any(|option| option == "exec") {
                        options.push("noexec".to_owned());
                    }
                    options.extend(given.iter().filter(|option| *option != "exec").cloned());
                    None
                }
                MountKind::Image { snapshot, .. } => {
                    layers = Some(self.store.snapshots().view(&snapshot.parse()?)?);
                    None
                }
            };
            let destination = PathBuf::from(&point.destination);
            let subpath = point.subpath.clone();
            mounts.push(InsideMount { source, layers, subpath, destination, options });
        }
        Ok(mounts)
    }
}

/// The devices of the host that were asked for, or with `--privileged` all of them.
fn devices(container: &Container, spec: &mut Spec) -> Result<(), Error> {
    let mut nodes = Vec::new();
    let mut rules = Vec::new();
    for wish in &container.host.devices {
        let metadata = fs::metadata(&wish.host).map_err(|e| {
            let shown = wish.host.display();
            Error::invalid(format!("error gathering device information while adding custom device \"{shown}\": {e}"))
        })?;
        let (node, rule) = device(&wish.host, &wish.inside, &metadata, &wish.permissions)?;
        nodes.push(node);
        rules.push(rule);
    }
    if container.host.privileged {
        for entry in fs::read_dir("/dev").map_err(Error::internal)?.flatten() {
            let path = entry.path();
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            let is_device = metadata.file_type().is_char_device() || metadata.file_type().is_block_device();
            let ours = ["console", "ptmx", "tty", "null", "zero", "full", "random", "urandom"];
            if is_device && !ours.iter().any(|name| entry.file_name() == *name) {
                nodes.push(device(&path, &path, &metadata, "rwm")?.0);
            }
        }
    }
    if nodes.is_empty() {
        return Ok(());
    }
    if let Some(linux) = spec.linux_mut() {
        linux.set_devices(Some(nodes));
        if let Some(resources) = linux.resources_mut().as_mut()
            && !container.host.privileged
        {
            let mut all = resources.devices().clone().unwrap_or_default();
            all.extend(rules);
            resources.set_devices(Some(all));
        }
    }
    Ok(())
}

fn device(
    host: &Path,
    inside: &Path,
    metadata: &fs::Metadata,
    permissions: &str,
) -> Result<(oci_spec::runtime::LinuxDevice, oci_spec::runtime::LinuxDeviceCgroup), Error> {
    use std::os::unix::fs::MetadataExt;
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_block_device() => LinuxDeviceType::B,
        _ => return Err(Error::invalid(format!("\"{}\" is not a device node", host.display()))),
    };
    let number = (i64::from(rustix::fs::major(metadata.rdev())), i64::from(rustix::fs::minor(metadata.rdev())));
    let node = LinuxDeviceBuilder::default()
        .path(inside)
        .typ(kind)
        .major(number.0)
        .minor(number.1)
        .file_mode(metadata.mode() & 0o777)
        .uid(metadata.uid())
        .gid(metadata.gid())
        .build()
        .map_err(Error::internal)?;
    Ok((node, process::device_rule(kind, Some(number), permissions)?))
}

pub(super) fn start_error(failure: StartFailure) -> Error {
    let kind = match failure.exit_code {
        Some(127) => Kind::CommandNotFound,
        Some(_) => Kind::NotExecutable,
        None => Kind::Internal,
    };
    Error::new(kind, failure.message)
}

/// What the program is when it was started as a helper of the engine's, with the status to exit with; `None` in every
/// other process. Must come first in `main`.
pub fn helper_main() -> Option<i32> {
    monitor::monitor_main(Box::new(|_, note| after_end(note))).or_else(rbuild_runtime::helper_main)
}

impl Note {
    fn release(&self) {
        self.volumes.iter().for_each(|name| volumes::release(&self.root, name, &self.id));
    }
}

/// In a monitor process, after the end of a container that leaves something to be done.
fn after_end(text: &str) {
    let Ok(note) = serde_json::from_str::<Note>(text) else { return };
    if !note.remove {
        return note.release();
    }
    let Ok(store) = Store::open(crate::engine::store_options(note.root)) else { return };
    let parts = ContainerParts {
        helper: PathBuf::new(),
        state_dir: PathBuf::new(),
        names: super::HostNames::default(),
        bridge: rbuild_runtime::network::BridgeOptions::default(),
        device_specs: Vec::new(),
    };
    Containers::new(store, parts).after_end(text);
}
