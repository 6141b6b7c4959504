//! The groups of a segment on AVX2: what decode.rs does, LANES elements at a time, to the same bytes.
//!
//! Built of the parts in ans/avx2.rs, whose orders of values ("split" for 32 bits) hold here too. Elements of 2 bytes
//! are computed in lanes of 16 bits, those of 4 bytes in lanes of 32; contexts, from arithmetic instead of a table,
//! in lanes of 16 for both.

use super::decode::Decoder;
use super::encode::{Symbols, symbols_here};
use super::*;
use crate::codec::Damage;
use crate::codec::ans::avx2::*;
use crate::codec::context::{FAR, STAIRS};
use std::arch::x86_64::*;

const CUT: Damage = Damage("encoded block is short");

/// Decodes the whole groups at the front of a segment if this machine can and the width has a kernel; returns how many bytes.
pub(super) fn whole_groups<W: Word, const FLOAT: bool>(
    d: &mut Decoder,
    row: &Row,
    base: &[u8],
    out: &mut [u8],
) -> Result<usize, Damage> {
    if !available() {
        return Ok(0);
    }
    // SAFETY: the features are there.
    match W::BYTES {
        2 => unsafe { segment16::<W, FLOAT>(d, row, base, out) },
        4 => unsafe { segment32::<W, FLOAT>(d, row, base, out) },
        _ => Ok(0),
    }
}

/// encode.rs's `symbols`, compiled for this machine's vectors if it has any.
pub(super) fn symbols<W: Word, const FLOAT: bool>(
    model: &Model,
    block: u64,
    raw: &[u8],
    base: &[u8],
    strict: bool,
) -> Option<Symbols> {
    #[target_feature(enable = "avx2,bmi2,popcnt")]
    fn here<W: Word, const FLOAT: bool>(m: &Model, block: u64, raw: &[u8], base: &[u8], strict: bool) -> Symbols {
        symbols_here::<W, FLOAT>(m, block, raw, base, strict)
    }
    // SAFETY: the features are there.
    available().then(|| unsafe { here::<W, FLOAT>(model, block, raw, base, strict) })
}

/// A segment's row, spread over lanes of 16 bits.
struct Contexts {
    scale: __m256i,
    step: __m256i,
    /// The first `t` of FAR.
    far: __m256i,
    stairs: bool,
}

impl Contexts {
    #[target_feature(enable = "avx2")]
    fn new(row: &Row, width: usize) -> Contexts {
        Contexts {
            scale: _mm256_set1_epi16(row.scale.clamp(i16::MIN as i32, i16::MAX as i32) as i16),
            step: _mm256_set1_epi16(row.step as i16),
            far: _mm256_set1_epi16(context::far(width) as i16),
            stairs: row.stairs.is_some(),
        }
    }

    /// Contexts and raw bits for these exponents: context.rs's map.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn of(&self, exponents: __m256i) -> (__m256i, __m256i) {
        let e = _mm256_max_epi16(exponents, _mm256_set1_epi16(1));
        // Saturates far outside of the map.
        let t = _mm256_subs_epi16(self.scale, _mm256_mullo_epi16(e, self.step));
        let t = _mm256_min_epi16(_mm256_max_epi16(t, _mm256_set1_epi16(-33)), self.far);
        let far = _mm256_cmpeq_epi16(t, self.far);
        let three = _mm256_set1_epi16(3);
        let raw = _mm256_sub_epi16(_mm256_max_epi16(_mm256_srai_epi16::<2>(t), three), three);
        let context = if self.stairs {
            let step = _mm256_max_epi16(_mm256_add_epi16(t, _mm256_set1_epi16(32)), _mm256_setzero_si256());
            let step = _mm256_min_epi16(_mm256_srli_epi16::<3>(step), _mm256_set1_epi16(7));
            let near = _mm256_add_epi16(step, _mm256_set1_epi16(STAIRS as i16));
            _mm256_blendv_epi8(near, _mm256_set1_epi16(FAR as i16), far)
        } else {
            let fine = _mm256_srai_epi16::<1>(_mm256_add_epi16(t, _mm256_set1_epi16(34)));
            // FAR is four after the quarter of `far`, which is 0.
            let quarter = _mm256_or_si256(_mm256_and_si256(t, three), _mm256_and_si256(far, _mm256_set1_epi16(4)));
            let coarse = _mm256_add_epi16(quarter, _mm256_set1_epi16(25));
            _mm256_blendv_epi8(fine, coarse, _mm256_cmpgt_epi16(t, _mm256_set1_epi16(15)))
        };
        (context, _mm256_andnot_si256(far, raw))
    }
}

#[target_feature(enable = "avx2,bmi2,popcnt")]
fn segment32<W: Word, const FLOAT: bool>(
    d: &mut Decoder,
    row: &Row,
    base: &[u8],
    out: &mut [u8],
) -> Result<usize, Damage> {
    let mut lanes = Lanes::new(&d.reader);
    let contexts = Contexts::new(row, 4);
    let (shift, mask) = (_mm_cvtsi32_si128(row.exponent.shift as i32), _mm256_set1_epi32(row.exponent.mask as i32));
    let exponent = |p| _mm256_and_si256(_mm256_srl_epi32(p, shift), mask);
    let (bases, outs) = (base.as_chunks::<64>().0, out.as_chunks_mut::<64>().0);
    for (base, out) in bases.iter().zip(outs.iter_mut()) {
        d.check()?;
        let p = load32(base);
        let (context, raw) = contexts.of(_mm256_packus_epi32(exponent(p[0]), exponent(p[1])));
        let at = lanes.places(context);
        let slots = [lookup(d.slots, at[0]), lookup(d.slots, at[1])];
        let need = lanes.advance(slots);
        lanes.feed(need, &mut d.reader).ok_or(CUT)?;
        let (h, special) = numbers(slots);
        let widths = _mm256_andnot_si256(special, raw);
        let low = windows32(&mut d.noise, widths).ok_or(CUT)?;
        let power = powers32(widths);
        let mut r = [0, 1].map(|i| {
            let low = _mm256_and_si256(low[i], _mm256_sub_epi32(power[i], _mm256_set1_epi32(1)));
            _mm256_or_si256(_mm256_mullo_epi32(_mm256_srai_epi32::<24>(slots[i]), power[i]), low)
        });
        if let Some(f) = &row.stairs {
            let (shift, mask) = (_mm_cvtsi32_si128(f.shift as i32), _mm256_set1_epi32(f.mask as i32));
            let at = |p| _mm256_and_si256(_mm256_srl_epi32(p, shift), mask);
            r = [_mm256_add_epi32(r[0], lookup(f.moves, at(p[0]))), _mm256_add_epi32(r[1], lookup(f.moves, at(p[1])))];
        }
        store32([restore32::<FLOAT>(r[0], p[0]), restore32::<FLOAT>(r[1], p[1])], out);
        if _mm256_movemask_epi8(special) != 0 {
            d.specials::<W>(&spread(h), base, out)?;
        }
    }
    lanes.finish(&mut d.reader);
    d.check()?;
    Ok(64 * bases.len())
}

#[target_feature(enable = "avx2,bmi2,popcnt")]
fn segment16<W: Word, const FLOAT: bool>(
    d: &mut Decoder,
    row: &Row,
    base: &[u8],
    out: &mut [u8],
) -> Result<usize, Damage> {
    let mut lanes = Lanes::new(&d.reader);
    let contexts = Contexts::new(row, 2);
    let (shift, mask) = (_mm_cvtsi32_si128(row.exponent.shift as i32), _mm256_set1_epi16(row.exponent.mask as i16));
    let (bases, outs) = (base.as_chunks::<32>().0, out.as_chunks_mut::<32>().0);
    for (base, out) in bases.iter().zip(outs.iter_mut()) {
        d.check()?;
        let p = load16(base);
        let (context, raw) = contexts.of(_mm256_and_si256(_mm256_srl_epi16(p, shift), mask));
        let at = lanes.places(context);
        let slots = [lookup(d.slots, at[0]), lookup(d.slots, at[1])];
        let need = lanes.advance(slots);
        lanes.feed(need, &mut d.reader).ok_or(CUT)?;
        let (h, special) = numbers(slots);
        let widths = _mm256_andnot_si256(special, raw);
        let mut r = h;
        if _mm256_testz_si256(widths, widths) == 0 {
            let low = windows16(&mut d.noise, widths).ok_or(CUT)?;
            let power = powers16(widths);
            let low = _mm256_and_si256(low, _mm256_sub_epi16(power, _mm256_set1_epi16(1)));
            r = _mm256_or_si256(_mm256_mullo_epi16(h, power), low);
        }
        if let Some(f) = &row.stairs {
            let (shift, mask) = (_mm_cvtsi32_si128(f.shift as i32), _mm256_set1_epi16(f.mask as i16));
            let at = widen(_mm256_and_si256(_mm256_srl_epi16(p, shift), mask));
            let low = _mm256_set1_epi32(0xFFFF);
            let [a, b] = at.map(|at| _mm256_and_si256(lookup(f.moves, at), low));
            r = _mm256_add_epi16(r, _mm256_packus_epi32(a, b));
        }
        store16(restore16::<FLOAT>(r, p), out);
        if _mm256_movemask_epi8(special) != 0 {
            d.specials::<W>(&spread(h), base, out)?;
        }
    }
    lanes.finish(&mut d.reader);
    d.check()?;
    Ok(32 * bases.len())
}

/// mod.rs's `restore`.
#[inline]
#[target_feature(enable = "avx2")]
fn restore32<const FLOAT: bool>(r: __m256i, base: __m256i) -> __m256i {
    let sum = _mm256_add_epi32(base, r);
    if !FLOAT {
        return sum;
    }
    let crossed = _mm256_srai_epi32::<31>(_mm256_xor_si256(sum, base));
    _mm256_xor_si256(sum, _mm256_srli_epi32::<1>(crossed))
}

#[inline]
#[target_feature(enable = "avx2")]
fn restore16<const FLOAT: bool>(r: __m256i, base: __m256i) -> __m256i {
    let sum = _mm256_add_epi16(base, r);
    if !FLOAT {
        return sum;
    }
    let crossed = _mm256_srai_epi16::<15>(_mm256_xor_si256(sum, base));
    _mm256_xor_si256(sum, _mm256_srli_epi16::<1>(crossed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[target_feature(enable = "avx2,bmi2,popcnt")]
    fn same_as_map(width: usize, scale: i32) {
        for stairs in [false, true] {
            let row = Row {
                map: context::map(width, stairs),
                exponent: Exponent { shift: 0, mask: 255 },
                scale,
                step: 4,
                stairs: None,
            };
            let contexts = Contexts { stairs, ..Contexts::new(&row, width) };
            for e in 0..=255u32 {
                let (context, raw) = contexts.of(_mm256_set1_epi16(e as i16));
                let entry = spread(context)[0] << 11 | spread(raw)[0] << 24;
                let mut entries = [0; LANES];
                row.entries(&[e; LANES], &mut entries);
                assert_eq!(entry as u32, entries[0], "{width} {scale} {e} {stairs}");
            }
        }
    }

    #[test]
    fn arithmetic_finds_the_contexts_of_the_map() {
        let scales = (-100..1300).chain([-4000, -32768, 4000, 32767]);
        for (scale, width) in scales.flat_map(|s| [(s, 2), (s, 4)]) {
            if available() {
                // SAFETY: the features are there.
                unsafe { same_as_map(width, scale) }
            }
        }
    }
}
