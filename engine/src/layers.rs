//! Computes layers while the build goes on.
//!
//! The DiffId of a layer is a hash of a canonical tar, and nobody needs it before the image is described. So as soon as
//! a step of the final image has run, its layer is hashed on another thread; when the last step ends, most are done. A
//! layer that is to be compressed in the end is compressed in the same pass. What there is to advise about the layer is
//! found on the way.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use rbuild_executor::Value;
use rbuild_frontend::Diagnostic;
use rbuild_graph::{Span, Vertex};
use rbuild_oci::Compression;
use rbuild_solver::{InputContent, KeySpec, OpError, OpFactory, Ran, RunContext, RunOp};
use rbuild_store::{Lease, Store};
use tokio::task::JoinHandle;

use crate::advice;

/// Hashes layers behind the build's back.
#[derive(Clone)]
pub(crate) struct LayerHasher {
    store: Store,
    /// Layers of the image under the result.
    base: usize,
    ahead: Option<Ahead>,
    pending: Arc<Mutex<Vec<JoinHandle<Vec<Diagnostic>>>>>,
}

/// How layers will travel: compressed so, and held by this lease until they do.
#[derive(Clone)]
pub(crate) struct Ahead {
    pub(crate) how: Compression,
    pub(crate) level: i32,
    pub(crate) lease: Lease,
}

impl LayerHasher {
    pub(crate) fn new(store: Store, base: usize, ahead: Option<Ahead>) -> LayerHasher {
        LayerHasher { store, base, ahead, pending: Arc::default() }
    }

    /// A factory whose operations, if their step is named in `wanted`, have their layers hashed once they ran.
    pub(crate) fn wrap(&self, factory: OpFactory<Value>, wanted: HashSet<String>) -> OpFactory<Value> {
        let hasher = self.clone();
        Arc::new(move |vertex: &Vertex| {
            let inner = factory(vertex)?;
            if !wanted.contains(&vertex.meta.name) {
                return Ok(inner);
            }
            Ok(Arc::new(Hashed { inner, hasher: hasher.clone(), span: vertex.meta.span }) as Arc<dyn RunOp<Value>>)
        })
    }

    fn start(&self, value: &Value, span: Option<Span>) {
        let Some(snapshot) = value.snapshot().cloned() else { return };
        let (store, base, ahead) = (self.store.clone(), self.base, self.ahead.clone());
        let work = move || {
            let done = match &ahead {
                Some(Ahead { how, level, lease }) => store.layers().diff_compressed(snapshot.id(), *how, *level, lease),
                None => store.layers().diff(snapshot.id()),
            };
            if let Err(error) = done {
                // Whoever needs the layer asks again and reports it.
                tracing::debug!(%error, "a layer was not hashed ahead");
            }
            advice::of_layer(&store, snapshot.id(), base, span).unwrap_or_else(|error| {
                tracing::debug!(%error, "a layer was not looked into");
                Vec::new()
            })
        };
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.push(tokio::task::spawn_blocking(work));
    }

    /// Waits for what is under way; gives what there is to say about the layers.
    pub(crate) async fn settle(&self) -> Vec<Diagnostic> {
        let pending = std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        futures::future::join_all(pending).await.into_iter().filter_map(Result::ok).flatten().collect()
    }
}

struct Hashed {
    inner: Arc<dyn RunOp<Value>>,
    hasher: LayerHasher,
    span: Option<Span>,
}

impl RunOp<Value> for Hashed {
    fn key(&self) -> BoxFuture<'_, Result<KeySpec, OpError>> {
        self.inner.key()
    }

    fn content(&self, input: usize, value: &Value) -> BoxFuture<'_, Result<InputContent, OpError>> {
        self.inner.content(input, value)
    }

    fn run(&self, inputs: Vec<Value>, context: RunContext) -> BoxFuture<'_, Result<Ran<Value>, OpError>> {
        async move {
            let ran = self.inner.run(inputs, context).await?;
            if let Some(output) = ran.outputs.first() {
                self.hasher.start(output, self.span);
            }
            Ok(ran)
        }
        .boxed()
    }

    fn needs_permit(&self) -> bool {
        self.inner.needs_permit()
    }
}
