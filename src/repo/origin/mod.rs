//! Where a new version comes from, told from its content: which stored versions, by what operation, and how sure.
//!
//! 1. [`search`] looks at the sketches of all versions: the cost is a few milliseconds for thousands.
//! 2. The nearest few, what these come from, and what a model card names are put to a [`trial`] on a window of each
//!    matrix; [`mix`] asks whether several together are what one is not.
//! 3. [`decide`] names edges from that evidence. A new version may also turn out to be the parent of older ones, a member
//!    of a merge, or to stand between two: [`kin`] and [`tree`] say which guessed edges move then ([`Move`]).
//!
//! Nothing here changes anything. Edges that people named are never questioned.

mod decide;
mod face;
mod hint;
mod kin;
mod mix;
mod search;
mod tree;
mod trial;
mod window;

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
use decide::{best, is_kin, is_symmetric, relation};
use hint::Hint;
use search::Hit;
use trial::Trial;
use window::Weights;

/// Versions that are tried for their own sake, and at most with what these lead to.
const TRIED: usize = 16;
const MAX_TRIED: usize = 32;
/// Near versions that are looked at at all.
const MAX_LIVING: usize = 2 * mix::MAX_MEMBERS;
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
    /// Its parents, or its predecessor, until now.
    pub from: Vec<Id>,
    /// Its parents from now on.
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
    let rows = window::sketched(&side).iter().map(|w| w.tensor).collect();
    let lanes = search::lanes_of(&side);
    let hits = search::search(&versions, &lanes, &searched);
    let hints = hint::hints(new.files);
    let mut finder = Finder {
        repo,
        ask,
        new,
        side,
        lanes,
        mine,
        searched,
        rows,
        versions,
        hits,
        asked: HashMap::new(),
        trials: vec![],
    };
    let mut found = finder.find(&hints)?;
    found.origin.hints = hints.into_iter().map(|h| h.text).collect();
    Ok(found)
}

/// Sketches what was committed, so that no later search has to.
pub fn remember(repo: &Arc<Repo>, ask: &mut dyn Ask, progress: &dyn Progress) {
    if let Err(e) = search::remember(repo, ask, progress) {
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
    let told = |e| log::log!(search::level_of(&e), "{} is not tried as a parent: {e}", label(&head));
    let side = side.map_err(told).ok()?;
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
    /// Its tensors that stand for it.
    rows: Vec<usize>,
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
        let mut moves = self.reversed()?;
        let excluded = self.excluded(&moves)?;
        let mix = self.best(&excluded).map_or(Ok(None), |best| self.mix(best))?;
        if mix.is_none() {
            let merges = self.merges_with_new()?;
            moves.extend(self.loosened(&merges)?);
            moves.extend(merges);
        }
        let excluded = self.excluded(&moves)?;
        let mut found = match (mix, self.best(&excluded)) {
            (Some(mix), _) => {
                let members: Vec<Id> = mix.members.iter().map(|(id, _)| *id).collect();
                moves.extend(self.rehung(&moves, &members)?.1);
                self.several(&mix)?
            }
            (None, Some(best)) => {
                let (parent, rehung) = self.rehung(&moves, &[best])?;
                moves.extend(rehung);
                let parent = parent.filter(|p| self.is_tried(p));
                self.single(parent.unwrap_or(best))?
            }
            (None, None) => self.by_hint(hints)?,
        };
        found.near = moves.iter().filter(|m| m.to.iter().any(|e| e.id == NEW)).map(|m| m.child).collect();
        found.near.sort_unstable();
        let own = found.parents.iter().map(|(h, _)| h.id).chain(found.previous.as_ref().map(|h| h.id)).collect();
        moves.splice(0..0, self.yielding(&moves, own)?);
        found.precedes = self.precedes(&moves)?;
        found.moves = moves;
        Ok(found)
    }

    /// The best parent of those that were tried.
    fn best(&self, excluded: &HashSet<Id>) -> Option<Id> {
        let trials = self.trials.iter().filter(|t| !excluded.contains(&t.head.id));
        best(trials, &self.side, &self.mine, self.new.model.as_str()).map(|t| t.head.id)
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
            if living.len() >= MAX_LIVING {
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
        let mut read = 0..MAX_TRIED;
        for id in same {
            let Some(above) = self.above(&id)? else { continue };
            if read.next().is_none() {
                break;
            }
            if self.repo.record(&id).is_ok_and(|record| self.has_same_files(&record)) {
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
        let near = &self.hits[..self.hits.len().min(mix::MAX_MEMBERS)];
        let nearest = search::candidates(near, &self.versions, &self.mine, TRIED);
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

    /// Versions that cannot be the new one's parent: what was made from it, and merges that lie around it.
    fn excluded(&mut self, moves: &[Move]) -> Result<HashSet<Id>, RepoError> {
        let mut out = self.merges_around()?;
        let made: Vec<Id> = moves.iter().filter(|m| m.to.iter().any(|e| e.id == NEW)).map(|m| m.child).collect();
        let ups = self.ups_after(moves)?;
        let above = |id: &Id| ups.get(id).cloned().unwrap_or_default();
        let below = |id: &Id| made.iter().any(|m| tree::is_below(*id, *m, above));
        out.extend(self.trials.iter().map(|t| t.head.id).filter(below));
        Ok(out)
    }

    /// Does the newest version of the new one's model come from it, or from what it took part in?
    fn precedes(&mut self, moves: &[Move]) -> Result<bool, RepoError> {
        let Some(newest) = self.newest()? else { return Ok(false) };
        let ups = self.ups_after(moves)?;
        Ok(tree::is_below(newest.id, NEW, |id: &Id| ups.get(id).cloned().unwrap_or_default()))
    }

    /// Tries it however many were.
    fn is_tried(&mut self, id: &Id) -> bool {
        if !self.trials.iter().any(|t| t.head.id == *id)
            && let Ok(Some(above)) = self.above(id)
        {
            self.trials.extend(trial(self.repo, above.head, &self.side, &self.mine));
        }
        self.trials.iter().any(|t| t.head.id == *id)
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
        let own = face::shapes(&self.side);
        // Of twins, a base rather than one with a head of its own.
        let other = |t: &Trial| (face::differing(&own, &face::shapes(&t.side)), t.head.seq);
        all.sort_by(|a, b| a.distance().total_cmp(&b.distance()).then_with(|| other(a).cmp(&other(b))));
        // A mix of mixes is rather one of what these were mixed from.
        let simple: Vec<&Trial> = all.iter().copied().filter(|t| !self.is_mixed(&t.head.id)).collect();
        let found = mix::fit(&simple, &self.mine).or_else(|| mix::fit(&all, &self.mine));
        Ok(found.filter(|m| !m.is_beyond()))
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
