//! From bytes to joined lines: byte order mark, line ends, directives, comments, continuations, heredocs.
//!
//! By hand and not by grammar, because the escape directive changes where a line ends and a heredoc ends at a word
//! chosen in the line that opens it. Each joined line remembers where its pieces came from.

use std::ops::Range;

use rbuild_graph::Span;
use rbuild_oci::limits;

use super::grammar::{self, Exec, Head};
use super::heredoc::Heredoc;
use crate::Diagnostic;
use crate::lint::NO_EMPTY_CONTINUATION;

/// One instruction's text.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// Joined, comments within taken out; heredocs are not in it.
    pub(crate) text: String,
    pub(crate) head: Head,
    pub(crate) heredocs: Vec<Heredoc>,
    /// The comment lines right before it.
    pub(crate) comments: Vec<String>,
    /// First to last line, heredocs included.
    pub(crate) span: Span,
    origin: Origin,
}

/// Where the bytes of a joined line come from.
#[derive(Debug, Clone)]
enum Origin {
    /// Pieces by ascending place in the joined line; the offset is added to a place first.
    Pieces { pieces: Vec<Piece>, offset: usize },
    /// All from one place: a trigger of a base image.
    Fixed(Span),
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    joined: usize,
    file: usize,
    line: u32,
}

impl Line {
    /// Where a stretch of the joined line stands in the file.
    pub(crate) fn span_of(&self, range: Range<usize>) -> Span {
        let (pieces, offset) = match &self.origin {
            Origin::Fixed(span) => return *span,
            Origin::Pieces { pieces, offset } => (pieces, *offset),
        };
        let find = |place: usize| {
            let after = pieces.partition_point(|piece| piece.joined <= place);
            pieces.get(after.saturating_sub(1)).map(|piece| (piece.file + (place - piece.joined), piece.line))
        };
        let last = range.end.saturating_sub(1).max(range.start);
        match (find(range.start + offset), find(last + offset)) {
            (Some((start, line)), Some((end, end_line))) => {
                Span { start, end: end + usize::from(!range.is_empty()), line, end_line }
            }
            _ => self.span,
        }
    }

    /// The number of the last line before the heredocs.
    pub(crate) fn last_joined(&self) -> u32 {
        match &self.origin {
            Origin::Pieces { pieces, .. } if !self.heredocs.is_empty() => {
                pieces.last().map_or(self.span.line, |piece| piece.line)
            }
            _ => self.span.end_line,
        }
    }

    /// The instruction as written.
    pub(crate) fn name(&self) -> &str {
        &self.text[self.head.name.clone()]
    }

    /// What follows instruction and flags.
    pub(crate) fn rest(&self) -> &str {
        &self.text[self.head.rest.clone()]
    }

    /// What follows, as a line of its own: the trigger of ONBUILD.
    pub(crate) fn trigger(&self, escape: char) -> Line {
        let range = self.head.rest.clone();
        let text = self.text[range.clone()].to_owned();
        let origin = match &self.origin {
            Origin::Fixed(span) => Origin::Fixed(*span),
            Origin::Pieces { pieces, offset } => {
                Origin::Pieces { pieces: pieces.clone(), offset: offset + range.start }
            }
        };
        Line {
            head: grammar::head(&text, escape),
            text,
            heredocs: self.heredocs.clone(),
            comments: Vec::new(),
            span: self.span,
            origin,
        }
    }
}

/// `# key=value` at the top of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Directive {
    pub(crate) value: String,
    pub(crate) span: Span,
}

/// A file taken apart.
#[derive(Debug, Clone)]
pub(crate) struct Lines {
    pub(crate) lines: Vec<Line>,
    pub(crate) escape: char,
    pub(crate) syntax: Option<Directive>,
    pub(crate) check: Option<Directive>,
}

/// Reads a whole file.
pub(crate) fn read(text: &[u8], problems: &mut Vec<Diagnostic>) -> Lines {
    let empty = Lines { lines: Vec::new(), escape: '\\', syntax: None, check: None };
    if text.is_empty() {
        problems.push(Diagnostic::error("the Dockerfile cannot be empty").hint("the least is a FROM line"));
        return empty;
    }
    if text.len() as u64 > limits::DOCKERFILE {
        let message = format!("the Dockerfile has {} bytes, more than the limit of {}", text.len(), limits::DOCKERFILE);
        problems.push(Diagnostic::error(message));
        return empty;
    }
    match std::str::from_utf8(text) {
        Ok(text) => {
            let mut lines = Reader::new(text, None).read(problems);
            lines.syntax = lines.syntax.or_else(|| other_form_of_syntax(text));
            lines
        }
        Err(error) => {
            let start = error.valid_up_to();
            let line = 1 + text[..start].iter().filter(|b| **b == b'\n').count() as u32;
            let span = Span { start, end: start + 1, line, end_line: line };
            let message = "the Dockerfile is not valid UTF-8";
            problems.push(Diagnostic::error(message).at(span).expected("text encoded as UTF-8"));
            empty
        }
    }
}

/// Reads the text of a trigger; whatever it says, it says at `span`.
pub(crate) fn read_trigger(text: &str, span: Span, problems: &mut Vec<Diagnostic>) -> Vec<Line> {
    Reader::new(text, Some(span)).read(problems).lines
}

struct Reader<'a> {
    text: &'a str,
    /// The next byte to read.
    at: usize,
    /// The line read last, from 1.
    line: u32,
    escape: char,
    fixed: Option<Span>,
    /// Directives stand at the top only.
    directives_over: bool,
    syntax: Option<Directive>,
    check: Option<Directive>,
    escape_seen: bool,
    /// The file begins with `#!`. Then directives may follow that say what the file is, and none that says how to read
    /// it, for a shell reads it too.
    shebang: bool,
    comments: Vec<String>,
}

/// A physical line: text without its end, and where it starts.
#[derive(Clone, Copy)]
struct Physical<'a> {
    text: &'a str,
    start: usize,
    line: u32,
}

impl<'a> Physical<'a> {
    fn span(&self) -> Span {
        Span { start: self.start, end: self.start + self.text.len(), line: self.line, end_line: self.line }
    }

    fn without_indent(self) -> Physical<'a> {
        let text = self.text.trim_start();
        Physical { text, start: self.start + (self.text.len() - text.len()), ..self }
    }

    fn is_comment(&self) -> bool {
        self.text.trim_start().starts_with('#')
    }
}

impl<'a> Reader<'a> {
    fn new(text: &'a str, fixed: Option<Span>) -> Reader<'a> {
        Reader {
            text,
            at: if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 },
            line: 0,
            escape: '\\',
            fixed,
            directives_over: false,
            syntax: None,
            check: None,
            escape_seen: false,
            shebang: false,
            comments: Vec::new(),
        }
    }

    fn read(mut self, problems: &mut Vec<Diagnostic>) -> Lines {
        let mut lines = Vec::new();
        while let Some(physical) = self.next() {
            let physical = physical.without_indent();
            let was_directive = self.directive(physical, problems);
            if physical.is_comment() {
                if !was_directive {
                    self.comment(physical);
                }
            } else if !physical.text.is_empty() {
                lines.push(self.join(physical, problems));
            }
        }
        Lines { lines, escape: self.escape, syntax: self.syntax, check: self.check }
    }

    fn next(&mut self) -> Option<Physical<'a>> {
        let (text, start) = self.next_raw()?;
        Some(Physical { text: text.trim_end_matches(['\r', '\n']), start, line: self.line })
    }

    /// The next line with its end.
    fn next_raw(&mut self) -> Option<(&'a str, usize)> {
        let start = self.at;
        let rest = self.text.get(start..).filter(|rest| !rest.is_empty())?;
        let length = rest.find('\n').map_or(rest.len(), |end| end + 1);
        self.at += length;
        self.line += 1;
        Some((&rest[..length], start))
    }

    /// Comments are kept for the instruction behind them, where they describe it; an empty one starts over.
    fn comment(&mut self, physical: Physical<'_>) {
        match physical.text[1..].trim() {
            "" => self.comments.clear(),
            comment => self.comments.push(comment.to_owned()),
        }
    }

    /// Reads a directive, if this is one. The first line that is none ends them.
    fn directive(&mut self, physical: Physical<'_>, problems: &mut Vec<Diagnostic>) -> bool {
        if self.directives_over {
            return false;
        }
        if physical.line == 1 && physical.text.starts_with("#!") {
            self.shebang = true;
            return true;
        }
        let Some((key, value)) = key_value(physical.text).filter(|(key, _)| !(self.shebang && key == "escape")) else {
            self.directives_over = true;
            return false;
        };
        let span = physical.span();
        let directive = Directive { value: value.to_owned(), span };
        let seen = match key.as_str() {
            "syntax" => self.syntax.replace(directive).is_some(),
            "check" => self.check.replace(directive).is_some(),
            _ => {
                match value {
                    "\\" => self.escape = '\\',
                    "`" => self.escape = '`',
                    _ => problems.push(
                        Diagnostic::error(format!("invalid escape token '{value}' does not match ` or \\"))
                            .at(span)
                            .expected("` or \\"),
                    ),
                }
                std::mem::replace(&mut self.escape_seen, true)
            }
        };
        if seen {
            problems.push(Diagnostic::error(format!("only one {key} parser directive can be used")).at(span));
        }
        true
    }

    /// Joins the lines that continue this one and cuts its heredocs out.
    fn join(&mut self, first: Physical<'a>, problems: &mut Vec<Diagnostic>) -> Line {
        let mut text = String::new();
        let mut pieces = Vec::new();
        let mut empty_line = None;
        let mut end = first.start + first.text.len();
        let mut physical = Some(first);
        while let Some(current) = physical {
            if current.line != first.line && (current.is_comment() || current.text.trim_start().is_empty()) {
                if !current.is_comment() {
                    empty_line = Some(current.span());
                }
                physical = self.next();
                continue;
            }
            let (kept, continues) = without_continuation(current.text, self.escape);
            pieces.push(Piece { joined: text.len(), file: current.start, line: current.line });
            text.push_str(kept);
            end = current.start + current.text.len();
            physical = if continues { self.next() } else { None };
        }
        if let (Some(span), None) = (empty_line, self.fixed) {
            problems.push(
                NO_EMPTY_CONTINUATION
                    .warn("Empty continuation line")
                    .at(span)
                    .hint("take the line out, or put a # at its start"),
            );
        }
        let head = grammar::head(&text, self.escape);
        let mut line = Line {
            text,
            head,
            heredocs: Vec::new(),
            comments: std::mem::take(&mut self.comments),
            span: Span { start: first.start, end, line: first.line, end_line: self.line },
            origin: Origin::Pieces { pieces, offset: 0 },
        };
        if let Some(at) = line.text.find('\0') {
            let problem = Diagnostic::error("an instruction cannot hold a NUL byte").at(line.span_of(at..at + 1));
            problems.push(problem.expected("text").hint("only the content of a heredoc for COPY or ADD can hold one"));
        }
        self.heredocs(&mut line, problems);
        if let Some(span) = self.fixed {
            line.span = span;
            line.origin = Origin::Fixed(span);
        }
        line
    }

    fn heredocs(&mut self, line: &mut Line, problems: &mut Vec<Diagnostic>) {
        if !line.text.contains("<<") || !may_hold_heredocs(line, self.escape) {
            return;
        }
        let opened = match Heredoc::all(&line.text) {
            Ok(opened) => opened,
            Err(error) => {
                problems.push(Diagnostic::error(error.to_string()).at(line.span));
                return;
            }
        };
        for mut heredoc in opened {
            let start = self.at;
            let mut end = None;
            while let Some((text, at)) = self.next_raw() {
                let word = text.trim_end_matches(['\r', '\n']);
                let word = if heredoc.chomp { word.trim_start_matches('\t') } else { word };
                if word == heredoc.name {
                    end = Some((at, at + text.trim_end().len()));
                    break;
                }
            }
            let Some((end, line_end)) = end else {
                let span = line.span;
                problems.push(
                    Diagnostic::error("unterminated heredoc")
                        .at(span)
                        .expected(format!("a line with only {} behind it", heredoc.name)),
                );
                return;
            };
            heredoc.content = self.text[start..end].to_owned();
            line.heredocs.push(heredoc);
            line.span.end = line_end;
            line.span.end_line = self.line;
        }
    }
}

/// `# key = value` of a directive that exists, the key in lower case.
fn key_value(line: &str) -> Option<(String, &str)> {
    let (key, value) = line.strip_prefix('#')?.trim_start().split_once('=')?;
    let key = key.trim_end().to_ascii_lowercase();
    let value = value.trim();
    (matches!(key.as_str(), "syntax" | "escape" | "check") && !value.is_empty()).then_some((key, value))
}

/// What another language's file says of its frontend: `// syntax=…` at the top, or `{"syntax": "…"}`. Such a file is no
/// Dockerfile, but who wrote it is to be told about the frontend and not about the first mistake in it.
fn other_form_of_syntax(text: &str) -> Option<Directive> {
    let text = text.trim_start_matches('\u{feff}');
    let (skipped, rest) = match text.split_once('\n') {
        Some((first, rest)) if first.starts_with("#!") => (1, rest),
        _ => (0, text),
    };
    let at = |line: usize| {
        let start = text.split_inclusive('\n').take(line).map(str::len).sum();
        let line = line as u32 + 1;
        let length = text[start..].lines().next().map_or(0, str::len);
        Span { start, end: start + length, line, end_line: line }
    };
    let mut comments = rest.lines().map(|line| line.trim_start().strip_prefix("//").map(|line| format!("#{line}")));
    for (n, line) in comments.by_ref().map_while(|line| line).enumerate() {
        match key_value(&line) {
            Some((key, value)) if key == "syntax" => {
                return Some(Directive { value: value.to_owned(), span: at(skipped + n) });
            }
            Some(_) => {}
            None => break,
        }
    }
    if !rest.trim_start().starts_with('{') {
        return None;
    }
    let value: serde_json::Value = serde_json::from_str(rest).ok()?;
    Some(Directive { value: value.get("syntax")?.as_str()?.to_owned(), span: at(skipped) })
}

/// Whether the line goes on: one escape character at its end, not two. Gives the text before it.
fn without_continuation(line: &str, escape: char) -> (&str, bool) {
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(kept) if !kept.ends_with(escape) => (kept, true),
        _ => (line, false),
    }
}

/// RUN, COPY and ADD take heredocs, also as triggers, but not in exec form.
fn may_hold_heredocs(line: &Line, escape: char) -> bool {
    let takes = |name: &str| ["RUN", "COPY", "ADD"].iter().any(|other| other.eq_ignore_ascii_case(name));
    if line.name().eq_ignore_ascii_case("ONBUILD") {
        let trigger = line.trigger(escape);
        return takes(trigger.name()) && !matches!(grammar::exec(trigger.rest()), Exec::Strings(_));
    }
    takes(line.name()) && !matches!(grammar::exec(line.rest()), Exec::Strings(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(text: &str) -> (Vec<String>, Vec<String>) {
        let mut problems = Vec::new();
        let lines = read(text.as_bytes(), &mut problems);
        (
            lines.lines.into_iter().map(|line| line.text).collect(),
            problems.into_iter().map(|p| format!("{}: {}", p.span.map_or(0, |s| s.line), p.message)).collect(),
        )
    }

    #[test]
    fn lines_join() {
        let text = "\u{feff}# c\r\n\r\n  from a\r\nRUN x \\  \r\n # inside\r\n   b \\\n\n\n  c\nRUN y\\\\\nRUN z \\";
        let (lines, problems) = joined(text);
        assert_eq!(lines, ["from a", "RUN x    b   c", "RUN y\\\\", "RUN z "]);
        assert_eq!(problems, ["8: Empty continuation line"]);
    }

    #[test]
    fn directives_stand_at_the_top_once() {
        let read = |text: &str| super::read(text.as_bytes(), &mut Vec::new());
        let lines = read("# Escape = ` \n#syntax=docker/dockerfile:1\nRUN a `\n b\n# check=skip=all\n");
        assert_eq!((lines.escape, lines.lines.len(), lines.lines[0].text.as_str()), ('`', 1, "RUN a  b"));
        assert_eq!(lines.syntax.map(|d| d.value).as_deref(), Some("docker/dockerfile:1"));
        assert!(lines.check.is_none());
        assert_eq!(read("# note\n# escape=`\nRUN a").escape, '\\');
        assert_eq!(read("\n# escape=`\nRUN a").escape, '\\');
        let (_, problems) = joined("# escape=x\n# escape=`\nFROM a");
        assert_eq!(
            problems,
            ["1: invalid escape token 'x' does not match ` or \\", "2: only one escape parser directive can be used"]
        );
    }

    #[test]
    fn comments_describe_what_follows() {
        let mut problems = Vec::new();
        let lines = read(b"# syntax=x\n# one\n#\n# two\n\n# three\nFROM a\n# four\nRUN b", &mut problems);
        assert_eq!(lines.lines[0].comments, ["two", "three"]);
        assert_eq!(lines.lines[1].comments, ["four"]);
    }

    #[test]
    fn heredocs_are_cut_out() {
        let text = "RUN <<A cat <<-'B' \\\n && x\na1\nA\n\tb1\n\tB\nONBUILD COPY <<C /\nc\nC\nCMD <<D\nRUN [\"<<E\"]\nRUN <<F\n";
        let mut problems = Vec::new();
        let lines = read(text.as_bytes(), &mut problems).lines;
        let docs = |i: usize| lines[i].heredocs.iter().map(|h| (h.name.clone(), h.text())).collect::<Vec<_>>();
        assert_eq!(docs(0), [("A".into(), "a1\n".into()), ("B".into(), "b1\n".into())]);
        assert_eq!((lines[0].span.line, lines[0].span.end_line), (1, 6));
        assert_eq!(docs(1), [("C".into(), "c\n".into())]);
        assert!(docs(2).is_empty() && docs(3).is_empty());
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].message, "unterminated heredoc");
    }

    #[test]
    fn places_in_a_joined_line_are_places_in_the_file() {
        let text = "FROM a\nRUN one \\\n# no\n two\n";
        let lines = read(text.as_bytes(), &mut Vec::new()).lines;
        let line = &lines[1];
        let two = line.text.find("two").unwrap();
        let span = line.span_of(two..two + 3);
        assert_eq!((&text[span.start..span.end], span.line, span.end_line), ("two", 4, 4));
        let all = line.span_of(0..line.text.len());
        assert_eq!((all.line, all.end_line), (2, 4));
        assert_eq!(&text[line.span.start..line.span.end], "RUN one \\\n# no\n two");
    }

    #[test]
    fn a_file_that_is_no_text_has_its_place() {
        assert_eq!(joined("").1, ["0: the Dockerfile cannot be empty"]);
        let mut problems = Vec::new();
        read(b"FROM a\nRUN \xff", &mut problems);
        assert_eq!(problems[0].span.unwrap(), Span { start: 11, end: 12, line: 2, end_line: 2 });
    }
}
