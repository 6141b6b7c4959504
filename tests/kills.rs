//! `kill -9` at random moments of imports, removals, gc and repack: what was there is there, whole, and goes on.
//! `MGIT_TEST_ROUNDS=N` for more rounds.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use common::{Bench, Noise, Tensor, base_tensors, tuned_tensors, write_model};

const ROUNDS: usize = 24;

fn labels(b: &Bench) -> Vec<String> {
    let all = b.json(&["ls"]);
    let label = |v: &serde_json::Value| format!("{}@{}", v["model"].as_str().unwrap(), v["version"].as_str().unwrap());
    let mut found: Vec<String> = all["versions"].as_array().unwrap().iter().map(label).collect();
    found.sort();
    found
}

/// Each a little further.
fn inputs(b: &Bench) -> usize {
    let mut at: Vec<Tensor> = base_tensors(7, 1);
    for n in 0..4 {
        write_model(&b.path(&format!("in/{n}")), &at);
        fs::write(b.path(&format!("in/{n}/own.bin")), Noise(50 + n).bytes(300_000)).unwrap();
        at = tuned_tensors(&at, 100 + n);
    }
    4
}

#[test]
#[ignore = "has not been run yet"]
fn nothing_is_lost_by_kill_9() {
    let b = Bench::new();
    let n = inputs(&b);
    let mut noise = Noise(0xDEAD);
    let mut of: BTreeMap<String, usize> = BTreeMap::new();
    let rounds = std::env::var("MGIT_TEST_ROUNDS").map_or(ROUNDS, |r| r.parse().expect("MGIT_TEST_ROUNDS is a number"));
    let mut killed = 0;
    for round in 0..rounds {
        let living: Vec<String> = of.keys().cloned().collect();
        let pick = |noise: &mut Noise| living[noise.next() as usize % living.len()].clone();
        let (mut after, command) = (of.clone(), noise.next() >> 20);
        let (name, input) = (format!("m{round}@v1"), (noise.next() >> 20) as usize % n);
        let path = b.path(&format!("in/{input}"));
        let args: Vec<String> = match command % 5 {
            _ if living.len() < 2 => {
                after.insert(name.clone(), input);
                ["import", path.to_str().unwrap(), "--as", &name, "--no-parent"].map(str::to_owned).to_vec()
            }
            0 | 1 => {
                after.insert(name.clone(), input);
                let parent = pick(&mut noise);
                ["import", path.to_str().unwrap(), "--as", &name, "--parent", &parent].map(str::to_owned).to_vec()
            }
            2 => {
                let gone = pick(&mut noise);
                after.remove(&gone);
                vec!["rm".to_owned(), gone]
            }
            3 => vec!["gc".to_owned()],
            _ => vec!["repack".to_owned()],
        };
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut child = b.command(&args).stdout(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis((noise.next() >> 20) % 400));
        let ended = child.try_wait().unwrap().is_some();
        child.kill().unwrap();
        child.wait().unwrap();
        killed += !ended as usize;
        let found = labels(&b);
        let keys = |w: &BTreeMap<String, usize>| w.keys().cloned().collect::<Vec<_>>();
        assert!(found == keys(&of) || found == keys(&after), "round {round}, {args:?}: {found:?}");
        if found == keys(&after) {
            of = after;
        }
        assert_eq!(b.json(&["fsck"])["ok"], true, "round {round}, {args:?}");
        for (name, input) in &of {
            if (noise.next() >> 20).is_multiple_of(4) {
                b.ok(&["verify", b.path(&format!("in/{input}")).to_str().unwrap(), name]);
            }
        }
    }
    for (name, input) in &of {
        b.ok(&["verify", b.path(&format!("in/{input}")).to_str().unwrap(), name]);
    }
    b.ok(&["gc"]);
    let left = fs::read_dir(b.repo().join("packs")).unwrap().map(|e| e.unwrap().path());
    assert!(left.into_iter().all(|p: std::path::PathBuf| p.extension().is_none_or(|e| e != "tmp")));
    assert!(Path::new(&b.repo()).exists());
    println!("{rounds} rounds, {killed} processes killed");
    assert!(killed * 4 > rounds, "{killed} of {rounds} were still running");
}
