//! A block as conditioned residuals to a base ("rice + rANS").
//!
//! Idea: context.rs says for each value, from its base and its row's scale, which low bits of the residual are
//! noise and how the rest is distributed; the noise is stored raw and the rest as one symbol under the tensor's
//! tables (tables.rs). Nothing is adaptive, so lanes are independent and contexts are known ahead.
//!
//! A segment shares a scale: the elements of a row, its ends rounded up to a multiple of LANES; short rows
//! together until SHORT, and at most LONG elements.
//!
//! Layout: u8 base; u8 flags (1: ZERO takes the base's sign and OTHER_ZERO the opposite, else +0 and -0);
//! i16 scale before the first; u32 words; u32 raw bytes; the coded run (ans.rs): for each segment the zigzag change of
//! scale (STILL: no value differs, the scale stays; ESCAPE: an i16 below), then a symbol for each
//! element; raw bits, lowest first; the escaped scales; the escaped elements; the last `len % width` bytes of the block.
//! Little-endian throughout.

use super::ans::{BITS, ESCAPE, LANES, Reader, Tables};
use super::context::{self, OTHER_ZERO, SCALE, ZERO, index, map};
use super::plane::{at_end, take};
use super::tables::Counts;
use super::word::{Exponent, Word, is_float, residual, restore};
use super::{BLOCK, Damage, Spec};

const SHORT: usize = 128;
const LONG: usize = 2048;
const STILL: u8 = 254;
const BASE_SIGN: u8 = 1;
/// Room to read past the end of the raw bits.
const SPARE: usize = 64;

/// Only elements whose residual fits the bit reader and whose exponent has a byte.
pub(super) fn applies(spec: Spec) -> bool {
    matches!(spec.elem.width(), 1 | 2 | 4)
        && spec.elem != crate::model::dtype::Elem::Bytes
        && Exponent::of(spec.elem).mask < 256
}

/// Runs `$body` for the word type and kind of a spec that [`applies`].
macro_rules! by_kind {
    ($spec:expr, $w:ident, $float:ident => $body:expr) => {
        match ($spec.elem.width(), is_float($spec.elem)) {
            (1, false) => by_kind!(@ u8, false, $w, $float, $body),
            (1, true) => by_kind!(@ u8, true, $w, $float, $body),
            (2, false) => by_kind!(@ u16, false, $w, $float, $body),
            (2, true) => by_kind!(@ u16, true, $w, $float, $body),
            (_, false) => by_kind!(@ u32, false, $w, $float, $body),
            (_, true) => by_kind!(@ u32, true, $w, $float, $body),
        }
    };
    (@ $t:ty, $f:literal, $w:ident, $float:ident, $body:expr) => {{
        type $w = $t;
        const $float: bool = $f;
        $body
    }};
}

/// Ends of the segments of a block of `n` elements.
pub(super) fn segments(spec: Spec, block: u64, n: usize) -> Vec<usize> {
    let width = spec.elem.width();
    let row = match spec.row_bytes / width {
        0 => 512,
        row if row < SHORT => row * SHORT.div_ceil(row),
        row if row > LONG => row.div_ceil(row.div_ceil(LONG)),
        row => row,
    } as u64;
    let start = block.wrapping_mul((BLOCK / width) as u64);
    let mut end = row - start % row;
    let mut ends = Vec::with_capacity(n / row as usize + 2);
    while end < n as u64 {
        let rounded = (end as usize).next_multiple_of(LANES);
        if rounded < n {
            ends.push(rounded);
        }
        end += row;
    }
    ends.push(n);
    ends
}

/// A block turned into symbols.
#[derive(Default)]
struct Symbols {
    prefix: Vec<(u8, u8)>,
    body: Vec<(u8, u8)>,
    raw: Vec<u8>,
    scales: Vec<u8>,
    escapes: Vec<u8>,
    first_scale: i16,
    flags: u8,
}

/// Counts what a block's symbols would be, were all of them codable.
pub(super) fn count(spec: Spec, block: u64, raw: &[u8], base: &[u8], counts: &mut Counts) {
    let s = by_kind!(spec, W, FLOAT => symbols::<W, FLOAT>(spec, block, raw, base, None));
    for (context, symbol) in s.prefix.into_iter().chain(s.body) {
        counts[context as usize][symbol as usize] += 1;
    }
}

pub(super) fn encode(spec: Spec, tables: &Tables, block: u64, raw: &[u8], index: u8, base: &[u8], out: &mut Vec<u8>) {
    let s = by_kind!(spec, W, FLOAT => symbols::<W, FLOAT>(spec, block, raw, base, Some(tables)));
    out.extend_from_slice(&[index, s.flags]);
    out.extend_from_slice(&s.first_scale.to_le_bytes());
    let lengths = out.len();
    out.extend_from_slice(&[0; 8]);
    let start = out.len();
    tables.encode(&s.prefix, &s.body, out);
    let words = (out.len() - start - 4 * LANES) / 2;
    out[lengths..lengths + 4].copy_from_slice(&(words as u32).to_le_bytes());
    out[lengths + 4..lengths + 8].copy_from_slice(&(s.raw.len() as u32).to_le_bytes());
    out.extend_from_slice(&s.raw);
    out.extend_from_slice(&s.scales);
    out.extend_from_slice(&s.escapes);
    out.extend_from_slice(&raw[raw.len() - raw.len() % spec.elem.width()..]);
}

/// `4 log2` of the mean size of the differences, in units of exponent 0; None when nothing differs.
fn scale_of<W: Word, const FLOAT: bool>(exponent: Exponent, residuals: &[W], child: &[u8], base: &[u8]) -> Option<i16> {
    let (mut sum, mut n) = (0.0, 0u32);
    for (i, r) in residuals.iter().enumerate() {
        let at = i * W::BYTES;
        if FLOAT && W::load(&child[at..]).is_zero() {
            continue;
        }
        let e = exponent.get(W::load(&base[at..])).max(1) as u64;
        sum += r.magnitude() as f64 * f64::from_bits((1023 + e) << 52);
        n += 1;
    }
    (sum > 0.0).then(|| (4.0 * (sum / n as f64).log2()).round().clamp(-2000.0, 2000.0) as i16)
}

fn symbols<W: Word, const FLOAT: bool>(
    spec: Spec,
    block: u64,
    raw: &[u8],
    base: &[u8],
    tables: Option<&Tables>,
) -> Symbols {
    let n = raw.len() / W::BYTES;
    let exponent = Exponent::of(spec.elem);
    let residuals: Vec<W> = raw
        .chunks_exact(W::BYTES)
        .zip(base.chunks_exact(W::BYTES))
        .map(|(c, b)| residual::<W, FLOAT>(W::load(c), W::load(b)))
        .collect();
    let mut s = Symbols { body: Vec::with_capacity(n), ..Symbols::default() };
    s.flags = zero_flags::<W, FLOAT>(raw, base);
    let mut bits = BitWriter::default();
    let mut segment = Segment { exponent, map: map(W::BYTES), scale: 0, flags: s.flags, tables };
    let (mut from, mut first) = (0, true);
    for to in segments(spec, block, n) {
        let bytes = from * W::BYTES..to * W::BYTES;
        let (child, base) = (&raw[bytes.clone()], &base[bytes]);
        let scale = scale_of::<W, FLOAT>(exponent, &residuals[from..to], child, base);
        if let (true, Some(scale)) = (first, scale) {
            (s.first_scale, segment.scale, first) = (scale, scale as i32, false);
        }
        segment.change(scale, &mut s);
        segment.code::<W, FLOAT>(scale.is_none(), &residuals[from..to], child, base, &mut s, &mut bits);
        from = to;
    }
    s.raw = bits.finish();
    s
}

/// Do new zeros keep the base's sign more often than they are +0?
fn zero_flags<W: Word, const FLOAT: bool>(raw: &[u8], base: &[u8]) -> u8 {
    let (mut same, mut plus) = (0u32, 0u32);
    if FLOAT {
        for (c, b) in raw.chunks_exact(W::BYTES).zip(base.chunks_exact(W::BYTES)) {
            let (c, b) = (W::load(c), W::load(b));
            same += (c.is_zero() && c.is_negative() == b.is_negative()) as u32;
            plus += (c.is_zero() && !c.is_negative()) as u32;
        }
    }
    if same > plus { BASE_SIGN } else { 0 }
}

/// The zero that ZERO stands for, or OTHER_ZERO.
#[inline(always)]
fn zero_of<W: Word>(flags: u8, other: bool, base: W) -> W {
    W::zero((flags & BASE_SIGN != 0 && base.is_negative()) != other)
}

struct Segment<'a> {
    exponent: Exponent,
    map: &'static context::Map,
    scale: i32,
    flags: u8,
    tables: Option<&'a Tables>,
}

impl Segment<'_> {
    fn can_code(&self, context: u8, symbol: u8) -> bool {
        self.tables.is_none_or(|t| t.can_code(context, symbol))
    }

    /// Codes the segment's scale.
    fn change(&mut self, scale: Option<i16>, s: &mut Symbols) {
        let mut symbol = STILL;
        if let Some(scale) = scale {
            let change = scale as i32 - self.scale;
            symbol = if change.abs() <= 126 { context::zigzag(change as i64) } else { ESCAPE };
            self.scale = scale as i32;
        }
        if symbol == ESCAPE || !self.can_code(SCALE, symbol) {
            // STILL is a promise that helps only the size: without it the scale says so.
            s.scales.extend_from_slice(&(self.scale as i16).to_le_bytes());
            symbol = ESCAPE;
        }
        s.prefix.push((SCALE, symbol));
    }

    fn code<W: Word, const FLOAT: bool>(
        &self,
        still: bool,
        residuals: &[W],
        child: &[u8],
        base: &[u8],
        s: &mut Symbols,
        bits: &mut BitWriter,
    ) {
        let still = still && s.prefix.last().is_some_and(|p| p.1 == STILL);
        for (i, r) in residuals.iter().enumerate() {
            let at = i * W::BYTES;
            let (c, b) = (W::load(&child[at..]), W::load(&base[at..]));
            let t = if still { -64 } else { self.scale - 4 * (self.exponent.get(b) as i32).max(1) };
            let entry = self.map[index(t)];
            let (context, noise) = ((entry >> BITS & 0x1F) as u8, entry >> 24);
            let r = r.signed();
            let h = r >> noise;
            let mut symbol = if (-126..=126).contains(&h) { context::zigzag(h) } else { ESCAPE };
            if FLOAT && c.is_zero() && (r != 0 || noise > 0) {
                symbol = if c == zero_of(self.flags, false, b) { ZERO } else { OTHER_ZERO };
            }
            if symbol == ESCAPE || !self.can_code(context, symbol) {
                symbol = ESCAPE;
                let length = s.escapes.len();
                s.escapes.resize(length + W::BYTES, 0);
                c.store(&mut s.escapes[length..]);
            } else if symbol < ZERO {
                bits.put(r as u64 & ((1 << noise) - 1), noise);
            }
            s.body.push((context, symbol));
        }
    }
}

#[derive(Default)]
struct BitWriter {
    bytes: Vec<u8>,
    held: u64,
    count: u32,
}

impl BitWriter {
    /// At most 32 bits, the others zero.
    #[inline(always)]
    fn put(&mut self, value: u64, bits: u32) {
        self.held |= value << self.count;
        self.count += bits;
        if self.count >= 32 {
            self.bytes.extend_from_slice(&(self.held as u32).to_le_bytes());
            self.held >>= 32;
            self.count -= 32;
        }
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&self.held.to_le_bytes()[..self.count.div_ceil(8) as usize]);
        self.bytes
    }
}

/// What decoding a block needs besides the base.
pub(super) struct Decoder<'a> {
    pub map: &'static context::Map,
    pub exponent: Exponent,
    pub flags: u8,
    pub slots: &'a [u32; super::ans::CONTEXTS << BITS],
    pub reader: Reader,
    /// Raw bits with SPARE bytes after them, the bit to read next, and how many there are.
    pub raw: Vec<u8>,
    pub bit: usize,
    pub bits: usize,
    pub escapes: &'a [u8],
}

pub(super) fn decode(
    spec: Spec,
    tables: &Tables,
    block: u64,
    mut input: &[u8],
    bases: &[&[u8]],
    out: &mut [u8],
) -> Result<(), Damage> {
    let head = take(&mut input, 12)?;
    let base = *bases.get(head[0] as usize).ok_or(Damage("base is missing"))?;
    if base.len() != out.len() {
        return Err(Damage("base has another length"));
    }
    let u32_at = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]) as usize;
    let reader = Reader::new(&mut input, u32_at(4))?;
    let noise = take(&mut input, u32_at(8))?;
    let mut raw = Vec::with_capacity(noise.len() + SPARE);
    raw.extend_from_slice(noise);
    raw.resize(noise.len() + SPARE, 0);
    let mut d = Decoder {
        map: map(spec.elem.width()),
        exponent: Exponent::of(spec.elem),
        flags: head[1],
        slots: tables.slots(),
        reader,
        raw,
        bit: 0,
        bits: noise.len() * 8,
        escapes: input,
    };
    let scale = i16::from_le_bytes([head[2], head[3]]);
    by_kind!(spec, W, FLOAT => d.block::<W, FLOAT>(&segments(spec, block, out.len() / W::BYTES), scale, base, out))
}

impl Decoder<'_> {
    fn block<W: Word, const FLOAT: bool>(
        &mut self,
        ends: &[usize],
        first: i16,
        base: &[u8],
        out: &mut [u8],
    ) -> Result<(), Damage> {
        let scales = self.scales(ends.len(), first)?;
        let mut from = 0;
        for (&to, scale) in ends.iter().zip(scales) {
            let bytes = from * W::BYTES..to * W::BYTES;
            self.segment::<W, FLOAT>(scale, &base[bytes.clone()], &mut out[bytes])?;
            from = to;
        }
        self.reader.finish()?;
        let tail = &mut out[from * W::BYTES..];
        tail.copy_from_slice(take(&mut self.escapes, tail.len())?);
        at_end(self.escapes)
    }

    /// The scale of each segment; None where it is STILL.
    fn scales(&mut self, n: usize, first: i16) -> Result<Vec<Option<i32>>, Damage> {
        let mut scale = first as i32;
        let mut scales = Vec::with_capacity(n);
        let mut symbols = [0; LANES];
        while scales.len() < n {
            let k = (n - scales.len()).min(LANES);
            self.reader.group(self.slots, &[(SCALE as u32) << BITS; LANES], &mut symbols, k);
            self.check()?;
            for &symbol in &symbols[..k] {
                scale = match symbol as u8 {
                    ESCAPE => {
                        let b = take(&mut self.escapes, 2)?;
                        i16::from_le_bytes([b[0], b[1]]) as i32
                    }
                    STILL => scale,
                    z => (scale + (z as i32 >> 1 ^ -(z as i32 & 1))).clamp(-4000, 4000),
                };
                scales.push((symbol as u8 != STILL).then_some(scale));
            }
        }
        Ok(scales)
    }

    fn check(&self) -> Result<(), Damage> {
        if self.reader.overrun() || self.bit > self.bits {
            return Err(Damage("encoded block is short"));
        }
        Ok(())
    }

    fn segment<W: Word, const FLOAT: bool>(
        &mut self,
        scale: Option<i32>,
        base: &[u8],
        out: &mut [u8],
    ) -> Result<(), Damage> {
        let chunk = LANES * W::BYTES;
        for (base, out) in base.chunks(chunk).zip(out.chunks_mut(chunk)) {
            self.group::<W, FLOAT>(scale, base, out)?;
            self.check()?;
        }
        Ok(())
    }

    /// LANES elements, or the block's last few.
    #[inline(always)]
    fn group<W: Word, const FLOAT: bool>(
        &mut self,
        scale: Option<i32>,
        base: &[u8],
        out: &mut [u8],
    ) -> Result<(), Damage> {
        let k = base.len() / W::BYTES;
        let mut bases = [W::default(); LANES];
        let (mut entries, mut offsets, mut symbols, mut low) =
            ([0u32; LANES], [0u32; LANES], [0u32; LANES], [0u32; LANES]);
        for (b, bytes) in bases.iter_mut().zip(base.chunks_exact(W::BYTES)) {
            *b = W::load(bytes);
        }
        let (scale, step) = scale.map_or((-64, 0), |s| (s, 4));
        for j in 0..k {
            entries[j] = self.map[index(scale - step * (self.exponent.get(bases[j]) as i32).max(1))];
            offsets[j] = entries[j] & 0xFF_FFFF;
        }
        self.reader.group(self.slots, &offsets, &mut symbols, k);
        let mut special = false;
        for j in 0..k {
            let plain = symbols[j] < ZERO as u32;
            special |= !plain;
            let noise = if plain { entries[j] >> 24 } else { 0 };
            let window =
                self.raw.get(self.bit >> 3..).and_then(|r| r.first_chunk::<4>()).map_or(0, |b| u32::from_le_bytes(*b));
            low[j] = window >> (self.bit & 7) & ((1u32 << noise) - 1);
            self.bit += noise as usize;
        }
        for (j, o) in out.chunks_exact_mut(W::BYTES).enumerate().take(LANES) {
            let z = symbols[j];
            let r = (((z >> 1) ^ (z & 1).wrapping_neg()) << (entries[j] >> 24)).wrapping_add(low[j]);
            restore::<W, FLOAT>(W::from_u32(r), bases[j]).store(o);
        }
        if special {
            self.specials(&symbols, &bases, out)?;
        }
        Ok(())
    }

    /// Puts zeros and escapes in their places.
    #[cold]
    fn specials<W: Word>(&mut self, symbols: &[u32; LANES], bases: &[W; LANES], out: &mut [u8]) -> Result<(), Damage> {
        for ((o, &symbol), &base) in out.chunks_exact_mut(W::BYTES).zip(symbols).zip(bases) {
            match symbol as u8 {
                ZERO => zero_of(self.flags, false, base).store(o),
                OTHER_ZERO => zero_of(self.flags, true, base).store(o),
                ESCAPE => o.copy_from_slice(take(&mut self.escapes, W::BYTES)?),
                _ => {}
            }
        }
        Ok(())
    }
}
