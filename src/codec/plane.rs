//! One run of bytes whose length the reader knows, at its smallest.
//!
//! Layout: a mode byte, then
//!   0 RAW       the bytes
//!   1 ZSTD      u24 little-endian length, then a zstd frame without checksum and content size
//!   2 CONSTANT  the byte that fills the run
//! Runs whose byte histogram is flat are not offered to zstd: they only cost time.
//! zstd contexts are thread-local: making one costs more than a block.

use super::Damage;
use std::cell::RefCell;
use zstd::bulk::{Compressor, Decompressor};

const RAW: u8 = 0;
const ZSTD: u8 = 1;
const CONSTANT: u8 = 2;

struct Contexts {
    compressors: Vec<(i32, Compressor<'static>)>,
    decompressor: Option<Decompressor<'static>>,
    scratch: Vec<u8>,
}

thread_local! {
    static CONTEXTS: RefCell<Contexts> =
        const { RefCell::new(Contexts { compressors: Vec::new(), decompressor: None, scratch: Vec::new() }) };
}

/// Appends a zstd frame; false (and nothing appended) where zstd failed or won less than a byte.
pub(super) fn compress(bytes: &[u8], level: i32, out: &mut Vec<u8>) -> bool {
    CONTEXTS.with_borrow_mut(|c| {
        let at = match c.compressors.iter().position(|(l, _)| *l == level) {
            Some(at) => at,
            None => {
                let Ok(mut new) = Compressor::new(level) else { return false };
                if new.include_checksum(false).and(new.include_contentsize(false)).is_err() {
                    return false;
                }
                c.compressors.push((level, new));
                c.compressors.len() - 1
            }
        };
        c.scratch.resize(zstd::zstd_safe::compress_bound(bytes.len()), 0);
        match c.compressors[at].1.compress_to_buffer(bytes, c.scratch.as_mut_slice()) {
            Ok(n) if n < bytes.len() => {
                out.extend_from_slice(&c.scratch[..n]);
                true
            }
            _ => false,
        }
    })
}

/// Fills `out` exactly from one zstd frame. The one-shot decoder allocates nothing that its input sizes.
pub(super) fn decompress(frame: &[u8], out: &mut [u8]) -> Result<(), Damage> {
    CONTEXTS.with_borrow_mut(|c| {
        if c.decompressor.is_none() {
            c.decompressor = Decompressor::new().ok();
        }
        let d = c.decompressor.as_mut().ok_or(Damage("no zstd context"))?;
        match d.decompress_to_buffer(frame, out) {
            Ok(n) if n == out.len() => Ok(()),
            Ok(_) => Err(Damage("zstd frame is short")),
            Err(_) => Err(Damage("bad zstd frame")),
        }
    })
}

/// Shannon bits of the bytes' histogram.
pub(super) fn entropy_bits(bytes: &[u8]) -> f64 {
    let mut counts = [[0u32; 256]; 4];
    let mut chunks = bytes.chunks_exact(4);
    for c in &mut chunks {
        for k in 0..4 {
            counts[k][c[k] as usize] += 1;
        }
    }
    chunks.remainder().iter().for_each(|&b| counts[0][b as usize] += 1);
    let n = bytes.len() as f64;
    (0..256)
        .map(|b| (counts[0][b] + counts[1][b] + counts[2][b] + counts[3][b]) as f64)
        .filter(|&c| c > 0.0)
        .map(|c| c * (n / c).log2())
        .sum()
}

/// Appends the run.
pub(super) fn put(bytes: &[u8], level: i32, out: &mut Vec<u8>) {
    if let [first, rest @ ..] = bytes
        && bytes.len() > 1
        && rest.iter().all(|b| b == first)
    {
        return out.extend_from_slice(&[CONSTANT, *first]);
    }
    let start = out.len();
    if bytes.len() >= 32 && bytes.len() < 1 << 24 && entropy_bits(bytes) < 7.85 * bytes.len() as f64 {
        out.extend_from_slice(&[ZSTD, 0, 0, 0]);
        if compress(bytes, level, out) && out.len() - start < bytes.len() {
            let length = (out.len() - start - 4) as u32;
            out[start + 1..start + 4].copy_from_slice(&length.to_le_bytes()[..3]);
            return;
        }
        out.truncate(start);
    }
    out.push(RAW);
    out.extend_from_slice(bytes);
}

/// Takes one run off the front of `input` and fills `out` with it.
pub(super) fn get(input: &mut &[u8], out: &mut [u8]) -> Result<(), Damage> {
    match take(input, 1)?[0] {
        RAW => out.copy_from_slice(take(input, out.len())?),
        CONSTANT => out.fill(take(input, 1)?[0]),
        ZSTD => {
            let l = take(input, 3)?;
            let length = u32::from_le_bytes([l[0], l[1], l[2], 0]) as usize;
            decompress(take(input, length)?, out)?;
        }
        _ => return Err(Damage("unknown mode of a plane")),
    }
    Ok(())
}

/// Takes `n` bytes off the front.
pub(super) fn take<'a>(input: &mut &'a [u8], n: usize) -> Result<&'a [u8], Damage> {
    let (head, tail) = input.split_at_checked(n).ok_or(Damage("encoded block is short"))?;
    *input = tail;
    Ok(head)
}

pub(super) fn at_end(input: &[u8]) -> Result<(), Damage> {
    if input.is_empty() { Ok(()) } else { Err(Damage("bytes after the encoded block")) }
}

/// Seven bits a byte, lowest first, the top bit set where more follow.
pub(super) fn put_varint(mut v: usize, out: &mut Vec<u8>) {
    while v >= 128 {
        out.push(v as u8 | 128);
        v >>= 7;
    }
    out.push(v as u8);
}

pub(super) fn get_varint(input: &mut &[u8]) -> Result<usize, Damage> {
    let mut v = 0;
    for shift in (0..28).step_by(7) {
        let b = take(input, 1)?[0] as usize;
        v |= (b & 127) << shift;
        if b < 128 {
            return Ok(v);
        }
    }
    Err(Damage("number is too long"))
}
