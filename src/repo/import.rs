//! Import: a directory becomes a pack with its new objects, recipes and version record.
//!
//! Runs in the importing process, without the catalog; [`super::engine::Engine::publish`] makes the
//! result visible. Until then, and after any failure, nothing of it can be seen, and the unsealed pack is
//! removed.

use std::collections::HashSet;
use std::path::PathBuf;

use jiff::Timestamp;

use super::encode::{Todo, encode_all};
use super::hash::{HashedFile, HashedPiece, hash_file};
use super::pair::{Candidates, pair};
use super::progress::Progress;
use super::walk::{self, Found};
use super::{Repo, RepoError};
use crate::codec::Effort;
use crate::model::event::Event;
use crate::model::id::{Id, block_count};
use crate::model::name::{ModelName, VersionName};
use crate::model::record::{EntryKind, FileEntry, ParentEdge, Relation, VersionRecord};
use crate::store::pack::{PackWriter, SealedPack, remove_leftovers};

/// What to import, its place in the lineage already resolved.
pub struct ImportSpec {
    pub path: PathBuf,
    pub model: ModelName,
    pub version: VersionName,
    pub parents: Vec<Id>,
    pub previous: Option<Id>,
    /// `None`: told by what is shared with the parents.
    pub relation: Option<Relation>,
    pub message: String,
    pub effort: Effort,
}

/// A sealed pack that waits to be published.
pub struct Prepared {
    pub record: VersionRecord,
    pub id: Id,
    pub pack: String,
    /// Size of the pack: all that this import added.
    pub new_stored_bytes: u64,
    /// Keep the packs from being taken for garbage until the journal names them.
    leases: Vec<SealedPack>,
}

impl Prepared {
    /// What the journal will say.
    pub fn event(&self) -> Event {
        let r = &self.record;
        Event::Commit {
            model: r.model.clone(),
            version: r.version.clone(),
            id: self.id,
            pack: self.pack.clone(),
            created: r.created,
            bytes: r.logical_bytes(),
            previous: r.previous,
            parents: r.parents.clone(),
        }
    }
}

/// Reads, encodes and seals. `spec.parents` and `spec.previous` are also where bases are looked for.
pub fn prepare(repo: &Repo, spec: &ImportSpec, progress: &dyn Progress) -> Result<Prepared, RepoError> {
    refuse_overlap(repo, spec)?;
    let found = walk::find(&spec.path)?;
    progress.expect(found.iter().map(|f| if let Found::File { bytes, .. } = f { *bytes } else { 0 }).sum());
    let hashed = found.iter().map(|f| hash_found(f, progress)).collect::<Result<Vec<_>, _>>()?;
    let files: Vec<&HashedFile> = hashed.iter().flatten().collect();
    repo.packs.refresh()?;
    let packs = repo.dir.join("packs");
    remove_leftovers(repo.disk.as_ref(), &packs)?;
    let mut writer = PackWriter::create(repo.disk.clone(), &packs)?;
    let shared = store_objects(repo, spec, &files, &mut writer, progress)?;
    store_recipes(repo, &files, &mut writer)?;
    let record = record_of(spec, &found, &hashed, shared);
    seal(record, writer)
}

/// Seals the same files once more under another version name, after the first was taken meanwhile.
pub fn rename_prepared(repo: &Repo, prepared: Prepared, version: VersionName) -> Result<Prepared, RepoError> {
    let writer = PackWriter::create(repo.disk.clone(), &repo.dir.join("packs"))?;
    let mut again = seal(VersionRecord { version, ..prepared.record }, writer)?;
    again.new_stored_bytes += prepared.new_stored_bytes;
    again.leases.extend(prepared.leases);
    Ok(again)
}

fn seal(record: VersionRecord, mut writer: PackWriter) -> Result<Prepared, RepoError> {
    let id = writer.put_version(&record.encode())?;
    let sealed = writer.seal()?;
    let (pack, new_stored_bytes) = (sealed.name.clone(), sealed.bytes);
    Ok(Prepared { record, id, pack, new_stored_bytes, leases: vec![sealed] })
}

fn refuse_overlap(repo: &Repo, spec: &ImportSpec) -> Result<(), RepoError> {
    let real = |p: &std::path::Path| p.canonicalize().map_err(|e| RepoError::file(p, e));
    let (path, store) = (real(&spec.path)?, real(&repo.dir)?);
    if path.starts_with(&store) || store.starts_with(&path) {
        return Err(RepoError::refused(format!(
            "{}: this is, or holds, the repository itself; name a model directory",
            spec.path.display()
        )));
    }
    Ok(())
}

fn hash_found(found: &Found, progress: &dyn Progress) -> Result<Option<HashedFile>, RepoError> {
    match found {
        Found::File { name, source, .. } => hash_file(name, source, progress).map(Some),
        Found::EmptyDirectory { .. } => Ok(None),
    }
}

/// Writes what is new. True when there is a tensor that the store has bit for bit, or that has a base.
fn store_objects(
    repo: &Repo,
    spec: &ImportSpec,
    files: &[&HashedFile],
    writer: &mut PackWriter,
    progress: &dyn Progress,
) -> Result<bool, RepoError> {
    let fresh = fresh_objects(repo, files, progress);
    let bases: Vec<Id> = spec.parents.iter().copied().chain(spec.previous).collect();
    let candidates = Candidates::of_versions(repo, &bases);
    let paired = pair(repo, &candidates, &fresh)?;
    let tensors: usize = files.iter().flat_map(|f| &f.pieces).filter(|p| !p.piece.dtype().is_empty()).count();
    let fresh_tensors = fresh.iter().filter(|(_, p)| !p.piece.dtype().is_empty()).count();
    let shared = fresh_tensors < tensors || paired.iter().any(|near| !near.is_empty());
    let todo: Vec<Todo> =
        fresh.into_iter().zip(paired).map(|((file, piece), near)| Todo { file, piece, near }).collect();
    encode_all(repo, &todo, spec.effort, writer, progress)?;
    Ok(shared)
}

/// The pieces whose objects no pack holds yet, each object once, in file order.
fn fresh_objects<'a>(
    repo: &Repo,
    files: &[&'a HashedFile],
    progress: &dyn Progress,
) -> Vec<(&'a HashedFile, &'a HashedPiece)> {
    let mut seen = HashSet::new();
    let mut fresh = Vec::new();
    for file in files {
        for piece in &file.pieces {
            if seen.insert(piece.id) && !repo.packs.has_object(&piece.id) {
                debug_assert!(block_count(piece.piece.length) > 0);
                fresh.push((*file, piece));
            } else {
                progress.stored(piece.piece.length);
            }
        }
    }
    fresh
}

fn store_recipes(repo: &Repo, files: &[&HashedFile], writer: &mut PackWriter) -> Result<(), RepoError> {
    let mut seen = HashSet::new();
    for file in files {
        let recipe = file.recipe();
        let id = recipe.id();
        if seen.insert(id) && !repo.packs.has_recipe(&id) {
            writer.put_recipe(&recipe)?;
        }
    }
    Ok(())
}

fn record_of(spec: &ImportSpec, found: &[Found], hashed: &[Option<HashedFile>], shared: bool) -> VersionRecord {
    let told = if shared { Relation::Finetune } else { Relation::Derived };
    let relation = spec.relation.unwrap_or(told);
    let entry = |(found, hashed): (&Found, &Option<HashedFile>)| match hashed {
        Some(h) => FileEntry {
            path: h.name.clone(),
            kind: EntryKind::File,
            bytes: h.size,
            digest: h.digest,
            recipe: h.recipe().id(),
        },
        None => FileEntry {
            path: found.name().to_owned(),
            kind: EntryKind::Directory,
            bytes: 0,
            digest: Id::of(b""),
            recipe: Id([0; 32]),
        },
    };
    VersionRecord {
        model: spec.model.clone(),
        version: spec.version.clone(),
        created: Timestamp::now(),
        message: spec.message.clone(),
        previous: spec.previous,
        parents: spec.parents.iter().map(|&id| ParentEdge { id, relation }).collect(),
        files: found.iter().zip(hashed).map(entry).collect(),
    }
}
