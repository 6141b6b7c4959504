//! A report as lines for people: a summary, the tensors grouped by layer in aligned columns, the files' unified diffs.
//!
//! Names and file contents come from anywhere: nothing in them reaches a terminal as a control character.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use similar::TextDiff;

use super::super::RepoError;
use super::measure::Metrics;
use super::side::SideFile;
use super::{Change, FileChange, Report, TensorInfo};
use crate::model::name::printable;

/// Larger files are not shown line by line.
pub const MAX_TEXT: u64 = 1 << 20;
/// How long a diff may be looked for before a longer one will do.
const PATIENCE: Duration = Duration::from_millis(500);

/// One row: a tensor that is not the same on both sides.
pub(super) struct Row<'r> {
    pub tensor: &'r TensorInfo,
    pub what: &'static str,
    metrics: Option<Metrics>,
    pub was: String,
}

/// One line: `103 tensors: 98 changed, 3 renamed, 2 added; 2 files changed`.
pub fn summary(report: &Report) -> String {
    let rows = rows(report);
    let renamed = report.changed.iter().filter(|c| c.from.as_ref().is_some_and(|f| f.name != c.to.name)).count();
    let mut parts = counts(&rows.iter().collect::<Vec<_>>());
    if renamed > 0 {
        parts[0] += &format!(" ({renamed} of them under another name)");
    }
    match report.unchanged.len() {
        0 => {}
        n if parts.is_empty() => parts.push(if n == 1 { "unchanged".to_owned() } else { "all unchanged".to_owned() }),
        n => parts.push(format!("{n} unchanged")),
    }
    let tensors = rows.len() + report.unchanged.len();
    let tensors = match tensors {
        0 => "no tensors".to_owned(),
        1 => format!("1 tensor: {}", parts.join(", ")),
        n => format!("{n} tensors: {}", parts.join(", ")),
    };
    match file_counts(&report.files) {
        files if files.is_empty() => tensors,
        files => format!("{tensors}; {}", files.join(", ")),
    }
}

/// `2 files changed`, `1 added`.
fn file_counts(files: &[FileChange]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for change in [Change::Changed, Change::Added, Change::Removed] {
        let noun = |n| if n == 1 { " file" } else { " files" };
        match files.iter().filter(|f| f.change == change).count() {
            0 => {}
            n => out.push(format!("{n}{} {}", if out.is_empty() { noun(n) } else { "" }, change.as_str())),
        }
    }
    out
}

/// How many rows of each kind, in one order.
pub(super) fn counts(rows: &[&Row]) -> Vec<String> {
    let of = |what: &str| rows.iter().filter(|r| r.what == what).count();
    let kinds = ["changed", "renamed", "reshaped", "added", "removed"].map(|w| (w, of(w)));
    kinds.iter().filter(|k| k.1 > 0).map(|(what, n)| format!("{n} {what}")).collect()
}

/// The whole report; with `stat` its summary, its groups and the names of the files only.
pub fn render(report: &Report, stat: bool) -> Vec<String> {
    let mut lines = vec![summary(report)];
    let table = tensor_table(report, stat);
    if !table.is_empty() {
        lines.push(String::new());
        lines.extend(table);
    }
    if !report.files.is_empty() {
        lines.push(String::new());
    }
    lines.extend(file_changes(report, stat));
    lines
}

/// What became of each file; but with `stat`, its lines.
pub(super) fn file_changes(report: &Report, stat: bool) -> Vec<String> {
    let mut lines = vec![];
    for FileChange { path, change, lines: text } in &report.files {
        lines.push(format!("{} {}", change.as_str(), printable(path)));
        lines.extend(text.iter().filter(|_| !stat).cloned());
    }
    lines
}

fn tensor_table(report: &Report, stat: bool) -> Vec<String> {
    let rows = rows(report);
    if rows.is_empty() {
        return vec![];
    }
    let heads = ["TENSOR", "", "", ">CHANGED", ">REL L2", ">MAX ABS", ">COSINE", ">ZEROS", ""];
    let mut cells = vec![heads.map(str::to_owned).to_vec()];
    for (group, rows) in &groups(&rows) {
        cells.push(group_cells(group, rows));
        if !stat {
            cells.extend(rows.iter().map(|r| tensor_cells(r)));
        }
    }
    align(&cells)
}

/// The rows of each layer, in the order of their first.
pub(super) fn groups<'a, 'r>(rows: &'a [Row<'r>]) -> Vec<(String, Vec<&'a Row<'r>>)> {
    let mut order: Vec<(String, Vec<&Row>)> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for row in rows {
        let group = group(&row.tensor.name);
        let at = *places.entry(group.clone()).or_insert_with(|| {
            order.push((group, vec![]));
            order.len() - 1
        });
        order[at].1.push(row);
    }
    order
}

fn tensor_cells(row: &Row) -> Vec<String> {
    let m = row.metrics;
    let zeros = m.and_then(|m| Some((m.sparsity_a?, m.sparsity_b?)));
    vec![
        format!("  {}", printable(&row.tensor.name)),
        format!("{} {:?}", printable(&row.tensor.dtype), row.tensor.shape),
        row.what.to_owned(),
        m.map_or_else(String::new, |m| percent(m.changed_fraction)),
        figure(m.and_then(|m| m.rel_l2)),
        figure(m.and_then(|m| m.max_abs)),
        cosine(m.and_then(|m| m.cosine)),
        zeros.map_or_else(
            String::new,
            |(a, b)| if a == b { percent(b) } else { format!("{} -> {}", percent(a), percent(b)) },
        ),
        row.was.clone(),
    ]
}

/// Of all its tensors together: the share changed, the largest distances, the smallest cosine.
fn group_cells(group: &str, rows: &[&Row]) -> Vec<String> {
    let measured: Vec<(f64, Metrics)> = rows.iter().filter_map(|r| Some((elements(r.tensor), r.metrics?))).collect();
    let total: f64 = measured.iter().map(|m| m.0).sum();
    let changed: f64 = measured.iter().map(|m| m.0 * m.1.changed_fraction).sum();
    let most = |of: fn(&Metrics) -> Option<f64>| measured.iter().filter_map(|m| of(&m.1)).reduce(f64::max);
    let least = measured.iter().filter_map(|m| m.1.cosine).reduce(f64::min);
    vec![
        printable(group),
        String::new(),
        counts(rows).join(", "),
        if measured.is_empty() { String::new() } else { percent(changed / total.max(1.0)) },
        figure(most(|m| m.rel_l2)),
        figure(most(|m| m.max_abs)),
        cosine(least),
        String::new(),
        String::new(),
    ]
}

fn elements(t: &TensorInfo) -> f64 {
    t.shape.iter().map(|&d| d as f64).product()
}

fn percent(share: f64) -> String {
    let p = 100.0 * share;
    // What is not quite nothing, or not quite all, must not look so.
    let digits = if p > 0.0 && p < 0.1 || p < 100.0 && p > 99.9 { 4 } else { 1 };
    format!("{p:.digits$} %")
}

fn figure(v: Option<f64>) -> String {
    v.map_or_else(String::new, |v| if v == 0.0 { "0".to_owned() } else { format!("{v:.2e}") })
}

fn cosine(v: Option<f64>) -> String {
    v.map_or_else(String::new, |v| format!("{v:.5}"))
}

/// In the natural order of the names, so that layer 10 comes after layer 9.
pub(super) fn rows(report: &Report) -> Vec<Row<'_>> {
    let row = |tensor, what, metrics, was| Row { tensor, what, metrics, was };
    let mut rows: Vec<Row> = Vec::new();
    let mut in_changed = BTreeSet::new();
    for c in &report.changed {
        let was = c.from.as_ref().map_or_else(String::new, |f| was(f, &c.to));
        in_changed.extend(c.from.as_ref().map(|f| (&f.name, &c.to.name)));
        rows.push(row(&c.to, "changed", Some(c.metrics), was));
    }
    let only_renamed = report.renamed.iter().filter(|p| !in_changed.contains(&(&p.from.name, &p.to.name)));
    rows.extend(only_renamed.map(|p| row(&p.to, "renamed", None, was(&p.from, &p.to))));
    rows.extend(report.reshaped.iter().map(|r| row(&r.pair.to, "reshaped", r.shared, was(&r.pair.from, &r.pair.to))));
    rows.extend(report.added.iter().map(|t| row(t, "added", None, String::new())));
    rows.extend(report.removed.iter().map(|t| row(t, "removed", None, String::new())));
    rows.sort_by_cached_key(|r| natural(&r.tensor.name));
    rows
}

/// `was bert.pooler F32 [10, 4]`, as far as it was another.
fn was(from: &TensorInfo, to: &TensorInfo) -> String {
    let name = (from.name != to.name).then(|| printable(&from.name));
    let dtype = (from.dtype != to.dtype).then(|| printable(&from.dtype));
    let shape = (from.shape != to.shape).then(|| format!("{:?}", from.shape));
    format!("was {}", [name, dtype, shape].into_iter().flatten().collect::<Vec<_>>().join(" "))
}

pub fn natural(name: &str) -> Vec<(Option<u64>, String)> {
    name.split('.').map(|part| (part.parse().ok(), part.to_owned())).collect()
}

/// `encoder.layer.3.attention.self.query.weight` is of `encoder.layer.*.attention`: numbers collapse, one part is kept
/// after the last; without a number, all but the last part.
fn group(name: &str) -> String {
    let is_number = |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = name.split('.').map(|p| if is_number(p) { "*" } else { p }).collect();
    let parts = &parts[..(parts.len() - 1).max(1)];
    let keep = parts.iter().rposition(|p| *p == "*").map_or(parts.len(), |at| (at + 2).min(parts.len()));
    parts[..keep].join(".")
}

/// Columns in line, those whose head starts with '>' to the right.
pub(super) fn align(rows: &[Vec<String>]) -> Vec<String> {
    let heads = rows[0].clone();
    let shown = |cell: &str| cell.trim_start_matches('>').to_owned();
    let width = |i: usize| rows.iter().map(|r| shown(&r[i]).chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let cell = |i: usize, text: &str| match heads[i].starts_with('>') {
        true => format!("{:>1$}", shown(text), widths[i]),
        false => format!("{:<1$}", text, widths[i]),
    };
    let line = |r: &Vec<String>| r.iter().enumerate().map(|(i, c)| cell(i, c)).collect::<Vec<_>>().join("  ");
    rows.iter().map(|r| line(r).trim_end().to_owned()).collect()
}

/// The unified diff of two files of at most `most` bytes, or one line that says why there is none.
pub fn file_lines(a: &SideFile, b: &SideFile, most: u64) -> Result<Vec<String>, RepoError> {
    let text = |f: &SideFile| -> Result<Option<String>, RepoError> {
        if f.bytes > most {
            return Ok(None);
        }
        let mut bytes = vec![0; f.bytes as usize];
        f.read_at(0, &mut bytes)?;
        Ok(String::from_utf8(bytes).ok().filter(|t| !t.contains('\0')))
    };
    Ok(match (text(a)?, text(b)?) {
        (Some(x), Some(y)) => unified(&a.path, &x, &y),
        _ if a.bytes.max(b.bytes) > most => vec![format!("files of more than {} differ", binary_size(most))],
        _ => vec!["binary files differ".to_owned()],
    })
}

/// `1 MiB`, `64 KiB`.
fn binary_size(bytes: u64) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{} KiB", bytes >> 10) }
}

fn unified(path: &str, a: &str, b: &str) -> Vec<String> {
    let diff = TextDiff::configure().timeout(PATIENCE).diff_lines(a, b);
    let path = printable(path);
    let text = diff.unified_diff().context_radius(3).header(&format!("a/{path}"), &format!("b/{path}")).to_string();
    text.lines().map(harmless).collect()
}

/// Without control characters, but for tabs.
fn harmless(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    for c in line.chars() {
        match c {
            '\t' => out.push(c),
            c if c.is_control() => out.extend(c.escape_debug()),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::{Changed, Pair};
    use super::*;

    fn tensor(name: &str) -> TensorInfo {
        TensorInfo { name: name.to_owned(), dtype: "F32".to_owned(), shape: vec![4] }
    }

    fn changed(from: Option<&str>, to: &str) -> Changed {
        let metrics = Metrics { changed_fraction: 0.25, max_abs: Some(0.5), ..Metrics::UNKNOWN };
        Changed { to: tensor(to), metrics, from: from.map(tensor) }
    }

    fn report() -> Report {
        let pair = |a: &str, b: &str| Pair { from: tensor(a), to: tensor(b) };
        let file = |path: &str, change| FileChange { path: path.to_owned(), change, lines: vec!["-a".to_owned()] };
        Report {
            added: vec![tensor("head.weight")],
            removed: vec![],
            reshaped: vec![],
            renamed: vec![pair("l.10.a", "m.l.10.a"), pair("x", "m.x")],
            unchanged: vec![tensor("same")],
            changed: vec![changed(Some("l.10.a"), "m.l.10.a"), changed(None, "m.l.9.a")],
            files: vec![file("config.json", Change::Changed), file("b", Change::Changed), file("c", Change::Added)],
        }
    }

    #[test]
    fn the_summary_counts_each_tensor_once() {
        let want = "5 tensors: 2 changed (1 of them under another name), 1 renamed, 1 added, 1 unchanged; \
                    2 files changed, 1 added";
        assert_eq!(summary(&report()), want);
        let same = Report { added: vec![], renamed: vec![], changed: vec![], files: vec![], ..report() };
        assert_eq!(summary(&same), "1 tensor: unchanged");
    }

    #[test]
    fn rows_are_grouped_in_natural_order() {
        let lines = render(&report(), false);
        let at = |s: &str| lines.iter().position(|l| l.contains(s)).unwrap_or_else(|| panic!("{s}: {lines:#?}"));
        assert!(at("head ") < at("head.weight") && at("m.l.* ") < at("m.l.9.a") && at("m.l.9.a") < at("m.l.10.a"));
        assert!(
            lines[at("m.l.10.a")].contains("25.0 %") && lines[at("m.l.10.a")].ends_with("was l.10.a"),
            "{lines:#?}"
        );
        assert!(at("changed config.json") < at("-a"));
        assert!(render(&report(), true).iter().all(|l| !l.contains("m.l.9.a") && !l.contains("-a")));
    }

    #[test]
    fn groups_collapse_numbers() {
        for (name, want) in [
            ("encoder.layer.3.attention.self.query.weight", "encoder.layer.*.attention"),
            ("layers.0.mlp.experts.7.w1.weight", "layers.*.mlp.experts.*.w1"),
            ("encoder.layer.0.weight", "encoder.layer.*"),
            ("embeddings.LayerNorm.bias", "embeddings.LayerNorm"),
            ("weight", "weight"),
        ] {
            assert_eq!(group(name), want);
        }
    }

    #[test]
    fn text_is_shown_without_its_control_characters() {
        let lines = unified("c.json", "a\nb\n", "a\n\u{1b}[31mc\n");
        assert_eq!(lines[..2], ["--- a/c.json", "+++ b/c.json"]);
        assert!(lines.contains(&"-b".to_owned()) && lines.contains(&"+\\u{1b}[31mc".to_owned()), "{lines:?}");
        assert_eq!(
            (percent(0.0), percent(1.0), percent(0.99999)),
            ("0.0 %".into(), "100.0 %".into(), "99.9990 %".into())
        );
    }
}
