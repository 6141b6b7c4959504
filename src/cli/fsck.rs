//! `mgit fsck`

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, bail};
use serde_json::json;

use super::{Global, out};
use crate::control::{Request, Response, Session};
use crate::model::id::Id;
use crate::model::name::VersionRef;
use crate::repo::fsck::{Depth, Finding, Report, check};
use crate::repo::repair::{self, Mended};
use crate::repo::work::{Answer, Ask, check_files};
use crate::repo::{Head, Repo, RepoError};
use crate::store::{StoreError, lock_exclusive};
use crate::{ask, work};

/// Check every byte of the store: each block decoded and held against its id,
/// each version whole
///
/// Exit 1 and a line for each finding when something is damaged.
///
///   mgit fsck --quick                        structure only: seconds, not minutes
///   mgit fsck --version bert@v1              what one version is made of
///   mgit fsck --repair                       keeps all that can be read; damaged files are renamed, never thrown away
///   mgit fsck --repair --from /backup/mgit   and heals from another repository, or a directory of the original files
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Only the structure: indexes, records, that everything is there
    #[arg(long)]
    quick: bool,
    /// Only what this version is made of
    #[arg(long, value_name = "MODEL[@VERSION]", conflicts_with = "quick")]
    version: Option<VersionRef>,
    /// First make the catalog anew from packs and journal
    #[arg(long)]
    rebuild: bool,
    /// Salvage what is damaged, then check
    #[arg(long, conflicts_with_all = ["quick", "version"])]
    repair: bool,
    /// Where to heal from, by content: another repository, or a directory with original files
    #[arg(long, value_name = "REPO|DIR", requires = "repair")]
    from: Option<PathBuf>,
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    let repo = g.open()?;
    if a.from.as_ref().is_some_and(|from| !from.is_dir()) {
        bail!("{}: no such directory", a.from.as_ref().expect("just seen").display());
    }
    let mut mended = Mended::default();
    let (report, journal) = match opened(&repo) {
        Ok(session) => (checked(&repo, session, a, &mut mended)?, None),
        Err(e) if is_journal(&e) && a.repair => {
            mended.lines.extend(repair_journal(&repo)?.lines);
            (checked(&repo, opened(&repo)?, a, &mut mended)?, None)
        }
        Err(e) if is_journal(&e) && !a.rebuild => (without_journal(&repo, a)?, Some(e)),
        Err(e) => return Err(e.into()),
    };
    tell(g, a, report, journal, &mended)
}

/// A session, once all of the journal was read: others read on from what the catalog knows.
fn opened(repo: &Arc<Repo>) -> Result<Session, RepoError> {
    let mut session = Session::open(repo)?;
    match ask!(session, Request::CheckJournal, Response::Damage(d) => d)? {
        Some(what) => Err(StoreError::Damaged { what }.into()),
        None => Ok(session),
    }
}

fn is_journal(e: &RepoError) -> bool {
    matches!(e, RepoError::Store(StoreError::Damaged { what }) if what.starts_with("journal "))
}

fn repair_journal(repo: &Arc<Repo>) -> Result<Mended> {
    match lock_exclusive(&repo.disk, &repo.dir, false)? {
        Some(lock) => Ok(repair::journal(repo, &lock)?),
        None => bail!("another mgit has the repository; unmount it, or try again"),
    }
}

fn checked(repo: &Arc<Repo>, mut session: Session, a: &Args, mended: &mut Mended) -> Result<Report> {
    if a.rebuild {
        session.call(Request::Rebuild)?;
    }
    let mut living = ask!(session, Request::List, Response::Heads(h) => h)?;
    let depth = match &a.version {
        Some(v) => Depth::Version(ask!(session, Request::Resolve(v.clone()), Response::Head(h) => h)?.id),
        None if a.quick => Depth::Quick,
        None => Depth::Full,
    };
    let stale = match depth {
        Depth::Version(_) => vec![],
        _ => ask!(session, Request::CheckCatalog, Response::Differences(d) => d)?,
    };
    let files = work!(session, Ask::Files, Answer::Files(f) => f)?;
    drop(session);
    repo.refresh()?; // The packs were read before the versions.
    let bar = out::Bar::new("checking", false)?;
    if a.repair {
        mended.lines.extend(mend(repo, &living, a, &bar)?);
    }
    let mut report = loop {
        let report = check(repo, &living, depth, &bar)?;
        // What was removed meanwhile gc may have freed.
        if report.ok || !forget_removed(repo, &mut living)? {
            break report;
        }
    };
    bar.done();
    report.findings.extend(stale.into_iter().map(|what| Finding {
        kind: "catalog".to_owned(),
        what: format!("{what}: not as the journal says; 'mgit fsck --rebuild' makes the catalog anew"),
        place: "catalog".to_owned(),
    }));
    if !matches!(depth, Depth::Version(_)) {
        report.findings.extend(check_files(repo, &files));
    }
    Ok(report)
}

/// Drops the versions that live no longer; whether there were any.
fn forget_removed(repo: &Arc<Repo>, living: &mut Vec<Head>) -> Result<bool> {
    let now = ask!(Session::open(repo)?, Request::List, Response::Heads(h) => h)?;
    let (now, before): (HashSet<Id>, usize) = (now.iter().map(|h| h.id).collect(), living.len());
    living.retain(|h| now.contains(&h.id));
    repo.refresh()?;
    Ok(living.len() < before)
}

fn mend(repo: &Arc<Repo>, living: &[Head], a: &Args, bar: &out::Bar) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let _alone = repair::alone(repo, bar)?;
    repo.refresh()?;
    if let Some(from) = &a.from {
        let wanted = repair::wanted(repo, living, bar)?;
        if !wanted.is_empty() {
            lines.extend(repair::heal(repo, wanted, from, bar)?.lines);
        }
    }
    lines.extend(repair::rewrite(repo, bar)?.lines);
    Ok(lines)
}

/// The packs, and the versions that what is left of the journal tells of.
fn without_journal(repo: &Arc<Repo>, a: &Args) -> Result<Report> {
    let (living, _) = repair::salvaged(repo)?;
    let bar = out::Bar::new("checking", false)?;
    let report = check(repo, &living, if a.quick { Depth::Quick } else { Depth::Full }, &bar)?;
    bar.done();
    Ok(report)
}

fn tell(g: &Global, a: &Args, mut report: Report, journal: Option<RepoError>, mended: &Mended) -> Result<ExitCode> {
    report.findings.extend(journal.map(|e| Finding {
        kind: "journal".to_owned(),
        what: format!("{e}; 'mgit fsck --repair' keeps what is whole"),
        place: "journal/000001.log".to_owned(),
    }));
    report.findings.sort();
    report.ok = report.findings.is_empty();
    if g.json {
        let mut value = json!(report);
        if a.repair {
            value["repaired"] = json!(mended.lines);
        }
        out::print_json(&value)?;
    } else {
        mended.lines.iter().for_each(|l| eprintln!("{l}"));
        report.findings.iter().for_each(|f| eprintln!("{}: {} ({})", f.kind, f.what, f.place));
        let (blocks, versions) = (report.blocks_checked, report.versions_checked);
        let verdict = match report.findings.len() {
            0 => "all is whole".to_owned(),
            1 => "1 finding".to_owned(),
            n => format!("{n} findings"),
        };
        out::print_lines([format!("{blocks} blocks and {versions} versions checked: {verdict}")])?;
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
