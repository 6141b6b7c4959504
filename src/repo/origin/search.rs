//! Which versions may be kin to a new one: a look at the sketches of all, without reading a tensor.
//!
//! Every sketch of a stored version is compared with those of the new one's matrices of the same kind: names and
//! order don't matter. A sketch that lies on the other side in a quarter of its values is passed by after one look at
//! two words, so a look at ten thousand versions takes milliseconds.

use std::collections::HashMap;
use std::sync::Arc;

use log::Level;
use rayon::prelude::*;

use super::super::diff::side::Side;
use super::super::progress::Progress;
use super::super::{Repo, RepoError};
use super::Ask;
use super::trial::rounded;
use super::window::{self, Weights};
use crate::model::id::Id;
use crate::model::number::Number;
use crate::model::sketch::{self, Sketch};
use crate::store::sketches::{LANES, SketchFile, VersionSketch, lanes};

/// Versions of equal sketches that are tried.
const ALIKE: usize = 4;
/// Versions that are sketched between two looks at whether to stop.
const STEP: usize = 64;

/// The sketches of all versions, those that were missing made now.
pub fn index(repo: &Arc<Repo>, ask: &mut dyn Ask, progress: &dyn Progress) -> Result<Vec<VersionSketch>, RepoError> {
    if !SketchFile::exists(&repo.disk, &repo.dir) && ask.since(0)?.is_empty() {
        return Ok(vec![]);
    }
    complete(repo, ask, progress, true)
}

/// Sketches what was committed since, without a look at the others.
pub fn remember(repo: &Arc<Repo>, ask: &mut dyn Ask, progress: &dyn Progress) -> Result<(), RepoError> {
    complete(repo, ask, progress, false).map(drop)
}

/// The file, what it holds if that is to be `read`, and the versions that are missing in it. Nobody is asked while it is
/// locked: to answer takes the repository, and who has that may be waiting for the file.
fn missing(repo: &Repo, ask: &mut dyn Ask, read: bool) -> Result<(SketchFile, Vec<VersionSketch>, Vec<Id>), RepoError> {
    let open = || SketchFile::open(&repo.disk, &repo.dir);
    let mut from = open()?.count.saturating_sub(1);
    loop {
        let mut ids = ask.since(from as u64)?;
        let mut file = open()?;
        let versions = if read { file.read()? } else { vec![] };
        let now = file.count.saturating_sub(1);
        if now < from || now - from > ids.len() {
            from = now; // It was cut, or holds more than was told.
            continue;
        }
        ids.drain(..now - from);
        match (file.last, ids.first()) {
            (None, _) => return Ok((file, versions, ids)),
            (Some(last), Some(first)) if last == *first => {
                ids.remove(0);
                return Ok((file, versions, ids));
            }
            _ => file.clear()?, // It is of another order of commits.
        }
        from = 0;
    }
}

/// Adds those that are missing to the file, and to what was read of it.
fn complete(
    repo: &Arc<Repo>,
    ask: &mut dyn Ask,
    progress: &dyn Progress,
    read: bool,
) -> Result<Vec<VersionSketch>, RepoError> {
    let (mut file, mut versions, ids) = missing(repo, ask, read)?;
    if !ids.is_empty() {
        repo.refresh()?; // They may have been committed since.
    }
    let mut kept = Ok(());
    for some in ids.chunks(STEP) {
        progress.check()?;
        let made: Vec<VersionSketch> = some.par_iter().map(|id| sketch_of(repo, id)).collect();
        kept = kept.and_then(|()| file.add(&made));
        versions.extend(made);
    }
    if let Err(e) = kept {
        log::info!("not all sketches are kept: {e}");
    }
    Ok(versions)
}

/// One that cannot be read has no sketches.
fn sketch_of(repo: &Arc<Repo>, id: &Id) -> VersionSketch {
    let side = repo.record(id).and_then(|record| Side::of_version(repo, &record));
    match side {
        Ok(side) => VersionSketch {
            id: *id,
            lanes: lanes_of(&side),
            tensors: window::sketched(&side).into_iter().map(|w| w.sketch).collect(),
        },
        Err(e) => {
            log::log!(level_of(&e), "version {id} is not searched: {e}");
            VersionSketch { id: *id, lanes: [u32::MAX; LANES], tensors: vec![] }
        }
    }
}

/// How loudly it is said that a version cannot be read.
pub fn level_of(e: &RepoError) -> Level {
    if e.is_missing() { Level::Debug } else { Level::Warn }
}

/// Of all tensors of a version.
pub fn lanes_of(side: &Side) -> [u32; LANES] {
    lanes(side.tensors.iter().map(|t| &t.id))
}

/// A version that looks like kin.
#[derive(Clone, Debug)]
pub struct Hit {
    /// Its place in the order of commits.
    pub seq: usize,
    pub id: Id,
    /// Mean square of the sketches' relative distances.
    pub distance: f64,
    /// Other differences: zeros, numbers of rows.
    pub mismatches: u32,
    /// Lanes that agree: about the share of identical objects.
    pub common: usize,
    /// For each of its sketches, the new version's matrix that is most like it.
    pub matched: Vec<Option<usize>>,
}

/// All that look like kin, the nearest first; of those equally near the one with fewer other differences, with more in
/// common, the older.
pub fn search(versions: &[VersionSketch], lanes: &[u32; LANES], mine: &[Weights]) -> Vec<Hit> {
    let mut classes: HashMap<u32, Vec<usize>> = HashMap::new();
    mine.iter().enumerate().for_each(|(i, w)| classes.entry(w.sketch.class).or_default().push(i));
    let hit = |(seq, v): (usize, &VersionSketch)| hit(seq, v, lanes, mine, &classes);
    let mut hits: Vec<Hit> = versions.par_iter().enumerate().filter_map(hit).collect();
    let rest = |h: &Hit| (h.mismatches, std::cmp::Reverse(h.common), h.seq);
    hits.sort_by(|a, b| a.distance.total_cmp(&b.distance).then_with(|| rest(a).cmp(&rest(b))));
    hits
}

fn hit(
    seq: usize,
    version: &VersionSketch,
    lanes: &[u32; LANES],
    mine: &[Weights],
    classes: &HashMap<u32, Vec<usize>>,
) -> Option<Hit> {
    let common = version.lanes.iter().zip(lanes).filter(|(a, b)| a == b && **a != u32::MAX).count();
    let of_class = |s: &Sketch| classes.get(&s.class).map_or(&[][..], |c| c);
    let matched: Vec<Option<usize>> =
        version.tensors.iter().map(|s| most_like(s, of_class(s).iter().map(|&i| (i, &mine[i].sketch)))).collect();
    let found: Vec<f64> =
        version.tensors.iter().zip(&matched).filter_map(|(s, m)| Some(distance(&mine[(*m)?], s))).collect();
    // A table that all models have alike (sinusoids) is not enough.
    if found.is_empty() || (3 * found.len() < version.tensors.len() && common < 2) {
        return None;
    }
    let distance = found.iter().sum::<f64>() / found.len() as f64;
    let pairs = version.tensors.iter().zip(&matched).filter_map(|(s, m)| Some((s, &mine[(*m)?].sketch)));
    let mismatches = pairs.map(|(s, m)| s.mismatches(m)).sum();
    Some(Hit { seq, id: version.id, distance, mismatches, common, matched })
}

/// The narrowest float that has all these values.
pub fn narrowest<'a>(values: impl Iterator<Item = &'a [f32]> + Clone) -> Number {
    let fits = |to: Number| values.clone().flatten().all(|v| rounded(to, *v) == *v);
    [Number::Bf16, Number::F16].into_iter().find(|n| fits(*n)).unwrap_or(Number::F32)
}

fn is_coarse(version: &VersionSketch) -> bool {
    narrowest(version.tensors.iter().map(|t| &t.values[..])).width() < 4
}

/// Whole numbers: what was quantized.
pub fn is_whole(version: &VersionSketch) -> bool {
    version.tensors.iter().all(|t| t.values.iter().all(|v| v.fract() == 0.0))
}

/// The nearest, but of those that look all the same (heads on one trunk, renamed copies) only a few; and some of the
/// nearest of the new version's own precision, and of those that were quantized, which roundings hide among others.
pub fn candidates(hits: &[Hit], versions: &[VersionSketch], mine: &[Weights], most: usize) -> Vec<Id> {
    let coarse = mine.iter().all(|w| w.number.width() < 4);
    let alike: Vec<Hit> = hits.iter().filter(|h| is_coarse(&versions[h.seq]) == coarse).cloned().collect();
    let whole: Vec<Hit> = hits.iter().filter(|h| is_whole(&versions[h.seq])).cloned().collect();
    let mut out = distinct(hits, most);
    for id in distinct(&alike, most / 2).into_iter().chain(distinct(&whole, ALIKE)) {
        if !out.contains(&id) {
            out.push(id);
        }
    }
    out
}

fn distinct(hits: &[Hit], most: usize) -> Vec<Id> {
    let mut out = Vec::new();
    for (i, hit) in hits.iter().enumerate() {
        let alike = hits[..i].iter().rev().take_while(|h| h.distance == hit.distance).count();
        if alike < ALIKE && out.len() < most {
            out.push(hit.id);
        }
    }
    out
}

/// The one of `others` that is most like `sketch`, if it is kin.
pub fn most_like<'a>(sketch: &Sketch, others: impl Iterator<Item = (usize, &'a Sketch)>) -> Option<usize> {
    let kin = |(i, o): (usize, &'a Sketch)| {
        let l = sketch.likeness(o).filter(|l| l.is_kin())?;
        // Of those as like, the one with more to compare.
        Some((i, (l.correlation * 1e6).round() / 1e6 + l.places as f64 * 1e-9))
    };
    others.filter_map(kin).max_by(|a, b| a.1.total_cmp(&b.1)).map(|(i, _)| i)
}

/// Square of the relative distance where neither is zero; for what was quantized, with a scale for each row.
fn distance(new: &Weights, old: &Sketch) -> f64 {
    if new.number.is_float() {
        return apart_of(&new.sketch, old);
    }
    let mut rows: HashMap<u64, [f64; 3]> = HashMap::new();
    let values = new.sketch.values.iter().zip(&old.values).map(|(a, b)| (*a as f64, *b as f64));
    for (row, (a, b)) in sketch::rows(&new.shape).into_iter().zip(values).filter(|(_, (a, b))| *a != 0.0 && *b != 0.0) {
        let sums = rows.entry(row).or_default();
        (sums[0], sums[1], sums[2]) = (sums[0] + a * a, sums[1] + a * b, sums[2] + b * b);
    }
    let (left, all) = rows.values().fold((0.0, 0.0), |(l, all), [aa, ab, bb]| (l + aa - ab * ab / bb, all + aa));
    if all > 0.0 { (left / all).clamp(0.0, 1.0) } else { 1.0 }
}

/// The same of two sketches, of another scale what correlation leaves.
fn apart_of(new: &Sketch, old: &Sketch) -> f64 {
    let pairs = new.values.iter().zip(&old.values).filter(|(a, b)| **a != 0.0 && **b != 0.0);
    let sum = |f: &dyn Fn(f64, f64) -> f64| pairs.clone().map(|(a, b)| f(*a as f64, *b as f64)).sum::<f64>();
    let (new2, old2, apart) = (sum(&|a, _| a * a), sum(&|_, b| b * b), sum(&|a, b| (a - b) * (a - b)));
    if (0.5..2.0).contains(&(old2 / new2)) {
        return 2.0 * apart / (new2 + old2);
    }
    new.likeness(old).map_or(1.0, |l| 1.0 - l.correlation * l.correlation)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MATRICES: usize = 8;
    const SHAPE: [u64; 2] = [384, 384];

    /// Values that look normal: a version's own, or its family's with a small step.
    fn values(family: u64, version: u64) -> Vec<f32> {
        let mut state = family * 2 + 1;
        let next = move |seed: &mut u64| {
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (*seed >> 33) as f32 / (1u64 << 30) as f32 - 1.0
        };
        let mut step = version;
        (0..sketch::WINDOW).map(|_| next(&mut state) + 0.01 * next(&mut step)).collect()
    }

    fn version(n: u64, families: u64) -> VersionSketch {
        let tensor = |m: u64| Sketch::of_window(&SHAPE, &values(n % families + (m << 20), n * 1000 + m)).unwrap();
        let tensors = (0..MATRICES as u64).map(tensor).collect();
        VersionSketch { id: Id::of(&n.to_le_bytes()), lanes: [n as u32; LANES], tensors }
    }

    fn weights(family: u64) -> Vec<Weights> {
        let one = |m: u64| {
            let values = values(family + (m << 20), 7);
            let sketch = Sketch::of_window(&SHAPE, &values).unwrap();
            Weights { tensor: m as usize, id: Id::of(b""), number: Number::F32, shape: SHAPE.to_vec(), values, sketch }
        };
        (0..MATRICES as u64).map(one).collect()
    }

    #[test]
    fn a_family_is_found_among_others() {
        let all: Vec<VersionSketch> = (0..60).map(|n| version(n, 6)).collect();
        let hits = search(&all, &[u32::MAX; LANES], &weights(4));
        assert_eq!(hits.len(), 10);
        assert!(hits.iter().all(|h| h.seq % 6 == 4 && h.matched.iter().flatten().count() == MATRICES));
    }

    /// By hand: cargo test --release --lib search -- --ignored --nocapture
    #[test]
    #[ignore = "prints figures"]
    fn speed_among_ten_thousand() {
        for (families, count) in [(100, 10_000), (1, 10_000)] {
            let all: Vec<VersionSketch> = (0..count).map(|n| version(n, families)).collect();
            let mine = weights(0);
            let start = std::time::Instant::now();
            let hits = search(&all, &[u32::MAX; LANES], &mine);
            println!("{count} versions in {families} families: {} hits in {:?}", hits.len(), start.elapsed());
        }
    }
}
