//! `RUN --mount=type=bind`: files of the build context, of a stage or of an image.
//!
//! A stage or image is mounted from its own layers, read-only, or with a layer above that is thrown away. Of a context
//! the selected part is copied, which serves both: see [`super::tree`].

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rbuild_graph::ops::{Mount, Security};
use rbuild_runtime::MountSource;
use rbuild_store::Active;

use super::{Step, local, open_path, tree};
use crate::files::select::Selected;
use crate::ops::file::Source;
use crate::{ExecutorError, Value};

/// What is mounted, and what it rests on: a layer that is never committed takes what is written to it along.
pub(super) fn source(
    step: &mut Step<'_>,
    n: usize,
    mount: &Mount,
) -> Result<(MountSource, Option<Active>), ExecutorError> {
    let executor = step.executor;
    let selector = mount.selector.as_deref().unwrap_or_default();
    match mount.input.map(|input| &step.inputs[input]) {
        Some(Value::Snapshot(snapshot)) => {
            let path = if selector.is_empty() { b"." } else { selector };
            let path = PathBuf::from(std::ffi::OsStr::from_bytes(path));
            if mount.read_only {
                let mounts = executor.store.snapshots().view(snapshot.id())?;
                return Ok((MountSource::Layers { mounts, path }, None));
            }
            let active = executor.store.snapshots().prepare(&executor.lease, Some(snapshot.id()))?;
            Ok((MountSource::Layers { mounts: active.mounts()?.clone(), path }, Some(active)))
        }
        Some(value @ Value::Context(context)) => {
            let source = Source::open(executor, value)?;
            let copy = |dir: &Path, selected: &Selected| {
                // What comes from the user's machine belongs to root.
                tree::copy_of(dir, &source, selected, Some((0, 0)))
            };
            let own = step.workspace.join(format!("bind{n}"));
            let copy = match step.selections.remove(&n) {
                // A step that is not confined could write to what it shares with others.
                Some((selected, content)) if mount.read_only && step.op.security == Security::Sandbox => executor
                    .copies
                    .get(context.name(), selector, content, || copy(&executor.lease.ingest_path("bind")?, &selected))?,
                Some((selected, _)) => copy(&own, &selected)?,
                None => copy(&own, &source.select_path(selector)?)?,
            };
            Ok((MountSource::Opened(open_path(&copy)?), None))
        }
        Some(Value::Lazy(_)) => Err(ExecutorError::not_brought()),
        Some(Value::Scratch) | None => {
            if !selector.is_empty() {
                return Err(ExecutorError::SourceNotFound { path: crate::error::show(selector), hints: Vec::new() });
            }
            let empty = step.workspace.join(format!("bind{n}"));
            std::fs::create_dir(&empty).map_err(local)?;
            Ok((MountSource::Opened(open_path(&empty)?), None))
        }
    }
}
