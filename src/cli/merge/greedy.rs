//! `mgit merge --greedy K`: top-k greedy merging with model kinship (arXiv 2410.12613).
//!
//! A generation merges every two of the K best, and the best with the one of all that is least akin to it; then the K best
//! of all are told anew by the registered tests. It ends when these stay the same, or when every two of them are more
//! akin than [`AKIN`]: a merge of what has moved alike gives nothing new. Each merge is a version. A run that is cut off
//! goes on where it was: merges that are there, of the same parents by the same method, are not made again, and results
//! that are known not told again.

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::super::import::{Turn, publish};
use super::super::served::Served;
use super::super::test::subject;
use super::super::{Global, out};
use super::make::{Task, place, prepare};
use super::{Args, ancestor_of_all};
use crate::control::{Request, Response};
use crate::model::id::Id;
use crate::model::name::VersionRef;
use crate::model::record::{Merge, ParentEdge, Real, Relation};
use crate::model::test::{Better, Test, TestResult, Verdict};
use crate::repo::engine::{Detail, label};
use crate::repo::kinship::kinship;
use crate::repo::merge::Input;
use crate::repo::merge::method::{self, Chosen, Method, Setting};
use crate::repo::progress::Silent;
use crate::repo::tests::{content, is_for, run_one};
use crate::repo::work::{Answer, Ask};
use crate::repo::{Head, Repo, origin};
use crate::work;

/// A cosine of the differences from the base above which two models are the same way gone.
const AKIN: f64 = 0.9;
/// Generations at most.
const MAX_GENERATIONS: usize = 32;

/// The search.
struct Search<'a> {
    a: &'a Args,
    repo: Arc<Repo>,
    base: Head,
    method: Method,
    settings: Vec<Setting>,
    name: VersionRef,
    tests: Vec<Test>,
    /// All versions that take part, and the score of each.
    pool: Vec<(Head, f64)>,
    akin: HashMap<(Id, Id), Option<f64>>,
}

pub fn run(
    g: &Global,
    a: &Args,
    turn: &mut Turn,
    parents: Vec<Head>,
    base: Option<Head>,
    name: VersionRef,
    k: usize,
) -> Result<ExitCode> {
    ensure!(k > 1, "--greedy takes the number of versions that are merged with each other, 2 or more");
    ensure!(name.version.is_none(), "a search makes several versions; name the model only");
    let method = a.method.unwrap_or(Method::Average);
    ensure!(
        method != Method::Emr && method != Method::RegMean,
        "a search merges two by two; {} does not",
        method.as_str()
    );
    let base = match base {
        Some(base) => base,
        None => ancestor_of_all(turn.session()?, &parents)?,
    };
    let tests = work!(turn.session()?, Ask::Tests, Answer::Tests(t) => t)?;
    ensure!(!tests.is_empty(), "a search needs tests to tell what is better; 'mgit test add' registers one");
    turn.release();
    let settings = a.weights.iter().chain(&a.settings).cloned().collect();
    let (repo, pool, akin) = (turn.repo.clone(), vec![], HashMap::new());
    let mut search = Search { a, repo, base, method, settings, name, tests, pool, akin };
    for p in parents {
        search.join(turn, p)?;
    }
    let steps = search.generations(g, turn, k)?;
    let best = search.best(1)[0].clone();
    let score = search.pool.iter().find(|(h, _)| h.id == best.id).map_or(0.0, |p| p.1);
    match g.json {
        true => out::print_json(&json!({"best": out::version(&best), "score": score, "steps": steps}))?,
        false => out::print_lines([format!("the best is {}, {score:.4}", label(&best))])?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Search<'_> {
    /// Generation after generation, until nothing new is to be gained.
    fn generations(&mut self, g: &Global, turn: &mut Turn, k: usize) -> Result<Vec<serde_json::Value>> {
        let mut steps = Vec::new();
        for _ in 0..MAX_GENERATIONS {
            let top = self.best(k);
            let mut pairs: Vec<(Head, Head)> = Vec::new();
            for (i, x) in top.iter().enumerate() {
                pairs.extend(top[i + 1..].iter().map(|y| (x.clone(), y.clone())));
            }
            if self.all_akin(&pairs)? {
                break;
            }
            pairs.extend(self.explore(&top[0])?.map(|far| (top[0].clone(), far)));
            for (x, y) in pairs {
                let kinship = self.kinship(&x, &y)?;
                let (head, fresh) = self.merged(turn, &x, &y)?;
                if self.pool.iter().any(|(h, _)| h.id == head.id) {
                    continue;
                }
                let score = self.join(turn, head.clone())?;
                steps.push(json!({
                    "version": out::version(&head), "parents": [out::version(&x), out::version(&y)],
                    "kinship": kinship, "score": score, "new": fresh,
                }));
                if !g.json {
                    let of = format!("{} and {}", label(&x), label(&y));
                    let akin = kinship.map_or("-".to_owned(), |k| format!("{k:.3}"));
                    out::print_lines([format!("{}  {score:.4}  of {of}, kinship {akin}", label(&head))])?;
                }
            }
            let ids = |heads: &[Head]| heads.iter().map(|h| h.id).collect::<Vec<_>>();
            if ids(&self.best(k)) == ids(&top) {
                break;
            }
        }
        Ok(steps)
    }

    /// The best first; of equals the oldest.
    fn best(&self, k: usize) -> Vec<Head> {
        let mut all: Vec<&(Head, f64)> = self.pool.iter().collect();
        all.sort_by(|x, y| y.1.total_cmp(&x.1).then(x.0.seq.cmp(&y.0.seq)));
        all.into_iter().take(k).map(|p| p.0.clone()).collect()
    }

    /// The least akin to the best that is not among its own parents or children.
    fn explore(&mut self, best: &Head) -> Result<Option<Head>> {
        let others: Vec<Head> = self.pool.iter().map(|p| p.0.clone()).filter(|h| h.id != best.id).collect();
        let mut least: Option<(f64, Head)> = None;
        for h in others {
            if let Some(akin) = self.kinship(best, &h)?.filter(|k| least.as_ref().is_none_or(|l| *k < l.0)) {
                least = Some((akin, h));
            }
        }
        Ok(least.map(|l| l.1))
    }

    fn all_akin(&mut self, pairs: &[(Head, Head)]) -> Result<bool> {
        for (x, y) in pairs {
            if self.kinship(x, y)?.is_none_or(|k| k <= AKIN) {
                return Ok(false);
            }
        }
        Ok(!pairs.is_empty())
    }

    fn kinship(&mut self, x: &Head, y: &Head) -> Result<Option<f64>> {
        let key = (x.id.min(y.id), x.id.max(y.id));
        if let Some(known) = self.akin.get(&key) {
            return Ok(*known);
        }
        let open = |h: &Head| Input::open(&self.repo, h);
        let found = kinship(&open(&self.base)?.side, &open(x)?.side, &open(y)?.side, &Silent)?.cosine;
        self.akin.insert(key, found);
        Ok(found)
    }

    /// The merge of two, and whether it had to be made.
    fn merged(&self, turn: &mut Turn, x: &Head, y: &Head) -> Result<(Head, bool)> {
        let heads = vec![x.clone(), y.clone()];
        let chosen = Chosen::new(self.method, self.settings.clone(), 2)?;
        let base = Some(self.base.clone()).filter(|_| self.method.needs_base());
        let parameters = chosen.told();
        let merge = Merge { method: self.method.as_str().to_owned(), base: base.as_ref().map(|b| b.id), parameters };
        if let Some(there) = self.there(turn, &heads, &merge)? {
            return Ok((there, false));
        }
        let place = place(turn.session()?, &self.name)?;
        turn.release();
        let inputs = heads.iter().chain(&base).map(|h| Input::open(&self.repo, h)).collect::<Result<Vec<_>, _>>()?;
        let mut plan = method::plan(&inputs, &chosen, &[])?;
        let edge = |(h, c): (&Head, Option<f64>)| ParentEdge {
            coefficient: c.map(Real),
            ..ParentEdge::new(h.id, Relation::Merge)
        };
        let edges = heads.iter().zip(chosen.coefficients()).map(edge).collect();
        let task = Task { grams: vec![], parents: heads, base, edges, merge };
        let bar = out::Bar::new(&format!("merging into {}", self.name.model), true)?;
        let (prepared, _) = prepare(self.a, turn, &task, &place, (&inputs, &mut plan), None, &bar)?;
        bar.done();
        let made = publish(turn, prepared, &[], true)?;
        origin::remember(&self.repo.clone(), turn, &bar);
        let name = VersionRef { model: made.record.model.clone(), version: Some(made.record.version.clone()) };
        Ok((super::resolve(turn.session()?, &name)?, true))
    }

    /// A version of the model that is this merge.
    fn there(&self, turn: &mut Turn, parents: &[Head], merge: &Merge) -> Result<Option<Head>> {
        let newest = VersionRef { model: self.name.model.clone(), version: None };
        let Ok(Response::Details(all)) = turn.session()?.call(Request::History(Some(newest))) else { return Ok(None) };
        let ids: Vec<Id> = parents.iter().map(|h| h.id).collect();
        let of =
            |d: &&Detail| d.head.model == self.name.model && d.parents.iter().map(|p| p.0.id).eq(ids.iter().copied());
        for d in all.iter().filter(of).filter(|d| !d.head.removed) {
            if self.repo.record(&d.head.id)?.merge.as_ref() == Some(merge) {
                return Ok(Some(d.head.clone()));
            }
        }
        Ok(None)
    }

    /// Tests a version, where its results are not known, and lets it take part.
    fn join(&mut self, turn: &mut Turn, head: Head) -> Result<f64> {
        let score = self.score(turn, &head)?;
        self.pool.push((head, score));
        Ok(score)
    }

    /// The mean of the tests: of one with a metric that (turned round where less is better), of another 1 for a pass.
    fn score(&self, turn: &mut Turn, head: &Head) -> Result<f64> {
        let wanted: Vec<&Test> = self.tests.iter().filter(|t| is_for(&self.repo, t, head)).collect();
        let known = work!(turn.session()?, Ask::Results, Answer::Results(r) => r)?;
        turn.release();
        let mut sum = 0.0;
        let mut served = None;
        for test in &wanted {
            let id = content(test)?;
            let of = |r: &&TestResult| r.version == head.id && r.test == test.name && r.content == id;
            let result = match known.iter().rev().find(of) {
                Some(r) => r.clone(),
                None => {
                    if served.is_none() {
                        let (s, session) = Served::open(&self.repo)?;
                        served = Some((s, Mutex::new(session)));
                    }
                    let Some((served, session)) = &served else { bail!("no mount") };
                    let bar = out::Bar::counting("testing", 1)?;
                    let subject = subject(session, served, head)?;
                    let result = run_one(&self.repo, test, head.id, &subject, self.a.timeout, &bar)?;
                    let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
                    session.call(Request::Work(Ask::AddResults(vec![result.clone()])))?;
                    result
                }
            };
            sum += points(test, &result).with_context(|| format!("{} on {}", test.name, label(head)))?;
        }
        ensure!(!wanted.is_empty(), "no test is for {}", label(head));
        Ok(sum / wanted.len() as f64)
    }
}

fn points(test: &Test, result: &TestResult) -> Result<f64> {
    let Some(metric) = &test.metric else { return Ok((result.verdict == Verdict::Pass) as u8 as f64) };
    match result.metrics.get(&metric.name).and_then(serde_json::Value::as_f64) {
        Some(v) if metric.better == Better::Higher => Ok(v),
        Some(v) => Ok(-v),
        None if result.verdict == Verdict::Pass => bail!("the test did not tell its metric '{}'", metric.name),
        None => Ok(-1e300), // what fails is the worst
    }
}
