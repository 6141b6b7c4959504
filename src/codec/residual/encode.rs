//! From a block and its base to symbols, raw bits and escapes (layout: mod.rs).

use super::*;
use crate::codec::ans::{BITS, ESCAPE};
use crate::codec::bits::BitWriter;
use crate::codec::context::{KIND, OTHER_ZERO, SCALE, ZERO};
use crate::codec::plane::put_varint;
use crate::codec::tables::Counts;

/// A block turned into symbols.
pub(super) struct Symbols {
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
    /// Adds the first `k` of a group.
    #[inline(always)]
    fn add<W: Word, const FLOAT: bool>(&mut self, row: &Row, g: &Group<W>, k: usize) {
        for j in 0..LANES {
            let counts = (j < k && !(FLOAT && g.child[j].is_zero())) as u32;
            let e = (row.exponent.get(g.base[j]) as u32).clamp(1, 254);
            let size = (g.residual[j].magnitude() as u32 & counts.wrapping_neg()) as f32;
            self.steps[j] += size * f32::from_bits(e << 23);
            self.units[j] += size;
            self.exponents[j] += e & counts.wrapping_neg();
            self.count[j] += counts;
        }
        if let Some(f) = &row.stairs {
            for j in 0..k.min(LANES) {
                let r = g.residual[j].sub(W::from_u32(f.get(g.base[j]) as u32));
                self.stairs[j] += if FLOAT && g.child[j].is_zero() { 0.0 } else { r.magnitude() as u32 as f32 };
            }
        }
    }
}

/// LANES elements side by side.
#[derive(Clone, Copy)]
struct Group<W> {
    child: [W; LANES],
    base: [W; LANES],
    residual: [W; LANES],
}

/// A block's elements in groups; the last is filled up with zeros.
#[inline(always)]
fn groups<W: Word, const FLOAT: bool>(raw: &[u8], base: &[u8]) -> Vec<Group<W>> {
    let chunk = LANES * W::BYTES;
    let whole = raw.len() - raw.len() % W::BYTES;
    let load = |bytes: &[u8]| {
        let mut words = [W::default(); LANES];
        words.iter_mut().zip(bytes.chunks_exact(W::BYTES)).for_each(|(w, b)| *w = W::load(b));
        words
    };
    let pairs = raw[..whole].chunks(chunk).zip(base[..whole].chunks(chunk));
    let group = |(c, b)| {
        let (child, base) = (load(c), load(b));
        Group { child, base, residual: std::array::from_fn(|j| residual::<W, FLOAT>(child[j], base[j])) }
    };
    pairs.map(group).collect()
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

/// The kind that is likely the cheapest for `n` elements, and its scale; None when nothing differs.
#[inline(always)]
fn choose_kind<W: Word, const FLOAT: bool>(model: &Model, groups: &[Group<W>], n: usize) -> (u8, Option<i16>) {
    let row = Row::new(model, STAIRS, Some(0));
    let mut sums = Sums::default();
    for (i, g) in groups.iter().enumerate() {
        sums.add::<W, FLOAT>(&row, g, n - i * LANES);
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
    let groups = groups::<W, FLOAT>(raw, base);
    let mut s = Symbols {
        prefix: Vec::new(),
        body: Vec::with_capacity(n + LANES),
        noise: BitWriter::new(raw.len()),
        scales: Vec::new(),
        escapes: Vec::new(),
        first_scale: 0,
        flags: if FLOAT { zero_flags(&groups, n) } else { 0 },
    };
    let mut scales = [None, Some(0)];
    let mut from = 0;
    for to in segments(model.spec, block, n) {
        let segment = &groups[from / LANES..to.div_ceil(LANES)];
        let (kind, scale) = choose_kind::<W, FLOAT>(model, segment, to - from);
        let last = &mut scales[(kind != STEPS) as usize];
        if let (None, Some(scale)) = (&last, scale) {
            s.first_scale = scale;
        }
        let before = last.unwrap_or(s.first_scale as i32);
        let scale = s.announce(model, strict, kind, before, scale);
        *last = scale.or(*last);
        let coder = Coder { tables: strict.then_some(model.tables), row: Row::new(model, kind, scale) };
        for (i, g) in segment.iter().enumerate() {
            coder.group::<W, FLOAT>(g, (to - from - i * LANES).min(LANES), &mut s);
        }
        from = to;
    }
    s
}

/// Do new zeros keep the base's sign more often than they are +0?
#[inline(always)]
fn zero_flags<W: Word>(groups: &[Group<W>], n: usize) -> u8 {
    let (mut same, mut plus) = (0u32, 0u32);
    for g in &groups[..n / LANES] {
        for j in 0..LANES {
            let zero = g.child[j].is_zero();
            same += (zero && g.child[j].is_negative() == g.base[j].is_negative()) as u32;
            plus += (zero && !g.child[j].is_negative()) as u32;
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
    /// Codes the first `k` of a group; the usual case, nothing special among them, in steps that vectorise.
    #[inline(always)]
    fn group<W: Word, const FLOAT: bool>(&self, g: &Group<W>, k: usize, s: &mut Symbols) {
        let entries: [u32; LANES] = std::array::from_fn(|j| self.row.entry(g.base[j]));
        let mut r: [u32; LANES] = std::array::from_fn(|j| g.residual[j].signed() as u32);
        if let Some(f) = &self.row.stairs {
            (0..LANES).for_each(|j| r[j] = g.residual[j].sub(W::from_u32(f.get(g.base[j]) as u32)).signed() as u32);
        }
        let mut symbols = [(0u8, ESCAPE); LANES];
        let mut special = false;
        for j in 0..LANES {
            let noise = entries[j] >> 24;
            let h = r[j] as i32 >> noise;
            let symbol = context::zigzag(h as i64);
            special |= !(-126..=126).contains(&h) | (FLOAT && g.child[j].is_zero() && (r[j] | noise) != 0);
            symbols[j] = ((entries[j] >> BITS & 0x3F) as u8, symbol);
        }
        special |= self.tables.is_some_and(|t| symbols[..k].iter().any(|s| !t.can_code(s.0, s.1)));
        if special {
            self.specials::<W, FLOAT>(g, &r, &entries, k, &mut symbols, s);
        }
        let noise = std::array::from_fn(|j| if symbols[j].1 < ZERO { entries[j] >> 24 } else { 0 });
        let low = std::array::from_fn(|j| r[j] & ((1u32 << noise[j]) - 1));
        s.noise.put_group::<LANES>(&low, &noise, k);
        s.body.extend_from_slice(&symbols[..k]);
    }

    /// Zeros and escapes.
    #[inline(never)]
    fn specials<W: Word, const FLOAT: bool>(
        &self,
        g: &Group<W>,
        r: &[u32; LANES],
        entries: &[u32; LANES],
        k: usize,
        symbols: &mut [(u8, u8); LANES],
        s: &mut Symbols,
    ) {
        for j in 0..k {
            let (c, b, noise) = (g.child[j], g.base[j], entries[j] >> 24);
            let (context, mut symbol) = symbols[j];
            if FLOAT && c.is_zero() && (r[j] | noise) != 0 {
                symbol = if c == zero_of(s.flags, false, b) { ZERO } else { OTHER_ZERO };
            } else if !(-126..=126).contains(&(r[j] as i32 >> noise)) {
                symbol = ESCAPE;
            }
            if symbol == ESCAPE || self.tables.is_some_and(|t| !t.can_code(context, symbol)) {
                symbol = ESCAPE;
                let length = s.escapes.len();
                s.escapes.resize(length + W::BYTES, 0);
                c.store(&mut s.escapes[length..]);
            }
            symbols[j].1 = symbol;
        }
    }
}
