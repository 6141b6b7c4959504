//! From evidence to edges: pure functions of trials.

use std::collections::{BTreeMap, HashSet};

use super::super::diff::side::{Side, Tensor};
use super::trial::{Measure, PRUNED, Trial};
use super::window::Weights;
use crate::model::record::Relation;

/// Share of values that must be exactly those of a cast.
const EXACT: f64 = 0.999;
/// Least share of the matrices that must correspond, and the largest relative distance of these.
const MATCHED: f64 = 1.0 / 3.0;
/// Or the share of the bytes that is the same.
const IDENTICAL: f64 = 0.25;
const FAR: f64 = 0.6;
/// Mean squares that are so near are equal.
const EQUAL: f64 = 2e-4;

/// Is the stored version kin at all?
pub fn is_kin(t: &Trial) -> bool {
    (t.matched() >= MATCHED || t.identical >= IDENTICAL) && t.distance().min(t.distance_back()) < FAR
}

/// Is the first a better parent than the second? Nearness over what both match decides; where they are equally near
/// what they share bit for bit, the shapes, what else corresponds, the least beside that; then the one with the same zeros, or else with fewer
/// of its own (a prune's source, not another prune), the dtype, and at last age.
pub fn is_better(a: &Trial, b: &Trial, new: &Side, mine: &[Weights], model: &str) -> bool {
    let (near_a, near_b) = a.common(b);
    if (near_a - near_b).abs() > EQUAL * near_a.max(near_b) + 1e-15 {
        return near_a < near_b;
    }
    let dtypes = |t: &Trial| same_dtypes(&t.side, new);
    let rank = |t: &Trial| {
        let percent = |v: f64| (v * 1000.0).round() as i64;
        let other_model = t.head.model.as_str() != model;
        let same = (-percent(t.identical), t.resized(mine), -percent(t.matched()), extras(&t.side, new));
        (same, t.is_pruned(), percent(t.zeros()), !dtypes(t), other_model, t.head.seq)
    };
    rank(a) < rank(b)
}

/// Matrices of shapes that the new version has none of: another head.
fn extras(old: &Side, new: &Side) -> usize {
    let shapes: HashSet<&[u64]> = new.tensors.iter().map(|t| &t.shape[..]).collect();
    old.tensors.iter().filter(|t| t.shape.len() > 1 && !shapes.contains(&t.shape[..])).count()
}

fn same_dtypes(a: &Side, b: &Side) -> bool {
    let main = |s: &Side| {
        let mut bytes: BTreeMap<&str, u64> = BTreeMap::new();
        s.tensors.iter().for_each(|t| *bytes.entry(&t.dtype).or_default() += t.length);
        bytes.into_iter().max_by_key(|(_, n)| *n).map(|(d, _)| d.to_owned())
    };
    main(a) == main(b)
}

/// The best parent of those that are kin.
pub fn best<'a>(
    trials: impl Iterator<Item = &'a Trial>,
    new: &Side,
    mine: &[Weights],
    model: &str,
) -> Option<&'a Trial> {
    trials.filter(|t| is_kin(t)).fold(None, |best, t| match best {
        Some(b) if !is_better(t, b, new, mine, model) => Some(b),
        _ => Some(t),
    })
}

/// By what operation the new version came from the stored one.
pub fn relation(t: &Trial, new: &Side, mine: &[Weights]) -> Relation {
    if let Some(same) = same_tensors(&t.side, new) {
        return same;
    }
    let changed: Vec<_> = t.changed(mine).collect();
    let share = |f: &dyn Fn(&(&Weights, &Weights)) -> bool| 2 * changed.iter().filter(|p| f(p)).count() > changed.len();
    match () {
        _ if share(&|(w, o)| !w.number.is_float() && o.number.is_float()) => Relation::Quantize,
        _ if t.is_pruned() => Relation::Prune,
        _ if share(&|(w, o)| w.number != o.number) && t.mean_changed(|m| m.exact) >= EXACT => Relation::Cast,
        _ if t.resized(mine) > 0 && t.distance() == 0.0 => Relation::Resize,
        _ if t.matched() < 0.5 => Relation::Derived,
        _ => Relation::Finetune,
    }
}

/// What the operation would be called with the new version as the parent: only where it has one direction.
pub fn backwards(t: &Trial, mine: &[Weights]) -> Option<Relation> {
    let changed: Vec<_> = t.changed(mine).collect();
    let most = |f: &dyn Fn(&(&Weights, &Weights)) -> bool| 2 * changed.iter().filter(|p| f(p)).count() > changed.len();
    let mean = |of: fn(&Measure) -> f64| t.mean_changed(of);
    match () {
        _ if changed.is_empty() => None,
        _ if most(&|(w, o)| w.number.is_float() && !o.number.is_float()) => Some(Relation::Quantize),
        _ if mean(|m| m.old_zeros) >= PRUNED && mean(|m| m.new_zeros) < PRUNED => Some(Relation::Prune),
        _ if most(&|(w, o)| w.number != o.number) && mean(|m| m.exact_back) >= EXACT && mean(|m| m.exact) < EXACT => {
            Some(Relation::Cast)
        }
        _ => None,
    }
}

/// With all tensors the same: what else was done.
fn same_tensors(old: &Side, new: &Side) -> Option<Relation> {
    fn sorted<'a, K: Ord>(side: &'a Side, key: impl Fn(&'a Tensor) -> K) -> Vec<K> {
        let mut all: Vec<K> = side.tensors.iter().map(key).collect();
        all.sort();
        all
    }
    let ids = |s| sorted(s, |t| t.id);
    if ids(old) != ids(new) {
        return None;
    }
    let names = |s| sorted(s, |t: &Tensor| (t.name.as_str(), t.id));
    let files = |s: &Side| s.files.iter().filter(|f| f.is_safetensors()).count();
    Some(match () {
        _ if names(old) != names(new) => Relation::Rename,
        _ if files(old) != files(new) => Relation::Reshard,
        _ => Relation::Derived,
    })
}

/// Does nothing in the content tell which of the two came first?
pub fn is_symmetric(relation: Relation) -> bool {
    use Relation::{Adapter, Derived, Finetune, Rename, Reshard, Resize};
    matches!(relation, Adapter | Derived | Finetune | Rename | Reshard | Resize)
}

/// How sure a parent is: by what it explains, and how much nearer it is than the next one. Those that are as near
/// (a copy, a cast) were told apart by something else.
pub fn confidence(best: &Trial, others: &[&Trial], relation: Relation) -> f64 {
    if best.distance() == 0.0 || matches!(relation, Relation::Cast | Relation::Quantize) {
        return 0.99;
    }
    let ratio = |o: &&Trial| {
        let (a, b) = best.common(o);
        (b * (1.0 - EQUAL) > a).then(|| a / b)
    };
    let margin = 1.0 - others.iter().filter_map(ratio).fold(0.0, f64::max);
    (0.75 + 0.23 * margin) * (0.5 + 0.5 * best.matched())
}

/// The evidence in words.
pub fn evidence(t: &Trial, relation: Relation) -> String {
    let percent = |v: f64| format!("{:.1} %", 100.0 * v);
    let changed = t.measures.len() - t.measures.iter().filter(|m| m.is_none()).count();
    let exact = match relation {
        Relation::Cast => "all values are exactly the cast ones",
        Relation::Quantize => "its integers are the parent's rows, scaled",
        Relation::Prune => "what is not zero is the parent's",
        Relation::Rename => "the same tensors under other names",
        Relation::Reshard => "the same tensors in other files",
        Relation::Derived if t.identical == 1.0 => "the same tensors beside other files",
        _ => "",
    };
    let mut text = format!(
        "{} of the tensor bytes identical, {changed} of {} matrices matched, relative distance {:.2e}",
        percent(t.identical),
        t.measures.len(),
        t.distance()
    );
    if !exact.is_empty() {
        text = format!("{exact}; {text}");
    }
    text
}
