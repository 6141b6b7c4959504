//! How things look: tables, sizes, times, JSON, progress bars, and stopping on Ctrl-C.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde_json::Value;

pub use crate::model::graph::size;
use crate::model::table;
pub use crate::model::table::{costs, harmless, saved};
use crate::repo::RepoError;
use crate::repo::progress::Progress;
pub use crate::repo::show::{parent, version};

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
        "CREATED" | "MESSAGE" => DIM,
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

/// [`table`](table::table), painted where standard output takes colour.
pub fn table(heads: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    table::table(heads, rows.iter().map(Vec::as_slice), &paint)
}

/// A cell of a table below its head, in colour where standard output takes it.
pub fn paint(head: Option<&str>, text: &str) -> String {
    painted(head.map_or(BOLD.underline(), style_of), text)
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

    /// Of things instead of bytes: each one [`stored`](Progress::stored) as 1.
    pub fn counting(what: &str, total: u64) -> std::io::Result<Bar> {
        let bar = Bar::new(what, false)?;
        let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} {elapsed}");
        bar.bar.set_style(style.expect("a constant template").progress_chars("=> "));
        bar.bar.set_length(total);
        Ok(bar)
    }

    /// Prints lines without tearing the bar.
    pub fn print(&self, line: &str) -> std::io::Result<()> {
        self.bar.suspend(|| print_lines([line]))
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
}
