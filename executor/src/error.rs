//! What can go wrong while an operation is made real.

use std::fmt;

use rbuild_store::FULL_DISK_HINT;
use rustix::io::Errno;

use crate::files::missing::distance;

/// A path from outside, shown so that it cannot harm a terminal.
pub(crate) fn show(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(if path.is_empty() { b"." } else { path });
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// What the kernel said, without its number.
fn reason(errno: Errno) -> String {
    let text = errno.to_string();
    text.split_once(" (os error").map_or(text.clone(), |(words, _)| words.to_owned())
}

/// A failure of an operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecutorError {
    /// A process ended badly. The wording is BuildKit's, since people search for it.
    #[error("process \"{command}\" did not complete successfully: {status}")]
    Process {
        command: String,
        status: ProcessStatus,
        /// The end of what it wrote, both streams.
        log_tail: Vec<u8>,
        /// The disk under its root had no room left when it ended, which then is the likely cause.
        disk_full: bool,
    },
    #[error("{0}")]
    Start(String),
    #[error("failed to calculate checksum of ref {path:?}: not found")]
    SourceNotFound { path: String, hints: Vec<String> },
    #[error("cannot read /{}: {}", show(path), reason(*errno))]
    Read { path: Vec<u8>, errno: Errno },
    #[error("cannot write /{}: {}", show(path), reason(*errno))]
    Write { path: Vec<u8>, errno: Errno },
    #[error("/{} changed while it was being read; build again", show(path))]
    Changed { path: Vec<u8> },
    #[error("cannot replace to directory /{} with file", show(path))]
    FileOnDirectory { path: Vec<u8> },
    #[error("cannot copy to non-directory: /{}", show(path))]
    DirectoryOnFile { path: Vec<u8> },
    /// The client of the build lends no such secret or agent, and the step cannot do without.
    #[error("{message}")]
    NotLent { message: String, hints: Vec<String> },
    /// A device that is not there, or that the caller did not allow.
    #[error("{message}")]
    Device { message: String, hints: Vec<String> },
    /// A mount point cannot be made.
    #[error("{message}")]
    Mount { message: String, hints: Vec<String> },
    #[error("{0}")]
    Invalid(String),
    #[error("{what} is not supported yet")]
    Unsupported { what: String },
    #[error("cannot fetch {url}: {message}")]
    Web { url: String, message: String },
    #[error("failed to fetch remote {remote}: {message}")]
    Git { remote: String, message: String },
    #[error("{reference}: {message}")]
    Image { reference: String, message: String },
    /// A result that another machine cached cannot be brought here.
    #[error("cannot fetch a cached result from {place}: {message}")]
    Cached { place: String, message: String },
    #[error(transparent)]
    Store(#[from] rbuild_store::StoreError),
    #[error(transparent)]
    Runtime(#[from] rbuild_runtime::Error),
    #[error("{0}")]
    Cancelled(&'static str),
}

impl ExecutorError {
    pub(crate) fn read(path: &[u8], errno: Errno) -> ExecutorError {
        ExecutorError::Read { path: path.to_vec(), errno }
    }

    pub(crate) fn write(path: &[u8], errno: Errno) -> ExecutorError {
        ExecutorError::Write { path: path.to_vec(), errno }
    }

    pub(crate) fn not_lent(message: impl Into<String>, hint: impl Into<String>) -> ExecutorError {
        ExecutorError::NotLent { message: message.into(), hints: vec![hint.into()] }
    }

    /// For an input that should have been brought before anybody looked at it.
    pub(crate) fn not_brought() -> ExecutorError {
        ExecutorError::Invalid("a file tree is not here".into())
    }

    /// What the user can do about it.
    pub fn hints(&self) -> Vec<String> {
        match self {
            ExecutorError::SourceNotFound { hints, .. }
            | ExecutorError::NotLent { hints, .. }
            | ExecutorError::Device { hints, .. }
            | ExecutorError::Mount { hints, .. } => hints.clone(),
            ExecutorError::Process { disk_full: true, .. }
            | ExecutorError::Write { errno: Errno::NOSPC | Errno::DQUOT, .. } => vec![FULL_DISK_HINT.to_owned()],
            ExecutorError::Write { errno: Errno::NOTDIR, .. } => {
                vec!["a part of the path is a file, not a directory".to_owned()]
            }
            ExecutorError::Runtime(rbuild_runtime::Error::UnknownName { what, name, file, known }) => {
                vec![instead(what, name, file, known)]
            }
            ExecutorError::Store(error) => error.hint().map(str::to_owned).into_iter().collect(),
            ExecutorError::Git { message, .. } if message == "git is not installed" => {
                vec!["install git (the Debian package is \"git\") and build again".to_owned()]
            }
            _ => Vec::new(),
        }
    }
}

/// What to write in place of a user or group that the image does not have.
fn instead(what: &str, name: &str, file: &str, known: &[String]) -> String {
    let near = known
        .iter()
        .map(|candidate| (distance(candidate.as_bytes(), name.as_bytes()), candidate))
        .filter(|(distance, _)| *distance <= name.len().div_ceil(3).max(1))
        .min();
    match near {
        Some((_, near)) => format!("did you mean {near}?"),
        None if known.is_empty() => {
            format!("there is no /etc/{file} with names here; use the number of the {what}")
        }
        None => format!("make the {what} in a step before, or use its number"),
    }
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessStatus {
    Code(i32),
    Signal(i32),
    /// Killed because it used more memory than it may.
    OutOfMemory,
    /// It could not be executed at all: the status a shell would give, and why.
    NotStarted {
        code: i32,
        message: String,
    },
}

impl ProcessStatus {
    /// The status a shell would give.
    pub fn code(&self) -> i32 {
        match self {
            ProcessStatus::Code(code) | ProcessStatus::NotStarted { code, .. } => *code,
            ProcessStatus::Signal(signal) => 128 + signal,
            ProcessStatus::OutOfMemory => 137,
        }
    }
}

impl fmt::Display for ProcessStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProcessStatus::Code(code) => write!(f, "exit code: {code}"),
            ProcessStatus::Signal(signal) => write!(f, "exit code: {}", 128 + signal),
            ProcessStatus::NotStarted { code, message } => write!(f, "{message}, exit code: {code}"),
            ProcessStatus::OutOfMemory => {
                write!(f, "cannot allocate memory: killed by the memory limit, exit code: 137")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_have_their_words() {
        let git = |message: &str| ExecutorError::Git { remote: "https://h/r.git".into(), message: message.into() };
        let cached = ExecutorError::Cached { place: "h/cache".into(), message: "gone".into() };
        for (error, want) in [
            (ExecutorError::Changed { path: b"a".to_vec() }, "/a changed while it was being read; build again"),
            (ExecutorError::read(b"a\x1bb", Errno::IO), "cannot read /a\u{fffd}b: Input/output error"),
            (ExecutorError::read(b"", Errno::ACCESS), "cannot read /.: Permission denied"),
            (ExecutorError::write(b"a", Errno::NOSPC), "cannot write /a: No space left on device"),
            (ExecutorError::Unsupported { what: "this".into() }, "this is not supported yet"),
            (cached, "cannot fetch a cached result from h/cache: gone"),
            (git("no"), "failed to fetch remote https://h/r.git: no"),
            (ExecutorError::not_brought(), "a file tree is not here"),
        ] {
            assert_eq!(error.to_string(), want);
        }
    }

    #[test]
    fn processes_end_in_the_words_of_a_shell() {
        let not_started = ProcessStatus::NotStarted { code: 127, message: "x: not found".into() };
        for (status, code, want) in [
            (ProcessStatus::Code(3), 3, "exit code: 3"),
            (ProcessStatus::Signal(15), 143, "exit code: 143"),
            (ProcessStatus::OutOfMemory, 137, "cannot allocate memory: killed by the memory limit, exit code: 137"),
            (not_started, 127, "x: not found, exit code: 127"),
        ] {
            assert_eq!(status.code(), code);
            let error = ExecutorError::Process { command: "x".into(), status, log_tail: Vec::new(), disk_full: true };
            assert_eq!(error.to_string(), format!("process \"x\" did not complete successfully: {want}"));
            assert_eq!(error.hints(), [FULL_DISK_HINT]);
        }
    }

    #[test]
    fn hints_say_what_to_do() {
        let git = ExecutorError::Git { remote: String::new(), message: "git is not installed".into() };
        assert_eq!(git.hints(), ["install git (the Debian package is \"git\") and build again"]);
        assert_eq!(ExecutorError::write(b"a", Errno::DQUOT).hints(), [FULL_DISK_HINT]);
        let not_a_directory = ExecutorError::write(b"a", Errno::NOTDIR).hints();
        assert_eq!(not_a_directory, ["a part of the path is a file, not a directory"]);
        let known = ["nobody".to_owned(), "root".to_owned()];
        assert_eq!(instead("user", "nobdy", "passwd", &known), "did you mean nobody?");
        let far = instead("user", "somebody-else", "passwd", &known);
        assert_eq!(far, "make the user in a step before, or use its number");
        let none = instead("group", "wheel", "group", &[]);
        assert_eq!(none, "there is no /etc/group with names here; use the number of the group");
    }
}
