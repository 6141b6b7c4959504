//! What goes in comes out, bit for bit: any safetensors layout, any other file, alone or as a delta, through
//! the library, through `export` and through the mount.

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use common::lab::{Files, Lab, assert_same, read_tree, stored_tree, write_tree};
use common::{Bench, Noise};
use mgit::codec::Effort;
use mgit::model::dtype::{Elem, bits};
use mgit::model::id::{BLOCK, Id};
use mgit::model::object::MAX_COST;
use mgit::model::record::VersionRecord;
use mgit::repo::Repo;
use mgit::repo::export::{export, verify};
use mgit::repo::progress::Silent;
use mgit::store::sim::SimDisk;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};

/// Every dtype of the format, then names that it does not know.
const DTYPES: [&str; 25] = [
    "BOOL",
    "F4",
    "F6_E2M3",
    "F6_E3M2",
    "U8",
    "I8",
    "F8_E5M2",
    "F8_E4M3",
    "F8_E8M0",
    "F8_E4M3FNUZ",
    "F8_E5M2FNUZ",
    "I16",
    "U16",
    "F16",
    "BF16",
    "I32",
    "U32",
    "F32",
    "C64",
    "F64",
    "I64",
    "U64",
    "Q3_K",
    "F12",
    "naïve ☃",
];
const KNOWN: usize = 22;

#[test]
fn the_dtypes_are_those_of_the_format() {
    assert!(DTYPES[..KNOWN].iter().all(|d| bits(d).is_some()) && DTYPES[KNOWN..].iter().all(|d| bits(d).is_none()));
}

// Arbitrary files.

/// What a tensor's bytes look like.
#[derive(Clone, Copy, Debug)]
enum Content {
    Noise,
    Zeros,
    Constant,
    /// Numbers near each other, as weights are.
    Weights,
    /// The bytes of the tensor before it, as far as they reach.
    Copied,
}

/// One tensor and how the header tells of it.
#[derive(Clone, Debug)]
struct Plan {
    name: String,
    dtype: usize,
    shape: Vec<u64>,
    content: Content,
    seed: u64,
    /// Bytes of nothing before it.
    gap: usize,
    /// Which order its three fields have.
    fields: usize,
    space: &'static str,
}

/// A whole file.
#[derive(Clone, Debug)]
struct Layout {
    tensors: Vec<Plan>,
    /// Where each comes in the header.
    order: Vec<usize>,
    metadata: Option<(usize, String)>,
    trailing: usize,
    padding: usize,
    before: &'static str,
}

/// Makes a shape fit its dtype: sub-byte elements fill whole bytes.
fn fitted(dtype: &str, mut shape: Vec<u64>) -> Vec<u64> {
    let total = |s: &[u64]| s.iter().product::<u64>() * bits(dtype).unwrap_or(8) as u64;
    if total(&shape) % 8 != 0 {
        shape.push(4);
    }
    shape
}

fn length(plan: &Plan) -> usize {
    let elements: u64 = plan.shape.iter().product();
    match bits(DTYPES[plan.dtype]) {
        Some(bits) => (elements * bits as u64 / 8) as usize,
        None => (plan.seed % 700) as usize,
    }
}

/// Weights of a dtype: values near each other where it is a number, else bytes of few kinds.
fn weights(dtype: &str, n: usize, noise: &mut Noise) -> Vec<u8> {
    let mut out = Vec::with_capacity(n + 8);
    while out.len() < n {
        let x = noise.normal() * 0.05;
        match dtype {
            "F64" => out.extend((x as f64).to_le_bytes()),
            "F32" | "C64" => out.extend(x.to_le_bytes()),
            "BF16" => out.extend(&x.to_le_bytes()[2..]),
            "F16" => out.extend(half(x).to_le_bytes()),
            "I64" | "U64" => out.extend(((x * 1e6) as i64).to_le_bytes()),
            "I32" | "U32" => out.extend(((x * 1e6) as i32).to_le_bytes()),
            "I16" | "U16" => out.extend(((x * 1e4) as i16).to_le_bytes()),
            "BOOL" => out.push((x > 0.0) as u8),
            _ => out.push((x * 300.0) as i8 as u8),
        }
    }
    out.truncate(n);
    out
}

/// F16 of a value that is a normal one there.
fn half(x: f32) -> u16 {
    let b = x.to_bits();
    let exponent = ((b >> 23) & 255).saturating_sub(112).min(30);
    ((b >> 16) & 0x8000) as u16 | (exponent << 10) as u16 | ((b >> 13) & 0x3ff) as u16
}

fn file_of(layout: &Layout) -> Vec<u8> {
    let mut data: Vec<u8> = Vec::new();
    let mut last: Vec<u8> = Vec::new();
    let mut entries = Vec::new();
    for t in &layout.tensors {
        let mut noise = Noise(t.seed | 1);
        data.extend(noise.bytes(t.gap));
        let n = length(t);
        let bytes = match t.content {
            Content::Noise => noise.bytes(n),
            Content::Zeros => vec![0; n],
            Content::Constant => [7, 0, 0x80, 0x3f].into_iter().cycle().take(n).collect(),
            Content::Weights => weights(DTYPES[t.dtype], n, &mut noise),
            Content::Copied => last.iter().copied().chain(std::iter::repeat(9)).take(n).collect(),
        };
        let s = t.space;
        let fields = [
            format!("\"dtype\"{s}:{s}{}", serde_json::to_string(DTYPES[t.dtype]).unwrap()),
            format!("\"shape\":{s}{:?}", t.shape),
            format!("\"data_offsets\"{s}:[{}{s},{}]", data.len(), data.len() + n),
        ];
        let (a, b, c) = [(0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0, 1)][t.fields];
        let info = format!("{{{s}{},{s}{},{}{s}}}", fields[a], fields[b], fields[c]);
        entries.push(format!("{s}{}:{s}{info}", serde_json::to_string(&t.name).unwrap()));
        data.extend(&bytes);
        last = bytes;
    }
    let mut entries: Vec<String> = layout.order.iter().map(|&i| entries[i].clone()).collect();
    if let Some((at, text)) = &layout.metadata {
        let text = serde_json::to_string(text).unwrap();
        entries.insert(at % (entries.len() + 1), format!("\"__metadata__\": {{\"k\":{text},{text}:\"format\"}}"));
    }
    let header = format!("{}{{{}}}{}", layout.before, entries.join(","), " ".repeat(layout.padding));
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend(data);
    out.extend(Noise(layout.trailing as u64 | 1).bytes(layout.trailing));
    out
}

fn shape() -> impl Strategy<Value = Vec<u64>> {
    prop_oneof![
        2 => Just(vec![]),
        4 => prop::collection::vec(0u64..7, 1..4),
        3 => prop::collection::vec(1u64..30, 1..3),
        1 => prop_oneof![Just(vec![1; 40]), Just(vec![1 << 40, 0]), Just(vec![0, 1 << 40]), Just(vec![1, 70_001])],
        1 => (1u64..4, 7_000u64..17_000).prop_map(|(a, b)| vec![a, b]),
    ]
}

fn plan() -> impl Strategy<Value = Plan> {
    let content = prop_oneof![
        Just(Content::Noise),
        Just(Content::Zeros),
        Just(Content::Constant),
        Just(Content::Weights),
        Just(Content::Copied)
    ];
    let gap = prop_oneof![4 => Just(0usize), 2 => 1usize..20, 1 => Just(4096usize)];
    let space = prop_oneof![Just(""), Just(" "), Just("\n\t  ")];
    (any::<String>(), 0..DTYPES.len(), shape(), content, any::<u64>(), gap, 0usize..4, space).prop_map(
        |(name, dtype, shape, content, seed, gap, fields, space)| {
            let shape = fitted(DTYPES[dtype], shape);
            Plan { name, dtype, shape, content, seed, gap, fields, space }
        },
    )
}

fn layout() -> impl Strategy<Value = Layout> {
    let metadata = prop::option::of((any::<usize>(), any::<String>()));
    let trailing = prop_oneof![3 => Just(0usize), 1 => 1usize..50, 1 => Just(70_000usize)];
    let parts = (prop::collection::vec(plan(), 0..7), any::<u64>(), metadata, trailing, 0usize..10);
    (parts, prop_oneof![6 => Just(""), 1 => Just("  ")]).prop_map(
        |((mut tensors, seed, metadata, trailing, padding), before)| {
            let mut names = BTreeSet::from(["__metadata__".to_owned()]);
            tensors.retain(|t| names.insert(t.name.clone()));
            let mut order: Vec<usize> = (0..tensors.len()).collect();
            let mut noise = Noise(seed | 1);
            order.sort_by_key(|_| noise.next());
            Layout { tensors, order, metadata, trailing, padding, before }
        },
    )
}

/// A file name that a file system takes.
fn name() -> impl Strategy<Value = String> {
    let odd = prop_oneof![
        Just(" "),
        Just("\n"),
        Just("\\"),
        Just("\""),
        Just("'"),
        Just("*"),
        Just("-"),
        Just("é"),
        Just("e\u{301}"),
        Just("模型"),
        Just("🦀"),
        Just("\u{202e}"),
        Just(".."),
        Just("~"),
        Just("\t"),
        Just("%2f"),
        Just("\u{7f}")
    ];
    let part = prop_oneof![3 => "[a-zA-Z0-9._]{1,6}".boxed(), 2 => odd.prop_map(str::to_owned).boxed()];
    prop::collection::vec(part, 1..5).prop_map(|p| p.concat()).prop_filter("not a name", |n| n != "." && n != "..")
}

fn ordinary() -> impl Strategy<Value = Files> {
    let bytes = prop_oneof![
        2 => Just(Some(vec![])),
        2 => Just(None),
        4 => prop::collection::vec(any::<u8>(), 1..300).prop_map(Some),
        1 => (any::<u64>(), 60_000usize..140_000).prop_map(|(s, n)| Some(Noise(s | 1).bytes(n))),
        1 => (65_530usize..65_540).prop_map(|n| Some(b"the same line\n".iter().copied().cycle().take(n).collect())),
    ];
    let entry = (prop::collection::vec(name(), 1..4), bytes);
    prop::collection::vec(entry, 0..7).prop_map(|entries| {
        let mut files = Files::new();
        for (parts, bytes) in entries {
            let path = parts.join("/");
            if !path.ends_with(".safetensors") {
                add(&mut files, path, bytes);
            }
        }
        files
    })
}

/// Unless a file would stand where another's directory does, or an empty directory hold it.
fn add(files: &mut Files, path: String, bytes: Option<Vec<u8>>) {
    let below = |a: &str, b: &str| b.strip_prefix(a).is_some_and(|rest| rest.starts_with('/'));
    if !files.keys().any(|k| *k == path || below(k, &path) || below(&path, k)) {
        files.insert(path, bytes);
    }
}

/// A model directory: safetensors files, sometimes one of them twice, and any others.
fn tree() -> impl Strategy<Value = Files> {
    let layouts = prop::collection::vec((prop::option::of(name()), layout()), 1..3);
    (layouts, prop::bool::weighted(0.3), ordinary()).prop_map(|(layouts, twice, mut files)| {
        for (i, (dir, layout)) in layouts.into_iter().enumerate() {
            let dir = dir.map_or(String::new(), |d| format!("{d}/"));
            let bytes = file_of(&layout);
            if twice {
                add(&mut files, format!("copy of {i}.safetensors"), Some(bytes.clone()));
                add(&mut files, format!("{i}.bin"), Some(bytes.clone()));
            }
            add(&mut files, format!("{dir}model-{i}.safetensors"), Some(bytes));
        }
        if files.values().all(Option::is_none) {
            files.insert("config.json".to_owned(), Some(b"{}".to_vec()));
        }
        files
    })
}

// Through the library and export.

/// A repository on a simulated disk, and what was imported.
struct Shelf {
    lab: Lab,
    sim: SimDisk,
    repo: Arc<Repo>,
    count: u64,
}

impl Shelf {
    fn new() -> Shelf {
        let lab = Lab::new();
        let sim = lab.create(1);
        let repo = lab.open(&sim, 16 << 20).unwrap();
        Shelf { lab, sim, repo, count: 0 }
    }

    /// Imports, and compares what comes back by every way there is.
    fn keep(&mut self, files: &Files, bases: &[Id]) -> (Id, VersionRecord) {
        self.count += 1;
        let bytes: usize = files.values().flatten().map(Vec::len).sum();
        self.lab.effort = match (bytes, self.count % 3) {
            (..1_000_000, 0) => Effort::Max,
            (_, 1) => Effort::Default,
            _ => Effort::Fast,
        };
        let (from, to) = (self.lab.input(&format!("{}", self.count)), self.lab.dir.path().join("out"));
        let _ = std::fs::remove_dir_all(&to); // There where the case before this one failed.
        write_tree(&from, files);
        let previous = bases.last().copied();
        let name = format!("m@v{}", self.count);
        let prepared = self.lab.prepare(&self.repo, &from, &name, &[], previous).unwrap();
        self.repo.packs.refresh().unwrap();
        // A process that never saw the bytes: no cache holds any.
        let fresh = self.lab.open(&self.sim, 0).unwrap();
        let record = fresh.record(&prepared.id).unwrap();
        assert_eq!(record, prepared.record);
        export(&fresh, &record, &to, &Silent).unwrap();
        assert_same(&read_tree(&to), files, "export");
        assert_same(&stored_tree(&fresh, &record), files, "read");
        assert_eq!(verify(&fresh, &record, &from, &Silent).unwrap(), Vec::<String>::new());
        std::fs::remove_dir_all(&from).unwrap();
        (prepared.id, record)
    }

    /// The records of a file's objects.
    fn objects(&self, record: &VersionRecord, path: &str) -> Vec<mgit::model::object::ObjectRecord> {
        let file = record.files.iter().find(|f| f.path == path).unwrap();
        let recipe = self.repo.packs.recipe(&file.recipe).unwrap();
        recipe.extents.iter().map(|e| self.repo.packs.object(&e.object).unwrap().record.clone()).collect()
    }
}

/// As many cases, unless `PROPTEST_CASES` asks for another number.
fn config(cases: u32) -> Config {
    let cases = std::env::var("PROPTEST_CASES").map_or(cases, |n| n.parse().unwrap());
    Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() }
}

#[test]
fn any_directory_comes_back_through_export() {
    let shelf = std::sync::Mutex::new(Shelf::new());
    let mut runner = TestRunner::new(config(128));
    let keep = |files: Files| {
        shelf.lock().unwrap_or_else(|e| e.into_inner()).keep(&files, &[]);
        Ok(())
    };
    runner.run(&tree(), keep).unwrap();
}

// Deltas.

/// How a child differs from its parent.
const MUTATIONS: [&str; 11] = [
    "nudged",
    "sparse",
    "same",
    "grown",
    "shrunk",
    "other dtype",
    "noise",
    "zeros",
    "one row",
    "other rank",
    "emptied",
];

struct Weight {
    name: String,
    dtype: &'static str,
    rows: u64,
    bytes: Vec<u8>,
}

/// Elements of a row: 96 KiB in 8-byte elements is two blocks, in sub-byte ones a part of one.
const ROW: u64 = 96;

fn row_bytes(dtype: &str) -> usize {
    ROW as usize * bits(dtype).unwrap_or(8) / 8
}

fn write_weights(weights: &[Weight]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for w in weights {
        let shape = if w.rows == 0 { vec![w.bytes.len() as u64 / 8, 8] } else { vec![w.rows, ROW] };
        let (dtype, end) = (w.dtype, data.len() + w.bytes.len());
        let info = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [data.len(), end]});
        header.insert(w.name.clone(), info);
        data.extend(&w.bytes);
    }
    let text = serde_json::to_vec(&header).unwrap();
    [&(text.len() as u64).to_le_bytes()[..], &text, &data].concat()
}

fn base_weights(rows: u64, noise: &mut Noise) -> Vec<Weight> {
    let of = |dtype: &&'static str| {
        let bytes = weights(dtype, rows as usize * row_bytes(dtype), noise);
        Weight { name: format!("layer.{dtype}"), dtype, rows, bytes }
    };
    DTYPES.iter().map(of).collect()
}

/// Adds a little to every number.
fn nudge(dtype: &str, bytes: &mut [u8], noise: &mut Noise) {
    let width = Elem::of(dtype).width();
    for e in bytes.chunks_exact_mut(width) {
        let r = noise.next();
        e[0] = e[0].wrapping_add((r % 3) as u8);
        if width > 2 {
            e[1] ^= (r >> 8) as u8 & 3;
        }
    }
}

fn mutate(w: &Weight, how: &str, noise: &mut Noise) -> Weight {
    let (mut dtype, mut rows, mut bytes) = (w.dtype, w.rows, w.bytes.clone());
    let row = row_bytes(dtype);
    match how {
        "nudged" => nudge(dtype, &mut bytes, noise),
        "sparse" => (0..20).for_each(|_| {
            let at = noise.next() as usize % bytes.len();
            bytes[at] ^= 0x11;
        }),
        "grown" => {
            nudge(dtype, &mut bytes, noise);
            rows += 37;
            bytes.extend(weights(dtype, 37 * row, noise));
        }
        "shrunk" => {
            rows = rows / 2 + 1;
            bytes.truncate(rows as usize * row);
        }
        "other dtype" => {
            let width = bits(dtype);
            let mut same = DTYPES[..KNOWN].iter().filter(|d| bits(d) == width && **d != dtype);
            dtype = same.next_back().unwrap_or(&"U8");
            if bits(dtype) != width {
                rows = 1;
                bytes.resize(row_bytes(dtype), 3);
            }
        }
        "noise" => bytes = noise.bytes(bytes.len()),
        "zeros" => bytes.fill(0),
        "one row" => {
            let at = noise.next() as usize % rows as usize * row;
            bytes[at..at + row].copy_from_slice(&noise.bytes(row));
        }
        "other rank" if bits(dtype).is_none_or(|b| b == 8) => rows = 0,
        "emptied" => {
            rows = 0;
            bytes.clear();
        }
        _ => {}
    }
    Weight { name: format!("model.{}", w.name), dtype, rows, bytes }
}

fn one_file(bytes: Vec<u8>) -> Files {
    Files::from([("model.safetensors".to_owned(), Some(bytes))])
}

#[test]
fn a_child_of_every_dtype_comes_back_whatever_happened_to_it() {
    let mut shelf = Shelf::new();
    let mut noise = Noise(41);
    // 130 rows of 96 elements of 8 bytes: two blocks; of one: less than one.
    let base = base_weights(130, &mut noise);
    let (parent, _) = shelf.keep(&one_file(write_weights(&base)), &[]);
    let mut deltas = BTreeSet::new();
    for how in MUTATIONS {
        let child: Vec<Weight> = base.iter().map(|w| mutate(w, how, &mut noise)).collect();
        let (_, record) = shelf.keep(&one_file(write_weights(&child)), &[parent]);
        let objects = shelf.objects(&record, "model.safetensors");
        deltas.extend(objects.iter().filter(|o| !o.bases.is_empty()).map(|o| (how, o.dtype.clone())));
        if how == "same" {
            assert!(objects[1..].iter().all(|o| o.bases.is_empty()), "what is there already was stored again");
        }
    }
    for dtype in DTYPES.iter().filter(|d| Elem::of(d) != Elem::Bytes && **d != "BOOL") {
        for how in ["nudged", "sparse", "grown"] {
            assert!(deltas.contains(&(how, dtype.to_string())), "a {how} {dtype} found no base: {deltas:?}");
        }
    }
}

#[test]
fn any_child_of_any_parent_comes_back() {
    let mut runner = TestRunner::new(config(24));
    let shelf = std::sync::Mutex::new(Shelf::new());
    let each = prop::collection::vec((0..DTYPES.len(), 0..MUTATIONS.len(), 1u64..200), 1..6);
    runner
        .run(&(each, any::<u64>()), |(each, seed)| {
            let mut shelf = shelf.lock().unwrap_or_else(|e| e.into_inner());
            let mut noise = Noise(seed | 1);
            let (mut old, mut new) = (vec![], vec![]);
            for (i, (dtype, how, rows)) in each.into_iter().enumerate() {
                let dtype = DTYPES[dtype];
                let bytes = weights(dtype, rows as usize * row_bytes(dtype), &mut noise);
                let w = Weight { name: format!("w{i}"), dtype, rows, bytes };
                new.push(mutate(&w, MUTATIONS[how], &mut noise));
                old.push(w);
            }
            let (parent, _) = shelf.keep(&one_file(write_weights(&old)), &[]);
            shelf.keep(&one_file(write_weights(&new)), &[parent]);
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_chain_of_twenty_versions_stays_cheap_to_read() {
    let mut shelf = Shelf::new();
    let mut noise = Noise(99);
    let kinds = ["F32", "BF16", "F8_E4M3", "I32", "F4"];
    let first = |d: &&'static str| {
        let bytes = weights(d, 200 * row_bytes(d), &mut noise);
        Weight { name: d.to_string(), dtype: d, rows: 200, bytes }
    };
    let mut now: Vec<Weight> = kinds.iter().map(first).collect();
    let mut versions: Vec<(Id, Files)> = Vec::new();
    let mut dearest = 0;
    for step in 0..20 {
        let files = match step {
            // Back to what it was: nothing new to store.
            13 => versions[4].1.clone(),
            _ => one_file(write_weights(&now)),
        };
        let previous: Vec<Id> = versions.last().map(|v| v.0).into_iter().collect();
        let (id, record) = shelf.keep(&files, &previous);
        for o in shelf.objects(&record, "model.safetensors") {
            assert!((1..=MAX_COST).contains(&o.cost) && MAX_COST == 8, "{} blocks for one of step {step}", o.cost);
            let bases: Vec<_> = o.bases.iter().map(|b| shelf.repo.packs.object(&b.id).unwrap().record.cost).collect();
            assert_eq!(o.cost, 1 + bases.iter().sum::<u8>(), "the cost of a block counts all that is decoded for it");
            dearest = dearest.max(o.cost);
        }
        versions.push((id, files));
        let how = ["nudged", "nudged", "grown", "nudged", "one row"][step % 5];
        now = now.iter().map(|w| Weight { name: w.name.clone(), ..mutate(w, how, &mut noise) }).collect();
    }
    assert!(dearest > MAX_COST / 2, "no chain was ever made: {dearest}");
    // Without a cache, and the last first.
    let fresh = shelf.lab.open(&shelf.sim, 0).unwrap();
    for (id, files) in versions.iter().rev() {
        assert_same(&stored_tree(&fresh, &fresh.record(id).unwrap()), files, "the chain");
    }
}

#[test]
fn files_larger_than_what_is_read_at_once_come_back() {
    let mut shelf = Shelf::new();
    let mut noise = Noise(3);
    let weight = |name: &str, dtype: &'static str, rows: u64, noise: &mut Noise| {
        let bytes = weights(dtype, rows as usize * row_bytes(dtype), noise);
        Weight { name: name.to_owned(), dtype, rows, bytes }
    };
    // 8 MiB are read, and 8 MiB encoded, at once: neither end falls on the end of a tensor or a block.
    let mut base = vec![weight("odd", "I8", 1, &mut noise)];
    base.push(weight("large", "F32", (9 << 20) / row_bytes("F32") as u64, &mut noise));
    base.push(Weight { name: "tiny".to_owned(), dtype: "Q3_K", rows: 1, bytes: vec![5] });
    base.push(weight("next", "BF16", (8 << 20) / row_bytes("BF16") as u64, &mut noise));
    let (parent, _) = shelf.keep(&one_file(write_weights(&base)), &[]);
    let child: Vec<Weight> = base.iter().map(|w| mutate(w, "sparse", &mut noise)).collect();
    let (_, record) = shelf.keep(&one_file(write_weights(&child)), &[parent]);
    let stored: u64 = shelf.objects(&record, "model.safetensors").iter().map(|o| o.encoded_bytes()).sum();
    assert!(stored < 1 << 20, "a sparse change took {stored} bytes");
}

// Random access.

/// A file with tensors of several blocks, some of them deltas; read through a cache that holds next to none.
fn reader() -> &'static (Vec<u8>, mgit::repo::read::FileReader) {
    static FILE: OnceLock<(Vec<u8>, mgit::repo::read::FileReader)> = OnceLock::new();
    FILE.get_or_init(|| {
        let mut shelf = Shelf::new();
        let mut noise = Noise(5);
        let base = base_weights(300, &mut noise);
        let (parent, _) = shelf.keep(&one_file(write_weights(&base)), &[]);
        let child: Vec<Weight> = base.iter().map(|w| mutate(w, "nudged", &mut noise)).collect();
        let mut bytes = write_weights(&child);
        bytes.extend(noise.bytes(3 * BLOCK as usize + 11));
        let (_, record) = shelf.keep(&one_file(bytes.clone()), &[parent]);
        assert!(shelf.objects(&record, "model.safetensors").iter().any(|o| o.cost > 1));
        let repo = shelf.lab.open(&shelf.sim, 0).unwrap();
        let reader = repo.open_file(&record.files[0].recipe).unwrap();
        (bytes, reader)
    })
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn any_range_reads_as_the_original(at in any::<prop::sample::Index>(), len in prop_oneof![
        Just(0usize), 1usize..100, Just(4096usize), 1usize..200_000
    ]) {
        let (bytes, reader) = reader();
        let at = at.index(bytes.len() + 1);
        let len = len.min(bytes.len() - at);
        let mut got = vec![0xaa; len];
        reader.read_at(at as u64, &mut got).unwrap();
        prop_assert!(got == bytes[at..at + len], "{at}+{len}");
        let mut got = vec![0xaa; len];
        reader.read_parallel(at as u64, &mut got).unwrap();
        prop_assert!(got == bytes[at..at + len], "{at}+{len}, on all cores");
    }
}

#[test]
fn reads_past_the_end_fail_and_many_threads_read_at_once() {
    let (bytes, reader) = reader();
    let end = bytes.len() as u64;
    for (at, len) in [(end, 1), (end - 1, 2), (u64::MAX - 4, 8), (0, bytes.len() + 1)] {
        assert!(reader.read_at(at, &mut vec![0; len]).is_err(), "{at}+{len}");
    }
    reader.read_at(end, &mut []).unwrap();
    std::thread::scope(|s| {
        for seed in 1..5 {
            s.spawn(move || {
                let mut noise = Noise(seed);
                for _ in 0..100 {
                    let at = noise.next() as usize % bytes.len();
                    let len = (noise.next() as usize % 100_000).min(bytes.len() - at);
                    let mut got = vec![0; len];
                    reader.read_at(at as u64, &mut got).unwrap();
                    assert!(got == bytes[at..at + len], "{at}+{len}");
                }
            });
        }
    });
}

// Through the program and the mount.

#[test]
fn any_directory_comes_back_through_the_program_and_the_mount() {
    let b = Bench::new();
    let mut runner = TestRunner::deterministic();
    let mut trees: Vec<Files> = (0..28).map(|_| tree().new_tree(&mut runner).unwrap().current()).collect();
    let mut noise = Noise(17);
    let base = base_weights(60, &mut noise);
    trees.push(one_file(write_weights(&base)));
    for how in MUTATIONS {
        let child: Vec<Weight> = base.iter().map(|w| mutate(w, how, &mut noise)).collect();
        trees.push(one_file(write_weights(&child)));
    }
    let path = |i: usize| b.path(&format!("in/t{i}"));
    for (i, files) in trees.iter().enumerate() {
        write_tree(&path(i), files);
        // One line of versions: each may be a delta against the one before.
        b.ok(&["import", path(i).to_str().unwrap(), "--as", &format!("line@t{i}"), "--effort", "fast"]);
    }
    assert_eq!(b.json(&["fsck"])["ok"], true);
    for i in (0..trees.len()).step_by(5) {
        let out = b.path(&format!("out-{i}"));
        b.ok(&["export", &format!("line@t{i}"), out.to_str().unwrap()]);
        assert_same(&read_tree(&out), &trees[i], &format!("export of t{i}"));
    }
    let Some(m) = b.mount(&[]) else { return };
    for (i, files) in trees.iter().enumerate() {
        let at = m.at.join(format!("models/line/t{i}"));
        assert_same(&read_tree(&at), files, &format!("t{i} in the mount"));
        sizes_agree(&at, files);
    }
    for (i, files) in trees.iter().enumerate().skip(28) {
        let file = std::fs::File::open(m.at.join(format!("models/line/t{i}/model.safetensors"))).unwrap();
        ranges_agree(&file, files["model.safetensors"].as_ref().unwrap(), &mut noise);
    }
    for i in (0..trees.len()).rev().step_by(7) {
        b.ok(&["verify", path(i).to_str().unwrap(), &format!("line@t{i}")]);
    }
}

fn ranges_agree(file: &std::fs::File, bytes: &[u8], noise: &mut Noise) {
    for _ in 0..40 {
        let at = noise.next() as usize % (bytes.len() + 1);
        let len = (noise.next() as usize % 100_000).min(bytes.len() - at);
        let mut got = vec![0; len];
        std::os::unix::fs::FileExt::read_exact_at(file, &mut got, at as u64).unwrap();
        assert!(got == bytes[at..at + len], "{at}+{len}");
    }
    let past = std::os::unix::fs::FileExt::read_at(file, &mut [0; 9], bytes.len() as u64 + 5).unwrap();
    assert_eq!(past, 0, "bytes past the end");
}

#[test]
fn a_single_file_comes_back_under_its_name() {
    let b = Bench::new();
    let layout = layout().new_tree(&mut TestRunner::deterministic()).unwrap().current();
    let files = Files::from([("my model (1).safetensors".to_owned(), Some(file_of(&layout)))]);
    write_tree(&b.path("in"), &files);
    let path = b.path("in/my model (1).safetensors");
    b.ok(&["import", path.to_str().unwrap(), "--as", "single"]);
    b.ok(&["export", "single", b.path("out").to_str().unwrap()]);
    assert_same(&read_tree(&b.path("out")), &files, "export");
    b.ok(&["verify", path.to_str().unwrap(), "single"]);
}

fn sizes_agree(at: &Path, files: &Files) {
    for (name, bytes) in files {
        let meta = std::fs::metadata(at.join(name)).unwrap();
        assert_eq!(meta.is_dir(), bytes.is_none(), "{name:?}");
        if let Some(bytes) = bytes {
            assert_eq!(meta.len(), bytes.len() as u64, "{name:?}");
        }
    }
}
