//! Is a child its base plus a matrix of low rank, and which?
//!
//! A square of the difference at sampled rows and columns tells first: if few rows, projected out, leave little, all of it
//! has a low rank. Then three passes over the tensor, block by block (Halko, Martinsson, Tropp 2011, with one power
//! step): Y = D S for random signs S; V = Q^T D for an orthonormal Q of Y, cut to the rank that pays; U = D V^T.
//! Memory is a few times rank times (rows + columns).

use super::linear::{add, dot, eigen, orthonormal, tails};
use super::low_rank::{LowRank, MAX_NUMBERS};
use super::number::{is_number, load};
use super::{Formula, Sample, Spec};
use crate::codec::BLOCK;
use crate::model::dtype::Elem;

/// Gives each block of the tensor and its base to its argument, in any order; run once for each pass.
pub type Pass<'a, E> = dyn FnMut(&mut dyn FnMut(&Sample)) -> Result<(), E> + 'a;

/// Sides of the sampled square.
const LEAST: usize = 32;
const MOST: usize = 160;

/// `base`: the base's type. `rows`: of the whole tensor.
pub fn fit_low_rank<E>(
    spec: Spec,
    base: Elem,
    rows: usize,
    samples: &[Sample],
    each: &mut Pass<E>,
) -> Result<Option<Formula>, E> {
    let columns = spec.row_bytes / spec.elem.width();
    if rows.min(columns) < 2 * LEAST || !is_number(spec.elem) || !is_number(base) {
        return Ok(None);
    }
    let d = Difference { spec, base, rows, columns };
    let Some(rank) = d.likely_rank(samples) else { return Ok(None) };
    d.factor(rank + 8, each)
}

struct Difference {
    spec: Spec,
    base: Elem,
    rows: usize,
    columns: usize,
}

/// Bits of a value that is normal with this deviation, in units of its rounding.
fn bits(deviation: f64) -> f64 {
    0.5 * (1.0 / 12.0 + deviation * deviation).log2() + 2.05
}

impl Difference {
    /// Each run of a row in the sample: row, first column, child less base.
    fn runs(&self, sample: &Sample, mut each: impl FnMut(usize, usize, &[f64], &[f64])) {
        let n = sample.raw.len() / self.spec.elem.width();
        let Some(bytes) = sample.bases.first() else { return };
        let (mut child, mut base) = (vec![0.0f64; n], vec![0.0f64; n]);
        load(self.spec.elem, sample.raw, &mut child);
        load(self.base, bytes, &mut base);
        let difference: Vec<f64> =
            child.iter().zip(&base).map(|(c, b)| if (c - b).is_finite() { c - b } else { 0.0 }).collect();
        let first = sample.block as usize * (BLOCK / self.spec.elem.width());
        let mut at = 0;
        while at < n {
            let (row, column) = ((first + at) / self.columns, (first + at) % self.columns);
            let to = (at + self.columns - column).min(n);
            if row < self.rows {
                each(row, column, &difference[at..to], &child[at..to]);
            }
            at = to;
        }
    }

    /// log2 of a value's last place.
    fn place(&self, v: f64) -> f64 {
        let Elem::Float { mantissa, .. } = self.spec.elem else { return 0.0 };
        (v.abs().max(1e-30).to_bits() >> 52) as f64 - 1023.0 - mantissa as f64
    }

    fn likely_rank(&self, samples: &[Sample]) -> Option<usize> {
        let side = (self.rows.min(self.columns) / 4).clamp(LEAST, MOST);
        let mut whole: Vec<(Vec<f64>, f64)> = Vec::new();
        let pick = |v: &[f64]| -> Vec<f64> { (0..side).map(|i| v[i * v.len() / side]).collect() };
        for s in samples {
            self.runs(s, |_, column, d, child| {
                if column == 0 && d.len() == self.columns {
                    let place = pick(child).iter().map(|&c| self.place(c)).sum::<f64>() / side as f64;
                    whole.push((pick(d), place));
                }
            });
        }
        if whole.len() < side.min(LEAST) {
            return None;
        }
        let side = side.min(whole.len());
        let rows: Vec<Vec<f64>> = (0..side).map(|i| whole[i * whole.len() / side].0.clone()).collect();
        let place = (whole.iter().map(|w| w.1).sum::<f64>() / whole.len() as f64).exp2();
        let width = rows[0].len();
        let tails = tails(rows, side / 2);
        let deviation = |k: usize| (tails[k] / ((side - k) * (width - k)) as f64).sqrt() / place;
        let (plain, area) = (bits(deviation(0)), (self.rows * self.columns) as f64);
        let gain = |k: usize| {
            let factors = (k * (self.rows + self.columns)) as f64 / area * (plain + 2.0).max(2.0);
            plain - bits(deviation(k)) - factors
        };
        let best = (1..tails.len()).max_by(|&a, &b| gain(a).total_cmp(&gain(b)))?;
        (gain(best) > (0.15 * plain).max(0.25)).then_some(best)
    }

    fn factor<E>(&self, sketch: usize, each: &mut Pass<E>) -> Result<Option<Formula>, E> {
        let sketch = sketch.min(self.rows.min(self.columns));
        if sketch * (self.rows + self.columns) > MAX_NUMBERS {
            return Ok(None);
        }
        let mut y = vec![vec![0.0; self.rows]; sketch];
        let signs: Vec<Vec<f64>> = (0..sketch).map(|k| (0..self.columns).map(|j| sign(k, j)).collect()).collect();
        let (mut total, mut places, mut count) = (0.0, 0.0, 0.0);
        each(&mut |s| {
            self.runs(s, |row, column, d, child| {
                y.iter_mut().zip(&signs).for_each(|(y, s)| y[row] += dot(d, &s[column..]));
                total += dot(d, d);
                places += child.iter().map(|&c| self.place(c)).sum::<f64>();
                count += d.len() as f64;
            })
        })?;
        let q = orthonormal(y);
        let mut v = vec![vec![0.0; self.columns]; q.len()];
        each(&mut |s| {
            self.runs(s, |row, column, d, _| {
                v.iter_mut().zip(&q).for_each(|(v, q)| add(&mut v[column..column + d.len()], q[row], d))
            })
        })?;
        let place = (places / count.max(1.0)).exp2();
        let v = self.cut(v, total, place);
        if v.is_empty() {
            return Ok(None);
        }
        let mut u = vec![vec![0.0; self.rows]; v.len()];
        each(&mut |s| {
            self.runs(s, |row, column, d, _| {
                u.iter_mut().zip(&v).for_each(|(u, v)| u[row] += dot(d, &v[column..column + d.len()]))
            })
        })?;
        Ok(self.quantize(&u, &v, place).map(Formula::LowRank))
    }

    /// Orthonormal rows: the strongest directions, as many as pay.
    fn cut(&self, v: Vec<Vec<f64>>, total: f64, place: f64) -> Vec<Vec<f64>> {
        let gram: Vec<Vec<f64>> = v.iter().map(|a| v.iter().map(|b| dot(a, b)).collect()).collect();
        let pairs = eigen(gram);
        let area = (self.rows * self.columns) as f64;
        let (mut left, mut best) = (total, (area * bits((total / area).sqrt() / place), 0));
        let each = (self.rows + self.columns) as f64 * (bits((total / area).sqrt() / place) + 2.0).max(2.0);
        for (k, (value, _)) in pairs.iter().enumerate() {
            left = (left - value).max(0.0);
            let cost = area * bits((left / area).sqrt() / place) + each * (k + 1) as f64;
            if cost < best.0 {
                best = (cost, k + 1);
            }
        }
        let row = |w: &Vec<f64>| {
            let mut out = vec![0.0; self.columns];
            w.iter().zip(&v).for_each(|(f, v)| add(&mut out, *f, v));
            out
        };
        orthonormal(pairs[..best.1].iter().map(|(_, w)| row(w)).collect())
    }

    /// Steps whose errors are lost in half a last place.
    fn quantize(&self, u: &[Vec<f64>], v: &[Vec<f64>], place: f64) -> Option<LowRank> {
        let rank = u.len() as f64;
        let share = 0.5 * place / rank.sqrt();
        let log2 = |x: f64| x.log2().floor().clamp(-120.0, 120.0) as i8;
        let u_step = log2(share * (self.columns as f64).sqrt());
        let v_steps: Vec<i8> =
            u.iter().map(|u| log2(share * (self.rows as f64 / dot(u, u).max(1e-60)).sqrt())).collect();
        let mut integers = Vec::new();
        let mut put = |values: &[f64], step: i8| {
            let scale = (-step as f64).exp2();
            integers.extend(values.iter().map(|x| (x * scale).round().clamp(-16_000_000.0, 16_000_000.0) as i32));
        };
        u.iter().for_each(|u| put(u, u_step));
        v.iter().zip(&v_steps).for_each(|(v, &step)| put(v, step));
        Some(LowRank::new(self.rows, self.columns, u_step, v_steps, integers))
    }
}

/// A random sign, the same at each run.
fn sign(k: usize, j: usize) -> f64 {
    let x = ((k as u64) << 32 | j as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ x >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    if x >> 37 & 1 == 0 { 1.0 } else { -1.0 }
}
