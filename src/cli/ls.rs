//! `mgit ls`

use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::json;

use super::{Global, out};
use crate::control::{Request, Response, Session};
use crate::model::cascade::{self, Fact, Facts};
use crate::model::name::{ModelName, printable};
use crate::repo::Head;
use crate::repo::charge::Charges;
use crate::repo::draft::Listed;
use crate::repo::graph::stored;
use crate::repo::update::name;
use crate::repo::work::{Answer, Ask};
use crate::{ask, work};

/// List the models, or the versions of one
#[derive(clap::Args)]
pub struct Args {
    model: Option<ModelName>,
    /// Newest versions with a parent of which there is a newer version that they were not made from
    #[arg(long)]
    stale: bool,
    /// What was written through the mount and is not a version yet, with age and size
    #[arg(long)]
    drafts: bool,
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    let (repo, mut session) = g.session()?;
    if a.stale {
        return stale(g, a, session);
    }
    if a.drafts {
        let mut drafts = ask!(session, Request::Drafts, Response::Drafts(d) => d)?;
        drafts.retain(|d| a.model.as_ref().is_none_or(|m| *m == d.slot.model));
        return list_drafts(g, &drafts);
    }
    let all = ask!(session, Request::List, Response::Heads(h) => h)?;
    drop(session);
    let of = |model: &ModelName| all.iter().filter(|h| h.model == *model).cloned().collect::<Vec<_>>();
    let heads = a.model.as_ref().map_or_else(|| all.clone(), of);
    if let (Some(model), true) = (&a.model, heads.is_empty()) {
        bail!("no model '{model}' here; 'mgit ls' lists them");
    }
    if g.json {
        let row = |h: &Head| {
            json!({"model": h.model, "version": h.version, "id": h.id, "created": h.created,
                "logical_bytes": h.bytes, "lossy": h.lossy})
        };
        out::print_json(&json!({"versions": heads.iter().map(row).collect::<Vec<_>>()}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let charges = Charges::new(repo, all);
    let lines = match &a.model {
        Some(_) => out::table(&["VERSION", "ID", "CREATED", ">SIZE", ">STORED", ">SAVED"], &versions(&heads, &charges)),
        None if heads.is_empty() => vec!["no models yet; 'mgit import DIR' stores one".to_owned()],
        None => out::table(
            &["MODEL", ">VERSIONS", "NEWEST", "CREATED", ">SIZE", ">STORED", ">SAVED"],
            &models(&heads, &charges),
        ),
    };
    out::print_lines(lines)?;
    Ok(ExitCode::SUCCESS)
}

/// What `mgit update` would make again if the parents' newest versions came in the place of those before.
fn stale(g: &Global, a: &Args, mut session: Session) -> Result<ExitCode> {
    let facts = work!(session, Ask::Facts, Answer::Facts(f) => f)?;
    let all = Facts::new(&facts);
    let mut found = cascade::stale(&all);
    found.retain(|(f, ..)| a.model.as_ref().is_none_or(|m| *m == f.model));
    if g.json {
        let reference = |f: &Fact| json!({"model": f.model, "version": f.version, "id": f.id});
        let mut rows: Vec<serde_json::Value> = Vec::new();
        for (fact, parent, newest) in found {
            let of = json!({"parent": reference(parent), "newest": reference(newest)});
            match rows.last_mut().filter(|r| r["id"] == json!(fact.id)) {
                Some(row) => row["stale"].as_array_mut().into_iter().for_each(|s| s.push(of.clone())),
                None => {
                    let mut row = reference(fact);
                    row["stale"] = json!([of]);
                    rows.push(row);
                }
            }
        }
        out::print_json(&json!({ "versions": rows }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |(f, p, n): &(&Fact, &Fact, &Fact)| vec![f.model.to_string(), f.version.to_string(), name(p), name(n)];
    out::print_lines(match found.is_empty() {
        true => vec!["nothing is stale".to_owned()],
        false => out::table(&["MODEL", "VERSION", "FROM", "NEWEST"], &found.iter().map(row).collect::<Vec<_>>()),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn list_drafts(g: &Global, drafts: &[Listed]) -> Result<ExitCode> {
    if g.json {
        let row = |d: &Listed| {
            json!({"model": d.slot.model, "name": d.slot.name, "directory": d.directory, "files": d.files,
                "bytes": d.bytes, "changed": d.changed})
        };
        out::print_json(&json!({"drafts": drafts.iter().map(row).collect::<Vec<_>>()}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |d: &Listed| {
        let name = printable(&d.slot.name) + if d.directory { "/" } else { "" };
        vec![d.slot.model.to_string(), name, out::ago(d.changed), d.files.to_string(), out::size(d.bytes)]
    };
    let rows: Vec<_> = drafts.iter().map(row).collect();
    out::print_lines(match rows.is_empty() {
        true => vec!["no drafts; 'mkdir MOUNT/models/MODEL/VERSION' makes one".to_owned()],
        false => out::table(&["MODEL", "NAME", "CHANGED", ">FILES", ">SIZE"], &rows),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn versions(heads: &[Head], charges: &Charges) -> Vec<Vec<String>> {
    let row = |h: &Head| {
        let version = if h.lossy { format!("{} (lossy)", h.version) } else { h.version.to_string() };
        let mut cells = vec![version, h.id.short(), out::ago(h.created)];
        cells.extend(out::costs(h.bytes, stored(charges, &h.id)));
        cells
    };
    heads.iter().map(row).collect()
}

/// A row for each model: its newest version, and the size of all.
fn models(heads: &[Head], charges: &Charges) -> Vec<Vec<String>> {
    let mut by_model = std::collections::BTreeMap::<&ModelName, Vec<&Head>>::new();
    heads.iter().for_each(|h| by_model.entry(&h.model).or_default().push(h));
    let row = |(model, versions): (&ModelName, Vec<&Head>)| {
        let newest = versions[versions.len() - 1];
        let bytes = versions.iter().map(|h| h.bytes).sum();
        let stored = versions.iter().map(|h| stored(charges, &h.id)).sum::<Option<u64>>();
        let (count, created) = (versions.len().to_string(), out::ago(newest.created));
        let mut cells = vec![model.to_string(), count, newest.version.to_string(), created];
        cells.extend(out::costs(bytes, stored));
        cells
    };
    by_model.into_iter().map(row).collect()
}
