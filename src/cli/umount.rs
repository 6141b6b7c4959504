//! `mgit umount`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use super::Global;
use crate::{control, mount};

/// End a mount; also one whose daemon was killed
#[derive(clap::Args)]
pub struct Args {
    mountpoint: PathBuf,
    /// Detach at once, even while files in it are open
    #[arg(long)]
    lazy: bool,
}

pub fn run(_: &Global, a: &Args) -> Result<ExitCode> {
    if a.lazy {
        mount::unmount(&a.mountpoint, true)?; // Its daemon may hang, and goes on while files are open.
        return Ok(ExitCode::SUCCESS);
    }
    let daemon = a.mountpoint.canonicalize().ok().and_then(|at| control::daemon_of(&at));
    mount::unmount(&a.mountpoint, false)?;
    if let Some(daemon) = daemon {
        daemon.wait_for_end();
    }
    Ok(ExitCode::SUCCESS)
}
