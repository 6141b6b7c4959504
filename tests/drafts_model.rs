//! Drafts against a model: sequences of operations, as data, on a few names that collide. Without FUSE the filesystem
//! must say and hold what a plain tree in memory does; through a real mount, what a directory of the disk does.

mod common;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::Bench;
use mgit::repo::draft::Area;
use mgit::vfs::drafts::Drafts;
use mgit::vfs::fake::Fake;
use mgit::vfs::{Change, Found, Kind, ROOT, Vfs, VfsError};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// A path below the draft, as places in [`NAMES`].
type Names = Vec<u8>;

const NAMES: [&str; 3] = ["a", "b", "c"];

#[derive(Clone, Debug)]
enum Op {
    Mkdir(Names),
    Create(Names),
    Write(Names, u16, u16, u8),
    Truncate(Names, u16),
    Rename(Names, Names, bool),
    Unlink(Names),
    Rmdir(Names),
    Symlink(Names, u8),
    Link(Names, Names),
}

fn any_op() -> impl Strategy<Value = Op> {
    let p = || proptest::collection::vec(0u8..3, 1..4);
    prop_oneof![
        3 => p().prop_map(Op::Mkdir),
        3 => p().prop_map(Op::Create),
        3 => (p(), 0u16..9000, 0u16..9000, any::<u8>()).prop_map(|(p, at, n, b)| Op::Write(p, at, n, b)),
        1 => (p(), 0u16..9000).prop_map(|(p, n)| Op::Truncate(p, n)),
        3 => (p(), p(), any::<bool>()).prop_map(|(a, b, c)| Op::Rename(a, b, c)),
        1 => p().prop_map(Op::Unlink),
        1 => p().prop_map(Op::Rmdir),
        1 => (p(), 0u8..3).prop_map(|(p, t)| Op::Symlink(p, t)),
        1 => (p(), p()).prop_map(|(a, b)| Op::Link(a, b)),
    ]
}

/// What is found at each path: a directory, a file's bytes, or where a symlink leads.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Seen {
    Directory,
    File(Vec<u8>),
    Symlink(String),
}

type Said = Result<(), i32>;

// ---- the model

#[derive(Clone)]
enum Node {
    Directory(BTreeMap<u8, Node>),
    /// Its place among the files' bytes: it may have several names.
    File(usize),
    Symlink(u8),
}

#[derive(Default)]
struct Model {
    root: BTreeMap<u8, Node>,
    files: Vec<Vec<u8>>,
}

impl Model {
    fn directory(&mut self, path: &[u8]) -> Result<&mut BTreeMap<u8, Node>, i32> {
        path.iter().try_fold(&mut self.root, |dir, name| match dir.get_mut(name) {
            None => Err(libc::ENOENT),
            Some(Node::Directory(inner)) => Ok(inner),
            Some(_) => Err(libc::ENOTDIR),
        })
    }

    fn get(&mut self, path: &[u8]) -> Result<Node, i32> {
        let (last, above) = path.split_last().unwrap();
        self.directory(above)?.get(last).cloned().ok_or(libc::ENOENT)
    }

    fn make(&mut self, path: &[u8], node: Node) -> Said {
        let (last, above) = path.split_last().unwrap();
        let dir = self.directory(above)?;
        if dir.contains_key(last) {
            return Err(libc::EEXIST);
        }
        dir.insert(*last, node);
        Ok(())
    }

    fn file(&mut self, path: &[u8]) -> Result<&mut Vec<u8>, i32> {
        match self.get(path)? {
            Node::File(at) => Ok(&mut self.files[at]),
            Node::Directory(_) => Err(libc::EISDIR),
            Node::Symlink(_) => Err(libc::ELOOP),
        }
    }

    fn run(&mut self, op: &Op) -> Said {
        match op {
            Op::Mkdir(p) => self.make(p, Node::Directory(BTreeMap::new())),
            Op::Create(p) => {
                self.files.push(vec![]);
                self.make(p, Node::File(self.files.len() - 1))
            }
            Op::Write(p, at, n, byte) => {
                let (file, at, n) = (self.file(p)?, *at as usize, *n as usize);
                if n > 0 {
                    file.resize(file.len().max(at + n), 0);
                    file[at..at + n].fill(*byte);
                }
                Ok(())
            }
            Op::Truncate(p, n) => self.file(p).map(|f| f.resize(*n as usize, 0)),
            Op::Rename(a, b, keep) => self.rename(a, b, *keep),
            Op::Unlink(p) => match self.get(p)? {
                Node::Directory(_) => Err(libc::EISDIR),
                _ => self.take(p).map(drop),
            },
            Op::Rmdir(p) => match self.get(p)? {
                Node::Directory(inner) if inner.is_empty() => self.take(p).map(drop),
                Node::Directory(_) => Err(libc::ENOTEMPTY),
                _ => Err(libc::ENOTDIR),
            },
            Op::Symlink(p, target) => self.make(p, Node::Symlink(*target)),
            Op::Link(a, b) => match self.get(a)? {
                Node::File(at) => self.make(b, Node::File(at)),
                _ => Err(libc::EPERM),
            },
        }
    }

    fn take(&mut self, path: &[u8]) -> Result<Node, i32> {
        let (last, above) = path.split_last().unwrap();
        self.directory(above)?.remove(last).ok_or(libc::ENOENT)
    }

    fn rename(&mut self, a: &[u8], b: &[u8], keep: bool) -> Said {
        self.directory(&a[..a.len() - 1])?;
        self.directory(&b[..b.len() - 1])?;
        let from = self.get(a)?;
        let to = self.get(b).ok();
        if keep && to.is_some() {
            return Err(libc::EEXIST);
        }
        if b.len() > a.len() && b.starts_with(a) {
            return Err(libc::EINVAL);
        }
        if a.len() > b.len() && a.starts_with(b) {
            return Err(libc::ENOTEMPTY);
        }
        match (&from, &to) {
            _ if a == b => return Ok(()),
            (Node::File(x), Some(Node::File(y))) if x == y => return Ok(()),
            (Node::Directory(_), Some(Node::Directory(inner))) if !inner.is_empty() => return Err(libc::ENOTEMPTY),
            (Node::Directory(_), None | Some(Node::Directory(_))) => {}
            (Node::Directory(_), Some(_)) => return Err(libc::ENOTDIR),
            (_, Some(Node::Directory(_))) => return Err(libc::EISDIR),
            _ => {}
        }
        let node = self.take(a)?;
        let (last, above) = b.split_last().unwrap();
        self.directory(above)?.insert(*last, node);
        Ok(())
    }

    fn all(&self) -> BTreeMap<String, Seen> {
        let mut out = BTreeMap::new();
        let mut queue = vec![(String::new(), &self.root)];
        while let Some((prefix, dir)) = queue.pop() {
            for (name, node) in dir {
                let path = format!("{prefix}{}", NAMES[*name as usize]);
                let seen = match node {
                    Node::Directory(inner) => {
                        queue.push((format!("{path}/"), inner));
                        Seen::Directory
                    }
                    Node::File(at) => Seen::File(self.files[*at].clone()),
                    Node::Symlink(target) => Seen::Symlink(NAMES[*target as usize].to_owned()),
                };
                out.insert(path, seen);
            }
        }
        out
    }
}

// ---- the filesystem, without FUSE

struct Drafty {
    vfs: Vfs<Fake>,
    draft: u64,
    _dir: tempfile::TempDir,
}

fn name(n: u8) -> &'static OsStr {
    OsStr::new(NAMES[n as usize])
}

impl Drafty {
    fn new() -> Drafty {
        let dir = tempfile::tempdir().unwrap();
        let area = Arc::new(Area::new(&dir.path().canonicalize().unwrap()));
        fs::create_dir(area.dir()).unwrap();
        let vfs = Vfs::new(Fake::new()).with_drafts(Drafts::open(area, 0).unwrap());
        let Found::Entry(models) = vfs.lookup(ROOT, OsStr::new("models")).unwrap() else { panic!("no models") };
        let model = vfs.mkdir(models.attr.ino, OsStr::new("m"), 0o755).unwrap().attr.ino;
        let draft = vfs.mkdir(model, OsStr::new("v1"), 0o755).unwrap().attr.ino;
        Drafty { vfs, draft, _dir: dir }
    }

    fn find(&self, path: &[u8]) -> Result<u64, VfsError> {
        path.iter().try_fold(self.draft, |dir, n| match self.vfs.lookup(dir, name(*n))? {
            Found::Entry(e) => Ok(e.attr.ino),
            Found::Nothing(_) => Err(VfsError::NotFound),
        })
    }

    fn above<'a>(&self, path: &'a [u8]) -> Result<(u64, &'a OsStr), VfsError> {
        let (last, above) = path.split_last().unwrap();
        Ok((self.find(above)?, name(*last)))
    }

    fn run(&self, op: &Op) -> Said {
        self.try_run(op).map_err(VfsError::errno)
    }

    fn try_run(&self, op: &Op) -> Result<(), VfsError> {
        let v = &self.vfs;
        match op {
            Op::Mkdir(p) => self.above(p).and_then(|(dir, n)| v.mkdir(dir, n, 0o755)).map(drop),
            Op::Create(p) => {
                let (dir, n) = self.above(p)?;
                let (_, opened) = v.create(dir, n, 0o644, libc::O_RDWR | libc::O_EXCL)?;
                v.release(opened.fh);
                Ok(())
            }
            Op::Write(p, at, n, byte) => {
                let opened = v.open(self.find(p)?, libc::O_WRONLY)?;
                let written = v.write(opened.fh, u64::from(*at), &vec![*byte; *n as usize]);
                v.release(opened.fh);
                assert_eq!(written, Ok(*n as usize));
                Ok(())
            }
            Op::Truncate(p, n) => {
                let (ino, change) = (self.find(p)?, Change { size: Some(u64::from(*n)), ..Change::default() });
                let (attr, _) = v.setattr(ino, None, &change)?;
                assert_eq!(attr.size, u64::from(*n));
                Ok(())
            }
            Op::Rename(a, b, keep) => {
                let ((from, a), (to, b)) = (self.above(a)?, self.above(b)?);
                v.rename(from, a, to, b, if *keep { libc::RENAME_NOREPLACE } else { 0 })
            }
            Op::Unlink(p) => self.above(p).and_then(|(dir, n)| v.unlink(dir, n)),
            Op::Rmdir(p) => self.above(p).and_then(|(dir, n)| v.rmdir(dir, n)),
            Op::Symlink(p, t) => self.above(p).and_then(|(dir, n)| v.symlink(dir, n, name(*t))).map(drop),
            Op::Link(a, b) => {
                let ino = self.find(a)?;
                self.above(b).and_then(|(dir, n)| v.link(ino, dir, n)).map(drop)
            }
        }
    }

    fn all(&self) -> BTreeMap<String, Seen> {
        let (mut out, mut queue) = (BTreeMap::new(), vec![(String::new(), self.draft)]);
        while let Some((prefix, dir)) = queue.pop() {
            let opened = self.vfs.opendir(dir).unwrap();
            let mut found = vec![];
            let plus = |l: mgit::vfs::Listing, e: &mgit::vfs::Entry| {
                found.push((l.name.to_owned(), e.attr));
                false
            };
            self.vfs.readdirplus(opened.fh, 0, plus).unwrap();
            self.vfs.release(opened.fh);
            for (name, attr) in found.into_iter().skip(2) {
                let path = format!("{prefix}{name}");
                let seen = match attr.kind {
                    Kind::Directory => {
                        queue.push((format!("{path}/"), attr.ino));
                        Seen::Directory
                    }
                    Kind::Symlink => Seen::Symlink(self.vfs.readlink(attr.ino).unwrap()),
                    Kind::File => {
                        let (mut bytes, opened) = (vec![0; 20_000], self.vfs.open(attr.ino, libc::O_RDONLY).unwrap());
                        let n = self.vfs.read(opened.fh, 0, &mut bytes).unwrap();
                        self.vfs.release(opened.fh);
                        assert_eq!(n as u64, attr.size, "{path}");
                        bytes.truncate(n);
                        Seen::File(bytes)
                    }
                };
                out.insert(path, seen);
            }
        }
        out
    }
}

/// Errors of the same operation that two file systems may choose between: which of two faults they look at first.
fn alike(a: &Said, b: &Said) -> bool {
    const PICKY: [i32; 6] = [libc::ENOTEMPTY, libc::EINVAL, libc::EEXIST, libc::ENOTDIR, libc::EISDIR, libc::ENOENT];
    a == b || matches!((a, b), (Err(a), Err(b)) if PICKY.contains(a) && PICKY.contains(b))
}

fn runner(cases: u32) -> TestRunner {
    let cases = std::env::var("MGIT_TEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(cases);
    TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) })
}

#[test]
fn without_fuse_it_is_a_plain_tree() {
    let sequences = proptest::collection::vec(any_op(), 1..80);
    let run = runner(150).run(&sequences, |ops| {
        let (drafty, mut model) = (Drafty::new(), Model::default());
        for op in &ops {
            let (got, want) = (drafty.run(op), model.run(op));
            // Where several things are wrong with a link, the kernel says which one it names.
            let both_refuse = matches!(op, Op::Link(..)) && got.is_err() && want.is_err();
            prop_assert!(both_refuse || alike(&got, &want), "{op:?}: {got:?}, not {want:?}");
        }
        prop_assert_eq!(drafty.all(), model.all());
        let open = drafty.vfs.counts().1;
        prop_assert_eq!(open, 0, "handles left");
        Ok(())
    });
    run.unwrap();
}

// ---- through the kernel

fn path(root: &Path, names: &[u8]) -> PathBuf {
    names.iter().fold(root.to_owned(), |p, n| p.join(NAMES[*n as usize]))
}

fn run_on_disk(root: &Path, op: &Op) -> Said {
    let at = |p: &Names| path(root, p);
    let open = |p: &Names| OpenOptions::new().write(true).open(at(p));
    let done: io::Result<()> = match op {
        Op::Mkdir(p) => fs::create_dir(at(p)),
        Op::Create(p) => OpenOptions::new().write(true).create_new(true).open(at(p)).map(drop),
        Op::Write(p, off, n, byte) => open(p).and_then(|f| f.write_all_at(&vec![*byte; *n as usize], u64::from(*off))),
        Op::Truncate(p, n) => open(p).and_then(|f| f.set_len(u64::from(*n))),
        Op::Rename(a, b, keep) => {
            let c = |p: &Names| std::ffi::CString::new(at(p).to_str().unwrap()).unwrap();
            let (a, b, flags) = (c(a), c(b), if *keep { libc::RENAME_NOREPLACE } else { 0 });
            // SAFETY: both paths end in a NUL and live through the call.
            let rc = unsafe { libc::renameat2(libc::AT_FDCWD, a.as_ptr(), libc::AT_FDCWD, b.as_ptr(), flags) };
            if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        }
        Op::Unlink(p) => fs::remove_file(at(p)),
        Op::Rmdir(p) => fs::remove_dir(at(p)),
        Op::Symlink(p, t) => symlink(NAMES[*t as usize], at(p)),
        Op::Link(a, b) => match fs::symlink_metadata(at(a)) {
            Ok(m) if m.is_symlink() => Err(io::Error::from_raw_os_error(libc::EPERM)), // a draft has none
            _ => fs::hard_link(at(a), at(b)),
        },
    };
    done.map_err(|e| e.raw_os_error().unwrap())
}

fn all_on_disk(root: &Path) -> BTreeMap<String, Seen> {
    let (mut out, mut queue) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(dir) = queue.pop() {
        for path in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            let m = fs::symlink_metadata(&path).unwrap();
            let seen = match () {
                _ if m.is_dir() => {
                    queue.push(path.clone());
                    Seen::Directory
                }
                _ if m.is_symlink() => Seen::Symlink(fs::read_link(&path).unwrap().to_str().unwrap().to_owned()),
                _ => {
                    let bytes = fs::read(&path).unwrap();
                    assert_eq!(bytes.len() as u64, m.len());
                    Seen::File(bytes)
                }
            };
            out.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned(), seen);
        }
    }
    out
}

#[test]
fn through_a_mount_it_is_a_directory_of_the_disk() {
    let b = Bench::new();
    // With a reserve the kernel asks us for each write; without, root's writes by itself.
    for (round, options) in [&["--settle", "0"][..], &["--settle", "0", "--reserve", "1"]].into_iter().enumerate() {
        let Some(m) = b.mount(options) else { return };
        let sequences = proptest::collection::vec(any_op(), 1..80);
        let mut case = 0;
        let case = std::cell::RefCell::new(&mut case);
        let run = runner(20).run(&sequences, |ops| {
            **case.borrow_mut() += 1;
            let name = format!("{round}-{}", case.borrow());
            let (ours, theirs) = (m.at.join("models/m").join(&name), b.path("in").join(&name));
            fs::create_dir_all(&ours).unwrap();
            fs::create_dir_all(&theirs).unwrap();
            for op in &ops {
                let (got, want) = (run_on_disk(&ours, op), run_on_disk(&theirs, op));
                prop_assert_eq!(got, want, "{:?}", op);
            }
            prop_assert_eq!(all_on_disk(&ours), all_on_disk(&theirs));
            Ok(())
        });
        run.unwrap();
        drop(m);
        // Another daemon finds the same.
        let Some(m) = b.mount(options) else { return };
        for name in fs::read_dir(m.at.join("models/m")).unwrap().map(|e| e.unwrap().file_name()) {
            assert_eq!(all_on_disk(&m.at.join("models/m").join(&name)), all_on_disk(&b.path("in").join(&name)));
        }
    }
}
