//! How much paired tensors differ as numbers, streamed: 64 KiB of each side at a time, on all cores.
//!
//! Memory is bounded by a few blocks for each core, whatever the tensors' sizes. Sums are put together in the order of the
//! tensors' bytes, so that a figure does not depend on the machine's cores.

use rayon::prelude::*;
use serde::Serialize;

use super::super::RepoError;
use super::super::progress::Progress;
use super::moments::Moments;
use super::side::{Side, Tensor};
use crate::model::id::BLOCK;
use crate::model::number::Number;

/// How a tensor changed. `null` where a figure is not defined: the angle to a tensor of zeros, sums that overflow, dtypes
/// that are no numbers. Elements that are NaN or infinite on either side count in `changed_fraction` only.
#[derive(Clone, Copy, Debug, Serialize, PartialEq)]
pub struct Metrics {
    /// Largest |b - a|.
    pub max_abs: Option<f64>,
    /// ‖b - a‖ / ‖a‖.
    pub rel_l2: Option<f64>,
    pub cosine: Option<f64>,
    /// Share of the elements that are not the same: other bits, or after a cast another number.
    pub changed_fraction: f64,
    /// Share of zeros, before and after.
    pub sparsity_a: Option<f64>,
    pub sparsity_b: Option<f64>,
}

impl Metrics {
    /// Of two tensors of dtypes that have nothing in common.
    pub const UNKNOWN: Metrics = Metrics {
        max_abs: None,
        rel_l2: None,
        cosine: None,
        changed_fraction: 1.0,
        sparsity_a: None,
        sparsity_b: None,
    };
}

/// Two tensors to compare, and how many of their first numbers.
#[derive(Clone, Copy)]
pub struct Compared<'t> {
    a: &'t Tensor,
    b: &'t Tensor,
    numbers: Option<(Number, Number)>,
    count: u64,
}

/// Units that one task takes, in steps.
const STEPS: u64 = 16;

/// What was found of a stretch.
#[derive(Clone, Copy, Default)]
struct Part {
    moments: Moments,
    changed: u64,
}

impl<'t> Compared<'t> {
    /// As numbers where both dtypes are; as bytes where both are of the same unknown dtype; else `None`. Of another shape,
    /// only where the first dimension alone differs (a resized embedding), and of the rows that both have.
    pub fn new(a: &'t Tensor, b: &'t Tensor) -> Option<Compared<'t>> {
        let rows_only = !a.shape.is_empty() && !b.shape.is_empty() && a.shape[1..] == b.shape[1..];
        if a.shape != b.shape && !rows_only {
            return None;
        }
        let numbers = Number::of(&a.dtype).zip(Number::of(&b.dtype));
        // A complex element is two numbers, and none of a real one.
        let complex = |t: &Tensor| t.dtype.starts_with('C');
        match numbers {
            Some((x, y)) if complex(a) == complex(b) => {
                let count = (a.length / x.width() as u64).min(b.length / y.width() as u64);
                Some(Compared { a, b, numbers, count })
            }
            _ if a.dtype == b.dtype => Some(Compared { a, b, numbers: None, count: a.length.min(b.length) }),
            _ => None,
        }
    }

    fn widths(&self) -> (usize, usize) {
        self.numbers.map_or((1, 1), |(x, y)| (x.width(), y.width()))
    }

    /// Bytes of both sides that will be read.
    pub fn bytes(&self) -> u64 {
        let (x, y) = self.widths();
        self.count * (x + y) as u64
    }

    fn step(&self) -> u64 {
        let (x, y) = self.widths();
        BLOCK / x.min(y) as u64
    }

    /// Compares `count` elements from `from` on.
    fn part(&self, sides: (&Side, &Side), from: u64, count: u64, progress: &dyn Progress) -> Result<Part, RepoError> {
        let (width_a, width_b) = self.widths();
        let (mut bytes_a, mut bytes_b, mut x, mut y) = (vec![], vec![], vec![], vec![]);
        let mut part = Part::default();
        let mut at = from;
        while at < from + count {
            progress.check()?;
            let n = self.step().min(from + count - at);
            bytes_a.resize(n as usize * width_a, 0);
            bytes_b.resize(n as usize * width_b, 0);
            sides.0.read_tensor(self.a, at * width_a as u64, &mut bytes_a)?;
            sides.1.read_tensor(self.b, at * width_b as u64, &mut bytes_b)?;
            if let Some((number_a, number_b)) = self.numbers {
                number_a.read(&bytes_a, &mut x);
                number_b.read(&bytes_b, &mut y);
                part.moments.add(&x, &y);
            }
            part.changed += match self.a.dtype == self.b.dtype {
                true => bytes_a.chunks(width_a).zip(bytes_b.chunks(width_b)).filter(|(a, b)| a != b).count(),
                false => x.iter().zip(&y).filter(|(x, y)| x != y && !(x.is_nan() && y.is_nan())).count(),
            } as u64;
            progress.stored((bytes_a.len() + bytes_b.len()) as u64);
            at += n;
        }
        Ok(part)
    }

    fn metrics(&self, part: &Part) -> Metrics {
        let share = |n: u64| n as f64 / self.count.max(1) as f64;
        let numbers = self.numbers.map(|_| part.moments);
        Metrics {
            max_abs: numbers.and_then(|m| m.max_abs()),
            rel_l2: numbers.and_then(|m| m.rel_l2()),
            cosine: numbers.and_then(|m| m.cosine()),
            changed_fraction: share(part.changed),
            sparsity_a: numbers.map(|m| share(m.zeros_x)),
            sparsity_b: numbers.map(|m| share(m.zeros_y)),
        }
    }
}

/// The metrics of each pair, in order.
pub fn measure(sides: (&Side, &Side), pairs: &[Compared], progress: &dyn Progress) -> Result<Vec<Metrics>, RepoError> {
    let jobs_of = |(i, p): (usize, &Compared)| {
        let (count, size) = (p.count, p.step() * STEPS);
        (0..count.div_ceil(size)).map(move |k| (i, k * size, size.min(count - k * size))).collect::<Vec<_>>()
    };
    let jobs: Vec<(usize, u64, u64)> = pairs.iter().enumerate().flat_map(jobs_of).collect();
    let parts: Vec<Part> = jobs
        .par_iter()
        .map(|&(i, from, count)| pairs[i].part(sides, from, count, progress))
        .collect::<Result<_, _>>()?;
    let mut sums = vec![Part::default(); pairs.len()];
    for (&(i, ..), part) in jobs.iter().zip(&parts) {
        sums[i].moments.merge(&part.moments);
        sums[i].changed += part.changed;
    }
    Ok(pairs.iter().zip(&sums).map(|(p, s)| p.metrics(s)).collect())
}

/// How far the beginnings of two tensors of one shape and dtype are apart, relative to the first; of what is no float, the
/// share of elements that differ.
pub fn nearness(sides: (&Side, &Side), a: &Tensor, b: &Tensor) -> Result<Option<f64>, RepoError> {
    let Some(compared) = Compared::new(a, b) else { return Ok(None) };
    let count = compared.count.min(compared.step());
    let part = compared.part(sides, 0, count, &super::super::progress::Silent)?;
    Ok(match compared.numbers {
        Some((x, _)) if x.is_float() => part.moments.rel_l2(),
        _ => Some(part.changed as f64 / count.max(1) as f64),
    })
}
