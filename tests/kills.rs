//! `kill -9` at random moments of imports, removals, seals, gc, repack and updates, of the command, of the daemon of a
//! mount, or of both: what was there is there, whole, what was begun has happened or not, and it all goes on.
//! `MGIT_TEST_ROUNDS=N` for more rounds.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Bench, Noise, Over, Tensor, base_tensors, fuse_is_there, tuned_tensors, wait_for, write_model};

const ROUNDS: usize = 48;

/// The versions by name, and what of the inputs each holds.
type World = BTreeMap<String, usize>;

/// A command that is to be killed.
struct Job {
    kind: &'static str,
    args: Vec<String>,
    after: World,
}

struct Kills {
    b: Bench,
    noise: Noise,
    world: World,
    /// How long each kind takes when it is left alone.
    takes: BTreeMap<&'static str, Duration>,
    killed: BTreeMap<&'static str, usize>,
}

fn args(args: &[&str]) -> Vec<String> {
    args.iter().map(|a| a.to_string()).collect()
}

impl Kills {
    fn new() -> Kills {
        let b = Bench::new();
        let mut at: Vec<Tensor> = base_tensors(7, 1);
        for n in 0..4 {
            write_model(&b.path(&format!("in/{n}")), &at); // Each a little further.
            fs::write(b.path(&format!("in/{n}/own.bin")), Noise(50 + n).bytes(300_000)).unwrap();
            at = tuned_tensors(&at, 100 + n);
        }
        let mut kills =
            Kills { b, noise: Noise(0xDEAD), world: World::new(), takes: BTreeMap::new(), killed: BTreeMap::new() };
        // A family that updates go through.
        kills.import("base", 0, &[]);
        kills.import("tuned", 1, &["--parent", "base"]);
        kills.b.ok(&["recipe", "set", "tuned", "--", "sh", "-c", r#"cp "$MGIT_PREVIOUS"/* "$MGIT_OUT""#]);
        kills
    }

    fn below(&mut self, n: usize) -> usize {
        (self.noise.next() >> 33) as usize % n
    }

    fn input(&self, n: usize) -> PathBuf {
        self.b.path(&format!("in/{n}"))
    }

    /// The next version of a model, undisturbed; returns its name.
    fn import(&mut self, model: &str, input: usize, more: &[&str]) -> String {
        let path = self.input(input);
        let done = self.b.json(&[&["import", path.to_str().unwrap(), "--as", model], more].concat());
        let name = format!("{model}@{}", done["version"].as_str().unwrap());
        self.world.insert(name.clone(), input);
        name
    }

    fn found(&self) -> Vec<String> {
        let all = self.b.json(&["ls"]);
        let label =
            |v: &serde_json::Value| format!("{}@{}", v["model"].as_str().unwrap(), v["version"].as_str().unwrap());
        let mut found: Vec<String> = all["versions"].as_array().unwrap().iter().map(label).collect();
        found.sort();
        found
    }

    fn newest(&self, model: &str) -> String {
        format!("{model}@{}", self.b.json(&["show", model])["version"].as_str().unwrap())
    }

    fn job(&mut self, round: usize, mounted: bool) -> Job {
        let mut after = self.world.clone();
        let free: Vec<String> = self.world.keys().filter(|k| k.starts_with('m')).cloned().collect();
        let (name, input) = (format!("m{round}@v1"), self.below(4));
        let path = self.input(input);
        let path = path.to_str().unwrap();
        let kind = self.below(if mounted { 8 } else { 7 });
        match kind {
            0 => Job { kind: "gc", args: args(&["gc"]), after },
            1 => Job { kind: "repack", args: args(&["repack"]), after },
            2 if free.len() > 2 => {
                let gone = free[self.below(free.len())].clone();
                after.remove(&gone);
                Job { kind: "rm", args: args(&["rm", &gone]), after }
            }
            3 => {
                let old = self.newest("base");
                let new = self.import("base", self.world[&old] ^ 2, &[]);
                let made: u64 = self.newest("tuned").rsplit_once('v').unwrap().1.parse().unwrap();
                after = self.world.clone();
                after.insert(format!("tuned@v{}", made + 1), 1);
                Job { kind: "update", args: args(&["update", &old, &new]), after }
            }
            7 => {
                let dir = self.b.path(&format!("mnt/models/m{round}/v1"));
                fs::create_dir_all(&dir).unwrap();
                for f in fs::read_dir(path).unwrap().map(|f| f.unwrap()) {
                    fs::copy(f.path(), dir.join(f.file_name())).unwrap();
                }
                after.insert(name.clone(), input);
                Job { kind: "seal", args: args(&["seal", &name]), after }
            }
            _ => {
                after.insert(name.clone(), input);
                let mut args = args(&["import", path, "--as", &name]);
                match free.len() {
                    0 => args.push("--no-parent".to_owned()),
                    n => args.extend(["--parent".to_owned(), free[self.below(n)].clone()]),
                }
                Job { kind: "import", args, after }
            }
        }
    }

    fn spawn(&self, args: &[String]) -> Child {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.b.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn mount(&self) -> Child {
        let at = self.b.path("mnt");
        fs::create_dir_all(&at).unwrap();
        let daemon = self.spawn(&args(&["mount", "--foreground", "--settle", "0", at.to_str().unwrap()]));
        wait_for(Duration::from_secs(20), || at.join("models").exists());
        daemon
    }

    /// Kills within the job; what is found afterwards is what was there before it, or after.
    fn round(&mut self, round: usize, can_mount: bool) {
        let mut daemon = (can_mount && self.below(5) == 0).then(|| self.mount());
        let job = self.job(round, daemon.is_some());
        let of = format!("round {round}, {:?}", job.args);
        let takes = self.takes.get(job.kind).copied().unwrap_or(Duration::from_millis(60));
        let delay = takes * self.below(1000) as u32 / 1000;
        let victim = self.below(3);
        let (start, mut child) = (Instant::now(), self.spawn(&job.args));
        std::thread::sleep(delay);
        let ended = child.try_wait().unwrap().is_some();
        match &mut daemon {
            Some(daemon) if victim < 2 => {
                daemon.kill().unwrap();
                if victim == 1 {
                    child.kill().unwrap();
                }
            }
            _ => child.kill().unwrap(),
        }
        child.wait().unwrap();
        match ended {
            true => drop(self.takes.insert(job.kind, (takes + start.elapsed().min(takes)) / 2)),
            false => *self.killed.entry(job.kind).or_default() += 1,
        }
        if !ended && self.below(4) == 0 {
            self.takes.insert(job.kind, takes * 5 / 4); // It may take longer than was thought.
        }
        if let Some(mut daemon) = daemon {
            self.b.run(&["umount", "--lazy", self.b.path("mnt").to_str().unwrap()]);
            daemon.wait().unwrap();
        }
        let (found, before): (Vec<String>, Vec<String>) = (self.found(), self.world.keys().cloned().collect());
        let whole: Vec<String> = job.after.keys().cloned().collect();
        assert!(found == before || found == whole, "{of}: {found:?}");
        if found == before {
            self.go_on(&job, &of);
        }
        if found == whole || matches!(job.kind, "seal" | "update") {
            self.world = job.after;
        }
        self.check(&of);
    }

    /// A draft and a cascade outlive whoever worked on them.
    fn go_on(&self, job: &Job, of: &str) {
        let args: Vec<&str> = job.args.iter().map(String::as_str).collect();
        match job.kind {
            "seal" => drop(self.b.ok(&args)),
            "update" if self.b.run(&["update", "--continue"]).code == 0 && self.found().len() == job.after.len() => {}
            "update" => drop(self.b.ok(&args)), // It had not begun.
            _ => return,
        }
        assert_eq!(self.found(), job.after.keys().cloned().collect::<Vec<_>>(), "{of}");
    }

    fn check(&mut self, of: &str) {
        assert_eq!(self.b.json(&["fsck"])["ok"], true, "{of}");
        for (name, input) in self.world.clone() {
            if self.below(6) == 0 {
                self.b.ok(&["verify", self.input(input).to_str().unwrap(), &name]);
            }
        }
    }
}

#[test]
fn nothing_is_lost_by_kill_9() {
    let can_mount = fuse_is_there();
    let mut kills = Kills::new();
    let rounds = std::env::var("MGIT_TEST_ROUNDS").map_or(ROUNDS, |r| r.parse().expect("MGIT_TEST_ROUNDS is a number"));
    (0..rounds).for_each(|round| kills.round(round, can_mount));
    for (name, input) in &kills.world {
        kills.b.ok(&["verify", kills.input(*input).to_str().unwrap(), name]);
    }
    // The next update sweeps up what killed ones left mounted.
    let old = kills.newest("base");
    let new = kills.import("base", 0, &[]);
    kills.b.run(&["update", &old, &new]);
    let run = fs::read_dir(kills.b.path("run/mgit")).into_iter().flatten().map(|e| e.unwrap().path());
    let mounts: Vec<PathBuf> = run.filter(|p| p.symlink_metadata().is_ok_and(|m| m.is_dir())).collect();
    assert!(mounts.is_empty(), "{mounts:?}");
    kills.b.ok(&["gc"]);
    let left = fs::read_dir(kills.b.repo().join("packs")).unwrap().map(|e| e.unwrap().path());
    let left: Vec<PathBuf> = left.filter(|p| p.extension().is_some_and(|e| e == "tmp")).collect();
    assert!(left.is_empty(), "{left:?}");
    println!("{rounds} rounds, killed within: {:?}", kills.killed);
    let killed: usize = kills.killed.values().sum();
    assert!(killed * 4 > rounds, "only {killed} of {rounds} were still running");
}

#[test]
fn commands_outlive_the_daemon_that_they_ask() {
    let b = Bench::new();
    write_model(&b.path("in"), &base_tensors(7, 1));
    b.ok(&["import", b.path("in").to_str().unwrap(), "--as", "m"]);
    if !fuse_is_there() {
        return;
    }
    let (over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|s| {
        let ask = s.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let n = asked.fetch_add(1, Ordering::Relaxed) + 1;
                b.ok(&["tag", "m@v1", &format!("t{n}")]);
                assert_eq!(b.json(&["show", "m"])["tags"].as_array().unwrap().len(), n);
            }
        });
        let _over = Over(&over);
        while asked.load(Ordering::Relaxed) < 30 && !ask.is_finished() {
            drop(b.mount(&[]));
        }
    });
}
