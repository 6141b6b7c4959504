//! The family's tree: which edges that content alone suggested lie elsewhere now that a new version is known. A pure
//! plan from distances.
//!
//! Steps of training are independent noise, so their squared lengths add up along the way from one version to another,
//! and the true edges are the shortest that hold all together: a minimum spanning tree. It is kept as versions come in:
//! the new one hangs on its own parent, and wherever its distance to a version is shorter than an edge on the circle that
//! this would close, the longest such edge gives way. Where it is near the root of another tree, it joins the two. So
//! only edges to the new version are ever made, but for those that turn round when a chain hangs from its other end.
//!
//! Edges that somebody named, and those of merges, never change.

use std::collections::{HashMap, HashSet};

use crate::model::id::Id;
use crate::model::record::Relation;

/// An edge that stands is given up for one that is shorter by this factor (mean squares): with distances by sketches,
/// and by whole windows. All are taken in the same places, so what `n` values leave open is about `1 / n`.
const KEEP: [f64; 2] = [0.98, 0.997];

/// What a version comes from until now.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Up {
    /// Nothing was found.
    Root,
    /// The one version that content suggested.
    Guess(Id),
    /// Edges that stay.
    Fixed,
}

/// Which of two came first.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Way {
    Either,
    /// The first is the parent, or the second.
    First,
    Second,
}

/// How far apart two versions are.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub weight: f64,
    /// What tells versions of one weight apart.
    pub extra: f64,
    pub way: Way,
    /// By what operation, where the way is told.
    pub by: Relation,
}

/// A pair by sketches and, where both were tried, by whole windows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Apart(pub [Option<Pair>; 2]);

impl Apart {
    /// Is this one shorter, told in the most precise way that both have?
    fn is_shorter(&self, standing: &Apart) -> bool {
        let both = (0..2).rev().find_map(|i| Some((i, self.0[i]?, standing.0[i]?)));
        both.is_some_and(|(i, new, old)| new.weight + new.extra < KEEP[i] * old.weight + old.extra)
    }

    /// By more than sketches.
    fn is_tried(&self) -> bool {
        self.0[1].is_some()
    }

    /// The most precise.
    pub fn told(&self) -> Option<Pair> {
        self.0[1].or(self.0[0])
    }

    fn weight(&self) -> f64 {
        self.told().map_or(0.0, |p| p.weight)
    }

    /// Whether the first may be the parent.
    fn may_be_down(&self) -> bool {
        self.told().is_none_or(|p| p.way != Way::Second)
    }
}

/// A version of the family.
#[derive(Clone, Debug)]
pub struct Member {
    pub id: Id,
    pub up: Up,
    /// From the new version, which is the first of the pair.
    pub near: Apart,
    /// From the one that it hangs on, which is the first.
    pub apart: Apart,
}

/// What is to change.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Plan {
    /// The new version's parent.
    pub parent: Option<Id>,
    /// Versions that hang on the new one from now on.
    pub hung: Vec<Id>,
    /// Edges that turn round: child and parent from now on.
    pub turned: Vec<(Id, Id)>,
}

/// `parents`: where the new version hangs: on one that may change, or on several that don't. `ups`: what versions come
/// from now.
pub fn plan(members: &[Member], parents: &[Id], ups: &HashMap<Id, Vec<Id>>) -> Plan {
    let above = |id: &Id| ups.get(id).cloned().unwrap_or_default();
    let gains = |m: &Member| match m.up {
        Up::Guess(_) => m.near.is_shorter(&m.apart),
        Up::Root => m.near.is_tried(),
        Up::Fixed => false,
    };
    let hangs = |m: &&Member| m.near.may_be_down() && gains(m) && !parents.iter().any(|p| is_below(*p, m.id, above));
    let hung: Vec<Id> = members.iter().filter(hangs).map(|m| m.id).collect();
    let [best] = parents else { return Plan { hung, ..Plan::default() } };
    let path = path(members, *best);
    match between(&path) {
        None => Plan { parent: Some(*best), hung, turned: vec![] },
        Some((cut, parent)) => Plan {
            parent: Some(path[parent].id),
            hung: hung.into_iter().chain([*best]).collect(),
            turned: path[..=cut].windows(2).map(|w| (w[1].id, w[0].id)).collect(),
        },
    }
}

/// A version and what it hangs on, as far as the edges were guessed.
fn path(members: &[Member], from: Id) -> Vec<&Member> {
    let (mut next, mut path) = (Some(from), Vec::<&Member>::new());
    while let Some(m) = next.and_then(|id| members.iter().find(|m| m.id == id)) {
        if path.iter().any(|p| p.id == m.id) {
            break;
        }
        path.push(m);
        next = if let Up::Guess(up) = m.up { Some(up) } else { None };
    }
    path
}

/// Does the new version stand between the one that it hangs on (the first) and one further up? The child of the edge
/// that gives way, and who is the new parent.
fn between(path: &[&Member]) -> Option<(usize, usize)> {
    let longest = |to: usize| (0..to).max_by(|a, b| path[*a].apart.weight().total_cmp(&path[*b].apart.weight()));
    let gains = |&to: &usize| {
        let cut = longest(to)?;
        let free = path[..cut].iter().all(|m| m.apart.told().is_none_or(|p| p.way == Way::Either));
        let sound = free && path[0].near.may_be_down() && path[to].near.told().is_none_or(|p| p.way != Way::First);
        (sound && path[to].near.is_shorter(&path[cut].apart)).then_some((cut, to))
    };
    let nearest = |a: &(usize, usize), b: &(usize, usize)| path[a.1].near.weight().total_cmp(&path[b.1].near.weight());
    (1..path.len()).filter_map(|to| gains(&to)).min_by(nearest)
}

/// Is `id` the other one, or does it come from it?
pub fn is_below(id: Id, other: Id, above: impl Fn(&Id) -> Vec<Id>) -> bool {
    let (mut todo, mut seen) = (vec![id], HashSet::new());
    while let Some(id) = todo.pop() {
        if id == other {
            return true;
        }
        if seen.insert(id) {
            todo.extend(above(&id));
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

    fn apart(weight: f64, way: Way) -> Apart {
        Apart([None, Some(Pair { weight, extra: 0.0, way, by: Relation::Finetune })])
    }

    /// A member that hangs on another one.
    fn on(n: u8, near: f64, up: u8, far: f64) -> Member {
        Member { id: id(n), up: Up::Guess(id(up)), near: apart(near, Way::Either), apart: apart(far, Way::Either) }
    }

    fn root(n: u8, near: f64) -> Member {
        Member { id: id(n), up: Up::Root, near: apart(near, Way::Either), apart: Apart::default() }
    }

    fn planned(members: &[Member], parents: &[u8]) -> (u8, Vec<u8>, Vec<(u8, u8)>) {
        let up = |m: &Member| if let Up::Guess(up) = m.up { vec![up] } else { vec![] };
        let ups = members.iter().map(|m| (m.id, up(m))).collect();
        let p = plan(members, &parents.iter().map(|n| id(*n)).collect::<Vec<_>>(), &ups);
        let turned = p.turned.iter().map(|(a, b)| (a.0[0], b.0[0])).collect();
        (p.parent.map_or(0, |p| p.0[0]), p.hung.iter().map(|m| m.0[0]).collect(), turned)
    }

    #[test]
    fn a_late_base_gets_the_siblings() {
        let all = [root(1, 1.0), on(2, 1.0, 1, 2.0), on(3, 1.1, 1, 2.1)];
        assert_eq!(planned(&all, &[1]), (1, vec![2, 3], vec![]));
        // The nearest is one of those that move.
        assert_eq!(planned(&[root(1, 1.0), on(2, 0.9, 1, 2.0), on(3, 1.1, 1, 2.1)], &[2]), (1, vec![3, 2], vec![]));
    }

    #[test]
    fn one_in_the_middle_of_a_chain_is_put_there() {
        assert_eq!(planned(&[root(1, 1.0), on(3, 0.9, 1, 1.9)], &[3]), (1, vec![3], vec![]));
        assert_eq!(planned(&[root(1, 0.9), on(3, 1.0, 1, 1.9)], &[1]), (1, vec![3], vec![]));
    }

    #[test]
    fn a_child_takes_nothing_from_its_parent() {
        // 2 comes from 1; the new one is a small step from 2.
        assert_eq!(planned(&[root(1, 1.1), on(2, 0.1, 1, 1.0)], &[2]), (2, vec![], vec![]));
        // Nor from its grandparent, from which the way was long.
        assert_eq!(planned(&[root(1, 9.6), on(2, 0.5, 1, 9.0), on(3, 0.1, 2, 0.4)], &[3]), (3, vec![], vec![]));
    }

    #[test]
    fn a_chain_that_hangs_from_its_wrong_end_turns_round() {
        // 1 to 2 to 3 with long way from 1 to 2; the new one is beyond 3, and near 1.
        let all = [root(1, 1.0), on(2, 3.0, 1, 4.0), on(3, 1.5, 2, 1.0)];
        assert_eq!(planned(&all, &[3]), (1, vec![3], vec![(2, 3)]));
    }

    #[test]
    fn trees_that_were_apart_are_joined() {
        let mut all = [root(1, 1.0), on(2, 2.0, 1, 1.0), root(3, 1.2), on(4, 2.5, 3, 1.0)];
        assert_eq!(planned(&all, &[1]), (1, vec![3], vec![]));
        assert_eq!(planned(&all, &[4]), (4, vec![1], vec![]));
        all[2].near = Apart([all[2].near.told(), None]);
        assert_eq!(planned(&all, &[1]), (1, vec![], vec![]), "sketches alone are not enough");
    }

    #[test]
    fn what_has_a_direction_keeps_it() {
        let mut all = [root(1, 1.0), on(2, 1.0, 1, 2.0)];
        all[1].near = apart(1.0, Way::Second);
        assert_eq!(planned(&all, &[1]), (1, vec![], vec![]));
    }

    #[test]
    fn a_merge_takes_nothing_that_it_comes_from() {
        let all = [root(1, 0.5), on(2, 0.5, 1, 1.0), on(3, 0.4, 1, 1.0), on(4, 0.4, 1, 1.0)];
        assert_eq!(planned(&all, &[2, 3]), (0, vec![4], vec![]));
    }
}
