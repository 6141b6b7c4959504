//! What a new tensor is built on: nothing, one near tensor, or a formula of several.
//!
//! A decision from samples of the tensor, which the executor ([`super::encode`]) carries out for every block. Each
//! option that the near tensors and a fit suggest is tried on some samples, the smallest wins. A base whose blocks
//! already cost the most that a block may is replaced by one further up its own chain.

use std::sync::Arc;

use super::encode::Todo;
use super::hash::HashedPiece;
use super::pair::{Near, is_transposed, mapped};
use super::read::{BaseBlock, MappedBase, OpenObject, Via, cost, predict};
use super::{Repo, RepoError};
use crate::codec::{self, Effort, Formula, Plan, QuantizedFit, Spec, fit_low_rank, fit_mix};
use crate::model::dtype::Elem;
use crate::model::id::{block_count, block_len};
use crate::model::lossy::Bound;
use crate::model::object::{Base, MAX_COST, Mapping};
use crate::model::sketch::kind;

/// Blocks shown to the codec for its choice: one in three, up to about 1 MiB.
const SAMPLES: u64 = 16;
/// Of these, blocks that are encoded to compare options.
const TRIED: usize = 4;
/// Where a full chain is left for a base further up.
const REANCHOR_COST: u8 = MAX_COST / 2;
/// Values are not moved for a smaller share of what they take.
const LEAST_GAIN: f64 = 0.02;
/// Bits an element from which on a formula may pay.
const FAR: f64 = 0.5;

/// The bases of a tensor's blocks, and what they predict.
#[derive(Clone, Default)]
pub struct Source {
    pub bases: Vec<MappedBase>,
    pub formula: Option<Formula>,
    /// The values lie on the grid of this step around what the bases predict.
    pub step: Option<f64>,
}

impl Source {
    /// What a piece was computed by, where its blocks may cost what that takes.
    pub fn made(repo: &Repo, piece: &HashedPiece) -> Option<Source> {
        let made = piece.made.as_ref().filter(|m| m.formula.as_ref().is_none_or(Formula::is_storable))?;
        let elem = Elem::of(piece.piece.dtype());
        let bases = made.bases.iter().map(|id| Some(mapped(elem, repo.open_object(id).ok()?)));
        let bases = bases.collect::<Option<Vec<_>>>()?;
        cost(elem.width(), &bases)?;
        Some(Source { bases, formula: made.formula.clone(), step: made.step })
    }

    fn plain(base: MappedBase) -> Source {
        Source { bases: vec![base], ..Source::default() }
    }

    fn by(bases: Vec<MappedBase>, formula: Formula) -> Source {
        Source { bases, formula: Some(formula), step: None }
    }

    /// What stands in for the base of block `index`; nothing where a base is damaged: what is new is not lost with
    /// what is old.
    pub(super) fn expected(&self, repo: &Repo, spec: Spec, index: u64, len: usize) -> Option<Expected> {
        if self.bases.is_empty() {
            return None;
        }
        let read = |b| repo.base_block(b, spec.elem.width(), index, len, Via::Checked);
        let found = self.bases.iter().map(read).collect::<Result<Vec<BaseBlock>, _>>();
        let mut blocks = found.map_err(|e| log::warn!("no base for a block: {e}")).ok()?;
        let Some(formula) = &self.formula else { return blocks.pop().map(Expected::Base) };
        let bytes: Vec<&[u8]> = blocks.iter().map(BaseBlock::bytes).collect();
        let predicted = predict(formula, spec, index, &self.bases, &bytes, len);
        let predicted = predicted.map_err(|e| log::error!("a formula failed: {e}")).ok()?;
        blocks.truncate(formula.is_gated() as usize);
        Some(Expected::Predicted(predicted, blocks.pop()))
    }
}

/// The bytes that a block is compared with.
pub(super) enum Expected {
    Base(BaseBlock),
    /// And what an element may be instead.
    Predicted(Vec<u8>, Option<BaseBlock>),
}

impl Expected {
    pub fn bytes(&self) -> impl Iterator<Item = &[u8]> {
        let (first, second) = match self {
            Expected::Base(block) => (block.bytes(), None),
            Expected::Predicted(bytes, other) => (&bytes[..], other.as_ref()),
        };
        std::iter::once(first).chain(second.map(BaseBlock::bytes))
    }
}

/// Decides for one tensor.
pub fn choose(repo: &Repo, todo: &Todo, effort: Effort) -> Result<(Source, Plan), RepoError> {
    let chooser = Chooser { repo, todo, spec: todo.spec(), effort, samples: samples(todo)? };
    if let Some(source) = &todo.made {
        let plan = chooser.plan(source);
        return Ok((source.clone(), plan));
    }
    let mut options = chooser.options()?;
    if options.len() < 2 {
        let source = options.pop().unwrap_or_default();
        let plan = chooser.plan(&source);
        return Ok((source, plan));
    }
    let tried = options.into_iter().map(|source| {
        let plan = chooser.plan(&source);
        (chooser.size(&source, &plan), source, plan)
    });
    let best = tried.min_by(|a, b| a.0.total_cmp(&b.0)).expect("several options");
    Ok((best.1, best.2))
}

/// What a tensor would take, as far as samples tell, and what it would be built on.
pub fn estimate(repo: &Repo, todo: &Todo, effort: Effort) -> Result<(f64, Vec<Base>), RepoError> {
    let (source, plan) = choose(repo, todo, effort)?;
    let chooser = Chooser { repo, todo, spec: todo.spec(), effort, samples: samples(todo)? };
    let bases = source.bases.iter().map(|b| Base { id: b.object.id(), mapping: b.mapping }).collect();
    Ok((chooser.size(&source, &plan), bases))
}

/// The grid on which a tensor's values take the least, and the bound that it keeps. `None` where exact values take
/// hardly more, or no room is left.
pub fn on_grid(repo: &Repo, todo: &Todo, bound: Bound, effort: Effort) -> Result<Option<(Source, f64)>, RepoError> {
    if !codec::can_step(todo.spec().elem) {
        return Ok(None);
    }
    let (mut source, plan) = choose(repo, todo, effort)?;
    let chooser = Chooser { repo, todo, spec: todo.spec(), effort, samples: samples(todo)? };
    let exact = chooser.size(&source, &plan);
    if source.bases.is_empty() {
        source = chooser.options()?.into_iter().next().unwrap_or_default();
    }
    if source.bases.iter().any(|b| b.mapping == Mapping::Whole) {
        return Ok(None);
    }
    let bound = match bound {
        Bound::Absolute(bound) => bound.0,
        Bound::Relative(share) => share.0 * chooser.differences(&source)?.rms(),
    };
    // With the larger step no value that is fine enough fails the bound, with the smaller one no value at all.
    let steps = [2.0 * bound, bound].into_iter().filter(|s| s.is_normal());
    let tried = steps.map(|step| {
        let source = Source { step: Some(step), ..source.clone() };
        let moved = chooser.moved(&source, step, bound);
        (moved.samples != chooser.samples, moved.size(&source, &moved.plan(&source)), source)
    });
    // What lies on one of them already stays there.
    let best = tried.min_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    Ok(best.filter(|(_, size, _)| *size < exact * (1.0 - LEAST_GAIN)).map(|(.., source)| (source, bound)))
}

/// Blocks from all over the object.
fn samples(todo: &Todo) -> Result<Vec<(u64, Vec<u8>)>, RepoError> {
    let n = block_count(todo.length());
    let take = n.div_ceil(3).min(SAMPLES);
    (0..take).map(|i| i * n / take).map(|index| Ok((index, todo.raw(index)?))).collect()
}

/// A block and what its bases have in its place.
type Beside<'a> = (u64, &'a [u8], Vec<BaseBlock>);

fn view<'a>((block, raw, bases): &'a Beside) -> codec::Sample<'a> {
    codec::Sample { block: *block, raw, bases: bases.iter().map(BaseBlock::bytes).collect() }
}

fn views<'a>(read: &'a [Beside]) -> Vec<codec::Sample<'a>> {
    read.iter().map(view).collect()
}

struct Chooser<'a> {
    repo: &'a Repo,
    todo: &'a Todo<'a>,
    spec: Spec,
    effort: Effort,
    samples: Vec<(u64, Vec<u8>)>,
}

impl Chooser<'_> {
    fn options(&self) -> Result<Vec<Source>, RepoError> {
        let Some(first) = self.todo.near.first() else { return Ok(vec![]) };
        let mut options = Vec::new();
        options.extend(self.single(first)?);
        if first.distance > FAR && self.effort != Effort::Fast {
            options.extend(self.mix());
            options.extend(self.low_rank(first)?);
        }
        options.retain(|s| cost(self.spec.elem.width(), &s.bases).is_some());
        Ok(options)
    }

    fn shape(&self) -> Vec<u64> {
        self.todo.piece.piece.shape()
    }

    /// One base: as it is, cast, quantized or transposed.
    fn single(&self, near: &Near) -> Result<Option<Source>, RepoError> {
        let shape = &near.object.stored.record.shape;
        if kind(shape) != kind(&self.shape()) {
            let base = MappedBase { object: near.object.clone(), mapping: Mapping::Whole };
            let formula = Formula::Transposed(shape.last().map_or(1, |c| *c as usize));
            let turned = is_transposed(shape, &self.shape());
            return Ok(turned.then(|| Source::by(vec![base], formula)));
        }
        let Some(base) = self.reanchor(&near.object) else { return Ok(None) };
        let elem = base.object.elem();
        if base.mapping == Mapping::Bytes {
            return Ok(Some(Source::plain(base)));
        }
        if Formula::casts(elem, self.spec.elem) {
            return Ok(Some(Source::by(vec![base], Formula::cast())));
        }
        let elements = self.todo.length() / self.spec.elem.width() as u64;
        let Some(mut fit) = QuantizedFit::new(self.spec, elem, elements) else { return Ok(None) };
        self.each_block(&base, &mut |s| fit.see(elem, s))?;
        let formula = fit.finish().map(Formula::Quantized);
        Ok(formula.map(|f| Source::by(vec![base], f)))
    }

    /// The object itself while its blocks may carry one more, else the first up its chain that is cheap.
    fn reanchor(&self, object: &Arc<OpenObject>) -> Option<MappedBase> {
        let width = self.spec.elem.width();
        let fits = |o: &Arc<OpenObject>| cost(width, &[mapped(self.spec.elem, o.clone())]).is_some();
        let mut at = object.clone();
        if !fits(&at) {
            while at.stored.record.cost > REANCHOR_COST || !fits(&at) {
                at = at.bases().first()?.object.clone();
            }
        }
        (kind(&at.stored.record.shape) == kind(&self.shape())).then(|| mapped(self.spec.elem, at))
    }

    fn mix(&self) -> Option<Source> {
        let shape = self.shape();
        let mut same: Vec<&Near> = self.todo.near.iter().filter(|n| n.object.stored.record.shape == shape).collect();
        same.sort_by_key(|n| n.order);
        let bases: Vec<MappedBase> = same.iter().map(|n| mapped(self.spec.elem, n.object.clone())).collect();
        let elems: Vec<Elem> = bases.iter().map(|b| b.object.elem()).collect();
        let (order, formula) = fit_mix(self.spec, &elems, &views(&self.read(&bases)))?;
        Some(Source::by(order.iter().map(|&i| bases[i].clone()).collect(), formula))
    }

    /// The samples, each with what all of these bases have in its place.
    fn read(&self, bases: &[MappedBase]) -> Vec<Beside<'_>> {
        self.samples.iter().filter_map(|(i, raw)| Some((*i, &raw[..], self.blocks(*i, raw.len(), bases)?))).collect()
    }

    fn blocks(&self, index: u64, len: usize, bases: &[MappedBase]) -> Option<Vec<BaseBlock>> {
        bases.iter().map(|b| self.repo.base_block(b, self.spec.elem.width(), index, len, Via::Checked).ok()).collect()
    }

    fn low_rank(&self, near: &Near) -> Result<Option<Source>, RepoError> {
        let shape = self.shape();
        let base = mapped(self.spec.elem, near.object.clone());
        let too_dear = cost(self.spec.elem.width(), std::slice::from_ref(&base)).is_none();
        if shape.len() != 2 || near.object.stored.record.shape != shape || too_dear {
            return Ok(None);
        }
        let read = self.read(std::slice::from_ref(&base));
        let mut each = |see: &mut dyn FnMut(&codec::Sample)| self.each_block(&base, see);
        let found = fit_low_rank(self.spec, base.object.elem(), shape[0] as usize, &views(&read), &mut each)?;
        Ok(found.map(|f| Source::by(vec![base], f)))
    }

    /// Every block of the tensor and its base.
    fn each_block(&self, base: &MappedBase, see: &mut dyn FnMut(&codec::Sample)) -> Result<(), RepoError> {
        for block in 0..block_count(self.todo.length()) {
            let raw = self.todo.raw(block)?;
            let Some(bases) = self.blocks(block, raw.len(), std::slice::from_ref(base)) else { continue };
            see(&view(&(block, &raw, bases)));
        }
        Ok(())
    }

    /// With the samples moved onto a grid.
    fn moved(&self, source: &Source, step: f64, bound: f64) -> Chooser<'_> {
        let moved = |((i, raw), e): (&(u64, Vec<u8>), Option<Expected>)| {
            let mut out = vec![0; raw.len()];
            let base = e.as_ref().and_then(|e| e.bytes().next());
            codec::quantize(self.spec.elem, raw, base, step, bound, &mut out);
            (*i, out)
        };
        let samples = self.samples.iter().zip(self.expected(source, self.samples.len())).map(moved).collect();
        Chooser { samples, ..*self }
    }

    /// Of all values from what the bases predict; none where there are no bases.
    fn differences(&self, source: &Source) -> Result<codec::Errors, RepoError> {
        let mut all = codec::Errors::default();
        let blocks = if source.bases.is_empty() { 0 } else { block_count(self.todo.length()) };
        for block in 0..blocks {
            let raw = self.todo.raw(block)?;
            let Some(expected) = source.expected(self.repo, self.spec, block, raw.len()) else { continue };
            expected.bytes().take(1).for_each(|base| all.add(&codec::differences(self.spec.elem, &raw, base)));
        }
        Ok(all)
    }

    fn plan(&self, source: &Source) -> Plan {
        let expected = self.expected(source, self.samples.len());
        let samples: Vec<(&[u8], Vec<&[u8]>)> = self
            .samples
            .iter()
            .zip(&expected)
            .map(|((_, raw), e)| (&raw[..], e.iter().flat_map(Expected::bytes).collect()))
            .collect();
        match source.step {
            Some(step) => Plan::on_grid(self.spec, self.effort, step, &samples),
            None => Plan::choose(self.spec, self.effort, &samples),
        }
    }

    fn expected(&self, source: &Source, most: usize) -> Vec<Option<Expected>> {
        let block = |(i, raw): &(u64, Vec<u8>)| source.expected(self.repo, self.spec, *i, raw.len());
        self.samples.iter().take(most).map(block).collect()
    }

    /// What the whole would take, as far as some samples tell.
    fn size(&self, source: &Source, plan: &Plan) -> f64 {
        let (mut raw, mut out, mut tags) = (0, Vec::new(), Vec::new());
        for ((index, bytes), e) in self.samples.iter().zip(self.expected(source, TRIED)) {
            let bases: Vec<&[u8]> = e.iter().flat_map(Expected::bytes).collect();
            tags.push(plan.encode(*index, bytes, &bases, &mut out));
            raw += block_len(self.todo.length(), *index);
        }
        let share = self.todo.length() as f64 / raw.max(1) as f64;
        out.len() as f64 * share + codec::join_params(source.formula.as_ref(), plan, tags.into_iter()).len() as f64
    }
}
