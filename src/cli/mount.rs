//! `mgit mount`: the daemon that serves a repository's mount and its control socket.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytesize::ByteSize;
use serde_json::json;

use super::{Global, out};
use crate::control::{self, Mounted, Session};
use crate::mount::{self, MountOptions};
use crate::repo::draft::{Area, Committer, DRAFTS, Start, Wish};
use crate::repo::engine::Engine;
use crate::repo::keep::Keeper;
use crate::repo::{Repo, RepoError};
use crate::vfs::Vfs;
use crate::vfs::drafts::Drafts;
use crate::vfs::repo::RepoSource;

/// When `rm` of some files of a settled version, but not of all, is taken at its word.
const REMOVALS: Duration = Duration::from_secs(30);

/// Mount the repository: every version a directory of ordinary files
///
/// Returns when the mount is ready; the daemon goes on in the background and
/// writes a log. New versions appear within a second. All other commands go on
/// working.
///
/// What is written to models/MODEL/VERSION/ is a draft, an ordinary directory.
/// When it is complete and nobody has touched it for a while (--settle), or by
/// 'mgit seal', it becomes a version.
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
    /// Refuse all writes
    #[arg(long)]
    read_only: bool,
    /// Memory for decoded blocks
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    cache_size: ByteSize,
    /// Disk space for whole files that were read, below $XDG_CACHE_HOME/mgit: the next load is as fast as from plain
    /// files. 0: none. Root's mounts let the kernel read them by itself
    #[arg(long, value_name = "SIZE", default_value = "0")]
    disk_cache: ByteSize,
    /// Make a draft a version when nothing in it was open for writing or changed for so long. 0: only 'mgit seal' does
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    settle: u64,
    /// Disk space that writing through the mount leaves free
    #[arg(long, value_name = "SIZE", default_value = "0")]
    reserve: ByteSize,
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
    let drafts = Arc::new(Area::new(&repo.dir));
    let vfs = Vfs::new(RepoSource::new(engine.clone(), keeper.clone()));
    let (vfs, settle) = match drafts.recover(&engine) {
        // On such media nobody has drafts.
        Err(RepoError::File { source, .. }) if a.read_only && source.kind() == ErrorKind::ReadOnlyFilesystem => {
            (vfs, 0)
        }
        recovered => {
            recovered?;
            (vfs.with_drafts(Drafts::open(drafts.clone(), a.reserve.as_u64())?), a.settle)
        }
    };
    let vfs = Arc::new(vfs);
    vfs.kernel_is_told();
    let options = MountOptions { allow_other: a.allow_other, read_only: a.read_only, ..MountOptions::default() };
    let mounted = mount::mount(vfs.clone(), &a.mountpoint, &options)?;
    let tell = Arc::new(mounted.telling());
    let (told, known) = (tell.clone(), vfs.clone());
    engine.on_change(Box::new(move |events| {
        known.source().changed(events);
        told(known.stale(events));
    }));
    let known = vfs.clone();
    drafts.on_gone(Box::new(move |slot| tell(known.stale_draft(slot))));
    let mountpoint = mounted.mountpoint().to_owned();
    let listener = control::listen(&repo.dir).context("cannot open the control socket")?;
    let door = control::serve(
        engine.clone(),
        listener,
        Mounted { mountpoint, keeper: keeper.clone(), drafts: drafts.clone() },
    );
    let committer = Committer::start(drafts, Duration::from_secs(settle), committing(&repo))?;
    let known = vfs.clone();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(REMOVALS / 2);
            known.settle_removals(REMOVALS);
        }
    });
    let stopper = mounted.stopper();
    mount::on_signals(move || stopper.stop())?;
    if mount::is_orphan() {
        mounted.stopper().stop();
    }
    mount::notify_ready(Ok(()));
    let ended = mounted.wait();
    committer.stop();
    vfs.settle_removals(Duration::ZERO);
    if let Some(keeper) = keeper {
        keeper.stop();
    }
    let _ = std::fs::remove_file(control::socket_path(&repo.dir));
    door.close();
    engine.catalog().flush()?;
    Ok(ended?)
}

/// Starts `mgit seal` on a draft: at a low priority, and not longer than this process lives.
fn committing(repo: &Repo) -> Start {
    use std::os::unix::process::CommandExt;
    let dir = repo.dir.clone();
    Box::new(move |slot, wish| {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--repo").arg(&dir).arg("seal").arg(dir.join(DRAFTS).join(slot.model.dir_name()).join(&slot.name));
        if wish == Wish::Settle {
            command.arg("--settled");
        }
        // SAFETY: between fork and exec, only these two system calls are made, which are async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::setpriority(libc::PRIO_PROCESS, 0, 10);
                Ok(())
            });
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()
    })
}

fn take_engine(repo: &Arc<crate::repo::Repo>) -> Result<Arc<Engine>> {
    match Session::open(repo)? {
        Session::Local(engine) => {
            engine.check_journal()?; // What stays long looks at all of it.
            Ok(Arc::new(*engine))
        }
        mut remote => match remote.mountpoint()? {
            Some(at) => bail!("the repository is mounted already, at {}", at.display()),
            None => bail!("another daemon has the repository"),
        },
    }
}
