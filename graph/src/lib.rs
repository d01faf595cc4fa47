//! The build graph: plain-data operations and what each of them reads.
//!
//! This is the narrow waist of rbuild. Everything before it is text (a Dockerfile, later LLB definitions of other
//! clients), everything after it is work. So the types carry LLB's semantics (source, exec, file, merge and diff
//! operations; inputs by index; several outputs), know nothing of Dockerfiles, and do nothing.
//!
//! petgraph holds the graph and gives order and pictures. It does not schedule; the solver does.

mod dot;
mod graph;
pub mod ops;
pub mod pattern;
mod span;

pub use graph::{BuildGraph, Edge, GraphError, Vertex, VertexId, VertexMeta};
pub use ops::Op;
pub use span::Span;
