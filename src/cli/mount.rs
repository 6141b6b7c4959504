//! `mgit mount`: the daemon that serves a repository's mount and its control socket.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytesize::ByteSize;
use serde_json::json;

use super::{Global, out};
use crate::control::{self, Mounted, Session};
use crate::mount::{self, MountOptions};
use crate::repo::engine::Engine;
use crate::repo::keep::Keeper;
use crate::vfs::Vfs;
use crate::vfs::repo::RepoSource;

/// Mount the repository: every version a directory of ordinary files
///
/// Returns when the mount is ready; the daemon goes on in the background and writes a log. New versions
/// appear within a second. All other commands go on working. The mount is read-only.
///
///   mgit mount ~/models
///   ls ~/models/models/bert/latest/
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// An empty directory
    mountpoint: PathBuf,
    /// Stay in the foreground, for a supervisor
    #[arg(long)]
    foreground: bool,
    /// Let other users in
    #[arg(long)]
    allow_other: bool,
    /// Refuse all writes (as yet the only way)
    #[arg(long)]
    read_only: bool,
    /// Memory for decoded blocks
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    cache_size: ByteSize,
    /// Disk space for whole files that were read, below $XDG_CACHE_HOME/mgit: the next load is as fast as from plain
    /// files. 0: none. Root's mounts let the kernel read them by itself
    #[arg(long, value_name = "SIZE", default_value = "0")]
    disk_cache: ByteSize,
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    if a.foreground {
        let served = serve(g, a);
        if let Err(e) = &served {
            mount::notify_ready(Err(&format!("{e:#}")));
        }
        return served.map(|()| ExitCode::SUCCESS);
    }
    let repo = g.open()?;
    let log = mount::log_path(&repo.dir)?;
    mount::daemonize(&log)?;
    let at = a.mountpoint.canonicalize().unwrap_or_else(|_| a.mountpoint.clone());
    match g.json {
        true => out::print_json(&json!({"mountpoint": at, "repo": repo.dir, "log": log}))?,
        false => out::print_lines([
            format!("{} is mounted at {}", repo.dir.display(), at.display()),
            format!("log: {}; 'mgit umount {}' ends it", log.display(), at.display()),
        ])?,
    }
    Ok(ExitCode::SUCCESS)
}

fn serve(g: &Global, a: &Args) -> Result<()> {
    let repo = g.open_with_cache(a.cache_size.as_u64())?;
    let engine = take_engine(&repo)?;
    let keep = a.disk_cache.as_u64();
    let keeper = (keep > 0).then(|| Keeper::start(repo.clone(), keep)).transpose()?;
    let vfs = Arc::new(Vfs::new(RepoSource::new(engine.clone(), keeper.clone())));
    vfs.kernel_is_told();
    let options = MountOptions { allow_other: a.allow_other, ..MountOptions::default() };
    let mounted = mount::mount(vfs.clone(), &a.mountpoint, &options)?;
    let tell = mounted.telling();
    engine.on_change(Box::new(move |events| {
        vfs.source().changed(events);
        tell(vfs.stale(events));
    }));
    let mountpoint = mounted.mountpoint().to_owned();
    let listener = control::listen(&repo.dir).context("cannot open the control socket")?;
    control::serve(engine.clone(), listener, Mounted { mountpoint, keeper: keeper.clone() });
    let stopper = mounted.stopper();
    mount::on_signals(move || stopper.stop())?;
    mount::notify_ready(Ok(()));
    let ended = mounted.wait();
    if let Some(keeper) = keeper {
        keeper.stop();
    }
    let _ = std::fs::remove_file(control::socket_path(&repo.dir));
    engine.catalog().flush()?;
    Ok(ended?)
}

fn take_engine(repo: &Arc<crate::repo::Repo>) -> Result<Arc<Engine>> {
    match Session::open(repo)? {
        Session::Local(engine) => Ok(Arc::new(*engine)),
        mut remote => match remote.mountpoint()? {
            Some(at) => bail!("the repository is mounted already, at {}", at.display()),
            None => bail!("another daemon has the repository"),
        },
    }
}
