//! A block whose values lie whole steps from their base's: what a lossy import made of it ([`quantize`]).
//!
//! Idea: `y = round(p + k step)`, `p` being the base's value (0 where there is no base) and `k` a whole number: a uniform
//! quantiser of the residual, mid-tread, so that a weight that stays has k = 0. With a step of twice the bound no weight is
//! off by more than the bound, but for the rounding to its type, which is checked for each. A value that no near `k`
//! gives is an exception and stored as it is; zeros, infinities and NaN are never touched.
//!
//! The numbers are words of a float type of their own, START + k, or a zero's own word, or OFF for an exception. They are
//! coded as a block of residuals (residual/) to a base that is START all over, under tables that were learned from them:
//! rows have their scales and zeros their symbol there.
//!
//! Layout: u8 1 when there is a base, else 0; varint exceptions; the exceptions, an element each; the words' RESIDUAL.

use super::formula::{Formula, load, store};
use super::plane::{get_varint, put_varint, take};
use super::residual::{self, Model};
use super::{BLOCK, Damage, Spec};
use crate::model::dtype::Elem;
use std::sync::LazyLock;

/// Elements that are computed side by side.
const CHUNK: usize = 512;

/// The type of the words for elements of `elem`: as wide, but at most 4 bytes.
pub(super) fn words(spec: Spec) -> Spec {
    let width = spec.elem.width();
    let elem = match width {
        2 => Elem::Float { width: 2, mantissa: 10 },
        _ => Elem::Float { width: 4, mantissa: 23 },
    };
    Spec { elem, row_bytes: spec.row_bytes / width * elem.width() }
}

/// Whether elements of this type can lie on a grid.
pub fn can_step(elem: Elem) -> bool {
    Formula::computes(elem)
}

/// The word of k = 0, and the sign of a word.
fn marks(width: usize) -> (u32, u32) {
    if width == 2 { (1 << 14, 1 << 15) } else { (1 << 30, 1 << 31) }
}

/// A block of START, for so many elements, at most those of a block.
pub(super) fn starts(spec: Spec, elements: usize) -> &'static [u8] {
    static ALL: [LazyLock<Vec<u8>>; 2] = [LazyLock::new(|| many(2)), LazyLock::new(|| many(4))];
    fn many(width: usize) -> Vec<u8> {
        marks(width).0.to_le_bytes()[..width].repeat(BLOCK / width)
    }
    let width = words(spec).elem.width();
    &ALL[width / 4][..width * elements]
}

/// Arithmetic on the elements of one type around one base.
struct Grid {
    elem: Elem,
    step: f64,
    /// Values below this are so fine that rounding hardly moves them: the nearest `k` is the only one that can be.
    fine: f64,
    /// The largest `k`.
    most: f64,
}

impl Grid {
    fn new(elem: Elem, step: f64) -> Grid {
        let (mantissa, least) = match elem {
            Elem::Float { mantissa: 52, .. } => (52, f64::from_bits(1)),
            Elem::Float { mantissa: 23, .. } => (23, f64::powi(2.0, -149)),
            Elem::Float { mantissa: 10, .. } => (10, f64::powi(2.0, -24)),
            _ => (7, f64::powi(2.0, -133)),
        };
        // Below the least normal value, elements get no finer.
        let fine = if step / 4.0 < least { 0.0 } else { step / 4.0 * f64::powi(2.0, mantissa) };
        let most = marks(words(Spec { elem, row_bytes: 0 }).elem.width()).0 as f64 - 2.0;
        Grid { elem, step, fine, most }
    }

    /// The nearest `k` for each value; 0 where there is none.
    fn nearest(&self, values: &[f64], bases: &[f64], k: &mut [f64]) {
        for ((k, x), p) in k.iter_mut().zip(values).zip(bases) {
            let near = ((x - p) / self.step).round();
            *k = if near.abs() < self.most { near } else { 0.0 };
        }
    }

    /// The values at `k`, rounded to the type, as bytes.
    fn at(&self, bases: &[f64], k: &[f64], out: &mut [u8]) {
        let mut values = [0.0; CHUNK];
        for ((v, p), k) in values.iter_mut().zip(bases).zip(k) {
            *v = p + k * self.step;
        }
        store(self.elem, &values[..k.len()], out);
    }

    /// As [`at`](Self::at), of one value, with what it stands for.
    fn one(&self, base: f64, k: f64, out: &mut [u8]) -> f64 {
        store(self.elem, &[base + k * self.step], out);
        value(self.elem, out)
    }

    /// The `k`s around the nearest to the value, it first.
    fn around(&self, x: f64, p: f64) -> impl Iterator<Item = f64> + use<> {
        let mut k = [0.0];
        self.nearest(&[x], &[p], &mut k);
        [k[0], k[0] - 1.0, k[0] + 1.0].into_iter()
    }
}

fn value(elem: Elem, bytes: &[u8]) -> f64 {
    let mut v = [0.0f64];
    load(elem, bytes, &mut v);
    v[0]
}

/// The base's values in place of those of `elements` from `first` on; zeros where there is no base.
fn base_values(elem: Elem, base: Option<&[u8]>, first: usize, out: &mut [f64]) {
    match base.and_then(|b| b.get(first * elem.width()..)) {
        Some(base) => load(elem, base, out),
        None => out.fill(0.0),
    }
}

/// By how much weights were changed.
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub struct Errors {
    /// Weights that are finite.
    pub weights: u64,
    pub max: f64,
    pub squares: f64,
}

impl Errors {
    pub fn add(&mut self, other: &Errors) {
        self.weights += other.weights;
        self.max = self.max.max(other.max);
        self.squares += other.squares;
    }

    /// Root mean square.
    pub fn rms(&self) -> f64 {
        (self.squares / self.weights.max(1) as f64).sqrt()
    }

    fn see(&mut self, x: f64, y: f64) {
        let error = (y - x).abs();
        self.weights += 1;
        self.max = self.max.max(error);
        self.squares += error * error;
    }
}

/// By how much a block differs from its base, where both are finite; `max` and `squares` of the differences.
pub fn differences(elem: Elem, raw: &[u8], base: &[u8]) -> Errors {
    let n = raw.len() / elem.width();
    let (mut x, mut p) = (vec![0.0f64; n], vec![0.0f64; n]);
    load(elem, raw, &mut x);
    base_values(elem, Some(base), 0, &mut p);
    let mut errors = Errors::default();
    let pairs = x.into_iter().zip(p).filter(|(x, p)| x.is_finite() && p.is_finite());
    pairs.for_each(|(x, p)| errors.see(x, p));
    errors
}

/// Moves the weights of a block onto the grid of `step` around its base, none by more than `bound`; the rest stays.
/// `base`: as long as `raw`, of the same type. What lies on the grid already does not move.
pub fn quantize(elem: Elem, raw: &[u8], base: Option<&[u8]>, step: f64, bound: f64, out: &mut [u8]) -> Errors {
    let (grid, width) = (Grid::new(elem, step), elem.width());
    let mut errors = Errors::default();
    let [mut x, mut p, mut k, mut y] = [[0.0f64; CHUNK]; 4];
    out.copy_from_slice(raw);
    for (c, (raw, out)) in raw.chunks(CHUNK * width).zip(out.chunks_mut(CHUNK * width)).enumerate() {
        let n = raw.len() / width;
        load(elem, raw, &mut x[..n]);
        base_values(elem, base, c * CHUNK, &mut p[..n]);
        grid.nearest(&x[..n], &p[..n], &mut k[..n]);
        grid.at(&p[..n], &k[..n], out);
        load(elem, out, &mut y[..n]);
        for (j, (raw, out)) in raw.chunks_exact(width).zip(out.chunks_exact_mut(width)).enumerate() {
            let touched = x[j] != 0.0 && x[j].is_finite() && p[j].is_finite();
            let sure = touched && x[j].abs() < grid.fine && (y[j] - x[j]).abs() <= bound;
            if !sure {
                y[j] = if touched { grid.settle(x[j], p[j], bound, raw, out) } else { x[j] };
                if !touched {
                    out.copy_from_slice(raw);
                }
            }
            if x[j].is_finite() {
                errors.see(x[j], y[j]);
            }
        }
    }
    errors
}

impl Grid {
    /// Where one weight comes to lie: where it is, if that is on the grid; else the nearest that the bound allows.
    fn settle(&self, x: f64, p: f64, bound: f64, raw: &[u8], out: &mut [u8]) -> f64 {
        if self.around(x, p).any(|k| self.one(p, k, out) == x && *out == *raw) {
            return x;
        }
        let allowed = |y: f64| y.is_finite() && (y - x).abs() <= bound;
        let found = self.around(x, p).map(|k| self.one(p, k, out)).find(|y| allowed(*y));
        if found.is_none() {
            out.copy_from_slice(raw);
        }
        found.unwrap_or(x)
    }
}

/// The words of a block, and its exceptions, an element each.
pub(super) fn split(spec: Spec, step: f64, raw: &[u8], base: Option<&[u8]>) -> (Vec<u8>, Vec<u8>) {
    let (grid, width) = (Grid::new(spec.elem, step), spec.elem.width());
    let word = words(spec).elem.width();
    let (start, sign) = marks(word);
    let (mut out, mut exceptions) = (Vec::with_capacity(raw.len()), Vec::new());
    let [mut x, mut p, mut k] = [[0.0f64; CHUNK]; 3];
    let mut there = vec![0; CHUNK * width];
    for (c, raw) in raw.chunks(CHUNK * width).enumerate() {
        let n = raw.len() / width;
        load(spec.elem, raw, &mut x[..n]);
        base_values(spec.elem, base, c * CHUNK, &mut p[..n]);
        grid.nearest(&x[..n], &p[..n], &mut k[..n]);
        grid.at(&p[..n], &k[..n], &mut there);
        for (j, (raw, there)) in raw.chunks_exact(width).zip(there.chunks_exact_mut(width)).enumerate() {
            let mut found = (raw == there).then_some(k[j]);
            if found.is_none() && x[j] != 0.0 && x[j].abs() >= grid.fine {
                found = grid.around(x[j], p[j]).find(|k| {
                    grid.one(p[j], *k, there);
                    raw == there
                });
            }
            let w = match found {
                Some(k) => start.wrapping_add_signed(k as i32),
                None if raw[..width - 1].iter().all(|b| *b == 0) && raw[width - 1] & 0x7F == 0 => {
                    if raw[width - 1] == 0 { 0 } else { sign }
                }
                None => {
                    exceptions.extend_from_slice(raw);
                    u32::MAX
                }
            };
            out.extend_from_slice(&w.to_le_bytes()[..word]);
        }
    }
    (out, exceptions)
}

/// `model`: of the words. The length of `raw` is a multiple of the element's.
pub(super) fn encode(
    model: &Model,
    spec: Spec,
    step: f64,
    block: u64,
    raw: &[u8],
    base: Option<&[u8]>,
    out: &mut Vec<u8>,
) {
    let (words, exceptions) = split(spec, step, raw, base);
    out.push(base.is_some() as u8);
    put_varint(exceptions.len() / spec.elem.width(), out);
    out.extend_from_slice(&exceptions);
    let starts = starts(spec, raw.len() / spec.elem.width());
    residual::encode(model, block, &words, 0, starts, out);
}

pub(super) fn decode(
    model: &Model,
    spec: Spec,
    step: f64,
    block: u64,
    mut input: &[u8],
    bases: &[&[u8]],
    out: &mut [u8],
) -> Result<(), Damage> {
    let width = spec.elem.width();
    if !can_step(spec.elem) || !out.len().is_multiple_of(width) || out.len() > BLOCK {
        return Err(Damage("steps of something else than numbers"));
    }
    let base = match take(&mut input, 1)?[0] {
        0 => None,
        _ => Some(*bases.first().filter(|b| b.len() == out.len()).ok_or(Damage("base is missing"))?),
    };
    let count = get_varint(&mut input)?;
    let mut exceptions = take(&mut input, count.checked_mul(width).ok_or(Damage("too many exceptions"))?)?;
    let elements = out.len() / width;
    let starts = starts(spec, elements);
    let mut words = vec![0; starts.len()];
    residual::decode(model, true, block, input, &[starts], &mut words)?;
    let (grid, word) = (Grid::new(spec.elem, step), starts.len() / elements.max(1));
    for (c, out) in out.chunks_mut(CHUNK * width).enumerate() {
        let from = c * CHUNK * word;
        let words = &words[from..from + out.len() / width * word];
        grid.restore(words, word, base, c * CHUNK, out);
        specials(words, word, &mut exceptions, out)?;
    }
    super::plane::at_end(exceptions)
}

impl Grid {
    fn restore(&self, words: &[u8], word: usize, base: Option<&[u8]>, first: usize, out: &mut [u8]) {
        let n = words.len() / word;
        let [mut p, mut k] = [[0.0f64; CHUNK]; 2];
        base_values(self.elem, base, first, &mut p[..n]);
        let start = marks(word).0 as i32;
        match word {
            2 => k
                .iter_mut()
                .zip(words.as_chunks().0)
                .for_each(|(k, w)| *k = (u16::from_le_bytes(*w) as i32 - start) as f64),
            _ => k
                .iter_mut()
                .zip(words.as_chunks().0)
                .for_each(|(k, w)| *k = i32::from_le_bytes(*w).wrapping_sub(start) as f64),
        }
        self.at(&p[..n], &k[..n], out);
    }
}

/// Puts zeros and exceptions in their places.
fn specials(words: &[u8], word: usize, exceptions: &mut &[u8], out: &mut [u8]) -> Result<(), Damage> {
    let plain = match word {
        2 => words.as_chunks().0.iter().all(|w| i16::from_le_bytes(*w) > 0),
        _ => words.as_chunks().0.iter().all(|w| i32::from_le_bytes(*w) > 0),
    };
    if plain {
        return Ok(());
    }
    let width = out.len() / (words.len() / word).max(1);
    for (w, out) in words.chunks_exact(word).zip(out.chunks_exact_mut(width)) {
        let top = w[word - 1];
        if top & 0x80 == 0 && w.iter().any(|b| *b != 0) {
            continue;
        }
        match w.iter().rev().skip(1).all(|b| *b == 0) && top & 0x7F == 0 {
            true => {
                out.fill(0);
                out[width - 1] = top;
            }
            false => out.copy_from_slice(take(exceptions, width)?),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ELEMS: [Elem; 4] = [
        Elem::Float { width: 8, mantissa: 52 },
        Elem::Float { width: 4, mantissa: 23 },
        Elem::Float { width: 2, mantissa: 10 },
        Elem::Float { width: 2, mantissa: 7 },
    ];

    fn bytes(elem: Elem, values: &[f64]) -> Vec<u8> {
        let mut out = vec![0; values.len() * elem.width()];
        store(elem, values, &mut out);
        out
    }

    fn special(v: f64) -> bool {
        v == 0.0 || !v.is_finite()
    }

    /// The bound holds for each weight as it is stored; zeros, NaN and infinities stay; a second time changes nothing.
    fn check(elem: Elem, raw: &[u8], base: Option<&[u8]>, bound: f64) {
        for step in [2.0 * bound, bound] {
            let mut y = vec![0; raw.len()];
            let errors = quantize(elem, raw, base, step, bound, &mut y);
            let mut max = 0.0f64;
            for (a, b) in raw.chunks_exact(elem.width()).zip(y.chunks_exact(elem.width())) {
                let (x, y) = (value(elem, a), value(elem, b));
                if special(x) {
                    assert_eq!(a, b);
                } else {
                    assert!((x - y).abs() <= bound, "{x} {y} {bound}");
                    max = max.max((x - y).abs());
                }
            }
            assert_eq!(errors.max, max);
            let mut again = vec![0; raw.len()];
            assert_eq!(quantize(elem, &y, base, step, bound, &mut again).max, 0.0);
            assert!(again == y);
            let spec = Spec { elem, row_bytes: 0 };
            let (_, exceptions) = split(spec, step, &y, base);
            let stayed: std::collections::HashSet<&[u8]> = raw.chunks_exact(elem.width()).collect();
            let all = exceptions.chunks_exact(elem.width()).all(|e| stayed.contains(e));
            assert!(all, "an exception is a weight that stayed");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn the_bound_holds_and_a_second_time_changes_nothing(
            kind in 0..4usize,
            with_base: bool,
            bound in prop_oneof![Just(1e-4), 1e-12..1e-1, Just(5e-324), Just(1e30)],
            weights in prop::collection::vec((
                prop_oneof![-1e-3..1e-3, -2.0..2.0, -1e5..1e5, any::<f64>(), Just(0.0), Just(-0.0), Just(1.0), Just(0.5)],
                prop_oneof![-1e-3..1e-3, -1e-9..1e-9, -1.0..1.0, any::<f64>(), Just(0.0)],
            ), 1..40),
        ) {
            let elem = ELEMS[kind];
            let base: Vec<f64> = weights.iter().map(|w| w.0).collect();
            let child: Vec<f64> = weights.iter().map(|w| w.0 + w.1).collect();
            let (raw, base) = (bytes(elem, &child), bytes(elem, &base));
            check(elem, &raw, with_base.then_some(&base[..]), bound);
        }

        #[test]
        fn any_bits_at_all(kind in 0..4usize, raw in prop::collection::vec(any::<u8>(), 64), base in prop::collection::vec(any::<u8>(), 64),
                           bound in prop_oneof![1e-8..1e-2, any::<f64>().prop_map(f64::abs).prop_filter("finite", |b| *b > 0.0 && b.is_finite())]) {
            let bound: f64 = bound;
            prop_assume!((2.0 * bound).is_finite());
            check(ELEMS[kind], &raw, Some(&base), bound);
        }
    }

    #[test]
    fn halves_cross_an_exponent_and_subnormals_hold() {
        for elem in [ELEMS[2], ELEMS[3]] {
            let all: Vec<u8> = (0..=u16::MAX).flat_map(|w| w.to_le_bytes()).collect();
            let base: Vec<u8> = (0..=u16::MAX).flat_map(|w| (w ^ (w % 7)).to_le_bytes()).collect();
            for bound in [1e-8, 1e-5, 1e-4, 3e-3, 1.0] {
                check(elem, &all, Some(&base), bound);
                check(elem, &all, None, bound);
            }
        }
    }
}
