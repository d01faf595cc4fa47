//! Where something stands in its text.

use serde::{Deserialize, Serialize};

/// A stretch of a Dockerfile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Span {
    /// Byte offset of the first byte.
    pub start: usize,
    /// Byte offset behind the last byte.
    pub end: usize,
    /// First line, from 1.
    pub line: u32,
    /// Last line, from 1, inclusive.
    pub end_line: u32,
}

impl Span {
    /// From the start of this to the end of `other`.
    pub fn to(self, other: Span) -> Span {
        Span { start: self.start, end: other.end, line: self.line, end_line: other.end_line }
    }
}
