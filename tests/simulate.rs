//! Random commands on a simulated disk with seeded faults, against a model. A fault is a power cut, a killed process, an
//! operation that fails, or a full disk; it may come within the recovery from another. After each the repository opens,
//! what was acknowledged is whole, what was not is there wholly or not at all, what was seen stays, and fsck is clean.
//!
//! In the end something is damaged: a bit flips in a pack or the journal, or a file is lost or cut. Nothing is then read
//! wrong, fsck names every version that cannot be read, and repair gets back what is left, or all from the originals.
//!
//! `MGIT_TEST_SEEDS=N` runs seeds 0 to N - 1 for as long as it takes, `MGIT_TEST_SEEDS=A..B` those; without it some
//! hundred run, within a minute. A failing seed prints a line that runs it alone.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::lab::{Files, Lab, difference, write_tree};
use common::{Noise, Tensor, safetensors};
use jiff::Timestamp;
use mgit::codec::Effort;
use mgit::model::build::{Build, BuildFile};
use mgit::model::cascade::{self, Cascade, Plan, State};
use mgit::model::event::Event;
use mgit::model::id::Id;
use mgit::model::name::VersionRef;
use mgit::model::record::{EntryKind, Relation};
use mgit::repo::engine::{Detail, Engine, label};
use mgit::repo::fsck::{Finding, Report, fsck};
use mgit::repo::gc::{Rules, collect};
use mgit::repo::history::history;
use mgit::repo::house::{Ask, answer};
use mgit::repo::progress::Silent;
use mgit::repo::repack::{self, Target, Web};
use mgit::repo::repair;
use mgit::repo::work::{self, Publication, check_files};
use mgit::repo::{Head, Repo, RepoError};
use mgit::store::packs::FEW;
use mgit::store::sim::{Fault, SimDisk};
use mgit::store::{Catalog, StoreError, lock_exclusive};

/// Steps of one seed.
const STEPS: usize = 14;
/// Without the variable: seeds, and how long at most.
const SEEDS: u64 = 400;
const LIMIT: Duration = Duration::from_secs(40);
const MODELS: [&str; 4] = ["a", "b", "x/c", "x/d"];

/// How often each kind of fault happened.
type Faults = BTreeMap<String, u64>;

/// What goes wrong within a step.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Wrong {
    PowerCut,
    Killed,
    /// One operation fails.
    Broken,
    /// Several.
    Breaking,
    Full,
    Nothing,
}

#[derive(Clone, Debug)]
enum Step {
    Import {
        model: usize,
        input: usize,
        parents: Vec<Id>,
        previous: Option<Id>,
        with: With,
    },
    /// A draft that settles, in the place of a settled version or as a new one.
    Settle {
        model: usize,
        input: usize,
        again: Option<Id>,
    },
    /// A lossy version in the place of the exact one.
    Lossy(Id, usize),
    Seal(Id),
    Recipe(Id, Option<usize>),
    Update(Id, Id),
    /// Of the update.
    Progress(State),
    Remove(Vec<Id>),
    Undo,
    Link(Id, Id),
    Unlink(Id, Id),
    Tag(Id, &'static str),
    Untag(String, String),
    Rename(String, &'static str),
    Gc {
        grace: bool,
        percent: u8,
    },
    Repack(Id, Vec<Id>),
    Reopen,
}

/// What a version is published with, or not at all.
#[derive(Clone, Default, Debug)]
struct With {
    recipe: Option<usize>,
    step: bool,
}

#[derive(Clone, PartialEq, Debug)]
struct Version {
    model: String,
    version: String,
    removed: bool,
    settled: bool,
    parents: BTreeSet<Id>,
    previous: Option<Id>,
}

/// What can be seen of a repository.
#[derive(Clone, Default, PartialEq, Debug)]
struct World {
    versions: BTreeMap<Id, Version>,
    tags: BTreeMap<(String, String), Id>,
    recipes: BTreeMap<Id, Build>,
    update: Option<Cascade>,
}

impl World {
    /// Who lives under the name of a removed version.
    fn owner(&self, gone: &Id) -> Option<Id> {
        let v = &self.versions[gone];
        let is =
            |(id, o): &(&Id, &Version)| *id != gone && !o.removed && (&o.model, &o.version) == (&v.model, &v.version);
        self.versions.iter().find(is).map(|(id, _)| *id)
    }

    /// One goes, and all that hung on it hangs on its heir.
    fn inherit(&mut self, old: Id, heir: Id) {
        for v in self.versions.values_mut() {
            if v.parents.remove(&old) {
                v.parents.insert(heir);
            }
            v.previous = v.previous.map(|p| if p == old { heir } else { p });
        }
        let model = self.versions[&old].model.clone();
        let tags = self.tags.iter_mut().filter(|((m, _), id)| *m == model && **id == old);
        tags.for_each(|(_, id)| *id = heir);
        let recipe = self.recipes.get(&old).cloned();
        self.recipes.extend(recipe.map(|r| (heir, r)));
        self.versions.get_mut(&old).unwrap().removed = true;
    }
}

/// What was done, beside what can be seen.
#[derive(Clone, Default)]
struct Past {
    /// Removals that can be undone, the last last.
    removals: Vec<Vec<Id>>,
    inputs: BTreeMap<Id, usize>,
}

struct Inputs {
    lab: Lab,
    files: Vec<Files>,
}

impl Inputs {
    fn new() -> Inputs {
        let lab = Lab::new();
        let mut noise = Noise(11);
        let base: Vec<f32> = (0..2000).map(|_| noise.normal()).collect();
        let mut files = Vec::new();
        for i in 0..8 {
            let moved: Vec<f32> = base.iter().map(|v| v + noise.normal() * 1e-4 * i as f32).collect();
            let own: Vec<f32> = (0..400).map(|_| noise.normal()).collect();
            let tensors = [
                Tensor::f32("near.weight", &[50, 40], moved.into_iter()),
                Tensor::f32("own.weight", &[20, 20], own.into_iter()),
            ];
            let mut tree = Files::from([
                ("model.safetensors".to_owned(), Some(safetensors(&tensors))),
                ("vocab.txt".to_owned(), Some(vec![b'a' + (i % 3) as u8; 700])),
            ]);
            if i == 7 {
                tree.insert("large.bin".to_owned(), Some(noise.bytes(1_100_000)));
            }
            write_tree(&lab.input(&i.to_string()), &tree);
            files.push(tree);
        }
        Inputs { lab, files }
    }

    fn open(&self, sim: &SimDisk) -> Result<Engine, RepoError> {
        let repo = self.lab.open(sim, 1 << 19)?;
        let lock = lock_exclusive(&repo.disk, &repo.dir, false)?.expect("nobody else has the lock");
        Engine::with(repo, Catalog::temporary()?, lock)
    }
}

fn observe(engine: &Engine) -> World {
    let catalog = engine.catalog();
    let mut world = World::default();
    for h in catalog.ever_all().unwrap() {
        let parents = catalog.parents(&h.id).unwrap().iter().map(|p| p.id).collect();
        let (model, version) = (h.model.to_string(), h.version.to_string());
        for (tag, id) in catalog.tags(&h.model).unwrap() {
            world.tags.insert((model.clone(), tag.to_string()), id);
        }
        let (removed, settled, previous) = (h.removed, h.settled, h.previous);
        world.versions.insert(h.id, Version { model, version, removed, settled, parents, previous });
    }
    let builds = catalog.builds().unwrap().into_iter();
    world.recipes = builds.map(|id| (id, catalog.build(&id).unwrap().expect("it has a recipe"))).collect();
    world.update = catalog.cascade().unwrap();
    world
}

fn recipe(engine: &Engine, n: usize) -> Result<Build, RepoError> {
    let id = engine.repo.files().put(&[n as u8; 900])?;
    let files = vec![BuildFile { name: "train.py".to_owned(), id, executable: false }];
    Ok(Build { command: vec![format!("make {n}")], env: BTreeMap::new(), files, dir: "/".to_owned() })
}

fn plan(world: &World, old: Id, new: Id) -> Plan {
    let step = |old: &Id| cascade::Step {
        model: world.versions[old].model.parse().unwrap(),
        old: *old,
        parents: vec![(cascade::From::Version(new), Relation::Finetune)],
    };
    let steps = vec![step(&old), step(&new)];
    Plan { old, new, steps, left: vec![], max_negative_flips: None, made: Timestamp::now() }
}

/// The bytes of a version are those of its input; `Err` where they cannot be read. Panics at wrong ones.
fn read(i: &Inputs, repo: &Arc<Repo>, id: &Id, input: usize) -> Result<(), RepoError> {
    let mut tree = Files::new();
    for f in repo.record(id)?.files.iter().filter(|f| f.kind == EntryKind::File) {
        let mut bytes = vec![0; f.bytes as usize];
        repo.open_file(&f.recipe)?.read_at(0, &mut bytes)?;
        tree.insert(f.path.clone(), Some(bytes));
    }
    assert_eq!(difference(&tree, &i.files[input]), None, "of {id}");
    Ok(())
}

struct Run<'a> {
    i: &'a Inputs,
    noise: Noise,
    sim: SimDisk,
    engine: Option<Engine>,
    world: World,
    past: Past,
    /// What went wrong so far, by kind.
    faults: Faults,
}

impl Run<'_> {
    fn below(&mut self, n: usize) -> usize {
        (self.noise.next() >> 33) as usize % n.max(1)
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("open")
    }

    fn living(&self) -> Vec<Id> {
        self.world.versions.iter().filter(|(_, v)| !v.removed).map(|(id, _)| *id).collect()
    }

    fn some_of(&mut self, from: &[Id], most: usize) -> Vec<Id> {
        let n = if from.is_empty() { 0 } else { self.below(most + 1) };
        let mut found: Vec<Id> = (0..n).map(|_| from[self.below(from.len())]).collect();
        found.sort();
        found.dedup();
        found
    }

    fn next_step(&mut self) -> Step {
        let living = self.living();
        let one = |run: &mut Self| living[run.below(living.len())];
        if living.is_empty() {
            return match self.below(8) {
                0 => Step::Undo,
                1 => Step::Gc { grace: false, percent: 0 },
                _ => self.import(&living),
            };
        }
        match self.below(28) {
            0..=6 => self.import(&living),
            7..=8 => {
                let mut gone = self.some_of(&living, 2);
                gone.push(one(self));
                gone.sort();
                gone.dedup();
                Step::Remove(gone)
            }
            9 => Step::Undo,
            10..=11 => Step::Link(one(self), one(self)),
            12 => Step::Unlink(one(self), one(self)),
            13 => Step::Tag(one(self), ["prod", "v1", "test"][self.below(3)]),
            14 => match self.world.tags.keys().next() {
                Some((model, tag)) => Step::Untag(model.clone(), tag.clone()),
                None => {
                    let id = one(self);
                    Step::Rename(self.world.versions[&id].model.clone(), "moved")
                }
            },
            15..=16 => Step::Gc { grace: self.below(3) == 0, percent: [0, 20, 60][self.below(3)] },
            17..=18 => {
                let id = one(self);
                let v = &self.world.versions[&id];
                let bases = v.parents.iter().chain(&v.previous).filter(|p| !self.world.versions[p].removed);
                Step::Repack(id, bases.copied().collect())
            }
            19..=20 => self.settle(&living),
            21 => Step::Seal(one(self)),
            22 => Step::Recipe(one(self), Some(self.below(4)).filter(|n| *n < 3)),
            23 => Step::Update(one(self), one(self)),
            25..=26 => Step::Lossy(one(self), self.below(7)),
            24 => Step::Progress(State::Failed { why: "it had to".to_owned() }),
            _ => Step::Reopen,
        }
    }

    fn import(&mut self, living: &[Id]) -> Step {
        // The large one, which takes more than one write, is rare: it is slow.
        let (model, input) = (self.below(MODELS.len()), self.below(29) / 4);
        let of_model = |id: &Id| self.world.versions[id].model == MODELS[model];
        let (same, other): (Vec<Id>, Vec<Id>) = living.iter().partition(|id| of_model(id));
        let (parents, previous) = (self.some_of(&other, 2), self.some_of(&same, 1).pop());
        let with = match self.below(4) {
            0 => With { recipe: Some(self.below(3)), step: self.world.update.is_some() && self.below(2) == 0 },
            _ => With::default(),
        };
        Step::Import { model, input, parents, previous, with }
    }

    fn settle(&mut self, living: &[Id]) -> Step {
        let settled: Vec<Id> = living.iter().copied().filter(|id| self.world.versions[id].settled).collect();
        let again = self.some_of(&settled, 1).pop();
        Step::Settle { model: self.below(MODELS.len()), input: self.below(7), again }
    }

    fn reference(&self, id: &Id) -> VersionRef {
        let v = &self.world.versions[id];
        format!("{}@{}", v.model, v.version).parse().unwrap()
    }

    /// Does a step; `expect` is told of what must be there if it goes well.
    fn take(&self, step: &Step, expect: &mut (World, Past)) -> Result<(), RepoError> {
        match step {
            Step::Import { model, input, parents, previous, with } => {
                return self.take_import(MODELS[*model], *input, parents, *previous, with, expect);
            }
            Step::Lossy(old, input) => return self.take_lossy(*old, *input, expect),
            Step::Settle { model, input, again } => return self.take_settle(MODELS[*model], *input, *again, expect),
            Step::Gc { grace, percent } => {
                let grace = if *grace { Duration::MAX } else { Duration::ZERO };
                let rules = Rules { dry_run: false, grace, dead_percent: *percent, step: 1 };
                collect(self.engine(), &rules, &Silent)?.expect("nothing else runs");
            }
            Step::Repack(id, bases) => {
                let target = Target { version: *id, bases: bases.clone() };
                let mut web = Web::of(&self.engine().repo)?;
                repack::step(&self.engine().repo, &mut web, &target, Effort::Fast, &Silent)?
                    .expect("nothing else runs");
            }
            Step::Reopen => {}
            Step::Seal(_) | Step::Recipe(..) | Step::Update(..) | Step::Progress(_) => {
                return self.take_work(step, &mut expect.0);
            }
            _ => return self.take_name(step, expect),
        }
        Ok(())
    }

    fn take_import(
        &self,
        model: &str,
        input: usize,
        parents: &[Id],
        previous: Option<Id>,
        with: &With,
        (world, past): &mut (World, Past),
    ) -> Result<(), RepoError> {
        let engine = self.engine();
        let version = engine.next_name(&model.parse().unwrap())?;
        let importer = self.i.lab.open(&self.sim, 1 << 19)?;
        let from = self.i.lab.input(&input.to_string());
        let prepared = self.i.lab.prepare(&importer, &from, &format!("{model}@{version}"), parents, previous)?;
        let parents = parents.iter().copied().collect();
        let (model, version, removed, settled) = (model.to_owned(), version.to_string(), false, false);
        world.versions.insert(prepared.id, Version { model, version, removed, settled, parents, previous });
        past.inputs.insert(prepared.id, input);
        if with.recipe.is_none() {
            return engine.publish(prepared.event(), &[]).map(drop);
        }
        let recipe = with.recipe.map(|n| recipe(engine, n)).transpose()?;
        world.recipes.extend(recipe.clone().map(|r| (prepared.id, r)));
        let step = with.step.then_some(0);
        if let (Some(n), Some(update)) = (step, &mut world.update) {
            update.set(n, State::Done { id: prepared.id });
        }
        let publication = Publication { commit: prepared.event(), moves: vec![], results: vec![], recipe, step };
        work::answer(engine, work::Ask::Publish(Box::new(publication))).map(drop)
    }

    fn take_settle(
        &self,
        model: &str,
        input: usize,
        again: Option<Id>,
        (world, past): &mut (World, Past),
    ) -> Result<(), RepoError> {
        let engine = self.engine();
        let name: VersionRef = match again {
            Some(id) => self.reference(&id),
            None => format!("{model}@{}", engine.next_name(&model.parse().unwrap())?).parse().unwrap(),
        };
        let importer = self.i.lab.open(&self.sim, 1 << 19)?;
        let from = self.i.lab.input(&input.to_string());
        let prepared = self.i.lab.prepare(&importer, &from, &name.to_string(), &[], None)?;
        again.iter().for_each(|id| world.versions.get_mut(id).unwrap().removed = true);
        let (model, version) = (name.model.to_string(), name.version.unwrap().to_string());
        let (parents, previous) = (BTreeSet::new(), None);
        let version = Version { model, version, removed: false, settled: true, parents, previous };
        world.versions.insert(prepared.id, version);
        past.inputs.insert(prepared.id, input);
        let mut event = prepared.event();
        if let Event::Commit { settled, .. } = &mut event {
            *settled = true;
        }
        engine.publish_draft(event, &[]).map(drop)
    }

    fn take_lossy(&self, old: Id, input: usize, (world, past): &mut (World, Past)) -> Result<(), RepoError> {
        let (engine, v) = (self.engine(), world.versions[&old].clone());
        let importer = self.i.lab.open(&self.sim, 1 << 19)?;
        let from = self.i.lab.input(&input.to_string());
        let name = self.reference(&old).to_string();
        let parents: Vec<Id> = engine.catalog().parents(&old)?.iter().map(|p| p.id).collect();
        let mut prepared = self.i.lab.prepare(&importer, &from, &name, &parents, v.previous)?;
        prepared.replaces = Some(old);
        let mut event = prepared.event();
        if let Event::Commit { lossy, .. } = &mut event {
            *lossy = true;
        }
        world.versions.insert(prepared.id, Version { settled: false, ..v });
        world.inherit(old, prepared.id);
        past.removals.push(vec![old]);
        past.inputs.insert(prepared.id, input);
        engine.replace(event, vec![]).map(drop)
    }

    fn take_work(&self, step: &Step, world: &mut World) -> Result<(), RepoError> {
        let engine = self.engine();
        match step {
            Step::Seal(id) => {
                world.versions.get_mut(id).unwrap().settled = false;
                engine.seal(&engine.resolve(&self.reference(id))?)?;
            }
            Step::Recipe(id, Some(n)) => {
                let recipe = recipe(engine, *n)?;
                world.recipes.insert(*id, recipe.clone());
                work::answer(engine, work::Ask::SetRecipe(*id, Some(recipe)))?;
            }
            Step::Recipe(id, None) => {
                world.recipes.remove(id);
                work::answer(engine, work::Ask::SetRecipe(*id, None))?;
            }
            Step::Update(old, new) => {
                let plan = plan(world, *old, *new);
                world.update = Some(Cascade::new(plan.clone()));
                work::answer(engine, work::Ask::BeginUpdate(plan))?;
            }
            Step::Progress(state) => {
                world.update.iter_mut().for_each(|u| u.set(1, state.clone()));
                work::answer(engine, work::Ask::UpdateStep(1, state.clone()))?;
            }
            _ => unreachable!("it is no work: {step:?}"),
        }
        Ok(())
    }

    fn take_name(&self, step: &Step, (world, past): &mut (World, Past)) -> Result<(), RepoError> {
        let engine = self.engine();
        match step {
            Step::Remove(ids) => {
                ids.iter().for_each(|id| world.versions.get_mut(id).unwrap().removed = true);
                past.removals.push(ids.clone());
                engine.remove(&ids.iter().map(|id| self.reference(id)).collect::<Vec<_>>())?;
            }
            Step::Undo => {
                for id in past.removals.pop().unwrap_or_default() {
                    if let Some(heir) = world.owner(&id) {
                        world.inherit(heir, id);
                    }
                    world.versions.get_mut(&id).unwrap().removed = false;
                }
                answer(engine, &Ask::Undo)?;
            }
            Step::Link(child, parent) => {
                let same = world.versions[child].model == world.versions[parent].model;
                let v = world.versions.get_mut(child).unwrap();
                match same {
                    true => v.previous = Some(*parent),
                    false => drop(v.parents.insert(*parent)),
                }
                engine.link(&self.reference(child), &self.reference(parent), None)?;
            }
            Step::Unlink(child, parent) => {
                let v = world.versions.get_mut(child).unwrap();
                v.parents.remove(parent);
                v.previous.take_if(|p| p == parent);
                engine.unlink(&self.reference(child), &self.reference(parent))?;
            }
            Step::Tag(id, tag) => {
                world.tags.insert((world.versions[id].model.clone(), tag.to_string()), *id);
                answer(engine, &Ask::Tag(self.reference(id), tag.parse().unwrap()))?;
            }
            Step::Untag(model, tag) => {
                world.tags.remove(&(model.clone(), tag.clone()));
                answer(engine, &Ask::Untag(model.parse().unwrap(), tag.parse().unwrap()))?;
            }
            Step::Rename(from, to) => {
                world.versions.values_mut().filter(|v| v.model == *from).for_each(|v| v.model = to.to_string());
                let moved = |((m, t), id)| ((if m == *from { to.to_string() } else { m }, t), id);
                world.tags = std::mem::take(&mut world.tags).into_iter().map(moved).collect();
                answer(engine, &Ask::Rename(from.parse().unwrap(), to.parse().unwrap()))?;
            }
            _ => unreachable!("it changes no name: {step:?}"),
        }
        Ok(())
    }

    fn schedule(&mut self, wrong: Wrong, at: u64) {
        match wrong {
            Wrong::PowerCut | Wrong::Killed => self.sim.crash_at(at),
            Wrong::Broken => self.sim.fail_at(at, Fault::Broken),
            Wrong::Breaking => {
                for n in 0..8 {
                    if n == 0 || self.below(2) == 0 {
                        self.sim.fail_at(at + n, Fault::Broken);
                    }
                }
            }
            Wrong::Full => self.sim.full_from(Some(at)),
            Wrong::Nothing => {}
        }
    }

    fn step(&mut self, told: &mut Vec<String>) {
        let step = self.next_step();
        let wrong = match self.below(9) {
            0 | 1 => Wrong::PowerCut,
            2 => Wrong::Killed,
            3 => Wrong::Broken,
            4 => Wrong::Breaking,
            5 => Wrong::Full,
            _ => Wrong::Nothing,
        };
        let at = self.sim.ops() + self.below(12) as u64;
        told.push(format!("{step:?}, {wrong:?} at {at}"));
        self.schedule(wrong, at);
        let mut after = (self.world.clone(), self.past.clone());
        let done = self.take(&step, &mut after);
        let happened = self.sim.ops() > at && wrong != Wrong::Nothing;
        if happened {
            *self.faults.entry(format!("{wrong:?}")).or_default() += 1;
        }
        match &done {
            Ok(()) => (self.world, self.past) = after.clone(),
            Err(e) if !happened => assert!(matches!(e, RepoError::Refused(_)), "without a fault: {e}"),
            Err(_) => {}
        }
        self.sim.heal();
        match wrong {
            // What was not synced is lost, also when the operation did not come.
            Wrong::PowerCut => self.reopen(true, told),
            Wrong::Killed => self.reopen(false, told),
            _ if happened || matches!(step, Step::Reopen) => {
                self.engine = None;
                self.engine = Some(self.i.open(&self.sim).unwrap_or_else(|e| panic!("it does not open: {e}")));
            }
            _ => {}
        }
        let seen = observe(self.engine());
        if seen != self.world && done.is_err() && happened {
            assert_eq!(seen, after.0, "neither before nor after");
            (self.world, self.past) = after;
        }
        assert_eq!(seen, self.world);
        if happened && self.below(3) == 0 {
            told.push("and then the power is cut".to_owned());
            self.reopen(true, told);
            assert_eq!(observe(self.engine()), self.world, "what was seen did not stay");
        }
        if happened || self.below(4) == 0 {
            self.check();
        }
    }

    /// The machine, or only the process, starts again; the recovery may be cut short too.
    fn reopen(&mut self, cut: bool, told: &mut Vec<String>) {
        let start = |run: &mut Self, cut: bool| {
            run.sim.crash();
            run.engine = None;
            run.sim = if cut { run.sim.reboot() } else { run.sim.restart() };
        };
        start(self, cut);
        for _ in 0..3 {
            if self.below(4) != 0 {
                break;
            }
            let (at, cut) = (self.sim.ops() + self.below(4) as u64, self.below(2) == 0);
            told.push(format!("  opening: {} at {at}", if cut { "power cut" } else { "killed" }));
            self.sim.crash_at(at);
            self.engine = self.i.open(&self.sim).ok();
            start(self, cut);
        }
        self.engine = Some(self.i.open(&self.sim).unwrap_or_else(|e| panic!("it does not open: {e}")));
    }

    fn check(&mut self) {
        let engine = self.engine();
        engine.repo.refresh().unwrap();
        let heads = engine.catalog().all().unwrap();
        for h in &heads {
            let read = read(self.i, &engine.repo, &h.id, self.past.inputs[&h.id]);
            read.unwrap_or_else(|e| panic!("{} cannot be read: {e}", label(h)));
        }
        let report = fsck(&engine.repo, &heads, &Silent).unwrap();
        assert!(report.ok, "{:?}", report.findings);
        check_history(engine, heads);
        for id in engine.repo.packs.objects() {
            // What is dead may lack its base after a crash within gc.
            if let Ok(open) = engine.repo.open_object(&id) {
                assert!(open.stored.record.cost <= 8);
            }
        }
        let Ok(work::Answer::Files(files)) = work::answer(engine, work::Ask::Files) else { panic!("no files") };
        assert_eq!(check_files(&engine.repo, &files), []);
    }
}

/// One look through the catalog finds what a question for each version finds.
fn check_history(engine: &Engine, mut heads: Vec<Head>) {
    heads.sort_by_key(|h| std::cmp::Reverse(h.seq));
    let text = |details: &[Detail]| serde_json::to_string(details).unwrap();
    let details: Vec<Detail> = heads.iter().map(|h| engine.detail_of(h.clone()).unwrap()).collect();
    assert_eq!(text(&history(engine, None).unwrap()), text(&details));
    let (catalog, mut all) = (engine.catalog(), vec![]);
    catalog.models().unwrap().iter().for_each(|m| all.extend(catalog.versions(m).unwrap()));
    let mut living = catalog.all().unwrap();
    living.sort_by(|a, b| a.model.cmp(&b.model));
    assert_eq!(all, living);
    let Some(newest) = details.first() else { return };
    let reference = VersionRef { model: newest.head.model.clone(), version: Some(newest.head.version.clone()) };
    let mut above = engine.lineage().unwrap().ancestors(newest.head.id);
    above.push(newest.head.id);
    let told: Vec<Id> = history(engine, Some(&reference)).unwrap().iter().map(|d| d.head.id).collect();
    above.sort_by_key(|id| told.iter().position(|t| t == id));
    assert_eq!(told, above);
}

// ---- damage

#[derive(Clone, Copy, PartialEq, Debug)]
enum Damage {
    /// A bit flips.
    Flip,
    Lost,
    /// The file ends early.
    Cut,
}

impl Run<'_> {
    fn files(&self, extension: &str) -> Vec<PathBuf> {
        let all = self.sim.files().into_iter();
        all.filter(|f| f.extension().is_some_and(|e| e == extension)).collect()
    }

    fn damage(&mut self, told: &mut Vec<String>) {
        self.engine = None;
        let damage = [Damage::Flip, Damage::Lost, Damage::Cut][self.below(3)];
        let files = match self.below(3) {
            0 => self.files("log"),
            _ => self.files("pack"),
        };
        if files.is_empty() {
            return;
        }
        let file = files[self.below(files.len())].clone();
        let bytes = self.sim.read(&file);
        let (at, bit) = (self.below(bytes.len()), self.below(8) as u8);
        told.push(format!("{damage:?} of {} at byte {at} of {}", file.display(), bytes.len()));
        *self.faults.entry(format!("{damage:?}")).or_default() += 1;
        match damage {
            Damage::Flip => self.sim.flip(&file, at, bit),
            Damage::Lost => self.sim.lose(&file),
            Damage::Cut => self.sim.write(&file, &bytes[..at]),
        }
        match file.extension().is_some_and(|e| e == "log") {
            // Where a crash left something behind the last frame, only the catalog can tell whether that was acknowledged.
            true => self.damaged_journal(damage == Damage::Cut || !bytes.ends_with(b"[]"), told),
            false => self.damaged_pack(damage),
        }
    }

    /// The living versions that can be read, and not. What a repair brought back, and nobody was told of, counts as read.
    fn readable(&self, repo: &Arc<Repo>, heads: &[Head]) -> (Vec<Id>, Vec<Head>) {
        let is_read = |h: &Head| self.past.inputs.get(&h.id).is_none_or(|n| read(self.i, repo, &h.id, *n).is_ok());
        let (good, bad): (Vec<_>, Vec<_>) = heads.iter().cloned().partition(is_read);
        (good.iter().map(|h| h.id).collect(), bad)
    }

    /// Every version that cannot be read is named.
    fn names(report: &Report, bad: &[Head]) {
        for h in bad {
            let name = label(h);
            let named = report.findings.iter().any(|f| f.what.contains(&name) || f.place.contains(&name));
            assert!(named, "{name} cannot be read: {:?}", report.findings);
        }
    }

    /// What is damaged is found, and what is read is right or an error.
    fn damaged_pack(&mut self, damage: Damage) {
        let engine = self.i.open(&self.sim).unwrap();
        let heads = engine.catalog().all().unwrap();
        let report = fsck(&engine.repo, &heads, &Silent).unwrap();
        let (good, bad) = self.readable(&engine.repo, &heads);
        Self::names(&report, &bad);
        match damage {
            Damage::Lost => assert_eq!(report.ok, bad.is_empty(), "{:?}", report.findings),
            _ => assert!(!report.ok, "not found"),
        }
        let gone: BTreeSet<Id> = bad.iter().map(|h| h.id).filter(|id| engine.repo.record(id).is_err()).collect();
        if self.below(2) == 0 {
            let wanted = repair::wanted(&engine.repo, &heads, &Silent).unwrap();
            repair::heal(&engine.repo, wanted, &self.i.lab.input(""), &Silent).unwrap();
            repair::rewrite(&engine.repo, &Silent).unwrap();
            let (_, bad) = self.readable(&engine.repo, &heads);
            assert!(bad.iter().all(|h| gone.contains(&h.id)), "not healed: {bad:?}");
        } else {
            repair::rewrite(&engine.repo, &Silent).unwrap();
        }
        let (now_good, now_bad) = self.readable(&engine.repo, &heads);
        assert!(good.iter().all(|id| now_good.contains(id)), "repair lost something");
        let report = fsck(&engine.repo, &heads, &Silent).unwrap();
        Self::names(&report, &now_bad);
        let of_dead = |f: &Finding| f.what.contains("needed by no living version");
        assert!(!now_bad.is_empty() || report.findings.iter().all(of_dead), "{:?}", report.findings);
    }

    /// It is never believed; what the packs hold comes back.
    fn damaged_journal(&mut self, torn: bool, told: &mut Vec<String>) {
        match self.i.open(&self.sim) {
            // Damage within what nobody waited for, or a cut between two frames, which only the catalog can tell.
            Ok(engine) => {
                let seen = observe(&engine);
                assert!(torn || seen == self.world || self.living().is_empty(), "believed");
                return;
            }
            Err(e @ RepoError::Store(StoreError::Damaged { .. } | StoreError::Later { .. })) => {
                told.push(format!("  {e}"));
            }
            Err(e) => panic!("{e}"),
        }
        let repo = self.i.lab.open(&self.sim, 1 << 19).unwrap();
        let lock = lock_exclusive(&repo.disk, &repo.dir, false).unwrap().expect("nobody else has the lock");
        match repair::journal(&repo, &lock) {
            Err(RepoError::Store(StoreError::Later { .. })) => return,
            done => drop(done.unwrap()),
        }
        drop(lock);
        let engine = self.i.open(&self.sim).unwrap();
        let heads = engine.catalog().all().unwrap();
        // One whose return is lost counts as removed again, until it is undone again.
        let ever: Vec<Id> = engine.catalog().ever_all().unwrap().iter().map(|h| h.id).collect();
        let kept = |id: &Id| ever.contains(id) && read(self.i, &engine.repo, id, self.past.inputs[id]).is_ok();
        let lost: Vec<Id> = self.living().into_iter().filter(|id| !kept(id)).collect();
        assert!(lost.is_empty(), "repair lost {lost:?}");
        for h in &heads {
            assert_eq!(engine.resolve(&label(h).parse().unwrap()).unwrap().id, h.id, "{} is two", label(h));
        }
    }
}

/// Runs a seed; returns the faults that happened.
fn run(i: &Inputs, seed: u64) -> Faults {
    let mut told = Vec::new();
    let done = catch_unwind(AssertUnwindSafe(|| {
        let sim = i.lab.create(seed);
        let engine = Some(i.open(&sim).unwrap());
        let (noise, world, past) =
            (Noise((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)), World::default(), Past::default());
        let mut run = Run { i, noise, sim, engine, world, past, faults: Faults::new() };
        (0..STEPS).for_each(|_| run.step(&mut told));
        run.check();
        run.damage(&mut told);
        run.faults
    }));
    done.unwrap_or_else(|e| {
        told.iter().for_each(|t| eprintln!("  {t}"));
        eprintln!("MGIT_TEST_SEEDS={seed}..{} cargo test --test simulate", seed + 1);
        resume_unwind(e)
    })
}

fn seeds() -> (std::ops::Range<u64>, Duration) {
    let Ok(text) = std::env::var("MGIT_TEST_SEEDS") else { return (0..SEEDS, LIMIT) };
    let number = |s: &str| s.trim().parse().expect("MGIT_TEST_SEEDS is N or A..B");
    let range = text.split_once("..").map_or_else(|| 0..number(&text), |(a, b)| number(a)..number(b));
    (range, Duration::MAX)
}

#[test]
fn whatever_happens_nothing_acknowledged_is_lost() {
    FEW.store(0, Ordering::Relaxed);
    let (range, limit) = seeds();
    let (next, faults, ran) = (AtomicU64::new(range.start), Mutex::new(Faults::new()), AtomicU64::new(0));
    let start = Instant::now();
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                let i = Inputs::new();
                while start.elapsed() < limit {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= range.end {
                        return;
                    }
                    let happened = run(&i, seed);
                    let mut faults = faults.lock().unwrap();
                    happened.into_iter().for_each(|(kind, n)| *faults.entry(kind).or_default() += n);
                    ran.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let (ran, faults) = (ran.into_inner(), faults.into_inner().unwrap());
    println!("{ran} seeds, {} faults {faults:?}, {:.0} s", faults.values().sum::<u64>(), start.elapsed().as_secs_f64());
    assert!(ran >= 20 || range.end - range.start < 20, "only {ran} seeds ran");
}
