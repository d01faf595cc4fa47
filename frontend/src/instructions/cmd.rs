//! `CMD`: what a container runs when it is told nothing else.

use super::Instruction;
use super::input::{CommandLine, Input};
use crate::Diagnostic;
use crate::lint::json_args_recommended;
use crate::lower::stage::StageRun;
use crate::lower::words::quoted_list;

#[derive(Debug, Clone)]
pub(crate) struct Cmd(CommandLine);

pub(super) fn read(input: &mut Input<'_>) -> Option<Instruction> {
    Some(Instruction::Cmd(Cmd(input.command_line()?)))
}

impl Cmd {
    pub(super) fn lower(&self, stage: &mut StageRun<'_, '_>) -> Result<(), Diagnostic> {
        stage.once("CMD");
        let has_shell = stage.state.config.shell.as_ref().is_some_and(|shell| !shell.is_empty());
        stage.warn(json_args_recommended("CMD", &self.0, has_shell));
        let args = stage.argv(&self.0);
        let words = quoted_list(&args);
        stage.state.config.cmd = Some(args).filter(|args| !args.is_empty());
        stage.state.config.args_escaped = true;
        stage.state.cmd_set = true;
        stage.metadata(format!("CMD {words}"));
        Ok(())
    }
}
