//! What went wrong, in terms every face can translate.

use std::fmt;

use rbuild_graph::Span;

/// The class of a failure. Each face has one table from here to its own codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The request makes no sense; asking again the same way fails the same way.
    Invalid,
    /// A thing that was named does not exist.
    NotFound,
    /// The request contradicts the present state: a name in use, an image a container needs.
    Conflict,
    /// The caller, or a registry, does not allow it.
    Denied,
    /// rbuild cannot do this yet, or not on this machine.
    Unsupported,
    /// A process that was asked for ran and failed with this status.
    Failed(i32),
    /// A command could not be executed though it exists (docker's 126).
    NotExecutable,
    /// A command does not exist in the container (docker's 127).
    CommandNotFound,
    /// The caller gave up.
    Cancelled,
    /// Something outside did not answer; asking again may help.
    Unavailable,
    /// A defect or a broken machine.
    Internal,
}

/// A mistake in a Dockerfile, or advice about it.
pub use rbuild_frontend::Diagnostic;

/// A failure of the engine.
#[derive(Debug, Clone)]
pub struct Error {
    pub kind: Kind,
    /// Lower case, names the thing, without a full stop.
    pub message: String,
    /// What the user can do about it, a sentence each.
    pub hints: Vec<String>,
    /// Where in the Dockerfile it happened.
    pub span: Option<Span>,
    /// The mistakes of a Dockerfile that could not be used.
    pub diagnostics: Vec<Diagnostic>,
    /// The text `span` and `diagnostics` speak of, with its name.
    pub source_text: Option<SourceText>,
    /// The step that failed and the end of what it wrote.
    pub step: Option<FailedStep>,
    /// The id in the history of the build that failed.
    pub build: Option<String>,
}

/// A text that positions refer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceText {
    /// As the user named it: `Dockerfile`.
    pub name: String,
    pub text: String,
}

/// A step of a build that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedStep {
    /// As shown: `[build 2/5] RUN make`.
    pub name: String,
    /// The last lines it wrote, both streams.
    pub log_tail: Vec<u8>,
}

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error {
            kind,
            message: message.into(),
            hints: Vec::new(),
            span: None,
            diagnostics: Vec::new(),
            source_text: None,
            step: None,
            build: None,
        }
    }

    /// The request makes no sense.
    pub fn invalid(message: impl Into<String>) -> Error {
        Error::new(Kind::Invalid, message)
    }

    /// A thing that was named does not exist.
    pub fn not_found(message: impl Into<String>) -> Error {
        Error::new(Kind::NotFound, message)
    }

    /// A defect or a broken machine, told by its cause.
    pub fn internal(cause: impl fmt::Display) -> Error {
        Error::new(Kind::Internal, cause.to_string())
    }

    /// rbuild cannot do this yet.
    pub fn unsupported(message: impl Into<String>) -> Error {
        Error::new(Kind::Unsupported, message)
    }

    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Error {
        self.hints.push(hint.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
