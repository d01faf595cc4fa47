//! What builds share: the cache, the permits and the executions under way.
//!
//! An execution belongs to everybody who waits for it and to nobody else: it is a task of its own, held by those who
//! wait; when the last lets go, it is cancelled. It knows its inputs' results, not the build that asked, so a build that
//! is cancelled takes down only what no other build wants.

use std::any::Any;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Instant, SystemTime};

use futures::channel::oneshot;
use futures::future::{FutureExt, Shared};
use rbuild_graph::{BuildGraph, Edge, Span, VertexId};
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;

use crate::cache::{Cache, CacheError, Claim, ClaimGuard, Entry, Keep};
use crate::event::{Audience, Events, LogStream, Member, StepId};
use crate::key::CacheKey;
use crate::ladder::{Ladder, Outputs};
use crate::launch::launch;
use crate::op::{AtWork, Cancel, CancelOnDrop, OpError, OpFactory, RunContext, RunOp};
use crate::record::MadeOf;
use crate::report::Report;

/// Solves the builds of one process over one cache. Cheap to clone; clones are the same solver.
pub struct Solver<R> {
    workshop: Arc<Workshop<R>>,
}

impl<R> Clone for Solver<R> {
    fn clone(&self) -> Solver<R> {
        Solver { workshop: self.workshop.clone() }
    }
}

impl<R: Clone + Send + Sync + 'static> Solver<R> {
    /// A solver that runs at most `permits` operations at once, of those that need a permit.
    pub fn new(cache: Arc<dyn Cache<R>>, permits: usize) -> Solver<R> {
        let permits = Semaphore::new(permits.clamp(1, Semaphore::MAX_PERMITS));
        let running = Mutex::new(HashMap::new());
        let at_work = Arc::new(watch::Sender::new(0));
        Solver { workshop: Arc::new(Workshop { cache, permits, running, at_work, builds: AtomicU64::new(0) }) }
    }

    /// Ends when nothing runs. Dropping a build cancels at once, but a process has still to be killed and a thread to
    /// notice: whoever is about to exit and wants to leave nothing behind waits here.
    pub async fn idle(&self) {
        // The sender is ours, so it cannot go away.
        let _ = self.workshop.at_work.subscribe().wait_for(|count| *count == 0).await;
    }

    /// A build that tells `events` what happens.
    pub fn build(&self, events: Events) -> Build<R> {
        let number = self.workshop.builds.fetch_add(1, Ordering::Relaxed) + 1;
        Build {
            site: Arc::new(Site {
                workshop: self.workshop.clone(),
                events,
                number,
                name: OnceLock::new(),
                done: Mutex::new(HashMap::new()),
            }),
            ladders: Mutex::new(Vec::new()),
        }
    }
}

/// One build: solves graphs, one after the other or at once. Dropping it, or the future of a solve, cancels what nobody
/// else waits for.
pub struct Build<R> {
    site: Arc<Site<R>>,
    ladders: Mutex<Vec<Arc<Ladder<R>>>>,
}

/// One result that was asked for.
#[derive(Debug, Clone)]
pub struct Solved<R> {
    pub value: R,
    /// The key of this output; equal keys are equal results.
    pub key: CacheKey,
    /// Whether it was known before this build.
    pub cached: bool,
}

/// Why a solve gave no results.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SolveError {
    /// An operation failed.
    #[error("{name:?} failed")]
    Failed { vertex: VertexId, name: String, span: Option<Span>, source: OpError },
    /// The cache could not be read or written.
    #[error("the cache failed at {name:?}")]
    Cache { vertex: VertexId, name: String, source: CacheError },
    /// An operation does not fit its vertex: a mistake in the program.
    #[error("{name:?} is wrong: {reason}")]
    Misfit { vertex: VertexId, name: String, reason: String },
    /// The build was dropped.
    #[error("the build was cancelled")]
    Cancelled,
}

impl<R: Clone + Send + Sync + 'static> Build<R> {
    /// The same build, under the name that its records carry.
    pub fn named(self, name: impl Into<String>) -> Build<R> {
        // Set once, by the only holder there is yet; a second name is ignored.
        let _ = self.site.name.set(name.into());
        self
    }

    /// The results of `edges`, in their order.
    ///
    /// Everything a graph asked before is kept: solving further edges of the same graph repeats nothing, and equal keys
    /// run once for all graphs of the build. As soon as something has to wait it needs a tokio runtime around it.
    ///
    /// # Errors
    /// The first failure, at once; what else was under way is cancelled then, unless another build waits for it.
    pub async fn solve(
        &self,
        graph: Arc<BuildGraph>,
        edges: &[Edge],
        ops: OpFactory<R>,
    ) -> Result<Vec<Solved<R>>, SolveError> {
        self.ladder(graph, ops).solve(edges).await
    }

    /// What is known by now about each vertex of a graph that was solved, or tried to be.
    pub fn reports(&self, graph: &Arc<BuildGraph>) -> Vec<Report> {
        let ladders = self.ladders.lock().unwrap_or_else(PoisonError::into_inner);
        ladders.iter().find(|ladder| ladder.is_of(graph)).map_or_else(Vec::new, |ladder| ladder.reports())
    }

    fn ladder(&self, graph: Arc<BuildGraph>, ops: OpFactory<R>) -> Arc<Ladder<R>> {
        let mut ladders = self.ladders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ladder) = ladders.iter().find(|ladder| ladder.is_of(&graph)) {
            return ladder.clone();
        }
        let ladder = Ladder::new(self.site.clone(), graph, ops);
        ladders.push(ladder.clone());
        ladder
    }
}

/// What all builds of a solver share.
pub(crate) struct Workshop<R> {
    pub(crate) cache: Arc<dyn Cache<R>>,
    permits: Semaphore,
    running: Mutex<HashMap<Job, Weak<Execution<R>>>>,
    /// How many executions there are.
    at_work: Arc<watch::Sender<usize>>,
    builds: AtomicU64,
}

/// What all graphs of a build share.
pub(crate) struct Site<R> {
    pub(crate) workshop: Arc<Workshop<R>>,
    pub(crate) events: Events,
    number: u64,
    name: OnceLock<String>,
    /// What this build ran itself. The only place where results that are not durable are found again, and what keeps a
    /// vertex that ignores the cache from running once for each graph.
    /// With the execution, so that whoever is about to start the same finds it, however late.
    done: Mutex<HashMap<CacheKey, Done<R>>>,
}

type Done<R> = (Outputs<R>, Arc<Execution<R>>);

impl<R: Clone> Site<R> {
    pub(crate) fn done(&self, key: CacheKey) -> Option<Outputs<R>> {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.get(&key).map(|(outputs, _)| outputs.clone())
    }

    pub(crate) fn keep(&self, outputs: &Outputs<R>, execution: Arc<Execution<R>>) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.insert(outputs.key, (outputs.clone(), execution));
    }
}

/// What makes two executions the same. One that ignores the cache must begin after it was asked for, so it is shared
/// within a build only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Job {
    key: CacheKey,
    build: Option<u64>,
}

/// All that an execution needs.
pub(crate) struct Work<R> {
    pub(crate) op: Arc<dyn RunOp<R>>,
    pub(crate) inputs: Vec<R>,
    pub(crate) key: CacheKey,
    pub(crate) aliases: Vec<CacheKey>,
    /// Whether the result may be written down.
    pub(crate) durable: bool,
    /// Whether it runs although a result may be there.
    pub(crate) fresh: bool,
    pub(crate) made_of: Arc<MadeOf>,
}

/// How an execution ended.
#[derive(Debug, Clone)]
pub(crate) struct Finished<R> {
    pub(crate) outputs: Arc<[R]>,
    /// Another process had it in the meantime.
    pub(crate) cached: bool,
}

/// Why an execution gave nothing.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    Op(OpError),
    Cache(CacheError),
    Cancelled,
}

/// Something panicked that should not have.
#[derive(Debug, thiserror::Error)]
#[error("panicked: {0}")]
pub(crate) struct Panicked(String);

impl Panicked {
    pub(crate) fn new(payload: &(dyn Any + Send)) -> Arc<Panicked> {
        let text = payload.downcast_ref::<&str>().map(|text| text.to_string());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        Arc::new(Panicked(text.unwrap_or_else(|| "no message".into())))
    }
}

/// An operation under way, or just over.
pub(crate) struct Execution<R> {
    answer: Shared<oneshot::Receiver<Result<Finished<R>, Fault>>>,
    audience: Arc<Audience>,
    failed: Arc<AtomicBool>,
    task: OnceLock<AbortHandle>,
    workshop: Weak<Workshop<R>>,
    job: Job,
}

impl<R: Clone + Send + Sync + 'static> Execution<R> {
    /// Waits for the end. Whoever waits holds the execution.
    pub(crate) async fn finished(&self) -> Result<Finished<R>, Fault> {
        self.answer.clone().await.unwrap_or(Err(Fault::Cancelled))
    }
}

impl<R> Drop for Execution<R> {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
        if let Some(workshop) = self.workshop.upgrade() {
            let mut running = workshop.running.lock().unwrap_or_else(PoisonError::into_inner);
            if running.get(&self.job).is_some_and(|other| std::ptr::eq(other.as_ptr(), self)) {
                running.remove(&self.job);
            }
        }
    }
}

impl<R: Clone + Send + Sync + 'static> Site<R> {
    /// The one execution of `work`: joined if it is under way, else started. `member` hears of it.
    pub(crate) fn execute(&self, work: Work<R>, member: Member) -> Arc<Execution<R>> {
        let job = Job { key: work.key, build: work.fresh.then_some(self.number) };
        let (answer, receiver) = oneshot::channel();
        let execution = Arc::new(Execution {
            answer: receiver.shared(),
            audience: Arc::new(Audience::default()),
            failed: Arc::new(AtomicBool::new(false)),
            task: OnceLock::new(),
            workshop: Arc::downgrade(&self.workshop),
            job,
        });
        let (joined, _stale) = {
            let mut running = self.workshop.running.lock().unwrap_or_else(PoisonError::into_inner);
            match running.get(&job).and_then(Weak::upgrade) {
                Some(other) if !other.failed.load(Ordering::Acquire) => (Some(other), None),
                // Rule 6: a finished failure is not handed to the next asker: what failed may succeed now. (Let go of
                // outside the lock, which letting go takes.)
                stale => {
                    running.insert(job, Arc::downgrade(&execution));
                    (None, stale)
                }
            }
        };
        if let Some(other) = joined {
            other.audience.join(member);
            return other;
        }
        self.start(&execution, work, member, answer);
        execution
    }

    fn start(
        &self,
        execution: &Execution<R>,
        work: Work<R>,
        member: Member,
        answer: oneshot::Sender<Result<Finished<R>, Fault>>,
    ) {
        let events = Events::audience(&member.events, execution.audience.clone());
        let (guard, cancel) = CancelOnDrop::new(AtWork::new(&self.workshop.at_work));
        let run = Run {
            workshop: self.workshop.clone(),
            audience: execution.audience.clone(),
            events,
            step: member.step,
            build: self.name.get().cloned().unwrap_or_else(|| self.number.to_string()),
            cancel,
        };
        execution.audience.join(member);
        let (failed, audience) = (execution.failed.clone(), execution.audience.clone());
        let at_once = !work.op.needs_permit();
        let task = async move {
            let result = AssertUnwindSafe(run.work(work)).catch_unwind().await;
            let result = result.unwrap_or_else(|panic| Err(Fault::Op(Panicked::new(&*panic))));
            guard.finish();
            failed.store(result.is_err(), Ordering::Release);
            audience.over();
            // Nobody listening is no error: the last asker has just gone.
            let _ = answer.send(result);
        };
        let handle = if at_once { launch(task.boxed()) } else { Some(tokio::spawn(task).abort_handle()) };
        if let Some(handle) = handle {
            let _ = execution.task.set(handle);
        }
    }
}

/// One run of one piece of work.
struct Run<R> {
    workshop: Arc<Workshop<R>>,
    audience: Arc<Audience>,
    events: Events,
    step: StepId,
    build: String,
    cancel: Cancel,
}

impl<R: Clone + Send + Sync + 'static> Run<R> {
    async fn work(self, work: Work<R>) -> Result<Finished<R>, Fault> {
        // What ignores the cache is run whoever else runs it, what is not written down is of no use to others, and what is
        // brief is not worth a transaction.
        let _claim = match work.durable && !work.fresh && !work.op.is_brief() {
            true => match self.claim(&work).await? {
                Claimed::Mine(guard) => Some(guard),
                Claimed::Done(finished) => return Ok(finished),
            },
            false => None,
        };
        // Rule 5: a permit is held while the operation runs, never while anything is waited for.
        let permit = match work.op.needs_permit() {
            true => Some(self.workshop.permits.acquire().await.map_err(|_| Fault::Cancelled)?),
            false => None,
        };
        self.audience.started();
        let (started, clock) = (SystemTime::now(), Instant::now());
        let (key, fresh) = (work.key, work.fresh);
        let context = RunContext { step: self.step, events: self.events, key, fresh, cancel: self.cancel };
        let ran = work.op.run(work.inputs, context).await.map_err(Fault::Op)?;
        drop(permit);
        if work.durable {
            let record = work.made_of.record(self.build, started, clock.elapsed(), ran.usage);
            let keep = if work.fresh { Keep::Newest } else { Keep::First };
            let entry = Entry { key: work.key, aliases: work.aliases, outputs: ran.outputs.clone(), record, keep };
            self.workshop.cache.save(entry).await.map_err(Fault::Cache)?;
        }
        Ok(Finished { outputs: ran.outputs.into(), cached: false })
    }

    /// Makes sure that no other process is at it; or has its result, once it is.
    async fn claim(&self, work: &Work<R>) -> Result<Claimed<R>, Fault> {
        let cache = &self.workshop.cache;
        loop {
            let claim = cache.claim(work.key).await.map_err(Fault::Cache)?;
            let guard = match claim {
                Claim::Mine(guard) => Some(guard),
                Claim::Theirs { pid, over } => {
                    self.audience.started();
                    let who = pid.map_or("another process".into(), |pid| format!("process {pid}"));
                    self.events.log(self.step, LogStream::Stderr, format!("waiting for {who}, which runs this step\n"));
                    over.await;
                    None
                }
            };
            // Also with a claim of our own: the other may have finished between our last look and the claim.
            if let Some(outputs) = cache.load(work.key).await.map_err(Fault::Cache)? {
                if !work.aliases.is_empty() {
                    cache.alias(work.aliases.clone(), work.key).await.map_err(Fault::Cache)?;
                }
                return Ok(Claimed::Done(Finished { outputs: outputs.into(), cached: true }));
            }
            if let Some(guard) = guard {
                return Ok(Claimed::Mine(guard));
            }
        }
    }
}

enum Claimed<R> {
    Mine(ClaimGuard),
    Done(Finished<R>),
}
