//! Where a new version comes from, told from its content: which stored versions, by what operation, and how sure.
//!
//! 1. [`search`] looks at the sketches of all versions: the cost is a few milliseconds for thousands.
//! 2. The nearest few, what these come from, and what a model card names are put to a [`trial`] on a window of each
//!    matrix; [`mix`] asks whether several together are what one is not.
//! 3. [`decide`] names edges from that evidence. A new version may also turn out to be the parent of older ones, or to
//!    stand between two: then it says which guessed edges to move ([`Move`]).
//!
//! Nothing here changes anything. Edges that people named are never questioned.

pub mod decide;
pub mod hint;
pub mod mix;
pub mod moves;
pub mod search;
pub mod trial;
pub mod window;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::diff::side::Side;
use super::engine::{Above, label};
use super::hash::HashedFile;
use super::progress::Progress;
use super::{Head, Repo, RepoError};
use crate::model::id::Id;
use crate::model::name::{ModelName, VersionRef};
use crate::model::record::{EntryKind, Origin, ParentEdge, Real, Relation, VersionRecord};
use crate::store::sketches::{LANES, VersionSketch};
use decide::{backwards, best, is_kin, is_symmetric, relation};
use hint::Hint;
use moves::Edge;
use search::Hit;
use trial::Trial;
use window::Weights;

/// Versions that are tried for their own sake, and at most with what these lead to.
const TRIED: usize = 16;
const MAX_TRIED: usize = 32;
/// Near versions that are asked whether they are merges in which the new one took part.
const MERGES: usize = 6;
/// Differences of zeros in the sketches of versions that lie beside each other in a line of fine-tunes.
const MISMATCHES: u32 = 96;
/// Versions whose ancestry is asked for.
const MAX_UPS: usize = 512;

/// What has to be asked of the catalog.
pub trait Ask {
    /// All commits from the `seq`-th on.
    fn since(&mut self, seq: u64) -> Result<Vec<Id>, RepoError>;
    /// The version and what it comes from; `None` when it was removed.
    fn above(&mut self, id: &Id) -> Result<Option<Above>, RepoError>;
    fn find(&mut self, name: &VersionRef) -> Result<Option<Head>, RepoError>;
}

/// The new version.
pub struct New<'a> {
    pub model: &'a ModelName,
    pub files: &'a [&'a HashedFile],
}

/// Stands for the new version, whose id is not known yet.
pub const NEW: Id = Id([0; 32]);

/// A stored version whose edge, found by content alone, the new version shows to lead elsewhere.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Move {
    pub child: Id,
    /// Its parent or predecessor until now, if it has one.
    pub from: Option<Id>,
    /// Its parents from now on; [`NEW`] among them.
    pub to: Vec<ParentEdge>,
    /// They are one, of the same model: a version edge.
    pub follow: bool,
}

/// Where the new version comes from.
#[derive(Default)]
pub struct Found {
    /// A version of the same model that it follows.
    pub previous: Option<Head>,
    /// It stands before a version of its own model: it is not the newest one's successor.
    pub precedes: bool,
    pub parents: Vec<(Head, ParentEdge)>,
    pub origin: Origin,
    pub moves: Vec<Move>,
    /// Versions that are near without being parents: bases of its bytes.
    pub near: Vec<Id>,
}

/// Looks for parents among all versions.
pub fn find(repo: &Arc<Repo>, ask: &mut dyn Ask, new: &New, progress: &dyn Progress) -> Result<Found, RepoError> {
    let side = Side::of_hashed(new.files)?;
    let versions = search::index(repo, ask, progress)?;
    let (mine, searched) = (window::compared(&side), window::searched(&side));
    let lanes = search::lanes_of(&side);
    let hits = search::search(&versions, &lanes, &searched);
    let hints = hint::hints(new.files);
    let mut finder =
        Finder { repo, ask, new, side, lanes, mine, searched, versions, hits, asked: HashMap::new(), trials: vec![] };
    let mut found = finder.find(&hints)?;
    found.origin.hints = hints.into_iter().map(|h| h.text).collect();
    Ok(found)
}

/// Sketches what was committed, so that no later search has to.
pub fn remember(repo: &Arc<Repo>, ask: &mut dyn Ask, progress: &dyn Progress) {
    if let Err(e) = search::index(repo, ask, progress) {
        log::warn!("the sketches are not up to date: {e}");
    }
}

/// The relations and coefficients of parents that were named.
pub fn told(repo: &Arc<Repo>, new: &New, parents: &[Head]) -> Result<Vec<ParentEdge>, RepoError> {
    let side = Side::of_hashed(new.files)?;
    let mine = window::compared(&side);
    let trials: Vec<Trial> = parents.iter().filter_map(|h| trial(repo, h.clone(), &side, &mine)).collect();
    let several = if parents.len() > 1 { mix::fit(&trials.iter().collect::<Vec<_>>(), &mine) } else { None };
    let edge = |h: &Head| {
        let trial = trials.iter().find(|t| t.head.id == h.id);
        let share = several.as_ref().and_then(|m| m.members.iter().find(|(id, _)| *id == h.id)).map(|(_, c)| Real(*c));
        let relation = match trial.filter(|t| t.identical > 0.0 || is_kin(t)) {
            _ if parents.len() > 1 => merged(new.model, parents),
            Some(t) => relation(t, &side, &mine),
            None => Relation::Derived,
        };
        ParentEdge { coefficient: share, ..ParentEdge::new(h.id, relation) }
    };
    Ok(parents.iter().map(edge).collect())
}

fn merged(model: &ModelName, members: &[Head]) -> Relation {
    if mix::is_federated(members.iter().map(|h| h.model.as_str()).chain([model.as_str()])) {
        Relation::Federated
    } else {
        Relation::Merge
    }
}

/// `None` for a version that cannot be read.
fn trial(repo: &Arc<Repo>, head: Head, new: &Side, mine: &[Weights]) -> Option<Trial> {
    let side = repo.record(&head.id).and_then(|record| Side::of_version(repo, &record));
    let side = side.map_err(|e| log::warn!("{} is not tried as a parent: {e}", label(&head))).ok()?;
    Some(Trial::new(head, side, new, mine))
}

struct Finder<'a> {
    repo: &'a Arc<Repo>,
    ask: &'a mut dyn Ask,
    new: &'a New<'a>,
    side: Side,
    lanes: [u32; LANES],
    mine: Vec<Weights>,
    searched: Vec<Weights>,
    versions: Vec<VersionSketch>,
    hits: Vec<Hit>,
    /// Those asked for, dead ones too.
    asked: HashMap<Id, Option<Above>>,
    trials: Vec<Trial>,
}

impl Finder<'_> {
    fn find(&mut self, hints: &[Hint]) -> Result<Found, RepoError> {
        self.keep_living()?;
        if let Some(twin) = self.duplicate()? {
            return Ok(duplicate(&twin));
        }
        self.try_nearest(hints)?;
        let reversed = self.reversed()?;
        let merges = self.merges_with_new()?;
        let excluded: HashSet<Id> = reversed.iter().chain(&merges).map(|m| m.child).collect();
        let ranked = self.ranked(&excluded);
        let mix = match ranked.first() {
            Some(one) if merges.is_empty() => self.mix(*one)?,
            _ => None,
        };
        if let Some(mix) = mix {
            let mut found = self.several(&mix)?;
            let members: Vec<Id> = mix.members.iter().map(|(id, _)| *id).collect();
            let plan = self.plan(&[], &members, &excluded)?;
            self.take_over(&mut found, reversed, plan.moved)?;
            return Ok(found);
        }
        let plan = self.plan(&ranked, &[], &excluded)?;
        let mut found = match plan.parent {
            Some(one) => self.single(one)?,
            None => self.by_hint(hints)?,
        };
        found.near = reversed.iter().map(|m| m.child).collect();
        self.take_over(&mut found, [reversed, merges].concat(), plan.moved)?;
        Ok(found)
    }

    /// Notes which stored versions find a new parent.
    fn take_over(&mut self, found: &mut Found, moves: Vec<Move>, moved: Vec<Id>) -> Result<(), RepoError> {
        found.moves = moves;
        for id in &moved {
            found.moves.extend(self.moved(id)?);
        }
        let own = |m: &Move| m.follow && m.to.iter().any(|e| e.id == NEW);
        found.precedes = found.moves.iter().any(own);
        Ok(())
    }

    /// Who may be the parent, the best first.
    fn ranked(&self, excluded: &HashSet<Id>) -> Vec<Id> {
        let model = self.new.model.as_str();
        let (mut out, mut left): (Vec<Id>, Vec<&Trial>) = (vec![], self.trials.iter().collect());
        left.retain(|t| !excluded.contains(&t.head.id));
        while let Some(t) = best(left.iter().copied(), &self.side, &self.mine, model) {
            left.retain(|o| o.head.id != t.head.id);
            out.push(t.head.id);
        }
        out
    }

    /// Which edges move to the new version, and where it then stands itself.
    /// `members`: what it is a mix of, in any case.
    fn plan(&mut self, parents: &[Id], members: &[Id], excluded: &HashSet<Id>) -> Result<moves::Plan, RepoError> {
        let mut nodes = Vec::new();
        for hit in self.hits.clone().iter().filter(|h| h.mismatches < MISMATCHES) {
            if let Some((from, apart)) = self.guessed(hit)? {
                nodes.push(self.node(hit, from, apart));
            }
        }
        let ups = self.ups()?;
        nodes.retain(|n| !members.iter().any(|m| moves::is_below(*m, &HashSet::from([n.id]), &ups)));
        Ok(moves::plan(&nodes, parents, excluded, &ups))
    }

    /// A version and its suggested parent, with distances by whole windows where both were tried, else by sketches.
    fn node(&self, hit: &Hit, from: Id, apart: f64) -> moves::Node {
        let trial = |id: &Id| self.trials.iter().find(|t| t.head.id == *id);
        let parent = trial(&from);
        let (mut near, mut edge) = match (trial(&hit.id), parent) {
            (Some(child), Some(parent)) => {
                let [near, onward, apart] = child.triangle(parent, &self.mine);
                (near, Edge { from, apart, onward, precise: true, lean: false })
            }
            _ => {
                let onward = self.hits.iter().find(|h| h.id == from).map_or(f64::MAX, |h| h.distance);
                (hit.distance, Edge { from, apart, onward, precise: false, lean: false })
            }
        };
        if let Some(parent) = parent.filter(|_| hit.distance <= apart * (1.0 + moves::EQUAL)) {
            edge.lean = self.is_lean(&hit.id, parent);
            near = if edge.lean { near.min(edge.apart) } else { near };
        }
        moves::Node { id: hit.id, near, edge: Some(edge) }
    }

    /// Lacks a version what its parent has beyond the new one?
    fn is_lean(&self, child: &Id, parent: &Trial) -> bool {
        let beyond = parent.beyond(&self.side);
        if beyond.is_empty() {
            return false;
        }
        let side = self.repo.record(child).and_then(|record| Side::of_version(self.repo, &record));
        side.is_ok_and(|s| !s.tensors.iter().any(|t| beyond.contains(&&t.shape[..])))
    }

    /// What the near versions come from, as far as it takes a bounded number of questions.
    fn ups(&mut self) -> Result<HashMap<Id, Vec<Id>>, RepoError> {
        let mut todo: Vec<Id> = self.hits.iter().map(|h| h.id).chain(self.trials.iter().map(|t| t.head.id)).collect();
        let mut ups = HashMap::new();
        while let Some(id) = todo.pop() {
            if ups.contains_key(&id) || ups.len() >= MAX_UPS {
                continue;
            }
            let above = self.above(&id)?;
            let up = above.map(|a| a.parents.iter().map(|(h, _)| h.id).chain(a.previous.map(|h| h.id)).collect());
            let up: Vec<Id> = up.unwrap_or_default();
            todo.extend(&up);
            ups.insert(id, up);
        }
        Ok(ups)
    }

    fn above(&mut self, id: &Id) -> Result<Option<Above>, RepoError> {
        if let Some(known) = self.asked.get(id) {
            return Ok(known.clone());
        }
        let above = self.ask.above(id)?;
        self.asked.insert(*id, above.clone());
        Ok(above)
    }

    /// Of the nearest hits, those that were not removed.
    fn keep_living(&mut self) -> Result<(), RepoError> {
        let mut living = Vec::new();
        for hit in std::mem::take(&mut self.hits) {
            if living.len() >= mix::MAX_MEMBERS {
                break;
            }
            if self.above(&hit.id)?.is_some() {
                living.push(hit);
            }
        }
        self.hits = living;
        Ok(())
    }

    /// A living version with the same files.
    fn duplicate(&mut self) -> Result<Option<Head>, RepoError> {
        let same: Vec<Id> = self.versions.iter().filter(|v| v.lanes == self.lanes).map(|v| v.id).collect();
        for id in same.into_iter().take(MAX_TRIED) {
            if self.repo.record(&id).is_ok_and(|record| self.has_same_files(&record))
                && let Some(above) = self.above(&id)?
            {
                return Ok(Some(above.head));
            }
        }
        Ok(None)
    }

    fn has_same_files(&self, record: &VersionRecord) -> bool {
        let theirs = record.files.iter().filter(|f| f.kind == EntryKind::File).map(|f| (f.path.as_str(), f.digest));
        theirs.eq(self.new.files.iter().map(|f| (f.name.as_str(), f.digest)))
    }

    fn try_nearest(&mut self, hints: &[Hint]) -> Result<(), RepoError> {
        let nearest = search::candidates(&self.hits, &self.versions, &self.mine, TRIED);
        nearest.iter().try_for_each(|id| self.try_one(id))?;
        let mut more: Vec<Id> = Vec::new();
        for id in nearest.iter().take(TRIED) {
            if let Some(d) = self.above(id)? {
                more.extend(d.parents.iter().map(|(h, _)| h).chain(&d.previous).filter(|h| !h.removed).map(|h| h.id));
            }
        }
        more.extend(self.newest()?.map(|h| h.id));
        more.extend(self.hinted(hints)?.iter().map(|h| h.id));
        more.iter().try_for_each(|id| self.try_one(id))
    }

    fn try_one(&mut self, id: &Id) -> Result<(), RepoError> {
        if self.trials.len() >= MAX_TRIED || self.trials.iter().any(|t| t.head.id == *id) {
            return Ok(());
        }
        if let Some(above) = self.above(id)? {
            self.trials.extend(trial(self.repo, above.head, &self.side, &self.mine));
        }
        Ok(())
    }

    fn newest(&mut self) -> Result<Option<Head>, RepoError> {
        self.ask.find(&VersionRef { model: self.new.model.clone(), version: None })
    }

    /// The stored versions that model cards speak of: by the whole name, else by its last part.
    fn hinted(&mut self, hints: &[Hint]) -> Result<Vec<Head>, RepoError> {
        let mut heads = Vec::new();
        for base in hints.iter().filter_map(|h| h.base.as_deref()) {
            let short = base.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
            for name in [base, short] {
                if let Ok(name) = name.parse::<VersionRef>()
                    && let Some(head) = self.ask.find(&name)?
                {
                    heads.push(head);
                    break;
                }
            }
        }
        Ok(heads)
    }

    /// Stored versions that were made from the new one, as their content shows. Those that have a parent that somebody
    /// named, or that is nearer, keep it.
    fn reversed(&mut self) -> Result<Vec<Move>, RepoError> {
        let kin = self.trials.iter().filter(|t| is_kin(t));
        let of = |t: &Trial| Some((t.head.id, backwards(t, &self.mine)?, t.distance_back(), t.distance()));
        let found: Vec<_> =
            kin.filter_map(of).filter(|(_, _, back, there)| *back < 0.02 || 2.0 * back < *there).collect();
        let mut moves = Vec::new();
        for (child, relation, distance, _) in found {
            let Some(a) = self.above(&child)? else { continue };
            let nearer = |e: &ParentEdge| e.distance.is_some_and(|d| distance < d.0);
            if a.previous.is_none() && a.parents.iter().all(|(_, e)| nearer(e)) && a.parents.len() < 2 {
                let from = a.parents.first().map(|(h, _)| h.id);
                let edge = ParentEdge { distance: Some(Real(distance)), ..ParentEdge::new(NEW, relation) };
                moves.push(Move { child, from, to: vec![edge], follow: false });
            }
        }
        Ok(moves)
    }

    /// Stored versions that turn out to be merges in which the new one took part; their members that hung on them find
    /// another parent.
    fn merges_with_new(&mut self) -> Result<Vec<Move>, RepoError> {
        let mut moves: Vec<Move> = Vec::new();
        let simple = self.simple_hits();
        for target in self.hits.clone().iter().take(MERGES) {
            let Some(from) = self.movable(target)? else { continue };
            let members = mix::members_of(target, &simple, &self.versions, &self.searched);
            if members.is_empty() {
                continue;
            }
            let edge = |(id, c): &(Option<Id>, f64)| {
                let edge = ParentEdge::new(id.unwrap_or(NEW), Relation::Merge);
                ParentEdge { coefficient: Some(Real(*c)), distance: Some(Real(0.0)), ..edge }
            };
            for member in members.iter().filter_map(|(id, _)| *id) {
                moves.extend(self.away_from(&member, target, &simple)?);
            }
            moves.push(Move { child: target.id, from, to: members.iter().map(edge).collect(), follow: false });
        }
        Ok(moves)
    }

    /// Whether what a version comes from was told by its content alone, and if so, from what.
    fn movable(&mut self, hit: &Hit) -> Result<Option<Option<Id>>, RepoError> {
        if let Some((from, _)) = self.guessed(hit)? {
            return Ok(Some(Some(from)));
        }
        let root = self.above(&hit.id)?.is_some_and(|a| a.parents.is_empty() && a.previous.is_none());
        Ok((root && self.repo.record(&hit.id)?.origin.is_some()).then_some(None))
    }

    /// The near versions that are no merges.
    fn simple_hits(&self) -> Vec<Hit> {
        self.hits.iter().filter(|h| !self.is_mixed(&h.id)).cloned().collect()
    }

    fn is_mixed(&self, id: &Id) -> bool {
        matches!(self.asked.get(id), Some(Some(above)) if above.parents.len() > 1)
    }

    /// A member of a merge that hung on it: to the nearest of the others that does not come from it.
    fn away_from(&mut self, member: &Id, merge: &Hit, simple: &[Hit]) -> Result<Option<Move>, RepoError> {
        let Some(hit) = self.hits.iter().find(|h| h.id == *member).cloned() else { return Ok(None) };
        let Some((from, _)) = self.guessed(&hit)?.filter(|(from, _)| *from == merge.id) else { return Ok(None) };
        let ups = self.ups()?;
        let apart = |h: &&Hit| Some((h.id, search::apart(&self.versions[hit.seq], &self.versions[h.seq])?));
        let others = simple.iter().filter(|h| h.id != merge.id && h.id != hit.id);
        let others = others.filter(|h| !moves::is_below(h.id, &HashSet::from([hit.id, merge.id]), &ups));
        let mut others: Vec<(Id, f64)> = others.filter_map(|h| apart(&h)).collect();
        others.sort_by(|a, b| a.1.total_cmp(&b.1));
        // Of those equally near, the one with the fewest tensors: a base without a head.
        let side = |id: &Id| self.repo.record(id).and_then(|r| Side::of_version(self.repo, &r));
        let tensors = |o: &&(Id, f64)| side(&o.0).map_or(usize::MAX, |s| s.tensors.len());
        let nearest = others.iter().take_while(|o| o.1 <= others[0].1 * (1.0 + moves::EQUAL));
        let Some(&(to, far)) = nearest.min_by_key(tensors) else { return Ok(None) };
        let edge =
            ParentEdge { guess: true, distance: Some(Real(far.sqrt())), ..ParentEdge::new(to, Relation::Finetune) };
        Ok(Some(Move { child: hit.id, from: Some(from), to: vec![edge], follow: false }))
    }

    /// The move of a guessed edge to the new version.
    fn moved(&mut self, child: &Id) -> Result<Option<Move>, RepoError> {
        let Some(hit) = self.hits.iter().find(|h| h.id == *child).cloned() else { return Ok(None) };
        let (Some((from, _)), Some(a)) = (self.guessed(&hit)?, self.above(child)?) else { return Ok(None) };
        let distance = Some(Real(hit.distance.sqrt()));
        let relation = a.parents.first().map_or(Relation::Finetune, |(_, e)| e.relation);
        let edge = ParentEdge { guess: is_symmetric(relation), distance, ..ParentEdge::new(NEW, relation) };
        let follow = a.head.model == *self.new.model;
        Ok(Some(Move { child: *child, from: Some(from), to: vec![edge], follow }))
    }

    fn mix(&mut self, one: Id) -> Result<Option<mix::Mix>, RepoError> {
        let exact = self.trials.iter().any(|t| t.head.id == one && t.distance() == 0.0);
        if exact || self.hits.len() < 2 {
            return Ok(None);
        }
        for id in mix::members(&self.hits, &self.versions, &self.searched) {
            if let (false, Some(d)) = (self.trials.iter().any(|t| t.head.id == id), self.above(&id)?) {
                self.trials.extend(trial(self.repo, d.head, &self.side, &self.mine));
            }
        }
        let mut all: Vec<&Trial> = self.trials.iter().filter(|t| is_kin(t)).collect();
        all.sort_by(|a, b| a.distance().total_cmp(&b.distance()).then(a.head.seq.cmp(&b.head.seq)));
        // A mix of mixes is rather one of what these were mixed from.
        let simple: Vec<&Trial> = all.iter().copied().filter(|t| !self.is_mixed(&t.head.id)).collect();
        Ok(mix::fit(&simple, &self.mine).or_else(|| mix::fit(&all, &self.mine)))
    }

    fn several(&mut self, mix: &mix::Mix) -> Result<Found, RepoError> {
        let head = |id: &Id| self.trials.iter().find(|t| t.head.id == *id).expect("a member was tried").head.clone();
        let mut members: Vec<(Head, f64)> = mix.members.iter().map(|(id, c)| (head(id), *c)).collect();
        members.sort_by_key(|(h, _)| h.seq);
        let relation = merged(self.new.model, &members.iter().map(|(h, _)| h.clone()).collect::<Vec<_>>());
        let names: Vec<String> = members.iter().map(|(h, c)| format!("{:.4} {}", c, label(h))).collect();
        let origin = Origin {
            confidence: Some(Real(0.99)),
            distance: Some(Real(mix.distance)),
            evidence: format!("a mix of {}; relative distance {:.2e}", names.join(" + "), mix.distance),
            ..Origin::default()
        };
        let mut found = Found { origin, ..Found::default() };
        for (head, c) in members {
            if head.model == *self.new.model && found.previous.is_none() {
                found.previous = Some(head);
            } else if head.model != *self.new.model {
                let distance = Some(Real(mix.distance));
                let edge = ParentEdge { coefficient: Some(Real(c)), distance, ..ParentEdge::new(head.id, relation) };
                found.parents.push((head, edge));
            }
        }
        Ok(found)
    }

    fn single(&mut self, one: Id) -> Result<Found, RepoError> {
        let t = self.trials.iter().find(|t| t.head.id == one).expect("it was tried");
        let relation = relation(t, &self.side, &self.mine);
        let others: Vec<&Trial> = self.trials.iter().filter(|o| o.head.id != one && is_kin(o)).collect();
        let sure = decide::confidence(t, &others, relation);
        let origin = Origin {
            confidence: Some(Real((sure * 100.0).round() / 100.0)),
            identical: Some(Real(t.identical)),
            distance: Some(Real(t.distance())),
            evidence: decide::evidence(t, relation),
            ..Origin::default()
        };
        let head = t.head.clone();
        let distance = Some(Real(t.distance()));
        let edge = ParentEdge { guess: is_symmetric(relation), distance, ..ParentEdge::new(head.id, relation) };
        Ok(match head.model == *self.new.model {
            true => Found { previous: Some(head), origin, ..Found::default() },
            false => Found { parents: vec![(head, edge)], origin, ..Found::default() },
        })
    }

    /// An adapter shares no tensor with its base: there the configuration's word is all there is.
    fn by_hint(&mut self, hints: &[Hint]) -> Result<Found, RepoError> {
        let adapter = hints.iter().any(|h| h.adapter);
        let base = self.hinted(hints)?.into_iter().find(|h| h.model != *self.new.model);
        let evidence = "no stored version is like it".to_owned();
        Ok(match base.filter(|_| adapter && self.fits_adapter()) {
            Some(head) => Found {
                origin: Origin {
                    confidence: Some(Real(0.5)),
                    evidence: "an adapter, whose configuration names its base".to_owned(),
                    ..Origin::default()
                },
                parents: vec![(head.clone(), ParentEdge::new(head.id, Relation::Adapter))],
                ..Found::default()
            },
            None => Found { origin: Origin { evidence, ..Origin::default() }, ..Found::default() },
        })
    }

    /// Low-rank or otherwise small: an adapter's tensors, not a model's.
    fn fits_adapter(&self) -> bool {
        self.side.tensors.iter().any(|t| t.name.to_lowercase().contains("lora") || t.name.contains("adapter"))
            || self.new.files.iter().any(|f| f.name == "adapter_config.json")
    }

    /// The one parent or predecessor of a version that only its content suggested, and how far it is away.
    fn guessed(&mut self, hit: &Hit) -> Result<Option<(Id, f64)>, RepoError> {
        let Some(a) = self.above(&hit.id)? else { return Ok(None) };
        let from = match (&a.parents[..], &a.previous) {
            ([(h, edge)], _) if edge.distance.is_some() => h.id,
            ([], Some(previous)) if a.head.guess => previous.id,
            _ => return Ok(None),
        };
        let Some(parent) = self.versions.iter().find(|v| v.id == from) else { return Ok(None) };
        Ok(search::apart(&self.versions[hit.seq], parent).map(|apart| (from, apart)))
    }
}

fn duplicate(twin: &Head) -> Found {
    let origin = Origin {
        confidence: None,
        identical: Some(Real(1.0)),
        evidence: format!("a duplicate of {}: every file is the same", label(twin)),
        duplicate_of: Some(twin.id),
        ..Origin::default()
    };
    Found { origin, ..Found::default() }
}
