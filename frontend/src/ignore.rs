//! `.dockerignore`: which files of a context do not exist for the build.
//!
//! The rules are those of moby's patternmatcher. Patterns are tried in order and the last one that matches decides;
//! one with `!` brings back. A pattern matches a path when it matches it or one of its parents, so what is below an
//! excluded directory can be brought back one by one. Matching costs time linear in the path (see [`crate::glob`]).

use rbuild_graph::Span;

use crate::Diagnostic;
use crate::glob::{BadPattern, Pattern};

/// The patterns of an ignore file.
#[derive(Debug, Clone, Default)]
pub struct IgnoreFile {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone)]
struct Rule {
    brings_back: bool,
    /// As it is passed on: cleaned, `!` in front.
    text: String,
    pattern: Pattern,
}

/// Which patterns a directory, or one of its parents, matched; from [`IgnoreFile::below`].
#[derive(Debug, Clone, Default)]
pub struct Matched(Vec<bool>);

impl IgnoreFile {
    /// Reads an ignore file. Lines that are no patterns are reported and left out.
    pub fn parse(text: &[u8]) -> (IgnoreFile, Vec<Diagnostic>) {
        let mut file = IgnoreFile::default();
        let mut diagnostics = Vec::new();
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let mut start = 0;
        for (number, line) in (1u32..).zip(text.split(|b| *b == b'\n')) {
            let span = Span { start, end: start + line.len(), line: number, end_line: number };
            start += line.len() + 1;
            if line.starts_with(b"#") {
                continue;
            }
            match std::str::from_utf8(line) {
                Err(_) => diagnostics.push(Diagnostic::error("the line is not valid UTF-8").at(span)),
                Ok(line) => {
                    if let Some(pattern) = clean_line(line)
                        && let Err(problem) = file.push(&pattern)
                    {
                        diagnostics.push(problem.at(span));
                    }
                }
            }
        }
        (file, diagnostics)
    }

    /// From patterns as [`IgnoreFile::patterns`] gives them, or from `--exclude`.
    ///
    /// # Errors
    /// The first one that is no pattern.
    pub fn from_patterns<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<IgnoreFile, Diagnostic> {
        let mut file = IgnoreFile::default();
        for pattern in patterns {
            file.push(pattern)?;
        }
        Ok(file)
    }

    fn push(&mut self, pattern: &str) -> Result<(), Diagnostic> {
        let trimmed = pattern.trim();
        if trimmed.is_empty() {
            return Ok(());
        }
        let text = clean_path(trimmed);
        let (brings_back, path) = match text.strip_prefix('!') {
            Some(path) => (true, path),
            None => (false, text.as_str()),
        };
        if path.is_empty() {
            return Err(Diagnostic::error("illegal exclusion pattern: \"!\"").expected("a path behind the !"));
        }
        let bad = |BadPattern| {
            Diagnostic::error(format!("{BadPattern}: {path}"))
                .hint("a [ needs its ], and a backslash a character behind it")
        };
        let pattern = Pattern::ignore(path.as_bytes()).map_err(bad)?;
        self.rules.push(Rule { brings_back, text: text.clone(), pattern });
        Ok(())
    }

    /// The patterns in their order, cleaned, for whoever walks the files.
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().map(|rule| rule.text.as_str())
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether a path (relative to the context, without leading slash) does not exist for the build.
    ///
    /// A directory below which something may be brought back is not excluded: walk it, and leave it out if nothing
    /// was found.
    pub fn excludes(&self, path: &[u8], is_dir: bool) -> bool {
        let (excluded, _) = self.below(path, &self.parent_of(path));
        excluded && !(is_dir && self.may_bring_back_below(path))
    }

    /// Whether the last pattern that matches this path, or one of its parents, excludes it.
    pub fn matches(&self, path: &[u8]) -> bool {
        self.below(path, &self.parent_of(path)).0
    }

    /// As [`IgnoreFile::matches`] for a walk: takes what the parent directory matched ([`Matched::default`] at the
    /// top) and gives the same for this path, so that each path is matched once and not again for its parents.
    pub fn below(&self, path: &[u8], parent: &Matched) -> (bool, Matched) {
        let mut excluded = false;
        let mut matched = Vec::with_capacity(self.rules.len());
        for (i, rule) in self.rules.iter().enumerate() {
            let hit = parent.0.get(i).copied().unwrap_or(false) || rule.pattern.matches(path);
            matched.push(hit);
            if hit {
                excluded = !rule.brings_back;
            }
        }
        (excluded, Matched(matched))
    }

    /// Whether a pattern with `!` may match something below this directory.
    pub fn may_bring_back_below(&self, dir: &[u8]) -> bool {
        let mut prefix = dir.to_vec();
        prefix.push(b'/');
        self.rules.iter().any(|rule| rule.brings_back && rule.pattern.may_match_from(&prefix))
    }

    fn parent_of(&self, path: &[u8]) -> Matched {
        let mut matched = Matched::default();
        for (i, _) in path.iter().enumerate().filter(|(_, b)| **b == b'/') {
            matched = self.below(&path[..i], &matched).1;
        }
        matched
    }
}

/// A line of an ignore file as a pattern; `None` when it is blank.
fn clean_line(line: &str) -> Option<String> {
    let line = line.trim();
    let (mark, path) = match line.strip_prefix('!') {
        Some(path) => ("!", path.trim()),
        None => ("", line),
    };
    if path.is_empty() {
        return (mark == "!").then(|| mark.to_owned());
    }
    let mut path = clean_path(path);
    if path.len() > 1 && path.starts_with('/') {
        path.remove(0);
    }
    Some(format!("{mark}{path}"))
}

/// Go's `path.Clean`: no empty components, no `.`, `..` taken with the component before it.
pub(crate) fn clean_path(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut kept: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if kept.last().is_some_and(|last| *last != "..") => {
                kept.pop();
            }
            ".." if rooted => {}
            _ => kept.push(part),
        }
    }
    match (rooted, kept.join("/")) {
        (true, joined) => format!("/{joined}"),
        (false, joined) if joined.is_empty() => ".".into(),
        (false, joined) => joined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excluded<'a>(file: &str, paths: &[&'a str]) -> Vec<&'a str> {
        let (file, diagnostics) = IgnoreFile::parse(file.as_bytes());
        assert_eq!(diagnostics, []);
        paths.iter().copied().filter(|path| file.matches(path.as_bytes())).collect()
    }

    #[test]
    fn the_last_pattern_that_matches_decides() {
        let paths = ["README.md", "NOTES.md", "d", "d/a", "d/b", "d/keep", "d/keep/x", "ad"];
        assert_eq!(
            excluded("*.md\r\n!README.md\nd\n!d/b\n!d/keep/x\n", &paths),
            ["NOTES.md", "d", "d/a", "d/keep"],
            "re-inclusion works inside an excluded directory"
        );
        assert_eq!(excluded("*\n!README.md\nREADME.md", &paths), paths);
        assert_eq!(excluded("*\n!d", &paths), ["README.md", "NOTES.md", "ad"]);
    }

    #[test]
    fn lines_are_cleaned() {
        let (file, _) = IgnoreFile::parse(
            "\u{feff}# no\n #yes\n\n /a/./b/../c/ \n! x//y \n**/*.tmp\nnode_modules/\n.\n".as_bytes(),
        );
        assert_eq!(file.patterns().collect::<Vec<_>>(), ["#yes", "a/c", "!x/y", "**/*.tmp", "node_modules", "."]);
        let again = IgnoreFile::from_patterns(file.patterns()).unwrap();
        assert_eq!(again.patterns().collect::<Vec<_>>(), file.patterns().collect::<Vec<_>>());
    }

    #[test]
    fn stars_cross_directories_or_not() {
        let paths = ["x.tmp", "sub/y.tmp", "sub/deep/z.tmp", "node_modules/x/m"];
        assert_eq!(excluded("*.tmp", &paths), ["x.tmp"]);
        assert_eq!(excluded("**/*.tmp", &paths), ["x.tmp", "sub/y.tmp", "sub/deep/z.tmp"]);
        assert_eq!(excluded("node_modules", &paths), ["node_modules/x/m"]);
        assert_eq!(excluded("sub/**", &paths), ["sub/y.tmp", "sub/deep/z.tmp"]);
    }

    #[test]
    fn a_directory_is_walked_when_something_below_may_come_back() {
        let (file, _) = IgnoreFile::parse(b"d\ne\n!d/keep/x\n");
        assert!(!file.excludes(b"d", true) && file.excludes(b"e", true));
        assert!(file.excludes(b"d/other", true) && !file.excludes(b"d/keep", true));
        assert!(file.excludes(b"d/a", false) && !file.excludes(b"d/keep/x", false));
    }

    #[test]
    fn mistakes_have_their_line() {
        let (file, diagnostics) = IgnoreFile::parse(b"ok\n[a\n!\n\xff\nlast");
        assert_eq!(file.patterns().collect::<Vec<_>>(), ["ok", "last"]);
        assert_eq!(diagnostics.iter().map(|d| d.span.unwrap().line).collect::<Vec<_>>(), [2, 3, 4]);
        assert_eq!(diagnostics[0].message, "syntax error in pattern: [a");
    }
}
