//! `mgit merge --method emr`: the unified task vector, and the model of each task.

use std::time::Instant;

use anyhow::Result;
use serde_json::json;
use std::process::ExitCode;

use super::super::import::{Turn, publish};
use super::super::{Global, out};
use super::make::{Place, Task, lines, prepare, report};
use super::{Args, resolve};
use crate::control::Request;
use crate::model::name::{VersionName, VersionRef};
use crate::model::record::{Merge, ParentEdge, Real, Relation};
use crate::repo::Head;
use crate::repo::import::Prepared;
use crate::repo::merge::method::{self, Chosen};
use crate::repo::merge::{Input, Job, Plan, emr};
use crate::repo::origin;

/// What is merged, and into what.
pub struct Models {
    pub parents: Vec<Head>,
    pub base: Option<Head>,
    pub inputs: Vec<Input>,
    pub name: VersionRef,
}

/// Makes all versions, then shows them one after the other.
pub fn run(g: &Global, a: &Args, turn: &mut Turn, m: &Models, mut plan: Plan) -> Result<ExitCode> {
    let start = Instant::now();
    let versions = versions(m)?;
    for v in &versions {
        turn.session()?.call(Request::CheckName(m.name.model.clone(), v.clone()))?;
    }
    turn.release();
    let bar = out::Bar::new(&format!("merging into {}", m.name.model), true)?;
    let jobs: Vec<Job> = plan.jobs().cloned().collect();
    let scales = emr::scales(&m.inputs, &jobs, &bar)?;
    let place = |v: &VersionName| Place { model: m.name.model.clone(), version: v.clone(), previous: None };
    let base = m.base.as_ref().map(|b| b.id);
    let merge = |parameters| Merge { method: "emr".to_owned(), base, parameters };
    let edges = m.parents.iter().map(|h| ParentEdge::new(h.id, Relation::Merge)).collect();
    let task = Task { grams: vec![], parents: m.parents.clone(), base: m.base.clone(), edges, merge: merge(vec![]) };
    let (unified, _) = prepare(a, turn, &task, &place(&versions[0]), (&m.inputs, &mut plan), None, &bar)?;
    turn.repo.refresh()?;
    let mut made: Vec<(Task, Plan, Prepared)> = Vec::new();
    for ((parent, scale), version) in m.parents.iter().zip(&scales).zip(&versions[1..]) {
        let vector = Input::of(&turn.repo, versions[0].to_string(), unified.record.clone())?;
        let heads = [Some(parent), m.base.as_ref()].into_iter().flatten();
        let mut inputs = heads.map(|h| Input::open(&turn.repo, h)).collect::<Result<Vec<_>, _>>()?;
        inputs.insert(1, vector);
        let mut plan = method::plan(&inputs, &Chosen::emr_model(*scale), &[])?;
        let edge = ParentEdge { coefficient: Some(Real(*scale)), ..ParentEdge::new(unified.id, Relation::Merge) };
        let edges = vec![ParentEdge::new(parent.id, Relation::Merge), edge];
        let parents = vec![parent.clone()];
        let task =
            Task { grams: vec![], parents, base: m.base.clone(), edges, merge: merge(vec![format!("scale={scale}")]) };
        let (prepared, _) = prepare(a, turn, &task, &place(version), (&inputs, &mut plan), None, &bar)?;
        made.push((task, plan, prepared));
    }
    bar.done();
    let unified = publish(turn, unified, &[], false)?;
    let name = VersionRef { model: m.name.model.clone(), version: Some(versions[0].clone()) };
    let vector = resolve(turn.session()?, &name)?;
    let (mut reports, mut told) = (vec![], lines(&task, &unified, None, start.elapsed().as_secs_f64()));
    for (mut task, plan, prepared) in made {
        let prepared = publish(turn, prepared, &[], false)?;
        task.parents.push(vector.clone());
        let seconds = start.elapsed().as_secs_f64();
        reports.push(report(&task, &plan, &prepared, None, seconds));
        told.extend(lines(&task, &prepared, None, seconds));
    }
    origin::remember(&turn.repo.clone(), turn, &bar);
    let unified = report(&task, &plan, &unified, None, start.elapsed().as_secs_f64());
    match g.json {
        true => out::print_json(&json!({"outcome": "none", "unified": unified, "models": reports}))?,
        false => out::print_lines(told)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// `unified`, then one for each parent, named after its model; all after the version that was asked for, if one was.
fn versions(m: &Models) -> Result<Vec<VersionName>> {
    let short = |h: &Head| h.model.as_str().rsplit('/').next().unwrap_or_default().to_owned();
    let shorts: Vec<String> = m.parents.iter().map(short).collect();
    let mut names = vec!["unified".to_owned()];
    for (h, name) in m.parents.iter().zip(&shorts) {
        let alone = *name != "unified" && shorts.iter().filter(|s| *s == name).count() == 1;
        names.push(if alone { name.clone() } else { format!("{name}-{}", h.version) });
    }
    let prefix = m.name.version.iter().map(|v| format!("{v}-")).collect::<String>();
    let parse = |n: &String| Ok(format!("{prefix}{n}").parse()?);
    let names: Vec<VersionName> = names.iter().map(parse).collect::<Result<_>>()?;
    let twice = names.iter().enumerate().find(|(i, n)| names[..*i].contains(n));
    anyhow::ensure!(twice.is_none(), "a version is named twice: {}", super::names(&m.parents));
    Ok(names)
}
