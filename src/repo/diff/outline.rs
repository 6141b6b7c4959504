//! A report of [`structure`](super::structure) as lines for people: what was added, removed, renamed and reshaped, and how
//! many tensors of each layer changed. How much they changed such a report does not know, so no figure of it is shown.

use super::text::{align, counts, file_changes, groups, rows, summary};
use super::{Report, TensorInfo};
use crate::model::name::printable;

/// Tensors that are named.
const MAX_NAMED: usize = 500;

/// The summary, each layer's counts with the tensors that did more than change their values, and the files.
pub fn outline(report: &Report) -> Vec<String> {
    let rows = rows(report);
    let mut lines = vec![summary(report)];
    let mut cells = vec![["TENSOR", "", "", ""].map(str::to_owned).to_vec()];
    let mut named = 0;
    for (group, rows) in &groups(&rows) {
        cells.push(vec![printable(group), String::new(), counts(rows).join(", "), String::new()]);
        let telling = rows.iter().filter(|r| r.what != "changed" || !r.was.is_empty());
        for row in telling {
            named += 1;
            if named <= MAX_NAMED {
                cells.push(vec![name(row.tensor), form(row.tensor), row.what.to_owned(), row.was.clone()]);
            }
        }
    }
    if cells.len() > 1 {
        lines.push(String::new());
        lines.extend(align(&cells));
    }
    if named > MAX_NAMED {
        lines.push(format!("  and {} more", named - MAX_NAMED));
    }
    let files = file_changes(report, false);
    if !files.is_empty() {
        lines.push(String::new());
        lines.extend(files);
    }
    lines
}

fn name(t: &TensorInfo) -> String {
    format!("  {}", printable(&t.name))
}

fn form(t: &TensorInfo) -> String {
    format!("{} {:?}", printable(&t.dtype), t.shape)
}
