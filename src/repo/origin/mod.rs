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
pub mod search;
pub mod trial;
pub mod window;

use std::sync::Arc;

use super::diff::side::Side;
use super::engine::{Above, label};
use super::hash::HashedFile;
use super::progress::Progress;
use super::{Head, Repo, RepoError};
use crate::model::id::Id;
use crate::model::name::{ModelName, VersionRef};
use crate::model::record::{EntryKind, Origin, ParentEdge, Real, Relation, VersionRecord};
use crate::store::sketches::VersionSketch;
use decide::{backwards, best, is_kin, is_symmetric, relation};
use hint::Hint;
use search::Hit;
use trial::Trial;
use window::Weights;

/// Versions that are tried for their own sake, and at most with what these lead to.
const TRIED: usize = 16;
const MAX_TRIED: usize = 32;
/// Near versions whose edges may have to move.
const MOVED: usize = 32;
/// An edge moves to a new version that is nearer by this factor (mean squares).
const NEARER: f64 = 0.75;

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

/// A guessed edge that the new version knows better.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Move {
    pub child: Id,
    /// Its parent until now, if it has one.
    pub from: Option<Id>,
    pub relation: Relation,
    pub guess: bool,
}

/// Where the new version comes from.
#[derive(Default)]
pub struct Found {
    /// A version of the same model that it follows.
    pub previous: Option<Head>,
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
    let lanes = crate::store::sketches::lanes(side.tensors.iter().map(|t| &t.id));
    let hits = search::search(&versions, &lanes, &searched);
    let hints = hint::hints(new.files);
    let mut finder = Finder { repo, ask, new, side, mine, searched, versions, hits, asked: Vec::new(), trials: Vec::new() };
    let mut found = finder.find(&hints)?;
    found.origin.hints = hints.into_iter().map(|h| h.text).collect();
    Ok(found)
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
    let federated = mix::is_federated(&[model.as_str()], &members.iter().collect::<Vec<_>>());
    if federated { Relation::Federated } else { Relation::Merge }
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
    mine: Vec<Weights>,
    searched: Vec<Weights>,
    versions: Vec<VersionSketch>,
    hits: Vec<Hit>,
    /// Those asked for, dead ones too.
    asked: Vec<(Id, Option<Above>)>,
    trials: Vec<Trial>,
}

impl Finder<'_> {
    fn find(&mut self, hints: &[Hint]) -> Result<Found, RepoError> {
        self.keep_living()?;
        if let Some(twin) = self.duplicate()? {
            return Ok(duplicate(&twin));
        }
        self.try_nearest(hints)?;
        let reversed: Vec<(Id, Relation)> = self.reversed();
        let forward = |t: &&Trial| !reversed.iter().any(|(id, _)| *id == t.head.id);
        let model = self.new.model.as_str();
        let Some(one) = best(self.trials.iter().filter(forward), &self.side, &self.mine, model).map(|t| t.head.id) else {
            let mut found = self.by_hint(hints)?;
            found.moves = self.reversed_moves(&reversed)?;
            found.near = reversed.iter().map(|(id, _)| *id).collect();
            return Ok(found);
        };
        let mut found = match self.mix(one)? {
            Some(mix) => self.several(&mix)?,
            None => self.single(one)?,
        };
        found.moves.extend(self.reversed_moves(&reversed)?);
        self.move_nearer(&mut found)?;
        Ok(found)
    }

    fn above(&mut self, id: &Id) -> Result<Option<Above>, RepoError> {
        if let Some((_, known)) = self.asked.iter().find(|(known, _)| known == id) {
            return Ok(known.clone());
        }
        let above = self.ask.above(id)?;
        self.asked.push((*id, above.clone()));
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
        let lanes = crate::store::sketches::lanes(self.side.tensors.iter().map(|t| &t.id));
        let same: Vec<Id> = self.versions.iter().filter(|v| v.lanes == lanes).map(|v| v.id).collect();
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

    /// Stored versions that were made from the new one, as their content shows.
    fn reversed(&self) -> Vec<(Id, Relation)> {
        let kin = self.trials.iter().filter(|t| is_kin(t));
        let of = |t: &Trial| {
            let exact = t.distance_back() < 0.02 || t.distance_back() < 0.5 * t.distance();
            backwards(t, &self.mine).filter(|_| exact).map(|r| (t.head.id, r))
        };
        kin.filter_map(of).collect()
    }

    /// Edges to versions that were made from the new one. Those that have a parent that was named keep it.
    fn reversed_moves(&mut self, reversed: &[(Id, Relation)]) -> Result<Vec<Move>, RepoError> {
        let mut moves = Vec::new();
        for (child, relation) in reversed {
            let Some(d) = self.above(child)? else { continue };
            if d.previous.is_none() && d.parents.iter().all(|(_, e)| e.guess) && d.parents.len() < 2 {
                let from = d.parents.first().map(|(h, _)| h.id);
                moves.push(Move { child: *child, from, relation: *relation, guess: false });
            }
        }
        Ok(moves)
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
        let mixed = |id: &Id| {
            let known = self.asked.iter().find(|(known, _)| known == id);
            known.and_then(|(_, above)| above.as_ref()).is_some_and(|a| a.parents.len() > 1)
        };
        let simple: Vec<&Trial> = all.iter().copied().filter(|t| !mixed(&t.head.id)).collect();
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
                let edge = ParentEdge { coefficient: Some(Real(c)), ..ParentEdge::new(head.id, relation) };
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
        let edge = ParentEdge { guess: is_symmetric(relation), ..ParentEdge::new(head.id, relation) };
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

    /// Moves the guessed edges of versions that are nearer to the new one than to their parent.
    fn move_nearer(&mut self, found: &mut Found) -> Result<(), RepoError> {
        let [(parent, edge)] = &found.parents[..] else { return Ok(()) };
        if edge.relation != Relation::Finetune || found.previous.is_some() {
            return Ok(());
        }
        let parent = parent.id;
        for hit in self.hits.clone().into_iter().take(MOVED) {
            let Some((from, apart)) = self.guessed(&hit)? else { continue };
            if hit.distance > NEARER * apart || found.moves.iter().any(|m| m.child == hit.id) {
                continue;
            }
            let step = Move { child: hit.id, from: Some(from.id), relation: Relation::Finetune, guess: true };
            if hit.id != parent {
                found.moves.push(step);
            } else if self.hits.iter().any(|h| h.id == from.id && h.distance < NEARER * apart) {
                // Between the two.
                found.parents[0] = (from.clone(), ParentEdge { id: from.id, ..found.parents[0].1 });
                found.moves.push(step);
            }
        }
        Ok(())
    }

    /// The guessed parent of a fine-tune, and how far away it is by their sketches.
    fn guessed(&mut self, hit: &Hit) -> Result<Option<(Head, f64)>, RepoError> {
        let Some(d) = self.above(&hit.id)? else { return Ok(None) };
        let [(head, edge)] = &d.parents[..] else { return Ok(None) };
        if !edge.guess || edge.relation != Relation::Finetune || d.previous.is_some() {
            return Ok(None);
        }
        let Some(parent) = self.versions.iter().find(|v| v.id == edge.id) else { return Ok(None) };
        let apart = search::apart(&self.versions[hit.seq], parent).filter(|a| *a > 0.0);
        Ok(apart.map(|a| (head.clone(), a)))
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
