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
#[doc(hidden)]
pub mod fake;
mod handle;
mod lineage;
mod node;
pub mod repo;
mod source;
mod tree;
mod xattr;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LockResult, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::model::event::Event;
use crate::model::name::ModelName;
pub use attr::{Attr, BLOCK_SIZE, Kind};
use attr::{FOREVER, LIVE, SETTLED, TOLD};
use handle::{Handle, Handles, Listed};
use lineage::{Lineage, Place};
pub use node::ROOT;
use node::{Hash, Inodes, Node};
pub use source::{Drawing, Page, ReadAt, ReadError, Sheet, Source, Version};
use tree::{Tree, Trees};
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

    fn with(source: S, uid: u32, gid: u32, hash: Hash) -> Vfs<S> {
        let inodes = Inodes::new(&[(ROOT, Node::Root), (hash(b"mgit inode 1\0models"), Node::Models)]);
        let (handles, trees, lineage, opened) = Default::default();
        let (born, told) = (SystemTime::now(), AtomicBool::new(false));
        Vfs { source, uid, gid, born, hash, inodes, handles, trees, lineage, opened, told }
    }

    pub fn source(&self) -> &S {
        &self.source
    }

    /// Nodes that the kernel knows, and open handles.
    pub fn counts(&self) -> (usize, usize) {
        (self.inodes.len(), self.handles.len())
    }

    /// Why nothing can be created, changed or removed.
    pub fn refusal(&self) -> VfsError {
        VfsError::ReadOnly
    }

    // ---- names

    /// What stands at `name` in the directory `parent`.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<Found, VfsError> {
        let parent = self.inodes.get(parent)?;
        let nothing = Found::Nothing(if matches!(parent, Node::Inside(..)) { FOREVER } else { Duration::ZERO });
        let Some(name) = name.to_str() else { return Ok(nothing) };
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
            Node::Inside(version, place) => {
                let tree = self.tree(version)?;
                let Some(found) = tree.find(*place, name)? else { return Ok(None) };
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
        if model.dir_name() != name || self.source.versions(&model)?.is_empty() {
            return Ok(None);
        }
        let node = Node::Model(model);
        let hash = self.hash_of(&node);
        Ok(Some((node, hash)))
    }

    fn in_model(&self, model: &ModelName, name: &str) -> Result<Option<(Node, u64)>, VfsError> {
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
            Node::Model(model) => Ok(self.directory(ino, attr::time(self.newest(model)?.created))),
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
        Attr { ino, kind: Kind::Directory, size: 0, blocks: 0, time, mode: 0o755, nlink: 1, uid, gid }
    }

    fn newest(&self, model: &ModelName) -> Result<Version, VfsError> {
        self.source.versions(model)?.last().cloned().ok_or(VfsError::NotFound)
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
            _ => Err(VfsError::Invalid),
        }
    }

    /// The value of an extended attribute, for a caller with room for `size` bytes (0: only its length).
    pub fn getxattr(&self, ino: u64, name: &OsStr, size: u32) -> Result<Xattr, VfsError> {
        if !name.as_encoded_bytes().starts_with(b"user.mgit.") {
            return Err(VfsError::NoData);
        }
        let node = self.inodes.get(ino)?;
        let names = self.xattr_names(&node)?;
        let Some(known) = names.iter().find(|n| n.as_str() == name) else { return Err(VfsError::NoData) };
        let Node::Inside(version, place) = &node else { return Err(VfsError::NoData) };
        xattr::sized(self.xattr_value(*known, version, *place)?, size)
    }

    /// The names of a node's extended attributes, likewise.
    pub fn listxattr(&self, ino: u64, size: u32) -> Result<Xattr, VfsError> {
        let node = self.inodes.get(ino)?;
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

    /// Opens a file for reading; `flags` are those of open(2).
    pub fn open(&self, ino: u64, flags: i32) -> Result<Opened, VfsError> {
        let node = self.inodes.get(ino)?;
        if !matches!(node, Node::Inside(..) | Node::Lineage(_)) {
            return Err(VfsError::IsDir);
        }
        if flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0 {
            return Err(VfsError::ReadOnly);
        }
        let handle = match node {
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
            _ => None,
        }
    }

    /// Closes a file or directory.
    pub fn release(&self, fh: u64) {
        self.handles.remove(fh);
    }

    // ---- directories

    pub fn opendir(&self, ino: u64) -> Result<Opened, VfsError> {
        let handle = match self.inodes.get(ino)? {
            Node::Inside(version, place) => {
                let tree = self.tree(&version)?;
                tree.children(place)?;
                Handle::Inside { tree, place }
            }
            Node::Latest(_) => return Err(VfsError::NotDir),
            node => Handle::Live { names: Mutex::new(Arc::new(self.names(&node)?)), node },
        };
        let unchanged = match &handle {
            Handle::Live { node, .. } => self.is_as_opened_last(ino, node)?,
            _ => true,
        };
        Ok(Opened { fh: self.handles.add(handle)?, unchanged })
    }

    /// Whether a changing directory lists what it did when it was opened last, which is remembered.
    fn is_as_opened_last(&self, ino: u64, node: &Node) -> Result<bool, VfsError> {
        let now = match node {
            Node::Models => Answer::Models(self.source.models()?),
            Node::Model(model) => Answer::Versions(self.source.versions(model)?),
            Node::Lineage(_) => Answer::Lineage(self.lineage.now(&self.source)?.number),
            _ => return Ok(true),
        };
        let mut opened = locked(self.opened.lock());
        if opened.len() >= MAX_OPENED {
            opened.clear();
        }
        let same = opened.get(&ino).is_some_and(|before| before.is(&now));
        opened.insert(ino, now);
        Ok(same)
    }

    /// What a changing directory holds now, `.` and `..` not counted.
    fn names(&self, node: &Node) -> Result<Vec<Listed>, VfsError> {
        let listed = |name: String, node: Node| Listed { name, hash: self.hash_of(&node), node };
        Ok(match node {
            Node::Root => vec![listed("models".to_owned(), Node::Models), listed("lineage".to_owned(), top())],
            Node::Models => {
                self.source.models()?.iter().map(|m| listed(m.dir_name(), Node::Model(m.clone()))).collect()
            }
            Node::Model(model) => {
                let versions = self.source.versions(model)?;
                let latest = versions.last().map(|v| listed("latest".to_owned(), Node::Latest(Arc::new(v.clone()))));
                let version = |v: &Version| listed(v.version.to_string(), Node::Inside(Arc::new(v.clone()), 0));
                let tags = self.source.tags(model)?.into_iter();
                let tags = tags.map(|(tag, v)| listed(tag.to_string(), Node::Latest(Arc::new(v))));
                versions.iter().map(version).chain(latest).chain(tags).collect()
            }
            Node::Lineage(dir) => {
                let all = self.lineage.names(&self.source, dir)?;
                all.into_iter().map(|(name, place)| listed(name, Node::Lineage(Arc::new(place)))).collect()
            }
            Node::Latest(_) | Node::Inside(..) => return Err(VfsError::NotDir),
        })
    }

    /// Gives the names from `offset` on to `take`, until that returns true: it has no room for this one.
    pub fn readdir(&self, fh: u64, offset: u64, mut take: impl FnMut(Listing) -> bool) -> Result<(), VfsError> {
        self.walk(fh, offset, |name, node, hash, next| {
            let (ino, kind) = (self.inodes.number(hash, node), self.kind(fh, node)?);
            Ok(take(Listing { ino, kind, name, next }))
        })
    }

    /// Like [`Vfs::readdir`], with each node's entry; each name taken but `.` and `..` counts as a lookup.
    pub fn readdirplus(
        &self,
        fh: u64,
        offset: u64,
        mut take: impl FnMut(Listing, &Entry) -> bool,
    ) -> Result<(), VfsError> {
        self.walk(fh, offset, |name, node, hash, next| {
            let entry = match self.entry(node, hash) {
                Ok(entry) => entry,
                Err(VfsError::NotFound) => return Ok(false), // gone since the directory was opened
                Err(e) => return Err(e),
            };
            let ino = entry.attr.ino;
            let full = take(Listing { ino, kind: entry.attr.kind, name, next }, &entry);
            if full || name == "." || name == ".." {
                self.inodes.forget(ino, 1);
            }
            Ok(full)
        })
    }

    fn kind(&self, fh: u64, node: &Node) -> Result<Kind, VfsError> {
        match (node, &*self.handles.get(fh)?) {
            (Node::Latest(_), _) => Ok(Kind::Symlink),
            (Node::Lineage(place), _) => Ok(place.kind()),
            (Node::Inside(_, place), Handle::Inside { tree, .. }) if !tree.is_dir(*place)? => Ok(Kind::File),
            _ => Ok(Kind::Directory),
        }
    }

    /// Calls `each` with name, node, hash and next offset; stops when it returns true. An error after the
    /// first name ends the listing early: the caller comes again and gets it then.
    fn walk(
        &self,
        fh: u64,
        offset: u64,
        mut each: impl FnMut(&str, &Node, u64, u64) -> Result<bool, VfsError>,
    ) -> Result<(), VfsError> {
        let mut given = false;
        let mut step = |name: &str, node: &Node, hash: u64, next: u64| match each(name, node, hash, next) {
            Err(_) if given => Ok(true),
            other => {
                given = true;
                other
            }
        };
        match &*self.handles.get(fh)? {
            Handle::File { .. } | Handle::Text(_) => Err(VfsError::NotDir),
            Handle::Live { node, names } => self.walk_live(node, names, offset, &mut step),
            Handle::Inside { tree, place } => self.walk_inside(tree, *place, offset, &mut step),
        }
    }

    fn walk_live(
        &self,
        node: &Node,
        names: &Mutex<Arc<Vec<Listed>>>,
        offset: u64,
        step: &mut impl FnMut(&str, &Node, u64, u64) -> Result<bool, VfsError>,
    ) -> Result<(), VfsError> {
        if offset == 0 {
            *locked(names.lock()) = Arc::new(self.names(node)?);
        }
        let names = locked(names.lock()).clone();
        let parent = match node {
            Node::Model(_) => Node::Models,
            Node::Lineage(dir) => {
                let parent = self.lineage.parent(&self.source, dir)?;
                parent.map_or(Node::Root, |p| Node::Lineage(Arc::new(p)))
            }
            _ => Node::Root,
        };
        if self.dots(node, &parent, offset, step)? {
            return Ok(());
        }
        for (at, l) in names.iter().enumerate().skip(past_dots(offset)) {
            if step(&l.name, &l.node, l.hash, at as u64 + 3)? {
                break;
            }
        }
        Ok(())
    }

    fn walk_inside(
        &self,
        tree: &Tree,
        place: u32,
        offset: u64,
        step: &mut impl FnMut(&str, &Node, u64, u64) -> Result<bool, VfsError>,
    ) -> Result<(), VfsError> {
        let node = |place| Node::Inside(tree.version.clone(), place);
        let up = if place == 0 { Node::Model(tree.version.model.clone()) } else { node(tree.parent(place)?) };
        let up_hash = if place == 0 { self.hash_of(&up) } else { tree.hash(tree.parent(place)?)? };
        let dots = [(".", node(place), tree.hash(place)?), ("..", up, up_hash)];
        for (at, (name, node, hash)) in dots.iter().enumerate().skip(offset.min(2) as usize) {
            if step(name, node, *hash, at as u64 + 1)? {
                return Ok(());
            }
        }
        for (at, child) in tree.children(place)?.enumerate().skip(past_dots(offset)) {
            if step(tree.name(child)?, &node(child), tree.hash(child)?, at as u64 + 3)? {
                break;
            }
        }
        Ok(())
    }

    fn dots(
        &self,
        node: &Node,
        parent: &Node,
        offset: u64,
        step: &mut impl FnMut(&str, &Node, u64, u64) -> Result<bool, VfsError>,
    ) -> Result<bool, VfsError> {
        for (at, (name, node)) in [(".", node), ("..", parent)].into_iter().enumerate().skip(offset.min(2) as usize) {
            if step(name, node, self.hash_of(node), at as u64 + 1)? {
                return Ok(true);
            }
        }
        Ok(false)
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
            Node::Latest(_) | Node::Inside(_, 0) => (live, FOREVER),
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
            if matches!(event, Event::Remove { .. } | Event::Tag { .. }) {
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

    // ---- the disk

    pub fn statfs(&self) -> Result<Statfs, VfsError> {
        statvfs(self.source.statfs_path()).ok_or(VfsError::Io)
    }
}

/// The directory `/lineage`.
fn top() -> Node {
    Node::Lineage(Arc::new(Place::Top))
}

/// How many of a directory's own names an offset has passed.
fn past_dots(offset: u64) -> usize {
    usize::try_from(offset.saturating_sub(2)).unwrap_or(usize::MAX)
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
