//! A block on its own, as byte planes.
//!
//! Idea: the bytes of equal significance have like distributions (Blosc's shuffle; ZipNN 2024). A float is
//! rotated left by one bit first, so that for fp32 and bf16 the top plane is the exponent alone and the sign
//! joins the mantissa, which is noise: the exponent's few values are all there is to win.
//!
//! Layout: `width` planes (see plane.rs), least significant first, of `len / width` bytes each, then the
//! `len % width` last bytes as they are.

use super::plane::{self, at_end, take};
use super::word::{Word, by_width, is_float};
use super::{Damage, Spec};

pub(super) fn encode(spec: Spec, level: i32, raw: &[u8], out: &mut Vec<u8>) {
    by_width!(spec.elem.width(), W => {
        let n = raw.len() / W::BYTES;
        let words: Vec<W> = raw.chunks_exact(W::BYTES).map(|c| rotated::<W>(spec, W::load(c))).collect();
        put_planes(&words, level, &mut vec![0; n], out);
        out.extend_from_slice(&raw[n * W::BYTES..]);
    })
}

pub(super) fn decode(spec: Spec, mut input: &[u8], out: &mut [u8]) -> Result<(), Damage> {
    by_width!(spec.elem.width(), W => {
        let n = out.len() / W::BYTES;
        let mut planes = vec![0; n * W::BYTES];
        for plane in planes.chunks_exact_mut(n.max(1)) {
            plane::get(&mut input, plane)?;
        }
        let (body, tail) = out.split_at_mut(n * W::BYTES);
        let float = is_float(spec.elem);
        for (i, o) in body.chunks_exact_mut(W::BYTES).enumerate() {
            let w = gather::<W>(&planes, n, i);
            if float { w.sign_high() } else { w }.store(o);
        }
        tail.copy_from_slice(take(&mut input, tail.len())?);
        at_end(input)
    })
}

fn rotated<W: Word>(spec: Spec, w: W) -> W {
    if is_float(spec.elem) { w.sign_low() } else { w }
}

/// Appends each byte plane of `words`; `buffer` has their number of bytes.
pub(super) fn put_planes<W: Word>(words: &[W], level: i32, buffer: &mut [u8], out: &mut Vec<u8>) {
    if words.is_empty() {
        return;
    }
    for byte in 0..W::BYTES {
        for (b, w) in buffer.iter_mut().zip(words) {
            *b = (w.to_u64() >> (8 * byte)) as u8;
        }
        plane::put(&buffer[..words.len()], level, out);
    }
}

/// Element `i` of planes of `n` bytes.
#[inline(always)]
pub(super) fn gather<W: Word>(planes: &[u8], n: usize, i: usize) -> W {
    let mut v = 0u64;
    for byte in 0..W::BYTES {
        v |= (planes[byte * n + i] as u64) << (8 * byte);
    }
    W::from_u64(v)
}
