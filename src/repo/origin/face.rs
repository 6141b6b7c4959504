//! How far apart any two versions of a family are: the new one, and stored ones with their windows or, of those that
//! were not tried, their sketches. All are compared in the same rows: the
//! matrices that stand for the new version.
//!
//! A pair's weight is the mean square of the relative distances where neither is zero. What else tells two versions
//! apart makes it a little longer: other shapes (heads), another dtype, zeros in other places. So of versions that share
//! all their weights (twins of a trunk, the prunes of one model) each hangs on the one that is most like it, and a prune
//! on what was whole.

use super::search::{Hit, narrowest};
use super::tree::{Apart, Pair, Way};
use super::trial::{Match, PRUNED, Trial, rounded};
use super::window::Weights;
use crate::model::number::Number;
use crate::model::record::Relation;
use crate::model::sketch::Sketch;
use crate::store::sketches::VersionSketch;

use super::super::diff::side::Side;

/// Values of each window that are compared.
const VALUES: usize = 2048;
/// Versions that are farther apart are no kin (mean square).
const FAR: f64 = 0.36;
/// A mean square that is nothing: no dtype's roundings are so small. It gives twins a length.
const LEAST: f64 = 1e-11;
/// How much longer a pair is for what else differs: each other shape (so many at most), the dtype, all zeros.
const SHAPE: f64 = 0.06;
const MOST: usize = 4;
const DTYPE: f64 = 0.06;
const ZEROS: f64 = 0.2;

/// Where the rows that are compared lie: the new version's matrices that stand for it, among its windows and among those
/// that were searched for.
pub struct Rows<'a> {
    mine: &'a [Weights],
    searched: &'a [Weights],
    places: Vec<(Option<usize>, Option<usize>)>,
}

impl Rows<'_> {
    /// `tensors`: those that stand for the new version.
    pub fn new<'a>(tensors: &[usize], mine: &'a [Weights], searched: &'a [Weights]) -> Rows<'a> {
        let place = |all: &[Weights], tensor: usize| all.iter().position(|w| w.tensor == tensor);
        let places = tensors.iter().map(|&t| (place(mine, t), place(searched, t))).collect();
        Rows { mine, searched, places }
    }

    fn windows<'w>(&self, of: impl Fn(usize) -> Option<&'w [f32]>) -> Values {
        Values(self.places.iter().map(|(window, _)| window.and_then(&of).map(some)).collect())
    }

    fn sketches<'s>(&self, of: impl Fn(usize) -> Option<&'s Sketch>) -> Values {
        Values(self.places.iter().map(|(_, sketch)| sketch.and_then(&of).map(|s| s.values.clone())).collect())
    }
}

/// Some values of each row, as a version has them.
struct Values(Vec<Option<Vec<f32>>>);

/// A version as it is compared.
pub struct Face {
    windows: Option<Values>,
    sketches: Values,
    /// The float that all its values are of.
    number: Number,
    /// Shapes of its matrices, sorted.
    shapes: Option<Vec<Vec<u64>>>,
}

impl Face {
    pub fn of_new(side: &Side, rows: &Rows) -> Face {
        let windows = rows.windows(|i| Some(&rows.mine[i].values[..]));
        let sketches = rows.sketches(|i| Some(&rows.searched[i].sketch));
        let number = main_number(rows.mine.iter().map(|w| w.number));
        Face { windows: Some(windows), sketches, number, shapes: Some(shapes(side)) }
    }

    pub fn of_stored(hit: &Hit, version: &VersionSketch, trial: Option<&Trial>, rows: &Rows) -> Face {
        let sketch = |i: usize| hit.matched.iter().position(|m| *m == Some(i)).map(|at| &version.tensors[at]);
        let windows = |t: &Trial| rows.windows(|i| t.matches[i].values(&rows.mine[i]));
        let number = match trial {
            Some(t) => main_number(t.matches.iter().zip(rows.mine).filter_map(|(m, w)| match m {
                Match::Same => Some(w.number),
                Match::Like(old) => Some(old.number),
                Match::Nothing => None,
            })),
            None => narrowest(version.tensors.iter().map(|t| &t.values[..])),
        };
        let (windows, shapes) = (trial.map(windows), trial.map(|t| shapes(&t.side)));
        Face { windows, sketches: rows.sketches(sketch), number, shapes }
    }

    pub fn with_shapes(self, found: impl FnOnce() -> Option<Vec<Vec<u64>>>) -> Face {
        Face { shapes: self.shapes.or_else(found), ..self }
    }

    /// Whether values may be compared as they are: what was quantized has scales of its own.
    pub fn is_float(&self) -> bool {
        self.number.is_float()
    }

    /// By sketches and, where both were tried, by whole windows; nothing where they are no kin.
    pub fn apart(&self, other: &Face) -> Apart {
        let pair = |sums: Sums| (sums.apart < FAR).then(|| self.pair(other, &sums));
        Apart([self.sketches.compared(&other.sketches).and_then(pair), self.in_windows(other).and_then(pair)])
    }

    fn pair(&self, other: &Face, sums: &Sums) -> Pair {
        let [mine, theirs, both] = sums.zeros;
        let shapes = self.shapes.as_ref().zip(other.shapes.as_ref()).map_or(0, |(a, b)| differing(a, b));
        let dtype = (self.number != other.number) as u8 as f64;
        let differs = 1.0 + SHAPE * shapes.min(MOST) as f64 + DTYPE * dtype + ZEROS * (mine + theirs - 2.0 * both);
        let (weight, extra) = (sums.apart * differs, LEAST * (differs + mine.min(theirs)));
        let (way, by) = self.way(other, sums);
        Pair { weight, extra, way, by }
    }

    fn in_windows(&self, other: &Face) -> Option<Sums> {
        let (a, b) = self.windows.as_ref().zip(other.windows.as_ref())?;
        a.compared(b)
    }

    /// Zeros are not taken back, and roundings neither.
    fn way(&self, other: &Face, sums: &Sums) -> (Way, Relation) {
        let [mine, theirs, both] = sums.zeros;
        let near = sums.apart < 0.02;
        match () {
            _ if near && theirs - both >= PRUNED && mine - both < PRUNED / 4.0 => (Way::First, Relation::Prune),
            _ if near && mine - both >= PRUNED && theirs - both < PRUNED / 4.0 => (Way::Second, Relation::Prune),
            _ if self.is_cast_of(other) => (Way::Second, Relation::Cast),
            _ if other.is_cast_of(self) => (Way::First, Relation::Cast),
            _ => (Way::Either, Relation::Finetune),
        }
    }

    /// Are all values of the other one's, rounded?
    fn is_cast_of(&self, other: &Face) -> bool {
        let (a, b) = match (&self.windows, &other.windows) {
            (Some(a), Some(b)) => (a, b),
            _ => (&self.sketches, &other.sketches),
        };
        let mut pairs = a.pairs(b).flat_map(|(x, y)| x.iter().zip(y));
        self.number.width() < other.number.width() && pairs.all(|(x, y)| *x == rounded(self.number, *y))
    }
}

/// What two versions' values come to.
#[derive(Clone, Copy)]
struct Sums {
    apart: f64,
    /// Shares of zeros: in the first, in the second, in both.
    zeros: [f64; 3],
}

impl Values {
    fn pairs<'a>(&'a self, other: &'a Values) -> impl Iterator<Item = (&'a [f32], &'a [f32])> {
        let all = self.0.iter().zip(&other.0);
        all.filter_map(|(a, b)| Some((&a.as_ref()?[..], &b.as_ref()?[..]))).filter(|(a, b)| a.len() == b.len())
    }

    /// `None` where there is too little in both: distances over other rows would not be the same thing.
    fn compared(&self, other: &Values) -> Option<Sums> {
        let (mut apart, mut zeros, mut n, mut values) = (0.0, [0.0; 3], 0, 0);
        for (a, b) in self.pairs(other) {
            let (distance, some) = compared(a, b);
            apart += distance;
            zeros.iter_mut().zip(some).for_each(|(z, s)| *z += s as f64);
            (n, values) = (n + 1, values + a.len());
        }
        let enough = n > 0 && 4 * n >= 3 * self.0.len();
        enough.then(|| Sums { apart: apart / n as f64, zeros: zeros.map(|z| z / values.max(1) as f64) })
    }
}

/// The square of the relative distance where neither is zero, and how many zeros there are: in the first, in the
/// second, in both.
fn compared(a: &[f32], b: &[f32]) -> (f64, [u32; 3]) {
    let (mut far, mut all, mut zeros) = (0f32, 0f32, [0u32; 3]);
    for (&x, &y) in a.iter().zip(b) {
        let (no_x, no_y) = (x == 0.0, y == 0.0);
        zeros[0] += no_x as u32;
        zeros[1] += no_y as u32;
        zeros[2] += (no_x & no_y) as u32;
        let keep = if no_x | no_y { 0.0 } else { 1.0 };
        far += keep * (x - y) * (x - y);
        all += keep * (x * x + y * y);
    }
    (if all > 0.0 { 2.0 * far as f64 / all as f64 } else { 0.0 }, zeros)
}

fn some(values: &[f32]) -> Vec<f32> {
    values.iter().step_by(values.len().div_ceil(VALUES).max(1)).copied().collect()
}

fn main_number(numbers: impl Iterator<Item = Number>) -> Number {
    let all: Vec<Number> = numbers.collect();
    all.iter().copied().max_by_key(|n| all.iter().filter(|m| *m == n).count()).unwrap_or(Number::F32)
}

pub fn shapes(side: &Side) -> Vec<Vec<u64>> {
    let mut shapes: Vec<Vec<u64>> = side.tensors.iter().map(|t| t.shape.clone()).filter(|s| s.len() > 1).collect();
    shapes.sort_unstable();
    shapes
}

/// How many of both lists (sorted) have no counterpart in the other one.
pub fn differing(a: &[Vec<u64>], b: &[Vec<u64>]) -> usize {
    let (mut i, mut j, mut same) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => (i, j, same) = (i + 1, j + 1, same + 1),
        }
    }
    a.len() + b.len() - 2 * same
}
