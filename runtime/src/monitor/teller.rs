//! Tells of a container's life: what `events` shows of its starts and ends, its health, its networks and volumes.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rbuild_store::{Event, EventKind};

use crate::container::{Connection, ContainerSpec, Ended, Told};

pub(super) struct Teller {
    id: String,
    told: Option<Told>,
    /// The container's name, which may change, and since when this life lasts.
    now: Mutex<(String, Instant)>,
}

impl Teller {
    pub(super) fn new(spec: &ContainerSpec) -> Self {
        let now = Mutex::new((spec.name.clone(), Instant::now()));
        Self { id: spec.id.clone(), told: spec.told.clone(), now }
    }

    pub(super) fn renamed(&self, to: &str) {
        to.clone_into(&mut self.lock().0);
    }

    /// A life begins. Called when its program has been executed.
    pub(super) fn started(&self, connections: &[Connection]) {
        let Some(told) = &self.told else { return };
        self.lock().1 = Instant::now();
        for connection in connections {
            self.network("connect", connection);
        }
        for volume in &told.volumes {
            let event = self.volume("mount", &volume.name);
            let event = event.with("destination", &volume.destination).with("propagation", "");
            told.journal.note(&event.with("read/write", (!volume.read_only).to_string()));
        }
        self.note("start", &[]);
    }

    /// A life has ended.
    pub(super) fn ended(&self, ended: &Ended, connections: &[Connection]) {
        let Some(told) = &self.told else { return };
        if ended.oom {
            self.note("oom", &[]);
        }
        let seconds = self.lock().1.elapsed().max(Duration::ZERO).as_secs().to_string();
        self.note("die", &[("execDuration", &seconds), ("exitCode", &ended.status.to_string())]);
        for connection in connections {
            self.network("disconnect", connection);
        }
        for volume in &told.volumes {
            told.journal.note(&self.volume("unmount", &volume.name));
        }
    }

    pub(super) fn network(&self, action: &str, connection: &Connection) {
        let Some(told) = &self.told else { return };
        let event = Event::new(EventKind::Network, action, &connection.network).with("container", &self.id);
        told.journal.note(&event.with("name", &connection.network_name).with("type", "bridge"));
    }

    fn volume(&self, action: &str, name: &str) -> Event {
        Event::new(EventKind::Volume, action, name).with("container", &self.id).with("driver", "local")
    }

    /// Tells of the container itself.
    pub(super) fn note(&self, action: &str, more: &[(&str, &str)]) {
        let Some(told) = &self.told else { return };
        let mut attributes: BTreeMap<String, String> = told.attributes.clone();
        attributes.insert("name".to_owned(), self.lock().0.clone());
        attributes.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        told.journal.note(&Event { attributes, ..Event::new(EventKind::Container, action, &self.id) });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (String, Instant)> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
