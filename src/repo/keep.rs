//! The disk cache: files that were read whole are kept plain ([`PlainFiles`]), so that the next read costs no decoding.
//!
//! A [`Keeper`] counts the bytes that are read of each large file, and one thread of low priority rebuilds those that
//! were read (almost) whole. Some time after a start it hashes again what an earlier process left, while files are served.
//! It decides what is kept; how plain files are believed is `store`'s business, how they are served the filesystem's.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::engine::{Engine, label};
use super::{Repo, RepoError};
use crate::model::id::{Id, path_tag};
use crate::model::name::VersionRef;
use crate::model::record::FileEntry;
use crate::store::plain::PlainFiles;

/// Smaller files are rebuilt faster than they are looked for.
pub const MIN_BYTES: u64 = 1 << 20;
/// How long after a start the files of an earlier process are hashed again: those who load a model at once come first.
const RECHECK_AFTER: Duration = Duration::from_secs(30);
/// Files whose bytes are counted at once.
const MAX_COUNTED: usize = 1 << 16;

/// A file that is to be kept.
#[derive(Clone, Copy)]
struct Wish {
    digest: Id,
    recipe: Id,
    bytes: u64,
}

impl Wish {
    fn of(entry: &FileEntry) -> Wish {
        Wish { digest: entry.digest, recipe: entry.recipe, bytes: entry.bytes }
    }
}

/// Counts what is read of one file, through all its handles.
pub struct Count {
    wish: Wish,
    read: AtomicU64,
    wishes: Sender<Wish>,
}

impl Count {
    /// `n` more bytes were read. Some never are: what the kernel has of an earlier read. So seven eighths are all.
    pub fn add(&self, n: u64) {
        let all = self.wish.bytes - self.wish.bytes / 8;
        let before = self.read.fetch_add(n, Ordering::Relaxed);
        if before < all && before + n >= all {
            let _ = self.wishes.send(self.wish); // an error is the end of the process
        }
    }
}

/// The disk cache of a repository, and the thread that fills it.
pub struct Keeper {
    repo: Arc<Repo>,
    files: PlainFiles,
    counts: Mutex<HashMap<Id, Arc<Count>>>,
    wishes: Sender<Wish>,
    stop: AtomicBool,
}

/// A plain file, and the first of the living versions' files that has its bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kept {
    pub digest: Id,
    pub bytes: u64,
    /// `model@version/path`, or nothing when no version has it any longer.
    pub of: Option<String>,
}

/// What is kept, the last used first.
pub fn list(engine: &Engine, files: &PlainFiles) -> Result<Vec<Kept>, RepoError> {
    let mut names = HashMap::new();
    for head in engine.catalog().all()? {
        for f in &engine.repo.record(&head.id)?.files {
            names.entry(f.digest).or_insert_with(|| format!("{}/{}", label(&head), f.path));
        }
    }
    let kept = |(digest, bytes): (Id, u64)| Kept { digest, bytes, of: names.get(&digest).cloned() };
    Ok(files.list().into_iter().map(kept).collect())
}

/// Removes the plain files of versions; returns how many, and their bytes.
pub fn remove(engine: &Engine, files: &PlainFiles, versions: &[VersionRef]) -> Result<(u64, u64), RepoError> {
    let mut gone = (0, 0);
    for entry in entries(engine, versions)? {
        if files.remove(&entry.digest)? {
            gone = (gone.0 + 1, gone.1 + entry.bytes);
        }
    }
    Ok(gone)
}

fn entries(engine: &Engine, versions: &[VersionRef]) -> Result<Vec<FileEntry>, RepoError> {
    let heads = versions.iter().map(|v| engine.resolve(v)).collect::<Result<Vec<_>, _>>()?;
    let records = heads.iter().map(|h| engine.repo.record(&h.id)).collect::<Result<Vec<_>, _>>()?;
    Ok(records.into_iter().flat_map(|r| r.files).collect())
}

/// Where a repository's plain files are: below `$XDG_CACHE_HOME/mgit`, else `~/.cache/mgit`.
pub fn directory(repo: &Path) -> Result<PathBuf, RepoError> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|h| h.join(".cache")));
    let cache =
        cache.ok_or_else(|| RepoError::refused("there is no place for a disk cache; set HOME or XDG_CACHE_HOME"))?;
    Ok(cache.join("mgit").join(path_tag(&repo.canonicalize().unwrap_or_else(|_| repo.to_owned()))))
}

/// The plain files of a repository that no daemon keeps: to be looked at and removed.
pub fn unattended(repo: &Path) -> Result<PlainFiles, RepoError> {
    Ok(PlainFiles::open(&directory(repo)?, u64::MAX)?)
}

impl Keeper {
    /// Takes the repository's disk cache, of at most `limit` bytes, and starts the thread.
    pub fn start(repo: Arc<Repo>, limit: u64) -> Result<Arc<Keeper>, RepoError> {
        let files = PlainFiles::open(&directory(&repo.dir)?, limit)?;
        let (wishes, wished) = channel();
        let (counts, stop) = (Mutex::default(), AtomicBool::new(false));
        let keeper = Arc::new(Keeper { repo, files, counts, wishes, stop });
        let worker = keeper.clone();
        std::thread::Builder::new()
            .name("keeper".to_owned())
            .spawn(move || worker.work(wished))
            .map_err(|e| RepoError::refused(format!("cannot start the disk cache's thread: {e}")))?;
        Ok(keeper)
    }

    fn work(&self, wished: Receiver<Wish>) {
        low_priority();
        let start = Instant::now();
        let mut rechecked = false;
        loop {
            let wish = match rechecked {
                true => wished.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => wished.recv_timeout(RECHECK_AFTER.saturating_sub(start.elapsed())),
            };
            match wish {
                _ if self.stop.load(Ordering::Relaxed) => return,
                Ok(wish) => self.fulfil(&wish),
                Err(RecvTimeoutError::Timeout) => {
                    self.files.recheck(|| self.stop.load(Ordering::Relaxed));
                    rechecked = true;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn fulfil(&self, wish: &Wish) {
        if let Err(e) = self.keep(wish) {
            log::warn!("a file is not kept in the disk cache: {e}");
        }
        self.counts().remove(&wish.digest);
    }

    /// Ends the thread's work at the next file.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.files.save();
    }

    pub fn files(&self) -> &PlainFiles {
        &self.files
    }

    /// The plain file, if it is kept.
    pub fn file(&self, entry: &FileEntry) -> Option<File> {
        if entry.bytes < MIN_BYTES { None } else { self.files.get(&entry.digest) }
    }

    /// Counts what is read of a file that may be kept one day.
    pub fn count(&self, entry: &FileEntry) -> Option<Arc<Count>> {
        let wish = Wish::of(entry);
        let mut counts = self.counts();
        if entry.bytes < MIN_BYTES || !self.files.has_room(entry.bytes) || counts.len() >= MAX_COUNTED {
            return None;
        }
        let new = || Arc::new(Count { wish, read: AtomicU64::new(0), wishes: self.wishes.clone() });
        Some(counts.entry(entry.digest).or_insert_with(new).clone())
    }

    /// Keeps the files of versions now, however often they were read; returns how many are kept, and their bytes. Small
    /// files are left out.
    pub fn add(&self, engine: &Engine, versions: &[VersionRef]) -> Result<(u64, u64), RepoError> {
        let large: Vec<FileEntry> = entries(engine, versions)?.into_iter().filter(|e| e.bytes >= MIN_BYTES).collect();
        let bytes = large.iter().map(|e| e.bytes).sum();
        if !self.files.has_room(bytes) {
            let limit = self.files.limit();
            return Err(RepoError::refused(format!(
                "{bytes} bytes are more than the whole disk cache of {limit}; see 'mgit mount --disk-cache'"
            )));
        }
        for e in &large {
            self.keep(&Wish::of(e))?;
        }
        Ok((large.len() as u64, bytes))
    }

    fn keep(&self, wish: &Wish) -> Result<(), RepoError> {
        let reader = self.repo.open_file(&wish.recipe)?;
        self.files.add(&wish.digest, wish.bytes, |at, out| reader.read_at(at, out))
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, HashMap<Id, Arc<Count>>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What this thread does can wait for anything else.
fn low_priority() {
    const WHO_PROCESS: libc::c_int = 1;
    const CLASS_IDLE: libc::c_int = 3 << 13;
    // SAFETY: the calls take numbers only. On Linux, 0 means this thread.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, 19);
        libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, CLASS_IDLE);
    }
}
