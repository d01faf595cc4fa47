//! The store: blobs by digest, images by name, file trees as snapshots, and the database that says what is whole.
//!
//! Many short-lived processes share one directory; no daemon owns it. Two sentences rule everything here. Presence on
//! disk means nothing, a row in the database means whole. And death is the normal exit: there is no clean-shutdown path
//! that another path relies on, recovery is what opening does every time.
//!
//! Storage gives mounts and mounts nothing; all calls block.

pub mod archive;
pub mod blobs;
pub mod check;
pub mod collect;
pub mod db;
pub mod error;
pub mod events;
pub mod faults;
mod flush;
pub mod images;
pub mod layers;
pub mod lease;
pub mod lock;
pub mod outside;
pub mod root;
mod schema;
pub mod snapshots;
mod store;
pub mod transfer;

pub use blobs::{BlobReader, BlobWriter, Blobs};
pub use check::{CheckOptions, Checked, Problem};
pub use collect::{CollectOptions, Collected, Records};
pub use db::{Db, Durability};
pub use error::{FULL_DISK_HINT, Result, StoreError};
pub use events::{Event, EventJournal, EventKind, EventReader};
pub use faults::{Fault, Faults};
pub use images::{ImageRecord, Images, NewImage, Removed, Untagged};
pub use layers::{Applied, LayerDigest, Layers, Staged};
pub use lease::{AbandonedIntent, Intent, Lease, LeaseId, Target};
pub use outside::Outside;
pub use root::{Root, Walk};
pub use snapshots::{Active, Driver, Mounts, Snapshot, SnapshotId, SnapshotRow, Snapshots, Snapshotter};
pub use store::{Store, StoreOptions};

pub use rusqlite;
