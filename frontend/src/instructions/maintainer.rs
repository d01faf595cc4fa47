//! `MAINTAINER`: the author, in the old way.

use super::input::Input;
use super::{Instruction, Text};
use crate::Diagnostic;
use crate::lower::stage::StageRun;

#[derive(Debug, Clone)]
pub(crate) struct Maintainer(Text);

pub(super) fn read(input: &mut Input<'_>) -> Option<Instruction> {
    Some(Instruction::Maintainer(Maintainer(input.one()?)))
}

impl Maintainer {
    pub(super) fn lower(&self, stage: &mut StageRun<'_, '_>) -> Result<(), Diagnostic> {
        stage.state.author.clone_from(&self.0.value);
        stage.metadata(format!("MAINTAINER {}", self.0.value));
        Ok(())
    }
}
