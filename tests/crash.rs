//! A machine that stops at any moment, and disks that fail: every acknowledged change is whole afterwards, no
//! half one can be seen, and the repository goes on.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::lab::{Files, Lab, difference, stored_tree, write_tree};
use common::{Noise, Tensor, base_tensors, safetensors, tuned_tensors};
use mgit::model::id::Id;
use mgit::model::name::VersionRef;
use mgit::model::record::Relation;
use mgit::repo::engine::{Engine, label};
use mgit::repo::fsck::fsck;
use mgit::repo::gc::{Rules, STEP, collect};
use mgit::repo::progress::Silent;
use mgit::repo::{Repo, RepoError};
use mgit::store::sim::{Fault, SimDisk};
use mgit::store::{Catalog, StoreError, lock_exclusive};

const CACHE: u64 = 1 << 20;

/// A change that is acknowledged when it returns.
#[derive(Clone)]
enum Step {
    /// Input of that name becomes the version; the parents are references too.
    Import {
        version: &'static str,
        input: &'static str,
        parents: &'static [&'static str],
        previous: Option<&'static str>,
    },
    Link(&'static str, &'static str),
    Follow(&'static str, &'static str),
    Unlink(&'static str, &'static str),
    Remove(&'static [&'static str]),
}

/// What a version must be.
#[derive(Clone, PartialEq, Debug)]
struct Version {
    input: &'static str,
    parents: BTreeSet<String>,
    previous: Option<String>,
}

/// What the repository must hold: living versions, and names that are gone.
#[derive(Clone, Default, PartialEq, Debug)]
struct World {
    living: BTreeMap<String, Version>,
    gone: BTreeSet<String>,
}

impl World {
    fn after(&self, step: &Step) -> World {
        let mut w = self.clone();
        match step {
            Step::Import { version, input, parents, previous } => {
                let parents = parents.iter().map(|p| p.to_string()).collect();
                let version_is = Version { input, parents, previous: previous.map(str::to_owned) };
                w.living.insert(version.to_string(), version_is);
            }
            Step::Link(child, parent) => {
                let child = w.living.get_mut(*child).unwrap();
                child.parents.insert(parent.to_string());
            }
            Step::Follow(child, previous) => {
                w.living.get_mut(*child).unwrap().previous = Some(previous.to_string());
            }
            Step::Unlink(child, parent) => {
                let child = w.living.get_mut(*child).unwrap();
                child.parents.remove(*parent);
                child.previous.take_if(|p| p == parent);
            }
            Step::Remove(versions) => {
                for v in *versions {
                    w.living.remove(*v);
                    w.gone.insert(v.to_string());
                }
            }
        }
        w
    }
}

/// The inputs of all tests, written once for each.
struct Inputs {
    lab: Lab,
    files: BTreeMap<&'static str, Files>,
}

impl Inputs {
    fn new() -> Inputs {
        let lab = Lab::new();
        let base = base_tensors(5, 1);
        let small = |seed: u64| {
            let mut noise = Noise(seed | 1);
            let t = Tensor::f32("w", &[20, 10], (0..200).map(|_| noise.normal()));
            safetensors(&[t])
        };
        let model = |bytes: Vec<u8>, config: &str| {
            Files::from([
                ("model.safetensors".to_owned(), Some(bytes)),
                ("config.json".to_owned(), Some(config.as_bytes().to_vec())),
                ("empty/dir".to_owned(), None),
            ])
        };
        let mut tuned = model(safetensors(&tuned_tensors(&base, 6)), "tuned");
        // Its pack is written in several appends, of bytes that nothing makes smaller.
        tuned.insert("optimizer.bin".to_owned(), Some(Noise(77).bytes(2_400_000)));
        let files = BTreeMap::from([
            ("base", model(safetensors(&base), "base")),
            ("tuned", tuned),
            ("small", model(small(1), "small")),
            ("small-2", model(small(2), "small")),
            ("small-3", model(small(3), "other")),
        ]);
        for (name, tree) in &files {
            write_tree(&lab.input(name), tree);
        }
        Inputs { lab, files }
    }

    fn engine(&self, repo: Arc<Repo>, catalog: Option<&Path>) -> Result<Engine, RepoError> {
        let lock = lock_exclusive(&repo.disk, &repo.dir, false)?.expect("nobody else has the lock");
        let catalog = match catalog {
            Some(dir) => Catalog::open(dir)?,
            None => Catalog::temporary()?,
        };
        Engine::with(repo, catalog, lock)
    }

    fn open(&self, sim: &SimDisk, catalog: Option<&Path>) -> Result<Engine, RepoError> {
        self.engine(self.lab.open(sim, CACHE)?, catalog)
    }

    /// Does a step as the program does: the import by a process that has only the packs.
    fn take(&self, sim: &SimDisk, engine: &Engine, step: &Step) -> Result<(), RepoError> {
        match step {
            Step::Import { version, input, parents, previous } => {
                let id = |r: &&str| engine.resolve(&reference(r)).map(|h| h.id);
                let parents = parents.iter().map(id).collect::<Result<Vec<Id>, _>>()?;
                let previous = previous.as_ref().map(id).transpose()?;
                let importer = self.lab.open(sim, CACHE)?;
                let prepared = self.lab.prepare(&importer, &self.lab.input(input), version, &parents, previous)?;
                engine.publish(prepared.event(), &[])?;
            }
            Step::Link(child, parent) => {
                engine.link(&reference(child), &reference(parent), Some(Relation::Distill))?;
            }
            Step::Follow(child, previous) => {
                engine.link(&reference(child), &reference(previous), None)?;
            }
            Step::Unlink(child, parent) => {
                engine.unlink(&reference(child), &reference(parent))?;
            }
            Step::Remove(versions) => {
                engine.remove(&versions.iter().map(|v| reference(v)).collect::<Vec<_>>())?;
            }
        }
        Ok(())
    }

    /// Holds what an engine says against what must be, every byte included; then fsck.
    fn check(&self, engine: &Engine, allowed: &[&World], of: &str) -> World {
        let seen = self.check_apart_from_journal(engine, allowed, of);
        assert_eq!(engine.check_catalog().unwrap(), Vec::<String>::new(), "{of}");
        seen
    }

    fn check_apart_from_journal(&self, engine: &Engine, allowed: &[&World], of: &str) -> World {
        let heads = engine.catalog().all().unwrap();
        let mut seen = World::default();
        for head in &heads {
            let detail = engine.detail_of(head.clone()).unwrap();
            let record = engine.repo.record(&head.id).unwrap();
            assert_eq!((&record.model, &record.version), (&head.model, &head.version), "{of}");
            let tree = stored_tree(&engine.repo, &record);
            let input = self.files.iter().find(|(_, f)| difference(&tree, f).is_none());
            let (input, _) = input.unwrap_or_else(|| panic!("{of}: {} is no input, whole", label(head)));
            let parents = detail.parents.iter().map(|(h, _)| label(h)).collect();
            let previous = detail.previous.as_ref().map(label);
            for (parent, _) in &detail.parents {
                let back = engine.detail_of(parent.clone()).unwrap().children;
                assert!(back.iter().any(|(h, _)| h.id == head.id), "{of}: an edge that only one end knows");
            }
            seen.living.insert(label(head), Version { input, parents, previous });
        }
        let ever = engine.catalog().ever_all().unwrap();
        seen.gone = ever.iter().filter(|h| h.removed).map(label).collect();
        assert!(allowed.contains(&&seen), "{of}: {seen:#?}\nallowed: {allowed:#?}");
        for name in seen.living.keys().chain(&seen.gone) {
            let r = reference(name);
            assert!(engine.refuse_used(&r.model, &r.version.unwrap()).is_err(), "{of}: {name} could be used again");
        }
        let report = fsck(&engine.repo, &heads, &Silent).unwrap();
        assert!(report.ok, "{of}: {:?}", report.findings);
        assert_eq!(report.versions_checked as usize, heads.len());
        seen
    }

    /// After a reboot: what is there is as allowed, and a following import works and lasts.
    fn recover(&self, sim: &SimDisk, catalog: Option<&Path>, allowed: &[&World], of: &str) -> World {
        let engine = self.open(sim, catalog).unwrap_or_else(|e| panic!("{of}: not to be opened: {e}"));
        let seen = self.check(&engine, allowed, of);
        self.take(sim, &engine, &AFTERWARDS).unwrap_or_else(|e| panic!("{of}: afterwards: {e}"));
        let more = seen.after(&AFTERWARDS);
        self.check(&engine, &[&more], &format!("{of}, afterwards"));
        drop(engine);
        let leftovers: Vec<_> = sim.files().into_iter().filter(|f| f.extension().is_some_and(|e| e == "tmp")).collect();
        assert!(leftovers.is_empty(), "{of}: {leftovers:?} are still there after an import");
        let again = sim.reboot();
        self.check(&self.open(&again, catalog).unwrap(), &[&more], &format!("{of}, rebooted"));
        seen
    }
}

const AFTERWARDS: Step = Step::Import { version: "after@v1", input: "small-3", parents: &[], previous: None };

fn reference(s: &str) -> VersionRef {
    s.parse().unwrap()
}

/// Every kind of change, on files so small that it can be run a thousand times.
const LIFE: &[Step] = &[
    Step::Import { version: "small@v1", input: "small", parents: &[], previous: None },
    Step::Import { version: "small@v2", input: "small-2", parents: &[], previous: Some("small@v1") },
    Step::Import { version: "child@v1", input: "small-2", parents: &["small@v1"], previous: None },
    Step::Link("child@v1", "small@v2"),
    Step::Import { version: "more@v1", input: "small-3", parents: &["child@v1", "small@v2"], previous: None },
    Step::Unlink("child@v1", "small@v1"),
    Step::Import { version: "small@v3", input: "small", parents: &[], previous: None },
    Step::Follow("small@v3", "small@v2"),
    Step::Follow("small@v3", "small@v1"),
    Step::Unlink("small@v3", "small@v1"),
    Step::Remove(&["more@v1", "small@v2"]),
];

/// The import that the next tests stop: a delta against a base, and a pack of several appends.
const BIG: Step = Step::Import { version: "tuned@v1", input: "tuned", parents: &["base@v1"], previous: None };

/// Lives until the disk stops; what was acknowledged, and what may be there as well. With `reopen`, each step
/// is a process of its own.
fn live(i: &Inputs, sim: &SimDisk, steps: &[Step], from: World, catalog: Option<&Path>, reopen: bool) -> [World; 2] {
    let mut world = from;
    let mut engine = None;
    for step in steps {
        let maybe = world.after(step);
        if reopen {
            engine = None;
        }
        if engine.is_none() {
            let Ok(opened) = i.open(sim, catalog) else { return [world.clone(), world] };
            engine = Some(opened);
        }
        if i.take(sim, engine.as_ref().unwrap(), step).is_err() {
            return [world, maybe];
        }
        world = maybe;
    }
    [world.clone(), world]
}

/// A repository with `base@v1` and `small@v1` that a test can go on from.
fn settled(i: &Inputs, seed: u64) -> (SimDisk, World) {
    let sim = i.lab.create(seed);
    let steps = [
        Step::Import { version: "base@v1", input: "base", parents: &[], previous: None },
        Step::Import { version: "small@v1", input: "small", parents: &[], previous: None },
    ];
    let [world, _] = live(i, &sim, &steps, World::default(), None, false);
    assert_eq!(world.living.len(), 2);
    (sim, world)
}

/// The same files on a disk of their own.
fn copy_of(sim: &SimDisk, seed: u64) -> SimDisk {
    use mgit::store::Disk;
    let copy = SimDisk::new(seed);
    for file in sim.files() {
        let mut above: Vec<_> = file.ancestors().skip(1).filter(|a| a.parent().is_some()).collect();
        above.reverse();
        for dir in above.into_iter().filter(|d| !sim_exists(&copy, d)) {
            copy.create_dir(dir).unwrap();
            copy.sync_dir(dir.parent().unwrap()).unwrap();
        }
        copy.write(&file, &sim.read(&file));
    }
    copy
}

fn sim_exists(sim: &SimDisk, path: &Path) -> bool {
    mgit::store::Disk::exists(sim, path).unwrap()
}

#[test]
fn a_whole_life_crashes_at_every_operation() {
    let i = Inputs::new();
    let whole = i.lab.create(1);
    let first = whole.ops();
    let [done, _] = live(&i, &whole, LIFE, World::default(), None, false);
    assert_eq!((done.living.len(), done.gone.len()), (3, 2));
    let (last, syncs) = (whole.ops(), whole.syncs());
    assert!(last > first + 30 && syncs > 20, "{first} {last} {syncs}");
    let (mut kept, mut lost) = (0, 0);
    for at in first..=last {
        for seed in 0..5 {
            let of = format!("crash at operation {at}, seed {seed}");
            let sim = i.lab.create(at * 100 + seed);
            sim.crash_at(at);
            let catalog = (seed == 2).then(|| i.lab.dir.path().join(format!("catalog-{at}")));
            let [sure, maybe] = live(&i, &sim, LIFE, World::default(), catalog.as_deref(), seed == 1);
            // The last operation marks what was acknowledged.
            assert!(seed == 1 || (sure == done) == (at + 1 >= last), "{of}");
            let seen = i.recover(&sim.reboot(), catalog.as_deref(), &[&sure, &maybe], &of);
            kept += (seen != sure) as u32;
            lost += (seen == sure && sure != maybe) as u32;
        }
    }
    assert!(kept > 0 && lost > 0, "never kept ({kept}) or never lost ({lost}) an unacknowledged change");
}

#[test]
fn a_large_import_crashes_at_every_operation_and_at_every_sync() {
    let i = Inputs::new();
    let (origin, world) = settled(&i, 3);
    let probe = copy_of(&origin, 4);
    let (first, syncs) = (probe.ops(), probe.syncs());
    let [done, _] = live(&i, &probe, std::slice::from_ref(&BIG), world.clone(), None, false);
    assert!(done.living.contains_key("tuned@v1"));
    // Sync of the journal; create, three appends, sync, rename, sync of the directory; append and sync of the journal.
    let (ops, syncs) = (probe.ops() - first, probe.syncs() - syncs);
    assert!(delta_in(&i, &probe, "tuned@v1"), "the import that is to be stopped holds no delta");
    assert!(ops >= 9 && syncs >= 3, "{ops} operations, {syncs} syncs");
    let mut outcomes = BTreeSet::new();
    for at in 0..=ops {
        for seed in 0..6 {
            let of = format!("crash at operation {at} of {ops}, seed {seed}");
            let sim = copy_of(&origin, at * 1000 + seed);
            sim.crash_at(sim.ops() + at);
            let [sure, maybe] = live(&i, &sim, std::slice::from_ref(&BIG), world.clone(), None, false);
            assert_eq!(sure.living.contains_key("tuned@v1"), at + 1 >= ops, "{of}"); // The last marks what was acknowledged.
            let after = sim.reboot();
            outcomes.insert((at, after.files().len()));
            i.recover(&after, None, &[&sure, &maybe], &of);
        }
    }
    assert!(outcomes.len() > ops as usize + 1, "names never differed after a crash: {outcomes:?}");
}

fn delta_in(i: &Inputs, sim: &SimDisk, version: &str) -> bool {
    let engine = i.open(sim, None).unwrap();
    let record = engine.repo.record(&engine.resolve(&reference(version)).unwrap().id).unwrap();
    let file = record.files.iter().find(|f| f.path == "model.safetensors").unwrap();
    let recipe = engine.repo.packs.recipe(&file.recipe).unwrap();
    recipe.extents.iter().any(|e| engine.repo.packs.object(&e.object).unwrap().record.cost > 1)
}

#[test]
fn a_crash_while_a_crash_is_mended_loses_nothing() {
    let i = Inputs::new();
    let step = Step::Import { version: "child@v1", input: "small-2", parents: &["small@v1"], previous: None };
    let (origin, world) = settled(&i, 8);
    let (mut seed, mut ends) = (0, 0);
    for first in 0..10 {
        for second in 0..12 {
            seed += 1;
            let of = format!("crash at {first}, then at {second}");
            let sim = copy_of(&origin, seed);
            sim.crash_at(sim.ops() + first);
            let [sure, maybe] = live(&i, &sim, std::slice::from_ref(&step), world.clone(), None, false);
            let after = sim.reboot();
            let engine = i.open(&after, None).unwrap();
            let found = i.check(&engine, &[&sure, &maybe], &of);
            drop(engine);
            after.crash_at(after.ops() + second);
            let next = Step::Link("child@v1", "base@v1");
            let steps = match found.living.contains_key("child@v1") {
                true => vec![next, AFTERWARDS],
                false => vec![step.clone(), next],
            };
            let [sure, maybe] = live(&i, &after, &steps, found, None, true);
            ends += (sure == maybe) as u32;
            let last = after.reboot();
            i.check(&i.open(&last, None).unwrap(), &[&sure, &maybe], &of);
        }
    }
    assert!((1..seed as u32).contains(&ends), "{ends} of {seed} second lives ended well");
}

#[test]
fn two_imports_at_once_crash_and_keep_what_each_was_told() {
    let i = Inputs::new();
    let (origin, world) = settled(&i, 11);
    // Both hold the same new tensor; either may find the other's pack or write its own.
    let steps = [
        Step::Import { version: "one@v1", input: "small-2", parents: &["small@v1"], previous: None },
        Step::Import { version: "two@v1", input: "small-2", parents: &["base@v1"], previous: None },
    ];
    let (mut none, mut both) = (0, 0);
    for at in 0..24 {
        for seed in 0..4 {
            let of = format!("two imports, crash at operation {at}, seed {seed}");
            let sim = copy_of(&origin, at * 10 + seed);
            let engine = i.open(&sim, None).unwrap();
            sim.crash_at(sim.ops() + at);
            let told: Vec<bool> = std::thread::scope(|s| {
                let (i, sim, engine) = (&i, &sim, &engine);
                let take = |step| s.spawn(move || i.take(sim, engine, step).is_ok());
                let threads: Vec<_> = steps.iter().map(take).collect();
                threads.into_iter().map(|t| t.join().unwrap()).collect()
            });
            assert!(at < 20 || told == [true, true], "{of}: an import failed without a crash");
            drop(engine);
            let mut allowed = vec![world.clone()];
            for (step, told) in steps.iter().zip(&told) {
                let with: Vec<World> = allowed.iter().map(|w| w.after(step)).collect();
                allowed = if *told { with } else { [allowed, with].concat() };
            }
            i.recover(&sim.reboot(), None, &allowed.iter().collect::<Vec<_>>(), &of);
            none += (told == [false, false]) as u32;
            both += (told == [true, true]) as u32;
        }
    }
    assert!(none > 0 && both > 0, "{none} {both}");
}

/// The operating system's error at the bottom.
fn errno(e: &RepoError) -> Option<i32> {
    match e {
        RepoError::Store(e @ StoreError::Io { .. }) => e.io().and_then(|e| e.raw_os_error()),
        _ => None,
    }
}

#[test]
fn any_operation_may_fail_and_the_repository_goes_on() {
    let i = Inputs::new();
    let (origin, world) = settled(&i, 5);
    let probe = copy_of(&origin, 6);
    let engine = i.open(&probe, None).unwrap();
    let before = probe.ops();
    i.take(&probe, &engine, &BIG).unwrap();
    let ops = probe.ops() - before;
    drop(engine);
    for (fault, number) in [(Fault::Broken, libc::EIO), (Fault::Full, libc::ENOSPC)] {
        for at in 0..ops {
            let of = format!("{fault:?} at operation {at} of {ops}");
            let sim = copy_of(&origin, at);
            let engine = i.open(&sim, None).unwrap();
            sim.fail_at(sim.ops() + at, fault);
            let e = i.take(&sim, &engine, &BIG).expect_err(&of);
            assert_eq!(errno(&e), Some(number), "{of}: {e}");
            assert!(!e.to_string().contains('\n'), "{of}: {e}");
            i.check(&engine, &[&world], &of);
            assert!(!sim.files().iter().any(|f| f.extension().is_some_and(|e| e == "tmp")), "{of}: {:?}", sim.files());
            // The same again, under the same name, in the same process.
            i.take(&sim, &engine, &BIG).unwrap_or_else(|e| panic!("{of}, again: {e}"));
            let done = world.after(&BIG);
            i.check(&engine, &[&done], &of);
            drop(engine);
            i.recover(&sim.reboot(), None, &[&done], &of);
        }
    }
}

#[test]
fn names_and_edges_survive_failures_too() {
    let i = Inputs::new();
    let (origin, world) = settled(&i, 9);
    for step in [Step::Link("base@v1", "small@v1"), Step::Remove(&["base@v1"])] {
        for (at, fault) in [(0, Fault::Broken), (1, Fault::Broken), (0, Fault::Full), (1, Fault::Full)] {
            let of = format!("{fault:?} at operation {at}");
            let sim = copy_of(&origin, at);
            let engine = i.open(&sim, None).unwrap();
            sim.fail_at(sim.ops() + at, fault);
            assert!(errno(&i.take(&sim, &engine, &step).expect_err(&of)).is_some());
            i.check(&engine, &[&world], &of);
            i.take(&sim, &engine, &step).unwrap();
            i.check(&engine, &[&world.after(&step)], &of);
            drop(engine);
            i.recover(&sim.reboot(), None, &[&world.after(&step)], &of);
        }
    }
}

#[test]
fn a_full_disk_refuses_everything_and_harms_nothing() {
    let i = Inputs::new();
    let (origin, world) = settled(&i, 7);
    for at in 0..9 {
        let of = format!("full from operation {at} on");
        let sim = copy_of(&origin, at);
        let engine = i.open(&sim, None).unwrap();
        sim.full_from(Some(sim.ops() + at));
        let e = i.take(&sim, &engine, &BIG).expect_err(&of);
        assert_eq!(errno(&e), Some(libc::ENOSPC), "{of}: {e}");
        // A journal that could not take its last frame back holds more than was acknowledged.
        i.check_apart_from_journal(&engine, &[&world], &of);
        assert!(i.take(&sim, &engine, &Step::Link("base@v1", "small@v1")).is_err(), "{of}");
        i.check_apart_from_journal(&engine, &[&world], &of);
        drop(engine);
        // Reading a full disk goes on in a new process too.
        match i.open(&sim, None) {
            Ok(engine) => drop(i.check(&engine, &[&world, &world.after(&BIG)], &of)),
            Err(e) => panic!("{of}: a full disk cannot be read: {e}"),
        }
        sim.full_from(None);
        i.recover(&sim, None, &[&world, &world.after(&BIG)], &of);
    }
}

/// A removal that was written and not synced when its process died: gc frees what went only once it is durable.
#[test]
fn what_a_killed_process_wrote_is_durable_before_gc_acts_on_it() {
    let i = Inputs::new();
    let import = Step::Import { version: "a@v1", input: "small", parents: &[], previous: None };
    for seed in 0..12 {
        let sim = i.lab.create(seed);
        let engine = i.open(&sim, None).unwrap();
        i.take(&sim, &engine, &import).unwrap();
        sim.crash_at(sim.ops() + 1);
        assert!(engine.remove(&[reference("a@v1")]).is_err());
        drop(engine);
        let sim = sim.restart();
        let engine = i.open(&sim, None).unwrap();
        assert_eq!(engine.catalog().all().unwrap().len(), 0);
        let rules = Rules { dry_run: false, grace: Duration::ZERO, dead_percent: 0, step: STEP };
        collect(&engine, &rules, &Silent).unwrap().unwrap();
        assert_eq!(engine.repo.packs.pack_names().len(), 0);
        drop(engine);
        let engine = i.open(&sim.reboot(), None).unwrap();
        assert_eq!(engine.catalog().all().unwrap().len(), 0, "{seed}");
    }
}

/// gc goes pack by pack: stopped between, it leaves what is dead without its base.
#[test]
fn what_is_dead_and_lacks_its_base_is_no_finding() {
    let i = Inputs::new();
    let sim = i.lab.create(1);
    let engine = i.open(&sim, None).unwrap();
    let base = Step::Import { version: "base@v1", input: "base", parents: &[], previous: None };
    let tuned = Step::Import { version: "tuned@v1", input: "tuned", parents: &["base@v1"], previous: None };
    [base, tuned].iter().for_each(|step| i.take(&sim, &engine, step).unwrap());
    let pack = engine.resolve(&reference("base@v1")).unwrap().pack;
    sim.lose(&i.lab.repo_dir().join(format!("packs/{pack}.pack")));
    let found = |engine: &Engine| {
        engine.repo.refresh().unwrap();
        fsck(&engine.repo, &engine.catalog().all().unwrap(), &Silent).unwrap().findings
    };
    assert!(found(&engine).iter().any(|f| f.kind == "unreadable" && f.what.contains("tuned@v1")));
    engine.remove(&[reference("base@v1"), reference("tuned@v1")]).unwrap();
    assert_eq!(found(&engine), []);
}
