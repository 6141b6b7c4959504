//! The lineage in the mount, without FUSE: everything below `lineage/` is walked, and every link followed.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use proptest::prelude::*;

use super::super::fake::Fake;
use super::super::{Attr, Found, Kind, ROOT, Stale, Vfs};
use super::*;

/// Every path below a directory: directories end in `/`, links tell where they lead.
type All = BTreeMap<String, (Attr, Option<String>)>;

fn lookup(v: &Vfs<Fake>, dir: u64, name: &str) -> Option<Attr> {
    match v.lookup(dir, OsStr::new(name)).unwrap() {
        Found::Entry(e) => Some(e.attr),
        Found::Nothing(_) => None,
    }
}

/// What stands at a path; links are not followed.
fn at(v: &Vfs<Fake>, path: &str) -> Option<Attr> {
    let root = v.getattr(ROOT, None).unwrap().0;
    path.split('/').filter(|p| !p.is_empty()).try_fold(root, |dir, name| lookup(v, dir.ino, name))
}

fn all(v: &Vfs<Fake>, dir: &str) -> All {
    let mut out = All::new();
    descend(v, at(v, dir).unwrap().ino, dir, &mut out);
    out
}

fn descend(v: &Vfs<Fake>, ino: u64, path: &str, out: &mut All) {
    let handle = v.opendir(ino).unwrap();
    let mut names = vec![];
    v.readdir(handle.fh, 0, |l| {
        names.push((l.name.to_owned(), l.kind, l.ino));
        false
    })
    .unwrap();
    v.release(handle.fh);
    assert_eq!((names[0].2, names[1].0.as_str()), (ino, ".."));
    for (name, kind, listed) in names.into_iter().skip(2) {
        let attr = lookup(v, ino, &name).unwrap_or_else(|| panic!("{path}/{name} is listed and not found"));
        assert!(attr.kind == kind && (kind == Kind::File || attr.ino == listed), "{path}/{name}");
        let path = format!("{path}/{name}");
        match kind {
            Kind::Directory => {
                assert!(out.insert(path.clone() + "/", (attr, None)).is_none(), "{path} twice");
                descend(v, attr.ino, &path, out);
            }
            Kind::File => drop(out.insert(path, (attr, None))),
            Kind::Symlink => drop(out.insert(path, (attr, Some(v.readlink(attr.ino).unwrap())))),
        }
    }
}

/// Where a link leads, as a path without `..`.
fn resolved(link: &str, target: &str) -> String {
    let mut parts: Vec<&str> = link.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            ".." => assert!(parts.pop().is_some(), "{link} leads out of the mount"),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Every link leads to a directory, and every file reads as long as it is said to be.
fn check(v: &Vfs<Fake>) -> All {
    let all = all(v, "lineage");
    for (path, (attr, target)) in &all {
        if let Some(target) = target {
            assert_eq!(attr.size, target.len() as u64);
            let end = at(v, &resolved(path, target)).unwrap_or_else(|| panic!("{path} -> {target} leads nowhere"));
            assert_eq!(end.kind, Kind::Directory);
        } else if attr.kind == Kind::File {
            assert_eq!(text(v, attr.ino).len() as u64, attr.size, "{path}");
        }
    }
    all
}

fn text(v: &Vfs<Fake>, ino: u64) -> String {
    let file = v.open(ino, libc::O_RDONLY).unwrap();
    let mut buf = vec![0; 5000];
    let n = v.read(file.fh, 0, &mut buf).unwrap();
    v.release(file.fh);
    String::from_utf8(buf[..n].to_vec()).unwrap()
}

/// A base, a fine-tune with a second version, a merge of that and the base, and another base.
fn family() -> (Fake, Vfs<Fake>, [Id; 4]) {
    let fake = Fake::new();
    let commit = |model: &str, version: &str| fake.commit(model, version, &[(version, model.as_bytes())]);
    let (base, ft) = (commit("base", "v1"), commit("acme/ft", "v1"));
    let (ft2, mix) = (commit("acme/ft", "v2"), commit("mix", "v1"));
    for (child, parent) in [(ft, base), (ft2, ft), (mix, ft2), (mix, base)] {
        fake.link(&child, &parent);
    }
    (fake.clone(), Vfs::new(fake), [base, ft, ft2, mix])
}

fn below(all: &All, dir: &str) -> Vec<String> {
    let line = |(path, (_, target)): (&String, &(Attr, Option<String>))| {
        let path = path.strip_prefix(dir)?.to_owned();
        Some(target.as_ref().map_or(path.clone(), |t| format!("{path} -> {t}")))
    };
    all.iter().filter_map(line).filter(|l| !l.is_empty()).collect()
}

#[test]
fn the_tree_and_the_cards_are_as_the_contract_draws_them() {
    let (_, v, _) = family();
    let all = check(&v);
    let tree = [
        "base/",
        "base/@v1 -> ../../../models/base/v1",
        "base/acme--ft/",
        "base/acme--ft/@v1 -> ../../../../models/acme--ft/v1",
        "base/acme--ft/@v2 -> ../../../../models/acme--ft/v2",
        "base/acme--ft/mix/",
        "base/acme--ft/mix/@v1 -> ../../../../../models/mix/v1",
        "base/mix -> ../base/acme--ft/mix",
    ];
    assert_eq!(below(&all, "lineage/tree/"), tree);
    let card = [
        "ancestors/",
        "ancestors/acme--ft@v1 -> ../../../acme--ft/v1",
        "ancestors/base@v1 -> ../../../base/v1",
        "children/",
        "children/mix@v1 -> ../../../mix/v1",
        "descendants/",
        "descendants/mix@v1 -> ../../../mix/v1",
        "diff.txt",
        "info.json",
        "log.txt",
        "model -> ../../../../models/acme--ft/v2",
        "parents/",
        "previous -> ../../acme--ft/v1",
        "tests.json",
    ];
    assert_eq!(below(&all, "lineage/of/acme--ft/v2/"), card);
    assert_eq!(below(&all, "lineage/of/acme--ft/v1/next"), [" -> ../../acme--ft/v2"]);
    let tops: Vec<_> = below(&all, "lineage/").into_iter().filter(|p| p.matches('/').count() == 0).collect();
    assert_eq!(tops, ["graph.dot", "graph.json", "graph.svg", "update.json"]);
    let (time, born) = (all["lineage/of/mix/v1/info.json"].0.time, all["lineage/of/"].0.time);
    assert!(time < born && time == all["lineage/tree/base/mix"].0.time && time == all["lineage/graph.dot"].0.time);
}

#[test]
fn what_was_removed_has_a_card_without_a_model() {
    let (fake, v, _) = family();
    fake.remove("acme/ft", "v1");
    let all = check(&v);
    let card = below(&all, "lineage/of/acme--ft/v1/");
    assert!(!card.iter().any(|l| l.starts_with("model")) && card.contains(&"info.json".to_owned()), "{card:?}");
    assert!(card.contains(&"next -> ../../acme--ft/v2".to_owned()));
    assert!(!all.contains_key("lineage/tree/base/acme--ft/@v1"));
    fake.remove("base", "v1");
    let all = check(&v);
    assert!(all.contains_key("lineage/tree/base/acme--ft/@v2") && !all.contains_key("lineage/tree/base/@v1"));
    for (model, version) in [("acme/ft", "v2"), ("mix", "v1")] {
        fake.remove(model, version);
    }
    assert!(below(&check(&v), "lineage/tree/").is_empty() && below(&check(&v), "lineage/of/").is_empty());
}

#[test]
fn changes_show_at_once_and_what_is_open_stays_as_it_was() {
    let (fake, v, [base, ..]) = family();
    let path = "lineage/of/base/v1/info.json";
    let old = at(&v, path).unwrap();
    let open = v.open(old.ino, libc::O_RDONLY).unwrap();
    let before = text(&v, old.ino);
    fake.say(" and more");
    let new = at(&v, path).unwrap();
    assert!(new.ino != old.ino && new.size == old.size + 9);
    let mut buf = [0; 5000];
    assert_eq!(v.read(open.fh, 0, &mut buf), Ok(old.size as usize));
    assert_eq!(v.getattr(old.ino, Some(open.fh)).unwrap().0.size, old.size, "its node says what it holds");
    assert_eq!(text(&v, old.ino), before, "as long as it is remembered");
    v.lineage.texts.clear();
    assert_eq!(v.open(old.ino, libc::O_RDONLY), Err(VfsError::Stale));
    assert!(text(&v, new.ino).ends_with("and more\n"));
    let tree = at(&v, "lineage/tree").unwrap().ino;
    assert!(!v.opendir(tree).unwrap().unchanged && v.opendir(tree).unwrap().unchanged);
    let new = fake.commit("new", "v1", &[]);
    assert!(at(&v, "lineage/tree/new/@v1").is_some() && !v.opendir(tree).unwrap().unchanged);
    fake.link(&new, &base);
    assert!(at(&v, "lineage/tree/new").is_none() && at(&v, "lineage/tree/base/new/@v1").is_some());
    check(&v);
    assert_eq!(v.stale(&[]), Vec::<Stale>::new());
}

#[test]
fn numbers_are_the_same_after_a_remount() {
    let (fake, v, _) = family();
    let (a, b) = (all(&v, "lineage"), all(&Vfs::new(fake), "lineage"));
    let numbers = |all: &All| all.iter().map(|(path, (attr, _))| (path.clone(), attr.ino)).collect::<Vec<_>>();
    assert_eq!(numbers(&a), numbers(&b));
}

#[test]
fn names_are_believed_for_less_than_a_second_also_where_the_kernel_is_told() {
    let (_, v, _) = family();
    v.kernel_is_told();
    for path in ["lineage/tree/base", "lineage/of/mix", "lineage/of/mix/v1", "lineage/of/mix/v1/log.txt"] {
        let (dir, name) = path.rsplit_once('/').unwrap();
        let Found::Entry(e) = v.lookup(at(&v, dir).unwrap().ino, OsStr::new(name)).unwrap() else { panic!("{path}") };
        assert!(e.name_for < Duration::from_secs(1), "{path}");
    }
}

#[test]
fn a_listing_makes_no_text() {
    let (_, v, _) = family();
    let card = at(&v, "lineage/of/mix/v1").unwrap().ino;
    let dir = v.opendir(card).unwrap();
    let mut unread = vec![];
    v.readdirplus(dir.fh, 0, |l, e| {
        unread.extend((e.name_for.is_zero() && e.attr_for.is_zero()).then(|| (l.name.to_owned(), l.ino)));
        false
    })
    .unwrap();
    let names: Vec<&str> = unread.iter().map(|u| u.0.as_str()).collect();
    assert_eq!(names, ["info.json", "diff.txt", "log.txt", "tests.json"]);
    assert_eq!(v.lineage.texts.len(), 0);
    assert_eq!(v.open(unread[0].1, 0), Err(VfsError::Stale), "the kernel looks again");
    let info = at(&v, "lineage/of/mix/v1/info.json").unwrap();
    assert!(info.ino != unread[0].1 && info.size > 0);
    let again = all(&v, "lineage/of/mix/v1");
    assert_eq!(again["lineage/of/mix/v1/info.json"].0.ino, info.ino);
}

#[test]
fn what_is_no_directory_or_no_file_says_so() {
    let (_, v, _) = family();
    let (card, link) = (at(&v, "lineage/of/mix/v1").unwrap().ino, at(&v, "lineage/of/mix/v1/model").unwrap().ino);
    let file = at(&v, "lineage/of/mix/v1/tests.json").unwrap().ino;
    assert_eq!(v.open(card, 0), Err(VfsError::IsDir));
    assert_eq!(v.open(file, libc::O_WRONLY), Err(VfsError::ReadOnly));
    assert_eq!(v.readlink(card), Err(VfsError::Invalid));
    for no_dir in [link, file] {
        assert_eq!(v.opendir(no_dir).map(|_| ()), Err(VfsError::NotDir));
        assert_eq!(v.lookup(no_dir, OsStr::new("x")), Err(VfsError::NotDir));
    }
    for (dir, absent) in [
        ("lineage", "x"),
        ("lineage/tree", "mix"),
        ("lineage/tree/base", "@v2"),
        ("lineage/tree/base", "base"),
        ("lineage/tree/base", "@"),
        ("lineage/of", "latest"),
        ("lineage/of/mix", "latest"),
        ("lineage/of/mix/v1", "next"),
        ("lineage/of/mix/v1/parents", "acme--ft@v1"),
        ("lineage/of/mix/v1/parents", "mix@v1"),
        ("lineage/of/mix/v1/children", "\n"),
    ] {
        assert_eq!(at(&v, &format!("{dir}/{absent}")), None, "{dir}/{absent}");
    }
    assert_eq!(v.lookup(card, OsStr::new("..")).unwrap(), Found::Nothing(Duration::ZERO));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn every_link_of_any_lineage_leads_to_a_directory(
        versions in prop::collection::vec((0..6u8, 0..4u8), 1..25),
        edges in prop::collection::vec((0..26usize, 0..26usize), 0..60),
    ) {
        let fake = Fake::new();
        let mut ids: Vec<Id> = versions.iter().enumerate().map(|(n, (model, _))| {
            fake.commit(&format!("m{model}"), &format!("v{n}"), &[("n", n.to_string().as_bytes())])
        }).collect();
        ids.push(Id::of(b"nowhere"));
        for (a, b) in edges {
            fake.link(&ids[a % ids.len()], &ids[b % ids.len()]);
        }
        for (n, (model, removed)) in versions.iter().enumerate() {
            if *removed == 0 {
                fake.remove(&format!("m{model}"), &format!("v{n}"));
            }
        }
        check(&Vfs::new(fake));
    }
}
