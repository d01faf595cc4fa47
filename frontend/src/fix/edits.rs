//! What would do away with a finding, rule by rule.

use std::ops::Range;

use rbuild_graph::Span;

use crate::syntax::lines::{self, Line};
use crate::{Diagnostic, Dockerfile, Facts, LowerOptions, Lowered, Outcome, lower};

/// The label that says what MAINTAINER said.
pub(super) const AUTHORS: &str = "org.opencontainers.image.authors";

/// Words at the start of a command that a shell understands and no program is.
const SHELL_WORDS: &[&str] = &[
    ".", ":", "alias", "bg", "break", "builtin", "case", "cd", "command", "continue", "declare", "do", "done", "echo",
    "elif", "else", "esac", "eval", "exec", "exit", "export", "fg", "fi", "for", "function", "getopts", "hash", "if",
    "in", "jobs", "kill", "let", "local", "printf", "pwd", "read", "readonly", "return", "select", "set", "shift",
    "source", "test", "then", "time", "times", "trap", "type", "typeset", "ulimit", "umask", "unalias", "unset",
    "until", "wait", "while",
];

/// Bytes that become others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Edit {
    range: Range<usize>,
    text: String,
}

/// The text with the edits made; of two that overlap, the first. What is put at the same place stands in the order given.
pub(super) fn apply<'a>(text: &str, edits: impl Iterator<Item = &'a Edit>) -> String {
    let mut edits: Vec<&Edit> = edits.collect();
    edits.sort_by_key(|edit| (edit.range.start, edit.range.end));
    let mut edited = String::with_capacity(text.len());
    let mut at = 0;
    for edit in edits {
        if edit.range.start < at {
            continue;
        }
        edited.push_str(&text[at..edit.range.start]);
        edited.push_str(&edit.text);
        at = edit.range.end;
    }
    edited + &text[at..]
}

/// A text taken apart, to find what a finding is about.
pub(super) struct Place<'a> {
    text: &'a str,
    escape: char,
    lines: Vec<Line>,
    file: &'a Dockerfile,
    options: &'a LowerOptions,
    facts: &'a Facts,
}

impl<'a> Place<'a> {
    pub(super) fn new(text: &'a str, file: &'a Dockerfile, options: &'a LowerOptions, facts: &'a Facts) -> Place<'a> {
        let read = lines::read(text.as_bytes(), &mut Vec::new());
        Place { text, escape: read.escape, lines: read.lines, file, options, facts }
    }

    /// The instruction around a span.
    fn line(&self, span: Span) -> Option<&Line> {
        let after = self.lines.partition_point(|line| line.span.line <= span.line);
        self.lines[..after].last().filter(|line| span.line <= line.span.end_line)
    }

    /// The file's bytes of a stretch of a joined line; `None` when something of the file lies between them.
    fn range(&self, line: &Line, range: Range<usize>) -> Option<Range<usize>> {
        let span = line.span_of(range.clone());
        (self.text.get(span.start..span.end)? == line.text.get(range)?).then_some(span.start..span.end)
    }

    fn replace(&self, line: &Line, range: Range<usize>, text: impl Into<String>) -> Option<Edit> {
        Some(Edit { range: self.range(line, range)?, text: text.into() })
    }

    /// Puts text before the byte at `place` of the joined line.
    fn insert(&self, line: &Line, place: usize, text: &str) -> Option<Edit> {
        let at = self.range(line, place..place + 1)?.start;
        Some(Edit { range: at..at, text: text.to_owned() })
    }

    /// Puts text behind the last word of the line.
    fn append(&self, line: &Line, text: &str) -> Option<Edit> {
        let rest = &line.head.rest;
        let last = line.rest().chars().next_back()?.len_utf8();
        let at = self.range(line, rest.end - last..rest.end)?.end;
        Some(Edit { range: at..at, text: text.to_owned() })
    }

    fn has(&self, name: &str) -> bool {
        self.lines.iter().any(|line| line.name().eq_ignore_ascii_case(name))
    }

    /// The stage that a span is in, as a result of its own.
    fn stage(&self, span: Span) -> Option<Lowered> {
        let index = self.file.stages.iter().rposition(|stage| stage.span.line <= span.line)?;
        let options = LowerOptions { target: Some(index.to_string()), ..self.options.clone() };
        match lower(self.file, &options, self.facts).0 {
            Outcome::Lowered(lowered) => lowered.into_iter().next(),
            Outcome::Missing(_) | Outcome::Failed => None,
        }
    }
}

/// What to change; `None` where no certain answer is known.
pub(super) fn of(found: &Diagnostic, place: &Place<'_>) -> Option<Vec<Edit>> {
    let span = found.span?;
    let line = place.line(span)?;
    match found.rule? {
        "ConsistentInstructionCasing" => instruction(&found.message, line, place),
        "FromAsCasing" => keyword(line, place),
        "StageNameCasing" => stage_name(line, place),
        "RedundantTargetPlatform" => platform(line, place),
        "MaintainerDeprecated" => maintainer(line, place),
        "LegacyKeyValueFormat" => old_pair(line, place),
        "ExposeProtoCasing" => protocol(span, place),
        "WorkdirRelativePath" => directory(span, line, place),
        "JSONArgsRecommended" => command(span, line, place),
        "NoEmptyContinuation" => Some(empty_lines(line, place)),
        _ => None,
    }
}

fn like(model: &str, word: &str) -> String {
    if model.chars().any(char::is_uppercase) { word.to_uppercase() } else { word.to_lowercase() }
}

/// The message says which casing most instructions have.
fn instruction(message: &str, line: &Line, place: &Place<'_>) -> Option<Vec<Edit>> {
    let name = if message.ends_with("(lowercase)") { line.name().to_lowercase() } else { line.name().to_uppercase() };
    Some(vec![place.replace(line, line.head.name.clone(), name)?])
}

/// The words of a FROM, by their places in the joined line.
fn from_word(line: &Line, index: usize) -> Option<Range<usize>> {
    let words = crate::syntax::grammar::bare_words(line.rest());
    let range = &words.get(index)?.range;
    Some(line.head.rest.start + range.start..line.head.rest.start + range.end)
}

fn keyword(line: &Line, place: &Place<'_>) -> Option<Vec<Edit>> {
    Some(vec![place.replace(line, from_word(line, 1)?, like(line.name(), "as"))?])
}

/// Stages are found by their names in any casing, so what refers to them may stay.
fn stage_name(line: &Line, place: &Place<'_>) -> Option<Vec<Edit>> {
    let range = from_word(line, 2)?;
    let name = line.text[range.clone()].to_lowercase();
    Some(vec![place.replace(line, range, name)?])
}

fn platform(line: &Line, place: &Place<'_>) -> Option<Vec<Edit>> {
    let flag = line.head.flags.iter().find(|flag| flag.text.starts_with("--platform="))?;
    let behind = &line.text[flag.range.end..];
    let gap = behind.len() - behind.trim_start().len();
    Some(vec![place.replace(line, flag.range.start..flag.range.end + gap, "")?])
}

fn maintainer(line: &Line, place: &Place<'_>) -> Option<Vec<Edit>> {
    let labelled = |line: &Line| line.name().eq_ignore_ascii_case("LABEL") && line.text.contains(AUTHORS);
    if place.lines.iter().any(labelled) {
        return None;
    }
    let rest = line.head.rest.clone();
    let mut edits = vec![place.replace(line, line.head.name.clone(), like(line.name(), "label"))?];
    edits.push(place.insert(line, rest.start, &format!("{AUTHORS}=\""))?);
    for (at, _) in line.rest().char_indices().filter(|(_, c)| matches!(*c, '"' | '$') || *c == place.escape) {
        edits.push(place.insert(line, rest.start + at, &place.escape.to_string())?);
    }
    edits.push(place.append(line, "\"")?);
    Some(edits)
}

fn old_pair(line: &Line, place: &Place<'_>) -> Option<Vec<Edit>> {
    let rest = line.rest();
    let name = rest.find(char::is_whitespace)?;
    let value = rest[name..].trim_start();
    let start = line.head.rest.start + rest.len() - value.len();
    let mut edits = vec![place.replace(line, line.head.rest.start + name..start, "=")?];
    // Quotes and escapes read the same in both forms, or else the fix is dropped.
    let has_marks = value.contains(['"', '\'', place.escape]);
    if value.contains(char::is_whitespace) && !has_marks {
        edits[0].text.push('"');
        edits.push(place.append(line, "\"")?);
    }
    Some(edits)
}

/// A port as it is written; one that comes from a variable is written elsewhere.
fn protocol(span: Span, place: &Place<'_>) -> Option<Vec<Edit>> {
    let word = place.text.get(span.start..span.end).filter(|word| !word.contains('$'))?;
    let at = span.start + word.rfind('/')? + 1;
    Some(vec![Edit { range: at..span.end, text: place.text[at..span.end].to_lowercase() }])
}

/// The base image's directory is known now, and written down it stays when the base changes.
fn directory(span: Span, line: &Line, place: &Place<'_>) -> Option<Vec<Edit>> {
    if line.rest().contains(['$', '"', '\'', place.escape]) {
        return None;
    }
    let stage = place.stage(span)?;
    let step = stage
        .history
        .iter()
        .find(|step| step.edge.is_some_and(|edge| stage.graph.vertex(edge.vertex).meta.span == Some(line.span)))?;
    let path = step.entry.created_by.strip_prefix("WORKDIR ")?;
    let path = path.strip_suffix(" # buildkit").unwrap_or(path);
    let plain = |c: char| c.is_alphanumeric() || "/._-+@ ".contains(c);
    let edit = place.replace(line, line.head.rest.clone(), path)?;
    path.chars().all(plain).then(|| vec![edit])
}

/// Plain words alone: then a shell would start the same program with the same arguments. And only where nothing else
/// decides what is started: of ENTRYPOINT and CMD, one.
fn command(span: Span, line: &Line, place: &Place<'_>) -> Option<Vec<Edit>> {
    let config = place.stage(span)?.config.config;
    let none = |list: &Option<Vec<String>>| list.as_ref().is_none_or(Vec::is_empty);
    let alone = match line.name().to_uppercase().as_str() {
        "CMD" => none(&config.entrypoint) && !place.has("ENTRYPOINT"),
        "ENTRYPOINT" => none(&config.cmd) && !place.has("CMD"),
        _ => false,
    };
    let words: Vec<&str> = line.rest().split_whitespace().collect();
    let plain = |word: &&str| word.chars().all(|c| c.is_ascii_alphanumeric() || "_-./:,+@%=".contains(c));
    let program = words.first()?;
    let is_program = !program.contains('=') && !SHELL_WORDS.contains(program);
    if !alone || !is_program || !words.iter().all(plain) {
        return None;
    }
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    Some(vec![place.replace(line, line.head.rest.clone(), format!("[{}]", quoted.join(", ")))?])
}

/// The empty lines between the first and the last line of an instruction; those of a heredoc are its own.
fn empty_lines(line: &Line, place: &Place<'_>) -> Vec<Edit> {
    let mut at = place.text[..line.span.start].rfind('\n').map_or(0, |end| end + 1);
    let mut edits = Vec::new();
    for (number, text) in (line.span.line..=line.last_joined()).zip(place.text[at..].split_inclusive('\n')) {
        if number > line.span.line && text.trim().is_empty() {
            edits.push(Edit { range: at..at + text.len(), text: String::new() });
        }
        at += text.len();
    }
    edits
}
