//! A shelf of broken repositories: what fsck says of each, exactly, and what it mends.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{Bench, base_tensors, copy_tree, tuned_tensors, write_model};
use serde_json::Value;

/// `base`, `tuned` from it, linked to itself by a tag and a message, and one that was removed.
fn shelf() -> Bench {
    let b = Bench::new();
    let base = base_tensors(7, 1);
    write_model(&b.path("in/base"), &base);
    write_model(&b.path("in/tuned"), &tuned_tensors(&base, 8));
    fs::write(b.path("in/tuned/vocab.txt"), "a\nb\n".repeat(900)).unwrap();
    b.ok(&["import", b.path("in/base").to_str().unwrap(), "-m", "first"]);
    b.ok(&["import", b.path("in/tuned").to_str().unwrap(), "--parent", "base"]);
    b.ok(&["tag", "tuned@v1", "prod"]);
    b
}

/// What fsck says, with ids, names of packs and offsets that differ from run to run taken out.
fn findings(b: &Bench, args: &[&str]) -> Vec<String> {
    let ran = b.run(&[&["fsck", "--json"], args].concat());
    let report: Value = serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {}{}", ran.out, ran.err));
    assert_eq!(ran.code == 0, report["ok"] == true);
    let found = report["findings"].as_array().unwrap();
    let mut found: Vec<String> = found
        .iter()
        .map(|f| plain(b, &format!("{}: {} ({})", text(&f["kind"]), text(&f["what"]), text(&f["where"]))))
        .collect();
    found.sort();
    found
}

fn text(v: &Value) -> &str {
    v.as_str().unwrap()
}

fn plain(b: &Bench, s: &str) -> String {
    let s = s.replace(b.dir.path().to_str().unwrap(), "");
    let mut out = String::new();
    for word in s.split_inclusive([' ', ',', ':', ')', '.', '/']) {
        let hex = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        match hex.len() {
            16.. if hex.bytes().all(|c| c.is_ascii_hexdigit()) => out += &word.replace(hex, "#"),
            _ => out += word,
        }
    }
    out
}

fn packs(b: &Bench) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(b.repo().join("packs")).unwrap().map(|e| e.unwrap().path()).collect();
    found.retain(|p| p.extension().is_some_and(|e| e == "pack"));
    found.sort();
    found
}

/// The pack that the base's import made, and the fine-tune's: the newer sorts first.
fn both(b: &Bench) -> (PathBuf, PathBuf) {
    let all = packs(b);
    assert_eq!(all.len(), 2);
    (all[1].clone(), all[0].clone())
}

fn change(path: &Path, f: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    f(&mut bytes);
    fs::write(path, bytes).unwrap();
}

type Break = fn(&Bench);

const LOG: &str = "journal/000001.log";

#[test]
fn each_kind_of_damage_is_named_exactly() {
    let good = shelf();
    assert_eq!(findings(&good, &[]), [""; 0]);
    let cases: BTreeMap<&str, (Break, &[&str])> = BTreeMap::from([
        (
            "a leftover",
            ((|b| fs::write(b.repo().join("packs/00000000000000aa.tmp"), b"half").unwrap()) as Break, &[][..]),
        ),
        (
            "the base's pack is gone",
            (
                |b| fs::remove_file(both(b).0).unwrap(),
                &[
                    "missing: file 'config.json': recipe # is missing (tuned@v1)",
                    "missing: version # is missing (base@v1)",
                    "unreadable: object #: object # is missing; needed by tensor T of tuned@v1 (model.safetensors) (packs/#.pack)",
                ],
            ),
        ),
        (
            "the tune's pack is gone",
            (|b| fs::remove_file(both(b).1).unwrap(), &["missing: version # is missing (tuned@v1)"]),
        ),
        (
            "a trailer is flipped",
            (
                |b| change(&both(b).0, |bytes| *bytes.last_mut().unwrap() ^= 1),
                &["pack: footer: the trailer is damaged (packs/#.pack at byte N)"],
            ),
        ),
        (
            "a header is flipped",
            (
                |b| change(&both(b).0, |bytes| bytes[3] ^= 1),
                &["pack: damaged: pack #: its header (packs/#.pack at byte N)"],
            ),
        ),
        (
            "a journal frame is flipped",
            (
                |b| change(&b.repo().join(LOG), |bytes| bytes[60] ^= 1),
                &[
                    "journal: damaged: journal /repo/journal/000001.log: the frame at N, with others after it; 'mgit fsck --repair' keeps what is whole (journal/000001.log)",
                ],
            ),
        ),
        (
            "the last frame is flipped, and the catalog is gone",
            (
                |b| {
                    fs::remove_dir_all(b.repo().join("catalog")).unwrap();
                    change(&b.repo().join(LOG), |bytes| {
                        let at = bytes.len() - 20;
                        bytes[at] ^= 1;
                    });
                },
                &[
                    "journal: damaged: journal /repo/journal/000001.log: the frame at N, with others after it; 'mgit fsck --repair' keeps what is whole (journal/000001.log)",
                ],
            ),
        ),
        (
            "the journal is cut",
            (
                |b| change(&b.repo().join(LOG), |bytes| bytes.truncate(bytes.len() / 2)),
                &[
                    "journal: damaged: journal /repo/journal/000001.log: what was acknowledged at N is gone or was changed; 'mgit fsck --repair' keeps what is whole (journal/000001.log)",
                ],
            ),
        ),
        ("the catalog is gone", (|b| fs::remove_dir_all(b.repo().join("catalog")).unwrap(), &[])),
    ]);
    let mut wrong = Vec::new();
    for (name, (break_it, want)) in cases {
        let b = Bench { dir: tempfile::tempdir().unwrap() };
        copy_tree(good.dir.path(), b.dir.path());
        break_it(&b);
        for args in [&[][..], &["--quick"]] {
            let mut found: Vec<String> = findings(&b, args).iter().map(|f| numbers(f)).collect();
            found.dedup();
            if found != want {
                wrong.push(format!("{name} {args:?}: {found:#?}"));
            }
        }
        // Mended with what the other repository has: nothing is wrong any longer, and all is there again.
        let ran = b.run(&["fsck", "--repair", "--from", good.repo().to_str().unwrap()]);
        assert_eq!(ran.code, 0, "{name}: {}{}", ran.out, ran.err);
        for model in ["base", "tuned"] {
            b.ok(&["verify", b.path("in").join(model).to_str().unwrap(), model]);
        }
        assert_eq!(findings(&b, &["--rebuild"]), [""; 0], "{name}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Offsets depend on the length of a path.
fn numbers(s: &str) -> String {
    let mut out: Vec<String> = s.split(' ').map(str::to_owned).collect();
    for i in 1..out.len() {
        let after = ["byte", "at"].contains(&out[i - 1].as_str());
        let digits: String = out[i].chars().take_while(char::is_ascii_digit).collect();
        if after && !digits.is_empty() {
            out[i] = format!("N{}", &out[i][digits.len()..]);
        }
    }
    let out = out.join(" ");
    // Which tensors are stored as differences is the codec's business.
    match out.split_once("tensor '").and_then(|(a, b)| Some((a, b.split_once('\'')?.1))) {
        Some((a, b)) => format!("{a}tensor T{b}"),
        None => out,
    }
}

#[test]
fn what_cannot_be_healed_is_named_and_the_rest_stays() {
    let b = shelf();
    let (base, tuned) = both(&b);
    // A block of the tune, and the footer of the base.
    change(&tuned, |bytes| bytes[200] ^= 0xff);
    change(&base, |bytes| {
        let at = bytes.len() - 60;
        bytes[at] ^= 1;
    });
    let ran = b.run(&["fsck", "--repair", "--json"]);
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((ran.code, report["ok"].as_bool()), (1, Some(false)), "{report}");
    assert_eq!(report["repaired"].as_array().unwrap().len(), 2, "{report}");
    let found = report["findings"].as_array().unwrap();
    let of_tuned = |f: &Value| [&f["what"], &f["where"]].iter().any(|t| text(t).contains("tuned@v1"));
    assert!(!found.is_empty() && found.iter().all(of_tuned), "{report}");
    b.ok(&["verify", b.path("in/base").to_str().unwrap(), "base"]);
    assert_eq!(b.json(&["fsck", "--version", "base"])["ok"], true);
    assert_eq!(b.run(&["fsck", "--version", "tuned"]).code, 1);
    assert!(
        fs::read_dir(b.repo().join("packs"))
            .unwrap()
            .any(|e| { e.unwrap().path().extension().is_some_and(|e| e == "damaged") })
    );
    // The original files heal it, under another name, in another place.
    fs::create_dir_all(b.path("in/elsewhere/deep")).unwrap();
    fs::rename(b.path("in/tuned"), b.path("in/elsewhere/deep/x")).unwrap();
    let from = b.path("in/elsewhere");
    b.ok(&["fsck", "--repair", "--from", from.to_str().unwrap()]);
    b.ok(&["verify", b.path("in/elsewhere/deep/x").to_str().unwrap(), "tuned@prod"]);
    assert_eq!(findings(&b, &[]), [""; 0]);
}

#[test]
fn a_lost_journal_is_made_from_the_version_records() {
    let b = shelf();
    b.ok(&["link", "tuned", "base", "--relation", "distill"]);
    // Also where nothing is left that knows of it.
    fs::remove_file(b.repo().join(LOG)).unwrap();
    fs::remove_dir_all(b.repo().join("catalog")).unwrap();
    for args in [&["ls"][..], &["gc"], &["import", b.path("in/base").to_str().unwrap(), "--as", "more"]] {
        assert!(b.fails(args).contains("it is gone"), "{args:?}");
    }
    assert!(findings(&b, &[]).iter().all(|f| f.starts_with("journal: ")));
    fs::write(b.repo().join(LOG), b"").unwrap();
    assert!(b.fails(&["ls"]).contains("damaged"));
    let ran = b.run(&["fsck", "--repair", "--json"]);
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(report["ok"], true, "{report}");
    assert!(report["repaired"].to_string().contains("base@v1 is back"), "{report}");
    let tuned = b.json(&["show", "tuned"]);
    assert_eq!((&tuned["parents"][0]["model"], &tuned["parents"][0]["relation"]), (&"base".into(), &"finetune".into()));
    assert_eq!(b.json(&["show", "base"])["message"], "first");
    b.ok(&["verify", b.path("in/tuned").to_str().unwrap(), "tuned"]);
    b.ok(&["import", b.path("in/tuned").to_str().unwrap(), "--as", "more"]);
}

#[test]
fn where_a_renaming_is_lost_nobody_loses_a_name() {
    let b = shelf();
    let from = fs::metadata(b.repo().join(LOG)).unwrap().len();
    b.ok(&["mv", "base", "moved"]);
    b.ok(&["import", b.path("in/tuned").to_str().unwrap(), "--as", "base"]);
    change(&b.repo().join(LOG), |bytes| bytes[from as usize + 20] ^= 1);
    assert!(b.fails(&["fsck"]).contains("damaged"));
    b.run(&["fsck", "--repair"]);
    assert_eq!(findings(&b, &[]), [""; 0]);
    b.ok(&["verify", b.path("in/base").to_str().unwrap(), "base@v1"]);
    b.ok(&["verify", b.path("in/tuned").to_str().unwrap(), "base@v1-2"]);
}

#[test]
fn parity_mends_what_rots() {
    let b = Bench::without_repo();
    b.ok(&["init", "--parity", "5%"]);
    let base = base_tensors(7, 1);
    write_model(&b.path("in/base"), &base);
    write_model(&b.path("in/tuned"), &tuned_tensors(&base, 8));
    b.ok(&["import", b.path("in/base").to_str().unwrap()]);
    b.ok(&["import", b.path("in/tuned").to_str().unwrap(), "--parent", "base"]);
    let good: Vec<Vec<u8>> = packs(&b).iter().map(|p| fs::read(p).unwrap()).collect();
    let whole = || packs(&b).iter().zip(&good).all(|(p, good)| fs::read(p).unwrap() == *good);
    for (n, pack) in packs(&b).iter().enumerate() {
        for at in [3, 28, 100, 5000, good[n].len() - 70, good[n].len() - 1] {
            change(pack, |bytes| bytes[at] ^= 8);
            for model in ["base", "tuned"] {
                b.ok(&["verify", b.path("in").join(model).to_str().unwrap(), model]);
            }
            assert_eq!(findings(&b, &[]), [""; 0], "byte {at}");
            assert!(whole(), "byte {at}");
        }
        change(pack, |bytes| bytes[2000..4000].fill(0));
        assert_eq!(findings(&b, &[]), [""; 0]);
        assert!(whole());
    }
    // Through a mount.
    if let Some(m) = b.mount(&[]) {
        change(&packs(&b)[1], |bytes| bytes[9000] ^= 1);
        let file = fs::read(m.file("tuned", "v1", "model.safetensors")).unwrap();
        assert!(file == fs::read(b.path("in/tuned/model.safetensors")).unwrap() && whole());
    }
    // More than parity can mend is found, and gc takes the parity with the pack.
    b.ok(&["rm", "tuned", "base"]);
    b.ok(&["gc"]);
    let left: Vec<_> = fs::read_dir(b.repo().join("packs")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|n| n == "gate" || n == "sketches"), "{left:?}");
}
