//! int8 weights as the rounded quotient of a base's values and a scale for each run of elements (a row, or all).
//!
//! Idea: `q = clamp(round(w / s), -limit, limit)` confines `s` to an interval for each element; whatever lies in the
//! intersection over a row gives the same integers back, so the scale need not be known, and the number with the
//! fewest mantissa bits in it is stored. A row without such a scale takes the nearest, and the residual tells.
//!
//! Layout: varint elements of a run; varint runs; u8 limit (127 or 128); four planes (plane.rs) of the f32 scales.

use super::Sample;
use super::number::{is_number, load};
use crate::codec::plane::{self, get_varint, put_varint, take};
use crate::codec::{BLOCK, Damage, Spec};
use crate::model::dtype::Elem;

pub(super) const ELEM: Elem = Elem::Int { width: 1 };
/// Most runs, hence most memory.
const MAX_RUNS: usize = 1 << 18;

#[derive(Clone, PartialEq, Debug)]
pub struct Quantized {
    run: usize,
    limit: u8,
    scales: Vec<f32>,
}

impl Quantized {
    pub(super) fn memory(&self) -> u64 {
        64 + 4 * self.scales.len() as u64
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        put_varint(self.run, out);
        put_varint(self.scales.len(), out);
        out.push(self.limit);
        for byte in 0..4 {
            let bytes: Vec<u8> = self.scales.iter().map(|s| s.to_le_bytes()[byte]).collect();
            plane::put(&bytes, 19, out);
        }
    }

    pub(super) fn read(input: &mut &[u8]) -> Result<Quantized, Damage> {
        let (run, runs) = (get_varint(input)?, get_varint(input)?);
        let limit = take(input, 1)?[0];
        if run == 0 || runs == 0 || runs > MAX_RUNS {
            return Err(Damage("a formula's scales"));
        }
        let mut bytes = vec![0; 4 * runs];
        for plane in bytes.chunks_exact_mut(runs) {
            plane::get(input, plane)?;
        }
        let scales =
            (0..runs).map(|i| f32::from_le_bytes(std::array::from_fn(|byte| bytes[byte * runs + i]))).collect();
        Ok(Quantized { run, limit, scales })
    }

    pub(super) fn predict(&self, first: usize, base: (Elem, &[u8]), out: &mut [u8]) -> Result<(), Damage> {
        let mut values = vec![0.0; out.len()];
        load(base.0, base.1, &mut values);
        let limit = self.limit as f32;
        let mut at = 0;
        while at < out.len() {
            let run = first.saturating_add(at) / self.run;
            let to = (run + 1).saturating_mul(self.run).saturating_sub(first).min(out.len());
            let scale = *self.scales.get(run).ok_or(Damage("a formula's scales"))?;
            for (o, v) in out[at..to].iter_mut().zip(&values[at..to]) {
                *o = (v / scale).round_ties_even().clamp(-limit, limit.min(127.0)) as i8 as u8;
            }
            at = to;
        }
        Ok(())
    }
}

/// What the elements seen so far say of each run's scale.
pub struct QuantizedFit {
    run: usize,
    ranges: Vec<(f64, f64)>,
    lowest: i8,
    seen: usize,
    wrong: usize,
}

impl QuantizedFit {
    /// For a tensor of so many elements. `None` where it can't be.
    pub fn new(spec: Spec, base: Elem, elements: u64) -> Option<QuantizedFit> {
        let run = if spec.row_bytes > 0 { spec.row_bytes } else { elements as usize };
        let runs = (elements as usize).div_ceil(run.max(1));
        let can = spec.elem == ELEM && is_number(base) && run > 0 && (1..=MAX_RUNS).contains(&runs);
        can.then(|| QuantizedFit { run, ranges: vec![(0.0, f64::MAX); runs], lowest: 0, seen: 0, wrong: 0 })
    }

    /// Takes a block and its base in.
    pub fn see(&mut self, base: Elem, sample: &Sample) {
        let mut values = vec![0.0f64; sample.raw.len()];
        sample.bases.iter().for_each(|b| load(base, b, &mut values));
        let first = (sample.block as usize).saturating_mul(BLOCK);
        for (i, (&q, v)) in sample.raw.iter().zip(values).enumerate() {
            let Some(range) = self.ranges.get_mut((first + i) / self.run) else { return };
            let q = q as i8;
            self.lowest = self.lowest.min(q);
            let (size, v_size) = ((q as f64).abs(), v.abs());
            self.seen += 1;
            if q != 0 && (q > 0) != (v > 0.0) {
                self.wrong += 1;
                continue;
            }
            if size < 127.0 {
                range.0 = range.0.max(v_size / (size + 0.5));
            }
            if size > 0.0 {
                range.1 = range.1.min(v_size / (size - 0.5));
            }
        }
    }

    /// The formula, if most runs have a scale.
    pub fn finish(&self) -> Option<Quantized> {
        let touched = self.ranges.iter().filter(|r| r.1 < f64::MAX).count();
        let good = self.ranges.iter().filter(|r| r.1 < f64::MAX && r.0 <= r.1 * (1.0 + 1e-6)).count();
        if touched == 0 || good * 10 < touched * 9 || self.wrong * 50 > self.seen {
            return None;
        }
        let limit = if self.lowest == i8::MIN { 128 } else { 127 };
        Some(Quantized { run: self.run, limit, scales: self.ranges.iter().map(|r| shortest(*r)).collect() })
    }
}

/// The f32 with the fewest mantissa bits strictly inside, or the middle.
fn shortest((low, high): (f64, f64)) -> f32 {
    if high == f64::MAX {
        return if low > 0.0 { (low * 2.0) as f32 } else { 1.0 };
    }
    let middle = ((low + high) / 2.0) as f32;
    let margin = 1e-7 * high;
    let inside = |v: f32| v as f64 > low + margin && (v as f64) < high - margin;
    (0..=23)
        .rev()
        .map(|cut| f32::from_bits((middle.to_bits() + (1 << cut >> 1)) >> cut << cut))
        .find(|v| inside(*v))
        .unwrap_or(middle)
}
