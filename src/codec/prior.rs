//! A block under the prior tables, whatever the tensor's plan has learned.
//!
//! Idea: the plan is learned from a few blocks. Where those were of another kind than this one, their tables may not
//! have its symbols at all, and then what is true of any tensor (context.rs) is the better guess.
//!
//! Layout: u8 tag, RESIDUAL, MAGNITUDES or MASKED; then that encoding, as of a tensor without parameters.

use super::plane::take;
use super::{Damage, Effort, MAGNITUDES, MASKED, Plan, RESIDUAL, Spec, magnitude, mask, residual};

/// `near`: the base and its index. Appends nothing shorter than the block where nothing applies.
pub(super) fn encode(plan: &Plan, block: u64, raw: &[u8], near: Option<(u8, &[u8])>, out: &mut Vec<u8>) {
    let prior = Plan::prior(plan.spec, plan.effort);
    let model = prior.model();
    let start = out.len();
    if let Some((index, base)) = near.filter(|_| residual::applies(plan.spec)) {
        match mask::split(&model, block, raw, base) {
            Some(split) => {
                out.push(MASKED);
                mask::encode(&model, &split, raw, index, out);
            }
            None => {
                out.push(RESIDUAL);
                residual::encode(&model, block, raw, index, base, out);
            }
        }
    }
    let far = out.len() == start || (out.len() - start) * 4 > raw.len() * 3;
    if far && magnitude::applies(plan.spec) {
        let mut alone = vec![MAGNITUDES];
        magnitude::encode(plan.spec, model.tables, block, raw, &mut alone);
        if out.len() == start || alone.len() < out.len() - start {
            out.truncate(start);
            out.append(&mut alone);
        }
    }
    if out.len() == start {
        out.push(RESIDUAL);
        out.extend_from_slice(raw);
    }
}

pub(super) fn decode(
    spec: Spec,
    block: u64,
    mut encoded: &[u8],
    bases: &[&[u8]],
    out: &mut [u8],
) -> Result<(), Damage> {
    let tag = take(&mut encoded, 1)?[0];
    match tag {
        RESIDUAL | MAGNITUDES | MASKED => Plan::prior(spec, Effort::Default).decode(block, tag, encoded, bases, out),
        _ => Err(Damage("encoding that needs no prior")),
    }
}
