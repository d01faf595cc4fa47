//! A copy of a part of an input that belongs to one mount.
//!
//! The user's own directory is never shown to a process: what `.dockerignore` hides would be there, files would belong to
//! whoever owns them outside, and they could change under the process. Copying shares blocks where the file system can.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_solver::ContentHash;

use super::local;
use crate::ExecutorError;
use crate::files::copy::{CopyRules, copy};
use crate::files::select::Selected;
use crate::files::writer::TreeWriter;
use crate::ops::file::Source;

/// Read-only copies of parts of contexts, each made once for all steps of a build that show the same.
///
/// They lie in the lease's own directory and go with it.
#[derive(Debug, Default)]
pub struct ContextCopies(Mutex<HashMap<Shown, Slot>>);

/// A context's name, the path in it, and what was found there.
type Shown = (String, Vec<u8>, ContentHash);
/// Empty until the copy is whole; locked while it is made.
type Slot = Arc<Mutex<Option<PathBuf>>>;

impl ContextCopies {
    pub(super) fn get(
        &self,
        context: &str,
        path: &[u8],
        content: ContentHash,
        make: impl FnOnce() -> Result<PathBuf, ExecutorError>,
    ) -> Result<PathBuf, ExecutorError> {
        let shown = (context.to_owned(), path.to_vec(), content);
        let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(shown).or_default().clone();
        let mut copy = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = &*copy {
            return Ok(path.clone());
        }
        Ok(copy.insert(make()?).clone())
    }
}

/// Copies `selected` to a file or directory below `dir`, which is made. `owner` replaces the owners of the source.
///
/// # Errors
/// The source changed since it was selected, or something cannot be read or written.
pub(super) fn copy_of(
    dir: &Path,
    source: &Source,
    selected: &Selected,
    owner: Option<(u32, u32)>,
) -> Result<PathBuf, ExecutorError> {
    const NAME: &str = "tree";
    std::fs::create_dir(dir).map_err(local)?;
    let mut writer = TreeWriter::new(dir, None)?;
    let rules = CopyRules {
        dest: format!("/{NAME}").into_bytes(),
        owner,
        mode: None,
        timestamp: None,
        implied_time: 0,
        contents_only: true,
        parents: false,
        replace: false,
    };
    copy(&mut writer, source.fd.as_fd(), std::slice::from_ref(selected), &rules)?;
    writer.finish()?;
    Ok(dir.join(NAME))
}
