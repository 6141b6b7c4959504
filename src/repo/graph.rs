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
    let catalog = engine.catalog();
    let heads = catalog.ever_all()?;
    let place: HashMap<Id, usize> = heads.iter().enumerate().map(|(i, h)| (h.id, i)).collect();
    let find = |id: &Id| {
        place
            .get(id)
            .copied()
            .ok_or_else(|| RepoError::damaged(format!("an edge leads to {id}, which never was committed")))
    };
    let mut edges = Vec::new();
    for (to, head) in heads.iter().enumerate() {
        if let Some(previous) = &head.previous {
            edges.push(Edge { from: find(previous)?, to, kind: Kind::Version });
        }
        for parent in catalog.parents(&head.id)? {
            edges.push(Edge { from: find(&parent.id)?, to, kind: Kind::Provenance(parent.relation) });
        }
    }
    Ok(Graph { nodes: heads.iter().map(|h| node(h, charges)).collect(), edges })
}

fn node(head: &Head, charges: &Charges) -> Node {
    Node {
        id: head.id,
        label: label(head),
        model: head.model.to_string(),
        version: head.version.to_string(),
        created: head.created,
        logical: head.bytes,
        // A removed version is charged nothing: what it shares, others pay.
        stored: if head.removed { Some(0) } else { stored(charges, &head.id) },
        removed: head.removed,
    }
}

/// Bytes that a version is charged; `None` where that cannot be read.
pub fn stored(charges: &Charges, id: &Id) -> Option<u64> {
    charges.of_version(id).ok().map(|files| files.iter().sum())
}
