//! Which stored tensors are near a new one: by content, never by name.
//!
//! Candidates are the parents' tensors of the same shape (or another first dimension: a resized embedding; or the
//! transposed shape), of the same dtype where there are any. Of each parent the nearest by a sample of both is
//! taken, measured under the order map ([`crate::codec::distance`]), after a cast where the dtypes differ.
//! What these are themselves built on may take part in a mix, too. Several children may share a base.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use rayon::prelude::*;

use super::hash::{HashedFile, HashedPiece};
use super::read::{MappedBase, OpenObject, Via};
use super::{Repo, RepoError};
use crate::codec::{self, Formula, QuantizedFit, Spec, distance};
use crate::model::dtype::Elem;
use crate::model::id::{BLOCK, Id, block_len};
use crate::model::layout::What;
use crate::model::object::Mapping;
use crate::model::sketch::kind;

/// Bytes compared of each tensor.
const SAMPLE: usize = 4096;
/// Candidates looked at for one tensor, of one parent.
const MAX_TRIED: usize = 512;
/// Near tensors that are kept.
const MAX_NEAR: usize = 7;

/// A tensor that may be a base, and how many bits an element lie between.
#[derive(Clone)]
pub struct Near {
    pub object: Arc<OpenObject>,
    pub distance: f64,
    /// Its place in the order of the parents, which a mix was probably computed in.
    pub order: usize,
}

/// The tensors that may serve as bases: for each version, by shape without its first dimension.
#[derive(Default)]
pub struct Candidates {
    versions: Vec<HashMap<Vec<u64>, Vec<Arc<OpenObject>>>>,
}

/// True for a matrix and its transpose.
pub(super) fn is_transposed(shape: &[u64], other: &[u64]) -> bool {
    matches!((shape, other), ([a, b], [c, d]) if a == d && b == c)
}

/// Which of a base's bytes stand for the child's, where the elements are in the same order.
pub(super) fn mapped(elem: Elem, object: Arc<OpenObject>) -> MappedBase {
    let mapping = if object.elem() == elem { Mapping::Bytes } else { Mapping::Elements };
    MappedBase { object, mapping }
}

impl Candidates {
    /// All tensors of the given versions, as far as they can be read.
    pub fn of_versions(repo: &Repo, versions: &[Id]) -> Candidates {
        let mut out = Candidates::default();
        for id in versions {
            let mut by_shape: HashMap<_, Vec<_>> = HashMap::new();
            let mut seen = HashSet::new();
            for object in tensors_of(repo, id).into_iter().filter(|o| seen.insert(*o)) {
                match repo.open_object(&object) {
                    Ok(open) if open.stored.record.dtype.is_empty() => {}
                    Ok(open) => by_shape.entry(kind(&open.stored.record.shape)).or_default().push(open),
                    Err(e) => log::warn!("a tensor of {id} cannot be a base: {e}"),
                }
            }
            out.versions.push(by_shape);
        }
        out
    }

    /// The nearest of each version, and what these are built on; the nearest first.
    pub fn near(&self, repo: &Repo, file: &HashedFile, piece: &HashedPiece) -> Result<Vec<Near>, RepoError> {
        let What::Tensor { dtype, shape, .. } = &piece.piece.what else { return Ok(vec![]) };
        if self.versions.is_empty() {
            return Ok(vec![]);
        }
        let sample = Sample::of_file(file, piece)?;
        let mut near: Vec<Near> =
            self.versions.iter().filter_map(|v| nearest(repo, v, &sample, dtype, shape)).collect();
        let below = near.iter().flat_map(|n| n.object.bases()).map(|b| b.object.clone());
        // Of another kind than floats, none: how well integers fit a quotient is no distance.
        let kin = |e: Elem| e == sample.spec.elem || Formula::casts(e, sample.spec.elem);
        let same = |o: &Arc<OpenObject>| o.stored.record.shape == *shape && kin(o.elem());
        near.extend(below.filter(same).map(|o| sample.near(repo, &o)).collect::<Vec<_>>());
        let mut seen = HashSet::new();
        near.retain(|n| seen.insert(n.object.id()));
        near.truncate(MAX_NEAR);
        near.iter_mut().enumerate().for_each(|(i, n)| n.order = i);
        near.sort_by(|a, b| a.distance.total_cmp(&b.distance));
        Ok(near)
    }
}

/// Of the candidates of one version, those of the same dtype and shape first.
fn nearest(
    repo: &Repo,
    version: &HashMap<Vec<u64>, Vec<Arc<OpenObject>>>,
    sample: &Sample,
    dtype: &str,
    shape: &[u64],
) -> Option<Near> {
    let all = version.get(&kind(shape)).map_or(&[][..], |v| v);
    let same_shape = |o: &&Arc<OpenObject>| o.stored.record.shape == shape;
    let same_dtype = |o: &&Arc<OpenObject>| o.stored.record.dtype == dtype;
    let pick = |keep: &dyn Fn(&&Arc<OpenObject>) -> bool| -> Option<Near> {
        let near = all.iter().filter(keep).take(MAX_TRIED).map(|o| sample.near(repo, o));
        near.min_by(|a, b| a.distance.total_cmp(&b.distance))
    };
    let best = pick(&|o| same_shape(o) && same_dtype(o))
        .or_else(|| pick(&|o| same_shape(o) && sample.converts(o.elem())))
        .or_else(|| pick(&|o| same_dtype(o)))
        .filter(|n| n.distance < f64::MAX);
    let far = |n: &Near| n.distance > 0.4 * 8.0 * sample.spec.elem.width() as f64;
    if shape.len() != 2 || best.as_ref().is_some_and(|n| !far(n)) {
        return best;
    }
    let turned = version.get(&kind(&[shape[1], shape[0]])).map_or(&[][..], |v| v);
    let turned = turned.iter().filter(|o| same_dtype(o) && is_transposed(&o.stored.record.shape, shape));
    let turned = turned.take(MAX_TRIED).filter_map(|o| sample.turned(repo, o, shape[1]));
    turned.chain(best).min_by(|a, b| a.distance.total_cmp(&b.distance))
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

/// The near tensors of many pieces.
pub fn pair(
    repo: &Repo,
    candidates: &Candidates,
    pieces: &[(&HashedFile, &HashedPiece)],
) -> Result<Vec<Vec<Near>>, RepoError> {
    pieces.par_iter().map(|(f, p)| candidates.near(repo, f, p)).collect()
}

/// A few KiB from the middle of a tensor, from the start of a block on.
struct Sample {
    spec: Spec,
    elements: u64,
    block: u64,
    bytes: Vec<u8>,
}

impl Sample {
    fn of_file(file: &HashedFile, piece: &HashedPiece) -> Result<Sample, RepoError> {
        let p = &piece.piece;
        let block = (p.length.div_ceil(BLOCK) - 1) / 2;
        let mut bytes = vec![0; block_len(p.length, block).min(SAMPLE)];
        file.read_at(&mut bytes, p.offset + block * BLOCK)?;
        let spec = Spec { elem: Elem::of(p.dtype()), row_bytes: p.row_bytes() as usize };
        Ok(Sample { spec, elements: p.length / spec.elem.width() as u64, block, bytes })
    }

    /// Can a base of this type be turned into the child's?
    fn converts(&self, from: Elem) -> bool {
        Formula::casts(from, self.spec.elem) || QuantizedFit::new(self.spec, from, self.elements).is_some()
    }

    fn near(&self, repo: &Repo, object: &Arc<OpenObject>) -> Near {
        Near { object: object.clone(), distance: self.distance_to(repo, object).unwrap_or(f64::MAX), order: 0 }
    }

    fn distance_to(&self, repo: &Repo, object: &Arc<OpenObject>) -> Result<f64, RepoError> {
        let (elem, width) = (object.elem(), self.spec.elem.width());
        let base = mapped(self.spec.elem, object.clone());
        let (start, _) = base.mapping.range(self.block, 0, width, object.length(), elem.width());
        if start >= object.length() {
            return Ok(f64::MAX);
        }
        let there = repo.base_block(&base, width, self.block, self.bytes.len(), Via::Checked)?;
        if base.mapping == Mapping::Bytes {
            let n = self.bytes.len().min((object.length() - start) as usize);
            return Ok(distance(elem, &self.bytes[..n], &there.bytes()[..n]));
        }
        if !Formula::casts(elem, self.spec.elem) {
            let mut fit = QuantizedFit::new(self.spec, elem, self.elements);
            let sample = codec::Sample { block: self.block, raw: &self.bytes, bases: vec![there.bytes()] };
            let found = fit.as_mut().and_then(|f| {
                f.see(elem, &sample);
                f.finish()
            });
            return Ok(if found.is_some() { 0.0 } else { f64::MAX });
        }
        self.predicted(&Formula::cast(), elem, there.bytes())
    }

    fn predicted(&self, formula: &Formula, elem: Elem, base: &[u8]) -> Result<f64, RepoError> {
        let mut out = vec![0; self.bytes.len()];
        let predicted = formula.predict(self.spec, self.block, &[(elem, base)], &mut out);
        Ok(if predicted.is_ok() { distance(self.spec.elem, &self.bytes, &out) } else { f64::MAX })
    }

    /// As transposed, where all of the base may be read for one block. `columns`: the child's.
    fn turned(&self, repo: &Repo, object: &Arc<OpenObject>, columns: u64) -> Option<Near> {
        let base = MappedBase { object: object.clone(), mapping: Mapping::Whole };
        super::read::cost(self.spec.elem.width(), std::slice::from_ref(&base))?;
        let rows = (self.elements / columns.max(1)) as usize;
        let there = repo.base_block(&base, self.spec.elem.width(), 0, 0, Via::Checked).ok()?;
        let distance = self.predicted(&Formula::Transposed(rows), object.elem(), there.bytes()).ok()?;
        Some(Near { object: object.clone(), distance, order: 0 })
    }
}
