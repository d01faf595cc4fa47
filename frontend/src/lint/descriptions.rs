//! Comments that describe a stage or an argument.

use super::Rule;
use crate::Diagnostic;
use crate::lower::check;
use crate::syntax::grammar;
use crate::syntax::lines::Line;

pub(super) const INVALID_DEFINITION_DESCRIPTION: Rule = Rule {
    name: "InvalidDefinitionDescription",
    description: "A comment right before a stage or an argument should begin with its name",
    url: "https://docs.docker.com/go/dockerfile/rule/invalid-definition-description/",
    experimental: true,
};

pub(super) fn check(lines: &[Line], escape: char, problems: &mut Vec<Diagnostic>) {
    for line in lines {
        // What is said to the checker describes nothing.
        let Some(comment) = line.comments.iter().rfind(|comment| check::local(comment).is_none()) else { continue };
        let names = defined(line, escape);
        let first = comment.split(' ').next().unwrap_or_default();
        if names.is_empty() || names.iter().any(|name| name == first) {
            continue;
        }
        let shown = if names.len() > 1 { "<arg_key>" } else { names[0].as_str() };
        let what = line.name().to_uppercase();
        let message = format!("Comment for {what} should follow the format: `# {shown} <description>`");
        let hint = "if the comment describes something else, put an empty line behind it";
        problems.push(INVALID_DEFINITION_DESCRIPTION.warn(message).at(line.span).hint(hint));
    }
}

/// The names that a line brings into being.
fn defined(line: &Line, escape: char) -> Vec<String> {
    if line.name().eq_ignore_ascii_case("FROM") {
        return match &grammar::bare_words(line.rest())[..] {
            [_, _, name] => vec![name.text.to_lowercase()],
            _ => Vec::new(),
        };
    }
    if !line.name().eq_ignore_ascii_case("ARG") {
        return Vec::new();
    }
    let words = grammar::quoted_words(line.rest(), escape).into_iter();
    words.map(|word| word.text.split('=').next().unwrap_or_default().to_owned()).collect()
}
