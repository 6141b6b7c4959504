//! What `mgit log` tells of: a version and all that it comes from, or all that live, newest first, each with its edges.
//!
//! The catalog is looked through once, from end to end, however many are asked for: to know what a version comes from
//! takes all edges anyway, and a hundred thousand single questions take ten times as long.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::engine::{Detail, Engine, Parents, edges};
use super::{Head, RepoError};
use crate::model::id::Id;
use crate::model::lineage::Lineage;
use crate::model::name::{VersionName, VersionRef};
use crate::model::record::Relation;

/// The version and all that it comes from; without one, all that live. Newest first.
pub fn history(engine: &Engine, of: Option<&VersionRef>) -> Result<Vec<Detail>, RepoError> {
    let of = of.map(|reference| engine.resolve(reference)).transpose()?;
    let all = All::of(engine)?;
    let mut wanted: Vec<usize> = match of {
        None => (0..all.heads.len()).filter(|&n| !all.heads[n].removed).collect(),
        Some(head) => all.with_ancestors(&head.id),
    };
    wanted.sort_by_key(|&n| Reverse(all.heads[n].seq));
    wanted.into_iter().map(|n| all.detail(n)).collect()
}

/// All versions that ever were, in commit order, and what is known of them.
struct All {
    heads: Vec<Head>,
    place: HashMap<Id, usize>,
    parents: Parents,
    tags: HashMap<Id, Vec<VersionName>>,
    /// Places of a version's children, with how they come from it; and of those that follow it. In commit order.
    children: HashMap<Id, Vec<(usize, Relation)>>,
    next: HashMap<Id, Vec<usize>>,
}

impl All {
    fn of(engine: &Engine) -> Result<All, RepoError> {
        let (heads, parents) = engine.family()?;
        let place = heads.iter().enumerate().map(|(n, h)| (h.id, n)).collect();
        let (mut children, mut next, mut tags): (HashMap<_, Vec<_>>, HashMap<_, Vec<_>>, HashMap<_, Vec<_>>) =
            Default::default();
        for (n, head) in heads.iter().enumerate() {
            for edge in parents.get(&head.id).into_iter().flatten() {
                children.entry(edge.id).or_default().push((n, edge.relation));
            }
            head.previous.iter().for_each(|p| next.entry(*p).or_default().push(n));
        }
        engine.catalog().all_tags()?.into_iter().for_each(|(tag, id)| tags.entry(id).or_default().push(tag));
        Ok(All { heads, place, parents, tags, children, next })
    }

    fn with_ancestors(&self, id: &Id) -> Vec<usize> {
        let above = Lineage::from_edges(edges(&self.heads, &self.parents)).ancestors(*id);
        above.iter().chain([id]).filter_map(|id| self.place.get(id).copied()).collect()
    }

    fn detail(&self, n: usize) -> Result<Detail, RepoError> {
        let head = self.heads[n].clone();
        let of = |n: &usize| self.heads[*n].clone();
        let parents = self.parents.get(&head.id).into_iter().flatten();
        let (children, next) = (self.children.get(&head.id), self.next.get(&head.id));
        Ok(Detail {
            parents: parents.map(|e| Ok((self.end(&e.id)?, *e))).collect::<Result<_, RepoError>>()?,
            previous: head.previous.as_ref().map(|p| self.end(p)).transpose()?,
            next: next.into_iter().flatten().map(of).collect(),
            children: children.into_iter().flatten().map(|(n, relation)| (of(n), *relation)).collect(),
            tags: self.tags.get(&head.id).cloned().unwrap_or_default(),
            head,
        })
    }

    /// The version at an edge's end.
    fn end(&self, id: &Id) -> Result<Head, RepoError> {
        let place = self
            .place
            .get(id)
            .ok_or_else(|| RepoError::damaged(format!("an edge leads to {id}, which never was committed")))?;
        Ok(self.heads[*place].clone())
    }
}
