//! Damage to what is stored: a reader gets the right bytes or an error, never others; what does not need the
//! damaged bytes reads on; fsck says what is wrong and whom it concerns.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Bench, Noise, Tensor, safetensors, tuned_tensors};
use mgit::codec::needs_bases;
use mgit::model::id::{BLOCK, Id};
use mgit::model::layout;
use mgit::repo::engine::Engine;
use mgit::repo::fsck::fsck;
use mgit::repo::progress::Silent;
use mgit::repo::{Head, Repo};
use mgit::store::RealDisk;

/// What a byte of a pack belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Part {
    Header,
    BlockHead(Id, u64),
    Block(Id, u64),
    Record(Id),
    Recipe(Id),
    Version(Id),
    Footer,
    Trailer,
}

/// Some bytes of a file that are read together, and all that this takes.
struct Unit {
    label: String,
    path: String,
    recipe: Id,
    version: Id,
    object: Id,
    /// As fsck calls it.
    piece: String,
    at: u64,
    want: Vec<u8>,
    needs: BTreeSet<Part>,
}

/// A base, a fine-tune of it and their ordinary files.
struct Family {
    b: Bench,
    heads: Vec<Head>,
    units: Vec<Unit>,
    /// Name → parts of each pack, in order, covering it.
    packs: BTreeMap<String, Vec<(Range<u64>, Part)>>,
}

fn open(dir: &Path) -> Arc<Repo> {
    Repo::open(dir, Arc::new(RealDisk), 4 << 20).unwrap()
}

fn tensors() -> Vec<Tensor> {
    let mut noise = Noise(21);
    let mut matrix = |name, shape: &[u64]| {
        let n = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|_| noise.normal() * 0.05).collect();
        Tensor::f32(name, shape, values.into_iter())
    };
    vec![matrix("wide.weight", &[90, 256]), matrix("small.weight", &[16, 24]), matrix("bias", &[24])]
}

fn write(dir: &Path, tensors: &[Tensor], vocabulary: u64) {
    fs::create_dir_all(dir.join("empty")).unwrap();
    fs::write(dir.join("model.safetensors"), safetensors(tensors)).unwrap();
    fs::write(dir.join("config.json"), br#"{"architectures": ["BertModel"]}"#).unwrap();
    let words: String = (0..3000).map(|i| format!("word{}\n", i * vocabulary)).collect();
    fs::write(dir.join("vocab.txt"), words).unwrap();
}

impl Family {
    fn new() -> Family {
        let b = Bench::new();
        write(&b.path("in/base"), &tensors(), 3);
        write(&b.path("in/tuned"), &tuned_tensors(&tensors(), 8), 5);
        b.ok(&["import", b.path("in/base").to_str().unwrap()]);
        b.ok(&["import", b.path("in/tuned").to_str().unwrap(), "--parent", "base"]);
        let repo = open(&b.repo());
        let heads = Engine::try_open(repo.clone()).unwrap().unwrap().catalog().all().unwrap();
        let units = heads.iter().flat_map(|h| units_of(&b, &repo, h)).collect();
        let names = repo.packs.pack_names();
        let packs = names.into_iter().map(|n| (n.clone(), parts_of(&b.repo(), &repo, &n))).collect();
        Family { b, heads, units, packs }
    }

    /// Whether the fine-tune's large tensor is a delta: then damage to the base costs it too.
    fn wide(&self, label: &str) -> &Unit {
        self.units.iter().find(|u| u.label == label && u.piece.contains("wide.weight")).unwrap()
    }

    fn where_is(&self, part: Part) -> (&str, Range<u64>) {
        let in_pack = |(name, parts): (&'_ String, &'_ Vec<(Range<u64>, Part)>)| {
            parts.iter().find(|(_, p)| *p == part).map(|(r, _)| (name.clone(), r.clone()))
        };
        let (name, range) = self.packs.iter().find_map(in_pack).unwrap();
        (self.packs.get_key_value(&name).unwrap().0, range)
    }

    fn pack_file(&self, repo: &Path, pack: &str) -> File {
        File::options().read(true).write(true).open(pack_path(repo, pack)).unwrap()
    }
}

fn pack_path(repo: &Path, pack: &str) -> PathBuf {
    repo.join(format!("packs/{pack}.pack"))
}

/// All parts that block `index` of an object is made from.
fn needs_of(repo: &Arc<Repo>, object: &Id, index: u64) -> BTreeSet<Part> {
    let record = repo.packs.object(object).unwrap();
    let mut needs =
        BTreeSet::from([Part::Record(*object), Part::Block(*object, index), Part::BlockHead(*object, index)]);
    for base in &record.record.bases {
        let below = needs_of(repo, &base.id, index);
        let delta = needs_bases(record.record.blocks[index as usize].tag);
        needs.extend(below.into_iter().filter(|p| delta || matches!(p, Part::Record(_))));
    }
    needs
}

fn units_of(b: &Bench, repo: &Arc<Repo>, head: &Head) -> Vec<Unit> {
    let record = repo.record(&head.id).unwrap();
    let label = format!("{}@{}", head.model, head.version);
    let mut units = Vec::new();
    for file in record.files.iter().filter(|f| f.path != "empty") {
        let bytes = fs::read(b.path("in").join(head.model.as_str()).join(&file.path)).unwrap();
        let names = if file.path.ends_with(".safetensors") { tensor_names(&bytes) } else { BTreeMap::new() };
        let mut start = 0;
        for extent in repo.packs.recipe(&file.recipe).unwrap().extents {
            let piece = names.get(&start).map_or("bytes".to_owned(), |n| format!("tensor '{n}'"));
            for index in 0..extent.length.div_ceil(BLOCK) {
                let range = start + index * BLOCK..start + extent.length.min((index + 1) * BLOCK);
                let mut needs = needs_of(repo, &extent.object, index);
                needs.extend([Part::Recipe(file.recipe), Part::Version(head.id)]);
                units.push(Unit {
                    label: label.clone(),
                    path: file.path.clone(),
                    recipe: file.recipe,
                    version: head.id,
                    object: extent.object,
                    piece: piece.clone(),
                    at: range.start,
                    want: bytes[range.start as usize..range.end as usize].to_vec(),
                    needs,
                });
            }
            start += extent.length;
        }
        assert_eq!(start, bytes.len() as u64);
    }
    units
}

fn tensor_names(bytes: &[u8]) -> BTreeMap<u64, String> {
    let n = layout::header_length(bytes, bytes.len() as u64).unwrap() as usize;
    let pieces = layout::cut(&bytes[8..8 + n], bytes.len() as u64).unwrap();
    let named = |p: layout::Piece| match p.what {
        layout::What::Tensor { name, .. } => Some((p.offset, name)),
        layout::What::Blob => None,
    };
    pieces.into_iter().filter_map(named).collect()
}

/// A pack's parts, read as `format.md` says, not by the program's reader.
fn parts_of(dir: &Path, repo: &Arc<Repo>, pack: &str) -> Vec<(Range<u64>, Part)> {
    let bytes = fs::read(pack_path(dir, pack)).unwrap();
    let end = bytes.len() as u64;
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let (footer, n) = (word(bytes.len() - 56), word(bytes.len() - 48));
    let mut parts = vec![(0..28, Part::Header), (footer..end - 56, Part::Footer), (end - 56..end, Part::Trailer)];
    for e in 0..n as usize {
        let at = footer as usize + 9 + 53 * e;
        let id = Id(bytes[at + 1..at + 33].try_into().unwrap());
        let frame = word(at + 33);
        let len = u32::from_le_bytes(bytes[at + 41..at + 45].try_into().unwrap()) as u64;
        let part = match bytes[at] {
            2 => Part::Record(id),
            3 => Part::Recipe(id),
            4 => Part::Version(id),
            other => panic!("kind {other}"),
        };
        parts.push((frame..frame + 9 + len, part));
        if let Part::Record(id) = part {
            let mut from = frame + 9 + len - word(at + 45);
            for (i, block) in (0..).zip(&repo.packs.object(&id).unwrap().record.blocks) {
                parts.push((from..from + 9, Part::BlockHead(id, i)));
                let to = from + 9 + block.encoded as u64;
                parts.push((from + 9..to, Part::Block(id, i)));
                from = to;
            }
            assert_eq!(from, frame);
        }
    }
    parts.retain(|(r, _)| !r.is_empty());
    parts.sort_by_key(|(r, _)| r.start);
    parts.iter().zip(&parts[1..]).for_each(|((a, _), (b, _))| assert_eq!(a.end, b.start));
    assert_eq!((parts[0].0.start, parts[parts.len() - 1].0.end), (0, end));
    parts
}

/// Flips a bit until dropped.
struct Flip {
    file: File,
    at: u64,
    good: u8,
}

impl Flip {
    fn new(file: File, at: u64, bit: u64) -> Flip {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ (1 << (bit % 8))], at).unwrap();
        Flip { file, at, good: byte[0] }
    }
}

impl Drop for Flip {
    fn drop(&mut self) {
        self.file.write_all_at(&[self.good], self.at).unwrap();
    }
}

/// The units that a fresh reader cannot read. Panics at a wrong byte.
fn unreadable(f: &Family, dir: &Path) -> Vec<usize> {
    let repo = open(dir);
    let read = |u: &Unit| {
        let mut got = vec![0; u.want.len()];
        let record = repo.record(&u.version)?;
        assert!(record.files.iter().any(|e| e.path == u.path && e.recipe == u.recipe), "{} of {}", u.path, u.label);
        repo.open_file(&u.recipe)?.read_at(u.at, &mut got)?;
        assert!(got == u.want, "wrong bytes of {} of {} at {}", u.path, u.label, u.at);
        Ok::<(), mgit::repo::RepoError>(())
    };
    (0..f.units.len()).filter(|&i| read(&f.units[i]).is_err()).collect()
}

/// Holds a flip at `at` in `part` against all that must follow. Returns how many units cannot be read.
fn check_flip(f: &Family, dir: &Path, pack: &str, at: u64, bit: u64, part: Part) -> usize {
    let told = format!("{part:?}, byte {at} of {pack}, bit {}", bit % 8);
    let _flip = Flip::new(f.pack_file(dir, pack), at, bit);
    let lost = unreadable(f, dir);
    for &i in &lost {
        let u = &f.units[i];
        assert!(u.needs.contains(&part), "{told}: {} of {} at {} does not need it", u.path, u.label, u.at);
    }
    let report = fsck(&open(dir), &f.heads, &Silent).unwrap();
    let findings = &report.findings;
    assert!(!report.ok && !findings.is_empty(), "{told}: fsck finds nothing");
    let names =
        |words: &[&str]| findings.iter().any(|f| words.iter().all(|w| f.what.contains(w) || f.place.contains(w)));
    assert!(names(&[pack]) || matches!(part, Part::Recipe(_) | Part::Version(_)), "{told}: {findings:?}");
    for &i in &lost {
        assert!(names(&[&f.units[i].label]), "{told}: {} is not named: {findings:?}", f.units[i].label);
    }
    let (object, block) = match part {
        Part::Block(o, i) | Part::BlockHead(o, i) => (o, format!("block {i} of object {o}")),
        Part::Record(o) => (o, format!("object {o}")),
        Part::Recipe(id) | Part::Version(id) => {
            assert!(names(&[&id.to_string()]), "{told}: {id} is not named: {findings:?}");
            return lost.len();
        }
        _ => {
            assert!(lost.is_empty(), "{told}: {lost:?}");
            return 0;
        }
    };
    for u in f.units.iter().filter(|u| u.object == object) {
        let of = format!("{} of {} ({})", u.piece, u.label, u.path);
        assert!(names(&[&block, &of]), "{told}: no finding has '{block}' and '{of}': {findings:?}");
    }
    lost.len()
}

/// Positions to flip: every byte of the structure, and of each block's payload its ends, a stride and some
/// at random.
fn positions(parts: &[(Range<u64>, Part)], noise: &mut Noise) -> Vec<(u64, u64, Part)> {
    let mut out = Vec::new();
    for (range, part) in parts {
        let len = range.end - range.start;
        let chosen: BTreeSet<u64> = match part {
            Part::Block(..) => {
                let stride = (range.start..range.end).step_by(1999);
                let random: Vec<u64> = (0..4).map(|_| range.start + noise.next() % len).collect();
                stride.chain(random).chain([range.end - 1]).collect()
            }
            _ => range.clone().collect(),
        };
        out.extend(chosen.into_iter().map(|at| (at, noise.next() >> 32, *part)));
    }
    out
}

#[test]
fn a_flipped_bit_anywhere_is_an_error_where_it_is_needed_and_nowhere_else() {
    const THREADS: usize = 2;
    let f = Family::new();
    let (base, tuned) = (f.wide("base@v1"), f.wide("tuned@v1"));
    assert!(tuned.needs.contains(&Part::Block(base.object, 0)), "the fine-tune is no delta");
    let clean = fsck(&open(&f.b.repo()), &f.heads, &Silent).unwrap();
    assert!(clean.ok && clean.versions_checked == 2, "{:?}", clean.findings);
    let mut noise = Noise(0xF11B);
    let all: Vec<_> =
        f.packs.iter().flat_map(|(n, p)| positions(p, &mut noise).into_iter().map(move |x| (n.as_str(), x))).collect();
    let work = |worker: usize| {
        let dir = f.b.path(&format!("copy{worker}"));
        copy(&f.b.repo(), &dir);
        let mut lost = BTreeMap::<&str, usize>::new();
        for (pack, (at, bit, part)) in all.iter().skip(worker).step_by(THREADS) {
            let kind = match part {
                Part::Block(o, _) if *o == base.object => "base block",
                Part::Block(..) => "block",
                Part::Record(_) => "record",
                Part::Recipe(_) => "recipe",
                Part::Version(_) => "version",
                _ => "rest",
            };
            let n = lost.entry(kind).or_default();
            *n = (*n).max(check_flip(&f, &dir, pack, *at, *bit, *part));
        }
        assert_eq!(unreadable(&f, &dir), [0usize; 0], "the flips were undone");
        lost
    };
    let most = std::thread::scope(|s| {
        let threads: Vec<_> = (0..THREADS).map(|w| s.spawn(move || work(w))).collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).fold(BTreeMap::<&str, usize>::new(), |mut most, (k, n)| {
            let m = most.entry(k).or_default();
            *m = (*m).max(n);
            most
        })
    });
    println!("{} flips; units lost at most: {most:?}", all.len());
    // A base's block costs two, a version record all of its version, what is redundant nothing.
    assert_eq!((most["base block"], most["rest"]), (2, 0), "{most:?}");
    let whole = f.units.iter().filter(|u| u.label == "tuned@v1").count();
    assert!(most["version"] >= whole.min(f.units.len() - whole) && most["recipe"] >= 4, "{most:?}");
    assert!(most["block"] >= 1 && most["record"] >= 2, "{most:?}");
    assert!(all.len() > 2000, "{}", all.len());
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|e| e.unwrap()) {
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

/// The pages of a file of a mounted version that cannot be read. Panics at a wrong byte or another error.
fn pages_lost(path: &Path, want: &[u8]) -> BTreeSet<u64> {
    const PAGE: usize = 4096;
    let mut lost = BTreeSet::new();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) => {
            assert_eq!(e.raw_os_error(), Some(libc::EIO), "{}: {e}", path.display());
            return (0..want.len().div_ceil(PAGE) as u64).collect();
        }
    };
    for (i, page) in (0..).zip(want.chunks(PAGE)) {
        let mut got = vec![0; page.len()];
        match file.read_exact_at(&mut got, i * PAGE as u64) {
            Ok(()) => assert!(got == page, "{}: wrong bytes in page {i}", path.display()),
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::EIO), "{}: {e}", path.display());
                lost.insert(i);
            }
        }
    }
    lost
}

/// Pages that hold a byte of a unit that needs `part`.
fn pages_that_need(f: &Family, label: &str, path: &str, part: Part) -> BTreeSet<u64> {
    let units = f.units.iter().filter(|u| u.label == label && u.path == path && u.needs.contains(&part));
    units.flat_map(|u| u.at / 4096..(u.at + u.want.len() as u64).div_ceil(4096)).collect()
}

#[test]
fn through_a_mount_damage_is_eio_and_a_line_in_the_log() {
    let f = Family::new();
    let wide = f.wide("base@v1").object;
    let vocabulary = f.units.iter().find(|u| u.label == "tuned@v1" && u.path == "vocab.txt").unwrap();
    let tuned = f.heads.iter().find(|h| h.model.as_str() == "tuned").unwrap().id;
    let parts = [
        Part::Block(wide, 1),
        Part::Block(f.wide("tuned@v1").object, 0),
        Part::Block(vocabulary.object, 0),
        Part::Record(wide),
        Part::Recipe(vocabulary.recipe),
        Part::Version(tuned),
        Part::Footer,
    ];
    let mut eio = 0;
    for part in parts {
        let (pack, range) = f.where_is(part);
        let _flip = Flip::new(f.pack_file(&f.b.repo(), pack), (range.start + range.end) / 2, 3);
        let log = fs::read_dir(f.b.path("home/.local/state/mgit")).into_iter().flatten().flatten().next();
        log.iter().for_each(|l| fs::write(l.path(), b"").unwrap());
        let Some(m) = f.b.mount(&[]) else { return };
        let mut lost_any = false;
        for (label, path) in f.units.iter().map(|u| (&u.label, &u.path)).collect::<BTreeSet<_>>() {
            let (model, version) = label.split_once('@').unwrap();
            let want = fs::read(f.b.path("in").join(model).join(path)).unwrap();
            let lost = pages_lost(&m.file(model, version, path), &want);
            let may = pages_that_need(&f, label, path, part);
            assert!(lost.is_subset(&may), "{part:?}: {path} of {label}: {lost:?} are lost, only {may:?} need it");
            lost_any |= !lost.is_empty();
            eio += lost.len();
        }
        assert_eq!(lost_any, part != Part::Footer, "{part:?}");
        let log = fs::read_dir(f.b.path("home/.local/state/mgit")).unwrap().next().unwrap().unwrap();
        let log = fs::read_to_string(log.path()).unwrap();
        let id = match part {
            Part::Block(id, _) | Part::Record(id) | Part::Recipe(id) | Part::Version(id) => id.to_string(),
            _ => pack.to_owned(),
        };
        assert!(
            log.lines().any(|l| l.contains(&id)) || part == Part::Footer,
            "{part:?}: {id} is not in the log:\n{log}"
        );
        assert!(!log.contains("panicked"), "{log}");
        // fsck through the daemon tells the same.
        let ran = f.b.run(&["fsck", "--json"]);
        assert_eq!(ran.code, 1, "{part:?}: {}", ran.out);
        let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(report["ok"], false);
        assert!(!report["findings"].as_array().unwrap().is_empty() && ran.out.contains(&id), "{part:?}: {}", ran.out);
    }
    assert!(eio > 0);
    assert_eq!(f.b.json(&["fsck"])["ok"], true);
}

/// `export` of a version to a new directory, its bytes compared with the original; else its one line.
fn export(f: &Family, model: &str) -> Result<(), String> {
    let to = f.b.path("out");
    let ran = f.b.run(&["export", model, to.to_str().unwrap()]);
    if ran.code != 0 {
        assert_eq!((ran.code, ran.err.lines().count()), (1, 1), "{}", ran.err);
        assert!(!to.exists(), "a failed export leaves something");
        return Err(ran.err);
    }
    for file in ["model.safetensors", "config.json", "vocab.txt"] {
        assert!(fs::read(to.join(file)).unwrap() == fs::read(f.b.path("in").join(model).join(file)).unwrap());
    }
    fs::remove_dir_all(&to).unwrap();
    Ok(())
}

/// Runs fsck, expects findings, and returns them as one text.
fn findings(f: &Family, args: &[&str]) -> String {
    let ran = f.b.run(&[&["fsck", "--json"], args].concat());
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    let report: serde_json::Value =
        serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {}{}", ran.out, ran.err));
    assert_eq!(report["ok"], false);
    let findings = report["findings"].as_array().unwrap();
    findings.iter().for_each(|f| assert!(["kind", "what", "where"].iter().all(|k| f[k].is_string()), "{f}"));
    findings.iter().map(|f| format!("{}: {} ({})\n", f["kind"], f["what"], f["where"])).collect()
}

#[test]
fn a_pack_that_is_gone_cut_or_overwritten() {
    let f = Family::new();
    let show = |m| f.b.ok(&["show", m, "--json"]);
    let before = (show("base"), show("tuned"), f.b.ok(&["ls", "--json"]));
    let (of_base, of_tuned) = (&f.heads[0].pack, &f.heads[1].pack);
    assert_ne!(of_base, of_tuned);
    let all = fs::read(pack_path(&f.b.repo(), of_base)).unwrap();
    let garbage = Noise(4).bytes(all.len());
    let cases: [(&str, Option<&[u8]>); 6] = [
        ("gone", None),
        ("empty", Some(&[])),
        ("only its header", Some(&all[..28])),
        ("half", Some(&all[..all.len() / 2])),
        ("its last byte less", Some(&all[..all.len() - 1])),
        ("garbage", Some(&garbage)),
    ];
    for (what, bytes) in cases {
        let path = pack_path(&f.b.repo(), of_base);
        match bytes {
            None => fs::remove_file(&path).unwrap(),
            Some(bytes) => fs::write(&path, bytes).unwrap(),
        }
        let whole = what == "its last byte less"; // All frames are there, only the footer cannot be used.
        for model in ["base", "tuned"] {
            match export(&f, model) {
                Ok(()) => assert!(whole, "{what}"),
                Err(line) => {
                    assert!(!whole && (line.contains("missing") || line.contains("damaged")), "{what}: {line}")
                }
            }
        }
        assert_eq!(f.b.ok(&["ls", "--json"]), before.2, "{what}: names do not need packs");
        for args in [&[][..], &["--rebuild"]] {
            let told = findings(&f, args);
            assert!(told.contains(of_base) || (told.contains("base@v1") && bytes.is_none()), "{what}: {told}");
            assert!(whole || (told.contains("base@v1") && told.contains("tuned@v1")), "{what}: {told}");
        }
        fs::write(&path, &all).unwrap();
        assert_eq!(f.b.json(&["fsck"])["ok"], true, "{what}");
        assert_eq!((show("base"), show("tuned"), f.b.ok(&["ls", "--json"])), before, "{what}");
    }
    // The fine-tune's pack gone: its base does not need it.
    fs::remove_file(pack_path(&f.b.repo(), of_tuned)).unwrap();
    export(&f, "base").unwrap();
    assert!(export(&f, "tuned").unwrap_err().contains("missing"));
    assert!(f.b.fails(&["show", "tuned"]).contains("missing"));
    let told = findings(&f, &[]);
    assert!(told.contains("tuned@v1") && !told.contains("base@v1"), "{told}");
    let Some(m) = f.b.mount(&[]) else { return };
    assert!(fs::read(m.file("base", "v1", "vocab.txt")).unwrap() == fs::read(f.b.path("in/base/vocab.txt")).unwrap());
    let gone = fs::read(m.file("tuned", "v1", "vocab.txt")).unwrap_err();
    assert_eq!(gone.raw_os_error(), Some(libc::EIO));
}

#[test]
fn a_journal_that_was_changed_is_never_believed() {
    let f = Family::new();
    let (path, mountpoint) = (f.b.repo().join("journal/000001.log"), f.b.path("mnt"));
    fs::create_dir(&mountpoint).unwrap();
    // After the last frame comes an empty one (an array of none): damaged, it costs nothing that was acknowledged.
    let len = fs::metadata(&path).unwrap().len() - (4 + 8 + 2);
    let before = f.b.ok(&["ls", "--json"]);
    let file = || File::options().read(true).write(true).open(&path).unwrap();
    let named = |at, line: String| {
        let named = line.contains("journal") && (line.contains("damaged") || line.contains("later mgit"));
        assert!(named, "{at}: {line}");
    };
    let mut noise = Noise(6);
    let random: Vec<u64> = (0..10).map(|_| noise.next() % len).collect();
    for at in [0, 9, 27, 28, 32, 40, len - 1].into_iter().chain(random) {
        let flip = Flip::new(file(), at, noise.next() >> 32);
        // The catalog was made when it was whole: a command may go on from that, or see the damage.
        match f.b.run(&["ls", "--json"]) {
            told if told.code == 0 => assert_eq!(told.out, before, "{at}"),
            told => named(at, told.err),
        }
        // What deletes, makes anew or stays long looks at all of it.
        for args in [&["fsck", "--rebuild"][..], &["gc"], &["mount", mountpoint.to_str().unwrap()]] {
            if args[0] != "mount" || common::fuse_is_there() {
                named(at, f.b.fails(args));
            }
        }
        let checked = f.b.run(&["fsck"]);
        assert_ne!(checked.code, 0);
        named(at, checked.err);
        drop(flip);
        assert_eq!(f.b.ok(&["ls", "--json"]), before, "{at}");
    }
    // What was acknowledged is missed when it is gone.
    let all = fs::read(&path).unwrap();
    assert_eq!(&all[len as usize..][12..], b"[]");
    for cut in [0, 20, 28, len / 2, len - 1] {
        fs::write(&path, &all[..cut as usize]).unwrap();
        let line = f.b.fails(&["ls"]);
        assert!(line.contains("journal") && line.contains("damaged"), "{cut}: {line}");
        f.b.fails(&["import", f.b.path("in/base").to_str().unwrap(), "--as", "again"]);
    }
    fs::write(&path, &all).unwrap();
    assert_eq!(f.b.json(&["fsck"])["ok"], true);
    assert_eq!(f.b.ok(&["ls", "--json"]), before);
}

#[test]
fn a_catalog_of_garbage_is_made_anew() {
    let f = Family::new();
    f.b.ok(&["link", "tuned", "base", "--relation", "distill"]);
    let show = |m| f.b.ok(&["show", m, "--json"]);
    let before = (show("base"), show("tuned"), f.b.ok(&["ls", "--json"]));
    let catalog = f.b.repo().join("catalog");
    type Wreck = (&'static str, fn(&Path));
    let wreck: [Wreck; 3] = [
        ("overwritten", |c| {
            for entry in fs::read_dir(c).unwrap().flatten().filter(|e| e.path().is_file()) {
                fs::write(entry.path(), Noise(5).bytes(3000)).unwrap();
            }
        }),
        ("emptied", |c| {
            for entry in fs::read_dir(c).unwrap().flatten().filter(|e| e.path().is_file()) {
                fs::write(entry.path(), b"").unwrap();
            }
        }),
        ("gone", |c| fs::remove_dir_all(c).unwrap()),
    ];
    for (what, wreck) in wreck {
        wreck(&catalog);
        let ran = f.b.run(&["ls", "--json"]);
        match ran.code {
            0 => assert_eq!(ran.out, before.2, "{what}: other names"),
            _ => assert!(
                ran.code == 1 && ran.err.contains("--rebuild") && ran.err.lines().count() == 1,
                "{what}: {}",
                ran.err
            ),
        }
        assert_eq!(f.b.json(&["fsck", "--rebuild"])["ok"], true, "{what}");
        assert_eq!((show("base"), show("tuned"), f.b.ok(&["ls", "--json"])), before, "{what}");
    }
    // Flips in it: never other names.
    let db = catalog.join("db");
    let len = fs::metadata(&db).unwrap().len();
    let mut noise = Noise(8);
    for _ in 0..12 {
        let at = noise.next() % len;
        drop(Flip { file: File::options().read(true).write(true).open(&db).unwrap(), at, good: noise.next() as u8 });
        let ran = f.b.run(&["ls", "--json"]);
        assert!(ran.code == 1 || ran.out == before.2, "{at}: {}{}", ran.out, ran.err);
        f.b.ok(&["fsck", "--rebuild"]);
        assert_eq!(f.b.ok(&["ls", "--json"]), before.2, "{at}");
    }
}

#[test]
fn a_directory_that_is_no_repository() {
    let f = Family::new();
    let format = f.b.repo().join("format.json");
    let good = fs::read(&format).unwrap();
    for bad in [&b""[..], b"{", b"\xff\xfe", br#"{"format":"one"}"#] {
        fs::write(&format, bad).unwrap();
        let line = f.b.fails(&["ls"]);
        assert!(line.contains("format.json") && line.contains("damaged"), "{line}");
        f.b.fails(&["fsck"]);
    }
    fs::write(&format, br#"{"format":1,"features":["parity"]}"#).unwrap();
    assert!(f.b.fails(&["ls"]).contains("later mgit"));
    fs::remove_file(&format).unwrap();
    assert!(f.b.fails(&["ls"]).contains("mgit init"));
    fs::write(&format, good).unwrap();
    assert_eq!(f.b.json(&["fsck"])["ok"], true);
}

#[test]
fn the_file_of_footers_is_not_believed_of_a_pack_that_lost_its_end() {
    let b = Bench::new();
    let inputs: Vec<PathBuf> = (0..36).map(|n| b.path(&format!("in/m{n}"))).collect();
    let import = |dir: &Path, name: &str| b.ok(&["import", dir.to_str().unwrap(), "--as", name]);
    for (n, dir) in inputs.iter().enumerate() {
        let mut noise = Noise(1000 + n as u64);
        let weight = Tensor::f32("w", &[32, 32], (0..1024).map(|_| noise.normal()));
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("model.safetensors"), safetensors(&[weight])).unwrap();
        import(dir, &format!("m{n}"));
    }
    assert!(b.repo().join("packs/footers").exists(), "no pack is known by it");
    let first: Id = serde_json::from_value(b.json(&["show", "m0"])["id"].clone()).unwrap();
    let pack = open(&b.repo()).packs.pack_of_version(&first).unwrap();
    let pack = b.repo().join(format!("packs/{pack}.pack"));
    let whole = fs::read(&pack).unwrap();
    fs::write(&pack, &whole[..whole.len() / 2]).unwrap();

    let told = b.run(&["fsck", "--quick"]);
    assert!(told.code != 0 && told.err.contains("m0@v1"), "{}{}", told.out, told.err);
    assert_ne!(b.run(&["verify", inputs[0].to_str().unwrap(), "m0"]).code, 0);
    import(&inputs[0], "again");
    b.ok(&["verify", inputs[0].to_str().unwrap(), "again"]);
    b.ok(&["verify", inputs[1].to_str().unwrap(), "m1"]);
    b.run(&["fsck", "--repair"]);
    b.ok(&["verify", inputs[0].to_str().unwrap(), "again"]);
}

#[test]
fn what_is_stored_anew_for_its_copy_is_damaged_stays_a_base() {
    let b = Bench::new();
    let mut noise = Noise(77);
    let first: Vec<f32> = (0..4096).map(|_| noise.normal()).collect();
    let mut near = |by: f32| first.iter().map(|v| v + by * noise.normal()).collect::<Vec<f32>>();
    let (tuned, sibling, other) = (near(1e-4), near(1e-4), near(10.0));
    let import = |name: &str, values: &[f32], more: &[&str]| {
        let dir = b.path(&format!("in/{name}"));
        fs::create_dir_all(&dir).unwrap();
        let weight = Tensor::f32("w", &[64, 64], values.iter().copied());
        fs::write(dir.join("model.safetensors"), safetensors(&[weight])).unwrap();
        b.ok(&[&["import", dir.to_str().unwrap(), "--as", name], more].concat());
    };
    import("first", &first, &[]);
    import("tuned", &tuned, &["--parent", "first"]);
    import("other", &other, &["--parent", "first"]);
    import("sibling", &sibling, &["--parent", "other"]);
    let id: Id = serde_json::from_value(b.json(&["show", "first"])["id"].clone()).unwrap();
    let repo = open(&b.repo());
    let pack = repo.packs.pack_of_version(&id).unwrap();
    let file = File::options().read(true).write(true).open(b.repo().join(format!("packs/{pack}.pack"))).unwrap();
    for thing in repo.packs.listing(&pack).things.iter().filter(|t| t.kind == mgit::store::Kind::Object) {
        let object = repo.packs.object(&thing.id).unwrap();
        let last = object.record.blocks.len() - 1;
        let record = object.block_offset(last as u64) + 9 + object.record.blocks[last].encoded as u64;
        file.write_all_at(b"rotten", record + 20).unwrap();
    }
    drop(repo);
    let dir = |name: &str| b.path(&format!("in/{name}")).to_str().unwrap().to_owned();
    assert_ne!(b.run(&["verify", &dir("tuned"), "tuned"]).code, 0);
    import("again", &first, &["--parent", "sibling"]);
    for (name, version) in [("again", "again"), ("again", "first"), ("tuned", "tuned"), ("sibling", "sibling")] {
        b.ok(&["verify", &dir(name), version]);
    }
}
