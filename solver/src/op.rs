//! What the solver asks of an operation.

use std::sync::Arc;

use futures::future::BoxFuture;
use rbuild_graph::Vertex;
use tokio::sync::watch;

use crate::event::{Events, StepId};
use crate::key::{CacheKey, ContentHash, KeyPart, KeySpec};
use crate::record::Usage;

/// Why an operation failed. Shared, since many may wait for one operation.
pub type OpError = Arc<dyn std::error::Error + Send + Sync>;

/// Makes an operation real: from what a vertex says to what can be run.
pub type OpFactory<R> = Arc<dyn Fn(&Vertex) -> Result<Arc<dyn RunOp<R>>, OpError> + Send + Sync>;

/// An operation as the solver sees it: how it is cached, and how it runs.
///
/// None of the calls may block the thread for more than about a millisecond: long work belongs on a thread made for it
/// (`spawn_blocking`, a pool). An operation without permit ([`needs_permit`](RunOp::needs_permit)) may be polled
/// in the middle of the solver's own work.
pub trait RunOp<R>: Send + Sync {
    /// What the operation is. Asked once per graph; must not depend on the results of inputs.
    fn key(&self) -> BoxFuture<'_, Result<KeySpec, OpError>>;

    /// The hash of what the operation selects of input `input`, given that input's result. Asked only of inputs that
    /// [`key`](RunOp::key) declared `by_content`.
    fn content(&self, input: usize, value: &R) -> BoxFuture<'_, Result<InputContent, OpError>>;

    /// Does the work. Success means that all outputs exist and stay as they are. Dropping the future cancels; work on
    /// other threads asks [`RunContext::cancel`].
    fn run(&self, inputs: Vec<R>, context: RunContext) -> BoxFuture<'_, Result<Ran<R>, OpError>>;

    /// Whether running counts against the number of operations that run at once. Sources that merely name
    /// something already here say no.
    fn needs_permit(&self) -> bool {
        true
    }

    /// Whether running it, on inputs whose content was asked for, is done sooner than other processes can be told of it: then
    /// none is, and two that do the same at once both do it.
    fn is_brief(&self) -> bool {
        false
    }
}

/// The content of one input, as an operation selects it.
#[derive(Debug, Clone)]
pub struct InputContent {
    pub hash: ContentHash,
    /// For the record only.
    pub parts: ContentParts,
}

/// What a content hash is made of: a hash for each path, say. Worked out when somebody writes it down, since a build that
/// finds everything never does.
#[derive(Clone)]
pub struct ContentParts(Arc<dyn Fn() -> Vec<KeyPart> + Send + Sync>);

impl ContentParts {
    pub fn new(list: impl Fn() -> Vec<KeyPart> + Send + Sync + 'static) -> ContentParts {
        ContentParts(Arc::new(list))
    }

    pub fn list(&self) -> Vec<KeyPart> {
        (self.0)()
    }
}

impl From<Vec<KeyPart>> for ContentParts {
    fn from(parts: Vec<KeyPart>) -> ContentParts {
        ContentParts::new(move || parts.clone())
    }
}

impl std::fmt::Debug for ContentParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.list()).finish()
    }
}

/// What an execution is given besides its inputs.
#[derive(Clone)]
pub struct RunContext {
    /// The step that log lines and progress belong to.
    pub step: StepId,
    /// Reaches every build that waits for this execution.
    pub events: Events,
    /// The settled key: what the result will be saved under.
    pub key: CacheKey,
    /// Somebody asked for the work to be done anew: what an earlier execution left is not to be used.
    pub fresh: bool,
    pub cancel: Cancel,
}

/// What an execution gave.
#[derive(Debug, Clone)]
pub struct Ran<R> {
    /// As many as the vertex has outputs.
    pub outputs: Vec<R>,
    pub usage: Usage,
}

impl<R> Ran<R> {
    /// A single output, nothing measured.
    pub fn one(output: R) -> Ran<R> {
        Ran { outputs: vec![output], usage: Usage::default() }
    }
}

/// Tells work on other threads that nobody waits for it any more.
///
/// As long as a clone lives, the execution counts as being at work: work that outlives its future (a thread that blocks)
/// keeps one until it is over, so that [`Solver::idle`](crate::Solver::idle) waits for it.
#[derive(Debug, Clone)]
pub struct Cancel {
    cancelled: watch::Receiver<bool>,
    _at_work: Option<Arc<AtWork>>,
}

impl Cancel {
    pub fn is_cancelled(&self) -> bool {
        *self.cancelled.borrow()
    }

    /// Ends when the execution is cancelled. Never ends when it comes to its own end.
    pub async fn cancelled(&mut self) {
        if self.cancelled.wait_for(|cancelled| *cancelled).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// One that nobody cancels, for running an operation by hand.
    pub fn never() -> Cancel {
        Cancel { cancelled: watch::channel(false).1, _at_work: None }
    }
}

/// The other end of [`Cancel`]: cancels when dropped before [`finish`](CancelOnDrop::finish).
#[derive(Debug)]
pub(crate) struct CancelOnDrop {
    sender: watch::Sender<bool>,
    finished: bool,
}

impl CancelOnDrop {
    pub(crate) fn new(at_work: AtWork) -> (CancelOnDrop, Cancel) {
        let (sender, cancelled) = watch::channel(false);
        (CancelOnDrop { sender, finished: false }, Cancel { cancelled, _at_work: Some(Arc::new(at_work)) })
    }

    pub(crate) fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if !self.finished {
            self.sender.send_replace(true);
        }
    }
}

/// One that is at work, as long as it lives.
#[derive(Debug)]
pub(crate) struct AtWork(Arc<watch::Sender<usize>>);

impl AtWork {
    pub(crate) fn new(count: &Arc<watch::Sender<usize>>) -> AtWork {
        count.send_modify(|count| *count += 1);
        AtWork(count.clone())
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
