//! `mgit log`

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Global, out};
use crate::ask;
use crate::control::{Request, Response, Session};
use crate::model::graph::{Graph, Kind, json as graph_json, text};
use crate::model::name::VersionRef;
use crate::repo::charge::Charges;
use crate::repo::engine::{Detail, label};
use crate::repo::{Repo, log};

/// Widest drawing beside which the lines are aligned.
const ALIGNED: usize = 32;

/// Show a version and all that it comes from, newest first
///
/// Without a version: all versions of the repository.
#[derive(clap::Args)]
pub struct Args {
    version: Option<VersionRef>,
    /// Draw how versions come from each other
    #[arg(long)]
    graph: bool,
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    let (repo, mut session) = g.session()?;
    if a.graph {
        let graph = above(&mut session, a.version.as_ref())?;
        match g.json {
            true => out::print_json(&graph_json::value(&graph))?,
            false => out::print_lines(drawn(&graph))?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let details = ask!(session, Request::History(a.version.clone()), Response::Details(d) => d)?;
    if g.json {
        out::print_json(&json!({"versions": details.iter().map(|d| as_json(&repo, d)).collect::<Vec<_>>()}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let living = ask!(session, Request::List, Response::Heads(h) => h)?;
    drop(session);
    out::print_lines(as_text(&repo, &details, &Charges::new(repo.clone(), living)))?;
    Ok(ExitCode::SUCCESS)
}

/// The version, or all that live, and what they come from.
fn above(session: &mut Session, version: Option<&VersionRef>) -> Result<Graph> {
    let graph = ask!(session, Request::Graph, Response::Graph(g) => g)?;
    let Some(version) = version else { return Ok(graph.above(|n| !n.removed)) };
    let head = ask!(session, Request::Resolve(version.clone()), Response::Head(h) => h)?;
    Ok(graph.above(|n| n.id == head.id))
}

/// The drawing, with a line of a table beside each star.
fn drawn(graph: &Graph) -> Vec<String> {
    let order = graph.newest_first();
    let mut place = vec![0; order.len()];
    order.iter().enumerate().for_each(|(i, &n)| place[n] = i);
    let all = graph.parents();
    let parents: Vec<Vec<usize>> = order.iter().map(|&n| all[n].iter().map(|&p| place[p]).collect()).collect();
    let kinds = kinds(graph);
    let rows: Vec<_> = order.iter().map(|&n| cells(graph, n, &kinds[n])).collect();
    let heads = ["VERSION", "ID", "RELATION", "CREATED", ">SIZE", ">STORED", ">SAVED"];
    let table = out::table(&heads, &rows);
    let lines = text::draw(&parents);
    let width = lines.iter().map(|l| l.drawing.len()).max().unwrap_or(0).min(ALIGNED);
    let line = |l: text::Line| match l.node {
        Some(i) => format!("{:width$}  {}", l.drawing, table[i + 1]),
        None => l.drawing,
    };
    lines.into_iter().map(line).collect()
}

/// Of each node, how it came to be: the relations to its parents, else that it follows another.
fn kinds(graph: &Graph) -> Vec<Vec<Kind>> {
    let mut kinds = vec![Vec::new(); graph.nodes.len()];
    for e in &graph.edges {
        if !kinds[e.to].contains(&e.kind) {
            kinds[e.to].push(e.kind);
        }
    }
    for k in &mut kinds {
        if k.len() > 1 {
            k.retain(|k| *k != Kind::Version);
        }
    }
    kinds
}

fn cells(graph: &Graph, n: usize, kinds: &[Kind]) -> Vec<String> {
    let node = &graph.nodes[n];
    let relation = kinds.iter().map(|k| k.as_str()).collect::<Vec<_>>().join(", ");
    let mut cells = vec![node.label.clone(), node.id.short(), relation, out::ago(node.created)];
    cells.extend(log::cells_of_costs(node.logical, node.stored, node.removed));
    cells
}

/// A table with each version's message below its row.
fn as_text(repo: &Arc<Repo>, details: &[Detail], charges: &Charges) -> Vec<String> {
    let heads: Vec<_> = details.iter().map(|d| &d.head).collect();
    let row = |(d, (stored, message)): (&Detail, (Option<u64>, String))| {
        let h = &d.head;
        log::Row::new(log::Facts {
            label: label(h),
            short_id: h.id.short(),
            created: out::ago(h.created),
            logical: h.bytes,
            stored,
            removed: h.removed,
            origin: origin(d),
            message,
        })
    };
    let rows: Vec<_> = details.iter().zip(log::stored_and_messages(repo, &heads, charges)).map(row).collect();
    match rows.is_empty() {
        true => vec!["no versions yet; 'mgit import DIR' stores one".to_owned()],
        false => log::lines(rows.iter(), &out::paint),
    }
}

fn origin(d: &Detail) -> String {
    let parents = d.parents.iter().map(|(parent, e)| (label(parent), e.relation, e.guess));
    log::origin(parents, d.previous.iter().map(|p| p.version.as_str()))
}

fn as_json(repo: &Arc<Repo>, d: &Detail) -> Value {
    json!({
        "model": d.head.model, "version": d.head.version, "id": d.head.id, "created": d.head.created,
        "message": log::message(repo, &d.head), "removed": d.head.removed, "logical_bytes": d.head.bytes,
        "parents": d.parents.iter().map(out::parent).collect::<Vec<_>>(),
        "previous": d.previous.as_ref().map(out::version),
    })
}
