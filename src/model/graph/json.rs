//! The graph in node-link form, as networkx and d3 read it; nodes are named by their ids.

use serde_json::{Value, json};

use super::{Edge, Graph, Kind, Node};

/// The whole value.
pub fn value(graph: &Graph) -> Value {
    json!({
        "directed": true,
        "multigraph": true,
        "graph": {},
        "nodes": graph.nodes.iter().map(node).collect::<Vec<_>>(),
        "links": graph.sound_edges().map(|e| link(graph, e)).collect::<Vec<_>>(),
    })
}

/// The text of a file.
pub fn json(graph: &Graph) -> String {
    format!("{:#}\n", value(graph))
}

fn node(n: &Node) -> Value {
    json!({
        "id": n.id, "label": n.label, "model": n.model, "version": n.version, "created": n.created,
        "logical_bytes": n.logical, "stored_bytes": n.stored, "removed": n.removed,
    })
}

fn link(graph: &Graph, e: &Edge) -> Value {
    let (source, target) = (graph.nodes[e.from].id, graph.nodes[e.to].id);
    let mut link = match e.kind {
        Kind::Version => json!({"source": source, "target": target, "kind": "version"}),
        Kind::Provenance(r) => json!({"source": source, "target": target, "kind": "provenance", "relation": r}),
    };
    if e.guess {
        link["guess"] = Value::Bool(true);
    }
    if let Some(c) = e.coefficient {
        link["coefficient"] = json!(c);
    }
    link
}
