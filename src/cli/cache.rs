//! `mgit cache`: the disk cache of a mount.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::{Global, out};
use crate::ask;
use crate::control::{Request, Response};
use crate::model::name::VersionRef;

/// See and steer the disk cache: whole files that load as fast as plain ones
///
/// A mount with --disk-cache keeps what was read whole, within its size, below
/// $XDG_CACHE_HOME/mgit. What was not used for the longest goes first. All of it
/// can be removed at any time: it is rebuilt from the store.
///
///   mgit mount --disk-cache 20GiB ~/models
///   mgit cache add bert@v2           keep it before anybody reads it
///   mgit cache rm bert@v2
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Keep the files of versions (those of 1 MiB and more) before they are read
    Add {
        #[arg(required = true)]
        versions: Vec<VersionRef>,
    },
    /// Remove the files of versions from the cache
    Rm {
        #[arg(required = true)]
        versions: Vec<VersionRef>,
    },
    /// List what is kept, the last used first
    Ls,
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    let (_, mut session) = g.session()?;
    match &a.verb {
        Verb::Add { versions } => {
            let sum = ask!(session, Request::CacheAdd(versions.clone()), Response::Sum(f, b) => (f, b))?;
            tell(g, "kept", sum)?;
        }
        Verb::Rm { versions } => {
            let sum = ask!(session, Request::CacheRemove(versions.clone()), Response::Sum(f, b) => (f, b))?;
            tell(g, "removed", sum)?;
        }
        Verb::Ls => {
            let (files, limit) = ask!(session, Request::CacheList, Response::Cached(f, l) => (f, l))?;
            let bytes: u64 = files.iter().map(|f| f.bytes).sum();
            match g.json {
                true => out::print_json(&json!({"files": files, "bytes": bytes, "limit": limit}))?,
                false => {
                    let row = |f: &crate::repo::keep::Kept| {
                        let of = f.of.clone().unwrap_or_else(|| format!("{} (of no version)", f.digest));
                        vec![out::size(f.bytes), of]
                    };
                    out::print_lines(out::table(&[">size", "file"], &files.iter().map(row).collect::<Vec<_>>()))?;
                    let of = limit.map_or("no mount keeps it".to_owned(), |l| format!("of {}", out::size(l)));
                    out::print_lines([format!("{} files, {} {of}", files.len(), out::size(bytes))])?;
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn tell(g: &Global, what: &str, (files, bytes): (u64, u64)) -> std::io::Result<()> {
    match g.json {
        true => out::print_json(&json!({"files": files, "bytes": bytes})),
        false => out::print_lines([format!("{what} {files} files, {}", out::size(bytes))]),
    }
}
