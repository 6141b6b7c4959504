//! `mgit verify`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::lossy::words;
use super::{Global, out};
use crate::ask;
use crate::control::{Request, Response};
use crate::model::name::VersionRef;
use crate::repo::export;

/// Check that PATH holds the same bytes as a version, before you delete the originals
///
/// Both sides are read in full. Exit 1 and a line for each difference when they are not the same.
#[derive(clap::Args)]
pub struct Args {
    path: PathBuf,
    version: VersionRef,
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    let (repo, mut session) = g.session()?;
    let head = ask!(session, Request::Resolve(a.version.clone()), Response::Head(h) => h)?;
    drop(session);
    let record = repo.record(&head.id)?;
    let bar = out::Bar::new("verifying", false)?;
    let differences = export::verify(&repo, &record, &a.path, &bar)?;
    bar.done();
    let same = differences.is_empty();
    match (g.json, same) {
        (true, _) => out::print_json(&json!({"version": out::version(&head), "same": same,
            "differences": differences}))?,
        (false, true) => out::print_lines([format!(
            "{} is stored as {}@{}: {} files, {}, all the same",
            a.path.display(),
            head.model,
            head.version,
            record.files.len(),
            out::size(record.logical_bytes())
        )])?,
        (false, false) => {
            differences.iter().for_each(|d| eprintln!("mgit: {d}"));
            let lossy = record.lossy.as_ref().map_or_else(String::new, |l| format!(", which is lossy: {}", words(l)));
            eprintln!("mgit: {} is not what {}@{} holds{lossy}", a.path.display(), head.model, head.version);
        }
    }
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
