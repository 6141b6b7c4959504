//! Removals undone, tags, models renamed, patterns; all of it in the journal alone.

mod common;

use std::fs;

use common::{Bench, Noise};
use serde_json::Value;

/// `a@v1` to `a@v4` and `x/b@v1`, a file each.
fn repo() -> Bench {
    let b = Bench::new();
    let mut noise = Noise(5);
    for (model, n) in [("a", 4), ("x/b", 1)] {
        for _ in 0..n {
            let dir = b.path("in/m");
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("w.bin"), noise.bytes(3000)).unwrap();
            b.ok(&["import", dir.to_str().unwrap(), "--as", model]);
        }
    }
    b
}

fn labels(v: &Value) -> Vec<String> {
    let of = |h: &Value| format!("{}@{}", h["model"].as_str().unwrap(), h["version"].as_str().unwrap());
    v.as_array().unwrap().iter().map(of).collect()
}

fn living(b: &Bench) -> Vec<String> {
    let mut found = labels(&b.json(&["ls"])["versions"]);
    found.sort();
    found
}

#[test]
fn a_removal_is_undone_until_gc() {
    let b = repo();
    let all = b.ok(&["ls", "--json"]);
    assert!(b.fails(&["undo"]).contains("no removal"));
    b.ok(&["rm", "a@v1", "a@v2"]);
    b.ok(&["rm", "a@v3"]);
    assert_eq!(labels(&b.json(&["undo"])["restored"]), ["a@v3"]);
    assert_eq!(labels(&b.json(&["undo"])["restored"]), ["a@v1", "a@v2"]);
    assert_eq!(b.ok(&["ls", "--json"]), all);
    b.ok(&["fsck", "--rebuild"]);
    assert_eq!(b.ok(&["ls", "--json"]), all);
    b.ok(&["rm", "a@v2"]);
    b.ok(&["gc", "--grace", "1h"]);
    b.ok(&["undo"]);
    b.ok(&["rm", "a@v2"]);
    b.ok(&["gc"]);
    assert!(b.fails(&["undo"]).contains("gc freed it"));
    assert_eq!(b.json(&["fsck"])["ok"], true);
}

#[test]
fn tags_move_and_hold_what_they_name() {
    let b = repo();
    b.ok(&["tag", "a@v2", "prod"]);
    assert_eq!(b.json(&["show", "a@prod"])["version"], "v2");
    assert_eq!(b.json(&["show", "a@v2"])["tags"], serde_json::json!(["prod"]));
    assert!(b.fails(&["rm", "a@v2"]).contains("mgit tag --delete a@prod"));
    assert!(b.fails(&["tag", "a@v2", "v3"]).contains("is or was a version"));
    assert!(b.fails(&["import", b.path("in/m").to_str().unwrap(), "--as", "a@prod"]).contains("tag"));
    b.ok(&["rm", "a*@*"]);
    assert_eq!(living(&b), ["a@v2", "x/b@v1"]);
    b.ok(&["undo"]);
    assert_eq!(labels(&b.json(&["rm", "a", "x/*", "--keep-last", "1"])["removed"]), ["a@v1", "a@v3"]);
    b.ok(&["tag", "a@v4", "prod"]);
    b.ok(&["fsck", "--rebuild"]);
    assert_eq!(b.json(&["tag", "a"])["tags"][0]["version"]["version"], "v4");
    b.ok(&["rm", "a@v2"]);
    b.ok(&["gc"]);
    b.ok(&["tag", "--delete", "a@prod"]);
    assert!(b.fails(&["show", "a@prod"]).contains("no version"));
    assert!(b.fails(&["tag", "--delete", "a@prod"]).contains("no tag"));
    assert!(b.fails(&["rm", "zzz*"]).contains("no version matches"));
}

#[test]
fn a_model_takes_another_name() {
    let b = repo();
    b.ok(&["tag", "a@v2", "prod"]);
    b.ok(&["link", "x/b", "a@v1", "--relation", "distill"]);
    b.ok(&["rm", "a@v3"]);
    let id = b.json(&["show", "a@v2"])["id"].clone();
    assert!(b.fails(&["mv", "a", "x/b"]).contains("already"));
    assert!(b.fails(&["mv", "zzz", "y"]).contains("no model"));
    b.ok(&["mv", "a", "acme/new"]);
    for _ in 0..2 {
        assert_eq!(b.json(&["show", "acme/new@prod"])["id"], id);
        assert_eq!(b.json(&["show", "x/b"])["parents"][0]["model"], "acme/new");
        assert!(b.fails(&["show", "a"]).contains("no version"));
        assert!(b.fails(&["import", b.path("in/m").to_str().unwrap(), "--as", "acme/new@v3"]).contains("removed"));
        b.ok(&["fsck", "--rebuild"]);
    }
    b.ok(&["undo"]);
    assert_eq!(b.json(&["show", "acme/new@v3"])["previous"]["version"], "v2");
    b.ok(&["import", b.path("in/m").to_str().unwrap(), "--as", "a"]);
    b.ok(&["export", "acme/new@v2", b.path("out").to_str().unwrap()]);
}

#[test]
fn the_mount_follows() {
    let b = repo();
    let Some(m) = b.mount(&[]) else { return };
    let models = m.at.join("models");
    let names = |model: &str| {
        let mut names: Vec<_> =
            fs::read_dir(models.join(model)).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names("a"), ["latest", "v1", "v2", "v3", "v4"]);
    b.ok(&["tag", "a@v2", "prod"]);
    let soon = std::time::Duration::from_secs(5);
    common::wait_for(soon, || fs::read_link(models.join("a/prod")).is_ok_and(|l| l.to_str() == Some("v2")));
    assert_eq!(names("a"), ["latest", "prod", "v1", "v2", "v3", "v4"]);
    assert!(fs::read(models.join("a/prod/w.bin")).unwrap() == fs::read(models.join("a/v2/w.bin")).unwrap());
    b.ok(&["tag", "a@v1", "prod"]);
    common::wait_for(soon, || fs::read_link(models.join("a/prod")).is_ok_and(|l| l.to_str() == Some("v1")));
    b.ok(&["rm", "a@v4"]);
    common::wait_for(soon, || fs::read_link(models.join("a/latest")).is_ok_and(|l| l.to_str() == Some("v3")));
    b.ok(&["undo"]);
    common::wait_for(soon, || models.join("a/v4/w.bin").exists());
    b.ok(&["mv", "a", "z"]);
    common::wait_for(soon, || models.join("z/prod/w.bin").exists() && !models.join("a").exists());
    assert_eq!(names("z"), ["latest", "prod", "v1", "v2", "v3", "v4"]);
}
