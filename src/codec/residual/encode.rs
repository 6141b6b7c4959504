//! From a block and its base to symbols, raw bits and escapes (layout: mod.rs).

use super::*;
use crate::codec::ans::{BITS, ESCAPE};
use crate::codec::bits::BitWriter;
use crate::codec::context::{KIND, OTHER_ZERO, SCALE, ZERO};
use crate::codec::plane::put_varint;
use crate::codec::tables::Counts;
use crate::codec::word::residual;

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
pub(in crate::codec) fn count(model: &Model, raw: &[u8], base: &[u8], counts: &mut Counts) {
    let s = by_kind!(model.spec, W, FLOAT => symbols::<W, FLOAT>(model, 0, raw, base, false));
    for (context, symbol) in s.prefix.into_iter().chain(s.body) {
        counts[context as usize][symbol as usize] += 1;
    }
}

pub(in crate::codec) fn encode(model: &Model, block: u64, raw: &[u8], index: u8, base: &[u8], out: &mut Vec<u8>) {
    let s = by_kind!(model.spec, W, FLOAT => symbols::<W, FLOAT>(model, block, raw, base, true));
    let coded = model.tables.encode(&s.prefix, &s.body);
    out.extend_from_slice(&[index, s.flags]);
    out.extend_from_slice(&s.first_scale.to_le_bytes());
    put_varint(coded.words.len(), out);
    put_varint(s.raw.len(), out);
    coded.write(out);
    out.extend_from_slice(&s.raw);
    out.extend_from_slice(&s.scales);
    out.extend_from_slice(&s.escapes);
    out.extend_from_slice(&raw[raw.len() - raw.len() % model.spec.elem.width()..]);
}

/// What a segment would cost in one kind: bits an element, but for a constant.
#[derive(Clone, Copy)]
struct Fit {
    scale: Option<i16>,
    bits: f64,
}

impl Fit {
    /// From the sum of the sizes of `n` differences, in units of exponent `exponent`.
    fn new(sum: f64, n: u32, exponent: f64) -> Fit {
        if sum <= 0.0 {
            return Fit { scale: None, bits: -12.0 };
        }
        let log = (sum / n as f64).log2();
        Fit { scale: Some((4.0 * log).round().clamp(-2000.0, 2000.0) as i16), bits: (log - exponent).max(-10.0) }
    }
}

/// The kind that is likely the cheapest, and its scale; None when nothing differs.
fn choose_kind<W: Word, const FLOAT: bool>(
    model: &Model,
    residuals: &[W],
    child: &[u8],
    base: &[u8],
) -> (u8, Option<i16>) {
    let exponent = Exponent::of(model.spec.elem);
    let finder = model.stairs.map(|s| s.finder(model.spec));
    let (mut steps, mut units, mut stairs) = (0.0, 0.0, 0.0);
    let (mut exponents, mut n) = (0u64, 0u32);
    for ((r, c), b) in residuals.iter().zip(child.chunks_exact(W::BYTES)).zip(base.chunks_exact(W::BYTES)) {
        let b = W::load(b);
        if FLOAT && W::load(c).is_zero() {
            continue;
        }
        let e = exponent.get(b).max(1) as u64;
        let size = r.magnitude() as u32 as f64;
        steps += size * f64::from_bits((1023 + e) << 52);
        units += size;
        exponents += e;
        n += 1;
        if let Some(f) = &finder {
            stairs += r.sub(W::from_u32(f.get(b) as u32)).magnitude() as f64;
        }
    }
    let n = n.max(1);
    let steps = Fit::new(steps, n, exponents as f64 / n as f64);
    let units = Fit::new(units, n, -0.1);
    let mut best = (STEPS, steps);
    if FLOAT && units.bits < best.1.bits {
        best = (UNITS, units);
    }
    let stairs = Fit::new(stairs, n, -1.0);
    if finder.is_some() && stairs.bits < best.1.bits {
        best = (STAIRS, stairs);
    }
    (best.0, best.1.scale)
}

/// `strict`: only symbols that the tables can code.
fn symbols<W: Word, const FLOAT: bool>(model: &Model, block: u64, raw: &[u8], base: &[u8], strict: bool) -> Symbols {
    let n = raw.len() / W::BYTES;
    let residuals: Vec<W> = raw
        .chunks_exact(W::BYTES)
        .zip(base.chunks_exact(W::BYTES))
        .map(|(c, b)| residual::<W, FLOAT>(W::load(c), W::load(b)))
        .collect();
    let mut s = Symbols { body: Vec::with_capacity(n), ..Symbols::default() };
    s.flags = zero_flags::<W, FLOAT>(raw, base);
    let mut bits = BitWriter::with_capacity(raw.len() + 8);
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
        let coder = Coder { tables: model.tables, row: Row::new(model, kind, scale), strict };
        coder.code::<W, FLOAT>(&residuals[from..to], child, base, &mut s, &mut bits);
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
    tables: &'a Tables,
    row: Row<'a>,
    strict: bool,
}

impl Coder<'_> {
    fn code<W: Word, const FLOAT: bool>(
        &self,
        residuals: &[W],
        child: &[u8],
        base: &[u8],
        s: &mut Symbols,
        bits: &mut BitWriter,
    ) {
        for ((&r, c), b) in residuals.iter().zip(child.chunks_exact(W::BYTES)).zip(base.chunks_exact(W::BYTES)) {
            let (c, b) = (W::load(c), W::load(b));
            let entry = self.row.entry(b);
            let (context, noise) = ((entry >> BITS & 0x3F) as u8, entry >> 24);
            let r = self.row.stairs.map_or(r, |f| r.sub(W::from_u32(f.get(b) as u32))).signed();
            let h = r >> noise;
            let mut symbol = if (-126..=126).contains(&h) { context::zigzag(h) } else { ESCAPE };
            if FLOAT && c.is_zero() && (r != 0 || noise > 0) {
                symbol = if c == zero_of(s.flags, false, b) { ZERO } else { OTHER_ZERO };
            }
            if symbol == ESCAPE || self.strict && !self.tables.can_code(context, symbol) {
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
