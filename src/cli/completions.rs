//! `mgit completions`

use std::process::ExitCode;

use anyhow::Result;
use clap_complete::Shell;

/// Print completions for a shell
///
///   mgit completions bash > ~/.local/share/bash-completion/completions/mgit
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    shell: Shell,
}

pub fn run(a: &Args) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(a.shell, &mut super::command(), "mgit", &mut script);
    super::out::print_lines([String::from_utf8_lossy(&script).trim_end()])?;
    Ok(ExitCode::SUCCESS)
}
