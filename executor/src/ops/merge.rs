//! Stacking file trees (`COPY --link`) as the solver sees it.
//!
//! **In the key:** the trees, by their keys, in order. **Left out:** nothing.
//!
//! The first tree stays as it is; each further one comes on top as one more layer. A tree that stands on nothing ships as
//! the very layer it was made as, whatever is below: the step that made it does not run again when the tree below
//! changes, and registries have its bytes already. What is in its way gives way: links on the way to its files are
//! replaced, not followed, and its directories (those that were only implied included) look as it says. That is what
//! unpacking the layer does, so the image is the same here and where it is pulled. Stacking copies (sharing blocks where
//! the file system can): two snapshots of one inode would show inside containers.

use std::os::fd::AsFd;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use rbuild_graph::ops::MergeOp;
use rbuild_solver::{InputContent, InputKey, KeyPart, KeySpec, OpError, Ran, RunContext, RunOp};

use super::source::fail;
use crate::files::below::Below;
use crate::files::copy::{CopyRules, copy};
use crate::files::select::{Query, select};
use crate::files::writer::TreeWriter;
use crate::{Executor, ExecutorError, Value};

pub(crate) struct MergeRun {
    pub(crate) executor: Arc<Executor>,
    pub(crate) op: MergeOp,
}

impl RunOp<Value> for MergeRun {
    fn key(&self) -> BoxFuture<'_, Result<KeySpec, OpError>> {
        let mut spec = KeySpec::new(vec![KeyPart::text("op", "merge")]);
        spec.inputs = vec![InputKey::default(); self.op.inputs];
        futures::future::ready(Ok(spec)).boxed()
    }

    fn content(&self, _input: usize, _value: &Value) -> BoxFuture<'_, Result<InputContent, OpError>> {
        futures::future::ready(Err(fail(ExecutorError::Invalid("merging reads its inputs whole".into())))).boxed()
    }

    fn run(&self, inputs: Vec<Value>, _context: RunContext) -> BoxFuture<'_, Result<Ran<Value>, OpError>> {
        let executor = self.executor.clone();
        crate::blocking(move || merge(&executor, &inputs).map(Ran::one)).boxed()
    }
}

fn merge(executor: &Executor, inputs: &[Value]) -> Result<Value, ExecutorError> {
    let mut result = Value::Scratch;
    for (n, input) in inputs.iter().enumerate() {
        result = match (n, input) {
            (0, input) => input.clone(),
            (_, Value::Scratch) => result,
            (_, Value::Snapshot(tree)) => put_on(executor, &result, tree)?,
            (_, Value::Context(_)) => return Err(ExecutorError::Invalid("a build context cannot be merged".into())),
            (_, Value::Lazy(_)) => return Err(ExecutorError::not_brought()),
        };
    }
    Ok(result)
}

/// `tree`'s files over those of `base`, as one more layer.
fn put_on(executor: &Executor, base: &Value, tree: &rbuild_store::Snapshot) -> Result<Value, ExecutorError> {
    let snapshots = executor.store.snapshots();
    let active = snapshots.prepare(&executor.lease, base.snapshot().map(rbuild_store::Snapshot::id))?;
    let below = active.below().map(rbuild_runtime::mount_detached).transpose()?;
    let mut writer = TreeWriter::new(active.upper(), below.map(Below::from))?;
    let source = rbuild_runtime::mount_detached(&snapshots.view(tree.id())?)?;
    let everything = [Vec::new()];
    let query = Query {
        sources: &everything,
        wildcards: false,
        deep: false,
        allow_empty: true,
        follow_links: false,
        hidden: None,
        exclude: None,
    };
    let selected = select(source.as_fd(), &query)?;
    let rules = CopyRules {
        dest: b"/".to_vec(),
        owner: None,
        mode: None,
        timestamp: None,
        implied_time: 0,
        contents_only: true,
        parents: false,
        replace: true,
    };
    copy(&mut writer, source.as_fd(), &selected, &rules)?;
    let alone = tree.parent().is_none();
    // A layer stays one even where it changes nothing: else what the image consists of would depend on what is below.
    if !writer.finish()? && !alone {
        return Ok(base.clone());
    }
    let stacked = snapshots.commit(active)?;
    if alone {
        snapshots.set_layer_of(stacked.id(), tree.id())?;
    }
    Ok(Value::Snapshot(stacked))
}
