//! `mgit mount --disk-cache`: what is read whole is kept as a plain file, served by the kernel where it can, believed
//! after a restart, and never served once it differs.

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{Bench, Map, Mount, base_tensors, safetensors, tuned_tensors};

const CACHE: &[&str] = &["--disk-cache", "64MiB"];

/// A repository with a base and a child stored as a delta, and the child's bytes.
fn bench() -> (Bench, Vec<u8>) {
    let bench = Bench::new();
    let base = base_tensors(1, 12);
    let child = safetensors(&tuned_tensors(&base, 2));
    for (name, bytes, parent) in [("base", &safetensors(&base), "--no-parent"), ("child", &child, "--parent=base")] {
        let dir = bench.path("in").join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("model.safetensors"), bytes).unwrap();
        fs::write(dir.join("config.json"), "{}").unwrap();
        bench.ok(&["import", dir.to_str().unwrap(), parent]);
    }
    (bench, child)
}

fn weights(mount: &Mount) -> PathBuf {
    mount.file("child", "v1", "model.safetensors")
}

fn cached(bench: &Bench) -> Vec<String> {
    let list = bench.json(&["cache", "ls"]);
    list["files"].as_array().unwrap().iter().map(|f| f["of"].as_str().unwrap().to_owned()).collect()
}

/// Waits until the child's weights are kept.
fn wait_for_it(bench: &Bench) {
    let start = Instant::now();
    while cached(bench) != ["child@v1/model.safetensors"] {
        assert!(start.elapsed() < Duration::from_secs(60), "nothing is kept");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn plain_file(bench: &Bench) -> PathBuf {
    let dir = fs::read_dir(bench.path("home/.cache/mgit")).unwrap().next().unwrap().unwrap().path();
    let long = |p: &PathBuf| p.file_name().unwrap().len() == 64;
    fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).find(long).expect("a plain file")
}

/// What a process's daemon has no part in: reading while it is stopped. `None` when the read waits for it.
fn read_without_daemon(bench: &Bench, file: File, len: usize) -> Option<Vec<u8>> {
    let forget = |file: &File| {
        // SAFETY: the call takes a descriptor and numbers.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    };
    let pid = daemon(bench);
    let signal = |signal| {
        // SAFETY: the call takes numbers; the process is the daemon that this test started.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    };
    std::thread::sleep(Duration::from_millis(100)); // What is read ahead cannot be forgotten until it is there.
    forget(&file);
    signal(libc::SIGSTOP);
    let (done, result) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut out = vec![0; len];
        file.read_exact_at(&mut out, 0).unwrap();
        let _ = done.send(out);
    });
    let out = result.recv_timeout(Duration::from_secs(2)).ok();
    signal(libc::SIGCONT);
    reader.join().unwrap();
    out
}

/// The process that serves this bench's mount.
fn daemon(bench: &Bench) -> i32 {
    let at = bench.path("mnt");
    let ours = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
        words.contains(&&b"--foreground"[..]) && words.contains(&at.as_os_str().as_encoded_bytes())
    };
    let pids = fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().to_str()?.parse().ok());
    pids.into_iter().find(ours).expect("a daemon")
}

/// Root on a kernel of 6.9 or later: the kernel can read backing files by itself.
fn passes_through() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    // SAFETY: the call takes nothing and cannot fail.
    version >= (6, 9) && unsafe { libc::geteuid() } == 0
}

#[test]
fn what_is_read_whole_is_kept_and_served_after_a_restart() {
    let (bench, child) = bench();
    let Some(mount) = bench.mount(CACHE) else { return };
    assert!(cached(&bench).is_empty());
    assert_eq!(fs::read(weights(&mount)).unwrap(), child);
    wait_for_it(&bench);
    assert_eq!(fs::read(weights(&mount)).unwrap(), child);
    drop(mount);
    let mount = bench.mount(CACHE).unwrap();
    wait_for_it(&bench);
    let file = File::open(weights(&mount)).unwrap();
    assert!(file.metadata().unwrap().len() == child.len() as u64);
    let alone = read_without_daemon(&bench, file, child.len());
    assert!(alone.as_ref().is_none_or(|bytes| *bytes == child));
    assert_eq!(alone.is_some(), passes_through(), "does the kernel read the plain file by itself?");
    let small = mount.file("child", "v1", "config.json");
    assert_eq!(fs::read_to_string(small).unwrap(), "{}");
}

/// The first open decides how the open files of an inode are served; all give the same bytes.
#[test]
fn opens_before_and_after_a_file_is_kept_can_be_mixed() {
    let (bench, child) = bench();
    let Some(mount) = bench.mount(CACHE) else { return };
    let mut early = File::open(weights(&mount)).unwrap();
    let mut head = [0; 100];
    early.read_exact(&mut head).unwrap();
    bench.ok(&["cache", "add", "child"]);
    // On a busy machine what is read ahead may come only after it was to be forgotten.
    let waits = || read_without_daemon(&bench, File::open(weights(&mount)).unwrap(), child.len()).is_none();
    assert!((0..20).any(|_| waits()), "a cached open is there: all are cached");
    let map = Map::of(&File::open(weights(&mount)).unwrap(), child.len());
    drop(early);
    assert_eq!(map.bytes(), child, "mapped through the page cache");
    assert_eq!(fs::read(weights(&mount)).unwrap(), child);
    drop(map);
    std::thread::sleep(Duration::from_millis(200)); // the kernel tells of a last close a little later
    let through = File::open(weights(&mount)).unwrap();
    let map = Map::of(&through, child.len());
    assert_eq!(map.bytes(), child, "mapped from the plain file");
    bench.ok(&["cache", "rm", "child"]);
    assert_eq!(fs::read(weights(&mount)).unwrap(), child, "as the open one is served, though its file is removed");
    let alone = read_without_daemon(&bench, through, child.len());
    assert_eq!(alone.is_some(), passes_through());
    assert_eq!(map.bytes(), child);
}

#[test]
fn a_plain_file_that_differs_is_never_served() {
    let (bench, child) = bench();
    let Some(mount) = bench.mount(CACHE) else { return };
    for restart in [false, true] {
        bench.ok(&["cache", "add", "child"]);
        std::thread::sleep(Duration::from_millis(20)); // a tick of the file system's clock
        File::options().write(true).open(plain_file(&bench)).unwrap().write_all_at(b"lie", 5000).unwrap();
        if restart {
            bench.ok(&["umount", bench.path("mnt").to_str().unwrap()]);
            bench.ok(&[&["mount", bench.path("mnt").to_str().unwrap()], CACHE].concat());
        }
        let mut got = Vec::new();
        File::open(weights(&mount)).unwrap().read_to_end(&mut got).unwrap();
        assert_eq!(got, child, "restart: {restart}");
        bench.ok(&["cache", "rm", "child"]);
    }
}

#[test]
fn the_cache_is_steered_by_hand_and_stays_within_its_size() {
    let (bench, child) = bench();
    let Some(mount) = bench.mount(&["--disk-cache", "3MiB"]) else { return };
    assert!(child.len() > 2 << 20 && child.len() < 3 << 20);
    bench.ok(&["cache", "add", "child"]);
    assert_eq!(cached(&bench), ["child@v1/model.safetensors"]);
    bench.ok(&["cache", "add", "base"]);
    assert_eq!(cached(&bench), ["base@v1/model.safetensors"], "the other had to go");
    assert!(bench.fails(&["cache", "add", "base", "child"]).contains("whole disk cache"));
    assert_eq!(bench.json(&["cache", "rm", "base"])["files"], 1);
    assert!(cached(&bench).is_empty());
    drop(mount);
    assert!(bench.fails(&["cache", "add", "base"]).contains("--disk-cache"));
    assert_eq!(bench.json(&["cache", "ls"])["limit"], serde_json::Value::Null);
    let _mount = bench.mount(&[]).unwrap();
    assert!(bench.fails(&["cache", "add", "base"]).contains("--disk-cache"), "a mount without one");
    assert!(cached(&bench).is_empty());
}
