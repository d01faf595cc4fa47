//! Patterns over paths, which operations carry: the meaning of wildcards in COPY sources and of exclusions.
//!
//! They are here and not with the Dockerfile, because whoever makes operations real, or sends them from elsewhere, must
//! agree on what they select.

mod glob;
mod list;

pub use glob::{BadPattern, Component, PathGlob, Pattern, has_wildcards};
pub use list::{Matched, PatternError, Patterns, clean_path};
