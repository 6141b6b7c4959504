//! Import: a directory becomes a pack with its new objects, recipes and version record.
//!
//! Runs in the importing process, without the catalog; [`super::engine::Engine::publish`] makes the
//! result visible. Until then, and after any failure, nothing of it can be seen, and the unsealed pack is
//! removed.

use std::collections::HashSet;
use std::path::Path;

use jiff::Timestamp;

use super::encode::{Tally, Todo, encode_all};
use super::hash::{HashedFile, HashedPiece, hash_file};
use super::pair::{Candidates, pair};
use super::progress::Progress;
use super::walk::{self, Found};
use super::{Repo, RepoError};
use crate::codec::Effort;
use crate::model::event::Event;
use crate::model::id::{Id, block_count};
use crate::model::name::{ModelName, VersionName};
use crate::model::record::{EntryKind, FileEntry, Origin, ParentEdge, Relation, VersionRecord};
use crate::store::StoreError;
use crate::store::pack::{PackWriter, SealedPack, remove_leftovers};

/// What to import, its place in the lineage already resolved.
pub struct ImportSpec {
    pub model: ModelName,
    pub version: VersionName,
    pub parents: Vec<ParentEdge>,
    pub previous: Option<Id>,
    /// `previous` was found by content alone.
    pub guess: bool,
    /// Nobody named the relations: what the encoder finds may tell more.
    pub told: bool,
    pub origin: Option<Origin>,
    /// More versions that may be built on, beside the parents and the predecessor.
    pub near: Vec<Id>,
    pub message: String,
    pub effort: Effort,
}

/// The files of a model directory, hashed.
pub struct Hashed {
    found: Vec<Found>,
    files: Vec<Option<HashedFile>>,
}

impl Hashed {
    pub fn files(&self) -> Vec<&HashedFile> {
        self.files.iter().flatten().collect()
    }
}

/// A sealed pack that waits to be published.
pub struct Prepared {
    pub record: VersionRecord,
    pub id: Id,
    pub pack: String,
    /// Size of the pack: all that this import added.
    pub new_stored_bytes: u64,
    /// The record's `previous` was found by content alone.
    guess: bool,
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
            guess: self.guess,
            settled: false,
            parents: r.parents.clone(),
        }
    }
}

/// Reads all files at `path` and hashes them.
pub fn hash_all(repo: &Repo, path: &Path, progress: &dyn Progress) -> Result<Hashed, RepoError> {
    refuse_overlap(repo, path)?;
    let found = walk::find(path)?;
    progress.expect(walk::bytes(&found));
    let files = found.iter().map(|f| hash_found(f, progress)).collect::<Result<Vec<_>, _>>()?;
    Ok(Hashed { found, files })
}

/// Likewise of a draft, which lies in the repository. A symlink in it must not lead out of it.
pub fn hash_draft(dir: &Path, progress: &dyn Progress) -> Result<Hashed, RepoError> {
    let mut found = walk::find(dir)?;
    found.retain(|f| f.name() != super::draft::SEAL);
    if found.is_empty() {
        return Err(RepoError::refused(format!("{}: an empty directory; there is nothing to commit", dir.display())));
    }
    let root = dir.canonicalize().map_err(|e| RepoError::file(dir, e))?;
    for f in &found {
        if let Found::File { name, source, .. } = f
            && !source.canonicalize().map_err(|e| RepoError::file(source, e))?.starts_with(&root)
        {
            let name = crate::model::name::printable(name);
            return Err(RepoError::refused(format!("{name}: a symlink that leads out of the draft; remove it")));
        }
    }
    progress.expect(walk::bytes(&found));
    let files = found.iter().map(|f| hash_found(f, progress)).collect::<Result<Vec<_>, _>>()?;
    Ok(Hashed { found, files })
}

impl Hashed {
    /// Whether a version has these very files.
    pub fn is_of(&self, record: &VersionRecord) -> bool {
        let same = |(entry, (found, hashed)): (&FileEntry, (&Found, &Option<HashedFile>))| match hashed {
            Some(h) => entry.kind == EntryKind::File && entry.path == h.name && entry.digest == h.digest,
            None => entry.kind == EntryKind::Directory && entry.path == found.name(),
        };
        record.files.len() == self.found.len() && record.files.iter().zip(self.found.iter().zip(&self.files)).all(same)
    }
}

/// Encodes and seals. `spec.parents`, `spec.previous` and `spec.near` are where bases are looked for.
pub fn prepare(
    repo: &Repo,
    spec: &ImportSpec,
    hashed: &Hashed,
    progress: &dyn Progress,
) -> Result<Prepared, RepoError> {
    let files = hashed.files();
    let packs = repo.dir.join("packs");
    remove_leftovers(repo.disk.as_ref(), &packs)?;
    let mut writer = PackWriter::create(repo.disk.clone(), &packs)?;
    repo.refresh()?;
    let tally = store_objects(repo, spec, &files, &mut writer, progress)?;
    store_recipes(repo, &files, &mut writer)?;
    let record = record_of(spec, hashed, spec.told && tally.is_low_rank());
    Ok(Prepared { guess: spec.guess, ..seal(record, writer)? })
}

/// Seals the same files once more under another version name, after the first was taken meanwhile.
pub fn rename_prepared(repo: &Repo, prepared: Prepared, version: VersionName) -> Result<Prepared, RepoError> {
    let writer = PackWriter::create(repo.disk.clone(), &repo.dir.join("packs"))?;
    let mut again = seal(VersionRecord { version, ..prepared.record }, writer)?;
    again.guess = prepared.guess;
    again.new_stored_bytes += prepared.new_stored_bytes;
    again.leases.extend(prepared.leases);
    Ok(again)
}

fn seal(record: VersionRecord, mut writer: PackWriter) -> Result<Prepared, RepoError> {
    let id = writer.put_version(&record.encode())?;
    let sealed = writer.seal()?;
    let (pack, new_stored_bytes) = (sealed.name.clone(), sealed.bytes);
    Ok(Prepared { record, id, pack, new_stored_bytes, guess: false, leases: vec![sealed] })
}

fn refuse_overlap(repo: &Repo, path: &Path) -> Result<(), RepoError> {
    let real = |p: &std::path::Path| p.canonicalize().map_err(|e| RepoError::file(p, e));
    let (real_path, store) = (real(path)?, real(&repo.dir)?);
    if real_path.starts_with(&store) || store.starts_with(&real_path) {
        return Err(RepoError::refused(format!(
            "{}: this is, or holds, the repository itself; name a model directory",
            path.display()
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

/// Writes what is new.
fn store_objects(
    repo: &Repo,
    spec: &ImportSpec,
    files: &[&HashedFile],
    writer: &mut PackWriter,
    progress: &dyn Progress,
) -> Result<Tally, RepoError> {
    let fresh = fresh_objects(repo, files, progress);
    let mut bases: Vec<Id> = spec.parents.iter().map(|p| p.id).chain(spec.previous).collect();
    bases.extend(spec.near.iter().filter(|id| !spec.parents.iter().any(|p| p.id == **id)));
    let candidates = Candidates::of_versions(repo, &bases);
    let paired = pair(repo, &candidates, &fresh)?;
    let todo: Vec<Todo> =
        fresh.into_iter().zip(paired).map(|((file, piece), near)| Todo { file, piece, near }).collect();
    encode_all(repo, &todo, spec.effort, writer, progress)
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
            if seen.insert(piece.id) && !is_whole(repo, &piece.id) {
                debug_assert!(block_count(piece.piece.length) > 0);
                fresh.push((*file, piece));
            } else {
                progress.stored(piece.piece.length);
            }
        }
    }
    fresh
}

/// Whether an object is stored with all that it is built on: a crash within gc can leave one without.
fn is_whole(repo: &Repo, id: &Id) -> bool {
    repo.packs.has_object(id) && !matches!(repo.open_object(id), Err(RepoError::Store(StoreError::Missing { .. })))
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

fn record_of(spec: &ImportSpec, hashed: &Hashed, low_rank: bool) -> VersionRecord {
    let edge = |p: &ParentEdge| match p.relation {
        Relation::Finetune if low_rank => ParentEdge { relation: Relation::Adapter, ..*p },
        _ => *p,
    };
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
        parents: spec.parents.iter().map(edge).collect(),
        origin: spec.origin.clone(),
        files: hashed.found.iter().zip(&hashed.files).map(entry).collect(),
    }
}
