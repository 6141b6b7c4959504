//! What a new tensor is built on: nothing, one near tensor, or a formula of several.
//!
//! A decision from samples of the tensor, which the executor ([`super::encode`]) carries out for every block. Each
//! option that the near tensors and a fit suggest is tried on some samples, the smallest wins. A base whose blocks
//! already cost the most that a block may is replaced by one further up its own chain.

use std::sync::Arc;

use super::encode::Todo;
use super::hash::HashedPiece;
use super::pair::{Near, is_transposed, mapped};
use super::read::{BaseBlock, MappedBase, OpenObject, cost, predict};
use super::{Repo, RepoError};
use crate::codec::{self, Effort, Formula, Plan, QuantizedFit, Spec, fit_low_rank, fit_mix};
use crate::model::dtype::Elem;
use crate::model::id::{block_count, block_len};
use crate::model::object::{Base, MAX_COST, Mapping};
use crate::model::sketch::kind;

/// Blocks shown to the codec for its choice: one in three, up to about 1 MiB.
const SAMPLES: u64 = 16;
/// Of these, blocks that are encoded to compare options.
const TRIED: usize = 4;
/// Where a full chain is left for a base further up.
const REANCHOR_COST: u8 = MAX_COST / 2;
/// Bits an element from which on a formula may pay.
const FAR: f64 = 0.5;

/// The bases of a tensor's blocks, and what they predict.
#[derive(Clone, Default)]
pub struct Source {
    pub bases: Vec<MappedBase>,
    pub formula: Option<Formula>,
}

impl Source {
    /// What a piece was computed by, where its blocks may cost what that takes.
    pub fn made(repo: &Repo, piece: &HashedPiece) -> Option<Source> {
        let made = piece.made.as_ref().filter(|m| m.formula.is_storable())?;
        let elem = Elem::of(piece.piece.dtype());
        let bases = made.bases.iter().map(|id| Some(mapped(elem, repo.open_object(id).ok()?)));
        let bases = bases.collect::<Option<Vec<_>>>()?;
        cost(elem.width(), &bases)?;
        Some(Source { bases, formula: Some(made.formula.clone()) })
    }

    fn plain(base: MappedBase) -> Source {
        Source { bases: vec![base], formula: None }
    }

    /// What stands in for the base of block `index`; nothing where a base is damaged: what is new is not lost with
    /// what is old.
    pub(super) fn expected(&self, repo: &Repo, spec: Spec, index: u64, len: usize) -> Option<Expected> {
        if self.bases.is_empty() {
            return None;
        }
        let read = |b| repo.base_block(b, spec.elem.width(), index, len, true);
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
            let formula = Some(Formula::Transposed(shape.last().map_or(1, |c| *c as usize)));
            let turned = is_transposed(shape, &self.shape());
            return Ok(turned.then(|| Source { bases: vec![base], formula }));
        }
        let Some(base) = self.reanchor(&near.object) else { return Ok(None) };
        let elem = base.object.elem();
        if base.mapping == Mapping::Bytes {
            return Ok(Some(Source::plain(base)));
        }
        if Formula::casts(elem, self.spec.elem) {
            return Ok(Some(Source { bases: vec![base], formula: Some(Formula::cast()) }));
        }
        let elements = self.todo.length() / self.spec.elem.width() as u64;
        let Some(mut fit) = QuantizedFit::new(self.spec, elem, elements) else { return Ok(None) };
        self.each_block(&base, &mut |s| fit.see(elem, s))?;
        let formula = fit.finish().map(Formula::Quantized);
        Ok(formula.map(|f| Source { bases: vec![base], formula: Some(f) }))
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
        Some(Source { bases: order.iter().map(|&i| bases[i].clone()).collect(), formula: Some(formula) })
    }

    /// The samples, each with what all of these bases have in its place.
    fn read(&self, bases: &[MappedBase]) -> Vec<Beside<'_>> {
        self.samples.iter().filter_map(|(i, raw)| Some((*i, &raw[..], self.blocks(*i, raw.len(), bases)?))).collect()
    }

    fn blocks(&self, index: u64, len: usize, bases: &[MappedBase]) -> Option<Vec<BaseBlock>> {
        bases.iter().map(|b| self.repo.base_block(b, self.spec.elem.width(), index, len, true).ok()).collect()
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
        Ok(found.map(|f| Source { bases: vec![base], formula: Some(f) }))
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

    fn plan(&self, source: &Source) -> Plan {
        let expected = self.expected(source, self.samples.len());
        let samples: Vec<(&[u8], Vec<&[u8]>)> = self
            .samples
            .iter()
            .zip(&expected)
            .map(|((_, raw), e)| (&raw[..], e.iter().flat_map(Expected::bytes).collect()))
            .collect();
        Plan::choose(self.spec, self.effort, &samples)
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
