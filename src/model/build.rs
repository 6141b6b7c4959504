//! How a version is made from its parents: what users call its recipe. (A [`super::recipe`] is how a file is put together.)
//!
//! It holds the content of the files that it needs, by id, never their paths: whoever runs it later runs what was recorded.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::id::Id;
use super::name::safe_path;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Build {
    pub command: Vec<String>,
    /// Variables of when it was recorded that go over those of when it is run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<BuildFile>,
    /// Where it was recorded: what relative paths in the command start from.
    pub dir: String,
}

/// A file that it needs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BuildFile {
    /// As it was named: an argument equal to it stands for the copy.
    pub name: String,
    /// Of the kept file.
    pub id: Id,
    pub executable: bool,
}

impl Build {
    /// Where below a directory each file's copy goes: as it was named where that is a plain path below, so that a script
    /// finds its siblings; else under its last part. No two in one place.
    pub fn places(&self) -> Vec<String> {
        let mut taken = BTreeSet::new();
        let mut places = Vec::new();
        for (n, file) in self.files.iter().enumerate() {
            let plain = file.name.strip_prefix("./").unwrap_or(&file.name);
            let last = file.name.rsplit('/').find(|p| safe_path(p).is_ok()).unwrap_or("file");
            let wish = if safe_path(plain).is_ok() { plain } else { last };
            let free = taken.iter().all(|t: &String| !overlap(t, wish));
            let place = if free { wish.to_owned() } else { format!("{n}~/{last}") };
            taken.insert(place.clone());
            places.push(place);
        }
        places
    }

    /// The command with each argument that names a file replaced by what `copy` says of its place.
    pub fn resolved(&self, copy: impl Fn(&str) -> String) -> Vec<String> {
        let places = self.places();
        let of = |argument: &String| self.files.iter().position(|f| f.name == *argument);
        self.command.iter().map(|a| of(a).map_or_else(|| a.clone(), |n| copy(&places[n]))).collect()
    }
}

/// Whether two paths cannot both be files.
fn overlap(a: &str, b: &str) -> bool {
    let below = |x: &str, y: &str| x.strip_prefix(y).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    below(a, b) || below(b, a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_keep_their_places_and_never_leave_the_directory() {
        let names = ["train.py", "./lib/util.py", "/abs/train.py", "../x.sh", "/other/x.sh", "/", "lib", "train.py/x"];
        let file = |n: &&str| BuildFile { name: n.to_string(), id: Id::of(b""), executable: false };
        let command = ["python", "train.py", "../x.sh", "y"].map(str::to_owned).to_vec();
        let build = Build { command, env: BTreeMap::new(), files: names.iter().map(file).collect(), dir: "/".into() };
        let places = build.places();
        assert_eq!(places[..5], ["train.py", "lib/util.py", "2~/train.py", "x.sh", "4~/x.sh"]);
        assert!(places.iter().all(|p| safe_path(p).is_ok()), "{places:?}");
        for (i, a) in places.iter().enumerate() {
            assert!(places[..i].iter().all(|b| !overlap(a, b)), "{places:?}");
        }
        assert_eq!(build.resolved(|p| format!("@{p}")), ["python", "@train.py", "@x.sh", "y"]);
    }
}
