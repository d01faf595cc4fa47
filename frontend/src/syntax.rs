//! Text to joined lines, and what stands in a line.
//!
//! Three steps that know nothing of instructions: [`lines`] joins lines, reads directives and cuts heredocs out;
//! [`grammar`] takes one joined line apart; [`words`] expands one word. The parser never fails: what it cannot read
//! becomes a diagnostic.

pub(crate) mod grammar;
pub(crate) mod heredoc;
pub(crate) mod lines;
mod patterns;
pub(crate) mod words;
