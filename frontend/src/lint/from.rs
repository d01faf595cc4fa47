//! FROM: arguments in it, and platforms.

use rbuild_graph::Span;
use rbuild_oci::{Platform, Reference};

use super::Rule;
use crate::Diagnostic;
use crate::instructions::Text;
use crate::lower::words::quoted;
use crate::stages::Stage;

pub(super) const FROM_PLATFORM_FLAG_CONST_DISALLOWED: Rule = Rule {
    name: "FromPlatformFlagConstDisallowed",
    description: "FROM --platform should not be a constant",
    url: "https://docs.docker.com/go/dockerfile/rule/from-platform-flag-const-disallowed/",
    experimental: false,
};

pub(super) const INVALID_BASE_IMAGE_PLATFORM: Rule = Rule {
    name: "InvalidBaseImagePlatform",
    description: "A base image should be for the platform that is built for",
    url: "https://docs.docker.com/go/dockerfile/rule/invalid-base-image-platform/",
    experimental: false,
};

pub(super) const INVALID_DEFAULT_ARG_IN_FROM: Rule = Rule {
    name: "InvalidDefaultArgInFrom",
    description: "The defaults of the arguments in a FROM should make the name of an image",
    url: "https://docs.docker.com/go/dockerfile/rule/invalid-default-arg-in-from/",
    experimental: false,
};

pub(super) const REDUNDANT_TARGET_PLATFORM: Rule = Rule {
    name: "RedundantTargetPlatform",
    description: "FROM --platform=$TARGETPLATFORM says what is so without it",
    url: "https://docs.docker.com/go/dockerfile/rule/redundant-target-platform/",
    experimental: false,
};

pub(super) const UNDEFINED_ARG_IN_FROM: Rule = Rule {
    name: "UndefinedArgInFrom",
    description: "Arguments in a FROM should be declared before the first FROM",
    url: "https://docs.docker.com/go/dockerfile/rule/undefined-arg-in-from/",
    experimental: false,
};

/// `unset` are names in a FROM without a value, `declared` those the file declares, `known` those with a value.
pub(crate) fn undefined_args<'a>(
    unset: &'a [String],
    declared: impl Fn(&str) -> bool + 'a,
    known: impl Iterator<Item = &'a str> + Clone + 'a,
    span: Span,
) -> impl Iterator<Item = Diagnostic> + 'a {
    unset.iter().filter(move |name| !declared(name)).map(move |name| {
        let message = format!("FROM argument '{name}' is not declared");
        UNDEFINED_ARG_IN_FROM.warn(message).at(span).suggest(name, known.clone())
    })
}

/// `expand` gives the names as they are without the caller's arguments; `None` when that is a mistake.
pub(crate) fn invalid_defaults(stages: &[Stage], mut expand: impl FnMut(&Text) -> Option<String>) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for stage in stages.iter().filter(|stage| stage.base.value.contains('$')) {
        let Some(name) = expand(&stage.base) else { continue };
        if name != "scratch" && Reference::parse(&name).is_err() {
            let message =
                format!("Default value for ARG {} results in empty or invalid base image name", stage.base.value);
            found.push(INVALID_DEFAULT_ARG_IN_FROM.warn(message).at(stage.span));
        }
    }
    found
}

/// The `--platform` of a stage, as written.
pub(crate) fn platform_flag(stage: &Stage) -> Option<Diagnostic> {
    let written = stage.platform.as_ref()?.value.as_str();
    let warning = if matches!(written, "$TARGETPLATFORM" | "${TARGETPLATFORM}") {
        let message =
            format!("Setting platform to predefined {written} in FROM is redundant as this is the default behavior");
        REDUNDANT_TARGET_PLATFORM.warn(message)
    } else if written.contains('$') {
        return None;
    } else {
        let platform = Platform::parse(written).ok()?;
        // A stage of that name is meant for that platform only.
        let named = |part: &str| stage.name().is_some_and(|name| name.contains(part));
        if named(&platform.os) || named(&platform.architecture) {
            return None;
        }
        let message = format!("FROM --platform flag should not use constant value {}", quoted(written));
        FROM_PLATFORM_FLAG_CONST_DISALLOWED.warn(message)
    };
    Some(warning.at(stage.span))
}

/// What a base image says it is for, and what it was taken for.
pub(crate) fn base_platform(name: &str, expected: &Platform, actual: &Platform) -> Option<Diagnostic> {
    let unsaid = actual.os.is_empty() || actual.architecture.is_empty();
    if unsaid || (expected.os == actual.os && expected.architecture == actual.architecture) {
        return None;
    }
    let (actual, expected) = (quoted(&actual.to_string()), quoted(&expected.to_string()));
    let message = format!("Base image {name} was pulled with platform {actual}, expected {expected} for current build");
    Some(INVALID_BASE_IMAGE_PLATFORM.warn(message))
}
