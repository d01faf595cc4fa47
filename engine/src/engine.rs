//! The engine's parts and how they are put together.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rbuild_executor::Value;
use rbuild_executor::sources::git::GitOptions;
use rbuild_registry::{Client, ClientOptions};
use rbuild_runtime::network::{BridgeOptions, Pool};
use rbuild_runtime::{NativeSandbox, Sandbox, SandboxOptions};
use rbuild_solver::Solver;
use rbuild_store::{Driver, Store, StoreOptions};

use crate::error::{Error, Kind};
use crate::stored::ValueCodec;

/// Operations that run at the same time unless the caller says otherwise. Steps mostly wait (for a network, a disk, a
/// `sleep`), and a step that computes is the scheduler's business; so this only bounds memory and descriptors.
pub(crate) const JOBS: usize = 64;
/// Network namespaces made ahead while a build runs.
const READY_NAMESPACES: usize = 2;

/// Everything an engine needs to know from outside.
#[derive(Clone)]
pub struct EngineOptions {
    /// The directory of all state.
    pub root: PathBuf,
    /// How snapshots are kept; `None` takes what works on the root's file system.
    pub driver: Option<Driver>,
    /// A program whose `main` calls [`crate::helper_main`] first: usually this one.
    pub helper: PathBuf,
    /// The text of the host's `/etc/resolv.conf`.
    pub resolv_conf: String,
    pub registry: ClientOptions,
    pub bridge: BridgeOptions,
    /// Directories of files that describe devices (Container Device Interface); a later one overrules an earlier.
    pub device_specs: Vec<PathBuf>,
    /// What fetches from git repositories; `None` where it is not installed.
    pub git: Option<GitOptions>,
}

/// Builds images, keeps them, and runs them. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Engine {
    parts: Arc<Parts>,
}

struct Parts {
    store: Store,
    options: EngineOptions,
    solver: OnceLock<Solver<Value>>,
    sandbox: OnceLock<Arc<dyn Sandbox>>,
    registry: OnceLock<Client>,
    networks: Pool,
}

/// How a store is opened with all that this engine can lend it.
pub(crate) fn store_options(root: PathBuf) -> StoreOptions {
    StoreOptions { subvolumes: Some(Arc::new(rbuild_runtime::disk::Btrfs)), ..StoreOptions::new(root) }
}

impl Engine {
    /// Opens the store, making it if it is new, and puts the parts together. What a command may not need (network
    /// client, sandbox) is made when it is first used.
    ///
    /// # Errors
    /// The store cannot be opened.
    pub fn open(options: EngineOptions) -> Result<Engine, Error> {
        let store = Store::open(StoreOptions { driver: options.driver, ..store_options(options.root.clone()) })?;
        let networks = Pool::new(options.bridge.clone(), READY_NAMESPACES);
        let parts = Parts {
            store,
            options,
            solver: OnceLock::new(),
            sandbox: OnceLock::new(),
            registry: OnceLock::new(),
            networks,
        };
        Ok(Engine { parts: Arc::new(parts) })
    }

    pub fn store(&self) -> &Store {
        &self.parts.store
    }

    pub fn options(&self) -> &EngineOptions {
        &self.parts.options
    }

    /// The client for registries.
    ///
    /// # Errors
    /// The options make no client.
    pub fn registry(&self) -> Result<&Client, Error> {
        if let Some(client) = self.parts.registry.get() {
            return Ok(client);
        }
        let client = Client::new(self.parts.options.registry.clone())?;
        Ok(self.parts.registry.get_or_init(|| client))
    }

    /// A client that asks no proof of this registry.
    ///
    /// # Errors
    /// As [`Engine::registry`].
    pub(crate) fn registry_believing(&self, host: &str) -> Result<Client, Error> {
        let mut options = self.parts.options.registry.clone();
        options.mirrors = options.mirrors.believing(host)?;
        Ok(Client::new(options)?)
    }

    /// What runs processes.
    ///
    /// # Errors
    /// The helper program cannot be reached.
    pub fn sandbox(&self) -> Result<Arc<dyn Sandbox>, Error> {
        if let Some(sandbox) = self.parts.sandbox.get() {
            return Ok(sandbox.clone());
        }
        let made = NativeSandbox::new(SandboxOptions {
            helper: self.parts.options.helper.clone(),
            state_dir: self.parts.store.root().join("sandbox"),
        })?;
        Ok(self.parts.sandbox.get_or_init(|| Arc::new(made)).clone())
    }

    /// The address of this machine as containers on the default bridge see it.
    pub fn host_gateway(&self) -> String {
        self.parts.options.bridge.gateway.map_or_else(|| "172.17.0.1".to_owned(), |gateway| gateway.to_string())
    }

    /// The solver that all builds of this process share.
    pub(crate) fn solver(&self, jobs: Option<usize>) -> Result<Solver<Value>, Error> {
        if let Some(jobs) = jobs {
            return self.new_solver(jobs);
        }
        if let Some(solver) = self.parts.solver.get() {
            return Ok(solver.clone());
        }
        let made = self.new_solver(JOBS)?;
        Ok(self.parts.solver.get_or_init(|| made).clone())
    }

    fn new_solver(&self, jobs: usize) -> Result<Solver<Value>, Error> {
        let store = self.parts.store.clone();
        // What is found in the cache, and claimed there, is held as long as the solver lives.
        let lease = store.lease("cache")?;
        let codec = ValueCodec::new(store.clone(), lease.clone());
        Ok(Solver::new(Arc::new(rbuild_cache::LocalCache::new(store, lease, codec)), jobs))
    }

    /// Network namespaces on the default bridge, for RUN steps.
    pub fn namespaces(&self) -> &Pool {
        &self.parts.networks
    }
}

impl From<rbuild_store::StoreError> for Error {
    fn from(error: rbuild_store::StoreError) -> Error {
        use rbuild_store::StoreError as S;
        let kind = match &error {
            S::NoImage(_) | S::NoPlatform { .. } => Kind::NotFound,
            S::ImageInUse { .. } => Kind::Conflict,
            S::Invalid { .. } | S::Limit { .. } | S::AmbiguousImage(_) => Kind::Invalid,
            _ => Kind::Internal,
        };
        Error { hints: error.hint().map(str::to_owned).into_iter().collect(), ..Error::new(kind, error.to_string()) }
    }
}

impl From<rbuild_registry::Error> for Error {
    fn from(error: rbuild_registry::Error) -> Error {
        use rbuild_registry::Error as R;
        if let R::Store(error) = error {
            return error.into();
        }
        let kind = match &error {
            R::PullDenied { .. } | R::NoCredentials { .. } | R::Unauthorized { .. } | R::Denied { .. } => Kind::Denied,
            R::ManifestNotFound { .. }
            | R::RepositoryNotFound { .. }
            | R::NoPlatform { .. }
            | R::Daemon { found: false, .. } => Kind::NotFound,
            R::Document { .. } | R::Options(_) | R::Oci(_) => Kind::Invalid,
            _ => Kind::Unavailable,
        };
        Error::new(kind, error.to_string())
    }
}

impl From<rbuild_runtime::Error> for Error {
    fn from(error: rbuild_runtime::Error) -> Error {
        use rbuild_runtime::Error as R;
        let kind = match &error {
            R::Exec(failure) if failure.exit_code == 127 => Kind::CommandNotFound,
            R::Exec(_) => Kind::NotExecutable,
            R::Refused(_) | R::UnknownName { .. } => Kind::Invalid,
            R::Unsupported(_) => Kind::Unsupported,
            _ => Kind::Internal,
        };
        Error::new(kind, error.to_string())
    }
}
