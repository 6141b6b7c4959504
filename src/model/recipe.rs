//! A file as a list of extents: how its bytes are put together from objects.
//!
//! Any container can be cut this way (safetensors now; torch zips and GGUF later) without a new format:
//! what is not a tensor is a blob. Extents are in file order, none is empty, and their lengths add up to the file's size.
//!
//! Bytes (numbers are LEB128):
//! ```text
//! layout    u8      1
//! digest    32      BLAKE3 of the file's bytes
//! extents   number  then, for each:
//!   object  32      id of a tensor or blob
//!   offset  number  first byte within the object
//!   length  number  bytes, at least 1
//! ```
//! The recipe's id is BLAKE3 of these bytes.

use super::id::Id;
use super::wire::{Cursor, Malformed, put_num};

/// `length` bytes of `object`, from `offset` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    pub object: Id,
    pub offset: u64,
    pub length: u64,
}

/// How one file is made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recipe {
    pub digest: Id,
    pub extents: Vec<Extent>,
}

impl Recipe {
    /// The file's size in bytes.
    pub fn size(&self) -> u64 {
        self.extents.iter().map(|e| e.length).sum()
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![1];
        out.extend_from_slice(&self.digest.0);
        put_num(&mut out, self.extents.len() as u64);
        for e in &self.extents {
            out.extend_from_slice(&e.object.0);
            put_num(&mut out, e.offset);
            put_num(&mut out, e.length);
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Recipe, Malformed> {
        let mut c = Cursor(bytes);
        if c.byte()? != 1 {
            return Err(Malformed("unknown recipe layout"));
        }
        let digest = Id(c.array()?);
        let n = c.count(34)?;
        let mut extents = Vec::with_capacity(n);
        let mut total = 0u64;
        for _ in 0..n {
            let e = Extent { object: Id(c.array()?), offset: c.num()?, length: c.num()? };
            total = total.checked_add(e.length).ok_or(Malformed("a file is too large"))?;
            if e.length == 0 || e.offset.checked_add(e.length).is_none() {
                return Err(Malformed("an extent is empty or too long"));
            }
            extents.push(e);
        }
        c.end()?;
        Ok(Recipe { digest, extents })
    }

    pub fn id(&self) -> Id {
        Id::of(&self.encode())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_pinned_id() {
        let e = Extent { object: Id::of(b"o"), offset: 3, length: 300 };
        let r = Recipe { digest: Id::of(b"f"), extents: vec![e, e] };
        assert_eq!(Recipe::decode(&r.encode()), Ok(r.clone()));
        assert_eq!(r.size(), 600);
        for cut in 0..r.encode().len() {
            assert!(Recipe::decode(&r.encode()[..cut]).is_err());
        }
    }
}
