//! `mgit link` and `mgit unlink`

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::import::RelationArg;
use super::{Global, out};
use crate::ask;
use crate::control::{Request, Response};
use crate::model::name::VersionRef;
use crate::repo::engine::label;

/// Add an edge to the lineage: CHILD came from PARENT
///
/// Between versions of one model it says which follows which. Stored bytes do not change.
#[derive(clap::Args)]
pub struct LinkArgs {
    child: VersionRef,
    parent: VersionRef,
    /// How the child came from the parent [default: derived]
    #[arg(long)]
    relation: Option<RelationArg>,
}

/// Take away the edge between two versions
#[derive(clap::Args)]
pub struct UnlinkArgs {
    child: VersionRef,
    parent: VersionRef,
}

pub fn link(g: &Global, a: &LinkArgs) -> Result<ExitCode> {
    let request = Request::Link(a.child.clone(), a.parent.clone(), a.relation.map(|r| r.0));
    tell(g, request, "now comes from")
}

pub fn unlink(g: &Global, a: &UnlinkArgs) -> Result<ExitCode> {
    tell(g, Request::Unlink(a.child.clone(), a.parent.clone()), "no longer comes from")
}

fn tell(g: &Global, request: Request, verb: &str) -> Result<ExitCode> {
    let (_, mut session) = g.session()?;
    let (child, parent) = ask!(session, request, Response::Pair(c, p) => (c, p))?;
    match g.json {
        true => out::print_json(&json!({"child": out::version(&child), "parent": out::version(&parent)}))?,
        false => out::print_lines([format!("{} {verb} {}", label(&child), label(&parent))])?,
    }
    Ok(ExitCode::SUCCESS)
}
