//! What a caller wants of caches elsewhere, as plain data.

use std::path::PathBuf;

use rbuild_cache::PublishOptions;
use rbuild_oci::{Digest, Reference};

/// A cache to read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheSource {
    /// A tag or digest in a registry: a cache, or an image that carries its own. `insecure` needs no TLS.
    Registry { reference: Reference, insecure: bool },
    /// A directory; `digest` means exactly that image of it, else the one called `tag` is meant.
    Directory { path: PathBuf, tag: String, digest: Option<Digest> },
}

/// A cache to write to.
#[derive(Debug, Clone)]
pub struct CacheTarget {
    pub place: CachePlace,
    pub mode: CacheMode,
    pub options: PublishOptions,
    /// A cache that cannot be written does not fail the build.
    pub ignore_error: bool,
}

/// Where a cache is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CachePlace {
    Registry {
        reference: Reference,
        insecure: bool,
    },
    Directory {
        path: PathBuf,
        tag: String,
    },
    /// In the config of the image itself. It holds the steps of the final image.
    Inline,
}

/// Which steps are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheMode {
    /// Those of the final image.
    #[default]
    Min,
    /// All.
    Max,
}
