//! Where the results of builds are kept: the store's database, and caches elsewhere.
//!
//! What the solver asks of a cache is the solver's [`Cache`](rbuild_solver::Cache); [`LocalCache`] is it on the tables
//! `records`, `aliases` and `claims`, whose only writer this crate is, and [`Tiers`] is it with caches of other machines
//! behind. The crate knows nothing of what a result is: a [`Stored`] says how one is written down and what must stay for it to
//! be of use, [`Trees`] which layers it has.
//!
//! A cache elsewhere is a [`Backend`]: a place for images, be it a repository or a directory. [`portable`] says how
//! records become images, [`import`] how they are found, [`publish`] how they get there.

mod backend;
mod claim;
mod dir;
mod error;
pub mod import;
mod local;
pub mod portable;
pub mod publish;
mod registry;
mod rows;
mod tiers;
pub mod trace;

pub use backend::{Backend, Report};
pub use dir::DirectoryBackend;
pub use error::Error;
pub use local::{Encoded, LocalCache, Stored};
pub use publish::{KEEP_AT_LEAST, PublishOptions, Published, Publisher, Tree, Trees};
pub use registry::RegistryBackend;
pub use rows::{StoredRecord, replace_output, stored_record};
pub use tiers::{Elsewhere, Evidence, Imported, Open, Tiers};
