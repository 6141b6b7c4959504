//! The lineage of a repository as one value to draw: all versions, living and removed, with their edges and
//! what they cost.

use std::collections::HashMap;

use super::charge::Charges;
use super::engine::{Engine, label};
use super::{Head, RepoError};
use crate::model::graph::{Edge, Graph, Kind, Node};
use crate::model::id::Id;

/// From the catalog; costs are worked out anew.
pub fn graph(engine: &Engine) -> Result<Graph, RepoError> {
    graph_with(engine, &Charges::new(engine.repo.clone(), engine.catalog().all()?))
}

/// As [`graph`], with charges that remember; what they don't know, or cannot read, is `None`.
pub fn graph_with(engine: &Engine, charges: &Charges) -> Result<Graph, RepoError> {
    let (mut graph, unknown) = bare(engine)?;
    if let Some(id) = unknown.first() {
        return Err(RepoError::damaged(format!("an edge leads to {id}, which never was committed")));
    }
    charge(&mut graph, charges);
    Ok(graph)
}

/// The graph without what versions cost, and the ids that edges lead to and that never were committed.
pub fn bare(engine: &Engine) -> Result<(Graph, Vec<Id>), RepoError> {
    let (heads, mut parents) = engine.family()?;
    let place: HashMap<Id, usize> = heads.iter().enumerate().map(|(i, h)| (h.id, i)).collect();
    let (mut edges, mut unknown) = (Vec::new(), Vec::new());
    let mut add = |from: &Id, edge: Edge| match place.get(from) {
        Some(&from) => edges.push(Edge { from, ..edge }),
        None => unknown.push(*from),
    };
    for (to, head) in heads.iter().enumerate() {
        if let Some(previous) = &head.previous {
            add(previous, Edge { guess: head.guess, ..Edge::new(0, to, Kind::Version) });
        }
        for parent in parents.remove(&head.id).unwrap_or_default() {
            let edge = Edge::new(0, to, Kind::Provenance(parent.relation));
            add(&parent.id, Edge { guess: parent.guess, coefficient: parent.coefficient, ..edge });
        }
    }
    Ok((Graph { nodes: heads.iter().map(node).collect(), edges }, unknown))
}

/// Writes into the graph what each version costs.
pub fn charge(graph: &mut Graph, charges: &Charges) {
    for node in &mut graph.nodes {
        // A removed version is charged nothing: what it shares, others pay.
        node.stored = if node.removed { Some(0) } else { stored(charges, &node.id) };
    }
}

fn node(head: &Head) -> Node {
    Node {
        id: head.id,
        label: label(head),
        model: head.model.to_string(),
        version: head.version.to_string(),
        created: head.created,
        logical: head.bytes,
        stored: None,
        removed: head.removed,
    }
}

/// Bytes that a version is charged; `None` where that cannot be read.
pub fn stored(charges: &Charges, id: &Id) -> Option<u64> {
    charges.of_version(id).ok().map(|files| files.iter().sum())
}
