//! Changes through the mount: what makes, writes, moves and removes.
//!
//! All of it happens in drafts. Where it is asked of a version, a sealed one refuses (EROFS, and a line in the log that
//! names `mgit rm`). A settled one is copied up to a draft first, and who named a file of it is told to look again
//! ([`VfsError::Stale`]: the kernel then does); only removals wait: `rm -r` of a whole settled version removes it without
//! copying. Every change holds the drafts' gate open, so that none falls between a commit's last look and its end.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags};

use super::drafts::{Drafts, Item, MODE, Whereabouts, stays_inside};
use super::handle::Handle;
use super::node::Node;
use super::source::{Source, Version};
use super::tree::Tree;
use super::{Attr, Entry, Kind, Opened, Vfs, VfsError, locked};
use crate::model::id::Id;
use crate::model::name::{ModelName, VersionName, VersionRef, printable};
use crate::repo::draft::{MESSAGE, PARENT, Slot, is_name};

/// Bytes that are copied up at once.
const CHUNK: usize = 1 << 20;
/// One line in the log for each version that refuses, in so long.
const TOLD_EACH: Duration = Duration::from_secs(10);

/// What was taken out of settled versions, each by its place, and has not been made true yet.
#[derive(Default)]
pub(super) struct Pending {
    removed: Mutex<HashMap<Id, Removed>>,
    /// One version is copied up at a time.
    copying: Mutex<()>,
    told: Mutex<HashMap<Id, Instant>>,
}

struct Removed {
    version: Arc<Version>,
    places: HashSet<u32>,
    last: Instant,
}

impl Pending {
    pub fn has(&self, version: &Id, place: u32) -> bool {
        locked(self.removed.lock()).get(version).is_some_and(|r| r.places.contains(&place))
    }
}

/// What `setattr` may change.
#[derive(Default, Debug)]
pub struct Change {
    pub mode: Option<u32>,
    pub owner: Option<u32>,
    pub group: Option<u32>,
    pub size: Option<u64>,
    pub accessed: Option<When>,
    pub modified: Option<When>,
}

#[derive(Clone, Copy, Debug)]
pub enum When {
    Now,
    At(SystemTime),
}

/// A directory in which a name is made or removed.
struct Place {
    dir: Arc<Item>,
    /// Where names are drafts.
    model: Option<ModelName>,
}

impl Place {
    fn fd(&self) -> BorrowedFd<'_> {
        self.dir.fd.as_fd()
    }
}

fn os<T>(errno: i32) -> Result<T, VfsError> {
    Err(VfsError::Os(errno))
}

/// One name of a directory, and no way to elsewhere.
pub(super) fn plain(name: &OsStr) -> Result<&str, VfsError> {
    let name = name.to_str().ok_or(VfsError::Os(libc::EILSEQ))?;
    match name.len() {
        _ if !is_name(name) => Err(VfsError::Invalid),
        256.. => os(libc::ENAMETOOLONG),
        _ => Ok(name),
    }
}

fn mode_of(mode: u32) -> Result<Mode, VfsError> {
    let special = libc::S_ISUID | libc::S_ISGID | libc::S_ISVTX;
    if mode & special != 0 { os(libc::EPERM) } else { Ok(Mode::from_raw_mode(mode & MODE)) }
}

impl<S: Source> Vfs<S> {
    fn drafts(&self) -> Result<&Drafts, VfsError> {
        self.drafts.as_ref().ok_or(VfsError::ReadOnly)
    }

    // ---- versions that are written again

    /// Tells in the log why a version refuses, once in a while.
    fn refuse(&self, version: &Version) -> VfsError {
        let mut told = locked(self.pending.told.lock());
        if told.get(&version.id).is_none_or(|at| at.elapsed() > TOLD_EACH) {
            told.retain(|_, at| at.elapsed() < TOLD_EACH);
            told.insert(version.id, Instant::now());
            let name = format!("{}@{}", version.model, version.version);
            log::warn!("{name} is sealed: the mount does not change it; 'mgit rm {name}' removes it");
        }
        VfsError::ReadOnly
    }

    /// The draft of a settled version, made if there is none.
    fn copied_up(&self, version: &Arc<Version>) -> Result<Arc<Item>, VfsError> {
        let drafts = self.drafts()?;
        if !version.settled {
            return Err(self.refuse(version));
        }
        let _one = locked(self.pending.copying.lock());
        let (model, name) = (&version.model, &version.version);
        if let Some(draft) = drafts.of_version(model, name)? {
            return Ok(draft);
        }
        if self.living(model, name)?.is_none_or(|now| now.id != version.id) {
            return Err(VfsError::Stale);
        }
        self.copy_up(drafts, version)?;
        locked(self.pending.removed.lock()).remove(&version.id);
        drafts.of_version(model, name)?.ok_or(VfsError::Stale)
    }

    fn copy_up(&self, drafts: &Drafts, version: &Arc<Version>) -> Result<(), VfsError> {
        let failed = |e: crate::repo::RepoError| {
            log::error!("a settled version cannot be written again: {e}");
            VfsError::Io
        };
        let tree = self.tree(version)?;
        let copy = drafts.area.copy_place().map_err(failed)?;
        let whole = || -> Result<(), VfsError> {
            self.copy_directory(drafts, &tree, 0, &copy)?;
            let message = self.source.record(&version.id)?.message.clone();
            if !message.is_empty() {
                rustix::fs::setxattr(&copy, MESSAGE, message.as_bytes(), XattrFlags::empty())?;
            }
            Ok(())
        };
        if let Err(e) = whole() {
            let _ = std::fs::remove_dir_all(&copy);
            return Err(e);
        }
        let slot = Slot::of(&version.version, &version.model);
        drafts.area.put_copy(&copy, &slot).map_err(failed)
    }

    fn copy_directory(&self, drafts: &Drafts, tree: &Tree, place: u32, to: &std::path::Path) -> Result<(), VfsError> {
        use std::os::unix::fs::PermissionsExt;
        let mut buffer = vec![0; CHUNK];
        for child in tree.children(place)? {
            let path = to.join(tree.name(child)?);
            if self.pending.has(&tree.version.id, child) {
                continue;
            }
            if tree.is_dir(child)? {
                std::fs::create_dir(&path)?;
                std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
                self.copy_directory(drafts, tree, child, &path)?;
                continue;
            }
            let (entry, file) = (tree.file(child)?, File::create_new(&path)?);
            let bytes = self.source.open(entry)?;
            let mut at = 0;
            while at < entry.bytes {
                let n = (entry.bytes - at).min(CHUNK as u64) as usize;
                drafts.refuse_full(n as u64)?;
                bytes.read_at(at, &mut buffer[..n])?;
                file.write_all_at(&buffer[..n], at)?;
                at += n as u64;
            }
            file.set_permissions(PermissionsExt::from_mode(0o644))?;
            file.set_modified(super::attr::time(tree.version.created))?;
            file.sync_all()?;
        }
        std::fs::set_permissions(to, PermissionsExt::from_mode(0o755))?;
        Ok(File::open(to)?.sync_all()?)
    }

    /// The living version of a name.
    fn living(&self, model: &ModelName, name: &VersionName) -> Result<Option<Version>, VfsError> {
        Ok(self.source.versions(model)?.iter().find(|v| v.version == *name).cloned())
    }

    fn living_at(&self, model: &ModelName, name: &str) -> Result<Option<Version>, VfsError> {
        name.parse().ok().map_or(Ok(None), |v| self.living(model, &v))
    }

    /// What stands in a settled version's place, at the same path, when it is being written again.
    pub(super) fn redirected(&self, node: &Node) -> Result<Option<Arc<Item>>, VfsError> {
        let (Node::Inside(version, place), Some(drafts)) = (node, &self.drafts) else { return Ok(None) };
        if !version.settled {
            return Ok(None);
        }
        let Some(mut item) = drafts.of_version(&version.model, &version.version)? else { return Ok(None) };
        for name in self.tree(version)?.path(*place)? {
            item = Item::at(item.fd.as_fd(), &name)?.ok_or(VfsError::Stale)?;
        }
        Ok(Some(item))
    }

    /// Makes true what was taken out of settled versions and then left at that for `rest`.
    pub fn settle_removals(&self, rest: Duration) {
        let due: Vec<Arc<Version>> = {
            let removed = locked(self.pending.removed.lock());
            removed.values().filter(|r| r.last.elapsed() >= rest).map(|r| r.version.clone()).collect()
        };
        for version in due {
            let Ok(drafts) = self.drafts() else { return };
            let _gate = drafts.area.enter();
            if let Err(e) = self.copied_up(&version) {
                log::warn!("{}@{}: what was removed from it is there again: {e}", version.model, version.version);
                locked(self.pending.removed.lock()).remove(&version.id);
            }
        }
    }

    // ---- where

    /// The directory of `parent` in the drafts, for a change in it.
    fn place(&self, parent: &Node) -> Result<Place, VfsError> {
        let drafts = self.drafts()?;
        let within = |dir| Ok(Place { dir, model: None });
        match parent {
            Node::Model(model) => {
                let known = drafts.model(model)?;
                if known.is_none() && self.source.versions(model)?.is_empty() {
                    return Err(VfsError::NotFound);
                }
                Ok(Place { dir: known.map_or_else(|| drafts.make_model(model), Ok)?, model: Some(model.clone()) })
            }
            Node::Draft(item) => match (item.kind, drafts.whereabouts(item)?) {
                (Kind::Directory, Whereabouts::In(..)) => within(item.clone()),
                (Kind::Directory, Whereabouts::Gone) => Err(VfsError::NotFound),
                _ => Err(VfsError::NotDir),
            },
            Node::Inside(version, _) => {
                self.copied_up(version)?;
                within(self.redirected(parent)?.ok_or(VfsError::Stale)?)
            }
            _ => Err(VfsError::ReadOnly),
        }
    }

    /// Fails when no draft may have this name in a model.
    fn refuse_name(&self, place: &Place, name: &str) -> Result<(), VfsError> {
        let Some(model) = &place.model else { return Ok(()) };
        if name == "latest" {
            return os(libc::EPERM);
        }
        let Ok(version) = name.parse::<VersionName>() else { return Ok(()) };
        if let Some(living) = self.living(model, &version)? {
            return if living.settled { os(libc::EEXIST) } else { Err(self.refuse(&living)) };
        }
        if self.is_tag(model, name)? {
            return os(libc::EEXIST);
        }
        if self.source.is_taken(model, &version)? {
            log::warn!("{model}@{version} was removed, and names are not used again; choose another");
            return Err(VfsError::ReadOnly);
        }
        Ok(())
    }

    fn is_tag(&self, model: &ModelName, name: &str) -> Result<bool, VfsError> {
        Ok(self.source.tags(model)?.iter().any(|(tag, _)| tag.as_str() == name))
    }

    fn made(&self, place: &Place, name: &str) -> Result<Entry, VfsError> {
        let item = Item::at(place.fd(), name)?.ok_or(VfsError::Stale)?;
        let node = Node::Draft(item);
        self.entry(&node, self.hash_of(&node))
    }

    // ---- making

    /// Makes a file and opens it; `flags` are those of open(2).
    pub fn create(&self, parent: u64, name: &OsStr, mode: u32, flags: i32) -> Result<(Entry, Opened), VfsError> {
        let (drafts, name) = (self.drafts()?, plain(name)?);
        let _gate = drafts.area.enter();
        let place = self.place(&self.inodes.get(parent)?)?;
        if flags & libc::O_EXCL == 0
            && let Some(item) = Item::at(place.fd(), name)?
        {
            let node = Node::Draft(item.clone());
            let entry = self.entry(&node, self.hash_of(&node))?;
            return Ok((entry, self.open_item(&item, flags)?));
        }
        self.make_file(drafts, &place, name, mode)?;
        let entry = self.made(&place, name)?;
        let Node::Draft(item) = self.inodes.get(entry.attr.ino)? else { return Err(VfsError::Stale) };
        Ok((entry, self.open_item(&item, flags)?))
    }

    fn make_file(&self, drafts: &Drafts, place: &Place, name: &str, mode: u32) -> Result<(), VfsError> {
        self.refuse_name(place, name)?;
        drafts.refuse_full(0)?;
        let mode = mode_of(mode)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(place.fd(), name, flags, mode)?;
        Ok(rustix::fs::fchmod(file, mode)?) // whatever this process's own umask
    }

    /// Makes a regular file; nothing else that mknod(2) could.
    pub fn mknod(&self, parent: u64, name: &OsStr, mode: u32) -> Result<Entry, VfsError> {
        let (drafts, name) = (self.drafts()?, plain(name)?);
        let _gate = drafts.area.enter();
        let place = self.place(&self.inodes.get(parent)?)?;
        if !matches!(mode & libc::S_IFMT, 0 | libc::S_IFREG) {
            return os(libc::EPERM);
        }
        self.make_file(drafts, &place, name, mode & !libc::S_IFMT)?;
        self.made(&place, name)
    }

    pub fn mkdir(&self, parent: u64, name: &OsStr, mode: u32) -> Result<Entry, VfsError> {
        let (drafts, name) = (self.drafts()?, plain(name)?);
        let _gate = drafts.area.enter();
        let parent = self.inodes.get(parent)?;
        if matches!(parent, Node::Models) {
            return self.make_model(drafts, name);
        }
        let place = self.place(&parent)?;
        self.refuse_name(&place, name)?;
        let mode = mode_of(mode & !libc::S_ISGID)?; // inherited from a directory outside
        rustix::fs::mkdirat(place.fd(), name, mode)?;
        rustix::fs::chmodat(place.fd(), name, mode, AtFlags::empty())?;
        self.made(&place, name)
    }

    fn make_model(&self, drafts: &Drafts, name: &str) -> Result<Entry, VfsError> {
        let model = ModelName::from_dir_name(name).ok().filter(|m| m.dir_name() == name);
        let Some(model) = model else {
            log::warn!("'{}' cannot be a model's name", printable(name));
            return Err(VfsError::Invalid);
        };
        if drafts.model(&model)?.is_some() || !self.source.versions(&model)?.is_empty() {
            return os(libc::EEXIST);
        }
        drafts.make_model(&model)?;
        let node = Node::Model(model);
        self.entry(&node, self.hash_of(&node))
    }

    pub fn symlink(&self, parent: u64, name: &OsStr, target: &OsStr) -> Result<Entry, VfsError> {
        let (drafts, name) = (self.drafts()?, plain(name)?);
        let _gate = drafts.area.enter();
        let place = self.place(&self.inodes.get(parent)?)?;
        self.refuse_name(&place, name)?;
        let depth = match (&place.model, drafts.whereabouts(&place.dir)) {
            (Some(_), _) => 0,
            (None, Ok(Whereabouts::In(_, below))) => below.len(),
            _ => return Err(VfsError::Stale),
        };
        let target = target.to_str().ok_or(VfsError::Os(libc::EILSEQ))?;
        if !stays_inside(target, depth) {
            log::warn!("'{}' leads out of its draft: no version could hold such a symlink", printable(target));
            return os(libc::EPERM);
        }
        rustix::fs::symlinkat(target, place.fd(), name)?;
        self.made(&place, name)
    }

    /// Another name for a file of a draft.
    pub fn link(&self, ino: u64, parent: u64, name: &OsStr) -> Result<Entry, VfsError> {
        let (drafts, name) = (self.drafts()?, plain(name)?);
        let _gate = drafts.area.enter();
        let item = match self.inodes.get(ino)? {
            Node::Draft(item) if item.kind == Kind::File => item,
            Node::Inside(version, _) => {
                self.copied_up(&version)?;
                return Err(VfsError::Stale);
            }
            _ => return os(libc::EPERM),
        };
        let place = self.place(&self.inodes.get(parent)?)?;
        self.refuse_name(&place, name)?;
        rustix::fs::linkat(CWD, item.magic(), place.fd(), name, AtFlags::SYMLINK_FOLLOW)?;
        self.made(&place, name)
    }

    // ---- removing

    pub fn unlink(&self, parent: u64, name: &OsStr) -> Result<(), VfsError> {
        self.remove(parent, plain(name)?, false)
    }

    pub fn rmdir(&self, parent: u64, name: &OsStr) -> Result<(), VfsError> {
        self.remove(parent, plain(name)?, true)
    }

    fn remove(&self, parent: u64, name: &str, directory: bool) -> Result<(), VfsError> {
        let drafts = self.drafts()?;
        let _gate = drafts.area.enter();
        let parent = self.inodes.get(parent)?;
        match &parent {
            Node::Models if directory => {
                let model = ModelName::from_dir_name(name).map_err(|_| VfsError::NotFound)?;
                return match self.source.versions(&model)?.is_empty() {
                    true => drafts.remove_model(&model),
                    false => os(libc::ENOTEMPTY),
                };
            }
            Node::Model(model) if name == "latest" || drafts.slot(model, name)?.is_none() => {
                return self.remove_version(model, name, directory);
            }
            Node::Inside(version, place) if version.settled && self.redirected(&parent)?.is_none() => {
                return self.take_out(version, *place, name, directory);
            }
            _ => {}
        }
        let place = self.place(&parent)?;
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(place.fd(), name, flags)?;
        let Some(model) = &place.model else { return Ok(()) };
        // The last of a settled version that was written again: it goes with it, for its name is free now.
        match self.living_at(model, name)? {
            Some(version) => Ok(self.source.remove(&version)?),
            None => Ok(()),
        }
    }

    /// `rmdir` of a settled version from which all was taken out.
    fn remove_version(&self, model: &ModelName, name: &str, directory: bool) -> Result<(), VfsError> {
        let Some(version) = self.living_at(model, name)? else {
            let link = name == "latest" || self.is_tag(model, name)?;
            return Err(if link { VfsError::ReadOnly } else { VfsError::NotFound });
        };
        if !version.settled {
            return Err(self.refuse(&version));
        }
        if !directory {
            return Err(VfsError::IsDir);
        }
        let tree = self.tree(&Arc::new(version.clone()))?;
        if !tree.children(0)?.all(|child| self.pending.has(&version.id, child)) {
            return os(libc::ENOTEMPTY);
        }
        self.source.remove(&version)?;
        locked(self.pending.removed.lock()).remove(&version.id);
        Ok(())
    }

    /// Notes that something is no longer in a settled version.
    fn take_out(&self, version: &Arc<Version>, place: u32, name: &str, directory: bool) -> Result<(), VfsError> {
        let tree = self.tree(version)?;
        let there = tree.find(place, name)?.filter(|p| !self.pending.has(&version.id, *p));
        let found = there.ok_or(VfsError::NotFound)?;
        match (tree.is_dir(found)?, directory) {
            (true, false) => return Err(VfsError::IsDir),
            (false, true) => return Err(VfsError::NotDir),
            (true, true) if !tree.children(found)?.all(|child| self.pending.has(&version.id, child)) => {
                return os(libc::ENOTEMPTY);
            }
            _ => {}
        }
        let mut removed = locked(self.pending.removed.lock());
        let new = || Removed { version: version.clone(), places: HashSet::new(), last: Instant::now() };
        let of_version = removed.entry(version.id).or_insert_with(new);
        of_version.places.insert(found);
        of_version.last = Instant::now();
        Ok(())
    }

    // ---- moving

    /// As renameat2(2) with `flags`.
    pub fn rename(&self, from: u64, name: &OsStr, to: u64, new: &OsStr, flags: u32) -> Result<(), VfsError> {
        let (drafts, name, new) = (self.drafts()?, plain(name)?, plain(new)?);
        let _gate = drafts.area.enter();
        let flags = RenameFlags::from_bits(flags).filter(|f| !f.contains(RenameFlags::WHITEOUT));
        let flags = flags.ok_or(VfsError::Invalid)?;
        let (from, to) = (self.inodes.get(from)?, self.inodes.get(to)?);
        if matches!((&from, &to), (Node::Models, _) | (_, Node::Models)) {
            return os(libc::EXDEV); // a model is known by its name
        }
        let (a, b) = (self.place(&from)?, self.place(&to)?);
        // A version that moves: a settled one is written again under its new name, and goes under the old one.
        let moved = a.model.as_ref().map(|m| self.living_at(m, name)).transpose()?.flatten();
        if let Some(version) = &moved {
            self.copied_up(&Arc::new(version.clone()))?;
        }
        let replaced = b.model.as_ref().map(|m| self.living_at(m, new)).transpose()?.flatten();
        match &replaced {
            Some(version) if !version.settled => return Err(self.refuse(version)),
            Some(version) if drafts.of_version(&version.model, &version.version)?.is_none() => {
                return os(libc::ENOTEMPTY);
            }
            Some(_) => {}
            None => self.refuse_name(&b, new)?,
        }
        rustix::fs::renameat_with(a.fd(), name, b.fd(), new, flags)?;
        match moved {
            Some(version) if !flags.contains(RenameFlags::EXCHANGE) => Ok(self.source.remove(&version)?),
            _ => Ok(()),
        }
    }

    // ---- files

    /// Opens a draft's file, inside the gate.
    pub(super) fn open_item(&self, item: &Arc<Item>, flags: i32) -> Result<Opened, VfsError> {
        let drafts = self.drafts()?;
        match item.kind {
            Kind::File => {}
            Kind::Directory => return Err(VfsError::IsDir),
            Kind::Symlink => return os(libc::ELOOP),
        }
        let (mode, write) = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => (OFlags::RDONLY, false),
            libc::O_WRONLY => (OFlags::WRONLY, true),
            _ => (OFlags::RDWR, true),
        };
        if write && drafts.whereabouts(item)? == Whereabouts::Gone {
            return Err(VfsError::Stale);
        }
        let writing = write.then(|| drafts.area.writing(item.key));
        let file = item.open(mode)?;
        let fh = self.handles.add(Handle::Draft { file, item: item.clone(), _writing: writing })?;
        Ok(Opened { fh, unchanged: false })
    }

    /// Opens a file for writing, which may be of a version.
    pub(super) fn open_to_write(&self, node: &Node, flags: i32) -> Result<Opened, VfsError> {
        match node {
            Node::Draft(item) => self.open_item(item, flags),
            Node::Inside(version, _) => {
                self.copied_up(version)?;
                Err(VfsError::Stale) // looked up again, it is the draft's
            }
            _ => Err(VfsError::ReadOnly),
        }
    }

    /// An open file of a draft.
    fn with_file<T>(&self, fh: u64, f: impl FnOnce(&File) -> Result<T, VfsError>) -> Result<T, VfsError> {
        match &*self.handles.get(fh)? {
            Handle::Draft { file, .. } => f(file),
            _ => Err(VfsError::BadHandle),
        }
    }

    pub fn write(&self, fh: u64, offset: u64, bytes: &[u8]) -> Result<usize, VfsError> {
        self.drafts()?.refuse_full(bytes.len() as u64)?;
        self.with_file(fh, |file| Ok(file.write_at(bytes, offset)?))
    }

    /// As fallocate(2) with `mode`.
    pub fn fallocate(&self, fh: u64, offset: u64, length: u64, mode: i32) -> Result<(), VfsError> {
        let punches = mode & libc::FALLOC_FL_PUNCH_HOLE != 0;
        self.drafts()?.refuse_full(if punches { 0 } else { length })?;
        let mode = FallocateFlags::from_bits(mode as u32).ok_or(VfsError::Os(libc::EOPNOTSUPP))?;
        self.with_file(fh, |file| Ok(rustix::fs::fallocate(file, mode, offset, length)?))
    }

    /// Makes what was written durable; what is no draft always is.
    pub fn fsync(&self, fh: u64, data_only: bool) -> Result<(), VfsError> {
        match &*self.handles.get(fh)? {
            Handle::Draft { file, .. } if data_only => Ok(file.sync_data()?),
            Handle::Draft { file, .. } => Ok(file.sync_all()?),
            Handle::Live { node: Node::Draft(item), .. } => Ok(item.open(OFlags::RDONLY)?.sync_all()?),
            _ => Ok(()),
        }
    }

    // ---- attributes

    /// The item to change the attributes of.
    fn item_to_change(&self, ino: u64) -> Result<Arc<Item>, VfsError> {
        match self.inodes.get(ino)? {
            Node::Draft(item) => Ok(item),
            node @ Node::Inside(..) => {
                let Node::Inside(version, place) = &node else { return Err(VfsError::Stale) };
                self.copied_up(version)?;
                match place {
                    0 => self.redirected(&node)?.ok_or(VfsError::Stale),
                    _ => Err(VfsError::Stale),
                }
            }
            _ => Err(VfsError::ReadOnly),
        }
    }

    pub fn setattr(&self, ino: u64, fh: Option<u64>, change: &Change) -> Result<(Attr, Duration), VfsError> {
        let drafts = self.drafts()?;
        let _gate = drafts.area.enter();
        let other = |id: Option<u32>, own| id.is_some_and(|id| id != own);
        let handle = fh.map(|fh| self.handles.get(fh)).transpose()?;
        let item = match handle.as_deref() {
            Some(Handle::Draft { item, .. }) => item.clone(),
            _ => self.item_to_change(ino)?,
        };
        if other(change.owner, self.uid) || other(change.group, self.gid) {
            return os(libc::EPERM);
        }
        if let Some(size) = change.size {
            drafts.refuse_full(0)?;
            match handle.as_deref() {
                Some(Handle::Draft { file, _writing: Some(_), .. }) => file.set_len(size)?,
                _ => item.open(OFlags::WRONLY)?.set_len(size)?,
            }
        }
        if let Some(mode) = change.mode
            && item.kind != Kind::Symlink
        {
            rustix::fs::chmodat(CWD, item.magic(), mode_of(mode & !libc::S_IFMT)?, AtFlags::empty())?;
        }
        if change.accessed.is_some() || change.modified.is_some() {
            let times =
                Timestamps { last_access: timespec(change.accessed), last_modification: timespec(change.modified) };
            rustix::fs::utimensat(&item.fd, "", &times, AtFlags::EMPTY_PATH)?;
        }
        let node = Node::Draft(item);
        Ok((self.attr(ino, &node, None)?, self.lifetimes(&node).1))
    }

    /// As setxattr(2) with `flags`. Only `user.` attributes; mgit's own are a draft's parent and message.
    pub fn setxattr(&self, ino: u64, name: &OsStr, value: &[u8], flags: i32) -> Result<(), VfsError> {
        let _gate = self.drafts()?.area.enter();
        let name = name.to_str().filter(|n| n.starts_with("user.")).ok_or(VfsError::Os(libc::EOPNOTSUPP))?;
        let text = || std::str::from_utf8(value).map_err(|_| VfsError::Invalid);
        match name {
            PARENT if text()?.split_whitespace().any(|p| p.parse::<VersionRef>().is_err()) => {
                return Err(VfsError::Invalid);
            }
            PARENT | MESSAGE => {
                text()?;
            }
            n if n.starts_with("user.mgit.") => return os(libc::EPERM),
            _ => {}
        }
        let item = self.item_to_change(ino)?;
        let flags = XattrFlags::from_bits(flags as u32).ok_or(VfsError::Invalid)?;
        Ok(rustix::fs::setxattr(item.magic(), name, value, flags)?)
    }

    pub fn removexattr(&self, ino: u64, name: &OsStr) -> Result<(), VfsError> {
        let _gate = self.drafts()?.area.enter();
        let name = name.to_str().filter(|n| n.starts_with("user.")).ok_or(VfsError::NoData)?;
        Ok(rustix::fs::removexattr(self.item_to_change(ino)?.magic(), name)?)
    }

    /// A draft's attribute, whole.
    pub(super) fn draft_xattr(&self, item: &Item, name: &str) -> Result<Vec<u8>, VfsError> {
        if !name.starts_with("user.") || item.kind == Kind::Symlink {
            return Err(VfsError::NoData);
        }
        let mut value = vec![0u8; 64 << 10];
        let n = rustix::fs::getxattr(item.magic(), name, &mut value[..])?;
        value.truncate(n);
        Ok(value)
    }

    pub(super) fn draft_xattr_names(&self, item: &Item) -> Result<Vec<u8>, VfsError> {
        if item.kind == Kind::Symlink {
            return Ok(vec![]);
        }
        let mut names = vec![0u8; 64 << 10];
        let n = rustix::fs::listxattr(item.magic(), &mut names[..])?;
        let all = names[..n].split_inclusive(|b| *b == 0);
        Ok(all.filter(|n| n.starts_with(b"user.")).flatten().copied().collect())
    }
}

fn timespec(when: Option<When>) -> Timespec {
    const NOW: i64 = 0x3fff_ffff;
    const OMIT: i64 = 0x3fff_fffe;
    let (tv_sec, tv_nsec) = match when {
        None => (0, OMIT),
        Some(When::Now) => (0, NOW),
        Some(When::At(at)) => match at.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(d) => (d.as_secs() as i64, i64::from(d.subsec_nanos())),
            Err(e) => {
                let d = e.duration();
                let borrow = i64::from(d.subsec_nanos() > 0);
                (-(d.as_secs() as i64) - borrow, (1_000_000_000 - i64::from(d.subsec_nanos())) * borrow)
            }
        },
    };
    Timespec { tv_sec, tv_nsec: tv_nsec as _ }
}
