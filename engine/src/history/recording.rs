//! Writes down a build while it runs.
//!
//! Two rows' worth of work for a build that finds everything: one insert when it begins, so that it is seen to run, and
//! one update when it is over. Neither is flushed: history lost in a power cut is no loss. As soon as a step really
//! starts, what happened so far goes into a file and everything after it as it happens.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rbuild_graph::BuildGraph;
use rbuild_graph::ops::{Op, SourceOp};
use rbuild_solver::{Event, Events, Outcome, Report, StepKind};
use rbuild_store::db::nanos;
use rbuild_store::rusqlite::params;
use rbuild_store::{Durability, Lease, Store};

use super::journal::{Entry, Keyed};
use super::{Builds, Counts, Ending, Failure, Requested, Revision, Status};
use crate::error::{Error, Kind};
use crate::request::BuildRequest;

/// A build that says more than this, in bytes, is kept up to here.
const LONGEST: u64 = 256 << 20;

/// The record of a build that runs. Dropped before [`Recording::end`], the build was canceled.
pub(crate) struct Recording {
    shared: Arc<Shared>,
    /// That it lives says that the build runs, until its end is written down.
    _lease: Lease,
    over: bool,
}

struct Shared {
    store: Store,
    id: String,
    dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What is not in the file yet; everything, as long as there is none.
    buffer: Vec<u8>,
    file: Option<File>,
    written: u64,
    internal: HashSet<u64>,
    shown: HashSet<u64>,
    /// Steps that ended well.
    finished: HashSet<u64>,
    /// It was said that output is left out.
    cut: bool,
    counts: Counts,
}

impl Recording {
    /// Never fails: a build that cannot be written down is built all the same.
    pub(crate) fn start(store: &Store, lease: &Lease, request: &BuildRequest) -> Recording {
        let id = lease.id().to_string();
        let dir = store.root().join("builds").join(&id);
        let requested = Requested::of(request);
        let revision = requested.local.as_deref().and_then(Revision::of);
        let project = requested.project();
        let requested = Requested { revision, ..requested };
        let text = serde_json::to_string(&requested).unwrap_or_default();
        let inserted = store.db().write(Durability::Cache, |tx| {
            tx.prepare_cached("INSERT INTO builds (id, project, request, started) VALUES (?, ?, ?, ?)")?
                .execute(params![id, project, text, nanos(SystemTime::now())])?;
            Ok(())
        });
        if let Err(error) = inserted {
            tracing::warn!(%error, "this build is not kept in the history");
        }
        let shared = Shared { store: store.clone(), id, dir, state: Mutex::default() };
        Recording { shared: Arc::new(shared), _lease: lease.clone(), over: false }
    }

    /// `events`, seen by this record as well.
    pub(crate) fn observe(&self, events: Events) -> Events {
        let shared = self.shared.clone();
        events.observed(move |event| shared.note(event))
    }

    /// Names that ARG instructions of the Dockerfile declare.
    pub(crate) fn arguments(&self, dockerfile: &str) {
        let names: Vec<String> = declared(dockerfile).map(str::to_owned).collect();
        if !names.is_empty() {
            self.shared.state().append(&Entry::Arguments(names));
        }
    }

    /// What was found out about the vertices of a graph. With `failed`, what has no record is described.
    pub(crate) fn keys(&self, graph: &BuildGraph, reports: &[Report], failed: bool) {
        let mut state = self.shared.state();
        let step_of = |vertex: rbuild_graph::VertexId| reports.get(vertex.0 as usize).and_then(|report| report.step);
        for report in reports {
            let (Some(step), Some(key)) = (report.step, report.key) else { continue };
            let vertex = graph.vertex(report.vertex);
            let image = match &vertex.op {
                Op::Source(SourceOp::Image(source)) => Some((
                    source.reference.familiar(),
                    source.digest.as_ref().map(ToString::to_string).unwrap_or_default(),
                )),
                _ => None,
            };
            let unfinished = failed && report.missed() && !state.finished.contains(&step.0);
            let keyed = Keyed {
                id: step.0,
                key,
                missed: report.missed(),
                ignored: vertex.meta.ignore_cache,
                fresh: report.fresh && report.missed(),
                inputs: vertex.inputs.iter().filter_map(|edge| step_of(edge.vertex)).map(|step| step.0).collect(),
                image,
                made_of: if unfinished { report.made_of().map(Box::new) } else { None },
            };
            state.append(&Entry::Key(keyed));
        }
    }

    /// The id that names the build in the history.
    pub(crate) fn id(&self) -> &str {
        &self.shared.id
    }

    pub(crate) fn end(mut self, error: Option<&Error>) {
        self.over = true;
        let status = match error {
            None => Status::Completed,
            Some(error) if error.kind == Kind::Cancelled => Status::Canceled,
            Some(_) => Status::Error,
        };
        self.shared.end(status, error.map(Failure::of));
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if !self.over {
            self.shared.end(Status::Canceled, None);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, event: &Event) {
        let Some(entry) = Entry::of(event) else { return };
        let mut state = self.state();
        match event {
            Event::Step { id, kind, .. } if *kind == StepKind::Internal => {
                state.internal.insert(id.0);
            }
            Event::Step { id, .. } => {
                state.shown.insert(id.0);
                state.counts.total += 1;
            }
            Event::Started { id, .. } if !state.internal.contains(&id.0) => state.begin_file(self),
            Event::Finished { id, outcome, .. } if state.shown.contains(&id.0) => {
                let good = matches!(outcome, Outcome::Done | Outcome::Cached);
                state.counts.completed += u32::from(good);
                state.counts.cached += u32::from(*outcome == Outcome::Cached);
                if good {
                    state.finished.insert(id.0);
                }
            }
            Event::Warning { .. } => state.counts.warnings += 1,
            _ => {}
        }
        state.append(&entry);
    }

    fn end(&self, status: Status, failure: Option<Failure>) {
        let mut state = self.state();
        let journal = match state.file.is_some() {
            true => None,
            false => Some(std::mem::take(&mut state.buffer)),
        };
        let ran = state.file.is_some();
        let counts = std::mem::take(&mut state.counts);
        state.file = None;
        drop(state);
        let ending = Ending { status, failure, counts };
        let text = serde_json::to_string(&ending).unwrap_or_default();
        let updated = self.store.db().write(Durability::Cache, |tx| {
            tx.prepare_cached("UPDATE builds SET ended = ?, outcome = ?, journal = ? WHERE id = ?")?
                .execute(params![nanos(SystemTime::now()), text, journal, self.id])?;
            Ok(())
        });
        // Now and then: what is over the bounds is a matter of months.
        if ran
            && self.id.ends_with('0')
            && let Err(error) = Builds::new(self.store.clone()).trim()
        {
            tracing::debug!(%error, "old builds stay in the history");
        }
        if let Err(error) = updated {
            tracing::debug!(%error, "the end of a build is not kept in the history");
        }
    }
}

impl State {
    fn begin_file(&mut self, shared: &Shared) {
        if self.file.is_some() {
            return;
        }
        let made = std::fs::create_dir_all(&shared.dir)
            .and_then(|()| File::options().create(true).append(true).open(shared.dir.join(super::JOURNAL)));
        match made {
            Ok(file) => {
                self.file = Some(file);
                self.flush();
            }
            Err(error) => tracing::warn!(%error, dir = %shared.dir.display(), "the log of a build is not kept"),
        }
    }

    fn append(&mut self, entry: &Entry) {
        if self.written > LONGEST && matches!(entry, Entry::Log { .. }) {
            if !std::mem::replace(&mut self.cut, true) {
                let message = format!("output beyond {} MiB is not kept", LONGEST >> 20);
                Entry::Warning { message, line: None, url: None }.write(&mut self.buffer);
            }
            return;
        }
        entry.write(&mut self.buffer);
        if self.file.is_some() {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let Some(file) = &mut self.file else { return };
        if let Err(error) = file.write_all(&self.buffer) {
            tracing::warn!(%error, "the log of a build is cut short");
            self.written = u64::MAX;
        }
        self.written = self.written.saturating_add(self.buffer.len() as u64);
        self.buffer.clear();
    }
}

/// The names of ARG instructions. By line, since that is where they stand; a name too many makes a word of an
/// explanation `ARG` where it should say `ENV`, and nothing else.
fn declared(dockerfile: &str) -> impl Iterator<Item = &str> {
    let lines = dockerfile.lines().filter_map(|line| {
        let line = line.trim_start();
        let (word, rest) = line.split_at_checked(4)?;
        word.eq_ignore_ascii_case("arg ").then_some(rest)
    });
    lines
        .flat_map(str::split_whitespace)
        .map(|word| word.split('=').next().unwrap_or(word))
        .filter(|name| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_found() {
        let text = "ARG A=1 B\n  arg C\nRUN echo ARG D\nARGUMENT E\nENV F=1\nARG G=\"x y\"\n";
        assert_eq!(declared(text).collect::<Vec<_>>(), ["A", "B", "C", "G"]);
    }
}
