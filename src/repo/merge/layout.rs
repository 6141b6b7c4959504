//! The safetensors files of a result: which tensors go into which, under which header.
//!
//! A header of an input is taken as it is where it describes exactly the tensors of the file, so that a side which changed
//! nothing gives the other's files bit for bit. Otherwise one is written: metadata merged by key, tensors by the width of
//! their elements, then by name, as the safetensors crate writes them.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

use super::{Decided, Input, Output, Part, Source, What};
use crate::model::dtype::bits;
use crate::model::layout::{self, What as PieceWhat};
use crate::repo::RepoError;
use crate::repo::diff::side::stored_pieces;

/// Whose headers are looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    /// Inputs are base, A and B: the header that changed.
    ThreeWay,
    /// This input's.
    Of(usize),
}

/// The files that hold these tensors.
pub fn layout(inputs: &[Input], decided: &[Decided], pick: Pick) -> Result<Vec<Output>, RepoError> {
    let mut files: BTreeMap<&str, Vec<&Decided>> = BTreeMap::new();
    for t in decided {
        files.entry(&t.path).or_default().push(t);
    }
    files.into_iter().map(|(path, tensors)| file(inputs, path, &tensors, pick)).collect()
}

fn file(inputs: &[Input], path: &str, tensors: &[&Decided], pick: Pick) -> Result<Output, RepoError> {
    let headers: Vec<Option<Vec<u8>>> = inputs.iter().map(|i| header(i, path)).collect::<Result<_, _>>()?;
    let fits: Vec<bool> = inputs.iter().map(|i| describes(i, path, tensors)).collect();
    let chosen = match pick {
        Pick::Of(input) => Some(input).filter(|i| fits[*i]),
        Pick::ThreeWay => three_way(&headers, &fits),
    };
    let what = match chosen {
        Some(input) => as_in(&inputs[input], input, path, tensors)?,
        None => What::Weights(written(&headers, tensors)),
    };
    Ok(Output { path: path.to_owned(), what })
}

/// The bytes of a file's JSON header, if the input has the file.
fn header(input: &Input, path: &str) -> Result<Option<Vec<u8>>, RepoError> {
    let Some(file) = input.side.file(path) else { return Ok(None) };
    let first = stored_pieces(file)?.first().map_or(8, |p| p.length);
    let mut bytes = vec![0; first as usize];
    file.read_at(0, &mut bytes)?;
    Ok(Some(bytes.split_off(8)))
}

/// Does the input's file hold just these tensors?
fn describes(input: &Input, path: &str, tensors: &[&Decided]) -> bool {
    let there = input.side.tensors.iter().filter(|t| input.side.files[t.file].path == path);
    let there: HashMap<&str, _> = there.map(|t| (t.name.as_str(), (&t.dtype, &t.shape))).collect();
    there.len() == tensors.len() && tensors.iter().all(|t| there.get(t.name.as_str()) == Some(&(&t.dtype, &t.shape)))
}

fn three_way(headers: &[Option<Vec<u8>>], fits: &[bool]) -> Option<usize> {
    let [base, a, b] = headers else { return None };
    match (fits[1], fits[2]) {
        (true, true) if a == base => Some(2),
        (true, true) if b == base => Some(1),
        (true, true) => Some(if a <= b { 1 } else { 2 }),
        (true, false) => Some(1),
        (false, true) => Some(2),
        (false, false) => Some(0).filter(|_| fits[0]),
    }
}

/// The input's file, with these tensors in the places of its own.
fn as_in(input: &Input, place: usize, path: &str, tensors: &[&Decided]) -> Result<What, RepoError> {
    let (Some(file), Some(entry)) = (input.side.files.iter().position(|f| f.path == path), input.entry(path)) else {
        return Err(RepoError::damaged(format!("file '{path}' is not in its version")));
    };
    let by_name: HashMap<&str, &&Decided> = tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let own = input.side.tensors.iter().filter(|t| t.file == file);
    if own.into_iter().all(|t| by_name[t.name.as_str()].id == Some(t.id)) {
        return Ok(What::Stored(entry.clone()));
    }
    let pieces = stored_pieces(&input.side.files[file])?;
    let part = |p: crate::model::layout::Piece| Part {
        length: p.length,
        source: match &p.what {
            PieceWhat::Tensor { name, .. } => by_name[name.as_str()].source.clone(),
            PieceWhat::Blob => Source::Copy { input: place, file, offset: p.offset },
        },
    };
    Ok(What::Weights(pieces.into_iter().map(part).collect()))
}

/// A file with a header of our own.
fn written(headers: &[Option<Vec<u8>>], tensors: &[&Decided]) -> Vec<Part> {
    let mut order: Vec<&&Decided> = tensors.iter().collect();
    order.sort_by_key(|t| (std::cmp::Reverse(bits(&t.dtype)), &t.name));
    let parsed: Vec<Map<String, Value>> =
        headers.iter().map(|h| h.as_ref().and_then(|h| serde_json::from_slice(h).ok()).unwrap_or_default()).collect();
    let mut head = Map::new();
    let metadata = metadata(&parsed);
    if !metadata.is_empty() {
        head.insert("__metadata__".to_owned(), Value::Object(metadata));
    }
    let mut at = 0;
    for t in &order {
        let info = json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": [at, at + t.length]});
        head.insert(t.name.clone(), info);
        at += t.length;
    }
    // Tensors without bytes are in headers only.
    for (name, info) in parsed.iter().skip(1).flatten().filter(|(n, i)| n.as_str() != "__metadata__" && is_empty(i)) {
        let info = json!({"dtype": info["dtype"], "shape": info["shape"], "data_offsets": [at, at]});
        head.entry(name.clone()).or_insert(info);
    }
    let bytes = layout::header(&Value::Object(head));
    let first = Part { length: bytes.len() as u64, source: Source::Bytes(bytes) };
    let rest = order.into_iter().map(|t| Part { length: t.length, source: t.source.clone() });
    std::iter::once(first).chain(rest).collect()
}

fn is_empty(info: &Value) -> bool {
    info["data_offsets"][0] == info["data_offsets"][1]
}

/// What the headers say beside the tensors: of keys that differ the least value, so that no side comes first.
fn metadata(headers: &[Map<String, Value>]) -> Map<String, Value> {
    let mut out: BTreeMap<&String, &Value> = BTreeMap::new();
    for (key, value) in headers.iter().filter_map(|h| h.get("__metadata__")?.as_object()).flatten() {
        let least = out.entry(key).or_insert(value);
        if value.as_str() < least.as_str() {
            *least = value;
        }
    }
    out.into_iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}
