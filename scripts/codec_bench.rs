//! The codec alone, on one thread, beside XOR + byte planes + zstd -3: codec_bench [--fast|--max] CHILD [BASE]…
//!
//! A tensor's bases are those of the same name, or else the nearest of its type and shape. Rates are MB/s of thread
//! CPU time, the best of a few rounds. Everything is decoded and compared, once more without vector instructions.
//! Prints one JSON object; `whole` is what mgit's bytes would be if a tensor were one block.

use anyhow::{Context, Result, ensure};
use mgit::codec::{BLOCK, Effort, Plan, Spec, distance, portable_only};
use mgit::model::dtype::Elem;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::Range;

const ROUNDS: usize = 3;
/// What saving a model inside another puts before its names.
const PREFIXES: [&str; 3] = ["bert.", "model.text_encoder.", "model."];
/// As an import shows the codec: one block in three, at most so many.
const SAMPLES: usize = 16;

struct Tensor<'a> {
    dtype: String,
    shape: Vec<usize>,
    data: &'a [u8],
}

type Tensors<'a> = BTreeMap<String, Tensor<'a>>;

impl<'a> Tensor<'a> {
    fn spec(&self) -> Spec {
        let elem = Elem::of(&self.dtype);
        let row = if self.shape.len() > 1 { self.shape[self.shape.len() - 1] } else { 0 };
        Spec { elem, row_bytes: row * elem.width() }
    }

    fn alike(&self, other: &Tensor) -> bool {
        self.dtype == other.dtype && self.shape == other.shape
    }

    fn distance(&self, other: &Tensor) -> f64 {
        distance(self.spec().elem, self.data, other.data)
    }

    /// Its counterpart in each base that has one, the nearest first.
    fn bases(&self, name: &str, models: &[Tensors<'a>]) -> Vec<&'a [u8]> {
        let mut found: Vec<(f64, &[u8])> = models.iter().filter_map(|m| self.base(name, m)).collect();
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        found.into_iter().map(|(_, data)| data).collect()
    }

    fn base(&self, name: &str, model: &Tensors<'a>) -> Option<(f64, &'a [u8])> {
        let named = model.get(name).filter(|b| self.alike(b));
        let nearest = || model.values().filter(|b| self.alike(b)).map(|b| (self.distance(b), b.data));
        match named {
            Some(base) => Some((self.distance(base), base.data)),
            None => nearest().min_by(|a, b| a.0.total_cmp(&b.0)),
        }
    }

    fn blocks(&self) -> usize {
        self.data.len().div_ceil(BLOCK)
    }

    fn range(&self, block: usize) -> Range<usize> {
        block * BLOCK..((block + 1) * BLOCK).min(self.data.len())
    }
}

fn tensors(file: &[u8]) -> Result<Tensors<'_>> {
    let all = SafeTensors::deserialize(file)?.tensors();
    let tensor = |v: &safetensors::tensor::TensorView<'_>, data| Tensor {
        dtype: v.dtype().to_string(),
        shape: v.shape().to_vec(),
        data,
    };
    Ok(all.iter().map(|(name, v)| (stripped(name).to_owned(), tensor(v, v.data()))).collect())
}

fn stripped(name: &str) -> &str {
    PREFIXES.iter().find_map(|p| name.strip_prefix(p)).unwrap_or(name)
}

// ---- measuring

/// CPU seconds of this thread.
fn now() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists on every Linux, and `t` is a timespec to write to.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

/// The result and the least seconds of a few rounds.
fn best<T>(mut work: impl FnMut() -> Result<T>) -> Result<(T, f64)> {
    let mut round = || {
        let start = now();
        Ok((work()?, now() - start))
    };
    let mut best = round()?;
    for _ in 1..ROUNDS {
        let next: Result<_> = round();
        best = (best.0, best.1.min(next?.1));
    }
    Ok(best)
}

#[derive(Default)]
struct Total {
    bytes: usize,
    encode: f64,
    decode: f64,
    portable: f64,
    whole: usize,
}

impl Total {
    fn json(&self, raw: usize) -> Value {
        let rate = |seconds: f64| raw as f64 / 1e6 / seconds.max(1e-9);
        json!({
            "bytes": self.bytes,
            "whole": self.whole,
            "encode": rate(self.encode),
            "decode": rate(self.decode),
            "decode_portable": rate(self.portable),
        })
    }
}

// ---- the codec

struct Encoded {
    plan: Plan,
    params: Vec<u8>,
    bytes: Vec<u8>,
    blocks: Vec<(u8, Range<usize>)>,
}

fn encode(t: &Tensor, bases: &[&[u8]], effort: Effort) -> Encoded {
    let of = |block: usize| bases.iter().map(|b| &b[t.range(block)]).collect::<Vec<_>>();
    let take = t.blocks().div_ceil(3).min(SAMPLES);
    let samples: Vec<_> = (0..take).map(|i| i * t.blocks() / take).map(|i| (&t.data[t.range(i)], of(i))).collect();
    let plan = Plan::choose(t.spec(), effort, &samples);
    let mut e = Encoded { params: plan.params(), plan, bytes: Vec::new(), blocks: Vec::new() };
    for i in 0..t.blocks() {
        let start = e.bytes.len();
        let tag = e.plan.encode(i as u64, &t.data[t.range(i)], &of(i), &mut e.bytes);
        e.blocks.push((tag, start..e.bytes.len()));
    }
    e
}

fn decode(t: &Tensor, bases: &[&[u8]], e: &Encoded, out: &mut [u8]) -> Result<()> {
    let plan = Plan::from_params(t.spec(), &e.params)?;
    for (i, (tag, range)) in e.blocks.iter().enumerate() {
        let of: Vec<&[u8]> = bases.iter().map(|b| &b[t.range(i)]).collect();
        plan.decode(i as u64, *tag, &e.bytes[range.clone()], &of, &mut out[t.range(i)])?;
    }
    Ok(())
}

fn codec(t: &Tensor, bases: &[&[u8]], effort: Effort, out: &mut [u8], total: &mut Total) -> Result<()> {
    let (encoded, seconds) = best(|| Ok(encode(t, bases, effort)))?;
    total.bytes += encoded.bytes.len() + encoded.params.len();
    total.encode += seconds;
    total.decode += best(|| decode(t, bases, &encoded, out))?.1;
    ensure!(out == t.data, "decoded to something else");
    out.fill(0);
    portable_only(true);
    let portable = best(|| decode(t, bases, &encoded, out));
    portable_only(false);
    total.portable += portable?.1;
    ensure!(out == t.data, "decoded to something else without vectors");
    let mut whole = Vec::new();
    encoded.plan.encode(0, t.data, bases, &mut whole);
    total.whole += whole.len() + encoded.params.len();
    Ok(())
}

// ---- what it is measured beside

/// The difference to the base by XOR, then all first bytes, all second ones…, each through zstd.
fn xor_encode(t: &Tensor, base: Option<&[u8]>) -> Result<Vec<Vec<u8>>> {
    let width = t.spec().elem.width();
    let mut planes = vec![Vec::with_capacity(t.data.len() / width + 1); width];
    let mut differ = t.data.to_vec();
    if let Some(base) = base {
        differ.iter_mut().zip(base).for_each(|(a, b)| *a ^= b);
    }
    for (i, plane) in planes.iter_mut().enumerate() {
        plane.extend(differ.iter().skip(i).step_by(width));
    }
    let mut zstd = zstd::bulk::Compressor::new(3)?;
    Ok(planes.iter().map(|p| zstd.compress(p)).collect::<Result<_, _>>()?)
}

fn xor_decode(t: &Tensor, base: Option<&[u8]>, planes: &[Vec<u8>], out: &mut [u8]) -> Result<()> {
    let mut zstd = zstd::bulk::Decompressor::new()?;
    for (i, plane) in planes.iter().enumerate() {
        let bytes = zstd.decompress(plane, t.data.len())?;
        out.iter_mut().skip(i).step_by(planes.len()).zip(bytes).for_each(|(o, b)| *o = b);
    }
    if let Some(base) = base {
        out.iter_mut().zip(base).for_each(|(a, b)| *a ^= b);
    }
    Ok(())
}

fn xor(t: &Tensor, base: Option<&[u8]>, out: &mut [u8], total: &mut Total) -> Result<()> {
    let (encoded, seconds) = best(|| xor_encode(t, base))?;
    total.bytes += encoded.iter().map(|p| p.len()).sum::<usize>();
    total.encode += seconds;
    total.decode += best(|| xor_decode(t, base, &encoded, out))?.1;
    ensure!(out == t.data, "XOR decoded to something else");
    Ok(())
}

fn main() -> Result<()> {
    let mut paths: Vec<String> = std::env::args().skip(1).collect();
    let effort = match paths.first().map(String::as_str) {
        Some("--fast") => Effort::Fast,
        Some("--max") => Effort::Max,
        _ => Effort::Default,
    };
    paths.retain(|p| !p.starts_with("--"));
    let files: Vec<Vec<u8>> = paths.iter().map(std::fs::read).collect::<Result<_, _>>()?;
    let mut models: Vec<Tensors> = files.iter().map(|f| tensors(f)).collect::<Result<_>>()?;
    ensure!(!models.is_empty(), "usage: codec_bench [--fast|--max] CHILD.safetensors [BASE.safetensors]…");
    let child = models.remove(0);

    let (mut ours, mut theirs, mut raw, mut alone) = (Total::default(), Total::default(), 0, 0);
    let mut out = Vec::new();
    for (name, t) in child.iter().filter(|(_, t)| !t.data.is_empty()) {
        let bases = t.bases(name, &models);
        out.resize(t.data.len(), 0);
        codec(t, &bases, effort, &mut out, &mut ours).with_context(|| name.clone())?;
        out.fill(0);
        xor(t, bases.first().copied(), &mut out, &mut theirs).with_context(|| name.clone())?;
        raw += t.data.len();
        alone += if bases.is_empty() { t.data.len() } else { 0 };
    }
    let report = json!({ "raw": raw, "without_base": alone, "mgit": ours.json(raw), "xor": theirs.json(raw) });
    println!("{report}");
    Ok(())
}
