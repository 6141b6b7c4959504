//! The second pass of an import: every object that is new, block by block, into a pack.
//!
//! Blocks of several objects are encoded together in batches of bounded size on all cores, and written
//! in file order, so that a version's blocks lie one after the other. Each block's bytes are compared with
//! the value that the first pass found, and each encoding is decoded again before it is trusted: what the
//! codec cannot give back is stored raw.

use rayon::prelude::*;

use super::choose::{Expected, Source, choose};
use super::hash::{HashedFile, HashedPiece};
use super::pair::Near;
use super::progress::Progress;
use super::read::cost;
use super::{Repo, RepoError};
use crate::codec::{self, Effort, Formula, Plan, Spec};
use crate::model::dtype::Elem;
use crate::model::id::{BLOCK, Id, block_count, block_len, block_value};
use crate::model::object::{Base, BlockInfo, ObjectRecord};
use crate::store::pack::PackWriter;

/// Decoded bytes of one batch: what is in memory at once, and once more encoded.
const BATCH: u64 = 8 << 20;

/// An object to store, and the stored tensors near it, the nearest first.
pub struct Todo<'a> {
    pub file: &'a HashedFile,
    pub piece: &'a HashedPiece,
    pub near: Vec<Near>,
    /// What it was computed by.
    pub made: Option<Source>,
}

impl Todo<'_> {
    pub(super) fn length(&self) -> u64 {
        self.piece.piece.length
    }

    pub(super) fn spec(&self) -> Spec {
        let p = &self.piece.piece;
        Spec { elem: Elem::of(p.dtype()), row_bytes: p.row_bytes() as usize }
    }

    /// The bytes of block `index`, equal to those that were hashed.
    pub(super) fn raw(&self, index: u64) -> Result<Vec<u8>, RepoError> {
        let mut raw = vec![0; block_len(self.length(), index)];
        let at = self.piece.piece.offset + index * BLOCK;
        self.file.read_at(&mut raw, at)?;
        match block_value(&raw, index, self.length()) == self.piece.values[index as usize] {
            true => Ok(raw),
            false => Err(RepoError::Changed(self.file.source.clone())),
        }
    }
}

/// An object whose blocks are being written.
struct Active {
    source: Source,
    plan: Plan,
    blocks: Vec<BlockInfo>,
}

/// Bytes of the tensors that were built on others, and of those that differ by matrices of low rank.
#[derive(Default)]
pub struct Tally {
    built: u64,
    low_rank: u64,
    /// What each object was built on.
    pub bases: Vec<(Id, Vec<Base>)>,
}

impl Tally {
    /// Is most of what changed a merged low-rank adapter?
    pub fn is_low_rank(&self) -> bool {
        self.low_rank * 5 >= self.built * 4 && self.low_rank > 0
    }

    fn add(&mut self, todo: &Todo, source: &Source) {
        if !source.bases.is_empty() {
            self.built += todo.length();
        }
        if matches!(source.formula, Some(Formula::LowRank(_))) {
            self.low_rank += todo.length();
        }
    }
}

/// Writes all of `todo` to the pack, in order.
pub fn encode_all(
    repo: &Repo,
    todo: &[Todo],
    effort: Effort,
    writer: &mut PackWriter,
    progress: &dyn Progress,
) -> Result<Tally, RepoError> {
    let mut tally = Tally::default();
    let mut active: Vec<Option<Active>> = todo.iter().map(|_| None).collect();
    let mut jobs = todo
        .iter()
        .enumerate()
        .flat_map(|(t, todo)| (0..block_count(todo.length())).map(move |index| (t, index)))
        .peekable();
    while jobs.peek().is_some() {
        progress.check()?;
        let batch: Vec<(usize, u64)> = jobs.by_ref().take((BATCH / BLOCK) as usize).collect();
        start(repo, todo, &batch, effort, &mut active)?;
        let encoded = batch
            .par_iter()
            .map(|&(t, index)| encode_block(repo, &todo[t], active[t].as_ref().expect("started"), index))
            .collect::<Result<Vec<_>, RepoError>>()?;
        for (&(t, index), (tag, bytes)) in batch.iter().zip(&encoded) {
            writer.put_block(bytes)?;
            let a = active[t].as_mut().expect("started");
            a.blocks.push(BlockInfo { tag: *tag, encoded: bytes.len() as u32 });
            progress.stored(block_len(todo[t].length(), index) as u64);
            if a.blocks.len() as u64 == block_count(todo[t].length()) {
                let done = active[t].take().expect("started");
                tally.add(&todo[t], &done.source);
                let record = finish(&todo[t], done);
                writer.put_object(&record)?;
                tally.bases.push((record.id, record.bases));
            }
        }
    }
    Ok(tally)
}

/// Plans for the objects whose first block is in the batch.
fn start(
    repo: &Repo,
    todo: &[Todo],
    batch: &[(usize, u64)],
    effort: Effort,
    active: &mut [Option<Active>],
) -> Result<(), RepoError> {
    let first: Vec<usize> = batch.iter().filter(|(_, index)| *index == 0).map(|(t, _)| *t).collect();
    let plans = first.par_iter().map(|&t| choose(repo, &todo[t], effort)).collect::<Result<Vec<_>, RepoError>>()?;
    for (t, (source, plan)) in first.into_iter().zip(plans) {
        active[t] = Some(Active { source, plan, blocks: Vec::new() });
    }
    Ok(())
}

fn encode_block(repo: &Repo, todo: &Todo, active: &Active, index: u64) -> Result<(u8, Vec<u8>), RepoError> {
    let raw = todo.raw(index)?;
    let plan = &active.plan;
    let expected = active.source.expected(repo, todo.spec(), index, raw.len());
    let bases: Vec<&[u8]> = expected.iter().flat_map(Expected::bytes).collect();
    let mut out = Vec::with_capacity(raw.len() + 64);
    let tag = plan.encode(index, &raw, &bases, &mut out);
    let mut back = vec![0; raw.len()];
    if plan.decode(index, tag, &out, &bases, &mut back).is_ok() && back == raw {
        return Ok((tag, out));
    }
    log::error!("codec tag {tag} did not give block {index} of {} back; stored raw", todo.piece.id);
    Ok((codec::RAW, raw))
}

fn finish(todo: &Todo, done: Active) -> ObjectRecord {
    let p = &todo.piece.piece;
    let used = done.blocks.iter().any(|b| codec::needs_bases(b.tag));
    let source = if used { done.source } else { Source::default() };
    ObjectRecord {
        id: todo.piece.id,
        dtype: p.dtype().to_owned(),
        shape: p.shape(),
        length: p.length,
        cost: cost(todo.spec().elem.width(), &source.bases).expect("chosen so"),
        row_bytes: p.row_bytes(),
        bases: source.bases.iter().map(|b| Base { id: b.object.id(), mapping: b.mapping }).collect(),
        params: codec::join_params(source.formula.as_ref(), &done.plan, done.blocks.iter().map(|b| b.tag)),
        blocks: done.blocks,
        values: todo.piece.values.clone(),
        empty_frames: false,
    }
}
