//! The update cascade as values: which models are made again, from what and in which order, after a version gave way to a
//! later one; how far that has come; and which versions are stale.
//!
//! A version carries the old one when it is made from it, or from one that carries it. A version without parents of its own
//! is made from what its predecessor is made from. Of each model only the newest version counts, and each model is one step
//! at most. A step comes after the steps that it is made from; where models go round in a circle, the one that is oldest
//! goes first, made from what there is.
//!
//! It doesn't know how a version is made, nor when.

use std::collections::{BTreeSet, HashMap, HashSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::id::Id;
use super::lineage::Lineage;
use super::name::{ModelName, VersionName};
use super::record::{Real, Relation};
use super::test::Glob;

/// A version, as far as a plan needs it. A repository's are in commit order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fact {
    pub id: Id,
    pub model: ModelName,
    pub version: VersionName,
    pub removed: bool,
    pub previous: Option<Id>,
    pub parents: Vec<(Id, Relation)>,
}

/// What limits a cascade.
#[derive(Clone, Default, Debug)]
pub struct Limits {
    /// None but these.
    pub only: Vec<Glob>,
    /// Not these.
    pub skip: Vec<Glob>,
    /// These, but nothing below them.
    pub stop_at: Vec<Glob>,
}

/// What a step is made from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum From {
    Version(Id),
    /// What that step makes.
    Step(usize),
}

/// One model to be made again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Step {
    pub model: ModelName,
    /// Its newest version, which the new one will follow.
    pub old: Id,
    pub parents: Vec<(From, Relation)>,
}

/// Why a model that carries the old version is not made again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    NoRecipe,
    Skipped,
    /// Below one where the cascade stops.
    BeyondStop,
    /// None of what it is made from is made again.
    NothingNew,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Left {
    pub model: ModelName,
    pub old: Id,
    pub why: Why,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Plan {
    pub old: Id,
    pub new: Id,
    /// In an order in which they can be done.
    pub steps: Vec<Step>,
    pub left: Vec<Left>,
    /// The gate: the share of examples that may have been right before and be wrong now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_negative_flips: Option<Real>,
    pub made: Timestamp,
}

/// How far a step is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Waiting,
    /// Its files lie in the kept directory of a run.
    Built {
        run: String,
    },
    Done {
        id: Id,
    },
    Failed {
        why: String,
    },
}

/// A plan and how far each of its steps is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cascade {
    pub plan: Plan,
    pub states: Vec<State>,
}

impl Cascade {
    pub fn new(plan: Plan) -> Cascade {
        Cascade { states: vec![State::Waiting; plan.steps.len()], plan }
    }

    pub fn set(&mut self, step: usize, state: State) {
        if let Some(s) = self.states.get_mut(step) {
            *s = state;
        }
    }

    /// What a step is made from, once all of it is there.
    pub fn parents(&self, step: usize) -> Option<Vec<(Id, Relation)>> {
        let made = |(from, relation): &(From, Relation)| match from {
            From::Version(id) => Some((*id, *relation)),
            From::Step(n) => match self.states.get(*n)? {
                State::Done { id } => Some((*id, *relation)),
                _ => None,
            },
        };
        self.plan.steps.get(step)?.parents.iter().map(made).collect()
    }

    /// The first step that can be done now, but for those that are `taken`.
    pub fn ready(&self, taken: &HashSet<usize>) -> Option<usize> {
        let open = |n: &usize| matches!(self.states[*n], State::Waiting | State::Built { .. });
        (0..self.states.len()).find(|n| open(n) && !taken.contains(n) && self.parents(*n).is_some())
    }

    pub fn is_done(&self) -> bool {
        self.states.iter().all(|s| matches!(s, State::Done { .. }))
    }

    /// Directories of runs that must be kept.
    pub fn runs(&self) -> Vec<String> {
        let run = |s: &State| match s {
            State::Built { run } => Some(run.clone()),
            _ => None,
        };
        self.states.iter().filter_map(run).collect()
    }
}

/// The versions of a repository by what they are made from.
pub struct Facts<'a> {
    all: &'a [Fact],
    at: HashMap<Id, usize>,
    newest: HashMap<&'a ModelName, usize>,
}

impl<'a> Facts<'a> {
    pub fn new(all: &'a [Fact]) -> Facts<'a> {
        let at = all.iter().enumerate().map(|(n, f)| (f.id, n)).collect();
        let newest = all.iter().enumerate().filter(|(_, f)| !f.removed).map(|(n, f)| (&f.model, n)).collect();
        Facts { all, at, newest }
    }

    pub fn get(&self, id: &Id) -> Option<&'a Fact> {
        self.at.get(id).map(|&n| &self.all[n])
    }

    /// Whether one was committed after the other.
    pub fn is_later(&self, a: &Id, than: &Id) -> bool {
        self.at.get(a) > self.at.get(than)
    }

    /// A version and its predecessors, nearest first.
    pub fn line(&self, id: Id) -> impl Iterator<Item = &'a Fact> + use<'a, '_> {
        let mut seen = HashSet::new();
        let mut next = Some(id);
        std::iter::from_fn(move || {
            let fact = self.get(&next.filter(|id| seen.insert(*id))?)?;
            next = fact.previous;
            Some(fact)
        })
    }

    /// What a version is made from, by its own edges or those of its nearest predecessor that has any.
    fn made_from(&self, id: Id) -> &'a [(Id, Relation)] {
        self.line(id).find(|f| !f.parents.is_empty()).map_or(&[], |f| &f.parents)
    }

    /// The old version, those between it and the new one, and all that carry them.
    fn carriers(&self, old: &Fact, new: &Fact) -> HashSet<Id> {
        let line: Vec<Id> = self.line(new.id).map(|f| f.id).collect();
        let between = line.iter().position(|id| *id == old.id).map_or(&[][..], |at| &line[1..at]);
        let mut found: HashSet<Id> = between.iter().copied().chain([old.id]).collect();
        let mut below: HashMap<Id, Vec<Id>> = HashMap::new();
        for fact in self.all.iter().filter(|f| f.model != old.model) {
            self.made_from(fact.id).iter().for_each(|(p, _)| below.entry(*p).or_default().push(fact.id));
        }
        let mut queue: Vec<Id> = found.iter().copied().collect();
        while let Some(id) = queue.pop() {
            queue.extend(below.get(&id).into_iter().flatten().filter(|c| found.insert(**c)));
        }
        found
    }
}

/// Plans the cascade after `new` came in the place of `old`, which must be versions of one model.
pub fn plan(
    facts: &Facts,
    old: &Fact,
    new: &Fact,
    has_recipe: &dyn Fn(&Fact) -> bool,
    limits: &Limits,
    made: Timestamp,
) -> Plan {
    let carriers = facts.carriers(old, new);
    let plan = Plan { old: old.id, new: new.id, steps: vec![], left: vec![], max_negative_flips: None, made };
    let mut planner = Planner { facts, old, new, carriers, has_recipe, limits, done: HashMap::new(), plan };
    let carry = |n: &&usize| planner.carriers.contains(&facts.all[**n].id) && facts.all[**n].model != old.model;
    let mut open: BTreeSet<usize> = facts.newest.values().filter(carry).copied().collect();
    while !open.is_empty() {
        let ready = open.iter().copied().find(|n| planner.waits_for(*n).all(|m| !open.contains(&m)));
        let next = ready.or(open.first().copied()).expect("it is not empty");
        open.remove(&next);
        planner.decide(next);
    }
    planner.plan
}

struct Planner<'a> {
    facts: &'a Facts<'a>,
    old: &'a Fact,
    new: &'a Fact,
    carriers: HashSet<Id>,
    has_recipe: &'a dyn Fn(&Fact) -> bool,
    limits: &'a Limits,
    /// By model: its step, and whether the cascade stops there.
    done: HashMap<&'a ModelName, (usize, bool)>,
    plan: Plan,
}

impl<'a> Planner<'a> {
    /// The newest versions of the models that it is made from.
    fn waits_for(&self, n: usize) -> impl Iterator<Item = usize> {
        let fact = &self.facts.all[n];
        let parents = self.facts.made_from(fact.id).iter().filter_map(|(p, _)| self.facts.get(p));
        parents.filter(|p| p.model != fact.model).filter_map(|p| self.facts.newest.get(&p.model).copied())
    }

    /// What comes in a parent's place.
    fn instead(&self, parent: Id) -> From {
        let Some(fact) = self.facts.get(&parent) else { return From::Version(parent) };
        if let Some((step, _)) = self.done.get(&fact.model) {
            return From::Step(*step);
        }
        let place = |id: &Id| self.facts.at.get(id).copied();
        let newest = match fact.model == self.old.model {
            true => place(&self.new.id),
            false => self.facts.newest.get(&fact.model).copied(),
        };
        From::Version(newest.filter(|n| Some(*n) > place(&parent)).map_or(parent, |n| self.facts.all[n].id))
    }

    fn decide(&mut self, n: usize) {
        let fact = &self.facts.all[n];
        let matches = |globs: &[Glob]| globs.iter().any(|g| g.matches(&fact.model, &fact.version));
        let mut parents: Vec<(From, Relation)> = Vec::new();
        let (mut fresh, mut beyond) = (false, false);
        for &(parent, relation) in self.facts.made_from(fact.id) {
            let from = self.instead(parent);
            let stopped = self.facts.get(&parent).and_then(|p| self.done.get(&p.model)).is_some_and(|d| d.1);
            let changed = from != From::Version(parent) && self.carriers.contains(&parent);
            fresh |= changed && !stopped;
            beyond |= stopped;
            if !parents.iter().any(|(f, _)| *f == from) {
                parents.push((from, relation));
            }
        }
        let why = match () {
            () if matches(&self.limits.skip) => Some(Why::Skipped),
            () if !self.limits.only.is_empty() && !matches(&self.limits.only) => Some(Why::Skipped),
            () if !fresh && beyond => Some(Why::BeyondStop),
            () if !(self.has_recipe)(fact) => Some(Why::NoRecipe),
            () if !fresh => Some(Why::NothingNew),
            () => None,
        };
        let (model, old) = (fact.model.clone(), fact.id);
        match why {
            Some(why) => self.plan.left.push(Left { model, old, why }),
            None => {
                self.done.insert(&fact.model, (self.plan.steps.len(), matches(&self.limits.stop_at)));
                self.plan.steps.push(Step { model, old, parents });
            }
        }
    }
}

/// Newest versions with a parent of which there is a newer version that they were not made from: the version, the parent,
/// the parent's newest.
pub fn stale<'a>(facts: &Facts<'a>) -> Vec<(&'a Fact, &'a Fact, &'a Fact)> {
    let edges = facts.all.iter().flat_map(|f| f.parents.iter().map(|p| p.0).chain(f.previous).map(|p| (p, f.id)));
    let lineage = Lineage::from_edges(edges.collect::<Vec<_>>());
    let mut newest: Vec<usize> = facts.newest.values().copied().collect();
    newest.sort_unstable();
    let mut found = Vec::new();
    for fact in newest.into_iter().map(|n| &facts.all[n]) {
        let parents = facts.made_from(fact.id);
        for parent in parents.iter().filter_map(|(p, _)| facts.get(p)).filter(|p| p.model != fact.model) {
            let Some(latest) = facts.newest.get(&parent.model).map(|&n| &facts.all[n]) else { continue };
            let newer = facts.at[&latest.id] > facts.at[&parent.id];
            let made_from_it = parents.iter().any(|(p, _)| *p == latest.id);
            if newer && !made_from_it && !lineage.descendants(fact.id).contains(&latest.id) {
                found.push((fact, parent, latest));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests;
