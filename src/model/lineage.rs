//! The lineage DAG: which edges may be added, what lies above and below a version.
//!
//! Provenance and version edges together have no circle. The graph is a value made from edges; where they
//! are kept is not its business.

use std::collections::HashMap;

use petgraph::Direction;
use petgraph::algo::astar;
use petgraph::graph::{DiGraph, NodeIndex};

use super::id::Id;

/// All edges of a repository, from the older version (parent or previous) to the newer one.
#[derive(Default)]
pub struct Lineage {
    graph: DiGraph<Id, ()>,
    nodes: HashMap<Id, NodeIndex>,
}

impl Lineage {
    /// From pairs (older, newer).
    pub fn from_edges(edges: impl IntoIterator<Item = (Id, Id)>) -> Lineage {
        let mut l = Lineage::default();
        for (older, newer) in edges {
            let (a, b) = (l.node(older), l.node(newer));
            l.graph.update_edge(a, b, ());
        }
        l
    }

    fn node(&mut self, id: Id) -> NodeIndex {
        *self.nodes.entry(id).or_insert_with(|| self.graph.add_node(id))
    }

    /// The path that an edge `older → newer` would close to a circle, from `newer` down to `older`.
    pub fn circle(&self, older: Id, newer: Id) -> Option<Vec<Id>> {
        if older == newer {
            return Some(vec![older]);
        }
        let (&from, &to) = (self.nodes.get(&newer)?, self.nodes.get(&older)?);
        let (_, path) = astar(&self.graph, from, |n| n == to, |_| 1, |_| 0)?;
        Some(path.into_iter().map(|n| self.graph[n]).collect())
    }

    /// All versions that `id` comes from, nearest first.
    pub fn ancestors(&self, id: Id) -> Vec<Id> {
        self.reach(id, Direction::Incoming)
    }

    /// All versions that come from `id`, nearest first.
    pub fn descendants(&self, id: Id) -> Vec<Id> {
        self.reach(id, Direction::Outgoing)
    }

    /// The versions that both come from, neither of the two itself among them: those with the fewest edges to both first,
    /// ties by id.
    pub fn common_ancestors(&self, a: Id, b: Id) -> Vec<Id> {
        let (near_a, near_b) = (self.steps_up(a), self.steps_up(b));
        let both = near_a.iter().filter_map(|(n, x)| Some((x + near_b.get(n)?, self.graph[*n])));
        let mut common: Vec<(usize, Id)> = both.filter(|(_, id)| *id != a && *id != b).collect();
        common.sort();
        common.into_iter().map(|(_, id)| id).collect()
    }

    /// Edges from a version up to each of its ancestors, on the shortest way.
    fn steps_up(&self, id: Id) -> HashMap<NodeIndex, usize> {
        let mut steps = HashMap::new();
        let mut now: Vec<NodeIndex> = self.nodes.get(&id).copied().into_iter().collect();
        let mut distance = 0;
        while !now.is_empty() {
            now.retain(|n| !steps.contains_key(n));
            steps.extend(now.iter().map(|n| (*n, distance)));
            now = now.iter().flat_map(|n| self.graph.neighbors_directed(*n, Direction::Incoming)).collect();
            now.sort();
            now.dedup();
            distance += 1;
        }
        steps
    }

    fn reach(&self, id: Id, direction: Direction) -> Vec<Id> {
        let Some(&start) = self.nodes.get(&id) else { return vec![] };
        let mut seen = std::collections::HashSet::from([start]);
        let mut order = vec![start];
        let mut next = 0;
        while next < order.len() {
            let mut near: Vec<_> = self.graph.neighbors_directed(order[next], direction).collect();
            near.sort_by_key(|&n| self.graph[n]);
            order.extend(near.into_iter().filter(|n| seen.insert(*n)));
            next += 1;
        }
        order.into_iter().skip(1).map(|n| self.graph[n]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(n: u8) -> Id {
        Id([n; 32])
    }

    #[test]
    fn a_circle_is_named() {
        let l = Lineage::from_edges([(id(1), id(2)), (id(2), id(3))]);
        assert_eq!(l.circle(id(3), id(1)), Some(vec![id(1), id(2), id(3)]));
        assert_eq!(l.circle(id(1), id(3)), None);
        assert_eq!(l.circle(id(7), id(7)), Some(vec![id(7)]));
        assert_eq!(l.ancestors(id(3)), [id(2), id(1)]);
        assert_eq!(l.descendants(id(1)), [id(2), id(3)]);
    }

    #[test]
    fn the_nearest_common_ancestor_comes_first() {
        // 1 -> 2 -> 3, 2 -> 4 -> 5, 1 -> 5, 6 alone
        let l = Lineage::from_edges([(1, 2), (2, 3), (2, 4), (4, 5), (1, 5)].map(|(a, b)| (id(a), id(b))));
        assert_eq!(l.common_ancestors(id(3), id(4)), [id(2), id(1)]);
        assert_eq!(l.common_ancestors(id(3), id(5)), [id(1), id(2)]); // 3 edges either way
        assert_eq!(l.common_ancestors(id(2), id(3)), [id(1)]);
        assert!(l.common_ancestors(id(1), id(3)).is_empty() && l.common_ancestors(id(6), id(3)).is_empty());
    }

    proptest! {
        #[test]
        fn no_accepted_edge_makes_a_version_its_own_ancestor(edges in prop::collection::vec((0u8..8, 0u8..8), 0..40)) {
            let mut kept: Vec<(Id, Id)> = vec![];
            for (a, b) in edges {
                if Lineage::from_edges(kept.clone()).circle(id(a), id(b)).is_none() {
                    kept.push((id(a), id(b)));
                }
            }
            let l = Lineage::from_edges(kept);
            for n in 0..8 {
                prop_assert!(!l.ancestors(id(n)).contains(&id(n)));
                for up in l.ancestors(id(n)) {
                    prop_assert!(l.descendants(up).contains(&id(n)));
                }
            }
        }
    }
}
