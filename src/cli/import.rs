//! `mgit import`

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::{Value, json};

use super::lossy::{LossyArgs, Made, Original, gate_words, make, words};
use super::{Global, out};
use crate::ask;
use crate::codec;
use crate::control::{Request, Response, Session, unexpected};
use crate::model::build::Build;
use crate::model::event::Event;
use crate::model::id::Id;
use crate::model::name::{ModelName, VersionName, VersionRef};
use crate::model::record::{EntryKind, Origin, ParentEdge, Relation};
use crate::model::test::TestResult;
use crate::repo::Head;
use crate::repo::draft::Job;
use crate::repo::engine::{Above, label};
use crate::repo::import::{Hashed, ImportSpec, Prepared, hash_all, hash_draft, id_of, prepare, rename_prepared};
use crate::repo::origin::{self, Ask, Move, New};
use crate::repo::work::{Answer, Ask as About, Publication};
use crate::repo::{Repo, RepoError, hash, progress, walk};
use crate::work;

/// Store a model directory, or one .safetensors file, as a new version
///
/// All files are kept, config and tokenizer too; symlinks are followed. New
/// tensors are stored as lossless deltas against those of the parents (and of the
/// model's previous version) where that is smaller.
///
///   mgit import ./bert-base --as bert
///   mgit import ./run/checkpoint-500 --as bert-sst2 --parent bert --relation finetune -m "500 steps"
///   mgit import --each ~/.cache/huggingface/hub
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Model directory, or a .safetensors file
    path: PathBuf,
    /// Name of the new version [default: the directory's name, with the next of v1, v2, …]
    #[arg(long = "as", value_name = "MODEL[@VERSION]", conflicts_with = "each")]
    name: Option<String>,
    /// A version that this one was derived from; may be repeated. One of the same model is its predecessor
    #[arg(long = "parent", value_name = "MODEL[@VERSION]")]
    parents: Vec<VersionRef>,
    /// How it came from its parents [default: told from what they share]
    #[arg(long, requires = "parents")]
    relation: Option<RelationArg>,
    /// It has no parent and no predecessor
    #[arg(long, conflicts_with = "parents")]
    no_parent: bool,
    /// What this version is, in a line
    #[arg(short, long, default_value = "", hide_default_value = true)]
    message: String,
    /// How long to look for smaller encodings
    #[arg(long, value_enum, default_value_t = Effort::Default)]
    effort: Effort,
    /// How it is made from its parents: a command, quoted as for a shell (see 'mgit recipe set')
    #[arg(long, value_name = "CMD", conflicts_with = "each")]
    recipe: Option<String>,
    /// A file that the recipe needs; may be repeated
    #[arg(long = "recipe-file", value_name = "F", requires = "recipe")]
    recipe_files: Vec<String>,
    #[command(flatten)]
    lossy: LossyArgs,
    /// Import every model directory below PATH (in a Hugging Face cache, every snapshot)
    #[arg(long)]
    each: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Effort {
    Fast,
    Default,
    Max,
}

impl From<Effort> for codec::Effort {
    fn from(e: Effort) -> codec::Effort {
        match e {
            Effort::Fast => codec::Effort::Fast,
            Effort::Default => codec::Effort::Default,
            Effort::Max => codec::Effort::Max,
        }
    }
}

/// A relation as an argument.
#[derive(Clone, Copy)]
pub struct RelationArg(pub Relation);

impl ValueEnum for RelationArg {
    fn value_variants<'a>() -> &'a [Self] {
        static ALL: [RelationArg; Relation::ALL.len()] = {
            let mut all = [RelationArg(Relation::Derived); Relation::ALL.len()];
            let mut i = 0;
            while i < all.len() {
                all[i] = RelationArg(Relation::ALL[i]);
                i += 1;
            }
            all
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.0.as_str()))
    }
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    match a.each {
        true => run_each(g, a),
        false => run_one(g, a),
    }
}

fn run_one(g: &Global, a: &Args) -> Result<ExitCode> {
    let name = match &a.name {
        Some(name) => new_name(name)?,
        None => default_name(&a.path)?,
    };
    let value = import(&mut Turn::new(g)?, a, &a.path, name, !g.json)?;
    if g.json {
        out::print_json(&value)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Unlike a reference to a version, the name of a new one is never `latest`.
pub(super) fn new_name(name: &str) -> Result<VersionRef> {
    if let Some((_, version)) = name.split_once('@') {
        version.parse::<VersionName>()?;
    }
    Ok(name.parse()?)
}

fn default_name(path: &Path) -> Result<VersionRef> {
    let real = path.canonicalize().with_context(|| path.display().to_string())?;
    let stem = if real.is_dir() { real.file_name() } else { real.file_stem() };
    let name = stem.and_then(|s| s.to_str()).unwrap_or_default();
    name.parse().map_err(anyhow::Error::from).context("cannot name the model after its directory; use --as MODEL")
}

fn run_each(g: &Global, a: &Args) -> Result<ExitCode> {
    let found = walk::each_model(&a.path)?;
    if found.is_empty() {
        bail!("{}: no model directory below it", a.path.display());
    }
    let (mut imported, mut failed, mut known) = (vec![], vec![], vec![]);
    let mut turn = Turn::new(g)?;
    for (path, name) in found {
        match import_unless_known(&mut turn, a, &path, &name, !g.json) {
            Ok(Some(value)) => imported.push(value),
            Ok(None) => known.push(path),
            Err(e) if matches!(e.downcast_ref(), Some(RepoError::Interrupted)) => return Err(e),
            Err(e) => {
                eprintln!("mgit: {}: {e:#}", path.display());
                failed.push(json!({"path": path, "error": format!("{e:#}")}));
            }
        }
    }
    let ok = failed.is_empty();
    let line = format!("{} imported, {} known already, {} failed", imported.len(), known.len(), failed.len());
    match g.json {
        true => out::print_json(&json!({"imported": imported, "known": known, "failed": failed}))?,
        false => out::print_lines([line])?,
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `None` when the model's newest version holds the same files: running `--each` again adds nothing.
fn import_unless_known(turn: &mut Turn, a: &Args, path: &Path, name: &str, tell: bool) -> Result<Option<Value>> {
    let name: VersionRef = name.parse()?;
    let newest = turn.session()?.call(Request::Resolve(name.clone()));
    if let Ok(Response::Head(head)) = newest {
        if Turn::is_long(path, a.effort)? {
            turn.release();
        }
        if same_files(&turn.repo, &head.id, path)? {
            return Ok(None);
        }
    }
    import(turn, a, path, name, tell).map(Some)
}

/// The say over the catalog. It is kept from one small model to the next, for opening the catalog takes longer than
/// they do; but only for a moment, then whoever waits gets it.
pub(super) struct Turn {
    pub(super) repo: Arc<Repo>,
    held: Option<(Session, Instant)>,
}

impl Turn {
    /// How long it is kept, and how long it is then left to others, who try each 20 ms.
    const KEPT: Duration = Duration::from_secs(1);
    const LEFT: Duration = Duration::from_millis(50);
    /// Models with more bytes are read and encoded without it.
    const SMALL: u64 = 32 << 20;

    pub(super) fn new(g: &Global) -> Result<Turn> {
        Ok(Turn { repo: g.open()?, held: None })
    }

    pub(super) fn session(&mut self) -> Result<&mut Session> {
        Ok(self.say()?)
    }

    fn say(&mut self) -> Result<&mut Session, RepoError> {
        if self.held.as_ref().is_some_and(|(_, since)| since.elapsed() > Turn::KEPT) {
            self.held = None;
            std::thread::sleep(Turn::LEFT);
        }
        if self.held.is_none() {
            self.held = Some((Session::open(&self.repo)?, Instant::now()));
        }
        Ok(&mut self.held.as_mut().expect("just opened").0)
    }

    /// Lets others have it: long work comes.
    pub(super) fn release(&mut self) {
        self.held = None;
    }

    /// Whether work on all of a model is too long to be done meanwhile.
    fn is_long(path: &Path, effort: Effort) -> Result<bool> {
        Ok(matches!(effort, Effort::Max) || walk::bytes(&walk::find(path)?) > Turn::SMALL)
    }
}

fn same_files(repo: &Arc<Repo>, id: &Id, path: &Path) -> Result<bool> {
    let (record, found) = (repo.record(id)?, walk::find(path)?);
    if record.files.len() != found.len() {
        return Ok(false);
    }
    for (entry, found) in record.files.iter().zip(&found) {
        let same = match found {
            walk::Found::EmptyDirectory { name } => entry.kind == EntryKind::Directory && entry.path == *name,
            walk::Found::File { name, source, bytes } => {
                entry.path == *name
                    && entry.bytes == *bytes
                    && hash::hash_file(name, source, &progress::Silent)?.digest == entry.digest
            }
        };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

fn import(turn: &mut Turn, a: &Args, path: &Path, name: VersionRef, tell: bool) -> Result<Value> {
    let start = Instant::now();
    let lossy = a.lossy.wanted()?;
    refuse_own_mount(turn.session()?, path)?;
    let version = new_version(turn.session()?, &name)?;
    let mut place = resolve(turn.session()?, a, &name.model, version)?;
    let recipe = super::recipe::quoted(&turn.repo, a.recipe.as_deref(), &a.recipe_files)?;
    let long = Turn::is_long(path, a.effort)?;
    if long {
        turn.release();
    }
    let bar = out::Bar::new(&format!("importing {}", name.model), true)?;
    let hashed = hash_all(&turn.repo, path, &bar)?;
    place.look(turn, a, &name.model, &hashed, &bar)?;
    let mut spec = spec_of(a, &name.model, &place);
    let made = if lossy { make_lossy(turn, a, &spec, &place, &hashed, &bar)? } else { None };
    spec.lossy = made.as_ref().map(|m| m.lossy.clone());
    let (hashed, results) = made.as_ref().map_or((&hashed, vec![]), |m| (&m.hashed, m.results.clone()));
    if long {
        turn.release();
    }
    let prepared = prepare(&turn.repo, &spec, hashed, &bar)?;
    bar.done();
    let prepared = publish_with(turn, prepared, &place.moves, (recipe, results), name.version.is_none())?;
    turn.repo.packs.refresh()?;
    origin::remember(&turn.repo.clone(), turn, &bar);
    let seconds = start.elapsed().as_secs_f64();
    if tell {
        tell_import(&prepared, &place, seconds)?;
        if lossy && made.is_none() {
            out::print_lines(["  exact: nothing takes less within the bound"])?;
        }
    }
    Ok(report(&prepared, &place, seconds))
}

/// The same with its weights moved, if it passes the gate.
fn make_lossy(
    turn: &mut Turn,
    a: &Args,
    spec: &ImportSpec,
    place: &Place,
    hashed: &Hashed,
    bar: &out::Bar,
) -> Result<Option<Made>> {
    turn.release();
    let repo = turn.repo.clone();
    repo.refresh()?;
    let name = |h: &Head| (h.model.clone(), h.version.clone());
    let original = Original {
        entries: hashed.entries(),
        model: &spec.model,
        version: &spec.version,
        id: id_of(&repo, spec, hashed),
        stored: false,
        bases: spec.bases(),
        parents: place.parents.iter().map(|(h, _)| name(h)).collect(),
        previous: place.previous.as_ref().map(name),
        otherwise: "nothing was stored",
    };
    make(&repo, &a.lossy, &original, spec.effort, bar)
}

fn spec_of(a: &Args, model: &ModelName, place: &Place) -> ImportSpec {
    ImportSpec {
        model: model.clone(),
        version: place.version.clone(),
        parents: place.parents.iter().map(|(_, e)| *e).collect(),
        previous: place.previous.as_ref().map(|h| h.id),
        guess: place.guess,
        told: a.relation.is_none(),
        origin: place.origin.clone(),
        near: place.near.clone(),
        message: a.message.clone(),
        effort: a.effort.into(),
        lossy: None,
    }
}

/// What came of a draft.
pub enum Outcome {
    Committed(Value),
    /// It came to nothing new: it holds what the version whose place it takes does.
    Same(Head),
    /// Somebody wrote to it meanwhile.
    Changed,
}

/// Encodes a draft and makes it a version.
pub fn import_draft(g: &Global, job: &Job, settled: bool, tell: bool) -> Result<Outcome> {
    let (start, mut turn) = (Instant::now(), Turn::new(g)?);
    let a = Args {
        path: job.dir.clone(),
        name: None,
        parents: job.parents.clone(),
        relation: None,
        no_parent: false,
        message: job.message.clone(),
        effort: Effort::Default,
        each: false,
        recipe: None,
        recipe_files: vec![],
        lossy: LossyArgs::default(),
    };
    let model = &job.slot.model;
    turn.held = None;
    let bar = out::Bar::new(&format!("committing {}", job.slot), true)?;
    let hashed = hash_draft(&job.dir, &bar)?;
    let publish = |turn: &mut Turn, event, moves: &[Move]| {
        let request = Request::PublishDraft(event, moves.to_vec(), job.slot.clone(), job.mark);
        Ok::<_, anyhow::Error>(turn.session()?.call(request)?)
    };
    let place = match &job.replaces {
        Some((old, parents)) if job.parents.is_empty() => {
            let record = turn.repo.record(&old.id)?;
            if hashed.is_of(&record) && record.message == job.message {
                return match publish(&mut turn, None, &[])? {
                    Response::Changed => Ok(Outcome::Changed),
                    _ => Ok(Outcome::Same(old.clone())),
                };
            }
            Place::of_replaced(turn.session()?, old, parents, &job.version)?
        }
        _ => {
            let mut place = resolve(turn.session()?, &a, model, job.version.clone())?;
            turn.held = None;
            place.look(&mut turn, &a, model, &hashed, &bar)?;
            if let Some((old, _)) = &job.replaces {
                place.previous.take_if(|p| p.id == old.id);
                place.near.push(old.id);
            }
            place
        }
    };
    turn.held = None;
    let prepared = prepare(&turn.repo, &spec_of(&a, model, &place), &hashed, &bar)?;
    bar.done();
    let mut event = prepared.event();
    if let Event::Commit { settled: s, .. } = &mut event {
        *s = settled;
    }
    match publish(&mut turn, Some(event), &place.moves)? {
        Response::Changed => return Ok(Outcome::Changed),
        Response::Head(_) => {}
        other => return Err(unexpected(&other).into()),
    }
    turn.repo.packs.refresh()?;
    origin::remember(&turn.repo.clone(), &mut turn, &bar);
    let seconds = start.elapsed().as_secs_f64();
    if tell {
        tell_import(&prepared, &place, seconds)?;
    }
    Ok(Outcome::Committed(report(&prepared, &place, seconds)))
}

/// The lineage of the version to be.
struct Place {
    version: VersionName,
    parents: Vec<(Head, ParentEdge)>,
    previous: Option<Head>,
    /// `previous` was found by content.
    guess: bool,
    origin: Option<Origin>,
    moves: Vec<Move>,
    near: Vec<Id>,
}

fn new_version(session: &mut Session, name: &VersionRef) -> Result<VersionName> {
    Ok(match &name.version {
        Some(v) => {
            session.call(Request::CheckName(name.model.clone(), v.clone()))?;
            v.clone()
        }
        None => ask!(session, Request::NextName(name.model.clone()), Response::Name(v) => v)?,
    })
}

fn resolve(session: &mut Session, a: &Args, model: &ModelName, version: VersionName) -> Result<Place> {
    let (mut parents, mut previous) = (Vec::<(Head, ParentEdge)>::new(), None);
    for p in &a.parents {
        let head = ask!(session, Request::Resolve(p.clone()), Response::Head(h) => h)?;
        if head.model == *model {
            if previous.replace(head).is_some() {
                bail!("a version follows one other of its model; give one --parent of {model}");
            }
        } else if !parents.iter().any(|(h, _)| h.id == head.id) {
            let edge = ParentEdge::new(head.id, a.relation.map_or(Relation::Derived, |r| r.0));
            parents.push((head, edge));
        }
    }
    if previous.is_none() && !a.no_parent {
        let newest = VersionRef { model: model.clone(), version: None };
        if let Ok(Response::Head(head)) = session.call(Request::Resolve(newest)) {
            previous = Some(head);
        }
    }
    Ok(Place { version, parents, previous, guess: false, origin: None, moves: vec![], near: vec![] })
}

impl Place {
    /// That of the settled version whose place it takes, which itself is no part of its lineage.
    fn of_replaced(
        session: &mut Session,
        old: &Head,
        parents: &[(Head, ParentEdge)],
        version: &VersionName,
    ) -> Result<Place> {
        let above = ask!(session, Request::Above(old.id), Response::Above(above) => above)?;
        let previous = above.and_then(|a| a.previous).filter(|h| !h.removed);
        let parents = parents.iter().filter(|(h, _)| !h.removed).cloned().collect();
        let (version, near) = (version.clone(), vec![old.id]);
        Ok(Place { version, parents, previous, guess: old.guess, origin: None, moves: vec![], near })
    }

    /// What the content says: of the relation to parents that were named, or which parents there are.
    fn look(&mut self, turn: &mut Turn, a: &Args, model: &ModelName, hashed: &Hashed, bar: &out::Bar) -> Result<()> {
        let new = New { model, files: &hashed.files() };
        let repo = turn.repo.clone();
        if !self.parents.is_empty() && a.relation.is_none() {
            let heads: Vec<Head> = self.parents.iter().map(|(h, _)| h.clone()).collect();
            let edges = origin::told(&repo, &new, &heads)?;
            self.parents.iter_mut().zip(edges).for_each(|(p, e)| p.1 = e);
        }
        if !a.parents.is_empty() || a.no_parent {
            return Ok(());
        }
        let found = origin::find(&repo, turn, &new, bar)?;
        // A member of a mix is one for sure.
        self.guess = found.previous.is_none() || found.parents.is_empty();
        self.previous = found.previous.or(self.previous.take().filter(|_| !found.precedes));
        self.guess &= self.previous.is_some();
        (self.parents, self.origin, self.moves) = (found.parents, Some(found.origin), found.moves);
        self.near = found.near;
        Ok(())
    }
}

impl Ask for Turn {
    fn since(&mut self, seq: u64) -> Result<Vec<Id>, RepoError> {
        ask!(self.say()?, Request::Since(seq), Response::Ids(ids) => ids)
    }

    fn above(&mut self, id: &Id) -> Result<Option<Above>, RepoError> {
        ask!(self.say()?, Request::Above(*id), Response::Above(above) => above)
    }

    fn find(&mut self, name: &VersionRef) -> Result<Option<Head>, RepoError> {
        match self.say()?.call(Request::Resolve(name.clone())) {
            Ok(Response::Head(head)) => Ok(Some(head)),
            _ => Ok(None),
        }
    }
}

/// A mount would be read through itself, its own reads feeding the store.
fn refuse_own_mount(session: &mut Session, path: &Path) -> Result<()> {
    if let Some(mountpoint) = session.mountpoint()?
        && path.canonicalize().with_context(|| path.display().to_string())?.starts_with(&mountpoint)
    {
        bail!("{}: this is the mount of the same repository; its versions are stored already", path.display());
    }
    Ok(())
}

/// Makes the version visible; under the next free name when a default one was taken meanwhile.
pub(super) fn publish(turn: &mut Turn, prepared: Prepared, moves: &[Move], default_name: bool) -> Result<Prepared> {
    publish_with(turn, prepared, moves, (None, vec![]), default_name)
}

/// As [`publish`], with a recipe and what tests gave.
fn publish_with(
    turn: &mut Turn,
    mut prepared: Prepared,
    moves: &[Move],
    (recipe, mut results): (Option<Build>, Vec<TestResult>),
    default_name: bool,
) -> Result<Prepared> {
    for _ in 0..100 {
        let session = turn.session()?;
        let (model, version) = (prepared.record.model.clone(), prepared.record.version.clone());
        if default_name && session.call(Request::CheckName(model.clone(), version)).is_err() {
            let next = ask!(session, Request::NextName(model), Response::Name(v) => v)?;
            prepared = rename_prepared(&turn.repo, prepared, next)?;
            continue;
        }
        let (commit, moves) = (prepared.event(), moves.to_vec());
        match recipe.is_none() && results.is_empty() {
            true => ask!(session, Request::Publish(commit, moves), Response::Head(h) => h)?,
            false => {
                results.iter_mut().for_each(|r| r.version = prepared.id);
                let publication = Publication { commit, moves, results, recipe, step: None };
                work!(session, About::Publish(Box::new(publication)), Answer::Head(h) => h)?
            }
        };
        return Ok(prepared);
    }
    bail!("{}: other imports keep taking the next name; use --as MODEL@VERSION", prepared.record.model)
}

fn tell_import(p: &Prepared, place: &Place, seconds: f64) -> Result<()> {
    let (model, version) = (&p.record.model, &p.record.version);
    let logical = p.record.logical_bytes();
    let share = 100.0 * p.new_stored_bytes as f64 / logical.max(1) as f64;
    let (raw, new) = (out::size(logical), out::size(p.new_stored_bytes));
    let mut lines = vec![format!("{model}@{version}  {raw} stored in {new} ({share:.1} %), {seconds:.1} s")];
    for ((head, _), edge) in place.parents.iter().zip(&p.record.parents) {
        let guess = if edge.guess { " (the direction is a guess; 'mgit link' fixes it)" } else { "" };
        lines.push(format!("  {} of {}{guess}", edge.relation, label(head)));
    }
    lines.extend(place.previous.iter().map(|h| format!("  after {}", label(h))));
    if let Some(o) = &place.origin {
        lines.push(format!("  found by content{}: {}", o.sure(), o.evidence));
        lines.extend(o.hints.iter().map(|h| format!("  claimed in {h}")));
    }
    if let Some(l) = &p.record.lossy {
        lines.push(format!("  lossy: {}", words(l)));
        lines.extend(gate_words(l).iter().map(|g| format!("  {g}")));
    }
    Ok(out::print_lines(lines)?)
}

fn report(p: &Prepared, place: &Place, seconds: f64) -> Value {
    let related = |((h, _), e): (&(Head, ParentEdge), &ParentEdge)| out::parent(&(h.clone(), *e));
    json!({
        "model": p.record.model, "version": p.record.version, "id": p.id,
        "parents": place.parents.iter().zip(&p.record.parents).map(related).collect::<Vec<_>>(),
        "previous": place.previous.as_ref().map(out::version),
        "origin": place.origin,
        "lossy": p.record.lossy,
        "logical_bytes": p.record.logical_bytes(),
        "new_stored_bytes": p.new_stored_bytes,
        "seconds": (seconds * 1000.0).round() / 1000.0,
    })
}
