//! `mgit show`

use std::process::ExitCode;

use anyhow::Result;

use super::lossy::{gate_words, words};
use super::{Global, out};
use crate::ask;
use crate::control::{Request, Response};
use crate::model::name::{VersionRef, printable};
use crate::model::record::{EntryKind, FileEntry, Merge, ParentEdge, VersionRecord};
use crate::repo::charge::{Charges, packs_of};
use crate::repo::engine::{Detail, label};
use crate::repo::{Head, show};

/// Show a version: its files, what they cost in the store, its parents and children
#[derive(clap::Args)]
pub struct Args {
    version: VersionRef,
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    let (repo, mut session) = g.session()?;
    let detail = ask!(session, Request::Detail(a.version.clone()), Response::Detail(d) => d)?;
    let record = repo.record(&detail.head.id)?;
    let packs = packs_of(&repo, &record)?;
    let bringers = ask!(session, Request::Bringers(packs), Response::Bringers(b) => b)?;
    let charges = match Charges::of_one(&repo, &detail.head, &record, bringers)? {
        Some(charges) => charges,
        None => {
            let living = ask!(session, Request::List, Response::Heads(h) => h)?;
            Charges::new(repo.clone(), living).of(&detail.head.id, &record)?
        }
    };
    drop(session);
    match g.json {
        true => out::print_json(&show::as_json(&detail, &record, &charges))?,
        false => out::print_lines(as_text(&detail, &record, &charges))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// `merge, 0.3`, `finetune, direction is a guess`.
fn manner(edge: &ParentEdge) -> String {
    let share = edge.coefficient.map(|c| format!(", {:.4}", c.0)).unwrap_or_default();
    let guess = if edge.guess { ", direction is a guess" } else { "" };
    format!("{}{share}{guess}", edge.relation)
}

/// `ties, from 3f2a…, density=0.2`.
fn manner_of(m: &Merge) -> String {
    let base = m.base.iter().map(|b| format!("from {}", b.short()));
    std::iter::once(m.method.clone()).chain(base).chain(m.parameters.iter().cloned()).collect::<Vec<_>>().join(", ")
}

fn as_text(d: &Detail, record: &VersionRecord, charges: &[u64]) -> Vec<String> {
    let name = |h: &Head| if h.removed { format!("{} (removed)", label(h)) } else { label(h) };
    let fact = |what: &str, value: String| format!("{}  {value}", out::painted(out::DIM, &format!("{what:<8}")));
    let created = format!("{}, {} UTC", out::ago(record.created), out::time(record.created));
    let (logical, stored) = (record.logical_bytes(), charges.iter().sum::<u64>());
    let saved = match out::saved(logical, stored) {
        none if none.is_empty() => none,
        share => format!(", saved {share}"),
    };
    let mut lines = vec![
        out::painted(out::BOLD, &label(&d.head)),
        fact("id", d.head.id.to_string()),
        fact("created", created),
        fact("size", format!("{}, stored in {}{saved}", out::size(logical), out::size(stored))),
    ];
    lines.extend(d.tags.iter().map(|t| fact("tag", t.to_string())));
    lines.extend(record.message.lines().map(|l| fact("message", out::harmless(l))));
    lines.extend(d.parents.iter().map(|(p, e)| fact("parent", format!("{} ({})", name(p), manner(e)))));
    lines.extend(record.merge.iter().map(|m| fact("merge", out::harmless(&manner_of(m)))));
    if let Some(l) = &record.lossy {
        lines.push(fact("lossy", words(l)));
        lines.extend(gate_words(l).into_iter().map(|g| fact("gate", out::harmless(&g))));
        lines.push(fact("exact", format!("{}, BLAKE3 {}", l.original, l.blake3)));
    }
    lines.extend(d.previous.iter().map(|p| fact("previous", name(p))));
    if let Some(o) = &record.origin {
        lines.push(fact("origin", out::harmless(&format!("{}{}", o.evidence, o.sure()))));
        lines.extend(o.hints.iter().map(|h| fact("claimed", out::harmless(h))));
    }
    lines.extend(d.next.iter().map(|n| fact("next", name(n))));
    lines.extend(d.children.iter().map(|(c, r)| fact("child", format!("{} ({r})", name(c)))));
    lines.push(String::new());
    let row = |(f, stored): (&FileEntry, &u64)| match f.kind {
        EntryKind::File => {
            let [size, stored, saved] = out::costs(f.bytes, Some(*stored));
            vec![printable(&f.path), size, stored, saved, f.digest.short()]
        }
        EntryKind::Directory => [&format!("{}/", printable(&f.path)), "", "", "", ""].map(str::to_owned).to_vec(),
    };
    let rows: Vec<_> = record.files.iter().zip(charges).map(row).collect();
    lines.extend(out::table(&["FILE", ">SIZE", ">STORED", ">SAVED", "BLAKE3"], &rows));
    lines
}
