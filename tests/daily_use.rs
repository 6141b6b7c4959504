//! The commands as a user strings them together, on a base and a fine-tune of it.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{Bench, base_tensors, tuned_tensors, write_model};

/// A bench with `base` and `tuned` model directories.
fn family() -> Bench {
    let b = Bench::new();
    let base = base_tensors(7, 4);
    write_model(&b.path("in/base"), &base);
    write_model(&b.path("in/tuned"), &tuned_tensors(&base, 8));
    b
}

fn import(b: &Bench, dir: &str, more: &[&str]) -> serde_json::Value {
    b.json(&[&["import", b.path(&format!("in/{dir}")).to_str().unwrap()], more].concat())
}

#[test]
fn a_tune_pairs_by_content_and_comes_back_whole() {
    let b = family();
    import(&b, "base", &[]);
    let tuned = import(&b, "tuned", &["--as", "acme/tuned", "--parent", "base"]);
    assert_eq!(tuned["parents"][0]["relation"], "finetune");
    let (raw, new) = (tuned["logical_bytes"].as_u64().unwrap(), tuned["new_stored_bytes"].as_u64().unwrap());
    assert!(new * 10 < raw * 8, "{new} of {raw}: no delta was found");
    for (name, dir) in [("base", "base"), ("acme/tuned", "tuned")] {
        let out = b.path("out").join(dir);
        b.ok(&["export", name, out.to_str().unwrap()]);
        b.ok(&["verify", b.path("in").join(dir).to_str().unwrap(), name]);
        let file = |d: std::path::PathBuf| fs::read(d.join("model.safetensors")).unwrap();
        assert!(file(out) == file(b.path("in").join(dir)), "{name} came back with other bytes");
    }
    assert_eq!(b.json(&["fsck"])["ok"], true);
    let verify = b.fails_with_lines(&["verify", b.path("in/base").to_str().unwrap(), "acme/tuned"]);
    assert!(verify.contains("different bytes") || verify.contains("bytes, the version has"), "{verify}");
}

impl Bench {
    fn fails_with_lines(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 1);
        ran.err
    }
}

#[test]
fn versions_edges_and_removals() {
    let b = family();
    import(&b, "base", &["-m", "first"]);
    let second = import(&b, "tuned", &["--as", "base"]);
    assert_eq!((&second["version"], &second["previous"]["version"]), (&"v2".into(), &"v1".into()));
    import(&b, "tuned", &["--as", "other", "--no-parent"]);
    b.ok(&["link", "other", "base@v1", "--relation", "distill"]);
    let show = b.json(&["show", "base@v1"]);
    assert_eq!(show["message"], "first");
    assert_eq!(show["children"][0]["relation"], "distill");
    assert_eq!(show["next"][0]["version"], "v2");
    let circle = b.fails(&["link", "base@v1", "other"]);
    assert!(circle.contains("base@v1 -> other@v1"), "{circle}");
    b.ok(&["unlink", "other", "base@v1"]);
    assert!(b.fails(&["unlink", "other", "base@v1"]).contains("no edge"));
    b.ok(&["rm", "base@v2"]);
    assert!(b.fails(&["show", "base@v2"]).contains("no version"));
    assert!(b.fails(&["import", b.path("in/base").to_str().unwrap(), "--as", "base@v2"]).contains("not used again"));
    assert_eq!(import(&b, "base", &["--as", "base"])["version"], "v3");
    assert!(b.fails(&["rm", "base@v1", "nosuch"]).contains("nosuch"));
    assert_eq!(b.json(&["show", "base@v1"])["version"], "v1", "rm removes all or none");
}

#[test]
fn a_lost_catalog_is_made_anew() {
    let b = family();
    import(&b, "base", &[]);
    import(&b, "tuned", &["--as", "t", "--parent", "base"]);
    import(&b, "base", &["--as", "gone"]);
    b.ok(&["rm", "gone"]);
    b.ok(&["link", "t", "base", "--relation", "adapter"]);
    let before = (b.ok(&["show", "t", "--json"]), b.ok(&["show", "base", "--json"]), b.ok(&["ls", "--json"]));
    fs::remove_dir_all(b.repo().join("catalog")).unwrap();
    assert_eq!(b.json(&["fsck", "--rebuild"])["ok"], true);
    let after = (b.ok(&["show", "t", "--json"]), b.ok(&["show", "base", "--json"]), b.ok(&["ls", "--json"]));
    assert_eq!(before, after);
    fs::write(b.repo().join("catalog/db"), b"garbage").unwrap();
    assert_eq!(b.json(&["fsck", "--rebuild"])["ok"], true);
    assert_eq!(b.ok(&["show", "t", "--json"]), before.0);
}

#[test]
fn everything_works_while_mounted() {
    let b = family();
    import(&b, "base", &[]);
    let Some(m) = b.mount(&[]) else { return };
    import(&b, "tuned", &["--as", "acme/tuned", "--parent", "base"]);
    let file = m.file("acme--tuned", "latest", "model.safetensors");
    let start = Instant::now();
    while !file.exists() {
        assert!(start.elapsed() < Duration::from_secs(1), "a new version did not appear within a second");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(fs::read(&file).unwrap() == fs::read(b.path("in/tuned/model.safetensors")).unwrap());
    let open = fs::File::open(&file).unwrap();
    assert!(b.fails(&["mount", b.path("in").to_str().unwrap()]).contains("mounted already"));
    assert!(b.fails(&["import", m.at.join("models/base/v1").to_str().unwrap()]).contains("mount of the same"));
    b.ok(&["rm", "acme/tuned"]);
    let start = Instant::now();
    while m.at.join("models/acme--tuned").exists() {
        assert!(start.elapsed() < Duration::from_secs(2), "a removed version did not vanish");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut &open, &mut bytes).unwrap();
    assert!(bytes == fs::read(b.path("in/tuned/model.safetensors")).unwrap(), "an open file stays readable");
    assert_eq!(b.json(&["fsck", "--rebuild"])["ok"], true);
    assert_eq!(b.json(&["stats"])["versions"], 1);
}

#[test]
fn each_imports_a_hub_cache_once() {
    let b = Bench::new();
    let snapshot = b.path("in/hub/models--acme--bert/snapshots/abc");
    let blobs = b.path("in/hub/models--acme--bert/blobs");
    write_model(&blobs, &base_tensors(3, 1));
    fs::create_dir_all(&snapshot).unwrap();
    for f in ["model.safetensors", "config.json"] {
        std::os::unix::fs::symlink(format!("../../blobs/{f}"), snapshot.join(f)).unwrap();
    }
    write_model(&b.path("in/hub/loose/plain"), &base_tensors(4, 1));
    let hub = b.path("in/hub");
    let first = b.json(&["import", "--each", hub.to_str().unwrap()]);
    assert_eq!(first["imported"].as_array().unwrap().len(), 2, "{first}");
    assert_eq!(b.json(&["show", "acme/bert"])["files"][1]["path"], "model.safetensors");
    let again = b.json(&["import", "--each", hub.to_str().unwrap()]);
    assert_eq!(again["known"].as_array().unwrap().len(), 2, "{again}");
}

#[test]
fn help_teaches_and_wrong_usage_exits_2() {
    let b = Bench::without_repo();
    let help = b.ok(&["--help"]);
    for verb in [
        "init",
        "import",
        "export",
        "verify",
        "mount",
        "umount",
        "ls",
        "show",
        "log",
        "diff",
        "kinship",
        "merge",
        "stats",
        "test",
        "bisect",
        "recipe",
        "update",
        "rm",
        "link",
        "unlink",
        "fsck",
        "completions",
    ] {
        assert!(help.contains(&format!("\n  {verb}")), "{verb} is not in --help");
        assert!(b.ok(&[verb, "--help"]).len() > 100);
    }
    assert_eq!(b.run(&["frobnicate"]).code, 2);
    assert_eq!(b.run(&["show"]).code, 2);
    assert!(b.ok(&["completions", "bash"]).contains("complete"));
    assert!(b.fails(&["ls"]).contains("mgit init"));
}

/// A base, two tunes of it, a merge of both with a second version, and one that is gone.
fn merged() -> Bench {
    let b = family();
    write_model(&b.path("in/other"), &tuned_tensors(&base_tensors(7, 4), 10));
    import(&b, "base", &["-m", "first\nof all"]);
    import(&b, "tuned", &["--as", "acme/a", "--parent", "base"]);
    import(&b, "other", &["--as", "b", "--parent", "base"]);
    import(&b, "tuned", &["--as", "merged", "--parent", "acme/a", "--parent", "b", "--relation", "merge"]);
    import(&b, "other", &["--as", "merged"]);
    b.ok(&["rm", "b"]);
    b
}

#[test]
fn the_graph_shows_a_merge_and_what_is_gone() {
    let b = merged();
    let graph = b.ok(&["log", "--graph"]);
    let words: Vec<String> = graph
        .lines()
        .map(|l| l.split("  ").map(str::trim).filter(|w| !w.is_empty()).take(2).collect::<Vec<_>>().join(" "))
        .collect();
    let want = ["* merged@v2", "* merged@v1", "|\\", "| * b@v1", "* | acme/a@v1", "|/", "* base@v1"];
    assert_eq!(words, want, "\n{graph}");
    let line = |name: &str| graph.lines().find(|l| l.contains(name)).unwrap();
    assert!(line("merged@v2").contains("next") && line("merged@v1").contains("merge "), "\n{graph}");
    assert!(line("b@v1").contains("removed") && line("acme/a").contains("finetune"), "\n{graph}");
    assert!(line("base@v1").contains("ago") || line("base@v1").contains("just now"), "\n{graph}");
    let part = b.ok(&["log", "acme/a", "--graph"]);
    assert!(part.contains("acme/a@v1") && part.contains("base@v1") && !part.contains("merged"), "\n{part}");
    let value = b.json(&["log", "--graph"]);
    assert_eq!((value["nodes"].as_array().unwrap().len(), value["links"].as_array().unwrap().len()), (5, 5));
}

#[test]
fn tables_are_aligned_and_plain_where_there_is_no_terminal() {
    let b = merged();
    let each =
        [&["ls"][..], &["ls", "merged"], &["log"], &["log", "--graph"], &["show", "base"], &["show", "merged@v1"]];
    for args in each {
        let text = b.ok(args);
        assert!(!text.contains('\x1b'), "{args:?}: {text:?}");
        assert!(text.lines().all(|l| !l.ends_with(' ')), "{args:?}:\n{text}");
        assert!(text.contains(" %") && text.contains("kB"), "{args:?}:\n{text}");
        let colour = b.command(args).env("CLICOLOR_FORCE", "1").output().unwrap().stdout;
        assert!(colour.contains(&0x1b), "{args:?} has no colours");
        let never = b.command(args).env("NO_COLOR", "1").output().unwrap().stdout;
        assert!(!never.contains(&0x1b), "{args:?} ignores NO_COLOR");
    }
    let ls = b.ok(&["ls"]);
    let (head, row) = (ls.lines().next().unwrap(), ls.lines().find(|l| l.starts_with("merged ")).unwrap());
    assert_eq!(head.find("NEWEST"), row.find("v2"), "\n{ls}");
    let log = b.ok(&["log", "merged@v1"]);
    assert!(log.contains("merge of acme/a@v1, b@v1") && log.contains("\n    first\n    of all\n"), "\n{log}");
    assert!(!b.ok(&["log", "--json"]).contains(" ago"));
}
