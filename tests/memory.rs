//! What a large model takes in memory (importing it, reading all of it through a mount), and what holes in files take.

mod common;

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::{Bench, Noise, fuse_is_there};

const MIB: u64 = 1 << 20;
const BLOCK: usize = 1 << 16;
/// Bytes of each tensor, and how many there are: 2 GiB.
const TENSOR: u64 = 256 * MIB;
const TENSORS: u64 = 8;

/// The content of the file's blocks, all different: noise, in the first tensor such as weights are.
struct Blocks {
    noise: Vec<u8>,
    floats: Vec<u8>,
}

impl Blocks {
    fn new() -> Blocks {
        let mut noise = Noise(99);
        let floats = (0..BLOCK / 4).flat_map(|_| (noise.normal() * 0.02).to_le_bytes()).collect();
        Blocks { noise: noise.bytes(BLOCK), floats }
    }

    fn put(&self, n: u64, out: &mut [u8]) {
        out.copy_from_slice(if n < TENSOR / BLOCK as u64 { &self.floats } else { &self.noise });
        // A number that no other block has, here and there, so that no two of their pages are alike.
        out.chunks_mut(4096).for_each(|page| page[..8].copy_from_slice(&(n << 20 | n).to_le_bytes()));
    }
}

fn header() -> Vec<u8> {
    let info = |i: u64| {
        let (from, to) = (i * TENSOR, (i + 1) * TENSOR);
        format!(r#""layer.{i}.weight":{{"dtype":"F32","shape":[{},1024],"data_offsets":[{from},{to}]}}"#, TENSOR / 4096)
    };
    let mut text = format!("{{{}}}", (0..TENSORS).map(info).collect::<Vec<_>>().join(",")).into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes(), &text[..]].concat()
}

fn write_large(path: &Path) {
    let mut out = BufWriter::with_capacity(MIB as usize, File::create(path).unwrap());
    out.write_all(&header()).unwrap();
    let (blocks, mut block) = (Blocks::new(), vec![0; BLOCK]);
    for n in 0..TENSORS * TENSOR / BLOCK as u64 {
        blocks.put(n, &mut block);
        out.write_all(&block).unwrap();
    }
    out.flush().unwrap();
}

/// Waits for a child and returns the most that it ever had in memory, in bytes. It must have exited with `code`.
fn most_memory(child: Child, code: i32) -> u64 {
    let mut status = 0;
    // SAFETY: rusage is plain numbers, for which zeros are a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both are valid places to write to; the child has not been waited for.
    let pid = unsafe { libc::wait4(child.id() as i32, &mut status, 0, &mut usage) };
    assert_eq!((pid, status), (child.id() as i32, code << 8));
    usage.ru_maxrss as u64 * 1024
}

/// A line of `/proc/<pid>/status` in bytes.
fn status_of(pid: u32, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(key)).unwrap();
    line.trim_start_matches(':').trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

#[test]
fn two_gibibytes_are_imported_and_read_in_bounded_memory() {
    let b = Bench::new();
    let dir = b.path("in/large");
    fs::create_dir(&dir).unwrap();
    let start = Instant::now();
    write_large(&dir.join("model.safetensors"));
    let size = fs::metadata(dir.join("model.safetensors")).unwrap().len();
    assert!(size > 2 << 30);
    println!("written in {:?}", start.elapsed());
    let start = Instant::now();
    let import = most_memory(b.command(&["import", dir.to_str().unwrap()]).spawn().unwrap(), 0);
    println!("import: {} MiB in {:?}", import / MIB, start.elapsed());
    assert!(import < 400 * MIB, "the import had {} MiB in memory", import / MIB);
    fs::remove_dir_all(&dir).unwrap();
    let stats = b.json(&["stats"]);
    assert!(stats["pack_bytes"].as_u64().unwrap() > size / 2, "blocks were shared, nothing was measured: {stats}");

    if !fuse_is_there() {
        return;
    }
    let at = b.path("mnt");
    fs::create_dir(&at).unwrap();
    let mut daemon =
        b.command(&["mount", at.to_str().unwrap(), "--foreground", "--cache-size", "128MiB"]).spawn().unwrap();
    let file = at.join("models/large/v1/model.safetensors");
    let start = Instant::now();
    while !file.exists() {
        assert!(start.elapsed() < Duration::from_secs(20) && daemon.try_wait().unwrap().is_none(), "no mount");
        std::thread::sleep(Duration::from_millis(10));
    }
    let start = Instant::now();
    let read = read_all(&file);
    let most = status_of(daemon.id(), "VmHWM");
    println!("read: {} MiB in {:?}", most / MIB, start.elapsed());
    b.ok(&["umount", at.to_str().unwrap()]);
    assert!(daemon.wait().unwrap().success());
    read.unwrap();
    assert!(most < (128 + 200) * MIB, "the daemon had {} MiB in memory", most / MIB);
}

/// Reads the file from end to end and compares it with what was written.
fn read_all(path: &Path) -> Result<(), String> {
    let mut file = File::open(path).map_err(|e| e.to_string())?;
    let mut head = vec![0; header().len()];
    file.read_exact(&mut head).map_err(|e| e.to_string())?;
    let blocks = Blocks::new();
    let (mut got, mut want) = (vec![0; MIB as usize], vec![0; BLOCK]);
    let mut n = 0;
    for _ in 0..TENSORS * TENSOR / MIB {
        file.read_exact(&mut got).map_err(|e| e.to_string())?;
        for block in got.chunks(BLOCK) {
            blocks.put(n, &mut want);
            if block != want {
                return Err(format!("other bytes in block {n}"));
            }
            n += 1;
        }
    }
    match (head == header(), file.read(&mut got)) {
        (true, Ok(0)) => Ok(()),
        other => Err(format!("other ends: {other:?}")),
    }
}

/// A pack whose end says that a footer of 500 MB comes before it: a hole.
fn write_long_footer(path: &Path) {
    const COUNT: u64 = 10_000_000;
    let (start, len) = (28, 53 * COUNT);
    let file = File::create(path).unwrap();
    let head = [&[5][..], &(len as u32).to_le_bytes()].concat();
    file.write_all_at(&head, start).unwrap();
    let numbers = [start, COUNT].map(u64::to_le_bytes).concat();
    file.write_all_at(&[&numbers[..], &[0; 32], b"mgit-end"].concat(), start + 9 + len).unwrap();
}

/// What a file says of its length costs nothing: a repository may come from anyone.
#[test]
fn holes_take_no_memory() {
    let b = Bench::new();
    let dir = b.path("in/m");
    common::write_model(&dir, &common::base_tensors(7, 1));
    b.ok(&["import", dir.to_str().unwrap()]);
    let most = |args: &[&str], code: i32, says: &str| {
        let (start, told) = (Instant::now(), b.path("told"));
        let to = || Stdio::from(File::options().create(true).append(true).open(&told).unwrap());
        let most = most_memory(b.command(args).stdout(to()).stderr(to()).spawn().unwrap(), code) / MIB;
        println!("{args:?}: {most} MiB, {:.1?}", start.elapsed());
        assert!(most < 400, "{args:?} had {most} MiB in memory");
        let text = fs::read_to_string(&told).unwrap();
        assert!(text.contains(says), "{args:?}: {text}");
        fs::remove_file(told).unwrap();
    };
    let lengthen =
        |name: &str, to: u64| File::options().write(true).open(b.repo().join(name)).unwrap().set_len(to).unwrap();
    lengthen("packs/sketches", 1 << 40);
    most(&["import", dir.to_str().unwrap(), "--as", "other"], 0, "other@v1");
    let long = b.repo().join("packs/0000000000000001.pack");
    write_long_footer(&long);
    most(&["fsck", "--quick"], 1, "pack: footer: its check fails");
    most(&["show", "m"], 0, "m@v1");
    fs::remove_file(long).unwrap();
    b.ok(&["fsck"]);
    lengthen("journal/000001.log", 1 << 40);
    most(&["gc"], 1, "with more after it than a crash leaves");
    lengthen("journal/000001.log", 1 << 30);
    most(&["fsck", "--quick"], 1, "with more after it than a crash leaves");
    most(&["fsck", "--repair"], 0, "lost");
    let kept = fs::metadata(b.repo().join("journal/000001.damaged")).unwrap();
    assert_eq!(kept.len(), 1 << 30);
    assert!(kept.blocks() < 1 << 13, "a hole stays one");
    b.ok(&["verify", dir.to_str().unwrap(), "m"]);
}
