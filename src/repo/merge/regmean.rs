//! RegMean: the linear layer that best gives what each parent's gives on that parent's inputs.
//!
//! With Wi of parent i, rows for outputs, and Gi = Xi^T Xi of the inputs Xi to the layer (arXiv 2212.09849):
//!
//! ```text
//! G̃i = alpha Gi + (1 - alpha) diag(Gi)        W = (Σ Wi G̃i) (Σ G̃i)^-1
//! ```
//!
//! in f64, by Cholesky's factors. A tensor without a Gram matrix is averaged. Memory: the matrices of one layer.

use rayon::prelude::*;

use super::compute::{Term, not_finite, terms};
use super::{Input, Job, Sink};
use crate::codec::{load, store};
use crate::model::name::printable;
use crate::model::number::Number;
use crate::repo::RepoError;
use crate::repo::diff::side::{Side, Tensor};
use crate::repo::progress::Progress;

/// Rows between two writes.
const ROWS: usize = 256;

/// What a RegMean merge does to a tensor.
#[derive(Clone, Debug)]
pub struct RegMean {
    pub alpha: f64,
    /// Place of the Gram matrix in each parent's file of them.
    pub grams: Vec<usize>,
}

/// The Gram matrices of a tensor: named as the tensor, or as its module. `None` where there is none.
pub fn find(grams: &[Side], t: &Tensor) -> Result<Option<Vec<usize>>, RepoError> {
    let module = t.name.strip_suffix(".weight").unwrap_or(&t.name);
    let place = |s: &Side| s.tensors.iter().position(|g| g.name == t.name || g.name == module);
    let places: Vec<Option<usize>> = grams.iter().map(place).collect();
    let name = printable(&t.name);
    if places.iter().all(Option::is_none) {
        return Ok(None);
    }
    let places = places.into_iter().collect::<Option<Vec<_>>>();
    let places =
        places.ok_or_else(|| RepoError::refused(format!("tensor '{name}': not every file has its Gram matrix")))?;
    let [_, inputs] = t.shape[..] else {
        return Err(RepoError::refused(format!("tensor '{name}' is no matrix, and has a Gram matrix")));
    };
    for (s, &at) in grams.iter().zip(&places) {
        let g = &s.tensors[at];
        if g.shape != [inputs, inputs] || !Number::of(&g.dtype).is_some_and(Number::is_float) {
            return Err(RepoError::refused(format!(
                "tensor '{name}': its Gram matrix is {} {:?}, not floats of [{inputs}, {inputs}]",
                g.dtype, g.shape
            )));
        }
    }
    Ok(Some(places))
}

/// Computes one tensor.
pub fn regmean(
    inputs: &[Input],
    grams: &[Side],
    job: &Job,
    how: &RegMean,
    progress: &dyn Progress,
    sink: &mut Sink,
) -> Result<(), RepoError> {
    let terms = terms(inputs, job);
    let (rows, n) = (terms[0].tensor.shape[0] as usize, terms[0].tensor.shape[1] as usize);
    let matrices = grams.iter().zip(&how.grams).map(|(s, &at)| gram(s, &s.tensors[at], n, how.alpha));
    let matrices = matrices.collect::<Result<Vec<_>, _>>()?;
    let mut sum = vec![0.0; n * n];
    matrices.iter().for_each(|m| sum.iter_mut().zip(m).for_each(|(s, v)| *s += v));
    let name = printable(&terms[0].tensor.name);
    let factor = cholesky(sum, n).ok_or_else(|| {
        RepoError::refused(format!(
            "tensor '{name}': the sum of its Gram matrices is not positive definite; lower alpha"
        ))
    })?;
    let width = terms[0].elem.width();
    for first in (0..rows).step_by(ROWS) {
        progress.check()?;
        let count = ROWS.min(rows - first);
        let read = |t: &Term| -> Result<Vec<f64>, RepoError> {
            let mut values = vec![0.0; count * n];
            load(t.elem, &t.bytes(first * n, count * n)?, &mut values);
            Ok(values)
        };
        let weights = terms.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let mut out = vec![0; count * n * width];
        let finite = out.par_chunks_mut(n * width).enumerate().map(|(row, out)| {
            let mut x = vec![0.0; n];
            for (w, m) in weights.iter().zip(&matrices) {
                let w = &w[row * n..][..n];
                x.iter_mut().zip(m.chunks_exact(n)).for_each(|(x, g)| *x += dot(g, w));
            }
            solve(&factor, &mut x);
            store(terms[0].elem, &x, out);
            x.iter().all(|v| v.is_finite())
        });
        if !finite.collect::<Vec<bool>>().into_iter().all(|f| f) {
            return Err(not_finite(terms[0].tensor));
        }
        sink(&out)?;
    }
    Ok(())
}

fn gram(side: &Side, t: &Tensor, n: usize, alpha: f64) -> Result<Vec<f64>, RepoError> {
    let mut bytes = vec![0; t.length as usize];
    side.read_tensor(t, 0, &mut bytes)?;
    let mut values = Vec::new();
    Number::of(&t.dtype).unwrap_or(Number::U8).read(&bytes, &mut values);
    values.iter_mut().enumerate().filter(|(i, _)| i / n != i % n).for_each(|(_, v)| *v *= alpha);
    Ok(values)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// The lower factor L of m = L L^T, row by row; `None` where m is not positive definite.
fn cholesky(mut m: Vec<f64>, n: usize) -> Option<Vec<f64>> {
    for j in 0..n {
        let (done, rest) = m.split_at_mut((j + 1) * n);
        let row = &mut done[j * n..];
        let pivot = row[j] - dot(&row[..j], &row[..j]);
        if pivot.is_nan() || pivot <= 0.0 || !pivot.is_finite() {
            return None;
        }
        row[j] = pivot.sqrt();
        let row = &row[..=j];
        rest.par_chunks_mut(n).for_each(|r| r[j] = (r[j] - dot(&r[..j], &row[..j])) / row[j]);
    }
    Some(m)
}

/// x = (L L^T)^-1 x.
fn solve(factor: &[f64], x: &mut [f64]) {
    let n = x.len();
    for i in 0..n {
        x[i] = (x[i] - dot(&factor[i * n..][..i], &x[..i])) / factor[i * n + i];
    }
    for i in (0..n).rev() {
        x[i] /= factor[i * n + i];
        let v = x[i];
        x[..i].iter_mut().zip(&factor[i * n..][..i]).for_each(|(x, l)| *x -= l * v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_is_solved() {
        let m = vec![4.0, 2.0, 0.6, 2.0, 5.0, 1.0, 0.6, 1.0, 3.0];
        let want = [1.0, -2.0, 0.5];
        let mut x: Vec<f64> = m.chunks(3).map(|r| dot(r, &want)).collect();
        solve(&cholesky(m, 3).unwrap(), &mut x);
        assert!(x.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12), "{x:?}");
        assert_eq!(cholesky(vec![1.0, 2.0, 2.0, 1.0], 2), None);
        assert_eq!(cholesky(vec![f64::NAN], 1), None);
    }
}
