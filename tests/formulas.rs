//! Models that follow from their parents by a formula cost next to nothing, and come back bit for bit.

mod common;

use common::{Bench, Noise, Tensor, base_tensors, tuned_tensors, write_model};
use serde_json::Value;

const LAYERS: usize = 6;

/// A family in a repository: base, and three fine-tunes of it.
struct Family {
    bench: Bench,
    models: Vec<Vec<Tensor>>,
}

fn floats(t: &Tensor) -> Vec<f32> {
    t.bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

impl Family {
    fn new() -> Family {
        let base = base_tensors(7, LAYERS);
        let mut models: Vec<Vec<Tensor>> = (1..4).map(|seed| tuned_tensors(&base, seed * 77)).collect();
        models.insert(0, base);
        let family = Family { bench: Bench::new(), models };
        for i in 0..4 {
            let parents: &[&str] = if i == 0 { &["--no-parent"] } else { &["--parent", "m0"] };
            family.import(&format!("m{i}"), &family.models[i], parents);
        }
        family
    }

    /// Imports, exports and compares; the share of the raw bytes that it took.
    fn import(&self, name: &str, tensors: &[Tensor], more: &[&str]) -> f64 {
        let (from, to) = (self.bench.path("in").join(name), self.bench.path("out").join(name));
        write_model(&from, tensors);
        let done: Value = self.bench.json(&[&["import", from.to_str().unwrap(), "--as", name], more].concat());
        self.bench.ok(&["export", name, to.to_str().unwrap()]);
        for file in ["model.safetensors", "config.json"] {
            assert!(std::fs::read(from.join(file)).unwrap() == std::fs::read(to.join(file)).unwrap(), "{name}: {file}");
        }
        done["new_stored_bytes"].as_f64().unwrap() / done["logical_bytes"].as_f64().unwrap()
    }

    /// Each tensor from those of all models, value by value.
    fn made(&self, value: impl Fn(&[f32]) -> f32) -> Vec<Tensor> {
        let columns = |i: usize| -> Vec<Vec<f32>> { self.models.iter().map(|m| floats(&m[i])).collect() };
        let tensor = |i: usize| {
            let t = &self.models[0][i];
            let columns = columns(i);
            let values = (0..columns[0].len()).map(|at| value(&columns.iter().map(|c| c[at]).collect::<Vec<_>>()));
            Tensor::f32(&t.name, &t.shape, values)
        };
        (0..=LAYERS).map(tensor).collect()
    }

    fn mapped(&self, dtype: &str, f: impl Fn(&Tensor) -> Vec<u8>) -> Vec<Tensor> {
        let tensor =
            |t: &Tensor| Tensor { dtype: dtype.to_owned(), name: t.name.clone(), shape: t.shape.clone(), bytes: f(t) };
        self.models[0].iter().map(tensor).collect()
    }
}

fn bf16(t: &Tensor) -> Vec<u8> {
    let round = |v: f32| ((v.to_bits() + 0x7FFF + (v.to_bits() >> 16 & 1)) >> 16) as u16;
    floats(t).into_iter().flat_map(|v| round(v).to_le_bytes()).collect()
}

#[test]
fn merges_cost_next_to_nothing() {
    let f = Family::new();
    let all = ["--parent", "m1", "--parent", "m2", "--parent", "m3"];
    let average = f.import("average", &f.made(|m| (m[1] + m[2]) / 2.0), &all[..4]);
    let federated = f.import("federated", &f.made(|m| 0.5 * m[1] + 0.2 * m[2] + 0.3 * m[3]), &all);
    // The base is not among the parents named: it is found below them.
    let task = f.import("task", &f.made(|m| m[0] + 0.4 * (m[1] - m[0]) + 0.4 * (m[2] - m[0])), &all[..4]);
    // A small model: its header, record and footer weigh more than in a real one.
    assert!(average < 0.01 && federated < 0.01 && task < 0.02, "{average} {federated} {task}");
    // One more step from a merge is an ordinary fine-tune.
    let tuned = f.import("tuned", &tuned_tensors(&f.made(|m| (m[1] + m[2]) / 2.0), 5), &["--parent", "average"]);
    assert!(tuned < 0.75, "{tuned}");
}

#[test]
fn casts_and_int8_cost_next_to_nothing() {
    let f = Family::new();
    let cast = f.import("cast", &f.mapped("BF16", bf16), &["--parent", "m0"]);
    let back = f.mapped("F32", |t| bf16(t).chunks(2).flat_map(|b| [0, 0, b[0], b[1]]).collect());
    let back = f.import("back", &back, &["--parent", "cast"]);
    let int8 = f.mapped("I8", |t| {
        let row = *t.shape.last().unwrap() as usize;
        let quantize = |r: &[f32]| -> Vec<u8> {
            let scale = r.iter().fold(1e-9f32, |a, b| a.max(b.abs())) / 127.0;
            r.iter().map(|v| (v / scale).round_ties_even() as i8 as u8).collect()
        };
        floats(t).chunks(row).flat_map(quantize).collect()
    });
    let int8 = f.import("int8", &int8, &["--parent", "m0"]);
    assert!(cast < 0.01 && back < 0.01 && int8 < 0.03, "{cast} {back} {int8}");
}

#[test]
fn a_merged_adapter_and_a_transpose_are_recognised() {
    let f = Family::new();
    let mut noise = Noise(99);
    let mut adapted = f.made(|m| m[0]);
    for t in &mut adapted[..2] {
        let [b, a]: [Vec<f32>; 2] = [128 * 4, 4 * 384].map(|n| (0..n).map(|_| noise.normal()).collect());
        let delta = |i: usize, j: usize| (0..4).map(|k| b[i * 4 + k] * a[k * 384 + j]).sum::<f32>();
        let values: Vec<f32> =
            floats(t).iter().enumerate().map(|(at, w)| w + 1e-3 * delta(at / 384, at % 384)).collect();
        *t = Tensor::f32(&t.name, &t.shape, values.into_iter());
    }
    let adapter = f.import("adapter", &adapted, &["--parent", "m0"]) * 6.0 / 2.0;
    assert!(adapter < 0.15, "{adapter} of the touched matrices");
    let turned: Vec<Tensor> = f.models[0][..LAYERS]
        .iter()
        .map(|t| {
            let v = floats(t);
            Tensor::f32(&t.name, &[384, 128], (0..128 * 384).map(|i| v[i % 128 * 384 + i / 128]))
        })
        .collect();
    let turned = f.import("turned", &turned, &["--parent", "m0"]);
    assert!(turned < 0.01, "{turned}");
}
