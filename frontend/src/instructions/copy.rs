//! `COPY`: files from the context, a stage, an image or a named context.

use super::Instruction;
use super::flags::{FlagKind, FlagSpec};
use super::input::Input;
use super::transfer::{Kind, Transfer};
use crate::Diagnostic;
use crate::syntax::words::{Budget, Lexer, NoVariables};

pub(super) const FLAGS: &[FlagSpec] = &[
    FlagSpec { name: "from", help: "copies from a stage, an image or a named context", kind: FlagKind::Text },
    FlagSpec { name: "chown", help: "sets user[:group] of what is copied", kind: FlagKind::Text },
    FlagSpec { name: "chmod", help: "sets the permissions of what is copied", kind: FlagKind::Text },
    FlagSpec { name: "link", help: "makes a layer that does not depend on what is below", kind: FlagKind::Switch },
    FlagSpec { name: "parents", help: "keeps the directories of the sources", kind: FlagKind::Switch },
    FlagSpec { name: "exclude", help: "leaves out what matches a pattern", kind: FlagKind::Texts },
];

pub(super) fn read(input: &mut Input<'_>) -> Option<Instruction> {
    let mut transfer = Transfer::read(input, Kind::Copy)?;
    transfer.from = input.flags.take("from");
    transfer.parents = input.flags.switch("parents").unwrap_or(false);
    if let Some(from) = &transfer.from {
        let expanded = Lexer::new(input.escape).expand(&from.value, &NoVariables, &mut Budget::new());
        if expanded.is_ok_and(|expanded| expanded.text != from.value) {
            let message = "variable expansion is not supported for --from, define a new stage with FROM using ARG \
                           from global scope as a workaround";
            return input.report(Diagnostic::error(message).at(from.span).expected("a stage, an image or a context"));
        }
    }
    Some(Instruction::Transfer(transfer))
}
