//! What can go wrong between here and a registry.

use rbuild_oci::Digest;

/// Why something could not be fetched or sent. Text that came from a registry is already cleaned and shortened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The registry knows no such repository, or does not say so to us.
    #[error("pull access denied for {name}, repository does not exist or may require 'docker login'{}", tail(.reason))]
    PullDenied { name: String, reason: String },
    /// No credential is stored for a host that wants one.
    #[error("{request}: no basic auth credentials")]
    NoCredentials { request: String },
    /// The credential shown, or its absence, does not suffice.
    #[error("{}", words("unauthorized", .reason, "authentication required"))]
    Unauthorized { request: String, reason: String },
    /// The identity is known and may not do this.
    #[error("{}", words("denied", .reason, "requested access to the resource is denied"))]
    Denied { request: String, reason: String },
    /// No manifest under this name.
    #[error("manifest for {reference} not found{}", tail(.reason))]
    ManifestNotFound { reference: String, reason: String },
    /// The registry knows no such repository and says so.
    #[error("repository {name} not found{}", tail(.reason))]
    RepositoryNotFound { name: String, reason: String },
    /// A manifest names a blob that the registry does not have.
    #[error("blob {digest} of {repository} not found{}", tail(.reason))]
    BlobNotFound { repository: String, digest: Digest, reason: String },
    /// No connection, or it broke before an answer.
    #[error("{request}: {reason}")]
    Unreachable { request: String, reason: String },
    /// An answer that is neither success nor one of the failures above.
    #[error("{request}: received unexpected HTTP status: {status}{}", tail(.reason))]
    Status { request: String, status: String, reason: String },
    /// A body went on failing after all retries.
    #[error("download of {digest} was cut after {received} of {size} bytes and could not be resumed: {reason}")]
    Interrupted { digest: Digest, received: u64, size: u64, reason: String },
    /// Bytes that are not what their digest says.
    #[error("{what} has digest {actual}, not {expected}")]
    WrongDigest { what: String, expected: Digest, actual: Digest },
    /// A body of another length than declared.
    #[error("{what} has {actual} bytes, not {expected}")]
    WrongSize { what: String, expected: u64, actual: u64 },
    /// A body over its limit.
    #[error("{what} is over the limit of {limit} bytes")]
    TooLarge { what: String, limit: u64 },
    /// A document that cannot be used.
    #[error("{what}: {reason}")]
    Document { what: String, reason: String },
    /// An index without an entry for the wanted platform.
    #[error("no matching manifest for {platform} in the manifest list entries of {reference}")]
    NoPlatform { reference: String, platform: String },
    /// The peer asked for something that is not done for anybody.
    #[error("{request}: refused {what}")]
    Refused { request: String, what: String },
    /// No docker daemon answers, or it went away; the words name its address.
    #[error("{0}")]
    NoDaemon(String),
    /// A docker daemon refused, in its own words. `found` is false when it has no such image.
    #[error("error response from the docker daemon: {reason}")]
    Daemon { found: bool, reason: String },
    /// The credential store failed.
    #[error("credentials for {host} cannot be read: {reason}")]
    Credentials { host: String, reason: String },
    /// Options that contradict themselves or cannot be read.
    #[error("{0}")]
    Options(String),
    #[error(transparent)]
    Oci(#[from] rbuild_oci::OciError),
    #[error(transparent)]
    Store(#[from] rbuild_store::StoreError),
}

impl Error {
    /// Whether another mirror, or the origin, may do better.
    pub(crate) fn try_elsewhere(&self) -> bool {
        !matches!(self, Error::Store(_) | Error::Options(_) | Error::NoPlatform { .. })
    }
}

fn tail(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

/// `code: reason` without saying the code twice.
fn words(code: &str, reason: &str, otherwise: &str) -> String {
    match reason {
        "" => format!("{code}: {otherwise}"),
        r if r.starts_with(code) || r.starts_with("login attempt to ") => r.to_owned(),
        r => format!("{code}: {r}"),
    }
}
