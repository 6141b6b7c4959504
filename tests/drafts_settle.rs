//! Settling: a draft that is complete and left alone becomes a version, which may still be written again and removed.

mod common;

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::time::Duration;

use common::{Bench, Mount, base_tensors, safetensors, wait_for, write_model};

const LONG: Duration = Duration::from_secs(60);

fn settling(b: &Bench) -> Option<Mount<'_>> {
    b.mount(&["--settle", "1"])
}

fn id(b: &Bench, name: &str) -> Option<String> {
    let ran = b.run(&["show", name, "--json"]);
    (ran.code == 0).then(|| serde_json::from_str::<serde_json::Value>(&ran.out).unwrap()["id"].to_string())
}

fn drafts(b: &Bench) -> usize {
    b.json(&["ls", "--drafts"])["drafts"].as_array().unwrap().len()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_training_run_saves_rewrites_and_rotates() {
    let b = Bench::new();
    let Some(m) = settling(&b) else { return };
    let run = m.at.join("models/run");
    // Saved under a temporary name and renamed, beside logs and loose files, as a trainer does.
    for step in 1..=3 {
        let (tmp, done) = (run.join(format!("tmp-checkpoint-{step}")), run.join(format!("checkpoint-{step}")));
        write_model(&tmp, &base_tensors(step, 2));
        fs::write(tmp.join("optimizer.pt"), vec![7; 1000]).unwrap();
        fs::rename(&tmp, &done).unwrap();
        fs::create_dir_all(run.join("runs/now")).unwrap();
        fs::write(run.join("runs/now/events"), format!("{step}")).unwrap();
        let name = format!("run@checkpoint-{step}");
        wait_for(LONG, || id(&b, &name).is_some());
    }
    wait_for(LONG, || fs::read_link(run.join("latest")).is_ok_and(|l| l == Path::new("checkpoint-3")));
    fs::write(run.join("model.safetensors"), safetensors(&base_tensors(3, 2))).unwrap();
    // Rotation.
    fs::remove_dir_all(run.join("checkpoint-1")).unwrap();
    assert_eq!(id(&b, "run@checkpoint-1"), None);
    assert_eq!(names(&run), ["checkpoint-2", "checkpoint-3", "latest", "model.safetensors", "runs"]);
    // Written again, in place and by a new file: a draft, then a version of the same name.
    let (before, reader) = (id(&b, "run@checkpoint-2"), fs::File::open(run.join("checkpoint-2/config.json")).unwrap());
    let mut config = OpenOptions::new().append(true).open(run.join("checkpoint-2/config.json")).unwrap();
    std::io::Write::write_all(&mut config, b"\n").unwrap();
    fs::write(run.join("checkpoint-2/trainer_state.json"), b"{}").unwrap();
    drop(config);
    assert_eq!(fs::read(run.join("checkpoint-2/config.json")).unwrap().last(), Some(&b'\n'));
    let old = std::io::read_to_string(reader).unwrap();
    assert!(!old.ends_with('\n'), "who had it open reads what it opened");
    wait_for(LONG, || id(&b, "run@checkpoint-2").is_some_and(|now| Some(now) != before));
    wait_for(LONG, || names(&run.join("checkpoint-2")).contains(&"trainer_state.json".to_owned()));
    wait_for(LONG, || drafts(&b) == 2); // the loose file and runs/
    // Removed again, and made again.
    fs::remove_dir_all(run.join("checkpoint-3")).unwrap();
    write_model(&run.join("checkpoint-3"), &base_tensors(9, 2));
    wait_for(LONG, || id(&b, "run@checkpoint-3").is_some());
    assert_eq!(b.json(&["fsck"])["ok"], true);
    // Sealed, it is final.
    b.ok(&["seal", run.join("checkpoint-3").to_str().unwrap()]);
    let refused = fs::remove_dir_all(run.join("checkpoint-3")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    assert!(b.fails(&["seal", "run@checkpoint-3"]).contains("sealed already"));
    drop(m);
    let shown: Vec<_> = b.json(&["ls", "run"])["versions"].as_array().unwrap().clone();
    assert_eq!(shown.len(), 2, "{shown:?}");
    fs::remove_dir_all(b.repo().join("catalog")).unwrap();
    b.ok(&["fsck", "--rebuild"]);
    assert_eq!(b.json(&["ls", "run"])["versions"].as_array().unwrap(), &shown);
}

#[test]
fn what_is_not_complete_does_not_settle() {
    let b = Bench::new();
    let Some(m) = settling(&b) else { return };
    let run = m.at.join("models/run");
    let whole = safetensors(&base_tensors(1, 1));
    // Half a file, a shard without its sibling, one open for writing, a work area; then a whole one.
    fs::create_dir_all(run.join("half")).unwrap();
    fs::write(run.join("half/model.safetensors"), &whole[..whole.len() - 1]).unwrap();
    fs::create_dir_all(run.join("shard")).unwrap();
    fs::write(run.join("shard/model-00001-of-00002.safetensors"), &whole).unwrap();
    fs::write(run.join("shard/model.safetensors.index.json"), b"{}").unwrap();
    write_model(&run.join("open"), &base_tensors(2, 1));
    let writer = OpenOptions::new().write(true).open(run.join("open/config.json")).unwrap();
    fs::create_dir_all(run.join("runs")).unwrap();
    fs::write(run.join("runs/log"), b"x").unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    write_model(&run.join("whole"), &base_tensors(3, 1));
    wait_for(LONG, || id(&b, "run@whole").is_some());
    assert_eq!(drafts(&b), 4);
    drop(writer);
    fs::write(run.join("shard/model-00002-of-00002.safetensors"), &whole).unwrap();
    OpenOptions::new().append(true).open(run.join("half/model.safetensors")).unwrap();
    let rest = whole[whole.len() - 1..].to_vec();
    std::io::Write::write_all(
        &mut OpenOptions::new().append(true).open(run.join("half/model.safetensors")).unwrap(),
        &rest,
    )
    .unwrap();
    for name in ["run@half", "run@shard", "run@open"] {
        wait_for(LONG, || id(&b, name).is_some());
    }
    wait_for(LONG, || drafts(&b) == 1);
    assert_eq!(fs::read(run.join("half/model.safetensors")).unwrap(), whole);
}

#[test]
fn a_settled_version_moves_and_comes_back_unchanged() {
    let b = Bench::new();
    let Some(m) = settling(&b) else { return };
    let run = m.at.join("models/run");
    write_model(&run.join("a"), &base_tensors(1, 1));
    wait_for(LONG, || id(&b, "run@a").is_some());
    let was = id(&b, "run@a");
    // Opened for writing and left as it was: the same version again.
    drop(OpenOptions::new().write(true).open(run.join("a/config.json")).unwrap());
    assert_eq!(drafts(&b), 1);
    wait_for(LONG, || drafts(&b) == 0);
    assert_eq!(id(&b, "run@a"), was);
    // Discarded, what was written is gone.
    fs::write(run.join("a/config.json"), b"[]").unwrap();
    b.ok(&["discard", run.join("a").to_str().unwrap()]);
    wait_for(LONG, || fs::read(run.join("a/config.json")).is_ok_and(|c| c != b"[]"));
    assert_eq!(id(&b, "run@a"), was);
    fs::rename(run.join("a"), run.join("b")).unwrap();
    assert_eq!((id(&b, "run@a"), run.join("a").exists()), (None, false));
    wait_for(LONG, || id(&b, "run@b").is_some());
    assert_eq!(b.json(&["fsck"])["ok"], true);
}
