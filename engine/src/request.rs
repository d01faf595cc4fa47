//! What a caller asks of the engine, as plain data.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

pub use rbuild_executor::{DeviceGrants, ResourceLimits, Secret};
use rbuild_graph::ops::{ExtraHost, Network, Ulimit};
use rbuild_oci::{Descriptor, Digest, ImageId, Platform, Reference};

use crate::attest::Attestations;
use crate::attest::provenance::ProvenanceMode;
use crate::error::{Diagnostic, SourceText};
use crate::exchange::{CacheSource, CacheTarget};
use crate::export::squash::Squash;
use crate::output::Output;

/// Build an image from a Dockerfile.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    pub context: BuildContext,
    pub dockerfile: DockerfileSource,
    /// Names the result gets; each moves from the image that has it.
    pub tags: Vec<Reference>,
    /// What becomes of the result; with none, it goes to the store under `tags`. Names of outputs are their own.
    pub outputs: Vec<Output>,
    /// The stage to build; `None` is the last one.
    pub target: Option<String>,
    pub build_args: BTreeMap<String, String>,
    pub labels: Vec<(String, String)>,
    /// One result each; empty is this machine's. Several become one image with an index.
    pub platforms: Vec<Platform>,
    /// Run every step even if its result is known.
    pub no_cache: bool,
    /// Ask the registry for the newest base images even if the store has some.
    pub pull: bool,
    /// The network of RUN steps that say nothing else.
    pub network: Network,
    /// Steps that run at the same time; `None` lets the engine choose.
    pub jobs: Option<usize>,
    pub extra_hosts: Vec<ExtraHost>,
    /// Bytes of `/dev/shm` in RUN steps.
    pub shm_size: Option<u64>,
    pub ulimits: Vec<Ulimit>,
    pub cgroup_parent: Option<String>,
    /// What each RUN step may use.
    pub limits: ResourceLimits,
    /// The time that everything the build itself writes gets (seconds since 1970).
    pub source_date_epoch: Option<i64>,
    /// Whether the caller allows `--network=host` in the Dockerfile.
    pub allow_host_network: bool,
    /// Whether the caller allows `RUN --security=insecure`.
    pub allow_insecure: bool,
    /// Devices that the caller allows the Dockerfile.
    pub devices: DeviceGrants,
    /// Stages (by name or number) whose steps all run, even if their results are known.
    pub no_cache_filter: Vec<String>,
    pub lent: Lent,
    /// Caches of other machines; those named first go before the others.
    pub cache_from: Vec<CacheSource>,
    /// Where the cache of this build goes besides the store.
    pub cache_to: Vec<CacheTarget>,
    /// A file with patterns of what the context leaves out, in place of the context's own.
    pub ignore_file: Option<PathBuf>,
    /// Statements that go with the result.
    pub attestations: Attestations,
    /// Layers of the result that become one.
    pub squash: Option<Squash>,
    /// What a version control system says of the context (`revision`, `source`, `localdir:context`), for provenance.
    pub vcs: BTreeMap<String, String>,
    /// Provenance for the caller alone, in [`BuildResult::provenance`].
    pub report: Option<ProvenanceMode>,
}

impl BuildRequest {
    /// A plain build of the last stage on this machine's platform, without a name.
    pub fn new(context: BuildContext, dockerfile: DockerfileSource) -> BuildRequest {
        BuildRequest {
            context,
            dockerfile,
            tags: Vec::new(),
            outputs: Vec::new(),
            target: None,
            build_args: BTreeMap::new(),
            labels: Vec::new(),
            platforms: Vec::new(),
            no_cache: false,
            pull: false,
            network: Network::Default,
            jobs: None,
            extra_hosts: Vec::new(),
            shm_size: None,
            ulimits: Vec::new(),
            cgroup_parent: None,
            source_date_epoch: None,
            allow_host_network: false,
            allow_insecure: false,
            devices: DeviceGrants::default(),
            no_cache_filter: Vec::new(),
            lent: Lent::default(),
            cache_from: Vec::new(),
            cache_to: Vec::new(),
            limits: ResourceLimits::default(),
            ignore_file: None,
            attestations: Attestations::default(),
            squash: None,
            vcs: BTreeMap::new(),
            report: None,
        }
    }
}

/// What the caller lends to a build's steps besides its main context.
#[derive(Debug, Clone, Default)]
pub struct Lent {
    /// What stands for a name in FROM, `COPY --from` and `RUN --mount=from`, instead of a stage or an image.
    pub contexts: BTreeMap<String, NamedContext>,
    pub secrets: BTreeMap<String, SecretSource>,
    /// ssh agents by their ids.
    pub agents: BTreeMap<String, AgentSource>,
}

/// What answers a step that asks for an ssh agent.
#[derive(Debug, Clone)]
pub enum AgentSource {
    /// The socket of an agent.
    Socket(PathBuf),
    /// Files with private keys, which are read when the build starts and served from memory.
    Keys(Vec<PathBuf>),
}

/// What a name stands for.
#[derive(Debug, Clone)]
pub enum NamedContext {
    Directory(PathBuf),
    Image(Reference),
    /// An image in an OCI layout of the caller's.
    Layout(LayoutImage),
    /// The address of a git repository, or of an archive on a web server.
    Remote(String),
    /// A directory that holds what came from elsewhere: no ignore file applies.
    Unpacked(PathBuf),
    /// An image that was brought here for this build; the name is the build's own.
    Lent(Reference),
}

/// One image of an OCI layout directory.
#[derive(Debug, Clone)]
pub struct LayoutImage {
    pub dir: PathBuf,
    /// What the layout calls it. When it is not said and the layout has only one image, it is that.
    pub tag: Option<String>,
    pub digest: Option<Digest>,
    /// As the caller wrote it, for people.
    pub what: String,
}

/// Where a secret comes from.
#[derive(Debug, Clone)]
pub enum SecretSource {
    /// Read when a step asks for it.
    File(PathBuf),
    Value(Secret),
}

/// The user's files.
#[derive(Debug, Clone)]
pub enum BuildContext {
    Directory(PathBuf),
    /// No files: a Dockerfile alone.
    Empty,
    /// A tar archive (compressed or not), or else a Dockerfile alone; which one, its first bytes tell.
    Stream(InputStream),
    /// The address of a git repository, with `#ref:dir`, or of an archive or a Dockerfile on a web server.
    Remote(String),
    /// A directory that holds what came from elsewhere: no ignore file applies, the Dockerfile is named within it.
    Unpacked(PathBuf),
}

/// Where the Dockerfile is.
#[derive(Debug, Clone)]
pub enum DockerfileSource {
    /// A file; `None` is `Dockerfile` in the context (or its usual other names). With a context that comes from
    /// elsewhere, a path in that.
    File(Option<PathBuf>),
    /// Text that is already here.
    Text(Vec<u8>),
    /// A file on a web server.
    Remote(String),
}

/// Bytes that the caller sends, to be read once.
#[derive(Clone)]
pub struct InputStream(Arc<Mutex<Option<Box<dyn Read + Send>>>>);

impl InputStream {
    pub fn new(input: impl Read + Send + 'static) -> InputStream {
        InputStream(Arc::new(Mutex::new(Some(Box::new(input)))))
    }

    pub(crate) fn take(&self) -> Option<Box<dyn Read + Send>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for InputStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InputStream")
    }
}

/// A finished build.
#[derive(Debug, Clone)]
pub struct BuildResult {
    /// Its id in the history.
    pub build: String,
    pub image_id: ImageId,
    /// The manifest or index.
    pub target: Descriptor,
    /// The names it was given.
    pub names: Vec<Reference>,
    /// Whether the store has it, under these names.
    pub kept: bool,
    /// Names it was pushed under, each with the digest it has there.
    pub pushed: Vec<(Reference, Digest)>,
    /// Advice about the Dockerfile.
    pub warnings: Vec<Diagnostic>,
    /// What went wrong and did not keep the build from succeeding: caches that could not be used.
    pub notes: Vec<String>,
    pub source_text: SourceText,
    /// What [`BuildRequest::report`] asked for, for each platform.
    pub provenance: Vec<(Platform, serde_json::Value)>,
}
