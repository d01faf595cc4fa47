//! Turns results into something outside of the solver.

pub(crate) mod archive;
mod assemble;
mod files;
pub(crate) mod image;
mod pack;
pub(crate) mod results;
pub(crate) mod squash;
mod tar;
mod timestamps;
