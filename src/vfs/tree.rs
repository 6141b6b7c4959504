//! The directories of one version, built once from its record: every name is found by binary search.
//!
//! A node is 32 bytes and borrows its name from the record. A directory's children lie side by side,
//! sorted by name. Place 0 is the version's own directory. The same record always gives the same places.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::node::{Hash, path_identity};
use super::source::{Source, Version};
use super::{VfsError, locked};
use crate::model::id::Id;
use crate::model::record::{EntryKind, FileEntry, VersionRecord};

/// Places that one version may have.
const MAX_PLACES: usize = 1 << 22;
/// Places of all trees that are kept, with their records about 20 MiB. One tree is kept whatever its size.
const KEPT_PLACES: usize = 1 << 16;
/// How long an answer of [`Source::stored_bytes`] is believed.
const STORED_FOR: Duration = Duration::from_secs(2);

struct Place {
    /// A record entry at or below this place.
    entry: u32,
    parent: u32,
    name: Range<u16>,
    children: Range<u32>,
    is_dir: bool,
    hash: u64,
}

type Stored = Option<(Instant, Option<Arc<Vec<u64>>>)>;

/// A version with its directories.
pub(super) struct Tree {
    pub version: Arc<Version>,
    record: Arc<VersionRecord>,
    places: Vec<Place>,
    stored: Mutex<Stored>,
}

impl Tree {
    /// Fails on a record that no decoder lets through: empty names, too many places.
    pub fn build(version: Arc<Version>, record: Arc<VersionRecord>, hash: Hash) -> Result<Tree, VfsError> {
        let root = hash(&path_identity(&version.id, ""));
        let mut places = vec![Place { entry: 0, parent: 0, name: 0..0, children: 0..0, is_dir: true, hash: root }];
        let files = &record.files;
        let all = u32::try_from(files.len()).map_err(|_| VfsError::Io)?;
        let mut todo = VecDeque::from([(0u32, 0..all, 0usize)]);
        while let Some((dir, entries, prefix)) = todo.pop_front() {
            let children = children_of(files, entries, prefix)?;
            let first = places.len() as u32;
            for c in children {
                let path = &files[c.entries.start as usize].path[..c.name.end as usize];
                let hash = hash(&path_identity(&version.id, path));
                if c.is_dir {
                    todo.push_back((places.len() as u32, c.entries.clone(), c.name.end as usize + 1));
                }
                let entry = c.entries.start;
                places.push(Place { entry, parent: dir, name: c.name, children: 0..0, is_dir: c.is_dir, hash });
            }
            if places.len() > MAX_PLACES {
                return Err(VfsError::Io);
            }
            places[dir as usize].children = first..places.len() as u32;
        }
        Ok(Tree { version, record, places, stored: Mutex::new(None) })
    }

    fn place(&self, place: u32) -> Result<&Place, VfsError> {
        self.places.get(place as usize).ok_or(VfsError::Stale)
    }

    pub fn is_dir(&self, place: u32) -> Result<bool, VfsError> {
        Ok(self.place(place)?.is_dir)
    }

    pub fn hash(&self, place: u32) -> Result<u64, VfsError> {
        Ok(self.place(place)?.hash)
    }

    pub fn parent(&self, place: u32) -> Result<u32, VfsError> {
        Ok(self.place(place)?.parent)
    }

    pub fn name(&self, place: u32) -> Result<&str, VfsError> {
        let p = self.place(place)?;
        let path = self.record.files.get(p.entry as usize).map_or("", |f| &f.path);
        Ok(&path[p.name.start as usize..p.name.end as usize])
    }

    /// The names from the version's directory down to a place.
    pub fn path(&self, place: u32) -> Result<Vec<String>, VfsError> {
        let mut names = Vec::new();
        let mut at = place;
        while at != 0 {
            names.push(self.name(at)?.to_owned());
            at = self.parent(at)?;
        }
        names.reverse();
        Ok(names)
    }

    pub fn children(&self, dir: u32) -> Result<Range<u32>, VfsError> {
        let p = self.place(dir)?;
        if p.is_dir { Ok(p.children.clone()) } else { Err(VfsError::NotDir) }
    }

    /// The place of `name` in a directory.
    pub fn find(&self, dir: u32, name: &str) -> Result<Option<u32>, VfsError> {
        let Range { start: mut low, end: mut high } = self.children(dir)?;
        while low < high {
            let middle = low + (high - low) / 2;
            match self.name(middle)?.cmp(name) {
                std::cmp::Ordering::Equal => return Ok(Some(middle)),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }

    /// The record's entry of a file.
    pub fn file(&self, place: u32) -> Result<&FileEntry, VfsError> {
        let p = self.place(place)?;
        if p.is_dir {
            return Err(VfsError::IsDir);
        }
        self.record.files.get(p.entry as usize).ok_or(VfsError::Stale)
    }

    /// What a file is charged in the store; none when the source cannot tell.
    pub fn stored(&self, place: u32, source: &impl Source) -> Result<Option<u64>, VfsError> {
        let entry = self.place(place)?.entry as usize;
        Ok(self.all_stored(source).and_then(|all| all.get(entry).copied()))
    }

    /// What the whole version is charged in the store.
    pub fn stored_sum(&self, source: &impl Source) -> Option<u64> {
        self.all_stored(source).map(|all| all.iter().fold(0u64, |sum, n| sum.saturating_add(*n)))
    }

    fn all_stored(&self, source: &impl Source) -> Option<Arc<Vec<u64>>> {
        let mut stored = locked(self.stored.lock());
        match &*stored {
            Some((at, all)) if at.elapsed() < STORED_FOR => all.clone(),
            _ => {
                let all = source.stored_bytes(&self.version.id).ok();
                *stored = Some((Instant::now(), all.clone()));
                all
            }
        }
    }
}

struct Child {
    name: Range<u16>,
    entries: Range<u32>,
    is_dir: bool,
}

/// What stands directly in the directory whose entries share the first `prefix` bytes of their paths.
fn children_of(files: &[FileEntry], entries: Range<u32>, prefix: usize) -> Result<Vec<Child>, VfsError> {
    let mut children = Vec::new();
    let mut at = entries.start;
    while at < entries.end {
        let entry = &files[at as usize];
        let rest = entry.path.get(prefix..).ok_or(VfsError::Io)?;
        let slash = rest.find('/');
        let end = prefix + slash.unwrap_or(rest.len());
        let next = match slash {
            Some(_) => at + shared(&files[at as usize..entries.end as usize], &entry.path[..=end]),
            None => at + 1,
        };
        let name = u16::try_from(prefix).ok().zip(u16::try_from(end).ok()).ok_or(VfsError::Io)?;
        if end == prefix {
            return Err(VfsError::Io);
        }
        let is_dir = slash.is_some() || entry.kind == EntryKind::Directory;
        let below = if slash.is_some() { at..next } else { at..at };
        children.push((&entry.path[prefix..end], Child { name: name.0..name.1, entries: below, is_dir }));
        at = next;
    }
    children.sort_by(|a, b| a.0.cmp(b.0));
    children.dedup_by(|b, a| a.0 == b.0);
    Ok(children.into_iter().map(|c| c.1).collect())
}

/// How many of the first entries start with `prefix`.
fn shared(files: &[FileEntry], prefix: &str) -> u32 {
    files.partition_point(|f| f.path.starts_with(prefix)) as u32
}

/// The trees used last.
#[derive(Default)]
pub(super) struct Trees(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// And when each was used.
    trees: HashMap<Id, (Arc<Tree>, u64)>,
    uses: u64,
    places: usize,
}

impl Trees {
    /// The tree of `version`, from memory or built from its record.
    pub fn get(&self, version: &Arc<Version>, source: &impl Source, hash: Hash) -> Result<Arc<Tree>, VfsError> {
        if let Some(tree) = locked(self.0.lock()).recent(&version.id) {
            return Ok(tree);
        }
        let tree = Arc::new(Tree::build(version.clone(), source.record(&version.id)?, hash)?);
        locked(self.0.lock()).keep(tree.clone());
        Ok(tree)
    }

    #[cfg(test)]
    pub fn forget_all(&self) {
        *locked(self.0.lock()) = Kept::default();
    }
}

impl Kept {
    fn recent(&mut self, id: &Id) -> Option<Arc<Tree>> {
        self.uses += 1;
        let (tree, used) = self.trees.get_mut(id)?;
        *used = self.uses;
        Some(tree.clone())
    }

    fn keep(&mut self, tree: Arc<Tree>) {
        self.uses += 1;
        self.places += tree.places.len();
        if let Some((old, _)) = self.trees.insert(tree.version.id, (tree, self.uses)) {
            self.places -= old.places.len();
        }
        if self.places > KEPT_PLACES {
            self.shrink();
        }
    }

    /// Lets go of the least recently used, down to three quarters: not one search for each that comes.
    fn shrink(&mut self) {
        let mut by_use: Vec<(u64, Id)> = self.trees.iter().map(|(id, (_, used))| (*used, *id)).collect();
        by_use.sort_unstable();
        by_use.pop(); // The last used stays.
        for (_, id) in by_use {
            if self.places <= KEPT_PLACES / 4 * 3 {
                break;
            }
            if let Some((old, _)) = self.trees.remove(&id) {
                self.places -= old.places.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{entry, record};
    use super::super::node::blake3_number;
    use super::*;
    use crate::model::id::Id;

    fn tree(paths: &[&str]) -> Result<Tree, VfsError> {
        let files = paths.iter().map(|p| entry(p, p.as_bytes())).collect();
        let record = record("m", "v1", files);
        let version = Version {
            model: record.model.clone(),
            version: record.version.clone(),
            id: Id::of(&record.encode()),
            created: record.created,
            seq: 0,
            settled: false,
        };
        Tree::build(Arc::new(version), Arc::new(record), blake3_number)
    }

    #[test]
    fn every_path_is_found_and_nothing_else() {
        let paths = ["a-b", "a.txt", "a/b/c", "a/b/d", "a/e", "b", "é/ü"];
        let t = tree(&paths).unwrap();
        for path in paths {
            let at = path.split('/').try_fold(0, |dir, name| t.find(dir, name).unwrap());
            assert_eq!(t.file(at.unwrap()).unwrap().path, path);
        }
        for (dir, name) in [(0, "a-"), (0, "c"), (0, ""), (0, "..")] {
            assert_eq!(t.find(dir, name), Ok(None));
        }
        let a = t.find(0, "a").unwrap().unwrap();
        assert_eq!(t.find(a, "e").unwrap().map(|e| t.parent(e)), Some(Ok(a)));
        let names: Vec<_> = t.children(0).unwrap().map(|c| t.name(c).unwrap()).collect();
        assert_eq!(names, ["a", "a-b", "a.txt", "b", "é"]);
        assert_eq!(t.find(t.find(0, "b").unwrap().unwrap(), "x"), Err(VfsError::NotDir));
        assert_eq!(t.name(1000), Err(VfsError::Stale));
    }

    #[test]
    fn the_trees_used_last_are_kept() {
        let mut kept = Kept::default();
        let mut number = 0u64;
        let mut new = |places: usize| {
            number += 1;
            let mut tree = tree(&["a"]).unwrap();
            tree.version = Arc::new(Version { id: Id::of(&number.to_le_bytes()), ..(*tree.version).clone() });
            let id = tree.version.id;
            tree.places.resize_with(places, || Place {
                entry: 0,
                parent: 0,
                name: 0..0,
                children: 0..0,
                is_dir: false,
                hash: 0,
            });
            (id, Arc::new(tree))
        };
        let (first, tree) = new(KEPT_PLACES / 8);
        kept.keep(tree);
        for _ in 0..100 {
            assert!(kept.recent(&first).is_some(), "used again and again");
            let (id, tree) = new(KEPT_PLACES / 8);
            kept.keep(tree);
            assert!(kept.places <= KEPT_PLACES && kept.trees.contains_key(&id));
        }
        let (large, tree) = new(2 * KEPT_PLACES);
        kept.recent(&first);
        kept.keep(tree);
        assert!(kept.recent(&large).is_some() && kept.trees.len() == 1, "one is kept whatever its size");
        assert_eq!(kept.places, 2 * KEPT_PLACES);
    }

    #[test]
    fn an_empty_version_and_hostile_records() {
        assert_eq!(tree(&[]).unwrap().children(0), Ok(1..1));
        assert!(tree(&[""]).is_err() && tree(&["/a"]).is_err() && tree(&["a//b"]).is_err() && tree(&["a/"]).is_err());
        assert!(tree(&[&"x".repeat(70_000)]).is_err());
        assert!(tree(&["a", "a", "a/b"]).is_ok());
        assert!(tree(&["b", "a/x", "b/y", "a/z"]).is_ok());
        assert!(tree(&[&"d/".repeat(1999), "e"]).is_err());
    }
}
