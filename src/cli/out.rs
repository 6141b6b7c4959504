//! How things look: tables, sizes, times, JSON, progress bars, and stopping on Ctrl-C.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// Columns aligned under their heads; those whose head starts with '>' to the right.
pub fn table(heads: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let width = |i: usize| {
        let cells = rows.iter().map(|r| r[i].chars().count());
        cells.chain([heads[i].trim_start_matches('>').len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let cell = |i: usize| match heads[i].starts_with('>') {
            true => format!("{:>1$}", cells[i], widths[i]),
            false => format!("{:<1$}", cells[i], widths[i]),
        };
        (0..cells.len()).map(cell).collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let head = line(heads.iter().map(|h| h.trim_start_matches('>')).collect());
    std::iter::once(head).chain(rows.iter().map(|r| line(r.iter().map(String::as_str).collect()))).collect()
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
