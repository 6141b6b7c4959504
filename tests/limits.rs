//! What is there at the edges: read-only media, very many tensors, very many versions.

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Bench, base_tensors, write_model};
use jiff::Timestamp;
use mgit::model::event::Event;
use mgit::model::id::Id;
use mgit::model::name::VersionName;
use mgit::model::record::VersionRecord;
use mgit::store::{Disk, Journal, PackWriter, RealDisk};

/// A directory mounted over itself, so that nothing can be written below it.
struct ReadOnly<'a>(&'a Path);

impl ReadOnly<'_> {
    fn new(dir: &Path) -> Option<ReadOnly<'_>> {
        let mount =
            |args: &[&str]| Command::new("mount").args(args).arg(dir).output().is_ok_and(|o| o.status.success());
        if !mount(&["--bind", dir.to_str().unwrap()]) {
            eprintln!("not run: nothing can be mounted here");
            return None;
        }
        let read_only = ReadOnly(dir);
        assert!(mount(&["-o", "remount,bind,ro"]));
        Some(read_only)
    }
}

impl Drop for ReadOnly<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).output();
    }
}

#[test]
fn a_repository_on_read_only_media_is_read() {
    let b = Bench::new();
    write_model(&b.path("in/base"), &base_tensors(7, 1));
    b.ok(&["import", b.path("in/base").to_str().unwrap()]);
    let log = fs::read(b.repo().join("journal/000001.log")).unwrap();
    for catalog in [true, false] {
        if !catalog {
            fs::remove_dir_all(b.repo().join("catalog")).unwrap();
        }
        let repo = b.repo();
        let Some(_read_only) = ReadOnly::new(&repo) else { return };
        assert!(fs::write(repo.join("x"), b"").is_err());
        b.ok(&["ls"]);
        b.ok(&["verify", b.path("in/base").to_str().unwrap(), "base"]);
        assert_eq!(b.json(&["fsck"])["ok"], true);
        if let Some(m) = b.mount(&["--read-only"]) {
            let file = fs::read(m.file("base", "latest", "model.safetensors")).unwrap();
            assert!(file == fs::read(b.path("in/base/model.safetensors")).unwrap());
        }
        for args in [&["rm", "base"][..], &["tag", "base@v1", "prod"], &["import", b.path("in/base").to_str().unwrap()]]
        {
            assert!(b.fails(args).contains("ead-only file system"), "{args:?}");
        }
    }
    assert!(fs::read(b.repo().join("journal/000001.log")).unwrap() == log);
}

/// A version of every name `m@vN`, all of the same files as `m@v1`.
fn many(b: &Bench, n: u64) {
    let root = b.repo();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let repo = mgit::repo::Repo::open(&root, disk.clone(), 1 << 20).unwrap();
    let first: Id = serde_json::from_value(b.json(&["show", "m"])["id"].clone()).unwrap();
    let record = repo.record(&first).unwrap();
    let mut writer = PackWriter::create(disk.clone(), &root.join("packs")).unwrap();
    let pack = writer.name().to_owned();
    let mut events = Vec::new();
    let mut previous = first;
    for v in 2..=n {
        let version = VersionName::numbered(v);
        let record = VersionRecord { version: version.clone(), previous: Some(previous), ..record.clone() };
        let id = writer.put_version(&record.encode()).unwrap();
        events.push(Event::Commit {
            model: record.model.clone(),
            version,
            id,
            pack: pack.clone(),
            created: Timestamp::UNIX_EPOCH,
            bytes: record.logical_bytes(),
            previous: Some(previous),
            guess: false,
            settled: false,
            lossy: false,
            replaces: None,
            parents: vec![],
        });
        previous = id;
    }
    let _lease = writer.seal().unwrap();
    let mut journal = Journal::open(disk, &root.join("journal")).unwrap();
    for c in events.chunks(1000) {
        journal.append(c).unwrap();
    }
}

/// How long it takes, once the catalog has caught up.
fn seconds(b: &Bench, args: &[&str]) -> f64 {
    let start = Instant::now();
    b.ok(args);
    start.elapsed().as_secs_f64()
}

#[test]
fn very_many_versions_stay_usable() {
    let n = std::env::var("MGIT_TEST_VERSIONS").map_or(5_000, |n| n.parse().expect("a number"));
    let b = Bench::new();
    write_model(&b.path("in/m"), &base_tensors(7, 1));
    b.ok(&["import", b.path("in/m").to_str().unwrap()]);
    many(&b, n);
    let caught_up = seconds(&b, &["ls", "--json"]);
    let rows: Vec<(&str, f64)> = [
        ("ls", vec!["ls"]),
        ("show", vec!["show", "m@v7"]),
        ("log", vec!["log", "m@v7"]),
        ("import", vec!["import", b.path("in/m").to_str().unwrap(), "--as", "other"]),
        ("gc", vec!["gc"]),
    ]
    .into_iter()
    .map(|(name, args)| (name, seconds(&b, &args)))
    .collect();
    println!("{n} versions: caught up in {caught_up:.2} s; {rows:.2?}");
    if let Some(m) = b.mount(&[]) {
        let start = Instant::now();
        assert!(m.file("m", "v7", "model.safetensors").exists());
        println!("a file in the mount: {:.2?}", start.elapsed());
    }
    let limit = 5.0 + n as f64 / 2000.0; // A debug build on a busy machine; what users get stands in the README.
    assert!(rows.iter().all(|(_, s)| *s < limit), "{rows:?}");
}

#[test]
fn a_file_of_very_many_tensors_comes_back() {
    let n = std::env::var("MGIT_TEST_TENSORS").map_or(3_000, |n| n.parse().expect("a number"));
    let b = Bench::new();
    let tensor = |i: u64| common::Tensor {
        name: format!("layer.{i}.weight"),
        dtype: "I64".to_owned(),
        shape: vec![1],
        bytes: i.to_le_bytes().to_vec(),
    };
    let tensors: Vec<_> = (0..n).map(tensor).collect();
    write_model(&b.path("in/m"), &tensors);
    let import = seconds(&b, &["import", b.path("in/m").to_str().unwrap(), "--no-parent"]);
    let verify = seconds(&b, &["verify", b.path("in/m").to_str().unwrap(), "m"]);
    println!("{n} tensors: import {import:.1} s, verify {verify:.1} s");
    assert_eq!(b.json(&["fsck", "--quick"])["ok"], true);
    assert!(Duration::from_secs_f64(import + verify) < Duration::from_secs(120));
}

/// A file below `dir`, so many directories deep that its path has `len` bytes.
fn deep_file(dir: &Path, depth: usize, len: usize) -> String {
    let each = (len - depth - 1) / depth;
    let dirs = vec!["d".repeat(each); depth].join("/");
    let path = format!("{dirs}/{}", "f".repeat(len - dirs.len() - 1));
    fs::create_dir_all(dir.join(&dirs)).unwrap();
    fs::write(dir.join(&path), "deep").unwrap();
    path
}

#[test]
fn names_and_paths_are_as_long_as_the_readme_says() {
    let b = Bench::new();
    let dir = b.path("in/m");
    let long = "n".repeat(255);
    write_model(&dir, &base_tensors(7, 1));
    fs::write(dir.join(&long), "long").unwrap();
    let paths = [long, deep_file(&dir, 64, 200), deep_file(&dir, 16, 4_000)];
    let (segment, model) = ("s".repeat(80), format!("{0}/{0}", "m".repeat(80)));
    let name = format!("{model}@{segment}");
    b.ok(&["import", dir.to_str().unwrap(), "--as", "m@v1"]);
    b.ok(&["import", dir.to_str().unwrap(), "--as", &name]);
    b.ok(&["verify", dir.to_str().unwrap(), &name]);
    b.ok(&["export", &name, b.path("o").to_str().unwrap()]);
    let same = |at: &Path| paths.iter().all(|p| fs::read(at.join(p)).unwrap() == fs::read(dir.join(p)).unwrap());
    assert!(same(&b.path("o")));
    if let Some(m) = b.mount(&[]) {
        assert!(same(&m.at.join("models/m/v1")));
        assert!(m.at.join("models").join(model.replace('/', "--")).join(&segment).join(&paths[1]).exists());
    }
    for (depth, len, why) in [(65, 300, "more than 64 directories deep"), (16, 4_001, "1 to 4,000 bytes")] {
        let dir = b.path(why);
        deep_file(&dir, depth, len);
        assert!(b.fails(&["import", dir.to_str().unwrap(), "--as", "m"]).contains(why));
    }
    for name in [format!("{model}@{segment}s"), format!("{model}m"), format!("a/{model}")] {
        b.fails(&["import", dir.to_str().unwrap(), "--as", &name]);
    }
}

/// A tensor of somewhat more than four gibibytes, zeros but for its ends: where a count of 32 bits would wrap.
fn write_huge(dir: &Path, last: u8) {
    const COUNT: u64 = (1 << 30) + 100_000;
    let text = format!(r#"{{"w":{{"dtype":"F32","shape":[{COUNT}],"data_offsets":[0,{}]}}}}"#, 4 * COUNT);
    fs::create_dir_all(dir).unwrap();
    let file = fs::File::create(dir.join("model.safetensors")).unwrap();
    let head = [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    file.write_all_at(&head, 0).unwrap();
    file.write_all_at(&[1; 1000], head.len() as u64).unwrap();
    file.write_all_at(&[last; 1000], head.len() as u64 + 4 * COUNT - 1000).unwrap();
}

#[test]
fn a_tensor_beyond_four_gibibytes_comes_back() {
    let b = Bench::new();
    let (base, child) = (b.path("in/base"), b.path("in/child"));
    write_huge(&base, 1);
    write_huge(&child, 2);
    let import = seconds(&b, &["import", base.to_str().unwrap(), "--no-parent"]);
    let delta = seconds(&b, &["import", child.to_str().unwrap(), "--parent", "base"]);
    let verify = seconds(&b, &["verify", child.to_str().unwrap(), "child"]);
    println!("4 GiB: import {import:.1} s, of a child {delta:.1} s, verify {verify:.1} s");
    if let Some(m) = b.mount(&[]) {
        let (got, want) = (fs::File::open(m.file("child", "v1", "model.safetensors")), child.join("model.safetensors"));
        let (got, want) = (got.unwrap(), fs::File::open(want).unwrap());
        let len = want.metadata().unwrap().len();
        assert_eq!(got.metadata().unwrap().len(), len);
        for at in [0, (1 << 32) - 5_000, len - 10_000] {
            let (mut a, mut b) = (vec![0; 10_000], vec![0; 10_000]);
            got.read_exact_at(&mut a, at).unwrap();
            want.read_exact_at(&mut b, at).unwrap();
            assert!(a == b, "at {at}");
        }
    }
}
