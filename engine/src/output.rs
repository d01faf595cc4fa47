//! What a caller wants of a build's result, as plain data.

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_oci::{Compression, Platform, Reference};

/// One thing that becomes of the result.
#[derive(Debug, Clone)]
pub enum Output {
    /// An image in the store and, if wanted, in the registries that its names say.
    Image(ImageOutput),
    /// An archive that is an OCI layout and a docker archive at once. `several` is whether it may hold an index: what
    /// is to be loaded by docker may not.
    Archive { names: Vec<Reference>, dest: Destination, packing: Packing, several: bool },
    /// An OCI layout as a directory.
    Layout { names: Vec<Reference>, dest: PathBuf, packing: Packing },
    /// The result's files in a directory; `split` puts each platform's into one of its own.
    Files { dest: PathBuf, split: Option<bool>, mode: FilesMode },
    /// The result's files as a tar archive.
    Tar { dest: Destination, split: Option<bool> },
    /// Nothing but the cache.
    CacheOnly,
}

/// An image in the store.
#[derive(Debug, Clone, Default)]
pub struct ImageOutput {
    pub names: Vec<Reference>,
    pub push: Option<Push>,
    pub keep: Keep,
    /// Each name also with the image's digest in place of its tag.
    pub canonical: bool,
    /// The repository that gives an image without names its name, with its digest.
    pub dangling: Option<Reference>,
    pub packing: Packing,
}

/// Whether an image that goes to registries is in the store too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Keep {
    /// Unless its layers would have to be brought for that, from a cache elsewhere, and none of its names is known here.
    #[default]
    IfHere,
    Always,
    Never,
}

/// How an image goes to its registries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Push {
    /// Under no tag, to be named by its digest.
    pub by_digest: bool,
    /// Plain HTTP and certificates that prove nothing will do.
    pub insecure: bool,
}

/// What becomes of files that a directory has and the result has not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FilesMode {
    #[default]
    Copy,
    /// They are removed.
    Delete,
}

/// How an image's layers travel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packing {
    /// `None` is OCI's, except where a registry is better served with docker's.
    pub media_types: Option<MediaTypes>,
    /// `None` leaves it to the output: archives are gzipped, registries get gzip, the store keeps layers as they are.
    pub compression: Option<Compression>,
    /// On the compression's own scale.
    pub level: Option<i32>,
    /// Compress layers again that came compressed in another way.
    pub force: bool,
    /// Statements about the image are an OCI artifact that names it as its subject, instead of an image of their own.
    pub artifacts: bool,
    /// No time in a layer made here is after the build's epoch.
    pub rewrite_timestamps: bool,
    pub annotations: Vec<Annotation>,
}

/// Which words an image is described in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaTypes {
    Oci,
    /// Schema 2. Given up for OCI's, with a warning, where it cannot say what is to be said.
    Docker,
}

/// A note on a manifest, an index, or what points at one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotation {
    pub on: Annotated,
    /// `None` is every platform.
    pub platform: Option<Platform>,
    pub key: String,
    pub value: String,
}

/// What an annotation is written on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Annotated {
    Manifest,
    Index,
    /// The entry of the index (or of the layout) that points at the manifest.
    ManifestDescriptor,
    /// The entry of the layout that points at the index.
    IndexDescriptor,
}

/// Where a file goes.
#[derive(Debug, Clone)]
pub enum Destination {
    /// Made complete or not at all.
    File(PathBuf),
    Stream(OutputStream),
}

/// What takes bytes, once.
#[derive(Clone)]
pub struct OutputStream(Arc<Mutex<Option<Box<dyn Write + Send>>>>);

impl OutputStream {
    pub fn new(output: impl Write + Send + 'static) -> OutputStream {
        OutputStream(Arc::new(Mutex::new(Some(Box::new(output)))))
    }

    pub(crate) fn take(&self) -> Option<Box<dyn Write + Send>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for OutputStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OutputStream")
    }
}
