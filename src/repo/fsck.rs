//! Checking everything: each byte of each pack, each block decoded and held against its object's id, each
//! living version's record, recipes and objects. Or less of it ([`Depth`]).
//!
//! Damage is a finding, never an end: whatever else can be read is still checked. A finding names the block,
//! the tensor and the versions that need it. Leftovers of a crash (an unsealed pack, a torn journal tail,
//! a pack that was never published) are no finding.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use rayon::prelude::*;
use serde::Serialize;

use super::progress::Progress;
use super::{Head, Repo, RepoError};
use crate::codec;
use crate::model::id::Id;
use crate::model::layout::{self, What};
use crate::model::name::printable;
use crate::model::record::{EntryKind, FileEntry};
use crate::store::ScanItem;
use crate::store::pack::Kind;
use crate::store::packs::is_gone;

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

/// How much is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// Indexes, records and recipes; that every object is there with all it is built on.
    Quick,
    /// And every byte of every pack, every block decoded.
    Full,
    /// Of one living version: all that it is made of.
    Version(Id),
}

/// Damaged or unreadable: an object as a whole, or one of its blocks.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Broken {
    object: Id,
    block: Option<u64>,
    kind: &'static str,
    why: String,
    place: String,
    /// It, or what it is built on, is in no pack.
    baseless: bool,
}

/// Checks all packs and the given living versions.
pub fn fsck(repo: &Arc<Repo>, living: &[Head], progress: &dyn Progress) -> Result<Report, RepoError> {
    check(repo, living, Depth::Full, progress)
}

/// As deep as is asked.
pub fn check(repo: &Arc<Repo>, living: &[Head], depth: Depth, progress: &dyn Progress) -> Result<Report, RepoError> {
    repo.distrust_footers()?;
    let mut findings = Vec::new();
    let mut broken = BTreeSet::new();
    let mut blocks = 0;
    let named: Vec<Head> = match depth {
        Depth::Version(id) => living.iter().filter(|h| h.id == id).cloned().collect(),
        _ => living.to_vec(),
    };
    match depth {
        Depth::Quick => {
            let told = |d: crate::store::Finding| pack_finding(d, &mut broken, &mut findings);
            repo.packs.findings().into_iter().for_each(told);
            let objects = objects_of(repo, &named);
            progress.expect(objects.len() as u64);
            broken.extend(open_all(repo, &objects, progress)?);
        }
        Depth::Full => {
            progress.expect(2 * repo.packs.pack_bytes());
            for (pack, objects) in scan_all(repo, &mut findings, &mut broken, progress)? {
                blocks += decode_all(repo, &objects, &format!("packs/{pack}.pack"), &mut broken, progress)?;
            }
        }
        Depth::Version(_) => {
            let objects: Vec<Id> =
                objects_of(repo, &named).into_iter().filter(|id| repo.packs.has_object(id)).collect();
            progress.expect(objects.iter().filter_map(|id| repo.packs.object_stored_bytes(id)).sum());
            let place = named.first().map_or(String::new(), |h| format!("{}@{}", h.model, h.version));
            blocks += decode_all(repo, &objects, &place, &mut broken, progress)?;
        }
    }
    named.iter().for_each(|h| check_version(repo, h, &mut findings));
    findings.extend(name_broken(repo, living, broken));
    findings.sort();
    findings.dedup();
    let (ok, versions_checked) = (findings.is_empty(), named.len() as u64);
    Ok(Report { ok, findings, blocks_checked: blocks, versions_checked })
}

/// Every object that these versions name, once, as far as their records can be read.
fn objects_of(repo: &Repo, heads: &[Head]) -> Vec<Id> {
    let mut seen = HashSet::new();
    let records = heads.iter().filter_map(|h| repo.record(&h.id).ok());
    let files = records.flat_map(|r| r.files).filter(|f| f.kind == EntryKind::File);
    let extents = files.filter_map(|f| repo.packs.recipe(&f.recipe).ok()).flat_map(|r| r.extents);
    extents.map(|e| e.object).filter(|id| seen.insert(*id)).collect()
}

/// Opens objects with all that they are built on; those that are in no pack are told by [`check_version`].
fn open_all(repo: &Repo, objects: &[Id], progress: &dyn Progress) -> Result<Vec<Broken>, RepoError> {
    let open = |id: &Id| {
        progress.stored(1);
        let e = repo.open_object(id).err().filter(|_| repo.packs.has_object(id))?;
        let place = repo.packs.pack_of_object(id).map_or(String::new(), |p| format!("packs/{p}.pack"));
        Some(Broken {
            object: *id,
            block: None,
            kind: "unreadable",
            why: e.to_string(),
            place,
            baseless: e.is_missing(),
        })
    };
    progress.check()?;
    Ok(objects.par_iter().filter_map(open).collect())
}

/// Reads every byte of every pack. Where one vanishes meanwhile, what it held is in another, which is read too. Returns
/// the packs that were read, with their objects.
fn scan_all(
    repo: &Repo,
    findings: &mut Vec<Finding>,
    broken: &mut BTreeSet<Broken>,
    progress: &dyn Progress,
) -> Result<Vec<(String, Vec<Id>)>, RepoError> {
    let (mut todo, mut done) = (repo.packs.pack_names(), Vec::new());
    let mut seen: HashSet<String> = todo.iter().cloned().collect();
    todo.reverse();
    while let Some(pack) = todo.pop() {
        match scan_pack(repo, &pack, findings, broken, progress) {
            Err(RepoError::Store(e)) if is_gone(&e) => {
                repo.refresh()?;
                todo.extend(repo.packs.pack_names().into_iter().filter(|name| seen.insert(name.clone())));
            }
            read => done.push((pack, read?)),
        }
    }
    Ok(done)
}

/// The objects that it holds.
fn scan_pack(
    repo: &Repo,
    pack: &str,
    findings: &mut Vec<Finding>,
    broken: &mut BTreeSet<Broken>,
    progress: &dyn Progress,
) -> Result<Vec<Id>, RepoError> {
    progress.check()?;
    let held = repo.packs.scan(pack, &mut |item| match item {
        ScanItem::Damage(d) => pack_finding(d, broken, findings),
        ScanItem::Block { encoded, .. } => progress.stored(encoded.len() as u64),
        _ => {}
    })?;
    Ok(held.into_iter().filter(|(kind, _)| *kind == Kind::Object).map(|(_, id)| id).collect())
}

fn pack_finding(d: crate::store::Finding, broken: &mut BTreeSet<Broken>, findings: &mut Vec<Finding>) {
    let place = format!("packs/{}.pack at byte {}", d.pack, d.offset);
    match d.of {
        Some((Kind::Object, object)) => {
            let kind = if d.block.is_some() { "block" } else { "object" };
            broken.insert(Broken { object, block: d.block, kind, why: d.what, place, baseless: false });
        }
        Some((kind, id)) => {
            let what = format!("{} {id}: {}", kind.as_str(), d.what);
            findings.push(Finding { kind: kind.as_str().to_owned(), what, place });
        }
        None => findings.push(Finding { kind: "pack".to_owned(), what: d.what, place }),
    }
}

/// Decodes and checks every block of these objects, on all cores. Returns how many blocks there were.
fn decode_all(
    repo: &Repo,
    objects: &[Id],
    place: &str,
    broken: &mut BTreeSet<Broken>,
    progress: &dyn Progress,
) -> Result<u64, RepoError> {
    let known = &*broken;
    let decode = |id: &Id| -> Result<(u64, Vec<Broken>), RepoError> {
        progress.check()?;
        match known.iter().any(|b| b.object == *id && b.block.is_none()) {
            true => Ok((0, vec![])),
            false => Ok(decode_object(repo, id, place, known, progress)),
        }
    };
    let done = objects.par_iter().map(decode).collect::<Result<Vec<_>, RepoError>>()?;
    let blocks = done.iter().map(|(blocks, _)| blocks).sum();
    broken.extend(done.into_iter().flat_map(|(_, found)| found));
    Ok(blocks)
}

fn decode_object(
    repo: &Repo,
    id: &Id,
    place: &str,
    known: &BTreeSet<Broken>,
    progress: &dyn Progress,
) -> (u64, Vec<Broken>) {
    let broken = |block, kind, why| Broken { object: *id, block, kind, why, place: place.to_owned(), baseless: false };
    let object = match repo.open_object(id) {
        Ok(object) => object,
        Err(e) => {
            let baseless = e.is_missing();
            return (0, vec![Broken { baseless, ..broken(None, "unreadable", e.to_string()) }]);
        }
    };
    let check = |i: u64| {
        let error = repo.block(&object, i).err();
        progress.stored(object.stored.record.blocks[i as usize].encoded as u64);
        // Its frame may have told already.
        let e = error.filter(|_| !known.iter().any(|b| b.object == *id && b.block == Some(i)))?;
        let found = match codec::needs_bases(object.stored.record.blocks[i as usize].tag) {
            true => broken(Some(i), "unreadable", format!("{e}, or its base is damaged")),
            false => broken(Some(i), "block", e.to_string()),
        };
        Some(Broken { baseless: e.is_missing(), ..found })
    };
    (object.blocks(), (0..object.blocks()).into_par_iter().filter_map(check).collect())
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
    if e.is_missing() { "missing" } else { kind }
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
    // What is dead may have lost its base: a crash within gc leaves it so, and the next gc goes on. Or gc is under way.
    let left = |b: &Broken| b.baseless && !users.contains_key(&b.object);
    broken.into_iter().filter(|b| !left(b)).map(finding).collect()
}

pub(super) fn find_users(repo: &Arc<Repo>, living: &[Head], wanted: &HashSet<Id>) -> BTreeMap<Id, BTreeSet<String>> {
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
