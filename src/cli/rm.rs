//! `mgit rm`

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use serde_json::json;

use super::{Global, out};
use crate::ask;
use crate::control::{Request, Response, Session};
use crate::model::name::{ModelName, VersionRef};
use crate::model::pattern::VersionPattern;
use crate::repo::Head;
use crate::repo::engine::label;

/// Remove versions, all of them or none
///
/// What other versions share stays whole. A removed version's name is not used
/// again. `mgit undo` brings back what the last removal took, until `mgit gc` has
/// freed its space.
///
///   mgit rm bert@v1
///   mgit rm 'acme/*@tmp-*'            all that match; tagged ones stay
///   mgit rm 'bert*' --keep-last 3     of each model that matches, all but the newest three
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// MODEL@VERSION, MODEL for its newest, or a pattern with *, ? or [ab]
    #[arg(required = true)]
    versions: Vec<String>,
    /// Remove all but the newest N versions of each model named; tagged ones stay
    #[arg(long, value_name = "N")]
    keep_last: Option<usize>,
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    let (_, mut session) = g.session()?;
    let named = match a.keep_last.is_some() || a.versions.iter().any(|v| VersionPattern::is_one(v)) {
        true => matching(&mut session, a)?,
        false => a.versions.iter().map(|v| Ok(v.parse()?)).collect::<Result<Vec<VersionRef>>>()?,
    };
    let heads = match named.is_empty() {
        true => vec![],
        false => ask!(session, Request::Remove(named), Response::Heads(h) => h)?,
    };
    match g.json {
        true => out::print_json(&json!({"removed": heads.iter().map(out::version).collect::<Vec<_>>()}))?,
        false if heads.is_empty() => out::print_lines(["nothing to remove".to_owned()])?,
        false => out::print_lines(heads.iter().map(|h| format!("removed {}", label(h))))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What names and patterns stand for.
fn matching(session: &mut Session, a: &Args) -> Result<Vec<VersionRef>> {
    let living = ask!(session, Request::List, Response::Heads(h) => h)?;
    let mut models = BTreeMap::<ModelName, Vec<Head>>::new();
    living.into_iter().for_each(|h| models.entry(h.model.clone()).or_default().push(h));
    let mut found = Vec::new();
    for text in &a.versions {
        if a.keep_last.is_none() && !VersionPattern::is_one(text) {
            found.push(text.parse()?);
            continue;
        }
        let pattern = VersionPattern::new(text).map_err(|e| anyhow!(e))?;
        let mut any = false;
        for (model, heads) in &models {
            let of: Vec<&Head> = heads.iter().filter(|h| pattern.matches(&h.model, &h.version)).collect();
            any |= !of.is_empty();
            let chosen = match (a.keep_last, pattern.names_versions()) {
                (Some(n), _) => &of[..of.len().saturating_sub(n)],
                (None, true) => &of[..],
                (None, false) => &of[of.len().saturating_sub(1)..],
            };
            let spared = if chosen.is_empty() { vec![] } else { tagged(session, model)? };
            let chosen = chosen.iter().filter(|h| !spared.contains(&h.id));
            found.extend(chosen.map(|h| VersionRef { model: h.model.clone(), version: Some(h.version.clone()) }));
        }
        if !any {
            bail!("no version matches '{text}'; 'mgit ls' shows what there is");
        }
    }
    Ok(found)
}

fn tagged(session: &mut Session, model: &ModelName) -> Result<Vec<crate::model::id::Id>> {
    let tags = ask!(session, Request::Tags(model.clone()), Response::Tags(t) => t)?;
    Ok(tags.into_iter().map(|(_, id)| id).collect())
}
