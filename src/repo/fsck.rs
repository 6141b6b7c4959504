//! Checking everything: each byte of each pack, each block decoded and held against its object's id, each
//! living version's record, recipes and objects.
//!
//! Damage is a finding, never an end: whatever else can be read is still checked. A finding names the block,
//! the tensor and the versions that need it. Leftovers of a crash (an unsealed pack, a torn journal tail,
//! a pack that was never published) are no finding.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use serde::Serialize;

use super::progress::Progress;
use super::{Head, Repo, RepoError};
use crate::codec;
use crate::model::id::Id;
use crate::model::layout::{self, What};
use crate::model::name::printable;
use crate::model::record::{EntryKind, FileEntry};
use crate::store::pack::Kind;
use crate::store::{ScanItem, StoreError};

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Finding {
    /// `pack`, `block`, `object`, `recipe`, `version`, `missing`, `unreadable` (a good block on a damaged
    /// base), `journal`, `catalog`, `file` (a kept one).
    pub kind: String,
    /// What is damaged, and whom it concerns.
    pub what: String,
    #[serde(rename = "where")]
    pub place: String,
}

/// The outcome of a check.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub ok: bool,
    pub findings: Vec<Finding>,
    pub blocks_checked: u64,
    pub versions_checked: u64,
}

/// Damaged or unreadable: an object as a whole, or one of its blocks.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Broken {
    object: Id,
    block: Option<u64>,
    kind: &'static str,
    why: String,
    place: String,
}

/// Checks all packs and the given living versions.
pub fn fsck(repo: &Arc<Repo>, living: &[Head], progress: &dyn Progress) -> Result<Report, RepoError> {
    progress.expect(repo.packs.pack_bytes());
    let mut findings = Vec::new();
    let mut broken = BTreeSet::new();
    for pack in repo.packs.pack_names() {
        scan_pack(repo, &pack, &mut findings, &mut broken)?;
    }
    let checked = AtomicU64::new(0);
    for pack in repo.packs.pack_names() {
        decode_pack(repo, &pack, &checked, &mut broken, progress)?;
    }
    living.iter().for_each(|h| check_version(repo, h, &mut findings));
    findings.extend(name_broken(repo, living, broken));
    findings.sort();
    findings.dedup();
    Ok(Report {
        ok: findings.is_empty(),
        findings,
        blocks_checked: checked.into_inner(),
        versions_checked: living.len() as u64,
    })
}

fn scan_pack(
    repo: &Repo,
    pack: &str,
    findings: &mut Vec<Finding>,
    broken: &mut BTreeSet<Broken>,
) -> Result<(), RepoError> {
    repo.packs.scan(pack, &mut |item| {
        let ScanItem::Damage(d) = item else { return };
        let place = format!("packs/{}.pack at byte {}", d.pack, d.offset);
        match d.of {
            Some((Kind::Object, object)) => {
                let kind = if d.block.is_some() { "block" } else { "object" };
                broken.insert(Broken { object, block: d.block, kind, why: d.what, place });
            }
            Some((kind, id)) => {
                let what = format!("{} {id}: {}", kind.as_str(), d.what);
                findings.push(Finding { kind: kind.as_str().to_owned(), what, place });
            }
            None => findings.push(Finding { kind: "pack".to_owned(), what: d.what, place }),
        }
    })?;
    Ok(())
}

/// Decodes and checks every block of a pack's objects.
fn decode_pack(
    repo: &Repo,
    pack: &str,
    checked: &AtomicU64,
    broken: &mut BTreeSet<Broken>,
    progress: &dyn Progress,
) -> Result<(), RepoError> {
    let place = || format!("packs/{pack}.pack");
    for (kind, id) in repo.packs.names_in(pack) {
        progress.check()?;
        progress.stored(repo.packs.object_stored_bytes(&id).filter(|_| kind == Kind::Object).unwrap_or(0));
        if kind != Kind::Object || broken.iter().any(|b| b.object == id && b.block.is_none()) {
            continue;
        }
        let object = match repo.open_object(&id) {
            Ok(object) => object,
            Err(e) => {
                let (block, why) = (None, e.to_string());
                broken.insert(Broken { object: id, block, kind: "unreadable", why, place: place() });
                continue;
            }
        };
        let failed: Vec<(u64, RepoError)> =
            (0..object.blocks()).into_par_iter().filter_map(|i| repo.block(&object, i).err().map(|e| (i, e))).collect();
        checked.fetch_add(object.blocks(), Ordering::Relaxed);
        for (block, e) in failed {
            if broken.iter().any(|b| b.object == id && b.block == Some(block)) {
                continue; // Its frame told already.
            }
            let delta = codec::needs_bases(object.stored.record.blocks[block as usize].tag);
            let kind = if delta { "unreadable" } else { "block" };
            let why = if delta { format!("{e}, or its base is damaged") } else { e.to_string() };
            broken.insert(Broken { object: id, block: Some(block), kind, why, place: place() });
        }
    }
    Ok(())
}

fn check_version(repo: &Arc<Repo>, head: &Head, findings: &mut Vec<Finding>) {
    let name = format!("{}@{}", head.model, head.version);
    let mut push = |kind: &str, what: String| {
        findings.push(Finding { kind: kind.to_owned(), what, place: name.clone() });
    };
    let record = match repo.record(&head.id) {
        Ok(record) => record,
        Err(e) => return push(missing_or(&e, "version"), e.to_string()),
    };
    for file in record.files.iter().filter(|f| f.kind == EntryKind::File) {
        let path = printable(&file.path);
        let recipe = match repo.packs.recipe(&file.recipe) {
            Ok(recipe) => recipe,
            Err(e) => {
                let e = RepoError::from(e);
                push(missing_or(&e, "recipe"), format!("file '{path}': {e}"));
                continue;
            }
        };
        if recipe.size() != file.bytes || recipe.digest != file.digest {
            push("recipe", format!("file '{path}': its recipe makes another file"));
        }
        for e in recipe.extents.iter().filter(|e| !repo.packs.has_object(&e.object)) {
            push("missing", format!("file '{path}': object {} is in no pack", e.object));
        }
    }
}

fn missing_or<'a>(e: &RepoError, kind: &'a str) -> &'a str {
    match e {
        RepoError::Store(StoreError::Missing { .. }) => "missing",
        _ => kind,
    }
}

/// Who needs each broken object: `tensor 'w' of a/b@v1 (model.safetensors)`.
fn name_broken(repo: &Arc<Repo>, living: &[Head], broken: BTreeSet<Broken>) -> Vec<Finding> {
    let wanted: HashSet<Id> = broken.iter().map(|b| b.object).collect();
    let users = if wanted.is_empty() { BTreeMap::new() } else { find_users(repo, living, &wanted) };
    let finding = |b: Broken| {
        let of = match users.get(&b.object) {
            Some(users) => users.iter().cloned().collect::<Vec<_>>().join(", "),
            None => "no living version".to_owned(),
        };
        let block = b.block.map_or(String::new(), |i| format!("block {i} of "));
        let what = format!("{block}object {}: {}; needed by {of}", b.object, b.why);
        Finding { kind: b.kind.to_owned(), what, place: b.place }
    };
    broken.into_iter().map(finding).collect()
}

fn find_users(repo: &Arc<Repo>, living: &[Head], wanted: &HashSet<Id>) -> BTreeMap<Id, BTreeSet<String>> {
    let mut users = BTreeMap::<Id, BTreeSet<String>>::new();
    for head in living {
        let Ok(record) = repo.record(&head.id) else { continue };
        for file in &record.files {
            for (object, piece) in wanted_in(repo, file, wanted) {
                let text = format!("{piece} of {}@{} ({})", head.model, head.version, printable(&file.path));
                users.entry(object).or_default().insert(text);
            }
        }
    }
    users
}

fn wanted_in(repo: &Arc<Repo>, file: &FileEntry, wanted: &HashSet<Id>) -> Vec<(Id, String)> {
    let Ok(recipe) = repo.packs.recipe(&file.recipe) else { return vec![] };
    if !recipe.extents.iter().any(|e| wanted.contains(&e.object)) {
        return vec![];
    }
    let names = tensor_names(repo, file);
    let mut at = 0;
    let mut found = Vec::new();
    for e in recipe.extents {
        if wanted.contains(&e.object) {
            let name = names.get(&at).map_or("bytes".to_owned(), |n| format!("tensor '{}'", printable(n)));
            found.push((e.object, name));
        }
        at += e.length;
    }
    found
}

/// First byte → name of each tensor of a file, as far as its header can be read.
fn tensor_names(repo: &Arc<Repo>, file: &FileEntry) -> BTreeMap<u64, String> {
    let read = || -> Option<Vec<layout::Piece>> {
        let reader = repo.open_file(&file.recipe).ok()?;
        let mut first = [0; 8];
        reader.read_at(0, &mut first).ok()?;
        let mut header = vec![0; layout::header_length(&first, reader.size()).ok()? as usize];
        reader.read_at(8, &mut header).ok()?;
        layout::cut(&header, reader.size()).ok()
    };
    let pieces = if file.path.ends_with(".safetensors") { read().unwrap_or_default() } else { vec![] };
    let named = |p: layout::Piece| match p.what {
        What::Tensor { name, .. } => Some((p.offset, name)),
        What::Blob => None,
    };
    pieces.into_iter().filter_map(named).collect()
}
