//! How a build's results are written down in cache records.

use rbuild_cache::{Encoded, Stored};
use rbuild_executor::Value;
use rbuild_store::{Lease, SnapshotId, Store, Target};
use serde::{Deserialize, Serialize};

/// Writes and reads [`Value`]s.
pub(crate) struct ValueCodec {
    store: Store,
    /// Holds what was read until the process ends.
    lease: Lease,
}

/// A value as a record has it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Record {
    Scratch,
    Snapshot(String),
}

impl ValueCodec {
    pub(crate) fn new(store: Store, lease: Lease) -> ValueCodec {
        ValueCodec { store, lease }
    }
}

impl Stored<Value> for ValueCodec {
    fn encode(&self, value: &Value) -> Option<Encoded> {
        let (record, targets) = match value {
            Value::Scratch => (Record::Scratch, Vec::new()),
            Value::Snapshot(snapshot) => {
                (Record::Snapshot(snapshot.id().to_string()), vec![Target::Snapshot(snapshot.id().clone())])
            }
            // A session's own files are never written down.
            Value::Context(_) => return None,
        };
        Some(Encoded { data: serde_json::to_value(record).ok()?, targets })
    }

    fn decode(&self, stored: &serde_json::Value) -> Option<Value> {
        match Record::deserialize(stored).ok()? {
            Record::Scratch => Some(Value::Scratch),
            Record::Snapshot(id) => {
                let id: SnapshotId = id.parse().ok()?;
                self.store.snapshots().get(&id, &self.lease).ok().map(Value::Snapshot)
            }
        }
    }
}
