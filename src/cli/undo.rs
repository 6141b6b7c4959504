//! `mgit undo`

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::{Global, out};
use crate::ask;
use crate::control::{Request, Response};
use crate::repo::engine::label;
use crate::repo::house::Ask;

/// Bring back what the last `mgit rm` removed
///
/// Works until `mgit gc` has freed it. Again: the removal before that.
#[derive(clap::Args)]
pub struct Args {}

pub fn run(g: &Global, _: &Args) -> Result<ExitCode> {
    let (_, mut session) = g.session()?;
    let heads = ask!(session, Request::House(Ask::Undo), Response::Heads(h) => h)?;
    match g.json {
        true => out::print_json(&json!({"restored": heads.iter().map(out::version).collect::<Vec<_>>()}))?,
        false => out::print_lines(heads.iter().map(|h| format!("{} is back", label(h))))?,
    }
    Ok(ExitCode::SUCCESS)
}
