//! `FROM`: starts a stage.

use super::flags::{FlagKind, FlagSpec};
use super::input::Input;
use super::{Instruction, Text};
use crate::Diagnostic;
use crate::syntax::grammar;

pub(super) const FLAGS: &[FlagSpec] =
    &[FlagSpec { name: "platform", help: "takes the base image for another platform", kind: FlagKind::Text }];

#[derive(Debug, Clone)]
pub(crate) struct From {
    pub(crate) base: Text,
    /// In lower case.
    pub(crate) name: Option<Text>,
    pub(crate) platform: Option<Text>,
}

pub(super) fn read(input: &mut Input<'_>) -> Option<Instruction> {
    let words = input.texts(grammar::bare_words(input.line.rest()));
    let (base, name) = match &words[..] {
        [base] => (base, None),
        [base, keyword, name] if keyword.value.eq_ignore_ascii_case("as") => (base, Some(name)),
        _ => {
            let span = match words[..] {
                [] => input.line.span,
                _ => input.line.span_of(input.line.head.rest.clone()),
            };
            let problem = Diagnostic::error("FROM requires either one or three arguments");
            return input.report(problem.at(span).expected("FROM <image> [AS <name>]"));
        }
    };
    if let Some(name) = name.filter(|name| !is_stage_name(&name.value.to_lowercase())) {
        let message = format!(
            "invalid name for build stage: {:?}, name can't start with a number or contain symbols",
            name.value
        );
        return input.report(Diagnostic::error(message).at(name.span).expected("letters, digits, '-', '_' and '.'"));
    }
    let name = name.map(|name| Text { value: name.value.to_lowercase(), span: name.span });
    Some(Instruction::From(From { base: base.clone(), name, platform: input.flags.take("platform") }))
}

fn is_stage_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.'))
}
