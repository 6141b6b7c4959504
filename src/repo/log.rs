//! The lines of a log, as `mgit log` prints them and the mount has them: a table, newest first, with each version's
//! message below its row. When something was, and how it is painted, the caller says.

use std::sync::Arc;

use rayon::prelude::*;

use super::charge::Charges;
use super::graph::stored;
use super::{Head, Repo};
use crate::model::record::Relation;
use crate::model::table::{Paint, costs, harmless, table};

/// What stands above the columns.
const HEADS: [&str; 7] = ["VERSION", "ID", "CREATED", ">SIZE", ">STORED", ">SAVED", "FROM"];

/// A version in a log.
pub struct Row {
    cells: Vec<String>,
    message: String,
}

/// What a row tells.
pub struct Facts {
    /// `model@version`.
    pub label: String,
    pub short_id: String,
    pub created: String,
    pub logical: u64,
    /// `None` where it cannot be read.
    pub stored: Option<u64>,
    pub removed: bool,
    /// How it came to be.
    pub origin: String,
    pub message: String,
}

/// The message of a version; a damaged record has none to tell.
pub fn message(repo: &Repo, head: &Head) -> String {
    repo.record(&head.id).map(|r| r.message).unwrap_or_default()
}

/// What the packs know of each version: the bytes that it is charged, where that can be read, and its message.
pub fn stored_and_messages(repo: &Arc<Repo>, heads: &[&Head], charges: &Charges) -> Vec<(Option<u64>, String)> {
    heads.par_iter().map(|h| (if h.removed { None } else { stored(charges, &h.id) }, message(repo, h))).collect()
}

impl Row {
    pub fn new(f: Facts) -> Row {
        let mut cells = vec![f.label, f.short_id, f.created];
        cells.extend(cells_of_costs(f.logical, f.stored, f.removed));
        cells.push(f.origin);
        Row { cells, message: f.message }
    }
}

/// What was removed takes nothing, and its cell says so.
pub fn cells_of_costs(logical: u64, stored: Option<u64>, removed: bool) -> [String; 3] {
    let [size, stored, saved] = costs(logical, stored);
    if removed { [size, "removed".to_owned(), String::new()] } else { [size, stored, saved] }
}

/// `finetune of base@v1, after v1`. Each parent with its relation, and whether the direction is a guess.
pub fn origin<'a>(
    parents: impl Iterator<Item = (String, Relation, bool)>,
    previous: impl Iterator<Item = &'a str>,
) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut last = None;
    for (parent, relation, guess) in parents {
        let guess = if guess { " (direction is a guess)" } else { "" };
        match last == Some(relation) {
            true => parts.push(format!("{parent}{guess}")),
            false => parts.push(format!("{relation} of {parent}{guess}")),
        }
        last = Some(relation);
    }
    parts.extend(previous.map(|p| format!("after {p}")));
    parts.join(", ")
}

/// The log of these rows.
pub fn lines<'r>(rows: impl Iterator<Item = &'r Row> + Clone, paint: &Paint) -> Vec<String> {
    let mut table = table(&HEADS, rows.clone().map(|r| r.cells.as_slice()), paint).into_iter();
    let mut lines: Vec<String> = table.next().into_iter().collect();
    for (line, row) in table.zip(rows) {
        lines.push(line);
        lines.extend(row.message.lines().map(|l| format!("    {}", paint(Some("MESSAGE"), &harmless(l)))));
    }
    lines
}
