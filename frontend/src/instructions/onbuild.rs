//! `ONBUILD`: a line for whoever builds on this image.

use super::Instruction;
use super::input::Input;
use crate::Diagnostic;
use crate::lower::stage::StageRun;

#[derive(Debug, Clone)]
pub(crate) struct OnBuild {
    /// As the image keeps it, heredocs included.
    pub(crate) trigger: String,
}

pub(super) fn read(input: &mut Input<'_>) -> Option<Instruction> {
    if input.line.rest().is_empty() {
        return input.refuse("ONBUILD requires at least one argument");
    }
    let line = input.line.trigger(input.escape);
    let name = line.name().to_uppercase();
    match name.as_str() {
        "ONBUILD" => return input.refuse("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        "MAINTAINER" | "FROM" => return input.refuse(format!("{name} isn't allowed as an ONBUILD trigger")),
        _ => {}
    }
    // A trigger that cannot be read is a mistake here, not in the image that is built on this one.
    super::read(&line, input.escape, input.problems)?;
    let mut trigger = line.text.clone();
    for heredoc in &line.heredocs {
        trigger.push('\n');
        trigger.push_str(&heredoc.content);
        trigger.push_str(&heredoc.name);
    }
    Some(Instruction::OnBuild(OnBuild { trigger }))
}

impl OnBuild {
    pub(super) fn lower(&self, stage: &mut StageRun<'_, '_>) -> Result<(), Diagnostic> {
        stage.state.config.on_build.push(self.trigger.clone());
        Ok(())
    }
}
