//! `mgit bisect`

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::served::Served;
use super::test::{seconds, subject};
use super::{Global, out, side};
use crate::control::{Request, Response, Session};
use crate::model::bisect::{Next, next};
use crate::model::graph::{Graph, Kind};
use crate::model::id::Id;
use crate::model::lineage::Lineage;
use crate::model::name::VersionRef;
use crate::model::test::{Test, TestName, Verdict};
use crate::repo::diff::{compare, text};
use crate::repo::engine::label;
use crate::repo::progress::Progress;
use crate::repo::tests::{content, run_one};
use crate::repo::work::{Answer, Ask};
use crate::repo::{Head, Repo};
use crate::{ask, work};

/// Find the version in which a test began to fail
///
/// Along the model's own versions, or with --from along the shortest way from an
/// ancestor of any model. What is known is not run again; a test that cannot tell
/// (exit 125) is tried on a neighbour. A thousand versions take at most 11 runs.
///
///   mgit bisect accuracy acme/sst2
///   mgit bisect accuracy acme/sst2@v7 --from bert-base
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    test: TestName,
    /// A version that fails
    #[arg(value_name = "MODEL[@V]")]
    bad: VersionRef,
    /// An ancestor to begin at [default: the model's first version before it]
    #[arg(long, value_name = "MODEL[@V]")]
    from: Option<VersionRef>,
    /// Seconds after which a test has failed
    #[arg(long, value_name = "T", value_parser = seconds)]
    timeout: Option<Duration>,
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    let (repo, mut session) = g.session()?;
    let tests = work!(session, Ask::Tests, Answer::Tests(t) => t)?;
    let test = tests.into_iter().find(|t| t.name == a.test);
    let test = test.with_context(|| format!("no test '{}'; 'mgit test ls' lists them", a.test))?;
    let bad = ask!(session, Request::Resolve(a.bad.clone()), Response::Head(h) => h)?;
    let graph = ask!(session, Request::Graph, Response::Graph(g) => g)?;
    let path = match &a.from {
        None => line(&graph, bad.id),
        Some(from) => {
            let from = ask!(session, Request::Resolve(from.clone()), Response::Head(h) => h)?;
            let edges = graph.edges.iter().map(|e| (graph.nodes[e.from].id, graph.nodes[e.to].id));
            let way = Lineage::from_edges(edges).circle(bad.id, from.id);
            way.with_context(|| format!("{} does not come from {}", label(&bad), label(&from)))?
        }
    };
    let living = ask!(session, Request::List, Response::Heads(h) => h)?;
    let path: Vec<Head> = path.iter().filter_map(|id| living.iter().find(|h| h.id == *id).cloned()).collect();
    let known = recorded(&mut session, &test, &path)?;
    drop(session);
    let mut search = Search { repo, test, path, known, runs: 0, timeout: a.timeout };
    let (bad, good) = search.go()?;
    tell(g, &search, bad, good, &graph)
}

/// A version and its predecessors, oldest first.
fn line(graph: &Graph, id: Id) -> Vec<Id> {
    let mut before = std::collections::HashMap::new();
    before.extend(graph.edges.iter().filter(|e| e.kind == Kind::Version).map(|e| (e.to, e.from)));
    let mut line: Vec<usize> = graph.nodes.iter().position(|n| n.id == id).into_iter().collect();
    while let Some(previous) = line.last().and_then(|n| before.get(n)).filter(|p| !line.contains(p)) {
        line.push(*previous);
    }
    line.iter().rev().map(|n| graph.nodes[*n].id).collect()
}

fn recorded(session: &mut Session, test: &Test, path: &[Head]) -> Result<Vec<Option<Verdict>>> {
    let content = content(test)?;
    let mut results = work!(session, Ask::Results, Answer::Results(r) => r)?;
    results.retain(|r| r.test == test.name && r.content == content);
    let of = |h: &Head| results.iter().find(|r| r.version == h.id).map(|r| r.verdict);
    Ok(path.iter().map(of).collect())
}

struct Search {
    repo: Arc<Repo>,
    test: Test,
    /// Oldest first.
    path: Vec<Head>,
    known: Vec<Option<Verdict>>,
    runs: usize,
    timeout: Option<Duration>,
}

impl Search {
    /// The first that fails, and the last before it that passes.
    fn go(&mut self) -> Result<(usize, Option<usize>)> {
        let bar = out::Bar::counting("bisecting", 1 + (self.path.len().max(1) as f64).log2().ceil() as u64)?;
        let mut mount: Option<(Served, Mutex<Session>)> = None;
        let last = self.path.len().saturating_sub(1);
        loop {
            let n = match next(&self.known) {
                Next::Run(n) => n,
                Next::Found { bad, good } => return Ok((bad, good)),
                Next::Passes => bail!("{} passes on {}: nothing to find", self.test.name, label(&self.path[last])),
                Next::Unclear => bail!("{} cannot tell on {}", self.test.name, label(&self.path[last])),
            };
            if mount.is_none() {
                let (served, session) = Served::open(&self.repo)?;
                mount = Some((served, Mutex::new(session)));
            }
            let (served, session) = mount.as_ref().expect("just mounted");
            let head = &self.path[n];
            let subject = subject(session, served, head)?;
            let result = run_one(&self.repo, &self.test, head.id, &subject, self.timeout, &bar)?;
            self.known[n] = Some(result.verdict);
            self.runs += 1;
            bar.stored(1);
            let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
            session.call(Request::Work(Ask::AddResults(vec![result])))?;
        }
    }
}

fn tell(g: &Global, s: &Search, bad: usize, good: Option<usize>, graph: &Graph) -> Result<ExitCode> {
    let (first, last) = (&s.path[bad], good.map(|n| &s.path[n]));
    let skipped: Vec<&Head> = good.map_or(&s.path[..bad], |n| &s.path[n + 1..bad]).iter().collect();
    let kind = last.and_then(|l| {
        let between =
            |e: &&crate::model::graph::Edge| graph.nodes[e.from].id == l.id && graph.nodes[e.to].id == first.id;
        graph.edges.iter().find(between).map(|e| e.kind)
    });
    let relation = kind.map(|k| match k {
        Kind::Version => "version".to_owned(),
        Kind::Provenance(r) => r.to_string(),
    });
    if g.json {
        let edge = last.map(|l| {
            let mut edge = json!({"parent": out::version(l), "child": out::version(first), "relation": relation});
            if !skipped.is_empty() {
                edge["skipped"] = skipped.iter().map(|h| out::version(h)).collect::<Vec<Value>>().into();
            }
            edge
        });
        out::print_json(
            &json!({"first_bad": out::version(first), "last_good": last.map(out::version), "edge": edge, "runs": s.runs}),
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines = vec![format!("{} fails since {}", s.test.name, label(first))];
    match last {
        Some(l) => {
            let how = relation.map_or(String::new(), |r| format!(" ({r})"));
            lines.push(format!("it passes on {}; the edge from there{how}:", label(l)));
            lines.extend(stat(s, l, first)?.into_iter().map(|l| format!("  {l}")));
        }
        None => lines.push("no version before it passes; --from ANCESTOR looks further up".to_owned()),
    }
    let names = skipped.iter().map(|h| label(h)).collect::<Vec<_>>().join(", ");
    lines.extend(
        (!names.is_empty()).then(|| format!("it may be one of these too, on which the test cannot tell: {names}")),
    );
    lines.push(format!("{} runs", s.runs));
    out::print_lines(lines)?;
    Ok(ExitCode::SUCCESS)
}

/// `mgit diff --stat` of two versions.
fn stat(s: &Search, a: &Head, b: &Head) -> Result<Vec<String>> {
    let bar = out::Bar::new("comparing", false)?;
    let (a, b) = (side::version(&s.repo, a)?, side::version(&s.repo, b)?);
    let report = compare(&a, &b, false, 0, &bar)?;
    bar.done();
    Ok(text::render(&report, true))
}
