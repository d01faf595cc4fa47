//! Capitals and small letters: instructions, the AS of FROM, names of stages.

use super::Rule;
use crate::Diagnostic;
use crate::syntax::grammar;
use crate::syntax::lines::Line;

pub(super) const CONSISTENT_INSTRUCTION_CASING: Rule = Rule {
    name: "ConsistentInstructionCasing",
    description: "All instructions of a file should be in capitals, or all in small letters",
    url: "https://docs.docker.com/go/dockerfile/rule/consistent-instruction-casing/",
    experimental: false,
};

pub(super) const FROM_AS_CASING: Rule = Rule {
    name: "FromAsCasing",
    description: "The word AS should have the casing of the word FROM",
    url: "https://docs.docker.com/go/dockerfile/rule/from-as-casing/",
    experimental: false,
};

pub(super) const STAGE_NAME_CASING: Rule = Rule {
    name: "StageNameCasing",
    description: "Names of stages should be in small letters",
    url: "https://docs.docker.com/go/dockerfile/rule/stage-name-casing/",
    experimental: false,
};

pub(super) fn check(lines: &[Line], problems: &mut Vec<Diagnostic>) {
    instructions(lines, problems);
    for line in lines.iter().filter(|line| line.name().eq_ignore_ascii_case("FROM")) {
        let words = grammar::bare_words(line.rest());
        let [_, keyword, name] = &words[..] else { continue };
        if !keyword.text.eq_ignore_ascii_case("as") {
            continue;
        }
        let from = line.name();
        let differs = (is_lower(from) && !is_lower(&keyword.text)) || (is_upper(from) && !is_upper(&keyword.text));
        if differs {
            let message = format!("'{}' and '{from}' keywords' casing do not match", keyword.text);
            problems.push(FROM_AS_CASING.warn(message).at(line.span));
        }
        if !is_lower(&name.text) {
            let message = format!("Stage name '{}' should be lowercase", name.text);
            problems.push(STAGE_NAME_CASING.warn(message).at(line.span));
        }
    }
}

/// The majority decides; capitals, when there is none.
fn instructions(lines: &[Line], problems: &mut Vec<Diagnostic>) {
    let lower = lines.iter().filter(|line| is_lower(line.name())).count();
    let upper = lines.iter().filter(|line| is_upper(line.name())).count();
    let (fits, wanted): (fn(&str) -> bool, _) =
        if lower > upper { (is_lower, "lowercase") } else { (is_upper, "uppercase") };
    for line in lines.iter().filter(|line| !fits(line.name())) {
        let message = format!("Command '{}' should match the case of the command majority ({wanted})", line.name());
        problems.push(CONSISTENT_INSTRUCTION_CASING.warn(message).at(line.span));
    }
}

fn is_lower(word: &str) -> bool {
    !word.chars().any(char::is_uppercase)
}

fn is_upper(word: &str) -> bool {
    !word.chars().any(char::is_lowercase)
}
