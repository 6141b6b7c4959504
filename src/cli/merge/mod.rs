//! `mgit merge`: what is to be merged and how. How it is carried out and told is in [`make`].

mod emr;
mod gate;
mod greedy;
mod make;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::emr::Models;
use self::gate::Gate;
use self::make::{Task, make, tell_plan};
use super::Global;
use super::import::{Effort, Turn, new_name};
use super::test::{rate, seconds};
use crate::ask;
use crate::control::{Request, Response, Session};
use crate::model::id::Id;
use crate::model::lineage::Lineage;
use crate::model::name::VersionRef;
use crate::model::record::{Merge, ParentEdge, Real, Relation};
use crate::repo::Head;
use crate::repo::diff::side::Side;
use crate::repo::engine::{Detail, label};
use crate::repo::merge::method::{self, Chosen, Method, Setting};
use crate::repo::merge::three_way::{self, Resolve};
use crate::repo::merge::{Input, Outcome};
use crate::repo::progress::Silent;
use crate::repo::work::{Answer, Ask};
use crate::work;

/// Merge versions into a new one
///
/// Compares A and B with what both come from. What one side changed is taken from
/// it, the same change once. Both changed one tensor: a conflict. Changed tensors
/// that feed each other (the same layer or the next, by their names), on
/// different sides: a possible conflict. Either stops with exit 1 and says which.
/// Configs and tokenizers are merged as text.
///
/// Registered tests decide a possible conflict: it is committed if they pass.
///
/// With --method, computes all tensors from any number of versions instead:
///   average           the mean
///   linear            (w1 A + w2 B + …) / (w1 + w2 + …); --weights
///   slerp             from A to B on a great circle, t of the way (0.5)          Shoemake 1985
///   task-arithmetic   base + w1 (A - base) + w2 (B - base) + …; --weights (1)    arXiv 2212.04089
///   ties              of the differences the largest (density, 0.2) are kept, then the mean of those
///                     of the elected sign is added lambda (1) times              arXiv 2306.01708
///   dare              of the differences some (density, 0.1; seed, 0) are kept, and scaled up;
///                     then as task-arithmetic                                    arXiv 2311.03099
///   regmean           what best gives each version's outputs on its inputs; --gram, alpha (0.9)
///                                                                                arXiv 2212.09849
///   emr               one vector for all tasks, stored once as M@unified, and each version's model as
///                     the base plus what a mask picks of it, scaled, as M@NAME   arXiv 2405.17461
///
///   mgit merge acme/sst2 acme/mnli --as acme/both --dry-run
///   mgit merge acme/sst2 acme/mnli --as acme/both --accept-possible
///   mgit merge run1 run2 run3 --method average --as soup
///   mgit merge run1 run2 --method linear --weights 0.7,0.3 --set 'layer.0.weight=0.5' --as soup
#[derive(clap::Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
The driver is a shell command. It gets four paths more: the tensor of the base, of A and of B, each in a safetensors file \
(one without tensors where it is missing), and the file to write, of one tensor of A's dtype and shape. MGIT_TENSOR is \
its name.
Methods compute in f32 (F64 tensors in f64) and round to the versions' dtype. Files other than tensors are those of the \
first version.
A GLOB of --set fits a tensor's name or a stretch of it between dots; the last --set that fits counts. One weight for two \
versions is the second's share in a linear merge, and each one's in other methods."
)]
pub struct Args {
    /// The versions to merge
    #[arg(required = true, num_args = 2.., value_name = "MODEL[@VERSION]")]
    parents: Vec<VersionRef>,
    /// Name of the new version
    #[arg(long = "as", value_name = "MODEL[@VERSION]", required_unless_present = "dry_run")]
    name: Option<String>,
    /// What the parents were made from [default: the nearest version that both come from]
    #[arg(long, value_name = "MODEL[@VERSION]")]
    base: Option<VersionRef>,
    /// Say what would be done and how it would come out, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Take A's where both changed the same thing
    #[arg(long, group = "resolve")]
    ours: bool,
    /// Take B's where both changed the same thing
    #[arg(long, group = "resolve")]
    theirs: bool,
    /// Run this on each tensor that both changed
    #[arg(long, group = "resolve", value_name = "CMD")]
    driver: Option<String>,
    /// Merge all tensors so, whatever changed
    #[arg(long, group = "resolve", value_parser = Method::parse)]
    method: Option<Method>,
    /// A weight for each version
    #[arg(long, value_name = "W,W,…", requires = "method", value_parser = weights)]
    weights: Option<Setting>,
    /// A parameter of the method, for all tensors or for those of some layers
    #[arg(long = "set", value_name = "[GLOB.]NAME=VALUE", requires = "method", value_parser = Setting::parse)]
    settings: Vec<Setting>,
    /// Gram matrices of the inputs to a version's layers, in a safetensors file under the tensors' or modules' names: for
    /// regmean, one for each version, in order
    #[arg(long = "gram", value_name = "FILE", requires = "method")]
    grams: Vec<PathBuf>,
    /// Commit only what passes the registered tests, which run on it first. A possible conflict is put to them anyway
    #[arg(long)]
    tests: bool,
    /// Likewise, and only if at most this share of a test's examples is right in a parent and wrong in the result
    #[arg(long, value_name = "R", value_parser = rate)]
    max_negative_flips: Option<f64>,
    /// Seconds after which a test has failed
    #[arg(long, value_name = "T", value_parser = seconds)]
    timeout: Option<Duration>,
    /// Merge the K best of these versions two by two, and what comes of that, until nothing new is to be gained; the
    /// registered tests tell which are best
    #[arg(long, value_name = "K", requires = "name", conflicts_with_all = ["dry_run", "ours", "theirs", "driver", "tests"])]
    greedy: Option<usize>,
    /// Commit a possible conflict without a test
    #[arg(long)]
    accept_possible: bool,
    /// What the new version is, in a line
    #[arg(short, long, default_value = "", hide_default_value = true)]
    message: String,
    /// How long to look for smaller encodings
    #[arg(long, value_enum, default_value_t = Effort::Default)]
    effort: Effort,
}

impl Args {
    /// What the result has to pass, if anything. `must`: it cannot be committed untested.
    fn gate(&self, must: bool) -> Option<Gate> {
        let wanted = must || self.tests || self.max_negative_flips.is_some();
        wanted.then_some(Gate { must, max_flips: self.max_negative_flips, timeout: self.timeout })
    }
}

fn weights(list: &str) -> Result<Setting, String> {
    Setting::parse(&format!("weight={list}"))
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    let mut turn = Turn::new(g)?;
    let session = turn.session()?;
    let parents = a.parents.iter().map(|p| resolve(session, p)).collect::<Result<Vec<_>>>()?;
    let base = a.base.as_ref().map(|b| resolve(session, b)).transpose()?;
    // A name that cannot be given is told before the work.
    let name = a.name.as_deref().map(new_name).transpose()?;
    if let Some(VersionRef { model, version: Some(v) }) = &name {
        session.call(Request::CheckName(model.clone(), v.clone()))?;
    }
    match a.method {
        _ if a.greedy.is_some() => {
            let name = name.context("--as names the model")?;
            greedy::run(g, a, &mut turn, parents, base, name, a.greedy.unwrap_or_default())
        }
        Some(method) => run_method(g, a, &mut turn, parents, base, method, name),
        None => run_three_way(g, a, &mut turn, parents, base, name),
    }
}

fn resolve(session: &mut Session, reference: &VersionRef) -> Result<Head> {
    Ok(ask!(session, Request::Resolve(reference.clone()), Response::Head(h) => h)?)
}

fn run_three_way(
    g: &Global,
    a: &Args,
    turn: &mut Turn,
    parents: Vec<Head>,
    base: Option<Head>,
    name: Option<VersionRef>,
) -> Result<ExitCode> {
    let [x, y] = &parents[..] else { bail!("a three-way merge is of two versions; merge more one after the other") };
    let base = match base {
        Some(base) => base,
        None => common_ancestor(turn.session()?, x, y)?,
    };
    turn.release();
    let open = |h: &Head| Input::open(&turn.repo, h);
    let inputs = [open(&base)?, open(x)?, open(y)?];
    let resolve = match a {
        _ if a.ours => Resolve::Ours,
        _ if a.theirs => Resolve::Theirs,
        _ if a.driver.is_some() => Resolve::Driver,
        _ => Resolve::Nothing,
    };
    let plan = three_way::plan(&inputs, resolve)?;
    let what = format!("a = {}, b = {}, from {}", label(x), label(y), label(&base));
    if a.dry_run {
        tell_plan(g, &plan, &what)?;
        return Ok(ExitCode::SUCCESS);
    }
    let must = plan.outcome == Outcome::Possible && !a.accept_possible;
    let tests = work!(turn.session()?, Ask::Tests, Answer::Tests(t) => t)?;
    turn.release();
    let stopped = match plan.outcome {
        Outcome::Possible if must && tests.is_empty() => Some(
            "a possible conflict: what one side changed feeds what the other changed; --accept-possible commits it, or \
             register a test that tells",
        ),
        Outcome::None | Outcome::Possible => None,
        Outcome::Conflict => Some("a conflict: both sides changed the same; --ours, --theirs or --driver resolve it"),
    };
    if let Some(why) = stopped {
        tell_plan(g, &plan, &what)?;
        bail!("{} and {}: {why}", label(x), label(y));
    }
    let edge = |h: &Head| ParentEdge::new(h.id, Relation::Merge);
    let edges = parents.iter().map(edge).collect();
    let mut parameters = Vec::new();
    match resolve {
        Resolve::Nothing => {}
        Resolve::Ours => parameters.push("conflicts=ours".to_owned()),
        Resolve::Theirs => parameters.push("conflicts=theirs".to_owned()),
        Resolve::Driver => parameters.extend(a.driver.iter().map(|d| format!("driver={d}"))),
    }
    let merge = Merge { method: "three-way".to_owned(), base: Some(base.id), parameters };
    let task = Task { grams: vec![], parents, base: Some(base), edges, merge };
    let name = name.context("--as names the new version")?;
    make(g, a, turn, &task, &name, (&inputs, plan), a.gate(must).as_ref())?;
    Ok(ExitCode::SUCCESS)
}

fn run_method(
    g: &Global,
    a: &Args,
    turn: &mut Turn,
    parents: Vec<Head>,
    base: Option<Head>,
    method: Method,
    name: Option<VersionRef>,
) -> Result<ExitCode> {
    let chosen = Chosen::new(method, a.weights.iter().chain(&a.settings).cloned().collect(), parents.len())?;
    let base = match base {
        _ if !method.needs_base() => None,
        None => Some(ancestor_of_all(turn.session()?, &parents)?),
        base => base,
    };
    turn.release();
    let heads = parents.iter().chain(&base);
    let inputs = heads.map(|h| Input::open(&turn.repo, h)).collect::<Result<Vec<_>, _>>()?;
    let grams = a.grams.iter().map(|p| Side::of_path(p, &Silent)).collect::<Result<Vec<_>, _>>()?;
    let plan = method::plan(&inputs, &chosen, &grams)?;
    if a.dry_run {
        tell_plan(g, &plan, &format!("{} of {}", method.as_str(), names(&parents)))?;
        return Ok(ExitCode::SUCCESS);
    }
    let edge = |(h, c): (&Head, Option<f64>)| ParentEdge {
        coefficient: c.map(Real),
        ..ParentEdge::new(h.id, Relation::Merge)
    };
    let name = name.context("--as names the new version")?;
    if method == Method::Emr {
        return emr::run(g, a, turn, &Models { parents, base, inputs, name }, plan);
    }
    let edges = parents.iter().zip(chosen.coefficients()).map(edge).collect();
    let merge =
        Merge { method: method.as_str().to_owned(), base: base.as_ref().map(|b| b.id), parameters: chosen.told() };
    let task = Task { grams, parents, base, edges, merge };
    make(g, a, turn, &task, &name, (&inputs, plan), a.gate(false).as_ref())?;
    Ok(ExitCode::SUCCESS)
}

fn names(heads: &[Head]) -> String {
    heads.iter().map(label).collect::<Vec<_>>().join(", ")
}

/// The nearest living version that all come from.
fn ancestor_of_all(session: &mut Session, heads: &[Head]) -> Result<Head> {
    let mut details: Vec<Vec<Detail>> = Vec::new();
    for h in heads {
        details.push(history(session, h)?);
    }
    let all: Vec<&Detail> = details.iter().flatten().collect();
    let lineage = Lineage::from_edges(all.iter().flat_map(|d| older(d)));
    let mut common = lineage.common_ancestors(heads[0].id, heads[1].id);
    common.retain(|id| heads.iter().all(|h| h.id != *id && lineage.ancestors(h.id).contains(id)));
    let living = |id| all.iter().map(|d| &d.head).find(|h| h.id == id && !h.removed).map(|h| (*h).clone());
    common
        .into_iter()
        .find_map(living)
        .with_context(|| format!("{} have no common ancestor here; name what they come from with --base", names(heads)))
}

/// Edges from the older to the newer.
fn older(d: &Detail) -> Vec<(Id, Id)> {
    d.parents.iter().map(|p| p.0.id).chain(d.previous.iter().map(|p| p.id)).map(|id| (id, d.head.id)).collect()
}

/// The nearest living version that both come from; one of the two themselves where the other comes from it.
fn common_ancestor(session: &mut Session, x: &Head, y: &Head) -> Result<Head> {
    let (above_x, above_y) = (history(session, x)?, history(session, y)?);
    let holds = |details: &[Detail], h: &Head| details.iter().any(|d| d.head.id == h.id);
    if holds(&above_y, x) {
        return Ok(x.clone());
    }
    if holds(&above_x, y) {
        return Ok(y.clone());
    }
    ancestor_of_all(session, &[x.clone(), y.clone()])
}

fn history(session: &mut Session, head: &Head) -> Result<Vec<Detail>> {
    let reference = VersionRef { model: head.model.clone(), version: Some(head.version.clone()) };
    Ok(ask!(session, Request::History(Some(reference)), Response::Details(d) => d)?)
}
