//! `mgit kinship`

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap::error::ErrorKind;
use serde_json::{Value, json};

use super::heat;
use super::side::{self, Found, Target};
use super::{Cli, Global, out};
use crate::ask;
use crate::control::{Request, Response, Session};
use crate::model::lineage::Lineage;
use crate::model::name::VersionRef;
use crate::repo::engine::Detail;
use crate::repo::kinship::{Kinship, kinship};
use crate::repo::progress::Progress;
use crate::repo::{Head, Repo};

/// Tell how alike two models have moved away from their common base
///
/// Of the two differences from the base, over all float tensors that the three share: cosine, Pearson's correlation, and
/// Euclidean distance. (Model kinship, arXiv 2410.12613: models of low kinship gain more from a merge.)
/// The base is their nearest common ancestor in the lineage, unless --base names another.
#[derive(clap::Args)]
#[command(after_help = "\
Each model, and the base, is MODEL[@VERSION], or a path: what exists and contains a '/' or starts with a '.'.")]
pub struct Args {
    /// Two models; with --matrix two or more
    #[arg(value_parser = side::target, required_unless_present = "suggest", value_name = "MODEL")]
    models: Vec<Target>,
    /// What both come from
    #[arg(long, value_parser = side::target, value_name = "MODEL")]
    base: Option<Target>,
    /// Compare every two of the models
    #[arg(long)]
    matrix: bool,
    /// Propose the N pairs to merge that are least alike, of these models, or else of the newest versions of all models
    /// that have a common ancestor (at most 16)
    #[arg(long, value_name = "N", conflicts_with = "matrix")]
    suggest: Option<usize>,
    /// Draw the table as a heat map, too
    #[arg(long, requires = "matrix", value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Two models and what they come from: indices of the models.
struct Pair {
    a: usize,
    b: usize,
    base: Found,
}

pub fn run(g: &Global, args: &Args) -> Result<ExitCode> {
    let right = match (args.matrix, args.suggest) {
        (false, None) => args.models.len() == 2,
        (_, Some(_)) => args.models.len() != 1,
        _ => args.models.len() > 1,
    };
    if !right {
        let why = "kinship is of two models; give --matrix to compare every two of more";
        Cli::command().error(ErrorKind::WrongNumberOfValues, why).exit();
    }
    let (repo, mut session) = g.session()?;
    let models = match args.models.is_empty() {
        true => newest(&mut session)?,
        false => args.models.iter().map(|m| side::find(&mut session, m)).collect::<Result<Vec<_>>>()?,
    };
    let pairs = pairs(&mut session, &models, args.base.as_ref(), args.suggest.is_some())?;
    drop(session);
    let mut found = Vec::new();
    for pair in &pairs {
        found.push(measure(&repo, &models, pair)?);
    }
    match (args.matrix, args.suggest) {
        (_, Some(n)) => report_suggested(g, n, &models, &pairs, &found)?,
        (true, _) => report_matrix(g, args, &models, &pairs, &found)?,
        (false, _) => report_pair(g, &models, &pairs[0], &found[0])?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Models whose pairs are compared without being named: their number squared is read.
const MAX_SUGGESTED: usize = 16;

/// The newest version of every model that comes from something.
fn newest(session: &mut Session) -> Result<Vec<Found>> {
    let mut details = ask!(session, Request::History(None), Response::Details(d) => d)?;
    let mut seen = std::collections::HashSet::new();
    details.retain(|d| seen.insert(d.head.model.clone()));
    let derived = details.into_iter().filter(|d| !d.parents.is_empty() || d.previous.is_some());
    let found: Vec<Found> = derived.map(|d| Found::Head(d.head)).collect();
    anyhow::ensure!(found.len() > 1, "there are no two models here that come from something");
    let many = found.len() > MAX_SUGGESTED;
    anyhow::ensure!(!many, "{} models have parents; name up to {MAX_SUGGESTED} of them to compare", found.len());
    Ok(found)
}

/// The pairs of least kinship: those have the most to give each other. One without an angle is no proposal.
fn report_suggested(g: &Global, n: usize, models: &[Found], pairs: &[Pair], found: &[Kinship]) -> Result<()> {
    let mut best: Vec<(&Pair, &Kinship)> = pairs.iter().zip(found).filter(|(_, k)| k.cosine.is_some()).collect();
    best.sort_by(|x, y| x.1.cosine.partial_cmp(&y.1.cosine).unwrap_or(std::cmp::Ordering::Equal));
    best.truncate(n);
    if g.json {
        let each: Vec<_> = best.iter().map(|(p, k)| as_json(models, p, k)).collect();
        return Ok(out::print_json(&json!({"pairs": each}))?);
    }
    let row =
        |(p, k): &(&Pair, &Kinship)| vec![models[p.a].label(), models[p.b].label(), figure(k.cosine), p.base.label()];
    let rows: Vec<Vec<String>> = best.iter().map(row).collect();
    Ok(out::print_lines(out::table(&["MODEL", "WITH", ">COSINE", "BASE"], &rows))?)
}

/// Every two, with what they come from. Those that have nothing in common are an error, or are left out.
fn pairs(session: &mut Session, models: &[Found], base: Option<&Target>, only_kin: bool) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for a in 0..models.len() {
        for b in a + 1..models.len() {
            let base = match base {
                Some(target) => side::find(session, target)?,
                None => match common_ancestor(session, &models[a], &models[b]) {
                    Err(_) if only_kin => continue,
                    found => Found::Head(found?),
                },
            };
            pairs.push(Pair { a, b, base });
        }
    }
    anyhow::ensure!(!pairs.is_empty(), "no two of these have a common ancestor here; name one with --base");
    Ok(pairs)
}

/// The nearest that is still there, and is neither of the two.
fn common_ancestor(session: &mut Session, a: &Found, b: &Found) -> Result<Head> {
    let (Some(x), Some(y)) = (a.head(), b.head()) else {
        anyhow::bail!("what lies outside the repository has no lineage; name what both come from with --base");
    };
    let mut details = history(session, x)?;
    details.extend(history(session, y)?);
    let older =
        |d: &Detail| d.parents.iter().map(|p| p.0.id).chain(d.previous.iter().map(|p| p.id)).collect::<Vec<_>>();
    let edges = details.iter().flat_map(|d| older(d).into_iter().map(|id| (id, d.head.id)).collect::<Vec<_>>());
    let common = Lineage::from_edges(edges).common_ancestors(x.id, y.id);
    let living = |id| details.iter().map(|d| &d.head).find(|h| h.id == id && !h.removed);
    common.into_iter().find_map(living).cloned().with_context(|| {
        format!("{} and {} have no common ancestor here; name what both come from with --base", a.label(), b.label())
    })
}

fn history(session: &mut Session, head: &Head) -> Result<Vec<Detail>> {
    let reference = VersionRef { model: head.model.clone(), version: Some(head.version.clone()) };
    Ok(ask!(session, Request::History(Some(reference)), Response::Details(d) => d)?)
}

fn measure(repo: &Arc<Repo>, models: &[Found], pair: &Pair) -> Result<Kinship> {
    let (a, b) = (&models[pair.a], &models[pair.b]);
    let bar = out::Bar::new(&format!("{} and {}", a.label(), b.label()), false)?;
    bar.expect(pair.base.bytes_to_open()? + a.bytes_to_open()? + b.bytes_to_open()?);
    let (base, a, b) = (pair.base.open(repo, &bar)?, a.open(repo, &bar)?, b.open(repo, &bar)?);
    let found = kinship(&base, &a, &b, &bar)?;
    bar.done();
    Ok(found)
}

/// A version reference, or a path.
fn reference(found: &Found) -> Value {
    match found {
        Found::Head(head) => out::version(head),
        Found::Path(path) => json!({"path": path.to_string_lossy()}),
    }
}

fn as_json(models: &[Found], pair: &Pair, k: &Kinship) -> Value {
    json!({
        "base": reference(&pair.base), "a": reference(&models[pair.a]), "b": reference(&models[pair.b]),
        "cosine": k.cosine, "pearson": k.pearson, "euclidean": k.euclidean,
        "tensors": k.tensors, "elements": k.elements,
    })
}

/// What cannot be said is told as `-`.
fn figure(v: Option<f64>) -> String {
    v.map_or_else(|| "-".to_owned(), |v| format!("{v:.4}"))
}

fn report_pair(g: &Global, models: &[Found], pair: &Pair, k: &Kinship) -> Result<()> {
    if g.json {
        return Ok(out::print_json(&as_json(models, pair, k))?);
    }
    let (a, b, base) = (models[pair.a].label(), models[pair.b].label(), pair.base.label());
    let mut lines = vec![
        format!("{a} and {b}, from {base}: {} tensors, {} elements", k.tensors, k.elements),
        format!("cosine     {}", figure(k.cosine)),
        format!("pearson    {}", figure(k.pearson)),
        format!("euclidean  {}", figure(k.euclidean)),
    ];
    if k.cosine.is_none() {
        lines.push("one of them does not differ from the base, so that there is no angle".to_owned());
    }
    Ok(out::print_lines(lines)?)
}

fn report_matrix(g: &Global, args: &Args, models: &[Found], pairs: &[Pair], found: &[Kinship]) -> Result<()> {
    let labels: Vec<String> = models.iter().map(Found::label).collect();
    let mut cosines = vec![vec![None; models.len()]; models.len()];
    for (pair, k) in pairs.iter().zip(found) {
        cosines[pair.a][pair.b] = k.cosine;
        cosines[pair.b][pair.a] = k.cosine;
    }
    (0..models.len()).for_each(|i| cosines[i][i] = Some(1.0));
    if let Some(file) = &args.svg {
        std::fs::write(file, heat::map(&labels, &cosines))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    if g.json {
        let each: Vec<_> = pairs.iter().zip(found).map(|(p, k)| as_json(models, p, k)).collect();
        let models: Vec<_> = models.iter().map(reference).collect();
        return Ok(out::print_json(&json!({"models": models, "pairs": each}))?);
    }
    let heads: Vec<String> = (1..=models.len()).map(|n| format!(">{n}")).collect();
    let heads: Vec<&str> = ["", "MODEL"].into_iter().chain(heads.iter().map(String::as_str)).collect();
    let row = |i: usize| {
        let cells = cosines[i].iter().map(|&c| figure(c));
        [(i + 1).to_string(), labels[i].clone()].into_iter().chain(cells).collect::<Vec<_>>()
    };
    let mut lines = vec![format!("cosine of the differences from {}", bases(pairs)), String::new()];
    lines.extend(out::table(&heads, &(0..models.len()).map(row).collect::<Vec<_>>()));
    Ok(out::print_lines(lines)?)
}

/// The bases that were used, each once.
fn bases(pairs: &[Pair]) -> String {
    let mut names: Vec<String> = pairs.iter().map(|p| p.base.label()).collect();
    names.sort();
    names.dedup();
    match names.len() {
        1 => names.remove(0),
        _ => format!("each pair's nearest common ancestor ({})", names.join(", ")),
    }
}
