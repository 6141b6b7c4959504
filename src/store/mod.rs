//! Durable bytes: packs and the journal (ground state), the catalog (derived), and the seam below them.
//!
//! Packs hold what never changes, by id; the journal what does, in order; the catalog answers questions about
//! both and can be deleted at any time. This room doesn't know what blocks mean (codec), when to write what
//! (repo), or which versions are wanted (repo).
//!
//! # On-disk format
#![doc = include_str!("format.md")]

pub mod catalog;
mod check;
pub mod disk;
pub mod files;
mod footers;
pub mod gate;
mod index;
pub mod journal;
pub mod pack;
pub mod packs;
mod parallel;
mod parity;
pub mod plain;
pub mod root;
pub mod scan;
pub mod sim;
pub mod sketches;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;

pub use catalog::{Catalog, Head};
pub use disk::{Disk, DiskFile, RealDisk};
pub use journal::{Journal, Position};
pub use pack::{Kind, PackWriter, SealedPack};
pub use packs::{Packs, StoredObject};
pub use root::{RepoLock, check_format, create, lock_exclusive, lock_shared};
pub use scan::{Finding, ScanItem};

use crate::model::id::Id;

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No pack holds it.
    #[error("{what} {id} is missing")]
    Missing { what: &'static str, id: Id },
    /// Bytes are not what they were when written. `what` names the object, pack and offset.
    #[error("damaged: {what}")]
    Damaged { what: String },
    /// A format or feature that this program does not know.
    #[error("{what} was written by a later mgit: update mgit to use this repository")]
    Later { what: String },
    #[error("{what}: {error}")]
    Io { what: String, error: io::Error },
    /// The catalog cannot be used. It follows from the journal, so it can be deleted and remade.
    #[error("catalog: {what}")]
    Catalog { what: String },
    /// Another process holds it.
    #[error("{what} is in use by another mgit")]
    Busy { what: String },
    /// The caller broke the contract.
    #[error("{0}")]
    Misuse(&'static str),
}

impl StoreError {
    pub(crate) fn damaged(what: impl Into<String>) -> StoreError {
        StoreError::Damaged { what: what.into() }
    }

    /// The operating system's error, where there is one.
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            StoreError::Io { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// Names the file that an I/O error is about.
pub(crate) trait At<T> {
    fn at(self, path: &Path) -> Result<T>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: &Path) -> Result<T> {
        self.map_err(|error| StoreError::Io { what: path.display().to_string(), error })
    }
}
