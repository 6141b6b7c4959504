//! Giving back what nothing needs any longer.
//!
//! A plan from what is live ([`super::roots`]) and what the packs hold; then its execution: the live things of packs
//! that are mostly dead move to a new pack, which is sealed before the old ones go. Stopped anywhere, the repository is
//! whole, and the next run goes on. What is live is taken from the journal, not from the catalog; and while something of it
//! is damaged or missing, nothing is freed, for nobody knows what that would need.
//!
//! It runs alone at the gate: not beside an import. So that nobody waits for long, it goes in steps, each with a plan of its
//! own, between which the gate is open. It writes nothing to the journal.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::engine::Engine;
use super::progress::Progress;
use super::roots::{Live, Roots};
use super::{Repo, RepoError};
use crate::store::gate;
use crate::store::pack::{Kind, PackWriter, remove_leftovers};

/// Live bytes that a step moves: about a second's work.
pub const STEP: u64 = 512 << 20;

/// What is freed.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Rules {
    pub dry_run: bool,
    /// What went away less long ago stays.
    pub grace: Duration,
    /// From how many per cent of dead bytes on a pack is written anew.
    pub dead_percent: u8,
    /// Live bytes after whose moving the step ends.
    pub step: u64,
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
    /// Of a step, less than none where a pack is moved in parts.
    pub freed_bytes: i64,
    /// There is more to do: another step.
    #[serde(default)]
    pub more: bool,
}

impl Outcome {
    /// Of this and the step that came after it.
    pub fn and(mut self, next: Outcome) -> Outcome {
        let known = |pack: &PackPlan| self.packs.iter().any(|p| p.pack == pack.pack && p.fate != Fate::Keep);
        let new: Vec<_> = next.packs.into_iter().filter(|p| !known(p)).collect();
        self.packs.extend(new);
        let (leftovers, freed_bytes) = (self.leftovers + next.leftovers, self.freed_bytes + next.freed_bytes);
        Outcome { leftovers, freed_bytes, more: next.more, ..self }
    }
}

/// Frees what the rules allow, one step of it. `None` while something else adds to the packs: nothing was done.
pub fn collect(engine: &Engine, rules: &Rules, progress: &dyn Progress) -> Result<Option<Outcome>, RepoError> {
    let (repo, dir) = (&*engine.repo, engine.repo.dir.join("packs"));
    if rules.dry_run {
        repo.refresh()?;
        let (packs, _) = plan(engine, rules)?;
        let freed_bytes = packs.iter().filter(|p| p.fate != Fate::Keep).map(freed).sum();
        return Ok(Some(Outcome { packs, leftovers: 0, freed_bytes, more: false }));
    }
    let Some(_alone) = gate::try_close(&*repo.disk, &dir)? else { return Ok(None) };
    repo.refresh()?;
    let leftovers = remove_leftovers(&*repo.disk, &dir)?.len();
    let (packs, live) = plan(engine, rules)?;
    let before = repo.packs.pack_bytes();
    let more = execute(repo, &packs, &live, rules.step, progress)?;
    engine.tell(&[]);
    let freed_bytes = before as i64 - repo.packs.pack_bytes() as i64;
    Ok(Some(Outcome { packs, leftovers, freed_bytes, more }))
}

fn freed(pack: &PackPlan) -> i64 {
    (if pack.fate == Fate::Remove { pack.bytes } else { pack.dead }) as i64
}

fn plan(engine: &Engine, rules: &Rules) -> Result<(Vec<PackPlan>, Live), RepoError> {
    let repo = &*engine.repo;
    let since = repo.disk.now().checked_sub(rules.grace).unwrap_or(Timestamp::MIN);
    let live = Roots::of(repo, &engine.replayed()?, since).and_then(|roots| roots.live(repo));
    let live = live.map_err(|e| {
        RepoError::refused(format!(
            "{e}; nothing is freed while something that is needed is damaged: see 'mgit fsck', or remove what needs it"
        ))
    })?;
    let packs = repo.packs.pack_names().into_iter().map(|pack| fate(repo, pack, &live, rules)).collect();
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

/// Carries the plan out, up to where the step ends. Returns whether that left anything. What is dead for sure goes first:
/// the disk may be full.
fn execute(repo: &Repo, plan: &[PackPlan], live: &Live, step: u64, progress: &dyn Progress) -> Result<bool, RepoError> {
    let of = |fate| plan.iter().filter(move |p| p.fate == fate);
    progress.expect(of(Fate::Compact).map(|p| p.bytes - p.dead).sum());
    progress.check()?;
    repo.packs.remove(&of(Fate::Remove).map(|p| p.pack.clone()).collect::<Vec<_>>())?;
    let mut old: Vec<String> = Vec::new();
    let mut writer: Option<PackWriter> = None;
    for pack in of(Fate::Compact) {
        for t in repo.packs.listing(&pack.pack).things.iter().filter(|t| t.counts && live.has(t.kind, &t.id)) {
            progress.check()?;
            if writer.as_ref().is_some_and(|to| to.bytes() >= step) {
                return replace(repo, writer, &old).map(|()| true);
            }
            let to = match &mut writer {
                Some(to) => to,
                none => none.insert(PackWriter::create_beside(repo.disk.clone(), &repo.dir.join("packs"))?),
            };
            repo.packs.copy(t.kind, &t.id, to)?;
            progress.stored(t.stored);
        }
        old.push(pack.pack.clone());
    }
    replace(repo, writer, &old).map(|()| false)
}

/// The new pack in the place of the old ones. Of one that was moved in part, the copies in the new pack count.
fn replace(repo: &Repo, writer: Option<PackWriter>, old: &[String]) -> Result<(), RepoError> {
    let Some(writer) = writer else { return Ok(()) };
    let _lease = writer.seal()?;
    repo.packs.remove(old)?;
    repo.refresh()
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
