//! The graph as Graphviz reads it: roots left, provenance solid, version edges dashed, coloured by relation.
//!
//! Nodes are named by their ids, for a name may have been given twice; every string is quoted and escaped, so
//! that no name can add to the text.

use std::fmt::Write;

use super::{Graph, Kind, Node, cost};

/// Graphviz text.
pub fn dot(graph: &Graph) -> String {
    let mut out = String::from("digraph mgit {\n  rankdir=LR;\n");
    out.push_str("  node [shape=box, style=\"rounded,filled\", fillcolor=\"#f8fafc\", color=\"#475569\", ");
    out.push_str("fontname=\"sans-serif\", fontsize=11];\n");
    out.push_str("  edge [fontname=\"sans-serif\", fontsize=9];\n");
    graph.nodes.iter().for_each(|n| node(&mut out, n));
    for e in graph.sound_edges() {
        let (from, to) = (&graph.nodes[e.from], &graph.nodes[e.to]);
        let style = if e.kind == Kind::Version { "dashed" } else { "solid" };
        let colour = e.kind.colour();
        let name = e.kind.as_str();
        let (from, to) = (quoted(&from.id.to_string()), quoted(&to.id.to_string()));
        let _ = writeln!(out, "  {from} -> {to} [style={style}, color=\"{colour}\", tooltip=\"{name}\"];");
    }
    out.push_str("}\n");
    out
}

fn node(out: &mut String, n: &Node) {
    let label = format!("\"{}\\n{}\"", escaped(&n.label), cost(n));
    let grey = match n.removed {
        true => ", fillcolor=\"#e5e7eb\", color=\"#9ca3af\", fontcolor=\"#6b7280\"",
        false => "",
    };
    let _ = writeln!(out, "  {} [label={label}{grey}];", quoted(&n.id.to_string()));
}

fn quoted(s: &str) -> String {
    format!("\"{}\"", escaped(s))
}

/// A backslash begins an escape in labels (`\N` is the node's name), so it is doubled too.
fn escaped(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for c in s.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
