//! `BuildGraph` over petgraph.

use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;
use rbuild_oci::Platform;
use serde::{Deserialize, Serialize};

use crate::{Op, Span};

/// A vertex of one graph. Ids are dense and ascend in a topological order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VertexId(pub u32);

/// An output of a vertex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Edge {
    pub vertex: VertexId,
    pub output: u32,
}

impl From<VertexId> for Edge {
    fn from(vertex: VertexId) -> Edge {
        Edge { vertex, output: 0 }
    }
}

/// What people are told about a vertex; none of it is part of what the vertex computes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VertexMeta {
    /// As shown: `[build 2/5] RUN make`.
    pub name: String,
    /// The instruction it came from.
    pub span: Option<Span>,
    /// Run it even if its result is known.
    pub ignore_cache: bool,
    /// What it is built for. (Operations whose result depends on it say so in their own fields.)
    pub platform: Platform,
}

/// An operation in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vertex {
    pub op: Op,
    /// What the operation reads; operations name their inputs by index.
    pub inputs: Vec<Edge>,
    pub meta: VertexMeta,
}

/// Why a vertex cannot be part of a graph.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    #[error("vertex {0} is not in this graph")]
    NoSuchVertex(u32),
    #[error("{vertex:?} has no output {output}, only {outputs}")]
    NoSuchOutput { vertex: String, output: u32, outputs: u32 },
    #[error("{vertex:?} names input {input}, but has only {inputs}")]
    NoSuchInput { vertex: String, input: usize, inputs: usize },
    #[error("{vertex:?}: {reason}")]
    Invalid { vertex: String, reason: String },
}

/// Operations and what each reads.
///
/// A vertex can be added only after its inputs, so a graph has no cycles and ascending ids are a topological order.
#[derive(Debug, Clone, Default)]
pub struct BuildGraph {
    graph: DiGraph<Vertex, u32>,
}

impl BuildGraph {
    pub fn new() -> BuildGraph {
        BuildGraph::default()
    }

    /// Adds an operation.
    ///
    /// # Errors
    /// An input that does not exist, an operation that names an input it does not have, or one that is not valid in
    /// itself ([`Op::validate`]).
    pub fn add(&mut self, op: Op, inputs: Vec<Edge>, meta: VertexMeta) -> Result<VertexId, GraphError> {
        for input in &inputs {
            let vertex = self.get(input.vertex).ok_or(GraphError::NoSuchVertex(input.vertex.0))?;
            let outputs = vertex.op.outputs();
            if input.output >= outputs {
                return Err(GraphError::NoSuchOutput {
                    vertex: vertex.meta.name.clone(),
                    output: input.output,
                    outputs,
                });
            }
        }
        if let Some(input) = op.highest_input().filter(|i| *i >= inputs.len()) {
            return Err(GraphError::NoSuchInput { vertex: meta.name, input, inputs: inputs.len() });
        }
        if let Err(reason) = op.validate() {
            return Err(GraphError::Invalid { vertex: meta.name, reason });
        }
        let sources: Vec<NodeIndex> = inputs.iter().map(|edge| NodeIndex::new(edge.vertex.0 as usize)).collect();
        let node = self.graph.add_node(Vertex { op, inputs, meta });
        for (position, source) in (0u32..).zip(sources) {
            self.graph.add_edge(source, node, position);
        }
        Ok(VertexId(node.index() as u32))
    }

    /// The vertex with this id.
    ///
    /// # Panics
    /// When the id is of another graph.
    pub fn vertex(&self, id: VertexId) -> &Vertex {
        &self.graph[NodeIndex::new(id.0 as usize)]
    }

    /// The vertex with this id, if the graph has it.
    pub fn get(&self, id: VertexId) -> Option<&Vertex> {
        self.graph.node_weight(NodeIndex::new(id.0 as usize))
    }

    /// What `id` reads.
    pub fn inputs(&self, id: VertexId) -> &[Edge] {
        &self.vertex(id).inputs
    }

    /// The vertices that read `id`, each once, ascending.
    pub fn dependents(&self, id: VertexId) -> Vec<VertexId> {
        let mut found: Vec<VertexId> = self
            .graph
            .edges_directed(NodeIndex::new(id.0 as usize), Direction::Outgoing)
            .map(|edge| VertexId(edge.target().index() as u32))
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    pub fn len(&self) -> usize {
        self.graph.node_count()
    }

    pub fn is_empty(&self) -> bool {
        self.graph.node_count() == 0
    }

    /// All vertices, inputs before those that read them.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = VertexId> + use<> {
        (0..self.graph.node_count() as u32).map(VertexId)
    }

    /// What is needed for `roots`, themselves included, inputs first.
    pub fn reachable(&self, roots: &[Edge]) -> Vec<VertexId> {
        let mut wanted = vec![false; self.len()];
        let mut pending: Vec<VertexId> = roots.iter().map(|edge| edge.vertex).collect();
        while let Some(id) = pending.pop() {
            if !std::mem::replace(&mut wanted[id.0 as usize], true) {
                pending.extend(self.inputs(id).iter().map(|edge| edge.vertex));
            }
        }
        self.ids().filter(|id| wanted[id.0 as usize]).collect()
    }

    /// The graph in the language of `dot`, for people.
    pub fn to_dot(&self) -> String {
        crate::dot::render(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{FileAction, FileOp, MergeOp, Mkdir};

    fn meta(name: &str) -> VertexMeta {
        VertexMeta { name: name.into(), span: None, ignore_cache: false, platform: Platform::new("linux", "amd64") }
    }

    fn mkdir(base: Option<usize>) -> Op {
        Op::File(FileOp { base, actions: vec![FileAction::Mkdir(Mkdir::new(b"/x"))] })
    }

    #[test]
    fn inputs_come_before_their_readers() {
        let mut graph = BuildGraph::new();
        let a = graph.add(mkdir(None), vec![], meta("a")).unwrap();
        let b = graph.add(mkdir(Some(0)), vec![a.into()], meta("b")).unwrap();
        let c = graph.add(mkdir(None), vec![], meta("c")).unwrap();
        let d = graph.add(Op::Merge(MergeOp { inputs: 2 }), vec![a.into(), b.into()], meta("d")).unwrap();
        assert_eq!(graph.reachable(&[d.into()]), [a, b, d]);
        assert_eq!(graph.dependents(a), [b, d]);
        assert!(graph.dependents(c).is_empty());
        assert!(graph.to_dot().contains("v0 -> v1"));
    }

    #[test]
    fn a_vertex_cannot_name_what_is_not_there() {
        let mut graph = BuildGraph::new();
        assert!(matches!(graph.add(mkdir(Some(0)), vec![], meta("a")), Err(GraphError::NoSuchInput { .. })));
        assert!(matches!(
            graph.add(mkdir(None), vec![VertexId(7).into()], meta("a")),
            Err(GraphError::NoSuchVertex(7))
        ));
        let a = graph.add(mkdir(None), vec![], meta("a")).unwrap();
        let wrong = Edge { vertex: a, output: 1 };
        assert!(matches!(graph.add(mkdir(Some(0)), vec![wrong], meta("b")), Err(GraphError::NoSuchOutput { .. })));
    }
}
