//! Where the results of builds are kept: the store's database.
//!
//! What the solver asks of a cache is the solver's [`Cache`](rbuild_solver::Cache); this is it on the tables `records`,
//! `aliases` and `claims`, whose only writer this crate is. It knows nothing of what a result is: a [`Stored`] says how
//! one is written down and what must stay for it to be of use.

mod claim;
mod local;
pub mod trace;

pub use local::{Encoded, LocalCache, Stored};
