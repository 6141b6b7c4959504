//! What the merge tests share: a base and models that come from it, imported, exported and compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{Bench, Noise, Tensor, base_tensors, safetensors};

pub const LAYERS: usize = 5;

pub fn base() -> Vec<Tensor> {
    let mut tensors = base_tensors(7, LAYERS);
    tensors.push(Tensor::f32("embeddings.weight", &[64, 16], (0..1024).map(|i| i as f32)));
    tensors
}

pub fn copy(tensors: &[Tensor]) -> Vec<Tensor> {
    let one = |t: &Tensor| Tensor {
        name: t.name.clone(),
        dtype: t.dtype.clone(),
        shape: t.shape.clone(),
        bytes: t.bytes.clone(),
    };
    tensors.iter().map(one).collect()
}

pub fn layer(i: usize) -> String {
    format!("encoder.layer.{i}.weight")
}

/// The same, some tensors moved.
pub fn changed(tensors: &[Tensor], names: &[&str], seed: u64) -> Vec<Tensor> {
    let mut noise = Noise(seed | 1);
    let mut out = copy(tensors);
    for t in out.iter_mut().filter(|t| names.contains(&t.name.as_str())) {
        let moved: Vec<u8> = floats(t).iter().flat_map(|v| (v + noise.normal() * 1e-3).to_le_bytes()).collect();
        t.bytes = moved;
    }
    out
}

pub fn floats(t: &Tensor) -> Vec<f32> {
    t.bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

pub type Files = BTreeMap<String, Vec<u8>>;

/// A model's files: weights and a config.
pub fn files(tensors: &[Tensor], config: &Value) -> Files {
    let config = serde_json::to_string_pretty(config).unwrap() + "\n";
    [("model.safetensors".to_owned(), safetensors(tensors)), ("config.json".to_owned(), config.into_bytes())].into()
}

pub fn config() -> Value {
    json!({"architectures": ["BertModel"], "dropout": 0.1, "labels": 2})
}

/// base@v1, and two that come from it.
pub fn family(base: &Files, a: &Files, b: &Files) -> Bench {
    let bench = Bench::new();
    import(&bench, "base", base, &["--no-parent"]);
    import(&bench, "a", a, &["--parent", "base"]);
    import(&bench, "b", b, &["--parent", "base"]);
    bench
}

pub fn import(bench: &Bench, name: &str, files: &Files, more: &[&str]) {
    let dir = bench.path("in").join(name);
    for (path, bytes) in files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    bench.ok(&[&["import", dir.to_str().unwrap(), "--as", name], more].concat());
}

pub fn export(bench: &Bench, name: &str) -> Files {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("x");
    bench.ok(&["export", name, to.to_str().unwrap()]);
    let mut out = Files::new();
    gather(&to, "", &mut out);
    out
}

pub fn gather(dir: &Path, prefix: &str, out: &mut Files) {
    for e in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let name = format!("{prefix}{}", e.file_name().to_str().unwrap());
        match e.file_type().unwrap().is_dir() {
            true => gather(&e.path(), &format!("{name}/"), out),
            false => drop(out.insert(name, fs::read(e.path()).unwrap())),
        }
    }
}

pub fn same(got: &Files, want: &Files, what: &str) {
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{what}");
    let differ: Vec<_> = want.iter().filter(|(k, v)| got[*k] != **v).map(|(k, _)| k).collect();
    assert!(differ.is_empty(), "{what}: {differ:?}");
}
