//! One step of an update cascade: a recipe is run in a directory of its own, what it made becomes a pack that waits to be
//! published, and the gates say whether it may be. And how far a cascade is, as JSON.
//!
//! What a recipe writes anywhere but in `MGIT_OUT` is no part of what it makes. Until the publishing nothing of a step can
//! be seen; it publishes the version, its edges, what its tests gave and that the step is done, all or nothing.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::import::{ImportSpec, Prepared, hash_all, prepare};
use super::program::{How, Program, run};
use super::progress::Progress;
use super::scratch::Scratch;
use super::tests::{Subject, outcomes, run_on, variables};
use super::{Repo, RepoError};
use crate::codec::Effort;
use crate::model::build::Build;
use crate::model::cascade::{Cascade, Fact, Facts, From, State, Step, Why};
use crate::model::id::Id;
use crate::model::name::{VersionName, printable};
use crate::model::record::{ParentEdge, Relation};
use crate::model::test::{Flips, Test, TestResult, Verdict};

/// What a step comes to, or why it failed.
pub type Outcome<T> = Result<T, String>;

/// Where in a run's directory a recipe puts what it makes.
pub const OUT: &str = "out";

/// Runs a recipe; `subject` is the version to be, whose path is not used. What it made lies durably in the scratch's [`OUT`].
pub fn build(
    repo: &Repo,
    recipe: &Build,
    subject: &Subject,
    scratch: &Scratch,
    timeout: Option<Duration>,
    progress: &dyn Progress,
) -> Result<Outcome<()>, RepoError> {
    let (out, files, work) = (scratch.dir(OUT)?, scratch.dir("files")?, scratch.dir("work")?);
    copy_files(repo, recipe, &files)?;
    let command = recipe.resolved(|place| files.join(place).to_string_lossy().into_owned());
    let mut env: Vec<(String, std::ffi::OsString)> =
        recipe.env.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
    env.extend(variables(repo, subject));
    env.push(("MGIT_OUT".to_owned(), out.clone().into()));
    let dir = Some(Path::new(&recipe.dir)).filter(|d| d.is_dir()).unwrap_or(&work);
    let ended = match run(&Program { command: &command, dir, env, timeout }, progress) {
        Err(e @ RepoError::Interrupted) => return Err(e),
        Err(e) => return Ok(Err(e.to_string())),
        Ok(ended) => ended,
    };
    if ended.how != How::Exit(0) {
        let last = ended.output.lines().rev().find(|l| !l.trim().is_empty()).map(|l| format!(": {}", printable(l)));
        let why = ended.how.why().unwrap_or_default();
        return Ok(Err(format!("its recipe failed, {why}{}", last.unwrap_or_default())));
    }
    if fs::read_dir(&out).map_err(|e| RepoError::file(&out, e))?.next().is_none() {
        return Ok(Err("its recipe put nothing into $MGIT_OUT".to_owned()));
    }
    sync_tree(&out)?;
    Ok(Ok(()))
}

/// Copies of the recipe's files, as they were when it was recorded.
fn copy_files(repo: &Repo, recipe: &Build, dir: &Path) -> Result<(), RepoError> {
    for (file, place) in recipe.files.iter().zip(recipe.places()) {
        let path = dir.join(place);
        let failed = |e| RepoError::file(&path, e);
        fs::create_dir_all(path.parent().unwrap_or(dir)).map_err(failed)?;
        fs::write(&path, repo.files().get(&file.id)?).map_err(failed)?;
        let mode = if file.executable { 0o700 } else { 0o600 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(failed)?;
    }
    Ok(())
}

/// Makes a directory and all below it durable. What is no file and no directory is left alone.
fn sync_tree(path: &Path) -> Result<(), RepoError> {
    let failed = |e| RepoError::file(path, e);
    let meta = fs::symlink_metadata(path).map_err(failed)?;
    if meta.is_dir() {
        for entry in fs::read_dir(path).map_err(failed)? {
            sync_tree(&entry.map_err(failed)?.path())?;
        }
    }
    match meta.is_dir() || meta.is_file() {
        true => File::open(path).and_then(|f| f.sync_all()).map_err(failed),
        false => Ok(()),
    }
}

/// The pack of what a step has made, sealed.
pub fn prepare_made(
    repo: &Repo,
    out: &Path,
    step: &Step,
    version: VersionName,
    parents: &[(Id, Relation)],
    message: String,
    progress: &dyn Progress,
) -> Result<Prepared, RepoError> {
    let spec = ImportSpec {
        model: step.model.clone(),
        version,
        parents: parents.iter().map(|(id, relation)| ParentEdge::new(*id, *relation)).collect(),
        previous: Some(step.old),
        guess: false,
        told: false,
        origin: None,
        near: vec![],
        message,
        effort: Effort::Default,
        lossy: None,
    };
    prepare(repo, &spec, &hash_all(repo, out, progress)?, progress)
}

/// Runs the tests that are for what a step has made: all must pass, and no more than `max` of the examples may have been
/// right in what `before` gives and be wrong now.
pub fn gate(
    repo: &Repo,
    tests: &[Test],
    made: &Subject,
    max: Option<f64>,
    before: &mut dyn FnMut(&TestResult) -> Result<Option<TestResult>, RepoError>,
    timeout: Option<Duration>,
    progress: &dyn Progress,
) -> Result<Outcome<Vec<TestResult>>, RepoError> {
    let results = run_on(repo, tests, made, timeout, progress)?;
    if let Some(r) = results.iter().find(|r| r.verdict == Verdict::Fail) {
        return Ok(Err(format!("test {} failed, {}", r.test, r.why.as_deref().unwrap_or_default())));
    }
    for result in results.iter().filter(|r| max.is_some() && r.examples.is_some()) {
        let Some(old) = before(result)? else { continue };
        let (Some(x), Some(y)) = (outcomes(repo, &old)?, outcomes(repo, result)?) else { continue };
        let flips = Flips::between(&x, &y);
        let rate = flips.rate(flips.negative.len());
        if max.is_some_and(|max| rate > max) {
            let (n, of) = (flips.negative.len(), flips.common);
            return Ok(Err(format!("test {}: {n} of {of} examples were right before and are wrong now", result.test)));
        }
    }
    Ok(Ok(results))
}

/// A cascade and how far it is.
pub fn as_json(cascade: &Cascade, facts: &Facts) -> Value {
    let reference = |id: &Id| match facts.get(id) {
        Some(f) => json!({"model": f.model, "version": f.version, "id": id}),
        None => json!({ "id": id }),
    };
    let from = |(from, relation): &(From, Relation)| {
        let mut value = match from {
            From::Version(id) => reference(id),
            From::Step(n) => json!({"model": cascade.plan.steps.get(*n).map(|s| &s.model), "step": n}),
        };
        value["relation"] = json!(relation);
        value
    };
    let step = |(step, state): (&Step, &State)| {
        let (name, new, why) = told(state);
        json!({"model": step.model, "old": reference(&step.old), "state": name, "new": new.map(|id| reference(&id)),
            "why": why, "parents": step.parents.iter().map(from).collect::<Vec<_>>()})
    };
    let plan = &cascade.plan;
    json!({
        "old": reference(&plan.old), "new": reference(&plan.new), "made": plan.made,
        "max_negative_flips": plan.max_negative_flips,
        "steps": plan.steps.iter().zip(&cascade.states).map(step).collect::<Vec<_>>(),
        "left": plan.left.iter().map(|l| json!({"model": l.model, "old": reference(&l.old), "why": why(&l.why)})).collect::<Vec<_>>(),
    })
}

/// A state's name, what it made, and why it failed.
pub fn told(state: &State) -> (&'static str, Option<Id>, Option<&str>) {
    match state {
        State::Waiting => ("waiting", None, None),
        State::Built { .. } => ("built", None, None),
        State::Done { id } => ("done", Some(*id), None),
        State::Failed { why } => ("failed", None, Some(why)),
    }
}

/// In words.
pub fn why(why: &Why) -> &'static str {
    match why {
        Why::NoRecipe => "no recipe",
        Why::Skipped => "skipped",
        Why::BeyondStop => "below where it stops",
        Why::NothingNew => "nothing new to be made from",
    }
}

/// The last cascade as the mount shows it.
pub fn page(engine: &super::engine::Engine) -> Result<String, RepoError> {
    let facts = super::work::facts(engine)?;
    let value = engine.catalog().cascade()?.map_or(Value::Null, |c| as_json(&c, &Facts::new(&facts)));
    Ok(format!("{value:#}\n"))
}

/// `model@version` of a fact.
pub fn name(fact: &Fact) -> String {
    format!("{}@{}", fact.model, fact.version)
}
