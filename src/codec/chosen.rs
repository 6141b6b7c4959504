//! A block whose every element is that of one base or of another: what a mask picked.
//!
//! Idea: a model that is its base plus a masked vector (EMR-Merging) is told by a bit an element once both are known.
//!
//! Layout: a plane (plane.rs) of one bit an element, the first in the lowest bit: 1 where it is base 0's. The last
//! `len % width` bytes of the block are base 0's.

use super::plane::{self, at_end};
use super::{Damage, Spec};

/// Appends the encoded block; false, and nothing, where an element is neither's.
pub(super) fn encode(spec: Spec, level: i32, raw: &[u8], bases: &[&[u8]], out: &mut Vec<u8>) -> bool {
    let [on, off] = bases else { return false };
    let width = spec.elem.width();
    let n = raw.len() / width;
    if on.len() != raw.len() || off.len() != raw.len() || raw[n * width..] != on[n * width..] {
        return false;
    }
    let mut mask = vec![0u8; n.div_ceil(8)];
    let elements = raw.chunks_exact(width).zip(on.chunks_exact(width)).zip(off.chunks_exact(width));
    for (i, ((raw, on), off)) in elements.enumerate() {
        match raw == on {
            true => mask[i / 8] |= 1 << (i % 8),
            false if raw == off => {}
            false => return false,
        }
    }
    plane::put(&mask, level, out);
    true
}

pub(super) fn decode(spec: Spec, mut encoded: &[u8], bases: &[&[u8]], out: &mut [u8]) -> Result<(), Damage> {
    let [on, off] = bases else { return Err(Damage("base is missing")) };
    if on.len() != out.len() || off.len() != out.len() {
        return Err(Damage("a base of another length"));
    }
    let width = spec.elem.width();
    let mut mask = vec![0u8; (out.len() / width).div_ceil(8)];
    plane::get(&mut encoded, &mut mask)?;
    at_end(encoded)?;
    out.copy_from_slice(on);
    for (i, (out, off)) in out.chunks_exact_mut(width).zip(off.chunks_exact(width)).enumerate() {
        if mask[i / 8] >> (i % 8) & 1 == 0 {
            out.copy_from_slice(off);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::dtype::Elem;

    #[test]
    fn a_mask_comes_back_and_what_is_neither_is_left() {
        let spec = Spec { elem: Elem::Float { width: 4, mantissa: 23 }, row_bytes: 0 };
        let (on, off): (Vec<u8>, Vec<u8>) = ((0..203).collect(), (0..203).map(|b| b + 1).collect());
        let mut raw = on.clone();
        [2, 3, 30].into_iter().for_each(|i| raw[4 * i..][..4].copy_from_slice(&off[4 * i..][..4]));
        let mut out = Vec::new();
        assert!(encode(spec, 3, &raw, &[&on, &off], &mut out));
        assert!(out.len() < 10);
        let mut back = vec![0; raw.len()];
        assert_eq!(decode(spec, &out, &[&on, &off], &mut back), Ok(()));
        assert_eq!(back, raw);
        for cut in 0..out.len() {
            assert!(decode(spec, &out[..cut], &[&on, &off], &mut back).is_err());
        }
        assert!(decode(spec, &out, &[&on], &mut back).is_err());
        raw[8] = 99;
        assert!(!encode(spec, 3, &raw, &[&on, &off], &mut vec![]));
    }
}
