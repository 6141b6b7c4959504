//! Open files and directories. A handle holds all that its reads need, so that they go on when the version
//! is removed.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex};

use super::drafts::Item;
use super::node::Node;
use super::source::ReadAt;
use super::tree::Tree;
use super::{VfsError, locked};
use crate::repo::draft::Writing;
use crate::sync::RwLock;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Files and directories that may be open at once.
const MAX_HANDLES: usize = 1 << 20;

/// A name in a listing of what may change.
pub(super) struct Listed {
    pub name: String,
    pub node: Node,
    pub hash: u64,
}

pub(super) enum Handle {
    File {
        bytes: Arc<dyn ReadAt>,
        len: u64,
        tree: Arc<Tree>,
    },
    /// A file of a draft.
    Draft {
        file: File,
        item: Arc<Item>,
        _writing: Option<Writing>,
    },
    /// A text as it was when it was opened.
    Text(Arc<str>),
    /// A directory of a version, by its place in the tree.
    Inside {
        tree: Arc<Tree>,
        place: u32,
    },
    /// A directory whose names are those of the moment it was opened or rewound.
    Live {
        node: Node,
        names: Mutex<Arc<Vec<Listed>>>,
    },
}

#[derive(Default)]
pub(super) struct Handles {
    open: RwLock<HashMap<u64, Arc<Handle>>>,
    last: AtomicU64,
}

impl Handles {
    pub fn add(&self, handle: Handle) -> Result<u64, VfsError> {
        let mut open = locked(self.open.write());
        if open.len() >= MAX_HANDLES {
            return Err(VfsError::TooMany);
        }
        let fh = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        open.insert(fh, Arc::new(handle));
        Ok(fh)
    }

    pub fn get(&self, fh: u64) -> Result<Arc<Handle>, VfsError> {
        locked(self.open.read()).get(&fh).cloned().ok_or(VfsError::BadHandle)
    }

    pub fn remove(&self, fh: u64) {
        let gone = locked(self.open.write()).remove(&fh);
        drop(gone); // after the lock: the last holder of a file may have much to let go
    }

    pub fn len(&self) -> usize {
        locked(self.open.read()).len()
    }
}
