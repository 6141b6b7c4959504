//! Is a new version a mix of several stored ones (an average, an interpolation, task arithmetic, FedAvg), and with which
//! coefficients? First asked of the sketches, which name the members among many; then of their windows.
//!
//! A fit is taken when nothing but roundings is left, or a small part of the distance to the nearest version. All such
//! merges are linear; one that picks values one by one (TIES, DARE) is told from nothing here.

use super::search::{Hit, narrowest};
use super::trial::{Match, Trial, rounded};
use super::window::Weights;
use crate::codec::fit_coefficients;
use crate::model::id::Id;
use crate::model::number::Number;
use crate::model::sketch::Sketch;
use crate::store::sketches::VersionSketch;

/// Most versions that are asked whether they took part.
pub const MAX_MEMBERS: usize = 64;
/// Share of the distance (RMS) that a mix may leave: `1 / sqrt(n)` is what the mean of `n` siblings leaves of their base.
const LEFT: f64 = 0.05;
/// The same where all of it may be roundings.
const ROUNDED: f64 = 0.3;
/// The same of a mix that is told from sketches alone.
const EXACT: f64 = 0.01;
/// A member's least coefficient.
const LEAST: f64 = 0.01;
/// Where something is taken away, nobody adds more of one member.
const BEYOND: f64 = 1.05;
/// Values that take part in the fit of windows.
const FITTED: usize = 1 << 14;
/// What is added to a scalar product of a version with itself, relative.
const RIDGE: f64 = 1e-9;
/// Roundings that a mix's arithmetic may have made.
const ROUNDINGS: f64 = 3.0;

/// A mix that was found.
#[derive(Clone, PartialEq, Debug)]
pub struct Mix {
    pub members: Vec<(Id, f64)>,
    /// Root mean square of what is left, relative to the weights.
    pub distance: f64,
}

impl Mix {
    /// Does it lie on the far side of one version from others? That one is rather a mix of the others and this one.
    pub fn is_beyond(&self) -> bool {
        is_beyond(self.members.iter().map(|(_, c)| *c))
    }
}

fn is_beyond(coefficients: impl Iterator<Item = f64> + Clone) -> bool {
    let beyond = coefficients.clone().any(|c| c < 0.0) && coefficients.clone().any(|c| c > BEYOND);
    beyond || coefficients.filter(|c| *c > 0.0).count() < 2
}

/// Sketches of the same matrices of many versions, side by side.
struct Table<'a> {
    versions: &'a [VersionSketch],
    mine: &'a [Weights],
    /// Places in `mine`.
    rows: Vec<usize>,
}

impl Table<'_> {
    fn place(hit: &Hit, row: usize) -> Option<usize> {
        hit.matched.iter().position(|m| *m == Some(row))
    }

    fn has_all(&self, hit: &Hit) -> bool {
        self.rows.iter().all(|r| Table::place(hit, *r).is_some())
    }

    /// The values of a stored version that has all rows.
    fn stored(&self, hit: &Hit) -> Vec<f64> {
        let places = self.rows.iter().filter_map(|r| Table::place(hit, *r));
        places.flat_map(|p| widened(&self.versions[hit.seq].tensors[p])).collect()
    }

    /// The new version's.
    fn new_values(&self) -> Vec<f64> {
        self.rows.iter().flat_map(|&r| widened(&self.mine[r].sketch)).collect()
    }
}

fn widened(sketch: &Sketch) -> impl Iterator<Item = f64> {
    sketch.values.iter().map(|v| *v as f64)
}

/// The coefficients of a fit that leaves at most this share; none where the columns differ in length.
fn fitted(columns: &[Vec<f64>], share: f64) -> Vec<(usize, f64)> {
    let sound = columns.iter().all(|c| c.len() == columns[0].len() && !c.is_empty());
    let fit = (sound && lies_within(columns, share)).then(|| fit_coefficients(columns, share)).flatten();
    fit.unwrap_or_default().into_iter().filter(|(_, c)| c.abs() >= LEAST).collect()
}

/// The versions that the sketches say took part; none when they explain little.
pub fn members(hits: &[Hit], versions: &[VersionSketch], mine: &[Weights]) -> Vec<Id> {
    let hits = &hits[..hits.len().min(MAX_MEMBERS)];
    let table = Table { versions, mine, rows: common_rows(hits, mine.len()) };
    let all: Vec<&Hit> = hits.iter().filter(|h| table.has_all(h)).collect();
    if all.len() < 2 {
        return vec![];
    }
    let columns: Vec<Vec<f64>> = all.iter().map(|h| table.stored(h)).chain([table.new_values()]).collect();
    // Siblings of a base that is not here halve the square by chance: their mean is that base.
    fitted(&columns, 0.5).into_iter().map(|(i, _)| all[i].id).collect()
}

/// A mix of the new version (`None`) and others that the stored version `target` turns out to be, by their sketches; only
/// where the fit is as good as exact.
pub fn members_of(target: &Hit, hits: &[Hit], versions: &[VersionSketch], mine: &[Weights]) -> Vec<(Option<Id>, f64)> {
    let rows = common_rows(hits, mine.len()).into_iter().filter(|r| Table::place(target, *r).is_some()).collect();
    let table = Table { versions, mine, rows };
    let others: Vec<&Hit> = hits.iter().filter(|h| h.id != target.id && table.has_all(h)).collect();
    let stored = others.iter().map(|h| table.stored(h));
    let columns: Vec<Vec<f64>> = [table.new_values()].into_iter().chain(stored).chain([table.stored(target)]).collect();
    let number = narrowest(versions[target.seq].tensors.iter().map(|t| &t.values[..]));
    let noise = root_of_squares(columns[columns.len() - 1].iter().map(|v| step_of(number, *v) / 12f64.sqrt()));
    let far = left(&columns, &[(0, 1.0)]);
    let share = unexplained(noise, far);
    if !lies_within(&thinned(&columns), share) {
        return vec![];
    }
    let found = fitted(&columns, share);
    let takes_part = found.iter().any(|(i, c)| *i == 0 && (LEAST..1.0).contains(c));
    let exact = takes_part && left(&columns, &found) <= far * share.max(EXACT);
    match exact && is_plausible(&found) && !is_beyond(found.iter().map(|(_, c)| *c)) {
        true => found.into_iter().map(|(i, c)| (i.checked_sub(1).map(|i| others[i].id), c)).collect(),
        false => vec![],
    }
}

/// Which of the stored versions may be mixes of others and the new one: of which the others leave little, when it takes
/// part. All are asked at once: the inverse of the matrix of scalar products has the coefficients of each (the
/// partial regression, Whittaker 1990).
pub fn suspects(hits: &[Hit], versions: &[VersionSketch], mine: &[Weights]) -> Vec<Hit> {
    let table = Table { versions, mine, rows: common_rows(hits, mine.len()) };
    let mut all: Vec<&Hit> = hits.iter().filter(|h| table.has_all(h) && h.distance > 0.0).collect();
    all.dedup_by_key(|h| h.distance.to_bits()); // Twins.
    if all.len() < 2 || table.rows.is_empty() {
        return vec![];
    }
    let new = table.new_values();
    let columns: Vec<Vec<f64>> = all.iter().map(|h| table.stored(h)).collect();
    if columns.iter().any(|c| c.len() != new.len()) {
        return vec![];
    }
    // All as steps from the new one, whose share is what the others leave of 1.
    let steps: Vec<Vec<f64>> = columns.iter().map(|c| c.iter().zip(&new).map(|(a, b)| a - b).collect()).collect();
    let Some(inverse) = inverse(scalar_products(&steps)) else { return vec![] };
    let may_be = |i: usize| {
        let far = root_of_squares(steps[i].iter().copied());
        let number = narrowest(versions[all[i].seq].tensors.iter().map(|t| &t.values[..]));
        let noise = root_of_squares(columns[i].iter().map(|v| step_of(number, *v) / 12f64.sqrt()));
        let others: f64 = (0..all.len()).filter(|j| *j != i).map(|j| -inverse[i][j] / inverse[i][i]).sum();
        let most = unexplained(noise, far) * far;
        1.0 / inverse[i][i] <= most * most && (LEAST / 2.0..1.0).contains(&(1.0 - others))
    };
    (0..all.len()).filter(|i| may_be(*i)).map(|i| all[i].clone()).collect()
}

/// The share of a distance that a mix may leave for its roundings.
fn unexplained(noise: f64, far: f64) -> f64 {
    (ROUNDINGS * noise / far).clamp(EXACT, ROUNDED)
}

/// With a little more on the diagonal, so that copies do no harm; of each its own share, for lengths differ much.
fn scalar_products(columns: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let mut out: Vec<Vec<f64>> = columns.iter().map(|a| columns.iter().map(|b| dot(a, b)).collect()).collect();
    (0..out.len()).for_each(|i| out[i][i] *= 1.0 + RIDGE);
    out
}

/// Of a symmetric positive definite matrix, by Gauss and Jordan.
fn inverse(mut m: Vec<Vec<f64>>) -> Option<Vec<Vec<f64>>> {
    for k in 0..m.len() {
        let pivot = m[k][k];
        if pivot <= 0.0 || !pivot.is_finite() {
            return None;
        }
        m[k][k] = 1.0;
        m[k].iter_mut().for_each(|v| *v /= pivot);
        let row = m[k].clone();
        for (_, other) in m.iter_mut().enumerate().filter(|(i, _)| *i != k) {
            let factor = std::mem::take(&mut other[k]);
            other.iter_mut().zip(&row).for_each(|(v, r)| *v -= factor * r);
        }
    }
    Some(m)
}

/// Of many values a few, but more than there are columns: enough to see that there is no fit.
fn thinned(columns: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let most = 2 * columns.len() + 32;
    let step = columns.iter().map(Vec::len).max().unwrap_or(0).div_ceil(most).max(1);
    columns.iter().map(|c| c.iter().step_by(step).copied().collect()).collect()
}

/// The new version's matrices that most of the hits have sketches like.
fn common_rows(hits: &[Hit], matrices: usize) -> Vec<usize> {
    let mut counts = vec![0; matrices];
    hits.iter().flat_map(|h| h.matched.iter().flatten()).for_each(|&m| counts[m] += 1);
    let most = counts.iter().copied().max().unwrap_or(0);
    (0..matrices).filter(|&m| most > 0 && 5 * counts[m] >= 4 * most).collect()
}

/// Would anybody mix so? Several, with a sum of 1, and at most one of them (task arithmetic's base) taken away: a version
/// can be computed from merges in which it took part, but was not.
fn is_plausible(members: &[(usize, f64)]) -> bool {
    let sum: f64 = members.iter().map(|(_, c)| c).sum();
    let odd = members.iter().filter(|(_, c)| *c < 0.0).count();
    members.len() > 1 && (sum - 1.0).abs() < 0.2 && odd <= 1 && members.iter().all(|(_, c)| c.abs() <= 2.0)
}

/// The mix of these that the new version is.
pub fn fit(trials: &[&Trial], mine: &[Weights]) -> Option<Mix> {
    let near: Vec<&&Trial> = trials.iter().filter(|t| t.matched() > 0.5).collect();
    if near.len() < 2 {
        return None;
    }
    let columns = columns(&near, mine)?;
    let (x, noise) = (columns.values.last()?, columns.noise);
    let size = root_of_squares(x.iter().copied());
    let apart = |y: &Vec<f64>| root_of_squares(x.iter().zip(y).map(|(a, b)| a - b));
    let nearest = columns.values[..near.len()].iter().map(apart).fold(f64::MAX, f64::min);
    if nearest <= 2.0 * noise || size == 0.0 {
        return None; // One version explains it.
    }
    let found = fitted(&columns.values, 0.7);
    let left = left(&columns.values, &found);
    let explained = left <= LEFT * nearest || left <= ROUNDINGS * noise;
    if !explained || !is_plausible(&found) {
        return None;
    }
    let members = found.iter().map(|&(i, c)| (near[i].head.id, c)).collect();
    Some(Mix { members, distance: left / size })
}

/// Is at most this share of the distance between the last column and the first outside of what the others span around
/// the first? (Gram-Schmidt, modified: far cheaper than a fit that comes to nothing.)
fn lies_within(columns: &[Vec<f64>], share: f64) -> bool {
    let [first, others @ .., target] = columns else { return false };
    let less_first = |c: &Vec<f64>| -> Vec<f64> { c.iter().zip(first).map(|(a, b)| a - b).collect() };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let mut left = less_first(target);
    let start = dot(&left, &left);
    let mut basis: Vec<Vec<f64>> = Vec::new();
    for c in others {
        let mut v = less_first(c);
        let size = dot(&v, &v);
        for b in &basis {
            let f = dot(&v, b);
            v.iter_mut().zip(b).for_each(|(x, y)| *x -= f * y);
        }
        let norm = dot(&v, &v);
        if norm <= 1e-10 * size {
            continue; // Nothing new.
        }
        v.iter_mut().for_each(|x| *x /= norm.sqrt());
        let f = dot(&left, &v);
        left.iter_mut().zip(&v).for_each(|(x, y)| *x -= f * y);
        basis.push(v);
    }
    dot(&left, &left) <= share * share * start
}

/// Root of the summed squares that a mix of the columns leaves of the last one.
fn left(columns: &[Vec<f64>], mix: &[(usize, f64)]) -> f64 {
    let target = columns.last().expect("a column for the target");
    root_of_squares((0..target.len()).map(|i| target[i] - mix.iter().map(|(m, c)| c * columns[*m][i]).sum::<f64>()))
}

fn root_of_squares(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

struct Columns {
    /// For each version, then for the new one.
    values: Vec<Vec<f64>>,
    /// Root of the summed squares that rounding to the new version's dtype leaves.
    noise: f64,
}

/// Values of the matrices that all of them have, where at least one differs.
fn columns(near: &[&&Trial], mine: &[Weights]) -> Option<Columns> {
    let shared = |i: &usize| near.iter().all(|t| !matches!(t.matches[*i], Match::Nothing));
    let differs = |i: &usize| near.iter().any(|t| matches!(t.matches[*i], Match::Like(_)));
    let rows: Vec<usize> = (0..mine.len()).filter(shared).filter(differs).collect();
    let all: usize = rows.iter().map(|&i| mine[i].values.len()).sum();
    let step = all.div_ceil(FITTED).max(1) | 1;
    let picked = |w: &Weights| w.values.iter().step_by(step).map(|v| *v as f64).collect::<Vec<f64>>();
    let of = |t: &&&Trial| -> Vec<f64> {
        let window =
            |&i: &usize| if let Match::Like(theirs) = &t.matches[i] { picked(theirs) } else { picked(&mine[i]) };
        rows.iter().flat_map(window).collect()
    };
    let mut values: Vec<Vec<f64>> = near.iter().map(of).collect();
    values.push(rows.iter().flat_map(|&i| picked(&mine[i])).collect());
    let noise = rows.iter().flat_map(|&i| picked(&mine[i]).into_iter().map(move |v| step_of(mine[i].number, v)));
    let noise = root_of_squares(noise) / 12f64.sqrt();
    let sound = values[0].len() >= 32 && values.iter().all(|c| c.len() == values[0].len());
    sound.then_some(Columns { values, noise })
}

/// How far apart the values of a dtype lie around one.
fn step_of(number: Number, v: f64) -> f64 {
    let bits = match number {
        Number::Bf16 => 8,
        Number::F16 => 11,
        Number::F32 => 24,
        Number::F64 => 53,
        _ => return 1.0,
    };
    let v = rounded(number, v as f32) as f64;
    if v == 0.0 { 0.0 } else { v.abs().log2().floor().exp2() * 2f64.powi(1 - bits) }
}

/// Do the names speak of federated learning?
pub fn is_federated<'a>(mut names: impl Iterator<Item = &'a str>) -> bool {
    names.any(|n| ["fed", "client"].iter().any(|word| n.to_lowercase().contains(word)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::sketch;

    const SHAPE: [u64; 2] = [64, 64];
    const MATRICES: usize = 8;
    const SIZE: usize = sketch::WINDOW as usize;

    fn noise(seed: u64) -> Vec<f64> {
        let at = |i: u64| Id::of(&[seed.to_le_bytes(), i.to_le_bytes()].concat()).0;
        (0..(MATRICES * SIZE) as u64)
            .map(|i| u32::from_le_bytes(*at(i).first_chunk().unwrap()) as f64 / 2f64.powi(32) - 0.5)
            .collect()
    }

    fn sum(parts: &[(&[f64], f64)]) -> Vec<f64> {
        (0..parts[0].0.len()).map(|i| parts.iter().map(|(p, c)| c * p[i]).sum()).collect()
    }

    /// A base, fine-tunes of it, the mean of the first two, an interpolation of the last two, and the
    /// base on another scale.
    struct Case {
        models: Vec<Vec<f64>>,
    }

    impl Case {
        fn new() -> Case {
            let base = noise(1);
            let mut models: Vec<Vec<f64>> = (2..6).map(|s| sum(&[(&base, 1.0), (&noise(s), 0.05)])).collect();
            models.push(sum(&[(&models[0], 0.5), (&models[1], 0.5)]));
            models.push(sum(&[(&models[2], 0.7), (&models[3], 0.3)]));
            // Of another scale, as what was quantized: it is far from all.
            models.push(sum(&[(&base, 1e5)]));
            Case { models: [vec![base], models].concat() }
        }

        fn matrices(&self, model: usize, round: fn(f64) -> f32) -> Vec<Weights> {
            let one = |(tensor, part): (usize, &[f64])| {
                let values: Vec<f32> = part.iter().map(|v| round(*v)).collect();
                let sketch = Sketch::of_window(&SHAPE, &values).unwrap();
                let number = narrowest([&values[..]].into_iter());
                Weights { tensor, id: Id::of(b""), number, shape: SHAPE.to_vec(), values, sketch }
            };
            self.models[model].chunks(SIZE).enumerate().map(one).collect()
        }

        /// The stored ones that turn out to be merges when `new` comes last, and their members.
        fn found(&self, new: usize, round: fn(f64) -> f32) -> Vec<(usize, Vec<usize>)> {
            let stored: Vec<usize> = (0..self.models.len()).filter(|m| *m != new).collect();
            let version = |&m: &usize| VersionSketch {
                id: Id([m as u8; 32]),
                lanes: [m as u32; crate::store::sketches::LANES],
                tensors: self.matrices(m, round).into_iter().map(|w| w.sketch).collect(),
            };
            let versions: Vec<VersionSketch> = stored.iter().map(version).collect();
            let mine = self.matrices(new, round);
            let hits = super::super::search::search(&versions, &[u32::MAX; crate::store::sketches::LANES], &mine);
            let suspects = suspects(&hits, &versions, &mine);
            let simple: Vec<Hit> = hits.iter().filter(|h| !suspects.iter().any(|s| s.id == h.id)).cloned().collect();
            let members = |t: &Hit| {
                let of = members_of(t, &simple, &versions, &mine);
                let mut of: Vec<usize> = of.iter().map(|(id, _)| id.map_or(new, |id| id.0[0] as usize)).collect();
                of.sort_unstable();
                of
            };
            let found = suspects.iter().map(|s| (s.id.0[0] as usize, members(s)));
            found.filter(|(_, of)| !of.is_empty()).collect()
        }
    }

    #[test]
    fn merges_are_known_by_their_last_member() {
        let case = Case::new();
        for round in [(|v| v as f32) as fn(f64) -> f32, |v| rounded(Number::Bf16, v as f32)] {
            for (last, merge, members) in [(1, 5, [1, 2]), (2, 5, [1, 2]), (3, 6, [3, 4]), (4, 6, [3, 4])] {
                assert_eq!(case.found(last, round), [(merge, members.to_vec())], "with {last} last");
            }
            assert_eq!(case.found(0, round), [], "the base takes part in none");
        }
    }
}
