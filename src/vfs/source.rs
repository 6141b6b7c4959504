//! What the filesystem is made from: the one seam between `vfs` and the repository.
//!
//! A source answers in plain values, may be asked from many threads at once, and has logged an error's
//! cause before it returns it. Everything that hangs on a version's id is immutable; what `models`, `versions`, `graph`
//! and `page` say may change between two calls.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;

use crate::model::graph::Graph;
use crate::model::id::Id;
use crate::model::name::{ModelName, VersionName};
use crate::model::record::{FileEntry, VersionRecord};

/// A living version of a model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Version {
    pub model: ModelName,
    pub version: VersionName,
    pub id: Id,
    pub created: Timestamp,
    /// Its place in the order of all commits.
    pub seq: u64,
    /// It may be written again.
    pub settled: bool,
}

/// A text that tells of a version.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Sheet {
    Info,
    Diff,
    Log,
    Tests,
}

/// A drawing of all versions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Drawing {
    Dot,
    Svg,
    Json,
    /// The last update cascade, not a picture of it.
    Update,
}

/// A text that is made when it is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Page {
    /// Of a version, living or not.
    Version(Id, Sheet),
    Graph(Drawing),
}

/// Why something could not be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the stored bytes are damaged")]
    Damaged,
    #[error("it is no longer stored")]
    Gone,
    #[error("too many files are open")]
    Exhausted,
}

/// The bytes of one file. It keeps readable for as long as it is held, also when its version is removed.
pub trait ReadAt: Send + Sync {
    /// Fills `buf` from `offset` on, or fails. The range lies within the file.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError>;

    /// An ordinary file with the same bytes, if there is one: a kernel that can may read it by itself.
    fn plain(&self) -> Option<&File> {
        None
    }
}

/// The repository, as far as a filesystem needs it.
pub trait Source: Send + Sync + 'static {
    /// Every model with a living version, sorted.
    fn models(&self) -> Result<Arc<Vec<ModelName>>, ReadError>;
    /// The model's living versions in commit order; the last is `latest`. None for an unknown model.
    fn versions(&self, model: &ModelName) -> Result<Arc<Vec<Version>>, ReadError>;
    /// Names that lead to living versions of the model, beside `latest`.
    fn tags(&self, _model: &ModelName) -> Result<Vec<(VersionName, Version)>, ReadError> {
        Ok(vec![])
    }
    fn record(&self, id: &Id) -> Result<Arc<VersionRecord>, ReadError>;
    /// For each file of the record, in order: the bytes that it is charged in the store. May change when
    /// other versions go.
    fn stored_bytes(&self, id: &Id) -> Result<Arc<Vec<u64>>, ReadError>;
    /// The version's parents, `model@version`, separated by spaces.
    fn parents_text(&self, id: &Id) -> Result<String, ReadError>;
    /// All versions ever, without what they cost, and their edges. The same value until something changes.
    fn graph(&self) -> Result<Arc<Graph>, ReadError>;
    /// What a page says now.
    fn page(&self, page: &Page) -> Result<Arc<str>, ReadError>;
    fn open(&self, entry: &FileEntry) -> Result<Arc<dyn ReadAt>, ReadError>;
    /// Removes a settled version, as `mgit rm` does.
    fn remove(&self, _: &Version) -> Result<(), ReadError> {
        Err(ReadError::Gone)
    }
    /// Whether a version had this name that gives it to no other.
    fn is_taken(&self, _: &ModelName, _: &VersionName) -> Result<bool, ReadError> {
        Ok(false)
    }
    /// A path on the disk that holds the store.
    fn statfs_path(&self) -> &Path;
}
