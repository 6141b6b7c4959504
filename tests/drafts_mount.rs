//! Drafts through a real mount: everything that writes files works in one, a seal makes it a version, a crash loses
//! nothing of it.

mod common;

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{Bench, Mount, base_tensors, safetensors, tuned_tensors, wait_for, write_model};

/// A repository that nothing settles in, and its mount.
fn mounted(b: &Bench) -> Option<Mount<'_>> {
    b.mount(&["--settle", "0"])
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|e| e.raw_os_error())
}

fn sh(dir: &Path, script: &str) {
    let out = Command::new("sh").args(["-euc", script]).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Whether a program is there; what tests with it would show is said to be missing.
fn has(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        eprintln!("not run: no {program} here");
    }
    there
}

/// Every path below with its bytes, a symlink's followed.
fn tree(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let (mut out, mut queue) = (vec![], vec![dir.to_owned()]);
    while let Some(at) = queue.pop() {
        for path in fs::read_dir(at).unwrap().map(|e| e.unwrap().path()) {
            match path.is_dir() {
                true => queue.push(path),
                false => {
                    let bytes = fs::read(&path).unwrap();
                    out.push((path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned(), bytes));
                }
            }
        }
    }
    out.sort();
    out
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn log(b: &Bench) -> String {
    let dir = b.path("home/.local/state/mgit");
    fs::read_dir(dir).unwrap().map(|e| fs::read_to_string(e.unwrap().path()).unwrap()).collect()
}

#[test]
fn a_draft_becomes_a_version_by_seal() {
    let b = Bench::new();
    let base = base_tensors(7, 4);
    write_model(&b.path("in/base"), &base);
    write_model(&b.path("in/tuned"), &tuned_tensors(&base, 8));
    b.ok(&["import", b.path("in/base").to_str().unwrap()]);
    let Some(m) = mounted(&b) else { return };
    let model = m.at.join("models/acme--run");
    fs::create_dir(&model).unwrap();
    assert_eq!(errno(fs::create_dir(&model)), Some(libc::EEXIST));
    sh(&b.path("in"), &format!("cp -r tuned '{}'", model.join("v1").display()));
    let draft = model.join("v1");
    assert_eq!(tree(&draft), tree(&b.path("in/tuned")));
    let listed = &b.json(&["ls", "--drafts"])["drafts"][0];
    let bytes: usize = tree(&draft).iter().map(|f| f.1.len()).sum();
    assert_eq!((&listed["name"], &listed["bytes"], &listed["files"]), (&"v1".into(), &bytes.into(), &2.into()));
    assert_eq!(b.json(&["stats"])["draft_bytes"], bytes);
    assert!(b.fails(&["import", b.path("in/base").to_str().unwrap(), "--as", "acme/run@v1"]).contains("draft"));
    let reader = File::open(draft.join("model.safetensors")).unwrap();
    let sealed = b.json(&["seal", draft.to_str().unwrap()]);
    assert_eq!((&sealed["model"], &sealed["version"]), (&"acme/run".into(), &"v1".into()));
    assert_eq!(sealed["parents"][0]["model"], "base", "found by content");
    assert_eq!(tree(&draft), tree(&b.path("in/tuned")));
    assert_eq!(fs::read_link(model.join("latest")).unwrap(), Path::new("v1"));
    let (mut was, want) = (vec![], fs::read(b.path("in/tuned/model.safetensors")).unwrap());
    (&reader).read_to_end(&mut was).unwrap();
    assert!(was == want, "who had it open reads on");
    assert_eq!(b.json(&["stats"])["draft_bytes"], 0);
    for refused in [
        errno(fs::write(draft.join("model.safetensors"), b"x")),
        errno(fs::write(draft.join("new"), b"x")),
        errno(fs::remove_file(draft.join("config.json"))),
        errno(fs::rename(&draft, model.join("v2"))),
        errno(fs::remove_dir(&draft)),
        errno(fs::create_dir(draft.join("d"))),
    ] {
        assert_eq!(refused, Some(libc::EROFS));
    }
    assert!(log(&b).contains("mgit rm acme/run@v1"), "{}", log(&b));
    assert!(b.fails(&["seal", draft.to_str().unwrap()]).contains("sealed already"));
    assert!(b.fails(&["discard", draft.to_str().unwrap()]).contains("mgit rm"));
    b.ok(&["verify", b.path("in/tuned").to_str().unwrap(), "acme/run@v1"]);
    assert_eq!(b.json(&["fsck"])["ok"], true);
    b.ok(&["rm", "acme/run@v1"]);
    fs::create_dir(&draft).map(|()| panic!("the name of a sealed version is not used again")).unwrap_err();
}

#[test]
fn programs_that_write_just_work() {
    let b = Bench::new();
    let Some(m) = mounted(&b) else { return };
    let d = m.at.join("models/p/v1");
    fs::create_dir_all(&d).unwrap();
    let source = b.path("in/src");
    write_model(&source, &base_tensors(3, 2));
    fs::create_dir(source.join("sub")).unwrap();
    fs::write(source.join("sub/x"), b"12345").unwrap();
    let s = source.display();
    sh(&d, &format!("cp -r '{s}' cp && tar -C '{s}' -cf ../t.tar . && mkdir tar && tar -C tar -xf ../t.tar"));
    assert_eq!(tree(&d.join("cp")), tree(&source));
    assert_eq!(tree(&d.join("tar")), tree(&source));
    if has("rsync") {
        sh(&d, &format!("rsync -a '{s}/' rs/ && echo more >> '{s}/sub/x' && rsync -a '{s}/' rs/"));
        assert_eq!(tree(&d.join("rs")), tree(&source));
    }
    if has("git") {
        let git = "git -c user.name=a -c user.email=a@b -c init.defaultBranch=main";
        sh(&source, &format!("{git} init -q . && {git} add . && {git} commit -qm one"));
        sh(&d, &format!("git clone -q '{s}' clone && cd clone && git fsck --strict && git status --porcelain"));
        assert_eq!(fs::read(d.join("clone/sub/x")).unwrap(), fs::read(source.join("sub/x")).unwrap());
    }
    sh(&d, "printf 0123456789 > f && printf AB | dd of=f bs=1 seek=4 conv=notrunc 2>/dev/null");
    assert_eq!(fs::read(d.join("f")).unwrap(), b"0123AB6789");
    sh(&d, "truncate -s 3 f && truncate -s 6 f && printf end >> f");
    assert_eq!(fs::read(d.join("f")).unwrap(), b"012\0\0\0end");
    sh(&d, "printf new > .f.swp && mv .f.swp f && sed -i s/new/edited/ f");
    assert_eq!(fs::read(d.join("f")).unwrap(), b"edited");
    sh(&d, "mkdir a && mv a b && echo 1 > b/x && mv b/x y && ln y z && rm y && rmdir b");
    assert_eq!(fs::read(d.join("z")).unwrap(), b"1\n");
    sh(&d, "touch -d '2001-02-03 04:05:06.789Z' z && chmod 640 z");
    let meta = fs::metadata(d.join("z")).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec(), meta.mode() & 0o7777), (981_173_106, 789_000_000, 0o640));
    sh(&d, "rm -r cp tar rs clone 2>/dev/null || true; ls -A");
    assert!(!names(&d).contains(&"cp".to_owned()));
}

#[test]
fn positions_holes_mappings_and_appends() {
    let b = Bench::new();
    let Some(m) = mounted(&b) else { return };
    let d = m.at.join("models/p/v1");
    fs::create_dir_all(&d).unwrap();
    let path = d.join("f");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all_at(b"tail", 3 << 20).unwrap();
    file.write_all_at(b"head", 0).unwrap();
    let mut all = vec![0; (3 << 20) + 4];
    all[..4].copy_from_slice(b"head");
    all[3 << 20..].copy_from_slice(b"tail");
    assert!(fs::read(&path).unwrap() == all);
    assert!(fs::metadata(&path).unwrap().blocks() < 1000, "a hole takes no space");
    file.set_len(1 << 20).unwrap();
    file.seek(SeekFrom::End(0)).unwrap();
    file.write_all(b"!").unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), (1 << 20) + 1);
    file.sync_all().unwrap();
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"??").unwrap();
    let mut end = [0; 3];
    file.read_exact_at(&mut end, 1 << 20).unwrap();
    assert_eq!(&end, b"!??");
    {
        use std::os::fd::AsRawFd;
        // SAFETY: a fresh shared mapping of an open file of more bytes, unmapped before the end.
        unsafe {
            let at = libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            );
            assert_ne!(at, libc::MAP_FAILED);
            std::slice::from_raw_parts_mut(at.cast::<u8>(), 4096)[..6].copy_from_slice(b"mapped");
            libc::munmap(at, 4096);
        }
    }
    file.sync_all().unwrap();
    assert_eq!(&fs::read(&path).unwrap()[..6], b"mapped");
    fs::remove_file(&path).unwrap();
    let mut first = [0; 6];
    file.read_exact_at(&mut first, 0).unwrap();
    assert_eq!(&first, b"mapped", "open, though removed");
    assert_eq!(names(&d), Vec::<String>::new());
}

#[test]
fn what_is_refused() {
    let b = Bench::new();
    write_model(&b.path("in/base"), &base_tensors(7, 2));
    b.ok(&["import", b.path("in/base").to_str().unwrap()]);
    let Some(m) = mounted(&b) else { return };
    let models = m.at.join("models");
    let d = models.join("p/v1");
    fs::create_dir_all(d.join("sub")).unwrap();
    fs::write(d.join("f"), b"x").unwrap();
    for (target, at) in [("/etc/passwd", "l"), ("../../x", "l"), ("..", "l"), ("../../../x", "sub/l")] {
        assert_eq!(errno(symlink(target, d.join(at))), Some(libc::EPERM), "{target}");
    }
    symlink("../f", d.join("sub/l")).unwrap();
    assert_eq!(fs::read(d.join("sub/l")).unwrap(), b"x");
    assert_eq!(errno(fs::set_permissions(d.join("f"), PermissionsExt::from_mode(0o4755))), Some(libc::EPERM));
    let fifo = CString::new(d.join("fifo").to_str().unwrap()).unwrap();
    // SAFETY: the path ends in a NUL and outlives the calls.
    unsafe {
        assert_eq!(libc::mkfifo(fifo.as_ptr(), 0o600), -1);
        assert_eq!(libc::mknod(fifo.as_ptr(), libc::S_IFCHR | 0o600, 0x103), -1);
        let value = b"x";
        let set = |name: &str| {
            let (path, name) = (CString::new(d.to_str().unwrap()).unwrap(), CString::new(name).unwrap());
            libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), 1, 0)
        };
        assert_eq!(set("user.mine"), 0);
        assert_eq!((set("trusted.x"), set("user.mgit.id")), (-1, -1));
    }
    assert_eq!(errno(fs::create_dir(models.join("-bad"))), Some(libc::EINVAL));
    assert_eq!(errno(fs::write(models.join("file"), b"")), Some(libc::EROFS));
    assert_eq!(errno(fs::create_dir(m.at.join("x"))), Some(libc::EROFS));
    assert_eq!(errno(fs::write(m.at.join("lineage/x"), b"")), Some(libc::EROFS));
    assert_eq!(errno(fs::create_dir(models.join("p/latest"))), Some(libc::EPERM));
    assert_eq!(errno(fs::write(models.join("base/v1/config.json"), b"")), Some(libc::EROFS));
    assert_eq!(errno(fs::create_dir(models.join("base/v1"))), Some(libc::EEXIST));
    assert_eq!(errno(fs::remove_dir(models.join("base"))), Some(libc::ENOTEMPTY));
    assert_eq!(errno(fs::remove_dir(models.join("p"))), Some(libc::ENOTEMPTY));
    let exclusive = OpenOptions::new().write(true).custom_flags(libc::O_EXCL | libc::O_CREAT).open(d.join("f"));
    assert_eq!(errno(exclusive), Some(libc::EEXIST));
    assert_eq!(errno(fs::rename(d.join("f"), models.join("base/v1/f"))), Some(libc::EROFS));
    fs::create_dir(models.join("empty")).unwrap();
    fs::remove_dir(models.join("empty")).unwrap();
    assert!(!models.join("empty").exists());
}

#[test]
fn seals_by_touch_by_name_and_of_loose_files() {
    let b = Bench::new();
    let Some(m) = mounted(&b) else { return };
    let run = m.at.join("models/run");
    write_model(&run.join("a"), &base_tensors(1, 1));
    fs::write(run.join("a/.seal"), b"").unwrap();
    wait_for(Duration::from_secs(60), || b.json(&["ls"])["versions"][0]["version"] == "a");
    wait_for(Duration::from_secs(10), || names(&run.join("a")) == ["config.json", "model.safetensors"]);
    assert_eq!(errno(fs::write(run.join("a/config.json"), b"")), Some(libc::EROFS));

    write_model(&run.join("tmp"), &base_tensors(2, 1));
    let best = b.json(&["seal", run.join("tmp").to_str().unwrap(), "--as", "run@best"]);
    assert_eq!((&best["version"], &best["previous"]["version"]), (&"best".into(), &"a".into()));

    fs::write(run.join("model.safetensors"), safetensors(&base_tensors(4, 1))).unwrap();
    fs::write(run.join("config.json"), b"{}").unwrap();
    fs::create_dir(run.join("runs")).unwrap();
    fs::write(run.join("runs/events"), b"log").unwrap();
    b.ok(&["seal", run.to_str().unwrap(), "--as", "run@final"]);
    assert_eq!(names(&run), ["a", "best", "final", "latest", "runs"]);
    assert_eq!(fs::read(run.join("final/config.json")).unwrap(), b"{}");
    assert!(b.fails(&["seal", run.to_str().unwrap(), "--as", "run@x"]).contains("no loose files"));

    fs::create_dir(run.join("gone")).unwrap();
    fs::write(run.join("gone/x"), b"x").unwrap();
    b.ok(&["discard", run.join("gone").to_str().unwrap()]);
    wait_for(Duration::from_secs(10), || !run.join("gone").exists());

    let open = run.join("open");
    write_model(&open, &base_tensors(5, 1));
    let writer = OpenOptions::new().write(true).open(open.join("config.json")).unwrap();
    assert!(b.fails(&["seal", open.to_str().unwrap()]).contains("config.json is open for writing"));
    drop(writer);
    drop(m);
    b.ok(&["seal", "run@open"]);
    assert_eq!(b.json(&["show", "run"])["version"], "open", "without a mount too");
}

#[test]
fn a_parent_by_attribute() {
    let b = Bench::new();
    let base = base_tensors(7, 2);
    write_model(&b.path("in/base"), &base);
    b.ok(&["import", b.path("in/base").to_str().unwrap()]);
    let Some(m) = mounted(&b) else { return };
    let d = m.at.join("models/p/v1");
    write_model(&d, &base_tensors(99, 2));
    let set = |name: &str, value: &str| {
        let (path, name) = (CString::new(d.to_str().unwrap()).unwrap(), CString::new(name).unwrap());
        // SAFETY: all live through the call.
        unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) }
    };
    assert_eq!(set("user.mgit.parent", "no such@"), -1);
    assert_eq!((set("user.mgit.parent", "base@v1"), set("user.mgit.message", "by attribute")), (0, 0));
    b.ok(&["seal", d.to_str().unwrap()]);
    let show = b.json(&["show", "p"]);
    assert_eq!((&show["parents"][0]["model"], &show["message"]), (&"base".into(), &"by attribute".into()));
}

fn daemon(b: &Bench) -> i32 {
    let repo = b.repo().canonicalize().unwrap();
    let of = |pid: i32| fs::read(format!("/proc/{pid}/cmdline")).ok().map(|c| (pid, c));
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    let mounts = |c: &[u8]| c.windows(5).any(|w| w == b"mount") && c.windows(12).any(|w| w == b"--foreground");
    let ours = |pid: i32| {
        fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|e| e.split(|b| *b == 0).any(|v| v == format!("MGIT_REPO={}", repo.display()).as_bytes()))
    };
    pids.filter_map(of).find(|(pid, c)| mounts(c) && ours(*pid)).expect("a daemon").0
}

#[test]
fn a_sealed_draft_carries_a_recipe() {
    let b = Bench::new();
    let Some(m) = mounted(&b) else { return };
    let dir = m.at.join("models/run/v1");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("model.safetensors"), safetensors(&base_tensors(1, 1))).unwrap();
    let path = dir.to_str().unwrap();
    let bad = b.run(&["seal", path, "--recipe", "tune 'open"]);
    assert!(bad.code != 0 && dir.join("model.safetensors").exists());
    b.ok(&["seal", path, "--recipe", "tune 'my data' --lr 3e-5"]);
    assert_eq!(
        b.json(&["recipe", "show", "run@v1"])["recipe"]["command"],
        serde_json::json!(["tune", "my data", "--lr", "3e-5"])
    );
    assert!(b.fails(&["seal", path, "--recipe", "tune again"]).contains("sealed already"));
}

#[test]
fn a_killed_daemon_loses_nothing_that_was_written() {
    let b = Bench::new();
    let rounds = std::env::var("MGIT_TEST_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    let mut noise = common::Noise(11);
    let mut sealed: Vec<(String, Vec<u8>)> = vec![];
    for round in 0..rounds {
        let Some(m) = mounted(&b) else { return };
        let run = m.at.join("models/run");
        for (version, bytes) in &sealed {
            assert!(fs::read(run.join(version).join("model.safetensors")).unwrap() == *bytes, "{version}");
        }
        let pid = daemon(&b);
        let name = format!("c{round}");
        let dir = run.join(&name);
        let bytes = safetensors(&base_tensors(round + 1, 2));
        let delay = Duration::from_millis(noise.next() % 400);
        let killer = std::thread::spawn(move || {
            std::thread::sleep(delay);
            // SAFETY: plain numbers.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        });
        let synced = save_and_seal(&b, &dir, &bytes);
        killer.join().unwrap();
        drop(m); // a dead mount goes too
        let Some(m) = mounted(&b) else { return };
        let file = m.at.join("models/run").join(&name).join("model.safetensors");
        let heads = b.json(&["ls"])["versions"].as_array().unwrap().clone();
        let committed = heads.iter().any(|h| h["version"] == name.as_str());
        if synced || committed {
            assert!(fs::read(&file).unwrap() == bytes, "round {round}: what was synced is there");
        }
        if committed {
            sealed.push((name, bytes));
        } else if file.parent().unwrap().exists() {
            b.ok(&["discard", file.parent().unwrap().to_str().unwrap()]);
        }
        if round % 20 == 19 {
            assert_eq!(b.json(&["fsck"])["ok"], true, "round {round}");
        }
    }
    assert_eq!(b.json(&["fsck"])["ok"], true);
}

/// Saves as a program would, until the mount dies. True when the file was synced.
fn save_and_seal(b: &Bench, dir: &PathBuf, bytes: &[u8]) -> bool {
    let save = || -> io::Result<()> {
        fs::create_dir_all(dir)?;
        let mut file = File::create(dir.join("model.safetensors"))?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    let synced = save().is_ok();
    if synced {
        b.run(&["seal", dir.to_str().unwrap()]);
    }
    synced
}

#[test]
fn an_interrupted_commit_starts_again() {
    let b = Bench::new();
    let Some(m) = mounted(&b) else { return };
    let d = m.at.join("models/run/v1");
    write_model(&d, &base_tensors(5, 3));
    fs::write(d.join(".seal"), b"").unwrap();
    // SAFETY: plain numbers.
    unsafe { libc::kill(daemon(&b), libc::SIGKILL) };
    drop(m);
    let _m = mounted(&b);
    wait_for(Duration::from_secs(60), || b.json(&["ls", "--drafts"])["drafts"].as_array().unwrap().is_empty());
    assert_eq!(b.json(&["show", "run"])["version"], "v1");
    assert_eq!(b.json(&["fsck"])["ok"], true);
}

#[test]
fn space_is_reserved() {
    let b = Bench::new();
    let Some(m) = b.mount(&["--settle", "0", "--reserve", "1EiB"]) else { return };
    fs::create_dir_all(m.at.join("models/p/v1")).unwrap();
    assert_eq!(errno(fs::write(m.at.join("models/p/v1/f"), b"x")), Some(libc::ENOSPC));
}

#[test]
fn a_read_only_mount_refuses() {
    let b = Bench::new();
    let Some(m) = b.mount(&["--read-only"]) else { return };
    assert_eq!(errno(fs::create_dir(m.at.join("models/p"))), Some(libc::EROFS));
}
