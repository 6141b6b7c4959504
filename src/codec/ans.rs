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

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;

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

/// Bytes that tables take once they have decoded.
pub(super) const MEMORY: u64 = (2 * 2 * 256 * CONTEXTS + 4 * SLOTS) as u64;

pub(super) type Weights = [[f64; 256]; CONTEXTS];

/// Frequencies, and what decoding needs of them: for each slot `offset | frequency << 12 | number << 24`,
/// where `number`, signed, is what the symbol is the zigzag of.
#[derive(Debug)]
pub(super) struct Tables {
    frequency: Box<[[u16; 256]; CONTEXTS]>,
    start: Box<[[u16; 256]; CONTEXTS]>,
    slots: OnceLock<Box<[u32; SLOTS]>>,
    steps: OnceLock<Box<[[Step; 256]; CONTEXTS]>>,
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
        Tables { frequency, start, slots: OnceLock::new(), steps: OnceLock::new() }
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
                        slots[at] = offset | (f as u32) << 12 | number(symbol as u8) << 24;
                        at += 1;
                    }
                }
            }
            slots.try_into().unwrap_or_else(|_| Box::new([0; SLOTS]))
        })
    }

    /// What encoding needs of a symbol.
    fn steps(&self) -> &[[Step; 256]; CONTEXTS] {
        self.steps.get_or_init(|| {
            let mut steps = vec![[Step::default(); 256]; CONTEXTS].into_boxed_slice();
            for ((steps, frequency), start) in steps.iter_mut().zip(self.frequency.iter()).zip(self.start.iter()) {
                for ((step, &f), &s) in steps.iter_mut().zip(frequency).zip(start) {
                    *step = Step::new(f as u32, s as u32);
                }
            }
            steps.try_into().unwrap_or_else(|_| Box::new([[Step::default(); 256]; CONTEXTS]))
        })
    }

    /// Codes `prefix`, then `body`, each from lane 0, of joined contexts and symbols.
    pub fn encode(&self, prefix: &[u16], body: &[u16]) -> Coded {
        let steps = self.steps();
        let mut states = [START; LANES];
        // Filled from its end; one word more than can be, since a word is written before it is known to count.
        let mut words = vec![0u16; body.len() + prefix.len() + 1];
        let mut at = words.len() - 1;
        for run in [body, prefix] {
            let whole = run.len() - run.len() % LANES;
            for group in [&run[whole..]].into_iter().chain(run[..whole].rchunks(LANES)) {
                for (x, &s) in states.iter_mut().zip(group).rev() {
                    let step = &steps[(s >> 8) as usize % CONTEXTS][s as usize & 0xFF];
                    let full = *x > step.last;
                    words[at] = *x as u16;
                    at -= full as usize;
                    *x = step.advance(*x >> (16 * full as u32));
                }
            }
        }
        words.drain(..=at);
        Coded { states, words }
    }
}

/// A context and its symbol as one number.
#[inline(always)]
pub(super) fn join(context: u8, symbol: u8) -> u16 {
    (context as u16) << 8 | symbol as u16
}

/// What a symbol is the zigzag of.
#[inline(always)]
fn number(symbol: u8) -> u32 {
    (symbol >> 1) as u32 ^ (symbol as u32 & 1).wrapping_neg()
}

/// One symbol's division by its frequency f, as a multiplication by 2^64/f rounded up: exact for states below
/// 2^32 and f up to 2^BITS, for the error is less than x/2^64 < 1/f.
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    reciprocal: u64,
    /// The largest state that takes the symbol without shedding a word.
    last: u32,
    bias: u16,
    rest: u16,
}

impl Step {
    fn new(f: u32, start: u32) -> Step {
        let last = (((f as u64) << (32 - BITS)).saturating_sub(1)) as u32;
        let (bias, rest) = (start as u16, TOTAL.saturating_sub(f) as u16);
        match f {
            // (x (2^64 - 1)) >> 64 = x - 1; the bias makes up for it.
            0 | 1 => Step { reciprocal: u64::MAX, last, bias: bias + TOTAL as u16 - 1, rest: TOTAL as u16 - 1 },
            _ => Step { reciprocal: u64::MAX / f as u64 + 1, last, bias, rest },
        }
    }

    /// (x / f) << BITS | start + x % f.
    #[inline(always)]
    fn advance(&self, x: u32) -> u32 {
        let q = ((x as u128 * self.reciprocal as u128) >> 64) as u32;
        x.wrapping_add(self.bias as u32).wrapping_add(q.wrapping_mul(self.rest as u32))
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
        let from = out.len();
        out.resize(from + 2 * self.words.len(), 0);
        out[from..].chunks_exact_mut(2).zip(&self.words).for_each(|(o, w)| o.copy_from_slice(&w.to_le_bytes()));
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

    /// The next `k` symbols, LANES at most, from lane 0 on, as the small signed numbers that they are the zigzag of.
    /// `offsets` are the contexts `<< BITS`, other bits masked.
    #[inline(always)]
    pub fn group(&mut self, slots: &[u32; SLOTS], offsets: &[u32; LANES], symbols: &mut [i32; LANES], k: usize) {
        match k < LANES {
            true => self.some(slots, offsets, symbols, k),
            false => self.some(slots, offsets, symbols, LANES),
        }
    }

    #[inline(always)]
    fn some(&mut self, slots: &[u32; SLOTS], offsets: &[u32; LANES], symbols: &mut [i32; LANES], k: usize) {
        let Some(words) = self.words.get(self.at..).and_then(|w| w.first_chunk::<LANES>()) else { return };
        let mut used = 0usize;
        for j in 0..k {
            let x = self.states[j];
            let slot = slots[(offsets[j] as usize + (x & (TOTAL - 1)) as usize) % SLOTS];
            let y = (slot >> 12 & 0xFFF).wrapping_mul(x >> BITS).wrapping_add(slot & 0xFFF);
            let need = (y < START) as u32;
            self.states[j] = y << (16 * need) | (words[used % LANES] as u32 & need.wrapping_neg());
            used += need as usize;
            symbols[j] = slot as i32 >> 24;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn division_is_exact() {
        for f in 1..=TOTAL {
            let step = Step::new(f, 3);
            let limit = (f as u64) << (32 - BITS);
            let edges = [1u64, 2, f as u64, START as u64, limit / 2, limit - 1];
            for x in edges.into_iter().flat_map(|x| [x.saturating_sub(1), x, x + 1]).filter(|x| (1..limit).contains(x))
            {
                let x = x as u32;
                assert_eq!(step.advance(x), ((x / f) << BITS).wrapping_add(x % f + 3), "{x} / {f}");
            }
        }
    }
}
