//! Merge methods against naive computations of their definitions, bit for bit where the arithmetic is theirs; what they
//! cost to store, what they record, and what they refuse.

mod common;

use std::fs;

use common::kin::*;
use common::{Bench, Tensor};
use serde_json::{Value, json};

/// base, and three that come from it, all tensors moved.
struct Lab {
    bench: Bench,
    /// The base first.
    models: Vec<Vec<Tensor>>,
}

fn names(tensors: &[Tensor]) -> Vec<&str> {
    tensors.iter().map(|t| t.name.as_str()).collect()
}

impl Lab {
    fn new(convert: impl Fn(Tensor) -> Tensor) -> Lab {
        let base = base();
        let moved = |seed| changed(&base, &names(&base), seed);
        let all = [copy(&base), moved(11), moved(23), moved(37)];
        let models: Vec<Vec<Tensor>> = all.into_iter().map(|m| m.into_iter().map(&convert).collect()).collect();
        let bench = Bench::new();
        for (name, m) in ["base", "a", "b", "c"].iter().zip(&models) {
            let parent: &[&str] = if *name == "base" { &["--no-parent"] } else { &["--parent", "base"] };
            import(&bench, name, &files(m, &config()), parent);
        }
        Lab { bench, models }
    }

    /// Merges, and compares each value with what `value` makes of base, a, b and c, given the tensor's name.
    fn check(&self, name: &str, args: &[&str], value: impl Fn(&str, &[f32]) -> f32) -> Value {
        let made = self.merge(name, args);
        self.compare(name, |t, columns| (0..columns[0].len()).map(|i| value(t, &column(columns, i))).collect());
        made
    }

    fn merge(&self, name: &str, args: &[&str]) -> Value {
        self.bench.json(&[&["merge"], args, &["--as", name]].concat())
    }

    fn compare(&self, name: &str, tensor: impl Fn(&str, &[Vec<f32>]) -> Vec<f32>) {
        let got = &export(&self.bench, name)["model.safetensors"];
        let want: Vec<Tensor> = (0..self.models[0].len())
            .map(|i| {
                let t = &self.models[0][i];
                let columns: Vec<Vec<f32>> = self.models.iter().map(|m| numbers(&m[i])).collect();
                Tensor { bytes: bytes(&t.dtype, &tensor(&t.name, &columns)), ..like(t) }
            })
            .collect();
        let want = common::safetensors(&want);
        let differ = got.iter().zip(&want).filter(|(a, b)| a != b).count();
        assert!(got.len() == want.len() && differ == 0, "{name}: {differ} of {} bytes differ", want.len());
    }
}

fn column(columns: &[Vec<f32>], i: usize) -> Vec<f32> {
    columns.iter().map(|c| c[i]).collect()
}

fn like(t: &Tensor) -> Tensor {
    Tensor { name: t.name.clone(), dtype: t.dtype.clone(), shape: t.shape.clone(), bytes: vec![] }
}

fn numbers(t: &Tensor) -> Vec<f32> {
    match t.dtype.as_str() {
        "BF16" => t.bytes.chunks(2).map(|b| f32::from_bits(u32::from_le_bytes([0, 0, b[0], b[1]]))).collect(),
        _ => floats(t),
    }
}

/// To the nearest, ties to even.
fn bytes(dtype: &str, values: &[f32]) -> Vec<u8> {
    let bf16 = |v: &f32| ((v.to_bits() + 0x7FFF + (v.to_bits() >> 16 & 1)) >> 16) as u16;
    match dtype {
        "BF16" => values.iter().flat_map(|v| bf16(v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

fn to_bf16(t: Tensor) -> Tensor {
    Tensor { dtype: "BF16".to_owned(), bytes: bytes("BF16", &floats(&t)), ..like(&t) }
}

/// Share of the raw bytes that a merge added.
fn share(made: &Value) -> f64 {
    made["new_stored_bytes"].as_f64().unwrap() / made["logical_bytes"].as_f64().unwrap()
}

#[test]
fn linear_methods_are_their_definitions_and_cost_nothing() {
    let lab = Lab::new(|t| t);
    let average = lab.check("average", &["a", "b", "c", "--method", "average"], |_, m| (m[1] + m[2] + m[3]) / 3.0);
    let linear = ["a", "b", "--method", "linear", "--weights", "0.3,0.7"];
    let linear = lab.check("linear", &linear, |_, m| 0.3 * m[1] + 0.7 * m[2]);
    // Weights that no fraction of small numbers is.
    let odd = ["a", "b", "c", "--method", "linear", "--weights", "0.31234,0.5,0.7"];
    let total = (0.31234f64 + 0.5 + 0.7) as f32;
    let odd = lab.check("odd", &odd, |_, m| (0.31234 * m[1] + 0.5 * m[2] + 0.7 * m[3]) / total);
    let layers = ["a", "b", "--method", "linear", "--weights", "1,1", "--set", "layer.0.weight=0.25"];
    let layers = lab.check("layers", &layers, |name, m| match name.contains("layer.0.") {
        true => 0.75 * m[1] + 0.25 * m[2],
        false => (m[1] + m[2]) / 2.0,
    });
    let task = ["a", "b", "--method", "task-arithmetic", "--weights", "0.4"];
    let task = lab.check("task", &task, |_, m| m[0] + (0.4 * (m[1] - m[0]) + 0.4 * (m[2] - m[0])));
    lab.merge("slerp", &["a", "b", "--method", "slerp", "--set", "t=0.3"]);
    lab.compare("slerp", |_, m| slerp(0.3, &m[1], &m[2]));
    let slerp = lab.merge("slerp2", &["a", "c", "--method", "slerp"]);
    for made in [&average, &linear, &odd, &layers, &task, &slerp] {
        assert!(share(made) < 0.01, "{made}");
    }
    assert_eq!(lab.bench.json(&["fsck"])["ok"], true);

    let show = lab.bench.json(&["show", "task"]);
    let base = lab.bench.json(&["show", "base"])["id"].clone();
    assert_eq!(show["merge"], json!({"method": "task-arithmetic", "base": base, "parameters": ["weight=0.4"]}));
    let edges: Vec<_> = show["parents"].as_array().unwrap().iter().map(|p| (&p["model"], &p["coefficient"])).collect();
    assert_eq!(edges, [(&json!("a"), &json!(0.4)), (&json!("b"), &json!(0.4))]);
    let plan = lab.bench.json(&["merge", "a", "b", "--method", "average", "--dry-run"]);
    assert_eq!((&plan["outcome"], &plan["tensors"][0]["change"]), (&json!("none"), &json!("average")));
}

fn slerp(t: f64, a: &[f32], b: &[f32]) -> Vec<f32> {
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| *x as f64 * *y as f64).sum::<f64>();
    let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    let angle = cosine.acos();
    let (x, y) = match cosine.abs() > 0.9995 {
        true => (1.0 - t, t),
        false => (((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()),
    };
    a.iter().zip(b).map(|(a, b)| x as f32 * a + y as f32 * b).collect()
}

#[test]
fn results_have_the_parents_dtype() {
    let lab = Lab::new(to_bf16);
    let made = lab.check("average", &["a", "b", "--method", "average"], |_, m| (m[1] + m[2]) / 2.0);
    assert!(share(&made) < 0.02, "{made}");
    let task = ["a", "b", "c", "--method", "task-arithmetic", "--base", "base"];
    lab.check("task", &task, |_, m| m[0] + ((m[1] - m[0]) + (m[2] - m[0]) + (m[3] - m[0])));
}

#[test]
fn a_merge_with_itself_is_itself() {
    let lab = Lab::new(|t| t);
    for method in ["average", "linear", "slerp"] {
        lab.merge(method, &["a", "a", "--method", method]);
        same(&export(&lab.bench, method), &export(&lab.bench, "a"), method);
    }
}

#[test]
fn not_a_number_goes_through_what_is_linear() {
    let t = base();
    let mut ta = changed(&t, &[&layer(0)], 1);
    let tb = changed(&t, &[&layer(0)], 2);
    ta[0].bytes[..8].copy_from_slice(&[f32::NAN.to_le_bytes(), f32::INFINITY.to_le_bytes()].concat());
    let bench = family(&files(&t, &config()), &files(&ta, &config()), &files(&tb, &config()));
    bench.ok(&["merge", "a", "b", "--method", "average", "--as", "mean"]);
    let mean = &export(&bench, "mean")["model.safetensors"];
    let at = mean.len() - t.iter().map(|t| t.bytes.len()).sum::<usize>();
    let value = |i: usize| f32::from_le_bytes(mean[at + 4 * i..][..4].try_into().unwrap());
    assert!(value(0).is_nan() && value(1) == f32::INFINITY && value(2).is_finite());
    let why = bench.fails(&["merge", "a", "b", "--method", "slerp", "--as", "x"]);
    assert!(why.contains("NaN") && why.contains(&layer(0)), "{why}");
    assert_eq!(bench.json(&["fsck"])["ok"], true);
}

#[test]
fn what_has_no_definition_is_refused() {
    let t = base();
    let c = config();
    let mut whole = copy(&t);
    whole.push(Tensor { name: "ids".into(), dtype: "I64".into(), shape: vec![1], bytes: vec![1; 8] });
    let bench = family(&files(&whole, &c), &files(&whole, &c), &files(&t, &c));
    let merge = |more: &[&str]| bench.fails(&[&["merge", "--as", "x", "--method", "average"], more].concat());
    assert!(merge(&["a", "b"]).contains("'ids' is not in b@v1"));
    assert!(merge(&["b", "a"]).contains("'ids' is not in b@v1"));
    let variant = |name: &str, edit: &dyn Fn(&mut Vec<Tensor>)| {
        let mut tensors = copy(&whole);
        edit(&mut tensors);
        import(&bench, name, &files(&tensors, &c), &["--no-parent"]);
    };
    variant("ids", &|t| t.last_mut().unwrap().bytes[0] = 2);
    variant("shape", &|t| t[0].shape = vec![384, 128]);
    variant("dtype", &|t| (t[0].dtype, t[0].bytes) = ("BF16".into(), vec![0; 128 * 384 * 2]));
    assert!(merge(&["a", "ids"]).contains("no arithmetic on I64"));
    assert!(merge(&["a", "shape"]).contains("[384, 128]"));
    assert!(merge(&["a", "dtype"]).contains("BF16"));
    let linear =
        |more: &[&str]| bench.fails(&[&["merge", "--as", "x", "a", "base", "--method", "linear"], more].concat());
    assert!(linear(&["--weights", "1,2,3"]).contains("3 weights for 2"));
    assert!(linear(&["--weights", "1,-1"]).contains("nothing"));
    assert!(linear(&["--set", "density=0.5"]).contains("'density'"));
    let task = bench.fails(&["merge", "--as", "x", "ids", "shape", "--method", "task-arithmetic"]);
    assert!(task.contains("--base"), "{task}");
    for usage in [&["--method", "nosuch"][..], &["--weights", "1,1"], &["--method", "average", "--ours"]] {
        assert_eq!(bench.run(&[&["merge", "a", "b", "--as", "x"], usage].concat()).code, 2, "{usage:?}");
    }
    assert!(bench.fails(&["show", "x"]).contains("no version"));
    assert!(fs::read_dir(bench.repo()).unwrap().count() <= 6, "nothing is left");
}

/// The least magnitude that is kept of `density` of these.
fn least(values: impl Iterator<Item = f32>, density: f64) -> f32 {
    let mut all: Vec<f32> = values.map(f32::abs).collect();
    all.sort_by(|a, b| b.total_cmp(a));
    all[(density * all.len() as f64).floor() as usize - 1]
}

fn ties(m: &[f32], least: &[f32], lambda: f32) -> f32 {
    let kept = |i: usize| Some(m[i + 1] - m[0]).filter(|d| d.abs() >= least[i]).unwrap_or(0.0);
    let deltas: Vec<f32> = (0..least.len()).map(kept).collect();
    let positive = deltas.iter().sum::<f32>() >= 0.0;
    let chosen: Vec<f32> = deltas.into_iter().filter(|d| if positive { *d > 0.0 } else { *d < 0.0 }).collect();
    m[0] + lambda * (chosen.iter().sum::<f32>() / (chosen.len() as f32).max(1.0))
}

#[test]
fn ties_is_its_definition() {
    let lab = Lab::new(|t| t);
    let deltas = |m: usize, i: usize| -> Vec<f32> {
        floats(&lab.models[m][i]).iter().zip(floats(&lab.models[0][i])).map(|(p, b)| p - b).collect()
    };
    let tensors = lab.models[0].len();
    let whole: Vec<f32> = (1..4).map(|m| least((0..tensors).flat_map(|i| deltas(m, i)), 0.2)).collect();
    lab.check("ties", &["a", "b", "c", "--method", "ties"], |_, m| ties(m, &whole, 1.0));
    let at = |name: &str| lab.models[0].iter().position(|t| t.name == name).unwrap();
    let each = ["a", "b", "--method", "ties", "--set", "per-tensor=1", "--set", "density=0.3", "--set", "lambda=0.5"];
    lab.merge("each", &each);
    lab.compare("each", |name, columns| {
        let least: Vec<f32> = (1..3).map(|m| least(deltas(m, at(name)).into_iter(), 0.3)).collect();
        (0..columns[0].len()).map(|i| ties(&column(columns, i)[..3], &least, 0.5)).collect()
    });
    // All of one task vector is that task's model, but for a rounding.
    lab.check("alone", &["a", "a", "--method", "ties", "--set", "density=1"], |_, m| m[0] + (m[1] - m[0]));
    for bad in ["density=0", "density=1.5", "density=0.1,0.2"] {
        let why = lab.bench.fails(&["merge", "a", "b", "--method", "ties", "--set", bad, "--as", "x"]);
        assert!(why.contains("density"), "{why}");
    }
}

#[test]
fn dare_drops_by_its_seed() {
    let lab = Lab::new(|t| t);
    let key = |seed: u64, parent: u64, name: &str| {
        let text = [&seed.to_le_bytes(), &parent.to_le_bytes(), name.as_bytes()].concat();
        u64::from_le_bytes(blake3::hash(&text).as_bytes()[..8].try_into().unwrap())
    };
    let chance = |key: u64, j: u64| {
        let mut z = key.wrapping_add((j + 1).wrapping_mul(0x9E3779B97F4A7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58476D1CE4E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D049BB133111EB);
        ((z ^ (z >> 31)) >> 11) as f64 / 2f64.powi(53)
    };
    let mut kept = (0, 0);
    for (name, seed) in [("seven", 7), ("eight", 8)] {
        let args = [
            "a",
            "b",
            "--method",
            "dare",
            "--set",
            &format!("seed={seed}"),
            "--set",
            "density=0.25",
            "--weights",
            "0.5",
        ];
        lab.merge(name, &args);
        lab.compare(name, |tensor, m| {
            let value = |i: usize| {
                let drop = |p: usize| chance(key(seed, p as u64 - 1, tensor), i as u64) >= 0.25;
                let term = |p: usize| if drop(p) { 0.0 } else { 0.5 * ((m[p][i] - m[0][i]) / 0.25) };
                m[0][i] + (term(1) + term(2))
            };
            (0..m[0].len()).map(value).collect()
        });
        let all = (0..10_000).map(|j| chance(key(seed, 0, "x"), j) < 0.25);
        all.for_each(|k| kept = (kept.0 + k as u32, kept.1 + 1));
    }
    assert!((kept.0 as f64 / kept.1 as f64 - 0.25).abs() < 0.02, "{kept:?}");
    let again = lab.merge(
        "again",
        &["a", "b", "--method", "dare", "--set", "seed=7", "--set", "density=0.25", "--weights", "0.5"],
    );
    assert!(share(&again) < 0.01, "the same bytes are stored already: {again}");
}

/// x with m x = b, for each of the right-hand sides, by elimination.
fn solved(mut m: Vec<Vec<f64>>, mut b: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let n = m.len();
    for j in 0..n {
        let top = (j..n).max_by(|x, y| m[*x][j].abs().total_cmp(&m[*y][j].abs())).unwrap();
        m.swap(j, top);
        b.iter_mut().for_each(|b| b.swap(j, top));
        for i in (0..n).filter(|i| *i != j) {
            let f = m[i][j] / m[j][j];
            let row = m[j].clone();
            m[i].iter_mut().zip(row).for_each(|(x, y)| *x -= f * y);
            b.iter_mut().for_each(|b| b[i] -= f * b[j]);
        }
    }
    b.into_iter().map(|b| b.iter().enumerate().map(|(i, v)| v / m[i][i]).collect()).collect()
}

#[test]
fn regmean_is_its_definition() {
    let lab = Lab::new(|t| t);
    let name = "embeddings.weight"; // 64 x 16
    let at = lab.models[0].iter().position(|t| t.name == name).unwrap();
    let n = 16;
    let gram = |seed: u64| -> Vec<f32> {
        let mut noise = common::Noise(seed);
        let x: Vec<Vec<f32>> = (0..40).map(|_| (0..n).map(|_| noise.normal()).collect()).collect();
        (0..n * n).map(|i| x.iter().map(|r| r[i / n] * r[i % n]).sum()).collect()
    };
    let grams = [gram(3), gram(5)];
    let mut args = vec!["a".to_owned(), "b".to_owned(), "--method".to_owned(), "regmean".to_owned()];
    for (i, g) in grams.iter().enumerate() {
        let path = lab.bench.path(&format!("gram{i}.safetensors"));
        let t = Tensor::f32("embeddings", &[n as u64, n as u64], g.iter().copied());
        fs::write(&path, common::safetensors(&[t])).unwrap();
        args.extend(["--gram".to_owned(), path.to_str().unwrap().to_owned()]);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    lab.merge("regmean", &args);
    let lowered =
        |g: &[f32]| -> Vec<f64> { (0..n * n).map(|i| g[i] as f64 * if i / n == i % n { 1.0 } else { 0.9 }).collect() };
    let lowered = [lowered(&grams[0]), lowered(&grams[1])];
    let weights = [floats(&lab.models[1][at]), floats(&lab.models[2][at])];
    let sum = (0..n).map(|i| (0..n).map(|j| lowered[0][i * n + j] + lowered[1][i * n + j]).collect()).collect();
    let right = |row: usize| -> Vec<f64> {
        let product =
            |i: usize, k: usize| (0..n).map(|j| lowered[k][i * n + j] * weights[k][row * n + j] as f64).sum::<f64>();
        (0..n).map(|i| product(i, 0) + product(i, 1)).collect()
    };
    let want: Vec<f64> = solved(sum, (0..64).map(right).collect()).concat();
    let got = export(&lab.bench, "regmean");
    let merged = tensor_of(&got["model.safetensors"], name);
    let worst = merged.iter().zip(&want).map(|(a, b)| ((*a as f64 - b) / b.abs().max(1e-3)).abs()).fold(0.0, f64::max);
    assert!(merged.len() == 1024 && worst < 1e-6, "{worst}");
    // What has no Gram matrix is averaged.
    let (a, b) = (floats(&lab.models[1][0]), floats(&lab.models[2][0]));
    let mean: Vec<f32> = a.iter().zip(b).map(|(a, b)| (a + b) / 2.0).collect();
    assert!(tensor_of(&got["model.safetensors"], &layer(0)) == mean);
    let fails =
        |more: &[&str]| lab.bench.fails(&[&["merge", "a", "b", "--as", "x", "--method", "regmean"], more].concat());
    assert!(fails(&args[4..6]).contains("1 for 2"));
    let zero = lab.bench.path("zero.safetensors");
    fs::write(&zero, common::safetensors(&[Tensor::f32("embeddings", &[16, 16], (0..256).map(|_| 0.0))])).unwrap();
    let zero = zero.to_str().unwrap();
    assert!(fails(&["--gram", zero, "--gram", zero]).contains("positive definite"));
    fs::write(zero, common::safetensors(&[Tensor::f32("embeddings", &[4, 4], (0..16).map(|_| 0.0))])).unwrap();
    assert!(fails(&["--gram", zero, "--gram", zero]).contains("[16, 16]"));
}

fn tensor_of(file: &[u8], name: &str) -> Vec<f32> {
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let place = |i: usize| 8 + length + header[name]["data_offsets"][i].as_u64().unwrap() as usize;
    file[place(0)..place(1)].chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn emr_keeps_one_vector_and_a_bit_a_weight() {
    let lab = Lab::new(|t| t);
    let made = lab.bench.json(&["merge", "a", "b", "c", "--method", "emr", "--as", "acme/all"]);
    let tensors = lab.models[0].len();
    let columns = |i: usize| -> Vec<Vec<f32>> { lab.models.iter().map(|m| floats(&m[i])).collect() };
    let tasks = |c: &[Vec<f32>], at: usize| -> Vec<f32> { (1..4).map(|m| c[m][at] - c[0][at]).collect() };
    let unified = |t: &[f32]| {
        let sum: f32 = t.iter().sum();
        let most = t.iter().filter(|t| **t * sum > 0.0).fold(0.0f32, |most, t| most.max(t.abs()));
        if sum < 0.0 { -most } else { most }
    };
    let mut sums = [[0.0f64; 2]; 3];
    for c in (0..tensors).map(columns) {
        for at in 0..c[0].len() {
            let t = tasks(&c, at);
            let u = unified(&t);
            for (s, t) in sums.iter_mut().zip(&t) {
                *s = [s[0] + t.abs() as f64, s[1] + if t * u > 0.0 { u.abs() as f64 } else { 0.0 }];
            }
        }
    }
    lab.compare("acme/all@unified", |_, c| (0..c[0].len()).map(|at| unified(&tasks(c, at))).collect());
    for (i, name) in ["a", "b", "c"].into_iter().enumerate() {
        let scale = (sums[i][0] / sums[i][1]) as f32;
        lab.compare(&format!("acme/all@{name}"), |_, c| {
            let value = |at: usize| {
                let t = tasks(c, at);
                let u = unified(&t);
                if t[i] * u > 0.0 { c[0][at] + scale * u } else { c[0][at] }
            };
            (0..c[0].len()).map(value).collect()
        });
        assert!(share(&made["models"][i]) < 0.04, "{}", made["models"][i]);
        let show = lab.bench.json(&["show", &format!("acme/all@{name}")]);
        let parents: Vec<_> = show["parents"].as_array().unwrap().iter().map(|p| &p["model"]).collect();
        assert_eq!(parents, [&json!(name), &json!("acme/all")]);
    }
    assert_eq!(lab.bench.json(&["fsck"])["ok"], true);
    let why = lab.bench.fails(&["merge", "a", "b", "--method", "emr", "--as", "acme/all"]);
    assert!(why.contains("acme/all@unified exists already"), "{why}");
    // Versions of one model are told apart, and a second set is.
    lab.bench.json(&["merge", "a", "a", "--method", "emr", "--as", "acme/all@two", "--dry-run"]);
    let twice = lab.bench.fails(&["merge", "a", "a", "--method", "emr", "--as", "acme/all@two"]);
    assert!(twice.contains("twice"), "{twice}");
    lab.bench.ok(&["merge", "a", "b", "--method", "emr", "--as", "acme/all@two"]);
    lab.bench.ok(&["show", "acme/all@two-b"]);
}
