//! The weight-decay staircase.
//!
//! Idea (measured on `sre-embedding`): rows of an embedding whose token never occurs see only AdamW's decay,
//! w <- fl(w (1 - lr wd)), k times. Each time the magnitude falls by the mantissa times lr wd, rounded: a step
//! function of the mantissa alone, the same for all such rows. Learned as one move (a residual, word.rs) for each
//! value of the mantissa's top bits, it predicts nearly all of those rows exactly.
//!
//! Layout: u8 bits (at most 10), then 2^bits moves as i16, each less the one before: a plane (plane.rs) of the low
//! bytes, a plane of the high bytes.

use super::plane::{self, take};
use super::residual::segments;
use super::word::{Word, is_float, residual};
use super::{Damage, Spec};
use crate::model::dtype::Elem;

const MAX_BITS: u32 = 10;
/// So many rows must agree before a staircase is believed.
const ROWS: usize = 16;

#[derive(Debug, Clone)]
pub(super) struct Stairs {
    bits: u32,
    moves: Box<[i32; 1 << MAX_BITS]>,
}

fn mantissa(spec: Spec) -> u32 {
    match spec.elem {
        Elem::Float { mantissa, .. } => mantissa as u32,
        _ => 0,
    }
}

/// How a word finds its move.
#[derive(Clone, Copy)]
pub(super) struct Finder<'a> {
    pub shift: u32,
    pub mask: u32,
    pub moves: &'a [i32; 1 << MAX_BITS],
}

impl Finder<'_> {
    #[inline(always)]
    pub fn get<W: Word>(&self, base: W) -> i32 {
        self.moves[((base.to_u64() >> self.shift) as u32 & self.mask) as usize & ((1 << MAX_BITS) - 1)]
    }
}

impl Stairs {
    pub fn finder(&self, spec: Spec) -> Finder<'_> {
        Finder { shift: mantissa(spec).saturating_sub(self.bits), mask: (1 << self.bits) - 1, moves: &self.moves }
    }

    pub fn write(&self, out: &mut Vec<u8>) {
        out.push(self.bits as u8);
        let mut last = 0;
        let deltas: Vec<u16> =
            self.moves[..1 << self.bits].iter().map(|&m| (m - std::mem::replace(&mut last, m)) as u16).collect();
        for byte in 0..2 {
            plane::put(&deltas.iter().map(|d| (d >> (8 * byte)) as u8).collect::<Vec<_>>(), 19, out);
        }
    }

    pub fn read(spec: Spec, input: &mut &[u8]) -> Result<Stairs, Damage> {
        let bits = take(input, 1)?[0] as u32;
        if bits > MAX_BITS.min(mantissa(spec)) {
            return Err(Damage("staircase is too wide"));
        }
        let n = 1usize << bits;
        let mut planes = vec![0; 2 * n];
        plane::get(input, &mut planes[..n])?;
        plane::get(input, &mut planes[n..])?;
        let mut moves = Box::new([0; 1 << MAX_BITS]);
        let mut at = 0u16;
        for (i, m) in moves[..n].iter_mut().enumerate() {
            at = at.wrapping_add(u16::from_le_bytes([planes[i], planes[n + i]]));
            *m = at as i16 as i32;
        }
        Ok(Stairs { bits, moves })
    }

    /// The staircase of the rows whose median move is the most common one, if there are enough.
    pub fn learn(spec: Spec, samples: &[(&[u8], &[u8])]) -> Option<Stairs> {
        match (is_float(spec.elem), spec.elem.width()) {
            (true, 4) => learn::<u32>(spec, samples),
            (true, 2) => learn::<u16>(spec, samples),
            _ => None,
        }
    }
}

fn learn<W: Word>(spec: Spec, samples: &[(&[u8], &[u8])]) -> Option<Stairs> {
    let mut rows: Vec<(i64, Vec<(W, i64)>)> = Vec::new();
    for (child, base) in samples {
        let mut from = 0;
        for to in segments(spec, 0, child.len() / W::BYTES) {
            let bytes = from * W::BYTES..to * W::BYTES;
            let pairs = child[bytes.clone()].chunks_exact(W::BYTES).zip(base[bytes].chunks_exact(W::BYTES));
            // Pruned elements say nothing of the decay.
            let pairs = pairs.map(|(c, b)| (W::load(c), W::load(b))).filter(|(c, _)| !c.is_zero());
            let moves: Vec<(W, i64)> = pairs.map(|(c, b)| (b, residual::<W, true>(c, b).signed())).collect();
            rows.push((median(moves.iter().map(|m| m.1).collect()), moves));
            from = to;
        }
    }
    rows.retain(|(median, _)| (-20000..0).contains(median));
    let mut medians: Vec<i64> = rows.iter().map(|r| r.0).collect();
    medians.sort_unstable();
    let most = medians.chunk_by(|a, b| a == b).max_by_key(|c| c.len()).filter(|c| c.len() >= ROWS)?[0];
    rows.retain(|(median, _)| (median - most).abs() * 10 < -most * 3 || *median == most);
    let bits = MAX_BITS.min(mantissa(spec));
    let mut bins = vec![Vec::new(); 1 << bits];
    for (b, m) in rows.iter().flat_map(|r| &r.1) {
        bins[(b.to_u64() >> (mantissa(spec) - bits)) as usize & ((1 << bits) - 1)].push(*m);
    }
    let mut moves = Box::new([0; 1 << MAX_BITS]);
    let mut last = most as i32;
    for (m, bin) in moves.iter_mut().zip(bins) {
        if bin.len() > 2 {
            last = median(bin).clamp(i16::MIN as i64, i16::MAX as i64) as i32;
        }
        *m = last;
    }
    Some(Stairs { bits, moves })
}

fn median(mut values: Vec<i64>) -> i64 {
    let middle = values.len() / 2;
    if values.is_empty() { 0 } else { *values.select_nth_unstable(middle).1 }
}
