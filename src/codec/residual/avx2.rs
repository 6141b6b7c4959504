//! The groups of a segment on AVX2: what decode.rs does, eight elements at a time, to the same bytes.
//!
//! The only unsafe code of the codec. Memory is touched through pointers only with an argument beside it;
//! they rest on what `segment` checks before each group: no word and no raw bit has been read past the end, and
//! both buffers have room for one group more (ans.rs: LANES words; bits.rs: SPARE bytes).
//! 16-bit elements are computed in the upper half of 32-bit lanes, whose wrapping is then theirs.

use super::decode::Decoder;
use super::*;
use crate::codec::Damage;
use crate::codec::ans::{BITS, SLOTS, START};
use crate::codec::bits::SPARE;
use crate::codec::context::{T_COUNT, T_OFFSET, ZERO};
use std::arch::x86_64::*;

pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2") && is_x86_feature_detected!("popcnt")
}

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
        2 => unsafe { segment::<W, FLOAT, true>(d, row, base, out) },
        4 => unsafe { segment::<W, FLOAT, false>(d, row, base, out) },
        _ => Ok(0),
    }
}

/// For each mask of lanes that need a word: which of the next words each gets.
static ORDER: [[u32; 8]; 256] = {
    let mut order = [[0; 8]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut lane, mut next) = (0, 0);
        while lane < 8 {
            order[mask][lane] = next;
            next += (mask >> lane & 1) as u32;
            lane += 1;
        }
        mask += 1;
    }
    order
};

/// A segment's row, spread over lanes.
struct Lanes<'a> {
    map: &'a [u32; T_COUNT],
    slots: &'a [u32; SLOTS],
    moves: Option<&'a [i32; 1024]>,
    exponent: (__m128i, __m256i),
    stairs: (__m128i, __m256i),
    scale: __m256i,
    step: __m256i,
}

/// Decodes the whole groups at the front of a segment, of 4-byte elements (or 2 where `HALF`); returns how many bytes.
#[target_feature(enable = "avx2,bmi2,popcnt")]
pub(super) fn segment<W: Word, const FLOAT: bool, const HALF: bool>(
    d: &mut Decoder,
    row: &Row,
    base: &[u8],
    out: &mut [u8],
) -> Result<usize, Damage> {
    assert!(W::BYTES == if HALF { 2 } else { 4 });
    let chunk = LANES * W::BYTES;
    let lanes = Lanes {
        map: row.map,
        slots: d.slots,
        moves: row.stairs.map(|f| f.moves),
        exponent: (_mm_cvtsi32_si128(row.exponent.shift as i32), _mm256_set1_epi32(row.exponent.mask as i32)),
        stairs: row.stairs.map_or((_mm_setzero_si128(), _mm256_setzero_si256()), |f| {
            (_mm_cvtsi32_si128(f.shift as i32), _mm256_set1_epi32(f.mask as i32))
        }),
        scale: _mm256_set1_epi32(row.scale + T_OFFSET),
        step: _mm256_set1_epi32(row.step),
    };
    // SAFETY: `states` is LANES = 16 words of 4 bytes, two vectors; unaligned access is allowed.
    let mut x = unsafe { [load(d.reader.states.as_ptr()), load(d.reader.states.as_ptr().add(8))] };
    let mut done = 0;
    for (base, out) in base.chunks_exact(chunk).zip(out.chunks_exact_mut(chunk)) {
        d.check()?;
        assert!(d.reader.words.len() >= d.reader.at + LANES && d.noise.bytes.len() >= (d.noise.at >> 3) + SPARE);
        let (a, sa) = lanes.eight::<FLOAT, HALF>(d, &mut x[0], &base[..chunk / 2]);
        let (b, sb) = lanes.eight::<FLOAT, HALF>(d, &mut x[1], &base[chunk / 2..]);
        // SAFETY: `out` is LANES elements: 32 bytes where HALF, else 64.
        unsafe {
            if HALF {
                let packed = _mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16));
                store(out.as_mut_ptr(), _mm256_permute4x64_epi64(packed, 0b11011000));
            } else {
                store(out.as_mut_ptr(), a);
                store(out.as_mut_ptr().add(32), b);
            }
        }
        let limit = _mm256_set1_epi32(ZERO as i32 - 1);
        let special = _mm256_or_si256(_mm256_cmpgt_epi32(sa, limit), _mm256_cmpgt_epi32(sb, limit));
        if _mm256_movemask_epi8(special) != 0 {
            let mut symbols = [0u32; LANES];
            // SAFETY: `symbols` is two vectors long.
            unsafe {
                store(symbols.as_mut_ptr().cast(), sa);
                store(symbols.as_mut_ptr().add(8).cast(), sb);
            }
            let bases = std::array::from_fn(|j| W::load(&base[j * W::BYTES..]));
            d.specials::<W>(&symbols, &bases, out)?;
        }
        done += chunk;
    }
    // SAFETY: as when they were loaded.
    unsafe {
        store(d.reader.states.as_mut_ptr().cast(), x[0]);
        store(d.reader.states.as_mut_ptr().add(8).cast(), x[1]);
    }
    d.check()?;
    Ok(done)
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load(p: *const u32) -> __m256i {
    // SAFETY: the caller gives 32 readable bytes.
    unsafe { _mm256_loadu_si256(p.cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store(p: *mut u8, v: __m256i) {
    // SAFETY: the caller gives 32 writable bytes.
    unsafe { _mm256_storeu_si256(p.cast(), v) }
}

impl Lanes<'_> {
    /// Eight elements (in the upper halves where HALF) and their symbols. `segment` has checked the buffers.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,popcnt")]
    fn eight<const FLOAT: bool, const HALF: bool>(
        &self,
        d: &mut Decoder,
        x: &mut __m256i,
        base: &[u8],
    ) -> (__m256i, __m256i) {
        assert!(base.len() == if HALF { 16 } else { 32 });
        // SAFETY: `base` is as long as the load, by the assertion.
        let p = unsafe {
            if HALF { _mm256_cvtepu16_epi32(_mm_loadu_si128(base.as_ptr().cast())) } else { load(base.as_ptr().cast()) }
        };
        let e = _mm256_and_si256(_mm256_srl_epi32(p, self.exponent.0), self.exponent.1);
        let e = _mm256_max_epi32(e, _mm256_set1_epi32(1));
        let t = _mm256_sub_epi32(self.scale, _mm256_mullo_epi32(e, self.step));
        let t = _mm256_min_epi32(_mm256_max_epi32(t, _mm256_setzero_si256()), _mm256_set1_epi32(T_COUNT as i32 - 1));
        // SAFETY: 0 <= t < T_COUNT, the length of the map.
        let entry = unsafe { _mm256_i32gather_epi32::<4>(self.map.as_ptr().cast(), t) };
        let slot = self.slot(x, _mm256_and_si256(entry, _mm256_set1_epi32(SLOTS as i32 - 1)), d);
        let symbol = _mm256_and_si256(slot, _mm256_set1_epi32(0xFF));
        let special = _mm256_cmpgt_epi32(symbol, _mm256_set1_epi32(ZERO as i32 - 1));
        let noise = _mm256_andnot_si256(special, _mm256_srli_epi32::<24>(entry));
        let low = low_bits(d, noise);
        let one = _mm256_set1_epi32(1);
        let odd = _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_and_si256(symbol, one));
        let h = _mm256_xor_si256(_mm256_srli_epi32::<1>(symbol), odd);
        let mut r = _mm256_add_epi32(_mm256_sllv_epi32(h, noise), low);
        if let Some(moves) = self.moves {
            let at = _mm256_and_si256(_mm256_srl_epi32(p, self.stairs.0), self.stairs.1);
            let at = _mm256_and_si256(at, _mm256_set1_epi32(1023));
            // SAFETY: 0 <= at < 1024, the length of the table.
            r = _mm256_add_epi32(r, unsafe { _mm256_i32gather_epi32::<4>(moves.as_ptr(), at) });
        }
        let mut b = p;
        if HALF {
            (b, r) = (_mm256_slli_epi32::<16>(b), _mm256_slli_epi32::<16>(r));
        }
        if !FLOAT {
            return (_mm256_add_epi32(b, r), symbol);
        }
        let negative = _mm256_srai_epi32::<31>(b);
        let r = _mm256_sub_epi32(_mm256_xor_si256(r, negative), negative);
        (flip(_mm256_add_epi32(flip(b), r)), symbol)
    }

    /// One rANS step of eight lanes; `offsets` are multiples of 2^BITS below SLOTS.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,popcnt")]
    fn slot(&self, x: &mut __m256i, offsets: __m256i, d: &mut Decoder) -> __m256i {
        let low = _mm256_and_si256(*x, _mm256_set1_epi32((1 << BITS) - 1));
        let at = _mm256_and_si256(_mm256_add_epi32(offsets, low), _mm256_set1_epi32(SLOTS as i32 - 1));
        // SAFETY: 0 <= at < SLOTS, a power of two, the length of the table.
        let slot = unsafe { _mm256_i32gather_epi32::<4>(self.slots.as_ptr().cast(), at) };
        let f = _mm256_and_si256(_mm256_srli_epi32::<8>(slot), _mm256_set1_epi32(0xFFF));
        let f = _mm256_add_epi32(f, _mm256_set1_epi32(1));
        let y = _mm256_mullo_epi32(f, _mm256_srli_epi32::<{ BITS as i32 }>(*x));
        let y = _mm256_add_epi32(y, _mm256_srli_epi32::<20>(slot));
        const { assert!(START == 1 << 16) };
        let need = _mm256_cmpeq_epi32(_mm256_srli_epi32::<16>(y), _mm256_setzero_si256());
        let mask = _mm256_movemask_ps(_mm256_castsi256_ps(need)) as usize & 0xFF;
        // SAFETY: `segment` saw LANES words from `at` on; the first call took at most 8 of them, so 8 are left.
        let words = unsafe { _mm_loadu_si128(d.reader.words.as_ptr().add(d.reader.at).cast()) };
        // SAFETY: each row of ORDER is eight u32.
        let order = unsafe { load(ORDER[mask].as_ptr()) };
        let words = _mm256_permutevar8x32_epi32(_mm256_cvtepu16_epi32(words), order);
        let fed = _mm256_or_si256(_mm256_slli_epi32::<16>(y), words);
        *x = _mm256_blendv_epi8(y, fed, need);
        d.reader.at += mask.count_ones() as usize;
        slot
    }
}

/// The order map of eight words.
#[inline]
#[target_feature(enable = "avx2")]
fn flip(v: __m256i) -> __m256i {
    _mm256_xor_si256(v, _mm256_srli_epi32::<1>(_mm256_srai_epi32::<31>(v)))
}

/// The next `noise` raw bits of each lane, at most 24.
#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
fn low_bits(d: &mut Decoder, noise: __m256i) -> __m256i {
    let ends = _mm256_add_epi32(noise, _mm256_slli_si256::<4>(noise));
    let ends = _mm256_add_epi32(ends, _mm256_slli_si256::<8>(ends));
    let third = _mm256_permutevar8x32_epi32(ends, _mm256_set1_epi32(3));
    let ends = _mm256_add_epi32(ends, _mm256_blend_epi32::<0xF0>(_mm256_setzero_si256(), third));
    let first = _mm256_set1_epi32((d.noise.at & 7) as i32);
    let at = _mm256_add_epi32(first, _mm256_sub_epi32(ends, noise));
    // SAFETY: `segment` saw SPARE = 64 bytes from the group's first bit on. Lanes need at most 24 bits each (the map
    // says so), so the last of 16 starts at most 7 + 15 * 24 bits, 45 bytes, after it and 4 bytes are read.
    let windows = unsafe {
        let bytes = d.noise.bytes.as_ptr().add(d.noise.at >> 3);
        _mm256_i32gather_epi32::<1>(bytes.cast(), _mm256_srli_epi32::<3>(at))
    };
    let low = _mm256_srlv_epi32(windows, _mm256_and_si256(at, _mm256_set1_epi32(7)));
    let ones = _mm256_sub_epi32(_mm256_sllv_epi32(_mm256_set1_epi32(1), noise), _mm256_set1_epi32(1));
    d.noise.at += _mm256_extract_epi32::<7>(ends) as usize;
    _mm256_and_si256(low, ones)
}
