//! How things look: tables, sizes, times, JSON, progress bars, and stopping on Ctrl-C.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use anstyle::{AnsiColor, Style};
use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::model::record::Relation;
use crate::repo::Head;
use crate::repo::RepoError;
use crate::repo::progress::Progress;

/// A version reference as the contract writes it.
pub fn version(head: &Head) -> Value {
    json!({"model": head.model, "version": head.version, "id": head.id})
}

/// A version reference with the relation of the edge that leads to it.
pub fn related((head, relation): &(Head, Relation)) -> Value {
    json!({"model": head.model, "version": head.version, "id": head.id, "relation": relation})
}

/// `433.0 MB`.
pub fn size(bytes: u64) -> String {
    ByteSize(bytes).display().si().to_string()
}

/// `2026-11-24 06:05:02`, in UTC.
pub fn time(t: Timestamp) -> String {
    t.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// `3 hours ago`.
pub fn ago(t: Timestamp) -> String {
    since(Timestamp::now().as_second() - t.as_second())
}

fn since(seconds: i64) -> String {
    const UNITS: [(i64, i64, &str); 7] = [
        (60, 1, "second"),
        (3600, 60, "minute"),
        (86_400, 3600, "hour"),
        (14 * 86_400, 86_400, "day"),
        (60 * 86_400, 7 * 86_400, "week"),
        (2 * 365 * 86_400, 30 * 86_400, "month"),
        (i64::MAX, 365 * 86_400, "year"),
    ];
    let (_, length, unit) = UNITS.iter().find(|(below, ..)| seconds < *below).unwrap_or(&UNITS[6]);
    match seconds / length {
        ..1 => "just now".to_owned(), // A clock may have been set back.
        1 => format!("1 {unit} ago"),
        n => format!("{n} {unit}s ago"),
    }
}

/// Logical and stored bytes and what that saves, as three cells of a table.
pub fn costs(logical: u64, stored: Option<u64>) -> [String; 3] {
    match stored {
        Some(stored) => [size(logical), size(stored), saved(logical, stored)],
        None => [size(logical), "?".to_owned(), String::new()],
    }
}

/// `87.5 %`; nothing where there is nothing to save.
pub fn saved(logical: u64, stored: u64) -> String {
    match logical {
        0 => String::new(),
        _ => format!("{:.1} %", 100.0 - 100.0 * stored as f64 / logical as f64),
    }
}

/// Text that somebody wrote, one line of it, without what would steer a terminal.
pub fn harmless(line: &str) -> String {
    line.chars().filter(|c| !c.is_control()).collect()
}

/// Whether standard output takes colour: a terminal that knows how, and no NO_COLOR.
static COLOURED: LazyLock<bool> =
    LazyLock::new(|| anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never);

pub const BOLD: Style = Style::new().bold();
pub const DIM: Style = Style::new().dimmed();

/// In colour where standard output takes it.
pub fn painted(style: Style, text: &str) -> String {
    match *COLOURED && !text.trim().is_empty() {
        true => format!("{style}{text}{style:#}"),
        false => text.to_owned(),
    }
}

/// The look of a column's cells.
fn style_of(head: &str) -> Style {
    match head.trim_start_matches('>') {
        "MODEL" | "VERSION" | "FILE" => BOLD,
        "ID" | "BLAKE3" => AnsiColor::Yellow.on_default(),
        "SAVED" => AnsiColor::Green.on_default(),
        "FROM" | "RELATION" => AnsiColor::Cyan.on_default(),
        "CREATED" => DIM,
        _ => Style::new(),
    }
}

/// Prints one JSON value and a newline.
pub fn print_json(value: &Value) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)
}

/// Prints lines; fails rather than panics when the reader is gone.
pub fn print_lines<S: AsRef<str>>(lines: impl IntoIterator<Item = S>) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    lines.into_iter().try_for_each(|l| writeln!(out, "{}", l.as_ref()))
}

/// Columns aligned under their heads; those whose head starts with '>' to the right. The first line holds
/// the heads, then comes one for each row.
pub fn table(heads: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let width = |i: usize| {
        let cells = rows.iter().map(|r| r[i].chars().count());
        cells.chain([heads[i].trim_start_matches('>').len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let line = |cells: Vec<&str>, style: &dyn Fn(usize) -> Style| {
        let last = cells.iter().rposition(|c| !c.is_empty()).map_or(0, |l| l + 1);
        let cell = |i: usize| {
            let blank = " ".repeat(widths[i] - cells[i].chars().count());
            let text = painted(style(i), cells[i]);
            match heads[i].starts_with('>') {
                true => blank + &text,
                false if i + 1 == last => text, // No blanks at the end.
                false => text + &blank,
            }
        };
        (0..last).map(cell).collect::<Vec<_>>().join("  ")
    };
    let head = line(heads.iter().map(|h| h.trim_start_matches('>')).collect(), &|_| BOLD.underline());
    let row = |r: &Vec<String>| line(r.iter().map(String::as_str).collect(), &|i| style_of(heads[i]));
    std::iter::once(head).chain(rows.iter().map(row)).collect()
}

/// A bar on a terminal, silence elsewhere; ends the work on Ctrl-C or SIGTERM.
pub struct Bar {
    bar: ProgressBar,
    stop: Arc<AtomicBool>,
    hashing: bool,
}

impl Bar {
    /// `hashing`: the work reads everything twice, first to hash it.
    pub fn new(what: &str, hashing: bool) -> std::io::Result<Bar> {
        let bar = match std::io::stderr().is_terminal() {
            true => ProgressBar::new(0),
            false => ProgressBar::hidden(),
        };
        let style = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        bar.set_style(ProgressStyle::with_template(style).expect("a constant template").progress_chars("=> "));
        bar.set_message(what.to_owned());
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // The first asks politely, the second ends the process.
            signal_hook::flag::register_conditional_shutdown(signal, 1, stop.clone())?;
            signal_hook::flag::register(signal, stop.clone())?;
        }
        Ok(Bar { bar, stop, hashing })
    }

    pub fn done(&self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Bar {
    fn expect(&self, bytes: u64) {
        self.bar.set_length(if self.hashing { 2 * bytes } else { bytes });
    }

    fn hashed(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn stored(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn check(&self) -> Result<(), RepoError> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(RepoError::Interrupted),
            false => Ok(()),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_a_person_says_them() {
        let day = 86_400;
        for (seconds, want) in [
            (-5, "just now"),
            (0, "just now"),
            (1, "1 second ago"),
            (59, "59 seconds ago"),
            (60, "1 minute ago"),
            (3 * 3600 + 59, "3 hours ago"),
            (13 * day, "13 days ago"),
            (14 * day, "2 weeks ago"),
            (60 * day, "2 months ago"),
            (729 * day, "24 months ago"),
            (730 * day, "2 years ago"),
        ] {
            assert_eq!(since(seconds), want);
        }
    }

    #[test]
    fn tables_are_aligned_and_hold_no_blanks_at_the_end() {
        let rows = [vec!["a".into(), "10".into(), "long".into()], vec!["é€".into(), "9".into(), String::new()]];
        assert_eq!(table(&["X", ">N", "Y"], &rows), ["X    N  Y", "a   10  long", "é€   9"]);
        assert_eq!((saved(1000, 125), saved(0, 3)), ("87.5 %".into(), String::new()));
        assert_eq!(harmless("a\x1b[31mb"), "a[31mb");
    }
}
