//! What a repository takes on disk, counted as `du -sb` does: the apparent sizes of files and directories.

use std::fs;
use std::path::Path;

use super::RepoError;
use crate::store::root::DERIVED;

/// Bytes of a repository's parts.
#[derive(Default, Debug)]
pub struct Space {
    /// All of the directory less drafts.
    pub stored: u64,
    /// The packs, without what is derived from them beside them.
    pub packs: u64,
    pub catalog: u64,
    pub drafts: u64,
}

pub fn of(dir: &Path) -> Result<Space, RepoError> {
    let drafts = below(&dir.join("drafts"))?;
    let derived = DERIVED.iter().try_fold(0, |sum, name| Ok::<_, RepoError>(sum + files(&dir.join(name))?))?;
    Ok(Space {
        stored: below(dir)?.saturating_sub(drafts),
        packs: files(&dir.join("packs"))?.saturating_sub(derived),
        catalog: below(&dir.join("catalog"))?,
        drafts: files(&dir.join("drafts"))?,
    })
}

/// The directory and all below it. What vanishes meanwhile (a running import's pack) counts nothing.
fn below(path: &Path) -> Result<u64, RepoError> {
    let Some(meta) = meta(path)? else { return Ok(0) };
    if !meta.is_dir() {
        return Ok(meta.len());
    }
    let entries = fs::read_dir(path).map_err(|e| RepoError::file(path, e))?;
    entries.flatten().try_fold(meta.len(), |sum, e| Ok(sum + below(&e.path())?))
}

/// The files below a directory, without the directories themselves.
fn files(path: &Path) -> Result<u64, RepoError> {
    match meta(path)? {
        None => Ok(0),
        Some(m) if !m.is_dir() => Ok(m.len()),
        Some(_) => {
            let entries = fs::read_dir(path).map_err(|e| RepoError::file(path, e))?;
            entries.flatten().try_fold(0, |sum, e| Ok(sum + files(&e.path())?))
        }
    }
}

fn meta(path: &Path) -> Result<Option<fs::Metadata>, RepoError> {
    match fs::symlink_metadata(path) {
        Ok(m) => Ok(Some(m)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(RepoError::file(path, e)),
    }
}
