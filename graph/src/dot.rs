//! A picture of a graph.

use std::fmt::Write as _;

use crate::BuildGraph;

pub(crate) fn render(graph: &BuildGraph) -> String {
    let mut out = String::from("digraph build {\n");
    for id in graph.ids() {
        let vertex = graph.vertex(id);
        let label = vertex.meta.name.replace('\\', "\\\\").replace('"', "\\\"");
        let _ = writeln!(out, "  v{} [label=\"{label}\" shape={}];", id.0, vertex.op.shape());
        for (position, input) in vertex.inputs.iter().enumerate() {
            let _ = writeln!(out, "  v{} -> v{} [label=\"{position}\"];", input.vertex.0, id.0);
        }
    }
    out.push_str("}\n");
    out
}
