//! What a block should be, given its bases, where that is more than "the same": a formula for the whole tensor.
//!
//! The block that a formula predicts stands in for the base: the encodings code what is left, often nothing. A formula is
//! found by its fit (fit_*.rs) from samples, written once for the tensor, and computed in exactly defined
//! arithmetic, so that every machine predicts the same bytes. It may be wrong about any value; it is never trusted.
//!
//! | kind | name | file | bases |
//! |---|---|---|---|
//! | 1 | MIX | mix.rs | 1 to 7 of any float type, the same elements |
//! | 2 | LOW_RANK | low_rank.rs | one, the same elements |
//! | 3 | QUANTIZED | quantized.rs | one, the same elements |
//! | 4 | TRANSPOSED | here | one of the child's type, all of it |
//! | 5 | GATED | mix.rs | as MIX; each value is the mix, or the first base's (chosen.rs says which) |
//!
//! Layout: u8 kind, then the kind's own, GATED's being MIX's. TRANSPOSED: varint columns of the base.

mod fit_low_rank;
mod fit_mix;
mod linear;
mod low_rank;
mod mix;
mod number;
mod quantized;

#[cfg(test)]
mod tests;

use super::plane::{at_end, get_varint, put_varint, take};
use super::{BLOCK, Damage, Spec};
use crate::model::dtype::Elem;
pub use fit_low_rank::fit_low_rank;
pub use fit_mix::{fit_coefficients, fit_mix};
pub use low_rank::LowRank;
pub use mix::Mix;
use mix::{Arithmetic, Origin, Post};
pub use number::{Real, load, rounded, store};
pub use quantized::{Quantized, QuantizedFit};

/// Longest formula, in bytes.
pub const MAX_FORMULA: usize = 1 << 22;

/// A block of a tensor and what its bases have in its place, for a fit.
#[derive(Clone, Debug)]
pub struct Sample<'a> {
    pub block: u64,
    pub raw: &'a [u8],
    pub bases: Vec<&'a [u8]>,
}

/// How a child's bytes follow from its bases'.
#[derive(Clone, Debug)]
pub enum Formula {
    Mix(Mix),
    LowRank(LowRank),
    Quantized(Quantized),
    /// Columns of the base, which are the child's rows.
    Transposed(usize),
    Gated(Mix),
}

impl Formula {
    /// The base's numbers, rounded to the child's type.
    pub fn cast() -> Formula {
        Formula::Mix(Mix::cast())
    }

    /// `(w0 p0 + w1 p1 + …) / over`, in f32; `wide`: in f64.
    pub fn linear(weights: Vec<f64>, over: Option<f64>, wide: bool) -> Formula {
        let post = over.map_or(Post::None, Post::Over);
        Formula::Mix(Mix { origin: Origin::None, post, arithmetic: arithmetic(wide), weights })
    }

    /// `p0 + (w1 (p1 - p0) + w2 (p2 - p0) + …)`, in f32; `wide`: in f64.
    pub fn task(weights: Vec<f64>, wide: bool) -> Formula {
        Formula::Mix(Mix { origin: Origin::Apart, post: Post::None, arithmetic: arithmetic(wide), weights })
    }

    /// `p0 + scale p1`, or `p0`.
    pub fn gated(scale: f64, wide: bool) -> Formula {
        let (origin, post) = (Origin::None, Post::None);
        Formula::Gated(Mix { origin, post, arithmetic: arithmetic(wide), weights: vec![1.0, scale] })
    }

    /// Is each value the predicted or the first base's?
    pub fn is_gated(&self) -> bool {
        matches!(self, Formula::Gated(_))
    }

    /// Few enough bases to be stored?
    pub fn is_storable(&self) -> bool {
        self.bases() <= mix::MAX_BASES
    }

    /// Can elements of this type take part in arithmetic?
    pub fn computes(elem: Elem) -> bool {
        number::is_number(elem)
    }

    /// Can numbers of `from` be cast to `to`?
    pub fn casts(from: Elem, to: Elem) -> bool {
        from != to && number::is_number(from) && number::is_number(to)
    }

    pub fn bases(&self) -> usize {
        match self {
            Formula::Mix(mix) | Formula::Gated(mix) => mix.bases(),
            _ => 1,
        }
    }

    pub fn write(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Formula::Mix(mix) => {
                out.push(1);
                mix.write(&mut out);
            }
            Formula::LowRank(low_rank) => {
                out.push(2);
                low_rank.write(&mut out);
            }
            Formula::Quantized(quantized) => {
                out.push(3);
                quantized.write(&mut out);
            }
            Formula::Transposed(columns) => {
                out.push(4);
                put_varint(*columns, &mut out);
            }
            Formula::Gated(mix) => {
                out.push(5);
                mix.write(&mut out);
            }
        }
        out
    }

    pub fn read(mut input: &[u8]) -> Result<Formula, Damage> {
        let input = &mut input;
        let formula = match take(input, 1)?[0] {
            1 => Formula::Mix(Mix::read(input)?),
            2 => Formula::LowRank(LowRank::read(input)?),
            3 => Formula::Quantized(Quantized::read(input)?),
            4 => Formula::Transposed(get_varint(input)?),
            5 => Formula::Gated(Mix::read(input)?),
            _ => return Err(Damage("unknown formula")),
        };
        at_end(input)?;
        Ok(formula)
    }

    /// About how many bytes it takes in memory.
    pub fn memory(&self) -> u64 {
        match self {
            Formula::LowRank(low_rank) => low_rank.memory(),
            Formula::Quantized(quantized) => quantized.memory(),
            _ => 64,
        }
    }

    /// Fills `out` with what block `block` should be. `bases`: for each its type and its bytes, as the kind says.
    pub fn predict(&self, spec: Spec, block: u64, bases: &[(Elem, &[u8])], out: &mut [u8]) -> Result<(), Damage> {
        let n = out.len() / spec.elem.width();
        out[n * spec.elem.width()..].fill(0);
        if bases.len() != self.bases() {
            return Err(Damage("a formula lacks bases"));
        }
        if let Formula::Transposed(columns) = self {
            let [(elem, base)] = bases else { return Err(Damage("a formula lacks bases")) };
            let same = *elem == spec.elem;
            return if same { transpose(spec, block, *columns, base, out) } else { Err(Damage("a base's type")) };
        }
        let fits = |(elem, bytes): &(Elem, &[u8])| number::is_number(*elem) && bytes.len() >= n * elem.width();
        if !bases.iter().all(fits) {
            return Err(Damage("a base is too short for its formula"));
        }
        match self {
            Formula::Mix(mix) | Formula::Gated(mix) if number::is_number(spec.elem) => mix.predict(spec, bases, out),
            Formula::LowRank(low_rank) if number::is_number(spec.elem) => {
                low_rank.predict(spec, first_element(spec, block), bases[0], out)?
            }
            Formula::Quantized(q) if spec.elem == quantized::ELEM => {
                q.predict(first_element(spec, block), bases[0], out)?
            }
            _ => return Err(Damage("a formula for another type")),
        }
        Ok(())
    }
}

fn arithmetic(wide: bool) -> Arithmetic {
    if wide { Arithmetic::F64 } else { Arithmetic::F32 }
}

/// Of the block; too many are a damaged record, which the formulas' own bounds catch.
fn first_element(spec: Spec, block: u64) -> usize {
    (block as usize).saturating_mul(BLOCK / spec.elem.width())
}

fn transpose(spec: Spec, block: u64, columns: usize, base: &[u8], out: &mut [u8]) -> Result<(), Damage> {
    let width = spec.elem.width();
    let rows = (base.len() / width).checked_div(columns).filter(|r| *r > 0).ok_or(Damage("a base's shape"))?;
    let first = first_element(spec, block);
    for (i, out) in out.chunks_exact_mut(width).enumerate() {
        let at = first.saturating_add(i);
        let from = (at % rows * columns).saturating_add(at / rows).saturating_mul(width);
        out.copy_from_slice(base.get(from..from.saturating_add(width)).ok_or(Damage("a base's shape"))?);
    }
    Ok(())
}
