//! `mgit update`: the cascade after a version gave way to a later one, with as many recipes at once as asked for.
//!
//! All that it has done is in the journal; this process may be killed anywhere, and `--continue` goes on from there.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;

use super::served::Served;
use super::test::{rate, seconds, subject};
use super::{Global, out};
use crate::control::{Request, Response, Session};
use crate::model::build::Build;
use crate::model::cascade::{Cascade, Fact, Facts, From, Limits, Plan, State, plan};
use crate::model::id::Id;
use crate::model::name::{VersionName, VersionRef};
use crate::model::record::{Real, Relation};
use crate::model::test::{Glob, Test, TestResult};
use crate::repo::engine::{Above, label};
use crate::repo::import::{Prepared, rename_prepared};
use crate::repo::progress::Progress;
use crate::repo::scratch::Scratch;
use crate::repo::tests::{Subject, run_one};
use crate::repo::update::{self, OUT, Outcome, build, gate, name, prepare_made, told};
use crate::repo::work::{Answer, Ask, Publication};
use crate::repo::{Head, Repo, RepoError};
use crate::{ask, work};

/// Make again what descends from a version that gave way to a later one
///
/// Of each model that comes from OLD, the newest version is made again by its
/// recipe, once, after all that it is made from: all parents are replaced by
/// their newest versions. What its recipe makes becomes the model's next version
/// if the tests that are for it pass. A failure holds up what descends from it,
/// and nothing else.
///
///   mgit update bert-base@v1 bert-base@v2 --dry-run
///   mgit update bert-base@v1 bert-base@v2 --jobs 4 --max-negative-flips 1%
///   mgit update --continue                      after a failure, Ctrl-C or a crash: nothing is made twice
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The version that was built on
    #[arg(requires = "new", required_unless_present_any = ["go_on", "status"])]
    old: Option<VersionRef>,
    /// A later version of the same model
    new: Option<VersionRef>,
    /// Show what would be made, from what and in which order
    #[arg(long, requires = "old")]
    dry_run: bool,
    /// Only models whose names match
    #[arg(long, value_name = "PATTERN", requires = "old")]
    only: Vec<Glob>,
    /// Not these models
    #[arg(long, value_name = "PATTERN", requires = "old")]
    skip: Vec<Glob>,
    /// These models, but nothing that comes from them
    #[arg(long, value_name = "PATTERN", requires = "old")]
    stop_at: Vec<Glob>,
    /// How many recipes to run at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// The share of a test's examples that may have been right before and be wrong now: 0.02 or 2%
    #[arg(long, value_name = "R", value_parser = rate, requires = "old")]
    max_negative_flips: Option<f64>,
    /// Seconds after which a recipe or a test has failed
    #[arg(long, value_name = "T", value_parser = seconds)]
    timeout: Option<Duration>,
    /// Go on with the last update; what failed is tried again
    #[arg(long = "continue", conflicts_with_all = ["old", "status"])]
    go_on: bool,
    /// How far the last update is
    #[arg(long, conflicts_with = "old")]
    status: bool,
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    let (repo, mut session) = g.session()?;
    let facts = work!(session, Ask::Facts, Answer::Facts(f) => f)?;
    let last = work!(session, Ask::Cascade, Answer::Cascade(c) => c)?;
    let cascade = match (&a.old, &a.new) {
        (Some(old), Some(new)) => Cascade::new(planned(&mut session, &Facts::new(&facts), a, old, new)?),
        _ => last.context("there was no update yet; 'mgit update OLD NEW' begins one")?,
    };
    if a.status || a.dry_run {
        show(g, &cascade, &facts)?;
        return Ok(ExitCode::SUCCESS);
    }
    let _lock = lock(&repo)?;
    if !a.go_on {
        session.call(Request::Work(Ask::BeginUpdate(cascade.plan.clone())))?;
    }
    drop(session);
    let cascade = execute(&repo, cascade, a, g.json)?;
    let (_, mut session) = g.session()?;
    let facts = work!(session, Ask::Facts, Answer::Facts(f) => f)?;
    show(g, &cascade, &facts)?;
    let failed = cascade.states.iter().filter(|s| matches!(s, State::Failed { .. })).count();
    if failed > 0 {
        bail!("{failed} of {} failed; 'mgit update --continue' tries again", cascade.states.len());
    }
    Ok(ExitCode::SUCCESS)
}

/// One update at a time.
fn lock(repo: &Repo) -> Result<File> {
    let dir = repo.dir.join("drafts");
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let path = dir.join(".update.lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.with_context(|| path.display().to_string())?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!("another update is running; see 'mgit update --status'"),
        Err(TryLockError::Error(e)) => Err(e).context(path.display().to_string()),
    }
}

fn planned(session: &mut Session, facts: &Facts, a: &Args, old: &VersionRef, new: &VersionRef) -> Result<Plan> {
    let mut fact = |r: &VersionRef| -> Result<&Fact> {
        let head = ask!(session, Request::Resolve(r.clone()), Response::Head(h) => h)?;
        facts.get(&head.id).context("the version was removed meanwhile")
    };
    let (old, new) = (fact(old)?, fact(new)?);
    if old.model != new.model || !facts.is_later(&new.id, &old.id) {
        bail!("{} is no later version of {}; name an older and a newer version of one model", name(new), name(old));
    }
    let recipes: HashSet<Id> = work!(session, Ask::Recipes, Answer::Ids(ids) => ids)?.into_iter().collect();
    let has_recipe = |f: &Fact| facts.line(f.id).any(|f| recipes.contains(&f.id));
    let limits = Limits { only: a.only.clone(), skip: a.skip.clone(), stop_at: a.stop_at.clone() };
    let mut plan = plan(facts, old, new, &has_recipe, &limits, Timestamp::now());
    plan.max_negative_flips = a.max_negative_flips.map(Real);
    Ok(plan)
}

// ---- telling

fn show(g: &Global, cascade: &Cascade, facts: &[Fact]) -> Result<()> {
    let facts = Facts::new(facts);
    match g.json {
        true => out::print_json(&update::as_json(cascade, &facts))?,
        false => out::print_lines(tree(cascade, &facts))?,
    }
    Ok(())
}

/// The cascade as a tree: each step below the last of the steps that it waits for.
fn tree(cascade: &Cascade, facts: &Facts) -> Vec<String> {
    let plan = &cascade.plan;
    let label = |id: &Id| facts.get(id).map_or_else(|| id.short(), name);
    let mut below: HashMap<Option<usize>, Vec<usize>> = HashMap::new();
    for (n, step) in plan.steps.iter().enumerate() {
        let waits = step.parents.iter().filter_map(|(f, _)| if let From::Step(p) = f { Some(*p) } else { None });
        below.entry(waits.max()).or_default().push(n);
    }
    let line = |n: usize| {
        let step = &plan.steps[n];
        let from = |f: &From| match f {
            From::Version(id) => label(id),
            From::Step(p) => plan.steps[*p].model.to_string(),
        };
        let parents = step.parents.iter().map(|(f, _)| from(f)).collect::<Vec<_>>().join(", ");
        let (state, new, why) = told(&cascade.states[n]);
        let new = new.map_or(String::new(), |id| format!(" -> {}", label(&id)));
        let why = why.map_or(String::new(), |w| format!(": {}", out::harmless(w)));
        format!("{}{new}  from {parents}  {state}{why}", label(&step.old))
    };
    let mut lines = vec![format!("{} -> {}", label(&plan.old), label(&plan.new))];
    // What is still to be drawn: the step, what its line begins with, whether it is the last of its parent's.
    let mut stack: Vec<(usize, String, bool)> = Vec::new();
    let push = |stack: &mut Vec<(usize, String, bool)>, of: Option<usize>, indent: &str| {
        let children = below.get(&of).map_or(&[][..], Vec::as_slice);
        for (i, n) in children.iter().enumerate().rev() {
            stack.push((*n, indent.to_owned(), i + 1 == children.len()));
        }
    };
    push(&mut stack, None, "");
    while let Some((n, indent, last)) = stack.pop() {
        lines.push(format!("{indent}{} {}", if last { "`--" } else { "|--" }, line(n)));
        push(&mut stack, Some(n), &format!("{indent}{}", if last { "    " } else { "|   " }));
    }
    lines.extend(plan.left.iter().map(|l| format!("not made again: {}  {}", label(&l.old), update::why(&l.why))));
    let done = cascade.states.iter().filter(|s| matches!(s, State::Done { .. })).count();
    lines.push(format!("{done} of {} done", plan.steps.len()));
    lines
}

// ---- doing

/// What the workers share.
struct Shared<'a> {
    repo: &'a Arc<Repo>,
    args: &'a Args,
    bar: &'a out::Bar,
    served: Served,
    session: Mutex<Session>,
    tests: Vec<Test>,
    now: Mutex<Now>,
    changed: Condvar,
}

struct Now {
    cascade: Cascade,
    /// Steps that are being done.
    taken: HashSet<usize>,
    /// Why all must end.
    stopped: Option<RepoError>,
}

fn execute(repo: &Arc<Repo>, mut cascade: Cascade, a: &Args, quiet: bool) -> Result<Cascade> {
    for state in cascade.states.iter_mut().filter(|s| matches!(s, State::Failed { .. })) {
        *state = State::Waiting;
    }
    Scratch::sweep(repo, &cascade.runs());
    if cascade.ready(&HashSet::new()).is_none() {
        return Ok(cascade);
    }
    let open = cascade.states.iter().filter(|s| !matches!(s, State::Done { .. })).count();
    let bar = out::Bar::counting("updating", open as u64)?;
    let (served, mut session) = Served::open(repo)?;
    let tests = work!(session, Ask::Tests, Answer::Tests(t) => t)?;
    let now = Mutex::new(Now { cascade, taken: HashSet::new(), stopped: None });
    let (session, changed) = (Mutex::new(session), Condvar::new());
    let shared = Shared { repo, args: a, bar: &bar, served, session, tests, now, changed };
    std::thread::scope(|scope| {
        for _ in 0..(a.jobs as usize).min(open) {
            scope.spawn(|| shared.work(quiet));
        }
    });
    bar.done();
    let now = shared.now.into_inner().unwrap_or_else(PoisonError::into_inner);
    match now.stopped {
        Some(RepoError::Interrupted) => bail!("interrupted; 'mgit update --continue' goes on"),
        Some(e) => Err(anyhow::Error::from(e).context("'mgit update --continue' goes on after this is mended")),
        None => Ok(now.cascade),
    }
}

/// A step of the cascade with all that doing it takes.
struct Job {
    n: usize,
    old: Head,
    parents: Vec<(Id, Relation)>,
    recipe: Build,
    subject: Subject,
}

impl Shared<'_> {
    /// Does steps until there are none left that could be done.
    fn work(&self, quiet: bool) {
        while let Some((n, state)) = self.take() {
            let done = self.step(n, state);
            let mut now = self.now();
            now.taken.remove(&n);
            match done {
                Ok(state) => {
                    let (what, _, why) = told(&state);
                    let line = format!("{what}  {}  {}", now.cascade.plan.steps[n].model, why.unwrap_or_default());
                    now.cascade.set(n, state);
                    self.bar.stored(1);
                    if !quiet {
                        let _ = self.bar.print(&out::harmless(line.trim_end()));
                    }
                }
                Err(e) => now.stopped = now.stopped.take().or(Some(e)),
            }
            self.changed.notify_all();
        }
    }

    /// The next step and its state, once there is one; `None` when there will be no more.
    fn take(&self) -> Option<(usize, State)> {
        let mut now = self.now();
        loop {
            if now.stopped.is_some() {
                return None;
            }
            if let Some(n) = now.cascade.ready(&now.taken) {
                now.taken.insert(n);
                return Some((n, now.cascade.states[n].clone()));
            }
            if now.taken.is_empty() {
                self.changed.notify_all();
                return None;
            }
            now = self.changed.wait(now).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, n: usize, state: &State) -> Result<(), RepoError> {
        self.session().call(Request::Work(Ask::UpdateStep(n, state.clone()))).map(drop)
    }

    /// Does a step; fails only for what stops the whole cascade.
    fn step(&self, n: usize, state: State) -> Result<State, RepoError> {
        let failed = match self.job(n).and_then(|job| self.made(&job, state)) {
            Ok(Ok(id)) => return Ok(State::Done { id }),
            Ok(Err(why)) => why,
            Err(e @ RepoError::Interrupted) => return Err(e),
            Err(e) => e.to_string(),
        };
        let failed = State::Failed { why: failed };
        self.note(n, &failed)?;
        Ok(failed)
    }

    fn job(&self, n: usize) -> Result<Job, RepoError> {
        let (step, parents) = {
            let now = self.now();
            (now.cascade.plan.steps[n].clone(), now.cascade.parents(n).unwrap_or_default())
        };
        let old = self.living(&step.old)?;
        let newest = VersionRef { model: step.model.clone(), version: None };
        let newest = ask!(self.session(), Request::Resolve(newest), Response::Head(h) => h)?;
        if newest.id != old.id {
            let why = format!("{} is newer than {}; plan the update anew", label(&newest), label(&old));
            return Err(RepoError::refused(why));
        }
        let recipe = work!(self.session(), Ask::Recipe(old.id), Answer::Recipe(r) => r)?;
        let (_, recipe) = recipe.ok_or_else(|| RepoError::refused("its recipe was taken away"))?;
        let version = ask!(self.session(), Request::NextName(step.model.clone()), Response::Name(v) => v)?;
        let heads = parents.iter().map(|(id, _)| self.living(id)).collect::<Result<Vec<_>, _>>()?;
        let paths = heads.iter().map(|h| self.visible(h)).collect::<Result<Vec<_>, _>>()?;
        let (model, previous) = (step.model, Some(self.visible(&old)?));
        let subject = Subject { path: PathBuf::new(), model, version, parents: paths, previous };
        Ok(Job { n, old, parents, recipe, subject })
    }

    fn living(&self, id: &Id) -> Result<Head, RepoError> {
        let above: Option<Above> = ask!(self.session(), Request::Above(*id), Response::Above(a) => a)?;
        above.map(|a| a.head).ok_or_else(|| RepoError::refused(format!("version {} was removed", id.short())))
    }

    /// A version's directory, once it is in the mount.
    fn visible(&self, head: &Head) -> Result<PathBuf, RepoError> {
        let path = self.served.path(&head.model, &head.version);
        let since = Instant::now();
        while !path.is_dir() {
            if since.elapsed() > Duration::from_secs(10) {
                return Err(RepoError::refused(format!("{} does not appear in the mount", label(head))));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(path)
    }

    /// From the recipe to the published version: its id.
    fn made(&self, job: &Job, state: State) -> Result<Outcome<Id>, RepoError> {
        let again = match &state {
            State::Built { run } => Scratch::again(self.repo, run)?,
            _ => None,
        };
        let mut scratch = match again {
            Some(scratch) => scratch,
            None => {
                let mut scratch = Scratch::new(self.repo)?;
                let (recipe, timeout) = (&job.recipe, self.args.timeout);
                if let Err(why) = build(self.repo, recipe, &job.subject, &scratch, timeout, self.bar)? {
                    return Ok(Err(why));
                }
                scratch.keep();
                self.note(job.n, &State::Built { run: scratch.name.clone() })?;
                scratch
            }
        };
        let made = self.published(job, scratch.dir(OUT)?);
        // Only what was interrupted is worth keeping.
        match made {
            Err(RepoError::Interrupted) => scratch.keep(),
            _ => scratch.let_go(),
        }
        made
    }

    fn published(&self, job: &Job, out: PathBuf) -> Result<Outcome<Id>, RepoError> {
        let (step, old, new, max) = {
            let now = self.now();
            let plan = &now.cascade.plan;
            (plan.steps[job.n].clone(), plan.old, plan.new, plan.max_negative_flips)
        };
        let made = Subject { path: out.clone(), ..job.subject.clone() };
        let mut before = |r: &TestResult| self.before(job, r);
        let passed = gate(self.repo, &self.tests, &made, max.map(|m| m.0), &mut before, self.args.timeout, self.bar)?;
        let results = match passed {
            Ok(results) => results,
            Err(why) => return Ok(Err(why)),
        };
        let (old, new) = (self.living(&old).map(|h| label(&h)), self.living(&new).map(|h| label(&h)));
        let known = |l: Result<String, RepoError>| l.unwrap_or_else(|_| "a removed version".to_owned());
        let message = format!("made again after {} gave way to {}", known(old), known(new));
        let version: VersionName = job.subject.version.clone();
        let prepared = prepare_made(self.repo, &out, &step, version, &job.parents, message, &Quiet(self.bar))?;
        self.publish(job, prepared, results).map(Ok)
    }

    /// Under the next free name where another took it meanwhile.
    fn publish(&self, job: &Job, mut prepared: Prepared, results: Vec<TestResult>) -> Result<Id, RepoError> {
        for _ in 0..100 {
            let (model, version) = (prepared.record.model.clone(), prepared.record.version.clone());
            if self.session().call(Request::CheckName(model.clone(), version)).is_err() {
                let next = ask!(self.session(), Request::NextName(model), Response::Name(v) => v)?;
                prepared = rename_prepared(self.repo, prepared, next)?;
                continue;
            }
            let publication = Publication {
                commit: prepared.event(),
                moves: vec![],
                results: results.iter().map(|r| TestResult { version: prepared.id, ..r.clone() }).collect(),
                recipe: Some(job.recipe.clone()),
                step: Some(job.n),
            };
            self.session().call(Request::Work(Ask::Publish(Box::new(publication))))?;
            return Ok(prepared.id);
        }
        Err(RepoError::refused("others keep taking the next name"))
    }

    /// What a test gave on the version before, which is asked now where that is not known.
    fn before(&self, job: &Job, result: &TestResult) -> Result<Option<TestResult>, RepoError> {
        let results = work!(self.session(), Ask::Results, Answer::Results(r) => r)?;
        let is = |r: &TestResult| r.version == job.old.id && r.test == result.test && r.content == result.content;
        if let Some(known) = results.into_iter().find(is) {
            return Ok(Some(known));
        }
        let Some(test) = self.tests.iter().find(|t| t.name == result.test) else { return Ok(None) };
        let on = subject(&self.session, &self.served, &job.old)?;
        let fresh = run_one(self.repo, test, job.old.id, &on, self.args.timeout, self.bar)?;
        self.session().call(Request::Work(Ask::AddResults(vec![fresh.clone()])))?;
        Ok(Some(fresh))
    }
}

/// Stops when the bar's owner does, and moves no bar: bytes are not steps.
struct Quiet<'a>(&'a out::Bar);

impl Progress for Quiet<'_> {
    fn check(&self) -> Result<(), RepoError> {
        self.0.check()
    }
}
