//! `mgit init`

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use serde_json::json;

use super::{Global, out};
use crate::repo::engine;
use crate::store::disk::RealDisk;

/// Make a new, empty repository
///
/// DIR is made if need be and must be empty. Without DIR it is the one that other commands use by default.
#[derive(clap::Args)]
pub struct Args {
    dir: Option<PathBuf>,
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    let dir = match &a.dir {
        Some(dir) => dir.clone(),
        None => g.dir()?,
    };
    engine::init(&dir, Arc::new(RealDisk))?;
    let dir = dir.canonicalize()?;
    match g.json {
        true => out::print_json(&json!({"repo": dir}))?,
        false => out::print_lines([format!("empty repository in {}", dir.display())])?,
    }
    Ok(ExitCode::SUCCESS)
}
