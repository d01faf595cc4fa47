//! `LABEL`: what the image says about itself.

use super::Instruction;
use super::input::{Input, Pair};
use crate::Diagnostic;
use crate::lower::stage::StageRun;

#[derive(Debug, Clone)]
pub(crate) struct Label(Vec<Pair>);

pub(super) fn read(input: &mut Input<'_>) -> Option<Instruction> {
    Some(Instruction::Label(Label(input.pairs()?)))
}

impl Label {
    pub(super) fn lower(&self, stage: &mut StageRun<'_, '_>) -> Result<(), Diagnostic> {
        let mut entry = String::from("LABEL");
        for (name, value) in stage.expand_pairs(&self.0)? {
            entry.push_str(&format!(" {name}={value}"));
            stage.state.config.labels.insert(name, value);
        }
        stage.metadata(entry);
        Ok(())
    }
}
