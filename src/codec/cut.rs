//! Which elements of a pruned child are zero, given the base's magnitudes.
//!
//! Idea: magnitude pruning (Han 2015) zeroes what is below a cut, of a tensor or of a row. The child was cut before
//! or after it moved a little from the base, so the base's magnitude decides all but a narrow band around the cut.
//! Magnitudes, read as integers, are sorted into CONTEXTS - 1 intervals of 2^shift around the cut, the outer ones
//! open, and zero bases into one more; each has its own odds of "zero". Outside the band these are sure and nothing
//! is coded. A mask that does not follow magnitudes has the same odds everywhere and costs its entropy.
//!
//! Layout: u8 shift (31 at most), + ROWS where each segment has its own cut; u32 cut (a magnitude); CONTEXTS levels of
//! i8; where ROWS, for each segment the i16 that its cut is above that one, in 2^shift; varint n, then n u16, the
//! elements that are the opposite of what they are said to be; the coins (coin.rs), one for each element. A level k >= 0 stands for odds of 1 - 2^(-1 - k/4), k < 0 for 2^(-1 + k/4), in 1/4096 and at
//! least 1; 127 and -127 are sure. All little-endian.

use super::Damage;
use super::coin::{self, GROUP, ONE};
use super::context::power;
use super::plane::{get_varint, put_varint, take};

/// Intervals on each side of the cut.
const SIDE: i32 = 8;
const CONTEXTS: usize = 2 * SIDE as usize + 1;
/// The context of bases that are zero.
const NOTHING: usize = CONTEXTS - 1;
const ROWS: u8 = 32;
const SURE: i8 = 127;
/// The least odds.
const STEEPEST: f64 = 44.0;
/// One element in so many is named rather than make all of its context unsure: that costs little and reads faster.
const RARE: u32 = 1000;

#[inline(always)]
fn context(magnitude: i32, cut: i32, shift: u32) -> usize {
    let interval = ((magnitude - cut) >> shift).clamp(-SIDE, SIDE - 1) + SIDE;
    if magnitude == 0 { NOTHING } else { interval as usize }
}

fn share(level: i8) -> u32 {
    if level.unsigned_abs() >= SURE as u8 {
        return if level > 0 { ONE } else { 0 };
    }
    let least = ((ONE as f64 * power(-4 - level.unsigned_abs() as i32) + 0.5) as u32).max(1);
    if level < 0 { least } else { ONE - least }
}

/// The level of `yes` out of `n` coins.
fn level(yes: u32, n: u32) -> i8 {
    let no = n - yes;
    if yes.min(no) * RARE <= n {
        return if yes > no { SURE } else { -SURE };
    }
    let k = (4.0 * ((n as f64 / yes.min(no) as f64).log2() - 1.0)).round().min(STEEPEST) as i8;
    if yes > no { k } else { -k }
}

/// Where each segment is cut.
struct Cuts {
    shift: u32,
    cut: i32,
    above: Option<Vec<i16>>,
}

impl Cuts {
    fn of(&self, segment: usize) -> i32 {
        let above = self.above.as_ref().and_then(|a| a.get(segment)).copied().unwrap_or(0);
        (self.cut as i64 + ((above as i64) << self.shift)).clamp(0, i32::MAX as i64) as i32
    }

    fn read(segments: usize, head: &[u8], input: &mut &[u8]) -> Result<Cuts, Damage> {
        let cut = i32::from_le_bytes([head[1], head[2], head[3], head[4] & 0x7F]);
        let above = match head[0] & ROWS {
            0 => None,
            _ => Some(take(input, 2 * segments)?.chunks_exact(2).map(|b| i16::from_le_bytes([b[0], b[1]])).collect()),
        };
        Ok(Cuts { shift: (head[0] & 31) as u32, cut, above })
    }

    fn contexts(&self, magnitudes: &[i32], ends: &[usize]) -> Vec<u8> {
        let mut contexts = vec![0; magnitudes.len()];
        let mut from = 0;
        for (i, &to) in ends.iter().enumerate() {
            let cut = self.of(i);
            for (c, &m) in contexts[from..to].iter_mut().zip(&magnitudes[from..to]) {
                *c = context(m, cut, self.shift) as u8;
            }
            from = to;
        }
        contexts
    }
}

fn cost(counts: &[[u32; 2]; CONTEXTS]) -> f64 {
    let part = |k: u32, n: u32| if k == 0 { 0.0 } else { k as f64 * (n as f64 / k as f64).log2() };
    counts.iter().map(|&[no, yes]| part(yes, no + yes) + part(no, no + yes)).sum()
}

/// Appends the mask, 1 where the child is zero. `ends`: of segments, multiples of GROUP but for the last.
pub(super) fn encode(mantissa: u32, magnitudes: &[i32], ends: &[usize], mask: &[u8], out: &mut Vec<u8>) {
    let cuts = find(mantissa, magnitudes, ends, mask);
    let contexts = cuts.contexts(magnitudes, ends);
    let mut counts = [[0; 2]; CONTEXTS];
    contexts.iter().zip(mask).for_each(|(&c, &yes)| counts[c as usize][yes as usize & 1] += 1);
    let levels = counts.map(|[no, yes]| level(yes, no + yes));
    out.push(cuts.shift as u8 | if cuts.above.is_some() { ROWS } else { 0 });
    out.extend_from_slice(&cuts.cut.to_le_bytes());
    out.extend(levels.iter().map(|&l| l as u8));
    cuts.above.iter().flatten().for_each(|a| out.extend_from_slice(&a.to_le_bytes()));
    let shares = levels.map(share);
    let (mut odd, mut coins) = (Vec::new(), Vec::new());
    for (i, (&c, &yes)) in contexts.iter().zip(mask).enumerate() {
        match shares[c as usize] {
            share if share > 0 && share < ONE => coins.push((i as u32, share as u16, yes != 0)),
            share if (share == ONE) != (yes != 0) => odd.push(i as u16),
            _ => {}
        }
    }
    put_varint(odd.len(), out);
    odd.iter().for_each(|i| out.extend_from_slice(&i.to_le_bytes()));
    coin::encode(&coins, out);
}

/// The cuts that make the mask cheapest: those of each segment only where one for all leaves much to say.
fn find(mantissa: u32, magnitudes: &[i32], ends: &[usize], mask: &[u8]) -> Cuts {
    let cut = best_cut(mantissa, magnitudes, mask);
    let (shift, bits) = best_shift(mantissa, magnitudes, ends, mask, |_| cut);
    let extra = 16.0 * ends.len() as f64;
    if bits > 0.05 * mask.len() as f64 + extra && ends.len() > 1 {
        let rows = row_cuts(magnitudes, ends, mask);
        let (shift, of_rows) = best_shift(mantissa, magnitudes, ends, mask, |i| rows[i]);
        if of_rows + extra < bits {
            let above = |c: &i32| ((*c as i64 - cut as i64) >> shift).clamp(i16::MIN as i64, i16::MAX as i64) as i16;
            return Cuts { shift, cut, above: Some(rows.iter().map(above).collect()) };
        }
    }
    Cuts { shift, cut, above: None }
}

/// The shift that makes the mask cheapest, and its bits. Intervals nest: what is outside of a wide band stays so.
fn best_shift(
    mantissa: u32,
    magnitudes: &[i32],
    ends: &[usize],
    mask: &[u8],
    cut: impl Fn(usize) -> i32,
) -> (u32, f64) {
    let mut near: Vec<(i32, u8)> = Vec::with_capacity(mask.len());
    let mut from = 0;
    for (i, &to) in ends.iter().enumerate() {
        let (cut, pairs) = (cut(i), magnitudes[from..to].iter().zip(&mask[from..to]));
        near.extend(pairs.filter(|(m, _)| **m > 0).map(|(&m, &yes)| (m - cut, yes)));
        from = to;
    }
    let mut outside = [[0u32; 2]; CONTEXTS];
    let mut best = (0, f64::MAX);
    for back in [3, 5, 7, 9, 11, 14] {
        let shift = mantissa.saturating_sub(back);
        let mut counts = outside;
        near.retain(|&(above, yes)| {
            let interval = above >> shift;
            let context = (interval.clamp(-SIDE, SIDE - 1) + SIDE) as usize;
            counts[context][yes as usize & 1] += 1;
            let inside = (-SIDE..SIDE).contains(&interval);
            outside[context][yes as usize & 1] += !inside as u32;
            inside
        });
        let bits = cost(&counts);
        if bits >= best.1 {
            break;
        }
        best = (shift, bits);
    }
    best
}

/// The cut that fewest elements are on the wrong side of: roughly, then finely near there.
fn best_cut(mantissa: u32, magnitudes: &[i32], mask: &[u8]) -> i32 {
    let coarse = mantissa.saturating_sub(6);
    let near = best_bin(magnitudes, mask, 0, coarse);
    let low = near.saturating_sub(1 << coarse).max(0);
    best_bin(magnitudes, mask, low, (coarse + 1).saturating_sub(12))
}

/// The border of BINS intervals of 2^shift from `low` on with the fewest elements on its wrong side.
fn best_bin(magnitudes: &[i32], mask: &[u8], low: i32, shift: u32) -> i32 {
    const BINS: usize = 1 << 14;
    let mut bins = vec![0i32; BINS];
    for (&m, &yes) in magnitudes.iter().zip(mask).filter(|(m, _)| **m > 0) {
        bins[((m - low).max(0) >> shift).min(BINS as i32 - 1) as usize] += 2 * yes as i32 - 1;
    }
    let (mut sum, mut best) = (0, (0, 0));
    for (i, b) in bins.iter().enumerate() {
        sum += b;
        if sum > best.0 {
            best = (sum, i as i64 + 1);
        }
    }
    (low as i64 + (best.1 << shift)).min(i32::MAX as i64) as i32
}

/// Each segment's own cut: half way between the two elements around it.
fn row_cuts(magnitudes: &[i32], ends: &[usize], mask: &[u8]) -> Vec<i32> {
    let mut from = 0;
    let cut = |&to: &usize| {
        let pairs = magnitudes[from..to].iter().zip(&mask[from..to]);
        let mut row: Vec<(i32, u8)> = pairs.map(|(&m, &yes)| (m, yes)).filter(|p| p.0 > 0).collect();
        from = to;
        row.sort_unstable();
        let (mut sum, mut best) = (0, (0, 0));
        for (i, (_, yes)) in row.iter().enumerate() {
            sum += 2 * *yes as i32 - 1;
            if sum > best.0 {
                best = (sum, i + 1);
            }
        }
        match (best.1.checked_sub(1).map(|i| row[i].0), row.get(best.1)) {
            (None, _) => 0,
            (Some(_), None) => i32::MAX,
            (Some(below), Some(above)) => below + (above.0 - below) / 2,
        }
    };
    ends.iter().map(cut).collect()
}

/// The mask of the elements that have these magnitudes, 1 where the child is zero.
pub(super) fn decode(magnitudes: &[i32], ends: &[usize], input: &mut &[u8]) -> Result<Vec<u8>, Damage> {
    let head = take(input, 5 + CONTEXTS)?;
    let mut shares = [0; CONTEXTS];
    shares.iter_mut().zip(&head[5..]).for_each(|(s, &l)| *s = share(l as i8));
    let cuts = Cuts::read(ends.len(), head, input)?;
    let odd = get_varint(input)?;
    let odd = take(input, 2 * odd)?;
    let mut coins = coin::Reader::new(input)?;
    let mut mask = vec![0; magnitudes.len()];
    let mut from = 0;
    for (i, &to) in ends.iter().enumerate() {
        let row = Row::new(cuts.of(i), cuts.shift, &shares);
        for (m, out) in magnitudes[from..to].chunks(GROUP).zip(mask[from..to].chunks_mut(GROUP)) {
            row.group(m, &mut coins, out);
        }
        from = to;
    }
    coins.finish()?;
    for i in odd.chunks_exact(2) {
        let at =
            mask.get_mut(u16::from_le_bytes([i[0], i[1]]) as usize).ok_or(Damage("element is not in the block"))?;
        *at ^= 1;
    }
    Ok(mask)
}

/// A segment's odds, and where they are sure: yes below `low`, no above `top`.
struct Row<'a> {
    cut: i32,
    shift: u32,
    shares: &'a [u32; CONTEXTS],
    low: i32,
    top: i32,
}

impl<'a> Row<'a> {
    fn new(cut: i32, shift: u32, shares: &'a [u32; CONTEXTS]) -> Row<'a> {
        let of_cut = &shares[..NOTHING];
        let zeros = of_cut.iter().take_while(|s| **s == ONE).count();
        let kept = of_cut.iter().rev().take_while(|s| **s == 0).count();
        let border = |context: usize| cut as i64 + ((context as i64 - SIDE as i64) << shift);
        let low = if zeros == NOTHING { i64::MAX } else { border(zeros) };
        let low = if zeros == 0 { 0 } else { low.clamp(0, i32::MAX as i64) as i32 };
        let top = if kept == NOTHING { -1 } else { border(NOTHING - kept) - 1 };
        let top = if kept == 0 { i32::MAX } else { top.clamp(-1, i32::MAX as i64) as i32 };
        Row { cut, shift, shares, low, top }
    }

    #[inline(always)]
    fn group(&self, magnitudes: &[i32], coins: &mut coin::Reader, out: &mut [u8]) {
        if let (Some(m), Some(out)) = (magnitudes.first_chunk::<GROUP>(), out.first_chunk_mut::<GROUP>()) {
            // Masks of all ones or zeros rather than branches, so that this vectorises.
            let mask = |yes: bool| (yes as i32).wrapping_neg();
            let nothing = self.shares[NOTHING];
            let (surely, unsure_nothing) = (mask(nothing == ONE), mask(nothing != ONE && nothing != 0));
            let doubt: [i32; GROUP] = std::array::from_fn(|j| {
                let (zero, below) = (mask(m[j] == 0), mask(m[j] < self.low));
                zero & unsure_nothing | !zero & !below & mask(m[j] <= self.top)
            });
            *out = std::array::from_fn(|j| {
                let (zero, below) = (mask(m[j] == 0), mask(m[j] < self.low));
                (zero & surely | !zero & below) as u8 & 1
            });
            let doubts = doubt.iter().sum::<i32>().unsigned_abs() as usize;
            if doubts <= GROUP / 4 {
                for j in (0..GROUP * (doubts > 0) as usize).filter(|&j| doubt[j] != 0) {
                    out[j] = coins.one(j, self.shares[context(m[j], self.cut, self.shift)]);
                }
                return;
            }
        }
        let mut shares = [0; GROUP];
        for (s, &m) in shares.iter_mut().zip(magnitudes) {
            *s = self.shares[context(m, self.cut, self.shift)];
        }
        let yes = coins.group(&shares);
        out.copy_from_slice(&yes[..out.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::tests::Rng;

    #[test]
    fn every_mask_comes_back() {
        let mut rng = Rng(9);
        for case in 0..2000 {
            let n = rng.below(400);
            let bits = 1 + rng.below(31);
            let grain = rng.below(bits);
            let spread = 1 + rng.below(1 << grain);
            let magnitudes: Vec<i32> =
                (0..n).map(|_| ((rng.next() >> 33) as usize % (1 << bits) / spread * spread) as i32).collect();
            let edge = rng.below(1 << bits) as i32;
            let (noise, by_row) = (rng.below(5), rng.below(2) * 100);
            let mask: Vec<u8> = (0..n)
                .map(|i| {
                    ((magnitudes[i] < edge.saturating_add((i / 48 * by_row) as i32)) ^ (rng.below(10) < noise)) as u8
                })
                .collect();
            let mut ends: Vec<usize> = (1..=n / 48).map(|i| 48 * i).filter(|e| *e < n).collect();
            ends.push(n);
            let mut encoded = Vec::new();
            encode(rng.below(24) as u32, &magnitudes, &ends, &mask, &mut encoded);
            let mut input = &encoded[..];
            assert_eq!(decode(&magnitudes, &ends, &mut input).map(|m| m == mask), Ok(true), "{case}");
            assert!(input.is_empty());
        }
    }
}
