//! Directories for programs that mgit runs: `drafts/.runs/<name>/`, each held by a lock while its process lives.
//!
//! A run's directory goes when it is dropped, unless it is to be kept ([`Scratch::keep`]); what a killed process left is
//! swept by the next that makes one, but for those whose names are wanted. No model's name begins with a dot, so none of
//! them is taken for a draft.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Repo, RepoError};

/// A directory without its lock that is younger may be just in the making.
const YOUNG: Duration = Duration::from_secs(60);

/// One run's directory.
pub struct Scratch {
    pub name: String,
    dir: PathBuf,
    _lock: File,
    keep: bool,
}

fn runs(repo: &Repo) -> PathBuf {
    repo.dir.join("drafts").join(".runs")
}

fn make(dir: &Path) -> Result<(), RepoError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| RepoError::file(dir, e))
}

fn lock(dir: &Path) -> Result<File, RepoError> {
    let path = dir.join("lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(|e| RepoError::file(&path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(RepoError::refused("another mgit works on this; wait for it to end")),
        Err(TryLockError::Error(e)) => Err(RepoError::file(&path, e)),
    }
}

impl Scratch {
    /// A fresh, empty one.
    pub fn new(repo: &Repo) -> Result<Scratch, RepoError> {
        let name = format!("{:016x}", RandomState::new().build_hasher().finish());
        let dir = runs(repo).join(&name);
        make(&dir)?;
        Ok(Scratch { _lock: lock(&dir)?, name, dir, keep: false })
    }

    /// One that was kept; `None` when it is gone.
    pub fn again(repo: &Repo, name: &str) -> Result<Option<Scratch>, RepoError> {
        let dir = runs(repo).join(name);
        if name.contains('/') || name.starts_with('.') || !dir.is_dir() {
            return Ok(None);
        }
        Ok(Some(Scratch { _lock: lock(&dir)?, name: name.to_owned(), dir, keep: false }))
    }

    /// A directory of its own below it.
    pub fn dir(&self, name: &str) -> Result<PathBuf, RepoError> {
        let dir = self.dir.join(name);
        make(&dir)?;
        Ok(dir)
    }

    /// It stays when this is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// It goes when this is dropped.
    pub fn let_go(&mut self) {
        self.keep = false;
    }

    /// Removes what killed processes left, but for the names that `wanted` has.
    pub fn sweep(repo: &Repo, wanted: &[String]) {
        for entry in fs::read_dir(runs(repo)).into_iter().flatten().flatten() {
            let (dir, name) = (entry.path(), entry.file_name());
            let old = entry.metadata().and_then(|m| m.modified()).is_ok_and(|t| t.elapsed().is_ok_and(|a| a > YOUNG));
            let abandoned = match File::open(dir.join("lock")) {
                Ok(lock) => lock.try_lock().is_ok(),
                Err(_) => old,
            };
            if abandoned && dir.is_dir() && !wanted.iter().any(|w| name.to_str() == Some(w)) {
                let _ = fs::remove_dir_all(dir);
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}
