//! The one that has the say: catalog and journal of a repository, held by one process at a time.
//!
//! Every change is decided against the catalog, appended to the journal (durable when that returns) and
//! then applied to the catalog. A catalog that lags behind or is gone is brought up to date from the journal
//! when the engine opens.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, RwLock};

use serde::{Deserialize, Serialize};

use super::origin::{Move, NEW};
use super::{Head, Repo, RepoError, draft};
use crate::model::event::Event;
use crate::model::id::Id;
use crate::model::lineage::Lineage;
use crate::model::name::{ModelName, VersionName, VersionRef};
use crate::model::record::{EntryKind, ParentEdge, Relation, VersionRecord};
use crate::store::catalog::Catalog;
use crate::store::disk::Disk;
use crate::store::journal::{Journal, is_read_only};
use crate::store::{RepoLock, StoreError, lock_exclusive};

/// A version with its edges, each end as a head.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Detail {
    pub head: Head,
    pub parents: Vec<(Head, ParentEdge)>,
    pub previous: Option<Head>,
    pub next: Vec<Head>,
    pub children: Vec<(Head, Relation)>,
    #[serde(default)]
    pub tags: Vec<VersionName>,
}

/// A version and what it comes from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Above {
    pub head: Head,
    pub parents: Vec<(Head, ParentEdge)>,
    pub previous: Option<Head>,
}

/// The parents of versions that have some, by child.
pub(super) type Parents = HashMap<Id, Vec<ParentEdge>>;

/// Catalog, journal and the lock that makes them ours.
pub struct Engine {
    pub repo: Arc<Repo>,
    catalog: RwLock<Arc<Catalog>>,
    journal: Mutex<Journal>,
    /// Told after each change, with the models that it touched.
    listener: RwLock<Option<Listener>>,
    _lock: RepoLock,
}

/// What is called after a change.
pub type Listener = Box<dyn Fn(&[Event]) + Send + Sync>;

impl Engine {
    /// Takes the repository's lock and brings the catalog up to the journal. `None` when another has it.
    pub fn try_open(repo: Arc<Repo>) -> Result<Option<Engine>, RepoError> {
        let Some(lock) = lock_exclusive(&repo.disk, &repo.dir, false)? else { return Ok(None) };
        let catalog = open_catalog(&repo.dir.join("catalog"))?;
        Engine::with(repo, catalog, lock).map(Some)
    }

    /// As [`try_open`](Self::try_open), with a catalog of the caller's.
    pub fn with(repo: Arc<Repo>, catalog: Catalog, lock: RepoLock) -> Result<Engine, RepoError> {
        let dir = repo.dir.join("journal");
        if !repo.packs.versions().is_empty() && !Journal::exists(&*repo.disk, &dir)? {
            return Err(StoreError::Damaged { what: format!("journal {}: it is gone", dir.display()) }.into());
        }
        let journal = Journal::open(repo.disk.clone(), &dir)?;
        let caught_up = match journal.sync() {
            Ok(()) => catch_up(&catalog, &journal),
            Err(e) => {
                // The catalog must not outlive what the journal says.
                log::warn!("{e}: nothing is written to the catalog");
                return Ok(Engine::of(temporary(&journal)?, repo, journal, lock));
            }
        };
        let catalog = match caught_up {
            Err(e) if has_no_place(&e) => temporary(&journal)?,
            done => done.map(|()| catalog)?,
        };
        Ok(Engine::of(catalog, repo, journal, lock))
    }

    fn of(catalog: Catalog, repo: Arc<Repo>, journal: Journal, lock: RepoLock) -> Engine {
        let journal = Mutex::new(journal);
        let catalog = RwLock::new(Arc::new(catalog));
        Engine { repo, catalog, journal, listener: RwLock::new(None), _lock: lock }
    }

    pub fn on_change(&self, listener: Listener) {
        *self.listener.write().unwrap_or_else(|e| e.into_inner()) = Some(listener);
    }

    pub fn catalog(&self) -> Arc<Catalog> {
        self.catalog.read().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// The version that a reference names.
    pub fn resolve(&self, reference: &VersionRef) -> Result<Head, RepoError> {
        let head = match &reference.version {
            Some(v) => match self.catalog().find(&reference.model, v)? {
                None => self.tagged(&reference.model, v)?,
                found => found,
            },
            None => self.catalog().newest(&reference.model)?,
        };
        head.ok_or_else(|| RepoError::refused(format!("no version '{reference}' here; 'mgit ls' shows what there is")))
    }

    /// The name that the next version of a model gets by default.
    pub fn next_name(&self, model: &ModelName) -> Result<VersionName, RepoError> {
        let mut n = self.catalog().ever(model)? + 1;
        while self.catalog().name_used(model, &VersionName::numbered(n))?
            || self.drafted(model, &VersionName::numbered(n))
        {
            n += 1;
        }
        Ok(VersionName::numbered(n))
    }

    /// Fails when the name was ever given to a version of the model.
    pub fn refuse_used(&self, model: &ModelName, version: &VersionName) -> Result<(), RepoError> {
        match self.catalog().name_used(model, version)? {
            false if self.catalog().tagged(model, version)?.is_some() => {
                Err(RepoError::refused(format!("{model}@{version} is a tag; choose another version name")))
            }
            false if self.drafted(model, version) => Err(RepoError::refused(format!(
                "{model}@{version} is a draft in the mount; 'mgit seal' makes it a version, 'mgit discard' removes it"
            ))),
            false => Ok(()),
            true if self.catalog().find(model, version)?.is_some() => {
                Err(RepoError::refused(format!("{model}@{version} exists already; choose another version name")))
            }
            true => Err(RepoError::refused(format!(
                "{model}@{version} was removed, and names are not used again; choose another"
            ))),
        }
    }

    fn drafted(&self, model: &ModelName, version: &VersionName) -> bool {
        let drafts = self.repo.dir.join(draft::DRAFTS);
        std::fs::symlink_metadata(drafts.join(model.dir_name()).join(version.as_str())).is_ok()
    }

    /// The settled version, if there is one, in whose place a draft of that name would come. Fails where the name is
    /// or was another's.
    pub fn in_place_of(&self, model: &ModelName, version: &VersionName) -> Result<Option<Head>, RepoError> {
        match self.catalog().last_named(model, version)? {
            Some(h) if h.settled => Ok(Some(h).filter(|h| !h.removed)),
            Some(_) => self.refuse_used(model, version).map(|()| None),
            None => Ok(None),
        }
    }

    /// Makes a settled version final. Returns whether it was not before.
    pub fn seal(&self, head: &Head) -> Result<bool, RepoError> {
        let mut journal = self.journal.lock().unwrap_or_else(|e| e.into_inner());
        if !head.settled {
            return Ok(false);
        }
        self.commit(&mut journal, vec![Event::Seal { id: head.id }])?;
        Ok(true)
    }

    /// Makes a sealed import visible, and moves guessed edges to it. `event` must be a commit whose record lies in a pack.
    pub fn publish(&self, event: Event, moves: &[Move]) -> Result<Head, RepoError> {
        self.publish_all(event, moves, vec![], false)
    }

    /// As [`publish`](Self::publish), with more events that happen with it or not at all.
    pub fn publish_with(&self, event: Event, moves: &[Move], more: Vec<Event>) -> Result<Head, RepoError> {
        self.publish_all(event, moves, more, false)
    }

    /// As [`publish`](Self::publish), of a draft: it may take the name of a settled version, which it replaces.
    pub fn publish_draft(&self, event: Event, moves: &[Move]) -> Result<Head, RepoError> {
        self.publish_all(event, moves, vec![], true)
    }

    fn publish_all(&self, event: Event, moves: &[Move], more: Vec<Event>, draft: bool) -> Result<Head, RepoError> {
        let Event::Commit { model, version, id, previous, parents, .. } = &event else {
            return Err(RepoError::refused("only a commit can be published"));
        };
        self.check_commit(&event)?;
        let mut journal = self.journal.lock().unwrap_or_else(|e| e.into_inner());
        let replaced = match draft {
            true => self.in_place_of(model, version)?,
            false => self.refuse_used(model, version).map(|()| None)?,
        };
        for parent in parents.iter().map(|p| &p.id).chain(previous) {
            if self.catalog().by_id(parent)?.is_none_or(|h| h.removed) {
                return Err(RepoError::refused(format!("the parent {} was removed meanwhile", parent.short())));
            }
        }
        let id = *id;
        let moved = self.moved(&event, id, moves)?;
        // What is replaced is not taken back by `undo`.
        let gone = replaced.map(|h| Event::Remove { model: h.model, version: h.version, id: h.id, at: None });
        self.commit(&mut journal, gone.into_iter().chain([event]).chain(moved).chain(more).collect())?;
        self.catalog().by_id(&id)?.ok_or_else(|| RepoError::damaged("a published version is not there".into()))
    }

    /// What a commit names must be there, under that name, and whole.
    pub(super) fn check_commit(&self, commit: &Event) -> Result<(), RepoError> {
        let Event::Commit { model, version, id, .. } = commit else {
            return Err(RepoError::refused("only a commit can be published"));
        };
        self.repo.refresh()?;
        let record = self.repo.record(id)?;
        if record.model != *model || record.version != *version || record.files.is_empty() {
            return Err(RepoError::damaged(format!("version record {id} is not that of {model}@{version}")));
        }
        self.refuse_incomplete(&record)
    }

    /// The moves as events, but for those that the lineage has overtaken. They were planned together: where all
    /// would close a circle, for the lineage has changed, each is taken or left by itself.
    fn moved(&self, commit: &Event, new: Id, moves: &[Move]) -> Result<Vec<Event>, RepoError> {
        let Event::Commit { previous, parents, .. } = commit else { return Ok(vec![]) };
        let mut standing = Vec::new();
        for m in moves {
            if self.stands(m)? {
                let to = m.to.iter().map(|e| if e.id == NEW { ParentEdge { id: new, ..*e } } else { *e });
                standing.push(Move { to: to.collect(), ..m.clone() });
            }
        }
        if standing.is_empty() {
            return Ok(vec![]);
        }
        let mut edges = self.edges()?;
        edges.extend(parents.iter().map(|p| &p.id).chain(previous).map(|p| (*p, new)));
        if closes_circle(&after(&edges, &standing), &standing) {
            standing.retain(|m| {
                let one = std::slice::from_ref(m);
                let then = after(&edges, one);
                let sound = !closes_circle(&then, one);
                edges = if sound { then } else { std::mem::take(&mut edges) };
                sound
            });
        }
        let taken = standing.iter().flat_map(|m| m.from.iter().map(|&parent| Event::Unlink { child: m.child, parent }));
        Ok(taken.chain(standing.iter().flat_map(put)).collect())
    }

    /// Are the edges that would move still there, and still ones that content alone suggested?
    fn stands(&self, m: &Move) -> Result<bool, RepoError> {
        let Some(head) = self.catalog().by_id(&m.child)? else { return Ok(false) };
        let parents = self.catalog().parents(&m.child)?;
        Ok(match head.previous {
            Some(previous) if m.from == [previous] => head.guess && (parents.is_empty() || m.to.is_empty()),
            Some(_) if parents.is_empty() => false,
            _ => {
                parents.iter().map(|e| e.id).eq(m.from.iter().copied()) && parents.iter().all(|e| e.distance.is_some())
            }
        })
    }

    /// What the import found stored already must still be there.
    fn refuse_incomplete(&self, record: &VersionRecord) -> Result<(), RepoError> {
        for file in record.files.iter().filter(|f| f.kind == EntryKind::File) {
            let recipe = self.repo.packs.recipe(&file.recipe)?;
            if let Some(e) = recipe.extents.iter().find(|e| !self.repo.packs.has_object(&e.object)) {
                let id = e.object.short();
                return Err(RepoError::refused(format!("object {id} vanished meanwhile; import again")));
            }
        }
        Ok(())
    }

    /// Removes versions, all or none. Returns what was removed.
    pub fn remove(&self, references: &[VersionRef]) -> Result<Vec<Head>, RepoError> {
        let mut journal = self.journal.lock().unwrap_or_else(|e| e.into_inner());
        let mut heads: Vec<Head> = Vec::new();
        for r in references {
            let head = self.resolve(r)?;
            self.refuse_tagged(&head)?;
            if !heads.iter().any(|h| h.id == head.id) {
                heads.push(head);
            }
        }
        let at = Some(self.repo.disk.now());
        let gone = |h: &Head| Event::Remove { model: h.model.clone(), version: h.version.clone(), id: h.id, at };
        self.commit(&mut journal, heads.iter().map(gone).collect())?;
        Ok(heads)
    }

    /// Adds an edge: a version edge within a model, provenance between models.
    pub fn link(
        &self,
        child: &VersionRef,
        parent: &VersionRef,
        relation: Option<Relation>,
    ) -> Result<(Head, Head), RepoError> {
        let mut journal = self.journal.lock().unwrap_or_else(|e| e.into_inner());
        let (child, parent) = (self.resolve(child)?, self.resolve(parent)?);
        if let Some(circle) = self.lineage()?.circle(parent.id, child.id) {
            return Err(RepoError::refused(self.tell_circle(&parent, &child, &circle)?));
        }
        let event = match child.model == parent.model {
            true if relation.is_some() => {
                return Err(RepoError::refused("versions of one model follow each other; leave --relation out"));
            }
            true => Event::Follow { id: child.id, previous: parent.id, guess: false },
            false => {
                let relation = relation.unwrap_or(Relation::Derived);
                Event::link(child.id, ParentEdge::new(parent.id, relation))
            }
        };
        self.commit(&mut journal, vec![event])?;
        Ok((child, parent))
    }

    fn tell_circle(&self, parent: &Head, child: &Head, circle: &[Id]) -> Result<String, RepoError> {
        let names = circle.iter().map(|id| self.name_of(id)).collect::<Result<Vec<_>, _>>()?;
        let (p, c) = (label(parent), label(child));
        Ok(format!("{p} cannot be a parent of {c}: it comes from it ({})", names.join(" -> ")))
    }

    /// Takes away the edge between two versions, of either kind.
    pub fn unlink(&self, child: &VersionRef, parent: &VersionRef) -> Result<(Head, Head), RepoError> {
        let mut journal = self.journal.lock().unwrap_or_else(|e| e.into_inner());
        let (child, parent) = (self.resolve(child)?, self.resolve(parent)?);
        let linked =
            self.catalog().parents(&child.id)?.iter().any(|p| p.id == parent.id) || child.previous == Some(parent.id);
        if !linked {
            let (c, p) = (label(&child), label(&parent));
            return Err(RepoError::refused(format!("{c} has no edge to {p}; 'mgit show {c}' lists them")));
        }
        self.commit(&mut journal, vec![Event::Unlink { child: child.id, parent: parent.id }])?;
        Ok((child, parent))
    }

    /// Takes down what changes no version and no edge.
    pub(super) fn record(&self, events: Vec<Event>) -> Result<(), RepoError> {
        let mut journal = self.journal.lock().unwrap_or_else(|e| e.into_inner());
        self.commit(&mut journal, events)
    }

    /// One change: decided while nobody else makes one, durable when this returns.
    pub(super) fn change<T>(
        &self,
        decide: impl FnOnce() -> Result<(Vec<Event>, T), RepoError>,
    ) -> Result<T, RepoError> {
        let mut journal = self.journal.lock().unwrap_or_else(|e| e.into_inner());
        let (events, value) = decide()?;
        self.commit(&mut journal, events)?;
        Ok(value)
    }

    fn commit(&self, journal: &mut Journal, events: Vec<Event>) -> Result<(), RepoError> {
        let position = journal.append(&events)?;
        let catalog = self.catalog();
        if let Err(e) = catalog.apply(&events, position).and_then(|()| catalog.flush()) {
            self.replace_catalog(journal, &e)?;
        }
        self.tell(&events);
        Ok(())
    }

    /// Tells the listener of a change; without events, of one that only the store's size shows.
    pub(super) fn tell(&self, events: &[Event]) {
        if let Some(listener) = &*self.listener.read().unwrap_or_else(|e| e.into_inner()) {
            listener(events);
        }
    }

    /// What the journal durably says, whatever the catalog does.
    pub(super) fn replayed(&self) -> Result<Catalog, RepoError> {
        let journal = self.journal.lock().unwrap_or_else(|e| e.into_inner());
        journal.sync()?;
        temporary(&journal)
    }

    /// What the journal has, has happened: where the catalog's disk is full, one beside it answers from now on.
    fn replace_catalog(&self, journal: &Journal, why: &StoreError) -> Result<(), RepoError> {
        log::warn!("{why}: a temporary one is made from the journal");
        let fresh = temporary(journal)?;
        *self.catalog.write().unwrap_or_else(|e| e.into_inner()) = Arc::new(fresh);
        Ok(())
    }

    /// A version and its edges.
    pub fn detail(&self, reference: &VersionRef) -> Result<Detail, RepoError> {
        self.detail_of(self.resolve(reference)?)
    }

    pub fn detail_of(&self, head: Head) -> Result<Detail, RepoError> {
        let ends = |edges: Vec<ParentEdge>| {
            edges.into_iter().map(|e| Ok((self.end(&e.id)?, e))).collect::<Result<Vec<_>, RepoError>>()
        };
        let children = ends(self.catalog().children(&head.id)?)?;
        Ok(Detail {
            parents: ends(self.catalog().parents(&head.id)?)?,
            children: children.into_iter().map(|(child, e)| (child, e.relation)).collect(),
            previous: head.previous.as_ref().map(|p| self.end(p)).transpose()?,
            next: self.catalog().next(&head.id)?.iter().map(|n| self.end(n)).collect::<Result<_, _>>()?,
            tags: self.tags_of(&head)?,
            head,
        })
    }

    /// A living version and what it comes from.
    pub fn above(&self, id: &Id) -> Result<Option<Above>, RepoError> {
        let Some(head) = self.catalog().by_id(id)?.filter(|h| !h.removed) else { return Ok(None) };
        let parents = self.catalog().parents(id)?.into_iter().map(|e| Ok((self.end(&e.id)?, e)));
        let parents = parents.collect::<Result<Vec<_>, RepoError>>()?;
        let previous = head.previous.as_ref().map(|p| self.end(p)).transpose()?;
        Ok(Some(Above { head, parents, previous }))
    }

    /// The version at an edge's end.
    fn end(&self, id: &Id) -> Result<Head, RepoError> {
        let head = self.catalog().by_id(id)?;
        head.ok_or_else(|| RepoError::damaged(format!("an edge leads to {id}, which never was committed")))
    }

    /// All edges, those of removed versions too.
    pub fn lineage(&self) -> Result<Lineage, RepoError> {
        Ok(Lineage::from_edges(self.edges()?))
    }

    /// From the older to the newer.
    fn edges(&self) -> Result<Vec<(Id, Id)>, RepoError> {
        let (heads, parents) = self.family()?;
        Ok(edges(&heads, &parents))
    }

    /// All versions that ever were, in commit order, and the parents of those that have some. What is committed meanwhile
    /// may be at an edge's end and not among the versions: then they are looked through again. Where that finds no more
    /// versions, an edge leads to none that ever was.
    pub(super) fn family(&self) -> Result<(Vec<Head>, Parents), RepoError> {
        let catalog = self.catalog();
        let mut before = None;
        loop {
            let (heads, parents) = (catalog.ever_all()?, catalog.all_parents()?);
            let known: HashSet<&Id> = heads.iter().map(|h| &h.id).collect();
            let mut ends =
                parents.values().flatten().map(|e| &e.id).chain(heads.iter().filter_map(|h| h.previous.as_ref()));
            if before.replace(heads.len()) == Some(heads.len()) || ends.all(|id| known.contains(id)) {
                return Ok((heads, parents));
            }
        }
    }

    fn name_of(&self, id: &Id) -> Result<String, RepoError> {
        Ok(self.catalog().by_id(id)?.map_or_else(|| id.short(), |h| label(&h)))
    }

    /// Forgets the catalog and makes it anew from the journal.
    pub fn rebuild(&self) -> Result<(), RepoError> {
        self.check_journal()?;
        let journal = self.journal.lock().unwrap_or_else(|e| e.into_inner());
        self.catalog().clear()?;
        catch_up(&self.catalog(), &journal)
    }

    /// Reads the journal from its beginning; an error where it is damaged.
    pub fn check_journal(&self) -> Result<(), RepoError> {
        let journal = self.journal.lock().unwrap_or_else(|e| e.into_inner());
        Ok(journal.replay(None, &mut |_, _| Ok(())).map(drop)?)
    }

    /// What is damaged in the journal.
    pub fn journal_damage(&self) -> Result<Option<String>, RepoError> {
        match self.check_journal() {
            Err(RepoError::Store(StoreError::Damaged { what })) => Ok(Some(what)),
            done => done.map(|()| None),
        }
    }

    /// How the catalog differs from what the journal says; empty when it does not.
    pub fn check_catalog(&self) -> Result<Vec<String>, RepoError> {
        let journal = self.journal.lock().unwrap_or_else(|e| e.into_inner());
        let fresh = temporary(&journal)?;
        let mut out = Vec::new();
        let live = self.catalog();
        for (ours, theirs) in [(&*live, &fresh), (&fresh, &*live)] {
            for head in ours.ever_all()? {
                let same = theirs.by_id(&head.id)?.as_ref() == Some(&head)
                    && theirs.parents(&head.id)? == ours.parents(&head.id)?;
                if !same && !out.contains(&label(&head)) {
                    out.push(label(&head));
                }
            }
        }
        if live.work()? != fresh.work()? {
            out.push("tests, results, recipes or updates".to_owned());
        }
        Ok(out)
    }
}

/// The edges (from parent to child) with these moves made.
fn after(edges: &[(Id, Id)], moves: &[Move]) -> Vec<(Id, Id)> {
    let gone = |parent: &Id, child: &Id| moves.iter().any(|m| m.child == *child && m.from.contains(parent));
    let stay = edges.iter().filter(|(parent, child)| !gone(parent, child)).copied();
    stay.chain(moves.iter().flat_map(|m| m.to.iter().map(|e| (e.id, m.child)))).collect()
}

/// All edges in commit order, from the older to the newer.
pub(super) fn edges(heads: &[Head], parents: &Parents) -> Vec<(Id, Id)> {
    let to = |h: &Head| {
        let provenance = parents.get(&h.id).into_iter().flatten().map(|e| e.id);
        h.previous.into_iter().chain(provenance).map(|p| (p, h.id)).collect::<Vec<_>>()
    };
    heads.iter().flat_map(to).collect()
}

/// An edge lies on a circle when its parent also comes from its child.
fn closes_circle(edges: &[(Id, Id)], moves: &[Move]) -> bool {
    let lineage = Lineage::from_edges(edges.iter().copied());
    let closes = |child: Id, e: &ParentEdge| e.id == child || lineage.ancestors(e.id).contains(&child);
    moves.iter().any(|m| m.to.iter().any(|e| closes(m.child, e)))
}

fn put(m: &Move) -> impl Iterator<Item = Event> {
    m.to.iter().map(|e| match m.follow {
        true => Event::Follow { id: m.child, previous: e.id, guess: true },
        false => Event::link(m.child, *e),
    })
}

/// `model@version`.
pub fn label(head: &Head) -> String {
    format!("{}@{}", head.model, head.version)
}

/// The catalog. One that cannot be read (a full disk breaks it) gives way to an empty one, which the journal
/// fills again; where it has no place (a full disk, read-only media), to one that lasts as long as this process.
fn open_catalog(dir: &Path) -> Result<Catalog, RepoError> {
    let opened = match Catalog::open(dir) {
        Err(StoreError::Catalog { what }) => {
            log::warn!("the catalog is made anew from the journal, for it cannot be read: {what}");
            Catalog::delete(dir)?;
            Catalog::open(dir)
        }
        other => other,
    };
    match opened.map_err(RepoError::from) {
        Err(e) if has_no_place(&e) => Ok(Catalog::temporary()?),
        other => other,
    }
}

/// The disk is full, or read-only.
fn has_no_place(e: &RepoError) -> bool {
    let none = |e: &std::io::Error| e.kind() == std::io::ErrorKind::StorageFull || is_read_only(e);
    matches!(e, RepoError::Store(StoreError::Io { error, .. }) if none(error))
}

/// What the journal says, in a catalog that vanishes when dropped.
fn temporary(journal: &Journal) -> Result<Catalog, RepoError> {
    let fresh = Catalog::temporary()?;
    catch_up(&fresh, journal)?;
    Ok(fresh)
}

/// Takes in what the journal has and the catalog has not; one that makes no sense is forgotten first.
fn catch_up(catalog: &Catalog, journal: &Journal) -> Result<(), RepoError> {
    match catch_up_from_position(catalog, journal) {
        Err(RepoError::Store(StoreError::Catalog { what })) => {
            log::warn!("the catalog is made anew from the journal, for it cannot be read: {what}");
            catalog.clear()?;
            catch_up_from_position(catalog, journal)
        }
        done => done,
    }
}

fn catch_up_from_position(catalog: &Catalog, journal: &Journal) -> Result<(), RepoError> {
    let from = catalog.position()?;
    let mut apply = |events: &[Event], position| catalog.apply(events, position);
    match journal.replay(from, &mut apply)? {
        end if Some(end) == from => Ok(()),
        _ => Ok(catalog.flush()?),
    }
}

/// Makes a new repository in `dir`, which must not exist or be empty.
pub fn init(dir: &Path, disk: Arc<dyn Disk>) -> Result<(), RepoError> {
    init_with(dir, disk, 0)
}

/// As [`init`]; each pack gets so many thousandths of it as parity.
pub fn init_with(dir: &Path, disk: Arc<dyn Disk>, parity: u64) -> Result<(), RepoError> {
    let shown = dir.display();
    if dir.join("format.json").exists() {
        return Err(RepoError::refused(format!("{shown}: there is a repository already")));
    }
    let mut entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Ok(crate::store::root::create_with(&disk, dir, parity)?);
        }
        other => other.map_err(|e| RepoError::file(dir, e))?,
    };
    if entries.next().is_some() {
        return Err(RepoError::refused(format!("{shown}: not empty; name a new or empty directory")));
    }
    Ok(crate::store::root::create_with(&disk, dir, parity)?)
}
