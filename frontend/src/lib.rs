//! The Dockerfile frontend: text in, build graph and image config out.
//!
//! It does no I/O and has no async. [`parse`] never fails: it gives a [`Dockerfile`] and what is wrong with it, every
//! mistake at once. [`lower`] walks the stages the target needs; what it has to know from outside (configs of base
//! images) it takes from [`Facts`], and what is still unknown it names in [`Outcome::Missing`], to be asked again with
//! more. So a test is a Dockerfile, facts and the expected graph, and an editor can use the same code.
//!
//! ```text
//! text ── syntax ── joined lines ── instructions ── typed, unexpanded ── stages ── target, reachable ── lower ── graph
//! ```

#![allow(clippy::result_large_err, reason = "a diagnostic is made once per mistake, never on a hot path")]

mod change;
pub mod describe;
mod diagnostic;
mod facts;
pub mod fix;
pub mod ignore;
mod instructions;
pub mod lint;
mod lower;
mod options;
mod stages;
mod syntax;
#[cfg(test)]
mod tests;

pub use rbuild_graph::pattern as glob;

pub use change::change;
pub use diagnostic::{Diagnostic, Severity, nearest};
pub use facts::{FactRequest, Facts, ImageFact};
pub use lower::git::git_source;
pub use lower::lower;
pub use options::{BaseImage, HistoryStep, LowerOptions, Lowered, NamedContext, Outcome, Purpose};
pub use stages::{Dockerfile, Stage, parse};
