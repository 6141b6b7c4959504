//! Kept files: small whole files by their content, which the journal's events name (the files of a build recipe, the
//! outcomes of a test by example). Ground state, so they lie beside the journal: `journal/files/<blake3>`.
//!
//! A file is there whole and synced, or not at all; its name is what its bytes hash to, and they are held against it on
//! every read. It is written before the event that names it: what no event names is a crash's leftover.
//!
//! It doesn't know which files are wanted.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::Disk;
use super::root::{JOURNAL, ensure_dir, write_whole};
use super::{At, Result, StoreError};
use crate::model::id::Id;

/// Longest kept file.
pub const MAX_FILE: u64 = 1 << 28;

/// The kept files of a repository.
pub struct Files {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

impl Files {
    /// Of the repository at `root`; nothing is made until a file is put.
    pub fn new(disk: Arc<dyn Disk>, root: &Path) -> Files {
        Files { disk, dir: root.join(JOURNAL).join("files") }
    }

    /// Keeps the bytes; durable when it returns.
    pub fn put(&self, bytes: &[u8]) -> Result<Id> {
        if bytes.len() as u64 > MAX_FILE {
            return Err(StoreError::Misuse("a file to keep is larger than 256 MiB"));
        }
        let id = Id::of(bytes);
        if self.get(&id).is_ok() {
            // Whoever put it may have died before its name was durable.
            self.sync_names()?;
            return Ok(id);
        }
        ensure_dir(&*self.disk, &self.dir)?;
        write_whole(&*self.disk, &self.path(&id), bytes)?;
        self.sync_names()?;
        Ok(id)
    }

    fn sync_names(&self) -> Result<()> {
        let above = self.dir.parent().expect("it lies below the journal");
        [&*self.dir, above].into_iter().try_for_each(|dir| self.disk.sync_dir(dir).at(dir))
    }

    /// The bytes that hash to `id`.
    pub fn get(&self, id: &Id) -> Result<Vec<u8>> {
        let path = self.path(id);
        let file = match self.disk.open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::Missing { what: "kept file", id: *id });
            }
            other => other.at(&path)?,
        };
        let len = file.len().at(&path)?;
        let mut bytes = vec![0; len.min(MAX_FILE + 1) as usize];
        file.read_at(&mut bytes, 0).at(&path)?;
        match Id::of(&bytes) == *id {
            true => Ok(bytes),
            false => Err(StoreError::damaged(format!("kept file {}", path.display()))),
        }
    }

    fn path(&self, id: &Id) -> PathBuf {
        self.dir.join(id.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::super::sim::SimDisk;
    use super::*;

    fn files(sim: &SimDisk) -> Files {
        Files::new(Arc::new(sim.clone()), Path::new("/r"))
    }

    #[test]
    fn a_kept_file_survives_a_crash_at_every_operation_whole() {
        for at in 0..40 {
            let sim = SimDisk::new(at);
            sim.crash_at(at);
            let kept = files(&sim).put(b"train.py");
            let after = sim.reboot();
            let id = Id::of(b"train.py");
            match (kept.is_ok(), files(&after).get(&id)) {
                (_, Ok(bytes)) => assert_eq!(bytes, b"train.py"),
                (true, Err(e)) => panic!("{at}: acknowledged, and lost: {e}"),
                (false, Err(e)) => assert!(matches!(e, StoreError::Missing { .. }), "{at}: {e}"),
            }
            assert_eq!(files(&after).put(b"train.py").unwrap(), id, "{at}");
        }
    }

    #[test]
    fn what_a_killed_process_put_is_durable_before_it_is_named() {
        for seed in 0..60 {
            let sim = SimDisk::new(seed);
            ensure_dir(&sim, Path::new("/r/journal")).unwrap();
            sim.crash_at(sim.ops() + seed / 6);
            let _ = files(&sim).put(b"train.py");
            let sim = sim.restart();
            let id = files(&sim).put(b"train.py").unwrap();
            assert_eq!(files(&sim.reboot()).get(&id).unwrap(), b"train.py", "{seed}");
        }
    }

    #[test]
    fn changed_bytes_are_damage_and_are_written_anew() {
        let sim = SimDisk::new(1);
        let id = files(&sim).put(b"good").unwrap();
        sim.write(&Path::new("/r/journal/files").join(id.to_string()), b"evil");
        assert!(matches!(files(&sim).get(&id), Err(StoreError::Damaged { .. })));
        files(&sim).put(b"good").unwrap();
        assert_eq!(files(&sim).get(&id).unwrap(), b"good");
    }
}
