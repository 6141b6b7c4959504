//! Methods that merge any number of parents outright, their parameters, and the plan of such a merge.
//!
//! The parents have the same tensors, paired by name (as `diff` does where a name is missing), of one dtype and shape; what has no arithmetic (integers, 8-bit
//! floats) must be the same in all. Files without tensors are the first parent's. A tensor that all parents have bit for bit
//! is taken as it is where the method's weights add up to one. NaN and infinities go through a linear method by the rules of
//! arithmetic; the others refuse them.
//! The formulas, with their sources, stand where they are computed ([`super::compute`]).

use std::collections::{HashMap, HashSet};

use super::emr::Emr;
use super::layout::{Pick, layout};
use super::regmean::{self, RegMean};
use super::task_vectors::{Dare, Ties};
use super::{Decided, How, Input, Job, Note, Outcome, Output, Plan, Source, What};
use crate::codec::Formula;
use crate::model::dtype::Elem;
use crate::model::name::printable;
use crate::repo::RepoError;
use crate::repo::diff::pair;
use crate::repo::diff::side::{Side, Tensor};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    Average,
    Linear,
    Slerp,
    TaskArithmetic,
    Ties,
    Dare,
    RegMean,
    Emr,
}

impl Method {
    pub const ALL: [Method; 8] = [
        Method::Average,
        Method::Linear,
        Method::Slerp,
        Method::TaskArithmetic,
        Method::Ties,
        Method::Dare,
        Method::RegMean,
        Method::Emr,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Method::Average => "average",
            Method::Linear => "linear",
            Method::Slerp => "slerp",
            Method::TaskArithmetic => "task-arithmetic",
            Method::Ties => "ties",
            Method::Dare => "dare",
            Method::RegMean => "regmean",
            Method::Emr => "emr",
        }
    }

    pub fn parse(s: &str) -> Result<Method, String> {
        let all = || Method::ALL.map(Method::as_str).join(", ");
        Method::ALL.into_iter().find(|m| m.as_str() == s).ok_or_else(|| format!("the methods are {}", all()))
    }

    /// Does it work on the differences from a base?
    pub fn needs_base(self) -> bool {
        matches!(self, Method::TaskArithmetic | Method::Ties | Method::Dare | Method::Emr)
    }

    fn parameters(self) -> &'static [&'static str] {
        match self {
            Method::Average | Method::Emr => &[],
            Method::Linear | Method::TaskArithmetic => &["weight"],
            Method::Slerp => &["t"],
            Method::Ties => &["weight", "density", "lambda", "per-tensor"],
            Method::Dare => &["weight", "density", "seed"],
            Method::RegMean => &["alpha"],
        }
    }

    /// Is the merge of a tensor with itself the tensor?
    fn keeps_same(self) -> bool {
        matches!(self, Method::Average | Method::Linear | Method::Slerp | Method::RegMean)
    }
}

/// A parameter's value, for all tensors or for those of some layers.
#[derive(Clone, PartialEq, Debug)]
pub struct Setting {
    glob: Option<String>,
    name: String,
    values: Vec<f64>,
}

impl Setting {
    /// `weight=0.3,0.7`, `layer.*.weight=0.3`.
    pub fn parse(text: &str) -> Result<Setting, String> {
        let (left, right) = text.split_once('=').ok_or("a parameter is written NAME=VALUE, or GLOB.NAME=VALUE")?;
        let (glob, name) = left.rsplit_once('.').map_or((None, left), |(g, n)| (Some(g.to_owned()), n));
        let number = |s: &str| s.trim().parse::<f64>().ok().filter(|v| v.is_finite());
        let values: Option<Vec<f64>> = right.split(',').map(number).collect();
        let values = values.ok_or_else(|| format!("'{}' is no number, or numbers with commas", printable(right)))?;
        Ok(Setting { glob, name: name.trim_end_matches('s').to_owned(), values })
    }

    fn is_for(&self, tensor: &str) -> bool {
        self.glob.as_ref().is_none_or(|g| within(g, tensor))
    }
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let values: Vec<String> = self.values.iter().map(f64::to_string).collect();
        let glob = self.glob.iter().map(|g| format!("{g}.")).collect::<String>();
        write!(f, "{glob}{}={}", self.name, values.join(","))
    }
}

/// Does the pattern fit the name, or a stretch of it between dots? `*` is any letters, `?` one.
fn within(glob: &str, name: &str) -> bool {
    let cuts = || name.match_indices('.').map(|(i, _)| i);
    let starts: Vec<usize> = [0].into_iter().chain(cuts().map(|i| i + 1)).collect();
    let ends: Vec<usize> = cuts().chain([name.len()]).collect();
    starts
        .iter()
        .enumerate()
        .any(|(i, &from)| ends[i..].iter().any(|&to| fits(glob.as_bytes(), &name.as_bytes()[from..to])))
}

fn fits(glob: &[u8], name: &[u8]) -> bool {
    match (glob.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), None) => fits(rest, name),
        (Some((b'*', rest)), Some((_, more))) => fits(rest, name) || fits(glob, more),
        (Some((g, rest)), Some((n, more))) => (*g == b'?' || g == n) && fits(rest, more),
        _ => false,
    }
}

/// A method with all that was set.
pub struct Chosen {
    method: Method,
    settings: Vec<Setting>,
    parents: usize,
    emr: Emr,
}

impl Chosen {
    /// Later settings win.
    pub fn new(method: Method, settings: Vec<Setting>, parents: usize) -> Result<Chosen, RepoError> {
        let chosen = Chosen { method, settings, parents, emr: Emr::Unified };
        let (name, known) = (method.as_str(), method.parameters());
        if let Some(s) = chosen.settings.iter().find(|s| !known.contains(&s.name.as_str())) {
            let has = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(RepoError::refused(format!("{name} has no parameter '{}'; it has {has}", printable(&s.name))));
        }
        if parents < 2 || method == Method::Slerp && parents != 2 {
            return Err(RepoError::refused(format!("{name} cannot merge {parents} versions")));
        }
        chosen.weights("")?;
        Ok(chosen)
    }

    /// What gives a model back from a unified task vector.
    pub fn emr_model(scale: f64) -> Chosen {
        Chosen { method: Method::Emr, settings: vec![], parents: 2, emr: Emr::Model(scale) }
    }

    pub fn method(&self) -> Method {
        self.method
    }

    /// As they were given.
    pub fn told(&self) -> Vec<String> {
        self.settings.iter().map(Setting::to_string).collect()
    }

    fn values(&self, name: &str, tensor: &str) -> Option<&[f64]> {
        let found = self.settings.iter().rev().find(|s| s.name == name && s.is_for(tensor));
        found.map(|s| &s.values[..])
    }

    fn number(&self, name: &str, tensor: &str, default: f64) -> Result<f64, RepoError> {
        match self.values(name, tensor) {
            None => Ok(default),
            Some([v]) => Ok(*v),
            Some(_) => Err(RepoError::refused(format!("'{name}' is one number"))),
        }
    }

    /// Such a number from 0 to 1.
    fn share(&self, name: &str, tensor: &str, default: f64) -> Result<f64, RepoError> {
        match self.number(name, tensor, default)? {
            v if (0.0..=1.0).contains(&v) => Ok(v),
            v => Err(RepoError::refused(format!("'{name}' is a number from 0 to 1, not {v}"))),
        }
    }

    /// The share of each task vector that is kept.
    fn density(&self, tensor: &str, default: f64) -> Result<f64, RepoError> {
        match self.share("density", tensor, default)? {
            0.0 => Err(RepoError::refused("a density of 0 keeps nothing of the versions")),
            v => Ok(v),
        }
    }

    /// One for each parent. One number is for all; but of a linear merge of two, it is the second's share of one.
    fn weights(&self, tensor: &str) -> Result<Vec<f64>, RepoError> {
        let weights = match self.values("weight", tensor) {
            None => vec![1.0; self.parents],
            Some([w]) if self.method == Method::Linear && self.parents == 2 => vec![1.0 - w, *w],
            Some([w]) if self.method != Method::Linear => vec![*w; self.parents],
            Some(all) if all.len() == self.parents => all.to_vec(),
            Some(all) => {
                return Err(RepoError::refused(format!("{} weights for {} versions", all.len(), self.parents)));
            }
        };
        if self.method == Method::Linear && weights.iter().sum::<f64>() == 0.0 {
            return Err(RepoError::refused("the weights add up to nothing"));
        }
        Ok(weights)
    }

    /// The parents' shares, as far as one number each says it.
    pub fn coefficients(&self) -> Vec<Option<f64>> {
        let weights = self.weights("").unwrap_or_default();
        let total: f64 = weights.iter().sum();
        let t = self.number("t", "", 0.5).unwrap_or(0.5);
        match self.method {
            Method::Slerp => vec![Some(1.0 - t), Some(t)],
            Method::Average | Method::Linear => weights.iter().map(|w| Some(w / total)).collect(),
            Method::RegMean | Method::Emr => vec![None; self.parents],
            Method::TaskArithmetic | Method::Ties | Method::Dare => weights.iter().map(|w| Some(*w)).collect(),
        }
    }

    fn how(&self, t: &Tensor, grams: &[Side]) -> Result<How, RepoError> {
        let (name, wide) = (t.name.as_str(), t.dtype == "F64");
        let weights = self.weights(name)?;
        let total: f64 = weights.iter().sum();
        Ok(match self.method {
            Method::Average => How::Formula(Formula::linear(weights, Some(total), wide)),
            Method::Linear => How::Formula(Formula::linear(weights, Some(total).filter(|t| *t != 1.0), wide)),
            Method::TaskArithmetic => How::Formula(Formula::task(weights, wide)),
            Method::Slerp => How::Slerp(self.number("t", name, 0.5)?),
            Method::Ties => How::Ties(Ties {
                weights,
                density: self.density(name, 0.2)?,
                lambda: self.number("lambda", name, 1.0)?,
                per_tensor: self.number("per-tensor", name, 0.0)? != 0.0,
                least: None,
            }),
            Method::Dare => {
                let seed = self.number("seed", name, 0.0)? as u64;
                How::Dare(Dare { weights, density: self.density(name, 0.1)?, seed })
            }
            Method::Emr => How::Emr(self.emr.clone()),
            Method::RegMean => match regmean::find(grams, t)? {
                Some(grams) => How::RegMean(RegMean { alpha: self.share("alpha", name, 0.9)?, grams }),
                None => How::Formula(Formula::linear(weights, Some(total), wide)),
            },
        })
    }
}

/// `inputs`: the parents in order, then the base if the method needs one.
/// `grams`: for RegMean, of each parent.
pub fn plan(inputs: &[Input], chosen: &Chosen, grams: &[Side]) -> Result<Plan, RepoError> {
    if chosen.method == Method::RegMean && grams.len() != chosen.parents {
        let (files, versions) = (grams.len(), chosen.parents);
        return Err(RepoError::refused(format!(
            "regmean takes a --gram file for each version: {files} for {versions}"
        )));
    }
    let partners = inputs.iter().map(|i| partners(&inputs[0], i)).collect::<Result<Vec<_>, _>>()?;
    let (mut decided, mut notes) = (Vec::new(), Vec::new());
    for (at, t) in inputs[0].side.tensors.iter().enumerate() {
        let place = |(input, of): (&Input, &Vec<Option<usize>>)| of[at].ok_or_else(|| missing(&t.name, input));
        let places = inputs.iter().zip(&partners).map(place).collect::<Result<Vec<_>, _>>()?;
        let tensors: Vec<&Tensor> = inputs.iter().zip(&places).map(|(i, &at)| &i.side.tensors[at]).collect();
        let made = decide(inputs, chosen, grams, places, &tensors)?;
        if made.id.is_none() {
            let change = match &made.source {
                Source::Compute(Job { how: How::Formula(_), .. }) if chosen.method == Method::RegMean => "average",
                _ => chosen.method.as_str(),
            };
            let change = change.to_owned();
            notes.push(Note { name: t.name.clone(), outcome: Outcome::None, change });
        }
        decided.push(made);
    }
    // The base may have more: a head that the parents dropped.
    for (input, of) in inputs.iter().zip(&partners).take(chosen.parents) {
        let has: HashSet<usize> = of.iter().flatten().copied().collect();
        if let Some(t) = (0..input.side.tensors.len()).find(|t| !has.contains(t)) {
            return Err(missing(&input.side.tensors[t].name, &inputs[0]));
        }
    }
    let mut outputs = layout(inputs, &decided, Pick::Of(0))?;
    let plain = inputs[0].record.files.iter().filter(|f| !inputs[0].has_tensors(&f.path));
    outputs.extend(plain.map(|f| Output { path: f.path.clone(), what: What::Stored(f.clone()) }));
    outputs.sort_by(|x, y| x.path.cmp(&y.path));
    Ok(Plan { outcome: Outcome::None, tensors: notes, files: vec![], outputs })
}

fn missing(name: &str, input: &Input) -> RepoError {
    let (name, of) = (printable(name), &input.label);
    RepoError::refused(format!("tensor '{name}' is not in {of}: a method merges versions that have the same tensors"))
}

/// Of each tensor of the first, its place in the other.
fn partners(first: &Input, other: &Input) -> Result<Vec<Option<usize>>, RepoError> {
    let index = Index::of(other);
    let mut found: Vec<Option<usize>> = first.side.tensors.iter().map(|t| index.find(t)).collect();
    if found.iter().all(Option::is_some) {
        return Ok(found);
    }
    let taken: HashSet<usize> = found.iter().flatten().copied().collect();
    for (x, y) in pair(&first.side, &other.side)?.pairs {
        if found[x].is_none() && !taken.contains(&y) {
            found[x] = Some(y);
        }
    }
    Ok(found)
}

/// Tensors by name, in their own file's scope first.
struct Index<'i> {
    exact: HashMap<(&'i str, &'i str), usize>,
    /// `None`: several.
    by_name: HashMap<&'i str, Option<usize>>,
}

impl Index<'_> {
    fn of(input: &Input) -> Index<'_> {
        let mut index = Index { exact: HashMap::new(), by_name: HashMap::new() };
        for (at, t) in input.side.tensors.iter().enumerate() {
            index.exact.insert((&t.scope, &t.name), at);
            index.by_name.entry(&t.name).and_modify(|found| *found = None).or_insert(Some(at));
        }
        index
    }

    fn find(&self, t: &Tensor) -> Option<usize> {
        let exact = self.exact.get(&(t.scope.as_str(), t.name.as_str()));
        exact.copied().or_else(|| self.by_name.get(t.name.as_str()).copied().flatten())
    }
}

fn decide(
    inputs: &[Input],
    chosen: &Chosen,
    grams: &[Side],
    mut places: Vec<usize>,
    tensors: &[&Tensor],
) -> Result<Decided, RepoError> {
    let first = tensors[0];
    let name = printable(&first.name);
    for (t, input) in tensors.iter().zip(inputs).skip(1) {
        if t.shape != first.shape || t.dtype != first.dtype {
            return Err(RepoError::refused(format!(
                "tensor '{name}' is {} {:?} in {}, and {} {:?} in {}",
                first.dtype, first.shape, inputs[0].label, t.dtype, t.shape, input.label,
            )));
        }
    }
    let same = |of: &[&Tensor]| of.iter().all(|t| t.id == first.id);
    let arithmetic = Formula::computes(Elem::of(&first.dtype)) && !first.dtype.starts_with('C');
    // Where all are the base's, there is no difference to add.
    let parents = &tensors[..chosen.parents];
    let unchanged = match &chosen.emr {
        Emr::Model(_) => same(&tensors[2..]),
        Emr::Unified => same(tensors) && !(chosen.method == Method::Emr && arithmetic),
    };
    if unchanged || same(parents) && chosen.method.keeps_same() {
        return Ok(Decided::taken(inputs, 0, first));
    }
    if !arithmetic {
        let of = &first.dtype;
        return match same(parents) {
            true => Ok(Decided::taken(inputs, 0, first)),
            false => {
                Err(RepoError::refused(format!("tensor '{name}': there is no arithmetic on {of}, and it differs")))
            }
        };
    }
    let how = chosen.how(first, grams)?;
    let base = places.get(chosen.parents).copied();
    places.truncate(chosen.parents);
    Ok(Decided::made(inputs, 0, first, Source::Compute(Job { parents: places, base, how })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_fit_stretches_of_names() {
        let name = "encoder.layer.11.attention.weight";
        for yes in ["layer.*", "layer.11", "*", "encoder.layer.1?", "attention.weight", "*attention*"] {
            assert!(within(yes, name), "{yes}");
        }
        for no in ["layer.1", "ayer.*", "layer.11.att", "attention.weight.", ""] {
            assert!(!within(no, name), "{no}");
        }
    }

    #[test]
    fn the_last_setting_that_fits_wins() {
        let set = |s: &[&str]| s.iter().map(|s| Setting::parse(s).unwrap()).collect::<Vec<_>>();
        let chosen = Chosen::new(Method::Linear, set(&["weights=1,3", "layer.0.weight=0.25"]), 2).unwrap();
        assert_eq!(chosen.weights("layer.0.x").unwrap(), [0.75, 0.25]);
        assert_eq!(chosen.weights("layer.1.x").unwrap(), [1.0, 3.0]);
        assert_eq!(chosen.coefficients(), [Some(0.25), Some(0.75)]);
        assert_eq!(chosen.told(), ["weight=1,3", "layer.0.weight=0.25"]);
        for bad in ["weight", "weight=x", "weight=1,,2", "weight=inf"] {
            assert!(Setting::parse(bad).is_err(), "{bad}");
        }
        assert!(Chosen::new(Method::Average, set(&["density=1"]), 2).is_err());
        assert!(Chosen::new(Method::Linear, set(&["weights=1,2,3"]), 2).is_err());
        assert!(Chosen::new(Method::Linear, set(&["weights=1,-1"]), 2).is_err());
        assert!(Chosen::new(Method::Slerp, vec![], 3).is_err());
    }
}
