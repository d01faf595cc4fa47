//! What can go wrong, as the callers see it, and the form in which it crosses from the sandbox process.

use std::io;

use serde::{Deserialize, Serialize};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The program could not be executed inside; the sandbox itself was fine.
    #[error("{0}")]
    Exec(ExecFailure),
    /// The request contradicts itself, the image or a promise of the sandbox.
    #[error("{0}")]
    Refused(String),
    /// A name that a user database of the image does not have.
    #[error("unable to find {what} {name}: no matching entries in {file} file")]
    UnknownName {
        /// `user` or `group`.
        what: &'static str,
        name: String,
        /// `passwd` or `group`.
        file: &'static str,
        /// Names it has, the first hundreds of them.
        known: Vec<String>,
    },
    /// The request asks for something this runtime does not do.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// A system call failed.
    #[error("cannot {action}: {}", words(source))]
    System { action: String, source: io::Error },
    /// The network could not be set up.
    #[error(transparent)]
    Network(#[from] crate::network::Error),
    /// The process that sets the sandbox up ended without saying why.
    #[error("the process setting up the sandbox ended early: {0}")]
    Lost(String),
}

/// Why a program could not be executed, in the words docker users know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ExecFailure {
    /// For example `exec: "x": executable file not found in $PATH`.
    pub message: String,
    /// 127 when there is no such program, 126 when it is there and cannot be executed.
    pub exit_code: u8,
}

/// An error on its way out of the sandbox process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Failure {
    Exec(ExecFailure),
    Refused(String),
    Unsupported(String),
    System { action: String, errno: i32 },
}

impl Failure {
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Failure::Refused(message.into())
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Exec(failure) => Error::Exec(failure),
            Failure::Refused(message) => Error::Refused(message),
            Failure::Unsupported(what) => Error::Unsupported(what),
            Failure::System { action, errno } => Error::System { action, source: io::Error::from_raw_os_error(errno) },
        }
    }
}

impl Error {
    pub(crate) fn system(action: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Error::System { action: action.into(), source: source.into() }
    }
}

/// The system's message as part of a sentence: `no such file or directory`.
pub(crate) fn words(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    match chars.next() {
        Some(first) if !text.starts_with("I/O") => first.to_lowercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}

/// Names what was being done when a system call failed.
pub(crate) trait Doing<T> {
    fn doing(self, action: impl Fn() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, action: impl Fn() -> String) -> Result<T, Failure> {
        self.map_err(|source| {
            let source: io::Error = source.into();
            Failure::System { action: action(), errno: source.raw_os_error().unwrap_or(libc::EIO) }
        })
    }
}
