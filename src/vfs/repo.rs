//! The repository as a filesystem's source.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::source::{ReadAt, ReadError, Source, Version};
use crate::model::id::Id;
use crate::model::name::{ModelName, VersionName};
use crate::model::record::{FileEntry, VersionRecord};
use crate::repo::Head;
use crate::repo::RepoError;
use crate::repo::charge::Charges;
use crate::repo::engine::{Engine, label};
use crate::repo::keep::{Count, Keeper};
use crate::repo::read::FileReader;

/// Answers from the engine that this process holds.
pub struct RepoSource {
    engine: Arc<Engine>,
    keeper: Option<Arc<Keeper>>,
    /// Of the catalog's present state; made anew after a change.
    charges: Mutex<Option<Arc<Charges>>>,
}

impl RepoSource {
    /// `keeper`: the disk cache, where there is one.
    pub fn new(engine: Arc<Engine>, keeper: Option<Arc<Keeper>>) -> RepoSource {
        RepoSource { engine, keeper, charges: Mutex::new(None) }
    }

    /// To be called after each change of the catalog.
    pub fn changed(&self) {
        *self.charges.lock().unwrap_or_else(|e| e.into_inner()) = None;
    }

    fn charges(&self) -> Result<Arc<Charges>, RepoError> {
        let mut slot = self.charges.lock().unwrap_or_else(|e| e.into_inner());
        if slot.is_none() {
            *slot = Some(Arc::new(Charges::new(self.engine.repo.clone(), self.engine.catalog().all()?)));
        }
        Ok(slot.clone().expect("just made"))
    }
}

/// Logs why, for an error that the kernel can only number.
fn told<T>(result: Result<T, RepoError>) -> Result<T, ReadError> {
    result.map_err(|e| {
        log::error!("{e}");
        ReadError::Damaged
    })
}

fn version(head: Head) -> Version {
    Version { model: head.model, version: head.version, id: head.id, created: head.created, seq: head.seq }
}

impl Source for RepoSource {
    fn models(&self) -> Result<Vec<ModelName>, ReadError> {
        told(self.engine.catalog().models().map_err(Into::into))
    }

    fn versions(&self, model: &ModelName) -> Result<Vec<Version>, ReadError> {
        let heads = told(self.engine.catalog().versions(model).map_err(Into::into))?;
        Ok(heads.into_iter().map(version).collect())
    }

    fn version(&self, model: &ModelName, name: &VersionName) -> Result<Option<Version>, ReadError> {
        let head = told(self.engine.catalog().find(model, name).map_err(Into::into))?;
        Ok(head.map(version))
    }

    fn record(&self, id: &Id) -> Result<Arc<VersionRecord>, ReadError> {
        told(self.engine.repo.record(id)).map(Arc::new)
    }

    fn stored_bytes(&self, id: &Id) -> Result<Arc<Vec<u64>>, ReadError> {
        let of = || self.charges()?.of(id, &self.engine.repo.record(id)?);
        told(of()).map(Arc::new)
    }

    fn parents_text(&self, id: &Id) -> Result<String, ReadError> {
        let text = || -> Result<String, RepoError> {
            let Some(head) = self.engine.catalog().by_id(id)? else { return Ok(String::new()) };
            let detail = self.engine.detail_of(head)?;
            Ok(detail.parents.iter().map(|(p, _)| label(p)).collect::<Vec<_>>().join(" "))
        };
        told(text())
    }

    fn open(&self, entry: &FileEntry) -> Result<Arc<dyn ReadAt>, ReadError> {
        let reader = told(self.engine.repo.open_file(&entry.recipe))?;
        let Some(keeper) = &self.keeper else { return Ok(Arc::new(reader)) };
        if let Some(file) = keeper.file(entry) {
            return Ok(Arc::new(Plain { file, reader }));
        }
        Ok(match keeper.count(entry) {
            Some(count) => Arc::new(Counted { reader, count }),
            None => Arc::new(reader),
        })
    }

    fn statfs_path(&self) -> &Path {
        &self.engine.repo.dir
    }
}

impl ReadAt for FileReader {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        told(FileReader::read_at(self, offset, buf))
    }
}

/// A file that may be kept plain once it has been read.
struct Counted {
    reader: FileReader,
    count: Arc<Count>,
}

impl ReadAt for Counted {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        told(self.reader.read_at(offset, buf))?;
        self.count.add(buf.len() as u64);
        Ok(())
    }
}

/// A file that is kept plain. What cannot be read of it is rebuilt.
struct Plain {
    file: File,
    reader: FileReader,
}

impl ReadAt for Plain {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.file.read_exact_at(buf, offset).or_else(|e| {
            log::warn!("a file of the disk cache cannot be read ({e}); it is rebuilt from the store");
            told(self.reader.read_at(offset, buf))
        })
    }

    fn plain(&self) -> Option<&File> {
        Some(&self.file)
    }
}
