//! Side by side with the test data that BuildKit keeps for its own parser and shell lexer.
//!
//! The data is not in this repository: `RBUILD_BUILDKIT` names a checkout of github.com/moby/buildkit, and without it
//! the comparison is skipped with a message. What it taught is in our own tests, which need nothing. The comparison is
//! of syntax, before instructions are judged, because BuildKit's parser files hold flags and instructions that no
//! frontend takes; so the lines are dumped here in BuildKit's notation from the pieces that instructions are read from.

use std::path::{Path, PathBuf};

use crate::instructions::CommandLine;
use crate::instructions::flags::Flags;
use crate::instructions::input::Input;
use crate::lower::words::{quoted, quoted_list};
use crate::syntax::lines::{self, Line};
use crate::syntax::words::{Budget, Lexer, Variables};
use crate::{Diagnostic, parse};

/// The commit that the numbers below were counted at: 73ed6825c4b7 of 2026-08-21.
const FILES: usize = 33;
const REFUSED: usize = 4;
const WORDS: usize = 228;
const LISTS: usize = 24;

/// Words of BuildKit's tables that come out otherwise here, with the reason.
const PERMITTED: [(&str, &str); 0] = [];

fn data(path: &str) -> Option<PathBuf> {
    let Some(root) = std::env::var_os("RBUILD_BUILDKIT") else {
        eprintln!("skipped: RBUILD_BUILDKIT does not name a checkout of BuildKit");
        return None;
    };
    Some(Path::new(&root).join("frontend/dockerfile").join(path))
}

fn folders(root: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<_> = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders
}

/// A file in BuildKit's notation: one expression for each instruction.
fn dump(text: &[u8]) -> Result<String, Vec<Diagnostic>> {
    let mut problems = Vec::new();
    let file = lines::read(text, &mut problems);
    let lines: Vec<String> = file.lines.iter().map(|line| expression(line, file.escape, &mut problems)).collect();
    let broken = problems.iter().any(Diagnostic::is_error);
    if broken { Err(problems) } else { Ok(lines.join("\n") + "\n") }
}

fn expression(line: &Line, escape: char, problems: &mut Vec<Diagnostic>) -> String {
    let name = line.name().to_lowercase();
    let mut words = vec![name.clone()];
    let flags: Vec<String> = line.head.flags.iter().map(|flag| flag.text.clone()).collect();
    if !flags.is_empty() {
        words.push(quoted_list(&flags));
    }
    let mut input = Input { name: "X", line, flags: Flags::default(), escape, problems };
    words.extend(arguments(&name, &mut input));
    format!("({})", words.join(" "))
}

fn arguments(name: &str, input: &mut Input<'_>) -> Vec<String> {
    let rest = input.line.rest().to_owned();
    if rest.is_empty() {
        return Vec::new();
    }
    let quote = |texts: Vec<crate::instructions::Text>| texts.iter().map(|text| quoted(&text.value)).collect();
    match name {
        "add" | "copy" | "volume" => input.paths().map(quote).unwrap_or_default(),
        "from" | "expose" => input.bare_words().map(quote).unwrap_or_default(),
        "arg" => input.quoted_words().map(quote).unwrap_or_default(),
        "cmd" | "entrypoint" | "run" | "shell" => match input.command_line() {
            Some(CommandLine::Exec(words)) => words.iter().map(|word| quoted(word)).collect(),
            Some(CommandLine::Shell(text)) => vec![quoted(&text)],
            None => Vec::new(),
        },
        "healthcheck" => {
            let (kind, command) = rest.split_once(char::is_whitespace).unwrap_or((&rest, ""));
            let command = match crate::syntax::grammar::exec(command) {
                crate::syntax::grammar::Exec::Strings(words) => words.iter().map(|word| quoted(&word.text)).collect(),
                _ if command.is_empty() => Vec::new(),
                _ => vec![quoted(command.trim())],
            };
            std::iter::once(quoted(kind)).chain(command).collect()
        }
        "env" | "label" => {
            let separator =
                if input.quoted_words().is_some_and(|words| words[0].value.contains('=')) { "=" } else { "" };
            let pairs = input.pairs().unwrap_or_default();
            let word = |pair: &crate::instructions::Pair| {
                [quoted(&pair.name.value), quoted(&pair.value.value), quoted(separator)]
            };
            pairs.iter().flat_map(word).collect()
        }
        "onbuild" => vec![expression(&input.line.trigger(input.escape), input.escape, input.problems)],
        "maintainer" | "stopsignal" | "user" | "workdir" => vec![quoted(&rest)],
        _ => vec![quoted("")],
    }
}

#[test]
fn files_are_taken_apart_as_by_buildkit() {
    let Some(root) = data("parser/testfiles") else { return };
    let mut same = 0;
    let mut differ = Vec::new();
    for folder in folders(&root) {
        let want = std::fs::read_to_string(folder.join("result")).unwrap();
        match dump(&std::fs::read(folder.join("Dockerfile")).unwrap()) {
            Ok(got) if got == want => same += 1,
            got => differ.push(format!("{}\nwant {want}\ngot {got:?}", folder.display())),
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n\n"));
    assert_eq!(same, FILES);
}

#[test]
fn files_are_refused_as_by_buildkit() {
    let Some(root) = data("parser/testfiles-negative") else { return };
    let refused = |folder: &PathBuf| {
        let text = std::fs::read(folder.join("Dockerfile")).unwrap();
        parse(&text, "Dockerfile").1.iter().any(Diagnostic::is_error)
    };
    let (refused, taken): (Vec<_>, Vec<_>) = folders(&root).into_iter().partition(refused);
    assert!(taken.is_empty(), "{taken:?}");
    assert_eq!(refused.len(), REFUSED);
}

/// As a list in which the last of a name counts.
struct Pairs(Vec<(String, String)>);

impl Variables for Pairs {
    fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }
}

fn compare(rows: impl Iterator<Item = (String, String, String)>) -> usize {
    let mut same = 0;
    let mut differ = Vec::new();
    for (source, want, got) in rows {
        match PERMITTED.iter().find(|(word, _)| *word == source) {
            None if got == want => same += 1,
            None => differ.push(format!("{source}: want {want:?}, got {got:?}")),
            Some((_, reason)) => assert_ne!(got, want, "{source} is the same now; strike out: {reason}"),
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    same
}

#[test]
fn words_expand_as_by_buildkit() {
    let Some(path) = data("shell/envVarTest") else { return };
    let table = std::fs::read_to_string(path).unwrap();
    let pair = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let env = Pairs([("PWD", "/home"), ("SHELL", "bash"), ("KOREAN", "한국어"), ("NULL", "")].map(pair).into());
    let rows = table.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()).filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [platform, source, want] = cells[..] else { panic!("{line}") };
        let got = Lexer::new('\\').expand(source, &env, &mut Budget::new());
        let got = got.map_or_else(|_| "error".to_owned(), |expanded| expanded.text);
        (platform != "W").then(|| (source.to_owned(), want.to_owned(), got))
    });
    assert_eq!(compare(rows), WORDS);
}

#[test]
fn words_split_as_by_buildkit() {
    let Some(path) = data("shell/wordsTest") else { return };
    let table = std::fs::read_to_string(path).unwrap();
    let mut env = Pairs(Vec::new());
    let mut rows = Vec::new();
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        if let Some(entry) = line.strip_prefix("ENV ") {
            let (name, value) = entry.trim_start_matches(' ').split_once('=').unwrap();
            env.0.push((name.to_owned(), value.to_owned()));
            continue;
        }
        let (source, want) = line.split_once('|').unwrap_or_else(|| panic!("{line}"));
        let got = Lexer::new('\\').expand(source.trim(), &env, &mut Budget::new());
        let got = got.map_or_else(|_| "error".to_owned(), |expanded| expanded.words.join(","));
        rows.push((source.to_owned(), want.trim_start_matches(' ').to_owned(), got));
    }
    assert_eq!(compare(rows.into_iter()), LISTS);
}
