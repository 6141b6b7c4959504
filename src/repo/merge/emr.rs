//! EMR-Merging (arXiv 2405.17461): elect, mask, rescale.
//!
//! With task vectors τi = pi - p0, value by value, and sums over the whole model for the scales:
//!
//! ```text
//! γ = sign(Σ τi)     τ = γ max |τi|, of those i with sign(τi) = γ     Mi = 1 where τi τ > 0, else 0
//! λi = Σ |τi| / Σ Mi |τ|                                              model i = p0 + λi Mi τ
//! ```
//!
//! τ is a version of its own, stored once; a model is a version of a bit a weight. λ is summed in f64 and rounded to f32.

use rayon::prelude::*;

use super::compute::{Term, not_finite, stream, terms};
use super::{Input, Job, Sink};
use crate::codec::{Formula, Real, load, store};
use crate::model::id::Id;
use crate::repo::RepoError;
use crate::repo::hash::Made;
use crate::repo::progress::Progress;

/// What an EMR merge makes of a tensor.
#[derive(Clone, Debug)]
pub enum Emr {
    /// The unified task vector τ.
    Unified,
    /// The model of the first parent, the second being τ, at this scale λ.
    Model(f64),
}

/// Computes one tensor. How it was made, where that is a formula.
pub fn emr(
    inputs: &[Input],
    job: &Job,
    emr: &Emr,
    progress: &dyn Progress,
    sink: &mut Sink,
) -> Result<Option<Made>, RepoError> {
    let terms = terms(inputs, job);
    let tensor = terms[1].tensor;
    stream(&terms, progress, sink, |_, bytes, out| {
        let finite = match terms[0].is_wide() {
            true => fill::<f64>(&terms, bytes, out, emr),
            false => fill::<f32>(&terms, bytes, out, emr),
        };
        if finite { Ok(()) } else { Err(not_finite(tensor)) }
    })?;
    let Emr::Model(scale) = emr else { return Ok(None) };
    let bases: Vec<Id> = vec![terms[0].tensor.id, terms[2].tensor.id];
    Ok(Some(Made::by(bases, Formula::gated(*scale, terms[0].is_wide()))))
}

/// False where a value is not finite. `terms`: the base first.
fn fill<R: Real>(terms: &[Term], bytes: &[Vec<u8>], out: &mut [u8], emr: &Emr) -> bool {
    let elem = terms[0].elem;
    let Some(mut values) = deltas::<R>(terms, bytes, out.len() / elem.width(), emr) else { return false };
    match emr {
        Emr::Unified => {
            let unified = unified(&values[1..]);
            store(elem, &unified, out);
        }
        Emr::Model(scale) => {
            let scale = R::from_f64(*scale);
            let [base, task, unified] = &mut values[..] else { return false };
            for ((b, t), u) in base.iter_mut().zip(task).zip(unified) {
                if same_sign(*t, *u) {
                    *b = *b + scale * *u;
                }
            }
            store(elem, base, out);
        }
    }
    true
}

/// Is their product above zero, be it too small to be told from it?
fn same_sign<R: Real>(a: R, b: R) -> bool {
    let zero = R::default();
    a > zero && b > zero || a < zero && b < zero
}

/// The values of base and parents, the parents' less the base; `None` where one is not finite. τ is a difference already.
fn deltas<R: Real>(terms: &[Term], bytes: &[Vec<u8>], n: usize, emr: &Emr) -> Option<Vec<Vec<R>>> {
    let mut values = vec![vec![R::default(); n]; terms.len()];
    for ((t, bytes), values) in terms.iter().zip(bytes).zip(&mut values) {
        load(t.elem, bytes, values);
    }
    let (base, parents) = values.split_first_mut()?;
    let tasks = if matches!(emr, Emr::Unified) { parents.len() } else { 1 };
    for p in &mut parents[..tasks] {
        p.iter_mut().zip(&*base).for_each(|(p, b)| *p = *p - *b);
    }
    values.iter().skip(1).flatten().all(|v| v.to_f64().is_finite()).then_some(values)
}

fn unified<R: Real>(tasks: &[Vec<R>]) -> Vec<R> {
    let zero = R::default();
    let of = |i: usize| {
        let sum = tasks.iter().fold(zero, |s, t| s + t[i]);
        let agree = tasks.iter().map(|t| t[i]).filter(|t| same_sign(*t, sum));
        agree.fold(zero, |most, t| if sum > zero && t > most || sum < zero && t < most { t } else { most })
    };
    (0..tasks.first().map_or(0, Vec::len)).map(of).collect()
}

/// λ of each parent. `jobs`: those that make τ.
pub fn scales(inputs: &[Input], jobs: &[Job], progress: &dyn Progress) -> Result<Vec<f64>, RepoError> {
    let parents = jobs.first().map_or(0, |j| j.parents.len());
    let mut sums = vec![[0.0; 2]; parents];
    for job in jobs {
        let terms = terms(inputs, job);
        let n = terms[0].elements();
        let starts: Vec<usize> = (0..n).step_by(super::compute::TASK).collect();
        let part = |&first: &usize| {
            progress.check()?;
            let count = super::compute::TASK.min(n - first);
            let bytes = terms.iter().map(|t| t.bytes(first, count)).collect::<Result<Vec<_>, _>>()?;
            let part = if terms[0].is_wide() {
                part::<f64>(&terms, &bytes, count)
            } else {
                part::<f32>(&terms, &bytes, count)
            };
            part.ok_or_else(|| not_finite(terms[1].tensor))
        };
        for part in starts.par_iter().map(part).collect::<Result<Vec<_>, RepoError>>()? {
            sums.iter_mut().zip(part).for_each(|(s, p)| *s = [s[0] + p[0], s[1] + p[1]]);
        }
    }
    // A model that is its base has no scale to speak of.
    Ok(sums.iter().map(|s| if s[1] > 0.0 { s[0] / s[1] } else { 1.0 }).map(|l| l as f32 as f64).collect())
}

/// Of each parent: Σ |τi| and Σ Mi |τ|.
fn part<R: Real>(terms: &[Term], bytes: &[Vec<u8>], n: usize) -> Option<Vec<[f64; 2]>> {
    let values = deltas::<R>(terms, bytes, n, &Emr::Unified)?;
    let unified = unified(&values[1..]);
    let sums = |task: &Vec<R>| {
        let pairs = task.iter().zip(&unified);
        pairs.fold([0.0; 2], |s, (t, u)| {
            let masked = if same_sign(*t, *u) { u.to_f64().abs() } else { 0.0 };
            [s[0] + t.to_f64().abs(), s[1] + masked]
        })
    };
    Some(values[1..].iter().map(sums).collect())
}
