//! Drafts as nodes: plain files below the repository's `drafts/`, each known by an open descriptor.
//!
//! A node holds an `O_PATH` descriptor for as long as the kernel knows it, so that it is the same through renames, and
//! its inode number cannot be another's. Its place (which draft it belongs to) is asked of the kernel when it matters.
//! Every call is made relative to a descriptor and follows no symlink.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::node;
use super::{Kind, VfsError};
use crate::model::name::{ModelName, VersionName};
use crate::repo::draft::{Area, Slot};

/// Bits of a mode that a draft's files may have.
pub(super) const MODE: u32 = 0o777;
const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl From<Errno> for VfsError {
    fn from(e: Errno) -> VfsError {
        VfsError::Os(e.raw_os_error())
    }
}

impl From<std::io::Error> for VfsError {
    fn from(e: std::io::Error) -> VfsError {
        VfsError::Os(e.raw_os_error().unwrap_or(libc::EIO))
    }
}

/// A file, directory or symlink of a draft or a work area.
#[derive(Debug)]
pub(super) struct Item {
    pub key: (u64, u64),
    pub kind: Kind,
    pub fd: OwnedFd,
}

impl Item {
    /// What stands at `name`, if it is one of the three.
    pub fn at(dir: BorrowedFd, name: &str) -> Result<Option<Arc<Item>>, VfsError> {
        let fd = match rustix::fs::openat(dir, name, LOOK, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let stat = rustix::fs::fstat(&fd)?;
        Ok(kind(&stat).map(|kind| Arc::new(Item { key: (stat.st_dev, stat.st_ino), kind, fd })))
    }

    pub fn stat(&self) -> Result<Stat, VfsError> {
        Ok(rustix::fs::fstat(&self.fd)?)
    }

    /// A path that is this item for as long as it is held.
    pub fn magic(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    /// Opens the file behind it; `flags` without those that make or cut it.
    pub fn open(&self, flags: OFlags) -> Result<File, VfsError> {
        Ok(rustix::fs::open(self.magic(), flags | OFlags::CLOEXEC, Mode::empty())?.into())
    }

    /// What an inode number is made from.
    pub fn identity(&self) -> Vec<u8> {
        node::identity(b"draft", &self.key.0.to_le_bytes(), &self.key.1.to_le_bytes())
    }

    pub fn readlink(&self) -> Result<String, VfsError> {
        let target = rustix::fs::readlinkat(&self.fd, "", Vec::new())?;
        target.into_string().map_err(|_| VfsError::Invalid)
    }

    /// The names in a directory, without `.` and `..`.
    pub fn names(&self) -> Result<Vec<String>, VfsError> {
        names(rustix::fs::openat(&self.fd, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    }
}

fn names(dir: OwnedFd) -> Result<Vec<String>, VfsError> {
    let mut names = Vec::new();
    for entry in Dir::new(dir)? {
        let entry = entry?;
        match entry.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => names.push(name.to_owned()),
        }
    }
    Ok(names)
}

fn kind(stat: &Stat) -> Option<Kind> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Some(Kind::File),
        FileType::Directory => Some(Kind::Directory),
        FileType::Symlink => Some(Kind::Symlink),
        _ => None,
    }
}

/// A file's times: of its bytes, and of what is known of it.
pub(super) fn times(stat: &Stat) -> (SystemTime, SystemTime) {
    let at = |s: i64, n: u64| match s >= 0 {
        true => SystemTime::UNIX_EPOCH + Duration::new(s as u64, n as u32),
        false => SystemTime::UNIX_EPOCH - Duration::from_secs(s.unsigned_abs()) + Duration::from_nanos(n),
    };
    (at(stat.st_mtime, stat.st_mtime_nsec), at(stat.st_ctime, stat.st_ctime_nsec))
}

/// Where an item stands now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Whereabouts {
    /// In a model: its slot, and the directories below it.
    In(Slot, Vec<String>),
    /// It was removed, or committed.
    Gone,
}

/// The drafts of a mounted repository.
pub struct Drafts {
    pub(super) area: Arc<Area>,
    root: OwnedFd,
    /// Bytes of the disk that writing must leave free.
    pub(super) reserve: u64,
}

impl Drafts {
    /// The area's directory must be there.
    pub fn open(area: Arc<Area>, reserve: u64) -> std::io::Result<Drafts> {
        raise_descriptors();
        let root = rustix::fs::openat(CWD, area.dir(), LOOK | OFlags::DIRECTORY, Mode::empty())?;
        Ok(Drafts { area, root, reserve })
    }

    /// The directory with a model's drafts, if it has ever had any.
    pub(super) fn model(&self, model: &ModelName) -> Result<Option<Arc<Item>>, VfsError> {
        Item::at(self.root.as_fd(), &model.dir_name())
    }

    /// Likewise, made where it is missing.
    pub(super) fn make_model(&self, model: &ModelName) -> Result<Arc<Item>, VfsError> {
        match rustix::fs::mkdirat(&self.root, model.dir_name(), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => self.model(model)?.ok_or(VfsError::Stale),
            Err(e) => Err(e.into()),
        }
    }

    pub(super) fn remove_model(&self, model: &ModelName) -> Result<(), VfsError> {
        Ok(rustix::fs::unlinkat(&self.root, model.dir_name(), AtFlags::REMOVEDIR)?)
    }

    /// Models that have a directory.
    pub(super) fn models(&self) -> Result<Vec<ModelName>, VfsError> {
        let root = rustix::fs::openat(&self.root, ".", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let name = |n: String| ModelName::from_dir_name(&n).ok().filter(|m| m.dir_name() == n);
        Ok(names(root)?.into_iter().filter_map(name).collect())
    }

    /// What a model's slot holds.
    pub(super) fn slot(&self, model: &ModelName, name: &str) -> Result<Option<Arc<Item>>, VfsError> {
        match self.model(model)? {
            Some(dir) => Item::at(dir.fd.as_fd(), name),
            None => Ok(None),
        }
    }

    pub(super) fn of_version(&self, model: &ModelName, version: &VersionName) -> Result<Option<Arc<Item>>, VfsError> {
        self.slot(model, version.as_str())
    }

    pub(super) fn whereabouts(&self, item: &Item) -> Result<Whereabouts, VfsError> {
        let path = rustix::fs::readlink(item.magic(), Vec::new())?;
        let Ok(path) = path.into_string() else { return Ok(Whereabouts::Gone) };
        let gone = path.ends_with(" (deleted)") && item.stat()?.st_nlink == 0;
        let Ok(below) = Path::new(&path).strip_prefix(self.area.dir()) else { return Ok(Whereabouts::Gone) };
        let mut parts = below.iter().map(|p| p.to_string_lossy().into_owned());
        match (parts.next().and_then(|m| ModelName::from_dir_name(&m).ok()), parts.next()) {
            (Some(model), Some(name)) if !gone => Ok(Whereabouts::In(Slot { model, name }, parts.collect())),
            _ => Ok(Whereabouts::Gone),
        }
    }

    /// Fails when `bytes` more would leave less than the reserve.
    pub(super) fn refuse_full(&self, bytes: u64) -> Result<(), VfsError> {
        if self.reserve == 0 {
            return Ok(());
        }
        let s = rustix::fs::statvfs(self.area.dir())?;
        let free = s.f_bavail.saturating_mul(s.f_frsize);
        if free < self.reserve.saturating_add(bytes) { Err(VfsError::Os(libc::ENOSPC)) } else { Ok(()) }
    }
}

/// Each node that the kernel knows holds a descriptor: as many as this process may have.
fn raise_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit); // what is allowed to anybody
}

/// Whether a symlink in the directory `depth` levels below a draft's root stays within the draft.
pub(super) fn stays_inside(target: &str, depth: usize) -> bool {
    if target.starts_with('/') {
        return false;
    }
    let mut at = depth as i64;
    target.split('/').all(|part| {
        at += match part {
            "" | "." => 0,
            ".." => -1,
            _ => 1,
        };
        at >= 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symlinks_stay_inside() {
        for (target, depth) in [("a", 0), ("./a/../b", 0), ("../blobs/x", 1), ("../../blobs/x", 2)] {
            assert!(stays_inside(target, depth), "{target} {depth}");
        }
        for (target, depth) in [("/etc/passwd", 3), ("..", 0), ("../x", 0), ("a/../../b", 0), ("../../../x", 2)] {
            assert!(!stays_inside(target, depth), "{target} {depth}");
        }
    }
}
