//! Runs of few bits, lowest first, in bytes.

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

    /// At most 25 bits.
    #[inline(always)]
    pub fn take(&mut self, bits: u32) -> u32 {
        let window = self.bytes.get(self.at >> 3..).and_then(|r| r.first_chunk::<4>()).unwrap_or(&[0; 4]);
        let v = u32::from_le_bytes(*window) >> (self.at & 7) & ((1u32 << bits) - 1);
        self.at += bits as usize;
        v
    }

    #[inline(always)]
    pub fn overrun(&self) -> bool {
        self.at > self.count
    }
}
