//! What a tensor's samples say of its symbols.
//!
//! Idea: a tensor may hold noise among its values (keys, counters, packed bits), and few samples may meet little else.
//! A block that residuals or magnitudes cannot describe has no say in their tables: it will not be coded by them.

use super::ans::ESCAPE;
use super::residual::Model;
use super::tables::{Counts, no_counts};
use super::{magnitude, mask, residual};

/// Symbols of blocks and their bases.
pub(super) fn of_pairs(model: &Model, pairs: &[(&[u8], &[u8])]) -> Box<Counts> {
    let mut all = no_counts();
    for (raw, base) in pairs {
        add(&mut all, |counts| match mask::split(model, 0, raw, base) {
            Some(split) => mask::count(model, &split, counts),
            None => residual::count(model, raw, base, counts),
        });
    }
    all
}

/// Symbols of blocks alone.
pub(super) fn of_solo<'a>(model: &Model, blocks: impl Iterator<Item = &'a [u8]>) -> Box<Counts> {
    let mut all = no_counts();
    if magnitude::applies(model.spec) {
        blocks.for_each(|raw| add(&mut all, |counts| magnitude::count(model.spec, raw, counts)));
    }
    all
}

/// Adds what `count` finds, unless a quarter of that are escapes.
fn add(all: &mut Counts, count: impl FnOnce(&mut Counts)) {
    let mut counts = no_counts();
    count(&mut counts);
    let total: u32 = counts.iter().flatten().sum();
    let escapes: u32 = counts.iter().map(|c| c[ESCAPE as usize]).sum();
    if escapes * 4 <= total {
        all.iter_mut().flatten().zip(counts.iter().flatten()).for_each(|(a, c)| *a += c);
    }
}
