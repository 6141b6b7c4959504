//! Carries a plan out: streams every new file of the result into a file without a name, and hashes it for the import.
//!
//! The files lie on the repository's disk and have no name from the start, so that neither a crash nor Ctrl-C leaves
//! anything. Memory is one stretch of [`CHUNK`] bytes, but for what a method needs of a tensor.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::compute::{self, Sink};
use super::{Input, Output, Part, Source, What, task_vectors};
use crate::model::layout;
use crate::model::name::printable;
use crate::repo::RepoError;
use crate::repo::diff::side::{Side, Tensor};
use crate::repo::hash::{Made, hash_file};
use crate::repo::import::{Entry, Hashed};
use crate::repo::progress::{Progress, Silent};

/// Bytes moved at once.
const CHUNK: u64 = 4 << 20;

/// The files of a result, hashed, and what keeps them there until they are stored.
pub struct Written {
    pub hashed: Hashed,
    _files: Vec<File>,
}

impl Written {
    /// Where a computed file can be read, by other processes of this user too, while this is held.
    pub fn path(&self, name: &str) -> Option<&Path> {
        self.hashed.files().into_iter().find(|f| f.name == name).map(|f| f.source.as_path())
    }
}

/// What carrying out takes beside the plan.
pub struct Means<'a> {
    /// The repository's directory.
    pub dir: &'a Path,
    /// The program for [`Source::Driver`].
    pub driver: Option<&'a str>,
    /// Gram matrices of each parent, for RegMean.
    pub grams: &'a [Side],
    pub progress: &'a dyn Progress,
}

/// Bytes of the new files.
pub fn bytes(outputs: &[Output]) -> u64 {
    let of = |o: &Output| match &o.what {
        What::Stored(_) => 0,
        What::Bytes(b) => b.len() as u64,
        What::Weights(parts) => parts.iter().map(|p| p.length).sum(),
    };
    outputs.iter().map(of).sum()
}

/// Writes and hashes what is new. `outputs` are sorted by path.
pub fn write(means: &Means, inputs: &[Input], outputs: &mut [Output]) -> Result<Written, RepoError> {
    task_vectors::prepare(inputs, outputs, means.progress)?;
    let (mut entries, mut files) = (Vec::new(), Vec::new());
    for o in outputs {
        if let What::Stored(entry) = &o.what {
            entries.push(Entry::Stored(entry.clone()));
            continue;
        }
        let mut file = tempfile::tempfile_in(means.dir).map_err(|e| RepoError::file(means.dir, e))?;
        let fail = |e| RepoError::file(means.dir, e);
        let mut made = Vec::new();
        match &o.what {
            What::Stored(_) => {}
            What::Bytes(bytes) => file.write_all(bytes).map_err(fail)?,
            What::Weights(parts) => {
                for part in parts {
                    made.push(write_part(means, inputs, part, &mut |bytes| file.write_all(bytes).map_err(fail))?);
                }
            }
        }
        file.rewind().map_err(fail)?;
        // The name lasts as long as the file is open here.
        let source = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        let mut hashed = hash_file(&o.path, &source, means.progress)?;
        hashed.pieces.iter_mut().zip(made).for_each(|(piece, made)| piece.made = made);
        entries.push(Entry::File(hashed));
        files.push(file);
    }
    Ok(Written { hashed: Hashed::new(entries), _files: files })
}

/// Writes one piece. How it was made, where that is a formula.
fn write_part(means: &Means, inputs: &[Input], part: &Part, sink: &mut Sink) -> Result<Option<Made>, RepoError> {
    match &part.source {
        Source::Compute(job) => return compute::run(inputs, means.grams, job, means.progress, sink),
        Source::Bytes(bytes) => sink(bytes)?,
        Source::Copy { input, file, offset } => {
            let file = &inputs[*input].side.files[*file];
            let (mut buf, mut at) = (Vec::new(), 0);
            while at < part.length {
                means.progress.check()?;
                buf.resize(CHUNK.min(part.length - at) as usize, 0);
                file.read_parallel(offset + at, &mut buf)?;
                sink(&buf)?;
                at += buf.len() as u64;
            }
        }
        Source::Driver(places) => drive(means, inputs, places, sink)?,
    }
    Ok(None)
}

/// Hands base, A and B to the user's program, each as a safetensors file of the one tensor (of none where it is missing).
fn drive(means: &Means, inputs: &[Input], places: &[Option<usize>; 3], sink: &mut Sink) -> Result<(), RepoError> {
    let dir = tempfile::tempdir().map_err(|e| RepoError::file(Path::new("a temporary directory"), e))?;
    let path = |name: &str| dir.path().join(format!("{name}.safetensors"));
    let tensors: Vec<Option<&Tensor>> =
        inputs.iter().zip(places).map(|(i, at)| at.map(|at| &i.side.tensors[at])).collect();
    for ((name, input), t) in ["base", "a", "b"].iter().zip(inputs).zip(&tensors) {
        write_alone(&path(name), &input.side, *t)?;
    }
    let Some(like) = tensors[1].or(tensors[2]) else { return Ok(()) };
    let name = printable(&like.name);
    let command = format!("{} \"$@\"", means.driver.unwrap_or("false"));
    let mut run = Command::new("sh");
    run.args(["-c", &command, "driver"]).args(["base", "a", "b", "out"].map(path)).env("MGIT_TENSOR", &like.name);
    let status = run.status().map_err(|e| RepoError::refused(format!("cannot run the driver: {e}")))?;
    if !status.success() {
        return Err(RepoError::refused(format!("tensor '{name}': the driver failed ({status})")));
    }
    means.progress.check()?;
    let made = Side::of_path(&path("out"), &Silent)
        .map_err(|e| RepoError::refused(format!("tensor '{name}': the driver's output cannot be read: {e}")))?;
    match &made.tensors[..] {
        [t] if t.dtype == like.dtype && t.shape == like.shape => {
            let mut bytes = vec![0; t.length as usize];
            made.read_tensor(t, 0, &mut bytes)?;
            sink(&bytes)
        }
        _ => Err(RepoError::refused(format!(
            "tensor '{name}': the driver must write one tensor of dtype {} and shape {:?}",
            like.dtype, like.shape
        ))),
    }
}

fn write_alone(path: &Path, side: &Side, t: Option<&Tensor>) -> Result<(), RepoError> {
    let fail = |e| RepoError::file(path, e);
    let info = t.map(|t| json!({(&t.name): {"dtype": t.dtype, "shape": t.shape, "data_offsets": [0, t.length]}}));
    let mut file = File::create_new(path).map_err(fail)?;
    file.write_all(&layout::header(&info.unwrap_or(json!({})))).map_err(fail)?;
    let (mut buf, mut at) = (Vec::new(), 0);
    while let Some(t) = t.filter(|t| at < t.length) {
        buf.resize(CHUNK.min(t.length - at) as usize, 0);
        side.read_tensor(t, at, &mut buf)?;
        file.write_all(&buf).map_err(fail)?;
        at += buf.len() as u64;
    }
    Ok(())
}
