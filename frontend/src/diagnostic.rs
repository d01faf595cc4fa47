//! What is wrong with a file, where, and what to do about it.
//!
//! A diagnostic is a value, not an error: parsing goes on after one, so that all mistakes of a file come in one run.
//! Messages have BuildKit's wording where it has one, because people search for it. Rendering is the caller's.

use rbuild_graph::Span;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    Warning,
    /// Nothing can be built.
    Error,
}

/// One thing to say about a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    pub severity: Severity,
    /// One line without full stop.
    pub message: String,
    /// `None` when it is about the whole build, say a target that does not exist.
    pub span: Option<Span>,
    /// What was expected at the span, a few words to stand beside the excerpt.
    pub label: Option<String>,
    /// What to try, one sentence each.
    pub hints: Vec<String>,
    /// The lint rule it comes from.
    pub rule: Option<&'static str>,
    /// A page that explains it.
    pub url: Option<&'static str>,
}

impl Diagnostic {
    pub fn error(message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(Severity::Error, message.into())
    }

    pub fn warning(message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(Severity::Warning, message.into())
    }

    /// What a file holds may get into a message; it stays one line, and harms no terminal.
    fn new(severity: Severity, mut message: String) -> Diagnostic {
        if message.contains(char::is_control) {
            let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
            message = message.chars().map(shown).collect();
        }
        Diagnostic { severity, message, span: None, label: None, hints: Vec::new(), rule: None, url: None }
    }

    pub fn at(mut self, span: Span) -> Diagnostic {
        self.span = Some(span);
        self
    }

    pub fn expected(mut self, label: impl Into<String>) -> Diagnostic {
        self.label = Some(label.into());
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Diagnostic {
        self.hints.push(hint.into());
        self
    }

    /// Appends BuildKit's `(did you mean x?)` when one of the options is near to what was written.
    pub fn suggest<'a>(mut self, written: &str, options: impl IntoIterator<Item = &'a str>) -> Diagnostic {
        if let Some(near) = nearest(written, options) {
            self.message.push_str(&format!(" (did you mean {near}?)"));
        }
        self
    }

    pub(crate) fn rule(mut self, rule: &'static str, url: Option<&'static str>) -> Diagnostic {
        self.rule = Some(rule);
        self.url = url;
        self
    }

    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// The most options that are compared, so that a file of many names with many mistakes in them stays quick to read.
const MOST_COMPARED: usize = 250;
/// The longest word that is compared; distance is quadratic, and nobody mistypes a word of a hundred letters.
const LONGEST_COMPARED: usize = 100;

/// The option within two edits of what was written; none when one is equal, for then the mistake is another.
pub fn nearest<'a>(written: &str, options: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let mut best = None;
    let mut least = 3;
    for option in options.into_iter().take(MOST_COMPARED) {
        if option == written {
            return None;
        }
        // Nothing but the same word is nearer than one edit.
        let distance = if least == 1 { 1 } else { distance(written, option, least) };
        if distance < least {
            (best, least) = (Some(option), distance);
        }
    }
    best
}

/// Edits (insert, delete, replace) from one word to another; `enough` when there are at least that many.
fn distance(from: &str, to: &str, enough: usize) -> usize {
    if from.len().abs_diff(to.len()) > 4 * enough || from.len().max(to.len()) > LONGEST_COMPARED {
        return enough;
    }
    let same = from.chars().zip(to.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
    let (from, to): (&str, &str) = (&from[same..], &to[same..]);
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()].min(enough)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line() {
        assert_eq!(Diagnostic::error("unsupported (\n\u{1b}) é").message, "unsupported (\\n\\u{1b}) é");
    }

    #[test]
    fn the_nearest_word_is_found_within_two_edits() {
        let names = ["RUN", "FROM", "COPY", "CMD"];
        assert_eq!(nearest("RUNN", names), Some("RUN"));
        assert_eq!(nearest("FORM", names), Some("FROM"));
        assert_eq!(nearest("CPOY", names), Some("COPY"));
        assert_eq!(nearest("RUN", names), None, "equal words are no suggestion");
        assert_eq!(nearest("ELEPHANT", names), None);
        assert_eq!(nearest(&"x".repeat(1 << 20), names), None);
    }
}
