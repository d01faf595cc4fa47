//! `.dockerignore`: which files of a context do not exist for the build.
//!
//! The rules are those of moby's patternmatcher. Patterns are tried in order and the last one that matches decides;
//! one with `!` brings back. A pattern matches a path when it matches it or one of its parents, so what is below an
//! excluded directory can be brought back one by one. See [`rbuild_graph::pattern`], which matches in linear time.

use std::ops::Deref;

use rbuild_graph::Span;
use rbuild_graph::pattern::{PatternError, Patterns, clean_path};

use crate::Diagnostic;

/// The patterns of an ignore file. What they match is asked of [`Patterns`], to which this dereferences.
#[derive(Debug, Clone, Default)]
pub struct IgnoreFile {
    patterns: Patterns,
}

impl Deref for IgnoreFile {
    type Target = Patterns;

    fn deref(&self) -> &Patterns {
        &self.patterns
    }
}

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

    fn push(&mut self, pattern: &str) -> Result<(), Diagnostic> {
        self.patterns.push(pattern).map_err(|error| {
            let mistake = Diagnostic::error(error.to_string());
            match error {
                PatternError::NothingExcluded => mistake.expected("a path behind the !"),
                PatternError::Syntax(_) => mistake.hint("a [ needs its ], and a backslash a character behind it"),
            }
        })
    }

    /// The patterns in their order, cleaned, for whoever walks the files.
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        self.patterns.iter()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn excluded<'a>(file: &str, paths: &[&'a str]) -> Vec<&'a str> {
        let (file, diagnostics) = IgnoreFile::parse(file.as_bytes());
        assert_eq!(diagnostics, []);
        paths.iter().copied().filter(|path| file.matches(path.as_bytes())).collect()
    }

    #[test]
    fn mistakes_say_what_was_expected() {
        let text = b"ok\n!\na[b\n\xff\n";
        let said: Vec<String> = IgnoreFile::parse(text)
            .1
            .into_iter()
            .map(|p| format!("{} {} {:?} {:?}", p.span.map_or(0, |span| span.line), p.message, p.label, p.hints))
            .collect();
        assert_eq!(
            said,
            [
                "2 illegal exclusion pattern: \"!\" Some(\"a path behind the !\") []",
                "3 syntax error in pattern: a[b None [\"a [ needs its ], and a backslash a character behind it\"]",
                "4 the line is not valid UTF-8 None []",
            ]
        );
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
        let again = Patterns::new(file.patterns()).unwrap();
        assert_eq!(again.iter().collect::<Vec<_>>(), file.patterns().collect::<Vec<_>>());
    }

    #[test]
    fn stars_cross_directories_or_not() {
        let paths = ["x.tmp", "sub/y.tmp", "sub/deep/z.tmp", "node_modules/x/m"];
        assert_eq!(excluded("*.tmp", &paths), ["x.tmp"]);
        assert_eq!(excluded("**/*.tmp", &paths), ["x.tmp", "sub/y.tmp", "sub/deep/z.tmp"]);
        assert_eq!(excluded("node_modules", &paths), ["node_modules/x/m"]);
        assert_eq!(excluded("sub/**", &paths), ["sub/y.tmp", "sub/deep/z.tmp"]);
    }

    /// What is excluded goes with everything below it, and comes back with everything below it.
    #[test]
    fn directories_decide_for_what_they_hold() {
        let paths = ["docs/a", "docs/api/b", "util/web/c", "util/web/d/e", "util/cli", "dist/n-1+g0.whl"];
        for (text, want) in [
            ("docs/\n!docs/a", &["docs/api/b"][..]),
            ("docs/*\n!docs/a", &["docs/api/b"]),
            ("!docs/a\ndocs", &["docs/a", "docs/api/b"]),
            ("**\n!util/web", &["docs/a", "docs/api/b", "util/cli", "dist/n-1+g0.whl"]),
            ("**\n!util/web\nutil/web/d/e", &["docs/a", "docs/api/b", "util/web/d/e", "util/cli", "dist/n-1+g0.whl"]),
            ("**\n!dist/*.whl\n!docs\n!util", &[]),
            ("**/api", &["docs/api/b"]),
            ("**/", &paths),
            ("*/web/**\n!**/e", &["util/web/c"]),
            ("  util  \n! util/cli ", &["util/web/c", "util/web/d/e"]),
            ("", &[]),
        ] {
            assert_eq!(excluded(text, &paths), want, "{text:?}");
        }
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
