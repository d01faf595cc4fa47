//! CMD, ENTRYPOINT and HEALTHCHECK: once in a stage, and without a shell between the program and its signals.

use rbuild_graph::Span;

use super::Rule;
use crate::Diagnostic;
use crate::instructions::CommandLine;

pub(super) const JSON_ARGS_RECOMMENDED: Rule = Rule {
    name: "JSONArgsRecommended",
    description: "ENTRYPOINT and CMD should be JSON arrays, so that the program itself gets the signals",
    url: "https://docs.docker.com/go/dockerfile/rule/json-args-recommended/",
    experimental: false,
};

pub(super) const MULTIPLE_INSTRUCTIONS_DISALLOWED: Rule = Rule {
    name: "MultipleInstructionsDisallowed",
    description: "An instruction of which only the last counts should stand once in a stage",
    url: "https://docs.docker.com/go/dockerfile/rule/multiple-instructions-disallowed/",
    experimental: false,
};

/// Shell form without a SHELL that was chosen for it.
pub(crate) fn json_args_recommended(name: &str, line: &CommandLine, has_shell: bool) -> Option<Diagnostic> {
    let is_shell = matches!(line, CommandLine::Shell(text) if !text.is_empty());
    (is_shell && !has_shell).then(|| {
        let message =
            format!("JSON arguments recommended for {name} to prevent unintended behavior related to OS signals");
        JSON_ARGS_RECOMMENDED.warn(message).hint(format!("write {name} [\"program\", \"argument\"]"))
    })
}

/// Where a stage has its instructions that count once.
#[derive(Debug, Default)]
pub(crate) struct Once(Vec<(&'static str, Span)>);

impl Once {
    /// The warning stands at the earlier one: that is the one that does not count.
    pub(crate) fn seen(&mut self, name: &'static str, span: Span) -> Option<Diagnostic> {
        let Some((_, before)) = self.0.iter_mut().find(|(other, _)| *other == name) else {
            self.0.push((name, span));
            return None;
        };
        let before = std::mem::replace(before, span);
        let message = format!(
            "Multiple {name} instructions should not be used in the same stage because only the last one will be used"
        );
        Some(MULTIPLE_INSTRUCTIONS_DISALLOWED.warn(message).at(before))
    }
}
