//! What the caller decides, and what lowering gives.

use std::collections::BTreeMap;

use rbuild_graph::ops::{ExtraHost, Network, Ulimit};
use rbuild_graph::{BuildGraph, Edge};
use rbuild_oci::{Digest, HistoryEntry, ImageConfig, Platform, Reference};

use crate::FactRequest;

/// The caller's choices for one build.
#[derive(Debug, Clone)]
pub struct LowerOptions {
    pub build_args: BTreeMap<String, String>,
    /// A stage's name (any case) or number; `None` is the last stage.
    pub target: Option<String>,
    /// Set in the result's config last, over those of the Dockerfile.
    pub labels: Vec<(String, String)>,
    /// One result each; empty is the build platform, and the base image's word for what the result is for.
    pub platforms: Vec<Platform>,
    /// Where steps run.
    pub build_platform: Platform,
    /// No step is taken from the cache.
    pub no_cache: bool,
    /// Stages whose steps are not taken from the cache.
    pub no_cache_filter: Vec<String>,
    /// For RUN steps that do not say otherwise.
    pub network: Network,
    pub hostname: Option<String>,
    pub extra_hosts: Vec<ExtraHost>,
    /// Bytes of `/dev/shm`.
    pub shm_size: Option<u64>,
    pub ulimits: Vec<Ulimit>,
    pub cgroup_parent: Option<String>,
    /// Seconds since 1970 for what the build itself dates. The build argument `SOURCE_DATE_EPOCH` counts when this is
    /// `None`.
    pub source_date_epoch: Option<i64>,
    /// When the main context was last changed (seconds since 1970), where that is known of it: what
    /// `SOURCE_DATE_EPOCH=context` stands for.
    pub context_date: Option<i64>,
    /// The patterns of `.dockerignore`, see [`IgnoreFile::patterns`](crate::ignore::IgnoreFile::patterns).
    pub ignore: Vec<String>,
    pub purpose: Purpose,
    /// Replacements for image and stage names.
    pub contexts: BTreeMap<String, NamedContext>,
}

impl LowerOptions {
    /// A plain build of the last stage on this platform.
    pub fn new(build_platform: Platform) -> LowerOptions {
        LowerOptions {
            build_args: BTreeMap::new(),
            target: None,
            labels: Vec::new(),
            platforms: Vec::new(),
            build_platform,
            no_cache: false,
            no_cache_filter: Vec::new(),
            network: Network::Default,
            hostname: None,
            extra_hosts: Vec::new(),
            shm_size: None,
            ulimits: Vec::new(),
            cgroup_parent: None,
            source_date_epoch: None,
            context_date: None,
            ignore: Vec::new(),
            purpose: Purpose::Build,
            contexts: BTreeMap::new(),
        }
    }
}

/// What lowering is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Purpose {
    /// What the target needs is lowered. A warning may be an error, if the file says so.
    #[default]
    Build,
    /// To see what is wrong with the file: without a target every stage is looked at, and warnings stay warnings.
    Check,
}

/// What a name stands for instead of a stage or an image.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum NamedContext {
    Image(Reference),
    /// Files that the client lends under the context's name.
    Local,
}

/// How lowering ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// One per platform asked for, in that order.
    Lowered(Vec<Lowered>),
    /// Find these out and ask again. Show the diagnostics of the last call only.
    Missing(Vec<FactRequest>),
    /// The diagnostics hold errors.
    Failed,
}

/// What to build and what to call it.
#[derive(Debug, Clone)]
pub struct Lowered {
    pub platform: Platform,
    pub graph: BuildGraph,
    /// The file tree of the target; `None` is an empty one.
    pub result: Option<Edge>,
    /// The result's config: history of the base and of this build; `rootfs` empty and `created` absent, for both are
    /// known only after the build.
    pub config: ImageConfig,
    /// The image under the target, if there is one.
    pub base: Option<BaseImage>,
    /// The entries of `config.history` that are not the base's.
    pub history: Vec<HistoryStep>,
    /// Names of the build contexts the graph reads (`context` is the main one).
    pub contexts: Vec<String>,
    /// The time that counts as now, in seconds since 1970, wherever it was said.
    pub source_date_epoch: Option<i64>,
}

/// The image a target starts from.
#[derive(Debug, Clone, PartialEq)]
pub struct BaseImage {
    pub reference: Reference,
    pub platform: Platform,
    pub digest: Digest,
    /// As it was, ON BUILD triggers included.
    pub config: ImageConfig,
    /// Its file tree; `None` when it has no layers.
    pub edge: Option<Edge>,
}

/// A line of the history and the file tree behind it.
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryStep {
    pub entry: HistoryEntry,
    /// The tree after this step. It may turn out equal to the one before (WORKDIR of a directory that exists), then
    /// the entry is to be marked empty.
    pub edge: Option<Edge>,
}
