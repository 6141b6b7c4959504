//! Short checks and the header that packs and journals share. Pure bytes; layout in `format.md`.
//!
//! A check finds accidents, not forgery: ids, which are whole BLAKE3 values, do that.

use super::{Result, StoreError};

/// Version of the format that this mgit writes, and the newest that it reads.
pub const VERSION: u32 = 1;
/// Required-feature bits that this mgit knows.
pub const FEATURES: u32 = 0;
/// Bytes of a header.
pub const HEADER: usize = 28;

/// First eight bytes of BLAKE3 of all parts.
pub fn check8(parts: &[&[u8]]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    parts.iter().for_each(|p| {
        hasher.update(p);
    });
    *hasher.finalize().as_bytes().first_chunk().expect("a hash has 32 bytes")
}

/// First four bytes of BLAKE3 of all parts.
pub fn check4(parts: &[&[u8]]) -> [u8; 4] {
    *check8(parts).first_chunk().expect("eight are more than four")
}

/// The first [`HEADER`] bytes of a pack or journal.
pub fn header(magic: &[u8; 8], id: [u8; 8]) -> [u8; HEADER] {
    header_of(magic, VERSION, FEATURES, id)
}

pub(super) fn header_of(magic: &[u8; 8], version: u32, features: u32, id: [u8; 8]) -> [u8; HEADER] {
    let mut out = [0; HEADER];
    out[..8].copy_from_slice(magic);
    out[8..12].copy_from_slice(&version.to_le_bytes());
    out[12..16].copy_from_slice(&features.to_le_bytes());
    out[16..24].copy_from_slice(&id);
    let check = check4(&[&out[..24]]);
    out[24..].copy_from_slice(&check);
    out
}

/// The id in a header of `what`, once its check, version and features are known to be good.
pub fn read_header(magic: &[u8; 8], bytes: &[u8; HEADER], what: &str) -> Result<[u8; 8]> {
    if &bytes[..8] != magic || bytes[24..] != check4(&[&bytes[..24]]) {
        return Err(StoreError::damaged(format!("{what}: its header")));
    }
    let word = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("a header has 28 bytes"));
    if word(8) != VERSION {
        return Err(StoreError::Later { what: format!("{what} (format {})", word(8)) });
    }
    if word(12) & !FEATURES != 0 {
        return Err(StoreError::Later { what: format!("{what} (features {:#x})", word(12) & !FEATURES) });
    }
    Ok(*bytes[16..].first_chunk().expect("a header has 28 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flip_in_a_header_is_damage_and_a_later_one_says_so() {
        let good = header(b"mgitpack", [7; 8]);
        assert_eq!(read_header(b"mgitpack", &good, "x").unwrap(), [7; 8]);
        for bit in 0..HEADER * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(read_header(b"mgitpack", &bad, "x"), Err(StoreError::Damaged { .. })), "{bit}");
        }
        for later in [header_of(b"mgitpack", 2, 0, [7; 8]), header_of(b"mgitpack", 1, 8, [7; 8])] {
            let e = read_header(b"mgitpack", &later, "x").unwrap_err();
            assert!(e.to_string().contains("later mgit"), "{e}");
        }
    }
}
