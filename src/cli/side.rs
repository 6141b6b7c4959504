//! What `diff` and `kinship` take as a model: a version of the repository, or files outside it.
//!
//! What exists as a path and holds a '/' or starts with '.' is a path, and so is what no version can be named; all else
//! is `MODEL[@V]`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;

use crate::ask;
use crate::control::{Request, Response, Session};
use crate::model::name::VersionRef;
use crate::repo::diff::side::Side;
use crate::repo::engine::label;
use crate::repo::progress::Progress;
use crate::repo::walk;
use crate::repo::{Head, Repo};

/// A model as an argument names it.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    Version(VersionRef),
    Path(PathBuf),
}

/// For clap: a path or a version's name.
pub fn target(s: &str) -> Result<Target, String> {
    let path = Path::new(s);
    let is_path = s.starts_with('.') || s.starts_with('/') || s.contains('/') && path.exists();
    if is_path {
        return Ok(Target::Path(path.to_owned()));
    }
    match s.parse() {
        Ok(version) => Ok(Target::Version(version)),
        Err(_) if s.matches('/').count() > 1 => Ok(Target::Path(path.to_owned())),
        Err(e) => Err(e.to_string()),
    }
}

/// A target that was looked up.
pub enum Found {
    Head(Head),
    Path(PathBuf),
}

impl Found {
    /// `model@version`, or the path.
    pub fn label(&self) -> String {
        match self {
            Found::Head(head) => label(head),
            Found::Path(path) => path.display().to_string(),
        }
    }

    pub fn head(&self) -> Option<&Head> {
        match self {
            Found::Head(head) => Some(head),
            Found::Path(_) => None,
        }
    }

    /// Bytes that opening reads: all of what lies outside.
    pub fn bytes_to_open(&self) -> Result<u64> {
        Ok(match self {
            Found::Head(_) => 0,
            Found::Path(path) => walk::bytes(&walk::find(path)?),
        })
    }

    pub fn open(&self, repo: &Arc<Repo>, progress: &dyn Progress) -> Result<Side> {
        Ok(match self {
            Found::Head(head) => version(repo, head)?,
            Found::Path(path) => Side::of_path(path, progress)?,
        })
    }
}

/// A version of the repository.
pub fn version(repo: &Arc<Repo>, head: &Head) -> Result<Side> {
    Ok(Side::of_version(repo, &repo.record(&head.id)?)?)
}

/// Looks up what a target names.
pub fn find(session: &mut Session, target: &Target) -> Result<Found> {
    let version = match target {
        Target::Path(path) => return Ok(Found::Path(path.clone())),
        Target::Version(version) => version,
    };
    match ask!(session, Request::Resolve(version.clone()), Response::Head(h) => h) {
        Ok(head) => Ok(Found::Head(head)),
        Err(e) if Path::new(&version.to_string()).exists() => anyhow::bail!("{e}; for the file, write ./{version}"),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_versions_are_told_apart() {
        let path = |s: &str| target(s) == Ok(Target::Path(PathBuf::from(s)));
        assert!(path("./x") && path("/no/such") && path("..") && path("src/cli") && path("no/such/dir"));
        assert!(!path("src") && !path("acme/no-such@v1") && !path("bert"));
        assert!(target("a b").is_err());
    }
}
