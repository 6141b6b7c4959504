//! `mgit mv`

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::{Global, out};
use crate::ask;
use crate::control::{Request, Response};
use crate::model::name::ModelName;
use crate::repo::house::Ask;

/// Give a model another name, with all its versions and tags
///
/// Ids, edges and files stay as they are.
#[derive(clap::Args)]
pub struct Args {
    model: ModelName,
    new_name: ModelName,
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    let (_, mut session) = g.session()?;
    let ask = Ask::Rename(a.model.clone(), a.new_name.clone());
    let heads = ask!(session, Request::House(ask), Response::Heads(h) => h)?;
    match g.json {
        true => out::print_json(&json!({"model": a.new_name, "was": a.model, "versions": heads.len()}))?,
        false => out::print_lines([format!("{} is now {}: {} versions", a.model, a.new_name, heads.len())])?,
    }
    Ok(ExitCode::SUCCESS)
}
