//! A block of a pruned child: which of its elements are zero, and the others as residuals to the base.
//!
//! Idea: that an element was pruned is told apart from how it moved (cut.rs), and the elements that are left are
//! coded (residual/) as if the others had never been: no symbol, no share in a row's scale, no time. What is left
//! of a row is short, so rows of like steps go side by side: each has a class, in whose order they follow. Class 0
//! follows the staircase (stairs.rs), the others have ever smaller steps, by half bits. The reader only sorts by it.
//!
//! Rows are the segments of residual/mod.rs. A zero that the mask tells of has the base's sign where the flags have
//! BASE_SIGN, else it is +0; another zero counts as left.
//!
//! Layout: u8 base; u8 flags; the last `len % width` bytes of the block; the mask (cut.rs); a plane (plane.rs) of the
//! classes, two rows a byte, the first in the low half; the elements left, as a RESIDUAL block 0 of rows of ROW elements
//! under the tensor's tables, its base those that the base has in their places.

use super::plane::{self, take};
use super::residual::{self, Model, segments};
use super::tables::Counts;
use super::word::{Exponent, Word, by_width, is_float, residual};
use super::{Damage, Spec, cut};
use crate::model::dtype::Elem;

/// Elements of a row of what is left.
const ROW: usize = 128;
const BASE_SIGN: u8 = 1;
const CLASSES: usize = 16;

pub(super) fn applies(spec: Spec) -> bool {
    residual::applies(spec) && is_float(spec.elem)
}

/// A block taken apart.
pub(super) struct Split {
    flags: u8,
    magnitudes: Vec<i32>,
    mask: Vec<u8>,
    ends: Vec<usize>,
    classes: Vec<u8>,
    child: Vec<u8>,
    base: Vec<u8>,
}

/// How the elements left are coded.
fn rest<'a>(model: &Model<'a>) -> Model<'a> {
    Model { spec: Spec { row_bytes: ROW * model.spec.elem.width(), ..model.spec }, ..*model }
}

fn mantissa(spec: Spec) -> u32 {
    match spec.elem {
        Elem::Float { mantissa, .. } => mantissa as u32,
        _ => 0,
    }
}

/// Takes a block apart if enough of it is zero for that to pay.
pub(super) fn split(model: &Model, block: u64, raw: &[u8], base: &[u8]) -> Option<Split> {
    if !applies(model.spec) {
        return None;
    }
    by_width!(model.spec.elem.width(), W => split_words::<W>(model, block, raw, base))
}

fn split_words<W: Word>(model: &Model, block: u64, raw: &[u8], base: &[u8]) -> Option<Split> {
    let n = raw.len() / W::BYTES;
    let (mut zeros, mut same, mut plus) = (0, 0, 0);
    for (c, b) in raw.chunks_exact(W::BYTES).map(W::load).zip(base.chunks_exact(W::BYTES).map(W::load)) {
        zeros += c.is_zero() as u32;
        same += (c.is_zero() & (c.is_negative() == b.is_negative())) as u32;
        plus += (c == W::default()) as u32;
    }
    if (zeros as usize) < 256.max(n / 32) {
        return None;
    }
    let flags = if same > plus { BASE_SIGN } else { 0 };
    let pairs = raw.chunks_exact(W::BYTES).map(W::load).zip(base.chunks_exact(W::BYTES).map(W::load));
    let mask: Vec<u8> = pairs.map(|(c, b)| (c == zero::<W>(flags, b)) as u8).collect();
    let ends = segments(model.spec, block, n);
    let classes = classes::<W>(model, raw, base, &mask, &ends);
    let places = places(&mask, &ends, &classes);
    let (child, kept) = (gather::<W>(raw, &places), gather::<W>(base, &places));
    Some(Split { flags, magnitudes: magnitudes::<W>(base), mask, ends, classes, child, base: kept })
}

/// The zero in the place of a masked element.
#[inline(always)]
fn zero<W: Word>(flags: u8, base: W) -> W {
    W::zero(flags & BASE_SIGN != 0 && base.is_negative())
}

fn magnitudes<W: Word>(base: &[u8]) -> Vec<i32> {
    base.chunks_exact(W::BYTES).map(|b| W::load(b).without_sign().to_u64() as i32).collect()
}

/// The ranges of elements of each row, by class.
fn by_class<'a>(ends: &'a [usize], classes: &'a [u8]) -> impl Iterator<Item = std::ops::Range<usize>> + 'a {
    let in_class = move |class| (0..ends.len()).filter(move |&i| classes.get(i) == Some(&class));
    let start = |i: usize| if i == 0 { 0 } else { ends[i - 1] };
    (0..CLASSES as u8).flat_map(in_class).map(move |i| start(i)..ends[i])
}

/// The places of the elements that the mask leaves, rows in the order of their classes.
fn places(mask: &[u8], ends: &[usize], classes: &[u8]) -> Vec<u32> {
    // One more than can be: each is written before it is known to count.
    let mut out = vec![0; mask.len() + 1];
    let mut at = 0;
    for row in by_class(ends, classes) {
        for (i, &masked) in row.clone().zip(&mask[row]) {
            out[at] = i as u32;
            at += (masked == 0) as usize;
        }
    }
    out.truncate(at);
    out
}

/// The elements in these places.
fn gather<W: Word>(bytes: &[u8], places: &[u32]) -> Vec<u8> {
    let mut out = vec![0; places.len() * W::BYTES];
    for (o, &i) in out.chunks_exact_mut(W::BYTES).zip(places) {
        W::load(&bytes[i as usize * W::BYTES..]).store(o);
    }
    out
}

/// A class for each row.
fn classes<W: Word>(model: &Model, raw: &[u8], base: &[u8], mask: &[u8], ends: &[usize]) -> Vec<u8> {
    let mut from = 0;
    let steps: Vec<Option<i32>> = ends
        .iter()
        .map(|&to| {
            let bytes = from * W::BYTES..to * W::BYTES;
            let step = step::<W>(model, &raw[bytes.clone()], &base[bytes], &mask[from..to]);
            from = to;
            step
        })
        .collect();
    let top = steps.iter().flatten().max().copied().unwrap_or(0);
    steps.iter().map(|s| s.map_or(0, |s| 1 + (top - s).clamp(0, CLASSES as i32 - 2) as u8)).collect()
}

/// Twice the logarithm of a row's mean step; None where it follows the staircase.
fn step<W: Word>(model: &Model, raw: &[u8], base: &[u8], mask: &[u8]) -> Option<i32> {
    let exponent = Exponent::of(model.spec.elem);
    let finder = model.stairs.map(|s| s.finder(model.spec));
    let (mut steps, mut units, mut off, mut n) = (0f32, 0f32, 0f32, 0f32);
    let pairs = raw.chunks_exact(W::BYTES).zip(base.chunks_exact(W::BYTES)).zip(mask);
    for ((c, b), _) in pairs.filter(|(_, masked)| **masked == 0) {
        let (c, b) = (W::load(c), W::load(b));
        let r = residual::<W, true>(c, b);
        let size = r.magnitude() as f32;
        steps += size * f32::from_bits((exponent.get(b) as u32).clamp(1, 254) << 23);
        units += size;
        n += 1.0;
        if let Some(f) = &finder {
            off += r.sub(W::from_u32(f.get(b) as u32)).magnitude() as f32;
        }
    }
    if finder.is_some() && off * 4.0 < units {
        return None;
    }
    Some(if steps > 0.0 { (2.0 * (steps / n).log2()) as i32 } else { i32::MIN / 2 })
}

/// Counts the symbols of what is left.
pub(super) fn count(model: &Model, split: &Split, counts: &mut Counts) {
    residual::count(&rest(model), &split.child, &split.base, counts);
}

pub(super) fn encode(model: &Model, split: &Split, raw: &[u8], index: u8, out: &mut Vec<u8>) {
    let width = model.spec.elem.width();
    out.extend_from_slice(&[index, split.flags]);
    out.extend_from_slice(&raw[raw.len() - raw.len() % width..]);
    cut::encode(mantissa(model.spec), &split.magnitudes, &split.ends, &split.mask, out);
    let classes: Vec<u8> = split.classes.chunks(2).map(|c| c[0] | c.get(1).map_or(0, |c| c << 4)).collect();
    plane::put(&classes, 3, out);
    residual::encode(&rest(model), 0, &split.child, 0, &split.base, out);
}

pub(super) fn decode(
    model: &Model,
    block: u64,
    mut input: &[u8],
    bases: &[&[u8]],
    out: &mut [u8],
) -> Result<(), Damage> {
    let head = take(&mut input, 2)?;
    let base = *bases.get(head[0] as usize).ok_or(Damage("base is missing"))?;
    if base.len() != out.len() || !applies(model.spec) {
        return Err(Damage("base has another length"));
    }
    by_width!(model.spec.elem.width(), W => decode_words::<W>(model, block, head[1], input, base, out))
}

fn decode_words<W: Word>(
    model: &Model,
    block: u64,
    flags: u8,
    mut input: &[u8],
    base: &[u8],
    out: &mut [u8],
) -> Result<(), Damage> {
    let n = out.len() / W::BYTES;
    let ends = segments(model.spec, block, n);
    let (body, tail) = out.split_at_mut(n * W::BYTES);
    tail.copy_from_slice(take(&mut input, tail.len())?);
    let mask = cut::decode(&magnitudes::<W>(base), &ends, &mut input)?;
    let mut halves = vec![0; ends.len().div_ceil(2)];
    plane::get(&mut input, &mut halves)?;
    let classes: Vec<u8> = halves.iter().flat_map(|b| [b & 15, b >> 4]).collect();
    let places = places(&mask, &ends, &classes[..ends.len()]);
    let kept = gather::<W>(base, &places);
    let mut child = vec![0; kept.len()];
    residual::decode(&rest(model), true, 0, input, &[&kept], &mut child)?;
    for (o, b) in body.chunks_exact_mut(W::BYTES).zip(base.chunks_exact(W::BYTES)) {
        zero::<W>(flags, W::load(b)).store(o);
    }
    for (c, &i) in child.chunks_exact(W::BYTES).zip(&places) {
        body[i as usize * W::BYTES..][..W::BYTES].copy_from_slice(c);
    }
    Ok(())
}
