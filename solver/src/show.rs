//! What people see of a ladder: steps, each told of once, and what became of them.

use std::sync::atomic::Ordering;

use rbuild_graph::VertexId;

use crate::event::{Member, Outcome, StepId, StepKind};
use crate::ladder::Ladder;

impl<R: Clone + Send + Sync + 'static> Ladder<R> {
    /// Tells of the steps that were not told of yet, inputs first.
    pub(crate) fn announce(&self, ids: &[VertexId]) {
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

    pub(crate) fn shown_step(&self, id: VertexId) -> StepId {
        let mut rungs = self.rungs();
        let rungs = &mut rungs[id.0 as usize];
        rungs.shown = true;
        *rungs.step.get_or_insert_with(|| self.site.events.new_step())
    }

    /// Shows a vertex as cached, and with it what it rests on and nobody will look at: the people who wait want to see
    /// the whole path, and a loop over it costs no lookup.
    pub(crate) fn show_cached(&self, id: VertexId) {
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

/// A step that is shown as under way. One that is dropped was cancelled, and people are told.
pub(crate) struct Showing {
    member: Member,
    over: bool,
}

impl Showing {
    pub(crate) fn new(member: Member) -> Showing {
        Showing { member, over: false }
    }

    pub(crate) fn end(&mut self, outcome: Outcome) {
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
