//! `mgit discard`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::json;

use super::seal::target;
use super::{Global, out};
use crate::ask;
use crate::control::{Request, Response};
use crate::repo::draft::Slot;

/// Remove a draft: what was written through the mount and is not a version
///
/// Of a settled version that was written again, the version stays as it was.
#[derive(clap::Args)]
pub struct Args {
    /// The draft's directory in the mount, or MODEL@VERSION; or a loose file
    path: PathBuf,
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    let (repo, mut session) = g.session()?;
    let (model, Some(name)) = target(&mut session, &repo.dir, &a.path)? else {
        bail!("{}: name one draft in it; 'mgit ls --drafts' lists them", a.path.display());
    };
    let slot = Slot { model, name };
    ask!(session, Request::Discard(slot.clone()), Response::Done => ())?;
    match g.json {
        true => out::print_json(&json!({"discarded": {"model": slot.model, "name": slot.name}}))?,
        false => out::print_lines([format!("discarded {slot}")])?,
    }
    Ok(ExitCode::SUCCESS)
}
