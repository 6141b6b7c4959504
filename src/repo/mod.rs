//! What the system can do, without a word about how it is asked: import, read, export, verify, the
//! lineage's changes, what things cost, and checking it all.
//!
//! [`Repo`] reads packs and needs no lock. [`engine::Engine`] also holds the catalog and the journal, of
//! which one process has the say at a time. Long work (encoding, checking) uses a `Repo` only.

pub mod card;
pub mod charge;
pub mod choose;
pub mod diff;
pub mod draft;
pub mod encode;
pub mod engine;
pub mod export;
pub mod fsck;
pub mod gc;
pub mod graph;
pub mod hash;
pub mod history;
pub mod house;
pub mod import;
#[cfg(all(test, feature = "shuttle"))]
mod interleavings;
pub mod keep;
pub mod kinship;
pub mod log;
pub mod lossy;
pub mod merge;
pub mod origin;
pub mod pair;
pub mod program;
pub mod progress;
pub mod read;
pub mod repack;
pub mod repair;
mod replace;
pub mod roots;
pub mod scratch;
pub mod show;
pub mod space;
pub mod tests;
pub mod update;
pub mod walk;
pub mod work;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use crate::store::catalog::Head;

use crate::model::id::Id;
use crate::model::layout::LayoutError;
use crate::model::record::VersionRecord;
use crate::store::StoreError;
use crate::store::disk::Disk;
use crate::store::packs::Packs;

/// Why something could not be done. One line each, with a hint where there is one.
#[derive(Debug, thiserror::Error)]
pub enum RepoError {
    /// Stored bytes are not what their id says.
    #[error("damaged: {0}")]
    Damaged(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{path}: {source}")]
    File { path: String, source: std::io::Error },
    #[error("{}: changed while it was read; import it again when nothing writes to it", .0.display())]
    Changed(PathBuf),
    #[error("{}: {}", .0.display(), .1)]
    Layout(PathBuf, LayoutError),
    #[error("interrupted; nothing was changed")]
    Interrupted,
    /// The request can't be met as it stands.
    #[error("{0}")]
    Refused(String),
}

impl RepoError {
    pub fn damaged(what: String) -> RepoError {
        RepoError::Damaged(what)
    }

    /// Whether something is in no pack: what was removed may have been collected since.
    pub fn is_missing(&self) -> bool {
        matches!(self, RepoError::Store(StoreError::Missing { .. }))
    }

    pub fn refused(why: impl Into<String>) -> RepoError {
        RepoError::Refused(why.into())
    }

    pub fn file(path: &Path, source: std::io::Error) -> RepoError {
        RepoError::File { path: crate::model::name::printable(&path.to_string_lossy()), source }
    }
}

/// A repository's packs with caches for reading: what every process may open at any time.
pub struct Repo {
    pub dir: PathBuf,
    pub disk: Arc<dyn Disk>,
    pub packs: Packs,
    caches: read::Caches,
    pins: read::Pins,
}

/// Decoded blocks that a process keeps unless told otherwise: enough for what imports and exports reuse.
pub const DEFAULT_CACHE: u64 = 64 << 20;

impl Repo {
    /// Opens the packs below `dir`; `cache` bounds the bytes of decoded blocks that are kept.
    pub fn open(dir: &Path, disk: Arc<dyn Disk>, cache: u64) -> Result<Arc<Repo>, RepoError> {
        crate::store::check_format(&disk, dir)?;
        let packs = Packs::open(disk.clone(), &dir.join("packs"))?;
        Ok(Arc::new(Repo {
            dir: dir.to_owned(),
            disk,
            packs,
            caches: read::Caches::new(cache),
            pins: Default::default(),
        }))
    }

    /// Looks what is stored now, and forgets where things were.
    pub fn refresh(&self) -> Result<(), RepoError> {
        self.packs.refresh()?;
        self.caches.forget_moved(self.packs.moves());
        Ok(())
    }

    /// From now on the packs alone say what they hold: for who is to find damage, and for who removes packs.
    pub fn distrust_footers(&self) -> Result<(), RepoError> {
        self.packs.distrust_footers()?;
        self.caches.forget_moved(self.packs.moves());
        Ok(())
    }

    /// The files that the journal's events name.
    pub fn files(&self) -> crate::store::files::Files {
        crate::store::files::Files::new(self.disk.clone(), &self.dir)
    }

    /// The version record that `id` names, checked. Whoever names it may have seen more than this process: where it is in no
    /// pack that is known, the packs are looked at again; with it comes all that it needs.
    pub fn record(&self, id: &Id) -> Result<VersionRecord, RepoError> {
        let bytes = match self.packs.version(id) {
            Err(StoreError::Missing { .. } | StoreError::Later { .. }) => {
                self.refresh()?;
                self.packs.version(id)?
            }
            read => read?,
        };
        VersionRecord::decode(&bytes).map_err(|e| RepoError::damaged(format!("version record {id}: {e}")))
    }
}
