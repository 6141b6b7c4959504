//! What a new version shows of the stored ones: which were made from it, which are merges in which it took part, and
//! where the others of its family hang now ([`tree`]).
//!
//! Only edges that content alone suggested are questioned.

use std::collections::{HashMap, HashSet};

use super::decide::{backwards, is_kin, is_symmetric};
use super::face::{self, Face, Rows};
use super::search::{Hit, is_whole};
use super::tree::{self, Apart, Member, Up, Way};
use super::trial::Trial;
use super::{Above, Finder, MAX_UPS, Move, NEW, mix};
use crate::model::id::Id;
use crate::model::record::{ParentEdge, Real, Relation};

use super::super::RepoError;
use super::super::diff::side::Side;

/// A relative distance that is nothing.
const NONE: f64 = 1e-6;
/// Steps that two versions took from a third one are told apart: their cosine is at most this.
const APART: f64 = 0.2;

impl Finder<'_> {
    /// Stored versions that were made from the new one, as their content shows. Those that have a parent that somebody
    /// named, or that is nearer, keep it.
    pub(super) fn reversed(&mut self) -> Result<Vec<Move>, RepoError> {
        let kin = self.trials.iter().filter(|t| is_kin(t));
        let of = |t: &Trial| Some((t.head.id, backwards(t, &self.mine)?, t.distance_back(), t.distance()));
        let found: Vec<_> =
            kin.filter_map(of).filter(|(_, _, back, there)| *back < 0.02 || 2.0 * back < *there).collect();
        let mut moves = Vec::new();
        for (child, relation, distance, _) in found {
            let Some(a) = self.above(&child)? else { continue };
            let gives_way = |e: &ParentEdge| {
                e.distance.is_some_and(|d| distance < d.0 || (distance < NONE && self.is_sparse(&e.id)))
            };
            if (a.previous.is_none() || !a.parents.is_empty())
                && a.parents.iter().all(|(_, e)| gives_way(e))
                && a.parents.len() < 2
            {
                let from = a.parents.iter().map(|(h, _)| h.id).collect();
                let edge = ParentEdge { distance: Some(Real(distance)), ..ParentEdge::new(NEW, relation) };
                moves.push(Move { child, from, to: vec![edge], follow: false });
            }
        }
        Ok(moves)
    }

    /// Has a version zeros that the new one has not?
    fn is_sparse(&self, id: &Id) -> bool {
        let trial = self.trials.iter().find(|t| t.head.id == *id);
        trial.is_some_and(|t| backwards(t, &self.mine) == Some(Relation::Prune))
    }

    /// Stored versions that turn out to be merges in which the new one took part.
    pub(super) fn merges_with_new(&mut self) -> Result<Vec<Move>, RepoError> {
        let mut moves: Vec<Move> = Vec::new();
        // What one turns out to be may clear up another: those of fewest members first.
        while let Some(found) = self.merge_with_new(&moves)? {
            moves.push(found);
        }
        self.twins_in_merges(&mut moves)?;
        Ok(moves)
    }

    /// The one of fewest members among those that are not known.
    fn merge_with_new(&mut self, moves: &[Move]) -> Result<Option<Move>, RepoError> {
        let near = self.hits.iter().take(mix::MAX_MEMBERS).filter(|h| !is_whole(&self.versions[h.seq])).cloned();
        let (mixed, simple): (Vec<Hit>, Vec<Hit>) = near.partition(|h| self.is_mix(&h.id, moves));
        let suspects = mix::suspects(&simple, &self.versions, &self.searched);
        // Two that may be mixes explain each other.
        let is_member = |h: &Hit| !suspects.iter().any(|s| s.id == h.id);
        let simple: Vec<Hit> = simple.into_iter().filter(is_member).collect();
        let mut best: Option<Move> = None;
        for target in suspects.iter().chain(&mixed).filter(|t| !moves.iter().any(|m| m.child == t.id)) {
            let Some(from) = self.questionable(&target.id, moves)? else { continue };
            let members = mix::members_of(target, &simple, &self.versions, &self.searched);
            if !members.is_empty() && best.as_ref().is_none_or(|b| members.len() < b.to.len()) {
                let to = members.iter().map(|m| self.plain(&target.id, m)).collect();
                best = Some(Move { child: target.id, from, to, follow: false });
            }
        }
        Ok(best)
    }

    /// The edge of a merge to a member: of twins, to the one whose other shapes are most like the merge's.
    fn plain(&self, merge: &Id, (member, coefficient): &(Option<Id>, f64)) -> ParentEdge {
        let hit = self.hits.iter().find(|h| Some(h.id) == *member);
        let twins: Vec<&Hit> = self.hits.iter().filter(|h| hit.is_some_and(|m| m.distance == h.distance)).collect();
        let own = (twins.len() > 1).then(|| self.shapes(merge)).flatten();
        let differs = |h: &Hit| Some(face::differing(&self.shapes(&h.id)?, own.as_ref()?));
        let other = |h: &&&Hit| (differs(h).unwrap_or(usize::MAX), h.seq);
        let best = twins.iter().filter(|h| h.id != *merge && own.is_some()).min_by_key(other).map(|h| h.id);
        let edge = ParentEdge::new(best.or(*member).unwrap_or(NEW), Relation::Merge);
        ParentEdge { coefficient: Some(Real(*coefficient)), distance: Some(Real(0.0)), ..edge }
    }

    /// Merges whose members have the new version's weights, but are less like them otherwise: a head on a base that
    /// was not there.
    fn twins_in_merges(&mut self, moves: &mut Vec<Move>) -> Result<(), RepoError> {
        let shapes = |side: &Side| face::shapes(side);
        let twins: Vec<(Id, Vec<Vec<u64>>)> =
            self.trials.iter().filter(|t| is_kin(t) && t.is_twin()).map(|t| (t.head.id, shapes(&t.side))).collect();
        for hit in self.hits.clone().iter().take_while(|_| !twins.is_empty()) {
            let Some(a) = self.above(&hit.id)?.filter(|a| a.parents.len() > 1) else { continue };
            let edges: Vec<ParentEdge> = a.parents.iter().map(|(_, e)| *e).collect();
            let Some((twin, theirs)) = twins.iter().find(|(id, _)| edges.iter().any(|e| e.id == *id)) else { continue };
            let told = edges.iter().any(|e| e.distance.is_none()) || moves.iter().any(|m| m.child == hit.id);
            let Ok(side) = self.repo.record(&hit.id).and_then(|r| Side::of_version(self.repo, &r)) else { continue };
            let other = |mine: &[Vec<u64>]| face::differing(mine, &shapes(&side));
            if !told && other(&shapes(&self.side)) < other(theirs) {
                let from = edges.iter().map(|e| e.id).collect();
                let to = edges.iter().map(|e| if e.id == *twin { ParentEdge { id: NEW, ..*e } } else { *e });
                moves.push(Move { child: hit.id, from, to: to.collect(), follow: false });
            }
        }
        Ok(())
    }

    /// The edges of a version, if all were told by its content and something better may be said.
    fn questionable(&mut self, id: &Id, moves: &[Move]) -> Result<Option<Vec<Id>>, RepoError> {
        let Some(a) = self.above(id)? else { return Ok(None) };
        let edges: Vec<ParentEdge> = a.parents.iter().map(|(_, e)| *e).collect();
        let from = edges.iter().map(|e| e.id).collect();
        let by_content = edges.iter().all(|e| e.distance.is_some());
        Ok(match (edges.len(), &a.previous) {
            (0, None) => {
                let origin = self.repo.record(id)?.origin;
                origin.is_some_and(|o| o.duplicate_of.is_none()).then_some(from)
            }
            (0, Some(previous)) => a.head.guess.then(|| vec![previous.id]),
            (1, _) => by_content.then_some(from),
            // A mix of mixes is rather one of what these were mixed from.
            _ => (by_content && edges.iter().any(|e| self.is_mix(&e.id, moves))).then_some(from),
        })
    }

    /// The same of versions with at most one parent.
    fn guessed(&mut self, id: &Id) -> Result<Option<Vec<Id>>, RepoError> {
        Ok(self.questionable(id, &[])?.filter(|from| from.len() < 2))
    }

    fn is_mix(&self, id: &Id, moves: &[Move]) -> bool {
        self.is_mixed(id) || moves.iter().any(|m| m.child == *id && m.to.len() > 1)
    }

    pub(super) fn is_mixed(&self, id: &Id) -> bool {
        matches!(self.asked.get(id), Some(Some(above)) if above.parents.len() > 1)
    }

    /// The new version's parent, and the moves of those of its family that hang elsewhere now. `known`: moves that stand.
    pub(super) fn rehung(&mut self, known: &[Move], own: &[Id]) -> Result<(Option<Id>, Vec<Move>), RepoError> {
        let mut ups = self.ups_after(known)?;
        ups.insert(NEW, own.to_vec());
        let members = self.members(known)?;
        let plan = tree::plan(&members, own, &ups);
        let pair =
            |id: &Id, of: fn(&Member) -> &tree::Apart| members.iter().find(|m| m.id == *id).and_then(|m| of(m).told());
        let mut moves = Vec::new();
        for child in &plan.hung {
            moves.extend(self.moved(child, NEW, pair(child, |m| &m.near))?);
        }
        for (child, parent) in &plan.turned {
            moves.extend(self.moved(child, *parent, pair(parent, |m| &m.apart))?);
        }
        Ok((plan.parent, moves))
    }

    /// What hangs on a version that turns out to be a merge of it, or of what hangs on it, hangs on the nearest of the
    /// others: all are taken off, then put back by the shortest edges first.
    pub(super) fn loosened(&mut self, merges: &[Move]) -> Result<Vec<Move>, RepoError> {
        let merges: Vec<&Move> = merges.iter().filter(|m| m.to.len() > 1).collect();
        if merges.is_empty() {
            return Ok(vec![]);
        }
        let (mut ups, mut faces) = (self.ups()?, self.faces(|_| true));
        faces.insert(NEW, self.new_face());
        ups.extend(merges.iter().map(|m| tops_of(m)));
        let mut loose: Vec<(Id, Id)> = Vec::new();
        for m in &merges {
            let mut found = self.origins_below(m, &faces)?;
            found.iter().for_each(|id| ups.entry(*id).or_default().retain(|up| *up != m.child));
            while let Some(top) = self.top_of_circle(m.child, &ups)? {
                ups.entry(top).or_default().retain(|up| *up != m.child);
                found.push(top);
            }
            loose.extend(found.into_iter().map(|id| (id, m.child)));
        }
        faces.retain(|id, _| !merges.iter().any(|m| m.child == *id));
        Ok(put_back(loose, &faces, ups))
    }

    /// Versions that hang on a merge, though its members go different ways from them: they came before it.
    fn origins_below(&mut self, merge: &Move, faces: &HashMap<Id, Face>) -> Result<Vec<Id>, RepoError> {
        let members: Vec<&Face> = merge.to.iter().filter_map(|e| faces.get(&e.id)).collect();
        let mut out = Vec::new();
        for id in self.hits.iter().map(|h| h.id).collect::<Vec<_>>() {
            let hangs = self.guessed(&id)?.is_some_and(|from| from[..] == [merge.child]);
            if hangs && !merge.to.iter().any(|e| e.id == id) && faces.get(&id).is_some_and(|f| is_origin(f, &members)) {
                out.push(id);
            }
        }
        Ok(out)
    }

    /// The version that closes a circle: it hangs on the merge, and a member of the merge is it or comes from it.
    fn top_of_circle(&mut self, merge: Id, ups: &HashMap<Id, Vec<Id>>) -> Result<Option<Id>, RepoError> {
        let above = |id: &Id| ups.get(id).filter(|_| *id != merge).cloned().unwrap_or_default();
        let members = &ups[&merge];
        let mut tops: Vec<Id> = ups.iter().filter(|(_, up)| up.contains(&merge)).map(|(id, _)| *id).collect();
        tops.retain(|top| members.iter().any(|m| tree::is_below(*m, *top, above)));
        tops.sort_unstable();
        for top in tops {
            if self.guessed(&top)?.is_some_and(|from| from[..] == [merge]) {
                return Ok(Some(top));
            }
        }
        Ok(None)
    }

    /// The near versions whose values can be compared.
    fn members(&mut self, known: &[Move]) -> Result<Vec<Member>, RepoError> {
        let new = self.new_face();
        let faces = self.faces(is_kin).into_iter().filter(|(_, f)| f.is_float());
        let faces: HashMap<Id, Face> = faces.map(|(id, f)| (id, f.with_shapes(|| self.shapes(&id)))).collect();
        let mut members = Vec::new();
        for hit in self.hits.clone() {
            let Some(face) = faces.get(&hit.id) else { continue };
            let up = if known.iter().any(|m| m.child == hit.id) { Up::Fixed } else { self.up(&hit.id)? };
            let apart = match up {
                Up::Guess(from) => faces.get(&from).map(|f| f.apart(face)).unwrap_or_default(),
                _ => Apart::default(),
            };
            members.push(Member { id: hit.id, up, near: new.apart(face), apart });
        }
        Ok(members)
    }

    fn new_face(&self) -> Face {
        Face::of_new(&self.side, &Rows::new(&self.rows, &self.mine, &self.searched))
    }

    /// How the near versions look, but for those of which the trial came to nothing.
    fn faces(&self, keep: impl Fn(&Trial) -> bool) -> HashMap<Id, Face> {
        let rows = Rows::new(&self.rows, &self.mine, &self.searched);
        let trial = |h: &Hit| self.trials.iter().find(|t| t.head.id == h.id);
        let kept = self.hits.iter().filter(|h| trial(h).is_none_or(&keep));
        let face = |h: &Hit| Face::of_stored(h, &self.versions[h.seq], trial(h), &rows);
        kept.map(|h| (h.id, face(h))).collect()
    }

    fn shapes(&self, id: &Id) -> Option<Vec<Vec<u64>>> {
        let side = self.repo.record(id).and_then(|r| Side::of_version(self.repo, &r)).ok()?;
        Some(face::shapes(&side))
    }

    fn up(&mut self, id: &Id) -> Result<Up, RepoError> {
        Ok(match self.guessed(id)?.as_deref() {
            Some([]) => Up::Root,
            Some([from]) => Up::Guess(*from),
            _ => Up::Fixed,
        })
    }

    /// Merges whose members go different ways from the new version: it is what they have in common, not one of their kind.
    pub(super) fn merges_around(&mut self) -> Result<HashSet<Id>, RepoError> {
        if !self.asked.values().flatten().any(|a| a.parents.len() > 1) {
            return Ok(HashSet::new());
        }
        let (new, faces) = (self.new_face(), self.faces(|_| true));
        let mixed =
            self.asked.iter().filter_map(|(id, a)| Some((id, a.as_ref()?))).filter(|(_, a)| a.parents.len() > 1);
        let around = mixed.filter(|(_, a)| {
            let members: Vec<&Face> = a.parents.iter().filter_map(|(h, _)| faces.get(&h.id)).collect();
            members.len() > 1 && is_origin(&new, &members)
        });
        Ok(around.map(|(id, _)| *id).collect())
    }

    /// The move of a version to its new place, if it is another one. `pair`: of the new parent and it, in either order.
    fn moved(&mut self, child: &Id, parent: Id, pair: Option<tree::Pair>) -> Result<Option<Move>, RepoError> {
        let (Some(from), Some(a)) = (self.guessed(child)?, self.above(child)?) else { return Ok(None) };
        let told = pair.filter(|p| p.way != Way::Either).map(|p| p.by);
        let relation = match (told, self.relation_with(child, &parent)?) {
            (Some(by), _) => by,
            (None, Some(relation)) if is_symmetric(relation) => relation,
            _ => Relation::Finetune,
        };
        let distance = Some(Real(pair.map_or(0.0, |p| p.weight.sqrt())));
        let edge = ParentEdge { guess: is_symmetric(relation), distance, ..ParentEdge::new(parent, relation) };
        let model = match parent {
            NEW => Some(self.new.model.clone()),
            id => self.above(&id)?.map(|a| a.head.model),
        };
        let follow = model.is_some_and(|m| m == a.head.model);
        // A successor has one predecessor.
        if follow && a.previous.is_some_and(|p| !from.contains(&p.id)) {
            return Ok(None);
        }
        Ok(Some(Move { child: *child, from, to: vec![edge], follow }))
    }

    /// The relation that a version's edge has now, or that of the other one to it.
    fn relation_with(&mut self, id: &Id, other: &Id) -> Result<Option<Relation>, RepoError> {
        let back =
            self.above(other)?.and_then(|a| a.parents.iter().find(|(h, _)| h.id == *id).map(|(_, e)| e.relation));
        let now = self.above(id)?.and_then(|a| a.parents.first().map(|(_, e)| e.relation));
        Ok(back.or(now))
    }

    /// Moves that take away the version edges by mere order of import that the other moves, and the new
    /// version's edges, would close a circle with.
    pub(super) fn yielding(&mut self, moves: &[Move], own: Vec<Id>) -> Result<Vec<Move>, RepoError> {
        let mut ups = self.ups_after(moves)?;
        ups.insert(NEW, own);
        let above = |id: &Id| ups.get(id).cloned().unwrap_or_default();
        let weak = self.asked.values().flatten().filter(|a| is_weak(a));
        let edges = weak.filter_map(|a| Some((a.head.id, a.previous.as_ref()?.id)));
        let circle = edges.filter(|(id, previous)| tree::is_below(*previous, *id, above));
        let mut out: Vec<Move> =
            circle.map(|(child, up)| Move { child, from: vec![up], to: vec![], follow: false }).collect();
        out.sort_by_key(|m| m.child);
        Ok(out)
    }

    /// What the near versions come from once the moves are made.
    pub(super) fn ups_after(&mut self, moves: &[Move]) -> Result<HashMap<Id, Vec<Id>>, RepoError> {
        let mut ups = self.ups()?;
        ups.extend(moves.iter().map(tops_of));
        Ok(ups)
    }

    /// What the near versions come from, as far as it takes a bounded number of questions; mere order of import is no
    /// evidence.
    fn ups(&mut self) -> Result<HashMap<Id, Vec<Id>>, RepoError> {
        let mut todo: Vec<Id> = self.hits.iter().map(|h| h.id).chain(self.trials.iter().map(|t| t.head.id)).collect();
        let mut ups = HashMap::new();
        while let Some(id) = todo.pop() {
            if ups.contains_key(&id) || ups.len() >= MAX_UPS {
                continue;
            }
            let mut up: Vec<Id> = Vec::new();
            if let Some(a) = self.above(&id)? {
                let previous = a.previous.as_ref().filter(|_| !is_weak(&a));
                up.extend(a.parents.iter().map(|(h, _)| h.id).chain(previous.map(|h| h.id)));
            }
            todo.extend(&up);
            ups.insert(id, up);
        }
        Ok(ups)
    }
}

/// Is its version edge there by mere order of import? Its content spoke for others.
fn is_weak(a: &Above) -> bool {
    a.head.guess && !a.parents.is_empty()
}

/// Moves of versions from the merges that they hung on to the nearest of those that do not come from them, if there is one.
fn put_back(mut loose: Vec<(Id, Id)>, faces: &HashMap<Id, Face>, mut ups: HashMap<Id, Vec<Id>>) -> Vec<Move> {
    // What was made from it is no parent, and of a prune only the largest weights are compared.
    let pair = |a: &Face, b: &Face| a.apart(b).0[0].filter(|p| p.way == Way::Either);
    let of = |id: &Id| {
        let (id, mine) = (*id, faces.get(id));
        faces.iter().filter_map(move |(other, face)| Some((id, *other, pair(face, mine?)?)))
    };
    let mut pairs: Vec<(Id, Id, tree::Pair)> = loose.iter().flat_map(|(id, _)| of(id)).filter(|p| p.0 != p.1).collect();
    pairs.sort_by(|a, b| a.2.weight.total_cmp(&b.2.weight).then_with(|| (a.0, a.1).cmp(&(b.0, b.1))));
    let mut out = Vec::new();
    loop {
        let above = |id: &Id| ups.get(id).cloned().unwrap_or_default();
        let is_loose = |id: &Id| loose.iter().position(|(l, _)| l == id);
        let fits = |(id, up, pair): &(Id, Id, tree::Pair)| {
            is_loose(id).filter(|_| !tree::is_below(*up, *id, above)).map(|i| (i, *up, *pair))
        };
        let Some((i, up, pair)) = pairs.iter().find_map(fits) else { break };
        let (id, merge) = loose.swap_remove(i);
        ups.entry(id).or_default().push(up);
        let edge = ParentEdge::new(up, Relation::Finetune);
        let edge = ParentEdge { guess: true, distance: Some(Real(pair.weight.sqrt())), ..edge };
        out.push(Move { child: id, from: vec![merge], to: vec![edge], follow: false });
    }
    out.extend(loose.into_iter().map(|(child, merge)| Move { child, from: vec![merge], to: vec![], follow: false }));
    out
}

/// A version and what it comes from when it has moved.
fn tops_of(m: &Move) -> (Id, Vec<Id>) {
    (m.child, m.to.iter().map(|e| e.id).collect())
}

/// Do the members of a merge go different ways from `x`?
fn is_origin(x: &Face, members: &[&Face]) -> bool {
    let weight = |a: &Face, b: &Face| a.apart(b).0[0].map(|p| p.weight);
    let mut cosines = Vec::new();
    for (i, a) in members.iter().enumerate() {
        for b in &members[..i] {
            if let (Some(ax), Some(bx), Some(ab)) = (weight(a, x), weight(b, x), weight(a, b)) {
                cosines.push((ax + bx - ab) / (2.0 * (ax * bx).sqrt()));
            }
        }
    }
    let mean = cosines.iter().sum::<f64>() / cosines.len().max(1) as f64;
    !cosines.is_empty() && mean.abs() <= APART
}
