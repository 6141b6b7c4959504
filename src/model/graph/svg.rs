//! The graph as a picture: roots left, a box for each version, provenance solid, version edges dashed, coloured
//! by relation, with a legend.
//!
//! A self-contained SVG 1.1 document without scripts. Any text is escaped, and what XML cannot hold is
//! replaced. Edges lie under the boxes, and only cross a layer where there is none ([`layers`](super::layers)).

use std::fmt::Write;

use super::layers::{Heights, Layout, layout};
use super::{Graph, Kind, Node, cost, kinds};

/// Size of a box, distance between layers, room around it all and above it for the legend.
const BOX: (f64, f64) = (196.0, 40.0);
const GAP: f64 = 84.0;
const MARGIN: f64 = 24.0;
const LEGEND: f64 = 44.0;
/// Half of what a box and an edge that passes by get of a layer's height.
const HEIGHTS: Heights = Heights { node: BOX.1 / 2.0 + 7.0, bend: 6.0 };
/// Characters of a label that fit a box.
const LABEL: usize = 28;
/// Width of a legend's entry.
const ENTRY: f64 = 116.0;

const STYLE: &str = "\
text{font-family:sans-serif;font-size:12px;fill:#0f172a}
.n rect{fill:#f8fafc;stroke:#475569}
.n .c{font-size:10.5px;fill:#475569}
.x rect{fill:#f1f1f3;stroke:#b4b8c0;stroke-dasharray:2 3}
.x text,.x .c{fill:#9096a0}
path{fill:none;stroke-width:1.6}
.next{stroke-dasharray:5 4}
";

/// An SVG document.
pub fn svg(graph: &Graph) -> String {
    let l = layout(graph, HEIGHTS);
    let kinds = kinds(graph);
    let tallest = (0..l.spots.len()).map(|s| l.y[s]).fold(0.0, f64::max) + HEIGHTS.node;
    let entries = kinds.len() as f64 * ENTRY;
    let width = (x(l.layers.max(1)) - GAP).max(MARGIN + entries) + MARGIN;
    let height = LEGEND + tallest + 2.0 * MARGIN;
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\">"
    );
    let _ = write!(out, "<title>lineage: {} versions</title>\n<style>\n{STYLE}", graph.nodes.len());
    for k in &kinds {
        let _ = writeln!(out, ".{}{{stroke:{}}}", k.as_str(), k.colour());
    }
    out.push_str("</style>\n<defs>\n");
    kinds.iter().for_each(|k| head(&mut out, *k));
    out.push_str("</defs>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n");
    legend(&mut out, &kinds);
    l.trunks.iter().for_each(|(kind, way)| trunk(&mut out, &l, *kind, way));
    edges(&mut out, graph, &l);
    graph.nodes.iter().enumerate().for_each(|(n, node)| card(&mut out, node, x(l.layer[n]), y(&l, n)));
    if graph.nodes.is_empty() {
        let _ = writeln!(out, "<text x=\"{MARGIN}\" y=\"{MARGIN}\">no versions yet</text>");
    }
    out.push_str("</svg>\n");
    out
}

/// Left side of a layer.
fn x(layer: usize) -> f64 {
    MARGIN + layer as f64 * (BOX.0 + GAP)
}

/// Middle of a spot.
fn y(l: &Layout, spot: usize) -> f64 {
    LEGEND + MARGIN + l.y[spot]
}

/// The head of a kind's arrows.
fn head(out: &mut String, kind: Kind) {
    let (name, colour) = (kind.as_str(), kind.colour());
    let _ = writeln!(
        out,
        "<marker id=\"to-{name}\" viewBox=\"0 0 8 8\" refX=\"7.5\" refY=\"4\" markerWidth=\"6\" markerHeight=\"6\" orient=\"auto\"><path d=\"M0,0.5L8,4L0,7.5Z\" style=\"fill:{colour};stroke:none\"/></marker>"
    );
}

fn legend(out: &mut String, kinds: &[Kind]) {
    for (i, kind) in kinds.iter().enumerate() {
        let (name, at) = (kind.as_str(), MARGIN + i as f64 * ENTRY);
        let label = if *kind == Kind::Version { "next version" } else { name };
        let _ = writeln!(
            out,
            "<g><path class=\"{name}\" d=\"M{at},{MARGIN}h24\" marker-end=\"url(#to-{name})\"/><text x=\"{}\" y=\"{}\">{label}</text></g>",
            at + 30.0,
            MARGIN + 4.0
        );
    }
}

/// The shared part of edges that cross layers.
fn trunk(out: &mut String, l: &Layout, kind: Kind, way: &[usize]) {
    let _ = write!(out, "<path class=\"{}\" d=\"M{:.1},{:.1}", kind.as_str(), x(l.layer[way[0]]) + BOX.0, y(l, way[0]));
    for step in way.windows(2) {
        let (from, to) = (step[0], step[1]);
        curve(out, (x(l.layer[from]) + BOX.0, y(l, from)), (x(l.layer[to]), y(l, to)));
        let _ = write!(out, "H{:.1}", x(l.layer[to]) + BOX.0);
    }
    out.push_str("\"/>\n");
}

/// Goes on from `a` to `b`, level at both.
fn curve(out: &mut String, a: (f64, f64), b: (f64, f64)) {
    let reach = (b.0 - a.0) / 2.0;
    let _ = write!(out, "C{:.1},{:.1} {:.1},{:.1} {:.1},{:.1}", a.0 + reach, a.1, b.0 - reach, b.1, b.0, b.1);
}

/// The last piece of each edge, which leads into its box.
fn edges(out: &mut String, graph: &Graph, l: &Layout) {
    for (e, start) in graph.sound_edges().zip(&l.starts) {
        let Some(start) = *start else { continue };
        let kind = e.kind.as_str();
        let (a, b) = ((x(l.layer[start]) + BOX.0, y(l, start)), (x(l.layer[e.to]), y(l, e.to)));
        let _ = write!(out, "<path class=\"{kind}\" marker-end=\"url(#to-{kind})\" d=\"M{:.1},{:.1}", a.0, a.1);
        curve(out, a, b);
        let (from, to) = (escaped(&graph.nodes[e.from].label), escaped(&graph.nodes[e.to].label));
        let _ = writeln!(out, "\"><title>{from} → {to}: {kind}</title></path>");
    }
}

fn card(out: &mut String, n: &Node, left: f64, middle: f64) {
    let class = if n.removed { "n x" } else { "n" };
    let (top, text) = (middle - BOX.1 / 2.0, left + 10.0);
    let (whole, short, cost) = (escaped(&n.label), escaped(&shortened(&n.label)), escaped(&cost(n)));
    let id = n.id.short();
    let _ = write!(out, "<g class=\"{class}\"><title>{whole}\n{id}, {}\n{cost}</title>", n.created);
    let _ = write!(out, "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{}\" height=\"{}\" rx=\"6\"/>", BOX.0, BOX.1);
    let _ = write!(out, "<text x=\"{text:.1}\" y=\"{:.1}\">{short}</text>", top + 17.0);
    let _ = writeln!(out, "<text class=\"c\" x=\"{text:.1}\" y=\"{:.1}\">{cost}</text></g>", top + 32.0);
}

/// Both ends of what is too long: the owner or family, and the version.
fn shortened(label: &str) -> String {
    let chars: Vec<char> = label.chars().collect();
    if chars.len() <= LABEL {
        return label.to_owned();
    }
    let tail = (LABEL - 1) / 2;
    chars[..LABEL - 1 - tail].iter().chain(&['…']).chain(&chars[chars.len() - tail..]).collect()
}

/// Text for an element or an attribute.
fn escaped(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for c in s.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
