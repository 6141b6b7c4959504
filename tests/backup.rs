//! A backup by plain copies, in the order that the README names, while the repository is written to: it opens, it is sound,
//! and it holds all that was acknowledged before it began.

mod common;

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Bench, Over, base_tensors, tuned_tensors, write_model};

/// Copies a file, or a directory with all in it. What vanishes meanwhile was never finished.
fn copy(from: &Path, to: &Path) {
    let found = match fs::symlink_metadata(from) {
        Err(e) if e.kind() == ErrorKind::NotFound => return,
        found => found.unwrap(),
    };
    if found.is_file() {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).map_or_else(|e| assert_eq!(e.kind(), ErrorKind::NotFound), drop);
        return;
    }
    fs::create_dir_all(to).unwrap();
    let entries = fs::read_dir(from).unwrap().map(|e| e.unwrap().file_name());
    entries.for_each(|name| copy(&from.join(&name), &to.join(&name)));
}

#[test]
fn a_plain_copy_in_the_right_order_is_a_backup() {
    let b = Bench::new();
    let base = base_tensors(7, 1);
    write_model(&b.path("in/base"), &base);
    write_model(&b.path("in/tuned"), &tuned_tensors(&base, 8));
    let (base, tuned) = (b.path("in/base"), b.path("in/tuned"));
    let (base, tuned) = (base.to_str().unwrap(), tuned.to_str().unwrap());
    b.ok(&["import", base]);
    b.ok(&["import", tuned, "--parent", "base"]);
    fs::write(b.path("in/make.sh"), "echo").unwrap();
    let script = b.path("in/make.sh");
    let script = script.to_str().unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            for n in 0.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                fs::write(script, format!("echo {n}")).unwrap();
                b.ok(&["import", tuned, "--as", &format!("more{n}"), "--parent", "base"]);
                b.ok(&["recipe", "set", &format!("more{n}"), "--file", script, "--", "sh", script]);
                b.ok(&["rm", &format!("more{n}")]);
            }
        });
        let _over = Over(&over);
        for n in 0..12 {
            let to = b.path(&format!("backup{n}"));
            for part in ["journal/000001.log", "journal/files", "packs", "format.json"] {
                if b.repo().join(part).exists() {
                    copy(&b.repo().join(part), &to.join(part));
                }
            }
            let of = |args: &[&str]| b.ok(&[&["--repo", to.to_str().unwrap()], args].concat());
            of(&["fsck"]);
            of(&["verify", base, "base"]);
            of(&["verify", tuned, "tuned"]);
        }
    });
}
