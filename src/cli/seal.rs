//! `mgit seal`

use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::import::{Outcome, import_draft};
use super::{Global, out};
use crate::ask;
use crate::control::{Request, Response, Session};
use crate::model::build::Build;
use crate::model::name::{ModelName, VersionRef};
use crate::repo::Repo;
use crate::repo::draft::{Begun, CHANGED_EXIT, DRAFTS, Slot};
use crate::repo::engine::label;
use crate::repo::work::Ask;

/// How long a file that is open for writing is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a draft that is written while it is encoded is begun again.
const TRIES: usize = 20;

/// Make a draft a version, for good
///
/// Returns when the version is durable. From then on the mount refuses to change
/// it, and 'mgit rm' removes it.
///
///   mgit seal ~/models/models/run1/step-1000
///   mgit seal ~/models/models/run1/tmp --as run1@best
///   mgit seal ~/models/models/run1 --as run1@final      takes the loose files of models/run1
#[derive(Clone, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The draft's directory in the mount (or MODEL@VERSION), a settled version's, or a model's with loose files
    path: PathBuf,
    /// The version's name [default: the directory's]
    #[arg(long = "as", value_name = "MODEL[@VERSION]")]
    name: Option<VersionRef>,
    /// How it is made from its parents: a command, quoted as for a shell (see 'mgit recipe set')
    #[arg(long, value_name = "CMD")]
    recipe: Option<String>,
    /// A file that the recipe needs; may be repeated
    #[arg(long = "recipe-file", value_name = "F", requires = "recipe")]
    recipe_files: Vec<String>,
    /// Not for good: what the daemon does with a draft that nobody changes any longer
    #[arg(long, hide = true, conflicts_with_all = ["name", "recipe"])]
    settled: bool,
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    let (repo, mut session) = g.session()?;
    let recipe = super::recipe::quoted(&repo, a.recipe.as_deref(), &a.recipe_files)?;
    let (model, name) = target(&mut session, &repo.dir, &a.path)?;
    let (mut to, mut name) = (a.name.clone(), name);
    let (start, mut tries) = (Instant::now(), 0);
    while tries < TRIES {
        let begun = ask!(session, Request::Begin(model.clone(), name.clone(), to.clone()), Response::Begun(b) => b)?;
        let job = match begun {
            Begun::Sealed(head) => {
                let made = VersionRef { model: head.model.clone(), version: Some(head.version.clone()) };
                recipe.map_or(Ok(()), |build| carry(&repo, &made, build))?;
                return tell_sealed(g, &head);
            }
            Begun::Open(_) if a.settled => return Ok(ExitCode::from(CHANGED_EXIT)),
            Begun::Open(_) if start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
            Begun::Open(file) => bail!("{file} is open for writing; close it and seal again"),
            Begun::Job(job) => job,
        };
        drop(session);
        tries += 1;
        let outcome = import_draft(g, &job, a.settled, !g.json && !a.settled)?;
        match outcome {
            Outcome::Committed(value) => {
                let made = VersionRef { model: job.slot.model.clone(), version: Some(job.version.clone()) };
                recipe.map_or(Ok(()), |build| carry(&repo, &made, build))?;
                if g.json {
                    out::print_json(&value)?;
                }
                return Ok(ExitCode::SUCCESS);
            }
            Outcome::Same(head) if a.settled => {
                log::info!("{} is what it was", label(&head));
                return Ok(ExitCode::SUCCESS);
            }
            Outcome::Changed if a.settled => return Ok(ExitCode::from(CHANGED_EXIT)),
            Outcome::Same(_) | Outcome::Changed => {}
        }
        (to, name) = (None, Some(job.slot.name.clone())); // it has its name by now
        if job.slot.model != model {
            let path = PathBuf::from(format!("{}@{}", job.slot.model, job.version));
            return run(g, &Args { path, name: None, ..a.clone() });
        }
        session = Session::open(&repo)?;
    }
    bail!("{}: it is written all the time; seal it when nothing writes to it", a.path.display())
}

/// Gives the version its recipe.
fn carry(repo: &Arc<Repo>, made: &VersionRef, build: Build) -> Result<()> {
    let mut session = Session::open(repo)?;
    let head = ask!(session, Request::Resolve(made.clone()), Response::Head(h) => h)?;
    session.call(Request::Work(Ask::SetRecipe(head.id, Some(build))))?;
    Ok(())
}

fn tell_sealed(g: &Global, head: &crate::repo::Head) -> Result<ExitCode> {
    match g.json {
        true => out::print_json(&json!(out::version(head)))?,
        false => out::print_lines([format!("sealed {}", label(head))])?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The model, and the draft in it, that a path in the mount or the repository names, or `MODEL@VERSION`.
pub fn target(session: &mut Session, repo: &Path, path: &Path) -> Result<(ModelName, Option<String>)> {
    if let (Ok(real), Some(last)) = (real(path), path.file_name()) {
        let below = |root: PathBuf| real.strip_prefix(root).ok().map(Path::to_owned);
        let inside = below(repo.join(DRAFTS))
            .or(session.mountpoint()?.and_then(|at| below(at.join("models"))))
            .with_context(|| format!("{} is not below models/ of a mount of this repository", path.display()))?;
        let names: Vec<_> = inside.components().map(Component::as_os_str).map(|c| c.to_str().unwrap_or("")).collect();
        let model = |name: &str| ModelName::from_dir_name(name).context(last.display().to_string());
        return match names[..] {
            [m] => Ok((model(m)?, None)),
            [m, name] => Ok((model(m)?, Some(name.to_owned()))),
            _ => bail!("{}: name the draft's own directory, models/MODEL/VERSION", path.display()),
        };
    }
    let reference: Option<VersionRef> = path.to_str().and_then(|p| p.parse().ok());
    match reference {
        Some(VersionRef { model, version: Some(v) }) => Ok((model.clone(), Some(Slot::of(&v, &model).name))),
        _ => bail!("{}: there is nothing", path.display()),
    }
}

/// The path without symlinks, but for its last part: `latest` is one, and so may be a loose file.
fn real(path: &Path) -> std::io::Result<PathBuf> {
    std::fs::symlink_metadata(path)?;
    path.canonicalize()
}
