//! The first pass over a file to import: cut it, hash the whole and every block of every object.
//!
//! Memory is bounded by one window, whatever the file's size. The second pass ([`super::encode`]) reads
//! the bytes again and compares each block with the value found here, so a file that changes in between is
//! caught by content, not by its times.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use super::RepoError;
use super::progress::Progress;
use super::read::FileReader;
use crate::codec::Formula;
use crate::model::id::{BLOCK, BlockValue, Id, block_count, block_len, block_value, fold, object_id};
use crate::model::layout::{self, Piece};
use crate::model::recipe::{Extent, Recipe};

/// Bytes read at once.
const WINDOW: u64 = 8 << 20;

/// A piece of a file with its id.
#[derive(Clone)]
pub struct HashedPiece {
    pub piece: Piece,
    pub id: Id,
    pub values: Vec<BlockValue>,
    /// What it was computed by, where that is known.
    pub made: Option<Made>,
}

/// How a tensor follows from stored ones, bit for bit; or, with a step, lies on a grid around what follows from them.
#[derive(Clone)]
pub struct Made {
    pub bases: Vec<Id>,
    pub formula: Option<Formula>,
    pub step: Option<f64>,
}

impl Made {
    pub fn by(bases: Vec<Id>, formula: Formula) -> Made {
        Made { bases, formula: Some(formula), step: None }
    }
}

/// A file that is about to be stored. Only what is needed again is kept open.
#[derive(Clone)]
pub struct HashedFile {
    /// Path inside the version.
    pub name: String,
    pub source: PathBuf,
    pub size: u64,
    pub digest: Id,
    pub pieces: Vec<HashedPiece>,
    /// Where it is read from when it is stored already, and `source` only its name.
    pub stored: Option<Arc<FileReader>>,
}

impl HashedFile {
    /// Fills `buf` from byte `at` on.
    pub fn read_at(&self, buf: &mut [u8], at: u64) -> Result<(), RepoError> {
        match &self.stored {
            Some(reader) => reader.read_at(at, buf),
            None => File::open(&self.source)
                .and_then(|f| f.read_exact_at(buf, at))
                .map_err(|_| RepoError::Changed(self.source.clone())),
        }
    }

    pub fn recipe(&self) -> Recipe {
        let extent = |p: &HashedPiece| Extent { object: p.id, offset: 0, length: p.piece.length };
        Recipe { digest: self.digest, extents: self.pieces.iter().map(extent).collect() }
    }
}

/// One block of a piece, and where it lies in the file.
#[derive(Clone, Copy)]
struct BlockAt {
    piece: usize,
    index: u64,
    offset: u64,
    len: usize,
}

/// Cuts and hashes the file at `source`, to be stored as `name`.
pub fn hash_file(name: &str, source: &Path, progress: &dyn Progress) -> Result<HashedFile, RepoError> {
    let fail = |e: std::io::Error| RepoError::file(source, e);
    let file = File::open(source).map_err(fail)?;
    let size = file.metadata().map_err(fail)?.len();
    let pieces = cut(name, source, &file, size)?;
    let mut whole = blake3::Hasher::new();
    let mut values: Vec<Vec<BlockValue>> = pieces.iter().map(|_| Vec::new()).collect();
    let mut buf = Vec::new();
    let mut blocks = blocks_of(&pieces).peekable();
    while blocks.peek().is_some() {
        progress.check()?;
        let window = next_window(&mut blocks);
        let start = window[0].offset;
        let len = window.iter().map(|b| b.len).sum();
        buf.resize(len, 0);
        file.read_exact_at(&mut buf, start).map_err(|e| changed_or(source, e))?;
        whole.update_rayon(&buf);
        let value = |b: &BlockAt| {
            let from = (b.offset - start) as usize;
            block_value(&buf[from..from + b.len], b.index, pieces[b.piece].length)
        };
        let found: Vec<BlockValue> = window.par_iter().map(value).collect();
        window.iter().zip(found).for_each(|(b, v)| values[b.piece].push(v));
        progress.hashed(len as u64);
    }
    // Whoever says how long a file is, its end does: one of /proc has bytes and no length.
    if file.metadata().map_err(fail)?.len() != size || file.read_at(&mut [0], size).map_err(fail)? != 0 {
        return Err(RepoError::Changed(source.to_owned()));
    }
    drop(blocks);
    let pieces = pieces.into_iter().zip(values).map(|(p, v)| identify(p, v)).collect();
    let digest = Id(*whole.finalize().as_bytes());
    Ok(HashedFile { name: name.to_owned(), source: source.to_owned(), size, digest, pieces, stored: None })
}

fn identify(piece: Piece, values: Vec<BlockValue>) -> HashedPiece {
    let id = object_id(piece.dtype(), &piece.shape(), &fold(&values, piece.length));
    HashedPiece { piece, id, values, made: None }
}

fn changed_or(source: &Path, e: std::io::Error) -> RepoError {
    match e.kind() {
        std::io::ErrorKind::UnexpectedEof => RepoError::Changed(source.to_owned()),
        _ => RepoError::file(source, e),
    }
}

fn cut(name: &str, source: &Path, file: &File, size: u64) -> Result<Vec<Piece>, RepoError> {
    if !name.ends_with(".safetensors") {
        return Ok(layout::whole(size));
    }
    let bad = |e| RepoError::Layout(source.to_owned(), e);
    let mut first = vec![0; size.min(8) as usize];
    file.read_exact_at(&mut first, 0).map_err(|e| changed_or(source, e))?;
    let len = layout::header_length(&first, size).map_err(bad)?;
    let mut header = vec![0; len as usize];
    file.read_exact_at(&mut header, 8).map_err(|e| changed_or(source, e))?;
    layout::cut(&header, size).map_err(bad)
}

fn blocks_of(pieces: &[Piece]) -> impl Iterator<Item = BlockAt> {
    pieces.iter().enumerate().flat_map(|(piece, p)| {
        (0..block_count(p.length)).map(move |index| BlockAt {
            piece,
            index,
            offset: p.offset + index * BLOCK,
            len: block_len(p.length, index),
        })
    })
}

/// The next blocks, which lie one after the other, up to a window's bytes.
fn next_window(blocks: &mut std::iter::Peekable<impl Iterator<Item = BlockAt>>) -> Vec<BlockAt> {
    let mut window: Vec<BlockAt> = Vec::new();
    let mut bytes = 0;
    while let Some(b) = blocks.next_if(|b| bytes == 0 || bytes + b.len as u64 <= WINDOW) {
        bytes += b.len as u64;
        window.push(b);
    }
    window
}
