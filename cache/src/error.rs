//! What can go wrong between the local cache and one elsewhere.

/// Why a cache elsewhere could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing is there.
    #[error("{0}: not found")]
    NotFound(String),
    /// What is there was written by BuildKit.
    #[error(
        "{0} is a cache in BuildKit's own format, which rbuild does not read: its records name computations in BuildKit's terms"
    )]
    BuildKit(String),
    /// What is there is an image without records.
    #[error("{0} is an image that holds no build cache")]
    NoCache(String),
    /// A document that breaks a rule, and which.
    #[error("{what} is refused: {reason}")]
    Refused { what: String, reason: String },
    /// A file of a cache directory.
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error(transparent)]
    Registry(#[from] rbuild_registry::Error),
    #[error(transparent)]
    Oci(#[from] rbuild_oci::OciError),
    #[error(transparent)]
    Store(#[from] rbuild_store::StoreError),
}

impl Error {
    pub(crate) fn refused(what: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Refused { what: what.into(), reason: reason.into() }
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }
}
