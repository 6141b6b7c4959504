//! An object's record: what a tensor or blob is, how its blocks are encoded, and the values that bind them.
//!
//! A blob (header, gap, ordinary file) is an object of dtype `""` and shape `[bytes]`. A record's block values fold
//! to its id, by which it is asked for, so a tampered record can make a read fail but never make it lie.
//!
//! Bytes (numbers are LEB128):
//! ```text
//! layout      u8      2
//! dtype       bytes   length, then ASCII as in safetensors; empty for a blob
//! rank        u8      then rank numbers: the shape
//! length      number  decoded bytes
//! block_log2  u8      16
//! cost        u8      blocks decoded for one of these, itself and all bases of bases; 1 to 8
//! row         number  bytes of the last dimension's run, 0 if none
//! bases       u8      then, for each: u8 mapping, 32 id. Past a base's end there are zeros
//!                     0  the same byte range  1  the same elements, of the base's own width  2  all of it
//! params      bytes   the codec's tensor-wide parameters
//! table               for each block: u8 codec tag, number: encoded length
//! values              for each block: 32 bytes
//! ```
//! The encoded blocks lie directly before the record in its pack, in order, each in a frame of its own; one of no
//! bytes has none. The id follows from dtype, shape and values.
//!
//! Layout 1, which is read and no longer written, has the id after the layout, an encoded length of u32 LE, and
//! a frame for each block.

use super::id::{BLOCK, BLOCK_LOG2, BlockValue, Id, block_count, fold, object_id};
use super::wire::{Cursor, Malformed, put_bytes, put_num};

/// Most blocks that may be decoded for one, itself and all bases of bases counted.
pub const MAX_COST: u8 = 8;
/// The codec's parameters of one object, in bytes.
pub const MAX_PARAMS: usize = (1 << 22) + (1 << 17);

/// Which of a base's bytes a block is built on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mapping {
    Bytes,
    Elements,
    Whole,
}

/// What an object's blocks are built on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Base {
    pub id: Id,
    pub mapping: Mapping,
}

impl Mapping {
    const ALL: [Mapping; 3] = [Mapping::Bytes, Mapping::Elements, Mapping::Whole];

    /// First byte and length, in a base of `total` bytes and elements of `base_width`, of what stands for
    /// `len` bytes of block `index` of elements of `width`.
    pub fn range(self, index: u64, len: usize, width: usize, total: u64, base_width: usize) -> (u64, usize) {
        let (width, base_width) = (width as u64, base_width as u64);
        match self {
            Mapping::Bytes => (index * BLOCK, len),
            Mapping::Elements => (index * (BLOCK / width) * base_width, (len as u64 / width * base_width) as usize),
            Mapping::Whole => (0, total as usize),
        }
    }

    /// Most blocks of the base that one block needs.
    pub fn blocks(self, width: usize, total: u64, base_width: usize) -> u64 {
        match self {
            Mapping::Bytes => 1,
            Mapping::Elements => base_width.div_ceil(width) as u64,
            Mapping::Whole => block_count(total),
        }
    }
}

/// How one block is encoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockInfo {
    pub tag: u8,
    pub encoded: u32,
}

/// A tensor or blob as it lies in a pack.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectRecord {
    pub id: Id,
    pub dtype: String,
    pub shape: Vec<u64>,
    pub length: u64,
    pub cost: u8,
    pub row_bytes: u64,
    pub bases: Vec<Base>,
    pub params: Vec<u8>,
    pub blocks: Vec<BlockInfo>,
    pub values: Vec<BlockValue>,
    /// Blocks of no bytes have frames too: layout 1.
    pub empty_frames: bool,
}

impl ObjectRecord {
    /// In layout 2.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128 + self.params.len() + 36 * self.blocks.len());
        out.push(2);
        put_bytes(&mut out, self.dtype.as_bytes());
        out.push(self.shape.len() as u8);
        self.shape.iter().for_each(|&d| put_num(&mut out, d));
        put_num(&mut out, self.length);
        out.extend_from_slice(&[BLOCK_LOG2, self.cost]);
        put_num(&mut out, self.row_bytes);
        out.push(self.bases.len() as u8);
        for base in &self.bases {
            out.push(base.mapping as u8);
            out.extend_from_slice(&base.id.0);
        }
        put_bytes(&mut out, &self.params);
        for b in &self.blocks {
            out.push(b.tag);
            put_num(&mut out, b.encoded as u64);
        }
        self.values.iter().for_each(|v| out.extend_from_slice(v));
        out
    }

    /// Parses a record and checks all that follows from its own bytes. Its id is what they say: whether it is the
    /// one that was asked for is for the caller to check.
    pub fn decode(bytes: &[u8]) -> Result<ObjectRecord, Malformed> {
        let mut c = Cursor(bytes);
        let layout = c.byte()?;
        let said = match layout {
            1 => Some(Id(c.array()?)),
            2 => None,
            _ => return Err(Malformed("unknown object layout")),
        };
        let dtype = c.bytes()?;
        let dtype = String::from_utf8(dtype.to_vec()).map_err(|_| Malformed("a dtype is not text"))?;
        let rank = c.byte()? as usize;
        let shape = (0..rank).map(|_| c.num()).collect::<Result<Vec<_>, _>>()?;
        let length = c.num()?;
        if c.byte()? != BLOCK_LOG2 {
            return Err(Malformed("unknown block size"));
        }
        let cost = c.byte()?;
        if !(1..=MAX_COST).contains(&cost) {
            return Err(Malformed("a block costs too many others"));
        }
        let row_bytes = c.num()?;
        let bases = read_bases(&mut c)?;
        if (cost == 1) != bases.is_empty() {
            return Err(Malformed("cost and bases disagree"));
        }
        let params = c.bytes()?.to_vec();
        if params.len() > MAX_PARAMS {
            return Err(Malformed("codec parameters are too long"));
        }
        let empty_frames = layout == 1;
        let (blocks, values) = read_table(&mut c, length, empty_frames)?;
        if dtype.len() > 255 {
            return Err(Malformed("a dtype is too long"));
        }
        let id = object_id(&dtype, &shape, &fold(&values, length));
        if said.is_some_and(|said| said != id) {
            return Err(Malformed("block values do not fold to the object's id"));
        }
        Ok(ObjectRecord { id, dtype, shape, length, cost, row_bytes, bases, params, blocks, values, empty_frames })
    }

    /// Whether a block of the table has a frame in the pack.
    pub fn has_frame(&self, block: &BlockInfo) -> bool {
        block.encoded > 0 || self.empty_frames
    }

    /// Encoded bytes of all blocks, frames not counted.
    pub fn encoded_bytes(&self) -> u64 {
        self.blocks.iter().map(|b| b.encoded as u64).sum()
    }
}

fn read_bases(c: &mut Cursor) -> Result<Vec<Base>, Malformed> {
    let n = c.byte()?;
    (0..n)
        .map(|_| {
            let mapping = *Mapping::ALL.get(c.byte()? as usize).ok_or(Malformed("unknown mapping to a base"))?;
            Ok(Base { id: Id(c.array()?), mapping })
        })
        .collect()
}

fn read_table(c: &mut Cursor, length: u64, wide: bool) -> Result<(Vec<BlockInfo>, Vec<BlockValue>), Malformed> {
    let n = block_count(length);
    if n.checked_mul(34).is_none_or(|least| least > c.0.len() as u64) {
        return Err(Malformed("the block table does not fit the length"));
    }
    let mut blocks = Vec::with_capacity(n as usize);
    for _ in 0..n {
        let tag = c.byte()?;
        let encoded = if wide { u32::from_le_bytes(c.array()?) as u64 } else { c.num()? };
        if encoded > BLOCK {
            return Err(Malformed("an encoded block is larger than a block"));
        }
        blocks.push(BlockInfo { tag, encoded: encoded as u32 });
    }
    let values = (0..n).map(|_| c.array()).collect::<Result<Vec<_>, _>>()?;
    c.end()?;
    Ok((blocks, values))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> ObjectRecord {
        let values = vec![[7u8; 32], [8; 32]];
        let (dtype, shape, length) = ("F32".to_owned(), vec![2, 10_000], 80_000);
        let id = object_id(&dtype, &shape, &fold(&values, length));
        let blocks = vec![BlockInfo { tag: 3, encoded: 9 }, BlockInfo { tag: 0, encoded: 14_464 }];
        let (bases, params) = (vec![Base { id: Id([5; 32]), mapping: Mapping::Elements }], vec![1, 2, 3]);
        let (cost, row_bytes, empty_frames) = (2, 40_000, false);
        ObjectRecord { id, dtype, shape, length, cost, row_bytes, bases, params, blocks, values, empty_frames }
    }

    #[test]
    fn round_trip_and_no_trust() {
        let bytes = sample().encode();
        assert_eq!(ObjectRecord::decode(&bytes), Ok(sample()));
        for cut in 0..bytes.len() {
            assert!(ObjectRecord::decode(&bytes[..cut]).is_err());
        }
        for at in 0..bytes.len() {
            let mut b = bytes.clone();
            b[at] ^= 1;
            assert!(ObjectRecord::decode(&b) != Ok(sample()));
        }
        let mut last = bytes.clone();
        *last.last_mut().unwrap() ^= 1;
        assert_ne!(ObjectRecord::decode(&last).unwrap().id, sample().id);
    }

    #[test]
    fn layout_1_is_read() {
        let (record, new) = (sample(), sample().encode());
        let table = new.len() - 64 - 2 - 3;
        let mut old = [&[1], &record.id.0[..], &new[1..table]].concat();
        old.extend([3, 9, 0, 0, 0, 0, 0x80, 0x38, 0, 0]);
        old.extend(record.values.concat());
        assert_eq!(ObjectRecord::decode(&old), Ok(ObjectRecord { empty_frames: true, ..record }));
        let mut lie = old.clone();
        lie[1] ^= 1;
        assert!(ObjectRecord::decode(&lie).is_err());
    }
}
