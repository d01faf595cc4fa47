//! `USER`: who runs what follows, and the container.

use super::input::Input;
use super::{Instruction, Text};
use crate::Diagnostic;
use crate::lower::owner;
use crate::lower::stage::StageRun;

#[derive(Debug, Clone)]
pub(crate) struct User(Text);

pub(super) fn read(input: &mut Input<'_>) -> Option<Instruction> {
    Some(Instruction::User(User(input.one()?)))
}

impl User {
    pub(super) fn lower(&self, stage: &mut StageRun<'_, '_>) -> Result<(), Diagnostic> {
        let user = stage.expand(&self.0)?;
        owner::parse(&user).map_err(|problem| problem.at(self.0.span))?;
        stage.metadata(format!("USER {user}"));
        stage.state.config.user = user;
        Ok(())
    }
}
