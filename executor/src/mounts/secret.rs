//! `RUN --mount=type=secret`: something the client of the build lends to one process.
//!
//! It is asked for when the process is about to start, never for a key, and goes from the client's memory into a file in
//! memory that only the sandbox sees, or into a variable of the process. It is written to no disk.

use rbuild_graph::ops::{Mount, MountKind};
use rbuild_runtime::{MemoryFile, MountSource};

use super::{Step, ask};
use crate::ExecutorError;

/// What becomes of a secret; nothing, when it is not lent and not required.
#[derive(Default)]
pub(super) struct Lent {
    pub(super) file: Option<MountSource>,
    /// `NAME=value`.
    pub(super) env: Option<String>,
}

pub(super) fn lend(step: &Step<'_>, mount: &Mount) -> Result<Lent, ExecutorError> {
    let MountKind::Secret { id, env, file, required, mode, uid, gid } = &mount.kind else { return Ok(Lent::default()) };
    let Some(secret) = ask(step.context, step.executor.session.secret(id))? else {
        return match required {
            true => Err(ExecutorError::not_lent(
                format!("secret {id}: not found"),
                format!("lend it with --secret id={id},src=FILE or --secret id={id},env=VARIABLE"),
            )),
            false => Ok(Lent::default()),
        };
    };
    let env = match env {
        Some(name) => match std::str::from_utf8(secret.expose()) {
            Ok(value) if !value.contains('\0') => Some(format!("{name}={value}")),
            _ => return Err(ExecutorError::Invalid(format!("secret {id}: not text, so it cannot be a variable"))),
        },
        None => None,
    };
    let content = || secret.expose().to_vec();
    let file = file.then(|| MountSource::Memory(MemoryFile { content: content(), mode: *mode, uid: *uid, gid: *gid }));
    Ok(Lent { file, env })
}
