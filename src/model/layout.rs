//! Where the tensors of a safetensors file lie, without touching their bytes.
//!
//! A file is `u64 LE header length ‖ JSON header ‖ data`. [`cut`] turns a header into pieces that cover the
//! whole file in order: the header itself, each tensor, and the gaps between and after them. The
//! `safetensors` crate refuses gaps, unknown dtypes and foreign key order, all of which exist and must
//! round-trip, so the header is read here; what no reader could make sense of (overlaps, offsets past the
//! end, duplicate names, a shape that does not fit its bytes) is refused with the tensor's name.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::dtype;
use super::name::printable;

/// Largest header that is read, the same bound as the safetensors crate's.
pub const MAX_HEADER: u64 = 100_000_000;

/// Why a file is not a safetensors file.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LayoutError {
    #[error("too short to be a safetensors file ({0} bytes)")]
    Short(u64),
    #[error("the header's length, {0} bytes, goes past the end of the file: truncated, or not a safetensors file")]
    HeaderPastEnd(u64),
    #[error("the header's length, {0} bytes, is over the format's limit of 100 MB: not a safetensors file")]
    HeaderTooLong(u64),
    #[error("this is a Git LFS pointer, not the weights: run 'git lfs pull' first")]
    LfsPointer,
    #[error("the header is not valid: {0}")]
    Header(String),
    #[error("tensor '{0}': {1}")]
    Tensor(String, String),
}

/// One stretch of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    pub offset: u64,
    pub length: u64,
    pub what: What,
}

/// What a stretch of a file holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// A header, a gap, or a whole ordinary file.
    Blob,
    /// A tensor of at least one byte.
    Tensor { name: String, dtype: String, shape: Vec<u64> },
}

impl Piece {
    pub fn dtype(&self) -> &str {
        match &self.what {
            What::Blob => "",
            What::Tensor { dtype, .. } => dtype,
        }
    }

    /// The tensor's shape; a blob's is its length.
    pub fn shape(&self) -> Vec<u64> {
        match &self.what {
            What::Blob => vec![self.length],
            What::Tensor { shape, .. } => shape.clone(),
        }
    }

    /// Bytes of one run of the last dimension, 0 where there is none to speak of.
    pub fn row_bytes(&self) -> u64 {
        match &self.what {
            What::Tensor { dtype, shape, .. } if shape.len() > 1 => {
                dtype::bits(dtype).map_or(0, |b| shape[shape.len() - 1] * b as u64 / 8)
            }
            _ => 0,
        }
    }
}

/// An ordinary file: one blob, or nothing when it is empty.
pub fn whole(size: u64) -> Vec<Piece> {
    if size == 0 { vec![] } else { vec![Piece { offset: 0, length: size, what: What::Blob }] }
}

/// The header's length from the first eight bytes (or fewer, of a shorter file) of a file of `size` bytes.
pub fn header_length(first: &[u8], size: u64) -> Result<u64, LayoutError> {
    if first.starts_with(b"version ") {
        return Err(LayoutError::LfsPointer);
    }
    let eight = first.first_chunk::<8>().ok_or(LayoutError::Short(size))?;
    let n = u64::from_le_bytes(*eight);
    match n {
        _ if size < 8 => Err(LayoutError::Short(size)),
        n if n > size - 8 => Err(LayoutError::HeaderPastEnd(n)),
        n if n > MAX_HEADER => Err(LayoutError::HeaderTooLong(n)),
        n => Ok(n),
    }
}

/// The first bytes of a file with this JSON header: its length and itself, padded so that data is aligned.
pub fn header(info: &serde_json::Value) -> Vec<u8> {
    let mut text = info.to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes(), &text[..]].concat()
}

/// The pieces of a file of `size` bytes from its JSON header (without the eight bytes before it).
pub fn cut(header: &[u8], size: u64) -> Result<Vec<Piece>, LayoutError> {
    let data = 8 + header.len() as u64;
    let mut tensors = parse(header)?
        .into_iter()
        .map(|(name, info)| tensor(name, info, size - data))
        .collect::<Result<Vec<_>, _>>()?;
    tensors.retain(|t| t.length > 0);
    tensors.sort_by_key(|t| t.offset);
    let mut pieces = vec![Piece { offset: 0, length: data, what: What::Blob }];
    let mut at = 0;
    for t in tensors {
        if t.offset < at {
            return Err(fault(&t, "overlaps the tensor before it"));
        }
        push_gap(&mut pieces, data + at, t.offset - at);
        at = t.offset + t.length;
        pieces.push(Piece { offset: data + t.offset, ..t });
    }
    push_gap(&mut pieces, data + at, size - data - at);
    Ok(pieces)
}

fn push_gap(pieces: &mut Vec<Piece>, offset: u64, length: u64) {
    if length > 0 {
        pieces.push(Piece { offset, length, what: What::Blob });
    }
}

fn fault(t: &Piece, why: &str) -> LayoutError {
    match &t.what {
        What::Tensor { name, .. } => LayoutError::Tensor(printable(name), why.to_owned()),
        What::Blob => LayoutError::Header(why.to_owned()),
    }
}

#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

fn tensor(name: String, info: Info, data_size: u64) -> Result<Piece, LayoutError> {
    let err = |why: String| LayoutError::Tensor(printable(&name), why);
    let (start, end) = info.data_offsets;
    if start > end || end > data_size {
        return Err(err(format!("its bytes {start}..{end} lie outside the file's {data_size} bytes of data")));
    }
    if info.shape.len() > 255 || info.dtype.len() > 255 {
        return Err(err("more than 255 dimensions, or a dtype of more than 255 letters".to_owned()));
    }
    if let Some(bits) = dtype::bits(&info.dtype) {
        let want = info.shape.iter().try_fold(bits as u64, |a, &d| a.checked_mul(d));
        if want != (end - start).checked_mul(8) {
            let (dtype, shape) = (&info.dtype, &info.shape);
            return Err(err(format!("{dtype} of shape {shape:?} does not make {} bytes", end - start)));
        }
    }
    let what = What::Tensor { name, dtype: info.dtype, shape: info.shape };
    Ok(Piece { offset: start, length: end - start, what })
}

fn parse(header: &[u8]) -> Result<BTreeMap<String, Info>, LayoutError> {
    let text = std::str::from_utf8(header).map_err(|_| LayoutError::Header("not UTF-8".to_owned()))?;
    let parsed: Header = serde_json::from_str(text).map_err(|e| LayoutError::Header(printable(&e.to_string())))?;
    Ok(parsed.0)
}

/// The header's tensors; a name that comes twice is an error, which serde's maps do not see.
struct Header(BTreeMap<String, Info>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Header, D::Error> {
        d.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON object of tensors")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut out = BTreeMap::new();
        let mut metadata = false;
        while let Some(key) = map.next_key::<String>()? {
            let twice = if key == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                std::mem::replace(&mut metadata, true)
            } else {
                out.insert(key.clone(), map.next_value()?).is_some()
            };
            if twice {
                return Err(serde::de::Error::custom(format_args!("the name '{}' comes twice", printable(&key))));
            }
        }
        Ok(Header(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn err(header: &str, data: u64) -> String {
        cut(header.as_bytes(), 8 + header.len() as u64 + data).unwrap_err().to_string()
    }

    #[test]
    fn pieces_cover_the_file_with_gaps_and_odd_dtypes() {
        let h = r#" {"b":{"dtype":"Q3_K","shape":[9],"data_offsets":[10,15]},"__metadata__":{"x":"y"},
            "a":{"shape":[2,1],"data_offsets":[0,8],"dtype":"F32"},"z":{"dtype":"F32","shape":[0],"data_offsets":[3,3]},
            "s":{"dtype":"F4","shape":[2],"data_offsets":[15,16]}}  "#;
        let size = 8 + h.len() as u64 + 20;
        let pieces = cut(h.as_bytes(), size).unwrap();
        let mut at = 0;
        for p in &pieces {
            assert_eq!(p.offset, at);
            at += p.length;
        }
        assert_eq!(at, size);
        let kinds: Vec<_> = pieces.iter().map(|p| p.dtype()).collect();
        assert_eq!(kinds, ["", "F32", "", "Q3_K", "F4", ""]);
    }

    #[test]
    fn hostile_headers_are_refused_by_name() {
        let t = |o: &str| format!(r#"{{"w":{{"dtype":"F32","shape":[2],"data_offsets":{o}}}}}"#);
        assert!(err(&t("[0,8]"), 4).contains("'w'"));
        assert!(err(&t("[8,0]"), 8).contains("'w'"));
        assert!(err(&t("[0,4]"), 8).contains("does not make 4 bytes"));
        assert!(err(r#"{"w":1,"w":2}"#, 8).contains("not valid"));
        assert!(err("[]", 0).contains("not valid") && err("", 0).contains("not valid"));
        let two = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
        assert!(err(two, 8).contains("overlaps"));
        let dup = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#;
        assert!(err(dup, 8).contains("twice"));
        let huge = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,16],"data_offsets":[0,0]}}"#;
        assert!(err(huge, 0).contains("'a'"));
        assert!(matches!(cut(&[0xff, 0xfe], 10), Err(LayoutError::Header(_))));
    }

    #[test]
    fn header_lengths_are_not_believed() {
        assert_eq!(header_length(&[1, 2], 2), Err(LayoutError::Short(2)));
        assert!(matches!(header_length(&u64::MAX.to_le_bytes(), 1 << 40), Err(LayoutError::HeaderPastEnd(_))));
        assert!(matches!(header_length(&(1u64 << 30).to_le_bytes(), 1 << 40), Err(LayoutError::HeaderTooLong(_))));
        assert_eq!(header_length(b"version https", 130), Err(LayoutError::LfsPointer));
        assert_eq!(header_length(&16u64.to_le_bytes(), 24), Ok(16));
    }
}
