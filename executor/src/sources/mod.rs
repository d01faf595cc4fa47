//! Where bytes from outside come from, apart from how the solver sees them.

pub mod git;
