//! An ordered list of patterns, as ignore files and `--exclude` have them.
//!
//! The rules are those of moby's patternmatcher. Patterns are tried in order and the last one that matches decides;
//! one with `!` brings back. A pattern matches a path when it matches it or one of its parents, so what is below an
//! excluded directory can be brought back one by one.

use super::glob::{BadPattern, Pattern};

/// Patterns in their order.
#[derive(Debug, Clone, Default)]
pub struct Patterns {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone)]
struct Rule {
    brings_back: bool,
    /// As it is passed on: cleaned, `!` in front.
    text: String,
    pattern: Pattern,
}

/// Which patterns a directory, or one of its parents, matched; from [`Patterns::below`].
#[derive(Debug, Clone, Default)]
pub struct Matched(Vec<bool>);

/// A line that is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("illegal exclusion pattern: \"!\"")]
    NothingExcluded,
    #[error("{BadPattern}: {0}")]
    Syntax(String),
}

impl Patterns {
    /// # Errors
    /// The first one that is no pattern.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Patterns, PatternError> {
        let mut all = Patterns::default();
        for pattern in patterns {
            all.push(pattern)?;
        }
        Ok(all)
    }

    /// Adds a pattern; a blank one adds nothing.
    ///
    /// # Errors
    /// It is no pattern.
    pub fn push(&mut self, pattern: &str) -> Result<(), PatternError> {
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
            return Err(PatternError::NothingExcluded);
        }
        let pattern = Pattern::ignore(path.as_bytes()).map_err(|_| PatternError::Syntax(path.to_owned()))?;
        self.rules.push(Rule { brings_back, text: text.clone(), pattern });
        Ok(())
    }

    /// The patterns in their order, cleaned.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
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

    /// As [`Patterns::matches`] for a walk: takes what the parent directory matched ([`Matched::default`] at the
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

/// Go's `path.Clean`: no empty components, no `.`, `..` taken with the component before it.
pub fn clean_path(path: &str) -> String {
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
