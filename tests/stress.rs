//! Stress of a real mount: for some seconds many threads read, map and list versions at random and compare
//! every byte, while others import versions and remove them. The cache holds fewer blocks than the models have.
//!
//! What must hold: no wrong byte and no error, except that the path of a version that is being removed leads
//! nowhere; a file that was opened before stays whole. A hang is a failure too: a watchdog tells what each thread
//! was doing, ends the mount and aborts. `MGIT_STRESS_SECONDS` and `MGIT_STRESS_SEED` make other runs; with one
//! seed the models are the same and each thread draws the same numbers, but the order in which threads meet is free.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, RwLock, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::{Bench, Noise, Tensor, fuse_is_there, safetensors};

const MIB: u64 = 1 << 20;
/// Memory for decoded blocks, in MiB: less than the models have.
const CACHE: u64 = 8;
/// What else the daemon may have in memory, in MiB: its program, a request of 1 MiB for each thread, opened objects
/// and the catalog. A debug build needs no more. The last two keep up to 64 and 16 MiB, which it takes minutes of
/// new versions to fill: runs of more than half a minute may have those whole.
const BESIDES: u64 = 100;
const FILLED: u64 = 64 + 16;
const CHILDREN: u64 = 5;
/// Threads that read; one more imports, and one removes.
const USERS: usize = 14;
/// Versions of `moving` that are left alone, and files that one user keeps open.
const KEPT: usize = 2;
const HELD: usize = 4;
/// What the whole may take beside the time of the stress itself, before it counts as a hang.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a change may take to be seen. (mgit says a second; the machine may be busy with other things.)
const SOON: Duration = Duration::from_secs(20);
const CONFIG: &[u8] = br#"{"architectures": ["BertModel"], "vocab_size": 30522}"#;
const PAGE: usize = 4096;

/// A version, and what each of its files holds.
struct Model {
    name: String,
    version: String,
    files: Vec<(&'static str, Vec<u8>)>,
    /// Its removal has begun: from now on its paths may lead nowhere.
    leaving: AtomicBool,
    /// Its path has been seen to lead nowhere: from now on it must not lead anywhere.
    gone: AtomicBool,
}

/// All that the threads share.
struct World {
    bench: Bench,
    at: PathBuf,
    seed: u64,
    daemon: AtomicU32,
    stop: AtomicBool,
    versions: RwLock<Vec<Arc<Model>>>,
    /// How much was done of what, to know that all of it was.
    done: Mutex<BTreeMap<&'static str, u64>>,
    /// Each thread's name, and what it is doing.
    doing: Vec<(String, Mutex<String>)>,
}

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{name}={v} is no number")))
}

#[test]
fn every_byte_is_right_while_versions_come_and_go() {
    if !fuse_is_there() {
        return;
    }
    let time = Duration::from_secs(setting("MGIT_STRESS_SECONDS", 8));
    let world = Arc::new(World::new(setting("MGIT_STRESS_SEED", 1)));
    let (ended, watched) = mpsc::channel::<()>();
    let watchdog = thread::spawn({
        let world = Arc::downgrade(&world);
        move || watch(&world, &watched, time + PATIENCE)
    });
    let tensors = base_tensors(world.seed);
    world.fill(&tensors);
    world.doing(0, "mounting");
    let mut daemon = Daemon::mount(&world);
    let start = Instant::now();
    world.stress(&tensors, time);
    let done = world.done.lock().unwrap().clone();
    println!("{done:?} in {:?}, seed {}", start.elapsed(), world.seed);
    let most = daemon.most_memory() / MIB;
    println!("the daemon had at most {most} MiB in memory");
    world.doing(0, "unmounting");
    daemon.end();
    world.doing(0, "checking the store");
    assert_eq!(world.bench.json(&["fsck"])["ok"], true);
    let filled = if time.as_secs() > 30 { FILLED } else { 0 };
    assert!(most <= CACHE + BESIDES + filled, "the daemon had {most} MiB in memory");
    for what in ["imported", "removed", "ranges", "wholes", "pages", "listings", "latest"] {
        assert!(done.contains_key(what), "nothing {what}: {done:?}");
    }
    drop(ended);
    watchdog.join().unwrap();
}

// ---- models

/// Tensors of odd sizes, so that none of their blocks lies where a block or page of the file does.
fn base_tensors(seed: u64) -> Vec<Tensor> {
    let mut noise = Noise(seed.wrapping_mul(2) | 1);
    let shapes: [(&str, &[u64]); 7] = [
        ("F32", &[383, 517]),
        ("BF16", &[1001, 333]),
        ("F32", &[129, 3, 331]),
        ("U8", &[65_537]),
        ("BF16", &[400_001]),
        ("F32", &[7]),
        ("F32", &[211, 977]),
    ];
    let mut tensor = |(i, (dtype, shape)): (usize, &(&str, &[u64]))| {
        let n = shape.iter().product::<u64>();
        let mut float = |_| (noise.normal() * 0.05).to_le_bytes();
        let bytes = match *dtype {
            "F32" => (0..n).flat_map(float).collect(),
            "BF16" => (0..n).flat_map(|i| float(i).into_iter().skip(2)).collect(),
            _ => noise.bytes(n as usize),
        };
        Tensor { name: format!("layer.{i}"), dtype: (*dtype).to_owned(), shape: shape.to_vec(), bytes }
    };
    shapes.iter().enumerate().map(&mut tensor).collect()
}

/// The same after some training: floats moved a little, the rest as it was, and so is one float tensor in four.
fn tuned(base: &[Tensor], seed: u64) -> Vec<Tensor> {
    let mut noise = Noise(seed.wrapping_mul(2) | 1);
    let mut tune = |t: &Tensor| {
        let bytes = match (t.dtype.as_str(), noise.next() >> 62) {
            ("F32", 1..) => moved(&t.bytes, &mut noise),
            ("BF16", 1..) => t.bytes.chunks(2).flat_map(|b| [b[0] ^ (noise.next() >> 63) as u8, b[1]]).collect(),
            _ => t.bytes.clone(),
        };
        Tensor { name: t.name.clone(), dtype: t.dtype.clone(), shape: t.shape.clone(), bytes }
    };
    base.iter().map(&mut tune).collect()
}

fn moved(f32s: &[u8], noise: &mut Noise) -> Vec<u8> {
    let values = f32s.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    values.flat_map(|v| (v + noise.normal() * 1e-4).to_le_bytes()).collect()
}

impl Model {
    fn new(name: &str, version: &str, tensors: &[Tensor], seed: u64) -> Model {
        let vocabulary = Noise(seed.wrapping_mul(2) | 1).bytes(100_003);
        let files = vec![
            ("config.json", CONFIG.to_vec()),
            ("model.safetensors", safetensors(tensors)),
            ("sub/vocabulary.bin", vocabulary),
        ];
        let (leaving, gone) = (AtomicBool::new(false), AtomicBool::new(false));
        Model { name: name.to_owned(), version: version.to_owned(), files, leaving, gone }
    }

    fn label(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }

    fn dir(&self, at: &Path) -> PathBuf {
        at.join("models").join(&self.name).join(&self.version)
    }

    fn write(&self, dir: &Path) {
        fs::create_dir_all(dir.join("sub")).unwrap();
        self.files.iter().for_each(|(name, bytes)| fs::write(dir.join(name), bytes).unwrap());
    }

    /// Whether an error of a path into it is as it should be.
    fn excuses(&self, e: &io::Error) -> bool {
        matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) && self.leaving.load(SeqCst)
    }
}

// ---- the mount

/// The program that serves the mount; it does not outlive the test, whatever happens.
struct Daemon<'a> {
    world: &'a World,
    child: Child,
}

impl Daemon<'_> {
    /// In the foreground, so that it is a child whose memory and end can be asked for.
    fn mount(world: &World) -> Daemon<'_> {
        fs::create_dir(&world.at).unwrap();
        let size = format!("{CACHE}MiB");
        let args = ["mount", world.at.to_str().unwrap(), "--foreground", "--cache-size", &size];
        let (mut command, log) = (world.bench.command(&args), File::create(world.log()).unwrap());
        let child = command.env_remove("MGIT_LOG").stdout(Stdio::null()).stderr(log).spawn().unwrap();
        world.daemon.store(child.id(), SeqCst);
        let mut daemon = Daemon { world, child };
        let start = Instant::now();
        while !world.at.join("models").exists() {
            let lives = daemon.child.try_wait().unwrap().is_none();
            assert!(lives && start.elapsed() < SOON, "no mount: {}", daemon.said());
            thread::sleep(Duration::from_millis(10));
        }
        daemon
    }

    fn said(&self) -> String {
        fs::read_to_string(self.world.log()).unwrap_or_default()
    }

    fn most_memory(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let kib = text.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap().trim_end_matches("kB");
        kib.trim().parse::<u64>().unwrap() * 1024
    }

    /// Nothing is open any longer, so it unmounts at once, and its daemon has nothing to complain of.
    fn end(&mut self) {
        self.world.bench.ok(&["umount", self.world.at.to_str().unwrap()]);
        let status = self.child.wait().unwrap();
        self.world.daemon.store(0, SeqCst);
        assert!(status.success(), "{status}: {}", self.said());
        assert_eq!(self.said(), "", "the daemon's log");
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if self.world.daemon.load(SeqCst) != 0 {
            println!("the daemon's log: {}", self.said());
            self.world.end_by_force();
            let _ = self.child.wait();
        }
    }
}

impl World {
    /// Detaches the mount and kills its daemon. Neither is waited for without a limit: they may hang.
    fn end_by_force(&self) {
        self.detach();
        let pid = self.daemon.swap(0, SeqCst);
        if pid != 0 {
            // SAFETY: takes plain numbers; the child has not been waited for, so the number is still its own.
            unsafe { libc::kill(pid as i32, libc::SIGKILL) };
            self.detach(); // Where the daemon's silence held up the first, this one meets a dead mount.
        }
    }

    fn detach(&self) {
        let args = ["umount", "--lazy", self.at.to_str().unwrap()];
        let mut umount = self.bench.command(&args);
        let Ok(mut umount) = umount.stdout(Stdio::null()).stderr(Stdio::null()).spawn() else { return };
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            if !matches!(umount.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = umount.kill();
        let _ = umount.wait();
    }
}

/// Ends the process when the test has not ended in time: a thread that waits for a silent daemon cannot be stopped.
fn watch(world: &Weak<World>, ended: &mpsc::Receiver<()>, limit: Duration) {
    let late = ended.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
    let Some(world) = world.upgrade().filter(|_| late) else { return };
    let mut told = format!("stress: not ended after {limit:?}, seed {}; what its threads do:\n", world.seed);
    for (name, doing) in &world.doing {
        let doing = doing.lock().unwrap_or_else(|e| e.into_inner());
        told += &if doing.is_empty() { String::new() } else { format!("  {name}: {doing}\n") };
    }
    told += &format!("the daemon's log: {}\n", fs::read_to_string(world.log()).unwrap_or_default());
    // Not by eprintln, which a test's harness keeps for later.
    let _ = io::stderr().write_all(told.as_bytes());
    world.end_by_force();
    std::process::abort();
}

// ---- the stress

impl World {
    fn new(seed: u64) -> World {
        let bench = Bench::new();
        let names = ["main", "importer", "remover"].map(str::to_owned).into_iter();
        let names = names.chain((0..USERS).map(|i| format!("user {i}")));
        World {
            at: bench.path("mnt"),
            bench,
            seed,
            daemon: AtomicU32::new(0),
            stop: AtomicBool::new(false),
            versions: RwLock::default(),
            done: Mutex::default(),
            doing: names.map(|n| (n, Mutex::default())).collect(),
        }
    }

    /// What the daemon says.
    fn log(&self) -> PathBuf {
        self.bench.path("daemon.log")
    }

    fn doing(&self, slot: usize, what: impl Into<String>) {
        *self.doing[slot].1.lock().unwrap() = what.into();
    }

    fn count(&self, what: &'static str, n: u64) {
        *self.done.lock().unwrap().entry(what).or_default() += n;
    }

    fn versions(&self) -> Vec<Arc<Model>> {
        self.versions.read().unwrap().clone()
    }

    fn add(&self, model: Arc<Model>) {
        self.versions.write().unwrap().push(model);
    }

    /// Runs `mgit`; its failure is told, with all that it said.
    fn mgit(&self, args: &[&str]) -> Result<String, String> {
        let ran = self.bench.run(args);
        if ran.code == 0 {
            Ok(ran.out)
        } else {
            Err(format!("mgit {args:?} gave {}: {}{}", ran.code, ran.out, ran.err))
        }
    }

    /// Imports a model; gives its bytes, and those that it added to the store.
    fn import(&self, model: &Model, more: &[&str]) -> Result<(u64, u64), String> {
        let dir = self.bench.path("in").join(model.label());
        model.write(&dir);
        let args = ["import", dir.to_str().unwrap(), "--as", &model.label(), "--json"];
        let report: serde_json::Value = serde_json::from_str(&self.mgit(&[&args, more].concat())?).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        let number = |key: &str| report[key].as_u64().unwrap();
        Ok((number("logical_bytes"), number("new_stored_bytes")))
    }

    /// A base, its children as deltas, and the first versions of `moving`, which are smaller.
    fn fill(&self, base: &[Tensor]) {
        self.doing(0, "importing the models");
        let first = Model::new("base", "v1", base, self.seed);
        self.import(&first, &[]).unwrap();
        self.add(Arc::new(first));
        for i in 0..CHILDREN {
            let child = Model::new(&format!("child-{i}"), "v1", &tuned(base, self.seed + i + 1), self.seed + i + 1);
            let (raw, new) = self.import(&child, &["--parent", "base"]).unwrap();
            assert!(new * 10 < raw * 8, "{new} of {raw}: no delta was found");
            self.add(Arc::new(child));
        }
        for n in 1..=KEPT as u64 {
            let model = self.moving(base, n);
            self.import(&model, &["--parent", "base"]).unwrap();
            self.add(model);
        }
        let bytes: usize = self.versions().iter().flat_map(|m| &m.files).map(|f| f.1.len()).sum();
        assert!(bytes as u64 > 2 * CACHE * MIB, "{bytes} bytes nearly fit into the cache");
    }

    fn moving(&self, base: &[Tensor], n: u64) -> Arc<Model> {
        let seed = self.seed + 1000 + n;
        Arc::new(Model::new("moving", &format!("v{n}"), &tuned(&base[2..6], seed), seed))
    }

    /// Runs all threads until the time is over or one of them fails, and panics with all that failed.
    fn stress(&self, base: &[Tensor], time: Duration) {
        let start = Instant::now();
        let results: Vec<Result<(), String>> = thread::scope(|s| {
            let importer = s.spawn(|| self.thread(1, || self.keep_importing(base)));
            let remover = s.spawn(|| self.thread(2, || self.keep_removing()));
            let users = (0..USERS).map(|i| s.spawn(move || self.thread(3 + i, || User::new(self, 3 + i).run())));
            let threads: Vec<_> = [importer, remover].into_iter().chain(users).collect();
            self.doing(0, "waiting for the threads");
            while start.elapsed() < time && !self.stop.load(SeqCst) {
                thread::sleep(Duration::from_millis(20));
            }
            self.stop.store(true, SeqCst);
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let failed: Vec<String> = results.into_iter().filter_map(Result::err).collect();
        assert!(failed.is_empty(), "seed {}: {failed:#?}", self.seed);
    }

    /// A thread's work; when it fails or panics, all others end too.
    fn thread(&self, slot: usize, work: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
        let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("panicked".to_owned()));
        let result = result.map_err(|e| format!("{}: {e}", self.doing[slot].0));
        // A failure is left for the watchdog to tell, should the others not end.
        self.doing(slot, result.as_ref().map_or_else(|e| format!("failed: {e}"), |_| String::new()));
        self.stop.fetch_or(result.is_err(), SeqCst);
        result
    }

    fn keep_importing(&self, base: &[Tensor]) -> Result<(), String> {
        for n in KEPT as u64 + 1.. {
            if self.stop.load(SeqCst) {
                break;
            }
            let model = self.moving(base, n);
            self.doing(1, format!("importing {}", model.label()));
            self.import(&model, &["--parent", "base", "--effort", "fast"])?;
            self.doing(1, format!("waiting for {}", model.label()));
            let path = model.dir(&self.at).join("model.safetensors");
            until(|| exists(&path)).map_err(|e| format!("{} does not appear: {e}", path.display()))?;
            self.add(model);
            self.count("imported", 1);
        }
        Ok(())
    }

    /// Removes all versions of `moving` but the newest, which the next import follows.
    fn keep_removing(&self) -> Result<(), String> {
        while !self.stop.load(SeqCst) {
            let there: Vec<_> = self.versions().into_iter().filter(|m| m.name == "moving" && !gone(m)).collect();
            if there.len() <= KEPT {
                self.doing(2, "waiting for an import");
                thread::sleep(Duration::from_millis(10));
                continue;
            }
            self.remove(&there[0])?;
            self.count("removed", 1);
            // Those removed before it are forgotten; it stays for a while, for users to find it gone.
            self.versions.write().unwrap().retain(|m| !gone(m) || m.version == there[0].version);
        }
        Ok(())
    }

    /// Removes a version with a file open, which must stay whole when nothing of it is in memory any longer.
    fn remove(&self, model: &Model) -> Result<(), String> {
        let (name, want) = &model.files[1];
        let path = model.dir(&self.at).join(name);
        let told = |e: io::Error| format!("{}: {e}", path.display());
        let open = File::open(&path).map_err(told)?;
        self.doing(2, format!("removing {}", model.label()));
        model.leaving.store(true, SeqCst);
        self.mgit(&["rm", &model.label()])?;
        self.doing(2, format!("waiting for {} to vanish", path.display()));
        until(|| exists(&path).map(|is| !is)).map_err(|e| format!("{} does not vanish: {e}", path.display()))?;
        model.gone.store(true, SeqCst);
        self.doing(2, format!("reading {} after its removal", path.display()));
        drop_pages(&open);
        let mut got = Vec::new();
        (&open).read_to_end(&mut got).map_err(told)?;
        same(&got, want, 0).map_err(|e| format!("{} after its removal: {e}", path.display()))
    }
}

fn gone(model: &Arc<Model>) -> bool {
    model.gone.load(SeqCst)
}

/// Whether a path leads somewhere.
fn exists(path: &Path) -> io::Result<bool> {
    match File::open(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) if e.raw_os_error() == Some(libc::ESTALE) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Waits until something is so.
fn until(mut what: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    let start = Instant::now();
    while !what()? {
        if start.elapsed() > SOON {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

// ---- users

/// One thread that reads. It keeps some files open from one action to the next.
struct User<'a> {
    world: &'a World,
    slot: usize,
    noise: Noise,
    held: Vec<Held>,
}

#[derive(Clone)]
struct Held {
    file: Arc<File>,
    of: Arc<Model>,
    which: usize,
}

impl Held {
    fn want(&self) -> &[u8] {
        &self.of.files[self.which].1
    }

    fn label(&self) -> String {
        format!("{}/{}", self.of.label(), self.of.files[self.which].0)
    }
}

impl<'a> User<'a> {
    fn new(world: &'a World, slot: usize) -> User<'a> {
        // Far apart, or the threads would draw much the same at first.
        let mut noise = Noise((world.seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (slot as u64) << 32);
        (0..8).for_each(|_| _ = noise.next());
        User { world, slot, noise, held: vec![] }
    }

    fn run(mut self) -> Result<(), String> {
        while !self.world.stop.load(SeqCst) {
            match self.below(16) {
                0..=5 => self.ranges()?,
                6 => self.whole()?,
                7..=9 => self.map()?,
                10..=11 => self.list()?,
                12 => self.latest()?,
                13 => self.forget()?,
                _ => self.open()?,
            }
        }
        Ok(())
    }

    /// Drops the pages of a file, which others may be reading just now.
    fn forget(&mut self) -> Result<(), String> {
        let Some(held) = self.some_file()? else { return Ok(()) };
        self.doing("dropping the pages of", &held);
        drop_pages(&held.file);
        Ok(())
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.noise.next() >> 16) % n
    }

    fn doing(&self, what: &str, held: &Held) {
        self.world.doing(self.slot, format!("{what} {}", held.label()));
    }

    /// Opens some file of some version, which may be one that is being removed, and holds it.
    fn open(&mut self) -> Result<(), String> {
        let versions = self.world.versions();
        let of = versions[self.below(versions.len() as u64) as usize].clone();
        // Mostly the tensors, which are most of the bytes.
        let which = self.below(8) as usize;
        let which = if which < of.files.len() { which } else { 1 };
        let path = of.dir(&self.world.at).join(of.files[which].0);
        // Direct reads go past the page cache: all of them are the daemon's.
        let flags = if self.below(4) == 0 { libc::O_DIRECT } else { 0 };
        self.world.doing(self.slot, format!("opening {}", path.display()));
        let was_gone = gone(&of);
        match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Ok(_) if was_gone => Err(format!("{}: opened after it was gone", path.display())),
            Ok(file) => self.hold(Held { file: Arc::new(file), of, which }),
            Err(e) if of.excuses(&e) => {
                self.world.count("refused", 1);
                Ok(())
            }
            Err(e) => Err(format!("{}: open: {e}", path.display())),
        }
    }

    fn hold(&mut self, held: Held) -> Result<(), String> {
        let len = held.file.metadata().map_err(|e| format!("{}: fstat: {e}", held.label()))?.len();
        if len != held.want().len() as u64 {
            return Err(format!("{}: {len} bytes long instead of {}", held.label(), held.want().len()));
        }
        if self.below(2) == 0 {
            // No readahead: small requests reach the daemon as they are.
            advise(&held.file, libc::POSIX_FADV_RANDOM);
        }
        if self.held.len() == HELD {
            let closed = self.below(HELD as u64) as usize;
            self.held.swap_remove(closed);
        }
        self.held.push(held);
        Ok(())
    }

    /// A file held open, opened just now or long ago; `None` when it was just then removed.
    fn some_file(&mut self) -> Result<Option<Held>, String> {
        if self.held.is_empty() {
            self.open()?;
        }
        let n = self.held.len() as u64;
        let held = (n > 0).then(|| self.below(n) as usize).map(|i| self.held[i].clone());
        self.world.count("outlived", held.iter().filter(|h| gone(&h.of)).count() as u64);
        Ok(held)
    }

    fn check(&mut self, got: &[u8], offset: usize, of: &Held, how: &str) -> Result<(), String> {
        let want = &of.want()[offset.min(of.want().len())..];
        self.world.count("bytes", got.len() as u64);
        let left = if of.of.leaving.load(SeqCst) { " (being removed)" } else { "" };
        same(got, &want[..got.len().min(want.len())], offset)
            .map_err(|e| format!("{}{left} by {how} at {offset}: {e}", of.label()))
    }

    /// Some ranges of one file: small and large ones, across the borders of blocks, and past the end.
    fn ranges(&mut self) -> Result<(), String> {
        let Some(held) = self.some_file()? else { return Ok(()) };
        let size = held.want().len() as u64;
        for _ in 0..1 + self.below(12) {
            let longest = 1 << self.below(21);
            let len = 1 + self.below(longest) as usize;
            let at = match self.below(4) {
                0 => (self.below(size.div_ceil(1 << 16)) << 16).saturating_sub(self.below(64)),
                1 => size.saturating_sub(self.below(2 * len as u64)),
                _ => self.below(size),
            };
            self.world.doing(self.slot, format!("reading {} bytes at {at} of {}", len, held.label()));
            let mut got = vec![0xA5; len];
            let n = read_fully(&held.file, at, &mut got).map_err(|e| format!("{}: read at {at}: {e}", held.label()))?;
            let want = len.min(size.saturating_sub(at) as usize);
            if n != want {
                return Err(format!("{}: {n} bytes instead of {want} at {at}", held.label()));
            }
            self.check(&got[..n], at as usize, &held, "read")?;
            self.world.count("ranges", 1);
        }
        Ok(())
    }

    fn whole(&mut self) -> Result<(), String> {
        let Some(held) = self.some_file()? else { return Ok(()) };
        self.doing("reading the whole of", &held);
        if self.below(2) == 0 {
            drop_pages(&held.file);
        }
        let longest = 4 * MIB;
        let mut got = vec![0; 1 + self.below(longest) as usize];
        let mut at = 0;
        loop {
            let n = held.file.read_at(&mut got, at as u64).map_err(|e| format!("{}: read: {e}", held.label()))?;
            if n == 0 {
                break;
            }
            self.check(&got[..n], at, &held, "read of the whole")?;
            at += n;
        }
        self.world.count("wholes", 1);
        if at == held.want().len() { Ok(()) } else { Err(format!("{} ends at {at}", held.label())) }
    }

    /// Some pages of one file through a mapping, on and on dropped so that they are asked for again.
    fn map(&mut self) -> Result<(), String> {
        let Some(held) = self.some_file()? else { return Ok(()) };
        self.doing("mapping", &held);
        let map = Map::of(&held.file, held.want().len()).map_err(|e| format!("{}: mmap: {e}", held.label()))?;
        for _ in 0..1 + self.below(24) {
            let pages = map.1.div_ceil(PAGE) as u64;
            let page = self.below(pages) as usize;
            let end = map.1.min((page + 1 + self.below(8) as usize) * PAGE);
            map.touch(page * PAGE, end).map_err(|e| format!("{}: page {page}: {e}", held.label()))?;
            self.check(&map.bytes()[page * PAGE..end], page * PAGE, &held, "mmap")?;
            self.world.count("pages", 1);
            if self.below(8) == 0 {
                map.forget();
                drop_pages(&held.file);
            }
        }
        Ok(())
    }

    /// What is there is listed, with its size.
    fn list(&mut self) -> Result<(), String> {
        let before = self.world.versions();
        let some = before[self.below(before.len() as u64) as usize].clone();
        let model = self.world.at.join("models").join(&some.name);
        self.world.doing(self.slot, format!("listing {}", model.display()));
        let listed = names(&model).map_err(|e| format!("{}: {e}", model.display()))?;
        let missing =
            before.iter().find(|m| m.name == some.name && !m.leaving.load(SeqCst) && !listed.contains(&m.version));
        if let Some(m) = missing {
            return Err(format!("{}: {} is not among {listed:?}", model.display(), m.version));
        }
        self.world.count("listings", 1);
        match stat_all(&some, &some.dir(&self.world.at)) {
            Ok(wrong) => wrong.map_or(Ok(()), Err),
            Err(e) if some.excuses(&e) => Ok(()),
            Err(e) => Err(format!("{}: {e}", some.label())),
        }
    }

    /// `latest` leads to a whole version at all times, whichever that is.
    fn latest(&mut self) -> Result<(), String> {
        let path = self.world.at.join("models/moving/latest/config.json");
        self.world.doing(self.slot, format!("reading {}", path.display()));
        let got = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        self.world.count("latest", 1);
        same(&got, CONFIG, 0).map_err(|e| format!("{}: {e}", path.display()))
    }
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(dir)?.map(|e| Ok(e?.file_name().into_string().unwrap())).collect()
}

/// Lists and stats all of a version; says what is wrong.
fn stat_all(model: &Model, dir: &Path) -> io::Result<Option<String>> {
    let mut listed = names(dir)?;
    listed.sort();
    if listed != ["config.json", "model.safetensors", "sub"] {
        return Ok(Some(format!("{} holds {listed:?}", model.label())));
    }
    for (name, bytes) in &model.files {
        let size = fs::metadata(dir.join(name))?.len();
        if size != bytes.len() as u64 {
            return Ok(Some(format!("{}/{name} is {size} bytes long instead of {}", model.label(), bytes.len())));
        }
    }
    Ok(None)
}

/// Where bytes differ, and how many, without printing them all.
fn same(got: &[u8], want: &[u8], offset: usize) -> Result<(), String> {
    if got == want {
        return Ok(());
    }
    let other: Vec<usize> = got.iter().zip(want).enumerate().filter(|(_, (g, w))| g != w).map(|(i, _)| i).collect();
    let lengths = format!("{} bytes for {}", got.len(), want.len());
    let Some(&first) = other.first() else { return Err(lengths) };
    let last = other[other.len() - 1];
    let zeros = other.iter().all(|&i| got[i] == 0);
    let what = if zeros { "zeros" } else { "wrong bytes" };
    Err(format!("{} {what} from {} to {} ({lengths})", other.len(), offset + first, offset + last))
}

/// Reads until the buffer is full or the file ends.
fn read_fully(file: &File, at: u64, out: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < out.len() {
        match file.read_at(&mut out[done..], at + done as u64)? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

fn advise(file: &File, advice: libc::c_int) {
    // SAFETY: takes plain numbers; the descriptor is open.
    let rc = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, advice) };
    assert_eq!(rc, 0, "posix_fadvise");
}

/// The kernel forgets what it has read of the file, but for pages that are mapped or in use.
fn drop_pages(file: &File) {
    advise(file, libc::POSIX_FADV_DONTNEED);
}

/// A file mapped for reading.
struct Map(*mut libc::c_void, usize, File);

impl Map {
    fn of(file: &File, len: usize) -> io::Result<Map> {
        let sink = tempfile::tempfile()?;
        // SAFETY: a fresh private mapping of an open file.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Map(at, len, sink)) }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for as long as `self` lives; the file never changes.
        unsafe { std::slice::from_raw_parts(self.0.cast(), self.1) }
    }

    /// Has the kernel fault some of the pages in, by writing them somewhere. A page that cannot be read is an error
    /// of that call, where a plain look at it would end the whole test by SIGBUS, and leave the mount behind.
    fn touch(&self, from: usize, to: usize) -> io::Result<()> {
        self.2.write_all_at(&self.bytes()[from..to], 0)
    }

    fn forget(&self) {
        // SAFETY: this is the whole mapping, of a file and read only: its pages come back with the same bytes.
        let rc = unsafe { libc::madvise(self.0, self.1, libc::MADV_DONTNEED) };
        assert_eq!(rc, 0, "madvise");
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: this is the whole mapping, and no slice of it is left.
        unsafe { libc::munmap(self.0, self.1) };
    }
}
