//! Directories: opening them, and giving their names piece by piece.
//!
//! A directory that may change lists the names of the moment it was opened or rewound; one inside a version is read
//! from its tree. Offsets 1 and 2 stand after `.` and `..`.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use super::drafts::{Item, Whereabouts};
use super::handle::{Handle, Listed};
use super::node::Node;
use super::source::{Source, Version};
use super::tree::Tree;
use super::{Answer, Entry, Kind, Listing, MAX_OPENED, Opened, Vfs, VfsError, locked, top};

impl<S: Source> Vfs<S> {
    pub fn opendir(&self, ino: u64) -> Result<Opened, VfsError> {
        let mut node = self.inodes.get(ino)?;
        if let Some(draft) = self.redirected(&node)? {
            node = Node::Draft(draft);
        }
        let handle = match node {
            Node::Draft(item) if item.kind != Kind::Directory => return Err(VfsError::NotDir),
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
            Node::Draft(_) => return Ok(false),
            _ => return Ok(true),
        };
        if self.drafts.is_some() && !matches!(node, Node::Lineage(_)) {
            return Ok(false); // drafts come and go beside them
        }
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
                let mut models = self.source.models()?.to_vec();
                if let Some(drafts) = &self.drafts {
                    models.extend(drafts.models()?);
                    models.sort();
                    models.dedup();
                }
                models.into_iter().map(|m| listed(m.dir_name(), Node::Model(m))).collect()
            }
            Node::Draft(dir) => self.drafts_in(dir)?,
            Node::Model(model) => {
                let versions = self.source.versions(model)?;
                let latest = versions.last().map(|v| listed("latest".to_owned(), Node::Latest(Arc::new(v.clone()))));
                let version = |v: &Version| listed(v.version.to_string(), Node::Inside(Arc::new(v.clone()), 0));
                let mut all = self.drafts_of(model)?.map_or(Ok(vec![]), |dir| self.drafts_in(&dir))?;
                all.retain(|d| d.name != "latest");
                let drafted: HashSet<String> = all.iter().map(|d| d.name.clone()).collect();
                let others = versions.iter().filter(|v| !drafted.contains(v.version.as_str()));
                let tags = self.source.tags(model)?.into_iter();
                let tags = tags.map(|(tag, v)| listed(tag.to_string(), Node::Latest(Arc::new(v))));
                all.extend(others.map(version).chain(latest).chain(tags));
                all
            }
            Node::Lineage(dir) => {
                let all = self.lineage.names(&self.source, dir)?;
                all.into_iter().map(|(name, place)| listed(name, Node::Lineage(Arc::new(place)))).collect()
            }
            Node::Latest(_) | Node::Inside(..) => return Err(VfsError::NotDir),
        })
    }

    /// What a directory of a draft holds, or a model's directory of drafts.
    fn drafts_in(&self, dir: &Item) -> Result<Vec<Listed>, VfsError> {
        let mut all = Vec::new();
        for name in dir.names()? {
            if let Some(item) = Item::at(dir.fd.as_fd(), &name)? {
                let (node, hash) = self.draft(item);
                all.push(Listed { name, node, hash });
            }
        }
        Ok(all)
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
            (Node::Draft(item), _) => Ok(item.kind),
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
            Handle::File { .. } | Handle::Draft { .. } | Handle::Text(_) => Err(VfsError::NotDir),
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
            Node::Draft(dir) => self.above(dir)?,
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
            if self.pending.has(&tree.version.id, child) {
                continue;
            }
            if step(tree.name(child)?, &node(child), tree.hash(child)?, at as u64 + 3)? {
                break;
            }
        }
        Ok(())
    }

    /// The directory that a draft's directory lies in.
    fn above(&self, dir: &Item) -> Result<Node, VfsError> {
        let drafts = self.drafts.as_ref().ok_or(VfsError::Stale)?;
        Ok(match drafts.whereabouts(dir)? {
            Whereabouts::In(slot, below) if below.is_empty() => Node::Model(slot.model),
            Whereabouts::In(..) => Node::Draft(Item::at(dir.fd.as_fd(), "..")?.ok_or(VfsError::Stale)?),
            Whereabouts::Gone => Node::Models,
        })
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
}

/// How many of a directory's own names an offset has passed.
fn past_dots(offset: u64) -> usize {
    usize::try_from(offset.saturating_sub(2)).unwrap_or(usize::MAX)
}
