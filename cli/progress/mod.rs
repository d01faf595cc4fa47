//! Showing a build while it runs. One file per way of showing.

use crate::error::CliError;
use crate::settings::Settings;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Redrawn in place.
    Terminal,
    /// Numbered lines.
    Plain,
    /// One JSON object a line, buildx's `rawjson`.
    Json,
    /// Nothing but what went wrong.
    Quiet,
}

impl Mode {
    /// From `-q`, `--progress`, `BUILDKIT_PROGRESS` and what standard error is, in this order.
    ///
    /// # Errors
    /// An unknown word, or a terminal wanted where there is none.
    pub fn choose(quiet: bool, asked: Option<&str>, settings: &Settings) -> Result<Self, CliError> {
        Self::from_words(
            quiet,
            asked.or_else(|| settings.non_empty("BUILDKIT_PROGRESS")),
            console::Term::stderr().is_term(),
        )
    }

    fn from_words(quiet: bool, word: Option<&str>, is_terminal: bool) -> Result<Self, CliError> {
        match word.unwrap_or("auto") {
            _ if quiet => Ok(Self::Quiet),
            "auto" | "" => Ok(if is_terminal { Self::Terminal } else { Self::Plain }),
            "tty" if is_terminal => Ok(Self::Terminal),
            "tty" => Err(CliError::new("progress mode tty needs a terminal on standard error")),
            "plain" => Ok(Self::Plain),
            "rawjson" => Ok(Self::Json),
            "quiet" | "none" => Ok(Self::Quiet),
            other => Err(CliError::new(format!("invalid progress mode {other}"))
                .with_hint("modes are auto, tty, plain, rawjson, quiet and none")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        for (quiet, word, is_terminal, want) in [
            (false, None, true, Mode::Terminal),
            (false, None, false, Mode::Plain),
            (false, Some("auto"), false, Mode::Plain),
            (true, Some("plain"), true, Mode::Quiet),
            (false, Some("rawjson"), true, Mode::Json),
            (false, Some("none"), true, Mode::Quiet),
        ] {
            assert_eq!(Mode::from_words(quiet, word, is_terminal).unwrap(), want, "{word:?}");
        }
        assert!(Mode::from_words(false, Some("tty"), false).is_err());
        assert!(Mode::from_words(false, Some("fancy"), true).unwrap_err().message.contains("fancy"));
    }
}
