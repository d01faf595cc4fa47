//! What a vertex does, as data.

mod exec;
mod file;
mod merge;
mod source;

pub use exec::{CacheSharing, Device, ExecOp, ExtraHost, Mount, MountKind, Network, Security, Ulimit};
pub use file::{ChangeOwner, Copy, FileAction, FileOp, Mkdir, Mkfile, ModeChange, Owner, Remove};
pub use merge::{DiffOp, MergeOp};
pub use source::{ContextSource, GitSource, HttpSource, ImageSource, LayoutSource, SourceOp};

use serde::{Deserialize, Serialize};

/// An operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Op {
    /// Brings something in from outside.
    Source(SourceOp),
    /// Runs a process.
    Exec(ExecOp),
    /// Changes files without running anything.
    File(FileOp),
    /// Stacks file trees on each other.
    Merge(MergeOp),
    /// Takes one file tree from another.
    Diff(DiffOp),
}

impl Op {
    /// How many results it has.
    pub fn outputs(&self) -> u32 {
        match self {
            Op::Exec(exec) => exec.outputs(),
            _ => 1,
        }
    }

    /// The highest input index it names.
    pub fn highest_input(&self) -> Option<usize> {
        match self {
            Op::Source(_) => None,
            Op::Exec(exec) => exec.mounts.iter().filter_map(|mount| mount.input).max(),
            Op::File(file) => file.highest_input(),
            Op::Merge(merge) => merge.inputs.checked_sub(1),
            Op::Diff(diff) => [diff.lower, diff.upper].into_iter().flatten().max(),
        }
    }

    /// Whether the fields make sense together; the reason if not.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn validate(&self) -> Result<(), String> {
        match self {
            Op::Exec(exec) => exec.validate(),
            Op::File(file) if file.actions.is_empty() => Err("a file operation needs an action".into()),
            _ => Ok(()),
        }
    }

    pub(crate) fn shape(&self) -> &'static str {
        match self {
            Op::Source(_) => "oval",
            Op::Exec(_) => "box",
            Op::File(_) => "note",
            Op::Merge(_) | Op::Diff(_) => "hexagon",
        }
    }
}
