//! Sources as the solver sees them.
//!
//! **In the key of an image:** its ChainId and platform; the manifest's digest is another name of the same.
//! Left out: the name it was asked for by (the tag may move, another name may mean the same layers) and what its config
//! says, which reaches later keys as parts of the operations that use it.
//!
//! **In the key of a context:** the session and its name. Such a key is never written down; operations that read the
//! context are keyed by the content of what they select.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use rbuild_graph::ops::{ContextSource, ImageSource};
use rbuild_solver::{InputContent, KeyPart, KeySpec, OpError, Ran, RunContext, RunOp};

use crate::{Executor, ExecutorError, Value};

pub(crate) struct ImageRun {
    pub(crate) executor: Arc<Executor>,
    pub(crate) source: ImageSource,
}

impl RunOp<Value> for ImageRun {
    fn key(&self) -> BoxFuture<'_, Result<KeySpec, OpError>> {
        async {
            let pinned = self.executor.images.pin(&self.source).await.map_err(fail)?;
            let platform = KeyPart::text("platform", self.source.platform.to_string());
            let chain = pinned.chain.map_or_else(|| "scratch".to_owned(), |chain| chain.to_string());
            let mut spec =
                KeySpec::new(vec![KeyPart::text("op", "image"), KeyPart::digest("chain", chain), platform.clone()]);
            spec.aliases =
                vec![vec![KeyPart::text("op", "image"), KeyPart::digest("manifest", pinned.manifest), platform]];
            Ok(spec)
        }
        .boxed()
    }

    fn content(&self, _input: usize, _value: &Value) -> BoxFuture<'_, Result<InputContent, OpError>> {
        no_inputs()
    }

    fn run(&self, _inputs: Vec<Value>, context: RunContext) -> BoxFuture<'_, Result<Ran<Value>, OpError>> {
        async move {
            let unpacked =
                self.executor.images.unpack(&self.source, &self.executor.lease, &context).await.map_err(fail)?;
            Ok(Ran::one(unpacked.map_or(Value::Scratch, Value::Snapshot)))
        }
        .boxed()
    }
}

pub(crate) struct ContextRun {
    pub(crate) executor: Arc<Executor>,
    pub(crate) source: ContextSource,
}

impl RunOp<Value> for ContextRun {
    fn key(&self) -> BoxFuture<'_, Result<KeySpec, OpError>> {
        let mut spec = KeySpec::new(vec![
            KeyPart::text("op", "context"),
            KeyPart::text("session", self.executor.session.id()),
            KeyPart::text("name", &self.source.name),
        ]);
        spec.durable = false;
        futures::future::ready(Ok(spec)).boxed()
    }

    fn content(&self, _input: usize, _value: &Value) -> BoxFuture<'_, Result<InputContent, OpError>> {
        no_inputs()
    }

    fn run(&self, _inputs: Vec<Value>, _context: RunContext) -> BoxFuture<'_, Result<Ran<Value>, OpError>> {
        let context = self.executor.session.context(&self.source).map_err(fail);
        futures::future::ready(context.map(|context| Ran::one(Value::Context(context)))).boxed()
    }

    fn needs_permit(&self) -> bool {
        false
    }
}

pub(crate) fn fail(error: ExecutorError) -> OpError {
    Arc::new(error)
}

fn no_inputs<'a, T: Send + 'a>() -> BoxFuture<'a, Result<T, OpError>> {
    futures::future::ready(Err(fail(ExecutorError::Invalid("a source has no inputs".into())))).boxed()
}
