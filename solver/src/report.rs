//! What a build found out about its vertices, for those who tell people afterwards.
//!
//! Read from the ladder when the build is over, however it ended; nothing is kept for it meanwhile but what an execution
//! needs anyway, so a build that finds everything pays for a list of keys.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rbuild_graph::VertexId;

use crate::event::StepId;
use crate::key::CacheKey;
use crate::ladder::Ladder;
use crate::record::{MadeOf, RunRecord, Usage};

/// One vertex as a build left it.
#[derive(Clone)]
pub struct Report {
    pub vertex: VertexId,
    /// Its step, if it was announced.
    pub step: Option<StepId>,
    /// The best name it has: what its result is saved under where that was found out, else what its definition says.
    pub key: Option<CacheKey>,
    /// It was to run whatever is known: it ignores the cache itself, or reads what does.
    pub fresh: bool,
    tried: Option<Arc<MadeOf>>,
}

impl Report {
    /// Whether its result was not to be had without running it (here, or by joining another build's execution).
    pub fn missed(&self) -> bool {
        self.tried.is_some()
    }

    /// What the key of a missed vertex is made of, as its record has it; also where the execution failed and left none.
    pub fn made_of(&self) -> Option<RunRecord> {
        let tried = self.tried.as_ref()?;
        Some(tried.record(String::new(), SystemTime::UNIX_EPOCH, Duration::ZERO, Usage::default()))
    }
}

impl<R: Clone + Send + Sync + 'static> Ladder<R> {
    pub(crate) fn reports(&self) -> Vec<Report> {
        let rungs = self.rungs();
        let mut reports = Vec::with_capacity(rungs.len());
        for (vertex, rungs) in self.graph.ids().zip(rungs.iter()) {
            let known = rungs.known.answer();
            let settled = rungs.settled.answer();
            let solved = rungs.solved.answer();
            // Another process may have had it when it came to running: then it was found after all.
            let tried = rungs.tried.as_ref().filter(|_| !solved.as_ref().is_some_and(|solved| solved.cached));
            let key = tried.map(|(key, _)| *key).or(settled.as_ref().map(|settled| settled.key));
            reports.push(Report {
                vertex,
                step: rungs.step,
                key: key.or(known.as_ref().map(|known| known.key)),
                fresh: known.is_some_and(|known| known.fresh),
                tried: tried.map(|(_, made_of)| made_of.clone()),
            });
        }
        reports
    }
}
