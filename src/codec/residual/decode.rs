//! From symbols, raw bits, escapes and the base back to the block (layout: mod.rs). Portable.

use super::*;
use crate::codec::Damage;
use crate::codec::ans::{BITS, ESCAPE, Reader, SLOTS};
use crate::codec::bits::BitReader;
use crate::codec::context::{KIND, OTHER_ZERO, SCALE, ZERO, zigzag};
use crate::codec::plane::{at_end, get_varint, take};

pub(super) struct Decoder<'a> {
    flags: u8,
    pub(super) slots: &'a [u32; SLOTS],
    pub(super) reader: Reader,
    pub(super) noise: BitReader,
    vectors: bool,
    escapes: &'a [u8],
}

/// Does this machine have vectors that decode.rs can use?
pub(in crate::codec) fn has_vectors() -> bool {
    #[cfg(target_arch = "x86_64")]
    return crate::codec::ans::avx2::available();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// `vectors`: use them where there are any; the bytes are the same.
pub(in crate::codec) fn decode(
    model: &Model,
    vectors: bool,
    block: u64,
    mut input: &[u8],
    bases: &[&[u8]],
    out: &mut [u8],
) -> Result<(), Damage> {
    if !applies(model.spec) {
        return Err(Damage("residuals of another type"));
    }
    let head = take(&mut input, 4)?;
    let base = *bases.get(head[0] as usize).ok_or(Damage("base is missing"))?;
    if base.len() != out.len() {
        return Err(Damage("base has another length"));
    }
    let (words, noise) = (get_varint(&mut input)?, get_varint(&mut input)?);
    let reader = Reader::new(&mut input, words)?;
    let noise = BitReader::new(take(&mut input, noise)?);
    let vectors = vectors && has_vectors();
    let mut d = Decoder { flags: head[1], slots: model.tables.slots(), reader, noise, vectors, escapes: input };
    let scale = i16::from_le_bytes([head[2], head[3]]);
    by_kind!(model.spec, W, FLOAT => d.block::<W, FLOAT>(model, block, scale, base, out))
}

impl Decoder<'_> {
    fn block<W: Word, const FLOAT: bool>(
        &mut self,
        model: &Model,
        block: u64,
        first: i16,
        base: &[u8],
        out: &mut [u8],
    ) -> Result<(), Damage> {
        let ends = segments(model.spec, block, out.len() / W::BYTES);
        let rows = self.rows(model, ends.len(), first)?;
        let mut from = 0;
        for (&to, row) in ends.iter().zip(&rows) {
            let bytes = from * W::BYTES..to * W::BYTES;
            self.segment::<W, FLOAT>(row, &base[bytes.clone()], &mut out[bytes])?;
            from = to;
        }
        self.reader.finish()?;
        let tail = &mut out[from * W::BYTES..];
        tail.copy_from_slice(take(&mut self.escapes, tail.len())?);
        at_end(self.escapes)
    }

    /// The kind and scale of each segment.
    fn rows<'m>(&mut self, model: &Model<'m>, n: usize, first: i16) -> Result<Vec<Row<'m>>, Damage> {
        let mut scales = [first as i32, 0];
        let mut rows = Vec::with_capacity(n);
        let mut symbols = [0i32; LANES];
        let contexts = std::array::from_fn(|j| (if j % 2 == 0 { KIND } else { SCALE } as u32) << BITS);
        while rows.len() < n {
            let k = (2 * (n - rows.len())).min(LANES);
            self.reader.group(self.slots, &contexts, &mut symbols, k);
            self.check()?;
            for pair in symbols[..k].chunks_exact(2) {
                let (kind, symbol) = (zigzag(pair[0] as i64), zigzag(pair[1] as i64));
                let scale = &mut scales[(kind != STEPS) as usize];
                *scale = match symbol {
                    ESCAPE => {
                        let b = take(&mut self.escapes, 2)?;
                        i16::from_le_bytes([b[0], b[1]]) as i32
                    }
                    STILL => *scale,
                    _ => (*scale + pair[1]).clamp(-4000, 4000),
                };
                rows.push(Row::new(model, kind, (symbol != STILL).then_some(*scale)));
            }
        }
        Ok(rows)
    }

    #[inline(always)]
    pub(super) fn check(&self) -> Result<(), Damage> {
        if self.reader.overrun() || self.noise.overrun() {
            return Err(Damage("encoded block is short"));
        }
        Ok(())
    }

    fn segment<W: Word, const FLOAT: bool>(&mut self, row: &Row, base: &[u8], out: &mut [u8]) -> Result<(), Damage> {
        let done = if self.vectors { self.by_vectors::<W, FLOAT>(row, base, out)? } else { 0 };
        let chunk = LANES * W::BYTES;
        for (base, out) in base[done..].chunks(chunk).zip(out[done..].chunks_mut(chunk)) {
            self.group::<W, FLOAT>(row, base, out)?;
            self.check()?;
        }
        Ok(())
    }

    /// Decodes what this machine has vectors for; returns how many bytes.
    #[cfg(target_arch = "x86_64")]
    fn by_vectors<W: Word, const FLOAT: bool>(
        &mut self,
        row: &Row,
        base: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Damage> {
        avx2::whole_groups::<W, FLOAT>(self, row, base, out)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn by_vectors<W: Word, const FLOAT: bool>(&mut self, _: &Row, _: &[u8], _: &mut [u8]) -> Result<usize, Damage> {
        Ok(0)
    }

    /// LANES elements, or the block's last few.
    #[inline(always)]
    fn group<W: Word, const FLOAT: bool>(&mut self, row: &Row, base: &[u8], out: &mut [u8]) -> Result<(), Damage> {
        let k = base.len() / W::BYTES;
        let [mut bases, mut entries, mut offsets, mut noise, mut moves] = [[0u32; LANES]; 5];
        let mut symbols = [0i32; LANES];
        for (b, bytes) in bases.iter_mut().zip(base.chunks_exact(W::BYTES)) {
            *b = W::load(bytes).to_u64() as u32;
        }
        row.entries(&bases, &mut entries);
        for (o, e) in offsets.iter_mut().zip(&entries) {
            *o = e & 0xFF_FFFF;
        }
        self.reader.group(self.slots, &offsets, &mut symbols, k);
        if let Some(f) = &row.stairs {
            (0..LANES).for_each(|j| moves[j] = f.get(bases[j]) as u32);
        }
        let mut special = false;
        for j in 0..LANES {
            let plain = is_plain(symbols[j]);
            special |= !plain;
            noise[j] = if plain && j < k { entries[j] >> 24 } else { 0 };
        }
        let low = self.noise.take_group(&noise);
        for (j, o) in out.chunks_exact_mut(W::BYTES).enumerate().take(LANES) {
            let r = ((symbols[j] as u32) << noise[j]).wrapping_add(low[j]).wrapping_add(moves[j]);
            restore::<W, FLOAT>(W::from_u32(r), W::from_u32(bases[j])).store(o);
        }
        if special {
            self.specials::<W>(&symbols, base, out)?;
        }
        Ok(())
    }

    /// Puts zeros and escapes in their places.
    #[cold]
    pub(super) fn specials<W: Word>(
        &mut self,
        symbols: &[i32; LANES],
        base: &[u8],
        out: &mut [u8],
    ) -> Result<(), Damage> {
        let pairs = out.chunks_exact_mut(W::BYTES).zip(base.chunks_exact(W::BYTES));
        for ((o, base), &symbol) in pairs.zip(symbols) {
            match zigzag(symbol as i64) {
                ZERO => zero_of(self.flags, false, W::load(base)).store(o),
                OTHER_ZERO => zero_of(self.flags, true, W::load(base)).store(o),
                ESCAPE => o.copy_from_slice(take(&mut self.escapes, W::BYTES)?),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Neither a zero nor an escape.
#[inline(always)]
fn is_plain(symbol: i32) -> bool {
    (-126..=126).contains(&symbol)
}
