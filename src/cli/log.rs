//! `mgit log`

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Global, out};
use crate::ask;
use crate::control::{Request, Response};
use crate::model::name::VersionRef;
use crate::repo::Repo;
use crate::repo::engine::{Detail, label};

/// Show a version and all that it comes from, newest first
///
/// Without a version: all versions of the repository.
#[derive(clap::Args)]
pub struct Args {
    version: Option<VersionRef>,
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    let (repo, mut session) = g.session()?;
    let details = ask!(session, Request::History(a.version.clone()), Response::Details(d) => d)?;
    match g.json {
        true => out::print_json(&json!({"versions": details.iter().map(|d| as_json(&repo, d)).collect::<Vec<_>>()}))?,
        false => out::print_lines(details.iter().flat_map(|d| as_text(&repo, d)))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The message; a damaged record has none to tell.
fn message(repo: &Arc<Repo>, d: &Detail) -> String {
    repo.record(&d.head.id).map(|r| r.message).unwrap_or_default()
}

fn as_text(repo: &Arc<Repo>, d: &Detail) -> Vec<String> {
    let h = &d.head;
    let gone = if h.removed { "  (removed)" } else { "" };
    let mut lines =
        vec![format!("{}  {}  {}  {}{gone}", label(h), h.id.short(), out::time(h.created), out::size(h.bytes))];
    lines.extend(d.parents.iter().map(|(p, relation)| format!("    {relation} of {}", label(p))));
    lines.extend(d.previous.iter().map(|p| format!("    after {}", label(p))));
    lines.extend(message(repo, d).lines().map(|l| format!("    | {l}")));
    lines
}

fn as_json(repo: &Arc<Repo>, d: &Detail) -> Value {
    json!({
        "model": d.head.model, "version": d.head.version, "id": d.head.id, "created": d.head.created,
        "message": message(repo, d), "removed": d.head.removed, "logical_bytes": d.head.bytes,
        "parents": d.parents.iter().map(out::related).collect::<Vec<_>>(),
        "previous": d.previous.as_ref().map(out::version),
    })
}
