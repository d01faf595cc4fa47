//! `RUN --mount=type=bind`: files of the build context, of a stage or of an image.
//!
//! A stage or image is mounted from its own layers, read-only, or with a layer above that is thrown away. Of a context
//! the selected part is copied, which serves both: see [`super::tree`].

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rbuild_graph::ops::Mount;
use rbuild_runtime::MountSource;
use rbuild_store::Active;

use super::{Step, local, open_path, tree};
use crate::ops::file::Source;
use crate::{ExecutorError, Value};

pub(super) enum Bound {
    Source(MountSource),
    /// Writable: what is written goes with the snapshot that is never committed.
    Throwaway(MountSource, Active),
}

pub(super) fn source(step: &mut Step<'_>, n: usize, mount: &Mount) -> Result<Bound, ExecutorError> {
    let executor = step.executor;
    let selector = mount.selector.as_deref().unwrap_or_default();
    match mount.input.map(|input| &step.inputs[input]) {
        Some(Value::Snapshot(snapshot)) => {
            let path = if selector.is_empty() { b"." } else { selector };
            let path = PathBuf::from(std::ffi::OsStr::from_bytes(path));
            if mount.read_only {
                let mounts = executor.store.snapshots().view(snapshot.id())?;
                return Ok(Bound::Source(MountSource::Layers { mounts, path }));
            }
            let active = executor.store.snapshots().prepare(&executor.lease, Some(snapshot.id()))?;
            Ok(Bound::Throwaway(MountSource::Layers { mounts: active.mounts().clone(), path }, active))
        }
        Some(value @ Value::Context(_)) => {
            let source = Source::open(executor, value)?;
            let selected = match step.selections.remove(&n) {
                Some(selected) => selected,
                None => source.select_path(selector)?,
            };
            // What comes from the user's machine belongs to root.
            let copy = tree::copy_of(&step.workspace.join(format!("bind{n}")), &source, &selected, Some((0, 0)))?;
            Ok(Bound::Source(MountSource::Opened(open_path(&copy)?)))
        }
        Some(Value::Scratch) | None => {
            if !selector.is_empty() {
                return Err(ExecutorError::SourceNotFound { path: crate::error::show(selector), hints: Vec::new() });
            }
            let empty = step.workspace.join(format!("bind{n}"));
            std::fs::create_dir(&empty).map_err(local)?;
            Ok(Bound::Source(MountSource::Opened(open_path(&empty)?)))
        }
    }
}
