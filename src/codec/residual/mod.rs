//! A block as conditioned residuals to a base ("rice + rANS").
//!
//! Idea: context.rs says for each value, from its base and its row's scale, which low bits of the residual are
//! noise and how the rest is distributed; the noise is stored raw and the rest as one symbol under the tensor's
//! tables (tables.rs). Nothing is adaptive, so lanes are independent and contexts are known ahead.
//!
//! A segment shares a scale: the elements of a row, its ends rounded up to a multiple of LANES; short rows
//! together until SHORT, and at most LONG elements. It is of a kind: STEPS, the steps have one absolute size; UNITS,
//! they have one size in units of the last place (t = scale, whatever the exponent); STAIRS, so too, after the
//! move that stairs.rs predicts.
//!
//! Layout: u8 base; u8 flags (1: ZERO takes the base's sign and OTHER_ZERO the opposite, else +0 and -0);
//! i16 scale of STEPS before the first, that of the others is 0; varint words; varint raw bytes; the coded run (ans.rs):
//! for each segment its kind and the zigzag change of the scale since the last segment of STEPS, or of the others
//! (STILL: no value differs, the scale stays; ESCAPE: an i16 below), then a symbol for each element; raw bits,
//! lowest first; the escaped scales; the escaped elements; the last `len % width` bytes of the block.
//! Little-endian throughout.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod decode;
mod encode;

use super::ans::{LANES, Tables};
use super::context;
use super::stairs::{Finder, Stairs};
use super::word::{Exponent, Word};
use super::{BLOCK, Spec};
use crate::model::dtype::Elem;
pub(super) use decode::decode;
#[cfg(test)]
pub(super) use decode::has_vectors;
pub(super) use encode::{count, encode};

const SHORT: usize = 128;
const LONG: usize = 2048;
/// A scale that stays, over values that do, too.
const STILL: u8 = 254;
/// Kinds of segments.
const STEPS: u8 = 0;
const UNITS: u8 = 1;
const STAIRS: u8 = 2;
pub(super) const KINDS: usize = 3;
/// In the flags.
const BASE_SIGN: u8 = 1;

/// What the blocks of a tensor share.
#[derive(Clone, Copy)]
pub(super) struct Model<'a> {
    pub spec: Spec,
    pub tables: &'a Tables,
    pub stairs: Option<&'a Stairs>,
}

/// Only elements whose residual fits the bit reader and whose exponent has a byte.
pub(super) fn applies(spec: Spec) -> bool {
    matches!(spec.elem.width(), 1 | 2 | 4) && spec.elem != Elem::Bytes && Exponent::of(spec.elem).mask < 256
}

/// Runs `$body` for the word type and kind of a spec that [`applies`].
macro_rules! by_kind {
    ($spec:expr, $w:ident, $float:ident => $body:expr) => {
        match ($spec.elem.width(), crate::codec::word::is_float($spec.elem)) {
            (1, false) => by_kind!(@ u8, false, $w, $float, $body),
            (1, true) => by_kind!(@ u8, true, $w, $float, $body),
            (2, false) => by_kind!(@ u16, false, $w, $float, $body),
            (2, true) => by_kind!(@ u16, true, $w, $float, $body),
            (_, false) => by_kind!(@ u32, false, $w, $float, $body),
            (_, true) => by_kind!(@ u32, true, $w, $float, $body),
        }
    };
    (@ $t:ty, $f:literal, $w:ident, $float:ident, $body:expr) => {{
        type $w = $t;
        const $float: bool = $f;
        $body
    }};
}
use by_kind;

/// Ends of the segments of a block of `n` elements.
pub(super) fn segments(spec: Spec, block: u64, n: usize) -> Vec<usize> {
    let width = spec.elem.width();
    let row = match spec.row_bytes / width {
        0 => 512,
        row if row < SHORT => row * SHORT.div_ceil(row),
        row if row > LONG => row.div_ceil(row.div_ceil(LONG)),
        row => row,
    } as u64;
    let start = block.wrapping_mul((BLOCK / width) as u64);
    let mut end = row - start % row;
    let mut ends = Vec::with_capacity(n / row as usize + 2);
    while end < n as u64 {
        let rounded = (end as usize).next_multiple_of(LANES);
        if rounded < n {
            ends.push(rounded);
        }
        end += row;
    }
    ends.push(n);
    ends
}

/// How a segment's values find their contexts.
#[derive(Clone, Copy)]
struct Row<'a> {
    map: &'static context::Map,
    exponent: Exponent,
    scale: i32,
    step: i32,
    stairs: Option<Finder<'a>>,
}

impl<'a> Row<'a> {
    /// Scale None: nothing differs. A kind of STAIRS without stairs is taken for UNITS.
    fn new(model: &Model<'a>, kind: u8, scale: Option<i32>) -> Row<'a> {
        let stairs = model.stairs.filter(|_| kind == STAIRS).map(|s| s.finder(model.spec));
        Row {
            map: context::map(model.spec.elem.width(), stairs.is_some()),
            exponent: Exponent::of(model.spec.elem),
            scale: scale.unwrap_or(-context::T_OFFSET),
            step: if kind == STEPS && scale.is_some() { 4 } else { 0 },
            stairs,
        }
    }

    /// Of each value the context << BITS | raw bits << 24.
    #[inline(always)]
    fn entries(&self, bases: &[u32; LANES], entries: &mut [u32; LANES]) {
        for (e, b) in entries.iter_mut().zip(bases) {
            let exponent = (b >> self.exponent.shift & self.exponent.mask).max(1) as i32;
            *e = context::index(self.scale - self.step * exponent) as u32;
        }
        for e in entries {
            *e = self.map[*e as usize % context::T_COUNT];
        }
    }
}

/// The zero that ZERO stands for, or OTHER_ZERO.
#[inline(always)]
fn zero_of<W: Word>(flags: u8, other: bool, base: W) -> W {
    W::zero((flags & BASE_SIGN != 0 && base.is_negative()) != other)
}

/// At most LANES elements, each in 32 bits; zeros fill them up.
#[inline(always)]
pub(super) fn load<W: Word>(bytes: &[u8]) -> [u32; LANES] {
    let mut words = [0; LANES];
    if bytes.len() == LANES * W::BYTES {
        for j in 0..LANES {
            words[j] = W::load(&bytes[j * W::BYTES..]).to_u64() as u32;
        }
    } else {
        for (w, b) in words.iter_mut().zip(bytes.chunks_exact(W::BYTES)) {
            *w = W::load(b).to_u64() as u32;
        }
    }
    words
}

/// The residual of `child` to `base`, as word.rs has it, in fewer steps: away from zero is up for either sign, and a
/// sum that crosses zero comes out with its magnitude inverted.
#[inline(always)]
fn residual<W: Word, const FLOAT: bool>(child: W, base: W) -> W {
    let (c, b) = (child.signed(), base.signed());
    let crossed = if FLOAT { W::from_u64(((c ^ b) >> 63) as u64).without_sign().signed() } else { 0 };
    W::from_u64((c ^ crossed).wrapping_sub(b) as u64)
}

/// The inverse of [`residual`].
#[inline(always)]
fn restore<W: Word, const FLOAT: bool>(r: W, base: W) -> W {
    let sum = base.add(r);
    if !FLOAT {
        return sum;
    }
    let crossed = (sum.signed() ^ base.signed()) >> 63;
    W::from_u64(sum.to_u64() ^ W::from_u64(crossed as u64).without_sign().to_u64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::word;

    #[test]
    fn few_steps_lead_to_the_same_residuals() {
        for child in 0..=u8::MAX {
            for base in 0..=u8::MAX {
                let r = residual::<u8, true>(child, base);
                assert_eq!(r, word::residual::<u8, true>(child, base));
                assert_eq!(residual::<u8, false>(child, base), child.sub(base));
                assert_eq!(restore::<u8, true>(r, base), child);
                let wide = |b: u8| u32::from_le_bytes([b, !b, b, b]);
                let (c, b) = (wide(child), wide(base));
                assert_eq!(residual::<u32, true>(c, b), word::residual::<u32, true>(c, b));
                assert_eq!(restore::<u32, true>(residual::<u32, true>(c, b), b), c);
            }
        }
    }
}
