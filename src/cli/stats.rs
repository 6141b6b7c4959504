//! `mgit stats`

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::{Global, out};
use crate::ask;
use crate::control::{Request, Response};
use crate::repo::space;

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
    if g.json {
        out::print_json(&json!({
            "models": models, "versions": heads.len(), "logical_bytes": logical,
            "stored_bytes": used.stored, "pack_bytes": used.packs, "catalog_bytes": used.catalog,
            "draft_bytes": used.drafts,
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
    ])?;
    Ok(ExitCode::SUCCESS)
}
