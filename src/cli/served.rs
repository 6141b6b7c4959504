//! The mount in which the programs that a command runs find versions: the repository's, or one of the command's own.
//!
//! A mount of its own lies beside the control sockets and is served by a process that ends with the command, also when that
//! is killed. Other commands that find it use it too; then it lasts until the last of them has let go of its lock.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use crate::control::{self, Request, Response, Session, runtime_dir};
use crate::model::name::{ModelName, VersionName};
use crate::mount;
use crate::repo::Repo;
use crate::repo::scratch::Scratch;
use crate::repo::work::{Answer, Ask};
use crate::work;

/// A live mount, for as long as this is held.
pub struct Served {
    at: PathBuf,
    /// Held where the mount is a command's own, so that it lasts.
    shared: Option<File>,
    own: bool,
}

impl Served {
    /// The mount, and a connection to its daemon.
    pub fn open(repo: &Arc<Repo>) -> Result<(Served, Session)> {
        let own = runtime_dir().join(format!("mnt-{}", std::process::id()));
        for _ in 0..20 {
            let mut session = Session::open(repo)?;
            let Some(at) = session.mountpoint()? else {
                drop(session);
                start(repo, &own)?;
                continue;
            };
            let mut served = Served { own: at == own.canonicalize().unwrap_or_default(), at, shared: None };
            let of_a_command = served.at.starts_with(runtime_dir().canonicalize().unwrap_or_default());
            served.shared = File::open(lock_of(&served.at)).ok().filter(|_| of_a_command);
            if let Some(lock) = &served.shared {
                lock.lock_shared().context("cannot lock the mount")?;
            }
            let cascade = work!(session, Ask::Cascade, Answer::Cascade(c) => c)?;
            Scratch::sweep(repo, &cascade.map_or_else(Vec::new, |c| c.runs()));
            // Its owner may have ended it while we waited for the lock.
            if session.mountpoint().is_ok() {
                return Ok((served, session));
            }
        }
        bail!("other commands keep mounting and unmounting the repository; mount it with 'mgit mount'")
    }

    /// The directory of a version.
    pub fn path(&self, model: &ModelName, version: &VersionName) -> PathBuf {
        self.at.join("models").join(model.dir_name()).join(version.as_str())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shared = None;
        if !self.own {
            return;
        }
        let lock = File::open(lock_of(&self.at)).and_then(|f| f.lock().map(|()| f));
        let daemon = control::daemon_of(&self.at);
        if let Err(e) = mount::unmount(&self.at, false).or_else(|_| mount::unmount(&self.at, true)) {
            log::warn!("{e}");
        }
        if let Some(daemon) = daemon {
            daemon.wait_for_end();
        }
        remove(&self.at);
        drop(lock);
    }
}

fn lock_of(at: &Path) -> PathBuf {
    at.with_extension("lock")
}

/// What is left of a mount that has ended; a live one is busy and stays.
fn remove(at: &Path) {
    if mount::is_dead(at) {
        let _ = mount::unmount(at, true); // Its process was killed.
    }
    if fs::remove_dir(at).is_ok() {
        let _ = fs::remove_file(lock_of(at));
        let _ = fs::remove_file(at.with_extension("log"));
    }
}

/// Mounts; no error when another process was faster.
fn start(repo: &Arc<Repo>, at: &Path) -> Result<()> {
    let dir = at.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(|| dir.display().to_string())?;
    let before = fs::read_dir(dir)?.flatten().map(|e| e.path());
    before.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("mnt-"))).for_each(|p| remove(&p));
    DirBuilder::new().recursive(true).mode(0o700).create(at).with_context(|| at.display().to_string())?;
    let lock = lock_of(at);
    let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock);
    made.with_context(|| lock.display().to_string())?;
    let mut command = Command::new(std::env::current_exe().context("cannot find mgit's own program")?);
    command.arg("--repo").arg(&repo.dir).arg("mount").arg(at).args(["--foreground", "--read-only"]);
    command.current_dir("/");
    let log = at.with_extension("log");
    match mount::start_for_this_process(command, &log) {
        Err(e) if !Session::open(repo).is_ok_and(|mut s| s.mountpoint().is_ok_and(|m| m.is_some())) => {
            remove(at);
            Err(e).context("programs need a mount to see versions in")
        }
        _ => Ok(()),
    }
}
