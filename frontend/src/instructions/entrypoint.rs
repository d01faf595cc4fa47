//! `ENTRYPOINT`: what a container always runs. A CMD that came with the base is gone then.

use super::Instruction;
use super::input::{CommandLine, Input};
use crate::Diagnostic;
use crate::lint::json_args_recommended;
use crate::lower::stage::StageRun;
use crate::lower::words::quoted_list;

#[derive(Debug, Clone)]
pub(crate) struct Entrypoint(CommandLine);

pub(super) fn read(input: &mut Input<'_>) -> Option<Instruction> {
    Some(Instruction::Entrypoint(Entrypoint(input.command_line()?)))
}

impl Entrypoint {
    pub(super) fn lower(&self, stage: &mut StageRun<'_, '_>) -> Result<(), Diagnostic> {
        stage.once("ENTRYPOINT");
        let has_shell = stage.state.config.shell.as_ref().is_some_and(|shell| !shell.is_empty());
        stage.warn(json_args_recommended("ENTRYPOINT", &self.0, has_shell));
        let args = stage.argv(&self.0);
        let words = quoted_list(&args);
        stage.state.config.entrypoint = Some(args).filter(|args| !args.is_empty());
        if !stage.state.cmd_set {
            stage.state.config.cmd = None;
        }
        stage.metadata(format!("ENTRYPOINT {words}"));
        Ok(())
    }
}
