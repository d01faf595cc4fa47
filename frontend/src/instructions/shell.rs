//! `SHELL`: what runs commands in shell form from here on.

use super::Instruction;
use super::input::Input;
use crate::Diagnostic;
use crate::lower::stage::StageRun;

#[derive(Debug, Clone)]
pub(crate) struct Shell(Vec<String>);

pub(super) fn read(input: &mut Input<'_>) -> Option<Instruction> {
    match input.exec()? {
        Some(words) if !words.is_empty() => {
            Some(Instruction::Shell(Shell(words.into_iter().map(|word| word.value).collect())))
        }
        None if !input.line.rest().is_empty() => {
            let problem = Diagnostic::error(format!(
                "SHELL requires the arguments to be in JSON form: {}",
                input.line.text.trim()
            ));
            let span = input.line.span_of(input.line.head.rest.clone());
            input.report(problem.at(span).expected("[\"executable\", \"parameter\"]"))
        }
        _ => input.refuse("SHELL requires at least one argument"),
    }
}

impl Shell {
    pub(super) fn lower(&self, stage: &mut StageRun<'_, '_>) -> Result<(), Diagnostic> {
        stage.state.config.shell = Some(self.0.clone());
        stage.metadata(format!("SHELL [{}]", self.0.join(" ")));
        Ok(())
    }
}
