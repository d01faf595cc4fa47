//! The rules of good style: what is allowed, and yet seldom what the author wants.
//!
//! Rules have BuildKit's names, messages and pages, because people search for them and skip them by name. Each is a
//! [`Rule`] in [`RULES`]; to add one, write it into a file here and add its row. What can be said of the text alone is
//! said by [`of_file`]; what needs the values of variables is called from lowering, where they are known.

mod casing;
mod commands;
mod descriptions;
mod expose;
mod from;
mod layers;
mod old_forms;
mod paths;
mod stage_names;
mod variables;

use crate::lower::check::Check;
use crate::syntax::lines::Line;
use crate::{Diagnostic, Dockerfile, LowerOptions, Purpose};

pub use layers::{deleted_files_remain, files_stored_again, package_cache_in_layer};

pub(crate) use commands::{Once, json_args_recommended};
pub(crate) use expose::{invalid_format, proto_casing};
pub(crate) use from::{base_platform, invalid_defaults, platform_flag, undefined_args};
pub(crate) use old_forms::{NO_EMPTY_CONTINUATION, old_pair};
pub(crate) use paths::{ignored_source, relative_workdir};
pub(crate) use variables::{secret_names, undefined_vars};

/// A rule, by BuildKit's name.
#[derive(Debug)]
pub struct Rule {
    pub name: &'static str,
    /// What it asks for, one sentence.
    pub description: &'static str,
    /// The page that explains it; empty for a rule of our own, whose page is in `docs/lint`.
    pub url: &'static str,
    /// It counts only when a `check=experimental=` names it.
    pub experimental: bool,
}

/// All rules, in the order of their names.
pub const RULES: [&Rule; 22] = [
    &casing::CONSISTENT_INSTRUCTION_CASING,
    &paths::COPY_IGNORED_FILE,
    &stage_names::DUPLICATE_STAGE_NAME,
    &expose::EXPOSE_INVALID_FORMAT,
    &expose::EXPOSE_PROTO_CASING,
    &casing::FROM_AS_CASING,
    &from::FROM_PLATFORM_FLAG_CONST_DISALLOWED,
    &from::INVALID_BASE_IMAGE_PLATFORM,
    &from::INVALID_DEFAULT_ARG_IN_FROM,
    &descriptions::INVALID_DEFINITION_DESCRIPTION,
    &commands::JSON_ARGS_RECOMMENDED,
    &old_forms::LEGACY_KEY_VALUE_FORMAT,
    &old_forms::MAINTAINER_DEPRECATED,
    &commands::MULTIPLE_INSTRUCTIONS_DISALLOWED,
    &old_forms::NO_EMPTY_CONTINUATION,
    &from::REDUNDANT_TARGET_PLATFORM,
    &stage_names::RESERVED_STAGE_NAME,
    &variables::SECRETS_USED_IN_ARG_OR_ENV,
    &casing::STAGE_NAME_CASING,
    &from::UNDEFINED_ARG_IN_FROM,
    &variables::UNDEFINED_VAR,
    &paths::WORKDIR_RELATIVE_PATH,
];

/// The rules about what steps wrote, which are not the reference's.
pub const LAYER_RULES: [&Rule; 3] =
    [&layers::DELETED_FILES_REMAIN, &layers::FILES_STORED_AGAIN, &layers::PACKAGE_CACHE_IN_LAYER];

/// The rule of a name, in any case.
pub fn rule(name: &str) -> Option<&'static Rule> {
    RULES.into_iter().chain(LAYER_RULES).find(|rule| rule.name.eq_ignore_ascii_case(name))
}

/// Of findings made after lowering, those that file and caller want to hear. An `error=true` does not make errors of
/// them, for the steps are done.
pub fn wanted(file: &Dockerfile, options: &LowerOptions, mut found: Vec<Diagnostic>) -> Vec<Diagnostic> {
    match Check::of(file, options) {
        Ok(check) => check.apply(&mut found, &file.local_checks, Purpose::Check),
        Err(_) => found.clear(),
    }
    found
}

impl Rule {
    pub(crate) fn warn(&self, message: impl Into<String>) -> Diagnostic {
        Diagnostic::warning(message).rule(self.name, Some(self.url).filter(|url| !url.is_empty()))
    }
}

/// What the text alone says. A file with mistakes is looked at as far as it was understood.
pub(crate) fn of_file(lines: &[Line], file: &Dockerfile, problems: &mut Vec<Diagnostic>) {
    casing::check(lines, problems);
    stage_names::check(file, problems);
    old_forms::check(lines, problems);
    descriptions::check(lines, file.escape, problems);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_sorted_and_found_by_name() {
        assert!(RULES.is_sorted_by_key(|rule| rule.name));
        assert_eq!(rule("undefinedvar").map(|rule| rule.name), Some("UndefinedVar"));
        assert!(rule("NoSuchRule").is_none());
        for rule in RULES {
            assert!(!rule.description.is_empty() && rule.url.ends_with('/'), "{}", rule.name);
        }
        for own in LAYER_RULES {
            assert!(RULES.iter().all(|rule| rule.name != own.name) && own.url.is_empty(), "{}", own.name);
            assert_eq!(rule(own.name).map(|rule| rule.name), Some(own.name));
        }
    }
}
