//! What cannot be imported: each time one clear line, exit 1, and a repository that is as it was.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Bench, Noise, Over, base_tensors, write_model};
use mgit::model::name::{ModelName, VersionName, VersionRef, safe_path};

/// Everything that is ground state, by name, and what `stats` and `ls` say.
#[derive(PartialEq, Debug)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    stats: serde_json::Value,
    list: serde_json::Value,
}

fn state(b: &Bench) -> State {
    let mut files = BTreeMap::new();
    for dir in ["packs", "journal"] {
        for entry in fs::read_dir(b.repo().join(dir)).unwrap().flatten() {
            files.insert(format!("{dir}/{}", entry.file_name().to_str().unwrap()), fs::read(entry.path()).unwrap());
        }
    }
    State { files, stats: b.json(&["stats"]), list: b.json(&["ls"]) }
}

/// A repository with `base@v1`, and what it is like.
struct Whole {
    b: Bench,
    before: State,
}

impl Whole {
    fn new() -> Whole {
        let b = Bench::new();
        write_model(&b.path("in/base"), &base_tensors(5, 1));
        b.ok(&["import", b.path("in/base").to_str().unwrap()]);
        let before = state(&b);
        Whole { b, before }
    }

    /// A new directory for a model, with a config in it.
    fn dir(&self, name: &str) -> PathBuf {
        let dir = self.b.path("in").join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("config.json"), b"{}").unwrap();
        dir
    }

    /// The import fails with one line that has all of `words`, and changes nothing.
    fn refuses(&self, args: &[&str], words: &[&str]) {
        let line = self.b.fails(&[&["import"], args].concat());
        words.iter().for_each(|w| assert!(line.contains(w), "{args:?}: '{w}' is not in: {line}"));
        assert!(line.starts_with("mgit: ") && line.len() < 600, "{line}");
        self.is_unchanged(&format!("{args:?}"));
    }

    fn refuses_path(&self, path: &Path, words: &[&str]) {
        self.refuses(&[path.to_str().unwrap()], words);
    }

    fn is_unchanged(&self, after: &str) {
        let now = state(&self.b);
        let names = |s: &State| s.files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&now), names(&self.before), "after {after}");
        assert_eq!((&now.stats, &now.list), (&self.before.stats, &self.before.list), "after {after}");
        assert!(now.files == self.before.files, "after {after}: other bytes in packs or journal");
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.b.json(&["fsck"])["ok"], true);
        }
    }
}

/// A safetensors file from its parts.
fn file_of(header: &[u8], data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.resize(file.len() + data, 7);
    file
}

fn tensor(name: &str, dtype: &str, shape: &str, from: u64, to: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
}

#[test]
fn files_that_are_not_what_their_name_says() {
    let w = Whole::new();
    let ok = |tensors: &[String], data| file_of(format!("{{{}}}", tensors.join(",")).as_bytes(), data);
    let good = ok(&[tensor("w", "F32", "[4]", 0, 16)], 16);
    let mut past_end = good.clone();
    past_end[..8].copy_from_slice(&(good.len() as u64).to_le_bytes());
    let mut absurd = good.clone();
    absurd[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut latin1 = good.clone();
    latin1[10] = 0xe9;
    let two = |from, to| ok(&[tensor("a", "U8", "[8]", 0, 8), tensor("b", "U8", "[8]", from, to)], 16);
    let twice = ok(&[tensor("a", "U8", "[8]", 0, 8), tensor("a", "U8", "[8]", 8, 16)], 16);
    let deep = [vec![b'['; 200_000], vec![b']'; 200_000]].concat();
    let overflow = tensor("w", "F32", "[4294967296,4294967296,16]", 0, 16);
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("no bytes", vec![], &["too short"]),
        ("seven bytes", vec![0; 7], &["too short", "7 bytes"]),
        ("only a length", 64u64.to_le_bytes().to_vec(), &["past the end"]),
        ("cut in its header", good[..20].to_vec(), &["past the end", "truncated"]),
        ("cut in its data", good[..good.len() - 1].to_vec(), &["tensor 'w'", "0..16", "15 bytes"]),
        ("a length past the end", past_end, &["past the end"]),
        ("an absurd length", absurd, &["past the end"]),
        ("not JSON", file_of(b"{'w': 1}", 16), &["header is not valid"]),
        ("a header that ends early", file_of(br#"{"w":{"dtype""#, 16), &["header is not valid"]),
        ("an empty header", file_of(b"", 16), &["header is not valid"]),
        ("JSON but a list", file_of(b"[]", 16), &["header is not valid"]),
        ("JSON and more", file_of(b"{} {}", 0), &["header is not valid"]),
        ("nested deep", file_of(&[br#"{"w":"#, &deep[..], b"}"].concat(), 0), &["header is not valid"]),
        ("not UTF-8", latin1, &["not UTF-8"]),
        ("a name twice", twice, &["'a'", "twice"]),
        (
            "a key of a tensor twice",
            file_of(br#"{"w":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}"#, 1),
            &["header is not valid", "dtype"],
        ),
        ("a tensor without a shape", file_of(br#"{"w":{"dtype":"U8","data_offsets":[0,1]}}"#, 1), &["shape"]),
        ("overlapping", two(4, 12), &["overlaps", "'b'"]),
        ("the same bytes for two", two(0, 8), &["overlaps"]),
        ("past the end", two(8, 17), &["'b'", "8..17", "outside"]),
        ("far past the end", ok(&[tensor("w", "U8", "[1]", u64::MAX - 1, u64::MAX)], 16), &["'w'", "outside"]),
        ("backwards", ok(&[tensor("w", "U8", "[8]", 8, 0)], 16), &["'w'", "outside"]),
        (
            "negative",
            file_of(br#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}}"#, 1),
            &["header is not valid"],
        ),
        ("a shape of more bytes", ok(&[tensor("w", "F32", "[5]", 0, 16)], 16), &["'w'", "[5]", "16 bytes"]),
        ("a shape of fewer bytes", ok(&[tensor("w", "BF16", "[2,3]", 0, 16)], 16), &["'w'", "BF16", "[2, 3]"]),
        ("half a byte too few", ok(&[tensor("w", "F4", "[3]", 0, 1)], 1), &["'w'", "F4"]),
        ("a shape that overflows", ok(&[overflow], 16), &["'w'"]),
        ("a hostile name", ok(&[tensor(r"a\n\u001b[31m", "F32", "[5]", 0, 16)], 16), &[r"a\n\u{1b}[31m"]),
        (
            "a Git LFS pointer",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n".to_vec(),
            &["git lfs pull"],
        ),
    ];
    let dir = w.dir("bad");
    let path = dir.join("model.safetensors");
    for (what, bytes, words) in cases {
        fs::write(&path, bytes).unwrap();
        let line = w.b.fails(&["import", dir.to_str().unwrap()]);
        words.iter().for_each(|word| assert!(line.contains(word), "{what}: '{word}' is not in: {line}"));
        assert!(line.contains("model.safetensors"), "{what}: the file is not named: {line}");
    }
    w.is_unchanged("bad files in a directory");
    w.refuses_path(&path, &["model.safetensors", "git lfs pull"]);
    // Over the format's limit, in a file that is long enough.
    let huge = File::create(&path).unwrap();
    huge.set_len(200 << 20).unwrap();
    huge.write_all_at(&150_000_000u64.to_le_bytes(), 0).unwrap();
    w.refuses_path(&dir, &["150000000 bytes", "over the format's limit"]);
    // One bad shard of two.
    fs::write(dir.join("a.safetensors"), &good).unwrap();
    fs::write(&path, &good[..good.len() - 1]).unwrap();
    w.refuses_path(&dir, &["model.safetensors", "tensor 'w'"]);
}

#[test]
fn what_is_in_the_directory_but_cannot_be_read() {
    let w = Whole::new();
    let dir = w.dir("odd");
    let odd = dir.join("odd");
    let case = |words: &[&str]| {
        w.refuses_path(&dir, words);
        fs::remove_file(&odd).unwrap();
    };
    symlink("/nowhere/at/all", &odd).unwrap();
    case(&["odd", "No such file"]);
    symlink("/proc/self/mem", &odd).unwrap(); // Opens, and cannot be read.
    case(&["odd"]);
    symlink(&odd, &odd).unwrap();
    case(&["odd", "symbolic links"]);
    symlink("..", &odd).unwrap();
    case(&["loop"]);
    symlink(".", &odd).unwrap();
    case(&["odd", "loop"]);
    symlink("/dev/zero", &odd).unwrap();
    case(&["odd", "a device"]);
    let c = CString::new(odd.to_str().unwrap()).unwrap();
    // SAFETY: the path is a NUL-terminated string that lives through the call.
    assert_eq!(unsafe { libc::mkfifo(c.as_ptr(), 0o600) }, 0);
    case(&["odd", "a FIFO"]);
    drop(UnixListener::bind(&odd).unwrap());
    case(&["odd", "a socket"]);
    let bad = std::os::unix::ffi::OsStrExt::from_bytes(b"w\xff.bin");
    fs::write(dir.join::<&std::ffi::OsStr>(bad), b"x").unwrap();
    w.refuses_path(&dir, &["not UTF-8"]);
    w.refuses_path(&w.b.path("in/nothing"), &["nothing", "No such file"]);
    fs::create_dir(w.b.path("in/empty")).unwrap();
    w.refuses_path(&w.b.path("in/empty"), &["empty directory"]);
    w.refuses_path(&w.b.path("in/base/config.json"), &["config.json", "not a directory or a .safetensors file"]);
    w.refuses(&["--each", w.b.path("in/nothing").to_str().unwrap()], &["nothing", "No such file"]);
    w.refuses(&["--each", w.b.path("in/empty").to_str().unwrap()], &["no model directory"]);
}

#[test]
fn names_and_parents() {
    let w = Whole::new();
    let base = w.b.path("in/base");
    let base = base.to_str().unwrap();
    let long = "x".repeat(300);
    let long_version = format!("m@{long}");
    for name in [
        "",
        "a/b/c",
        "/a",
        "a/",
        "a//b",
        "..",
        "a/..",
        "../a",
        "m@..",
        "a\nb",
        "m@a\nb",
        "a--b",
        "m@a--b",
        "m@",
        "@v1",
        "m@v1@v2",
        "-a",
        "a-",
        ".a",
        "a b",
        "ä",
        "a\u{1b}[31m",
        &long,
        &long_version,
    ] {
        // `--as=`: a name may begin with '-'.
        let line = w.b.fails(&["import", base, &format!("--as={name}")]);
        assert!(line.contains("bad ") && line.len() < 400, "{name:?}: {line}");
        assert!(!line.contains('\u{1b}'), "{name:?}: {line}");
    }
    w.is_unchanged("bad names");
    // NUL cannot be in an argument, but can come in a request.
    for name in ["a\0b", "m@a\0b", "\0"] {
        assert!(name.parse::<VersionRef>().is_err() && name.parse::<ModelName>().is_err());
        assert!(serde_json::from_value::<ModelName>(name.into()).is_err());
    }
    assert!("latest".parse::<VersionName>().is_err() && safe_path("a\0b").is_err());
    w.refuses(&[base, "--as", "base@v1"], &["base@v1", "exists already"]);
    w.refuses(&[base, "--as", "m", "--parent", "nosuch"], &["nosuch", "no version"]);
    w.refuses(&[base, "--as", "m", "--parent", "base@v9"], &["base@v9", "no version"]);
    w.refuses(&[base, "--as", "m", "--parent", "base", "--parent", "nosuch@v1"], &["nosuch@v1", "no version"]);
    w.refuses(&[base, "--as", "base", "--parent", "base", "--parent", "base@v1"], &["one --parent"]);
    // `latest` is a reference, never the name of a new version.
    let line = w.b.run(&["import", base, "--as", "m@latest"]);
    assert_eq!(line.code, 1, "m@latest as a new name: {}{}", line.out, line.err);
    assert!(line.err.contains("'latest' is reserved"), "{}", line.err);
    w.is_unchanged("'latest'");
    // A directory that cannot name its model.
    let odd = w.dir("odd name");
    w.refuses_path(&odd, &["--as MODEL", "odd name"]);
    let ran = w.b.run(&["import", base, "--parent", "a/b/c"]);
    assert_eq!(ran.code, 2, "a malformed reference is wrong usage: {}", ran.err);
    assert!(ran.err.contains("at most one owner"), "{}", ran.err);
    w.is_unchanged("wrong usage");
}

#[test]
fn the_repository_and_its_mount_are_no_models() {
    let w = Whole::new();
    let repo = w.b.repo();
    for path in [repo.clone(), repo.join("packs"), w.b.dir.path().to_owned()] {
        w.refuses(&[path.to_str().unwrap(), "--as", "m"], &["repository itself"]);
    }
    let link = w.b.path("in/link");
    symlink(&repo, &link).unwrap();
    w.refuses(&[link.to_str().unwrap(), "--as", "m"], &["repository itself"]);
    let Some(m) = w.b.mount(&[]) else { return };
    for path in
        ["", "models", "models/base", "models/base/v1", "models/base/latest", "models/base/v1/model.safetensors"]
    {
        w.refuses(&[m.at.join(path).to_str().unwrap(), "--as", "m"], &["mount of the same repository"]);
    }
}

#[test]
fn a_file_that_changes_all_the_while_is_never_stored_wrong() {
    const BLOCKS: u64 = 1024;
    let w = Whole::new();
    let dir = w.dir("live");
    let path = dir.join("weights.bin");
    let file = File::create(&path).unwrap();
    file.write_all_at(&Noise(9).bytes((BLOCKS << 16) as usize), 0).unwrap();
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(1));
    std::thread::scope(|s| {
        let _over = Over(&stop);
        // A number that never comes twice, into every block, over and over.
        s.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                let n = rounds.fetch_add(1, Ordering::SeqCst);
                (0..BLOCKS).for_each(|i| file.write_all_at(&n.to_le_bytes(), (i << 16) + 100).unwrap());
            }
        });
        for _ in 0..3 {
            let first = rounds.load(Ordering::SeqCst);
            w.refuses_path(&dir, &["weights.bin", "changed while it was read"]);
            assert!(rounds.load(Ordering::SeqCst) > first, "nothing was written meanwhile");
        }
    });
    w.b.ok(&["import", dir.to_str().unwrap(), "--as", "live"]);
    w.b.ok(&["verify", dir.to_str().unwrap(), "live"]);
    assert_eq!(w.b.json(&["fsck"])["ok"], true);
}

/// An import of `dir` that has begun to write its pack.
fn import_at_work(b: &Bench, dir: &Path) -> Child {
    let mut child = b.command(&["import", dir.to_str().unwrap()]).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    let written = || {
        let packs = fs::read_dir(b.repo().join("packs")).unwrap().flatten();
        let unsealed = packs.filter(|e| e.path().extension().is_some_and(|x| x == "tmp"));
        unsealed.filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum::<u64>()
    };
    while written() < 1 << 20 {
        assert!(start.elapsed() < Duration::from_secs(60), "the import writes nothing");
        assert!(child.try_wait().unwrap().is_none(), "the import ended too early");
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

/// Exit code (or minus the signal) and standard error.
fn outcome(child: Child) -> (i32, String) {
    let out = child.wait_with_output().unwrap();
    let code = out.status.code().unwrap_or_else(|| -out.status.signal().unwrap());
    (code, String::from_utf8(out.stderr).unwrap())
}

/// A directory whose import takes a while.
fn large(w: &Whole) -> PathBuf {
    let dir = w.dir("large");
    fs::write(dir.join("weights.bin"), Noise(11).bytes(160 << 20)).unwrap();
    dir
}

#[test]
fn a_file_that_changes_between_hashing_and_storing() {
    let w = Whole::new();
    let dir = large(&w);
    let path = dir.join("weights.bin");
    let size = fs::metadata(&path).unwrap().len();
    type Change = fn(&Path, u64);
    let changes: [Change; 3] = [
        |path, size| File::options().write(true).open(path).unwrap().write_all_at(b"changed", size - 9).unwrap(),
        |path, size| File::options().write(true).open(path).unwrap().set_len(size - 1).unwrap(),
        |path, _| {
            fs::write(path.with_extension("new"), b"short").unwrap();
            fs::rename(path.with_extension("new"), path).unwrap();
        },
    ];
    for change in changes {
        let child = import_at_work(&w.b, &dir);
        change(&path, size);
        let (code, err) = outcome(child);
        assert_eq!(code, 1, "{err}");
        assert!(err.contains("weights.bin: changed while it was read"), "{err}");
        w.is_unchanged("a change");
    }
}

fn signal(child: &Child, signal: i32) {
    // SAFETY: kill takes two numbers; the child has not been waited for, so its id is its own.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

#[test]
fn ctrl_c_undoes_an_import_and_a_kill_leaves_nothing_that_counts() {
    let w = Whole::new();
    let dir = large(&w);
    for (stop, words) in [(libc::SIGINT, "interrupted"), (libc::SIGTERM, "interrupted")] {
        let child = import_at_work(&w.b, &dir);
        signal(&child, stop);
        let start = Instant::now();
        let (code, err) = outcome(child);
        assert!(code == 1 && err.contains(words), "{code}: {err}");
        assert!(start.elapsed() < Duration::from_secs(20), "it went on for {:?}", start.elapsed());
        w.is_unchanged("a signal");
    }
    let child = import_at_work(&w.b, &dir);
    signal(&child, libc::SIGKILL);
    assert_eq!(outcome(child).0, -libc::SIGKILL);
    assert_eq!(w.b.json(&["fsck"])["ok"], true);
    assert_eq!(w.b.json(&["ls"]), w.before.list);
    fs::remove_file(dir.join("weights.bin")).unwrap();
    w.b.ok(&["import", dir.to_str().unwrap(), "--as", "large"]);
    let left = packs(&w.b);
    assert!(left.len() == 2 && left.iter().all(|n| n.ends_with(".pack")), "{left:?}");
}

/// A small filesystem of its own, unmounted when dropped.
struct SmallDisk(CString);

impl SmallDisk {
    /// `None` where only root could mount it, and we are not root; `MGIT_REQUIRE_FUSE=1` says that we can.
    fn mount(at: &Path, options: &str) -> Option<SmallDisk> {
        fs::create_dir_all(at).unwrap();
        let path = CString::new(at.to_str().unwrap()).unwrap();
        let options = CString::new(options).unwrap();
        // SAFETY: all four are NUL-terminated strings that live through the call.
        let done =
            unsafe { libc::mount(c"tmpfs".as_ptr(), path.as_ptr(), c"tmpfs".as_ptr(), 0, options.as_ptr().cast()) };
        if done != 0 {
            let why = std::io::Error::last_os_error();
            // SAFETY: geteuid takes nothing and cannot fail.
            let root = unsafe { libc::geteuid() } == 0;
            assert!(!root && std::env::var("MGIT_REQUIRE_FUSE").as_deref() != Ok("1"), "cannot mount a tmpfs: {why}");
            eprintln!("not run: only root can mount a small disk ({why})");
            return None;
        }
        Some(SmallDisk(path))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // SAFETY: the path is a NUL-terminated string that lives through the call.
        unsafe { libc::umount2(self.0.as_ptr(), libc::MNT_DETACH) };
    }
}

/// Fills a tmpfs with one file but for so many pages.
fn fill(disk: &Path, free: u64) {
    const PAGE: u64 = 4096;
    let filler = File::create(disk.join("filler")).unwrap();
    let mut at = 0;
    while filler.write_all_at(&[1; PAGE as usize], at).is_ok() {
        at += PAGE;
    }
    filler.set_len(at - free * PAGE).unwrap();
}

/// Imports while others leave so few pages that it stops at each step, up to the last one of its commit.
/// Returns where it stopped.
fn squeeze(b: &Bench, disk: &Path, rounds: std::ops::Range<u32>) -> BTreeSet<&'static str> {
    let base = b.path("in/base");
    let base = base.to_str().unwrap();
    let (mut stopped, mut more) = (BTreeSet::new(), 0);
    for round in rounds {
        let (listed, before) = (b.json(&["ls"]), packs(b));
        let free = if round % 8 == 0 { 0 } else { 1 + more };
        fill(disk, free);
        let name = format!("small@v{round}");
        let ran = b.run(&["import", base, "--as", &name]);
        let kept = packs(b);
        fs::remove_file(disk.join("filler")).unwrap();
        more = 0;
        if ran.code == 0 {
            b.ok(&["verify", base, &name]);
        } else {
            assert!(ran.code == 1 && ran.err.contains("No space left"), "{free}: {}", ran.err);
            assert_eq!(ran.err.lines().count(), 1, "{free}: {}", ran.err);
            assert_eq!(b.json(&["ls"]), listed, "{free}: {}", ran.err);
            // Sealed before the journal could name it, a pack stays: other imports may have built on it by now.
            let sealed = ran.err.contains("journal") || ran.err.contains("catalog");
            assert!(kept == before || sealed && kept.len() == before.len() + 1, "{free}: {kept:?} {}", ran.err);
            assert!(kept.iter().all(|n| n.ends_with(".pack")), "{kept:?}");
            stopped.insert(if sealed { "publishing" } else { "packing" });
            more = sealed as u64;
        }
        assert_eq!(b.json(&["fsck"])["ok"], true, "{free}: {}", ran.err);
    }
    stopped
}

/// The files in `packs/` but for the derived ones and the lock, sorted.
fn packs(b: &Bench) -> Vec<String> {
    let names = fs::read_dir(b.repo().join("packs")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|n| !["sketches", "footers", "gate"].contains(&n.as_str())).collect();
    names.sort();
    names
}

#[test]
fn a_full_disk_costs_only_what_did_not_fit() {
    let b = Bench::without_repo();
    let disk = b.path("disk");
    let Some(_small) = SmallDisk::mount(&disk, "size=16m") else { return };
    b.ok(&["init", disk.join("repo").to_str().unwrap()]);
    symlink(disk.join("repo"), b.repo()).unwrap();
    write_model(&b.path("in/base"), &base_tensors(5, 2));
    let base = b.path("in/base");
    b.ok(&["import", base.to_str().unwrap()]);
    let (stats, before) = (b.json(&["stats"]), packs(&b));
    let large = b.path("in/large");
    fs::create_dir(&large).unwrap();
    for size in [40u64 << 20, 16 << 20] {
        fs::write(large.join("weights.bin"), Noise(size).bytes(size as usize)).unwrap();
        let line = b.fails(&["import", large.to_str().unwrap()]);
        assert!(line.contains("No space left"), "{size}: {line}");
        assert_eq!(packs(&b), before, "{size}");
        assert_eq!(b.json(&["stats"]), stats, "{size}");
        assert_eq!(b.json(&["fsck"])["ok"], true, "{size}");
    }
    let both = BTreeSet::from(["packing", "publishing"]);
    assert_eq!(squeeze(&b, &disk, 0..32), both);
    if let Some(_m) = b.mount(&[]) {
        assert_eq!(squeeze(&b, &disk, 32..64), both, "through the daemon");
    }
    // Others fill the disk to the last byte, and free it again.
    fill(&disk, 0);
    let before = packs(&b);
    fs::write(large.join("weights.bin"), Noise(77).bytes(1 << 20)).unwrap();
    let line = b.fails(&["import", large.to_str().unwrap()]);
    assert!(line.contains("No space left"), "{line}");
    b.ok(&["verify", base.to_str().unwrap(), "base"]);
    assert_eq!(packs(&b), before);
    fs::remove_file(disk.join("filler")).unwrap();
    assert_eq!(b.json(&["fsck"])["ok"], true);
    // The packs that were sealed in vain.
    b.ok(&["gc", "--grace", "0s"]);
    b.ok(&["import", large.to_str().unwrap()]);
    b.ok(&["verify", large.to_str().unwrap(), "large"]);
    b.ok(&["verify", base.to_str().unwrap(), "base"]);
}
