//! `LABEL`: what the image says about itself.

use super::Instruction;
use super::input::{Input, Pair};
use crate::Diagnostic;
use crate::lint::old_pair;
use crate::lower::stage::StageRun;

#[derive(Debug, Clone)]
pub(crate) struct Label(Vec<Pair>, Option<Diagnostic>);

pub(super) fn read(input: &mut Input<'_>) -> Option<Instruction> {
    let old = old_pair(input.line, input.escape);
    Some(Instruction::Label(Label(input.pairs()?, old)))
}

impl Label {
    pub(super) fn lower(&self, stage: &mut StageRun<'_, '_>) -> Result<(), Diagnostic> {
        stage.warn(self.1.clone());
        let mut entry = String::from("LABEL");
        for (name, value) in stage.expand_pairs(&self.0)? {
            entry.push_str(&format!(" {name}={value}"));
            stage.state.config.labels.insert(name, value);
        }
        stage.metadata(entry);
        Ok(())
    }
}
