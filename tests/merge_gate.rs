//! Merges that registered tests decide about: possible conflicts, negative flips, and the search for the best merge.

mod common;

use std::fs;

use common::kin::*;
use common::{Bench, Tensor, fuse_is_there};
use serde_json::{Value, json};

/// Two sides whose changes feed each other.
fn neighbours() -> Bench {
    let t = base();
    let (a, b) = (changed(&t, &[&layer(1)], 1), changed(&t, &[&layer(2)], 2));
    family(&files(&t, &config()), &files(&a, &config()), &files(&b, &config()))
}

/// Registers a shell script as a test.
fn register(bench: &Bench, name: &str, script: &str, more: &[&str]) {
    let file = bench.path(&format!("{name}.sh"));
    fs::write(&file, script).unwrap();
    bench.ok(&[&["test", "add", name], more, &["--", "sh", file.to_str().unwrap()]].concat());
}

#[test]
fn tests_decide_a_possible_conflict() {
    if !fuse_is_there() {
        return;
    }
    let bench = neighbours();
    let merge = |name: &str| bench.run(&["merge", "a", "b", "--as", name]);
    assert!(merge("x").err.contains("register a test"));
    register(&bench, "other", "true\n", &["--model", "elsewhere"]);
    let ran = merge("x");
    assert!(ran.code == 1 && ran.err.contains("no test for it"), "{}", ran.err);
    let stats = bench.json(&["stats"]);
    register(&bench, "fails", "exit 3\n", &["--model", "bad"]);
    let ran = merge("bad");
    assert!(ran.code == 1 && ran.err.contains("fails fails") && ran.err.lines().count() == 1, "{}", ran.err);
    assert!(bench.fails(&["show", "bad"]).contains("no version"));
    assert_eq!(bench.json(&["stats"])["pack_bytes"], stats["pack_bytes"], "nothing is left");
    // The test sees the result and its parents as ordinary files, and what it gave is known afterwards.
    let script = "set -e\n\
        size() { wc -c < \"$1/model.safetensors\"; }\n\
        one=${MGIT_PARENTS%%:*} two=${MGIT_PARENTS##*:}\n\
        test $(size \"$MGIT_PATH\") = $(size \"$one\")\n\
        ! cmp -s \"$MGIT_PATH/model.safetensors\" \"$one/model.safetensors\"\n\
        ! cmp -s \"$MGIT_PATH/model.safetensors\" \"$two/model.safetensors\"\n\
        cmp \"$MGIT_PATH/config.json\" \"$one/config.json\"\n\
        test $MGIT_MODEL = good\n";
    register(&bench, "looks", script, &["--model", "good"]);
    assert_eq!(bench.json(&["merge", "a", "b", "--as", "good"])["outcome"], "possible");
    let results = bench.json(&["test", "results", "good"]);
    let found: Vec<(&Value, &Value)> =
        results["results"].as_array().unwrap().iter().map(|r| (&r["test"], &r["result"])).collect();
    assert_eq!(found, [(&json!("looks"), &json!("pass"))]);
    let runs = bench.repo().join("drafts/.runs");
    assert_eq!(fs::read_dir(runs).map_or(0, |d| d.count()), 0, "the result's directory is gone");
}

#[test]
fn negative_flips_stop_a_merge() {
    if !fuse_is_there() {
        return;
    }
    let bench = neighbours();
    let script = "for i in 1 2 3 4 5 6 7 8 9 10; do\n\
        ok=true; [ $MGIT_MODEL = merged ] && [ $i -le 2 ] && ok=false\n\
        echo \"{\\\"id\\\": \\\"x$i\\\", \\\"ok\\\": $ok}\" >> \"$MGIT_EXAMPLES\"\n\
        done\n";
    register(&bench, "each", script, &[]);
    let merge = |limit: &str| {
        let args = ["merge", "a", "b", "--method", "average", "--as", "merged", "--max-negative-flips", limit];
        bench.run(&args)
    };
    assert!(merge("10%").err.contains("'mgit test run'"), "the parents were not tested");
    bench.ok(&["test", "run", "a", "b"]);
    let ran = merge("10%");
    assert!(ran.code == 1 && ran.err.contains("2 of 10 examples are right in a@v1"), "{}", ran.err);
    assert!(bench.fails(&["show", "merged"]).contains("no version"));
    assert_eq!(merge("0.2").code, 0);
    bench.ok(&["test", "compare", "a", "merged"]);
}

#[test]
fn a_search_keeps_the_best_and_goes_on_where_it_was() {
    if !fuse_is_there() {
        return;
    }
    let bench = Bench::new();
    let model = |seed: u64, value: f32| {
        let t = base();
        let mut t = if seed == 0 { t } else { changed(&t, &[&layer(0), &layer(1)], seed) };
        t.push(Tensor::f32("score", &[1], [value].into_iter()));
        files(&t, &config())
    };
    for (name, seed, value) in [("base", 0, 0.9), ("a", 1, 0.0), ("b", 2, 2.0), ("c", 3, 0.75)] {
        let parent: &[&str] = if name == "base" { &["--no-parent"] } else { &["--parent", "base"] };
        import(&bench, name, &model(seed, value), parent);
    }
    // The nearer the last tensor to 0.9, the better.
    let script = "tail -c 4 \"$MGIT_PATH/model.safetensors\" | od -An -tf4 | \
        awk '{ d = $1 - 0.9; if (d < 0) d = -d; printf \"{\\\"near\\\": %.6f}\\n\", 1 - d }'\n";
    register(&bench, "near", script, &["--metric", "near", "--higher"]);
    let args = ["merge", "a", "b", "c", "--greedy", "2", "--as", "best"];
    let found = bench.json(&args);
    let steps = found["steps"].as_array().unwrap();
    assert!(!steps.is_empty() && steps.iter().all(|s| s["new"] == true), "{found}");
    // (0 + 2) / 2 is not among the two best at first; 0.75 and its merges come close.
    let score = found["score"].as_f64().unwrap();
    assert!(score > 0.97, "{found}");
    let best = found["best"]["version"].as_str().unwrap();
    let show = bench.json(&["show", &format!("best@{best}")]);
    assert_eq!(show["merge"]["method"], "average");
    let versions = bench.json(&["ls", "best"]);
    let again = bench.json(&args);
    assert!(again["steps"].as_array().unwrap().iter().all(|s| s["new"] == false), "{again}");
    assert_eq!((&again["best"], &bench.json(&["ls", "best"])), (&found["best"], &versions));
    assert!(bench.fails(&["merge", "a", "b", "--greedy", "1", "--as", "x"]).contains("2 or more"));
}
