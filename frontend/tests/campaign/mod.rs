//! Inputs by chance, and what must hold for every one of them.
//!
//! A seed gives an input, always the same one, so a number is all that a report needs. Inputs come from the golden
//! folders, broken in ways that people and transports break files, and from the pieces that files are made of; noise
//! alone never gets behind the first word.

mod pieces;

use std::path::Path;

use rbuild_frontend::ignore::IgnoreFile;
use rbuild_frontend::{
    Diagnostic, FactRequest, Facts, ImageFact, LowerOptions, NamedContext, Outcome, Purpose, lower, parse,
};
use rbuild_oci::{ContainerConfig, Digest, ImageConfig, Platform};

use pieces::PIECES;

/// What is tried.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// A Dockerfile, and whether it is only checked.
    File { text: Vec<u8>, check: bool },
    /// An ignore file and a path.
    Ignore { text: Vec<u8>, path: Vec<u8> },
}

/// A splitmix generator: any seed is as good as any other.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.roll() % end.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Somewhere in a text, mostly small.
    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        let most = if self.below(4) == 0 { length } else { 24 };
        start..(start + self.below(most + 1)).min(length)
    }
}

const WORD: [&str; 28] = [
    "$", "${", "}", "A", "B", "UNSET", ":-", "-", ":+", "+", ":?", "?", "#", "##", "%", "%%", "/", "//", "*", "?",
    "\\", "\"", "'", "x", "é", " ", "${A", "1",
];
const IGNORE: [&str; 22] = [
    "a", "b", "ab", "/", "*", "**", "**/", "/**", "?", "[", "]", "[a-c]", "[^a]", "\\", "!", "#", "\n", "\r\n", " ",
    ".", "..", "é",
];

/// What inputs are made from.
pub(crate) struct Corpus(Vec<Vec<u8>>);

impl Corpus {
    /// The Dockerfiles of the golden folders.
    pub(crate) fn golden() -> Corpus {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
        let entries = std::fs::read_dir(root).expect("testdata").map(|entry| entry.expect("an entry").path());
        let mut folders: Vec<_> = entries.filter(|path| path.is_dir()).collect();
        folders.sort();
        Corpus(folders.iter().map(|folder| std::fs::read(folder.join("Dockerfile")).expect("a Dockerfile")).collect())
    }

    /// The input of a seed.
    pub(crate) fn input(&self, seed: u64) -> Input {
        let mut dice = Dice(seed);
        let check = dice.below(4) == 0;
        match dice.below(8) {
            0 => Input::File { text: (0..dice.below(300)).map(|_| dice.roll() as u8).collect(), check },
            1 => Input::File { text: pieces(&mut dice, &PIECES, 60), check },
            2 => {
                let front = b"FROM busybox AS a\nARG B\nENV A=value B=\n".as_slice();
                Input::File { text: [front, &pieces(&mut dice, &PIECES, 60)].concat(), check }
            }
            3 => {
                let word = pieces(&mut dice, &WORD, 30);
                let line = [b"ENV X=".as_slice(), b"LABEL l=", b"WORKDIR /", b"COPY a "][dice.below(4)];
                Input::File { text: [b"FROM scratch\nENV A=a/b.c B=\n", line, &word].concat(), check }
            }
            4 => Input::Ignore { text: pieces(&mut dice, &IGNORE, 40), path: path(&mut dice) },
            _ => {
                let mut text = dice.pick(&self.0).clone();
                for _ in 0..=dice.below(6) {
                    self.mutate(&mut text, &mut dice);
                }
                Input::File { text, check }
            }
        }
    }

    fn mutate(&self, text: &mut Vec<u8>, dice: &mut Dice) {
        let range = dice.range(text.len());
        match dice.below(8) {
            0 => drop(text.drain(range)),
            1 => {
                let piece = dice.pick(&PIECES).as_bytes();
                drop(text.splice(range.start..range.start, piece.iter().copied()));
            }
            2 => {
                let other = dice.pick(&self.0);
                let part = other[dice.range(other.len())].to_vec();
                drop(text.splice(range, part));
            }
            3 => {
                let again = text[range.clone()].repeat(1 + dice.below(40));
                drop(text.splice(range, again));
            }
            4 => text[range].reverse(),
            5 => text[range].iter_mut().for_each(|byte| *byte ^= 1 << dice.below(8)),
            6 => text.truncate(range.start),
            _ => drop(text.splice(range.start..range.start, pieces(dice, &WORD, 12))),
        }
    }
}

fn pieces(dice: &mut Dice, from: &[&str], most: usize) -> Vec<u8> {
    (0..dice.below(most)).flat_map(|_| dice.pick(from).as_bytes()).copied().collect()
}

fn path(dice: &mut Dice) -> Vec<u8> {
    let names: Vec<&str> = (0..=dice.below(5)).map(|_| *dice.pick(&["a", "b", "ab", "é", "abc", ".", "x*"])).collect();
    names.join("/").into_bytes()
}

/// Tries an input.
///
/// # Panics
/// When something that must hold does not.
pub(crate) fn judge(input: &Input) {
    match input {
        Input::File { text, check } => judge_file(text, *check),
        Input::Ignore { text, path } => judge_ignore(text, path),
    }
}

/// Lowered on made-up images; a file fails exactly when an error is told, and every place told is in the file.
fn judge_file(text: &[u8], check: bool) {
    let (file, mut problems) = parse(text, "Dockerfile");
    let mut options = LowerOptions::new(Platform::new("linux", "amd64"));
    options.contexts.insert("b".to_owned(), NamedContext::Local);
    options.ignore = vec!["*.x".to_owned()];
    options.purpose = if check { Purpose::Check } else { Purpose::Build };
    let mut facts = Facts::default();
    let outcome = loop {
        let (outcome, found) = lower(&file, &options, &facts);
        let Outcome::Missing(requests) = outcome else {
            problems.extend(found);
            break outcome;
        };
        let before = facts.images.len();
        facts.images.extend(requests.into_iter().map(|request| {
            let FactRequest::ImageConfig { reference, platform, .. } = request else { panic!("{request:?}") };
            let config = ImageConfig {
                history: vec![Default::default()],
                config: ContainerConfig { on_build: vec!["RUN x".into(), "ENV ON=b".into()], ..Default::default() },
                ..Default::default()
            };
            ((reference, platform), ImageFact { digest: Digest::sha256_of(b"x"), config, pinned: true })
        }));
        assert!(facts.images.len() > before, "what is known is asked for again");
    };
    let failed = matches!(outcome, Outcome::Failed);
    assert_eq!(failed, problems.iter().any(Diagnostic::is_error), "{problems:?}");
    let utf8 = std::str::from_utf8(text).ok();
    for problem in &problems {
        assert!(!problem.message.is_empty() && !problem.message.contains('\n'), "{problem:?}");
        let Some(span) = problem.span else { continue };
        assert!(span.start <= span.end && span.end <= text.len(), "{problem:?}");
        assert!(span.line >= 1 && span.line <= span.end_line, "{problem:?}");
        assert!(utf8.is_none_or(|text| text.get(span.start..span.end).is_some()), "{problem:?}");
    }
    if let Outcome::Lowered(all) = outcome {
        assert_eq!(all.len(), 1);
    }
}

/// A path is judged alone as it is on the way down from its parents.
fn judge_ignore(text: &[u8], path: &[u8]) {
    let (ignore, _) = IgnoreFile::parse(text);
    let mut parent = None;
    for end in path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at).chain([path.len()]) {
        let (excluded, matched) = ignore.below(&path[..end], parent.as_ref().unwrap_or(&Default::default()));
        assert_eq!(excluded, ignore.matches(&path[..end]), "{:?}", String::from_utf8_lossy(&path[..end]));
        parent = Some(matched);
    }
}
