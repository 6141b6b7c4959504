//! What stands at each place of the mount, and its inode number.
//!
//! A number is the first eight bytes of a BLAKE3 of what the node *is* (a model's name, a version's id, a
//! path in it), so that it is the same after a remount. Two nodes with one number are told apart by giving
//! the later one the next free number for as long as the kernel knows it.

use std::collections::HashMap;
use std::sync::Arc;

use super::drafts::Item;
use super::lineage::Place;
use super::source::Version;
use super::{VfsError, locked};
use crate::model::id::Id;
use crate::model::name::ModelName;
use crate::sync::RwLock;
use crate::sync::atomic::{AtomicU64, Ordering};

/// The root's inode number, fixed by FUSE.
pub const ROOT: u64 = 1;
/// Nodes that the kernel may know at once.
const MAX_NODES: usize = 1 << 24;

/// Where a node's number starts from.
pub(super) type Hash = fn(&[u8]) -> u64;

/// One node. Small: a version's files are named by their place in its [tree](super::tree).
#[derive(Clone, Debug)]
pub(super) enum Node {
    Root,
    Models,
    Model(ModelName),
    /// A link to a version, as `latest` or a tag: one for each version, so that where it leads never changes.
    Latest(Arc<Version>),
    /// Place 0 is the version's own directory.
    Inside(Arc<Version>, u32),
    Lineage(Arc<Place>),
    /// Known by what lies on the disk, wherever it is moved.
    Draft(Arc<Item>),
}

impl PartialEq for Node {
    fn eq(&self, other: &Node) -> bool {
        match (self, other) {
            (Node::Root, Node::Root) | (Node::Models, Node::Models) => true,
            (Node::Model(a), Node::Model(b)) => a == b,
            (Node::Latest(a), Node::Latest(b)) => a.id == b.id,
            (Node::Inside(a, i), Node::Inside(b, j)) => i == j && a.id == b.id,
            (Node::Lineage(a), Node::Lineage(b)) => a == b,
            (Node::Draft(a), Node::Draft(b)) => a.key == b.key,
            _ => false,
        }
    }
}

/// The number that a BLAKE3 of `identity` gives.
pub(super) fn blake3_number(identity: &[u8]) -> u64 {
    u64::from_le_bytes(Id::of(identity).0[..8].try_into().expect("eight bytes"))
}

/// What a model's directory is hashed by.
pub(super) fn model_identity(model: &ModelName) -> Vec<u8> {
    identity(b"model", model.as_str().as_bytes(), b"")
}

/// What a `latest` is hashed by.
pub(super) fn latest_identity(version: &Id) -> Vec<u8> {
    identity(b"latest", &version.0, b"")
}

/// What a path of a version is hashed by; the version's own directory has the empty path.
pub(super) fn path_identity(version: &Id, path: &str) -> Vec<u8> {
    identity(b"path", &version.0, path.as_bytes())
}

/// Of a node of a kind of its own.
pub(super) fn identity(kind: &[u8], name: &[u8], path: &[u8]) -> Vec<u8> {
    [b"mgit inode 1\0", kind, b"\0", name, b"\0", path].concat()
}

struct Slot {
    node: Node,
    lookups: AtomicU64,
}

#[derive(Default)]
struct Table {
    slots: HashMap<u64, Slot>,
    /// Nodes that did not get the number of their hash.
    moved: Vec<(Node, u64)>,
}

impl Table {
    /// The number that `node` has, or would get now.
    fn number(&self, hash: u64, node: &Node) -> u64 {
        if let Some((_, ino)) = self.moved.iter().find(|(n, _)| n == node) {
            return *ino;
        }
        let mut ino = hash.max(ROOT);
        while self.slots.get(&ino).is_some_and(|s| s.node != *node) {
            ino = ino.wrapping_add(1).max(ROOT);
        }
        ino
    }
}

/// The nodes that the kernel knows, counted as it counts them.
pub(super) struct Inodes(RwLock<Table>);

impl Inodes {
    /// A table that holds the nodes of `pinned` for good.
    pub fn new(pinned: &[(u64, Node)]) -> Inodes {
        let mut table = Table::default();
        for (hash, node) in pinned {
            let ino = table.number(*hash, node);
            table.slots.insert(ino, Slot { node: node.clone(), lookups: AtomicU64::new(1) });
        }
        Inodes(RwLock::new(table))
    }

    /// The number of `node`, without counting: for a directory's listing.
    pub fn number(&self, hash: u64, node: &Node) -> u64 {
        locked(self.0.read()).number(hash, node)
    }

    /// The number of `node`, which the kernel knows once more from now on.
    pub fn remember(&self, hash: u64, node: &Node) -> Result<u64, VfsError> {
        {
            let table = locked(self.0.read());
            let ino = table.number(hash, node);
            if let Some(slot) = table.slots.get(&ino) {
                slot.lookups.fetch_add(1, Ordering::Relaxed);
                return Ok(ino);
            }
        }
        let mut table = locked(self.0.write());
        let ino = table.number(hash, node);
        if let Some(slot) = table.slots.get(&ino) {
            slot.lookups.fetch_add(1, Ordering::Relaxed);
            return Ok(ino);
        }
        if table.slots.len() >= MAX_NODES {
            return Err(VfsError::TooMany);
        }
        table.slots.insert(ino, Slot { node: node.clone(), lookups: AtomicU64::new(1) });
        if ino != hash {
            table.moved.push((node.clone(), ino));
        }
        Ok(ino)
    }

    pub fn get(&self, ino: u64) -> Result<Node, VfsError> {
        locked(self.0.read()).slots.get(&ino).map(|s| s.node.clone()).ok_or(VfsError::Stale)
    }

    /// The kernel no longer knows `count` of its lookups of `ino`.
    pub fn forget(&self, ino: u64, count: u64) {
        let mut table = locked(self.0.write());
        let Some(slot) = table.slots.get_mut(&ino) else { return };
        if matches!(slot.node, Node::Root | Node::Models) {
            return;
        }
        let lookups = slot.lookups.get_mut();
        *lookups = lookups.saturating_sub(count);
        if *lookups == 0 {
            table.slots.remove(&ino);
            table.moved.retain(|(_, moved)| *moved != ino);
        }
    }

    /// How many nodes are known.
    pub fn len(&self) -> usize {
        locked(self.0.read()).slots.len()
    }
}
