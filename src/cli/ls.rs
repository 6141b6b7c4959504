//! `mgit ls`

use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::json;

use super::{Global, out};
use crate::ask;
use crate::control::{Request, Response};
use crate::model::name::ModelName;
use crate::repo::Head;

/// List the models, or the versions of one
#[derive(clap::Args)]
pub struct Args {
    model: Option<ModelName>,
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    let (_, mut session) = g.session()?;
    let mut heads = ask!(session, Request::List, Response::Heads(h) => h)?;
    if let Some(model) = &a.model {
        heads.retain(|h| h.model == *model);
        if heads.is_empty() {
            bail!("no model '{model}' here; 'mgit ls' lists them");
        }
    }
    if g.json {
        let row = |h: &Head| {
            json!({"model": h.model, "version": h.version, "id": h.id, "created": h.created,
                "logical_bytes": h.bytes})
        };
        out::print_json(&json!({"versions": heads.iter().map(row).collect::<Vec<_>>()}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let lines = match &a.model {
        Some(_) => out::table(&["VERSION", "CREATED (UTC)", ">SIZE", "ID"], &versions(&heads)),
        None if heads.is_empty() => vec!["no models yet; 'mgit import DIR' stores one".to_owned()],
        None => out::table(&["MODEL", ">VERSIONS", "NEWEST", "CREATED (UTC)", ">SIZE"], &models(&heads)),
    };
    out::print_lines(lines)?;
    Ok(ExitCode::SUCCESS)
}

fn versions(heads: &[Head]) -> Vec<Vec<String>> {
    let row = |h: &Head| vec![h.version.to_string(), out::time(h.created), out::size(h.bytes), h.id.short()];
    heads.iter().map(row).collect()
}

/// A row for each model: its newest version, and the size of all.
fn models(heads: &[Head]) -> Vec<Vec<String>> {
    let mut by_model = std::collections::BTreeMap::<&ModelName, Vec<&Head>>::new();
    heads.iter().for_each(|h| by_model.entry(&h.model).or_default().push(h));
    let row = |(model, versions): (&ModelName, Vec<&Head>)| {
        let newest = versions[versions.len() - 1];
        let bytes = versions.iter().map(|h| h.bytes).sum();
        let (count, created) = (versions.len().to_string(), out::time(newest.created));
        vec![model.to_string(), count, newest.version.to_string(), created, out::size(bytes)]
    };
    by_model.into_iter().map(row).collect()
}
