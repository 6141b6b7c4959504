//! Recipes, the update cascade, bisecting and staleness, with real commands on real mounts: on a base with nine tasks of ten
//! versions, killed at every step, and with hostile recipes.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use common::{Bench, Noise, Tensor, fuse_is_there, wait_for, write_model};
use serde_json::Value;

/// A model of one small tensor.
fn small(dir: &Path, seed: u64) {
    let mut noise = Noise(2 * seed + 1);
    let values: Vec<f32> = (0..64).map(|_| noise.normal()).collect();
    write_model(dir, &[Tensor::f32("w", &[64], values.into_iter())]);
}

/// Imports a small model of its own content.
fn import(b: &Bench, seed: u64, name: &str, more: &[&str]) {
    let dir = b.path("in").join(format!("m{seed}"));
    small(&dir, seed);
    b.ok(&[&["import", dir.to_str().unwrap(), "--as", name], more].concat());
}

fn script(b: &Bench, name: &str, text: &str) -> String {
    let path = b.path(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A recipe that says in `from.txt` what it was made from, and that it ran in the log.
fn recipe(b: &Bench, more: &str) -> String {
    let log = b.path("log").to_str().unwrap().to_owned();
    let text = format!(
        "{more}\ncp \"$MGIT_PREVIOUS\"/*.* \"$MGIT_OUT\"\n\
         for p in $(echo \"$MGIT_PARENTS\" | tr : ' '); do echo $(basename $(dirname $p))@$(basename $p); done > $MGIT_OUT/from.txt\n\
         echo $MGIT_MODEL >> {log}"
    );
    script(b, "recipe.sh", &text)
}

fn set_recipe(b: &Bench, model: &str, recipe: &str) {
    b.ok(&["recipe", "set", model, "--file", recipe, "--", recipe]);
}

fn ran(b: &Bench) -> Vec<String> {
    let mut lines: Vec<String> =
        fs::read_to_string(b.path("log")).unwrap_or_default().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// What a version says that it was made from.
fn from(b: &Bench, version: &str) -> String {
    let out = b.path("out");
    let _ = fs::remove_dir_all(&out);
    b.ok(&["export", version, out.to_str().unwrap()]);
    fs::read_to_string(out.join("from.txt")).unwrap().trim().replace('\n', " ")
}

fn states(value: &Value) -> Vec<(String, String)> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    value["steps"].as_array().unwrap().iter().map(|s| (text(&s["model"]), text(&s["state"]))).collect()
}

fn unmounted(b: &Bench) {
    let here = b.dir.path().to_str().unwrap().to_owned();
    wait_for(Duration::from_secs(20), || !fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&here));
    wait_for(Duration::from_secs(20), || {
        !fs::read_dir(b.path("run/mgit"))
            .is_ok_and(|d| d.flatten().any(|e| e.file_name().to_string_lossy().ends_with(".sock")))
    });
}

#[test]
fn nine_tasks_of_ten_versions_are_each_made_again_once() {
    if !fuse_is_there() {
        return;
    }
    let b = Bench::new();
    import(&b, 1, "base", &["--no-parent"]);
    for task in 0..9u64 {
        for v in 0..10 {
            import(&b, 10 + task * 10 + v, &format!("task{task}"), &["--parent", "base@v1", "--relation", "finetune"]);
        }
    }
    import(&b, 2, "base", &["--parent", "base@v1"]);
    let recipe = recipe(&b, "test -s $MGIT_PARENTS/model.safetensors || exit 1");
    (0..9).for_each(|t| set_recipe(&b, &format!("task{t}"), &recipe));
    fs::remove_file(&recipe).unwrap(); // its content was kept
    let stale = b.json(&["ls", "--stale"]);
    assert_eq!(stale["versions"].as_array().unwrap().len(), 9, "{stale}");
    assert!(stale["versions"].as_array().unwrap().iter().all(|v| v["version"] == "v10"), "{stale}");
    let plan = b.json(&["update", "base@v1", "base@v2", "--dry-run"]);
    assert_eq!(states(&plan).len(), 9, "{plan}");
    assert!(ran(&b).is_empty(), "a dry run ran");
    b.ok(&["update", "base@v1", "base@v2", "--jobs", "3"]);
    assert_eq!(ran(&b), (0..9).map(|t| format!("task{t}")).collect::<Vec<_>>());
    for task in 0..9 {
        let show = b.json(&["show", &format!("task{task}")]);
        assert_eq!((&show["version"], &show["previous"]["version"]), (&"v11".into(), &"v10".into()));
        let parents = show["parents"].as_array().unwrap();
        assert_eq!(
            (parents.len(), &parents[0]["version"], &parents[0]["relation"]),
            (1, &"v2".into(), &"finetune".into())
        );
    }
    assert_eq!(from(&b, "task3"), "base@v2");
    assert_eq!(b.json(&["ls", "--stale"])["versions"].as_array().unwrap().len(), 0);
    assert!(states(&b.json(&["update", "base@v1", "base@v2", "--dry-run"])).is_empty(), "there is nothing left to do");
    let before = (b.ok(&["update", "--status", "--json"]), b.ok(&["recipe", "show", "task4", "--json"]));
    fs::remove_dir_all(b.repo().join("catalog")).unwrap();
    assert_eq!(b.json(&["fsck", "--rebuild"])["ok"], true);
    assert_eq!((b.ok(&["update", "--status", "--json"]), b.ok(&["recipe", "show", "task4", "--json"])), before);
    let Some(m) = b.mount(&[]) else { return };
    let page: Value = serde_json::from_str(&fs::read_to_string(m.at.join("lineage/update.json")).unwrap()).unwrap();
    assert_eq!(page, serde_json::from_str::<Value>(&before.0).unwrap());
}

/// base -> a -> c, base -> b -> c, c -> d; base@v2; e without a recipe.
fn diamond(more: &str) -> Option<Bench> {
    if !fuse_is_there() {
        return None;
    }
    let b = Bench::new();
    import(&b, 1, "base", &["--no-parent"]);
    import(&b, 2, "acme/a", &["--parent", "base"]);
    import(&b, 3, "b", &["--parent", "base"]);
    import(&b, 4, "c", &["--parent", "acme/a", "--parent", "b", "--relation", "merge"]);
    import(&b, 5, "d", &["--parent", "c"]);
    import(&b, 6, "e", &["--parent", "base"]);
    import(&b, 7, "base", &["--parent", "base@v1"]);
    let recipe = recipe(&b, more);
    ["acme/a", "b", "c", "d"].iter().for_each(|m| set_recipe(&b, m, &recipe));
    Some(b)
}

const ALL: [&str; 4] = ["acme/a", "b", "c", "d"];

fn whole(b: &Bench) {
    for model in ALL {
        let show = b.json(&["show", model]);
        assert_eq!((&show["version"], &show["previous"]["version"]), (&"v2".into(), &"v1".into()), "{model}");
    }
    assert_eq!((from(b, "c"), from(b, "d")), ("acme--a@v2 b@v2".to_owned(), "c@v2".to_owned()));
    assert_eq!(b.json(&["fsck"])["ok"], true);
}

#[test]
fn a_failure_holds_up_what_descends_from_it_and_nothing_else() {
    let Some(b) =
        diamond("test $MGIT_MODEL = b && ! test -e $(dirname $0)/../../../../../fixed && echo broken && exit 3")
    else {
        return;
    };
    let plan = b.json(&["update", "base@v1", "base@v2", "--dry-run"]);
    assert_eq!(plan["left"][0]["model"], "e");
    assert_eq!(plan["left"][0]["why"], "no recipe");
    let text = b.ok(&["update", "base@v1", "base@v2", "--dry-run"]);
    assert!(
        text.contains("base@v1 -> base@v2\n|-- acme/a@v1  from base@v2") && text.contains("    `-- d@v1  from c"),
        "{text}"
    );
    assert!(b.fails(&["update", "base@v2", "base@v1"]).contains("no later version"));
    assert!(b.fails(&["update", "--status"]).contains("no update yet"));
    let said = b.fails(&["update", "base@v1", "base@v2", "--jobs", "2"]);
    assert!(said.contains("1 of 4 failed"), "{said}");
    let status = b.json(&["update", "--status"]);
    let want = [("acme/a", "done"), ("b", "failed"), ("c", "waiting"), ("d", "waiting")];
    assert_eq!(states(&status), want.map(|(m, s)| (m.to_owned(), s.to_owned())));
    assert_eq!(status["steps"][1]["why"], "its recipe failed, exit 3: broken");
    fs::write(b.path("fixed"), "").unwrap();
    b.ok(&["update", "--continue"]);
    assert_eq!(ran(&b), ALL);
    whole(&b);
    b.ok(&["update", "--continue"]);
    assert_eq!(ran(&b), ALL, "what is done is done");
}

#[test]
fn limits_are_kept() {
    let Some(b) = diamond("") else { return };
    let plan = |more: &[&str]| {
        let plan = b.json(&[&["update", "base@v1", "base@v2", "--dry-run"], more].concat());
        states(&plan).into_iter().map(|s| s.0).collect::<Vec<_>>()
    };
    assert_eq!(plan(&["--only", "acme/*"]), ["acme/a"]);
    assert_eq!(plan(&["--skip", "b", "--skip", "d"]), ["acme/a", "c"]);
    assert_eq!(plan(&["--stop-at", "c"]), ["acme/a", "b", "c"]);
    b.ok(&["update", "base@v1", "base@v2", "--skip", "b", "--stop-at", "c"]);
    assert_eq!((from(&b, "c"), ran(&b)), ("acme--a@v2 b@v1".to_owned(), vec!["acme/a".to_owned(), "c".to_owned()]));
    assert_eq!(plan(&[]), ["b", "c", "d"], "what was left is planned");
}

#[test]
fn tests_and_flips_are_gates() {
    let Some(b) = diamond("") else { return };
    let say = "test -e $GATE/bad-$MGIT_MODEL && exit 1; ok=true; test $MGIT_MODEL@$MGIT_VERSION = b@v2 && ok=false; \
               echo \"{\\\"id\\\": 1, \\\"ok\\\": $ok}\" > $MGIT_EXAMPLES; test -s $MGIT_PATH/model.safetensors";
    let gate = b.path("gate");
    fs::create_dir(&gate).unwrap();
    fs::write(gate.join("bad-d"), "").unwrap();
    b.ok(&["test", "add", "fine", "--", "sh", "-c", &say.replace("$GATE", gate.to_str().unwrap())]);
    b.fails(&["update", "base@v1", "base@v2", "--max-negative-flips", "0"]);
    let status = b.json(&["update", "--status"]);
    assert_eq!(status["steps"][1]["why"], "test fine: 1 of 1 examples were right before and are wrong now", "{status}");
    assert_eq!(b.json(&["show", "b"])["version"], "v1", "what does not pass is not published");
    b.fails(&["update", "base@v1", "base@v2"]);
    let status = b.json(&["update", "--status"]);
    let want = [("b", "done"), ("c", "done"), ("d", "failed")];
    assert_eq!(states(&status), want.map(|(m, s)| (m.to_owned(), s.to_owned())));
    assert_eq!(status["steps"][2]["why"], "test fine failed, exit 1");
    fs::remove_file(gate.join("bad-d")).unwrap();
    b.ok(&["update", "--continue"]);
    let rows = b.json(&["test", "results", "c@v2"]);
    assert_eq!((&rows["results"][0]["result"], &rows["results"][0]["version"]), (&"pass".into(), &"v2".into()));
    assert_eq!(from(&b, "d"), "c@v2");
}

/// Runs an update that is killed as soon as the journal has grown `times` times.
fn killed(b: &Bench, args: &[&str], times: usize) -> bool {
    let journal = b.repo().join("journal/000001.log");
    let len = || fs::metadata(&journal).unwrap().len();
    let (mut last, mut grown) = (len(), 0);
    let mut run =
        b.command(args).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    loop {
        if run.try_wait().unwrap().is_some() {
            return false;
        }
        let now = len();
        grown += usize::from(now != last);
        last = now;
        if grown == times {
            run.kill().unwrap();
            run.wait().unwrap();
            unmounted(b);
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn killed_after_each_step_it_goes_on_and_makes_nothing_twice() {
    let Some(b) = diamond("sleep 0.3") else { return };
    let mut args: &[&str] = &["update", "base@v1", "base@v2"];
    let mut kills = 0;
    // The first write begins the update; each step then writes that it is built and that it is done. One write a life.
    while killed(&b, args, 1) {
        kills += 1;
        args = &["update", "--continue"];
        let models: Vec<String> = ran(&b);
        assert!(kills < 12 && models.len() <= kills, "{models:?}");
        assert!(b.json(&["fsck"])["ok"] == true);
    }
    assert!(kills >= 8, "only {kills} kills");
    assert_eq!(ran(&b), ALL, "something was made twice");
    whole(&b);
    // One without its lock was being removed when its process was killed; it goes when it is old enough.
    let runs = fs::read_dir(b.repo().join("drafts/.runs")).map_or(vec![], |d| d.flatten().collect());
    let left = runs.iter().filter(|d| d.path().join("lock").exists()).count();
    assert_eq!(left, 0, "directories of runs are left");
}

#[test]
fn killed_within_a_recipe_and_within_a_gate_it_goes_on() {
    let once = |at: &str| format!("test -e {at} || {{ touch {at}; kill -9 $PPID; sleep 60; }}");
    let Some(b) = diamond("") else { return };
    let (in_recipe, in_gate) = (b.path("in-recipe"), b.path("in-gate"));
    let recipe = recipe(&b, &format!("test $MGIT_MODEL != c || {}", once(in_recipe.to_str().unwrap())));
    ALL.iter().for_each(|m| set_recipe(&b, m, &recipe));
    let test = format!("test $MGIT_MODEL != b || {}", once(in_gate.to_str().unwrap()));
    b.ok(&["test", "add", "t", "--", "sh", "-c", &test]);
    assert_eq!(b.run(&["update", "base@v1", "base@v2"]).code, -1);
    unmounted(&b);
    assert_eq!(states(&b.json(&["update", "--status"]))[1].1, "built");
    assert_eq!(b.run(&["update", "--continue"]).code, -1);
    unmounted(&b);
    b.ok(&["update", "--continue"]);
    assert_eq!(ran(&b), ALL, "the one that was killed in its gate is not made again");
    whole(&b);
}

#[test]
fn hostile_recipes_are_bounded() {
    if !fuse_is_there() {
        return;
    }
    let b = Bench::new();
    import(&b, 1, "base", &["--no-parent"]);
    let recipes = [
        ("hang", "trap '' TERM; cp $MGIT_PREVIOUS/* $MGIT_OUT; sleep 500; sleep 500", "timed out after 2 s"),
        ("empty", "cp $MGIT_PREVIOUS/* /tmp/../$OUTSIDE; true", "put nothing into $MGIT_OUT"),
        ("killed", "kill -9 $$", "killed by signal 9"),
        ("vandal", "rm -rf $MGIT_PREVIOUS $MGIT_PARENTS; yes | head -c 9000000; exit 1", "exit 1"),
        ("gone", "rmdir $MGIT_OUT", ""),
        ("torn", "printf '\\377\\377\\377\\377\\377\\377\\377\\377{' > $MGIT_OUT/model.safetensors", ""),
    ];
    for (n, (model, text, _)) in recipes.iter().enumerate() {
        import(&b, 10 + n as u64, model, &["--parent", "base@v1"]);
        b.ok(&["recipe", "set", model, "--", "sh", "-c", &text.replace("$OUTSIDE", b.path("out").to_str().unwrap())]);
    }
    import(&b, 2, "base", &["--parent", "base@v1"]);
    fs::create_dir(b.path("out")).unwrap();
    b.fails(&["update", "base@v1", "base@v2", "--timeout", "2", "--jobs", "3"]);
    let status = b.json(&["update", "--status"]);
    for (n, (model, _, why)) in recipes.iter().enumerate() {
        let step = &status["steps"][n];
        assert_eq!(step["model"], *model);
        if *model != "torn" {
            assert!(step["state"] == "failed" && step["why"].as_str().unwrap().contains(why), "{step}");
            assert_eq!(b.json(&["show", model])["version"], "v1");
        }
    }
    assert_eq!(b.json(&["fsck"])["ok"], true);
    assert_eq!(fs::read_dir(b.repo().join("drafts/.runs")).unwrap().count(), 0);
}

#[test]
fn a_recipe_keeps_the_content_of_its_files_and_its_environment() {
    let Some(b) = diamond("") else { return };
    let dir = b.path("src");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("make.sh"), ". $(dirname $0)/lib/util.sh\nmake_it\n").unwrap();
    fs::create_dir(dir.join("lib")).unwrap();
    fs::write(
        dir.join("lib/util.sh"),
        "make_it() { cp $MGIT_PREVIOUS/*.* $MGIT_OUT; echo $LR > $MGIT_OUT/from.txt; }\n",
    )
    .unwrap();
    let mut set = b.command(&[
        "recipe",
        "set",
        "acme/a",
        "--file",
        "make.sh",
        "--file",
        "lib/util.sh",
        "--env",
        "LR",
        "--",
        "sh",
        "make.sh",
    ]);
    assert!(set.current_dir(&dir).env("LR", "3e-5").status().unwrap().success());
    fs::remove_dir_all(&dir).unwrap();
    let shown = b.json(&["recipe", "show", "acme/a"]);
    assert_eq!(
        (&shown["recipe"]["env"]["LR"], &shown["recipe"]["files"][1]["name"]),
        (&"3e-5".into(), &"lib/util.sh".into())
    );
    b.ok(&["update", "base@v1", "base@v2", "--only", "acme/a"]);
    assert_eq!(from(&b, "acme/a@v2"), "3e-5");
    assert_eq!(b.json(&["recipe", "show", "acme/a@v2"])["of"]["version"], "v2", "the new version has the recipe too");
    b.ok(&["recipe", "rm", "acme/a@v2"]);
    assert_eq!(b.json(&["recipe", "show", "acme/a@v2"])["of"]["version"], "v1");
    let file = fs::read_dir(b.repo().join("journal/files")).unwrap().next().unwrap().unwrap().path();
    fs::write(&file, "evil").unwrap();
    assert!(b.run(&["fsck"]).err.contains("of the recipe of"), "a changed file of a recipe is found");
    let import = b.path("in/m6");
    b.ok(&["import", import.to_str().unwrap(), "--as", "f", "--recipe", "sh -c 'echo \"x y\"'"]);
    assert_eq!(b.json(&["recipe", "show", "f"])["recipe"]["command"], serde_json::json!(["sh", "-c", "echo \"x y\""]));
}

#[test]
fn bisect_finds_the_first_that_fails() {
    if !fuse_is_there() {
        return;
    }
    let b = Bench::new();
    import(&b, 1, "up", &["--no-parent"]);
    import(&b, 2, "m", &["--parent", "up", "--relation", "finetune"]);
    (3..14).for_each(|n| import(&b, n, "m", &["--parent", "m"]));
    let from_v = |v: u64| format!("v=${{MGIT_VERSION#v}}; test $MGIT_MODEL = up || test $v -lt {v}");
    for v in [1, 5, 11, 12] {
        let name = format!("t{v}");
        b.ok(&["test", "add", &name, "--", "sh", "-c", &from_v(v)]);
        let found = b.json(&["bisect", &name, "m"]);
        assert_eq!(found["first_bad"]["version"], format!("v{v}"), "{found}");
        assert!(found["runs"].as_u64().unwrap() <= 5, "{found}");
        match v {
            1 => assert!(found["last_good"].is_null() && found["edge"].is_null(), "{found}"),
            _ => assert_eq!(found["edge"]["parent"]["version"], format!("v{}", v - 1), "{found}"),
        }
    }
    let again = b.json(&["bisect", "t5", "m"]);
    assert_eq!((&again["runs"], &again["first_bad"]["version"]), (&0.into(), &"v5".into()), "what is known is not run");
    let up = b.json(&["bisect", "t1", "m", "--from", "up"]);
    assert_eq!((&up["last_good"]["model"], &up["edge"]["relation"]), (&"up".into(), &"finetune".into()));
    let text = b.ok(&["bisect", "t5", "m"]);
    assert!(
        text.contains("t5 fails since m@v5") && text.contains("passes on m@v4") && text.contains("tensor"),
        "{text}"
    );
    let skip = format!("v=${{MGIT_VERSION#v}}; test $v = 6 && exit 125; test $v = 5 && exit 125; {}", from_v(7));
    b.ok(&["test", "add", "skips", "--", "sh", "-c", &skip]);
    let found = b.json(&["bisect", "skips", "m"]);
    assert_eq!((&found["first_bad"]["version"], &found["last_good"]["version"]), (&"v7".into(), &"v4".into()));
    assert_eq!(found["edge"]["skipped"].as_array().unwrap().len(), 2);
    assert!(b.fails(&["bisect", "t12", "m@v3"]).contains("passes on m@v3"));
    assert!(b.fails(&["bisect", "nosuch", "m"]).contains("no test"));
    assert!(b.fails(&["bisect", "t5", "up", "--from", "m"]).contains("does not come from"));
}
