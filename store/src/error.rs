//! What can go wrong in the store.

use std::io;
use std::path::PathBuf;

use rbuild_oci::{Digest, OciError};

use crate::outside::is_outside;
use crate::snapshots::Driver;

/// What to do when the disk under the store is full.
pub const FULL_DISK_HINT: &str =
    "the disk that holds the store is full: free space there, for instance with `rbuild system prune`";

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Every failure of this crate. Messages name the thing; [`StoreError::hint`] says what can be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("store database: {0}")]
    Database(#[from] rusqlite::Error),
    #[error("store {root:?}: its database db.sqlite cannot be used: {source}")]
    BrokenDatabase { root: PathBuf, source: rusqlite::Error },
    #[error("store database is locked by another process{}", .pid.map(|p| format!(" (pid {p})")).unwrap_or_default())]
    Busy { pid: Option<u32> },
    #[error("store {root:?}: {reason}")]
    Refused { root: PathBuf, reason: String },
    #[error("store {root:?} has version {found}, which is newer than this program's {known}")]
    Newer { root: PathBuf, found: u32, known: u32 },
    #[error("store {root:?} was made with storage driver {made_with}, not {asked}")]
    OtherDriver { root: PathBuf, made_with: Driver, asked: Driver },
    #[error("store {root:?} is read-only")]
    ReadOnly { root: PathBuf },
    #[error("blob {0} is not in the store")]
    NoBlob(Digest),
    #[error("blob {digest} is damaged: {reason}")]
    DamagedBlob { digest: Digest, reason: String },
    #[error("digest of {what} is {found}, expected {expected}")]
    WrongDigest { what: String, expected: Digest, found: Digest },
    #[error("{what} has {found} bytes, expected {expected}")]
    WrongSize { what: String, expected: u64, found: u64 },
    #[error("snapshot {0} is not in the store")]
    NoSnapshot(String),
    #[error("snapshot {0} is in use")]
    SnapshotInUse(String),
    #[error("snapshot of {depth} layers is over the limit of {limit} layers")]
    TooDeep { depth: usize, limit: usize },
    #[error("No such image: {0}")]
    NoImage(String),
    #[error("image id prefix {0} is ambiguous: it matches several images")]
    AmbiguousImage(String),
    #[error("image {image} is in use by {}", .users.join(", "))]
    ImageInUse { image: String, users: Vec<String> },
    #[error("image {image} has no manifest for platform {platform}")]
    NoPlatform { image: String, platform: String },
    #[error("{what} is over the limit of {limit} {unit}")]
    Limit { what: String, limit: u64, unit: &'static str },
    #[error("invalid {what}: {reason}")]
    Invalid { what: String, reason: String },
    #[error("not supported: {0}")]
    Unsupported(String),
    #[error(transparent)]
    Oci(#[from] OciError),
}

impl StoreError {
    /// An I/O failure of what `what` names: `reading blob sha256:…`.
    pub fn io(what: impl Into<String>, source: impl Into<io::Error>) -> StoreError {
        StoreError::Io { what: what.into(), source: source.into() }
    }

    pub fn invalid(what: impl Into<String>, reason: impl Into<String>) -> StoreError {
        StoreError::Invalid { what: what.into(), reason: reason.into() }
    }

    /// With the root named, where the database itself is what is wrong.
    pub(crate) fn of_database(self, root: impl FnOnce() -> PathBuf) -> StoreError {
        use rusqlite::ErrorCode as Code;
        match self {
            StoreError::Database(source)
                if matches!(
                    source.sqlite_error_code(),
                    Some(Code::NotADatabase | Code::DatabaseCorrupt | Code::CannotOpen | Code::SystemIoFailure)
                ) || is_foreign(&source) =>
            {
                StoreError::BrokenDatabase { root: root(), source }
            }
            other => other,
        }
    }

    /// Whether the store's disk (or a quota on it) is full.
    pub fn is_full(&self) -> bool {
        match self {
            StoreError::Io { source, .. } => is_out_of_space(source) && !is_outside(source),
            StoreError::Database(error) => error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull),
            _ => false,
        }
    }

    /// Whether the thing asked for is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            StoreError::NoBlob(_) | StoreError::NoSnapshot(_) | StoreError::NoImage(_) | StoreError::NoPlatform { .. }
        ) || matches!(self, StoreError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        if self.is_full() {
            return Some(FULL_DISK_HINT);
        }
        match self {
            StoreError::Io { source, .. } if is_out_of_space(source) => {
                Some("the disk that is written to is full: free space there, or write somewhere else")
            }
            StoreError::BrokenDatabase { .. } => Some(
                "nothing was changed: move the directory away or use another one with --root, then pull, load or build again",
            ),
            StoreError::Newer { .. } => Some("use the newer program, or another store with --root"),
            StoreError::OtherDriver { .. } => Some(
                "leave --storage-driver and the configured storage-driver out to use it as it is, or take another store with --root; images go from one to the other by save and load",
            ),
            StoreError::DamagedBlob { .. } => Some("pull or load the image again"),
            StoreError::AmbiguousImage(_) => Some("give more digits of the id"),
            _ => None,
        }
    }
}

fn is_out_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether a database lacks what every store has: then it is somebody else's, or a piece of one.
fn is_foreign(error: &rusqlite::Error) -> bool {
    let text = error.to_string();
    text.starts_with("no such table") || text.starts_with("no such column")
}

/// Adds the name of the thing to an I/O result.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| StoreError::Io { what: what(), source: source.into() })
    }
}
