//! The words of the OCI image and distribution specifications as types.
//!
//! Everything here is a plain value: parsed and validated when it is made, cheap to clone, and free of I/O. The other
//! crates pass these types instead of strings, so that a digest is never mistaken for a name or a layer's `DiffId`
//! for the digest of its compressed blob.
//!
//! Own structs instead of a library's, because rbuild promises that writing what was read gives the same bytes in a
//! fixed field order (image ids depend on it) and keeps docker's extra config members, which the image specification
//! does not know.

mod config;
mod descriptor;
mod digest;
pub mod limits;
mod manifest;
mod media_type;
mod platform;
mod reference;

pub use config::{ContainerConfig, EmptyObject, Healthcheck, HistoryEntry, ImageConfig, RootFs};
pub use descriptor::Descriptor;
pub use digest::{Algorithm, ChainId, DiffId, Digest, ImageId, Sha256};
pub use manifest::{Document, Index, Manifest};
pub use media_type::{Compression, MediaType};
pub use platform::Platform;
pub use reference::Reference;

/// What can be wrong with a word of the specifications.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OciError {
    #[error("invalid digest {0:?}: {1}")]
    Digest(String, &'static str),
    #[error("invalid reference format: {0}")]
    Reference(String),
    #[error("invalid platform {0:?}: {1}")]
    Platform(String, &'static str),
    #[error("invalid {kind}: {reason}")]
    Document { kind: &'static str, reason: String },
    #[error("{kind} of {size} bytes is over the limit of {limit} bytes")]
    TooLarge { kind: &'static str, size: u64, limit: u64 },
}
