//! The three questions about a vertex, asked once per graph of a build and answered to many.
//!
//! * *known*: the key from definitions alone. Runs nothing, and needs no result of anything.
//! * *settled*: the key the result is saved under. May need the result of an input whose content stands in the key; never
//!   runs the vertex itself.
//! * *solved*: the result: from the cache, or from running the vertex on its inputs' results.
//!
//! Each is an ordinary async function over the answers of the rungs below. No state machine: what has been found out is
//! which questions have been answered.
//!
//! **One name.** A computation has one canonical key, all its other keys are aliases, so an input stands in its readers'
//! keys under one name and there is no product of alternatives. Where no input counts by content, and all inputs are
//! under their canonical names, the key from definitions *is* the canonical one, and no lookup is needed to know it. So a
//! build whose results are all there hashes its way to the last vertex and loads that one; lookups are made only where a
//! name may differ (content, other names of a source), and work goes backwards only from what is missing.
//!
//! **Tasks.** A question is polled once where it is asked, and becomes a task only if it has to wait. It is asked after
//! the questions it will ask itself, or steps aside first ([`leave`](crate::launch::leave)), so nothing is polled inside its parent (rule 4): a
//! chain of 50,000 nests no deeper than one of three.
//!
//! **Starting early.** A content key waits for its content, and a chain of such keys would make independent stages wait for
//! each other, only to learn that none of them is known. So each saved computation of several inputs leaves one name
//! per input (a *link*): where an input has none, no name that this input is part of can be known, whatever the other inputs
//! turn out to be. Then what has to run is started without waiting for the key (`is_new`, *hopeless*). Nothing is started
//! that a name still to be found could make unnecessary.
//!
//! **Ignoring the cache.** A vertex that ignores the cache runs once per build, and so does everything that reads it by
//! key: its name says nothing about the new result. What reads it by content is looked up under the new content, and
//! ends the spread if that is known. (So does BuildKit: an edge that ignores the cache has no keys that its readers could
//! match; only a checksum of its result can match again.) The new results replace the old ones.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures::channel::oneshot;
use futures::future::{BoxFuture, FutureExt, Shared, try_join_all};
use rbuild_graph::{BuildGraph, Edge, VertexId};
use tokio::task::AbortHandle;

use crate::cache::CacheError;
use crate::event::StepId;
use crate::key::CacheKey;
use crate::launch::launch;
use crate::op::{OpError, OpFactory};
use crate::record::MadeOf;
use crate::settle::{Known, Settled};
use crate::solver::{Panicked, Site, SolveError, Solved};

pub(crate) type Answer<T> = Result<T, SolveError>;

/// One build's hold on the vertices of one graph.
pub(crate) struct Ladder<R> {
    pub(crate) site: Arc<Site<R>>,
    pub(crate) graph: Arc<BuildGraph>,
    pub(crate) ops: OpFactory<R>,
    rungs: Mutex<Vec<Rungs<R>>>,
    hold: Mutex<Weak<Hold>>,
}

/// What has been asked about one vertex, and shown.
pub(crate) struct Rungs<R> {
    pub(crate) known: Asked<Arc<Known<R>>>,
    pub(crate) settled: Asked<Arc<Settled>>,
    hopeless: Asked<bool>,
    pub(crate) solved: Asked<Outputs<R>>,
    pub(crate) step: Option<StepId>,
    /// Set when it could not be avoided to run it: under which key, and what that is made of.
    pub(crate) tried: Option<(CacheKey, Arc<MadeOf>)>,
    /// Something was said about its start or end.
    pub(crate) shown: bool,
}

/// A question.
pub(crate) enum Asked<T> {
    Not,
    Waiting(Shared<oneshot::Receiver<Answer<T>>>),
    Told(Answer<T>),
}

/// The result.
#[derive(Clone)]
pub(crate) struct Outputs<R> {
    pub(crate) key: CacheKey,
    pub(crate) values: Arc<[R]>,
    pub(crate) durable: bool,
    pub(crate) cached: bool,
}

/// Rule 3: the tasks of a ladder are held by this alone, which the futures of its solves share. The last one to go lets go
/// of all of them. (Tasks hold the ladder, so the ladder must not be what holds the tasks: neither would ever go.)
struct Hold {
    /// `None` once it is over: no task starts any more.
    tasks: Mutex<Option<Vec<AbortHandle>>>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).take();
        tasks.into_iter().flatten().for_each(|task| task.abort());
    }
}

impl<T: Clone> Asked<T> {
    pub(crate) fn is_asked(&self) -> bool {
        !matches!(self, Asked::Not)
    }

    /// The good answer, if there is one by now.
    pub(crate) fn answer(&self) -> Option<T> {
        match self {
            Asked::Not => None,
            Asked::Waiting(shared) => shared.peek().and_then(|told| told.clone().ok()).and_then(Result::ok),
            Asked::Told(answer) => answer.clone().ok(),
        }
    }

    /// Forgets everything but a good answer.
    fn retain_success(&mut self) {
        *self = self.answer().map_or(Asked::Not, |good| Asked::Told(Ok(good)));
    }
}

/// An answer, or the place where it will be.
pub(crate) enum Reply<T: Clone> {
    Now(Answer<T>),
    Later(Shared<oneshot::Receiver<Answer<T>>>),
}

impl<T: Clone> Reply<T> {
    pub(crate) async fn get(self) -> Answer<T> {
        match self {
            Reply::Now(answer) => answer,
            // The sender went without a word: its task was cancelled.
            Reply::Later(shared) => shared.await.unwrap_or(Err(SolveError::Cancelled)),
        }
    }
}

impl<R: Clone + Send + Sync + 'static> Ladder<R> {
    pub(crate) fn new(site: Arc<Site<R>>, graph: Arc<BuildGraph>, ops: OpFactory<R>) -> Arc<Ladder<R>> {
        let nothing = || Rungs {
            known: Asked::Not,
            settled: Asked::Not,
            hopeless: Asked::Not,
            solved: Asked::Not,
            step: None,
            tried: None,
            shown: false,
        };
        let rungs = Mutex::new(graph.ids().map(|_| nothing()).collect());
        Arc::new(Ladder { site, graph, ops, rungs, hold: Mutex::new(Weak::new()) })
    }

    pub(crate) fn is_of(&self, graph: &Arc<BuildGraph>) -> bool {
        Arc::ptr_eq(&self.graph, graph)
    }

    pub(crate) async fn solve(self: Arc<Self>, edges: &[Edge]) -> Result<Vec<Solved<R>>, SolveError> {
        let hold = self.hold();
        let wanted = self.graph.reachable(edges);
        self.announce(&wanted);
        for id in &wanted {
            self.known(*id);
        }
        self.settle_upwards(edges);
        let replies: Vec<_> = edges.iter().map(|edge| self.solved(edge.vertex)).collect();
        let outputs = try_join_all(replies.into_iter().map(Reply::get)).await?;
        drop(hold);
        edges.iter().zip(&outputs).map(|(edge, outputs)| self.solved_edge(*edge, outputs)).collect()
    }

    fn solved_edge(&self, edge: Edge, outputs: &Outputs<R>) -> Answer<Solved<R>> {
        let value = self.output(edge, outputs)?;
        Ok(Solved { value, key: outputs.key.output(edge.output), cached: outputs.cached })
    }

    /// The hold of the solves under way; a new one, if this is the only one.
    fn hold(&self) -> Arc<Hold> {
        let mut current = self.hold.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hold) = current.upgrade() {
            return hold;
        }
        // What was cancelled or failed before is asked again (rule 6); within one solve a failure stays.
        for rungs in self.rungs().iter_mut() {
            rungs.known.retain_success();
            rungs.settled.retain_success();
            rungs.hopeless.retain_success();
            rungs.solved.retain_success();
        }
        let hold = Arc::new(Hold { tasks: Mutex::new(Some(Vec::new())) });
        *current = Arc::downgrade(&hold);
        hold
    }

    pub(crate) fn rungs(&self) -> MutexGuard<'_, Vec<Rungs<R>>> {
        self.rungs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for the settled key of what `edges` need, deepest first, where that needs more than the definition.
    fn settle_upwards(self: &Arc<Self>, edges: &[Edge]) {
        let mut path: Vec<(VertexId, usize)> = Vec::new();
        for edge in edges {
            path.push((edge.vertex, 0));
            while let Some((id, next)) = path.last_mut() {
                let id = *id;
                let inputs = self.graph.inputs(id);
                if *next == 0 && !self.settling_needs_inputs(id) {
                    *next = inputs.len();
                }
                match inputs.get(*next) {
                    Some(input) => {
                        *next += 1;
                        path.push((input.vertex, 0));
                    }
                    None => {
                        self.settled(id);
                        path.pop();
                    }
                }
            }
        }
    }

    /// Whether the inputs of a vertex have to be settled for it, as far as can be said without waiting.
    fn settling_needs_inputs(&self, id: VertexId) -> bool {
        let rungs = self.rungs();
        let rungs = &rungs[id.0 as usize];
        !rungs.settled.is_asked() && matches!(&rungs.known, Asked::Told(Ok(known)) if !known.canonical)
    }

    pub(crate) fn known(self: &Arc<Self>, id: VertexId) -> Reply<Arc<Known<R>>> {
        self.ask(id, |rungs| &mut rungs.known, |ladder| ladder.find_known(id).boxed())
    }

    pub(crate) fn settled(self: &Arc<Self>, id: VertexId) -> Reply<Arc<Settled>> {
        self.ask(id, |rungs| &mut rungs.settled, |ladder| ladder.find_settled(id).boxed())
    }

    pub(crate) fn hopeless(self: &Arc<Self>, id: VertexId) -> Reply<bool> {
        self.ask(id, |rungs| &mut rungs.hopeless, |ladder| ladder.find_hopeless(id).boxed())
    }

    pub(crate) fn solved(self: &Arc<Self>, id: VertexId) -> Reply<Outputs<R>> {
        self.ask(id, |rungs| &mut rungs.solved, |ladder| ladder.find_solved(id).boxed())
    }

    /// Asks a question that may have been asked before.
    fn ask<T: Clone + Send + Sync + 'static>(
        self: &Arc<Self>,
        id: VertexId,
        pick: fn(&mut Rungs<R>) -> &mut Asked<T>,
        find: impl FnOnce(Arc<Self>) -> BoxFuture<'static, Answer<T>>,
    ) -> Reply<T> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut rungs = self.rungs();
            let asked = pick(&mut rungs[id.0 as usize]);
            match asked {
                Asked::Told(answer) => return Reply::Now(answer.clone()),
                Asked::Waiting(shared) => return Reply::Later(shared.clone()),
                Asked::Not => *asked = Asked::Waiting(receiver.shared()),
            }
        }
        let (ladder, work) = (self.clone(), find(self.clone()));
        let work = async move {
            let answer = AssertUnwindSafe(work).catch_unwind().await;
            let answer = answer.unwrap_or_else(|panic| Err(ladder.failed(id, Panicked::new(&*panic))));
            // A cancelled answer is not kept: a later solve may be asking the same already.
            if !matches!(answer, Err(SolveError::Cancelled)) {
                *pick(&mut ladder.rungs()[id.0 as usize]) = Asked::Told(answer.clone());
            }
            // Nobody listening is no error: whoever asks next reads the answer where it was put.
            let _ = sender.send(answer);
        };
        let hold = self.hold.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        let Some(hold) = hold else { return Reply::Now(Err(SolveError::Cancelled)) };
        if let Some(task) = launch(work.boxed()) {
            match hold.tasks.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
                Some(tasks) => tasks.push(task),
                None => task.abort(),
            }
        }
        match pick(&mut self.rungs()[id.0 as usize]) {
            Asked::Told(answer) => Reply::Now(answer.clone()),
            Asked::Waiting(shared) => Reply::Later(shared.clone()),
            Asked::Not => Reply::Now(Err(SolveError::Cancelled)),
        }
    }
    pub(crate) fn output(&self, edge: Edge, outputs: &Outputs<R>) -> Answer<R> {
        let value = outputs.values.get(edge.output as usize).cloned();
        value.ok_or_else(|| {
            let (wanted, is) = (edge.output, outputs.values.len());
            self.misfit(edge.vertex, format!("output {wanted} is asked for, it gave {is} outputs"))
        })
    }

    pub(crate) async fn resolve(&self, id: VertexId, key: CacheKey) -> Answer<Option<CacheKey>> {
        self.site.workshop.cache.resolve(key).await.map_err(|error| self.cache_failed(id, error))
    }

    pub(crate) async fn alias(&self, id: VertexId, from: Vec<CacheKey>, canonical: CacheKey) -> Answer<()> {
        self.site.workshop.cache.alias(from, canonical).await.map_err(|error| self.cache_failed(id, error))
    }

    pub(crate) fn failed(&self, id: VertexId, source: OpError) -> SolveError {
        let meta = &self.graph.vertex(id).meta;
        SolveError::Failed { vertex: id, name: meta.name.clone(), span: meta.span, source }
    }

    pub(crate) fn cache_failed(&self, id: VertexId, source: CacheError) -> SolveError {
        SolveError::Cache { vertex: id, name: self.graph.vertex(id).meta.name.clone(), source }
    }

    pub(crate) fn misfit(&self, id: VertexId, reason: String) -> SolveError {
        SolveError::Misfit { vertex: id, name: self.graph.vertex(id).meta.name.clone(), reason }
    }
}
