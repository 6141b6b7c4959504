//! A repository in use for long: imports, reads through the mount, removals and their undoing, gc and repack, and checks, all at once,
//! while every minute the daemon is restarted, every other time by `kill -9`. `MGIT_TEST_MINUTES=10` runs ten minutes;
//! without it, some seconds with a restart every other.
//!
//! All bytes read are compared. An error counts unless a restart was under way while it came; wrong bytes always do. No
//! operation may take a minute: a watchdog then tells which did, ends the mount and aborts. In the end fsck finds
//! nothing, and what was imported and not removed is there and comes out whole.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use common::{Bench, Noise, Over, Tensor, base_tensors, fuse_is_there, safetensors, tuned_tensors};

const READERS: usize = 4;
/// Versions that are left alone by removals, and how many there are before imports wait for removals.
const KEPT: usize = 6;
const ENOUGH: usize = 60;
/// What a single operation may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long after its restart a daemon's predecessor still explains an error.
const AFTER: Duration = Duration::from_millis(500);
/// Errors that an open file, or a path, gives while nobody serves it.
const UNSERVED: [i32; 5] = [libc::ENOTCONN, libc::EIO, libc::ECONNABORTED, libc::ENOENT, libc::ESTALE];

/// A version that was imported, and its files.
struct Version {
    label: String,
    dir: PathBuf,
    files: Vec<(&'static str, Vec<u8>)>,
    /// Its removal has begun: its paths may lead nowhere.
    leaving: AtomicBool,
}

struct World {
    bench: Bench,
    at: PathBuf,
    stop: AtomicBool,
    /// Odd while the daemon is being restarted.
    restarts: AtomicU64,
    daemon: Mutex<Option<Child>>,
    versions: RwLock<Vec<Arc<Version>>>,
    /// Versions of which nobody knows whether they are there: their import or removal was cut short.
    open: Mutex<BTreeMap<String, Arc<Version>>>,
    done: Mutex<BTreeMap<&'static str, u64>>,
    /// What each thread is doing, and since when.
    doing: Mutex<BTreeMap<String, (String, Instant)>>,
}

/// What an operation came to.
enum Fault {
    /// A restart explains it.
    Restarted,
    Wrong(String),
}

type Tried<T> = Result<T, Fault>;

fn wrong<T>(what: impl Into<String>) -> Tried<T> {
    Err(Fault::Wrong(what.into()))
}

impl Version {
    fn new(world: &World, model: &str, n: u64, tensors: &[Tensor]) -> Version {
        let (label, name) = (format!("{model}@v{n}"), format!("v{n}"));
        let words = Noise(n.wrapping_mul(2) | 1).bytes(20_000 + n as usize % 1000);
        let files = vec![("model.safetensors", safetensors(tensors)), ("sub/vocabulary.bin", words)];
        let dir = world.at.join("models").join(model).join(name);
        Version { label, dir, files, leaving: AtomicBool::new(false) }
    }

    fn write(&self, dir: &Path) {
        fs::create_dir_all(dir.join("sub")).unwrap();
        self.files.iter().for_each(|(name, bytes)| fs::write(dir.join(name), bytes).unwrap());
    }
}

// ---- the daemon

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.get_mut().unwrap_or_else(|e| e.into_inner()).take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        self.bench.run(&["umount", "--lazy", self.at.to_str().unwrap()]);
    }
}

impl World {
    fn new() -> World {
        let bench = Bench::new();
        let at = bench.path("mnt");
        fs::create_dir(&at).unwrap();
        let (stop, restarts, daemon, versions, open, done, doing) = Default::default();
        World { bench, at, stop, restarts, daemon, versions, open, done, doing }
    }

    fn mount(&self) {
        let log = File::options().create(true).append(true).open(self.bench.path("daemon.log")).unwrap();
        let args = ["mount", self.at.to_str().unwrap(), "--foreground", "--cache-size", "4MiB"];
        let mut command = self.bench.command(&args);
        let daemon = command.env_remove("MGIT_LOG").stdout(Stdio::null()).stderr(log).spawn().unwrap();
        *self.daemon.lock().unwrap() = Some(daemon);
        common::wait_for(PATIENCE, || self.at.join("models").exists());
    }

    /// Ends the daemon: told to, or by force.
    fn end(&self, by_force: bool) {
        let mut daemon = self.daemon.lock().unwrap().take().expect("it is mounted");
        if by_force {
            daemon.kill().unwrap();
        } else {
            // SAFETY: takes plain numbers; the child has not been waited for, so the number is still its own.
            unsafe { libc::kill(daemon.id() as i32, libc::SIGTERM) };
        }
        let status = daemon.wait().unwrap();
        assert!(by_force || status.success(), "the daemon ended with {status}");
        let mut umount = self.bench.command(&["umount", "--lazy", self.at.to_str().unwrap()]);
        assert!(umount.output().unwrap().status.success() || !by_force, "a dead mount is not removed");
    }

    fn keep_restarting(&self, period: Duration) {
        let mut by_force = false;
        let mut next = Instant::now() + period;
        while !self.stop.load(SeqCst) {
            thread::sleep(Duration::from_millis(20));
            if Instant::now() < next {
                continue;
            }
            next += period;
            self.doing("restarter", if by_force { "killing the daemon" } else { "ending the daemon" });
            self.restarts.fetch_add(1, SeqCst);
            self.end(by_force);
            self.doing("restarter", "mounting");
            self.mount();
            thread::sleep(AFTER);
            self.restarts.fetch_add(1, SeqCst);
            self.idle("restarter");
            self.count(if by_force { "killed" } else { "restarted" }, 1);
            by_force = !by_force;
        }
    }

    // ---- what is told

    fn count(&self, what: &'static str, n: u64) {
        *self.done.lock().unwrap().entry(what).or_default() += n;
    }

    fn doing(&self, who: &str, what: impl Into<String>) {
        self.doing.lock().unwrap().insert(who.to_owned(), (what.into(), Instant::now()));
    }

    fn idle(&self, who: &str) {
        self.doing.lock().unwrap().remove(who);
    }

    /// Ends the process when something hangs: a thread that waits for a silent daemon cannot be stopped.
    fn watch(&self, over: &AtomicBool) {
        while !over.load(SeqCst) {
            thread::sleep(Duration::from_millis(100));
            let doing = self.doing.lock().unwrap_or_else(|e| e.into_inner()).clone();
            if doing.values().all(|(_, since)| since.elapsed() < PATIENCE) {
                continue;
            }
            let log = fs::read_to_string(self.bench.path("daemon.log")).unwrap_or_default();
            // Not by eprintln, which a test's harness keeps for later.
            let _ = writeln!(io::stderr(), "restarts: something hangs: {doing:#?}\nthe daemon's log: {log}");
            if let Some(mut daemon) = self.daemon.lock().unwrap_or_else(|e| e.into_inner()).take() {
                let _ = daemon.kill();
            }
            let _ = self.bench.command(&["umount", "--lazy", self.at.to_str().unwrap()]).spawn().map(|mut c| c.wait());
            std::process::abort();
        }
    }

    // ---- operations

    /// An operation by `who`. Its error is a restart's where one was under way meanwhile.
    fn tried<T>(&self, who: &str, what: String, f: impl FnOnce() -> Result<T, String>) -> Tried<T> {
        let before = self.restarts.load(SeqCst);
        self.doing(who, what.clone());
        let result = f();
        self.idle(who);
        let quiet = before.is_multiple_of(2) && self.restarts.load(SeqCst) == before;
        result.map_err(|e| if quiet { Fault::Wrong(format!("{what}: {e}")) } else { Fault::Restarted })
    }

    /// Runs `mgit --json`.
    fn mgit(&self, who: &str, args: &[&str]) -> Tried<serde_json::Value> {
        self.tried(who, format!("mgit {}", args.join(" ")), || {
            let ran = self.bench.run(&[args, &["--json"]].concat());
            match ran.code {
                0 => Ok(serde_json::from_str(&ran.out).unwrap()),
                code => Err(format!("exit {code}: {}{}", ran.out, ran.err)),
            }
        })
    }

    /// A thread's work, over and over, until the time is over or something is wrong.
    fn keep(&self, who: &str, mut work: impl FnMut() -> Tried<()>) -> Result<(), String> {
        while !self.stop.load(SeqCst) {
            match work() {
                Ok(()) => {}
                Err(Fault::Restarted) => {
                    self.count("cut short", 1);
                    thread::sleep(Duration::from_millis(20));
                }
                Err(Fault::Wrong(why)) => {
                    self.stop.store(true, SeqCst);
                    return Err(format!("{who}: {why}"));
                }
            }
        }
        Ok(())
    }

    fn versions(&self) -> Vec<Arc<Version>> {
        self.versions.read().unwrap().clone()
    }

    /// Imports versions of a model of its own, each after the last or after the base.
    fn import(&self, who: &str, n: &mut u64, base: &[Tensor]) -> Tried<()> {
        if self.versions().len() > ENOUGH {
            thread::sleep(Duration::from_millis(20));
            return Ok(());
        }
        *n += 1;
        let version = Arc::new(Version::new(self, who, *n, &tuned_tensors(base, *n * 7)));
        let input = self.bench.path("in").join(&version.label);
        version.write(&input);
        self.open.lock().unwrap().insert(version.label.clone(), version.clone());
        let parent = if (*n).is_multiple_of(3) { &["--no-parent"][..] } else { &["--parent", "base"] };
        let args = ["import", input.to_str().unwrap(), "--as", &version.label, "--effort", "fast"];
        let imported = self.mgit(who, &[&args, parent].concat());
        fs::remove_dir_all(&input).unwrap();
        imported?;
        self.open.lock().unwrap().remove(&version.label);
        self.versions.write().unwrap().push(version);
        self.count("imported", 1);
        Ok(())
    }

    /// Removes the oldest, and some of the time has it back.
    fn remove(&self, noise: &mut Noise) -> Tried<()> {
        let versions = self.versions();
        let Some(old) = versions.get(1).filter(|_| versions.len() > KEPT) else {
            thread::sleep(Duration::from_millis(20));
            return Ok(());
        };
        let held = File::open(old.dir.join(old.files[0].0)).ok();
        let before = self.restarts.load(SeqCst);
        old.leaving.store(true, SeqCst);
        self.versions.write().unwrap().retain(|v| v.label != old.label);
        self.open.lock().unwrap().insert(old.label.clone(), old.clone());
        self.mgit("remover", &["rm", &old.label])?;
        self.count("removed", 1);
        if noise.next() >> 62 == 0 {
            return self.undo(old);
        }
        self.open.lock().unwrap().remove(&old.label);
        // A file that was open is whole when gc has been.
        self.gc("remover")?;
        if let Some(held) = held.filter(|_| self.restarts.load(SeqCst) == before) {
            let read = |file: &File| {
                let mut bytes = Vec::new();
                { file }.read_to_end(&mut bytes).map_err(|e| e.to_string()).map(|_| bytes)
            };
            let bytes = self.tried("remover", format!("reading {} once removed", old.label), || read(&held))?;
            return self.compare(&bytes, &old.files[0].1, &format!("{} once removed", old.label));
        }
        Ok(())
    }

    /// Unless gc was there first.
    fn undo(&self, old: &Arc<Version>) -> Tried<()> {
        let ran = self.tried("remover", format!("undoing the removal of {}", old.label), || {
            let ran = self.bench.run(&["undo"]);
            let gone = ran.code == 1 && ran.err.contains("gc");
            if ran.code == 0 || gone { Ok(!gone) } else { Err(ran.err) }
        })?;
        self.open.lock().unwrap().remove(&old.label);
        if ran {
            let (files, leaving) = (old.files.clone(), AtomicBool::new(false));
            let back = Version { label: old.label.clone(), dir: old.dir.clone(), files, leaving };
            self.versions.write().unwrap().push(Arc::new(back));
            self.count("undone", 1);
        }
        Ok(())
    }

    fn gc(&self, who: &str) -> Tried<()> {
        let freed = self.mgit(who, &["gc"])?;
        self.count("gcs", 1);
        self.count("bytes freed", freed["freed_bytes"].as_u64().unwrap_or(0));
        Ok(())
    }

    fn tidy(&self, noise: &mut Noise) -> Tried<()> {
        thread::sleep(Duration::from_millis(300));
        match noise.next() >> 61 {
            0 => self.mgit("tidier", &["repack"]).map(|_| self.count("repacks", 1)),
            _ => self.gc("tidier"),
        }
    }

    /// What is checked while packs come and go is whole.
    fn check_beside(&self, quick: &mut bool) -> Tried<()> {
        thread::sleep(Duration::from_millis(100));
        *quick = !*quick;
        let args = ["fsck", "--quick"];
        self.mgit("checker", &args[..1 + usize::from(*quick)]).map(|_| self.count("fscks", 1))
    }

    fn compare(&self, got: &[u8], want: &[u8], of: &str) -> Tried<()> {
        self.count("bytes compared", got.len() as u64);
        match got == want {
            true => Ok(()),
            false => {
                let at = got.iter().zip(want).position(|(g, w)| g != w);
                wrong(format!("{of}: {} bytes for {}, other at {at:?}", got.len(), want.len()))
            }
        }
    }

    /// Reads some file of some version, or a part of it.
    fn read(&self, who: &str, noise: &mut Noise) -> Tried<()> {
        let mut below = |n: usize| (noise.next() >> 20) as usize % n;
        let versions = self.versions();
        let v = &versions[below(versions.len())];
        let (name, want) = &v.files[below(4) / 3];
        let (at, len) = match below(2) {
            0 => (0, want.len()),
            _ => (below(want.len()), 1 + below(want.len())),
        };
        let want = &want[at..want.len().min(at + len)];
        let before = self.restarts.load(SeqCst);
        let what = format!("reading {}/{name} from {at}", v.label);
        self.doing(who, what.clone());
        let read = File::open(v.dir.join(name)).and_then(|file| {
            let mut bytes = vec![0; want.len()];
            file.read_exact_at(&mut bytes, at as u64).map(|()| bytes)
        });
        self.idle(who);
        let restarted = !before.is_multiple_of(2) || self.restarts.load(SeqCst) != before;
        match read {
            Ok(bytes) => {
                self.count("reads", 1);
                self.compare(&bytes, want, &what)
            }
            Err(e) => match e.raw_os_error() {
                Some(libc::ENOENT | libc::ESTALE) if v.leaving.load(SeqCst) => {
                    self.count("led nowhere", 1);
                    Ok(())
                }
                Some(n) if restarted && UNSERVED.contains(&n) => Err(Fault::Restarted),
                _ => wrong(format!("{what}: {e}")),
            },
        }
    }

    // ---- the whole

    fn run(&self, base: &[Tensor], period: Duration, time: Duration) -> Vec<Result<(), String>> {
        let start = Instant::now();
        thread::scope(|s| {
            let (mut a, mut b, mut removing, mut tidying, mut quick) = (0, 0, Noise(77), Noise(99), false);
            let mut threads = vec![
                s.spawn(move || self.keep("one", || self.import("one", &mut a, base))),
                s.spawn(move || self.keep("two", || self.import("two", &mut b, base))),
                s.spawn(move || self.keep("remover", || self.remove(&mut removing))),
                s.spawn(move || self.keep("tidier", || self.tidy(&mut tidying))),
                s.spawn(move || self.keep("checker", || self.check_beside(&mut quick))),
            ];
            for n in 0..READERS {
                let (who, mut noise) = (format!("reader {n}"), Noise(1000 + n as u64));
                threads.push(s.spawn(move || self.keep(&who, || self.read(&who, &mut noise))));
            }
            let restarter = s.spawn(|| self.keep_restarting(period));
            while start.elapsed() < time && !self.stop.load(SeqCst) {
                thread::sleep(Duration::from_millis(50));
            }
            self.stop.store(true, SeqCst);
            restarter.join().unwrap();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        })
    }

    /// All that was acknowledged, nothing that was removed, and every byte of it.
    fn check(&self) {
        let report = self.bench.run(&["fsck", "--json"]);
        assert_eq!(report.code, 0, "fsck: {}{}", report.out, report.err);
        let all = self.bench.json(&["ls"]);
        let label =
            |v: &serde_json::Value| format!("{}@{}", v["model"].as_str().unwrap(), v["version"].as_str().unwrap());
        let found: BTreeSet<String> = all["versions"].as_array().unwrap().iter().map(label).collect();
        let (versions, open) = (self.versions(), self.open.lock().unwrap().clone());
        let want: BTreeSet<String> = versions.iter().map(|v| v.label.clone()).collect();
        let other = found.symmetric_difference(&want).filter(|label| !open.contains_key(*label));
        assert_eq!(other.collect::<Vec<_>>(), Vec::<&String>::new(), "there and not wanted, or wanted and not there");
        for version in versions.iter().chain(open.values()).filter(|v| found.contains(&v.label)) {
            let out = self.bench.path("out");
            self.bench.ok(&["export", &version.label, out.to_str().unwrap()]);
            for (name, bytes) in &version.files {
                assert!(fs::read(out.join(name)).unwrap() == *bytes, "{}/{name}", version.label);
            }
            fs::remove_dir_all(out).unwrap();
        }
        println!("{} versions in the end; of {} an operation was cut short", found.len(), open.len());
    }
}

#[test]
fn nothing_is_lost_and_nothing_hangs_over_restarts() {
    if !fuse_is_there() {
        return;
    }
    let minutes = std::env::var("MGIT_TEST_MINUTES").ok().map(|m| m.parse::<u64>().expect("a number of minutes"));
    let (period, time) = match minutes {
        Some(minutes) => (Duration::from_secs(60), Duration::from_secs(60 * minutes + 5)),
        None => (Duration::from_secs(2), Duration::from_secs(7)),
    };
    let (world, over) = (World::new(), AtomicBool::new(false));
    let base = base_tensors(3, 1);
    thread::scope(|s| {
        let _ends = Over(&over);
        s.spawn(|| world.watch(&over));
        let first = Version::new(&world, "base", 1, &base);
        first.write(&world.bench.path("in/base"));
        world.bench.ok(&["import", world.bench.path("in/base").to_str().unwrap(), "--as", "base@v1"]);
        world.versions.write().unwrap().push(Arc::new(first));
        world.mount();
        let failed: Vec<String> = world.run(&base, period, time).into_iter().filter_map(Result::err).collect();
        let done = world.done.lock().unwrap().clone();
        println!("{done:?}");
        world.end(false);
        let log = fs::read_to_string(world.bench.path("daemon.log")).unwrap();
        assert!(failed.is_empty(), "{failed:#?}\nthe daemon's log: {log}");
        world.check();
        for what in ["imported", "reads", "removed", "gcs", "fscks", "bytes freed", "restarted", "killed"] {
            assert!(done.get(what).is_some_and(|n| *n > 0), "nothing {what}: {done:?}");
        }
    });
}
