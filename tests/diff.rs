//! `mgit diff` and `mgit kinship`, on small models whose differences are known.

mod common;

use std::fs;

use common::{Bench, Noise, Tensor, base_tensors, safetensors, tuned_tensors, write_model};
use serde_json::{Value, json};

fn import(b: &Bench, dir: &str, more: &[&str]) {
    b.ok(&[&["import", b.path(&format!("in/{dir}")).to_str().unwrap()], more].concat());
}

fn values(t: &Tensor) -> Vec<f32> {
    t.bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// The same tensors, each value moved by noise of this scale.
fn moved(base: &[Tensor], seed: u64, scale: f32) -> Vec<Tensor> {
    let mut noise = Noise(seed | 1);
    let tune = |t: &Tensor| Tensor::f32(&t.name, &t.shape, values(t).into_iter().map(|v| v + noise.normal() * scale));
    base.iter().map(tune).collect()
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect()
}

fn lengths(d: &Value) -> [usize; 7] {
    ["added", "removed", "reshaped", "renamed", "unchanged", "changed", "files"].map(|k| d[k].as_array().unwrap().len())
}

fn close(v: &Value, want: f64) {
    let v = v.as_f64().unwrap_or_else(|| panic!("{v}"));
    assert!((v - want).abs() <= 1e-9 * want.abs().max(1e-3), "{v} is not {want}");
}

/// (max |b - a|, ‖b - a‖ / ‖a‖, cosine), the plain way.
fn naive(a: &[f32], b: &[f32]) -> (f64, f64, f64) {
    let pairs = || a.iter().zip(b).map(|(a, b)| (*a as f64, *b as f64));
    let sum = |f: &dyn Fn(f64, f64) -> f64| pairs().map(|(a, b)| f(a, b)).sum::<f64>();
    let (aa, bb, ab) = (sum(&|a, _| a * a), sum(&|_, b| b * b), sum(&|a, b| a * b));
    let max = pairs().map(|(a, b)| (b - a).abs()).fold(0.0, f64::max);
    (max, (sum(&|a, b| (b - a) * (b - a)) / aa).sqrt(), ab / (aa.sqrt() * bb.sqrt()))
}

#[test]
fn a_fine_tune_with_a_prefix_and_a_head() {
    let b = Bench::new();
    let base = base_tensors(7, 3);
    let mut tuned = tuned_tensors(&base, 8);
    tuned.push(Tensor::f32("classifier.weight", &[2, 384], (0..768).map(|i| i as f32)));
    write_model(&b.path("in/base"), &base);
    write_model(&b.path("in/tuned"), &tuned);
    import(&b, "base", &[]);
    import(&b, "tuned", &["--parent", "base"]);
    let d = b.json(&["diff", "base", "tuned"]);
    assert_eq!(lengths(&d), [1, 0, 0, 4, 0, 4, 0], "{d:#}");
    assert_eq!(d["added"][0], json!({"name": "classifier.weight", "dtype": "F32", "shape": [2, 384]}));
    assert_eq!(d["renamed"][0]["from"]["name"], "encoder.layer.0.weight");
    assert_eq!(d["renamed"][0]["to"]["name"], "bert.encoder.layer.0.weight");
    let first = &d["changed"][0];
    assert_eq!((&first["name"], &first["dtype"]), (&"bert.encoder.layer.0.weight".into(), &"F32".into()));
    let (max, rel, cosine) = naive(&values(&base[0]), &values(&tuned[0]));
    close(&first["max_abs"], max);
    close(&first["rel_l2"], rel);
    close(&first["cosine"], cosine);
    let same = values(&base[0]).iter().zip(values(&tuned[0])).filter(|(a, b)| **a == *b).count();
    close(&first["changed_fraction"], 1.0 - same as f64 / (128.0 * 384.0));
    let text = b.ok(&["diff", "base", "tuned"]);
    let first = text.lines().next().unwrap();
    assert_eq!(first, "5 tensors: 4 changed (4 of them under another name), 1 added");
    assert!(text.contains("bert.encoder.layer.*") && text.contains("was encoder.layer.1.weight"), "{text}");
    let stat = b.ok(&["diff", "base", "tuned", "--stat"]);
    assert!(stat.contains("bert.encoder.layer.*") && !stat.contains("layer.1.weight"), "{stat}");
}

#[test]
fn the_same_version_and_the_same_bytes_outside() {
    let b = Bench::new();
    write_model(&b.path("in/base"), &base_tensors(7, 2));
    import(&b, "base", &[]);
    let dir = b.path("in/base");
    let (dir, file) = (dir.to_str().unwrap().to_owned(), dir.join("model.safetensors").to_str().unwrap().to_owned());
    for other in ["base", &dir, &file] {
        assert_eq!(lengths(&b.json(&["diff", "base", other])), [0, 0, 0, 0, 3, 0, 0], "{other}");
        assert_eq!(b.ok(&["diff", other, "base"]).trim_end(), "3 tensors: all unchanged");
    }
    let outside = b.json(&["diff", &dir, &file]);
    assert_eq!(lengths(&outside), [0, 0, 0, 0, 3, 0, 0]);
}

#[test]
fn one_layer_and_the_config_changed() {
    let b = Bench::new();
    let mut tensors = base_tensors(7, 3);
    write_model(&b.path("in/m1"), &tensors);
    let mut some = values(&tensors[1]);
    some[5] += 1.0;
    some[6] = 0.0;
    tensors[1] = Tensor::f32("encoder.layer.1.weight", &[128, 384], some.into_iter());
    write_model(&b.path("in/m2"), &tensors);
    fs::write(b.path("in/m1/tokens.bin"), [0, 1, 2]).unwrap();
    fs::write(b.path("in/m1/config.json"), "{\n  \"layers\": 3,\n  \"\u{1b}[31m\": 1\n}\n").unwrap();
    fs::write(b.path("in/m2/tokens.bin"), [0, 1, 3]).unwrap();
    fs::write(b.path("in/m2/config.json"), "{\n  \"layers\": 4,\n  \"\u{1b}[31m\": 1\n}\n").unwrap();
    fs::write(b.path("in/m2/vocab.txt"), "a\n").unwrap();
    import(&b, "m1", &["--as", "m"]);
    let dir = b.path("in/m2");
    let d = b.json(&["diff", "m", dir.to_str().unwrap()]);
    assert_eq!(lengths(&d), [0, 0, 0, 0, 3, 1, 3], "{d:#}");
    close(&d["changed"][0]["changed_fraction"], 2.0 / (128.0 * 384.0));
    close(&d["changed"][0]["sparsity_b"], 1.0 / (128.0 * 384.0));
    let file = |path: &str, change: &str| json!({"path": path, "change": change});
    let want = json!([file("config.json", "changed"), file("tokens.bin", "changed"), file("vocab.txt", "added")]);
    assert_eq!(d["files"], want);
    let text = b.ok(&["diff", "m", dir.to_str().unwrap()]);
    assert!(text.starts_with("4 tensors: 1 changed, 3 unchanged; 2 files changed, 1 added\n"), "{text}");
    for line in
        ["\n-  \"layers\": 3,\n+  \"layers\": 4,\n", "\nbinary files differ\n", "\nadded vocab.txt\n", "\\u{1b}[31m"]
    {
        assert!(text.contains(line), "{line:?} is not in {text}");
    }
    assert!(!text.contains('\u{1b}'));
    let back = b.json(&["diff", dir.to_str().unwrap(), "m"]);
    assert_eq!(back["files"][2], file("vocab.txt", "removed"));
}

#[test]
fn a_resized_embedding_a_cast_and_moved_layers() {
    let b = Bench::new();
    let mut noise = Noise(3);
    let mut matrix = |name: &str, rows: u64| {
        Tensor::f32(name, &[rows, 64], (0..rows * 64).map(|_| noise.normal()).collect::<Vec<_>>().into_iter())
    };
    let base = vec![matrix("emb.weight", 100), matrix("l.0.w", 64), matrix("l.1.w", 64), matrix("l.2.w", 64)];
    let mut grown = values(&base[0]);
    grown.extend((0..128).map(|i| i as f32));
    let half = values(&base[3]).iter().flat_map(|v| (((v.to_bits()) >> 16) as u16).to_le_bytes()).collect::<Vec<u8>>();
    let child = vec![
        Tensor::f32("emb.weight", &[102, 64], grown.into_iter()),
        Tensor::f32("l.0.w", &[64, 64], values(&base[2]).into_iter()),
        Tensor { name: "l.2.w".into(), dtype: "BF16".into(), shape: vec![64, 64], bytes: half },
    ];
    for (name, tensors) in [("base", &base), ("child", &child)] {
        write_model(&b.path("in").join(name), tensors);
        import(&b, name, &[]);
    }
    let d = b.json(&["diff", "base", "child"]);
    assert_eq!(lengths(&d), [0, 1, 1, 1, 0, 1, 0], "{d:#}");
    assert_eq!(names(&d["removed"]), ["l.0.w"]);
    assert_eq!((&d["renamed"][0]["from"]["name"], &d["renamed"][0]["to"]["name"]), (&"l.1.w".into(), &"l.0.w".into()));
    let t = |rows: u64| json!({"name": "emb.weight", "dtype": "F32", "shape": [rows, 64]});
    assert_eq!(d["reshaped"], json!([{"from": t(100), "to": t(102)}]));
    let cast = &d["changed"][0];
    assert_eq!((&cast["dtype"], &cast["from"]["dtype"]), (&"BF16".into(), &"F32".into()));
    assert!(cast["rel_l2"].as_f64().unwrap() < 0.01 && cast["cosine"].as_f64().unwrap() > 0.999, "{cast}");
    let text = b.ok(&["diff", "base", "child"]);
    let row = text.lines().find(|l| l.contains("reshaped") && l.contains("was [100, 64]")).unwrap();
    assert!(row.contains("0.0 %"), "the shared rows are the same: {row}");
}

#[test]
fn nan_and_infinity_are_no_panic_and_no_invalid_json() {
    let b = Bench::new();
    let model = |values: &[f32]| vec![Tensor::f32("w", &[values.len() as u64], values.iter().copied())];
    write_model(&b.path("in/a"), &model(&[1.0, f32::NAN, f32::INFINITY, 0.0]));
    write_model(&b.path("in/b"), &model(&[1.0, 2.0, f32::NEG_INFINITY, 0.0]));
    write_model(&b.path("in/c"), &model(&[f32::NAN; 4]));
    let path = |n: &str| b.path("in").join(n).to_str().unwrap().to_owned();
    let d = b.json(&["diff", &path("a"), &path("b")]);
    let c = &d["changed"][0];
    close(&c["changed_fraction"], 0.5);
    assert_eq!((&c["max_abs"], &c["rel_l2"], &c["cosine"]), (&json!(0.0), &json!(0.0), &json!(1.0)));
    let all = &b.json(&["diff", &path("a"), &path("c")])["changed"][0];
    assert_eq!((&all["max_abs"], &all["rel_l2"], &all["cosine"]), (&Value::Null, &Value::Null, &Value::Null));
    assert!(b.ok(&["diff", &path("a"), &path("c")]).starts_with("1 tensor: 1 changed"));
}

#[test]
fn other_header_same_tensors() {
    let b = Bench::new();
    let mut tensors = base_tensors(7, 2);
    write_model(&b.path("in/m"), &tensors);
    import(&b, "m", &[]);
    tensors.swap(0, 1);
    fs::write(b.path("in/m/model.safetensors"), safetensors(&tensors)).unwrap();
    let d = b.json(&["diff", "m", b.path("in/m").to_str().unwrap()]);
    assert_eq!(lengths(&d), [0, 0, 0, 0, 3, 0, 1]);
    assert_eq!(d["files"][0], json!({"path": "model.safetensors", "change": "changed"}));
}

#[test]
fn what_cannot_be_compared_says_so() {
    let b = Bench::new();
    write_model(&b.path("in/m"), &base_tensors(7, 1));
    import(&b, "m", &[]);
    assert!(b.fails(&["diff", "m", "nosuch"]).contains("no version"));
    assert!(b.fails(&["diff", "m", "/no/such"]).contains("/no/such"));
    assert!(b.fails(&["diff", "m", b.path("in/m/config.json").to_str().unwrap()]).contains("not a directory"));
    fs::create_dir(b.path("in/bad")).unwrap();
    fs::write(b.path("in/bad/model.safetensors"), b"rubbish that is no header").unwrap();
    assert!(b.fails(&["diff", b.path("in/bad").to_str().unwrap(), "m"]).contains("model.safetensors"));
    assert_eq!(b.run(&["diff", "m"]).code, 2);
    assert_eq!(b.run(&["diff", "m", "a b"]).code, 2);
}

/// A base, and two fine-tunes that share half of what moved them.
fn kin(b: &Bench) -> [Vec<f64>; 2] {
    let base = base_tensors(7, 2);
    let trunk = moved(&base, 31, 1e-3);
    let (one, two) = (moved(&trunk, 33, 1e-3), moved(&trunk, 35, 1e-3));
    let delta = |t: &[Tensor]| {
        let of = |(t, c): (&Tensor, &Tensor)| {
            values(t).into_iter().zip(values(c)).map(|(t, c)| t as f64 - c as f64).collect::<Vec<_>>()
        };
        t.iter().zip(&base).flat_map(of).collect::<Vec<f64>>()
    };
    let deltas = [delta(&one), delta(&two)];
    for (name, tensors) in [("base", &base), ("one", &one), ("two", &two)] {
        write_model(&b.path("in").join(name), tensors);
    }
    import(b, "base", &[]);
    import(b, "one", &["--parent", "base"]);
    import(b, "two", &["--parent", "base"]);
    deltas
}

#[test]
fn kinship_of_two_fine_tunes() {
    let b = Bench::new();
    let [x, y] = kin(&b);
    let k = b.json(&["kinship", "one", "two"]);
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let angle = |x: &[f64], y: &[f64]| {
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        dot(x, y) / (dot(x, x).sqrt() * dot(y, y).sqrt())
    };
    let centred = |v: &[f64]| v.iter().map(|x| x - mean(v)).collect::<Vec<_>>();
    assert_eq!((k["base"]["model"].as_str(), k["a"]["model"].as_str()), (Some("base"), Some("one")));
    assert_eq!((k["tensors"].as_u64(), k["elements"].as_u64()), (Some(3), Some(2 * 128 * 384 + 384)));
    close(&k["cosine"], angle(&x, &y));
    close(&k["pearson"], angle(&centred(&x), &centred(&y)));
    close(&k["euclidean"], x.iter().zip(&y).map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt());
    assert!((k["cosine"].as_f64().unwrap() - 0.5).abs() < 0.02, "{k}");
    let text = b.ok(&["kinship", "one", "two"]);
    assert!(text.starts_with("one@v1 and two@v1, from base@v1: 3 tensors, 98688 elements\ncosine     0."), "{text}");
    // Outside the repository, with other names, from a base that is named.
    let two = moved(&moved(&base_tensors(7, 2), 31, 1e-3), 35, 1e-3);
    let renamed: Vec<Tensor> = two.into_iter().map(|t| Tensor { name: format!("bert.{}", t.name), ..t }).collect();
    write_model(&b.path("in/renamed"), &renamed);
    let path = b.path("in/renamed");
    let path = path.to_str().unwrap();
    assert_eq!(b.json(&["kinship", "one", path, "--base", "base"])["cosine"], k["cosine"]);
    assert!(b.fails(&["kinship", "one", path]).contains("--base"));
    assert!(b.fails(&["kinship", "one", "base"]).contains("no common ancestor"));
    let none = b.json(&["kinship", "one", "base", "--base", "base"]);
    assert_eq!((&none["cosine"], &none["pearson"]), (&Value::Null, &Value::Null));
    assert_eq!(b.run(&["kinship", "one", "two", "base"]).code, 2);
}

#[test]
fn a_matrix_and_its_map() {
    let b = Bench::new();
    kin(&b);
    import(&b, "one", &["--as", "three", "--parent", "base"]);
    let svg = b.path("map.svg");
    let text = b.ok(&["kinship", "--matrix", "one", "two", "three", "--svg", svg.to_str().unwrap()]);
    assert!(text.starts_with("cosine of the differences from base@v1\n"), "{text}");
    assert!(text.lines().nth(3).unwrap().starts_with("1  one@v1"), "{text}");
    let m = b.json(&["kinship", "--matrix", "one", "two", "three"]);
    assert_eq!((m["models"].as_array().unwrap().len(), m["pairs"].as_array().unwrap().len()), (3, 3));
    assert!((m["pairs"][1]["cosine"].as_f64().unwrap() - 1.0).abs() < 1e-12, "one and three are the same");
    let svg = fs::read_to_string(svg).unwrap();
    assert_eq!((svg.matches("<rect x=").count(), svg.contains("two@v1")), (9, true));
    assert_eq!(b.run(&["kinship", "one", "two", "--svg", "x.svg"]).code, 2);
}
