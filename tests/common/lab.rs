//! What tests of the library share: trees of files, written, read and compared, and imports on any disk.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mgit::codec::Effort;
use mgit::model::id::Id;
use mgit::model::name::VersionRef;
use mgit::model::record::{EntryKind, ParentEdge, Relation, VersionRecord};
use mgit::repo::import::{ImportSpec, Prepared, hash_all, prepare};
use mgit::repo::progress::Silent;
use mgit::repo::{Repo, RepoError};
use mgit::store::sim::SimDisk;

/// Paths and bytes; `None` is an empty directory.
pub type Files = BTreeMap<String, Option<Vec<u8>>>;

pub fn write_tree(dir: &Path, files: &Files) {
    fs::create_dir_all(dir).unwrap();
    for (name, bytes) in files {
        let path = dir.join(name);
        match bytes {
            None => fs::create_dir_all(path).unwrap(),
            Some(bytes) => {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, bytes).unwrap();
            }
        }
    }
}

pub fn read_tree(dir: &Path) -> Files {
    let mut out = Files::new();
    descend(dir, "", &mut out);
    out
}

fn descend(dir: &Path, prefix: &str, out: &mut Files) {
    let entries: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap()).collect();
    if entries.is_empty() && !prefix.is_empty() {
        out.insert(prefix.trim_end_matches('/').to_owned(), None);
    }
    for e in entries {
        let name = format!("{prefix}{}", e.file_name().to_str().unwrap());
        match e.file_type().unwrap().is_dir() {
            true => descend(&e.path(), &format!("{name}/"), out),
            false => drop(out.insert(name, Some(fs::read(e.path()).unwrap()))),
        }
    }
}

/// All files of a version, read through the library.
pub fn stored_tree(repo: &Arc<Repo>, record: &VersionRecord) -> Files {
    let read = |f: &mgit::model::record::FileEntry| match f.kind {
        EntryKind::Directory => None,
        EntryKind::File => {
            let reader = repo.open_file(&f.recipe).unwrap();
            assert_eq!(reader.size(), f.bytes, "{:?}", f.path);
            let mut bytes = vec![0; f.bytes as usize];
            reader.read_at(0, &mut bytes).unwrap();
            assert_eq!(Id::of(&bytes), f.digest, "{:?}", f.path);
            Some(bytes)
        }
    };
    record.files.iter().map(|f| (f.path.clone(), read(f))).collect()
}

/// Names what differs, without printing the bytes.
pub fn difference(got: &Files, want: &Files) -> Option<String> {
    let names: Vec<_> = got.keys().chain(want.keys()).filter(|n| got.get(*n) != want.get(*n)).collect();
    let size = |f: &Files, n: &str| match f.get(n) {
        None => "absent".to_owned(),
        Some(None) => "an empty directory".to_owned(),
        Some(Some(bytes)) => format!("{} bytes", bytes.len()),
    };
    let tell = |n: &String| format!("{n:?}: {} instead of {}", size(got, n), size(want, n));
    (!names.is_empty()).then(|| names.into_iter().map(tell).collect::<Vec<_>>().join("; "))
}

pub fn assert_same(got: &Files, want: &Files, of: &str) {
    if let Some(why) = difference(got, want) {
        panic!("{of}: {why}");
    }
}

/// A real directory for inputs, and the name of a repository that lies on a simulated disk. (The
/// directory of that name is really there too, and empty: import looks up where it is.)
pub struct Lab {
    pub dir: tempfile::TempDir,
    pub effort: Effort,
}

impl Lab {
    pub fn new() -> Lab {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("repo")).unwrap();
        Lab { dir, effort: Effort::Fast }
    }

    pub fn repo_dir(&self) -> PathBuf {
        self.dir.path().join("repo")
    }

    pub fn input(&self, name: &str) -> PathBuf {
        self.dir.path().join("in").join(name)
    }

    /// A new repository on a new disk.
    pub fn create(&self, seed: u64) -> SimDisk {
        let sim = SimDisk::new(seed);
        mgit::repo::engine::init(&self.repo_dir(), Arc::new(sim.clone())).unwrap();
        sim
    }

    pub fn open(&self, sim: &SimDisk, cache: u64) -> Result<Arc<Repo>, RepoError> {
        Repo::open(&self.repo_dir(), Arc::new(sim.clone()), cache)
    }

    /// Seals what lies at `path` as `name`.
    pub fn prepare(
        &self,
        repo: &Repo,
        path: &Path,
        name: &str,
        parents: &[Id],
        previous: Option<Id>,
    ) -> Result<Prepared, RepoError> {
        let name: VersionRef = name.parse().unwrap();
        let spec = ImportSpec {
            model: name.model,
            version: name.version.unwrap(),
            parents: parents.iter().map(|&id| ParentEdge::new(id, Relation::Finetune)).collect(),
            previous,
            guess: false,
            told: false,
            origin: None,
            near: vec![],
            message: String::new(),
            effort: self.effort,
            lossy: None,
        };
        prepare(repo, &spec, &hash_all(repo, path, &Silent)?, &Silent)
    }
}
