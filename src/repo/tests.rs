//! Running registered tests on the directory of a version, or of one that is yet to be, and what they gave so far.
//!
//! A result is keyed by the version's id and the test's content id: BLAKE3 of its command and of every file that an
//! argument names, the program itself among them. What is known for both need not be run again.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::engine::Engine;
use super::program::{How, Program, joined, run};
use super::progress::Progress;
use super::scratch::Scratch;
use super::show::version;
use super::{Head, Repo, RepoError};
use crate::model::id::Id;
use crate::model::name::{ModelName, VersionName};
use crate::model::record::{EntryKind, VersionRecord};
use crate::model::test::{Examples, Origin, Outcomes, Test, TestName, TestResult, Verdict, architectures, origin};

/// The version of a result on a directory that is no version yet.
pub const CANDIDATE: Id = Id([0; 32]);
/// Longer configs, lists of examples and metrics are not looked at.
const MAX_CONFIG: u64 = 1 << 20;
const MAX_EXAMPLES: u64 = 64 << 20;
const MAX_METRICS: usize = 16 << 10;
/// The exit status of a program that cannot tell, as `git bisect run` has it.
const SKIP: i32 = 125;

/// What a test is run on.
#[derive(Clone)]
pub struct Subject {
    pub path: PathBuf,
    pub model: ModelName,
    pub version: VersionName,
    pub parents: Vec<PathBuf>,
    pub previous: Option<PathBuf>,
}

/// The tests that are for a model's directory which is no version yet, run on it in order.
/// The results are of version [`CANDIDATE`].
pub fn run_on(
    repo: &Repo,
    tests: &[Test],
    subject: &Subject,
    timeout: Option<Duration>,
    progress: &dyn Progress,
) -> Result<Vec<TestResult>, RepoError> {
    let archs = || match fs::metadata(subject.path.join("config.json")) {
        Ok(m) if m.len() <= MAX_CONFIG => {
            architectures(&fs::read(subject.path.join("config.json")).unwrap_or_default())
        }
        _ => vec![],
    };
    let wanted = tests.iter().filter(|t| t.is_for(&subject.model, &subject.version, archs));
    wanted.map(|t| run_one(repo, t, CANDIDATE, subject, timeout, progress)).collect()
}

/// Runs a test. Fails, with nothing to take down, when its program cannot be started or work is to stop.
pub fn run_one(
    repo: &Repo,
    test: &Test,
    id: Id,
    subject: &Subject,
    timeout: Option<Duration>,
    progress: &dyn Progress,
) -> Result<TestResult, RepoError> {
    let content = content(test)?;
    let scratch = Scratch::new(repo)?;
    let work = scratch.dir("work")?;
    let file = work.join("examples.jsonl");
    let dir = Some(Path::new(&test.dir)).filter(|d| d.is_dir()).unwrap_or(&work);
    let mut env = variables(repo, subject);
    env.push(("MGIT_PATH".to_owned(), subject.path.clone().into()));
    env.push(("MGIT_EXAMPLES".to_owned(), file.clone().into()));
    let ended = run(&Program { command: &test.command, dir, env, timeout }, progress)?;
    let verdict = match ended.how {
        How::Exit(0) => Verdict::Pass,
        How::Exit(SKIP) => Verdict::Skip,
        _ => Verdict::Fail,
    };
    let (examples, problem) = match examples(repo, &file) {
        Ok(examples) => (examples, None),
        Err(e) => (None, Some(e)),
    };
    let why: Vec<String> = ended.how.why().into_iter().chain(problem).collect();
    Ok(TestResult {
        test: test.name.clone(),
        content,
        version: id,
        verdict,
        why: Some(why.join("; ")).filter(|w| !w.is_empty()),
        metrics: metrics(ended.last.as_deref()),
        examples,
        millis: ended.took.as_millis() as u64,
        output: ended.output,
        date: Timestamp::now(),
    })
}

/// What every program is told of the version it works on.
pub fn variables(repo: &Repo, subject: &Subject) -> Vec<(String, OsString)> {
    let mut env: Vec<(&str, OsString)> = vec![
        ("MGIT_REPO", repo.dir.clone().into()),
        ("MGIT_MODEL", subject.model.to_string().into()),
        ("MGIT_VERSION", subject.version.to_string().into()),
        ("MGIT_PARENTS", joined(&subject.parents)),
    ];
    env.extend(subject.previous.iter().map(|p| ("MGIT_PREVIOUS", p.clone().into())));
    env.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

fn metrics(last: Option<&str>) -> Map<String, Value> {
    let line = last.filter(|l| l.len() <= MAX_METRICS).unwrap_or_default();
    serde_json::from_str(line).unwrap_or_default()
}

/// Keeps what the program wrote of its examples; an error in words where that makes no sense.
fn examples(repo: &Repo, file: &Path) -> Result<Option<Examples>, String> {
    match fs::symlink_metadata(file) {
        Err(_) => return Ok(None),
        Ok(m) if !m.is_file() => return Err("examples: not a file".to_owned()),
        Ok(m) if m.len() > MAX_EXAMPLES => return Err("examples: more than 64 MiB".to_owned()),
        Ok(_) => {}
    }
    let text = fs::read_to_string(file).map_err(|e| format!("examples: {e}"))?;
    let outcomes = Outcomes::parse(&text)?;
    if outcomes.0.is_empty() {
        return Ok(None);
    }
    let bytes = serde_json::to_vec(&outcomes).map_err(|e| format!("examples: {e}"))?;
    let file = repo.files().put(&bytes).map_err(|e| format!("examples: {e}"))?;
    Ok(Some(Examples { file, right: outcomes.right(), total: outcomes.0.len() as u64 }))
}

/// The outcomes by example that a result has.
pub fn outcomes(repo: &Repo, result: &TestResult) -> Result<Option<Outcomes>, RepoError> {
    let Some(examples) = &result.examples else { return Ok(None) };
    let bytes = repo.files().get(&examples.file)?;
    let damaged = |e| RepoError::damaged(format!("outcomes {}: {e}", examples.file));
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}

/// The content id of a test as its files are now.
pub fn content(test: &Test) -> Result<Id, RepoError> {
    let mut h = blake3::Hasher::new();
    h.update(b"mgit test 1\0");
    for (n, argument) in test.command.iter().enumerate() {
        h.update(&(argument.len() as u64).to_le_bytes()).update(argument.as_bytes());
        let file = named(test, argument, n == 0).map(|path| hash(&path)).transpose()?;
        h.update(&[file.is_some() as u8]).update(&file.unwrap_or(CANDIDATE).0);
    }
    Ok(Id(*h.finalize().as_bytes()))
}

/// The file that an argument names, also as in `--config=FILE`; the program is sought as the system does.
fn named(test: &Test, argument: &str, program: bool) -> Option<PathBuf> {
    let below = |p: &str| Some(Path::new(&test.dir).join(p)).filter(|p| p.is_file());
    if program && !argument.contains('/') {
        let path = std::env::var_os("PATH")?;
        return std::env::split_paths(&path).map(|d| d.join(argument)).find(|p| p.is_file());
    }
    let value = || argument.split_once('=').filter(|(k, _)| k.starts_with('-')).and_then(|(_, v)| below(v));
    below(argument).or_else(value)
}

fn hash(path: &Path) -> Result<Id, RepoError> {
    let mut h = blake3::Hasher::new();
    let file = fs::File::open(path).and_then(|f| h.update_reader(f).map(drop));
    file.map_err(|e| RepoError::file(path, e))?;
    Ok(Id(*h.finalize().as_bytes()))
}

/// The architectures that a version's config names; none where it cannot be read.
pub fn architectures_of(repo: &Arc<Repo>, record: &VersionRecord) -> Vec<String> {
    let config = record.files.iter().find(|f| f.path == "config.json" && f.kind == EntryKind::File);
    let read = || -> Option<Vec<u8>> {
        let entry = config.filter(|f| f.bytes <= MAX_CONFIG)?;
        let mut bytes = vec![0; entry.bytes as usize];
        repo.open_file(&entry.recipe).and_then(|f| f.read_at(0, &mut bytes)).ok()?;
        Some(bytes)
    };
    read().map_or_else(Vec::new, |bytes| architectures(&bytes))
}

/// Whether a test is for a version.
pub fn is_for(repo: &Arc<Repo>, test: &Test, head: &Head) -> bool {
    test.is_for(&head.model, &head.version, || match repo.record(&head.id) {
        Ok(record) => architectures_of(repo, &record),
        Err(_) => vec![],
    })
}

/// A result, the version that it is of, and where a failure comes from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    pub head: Head,
    pub result: TestResult,
    pub origin: Option<Origin>,
}

impl Row {
    pub fn as_json(&self) -> Value {
        let (r, mut value) = (&self.result, version(&self.head));
        let more = json!({
            "test": r.test, "result": r.verdict, "why": r.why, "origin": self.origin, "metrics": r.metrics,
            "examples": r.examples.as_ref().map(|e| json!({"right": e.right, "total": e.total})),
            "seconds": r.millis as f64 / 1000.0, "date": r.date, "content": r.content, "output": r.output,
        });
        if let (Value::Object(all), Value::Object(more)) = (&mut value, more) {
            all.extend(more);
        }
        value
    }
}

/// The last result of each registered test, on each living version in commit order, or on one.
pub fn rows(engine: &Engine, version: Option<&Id>) -> Result<Vec<Row>, RepoError> {
    let catalog = engine.catalog();
    let mut known = Known { engine, tests: catalog.tests()?, last: HashMap::new() };
    let heads = match version {
        Some(id) => catalog.by_id(id)?.into_iter().collect(),
        None => catalog.all()?,
    };
    let mut rows = Vec::new();
    for head in heads {
        for result in known.of(&head.id)?.clone().into_values() {
            let above = catalog.parents(&head.id)?.into_iter().map(|p| p.id).chain(head.previous);
            let mut verdicts = Vec::new();
            for id in above.filter(|_| result.verdict == Verdict::Fail) {
                verdicts.extend(known.of(&id)?.get(&result.test).map(|r| r.verdict));
            }
            rows.push(Row { head: head.clone(), origin: origin(result.verdict, verdicts), result });
        }
    }
    Ok(rows)
}

/// Last results, by version.
struct Known<'a> {
    engine: &'a Engine,
    tests: Vec<Test>,
    last: HashMap<Id, std::collections::BTreeMap<TestName, TestResult>>,
}

impl Known<'_> {
    fn of(&mut self, id: &Id) -> Result<&std::collections::BTreeMap<TestName, TestResult>, RepoError> {
        if !self.last.contains_key(id) {
            let mut results = self.engine.catalog().results(Some(id))?;
            results.retain(|r| self.tests.iter().any(|t| t.name == r.test));
            results.sort_by_key(|r| r.date);
            self.last.insert(*id, results.into_iter().map(|r| (r.test.clone(), r)).collect());
        }
        Ok(&self.last[id])
    }
}

/// A card's `tests.json`.
pub fn card(engine: &Engine, id: &Id) -> Result<String, RepoError> {
    let rows = rows(engine, Some(id))?;
    Ok(format!("{:#}\n", Value::Array(rows.iter().map(Row::as_json).collect())))
}
