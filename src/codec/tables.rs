//! The tables of one tensor, as its parameters.
//!
//! Idea: counts of some blocks, held to the prior (context.rs) where they are few. What is stored for a symbol is
//! how far its weight is from the prior's, in quarter bits: nearly always near 0 and cheap.
//!
//! Layout: for each context u8 n, then n signed levels for the symbols in the order 255, 254, 253, 0, 1, 2 …; all that as
//! one run of bytes, its u16 length before it (plane.rs).

use super::Damage;
use super::ans::{CONTEXTS, Tables, Weights};
use super::context::{KIND, PRIOR, TRAILING, power};
use super::plane::{self, take};
use super::residual::KINDS;

pub(super) type Counts = [[u32; 256]; CONTEXTS];

const HELD: f64 = 12.0;
/// Bits that a level must save in the samples.
const PAYS: f64 = 4.0;

pub(super) fn no_counts() -> Box<Counts> {
    Box::new([[0; 256]; CONTEXTS])
}

fn order() -> impl Iterator<Item = usize> {
    [255, 254, 253].into_iter().chain(0..253)
}

/// Tables near the counts, and their stored form.
pub(super) fn learn(counts: &Counts) -> (Tables, Vec<u8>) {
    let mut bytes = Vec::new();
    for (counts, prior) in counts.iter().zip(PRIOR.iter()) {
        let n: f64 = counts.iter().map(|&c| c as f64).sum();
        let sum: f64 = prior.iter().sum();
        let mut levels: Vec<i8> = order()
            .map(|s| {
                let p = (counts[s] as f64 + HELD * prior[s] / sum) / (n + HELD);
                (4.0 * (p * sum / prior[s]).log2()).round().clamp(-80.0, 80.0) as i8
            })
            .collect();
        // A level that saves less than it costs is noise.
        for (level, s) in levels.iter_mut().zip(order()) {
            let (bits, p) = (*level as f64 / 4.0, prior[s] / sum);
            if counts[s] as f64 * bits - n * p * (bits.exp2() - 1.0) * std::f64::consts::LOG2_E < PAYS {
                *level = 0;
            }
        }
        if n == 0.0 {
            levels.clear();
        }
        while levels.last() == Some(&0) {
            levels.pop();
        }
        levels.truncate(255);
        bytes.push(levels.len() as u8);
        bytes.extend(levels.iter().map(|&l| l as u8));
    }
    let tables = from_levels(&bytes).unwrap_or_else(|_| Tables::new(&PRIOR));
    let mut out = (bytes.len() as u16).to_le_bytes().to_vec();
    plane::put(&bytes, 19, &mut out);
    (tables, out)
}

pub(super) fn read(input: &mut &[u8]) -> Result<Tables, Damage> {
    let n = take(input, 2)?;
    let mut bytes = vec![0; u16::from_le_bytes([n[0], n[1]]) as usize];
    plane::get(input, &mut bytes)?;
    from_levels(&bytes)
}

fn from_levels(mut bytes: &[u8]) -> Result<Tables, Damage> {
    let mut weights: Box<Weights> = PRIOR.clone();
    for w in weights.iter_mut() {
        let n = take(&mut bytes, 1)?[0] as usize;
        for (&level, s) in take(&mut bytes, n)?.iter().zip(order()) {
            w[s] *= power(level as i8 as i32);
        }
    }
    plane::at_end(bytes)?;
    // Kinds have no escape, nor has "no shared zeros".
    for (context, symbols) in [(KIND, KINDS), (TRAILING, 1)] {
        let weights = &mut weights[context as usize];
        let least = weights.iter().sum::<f64>() / 256.0;
        weights[..symbols].iter_mut().for_each(|w| *w = w.max(least));
    }
    Ok(Tables::new(&weights))
}
