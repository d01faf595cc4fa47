//! Showing a build while it runs. One file per way of showing.

mod json;
mod lines;
mod look;
mod plain;
mod quiet;
pub mod transfer;
mod tty;

use std::io::IsTerminal as _;
use std::time::{Duration, Instant, SystemTime};

#[cfg(test)]
pub use rbuild_engine::StepKind;
pub use rbuild_engine::{Event, EventStream, LogStream, Outcome, StepId, Unit};

use crate::error::CliError;
use crate::settings::Settings;

/// How often a renderer may redraw, and looks for steps that fell silent.
const TICK: Duration = Duration::from_millis(100);

/// One way of showing events.
pub trait Renderer: Send {
    fn event(&mut self, event: &Event);
    /// Time passes; `now` is on the clock of the events.
    fn tick(&mut self, now: Duration);
    /// No more events will come.
    fn finish(&mut self, failed: bool, now: Duration);
}

/// Shows events until the stream ends, then gives the renderer back for its ending, which depends on the result.
pub async fn follow(mut events: EventStream, mut renderer: Box<dyn Renderer>) -> Box<dyn Renderer> {
    let start = Instant::now();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(event) => renderer.event(&event),
                None => return renderer,
            },
            _ = ticks.tick() => renderer.tick(start.elapsed()),
        }
    }
}

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

    /// The renderer of this mode; all write to standard error.
    pub fn renderer(self, settings: &Settings) -> Box<dyn Renderer> {
        let err = std::io::stderr();
        match self {
            Self::Terminal => Box::new(tty::Terminal::new(settings.colour(), look::Look::of(settings))),
            Self::Plain => {
                let is_terminal = err.is_terminal();
                Box::new(plain::Plain::new(std::io::BufWriter::new(err), is_terminal))
            }
            Self::Json => Box::new(json::Json::new(std::io::BufWriter::new(err), SystemTime::now())),
            Self::Quiet => Box::new(quiet::Quiet),
        }
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
