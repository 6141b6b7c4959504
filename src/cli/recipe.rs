//! `mgit recipe`: how versions are made from their parents.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde_json::json;

use super::{Global, out};
use crate::control::{Request, Response, Session};
use crate::model::build::{Build, BuildFile};
use crate::model::name::VersionRef;
use crate::repo::engine::label;
use crate::repo::work::{Answer, Ask};
use crate::repo::{Head, Repo};
use crate::{ask, work};

/// Variables that are recorded without being named: where programs and their parts are found.
const RECORDED: [&str; 5] = ["PATH", "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH"];

/// Record how a version is made from its parents, so that `mgit update` can make
/// it again
///
///   mgit recipe set acme/sst2 --file train.py -- python train.py --lr 3e-5
///   mgit recipe show acme/sst2
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Set(SetArgs),
    Show(ShowArgs),
    Rm(RmArgs),
}

/// Record the command that makes a version
///
/// It will run where it was recorded and see
///
///   MGIT_PARENTS   the parents' directories, colon-separated, in the order of the edges
///   MGIT_PREVIOUS  the version that it follows       MGIT_OUT       an empty directory: what it puts there
///   MGIT_MODEL, MGIT_VERSION                                        is the new version
///
/// The content of each --file is kept, and an argument equal to its name stands
/// for the copy. Of the environment, the search paths are recorded (PATH,
/// PYTHONPATH, VIRTUAL_ENV, CONDA_PREFIX, LD_LIBRARY_PATH), and what --env names.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
struct SetArgs {
    version: VersionRef,
    /// A file that the command needs; may be repeated
    #[arg(long = "file", value_name = "F")]
    files: Vec<String>,
    /// A variable, with its value of now unless one is given; may be repeated
    #[arg(long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Show the recipe of a version, or of the nearest before it that has one
#[derive(clap::Args)]
struct ShowArgs {
    version: VersionRef,
}

/// Take the recipe of a version away
#[derive(clap::Args)]
struct RmArgs {
    version: VersionRef,
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    match &a.verb {
        Verb::Set(a) => set(g, a),
        Verb::Show(a) => show(g, a),
        Verb::Rm(a) => rm(g, a),
    }
}

/// The recipe of a command, its files kept.
pub fn record(repo: &Repo, command: Vec<String>, files: &[String], env: &[String]) -> Result<Build> {
    let dir = std::env::current_dir().context("the working directory")?;
    let dir = dir.to_str().context("the working directory's name is not UTF-8")?.to_owned();
    if let Some(f) = files.iter().find(|f| !command.contains(f) && !command.iter().any(|a| a.ends_with(f.as_str()))) {
        log::info!("no argument of the command names {f}");
    }
    let mut kept: Vec<BuildFile> = Vec::new();
    for name in files {
        let path = Path::new(name);
        let bytes = std::fs::read(path).with_context(|| format!("cannot read --file {name}"))?;
        let mode = std::fs::metadata(path).with_context(|| name.clone())?.permissions().mode();
        if !kept.iter().any(|k| k.name == *name) {
            kept.push(BuildFile { name: name.clone(), id: repo.files().put(&bytes)?, executable: mode & 0o100 != 0 });
        }
    }
    let value = |name: &str| std::env::var(name).ok();
    let mut all: BTreeMap<String, String> = RECORDED.iter().filter_map(|n| Some((n.to_string(), value(n)?))).collect();
    for given in env {
        let (name, value) = match given.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => {
                (given.as_str(), value(given).with_context(|| format!("--env {given}: there is no such variable"))?)
            }
        };
        if name.is_empty() || name.contains('\0') || value.contains('\0') || name.starts_with("MGIT_") {
            bail!("--env {given}: no name for a variable of a recipe");
        }
        all.insert(name.to_owned(), value);
    }
    Ok(Build { command, env: all, files: kept, dir })
}

/// The recipe of a command that is quoted as for a shell, if there is one.
pub fn quoted(repo: &Repo, text: Option<&str>, files: &[String]) -> Result<Option<Build>> {
    let Some(text) = text else { return Ok(None) };
    let command =
        shlex::split(text).filter(|c| !c.is_empty()).context("--recipe: no command, or a quote is not closed")?;
    record(repo, command, files, &[]).map(Some)
}

fn head(session: &mut Session, version: &VersionRef) -> Result<Head> {
    Ok(ask!(session, Request::Resolve(version.clone()), Response::Head(h) => h)?)
}

fn set(g: &Global, a: &SetArgs) -> Result<ExitCode> {
    let repo = g.open()?;
    let build = record(&repo, a.command.clone(), &a.files, &a.env)?;
    let (_, mut session) = g.session()?;
    let head = head(&mut session, &a.version)?;
    session.call(Request::Work(Ask::SetRecipe(head.id, Some(build.clone()))))?;
    tell(g, &head, &head, &build)
}

fn show(g: &Global, a: &ShowArgs) -> Result<ExitCode> {
    let (_, mut session) = g.session()?;
    let head = head(&mut session, &a.version)?;
    match work!(session, Ask::Recipe(head.id), Answer::Recipe(r) => r)? {
        Some((of, build)) => tell(g, &head, &of, &build),
        None => bail!("{} has no recipe; 'mgit recipe set {0} -- CMD' records one", label(&head)),
    }
}

fn tell(g: &Global, head: &Head, of: &Head, build: &Build) -> Result<ExitCode> {
    if g.json {
        let mut value = json!({"version": out::version(head), "of": out::version(of)});
        value["recipe"] = json!(build);
        out::print_json(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let from = if head.id == of.id { String::new() } else { format!(" (of {})", label(of)) };
    let mut lines = vec![format!("{}{from}: {}", label(head), out::harmless(&build.command.join(" ")))];
    lines.push(format!("  in {}", out::harmless(&build.dir)));
    lines.extend(build.files.iter().map(|f| format!("  file {}  {}", out::harmless(&f.name), f.id.short())));
    lines.extend(build.env.iter().map(|(k, v)| format!("  {}", out::harmless(&format!("{k}={v}")))));
    out::print_lines(lines)?;
    Ok(ExitCode::SUCCESS)
}

fn rm(g: &Global, a: &RmArgs) -> Result<ExitCode> {
    let (_, mut session) = g.session()?;
    let head = head(&mut session, &a.version)?;
    session.call(Request::Work(Ask::SetRecipe(head.id, None)))?;
    match g.json {
        true => out::print_json(&json!({"removed": out::version(&head)}))?,
        false => out::print_lines([format!("{} has no recipe of its own any longer", label(&head))])?,
    }
    Ok(ExitCode::SUCCESS)
}
