//! Content ids: BLAKE3 of *decoded* content, so that no re-encoding ever changes one.
//!
//! | id | hashes |
//! |---|---|
//! | file digest | the file's bytes: what `b3sum` prints |
//! | object (tensor or blob) | `"mgit object 1\0" ‖ len(dtype) u8 ‖ dtype ‖ rank u8 ‖ dims u64 LE… ‖ BLAKE3(bytes)` |
//! | recipe | the recipe's encoded bytes ([`super::recipe`]) |
//! | version | the version record's JSON bytes ([`super::record`]) |
//!
//! An object's bytes are cut into power-of-two blocks. The BLAKE3 chaining value of each block's subtree
//! is stored with the object, and all of them fold to `BLAKE3(bytes)`: so one block can be checked alone
//! against the id, however it is encoded.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Decoded bytes in a block: the unit of random access. A power of two, at least BLAKE3's 1 KiB chunk.
pub const BLOCK: u64 = 1 << BLOCK_LOG2;
/// log2 of [`BLOCK`], as recorded with each object.
pub const BLOCK_LOG2: u8 = 16;

/// A 32-byte BLAKE3 value. As text: 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub [u8; 32]);

/// The chaining value of one block (for an object of a single block: the root itself).
pub type BlockValue = [u8; 32];

impl Id {
    /// BLAKE3 of `bytes`.
    pub fn of(bytes: &[u8]) -> Id {
        Id(*blake3::hash(bytes).as_bytes())
    }

    /// First twelve hex digits, for people.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

/// Sixteen hex digits that stand for a path, so that what belongs to a repository but lies elsewhere (its
/// socket, its log) has a short name.
pub fn path_tag(path: &Path) -> String {
    Id::of(path.as_os_str().as_encoded_bytes()).to_string()[..16].to_owned()
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Id {
    type Err = &'static str;
    fn from_str(s: &str) -> Result<Id, Self::Err> {
        blake3::Hash::from_hex(s).map(|h| Id(*h.as_bytes())).map_err(|_| "an id is 64 hex digits")
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Id, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Number of blocks that `len` bytes are cut into; an empty object has none.
pub fn block_count(len: u64) -> u64 {
    len.div_ceil(BLOCK)
}

/// Decoded length of block `index` of an object of `len` bytes.
pub fn block_len(len: u64, index: u64) -> usize {
    (len - index * BLOCK).min(BLOCK) as usize
}

/// The value that binds block `index` of an object of `len` bytes to its root.
pub fn block_value(bytes: &[u8], index: u64, len: u64) -> BlockValue {
    debug_assert_eq!(bytes.len(), block_len(len, index));
    if len <= BLOCK {
        return *blake3::hash(bytes).as_bytes();
    }
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(index * BLOCK);
    hasher.update(bytes);
    hasher.finalize_non_root()
}

/// BLAKE3 of an object's bytes from its block values. Their number must be [`block_count`] of `len`.
pub fn fold(values: &[BlockValue], len: u64) -> Id {
    debug_assert_eq!(values.len() as u64, block_count(len));
    match values {
        [] => Id::of(b""),
        [root] => Id(*root),
        _ => {
            let (left, right) = values.split_at(left_blocks(values.len()));
            Id(*merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash).as_bytes())
        }
    }
}

/// BLAKE3's tree: the left child holds the largest power of two that leaves something to the right.
fn left_blocks(n: usize) -> usize {
    n.next_power_of_two() / 2
}

fn subtree(values: &[BlockValue]) -> BlockValue {
    if let [one] = values {
        return *one;
    }
    let (left, right) = values.split_at(left_blocks(values.len()));
    merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
}

/// The id of an object from its dtype (at most 255 bytes), its shape (at most 255 dims) and BLAKE3(bytes).
pub fn object_id(dtype: &str, shape: &[u64], content: &Id) -> Id {
    let mut h = blake3::Hasher::new();
    h.update(b"mgit object 1\0");
    h.update(&[dtype.len() as u8]).update(dtype.as_bytes()).update(&[shape.len() as u8]);
    for dim in shape {
        h.update(&dim.to_le_bytes());
    }
    Id(*h.update(&content.0).finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_values_fold_to_the_hash_of_the_whole() {
        let data: Vec<u8> = (0..(5 * BLOCK + 777)).map(|i| (i * 31 % 251) as u8).collect();
        for len in [0, 1, 1024, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK, 4 * BLOCK + 5, 5 * BLOCK + 777] {
            let bytes = &data[..len as usize];
            let values: Vec<_> =
                bytes.chunks(BLOCK as usize).enumerate().map(|(i, b)| block_value(b, i as u64, len)).collect();
            assert_eq!(fold(&values, len), Id::of(bytes), "{len}");
        }
    }

    #[test]
    fn an_id_is_bound_to_dtype_and_shape() {
        let c = Id::of(b"1234");
        assert_ne!(object_id("F32", &[1], &c), object_id("I32", &[1], &c));
        assert_ne!(object_id("F32", &[1], &c), object_id("F32", &[1, 1], &c));
        assert_eq!(
            object_id("F32", &[1], &c).to_string(),
            object_id("F32", &[1], &c).to_string().parse::<Id>().unwrap().to_string()
        );
    }
}
