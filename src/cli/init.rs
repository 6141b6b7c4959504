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
    /// Keep that much of each pack more, such as 5%: what rots within it is mended on reading and by fsck
    #[arg(long, value_name = "SHARE", value_parser = share, default_value = "0%", hide_default_value = true)]
    parity: u64,
}

/// `5%` or `0.05`, in thousandths.
fn share(s: &str) -> Result<u64, String> {
    let (number, of) = s.strip_suffix('%').map_or((s, 1000.0), |n| (n, 10.0));
    let permille = number.trim().parse::<f64>().map_err(|e| format!("{e}; say 5% or 0.05"))? * of;
    match permille {
        0.0 => Ok(0),
        1.0..=1000.0 => Ok(permille.round() as u64),
        _ => Err("from 0.1% to 100%, or 0%".to_owned()),
    }
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    let dir = match &a.dir {
        Some(dir) => dir.clone(),
        None => g.dir()?,
    };
    engine::init_with(&dir, Arc::new(RealDisk), a.parity)?;
    let dir = dir.canonicalize()?;
    match g.json {
        true => out::print_json(&json!({"repo": dir}))?,
        false => out::print_lines([format!("empty repository in {}", dir.display())])?,
    }
    Ok(ExitCode::SUCCESS)
}
