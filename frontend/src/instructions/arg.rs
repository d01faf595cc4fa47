//! `ARG`: a variable of the build, not of the image.

use rbuild_graph::Span;

use super::input::Input;
use super::{Instruction, Text};
use crate::Diagnostic;
use crate::lint::secret_names;
use crate::lower::stage::StageRun;

#[derive(Debug, Clone)]
pub(crate) struct Arg(pub(crate) Vec<Declaration>);

/// One name of a line.
#[derive(Debug, Clone)]
pub(crate) struct Declaration {
    pub(crate) name: String,
    pub(crate) default: Option<Text>,
    /// The text behind its name in a comment right before the line.
    pub(crate) description: Option<String>,
    pub(crate) span: Span,
}

/// Names that speak to the builder and reach no step.
const NOT_FOR_STEPS: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

pub(super) fn read(input: &mut Input<'_>) -> Option<Instruction> {
    let mut declarations = Vec::new();
    for word in input.quoted_words()? {
        let (name, default) = match word.value.split_once('=') {
            Some((name, value)) => (name, Some(Text { value: value.to_owned(), span: word.span })),
            None => (word.value.as_str(), None),
        };
        if name.is_empty() {
            return input.report(Diagnostic::error("ARG names can not be blank").at(word.span));
        }
        let behind = |line: &String| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned);
        let description = input.line.comments.iter().find_map(behind);
        declarations.push(Declaration { name: name.to_owned(), default, description, span: word.span });
    }
    Some(Instruction::Arg(Arg(declarations)))
}

impl Arg {
    /// The caller's value counts, then the default, then the value of the same name before the first FROM.
    pub(super) fn lower(&self, stage: &mut StageRun<'_, '_>) -> Result<(), Diagnostic> {
        stage.warn(secret_names("ARG", self.0.iter().map(|one| one.name.as_str())));
        let mut entries = Vec::with_capacity(self.0.len());
        for declaration in &self.0 {
            let name = &declaration.name;
            let value = match (stage.build_arg(name), &declaration.default) {
                (Some(given), _) => Some(given.to_owned()),
                (None, Some(default)) => Some(stage.expand(default)?),
                (None, None) => stage.global_arg(name).map(str::to_owned),
            };
            if let Some(value) = &value
                && !NOT_FOR_STEPS.contains(&name.as_str())
            {
                stage.state.env.set(name, value);
            }
            entries.push(match &value {
                Some(value) => format!("{name}={value}"),
                None => name.clone(),
            });
            stage.state.args.push((name.clone(), value));
        }
        stage.metadata(format!("ARG {}", entries.join(" ")));
        Ok(())
    }
}
