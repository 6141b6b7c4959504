//! Interleaved range-asymmetric coding of bytes under static tables.
//!
//! Idea: rANS (Duda 2013) with 32-bit states and 16-bit words (Giesen 2014): decoding a symbol is one lookup and
//! one multiplication, and LANES states in turn keep them independent. Symbol `i` of a run belongs to lane
//! `i % LANES`; words are taken from one stream in the order of the symbols. States end at START, which damage
//! seldom meets.
//!
//! Layout of a coded run: LANES states (u32 little-endian), then the words (u16 little-endian).
//!
//! A table gives each of CONTEXTS contexts frequencies that sum to 2^BITS. A symbol of frequency 0 cannot be
//! coded; ESCAPE always can. Tables are made from weights with IEEE additions, multiplications and divisions
//! only, hence equal on every machine.

use super::Damage;
use super::plane::take;
use std::sync::OnceLock;

pub(super) const BITS: u32 = 11;
pub(super) const LANES: usize = 16;
pub(super) const CONTEXTS: usize = 64;
pub(super) const ESCAPE: u8 = 255;
pub(super) const START: u32 = 1 << 16;
const TOTAL: u32 = 1 << BITS;
pub(super) const SLOTS: usize = CONTEXTS << BITS;

pub(super) type Weights = [[f64; 256]; CONTEXTS];

/// Frequencies, and what decoding needs of them: for each slot `symbol | (frequency - 1) << 8 | offset << 20`.
#[derive(Debug)]
pub(super) struct Tables {
    frequency: Box<[[u16; 256]; CONTEXTS]>,
    start: Box<[[u16; 256]; CONTEXTS]>,
    slots: OnceLock<Box<[u32; SLOTS]>>,
}

impl Tables {
    pub fn new(weights: &Weights) -> Tables {
        let mut frequency = Box::new([[0; 256]; CONTEXTS]);
        let mut start = Box::new([[0; 256]; CONTEXTS]);
        for ((w, f), s) in weights.iter().zip(frequency.iter_mut()).zip(start.iter_mut()) {
            *f = normalise(w);
            debug_assert!(f[ESCAPE as usize] > 0);
            let mut at = 0;
            for (s, f) in s.iter_mut().zip(f) {
                *s = at;
                at += *f;
            }
        }
        Tables { frequency, start, slots: OnceLock::new() }
    }

    #[inline(always)]
    pub fn can_code(&self, context: u8, symbol: u8) -> bool {
        self.frequency[context as usize % CONTEXTS][symbol as usize] != 0
    }

    /// Bits that counts cost under these tables; what cannot be coded costs ESCAPE and `escape` bits.
    pub fn cost(&self, counts: &[[u32; 256]; CONTEXTS], escape: f64) -> f64 {
        let mut bits = 0.0;
        for (counts, frequency) in counts.iter().zip(self.frequency.iter()) {
            for (&n, &f) in counts.iter().zip(frequency).filter(|(n, _)| **n > 0) {
                let (f, extra) = if f > 0 { (f, 0.0) } else { (frequency[ESCAPE as usize], escape) };
                bits += n as f64 * (BITS as f64 - (f as f64).log2() + extra);
            }
        }
        bits
    }

    pub fn slots(&self) -> &[u32; SLOTS] {
        self.slots.get_or_init(|| {
            let mut slots = vec![0u32; SLOTS].into_boxed_slice();
            for (context, slots) in slots.chunks_exact_mut(TOTAL as usize).enumerate() {
                let mut at = 0;
                for (symbol, &f) in self.frequency[context].iter().enumerate() {
                    for offset in 0..f as u32 {
                        slots[at] = symbol as u32 | (f as u32 - 1) << 8 | offset << 20;
                        at += 1;
                    }
                }
            }
            slots.try_into().unwrap_or_else(|_| Box::new([0; SLOTS]))
        })
    }

    /// Codes `prefix`, then `body`, each from lane 0, as (context, symbol).
    pub fn encode(&self, prefix: &[(u8, u8)], body: &[(u8, u8)]) -> Coded {
        let mut states = [START; LANES];
        let mut words: Vec<u16> = Vec::with_capacity(body.len() + prefix.len());
        for run in [body, prefix] {
            for (i, &(context, symbol)) in run.iter().enumerate().rev() {
                let x = &mut states[i % LANES];
                let f = self.frequency[context as usize % CONTEXTS][symbol as usize] as u32;
                if *x as u64 >= (f as u64) << (32 - BITS) {
                    words.push(*x as u16);
                    *x >>= 16;
                }
                let (q, r) = (*x / f, *x % f);
                *x = (q << BITS) + r + self.start[context as usize % CONTEXTS][symbol as usize] as u32;
            }
        }
        words.reverse();
        Coded { states, words }
    }
}

/// A coded run.
pub(super) struct Coded {
    pub states: [u32; LANES],
    pub words: Vec<u16>,
}

impl Coded {
    pub fn write(&self, out: &mut Vec<u8>) {
        self.states.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
        self.words.iter().for_each(|w| out.extend_from_slice(&w.to_le_bytes()));
    }
}

/// Frequencies that sum to 2^BITS, near the weights. Too rare symbols get none and ESCAPE gets their share.
fn normalise(weights: &[f64; 256]) -> [u16; 256] {
    let sum: f64 = weights.iter().sum();
    let mut frequency = [0u16; 256];
    let mut rest = TOTAL as i32;
    let mut rare = weights[ESCAPE as usize];
    let scale = TOTAL as f64 / sum.max(1e-300);
    for (f, w) in frequency.iter_mut().zip(weights).take(ESCAPE as usize) {
        let share = w * scale;
        if share >= 0.6 {
            *f = (share + 0.5) as u16;
            rest -= *f as i32;
        } else {
            rare += w;
        }
    }
    let escape = ((rare * scale + 0.5) as i32).clamp(1, TOTAL as i32 / 2);
    rest -= escape;
    frequency[ESCAPE as usize] = escape as u16;
    // What rounding left over or took too much, from the largest, which notices least.
    while rest != 0 {
        let at = (0..256).rev().max_by_key(|&i| frequency[i]).unwrap_or(0);
        let change = if rest > 0 { rest } else { rest.max(-(frequency[at] as i32 / 4).max(1)) };
        frequency[at] = (frequency[at] as i32 + change) as u16;
        rest -= change;
    }
    frequency
}

/// Decoding states over words that were copied with room to read past their end.
pub(super) struct Reader {
    pub states: [u32; LANES],
    pub words: Vec<u16>,
    pub at: usize,
    count: usize,
}

impl Reader {
    /// Reads the states and `count` words off the front of `input`.
    pub fn new(input: &mut &[u8], count: usize) -> Result<Reader, Damage> {
        let mut states = [0; LANES];
        let bytes = take(input, 4 * LANES)?;
        for (x, b) in states.iter_mut().zip(bytes.chunks_exact(4)) {
            *x = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        }
        let bytes = take(input, count.checked_mul(2).ok_or(Damage("too many words"))?)?;
        let mut words = Vec::with_capacity(count + LANES);
        words.extend(bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])));
        words.resize(count + LANES, 0);
        Ok(Reader { states, words, at: 0, count })
    }

    /// The next `k` symbols, LANES at most, from lane 0 on. `offsets` are the contexts `<< BITS`, other bits masked.
    #[inline(always)]
    pub fn group(&mut self, slots: &[u32; SLOTS], offsets: &[u32; LANES], symbols: &mut [u32; LANES], k: usize) {
        let Some(words) = self.words.get(self.at..).and_then(|w| w.first_chunk::<LANES>()) else { return };
        let mut used = 0usize;
        for j in 0..k.min(LANES) {
            let x = self.states[j];
            let slot = slots[(offsets[j] as usize + (x & (TOTAL - 1)) as usize) % SLOTS];
            let y = ((slot >> 8 & 0xFFF) + 1).wrapping_mul(x >> BITS).wrapping_add(slot >> 20);
            let need = (y < START) as u32;
            self.states[j] = y << (16 * need) | (words[used % LANES] as u32 & need.wrapping_neg());
            used += need as usize;
            symbols[j] = slot & 0xFF;
        }
        self.at += used;
    }

    /// Have more words been read than there are? `group` reads at most LANES past them.
    #[inline(always)]
    pub fn overrun(&self) -> bool {
        self.at > self.count
    }

    pub fn finish(&self) -> Result<(), Damage> {
        if self.at == self.count && self.states.iter().all(|&x| x == START) {
            Ok(())
        } else {
            Err(Damage("entropy coder ends in a wrong state"))
        }
    }
}
