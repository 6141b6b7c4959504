//! Registered tests, as a user runs them: what programs see, what is recorded, which failures are inherited, which examples
//! flip, and what hostile programs can do.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Bench, base_tensors, fuse_is_there, tuned_tensors, write_model};
use serde_json::Value;

/// `base@v1`, `acme/a@v1` and `acme/a@v2` from it, and `b@v1` of another architecture.
fn family() -> Option<Bench> {
    if !fuse_is_there() {
        return None;
    }
    let b = Bench::new();
    let base = base_tensors(7, 1);
    write_model(&b.path("in/base"), &base);
    write_model(&b.path("in/a1"), &tuned_tensors(&base, 8));
    write_model(&b.path("in/a2"), &tuned_tensors(&base, 10));
    write_model(&b.path("in/b"), &base_tensors(11, 1));
    fs::write(b.path("in/b/config.json"), r#"{"architectures": ["GPT2"]}"#).unwrap();
    let at = |name: &str| b.path("in").join(name).to_str().unwrap().to_owned();
    b.ok(&["import", &at("base"), "--as", "base"]);
    b.ok(&["import", &at("a1"), "--as", "acme/a", "--parent", "base"]);
    b.ok(&["import", &at("a2"), "--as", "acme/a", "--parent", "base"]);
    b.ok(&["import", &at("b"), "--as", "b", "--no-parent"]);
    Some(b)
}

fn rows(b: &Bench) -> Vec<Value> {
    b.json(&["test", "results"])["results"].as_array().unwrap().clone()
}

fn row(b: &Bench, test: &str, model: &str, version: &str) -> Value {
    let all = rows(b);
    let found = all.iter().find(|r| r["test"] == test && r["model"] == model && r["version"] == version);
    found.unwrap_or_else(|| panic!("no result of {test} on {model}@{version} in {all:?}")).clone()
}

fn script(b: &Bench, name: &str, text: &str) -> String {
    let path = b.path(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Neither a mount nor a directory of a run may be left.
fn nothing_is_left(b: &Bench) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(b.dir.path().to_str().unwrap()), "a mount is left");
    let runs = fs::read_dir(b.repo().join("drafts/.runs")).map_or(0, |d| d.count());
    assert_eq!(runs, 0, "directories of runs are left");
    let in_run = fs::read_dir(b.path("run/mgit")).map_or(0, |d| d.count());
    assert_eq!(in_run, 0, "something is left beside the sockets");
}

#[test]
fn programs_see_versions_and_what_they_come_from() {
    let Some(b) = family() else { return };
    let see = script(
        &b,
        "see",
        "cd $MGIT_PATH && test -f config.json && cmp model.safetensors $MGIT_PREVIOUS/model.safetensors >/dev/null && exit 9\n\
         test -f $MGIT_PARENTS/model.safetensors && test -z \"$MGIT_OUT\" || exit 8\n\
         echo '{\"id\": 1, \"ok\": true}' > $MGIT_EXAMPLES\n\
         echo \"{\\\"model\\\": \\\"$MGIT_MODEL\\\", \\\"version\\\": \\\"$MGIT_VERSION\\\", \\\"size\\\": $(stat -c %s model.safetensors)}\"",
    );
    b.ok(&["test", "add", "see", "--model", "acme/*@v2", "--", &see]);
    let ran = b.json(&["test", "run"]);
    assert_eq!(ran["results"].as_array().unwrap().len(), 1, "{ran}");
    let r = row(&b, "see", "acme/a", "v2");
    assert_eq!(
        (&r["result"], &r["metrics"]["model"], &r["metrics"]["version"]),
        (&"pass".into(), &"acme/a".into(), &"v2".into())
    );
    assert_eq!(r["metrics"]["size"], fs::metadata(b.path("in/a2/model.safetensors")).unwrap().len());
    assert_eq!(r["examples"]["total"], 1);
    nothing_is_left(&b);
}

#[test]
fn tests_are_for_models_by_pattern_and_by_architecture_and_known_results_are_not_made_again() {
    let Some(b) = family() else { return };
    let log = b.path("log");
    let count = script(&b, "count", &format!("echo $MGIT_MODEL@$MGIT_VERSION >> {}", log.display()));
    let ran = |args: &[&str]| {
        let _ = fs::remove_file(&log);
        b.ok(&[&["test", "run"], args].concat());
        let mut lines: Vec<String> = fs::read_to_string(&log).unwrap_or_default().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    b.ok(&["test", "add", "berts", "--type", "BertModel", "--", &count]);
    assert_eq!(ran(&["--jobs", "3"]), ["acme/a@v1", "acme/a@v2", "base@v1"]);
    assert!(ran(&[]).is_empty(), "known results were made again");
    assert_eq!(ran(&["--again", "base"]), ["base@v1"]);
    assert_eq!(ran(&["--again", "--descendants-of", "acme/a@v1"]), ["acme/a@v1", "acme/a@v2"]);
    fs::write(&count, format!("{}# changed\n", fs::read_to_string(&count).unwrap())).unwrap();
    assert_eq!(ran(&["acme/a@*"]), ["acme/a@v1", "acme/a@v2"], "a changed script is another test");
    b.ok(&["test", "add", "b-only", "--model", "b", "--", &count]);
    assert_eq!(ran(&["b-only"]), ["b@v1"]);
    assert!(b.fails(&["test", "add", "b-only", "--", "true"]).contains("another test"));
    assert!(b.fails(&["test", "run", "nosuch*"]).contains("names no test and no version"));
    b.ok(&["test", "rm", "b-only"]);
    assert!(b.fails(&["test", "rm", "b-only"]).contains("no test"));
    assert!(rows(&b).iter().all(|r| r["test"] == "berts"));
}

#[test]
fn failures_are_inherited_or_introduced_also_in_the_mount_and_after_a_rebuild() {
    let Some(b) = family() else { return };
    b.ok(&["test", "add", "up", "--", "sh", "-c", "test $MGIT_MODEL = b"]);
    b.ok(&["test", "add", "here", "--", "sh", "-c", "test $MGIT_MODEL@$MGIT_VERSION != acme/a@v2"]);
    let said = b.fails_after_output(&["test", "run"]);
    assert!(said.contains("4 of 8 failed"), "{said}");
    assert_eq!(row(&b, "up", "base", "v1")["origin"], Value::Null);
    assert_eq!(row(&b, "up", "acme/a", "v1")["origin"], "inherited");
    assert_eq!(row(&b, "here", "acme/a", "v2")["origin"], "introduced");
    let before = rows(&b);
    let Some(m) = b.mount(&[]) else { return };
    let card = |v: &str| -> Vec<Value> {
        serde_json::from_str(&fs::read_to_string(m.at.join("lineage/of/acme--a").join(v).join("tests.json")).unwrap())
            .unwrap()
    };
    assert_eq!(card("v2").len(), 2);
    assert!(card("v2").iter().all(|r| before.contains(r)));
    b.ok(&["test", "add", "late", "--model", "acme/a", "--", "true"]);
    b.fails_after_output(&["test", "run"]);
    common::wait_for(Duration::from_secs(5), || card("v1").len() == 3);
    drop(m);
    let before = rows(&b);
    fs::remove_dir_all(b.repo().join("catalog")).unwrap();
    assert_eq!(b.json(&["fsck", "--rebuild"])["ok"], true);
    assert_eq!(rows(&b), before);
    nothing_is_left(&b);
}

impl Bench {
    /// Exit 1 and one line, whatever was printed before.
    fn fails_after_output(&self, args: &[&str]) -> String {
        self.fails(args)
    }
}

#[test]
fn examples_that_flip_are_counted_and_gate() {
    let Some(b) = family() else { return };
    let say = "for i in 1 2 3 4; do ok=true; test $i$MGIT_VERSION = 2v2 && ok=false; test $i$MGIT_VERSION = 3v1 && ok=false; \
               echo \"{\\\"id\\\": $i, \\\"ok\\\": $ok}\"; done > $MGIT_EXAMPLES";
    b.ok(&["test", "add", "ex", "--model", "acme/a", "--", "sh", "-c", say]);
    assert!(b.fails(&["test", "compare", "acme/a@v1", "acme/a@v2"]).contains("no test told outcomes"));
    b.ok(&["test", "run"]);
    let c = b.json(&["test", "compare", "acme/a@v1", "acme/a@v2", "--max-negative-flips", "25%"]);
    let t = &c["tests"][0];
    assert_eq!((&t["negative_flips"], &t["positive_flips"], &t["examples"]), (&1.into(), &1.into(), &4.into()), "{c}");
    assert_eq!((&t["negative_rate"], &t["negative"][0], &t["positive"][0]), (&0.25.into(), &"2".into(), &"3".into()));
    b.fails_after_output(&["test", "compare", "acme/a@v1", "acme/a@v2", "--max-negative-flips", "0.2"]);
    let file = fs::read_dir(b.repo().join("journal/files")).unwrap().next().unwrap().unwrap().path();
    fs::write(&file, b"{}").unwrap();
    let found = b.run(&["fsck", "--json"]);
    assert!(found.code == 1 && found.out.contains("the outcomes of test ex on acme/a@v"), "{}", found.out);
}

#[test]
fn hostile_programs_are_bounded() {
    let Some(b) = family() else { return };
    let add = |name: &str, text: &str| b.ok(&["test", "add", name, "--model", "base", "--", "sh", "-c", text]);
    add("hang", "trap '' TERM; sleep 1000 & sleep 1000; sleep 1000");
    add("loud", "yes 0123456789 | head -c 30000000; yes err | head -c 30000000 >&2");
    add("nojson", "echo '{\"a\": '");
    add("killed", "kill -SEGV $$");
    add("vandal", "echo x > $MGIT_PATH/model.safetensors; rm -rf $MGIT_PATH; touch $MGIT_PATH/../evil; exit 0");
    add("examples", "echo not json > $MGIT_EXAMPLES");
    add("skips", "exit 125");
    add("binary", "head -c 3000 /dev/urandom");
    b.ok(&["test", "add", "absent", "--model", "base", "--", "/no/such/program"]);
    let start = Instant::now();
    let ran = b.run(&["test", "run", "--timeout", "1.5", "--jobs", "2"]);
    assert!(ran.code == 1 && ran.err.contains("absent could not be run on base@v1"), "{}", ran.err);
    assert!(start.elapsed() < Duration::from_secs(60));
    let r = |test: &str| row(&b, test, "base", "v1");
    assert_eq!((&r("hang")["result"], &r("hang")["why"]), (&"fail".into(), &"timed out after 1.5 s".into()));
    assert!(r("loud")["output"].as_str().unwrap().len() < 10_000);
    assert_eq!((&r("nojson")["result"], r("nojson")["metrics"].as_object().unwrap().len()), (&"pass".into(), 0));
    assert_eq!(r("killed")["why"], "killed by signal 11");
    assert_eq!((&r("vandal")["result"], &r("skips")["result"]), (&"pass".into(), &"skip".into()));
    assert!(r("examples")["why"].as_str().unwrap().contains("line 1: not JSON") && r("examples")["examples"].is_null());
    assert!(rows(&b).iter().all(|r| r["test"] != "absent"), "what could not be run has no result");
    b.ok(&["verify", b.path("in/base").to_str().unwrap(), "base"]);
    assert_eq!(b.json(&["fsck"])["ok"], true);
    nothing_is_left(&b);
}

#[test]
fn an_interrupted_run_and_a_killed_one_leave_nothing() {
    let Some(b) = family() else { return };
    let begun = b.path("begun");
    let hang = format!("touch {}; sleep 500", begun.display());
    b.ok(&["test", "add", "hang", "--model", "base", "--", "sh", "-c", &hang]);
    for signal in [libc::SIGINT, libc::SIGKILL] {
        let _ = fs::remove_file(&begun);
        let mut run = b.command(&["test", "run"]).stderr(std::process::Stdio::null()).spawn().unwrap();
        common::wait_for(Duration::from_secs(30), || begun.exists());
        // SAFETY: our own child, which has not been waited for.
        unsafe { libc::kill(run.id() as i32, signal) };
        assert!(!run.wait().unwrap().success());
        let unmounted =
            || !fs::read_to_string("/proc/self/mountinfo").unwrap().contains(b.dir.path().to_str().unwrap());
        common::wait_for(Duration::from_secs(20), unmounted);
        assert!(rows(&b).is_empty(), "an unfinished run has a result");
    }
    assert!(Path::new(&b.repo()).join("drafts/.runs").exists());
    b.ok(&["test", "rm", "hang"]);
    b.ok(&["test", "add", "fine", "--model", "base", "--", "true"]);
    b.ok(&["test", "run"]);
    nothing_is_left(&b);
}
