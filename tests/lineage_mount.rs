//! `lineage/` in a real mount: a small family made by the program, seen with the tools that people use.
//!
//! Where there is no `/dev/fuse` these tests say so and pass, unless `MGIT_REQUIRE_FUSE=1`.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{Bench, Mount, Tensor, safetensors};
use serde_json::Value;

/// Imports a tiny model whose one tensor starts with `value`.
fn import(b: &Bench, name: &str, value: f32, more: &[&str]) {
    let dir = b.path("in").join(name.replace('/', "+"));
    fs::create_dir_all(&dir).unwrap();
    let tensor = Tensor::f32("w", &[2, 8], (0..16).map(|i| value + i as f32));
    fs::write(dir.join("model.safetensors"), safetensors(&[tensor])).unwrap();
    fs::write(dir.join("config.json"), format!("{{\n  \"value\": {value}\n}}\n")).unwrap();
    b.ok(&[&["import", dir.to_str().unwrap(), "--as", name], more].concat());
}

/// base -> acme/ft@v1 -> v2 (removed) -> v3; mix of acme/ft@v3 and other; a circle of models base -> ring -> base@v2.
fn family() -> Bench {
    let b = Bench::new();
    import(&b, "base@v1", 1.0, &["--no-parent", "-m", "from scratch"]);
    import(&b, "other@v1", 2.0, &["--no-parent"]);
    import(&b, "acme/ft@v1", 3.0, &["--parent", "base@v1", "--relation", "finetune"]);
    import(&b, "acme/ft@v2", 4.0, &[]);
    import(&b, "acme/ft@v3", 5.0, &[]);
    import(&b, "mix@v1", 6.0, &["--parent", "acme/ft@v3", "--parent", "other@v1", "--relation", "merge"]);
    import(&b, "ring@v1", 7.0, &["--parent", "base@v1"]);
    import(&b, "base@v2", 8.0, &["--parent", "ring@v1"]);
    b.ok(&["rm", "acme/ft@v2"]);
    b
}

/// What a command prints; it must succeed.
fn run(program: &str, args: &[&str], dir: &Path) -> String {
    let out = Command::new(program).args(args).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn lines(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort();
    lines
}

fn lineage(m: &Mount) -> PathBuf {
    m.at.join("lineage")
}

/// Waits for what comes within a second on an idle machine.
fn soon(what: impl FnMut() -> bool) {
    common::wait_for(Duration::from_secs(10), what);
}

#[test]
fn the_tree_shows_the_family() {
    let b = family();
    let Some(m) = b.mount(&[]) else { return };
    let found = run("find", &["tree", "-type", "d", "-o", "-printf", "%p -> %l\n"], &lineage(&m));
    let want = [
        "tree/base/@v1 -> ../../../models/base/v1",
        "tree/base/@v2 -> ../../../models/base/v2",
        "tree/base/acme--ft/@v1 -> ../../../../models/acme--ft/v1",
        "tree/base/acme--ft/@v3 -> ../../../../models/acme--ft/v3",
        "tree/base/acme--ft/mix/@v1 -> ../../../../../models/mix/v1",
        "tree/base/ring/@v1 -> ../../../../models/ring/v1",
        "tree/base/ring/base -> ../../base",
        "tree/other/@v1 -> ../../../models/other/v1",
        "tree/other/mix -> ../base/acme--ft/mix",
    ];
    assert_eq!(lines(&found), want);
    let dirs = run("find", &["tree", "-mindepth", "1", "-type", "d"], &lineage(&m));
    let want = ["tree/base", "tree/base/acme--ft", "tree/base/acme--ft/mix", "tree/base/ring", "tree/other"];
    assert_eq!(lines(&dirs), want);
    let config = lineage(&m).join("tree/other/mix/@v1/config.json");
    assert_eq!(fs::read_to_string(config).unwrap(), "{\n  \"value\": 6\n}\n");
}

#[test]
fn every_link_resolves_and_every_file_is_as_long_as_it_says() {
    let b = family();
    let Some(m) = b.mount(&[]) else { return };
    let at = lineage(&m);
    assert_eq!(run("find", &[".", "-xtype", "l"], &at), "", "broken links");
    // Loops are told of and passed over: the family has a circle of models.
    let deep =
        Command::new("find").args(["-L", ".", "-maxdepth", "6", "-type", "l"]).current_dir(&at).output().unwrap();
    assert_eq!(String::from_utf8(deep.stdout).unwrap(), "");
    let files = run("find", &[".", "-type", "f"], &at);
    assert_eq!(files.lines().count(), 4 + 4 * 8, "three drawings, how far an update is, and four texts of each card");
    for file in files.lines() {
        let size = fs::metadata(at.join(file)).unwrap().len();
        assert_eq!(fs::read(at.join(file)).unwrap().len() as u64, size, "{file}");
        let counted = run("wc", &["-c", file], &at);
        assert_eq!(counted.split(' ').next().unwrap(), size.to_string(), "{file}");
    }
    run("ls", &["-lR", "."], &at);
    let copy = b.path("copy");
    run("cp", &["-r", "of", copy.to_str().unwrap()], &at);
    for file in files.lines().filter_map(|f| f.strip_prefix("./of/")) {
        assert_eq!(fs::read(copy.join(file)).unwrap(), fs::read(at.join("of").join(file)).unwrap(), "{file}");
    }
}

#[test]
fn cards_say_what_the_commands_say() {
    let b = family();
    let Some(m) = b.mount(&[]) else { return };
    let of = lineage(&m).join("of");
    let card =
        |model: &str, version: &str, file: &str| fs::read_to_string(of.join(model).join(version).join(file)).unwrap();
    for (model, version) in [("base", "v1"), ("base", "v2"), ("acme/ft", "v1"), ("acme/ft", "v3"), ("mix", "v1")] {
        let shown = b.ok(&["show", &format!("{model}@{version}"), "--json"]);
        assert_eq!(card(&model.replace('/', "--"), version, "info.json"), shown);
        let log = b.ok(&["log", &format!("{model}@{version}")]);
        let words = |text: &str| {
            let first = |l: &str| l.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>();
            text.lines().skip(1).map(first).collect::<Vec<_>>()
        };
        assert_eq!(words(&card(&model.replace('/', "--"), version, "log.txt")), words(&log));
    }
    let gone: Value = serde_json::from_str(&card("acme--ft", "v2", "info.json")).unwrap();
    assert_eq!((&gone["removed"], &gone["next"][0]["version"]), (&Value::Bool(true), &"v3".into()));
    assert!(!of.join("acme--ft/v2/model").exists());
    assert!(fs::read_link(of.join("acme--ft/v3/previous")).unwrap() == Path::new("../../acme--ft/v2"));
    let walk = of.join("mix/v1/parents/acme--ft@v3/previous/previous/parents/base@v1/model/config.json");
    assert_eq!(fs::read_to_string(walk).unwrap(), "{\n  \"value\": 1\n}\n");
    let names = |dir: &str| lines(&run("ls", &[dir], &of)).into_iter().map(str::to_owned).collect::<Vec<_>>();
    let above = ["acme--ft@v1", "acme--ft@v2", "acme--ft@v3", "base@v1", "other@v1"];
    assert_eq!(names("mix/v1/ancestors"), above);
    assert_eq!(names("mix/v1/parents"), ["acme--ft@v3", "other@v1"]);
    assert_eq!(names("acme--ft/v1/descendants"), ["acme--ft@v2", "acme--ft@v3", "mix@v1"]);
    let diff = card("mix", "v1", "diff.txt");
    assert!(diff.starts_with("acme/ft@v3 -> mix@v1\n\n1 tensor: 1 changed; 1 file changed\n"), "{diff}");
    assert!(diff.contains("\n-  \"value\": 5\n+  \"value\": 6\n"), "{diff}");
    assert!(card("acme--ft", "v3", "diff.txt").starts_with("acme/ft@v2 -> acme/ft@v3\n"), "from what was removed");
    assert_eq!(card("other", "v1", "diff.txt"), "nothing to compare with: no parent, no previous version\n");
    assert_eq!(card("mix", "v1", "tests.json"), "[]\n");
    let time = |path: &str| fs::symlink_metadata(of.join(path)).unwrap().mtime();
    assert_eq!(time("mix/v1"), fs::metadata(m.at.join("models/mix/v1")).unwrap().mtime());
    assert_eq!((time("mix/v1/model"), time("mix/v1/log.txt")), (time("mix/v1"), time("mix/v1")));
}

#[test]
fn the_drawings_are_those_of_all_versions() {
    let b = family();
    let Some(m) = b.mount(&[]) else { return };
    let read = |name: &str| fs::read_to_string(lineage(&m).join(name)).unwrap();
    let graph: Value = serde_json::from_str(&read("graph.json")).unwrap();
    assert_eq!(graph["nodes"].as_array().unwrap().len(), 8);
    let removed = |n: &&Value| n["removed"] == Value::Bool(true);
    assert_eq!(graph["nodes"].as_array().unwrap().iter().filter(removed).count(), 1);
    assert!(
        read("graph.dot").starts_with("digraph mgit {") && read("graph.svg").contains("<title>lineage: 8 versions")
    );
}

#[test]
fn what_is_new_shows_within_a_second() {
    let b = family();
    let Some(m) = b.mount(&[]) else { return };
    let at = lineage(&m);
    let log = at.join("of/other/v1/info.json");
    let before = fs::read_to_string(&log).unwrap();
    run("ls", &["-lR", "."], &at);
    import(&b, "new@v1", 9.0, &["--parent", "other@v1"]);
    soon(|| at.join("tree/other/new/@v1/config.json").exists() && at.join("of/new/v1/model").exists());
    soon(|| at.join("of/other/v1/children/new@v1").exists());
    soon(|| fs::read_to_string(&log).unwrap().len() > before.len());
    assert_eq!(fs::read_to_string(&log).unwrap(), b.ok(&["show", "other@v1", "--json"]));
    soon(|| run("ls", &["tree/other"], &at) == "@v1\nmix\nnew\n");
    b.ok(&["link", "new@v1", "ring@v1", "--relation", "distill"]);
    soon(|| fs::read_link(at.join("tree/base/ring/new")).is_ok_and(|t| t == Path::new("../../other/new")));
    soon(|| run("ls", &["of/new/v1/ancestors"], &at).contains("base@v1"));
    b.ok(&["rm", "new@v1"]);
    soon(|| !at.join("tree/other/new").exists() && at.join("of/new/v1/info.json").exists());
    soon(|| !at.join("of/new/v1/model").exists());
    assert_eq!(run("find", &[".", "-xtype", "l"], &at), "", "broken links");
}
