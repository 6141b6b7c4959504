//! From a block and its base to symbols, raw bits and escapes (layout: mod.rs).

use super::*;
use crate::codec::ans::{BITS, CONTEXTS, ESCAPE, join};
use crate::codec::bits::BitWriter;
use crate::codec::context::{KIND, OTHER_ZERO, SCALE, ZERO};
use crate::codec::plane::put_varint;
use crate::codec::tables::Counts;

/// A block turned into symbols.
pub(super) struct Symbols {
    /// Contexts and symbols (ans.rs).
    prefix: Vec<u16>,
    body: Vec<u16>,
    noise: BitWriter,
    scales: Vec<u8>,
    escapes: Vec<u8>,
    first_scale: i16,
    flags: u8,
}

/// Counts what a block's symbols would be, were all of them codable.
pub(in crate::codec) fn count(model: &Model, raw: &[u8], base: &[u8], counts: &mut Counts) {
    let s = by_kind!(model.spec, W, FLOAT => symbols::<W, FLOAT>(model, 0, raw, base, false));
    for s in s.prefix.iter().chain(&s.body) {
        counts[(s >> 8) as usize % CONTEXTS][*s as usize & 0xFF] += 1;
    }
}

pub(in crate::codec) fn encode(model: &Model, block: u64, raw: &[u8], index: u8, base: &[u8], out: &mut Vec<u8>) {
    let s = by_kind!(model.spec, W, FLOAT => symbols::<W, FLOAT>(model, block, raw, base, true));
    let noise = s.noise.finish();
    let coded = model.tables.encode(&s.prefix, &s.body);
    out.extend_from_slice(&[index, s.flags]);
    out.extend_from_slice(&s.first_scale.to_le_bytes());
    put_varint(coded.words.len(), out);
    put_varint(noise.len(), out);
    coded.write(out);
    out.extend_from_slice(&noise);
    out.extend_from_slice(&s.scales);
    out.extend_from_slice(&s.escapes);
    out.extend_from_slice(&raw[raw.len() - raw.len() % model.spec.elem.width()..]);
}

/// LANES elements side by side, each in 32 bits: as long as all of a step is in lanes as wide, it vectorises.
struct Group {
    base: [u32; LANES],
    residual: [i32; LANES],
    /// All ones where the child is a zero of a float, else 0.
    zero: [u32; LANES],
    len: usize,
}

impl Group {
    /// Of at most LANES elements; zeros fill it up.
    #[inline(always)]
    fn load<W: Word, const FLOAT: bool>(raw: &[u8], base: &[u8]) -> Group {
        // In the upper part of their lanes elements wrap as they do on their own.
        let up = 32 - 8 * W::BYTES as u32;
        let (child, base) = (load::<W>(raw), load::<W>(base));
        let (mut residual, mut zero) = ([0; LANES], [0; LANES]);
        for j in 0..LANES {
            let (c, b) = (child[j] << up, base[j] << up);
            residual[j] = super::residual::<u32, FLOAT>(c, b) as i32 >> up;
            zero[j] = ((FLOAT && c.is_zero()) as u32).wrapping_neg();
        }
        Group { base, residual, zero, len: raw.len() / W::BYTES }
    }

    /// What the staircase leaves of the residuals.
    #[inline(always)]
    fn after_stairs<W: Word>(&self, f: &Finder) -> [i32; LANES] {
        let up = 32 - 8 * W::BYTES as u32;
        let mut r = [0; LANES];
        (0..LANES).for_each(|j| r[j] = f.get(self.base[j]));
        (0..LANES).for_each(|j| r[j] = self.residual[j].wrapping_sub(r[j]) << up >> up);
        r
    }
}

/// Sums over a segment, in LANES parts so that they vectorise.
#[derive(Default)]
struct Sums {
    /// Sizes of the residuals in units of exponent 127, in units of the last place, and after the staircase.
    steps: [f32; LANES],
    units: [f32; LANES],
    stairs: [f32; LANES],
    exponents: [u32; LANES],
    count: [u32; LANES],
}

impl Sums {
    #[inline(always)]
    fn add<W: Word>(&mut self, row: &Row, g: &Group) {
        let mut counts = [0; LANES];
        for (j, c) in counts.iter_mut().enumerate() {
            *c = ((j < g.len) as u32).wrapping_neg() & !g.zero[j];
        }
        for (j, &counts) in counts.iter().enumerate() {
            let e = (g.base[j] >> row.exponent.shift & row.exponent.mask).clamp(1, 254);
            let size = size(g.residual[j], counts);
            self.steps[j] += size * f32::from_bits(e << 23);
            self.units[j] += size;
            self.exponents[j] += e & counts;
            self.count[j] += counts & 1;
        }
        if let Some(f) = &row.stairs {
            let r = g.after_stairs::<W>(f);
            for j in 0..LANES {
                self.stairs[j] += size(r[j], counts[j]);
            }
        }
    }
}

/// A residual's size, or 0 where it does not count.
#[inline(always)]
fn size(r: i32, counts: u32) -> f32 {
    ((r as u32).magnitude().min(i32::MAX as u64) as u32 & counts) as i32 as f32
}

/// What a segment would cost in one kind: `bits` an element, but for a constant.
#[derive(Clone, Copy)]
struct Fit {
    kind: u8,
    scale: Option<i16>,
    bits: f32,
}

impl Fit {
    /// From the sum of the sizes of `n` differences; `unit` = log2 of their unit, `typical` = the same for the elements.
    fn new(kind: u8, sum: [f32; LANES], n: u32, unit: f32, typical: f32) -> Fit {
        let sum: f32 = sum.iter().sum();
        if sum <= 0.0 {
            return Fit { kind, scale: None, bits: -12.0 };
        }
        let log = (sum / n as f32).log2() + unit;
        let scale = (4.0 * log).round().clamp(-2000.0, 2000.0) as i16;
        Fit { kind, scale: Some(scale), bits: (log - typical).max(-10.0) }
    }
}

/// The kind that is likely the cheapest for a segment, and its scale; None when nothing differs.
#[inline(always)]
fn choose_kind<W: Word, const FLOAT: bool>(model: &Model, raw: &[u8], base: &[u8]) -> (u8, Option<i16>) {
    let row = Row::new(model, STAIRS, Some(0));
    let mut sums = Sums::default();
    // No closure, which would be compiled for fewer features.
    for (c, b) in raw.chunks(LANES * W::BYTES).zip(base.chunks(LANES * W::BYTES)) {
        sums.add::<W>(&row, &Group::load::<W, FLOAT>(c, b));
    }
    let n = sums.count.iter().sum::<u32>().max(1);
    let exponent = sums.exponents.iter().sum::<u32>() as f32 / n as f32;
    let mut best = Fit::new(STEPS, sums.steps, n, 127.0, exponent);
    if FLOAT {
        let units = Fit::new(UNITS, sums.units, n, 0.0, -0.1);
        let stairs = Fit::new(STAIRS, sums.stairs, n, 0.0, -1.0);
        if units.bits < best.bits {
            best = units;
        }
        if row.stairs.is_some() && stairs.bits < best.bits {
            best = stairs;
        }
    }
    (best.kind, best.scale)
}

/// `strict`: only symbols that the tables can code.
fn symbols<W: Word, const FLOAT: bool>(model: &Model, block: u64, raw: &[u8], base: &[u8], strict: bool) -> Symbols {
    #[cfg(target_arch = "x86_64")]
    if let Some(s) = avx2::symbols::<W, FLOAT>(model, block, raw, base, strict) {
        return s;
    }
    symbols_here::<W, FLOAT>(model, block, raw, base, strict)
}

/// Compiled for the features of each caller.
#[inline(always)]
pub(super) fn symbols_here<W: Word, const FLOAT: bool>(
    model: &Model,
    block: u64,
    raw: &[u8],
    base: &[u8],
    strict: bool,
) -> Symbols {
    let n = raw.len() / W::BYTES;
    let mut s = Symbols {
        prefix: Vec::new(),
        body: Vec::with_capacity(n + LANES),
        noise: BitWriter::new(raw.len()),
        scales: Vec::new(),
        escapes: Vec::new(),
        first_scale: 0,
        flags: if FLOAT { zero_flags::<W>(raw, base) } else { 0 },
    };
    let mut scales = [None, Some(0)];
    let mut from = 0;
    for to in segments(model.spec, block, n) {
        let bytes = from * W::BYTES..to * W::BYTES;
        let (raw, base) = (&raw[bytes.clone()], &base[bytes]);
        let (kind, scale) = choose_kind::<W, FLOAT>(model, raw, base);
        let last = &mut scales[(kind != STEPS) as usize];
        if let (None, Some(scale)) = (&last, scale) {
            s.first_scale = scale;
        }
        let before = last.unwrap_or(s.first_scale as i32);
        let scale = s.announce(model, strict, kind, before, scale);
        *last = scale.or(*last);
        let coder = Coder { tables: strict.then_some(model.tables), row: Row::new(model, kind, scale) };
        for (c, b) in raw.chunks(LANES * W::BYTES).zip(base.chunks(LANES * W::BYTES)) {
            coder.group::<W>(&Group::load::<W, FLOAT>(c, b), c, &mut s);
        }
        from = to;
    }
    s
}

/// Do new zeros keep the base's sign more often than they are +0?
#[inline(always)]
fn zero_flags<W: Word>(raw: &[u8], base: &[u8]) -> u8 {
    let (mut same, mut plus) = (0u32, 0u32);
    let chunk = LANES * W::BYTES;
    for (c, b) in raw.chunks_exact(chunk).zip(base.chunks_exact(chunk)) {
        let (child, base) = (load::<W>(c), load::<W>(b));
        for j in 0..LANES {
            let sign = 1 << (8 * W::BYTES - 1);
            let zero = (child[j] & !sign == 0) as u32;
            same += zero & ((child[j] ^ base[j]) & sign == 0) as u32;
            plus += zero & (child[j] & sign == 0) as u32;
        }
    }
    if same > plus { BASE_SIGN } else { 0 }
}

impl Symbols {
    /// Codes a segment's kind and scale, and returns the scale that the reader will use.
    fn announce(&mut self, model: &Model, strict: bool, kind: u8, before: i32, scale: Option<i16>) -> Option<i32> {
        let change = scale.map_or(0, |s| s as i32 - before);
        let mut symbol = match scale {
            None => STILL,
            Some(_) if change.abs() <= 126 => context::zigzag(change as i64),
            Some(_) => ESCAPE,
        };
        if strict && !model.tables.can_code(SCALE, symbol) {
            symbol = ESCAPE;
        }
        self.prefix.extend_from_slice(&[join(KIND, kind), join(SCALE, symbol)]);
        if symbol == ESCAPE {
            self.scales.extend_from_slice(&((before + change) as i16).to_le_bytes());
        }
        (symbol != STILL).then_some(before + change)
    }
}

struct Coder<'a> {
    /// Only what these can code.
    tables: Option<&'a Tables>,
    row: Row<'a>,
}

impl Coder<'_> {
    /// Codes a group; the usual case, nothing special among them, in steps that vectorise.
    #[inline(always)]
    fn group<W: Word>(&self, g: &Group, raw: &[u8], s: &mut Symbols) {
        let r = match &self.row.stairs {
            Some(f) => g.after_stairs::<W>(f),
            None => g.residual,
        };
        let [mut entries, mut noise, mut low] = [[0u32; LANES]; 3];
        let mut symbols = [0u16; LANES];
        self.row.entries(&g.base, &mut entries);
        let mut special = 0;
        for j in 0..LANES {
            noise[j] = entries[j] >> 24;
            let h = r[j] >> noise[j];
            symbols[j] = (entries[j] >> (BITS - 8)) as u16 & 0x3F00 | ((h << 1) ^ (h >> 31)) as u16 & 0xFF;
            special |= (h.wrapping_add(126) as u32 > 252) as u32;
            special |= g.zero[j] & (r[j] as u32 | noise[j]);
        }
        if special != 0 || !self.can_code(&symbols) {
            self.specials::<W>(g, raw, &r, &mut noise, &mut symbols, s);
        }
        let mut raw_bits = 0;
        for j in 0..LANES {
            low[j] = r[j] as u32 & ((1u32 << noise[j]) - 1);
            raw_bits |= noise[j];
        }
        if raw_bits != 0 {
            s.noise.put_group::<LANES>(&low, &noise, g.len);
        }
        match g.len < LANES {
            true => s.body.extend_from_slice(&symbols[..g.len]),
            false => s.body.extend_from_slice(&symbols),
        }
    }

    #[inline(always)]
    fn can_code(&self, symbols: &[u16; LANES]) -> bool {
        let Some(tables) = self.tables else { return true };
        let mut all = true;
        for s in symbols {
            all &= tables.can_code((s >> 8) as u8, *s as u8);
        }
        all
    }

    /// Zeros and escapes.
    #[inline(never)]
    fn specials<W: Word>(
        &self,
        g: &Group,
        raw: &[u8],
        r: &[i32; LANES],
        noise: &mut [u32; LANES],
        symbols: &mut [u16; LANES],
        s: &mut Symbols,
    ) {
        for (j, c) in raw.chunks_exact(W::BYTES).enumerate().take(g.len.min(LANES)) {
            let (context, mut symbol) = ((symbols[j] >> 8) as u8, symbols[j] as u8);
            if g.zero[j] & (r[j] as u32 | noise[j]) != 0 {
                let plain = W::load(c) == zero_of(s.flags, false, W::from_u32(g.base[j]));
                symbol = if plain { ZERO } else { OTHER_ZERO };
            } else if !(-126..=126).contains(&(r[j] >> noise[j])) {
                symbol = ESCAPE;
            }
            if symbol == ESCAPE || self.tables.is_some_and(|t| !t.can_code(context, symbol)) {
                symbol = ESCAPE;
                s.escapes.extend_from_slice(c);
            }
            if symbol >= ZERO {
                noise[j] = 0;
            }
            symbols[j] = (context as u16) << 8 | symbol as u16;
        }
    }
}
