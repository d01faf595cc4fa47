//! What the language still takes and has a better form for.

use super::Rule;
use crate::Diagnostic;
use crate::syntax::grammar;
use crate::syntax::lines::Line;

pub(super) const LEGACY_KEY_VALUE_FORMAT: Rule = Rule {
    name: "LegacyKeyValueFormat",
    description: "Names and values should be joined by = and not by a space",
    url: "https://docs.docker.com/go/dockerfile/rule/legacy-key-value-format/",
    experimental: false,
};

pub(super) const MAINTAINER_DEPRECATED: Rule = Rule {
    name: "MaintainerDeprecated",
    description: "The author of an image should be said with a label",
    url: "https://docs.docker.com/go/dockerfile/rule/maintainer-deprecated/",
    experimental: false,
};

/// Found while lines are joined.
pub(crate) const NO_EMPTY_CONTINUATION: Rule = Rule {
    name: "NoEmptyContinuation",
    description: "An instruction that goes on should have no empty lines in it",
    url: "https://docs.docker.com/go/dockerfile/rule/no-empty-continuation/",
    experimental: false,
};

pub(super) fn check(lines: &[Line], problems: &mut Vec<Diagnostic>) {
    for line in lines.iter().filter(|line| line.name().eq_ignore_ascii_case("MAINTAINER")) {
        let message = "Maintainer instruction is deprecated in favor of using label";
        let hint = "write LABEL org.opencontainers.image.authors=\"…\"";
        problems.push(MAINTAINER_DEPRECATED.warn(message).at(line.span).hint(hint));
    }
}

/// For ENV and LABEL whose name and value are joined by a space. Told when the stage is lowered, and not of the text: in
/// a stage that is not needed the reference says nothing.
pub(crate) fn old_pair(line: &Line, escape: char) -> Option<Diagnostic> {
    let name = line.name();
    let is_old = grammar::quoted_words(line.rest(), escape).first().is_some_and(|word| !word.text.contains('='));
    let message = format!("\"{name} key=value\" should be used instead of legacy \"{name} key value\" format");
    is_old.then(|| LEGACY_KEY_VALUE_FORMAT.warn(message).at(line.span))
}
