//! The house rules, held as data: which room may import which, who owns each crate, how long files and
//! functions get, and that every file opens with its contract.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A room, its files below `src/`, and the rooms that it may import.
const LAYERS: &[(&str, &[&str], &[&str])] = &[
    ("sync", &["sync.rs"], &[]),
    ("model", &["model/"], &[]),
    ("codec", &["codec/"], &["model"]),
    ("store", &["store/"], &["model", "sync"]),
    ("repo", &["repo/"], &["model", "codec", "store", "sync"]),
    ("vfs", &["vfs/"], &["model", "repo", "sync"]),
    ("fuse", &["fuse.rs", "fuse/"], &["model", "vfs", "sync"]),
    ("mount", &["mount.rs"], &["model", "vfs", "fuse"]),
    ("control", &["control.rs"], &["model", "repo"]),
    ("cli", &["cli/"], &["model", "codec", "store", "repo", "vfs", "mount", "control"]),
];

/// Crates with an owner: no other room imports them.
const OWNERS: &[(&str, &[&str])] = &[
    ("zstd", &["codec"]),
    ("sled", &["store"]),
    ("reed_solomon_simd", &["store"]),
    ("rayon", &["repo"]),
    ("shuttle", &["sync", "repo", "vfs"]),
    ("similar", &["repo"]),
    ("diffy", &["repo"]),
    ("quick_cache", &["store", "repo", "vfs"]),
    ("fuser", &["fuse"]),
    ("rustix", &["repo", "vfs"]),
    ("petgraph", &["model"]),
    ("safetensors", &["model"]),
    ("clap", &["cli"]),
    ("clap_complete", &["cli"]),
    ("anstream", &["cli"]),
    ("anstyle", &["cli"]),
    ("anyhow", &["cli"]),
    ("indicatif", &["cli"]),
    ("env_logger", &["cli"]),
    ("bytesize", &["cli"]),
    ("glob", &["model"]),
    ("shlex", &["cli"]),
];

/// Lines of a file, of a function.
const MAX_FILE: usize = 800;
const MAX_FUNCTION: usize = 70;

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files() -> Vec<(String, String)> {
    let mut queue = vec![src()];
    let mut out = Vec::new();
    while let Some(dir) = queue.pop() {
        for entry in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            if entry.is_dir() {
                queue.push(entry);
            } else if entry.extension().is_some_and(|e| e == "rs") {
                let name = entry.strip_prefix(src()).unwrap().to_str().unwrap().to_owned();
                out.push((name, fs::read_to_string(entry).unwrap()));
            }
        }
    }
    out.sort();
    assert!(out.len() > 40, "only {} files found: is the walk right?", out.len());
    out
}

fn room_of(file: &str) -> Option<&'static (&'static str, &'static [&'static str], &'static [&'static str])> {
    LAYERS.iter().find(|(_, places, _)| places.iter().any(|p| file == *p || (p.ends_with('/') && file.starts_with(p))))
}

/// Code without comments and doc text, up to the file's tests.
fn code(text: &str) -> String {
    let before_tests = text.split("\n#[cfg(test)]\nmod ").next().unwrap();
    before_tests.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Rooms named as `crate::room`.
fn rooms_used(code: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for part in code.split("crate::").skip(1) {
        match part.strip_prefix('{') {
            Some(list) => used.extend(list.split('}').next().unwrap().split(',').map(first_word)),
            None => {
                used.insert(first_word(part));
            }
        }
    }
    used.retain(|u| LAYERS.iter().any(|(room, ..)| room == u));
    used
}

fn first_word(s: &str) -> String {
    s.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn rooms_import_only_what_the_table_allows() {
    let mut wrong = Vec::new();
    for (file, text) in files() {
        if file == "lib.rs" || file == "main.rs" {
            continue;
        }
        let (room, _, allowed) = room_of(&file).unwrap_or_else(|| panic!("{file} is in no room"));
        for used in rooms_used(&code(&text)) {
            if used != *room && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{file} imports {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn each_crate_has_one_owner() {
    let mut wrong = Vec::new();
    for (file, text) in files() {
        let Some((room, ..)) = room_of(&file) else { continue };
        let code = code(&text);
        for (krate, owners) in OWNERS {
            let used = code
                .match_indices(&format!("{krate}::"))
                .any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'));
            if used && !owners.contains(room) {
                wrong.push(format!("{file} uses {krate}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_file_opens_with_its_contract_and_stays_short() {
    let mut wrong = Vec::new();
    for (file, text) in files() {
        if !text.starts_with("//!") && !text.starts_with("#![") {
            wrong.push(format!("{file} does not say what it is"));
        }
        if text.lines().count() > MAX_FILE {
            wrong.push(format!("{file} has {} lines", text.lines().count()));
        }
        wrong.extend(long_functions(&text).into_iter().map(|f| format!("{file}: {f}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Functions (by rustfmt's indentation) of more than [`MAX_FUNCTION`] lines.
fn long_functions(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut long = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let head = line.trim_start().split("fn ").next().unwrap_or("");
        let is_fn = line.contains("fn ")
            && head.split_whitespace().all(|w| {
                w.starts_with("pub") || ["const", "unsafe", "extern", "\"C\"", "async"].contains(&w) || w.ends_with(')')
            });
        if !is_fn || line.trim_start().starts_with("//") || line.ends_with(';') {
            continue;
        }
        let close = format!("{}}}", " ".repeat(indent));
        let length = lines[start..].iter().position(|l| *l == close).unwrap_or(0);
        if length > MAX_FUNCTION {
            long.push(format!("{} ({length} lines)", line.trim()));
        }
    }
    long
}

#[test]
fn unsafe_code_says_why_it_is_sound() {
    let mut wrong = Vec::new();
    for (file, text) in files() {
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let opens = line.contains("unsafe {") || line.contains("unsafe impl");
            let told = lines[i.saturating_sub(4)..=i].iter().any(|l| l.contains("SAFETY:"));
            if opens && !line.trim_start().starts_with("//") && !told {
                wrong.push(format!("{file}:{}", i + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
