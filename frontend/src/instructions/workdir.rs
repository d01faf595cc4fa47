//! `WORKDIR`: where what follows runs; made if it is not there.

use rbuild_graph::ops::{FileAction, FileOp, Mkdir, Op};

use super::input::Input;
use super::{Command, Instruction, Text};
use crate::Diagnostic;
use crate::lint::relative_workdir;
use crate::lower::stage::StageRun;
use crate::lower::{owner, paths};

#[derive(Debug, Clone)]
pub(crate) struct Workdir(Text);

pub(super) fn read(input: &mut Input<'_>) -> Option<Instruction> {
    Some(Instruction::Workdir(Workdir(input.one()?)))
}

impl Workdir {
    pub(super) fn lower(&self, command: &Command, stage: &mut StageRun<'_, '_>) -> Result<(), Diagnostic> {
        let path = stage.expand(&self.0)?;
        stage.warn(relative_workdir(&path, stage.state.workdir_set));
        stage.state.workdir_set = true;
        let path = paths::absolute(stage.cwd(), &path);
        stage.state.config.working_dir.clone_from(&path);
        if path == "/" {
            stage.metadata("WORKDIR /".into());
            return Ok(());
        }
        let owner = owner::parse(&stage.state.config.user).map_err(|problem| problem.at(self.0.span))?;
        let mkdir = Mkdir { owner, timestamp: stage.epoch(), ..Mkdir::new(path.as_bytes()) };
        let op = FileOp { base: stage.state.edge.map(|_| 0), actions: vec![FileAction::Mkdir(mkdir)] };
        let inputs = stage.state.edge.into_iter().collect();
        let name = stage.step_name(&command.text);
        let edge = stage.add(Op::File(op), inputs, name, command.span);
        stage.state.edge = Some(edge);
        stage.layer(format!("WORKDIR {path}"));
        Ok(())
    }
}
