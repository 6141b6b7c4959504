//! Import: a directory becomes a pack with its new objects, recipes and version record.
//!
//! Runs in the importing process, without the catalog; [`super::engine::Engine::publish`] makes the
//! result visible. Until then, and after any failure, nothing of it can be seen, and the unsealed pack is
//! removed.

use std::collections::HashSet;
use std::path::Path;

use super::choose::Source;
use super::encode::{Tally, Todo, encode_all};
use super::hash::{HashedFile, HashedPiece, hash_file};
use super::pair::{Candidates, pair};
use super::progress::Progress;
use super::walk::{self, Found};
use super::{Repo, RepoError};
use crate::codec::Effort;
use crate::model::event::Event;
use crate::model::id::{Id, block_count};
use crate::model::lossy::Lossy;
use crate::model::name::{ModelName, VersionName};
use crate::model::record::{EntryKind, FileEntry, Merge, Origin, ParentEdge, Relation, VersionRecord};
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
    /// The files to import are not exact, and this is how far.
    pub lossy: Option<Lossy>,
}

impl ImportSpec {
    /// Versions that it may be built on.
    pub fn bases(&self) -> Vec<Id> {
        let mut bases: Vec<Id> = self.parents.iter().map(|p| p.id).chain(self.previous).collect();
        bases.extend(self.near.iter().filter(|id| !self.parents.iter().any(|p| p.id == **id)));
        bases
    }
}

/// What stands at a path of the version to be.
#[derive(Clone)]
pub enum Entry {
    File(HashedFile),
    /// One with nothing in it.
    Directory(String),
    /// A stored version has it.
    Stored(FileEntry),
}

/// The files of a model directory, hashed, sorted by path.
pub struct Hashed {
    entries: Vec<Entry>,
}

impl Hashed {
    /// `entries` are sorted by path.
    pub fn new(entries: Vec<Entry>) -> Hashed {
        Hashed { entries }
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// All files that were read.
    pub fn files(&self) -> Vec<&HashedFile> {
        self.entries.iter().filter_map(|e| if let Entry::File(f) = e { Some(f) } else { None }).collect()
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
    /// The version whose place it takes.
    pub replaces: Option<Id>,
    /// Keep the packs from being taken for garbage until the journal names them.
    leases: Vec<SealedPack>,
}

impl Prepared {
    /// What the journal will say.
    pub fn event(&self) -> Event {
        Event::commit(&self.record, self.id, self.pack.clone(), self.guess, self.replaces)
    }
}

/// Reads all files at `path` and hashes them.
pub fn hash_all(repo: &Repo, path: &Path, progress: &dyn Progress) -> Result<Hashed, RepoError> {
    refuse_overlap(repo, path)?;
    let found = walk::find(path)?;
    progress.expect(walk::bytes(&found));
    let entries = found.into_iter().map(|f| hash_found(f, progress)).collect::<Result<Vec<_>, _>>()?;
    Ok(Hashed { entries })
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
    let entries = found.into_iter().map(|f| hash_found(f, progress)).collect::<Result<Vec<_>, _>>()?;
    Ok(Hashed { entries })
}

impl Hashed {
    /// Whether a version has these very files.
    pub fn is_of(&self, record: &VersionRecord) -> bool {
        let same = |(theirs, mine): (&FileEntry, &Entry)| match mine {
            Entry::File(h) => theirs.kind == EntryKind::File && theirs.path == h.name && theirs.digest == h.digest,
            Entry::Directory(path) => theirs.kind == EntryKind::Directory && theirs.path == *path,
            Entry::Stored(e) => theirs == e,
        };
        record.files.len() == self.entries.len() && record.files.iter().zip(&self.entries).all(same)
    }
}

/// Encodes and seals. `spec.parents`, `spec.previous` and `spec.near` are where bases are looked for.
pub fn prepare(
    repo: &Repo,
    spec: &ImportSpec,
    hashed: &Hashed,
    progress: &dyn Progress,
) -> Result<Prepared, RepoError> {
    prepare_merged(repo, spec, hashed, None, progress)
}

/// As [`prepare`], for a version that was computed from others.
pub fn prepare_merged(
    repo: &Repo,
    spec: &ImportSpec,
    hashed: &Hashed,
    merge: Option<&Merge>,
    progress: &dyn Progress,
) -> Result<Prepared, RepoError> {
    let files = hashed.files();
    let packs = repo.dir.join("packs");
    remove_leftovers(repo.disk.as_ref(), &packs)?;
    let mut writer = PackWriter::create(repo.disk.clone(), &packs)?;
    repo.refresh()?;
    if let Err(e) = repo.packs.save_footers() {
        log::debug!("the file of footers is left as it was: {e}");
    }
    let tally = store_objects(repo, spec, &files, &mut writer, progress)?;
    store_recipes(repo, &files, &mut writer)?;
    let low_rank = spec.told && tally.is_low_rank();
    let record = VersionRecord { merge: merge.cloned(), ..record_of(repo, spec, hashed, low_rank) };
    Ok(Prepared { guess: spec.guess, ..seal(record, writer)? })
}

/// The id that a version of these very files would have.
pub fn id_of(repo: &Repo, spec: &ImportSpec, hashed: &Hashed) -> Id {
    Id::of(&record_of(repo, spec, hashed, false).encode())
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
    Ok(Prepared { record, id, pack, new_stored_bytes, guess: false, replaces: None, leases: vec![sealed] })
}

fn refuse_overlap(repo: &Repo, path: &Path) -> Result<(), RepoError> {
    let real = |p: &std::path::Path| p.canonicalize().map_err(|e| RepoError::file(p, e));
    let (real_path, store) = (real(path)?, real(&repo.dir)?);
    let draft = real_path.starts_with(store.join("drafts"));
    if (real_path.starts_with(&store) && !draft) || store.starts_with(&real_path) {
        return Err(RepoError::refused(format!(
            "{}: this is, or holds, the repository itself; name a model directory",
            path.display()
        )));
    }
    Ok(())
}

fn hash_found(found: Found, progress: &dyn Progress) -> Result<Entry, RepoError> {
    match found {
        Found::File { name, source, .. } => hash_file(&name, &source, progress).map(Entry::File),
        Found::EmptyDirectory { name } => Ok(Entry::Directory(name)),
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
    let candidates = Candidates::of_versions(repo, &spec.bases());
    // What takes the place of a copy gets no bases: it costs no more than that did, nor is it built on what is built on it.
    let replaces: Vec<bool> = fresh.iter().map(|(_, piece)| repo.packs.has_object(&piece.id)).collect();
    let made =
        fresh.iter().zip(&replaces).map(|((_, p), replaces)| if *replaces { None } else { Source::made(repo, p) });
    let made: Vec<Option<Source>> = made.collect();
    let is_open: Vec<bool> = made.iter().zip(&replaces).map(|(made, replaces)| made.is_none() && !replaces).collect();
    let open: Vec<_> = fresh.iter().zip(&is_open).filter(|(_, is_open)| **is_open).map(|(f, _)| *f).collect();
    let mut paired = pair(repo, &candidates, &open)?.into_iter();
    let todo = fresh.into_iter().zip(made).zip(is_open).map(|(((file, piece), made), is_open)| {
        let near = if is_open { paired.next().unwrap_or_default() } else { vec![] };
        Todo { file, piece, near, made }
    });
    let todo: Vec<Todo> = todo.collect();
    encode_all(repo, &todo, spec.effort, writer, progress)
}

/// The pieces whose objects no pack holds, or not so that they can be opened: each object once, in file order.
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

/// Whether an object is stored with all that it is built on, as far as records tell: a crash within gc can leave one
/// without, and a pack may have lost its end.
fn is_whole(repo: &Repo, id: &Id) -> bool {
    repo.packs.has_object(id) && repo.open_object(id).is_ok()
}

fn store_recipes(repo: &Repo, files: &[&HashedFile], writer: &mut PackWriter) -> Result<(), RepoError> {
    let mut seen = HashSet::new();
    for file in files {
        let recipe = file.recipe();
        let id = recipe.id();
        if seen.insert(id) && repo.packs.recipe(&id).is_err() {
            writer.put_recipe(&recipe)?;
        }
    }
    Ok(())
}

fn record_of(repo: &Repo, spec: &ImportSpec, hashed: &Hashed, low_rank: bool) -> VersionRecord {
    let edge = |p: &ParentEdge| match p.relation {
        Relation::Finetune if low_rank => ParentEdge { relation: Relation::Adapter, ..*p },
        _ => *p,
    };
    let entry = |e: &Entry| match e {
        Entry::File(h) => FileEntry {
            path: h.name.clone(),
            kind: EntryKind::File,
            bytes: h.size,
            digest: h.digest,
            recipe: h.recipe().id(),
        },
        Entry::Directory(path) => FileEntry {
            path: path.clone(),
            kind: EntryKind::Directory,
            bytes: 0,
            digest: Id::of(b""),
            recipe: Id([0; 32]),
        },
        Entry::Stored(entry) => entry.clone(),
    };
    VersionRecord {
        model: spec.model.clone(),
        version: spec.version.clone(),
        created: repo.disk.now(),
        message: spec.message.clone(),
        previous: spec.previous,
        parents: spec.parents.iter().map(edge).collect(),
        origin: spec.origin.clone(),
        merge: None,
        lossy: spec.lossy.clone(),
        files: hashed.entries.iter().map(entry).collect(),
    }
}
