//! gc: what nothing needs is freed, all else stays whole, whatever happens meanwhile.

mod common;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use common::lab::{Files, Lab, assert_same, stored_tree, write_tree};
use common::{Bench, Noise, base_tensors, fuse_is_there, safetensors, tuned_tensors, write_model};
use mgit::repo::engine::{Engine, label};
use mgit::repo::fsck::fsck;
use mgit::repo::gc::{Fate, Outcome, Rules, collect};
use mgit::repo::progress::Silent;
use mgit::repo::{Repo, RepoError};
use mgit::store::sim::{Fault, SimDisk};
use mgit::store::{Catalog, PackWriter, lock_exclusive};

const NOW: Rules = Rules { dry_run: false, grace: Duration::ZERO, dead_percent: 20, step: 1 };

/// `base`, `tuned` from it, and `other`, alone.
fn family() -> Bench {
    let b = Bench::new();
    let base = base_tensors(7, 2);
    write_model(&b.path("in/base"), &base);
    write_model(&b.path("in/tuned"), &tuned_tensors(&base, 8));
    fs::create_dir_all(b.path("in/other")).unwrap();
    fs::write(b.path("in/other/weights.bin"), Noise(3).bytes(600_000)).unwrap();
    b.ok(&["import", b.path("in/base").to_str().unwrap()]);
    b.ok(&["import", b.path("in/tuned").to_str().unwrap(), "--parent", "base"]);
    b.ok(&["import", b.path("in/other").to_str().unwrap()]);
    b
}

fn stored(b: &Bench) -> u64 {
    b.json(&["stats"])["pack_bytes"].as_u64().unwrap()
}

#[test]
fn what_is_removed_is_freed_and_bases_stay() {
    let b = family();
    let before = stored(&b);
    assert_eq!(b.json(&["gc"])["freed_bytes"], 0, "all is alive");
    b.ok(&["rm", "other", "base"]);
    let plan = b.json(&["gc", "--dry-run"]);
    assert_eq!(plan["removed"].as_array().unwrap().len(), 1, "{plan}");
    assert!(plan["freed_bytes"].as_u64().unwrap() > 600_000, "{plan}");
    assert_eq!((stored(&b), b.json(&["gc", "--grace", "1h"])["freed_bytes"].as_u64()), (before, Some(0)));
    let done = b.json(&["gc"]);
    assert!(done["freed_bytes"].as_u64().unwrap() > 600_000, "{done}");
    let after = stored(&b);
    assert_eq!(before - after, done["freed_bytes"].as_u64().unwrap());
    b.ok(&["verify", b.path("in/tuned").to_str().unwrap(), "tuned"]);
    assert_eq!(b.json(&["fsck"])["ok"], true);
    assert_eq!(b.json(&["gc"])["freed_bytes"], 0, "nothing is left to do");
    b.ok(&["rm", "tuned"]);
    b.ok(&["gc"]);
    assert_eq!((stored(&b), b.json(&["stats"])["versions"].as_u64()), (0, Some(0)));
    // The same files again.
    b.ok(&["import", b.path("in/tuned").to_str().unwrap()]);
    b.ok(&["verify", b.path("in/tuned").to_str().unwrap(), "tuned"]);
    b.ok(&["fsck", "--rebuild"]);
}

#[test]
fn a_pack_that_is_mostly_dead_is_written_anew() {
    let b = family();
    // In one pack with `other`'s bytes: a file that another version shares.
    fs::create_dir_all(b.path("in/both")).unwrap();
    fs::write(b.path("in/both/small.bin"), Noise(4).bytes(50_000)).unwrap();
    fs::write(b.path("in/both/large.bin"), Noise(5).bytes(500_000)).unwrap();
    b.ok(&["import", b.path("in/both").to_str().unwrap()]);
    fs::remove_file(b.path("in/both/large.bin")).unwrap();
    b.ok(&["import", b.path("in/both").to_str().unwrap(), "--as", "part"]);
    b.ok(&["rm", "both"]);
    let done = b.json(&["gc"]);
    assert_eq!((done["removed"].as_array().unwrap().len(), done["compacted"].as_array().unwrap().len()), (0, 1));
    assert!(done["freed_bytes"].as_u64().unwrap() > 490_000, "{done}");
    b.ok(&["verify", b.path("in/both").to_str().unwrap(), "part"]);
    assert_eq!(b.json(&["fsck"])["ok"], true);
    assert!(b.json(&["show", "part"])["files"][0]["stored_bytes"].as_u64().unwrap() > 50_000);
}

#[test]
fn a_file_that_is_open_in_the_mount_stays_readable() {
    if !fuse_is_there() {
        return;
    }
    let b = family();
    let want = fs::read(b.path("in/other/weights.bin")).unwrap();
    let m = b.mount(&[]).unwrap();
    let file = fs::File::open(m.file("other", "v1", "weights.bin")).unwrap();
    let tuned = fs::File::open(m.file("tuned", "v1", "model.safetensors")).unwrap();
    b.ok(&["rm", "other", "base"]);
    assert_eq!(b.json(&["gc"])["removed"].as_array().unwrap().len(), 0);
    let read = |f: &fs::File, n: usize| {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; n];
        f.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert!(read(&file, want.len()) == want);
    let of_tuned = fs::read(b.path("in/tuned/model.safetensors")).unwrap();
    assert!(read(&tuned, of_tuned.len()) == of_tuned);
    drop((file, tuned));
    common::wait_for(Duration::from_secs(10), || b.json(&["gc"])["freed_bytes"].as_u64().unwrap() > 600_000);
    b.ok(&["verify", b.path("in/tuned").to_str().unwrap(), "tuned"]);
}

/// On a simulated disk: `keep` and `gone` share what takes a tenth of `gone`, `keep` and `also` a third of `also`.
fn world(lab: &Lab, seed: u64) -> (SimDisk, Files) {
    let mut noise = Noise(9);
    let base = base_tensors(5, 1);
    let shared = noise.bytes(60_000);
    let more = noise.bytes(20_000);
    let keep = Files::from([
        ("model.safetensors".to_owned(), Some(safetensors(&tuned_tensors(&base, 6)))),
        ("shared.bin".to_owned(), Some(shared.clone())),
        ("more.bin".to_owned(), Some(more.clone())),
    ]);
    let gone = Files::from([
        ("model.safetensors".to_owned(), Some(safetensors(&base))),
        ("shared.bin".to_owned(), Some(shared)),
        ("own.bin".to_owned(), Some(noise.bytes(200_000))),
    ]);
    let also = Files::from([("more.bin".to_owned(), Some(more)), ("own.bin".to_owned(), Some(noise.bytes(40_000)))]);
    let (k, g, a) = (lab.input("keep"), lab.input("gone"), lab.input("also"));
    if !k.exists() {
        write_tree(&k, &keep);
        write_tree(&g, &gone);
        write_tree(&a, &also);
    }
    let sim = lab.create(seed);
    let engine = open(lab, &sim).unwrap();
    let gone = lab.prepare(&engine.repo, &g, "gone@v1", &[], None).unwrap();
    let parent = engine.publish(gone.event(), &[]).unwrap().id;
    drop(gone);
    let also = lab.prepare(&engine.repo, &a, "also@v1", &[], None).unwrap();
    engine.publish(also.event(), &[]).unwrap();
    drop(also);
    let kept = lab.prepare(&engine.repo, &k, "keep@v1", &[parent], None).unwrap();
    engine.publish(kept.event(), &[]).unwrap();
    engine.remove(&["gone@v1", "also@v1"].map(|name| name.parse().unwrap())).unwrap();
    (sim, keep)
}

fn open(lab: &Lab, sim: &SimDisk) -> Result<Engine, RepoError> {
    let repo: Arc<Repo> = lab.open(sim, 1 << 20)?;
    let lock = lock_exclusive(&repo.disk, &repo.dir, false)?.expect("nobody else has the lock");
    Engine::with(repo, Catalog::temporary()?, lock)
}

/// The one living version is whole, and nothing else is wrong.
fn check(engine: &Engine, keep: &Files, of: &str) {
    let heads = engine.catalog().all().unwrap();
    assert_eq!(heads.iter().map(label).collect::<Vec<_>>(), ["keep@v1"], "{of}");
    assert_same(&stored_tree(&engine.repo, &engine.repo.record(&heads[0].id).unwrap()), keep, of);
    let report = fsck(&engine.repo, &heads, &Silent).unwrap();
    assert!(report.ok, "{of}: {:?}", report.findings);
}

/// All steps of it.
fn gc(engine: &Engine) -> Result<Outcome, RepoError> {
    let mut all = Outcome { more: true, ..Outcome::default() };
    while all.more {
        all = all.and(collect(engine, &NOW, &Silent)?.expect("nothing else runs"));
    }
    Ok(all)
}

#[test]
fn it_can_stop_or_fail_at_every_operation() {
    let lab = Lab::new();
    let (probe, keep) = world(&lab, 1);
    let engine = open(&lab, &probe).unwrap();
    let first = probe.ops();
    let done = gc(&engine).unwrap();
    assert!(done.packs.iter().any(|p| p.fate == Fate::Compact) && done.freed_bytes > 190_000, "{done:?}");
    check(&engine, &keep, "without a fault");
    let ops = probe.ops() - first;
    assert!(ops > 12, "several steps: {ops}");
    for at in 0..=ops {
        for seed in 0..6 {
            let of = format!("crash at operation {at}, seed {seed}");
            let (sim, _) = world(&lab, at * 10 + seed);
            let engine = open(&lab, &sim).unwrap();
            sim.crash_at(sim.ops() + at);
            assert_eq!(gc(&engine).is_ok(), at == ops, "{of}");
            let after = sim.reboot();
            let engine = open(&lab, &after).unwrap();
            check(&engine, &keep, &of);
            gc(&engine).unwrap();
            check(&engine, &keep, &format!("{of}, again"));
            assert!(engine.repo.packs.pack_bytes() < 600_000 && gc(&engine).unwrap().freed_bytes == 0, "{of}");
        }
        for fault in [Fault::Broken, Fault::Full] {
            let of = format!("{fault:?} at operation {at}");
            let (sim, _) = world(&lab, at);
            let engine = open(&lab, &sim).unwrap();
            sim.fail_at(sim.ops() + at, fault);
            let _ = gc(&engine); // A removal goes through on a full disk.
            sim.heal();
            check(&engine, &keep, &of);
            gc(&engine).unwrap();
            check(&engine, &keep, &format!("{of}, again"));
        }
    }
}

/// Between two steps whatever is removed, taken back or imported counts in the next.
#[test]
fn an_import_has_its_turn_between_two_steps() {
    let lab = Lab::new();
    let (sim, keep) = world(&lab, 1);
    let engine = open(&lab, &sim).unwrap();
    let first = collect(&engine, &NOW, &Silent).unwrap().unwrap();
    assert!(first.more, "{first:?}");
    let again = lab.prepare(&engine.repo, &lab.input("gone"), "again@v1", &[], None).unwrap();
    assert!(collect(&engine, &NOW, &Silent).unwrap().is_none(), "it has its turn");
    let head = engine.publish(again.event(), &[]).unwrap();
    drop(again);
    gc(&engine).unwrap();
    let record = engine.repo.record(&head.id).unwrap();
    let stored = stored_tree(&engine.repo, &record);
    assert!(stored["own.bin"] == Some(fs::read(lab.input("gone/own.bin")).unwrap()));
    engine.remove(&["again@v1".parse().unwrap()]).unwrap();
    assert!(gc(&engine).unwrap().freed_bytes > 190_000);
    check(&engine, &keep, "in the end");
}

#[test]
fn it_leaves_alone_what_a_running_import_adds_and_frees_what_a_crashed_one_left() {
    let lab = Lab::new();
    let (sim, keep) = world(&lab, 1);
    let engine = open(&lab, &sim).unwrap();
    let again = lab.prepare(&engine.repo, &lab.input("gone"), "again@v1", &[], None).unwrap();
    assert!(collect(&engine, &NOW, &Silent).unwrap().is_none(), "an import is running");
    engine.publish(again.event(), &[]).unwrap();
    drop(again);
    assert!(gc(&engine).unwrap().freed_bytes < 100_000, "what was removed is needed again");
    engine.remove(&["again@v1".parse().unwrap()]).unwrap();
    gc(&engine).unwrap();
    let before = engine.repo.packs.pack_bytes();
    drop(lab.prepare(&engine.repo, &lab.input("gone"), "never@v1", &[], None).unwrap());
    engine.repo.refresh().unwrap();
    assert!(engine.repo.packs.pack_bytes() > before + 190_000);
    let young = Rules { grace: Duration::from_secs(3600), ..NOW };
    assert_eq!(collect(&engine, &young, &Silent).unwrap().unwrap().freed_bytes, 0, "it is young");
    gc(&engine).unwrap();
    assert_eq!(engine.repo.packs.pack_bytes(), before);
    check(&engine, &keep, "afterwards");
    // A pack that is being written keeps the gate too.
    let writer = PackWriter::create(engine.repo.disk.clone(), &engine.repo.dir.join("packs")).unwrap();
    assert!(collect(&engine, &NOW, &Silent).unwrap().is_none());
    drop(writer);
    assert!(collect(&engine, &NOW, &Silent).unwrap().is_some());
}

#[test]
fn a_reader_in_another_process_finds_what_has_moved() {
    let lab = Lab::new();
    let (sim, keep) = world(&lab, 1);
    let engine = open(&lab, &sim).unwrap();
    let reader = lab.open(&sim, 1 << 18).unwrap();
    let head = engine.catalog().all().unwrap().remove(0);
    let record = reader.record(&head.id).unwrap();
    assert_same(&stored_tree(&reader, &record), &keep, "before");
    assert!(gc(&engine).unwrap().freed_bytes > 0);
    assert_same(&stored_tree(&reader, &record), &keep, "after");
    // Nor need it have seen what another imported since it looked.
    let again = lab.prepare(&engine.repo, &lab.input("gone"), "again@v1", &[], None).unwrap();
    let id = engine.publish(again.event(), &[]).unwrap().id;
    drop(again);
    let stored = stored_tree(&reader, &reader.record(&id).unwrap());
    assert!(stored["own.bin"] == Some(fs::read(lab.input("gone/own.bin")).unwrap()));
}

#[test]
fn nothing_is_freed_while_something_needed_is_missing() {
    let lab = Lab::new();
    let (sim, _) = world(&lab, 1);
    let engine = open(&lab, &sim).unwrap();
    let head = engine.catalog().all().unwrap().remove(0);
    sim.lose(&lab.repo_dir().join(format!("packs/{}.pack", head.pack)));
    let before = sim.files();
    let why = collect(&engine, &NOW, &Silent).unwrap_err().to_string();
    assert!(why.contains("missing") && why.contains("mgit fsck"), "{why}");
    assert_eq!(sim.files(), before);
    engine.remove(&["keep@v1".parse().unwrap()]).unwrap();
    gc(&engine).unwrap();
    assert_eq!(engine.repo.packs.pack_bytes(), 0);
}
