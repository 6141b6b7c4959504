//! Repack: what is stored gets smaller, ids and bytes stay, and it can stop anywhere.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::lab::{Files, Lab, assert_same, stored_tree, write_tree};
use common::{Bench, Tensor, base_tensors, safetensors, tuned_tensors, write_model};
use mgit::codec::Effort;
use mgit::model::id::Id;
use mgit::repo::engine::{Engine, label};
use mgit::repo::fsck::fsck;
use mgit::repo::gc::{Rules, STEP, collect};
use mgit::repo::progress::Silent;
use mgit::repo::repack::{Step, Target, Web, step};
use mgit::repo::{Repo, RepoError};
use mgit::store::sim::{Fault, SimDisk};
use mgit::store::{Catalog, RealDisk, lock_exclusive};

/// Each tuned from the one before.
fn line(n: usize) -> Vec<Vec<Tensor>> {
    let mut all = vec![base_tensors(7, 1)];
    for i in 1..n {
        let mut next = tuned_tensors(&all[i - 1], 100 + i as u64);
        next.iter_mut().for_each(|t| t.name = t.name.replace("bert.", ""));
        all.push(next);
    }
    all
}

#[test]
fn a_version_that_came_before_its_parent_finds_it() {
    let b = Bench::new();
    for (name, tensors) in ["base", "child", "grandchild"].into_iter().zip(line(3)) {
        write_model(&b.path("in").join(name), &tensors);
    }
    let import = |name: &str, more: &[&str]| {
        b.json(&[&["import", b.path("in").join(name).to_str().unwrap()], more].concat())["id"].clone()
    };
    let child = import("child", &["--no-parent"]);
    let grandchild = import("grandchild", &["--parent", "child"]);
    import("base", &["--no-parent"]);
    let alone = b.json(&["stats"])["pack_bytes"].as_u64().unwrap();
    assert_eq!(b.json(&["repack"])["tensors"], 0, "nobody has said yet what it came from");
    b.ok(&["link", "child", "base", "--relation", "finetune"]);
    let done = b.json(&["repack"]);
    assert_eq!(done["versions"].as_array().unwrap().len(), 1, "{done}");
    let smaller = b.json(&["stats"])["pack_bytes"].as_u64().unwrap();
    assert!(smaller * 10 < alone * 9 && done["freed_bytes"].as_u64().unwrap() > 0, "{smaller} of {alone}: {done}");
    for name in ["base", "child", "grandchild"] {
        b.ok(&["verify", b.path("in").join(name).to_str().unwrap(), name]);
    }
    assert_eq!((&b.json(&["show", "child"])["id"], &b.json(&["show", "grandchild"])["id"]), (&child, &grandchild));
    assert_eq!(b.json(&["fsck", "--rebuild"])["ok"], true);
    assert_eq!(b.json(&["repack", "child", "grandchild"])["tensors"], 0, "once is enough");
    assert_eq!(b.json(&["stats"])["pack_bytes"].as_u64(), Some(smaller));
}

struct World {
    lab: Lab,
    files: BTreeMap<String, Files>,
}

impl World {
    fn new(n: usize) -> World {
        let lab = Lab::new();
        let mut files = BTreeMap::new();
        for (i, tensors) in line(n).iter().enumerate() {
            let tree = Files::from([("model.safetensors".to_owned(), Some(safetensors(tensors)))]);
            write_tree(&lab.input(&format!("m{i}")), &tree);
            files.insert(format!("m{i}@v1"), tree);
        }
        World { lab, files }
    }

    fn open(&self, sim: &SimDisk) -> Result<Engine, RepoError> {
        let repo: Arc<Repo> = self.lab.open(sim, 1 << 20)?;
        let lock = lock_exclusive(&repo.disk, &repo.dir, false)?.expect("nobody else has the lock");
        Engine::with(repo, Catalog::temporary()?, lock)
    }

    fn import(&self, engine: &Engine, name: &str, parents: &[Id]) -> Id {
        let input = self.lab.input(name.split_once('@').unwrap().0);
        let prepared = self.lab.prepare(&engine.repo, &input, name, parents, None).unwrap();
        engine.publish(prepared.event(), &[]).unwrap().id
    }

    /// `m1` without its parent, the others one on the other, then `m0`.
    fn settled(&self, seed: u64) -> (SimDisk, Vec<Id>) {
        let sim = self.lab.create(seed);
        let engine = self.open(&sim).unwrap();
        let mut ids = vec![];
        for i in 1..self.files.len() {
            let parents: Vec<Id> = ids.last().copied().into_iter().collect();
            ids.push(self.import(&engine, &format!("m{i}@v1"), &parents));
        }
        ids.insert(0, self.import(&engine, "m0@v1", &[]));
        (sim, ids)
    }

    fn check(&self, engine: &Engine, of: &str) {
        let heads = engine.catalog().all().unwrap();
        assert_eq!(heads.len(), self.files.len(), "{of}");
        for h in &heads {
            let record = engine.repo.record(&h.id).unwrap();
            assert_same(&stored_tree(&engine.repo, &record), &self.files[&label(h)], &format!("{of}: {}", label(h)));
        }
        let report = fsck(&engine.repo, &heads, &Silent).unwrap();
        assert!(report.ok, "{of}: {:?}", report.findings);
    }
}

fn repack(repo: &Arc<Repo>, ids: &[Id]) -> Result<Step, RepoError> {
    let target = Target { version: ids[1], bases: vec![ids[0]] };
    let mut web = Web::of(repo)?;
    step(repo, &mut web, &target, Effort::Fast, &Silent).map(|s| s.expect("nothing came meanwhile"))
}

#[test]
fn it_can_stop_or_fail_at_every_operation() {
    let w = World::new(3);
    let (probe, ids) = w.settled(1);
    let engine = w.open(&probe).unwrap();
    let first = probe.ops();
    let done = repack(&engine.repo, &ids).unwrap();
    assert!(done.tensors > 0 && done.after < done.before, "{done:?}");
    w.check(&engine, "without a fault");
    let ops = probe.ops() - first;
    drop(engine);
    let rules = Rules { dry_run: false, grace: Duration::ZERO, dead_percent: 1, step: STEP };
    for at in 0..=ops {
        for seed in 0..6 {
            let of = format!("at operation {at}, seed {seed}");
            let (sim, ids) = w.settled(at * 10 + seed);
            let engine = w.open(&sim).unwrap();
            match seed {
                0 => sim.fail_at(sim.ops() + at, Fault::Broken),
                1 => sim.fail_at(sim.ops() + at, Fault::Full),
                _ => sim.crash_at(sim.ops() + at),
            }
            assert!(repack(&engine.repo, &ids).is_ok() || at < ops, "{of}");
            sim.heal();
            let after = if seed < 2 { sim.clone() } else { sim.reboot() };
            if seed < 2 {
                w.check(&engine, &format!("{of}, the same process"));
            }
            drop(engine);
            let engine = w.open(&after).unwrap();
            w.check(&engine, &of);
            collect(&engine, &rules, &Silent).unwrap().unwrap();
            w.check(&engine, &format!("{of}, freed"));
            repack(&engine.repo, &ids).unwrap();
            collect(&engine, &rules, &Silent).unwrap().unwrap();
            w.check(&engine, &format!("{of}, again"));
        }
    }
}

#[test]
fn no_block_ever_needs_more_than_eight() {
    // `m1` to `m8` are as deep as may be: on `m0` as well would be one too many for the last.
    let w = World::new(9);
    let (sim, ids) = w.settled(1);
    let engine = w.open(&sim).unwrap();
    let deepest = || engine.repo.packs.objects().iter().map(|o| engine.repo.packs.object(o).unwrap().record.cost).max();
    assert!(deepest().unwrap() <= 8);
    repack(&engine.repo, &ids).unwrap();
    assert!(deepest().unwrap() <= 8);
    w.check(&engine, "afterwards");
    // A process that saw them before follows.
    let w = World::new(4);
    let (sim, ids) = w.settled(2);
    let engine = w.open(&sim).unwrap();
    w.check(&engine, "before");
    repack(&w.open_other(&sim), &ids).unwrap();
    engine.repo.refresh().unwrap();
    w.check(&engine, "after, in a process that was there before");
}

impl World {
    fn open_other(&self, sim: &SimDisk) -> Arc<Repo> {
        self.lab.open(sim, 1 << 20).unwrap()
    }
}

#[test]
fn an_import_that_came_meanwhile_makes_the_step_start_anew() {
    let w = World::new(4);
    let (sim, ids) = w.settled(1);
    let engine = w.open(&sim).unwrap();
    let mut web = Web::of(&engine.repo).unwrap();
    // A new child of what is about to be raised.
    let late = w.lab.prepare(&engine.repo, &w.lab.input("m3"), "late@v1", &[ids[1]], None).unwrap();
    drop(late);
    engine.remove(&["m3@v1".parse().unwrap()]).unwrap();
    let target = Target { version: ids[1], bases: vec![ids[0]] };
    let done = step(&engine.repo, &mut web, &target, Effort::Fast, &Silent).unwrap();
    assert!(done.is_some(), "the same tensors were stored already: nothing new came");
}

#[test]
fn what_gc_frees_meanwhile_is_left() {
    let b = Bench::new();
    for (name, tensors) in ["base", "child"].into_iter().zip(line(2)) {
        write_model(&b.path("in").join(name), &tensors);
        b.ok(&["import", b.path("in").join(name).to_str().unwrap(), "--no-parent"]);
    }
    let id = |name: &str| b.json(&["show", name])["id"].as_str().unwrap().parse::<Id>().unwrap();
    let open = || Repo::open(&b.repo(), Arc::new(RealDisk), 1 << 20).unwrap();
    let (repo, mut web) = (open(), Web::of(&open()).unwrap()); // it has no pack open
    let (parent, child) = (id("base"), id("child"));
    b.ok(&["rm", "base"]);
    b.ok(&["gc"]);
    let work = |version, bases: &[Id], web: &mut Web| {
        step(&repo, web, &Target { version, bases: bases.to_vec() }, Effort::Fast, &Silent)
    };
    assert!(work(parent, &[], &mut web).unwrap().is_none(), "it was there when the work began");
    web = Web::of(&repo).unwrap();
    assert_eq!(work(parent, &[], &mut web).unwrap().unwrap().tensors, 0);
    assert_eq!(work(child, &[parent], &mut web).unwrap().unwrap().tensors, 0);
}
