//! A block of floats on its own, as magnitudes to a row's scale.
//!
//! Idea: sign and low mantissa are noise; what a weight's exponent and first two mantissa bits hold, given the
//! usual size in its row, is 0.12 bits less than its exponent alone (measured; ZipNN 2024 codes the exponent
//! plane). Trailing zeros that all of a row share (values that came from fp16) are not stored.
//!
//! The top of a magnitude is `magnitude >> low`, low = mantissa bits - 2. Symbol: zigzag of top - scale; ZERO and
//! OTHER_ZERO for +0 and -0; else ESCAPE. Segments and entropy coding as in residual/mod.rs.
//!
//! Layout: varint words; varint raw bytes; the coded run: for each segment its shared trailing zeros (at most
//! low) and the zigzag change of scale (ESCAPE: i16 below), then a symbol for each element; for each element of a
//! plain symbol the sign bit and the low bits, less the shared zeros, lowest first; the escaped scales; the escaped
//! elements; the last `len % width` bytes.

#[cfg(target_arch = "x86_64")]
mod avx2;

use super::ans::{BITS, CONTEXTS, ESCAPE, LANES, Reader, Tables, join};
use super::bits::{BitReader, BitWriter};
use super::context::{LEVEL, OTHER_ZERO, TOP, TRAILING, ZERO, zigzag};
use super::plane::{at_end, get_varint, put_varint, take};
use super::residual::{load, segments};
use super::tables::Counts;
use super::word::{Word, by_width};
use super::{Damage, Spec};
use crate::model::dtype::Elem;

pub(super) fn applies(spec: Spec) -> bool {
    matches!(spec.elem, Elem::Float { width: 1 | 2 | 4, mantissa } if mantissa >= 2 && (mantissa as u32) < 8 * spec.elem.width() as u32 - 2)
}

fn low_bits(spec: Spec) -> u32 {
    match spec.elem {
        Elem::Float { mantissa, .. } => (mantissa as u32).saturating_sub(2),
        _ => 0,
    }
}

struct Symbols {
    /// Contexts and symbols (ans.rs).
    prefix: Vec<u16>,
    body: Vec<u16>,
    raw: BitWriter,
    scales: Vec<u8>,
    escapes: Vec<u8>,
}

pub(super) fn count(spec: Spec, raw: &[u8], counts: &mut Counts) {
    let s = by_width!(spec.elem.width(), W => symbols::<W>(spec, None, 0, raw));
    for s in s.prefix.iter().chain(&s.body) {
        counts[(s >> 8) as usize % CONTEXTS][*s as usize & 0xFF] += 1;
    }
}

pub(super) fn encode(spec: Spec, tables: &Tables, block: u64, raw: &[u8], out: &mut Vec<u8>) {
    let s = by_width!(spec.elem.width(), W => symbols::<W>(spec, Some(tables), block, raw));
    let coded = tables.encode(&s.prefix, &s.body);
    let bits = s.raw.finish();
    put_varint(coded.words.len(), out);
    put_varint(bits.len(), out);
    coded.write(out);
    out.extend_from_slice(&bits);
    out.extend_from_slice(&s.scales);
    out.extend_from_slice(&s.escapes);
    out.extend_from_slice(&raw[raw.len() - raw.len() % spec.elem.width()..]);
}

/// `tables`: only symbols that they can code.
fn symbols<W: Word>(spec: Spec, tables: Option<&Tables>, block: u64, raw: &[u8]) -> Symbols {
    #[cfg(target_arch = "x86_64")]
    if let Some(s) = avx2::symbols::<W>(spec, tables, block, raw) {
        return s;
    }
    symbols_here::<W>(spec, tables, block, raw)
}

/// Compiled for the features of each caller.
#[inline(always)]
fn symbols_here<W: Word>(spec: Spec, tables: Option<&Tables>, block: u64, raw: &[u8]) -> Symbols {
    let low = low_bits(spec);
    let n = raw.len() / W::BYTES;
    let mut s = Symbols {
        prefix: Vec::new(),
        body: Vec::with_capacity(n + LANES),
        raw: BitWriter::new(raw.len()),
        scales: Vec::new(),
        escapes: Vec::new(),
    };
    let (mut from, mut scale) = (0, 0i32);
    for to in segments(spec, block, n) {
        let segment = &raw[from * W::BYTES..to * W::BYTES];
        from = to;
        let (shared, mean) = survey::<W>(segment, low);
        let shared = if can_code(tables, TRAILING, shared as u8) { shared } else { 0 };
        s.announce(tables, shared, mean, scale);
        scale = mean;
        let coder = Coder { tables, low, shared, scale };
        for group in segment.chunks(LANES * W::BYTES) {
            coder.group::<W>(group, &mut s);
        }
    }
    s
}

fn can_code(tables: Option<&Tables>, context: u8, symbol: u8) -> bool {
    tables.is_none_or(|t| t.can_code(context, symbol))
}

impl Symbols {
    fn announce(&mut self, tables: Option<&Tables>, shared: u32, mean: i32, before: i32) {
        let change = mean - before;
        let mut symbol = if change.abs() <= 126 { zigzag(change as i64) } else { ESCAPE };
        if !can_code(tables, LEVEL, symbol) {
            symbol = ESCAPE;
        }
        if symbol == ESCAPE {
            self.scales.extend_from_slice(&(mean as i16).to_le_bytes());
        }
        self.prefix.extend_from_slice(&[join(TRAILING, shared as u8), join(LEVEL, symbol)]);
    }
}

/// What codes a segment.
struct Coder<'a> {
    tables: Option<&'a Tables>,
    low: u32,
    shared: u32,
    scale: i32,
}

impl Coder<'_> {
    /// Codes at most LANES elements; the usual case, nothing special among them, in steps that vectorise.
    #[inline(always)]
    fn group<W: Word>(&self, raw: &[u8], s: &mut Symbols) {
        let (words, k) = (load::<W>(raw), raw.len() / W::BYTES);
        let (sign, mask) = (8 * W::BYTES as u32 - 1, (1u32 << self.low) - 1);
        let (mut values, mut widths) = ([0; LANES], [self.low - self.shared + 1; LANES]);
        let mut symbols = [0u16; LANES];
        let mut special = false;
        for j in 0..LANES {
            let magnitude = words[j] & !(1 << sign);
            let h = (magnitude >> self.low).wrapping_sub(self.scale as u32) as i32;
            symbols[j] = join(TOP, ((h << 1) ^ (h >> 31)) as u8);
            values[j] = words[j] >> sign | (magnitude & mask) >> self.shared << 1;
            special |= (h.wrapping_add(126) as u32 > 252) | (magnitude == 0);
        }
        let mut codable = true;
        if let Some(t) = self.tables {
            for s in symbols {
                codable &= t.can_code(TOP, s as u8);
            }
        }
        if special || !codable {
            self.specials::<W>(raw, &mut symbols, &mut values, &mut widths, s);
        }
        s.raw.put_group::<LANES>(&values, &widths, k);
        match k < LANES {
            true => s.body.extend_from_slice(&symbols[..k]),
            false => s.body.extend_from_slice(&symbols),
        }
    }

    /// Zeros and escapes, which have no raw bits.
    #[inline(never)]
    fn specials<W: Word>(
        &self,
        raw: &[u8],
        symbols: &mut [u16; LANES],
        values: &mut [u32; LANES],
        widths: &mut [u32; LANES],
        s: &mut Symbols,
    ) {
        for (j, bytes) in raw.chunks_exact(W::BYTES).enumerate().take(LANES) {
            let w = W::load(bytes);
            let magnitude = w.without_sign().to_u64() as u32;
            let h = (magnitude >> self.low).wrapping_sub(self.scale as u32) as i32;
            let plain = (-126..=126).contains(&h) && magnitude != 0;
            if plain && can_code(self.tables, TOP, symbols[j] as u8) {
                continue;
            }
            (values[j], widths[j]) = (0, 0);
            let zero = if w.is_negative() { OTHER_ZERO } else { ZERO };
            symbols[j] = if magnitude == 0 && can_code(self.tables, TOP, zero) {
                join(TOP, zero)
            } else {
                s.escapes.extend_from_slice(bytes);
                join(TOP, ESCAPE)
            };
        }
    }
}

/// The trailing zeros that all share, and the mean top.
#[inline(always)]
fn survey<W: Word>(segment: &[u8], low: u32) -> (u32, i32) {
    let [mut or, mut sums, mut counts] = [[0u32; LANES]; 3];
    for group in segment.chunks(LANES * W::BYTES) {
        let words = load::<W>(group);
        for j in 0..LANES {
            let magnitude = words[j] & !(1 << (8 * W::BYTES - 1));
            or[j] |= magnitude;
            sums[j] = sums[j].wrapping_add(magnitude >> low);
            counts[j] += (magnitude != 0) as u32;
        }
    }
    let or = or.iter().fold(0, |all, o| all | o);
    let sum: u64 = sums.iter().map(|&s| s as u64).sum();
    let n: u64 = counts.iter().map(|&n| n as u64).sum();
    (or.trailing_zeros().min(low), ((sum + n / 2) / n.max(1)).min(i16::MAX as u64) as i32)
}

pub(super) fn decode(spec: Spec, tables: &Tables, block: u64, input: &[u8], out: &mut [u8]) -> Result<(), Damage> {
    decode_by(true, spec, tables, block, input, out)
}

/// `vectors`: use them where there are any; the bytes are the same.
fn decode_by(
    vectors: bool,
    spec: Spec,
    tables: &Tables,
    block: u64,
    mut input: &[u8],
    out: &mut [u8],
) -> Result<(), Damage> {
    if !applies(spec) {
        return Err(Damage("magnitudes of another type"));
    }
    let (words, noise) = (get_varint(&mut input)?, get_varint(&mut input)?);
    let reader = Reader::new(&mut input, words)?;
    let bits = BitReader::new(take(&mut input, noise)?);
    let d = Decoder { vectors, low: low_bits(spec), tables, reader, bits, escapes: input };
    by_width!(spec.elem.width(), W => d.block::<W>(&segments(spec, block, out.len() / W::BYTES), out))
}

/// What a segment's elements share.
#[derive(Clone, Copy)]
struct Row {
    /// Trailing zeros, at most `low`.
    shared: u32,
    scale: u32,
}

struct Decoder<'a> {
    vectors: bool,
    low: u32,
    tables: &'a Tables,
    reader: Reader,
    bits: BitReader,
    escapes: &'a [u8],
}

impl Decoder<'_> {
    fn block<W: Word>(mut self, ends: &[usize], out: &mut [u8]) -> Result<(), Damage> {
        let rows = self.rows(ends.len())?;
        let mut from = 0;
        for (&to, row) in ends.iter().zip(rows) {
            self.segment::<W>(row, &mut out[from * W::BYTES..to * W::BYTES])?;
            from = to;
        }
        self.reader.finish()?;
        let tail = &mut out[from * W::BYTES..];
        tail.copy_from_slice(take(&mut self.escapes, tail.len())?);
        at_end(self.escapes)
    }

    fn segment<W: Word>(&mut self, row: Row, out: &mut [u8]) -> Result<(), Damage> {
        let done = if self.vectors { self.by_vectors::<W>(row, out)? } else { 0 };
        for out in out[done..].chunks_mut(LANES * W::BYTES) {
            self.group::<W>(row, out)?;
        }
        Ok(())
    }

    /// Decodes what this machine has vectors for; returns how many bytes.
    #[cfg(target_arch = "x86_64")]
    fn by_vectors<W: Word>(&mut self, row: Row, out: &mut [u8]) -> Result<usize, Damage> {
        avx2::whole_groups::<W>(self, row, out)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn by_vectors<W: Word>(&mut self, _: Row, _: &mut [u8]) -> Result<usize, Damage> {
        Ok(0)
    }

    fn rows(&mut self, n: usize) -> Result<Vec<Row>, Damage> {
        let mut rows = Vec::with_capacity(n);
        let mut scale = 0i32;
        let mut symbols = [0i32; LANES];
        let contexts = std::array::from_fn(|j| (if j % 2 == 0 { TRAILING } else { LEVEL } as u32) << BITS);
        while rows.len() < n {
            let k = (2 * (n - rows.len())).min(LANES);
            self.reader.group(self.tables.slots(), &contexts, &mut symbols, k);
            self.check()?;
            for pair in symbols[..k].chunks_exact(2) {
                scale = match zigzag(pair[1] as i64) {
                    ESCAPE => {
                        let b = take(&mut self.escapes, 2)?;
                        i16::from_le_bytes([b[0], b[1]]) as i32
                    }
                    _ => scale.wrapping_add(pair[1]),
                };
                rows.push(Row { shared: self.low.min(zigzag(pair[0] as i64) as u32), scale: scale as u32 });
            }
        }
        Ok(rows)
    }

    fn check(&self) -> Result<(), Damage> {
        if self.reader.overrun() || self.bits.overrun() {
            return Err(Damage("encoded block is short"));
        }
        Ok(())
    }

    #[inline(always)]
    fn group<W: Word>(&mut self, Row { shared, scale }: Row, out: &mut [u8]) -> Result<(), Damage> {
        let k = (out.len() / W::BYTES).min(LANES);
        let (mut symbols, mut widths) = ([0i32; LANES], [0u32; LANES]);
        self.reader.group(self.tables.slots(), &[(TOP as u32) << BITS; LANES], &mut symbols, k);
        let width = self.low - shared + 1;
        let mut special = false;
        for j in 0..LANES {
            let plain = (-126..=126).contains(&symbols[j]);
            special |= !plain;
            widths[j] = if plain && j < k { width } else { 0 };
        }
        let noise = self.bits.take_group(&widths);
        for (j, o) in out.chunks_exact_mut(W::BYTES).enumerate().take(LANES) {
            let top = scale.wrapping_add(symbols[j] as u32);
            let magnitude = (top << self.low).wrapping_add((noise[j] >> 1) << shared);
            W::from_u32(magnitude).with_sign(noise[j] & 1 != 0).store(o);
        }
        if special {
            self.specials::<W>(&symbols, out)?;
        }
        self.check()
    }

    #[cold]
    fn specials<W: Word>(&mut self, symbols: &[i32; LANES], out: &mut [u8]) -> Result<(), Damage> {
        for (o, &symbol) in out.chunks_exact_mut(W::BYTES).zip(symbols) {
            match zigzag(symbol as i64) {
                ZERO => W::zero(false).store(o),
                OTHER_ZERO => W::zero(true).store(o),
                ESCAPE => o.copy_from_slice(take(&mut self.escapes, W::BYTES)?),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::tests::{Rng, block};
    use crate::codec::{Effort, MAGNITUDES, Plan};
    use proptest::prelude::*;

    const ELEMS: [Elem; 5] = [
        Elem::Float { width: 4, mantissa: 23 },
        Elem::Float { width: 2, mantissa: 7 },
        Elem::Float { width: 2, mantissa: 10 },
        Elem::Float { width: 1, mantissa: 3 },
        Elem::Float { width: 4, mantissa: 10 },
    ];

    fn both(spec: Spec, tables: &Tables, bytes: &[u8], len: usize) -> Option<Vec<u8>> {
        let (mut vectors, mut portable) = (vec![0x55; len], vec![0xAA; len]);
        let ok = decode_by(true, spec, tables, 0, bytes, &mut vectors).is_ok();
        assert_eq!(ok, decode_by(false, spec, tables, 0, bytes, &mut portable).is_ok());
        assert!(!ok || vectors == portable);
        ok.then_some(vectors)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 60 } else { 400 }))]

        #[test]
        fn vectors_change_nothing(elem in 0..ELEMS.len(), kind in 0..8u8, seed: u64, len in 0..9000usize, flips in 0..4usize) {
            let spec = Spec { elem: ELEMS[elem], row_bytes: 320 * ELEMS[elem].width() };
            let (raw, _) = block(spec.elem, kind, len, seed);
            let plan = Plan::choose(spec, Effort::Default, &[(&raw, vec![])]);
            let mut bytes = Vec::new();
            encode(spec, &plan.tables, 0, &raw, &mut bytes);
            prop_assert_eq!(both(spec, &plan.tables, &bytes, len), Some(raw));
            let mut rng = Rng(seed);
            for _ in 0..flips {
                let at = rng.below(bytes.len());
                bytes[at] ^= 1 << rng.below(8);
                both(spec, &plan.tables, &bytes, len);
                let _ = plan.decode(0, MAGNITUDES, &bytes, &[], &mut vec![0; len]);
            }
            bytes.truncate(rng.below(bytes.len() + 1));
            both(spec, &plan.tables, &bytes, len);
        }
    }
}
