//! What a new version has in common with one stored version: evidence as plain numbers, from a window of each matrix.
//!
//! Tensors are matched by id, then by content; never by name. Zeros that are new are no distance (pruning), and the
//! stored value is rounded to the new one's dtype first (casting); what was quantized may have another scale in each row.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::super::Head;
use super::super::diff::side::{Side, Tensor};
use super::window::{self, Weights};
use crate::codec;
use crate::model::dtype::Elem;
use crate::model::id::Id;
use crate::model::number::Number;
use crate::model::sketch::{self, Likeness};

/// Stored matrices of one kind that a new one is compared with.
const MAX_KIND: usize = 512;

/// Share of values that are zero now and were not, from which on a version was pruned.
pub const PRUNED: f64 = 0.05;

/// What a new matrix corresponds to.
pub enum Match {
    /// The same object.
    Same,
    Like(Arc<Weights>),
    Nothing,
}

impl Match {
    /// The stored values, where there are any.
    pub fn values<'a>(&'a self, new: &'a Weights) -> Option<&'a [f32]> {
        match self {
            Match::Same => Some(&new.values),
            Match::Like(old) => Some(&old.values),
            Match::Nothing => None,
        }
    }
}

/// How two windows of values differ.
#[derive(Clone, Copy, Default, Debug)]
pub struct Measure {
    /// Square of the relative distance, new zeros left out.
    pub apart: f64,
    /// The same with the roles exchanged: old zeros left out.
    pub apart_back: f64,
    /// Shares of all values: zero only in the new one, only in the old one, in the old one at all.
    pub new_zeros: f64,
    pub old_zeros: f64,
    pub zeros: f64,
    /// Share of the values that are exactly the old ones, rounded to the new dtype; and the other way round.
    pub exact: f64,
    pub exact_back: f64,
}

/// A stored version beside the new one.
pub struct Trial {
    pub head: Head,
    pub side: Side,
    /// For each of the new version's matrices.
    pub matches: Vec<Match>,
    pub measures: Vec<Option<Measure>>,
    /// Share of the bytes of the new version's tensors that this version has bit for bit.
    pub identical: f64,
}

impl Trial {
    pub fn new(head: Head, side: Side, new: &Side, mine: &[Weights]) -> Trial {
        let theirs: HashSet<Id> = side.tensors.iter().map(|t| t.id).collect();
        let matches = matches(&side, &theirs, new, mine);
        let measures = mine.iter().zip(&matches).map(|(w, m)| measured(w, m)).collect();
        let bytes = |keep: &dyn Fn(&&Tensor) -> bool| new.tensors.iter().filter(keep).map(|t| t.length).sum::<u64>();
        let identical = bytes(&|t| theirs.contains(&t.id)) as f64 / bytes(&|_| true).max(1) as f64;
        Trial { head, side, matches, measures, identical }
    }

    /// Share of the new version's matrices that correspond to one of this version's.
    pub fn matched(&self) -> f64 {
        self.found().count() as f64 / self.measures.len().max(1) as f64
    }

    fn found(&self) -> impl Iterator<Item = &Measure> {
        self.measures.iter().flatten()
    }

    fn mean(&self, of: impl Fn(&Measure) -> f64) -> f64 {
        self.found().map(of).sum::<f64>() / self.found().count().max(1) as f64
    }

    /// Over the matrices that differ, the mean of something.
    pub fn mean_changed(&self, of: impl Fn(&Measure) -> f64) -> f64 {
        let pairs = self.measures.iter().zip(&self.matches).filter(|(_, m)| matches!(m, Match::Like(_)));
        let (sum, n) = pairs.filter_map(|(m, _)| *m).fold((0.0, 0), |(s, n), m| (s + of(&m), n + 1));
        sum / n.max(1) as f64
    }

    /// Root mean square of the relative distances.
    pub fn distance(&self) -> f64 {
        self.mean(|m| m.apart).sqrt()
    }

    pub fn distance_back(&self) -> f64 {
        self.mean(|m| m.apart_back).sqrt()
    }

    pub fn zeros(&self) -> f64 {
        self.mean(|m| m.zeros)
    }

    /// Matrices that another dimension tells from the new one's.
    pub fn resized(&self, mine: &[Weights]) -> usize {
        self.changed(mine).filter(|(w, o)| w.shape != o.shape).count()
    }

    /// Has it the same values wherever both have some?
    pub fn is_twin(&self) -> bool {
        self.distance() == 0.0 && self.mean(|m| m.new_zeros + m.old_zeros) == 0.0 && self.mean(|m| m.exact) == 1.0
    }

    /// Is a share of the values zero that was not?
    pub fn is_pruned(&self) -> bool {
        self.mean_changed(|m| m.new_zeros) >= PRUNED
    }

    /// Matrices that both this and another trial match: the two mean squares.
    pub fn common(&self, other: &Trial) -> (f64, f64) {
        let both = self.measures.iter().zip(&other.measures).filter_map(|(a, b)| Some((a.as_ref()?, b.as_ref()?)));
        let (n, a, b) = both.fold((0, 0.0, 0.0), |(n, a, b), (x, y)| (n + 1, a + x.apart, b + y.apart));
        (a / n.max(1) as f64, b / n.max(1) as f64)
    }

    /// The windows that differ.
    pub fn changed<'a>(&'a self, mine: &'a [Weights]) -> impl Iterator<Item = (&'a Weights, &'a Weights)> {
        mine.iter().zip(&self.matches).filter_map(|(w, m)| if let Match::Like(t) = m { Some((w, &**t)) } else { None })
    }
}

/// For each matrix of the new version, what it corresponds to: the same object; else what stands in its place among its
/// kind, if it is kin; else whichever of its kind is most like it.
fn matches(side: &Side, theirs: &HashSet<Id>, new: &Side, mine: &[Weights]) -> Vec<Match> {
    let kinds = |s: &Side| window::kinds(s).into_iter().collect::<HashMap<u32, Vec<usize>>>();
    let (ours, kinds) = (kinds(new), kinds(side));
    let mut shelf = Shelf { side, kinds, read: HashMap::new(), taken: HashSet::new() };
    let one = |w: &Weights| {
        if theirs.contains(&w.id) {
            return Match::Same;
        }
        let place = ours[&w.sketch.class].iter().position(|&t| t == w.tensor).unwrap_or(0);
        shelf.most_like(w, place).map_or(Match::Nothing, Match::Like)
    };
    mine.iter().map(one).collect()
}

/// A stored version's windows, read when they are asked for.
struct Shelf<'a> {
    side: &'a Side,
    kinds: HashMap<u32, Vec<usize>>,
    read: HashMap<usize, Option<Arc<Weights>>>,
    /// Of two that are like the same one the first has it: the other is a copy.
    taken: HashSet<usize>,
}

impl Shelf<'_> {
    fn most_like(&mut self, new: &Weights, place: usize) -> Option<Arc<Weights>> {
        let kind = self.kinds.get(&new.sketch.class)?.clone();
        if let Some(&here) = kind.get(place).filter(|h| !self.taken.contains(h))
            && let Some(w) = self.get(here)
            && likeness(new, &w).is_some()
        {
            self.taken.insert(here);
            return Some(w);
        }
        let kind = &kind[..kind.len().min(MAX_KIND)];
        let unread: Vec<usize> = kind.iter().copied().filter(|i| !self.read.contains_key(i)).collect();
        let side = self.side;
        let read = unread.par_iter().map(|&i| (i, Weights::read(side, i).map(Arc::new)));
        self.read.extend(read.collect::<Vec<_>>());
        let free = kind.iter().filter(|i| !self.taken.contains(i));
        let like = free.filter_map(|i| self.read[i].clone().and_then(|w| Some((*i, likeness(new, &w)?, w))));
        let (i, _, w) = like.max_by(|a, b| a.1.total_cmp(&b.1))?;
        self.taken.insert(i);
        Some(w)
    }

    fn get(&mut self, tensor: usize) -> Option<Arc<Weights>> {
        self.read.entry(tensor).or_insert_with(|| Weights::read(self.side, tensor).map(Arc::new)).clone()
    }
}

/// Correlation of two windows where neither is zero; `None` where they are no kin.
fn likeness(new: &Weights, old: &Weights) -> Option<f64> {
    if !new.sketch.may_be_kin(&old.sketch) {
        return None;
    }
    let pairs = new.values.iter().zip(&old.values).filter(|(a, b)| **a != 0.0 && **b != 0.0);
    let places = pairs.clone().count() as u32;
    let correlation = sketch::correlation(pairs.map(|(a, b)| (*a as f64, *b as f64)))?;
    Likeness { places, correlation }.is_kin().then_some(correlation)
}

fn measured(new: &Weights, old: &Match) -> Option<Measure> {
    match old {
        Match::Same => {
            let zeros = new.values.iter().filter(|v| **v == 0.0).count() as f64 / new.values.len() as f64;
            Some(Measure { zeros, exact: 1.0, exact_back: 1.0, ..Measure::default() })
        }
        Match::Like(old) => Some(measure(new, old)),
        Match::Nothing => None,
    }
}

/// Compares two windows.
pub fn measure(new: &Weights, old: &Weights) -> Measure {
    let n = new.values.len().min(old.values.len());
    let (x, y) = (&new.values[..n], &old.values[..n]);
    let share = |f: &dyn Fn(f32, f32) -> bool| x.iter().zip(y).filter(|(a, b)| f(**a, **b)).count() as f64 / n as f64;
    let scaled = new.number.is_float() != old.number.is_float();
    let rows = rows(&new.shape, n);
    let apart = |x: &[f32], y: &[f32], to: Number| -> f64 {
        let (mut far, mut all) = (0.0, 0.0);
        for (x, y) in rows.iter().map(|r| (&x[r.clone()], &y[r.clone()])) {
            let s = if scaled { scale(x, y) } else { 1.0 };
            for (a, b) in x.iter().zip(y).filter(|(a, _)| **a != 0.0) {
                let b = if scaled { *b as f64 * s } else { rounded(to, *b) as f64 };
                far += (*a as f64 - b) * (*a as f64 - b);
                all += *a as f64 * *a as f64;
            }
        }
        if all > 0.0 { (far / all).min(1.0) } else { 0.0 }
    };
    Measure {
        apart: apart(x, y, new.number),
        apart_back: apart(y, x, old.number),
        new_zeros: share(&|a, b| a == 0.0 && b != 0.0),
        old_zeros: share(&|a, b| a != 0.0 && b == 0.0),
        zeros: share(&|_, b| b == 0.0),
        exact: share(&|a, b| a == rounded(new.number, b)),
        exact_back: share(&|a, b| b == rounded(old.number, a)),
    }
}

/// The rows that the first `n` values of a window lie in.
fn rows(shape: &[u64], n: usize) -> Vec<Range<usize>> {
    let row = shape.last().map_or(1, |r| *r as usize).max(1);
    let skipped = (sketch::window(shape).0 % row as u64) as usize;
    let ends = (1..).map(|i| i * row - skipped).take_while(|end| *end < n).chain([n]);
    ends.scan(0, |from, to| Some(std::mem::replace(from, to)..to)).collect()
}

/// Least squares of `x = s y`.
fn scale(x: &[f32], y: &[f32]) -> f64 {
    let sum = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| *a as f64 * *b as f64).sum::<f64>();
    let yy = sum(y, y);
    if yy > 0.0 { sum(x, y) / yy } else { 0.0 }
}

/// A value as a float dtype has it.
pub fn rounded(to: Number, v: f32) -> f32 {
    match to {
        Number::Bf16 => codec::rounded(Elem::of("BF16"), v),
        Number::F16 => codec::rounded(Elem::of("F16"), v),
        _ => v,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::sketch::Sketch;

    fn weights(number: Number, values: Vec<f32>) -> Weights {
        let shape = vec![8, values.len() as u64 / 8];
        let sketch = Sketch::new(sketch::class(&shape), 8, values[..64].to_vec()).unwrap();
        Weights { tensor: 0, id: Id::of(b""), number, shape, values, sketch }
    }

    fn base() -> Vec<f32> {
        (0..512).map(|i| ((i * 37 % 101) as f32 - 50.3) / 997.0).collect()
    }

    #[test]
    fn new_zeros_are_no_distance_and_old_ones_are() {
        let old = weights(Number::F32, base());
        let new = weights(Number::F32, base().iter().map(|v| if v.abs() < 0.02 { 0.0 } else { *v }).collect());
        let (there, back) = (measure(&new, &old), measure(&old, &new));
        assert_eq!((there.apart, there.old_zeros, back.new_zeros), (0.0, 0.0, 0.0));
        assert!(there.new_zeros > 0.3 && back.apart > 0.05 && back.apart_back == 0.0 && back.old_zeros > 0.3);
    }

    #[test]
    fn casts_are_exact_one_way_and_quantized_rows_have_their_scale() {
        let old = weights(Number::F32, base());
        let cast = weights(Number::Bf16, base().iter().map(|v| rounded(Number::Bf16, *v)).collect());
        let m = measure(&cast, &old);
        assert!(
            m.apart == 0.0
                && m.exact == 1.0
                && measure(&old, &cast).exact < 0.1
                && measure(&old, &cast).exact_back == 1.0
        );
        let row = |i: usize| 900.0 + 100.0 * (i / 64) as f32;
        let ints = base().iter().enumerate().map(|(i, v)| (v * row(i)).round()).collect();
        assert!(measure(&weights(Number::I8, ints), &old).apart < 1e-3);
    }

    #[test]
    fn rows_begin_where_the_matrix_has_them() {
        for columns in [384, 100, 77, 5000] {
            let shape = [1000, columns];
            let (start, n) = sketch::window(&shape);
            let rows = rows(&shape, n);
            assert_eq!((rows[0].start, rows[rows.len() - 1].end), (0, n));
            assert!(rows[1..].iter().all(|r| (start + r.start as u64).is_multiple_of(columns)));
            assert!(rows.windows(2).all(|w| w[0].end == w[1].start) && rows.iter().all(|r| !r.is_empty()));
        }
    }

    #[test]
    fn rounding_is_to_nearest_even() {
        assert_eq!(rounded(Number::Bf16, f32::from_bits(0x3F80_8000)), 1.0);
        assert_eq!(rounded(Number::Bf16, f32::from_bits(0x3F81_8000)), f32::from_bits(0x3F82_0000));
        assert_eq!(rounded(Number::F16, 1.0 + 1.0 / 2048.0), 1.0);
        assert_eq!(rounded(Number::F16, 3e-8), 5.960_464_5e-8);
        assert_eq!(rounded(Number::F32, 0.1), 0.1);
    }
}
