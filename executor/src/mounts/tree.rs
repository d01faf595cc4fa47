//! A copy of a part of an input that belongs to one mount.
//!
//! The user's own directory is never shown to a process: what `.dockerignore` hides would be there, files would belong to
//! whoever owns them outside, and they could change under the process. Copying shares blocks where the file system can.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::local;
use crate::ExecutorError;
use crate::files::copy::{CopyRules, copy};
use crate::files::select::Selected;
use crate::files::writer::TreeWriter;
use crate::ops::file::Source;

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
        link: false,
    };
    copy(&mut writer, source.fd.as_fd(), std::slice::from_ref(selected), &rules)?;
    writer.finish()?;
    Ok(dir.join(NAME))
}
