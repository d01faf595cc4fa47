//! A revision of a git repository as the solver sees it.
//!
//! **In the key:** the commit, the directory in it, whether submodules come along, and with `.git` the address, since that
//! is written there. **Left out:** the address otherwise, and the name by which the commit was found: a commit's name says
//! all that is in it. With a whole commit in the Dockerfile the server is not asked before the files are needed.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use rbuild_graph::ops::GitSource;
use rbuild_solver::{InputContent, KeyPart, KeySpec, LogStream, OpError, Ran, RunContext, RunOp};
use tokio::sync::Mutex;

use super::source::fail;
use crate::sources::git::{Pinned, Repository, redacted};
use crate::{Executor, ExecutorError, Value};

pub(crate) struct GitRun {
    executor: Arc<Executor>,
    source: GitSource,
    /// Asked at most once, so that key and run mean the same commit.
    pinned: Mutex<Option<Pinned>>,
}

impl GitRun {
    pub(crate) fn new(executor: Arc<Executor>, source: GitSource) -> GitRun {
        GitRun { executor, source, pinned: Mutex::new(None) }
    }

    async fn pin(&self) -> Result<Pinned, ExecutorError> {
        let mut slot = self.pinned.lock().await;
        if let Some(pinned) = &*slot {
            return Ok(pinned.clone());
        }
        let work = Work::new(&self.executor)?;
        let pinned = self.repository(&work)?.pin().await?;
        *slot = Some(pinned.clone());
        Ok(pinned)
    }

    fn repository(&self, work: &Work) -> Result<Repository<'_>, ExecutorError> {
        Repository::new(self.executor.git.as_ref(), &self.source, work.0.clone())
    }

    async fn fetch(&self, context: &RunContext) -> Result<Value, ExecutorError> {
        let pinned = self.pin().await?;
        let work = Work::new(&self.executor)?;
        let repository = self.repository(&work)?;
        let name = self.source.reference.as_deref().unwrap_or("HEAD");
        context.events.log(context.step, LogStream::Stdout, format!("{} {name}\n", pinned.commit));
        let active = self.executor.store.snapshots().prepare(&self.executor.lease, None)?;
        repository.check_out(&pinned, active.upper().to_owned()).await?;
        Ok(Value::Snapshot(self.executor.store.snapshots().commit(active)?))
    }
}

/// A directory of the build's lease that goes when it is no longer needed.
struct Work(std::path::PathBuf);

impl Work {
    fn new(executor: &Executor) -> Result<Work, ExecutorError> {
        Ok(Work(executor.lease.ingest_path("git")?))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // What stays goes with the lease.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl RunOp<Value> for GitRun {
    fn key(&self) -> BoxFuture<'_, Result<KeySpec, OpError>> {
        async {
            let pinned = self.pin().await.map_err(fail)?;
            let source = &self.source;
            let mut parts = vec![
                KeyPart::text("op", "git"),
                KeyPart::text("commit", &pinned.commit),
                KeyPart::text("subdir", source.subdir.as_deref().unwrap_or_default()),
                KeyPart::text("submodules", source.submodules.to_string()),
            ];
            if source.keep_git_dir {
                parts.push(KeyPart::text("git dir of", redacted(&source.remote)));
            }
            Ok(KeySpec::new(parts))
        }
        .boxed()
    }

    fn content(&self, _input: usize, _value: &Value) -> BoxFuture<'_, Result<InputContent, OpError>> {
        futures::future::ready(Err(fail(ExecutorError::Invalid("a source has no inputs".into())))).boxed()
    }

    fn run(&self, _inputs: Vec<Value>, context: RunContext) -> BoxFuture<'_, Result<Ran<Value>, OpError>> {
        async move { self.fetch(&context).await.map(Ran::one).map_err(fail) }.boxed()
    }
}
