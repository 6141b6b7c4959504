//! Tests of the filesystem without FUSE.

use super::fake::{Fake, pattern};
use super::*;

fn fake() -> Fake {
    let fake = Fake::new();
    fake.commit(
        "acme/bert",
        "v1",
        &[("config.json", b"{}"), ("empty", b""), ("sub/deep/w.bin", &[7; 3000]), ("void/", b"")],
    );
    fake.commit("acme/bert", "v2", &[("config.json", b"{ }")]);
    fake.commit("tiny", "v1", &[]);
    fake
}

fn vfs() -> (Fake, Vfs<Fake>) {
    let fake = fake();
    (fake.clone(), Vfs::new(fake))
}

fn find<S: Source>(v: &Vfs<S>, path: &str) -> Result<Entry, VfsError> {
    let mut at = Entry { attr: v.getattr(ROOT, None)?.0, name_for: Duration::ZERO, attr_for: Duration::ZERO };
    for name in path.split('/').filter(|n| !n.is_empty()) {
        match v.lookup(at.attr.ino, OsStr::new(name))? {
            Found::Entry(e) => at = e,
            Found::Nothing(_) => return Err(VfsError::NotFound),
        }
    }
    Ok(at)
}

/// All names of a directory with their numbers and kinds, read `room` at a time.
fn list<S: Source>(v: &Vfs<S>, path: &str, room: usize) -> Vec<(String, u64, Kind)> {
    let dir = v.opendir(find(v, path).unwrap().attr.ino).unwrap();
    let (mut all, mut offset) = (Vec::new(), 0);
    loop {
        let mut left = room;
        let before = all.len();
        v.readdir(dir.fh, offset, |l| {
            if left == 0 {
                return true;
            }
            left -= 1;
            offset = l.next;
            all.push((l.name.to_owned(), l.ino, l.kind));
            false
        })
        .unwrap();
        if all.len() == before {
            v.release(dir.fh);
            return all;
        }
    }
}

fn names<S: Source>(v: &Vfs<S>, path: &str) -> Vec<String> {
    list(v, path, usize::MAX).into_iter().map(|l| l.0).skip(2).collect()
}

#[test]
fn the_tree_is_as_the_contract_draws_it() {
    let (_, v) = vfs();
    assert_eq!(names(&v, "/"), ["models", "lineage"]);
    assert_eq!(names(&v, "models"), ["acme--bert", "tiny"]);
    assert_eq!(names(&v, "models/acme--bert"), ["v1", "v2", "latest"]);
    assert_eq!(names(&v, "models/acme--bert/v1"), ["config.json", "empty", "sub", "void"]);
    assert_eq!(names(&v, "models/acme--bert/v1/sub/deep"), ["w.bin"]);
    assert_eq!(names(&v, "models/acme--bert/v1/void").len() + names(&v, "models/tiny/v1").len(), 0);
    let latest = find(&v, "models/acme--bert/latest").unwrap().attr;
    assert_eq!((v.readlink(latest.ino).unwrap().as_str(), latest.kind, latest.size), ("v2", Kind::Symlink, 2));
    for absent in
        ["x", "models/x", "models/acme/bert", "models/acme--bert/v3", "models/tiny/v1/x", "models/tiny/LATEST"]
    {
        assert_eq!(find(&v, absent), Err(VfsError::NotFound), "{absent}");
    }
    assert_eq!(find(&v, "models/acme--bert/v1/config.json/x"), Err(VfsError::NotDir));
}

#[test]
fn hostile_names_find_nothing() {
    use std::os::unix::ffi::OsStrExt;
    let (_, v) = vfs();
    let long = "x".repeat(10_000);
    for dir in ["/", "models", "models/tiny", "models/acme--bert/v1"] {
        let ino = find(&v, dir).unwrap().attr.ino;
        for name in [&b"\xff\xfe"[..], b"", b"..", b".", b"a\0b", b"a/b", b"--", b"a--b--c", long.as_bytes()] {
            assert!(matches!(v.lookup(ino, OsStr::from_bytes(name)), Ok(Found::Nothing(_))), "{dir} {name:?}");
        }
    }
}

#[test]
fn listings_agree_with_lookups_however_they_are_paged() {
    let (_, v) = vfs();
    for path in ["/", "models", "models/acme--bert", "models/acme--bert/v1", "models/acme--bert/v1/sub"] {
        let whole = list(&v, path, usize::MAX);
        assert_eq!((whole[0].0.as_str(), whole[1].0.as_str()), (".", ".."));
        assert_eq!(whole[0].1, find(&v, path).unwrap().attr.ino);
        let up = path.rsplit_once('/').map_or("/", |(up, _)| up);
        assert_eq!(whole[1].1, find(&v, up).unwrap().attr.ino, "{path}");
        for room in [1, 2, 3] {
            assert_eq!(list(&v, path, room), whole);
        }
        for (name, ino, kind) in &whole[2..] {
            let attr = find(&v, &format!("{path}/{name}")).unwrap().attr;
            assert_eq!((attr.ino, attr.kind), (*ino, *kind));
        }
    }
    let dir = v.opendir(ROOT).unwrap();
    v.readdir(dir.fh, u64::MAX, |_| panic!("nothing lies there")).unwrap();
}

#[test]
fn readdirplus_counts_what_was_taken_and_nothing_else() {
    let (_, v) = vfs();
    let ino = find(&v, "models/acme--bert/v1").unwrap().attr.ino;
    let before = v.counts().0;
    let dir = v.opendir(ino).unwrap();
    let mut taken = Vec::new();
    v.readdirplus(dir.fh, 0, |l, e| {
        assert_eq!(l.ino, e.attr.ino);
        if taken.len() == 4 {
            return true;
        }
        taken.push((l.name.to_owned(), l.ino));
        false
    })
    .unwrap();
    assert_eq!(v.counts().0, before + 2);
    for (_, ino) in &taken[2..] {
        v.forget(*ino, 1);
    }
    assert_eq!(v.counts().0, before);
}

#[test]
fn attributes_are_those_of_the_commit() {
    let (_, v) = vfs();
    let file = find(&v, "models/acme--bert/v1/sub/deep/w.bin").unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    assert_eq!((file.attr.size, file.attr.blocks, file.attr.mode, file.attr.time), (3000, 3, 0o644, time));
    assert_eq!(find(&v, "models/acme--bert/v1/config.json").unwrap().attr.blocks, 1);
    assert_eq!(find(&v, "models/acme--bert/v1/empty").unwrap().attr.blocks, 0);
    let dir = find(&v, "models/acme--bert/v1/sub").unwrap().attr;
    assert_eq!((dir.mode, dir.nlink, dir.kind, dir.time), (0o755, 1, Kind::Directory, time));
    assert_eq!(attr::blocks(10, 0), 1);
    assert_eq!(attr::blocks(10, u64::MAX), u64::MAX.div_ceil(512));
    assert_eq!(attr::time(jiff::Timestamp::MIN), SystemTime::UNIX_EPOCH - Duration::from_secs(377_705_023_201));
}

#[test]
fn numbers_are_the_same_after_a_remount_and_distinct() {
    let fake = fake();
    let (a, b) = (Vfs::new(fake.clone()), Vfs::new(fake));
    let paths = ["models", "models/tiny", "models/acme--bert", "models/acme--bert/latest", "models/acme--bert/v1"];
    let files = ["models/acme--bert/v1/config.json", "models/acme--bert/v2/config.json", "models/acme--bert/v1/sub"];
    let mut seen = std::collections::HashSet::from([ROOT]);
    for path in files.iter().chain(&paths).rev() {
        find(&b, path).unwrap(); // in another order
    }
    for path in paths.iter().chain(&files) {
        let ino = find(&a, path).unwrap().attr.ino;
        assert_eq!(ino, find(&b, path).unwrap().attr.ino, "{path}");
        assert!(seen.insert(ino), "{path}");
    }
}

#[test]
fn colliding_numbers_are_told_apart() {
    let fake = fake();
    for hash in [(|_| 0) as Hash, |_| ROOT, |_| u64::MAX, |bytes| node::blake3_number(bytes) % 3] {
        let v = Vfs::with(fake.clone(), 0, 0, hash);
        let paths = ["models", "models/tiny", "models/acme--bert", "models/acme--bert/v1", "models/acme--bert/v1/sub"];
        let inos: Vec<_> = paths.iter().map(|p| find(&v, p).unwrap().attr.ino).collect();
        let distinct: std::collections::HashSet<_> = inos.iter().chain(&[ROOT]).collect();
        assert_eq!(distinct.len(), paths.len() + 1);
        assert!(!distinct.contains(&0));
        assert_eq!(names(&v, "models/acme--bert/v1"), ["config.json", "empty", "sub", "void"]);
        // Forgetting the first holder of a number leaves the others theirs.
        let again = find(&v, "models/acme--bert/v1").unwrap().attr.ino;
        v.forget(inos[1], u64::MAX);
        assert_eq!(find(&v, "models/acme--bert/v1").unwrap().attr.ino, again);
        assert_eq!(inos[3], again);
    }
}

#[test]
fn everything_forgotten_leaves_nothing() {
    let (_, v) = vfs();
    let start = v.counts();
    let mut inos = Vec::new();
    for path in ["models", "models/tiny", "models/acme--bert/v1", "models/acme--bert/v1/sub/deep/w.bin"] {
        let mut at = ROOT;
        for name in path.split('/') {
            let Found::Entry(e) = v.lookup(at, OsStr::new(name)).unwrap() else { panic!() };
            at = e.attr.ino;
            inos.push(at);
        }
    }
    inos.into_iter().for_each(|ino| v.forget(ino, 1));
    assert_eq!(v.counts(), start);
    v.forget(ROOT, u64::MAX);
    v.forget(12345, 1);
    assert!(v.getattr(ROOT, None).is_ok() && find(&v, "models").is_ok());
    assert_eq!(v.getattr(12345, None), Err(VfsError::Stale));
}

#[test]
fn files_read_as_far_as_they_go() {
    let (fake, v) = vfs();
    fake.commit_pattern("big", "v1", "w.bin", 3 << 20);
    let ino = find(&v, "models/big/v1/w.bin").unwrap().attr.ino;
    let file = v.open(ino, libc::O_RDONLY).unwrap();
    assert!(file.unchanged);
    let mut buf = vec![0; 5000];
    for at in [0, 1, 777, (1 << 20) - 3, (3 << 20) - 5000] {
        assert_eq!(v.read(file.fh, at, &mut buf), Ok(5000));
        assert!(buf.iter().enumerate().all(|(i, b)| *b == pattern(at + i as u64)));
    }
    assert_eq!(v.read(file.fh, (3 << 20) - 7, &mut buf), Ok(7));
    assert_eq!(v.read(file.fh, 3 << 20, &mut buf), Ok(0));
    assert_eq!(v.read(file.fh, u64::MAX, &mut buf), Ok(0));
    v.release(file.fh);
    assert_eq!(v.read(file.fh, 0, &mut buf), Err(VfsError::BadHandle));
    assert_eq!(v.open(find(&v, "models/big/v1").unwrap().attr.ino, 0), Err(VfsError::IsDir));
    assert_eq!(v.opendir(ino).map(|_| ()), Err(VfsError::NotDir));
    let dir = v.opendir(ROOT).unwrap();
    assert_eq!(v.read(dir.fh, 0, &mut buf), Err(VfsError::IsDir));
}

#[test]
fn damage_is_an_input_output_error() {
    let (fake, v) = vfs();
    fake.commit_broken("bad", "v1", "w.bin", 100);
    let file = v.open(find(&v, "models/bad/v1/w.bin").unwrap().attr.ino, 0).unwrap();
    assert_eq!(v.read(file.fh, 0, &mut [0; 10]).map_err(VfsError::errno), Err(libc::EIO));
}

#[test]
fn opening_to_write_is_refused() {
    let (_, v) = vfs();
    let ino = find(&v, "models/acme--bert/v1/config.json").unwrap().attr.ino;
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC, libc::O_WRONLY | libc::O_APPEND] {
        assert_eq!(v.open(ino, flags), Err(VfsError::ReadOnly));
    }
    let made = v.mkdir(find(&v, "models").unwrap().attr.ino, OsStr::new("new"), 0o755);
    assert_eq!(made.unwrap_err().errno(), libc::EROFS, "without drafts");
}

#[test]
fn attributes_by_name_follow_the_size_protocol() {
    let (_, v) = vfs();
    let file = find(&v, "models/acme--bert/v1/sub/deep/w.bin").unwrap().attr.ino;
    let version = find(&v, "models/acme--bert/v1").unwrap().attr.ino;
    let get = |ino, name: &str, size| v.getxattr(ino, OsStr::new(name), size);
    let value = |ino, name: &str| match get(ino, name, 4096).unwrap() {
        Xattr::Value(value) => String::from_utf8(value).unwrap(),
        Xattr::Size(_) => panic!(),
    };
    let digest = crate::model::id::Id::of(&[7; 3000]).to_string();
    assert_eq!(value(file, "user.mgit.blake3"), digest);
    assert_eq!(value(file, "user.mgit.id"), value(version, "user.mgit.id"));
    assert_eq!(value(file, "user.mgit.parents"), "base@v1 acme/other@v2");
    assert_eq!(
        (value(file, "user.mgit.stored_bytes"), value(version, "user.mgit.stored_bytes")),
        ("1500".into(), "1501".into())
    );
    assert_eq!(get(file, "user.mgit.blake3", 0), Ok(Xattr::Size(64)));
    assert_eq!(get(file, "user.mgit.blake3", 63), Err(VfsError::Range));
    assert!(get(file, "user.mgit.blake3", 64).is_ok());
    for (ino, absent) in
        [(file, "user.mgit.x"), (file, "security.capability"), (version, "user.mgit.blake3"), (ROOT, "user.mgit.id")]
    {
        assert_eq!(get(ino, absent, 100), Err(VfsError::NoData));
    }
    let all = b"user.mgit.id\0user.mgit.blake3\0user.mgit.parents\0user.mgit.stored_bytes\0".to_vec();
    assert_eq!(v.listxattr(file, 0), Ok(Xattr::Size(all.len() as u32)));
    assert_eq!(v.listxattr(file, 10), Err(VfsError::Range));
    assert_eq!(v.listxattr(file, 4096), Ok(Xattr::Value(all)));
    assert_eq!(v.listxattr(ROOT, 0), Ok(Xattr::Size(0)));
    let nested = find(&v, "models/acme--bert/v1/sub").unwrap().attr.ino;
    assert_eq!(v.listxattr(nested, 100), Ok(Xattr::Value(vec![])));
}

#[test]
fn a_removed_version_vanishes_and_its_open_files_keep_reading() {
    let (fake, v) = vfs();
    let path = "models/acme--bert/v1/sub/deep/w.bin";
    let ino = find(&v, path).unwrap().attr.ino;
    let file = v.open(ino, 0).unwrap();
    let dir = v.opendir(find(&v, "models/acme--bert/v1").unwrap().attr.ino).unwrap();
    let listing = v.opendir(find(&v, "models/acme--bert").unwrap().attr.ino).unwrap();
    fake.remove("acme/bert", "v1");
    assert_eq!(find(&v, path), Err(VfsError::NotFound));
    assert_eq!(names(&v, "models/acme--bert"), ["v2", "latest"]);
    let mut buf = [0; 3000];
    assert_eq!(v.read(file.fh, 0, &mut buf), Ok(3000));
    assert_eq!(buf, [7; 3000]);
    v.trees.forget_all();
    assert_eq!(v.getattr(ino, Some(file.fh)).unwrap().0.size, 3000);
    assert_eq!(v.getattr(ino, None), Err(VfsError::Stale));
    assert_eq!(v.open(ino, 0), Err(VfsError::Stale));
    let mut seen = Vec::new();
    v.readdir(dir.fh, 2, |l| {
        seen.push(l.name.to_owned());
        false
    })
    .unwrap();
    assert_eq!(seen, ["config.json", "empty", "sub", "void"]);
    // A directory that is rewound shows what is there now.
    seen.clear();
    v.readdirplus(listing.fh, 0, |l, _| {
        seen.push(l.name.to_owned());
        false
    })
    .unwrap();
    assert_eq!(seen, [".", "..", "v2", "latest"]);
    fake.remove("acme/bert", "v2");
    assert_eq!(find(&v, "models/acme--bert"), Err(VfsError::NotFound));
}

#[test]
fn a_new_version_is_there_at_once_and_is_the_latest() {
    let (fake, v) = vfs();
    let latest = find(&v, "models/tiny/latest").unwrap();
    assert!(latest.name_for < Duration::from_secs(1));
    fake.commit("tiny", "v2-long-name", &[("a", b"a")]);
    fake.commit("fresh", "v1", &[]);
    assert_eq!(v.readlink(latest.attr.ino).unwrap(), "v1", "what it was, while the kernel knows it");
    let latest = find(&v, "models/tiny/latest").unwrap();
    assert_eq!(v.readlink(latest.attr.ino).unwrap(), "v2-long-name");
    assert_eq!(v.getattr(latest.attr.ino, None).unwrap().0.size, 12);
    assert_eq!(names(&v, "models"), ["acme--bert", "fresh", "tiny"]);
    for live in ["models/tiny", "models/tiny/v1", "models/tiny/latest"] {
        assert!(find(&v, live).unwrap().name_for < Duration::from_secs(1));
    }
    assert!(find(&v, "models/tiny/v2-long-name/a").unwrap().name_for > Duration::from_secs(3600));
}

#[test]
fn the_kernel_is_told_what_no_longer_holds() {
    let (fake, v) = vfs();
    v.kernel_is_told();
    let model = find(&v, "models/acme--bert").unwrap();
    assert!(model.name_for > Duration::from_secs(10) && model.name_for < Duration::from_secs(3600));
    let old = find(&v, "models/acme--bert/latest").unwrap().attr.ino;
    let commit = |version: &str| {
        let id = fake.commit("acme/bert", version, &[("a", version.as_bytes())]);
        let (model, version) = ("acme/bert".parse().unwrap(), version.parse().unwrap());
        Event::Remove { model, version, id, at: None }
    };
    let event = commit("v3");
    let name = |parent: u64, name: &str| Stale::Name { parent, name: name.to_owned() };
    let parent = model.attr.ino;
    let removed = v.stale(std::slice::from_ref(&event));
    assert_eq!(removed, [name(parent, "v3"), name(parent, "latest"), Stale::Attr(parent)]);
    let new = find(&v, "models/acme--bert/latest").unwrap().attr.ino;
    assert_ne!(old, new, "each leads to one place for good");
    assert_eq!((v.readlink(old).unwrap().as_str(), v.readlink(new).unwrap().as_str()), ("v2", "v3"));
    for version in ["v1", "v2", "v3"] {
        fake.remove("acme/bert", version);
    }
    let models = find(&v, "models").unwrap().attr.ino;
    assert!(v.stale(&[event]).contains(&name(models, "acme--bert")), "the last is gone");
}

#[test]
fn more_versions_than_trees_are_kept() {
    let fake = Fake::new();
    for n in 0..200 {
        fake.commit("m", &format!("v{n}"), &[("a/b", format!("{n}").as_bytes())]);
    }
    let v = Vfs::new(fake);
    for _ in 0..2 {
        for n in 0..200 {
            let file = v.open(find(&v, &format!("models/m/v{n}/a/b")).unwrap().attr.ino, 0).unwrap();
            let mut buf = [0; 3];
            let len = v.read(file.fh, 0, &mut buf).unwrap();
            assert_eq!(std::str::from_utf8(&buf[..len]).unwrap(), n.to_string());
            v.release(file.fh);
        }
    }
    assert!(v.counts().1 == 0);
}

#[test]
fn statfs_is_the_disk_of_the_store() {
    let (_, v) = vfs();
    let s = v.statfs().unwrap();
    assert!(s.blocks > 0 && s.fragment_size > 0 && s.name_max == 255);
    assert_eq!(statvfs(Path::new("/no/such/place")), None);
    assert_eq!(statvfs(Path::new("/a\0b")), None);
}
