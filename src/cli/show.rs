//! `mgit show`

use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Global, out};
use crate::ask;
use crate::control::{Request, Response};
use crate::model::name::{VersionRef, printable};
use crate::model::record::{EntryKind, VersionRecord};
use crate::repo::Head;
use crate::repo::charge::Charges;
use crate::repo::engine::{Detail, label};

/// Show a version: its files, what they cost in the store, its parents and children
#[derive(clap::Args)]
pub struct Args {
    version: VersionRef,
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    let (repo, mut session) = g.session()?;
    let detail = ask!(session, Request::Detail(a.version.clone()), Response::Detail(d) => d)?;
    let living = ask!(session, Request::List, Response::Heads(h) => h)?;
    drop(session);
    let record = repo.record(&detail.head.id)?;
    let charges = Charges::new(repo.clone(), living).of(&detail.head.id, &record)?;
    match g.json {
        true => out::print_json(&as_json(&detail, &record, &charges))?,
        false => out::print_lines(as_text(&detail, &record, &charges))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn as_json(d: &Detail, record: &VersionRecord, charges: &[u64]) -> Value {
    let files = record.files.iter().zip(charges).filter(|(f, _)| f.kind == EntryKind::File);
    let file = |(f, stored): (&crate::model::record::FileEntry, &u64)| json!({"path": f.path, "bytes": f.bytes, "stored_bytes": stored, "blake3": f.digest});
    json!({
        "model": d.head.model, "version": d.head.version, "id": d.head.id,
        "created": record.created, "message": record.message, "lossy": Value::Null,
        "parents": d.parents.iter().map(out::related).collect::<Vec<_>>(),
        "previous": d.previous.as_ref().map(out::version),
        "next": d.next.iter().map(out::version).collect::<Vec<_>>(),
        "children": d.children.iter().map(out::related).collect::<Vec<_>>(),
        "files": files.map(file).collect::<Vec<_>>(),
        "tags": [],
    })
}

fn as_text(d: &Detail, record: &VersionRecord, charges: &[u64]) -> Vec<String> {
    let removed = |h: &Head| if h.removed { " (removed)" } else { "" };
    let mut lines = vec![
        format!("{}", label(&d.head)),
        format!("id        {}", d.head.id),
        format!("created   {} UTC", out::time(record.created)),
    ];
    lines.extend(record.message.lines().map(|l| format!("message   {l}")));
    lines.extend(d.parents.iter().map(|(p, r)| format!("parent    {}{} ({r})", label(p), removed(p))));
    lines.extend(d.previous.iter().map(|p| format!("previous  {}{}", label(p), removed(p))));
    lines.extend(d.next.iter().map(|n| format!("next      {}{}", label(n), removed(n))));
    lines.extend(d.children.iter().map(|(c, r)| format!("child     {}{} ({r})", label(c), removed(c))));
    let (logical, stored) = (record.logical_bytes(), charges.iter().sum::<u64>());
    let share = 100.0 * stored as f64 / logical.max(1) as f64;
    lines.push(format!("size      {}, stored in {} ({share:.1} %)", out::size(logical), out::size(stored)));
    lines.push(String::new());
    let row = |(f, stored): (&crate::model::record::FileEntry, &u64)| match f.kind {
        EntryKind::File => vec![printable(&f.path), out::size(f.bytes), out::size(*stored), f.digest.short()],
        EntryKind::Directory => vec![format!("{}/", printable(&f.path)), String::new(), String::new(), String::new()],
    };
    let rows: Vec<_> = record.files.iter().zip(charges).map(row).collect();
    lines.extend(out::table(&["FILE", ">SIZE", ">STORED", "BLAKE3"], &rows));
    lines
}
