//! Making a container: its configuration from image and request, its layer, its volumes, its row.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use rbuild_oci::{ContainerConfig, EmptyObject, ImageConfig, Platform};
use rbuild_runtime::container::{ContainerLock, RestartPolicy};
use rbuild_store::{Durability, ImageRecord, Lease, Root, Snapshot, StoreError, db};

use super::record::{self, Container, MountKind, MountPoint};
use super::request::{BindDepth, CreateRequest, HostSettings, MountRequest, MountWish, NetworkMode, VolumeTerms};
use super::{Containers, health, isolation, names, process, random_id};
use crate::error::{Error, Kind};
use crate::volumes::{self, Place};

/// The least memory a container may have, docker's number: less, and not even its init starts.
const LEAST_MEMORY: i64 = 6 << 20;

/// A file in the directory of a container that is removed after its end: its maker is about to start it. Left without a
/// living maker it is garbage, although it never ran.
pub(super) const BEGUN: &str = "begun";

impl Containers {
    /// Makes a container of an image that is in the store; `NotFound` when it is not.
    ///
    /// # Errors
    /// `Invalid` for a request that makes no sense, `Conflict` for a name that is taken.
    pub fn create(&self, request: &CreateRequest) -> Result<Container, Error> {
        let (container, _lock) = self.create_to_start(request)?;
        self.leave_to_others(&container);
        Ok(container)
    }

    /// Says that a container made by [`Containers::create_to_start`] waits for whoever starts it, also after its maker's end.
    pub fn leave_to_others(&self, container: &Container) {
        let _ = fs::remove_file(self.directory(&container.id).join(BEGUN));
    }

    /// As [`Containers::create`], still locked: until [`Containers::start_held`] takes the lock over nobody else starts,
    /// prunes or removes it.
    ///
    /// # Errors
    /// As [`Containers::create`].
    pub fn create_to_start(&self, request: &CreateRequest) -> Result<(Container, ContainerLock), Error> {
        check(request)?;
        let lease = self.store.lease("create")?;
        let image = self.store.images().resolve(&request.image)?;
        let platform = request.platform.clone().unwrap_or_else(Platform::host);
        let (manifest, config, _) = self.store.images().manifest(&image, &platform)?;
        if request.platform.as_ref().is_some_and(|wanted| !config.platform().matches(wanted)) {
            return Err(Error::not_found(format!(
                "image with reference {} was found but does not provide the specified platform ({platform})",
                request.image
            )));
        }
        let parent = self.unpacked(&manifest, &config, &lease)?;
        let container = self.describe(request, &image, &config, parent.as_ref(), &lease)?;
        let (directory, lock) = self.make_directory(&container.id, &lease).map_err(Error::internal)?;
        if container.host.auto_remove {
            fs::write(directory.join(BEGUN), "").map_err(Error::internal)?;
        }
        let made = self.furnish(request, container, parent.as_ref(), &directory);
        let made = made.inspect_err(|_| self.remove_directory(&directory))?;
        self.tell(&made, "create", &[]);
        Ok((made, lock))
    }

    /// The container's directory, locked before it can be seen: until its row is there the lock is what tells others
    /// that it is nobody's garbage.
    fn make_directory(&self, id: &str, lease: &Lease) -> io::Result<(PathBuf, ContainerLock)> {
        let aside = lease.ingest_path("container-").map_err(io::Error::other)?;
        fs::DirBuilder::new().mode(0o700).create(&aside)?;
        let lock = ContainerLock::try_take(&aside)?.ok_or(io::ErrorKind::WouldBlock)?;
        let directory = self.directory(id);
        fs::rename(aside, &directory)?;
        Ok((directory, lock))
    }

    /// The image's file tree as a snapshot.
    fn unpacked(
        &self,
        manifest: &rbuild_oci::Manifest,
        config: &ImageConfig,
        lease: &Lease,
    ) -> Result<Option<Snapshot>, Error> {
        let Some(chain) = config.chain_id() else { return Ok(None) };
        if let Some(snapshot) = self.store.snapshots().by_chain_id(&chain, lease)? {
            return Ok(Some(snapshot));
        }
        Ok(self.store.layers().unpack(manifest, config, lease)?)
    }

    /// The layer, the volumes and the row.
    fn furnish(
        &self,
        request: &CreateRequest,
        mut container: Container,
        parent: Option<&Snapshot>,
        directory: &Path,
    ) -> Result<Container, Error> {
        let parent_id = parent.map(Snapshot::id);
        self.make_layer(&container, parent_id, &directory.join("layer"))?;
        let mut image_root = None;
        for mount in &container.mounts {
            let MountKind::Volume { name, .. } = &mount.kind else { continue };
            self.volumes().make_ready(name, terms(request, &mount.destination))?;
            // What a part of a volume is, is for who fills the volume to say.
            let whole = mount.subpath.is_none();
            let may_be_empty = match volumes::place(self.store.root(), name)? {
                Place::Directory(path) => is_empty(&path),
                Place::Filesystem(_) => true,
            };
            if whole && wants_copy(request, &mount.destination) && may_be_empty {
                let root = match &image_root {
                    Some(root) => root,
                    None => image_root.insert(self.image_root(&container)?),
                };
                volumes::fill(self.store.root(), name, root, Path::new(&mount.destination))?;
            }
        }
        let durability = if container.host.auto_remove { Durability::Cache } else { Durability::Named };
        for attempt in 0.. {
            if request.name.is_none() {
                container.name = names::random(attempt);
            }
            let mut fresh = Vec::new();
            let taken = self.store.db().write(durability, |tx| {
                fresh.clear();
                if let Some(other) = record::by_name(tx, &container.name)? {
                    return Ok(Some(other.id));
                }
                for mount in &container.mounts {
                    let MountKind::Volume { name, anonymous } = &mount.kind else { continue };
                    let labels = terms(request, &mount.destination).map(|terms| terms.labels.clone());
                    if volumes::insert(tx, name, &labels.unwrap_or_default(), *anonymous)? {
                        fresh.push(name.clone());
                    }
                }
                record::insert(tx, &container)?;
                Ok(None)
            })?;
            match taken {
                None => {
                    fresh.iter().for_each(|name| self.volumes().tell("create", name));
                    break;
                }
                Some(_) if request.name.is_none() && attempt < 100 => {}
                Some(other) => return Err(name_conflict(&container.name, &other)),
            }
        }
        Ok(container)
    }

    /// The writable layer, within its limit if it has one.
    fn make_layer(
        &self,
        container: &Container,
        parent: Option<&rbuild_store::SnapshotId>,
        layer: &Path,
    ) -> Result<(), Error> {
        let Some(bytes) = container.host.storage_size else {
            self.store.snapshots().make_layer(layer, parent)?;
            return Ok(());
        };
        let limit = |path: &Path| {
            rbuild_runtime::disk::limit(path, bytes).map_err(|error| match error.kind() {
                io::ErrorKind::Unsupported => Error::invalid(
                    "--storage-opt is supported only for state directories on xfs or ext4 with the 'prjquota' mount \
                     option, or with the storage driver btrfs",
                ),
                _ => Error::internal(format!("cannot limit the writable layer: {error}")),
            })
        };
        // A project is for what is made in it; a subvolume has to be there.
        if self.store.driver() == rbuild_store::Driver::Btrfs {
            self.store.snapshots().make_layer(layer, parent)?;
            return limit(&layer.join("fs"));
        }
        fs::DirBuilder::new().mode(0o700).create(layer).map_err(Error::internal)?;
        limit(layer)?;
        self.store.snapshots().make_layer(layer, parent)?;
        Ok(())
    }

    fn describe(
        &self,
        request: &CreateRequest,
        image: &ImageRecord,
        config: &ImageConfig,
        parent: Option<&Snapshot>,
        lease: &Lease,
    ) -> Result<Container, Error> {
        let id = random_id()?;
        let merged = merge(request, &config.config);
        let mut container = Container {
            name: request.name.clone().unwrap_or_default(),
            created: db::nanos(SystemTime::now()),
            image: request.image.clone(),
            image_id: image.id.0.to_string(),
            image_target: image.target.digest.clone(),
            parent: parent.map(|snapshot| snapshot.id().to_string()),
            hostname: self.hostname(request, &id)?,
            domainname: request.domainname.clone().unwrap_or_default(),
            tty: request.tty,
            stdin: request.stdin,
            stdin_once: request.stdin_once,
            mounts: self.mount_points(request, &merged, lease)?,
            networks: Some(self.wanted_networks(request)?),
            host: request.host.clone(),
            config: merged,
            id,
        };
        if container.args().first().is_none_or(String::is_empty) {
            return Err(Error::invalid("no command specified"));
        }
        process::capabilities(&container.host)?;
        self.share(&mut container)?;
        Ok(container)
    }

    fn hostname(&self, request: &CreateRequest, id: &str) -> Result<String, Error> {
        use super::request::NamespaceMode;
        let shared = request.host.network == NetworkMode::Host || request.host.uts == NamespaceMode::Host;
        match &request.hostname {
            Some(name) if name.is_empty() || name.len() > 64 || !name.bytes().all(is_host_byte) => {
                Err(Error::invalid(format!("invalid hostname format: {name}")))
            }
            Some(name) => Ok(name.clone()),
            None if shared => Ok(rustix::system::uname().nodename().to_string_lossy().into_owned()),
            None => Ok(id[..12].to_owned()),
        }
    }

    /// The mounts of the request, of the containers it names, and the volumes of the image.
    fn mount_points(
        &self,
        request: &CreateRequest,
        config: &ContainerConfig,
        lease: &Lease,
    ) -> Result<Vec<MountPoint>, Error> {
        let mut mounts: Vec<MountPoint> = Vec::new();
        let mut places = BTreeSet::new();
        for mount in &request.mounts {
            let point = self.mount_point(mount, lease)?;
            if !places.insert(clean(&point.destination)) {
                return Err(Error::invalid(format!("Duplicate mount point: {}", point.destination)));
            }
            mounts.push(point);
        }
        for from in &request.volumes_from {
            let (name, read_only) = match from.rsplit_once(':') {
                Some((name, "ro")) => (name, true),
                Some((name, "rw")) => (name, false),
                Some((_, mode)) => return Err(Error::invalid(format!("invalid mode: {mode}"))),
                None => (from.as_str(), false),
            };
            for mut point in self.find(name)?.container.mounts {
                let tmpfs = matches!(point.kind, MountKind::Tmpfs { .. });
                if !tmpfs && places.insert(clean(&point.destination)) {
                    point.read_only |= read_only;
                    mounts.push(point);
                }
            }
        }
        for place in config.volumes.keys() {
            if place.starts_with('/') && places.insert(clean(place)) {
                let kind = MountKind::Volume { name: random_id()?, anonymous: true };
                mounts.push(MountPoint { kind, destination: place.clone(), read_only: false, subpath: None });
            }
        }
        // What lies deeper is mounted later.
        mounts.sort_by_key(|point| clean(&point.destination).components().count());
        Ok(mounts)
    }

    fn mount_point(&self, mount: &MountRequest, lease: &Lease) -> Result<MountPoint, Error> {
        let destination = mount.destination.clone();
        if !destination.starts_with('/') {
            let message = format!("invalid mount config: mount path must be absolute: {destination}");
            return Err(Error::invalid(message));
        }
        if clean(&destination) == Path::new("/") {
            return Err(Error::invalid("invalid specification: destination can't be '/'"));
        }
        let kind = match &mount.source {
            MountWish::Bind { source, make, propagation, depth } => {
                if !source.is_absolute() {
                    let message = format!("invalid mount path: '{}' mount path must be absolute", source.display());
                    return Err(Error::invalid(message));
                }
                if !source.exists() {
                    if !*make {
                        let shown = source.display();
                        let message =
                            format!("invalid mount config for type \"bind\": bind source path does not exist: {shown}");
                        return Err(Error::invalid(message));
                    }
                    fs::create_dir_all(source)
                        .map_err(|e| Error::invalid(format!("cannot make {}: {e}", source.display())))?;
                }
                MountKind::Bind {
                    source: source.clone(),
                    propagation: propagation.clone(),
                    recursive: *depth != BindDepth::Single,
                    writable_below: *depth == BindDepth::WritableBelow,
                }
            }
            MountWish::Volume { name: Some(name), .. } => {
                volumes::check_name(name)?;
                MountKind::Volume { name: name.clone(), anonymous: false }
            }
            MountWish::Volume { name: None, .. } => MountKind::Volume { name: random_id()?, anonymous: true },
            MountWish::Tmpfs { options } => MountKind::Tmpfs { options: options.clone() },
            MountWish::Image { name } => self.image_mount(name, lease)?,
        };
        let read_only = mount.read_only || matches!(kind, MountKind::Image { .. });
        Ok(MountPoint { kind, destination, read_only, subpath: mount.subpath.clone() })
    }

    fn image_mount(&self, name: &str, lease: &Lease) -> Result<MountKind, Error> {
        let image = self.store.images().resolve(name)?;
        let (manifest, config, _) = self.store.images().manifest(&image, &Platform::host())?;
        let files = self.unpacked(&manifest, &config, lease)?;
        let files = files.ok_or_else(|| Error::invalid(format!("image {name} has no files to be mounted")))?;
        let (target, snapshot) = (image.target.digest.clone(), files.id().to_string());
        Ok(MountKind::Image { name: name.to_owned(), target, snapshot })
    }

    /// Turns the names of containers whose namespaces are shared into ids.
    fn share(&self, container: &mut Container) -> Result<(), Error> {
        use super::request::NamespaceMode;
        if let NetworkMode::Container(other) = &mut container.host.network {
            *other = self.find(other)?.container.id;
        }
        let host = &mut container.host;
        for mode in [&mut host.pid, &mut host.ipc] {
            if let NamespaceMode::Container(other) = mode {
                *other = self.find(other)?.container.id;
            }
        }
        Ok(())
    }
}

pub(super) fn name_conflict(name: &str, other: &str) -> Error {
    Error::new(
        Kind::Conflict,
        format!(
            "Conflict. The container name \"/{name}\" is already in use by container \"{other}\". You have to remove (or \
             rename) that container to be able to reuse that name."
        ),
    )
}

fn check(request: &CreateRequest) -> Result<(), Error> {
    if let Some(name) = &request.name {
        names::check(name)?;
    }
    if let Some(runtime) = request.host.runtime.as_ref().filter(|_| request.host.init) {
        return Err(Error::invalid(format!("--init is not supported with the runtime {}", runtime.name)));
    }
    if let Some(path) = request.working_dir.as_deref().filter(|path| !path.is_empty() && !path.starts_with('/')) {
        let message = format!("the working directory '{path}' is invalid, it needs to be an absolute path");
        return Err(Error::invalid(message));
    }
    for variable in &request.env {
        if variable.is_empty() || variable.starts_with('=') {
            return Err(Error::invalid(format!("invalid environment variable: {variable}")));
        }
    }
    if let Some(check) = &request.healthcheck {
        health::check(check)?;
    }
    let host = &request.host;
    if host.auto_remove && host.restart != RestartPolicy::Never {
        return Err(Error::invalid("can't create 'AutoRemove' container with restart policy"));
    }
    if matches!(host.network, NetworkMode::Container(_)) && !host.ports.is_empty() {
        return Err(Error::invalid("conflicting options: port publishing and the container type network mode"));
    }
    if matches!(host.network, NetworkMode::Container(_)) && !request.expose.is_empty() {
        return Err(Error::invalid("conflicting options: port exposing and the container type network mode"));
    }
    check_limits(host)
}

/// Refuses limits that make no sense beside each other, in docker's words.
pub(super) fn check_limits(host: &HostSettings) -> Result<(), Error> {
    if let Some(memory) = host.memory {
        if memory < LEAST_MEMORY {
            return Err(Error::invalid("Minimum memory limit allowed is 6MB"));
        }
        if host.memory_swap.is_some_and(|swap| swap > 0 && swap < memory) {
            return Err(Error::invalid("Minimum memoryswap limit should be larger than memory limit, see usage"));
        }
    } else if host.memory_swap.is_some_and(|swap| swap > 0) {
        return Err(Error::invalid("You should always set the Memory limit when using Memoryswap limit, see usage"));
    }
    isolation::check(host)?;
    host.log_options.check()?;
    // Those it may run on, whatever share of their time it has itself.
    let here = rustix::thread::sched_getaffinity(None).map_err(Error::internal)?.count();
    if host.nano_cpus.is_some_and(|nano| nano > i64::from(here) * 1_000_000_000) {
        return Err(Error::invalid(format!(
            "range of CPUs is from 0.01 to {here}.00, as there are only {here} CPUs available"
        )));
    }
    if host.nano_cpus.is_some() && (host.cpu_quota.is_some() || host.cpu_period.is_some()) {
        return Err(Error::invalid("conflicting options: CPU quota and CPUs cannot both be set"));
    }
    Ok(())
}

/// The image's configuration with the request's over it, by docker's rules.
fn merge(request: &CreateRequest, image: &ContainerConfig) -> ContainerConfig {
    let mut config = image.clone();
    config.on_build.clear();
    if let Some(user) = &request.user {
        config.user.clone_from(user);
    }
    if let Some(path) = request.working_dir.as_ref().filter(|path| !path.is_empty()) {
        config.working_dir.clone_from(path);
    }
    if let Some(signal) = &request.stop_signal {
        config.stop_signal.clone_from(signal);
    }
    if let Some(check) = &request.healthcheck {
        config.healthcheck = Some(health::merge(check, image.healthcheck.as_ref()));
    }
    if request.stop_timeout.is_some() {
        config.stop_timeout = request.stop_timeout;
    }
    let published = request.host.ports.iter().map(|port| format!("{}/{}", port.container_port, port.protocol));
    config.exposed_ports.extend(request.expose.iter().cloned().chain(published).map(|port| (port, EmptyObject {})));
    process::replace_or_append(&mut config.env, request.env.iter());
    config.labels.extend(request.labels.clone());
    let command = Some(request.command.clone()).filter(|words| !words.is_empty());
    match &request.entrypoint {
        // Another entrypoint makes the image's arguments meaningless.
        Some(words) => {
            config.entrypoint = Some(words.clone()).filter(|w| !w.is_empty() && w != &[""]);
            config.cmd = command;
        }
        None if command.is_some() => config.cmd = command,
        None => {}
    }
    config
}

/// A path without empty and `.` parts.
fn clean(path: &str) -> PathBuf {
    Path::new(path).components().filter(|c| !matches!(c, Component::CurDir)).collect()
}

/// Whether the user did not say `nocopy` for the volume at this place.
fn wants_copy(request: &CreateRequest, destination: &str) -> bool {
    !request
        .mounts
        .iter()
        .any(|mount| mount.destination == destination && matches!(mount.source, MountWish::Volume { copy: false, .. }))
}

/// What the user said of a volume that may have to be made for this place.
fn terms<'a>(request: &'a CreateRequest, destination: &str) -> Option<&'a VolumeTerms> {
    request.mounts.iter().find_map(|mount| match &mount.source {
        MountWish::Volume { terms, .. } if mount.destination == destination => terms.as_deref(),
        _ => None,
    })
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._".contains(&byte)
}

impl Containers {
    /// The image's file tree, for reading, mounted nowhere.
    pub(super) fn image_root(&self, container: &Container) -> Result<Root, Error> {
        let Some(parent) = &container.parent else {
            let empty = self.directory(&container.id);
            return Root::open(&empty.join("layer/fs")).map_err(Error::internal);
        };
        let id = parent.parse().map_err(|e: StoreError| Error::internal(e))?;
        let mounts = self.store.snapshots().view(&id)?;
        super::root_of(&mounts)
    }
}
