//! `mgit seal`

use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::import::{Outcome, import_draft};
use super::{Global, out};
use crate::ask;
use crate::control::{Request, Response, Session};
use crate::model::name::{ModelName, VersionRef};
use crate::repo::draft::{Begun, CHANGED_EXIT, DRAFTS, Slot};
use crate::repo::engine::label;

/// How long a file that is open for writing is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a draft that is written while it is encoded is begun again.
const TRIES: usize = 20;

/// Make a draft a version, for good
///
/// Returns when the version is durable. From then on the mount refuses to change it, and 'mgit rm' removes it.
///
///   mgit seal ~/models/models/run1/step-1000
///   mgit seal ~/models/models/run1/tmp --as run1@best
///   mgit seal ~/models/models/run1 --as run1@final      takes the loose files of models/run1
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The draft's directory in the mount (or MODEL@VERSION), a settled version's, or a model's with loose files
    path: PathBuf,
    /// The version's name [default: the directory's]
    #[arg(long = "as", value_name = "MODEL[@VERSION]")]
    name: Option<VersionRef>,
    /// Not for good: what the daemon does with a draft that nobody changes any longer
    #[arg(long, hide = true, conflicts_with = "name")]
    settled: bool,
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    let (repo, mut session) = g.session()?;
    let (model, name) = target(&mut session, &repo.dir, &a.path)?;
    let (mut to, mut name) = (a.name.clone(), name);
    let (start, mut tries) = (Instant::now(), 0);
    while tries < TRIES {
        let begun = ask!(session, Request::Begin(model.clone(), name.clone(), to.clone()), Response::Begun(b) => b)?;
        let job = match begun {
            Begun::Sealed(head) => return tell_sealed(g, &head),
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
            Outcome::Committed(value) if g.json => {
                out::print_json(&value)?;
                return Ok(ExitCode::SUCCESS);
            }
            Outcome::Committed(_) => return Ok(ExitCode::SUCCESS),
            Outcome::Same(head) if a.settled => {
                log::info!("{} is what it was", label(&head));
                return Ok(ExitCode::SUCCESS);
            }
            Outcome::Changed if a.settled => return Ok(ExitCode::from(CHANGED_EXIT)),
            Outcome::Same(_) | Outcome::Changed => {}
        }
        (to, name) = (None, Some(job.slot.name.clone())); // it has its name by now
        if job.slot.model != model {
            return run(
                g,
                &Args { path: PathBuf::from(format!("{}@{}", job.slot.model, job.version)), name: None, ..*a },
            );
        }
        session = Session::open(&repo)?;
    }
    bail!("{}: it is written all the time; seal it when nothing writes to it", a.path.display())
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
