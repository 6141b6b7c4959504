//! The arithmetic of the methods, each streamed over one tensor.
//!
//! Numbers are f32, of F64 tensors f64, rounded once to the parents' dtype; sums that decide about a whole tensor are f64.
//! With parents p1, p2, …, a base p0 and weights w1, w2, …:
//!
//! - average, linear: (w1 p1 + w2 p2 + …) / (w1 + w2 + …), from left to right; of an average all weights are 1.
//!   (Model soups, arXiv 2203.05482; FedAvg, arXiv 1602.05629.)
//! - task-arithmetic: p0 + (w1 (p1 - p0) + w2 (p2 - p0) + …). (arXiv 2212.04089.)
//! - slerp: s1 p1 + s2 p2, s1 = sin((1-t) Ω) / sin Ω, s2 = sin(t Ω) / sin Ω, Ω the angle between p1 and p2 as vectors;
//!   where |cos Ω| > 0.9995, or one of them is zero, s1 = 1 - t, s2 = t. (Shoemake 1985, as in mergekit.)
//!
//! What is a formula of the codec's is computed by the codec, so that it stores the result as that formula.

use rayon::prelude::*;

use super::{How, Input, Job, emr, regmean, task_vectors};
use crate::codec::{Formula, Spec, load};
use crate::model::dtype::Elem;
use crate::model::name::printable;
use crate::repo::RepoError;
use crate::repo::diff::side::{Side, Tensor};
use crate::repo::hash::Made;
use crate::repo::progress::Progress;

/// Elements of one task, and tasks between two writes.
pub const TASK: usize = 1 << 16;
const TASKS: usize = 32;

pub type Sink<'a> = dyn FnMut(&[u8]) -> Result<(), RepoError> + 'a;

/// A tensor that takes part.
#[derive(Clone, Copy)]
pub struct Term<'i> {
    side: &'i Side,
    pub tensor: &'i Tensor,
    pub elem: Elem,
}

impl Term<'_> {
    /// The bytes of `n` elements from `first` on.
    pub fn bytes(&self, first: usize, n: usize) -> Result<Vec<u8>, RepoError> {
        let width = self.elem.width();
        let mut out = vec![0; n * width];
        self.side.read_tensor(self.tensor, (first * width) as u64, &mut out)?;
        Ok(out)
    }

    pub fn elements(&self) -> usize {
        self.tensor.length as usize / self.elem.width()
    }

    /// Does it take f64?
    pub fn is_wide(&self) -> bool {
        self.elem.width() == 8
    }
}

pub fn term<'i>(input: &'i Input, at: usize) -> Term<'i> {
    let tensor = &input.side.tensors[at];
    Term { side: &input.side, tensor, elem: Elem::of(&tensor.dtype) }
}

/// The base, if there is one, and the parents.
pub fn terms<'i>(inputs: &'i [Input], job: &Job) -> Vec<Term<'i>> {
    let base = job.base.map(|at| term(&inputs[job.parents.len()], at));
    base.into_iter().chain(inputs.iter().zip(&job.parents).map(|(i, &at)| term(i, at))).collect()
}

/// Computes the tensor and hands its bytes to `sink`. What it was made by, where the codec can store that.
pub fn run(
    inputs: &[Input],
    grams: &[Side],
    job: &Job,
    progress: &dyn Progress,
    sink: &mut Sink,
) -> Result<Option<Made>, RepoError> {
    let terms = terms(inputs, job);
    let formula = match &job.how {
        How::Formula(formula) => formula.clone(),
        How::Slerp(t) => slerp(&terms, *t, progress)?,
        How::Ties(how) => return task_vectors::ties(inputs, job, how, progress, sink).map(|()| None),
        How::Dare(how) => return task_vectors::dare(inputs, job, how, progress, sink).map(|()| None),
        How::Emr(how) => return emr::emr(inputs, job, how, progress, sink),
        How::RegMean(how) => return regmean::regmean(inputs, grams, job, how, progress, sink).map(|()| None),
    };
    let spec = Spec { elem: terms[0].elem, row_bytes: 0 };
    let predict = |_, bytes: &[Vec<u8>], out: &mut [u8]| {
        let typed: Vec<(Elem, &[u8])> = terms.iter().zip(bytes).map(|(t, b)| (t.elem, &b[..])).collect();
        formula.predict(spec, 0, &typed, out).map_err(|e| RepoError::refused(format!("a formula failed: {e}")))
    };
    stream(&terms, progress, sink, predict)?;
    Ok(Some(Made::by(terms.iter().map(|t| t.tensor.id).collect(), formula)))
}

/// Fills the result task by task on all cores, and hands it on in order. `fill` gets a task's first element, the bytes of
/// each term, and what to fill.
pub fn stream(
    terms: &[Term],
    progress: &dyn Progress,
    sink: &mut Sink,
    fill: impl Fn(usize, &[Vec<u8>], &mut [u8]) -> Result<(), RepoError> + Sync,
) -> Result<(), RepoError> {
    let (n, width) = (terms[0].elements(), terms[0].elem.width());
    let mut out = Vec::new();
    for window in (0..n).step_by(TASK * TASKS) {
        progress.check()?;
        out.resize((n - window).min(TASK * TASKS) * width, 0);
        out.par_chunks_mut(TASK * width).enumerate().try_for_each(|(i, out)| {
            let (first, n) = (window + i * TASK, out.len() / width);
            let bytes = terms.iter().map(|t| t.bytes(first, n)).collect::<Result<Vec<_>, _>>()?;
            fill(first, &bytes, out)
        })?;
        sink(&out)?;
    }
    Ok(())
}

/// The sums of squares of two tensors and of their products.
fn squares(terms: &[Term], progress: &dyn Progress) -> Result<[f64; 3], RepoError> {
    let n = terms[0].elements();
    let starts: Vec<usize> = (0..n).step_by(TASK).collect();
    let part = |&first: &usize| -> Result<[f64; 3], RepoError> {
        progress.check()?;
        let count = TASK.min(n - first);
        let mut values = [vec![0.0f64; count], vec![0.0f64; count]];
        for (t, values) in terms.iter().zip(&mut values) {
            load(t.elem, &t.bytes(first, count)?, values);
        }
        let [a, b] = values;
        let sum = a.iter().zip(&b).fold([0.0; 3], |s, (x, y)| [s[0] + x * x, s[1] + y * y, s[2] + x * y]);
        Ok(sum)
    };
    let parts = starts.par_iter().map(part).collect::<Result<Vec<_>, _>>()?;
    let total = parts.iter().fold([0.0; 3], |s, p| [s[0] + p[0], s[1] + p[1], s[2] + p[2]]);
    match total.iter().all(|v| v.is_finite()) {
        true => Ok(total),
        false => Err(not_finite(terms[0].tensor)),
    }
}

pub fn not_finite(t: &Tensor) -> RepoError {
    RepoError::refused(format!(
        "tensor '{}' has NaN or infinite values, which this method cannot merge",
        printable(&t.name)
    ))
}

fn slerp(parents: &[Term], t: f64, progress: &dyn Progress) -> Result<Formula, RepoError> {
    let [a, b, product] = squares(parents, progress)?;
    let cosine = product / (a.sqrt() * b.sqrt());
    let wide = parents[0].elem.width() == 8;
    let weights = match cosine.abs() <= 0.9995 {
        true => {
            let angle = cosine.acos();
            vec![((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()]
        }
        false => vec![1.0 - t, t],
    };
    Ok(Formula::linear(weights, None, wide))
}
