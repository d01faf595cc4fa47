//! What a caller asks of the engine, as plain data.

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use rbuild_executor::Secret;
use rbuild_graph::ops::{ExtraHost, Network, Ulimit};
use rbuild_oci::{Descriptor, ImageId, Platform, Reference};

use crate::error::{Diagnostic, SourceText};

/// Build an image from a Dockerfile.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    pub context: BuildContext,
    pub dockerfile: DockerfileSource,
    /// Names the result gets; each moves from the image that has it.
    pub tags: Vec<Reference>,
    /// The stage to build; `None` is the last one.
    pub target: Option<String>,
    pub build_args: BTreeMap<String, String>,
    pub labels: Vec<(String, String)>,
    pub platform: Option<Platform>,
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
    /// The time that everything the build itself writes gets (seconds since 1970).
    pub source_date_epoch: Option<i64>,
    /// Whether the caller allows `--network=host` in the Dockerfile.
    pub allow_host_network: bool,
    /// Whether the caller allows `RUN --security=insecure`.
    pub allow_insecure: bool,
    /// Stages (by name or number) whose steps all run, even if their results are known.
    pub no_cache_filter: Vec<String>,
    pub lent: Lent,
}

/// What the caller lends to a build's steps besides its main context.
#[derive(Debug, Clone, Default)]
pub struct Lent {
    /// What stands for a name in FROM, `COPY --from` and `RUN --mount=from`, instead of a stage or an image.
    pub contexts: BTreeMap<String, NamedContext>,
    pub secrets: BTreeMap<String, SecretSource>,
    /// Sockets of ssh agents by their ids.
    pub agents: BTreeMap<String, PathBuf>,
}

/// What a name stands for.
#[derive(Debug, Clone)]
pub enum NamedContext {
    Directory(PathBuf),
    Image(Reference),
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
}

/// Where the Dockerfile is.
#[derive(Debug, Clone)]
pub enum DockerfileSource {
    /// A file; `None` is `Dockerfile` in the context (or its usual other names).
    File(Option<PathBuf>),
    /// Text that is already here.
    Text(Vec<u8>),
}

/// A finished build.
#[derive(Debug, Clone)]
pub struct BuildResult {
    pub image_id: ImageId,
    /// The manifest in the store.
    pub target: Descriptor,
    /// Advice about the Dockerfile.
    pub warnings: Vec<Diagnostic>,
    pub source_text: SourceText,
}
