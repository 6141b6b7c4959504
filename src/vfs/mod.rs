//! The filesystem's semantics, without FUSE: nodes, inode numbers, handles, attributes.
//!
//! ```text
//! /models/<model>/<version>/…files…      /models/<model>/latest -> <version>
//! /lineage/…                             the family tree, a card for each version, drawings (lineage/)
//! ```
//! [`Vfs`] takes and returns plain values and may be called from many threads. It trusts nothing that it is
//! given: an unknown number is an error, never a panic. Above a version everything may change; inside a version
//! nothing ever does, but for what its files are charged. The kernel believes what it was told for a while, and for
//! longer where it is told of changes ([`Vfs::stale`]).
//!
//! Every method that returns an [`Entry`] (and [`Vfs::readdirplus`] for each name but `.` and `..`) counts
//! as one lookup of that number, to be given back through [`Vfs::forget`], as the FUSE protocol has it.

mod attr;
pub mod drafts;
#[doc(hidden)]
pub mod fake;
mod handle;
#[cfg(all(test, feature = "shuttle"))]
mod interleavings;
mod lineage;
mod listing;
mod node;
pub mod repo;
mod source;
mod tree;
mod write;
mod xattr;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LockResult, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::model::event::Event;
use crate::model::name::ModelName;
use crate::repo::draft::Slot;
pub use attr::{Attr, BLOCK_SIZE, Kind};
use attr::{DRAFT, FOREVER, LIVE, SETTLED, TOLD};
use drafts::{Drafts, Item};
use handle::{Handle, Handles};
use lineage::{Lineage, Place};
pub use node::ROOT;
use node::{Hash, Inodes, Node};
pub use source::{Drawing, Page, ReadAt, ReadError, Sheet, Source, Version};
use tree::{Tree, Trees};
use write::Pending;
pub use write::{Change, When};
pub use xattr::Xattr;

/// Bytes that one read may ask for.
pub const MAX_READ: usize = 16 << 20;

/// What a request may fail with; each is one errno.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum VfsError {
    #[error("no such file or directory")]
    NotFound,
    #[error("not a directory")]
    NotDir,
    #[error("is a directory")]
    IsDir,
    #[error("read-only file system")]
    ReadOnly,
    #[error("input/output error")]
    Io,
    #[error("stale file handle")]
    Stale,
    #[error("no such attribute")]
    NoData,
    #[error("the value does not fit")]
    Range,
    #[error("invalid argument")]
    Invalid,
    #[error("bad file descriptor")]
    BadHandle,
    #[error("too many open files")]
    TooMany,
    /// What the disk below a draft said, or what a plain file system would.
    #[error("error {0}")]
    Os(i32),
}

impl VfsError {
    pub fn errno(self) -> i32 {
        match self {
            VfsError::NotFound => libc::ENOENT,
            VfsError::NotDir => libc::ENOTDIR,
            VfsError::IsDir => libc::EISDIR,
            VfsError::ReadOnly => libc::EROFS,
            VfsError::Io => libc::EIO,
            VfsError::Stale => libc::ESTALE,
            VfsError::NoData => libc::ENODATA,
            VfsError::Range => libc::ERANGE,
            VfsError::Invalid => libc::EINVAL,
            VfsError::BadHandle => libc::EBADF,
            VfsError::TooMany => libc::ENFILE,
            VfsError::Os(errno) => errno,
        }
    }
}

impl From<ReadError> for VfsError {
    fn from(e: ReadError) -> VfsError {
        match e {
            ReadError::Damaged => VfsError::Io,
            ReadError::Gone => VfsError::Stale,
            ReadError::Exhausted => VfsError::TooMany,
        }
    }
}

/// A lock's guard, also after a panic elsewhere: no lock here is held across a half-made change.
fn locked<G>(guard: LockResult<G>) -> G {
    guard.unwrap_or_else(PoisonError::into_inner)
}

/// A node as a directory shows it, and for how long that may be believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    pub attr: Attr,
    pub name_for: Duration,
    pub attr_for: Duration,
}

/// What stands at a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    Entry(Entry),
    /// Nothing, and that may be believed for so long.
    Nothing(Duration),
}

/// One name of a directory's listing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listing<'a> {
    pub ino: u64,
    pub kind: Kind,
    pub name: &'a str,
    /// Where the listing goes on after it.
    pub next: u64,
}

/// An open file or directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    pub fh: u64,
    /// What it holds is what it held when it was opened last: the kernel may use what it has of it.
    pub unchanged: bool,
}

/// What the source said that a changing directory holds.
enum Answer {
    Models(Arc<Vec<ModelName>>),
    Versions(Arc<Vec<Version>>),
    /// The number of the lineage's state.
    Lineage(u64),
}

impl Answer {
    /// The very same answer: sources give it again while nothing has changed.
    fn is(&self, other: &Answer) -> bool {
        match (self, other) {
            (Answer::Models(a), Answer::Models(b)) => Arc::ptr_eq(a, b),
            (Answer::Versions(a), Answer::Versions(b)) => Arc::ptr_eq(a, b),
            (Answer::Lineage(a), Answer::Lineage(b)) => a == b,
            _ => false,
        }
    }
}

/// Directories whose last listing is remembered.
const MAX_OPENED: usize = 1 << 16;

/// Something that the kernel was told and that no longer holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stale {
    Name { parent: u64, name: String },
    Attr(u64),
}

/// The store's disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Statfs {
    pub blocks: u64,
    pub free: u64,
    pub available: u64,
    pub files: u64,
    pub files_free: u64,
    pub block_size: u32,
    pub fragment_size: u32,
    pub name_max: u32,
}

/// The mounted repository.
pub struct Vfs<S: Source> {
    source: S,
    uid: u32,
    gid: u32,
    /// The time of what no commit made: `/`, `/models`, `/lineage`.
    born: SystemTime,
    hash: Hash,
    inodes: Inodes,
    handles: Handles,
    trees: Trees,
    lineage: Lineage,
    drafts: Option<Drafts>,
    pending: Pending,
    /// By inode number: what a changing directory held when it was opened last.
    opened: Mutex<HashMap<u64, Answer>>,
    /// Whether the kernel is told of changes.
    told: AtomicBool,
}

impl<S: Source> Vfs<S> {
    /// Everything belongs to the user who runs this process.
    pub fn new(source: S) -> Vfs<S> {
        // SAFETY: these calls take nothing and cannot fail.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        Vfs::with(source, uid, gid, node::blake3_number)
    }

    /// What is written goes into these drafts; without, nothing can be written.
    pub fn with_drafts(self, drafts: Drafts) -> Vfs<S> {
        Vfs { drafts: Some(drafts), ..self }
    }

    fn with(source: S, uid: u32, gid: u32, hash: Hash) -> Vfs<S> {
        let inodes = Inodes::new(&[(ROOT, Node::Root), (hash(b"mgit inode 1\0models"), Node::Models)]);
        let (handles, trees, lineage, opened, pending) = Default::default();
        let (born, told) = (SystemTime::now(), AtomicBool::new(false));
        Vfs { source, uid, gid, born, hash, inodes, handles, trees, lineage, drafts: None, pending, opened, told }
    }

    pub fn source(&self) -> &S {
        &self.source
    }

    /// Nodes that the kernel knows, and open handles.
    pub fn counts(&self) -> (usize, usize) {
        (self.inodes.len(), self.handles.len())
    }

    // ---- names

    /// What stands at `name` in the directory `parent`.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<Found, VfsError> {
        let parent = self.inodes.get(parent)?;
        let fixed = matches!(&parent, Node::Inside(version, _) if !version.settled);
        let nothing = Found::Nothing(if fixed { FOREVER } else { Duration::ZERO });
        let _gate = self.drafts.as_ref().map(|d| d.area.enter());
        let Ok(name) = write::plain(name) else { return Ok(nothing) };
        match self.child(&parent, name)? {
            Some((node, hash)) => Ok(Found::Entry(self.entry(&node, hash)?)),
            None => Ok(nothing),
        }
    }

    fn child(&self, parent: &Node, name: &str) -> Result<Option<(Node, u64)>, VfsError> {
        match parent {
            Node::Root => {
                let found = [("models", Node::Models), ("lineage", top())].into_iter().find(|e| e.0 == name);
                Ok(found.map(|(_, node)| (node.clone(), self.hash_of(&node))))
            }
            Node::Models => self.model(name),
            Node::Model(model) => self.in_model(model, name),
            Node::Latest(_) => Err(VfsError::NotDir),
            Node::Draft(dir) if dir.kind != Kind::Directory => Err(VfsError::NotDir),
            Node::Draft(dir) => Ok(Item::at(dir.fd.as_fd(), name)?.map(|item| self.draft(item))),
            Node::Inside(version, place) => {
                if let Some(dir) = self.redirected(parent)? {
                    return self.child(&Node::Draft(dir), name);
                }
                let tree = self.tree(version)?;
                let Some(found) = tree.find(*place, name)? else { return Ok(None) };
                if self.pending.has(&version.id, found) {
                    return Ok(None);
                }
                Ok(Some((Node::Inside(version.clone(), found), tree.hash(found)?)))
            }
            Node::Lineage(dir) => {
                let found = self.lineage.child(&self.source, dir, name)?;
                Ok(found.map(|place| Node::Lineage(Arc::new(place))).map(|node| (node.clone(), self.hash_of(&node))))
            }
        }
    }

    fn model(&self, name: &str) -> Result<Option<(Node, u64)>, VfsError> {
        let Ok(model) = ModelName::from_dir_name(name) else { return Ok(None) };
        if model.dir_name() != name || self.source.versions(&model)?.is_empty() && self.drafts_of(&model)?.is_none() {
            return Ok(None);
        }
        let node = Node::Model(model);
        let hash = self.hash_of(&node);
        Ok(Some((node, hash)))
    }

    fn drafts_of(&self, model: &ModelName) -> Result<Option<Arc<Item>>, VfsError> {
        self.drafts.as_ref().map_or(Ok(None), |d| d.model(model))
    }

    fn draft(&self, item: Arc<Item>) -> (Node, u64) {
        let node = Node::Draft(item);
        let hash = self.hash_of(&node);
        (node, hash)
    }

    fn in_model(&self, model: &ModelName, name: &str) -> Result<Option<(Node, u64)>, VfsError> {
        if let Some(dir) = self.drafts_of(model)?
            && name != "latest"
            && let Some(item) = Item::at(dir.fd.as_fd(), name)?
        {
            return Ok(Some(self.draft(item)));
        }
        let versions = self.source.versions(model)?;
        let node = if name == "latest" {
            let Some(newest) = versions.last() else { return Ok(None) };
            Node::Latest(Arc::new(newest.clone()))
        } else {
            match versions.iter().find(|v| v.version.as_str() == name) {
                Some(version) => Node::Inside(Arc::new(version.clone()), 0),
                None => match self.source.tags(model)?.into_iter().find(|(tag, _)| tag.as_str() == name) {
                    Some((_, version)) => Node::Latest(Arc::new(version)),
                    None => return Ok(None),
                },
            }
        };
        let hash = self.hash_of(&node);
        Ok(Some((node, hash)))
    }

    /// What the number of a node starts from; inside a version, only its own directory is asked here.
    fn hash_of(&self, node: &Node) -> u64 {
        match node {
            Node::Root => ROOT,
            Node::Models => (self.hash)(b"mgit inode 1\0models"),
            Node::Model(m) => (self.hash)(&node::model_identity(m)),
            Node::Latest(v) => (self.hash)(&node::latest_identity(&v.id)),
            Node::Inside(v, _) => (self.hash)(&node::path_identity(&v.id, "")),
            Node::Lineage(place) => (self.hash)(&place.identity()),
            Node::Draft(item) => (self.hash)(&item.identity()),
        }
    }

    fn entry(&self, node: &Node, hash: u64) -> Result<Entry, VfsError> {
        let ino = self.inodes.remember(hash, node)?;
        let (name_for, attr_for) = self.lifetimes(node);
        match self.attr(ino, node, None) {
            Ok(attr) => Ok(Entry { attr, name_for, attr_for }),
            Err(e) => {
                self.inodes.forget(ino, 1);
                Err(e)
            }
        }
    }

    /// `count` lookups of `ino` are no longer known to the caller.
    pub fn forget(&self, ino: u64, count: u64) {
        self.inodes.forget(ino, count);
    }

    // ---- attributes

    /// The attributes of a node, and for how long they may be believed. An open file (`fh`) has them also
    /// when its version is gone.
    pub fn getattr(&self, ino: u64, fh: Option<u64>) -> Result<(Attr, Duration), VfsError> {
        let node = self.inodes.get(ino)?;
        let tree = match fh.map(|fh| self.handles.get(fh)).transpose()?.as_deref() {
            Some(Handle::File { tree, .. } | Handle::Inside { tree, .. }) => Some(tree.clone()),
            _ => None,
        };
        Ok((self.attr(ino, &node, tree)?, self.lifetimes(&node).1))
    }

    fn attr(&self, ino: u64, node: &Node, tree: Option<Arc<Tree>>) -> Result<Attr, VfsError> {
        match node {
            Node::Root | Node::Models => Ok(self.directory(ino, self.born)),
            Node::Model(model) => self.model_attr(ino, model),
            Node::Draft(item) => self.draft_attr(ino, item),
            Node::Latest(version) => {
                let size = version.version.as_str().len() as u64;
                let directory = self.directory(ino, attr::time(version.created));
                Ok(Attr { kind: Kind::Symlink, size, mode: 0o777, ..directory })
            }
            Node::Inside(version, 0) => Ok(self.directory(ino, attr::time(version.created))),
            Node::Inside(version, place) => {
                let tree = tree.map_or_else(|| self.tree(version), Ok)?;
                self.inside(ino, &tree, *place)
            }
            Node::Lineage(place) => self.in_lineage(ino, place),
        }
    }

    fn model_attr(&self, ino: u64, model: &ModelName) -> Result<Attr, VfsError> {
        let newest = self.source.versions(model)?.last().map(|v| attr::time(v.created));
        let drafts = self.drafts_of(model)?.map(|dir| dir.stat().map(|s| drafts::times(&s).0)).transpose()?;
        Ok(self.directory(ino, newest.max(drafts).ok_or(VfsError::NotFound)?))
    }

    fn draft_attr(&self, ino: u64, item: &Item) -> Result<Attr, VfsError> {
        let (stat, kind) = (item.stat()?, item.kind);
        let (time, changed) = drafts::times(&stat);
        let mode = (stat.st_mode & drafts::MODE) as u16;
        let directory = Attr { mode, changed, ..self.directory(ino, time) };
        if kind == Kind::Directory {
            return Ok(directory);
        }
        let (size, blocks) = (stat.st_size as u64, stat.st_blocks as u64);
        Ok(Attr { kind, size, blocks, nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX), ..directory })
    }

    fn in_lineage(&self, ino: u64, place: &Place) -> Result<Attr, VfsError> {
        // What a symlink or a text holds its node knows itself, also when it is gone.
        let time = match place {
            Place::Top | Place::Tree | Place::Of => None,
            Place::Link { time, .. } => Some(attr::time(*time)),
            Place::Text(text) => text.time.map(attr::time),
            _ => self.lineage.now(&self.source)?.time(place)?,
        };
        let directory = self.directory(ino, time.unwrap_or(self.born));
        let (size, mode) = match place {
            Place::Link { target, .. } => (target.len() as u64, 0o777),
            Place::Text(text) => (text.len, 0o644),
            Place::Unread(_) => (0, 0o644),
            _ => return Ok(directory),
        };
        // A text is stored nowhere; its blocks say what it holds.
        let blocks = if place.kind() == Kind::File { attr::blocks(size, size) } else { 0 };
        Ok(Attr { kind: place.kind(), size, mode, blocks, ..directory })
    }

    fn inside(&self, ino: u64, tree: &Tree, place: u32) -> Result<Attr, VfsError> {
        let directory = self.directory(ino, attr::time(tree.version.created));
        if tree.is_dir(place)? {
            return Ok(directory);
        }
        let size = tree.file(place)?.bytes;
        // A source that cannot tell the charge must not make a readable file look lost.
        let stored = tree.stored(place, &self.source)?.unwrap_or(size);
        Ok(Attr { kind: Kind::File, size, blocks: attr::blocks(size, stored), mode: 0o644, ..directory })
    }

    fn directory(&self, ino: u64, time: SystemTime) -> Attr {
        let (uid, gid) = (self.uid, self.gid);
        Attr { ino, kind: Kind::Directory, size: 0, blocks: 0, time, changed: time, mode: 0o755, nlink: 1, uid, gid }
    }

    fn tree(&self, version: &Arc<Version>) -> Result<Arc<Tree>, VfsError> {
        self.trees.get(version, &self.source, self.hash)
    }

    /// Where a symlink leads.
    pub fn readlink(&self, ino: u64) -> Result<String, VfsError> {
        match self.inodes.get(ino)? {
            Node::Latest(version) => Ok(version.version.to_string()),
            Node::Lineage(place) => match &*place {
                Place::Link { target, .. } => Ok(target.clone()),
                _ => Err(VfsError::Invalid),
            },
            Node::Draft(item) if item.kind == Kind::Symlink => item.readlink(),
            _ => Err(VfsError::Invalid),
        }
    }

    /// The value of an extended attribute, for a caller with room for `size` bytes (0: only its length).
    pub fn getxattr(&self, ino: u64, name: &OsStr, size: u32) -> Result<Xattr, VfsError> {
        if !name.as_encoded_bytes().starts_with(b"user.") {
            return Err(VfsError::NoData);
        }
        let node = self.inodes.get(ino)?;
        if let Node::Draft(item) = &node {
            let name = name.to_str().ok_or(VfsError::NoData)?;
            return xattr::sized(self.draft_xattr(item, name)?, size);
        }
        let names = self.xattr_names(&node)?;
        let Some(known) = names.iter().find(|n| n.as_str() == name) else { return Err(VfsError::NoData) };
        let Node::Inside(version, place) = &node else { return Err(VfsError::NoData) };
        xattr::sized(self.xattr_value(*known, version, *place)?, size)
    }

    /// The names of a node's extended attributes, likewise.
    pub fn listxattr(&self, ino: u64, size: u32) -> Result<Xattr, VfsError> {
        let node = self.inodes.get(ino)?;
        if let Node::Draft(item) = &node {
            return xattr::sized(self.draft_xattr_names(item)?, size);
        }
        xattr::sized(xattr::list(self.xattr_names(&node)?), size)
    }

    fn xattr_names(&self, node: &Node) -> Result<&'static [xattr::Name], VfsError> {
        match node {
            Node::Inside(_, 0) => Ok(xattr::OF_VERSION),
            Node::Inside(version, place) if !self.tree(version)?.is_dir(*place)? => Ok(xattr::OF_FILE),
            _ => Ok(&[]),
        }
    }

    fn xattr_value(&self, name: xattr::Name, version: &Arc<Version>, place: u32) -> Result<Vec<u8>, VfsError> {
        let text = match name {
            xattr::Name::Id => version.id.to_string(),
            xattr::Name::Parents => return Ok(xattr::clipped(self.source.parents_text(&version.id)?)),
            xattr::Name::Blake3 => self.tree(version)?.file(place)?.digest.to_string(),
            xattr::Name::StoredBytes => {
                let tree = self.tree(version)?;
                let stored = if place == 0 { tree.stored_sum(&self.source) } else { tree.stored(place, &self.source)? };
                stored.ok_or(VfsError::Io)?.to_string()
            }
        };
        Ok(text.into_bytes())
    }

    // ---- files

    /// Opens a file; `flags` are those of open(2).
    pub fn open(&self, ino: u64, flags: i32) -> Result<Opened, VfsError> {
        let node = self.inodes.get(ino)?;
        if !matches!(node, Node::Inside(..) | Node::Lineage(_) | Node::Draft(_)) {
            return Err(VfsError::IsDir);
        }
        let _gate = self.drafts.as_ref().map(|d| d.area.enter());
        if flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0 {
            return self.open_to_write(&node, flags);
        }
        if self.redirected(&node)?.is_some() {
            return Err(VfsError::Stale); // looked up again, it is the draft's
        }
        let handle = match node {
            Node::Draft(item) => return self.open_item(&item, flags),
            Node::Inside(version, place) => {
                let tree = self.tree(&version)?;
                let entry = tree.file(place)?;
                Handle::File { bytes: self.source.open(entry)?, len: entry.bytes, tree }
            }
            Node::Lineage(place) => match &*place {
                Place::Text(text) => Handle::Text(self.lineage.read(&self.source, text)?),
                Place::Unread(_) => return Err(VfsError::Stale),
                _ => return Err(VfsError::IsDir),
            },
            _ => return Err(VfsError::IsDir),
        };
        Ok(Opened { fh: self.handles.add(handle)?, unchanged: true })
    }

    /// Fills `buf` from `offset` on as far as the file goes; returns how far.
    pub fn read(&self, fh: u64, offset: u64, buf: &mut [u8]) -> Result<usize, VfsError> {
        match &*self.handles.get(fh)? {
            Handle::File { bytes, len, .. } => {
                let n = len.saturating_sub(offset).min(buf.len() as u64) as usize;
                if n > 0 {
                    bytes.read_at(offset, &mut buf[..n])?;
                }
                Ok(n)
            }
            Handle::Draft { file, .. } => Ok(read_fully(file, offset, buf)?),
            Handle::Text(text) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
                let n = buf.len().min(text.len() - from);
                buf[..n].copy_from_slice(&text.as_bytes()[from..from + n]);
                Ok(n)
            }
            _ => Err(VfsError::IsDir),
        }
    }

    /// Calls `f` with the ordinary file that has an open file's bytes, if there is one.
    pub fn with_plain<T>(&self, fh: u64, f: impl FnOnce(&std::fs::File) -> Option<T>) -> Option<T> {
        match &*self.handles.get(fh).ok()? {
            Handle::File { bytes, .. } => bytes.plain().and_then(f),
            // Of what the kernel writes by itself nobody asks us whether there is room.
            Handle::Draft { file, .. } if self.drafts.as_ref().is_some_and(|d| d.reserve == 0) => f(file),
            _ => None,
        }
    }

    /// Closes a file or directory.
    pub fn release(&self, fh: u64) {
        self.handles.remove(fh);
    }

    // ---- what the kernel may believe

    /// To be called when the kernel is told of what is [`stale`](Vfs::stale) after each change: it may then believe
    /// for longer what it was told.
    pub fn kernel_is_told(&self) {
        self.told.store(true, Ordering::Relaxed);
    }

    /// How long a node's name and attributes may be believed.
    fn lifetimes(&self, node: &Node) -> (Duration, Duration) {
        let live = if self.told.load(Ordering::Relaxed) { TOLD } else { LIVE };
        match node {
            Node::Root => (FOREVER, FOREVER),
            Node::Models => (FOREVER, live),
            Node::Model(_) => (live, live),
            Node::Draft(_) => (DRAFT, DRAFT),
            Node::Latest(_) | Node::Inside(_, 0) => (live, FOREVER),
            Node::Inside(version, _) if version.settled => (live, SETTLED),
            Node::Inside(..) => (FOREVER, SETTLED),
            Node::Lineage(place) => lineage::lifetimes(place),
        }
    }

    /// What the kernel may no longer believe after these events, once the source has heard of them.
    pub fn stale(&self, events: &[Event]) -> Vec<Stale> {
        let number = |node: &Node| self.inodes.number(self.hash_of(node), node);
        let mut stale = Vec::new();
        for event in events {
            let (model, version) = match event {
                Event::Commit { model, version, .. }
                | Event::Remove { model, version, .. }
                | Event::Restore { model, version, .. } => (model, version),
                Event::Tag { model, tag, .. } => (model, tag),
                Event::Rename { from, to } => {
                    let parent = number(&Node::Models);
                    stale.extend([from, to].map(|m| Stale::Name { parent, name: m.dir_name() }));
                    stale.push(Stale::Attr(parent));
                    continue;
                }
                _ => continue,
            };
            let parent = number(&Node::Model(model.clone()));
            if matches!(event, Event::Remove { .. } | Event::Tag { .. }) || self.drafts.is_some() {
                stale.push(Stale::Name { parent, name: version.to_string() });
                if self.source.versions(model).is_ok_and(|v| v.is_empty()) {
                    stale.push(Stale::Name { parent: number(&Node::Models), name: model.dir_name() });
                }
            }
            stale.push(Stale::Name { parent, name: "latest".to_owned() });
            stale.push(Stale::Attr(parent));
        }
        stale
    }

    /// What the kernel may no longer believe when a draft went otherwise than through the mount.
    pub fn stale_draft(&self, slot: &Slot) -> Vec<Stale> {
        let node = Node::Model(slot.model.clone());
        let parent = self.inodes.number(self.hash_of(&node), &node);
        vec![Stale::Name { parent, name: slot.name.clone() }, Stale::Attr(parent)]
    }

    // ---- the disk

    pub fn statfs(&self) -> Result<Statfs, VfsError> {
        let s = statvfs(self.source.statfs_path()).ok_or(VfsError::Io)?;
        let kept = self.drafts.as_ref().map_or(0, |d| d.reserve) / u64::from(s.fragment_size.max(1));
        Ok(Statfs { available: s.available.saturating_sub(kept), ..s })
    }
}

/// Fills `buf` from `offset` on as far as the file goes.
fn read_fully(file: &File, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
    let mut n = 0;
    while n < buf.len() {
        match file.read_at(&mut buf[n..], offset + n as u64) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}

/// The directory `/lineage`.
fn top() -> Node {
    Node::Lineage(Arc::new(Place::Top))
}

fn statvfs(path: &Path) -> Option<Statfs> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).ok()?;
    let mut out = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: `path` ends in a NUL, `out` has room for the struct, and all its bytes are set.
    let s = unsafe {
        if libc::statvfs(path.as_ptr(), out.as_mut_ptr()) != 0 {
            return None;
        }
        out.assume_init()
    };
    Some(Statfs {
        blocks: s.f_blocks,
        free: s.f_bfree,
        available: s.f_bavail,
        files: s.f_files,
        files_free: s.f_ffree,
        block_size: u32::try_from(s.f_bsize).unwrap_or(4096),
        fragment_size: u32::try_from(s.f_frsize).unwrap_or(4096),
        name_max: 255,
    })
}

#[cfg(test)]
mod tests;
