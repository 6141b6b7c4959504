//! Merging versions: a plan as plain data, then one executor that streams it into files for the import.
//!
//! [`three_way`] compares two versions with what both come from, [`method`] computes from any number of parents;
//! both decide for each tensor of the result where its bytes come from ([`Source`]), and [`layout`] makes files of
//! that. Planning reads headers, never a tensor. [`write`] carries a plan out. Which versions the names mean,
//! and what becomes of an outcome, is the caller's business.

pub mod compute;
pub mod emr;
pub mod layout;
pub mod method;
pub mod regmean;
pub mod task_vectors;
pub mod text;
pub mod three_way;
pub mod write;

use std::sync::Arc;

pub use compute::Sink;
use emr::Emr;
use regmean::RegMean;
use task_vectors::{Dare, Ties};

use serde::Serialize;

use super::diff::side::{Side, Tensor};
use super::engine::label;
use super::{Head, Repo, RepoError};
use crate::codec::Formula;
use crate::model::id::Id;
use crate::model::record::{FileEntry, VersionRecord};

/// Do the changes of both sides combine?
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// They do: no conflict.
    None,
    /// Tensors that feed each other changed on different sides: tests must tell.
    Possible,
    /// The same thing changed on both.
    Conflict,
}

/// A version that takes part, opened for reading.
pub struct Input {
    /// `model@version`.
    pub label: String,
    pub record: VersionRecord,
    pub side: Side,
}

impl Input {
    /// Reads headers only.
    pub fn open(repo: &Arc<Repo>, head: &Head) -> Result<Input, RepoError> {
        Input::of(repo, label(head), repo.record(&head.id)?)
    }

    /// A version that is in a pack, named or not.
    pub fn of(repo: &Arc<Repo>, label: String, record: VersionRecord) -> Result<Input, RepoError> {
        let side = Side::of_version(repo, &record)?;
        Ok(Input { label, record, side })
    }

    fn entry(&self, path: &str) -> Option<&FileEntry> {
        let at = self.record.files.binary_search_by(|f| f.path.as_str().cmp(path)).ok()?;
        Some(&self.record.files[at])
    }

    /// Are there tensors in this file?
    fn has_tensors(&self, path: &str) -> bool {
        self.side.tensors.iter().any(|t| self.side.files[t.file].path == path)
    }
}

/// What became of a tensor or file that is not everywhere the same.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Note {
    pub name: String,
    pub outcome: Outcome,
    /// On which side it changed, and how: `a: changed`, `both: changed`.
    pub change: String,
}

/// The whole merge. `outcome` is the worst of all notes.
pub struct Plan {
    pub outcome: Outcome,
    pub tensors: Vec<Note>,
    pub files: Vec<Note>,
    /// Sorted by path. What conflicts is left out.
    pub outputs: Vec<Output>,
}

impl Plan {
    /// All tensors that are computed.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        jobs(&self.outputs)
    }
}

fn jobs(outputs: &[Output]) -> impl Iterator<Item = &Job> {
    let parts = outputs.iter().filter_map(|o| if let What::Weights(parts) = &o.what { Some(parts) } else { None });
    parts.flatten().filter_map(|p| if let Source::Compute(job) = &p.source { Some(job) } else { None })
}

/// A path of the result.
pub struct Output {
    pub path: String,
    pub what: What,
}

pub enum What {
    /// An entry of one of the inputs as it is.
    Stored(FileEntry),
    Bytes(Vec<u8>),
    /// A safetensors file, piece by piece in file order.
    Weights(Vec<Part>),
}

pub struct Part {
    pub length: u64,
    pub source: Source,
}

/// Where bytes come from. Numbers are places: of an input, of a tensor in its side.
#[derive(Clone)]
pub enum Source {
    Bytes(Vec<u8>),
    /// A stretch of an input's file.
    Copy {
        input: usize,
        file: usize,
        offset: u64,
    },
    /// What a program of the user's makes of base, A and B.
    Driver([Option<usize>; 3]),
    /// What a method makes of the parents.
    Compute(Job),
}

/// A tensor to compute. Parent `i` is input `i`, the base the one after them.
#[derive(Clone)]
pub struct Job {
    /// Places of the tensor in each parent.
    pub parents: Vec<usize>,
    /// And in the base, where the method has one.
    pub base: Option<usize>,
    pub how: How,
}

/// The method, with the tensor's own parameters.
#[derive(Clone)]
pub enum How {
    /// Of the base, if there is one, and the parents.
    Formula(Formula),
    /// How far from the first parent to the second.
    Slerp(f64),
    Ties(Ties),
    Dare(Dare),
    RegMean(RegMean),
    Emr(Emr),
}

/// A tensor of the result.
#[derive(Clone)]
pub struct Decided {
    pub scope: String,
    pub name: String,
    pub dtype: String,
    pub shape: Vec<u64>,
    pub length: u64,
    /// The file that it goes to.
    pub path: String,
    /// Of its content, where an input has it.
    pub id: Option<Id>,
    pub source: Source,
}

impl Decided {
    /// A tensor of an input as it is.
    pub fn taken(inputs: &[Input], input: usize, t: &Tensor) -> Decided {
        let source = Source::Copy { input, file: t.file, offset: t.offset };
        Decided { id: Some(t.id), ..Decided::made(inputs, input, t, source) }
    }

    /// One of this name, dtype and shape, of other content.
    pub fn made(inputs: &[Input], input: usize, t: &Tensor, source: Source) -> Decided {
        Decided {
            scope: t.scope.clone(),
            name: t.name.clone(),
            dtype: t.dtype.clone(),
            shape: t.shape.clone(),
            length: t.length,
            path: inputs[input].side.files[t.file].path.clone(),
            id: None,
            source,
        }
    }
}
