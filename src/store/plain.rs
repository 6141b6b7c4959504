//! Plain files: whole files of versions as they are, beside the store, so that they need not be rebuilt for each read.
//!
//! ```text
//! <dir>/<digest>       the file's bytes; digest: BLAKE3 of them, 64 hex digits
//! <dir>/index.json     what each file was when it was written and hashed (below)
//! <dir>/*.tmp          a crash's leftovers
//! <dir>/lock           held while a process has the directory
//! ```
//! All of it is derived and can be deleted at any time. It is the one place whose bytes are not checked when they are
//! read: the kernel reads the file by itself. So a file is believed while it has the device, inode, size, mtime and
//! ctime that it had when its bytes were hashed: then nobody has written to it since, short of the disk itself.
//! [`PlainFiles::recheck`] hashes them again. What differs in any of this is removed and never handed out again.
//!
//! A file is in the index only when its bytes are durable. The sum of the files stays within a limit: those least
//! recently asked for go first. What is open stays readable, as files do.
//!
//! It does its own I/O, not through the disk seam: a fault in it costs a rebuild. It doesn't know versions.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::{At, Result, StoreError};
use crate::model::id::Id;

const INDEX: &str = "index.json";
/// Bytes that are written or hashed at once.
const PIECE: usize = 1 << 20;

/// What a file's metadata were when its bytes were hashed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Identity {
    device: u64,
    inode: u64,
    bytes: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Identity {
    fn of(file: &File) -> io::Result<Identity> {
        let m = file.metadata()?;
        let (mtime, ctime) = ((m.mtime(), m.mtime_nsec()), (m.ctime(), m.ctime_nsec()));
        Ok(Identity { device: m.dev(), inode: m.ino(), bytes: m.len(), mtime, ctime })
    }
}

#[derive(Clone, Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    identity: Identity,
    /// Rises with each use.
    used: u64,
}

#[derive(Default, Serialize, Deserialize)]
struct Index {
    files: BTreeMap<Id, Line>,
}

impl Index {
    fn bytes(&self) -> u64 {
        self.files.values().map(|l| l.identity.bytes).sum()
    }

    fn next_use(&self) -> u64 {
        self.files.values().map(|l| l.used).max().unwrap_or(0) + 1
    }

    /// What must go, least recently used first, to have room for `bytes` more.
    fn in_the_way(&self, limit: u64, bytes: u64) -> Vec<Id> {
        let mut by_use: Vec<(&Id, &Line)> = self.files.iter().collect();
        by_use.sort_by_key(|(_, l)| l.used);
        let mut over = (self.bytes() + bytes).saturating_sub(limit);
        let goes = |(_, l): &(&Id, &Line)| {
            let goes = over > 0;
            over = over.saturating_sub(l.identity.bytes);
            goes
        };
        by_use.into_iter().take_while(goes).map(|(id, _)| *id).collect()
    }
}

/// A directory of plain files. One process has it at a time.
pub struct PlainFiles {
    dir: PathBuf,
    limit: u64,
    index: Mutex<Index>,
    /// One file is written at a time.
    writing: Mutex<()>,
    _lock: File,
}

impl PlainFiles {
    /// Takes the directory, made if it is not there, and drops what is not as it was left. [`StoreError::Busy`] when
    /// another process has it.
    pub fn open(dir: &Path, limit: u64) -> Result<PlainFiles> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).at(dir)?;
        let path = dir.join("lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).at(&path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(StoreError::Busy { what: dir.display().to_string() }),
            Err(fs::TryLockError::Error(e)) => return Err(e).at(&path),
        }
        let known = fs::read(dir.join(INDEX)).ok().and_then(|b| serde_json::from_slice::<Index>(&b).ok());
        let (dir, index) = (dir.to_owned(), Mutex::new(known.unwrap_or_default()));
        let files = PlainFiles { dir, limit, index, writing: Mutex::new(()), _lock: lock };
        files.sweep()?;
        Ok(files)
    }

    /// Removes what the index does not vouch for, and what goes past the limit.
    fn sweep(&self) -> Result<()> {
        let mut index = self.index();
        index.files.retain(|id, line| {
            open_file(&self.path(id)).and_then(|f| Identity::of(&f)).is_ok_and(|i| i == line.identity)
        });
        for id in index.in_the_way(self.limit, 0) {
            index.files.remove(&id);
        }
        let kept =
            |name: &str| name == "lock" || name == INDEX || name.parse().is_ok_and(|id| index.files.contains_key(&id));
        for entry in fs::read_dir(&self.dir).at(&self.dir)?.flatten() {
            if entry.file_name().to_str().is_none_or(|n| !kept(n)) {
                let _ = fs::remove_file(entry.path());
            }
        }
        self.write(&index)
    }

    /// The file with these bytes, if it is here and nobody has touched it.
    pub fn get(&self, digest: &Id) -> Option<File> {
        let mut index = self.index();
        let next = index.next_use();
        let line = index.files.get_mut(digest)?;
        line.used = next;
        let found = open_file(&self.path(digest)).and_then(|f| Ok((Identity::of(&f)?, f)));
        match found {
            Ok((identity, file)) if identity == line.identity => Some(file),
            _ => {
                log::warn!("{} was changed or removed; it is rebuilt from the store", self.path(digest).display());
                self.forget(&mut index, digest);
                None
            }
        }
    }

    /// Whether a file of so many bytes could be kept at all.
    pub fn has_room(&self, bytes: u64) -> bool {
        bytes <= self.limit
    }

    /// Keeps a file of `bytes` bytes that hash to `digest`; `fill` gives those from an offset on. What it gives is not
    /// believed: another hash is damage. Others go where there is no room. Nothing is done when it is here already.
    pub fn add<E: From<StoreError>>(
        &self,
        digest: &Id,
        bytes: u64,
        mut fill: impl FnMut(u64, &mut [u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        if !self.has_room(bytes) {
            return Err(StoreError::Misuse("a file is larger than the whole disk cache").into());
        }
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.index().files.contains_key(digest) {
            return Ok(());
        }
        let tmp = self.dir.join(format!("{digest}.tmp"));
        let done = self.write_file(&tmp, digest, bytes, &mut fill);
        let _ = fs::remove_file(&tmp); // unless it was renamed
        done
    }

    fn write_file<E: From<StoreError>>(
        &self,
        tmp: &Path,
        digest: &Id,
        bytes: u64,
        fill: &mut impl FnMut(u64, &mut [u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(tmp).at(tmp)?;
        let (mut hash, mut at, mut piece) = (blake3::Hasher::new(), 0, vec![0; PIECE]);
        while at < bytes {
            let piece = &mut piece[..(bytes - at).min(PIECE as u64) as usize];
            fill(at, piece)?;
            hash.update(piece);
            file.write_all(piece).at(tmp)?;
            at += piece.len() as u64;
        }
        if hash.finalize().as_bytes() != &digest.0 {
            return Err(StoreError::damaged(format!("the file {digest} was rebuilt to something else")).into());
        }
        file.sync_all().at(tmp)?;
        let mut index = self.index();
        for id in index.in_the_way(self.limit, bytes) {
            self.forget(&mut index, &id);
        }
        fs::rename(tmp, self.path(digest)).at(tmp)?;
        let (used, identity) = (index.next_use(), Identity::of(&file).at(tmp)?);
        index.files.insert(*digest, Line { identity, used });
        Ok(self.write(&index)?)
    }

    /// Removes a file; false when it was not here.
    pub fn remove(&self, digest: &Id) -> Result<bool> {
        let mut index = self.index();
        let was = self.forget(&mut index, digest);
        self.write(&index)?;
        Ok(was)
    }

    /// Digests and bytes of all files, the last used first.
    pub fn list(&self) -> Vec<(Id, u64)> {
        let index = self.index();
        let mut lines: Vec<_> = index.files.iter().collect();
        lines.sort_by_key(|(_, l)| std::cmp::Reverse(l.used));
        lines.into_iter().map(|(id, l)| (*id, l.identity.bytes)).collect()
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Hashes every file again, and removes those that are something else than they were; true if none was. Ends early
    /// when `stop` says so.
    pub fn recheck(&self, stop: impl Fn() -> bool) -> bool {
        let mut all = true;
        for (digest, _) in self.list() {
            let Some(mut file) = self.get(&digest) else { continue };
            match digest_of(&mut file, &stop) {
                Ok(Some(found)) if found != digest => {
                    log::error!("{} holds other bytes than were written; it is removed", self.path(&digest).display());
                    let _ = self.remove(&digest);
                    all = false;
                }
                Ok(None) => break,
                _ => {}
            }
        }
        all
    }

    /// Writes down what was used when.
    pub fn save(&self) -> Result<()> {
        self.write(&self.index())
    }

    fn forget(&self, index: &mut Index, digest: &Id) -> bool {
        let _ = fs::remove_file(self.path(digest));
        index.files.remove(digest).is_some()
    }

    /// Not synced: after a crash an old index knows no file that is not there as it was.
    fn write(&self, index: &Index) -> Result<()> {
        let (tmp, path) = (self.dir.join("index.tmp"), self.dir.join(INDEX));
        let text = serde_json::to_vec(index).expect("an index is JSON");
        fs::write(&tmp, text).and_then(|()| fs::rename(&tmp, &path)).at(&path)
    }

    fn path(&self, digest: &Id) -> PathBuf {
        self.dir.join(digest.to_string())
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PlainFiles {
    fn drop(&mut self) {
        let _ = self.save();
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// `None` when it was stopped.
fn digest_of(file: &mut File, stop: &impl Fn() -> bool) -> io::Result<Option<Id>> {
    let (mut hash, mut piece) = (blake3::Hasher::new(), vec![0; PIECE]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(Some(Id(*hash.finalize().as_bytes()))),
            _ if stop() => return Ok(None),
            n => hash.update(&piece[..n]),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn bytes(byte: u8, len: usize) -> (Id, Vec<u8>) {
        let bytes = vec![byte; len];
        (Id::of(&bytes), bytes)
    }

    fn add(files: &PlainFiles, (digest, bytes): &(Id, Vec<u8>)) -> Result<()> {
        files.add(digest, bytes.len() as u64, |at, out| {
            out.copy_from_slice(&bytes[at as usize..][..out.len()]);
            Ok(())
        })
    }

    fn content(mut file: File) -> Vec<u8> {
        let mut out = Vec::new();
        file.read_to_end(&mut out).unwrap();
        out
    }

    #[test]
    fn what_is_kept_comes_back_and_the_least_used_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let files = PlainFiles::open(dir.path(), 5000).unwrap();
        let [a, b, c] = [bytes(1, 2000), bytes(2, 2000), bytes(3, 2000)];
        add(&files, &a).unwrap();
        add(&files, &b).unwrap();
        let held = files.get(&a.0).unwrap();
        add(&files, &c).unwrap();
        assert!(files.get(&b.0).is_none(), "least recently used");
        assert_eq!(content(held), a.1);
        assert_eq!(files.list().iter().map(|f| f.1).sum::<u64>(), 4000);
        assert!(add(&files, &bytes(4, 5001)).is_err());
        assert!(matches!(PlainFiles::open(dir.path(), 1), Err(StoreError::Busy { .. })));
        drop(files);
        let files = PlainFiles::open(dir.path(), 2000).unwrap();
        assert_eq!(files.list(), [(c.0, 2000)], "a smaller limit");
        assert!(files.remove(&c.0).unwrap() && !files.remove(&c.0).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "the lock and the index");
    }

    #[test]
    fn wrong_bytes_are_not_kept_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let files = PlainFiles::open(dir.path(), 5000).unwrap();
        let lie = (bytes(1, 10).0, vec![2; 10]);
        assert!(matches!(add(&files, &lie), Err(StoreError::Damaged { .. })));
        assert!(files.get(&lie.0).is_none() && files.list().is_empty());
        assert!(!fs::read_dir(dir.path()).unwrap().any(|e| e.unwrap().path().extension().is_some_and(|e| e == "tmp")));
    }

    #[test]
    fn a_changed_file_is_never_handed_out_again() {
        let change: [fn(&Path); 4] = [
            |p| File::options().write(true).open(p).unwrap().write_all_at(b"x", 5).unwrap(),
            |p| File::options().write(true).open(p).unwrap().set_len(9).unwrap(),
            |p| fs::remove_file(p).unwrap(),
            |p| {
                fs::copy(p, p.with_extension("new")).unwrap();
                fs::rename(p.with_extension("new"), p).unwrap();
            },
        ];
        for (i, change) in change.iter().enumerate() {
            for restart in [false, true] {
                let dir = tempfile::tempdir().unwrap();
                let mut files = PlainFiles::open(dir.path(), 5000).unwrap();
                let a = bytes(1, 1000);
                add(&files, &a).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(20)); // a tick of the file system's clock
                change(&files.path(&a.0));
                if restart {
                    drop(files);
                    files = PlainFiles::open(dir.path(), 5000).unwrap();
                }
                assert!(files.get(&a.0).is_none() && files.list().is_empty(), "change {i}, restart {restart}");
                add(&files, &a).unwrap();
                assert_eq!(content(files.get(&a.0).unwrap()), a.1);
            }
        }
    }

    #[test]
    fn a_recheck_finds_what_metadata_do_not_show() {
        let dir = tempfile::tempdir().unwrap();
        let files = PlainFiles::open(dir.path(), 5000).unwrap();
        let (a, b) = (bytes(1, 1000), bytes(2, 1000));
        add(&files, &a).unwrap();
        add(&files, &b).unwrap();
        assert!(files.recheck(|| false));
        let path = files.path(&a.0);
        File::options().write(true).open(&path).unwrap().write_all_at(b"x", 5).unwrap();
        // As if the disk had done it: the index is told what the file is now.
        let now = Identity::of(&File::open(&path).unwrap()).unwrap();
        files.index().files.get_mut(&a.0).unwrap().identity = now;
        assert!(files.recheck(|| true), "stopped at once");
        assert!(!files.recheck(|| false));
        assert!(files.get(&a.0).is_none() && files.get(&b.0).is_some());
    }
}
