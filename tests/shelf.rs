//! A shelf of repositories that older mgits wrote: today's reads each bit for bit, goes on in it, and tidies it up.
//!
//! `shelf/<name>` has the repository without its catalog, and `files.json`: the BLAKE3 of each version's files. What has
//! been there stays. A new one is written by `MGIT_TEST_SHELF=<name>`, by the mgit that `MGIT_TEST_BINARY` names.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::lab::{Files, read_tree, write_tree};
use common::{Bench, Noise, Tensor, copy_tree, safetensors};
use mgit::repo::Repo;
use mgit::store::RealDisk;

/// Of each version the files, of each file its path (of an empty directory with a `/`) and the BLAKE3 of its bytes.
type Digests = BTreeMap<String, BTreeMap<String, String>>;

fn shelf() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shelf")
}

// ---- what stands on it

/// F32 as a matrix, BF16, bytes, one value throughout, and a tensor of no elements.
fn base() -> Vec<Tensor> {
    let mut noise = Noise(41);
    let mut floats = |n: usize| -> Vec<f32> { (0..n).map(|_| noise.normal() * 0.05).collect() };
    let (matrix, half) = (floats(64 * 96), floats(32 * 96));
    let half: Vec<u8> = half.iter().flat_map(|v| v.to_le_bytes().into_iter().skip(2)).collect();
    let plain = |name: &str, dtype: &str, shape: &[u64], bytes: Vec<u8>| Tensor {
        name: name.to_owned(),
        dtype: dtype.to_owned(),
        shape: shape.to_vec(),
        bytes,
    };
    vec![
        Tensor::f32("layer.0.weight", &[64, 96], matrix.into_iter()),
        plain("layer.1.weight", "BF16", &[32, 96], half),
        plain("table", "U8", &[3000], (0..3000u32).map(|i| ((i * i) >> 7) as u8).collect()),
        Tensor::f32("norm.weight", &[500], std::iter::repeat_n(1.0, 500)),
        plain("nothing", "F32", &[0, 4], vec![]),
    ]
}

/// Each value of the F32 tensors made another from its own and the other's.
fn each(a: &[Tensor], b: &[Tensor], f: &mut dyn FnMut(f32, f32) -> f32) -> Vec<Tensor> {
    let floats = |t: &Tensor| -> Vec<f32> {
        t.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let mut of = |(a, b): (&Tensor, &Tensor)| match a.dtype.as_str() {
        "F32" => Tensor::f32(&a.name, &a.shape, floats(a).iter().zip(floats(b)).map(|(x, y)| f(*x, y))),
        _ => Tensor { name: a.name.clone(), dtype: a.dtype.clone(), shape: a.shape.clone(), bytes: a.bytes.clone() },
    };
    a.iter().zip(b).map(&mut of).collect()
}

fn model(tensors: &[Tensor], words: &str) -> Files {
    Files::from([
        ("model.safetensors".to_owned(), Some(safetensors(tensors))),
        ("config.json".to_owned(), Some(br#"{"architectures": ["BertModel"]}"#.to_vec())),
        ("sub/vocab.txt".to_owned(), Some(words.repeat(300).into_bytes())),
        ("sub/none.txt".to_owned(), Some(vec![])),
        ("logs".to_owned(), None),
    ])
}

/// A base, a fine-tune of it, one that was pruned and one that is the mean of two: models by what they are made from.
fn family() -> Vec<(&'static str, &'static [&'static str], Files)> {
    let base = base();
    let mut noise = Noise(42);
    let tuned = each(&base, &base, &mut |v, _| v + noise.normal() * 1e-4);
    let pruned = each(&tuned, &tuned, &mut |v, _| if v.abs() < 0.02 { 0.0 } else { v });
    let mean = each(&base, &tuned, &mut |a, b| (a + b) / 2.0);
    vec![
        ("acme/base", &[], model(&base, "one\n")),
        ("tuned", &["acme/base"], model(&tuned, "one\n")),
        ("pruned", &["tuned"], model(&pruned, "two\n")),
        ("mean", &["acme/base", "tuned"], model(&mean, "one\n")),
    ]
}

fn import(b: &Bench, name: &str, parents: &[&str], files: &Files) -> serde_json::Value {
    let dir = b.path("in").join(name);
    write_tree(&dir, files);
    let mut args = vec!["import", dir.to_str().unwrap(), "--as", name, "-m", "on the shelf"];
    parents.iter().for_each(|p| args.extend(["--parent", p]));
    b.json(&args)
}

fn digests(files: &Files) -> BTreeMap<String, String> {
    let of = |(path, bytes): (&String, &Option<Vec<u8>>)| match bytes {
        Some(bytes) => (path.clone(), blake3::hash(bytes).to_string()),
        None => (format!("{path}/"), String::new()),
    };
    files.iter().map(of).collect()
}

/// Writes a repository to the shelf.
fn write(name: &str) {
    let (b, mut told) = (Bench::new(), Digests::new());
    for (model, parents, files) in family() {
        import(&b, model, parents, &files);
        told.insert(format!("{model}@v1"), digests(&files));
    }
    import(&b, "gone", &[], &model(&base(), "gone\n"));
    b.ok(&["rm", "gone"]);
    fs::remove_dir_all(b.repo().join("catalog")).unwrap();
    let place = shelf().join(name);
    copy_tree(&b.repo(), &place.join("repo"));
    fs::write(place.join("files.json"), serde_json::to_string_pretty(&told).unwrap() + "\n").unwrap();
}

// ---- what is done with it

/// Every version is there, and holds what it held.
fn check(b: &Bench, told: &Digests, of: &str) {
    let all = b.json(&["ls"]);
    let label = |v: &serde_json::Value| format!("{}@{}", v["model"].as_str().unwrap(), v["version"].as_str().unwrap());
    let mut found: Vec<String> = all["versions"].as_array().unwrap().iter().map(label).collect();
    found.sort();
    assert_eq!(found, told.keys().cloned().collect::<Vec<_>>(), "{of}");
    for (label, want) in told {
        let out = b.path("out");
        b.ok(&["export", label, out.to_str().unwrap()]);
        assert_eq!(&digests(&read_tree(&out)), want, "{of}: {label}");
        b.ok(&["verify", out.to_str().unwrap(), label]);
        fs::remove_dir_all(out).unwrap();
        assert_eq!(b.json(&["show", label])["message"], "on the shelf", "{of}: {label}");
        b.ok(&["log", label]);
    }
    let report = b.json(&["fsck"]);
    assert!(report["ok"] == true && report["findings"].as_array().unwrap().is_empty(), "{of}: {report}");
}

/// Objects in the layout that is no longer written, and all.
fn layouts(b: &Bench) -> (usize, usize) {
    let repo = Repo::open(&b.repo(), Arc::new(RealDisk), 1 << 20).unwrap();
    let objects = repo.packs.objects();
    let old = objects.iter().filter(|id| repo.packs.object(id).unwrap().record.empty_frames);
    (old.count(), objects.len())
}

fn upgrade(name: &str) {
    let b = Bench::without_repo();
    copy_tree(&shelf().join(name).join("repo"), &b.repo());
    let text = fs::read_to_string(shelf().join(name).join("files.json")).unwrap();
    let mut told: Digests = serde_json::from_str(&text).unwrap();
    let (old, all) = layouts(&b);
    println!("{name}: {} versions, {all} objects, {old} of them in layout 1", told.len());
    assert_eq!(old > 0, name.starts_with("layout-1"), "{name} is not what it is called");
    check(&b, &told, name);
    // It goes on: a child of what is there is a difference from it.
    let mut noise = Noise(43);
    let (base, more) = (base(), "three\n");
    let files = model(&each(&base, &base, &mut |v, _| v + noise.normal() * 1e-4), more);
    let new = import(&b, "new", &["acme/base"], &files);
    let (raw, stored) = (new["logical_bytes"].as_u64().unwrap(), new["new_stored_bytes"].as_u64().unwrap());
    assert!(stored * 2 < raw, "{name}: {stored} of {raw}: no difference from its parent");
    told.insert("new@v1".to_owned(), digests(&files));
    check(&b, &told, &format!("{name}, with one more"));
    // A removal of which the journal does not say when is for good.
    let log = fs::read(b.repo().join("journal/000001.log")).unwrap();
    match String::from_utf8_lossy(&log).contains(r#""at":"#) {
        true => b.ok(&["undo"]) + &b.ok(&["rm", "gone"]),
        false => b.fails(&["undo"]),
    };
    assert!(b.json(&["gc"])["freed_bytes"].as_u64().unwrap() > 0, "{name}: gc frees what was removed");
    check(&b, &told, &format!("{name}, after gc"));
    b.ok(&["repack"]);
    b.ok(&["gc", "--dead-share", "0"]);
    check(&b, &told, &format!("{name}, after repack"));
    fs::remove_dir_all(b.repo().join("catalog")).unwrap();
    b.ok(&["fsck", "--rebuild"]);
    check(&b, &told, &format!("{name}, its catalog made anew"));
}

#[test]
fn old_repositories_go_on() {
    if let Ok(name) = std::env::var("MGIT_TEST_SHELF") {
        write(&name);
    }
    let mut names: Vec<String> =
        fs::read_dir(shelf()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() > 2, "{names:?}");
    names.iter().for_each(|name| upgrade(name));
}
