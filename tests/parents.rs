//! Parents found by content: what people do to models, imported without a word about where it comes from.

mod common;

use common::{Bench, Noise, Tensor, base_tensors, safetensors, tuned_tensors, write_model};
use serde_json::{Value, json};

const LAYERS: usize = 8;

fn floats(t: &Tensor) -> Vec<f32> {
    t.bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn same(t: &Tensor) -> Tensor {
    Tensor { name: t.name.clone(), dtype: t.dtype.clone(), shape: t.shape.clone(), bytes: t.bytes.clone() }
}

/// The float matrices changed, value by value.
fn changed(model: &[Tensor], mut f: impl FnMut(f32) -> f32) -> Vec<Tensor> {
    let change = |t: &Tensor, f: &mut dyn FnMut(f32) -> f32| match t.shape.len() {
        1 => same(t),
        _ => Tensor::f32(&t.name, &t.shape, floats(t).into_iter().map(f)),
    };
    model.iter().map(|t| change(t, &mut f)).collect()
}

fn tuned(model: &[Tensor], seed: u64, rate: f32) -> Vec<Tensor> {
    let mut noise = Noise(seed * 7919 + 100_001);
    changed(model, |v| v + noise.normal() * rate)
}

fn with_head(mut model: Vec<Tensor>, seed: u64, classes: u64) -> Vec<Tensor> {
    let mut noise = Noise(seed * 7919 + 100_001);
    let values: Vec<f32> = (0..classes * 384).map(|_| noise.normal() * 0.02).collect();
    model.push(Tensor::f32("classifier.weight", &[classes, 384], values.into_iter()));
    model
}

fn mixed(models: &[(&[Tensor], f32)]) -> Vec<Tensor> {
    let tensor = |i: usize| {
        let columns: Vec<(Vec<f32>, f32)> = models.iter().map(|(m, w)| (floats(&m[i]), *w)).collect();
        let value = |at: usize| columns.iter().map(|(c, w)| w * c[at]).sum::<f32>();
        let t = &models[0].0[i];
        Tensor::f32(&t.name, &t.shape, (0..columns[0].0.len()).map(value))
    };
    (0..models[0].0.len()).map(tensor).collect()
}

fn pruned(model: &[Tensor], below: f32) -> Vec<Tensor> {
    changed(model, |v| if v.abs() < below { 0.0 } else { v })
}

fn cast(model: &[Tensor]) -> Vec<Tensor> {
    let round = |v: f32| ((v.to_bits() + 0x7FFF + (v.to_bits() >> 16 & 1)) >> 16) as u16;
    let bytes = |t: &Tensor| floats(t).into_iter().flat_map(|v| round(v).to_le_bytes()).collect();
    model.iter().map(|t| Tensor { dtype: "BF16".to_owned(), bytes: bytes(t), ..same(t) }).collect()
}

fn int8(model: &[Tensor]) -> Vec<Tensor> {
    let quantize = |r: &[f32]| -> Vec<u8> {
        let scale = r.iter().fold(1e-9f32, |a, b| a.max(b.abs())) / 127.0;
        r.iter().map(|v| (v / scale).round_ties_even() as i8 as u8).collect()
    };
    let tensor = |t: &Tensor| match t.shape.len() {
        1 => same(t),
        _ => Tensor { dtype: "I8".to_owned(), bytes: floats(t).chunks(384).flat_map(quantize).collect(), ..same(t) },
    };
    model.iter().map(tensor).collect()
}

struct Family {
    bench: Bench,
}

impl Family {
    fn new() -> Family {
        Family { bench: Bench::new() }
    }

    fn import(&self, name: &str, tensors: &[Tensor]) -> Value {
        let dir = self.bench.path("in").join(name);
        write_model(&dir, tensors);
        self.bench.json(&["import", dir.to_str().unwrap(), "--as", name])
    }

    /// Imports, and expects these parents and this relation.
    fn expect(&self, name: &str, tensors: &[Tensor], parents: &[&str], relation: &str) -> Value {
        let done = self.import(name, tensors);
        let found = parents_of(&done);
        let want: Vec<(String, String)> = parents.iter().map(|p| (p.to_string(), relation.to_owned())).collect();
        assert_eq!(found, want, "{name}: {}", done["origin"]);
        done
    }

    fn parents(&self, name: &str) -> Vec<(String, String)> {
        parents_of(&self.bench.json(&["show", name]))
    }
}

fn parents_of(version: &Value) -> Vec<(String, String)> {
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    version["parents"].as_array().unwrap().iter().map(|p| (text(&p["model"]), text(&p["relation"]))).collect()
}

fn base() -> Vec<Tensor> {
    base_tensors(7, LAYERS)
}

#[test]
fn fine_tunes_and_versions() {
    let f = Family::new();
    let base = base();
    let first = f.expect("base", &base, &[], "");
    assert_eq!(
        (&first["previous"], &first["origin"]["evidence"]),
        (&Value::Null, &json!("no stored version is like it"))
    );
    let prefixed = with_head(tuned_tensors(&base, 3), 5, 3);
    f.expect("task", &prefixed, &["base"], "finetune");
    f.expect("sibling", &with_head(tuned_tensors(&base, 4), 6, 3), &["base"], "finetune");
    // The next step of the same model is its next version, of another model its child.
    let second = f.import("task", &tuned(&prefixed, 11, 3e-5));
    assert_eq!((&second["previous"]["model"], &second["previous"]["version"]), (&json!("task"), &json!("v1")));
    assert_eq!(second["parents"], json!([]));
    f.expect("onward", &tuned(&prefixed, 12, 3e-5), &["task"], "finetune");
    assert_eq!(f.bench.json(&["show", "onward"])["parents"][0]["version"], "v1");
    // Only the head, or the last layers.
    let base_again: Vec<Tensor> = base.iter().map(same).collect();
    f.expect("head", &with_head(base_again, 9, 4), &["base"], "finetune");
    let mut last = tuned(&prefixed, 13, 2e-4);
    last[..6].iter_mut().zip(&prefixed).for_each(|(t, old)| *t = same(old));
    f.expect("last", &last, &["task"], "finetune");
    // What trains on another version of the family is not the family's.
    f.expect("fresh", &base_tensors(99, LAYERS), &[], "");
    f.expect("fresh-task", &tuned_tensors(&base_tensors(99, LAYERS), 3), &["fresh"], "finetune");
}

#[test]
fn merges_with_all_parents_and_coefficients() {
    let f = Family::new();
    let base = base();
    f.expect("base", &base, &[], "");
    let tunes: Vec<Vec<Tensor>> = (1..=5).map(|s| tuned(&base, s, 2e-4)).collect();
    for (i, t) in tunes.iter().enumerate() {
        f.expect(&format!("t{i}"), t, &["base"], "finetune");
    }
    let average = f.expect("average", &mixed(&[(&tunes[0], 0.5), (&tunes[1], 0.5)]), &["t0", "t1"], "merge");
    assert!(
        average["parents"].as_array().unwrap().iter().all(|p| (p["coefficient"].as_f64().unwrap() - 0.5).abs() < 1e-3)
    );
    f.expect("between", &mixed(&[(&tunes[0], 0.3), (&tunes[2], 0.7)]), &["t0", "t2"], "merge");
    f.expect("halfway", &mixed(&[(&base, 0.4), (&tunes[3], 0.6)]), &["base", "t3"], "merge");
    let arithmetic = mixed(&[(&base, 0.2), (&tunes[0], 0.4), (&tunes[1], 0.4)]);
    f.expect("arithmetic", &arithmetic, &["base", "t0", "t1"], "merge");
    let weights = [0.1, 0.15, 0.2, 0.25, 0.3];
    let all: Vec<(&[Tensor], f32)> = tunes.iter().map(|t| &t[..]).zip(weights).collect();
    let round = f.expect("fed-round", &mixed(&all), &["t0", "t1", "t2", "t3", "t4"], "federated");
    for (p, w) in round["parents"].as_array().unwrap().iter().zip(weights) {
        assert!((p["coefficient"].as_f64().unwrap() - w as f64).abs() < 1e-3, "{p}");
    }
}

#[test]
fn what_is_done_to_a_whole_model() {
    let f = Family::new();
    let base = base();
    f.expect("base", &base, &[], "");
    let tune = tuned(&base, 21, 2e-4);
    f.expect("tune", &tune, &["base"], "finetune");
    // Prunes of one model are its children, not each other's.
    for (name, below) in [("p30", 0.02), ("p50", 0.034), ("p70", 0.052), ("p90", 0.08)] {
        f.expect(name, &pruned(&tune, below), &["tune"], "prune");
    }
    f.expect("half", &cast(&tune), &["tune"], "cast");
    f.expect("low", &int8(&tune), &["tune"], "quantize");
    let mut noise = Noise(77);
    let mut adapted: Vec<Tensor> = base.iter().map(same).collect();
    for t in &mut adapted[..3] {
        let [b, a]: [Vec<f32>; 2] = [128 * 4, 4 * 384].map(|n| (0..n).map(|_| noise.normal()).collect());
        let delta = |at: usize| (0..4).map(|k| b[at / 384 * 4 + k] * a[k * 384 + at % 384]).sum::<f32>();
        let values: Vec<f32> = floats(t).iter().enumerate().map(|(at, w)| w + 1e-3 * delta(at)).collect();
        *t = Tensor::f32(&t.name, &t.shape, values.into_iter());
    }
    f.expect("adapted", &adapted, &["base"], "adapter");
    let renamed = tune.iter().map(|t| Tensor { name: format!("model.{}", t.name), ..same(t) }).collect::<Vec<_>>();
    f.expect("renamed", &renamed, &["tune"], "rename");
    let rows = floats(&tune[0]).into_iter().chain((0..8 * 384).map(|_| noise.normal() * 0.05)).collect::<Vec<_>>();
    let mut resized: Vec<Tensor> = tune.iter().map(same).collect();
    resized[0] = Tensor::f32(&resized[0].name, &[136, 384], rows.into_iter());
    f.expect("resized", &resized, &["tune"], "resize");
    let dir = f.bench.path("in").join("shards");
    std::fs::create_dir(&dir).unwrap();
    for (i, part) in tune.chunks(5).enumerate() {
        std::fs::write(dir.join(format!("model-0000{}-of-00002.safetensors", i + 1)), safetensors(part)).unwrap();
    }
    let shards = f.bench.json(&["import", dir.to_str().unwrap(), "--as", "shards"]);
    assert_eq!(parents_of(&shards), [("tune".to_owned(), "reshard".to_owned())], "{}", shards["origin"]);
    // The same tensors with another file beside them, and nothing new at all.
    let dir = f.bench.path("in").join("labels");
    write_model(&dir, &tune);
    std::fs::write(dir.join("config.json"), "{\"id2label\": {}}").unwrap();
    let labels = f.bench.json(&["import", dir.to_str().unwrap(), "--as", "labels"]);
    assert_eq!(parents_of(&labels), [("tune".to_owned(), "derived".to_owned())], "{}", labels["origin"]);
    let twin = f.expect("twin", &tune, &[], "");
    let tune_id = f.bench.json(&["show", "tune"])["id"].clone();
    assert_eq!(twin["origin"]["duplicate_of"], tune_id);
    assert!(f.bench.ok(&["show", "twin"]).contains("a duplicate of tune@v1"));
}

#[test]
fn parents_that_come_later_take_their_place() {
    let f = Family::new();
    let base = base();
    let tunes: Vec<Vec<Tensor>> = (1..=4).map(|s| tuned(&base, s, 2e-4)).collect();
    f.import("t0", &tunes[0]);
    f.import("t1", &tunes[1]);
    assert_eq!(f.parents("t1"), [("t0".to_owned(), "finetune".to_owned())]);
    assert!(f.bench.ok(&["log", "t1"]).contains("direction is a guess"));
    f.import("average", &mixed(&[(&tunes[1], 0.5), (&tunes[2], 0.5)]));
    f.import("half", &cast(&tunes[3]));
    f.import("base", &base);
    f.import("t2", &tunes[2]);
    assert_eq!(f.parents("t1"), [("base".to_owned(), "finetune".to_owned())]);
    let merged = f.parents("average");
    assert!(["t1", "t2"].iter().all(|t| merged.contains(&(t.to_string(), "merge".to_owned()))), "{merged:?}");
    f.import("t3", &tunes[3]);
    assert_eq!(f.parents("half"), [("t3".to_owned(), "cast".to_owned())]);
    // What somebody names is not questioned, and is no guess.
    f.bench.ok(&["unlink", "base", "t0"]);
    f.bench.ok(&["link", "t0", "base", "--relation", "finetune"]);
    assert!(!f.bench.ok(&["log", "t0"]).contains("guess"));
    f.import("again", &tuned(&base, 50, 1e-6));
    assert_eq!(f.parents("t0"), [("base".to_owned(), "finetune".to_owned())]);
}

/// Whatever comes first, the edges are those of the truth; which end of one is the parent may be a guess.
#[test]
fn the_family_is_the_same_in_any_order() {
    let base = base();
    let tunes: Vec<Vec<Tensor>> = (1..=4).map(|s| tuned(&base, s, 2e-4)).collect();
    let onward = tuned(&tunes[0], 31, 1e-4);
    let models = [
        ("base", base.iter().map(same).collect()),
        ("t0", tunes[0].iter().map(same).collect()),
        ("onward", onward.iter().map(same).collect()),
        ("last", tuned(&onward, 32, 5e-5)),
        ("t1", tunes[1].iter().map(same).collect()),
        ("t2", tunes[2].iter().map(same).collect()),
        ("average", mixed(&[(&tunes[1], 0.5), (&tunes[2], 0.5)])),
        ("headed", with_head(tuned(&base, 8, 1e-4), 5, 3)),
        ("cut", pruned(&tunes[3], 0.03)),
        ("t3", tunes[3].iter().map(same).collect()),
        ("half", cast(&tunes[3])),
    ];
    let truth =
        "average-t1 average-t2 base-headed base-t0 base-t1 base-t2 base-t3 cut-t3 half-t3 last-onward onward-t0";
    for order in
        [[10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0], [3, 6, 8, 1, 4, 0, 10, 2, 7, 5, 9], [6, 5, 2, 9, 10, 7, 3, 8, 0, 4, 1]]
    {
        let f = Family::new();
        order.iter().for_each(|&i| drop(f.import(models[i].0, &models[i].1)));
        let pair = |a: &str, b: &str| if a < b { format!("{a}-{b}") } else { format!("{b}-{a}") };
        let of = |name: &str| f.parents(name).into_iter().map(|(p, _)| pair(name, &p)).collect::<Vec<_>>();
        let mut edges: Vec<String> = models.iter().flat_map(|(name, _)| of(name)).collect();
        edges.sort();
        assert_eq!(edges.join(" "), truth, "imported in the order {order:?}");
    }
}

/// Two rounds of federated learning, the later one partly first: that a version was imported after another of its model
/// says nothing where the content says otherwise. What was quantized is far from all others, and hides no merge.
#[test]
fn federated_rounds_out_of_order() {
    let shares = [0.229, 0.122, 0.402, 0.064, 0.183];
    let global = |clients: &[Vec<Tensor>]| {
        mixed(&clients.iter().zip(shares).map(|(c, share)| (&c[..], share)).collect::<Vec<_>>())
    };
    let round = |from: &[Tensor], seed: u64| (0..5).map(|k| tuned(from, seed + k, 2e-4)).collect::<Vec<_>>();
    let base = base();
    let first = round(&base, 11);
    let mean = global(&first);
    let second = round(&mean, 21);
    let mut models = vec![("base@v1".to_owned(), base.iter().map(same).collect()), ("low@v1".to_owned(), int8(&base))];
    models.extend([("global@v1".to_owned(), mean), ("global@v2".to_owned(), global(&second))]);
    for (version, clients) in [("v1", first), ("v2", second)] {
        models.extend(clients.into_iter().enumerate().map(|(k, c)| (format!("client{k}@{version}"), c)));
    }
    let mut truth = vec!["base@v1-low@v1".to_owned()];
    for k in 0..5 {
        truth.push(format!("base@v1-client{k}@v1"));
        truth.extend([1, 2].map(|r| format!("client{k}@v{r}-global@v{r}")));
        truth.push(format!("client{k}@v2-global@v1"));
    }
    truth.sort();
    for order in [[5, 7, 8, 3, 6, 10, 11, 13, 4, 9, 2, 0, 1, 12], [0, 11, 3, 8, 13, 5, 6, 4, 10, 7, 9, 1, 2, 12]] {
        let f = Family::new();
        order.iter().for_each(|&i| drop(f.import(&models[i].0, &models[i].1)));
        let label = |v: &Value| format!("{}@{}", v["model"].as_str().unwrap(), v["version"].as_str().unwrap());
        let pair = |a: &str, b: &str| if a < b { format!("{a}-{b}") } else { format!("{b}-{a}") };
        let of = |name: &str| {
            let shown = f.bench.json(&["show", name]);
            shown["parents"].as_array().unwrap().iter().map(|p| pair(name, &label(p))).collect::<Vec<_>>()
        };
        let mut edges: Vec<String> = models.iter().flat_map(|(name, _)| of(name)).collect();
        edges.sort();
        assert_eq!(edges, truth, "imported in the order {order:?}");
    }
}

#[test]
fn cards_are_hints_and_named_parents_are_told_apart() {
    let f = Family::new();
    let base = base();
    f.expect("acme/base", &base, &[], "");
    f.import("other", &base_tensors(5, LAYERS));
    let dir = f.bench.path("in").join("carded");
    write_model(&dir, &tuned(&base, 3, 1e-4));
    std::fs::write(dir.join("README.md"), "---\nbase_model: other\nbase_model_relation: finetune\n---\n# Mine\n")
        .unwrap();
    let done = f.bench.json(&["import", dir.to_str().unwrap(), "--as", "carded"]);
    assert_eq!(parents_of(&done), [("acme/base".to_owned(), "finetune".to_owned())], "the content is believed");
    assert_eq!(done["origin"]["hints"][0], "README.md: base_model other");
    let dir = f.bench.path("in").join("adapter");
    std::fs::create_dir(&dir).unwrap();
    let lora = Tensor::f32("q.lora_A.weight", &[4, 384], (0..4 * 384).map(|i| (i % 97) as f32 * 1e-3));
    std::fs::write(dir.join("adapter_model.safetensors"), safetensors(&[lora])).unwrap();
    std::fs::write(dir.join("adapter_config.json"), r#"{"base_model_name_or_path": "acme/base", "r": 4}"#).unwrap();
    let done = f.bench.json(&["import", dir.to_str().unwrap(), "--as", "adapter"]);
    assert_eq!(parents_of(&done), [("acme/base".to_owned(), "adapter".to_owned())], "{}", done["origin"]);
    // A parent that is named without a relation: the content tells which.
    let dir = f.bench.path("in").join("cut");
    write_model(&dir, &pruned(&base, 0.03));
    let done = f.bench.json(&["import", dir.to_str().unwrap(), "--as", "cut", "--parent", "acme/base"]);
    assert_eq!(parents_of(&done), [("acme/base".to_owned(), "prune".to_owned())]);
    assert_eq!(done["origin"], Value::Null);
    let none = f.bench.json(&["import", dir.to_str().unwrap(), "--as", "alone", "--no-parent"]);
    assert_eq!(parents_of(&none), []);
}

#[test]
fn equal_norms_and_tables_are_no_kinship() {
    let f = Family::new();
    let model = |seed: u64| {
        let mut tensors = base_tensors(seed, LAYERS);
        let table = (0..64 * 384).map(|i| ((i / 384) as f32 / 10f32.powf((i % 384) as f32 / 96.0)).sin());
        tensors.push(Tensor::f32("positions", &[64, 384], table));
        (0..20).for_each(|i| tensors.push(Tensor::f32(&format!("norm.{i}"), &[384], (0..384).map(|_| 1.0))));
        tensors
    };
    for seed in 1..6 {
        f.expect(&format!("m{seed}"), &model(seed * 100), &[], "");
    }
    f.bench.ok(&["rm", "m1"]);
    f.expect("child", &tuned(&model(100), 3, 1e-4), &[], "");
    f.expect("grandchild", &tuned(&model(200), 3, 1e-4), &["m2"], "finetune");
}

#[test]
fn the_sketches_are_made_anew_when_they_are_lost() {
    let f = Family::new();
    let base = base();
    f.expect("base", &base, &[], "");
    f.expect("one", &tuned(&base, 1, 1e-4), &["base"], "finetune");
    let sketches = f.bench.repo().join("packs/sketches");
    let before = std::fs::read(&sketches).unwrap();
    for damage in [&b""[..], b"rubbish", &before[..before.len() / 2]] {
        std::fs::write(&sketches, damage).unwrap();
        let name = format!("n{}", damage.len());
        f.expect(&name, &tuned(&base, 7 + damage.len() as u64, 1e-4), &["base"], "finetune");
    }
    std::fs::remove_file(&sketches).unwrap();
    f.expect("last", &tuned(&base, 99, 1e-4), &["base"], "finetune");
    assert!(f.bench.json(&["fsck"])["ok"].as_bool().unwrap());
}
