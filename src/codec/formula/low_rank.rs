//! A base plus a matrix of low rank: a merged LoRA (Hu et al. 2021, W + s B A).
//!
//! `value[i][j] = base[i][j] + sum over k of u[i][k] v[k][j]`, the sum in f32 in the order of k, then rounded to the child's
//! type. The factors are integers times a power of two, just fine enough that their error is lost in the child's
//! last place: u has one step, v one for each k.
//!
//! Layout: varint rank; varint rows; varint columns; i8 log2 of u's step; for each k i8 log2 of v's; then for u (k by k)
//! and v four planes (plane.rs) each of the zigzag integers.

use super::number::{is_number, load, store};
use crate::codec::plane::{self, get_varint, put_varint, take};
use crate::codec::word::Word;
use crate::codec::{Damage, Spec};
use crate::model::dtype::Elem;

const MAX_RANK: usize = 512;
/// Most numbers in both factors.
pub(super) const MAX_NUMBERS: usize = 1 << 21;

#[derive(Clone, PartialEq, Debug)]
pub struct LowRank {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) u_step: i8,
    pub(super) v_steps: Vec<i8>,
    /// Rank times rows, then rank times columns, as stored and as numbers.
    pub(super) integers: Vec<i32>,
    numbers: Vec<f32>,
}

impl LowRank {
    pub(super) fn new(rows: usize, columns: usize, u_step: i8, v_steps: Vec<i8>, integers: Vec<i32>) -> LowRank {
        let power = |k: i8| f32::from_bits(((k.clamp(-126, 127) as i32 + 127) as u32) << 23);
        let (u, v) = integers.split_at(v_steps.len() * rows);
        let v = v.chunks_exact(columns).zip(&v_steps).flat_map(|(v, &k)| v.iter().map(move |&i| i as f32 * power(k)));
        let numbers = u.iter().map(|&i| i as f32 * power(u_step)).chain(v).collect();
        LowRank { rows, columns, u_step, v_steps, integers, numbers }
    }

    pub(super) fn memory(&self) -> u64 {
        64 + 8 * self.numbers.len() as u64
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        [self.v_steps.len(), self.rows, self.columns].iter().for_each(|&n| put_varint(n, out));
        out.push(self.u_step as u8);
        out.extend(self.v_steps.iter().map(|&s| s as u8));
        for part in self.parts() {
            for byte in 0..4 {
                let bytes: Vec<u8> = part.iter().map(|&i| ((i as u32).zigzag() >> (8 * byte)) as u8).collect();
                plane::put(&bytes, 19, out);
            }
        }
    }

    fn parts(&self) -> [&[i32]; 2] {
        let (u, v) = self.integers.split_at(self.v_steps.len() * self.rows);
        [u, v]
    }

    pub(super) fn read(input: &mut &[u8]) -> Result<LowRank, Damage> {
        let (rank, rows, columns) = (get_varint(input)?, get_varint(input)?, get_varint(input)?);
        let total = rows.saturating_add(columns).saturating_mul(rank);
        if rank == 0 || rank > MAX_RANK || rows == 0 || columns == 0 || total > MAX_NUMBERS {
            return Err(Damage("a formula's rank or shape"));
        }
        let u_step = take(input, 1)?[0] as i8;
        let v_steps = take(input, rank)?.iter().map(|&s| s as i8).collect();
        let mut integers = Vec::with_capacity(total);
        for n in [rank * rows, rank * columns] {
            let mut bytes = vec![0; 4 * n];
            for plane in bytes.chunks_exact_mut(n) {
                plane::get(input, plane)?;
            }
            integers.extend(
                (0..n).map(|i| u32::from_le_bytes(std::array::from_fn(|byte| bytes[byte * n + i])).unzigzag() as i32),
            );
        }
        Ok(LowRank::new(rows, columns, u_step, v_steps, integers))
    }

    pub(super) fn predict(
        &self,
        spec: Spec,
        first: usize,
        (elem, base): (Elem, &[u8]),
        out: &mut [u8],
    ) -> Result<(), Damage> {
        debug_assert!(is_number(elem));
        let (u, v) = self.numbers.split_at(self.v_steps.len() * self.rows);
        let width = spec.elem.width();
        let mut values = vec![0.0f32; self.columns];
        let mut sum = vec![0.0f32; self.columns];
        let mut at = 0;
        while at < out.len() / width {
            let (row, column) = ((first + at) / self.columns, (first + at) % self.columns);
            let n = (self.columns - column).min(out.len() / width - at);
            if row >= self.rows {
                return Err(Damage("a formula's rank or shape"));
            }
            let sum = &mut sum[..n];
            sum.fill(0.0);
            for (k, v) in v.chunks_exact(self.columns).enumerate() {
                let f = u[k * self.rows + row];
                sum.iter_mut().zip(&v[column..]).for_each(|(s, v)| *s += f * v);
            }
            let values = &mut values[..n];
            load(elem, &base[at * elem.width()..], values);
            values.iter_mut().zip(&*sum).for_each(|(b, s)| *b += s);
            store(spec.elem, values, &mut out[at * width..(at + n) * width]);
            at += n;
        }
        Ok(())
    }
}
