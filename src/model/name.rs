//! Names: models, versions, references to versions, and the paths of files inside a version.
//!
//! A segment is `[A-Za-z0-9]([A-Za-z0-9._-]{0,78}[A-Za-z0-9._])?` without `--`. A model has one or two
//! segments, `owner/name`; in the filesystem they are joined by `--`, which no segment holds, so the two
//! forms map one to one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a name was refused, in one line.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    #[error(
        "bad name '{0}': use letters, digits, '.', '_' and '-', at most 80, starting with a letter or digit, not ending in '-', without '--'"
    )]
    Segment(String),
    #[error("'latest' is reserved: it always names the newest version")]
    Latest,
    #[error("bad model '{0}': it has at most one owner, as in owner/name")]
    Owner(String),
}

/// A model: `bert` or `acme/bert-sst2`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ModelName(String);

/// A version's name within its model. Never `latest`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VersionName(String);

/// `model@version`, or `model` for its newest version.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VersionRef {
    pub model: ModelName,
    pub version: Option<VersionName>,
}

pub(super) fn segment(s: &str) -> Result<(), NameError> {
    let b = s.as_bytes();
    let inside = |c: &u8| c.is_ascii_alphanumeric() || b"._-".contains(c);
    let ok = (1..=80).contains(&b.len())
        && b[0].is_ascii_alphanumeric()
        && b[b.len() - 1] != b'-'
        && b.iter().all(inside)
        && !s.contains("--");
    if ok { Ok(()) } else { Err(NameError::Segment(printable(s))) }
}

/// A hostile name, fit for one line of a terminal.
pub fn printable(s: &str) -> String {
    let mut out = String::new();
    for c in s.chars().take(100) {
        match c {
            '\'' | '"' => out.push(c),
            c => out.extend(c.escape_debug()),
        }
    }
    if s.chars().count() > 100 {
        out.push('…');
    }
    out
}

impl ModelName {
    /// As a directory of the mount: `acme--bert-sst2`.
    pub fn dir_name(&self) -> String {
        self.0.replacen('/', "--", 1)
    }

    /// The model of a directory name of the mount.
    pub fn from_dir_name(s: &str) -> Result<ModelName, NameError> {
        if s.contains('/') {
            return Err(NameError::Segment(printable(s)));
        }
        s.replacen("--", "/", 1).parse()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl VersionName {
    /// The default name of a model's n-th version: `v1`, `v2`, …
    pub fn numbered(n: u64) -> VersionName {
        VersionName(format!("v{n}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A name that says that it is another of the same: `v1-2`.
    pub fn with_suffix(&self, n: u64) -> VersionName {
        let stem = self.0[..self.0.len().min(59)].trim_end_matches(['-', '.', '_']);
        VersionName(format!("{stem}-{n}"))
    }
}

impl FromStr for ModelName {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        let mut parts = s.splitn(3, '/');
        let (a, b, more) = (parts.next().unwrap_or(""), parts.next(), parts.next());
        if more.is_some() {
            return Err(NameError::Owner(printable(s)));
        }
        segment(a)?;
        b.map_or(Ok(()), segment)?;
        Ok(ModelName(s.to_owned()))
    }
}

impl FromStr for VersionName {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        segment(s)?;
        if s == "latest" { Err(NameError::Latest) } else { Ok(VersionName(s.to_owned())) }
    }
}

impl FromStr for VersionRef {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        let (model, version) = match s.split_once('@') {
            Some((m, "latest")) => (m, None),
            Some((m, v)) => (m, Some(v.parse()?)),
            None => (s, None),
        };
        Ok(VersionRef { model: model.parse()?, version })
    }
}

impl fmt::Display for VersionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Some(v) => write!(f, "{}@{v}", self.model),
            None => write!(f, "{}", self.model),
        }
    }
}

macro_rules! as_text {
    ($($t:ty),*) => {$(
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl Serialize for $t {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
as_text!(ModelName, VersionName);

impl Serialize for VersionRef {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VersionRef {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A path inside a version that is safe to create below any directory: relative, `/`-separated, no empty,
/// `.` or `..` component, no NUL, each component at most 255 bytes, all at most 4,000.
pub fn safe_path(path: &str) -> Result<(), &'static str> {
    if path.is_empty() || path.len() > 4000 {
        return Err("a path has 1 to 4,000 bytes");
    }
    for part in path.split('/') {
        match part {
            "" | "." | ".." => return Err("a path has no empty, '.' or '..' part"),
            p if p.len() > 255 => return Err("a file name has at most 255 bytes"),
            p if p.contains('\0') => return Err("a file name holds no NUL"),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_map_one_to_one_to_directories() {
        for m in ["bert", "acme/bert-sst2", "a", "A.b_c-d"] {
            let name: ModelName = m.parse().unwrap();
            assert_eq!(ModelName::from_dir_name(&name.dir_name()).unwrap(), name);
        }
    }

    #[test]
    fn hostile_names_are_refused() {
        let long = "x".repeat(81);
        for m in ["", "-a", "a-", "a--b", "../x", "a/b/c", "a b", "a\nb", "a\0b", "ä", ".a", "a/", "/a", &long] {
            assert!(m.parse::<ModelName>().is_err(), "{m:?}");
        }
        for v in ["latest", "", "a/b", "v1-", ".."] {
            assert!(v.parse::<VersionName>().is_err(), "{v:?}");
        }
        assert_eq!("m@latest".parse::<VersionRef>().unwrap().version, None);
        assert!(safe_path("a/../b").is_err() && safe_path("/a").is_err() && safe_path("a/b c\n.txt").is_ok());
    }
}
