//! The gate before a merge is committed: registered tests run on the result while nobody sees it.
//!
//! The result's directory is made of links: to the files that were computed, which have no name, and to those of the
//! inputs in the mount. All tests that are for it must pass; with a limit, no more examples than that share may be right in
//! a parent and wrong in it. What the tests gave is taken down for the version once it is committed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::super::out;
use super::super::served::Served;
use super::make::{Place, Task};
use crate::control::{Request, Response, Session};
use crate::model::id::Id;
use crate::model::record::EntryKind;
use crate::model::test::{Flips, TestResult, Verdict};
use crate::repo::engine::label;
use crate::repo::merge::write::Written;
use crate::repo::merge::{Output, What};
use crate::repo::scratch::Scratch;
use crate::repo::tests::{Row, Subject, outcomes, run_on};
use crate::repo::work::{Answer, Ask};
use crate::repo::{Head, Repo};
use crate::work;
use std::sync::Arc;

/// What a merge has to pass.
#[derive(Clone, Copy)]
pub struct Gate {
    /// The merge is a possible conflict: without a test it cannot be committed.
    pub must: bool,
    pub max_flips: Option<f64>,
    pub timeout: Option<Duration>,
}

/// Runs the tests. Their results, which are of no version yet.
pub fn pass(
    gate: &Gate,
    repo: &Arc<Repo>,
    task: &Task,
    place: &Place,
    (outputs, written): (&[Output], &Written),
    bar: &out::Bar,
) -> Result<Vec<TestResult>> {
    let (served, mut session) = Served::open(repo)?;
    let tests = work!(session, Ask::Tests, Answer::Tests(t) => t)?;
    let rows = match gate.max_flips {
        Some(_) => parents_rows(&mut session, task)?,
        None => vec![],
    };
    let scratch = Scratch::new(repo)?;
    let dir = scratch.dir("merged")?;
    lay_out(repo, &served, task, outputs, written, &dir)?;
    let path = |h: &Head| served.path(&h.model, &h.version);
    let subject = Subject {
        path: dir,
        model: place.model.clone(),
        version: place.version.clone(),
        parents: task.parents.iter().map(path).collect(),
        previous: place.previous.as_ref().map(path),
    };
    let results = run_on(repo, &tests, &subject, gate.timeout, bar)?;
    drop(session);
    let failed: Vec<&str> = results.iter().filter(|r| r.verdict == Verdict::Fail).map(|r| r.test.as_str()).collect();
    ensure!(failed.is_empty(), "the merge fails {}; nothing was committed", failed.join(", "));
    let passed = results.iter().filter(|r| r.verdict == Verdict::Pass).count();
    ensure!(
        !gate.must || passed > 0,
        "a possible conflict, and no test for it; see 'mgit test add', or --accept-possible"
    );
    if let Some(most) = gate.max_flips {
        check_flips(repo, most, &results, &rows)?;
    }
    Ok(results)
}

fn parents_rows(session: &mut Session, task: &Task) -> Result<Vec<(Head, Vec<Row>)>> {
    let rows = |h: &Head| Ok((h.clone(), work!(session, Ask::Rows(Some(h.id)), Answer::Rows(r) => r)?));
    task.parents.iter().map(rows).collect()
}

/// More negative flips than this share, from any parent to the merge, stop it.
fn check_flips(repo: &Repo, most: f64, results: &[TestResult], rows: &[(Head, Vec<Row>)]) -> Result<()> {
    let mut compared = false;
    for (head, rows) in rows {
        for after in results {
            let before = rows.iter().find(|r| r.result.test == after.test && r.result.content == after.content);
            let before = before.map(|r| outcomes(repo, &r.result)).transpose()?.flatten();
            let (Some(before), Some(after_outcomes)) = (before, outcomes(repo, after)?) else { continue };
            let flips = Flips::between(&before, &after_outcomes);
            let rate = flips.rate(flips.negative.len());
            compared = true;
            if rate > most {
                let (n, all, test, parent) = (flips.negative.len(), flips.common, &after.test, label(head));
                bail!(
                    "{test}: {n} of {all} examples are right in {parent} and wrong in the merge; nothing was committed"
                );
            }
        }
    }
    ensure!(
        compared,
        "no test told outcomes by example on a parent and on the merge; 'mgit test run' runs them on parents"
    );
    Ok(())
}

/// Makes the directory of the result.
fn lay_out(
    repo: &Repo,
    served: &Served,
    task: &Task,
    outputs: &[Output],
    written: &Written,
    dir: &std::path::Path,
) -> Result<()> {
    let heads: Vec<&Head> = task.parents.iter().chain(&task.base).collect();
    let records = heads.iter().map(|h| repo.record(&h.id)).collect::<Result<Vec<_>, _>>()?;
    let holder = |path: &str, digest: &Id| {
        let mut all = heads.iter().zip(&records);
        all.find(|(_, r)| r.files.iter().any(|f| f.path == path && f.digest == *digest)).map(|(h, _)| *h)
    };
    for o in outputs {
        let at = dir.join(&o.path);
        let to: PathBuf = match &o.what {
            What::Stored(e) if e.kind == EntryKind::Directory => {
                fs::create_dir_all(&at).with_context(|| at.display().to_string())?;
                continue;
            }
            What::Stored(e) => {
                let head = holder(&o.path, &e.digest).with_context(|| format!("'{}' is in no parent", o.path))?;
                served.path(&head.model, &head.version).join(&o.path)
            }
            _ => written.path(&o.path).with_context(|| format!("'{}' was not computed", o.path))?.to_path_buf(),
        };
        if let Some(above) = at.parent() {
            fs::create_dir_all(above).with_context(|| above.display().to_string())?;
        }
        symlink(to, &at).with_context(|| at.display().to_string())?;
    }
    Ok(())
}
