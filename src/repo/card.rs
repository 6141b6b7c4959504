//! What a version's card in the mount says, and the drawings of all: texts, made when they are asked for from one state of
//! the catalog.
//!
//! Whoever lists a card asks how long its texts are, so making one must be cheap. That is why a difference here is one of
//! structure only: `mgit diff` reads the tensors of two models, and a listing of a thousand cards would read them all.
//!
//! A text never fails for what is damaged: it says so itself, for a listing must not fail because of one version.
//! Times are written in full: a text that says `3 hours ago` would soon be wrong.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use serde_json::Value;

use super::RepoError;
use super::charge::Charges;
use super::diff::side::Side;
use super::diff::{outline::outline, structure};
use super::engine::Engine;
use super::graph::{bare, charge, stored};
use super::log::{Facts, Row, lines, origin};
use super::show;
use crate::model::graph::{Edge, Graph, Kind};
use crate::model::id::Id;
use crate::model::record::VersionRecord;
use crate::model::table;

/// Versions in a log, the nearest: all logs of a long line take its length times this at most.
const MAX_LOG: usize = 1000;
/// Rows of logs that are held: all logs are made of the same ones.
const MAX_ROWS: usize = 1 << 14;
/// Bytes of texts of differences that are held.
const DIFFS: u64 = 4 << 20;
/// Larger files are not compared line by line: a listing must not wait for it.
const MAX_TEXT: u64 = 64 << 10;

/// Differences by the ids of the two versions: they stay true for good.
pub struct Diffs(Cache<(Id, Id), Arc<str>, ByBytes>);

#[derive(Clone)]
struct ByBytes;

impl Weighter<(Id, Id), Arc<str>> for ByBytes {
    fn weight(&self, _: &(Id, Id), text: &Arc<str>) -> u64 {
        text.len() as u64 + 128
    }
}

impl Default for Diffs {
    fn default() -> Diffs {
        Diffs(Cache::with_weighter(1024, DIFFS, ByBytes))
    }
}

/// The texts of one state of the catalog.
pub struct Cards {
    engine: Arc<Engine>,
    charges: Arc<Charges>,
    diffs: Arc<Diffs>,
    /// Without what versions cost.
    graph: Arc<Graph>,
    place: HashMap<Id, usize>,
    /// Of each version, what it comes from, in the order of the edges.
    above: Vec<Vec<Edge>>,
    rows: Cache<usize, Arc<Row>>,
}

impl Cards {
    pub fn new(engine: Arc<Engine>, charges: Arc<Charges>, diffs: Arc<Diffs>) -> Result<Cards, RepoError> {
        let (graph, unknown) = bare(&engine)?;
        if !unknown.is_empty() {
            log::warn!("{} edges lead to what never was committed; they are left out", unknown.len());
        }
        let mut above = vec![Vec::new(); graph.nodes.len()];
        graph.edges.iter().for_each(|e| above[e.to].push(*e));
        let place = graph.nodes.iter().enumerate().map(|(n, node)| (node.id, n)).collect();
        Ok(Cards { engine, charges, diffs, graph: Arc::new(graph), place, above, rows: Cache::new(MAX_ROWS) })
    }

    /// All versions and edges, without what they cost.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// All versions and edges.
    pub fn charged(&self) -> Graph {
        let mut graph = (*self.graph).clone();
        charge(&mut graph, &self.charges);
        graph
    }

    /// What `mgit show --json` prints; of a removed version, as far as it is still known.
    pub fn info(&self, id: &Id) -> Result<String, RepoError> {
        let head = self.engine.catalog().by_id(id)?.ok_or_else(|| unknown(id))?;
        let detail = self.engine.detail_of(head)?;
        let (record, mut error) = told(self.engine.repo.record(id), || VersionRecord {
            model: detail.head.model.clone(),
            version: detail.head.version.clone(),
            created: detail.head.created,
            message: String::new(),
            previous: detail.head.previous,
            parents: vec![],
            origin: None,
            merge: None,
            lossy: None,
            files: vec![],
        });
        let none = || Arc::new(vec![0; record.files.len()]);
        let (charges, uncharged) = match error {
            None => told(self.charges.of_version(id), none),
            Some(_) => (none(), None),
        };
        let mut value = show::as_json(&detail, &record, &charges);
        error = error.or(uncharged);
        if let Some(map) = value.as_object_mut() {
            if detail.head.removed {
                map.insert("removed".to_owned(), Value::Bool(true));
            } else if let Some(e) = error {
                map.insert("error".to_owned(), Value::String(e));
            }
        }
        Ok(format!("{value:#}\n"))
    }

    /// How the structure differs from the first parent's, else from the previous version's. That needs records,
    /// recipes and headers only: no tensor is read.
    pub fn diff(&self, id: &Id) -> Result<Arc<str>, RepoError> {
        let n = *self.place.get(id).ok_or_else(|| unknown(id))?;
        let made = self.above[n].iter().find(|e| e.kind != Kind::Version);
        let Some(&Edge { from, .. }) = made.or(self.above[n].first()) else {
            return Ok("nothing to compare with: no parent, no previous version\n".into());
        };
        let key = (self.graph.nodes[from].id, *id);
        if let Some(text) = self.diffs.0.get(&key) {
            return Ok(text);
        }
        let (a, b) = (&self.graph.nodes[from].label, &self.graph.nodes[n].label);
        let text: Arc<str> = match self.compared(&key.0, &key.1) {
            Ok(lines) => {
                let last = format!("'mgit diff {a} {b}' reads the tensors and tells how much they changed");
                joined([format!("{a} -> {b}"), String::new()].into_iter().chain(lines).chain([String::new(), last]))
            }
            // Not kept: it may come back.
            Err(e) => return Ok(format!("{a} -> {b} cannot be compared: {e}\n").into()),
        }
        .into();
        self.diffs.0.insert(key, text.clone());
        Ok(text)
    }

    fn compared(&self, a: &Id, b: &Id) -> Result<Vec<String>, RepoError> {
        let repo = &self.engine.repo;
        let side = |id| Side::of_version(repo, &repo.record(id)?);
        Ok(outline(&structure(&side(a)?, &side(b)?, MAX_TEXT)?))
    }

    /// What `mgit log` prints, with times in full, of the nearest [`MAX_LOG`] versions.
    pub fn log(&self, id: &Id) -> Result<String, RepoError> {
        let n = *self.place.get(id).ok_or_else(|| unknown(id))?;
        let (mut order, more) = self.nearest(n);
        order.sort_unstable_by(|a, b| b.cmp(a));
        let rows: Vec<Arc<Row>> = order.into_iter().map(|n| self.row(n)).collect();
        let mut lines = lines(rows.iter().map(|r| &**r), &table::plain);
        if more {
            lines.push(format!("older ones are left out; 'mgit log {}' tells all", self.graph.nodes[n].label));
        }
        Ok(joined(lines.into_iter()))
    }

    /// The version and the nearest that it comes from, and whether there are more.
    fn nearest(&self, n: usize) -> (Vec<usize>, bool) {
        let (mut order, mut seen, mut at) = (vec![n], HashSet::from([n]), 0);
        while at < order.len() && order.len() <= MAX_LOG {
            let next = self.above[order[at]].iter().map(|e| e.from);
            order.extend(next.filter(|from| seen.insert(*from)));
            at += 1;
        }
        let more = order.len() > MAX_LOG;
        order.truncate(MAX_LOG);
        (order, more)
    }

    fn row(&self, n: usize) -> Arc<Row> {
        if let Some(row) = self.rows.get(&n) {
            return row;
        }
        let node = &self.graph.nodes[n];
        let row = Arc::new(Row::new(Facts {
            label: node.label.clone(),
            short_id: node.id.short(),
            created: node.created.strftime("%Y-%m-%d %H:%M:%S").to_string(),
            logical: node.logical,
            stored: if node.removed { None } else { stored(&self.charges, &node.id) },
            removed: node.removed,
            origin: self.origin(n),
            message: self.engine.repo.record(&node.id).map(|r| r.message).unwrap_or_default(),
        }));
        self.rows.insert(n, row.clone());
        row
    }

    fn origin(&self, n: usize) -> String {
        let above = || self.above[n].iter().map(|e| (&self.graph.nodes[e.from], e));
        let made = above().filter_map(|(node, e)| match e.kind {
            Kind::Provenance(relation) => Some((node.label.clone(), relation, e.guess)),
            Kind::Version => None,
        });
        origin(made, above().filter(|a| a.1.kind == Kind::Version).map(|a| a.0.version.as_str()))
    }
}

fn joined(lines: impl Iterator<Item = String>) -> String {
    lines.map(|l| l + "\n").collect()
}

fn unknown(id: &Id) -> RepoError {
    RepoError::refused(format!("version {id} never was committed"))
}

/// What was read, or what stands for it and why it could not be.
fn told<T>(read: Result<T, RepoError>, otherwise: impl FnOnce() -> T) -> (T, Option<String>) {
    read.map_or_else(|e| (otherwise(), Some(e.to_string())), |value| (value, None))
}
