//! The targets of `fuzz/` without a fuzzer: the corpus, then changes to it by chance, for a second each or for
//! `MGIT_TEST_FUZZ_SECONDS`. What a failing input was, the failure says.
//!
//! A file of the corpus is understood, unless its name begins with `bad`.

mod common;
#[path = "fuzz/targets.rs"]
mod targets;

use std::fs;
use std::panic::{catch_unwind, resume_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use common::Noise;

/// Longest input made by chance.
const LONGEST: usize = 1 << 16;

/// The corpus of a target: names and bytes.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let read = |e: std::io::Result<fs::DirEntry>| {
        let path = e.unwrap().path();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())
    };
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(read).collect();
    files.sort();
    files
}

/// Runs a target; where it panics, the input is kept beside the build and named.
fn run(target: &str, data: &[u8]) -> bool {
    catch_unwind(|| targets::run(target, data)).unwrap_or_else(|panic| {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{target}-{}", blake3::hash(data).to_hex()));
        fs::write(&kept, data).unwrap();
        println!("the input of {} bytes is {}", data.len(), kept.display());
        resume_unwind(panic)
    })
}

/// Some input with one to four changes.
fn changed(seeds: &[(String, Vec<u8>)], noise: &mut Noise) -> Vec<u8> {
    let mut below = |n: usize| (noise.next() >> 20) as usize % n.max(1);
    let mut data = seeds[below(seeds.len())].1.clone();
    for _ in 0..1 + below(4) {
        let (at, len) = (below(data.len()), 1 + below(40));
        let end = (at + len).min(data.len());
        match below(7) {
            0 if !data.is_empty() => data[at] ^= 1 << below(8),
            1 if !data.is_empty() => data[at] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'/'][below(7)],
            2 => drop(data.drain(at..end)),
            3 => data.truncate(at),
            4 => {
                let again = data[at..end].to_vec();
                data.splice(at..at, again);
            }
            5 => {
                let other = &seeds[below(seeds.len())].1;
                let from = below(other.len());
                data.splice(at..end, other[from..(from + len).min(other.len())].iter().copied());
            }
            _ if data.len() >= 8 => {
                let at = at.min(data.len() - 8);
                let n = [0, 1, 255, 65_536, u32::MAX as u64, 1 << 40, u64::MAX][below(7)].wrapping_sub(below(2) as u64);
                data[at..at + 4 + 4 * below(2)].iter_mut().zip(n.to_le_bytes()).for_each(|(b, n)| *b = n);
            }
            _ => {}
        }
    }
    data.truncate(LONGEST);
    data
}

fn try_target(target: &str) {
    let seeds = corpus(target);
    for (name, data) in &seeds {
        let start = Instant::now();
        assert_eq!(run(target, data), !name.starts_with("bad"), "{target}/{name}");
        assert!(start.elapsed() < Duration::from_secs(60), "{target}/{name} took {:?}", start.elapsed());
    }
    let seconds = std::env::var("MGIT_TEST_FUZZ_SECONDS").map_or(1, |s| s.parse().expect("a number of seconds"));
    let (start, mut noise, mut runs, mut sense) = (Instant::now(), Noise(0x5EED), 0u64, 0u64);
    while start.elapsed() < Duration::from_secs(seconds) {
        sense += run(target, &changed(&seeds, &mut noise)) as u64;
        runs += 1;
    }
    println!("{target}: {} files, {runs} changed ones, {sense} of them understood", seeds.len());
    assert!(sense > 0 && sense < runs, "{target}: {sense} of {runs} were understood: the changes do not test it");
}

#[test]
fn safetensors() {
    try_target("safetensors");
}

#[test]
fn packs() {
    try_target("packs");
}

#[test]
fn journal() {
    try_target("journal");
}

#[test]
fn versions() {
    try_target("versions");
}

#[test]
fn control() {
    try_target("control");
}

#[test]
fn names() {
    try_target("names");
}
