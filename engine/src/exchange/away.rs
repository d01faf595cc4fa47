//! Cached results whose files lie elsewhere.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use rbuild_cache::{Backend, Tree, Trees, replace_output};
use rbuild_executor::{ExecutorError, Lazy, RemoteTree};
use rbuild_oci::Digest;
use rbuild_registry::{LayerSource, PackedLayer, Progress};
use rbuild_solver::{CacheKey, Event, Events, Unit};
use rbuild_store::{Lease, Snapshot, Store, Target};
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use crate::error::Error;
use crate::remote::as_step;
use crate::stored::Record;

/// The caches that one build may read, by their places.
pub(crate) struct Places {
    backends: HashMap<String, Arc<dyn Backend>>,
    events: Events,
    /// Places that did not keep their word, and how.
    lost: Mutex<HashMap<String, String>>,
}

impl Places {
    pub(crate) fn new(backends: &[Arc<dyn Backend>], events: Events) -> Places {
        let backends = backends.iter().map(|backend| (backend.place().to_owned(), backend.clone())).collect();
        Places { backends, events, lost: Mutex::default() }
    }

    pub(crate) fn get(&self, place: &str) -> Option<&Arc<dyn Backend>> {
        self.backends.get(place)
    }

    pub(crate) fn lost(&self) -> HashMap<String, String> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lose(&self, place: &str, why: String) {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).insert(place.to_owned(), why);
    }
}

/// A result elsewhere as a record has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Away {
    pub(crate) key: CacheKey,
    pub(crate) place: String,
    /// The lowest first.
    pub(crate) layers: Vec<PackedLayer>,
}

/// [`Away`] as something that can be brought.
pub(crate) struct AwayTree {
    pub(crate) away: Away,
    pub(crate) places: Arc<Places>,
    pub(crate) store: Store,
    pub(crate) lease: Lease,
    pub(crate) brought: OnceCell<Snapshot>,
}

impl AwayTree {
    async fn fetch(&self) -> Result<Snapshot, ExecutorError> {
        let Away { key, place, layers } = &self.away;
        let failed = |message: String| ExecutorError::Cached { place: place.clone(), message };
        let backend = self.places.get(place).ok_or_else(|| failed("the build does not name it".into()))?;
        let events = &self.places.events;
        let title = format!("[internal] fetching cached layers from {place}");
        let brought = as_step(events, &title, |step| async move {
            let report = |progress: Progress| {
                let (current, total, done) = (progress.current, progress.total, progress.done);
                let item = progress.blob.to_string();
                events.send(Event::Progress { id: step, item, current, total, unit: Unit::Bytes, done });
            };
            let brought = backend.bring(layers, &self.store, &self.lease, &report).await;
            brought.map_err(Error::internal)
        });
        match brought.await {
            Ok(Some(snapshot)) => {
                let old = Record::Elsewhere(self.away.clone()).to_value();
                let new = Record::Snapshot(snapshot.id().to_string()).to_value();
                if let (Some(old), Some(new)) = (old, new) {
                    replace_output(&self.store, *key, &old, &new, &Target::Snapshot(snapshot.id().clone()))?;
                }
                Ok(snapshot)
            }
            Ok(None) => Err(failed("it has no layers".into())),
            Err(error) => {
                self.places.lose(place, error.message.clone());
                Err(failed(error.message))
            }
        }
    }
}

impl RemoteTree for AwayTree {
    fn layers(&self) -> &[PackedLayer] {
        &self.away.layers
    }

    fn place(&self) -> &str {
        &self.away.place
    }

    fn bring(&self) -> BoxFuture<'_, Result<Snapshot, ExecutorError>> {
        self.brought.get_or_try_init(|| self.fetch()).map(|brought| brought.cloned()).boxed()
    }
}

/// A final result that an output may take from where it lies.
#[derive(Clone)]
pub(crate) struct Lying {
    /// The lowest first.
    pub(crate) layers: Vec<PackedLayer>,
    backend: Arc<dyn Backend>,
    places: Arc<Places>,
}

impl Lying {
    pub(crate) fn place(&self) -> &str {
        self.backend.place()
    }

    /// Its layers, by the digests of their blobs. A place that does not give one is lost.
    pub(crate) fn sources(&self) -> impl Iterator<Item = (Digest, LayerSource)> {
        self.layers.iter().map(|layer| {
            let source = self.backend.source(&layer.blob);
            let (places, place) = (self.places.clone(), self.backend.place().to_owned());
            let bytes = move |out: &mut dyn Write| {
                (source.bytes)(out).inspect_err(|error| {
                    if error.kind() != io::ErrorKind::BrokenPipe {
                        places.lose(&place, error.to_string());
                    }
                })
            };
            (layer.blob.digest.clone(), LayerSource { bytes: Arc::new(bytes), ..source })
        })
    }

    /// Brings its layers here as they are, compressed.
    ///
    /// # Errors
    /// The place does not give one; it is lost then.
    pub(crate) async fn bring_packed(
        &self,
        store: &Store,
        lease: &Lease,
        report: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), Error> {
        let brought = self.backend.bring_packed(&self.layers, store, lease, report).await;
        brought.map_err(|error| {
            self.places.lose(self.backend.place(), error.to_string());
            Error::from(error)
        })
    }
}

impl Places {
    /// A result that lies at one of these places.
    pub(crate) fn lying(self: &Arc<Self>, result: &Lazy) -> Option<Lying> {
        let (layers, backend) = (result.layers().to_vec(), self.get(result.place())?.clone());
        Some(Lying { layers, backend, places: self.clone() })
    }
}

/// What the results of records are, for those who send them elsewhere.
pub(crate) struct ResultTrees {
    pub(crate) places: Arc<Places>,
}

impl Trees for ResultTrees {
    fn tree(&self, output: &serde_json::Value) -> Option<Tree> {
        Some(match Record::deserialize(output).ok()? {
            Record::Scratch => Tree::Empty,
            Record::Snapshot(id) => Tree::Here(id.parse().ok()?),
            Record::Elsewhere(Away { place, layers, .. }) => Tree::Elsewhere { place, layers },
        })
    }

    fn backend(&self, place: &str) -> Option<Arc<dyn Backend>> {
        self.places.get(place).cloned()
    }
}

/// Places that may not be asked any more.
pub(crate) type Lost = HashSet<String>;
