//! `mgit rm`

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::{Global, out};
use crate::ask;
use crate::control::{Request, Response};
use crate::model::name::VersionRef;
use crate::repo::engine::label;

/// Remove versions, all of them or none
///
/// What other versions share stays whole. A removed version's name is not used again.
#[derive(clap::Args)]
pub struct Args {
    #[arg(required = true)]
    versions: Vec<VersionRef>,
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    let (_, mut session) = g.session()?;
    let heads = ask!(session, Request::Remove(a.versions.clone()), Response::Heads(h) => h)?;
    match g.json {
        true => out::print_json(&json!({"removed": heads.iter().map(out::version).collect::<Vec<_>>()}))?,
        false => out::print_lines(heads.iter().map(|h| format!("removed {}", label(h))))?,
    }
    Ok(ExitCode::SUCCESS)
}
