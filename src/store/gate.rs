//! The gate of the packs: many may add at once, or one takes away.
//!
//! Whoever adds holds it shared from before it looks what is stored already until the journal names what it added
//! ([`super::PackWriter`] and [`super::SealedPack`] carry it). Whoever removes, or puts other copies in the place of
//! packs, holds it alone. So nothing that a running import has found is taken from it.
//!
//! It is the lock of an empty file, made when first needed, which a crash releases. It knows nothing of packs.

use std::path::{Path, PathBuf};

use super::disk::{Disk, DiskFile};
use super::{At, Result};

const NAME: &str = "gate";

/// Holds the gate until dropped.
pub struct Gate {
    _file: Box<dyn DiskFile>,
}

/// Joins those who add to the packs in `dir`; waits for one who removes.
pub fn enter(disk: &dyn Disk, dir: &Path) -> Result<Gate> {
    let (path, file) = open(disk, dir)?;
    file.lock(false, true).at(&path)?;
    Ok(Gate { _file: file })
}

/// As [`enter`], but `None` while somebody removes.
pub fn try_enter(disk: &dyn Disk, dir: &Path) -> Result<Option<Gate>> {
    let (path, file) = open(disk, dir)?;
    Ok(file.lock(false, false).at(&path)?.then_some(Gate { _file: file }))
}

/// For one who removes; `None` while others hold it.
pub fn try_close(disk: &dyn Disk, dir: &Path) -> Result<Option<Gate>> {
    let (path, file) = open(disk, dir)?;
    Ok(file.lock(true, false).at(&path)?.then_some(Gate { _file: file }))
}

fn open(disk: &dyn Disk, dir: &Path) -> Result<(PathBuf, Box<dyn DiskFile>)> {
    let path = dir.join(NAME);
    let file = match disk.open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => match disk.create_new(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => disk.open(&path),
            made => made,
        },
        opened => opened,
    };
    Ok((path.clone(), file.at(&path)?))
}

#[cfg(test)]
mod tests {
    use super::super::sim::SimDisk;
    use super::*;

    #[test]
    fn many_add_or_one_removes() {
        let (disk, dir) = (SimDisk::new(1), Path::new("/"));
        let (a, b) = (enter(&disk, dir).unwrap(), enter(&disk, dir).unwrap());
        assert!(try_close(&disk, dir).unwrap().is_none());
        drop((a, b));
        let alone = try_close(&disk, dir).unwrap().unwrap();
        assert!(try_enter(&disk, dir).unwrap().is_none() && try_close(&disk, dir).unwrap().is_none());
        drop(alone);
        assert!(try_enter(&disk, dir).unwrap().is_some());
    }
}
