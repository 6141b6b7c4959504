//! The filesystem through the kernel: a repository in memory, mounted by a real `/dev/fuse`.
//!
//! Where there is no `/dev/fuse` these tests say so and pass, unless `MGIT_REQUIRE_FUSE=1`.

mod common;

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::Map;
use mgit::mount::{self, MountOptions, Mounted};
use mgit::vfs::fake::{Fake, pattern};
use mgit::vfs::{Page, ReadAt, ReadError, Source, Version, Vfs};

const BIG: u64 = (24 << 20) + 4321;

/// Whether there is FUSE here; panics when there must be.
fn fuse() -> bool {
    let there = Path::new("/dev/fuse").exists();
    if !there {
        assert!(std::env::var("MGIT_REQUIRE_FUSE").as_deref() != Ok("1"), "MGIT_REQUIRE_FUSE=1 and no /dev/fuse");
        println!("skipped: no /dev/fuse here");
    }
    there
}

fn fake() -> Fake {
    let fake = Fake::new();
    fake.commit(
        "acme/bert",
        "v1",
        &[("config.json", b"{}"), ("empty", b""), ("sub/deep/w.bin", &[7; 3000]), ("void/", b"")],
    );
    fake.commit("acme/bert", "v2", &[("config.json", b"{ }")]);
    fake.commit_pattern("big", "v1", "w.bin", BIG);
    fake
}

/// Tries until it succeeds, five seconds at most: a process that another test starts has this one's files open, too, until
/// it is a program of its own.
fn patiently<T, E: std::fmt::Display>(mut first: T, mut act: impl FnMut(T) -> Result<(), (T, E)>) {
    let since = Instant::now();
    while let Err((again, e)) = act(first) {
        assert!(since.elapsed() < Duration::from_secs(5), "{e}");
        first = again;
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn unmounted(mounted: Mounted) {
    patiently(mounted, |m| m.unmount());
}

struct Live {
    fake: Fake,
    mounted: Option<Mounted>,
    at: PathBuf,
    _dir: tempfile::TempDir,
}

fn live_with(options: &MountOptions) -> Live {
    let dir = tempfile::tempdir().unwrap();
    let (fake, at) = (fake(), dir.path().join("a mount,with\\odd name"));
    fs::create_dir(&at).unwrap();
    let mounted = mount::mount(Arc::new(Vfs::new(fake.clone())), &at, options).unwrap();
    Live { fake, mounted: Some(mounted), at, _dir: dir }
}

fn live() -> Live {
    live_with(&MountOptions::default())
}

impl Live {
    fn path(&self, below: &str) -> PathBuf {
        self.at.join("models").join(below)
    }

    fn unmount(mut self) {
        unmounted(self.mounted.take().unwrap());
        assert!(fs::read_dir(&self.at).unwrap().next().is_none());
    }
}

fn names(dir: impl AsRef<Path>) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|e| e.raw_os_error())
}

/// Waits for what comes within a second on an idle machine (lifetimes are held by the tests without FUSE).
fn soon(what: impl FnMut() -> bool) {
    common::wait_for(Duration::from_secs(20), what);
}

#[test]
fn names_attributes_and_bytes() {
    if !fuse() {
        return;
    }
    let l = live();
    assert_eq!(names(&l.at), ["lineage", "models"]);
    assert_eq!(names(l.path("")), ["acme--bert", "big"]);
    assert_eq!(names(l.path("acme--bert")), ["latest", "v1", "v2"]);
    assert_eq!(names(l.path("acme--bert/v1")), ["config.json", "empty", "sub", "void"]);
    assert_eq!(fs::read_link(l.path("acme--bert/latest")).unwrap(), Path::new("v2"));
    assert_eq!(fs::read(l.path("acme--bert/latest/config.json")).unwrap(), b"{ }");
    let m = fs::metadata(l.path("acme--bert/v1/sub/deep/w.bin")).unwrap();
    assert_eq!((m.len(), m.blocks(), m.mode() & 0o7777, m.mtime(), m.nlink()), (3000, 3, 0o644, 1_700_000_000, 1));
    let owner = fs::metadata("/proc/self").unwrap();
    assert_eq!((m.uid(), m.gid(), m.atime(), m.ctime()), (owner.uid(), owner.gid(), m.mtime(), m.mtime()));
    assert_eq!(fs::metadata(l.path("acme--bert/v1")).unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(l.path("acme--bert/v1/empty")).unwrap().blocks(), 0);
    assert_eq!(errno(fs::metadata(l.path("acme--bert/v1/no"))), Some(libc::ENOENT));
    assert_eq!(errno(fs::metadata(l.path("acme--bert/v1/no"))), Some(libc::ENOENT), "from the kernel's memory");
    let inode = fs::metadata(l.path("big/v1/w.bin")).unwrap().ino();
    l.unmount();
    let again = live();
    assert_eq!(fs::metadata(again.path("big/v1/w.bin")).unwrap().ino(), inode);
}

#[test]
fn listings_of_a_thousand_names() {
    if !fuse() {
        return;
    }
    let l = live();
    let paths: Vec<_> = (0..1000).map(|n| format!("dir/file-with-a-rather-long-name-{n:04}")).collect();
    let files: Vec<_> = paths.iter().map(|p| (p.as_str(), p.as_bytes())).collect();
    l.fake.commit("many", "v1", &files);
    for n in 2..500 {
        l.fake.commit("many", &format!("v{n}"), &[]);
    }
    for _ in 0..3 {
        let expected: Vec<_> = paths.iter().map(|p| p[4..].to_owned()).collect();
        assert_eq!(names(l.path("many/v1/dir")), expected);
        assert_eq!(names(l.path("many")).len(), 500);
    }
    let out = Command::new("find").arg(l.path("many")).arg("-ls").output().unwrap();
    assert_eq!(String::from_utf8(out.stdout).unwrap().lines().count(), 1 + 500 + 1 + 1000);
    for entry in fs::read_dir(l.path("many/v1/dir")).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(fs::read(entry.path()).unwrap(), format!("dir/{}", entry.file_name().to_str().unwrap()).as_bytes());
    }
}

#[test]
fn reads_at_odd_places_by_read_and_by_mmap() {
    if !fuse() {
        return;
    }
    let l = live();
    let mut file = File::open(l.path("big/v1/w.bin")).unwrap();
    assert_eq!(file.seek(SeekFrom::End(0)).unwrap(), BIG);
    for (at, len) in [(0, 1), (4095, 2), (BIG - 5, 5), (1 << 20, 3 << 20), (BIG - 100_000, 100_000)] {
        let mut buf = vec![0; len];
        file.read_exact_at(&mut buf, at).unwrap();
        assert!(buf.iter().enumerate().all(|(i, b)| *b == pattern(at + i as u64)), "{at}");
    }
    assert_eq!(file.read_at(&mut [0; 10], BIG).unwrap(), 0);
    assert_eq!(file.read_at(&mut [0; 10], BIG - 3).unwrap(), 3);
    let map = Map::of(&file, BIG as usize);
    for at in [0, 4096, 9 << 20, BIG as usize - 1] {
        assert_eq!(map.bytes()[at], pattern(at as u64));
    }
    let direct = fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(l.path("big/v1/w.bin")).unwrap();
    let mut buf = vec![0; 2 << 20];
    direct.read_exact_at(&mut buf, 1 << 20).unwrap();
    assert!(buf.iter().enumerate().all(|(i, b)| *b == pattern((1 << 20) + i as u64)));
}

#[test]
fn eight_threads_read_the_same_and_other_files() {
    if !fuse() {
        return;
    }
    let l = live();
    std::thread::scope(|s| {
        for n in 0..8u64 {
            let models = l.path("");
            s.spawn(move || {
                let file = File::open(models.join("big/v1/w.bin")).unwrap();
                let mut buf = vec![0; 300_000];
                for step in 0..40 {
                    let at = (n * 7_654_321 + step * 1_234_567) % (BIG - 300_000);
                    file.read_exact_at(&mut buf, at).unwrap();
                    assert!(buf.iter().enumerate().all(|(i, b)| *b == pattern(at + i as u64)));
                    assert_eq!(fs::read(models.join("acme--bert/v1/sub/deep/w.bin")).unwrap(), [7; 3000]);
                    assert_eq!(names(models.join("acme--bert/v1")).len(), 4);
                }
            });
        }
    });
    l.unmount();
}

fn xattr(path: &Path, name: &str, room: usize) -> io::Result<Vec<u8>> {
    use std::os::unix::ffi::OsStrExt;
    let (path, name) = (CString::new(path.as_os_str().as_bytes()).unwrap(), CString::new(name).unwrap());
    let mut value = vec![0u8; room];
    // SAFETY: both strings end in a NUL; the buffer has the room that is said.
    let n = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), room) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    value.truncate(n as usize);
    Ok(if room == 0 { vec![0; n as usize] } else { value })
}

#[test]
fn extended_attributes_and_the_disk() {
    if !fuse() {
        return;
    }
    let l = live();
    let file = l.path("acme--bert/v1/sub/deep/w.bin");
    assert_eq!(
        xattr(&file, "user.mgit.blake3", 100).unwrap(),
        mgit::model::id::Id::of(&[7; 3000]).to_string().as_bytes()
    );
    assert_eq!(xattr(&file, "user.mgit.stored_bytes", 100).unwrap(), b"1500");
    assert_eq!(xattr(&file, "user.mgit.blake3", 0).unwrap().len(), 64);
    assert_eq!(errno(xattr(&file, "user.mgit.blake3", 10)), Some(libc::ERANGE));
    assert_eq!(errno(xattr(&file, "user.other", 10)), Some(libc::ENODATA));
    assert!(xattr(&l.path("acme--bert/v1"), "user.mgit.id", 100).unwrap().len() == 64);
    let df = Command::new("stat").args(["-f", "-c", "%b %S %l"]).arg(&l.at).output().unwrap();
    let disk = Command::new("stat").args(["-f", "-c", "%b %S %l", "/"]).output().unwrap();
    assert_eq!(df.stdout, disk.stdout);
}

#[test]
fn every_change_is_refused_as_read_only() {
    if !fuse() {
        return;
    }
    for read_only in [false, true] {
        let l = live_with(&MountOptions { read_only, ..MountOptions::default() });
        let (file, dir) = (l.path("acme--bert/v1/config.json"), l.path("acme--bert/v1"));
        let outside = l.at.parent().unwrap().join("outside");
        fs::write(&outside, b"x").unwrap();
        let chmod = fs::set_permissions(&file, fs::Permissions::from_mode(0o600));
        let refused = [
            errno(File::create(&file).map(drop)),
            errno(fs::OpenOptions::new().append(true).open(&file).map(drop)),
            errno(File::create(dir.join("new")).map(drop)),
            errno(fs::create_dir(dir.join("new"))),
            errno(fs::create_dir(l.path("new"))),
            errno(fs::remove_file(&file)),
            errno(fs::remove_dir(dir.join("void"))),
            errno(fs::rename(&file, dir.join("other"))),
            errno(fs::hard_link(&file, dir.join("other"))),
            errno(std::os::unix::fs::symlink("x", dir.join("other"))),
            errno(chmod),
        ];
        assert_eq!(refused, [Some(libc::EROFS); 11], "read_only: {read_only}");
        let touch = Command::new("touch").arg(&file).output().unwrap();
        assert!(String::from_utf8_lossy(&touch.stderr).contains("Read-only file system"));
        assert_eq!(fs::read(&file).unwrap(), b"{}");
        l.unmount();
    }
}

#[test]
fn versions_come_and_go_soon_and_open_files_keep_reading() {
    if !fuse() {
        return;
    }
    let l = live();
    assert_eq!(errno(fs::metadata(l.path("acme--bert/v3"))), Some(libc::ENOENT));
    assert_eq!(names(l.path("acme--bert")).len(), 3);
    assert_eq!(fs::read(l.path("acme--bert/latest/config.json")).unwrap(), b"{ }");
    l.fake.commit("acme/bert", "v3", &[("config.json", b"three")]);
    l.fake.commit("fresh", "v1", &[]);
    soon(|| l.path("acme--bert/v3/config.json").exists());
    soon(|| fs::read(l.path("acme--bert/latest/config.json")).unwrap() == b"three");
    soon(|| names(l.path("acme--bert")).len() == 4 && names(l.path("")).contains(&"fresh".to_owned()));
    let mut open = File::open(l.path("big/v1/w.bin")).unwrap();
    open.read_exact(&mut [0; 10]).unwrap();
    l.fake.remove("big", "v1");
    soon(|| !l.path("big/v1/w.bin").exists() && !l.path("big").exists());
    soon(|| names(l.path("")) == ["acme--bert", "fresh"]);
    open.seek(SeekFrom::Start(20 << 20)).unwrap();
    let mut buf = [0; 100];
    open.read_exact(&mut buf).unwrap();
    assert_eq!(buf[99], pattern((20 << 20) + 99));
    assert_eq!(open.metadata().unwrap().len(), BIG);
}

#[test]
fn damage_is_eio_and_the_rest_goes_on() {
    if !fuse() {
        return;
    }
    let l = live();
    l.fake.commit_broken("bad", "v1", "w.bin", 5000);
    assert_eq!(errno(fs::read(l.path("bad/v1/w.bin"))), Some(libc::EIO));
    assert_eq!(fs::read(l.path("acme--bert/v1/config.json")).unwrap(), b"{}");
}

/// A source that panics on one file.
struct Panics(Fake);

impl Source for Panics {
    fn models(&self) -> Result<Arc<Vec<mgit::model::name::ModelName>>, ReadError> {
        self.0.models()
    }
    fn versions(&self, m: &mgit::model::name::ModelName) -> Result<Arc<Vec<Version>>, ReadError> {
        self.0.versions(m)
    }
    fn record(&self, id: &mgit::model::id::Id) -> Result<Arc<mgit::model::record::VersionRecord>, ReadError> {
        self.0.record(id)
    }
    fn stored_bytes(&self, id: &mgit::model::id::Id) -> Result<Arc<Vec<u64>>, ReadError> {
        self.0.stored_bytes(id)
    }
    fn parents_text(&self, id: &mgit::model::id::Id) -> Result<String, ReadError> {
        self.0.parents_text(id)
    }
    fn graph(&self) -> Result<Arc<mgit::model::graph::Graph>, ReadError> {
        self.0.graph()
    }
    fn page(&self, page: &Page) -> Result<Arc<str>, ReadError> {
        self.0.page(page)
    }
    fn open(&self, entry: &mgit::model::record::FileEntry) -> Result<Arc<dyn ReadAt>, ReadError> {
        assert!(entry.path != "config.json", "on purpose");
        self.0.open(entry)
    }
    fn statfs_path(&self) -> &Path {
        self.0.statfs_path()
    }
}

#[test]
fn a_panic_is_one_failed_request() {
    if !fuse() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mounted = mount::mount(Arc::new(Vfs::new(Panics(fake()))), dir.path(), &MountOptions::default()).unwrap();
    for _ in 0..100 {
        assert_eq!(errno(File::open(dir.path().join("models/acme--bert/v1/config.json"))), Some(libc::EIO));
    }
    assert_eq!(fs::read(dir.path().join("models/acme--bert/v1/sub/deep/w.bin")).unwrap(), [7; 3000]);
    unmounted(mounted);
}

#[test]
fn a_busy_mount_says_who_uses_it_and_can_be_detached() {
    if !fuse() {
        return;
    }
    let l = live();
    let open = File::open(l.path("acme--bert/v1/config.json")).unwrap();
    let busy = mount::unmount(&l.at, false).unwrap_err();
    assert!(busy.what.contains("still open") && busy.what.contains(&format!("({})", std::process::id())), "{busy}");
    assert!(busy.hint.unwrap().contains("--lazy"));
    mount::unmount(&l.at, true).unwrap();
    assert!(fs::read_dir(&l.at).unwrap().next().is_none());
    assert_eq!(io::read_to_string(open).unwrap(), "{}");
    let again = mount::unmount(&l.at, false).unwrap_err();
    assert!(again.what.ends_with("is not a mount of mgit"), "{again}");
}

#[test]
fn mountpoints_that_will_not_do() {
    if !fuse() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let try_at = |at: &Path| {
        let tried = mount::mount(Arc::new(Vfs::new(fake())), at, &MountOptions::default());
        tried.map(drop).unwrap_err().to_string()
    };
    assert!(try_at(&dir.path().join("no")).contains("does not exist (`mkdir -p"));
    fs::write(dir.path().join("file"), b"x").unwrap();
    assert!(try_at(&dir.path().join("file")).contains("is not a directory"));
    assert!(try_at(dir.path()).contains("is not empty"));
    assert!(try_at(&dir.path().join("file/below")).contains("annot mount at"));
    let l = live();
    assert!(try_at(&l.at).contains("is already a mount of mgit"));
    assert!(mount::unmount(dir.path(), false).unwrap_err().what.contains("is not a mount of mgit"));
    assert!(mount::unmount(Path::new("/proc"), true).unwrap_err().what.contains("proc is mounted there"));
}

#[test]
fn the_mount_is_known_as_mgit() {
    if !fuse() {
        return;
    }
    let l = live_with(&MountOptions { fs_name: "a,suid,b c".to_owned(), ..MountOptions::default() });
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|t| t.contains(r"a,suid,b\040c")).expect("the mount");
    assert!(
        line.contains("- fuse.mgit ") && line.contains("nosuid,nodev") && line.contains("default_permissions"),
        "{line}"
    );
    l.unmount();
}

#[test]
fn dropping_detaches_and_stopping_ends_the_wait() {
    if !fuse() {
        return;
    }
    let mut l = live();
    let open = File::open(l.path("acme--bert/v1/config.json")).unwrap();
    drop(l.mounted.take());
    assert!(fs::read_dir(&l.at).unwrap().next().is_none());
    drop(open);
    let mut l = live();
    let _open = File::open(l.path("acme--bert/v1/config.json")).unwrap();
    let mounted = l.mounted.take().unwrap();
    let stopper = mounted.stopper();
    let waiting = std::thread::spawn(move || mounted.wait());
    stopper.stop();
    waiting.join().unwrap().unwrap();
    assert!(fs::read_dir(&l.at).unwrap().next().is_none());
}

// ---- a process of its own

/// Not a test by itself: the other side of those below.
#[test]
fn child_process() {
    let Some(at) = std::env::var_os("MGIT_TEST_MOUNT").map(PathBuf::from) else { return };
    fs::write(at.with_extension("pid"), std::process::id().to_string()).unwrap();
    if std::env::var_os("MGIT_TEST_DIES").is_some() {
        std::process::exit(7);
    }
    let options =
        MountOptions { allow_other: std::env::var_os("MGIT_TEST_OTHER").is_some(), ..MountOptions::default() };
    let mounted = match mount::mount(Arc::new(Vfs::new(fake())), &at, &options) {
        Ok(mounted) => mounted,
        Err(e) => return mount::notify_ready(Err(&e.to_string())),
    };
    let stopper = mounted.stopper();
    mount::on_signals(move || stopper.stop()).unwrap();
    mount::notify_ready(Ok(()));
    mounted.wait().unwrap();
    fs::write(at.with_extension("end"), b"clean").unwrap();
    std::process::exit(0);
}

fn child(at: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["child_process", "--exact", "--nocapture"]).env("MGIT_TEST_MOUNT", at);
    command
}

fn start(at: &Path) -> i32 {
    mount::start_in_background(child(at), &at.with_extension("log")).unwrap();
    fs::read_to_string(at.with_extension("pid")).unwrap().parse().unwrap()
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: sends a signal to a process that this test has started.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

#[test]
fn a_killed_process_leaves_a_mount_that_can_be_unmounted_or_replaced() {
    if !fuse() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("m");
    fs::create_dir(&at).unwrap();
    let dead = |pid| {
        assert_eq!(names(at.join("models")), ["acme--bert", "big"]);
        signal(pid, libc::SIGKILL);
        soon(|| errno(fs::metadata(&at)) == Some(libc::ENOTCONN));
    };
    dead(start(&at));
    patiently((), |()| mount::unmount(&at, false).map_err(|e| ((), e)));
    assert!(names(&at).is_empty());
    dead(start(&at));
    dead(start(&at));
    let mounted = mount::mount(Arc::new(Vfs::new(fake())), &at, &MountOptions::default()).unwrap();
    assert_eq!(names(at.join("models")).len(), 2);
    unmounted(mounted);
    assert!(names(&at).is_empty());
}

#[test]
fn a_signal_ends_the_process_cleanly_also_while_files_are_open() {
    if !fuse() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("m");
    fs::create_dir(&at).unwrap();
    for (which, busy) in [(libc::SIGTERM, false), (libc::SIGINT, true), (libc::SIGHUP, false)] {
        let pid = start(&at);
        let open = busy.then(|| File::open(at.join("models/big/v1/w.bin")).unwrap());
        signal(pid, which);
        soon(|| at.with_extension("end").exists());
        assert!(names(&at).is_empty());
        fs::remove_file(at.with_extension("end")).unwrap();
        drop(open);
    }
    assert_eq!(fs::metadata(at.with_extension("log")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn the_waiting_process_hears_what_went_wrong() {
    if !fuse() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("none");
    let heard = mount::start_in_background(child(&at), &at.with_extension("log")).unwrap_err();
    assert!(heard.what.contains("none does not exist"), "{heard}");
    let mut dies = child(&at);
    dies.env("MGIT_TEST_DIES", "1");
    let heard = mount::start_in_background(dies, &at.with_extension("log")).unwrap_err();
    assert!(heard.what.contains("exit status: 7") && heard.hint.unwrap().contains("none.log"));
}

#[test]
fn an_ordinary_user_mounts_through_the_helper() {
    // SAFETY: takes nothing and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    let open_to_all = fs::metadata("/dev/fuse").is_ok_and(|m| m.mode() & 0o006 == 0o006);
    if !fuse() || !root || !open_to_all || !Path::new("/usr/bin/fusermount3").exists() {
        let why = "needs root, fusermount3 and a /dev/fuse that users may open; scripts/test.sh gives it one";
        assert!(std::env::var("MGIT_REQUIRE_FUSE").as_deref() != Ok("1"), "{why}");
        println!("not run: {why}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let at = dir.path().join("m");
    fs::create_dir(&at).unwrap();
    std::os::unix::fs::chown(&at, Some(65534), Some(65534)).unwrap();
    let program = dir.path().join("program"); // the build directory may be closed to others
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let user = |extra: &str| {
        let mut command = Command::new(&program);
        command.args(["child_process", "--exact", "--nocapture"]).env("MGIT_TEST_MOUNT", &at).env(extra, "1");
        command.uid(65534).gid(65534);
        mount::start_in_background(command, &at.with_extension("log"))
    };
    let conf = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if !conf.lines().any(|l| l.trim() == "user_allow_other") {
        assert!(user("MGIT_TEST_OTHER").unwrap_err().what.contains("user_allow_other"));
    }
    user("MGIT_TEST_NOTHING").unwrap();
    let ls = Command::new("ls").arg(at.join("models/acme--bert/v1")).uid(65534).gid(65534).output().unwrap();
    assert_eq!(String::from_utf8(ls.stdout).unwrap(), "config.json\nempty\nsub\nvoid\n");
    assert_eq!(errno(fs::metadata(at.join("models"))), Some(libc::EACCES), "not even root");
    signal(fs::read_to_string(at.with_extension("pid")).unwrap().parse().unwrap(), libc::SIGTERM);
    soon(|| at.with_extension("end").exists());
    assert!(names(&at).is_empty());
    user("MGIT_TEST_NOTHING").unwrap();
    signal(fs::read_to_string(at.with_extension("pid")).unwrap().parse().unwrap(), libc::SIGKILL);
    soon(|| {
        let ls = Command::new("ls").arg(&at).env("LC_ALL", "C").uid(65534).gid(65534).output().unwrap();
        String::from_utf8_lossy(&ls.stderr).contains("not connected")
    });
    user("MGIT_TEST_NOTHING").unwrap();
    mount::unmount(&at, false).unwrap();
    assert!(names(&at).is_empty());
}

// ---- speed, by hand: cargo test --test fuse_mount speed -- --ignored --nocapture

#[test]
#[ignore = "prints figures"]
fn speed() {
    let l = live();
    let size = 2u64 << 30;
    l.fake.commit_pattern("huge", "v1", "w.bin", size);
    let file = File::open(l.path("huge/v1/w.bin")).unwrap();
    let cold = || {
        // SAFETY: takes an open descriptor and plain numbers.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    };
    let sequential = |threads: u64| {
        let start = Instant::now();
        std::thread::scope(|s| {
            for n in 0..threads {
                let file = &file;
                s.spawn(move || {
                    let mut buf = vec![0; 1 << 20];
                    let part = size / threads;
                    for at in (n * part..(n + 1) * part).step_by(1 << 20) {
                        file.read_exact_at(&mut buf, at).unwrap();
                    }
                });
            }
        });
        size as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    if let Ok(kb) = std::env::var("MGIT_TEST_READ_AHEAD") {
        let device = file.metadata().unwrap().dev();
        fs::write(format!("/sys/class/bdi/{}:{}/read_ahead_kb", libc::major(device), libc::minor(device)), kb).unwrap();
    }
    for _ in 0..3 {
        for threads in [1, 2, 4] {
            cold();
            let first = sequential(threads);
            let mut out = io::stdout();
            writeln!(out, "{threads} readers: cold {first:.2} GB/s, warm {:.2} GB/s", sequential(threads)).unwrap();
        }
        cold();
        let start = Instant::now();
        let map = Map::of(&file, size as usize);
        let sum: u64 = map.bytes().iter().step_by(4096).map(|b| *b as u64).sum();
        println!("mmap: cold {:.2} GB/s ({sum})", size as f64 / start.elapsed().as_secs_f64() / 1e9);
        drop(map);
    }
    drop(file);
    l.unmount();
}
