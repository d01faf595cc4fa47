//! What a RUN sees besides its root file system: one file per kind of mount.
//!
//! Everything is made or taken before the process starts and held by [`Prepared`] until it has ended. Nothing here
//! mounts: the sandbox is given sources (descriptors, layers, files for its memory) and mounts them where only its own
//! processes see them, so a killed build leaves no mount behind.
//!
//! Mounts go in the order of their targets, not of the Dockerfile: then one below another's target is never covered by it.

mod bind;
mod cache;
pub mod cache_objects;
mod inline;
mod secret;
mod ssh;
mod tmpfs;
mod tree;

pub use tree::ContextCopies;

use std::any::Any;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rbuild_graph::ops::{ExecOp, Mount, MountKind};
use rbuild_runtime::{ExtraMount, MountSource};
use rbuild_solver::{ContentHash, RunContext};
use rustix::fs::{Mode, OFlags};

use crate::files::select::Selected;
use crate::{Executor, ExecutorError, Value};

/// One process and what its mounts are made of.
pub(crate) struct Step<'a> {
    pub(crate) executor: &'a Executor,
    pub(crate) op: &'a ExecOp,
    pub(crate) inputs: &'a [Value],
    /// A directory for what lives as long as the process.
    pub(crate) workspace: &'a Path,
    /// What was hashed for the key, by the mount's number: exactly that is shown.
    pub(crate) selections: HashMap<usize, (Selected, ContentHash)>,
    pub(crate) context: &'a RunContext,
}

/// The mounts of one process. Drop it after the process's end: that lets go of locks, agents and throw-away copies.
pub(crate) struct Prepared {
    pub(crate) mounts: Vec<ExtraMount>,
    /// `NAME=value` of secrets: for the process alone.
    pub(crate) env: Vec<String>,
    /// Locks of caches, agents, throw-away layers: each ends by being dropped.
    _held: Vec<Box<dyn Any>>,
}

/// Makes the mounts of a process. It may wait for a cache that others use; cancelling ends that.
///
/// # Errors
/// A source that is not there, a secret or agent that is required and not lent, or the step was cancelled.
pub(crate) fn prepare(mut step: Step<'_>) -> Result<Prepared, ExecutorError> {
    let mut prepared = Prepared { mounts: Vec::new(), env: Vec::new(), _held: Vec::new() };
    let mut caches = cache::take_all(&step)?;
    let mut ordered: Vec<(usize, &Mount)> =
        step.op.mounts.iter().enumerate().filter(|(_, m)| m.target != b"/").collect();
    ordered.sort_by(|(_, a), (_, b)| a.target.cmp(&b.target));
    for (n, mount) in ordered {
        let Some(source) = prepared.source(&mut step, n, mount, &mut caches)? else { continue };
        let destination = PathBuf::from(std::ffi::OsStr::from_bytes(&mount.target));
        prepared.mounts.push(ExtraMount { destination, source, options: options(mount) });
    }
    prepared._held.push(Box::new(caches));
    Ok(prepared)
}

impl Prepared {
    /// What is mounted for `mount`; `None` is nothing at all.
    fn source(
        &mut self,
        step: &mut Step<'_>,
        n: usize,
        mount: &Mount,
        caches: &mut cache::Caches,
    ) -> Result<Option<MountSource>, ExecutorError> {
        Ok(Some(match &mount.kind {
            MountKind::Bind => {
                let (source, rests_on) = bind::source(step, n, mount)?;
                self._held.extend(rests_on.map(|active| Box::new(active) as Box<dyn Any>));
                source
            }
            MountKind::Cache { .. } => cache::source(step, mount, caches)?,
            MountKind::Tmpfs { size } => tmpfs::source(*size),
            MountKind::Inline { content, mode } => inline::source(step, n, content, *mode)?,
            MountKind::Secret { .. } => {
                let lent = secret::lend(step, mount)?;
                self.env.extend(lent.env);
                return Ok(lent.file);
            }
            MountKind::Ssh { .. } => match ssh::lend(step, n, mount)? {
                Some((source, proxy)) => {
                    self._held.push(Box::new(proxy));
                    source
                }
                None => return Ok(None),
            },
            _ => return Err(ExecutorError::Unsupported { what: "this kind of mount".into() }),
        }))
    }
}

fn options(mount: &Mount) -> Vec<String> {
    let words: &[&str] = match &mount.kind {
        MountKind::Secret { .. } => &["nosuid", "nodev", "noexec"],
        MountKind::Ssh { .. } | MountKind::Tmpfs { .. } => &["nosuid", "nodev"],
        _ => &[],
    };
    // An agent's socket is not written to, it is connected to.
    let read_only = mount.read_only && !matches!(mount.kind, MountKind::Ssh { .. });
    let read_only = read_only || matches!(mount.kind, MountKind::Inline { .. } | MountKind::Secret { .. });
    words.iter().copied().chain(read_only.then_some("ro")).map(str::to_owned).collect()
}

/// Waits for the client of the build, unless nobody waits for the step any more.
fn ask<T>(context: &RunContext, answer: impl Future<Output = Result<T, ExecutorError>>) -> Result<T, ExecutorError> {
    let mut cancel = context.cancel.clone();
    tokio::runtime::Handle::current().block_on(async {
        tokio::select! {
            answer = answer => answer,
            () = cancel.cancelled() => Err(cancelled()),
        }
    })
}

/// A failed start whose reason is a mount below another that is read-only: the commonest mistake with several mounts.
pub(crate) fn explain(op: &ExecOp, error: rbuild_runtime::Error) -> ExecutorError {
    let read_only = matches!(&error, rbuild_runtime::Error::System { source, .. }
        if source.kind() == io::ErrorKind::ReadOnlyFilesystem);
    let below = |outer: &Mount, inner: &Mount| {
        inner.target.strip_prefix(outer.target.as_slice()).is_some_and(|rest| rest.starts_with(b"/"))
    };
    let mut pairs = op.mounts.iter().flat_map(|inner| op.mounts.iter().map(move |outer| (outer, inner)));
    match pairs.find(|(outer, inner)| read_only && outer.read_only && outer.target != b"/" && below(outer, inner)) {
        Some((outer, inner)) => {
            let (outer, inner) = (String::from_utf8_lossy(&outer.target), String::from_utf8_lossy(&inner.target));
            ExecutorError::Mount {
                message: format!("{error}: {inner} does not exist in the read-only mount {outer}"),
                hints: vec![format!("add rw to the mount of {outer}, or make the directory in its source")],
            }
        }
        None => ExecutorError::Runtime(error),
    }
}

fn cancelled() -> ExecutorError {
    ExecutorError::Cancelled("the step was cancelled")
}

/// Something of our own making, as a mount source.
fn open_path(path: &Path) -> Result<OwnedFd, ExecutorError> {
    rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| local(errno.into()))
}

fn local(error: io::Error) -> ExecutorError {
    ExecutorError::Start(format!("cannot prepare a mount: {error}"))
}
