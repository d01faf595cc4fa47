//! A graph in the making.
//!
//! What a build needs of its context is known only when the last COPY is lowered, while the vertex of the context
//! comes first; so vertices are collected here and become a [`BuildGraph`] at the end.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rbuild_graph::ops::{ContextSource, FileAction, FileOp, ImageSource, Mkdir, Op, SourceOp};
use rbuild_graph::{BuildGraph, Edge, GraphError, VertexId, VertexMeta};
use rbuild_oci::{Platform, Reference};

use crate::Diagnostic;
use crate::glob::has_wildcards;

#[derive(Default)]
pub(super) struct Draft {
    vertices: Vec<(Op, Vec<Edge>, VertexMeta)>,
    contexts: BTreeMap<String, Context>,
    images: HashMap<(Reference, Platform), Edge>,
    empty: Option<Edge>,
}

struct Context {
    edge: Edge,
    /// Paths that are read; the root stands for everything.
    paths: BTreeSet<String>,
}

impl Draft {
    pub(super) fn add(&mut self, op: Op, inputs: Vec<Edge>, meta: VertexMeta) -> Edge {
        let vertex = VertexId(self.vertices.len() as u32);
        self.vertices.push((op, inputs, meta));
        Edge { vertex, output: 0 }
    }

    /// The context of this name, of which `path` is read.
    pub(super) fn context(&mut self, name: &str, path: &str, ignore: &[String], meta: VertexMeta) -> Edge {
        let edge = match self.contexts.get(name) {
            Some(context) => context.edge,
            None => {
                let source = ContextSource { name: name.to_owned(), include: Vec::new(), exclude: ignore.to_vec() };
                self.add(Op::Source(SourceOp::Context(source)), Vec::new(), meta)
            }
        };
        let context = self.contexts.entry(name.to_owned()).or_insert_with(|| Context { edge, paths: BTreeSet::new() });
        // A path that reaches over directories may need any of them.
        let path = if path.contains("**") { "." } else { path };
        context.paths.insert(path.to_owned());
        edge
    }

    pub(super) fn image(&mut self, source: ImageSource, meta: VertexMeta) -> Edge {
        let key = (source.reference.clone(), source.platform.clone());
        if let Some(edge) = self.images.get(&key) {
            return *edge;
        }
        let edge = self.add(Op::Source(SourceOp::Image(source)), Vec::new(), meta);
        self.images.insert(key, edge);
        edge
    }

    /// A tree with nothing in it, for operations that need one as input.
    pub(super) fn empty(&mut self, meta: VertexMeta) -> Edge {
        if let Some(edge) = self.empty {
            return edge;
        }
        let op = FileOp { base: None, actions: vec![FileAction::Mkdir(Mkdir::new(b"/"))] };
        let edge = self.add(Op::File(op), Vec::new(), meta);
        self.empty = Some(edge);
        edge
    }

    /// The graph, and the names of the contexts it reads.
    pub(super) fn finish(mut self) -> Result<(BuildGraph, Vec<String>), Diagnostic> {
        for context in self.contexts.values() {
            if let Op::Source(SourceOp::Context(source)) = &mut self.vertices[context.edge.vertex.0 as usize].0
                && !context.paths.contains(".")
            {
                source.include = without_nested(&context.paths);
            }
        }
        let mut graph = BuildGraph::new();
        for (op, inputs, meta) in self.vertices {
            let span = meta.span;
            graph.add(op, inputs, meta).map_err(|error| {
                let problem = match error {
                    GraphError::Invalid { reason, .. } => Diagnostic::error(reason),
                    other => Diagnostic::error(other.to_string()),
                };
                Diagnostic { span, ..problem }
            })?;
        }
        Ok((graph, self.contexts.into_keys().collect()))
    }
}

/// Leaves out paths below others.
fn without_nested(paths: &BTreeSet<String>) -> Vec<String> {
    let inside = |path: &String| {
        path.match_indices('/').any(|(end, _)| {
            let parent = &path[..end];
            !has_wildcards(parent.as_bytes()) && paths.contains(parent)
        })
    };
    paths.iter().filter(|path| !inside(path)).cloned().collect()
}
