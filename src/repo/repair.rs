//! Making the best of damage: a journal salvaged, bytes healed from elsewhere, broken packs written anew.
//!
//! What is healed is put into a new pack, which counts before the damaged one, by content: a source may be another
//! repository or any directory with the original files, and nothing of it is believed that does not hash to the id that is
//! missing. What cannot be healed stays named and lost, everything else is as it was. No damaged file is thrown away: it is
//! renamed `.damaged`, for a better day.
//!
//! It is done alone at the gate, and with the repository's lock where the journal is concerned.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use super::encode::{Todo, encode_all};
use super::hash::{HashedFile, HashedPiece, hash_file};
use super::progress::{Progress, Silent};
use super::roots::Roots;
use super::{Head, Repo, RepoError, walk};
use crate::codec::Effort;
use crate::model::event::Event;
use crate::model::id::Id;
use crate::model::layout::{Piece, What};
use crate::model::name::{ModelName, VersionName};
use crate::model::record::{EntryKind, FileEntry, VersionRecord};
use crate::store::catalog::Catalog;
use crate::store::journal::{Salvage, salvage, write_anew};
use crate::store::pack::{Kind, PackWriter};
use crate::store::{Position, RepoLock, gate};

/// What cannot be read.
#[derive(Default)]
pub struct Wanted {
    pub versions: BTreeSet<Id>,
    pub recipes: BTreeSet<Id>,
    pub objects: BTreeSet<Id>,
}

/// What was mended, in words.
#[derive(Default)]
pub struct Mended {
    pub lines: Vec<String>,
}

// ---- the journal

/// The living versions by what is left of the journal, and what is lost of it.
pub fn salvaged(repo: &Repo) -> Result<(Vec<Head>, Salvage), RepoError> {
    repo.distrust_footers()?;
    let salvage = salvage(&*repo.disk, &repo.dir.join("journal"))?;
    let catalog = Catalog::temporary()?;
    for (n, frame) in (1..).zip(&salvage.frames) {
        catalog.apply(frame, Position { offset: n, chain: [0; 8] })?;
    }
    Ok((catalog.all()?, salvage))
}

/// Writes the journal anew from what is left of it and, for commits that are lost, from the version records in the packs.
pub fn journal(repo: &Repo, _lock: &RepoLock) -> Result<Mended, RepoError> {
    let (_, left) = salvaged(repo)?;
    let mut frames = left.frames;
    let whole = frames.len();
    let mut names = Names::default();
    frames.iter_mut().for_each(|f| f.retain_mut(|event| names.take(event)));
    let mut known: HashSet<Id> = names.committed.keys().copied().collect();
    let mut lost: Vec<(Id, VersionRecord)> = repo
        .packs
        .versions()
        .into_iter()
        .filter(|id| !known.contains(id))
        .filter(|id| Roots::of_version(repo, id).and_then(|roots| roots.live(repo)).is_ok())
        .filter_map(|id| Some((id, repo.record(&id).ok()?)))
        .collect();
    lost.sort_by_key(|(id, r)| (r.created, *id));
    let mut mended = Mended::default();
    let bytes: u64 = left.lost.iter().map(|(from, to)| to - from).sum();
    mended.lines.push(format!("journal: {whole} entries are whole, {bytes} bytes are lost"));
    for (id, r) in lost {
        let committed = format!("{}@{}", r.model, r.version);
        known.insert(id);
        let mut event = commit_of(repo, id, r, &known);
        names.take(&mut event);
        if let Event::Commit { model, version, .. } = &event {
            let name = format!("{model}@{version}");
            let is = if name == committed {
                "as it was committed".to_owned()
            } else {
                format!("as {name}: its name is taken")
            };
            mended.lines.push(format!("journal: {committed} is back, {is}"));
        }
        frames.push(vec![event]);
    }
    frames.retain(|f| !f.is_empty());
    write_anew(&*repo.disk, &repo.dir.join("journal"), &frames)?;
    Catalog::delete(&repo.dir.join("catalog"))?;
    Ok(mended)
}

/// Who has which name, so that nobody loses it where a renaming or a removal is lost.
#[derive(Default)]
struct Names {
    of: HashMap<(ModelName, VersionName), Id>,
    committed: HashMap<Id, (ModelName, VersionName)>,
    removed: HashSet<Id>,
}

impl Names {
    /// Gives a commit another name where its own is taken. `false` for what cannot happen without what is lost.
    fn take(&mut self, event: &mut Event) -> bool {
        match event {
            Event::Commit { model, version, id, .. } if !self.committed.contains_key(id) => {
                let wish = version.clone();
                for n in 2.. {
                    match self.of.get(&(model.clone(), version.clone())) {
                        Some(other) if !self.removed.contains(other) => *version = wish.with_suffix(n),
                        _ => break,
                    }
                }
                self.of.insert((model.clone(), version.clone()), *id);
                self.committed.insert(*id, (model.clone(), version.clone()));
                self.removed.remove(id); // It comes after its removal only where it was lost, and then lives.
            }
            Event::Remove { id, .. } => drop(self.removed.insert(*id)),
            Event::Restore { id, .. } => {
                self.removed.remove(id);
                self.of.extend(self.committed.get(id).map(|name| (name.clone(), *id)));
            }
            Event::Rename { from, to } => {
                if self.of.keys().any(|(model, _)| model == to) {
                    return false;
                }
                let moved = |((m, v), id)| ((if m == *from { to.clone() } else { m }, v), id);
                self.of = std::mem::take(&mut self.of).into_iter().map(moved).collect();
                self.committed.values_mut().filter(|(m, _)| m == from).for_each(|(m, _)| *m = to.clone());
            }
            _ => {}
        }
        true
    }
}

/// The commit that a record tells of. Edges to what was never committed are left out.
fn commit_of(repo: &Repo, id: Id, mut r: VersionRecord, known: &HashSet<Id>) -> Event {
    r.previous.take_if(|p| !known.contains(p));
    r.parents.retain(|p| known.contains(&p.id));
    Event::commit(&r, id, repo.packs.pack_of_version(&id).unwrap_or_default(), false, None)
}

// ---- packs

/// What these versions need and cannot be read.
pub fn wanted(repo: &Arc<Repo>, living: &[Head], progress: &dyn Progress) -> Result<Wanted, RepoError> {
    repo.distrust_footers()?;
    let mut out = Wanted::default();
    let (mut objects, mut seen) = (Vec::new(), HashSet::new());
    for head in living {
        let Ok(record) = repo.record(&head.id) else {
            out.versions.insert(head.id);
            continue;
        };
        for f in record.files.iter().filter(|f| f.kind == EntryKind::File) {
            match repo.packs.recipe(&f.recipe) {
                Ok(r) => objects.extend(r.extents.iter().map(|e| e.object).filter(|id| seen.insert(*id))),
                Err(_) => drop(out.recipes.insert(f.recipe)),
            }
        }
    }
    let bad = |id: &&Id| {
        repo.open_object(id).is_err_and(|_| true)
            || repo.open_object(id).is_ok_and(|o| (0..o.blocks()).any(|i| repo.block(&o, i).is_err()))
    };
    progress.check()?;
    out.objects = objects.par_iter().filter(bad).copied().collect();
    let bases: Vec<Id> = out.objects.iter().flat_map(|id| bases_of(repo, id)).collect();
    out.objects.extend(bases.iter().filter(bad).copied());
    Ok(out)
}

/// All that an object is built on, as far as its record can be read.
fn bases_of(repo: &Repo, id: &Id) -> Vec<Id> {
    let mut found = Vec::new();
    let mut todo = vec![*id];
    while let Some(id) = todo.pop() {
        let bases = repo.packs.object(&id).map(|o| o.record.bases.clone()).unwrap_or_default();
        for b in bases.iter().filter(|b| !found.contains(&b.id)).map(|b| b.id).collect::<Vec<_>>() {
            found.push(b);
            todo.push(b);
        }
    }
    found
}

impl Wanted {
    pub fn is_empty(&self) -> bool {
        self.versions.is_empty() && self.recipes.is_empty() && self.objects.is_empty()
    }
}

/// Heals what is wanted from another repository, or from a directory of files.
pub fn heal(repo: &Arc<Repo>, mut wanted: Wanted, from: &Path, progress: &dyn Progress) -> Result<Mended, RepoError> {
    let mut writer = PackWriter::create_beside(repo.disk.clone(), &repo.dir.join("packs"))?;
    let mut counts = [0usize; 3];
    let files = match from.join("format.json").exists() {
        true => {
            let other =
                Repo::open(&from.canonicalize().map_err(|e| RepoError::file(from, e))?, repo.disk.clone(), 64 << 20)?;
            for id in std::mem::take(&mut wanted.versions) {
                if let Ok(bytes) = other.packs.version(&id) {
                    writer.put_version(&bytes)?;
                    counts[0] += 1;
                    want_files(repo, &bytes, &mut wanted);
                }
            }
            for id in wanted.recipes.clone() {
                if let Ok(recipe) = other.packs.recipe(&id) {
                    writer.put_recipe(&recipe)?;
                    wanted.recipes.remove(&id);
                    counts[1] += 1;
                    wanted
                        .objects
                        .extend(recipe.extents.iter().map(|e| e.object).filter(|o| !repo.packs.has_object(o)));
                }
            }
            stored_files(&other, &wanted)?
        }
        false => hashed_files(from, progress)?,
    };
    for file in &files {
        let recipe = file.recipe();
        if wanted.recipes.remove(&recipe.id()) {
            writer.put_recipe(&recipe)?;
            counts[1] += 1;
            wanted.objects.extend(recipe.extents.iter().map(|e| e.object).filter(|o| !repo.packs.has_object(o)));
        }
    }
    let mut todo: Vec<Todo> = Vec::new();
    for file in &files {
        for piece in &file.pieces {
            if wanted.objects.remove(&piece.id) {
                todo.push(Todo { file, piece, near: vec![], made: None });
            }
        }
    }
    counts[2] = todo.len();
    encode_all(repo, &todo, Effort::Default, &mut writer, progress)?;
    if !writer.is_empty() {
        writer.seal()?;
        repo.refresh()?;
    }
    let [versions, recipes, objects] = counts;
    let line = format!("healed {objects} tensors and blobs, {recipes} recipes, {versions} version records");
    Ok(Mended { lines: vec![line] })
}

/// A version record is back: so must be what it names.
fn want_files(repo: &Repo, bytes: &[u8], wanted: &mut Wanted) {
    let Ok(record) = VersionRecord::decode(bytes) else { return };
    for f in record.files.iter().filter(|f| f.kind == EntryKind::File) {
        match repo.packs.recipe(&f.recipe) {
            Ok(r) => wanted.objects.extend(r.extents.iter().map(|e| e.object).filter(|o| !repo.packs.has_object(o))),
            Err(_) => drop(wanted.recipes.insert(f.recipe)),
        }
    }
}

/// The files of another repository that hold something that is wanted.
fn stored_files(other: &Arc<Repo>, wanted: &Wanted) -> Result<Vec<HashedFile>, RepoError> {
    let (mut left, mut seen) = (wanted.objects.clone(), HashSet::new());
    let mut found = Vec::new();
    for id in other.packs.versions() {
        let Ok(record) = other.record(&id) else { continue };
        for entry in record.files.iter().filter(|f| f.kind == EntryKind::File && seen.insert(f.recipe)) {
            let Ok(recipe) = other.packs.recipe(&entry.recipe) else { continue };
            if recipe.extents.iter().any(|e| left.contains(&e.object)) {
                let file = stored_file(other, entry)?;
                left.retain(|id| !file.pieces.iter().any(|p| p.id == *id));
                found.push(file);
            }
        }
    }
    Ok(found)
}

/// A file's whole pieces. One that the other repository cannot read either is left out.
fn stored_file(other: &Arc<Repo>, entry: &FileEntry) -> Result<HashedFile, RepoError> {
    let reader = other.open_file(&entry.recipe)?;
    let mut pieces = Vec::new();
    let mut offset = 0;
    for e in other.packs.recipe(&entry.recipe)?.extents {
        if let Some(piece) =
            whole_piece(other, &e.object, offset).filter(|p| e.offset == 0 && p.piece.length == e.length)
        {
            pieces.push(piece);
        }
        offset += e.length;
    }
    let (name, source) = (entry.path.clone(), PathBuf::from(&entry.path));
    Ok(HashedFile { name, source, size: entry.bytes, digest: entry.digest, pieces, stored: Some(Arc::new(reader)) })
}

fn whole_piece(other: &Repo, id: &Id, offset: u64) -> Option<HashedPiece> {
    let object = other.open_object(id).ok()?;
    (0..object.blocks()).into_par_iter().all(|i| other.block(&object, i).is_ok()).then_some(())?;
    let r = &object.stored.record;
    let what = match r.dtype.is_empty() {
        true => What::Blob,
        false => What::Tensor { name: String::new(), dtype: r.dtype.clone(), shape: r.shape.clone() },
    };
    Some(HashedPiece { piece: Piece { offset, length: r.length, what }, id: *id, values: r.values.clone(), made: None })
}

/// All files below a directory, hashed; those that cannot be are left out.
fn hashed_files(dir: &Path, progress: &dyn Progress) -> Result<Vec<HashedFile>, RepoError> {
    let mut out = Vec::new();
    for found in walk::find(dir)? {
        if let walk::Found::File { name, source, .. } = found {
            match hash_file(&name, &source, &Silent) {
                Ok(file) => out.push(file),
                Err(e) => log::warn!("{} is no help: {e}", source.display()),
            }
        }
        progress.check()?;
    }
    Ok(out)
}

/// Writes packs whose structure is damaged anew, with all that can be read of them.
pub fn rewrite(repo: &Repo, progress: &dyn Progress) -> Result<Mended, RepoError> {
    repo.distrust_footers()?;
    let mut mended = Mended::default();
    for pack in repo.packs.pack_names() {
        progress.check()?;
        let mut damaged = 0;
        let scanned =
            repo.packs.scan(&pack, &mut |item| damaged += matches!(item, crate::store::ScanItem::Damage(_)) as u32);
        if damaged == 0 && scanned.is_ok() || matches!(scanned, Err(crate::store::StoreError::Later { .. })) {
            continue;
        }
        let mut writer = PackWriter::create_beside(repo.disk.clone(), &repo.dir.join("packs"))?;
        let mut left = HashMap::<Kind, usize>::new();
        for t in repo.packs.listing(&pack).things.iter().filter(|t| t.counts) {
            if repo.packs.copy_lossy(t.kind, &t.id, &mut writer)? {
                *left.entry(t.kind).or_default() += 1;
            }
        }
        if !writer.is_empty() {
            writer.seal()?;
        }
        repo.packs.set_aside(&pack)?;
        repo.refresh()?;
        let of = |kind| left.get(&kind).copied().unwrap_or(0);
        let (objects, recipes, versions) = (of(Kind::Object), of(Kind::Recipe), of(Kind::Version));
        mended.lines.push(format!(
            "pack {pack}: {objects} tensors and blobs, {recipes} recipes and {versions} version records are left; the rest lies in packs/{pack}.damaged"
        ));
    }
    Ok(mended)
}

/// Waits for its turn at the gate.
pub fn alone(repo: &Repo, progress: &dyn Progress) -> Result<gate::Gate, RepoError> {
    loop {
        match gate::try_close(&*repo.disk, &repo.dir.join("packs"))? {
            Some(gate) => return Ok(gate),
            None => std::thread::sleep(std::time::Duration::from_millis(50)),
        }
        progress.check()?;
    }
}
