//! Which edges that content alone suggested move when a new version is known: it may be nearer to a stored one than the
//! parent that this was given, or stand between the two. A pure plan from distances.
//!
//! Without it, what is imported before its parent would hang on a sibling for ever. It is one step of keeping a minimum
//! spanning tree while versions come in, in which an edge that somebody named never changes.

use std::collections::{HashMap, HashSet};

use crate::model::id::Id;

/// An edge moves to a new version that is nearer by this factor (mean squares), beyond what sampling leaves open: by
/// sketches, and by whole windows.
const NEARER: [f64; 2] = [0.95, 0.99];
/// Mean squares this near are equal.
pub const EQUAL: f64 = 1e-9;

/// A stored version near the new one. All distances are mean squares, measured in the same places.
#[derive(Clone, Debug)]
pub struct Node {
    pub id: Id,
    /// To the new version.
    pub near: f64,
    pub edge: Option<Edge>,
}

/// The edge to the parent that a version's content suggested.
#[derive(Clone, Copy, Debug)]
pub struct Edge {
    pub from: Id,
    /// Between the two.
    pub apart: f64,
    /// Between that parent and the new version.
    pub onward: f64,
    /// The distances are those of whole windows.
    pub precise: bool,
    /// The version lacks what its parent has beyond the new one: equally near, it belongs to the new one.
    pub lean: bool,
}

impl Edge {
    fn is_longer(&self, than: f64) -> bool {
        than < NEARER[self.precise as usize] * self.apart
    }
}

/// What is to change.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Plan {
    pub parent: Option<Id>,
    /// Versions whose parent is the new one from now on.
    pub moved: Vec<Id>,
}

/// `parents`: who may be the new version's parent, the best first. `reversed`: versions that come
/// from the new one in any case. `ups`: what each version comes from.
pub fn plan(nodes: &[Node], parents: &[Id], reversed: &HashSet<Id>, ups: &HashMap<Id, Vec<Id>>) -> Plan {
    let moves =
        |n: &&Node| n.edge.is_some_and(|e| e.is_longer(n.near) || (e.lean && n.near <= e.apart * (1.0 + EQUAL)));
    let mut moved: Vec<&Node> = nodes.iter().filter(|n| !reversed.contains(&n.id)).filter(moves).collect();
    let below = |id: Id, roots: &HashSet<Id>| is_below(id, roots, ups);
    let Some(best) = parents.iter().find(|p| !below(**p, reversed)) else {
        return Plan { parent: None, moved: moved.iter().map(|n| n.id).collect() };
    };
    let roots: HashSet<Id> = moved.iter().map(|n| n.id).chain(reversed.iter().copied()).collect();
    // The new version may stand between a version that it comes from and that one's parent, if it is near to both.
    let above: Vec<&Node> = moved.iter().copied().filter(|n| below(*best, &HashSet::from([n.id]))).collect();
    let between = above.iter().all(|n| n.edge.is_some_and(|e| e.is_longer(e.onward)));
    let parent = match parents.iter().find(|p| !below(**p, &roots)) {
        Some(p) if between => *p,
        _ => {
            moved.retain(|n| !above.iter().any(|a| a.id == n.id));
            *best
        }
    };
    Plan { parent: Some(parent), moved: moved.iter().map(|n| n.id).filter(|id| *id != parent).collect() }
}

/// Is `id` one of these, or does it come from one?
pub fn is_below(id: Id, roots: &HashSet<Id>, ups: &HashMap<Id, Vec<Id>>) -> bool {
    let (mut todo, mut seen) = (vec![id], HashSet::new());
    while let Some(id) = todo.pop() {
        if roots.contains(&id) {
            return true;
        }
        if seen.insert(id) {
            todo.extend(ups.get(&id).into_iter().flatten());
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> Id {
        Id([n; 32])
    }

    fn node(n: u8, near: f64, edge: Option<(u8, f64, f64)>) -> Node {
        let edge = edge.map(|(p, apart, onward)| Edge { from: id(p), apart, onward, precise: true, lean: false });
        Node { id: id(n), near, edge }
    }

    fn ups(edges: &[(u8, u8)]) -> HashMap<Id, Vec<Id>> {
        edges.iter().map(|(child, parent)| (id(*child), vec![id(*parent)])).collect()
    }

    fn planned(nodes: &[Node], parents: &[u8], edges: &[(u8, u8)]) -> (Option<u8>, Vec<u8>) {
        let parents: Vec<Id> = parents.iter().map(|p| id(*p)).collect();
        let p = plan(nodes, &parents, &HashSet::new(), &ups(edges));
        (p.parent.map(|p| p.0[0]), p.moved.iter().map(|m| m.0[0]).collect())
    }

    #[test]
    fn a_late_base_gets_the_siblings() {
        // 2 and 3 hung on their sibling 1; the base of all is new.
        let nodes = [node(1, 1.0, None), node(2, 1.0, Some((1, 2.0, 1.0))), node(3, 1.1, Some((1, 2.1, 1.0)))];
        let edges = [(2, 1), (3, 1)];
        assert_eq!(planned(&nodes, &[1, 2, 3], &edges), (Some(1), vec![2, 3]));
        // The nearest is one of those that move.
        assert_eq!(planned(&nodes, &[3, 1], &edges), (Some(1), vec![2, 3]));
    }

    #[test]
    fn one_in_the_middle_of_a_chain_is_put_there() {
        let nodes = [node(1, 1.0, None), node(3, 0.9, Some((1, 1.9, 1.0)))];
        assert_eq!(planned(&nodes, &[3, 1], &[(3, 1)]), (Some(1), vec![3]));
    }

    #[test]
    fn a_child_takes_nothing_from_its_parent() {
        // 2 comes from 1; the new one is a small step from 2.
        let nodes = [node(1, 1.1, None), node(2, 0.1, Some((1, 1.0, 1.1)))];
        assert_eq!(planned(&nodes, &[2, 1], &[(2, 1)]), (Some(2), vec![]));
        // Nor from its grandparent, from which the way was long.
        let nodes = [node(2, 0.5, Some((1, 9.0, 9.5))), node(3, 0.1, Some((2, 0.4, 0.5)))];
        assert_eq!(planned(&nodes, &[3, 2], &[(2, 1), (3, 2)]), (Some(3), vec![]));
    }

    #[test]
    fn what_was_made_from_it_is_no_parent() {
        let nodes = [node(1, 0.0, None), node(2, 1.0, Some((1, 1.2, 0.0)))];
        let p = plan(&nodes, &[id(2)], &HashSet::from([id(1)]), &ups(&[(2, 1)]));
        assert_eq!(p, Plan { parent: None, moved: vec![id(2)] });
        let mut lean = node(2, 1.2, Some((1, 1.2, 0.0)));
        lean.edge = lean.edge.map(|e| Edge { lean: true, ..e });
        assert_eq!(planned(&[lean], &[1], &[(2, 1)]), (Some(1), vec![2]));
    }
}
