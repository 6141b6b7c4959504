//! Yes or no, coded at odds that both sides know.
//!
//! Idea: rANS (ans.rs) over two symbols needs no table: the slot is below the share of "yes" or it is not. A coin
//! that is sure (share 0 or ONE) leaves the state as it was, so runs of such need not be coded at all.
//!
//! Layout: varint words; LANES states (u32 little-endian); the words (u16 little-endian). Coin `i` belongs to lane
//! `i % LANES`; words are taken in the order of the coins; states end at START.

use super::Damage;
use super::plane::{get_varint, put_varint, take};

const BITS: u32 = 12;
/// The share of a sure yes.
pub(super) const ONE: u32 = 1 << BITS;
const LANES: usize = 4;
/// Coins taken at once.
pub(super) const GROUP: usize = 16;
const START: u32 = 1 << 16;

/// Codes coins of (number, share of yes, yes), those left out being sure.
pub(super) fn encode(coins: &[(u32, u16, bool)], out: &mut Vec<u8>) {
    let mut states = [START; LANES];
    let mut words = Vec::new();
    for &(i, share, yes) in coins.iter().rev() {
        let x = &mut states[i as usize % LANES];
        let (start, size) = if yes { (0, share as u32) } else { (share as u32, ONE - share as u32) };
        if *x >= size << (32 - BITS) {
            words.push(*x as u16);
            *x >>= 16;
        }
        *x = (*x / size) << BITS | (*x % size + start);
    }
    put_varint(words.len(), out);
    states.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
    words.iter().rev().for_each(|w| out.extend_from_slice(&w.to_le_bytes()));
}

pub(super) struct Reader {
    states: [u32; LANES],
    /// With GROUP zeros after them.
    words: Vec<u16>,
    at: usize,
    count: usize,
}

impl Reader {
    pub fn new(input: &mut &[u8]) -> Result<Reader, Damage> {
        let count = get_varint(input)?;
        let mut states = [0; LANES];
        for (x, b) in states.iter_mut().zip(take(input, 4 * LANES)?.chunks_exact(4)) {
            *x = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        }
        let bytes = take(input, 2 * count)?;
        let mut words = Vec::with_capacity(count + GROUP);
        words.extend(bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])));
        words.resize(count + GROUP, 0);
        Ok(Reader { states, words, at: 0, count })
    }

    /// The next coins, 1 for yes, of shares up to ONE; no after damage.
    #[inline(always)]
    pub fn group(&mut self, shares: &[u32; GROUP]) -> [u8; GROUP] {
        let mut yes = [0; GROUP];
        let Some(words) = self.words.get(self.at..).and_then(|w| w.first_chunk::<GROUP>()) else { return yes };
        let mut used = 0;
        for j in 0..GROUP {
            let (hit, need) = step(&mut self.states[j % LANES], shares[j], words[used % GROUP]);
            used += need as usize;
            yes[j] = hit;
        }
        self.at += used;
        yes
    }

    /// The next coin that is not sure, 1 for yes; `i` tells its lane.
    #[inline(always)]
    pub fn one(&mut self, i: usize, share: u32) -> u8 {
        let Some(&word) = self.words.get(self.at) else { return 0 };
        let (hit, need) = step(&mut self.states[i % LANES], share, word);
        self.at += need as usize;
        hit
    }

    pub fn finish(&self) -> Result<(), Damage> {
        match self.at == self.count && self.states.iter().all(|&x| x == START) {
            true => Ok(()),
            false => Err(Damage("coins end in a wrong state")),
        }
    }
}

/// Takes a coin off a state, and `word` where that is needed: (yes, needed).
#[inline(always)]
fn step(state: &mut u32, share: u32, word: u16) -> (u8, bool) {
    let x = *state;
    let low = x & (ONE - 1);
    let hit = low < share;
    let (start, size) = if hit { (0, share) } else { (share, ONE - share) };
    let y = size.wrapping_mul(x >> BITS).wrapping_add(low).wrapping_sub(start);
    let need = y < START;
    *state = y << (16 * need as u32) | (word as u32 & (need as u32).wrapping_neg());
    (hit as u8, need)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::tests::Rng;

    #[test]
    fn coins_come_back_near_their_entropy() {
        let mut rng = Rng(5);
        let shares = [0, 1, 400, 2048, 4000, 4095, ONE];
        let mut coin = |_| {
            let share = shares[rng.below(shares.len())];
            (share as u16, rng.below(ONE as usize) < share as usize)
        };
        let coins: Vec<(u16, bool)> = (0..16 * 1000).map(&mut coin).collect();
        let mut encoded = Vec::new();
        let unsure = |c: &(u32, u16, bool)| !matches!(c.1 as u32, 0 | ONE);
        let numbered = coins.iter().enumerate().map(|(i, c)| (i as u32, c.0, c.1)).filter(unsure);
        encode(&numbered.collect::<Vec<_>>(), &mut encoded);
        let mut input = &encoded[..];
        let mut reader = Reader::new(&mut input).unwrap();
        for group in coins.chunks_exact(GROUP) {
            let yes = reader.group(&std::array::from_fn(|j| group[j].0 as u32));
            assert!(yes.iter().zip(group).all(|(y, c)| (*y == 1) == c.1));
        }
        reader.finish().unwrap();
        let part = |c: &(u16, bool)| if c.1 { c.0 as f64 } else { (ONE - c.0 as u32) as f64 };
        let bits: f64 = coins.iter().map(|c| BITS as f64 - part(c).log2()).sum();
        assert!((encoded.len() as f64) < bits / 8.0 * 1.002 + 40.0);
    }
}
