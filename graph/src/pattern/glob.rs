//! Wildcards over paths, on bytes, in time linear in the path.
//!
//! Two dialects with one automaton: Go's `filepath.Match`, which COPY sources use, and the patterns of moby's
//! patternmatcher, which ignore files and `--exclude` use. Both are finite automata, so a pattern is run by keeping
//! the set of its live positions as bits of a word and never by trying and going back; a pattern written to be slow
//! is not. A regular expression engine would do the same for more code, and its syntax would leak into the patterns.

use thiserror::Error;

/// A pattern that cannot be read, in Go's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("syntax error in pattern")]
pub struct BadPattern;

/// A compiled pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    program: Vec<Element>,
    /// By ASCII character, which elements take it, for programs that fit a word.
    table: Option<Box<Table>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Element {
    Char(u32),
    /// `?`: any character but `/`.
    Any,
    /// `*`: any number of characters but `/`.
    Star,
    /// `**` in the middle: nothing, or anything that ends in `/`. Three elements: where to leave it out from, the run,
    /// and the slash that ends it.
    DeepStart,
    DeepRun,
    DeepSlash,
    /// `**` at the end: anything.
    Rest,
    Class {
        negated: bool,
        ranges: Vec<(u32, u32)>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Table {
    takes: [u64; 128],
    /// Elements that may stay where they are after taking a character.
    stays: u64,
    /// Elements that may be left out.
    skips: u64,
    /// `DeepStart`s: left out together with the two elements behind them.
    deep: u64,
}

/// Bytes that are not UTF-8 are characters of their own, above Unicode.
const RAW_BYTE: u32 = 0x11_0000;
const SLASH: u32 = b'/' as u32;
/// One bit is the accepting position.
const WORD: usize = 63;

impl Pattern {
    /// Go's `filepath.Match`: `*`, `?`, `[a-z]`, `[^a]` and `\` before a character to take as it is.
    ///
    /// # Errors
    /// A class without end or without content, a `\` at the end.
    pub fn new(pattern: &[u8]) -> Result<Pattern, BadPattern> {
        let mut chars = Chars(pattern);
        let mut program = Vec::new();
        while let Some(c) = chars.next() {
            match u8::try_from(c) {
                Ok(b'*') => push_star(&mut program),
                Ok(b'?') => program.push(Element::Any),
                Ok(b'[') => program.push(class(&mut chars)?),
                Ok(b'\\') => program.push(Element::Char(chars.next().ok_or(BadPattern)?)),
                _ => program.push(Element::Char(c)),
            }
        }
        Ok(Pattern::compile(program))
    }

    /// moby's patternmatcher: as [`Pattern::new`], and `**` crosses directories.
    ///
    /// # Errors
    /// As [`Pattern::new`].
    pub fn ignore(pattern: &[u8]) -> Result<Pattern, BadPattern> {
        let mut chars = Chars(pattern);
        let mut program = Vec::new();
        if let Some(end) = plain_end(pattern) {
            chars = Chars(end);
            program.push(Element::Rest);
        }
        while let Some(c) = chars.next() {
            match u8::try_from(c) {
                Ok(b'*') if chars.eat(b'*') => {
                    chars.eat(b'/');
                    match chars.0.is_empty() {
                        true => program.push(Element::Rest),
                        false => program.extend([Element::DeepStart, Element::DeepRun, Element::DeepSlash]),
                    }
                }
                Ok(b'*') => push_star(&mut program),
                Ok(b'?') => program.push(Element::Any),
                Ok(b'[') => program.push(class(&mut chars)?),
                Ok(b'\\') => program.push(Element::Char(chars.next().ok_or(BadPattern)?)),
                _ => program.push(Element::Char(c)),
            }
        }
        Ok(Pattern::compile(program))
    }

    fn compile(program: Vec<Element>) -> Pattern {
        let table = (program.len() <= WORD).then(|| Box::new(Table::of(&program)));
        Pattern { program, table }
    }

    /// Whether the whole path matches.
    pub fn matches(&self, path: &[u8]) -> bool {
        self.run(path).accepts(self.program.len())
    }

    /// Whether some path that begins with this one matches: with `dir/`, whether something below `dir` may match.
    pub fn may_match_from(&self, prefix: &[u8]) -> bool {
        self.run(prefix).alive()
    }

    fn run(&self, path: &[u8]) -> Live {
        match &self.table {
            Some(table) => Live::Word(table.run(&self.program, path)),
            None => Live::Many(self.run_long(path)),
        }
    }

    /// For programs longer than a word: the same with a list of flags.
    fn run_long(&self, path: &[u8]) -> Vec<bool> {
        let n = self.program.len();
        let mut live = vec![false; n + 1];
        live[0] = true;
        self.close(&mut live);
        for c in Chars(path) {
            let mut next = vec![false; n + 1];
            for (i, element) in self.program.iter().enumerate().filter(|(i, _)| live[*i]) {
                if element.takes(c) {
                    next[if element.stays() { i } else { i + 1 }] = true;
                }
            }
            self.close(&mut next);
            live = next;
        }
        live
    }

    fn close(&self, live: &mut [bool]) {
        for (i, element) in self.program.iter().enumerate() {
            if live[i] && element.skips() {
                live[i + 1] = true;
            }
            if live[i] && *element == Element::DeepStart {
                live[i + 3] = true;
            }
        }
    }
}

enum Live {
    Word(u64),
    Many(Vec<bool>),
}

impl Live {
    fn accepts(&self, end: usize) -> bool {
        match self {
            Live::Word(bits) => bits >> end & 1 == 1,
            Live::Many(flags) => flags[end],
        }
    }

    fn alive(&self) -> bool {
        match self {
            Live::Word(bits) => *bits != 0,
            Live::Many(flags) => flags.contains(&true),
        }
    }
}

impl Table {
    fn of(program: &[Element]) -> Table {
        let bits = |test: &dyn Fn(&Element) -> bool| {
            program.iter().enumerate().filter(|(_, e)| test(e)).fold(0u64, |bits, (i, _)| bits | 1 << i)
        };
        let mut takes = [0; 128];
        for (c, entry) in (0u32..).zip(takes.iter_mut()) {
            *entry = bits(&|element| element.takes(c));
        }
        Table {
            takes,
            stays: bits(&Element::stays),
            skips: bits(&Element::skips),
            deep: bits(&|element| *element == Element::DeepStart),
        }
    }

    fn run(&self, program: &[Element], path: &[u8]) -> u64 {
        let mut live = self.close(1);
        for c in Chars(path) {
            let takes = match self.takes.get(c as usize) {
                Some(bits) => *bits,
                None => (0..program.len()).filter(|i| program[*i].takes(c)).fold(0, |bits, i| bits | 1 << i),
            };
            let took = live & takes;
            live = self.close((took & self.stays) | ((took & !self.stays) << 1));
            if live == 0 {
                break;
            }
        }
        live
    }

    /// Adds what is reached without taking a character. Each round reaches at least one position more.
    fn close(&self, mut live: u64) -> u64 {
        loop {
            let more = live | ((live & self.skips) << 1) | ((live & self.deep) << 3);
            if more == live {
                return live;
            }
            live = more;
        }
    }
}

impl Element {
    fn takes(&self, c: u32) -> bool {
        match self {
            Element::Char(own) => *own == c,
            Element::Any | Element::Star => c != SLASH,
            Element::DeepRun | Element::Rest => true,
            Element::DeepStart => false,
            Element::DeepSlash => c == SLASH,
            Element::Class { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
            }
        }
    }

    fn stays(&self) -> bool {
        matches!(self, Element::Star | Element::DeepRun | Element::Rest)
    }

    fn skips(&self) -> bool {
        self.stays() || *self == Element::DeepStart
    }
}

fn push_star(program: &mut Vec<Element>) {
    if program.last() != Some(&Element::Star) {
        program.push(Element::Star);
    }
}

/// The class whose `[` was just read.
fn class(chars: &mut Chars<'_>) -> Result<Element, BadPattern> {
    let negated = chars.eat(b'^');
    let mut ranges = Vec::new();
    loop {
        if !ranges.is_empty() && chars.eat(b']') {
            return Ok(Element::Class { negated, ranges });
        }
        let low = class_char(chars)?;
        let high = if chars.eat(b'-') { class_char(chars)? } else { low };
        ranges.push((low, high));
    }
}

fn class_char(chars: &mut Chars<'_>) -> Result<u32, BadPattern> {
    match chars.next() {
        None => Err(BadPattern),
        Some(c) if c == u32::from(b'-') || c == u32::from(b']') => Err(BadPattern),
        Some(c) if c == u32::from(b'\\') => chars.next().ok_or(BadPattern),
        Some(c) => Ok(c),
    }
}

/// The characters of a path.
struct Chars<'a>(&'a [u8]);

impl Chars<'_> {
    fn eat(&mut self, byte: u8) -> bool {
        let found = self.0.first() == Some(&byte);
        if found {
            self.0 = &self.0[1..];
        }
        found
    }
}

impl Iterator for Chars<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let first = *self.0.first()?;
        let length = match first {
            0..=0x7f => {
                self.0 = &self.0[1..];
                return Some(u32::from(first));
            }
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        let head = self.0.get(..length).and_then(|bytes| std::str::from_utf8(bytes).ok());
        match head.and_then(|text| text.chars().next()) {
            Some(c) => {
                self.0 = &self.0[length..];
                Some(c.into())
            }
            None => {
                self.0 = &self.0[1..];
                Some(RAW_BYTE + u32::from(first))
            }
        }
    }
}

/// Whether a path holds a wildcard that is not escaped.
pub fn has_wildcards(path: &[u8]) -> bool {
    let mut bytes = path.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'*' | b'?' | b'[' => return true,
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
    false
}

/// A path with wildcards, component by component, to be walked from a directory downwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathGlob {
    pub components: Vec<Component>,
}

/// One component of a [`PathGlob`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Component {
    /// Exactly this name, escapes undone.
    Name(Vec<u8>),
    Wild(Pattern),
    /// `**`: any number of directories, also none.
    Deep,
}

impl PathGlob {
    /// Splits a path. Empty components and `.` are dropped; `..` stays and is the walker's to confine. `**` is
    /// [`Component::Deep`] only if `deep` (as with `COPY --parents`), else the same as `*`.
    ///
    /// # Errors
    /// A component that is no pattern.
    pub fn parse(path: &[u8], deep: bool) -> Result<PathGlob, BadPattern> {
        let mut components = Vec::new();
        for part in path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".") {
            components.push(match part {
                b"**" if deep => Component::Deep,
                _ if has_wildcards(part) => Component::Wild(Pattern::new(part)?),
                _ => Component::Name(unescape(part)),
            });
        }
        Ok(PathGlob { components })
    }
}

fn unescape(part: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(part.len());
    let mut bytes = part.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => name.extend(bytes.next()),
            _ => name.push(*byte),
        }
    }
    name
}

/// What follows `**` where nothing else is special and no slash comes first: moby then compares the end of the path, so that
/// `**log` is also `catalog`, which with any other wildcard in it it would not be.
fn plain_end(pattern: &[u8]) -> Option<&[u8]> {
    let end = pattern.strip_prefix(b"**")?;
    let is_plain = !end.is_empty() && !end.starts_with(b"/") && !end.iter().any(|byte| b"*?[]\\".contains(byte));
    is_plain.then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_file_patterns() {
        // From the documentation of Go's path/filepath.Match.
        for (pattern, path, want) in [
            ("*.txt", "a.txt", true),
            ("*.txt", "d/a.txt", false),
            ("?.txt", "a.txt", true),
            ("?.txt", "é.txt", true),
            ("?", "/", false),
            ("[ab].*", "b.x", true),
            ("[^ab].*", "b.x", false),
            ("[a-c]", "b", true),
            ("[é-ü]", "ö", true),
            ("s*/*.txt", "sub/d.txt", true),
            ("s*/*.txt", "sub/x/d.txt", false),
            (r"\*", "*", true),
            (r"\*", "a", false),
            ("a*b*c", "aXbXbc", true),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("**", "a/b", false),
        ] {
            assert_eq!(Pattern::new(pattern.as_bytes()).unwrap().matches(path.as_bytes()), want, "{pattern} {path}");
        }
        for bad in ["[", "[]", "[a", "a\\", "[a-]", "[-x]", "[^]"] {
            assert_eq!(Pattern::new(bad.as_bytes()), Err(BadPattern), "{bad}");
        }
        assert!(Pattern::new(b"a?").unwrap().matches(b"a\xff"), "a byte that is no UTF-8 is a character");
    }

    #[test]
    fn moby_patterns() {
        for (pattern, path, want) in [
            ("**", "a/b", true),
            ("**/*.tmp", "x.tmp", true),
            ("**/*.tmp", "a/b/x.tmp", true),
            ("**/foo", "foo", true),
            ("**/foo", "a/foo", true),
            ("**/foo", "afoo", false),
            ("a/**", "a/b/c", true),
            ("a/**", "a", false),
            ("a/**/b", "a/b", true),
            ("a/**/b", "a/x/y/b", true),
            ("a/**/b", "a/xb", false),
            ("*", "a/b", false),
            ("a.c", "abc", false),
            // Stars that are no component of their own.
            ("**log", "log", true),
            ("**log", "var/app.log", true),
            ("**log", "catalog", true),
            ("**log", "var/logs", false),
            ("**l[o]g", "catalog", false),
            ("**l[o]g", "var/log", true),
            ("v**/*.md", "v/r.md", true),
            ("v**/*.md", "v/x/y/r.md", true),
            ("v**/*.md", "w/r.md", false),
            ("v/*.md**", "v/r.md", true),
            ("v/*.md**", "v/r.md.old/x", true),
            ("v/*.md", "v/x/r.md", false),
            // Several of them.
            ("**/**", "p/q", true),
            ("**/**/*.md", "r.md", true),
            ("**/**/*.md", "p/q/s/r.md", true),
            ("**/**/*.md", "p/q/r.mdx", false),
            ("**/k/*", "p/k/r", true),
            ("**/k/*", "p/k/q/r", false),
            ("**/k/**", "p/k/q/r", true),
            ("**/k/**", "p/k", false),
            ("**/.env", "x/.env", true),
            ("**/.env", "x.env", false),
            ("**/k/r", "k/r", true),
            ("**/k/r", "p/pk/r", false),
            ("**/r*.m*", "p/q/rx.md", true),
            // What is special elsewhere is itself here.
            ("q(w)e/r", "q(w)e/r", true),
            ("q(w)e/r", "qwe/r", false),
            ("q.|)$(}+{w", "q.|)$(}+{w", true),
            ("wheels/*.whl", "wheels/n-1.0rc1+g0a1b-py3-none-any.whl", true),
            ("wheels/n-1.0+g0.whl", "wheels/n-1.0+g0.whl", true),
            ("wheels/n-1.0+g0.whl", "wheels/n-1.00g0.whl", false),
            (".*", ".git", true),
            (".*", "git", false),
            // Escapes and classes.
            (r"q\*w", "q*w", true),
            (r"q\*w", "qxw", false),
            (r"q\\", r"q\", true),
            (r"q\[w", "q[w", true),
            ("q[b-d]w", "qcw", true),
            ("q[b-d]w", "qw", false),
            ("q[^b-d]w", "qzw", true),
            ("q[^b-d]w", "qcw", false),
            ("q?w", "q/w", false),
            ("q?w", "q\u{263a}w", true),
            ("q[^a]w", "q\u{263a}w", true),
        ] {
            assert_eq!(Pattern::ignore(pattern.as_bytes()).unwrap().matches(path.as_bytes()), want, "{pattern} {path}");
        }
        let pattern = Pattern::ignore(b"d/keep/x").unwrap();
        assert!(pattern.may_match_from(b"d/") && pattern.may_match_from(b"d/keep/"));
        assert!(!pattern.may_match_from(b"d/other/"));
    }

    #[test]
    fn a_long_program_gives_the_same_as_a_short_one() {
        let long = format!("{}**/{}*b", "a".repeat(40), "*a".repeat(40));
        let pattern = Pattern::ignore(long.as_bytes()).unwrap();
        assert!(pattern.table.is_none());
        let head = "a".repeat(40);
        assert!(pattern.matches(format!("{head}x/y/{}b", "a".repeat(4000)).as_bytes()));
        assert!(!pattern.matches(format!("{head}x/y/{}", "a".repeat(4000)).as_bytes()));
        let short = Pattern::ignore(b"**/*a*a*a*a*a*a*a*a*b").unwrap();
        assert!(!short.matches(&b"a".repeat(4096)), "ends, and soon");
    }

    #[test]
    fn paths_split_into_components() {
        let glob = PathGlob::parse(b"/./a\\*b//s*/**/x", true).unwrap();
        assert_eq!(glob.components.len(), 4);
        assert_eq!(glob.components[0], Component::Name(b"a*b".to_vec()));
        assert!(matches!(glob.components[1], Component::Wild(_)));
        assert_eq!(glob.components[2], Component::Deep);
        assert!(has_wildcards(b"a?") && !has_wildcards(b"a\\?"));
    }
}
