//! `VOLUME`: directories that a container keeps outside its file system.

use rbuild_oci::EmptyObject;

use super::input::Input;
use super::{Instruction, Text};
use crate::Diagnostic;
use crate::lower::stage::StageRun;

#[derive(Debug, Clone)]
pub(crate) struct Volume(Vec<Text>);

const EMPTY: &str = "VOLUME specified can not be an empty string";

pub(super) fn read(input: &mut Input<'_>) -> Option<Instruction> {
    let mut paths = match input.exec()? {
        Some(words) if words.is_empty() => return input.refuse("VOLUME requires at least one argument"),
        Some(words) => words,
        None => input.bare_words()?,
    };
    for path in &mut paths {
        path.value = path.value.trim().to_owned();
        if path.value.is_empty() {
            return input.report(Diagnostic::error(EMPTY).at(path.span));
        }
    }
    Some(Instruction::Volume(Volume(paths)))
}

impl Volume {
    pub(super) fn lower(&self, stage: &mut StageRun<'_, '_>) -> Result<(), Diagnostic> {
        let mut paths = Vec::with_capacity(self.0.len());
        for text in &self.0 {
            let path = stage.expand(text)?;
            if path.is_empty() {
                return Err(Diagnostic::error(EMPTY).at(text.span));
            }
            stage.state.config.volumes.insert(path.clone(), EmptyObject {});
            paths.push(path);
        }
        stage.metadata(format!("VOLUME [{}]", paths.join(" ")));
        Ok(())
    }
}
