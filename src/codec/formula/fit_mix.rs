//! Which mix of its bases a tensor is, from samples.
//!
//! Least squares gives the coefficients, centred on the first base, since siblings differ by little. Bases that
//! explain nothing are dropped. Coefficients that all are n_k / N within their errors, for the smallest N, are taken for
//! that (client sizes of FedAvg, decimal weights). Then the formulas that a person would write are
//! tried on some values, in the usual arithmetics and orders; the one that hits most wins.

use super::linear::{dot, solve};
use super::mix::{Arithmetic, MAX_BASES, Mix, Origin, Post};
use super::number::{is_number, load};
use super::{Formula, Sample, Spec};
use crate::model::dtype::Elem;

/// Values that take part in the least squares, and in a trial of a formula.
const FITTED: usize = 1 << 15;
const TRIED: usize = 1024;
/// Largest common denominator looked for.
const DENOMINATOR: usize = 100_000;
/// Standard errors that a coefficient may be off: roundings are larger where values are.
const ERRORS: f64 = 8.0;
/// A mix must leave at most this share of the distance (RMS) to the nearest base.
const LEFT: f64 = 0.25;

/// The mix and its bases (indices, in order), if the samples are one. `elems`: the bases' types.
pub fn fit_mix(spec: Spec, elems: &[Elem], samples: &[Sample]) -> Option<(Vec<usize>, Formula)> {
    let elems = &elems[..elems.len().min(MAX_BASES)];
    if !is_number(spec.elem) || elems.is_empty() || !elems.iter().all(|e| is_number(*e)) {
        return None;
    }
    let fit = Coefficients::find(&columns(spec, &Trial::gather(spec, elems, samples, FITTED))?, LEFT)?;
    let trial = Trial::gather(spec, elems, samples, TRIED);
    let mut best = Best { trial, hits: 0, found: None };
    best.search(spec, &fit);
    let hits = best.hits;
    best.found.filter(|_| hits > 0).map(|(order, mix)| (order, Formula::Mix(mix)))
}

/// Finite values of the bases and, last, of the child.
fn columns(spec: Spec, some: &Trial) -> Option<Vec<Vec<f64>>> {
    let n = some.child.len() / spec.elem.width();
    let all = some.bases.iter().map(|(e, b)| (*e, b)).chain([(spec.elem, &some.child)]);
    let mut columns: Vec<Vec<f64>> = all
        .map(|(elem, bytes)| {
            let mut v = vec![0.0; n];
            load(elem, bytes, &mut v);
            v
        })
        .collect();
    let finite: Vec<bool> = (0..n).map(|i| columns.iter().all(|c| c[i].is_finite())).collect();
    for c in &mut columns {
        let mut keep = finite.iter();
        c.retain(|_| *keep.next().expect("one each"));
    }
    (columns[0].len() >= 16).then_some(columns)
}

/// Bases, their coefficients and the errors of these.
struct Coefficients {
    bases: Vec<usize>,
    values: Vec<f64>,
    errors: Vec<f64>,
}

/// The coefficients with which the last of these columns is a mix of the others, each with its place; those that
/// explain nothing are left out. `left`: the share of the distance (RMS) to the first column that may stay.
pub fn fit_coefficients(columns: &[Vec<f64>], left: f64) -> Option<Vec<(usize, f64)>> {
    let fit = Coefficients::find(columns, left)?;
    let values = match fit.fractions() {
        Some((numerators, n)) => numerators.into_iter().map(|c| c / n).collect(),
        None => fit.values,
    };
    Some(fit.bases.into_iter().zip(values).collect())
}

impl Coefficients {
    fn find(columns: &[Vec<f64>], most_left: f64) -> Option<Coefficients> {
        let k = columns.len() - 1;
        // Column 0: the first base itself; 1 to k-1: the others less the first; last: the child less the first.
        let mut centred: Vec<Vec<f64>> = columns.to_vec();
        for c in centred.iter_mut().skip(1) {
            c.iter_mut().zip(&columns[0]).for_each(|(v, o)| *v -= o);
        }
        let gram: Vec<Vec<f64>> = centred.iter().map(|a| centred.iter().map(|b| dot(a, b)).collect()).collect();
        let start = gram[k][k];
        let mut chosen: Vec<usize> = (1..k).filter(|&c| gram[c][c] > 0.0).collect();
        let mut left = residual(&gram, &mut chosen, start)?;
        let with_scale: Vec<usize> = [0].into_iter().chain(chosen.iter().copied()).collect();
        if let Some((_, _, scaled)) = solve(&gram, &with_scale).filter(|s| s.2 < 0.25 * left) {
            (chosen, left) = (with_scale, scaled);
        }
        if left > most_left * most_left * start || chosen.is_empty() {
            return None;
        }
        prune(&gram, &mut chosen, start, left);
        let (c, variance, left) = solve(&gram, &chosen)?;
        let sigma = (left / columns[0].len() as f64).sqrt();
        let others: f64 = chosen.iter().zip(&c).filter(|(i, _)| **i > 0).map(|(_, c)| c).sum();
        let scale = if chosen.first() == Some(&0) { c[0] } else { 0.0 };
        let mut out = Coefficients { bases: Vec::new(), values: Vec::new(), errors: Vec::new() };
        let first = 1.0 + scale - others;
        let errors: Vec<f64> = variance.iter().map(|v| sigma * v.sqrt()).collect();
        let first_error = errors.iter().sum::<f64>();
        if first.abs() > ERRORS * first_error + 1e-6 {
            (out.bases, out.values, out.errors) = (vec![0], vec![first], vec![first_error]);
        }
        for ((&i, &c), &e) in chosen.iter().zip(&c).zip(&errors).filter(|((i, _), _)| **i > 0) {
            out.bases.push(i);
            out.values.push(c);
            out.errors.push(e);
        }
        Some(out)
    }

    /// `n_k / N` for the smallest N that fits all.
    fn fractions(&self) -> Option<(Vec<f64>, f64)> {
        let worst = self.errors.iter().fold(0.0f64, |a, &b| a.max(b)) * ERRORS + 1e-9;
        (1..=DENOMINATOR).map(|n| n as f64).take_while(|n| n * worst < 0.1).find_map(|n| {
            let near = |(c, e): (&f64, &f64)| ((c * n).round() - c * n).abs() <= n * (ERRORS * e + 1e-9);
            let fits = self.values.iter().zip(&self.errors).all(near);
            fits.then(|| (self.values.iter().map(|c| (c * n).round()).collect(), n))
        })
    }
}

/// Drops dependent columns until the rest can be solved; the residual's sum of squares.
fn residual(gram: &[Vec<f64>], chosen: &mut Vec<usize>, start: f64) -> Option<f64> {
    let mut kept: Vec<usize> = Vec::new();
    let mut left = start;
    for &c in chosen.iter() {
        kept.push(c);
        match solve(gram, &kept) {
            Some((_, _, l)) => left = l,
            None => drop(kept.pop()),
        }
    }
    *chosen = kept;
    Some(left)
}

/// Drops bases without which the fit is as good.
fn prune(gram: &[Vec<f64>], chosen: &mut Vec<usize>, start: f64, mut left: f64) {
    let floor = 1e-13 * start;
    while chosen.len() > 1 {
        let without = |i: usize| -> Vec<usize> { chosen.iter().copied().filter(|&c| c != i).collect() };
        let tried = chosen.iter().filter(|c| **c > 0).filter_map(|&c| Some((c, solve(gram, &without(c))?.2)));
        let Some((c, l)) = tried.min_by(|a, b| a.1.total_cmp(&b.1)) else { return };
        if l > 1.05 * left + floor {
            return;
        }
        *chosen = without(c);
        left = l.max(left);
    }
}

/// Some values of the child and of all bases, as bytes.
struct Trial {
    child: Vec<u8>,
    bases: Vec<(Elem, Vec<u8>)>,
}

impl Trial {
    fn gather(spec: Spec, elems: &[Elem], samples: &[Sample], most: usize) -> Trial {
        let width = spec.elem.width();
        let mut trial = Trial { child: Vec::new(), bases: elems.iter().map(|e| (*e, Vec::new())).collect() };
        let total: usize = samples.iter().map(|s| s.raw.len() / width).sum();
        let stride = total.div_ceil(most).max(1);
        for s in samples.iter().filter(|s| s.bases.len() >= elems.len()) {
            for i in (0..s.raw.len() / width).step_by(stride) {
                trial.child.extend_from_slice(&s.raw[i * width..][..width]);
                for ((elem, out), bytes) in trial.bases.iter_mut().zip(&s.bases) {
                    out.extend_from_slice(&bytes[i * elem.width()..][..elem.width()]);
                }
            }
        }
        trial
    }

    fn hits(&self, spec: Spec, order: &[usize], mix: &Mix) -> usize {
        let bases: Vec<(Elem, &[u8])> = order.iter().map(|&b| (self.bases[b].0, &self.bases[b].1[..])).collect();
        let mut out = vec![0; self.child.len()];
        mix.predict(spec, &bases, &mut out);
        let width = spec.elem.width();
        out.chunks_exact(width).zip(self.child.chunks_exact(width)).filter(|(a, b)| a == b).count()
    }
}

struct Best {
    trial: Trial,
    hits: usize,
    found: Option<(Vec<usize>, Mix)>,
}

impl Best {
    /// True when nothing is left to be won.
    fn offer(&mut self, spec: Spec, order: &[usize], mix: Mix) -> bool {
        let hits = self.trial.hits(spec, order, &mix);
        if self.found.is_none() || hits > self.hits {
            (self.hits, self.found) = (hits, Some((order.to_vec(), mix)));
        }
        self.hits * spec.elem.width() == self.trial.child.len()
    }

    fn search(&mut self, spec: Spec, fit: &Coefficients) {
        let formulas = formulas(fit);
        let own = if spec.elem.width() == 2 { Arithmetic::Own } else { Arithmetic::Fused };
        for arithmetic in [Arithmetic::F32, Arithmetic::F64, own, Arithmetic::Fused] {
            for (order, mix) in &formulas {
                if self.offer(spec, order, Mix { arithmetic, ..mix.clone() }) {
                    return;
                }
            }
        }
        let near = self.hits * spec.elem.width() * 50 > self.trial.child.len() * 49;
        if let Some((order, mix)) = self.found.clone().filter(|(order, _)| !near && (3..=5).contains(&order.len())) {
            let fixed = (mix.origin != Origin::None) as usize;
            permute(order.len() - fixed, &mut |p| {
                let (mut moved, mut mix) = (order.clone(), mix.clone());
                let weights = mix.weights.clone();
                for (to, &from) in p.iter().enumerate() {
                    moved[to + fixed] = order[from + fixed];
                    mix.weights[to] = weights[from];
                }
                self.offer(spec, &moved, mix);
            });
        }
    }
}

/// What a person would write for these coefficients; each with the order of its bases.
fn formulas(fit: &Coefficients) -> Vec<(Vec<usize>, Mix)> {
    let mut out = Vec::new();
    let mut push = |order: &[usize], origin, weights: &[f64], post| {
        out.push((order.to_vec(), Mix { origin, post, arithmetic: Arithmetic::F32, weights: weights.to_vec() }));
    };
    let fractions = fit.fractions();
    let sets: Vec<Vec<f64>> = match &fractions {
        Some((parts, n)) => vec![parts.iter().map(|p| p / n).collect(), fit.values.clone()],
        None => vec![fit.values.clone()],
    };
    for weights in &sets {
        push(&fit.bases, Origin::None, weights, Post::None);
    }
    if let Some((parts, n)) = fractions.as_ref().filter(|f| f.0.len() > 1) {
        let (parts, n) = match parts.iter().all(|p| *p == parts[0]) {
            true => (vec![1.0; parts.len()], n / parts[0]),
            false => (parts.clone(), *n),
        };
        push(&fit.bases, Origin::None, &parts, Post::Over(n));
        push(&fit.bases, Origin::None, &parts, Post::Times(1.0 / n));
    }
    let sum: f64 = fit.values.iter().sum();
    if fit.bases.len() < 2 || (sum - 1.0).abs() > 1e-3 {
        return out;
    }
    for weights in &sets {
        for origin in 0..fit.bases.len() {
            let without = |v: &[usize]| [&v[origin..=origin], &v[..origin], &v[origin + 1..]].concat();
            let order = without(&fit.bases);
            let rest = [&weights[..origin], &weights[origin + 1..]].concat();
            push(&order, Origin::Running, &rest, Post::None);
            push(&order, Origin::Apart, &rest, Post::None);
            if rest.len() > 1 && rest.iter().all(|w| (w - rest[0]).abs() < 1e-6) {
                let ones = vec![1.0; rest.len()];
                push(&order, Origin::Apart, &ones, Post::Times(rest[0]));
                push(&order, Origin::Apart, &ones, Post::Over((1.0 / rest[0]).round()));
            }
        }
    }
    out
}

/// All orders of `0..n`.
fn permute(n: usize, each: &mut impl FnMut(&[usize])) {
    fn go(left: &mut Vec<usize>, taken: &mut Vec<usize>, each: &mut impl FnMut(&[usize])) {
        if left.is_empty() {
            return each(taken);
        }
        for i in 0..left.len() {
            taken.push(left.remove(i));
            go(left, taken, each);
            left.insert(i, taken.pop().expect("just pushed"));
        }
    }
    go(&mut (0..n).collect(), &mut Vec::new(), each)
}
