//! The repository's directory: what makes it one, and its lock.
//!
//! `format.json` is written last and never replaced: where it stands, the directories do too, and its lock is
//! the repository's. It names the format and the features that a reader must know; other keys are ignored.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::disk::{Disk, DiskFile};
use super::{At, Result, StoreError};

/// Names in a repository.
pub const FORMAT: &str = "format.json";
pub const PACKS: &str = "packs";
pub const JOURNAL: &str = "journal";
pub const CATALOG: &str = "catalog";
/// Derived, beside the packs.
pub const SKETCHES: &str = "packs/sketches";
pub const FOOTERS: &str = "packs/footers";
pub const DERIVED: [&str; 2] = [SKETCHES, FOOTERS];

/// The format of the repository as a whole.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Format {
    format: u32,
    #[serde(default)]
    features: Vec<String>,
    /// Parity of each pack, in thousandths of it.
    #[serde(default, skip_serializing_if = "is_zero")]
    parity: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Holds the repository's lock until dropped.
pub struct RepoLock {
    _file: Box<dyn DiskFile>,
}

/// Makes `root` a repository: the directories, then `format.json`. All are durable when it returns.
/// Creates missing directories above. Fails with `AlreadyExists` where a repository is already.
pub fn create(disk: &Arc<dyn Disk>, root: &Path) -> Result<()> {
    create_with(disk, root, 0)
}

/// As [`create`]; each pack gets so many thousandths of it as parity.
pub fn create_with(disk: &Arc<dyn Disk>, root: &Path, parity: u64) -> Result<()> {
    let format = root.join(FORMAT);
    if disk.exists(&format).at(&format)? {
        return Err(std::io::Error::from(std::io::ErrorKind::AlreadyExists)).at(&format);
    }
    ensure_dir(&**disk, root)?;
    for name in [PACKS, JOURNAL] {
        ensure_dir(&**disk, &root.join(name))?;
    }
    let text = serde_json::to_vec(&Format { format: VERSION, features: vec![], parity }).expect("plain values");
    write_whole(&**disk, &format, &text)
}

/// A directory that is durably there, with all above it.
pub fn ensure_dir(disk: &dyn Disk, dir: &Path) -> Result<()> {
    if disk.exists(dir).at(dir)? {
        return Ok(());
    }
    let above = match dir.parent() {
        Some(p) if p.as_os_str().is_empty() => Path::new("."),
        Some(p) => p,
        None => return Ok(()),
    };
    ensure_dir(disk, above)?;
    match disk.create_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        other => other.at(dir)?,
    }
    disk.sync_dir(above).at(above)
}

/// A whole small file under its name, or nothing: through a temporary file beside it.
pub(super) fn write_whole(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<()> {
    write_whole_by(disk, path, &|file| file.append(bytes))
}

/// The same of another file's bytes.
pub(super) fn copy_whole(disk: &dyn Disk, from: &dyn DiskFile, path: &Path) -> Result<()> {
    write_whole_by(disk, path, &|file| {
        let (len, mut piece) = (from.len()?, vec![0; 1 << 20]);
        for at in (0..len).step_by(piece.len()) {
            let n = (len - at).min(piece.len() as u64) as usize;
            from.read_at(&mut piece[..n], at)?;
            match piece[..n].iter().all(|b| *b == 0) {
                true => file.truncate(at + n as u64)?, // A hole stays one.
                false => file.append(&piece[..n])?,
            }
        }
        Ok(())
    })
}

fn write_whole_by(disk: &dyn Disk, path: &Path, write: &dyn Fn(&dyn DiskFile) -> std::io::Result<()>) -> Result<()> {
    let temporary = path.with_extension("tmp");
    match disk.remove(&temporary) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).at(&temporary),
        _ => {}
    }
    let file = disk.create_new(&temporary).at(&temporary)?;
    let written = write(&*file).and_then(|()| file.sync());
    if written.is_err() {
        let _ = disk.remove(&temporary);
    }
    written.at(&temporary)?;
    disk.rename(&temporary, path).at(path)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    disk.sync_dir(dir).at(dir)
}

/// Whether this program may read and write the repository at `root`.
pub fn check_format(disk: &Arc<dyn Disk>, root: &Path) -> Result<()> {
    read_format(&**disk, root).map(drop)
}

/// Thousandths of each pack that its parity takes; 0: it has none.
pub fn parity(disk: &dyn Disk, root: &Path) -> u64 {
    read_format(disk, root).map_or(0, |f| f.parity.min(1000))
}

fn read_format(disk: &dyn Disk, root: &Path) -> Result<Format> {
    let path = root.join(FORMAT);
    let file = disk.open(&path).at(&path)?;
    let len = file.len().at(&path)?;
    let bad = |why: String| StoreError::damaged(format!("{}: {why}", path.display()));
    if len > 1 << 16 {
        return Err(bad("it is too long".into()));
    }
    let mut text = vec![0; len as usize];
    file.read_at(&mut text, 0).at(&path)?;
    let format: Format = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
    let shown = root.display();
    if format.format != VERSION {
        return Err(StoreError::Later { what: format!("{shown} (format {})", format.format) });
    }
    match format.features.first() {
        Some(f) => Err(StoreError::Later { what: format!("{shown} (feature '{}')", crate::model::name::printable(f)) }),
        None => Ok(format),
    }
}

/// The lock of whoever changes the repository's names: the daemon, or one command. `None` when another
/// process holds it and `wait` is not set.
pub fn lock_exclusive(disk: &Arc<dyn Disk>, root: &Path, wait: bool) -> Result<Option<RepoLock>> {
    lock(disk, root, true, wait)
}

/// A lock that several may hold at once, but not beside an exclusive one.
pub fn lock_shared(disk: &Arc<dyn Disk>, root: &Path, wait: bool) -> Result<Option<RepoLock>> {
    lock(disk, root, false, wait)
}

fn lock(disk: &Arc<dyn Disk>, root: &Path, exclusive: bool, wait: bool) -> Result<Option<RepoLock>> {
    let path: PathBuf = root.join(FORMAT);
    let file = disk.open(&path).at(&path)?;
    let held = file.lock(exclusive, wait).at(&path)?;
    Ok(held.then_some(RepoLock { _file: file }))
}

#[cfg(test)]
mod tests {
    use super::super::sim::SimDisk;
    use super::*;

    fn with(text: &str) -> Result<()> {
        let sim = SimDisk::new(3);
        let disk: Arc<dyn Disk> = Arc::new(sim.clone());
        create(&disk, Path::new("/r")).unwrap();
        sim.write(Path::new("/r/format.json"), text.as_bytes());
        check_format(&disk, Path::new("/r"))
    }

    #[test]
    fn later_formats_and_features_are_refused_clearly() {
        assert!(with(r#"{"format":1,"features":[]}"#).is_ok());
        assert!(with(r#"{"format":1,"comment":"ours"}"#).is_ok());
        for later in [r#"{"format":2}"#, r#"{"format":1,"features":["parity"]}"#] {
            let e = with(later).unwrap_err();
            assert!(matches!(e, StoreError::Later { .. }), "{e}");
        }
        for bad in ["", "{", "[]", "{\"format\":\"1\"}"] {
            assert!(matches!(with(bad), Err(StoreError::Damaged { .. })), "{bad}");
        }
    }

    #[test]
    fn creation_is_all_or_nothing_at_every_operation() {
        let root = Path::new("/a/b/r");
        let mut crashed = 0;
        for at in 0.. {
            let sim = SimDisk::new(at);
            sim.crash_at(at);
            let disk: Arc<dyn Disk> = Arc::new(sim.clone());
            let done = create(&disk, root).is_ok();
            let after: Arc<dyn Disk> = Arc::new(sim.reboot());
            if after.exists(&root.join(FORMAT)).unwrap() {
                check_format(&after, root).unwrap();
                assert!(after.exists(&root.join(PACKS)).unwrap() && after.exists(&root.join(JOURNAL)).unwrap());
            } else {
                assert!(!done);
                create(&after, root).unwrap();
            }
            if done {
                break;
            }
            crashed += 1;
        }
        assert!(crashed > 10, "{crashed}");
    }

    #[test]
    fn one_holds_the_lock() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
        let root = Path::new("/r");
        create(&disk, root).unwrap();
        assert!(create(&disk, root).is_err());
        let held = lock_exclusive(&disk, root, false).unwrap();
        assert!(held.is_some() && lock_shared(&disk, root, false).unwrap().is_none());
        drop(held);
        assert!(lock_exclusive(&disk, root, true).unwrap().is_some());
    }
}
