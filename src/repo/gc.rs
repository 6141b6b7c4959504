//! Giving back what nothing needs any longer.
//!
//! A plan from what is live ([`super::roots`]) and what the packs hold; then its execution: the live things of packs
//! that are mostly dead move to a new pack, which is sealed before the old ones go. Stopped anywhere, the repository is
//! whole, and the next run goes on. What is live is taken from the journal, not from the catalog; and while something of it
//! is damaged or missing, nothing is freed, for nobody knows what that would need.
//!
//! It runs alone at the gate: not beside an import. So that nobody waits for long, it goes in steps, each with a plan of its
//! own, between which the gate is open. It writes nothing to the journal.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::engine::Engine;
use super::progress::Progress;
use super::roots::{Live, Roots};
use super::{Repo, RepoError};
use crate::store::gate;
use crate::store::pack::{Kind, PackWriter, remove_leftovers};

/// Live bytes after which a step ends: some seconds' work.
pub const STEP: u64 = 1 << 30;

/// What is freed.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Rules {
    pub dry_run: bool,
    /// What went away less long ago stays.
    pub grace: Duration,
    /// From how many per cent of dead bytes on a pack is written anew.
    pub dead_percent: u8,
    /// Live bytes after whose moving the step ends, at a pack's end.
    #[serde(default = "step")]
    pub step: u64,
}

fn step() -> u64 {
    STEP
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    Keep,
    Compact,
    Remove,
}

/// What becomes of a pack.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PackPlan {
    pub pack: String,
    pub bytes: u64,
    /// Of these, bytes of what nothing needs.
    pub dead: u64,
    pub fate: Fate,
}

/// What was done, or would be.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub packs: Vec<PackPlan>,
    /// Unfinished packs of crashed imports.
    pub leftovers: usize,
    pub freed_bytes: u64,
    /// There is more to do: another step.
    #[serde(default)]
    pub more: bool,
    /// How long making the plan took.
    #[serde(default)]
    pub planning: Duration,
}

impl Outcome {
    /// Of this and the step that came after it.
    pub fn and(mut self, next: Outcome) -> Outcome {
        self.packs.extend(next.packs);
        let (leftovers, freed_bytes) = (self.leftovers + next.leftovers, self.freed_bytes + next.freed_bytes);
        Outcome { packs: self.packs, leftovers, freed_bytes, ..next }
    }
}

/// Frees what the rules allow, one step of it. `None` while something else adds to the packs: nothing was done.
pub fn collect(engine: &Engine, rules: &Rules, progress: &dyn Progress) -> Result<Option<Outcome>, RepoError> {
    let (repo, dir) = (&*engine.repo, engine.repo.dir.join("packs"));
    if rules.dry_run {
        repo.refresh()?;
        let packs = plan(engine, rules)?.0;
        let freed_bytes = packs.iter().map(|p| if p.fate == Fate::Remove { p.bytes } else { p.dead }).sum();
        return Ok(Some(Outcome { packs, freed_bytes, ..Outcome::default() }));
    }
    let Some(_alone) = gate::try_close(&*repo.disk, &dir)? else { return Ok(None) };
    let start = Instant::now();
    repo.refresh()?;
    let leftovers = remove_leftovers(&*repo.disk, &dir)?.len();
    let (mut packs, live) = plan(engine, rules)?;
    let (planning, before, all) = (start.elapsed(), repo.packs.pack_bytes(), packs.len());
    packs.truncate(execute(repo, &packs, &live, rules.step, progress)?);
    engine.tell(&[]);
    let freed_bytes = before.saturating_sub(repo.packs.pack_bytes());
    let more = packs.len() < all;
    Ok(Some(Outcome { packs, leftovers, freed_bytes, more, planning }))
}

/// What becomes of the packs that do not stay as they are: first those that go, then those of which least is moved.
fn plan(engine: &Engine, rules: &Rules) -> Result<(Vec<PackPlan>, Live), RepoError> {
    let repo = &*engine.repo;
    repo.distrust_footers()?;
    let since = repo.disk.now().checked_sub(rules.grace).unwrap_or(Timestamp::MIN);
    let live = Roots::of(repo, &engine.replayed()?, since).and_then(|roots| roots.live(repo));
    let live = live.map_err(|e| {
        RepoError::refused(format!(
            "{e}; nothing is freed while something that is needed is damaged: see 'mgit fsck', or remove what needs it"
        ))
    })?;
    let all = repo.packs.pack_names().into_iter().map(|pack| fate(repo, pack, &live, rules));
    let mut packs: Vec<PackPlan> = all.filter(|p| p.fate != Fate::Keep).collect();
    packs.sort_by_key(|p| (p.fate != Fate::Remove, p.bytes - p.dead));
    Ok((packs, live))
}

fn fate(repo: &Repo, pack: String, live: &Live, rules: &Rules) -> PackPlan {
    let listing = repo.packs.listing(&pack);
    let needed = listing.things.iter().filter(|t| t.counts && live.has(t.kind, &t.id));
    let (count, bytes) = needed.fold((0, 0), |(n, bytes), t| (n + 1, bytes + t.stored));
    let all: u64 = listing.things.iter().map(|t| t.stored).sum();
    let dead = all - bytes;
    let fate = match count {
        0 if repo.packs.is_known(&pack) => Fate::Remove,
        0 => Fate::Keep,
        _ if !listing.sound || dead == 0 => Fate::Keep,
        _ if dead as f64 * 100.0 < rules.dead_percent as f64 * all as f64 => Fate::Keep,
        _ => Fate::Compact,
    };
    PackPlan { pack, bytes: listing.bytes, dead, fate }
}

/// Carries the plan out, up to where the step ends, and returns how many packs that was. What is dead for sure goes first: the
/// disk may be full. A pack is moved whole: half moved it would be there twice for as long as the rest cannot be read.
fn execute(
    repo: &Repo,
    plan: &[PackPlan],
    live: &Live,
    step: u64,
    progress: &dyn Progress,
) -> Result<usize, RepoError> {
    let (dead, compact) = plan.split_at(plan.partition_point(|p| p.fate == Fate::Remove));
    progress.expect(compact.iter().map(|p| p.bytes - p.dead).sum());
    progress.check()?;
    repo.packs.remove(&names(dead))?;
    if compact.is_empty() {
        return Ok(plan.len());
    }
    let mut to = PackWriter::create_beside(repo.disk.clone(), &repo.dir.join("packs"))?;
    let mut count = 0;
    while let Some(pack) = compact.get(count).filter(|_| count == 0 || to.bytes() < step) {
        for t in repo.packs.listing(&pack.pack).things.iter().filter(|t| t.counts && live.has(t.kind, &t.id)) {
            progress.check()?;
            repo.packs.copy(t.kind, &t.id, &mut to)?;
            progress.stored(t.stored);
        }
        count += 1;
    }
    let _lease = to.seal()?;
    repo.packs.remove(&names(&compact[..count]))?;
    repo.refresh()?;
    Ok(dead.len() + count)
}

fn names(packs: &[PackPlan]) -> Vec<String> {
    packs.iter().map(|p| p.pack.clone()).collect()
}

impl Live {
    fn has(&self, kind: Kind, id: &crate::model::id::Id) -> bool {
        match kind {
            Kind::Version => self.versions.contains(id),
            Kind::Recipe => self.recipes.contains(id),
            _ => self.objects.contains(id),
        }
    }
}
