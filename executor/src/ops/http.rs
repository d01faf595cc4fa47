//! A file from the web as the solver sees it.
//!
//! **In the key:** the digest of the content, the file's name, mode and owner, and the time the server gives it; with a
//! checksum in the Dockerfile that checksum stands for content and time, and the server is not asked before the file is needed.
//! **Left out:** the URL: the same bytes from a mirror are the same file.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use futures::future::BoxFuture;
use rbuild_graph::ops::HttpSource;
use rbuild_oci::Digest;
use rbuild_solver::{Event, InputContent, KeyPart, KeySpec, OpError, Ran, RunContext, RunOp, Unit};
use tokio::sync::Mutex;

use super::source::fail;
use crate::files::writer::{Look, TreeWriter};
use crate::{Executor, ExecutorError, Value};

pub(crate) struct HttpRun {
    executor: Arc<Executor>,
    source: HttpSource,
    /// Fetched at most once, whoever asks first.
    fetched: Mutex<Option<Fetched>>,
}

#[derive(Clone)]
struct Fetched {
    /// A blob in the store, held by the build's lease.
    digest: Digest,
    /// Seconds since 1970; 0 when the server does not say.
    modified: i64,
}

impl HttpRun {
    pub(crate) fn new(executor: Arc<Executor>, source: HttpSource) -> HttpRun {
        HttpRun { executor, source, fetched: Mutex::new(None) }
    }

    async fn fetch(&self, context: Option<&RunContext>) -> Result<Fetched, OpError> {
        let mut slot = self.fetched.lock().await;
        if let Some(fetched) = &*slot {
            return Ok(fetched.clone());
        }
        let fetched = self.download(context).await.map_err(fail)?;
        *slot = Some(fetched.clone());
        Ok(fetched)
    }

    async fn download(&self, context: Option<&RunContext>) -> Result<Fetched, ExecutorError> {
        let bad = |error: rbuild_registry::Error| ExecutorError::Web {
            url: self.source.url.clone(),
            message: error.to_string(),
        };
        let store = &self.executor.store;
        let mut file = self.executor.web.open_web(&self.source.url).await.map_err(bad)?;
        let total = file.size();
        let mut writer = match &self.source.checksum {
            Some(checksum) => store.blobs().writer_for(checksum, &self.executor.lease)?,
            None => store.blobs().writer(&self.executor.lease)?,
        };
        let mut received = 0;
        while let Some(bytes) = file.chunk().await.map_err(bad)? {
            // A write of one network chunk to the page cache is short; the store's disk is not waited for.
            writer
                .write_all(&bytes)
                .map_err(|error| ExecutorError::Start(format!("cannot store the download: {error}")))?;
            received += bytes.len() as u64;
            if let Some(context) = context {
                report(context, &self.source.url, received, total, false);
            }
        }
        if let Some(context) = context {
            report(context, &self.source.url, received, total, true);
        }
        let (digest, _) = writer.commit(self.source.checksum.as_ref(), None).map_err(|error| match error {
            rbuild_store::StoreError::WrongDigest { expected, found, .. } => ExecutorError::Web {
                url: self.source.url.clone(),
                message: format!("digest mismatch {found}: {expected}"),
            },
            error => error.into(),
        })?;
        let modified = file.last_modified.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        Ok(Fetched { digest, modified: modified.as_ref().map_or(0, Duration::as_secs) as i64 })
    }
}

fn report(context: &RunContext, url: &str, current: u64, total: Option<u64>, done: bool) {
    let (id, item) = (context.step, url.to_owned());
    context.events.send(Event::Progress { id, item, current, total, unit: Unit::Bytes, done });
}

impl RunOp<Value> for HttpRun {
    fn key(&self) -> BoxFuture<'_, Result<KeySpec, OpError>> {
        async move {
            let source = &self.source;
            let mut parts = vec![
                KeyPart::text("op", "http"),
                KeyPart::text("name", &source.filename),
                KeyPart::text("mode", format!("{:o}", source.mode.unwrap_or(0o600))),
                KeyPart::text("owner", format!("{}:{}", source.uid, source.gid)),
            ];
            match &source.checksum {
                Some(checksum) => parts.push(KeyPart::digest("checksum", checksum)),
                None => {
                    let fetched = self.fetch(None).await?;
                    parts.push(KeyPart::digest("content", &fetched.digest));
                    parts.push(KeyPart::text("modified", fetched.modified.to_string()));
                }
            }
            Ok(KeySpec::new(parts))
        }
        .boxed()
    }

    fn content(&self, _input: usize, _value: &Value) -> BoxFuture<'_, Result<InputContent, OpError>> {
        futures::future::ready(Err(fail(ExecutorError::Invalid("a source has no inputs".into())))).boxed()
    }

    fn run(&self, _inputs: Vec<Value>, context: RunContext) -> BoxFuture<'_, Result<Ran<Value>, OpError>> {
        async move {
            let fetched = self.fetch(Some(&context)).await?;
            let (executor, source) = (self.executor.clone(), self.source.clone());
            crate::blocking(move || snapshot(&executor, &source, &fetched)).await.map(Ran::one)
        }
        .boxed()
    }
}

/// A tree with the one file.
fn snapshot(executor: &Executor, source: &HttpSource, fetched: &Fetched) -> Result<Value, ExecutorError> {
    let active = executor.store.snapshots().prepare(&executor.lease, None)?;
    let mut writer = TreeWriter::new(active.upper(), None)?;
    let mut blob = executor.store.blobs().open(&fetched.digest)?;
    let look =
        Look { mode: source.mode.unwrap_or(0o600), uid: source.uid, gid: source.gid, mtime: (fetched.modified, 0) };
    writer.stream_file(source.filename.as_bytes(), &mut blob, &look)?;
    writer.finish()?;
    Ok(Value::Snapshot(executor.store.snapshots().commit(active)?))
}
