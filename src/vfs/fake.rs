//! A repository in memory, for tests of the filesystem without a store. Not part of mgit.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use jiff::Timestamp;

use super::source::{Page, ReadAt, ReadError, Source, Version};
use crate::model::graph::{Edge, Graph, Kind, Node};
use crate::model::id::Id;
use crate::model::name::ModelName;
use crate::model::record::{EntryKind, FileEntry, Relation, VersionRecord};

/// A file of pattern bytes: as fast as memory, of any size, without holding it. See [`pattern`].
const PATTERN: usize = 1 << 20;

/// Byte `at` of a pattern file.
pub fn pattern(at: u64) -> u8 {
    let at = at as usize % PATTERN;
    ((at >> 8) ^ at ^ (at >> 13)) as u8
}

/// The entry of a file that holds `bytes`.
pub fn entry(path: &str, bytes: &[u8]) -> FileEntry {
    let digest = Id::of(bytes);
    FileEntry { path: path.to_owned(), kind: EntryKind::File, bytes: bytes.len() as u64, digest, recipe: digest }
}

/// The entry of a directory with nothing in it.
pub fn empty_directory(path: &str) -> FileEntry {
    FileEntry { kind: EntryKind::Directory, ..entry(path, b"") }
}

/// A record of these files, made at a fixed time.
pub fn record(model: &str, version: &str, files: Vec<FileEntry>) -> VersionRecord {
    VersionRecord {
        model: model.parse().expect("a model's name"),
        version: version.parse().expect("a version's name"),
        created: Timestamp::from_second(1_700_000_000).expect("a time"),
        message: String::new(),
        previous: None,
        parents: Vec::new(),
        origin: None,
        merge: None,
        lossy: None,
        files,
    }
}

#[derive(Default)]
struct State {
    versions: BTreeMap<ModelName, Vec<Version>>,
    records: HashMap<Id, (Arc<VersionRecord>, Arc<Vec<u64>>)>,
    contents: HashMap<Id, Arc<dyn ReadAt>>,
    seq: u64,
    graph: Arc<Graph>,
    /// What every page says, after its name.
    said: String,
}

/// A source whose versions come and go as a test says. Clones are one and the same.
#[derive(Clone, Default)]
pub struct Fake {
    state: Arc<RwLock<State>>,
    disk: Arc<PathBuf>,
}

struct Bytes(Vec<u8>);

impl ReadAt for Bytes {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let at = offset as usize;
        buf.copy_from_slice(self.0.get(at..at + buf.len()).ok_or(ReadError::Damaged)?);
        Ok(())
    }
}

struct Pattern(Vec<u8>);

impl ReadAt for Pattern {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let (mut at, mut rest) = (offset as usize % PATTERN, buf);
        while !rest.is_empty() {
            let n = rest.len().min(PATTERN - at);
            let (head, tail) = rest.split_at_mut(n);
            head.copy_from_slice(&self.0[at..at + n]);
            (at, rest) = (0, tail);
        }
        Ok(())
    }
}

struct Broken;

impl ReadAt for Broken {
    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), ReadError> {
        Err(ReadError::Damaged)
    }
}

impl Fake {
    pub fn new() -> Fake {
        Fake { disk: Arc::new(PathBuf::from("/")), ..Fake::default() }
    }

    /// Commits a version of these files, each charged half of its bytes; a path that ends in `/` is an
    /// empty directory.
    pub fn commit(&self, model: &str, version: &str, files: &[(&str, &[u8])]) -> Id {
        let mut entries = Vec::new();
        for (path, bytes) in files {
            match path.strip_suffix('/') {
                Some(path) => entries.push(empty_directory(path)),
                None => entries.push(entry(path, bytes)),
            }
            self.state.write().unwrap().contents.insert(Id::of(bytes), Arc::new(Bytes(bytes.to_vec())));
        }
        self.commit_entries(model, version, entries)
    }

    /// Commits a version with one file of `bytes` pattern bytes.
    pub fn commit_pattern(&self, model: &str, version: &str, path: &str, bytes: u64) -> Id {
        let recipe = Id::of(format!("pattern {bytes}").as_bytes());
        let content = Pattern((0..PATTERN as u64).map(pattern).collect());
        self.state.write().unwrap().contents.insert(recipe, Arc::new(content));
        self.commit_entries(model, version, vec![FileEntry { bytes, recipe, ..entry(path, b"") }])
    }

    /// Commits a version with one file that opens and then fails to read.
    pub fn commit_broken(&self, model: &str, version: &str, path: &str, bytes: u64) -> Id {
        let recipe = Id::of(b"broken");
        self.state.write().unwrap().contents.insert(recipe, Arc::new(Broken));
        self.commit_entries(model, version, vec![FileEntry { bytes, recipe, ..entry(path, b"") }])
    }

    /// Commits a version of these entries.
    pub fn commit_entries(&self, model: &str, version: &str, mut files: Vec<FileEntry>) -> Id {
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let stored = files.iter().map(|f| f.bytes / 2).collect();
        let record = record(model, version, files);
        let id = Id::of(&record.encode());
        let mut state = self.state.write().unwrap();
        state.seq += 1;
        let (model, version, created, seq) = (record.model.clone(), record.version.clone(), record.created, state.seq);
        let node = node(&record, id);
        Arc::make_mut(&mut state.graph).nodes.push(node);
        state.versions.entry(model.clone()).or_default().push(Version {
            model,
            version,
            id,
            created,
            seq,
            settled: false,
        });
        state.records.insert(id, (Arc::new(record), Arc::new(stored)));
        id
    }

    /// Removes a version and its record; what is open keeps reading.
    pub fn remove(&self, model: &str, version: &str) {
        let mut state = self.state.write().unwrap();
        let model: ModelName = model.parse().unwrap();
        let Some(versions) = state.versions.get_mut(&model) else { return };
        let Some(at) = versions.iter().position(|v| v.version.as_str() == version) else { return };
        let id = versions.remove(at).id;
        if versions.is_empty() {
            state.versions.remove(&model);
        }
        state.records.remove(&id);
        for node in &mut Arc::make_mut(&mut state.graph).nodes {
            node.removed |= node.id == id;
        }
    }

    /// Adds an edge, a version edge within a model; neither end needs to be there, nor need it make sense.
    pub fn link(&self, child: &Id, parent: &Id) {
        let mut state = self.state.write().unwrap();
        let graph = Arc::make_mut(&mut state.graph);
        let place = |id: &Id| graph.nodes.iter().position(|n| n.id == *id).unwrap_or(usize::MAX);
        let (from, to) = (place(parent), place(child));
        let model = |n: usize| graph.nodes.get(n).map(|n| &n.model);
        let kind = if model(from) == model(to) { Kind::Version } else { Kind::Provenance(Relation::Finetune) };
        graph.edges.push(Edge::new(from, to, kind));
    }

    /// From now on the model's versions may be written again.
    pub fn settle(&self, model: &str) {
        let model: ModelName = model.parse().unwrap();
        self.state.write().unwrap().versions.entry(model).or_default().iter_mut().for_each(|v| v.settled = true);
    }

    /// From now on each page says its name and this.
    pub fn say(&self, what: &str) {
        let mut state = self.state.write().unwrap();
        state.said = what.to_owned();
        state.graph = Arc::new((*state.graph).clone());
    }
}

fn node(record: &VersionRecord, id: Id) -> Node {
    Node {
        id,
        label: format!("{}@{}", record.model, record.version),
        model: record.model.to_string(),
        version: record.version.to_string(),
        created: record.created,
        logical: record.logical_bytes(),
        stored: None,
        removed: false,
    }
}

impl Source for Fake {
    fn models(&self) -> Result<Arc<Vec<ModelName>>, ReadError> {
        Ok(Arc::new(self.state.read().unwrap().versions.keys().cloned().collect()))
    }

    fn versions(&self, model: &ModelName) -> Result<Arc<Vec<Version>>, ReadError> {
        Ok(Arc::new(self.state.read().unwrap().versions.get(model).cloned().unwrap_or_default()))
    }

    fn record(&self, id: &Id) -> Result<Arc<VersionRecord>, ReadError> {
        self.state.read().unwrap().records.get(id).map(|r| r.0.clone()).ok_or(ReadError::Gone)
    }

    fn stored_bytes(&self, id: &Id) -> Result<Arc<Vec<u64>>, ReadError> {
        self.state.read().unwrap().records.get(id).map(|r| r.1.clone()).ok_or(ReadError::Gone)
    }

    fn parents_text(&self, _: &Id) -> Result<String, ReadError> {
        Ok("base@v1 acme/other@v2".to_owned())
    }

    fn graph(&self) -> Result<Arc<Graph>, ReadError> {
        Ok(self.state.read().unwrap().graph.clone())
    }

    fn page(&self, page: &Page) -> Result<Arc<str>, ReadError> {
        Ok(format!("{page:?}{}\n", self.state.read().unwrap().said).into())
    }

    fn remove(&self, version: &Version) -> Result<(), ReadError> {
        Fake::remove(self, version.model.as_str(), version.version.as_str());
        Ok(())
    }

    fn open(&self, entry: &FileEntry) -> Result<Arc<dyn ReadAt>, ReadError> {
        self.state.read().unwrap().contents.get(&entry.recipe).cloned().ok_or(ReadError::Gone)
    }

    fn statfs_path(&self) -> &Path {
        &self.disk
    }
}
