//! A file whose text stands in the Dockerfile itself: the script of a heredoc.

use std::os::unix::fs::PermissionsExt;

use rbuild_runtime::MountSource;

use super::{Step, local, open_path};
use crate::ExecutorError;

pub(super) fn source(step: &Step<'_>, n: usize, content: &[u8], mode: u32) -> Result<MountSource, ExecutorError> {
    let path = step.workspace.join(format!("inline{n}"));
    let permissions = std::fs::Permissions::from_mode(mode);
    std::fs::write(&path, content).and_then(|()| std::fs::set_permissions(&path, permissions)).map_err(local)?;
    Ok(MountSource::Opened(open_path(&path)?))
}
