//! The version record: the immutable snapshot that a version's id names.
//!
//! Stored as JSON; the id is BLAKE3 of exactly the stored bytes, so unknown keys of a later mgit survive.
//! It repeats what the journal says at commit (name, edges), so that a store whose journal is lost can
//! still be read by a person. What changes afterwards (names, edges, removals) lives in the journal alone.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::id::Id;
use super::lossy::Lossy;
use super::name::{ModelName, VersionName, printable, safe_path};

/// How a child came from a parent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Hash, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum Relation {
    Finetune,
    Adapter,
    Merge,
    Quantize,
    Prune,
    Distill,
    Federated,
    Cast,
    Rename,
    Reshard,
    Resize,
    Derived,
}

impl Relation {
    pub const ALL: [Relation; 12] = [
        Relation::Finetune,
        Relation::Adapter,
        Relation::Merge,
        Relation::Quantize,
        Relation::Prune,
        Relation::Distill,
        Relation::Federated,
        Relation::Cast,
        Relation::Rename,
        Relation::Reshard,
        Relation::Resize,
        Relation::Derived,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Relation::Finetune => "finetune",
            Relation::Adapter => "adapter",
            Relation::Merge => "merge",
            Relation::Quantize => "quantize",
            Relation::Prune => "prune",
            Relation::Distill => "distill",
            Relation::Federated => "federated",
            Relation::Cast => "cast",
            Relation::Rename => "rename",
            Relation::Reshard => "reshard",
            Relation::Resize => "resize",
            Relation::Derived => "derived",
        }
    }
}

impl std::fmt::Display for Relation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// A finite number.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Real(pub f64);

impl Eq for Real {}

/// A provenance edge to a parent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ParentEdge {
    pub id: Id,
    pub relation: Relation,
    /// The parent's share in a merge, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coefficient: Option<Real>,
    /// Found by content alone: which of the two came first is told by nothing but the order of their imports.
    #[serde(default, skip_serializing_if = "is_false")]
    pub guess: bool,
    /// The relative distance at which it was found by content; none where somebody named it. Later imports may show that
    /// another parent is nearer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distance: Option<Real>,
}

impl ParentEdge {
    /// One that somebody named.
    pub fn new(id: Id, relation: Relation) -> ParentEdge {
        ParentEdge { id, relation, coefficient: None, guess: false, distance: None }
    }
}

pub(super) fn is_false(b: &bool) -> bool {
    !b
}

/// What the content said about where a version comes from, when nobody did.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Origin {
    /// From 0 to 1; none where no parent was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<Real>,
    /// Share of the tensors' bytes that the nearest version has bit for bit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identical: Option<Real>,
    /// Root mean square of the matrices' relative distances to the parents (or the mix of them), from samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distance: Option<Real>,
    /// The evidence in words.
    pub evidence: String,
    /// The version that has the same files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicate_of: Option<Id>,
    /// What the model's card or adapter configuration claims, which is not believed over the content.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
}

impl Origin {
    /// ` (98 % sure)`; nothing where there is no parent.
    pub fn sure(&self) -> String {
        self.confidence.map(|c| format!(" ({:.0} % sure)", 100.0 * c.0)).unwrap_or_default()
    }
}

/// How a merge was made: enough to make it again from the parents, which are in the order of the edges.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Merge {
    /// `three-way`, or the method's name.
    pub method: String,
    /// What the parents were compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Id>,
    /// The parameters as they are given, `name=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parameters: Vec<String>,
}

/// What stands at a path of a version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// An ordinary file, its bytes given by a recipe.
    File,
    /// A directory with nothing in it. (Others follow from the paths below them.)
    Directory,
}

/// One path of a version. A directory has 0 bytes, the digest of nothing and a recipe of zeros.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileEntry {
    pub path: String,
    pub kind: EntryKind,
    pub bytes: u64,
    /// BLAKE3 of the file's bytes.
    pub digest: Id,
    /// Id of the recipe that makes them.
    pub recipe: Id,
}

/// A version: name at birth, time, message, edges at birth, files sorted by path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VersionRecord {
    pub model: ModelName,
    pub version: VersionName,
    pub created: Timestamp,
    pub message: String,
    pub previous: Option<Id>,
    pub parents: Vec<ParentEdge>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge: Option<Merge>,
    /// Its weights are not those of the model that it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lossy: Option<Lossy>,
    pub files: Vec<FileEntry>,
}

impl VersionRecord {
    /// The bytes that the id hashes.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record has only string keys and finite numbers")
    }

    /// Parses a stored record and checks what every reader relies on: safe, sorted, distinct paths, no
    /// file that is also a directory of another.
    pub fn decode(bytes: &[u8]) -> Result<VersionRecord, String> {
        let r: VersionRecord = serde_json::from_slice(bytes).map_err(|e| format!("not a version record: {e}"))?;
        check_paths(&r.files)?;
        Ok(r)
    }

    pub fn logical_bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }
}

fn check_paths(files: &[FileEntry]) -> Result<(), String> {
    files.iter().try_for_each(|f| safe_path(&f.path)).map_err(str::to_owned)?;
    if !files.is_sorted_by(|a, b| a.path < b.path) {
        return Err("paths are not sorted and distinct".to_owned());
    }
    let is_directory = |(i, f): &(usize, &FileEntry)| {
        let later = &files[i + 1..];
        let first = later.partition_point(|l| is_before_those_in(&l.path, &f.path));
        later.get(first).is_some_and(|l| l.path.strip_prefix(&f.path).is_some_and(|rest| rest.starts_with('/')))
    };
    match files.iter().enumerate().find(is_directory) {
        Some((_, f)) => Err(format!("'{}' is both a file and a directory", printable(&f.path))),
        None => Ok(()),
    }
}

/// Whether a path sorts before all those in a directory.
fn is_before_those_in(path: &str, dir: &str) -> bool {
    let (path, dir) = (path.as_bytes(), dir.as_bytes());
    let common = path.len().min(dir.len());
    path[..common].cmp(&dir[..common]).then_with(|| path.get(common).cmp(&Some(&b'/'))).is_lt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(paths: &[&str]) -> VersionRecord {
        let entry = |p: &&str| FileEntry {
            path: p.to_string(),
            kind: EntryKind::File,
            bytes: 1,
            digest: Id([1; 32]),
            recipe: Id([2; 32]),
        };
        VersionRecord {
            model: "acme/m".parse().unwrap(),
            version: "v1".parse().unwrap(),
            created: Timestamp::UNIX_EPOCH,
            message: "first".into(),
            previous: None,
            parents: vec![ParentEdge::new(Id([3; 32]), Relation::Finetune)],
            origin: None,
            merge: None,
            lossy: None,
            files: paths.iter().map(entry).collect(),
        }
    }

    #[test]
    fn the_id_is_pinned() {
        let r = record(&["config.json"]);
        assert_eq!(VersionRecord::decode(&r.encode()), Ok(r.clone()));
        let text = String::from_utf8(r.encode()).unwrap();
        assert!(text.starts_with(r#"{"model":"acme/m","version":"v1","created":"1970-01-01T00:00:00Z","message":"first","previous":null,"parents":[{"id":"0303"#), "{text}");
    }

    #[test]
    fn hostile_paths_are_refused() {
        let both =
            [&["a", "a/b"][..], &["a", "a-b", "a.c", "a/b"], &["d", "d-x", "d.y/z", "d/e"], &["d/e", "d/e-", "d/e/f"]];
        for bad in [&["../x"][..], &["b", "a"], &["a", "a"], &["/a"], &["a//b"]].into_iter().chain(both) {
            assert!(VersionRecord::decode(&record(bad).encode()).is_err(), "{bad:?}");
        }
        assert!(VersionRecord::decode(&record(&["a", "a-b", "b/c"]).encode()).is_ok());
    }

    #[test]
    fn relations_read_as_they_print() {
        for r in Relation::ALL {
            assert_eq!(serde_json::to_string(&r).unwrap(), format!("\"{r}\""));
        }
    }
}
