//! Pure bytes -> bytes: lossless compression of a tensor's blocks, alone or from the same range of base tensors. What a
//! lossy import moves onto a grid first ([`quantize`]) is coded losslessly like any other tensor.
//!
//! A tensor is cut into blocks of [`BLOCK`] bytes (the last is shorter), each coded alone, so that a read decodes
//! only what it touches. What all blocks of a tensor share is a [`Plan`], whose `params` go into the tensor's record.
//! Each encoding has a stable tag; the encoder tries what cheap statistics suggest and keeps the smallest, never
//! more than the block itself. The decoder trusts nothing: whatever the bytes, it fills `out` or says [`Damage`].
//!
//! Parameters: u8 0x80, varint length and a formula (formula/), where there is one; then none (the prior tables), or
//! u8 flags, then tables (tables.rs) where flag 1 is set, then a staircase (stairs.rs) where flag 2 is, then an f64, the
//! step of a grid (stepped.rs), where flag 4 is; the tables are then those of its words.
//!
//! Where a child is a formula of its bases (formula/: a mix, a cast, a merged adapter, …), what the formula predicts
//! stands in for the base.
//!
//! | tag | name     | file       | needs bases |
//! |-----|----------|------------|-------------|
//! | 0   | RAW      | simple.rs  | no  |
//! | 1   | CONSTANT | simple.rs  | no  |
//! | 2   | SAME     | simple.rs  | yes |
//! | 3   | ZSTD     | simple.rs  | no  |
//! | 4   | PLANES   | solo.rs    | no  |
//! | 5   | GROUPED  | grouped.rs | yes |
//! | 6   | RESIDUAL | residual/  | yes |
//! | 7   | MAGNITUDES | magnitude.rs | no |
//! | 8   | MASKED   | mask.rs    | yes |
//! | 9   | PRIOR    | prior.rs   | yes |
//! | 10  | CHOSEN   | chosen.rs  | yes |
//! | 11  | STEPPED  | stepped.rs | where it says so |

mod ans;
mod bits;
mod chosen;
mod coin;
mod context;
mod cut;
mod distance;
mod formula;
mod grouped;
mod magnitude;
mod mask;
mod plane;
mod prior;
mod residual;
mod sample;
mod simple;
mod solo;
mod stairs;
mod stepped;
mod tables;
mod word;

#[cfg(test)]
mod tests;

use crate::model::dtype::Elem;
use ans::Tables;
pub use distance::distance;
pub use formula::{
    Formula, MAX_FORMULA, QuantizedFit, Real, Sample, fit_coefficients, fit_low_rank, fit_mix, load, rounded, store,
};
use stairs::Stairs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
pub use stepped::{Errors, can_step, differences, quantize};

/// Decoded bytes of every block but a tensor's last.
pub const BLOCK: usize = 1 << 16;

pub const RAW: u8 = 0;
pub const CONSTANT: u8 = 1;
pub const SAME: u8 = 2;
pub const ZSTD: u8 = 3;
pub const PLANES: u8 = 4;
pub const GROUPED: u8 = 5;
pub const RESIDUAL: u8 = 6;
pub const MAGNITUDES: u8 = 7;
pub const MASKED: u8 = 8;
pub const PRIOR: u8 = 9;
pub const CHOSEN: u8 = 10;
pub const STEPPED: u8 = 11;

/// A block that keeps so much of its size has hardly been understood.
const ATYPICAL: f64 = 0.9;

/// See [`portable_only`].
static PORTABLE_ONLY: AtomicBool = AtomicBool::new(false);

/// Keeps this process from using vector instructions, or no longer: for benchmarks. The bytes are the same.
#[doc(hidden)]
pub fn portable_only(on: bool) {
    PORTABLE_ONLY.store(on, Ordering::Relaxed);
}

/// A tensor of fewer bytes cannot pay for tables of its own.
const TINY: usize = 128;

/// How long to look for a smaller encoding. Decoding speed hardly depends on it, correctness never.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Effort {
    Fast,
    #[default]
    Default,
    Max,
}

impl Effort {
    fn level(self) -> i32 {
        match self {
            Effort::Fast => 1,
            Effort::Default => 3,
            Effort::Max => 9,
        }
    }
}

/// What the codec knows of a tensor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spec {
    pub elem: Elem,
    /// Bytes of the last dimension's run; 0 when scalar or unknown.
    pub row_bytes: usize,
}

/// Encoded bytes that cannot be decoded.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Damage(pub &'static str);

/// What all blocks of a tensor share.
#[derive(Clone, Debug)]
pub struct Plan {
    spec: Spec,
    effort: Effort,
    tables: Arc<Tables>,
    stairs: Option<Stairs>,
    /// The blocks lie on the grid of this step around their bases.
    step: Option<f64>,
    params: Vec<u8>,
    /// A block that stays larger than this is not what the plan was learned from.
    typical: f64,
}

/// True when decoding a block with this tag needs its bases.
pub fn needs_bases(tag: u8) -> bool {
    matches!(tag, SAME | GROUPED | RESIDUAL | MASKED | PRIOR | CHOSEN | STEPPED)
}

/// Starts the parameters of a tensor with a formula.
const FORMULA: u8 = 0x80;

/// What is stored for a tensor: its formula, if it has one, then its plan, unless no block with these tags needs it.
pub fn join_params(formula: Option<&Formula>, plan: &Plan, mut tags: impl Iterator<Item = u8>) -> Vec<u8> {
    let mut out = Vec::new();
    if let Some(formula) = formula {
        let bytes = formula.write();
        out.push(FORMULA);
        plane::put_varint(bytes.len(), &mut out);
        out.extend_from_slice(&bytes);
    }
    if tags.any(|tag| matches!(tag, RESIDUAL | MAGNITUDES | MASKED | STEPPED)) {
        out.extend_from_slice(&plan.params());
    }
    out
}

/// The inverse of [`join_params`].
pub fn split_params(spec: Spec, params: &[u8]) -> Result<(Option<Formula>, Plan), Damage> {
    let mut input = params;
    if input.first() != Some(&FORMULA) {
        return Ok((None, Plan::from_params(spec, input)?));
    }
    plane::take(&mut input, 1)?;
    let length = plane::get_varint(&mut input)?;
    let formula = Formula::read(plane::take(&mut input, length)?)?;
    Ok((Some(formula), Plan::from_params(spec, input)?))
}

impl Plan {
    /// `samples`: some blocks of the tensor, each with the same range of each base (same order of bases, same
    /// length as the block). No bases: solo. Sixteen, spread over the tensor, are enough.
    pub fn choose(spec: Spec, effort: Effort, samples: &[(&[u8], Vec<&[u8]>)]) -> Plan {
        let mut plan = Plan::prior(spec, effort);
        let bytes: usize = samples.iter().map(|s| s.0.len()).sum();
        if residual::applies(spec) && bytes >= TINY {
            plan.learn(samples);
            plan.typical = plan.survey(samples);
        }
        plan
    }

    /// As [`choose`](Self::choose), for a tensor whose values were moved onto the grid of `step` around what is first among
    /// their bases ([`quantize`]).
    pub fn on_grid(spec: Spec, effort: Effort, step: f64, samples: &[(&[u8], Vec<&[u8]>)]) -> Plan {
        let mut plan = Plan { step: Some(step), ..Plan::prior(spec, effort) };
        let words = |(raw, bases): &(&[u8], Vec<&[u8]>)| stepped::split(spec, step, raw, bases.first().copied()).0;
        let words: Vec<Vec<u8>> = samples.iter().map(words).collect();
        let start = |words: &[u8]| stepped::starts(spec, words.len() / stepped::words(spec).elem.width());
        let pairs: Vec<(&[u8], &[u8])> = words.iter().map(|w| (&w[..], start(w))).collect();
        let counts = sample::of_pairs(&plan.grid_model(), &pairs);
        plan.take_tables(&counts);
        plan
    }

    /// The plan that says nothing of the tensor.
    fn prior(spec: Spec, effort: Effort) -> Plan {
        Plan {
            spec,
            effort,
            tables: context::PRIOR_TABLES.clone(),
            stairs: None,
            step: None,
            params: Vec::new(),
            typical: ATYPICAL,
        }
    }

    /// Takes tables learned from the samples if they already pay there, and a staircase if there is one.
    fn learn(&mut self, samples: &[(&[u8], Vec<&[u8]>)]) {
        let every = if self.effort == Effort::Fast { 4 } else { 1 };
        let samples = || samples.iter().step_by(every);
        let pairs: Vec<(&[u8], &[u8])> = samples()
            .filter_map(|(raw, bases)| Some((*raw, self.nearest(raw, bases)?.1)))
            .filter(|(raw, base)| raw != base)
            .collect();
        self.stairs = Stairs::learn(self.spec, &pairs);
        let counts = match pairs.is_empty() {
            true => sample::of_solo(&self.model(), samples().map(|s| s.0)),
            false => sample::of_pairs(&self.model(), &pairs),
        };
        self.take_tables(&counts);
    }

    /// Takes tables for what was counted, if they pay; and writes down all that the plan has.
    fn take_tables(&mut self, counts: &tables::Counts) {
        let escape = 8.0 * self.spec.elem.width() as f64;
        let (learned, levels) = tables::learn(counts);
        let pays = learned.cost(counts, escape) + 8.0 * (levels.len() as f64) < self.tables.cost(counts, escape);
        let flags = pays as u8 | (self.stairs.is_some() as u8) << 1 | (self.step.is_some() as u8) << 2;
        if flags > 0 {
            self.params.push(flags);
        }
        if pays {
            self.tables = Arc::new(learned);
            self.params.extend_from_slice(&levels);
        }
        if let Some(s) = &self.stairs {
            s.write(&mut self.params);
        }
        self.params.extend(self.step.iter().flat_map(|s| s.to_le_bytes()));
    }

    /// The largest share that a few of the samples keep, and a little; ATYPICAL where that says nothing.
    fn survey(&self, samples: &[(&[u8], Vec<&[u8]>)]) -> f64 {
        if samples.len() < 4 || self.params.is_empty() || self.effort == Effort::Fast {
            return ATYPICAL;
        }
        let share = |(raw, bases): &(&[u8], Vec<&[u8]>)| {
            let mut out = Vec::with_capacity(2 * raw.len());
            let mut best = Best::new(raw, &mut out);
            self.offer(0, self.nearest(raw, bases), &mut best);
            best.share()
        };
        let shares = samples.iter().step_by(samples.len().div_ceil(2)).map(share);
        let most = shares.filter(|s| *s < ATYPICAL).fold(0.0, f64::max);
        if most > 0.0 { 1.05 * most + 0.01 } else { ATYPICAL }
    }

    fn model(&self) -> residual::Model<'_> {
        residual::Model { spec: self.spec, tables: &self.tables, stairs: self.stairs.as_ref() }
    }

    /// That of the words of a grid.
    fn grid_model(&self) -> residual::Model<'_> {
        residual::Model { spec: stepped::words(self.spec), tables: &self.tables, stairs: None }
    }

    /// About how many bytes the plan takes in memory once it has decoded a block.
    pub fn memory(&self) -> u64 {
        match self.params.is_empty() {
            true => 0, // The tables that all such plans share.
            false => ans::MEMORY,
        }
    }

    /// Codec-private, stored once for the tensor; at most 64 KiB, empty is fine.
    pub fn params(&self) -> Vec<u8> {
        self.params.clone()
    }

    pub fn from_params(spec: Spec, params: &[u8]) -> Result<Plan, Damage> {
        let mut plan = Plan { params: params.to_vec(), ..Plan::prior(spec, Effort::Default) };
        let mut input = params;
        if !input.is_empty() {
            let flags = plane::take(&mut input, 1)?[0];
            if flags & 1 != 0 {
                plan.tables = Arc::new(tables::read(&mut input)?);
            }
            if flags & 2 != 0 {
                plan.stairs = Some(Stairs::read(spec, &mut input)?);
            }
            if flags & 4 != 0 {
                let step = f64::from_le_bytes(*plane::take(&mut input, 8)?.first_chunk().ok_or(Damage("a step"))?);
                plan.step = Some(step).filter(|s| s.is_finite() && *s > 0.0 && can_step(spec.elem));
                plan.step.ok_or(Damage("a step"))?;
            }
            plane::at_end(input)?;
        }
        Ok(plan)
    }

    /// Appends the encoded block to `out` and returns its tag. Never appends more than `raw` has.
    pub fn encode(&self, block: u64, raw: &[u8], bases: &[&[u8]], out: &mut Vec<u8>) -> u8 {
        let bases = &bases[..bases.len().min(256)];
        let width = self.spec.elem.width();
        if let Some(element) = simple::constant(raw, width) {
            out.extend_from_slice(element);
            return CONSTANT;
        }
        if let Some(index) = bases.iter().position(|b| *b == raw)
            && raw.len() > 1
        {
            out.extend_from_slice(&[index as u8][..(index > 0) as usize]);
            return SAME;
        }
        let start = out.len();
        if bases.len() == 2 && chosen::encode(self.spec, self.effort.level(), raw, bases, out) {
            if out.len() - start < raw.len() {
                return CHOSEN;
            }
            out.truncate(start);
        }
        let mut best = Best::new(raw, out);
        if let Some(step) = self.step.filter(|_| raw.len().is_multiple_of(width)) {
            let base = bases.first().copied().filter(|b| b.len() == raw.len());
            best.offer(STEPPED, |o| stepped::encode(&self.grid_model(), self.spec, step, block, raw, base, o));
            if best.tag == STEPPED {
                return STEPPED;
            }
        }
        let near = self.nearest(raw, bases);
        self.offer(block, near, &mut best);
        let odd = best.share() > self.typical || self.effort == Effort::Max;
        if odd && !self.params.is_empty() {
            // The samples may have been of another kind.
            best.offer(PRIOR, |o| prior::encode(self, block, raw, near, o));
        }
        best.tag
    }

    /// Tries what suits the block.
    fn offer(&self, block: u64, near: Option<(u8, &[u8])>, best: &mut Best) {
        let (raw, level, max) = (best.raw, self.effort.level(), self.effort == Effort::Max);
        if let Some((index, base)) = near {
            let split = mask::split(&self.model(), block, raw, base);
            if let Some(split) = &split {
                best.offer(MASKED, |o| mask::encode(&self.model(), split, raw, index, o));
            }
            if residual::applies(self.spec) && (split.is_none() || max) {
                best.offer(RESIDUAL, |o| residual::encode(&self.model(), block, raw, index, base, o));
            }
            if best.tag == RAW || max {
                best.offer(GROUPED, |o| grouped::encode(self.spec, level, raw, index, base, o));
            }
        }
        // Residuals that halve a block are seldom beaten by what knows no base.
        if best.share() > if self.effort == Effort::Fast { 0.7 } else { 0.5 } {
            self.offer_solo(block, best);
        }
    }

    fn offer_solo(&self, block: u64, best: &mut Best) {
        let (raw, level) = (best.raw, self.effort.level());
        let plain = match self.spec.elem {
            Elem::Float { .. } => self.effort == Effort::Max,
            _ => true,
        };
        if plain {
            best.offer(ZSTD, |o| {
                if !plane::compress(raw, level, o) {
                    o.extend_from_slice(raw)
                }
            });
        }
        if magnitude::applies(self.spec) {
            best.offer(MAGNITUDES, |o| magnitude::encode(self.spec, &self.tables, block, raw, o));
        }
        let planes = best.tag != MAGNITUDES || best.share() < 0.6 && self.effort != Effort::Fast;
        if self.spec.elem != Elem::Bytes && (planes || self.effort == Effort::Max) {
            best.offer(PLANES, |o| solo::encode(self.spec, level, raw, o));
        }
    }

    /// The base with the fewest differing bits.
    fn nearest<'a>(&self, raw: &[u8], bases: &[&'a [u8]]) -> Option<(u8, &'a [u8])> {
        let fit = bases.iter().enumerate().filter(|(_, b)| b.len() == raw.len());
        if bases.len() < 2 {
            return fit.map(|(i, b)| (i as u8, *b)).next();
        }
        fit.map(|(i, b)| (distance(self.spec.elem, raw, b), i as u8, *b))
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, i, b)| (i, b))
    }

    /// `out` is exactly the block's decoded length. Never panics, whatever `encoded` and `tag` hold.
    pub fn decode(&self, block: u64, tag: u8, encoded: &[u8], bases: &[&[u8]], out: &mut [u8]) -> Result<(), Damage> {
        match tag {
            RAW => simple::copy(encoded, out),
            CONSTANT => simple::fill(encoded, self.spec.elem.width(), out),
            SAME => simple::same(encoded, bases, out),
            ZSTD => simple::zstd(encoded, out),
            PLANES => solo::decode(self.spec, encoded, out),
            GROUPED => grouped::decode(self.spec, encoded, bases, out),
            MAGNITUDES => magnitude::decode(self.spec, &self.tables, block, encoded, out),
            PRIOR => prior::decode(self.spec, block, encoded, bases, out),
            CHOSEN => chosen::decode(self.spec, encoded, bases, out),
            MASKED => mask::decode(&self.model(), block, encoded, bases, out),
            RESIDUAL => residual::decode(&self.model(), true, block, encoded, bases, out),
            STEPPED => {
                let step = self.step.ok_or(Damage("no step"))?;
                stepped::decode(&self.grid_model(), self.spec, step, block, encoded, bases, out)
            }
            _ => Err(Damage("unknown encoding")),
        }
    }
}

/// The smallest encoding so far, at the end of `out`; it starts as the block itself.
struct Best<'a> {
    raw: &'a [u8],
    out: &'a mut Vec<u8>,
    start: usize,
    tag: u8,
}

impl<'a> Best<'a> {
    fn new(raw: &'a [u8], out: &'a mut Vec<u8>) -> Best<'a> {
        let start = out.len();
        out.extend_from_slice(raw);
        Best { raw, out, start, tag: RAW }
    }

    /// Appends a candidate and keeps the smaller of the two.
    fn offer(&mut self, tag: u8, encode: impl FnOnce(&mut Vec<u8>)) {
        let end = self.out.len();
        encode(self.out);
        let (old, new) = (end - self.start, self.out.len() - end);
        if new < old {
            self.out.copy_within(end.., self.start);
            self.out.truncate(self.start + new);
            self.tag = tag;
        } else {
            self.out.truncate(end);
        }
    }

    fn share(&self) -> f64 {
        (self.out.len() - self.start) as f64 / self.raw.len().max(1) as f64
    }
}
