//! The lineage as a value to look at: versions as nodes, with what they hold and cost, and edges from the
//! older to the newer. [`dot`], [`svg`], [`json`] and [`text`] draw it, each a pure function that gives the
//! same for the same value.
//!
//! Nodes stand in commit order; an edge names its ends by their places. Nothing here relies on names being
//! well-formed, on there being no circle, or on edges leading somewhere: what makes no sense is not drawn.
//! Where the value comes from is not its business.

pub mod dot;
pub mod json;
pub mod svg;
pub mod text;

mod layers;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::id::Id;
use super::record::{Real, Relation};

/// A version as drawings show it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Node {
    pub id: Id,
    /// `model@version`.
    pub label: String,
    pub model: String,
    pub version: String,
    pub created: Timestamp,
    /// Bytes of its files.
    pub logical: u64,
    /// Bytes that it is charged in the store; `None` where that cannot be read.
    pub stored: Option<u64>,
    pub removed: bool,
}

/// Why two versions are joined.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// The newer follows the older within a model.
    Version,
    /// The newer was made from the older.
    Provenance(Relation),
}

impl Kind {
    /// The relation's name, or `next`.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Version => "next",
            Kind::Provenance(relation) => relation.as_str(),
        }
    }

    /// The colour that all drawings give it, as HTML writes one.
    pub fn colour(self) -> &'static str {
        match self {
            Kind::Version => "#6b7280",
            Kind::Provenance(relation) => match relation {
                Relation::Finetune => "#1d4ed8",
                Relation::Adapter => "#0e9bb5",
                Relation::Merge => "#7e22ce",
                Relation::Quantize => "#c2410c",
                Relation::Prune => "#15803d",
                Relation::Distill => "#be123c",
                Relation::Federated => "#a16207",
                Relation::Cast => "#db2777",
                Relation::Rename => "#0f766e",
                Relation::Reshard => "#65a30d",
                Relation::Resize => "#9f5f3f",
                Relation::Derived => "#1f2937",
            },
        }
    }
}

/// An edge between two nodes, by their places.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Edge {
    /// The older.
    pub from: usize,
    /// The newer.
    pub to: usize,
    pub kind: Kind,
    /// Found by content alone: which of the two is the newer, nothing tells but the order of imports.
    #[serde(default)]
    pub guess: bool,
    /// The older's share in a merge.
    #[serde(default)]
    pub coefficient: Option<Real>,
}

impl Edge {
    /// One that somebody named.
    pub fn new(from: usize, to: usize, kind: Kind) -> Edge {
        Edge { from, to, kind, guess: false, coefficient: None }
    }
}

/// Versions in commit order and their edges; those that lead to one node in the order of its parents.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Graph {
    pub nodes: Vec<Node>,
    pub edges: Vec<Edge>,
}

impl Graph {
    /// The part that `tip` picks, and all that it comes from.
    pub fn above(&self, tip: impl Fn(&Node) -> bool) -> Graph {
        let parents = self.parents();
        let mut kept: Vec<bool> = self.nodes.iter().map(tip).collect();
        let mut queue: Vec<usize> = (0..kept.len()).filter(|&n| kept[n]).collect();
        while let Some(n) = queue.pop() {
            queue.extend(parents[n].iter().filter(|&&p| !std::mem::replace(&mut kept[p], true)));
        }
        self.part(&kept)
    }

    fn part(&self, kept: &[bool]) -> Graph {
        let mut place = vec![None; kept.len()];
        let mut nodes = Vec::new();
        for (n, node) in self.nodes.iter().enumerate().filter(|(n, _)| kept[*n]) {
            place[n] = Some(nodes.len());
            nodes.push(node.clone());
        }
        let find = |n: usize| place.get(n).copied().flatten();
        let edge = |e: &Edge| Some(Edge { from: find(e.from)?, to: find(e.to)?, ..*e });
        Graph { nodes, edges: self.edges.iter().filter_map(edge).collect() }
    }

    /// Of each node, the nodes that it comes from, each once, in the order of its edges.
    pub fn parents(&self) -> Vec<Vec<usize>> {
        let mut parents = vec![Vec::new(); self.nodes.len()];
        for e in self.sound_edges() {
            if !parents[e.to].contains(&e.from) {
                parents[e.to].push(e.from);
            }
        }
        parents
    }

    /// Edges whose ends are there.
    fn sound_edges(&self) -> impl Iterator<Item = &Edge> {
        self.edges.iter().filter(|e| e.from < self.nodes.len() && e.to < self.nodes.len() && e.from != e.to)
    }

    /// All nodes, each before those that it comes from. One line of history is followed as far as it goes,
    /// from the newest tip on, so that lines do not mix. What a circle holds comes last.
    pub fn newest_first(&self) -> Vec<usize> {
        let parents = self.parents();
        let mut children = vec![0; parents.len()];
        parents.iter().flatten().for_each(|&p| children[p] += 1);
        let mut ready: Vec<usize> = (0..parents.len()).filter(|&n| children[n] == 0).collect();
        let mut order = Vec::with_capacity(parents.len());
        let mut placed = vec![false; parents.len()];
        while let Some(n) = ready.pop() {
            order.push(n);
            placed[n] = true;
            for &p in &parents[n] {
                children[p] -= 1;
                if children[p] == 0 {
                    ready.push(p);
                }
            }
        }
        order.extend((0..parents.len()).rev().filter(|&n| !placed[n]));
        order
    }
}

/// `433.0 MB`; whole below a kilobyte.
pub fn size(bytes: u64) -> String {
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"].iter().peekable();
    let mut unit = units.next().expect("there are units");
    while value >= 999.95 && units.peek().is_some() {
        value /= 1000.0;
        unit = units.next().expect("just peeked");
    }
    format!("{value:.1} {unit}")
}

/// What a node takes and holds: `12.1 MB of 433.0 MB`.
fn cost(node: &Node) -> String {
    let logical = size(node.logical);
    match node.stored {
        _ if node.removed => format!("removed, {logical}"),
        Some(stored) => format!("{} of {logical}", size(stored)),
        None => format!("? of {logical}"),
    }
}

/// Kinds in use, in a fixed order.
fn kinds(graph: &Graph) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = graph.sound_edges().map(|e| e.kind).collect();
    kinds.sort();
    kinds.dedup();
    kinds
}
