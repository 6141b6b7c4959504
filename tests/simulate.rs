//! Random commands on a simulated disk with seeded faults, against a model. After each fault the repository opens, what was
//! acknowledged is whole, what was not is there wholly or not at all, and fsck is clean; a flipped bit is found, and
//! nothing is read wrong.
//!
//! `MGIT_TEST_SEEDS=N` runs seeds 0 to N - 1 for as long as it takes, `MGIT_TEST_SEEDS=A..B` those; without it some
//! hundred run, within a minute. A failing seed prints a line that runs it alone.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::lab::{Files, Lab, difference, write_tree};
use common::{Noise, Tensor, safetensors};
use mgit::codec::Effort;
use mgit::model::id::Id;
use mgit::model::name::VersionRef;
use mgit::model::record::EntryKind;
use mgit::repo::engine::{Engine, label};
use mgit::repo::fsck::fsck;
use mgit::repo::gc::{Rules, collect};
use mgit::repo::house::{Ask, answer};
use mgit::repo::progress::Silent;
use mgit::repo::repack::{Target, Web, step};
use mgit::repo::{Repo, RepoError};
use mgit::store::sim::{Fault, SimDisk};
use mgit::store::{Catalog, lock_exclusive};

/// Steps of one seed.
const STEPS: usize = 14;
/// Without the variable: seeds, and how long at most.
const SEEDS: u64 = 400;
const LIMIT: Duration = Duration::from_secs(40);
const MODELS: [&str; 4] = ["a", "b", "x/c", "x/d"];

#[derive(Clone, Debug)]
enum Step {
    Import { model: usize, input: usize, parents: Vec<Id>, previous: Option<Id> },
    Remove(Vec<Id>),
    Undo,
    Link(Id, Id),
    Unlink(Id, Id),
    Tag(Id, &'static str),
    Untag(String, String),
    Rename(String, &'static str),
    Gc { grace: bool, percent: u8 },
    Repack(Id, Vec<Id>),
    Reopen,
}

#[derive(Clone, PartialEq, Debug)]
struct Version {
    model: String,
    version: String,
    removed: bool,
    parents: BTreeSet<Id>,
    previous: Option<Id>,
}

/// What can be seen of a repository.
#[derive(Clone, Default, PartialEq, Debug)]
struct World {
    versions: BTreeMap<Id, Version>,
    tags: BTreeMap<(String, String), Id>,
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
                tree.insert("large.bin".to_owned(), Some(noise.bytes(1_200_000)));
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
        world.versions.insert(h.id, Version { model, version, removed: h.removed, parents, previous: h.previous });
    }
    world
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
    faults: u64,
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
            return match self.below(4) {
                0 => Step::Undo,
                1 => Step::Gc { grace: false, percent: 0 },
                _ => Step::Import { model: self.below(4), input: self.below(8), parents: vec![], previous: None },
            };
        }
        match self.below(20) {
            0..=6 => {
                let (model, input) = (self.below(MODELS.len()), self.below(8));
                let of_model = |id: &Id| self.world.versions[id].model == MODELS[model];
                let (same, other): (Vec<Id>, Vec<Id>) = living.iter().partition(|id| of_model(id));
                let (parents, previous) = (self.some_of(&other, 2), self.some_of(&same, 1).pop());
                Step::Import { model, input, parents, previous }
            }
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
            _ => Step::Reopen,
        }
    }

    fn reference(&self, id: &Id) -> VersionRef {
        let v = &self.world.versions[id];
        format!("{}@{}", v.model, v.version).parse().unwrap()
    }

    /// Does a step; `expect` is told of what must be there if it goes well.
    fn take(&self, step_is: &Step, expect: &mut (World, Past)) -> Result<(), RepoError> {
        let engine = self.engine();
        let (world, past) = (&mut expect.0, &mut expect.1);
        match step_is {
            Step::Import { model, input, parents, previous } => {
                let model = MODELS[*model].to_owned();
                let version = engine.next_name(&model.parse().unwrap())?;
                let name = format!("{model}@{version}");
                let importer = self.i.lab.open(&self.sim, 1 << 19)?;
                let from = self.i.lab.input(&input.to_string());
                let prepared = self.i.lab.prepare(&importer, &from, &name, parents, *previous)?;
                let parents = parents.iter().copied().collect();
                let (version, removed, previous) = (version.to_string(), false, *previous);
                world.versions.insert(prepared.id, Version { model, version, removed, parents, previous });
                past.inputs.insert(prepared.id, *input);
                engine.publish(prepared.event(), &[])?;
            }
            Step::Remove(ids) => {
                ids.iter().for_each(|id| world.versions.get_mut(id).unwrap().removed = true);
                past.removals.push(ids.clone());
                engine.remove(&ids.iter().map(|id| self.reference(id)).collect::<Vec<_>>())?;
            }
            Step::Undo => {
                for id in past.removals.pop().unwrap_or_default() {
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
            Step::Gc { grace, percent } => {
                let grace = if *grace { Duration::MAX } else { Duration::ZERO };
                let rules = Rules { dry_run: false, grace, dead_percent: *percent };
                collect(engine, &rules, &Silent)?.expect("nothing else runs");
            }
            Step::Repack(id, bases) => {
                let target = Target { version: *id, bases: bases.clone() };
                let mut web = Web::of(&engine.repo)?;
                step(&engine.repo, &mut web, &target, Effort::Fast, &Silent)?.expect("nothing else runs");
            }
            Step::Reopen => {}
        }
        Ok(())
    }

    fn step(&mut self, told: &mut Vec<String>) {
        let step = self.next_step();
        let fault = self.below(5);
        let at = self.sim.ops() + self.below(12) as u64;
        told.push(format!("{step:?}, fault {fault}"));
        match fault {
            0 => self.sim.crash_at(at),
            1 => self.sim.fail_at(at, Fault::Broken),
            2 => self.sim.full_from(Some(at)),
            _ => {}
        }
        let before = (self.world.clone(), self.past.clone());
        let mut after = before.clone();
        let done = self.take(&step, &mut after);
        let happened = self.sim.ops() > at && fault < 3;
        self.faults += happened as u64;
        match &done {
            Ok(()) => (self.world, self.past) = after.clone(),
            Err(e) if !happened => assert!(matches!(e, RepoError::Refused(_)), "without a fault: {e}"),
            Err(_) => {}
        }
        if fault == 0 {
            self.sim.crash(); // What was not synced is lost, also when the operation did not come.
        }
        self.sim.heal();
        if happened || fault == 0 || matches!(step, Step::Reopen) {
            self.engine = None;
            if fault == 0 {
                self.sim = self.sim.reboot();
            }
            self.engine = Some(self.i.open(&self.sim).unwrap_or_else(|e| panic!("it does not open: {e}")));
        }
        let seen = observe(self.engine());
        if seen != self.world && done.is_err() && happened {
            assert_eq!(seen, after.0, "neither before nor after");
            (self.world, self.past) = after;
        }
        assert_eq!(seen, self.world);
        if happened || self.below(4) == 0 {
            self.check();
        }
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
        for id in engine.repo.packs.objects() {
            // What is dead may lack its base after a crash within gc.
            if let Ok(open) = engine.repo.open_object(&id) {
                assert!(open.stored.record.cost <= 8);
            }
        }
    }

    /// A bit of a pack flips: it is found, and what is read is right or an error.
    fn flip(&mut self) {
        let packs: Vec<_> =
            self.sim.files().into_iter().filter(|f| f.extension().is_some_and(|e| e == "pack")).collect();
        if packs.is_empty() {
            return;
        }
        let pack = packs[self.below(packs.len())].clone();
        let at = self.below(self.sim.read(&pack).len());
        let bit = self.below(8) as u8;
        self.sim.flip(&pack, at, bit);
        self.engine = None;
        let engine = self.i.open(&self.sim).unwrap();
        let heads = engine.catalog().all().unwrap();
        let report = fsck(&engine.repo, &heads, &Silent).unwrap();
        assert!(!report.ok, "byte {at} of {}: not found", pack.display());
        for h in &heads {
            let _ = read(self.i, &engine.repo, &h.id, self.past.inputs[&h.id]);
        }
    }
}

/// Runs a seed; returns how many faults happened.
fn run(i: &Inputs, seed: u64) -> u64 {
    let mut told = Vec::new();
    let done = catch_unwind(AssertUnwindSafe(|| {
        let sim = i.lab.create(seed);
        let engine = Some(i.open(&sim).unwrap());
        let (noise, world, past) =
            (Noise((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)), World::default(), Past::default());
        let mut run = Run { i, noise, sim, engine, world, past, faults: 0 };
        (0..STEPS).for_each(|_| run.step(&mut told));
        run.check();
        run.flip();
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
#[ignore = "has not been run yet"]
fn whatever_happens_nothing_acknowledged_is_lost() {
    let (range, limit) = seeds();
    let (next, faults, ran) = (AtomicU64::new(range.start), AtomicU64::new(0), AtomicU64::new(0));
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
                    faults.fetch_add(run(&i, seed), Ordering::Relaxed);
                    ran.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let (ran, faults) = (ran.into_inner(), faults.into_inner());
    println!("{ran} seeds, {faults} faults, {:.0} s", start.elapsed().as_secs_f64());
    assert!(ran > 20 || range.end - range.start < 20, "only {ran} seeds ran");
}
