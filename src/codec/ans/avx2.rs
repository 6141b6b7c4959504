//! Parts of the decoders on AVX2: LANES symbols, their raw bits, table lookups. Each does what its portable
//! namesake does, to the same values.
//!
//! Order: LANES values of 16 bits fill one vector, in order. LANES values of 32 bits fill two, the first with values
//! 0-3 and 8-11, the second with the others ("split"): so packing and unpacking, which work in halves of a vector,
//! lead from one order to the other.
//!
//! Lookups are loads of single values: gathers are slow on Zen and, since their fix of 2023, on many others.
//!
//! Callers need no unsafe code: whatever the values, memory is touched only inside the arrays that are passed.

use super::{BITS, LANES, Reader, START};
use crate::codec::PORTABLE_ONLY;
use crate::codec::bits::{BitReader, SPARE};
use std::arch::x86_64::*;
use std::sync::atomic::Ordering;

const _: () = assert!(LANES == 16 && START == 1 << 16);

pub(in crate::codec) fn available() -> bool {
    !PORTABLE_ONLY.load(Ordering::Relaxed)
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("popcnt")
}

/// LANES values of 32 bits, split.
pub(in crate::codec) type Split = [__m256i; 2];

/// For four lanes, as a mask of those that need a word: which bytes of the next four words make their low halves.
static FEED: [[u8; 16]; 16] = {
    let mut feed = [[0x80; 16]; 16];
    let mut mask = 0;
    while mask < 16 {
        let (mut lane, mut next) = (0, 0);
        while lane < 4 {
            if mask >> lane & 1 != 0 {
                feed[mask][4 * lane] = next;
                feed[mask][4 * lane + 1] = next + 1;
                next += 2;
            }
            lane += 1;
        }
        mask += 1;
    }
    feed
};

#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::codec) fn load16(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: as many bytes as are read; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::codec) fn store16(v: __m256i, bytes: &mut [u8; 32]) {
    // SAFETY: as many bytes as are written; the store needs no alignment.
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), v) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::codec) fn load32(bytes: &[u8; 64]) -> Split {
    // SAFETY: 4 times 16 bytes, as many as there are; the loads need no alignment.
    let part = |i: usize| unsafe { _mm_loadu_si128(bytes.as_ptr().add(16 * i).cast()) };
    [_mm256_set_m128i(part(2), part(0)), _mm256_set_m128i(part(3), part(1))]
}

#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::codec) fn store32(v: Split, bytes: &mut [u8; 64]) {
    let halves = v.map(|v| [_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v)]);
    for (i, part) in [halves[0][0], halves[1][0], halves[0][1], halves[1][1]].into_iter().enumerate() {
        // SAFETY: 4 times 16 bytes, as many as there are; the stores need no alignment.
        unsafe { _mm_storeu_si128(bytes.as_mut_ptr().add(16 * i).cast(), part) }
    }
}

/// Unsigned 16-bit values, split.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::codec) fn widen(v: __m256i) -> Split {
    let zero = _mm256_setzero_si256();
    [_mm256_unpacklo_epi16(v, zero), _mm256_unpackhi_epi16(v, zero)]
}

/// `1 << v` for 16-bit values below 16.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::codec) fn powers16(v: __m256i) -> __m256i {
    let powers = _mm256_broadcastsi128_si256(_mm_setr_epi8(1, 2, 4, 8, 16, 32, 64, -128, 0, 0, 0, 0, 0, 0, 0, 0));
    // The high byte looks up v - 8; a negative index gives 0.
    let at = _mm256_sub_epi8(_mm256_or_si256(v, _mm256_slli_epi16::<8>(v)), _mm256_set1_epi16(0x0800));
    _mm256_shuffle_epi8(powers, at)
}

/// `1 << v`, split, for 16-bit values up to 24.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::codec) fn powers32(v: __m256i) -> Split {
    let powers = _mm256_broadcastsi128_si256(_mm_setr_epi8(1, 2, 4, 8, 16, 32, 64, -128, 0, 0, 0, 0, 0, 0, 0, 0));
    // The bytes look up v, v - 8, v - 16 and v - 24; a negative index gives 0, and so must one from 16 on.
    let twice = _mm256_or_si256(v, _mm256_slli_epi16::<8>(v));
    let low = _mm256_min_epu8(_mm256_sub_epi8(twice, _mm256_set1_epi16(0x0800)), _mm256_set1_epi8(15));
    let high = _mm256_sub_epi8(twice, _mm256_set1_epi16(0x1810));
    let at = [_mm256_unpacklo_epi16(low, high), _mm256_unpackhi_epi16(low, high)];
    at.map(|at| _mm256_shuffle_epi8(powers, at))
}

/// `table[at % N]` for eight, as 32 bits.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::codec) fn lookup<T: Copy + Into<i64>, const N: usize>(table: &[T; N], at: __m256i) -> __m256i {
    const { assert!(N.is_power_of_two() && N <= 1 << 31) };
    let at = _mm256_and_si256(at, _mm256_set1_epi32(N as i32 - 1));
    let four = |at: __m128i| {
        let (a, b) = (_mm_cvtsi128_si64(at) as u64, _mm_extract_epi64::<1>(at) as u64);
        // SAFETY: both halves of `a` and `b` are below N, by the mask.
        let get = |i: u64| unsafe { *table.get_unchecked(i as usize) }.into() as i32;
        _mm_setr_epi32(get(a & 0xFFFF_FFFF), get(a >> 32), get(b & 0xFFFF_FFFF), get(b >> 32))
    };
    _mm256_set_m128i(four(_mm256_extracti128_si256::<1>(at)), four(_mm256_castsi256_si128(at)))
}

/// The symbols of slots, as small signed numbers in order, and which of them are special.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::codec) fn numbers(slots: Split) -> (__m256i, __m256i) {
    let h = _mm256_packs_epi32(_mm256_srai_epi32::<24>(slots[0]), _mm256_srai_epi32::<24>(slots[1]));
    (h, _mm256_cmpgt_epi16(_mm256_abs_epi16(h), _mm256_set1_epi16(126)))
}

/// Sixteen values of 16 bits.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::codec) fn spread(v: __m256i) -> [i32; LANES] {
    let mut bytes = [0; 32];
    store16(v, &mut bytes);
    std::array::from_fn(|j| i16::from_le_bytes([bytes[2 * j], bytes[2 * j + 1]]) as i32)
}

/// States of a reader while vectors decode.
pub(in crate::codec) struct Lanes(Split);

impl Lanes {
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn new(reader: &Reader) -> Lanes {
        let s = &reader.states;
        let part = |i: usize| _mm_setr_epi32(s[i] as i32, s[i + 1] as i32, s[i + 2] as i32, s[i + 3] as i32);
        Lanes([_mm256_set_m128i(part(8), part(0)), _mm256_set_m128i(part(12), part(4))])
    }

    /// Hands the states back.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn finish(self, reader: &mut Reader) {
        let mut bytes = [0; 64];
        store32(self.0, &mut bytes);
        for (x, b) in reader.states.iter_mut().zip(bytes.chunks_exact(4)) {
            *x = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        }
    }

    /// Where the slots of the next LANES symbols are, whose contexts these are.
    ///
    /// A step is this, two lookups, `advance` and `feed`: parts so small that all of them are inlined.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn places(&self, contexts: __m256i) -> Split {
        let [a, b] = widen(contexts).map(|c| _mm256_slli_epi32::<{ BITS as i32 }>(c));
        let low = _mm256_set1_epi32((1 << BITS) - 1);
        [_mm256_or_si256(a, _mm256_and_si256(self.0[0], low)), _mm256_or_si256(b, _mm256_and_si256(self.0[1], low))]
    }

    /// Takes the symbols of these slots out of the states; returns which of them need a word then.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn advance(&mut self, slots: Split) -> Split {
        let low = _mm256_set1_epi32(0xFFF);
        for (x, slot) in self.0.iter_mut().zip(slots) {
            let f = _mm256_and_si256(_mm256_srli_epi32::<12>(slot), low);
            let y = _mm256_mullo_epi32(f, _mm256_srli_epi32::<{ BITS as i32 }>(*x));
            *x = _mm256_add_epi32(y, _mm256_and_si256(slot, low));
        }
        self.0.map(|y| _mm256_cmpeq_epi32(_mm256_srli_epi32::<16>(y), _mm256_setzero_si256()))
    }

    /// Gives each state that needs one the next word; None past the end of the words.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,popcnt")]
    pub fn feed(&mut self, need: Split, reader: &mut Reader) -> Option<()> {
        let words: &[u16; LANES] = reader.words.get(reader.at..)?.first_chunk()?;
        let masks = need.map(|n| _mm256_movemask_ps(_mm256_castsi256_ps(n)) as usize & 0xFF);
        // Four lanes each, in their order.
        let needs = [masks[0] & 15, masks[1] & 15, masks[0] >> 4, masks[1] >> 4];
        let mut at = [0; 5];
        (0..4).for_each(|i| at[i + 1] = at[i] + needs[i].count_ones() as usize);
        let next = |i: usize, k: usize| {
            // SAFETY: four words, read as 8 bytes, from at most 12 on, for at[3] counts three masks of four.
            let [a, b] = [i, k].map(|i| unsafe { _mm_loadl_epi64(words.as_ptr().add(at[i]).cast()) });
            // SAFETY: the masks are of four bits; the table has 16 rows of 16 bytes.
            let [c, d] = [i, k].map(|i| unsafe { _mm_loadu_si128(FEED.get_unchecked(needs[i]).as_ptr().cast()) });
            _mm256_shuffle_epi8(_mm256_set_m128i(b, a), _mm256_set_m128i(d, c))
        };
        for ((x, need), fed) in self.0.iter_mut().zip(need).zip([next(0, 2), next(1, 3)]) {
            let shifted = _mm256_blendv_epi8(*x, _mm256_slli_epi32::<16>(*x), need);
            *x = _mm256_or_si256(shifted, fed);
        }
        reader.at += at[4];
        Some(())
    }
}

/// The next raw bits of LANES values, of 16-bit widths up to 24: their windows, with further bits above them.
#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
pub(in crate::codec) fn windows32(bits: &mut BitReader, widths: __m256i) -> Option<Split> {
    let bytes: &[u8; SPARE] = bits.bytes.get(bits.at >> 3..)?.first_chunk()?;
    // Two values share a window of 64 bits.
    let pairs = _mm256_madd_epi16(widths, _mm256_set1_epi16(1));
    let ends = _mm256_add_epi32(pairs, _mm256_slli_si256::<4>(pairs));
    let ends = _mm256_add_epi32(ends, _mm256_slli_si256::<8>(ends));
    let half = _mm256_extract_epi32::<3>(ends);
    let first = (bits.at & 7) as i32;
    bits.at += half as usize + _mm256_extract_epi32::<7>(ends) as usize;
    let from = _mm256_set_m128i(_mm_set1_epi32(first + half), _mm_set1_epi32(first));
    let at = _mm256_add_epi32(from, _mm256_sub_epi32(ends, pairs));
    let byte = _mm256_min_epu32(_mm256_srli_epi32::<3>(at), _mm256_set1_epi32(SPARE as i32 - 8));
    let shift = _mm256_and_si256(at, _mm256_set1_epi32(7));
    let (low, high) = (_mm256_castsi256_si128(byte), _mm256_extracti128_si256::<1>(byte));
    let parts = [low, high].map(|v| [_mm_cvtsi128_si64(v) as u64, _mm_extract_epi64::<1>(v) as u64]);
    let two = |at: u64| {
        // SAFETY: both halves of `at` are at most SPARE - 8, by the minimum; 8 bytes are read.
        let get = |i: u64| unsafe { bytes.as_ptr().add(i as usize) };
        // SAFETY: as above; the loads need no alignment.
        let [a, b] = [get(at & 0xFFFF_FFFF), get(at >> 32)].map(|p| unsafe { _mm_loadl_epi64(p.cast()) });
        _mm_unpacklo_epi64(a, b)
    };
    let zero = _mm256_setzero_si256();
    let [w0, w1] = widen(widths);
    let a = _mm256_set_m128i(two(parts[1][0]), two(parts[0][0]));
    let b = _mm256_set_m128i(two(parts[1][1]), two(parts[0][1]));
    Some([
        parted(_mm256_srlv_epi64(a, _mm256_unpacklo_epi32(shift, zero)), w0),
        parted(_mm256_srlv_epi64(b, _mm256_unpackhi_epi32(shift, zero)), w1),
    ])
}

/// Moves the second value of each 64 bits up to its upper half; the first has the width in the lower half of `widths`.
#[inline]
#[target_feature(enable = "avx2")]
fn parted(window: __m256i, widths: __m256i) -> __m256i {
    let low = _mm256_and_si256(widths, _mm256_set1_epi64x(0xFFFF_FFFF));
    let second = _mm256_sllv_epi64(window, _mm256_sub_epi64(_mm256_set1_epi64x(32), low));
    _mm256_blend_epi32::<0b10101010>(window, second)
}

/// As windows32, for widths up to 14.
#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
pub(in crate::codec) fn windows16(bits: &mut BitReader, widths: __m256i) -> Option<__m256i> {
    let bytes: &[u8; SPARE] = bits.bytes.get(bits.at >> 3..)?.first_chunk()?;
    // Four values share a window of 64 bits.
    let pairs = _mm256_madd_epi16(widths, _mm256_set1_epi16(1));
    let fours = _mm256_add_epi32(pairs, _mm256_srli_epi64::<32>(pairs));
    let before = _mm256_slli_si256::<8>(fours);
    let ends = _mm256_add_epi32(before, fours);
    let half = _mm256_extract_epi32::<2>(ends);
    let first = (bits.at & 7) as i32;
    bits.at += half as usize + _mm256_extract_epi32::<6>(ends) as usize;
    let from = _mm256_set_m128i(_mm_set1_epi32(first + half), _mm_set1_epi32(first));
    let at = _mm256_add_epi32(from, before);
    let byte = _mm256_min_epu32(_mm256_srli_epi32::<3>(at), _mm256_set1_epi32(SPARE as i32 - 8));
    let two = |v: __m128i| {
        let at = [_mm_cvtsi128_si32(v) as u32, _mm_extract_epi32::<2>(v) as u32];
        // SAFETY: at most SPARE - 8, by the minimum; 8 bytes are read, and the loads need no alignment.
        let [a, b] = at.map(|i| unsafe { _mm_loadl_epi64(bytes.as_ptr().add(i as usize).cast()) });
        _mm_unpacklo_epi64(a, b)
    };
    let window = _mm256_set_m128i(two(_mm256_extracti128_si256::<1>(byte)), two(_mm256_castsi256_si128(byte)));
    let window = _mm256_srlv_epi64(window, _mm256_and_si256(at, _mm256_set1_epi64x(7)));
    let window = parted(window, pairs);
    let low = _mm256_and_si256(widths, _mm256_set1_epi32(0xFFFF));
    let second = _mm256_sllv_epi32(window, _mm256_sub_epi32(_mm256_set1_epi32(16), low));
    Some(_mm256_blend_epi16::<0b10101010>(window, second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[target_feature(enable = "avx2,bmi2,popcnt")]
    fn powers(v: i16) {
        let [a, b] = powers32(_mm256_set1_epi16(v)).map(|p| _mm256_xor_si256(p, _mm256_set1_epi32(1 << v)));
        assert!(_mm256_testz_si256(_mm256_or_si256(a, b), _mm256_set1_epi8(-1)) == 1, "{v}");
        assert!(v > 15 || spread(powers16(_mm256_set1_epi16(v))) == [(1 << v) as i16 as i32; LANES], "{v}");
    }

    #[test]
    fn powers_are_right_to_the_last() {
        if available() {
            // SAFETY: the features are there.
            (0..=24).for_each(|v| unsafe { powers(v) });
        }
    }
}
