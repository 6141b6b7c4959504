//! The second pass of an import: every object that is new, block by block, into a pack.
//!
//! Blocks of several objects are encoded together in batches of bounded size on all cores, and written
//! in file order, so that a version's blocks lie one after the other. Each block's bytes are compared with
//! the value that the first pass found, and each encoding is decoded again before it is trusted: what the
//! codec cannot give back is stored raw.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rayon::prelude::*;

use super::hash::{HashedFile, HashedPiece};
use super::progress::Progress;
use super::read::{BaseBlock, OpenObject};
use super::{Repo, RepoError};
use crate::codec::{self, Effort, Plan, Spec};
use crate::model::dtype::Elem;
use crate::model::id::{BLOCK, Id, block_count, block_len, block_value};
use crate::model::object::{BlockInfo, ObjectRecord};
use crate::store::pack::PackWriter;

/// Decoded bytes of one batch: what is in memory at once, and once more encoded.
const BATCH: u64 = 8 << 20;
/// Blocks shown to the codec for its choice: one in three, up to about 1 MiB.
const SAMPLES: u64 = 16;

/// An object to store, and the base that was found for it.
pub struct Todo<'a> {
    pub file: &'a HashedFile,
    pub piece: &'a HashedPiece,
    pub base: Option<Arc<OpenObject>>,
}

impl Todo<'_> {
    fn length(&self) -> u64 {
        self.piece.piece.length
    }

    fn spec(&self) -> Spec {
        let p = &self.piece.piece;
        Spec { elem: Elem::of(p.dtype()), row_bytes: p.row_bytes() as usize }
    }

    /// The bytes of block `index`, equal to those that were hashed.
    fn raw(&self, index: u64) -> Result<Vec<u8>, RepoError> {
        let mut raw = vec![0; block_len(self.length(), index)];
        let at = self.piece.piece.offset + index * BLOCK;
        File::open(&self.file.source)
            .and_then(|f| f.read_exact_at(&mut raw, at))
            .map_err(|_| RepoError::Changed(self.file.source.clone()))?;
        match block_value(&raw, index, self.length()) == self.piece.values[index as usize] {
            true => Ok(raw),
            false => Err(RepoError::Changed(self.file.source.clone())),
        }
    }

    /// `None` also where the base is damaged: what is new is not lost with what is old.
    fn base_block(&self, repo: &Repo, index: u64) -> Option<BaseBlock> {
        let len = block_len(self.length(), index);
        let read = repo.base_block(self.base.as_ref()?, index, len, true);
        read.map_err(|e| log::warn!("no base for block {index} of {}: {e}", self.piece.id)).ok()
    }

    /// Shows the codec blocks from all over the object.
    fn plan(&self, repo: &Repo, effort: Effort) -> Result<Plan, RepoError> {
        let n = block_count(self.length());
        let take = n.div_ceil(3).min(SAMPLES);
        let mut raws = Vec::new();
        for i in 0..take {
            let index = i * n / take;
            raws.push((self.raw(index)?, self.base_block(repo, index)));
        }
        let samples: Vec<(&[u8], Vec<&[u8]>)> =
            raws.iter().map(|(raw, base)| (&raw[..], base.iter().map(BaseBlock::bytes).collect())).collect();
        Ok(Plan::choose(self.spec(), effort, &samples))
    }
}

/// An object whose blocks are being written.
struct Active {
    plan: Plan,
    blocks: Vec<BlockInfo>,
}

/// Writes all of `todo` to the pack, in order.
pub fn encode_all(
    repo: &Repo,
    todo: &[Todo],
    effort: Effort,
    writer: &mut PackWriter,
    progress: &dyn Progress,
) -> Result<(), RepoError> {
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
            .map(|&(t, index)| encode_block(repo, &todo[t], &active[t].as_ref().expect("started").plan, index))
            .collect::<Result<Vec<_>, RepoError>>()?;
        for (&(t, index), (tag, bytes)) in batch.iter().zip(&encoded) {
            writer.put_block(bytes)?;
            let a = active[t].as_mut().expect("started");
            a.blocks.push(BlockInfo { tag: *tag, encoded: bytes.len() as u32 });
            progress.stored(block_len(todo[t].length(), index) as u64);
            if a.blocks.len() as u64 == block_count(todo[t].length()) {
                let done = active[t].take().expect("started");
                writer.put_object(&finish(&todo[t], done))?;
            }
        }
    }
    Ok(())
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
    let plans = first.par_iter().map(|&t| todo[t].plan(repo, effort)).collect::<Result<Vec<_>, RepoError>>()?;
    for (t, plan) in first.into_iter().zip(plans) {
        active[t] = Some(Active { plan, blocks: Vec::new() });
    }
    Ok(())
}

fn encode_block(repo: &Repo, todo: &Todo, plan: &Plan, index: u64) -> Result<(u8, Vec<u8>), RepoError> {
    let raw = todo.raw(index)?;
    let base = todo.base_block(repo, index);
    let bases: Vec<&[u8]> = base.iter().map(BaseBlock::bytes).collect();
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
    let base = todo.base.as_ref().filter(|_| used);
    ObjectRecord {
        id: todo.piece.id,
        dtype: p.dtype().to_owned(),
        shape: p.shape(),
        length: p.length,
        cost: base.map_or(1, |b| b.stored.record.cost + 1),
        row_bytes: p.row_bytes(),
        bases: base.map(|b| b.id()).into_iter().collect::<Vec<Id>>(),
        params: done.plan.params(),
        blocks: done.blocks,
        values: todo.piece.values.clone(),
    }
}
