//! Merges of two versions: the three outcomes, what resolves them, and that nothing is left of one that stops.

mod common;

use std::fs;
use std::path::Path;

use common::kin::*;
use common::{Bench, Noise, Tensor, base_tensors, safetensors};
use serde_json::{Value, json};

/// Plans both ways round, which must say the same of the outcome and of each tensor.
fn outcome(bench: &Bench) -> Value {
    let plan = bench.json(&["merge", "a", "b", "--dry-run"]);
    let other = bench.json(&["merge", "b", "a", "--dry-run"]);
    let told = |p: &Value, key: &str| -> Vec<(Value, Value)> {
        p[key].as_array().unwrap().iter().map(|t| (t["name"].clone(), t["outcome"].clone())).collect()
    };
    assert_eq!((&plan["outcome"], told(&plan, "tensors")), (&other["outcome"], told(&other, "tensors")));
    assert_eq!(told(&plan, "files"), told(&other, "files"));
    plan
}

#[test]
fn changes_to_different_parts_combine() {
    let t = base();
    let (one, two) = (layer(1), layer(4));
    let (mut ca, mut cb) = (config(), config());
    (ca["labels"], cb["dropout"]) = (3.into(), 0.2.into());
    let mut fa = files(&changed(&t, &[&one], 1), &ca);
    fa.insert("tokenizer/vocab.txt".into(), b"x\n".to_vec());
    let bench = family(&files(&t, &config()), &fa, &files(&changed(&t, &[&two], 2), &cb));
    assert_eq!(outcome(&bench)["outcome"], "none");
    let made = bench.json(&["merge", "a", "b", "--as", "acme/ab"]);
    assert_eq!((&made["outcome"], &made["merge"]["method"]), (&json!("none"), &json!("three-way")));
    bench.ok(&["merge", "b", "a", "--as", "ba"]);
    let (ab, ba) = (export(&bench, "acme/ab"), export(&bench, "ba"));
    same(&ab, &ba, "symmetric");
    let mut both = config();
    (both["labels"], both["dropout"]) = (3.into(), 0.2.into());
    let mut want = files(&changed(&changed(&t, &[&one], 1), &[&two], 2), &both);
    want.insert("tokenizer/vocab.txt".into(), b"x\n".to_vec());
    same(&ab, &want, "both changes");
    let show = bench.json(&["show", "acme/ab"]);
    let parents: Vec<_> = show["parents"].as_array().unwrap().iter().map(|p| (&p["model"], &p["relation"])).collect();
    assert_eq!(parents, [(&json!("a"), &json!("merge")), (&json!("b"), &json!("merge"))]);
    assert_eq!(show["merge"]["base"], bench.json(&["show", "base"])["id"]);
    assert!(bench.ok(&["show", "acme/ab"]).contains("three-way"), "the text says how");
    // Both parents' tensors are stored: the merge adds a record and a config.
    assert!(made["new_stored_bytes"].as_u64().unwrap() < 8192, "{made}");
    assert_eq!(bench.json(&["fsck"])["ok"], true);
}

#[test]
fn neighbours_are_a_possible_conflict() {
    let t = base();
    let (one, two) = (layer(1), layer(2));
    let bench = family(
        &files(&t, &config()),
        &files(&changed(&t, &[&one], 1), &config()),
        &files(&changed(&t, &[&two], 2), &config()),
    );
    let plan = outcome(&bench);
    assert_eq!(plan["outcome"], "possible");
    let names: Vec<_> = plan["tensors"].as_array().unwrap().iter().map(|t| (&t["name"], &t["outcome"])).collect();
    assert_eq!(names, [(&json!(one), &json!("possible")), (&json!(two), &json!("possible"))]);
    let before = bench.json(&["stats"]);
    let why = bench.fails(&["merge", "a", "b", "--as", "ab"]);
    assert!(why.contains("possible conflict") && why.contains("--accept-possible"), "{why}");
    assert_eq!(bench.json(&["stats"]), before, "nothing was done");
    bench.ok(&["merge", "a", "b", "--as", "ab", "--accept-possible"]);
    let want = files(&changed(&changed(&t, &[&one], 1), &[&two], 2), &config());
    same(&export(&bench, "ab"), &want, "both changes");
}

#[test]
fn the_same_tensor_is_a_conflict_that_can_be_resolved() {
    let t = base();
    let one = layer(1);
    let (ta, tb) = (changed(&t, &[&one], 1), changed(&t, &[&one, "norm.bias"], 2));
    let (mut ca, mut cb) = (config(), config());
    (ca["labels"], cb["labels"]) = (3.into(), 4.into());
    let bench = family(&files(&t, &config()), &files(&ta, &ca), &files(&tb, &cb));
    let plan = outcome(&bench);
    assert_eq!(plan["outcome"], "conflict");
    let conflicts = |key: &str| -> Vec<Value> {
        let all = plan[key].as_array().unwrap().iter();
        all.filter(|n| n["outcome"] == "conflict").map(|n| n["name"].clone()).collect()
    };
    assert_eq!((conflicts("tensors"), conflicts("files")), (vec![json!(one)], vec![json!("config.json")]));
    let ran = bench.run(&["merge", "a", "b", "--as", "ab", "--accept-possible"]);
    assert!(ran.code == 1 && ran.out.contains(&one) && ran.err.lines().count() == 1, "{}{}", ran.out, ran.err);
    for (how, tensors, config) in [("--ours", &ta, &ca), ("--theirs", &tb, &cb)] {
        let name = how.trim_start_matches('-');
        bench.ok(&["merge", "a", "b", how, "--as", name]);
        let mut want = copy(tensors);
        want.iter_mut().find(|x| x.name == "norm.bias").unwrap().bytes =
            tb.iter().find(|x| x.name == "norm.bias").unwrap().bytes.clone();
        same(&export(&bench, name), &files(&want, config), how);
    }
    // The driver decides about tensors; the config's conflict stays.
    assert!(bench.run(&["merge", "a", "b", "--driver", "cp \"$2\" \"$4\"; :", "--as", "x"]).code == 1);
}

#[test]
fn a_driver_makes_the_tensor() {
    let t = base();
    let one = layer(1);
    let (ta, tb) = (changed(&t, &[&one], 1), changed(&t, &[&one], 2));
    let bench = family(&files(&t, &config()), &files(&ta, &config()), &files(&tb, &config()));
    // The four paths are appended to the command.
    let script = bench.path("driver.sh");
    fs::write(&script, "test \"$MGIT_TENSOR\" = encoder.layer.1.weight && test -s \"$1\" && cp \"$3\" \"$4\"\n")
        .unwrap();
    let driver = format!("sh {}", script.display());
    bench.ok(&["merge", "a", "b", "--driver", &driver, "--as", "ab"]);
    same(&export(&bench, "ab"), &files(&tb, &config()), "the driver took B's");
    let broken = bench.path("broken.sh");
    fs::write(&broken, "echo x > \"$4\"\n").unwrap();
    for bad in ["false", "true", &format!("sh {}", broken.display())] {
        let why = bench.fails(&["merge", "a", "b", "--driver", bad, "--as", "bad"]);
        assert!(why.contains(&one) || why.contains("driver"), "{bad}: {why}");
    }
    assert!(bench.fails(&["show", "bad"]).contains("no version"));
}

#[test]
fn a_side_that_changed_nothing_gives_the_other() {
    let t = base();
    let mut more = changed(&t, &[&layer(0), &layer(3), "norm.bias"], 3);
    more.remove(2);
    more.push(Tensor::f32("head.weight", &[2, 16], (0..32).map(|i| i as f32)));
    let mut fb = files(&more, &json!({"only": "this"}));
    fb.insert("extra/blob.bin".into(), Noise(5).bytes(100_000));
    let bench = family(&files(&t, &config()), &files(&t, &config()), &fb);
    for (name, pair) in [("ab", ["a", "b"]), ("ba", ["b", "a"]), ("onto", ["base", "b"]), ("bb", ["b", "b"])] {
        let made = bench.json(&["merge", pair[0], pair[1], "--as", name, "--base", "base"]);
        assert_eq!(made["outcome"], "none");
        same(&export(&bench, name), &fb, name);
    }
    // What comes from the other is merged onto it without a word about a base.
    bench.ok(&["merge", "base", "b", "--as", "forward"]);
    same(&export(&bench, "forward"), &fb, "forward");
}

#[test]
fn shards_and_their_index_merge() {
    let t = base();
    let sharded = |tensors: &[Tensor], config: &Value| -> Files {
        let (first, second) = tensors.split_at(3);
        let total: usize = tensors.iter().map(|t| t.bytes.len()).sum();
        let place = |t: &Tensor, n| (t.name.clone(), Value::from(format!("model-0000{n}-of-00002.safetensors")));
        let map = first.iter().map(|t| place(t, 1)).chain(second.iter().map(|t| place(t, 2)));
        let map: serde_json::Map<String, Value> = map.collect();
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        let text = |v: &Value| (serde_json::to_string_pretty(v).unwrap() + "\n").into_bytes();
        Files::from([
            ("model-00001-of-00002.safetensors".to_owned(), safetensors(first)),
            ("model-00002-of-00002.safetensors".to_owned(), safetensors(second)),
            ("model.safetensors.index.json".to_owned(), text(&index)),
            ("config.json".to_owned(), text(config)),
        ])
    };
    let (mut ta, mut tb) = (changed(&t, &[&layer(0)], 1), changed(&t, &[&layer(4)], 2));
    ta.push(Tensor::f32("head.a", &[4], (0..4).map(|i| i as f32)));
    tb.push(Tensor::f32("head.b", &[8], (0..8).map(|i| i as f32)));
    let c = config();
    let bench = family(&sharded(&t, &c), &sharded(&ta, &c), &sharded(&tb, &c));
    bench.ok(&["merge", "a", "b", "--as", "ab", "--accept-possible"]);
    bench.ok(&["merge", "b", "a", "--as", "ba", "--accept-possible"]);
    let got = export(&bench, "ab");
    same(&got, &export(&bench, "ba"), "symmetric");
    let index: Value = serde_json::from_slice(&got["model.safetensors.index.json"]).unwrap();
    assert_eq!(index["weight_map"].as_object().unwrap().len(), t.len() + 2);
    let total: usize = t.iter().map(|t| t.bytes.len()).sum();
    assert_eq!(index["metadata"]["total_size"], total + 12 * 4);
    same(
        &Files::from([("x".into(), got["model-00001-of-00002.safetensors"].clone())]),
        &Files::from([("x".into(), sharded(&ta, &c)["model-00001-of-00002.safetensors"].clone())]),
        "the shard that A alone changed",
    );
    import(&bench, "again", &got, &["--no-parent"]); // every header is sound
    let diff = bench.json(&["diff", "ab", "b"]);
    assert_eq!((diff["removed"][0]["name"].as_str(), diff["changed"].as_array().unwrap().len()), (Some("head.a"), 1));
}

#[test]
fn a_prefix_that_both_sides_gained_is_no_change() {
    let t = base();
    let prefixed = |tensors: &[Tensor]| -> Vec<Tensor> {
        let mut all = copy(tensors);
        all.iter_mut().for_each(|t| t.name = format!("bert.{}", t.name));
        all
    };
    let (ta, tb) = (prefixed(&changed(&t, &[&layer(0)], 1)), prefixed(&changed(&t, &[&layer(3)], 2)));
    let c = config();
    let bench = family(&files(&t, &c), &files(&ta, &c), &files(&tb, &c));
    let plan = outcome(&bench);
    assert_eq!((&plan["outcome"], plan["tensors"].as_array().unwrap().len()), (&json!("none"), 2));
    bench.ok(&["merge", "a", "b", "--as", "ab"]);
    let want = prefixed(&changed(&changed(&t, &[&layer(0)], 1), &[&layer(3)], 2));
    same(&export(&bench, "ab"), &files(&want, &c), "both changes");
    // What only one side changed is its model, but for a rounding; the rest is the base.
    bench.ok(&["merge", "a", "b", "--method", "task-arithmetic", "--as", "task"]);
    let diff = bench.json(&["diff", "ab", "task"]);
    let far = |d: &Value| d["rel_l2"].as_f64().unwrap() > 1e-6;
    assert!(diff["changed"].as_array().unwrap().iter().all(|d| !far(d)), "{diff}");
}

#[test]
fn what_cannot_be_merged_is_told() {
    let t = base();
    let mut tb = copy(&t);
    tb[1].shape = vec![384, 128];
    let c = config();
    let bench = family(&files(&t, &c), &files(&changed(&t, &[&layer(1)], 1), &c), &files(&tb, &c));
    assert_eq!(outcome(&bench)["outcome"], "conflict", "another shape on one side, other values on the other");
    import(&bench, "alone", &files(&base_tensors(99, 2), &c), &["--no-parent"]);
    assert!(bench.fails(&["merge", "a", "alone", "--as", "x"]).contains("--base"));
    assert!(bench.fails(&["merge", "a", "nosuch", "--as", "x"]).contains("nosuch"));
    assert!(bench.fails(&["merge", "a", "b", "alone", "--as", "x"]).contains("two versions"));
    assert_eq!(bench.run(&["merge", "a", "--as", "x"]).code, 2);
    assert_eq!(bench.run(&["merge", "a", "b"]).code, 2);
    bench.ok(&["merge", "a", "b", "--ours", "--as", "taken@v1"]);
    assert!(bench.fails(&["merge", "a", "b", "--ours", "--as", "taken@v1"]).contains("exists already"));
    // A tensor that one side removed and the other changed.
    let mut gone = copy(&t);
    gone.retain(|t| t.name != layer(1));
    import(&bench, "gone", &files(&gone, &c), &["--parent", "base"]);
    let plan = bench.json(&["merge", "a", "gone", "--dry-run"]);
    assert_eq!(
        (&plan["outcome"], &plan["tensors"][0]["change"]),
        (&json!("conflict"), &json!("a: changed, b: removed"))
    );
}

#[test]
fn a_merge_that_stops_leaves_nothing() {
    let t = base();
    let (ta, tb) = (changed(&t, &[&layer(1)], 1), changed(&t, &[&layer(1)], 2));
    let bench = family(&files(&t, &config()), &files(&ta, &config()), &files(&tb, &config()));
    let tree = |dir: &Path| {
        let mut out = Files::new();
        gather(dir, "", &mut out);
        out.retain(|name, _| !name.starts_with("catalog/"));
        out
    };
    let before = tree(&bench.repo());
    for signal in ["INT", "TERM", "KILL"] {
        // The merge is under way when its driver runs.
        let driver = format!("kill -{signal} $PPID; sleep 0.2; false");
        let ran = bench.run(&["merge", "a", "b", "--driver", &driver, "--as", "ab"]);
        assert_ne!(ran.code, 0, "{signal}");
        assert_eq!(tree(&bench.repo()).keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>(), "{signal}");
    }
    bench.ok(&["merge", "a", "b", "--theirs", "--as", "ab"]);
}
