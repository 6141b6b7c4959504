//! Carries a plan out: computes, stores, publishes, tells.

use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::super::import::{Turn, publish};
use super::super::{Global, out};
use super::gate::{self, Gate};
use super::{Args, names};
use crate::ask;
use crate::control::{Request, Response, Session};
use crate::model::name::{ModelName, VersionName, VersionRef, printable};
use crate::model::record::{Merge, ParentEdge};
use crate::model::test::TestResult;
use crate::repo::Head;
use crate::repo::diff::side::Side;
use crate::repo::engine::label;
use crate::repo::import::{ImportSpec, Prepared, prepare_merged};
use crate::repo::merge::write::{self, Means};
use crate::repo::merge::{Input, Note, Outcome, Plan};
use crate::repo::origin;
use crate::repo::progress::Progress;
use crate::repo::work::Ask;

/// What is to be made of what.
pub struct Task {
    pub grams: Vec<Side>,
    pub parents: Vec<Head>,
    pub base: Option<Head>,
    pub edges: Vec<ParentEdge>,
    pub merge: Merge,
}

/// Where the result goes.
pub struct Place {
    pub model: ModelName,
    pub version: VersionName,
    pub previous: Option<Head>,
}

fn plan_json(plan: &Plan) -> Value {
    json!({"outcome": plan.outcome, "tensors": plan.tensors, "files": plan.files})
}

/// Prints what would be done.
pub fn tell_plan(g: &Global, plan: &Plan, what: &str) -> Result<()> {
    if g.json {
        return Ok(out::print_json(&plan_json(plan))?);
    }
    let word = |o: Outcome| match o {
        Outcome::None => "no conflict",
        Outcome::Possible => "possible conflict",
        Outcome::Conflict => "conflict",
    };
    let mut lines = vec![format!("{what}: {}", word(plan.outcome))];
    let row = |n: &Note| {
        let outcome = if n.outcome == Outcome::None { "" } else { word(n.outcome) };
        vec![printable(&n.name), out::harmless(&n.change), outcome.to_owned()]
    };
    for (head, notes) in [("TENSOR", &plan.tensors), ("FILE", &plan.files)] {
        if !notes.is_empty() {
            lines.push(String::new());
            lines.extend(out::table(&[head, "CHANGE", "OUTCOME"], &notes.iter().map(row).collect::<Vec<_>>()));
        }
    }
    Ok(out::print_lines(lines)?)
}

/// Computes, puts it to the gate if there is one, and seals; nobody sees it yet.
pub fn prepare(
    a: &Args,
    turn: &Turn,
    task: &Task,
    place: &Place,
    (inputs, plan): (&[Input], &mut Plan),
    gate: Option<&Gate>,
    bar: &out::Bar,
) -> Result<(Prepared, Vec<TestResult>)> {
    ensure!(!plan.outputs.is_empty(), "nothing would be left of the model");
    bar.expect(write::bytes(&plan.outputs));
    let means = Means { dir: &turn.repo.dir, driver: a.driver.as_deref(), grams: &task.grams, progress: bar };
    let written = write::write(&means, inputs, &mut plan.outputs)?;
    let results = match gate {
        Some(gate) => gate::pass(gate, &turn.repo, task, place, (&plan.outputs, &written), bar)?,
        None => vec![],
    };
    let spec = ImportSpec {
        model: place.model.clone(),
        version: place.version.clone(),
        parents: task.edges.clone(),
        previous: place.previous.as_ref().map(|h| h.id),
        guess: false,
        told: false,
        origin: None,
        near: task.base.iter().map(|b| b.id).collect(),
        message: a.message.clone(),
        effort: a.effort.into(),
        lossy: None,
    };
    Ok((prepare_merged(&turn.repo, &spec, &written.hashed, Some(&task.merge), bar)?, results))
}

/// Carries the plan out and makes the result visible.
pub fn make(
    g: &Global,
    a: &Args,
    turn: &mut Turn,
    task: &Task,
    name: &VersionRef,
    (inputs, mut plan): (&[Input], Plan),
    gate: Option<&Gate>,
) -> Result<Prepared> {
    let start = Instant::now();
    let place = place(turn.session()?, name)?;
    turn.release();
    let bar = out::Bar::new(&format!("merging into {}", name.model), true)?;
    let (prepared, results) = prepare(a, turn, task, &place, (inputs, &mut plan), gate, &bar)?;
    bar.done();
    let prepared = publish(turn, prepared, &[], name.version.is_none())?;
    if !results.is_empty() {
        let results = results.into_iter().map(|r| TestResult { version: prepared.id, ..r }).collect();
        turn.session()?.call(Request::Work(Ask::AddResults(results)))?;
    }
    origin::remember(&turn.repo.clone(), turn, &bar);
    let seconds = start.elapsed().as_secs_f64();
    match g.json {
        true => out::print_json(&report(task, &plan, &prepared, place.previous.as_ref(), seconds))?,
        false => out::print_lines(lines(task, &prepared, place.previous.as_ref(), seconds))?,
    }
    Ok(prepared)
}

/// The version's name, and its predecessor.
pub fn place(session: &mut Session, name: &VersionRef) -> Result<Place> {
    let version = match &name.version {
        Some(v) => v.clone(),
        None => ask!(session, Request::NextName(name.model.clone()), Response::Name(v) => v)?,
    };
    let newest = VersionRef { model: name.model.clone(), version: None };
    let previous = match session.call(Request::Resolve(newest)) {
        Ok(Response::Head(head)) => Some(head),
        _ => None,
    };
    Ok(Place { model: name.model.clone(), version, previous })
}

/// What was made, as JSON.
pub fn report(task: &Task, plan: &Plan, p: &Prepared, previous: Option<&Head>, seconds: f64) -> Value {
    let related = |(h, e): (&Head, &ParentEdge)| out::parent(&(h.clone(), *e));
    let mut value = json!({
        "model": p.record.model, "version": p.record.version, "id": p.id,
        "parents": task.parents.iter().zip(&task.edges).map(related).collect::<Vec<_>>(),
        "previous": previous.map(out::version),
        "merge": p.record.merge,
        "logical_bytes": p.record.logical_bytes(), "new_stored_bytes": p.new_stored_bytes,
        "seconds": (seconds * 1000.0).round() / 1000.0,
    });
    if let (Value::Object(value), Value::Object(plan)) = (&mut value, plan_json(plan)) {
        value.extend(plan);
    }
    value
}

/// What was made, for people.
pub fn lines(task: &Task, p: &Prepared, previous: Option<&Head>, seconds: f64) -> Vec<String> {
    let logical = p.record.logical_bytes();
    let share = 100.0 * p.new_stored_bytes as f64 / logical.max(1) as f64;
    let (raw, new) = (out::size(logical), out::size(p.new_stored_bytes));
    let first =
        format!("{}@{}  {raw} stored in {new} ({share:.1} %), {seconds:.1} s", p.record.model, p.record.version);
    let from = task.base.as_ref().map(|b| format!(", from {}", label(b))).unwrap_or_default();
    let mut lines = vec![first, format!("  {} of {}{from}", task.merge.method, names(&task.parents))];
    lines.extend(previous.map(|h| format!("  after {}", label(h))));
    lines
}
