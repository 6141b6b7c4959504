//! What the integration tests share: a repository in a temporary directory, the `mgit` program, mounts that
//! are always ended, and small models made of reproducible noise.
#![allow(dead_code)] // Each test program uses its own part.

pub mod kin;
pub mod lab;

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A repository, its own home and runtime directory, and the program to use it with.
pub struct Bench {
    pub dir: tempfile::TempDir,
}

/// What a run of `mgit` gave.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Says to the threads of a scope that it is over, also where an assertion unwinds: a scope waits for its threads.
pub struct Over<'a>(pub &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Bench {
    /// With an initialised repository in `repo`.
    pub fn new() -> Bench {
        let bench = Bench::without_repo();
        bench.ok(&["init"]);
        bench
    }

    pub fn without_repo() -> Bench {
        let bench = Bench { dir: tempfile::tempdir().unwrap() };
        for name in ["home", "run", "in"] {
            fs::create_dir(bench.path(name)).unwrap();
        }
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn repo(&self) -> PathBuf {
        self.path("repo")
    }

    /// `mgit` with this bench's repository and nothing of the caller's. `MGIT_TEST_BINARY` names another one than was
    /// built for the tests: one that is to be measured.
    pub fn command(&self, args: &[&str]) -> Command {
        let built = || env!("CARGO_BIN_EXE_mgit").into();
        let mut c = Command::new(std::env::var_os("MGIT_TEST_BINARY").unwrap_or_else(built));
        c.args(args)
            .env("MGIT_REPO", self.repo())
            .env("HOME", self.path("home"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env_remove("XDG_DATA_HOME")
            .env_remove("XDG_CACHE_HOME")
            .env_remove("XDG_STATE_HOME")
            .stdin(Stdio::null());
        c
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        let Output { status, stdout, stderr } = self.command(args).output().unwrap();
        let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
        Ran { code: status.code().unwrap_or(-1), out: text(stdout), err: text(stderr) }
    }

    /// Runs, and expects success.
    pub fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "mgit {args:?}: {}{}", ran.out, ran.err);
        ran.out
    }

    /// Runs with `--json`, and expects success.
    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[args, &["--json"]].concat())).unwrap()
    }

    /// Runs, and expects exit 1 with exactly one line on standard error, which it returns.
    pub fn fails(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 1, "mgit {args:?}: {}{}", ran.out, ran.err);
        assert_eq!(ran.err.trim_end().lines().count(), 1, "mgit {args:?}: {}", ran.err);
        ran.err
    }

    /// Mounts at `mnt`. `None` when there is no FUSE here and `MGIT_REQUIRE_FUSE` does not ask for it.
    pub fn mount(&self, args: &[&str]) -> Option<Mount<'_>> {
        if !fuse_is_there() {
            return None;
        }
        let at = self.path("mnt");
        fs::create_dir_all(&at).unwrap();
        self.ok(&[&["mount", at.to_str().unwrap()], args].concat());
        Some(Mount { bench: self, at })
    }
}

/// Whether tests can mount. Where `MGIT_REQUIRE_FUSE=1`, they must.
pub fn fuse_is_there() -> bool {
    let there = Path::new("/dev/fuse").exists();
    assert!(there || std::env::var("MGIT_REQUIRE_FUSE").as_deref() != Ok("1"), "MGIT_REQUIRE_FUSE=1 without /dev/fuse");
    if !there {
        eprintln!("not run: there is no /dev/fuse here");
    }
    there
}

/// A live mount, ended when dropped.
pub struct Mount<'a> {
    bench: &'a Bench,
    pub at: PathBuf,
}

impl Mount<'_> {
    /// A file of a version in the mount.
    pub fn file(&self, model: &str, version: &str, path: &str) -> PathBuf {
        self.at.join("models").join(model).join(version).join(path)
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let at = self.at.to_str().unwrap();
        if self.bench.run(&["umount", at]).code != 0 {
            self.bench.run(&["umount", "--lazy", at]);
        }
    }
}

/// Waits for what comes within a second on an idle machine; fails after `limit`.
pub fn wait_for(limit: Duration, mut what: impl FnMut() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < limit, "it does not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A file mapped for reading.
pub struct Map(*mut libc::c_void, usize);

impl Map {
    pub fn of(file: &fs::File, len: usize) -> Map {
        let fd = file.as_raw_fd();
        // SAFETY: a fresh private mapping of an open file, checked below.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_PRIVATE, fd, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Map(at, len)
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for as long as `self` lives; the file never changes.
        unsafe { std::slice::from_raw_parts(self.0.cast(), self.1) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: this is the whole mapping, and no slice of it is left.
        unsafe { libc::munmap(self.0, self.1) };
    }
}

/// Reproducible noise: xorshift64*.
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// About normal, of scale 1.
    pub fn normal(&mut self) -> f32 {
        (0..4).map(|_| (self.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5).sum::<f32>() * 1.7
    }

    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| (self.next() >> 56) as u8).collect()
    }
}

/// A directory and all below it, as plain copies.
pub fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for e in fs::read_dir(from).unwrap().map(|e| e.unwrap()) {
        match e.file_type().unwrap().is_dir() {
            true => copy_tree(&e.path(), &to.join(e.file_name())),
            false => drop(fs::copy(e.path(), to.join(e.file_name())).unwrap()),
        }
    }
}

/// A tensor to write.
pub struct Tensor {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<u64>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    pub fn f32(name: &str, shape: &[u64], values: impl Iterator<Item = f32>) -> Tensor {
        let bytes = values.flat_map(f32::to_le_bytes).collect();
        Tensor { name: name.to_owned(), dtype: "F32".to_owned(), shape: shape.to_owned(), bytes }
    }
}

/// The bytes of a safetensors file with these tensors one after the other.
pub fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut at = 0;
    for t in tensors {
        let info = serde_json::json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": [at, at + t.bytes.len()]});
        header.insert(t.name.clone(), info);
        at += t.bytes.len();
    }
    let mut text = serde_json::to_vec(&header).unwrap();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut file = (text.len() as u64).to_le_bytes().to_vec();
    file.extend(text);
    tensors.iter().for_each(|t| file.extend(&t.bytes));
    file
}

/// A small transformer-like model: weights of `layers` × 128 × 384, seeded.
pub fn base_tensors(seed: u64, layers: usize) -> Vec<Tensor> {
    let mut noise = Noise(seed | 1);
    let matrix = |i: usize, noise: &mut Noise| {
        let values: Vec<f32> = (0..128 * 384).map(|_| noise.normal() * 0.05).collect();
        Tensor::f32(&format!("encoder.layer.{i}.weight"), &[128, 384], values.into_iter())
    };
    let mut tensors: Vec<Tensor> = (0..layers).map(|i| matrix(i, &mut noise)).collect();
    tensors.push(Tensor::f32("norm.bias", &[384], (0..384).map(|i| i as f32 * 1e-3)));
    tensors
}

/// The same after some training: every value moved a little, names with a prefix.
pub fn tuned_tensors(base: &[Tensor], seed: u64) -> Vec<Tensor> {
    let mut noise = Noise(seed | 1);
    let mut tune = |t: &Tensor| {
        let values = t.bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        let moved: Vec<f32> = values.map(|v| v + noise.normal() * 1e-4).collect();
        Tensor::f32(&format!("bert.{}", t.name), &t.shape, moved.into_iter())
    };
    base.iter().map(&mut tune).collect()
}

/// Writes a model directory: `model.safetensors` and a config.
pub fn write_model(dir: &Path, tensors: &[Tensor]) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("model.safetensors"), safetensors(tensors)).unwrap();
    fs::write(dir.join("config.json"), br#"{"architectures": ["BertModel"]}"#).unwrap();
}
