//! What a monitor writes down of its container: one value, changed by several threads, replaced on disk as a whole.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::container::{Ended, Health, HealthStatus, State};

pub(super) struct Book {
    directory: PathBuf,
    state: Mutex<State>,
}

impl Book {
    pub(super) fn new(directory: &Path, state: State) -> Self {
        Self { directory: directory.to_owned(), state: Mutex::new(state) }
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        if let Err(error) = state.write(&self.directory) {
            tracing::warn!(%error, "the state of the container is not written down");
        }
    }

    /// Its program runs; `change` says what else is new.
    pub(super) fn started(&self, pid: i32, probed: bool, change: impl FnOnce(&mut State)) {
        self.change(|state| {
            change(state);
            state.started = Some(super::now());
            state.finished = None;
            state.restarting = false;
            state.stopped = false;
            state.pid = pid;
            state.exit_code = 0;
            state.oom = false;
            state.health = probed.then(Health::default);
        });
    }

    /// Its program has ended; `again` says that it is to be started once more.
    /// `stopped` that a command asked for the end.
    pub(super) fn ended(&self, ended: &Ended, again: bool, stopped: bool) {
        self.change(|state| {
            state.pid = 0;
            state.finished = Some(super::now());
            state.exit_code = ended.status;
            state.oom = ended.oom;
            state.restarting = again;
            state.stopped = stopped;
            if let Some(health) = &mut state.health {
                health.status = HealthStatus::Unhealthy;
            }
        });
    }

    pub(super) fn health(&self) -> Option<Health> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).health.clone()
    }

    /// Changes what is known of the health of a container that runs; the status, if it is another one now.
    pub(super) fn change_health(&self, change: impl FnOnce(&mut Health)) -> Option<HealthStatus> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let runs = state.finished.is_none();
        let health = state.health.as_mut().filter(|_| runs)?;
        let before = health.status;
        change(health);
        let after = health.status;
        if let Err(error) = state.write(&self.directory) {
            tracing::warn!(%error, "the health of the container is not written down");
        }
        (before != after).then_some(after)
    }
}
