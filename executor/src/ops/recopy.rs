//! A COPY that ran before on the same tree runs again.
//!
//! Most often a file or two changed in a context of thousands. What was copied the last time lies in the store, so only the
//! difference is copied, into a directory that is stacked on that earlier result (`Snapshotter::prepare_delta`). Whoever looks
//! at the new snapshot sees what copying everything would have given; see `files::changes` for what is left to that.
//!
//! The earlier result is found by what to do and by the tree it is done to, not by a cache key: the key is new, or this would
//! not run.

use std::os::fd::BorrowedFd;

use rbuild_graph::ops::Copy;
use rbuild_store::{Driver, SnapshotId};

use super::file::Chosen;
use crate::files::below::Below;
use crate::files::changes::{Changes, Note, copy_changes};
use crate::files::copy::CopyRules;
use crate::files::select::Selected;
use crate::files::writer::TreeWriter;
use crate::{Executor, ExecutorError, Value};

/// The contents of one directory, on their way onto `parent`.
pub(super) struct Recopy<'a> {
    executor: &'a Executor,
    parent: Option<&'a SnapshotId>,
    rules: &'a CopyRules,
    selected: &'a Selected,
    copied: String,
    note: Note,
}

impl<'a> Recopy<'a> {
    /// `None` for what is copied anew every time: single files, archives, several sources, little.
    pub(super) fn of(
        executor: &'a Executor,
        parent: Option<&'a SnapshotId>,
        action: &Copy,
        rules: &'a CopyRules,
        chosen: &'a Chosen,
    ) -> Result<Option<Recopy<'a>>, ExecutorError> {
        let plain = action.contents_only && !action.parents && action.unpack.is_none();
        let [selected] = chosen.selected.as_slice() else { return Ok(None) };
        if !plain || executor.store.driver() != Driver::Overlay {
            return Ok(None);
        }
        let Some(note) = Note::of(&selected.tree, &chosen.hashes) else { return Ok(None) };
        let text = serde_json::to_string(&(action, rules.owner, rules.implied_time, &selected.path))
            .map_err(|error| ExecutorError::Invalid(error.to_string()))?;
        let copied = blake3::hash(text.as_bytes()).to_hex().to_string();
        Ok(Some(Recopy { executor, parent, rules, selected, copied, note }))
    }

    /// What was copied, for the next time.
    pub(super) fn into_note(self) -> (String, Note) {
        (self.copied, self.note)
    }

    /// The result from an earlier one, if there is one that differs in little.
    pub(super) fn on_earlier(&self, root: BorrowedFd<'_>) -> Result<Option<Value>, ExecutorError> {
        let snapshots = self.executor.store.snapshots();
        let found = snapshots.whole_copy(&self.copied, self.parent, &self.executor.lease)?;
        let Some((earlier, note)) = found else { return Ok(None) };
        let Some(note) = Note::from_bytes(&note) else { return Ok(None) };
        let Some(changes) = Changes::between(&note, &self.note, self.rules.timestamp.is_some()) else {
            return Ok(None);
        };
        if changes.is_empty() {
            return Ok(Some(Value::Snapshot(earlier)));
        }
        let Some(active) = snapshots.prepare_delta(&self.executor.lease, earlier.id())? else { return Ok(None) };
        let below = active.below().map(rbuild_runtime::mount_detached).transpose()?;
        let view = self.parent.map(|parent| snapshots.view(parent)).transpose()?;
        let parent = view.as_ref().map(rbuild_runtime::mount_detached).transpose()?;
        let mut writer = TreeWriter::new(active.upper(), below.map(Below::from))?;
        if !copy_changes(&mut writer, parent.as_ref(), root, self.selected, &changes, self.rules)? {
            return Ok(None);
        }
        writer.finish()?;
        Ok(Some(Value::Snapshot(snapshots.commit(active)?)))
    }
}
