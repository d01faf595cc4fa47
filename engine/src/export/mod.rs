//! Turns results into something outside of the solver.

pub(crate) mod image;
