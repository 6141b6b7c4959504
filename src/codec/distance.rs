//! How far two tensors are apart, cheaply: what a delta between them would cost.
//!
//! Mean over the elements of `log2(1 + |ord(a) - ord(b)|)`, read off as the magnitude's bit length (within one
//! bit of the logarithm, and 0 exactly for equal). Ordinary bytes: 8 for each byte that differs.

use super::word::{Word, by_width, is_float, residual};
use crate::model::dtype::Elem;

/// Mean bits an element by which `a` differs from `b`; lower is nearer. Lengths equal (the shorter counts).
pub fn distance(elem: Elem, a: &[u8], b: &[u8]) -> f64 {
    let width = elem.width();
    let n = a.len().min(b.len()) / width;
    if n == 0 {
        return if a == b { 0.0 } else { 8.0 };
    }
    if elem == Elem::Bytes {
        return a.iter().zip(b).filter(|(x, y)| x != y).count() as f64 * 8.0 / n as f64;
    }
    let bits: u64 = by_width!(width, W => {
        if is_float(elem) { total::<W, true>(a, b) } else { total::<W, false>(a, b) }
    });
    bits as f64 / n as f64
}

fn total<W: Word, const FLOAT: bool>(a: &[u8], b: &[u8]) -> u64 {
    let pairs = a.chunks_exact(W::BYTES).zip(b.chunks_exact(W::BYTES));
    pairs.map(|(x, y)| residual::<W, FLOAT>(W::load(x), W::load(y)).magnitude_bits() as u64).sum()
}
