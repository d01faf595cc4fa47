//! How a build's results are written down in cache records.

use std::sync::Arc;

use rbuild_cache::portable::PortableRecord;
use rbuild_cache::{Elsewhere, Encoded, Stored, replace_output};
use rbuild_executor::{Lazy, Value};
use rbuild_oci::{ChainId, DiffId};
use rbuild_store::{Lease, SnapshotId, Store, Target};
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use crate::exchange::{Away, AwayTree, Places};

/// Writes and reads [`Value`]s.
pub(crate) struct ValueCodec {
    store: Store,
    /// Holds what was read until the process ends.
    lease: Lease,
    /// The caches elsewhere that the build may read.
    places: Option<Arc<Places>>,
}

/// A value as a record has it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Record {
    Scratch,
    Snapshot(String),
    Elsewhere(Away),
}

impl Record {
    pub(crate) fn to_value(&self) -> Option<serde_json::Value> {
        serde_json::to_value(self).ok()
    }
}

impl ValueCodec {
    pub(crate) fn new(store: Store, lease: Lease) -> ValueCodec {
        ValueCodec { store, lease, places: None }
    }

    /// The same, that also knows results which lie at `places`.
    pub(crate) fn with_places(self, places: Arc<Places>) -> ValueCodec {
        ValueCodec { places: Some(places), ..self }
    }

    /// A result elsewhere, if the build may ask there. What happens to be here already is taken from here.
    fn away(&self, away: Away) -> Option<Value> {
        let places = self.places.as_ref().filter(|places| places.get(&away.place).is_some())?;
        let diff_ids: Vec<DiffId> = away.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let here = self.store.snapshots().by_chain_id(&ChainId::of(&diff_ids)?, &self.lease).ok()?;
        if let Some(snapshot) = here {
            // It may have come as part of an image, which does not say how new its files are.
            rbuild_cache::import::date(&away.layers, Some(&snapshot), &self.store).ok()?;
            let new = Record::Snapshot(snapshot.id().to_string()).to_value()?;
            let (key, old) = (away.key, Record::Elsewhere(away).to_value()?);
            replace_output(&self.store, key, &old, &new, &Target::Snapshot(snapshot.id().clone())).ok()?;
            return Some(Value::Snapshot(snapshot));
        }
        let (places, store, lease) = (places.clone(), self.store.clone(), self.lease.clone());
        Some(Value::Lazy(Lazy::new(Arc::new(AwayTree { away, places, store, lease, brought: OnceCell::new() }))))
    }
}

impl Stored<Value> for ValueCodec {
    fn encode(&self, value: &Value) -> Option<Encoded> {
        let (record, targets) = match value {
            Value::Scratch => (Record::Scratch, Vec::new()),
            Value::Snapshot(snapshot) => {
                (Record::Snapshot(snapshot.id().to_string()), vec![Target::Snapshot(snapshot.id().clone())])
            }
            // A session's own files are never written down, and what lies elsewhere was before it came to be a value.
            Value::Context(_) | Value::Lazy(_) => return None,
        };
        Some(Encoded { data: record.to_value()?, targets })
    }

    fn decode(&self, stored: &serde_json::Value) -> Option<Value> {
        match Record::deserialize(stored).ok()? {
            Record::Scratch => Some(Value::Scratch),
            Record::Snapshot(id) => {
                let id: SnapshotId = id.parse().ok()?;
                self.store.snapshots().get(&id, &self.lease).ok().map(Value::Snapshot)
            }
            Record::Elsewhere(away) => self.away(away),
        }
    }
}

impl Elsewhere for ValueCodec {
    fn encode_elsewhere(&self, record: &PortableRecord, output: usize, place: &str) -> serde_json::Value {
        let result = match record.outputs.get(output).cloned().flatten() {
            None => Record::Scratch,
            Some(layers) => Record::Elsewhere(Away { key: record.key, place: place.to_owned(), layers }),
        };
        result.to_value().unwrap_or_default()
    }
}
