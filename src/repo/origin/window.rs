//! Some weights of a version: a window of values of each matrix, with its sketch.
//!
//! Matrices are evidence of kinship, vectors are not: norms start alike everywhere. Where a version has no matrix, its
//! vectors must do. What cannot be read is left out.

use std::collections::{BTreeMap, HashSet};

use rayon::prelude::*;

use super::super::RepoError;
use super::super::diff::side::{Side, Tensor};
use super::super::diff::text::natural;
use crate::model::id::Id;
use crate::model::number::Number;
use crate::model::sketch::{self, Sketch};

/// Matrices of the new version that are compared.
const COMPARED: usize = 32;
/// Most matrices of one kind that are searched for.
const MAX_SEARCHED: usize = 256;
/// Tensors of a version that are sketched for the search.
const SKETCHED: usize = 8;
/// A kind of tensors with less than this share of all elements (a head) is not sketched: versions would be sketched
/// in other places for it.
const SMALL: f64 = 0.01;

/// A window of a tensor's values.
pub struct Weights {
    /// Its place in the side's tensors.
    pub tensor: usize,
    pub id: Id,
    pub number: Number,
    pub shape: Vec<u64>,
    pub values: Vec<f32>,
    pub sketch: Sketch,
}

impl Weights {
    /// `None` for what cannot be read, or says nothing.
    pub fn read(side: &Side, index: usize) -> Option<Weights> {
        let t = &side.tensors[index];
        let values = values(side, t).map_err(|e| log::warn!("tensor '{}' is not compared: {e}", t.name)).ok()?;
        let sketch = Sketch::of_window(&t.shape, &values)?;
        let number = Number::of(&t.dtype)?;
        Some(Weights { tensor: index, id: t.id, number, shape: t.shape.clone(), values, sketch })
    }
}

fn values(side: &Side, t: &Tensor) -> Result<Vec<f32>, RepoError> {
    let Some(number) = Number::of(&t.dtype) else { return Ok(vec![]) };
    let (start, len) = sketch::window(&t.shape);
    let width = number.width();
    let mut bytes = vec![0; len * width];
    side.read_tensor(t, start * width as u64, &mut bytes)?;
    let mut out = Vec::new();
    number.read(&bytes, &mut out);
    Ok(out.into_iter().map(|v| v as f32).collect())
}

/// The tensors that tell where a version comes from, as places in the side's tensors, by kind: those of more elements
/// first. The same for every version of one architecture, whatever its names and heads.
pub fn kinds(side: &Side) -> Vec<(u32, Vec<usize>)> {
    let of_rank = |least: usize| -> Vec<usize> {
        let mut seen = HashSet::new();
        let fits = |t: &Tensor| t.shape.len() >= least && sketch::suits(&t.dtype, &t.shape);
        let all = side.tensors.iter().enumerate();
        all.filter(|(_, t)| fits(t) && seen.insert(t.id)).map(|(i, _)| i).collect()
    };
    let matrices = of_rank(2);
    let all = if matrices.is_empty() { of_rank(1) } else { matrices };
    let mut kinds: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    // A file that was split has its tensors in another order.
    let mut all = all;
    all.sort_by_cached_key(|&i| natural(&side.tensors[i].name));
    for i in all {
        kinds.entry(sketch::class(&side.tensors[i].shape)).or_default().push(i);
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, places)| std::cmp::Reverse(elements(side, places)));
    kinds
}

fn elements(side: &Side, places: &[usize]) -> u64 {
    let count = |&i: &usize| side.tensors[i].shape.iter().fold(1u64, |n, &d| n.saturating_mul(d));
    places.iter().map(count).fold(0, u64::saturating_add)
}

/// At most `most` of them, of each kind about as many, and of a kind evenly.
fn picked(kinds: &[(u32, Vec<usize>)], most: usize) -> Vec<usize> {
    let mut counts = vec![0; kinds.len()];
    let mut left = most;
    while left > 0 {
        let before = left;
        for (count, (_, places)) in counts.iter_mut().zip(kinds) {
            if left > 0 && *count < places.len() {
                (*count, left) = (*count + 1, left - 1);
            }
        }
        if before == left {
            break;
        }
    }
    kinds.iter().zip(counts).flat_map(|((_, places), n)| spread(places, n)).collect()
}

/// `n` of them, evenly, the first and the last among them.
fn spread(all: &[usize], n: usize) -> Vec<usize> {
    match n {
        1 => all[..1].to_vec(),
        _ => (0..n).map(|i| all[i * (all.len() - 1) / (n - 1)]).collect(),
    }
}

fn read(side: &Side, places: Vec<usize>) -> Vec<Weights> {
    places.into_par_iter().filter_map(|i| Weights::read(side, i)).collect()
}

/// Windows of some matrices of each kind, those that are sketched among them.
pub fn compared(side: &Side) -> Vec<Weights> {
    let mut places = picked(&kinds(side), COMPARED);
    for place in picked(&large(side), SKETCHED) {
        if !places.contains(&place) {
            places.push(place);
        }
    }
    read(side, places)
}

/// Windows of all matrices of the kinds that are sketched: among them are those that the search looks for.
pub fn searched(side: &Side) -> Vec<Weights> {
    read(
        side,
        large(side).into_iter().flat_map(|(_, places)| spread(&places, places.len().min(MAX_SEARCHED))).collect(),
    )
}

/// The kinds that are not small.
fn large(side: &Side) -> Vec<(u32, Vec<usize>)> {
    let mut kinds = kinds(side);
    let all: u64 = kinds.iter().map(|(_, places)| elements(side, places)).fold(0, u64::saturating_add);
    kinds.retain(|(_, places)| elements(side, places) as f64 >= SMALL * all as f64);
    kinds
}

/// A few matrices whose sketches stand for a version.
pub fn sketched(side: &Side) -> Vec<Weights> {
    let kinds = large(side);
    let found = |most| read(side, picked(&kinds, most));
    let some = found(SKETCHED);
    // Where most of these were constant, others may not be.
    if 2 * some.len() > SKETCHED { some } else { found(8 * SKETCHED).into_iter().take(SKETCHED).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_of_many_lie_everywhere() {
        let all: Vec<usize> = (0..100).collect();
        assert_eq!(spread(&all, 4), [0, 33, 66, 99]);
        assert_eq!(spread(&all[..3], 3), [0, 1, 2]);
        let kinds = [(7, (0..10).collect()), (8, vec![20]), (9, vec![30, 31])];
        assert_eq!(picked(&kinds, 6), [0, 4, 9, 20, 30, 31]);
        assert_eq!(picked(&kinds, 100).len(), 13);
        assert!(picked(&[], 3).is_empty());
    }
}
