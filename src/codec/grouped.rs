//! A block as differences to a base, grouped by the base's exponent ("part3").
//!
//! Idea: an optimiser's step has about one absolute size in a tensor, so the difference in units of the last
//! place depends on the base's exponent. Residuals (word.rs) of equal base exponent therefore belong together:
//! they are sorted by it, stably, which the reader can undo because it has the base. Neighbouring exponents are
//! joined until a group has GROUP values, and each group gets byte planes of its own, hence entropy tables of
//! its own. Integers and 1-byte elements without exponent: one group, the modulo difference.
//!
//! Layout: u8 index of the base; for each group in ascending exponent: `width` planes (plane.rs) of the
//! zigzag residuals; the last `len % width` bytes as they are. The groups follow from the base alone.

use super::plane::{self, at_end, take};
use super::solo::{gather, put_planes};
use super::word::{Exponent, Word, by_width, is_float, residual, restore};
use super::{Damage, Spec};

const GROUP: usize = 2048;

pub(super) fn encode(spec: Spec, level: i32, raw: &[u8], base_index: u8, base: &[u8], out: &mut Vec<u8>) {
    out.push(base_index);
    by_width!(spec.elem.width(), W => {
        if is_float(spec.elem) {
            encode_words::<W, true>(spec, level, raw, base, out)
        } else {
            encode_words::<W, false>(spec, level, raw, base, out)
        }
    })
}

pub(super) fn decode(spec: Spec, mut input: &[u8], bases: &[&[u8]], out: &mut [u8]) -> Result<(), Damage> {
    let index = take(&mut input, 1)?[0] as usize;
    let base = *bases.get(index).ok_or(Damage("base is missing"))?;
    if base.len() != out.len() {
        return Err(Damage("base has another length"));
    }
    by_width!(spec.elem.width(), W => {
        if is_float(spec.elem) {
            decode_words::<W, true>(spec, input, base, out)
        } else {
            decode_words::<W, false>(spec, input, base, out)
        }
    })
}

fn encode_words<W: Word, const FLOAT: bool>(spec: Spec, level: i32, raw: &[u8], base: &[u8], out: &mut Vec<u8>) {
    let groups = Groups::of::<W>(spec, base);
    let n = groups.total;
    let mut sorted = vec![W::default(); n];
    let mut next = groups.start.clone();
    for (c, b) in raw.chunks_exact(W::BYTES).zip(base.chunks_exact(W::BYTES)) {
        let b = W::load(b);
        let at = &mut next[groups.exponent.get(b)];
        sorted[*at as usize] = residual::<W, FLOAT>(W::load(c), b).zigzag();
        *at += 1;
    }
    let mut buffer = vec![0; n];
    for cut in groups.cuts.windows(2) {
        put_planes(&sorted[cut[0]..cut[1]], level, &mut buffer, out);
    }
    out.extend_from_slice(&raw[n * W::BYTES..]);
}

fn decode_words<W: Word, const FLOAT: bool>(
    spec: Spec,
    mut input: &[u8],
    base: &[u8],
    out: &mut [u8],
) -> Result<(), Damage> {
    let groups = Groups::of::<W>(spec, base);
    let n = groups.total;
    let mut planes = vec![0; n * W::BYTES];
    for cut in groups.cuts.windows(2).filter(|c| c[0] < c[1]) {
        for byte in 0..W::BYTES {
            plane::get(&mut input, &mut planes[byte * n + cut[0]..byte * n + cut[1]])?;
        }
    }
    let (body, tail) = out.split_at_mut(n * W::BYTES);
    let mut next = groups.start;
    for (o, b) in body.chunks_exact_mut(W::BYTES).zip(base.chunks_exact(W::BYTES)) {
        let b = W::load(b);
        let at = &mut next[groups.exponent.get(b)];
        restore::<W, FLOAT>(gather::<W>(&planes, n, *at as usize).unzigzag(), b).store(o);
        *at += 1;
    }
    tail.copy_from_slice(take(&mut input, tail.len())?);
    at_end(input)
}

/// How the base orders a block: where each exponent's values begin, and where a new set of planes does.
struct Groups {
    exponent: Exponent,
    start: Vec<u32>,
    cuts: Vec<usize>,
    total: usize,
}

impl Groups {
    fn of<W: Word>(spec: Spec, base: &[u8]) -> Groups {
        let exponent = Exponent::of(spec.elem);
        let mut start = vec![0u32; exponent.mask as usize + 1];
        for b in base.chunks_exact(W::BYTES) {
            start[exponent.get(W::load(b))] += 1;
        }
        let total = base.len() / W::BYTES;
        let (mut cuts, mut at) = (vec![0], 0);
        for s in &mut start {
            let count = std::mem::replace(s, at as u32);
            at += count as usize;
            if at - cuts[cuts.len() - 1] >= GROUP && total - at >= GROUP {
                cuts.push(at);
            }
        }
        cuts.push(total);
        Groups { exponent, start, cuts, total }
    }
}
