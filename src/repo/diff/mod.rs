//! What differs between two models: tensors by structure and by value, and the files around them.
//!
//! Tensors are paired by content, common part of the name and order ([`pairing`]). A pair with one id is not read; every
//! other pair is streamed block by block ([`measure`]). A tensor that has another name *and* other values is in `renamed`
//! and in `changed`; one of another shape is in `reshaped` only. A cast counts as changed.
//! Which version a name means and how a report is asked for are not known here.

pub mod measure;
pub mod moments;
pub mod outline;
pub mod pairing;
pub mod side;
pub mod text;

use std::collections::BTreeSet;

use serde::Serialize;

use self::measure::{Compared, Metrics, measure, nearness};
use self::pairing::Pairing;
use self::side::{Side, SideFile, Tensor};
use super::RepoError;
use super::progress::Progress;

/// A tensor as a report names it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct TensorInfo {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<u64>,
}

/// The same tensor before and after.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Pair {
    pub from: TensorInfo,
    pub to: TensorInfo,
}

/// A tensor of another shape.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Reshaped {
    #[serde(flatten)]
    pub pair: Pair,
    /// How the rows differ that both have, where only their number changed.
    #[serde(skip)]
    pub shared: Option<Metrics>,
}

/// A tensor with other values.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Changed {
    #[serde(flatten)]
    pub to: TensorInfo,
    #[serde(flatten)]
    pub metrics: Metrics,
    /// Where the name or the dtype was another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<TensorInfo>,
}

/// What happened to a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    Added,
    Removed,
    Changed,
}

impl Change {
    pub fn as_str(self) -> &'static str {
        match self {
            Change::Added => "added",
            Change::Removed => "removed",
            Change::Changed => "changed",
        }
    }
}

/// A file that is no safetensors file, or one whose tensors are all the same and whose bytes are not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct FileChange {
    pub path: String,
    pub change: Change,
    /// The lines of a unified diff, or one that says why there is none. Of changed files, when asked for.
    #[serde(skip)]
    pub lines: Vec<String>,
}

/// All that differs, and what does not. As JSON: the contract's keys.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    pub added: Vec<TensorInfo>,
    pub removed: Vec<TensorInfo>,
    pub reshaped: Vec<Reshaped>,
    pub renamed: Vec<Pair>,
    pub unchanged: Vec<TensorInfo>,
    pub changed: Vec<Changed>,
    pub files: Vec<FileChange>,
}

impl Report {
    fn same_tensors(&self) -> bool {
        self.added.is_empty()
            && self.removed.is_empty()
            && self.reshaped.is_empty()
            && self.renamed.is_empty()
            && self.changed.is_empty()
    }

    /// True when nothing differs.
    pub fn is_empty(&self) -> bool {
        self.same_tensors() && self.files.is_empty()
    }
}

/// Pairs the tensors of two sides, looking at the beginnings of those that nothing else tells.
pub fn pair(a: &Side, b: &Side) -> Result<Pairing, RepoError> {
    pairing::pair(&a.tensors, &b.tensors, &mut |x, y| nearness((a, b), &a.tensors[x], &b.tensors[y]))
}

/// What differs from `a` to `b`. `lines`: with text diffs of the files. `done`: bytes that `progress` has counted already.
pub fn compare(a: &Side, b: &Side, lines: bool, done: u64, progress: &dyn Progress) -> Result<Report, RepoError> {
    let (mut report, pairs) = unpaired(a, b, &pair(a, b)?);
    let differ: Vec<_> = pairs.iter().filter(|(x, y)| x.id != y.id).map(|(x, y)| Compared::new(x, y)).collect();
    let compared: Vec<Compared> = differ.iter().flatten().copied().collect();
    progress.expect(done + compared.iter().map(Compared::bytes).sum::<u64>());
    let mut measured = measure((a, b), &compared, progress)?.into_iter();
    let mut metrics = differ.iter().map(|c| c.as_ref().and_then(|_| measured.next()));
    for (x, y) in pairs {
        let metrics = if x.id == y.id { None } else { metrics.next().flatten() };
        report.put(x, y, metrics);
    }
    report.files = files(a, b, report.same_tensors(), if lines { text::MAX_TEXT } else { 0 })?;
    Ok(report)
}

/// As [`compare`], without reading a tensor: which ones changed their ids tell, how much does not show. Files of up to
/// `max_text` bytes are compared line by line.
pub fn structure(a: &Side, b: &Side, max_text: u64) -> Result<Report, RepoError> {
    let pairing = pairing::pair(&a.tensors, &b.tensors, &mut |_, _| Ok(None))?;
    let (mut report, pairs) = unpaired(a, b, &pairing);
    pairs.iter().for_each(|(x, y)| report.put(x, y, None));
    report.files = files(a, b, report.same_tensors(), max_text)?;
    Ok(report)
}

/// A report of what has no partner, and the pairs that are still to be put in.
fn unpaired<'t>(a: &'t Side, b: &'t Side, pairing: &Pairing) -> (Report, Vec<(&'t Tensor, &'t Tensor)>) {
    let report = Report {
        added: pairing.added.iter().map(|&y| info(&b.tensors[y])).collect(),
        removed: pairing.removed.iter().map(|&x| info(&a.tensors[x])).collect(),
        reshaped: vec![],
        renamed: vec![],
        unchanged: vec![],
        changed: vec![],
        files: vec![],
    };
    (report, pairing.pairs.iter().map(|&(x, y)| (&a.tensors[x], &b.tensors[y])).collect())
}

impl Report {
    /// Files a pair of tensors where it belongs; `metrics` of one that differs and can be measured.
    fn put(&mut self, x: &Tensor, y: &Tensor, metrics: Option<Metrics>) {
        let pair = Pair { from: info(x), to: info(y) };
        if x.shape != y.shape {
            return self.reshaped.push(Reshaped { pair, shared: metrics });
        }
        if x.id != y.id {
            let from = (x.name != y.name || x.dtype != y.dtype).then(|| info(x));
            let metrics = metrics.unwrap_or(Metrics::UNKNOWN);
            self.changed.push(Changed { to: info(y), metrics, from });
        }
        match x.name == y.name {
            true if x.id == y.id => self.unchanged.push(info(y)),
            true => {}
            false => self.renamed.push(pair),
        }
    }
}

fn info(t: &Tensor) -> TensorInfo {
    TensorInfo { name: t.name.clone(), dtype: t.dtype.clone(), shape: t.shape.clone() }
}

/// What became of the files, by path. The tensors tell what is in safetensors files, so these are left out unless no tensor
/// tells anything; and there are no files to speak of around a lone one. Those of up to `max_text` bytes are compared line by
/// line; 0: none.
fn files(a: &Side, b: &Side, same_tensors: bool, max_text: u64) -> Result<Vec<FileChange>, RepoError> {
    if a.lone || b.lone {
        return Ok(vec![]);
    }
    let told = |f: &&SideFile| same_tensors || !f.is_safetensors();
    let paths = |s: &'_ Side| s.files.iter().filter(told).map(|f| f.path.clone()).collect::<BTreeSet<_>>();
    let mut out = vec![];
    for path in paths(a).union(&paths(b)) {
        let (change, lines) = match (a.file(path), b.file(path)) {
            (Some(x), Some(y)) if x.digest == y.digest => continue,
            (Some(x), Some(y)) => {
                (Change::Changed, if max_text > 0 { text::file_lines(x, y, max_text)? } else { vec![] })
            }
            (None, _) => (Change::Added, vec![]),
            (_, None) => (Change::Removed, vec![]),
        };
        out.push(FileChange { path: path.clone(), change, lines });
    }
    Ok(out)
}
