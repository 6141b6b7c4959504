//! Which stored tensor is the best base for a new one: by content, never by name.
//!
//! Candidates are the parents' tensors of the same dtype whose shape is the same, or differs in the first
//! dimension only (a resized embedding). The nearest by a sample of both wins, measured under the order map
//! ([`crate::codec::distance`]). Several children may share a base. A base whose blocks already cost the
//! most that a block may is replaced by one further up its own chain.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rayon::prelude::*;

use super::hash::{HashedFile, HashedPiece};
use super::read::OpenObject;
use super::{Repo, RepoError};
use crate::codec::distance;
use crate::model::dtype::Elem;
use crate::model::id::{BLOCK, Id, block_len};
use crate::model::layout::What;
use crate::model::object::MAX_COST;

/// Bytes compared of each tensor.
const SAMPLE: usize = 4096;
/// Candidates looked at for one tensor.
const MAX_TRIED: usize = 512;
/// Where a full chain is left for a base further up.
const REANCHOR_COST: u8 = MAX_COST / 2;

type Shape = (String, Vec<u64>);

/// The tensors that may serve as bases, by dtype and by shape without its first dimension.
#[derive(Default)]
pub struct Candidates {
    by_shape: HashMap<Shape, Vec<Arc<OpenObject>>>,
}

fn key(dtype: &str, shape: &[u64]) -> Shape {
    // A vector of another length is another thing; a matrix with more rows may be the same one, grown.
    let tail = if shape.len() > 1 { &shape[1..] } else { shape };
    (dtype.to_owned(), [&[shape.len() as u64], tail].concat())
}

impl Candidates {
    /// All tensors of the given versions, as far as they can be read.
    pub fn of_versions(repo: &Repo, versions: &[Id]) -> Candidates {
        let mut out = Candidates::default();
        let mut seen = HashSet::new();
        for id in versions {
            for object in tensors_of(repo, id) {
                if seen.insert(object) {
                    match repo.open_object(&object) {
                        Ok(open) => out.add(open),
                        Err(e) => log::warn!("a tensor of {id} cannot be a base: {e}"),
                    }
                }
            }
        }
        out
    }

    fn add(&mut self, object: Arc<OpenObject>) {
        let r = &object.stored.record;
        if !r.dtype.is_empty() {
            let key = key(&r.dtype, &r.shape);
            self.by_shape.entry(key).or_default().push(object);
        }
    }

    /// The nearest candidate for a piece of a file, if any is near at all.
    pub fn nearest(
        &self,
        repo: &Repo,
        file: &HashedFile,
        piece: &HashedPiece,
    ) -> Result<Option<Arc<OpenObject>>, RepoError> {
        let What::Tensor { dtype, shape, .. } = &piece.piece.what else { return Ok(None) };
        let Some(candidates) = self.by_shape.get(&key(dtype, shape)) else { return Ok(None) };
        let exact = candidates.iter().filter(|c| c.stored.record.shape == *shape).count();
        let fits = |c: &&Arc<OpenObject>| exact == 0 || c.stored.record.shape == *shape;
        let sample = Sample::of_file(file, piece)?;
        let mut best: Option<(f64, &Arc<OpenObject>)> = None;
        for c in candidates.iter().filter(fits).take(MAX_TRIED) {
            let Ok(d) = sample.distance_to(repo, c) else { continue };
            if best.is_none_or(|(b, _)| d < b) {
                best = Some((d, c));
            }
        }
        best.map(|(_, c)| reanchor(repo, c)).transpose()
    }
}

/// The objects of a version's safetensors files.
fn tensors_of(repo: &Repo, version: &Id) -> Vec<Id> {
    let list = || -> Result<Vec<Id>, RepoError> {
        let mut objects = Vec::new();
        for file in repo.record(version)?.files.iter().filter(|f| f.path.ends_with(".safetensors")) {
            objects.extend(repo.packs.recipe(&file.recipe)?.extents.iter().map(|e| e.object));
        }
        Ok(objects)
    };
    list().unwrap_or_else(|e| {
        log::warn!("{version} gives no bases: {e}");
        Vec::new()
    })
}

/// The nearest candidates of many pieces.
pub fn pair(
    repo: &Repo,
    candidates: &Candidates,
    pieces: &[(&HashedFile, &HashedPiece)],
) -> Result<Vec<Option<Arc<OpenObject>>>, RepoError> {
    pieces.par_iter().map(|(f, p)| candidates.nearest(repo, f, p)).collect()
}

/// The object itself while its blocks may carry one more, else the first up its chain that is cheap.
fn reanchor(repo: &Repo, object: &Arc<OpenObject>) -> Result<Arc<OpenObject>, RepoError> {
    let mut at = object.clone();
    if at.stored.record.cost >= MAX_COST {
        while at.stored.record.cost > REANCHOR_COST {
            let up = at.stored.record.bases[0];
            at = repo.open_object(&up)?;
        }
    }
    Ok(at)
}

/// A few KiB from the middle of a tensor, from the start of a block on.
struct Sample {
    elem: Elem,
    block: u64,
    bytes: Vec<u8>,
}

impl Sample {
    fn of_file(file: &HashedFile, piece: &HashedPiece) -> Result<Sample, RepoError> {
        let p = &piece.piece;
        let block = (p.length.div_ceil(BLOCK) - 1) / 2;
        let mut bytes = vec![0; block_len(p.length, block).min(SAMPLE)];
        File::open(&file.source)
            .and_then(|f| f.read_exact_at(&mut bytes, p.offset + block * BLOCK))
            .map_err(|e| RepoError::file(&file.source, e))?;
        Ok(Sample { elem: Elem::of(p.dtype()), block, bytes })
    }

    fn distance_to(&self, repo: &Repo, candidate: &OpenObject) -> Result<f64, RepoError> {
        if self.block >= candidate.blocks() {
            return Ok(f64::MAX);
        }
        let block = repo.block(candidate, self.block)?;
        let n = self.bytes.len().min(block.len());
        Ok(distance(self.elem, &self.bytes[..n], &block[..n]))
    }
}
