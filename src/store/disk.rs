//! The seam: every durable byte of the store goes through a [`Disk`], so that a test can lose, tear, refuse
//! and damage it ([`super::sim`]).
//!
//! Files only grow at their end, or are cut ([`DiskFile::truncate`]); nothing is overwritten in place. Data
//! are durable after [`DiskFile::sync`], a name (created, renamed, removed) after [`Disk::sync_dir`] of its
//! directory, and not before. New files have mode 0600, directories 0700. Time and chance come from it too, so that what a
//! test did can be repeated.
//!
//! It knows nothing of what the files hold. (sled, which holds only what follows from these files, does its
//! own I/O.)

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

use jiff::Timestamp;

/// An open file. Its lock, if taken, is released when it is dropped.
pub trait DiskFile: Send + Sync {
    /// Fills `buf` from byte `at` on; `UnexpectedEof` when the file is shorter.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<()>;
    /// Appends all of `bytes`. After an error any prefix of them may be there.
    fn append(&self, bytes: &[u8]) -> io::Result<()>;
    /// Returns when all data and the length are durable.
    fn sync(&self) -> io::Result<()>;
    fn len(&self) -> io::Result<u64>;
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts it off, or adds zeros that need no room.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Takes the file's advisory lock, shared or exclusive; `false` when it is held and `wait` is not set.
    fn lock(&self, exclusive: bool, wait: bool) -> io::Result<bool>;
}

/// A file system.
pub trait Disk: Send + Sync {
    /// A new empty file, for reading and appending; `AlreadyExists` if the name is taken.
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// An existing file, for reading.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// An existing file, for reading and appending.
    fn open_append(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Replaces what stands at `to`, if anything does.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Names in a directory, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// One new directory, its parent being there; `AlreadyExists` if the name is taken.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// What time it is.
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
    /// For names that nobody else takes.
    fn random(&self) -> u64 {
        RandomState::new().build_hasher().finish()
    }
}

/// The operating system's files.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

struct RealFile(File);

impl DiskFile for RealFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, at)
    }

    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        io::Write::write_all(&mut &self.0, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn lock(&self, exclusive: bool, wait: bool) -> io::Result<bool> {
        loop {
            match real_lock(&self.0, exclusive, wait) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                done => return done,
            }
        }
    }
}

/// `flock`, which std calls.
fn real_lock(file: &File, exclusive: bool, wait: bool) -> io::Result<bool> {
    let tried = match (exclusive, wait) {
        (true, true) => return file.lock().map(|()| true),
        (false, true) => return file.lock_shared().map(|()| true),
        (true, false) => file.try_lock(),
        (false, false) => file.try_lock_shared(),
    };
    match tried {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

fn boxed(file: File) -> Box<dyn DiskFile> {
    Box::new(RealFile(file))
}

impl Disk for RealDisk {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(path).map(boxed)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        File::open(path).map(boxed)
    }

    fn open_append(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        OpenOptions::new().read(true).append(true).open(path).map(boxed)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let names = std::fs::read_dir(dir)?.map(|e| Ok(e?.file_name().to_string_lossy().into_owned()));
        let mut names = names.collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// What both disks must agree on.
    pub fn contract(disk: &dyn Disk, root: &Path) {
        let (dir, a, b) = (root.join("d"), root.join("d/a"), root.join("d/b"));
        disk.create_dir(&dir).unwrap();
        assert_eq!(disk.create_dir(&dir).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        let f = disk.create_new(&a).unwrap();
        assert_eq!(disk.create_new(&a).err().unwrap().kind(), io::ErrorKind::AlreadyExists);
        f.append(b"hello ").unwrap();
        f.append(b"world").unwrap();
        f.sync().unwrap();
        let mut buf = [0; 5];
        f.read_at(&mut buf, 6).unwrap();
        assert_eq!(&buf, b"world");
        assert_eq!(f.read_at(&mut buf, 7).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        f.truncate(3).unwrap();
        assert_eq!(disk.open_append(&a).unwrap().len().unwrap(), 3);
        locks(disk, &a);
        disk.rename(&a, &b).unwrap();
        disk.sync_dir(&dir).unwrap();
        assert_eq!(disk.list(&dir).unwrap(), ["b"]);
        assert!(disk.exists(&b).unwrap() && !disk.exists(&a).unwrap());
        disk.remove(&b).unwrap();
        assert_eq!(disk.open(&b).err().unwrap().kind(), io::ErrorKind::NotFound);
        assert_eq!(f.len().unwrap(), 3);
    }

    fn locks(disk: &dyn Disk, path: &Path) {
        let (x, y) = (disk.open(path).unwrap(), disk.open(path).unwrap());
        assert!(x.lock(false, false).unwrap() && y.lock(false, false).unwrap());
        assert!(!x.lock(true, false).unwrap());
        drop(y);
        assert!(x.lock(true, true).unwrap());
        assert!(!disk.open(path).unwrap().lock(false, false).unwrap());
    }

    #[test]
    fn the_real_disk_keeps_the_contract() {
        let dir = tempfile::tempdir().unwrap();
        contract(&RealDisk, dir.path());
        RealDisk.create_new(&dir.path().join("f")).unwrap();
        let mode = |p: &str| std::fs::metadata(dir.path().join(p)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("d"), mode("f")), (0o700, 0o600));
    }

    #[test]
    fn the_simulated_disk_keeps_the_contract() {
        contract(&crate::store::sim::SimDisk::new(1), Path::new("/"));
    }
}
