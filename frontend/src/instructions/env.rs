//! `ENV`: variables of the image. All values of a line see the variables as they were before it.

use super::Instruction;
use super::input::{Input, Pair};
use crate::Diagnostic;
use crate::lint::{old_pair, secret_names};
use crate::lower::stage::StageRun;

#[derive(Debug, Clone)]
pub(crate) struct Env(pub(crate) Vec<Pair>, Option<Diagnostic>);

pub(super) fn read(input: &mut Input<'_>) -> Option<Instruction> {
    let old = old_pair(input.line, input.escape);
    Some(Instruction::Env(Env(input.pairs()?, old)))
}

impl Env {
    pub(super) fn lower(&self, stage: &mut StageRun<'_, '_>) -> Result<(), Diagnostic> {
        stage.warn(self.1.clone());
        let pairs = stage.expand_pairs(&self.0)?;
        stage.warn(secret_names("ENV", pairs.iter().map(|(name, _)| name.as_str())));
        let mut entry = String::from("ENV");
        for (name, value) in pairs {
            entry.push_str(&format!(" {name}={value}"));
            stage.state.env.set(&name, &value);
            stage.state.image_env.set(&name, &value);
        }
        stage.metadata(entry);
        Ok(())
    }
}
