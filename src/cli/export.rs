//! `mgit export`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use serde_json::json;

use super::{Global, out};
use crate::ask;
use crate::control::{Request, Response};
use crate::model::name::VersionRef;
use crate::repo::export;

/// Write a version's files into a new directory
#[derive(clap::Args)]
pub struct Args {
    version: VersionRef,
    /// Made if need be; must be empty
    dir: PathBuf,
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    let start = Instant::now();
    let (repo, mut session) = g.session()?;
    let head = ask!(session, Request::Resolve(a.version.clone()), Response::Head(h) => h)?;
    drop(session);
    let record = repo.record(&head.id)?;
    let bar = out::Bar::new("exporting", false)?;
    export::export(&repo, &record, &a.dir, &bar)?;
    bar.done();
    let (files, bytes) = (record.files.len(), record.logical_bytes());
    let seconds = start.elapsed().as_secs_f64();
    match g.json {
        true => out::print_json(&json!({"version": out::version(&head), "files": files, "bytes": bytes,
            "seconds": seconds}))?,
        false => out::print_lines([format!(
            "{}@{}: {files} files, {} in {}, {seconds:.1} s",
            head.model,
            head.version,
            out::size(bytes),
            a.dir.display()
        )])?,
    }
    Ok(ExitCode::SUCCESS)
}
