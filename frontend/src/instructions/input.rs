//! What an instruction is read from.

use super::Text;
use super::flags::Flags;
use crate::Diagnostic;
use crate::syntax::grammar::{self, Exec, Word};
use crate::syntax::heredoc::Heredoc;
use crate::syntax::lines::Line;

/// One line and the ways to take its arguments apart.
pub(crate) struct Input<'a> {
    /// The instruction in capitals.
    pub(crate) name: &'static str,
    pub(crate) line: &'a Line,
    pub(crate) flags: Flags,
    pub(crate) escape: char,
    pub(crate) problems: &'a mut Vec<Diagnostic>,
}

/// A command in shell or exec form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CommandLine {
    /// For a shell; may be empty.
    Shell(String),
    Exec(Vec<String>),
}

/// `name=value`, or the old `name value`.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) name: Text,
    pub(crate) value: Text,
}

impl Input<'_> {
    /// Reports a mistake of the whole line.
    pub(crate) fn refuse<T>(&mut self, message: impl Into<String>) -> Option<T> {
        self.problems.push(Diagnostic::error(message).at(self.line.span));
        None
    }

    pub(crate) fn report<T>(&mut self, problem: Diagnostic) -> Option<T> {
        self.problems.push(problem);
        None
    }

    fn text(&self, word: Word) -> Text {
        let start = self.line.head.rest.start;
        let span = self.line.span_of(word.range.start + start..word.range.end + start);
        Text { value: word.text, span }
    }

    pub(crate) fn texts(&self, words: Vec<Word>) -> Vec<Text> {
        words.into_iter().map(|word| self.text(word)).collect()
    }

    /// Everything behind the flags as one argument.
    pub(crate) fn one(&mut self) -> Option<Text> {
        let rest = self.line.rest();
        if rest.is_empty() {
            return self.refuse(format!("{} requires exactly one argument", self.name));
        }
        Some(Text { value: rest.to_owned(), span: self.line.span_of(self.line.head.rest.clone()) })
    }

    /// Words between spaces; at least one.
    pub(crate) fn bare_words(&mut self) -> Option<Vec<Text>> {
        let words = self.texts(grammar::bare_words(self.line.rest()));
        self.at_least_one(words)
    }

    /// Words with their quotes; at least one.
    pub(crate) fn quoted_words(&mut self) -> Option<Vec<Text>> {
        let words = self.texts(grammar::quoted_words(self.line.rest(), self.escape));
        self.at_least_one(words)
    }

    fn at_least_one(&mut self, words: Vec<Text>) -> Option<Vec<Text>> {
        if words.is_empty() {
            return self.refuse(format!("{} requires at least one argument", self.name));
        }
        Some(words)
    }

    /// A JSON array of strings; `Some(None)` when it is something else.
    pub(crate) fn exec(&mut self) -> Option<Option<Vec<Text>>> {
        match grammar::exec(self.line.rest()) {
            Exec::Strings(words) => Some(Some(self.texts(words))),
            Exec::No => Some(None),
            Exec::Mixed => {
                let span = self.line.span_of(self.line.head.rest.clone());
                let message = "when using JSON array syntax, arrays must be comprised of strings only";
                self.report(Diagnostic::error(message).at(span).expected("[\"string\", …]"))
            }
        }
    }

    /// Paths: a JSON array, or words.
    pub(crate) fn paths(&mut self) -> Option<Vec<Text>> {
        match self.exec()? {
            Some(words) => Some(words),
            None => Some(self.texts(heredoc_words(self.line.rest()))),
        }
    }

    /// A command in either form.
    pub(crate) fn command_line(&mut self) -> Option<CommandLine> {
        Some(match self.exec()? {
            Some(words) => CommandLine::Exec(words.into_iter().map(|word| word.value).collect()),
            None => CommandLine::Shell(self.line.rest().to_owned()),
        })
    }

    /// `a=b c=d`, or the old `a b c` whose value is the rest of the line.
    pub(crate) fn pairs(&mut self) -> Option<Vec<Pair>> {
        let words = self.quoted_words()?;
        if !words[0].value.contains('=') {
            return self.old_pair();
        }
        let mut pairs = Vec::with_capacity(words.len());
        for word in words {
            match word.value.split_once('=') {
                Some((name, value)) if !name.is_empty() => {
                    let text = |value: &str| Text { value: value.to_owned(), span: word.span };
                    pairs.push(Pair { name: text(name), value: text(value) });
                }
                Some(_) => {
                    let problem = Diagnostic::error(format!("{} names can not be blank", self.name)).at(word.span);
                    self.problems.push(problem);
                }
                None => {
                    let message =
                        format!("Syntax error - can't find = in {:?}. Must be of the form: name=value", word.value);
                    let problem = Diagnostic::error(message)
                        .at(word.span)
                        .expected("name=value")
                        .hint("quote a value that holds spaces");
                    self.problems.push(problem);
                }
            }
        }
        Some(pairs)
    }

    fn old_pair(&mut self) -> Option<Vec<Pair>> {
        let rest = self.line.rest();
        let Some((name, value)) = rest.split_once(['\t', '\u{b}', '\u{c}', '\r', ' ']) else {
            return self.refuse(format!("{} must have two arguments", self.name));
        };
        let word = |value: &str, start: usize| Word { text: value.to_owned(), range: start..start + value.len() };
        let trimmed = value.trim_start();
        let start = rest.len() - trimmed.len();
        Some(vec![Pair { name: self.text(word(name, 0)), value: self.text(word(trimmed, start)) }])
    }
}

/// Words between spaces, where `<< EOF` is one word.
fn heredoc_words(text: &str) -> Vec<Word> {
    let mut words: Vec<Word> = Vec::new();
    for word in grammar::bare_words(text) {
        match words.last_mut() {
            Some(last) if matches!(last.text.trim_start_matches(|c: char| c.is_ascii_digit()), "<<" | "<<-") => {
                last.text.push_str(&word.text);
                last.range.end = word.range.end;
            }
            _ => words.push(word),
        }
    }
    words
}

/// The heredoc that a path word opens, with its content.
pub(crate) fn heredoc_of(word: &str, heredocs: &[Heredoc]) -> Option<Heredoc> {
    let opened = Heredoc::open(word).ok()??;
    heredocs.iter().rev().find(|heredoc| heredoc.name == opened.name).cloned()
}
