//! From a block and its base to symbols, raw bits and escapes (layout: mod.rs).

use super::*;
use crate::codec::ans::{BITS, ESCAPE};
use crate::codec::bits::BitWriter;
use crate::codec::context::{KIND, OTHER_ZERO, SCALE, ZERO};
use crate::codec::plane::put_varint;
use crate::codec::tables::Counts;
use crate::codec::word::residual;

/// A block turned into symbols.
struct Symbols {
    prefix: Vec<(u8, u8)>,
    body: Vec<(u8, u8)>,
    noise: BitWriter,
    scales: Vec<u8>,
    escapes: Vec<u8>,
    first_scale: i16,
    flags: u8,
}

/// Counts what a block's symbols would be, were all of them codable.
pub(in crate::codec) fn count(model: &Model, raw: &[u8], base: &[u8], counts: &mut Counts) {
    let s = by_kind!(model.spec, W, FLOAT => symbols::<W, FLOAT>(model, 0, raw, base, false));
    for (context, symbol) in s.prefix.into_iter().chain(s.body) {
        counts[context as usize][symbol as usize] += 1;
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
    fn add<W: Word, const FLOAT: bool>(&mut self, row: &Row, j: usize, r: W, c: &[u8], b: &[u8]) {
        let b = W::load(b);
        let counts = !(FLOAT && W::load(c).is_zero()) as u32;
        let e = (row.exponent.get(b) as u32).clamp(1, 254);
        let size = (r.magnitude() as u32 * counts) as f32;
        self.steps[j] += size * f32::from_bits(e << 23);
        self.units[j] += size;
        self.exponents[j] += e * counts;
        self.count[j] += counts;
        if let Some(f) = &row.stairs {
            self.stairs[j] += (r.sub(W::from_u32(f.get(b) as u32)).magnitude() as u32 * counts) as f32;
        }
    }
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

/// The kind that is likely the cheapest, and its scale; None when nothing differs.
fn choose_kind<W: Word, const FLOAT: bool>(
    model: &Model,
    residuals: &[W],
    child: &[u8],
    base: &[u8],
) -> (u8, Option<i16>) {
    let row = Row::new(model, STAIRS, Some(0));
    let mut sums = Sums::default();
    let chunk = LANES * W::BYTES;
    for ((r, c), b) in residuals.chunks(LANES).zip(child.chunks(chunk)).zip(base.chunks(chunk)) {
        let (c, b) = (c.chunks_exact(W::BYTES), b.chunks_exact(W::BYTES));
        for (j, ((&r, c), b)) in r.iter().zip(c).zip(b).enumerate().take(LANES) {
            sums.add::<W, FLOAT>(&row, j, r, c, b);
        }
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
    let n = raw.len() / W::BYTES;
    let residuals: Vec<W> = raw
        .chunks_exact(W::BYTES)
        .zip(base.chunks_exact(W::BYTES))
        .map(|(c, b)| residual::<W, FLOAT>(W::load(c), W::load(b)))
        .collect();
    let mut s = Symbols {
        prefix: Vec::new(),
        body: vec![(0, ESCAPE); n],
        noise: BitWriter::new(raw.len()),
        scales: Vec::new(),
        escapes: Vec::new(),
        first_scale: 0,
        flags: zero_flags::<W, FLOAT>(raw, base),
    };
    let mut scales = [None, Some(0)];
    let mut from = 0;
    for to in segments(model.spec, block, n) {
        let bytes = from * W::BYTES..to * W::BYTES;
        let (child, base) = (&raw[bytes.clone()], &base[bytes]);
        let (kind, scale) = choose_kind::<W, FLOAT>(model, &residuals[from..to], child, base);
        let last = &mut scales[(kind != STEPS) as usize];
        if let (None, Some(scale)) = (&last, scale) {
            s.first_scale = scale;
        }
        let before = last.unwrap_or(s.first_scale as i32);
        let scale = s.announce(model, strict, kind, before, scale);
        *last = scale.or(*last);
        let coder = Coder { tables: strict.then_some(model.tables), row: Row::new(model, kind, scale) };
        coder.code::<W, FLOAT>(&residuals[from..to], child, base, from, &mut s);
        from = to;
    }
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
        self.prefix.push((KIND, kind));
        self.prefix.push((SCALE, symbol));
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
    fn code<W: Word, const FLOAT: bool>(
        &self,
        residuals: &[W],
        child: &[u8],
        base: &[u8],
        from: usize,
        s: &mut Symbols,
    ) {
        let pairs = child.chunks_exact(W::BYTES).zip(base.chunks_exact(W::BYTES));
        for ((&r, (c, b)), slot) in residuals.iter().zip(pairs).zip(&mut s.body[from..]) {
            let (c, b) = (W::load(c), W::load(b));
            let entry = self.row.entry(b);
            let (context, noise) = ((entry >> BITS & 0x3F) as u8, entry >> 24);
            let r = match self.row.stairs {
                None => r,
                Some(f) => r.sub(W::from_u32(f.get(b) as u32)),
            };
            let r = r.signed() as i32;
            let h = r >> noise;
            let symbol = context::zigzag(h as i64);
            let zero = FLOAT && c.is_zero() && (r != 0 || noise > 0);
            if (-126..=126).contains(&h) && !zero && self.can_code(context, symbol) {
                s.noise.put(r as u32 & ((1 << noise) - 1), noise);
                *slot = (context, symbol);
                continue;
            }
            *slot = (context, ESCAPE);
            if zero {
                slot.1 = if c == zero_of(s.flags, false, b) { ZERO } else { OTHER_ZERO };
            }
            if slot.1 == ESCAPE || !self.can_code(context, slot.1) {
                slot.1 = ESCAPE;
                let length = s.escapes.len();
                s.escapes.resize(length + W::BYTES, 0);
                c.store(&mut s.escapes[length..]);
            }
        }
    }

    #[inline(always)]
    fn can_code(&self, context: u8, symbol: u8) -> bool {
        self.tables.is_none_or(|t| t.can_code(context, symbol))
    }
}
