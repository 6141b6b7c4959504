//! `mgit stats`

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use serde_json::json;

use super::{Global, out};
use crate::ask;
use crate::control::{Request, Response};
use crate::repo::charge::Charges;
use crate::repo::{Head, Repo, space};

/// Show how much is stored, and in how little
#[derive(clap::Args)]
pub struct Args {}

pub fn run(g: &Global, _: &Args) -> Result<ExitCode> {
    let (repo, mut session) = g.session()?;
    let heads = ask!(session, Request::List, Response::Heads(h) => h)?;
    drop(session);
    let models = heads.iter().map(|h| &h.model).collect::<std::collections::HashSet<_>>().len();
    let logical: u64 = heads.iter().map(|h| h.bytes).sum();
    let used = space::of(&repo.dir)?;
    let lossy = Lossy::of(&repo, &heads)?;
    if g.json {
        out::print_json(&json!({
            "models": models, "versions": heads.len(), "logical_bytes": logical,
            "stored_bytes": used.stored, "pack_bytes": used.packs, "catalog_bytes": used.catalog,
            "draft_bytes": used.drafts,
            "lossy": {"versions": lossy.versions, "logical_bytes": lossy.logical, "stored_bytes": lossy.stored},
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let saved = if logical > used.stored { 100.0 * (1.0 - used.stored as f64 / logical as f64) } else { 0.0 };
    out::print_lines([
        format!("models    {models}"),
        format!("versions  {}", heads.len()),
        format!("logical   {}", out::size(logical)),
        format!("stored    {} ({saved:.1} % saved)", out::size(used.stored)),
        format!("  packs   {}", out::size(used.packs)),
        format!("  catalog {}", out::size(used.catalog)),
        format!("drafts    {}", out::size(used.drafts)),
        format!(
            "lossy     {} versions, {} stored in {}",
            lossy.versions,
            out::size(lossy.logical),
            out::size(lossy.stored)
        ),
    ])?;
    Ok(ExitCode::SUCCESS)
}

/// What is not exact, of all that is counted; all else is.
#[derive(Default)]
struct Lossy {
    versions: usize,
    logical: u64,
    stored: u64,
}

impl Lossy {
    fn of(repo: &Arc<Repo>, heads: &[Head]) -> Result<Lossy> {
        let mut found = Lossy::default();
        if !heads.iter().any(|h| h.lossy) {
            return Ok(found);
        }
        let charges = Charges::new(repo.clone(), heads.to_vec());
        for head in heads.iter().filter(|h| h.lossy) {
            found.versions += 1;
            found.logical += head.bytes;
            found.stored += charges.of(&head.id, &repo.record(&head.id)?)?.iter().sum::<u64>();
        }
        Ok(found)
    }
}
