//! Containers: made, run, watched and removed.
//!
//! There is no daemon. What a container is stands in the table `containers`; what it does is known by its monitor
//! ([`rbuild_runtime::monitor`]), whose lock says that it runs. Everything here is done by whichever process was asked,
//! and each begins by clearing away what a killed one left.

mod archive;
mod commit;
mod connections;
mod copy;
mod create;
mod etc;
mod exec;
mod health;
mod inspect;
mod isolation;
mod lifecycle;
mod logging;
mod names;
mod ports;
mod process;
mod record;
mod request;
mod start;
mod stream;
mod told;
mod update;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rbuild_oci::Digest;
use rbuild_runtime::mount_detached;
use rbuild_runtime::network::BridgeOptions;
use rbuild_runtime::sandbox::{Cgroup, CgroupSpec, NativeSandbox, SandboxOptions};
pub use rbuild_runtime::sandbox::{Listed, Usage};
use rbuild_store::{Mounts, Root, Store, StoreError, rusqlite};

pub(crate) use archive::content_size;
pub use archive::{Change, ChangeKind};
pub use commit::CommitRequest;
pub use copy::CopyOptions;
pub use etc::HostNames;
pub use exec::Executed;
pub(crate) use inspect::timestamp;
pub use isolation::{BlockIo, Security};
pub use lifecycle::{Removal, signal_number};
pub use logging::{LOCAL, LogDriver, LogOptions};
pub use record::{Container, MountKind, MountPoint, Seen, Status};
pub use request::{
    BindDepth, CreateRequest, DeviceRequest, ExecRequest, HostSettings, Membership, MountRequest, MountWish,
    NamespaceMode, NetworkMode, RuntimeRequest, VolumeTerms,
};
pub use start::{StartRequest, helper_main};
pub use update::UpdateRequest;

pub use rbuild_oci::Healthcheck;
pub use rbuild_runtime::container::{
    Attached, AttachedInput, Attachment, ContainerLock, Ended, Health, HealthStatus, RestartPolicy, StartFailure, State,
};
pub use rbuild_runtime::logs::{Entry, LogLimits, LogReader, Stream};

use crate::error::{Error, Kind};
use crate::volumes::Volumes;

/// The containers of a store.
#[derive(Debug, Clone)]
pub struct Containers {
    store: Store,
    parts: Arc<ContainerParts>,
}

/// What containers need beside the store.
#[derive(Debug, Clone)]
pub struct ContainerParts {
    /// A program whose `main` calls [`crate::helper_main`] first.
    pub helper: PathBuf,
    /// Where the sandbox keeps its own.
    pub state_dir: PathBuf,
    pub names: HostNames,
    pub bridge: BridgeOptions,
    /// As [`crate::EngineOptions::device_specs`].
    pub device_specs: Vec<PathBuf>,
}

impl crate::Engine {
    /// The containers, with what killed processes left of some cleared away.
    pub fn containers(&self) -> Containers {
        let options = self.options();
        let parts = ContainerParts {
            helper: options.helper.clone(),
            state_dir: self.store().root().join("sandbox"),
            names: HostNames::read(options.resolv_conf.clone()),
            bridge: options.bridge.clone(),
            device_specs: options.device_specs.clone(),
        };
        let containers = Containers::new(self.store().clone(), parts);
        containers.sweep();
        containers
    }

    pub fn volumes(&self) -> Volumes {
        Volumes::new(self.store().clone())
    }
}

impl Containers {
    pub fn new(store: Store, parts: ContainerParts) -> Self {
        Self { store, parts: Arc::new(parts) }
    }

    pub fn volumes(&self) -> Volumes {
        Volumes::new(self.store.clone())
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn default_bridge(&self) -> &BridgeOptions {
        &self.parts.bridge
    }

    /// Every container, newest first.
    pub fn list(&self) -> Result<Vec<Seen>, Error> {
        let all = self.store.db().read(|tx| Ok(record::all(tx)?))?;
        Ok(all.into_iter().map(|container| self.see(container)).collect())
    }

    /// By id, name, or the beginning of an id.
    ///
    /// # Errors
    /// `NotFound`, in docker's words; `Conflict` for a beginning of several ids.
    pub fn find(&self, text: &str) -> Result<Seen, Error> {
        let wanted = text.strip_prefix('/').unwrap_or(text);
        let is_hex = !wanted.is_empty() && wanted.len() <= 64 && wanted.bytes().all(|b| b.is_ascii_hexdigit());
        let found = self.store.db().read(|tx| {
            if let Some(found) = record::by_id(tx, wanted)? {
                return Ok(vec![found]);
            }
            if let Some(found) = record::by_name(tx, wanted)? {
                return Ok(vec![found]);
            }
            Ok(if is_hex { record::by_prefix(tx, wanted)? } else { Vec::new() })
        })?;
        let mut found = found.into_iter();
        match (found.next(), found.next()) {
            (Some(container), None) => Ok(self.see(container)),
            (Some(_), Some(_)) => {
                Err(Error::new(Kind::Conflict, format!("multiple IDs found with provided prefix: {text}")))
            }
            (None, _) => Err(Error::not_found(format!("No such container: {text}"))),
        }
    }

    /// The log, from its beginning or the last `tail` entries; `None` while there is none.
    ///
    /// # Errors
    /// `Unsupported`, in docker's words, for one whose output is not kept.
    pub fn logs(&self, container: &Container, tail: Option<u64>) -> Result<Option<LogReader>, Error> {
        if container.host.log == LogDriver::None {
            return Err(Error::new(Kind::Unsupported, "configured logging driver does not support reading"));
        }
        match LogReader::open(&self.log_path(container), tail) {
            Ok(reader) => Ok(Some(reader)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::internal(format!("cannot read the log of {}: {error}", container.name))),
        }
    }

    pub fn log_path(&self, container: &Container) -> PathBuf {
        self.directory(&container.id).join("log")
    }

    /// The bytes the container's own layer takes on disk.
    pub fn layer_size(&self, container: &Container) -> u64 {
        let parent = container.parent.as_deref().and_then(|id| id.parse().ok());
        let directory = self.directory(&container.id).join("layer");
        if let Ok(Some(bytes)) = self.store.snapshots().layer_bytes(&directory, parent.as_ref()) {
            return bytes;
        }
        let Ok(layer) = self.upper(container) else { return 0 };
        let all = archive::content_size(&layer).unwrap_or(0);
        match self.store.driver().is_whole() {
            // The image's files are in it too.
            true => all.saturating_sub(
                self.image_root(container)
                    .and_then(|r| archive::content_size(&r).map_err(Error::internal))
                    .unwrap_or(0),
            ),
            false => all,
        }
    }

    /// The control group a container has while it runs.
    fn cgroup(&self, container: &Container) -> Result<Cgroup, Error> {
        let options = SandboxOptions { helper: self.parts.helper.clone(), state_dir: self.parts.state_dir.clone() };
        let parent = container.host.cgroup_parent.as_ref().map(PathBuf::from);
        Ok(NativeSandbox::new(options)?.cgroup(&CgroupSpec { parent }, &container.id)?)
    }

    /// What a container uses that runs; `None` for one that does not.
    pub fn usage(&self, seen: &Seen) -> Result<Option<Usage>, Error> {
        if !matches!(seen.status, Status::Running | Status::Paused) {
            return Ok(None);
        }
        let own_network = seen.container.host.network != NetworkMode::Host;
        Ok(Some(Usage::of(&self.cgroup(&seen.container)?, seen.state.pid, own_network)))
    }

    /// The processes of a container that runs.
    ///
    /// # Errors
    /// `Conflict`, in docker's words, for one that does not.
    pub fn processes(&self, seen: &Seen) -> Result<Vec<Listed>, Error> {
        if seen.status != Status::Paused {
            self.running(seen)?;
        }
        self.tell(&seen.container, "top", &[]);
        Ok(self.cgroup(&seen.container)?.listed())
    }

    fn see(&self, container: Container) -> Seen {
        let directory = self.directory(&container.id);
        container.see(&directory)
    }

    fn directory(&self, id: &str) -> PathBuf {
        self.store.root().join("containers").join(id)
    }

    /// How to mount the container's root, for writing.
    fn mounts(&self, container: &Container) -> Result<Mounts, Error> {
        let parent =
            container.parent.as_deref().map(str::parse).transpose().map_err(|e: StoreError| Error::internal(e))?;
        Ok(self.store.snapshots().layer_mounts(&self.directory(&container.id).join("layer"), parent.as_ref())?)
    }

    /// The container's own layer as files: what differs from the image, or with `vfs` and `btrfs` everything.
    fn upper(&self, container: &Container) -> Result<Root, Error> {
        Root::open(&self.directory(&container.id).join("layer/fs")).map_err(Error::internal)
    }

    /// Removes a container's directory; what resists is found by the next sweep.
    fn remove_directory(&self, directory: &Path) {
        let Ok(relative) = directory.strip_prefix(self.store.root()) else { return };
        // A limit of its own goes with it; without one nothing happens.
        if let Err(error) = rbuild_runtime::disk::lift(&directory.join("layer"))
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "the limit of a removed container's layer stays");
        }
        let removed = self.store.remove_directory(relative);
        // Not there: somebody else who saw the container end was quicker.
        if let Err(error) = removed
            && !error.is_not_found()
        {
            tracing::warn!(%error, directory = %directory.display(), "files of a removed container stay");
        }
    }
}

/// A file tree, for reading, mounted nowhere.
fn root_of(mounts: &Mounts) -> Result<Root, Error> {
    let root = match mounts {
        Mounts::Bind { source, .. } => Root::open(source),
        Mounts::Overlay { .. } => {
            let fd = mount_detached(mounts).map_err(Error::internal)?;
            Root::from_fd(fd)
        }
    };
    root.map_err(Error::internal)
}

/// 64 hexadecimal digits by chance.
pub(crate) fn random_id() -> Result<String, Error> {
    let mut bytes = [0; 32];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty()).map_err(Error::internal)?;
    Ok(Digest::from_sha256_bytes(&bytes).hex().to_owned())
}

/// Every container, for others that ask inside a transaction of their own.
pub(crate) fn containers_in(tx: &rusqlite::Transaction<'_>) -> rusqlite::Result<Vec<Container>> {
    record::all(tx)
}
