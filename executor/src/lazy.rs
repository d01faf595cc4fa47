//! File trees that are not here yet.
//!
//! A result that another machine cached is known by its layers. Nothing of it moves until an operation needs the files:
//! then, and only then, its layers are brought. Operations know nothing of this: whoever is about to read or run finds
//! every such input replaced by a snapshot.

use std::fmt;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use rbuild_registry::PackedLayer;
use rbuild_solver::{InputContent, KeySpec, OpError, Ran, RunContext, RunOp};
use rbuild_store::Snapshot;

use crate::error::ExecutorError;
use crate::value::Value;

/// A file tree whose layers lie elsewhere.
pub trait RemoteTree: Send + Sync {
    /// Its layers, the lowest first; never empty.
    fn layers(&self) -> &[PackedLayer];

    /// Where they lie, as people are shown it.
    fn place(&self) -> &str;

    /// The tree, brought here at the first call.
    fn bring(&self) -> BoxFuture<'_, Result<Snapshot, ExecutorError>>;
}

/// A [`RemoteTree`] as a result.
#[derive(Clone)]
pub struct Lazy(Arc<dyn RemoteTree>);

impl Lazy {
    pub fn new(tree: Arc<dyn RemoteTree>) -> Lazy {
        Lazy(tree)
    }
}

impl std::ops::Deref for Lazy {
    type Target = dyn RemoteTree;

    fn deref(&self) -> &(dyn RemoteTree + 'static) {
        self.0.as_ref()
    }
}

impl fmt::Debug for Lazy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lazy({} layers)", self.layers().len())
    }
}

/// The value with its files here.
///
/// # Errors
/// They cannot be brought.
pub async fn brought(value: Value) -> Result<Value, ExecutorError> {
    match value {
        Value::Lazy(lazy) => lazy.bring().await.map(Value::Snapshot),
        here => Ok(here),
    }
}

/// An operation whose inputs are brought before it looks at them.
pub(crate) struct Brought(pub(crate) Arc<dyn RunOp<Value>>);

impl RunOp<Value> for Brought {
    fn key(&self) -> BoxFuture<'_, Result<KeySpec, OpError>> {
        self.0.key()
    }

    fn content(&self, input: usize, value: &Value) -> BoxFuture<'_, Result<InputContent, OpError>> {
        let Value::Lazy(lazy) = value else { return self.0.content(input, value) };
        let lazy = lazy.clone();
        async move {
            let here = lazy.bring().await.map_err(|error| Arc::new(error) as OpError)?;
            self.0.content(input, &Value::Snapshot(here)).await
        }
        .boxed()
    }

    fn run(&self, inputs: Vec<Value>, context: RunContext) -> BoxFuture<'_, Result<Ran<Value>, OpError>> {
        if !inputs.iter().any(|input| matches!(input, Value::Lazy(_))) {
            return self.0.run(inputs, context);
        }
        async move {
            let here = futures::future::try_join_all(inputs.into_iter().map(brought)).await;
            self.0.run(here.map_err(|error| Arc::new(error) as OpError)?, context).await
        }
        .boxed()
    }

    fn needs_permit(&self) -> bool {
        self.0.needs_permit()
    }

    fn is_brief(&self) -> bool {
        self.0.is_brief()
    }
}
