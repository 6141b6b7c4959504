//! Model kinship (arXiv 2410.12613): how alike two models have moved away from a common base.
//!
//! Of the deltas a - c and b - c over all float tensors that the three share (paired as [`super::diff`] pairs, of one
//! shape): cosine, Pearson's correlation and Euclidean distance. Streamed block by block, tensors on all cores, summed in
//! the base's order. What has the base's id is not read. Which version is the base is the caller's to say.

use rayon::prelude::*;
use serde::Serialize;

use super::RepoError;
use super::diff::moments::Moments;
use super::diff::pair;
use super::diff::side::{Side, Tensor};
use super::progress::Progress;
use crate::model::id::BLOCK;
use crate::model::number::Number;

/// How two deltas lie to each other; `null` where that is not defined (one of them is zero).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Kinship {
    pub cosine: Option<f64>,
    pub pearson: Option<f64>,
    /// ‖a - b‖, in the weights' own unit.
    pub euclidean: Option<f64>,
    /// Tensors that all three share, and the elements in them.
    pub tensors: u64,
    pub elements: u64,
}

/// Elements of one task.
const TASK: u64 = 1 << 19;

/// A tensor of the base and what became of it; a child that has the base's bytes is `None`.
struct Shared<'t> {
    base: &'t Tensor,
    a: Option<&'t Tensor>,
    b: Option<&'t Tensor>,
    elements: u64,
}

/// The kinship of `a` and `b`, which both come from `base`.
pub fn kinship(base: &Side, a: &Side, b: &Side, progress: &dyn Progress) -> Result<Kinship, RepoError> {
    let shared = shared(base, a, b)?;
    let read = |s: &&Shared| s.a.is_some() || s.b.is_some();
    progress.expect(shared.iter().filter(read).map(Shared::bytes).sum());
    let tasks_of = |s| tasks(s).map(move |(from, n)| (s, from, n));
    let tasks: Vec<(&Shared, u64, u64)> = shared.iter().flat_map(tasks_of).collect();
    let parts: Vec<Moments> =
        tasks.par_iter().map(|&(s, from, n)| part((base, a, b), s, from, n, progress)).collect::<Result<_, _>>()?;
    let mut sum = Moments::default();
    parts.iter().for_each(|p| sum.merge(p));
    Ok(Kinship {
        cosine: sum.cosine(),
        pearson: sum.pearson(),
        euclidean: sum.euclidean(),
        tensors: shared.len() as u64,
        elements: shared.iter().map(|s| s.elements).sum(),
    })
}

fn shared<'t>(base: &'t Side, a: &'t Side, b: &'t Side) -> Result<Vec<Shared<'t>>, RepoError> {
    let (to_a, to_b) = (partners(base, a)?, partners(base, b)?);
    let shared = |(i, c): (usize, &'t Tensor)| {
        let (a, b) = (to_a[i]?, to_b[i]?);
        let differs = |t: &'t Tensor| (t.id != c.id).then_some(t);
        Some(Shared { base: c, a: differs(a), b: differs(b), elements: c.numbers()? })
    };
    let shared: Vec<_> = base.tensors.iter().enumerate().filter_map(shared).collect();
    match shared.is_empty() {
        false => Ok(shared),
        true => Err(RepoError::refused("no float tensor is in the base and in both models: another --base?")),
    }
}

/// For each tensor of the base its partner, where both are floats of one shape.
fn partners<'t>(base: &Side, child: &'t Side) -> Result<Vec<Option<&'t Tensor>>, RepoError> {
    let mut out = vec![None; base.tensors.len()];
    let floats = |t: &Tensor| Number::of(&t.dtype).is_some_and(Number::is_float);
    for (c, x) in pair(base, child)?.pairs {
        let (from, to) = (&base.tensors[c], &child.tensors[x]);
        let alike = from.shape == to.shape && from.numbers() == to.numbers() && floats(from) && floats(to);
        out[c] = alike.then_some(to);
    }
    Ok(out)
}

impl Shared<'_> {
    fn bytes(&self) -> u64 {
        self.base.length + self.a.map_or(0, |t| t.length) + self.b.map_or(0, |t| t.length)
    }
}

fn tasks(s: &Shared) -> impl Iterator<Item = (u64, u64)> {
    let n = s.elements;
    (0..n.div_ceil(TASK)).map(move |i| (i * TASK, TASK.min(n - i * TASK)))
}

/// The sums over `n` elements from `from` on.
fn part(
    (base, a, b): (&Side, &Side, &Side),
    s: &Shared,
    from: u64,
    n: u64,
    progress: &dyn Progress,
) -> Result<Moments, RepoError> {
    let mut sum = Moments::default();
    if s.a.is_none() && s.b.is_none() {
        sum.add_zeros(n);
        return Ok(sum);
    }
    let (mut c, mut bytes) = (vec![], vec![]);
    let (mut da, mut db) = (vec![], vec![]);
    let width = [Some(s.base), s.a, s.b].into_iter().flatten().filter_map(number).map(Number::width).min();
    let step = BLOCK / width.unwrap_or(1) as u64;
    let mut at = from;
    while at < from + n {
        progress.check()?;
        let count = step.min(from + n - at);
        let mut counted = read(base, s.base, at, count, &mut bytes, &mut c)?;
        for (side, tensor, delta) in [(a, s.a, &mut da), (b, s.b, &mut db)] {
            match tensor {
                Some(t) => {
                    counted += read(side, t, at, count, &mut bytes, delta)?;
                    delta.iter_mut().zip(&c).for_each(|(v, c)| *v -= c);
                }
                // What is not finite stays so: it takes no part on the other side either.
                None => {
                    delta.clear();
                    delta.extend(c.iter().map(|c| c * 0.0)); // 0, or NaN
                }
            }
        }
        sum.add(&da, &db);
        progress.stored(counted);
        at += count;
    }
    Ok(sum)
}

fn number(t: &Tensor) -> Option<Number> {
    Number::of(&t.dtype)
}

/// Reads `count` numbers of a tensor from number `at` on; returns the bytes that were read.
fn read(
    side: &Side,
    t: &Tensor,
    at: u64,
    count: u64,
    bytes: &mut Vec<u8>,
    out: &mut Vec<f64>,
) -> Result<u64, RepoError> {
    let number = number(t).unwrap_or(Number::U8);
    let width = number.width() as u64;
    bytes.resize((count * width) as usize, 0);
    side.read_tensor(t, at * width, bytes)?;
    number.read(bytes, out);
    Ok(count * width)
}
