//! `mgit tag`

use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::json;

use super::{Global, out};
use crate::ask;
use crate::control::{Request, Response};
use crate::model::name::{VersionName, VersionRef};
use crate::repo::engine::label;
use crate::repo::house::Ask;

/// Let a name such as `prod` lead to a version, or move it there
///
/// MODEL@TAG then stands for that version, in commands and in the mount. `mgit
/// rm` does not remove a tagged version.
///
///   mgit tag bert@v3 prod
///   mgit tag bert             lists the tags of bert
///   mgit tag --delete bert@prod
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    version: VersionRef,
    #[arg(value_name = "TAG", conflicts_with = "delete")]
    tag: Option<VersionName>,
    /// Take the tag away; the version stays
    #[arg(short, long)]
    delete: bool,
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    let (model, named) = (&a.version.model, &a.version.version);
    let (ask, tag) = match (&a.tag, named) {
        (Some(tag), _) => (Ask::Tag(a.version.clone(), tag.clone()), tag),
        (None, Some(tag)) if a.delete => (Ask::Untag(model.clone(), tag.clone()), tag),
        (None, None) if !a.delete => return list(g, a),
        (None, _) if a.delete => bail!("name the tag to take away, as in 'mgit tag --delete {model}@prod'"),
        _ => bail!("name the tag, as in 'mgit tag {} prod'", a.version),
    };
    let (_, mut session) = g.session()?;
    let heads = ask!(session, Request::House(ask), Response::Heads(h) => h)?;
    let verb = if a.delete { "no longer leads" } else { "leads" };
    match g.json {
        true => {
            let version = heads.first().filter(|_| !a.delete).map(out::version);
            out::print_json(&json!({"model": model, "tag": tag, "version": version}))?
        }
        false => out::print_lines(heads.iter().map(|h| format!("{model}@{tag} {verb} to {}", label(h))))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(g: &Global, a: &Args) -> Result<ExitCode> {
    let (_, mut session) = g.session()?;
    let tags = ask!(session, Request::Tags(a.version.model.clone()), Response::Tags(t) => t)?;
    let living = ask!(session, Request::List, Response::Heads(h) => h)?;
    let led = tags.iter().filter_map(|(tag, id)| Some((tag, living.iter().find(|h| h.id == *id)?)));
    match g.json {
        true => {
            let row = |(tag, h)| json!({"tag": tag, "version": out::version(h)});
            out::print_json(&json!({"model": a.version.model, "tags": led.map(row).collect::<Vec<_>>()}))?
        }
        false => out::print_lines(led.map(|(tag, h)| format!("{}@{tag} -> {}", h.model, label(h))))?,
    }
    Ok(ExitCode::SUCCESS)
}
