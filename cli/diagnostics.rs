//! Showing where in a file something is wrong, in BuildKit's form:
//!
//! ```text
//! Dockerfile:4
//! --------------------
//!    2 |     RUN echo fine
//!    3 |     # comment
//!    4 | >>> COPY --form=build /a /b
//!      |          ^^^^^^^^^^^^
//!    5 |     RUN echo never
//! --------------------
//! ```
//!
//! People and scripts know this form from docker, so it is kept rather than a compiler's; a part of a line that is
//! meant gets a line of its own below it. What was expected and what to do about it follow behind the excerpt.

use std::io::IsTerminal as _;
use std::ops::RangeInclusive;

use rbuild_engine::{Diagnostic, Error, FailedStep, Severity, SourceText, Span};

use crate::error::CliError;
use crate::terminal::{clean, clean_line};

/// Lines of context before and behind the marked ones.
const AROUND: usize = 2;
/// A marked block longer than this loses its middle: a heredoc of a thousand lines is no excerpt.
const MOST_MARKED: usize = 20;

/// Mistakes that are shown with their excerpts; the last line counts them all.
const MOST_SHOWN: usize = 100;

/// What a tab is shown as.
const TAB: &str = "    ";

/// A failed build as the user sees it: the end of the step's output, where in the Dockerfile it is, what happened.
pub fn build_failure(error: &Error) -> CliError {
    let mut preamble = String::new();
    if let Some(step) = &error.step {
        preamble.push_str(&step_log(step, std::io::stderr().is_terminal()));
    }
    if let Some(source) = &error.source_text {
        let mistakes: Vec<&Diagnostic> = error.diagnostics.iter().filter(|d| d.severity == Severity::Error).collect();
        for mistake in mistakes.iter().take(MOST_SHOWN) {
            preamble.push_str(&diagnostic(mistake, source, mistakes.len() > 1));
        }
        if let Some(span) = error.span.filter(|_| mistakes.is_empty()) {
            preamble.push_str(&marked(&source.name, &source.text, span));
        }
    }
    let message = format!("failed to build: failed to solve: {}", clean(&error.message));
    CliError { preamble, prefix: "ERROR", hints: error.hints.clone(), ..CliError::new(message) }
}

/// The warnings of a build that succeeded; empty when there are none.
pub fn warnings(found: &[Diagnostic]) -> String {
    if found.is_empty() {
        return String::new();
    }
    let mut text = format!("\n {} warning{} found:\n", found.len(), if found.len() == 1 { "" } else { "s" });
    for warning in found {
        let rule = warning.rule.map(|rule| format!("{rule}: ")).unwrap_or_default();
        let place = warning.span.map(|span| format!(" (line {})", span.line)).unwrap_or_default();
        text.push_str(&format!(" - {rule}{}{place}\n", clean_line(&warning.message)));
        // A rule with a page explains itself there.
        if warning.url.is_none() {
            text.extend(warning.hints.iter().map(|hint| format!("   hint: {}\n", clean_line(hint))));
        }
    }
    text
}

/// One mistake: its excerpt, what was expected, what to try. The message itself when it is one of several;
/// a single one is told by the last line.
fn diagnostic(mistake: &Diagnostic, source: &SourceText, with_message: bool) -> String {
    let mut text = mistake.span.map(|span| marked(&source.name, &source.text, span)).unwrap_or_default();
    if with_message {
        text.push_str(&format!("error: {}\n", clean_line(&mistake.message)));
    }
    if let Some(expected) = &mistake.label {
        text.push_str(&format!("  expected {}\n", clean_line(expected)));
    }
    for hint in &mistake.hints {
        text.push_str(&format!("  hint: {}\n", clean_line(hint)));
    }
    if with_message { text + "\n" } else { text }
}

fn step_log(step: &FailedStep, cleaned: bool) -> String {
    let log = String::from_utf8_lossy(&step.log_tail);
    let log = if cleaned { clean(&log) } else { log };
    let newline = if log.is_empty() || log.ends_with('\n') { "" } else { "\n" };
    format!("------\n > {}:\n{log}{newline}------\n", clean_line(&step.name))
}

/// The excerpt of `text` around what is meant, with marks below a part of a line.
fn marked(name: &str, text: &str, span: Span) -> String {
    lines_around(name, text, span.line as usize..=span.end_line as usize, underline(text, span).as_deref())
}

/// Spaces and marks to stand below the line that holds the span; `None` when it is more than a part of one line.
fn underline(text: &str, span: Span) -> Option<String> {
    let written = text.get(span.start..span.end).filter(|written| !written.is_empty() && !written.contains('\n'))?;
    let start = text[..span.start].rfind('\n').map_or(0, |end| end + 1);
    let line = text[start..].lines().next().unwrap_or_default();
    if written.trim() == line.trim() {
        return None;
    }
    let shown = |text: &str| clean_line(&text.replace('\t', TAB)).chars().count();
    Some(format!("{}{}", " ".repeat(shown(&text[start..span.start])), "^".repeat(shown(written))))
}

/// The excerpt of `text` around the lines `marked` (from 1), with a final newline.
pub fn excerpt(name: &str, text: &str, marked: RangeInclusive<usize>) -> String {
    lines_around(name, text, marked, None)
}

/// As [`excerpt`], with a line below the first of those marked.
fn lines_around(name: &str, text: &str, marked: RangeInclusive<usize>, below: Option<&str>) -> String {
    const RULE: &str = "--------------------\n";
    let lines: Vec<&str> = text.lines().collect();
    let start = (*marked.start()).clamp(1, lines.len().max(1));
    let end = (*marked.end()).clamp(start, lines.len().max(start));
    let mut out = format!("{}:{start}\n{RULE}", clean_line(name));
    let first = start.saturating_sub(AROUND).max(1);
    let last = (end + AROUND).min(lines.len());
    for number in first..=last {
        let is_marked = (start..=end).contains(&number);
        let offset = number.saturating_sub(start);
        if is_marked
            && end - start >= MOST_MARKED
            && (MOST_MARKED / 2..=end - start - MOST_MARKED / 2).contains(&offset)
        {
            if offset == MOST_MARKED / 2 {
                out.push_str("     | >>> …\n");
            }
            continue;
        }
        let mark = if is_marked { ">>>" } else { "   " };
        let line = lines[number - 1].replace('\t', TAB);
        out.push_str(format!(" {number:>3} | {mark} {}", clean_line(&line)).trim_end());
        out.push('\n');
        if let Some(below) = below.filter(|_| number == start) {
            out.push_str(&format!("     |     {below}\n"));
        }
    }
    out + RULE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_marked_between_its_neighbours() {
        let text = "FROM busybox\nRUN echo fine\n# comment\nRUN exit 42\nRUN echo never\n\nRUN more\n";
        let want = "Dockerfile:4\n--------------------\n   2 |     RUN echo fine\n   3 |     # comment\n   4 | >>> RUN exit 42\n   5 |     RUN echo never\n   6 |\n--------------------\n";
        assert_eq!(excerpt("Dockerfile", text, 4..=4), want);
    }

    #[test]
    fn a_part_of_a_line_is_marked_below_it() {
        let text = "FROM x\n\tCOPY é --form=a b\n";
        let span = |part: &str, line| {
            let start = text.find(part).unwrap();
            Span { start, end: start + part.len(), line, end_line: line }
        };
        let want = "D:2\n--------------------\n   1 |     FROM x\n   2 | >>>     COPY é --form=a b\n     |                ^^^^^^^^\n--------------------\n";
        assert_eq!(marked("D", text, span("--form=a", 2)), want);
        for whole in ["FROM x", "FROM x\n\tCOPY", ""] {
            assert_eq!(underline(text, span(whole, 1)), None, "{whole:?}");
        }
        let beyond = Span { start: 5, end: 500, line: 1, end_line: 1 };
        assert_eq!(underline(text, beyond), None, "a place that is not in the text");
    }

    #[test]
    fn edges_of_the_file() {
        let want = "D:1\n--------------------\n   1 | >>> FROM \\\n   2 | >>>   x\n--------------------\n";
        assert_eq!(excerpt("D", "FROM \\\n  x", 1..=2), want);
        assert_eq!(excerpt("D", "", 9..=9), "D:1\n--------------------\n--------------------\n");
        let long: String = (1..=100).map(|n| format!("line {n}\n")).collect();
        let shown = excerpt("D", &long, 10..=90);
        assert!(shown.contains("…") && shown.contains("line 90") && shown.lines().count() < 35, "{shown}");
        assert!(!excerpt("D", "RUN \u{1b}[2Jx", 1..=1).contains('\u{1b}'));
    }
}
