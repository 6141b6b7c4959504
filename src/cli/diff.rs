//! `mgit diff`

use std::process::ExitCode;

use anyhow::Result;

use super::side::{self, Target};
use super::{Global, out};
use crate::repo::diff::{compare, text};
use crate::repo::progress::Progress;

/// Show what differs between two models: tensors, config, tokenizer
///
/// Tensors are paired by what they hold, by the common part of their names, and by order: one that was only renamed is
/// shown so. Those that both sides share are not read. For each changed tensor: the share of elements that changed,
/// |B - A| / |A|, the largest |B - A|, the cosine, and the share of zeros before and after; in a group's line, the largest
/// of its tensors (of the cosine, the smallest). NaN and infinite elements count in the first figure only.
/// Exit 0 whether or not anything differs.
#[derive(clap::Args)]
#[command(after_help = "\
A and B are each MODEL[@VERSION], or the path of a model directory or a .safetensors file outside the repository.
What exists as a path and contains a '/' or starts with a '.' is a path: write ./model.safetensors.
Against a single .safetensors file, only tensors are compared.")]
pub struct Args {
    #[arg(value_parser = side::target)]
    a: Target,
    #[arg(value_parser = side::target)]
    b: Target,
    /// The summary, the groups and the names of the files only
    #[arg(long)]
    stat: bool,
}

pub fn run(g: &Global, args: &Args) -> Result<ExitCode> {
    let (repo, mut session) = g.session()?;
    let (a, b) = (side::find(&mut session, &args.a)?, side::find(&mut session, &args.b)?);
    drop(session);
    let bar = out::Bar::new("comparing", false)?;
    let hashed = a.bytes_to_open()? + b.bytes_to_open()?;
    bar.expect(hashed);
    let (a, b) = (a.open(&repo, &bar)?, b.open(&repo, &bar)?);
    let report = compare(&a, &b, !g.json && !args.stat, hashed, &bar)?;
    bar.done();
    match g.json {
        true => out::print_json(&serde_json::to_value(&report)?)?,
        false => out::print_lines(text::render(&report, args.stat))?,
    }
    Ok(ExitCode::SUCCESS)
}
