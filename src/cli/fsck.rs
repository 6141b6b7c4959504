//! `mgit fsck`

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::{Global, out};
use crate::control::{Request, Response};
use crate::repo::fsck::{Finding, fsck};
use crate::repo::work::{Answer, Ask, check_files};
use crate::{ask, work};

/// Check every byte of the store: each block decoded and held against its id, each version whole
///
/// Exit 1 and a line for each finding when something is damaged.
#[derive(clap::Args)]
pub struct Args {
    /// First make the catalog anew from packs and journal
    #[arg(long)]
    rebuild: bool,
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    let (repo, mut session) = g.session()?;
    if a.rebuild {
        session.call(Request::Rebuild)?;
    }
    let living = ask!(session, Request::List, Response::Heads(h) => h)?;
    let stale = ask!(session, Request::CheckCatalog, Response::Differences(d) => d)?;
    let files = work!(session, Ask::Files, Answer::Files(f) => f)?;
    drop(session);
    let bar = out::Bar::new("checking", false)?;
    let mut report = fsck(&repo, &living, &bar)?;
    bar.done();
    report.findings.extend(stale.into_iter().map(|what| Finding {
        kind: "catalog".to_owned(),
        what: format!("{what}: not as the journal says; 'mgit fsck --rebuild' makes the catalog anew"),
        place: "catalog".to_owned(),
    }));
    report.findings.extend(check_files(&repo, &files));
    report.ok = report.findings.is_empty();
    if g.json {
        out::print_json(&json!(report))?;
    } else {
        report.findings.iter().for_each(|f| eprintln!("{}: {} ({})", f.kind, f.what, f.place));
        let (blocks, versions) = (report.blocks_checked, report.versions_checked);
        let verdict = match report.findings.len() {
            0 => "all is whole".to_owned(),
            n => format!("{n} findings"),
        };
        out::print_lines([format!("{blocks} blocks and {versions} versions checked: {verdict}")])?;
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
