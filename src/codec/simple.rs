//! Blocks that say themselves: as they are, one repeated element, equal to a base, plain zstd.
//!
//! Layouts: RAW the bytes. CONSTANT one element of `width` bytes (the block ends with its first bytes when it is
//! no multiple). SAME nothing for base 0, else one byte, the base's index. ZSTD one frame without checksum.

use super::Damage;
use super::plane;

/// The element that fills `raw`, if one does.
pub(super) fn constant(raw: &[u8], width: usize) -> Option<&[u8]> {
    let first = raw.get(..width)?;
    (raw.len() > width && raw[width..] == raw[..raw.len() - width]).then_some(first)
}

pub(super) fn fill(encoded: &[u8], width: usize, out: &mut [u8]) -> Result<(), Damage> {
    if encoded.len() != width {
        return Err(Damage("constant of another width"));
    }
    out.chunks_mut(width).for_each(|c| c.copy_from_slice(&encoded[..c.len()]));
    Ok(())
}

pub(super) fn copy(encoded: &[u8], out: &mut [u8]) -> Result<(), Damage> {
    if encoded.len() != out.len() {
        return Err(Damage("raw block of another length"));
    }
    out.copy_from_slice(encoded);
    Ok(())
}

pub(super) fn same(encoded: &[u8], bases: &[&[u8]], out: &mut [u8]) -> Result<(), Damage> {
    let index = match encoded {
        [] => 0,
        [i] => *i as usize,
        _ => return Err(Damage("bytes after the encoded block")),
    };
    copy(bases.get(index).ok_or(Damage("base is missing"))?, out)
}

pub(super) fn zstd(encoded: &[u8], out: &mut [u8]) -> Result<(), Damage> {
    plane::decompress(encoded, out)
}
