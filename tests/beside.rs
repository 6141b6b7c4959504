//! Commands of many processes at once, without a daemon and with one: whoever reads meets no trace of what others import,
//! remove, free and encode anew meanwhile. `MGIT_TEST_MINUTES=1` for longer than some seconds.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use common::{Bench, Over, Tensor, base_tensors, fuse_is_there, safetensors, tuned_tensors, write_model};

struct Beside<'a> {
    b: &'a Bench,
    base: &'a [Tensor],
    over: &'a AtomicBool,
    done: Mutex<BTreeMap<String, usize>>,
}

impl Beside<'_> {
    /// Works until it is over for all: one that fails ends the others.
    fn keep(&self, mut work: impl FnMut(u64)) {
        let _over = Over(self.over);
        (0..).take_while(|_| !self.over.load(SeqCst)).for_each(&mut work);
    }

    /// A command that must go well, or find no such version where that `may_lack`.
    fn ask(&self, args: &[&str], may_lack: bool) {
        let ran = self.b.run(args);
        let lacks = may_lack && ran.code == 1 && ran.err.contains("no version");
        assert!(ran.code == 0 || lacks, "mgit {args:?}: {}{}", ran.out, ran.err);
        *self
            .done
            .lock()
            .unwrap()
            .entry(format!("{}{}", args[0], if lacks { " too early" } else { "" }))
            .or_default() += 1;
    }

    /// Imports a version, and asks for it all the while: it is not there, or whole.
    fn import(&self, who: &str, n: u64) {
        let (dir, out, name) = (self.b.path("in").join(who), self.b.path(&format!("out-{who}")), format!("{who}{n}"));
        let tensors = tuned_tensors(self.base, n);
        write_model(&dir, &tensors);
        let (from, to) = (dir.to_str().unwrap(), out.to_str().unwrap());
        let asked: [&[&str]; 5] = [
            &["show", &name],
            &["verify", from, &name],
            &["export", &name, to],
            &["diff", "base", &name],
            &["log", &name],
        ];
        let mut import = self.b.command(&["import", from, "--as", &name]).stdout(Stdio::null()).spawn().unwrap();
        let mut asked = asked.iter().cycle().skip(n as usize);
        while import.try_wait().unwrap().is_none() {
            let _ = fs::remove_dir_all(&out);
            self.ask(asked.next().unwrap(), true);
        }
        assert!(import.wait().unwrap().success(), "the import of {name}");
        let _ = fs::remove_dir_all(&out);
        self.ask(&["export", &name, to], false);
        assert!(fs::read(out.join("model.safetensors")).unwrap() == safetensors(&tensors), "{name}");
        if n.is_multiple_of(2) {
            self.ask(&["rm", &name], false);
        }
    }

    fn tidy(&self, n: u64) {
        self.ask(&[if n % 4 == 3 { "repack" } else { "gc" }], false);
    }

    fn check(&self, n: u64) {
        let base = self.b.path("in/base");
        let asked: [&[&str]; 6] = [
            &["fsck", "--quick"],
            &["fsck"],
            &["verify", base.to_str().unwrap(), "base"],
            &["ls"],
            &["stats"],
            &["log", "--graph"],
        ];
        self.ask(asked[n as usize % asked.len()], false);
    }

    fn run(&self, time: Duration) {
        let start = Instant::now();
        std::thread::scope(|s| {
            s.spawn(|| self.keep(|n| self.import("a", n)));
            s.spawn(|| self.keep(|n| self.import("b", 1000 + n)));
            s.spawn(|| self.keep(|n| self.tidy(n)));
            s.spawn(|| self.keep(|n| self.check(n)));
            let _over = Over(self.over);
            while start.elapsed() < time && !self.over.load(SeqCst) {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        println!("{:?}", self.done.lock().unwrap());
        self.b.ok(&["fsck"]);
    }
}

/// For how long, `mounted` or not.
fn run(mounted: bool) {
    let minutes = std::env::var("MGIT_TEST_MINUTES").ok().map(|m| m.parse::<u64>().expect("a number of minutes"));
    let time = minutes.map_or(Duration::from_secs(4), |m| Duration::from_secs(60 * m));
    let (b, base) = (Bench::new(), base_tensors(7, 1));
    write_model(&b.path("in/base"), &base);
    b.ok(&["import", b.path("in/base").to_str().unwrap()]);
    let _mount = if mounted { b.mount(&[]) } else { None };
    Beside { b: &b, base: &base, over: &AtomicBool::new(false), done: Mutex::default() }.run(time);
}

#[test]
fn without_a_daemon_readers_meet_no_trace_of_others() {
    run(false);
}

#[test]
fn with_a_daemon_readers_meet_no_trace_of_others() {
    if fuse_is_there() {
        run(true);
    }
}
