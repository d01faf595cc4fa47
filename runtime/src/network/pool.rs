//! Namespaces made ahead, so that a RUN step need not wait for one.
//!
//! Each is used once. A namespace handed from step to step would still hold what the last one left: connections in
//! TIME_WAIT that keep a port, sockets passed to nobody, anything a privileged step changed. To make the next one while
//! a step runs costs that step nothing, and the kernel takes the old one down by itself.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::{Bridge, BridgeOptions, Error, Namespace};

/// Hands out namespaces attached to a bridge. Cheap to clone; with the last clone what is left over goes, and the
/// thread that makes them.
#[derive(Clone, Debug)]
pub struct Pool {
    handle: Arc<Handle>,
}

/// The pool's users; its end tells the thread to stop.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: BridgeOptions,
    ready: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    bridge: Option<Bridge>,
    spare: VecDeque<Namespace>,
    started: bool,
    ended: bool,
}

impl Pool {
    /// A pool that keeps up to `ready` namespaces in hand. Nothing is made before the first [`take`](Self::take) or
    /// [`warm`](Self::warm).
    pub fn new(options: BridgeOptions, ready: usize) -> Self {
        let shared = Shared { options, ready, state: Mutex::default(), changed: Condvar::new() };
        Self { handle: Arc::new(Handle { shared: Arc::new(shared) }) }
    }

    /// Begins to make namespaces behind the caller's back: for who knows that one will be wanted soon.
    pub fn warm(&self) {
        let shared = &self.handle.shared;
        let mut state = shared.lock();
        if state.started || shared.ready == 0 {
            return;
        }
        let worker = Arc::clone(shared);
        let spawned = thread::Builder::new().name("network-pool".into()).spawn(move || worker.fill());
        state.started = spawned.is_ok();
    }

    /// A namespace of its own, ready made where one is in hand. Blocks for the kernel otherwise (about a millisecond).
    pub fn take(&self) -> Result<Namespace, Error> {
        self.warm();
        let shared = &self.handle.shared;
        let spare = shared.lock().spare.pop_front();
        shared.changed.notify_one();
        match spare {
            Some(namespace) => Ok(namespace),
            None => Namespace::attached(&shared.bridge()?, None),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bridge(&self) -> Result<Bridge, Error> {
        if let Some(bridge) = self.lock().bridge.clone() {
            return Ok(bridge);
        }
        let bridge = Bridge::ensure(&self.options)?;
        self.lock().bridge = Some(bridge.clone());
        Ok(bridge)
    }

    /// The thread's work: keep `ready` in hand until the pool ends. It stops at the first failure, which the next
    /// `take` then meets itself and reports.
    fn fill(&self) {
        loop {
            let mut state = self.lock();
            while !state.ended && state.spare.len() >= self.ready {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.ended {
                return;
            }
            drop(state);
            match self.bridge().and_then(|bridge| Namespace::attached(&bridge, None)) {
                Ok(namespace) => self.lock().spare.push_back(namespace),
                Err(error) => {
                    tracing::debug!(%error, "no namespaces are made ahead");
                    self.lock().started = false;
                    return;
                }
            }
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ended = true;
        state.spare.clear();
        drop(state);
        self.shared.changed.notify_one();
    }
}
