//! `mgit test`: register tests, run them on versions in a mount, tell what they gave.

use std::collections::{HashMap, HashSet};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde_json::{Value, json};

use super::served::Served;
use super::{Global, out};
use crate::ask;
use crate::control::{Request, Response, Session};
use crate::model::id::Id;
use crate::model::name::VersionRef;
use crate::model::test::{Better, Flips, Glob, Metric, Outcomes, Test, TestName, TestResult, Verdict};
use crate::repo::engine::{Above, label};
use crate::repo::progress::Progress;
use crate::repo::tests::{self, Row, Subject, content, run_one};
use crate::repo::work::{Answer, Ask};
use crate::repo::{Head, Repo, RepoError};

/// Run your own programs on versions, and tell which of them fail since when
///
/// A test is any command. It finds a version's files in $MGIT_PATH; exit 0 is a
/// pass, 125 cannot tell, all else a failure.
///
///   mgit test add loads -- python check.py
///   mgit test add accuracy --model 'acme/*' --metric acc --higher -- python eval.py
///   mgit test run
///   mgit test results
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Add(AddArgs),
    Rm(RmArgs),
    Ls,
    Run(RunArgs),
    Results(ResultsArgs),
    Compare(CompareArgs),
}

/// Register a command as a test of one version, of models by pattern, of an
/// architecture, or of all
///
/// It is for future versions too. The command runs in the directory where it was
/// registered and sees
///
///   MGIT_PATH      the version's directory        MGIT_PARENTS   its parents', colon-separated
///   MGIT_MODEL, MGIT_VERSION                      MGIT_PREVIOUS  its predecessor's
///   MGIT_EXAMPLES  where it may write outcomes by example, one JSON object a line: {"id": "x17", "ok": true}
///
/// A JSON object on its last line of output gives metrics. When the command's
/// files change, so does the test.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
struct AddArgs {
    name: TestName,
    /// For models, or versions, whose names match: `bert`, `acme/*`, `bert@v1`
    #[arg(long, value_name = "PATTERN")]
    model: Option<Glob>,
    /// For models whose config.json names this architecture
    #[arg(long = "type", value_name = "ARCH")]
    arch: Option<String>,
    /// The metric that it is about
    #[arg(long, value_name = "M")]
    metric: Option<String>,
    /// More of the metric is better
    #[arg(long, requires = "metric", conflicts_with = "lower")]
    higher: bool,
    /// Less of the metric is better
    #[arg(long, requires = "metric")]
    lower: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Forget a test; its results come back if it is added again
#[derive(clap::Args)]
struct RmArgs {
    name: TestName,
}

/// Run tests on all versions that they are for, except where the result is known
///
/// Exit 1 when a test fails on any of them, be it now or as known.
#[derive(clap::Args)]
struct RunArgs {
    /// Tests, models or MODEL@VERSION, with * and ?
    patterns: Vec<Glob>,
    /// Only on versions that come from this one, and on itself
    #[arg(long, value_name = "MODEL[@V]")]
    descendants_of: Option<VersionRef>,
    /// How many to run at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Seconds after which a test has failed
    #[arg(long, value_name = "T", value_parser = seconds)]
    timeout: Option<Duration>,
    /// Also what is known
    #[arg(long)]
    again: bool,
}

/// What tests gave: which fail, since where
///
/// A failure that a parent has as well is inherited; one that it has not is introduced.
#[derive(clap::Args)]
struct ResultsArgs {
    /// Tests, models or MODEL@VERSION, with * and ?
    patterns: Vec<Glob>,
}

/// Which examples were right in A and are wrong in B
///
/// From the outcomes that tests wrote to $MGIT_EXAMPLES.
#[derive(clap::Args)]
struct CompareArgs {
    a: VersionRef,
    b: VersionRef,
    /// Only this test
    #[arg(long, value_name = "NAME")]
    test: Option<TestName>,
    /// Fail when the share of negative flips in any test is above this: 0.02 or 2%
    #[arg(long, value_name = "R", value_parser = rate)]
    max_negative_flips: Option<f64>,
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    match &a.verb {
        Verb::Add(a) => add(g, a),
        Verb::Rm(a) => rm(g, a),
        Verb::Ls => ls(g),
        Verb::Run(a) => run_tests(g, a),
        Verb::Results(a) => results(g, a),
        Verb::Compare(a) => compare(g, a),
    }
}

/// `1.5`, `90s`, `2m`, `1h`.
pub fn seconds(s: &str) -> Result<Duration, String> {
    let (number, unit) = match s.strip_suffix(['s', 'm', 'h']) {
        Some(number) => (number, &s[number.len()..]),
        None => (s, "s"),
    };
    let scale = match unit {
        "h" => 3600.0,
        "m" => 60.0,
        _ => 1.0,
    };
    let value = number.parse::<f64>().ok().filter(|n| *n > 0.0 && *n < 1e7);
    value.map(|n| Duration::from_secs_f64(n * scale)).ok_or_else(|| "seconds, as 90, 1.5, 2m or 1h".to_owned())
}

/// A share: `0.02` or `2%`.
pub fn rate(s: &str) -> Result<f64, String> {
    let value = match s.strip_suffix('%') {
        Some(n) => n.trim().parse::<f64>().map(|n| n / 100.0),
        None => s.parse(),
    };
    value.ok().filter(|r| (0.0..=1.0).contains(r)).ok_or_else(|| "a share from 0 to 1, as 0.02 or 2%".to_owned())
}

/// Asks about work on versions.
#[macro_export]
macro_rules! work {
    ($session:expr, $ask:expr, $pattern:pat => $value:expr) => {
        $crate::ask!($session, Request::Work($ask), Response::Work($pattern) => $value)
    };
}

fn add(g: &Global, a: &AddArgs) -> Result<ExitCode> {
    let better = match (a.higher, a.lower) {
        (true, _) => Some(Better::Higher),
        (_, true) => Some(Better::Lower),
        _ => None,
    };
    let metric = match (&a.metric, better) {
        (Some(name), Some(better)) => Some(Metric { name: name.clone(), better }),
        (Some(m), None) => bail!("say which way {m} is better: --higher or --lower"),
        (None, _) => None,
    };
    let dir = std::env::current_dir().context("the working directory")?;
    let dir = dir.to_str().context("the working directory's name is not UTF-8")?.to_owned();
    let (name, model, arch, command) = (a.name.clone(), a.model.clone(), a.arch.clone(), a.command.clone());
    let test = Test { name, model, arch, metric, command, dir };
    let (_, mut session) = g.session()?;
    let tests = work!(session, Ask::Tests, Answer::Tests(t) => t)?;
    if tests.iter().any(|t| t.name == test.name && *t != test) {
        bail!("there is another test '{}'; 'mgit test rm {0}' takes it away", test.name);
    }
    session.call(Request::Work(Ask::AddTest(test.clone())))?;
    match g.json {
        true => out::print_json(&json!(test))?,
        false => out::print_lines([format!("test {} is for {}", test.name, whom(&test))])?,
    }
    Ok(ExitCode::SUCCESS)
}

fn whom(test: &Test) -> String {
    let names = test.model.as_ref().map_or("all models".to_owned(), Glob::to_string);
    test.arch.as_ref().map_or(names.clone(), |arch| format!("{names} of type {arch}"))
}

fn rm(g: &Global, a: &RmArgs) -> Result<ExitCode> {
    let (_, mut session) = g.session()?;
    session.call(Request::Work(Ask::RemoveTest(a.name.clone())))?;
    match g.json {
        true => out::print_json(&json!({"removed": a.name}))?,
        false => out::print_lines([format!("test {} is gone", a.name)])?,
    }
    Ok(ExitCode::SUCCESS)
}

fn ls(g: &Global) -> Result<ExitCode> {
    let (_, mut session) = g.session()?;
    let tests = work!(session, Ask::Tests, Answer::Tests(t) => t)?;
    if g.json {
        out::print_json(&json!({ "tests": tests }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let metric = |m: &Metric| format!("{} ({})", m.name, if m.better == Better::Higher { "higher" } else { "lower" });
    let row = |t: &Test| {
        let command = out::harmless(&t.command.join(" "));
        vec![t.name.to_string(), whom(t), t.metric.as_ref().map(metric).unwrap_or_default(), command]
    };
    out::print_lines(match tests.is_empty() {
        true => vec!["no tests yet; 'mgit test add NAME -- CMD' registers one".to_owned()],
        false => out::table(&["TEST", "FOR", "METRIC", "COMMAND"], &tests.iter().map(row).collect::<Vec<_>>()),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What patterns pick: of tests and of versions, each all where no pattern names any.
pub struct Picked {
    tests: Vec<Glob>,
    versions: Vec<Glob>,
}

impl Picked {
    /// Fails for a pattern that names nothing.
    pub fn new(patterns: &[Glob], tests: &[Test], heads: &[Head]) -> Result<Picked> {
        let mut picked = Picked { tests: vec![], versions: vec![] };
        for p in patterns {
            if tests.iter().any(|t| p.names(&t.name)) {
                picked.tests.push(p.clone());
            } else if heads.iter().any(|h| p.matches(&h.model, &h.version)) {
                picked.versions.push(p.clone());
            } else {
                bail!("'{p}' names no test and no version; see 'mgit test ls' and 'mgit ls'");
            }
        }
        Ok(picked)
    }

    pub fn has(&self, test: &TestName, head: &Head) -> bool {
        (self.tests.is_empty() || self.tests.iter().any(|p| p.names(test)))
            && (self.versions.is_empty() || self.versions.iter().any(|p| p.matches(&head.model, &head.version)))
    }
}

/// One run to be done.
struct Todo {
    test: Test,
    head: Head,
}

fn run_tests(g: &Global, a: &RunArgs) -> Result<ExitCode> {
    let (repo, mut session) = g.session()?;
    let (todo, failed_before, known) = choose(&repo, &mut session, a)?;
    drop(session);
    let ran = match todo.is_empty() {
        true => vec![],
        false => run_all(&repo, &todo, a, g.json)?,
    };
    let (_, mut session) = g.session()?;
    let rows = work!(session, Ask::Rows(None), Answer::Rows(r) => r)?;
    drop(session);
    let errors: Vec<(&Todo, &String)> = todo.iter().zip(&ran).filter_map(|(t, r)| Some((t, r.as_ref()?))).collect();
    let is_of = |r: &Row, t: &Todo| r.head.id == t.head.id && r.result.test == t.test.name;
    let fresh: Vec<&Row> = rows.iter().filter(|r| todo.iter().any(|t| is_of(r, t))).collect();
    let failed = fresh.iter().filter(|r| r.result.verdict == Verdict::Fail).count() + failed_before;
    if g.json {
        let error =
            |(t, e): &(&Todo, &String)| json!({"test": t.test.name, "version": out::version(&t.head), "error": e});
        out::print_json(&json!({
            "results": fresh.iter().map(|r| r.as_json()).collect::<Vec<_>>(), "known": known, "failed": failed,
            "errors": errors.iter().map(error).collect::<Vec<_>>(),
        }))?;
    } else {
        let ran = todo.len() - errors.len();
        out::print_lines([format!("{ran} run, {known} known already, {failed} failed")])?;
    }
    if let Some((t, e)) = errors.first() {
        let more = if errors.len() > 1 { format!(" (and {} more)", errors.len() - 1) } else { String::new() };
        bail!("{} could not be run on {}: {e}{more}", t.test.name, label(&t.head));
    }
    if failed > 0 {
        bail!("{failed} of {} failed; see 'mgit test results'", fresh.len() + known);
    }
    Ok(ExitCode::SUCCESS)
}

/// What is to be run; how many failures and how many results are known already.
fn choose(repo: &Arc<Repo>, session: &mut Session, a: &RunArgs) -> Result<(Vec<Todo>, usize, usize)> {
    let tests = work!(session, Ask::Tests, Answer::Tests(t) => t)?;
    if tests.is_empty() {
        bail!("no tests yet; 'mgit test add NAME -- CMD' registers one");
    }
    let heads = ask!(session, Request::List, Response::Heads(h) => h)?;
    let below = a.descendants_of.as_ref().map(|r| descendants(session, r)).transpose()?;
    let picked = Picked::new(&a.patterns, &tests, &heads)?;
    let results = work!(session, Ask::Results, Answer::Results(r) => r)?;
    let contents: HashMap<TestName, Id> =
        tests.iter().map(|t| Ok((t.name.clone(), content(t)?))).collect::<Result<_>>()?;
    let known: HashMap<(Id, &TestName), Verdict> = results
        .iter()
        .filter(|r| contents.get(&r.test) == Some(&r.content))
        .map(|r| ((r.version, &r.test), r.verdict))
        .collect();
    let (mut todo, mut failed, mut count) = (vec![], 0, 0);
    for head in heads.iter().filter(|h| below.as_ref().is_none_or(|b| b.contains(&h.id))) {
        for test in tests.iter().filter(|t| picked.has(&t.name, head) && tests::is_for(repo, t, head)) {
            match known.get(&(head.id, &test.name)).filter(|_| !a.again) {
                Some(verdict) => {
                    count += 1;
                    failed += (*verdict == Verdict::Fail) as usize;
                }
                None => todo.push(Todo { test: test.clone(), head: head.clone() }),
            }
        }
    }
    Ok((todo, failed, count))
}

/// A version and all that come from it.
fn descendants(session: &mut Session, of: &VersionRef) -> Result<HashSet<Id>> {
    let head = ask!(session, Request::Resolve(of.clone()), Response::Head(h) => h)?;
    let graph = ask!(session, Request::Graph, Response::Graph(g) => g)?;
    let edges = graph.edges.iter().map(|e| (graph.nodes[e.from].id, graph.nodes[e.to].id));
    let below = crate::model::lineage::Lineage::from_edges(edges).descendants(head.id);
    Ok(below.into_iter().chain([head.id]).collect())
}

/// Runs them in a mount and takes down each result as it comes. Of each: why it could not be run.
fn run_all(repo: &Arc<Repo>, todo: &[Todo], a: &RunArgs, quiet: bool) -> Result<Vec<Option<String>>> {
    let bar = out::Bar::counting("testing", todo.len() as u64)?;
    let (served, session) = Served::open(repo)?;
    let session = Mutex::new(session);
    let next = AtomicUsize::new(0);
    let (send, done) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..(a.jobs as usize).min(todo.len()) {
            let (send, next, session, served, bar) = (send.clone(), &next, &session, &served, &bar);
            scope.spawn(move || {
                while let Some((n, t)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|n| Some((n, todo.get(n)?)))
                {
                    let ran = subject(session, served, &t.head)
                        .and_then(|s| run_one(repo, &t.test, t.head.id, &s, a.timeout, bar));
                    let stop = matches!(ran, Err(RepoError::Interrupted));
                    if send.send((n, ran)).is_err() || stop {
                        return;
                    }
                }
            });
        }
        drop(send);
        let mut errors = vec![None; todo.len()];
        let mut stopped = None;
        for (n, ran) in done {
            bar.stored(1);
            match ran {
                Err(e @ RepoError::Interrupted) => stopped = Some(e),
                Err(e) => errors[n] = Some(e.to_string()),
                Ok(result) => {
                    if !quiet {
                        bar.print(&line(&result, &todo[n].head))?;
                    }
                    let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
                    session.call(Request::Work(Ask::AddResults(vec![result])))?;
                }
            }
        }
        bar.done();
        stopped.map_or(Ok(errors), |e| Err(e.into()))
    })
}

/// A version as a program sees it in the mount.
pub fn subject(session: &Mutex<Session>, served: &Served, head: &Head) -> Result<Subject, RepoError> {
    let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
    let above: Option<Above> = ask!(session, Request::Above(head.id), Response::Above(a) => a)?;
    let above = above.ok_or_else(|| RepoError::refused(format!("{} was removed meanwhile", label(head))))?;
    let path = |h: &Head| served.path(&h.model, &h.version);
    let living = |h: &&Head| !h.removed;
    Ok(Subject {
        path: path(head),
        model: head.model.clone(),
        version: head.version.clone(),
        parents: above.parents.iter().map(|(h, _)| h).filter(living).map(path).collect(),
        previous: above.previous.as_ref().filter(living).map(path),
    })
}

/// `fail  acme/sst2@v1  loads  exit 1, 0.3 s`.
fn line(r: &TestResult, head: &Head) -> String {
    let mut facts: Vec<String> = r.why.iter().map(|w| out::harmless(w)).collect();
    facts.extend(r.metrics.iter().take(4).map(|(k, v)| out::harmless(&format!("{k} {v}"))));
    facts.push(format!("{:.1} s", r.millis as f64 / 1000.0));
    format!("{}  {}  {}  {}", r.verdict.as_str(), label(head), r.test, facts.join(", "))
}

fn results(g: &Global, a: &ResultsArgs) -> Result<ExitCode> {
    let (_, mut session) = g.session()?;
    let tests = work!(session, Ask::Tests, Answer::Tests(t) => t)?;
    let heads = ask!(session, Request::List, Response::Heads(h) => h)?;
    let picked = Picked::new(&a.patterns, &tests, &heads)?;
    let mut rows = work!(session, Ask::Rows(None), Answer::Rows(r) => r)?;
    drop(session);
    rows.retain(|r| picked.has(&r.result.test, &r.head));
    if g.json {
        out::print_json(&json!({"results": rows.iter().map(Row::as_json).collect::<Vec<_>>()}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let cells = |r: &Row| {
        let origin = r.origin.map_or(String::new(), |o| format!("{o:?}").to_lowercase());
        let metric = tests.iter().find(|t| t.name == r.result.test).and_then(|t| t.metric.as_ref());
        let shown: Vec<(&String, &Value)> = match metric {
            Some(m) => r.result.metrics.iter().filter(|(k, _)| **k == m.name).collect(),
            None => r.result.metrics.iter().take(3).collect(),
        };
        let metrics = shown.iter().map(|(k, v)| out::harmless(&format!("{k} {v}"))).collect::<Vec<_>>().join(", ");
        let examples = r.result.examples.as_ref().map_or(String::new(), |e| format!("{}/{}", e.right, e.total));
        let why = out::harmless(r.result.why.as_deref().unwrap_or_default());
        let seconds = format!("{:.1}", r.result.millis as f64 / 1000.0);
        vec![
            label(&r.head),
            r.result.test.to_string(),
            r.result.verdict.as_str().to_owned(),
            origin,
            why,
            metrics,
            examples,
            seconds,
            out::ago(r.result.date),
        ]
    };
    let heads = ["VERSION", "TEST", "RESULT", "FAILURE", "WHY", "METRICS", ">RIGHT", ">SECONDS", "RUN"];
    out::print_lines(match rows.is_empty() {
        true => vec!["no results yet; 'mgit test run' makes them".to_owned()],
        false => out::table(&heads, &rows.iter().map(cells).collect::<Vec<_>>()),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn compare(g: &Global, a: &CompareArgs) -> Result<ExitCode> {
    let (repo, mut session) = g.session()?;
    let mut side = |r: &VersionRef| -> Result<(Head, Vec<Row>)> {
        let head = ask!(session, Request::Resolve(r.clone()), Response::Head(h) => h)?;
        let rows = work!(session, Ask::Rows(Some(head.id)), Answer::Rows(r) => r)?;
        Ok((head, rows))
    };
    let ((head_a, rows_a), (head_b, rows_b)) = (side(&a.a)?, side(&a.b)?);
    drop(session);
    let mut flips: Vec<(TestName, Flips)> = Vec::new();
    for before in rows_a.iter().filter(|r| a.test.as_ref().is_none_or(|t| *t == r.result.test)) {
        let Some(after) = rows_b.iter().find(|r| r.result.test == before.result.test) else { continue };
        let of = |r: &Row| -> Result<Option<Outcomes>> { Ok(tests::outcomes(&repo, &r.result)?) };
        if let (Some(x), Some(y)) = (of(before)?, of(after)?) {
            flips.push((before.result.test.clone(), Flips::between(&x, &y)));
        }
    }
    if flips.is_empty() {
        let (a, b) = (label(&head_a), label(&head_b));
        bail!(
            "no test told outcomes by example (in $MGIT_EXAMPLES) on both {a} and {b}; 'mgit test run {a} {b}' runs them"
        );
    }
    let above = |f: &Flips| a.max_negative_flips.is_some_and(|max| f.rate(f.negative.len()) > max);
    let ok = !flips.iter().any(|(_, f)| above(f));
    if g.json {
        let row = |(test, f): &(TestName, Flips)| {
            json!({"test": test, "examples": f.common, "negative_flips": f.negative.len(), "positive_flips": f.positive.len(),
                "negative_rate": f.rate(f.negative.len()), "positive_rate": f.rate(f.positive.len()),
                "negative": f.negative, "positive": f.positive})
        };
        let all: Vec<Value> = flips.iter().map(row).collect();
        out::print_json(&json!({"a": out::version(&head_a), "b": out::version(&head_b), "ok": ok, "tests": all}))?;
    } else {
        let share = |f: &Flips, n: usize| format!("{n} ({:.2} %)", 100.0 * f.rate(n));
        let row = |(test, f): &(TestName, Flips)| {
            let (negative, positive) = (share(f, f.negative.len()), share(f, f.positive.len()));
            let first = f.negative.iter().take(5).map(|id| out::harmless(id)).collect::<Vec<_>>().join(" ");
            vec![test.to_string(), f.common.to_string(), negative, positive, first]
        };
        let heads = ["TEST", ">EXAMPLES", ">NEGATIVE FLIPS", ">POSITIVE", "NOW WRONG"];
        out::print_lines(out::table(&heads, &flips.iter().map(row).collect::<Vec<_>>()))?;
    }
    if !ok {
        bail!(
            "more than {} of the examples were right in {} and are wrong in {}",
            a.max_negative_flips.unwrap_or(0.0),
            label(&head_a),
            label(&head_b)
        );
    }
    Ok(ExitCode::SUCCESS)
}
