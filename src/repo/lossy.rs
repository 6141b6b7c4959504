//! Lossy on request: a model's weights moved, each by no more than a bound, to where they take little; and the gate that
//! the result has to pass.
//!
//! A tensor is moved onto a grid around what its bases predict ([`super::choose::on_grid`]), where that saves enough; the
//! rest of the model stays as it is, and so does a tensor that is stored already. What comes of it is a directory of
//! ordinary files, which is then stored exactly, under a record that says how far it is from what. Every weight is checked
//! against the bound after it was rounded to its type.
//!
//! Same weights, same bases, same bound: same bytes.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rayon::prelude::*;

use super::choose::{Expected, Source, on_grid};
use super::encode::Todo;
use super::hash::{HashedFile, HashedPiece, Made, hash_file};
use super::import::{Entry, Hashed};
use super::pair::{Candidates, pair};
use super::progress::Progress;
use super::repack::stored_file;
use super::tests::{Subject, content, outcomes, run_on};
use super::{Repo, RepoError};
use crate::codec::{self, Effort, Errors};
use crate::model::id::{BLOCK, Id, block_count};
use crate::model::lossy::{Bound, Exact, Gated, Limits, judge};
use crate::model::record::{EntryKind, FileEntry, VersionRecord};
use crate::model::test::{Flips, Test, TestResult, Verdict};

/// Blocks that are moved side by side.
const BATCH: u64 = 128;

/// A model with some of its weights moved.
pub struct Moved {
    pub hashed: Hashed,
    pub errors: Errors,
    /// The files that differ now, as they were.
    pub files: Vec<Exact>,
}

/// A stored version's files, to be moved.
pub fn stored_entries(repo: &Arc<Repo>, record: &VersionRecord) -> Result<Vec<Entry>, RepoError> {
    let entry = |f: &FileEntry| match f.kind == EntryKind::File && f.path.ends_with(".safetensors") {
        true => stored_file(repo, f).map(Entry::File),
        false => Ok(Entry::Stored(f.clone())),
    };
    record.files.iter().map(entry).collect()
}

/// Moves the weights. Files that change are written below `dir`; no tensor of `exact` is a base.
pub fn quantize(
    repo: &Repo,
    exact: &[Entry],
    bases: &[Id],
    bound: Bound,
    effort: Effort,
    dir: &Path,
    progress: &dyn Progress,
) -> Result<Moved, RepoError> {
    let candidates = Candidates::of_versions(repo, bases);
    let mover = Mover { repo, candidates, bound, effort, dir, progress };
    let (mut entries, mut errors, mut files) = (Vec::new(), Errors::default(), Vec::new());
    for entry in exact {
        let moved = match entry {
            Entry::File(file) => mover.file(file)?,
            _ => None,
        };
        let (Entry::File(was), Some((file, by))) = (entry, moved) else {
            entries.push(entry.clone());
            continue;
        };
        if file.digest == was.digest {
            entries.push(entry.clone()); // All lay on the grid already.
            continue;
        }
        files.push(Exact { path: was.name.clone(), blake3: was.digest });
        errors.add(&by);
        entries.push(Entry::File(file));
    }
    Ok(Moved { hashed: Hashed::new(entries), errors, files })
}

struct Mover<'a> {
    repo: &'a Repo,
    candidates: Candidates,
    bound: Bound,
    effort: Effort,
    dir: &'a Path,
    progress: &'a dyn Progress,
}

impl Mover<'_> {
    /// The file with its weights moved; `None` where none is worth it.
    fn file(&self, file: &HashedFile) -> Result<Option<(HashedFile, Errors)>, RepoError> {
        let tensors: Vec<_> = file.pieces.iter().filter(|p| !p.piece.dtype().is_empty()).map(|p| (file, p)).collect();
        let near = pair(self.repo, &self.candidates, &tensors)?;
        let todo = |((file, piece), near)| Todo { file, piece, near, made: None };
        let todo: Vec<Todo> = tensors.into_iter().zip(near).map(todo).collect();
        let grid = |t: &Todo| {
            self.progress.check()?;
            on_grid(self.repo, t, self.bound, self.effort)
        };
        let grids = todo.par_iter().map(grid).collect::<Result<Vec<_>, RepoError>>()?;
        if grids.iter().all(Option::is_none) {
            return Ok(None);
        }
        let path = self.dir.join(&file.name);
        let errors = self.write(&path, file, &todo, &grids)?;
        let mut moved = hash_file(&file.name, &path, self.progress)?;
        let mut grids = grids.into_iter();
        for piece in moved.pieces.iter_mut().filter(|p| !p.piece.dtype().is_empty()) {
            let made = |(s, _): (Source, f64)| Made {
                bases: s.bases.iter().map(|b| b.object.id()).collect(),
                formula: s.formula,
                step: s.step,
            };
            piece.made = grids.next().flatten().map(made);
        }
        Ok(Some((moved, errors)))
    }

    fn write(
        &self,
        path: &Path,
        file: &HashedFile,
        todo: &[Todo],
        grids: &[Option<(Source, f64)>],
    ) -> Result<Errors, RepoError> {
        let failed = |e| RepoError::file(path, e);
        fs::create_dir_all(path.parent().unwrap_or(self.dir)).map_err(failed)?;
        let out = File::create_new(path).map_err(failed)?;
        out.set_len(file.size).map_err(failed)?;
        let mut errors = Errors::default();
        let mut tensors = todo.iter().zip(grids);
        for piece in &file.pieces {
            let tensor = if piece.piece.dtype().is_empty() { None } else { tensors.next() };
            match tensor {
                Some((todo, Some((source, bound)))) => errors.add(&self.tensor(&out, path, todo, source, *bound)?),
                Some((todo, None)) => {
                    let weights = piece.piece.length / todo.spec().elem.width() as u64;
                    let counts = codec::can_step(todo.spec().elem);
                    errors.weights += if counts { weights } else { 0 };
                    self.copy(&out, path, file, piece)?;
                }
                None => self.copy(&out, path, file, piece)?,
            }
        }
        Ok(errors)
    }

    fn copy(&self, out: &File, path: &Path, file: &HashedFile, piece: &HashedPiece) -> Result<(), RepoError> {
        let (mut buf, mut at) = (Vec::new(), piece.piece.offset);
        let end = at + piece.piece.length;
        while at < end {
            self.progress.check()?;
            buf.resize((end - at).min(BATCH * BLOCK) as usize, 0);
            file.read_at(&mut buf, at)?;
            out.write_all_at(&buf, at).map_err(|e| RepoError::file(path, e))?;
            at += buf.len() as u64;
        }
        Ok(())
    }

    /// Writes one tensor, moved; each weight by no more than `bound`.
    fn tensor(&self, out: &File, path: &Path, todo: &Todo, source: &Source, bound: f64) -> Result<Errors, RepoError> {
        let (spec, step, mut errors) = (todo.spec(), source.step.unwrap_or(bound), Errors::default());
        let blocks: Vec<u64> = (0..block_count(todo.length())).collect();
        for batch in blocks.chunks(BATCH as usize) {
            self.progress.check()?;
            let moved = |index: &u64| {
                let raw = todo.raw(*index)?;
                let mut bytes = vec![0; raw.len()];
                let expected = source.expected(self.repo, spec, *index, raw.len());
                let base = expected.as_ref().and_then(|e: &Expected| e.bytes().next());
                let errors = codec::quantize(spec.elem, &raw, base, step, bound, &mut bytes);
                let at = todo.piece.piece.offset + index * BLOCK;
                out.write_all_at(&bytes, at).map_err(|e| RepoError::file(path, e))?;
                Ok(errors)
            };
            let all = batch.par_iter().map(moved).collect::<Result<Vec<_>, RepoError>>()?;
            all.iter().for_each(|e| errors.add(e));
        }
        match errors.max <= bound {
            true => Ok(errors),
            false => Err(RepoError::damaged(format!("a weight was moved by {}, the bound is {bound}", errors.max))),
        }
    }
}

/// The tests that are for a model, what they gave on it as it is, and how much worse it may get.
pub struct Gate {
    tests: Vec<Test>,
    exact: Vec<TestResult>,
    limits: Limits,
    timeout: Option<Duration>,
}

/// What the tests gave on a lossy model.
pub struct Passed {
    pub gated: Vec<Gated>,
    /// Of no version yet.
    pub results: Vec<TestResult>,
}

impl Gate {
    /// Runs the tests on the exact model, but for those of which `known` has what they gave. `None` where no test is for it.
    pub fn new(
        repo: &Repo,
        (tests, known): (Vec<Test>, &[TestResult]),
        exact: &Subject,
        limits: Limits,
        timeout: Option<Duration>,
        progress: &dyn Progress,
    ) -> Result<Option<Gate>, RepoError> {
        let mut results = Vec::new();
        for test in &tests {
            let same = |r: &&TestResult| r.verdict == Verdict::Pass && content(test).is_ok_and(|now| r.content == now);
            match known.iter().find(|r| r.test == test.name).filter(same) {
                Some(known) => results.push(known.clone()),
                None => results.extend(run_on(repo, std::slice::from_ref(test), exact, timeout, progress)?),
            }
        }
        Ok((!results.is_empty()).then_some(Gate { tests, exact: results, limits, timeout }))
    }

    /// Runs the tests on the lossy model; why it may not be.
    pub fn pass(
        &self,
        repo: &Repo,
        lossy: &Subject,
        progress: &dyn Progress,
    ) -> Result<Result<Passed, String>, RepoError> {
        let results = run_on(repo, &self.tests, lossy, self.timeout, progress)?;
        let mut gated = Vec::new();
        for after in &results {
            let Some(before) = self.exact.iter().find(|r| r.test == after.test) else { continue };
            let flips = match (outcomes(repo, before)?, outcomes(repo, after)?) {
                (Some(x), Some(y)) => Some(Flips::between(&x, &y)),
                (Some(_), None) => return Ok(Err(format!("test {} no longer tells of its examples", after.test))),
                _ => None,
            };
            let metric = self.tests.iter().find(|t| t.name == after.test).and_then(|t| t.metric.as_ref());
            match judge(&self.limits, metric, (before, after), flips.as_ref()) {
                Ok(one) => gated.push(one),
                Err(why) => return Ok(Err(why)),
            }
        }
        if !results.iter().any(|r| r.verdict == Verdict::Pass) {
            return Ok(Err("no test passes, so none can tell".to_owned()));
        }
        Ok(Ok(Passed { gated, results }))
    }
}

/// Makes a directory of a model's files by links to where they lie, but for those that are there. `at`: where one lies that is stored.
pub fn lay_out(entries: &[Entry], at: impl Fn(&str) -> PathBuf, dir: &Path) -> Result<(), RepoError> {
    for entry in entries {
        let (name, to) = match entry {
            Entry::Directory(name) => (name, None),
            Entry::Stored(f) if f.kind == EntryKind::Directory => (&f.path, None),
            Entry::Stored(f) => (&f.path, Some(at(&f.path))),
            Entry::File(f) if f.stored.is_some() => (&f.name, Some(at(&f.name))),
            Entry::File(f) => (&f.name, Some(f.source.canonicalize().map_err(|e| RepoError::file(&f.source, e))?)),
        };
        let path = dir.join(name);
        let failed = |e| RepoError::file(&path, e);
        let above = if to.is_some() { path.parent().unwrap_or(dir) } else { &path };
        fs::create_dir_all(above).map_err(failed)?;
        if let Some(to) = to.filter(|_| fs::symlink_metadata(&path).is_err()) {
            symlink(to, &path).map_err(failed)?;
        }
    }
    Ok(())
}
