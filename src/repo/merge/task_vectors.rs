//! TIES and DARE: methods that pick values of the task vectors δi = pi - p0 one by one.
//!
//! - ties (arXiv 2306.01708): of each δi the largest `density` by magnitude are kept, the rest is 0; the elected sign of
//!   each value is that of Σ wi δi (+ where that is 0); of the values of that sign the mean weighted by wi is m; the result
//!   is p0 + lambda m. What is kept is told over all tensors of the model together, as published; with per-tensor=1 of each
//!   tensor alone, as mergekit does. Of n values the floor(density n) largest are kept, one at least, and what equals the least of them.
//! - dare (arXiv 2311.03099): each value of δi is kept with probability `density`, and divided by it; the result is
//!   p0 + Σ wi δi. Kept is value j of tensor T of parent i where splitmix64(key + (j + 1) 0x9E3779B97F4A7C15), its upper 53
//!   bits as a fraction of one, is below `density`; key is the first 8 bytes, little-endian, of
//!   BLAKE3(seed ‖ i ‖ T), the numbers as 8 bytes little-endian and i from 0. So a seed gives the same everywhere.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::compute::{TASK, Term, not_finite, stream, term, terms};
use super::{How, Input, Job, Output, Sink, Source, What};
use crate::codec::{Formula, Real, load, store};
use crate::model::dtype::Elem;
use crate::model::id::Id;
use crate::repo::RepoError;
use crate::repo::progress::Progress;

/// What a TIES merge does to a tensor.
#[derive(Clone, Debug)]
pub struct Ties {
    pub weights: Vec<f64>,
    pub density: f64,
    pub lambda: f64,
    pub per_tensor: bool,
    /// The least magnitude of each task vector that is kept; where it is told over the whole model, once [`prepare`] ran.
    pub least: Option<Vec<f64>>,
}

/// What a DARE merge does to a tensor.
#[derive(Clone, Debug)]
pub struct Dare {
    pub weights: Vec<f64>,
    pub density: f64,
    pub seed: u64,
}

/// Finds what has to be known of all tensors before the first is written.
pub fn prepare(inputs: &[Input], outputs: &mut [Output], progress: &dyn Progress) -> Result<(), RepoError> {
    let number = |t: &crate::repo::diff::side::Tensor| Formula::computes(Elem::of(&t.dtype));
    let side = &inputs[0].side;
    let total: u64 =
        side.tensors.iter().filter(|t| number(t)).map(|t| t.length / Elem::of(&t.dtype).width() as u64).sum();
    let mut found: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    let jobs: Vec<Job> =
        super::jobs(outputs).filter(|j| matches!(&j.how, How::Ties(t) if !t.per_tensor)).cloned().collect();
    let densities = jobs.iter().filter_map(|j| if let How::Ties(t) = &j.how { Some(t.density) } else { None });
    for density in densities {
        if found.contains_key(&density.to_bits()) {
            continue;
        }
        let keep = kept(density, total);
        let parents = jobs.first().map_or(0, |j| j.parents.len());
        let least = (0..parents).map(|p| {
            let pairs: Vec<[Term; 2]> = jobs.iter().map(|j| pair(inputs, j, p)).collect();
            kth(&pairs, keep, progress)
        });
        found.insert(density.to_bits(), least.collect::<Result<_, _>>()?);
    }
    for job in jobs_mut(outputs) {
        if let How::Ties(t) = &mut job.how {
            t.least = found.get(&t.density.to_bits()).filter(|_| !t.per_tensor).cloned();
        }
    }
    Ok(())
}

fn jobs_mut(outputs: &mut [Output]) -> impl Iterator<Item = &mut Job> {
    let parts =
        outputs.iter_mut().filter_map(|o| if let What::Weights(parts) = &mut o.what { Some(parts) } else { None });
    parts.flatten().filter_map(|p| if let Source::Compute(job) = &mut p.source { Some(job) } else { None })
}

/// How many of `n` values are kept.
fn kept(density: f64, n: u64) -> u64 {
    ((density * n as f64).floor() as u64).max(1)
}

/// Base and parent `p` of a job.
fn pair<'i>(inputs: &'i [Input], job: &Job, p: usize) -> [Term<'i>; 2] {
    let base = job.base.map(|at| term(&inputs[job.parents.len()], at));
    let parent = term(&inputs[p], job.parents[p]);
    [base.unwrap_or(parent), parent]
}

/// The k-th largest magnitude of the differences of these pairs, taken together; 0 where there are fewer than k. Sixteen bits of it are found in each pass, so that no difference need be kept.
fn kth(pairs: &[[Term; 2]], k: u64, progress: &dyn Progress) -> Result<f64, RepoError> {
    let wide = pairs.iter().any(|p| p[1].is_wide());
    let (mut left, mut prefix, bits) = (k, 0u64, if wide { 64 } else { 32 });
    let tasks: Vec<([Term; 2], usize)> =
        pairs.iter().flat_map(|p| (0..p[0].elements()).step_by(TASK).map(move |first| (*p, first))).collect();
    for shift in (0..bits / 16).rev().map(|i| 16 * i) {
        let count = |mut counts: Vec<u64>, (pair, first): &([Term; 2], usize)| -> Result<Vec<u64>, RepoError> {
            progress.check()?;
            let mut see = |key: u64| {
                if key.checked_shr(shift + 16).unwrap_or(0) == prefix {
                    counts[(key >> shift & 0xFFFF) as usize] += 1;
                }
            };
            match wide {
                true => differences::<f64>(pair, *first)?.into_iter().for_each(|d| see(d.abs().to_bits())),
                false => differences::<f32>(pair, *first)?.into_iter().for_each(|d| see(d.abs().to_bits() as u64)),
            }
            Ok(counts)
        };
        let counts = tasks.par_iter().try_fold(|| vec![0u64; 1 << 16], count).try_reduce(
            || vec![0u64; 1 << 16],
            |mut a, b| {
                a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
                Ok(a)
            },
        )?;
        let Some(bin) = (0..counts.len()).rev().find(|&i| {
            let here = counts[i] >= left;
            left -= if here { 0 } else { counts[i] };
            here
        }) else {
            return Ok(0.0);
        };
        prefix = prefix << 16 | bin as u64;
    }
    Ok(if wide { f64::from_bits(prefix) } else { f32::from_bits(prefix as u32) as f64 })
}

fn differences<R: Real>([base, parent]: &[Term; 2], first: usize) -> Result<Vec<R>, RepoError> {
    let n = TASK.min(base.elements() - first);
    let (mut b, mut p) = (vec![R::default(); n], vec![R::default(); n]);
    load(base.elem, &base.bytes(first, n)?, &mut b);
    load(parent.elem, &parent.bytes(first, n)?, &mut p);
    p.iter_mut().zip(&b).for_each(|(p, b)| *p = *p - *b);
    match p.iter().all(|v| v.to_f64().is_finite()) {
        true => Ok(p),
        false => Err(not_finite(parent.tensor)),
    }
}

/// Computes one tensor.
pub fn ties(
    inputs: &[Input],
    job: &Job,
    ties: &Ties,
    progress: &dyn Progress,
    sink: &mut Sink,
) -> Result<(), RepoError> {
    let least = match &ties.least {
        Some(least) => least.clone(),
        None => {
            let pairs = (0..job.parents.len()).map(|p| pair(inputs, job, p));
            let keep = |t: &Term| kept(ties.density, t.elements() as u64);
            pairs.map(|p| kth(&[p], keep(&p[1]), progress)).collect::<Result<_, _>>()?
        }
    };
    each(inputs, job, progress, sink, &Merge::Ties(ties, &least))
}

/// Computes one tensor.
pub fn dare(
    inputs: &[Input],
    job: &Job,
    dare: &Dare,
    progress: &dyn Progress,
    sink: &mut Sink,
) -> Result<(), RepoError> {
    let name = &inputs[0].side.tensors[job.parents[0]].name;
    let key = |p: usize| {
        let id = Id::of(&[&dare.seed.to_le_bytes(), &(p as u64).to_le_bytes(), name.as_bytes()].concat());
        u64::from_le_bytes(std::array::from_fn(|i| id.0[i]))
    };
    let keys: Vec<u64> = (0..job.parents.len()).map(key).collect();
    each(inputs, job, progress, sink, &Merge::Dare(dare, &keys))
}

enum Merge<'a> {
    Ties(&'a Ties, &'a [f64]),
    Dare(&'a Dare, &'a [u64]),
}

fn each(inputs: &[Input], job: &Job, progress: &dyn Progress, sink: &mut Sink, merge: &Merge) -> Result<(), RepoError> {
    let terms = terms(inputs, job);
    let tensor = terms[1].tensor;
    stream(&terms, progress, sink, |first, bytes, out| {
        let finite = match terms[0].is_wide() {
            true => task::<f64>(&terms, first, bytes, out, merge),
            false => task::<f32>(&terms, first, bytes, out, merge),
        };
        if finite { Ok(()) } else { Err(not_finite(tensor)) }
    })
}

/// Some values of a tensor; false where one is not finite. `terms`: the base first.
fn task<R: Real>(terms: &[Term], first: usize, bytes: &[Vec<u8>], out: &mut [u8], merge: &Merge) -> bool {
    let elem = terms[0].elem;
    let n = out.len() / elem.width();
    let mut values = vec![vec![R::default(); n]; terms.len()];
    for ((t, bytes), values) in terms.iter().zip(bytes).zip(&mut values) {
        load(t.elem, bytes, values);
    }
    let Some((base, parents)) = values.split_first_mut() else { return false };
    for p in parents.iter_mut() {
        p.iter_mut().zip(&*base).for_each(|(p, b)| *p = *p - *b);
        if !p.iter().all(|d| d.to_f64().is_finite()) {
            return false;
        }
    }
    match merge {
        Merge::Ties(ties, least) => add_ties(base, parents, ties, least),
        Merge::Dare(dare, keys) => add_dare(base, parents, dare, keys, first),
    }
    store(elem, base, out);
    true
}

fn add_ties<R: Real>(base: &mut [R], deltas: &mut [Vec<R>], ties: &Ties, least: &[f64]) {
    let zero = R::default();
    let magnitude = |v: R| if v < zero { zero - v } else { v };
    let weights: Vec<R> = ties.weights.iter().map(|w| R::from_f64(*w)).collect();
    let least: Vec<R> = least.iter().map(|l| R::from_f64(*l)).collect();
    let lambda = R::from_f64(ties.lambda);
    for (i, b) in base.iter_mut().enumerate() {
        let mut sum = zero;
        for ((d, w), least) in deltas.iter_mut().zip(&weights).zip(&least) {
            d[i] = if magnitude(d[i]) < *least { zero } else { *w * d[i] };
            sum = sum + d[i];
        }
        let (mut mass, mut weight) = (zero, zero);
        for (d, w) in deltas.iter().zip(&weights) {
            if if sum >= zero { d[i] > zero } else { d[i] < zero } {
                (mass, weight) = (mass + d[i], weight + *w);
            }
        }
        if weight == zero {
            weight = R::from_f64(1.0);
        }
        *b = *b + lambda * (mass / weight);
    }
}

fn add_dare<R: Real>(base: &mut [R], deltas: &[Vec<R>], dare: &Dare, keys: &[u64], first: usize) {
    let density = R::from_f64(dare.density);
    let weights: Vec<R> = dare.weights.iter().map(|w| R::from_f64(*w)).collect();
    for (i, b) in base.iter_mut().enumerate() {
        let mut sum = R::default();
        for ((d, w), key) in deltas.iter().zip(&weights).zip(keys) {
            if chance(*key, (first + i) as u64) < dare.density {
                sum = sum + *w * (d[i] / density);
            }
        }
        *b = *b + sum;
    }
}

/// The number from 0 to 1 of value `j`: splitmix64.
fn chance(key: u64, j: u64) -> f64 {
    let mut z = key.wrapping_add(j.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ z >> 31) >> 11) as f64 / (1u64 << 53) as f64
}
