//! `mgit repack`

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::import::{Effort, Turn};
use super::lossy::{LossyArgs, Original, gate_words, make, words};
use super::{Global, gc, out};
use crate::control::{Request, Response};
use crate::model::name::VersionRef;
use crate::model::record::VersionRecord;
use crate::model::test::TestResult;
use crate::repo::engine::{Detail, label};
use crate::repo::import::{ImportSpec, Prepared, prepare_merged};
use crate::repo::lossy::stored_entries;
use crate::repo::repack::{Step, Target, Web, step};
use crate::repo::work::{Answer, Ask, Publication};
use crate::repo::{Head, Repo, RepoError, gc as freeing, origin};
use crate::{ask, work};

/// Encode versions again with what is known now, where that makes them smaller
///
/// A version that was imported before its parent, or linked to one since, is
/// stored as the difference from it at last. Ids and files stay as they are. Safe
/// at any time: it can be stopped, and what it has done stays.
///
///   mgit repack                all versions, the oldest first
///   mgit repack bert-sst2      one
///
/// With --max-error, --max-rel-error or --lossy-gate, a lossy version takes the
/// place of the exact one, if the registered tests let it. The exact bytes stay
/// until 'mgit gc'; until then 'mgit undo' brings them back.
///
///   mgit repack bert-sst2 --max-error 1e-4
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    versions: Vec<VersionRef>,
    /// How long to look for smaller encodings
    #[arg(long, value_enum, default_value_t = Effort::Default)]
    effort: Effort,
    #[command(flatten)]
    lossy: LossyArgs,
}

/// How often a version is tried while others keep changing what it is built on.
const TRIES: usize = 5;

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    if a.lossy.wanted()? {
        return run_lossy(g, a);
    }
    let (repo, mut session) = g.session()?;
    let mut details = match a.versions.is_empty() {
        true => ask!(session, Request::History(None), Response::Details(d) => d)?,
        false => {
            let detail = |r: &VersionRef| ask!(session, Request::Detail(r.clone()), Response::Detail(d) => d);
            a.versions.iter().map(detail).collect::<Result<Vec<_>, RepoError>>()?
        }
    };
    drop(session);
    details.sort_by_key(|d| d.head.seq);
    details.dedup_by_key(|d| d.head.seq);
    let bar = out::Bar::new("repacking", false)?;
    crate::repo::progress::Progress::expect(&bar, details.iter().map(|d| d.head.bytes).sum());
    let mut steps = Vec::new();
    let mut web = Web::of(&repo)?;
    for d in &details {
        steps.push((label(&d.head), one(&repo, &mut web, d, a.effort.into(), &bar)?));
    }
    bar.done();
    tell(g, &steps, free(g)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Frees what is not needed any longer. What was removed stays for `undo`.
fn free(g: &Global) -> Result<u64> {
    let rules = freeing::Rules { dry_run: false, grace: Duration::MAX, dead_percent: 20, step: freeing::STEP };
    Ok(gc::collect(g, &rules)?.map_or(0, |o| o.freed_bytes))
}

fn run_lossy(g: &Global, a: &Args) -> Result<ExitCode> {
    ensure!(
        !a.versions.is_empty(),
        "name the versions that may become lossy: 'mgit repack MODEL@VERSION --max-error E'"
    );
    let mut rows = Vec::new();
    for version in &a.versions {
        let (detail, made) = lossy(g, a, version)?;
        let name = label(&detail.head);
        if !g.json {
            out::print_lines(match &made {
                None => vec![format!("{name}  stays as it is: nothing takes less within the bound")],
                Some(p) => told(&name, p),
            })?;
        }
        let lossy = made.as_ref().and_then(|p| p.record.lossy.as_ref());
        rows.push(json!({
            "version": name, "id": made.as_ref().map_or(detail.head.id, |p| p.id), "lossy": lossy,
            "after": made.as_ref().map(|p| p.new_stored_bytes),
        }));
    }
    let freed = free(g)?;
    if g.json {
        out::print_json(&json!({"versions": rows, "freed_bytes": freed}))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn told(name: &str, p: &Prepared) -> Vec<String> {
    let (raw, new) = (out::size(p.record.logical_bytes()), out::size(p.new_stored_bytes));
    let mut lines = vec![format!("{name}  {raw} stored in {new}")];
    if let Some(l) = &p.record.lossy {
        lines.push(format!("  lossy: {}", words(l)));
        lines.extend(gate_words(l).iter().map(|g| format!("  {g}")));
    }
    lines.push("  the exact bytes stay until 'mgit gc'; 'mgit undo' brings them back".to_owned());
    lines
}

/// Puts a lossy version in the place of an exact one. `None` where nothing gets smaller by it, or it is that already.
fn lossy(g: &Global, a: &Args, version: &VersionRef) -> Result<(Detail, Option<Prepared>)> {
    let (repo, mut session) = g.session()?;
    let d = ask!(session, Request::Detail(version.clone()), Response::Detail(d) => d)?;
    drop(session);
    let (record, name) = (repo.record(&d.head.id)?, label(&d.head));
    if let Some(l) = &record.lossy {
        ensure!(
            a.lossy.bound() == Some(l.bound),
            "{name} is lossy already: {}. Errors are never added to errors; start from the exact weights",
            words(l)
        );
        return Ok((d, None));
    }
    let spec = spec_of(a, &d, &record);
    let entries = stored_entries(&repo, &record)?;
    let living = || d.parents.iter().map(|(h, _)| h).chain(&d.previous).filter(|h| !h.removed);
    let place = |h: &Head| (h.model.clone(), h.version.clone());
    let original = Original {
        entries: &entries,
        model: &d.head.model,
        version: &d.head.version,
        id: d.head.id,
        stored: true,
        bases: living().map(|h| h.id).collect(),
        parents: d.parents.iter().filter(|(h, _)| !h.removed).map(|(h, _)| place(h)).collect(),
        previous: d.previous.as_ref().filter(|h| !h.removed).map(place),
        otherwise: "the exact version stays",
    };
    let bar = out::Bar::new(&format!("repacking {name}"), false)?;
    let Some(made) = make(&repo, &a.lossy, &original, a.effort.into(), &bar)? else { return Ok((d, None)) };
    let spec = ImportSpec { lossy: Some(made.lossy.clone()), ..spec };
    let mut prepared = prepare_merged(&repo, &spec, &made.hashed, record.merge.as_ref(), &bar)?;
    bar.done();
    prepared.replaces = Some(d.head.id);
    let results = made.results.iter().map(|r| TestResult { version: prepared.id, ..r.clone() }).collect();
    let publication = Publication { commit: prepared.event(), moves: vec![], results, recipe: None, step: None };
    let mut turn = Turn::new(g)?;
    work!(turn.session()?, Ask::Publish(Box::new(publication)), Answer::Head(h) => h)?;
    turn.repo.packs.refresh()?;
    origin::remember(&turn.repo.clone(), &mut turn, &bar);
    Ok((d, Some(prepared)))
}

fn spec_of(a: &Args, d: &Detail, record: &VersionRecord) -> ImportSpec {
    ImportSpec {
        model: d.head.model.clone(),
        version: d.head.version.clone(),
        parents: d.parents.iter().map(|(_, e)| *e).collect(),
        previous: d.head.previous,
        guess: d.head.guess,
        told: false,
        origin: record.origin.clone(),
        near: vec![],
        message: record.message.clone(),
        effort: a.effort.into(),
        lossy: None,
    }
}

fn one(
    repo: &Arc<Repo>,
    web: &mut Web,
    d: &Detail,
    effort: crate::codec::Effort,
    bar: &out::Bar,
) -> Result<Step, RepoError> {
    let bases = d.parents.iter().map(|(h, _)| h).chain(&d.previous).filter(|h| !h.removed).map(|h| h.id);
    let target = Target { version: d.head.id, bases: bases.collect() };
    for _ in 0..TRIES {
        match step(repo, web, &target, effort, bar)? {
            Some(done) => return Ok(done),
            None => *web = Web::of(repo)?,
        }
    }
    Ok(Step::default())
}

fn tell(g: &Global, steps: &[(String, Step)], freed: u64) -> Result<()> {
    let sum = |f: fn(&Step) -> u64| steps.iter().map(|(_, s)| f(s)).sum::<u64>();
    let (before, after) = (sum(|s| s.before), sum(|s| s.after));
    let tensors: usize = steps.iter().map(|(_, s)| s.tensors).sum();
    if g.json {
        let row = |(name, s): &(String, Step)| json!({"version": name, "tensors": s.tensors, "before": s.before, "after": s.after});
        let done: Vec<_> = steps.iter().filter(|(_, s)| s.tensors > 0).map(row).collect();
        let value =
            json!({"versions": done, "tensors": tensors, "before": before, "after": after, "freed_bytes": freed});
        return Ok(out::print_json(&value)?);
    }
    let row = |(name, s): &(String, Step)| {
        format!("{name}  {} tensors: {} now take {}", s.tensors, out::size(s.before), out::size(s.after))
    };
    let mut lines: Vec<String> = steps.iter().filter(|(_, s)| s.tensors > 0).map(row).collect();
    lines.push(match tensors {
        0 => "nothing can be stored smaller".to_owned(),
        _ => format!("freed {}", out::size(freed)),
    });
    Ok(out::print_lines(lines)?)
}
