//! What the renderers share: cutting output into lines, and BuildKit's words for what a step is at.

use std::collections::HashMap;
use std::time::Duration;

use super::{Outcome, StepId, Unit};
use crate::terminal::clean_line;
use crate::units;

/// A line longer than this is shown in pieces, so that output without newlines costs bounded memory.
const LONGEST: usize = 16 << 10;

/// Cuts a stream of bytes into lines without their newlines.
#[derive(Debug, Default)]
pub struct LineBuffer {
    partial: Vec<u8>,
}

impl LineBuffer {
    /// The lines that `bytes` completes. A carriage return before the newline goes.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        let mut pieces = bytes.split(|b| *b == b'\n').peekable();
        while let Some(piece) = pieces.next() {
            self.partial.extend_from_slice(piece);
            if pieces.peek().is_some() {
                let mut line = std::mem::take(&mut self.partial);
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                lines.push(line);
            }
        }
        if self.partial.len() > LONGEST {
            lines.push(std::mem::take(&mut self.partial));
        }
        lines
    }

    /// What is left when the stream ends, if anything.
    pub fn rest(&mut self) -> Option<Vec<u8>> {
        Some(std::mem::take(&mut self.partial)).filter(|line| !line.is_empty())
    }
}

/// Time since the step started; zero when it did not (a cached one).
pub fn elapsed(started: Option<Duration>, at: Duration) -> Duration {
    at.saturating_sub(started.unwrap_or(at))
}

/// `DONE 0.3s`, `CACHED`, `ERROR: …`, `CANCELED`.
pub fn ended(outcome: &Outcome, took: Duration) -> String {
    match outcome {
        Outcome::Done => format!("DONE {}", seconds(took)),
        Outcome::Cached => "CACHED".into(),
        Outcome::Failed(message) => format!("ERROR: {}", clean_line(message)),
        _ => "CANCELED".into(),
    }
}

/// `1.2s`
pub fn seconds(time: Duration) -> String {
    format!("{:.1}s", time.as_secs_f64())
}

/// `transferring context: 1.2MB / 4MB 0.3s done`
pub fn progress_text(item: &str, current: u64, total: Option<u64>, unit: Unit, done: bool) -> String {
    let amount = |n: u64| match unit {
        Unit::Bytes => units::short_size(n),
        Unit::Files => format!("{n} files"),
    };
    let mut text = clean_line(item);
    match total.filter(|total| *total > current) {
        Some(total) => text.push_str(&format!(" {} / {}", amount(current), amount(total))),
        None if current > 0 => text.push_str(&format!(" {}", amount(current))),
        None => {}
    }
    if done {
        text.push_str(" done");
    }
    text
}

/// Which progress was worth a line of a log: the first of an item, each further tenth, and its end.
#[derive(Debug, Default)]
pub struct Told(HashMap<(StepId, String), Tenth>);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Tenth {
    Of(u64),
    Done,
}

impl Told {
    pub fn is_worth_a_line(&mut self, id: StepId, item: &str, current: u64, total: Option<u64>, done: bool) -> bool {
        let now = match total {
            _ if done => Tenth::Done,
            Some(total) if total > 0 => Tenth::Of(current.saturating_mul(10) / total),
            // An open end: each doubling.
            _ => Tenth::Of(u64::from(u64::BITS - current.leading_zeros())),
        };
        self.0.insert((id, item.to_owned()), now) != Some(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_lines() {
        let mut buffer = LineBuffer::default();
        assert_eq!(buffer.push(b"one\r\ntw"), [b"one"]);
        assert_eq!(buffer.push(b"o\n\nthree"), [&b"two"[..], b""]);
        assert_eq!(buffer.rest().unwrap(), b"three");
        assert!(buffer.rest().is_none());
        assert_eq!(buffer.push(&[b'x'; LONGEST + 1]).len(), 1);
    }

    #[test]
    fn amounts() {
        assert_eq!(
            progress_text("transferring context:", 2048, None, Unit::Bytes, true),
            "transferring context: 2.05kB done"
        );
        assert_eq!(progress_text("sha256:abc", 1_000_000, Some(4_000_000), Unit::Bytes, false), "sha256:abc 1MB / 4MB");
        assert_eq!(progress_text("checked", 12, Some(12), Unit::Files, false), "checked 12 files");
    }

    #[test]
    fn a_tenth_is_worth_a_line_once() {
        let mut told = Told::default();
        let mut lines = 0;
        for n in 0..=1000 {
            lines += usize::from(told.is_worth_a_line(StepId(1), "blob", n, Some(1000), n == 1000));
        }
        assert_eq!(lines, 11);
    }
}
