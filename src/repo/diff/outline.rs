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

#[cfg(test)]
mod tests {
    use super::super::measure::Metrics;
    use super::super::{Change, Changed, FileChange, Pair};
    use super::*;

    fn tensor(name: &str) -> TensorInfo {
        TensorInfo { name: name.to_owned(), dtype: "F32".to_owned(), shape: vec![4] }
    }

    #[test]
    fn layers_are_counted_and_what_did_more_than_change_is_named() {
        let changed = |name: &str| Changed { to: tensor(name), metrics: Metrics::UNKNOWN, from: None };
        let report = Report {
            added: vec![tensor("head.weight")],
            removed: vec![],
            reshaped: vec![],
            renamed: vec![Pair { from: tensor("a.b"), to: tensor("c.\u{1b}b") }],
            unchanged: vec![tensor("same")],
            changed: (0..12).map(|n| changed(&format!("l.{n}.attention.q"))).collect(),
            files: vec![FileChange { path: "c.json".into(), change: Change::Changed, lines: vec!["-a".into()] }],
        };
        let want = [
            "15 tensors: 12 changed, 1 renamed, 1 added, 1 unchanged; 1 file changed",
            "",
            "TENSOR",
            "c                         1 renamed",
            "  c.\\u{1b}b    F32 [4]  renamed     was a.b",
            "head                      1 added",
            "  head.weight  F32 [4]  added",
            "l.*.attention             12 changed",
            "",
            "changed c.json",
            "-a",
        ];
        let plain = |lines: &[String]| {
            lines.iter().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(plain(&outline(&report)), plain(&want.map(str::to_owned)));
        let many = Report { added: (0..600).map(|n| tensor(&format!("t{n}.w"))).collect(), ..report };
        assert!(outline(&many).contains(&"  and 101 more".to_owned()));
    }
}
