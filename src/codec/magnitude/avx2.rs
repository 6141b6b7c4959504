//! The groups of a segment on AVX2: what ../magnitude.rs does, LANES elements at a time, to the same bytes.
//!
//! Built of the parts in ans/avx2.rs, whose orders of values ("split" for 32 bits) hold here too. Elements of 2 bytes
//! are computed in lanes of 16 bits, those of 4 bytes in lanes of 32.

use super::*;
use crate::codec::ans::avx2::*;
use std::arch::x86_64::*;

const CUT: Damage = Damage("encoded block is short");

/// Decodes the whole groups at the front of a segment if this machine can and the element has a kernel; returns how
/// many bytes.
pub(super) fn whole_groups<W: Word>(d: &mut Decoder, row: Row, out: &mut [u8]) -> Result<usize, Damage> {
    if !available() {
        return Ok(0);
    }
    // SAFETY: the features are there.
    match (W::BYTES, d.low) {
        (2, ..14) => unsafe { segment16::<W>(d, row, out) },
        (4, ..24) => unsafe { segment32::<W>(d, row, out) },
        _ => Ok(0),
    }
}

/// `symbols`, compiled for this machine's vectors if it has any.
pub(super) fn symbols<W: Word>(spec: Spec, tables: Option<&Tables>, block: u64, raw: &[u8]) -> Option<Symbols> {
    #[target_feature(enable = "avx2,bmi2,popcnt")]
    fn here<W: Word>(spec: Spec, tables: Option<&Tables>, block: u64, raw: &[u8]) -> Symbols {
        symbols_here::<W>(spec, tables, block, raw)
    }
    // SAFETY: the features are there.
    available().then(|| unsafe { here::<W>(spec, tables, block, raw) })
}

/// The symbols of the next group, as small signed numbers in order, and which of them are special.
#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
fn next(lanes: &mut Lanes, d: &mut Decoder) -> Result<(__m256i, __m256i), Damage> {
    d.check()?;
    let slots = d.tables.slots();
    let at = lanes.places(_mm256_set1_epi16(TOP as i16));
    let slots = [lookup(slots, at[0]), lookup(slots, at[1])];
    let need = lanes.advance(slots);
    lanes.feed(need, &mut d.reader).ok_or(CUT)?;
    Ok(numbers(slots))
}

#[target_feature(enable = "avx2,bmi2,popcnt")]
fn segment32<W: Word>(d: &mut Decoder, row: Row, out: &mut [u8]) -> Result<usize, Damage> {
    let mut lanes = Lanes::new(&d.reader);
    let width = d.low - row.shared + 1;
    let (low, shared) = (_mm_cvtsi32_si128(d.low as i32), _mm_cvtsi32_si128(row.shared as i32));
    let mask = _mm256_set1_epi32(((1u32 << width) - 2) as i32);
    let (scale, top) = (_mm256_set1_epi32(row.scale as i32), _mm256_set1_epi32(i32::MAX));
    let outs = out.as_chunks_mut::<64>().0;
    let done = 64 * outs.len();
    for out in outs {
        let (h, special) = next(&mut lanes, d)?;
        let noise = windows32(&mut d.bits, _mm256_andnot_si256(special, _mm256_set1_epi16(width as i16))).ok_or(CUT)?;
        let wide = [_mm256_unpacklo_epi16(h, h), _mm256_unpackhi_epi16(h, h)].map(|h| _mm256_srai_epi32::<16>(h));
        let words = [0, 1].map(|i| {
            let fine = _mm256_sll_epi32(_mm256_srli_epi32::<1>(_mm256_and_si256(noise[i], mask)), shared);
            let magnitude = _mm256_add_epi32(_mm256_sll_epi32(_mm256_add_epi32(scale, wide[i]), low), fine);
            _mm256_or_si256(_mm256_and_si256(magnitude, top), _mm256_slli_epi32::<31>(noise[i]))
        });
        store32(words, out);
        if _mm256_movemask_epi8(special) != 0 {
            d.specials::<W>(&spread(h), out)?;
        }
    }
    lanes.finish(&mut d.reader);
    d.check()?;
    Ok(done)
}

#[target_feature(enable = "avx2,bmi2,popcnt")]
fn segment16<W: Word>(d: &mut Decoder, row: Row, out: &mut [u8]) -> Result<usize, Damage> {
    let mut lanes = Lanes::new(&d.reader);
    let width = d.low - row.shared + 1;
    let (low, shared) = (_mm_cvtsi32_si128(d.low as i32), _mm_cvtsi32_si128(row.shared as i32));
    let mask = _mm256_set1_epi16(((1u32 << width) - 2) as i16);
    let (scale, top) = (_mm256_set1_epi16(row.scale as i16), _mm256_set1_epi16(i16::MAX));
    let outs = out.as_chunks_mut::<32>().0;
    let done = 32 * outs.len();
    for out in outs {
        let (h, special) = next(&mut lanes, d)?;
        let noise = windows16(&mut d.bits, _mm256_andnot_si256(special, _mm256_set1_epi16(width as i16))).ok_or(CUT)?;
        let fine = _mm256_sll_epi16(_mm256_srli_epi16::<1>(_mm256_and_si256(noise, mask)), shared);
        let magnitude = _mm256_add_epi16(_mm256_sll_epi16(_mm256_add_epi16(scale, h), low), fine);
        let sign = _mm256_slli_epi16::<15>(noise);
        store16(_mm256_or_si256(_mm256_and_si256(magnitude, top), sign), out);
        if _mm256_movemask_epi8(special) != 0 {
            d.specials::<W>(&spread(h), out)?;
        }
    }
    lanes.finish(&mut d.reader);
    d.check()?;
    Ok(done)
}
