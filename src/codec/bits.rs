//! Runs of few bits, lowest first, in bytes.

use super::ans::LANES;

/// Room to read past the end.
pub(super) const SPARE: usize = 64;

pub(super) struct BitWriter {
    bytes: Vec<u8>,
    /// Whole bytes written; the bits after them are in `held`.
    at: usize,
    held: u64,
    count: u32,
}

impl BitWriter {
    /// Room for so many bytes.
    pub fn new(bytes: usize) -> BitWriter {
        BitWriter { bytes: vec![0; bytes + 16], at: 0, held: 0, count: 0 }
    }

    /// At most 56 bits, the others zero. What finds no room is lost.
    #[inline(always)]
    pub fn put(&mut self, value: u64, bits: u32) {
        self.held |= value << self.count;
        self.count += bits;
        if let Some(window) = self.bytes.get_mut(self.at..self.at + 8) {
            window.copy_from_slice(&self.held.to_le_bytes());
        }
        self.at += (self.count >> 3) as usize;
        self.held >>= self.count & !7;
        self.count &= 7;
    }

    /// The first `k` values, each as `put`, of at most 28 bits.
    #[inline(always)]
    pub fn put_group<const N: usize>(&mut self, values: &[u32; N], bits: &[u32; N], k: usize) {
        const { assert!(N.is_multiple_of(2)) };
        let mut local = BitWriter { bytes: std::mem::take(&mut self.bytes), ..*self };
        if k < N {
            (0..k).for_each(|j| local.put(values[j] as u64, bits[j]));
        } else {
            (0..N)
                .step_by(2)
                .for_each(|j| local.put(values[j] as u64 | (values[j + 1] as u64) << bits[j], bits[j] + bits[j + 1]));
        }
        *self = local;
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.truncate(self.at + (self.count > 0) as usize);
        self.bytes
    }
}

/// Reads past the end give zeros; `overrun` tells.
pub(super) struct BitReader {
    pub bytes: Vec<u8>,
    pub at: usize,
    count: usize,
}

impl BitReader {
    pub fn new(bytes: &[u8]) -> BitReader {
        let mut copy = Vec::with_capacity(bytes.len() + SPARE);
        copy.extend_from_slice(bytes);
        copy.resize(bytes.len() + SPARE, 0);
        BitReader { bytes: copy, at: 0, count: bytes.len() * 8 }
    }

    /// The next values, of at most 28 bits each.
    #[inline(always)]
    pub fn take_group(&mut self, widths: &[u32; LANES]) -> [u32; LANES] {
        const { assert!(LANES * 28 + 7 <= 8 * (SPARE - 7) && LANES.is_multiple_of(2)) };
        let mut values = [0; LANES];
        let Some(bytes) = self.bytes.get(self.at >> 3..).and_then(|b| b.first_chunk::<SPARE>()) else {
            self.at += widths.iter().sum::<u32>() as usize;
            return values;
        };
        let mut at = self.at as u32 & 7;
        for j in (0..LANES).step_by(2) {
            let from = (at as usize >> 3).min(SPARE - 8);
            let window = bytes[from..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b)) >> (at & 7);
            values[j] = window as u32 & ((1 << widths[j]) - 1);
            values[j + 1] = (window >> widths[j]) as u32 & ((1 << widths[j + 1]) - 1);
            at += widths[j] + widths[j + 1];
        }
        self.at += (at - (self.at as u32 & 7)) as usize;
        values
    }

    #[inline(always)]
    pub fn overrun(&self) -> bool {
        self.at > self.count
    }
}
