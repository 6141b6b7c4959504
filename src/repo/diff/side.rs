//! One side of a comparison: a stored version, or files outside the repository, as tensors and files to read.
//!
//! Tensors have the ids that an import would give them: a stored side takes them from its recipes without reading a
//! tensor, a side outside is hashed once. Names of tensors count within a scope (the files of one sharded model), for
//! several models in one directory may use the same ones. What is compared with what is not known here.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::hash::{HashedFile, hash_file};
use super::super::progress::Progress;
use super::super::read::FileReader;
use super::super::walk::{self, Found};
use super::super::{Repo, RepoError};
use crate::model::id::Id;
use crate::model::layout::{self, Piece, What};
use crate::model::number::Number;
use crate::model::record::{EntryKind, FileEntry, VersionRecord};

/// A tensor and where its bytes are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tensor {
    pub name: String,
    /// The path of its file without shard number and extension.
    pub scope: String,
    pub dtype: String,
    pub shape: Vec<u64>,
    /// BLAKE3 of dtype, shape and content.
    pub id: Id,
    /// Index into the side's files.
    pub file: usize,
    /// First byte in the file, and how many.
    pub offset: u64,
    pub length: u64,
}

impl Tensor {
    /// Numbers in it; `None` where the dtype is not known as such.
    pub fn numbers(&self) -> Option<u64> {
        Number::of(&self.dtype).map(|n| self.length / n.width() as u64)
    }
}

/// A file of a side, and how to read it.
pub struct SideFile {
    pub path: String,
    pub bytes: u64,
    /// BLAKE3 of its bytes.
    pub digest: Id,
    reader: Reader,
}

/// Reads any range of a file.
enum Reader {
    Stored(FileReader),
    Plain(PathBuf, File),
}

impl SideFile {
    /// Fills `out` from byte `offset` on.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), RepoError> {
        match &self.reader {
            Reader::Stored(reader) => reader.read_at(offset, out),
            Reader::Plain(path, file) => file.read_exact_at(out, offset).map_err(|e| match e.kind() {
                std::io::ErrorKind::UnexpectedEof => RepoError::Changed(path.clone()),
                _ => RepoError::file(path, e),
            }),
        }
    }

    /// As [`read_at`](Self::read_at), on all cores where that helps: for large ranges.
    pub fn read_parallel(&self, offset: u64, out: &mut [u8]) -> Result<(), RepoError> {
        match &self.reader {
            Reader::Stored(reader) => reader.read_parallel(offset, out),
            Reader::Plain(..) => self.read_at(offset, out),
        }
    }

    pub fn is_safetensors(&self) -> bool {
        self.path.ends_with(".safetensors")
    }
}

/// What is compared: tensors in file order, files sorted by path.
pub struct Side {
    pub tensors: Vec<Tensor>,
    pub files: Vec<SideFile>,
    /// One safetensors file, not a directory: the files around it are not known.
    pub lone: bool,
}

impl Side {
    /// A stored version. Reads the headers of its safetensors files, no tensor.
    pub fn of_version(repo: &Arc<Repo>, record: &VersionRecord) -> Result<Side, RepoError> {
        let mut side = Side { tensors: vec![], files: vec![], lone: false };
        for entry in record.files.iter().filter(|f| f.kind == EntryKind::File) {
            side.add_stored(repo, entry)?;
        }
        Ok(side)
    }

    fn add_stored(&mut self, repo: &Arc<Repo>, entry: &FileEntry) -> Result<(), RepoError> {
        let reader = Reader::Stored(repo.open_file(&entry.recipe)?);
        let file = SideFile { path: entry.path.clone(), bytes: entry.bytes, digest: entry.digest, reader };
        if file.is_safetensors() {
            let recipe = repo.packs.recipe(&entry.recipe)?;
            let pieces = stored_pieces(&file)?;
            if pieces.len() != recipe.extents.len() {
                return Err(RepoError::damaged(format!("file '{}': its recipe is not that of its header", entry.path)));
            }
            let index = self.files.len();
            let found = pieces.into_iter().zip(&recipe.extents);
            self.tensors.extend(found.filter_map(|(p, e)| tensor(p, e.object, &file.path, index)));
        }
        self.files.push(file);
        Ok(())
    }

    /// A directory or a safetensors file outside the repository. Hashes all of it.
    pub fn of_path(path: &Path, progress: &dyn Progress) -> Result<Side, RepoError> {
        let mut side = Side { tensors: vec![], files: vec![], lone: path.is_file() };
        for found in walk::find(path)? {
            if let Found::File { name, source, .. } = found {
                side.add_plain(name, source, progress)?;
            }
        }
        Ok(side)
    }

    /// Files that are hashed already.
    pub fn of_hashed(files: &[&HashedFile]) -> Result<Side, RepoError> {
        let mut side = Side { tensors: vec![], files: vec![], lone: false };
        files.iter().try_for_each(|f| side.add_hashed(f))?;
        Ok(side)
    }

    fn add_plain(&mut self, name: String, source: PathBuf, progress: &dyn Progress) -> Result<(), RepoError> {
        self.add_hashed(&hash_file(&name, &source, progress)?)
    }

    fn add_hashed(&mut self, hashed: &HashedFile) -> Result<(), RepoError> {
        let (name, source) = (&hashed.name, &hashed.source);
        let file = File::open(source).map_err(|e| RepoError::file(source, e))?;
        let index = self.files.len();
        self.tensors.extend(hashed.pieces.iter().filter_map(|p| tensor(p.piece.clone(), p.id, name, index)));
        let reader = Reader::Plain(source.clone(), file);
        self.files.push(SideFile { path: name.clone(), bytes: hashed.size, digest: hashed.digest, reader });
        Ok(())
    }

    pub fn file(&self, path: &str) -> Option<&SideFile> {
        let at = self.files.binary_search_by(|f| f.path.as_str().cmp(path)).ok()?;
        Some(&self.files[at])
    }

    /// Fills `out` from byte `from` of a tensor on.
    pub fn read_tensor(&self, t: &Tensor, from: u64, out: &mut [u8]) -> Result<(), RepoError> {
        self.files[t.file].read_at(t.offset + from, out)
    }
}

/// The pieces of a safetensors file, from its header.
pub fn stored_pieces(file: &SideFile) -> Result<Vec<Piece>, RepoError> {
    let bad = |e| RepoError::Layout(PathBuf::from(&file.path), e);
    let mut first = vec![0; file.bytes.min(8) as usize];
    file.read_at(0, &mut first)?;
    let mut header = vec![0; layout::header_length(&first, file.bytes).map_err(bad)? as usize];
    file.read_at(8, &mut header)?;
    layout::cut(&header, file.bytes).map_err(bad)
}

fn tensor(piece: Piece, id: Id, path: &str, file: usize) -> Option<Tensor> {
    let Piece { offset, length, what } = piece;
    match what {
        What::Blob => None,
        What::Tensor { name, dtype, shape } => {
            Some(Tensor { name, scope: scope(path).to_owned(), dtype, shape, id, file, offset, length })
        }
    }
}

/// `unet/model-00001-of-00003.safetensors` and `unet/model.safetensors` are both `unet/model`.
fn scope(path: &str) -> &str {
    let stem = path.strip_suffix(".safetensors").unwrap_or(path);
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let cut = stem.rsplit_once("-of-").and_then(|(left, total)| {
        let (base, number) = left.rsplit_once('-')?;
        (digits(number) && digits(total)).then_some(base)
    });
    cut.unwrap_or(stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_share_a_scope() {
        assert_eq!(scope("unet/model-00001-of-00003.safetensors"), "unet/model");
        assert_eq!(scope("unet/model.safetensors"), "unet/model");
        assert_eq!(scope("a-of-b.safetensors"), "a-of-b");
    }
}
