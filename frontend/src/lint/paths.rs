//! Paths that lead somewhere else than it looks.

use super::Rule;
use crate::Diagnostic;
use rbuild_graph::pattern::{Patterns, has_wildcards};

pub(super) const COPY_IGNORED_FILE: Rule = Rule {
    name: "CopyIgnoredFile",
    description: "Files that .dockerignore hides should not be copied",
    url: "https://docs.docker.com/go/dockerfile/rule/copy-ignored-file/",
    experimental: false,
};

pub(super) const WORKDIR_RELATIVE_PATH: Rule = Rule {
    name: "WorkdirRelativePath",
    description: "The first WORKDIR of a build should be absolute, for a base image may change its own",
    url: "https://docs.docker.com/go/dockerfile/rule/workdir-relative-path/",
    experimental: false,
};

/// Patterns that leave nothing of a context.
const EVERYTHING: [&str; 3] = ["*", "**", "**/*"];

/// A source in the build context, cleaned. Only what is hidden for certain is reported: not the root unless a pattern
/// hides all there is, not a directory of which something may come back, not a wildcard that a pattern may let through.
pub(crate) fn ignored_source(instruction: &str, source: &str, ignore: &Patterns) -> Option<Diagnostic> {
    let reincludes = || ignore.iter().any(|pattern| pattern.starts_with('!'));
    if has_wildcards(source.as_bytes()) && reincludes() {
        return None;
    }
    if matches!(source, "" | "." | "/") {
        let nothing_left = ignore.iter().any(|pattern| EVERYTHING.contains(&pattern)) && !reincludes();
        let source = if source.is_empty() { "." } else { source };
        let message = format!("Attempting to {instruction} file {source:?} that is excluded by .dockerignore");
        let hint = "!NAME at the end of .dockerignore brings a file back";
        return nothing_left.then(|| COPY_IGNORED_FILE.warn(message).hint(hint));
    }
    let path = source.trim_start_matches('/');
    ignore.excludes(path.as_bytes(), true).then(|| {
        let message = format!("Attempting to {instruction} file {path:?} that is excluded by .dockerignore");
        COPY_IGNORED_FILE.warn(message).hint(format!("!{path} at the end of .dockerignore brings it back"))
    })
}

/// `path` with its variables known. `set_before` says whether an earlier WORKDIR of this file, in the stage or the
/// stages under it, was there already.
pub(crate) fn relative_workdir(path: &str, set_before: bool) -> Option<Diagnostic> {
    let message = format!("Relative workdir {path:?} can have unexpected results if the base image changes");
    (!set_before && !path.starts_with('/')).then(|| WORKDIR_RELATIVE_PATH.warn(message))
}
