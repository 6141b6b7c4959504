//! The command line: one file a verb, the only place that prints.
//!
//! Exit 0: done. 1: failed, with one line on standard error. 2: wrong usage (clap's).

mod bisect;
mod cache;
mod completions;
mod diff;
mod discard;
mod export;
mod fsck;
mod gc;
mod heat;
mod import;
mod init;
mod kinship;
mod link;
mod log;
mod lossy;
mod ls;
mod merge;
mod mount;
mod mv;
mod out;
mod recipe;
mod repack;
mod rm;
mod seal;
mod served;
mod show;
mod side;
mod stats;
mod tag;
mod test;
mod umount;
mod undo;
mod update;
mod verify;

use std::cell::OnceCell;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::control::Session;
use crate::repo::{DEFAULT_CACHE, Repo};
use crate::store::disk::RealDisk;

/// Model versioning as a filesystem.
///
/// Every version of every model is an ordinary directory with ordinary .safetensors files. The bytes are
/// rebuilt on read from shared base blocks and small lossless deltas.
#[derive(Parser)]
#[command(
    name = "mgit",
    version,
    max_term_width = 100,
    after_help = "\
Start here:
  mgit init                                   make a repository (in ~/.local/share/mgit)
  mgit import ./bert --as bert                store a model directory as bert@v1
  mgit import ./tuned --as bert-sst2 --parent bert
  mgit mount ~/models                         then: ls ~/models/models/bert-sst2/latest/

A version is written MODEL@VERSION; MODEL alone is its newest version."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Args)]
pub(crate) struct Global {
    /// The repository [default: $MGIT_REPO, else $XDG_DATA_HOME/mgit, else ~/.local/share/mgit]
    #[arg(short, long, global = true, env = "MGIT_REPO", hide_env = true, value_name = "DIR")]
    repo: Option<PathBuf>,
    /// Print JSON for machines
    #[arg(long, global = true)]
    json: bool,
    /// Once it has been opened.
    #[arg(skip)]
    opened: OnceCell<Arc<Repo>>,
}

#[derive(Subcommand)]
enum Verb {
    Init(init::Args),
    Import(import::Args),
    Export(export::Args),
    Verify(verify::Args),
    Mount(mount::Args),
    Umount(umount::Args),
    Ls(ls::Args),
    Log(log::Args),
    Show(show::Args),
    Diff(diff::Args),
    Kinship(kinship::Args),
    Merge(merge::Args),
    Stats(stats::Args),
    Link(link::LinkArgs),
    Unlink(link::UnlinkArgs),
    Test(test::Args),
    Bisect(bisect::Args),
    Recipe(recipe::Args),
    Update(update::Args),
    Seal(seal::Args),
    Discard(discard::Args),
    Rm(rm::Args),
    Undo(undo::Args),
    Mv(mv::Args),
    Tag(tag::Args),
    Gc(gc::Args),
    Repack(repack::Args),
    Fsck(fsck::Args),
    Cache(cache::Args),
    Completions(completions::Args),
}

impl Global {
    /// Where the repository is or will be.
    fn dir(&self) -> Result<PathBuf> {
        let home = || std::env::var_os("HOME").map(PathBuf::from).filter(|h| h.is_absolute());
        let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|d| d.is_absolute());
        self.repo
            .clone()
            .or_else(|| data.or_else(|| home().map(|h| h.join(".local/share"))).map(|d| d.join("mgit")))
            .context("no repository named and no home directory; use --repo DIR")
    }

    fn open(&self) -> Result<Arc<Repo>> {
        match self.opened.get() {
            Some(repo) => Ok(repo.clone()),
            None => {
                let repo = self.open_with_cache(DEFAULT_CACHE)?;
                Ok(self.opened.get_or_init(|| repo).clone())
            }
        }
    }

    fn open_with_cache(&self, bytes: u64) -> Result<Arc<Repo>> {
        let dir = self.dir()?;
        if !dir.join("format.json").exists() {
            anyhow::bail!("no repository in {}; make one with 'mgit init {0}'", dir.display());
        }
        let dir = dir.canonicalize().with_context(|| format!("cannot open {}", dir.display()))?;
        Ok(Repo::open(&dir, Arc::new(RealDisk), bytes)?)
    }

    fn session(&self) -> Result<(Arc<Repo>, Session)> {
        let repo = self.open()?;
        let session = Session::open(&repo)?;
        Ok((repo, session))
    }
}

/// Parses the arguments, does what they say, and tells how it went.
pub fn main() -> ExitCode {
    let filter = env_logger::Env::new().filter_or("MGIT_LOG", "warn,sled=off"); // What fails in sled, we tell.
    env_logger::Builder::from_env(filter).format_target(false).init();
    let cli = Cli::parse();
    match run(&cli) {
        Ok(code) => code,
        Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("mgit: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// `mgit ls | head` is no failure.
fn is_broken_pipe(e: &anyhow::Error) -> bool {
    e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let g = &cli.global;
    match &cli.verb {
        Verb::Init(a) => init::run(g, a),
        Verb::Import(a) => import::run(g, a),
        Verb::Export(a) => export::run(g, a),
        Verb::Verify(a) => verify::run(g, a),
        Verb::Mount(a) => mount::run(g, a),
        Verb::Umount(a) => umount::run(g, a),
        Verb::Ls(a) => ls::run(g, a),
        Verb::Log(a) => log::run(g, a),
        Verb::Show(a) => show::run(g, a),
        Verb::Diff(a) => diff::run(g, a),
        Verb::Kinship(a) => kinship::run(g, a),
        Verb::Merge(a) => merge::run(g, a),
        Verb::Stats(a) => stats::run(g, a),
        Verb::Link(a) => link::link(g, a),
        Verb::Unlink(a) => link::unlink(g, a),
        Verb::Test(a) => test::run(g, a),
        Verb::Bisect(a) => bisect::run(g, a),
        Verb::Recipe(a) => recipe::run(g, a),
        Verb::Update(a) => update::run(g, a),
        Verb::Seal(a) => seal::run(g, a),
        Verb::Discard(a) => discard::run(g, a),
        Verb::Rm(a) => rm::run(g, a),
        Verb::Undo(a) => undo::run(g, a),
        Verb::Mv(a) => mv::run(g, a),
        Verb::Tag(a) => tag::run(g, a),
        Verb::Gc(a) => gc::run(g, a),
        Verb::Repack(a) => repack::run(g, a),
        Verb::Fsck(a) => fsck::run(g, a),
        Verb::Cache(a) => cache::run(g, a),
        Verb::Completions(a) => completions::run(a),
    }
}

/// The whole command tree, for completions.
fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}
