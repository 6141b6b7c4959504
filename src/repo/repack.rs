//! Encoding again what is stored, with the best that is known now: a version that was imported before its parent is built
//! on it at last. Ids and files stay; only what lies in the packs changes.
//!
//! One version is one step: its tensors that get smaller by enough go to a new pack, which counts before the old ones
//! (`store/format.md`) from the moment it is sealed; what they were is then dead, and [`super::gc`] frees it. A step
//! happens wholly or not at all, so it can be stopped anywhere.
//!
//! A tensor that others are built on may come to need more blocks than before. Then they need more too: the same pack
//! holds their records with that said, their blocks copied; and where one would need more than [`MAX_COST`], the tensor stays
//! as it is. Sealing is done alone at the gate, after a look at what came meanwhile.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use rayon::prelude::*;

use super::choose;
use super::encode::{Todo, encode_all};
use super::hash::{HashedFile, HashedPiece};
use super::pair::{Candidates, pair};
use super::progress::Progress;
use super::{Repo, RepoError};
use crate::codec::Effort;
use crate::model::dtype::Elem;
use crate::model::id::Id;
use crate::model::layout;
use crate::model::object::{Base, MAX_COST, ObjectRecord};
use crate::model::recipe::Extent;
use crate::model::record::FileEntry;
use crate::store::pack::{Kind, PackWriter};
use crate::store::{StoreError, gate};

/// A version, and those that it may be built on, the first first.
pub struct Target {
    pub version: Id,
    pub bases: Vec<Id>,
}

/// What a step did.
#[derive(Clone, Copy, Default, Debug)]
pub struct Step {
    /// Tensors encoded again.
    pub tensors: usize,
    /// Bytes that they took, and take now.
    pub before: u64,
    pub after: u64,
}

/// What is gained must be more than this share, and more than this.
const LEAST_SHARE: f64 = 0.03;
const LEAST_BYTES: f64 = 256.0;
/// How long until the gate is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// What an object costs to read, as far as its bases tell.
struct Node {
    width: usize,
    length: u64,
    bases: Vec<Base>,
}

/// All objects, and what is built on what.
pub struct Web {
    nodes: HashMap<Id, Node>,
    above: HashMap<Id, BTreeSet<Id>>,
    /// Packs that it was made from.
    packs: HashSet<String>,
}

impl Node {
    fn of(record: &ObjectRecord) -> Node {
        Node { width: Elem::of(&record.dtype).width(), length: record.length, bases: record.bases.clone() }
    }
}

impl Web {
    pub fn of(repo: &Repo) -> Result<Web, RepoError> {
        repo.refresh()?;
        let mut web = Web { nodes: HashMap::new(), above: HashMap::new(), packs: HashSet::new() };
        web.packs.extend(repo.packs.pack_names());
        for id in repo.packs.objects() {
            // What cannot be read is left alone, and so is what is built on it.
            if let Ok(object) = repo.packs.object(&id) {
                web.put(id, Node::of(&object.record));
            }
        }
        Ok(web)
    }

    fn put(&mut self, id: Id, node: Node) {
        if let Some(old) = self.nodes.get(&id) {
            for b in &old.bases {
                self.above.entry(b.id).or_default().remove(&id);
            }
        }
        for b in &node.bases {
            self.above.entry(b.id).or_default().insert(id);
        }
        self.nodes.insert(id, node);
    }

    /// Every object that a block of `id` is made of, and how many blocks of it; `None` where that is too much or goes round.
    fn needs(&self, id: &Id, depth: u8) -> Option<HashMap<Id, u64>> {
        let node = self.nodes.get(id).filter(|_| depth < MAX_COST)?;
        let mut needs = HashMap::from([(*id, 1)]);
        for b in &node.bases {
            let base = self.nodes.get(&b.id)?;
            let blocks = b.mapping.blocks(node.width, base.length, base.width);
            for (of, n) in self.needs(&b.id, depth + 1)? {
                if of == *id {
                    return None;
                }
                let n = n.saturating_mul(blocks);
                needs.entry(of).and_modify(|m| *m = n.max(*m)).or_insert(n);
            }
        }
        (needs.values().fold(0u64, |sum, n| sum.saturating_add(*n)) <= MAX_COST as u64).then_some(needs)
    }

    fn cost(&self, id: &Id) -> Option<u8> {
        Some(self.needs(id, 0)?.values().sum::<u64>() as u8)
    }

    /// All that is built on `id`, at any distance.
    fn all_above(&self, id: &Id) -> BTreeSet<Id> {
        let (mut found, mut todo) = (BTreeSet::new(), vec![*id]);
        while let Some(id) = todo.pop() {
            todo.extend(self.above.get(&id).into_iter().flatten().filter(|a| found.insert(**a)));
        }
        found
    }

    /// Puts `id` on other bases, if everything can still be read within the bound.
    fn rebase(&mut self, id: Id, bases: Vec<Base>) -> bool {
        let Some(old) = self.nodes.get(&id) else { return false };
        let (width, length, before) = (old.width, old.length, old.bases.clone());
        self.put(id, Node { width, length, bases });
        let fits = self.all_above(&id).iter().chain([&id]).all(|o| self.cost(o).is_some());
        if !fits {
            self.put(id, Node { width, length, bases: before });
        }
        fits
    }
}

/// One step. `None` when what came or went meanwhile made its work worthless: it can be tried again, with the web made
/// anew. Nothing is done to a version that gc has freed.
pub fn step(
    repo: &Arc<Repo>,
    web: &mut Web,
    target: &Target,
    effort: Effort,
    progress: &dyn Progress,
) -> Result<Option<Step>, RepoError> {
    if !repo.packs.has_version(&target.version) {
        return Ok(Some(Step::default()));
    }
    match try_step(repo, web, target, effort, progress) {
        Err(RepoError::Store(StoreError::Missing { .. })) => Ok(None),
        done => done,
    }
}

fn try_step(
    repo: &Arc<Repo>,
    web: &mut Web,
    target: &Target,
    effort: Effort,
    progress: &dyn Progress,
) -> Result<Option<Step>, RepoError> {
    let files = stored_files(repo, &target.version)?;
    let todo = smaller(repo, web, &files, &target.bases, effort, progress)?;
    let ids: HashSet<Id> = todo.iter().map(|t| t.piece.id).collect();
    let stored = || ids.iter().filter_map(|id| repo.packs.object_stored_bytes(id)).sum::<u64>();
    if ids.is_empty() {
        return Ok(Some(Step::default()));
    }
    let before = stored();
    let mut writer = PackWriter::create_beside(repo.disk.clone(), &repo.dir.join("packs"))?;
    for (id, bases) in encode_all(repo, &todo, effort, &mut writer, progress)?.bases {
        if !web.rebase(id, bases) {
            return Ok(None);
        }
    }
    let ours = raise(repo, web, &ids, &mut writer, progress)?;
    let sealed = replace(repo, web, writer, &ours, progress)?;
    Ok(sealed.then(|| Step { tensors: ids.len(), before, after: stored() }))
}

/// A version's safetensors files as an import sees files, read from the store.
fn stored_files(repo: &Arc<Repo>, version: &Id) -> Result<Vec<HashedFile>, RepoError> {
    let record = repo.record(version)?;
    let files = record.files.iter().filter(|f| f.path.ends_with(".safetensors"));
    let read = |f: &FileEntry| stored_file(repo, f).map_err(|e| log::warn!("{} stays as it is: {e}", f.path)).ok();
    Ok(files.filter_map(read).collect())
}

/// A safetensors file as an import sees it, read from the store.
pub(super) fn stored_file(repo: &Arc<Repo>, entry: &FileEntry) -> Result<HashedFile, RepoError> {
    let reader = repo.open_file(&entry.recipe)?;
    let bad = |e| RepoError::Layout(entry.path.clone().into(), e);
    let mut first = vec![0; reader.size().min(8) as usize];
    reader.read_at(0, &mut first)?;
    let mut header = vec![0; layout::header_length(&first, reader.size()).map_err(bad)? as usize];
    reader.read_at(8, &mut header)?;
    let pieces = layout::cut(&header, reader.size()).map_err(bad)?;
    let extents = repo.packs.recipe(&entry.recipe)?.extents;
    if !pieces.iter().map(|p| p.length).eq(extents.iter().map(|e| e.length)) {
        return Err(RepoError::damaged(format!("file '{}': its recipe cuts it in another way", entry.path)));
    }
    let piece = |(piece, e): (layout::Piece, &Extent)| {
        let values = repo.packs.object(&e.object)?.record.values.clone();
        Ok(HashedPiece { piece, id: e.object, values, made: None })
    };
    let pieces = pieces.into_iter().zip(&extents).map(piece).collect::<Result<Vec<_>, RepoError>>()?;
    let (name, source) = (entry.path.clone(), entry.path.clone().into());
    Ok(HashedFile { name, source, size: entry.bytes, digest: entry.digest, pieces, stored: Some(Arc::new(reader)) })
}

/// The tensors that would get smaller by enough and still can be read, with what they may be built on.
fn smaller<'a>(
    repo: &Repo,
    web: &mut Web,
    files: &'a [HashedFile],
    bases: &[Id],
    effort: Effort,
    progress: &dyn Progress,
) -> Result<Vec<Todo<'a>>, RepoError> {
    let candidates = Candidates::of_versions(repo, bases);
    let mut seen = HashSet::new();
    let pieces = files.iter().flat_map(|f| f.pieces.iter().map(move |p| (f, p)));
    let pieces: Vec<_> = pieces.filter(|(_, p)| !p.piece.dtype().is_empty() && seen.insert(p.id)).collect();
    let near = pair(repo, &candidates, &pieces)?;
    let mut todo: Vec<Todo> =
        pieces.into_iter().zip(near).map(|((file, piece), near)| Todo { file, piece, near, made: None }).collect();
    // Nothing of this step is built on anything else of it.
    let apart = |id: &Id| web.needs(id, 0).is_some_and(|needs| needs.keys().all(|of| !seen.contains(of)));
    todo.iter_mut().for_each(|t| t.near.retain(|n| apart(&n.object.id())));
    todo.retain(|t| !t.near.is_empty());
    let estimate = |t: &Todo| -> Result<Option<Vec<Base>>, RepoError> {
        progress.check()?;
        let now = &repo.packs.object(&t.piece.id)?.record;
        let now = (now.encoded_bytes() + now.params.len() as u64) as f64;
        progress.stored(t.length());
        let (then, bases) = choose::estimate(repo, t, effort)?;
        Ok((now - then > (now * LEAST_SHARE).max(LEAST_BYTES)).then_some(bases))
    };
    let found = todo.par_iter().map(estimate).collect::<Result<Vec<_>, RepoError>>()?;
    let fits = todo.into_iter().zip(found);
    Ok(fits.filter_map(|(t, bases)| web.rebase(t.piece.id, bases?).then_some(t)).collect())
}

/// Copies what needs another number of blocks than before, with that said. Returns all that the pack holds.
fn raise(
    repo: &Repo,
    web: &Web,
    ids: &HashSet<Id>,
    writer: &mut PackWriter,
    progress: &dyn Progress,
) -> Result<HashSet<Id>, RepoError> {
    let mut ours = ids.clone();
    for id in ids.iter().flat_map(|id| web.all_above(id)).collect::<BTreeSet<_>>() {
        progress.check()?;
        let object = repo.packs.object(&id)?;
        let Some(cost) = web.cost(&id) else { continue };
        if cost != object.record.cost && ours.insert(id) {
            repo.packs.copy_object(&object, Some(ObjectRecord { cost, ..object.record.clone() }), writer)?;
        }
    }
    Ok(ours)
}

/// Seals the pack, unless something came meanwhile that has other copies, or is built on what it has.
fn replace(
    repo: &Repo,
    web: &mut Web,
    writer: PackWriter,
    ours: &HashSet<Id>,
    progress: &dyn Progress,
) -> Result<bool, RepoError> {
    let _alone = loop {
        match gate::try_close(&*repo.disk, &repo.dir.join("packs"))? {
            Some(gate) => break gate,
            None => std::thread::sleep(PAUSE), // An import may be running.
        }
        progress.check()?;
    };
    repo.refresh()?;
    for pack in repo.packs.pack_names().into_iter().filter(|p| !web.packs.contains(p)) {
        for thing in repo.packs.listing(&pack).things.iter().filter(|t| t.kind == Kind::Object) {
            let built = repo.packs.object(&thing.id).is_ok_and(|o| o.record.bases.iter().any(|b| ours.contains(&b.id)));
            if built || ours.contains(&thing.id) {
                return Ok(false);
            }
        }
    }
    let sealed = writer.seal()?;
    web.packs.insert(sealed.name.clone());
    repo.refresh()?;
    Ok(true)
}
