//! What a command ends with: a message, hints, and the exit code.
//!
//! Every exit code of the program is in this file. Commands never call `exit`: they return, so that
//! locks, terminals and temporary files are put right by `Drop`.

use std::borrow::Cow;
use std::process::ExitCode;

/// Exit codes, one table for all commands.
pub mod exit {
    /// Anything that went wrong and has no code of its own: a failed build, an image that is not there.
    pub const FAILURE: u8 = 1;
    /// `inspect`: the template is none (docker's 64).
    pub const BAD_TEMPLATE: u8 = 64;
    /// `run`, `create` and `exec`: rbuild itself failed, the program of the container was not started.
    pub const ENGINE: u8 = 125;
    /// `run` and `exec`: the program is there and cannot be executed.
    pub const NOT_EXECUTABLE: u8 = 126;
    /// `run` and `exec`: there is no such program.
    pub const NOT_FOUND: u8 = 127;
    /// Ended by a signal: this plus the signal's number, as shells say it.
    pub const SIGNAL: u8 = 128;
    /// The reader of standard output went away.
    pub const BROKEN_PIPE: u8 = 141;
}

/// Why a command failed, ready to be shown.
#[derive(Debug)]
pub struct CliError {
    /// Printed before the message as it is: a log tail, a source excerpt.
    pub preamble: String,
    /// The word before the message: `ERROR` for builds, `Error` elsewhere, `rbuild` for usage. Empty: no word.
    pub prefix: &'static str,
    /// One statement without a final full stop. Empty: nothing is printed, only the code counts.
    pub message: String,
    /// What the user could do, one line each.
    pub hints: Vec<String>,
    /// Exit code.
    pub code: u8,
}

impl CliError {
    /// An ordinary failure with code 1.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            preamble: String::new(),
            prefix: "Error",
            message: message.into(),
            hints: Vec::new(),
            code: exit::FAILURE,
        }
    }

    /// A failure that was reported already, or needs no words.
    pub fn silent(code: u8) -> Self {
        Self { prefix: "", code, ..Self::new("") }
    }

    /// Wrong use of the command line: docker's words, printed without a prefix.
    pub fn usage(message: impl Into<String>, code: u8) -> Self {
        Self { prefix: "", code, ..Self::new(message) }
    }

    pub fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    pub fn with_prefix(mut self, prefix: &'static str) -> Self {
        self.prefix = prefix;
        self
    }

    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// The text for standard error, with a final newline; empty for silent errors.
    pub fn render(&self) -> String {
        let mut text = self.preamble.clone();
        if !self.message.is_empty() {
            if !self.prefix.is_empty() {
                text.push_str(self.prefix);
                text.push_str(": ");
            }
            text.push_str(&plain_words(&self.message));
            text.push('\n');
        }
        for hint in &self.hints {
            text.push_str("hint: ");
            text.push_str(&plain_words(hint));
            text.push('\n');
        }
        text
    }

    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl std::fmt::Display for CliError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CliError {}

impl From<rbuild_engine::Error> for CliError {
    fn from(error: rbuild_engine::Error) -> Self {
        Self { hints: error.hints, ..Self::new(error.message) }
    }
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            Self::silent(exit::BROKEN_PIPE)
        } else {
            Self::new(error.to_string())
        }
    }
}

/// A message without the numbers that errors of the system have behind their words: `open x: no such file or directory`,
/// as docker and its language say it, not `open x: No such file or directory (os error 2)`.
pub fn plain_words(message: &str) -> Cow<'_, str> {
    const MARK: &str = " (os error ";
    let mut rest = message;
    let mut words = String::new();
    while let Some((before, behind)) = rest.split_once(MARK) {
        let number = behind.len() - behind.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let Some(after) = behind.get(number..).and_then(|after| after.strip_prefix(')')).filter(|_| number > 0) else {
            words.push_str(before);
            words.push_str(MARK);
            rest = behind;
            continue;
        };
        let start = before.rfind([':', '(', '\n']).map_or(0, |at| at + 1);
        let reason = before[start..].trim_start();
        words.push_str(&before[..before.len() - reason.len()]);
        let (first, others) = reason.split_at(reason.chars().next().map_or(0, char::len_utf8));
        words.push_str(&first.to_lowercase());
        words.push_str(others);
        rest = after;
    }
    if words.is_empty() {
        return Cow::Borrowed(message);
    }
    words.push_str(rest);
    Cow::Owned(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_system_have_words_and_no_numbers() {
        for (given, want) in [
            ("open x: No such file or directory (os error 2)", "open x: no such file or directory"),
            ("Is a directory (os error 21)", "is a directory"),
            ("a: Not a directory (os error 20); b: File exists (os error 17)!", "a: not a directory; b: file exists!"),
            ("it wrote (os error none)", "it wrote (os error none)"),
            ("it wrote (os error 2", "it wrote (os error 2"),
            ("nothing", "nothing"),
        ] {
            assert_eq!(plain_words(given), want, "{given}");
        }
        let shown = CliError::new("write y: No space left on device (os error 28)").render();
        assert_eq!(shown, "Error: write y: no space left on device\n");
    }
}
