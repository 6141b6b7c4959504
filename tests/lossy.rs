//! Lossy versions as a user makes them: the bound, what stays exact, what is recorded, the gate, and the way back.

mod common;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Bench, Noise, Tensor, fuse_is_there, safetensors, wait_for};
use serde_json::Value;

const ROWS: u64 = 96;
const COLUMNS: u64 = 512;
const BOUND: f64 = 1e-4;

fn values(t: &Tensor) -> Vec<f64> {
    let word = |b: &[u8]| match t.dtype.as_str() {
        "F32" => f32::from_le_bytes(b.try_into().unwrap()) as f64,
        _ => f32::from_bits((u16::from_le_bytes(b.try_into().unwrap()) as u32) << 16) as f64,
    };
    t.bytes.chunks(if t.dtype == "F32" { 4 } else { 2 }).map(word).collect()
}

fn bf16(name: &str, values: impl Iterator<Item = f32>) -> Tensor {
    let bytes: Vec<u8> = values.flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect();
    Tensor { name: name.to_owned(), dtype: "BF16".to_owned(), shape: vec![bytes.len() as u64 / 2], bytes }
}

/// Weights of two types, some of them pruned, some no numbers, and integers.
fn base() -> Vec<Tensor> {
    let mut noise = Noise(3);
    let n = (ROWS * COLUMNS) as usize;
    let mut w: Vec<f32> = (0..n).map(|_| noise.normal() * 0.05).collect();
    w.iter_mut().step_by(7).for_each(|v| *v = 0.0);
    let positions: Vec<u8> = (0..512i64).flat_map(|i| i.to_le_bytes()).collect();
    vec![
        Tensor::f32("w", &[ROWS, COLUMNS], w.into_iter()),
        bf16("small", (0..n).map(|_| noise.normal() * 1e-3)),
        Tensor { name: "positions".to_owned(), dtype: "I64".to_owned(), shape: vec![512], bytes: positions },
    ]
}

fn tuned(base: &[Tensor], seed: u64, size: f32) -> Vec<Tensor> {
    let mut noise = Noise(seed | 1);
    let mut moved = |v: f64| if v == 0.0 { 0.0 } else { v as f32 + noise.normal() * size };
    let mut w: Vec<f32> = values(&base[0]).into_iter().map(&mut moved).collect();
    (w[100], w[101], w[102], w[103]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0);
    let small: Vec<f32> = values(&base[1]).into_iter().map(&mut moved).collect();
    let same = &base[2];
    vec![
        Tensor::f32("w", &[ROWS, COLUMNS], w.into_iter()),
        bf16("small", small.into_iter()),
        Tensor {
            name: same.name.clone(),
            dtype: same.dtype.clone(),
            shape: same.shape.clone(),
            bytes: same.bytes.clone(),
        },
    ]
}

fn write(dir: &Path, tensors: &[Tensor]) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("model.safetensors"), safetensors(tensors)).unwrap();
    fs::write(dir.join("config.json"), "{\"architectures\": [\"X\"]}").unwrap();
}

/// `base@v1`; and directories of two fine-tunes, the second of the first.
fn bench() -> Bench {
    let b = Bench::new();
    let base = base();
    let one = tuned(&base, 5, 2e-4);
    write(&b.path("in/base"), &base);
    write(&b.path("in/one"), &one);
    write(&b.path("in/two"), &tuned(&one, 9, 1e-4));
    b.ok(&["import", &dir(&b, "base"), "--as", "base", "--no-parent"]);
    b
}

fn dir(b: &Bench, name: &str) -> String {
    b.path("in").join(name).to_str().unwrap().to_owned()
}

fn weights(b: &Bench, version: &str) -> Vec<u8> {
    let out = b.path("out");
    let _ = fs::remove_dir_all(&out);
    b.ok(&["export", version, out.to_str().unwrap()]);
    fs::read(out.join("model.safetensors")).unwrap()
}

/// How far apart two files with the same tensors are; zeros and what is no number must be the same.
fn apart(exact: &[u8], lossy: &[u8]) -> f64 {
    assert_eq!(exact.len(), lossy.len());
    let like = base();
    let total: usize = like.iter().map(|t| t.bytes.len()).sum();
    let mut at = exact.len() - total;
    assert!(exact[..at] == lossy[..at], "the header");
    let mut most = 0.0f64;
    for t in like {
        let range = at..at + t.bytes.len();
        at = range.end;
        let of = |bytes: &[u8]| Tensor {
            bytes: bytes[range.clone()].to_vec(),
            name: String::new(),
            dtype: t.dtype.clone(),
            shape: vec![],
        };
        let (x, y) = (of(exact), of(lossy));
        if t.dtype == "I64" {
            assert!(x.bytes == y.bytes);
            continue;
        }
        let width = x.bytes.len() / values(&x).len();
        for (i, (p, q)) in values(&x).into_iter().zip(values(&y)).enumerate() {
            if p == 0.0 || !p.is_finite() {
                assert_eq!(x.bytes[i * width..][..width], y.bytes[i * width..][..width]);
            } else {
                most = most.max((p - q).abs());
            }
        }
    }
    most
}

fn stored(v: &Value) -> u64 {
    v["files"].as_array().unwrap().iter().map(|f| f["stored_bytes"].as_u64().unwrap()).sum()
}

#[test]
fn a_lossy_import_keeps_its_bound_and_says_so() {
    let b = bench();
    let exact = fs::read(b.path("in/one/model.safetensors")).unwrap();
    let import = |name: &str, more: &[&str]| {
        b.json(
            &[&["import", &dir(&b, "one"), "--as", name, "--parent", "base", "--relation", "finetune"], more].concat(),
        )
    };
    import("exact", &[]);
    let made = import("one", &["--max-error", "1e-4", "--ungated"]);
    let lossy = weights(&b, "one");
    let most = apart(&exact, &lossy);
    assert!(most > 0.0 && most <= BOUND, "{most}");
    let v = b.json(&["show", "one"]);
    assert_eq!(v["lossy"], made["lossy"]);
    let l = &v["lossy"];
    assert_eq!(l["bound"]["max_error"], BOUND);
    let said = l["max_error"].as_f64().unwrap();
    assert!((said - most).abs() < 1e-12 * most, "{said} {most}"); // This test reads JSON a little less exactly.
    assert!(l["rms_error"].as_f64().unwrap() < most && l["original"].as_str().unwrap().len() == 64);
    assert_eq!(l["blake3"], blake3::hash(&exact).to_hex().as_str());
    assert!(l["gate"].is_null(), "{l}");
    assert!(b.ok(&["show", "one"]).contains("each weight within 0.0001"));
    assert!(b.ok(&["ls", "one"]).contains("v1 (lossy)") && !b.ok(&["ls", "exact"]).contains("lossy"));
    let stats = b.json(&["stats"]);
    assert_eq!((stats["lossy"]["versions"].as_u64(), stats["versions"].as_u64()), (Some(1), Some(3)));
    assert_eq!(stats["lossy"]["stored_bytes"], stored(&v));
    assert!(stored(&v) * 2 < stored(&b.json(&["show", "exact"])), "{v}");
    // Same weights, same base, same bound: same bytes.
    import("again", &["--max-error", "1e-4", "--ungated"]);
    assert!(weights(&b, "again") == lossy);
    // What lies on the grid already does not move: it is exact, and stored already.
    let at = [
        "import",
        b.path("out").to_str().unwrap(),
        "--as",
        "moved",
        "--parent",
        "base",
        "--max-error",
        "1e-4",
        "--ungated",
    ]
    .map(str::to_owned);
    let moved = b.json(&at.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(moved["lossy"], Value::Null);
    assert!(moved["new_stored_bytes"].as_u64().unwrap() < 4000 && weights(&b, "moved") == lossy, "{moved}");
    // Relative to what training changed.
    let l = import("relative", &["--max-rel-error", "0.25", "--ungated"])["lossy"].clone();
    assert!(apart(&exact, &weights(&b, "relative")) <= 0.3 * 2e-4, "{l}");
    assert_eq!(b.json(&["fsck"])["ok"], true);
}

#[test]
fn a_child_of_a_lossy_version_is_exact_and_errors_do_not_add_up() {
    let b = bench();
    b.ok(&["import", &dir(&b, "one"), "--as", "one", "--parent", "base", "--max-error", "1e-4", "--ungated"]);
    let two = fs::read(b.path("in/two/model.safetensors")).unwrap();
    let child = b.json(&["import", &dir(&b, "two"), "--as", "two", "--parent", "one"]);
    assert_eq!(child["lossy"], Value::Null);
    assert!(weights(&b, "two") == two);
    assert!(child["new_stored_bytes"].as_u64().unwrap() < two.len() as u64 * 2 / 3);
    b.ok(&["import", &dir(&b, "two"), "--as", "chain", "--parent", "one", "--max-error", "1e-4", "--ungated"]);
    let most = apart(&two, &weights(&b, "chain"));
    assert!(most > 0.0 && most <= BOUND, "{most}");
    b.ok(&["rm", "one"]);
    b.ok(&["gc"]);
    assert!(apart(&two, &weights(&b, "chain")) <= BOUND && weights(&b, "two") == two);
    assert_eq!(b.json(&["fsck"])["ok"], true);
}

#[test]
fn only_one_bound_and_never_by_accident() {
    let b = bench();
    let one = dir(&b, "one");
    for bad in [
        &["--max-error", "0"][..],
        &["--max-error", "-1"],
        &["--max-error", "1e-4", "--max-rel-error", "1"],
        &["--lossy-gate", "--ungated"],
    ] {
        let ran = b.run(&[&["import", &one, "--as", "x"], bad].concat());
        assert!(ran.code == 2, "{bad:?}: {}", ran.err);
    }
    assert!(b.fails(&["import", &one, "--as", "x", "--ungated"]).contains("nothing lossy is asked for"));
    assert!(b.fails(&["import", &one, "--as", "x", "--tolerance", "1%"]).contains("nothing lossy is asked for"));
    if fuse_is_there() {
        assert!(b.fails(&["import", &one, "--as", "x", "--max-error", "1e-4"]).contains("no test is registered for x"));
    }
    assert!(b.fails(&["repack", "--max-error", "1e-4"]).contains("name the versions"));
    assert_eq!(b.json(&["stats"])["versions"], 1);
}

/// Registers a test that tells how far, in the root mean square, a version's `w` is from the file of the exact `one`.
fn register(b: &Bench, more: &[&str]) {
    let exact = b.path("in/one/model.safetensors");
    let text = fs::read(&exact).unwrap();
    let from = 8 + u64::from_le_bytes(text[..8].try_into().unwrap());
    let script = format!(
        "set -e\nwork=$(mktemp -d)\nfor f in {exact:?} \"$MGIT_PATH/model.safetensors\"; do\n\
         od -An -v -tf4 -w4 -j {from} -N {} \"$f\" >> $work/$(basename $(dirname \"$f\"))-$((n = n + 1)); done\n\
         paste $work/* | awk 'BEGIN {{ s = 0 }} $1 !~ /n/ {{ d = $1 - $2; s += d * d; n++ }}\n\
         END {{ printf \"{{\\\"distance\\\": %.9f, \\\"score\\\": %.9f}}\\n\", sqrt(s / n), 1 - sqrt(s / n) }}'\nrm -r $work\n",
        4 * ROWS * COLUMNS
    );
    let file = b.path("distance.sh");
    fs::write(&file, script).unwrap();
    b.ok(&[&["test", "add", "distance"], more, &["--", "sh", file.to_str().unwrap()]].concat());
}

#[test]
fn the_gate_refuses_what_is_worse_and_the_exact_version_stays() {
    if !fuse_is_there() {
        return;
    }
    let b = bench();
    b.ok(&["import", &dir(&b, "one"), "--as", "one", "--parent", "base"]);
    register(&b, &["--metric", "distance", "--lower"]);
    let before = b.ok(&["show", "one", "--json"]);
    // The exact one is at 0: any distance at all is more than a share of that.
    let refused = b.fails(&["repack", "one", "--max-error", "1e-4"]);
    assert!(refused.contains("distance goes from 0 to") && refused.contains("the exact version stays"), "{refused}");
    assert_eq!(b.ok(&["show", "one", "--json"]), before);
    let ran = b.run(&["import", &dir(&b, "one"), "--as", "other", "--parent", "base", "--max-error", "1e-4"]);
    assert!(ran.code == 1 && ran.err.contains("nothing was stored"), "{}", ran.err);
    assert!(b.fails(&["show", "other"]).contains("no version"));
    let runs = fs::read_dir(b.repo().join("drafts/.runs")).map_or(0, |d| d.count());
    assert_eq!(runs, 0, "directories of runs are left");
    // Examples: a third of them flips.
    let flips = b.path("flips.sh");
    let script = format!(
        "same=$(cmp -s {:?} \"$MGIT_PATH/model.safetensors\" && echo true || echo false)\n\
         for i in 1 2 3; do ok=true; [ $i = 1 ] && ok=$same; echo \"{{\\\"id\\\": $i, \\\"ok\\\": $ok}}\"; done > \"$MGIT_EXAMPLES\"\n",
        b.path("in/one/model.safetensors")
    );
    fs::write(&flips, script).unwrap();
    b.ok(&["test", "rm", "distance"]);
    b.ok(&["test", "add", "flips", "--", "sh", flips.to_str().unwrap()]);
    assert!(b.fails(&["repack", "one", "--max-error", "1e-4"]).contains("1 of 3 examples"));
    assert_eq!(b.ok(&["show", "one", "--json"]), before);
    b.ok(&["repack", "one", "--max-error", "1e-4", "--max-negative-flips", "34%"]);
    let gate = b.json(&["show", "one"])["lossy"]["gate"][0].clone();
    assert_eq!((gate["examples"].as_u64(), gate["negative_flips"].as_u64()), (Some(3), Some(1)));
    let results = b.json(&["test", "results", "one"]);
    assert_eq!(results["results"][0]["examples"]["right"], 2, "{results}");
}

#[test]
fn the_largest_bound_that_passes_is_found() {
    if !fuse_is_there() {
        return;
    }
    let b = bench();
    register(&b, &["--metric", "score", "--higher"]);
    let import = |name: &str, tolerance: &str| {
        let args =
            ["import", &dir(&b, "one"), "--as", name, "--parent", "base", "--lossy-gate", "--tolerance", tolerance];
        b.json(&args)["lossy"].clone()
    };
    let (close, far) = (import("close", "0.00002"), import("far", "0.00008"));
    for (l, most) in [(&close, 2e-5), (&far, 8e-5)] {
        let metric = &l["gate"][0]["metric"];
        let fall = metric["exact"].as_f64().unwrap() - metric["lossy"].as_f64().unwrap();
        assert!(fall <= most && fall > most / 3.0, "{l}");
    }
    assert!(close["bound"]["max_rel_error"].as_f64() < far["bound"]["max_rel_error"].as_f64());
    let refused =
        b.fails(&["import", &dir(&b, "one"), "--as", "none", "--parent", "base", "--lossy-gate", "--tolerance", "0"]);
    assert!(refused.contains("no bound passes"), "{refused}");
}

#[test]
fn a_lossy_version_takes_the_place_and_gives_it_back() {
    let b = bench();
    b.ok(&["import", &dir(&b, "one"), "--as", "one", "--parent", "base"]);
    b.ok(&["import", &dir(&b, "two"), "--as", "one"]);
    b.ok(&[
        "import",
        &dir(&b, "two"),
        "--as",
        "child",
        "--parent",
        "base",
        "--parent",
        "one@v1",
        "--relation",
        "merge",
    ]);
    b.ok(&["tag", "one@v1", "prod"]);
    b.ok(&["recipe", "set", "one@v1", "--", "true"]);
    let (all, exact) = (b.ok(&["ls", "--json"]), b.json(&["show", "one@v1"]));
    let child = b.ok(&["show", "child", "--json"]);
    let bytes = weights(&b, "one@v1");
    let done = b.json(&["repack", "one@v1", "--max-error", "1e-4", "--ungated"]);
    assert_eq!(done["versions"][0]["version"], "one@v1");
    let now = b.json(&["show", "one@v1"]);
    assert_eq!(now["lossy"]["original"], exact["id"]);
    assert!(apart(&bytes, &weights(&b, "one@v1")) <= BOUND);
    for key in ["parents", "previous", "message", "tags", "children", "next"] {
        assert_eq!(now[key], exact[key], "{key}");
    }
    assert_eq!(b.json(&["show", "child"])["parents"][1]["id"], now["id"]);
    assert_eq!(b.json(&["show", "one"])["version"], "v2", "the newest is what it was");
    assert_eq!(b.json(&["show", "one@prod"])["id"], now["id"]);
    assert!(b.ok(&["recipe", "show", "one@v1"]).contains("true"));
    assert!(b.ok(&["repack", "one@v1", "--max-error", "1e-4", "--ungated"]).contains("stays as it is"));
    assert!(b.fails(&["repack", "one@v1", "--max-error", "1e-3", "--ungated"]).contains("lossy already"));
    let names = |v: Value| {
        v["versions"].as_array().unwrap().iter().map(|v| format!("{} {}", v["model"], v["version"])).collect::<Vec<_>>()
    };
    assert_eq!(names(b.json(&["ls"])), names(serde_json::from_str(&all).unwrap()));
    b.ok(&["fsck", "--rebuild"]);
    assert_eq!(b.json(&["show", "one@v1"]), now);
    assert_eq!(b.json(&["undo"])["restored"][0]["id"], exact["id"]);
    assert_eq!((b.ok(&["ls", "--json"]), b.ok(&["show", "child", "--json"])), (all, child));
    assert!(weights(&b, "one@v1") == bytes);
    assert!(b.fails(&["undo"]).contains("no removal"));
    assert_eq!(b.json(&["import", &dir(&b, "two"), "--as", "one"])["version"], "v3");
    // Again, and this time for good.
    b.ok(&["repack", "one@v1", "--max-error", "1e-4", "--ungated"]);
    b.ok(&["gc"]);
    let again = b.json(&["show", "one@v1"]);
    assert_eq!(again["lossy"]["blake3"], now["lossy"]["blake3"]);
    assert!(apart(&bytes, &weights(&b, "one@v1")) <= BOUND);
    assert_eq!(
        (b.json(&["fsck"])["ok"].clone(), b.json(&["show", "child"])["parents"][1]["id"].clone()),
        (true.into(), again["id"].clone())
    );
    assert_eq!(b.json(&["fsck"])["ok"], true);
}

#[test]
fn a_kill_between_gate_and_commit_leaves_the_exact_version() {
    if !fuse_is_there() {
        return;
    }
    let b = bench();
    b.ok(&["import", &dir(&b, "one"), "--as", "one", "--parent", "base"]);
    let before = b.ok(&["show", "one", "--json"]);
    let (script, flag) = (b.path("slow.sh"), b.path("lossy-is-tested"));
    let text = format!("case $MGIT_PATH in */error-*) touch {flag:?}; sleep 60;; esac\n");
    fs::write(&script, text).unwrap();
    b.ok(&["test", "add", "slow", "--", "sh", script.to_str().unwrap()]);
    let mut running = b.command(&["repack", "one", "--max-error", "1e-4"]).spawn().unwrap();
    wait_for(Duration::from_secs(60), || flag.exists());
    running.kill().unwrap();
    running.wait().unwrap();
    assert_eq!(b.ok(&["show", "one", "--json"]), before);
    assert_eq!(b.json(&["fsck"])["ok"], true);
    b.ok(&["test", "rm", "slow"]);
    b.ok(&["repack", "one", "--max-error", "1e-4", "--ungated"]);
    assert_eq!(b.json(&["fsck"])["ok"], true);
}

#[test]
fn readers_of_a_mount_see_the_place_change_hands() {
    let b = bench();
    b.ok(&["import", &dir(&b, "one"), "--as", "one", "--parent", "base"]);
    let Some(mount) = b.mount(&[]) else { return };
    let file = mount.file("one", "v1", "model.safetensors");
    let exact = fs::read(&file).unwrap();
    b.ok(&["repack", "one", "--max-error", "1e-4", "--ungated"]);
    wait_for(Duration::from_secs(10), || fs::read(&file).is_ok_and(|now| now != exact));
    assert!(apart(&exact, &fs::read(&file).unwrap()) <= BOUND);
    b.ok(&["undo"]);
    wait_for(Duration::from_secs(10), || fs::read(&file).is_ok_and(|now| now == exact));
}

#[test]
fn killed_at_any_moment_it_is_exact_or_lossy_and_whole() {
    let b = bench();
    b.ok(&["import", &dir(&b, "one"), "--as", "one", "--parent", "base"]);
    let (exact, id) = (weights(&b, "one"), b.json(&["show", "one"])["id"].clone());
    let repack = ["repack", "one", "--max-error", "1e-4", "--ungated"];
    let start = Instant::now();
    b.ok(&repack);
    let takes = start.elapsed();
    b.ok(&["undo"]);
    let mut seen = [0, 0];
    for round in 0..20 {
        let mut running = b.command(&repack).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(takes * (round + 1) / 20);
        running.kill().unwrap();
        running.wait().unwrap();
        let now = b.json(&["show", "one"]);
        let is_lossy = !now["lossy"].is_null();
        seen[is_lossy as usize] += 1;
        match is_lossy {
            true => assert!(apart(&exact, &weights(&b, "one")) <= BOUND && now["lossy"]["original"] == id),
            false => assert!(weights(&b, "one") == exact && now["id"] == id),
        }
        assert_eq!(b.json(&["fsck"])["ok"], true);
        if is_lossy {
            b.ok(&["undo"]);
        }
    }
    assert!(seen[0] > 0, "{seen:?}");
    b.ok(&["gc"]);
    assert!(weights(&b, "one") == exact);
}
