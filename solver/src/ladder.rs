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
//! the questions it will ask itself, or steps aside first ([`leave`]), so nothing is polled inside its parent (rule 4): a
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
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures::channel::oneshot;
use futures::future::{BoxFuture, Either, FutureExt, Shared, select, try_join, try_join_all};
use futures::stream::{FuturesUnordered, StreamExt};
use rbuild_graph::{BuildGraph, Edge, VertexId};
use tokio::task::AbortHandle;

use crate::cache::CacheError;
use crate::event::{Member, Outcome, StepId, StepKind};
use crate::key::{self, CacheKey, InputName, KeySpec};
use crate::launch::{launch, leave};
use crate::op::{InputContent, OpError, OpFactory, RunOp};
use crate::record::RecordedInput;
use crate::solver::{Fault, Finished, Panicked, Site, SolveError, Solved, Work};

type Answer<T> = Result<T, SolveError>;

/// One build's hold on the vertices of one graph.
pub(crate) struct Ladder<R> {
    site: Arc<Site<R>>,
    graph: Arc<BuildGraph>,
    ops: OpFactory<R>,
    rungs: Mutex<Vec<Rungs<R>>>,
    hold: Mutex<Weak<Hold>>,
}

/// What has been asked about one vertex, and shown.
struct Rungs<R> {
    known: Asked<Arc<Known<R>>>,
    settled: Asked<Arc<Settled>>,
    hopeless: Asked<bool>,
    solved: Asked<Outputs<R>>,
    step: Option<StepId>,
    /// Something was said about its start or end.
    shown: bool,
}

/// A question.
enum Asked<T> {
    Not,
    Waiting(Shared<oneshot::Receiver<Answer<T>>>),
    Told(Answer<T>),
}

/// The key from definitions.
pub(crate) struct Known<R> {
    op: Arc<dyn RunOp<R>>,
    spec: KeySpec,
    /// The key as the definitions give it, before any lookup.
    definition: CacheKey,
    /// The best there is: what the lookup gave, else `definition`.
    key: CacheKey,
    /// `key` is the one that the result is saved under.
    canonical: bool,
    /// `key` rests on nothing unpinned.
    durable: bool,
    /// It is run again, whatever is known.
    fresh: bool,
    /// Something it is defined by runs again, so that what was known under `key` may be of another time.
    stale: bool,
    /// Other names that do not lead to `key` yet.
    aliases: Vec<CacheKey>,
}

/// The key a result is saved under.
struct Settled {
    key: CacheKey,
    durable: bool,
    fresh: bool,
    /// Names it was looked for under, which do not lead to `key` yet.
    aliases: Vec<CacheKey>,
    /// Names of its inputs as inputs of such a computation; written down when anything is.
    links: Vec<CacheKey>,
    /// Per input, where content stood in the key; empty when no content was needed.
    contents: Vec<Option<InputContent>>,
}

/// The result.
#[derive(Clone)]
pub(crate) struct Outputs<R> {
    pub(crate) key: CacheKey,
    values: Arc<[R]>,
    durable: bool,
    cached: bool,
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
    fn is_asked(&self) -> bool {
        !matches!(self, Asked::Not)
    }

    /// Forgets everything but a good answer.
    fn retain_success(&mut self) {
        let good = match self {
            Asked::Not => None,
            Asked::Waiting(shared) => shared.peek().and_then(|told| told.clone().ok()).and_then(Result::ok),
            Asked::Told(answer) => answer.clone().ok(),
        };
        *self = good.map_or(Asked::Not, |good| Asked::Told(Ok(good)));
    }
}

/// An answer, or the place where it will be.
enum Reply<T: Clone> {
    Now(Answer<T>),
    Later(Shared<oneshot::Receiver<Answer<T>>>),
}

impl<T: Clone> Reply<T> {
    async fn get(self) -> Answer<T> {
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

    fn rungs(&self) -> MutexGuard<'_, Vec<Rungs<R>>> {
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

    fn known(self: &Arc<Self>, id: VertexId) -> Reply<Arc<Known<R>>> {
        self.ask(id, |rungs| &mut rungs.known, |ladder| ladder.find_known(id).boxed())
    }

    fn settled(self: &Arc<Self>, id: VertexId) -> Reply<Arc<Settled>> {
        self.ask(id, |rungs| &mut rungs.settled, |ladder| ladder.find_settled(id).boxed())
    }

    fn hopeless(self: &Arc<Self>, id: VertexId) -> Reply<bool> {
        self.ask(id, |rungs| &mut rungs.hopeless, |ladder| ladder.find_hopeless(id).boxed())
    }

    fn solved(self: &Arc<Self>, id: VertexId) -> Reply<Outputs<R>> {
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

    async fn find_known(self: Arc<Self>, id: VertexId) -> Answer<Arc<Known<R>>> {
        let vertex = self.graph.vertex(id);
        let op = (self.ops)(vertex).map_err(|error| self.failed(id, error))?;
        let spec = op.key().await.map_err(|error| self.failed(id, error))?;
        if spec.inputs.len() != vertex.inputs.len() {
            let (said, is) = (spec.inputs.len(), vertex.inputs.len());
            return Err(self.misfit(id, format!("its key speaks of {said} inputs, it has {is}")));
        }
        let inputs = try_join_all(vertex.inputs.iter().map(|edge| self.known(edge.vertex).get())).await?;
        let names: Vec<InputName> = inputs
            .iter()
            .zip(&vertex.inputs)
            .map(|(input, edge)| InputName::Key(input.key.output(edge.output)))
            .collect();
        let durable = spec.durable && inputs.iter().all(|input| input.durable);
        let by_key = || inputs.iter().zip(&spec.inputs).filter(|(_, input)| !input.by_content);
        let fresh = vertex.meta.ignore_cache || by_key().any(|(input, _)| input.fresh);
        let stale = fresh || inputs.iter().any(|input| input.stale);
        let certain = by_key().count() == inputs.len() && inputs.iter().all(|input| input.canonical);
        let definition = key::hash(&spec.parts, &spec, &names);
        let aliases = if durable { other_names(&spec, &names) } else { Vec::new() };
        let mut known =
            Known { op, spec, definition, key: definition, canonical: certain, durable, fresh, stale, aliases };
        if durable && !stale && (!certain || inputs.is_empty() || !known.aliases.is_empty()) {
            self.look_up(id, &mut known).await?;
        }
        Ok(Arc::new(known))
    }

    /// Takes the canonical key in place of the one from definitions, if the cache knows one.
    async fn look_up(&self, id: VertexId, known: &mut Known<R>) -> Answer<()> {
        if let Some(canonical) = self.resolve(id, known.key).await? {
            (known.key, known.canonical) = (canonical, true);
            // They were written down with it.
            known.aliases.clear();
            return Ok(());
        }
        for index in 0..known.aliases.len() {
            if let Some(canonical) = self.resolve(id, known.aliases[index]).await? {
                known.aliases.remove(index);
                known.aliases.push(known.key);
                self.alias(id, std::mem::take(&mut known.aliases), canonical).await?;
                (known.key, known.canonical) = (canonical, true);
                return Ok(());
            }
        }
        Ok(())
    }

    async fn find_settled(self: Arc<Self>, id: VertexId) -> Answer<Arc<Settled>> {
        let known = self.known(id).get().await?;
        if known.canonical {
            return Ok(Arc::new(Settled {
                key: known.key,
                durable: known.durable,
                fresh: known.fresh,
                aliases: known.aliases.clone(),
                links: Vec::new(),
                contents: Vec::new(),
            }));
        }
        let edges = self.graph.inputs(id);
        if !self.are_settling(edges) {
            leave().await;
        }
        let spec = &known.spec;
        // Rule 2: keys settle without results. Only content asks for one, and only when no name is enough.
        let inputs = self.settled_inputs(id, &known).await?;
        // Rule 1: a key that is saved is derived only from settled keys. A provisional one in it would give the vertex
        // two names, and the next build, which knows the final name of the input, would run it again.
        let keys: Vec<CacheKey> = inputs.iter().zip(edges).map(|(input, edge)| input.key.output(edge.output)).collect();
        let mut names: Vec<InputName> = keys.iter().map(|key| InputName::Key(*key)).collect();
        let by_key = key::hash(&spec.parts, spec, &names);
        let durable = |counts: &dyn Fn(usize) -> bool| {
            spec.durable && (0..inputs.len()).filter(|index| counts(*index)).all(|index| inputs[index].durable)
        };
        let mut settled = Settled {
            key: by_key,
            durable: durable(&|_| true),
            fresh: known.fresh,
            // Rule 7: what rests on something unpinned is not written down; it could never be found again.
            aliases: known.durable.then_some(known.definition).into_iter().collect(),
            links: (0..edges.len())
                .filter(|index| has_links(spec) && inputs[*index].durable)
                .map(|index| key::link(spec, index, keys[index]))
                .collect(),
            contents: Vec::new(),
        };
        let by_content = spec.inputs.iter().any(|input| input.by_content);
        let looked_up = known.durable && !known.stale && known.definition == by_key;
        if settled.durable {
            let others = other_names(spec, &names);
            let fresh = known.fresh || inputs.iter().any(|input| input.fresh);
            if !looked_up && !fresh && (by_content || !others.is_empty()) {
                let candidates = [&[by_key], others.as_slice()].concat();
                if self.find(id, &candidates, &mut settled).await? {
                    return Ok(Arc::new(settled));
                }
            }
            settled.aliases.extend(others);
        }
        if by_content {
            settled.aliases.extend(settled.durable.then_some(by_key));
            settled.contents = self.contents(id, &known).await?;
            for (name, content) in names.iter_mut().zip(&settled.contents) {
                if let Some(content) = content {
                    *name = InputName::Content(content.hash);
                }
            }
            settled.key = key::hash(&spec.parts, spec, &names);
            settled.durable = durable(&|index| !spec.inputs[index].by_content);
            if settled.durable {
                let others = other_names(spec, &names);
                // A content key is canonical as it is; looked up only so that the other names lead to it at once.
                if !known.fresh && !(settled.aliases.is_empty() && others.is_empty()) {
                    let candidates = [&[settled.key], others.as_slice()].concat();
                    if self.find(id, &candidates, &mut settled).await? {
                        return Ok(Arc::new(settled));
                    }
                }
                settled.aliases.extend(others);
            }
        }
        settled.aliases.retain(|alias| *alias != settled.key);
        settled.aliases.sort_unstable();
        settled.aliases.dedup();
        Ok(Arc::new(settled))
    }

    /// The settled inputs. What is read by content and cannot be found by name is solved meanwhile: its content will be
    /// asked for, whatever the other inputs turn out to be, and stages that are copied from must not wait for each other.
    async fn settled_inputs(self: &Arc<Self>, id: VertexId, known: &Known<R>) -> Answer<Vec<Arc<Settled>>> {
        let edges = self.graph.inputs(id);
        let inputs = edges.iter().enumerate().map(|(index, edge)| async move {
            let input = self.settled(edge.vertex).get().await?;
            if known.spec.inputs[index].by_content && self.is_new(id, known, index, &input).await? {
                self.solved(edge.vertex).get().await?;
            }
            Ok(input)
        });
        try_join_all(inputs).await
    }

    /// Whether no key that has this input's name in it can be known.
    async fn is_new(&self, id: VertexId, known: &Known<R>, index: usize, input: &Settled) -> Answer<bool> {
        let spec = &known.spec;
        if known.fresh || input.fresh || !spec.durable || !input.durable {
            return Ok(true);
        }
        let key = input.key.output(self.graph.inputs(id)[index].output);
        let sign = match has_links(spec) {
            true => key::link(spec, index, key),
            false => key::hash(&spec.parts, spec, &[InputName::Key(key)]),
        };
        Ok(self.resolve(id, sign).await?.is_none())
    }

    /// Whether the vertex will have to run, as far as can be said before its key is settled.
    async fn find_hopeless(self: Arc<Self>, id: VertexId) -> Answer<bool> {
        leave().await;
        let known = self.known(id).get().await?;
        if known.fresh || !known.spec.durable {
            return Ok(true);
        }
        if known.canonical {
            return Ok(false);
        }
        let by_key = |(index, _): &(usize, _)| !known.spec.inputs[*index].by_content;
        let inputs = self.graph.inputs(id).iter().enumerate().filter(by_key).map(|(index, edge)| {
            let (ladder, known) = (&self, &known);
            async move {
                if ladder.hopeless(edge.vertex).get().await? {
                    return Ok(true);
                }
                let input = ladder.settled(edge.vertex).get().await?;
                ladder.is_new(id, known, index, &input).await
            }
        });
        let mut inputs: FuturesUnordered<_> = inputs.collect();
        while let Some(hopeless) = inputs.next().await {
            if hopeless? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn are_settling(&self, edges: &[Edge]) -> bool {
        let rungs = self.rungs();
        edges.iter().all(|edge| rungs[edge.vertex.0 as usize].settled.is_asked())
    }

    /// Whether the cache has a result by one of these keys. If so, that is the canonical key, and all other names lead
    /// there from now on.
    async fn find(&self, id: VertexId, candidates: &[CacheKey], settled: &mut Settled) -> Answer<bool> {
        for candidate in candidates {
            if let Some(canonical) = self.resolve(id, *candidate).await? {
                settled.key = canonical;
                settled.aliases.extend_from_slice(candidates);
                settled.aliases.retain(|alias| *alias != canonical);
                self.write_aliases(id, settled).await?;
                settled.aliases.clear();
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn write_aliases(&self, id: VertexId, settled: &Settled) -> Answer<()> {
        if settled.aliases.is_empty() {
            return Ok(());
        }
        self.alias(id, [settled.aliases.as_slice(), &settled.links].concat(), settled.key).await
    }

    /// The content of each input that counts by content.
    async fn contents(self: &Arc<Self>, id: VertexId, known: &Known<R>) -> Answer<Vec<Option<InputContent>>> {
        let edges = self.graph.inputs(id);
        let contents = known.spec.inputs.iter().enumerate().map(|(index, input)| async move {
            if !input.by_content {
                return Ok(None);
            }
            let value = self.output(edges[index], &self.solved(edges[index].vertex).get().await?)?;
            let content = known.op.content(index, &value).await;
            content.map(Some).map_err(|error| self.failed(id, error))
        });
        try_join_all(contents).await
    }

    async fn find_solved(self: Arc<Self>, id: VertexId) -> Answer<Outputs<R>> {
        let known = self.known(id).get().await?;
        let settled = match self.settled(id) {
            Reply::Now(settled) => settled?,
            Reply::Later(settled) => self.settle_while_inputs_run(id, Reply::Later(settled)).await?,
        };
        if let Some(outputs) = self.at_hand(id, &settled).await? {
            return Ok(outputs);
        }
        let edges = self.graph.inputs(id);
        if !edges.is_empty() {
            leave().await;
        }
        let inputs = try_join_all(edges.iter().map(|edge| self.solved(edge.vertex).get())).await?;
        let settled = self.settle_again(id, &known, settled, &inputs).await?;
        if let Some(outputs) = self.at_hand(id, &settled).await? {
            return Ok(outputs);
        }
        self.run(id, &known, &settled, &inputs).await
    }

    /// Waits for the settled key. If it can be said before that the vertex has to run, its inputs start meanwhile.
    async fn settle_while_inputs_run(
        self: &Arc<Self>,
        id: VertexId,
        settled: Reply<Arc<Settled>>,
    ) -> Answer<Arc<Settled>> {
        let settled = settled.get().boxed();
        let settled = match select(settled, self.hopeless(id).get().boxed()).await {
            Either::Left((settled, _)) => return settled,
            Either::Right((hopeless, settled)) => match hopeless? {
                true => settled,
                false => return settled.await,
            },
        };
        leave().await;
        let inputs = self.graph.inputs(id).iter().map(|edge| self.solved(edge.vertex).get());
        // Joined, so that a failing input ends the build while others still run.
        let (settled, _) = try_join(settled, try_join_all(inputs)).await?;
        Ok(settled)
    }

    /// A result that is there already: this build's own, or the cache's.
    async fn at_hand(self: &Arc<Self>, id: VertexId, settled: &Settled) -> Answer<Option<Outputs<R>>> {
        if let Some(outputs) = self.site.done(settled.key) {
            self.show_cached(id);
            return Ok(Some(outputs));
        }
        if settled.fresh || !settled.durable {
            return Ok(None);
        }
        let values = self.site.workshop.cache.load(settled.key).await.map_err(|error| self.cache_failed(id, error))?;
        let Some(values) = values else { return Ok(None) };
        self.write_aliases(id, settled).await?;
        self.show_cached(id);
        let (key, durable) = (settled.key, settled.durable);
        Ok(Some(Outputs { key, values: values.into(), durable, cached: true }))
    }

    /// The settled key once more, now from the inputs' results.
    ///
    /// The same as before, unless a record was lost: one found by definition names inputs that nobody looked at, and
    /// running them again may give something else. What is saved must not claim to come from what it does not.
    async fn settle_again(
        self: &Arc<Self>,
        id: VertexId,
        known: &Known<R>,
        settled: Arc<Settled>,
        inputs: &[Outputs<R>],
    ) -> Answer<Arc<Settled>> {
        let edges = self.graph.inputs(id);
        let by_content = known.spec.inputs.iter().any(|input| input.by_content);
        let contents = match by_content && settled.contents.is_empty() {
            true => self.contents(id, known).await?,
            false => settled.contents.clone(),
        };
        let keys: Vec<CacheKey> = inputs.iter().zip(edges).map(|(input, edge)| input.key.output(edge.output)).collect();
        let name = |index: usize| match contents.get(index).and_then(Option::as_ref) {
            Some(content) => InputName::Content(content.hash),
            None => InputName::Key(keys[index]),
        };
        let names: Vec<InputName> = (0..edges.len()).map(name).collect();
        let key = key::hash(&known.spec.parts, &known.spec, &names);
        let counts = |index: &usize| !known.spec.inputs[*index].by_content;
        let durable = known.spec.durable && (0..edges.len()).filter(counts).all(|index| inputs[index].durable);
        let mut aliases = settled.aliases.clone();
        if key != settled.key {
            aliases.extend(known.durable.then_some(known.definition));
            aliases.retain(|alias| *alias != key);
        }
        let linked = (0..edges.len()).filter(|index| has_links(&known.spec) && inputs[*index].durable);
        let links = linked.map(|index| key::link(&known.spec, index, keys[index])).collect();
        Ok(Arc::new(Settled { key, durable, fresh: settled.fresh, aliases, links, contents }))
    }

    async fn run(
        self: &Arc<Self>,
        id: VertexId,
        known: &Known<R>,
        settled: &Settled,
        inputs: &[Outputs<R>],
    ) -> Answer<Outputs<R>> {
        let vertex = self.graph.vertex(id);
        let edges = vertex.inputs.iter().zip(inputs);
        let values = edges.clone().map(|(edge, outputs)| self.output(*edge, outputs)).collect::<Answer<Vec<R>>>()?;
        let read = edges.zip(&known.spec.inputs).enumerate().map(|(index, ((edge, outputs), input))| {
            let content = settled.contents.get(index).and_then(Option::as_ref);
            RecordedInput {
                key: outputs.key.output(edge.output),
                selector: input.selector.clone(),
                content: content.map(|content| content.hash),
                parts: content.map(|content| content.parts.clone()).unwrap_or_default(),
            }
        });
        let work = Work {
            op: known.op.clone(),
            inputs: values,
            key: settled.key,
            aliases: [settled.aliases.as_slice(), &settled.links].concat(),
            durable: settled.durable,
            fresh: settled.fresh,
            name: vertex.meta.name.clone(),
            parts: known.spec.parts.clone(),
            read: read.collect(),
        };
        let step = self.shown_step(id);
        let member = Member::new(self.site.events.clone(), step);
        let mut showing = Showing { member: member.clone(), over: false };
        let execution = self.site.execute(work, member);
        match execution.finished().await {
            Ok(Finished { outputs: values, cached }) => {
                showing.end(if cached { Outcome::Cached } else { Outcome::Done });
                let outputs = Outputs { key: settled.key, values, durable: settled.durable, cached };
                self.site.keep(&outputs, execution.clone());
                Ok(outputs)
            }
            Err(Fault::Op(error)) => {
                showing.end(Outcome::Failed(error.to_string()));
                Err(self.failed(id, error))
            }
            Err(Fault::Cache(error)) => {
                showing.end(Outcome::Failed(error.to_string()));
                Err(self.cache_failed(id, error))
            }
            Err(Fault::Cancelled) => Err(SolveError::Cancelled),
        }
    }

    fn output(&self, edge: Edge, outputs: &Outputs<R>) -> Answer<R> {
        let value = outputs.values.get(edge.output as usize).cloned();
        value.ok_or_else(|| {
            let (wanted, is) = (edge.output, outputs.values.len());
            self.misfit(edge.vertex, format!("output {wanted} is asked for, it gave {is} outputs"))
        })
    }

    async fn resolve(&self, id: VertexId, key: CacheKey) -> Answer<Option<CacheKey>> {
        self.site.workshop.cache.resolve(key).await.map_err(|error| self.cache_failed(id, error))
    }

    async fn alias(&self, id: VertexId, from: Vec<CacheKey>, canonical: CacheKey) -> Answer<()> {
        self.site.workshop.cache.alias(from, canonical).await.map_err(|error| self.cache_failed(id, error))
    }

    fn failed(&self, id: VertexId, source: OpError) -> SolveError {
        let meta = &self.graph.vertex(id).meta;
        SolveError::Failed { vertex: id, name: meta.name.clone(), span: meta.span, source }
    }

    fn cache_failed(&self, id: VertexId, source: CacheError) -> SolveError {
        SolveError::Cache { vertex: id, name: self.graph.vertex(id).meta.name.clone(), source }
    }

    fn misfit(&self, id: VertexId, reason: String) -> SolveError {
        SolveError::Misfit { vertex: id, name: self.graph.vertex(id).meta.name.clone(), reason }
    }

    /// Tells of the steps that were not told of yet, inputs first.
    fn announce(&self, ids: &[VertexId]) {
        let mut rungs = self.rungs();
        for id in ids {
            if rungs[id.0 as usize].step.is_some() {
                continue;
            }
            let vertex = self.graph.vertex(*id);
            let mut inputs: Vec<StepId> =
                vertex.inputs.iter().filter_map(|edge| rungs[edge.vertex.0 as usize].step).collect();
            inputs.sort_unstable();
            inputs.dedup();
            let kind = match vertex.meta.name.starts_with("[internal]") {
                true => StepKind::Internal,
                false => StepKind::Build,
            };
            let step = self.site.events.step(&vertex.meta.name, inputs, vertex.meta.span, kind);
            rungs[id.0 as usize].step = Some(step);
        }
    }

    fn shown_step(&self, id: VertexId) -> StepId {
        let mut rungs = self.rungs();
        let rungs = &mut rungs[id.0 as usize];
        rungs.shown = true;
        *rungs.step.get_or_insert_with(|| self.site.events.new_step())
    }

    /// Shows a vertex as cached, and with it what it rests on and nobody will look at: the people who wait want to see
    /// the whole path, and a loop over it costs no lookup.
    fn show_cached(&self, id: VertexId) {
        let mut rungs = self.rungs();
        let mut pending = vec![id];
        let mut found = Vec::new();
        while let Some(id) = pending.pop() {
            if !std::mem::replace(&mut rungs[id.0 as usize].shown, true) {
                found.push(id);
                pending.extend(self.graph.inputs(id).iter().map(|edge| edge.vertex));
            }
        }
        found.sort_unstable();
        for id in found {
            if let Some(step) = rungs[id.0 as usize].step {
                self.site.events.finished(step, Outcome::Cached);
            }
        }
    }
}

/// The other names of a computation with these inputs.
fn other_names(spec: &KeySpec, names: &[InputName]) -> Vec<CacheKey> {
    spec.aliases.iter().map(|parts| key::hash(parts, spec, names)).collect()
}

/// Whether computations of this kind leave a name per input. One that reads a single input by key needs none: with that
/// input its own key is known.
fn has_links(spec: &KeySpec) -> bool {
    spec.inputs.len() > 1 || spec.inputs.iter().any(|input| input.by_content)
}

/// A step that is shown as under way. One that is dropped was cancelled, and people are told.
struct Showing {
    member: Member,
    over: bool,
}

impl Showing {
    fn end(&mut self, outcome: Outcome) {
        self.over = true;
        self.member.events.finished(self.member.step, outcome);
    }
}

impl Drop for Showing {
    fn drop(&mut self) {
        if !self.over && self.member.started.load(Ordering::Relaxed) {
            self.member.events.finished(self.member.step, Outcome::Cancelled);
        }
    }
}
