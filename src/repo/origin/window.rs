//! Some weights of a version: a window of values of each matrix, with its sketch.
//!
//! Matrices are evidence of kinship, vectors are not: norms start alike everywhere. Where a version has no matrix, its
//! vectors must do. What cannot be read is left out.

use rayon::prelude::*;

use super::super::RepoError;
use super::super::diff::side::{Side, Tensor};
use crate::model::id::Id;
use crate::model::number::Number;
use crate::model::sketch::{self, Sketch};

/// Most tensors of a version that are looked at.
const MAX_TENSORS: usize = 512;
/// Tensors of a version that are sketched for the search.
const SKETCHED: usize = 8;

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

/// The tensors that tell where a version comes from, as places in the side's tensors, at most `most` of them, from all
/// over it.
fn telling(side: &Side, most: usize) -> Vec<usize> {
    let suits = |t: &Tensor| sketch::suits(&t.dtype, &t.shape);
    let of_rank = |least: usize| -> Vec<usize> {
        let mut seen = std::collections::HashSet::new();
        let fits = |(_, t): &(usize, &Tensor)| t.shape.len() >= least && suits(t) && seen.insert(t.id);
        side.tensors.iter().enumerate().filter(fits).map(|(i, _)| i).collect()
    };
    let matrices = of_rank(2);
    let all = if matrices.is_empty() { of_rank(1) } else { matrices };
    spread(&all, most)
}

/// At most `most` of them, evenly, the first and the last among them.
fn spread(all: &[usize], most: usize) -> Vec<usize> {
    match all.len() {
        n if n <= most => all.to_vec(),
        n => (0..most).map(|i| all[i * (n - 1) / (most - 1)]).collect(),
    }
}

/// The windows of all that tells.
pub fn all(side: &Side) -> Vec<Weights> {
    telling(side, MAX_TENSORS).into_par_iter().filter_map(|i| Weights::read(side, i)).collect()
}

/// Windows of those tensors that `wanted` picks.
pub fn some(side: &Side, wanted: impl Fn(&Tensor) -> bool) -> Vec<Weights> {
    let picked: Vec<usize> = telling(side, MAX_TENSORS).into_iter().filter(|&i| wanted(&side.tensors[i])).collect();
    picked.into_par_iter().filter_map(|i| Weights::read(side, i)).collect()
}

/// A few sketches that stand for a version.
pub fn sketches(side: &Side) -> Vec<Sketch> {
    let found = |most| -> Vec<Sketch> {
        telling(side, most).into_iter().filter_map(|i| Weights::read(side, i)).map(|w| w.sketch).collect()
    };
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
        assert_eq!(spread(&all[..3], 4), [0, 1, 2]);
    }
}
