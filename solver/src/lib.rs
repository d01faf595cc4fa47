//! A caching solver of build graphs, for any type of result.
//!
//! It knows no files and no network: what an operation is and does comes from outside ([`RunOp`]), what was done before
//! comes from outside ([`Cache`]). So integers test it.

mod cache;
mod event;
mod key;
mod ladder;
mod launch;
mod op;
mod record;
mod report;
mod settle;
mod show;
mod solve;
mod solver;

pub use cache::{Cache, CacheError, Claim, ClaimGuard, Entry, Keep, MemoryCache};
pub use event::{Event, EventStream, Events, LogStream, Outcome, StepId, StepKind, Unit};
pub use key::{CacheKey, ContentHash, InputKey, KeyPart, KeySpec, ParseKeyError, PartValue};
pub use op::{Cancel, ContentParts, InputContent, OpError, OpFactory, Ran, RunContext, RunOp};
pub use record::{RecordedInput, RunRecord, Usage};
pub use report::Report;
pub use solver::{Build, SolveError, Solved, Solver};
