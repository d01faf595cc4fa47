//! Operations on whole file trees.

use serde::{Deserialize, Serialize};

/// Stacks its inputs: what a later one has hides what an earlier one has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergeOp {
    /// How many vertex inputs there are, all of them used in order.
    pub inputs: usize,
}

/// What `upper` has and `lower` has not; `None` is nothing at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffOp {
    pub lower: Option<usize>,
    pub upper: Option<usize>,
}
