//! `mgit repack`

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::import::Effort;
use super::{Global, gc, out};
use crate::ask;
use crate::control::{Request, Response};
use crate::model::name::VersionRef;
use crate::repo::engine::{Detail, label};
use crate::repo::repack::{Step, Target, Web, step};
use crate::repo::{Repo, RepoError, gc as freeing};

/// Encode versions again with what is known now, where that makes them smaller
///
/// A version that was imported before its parent, or linked to one since, is
/// stored as the difference from it at last. Ids and files stay as they are. Safe
/// at any time: it can be stopped, and what it has done stays.
///
///   mgit repack                all versions, the oldest first
///   mgit repack bert-sst2      one
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    versions: Vec<VersionRef>,
    /// How long to look for smaller encodings
    #[arg(long, value_enum, default_value_t = Effort::Default)]
    effort: Effort,
}

/// How often a version is tried while others keep changing what it is built on.
const TRIES: usize = 5;

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
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
    // What was removed stays for `undo`.
    let rules = freeing::Rules { dry_run: false, grace: Duration::MAX, dead_percent: 20 };
    let freed = gc::collect(g, &rules)?.map_or(0, |o| o.freed_bytes);
    tell(g, &steps, freed)?;
    Ok(ExitCode::SUCCESS)
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
