//! The catalog: which versions there are, under which names, with which edges. Derived: all of it follows from
//! the journal's events, so it can be deleted and remade at any time.
//!
//! One sled tree; one atomic batch for each journal frame, which also moves the position. So the catalog is
//! always that of some prefix of the journal, and catching up is a replay from its position. Keys:
//! ```text
//! f                        layout of these keys, u8
//! p                        position: offset u64 LE, chain 8 bytes, commits so far u64 LE
//! v id                     head of a version, JSON
//! m model 0 seq u64 BE     id: a model's versions in commit order
//! n model 0 version        id: the last version committed under that name
//! e child                  parents in order, JSON
//! k parent child           relation, JSON
//! x previous id            nothing: `id` follows `previous`
//! s seq u64 BE             id: all commits in order
//! g model 0 tag            id: where a tag leads
//! a pack 0 seq u64 BE      id: commits that added that pack, in order
//! t … r … b … u            tests, results, recipes, the last update (catalog/work.rs)
//! ```
//! A second commit of the same id says nothing. Edges of removed versions stay.
//!
//! It doesn't know packs or files. sled does its own I/O, past the disk seam: nothing here is ground state.

mod work;

use std::collections::{BTreeMap, HashMap};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::journal::{Position, is_read_only};
use super::{Result, StoreError};
use crate::model::event::Event;
use crate::model::id::Id;
use crate::model::name::{ModelName, VersionName};
use crate::model::record::ParentEdge;

/// Changes with the keys above: another layout is cleared and remade.
const LAYOUT: u8 = 3;
/// sled allots its file in pieces of this many bytes. Smaller ones push plain values out into files of their own;
/// larger ones make the catalog of a few versions larger than the rest of a small repository.
const SEGMENT: usize = 1 << 15;
const CACHE: u64 = 16 << 20;
/// Heads that are scanned in the time that one takes to be found.
const SCANNED: u64 = 4;
/// sled's lock can outlive the process that held it for a moment.
const PATIENCE: Duration = Duration::from_secs(10);

/// A version as the catalog knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Head {
    pub model: ModelName,
    pub version: VersionName,
    pub id: Id,
    /// Commit order over the whole repository, from 0.
    pub seq: u64,
    /// Pack that its commit added, as a file stem.
    pub pack: String,
    pub created: Timestamp,
    /// Logical bytes of all files.
    pub bytes: u64,
    pub previous: Option<Id>,
    /// `previous` was found by content alone.
    #[serde(default)]
    pub guess: bool,
    /// Made by settling, and not sealed since.
    #[serde(default)]
    pub settled: bool,
    /// Its record says by how much.
    #[serde(default)]
    pub lossy: bool,
    /// The number of the version whose place in the order it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<u64>,
    pub removed: bool,
    /// Since when, where that is known.
    #[serde(default)]
    pub removed_at: Option<Timestamp>,
}

impl Head {
    /// Where it stands among others: in commit order, but for what took another's place.
    pub fn order(&self) -> (u64, u64) {
        (self.place.unwrap_or(self.seq), self.seq)
    }
}

pub struct Catalog {
    db: sled::Db,
}

/// What to do about a catalog that cannot be used.
const HINT: &str = "'mgit fsck --rebuild' makes it anew";

fn failed(e: sled::Error) -> StoreError {
    match e {
        sled::Error::Io(error) if error.kind() == std::io::ErrorKind::StorageFull || is_read_only(&error) => {
            StoreError::Io { what: "catalog".to_owned(), error }
        }
        e => StoreError::Catalog { what: format!("{e}; {HINT}") },
    }
}

fn senseless(what: &str) -> StoreError {
    StoreError::Catalog { what: format!("{what} makes no sense; {HINT}") }
}

fn config() -> sled::Config {
    sled::Config::new().use_compression(false).cache_capacity(CACHE).segment_size(SEGMENT).flush_every_ms(None)
}

fn key(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut out = vec![tag];
    parts.iter().for_each(|p| out.extend_from_slice(p));
    out
}

fn head_key(id: &Id) -> Vec<u8> {
    key(b'v', &[&id.0])
}

fn name_key(model: &ModelName, version: &VersionName) -> Vec<u8> {
    key(b'n', &[model.as_str().as_bytes(), &[0], version.as_str().as_bytes()])
}

fn seq_key(seq: u64) -> Vec<u8> {
    key(b's', &[&seq.to_be_bytes()])
}

fn pack_prefix(pack: &str) -> Vec<u8> {
    key(b'a', &[pack.as_bytes(), &[0]])
}

fn tag_key(model: &ModelName, tag: &VersionName) -> Vec<u8> {
    key(b'g', &[model.as_str().as_bytes(), &[0], tag.as_str().as_bytes()])
}

fn model_prefix(model: &ModelName) -> Vec<u8> {
    key(b'm', &[model.as_str().as_bytes(), &[0]])
}

fn parse<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|_| senseless(what))
}

fn text<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain values with string keys")
}

fn id_of(bytes: &[u8]) -> Result<Id> {
    bytes.try_into().map(Id).map_err(|_| senseless("an id"))
}

fn last_id(key: &[u8]) -> Result<Id> {
    key.last_chunk().map(|c| Id(*c)).ok_or_else(|| senseless("a key"))
}

impl Catalog {
    /// The catalog in its directory, which is made if absent. Waits up to ten seconds for another process
    /// to let go of it.
    pub fn open(dir: &Path) -> Result<Catalog> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|error| StoreError::Io { what: dir.display().to_string(), error })?;
        let since = Instant::now();
        loop {
            let opened = catch_unwind(|| config().path(dir).open());
            match opened.map_err(|_| senseless("the directory"))? {
                Ok(db) => return Catalog::from(db),
                Err(e) if !is_locked(&e) => return Err(failed(e)),
                Err(_) if since.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(50)),
                Err(_) => return Err(StoreError::Busy { what: format!("the catalog in {}", dir.display()) }),
            }
        }
    }

    /// Deletes a catalog that nobody has open: the way out where it cannot be opened.
    pub fn delete(dir: &Path) -> Result<()> {
        match std::fs::remove_dir_all(dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|error| StoreError::Io { what: dir.display().to_string(), error }),
        }
    }

    /// An empty catalog that vanishes when dropped.
    pub fn temporary() -> Result<Catalog> {
        Catalog::from(config().temporary(true).open().map_err(failed)?)
    }

    fn from(db: sled::Db) -> Result<Catalog> {
        let catalog = Catalog { db };
        if catalog.get(b"f")?.as_deref() != Some(&[LAYOUT]) {
            catalog.clear()?;
        }
        Ok(catalog)
    }

    /// Forgets everything: the next replay starts at the beginning.
    pub fn clear(&self) -> Result<()> {
        self.db.clear().map_err(failed)?;
        self.db.insert(b"f", &[LAYOUT]).map_err(failed)?;
        self.flush()
    }

    /// Where in the journal it stands; `None` at the beginning.
    pub fn position(&self) -> Result<Option<Position>> {
        Ok(self.mark()?.map(|(at, _)| at))
    }

    fn mark(&self) -> Result<Option<(Position, u64)>> {
        let Some(bytes) = self.get(b"p")? else { return Ok(None) };
        let bytes: &[u8; 24] = bytes.as_ref().try_into().map_err(|_| senseless("the position"))?;
        let word = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("24 bytes"));
        Ok(Some((Position { offset: word(0), chain: word(8).to_le_bytes() }, word(16))))
    }

    /// Takes in the events of one journal frame, which ends at `at`. All or nothing.
    pub fn apply(&self, events: &[Event], at: Position) -> Result<()> {
        let seq = self.mark()?.map_or(0, |(_, seq)| seq);
        let mut frame = Frame { catalog: self, seq, writes: BTreeMap::new() };
        events.iter().try_for_each(|e| frame.take(e))?;
        let mut mark = at.offset.to_le_bytes().to_vec();
        mark.extend_from_slice(&at.chain);
        mark.extend_from_slice(&frame.seq.to_le_bytes());
        frame.writes.insert(b"p".to_vec(), Some(mark));
        let mut batch = sled::Batch::default();
        for (k, v) in frame.writes {
            match v {
                Some(v) => batch.insert(k, v),
                None => batch.remove(k),
            }
        }
        self.db.apply_batch(batch).map_err(failed)
    }

    /// Models with living versions, sorted.
    pub fn models(&self) -> Result<Vec<ModelName>> {
        let mut models: Vec<_> = self.all()?.into_iter().map(|h| h.model).collect();
        models.sort();
        models.dedup();
        Ok(models)
    }

    /// A model's living versions in commit order.
    pub fn versions(&self, model: &ModelName) -> Result<Vec<Head>> {
        let ids = self.db.scan_prefix(model_prefix(model)).values().map(|id| id_of(&id.map_err(failed)?));
        let ids = ids.collect::<Result<Vec<Id>>>()?;
        let ever = self.mark()?.map_or(0, |(_, seq)| seq);
        let mut heads = match ids.len() as u64 * SCANNED < ever {
            true => ids.iter().map(|id| self.must(id)).collect::<Result<Vec<_>>>()?,
            false => self.ever_all()?,
        };
        heads.retain(|h| !h.removed && h.model == *model);
        Ok(heads)
    }

    /// All living versions in commit order.
    pub fn all(&self) -> Result<Vec<Head>> {
        let mut heads = self.ever_all()?;
        heads.retain(|h| !h.removed);
        Ok(heads)
    }

    /// All versions that ever were, in commit order.
    pub fn ever_all(&self) -> Result<Vec<Head>> {
        let heads = self.db.scan_prefix(b"v").values().map(|v| parse(&v.map_err(failed)?, "a head"));
        let mut heads = heads.collect::<Result<Vec<Head>>>()?;
        heads.sort_by_key(Head::order);
        Ok(heads)
    }

    /// All commits from the `seq`-th on, in order: their ids.
    pub fn since(&self, seq: u64) -> Result<Vec<Id>> {
        let ids = self.db.range(seq_key(seq)..seq_key(u64::MAX)).values();
        ids.map(|id| id_of(&id.map_err(failed)?)).collect()
    }

    /// The oldest living version that brought a pack.
    pub fn bringer(&self, pack: &str) -> Result<Option<Head>> {
        for id in self.db.scan_prefix(pack_prefix(pack)).values() {
            let head = self.must(&id_of(&id.map_err(failed)?)?)?;
            if !head.removed {
                return Ok(Some(head));
            }
        }
        Ok(None)
    }

    /// A model's last living version.
    pub fn newest(&self, model: &ModelName) -> Result<Option<Head>> {
        for id in self.db.scan_prefix(model_prefix(model)).values().rev() {
            let head = self.must(&id_of(&id.map_err(failed)?)?)?;
            if !head.removed {
                return Ok(Some(head));
            }
        }
        Ok(None)
    }

    /// The living version of a name.
    pub fn find(&self, model: &ModelName, version: &VersionName) -> Result<Option<Head>> {
        let Some(id) = self.get(&name_key(model, version))? else { return Ok(None) };
        let head = self.must(&id_of(&id)?)?;
        Ok(Some(head).filter(|h| !h.removed))
    }

    /// Whether the name was ever given.
    pub fn name_used(&self, model: &ModelName, version: &VersionName) -> Result<bool> {
        Ok(self.get(&name_key(model, version))?.is_some())
    }

    /// The last version committed under a name, removed or not.
    pub fn last_named(&self, model: &ModelName, version: &VersionName) -> Result<Option<Head>> {
        self.get(&name_key(model, version))?.map(|id| self.must(&id_of(&id)?)).transpose()
    }

    /// Versions of the model ever committed.
    pub fn ever(&self, model: &ModelName) -> Result<u64> {
        let prefix = model_prefix(model);
        let keys = self.db.scan_prefix(&prefix).keys();
        // Those with two numbers took the place of another.
        keys.map(|k| k.map(|k| (k.len() == prefix.len() + 8) as u64).map_err(failed)).sum()
    }

    /// Where a tag leads.
    pub fn tagged(&self, model: &ModelName, tag: &VersionName) -> Result<Option<Id>> {
        self.get(&tag_key(model, tag))?.map(|id| id_of(&id)).transpose()
    }

    /// A model's tags, sorted, and where they lead.
    pub fn tags(&self, model: &ModelName) -> Result<Vec<(VersionName, Id)>> {
        self.tags_below(&key(b'g', &[model.as_str().as_bytes(), &[0]]))
    }

    /// Of all models.
    pub fn all_tags(&self) -> Result<Vec<(VersionName, Id)>> {
        self.tags_below(b"g")
    }

    fn tags_below(&self, prefix: &[u8]) -> Result<Vec<(VersionName, Id)>> {
        let tag = |item: sled::Result<(sled::IVec, sled::IVec)>| {
            let (k, id) = item.map_err(failed)?;
            let name = k.rsplit(|b| *b == 0).next().and_then(|n| std::str::from_utf8(n).ok()?.parse().ok());
            Ok((name.ok_or_else(|| senseless("a tag"))?, id_of(&id)?))
        };
        self.db.scan_prefix(prefix).map(tag).collect()
    }

    /// A version, removed or not.
    pub fn by_id(&self, id: &Id) -> Result<Option<Head>> {
        self.get(&head_key(id))?.map(|v| parse(&v, "a head")).transpose()
    }

    /// Provenance parents in order.
    pub fn parents(&self, child: &Id) -> Result<Vec<ParentEdge>> {
        Ok(self.get(&key(b'e', &[&child.0]))?.map(|v| parse(&v, "parents")).transpose()?.unwrap_or_default())
    }

    /// Of all versions that have some, by child.
    pub fn all_parents(&self) -> Result<HashMap<Id, Vec<ParentEdge>>> {
        let parents = self.db.scan_prefix(b"e").map(|item| {
            let (k, v) = item.map_err(failed)?;
            Ok((last_id(&k)?, parse(&v, "parents")?))
        });
        parents.collect()
    }

    /// Provenance children in commit order; `id` is the child's.
    pub fn children(&self, parent: &Id) -> Result<Vec<ParentEdge>> {
        let mut children = Vec::new();
        for item in self.db.scan_prefix(key(b'k', &[&parent.0])) {
            let (k, v) = item.map_err(failed)?;
            let edge = ParentEdge::new(last_id(&k)?, parse(&v, "a relation")?);
            children.push((self.order(&edge.id)?, edge));
        }
        children.sort_by_key(|(order, edge)| (*order, edge.id));
        Ok(children.into_iter().map(|(_, edge)| edge).collect())
    }

    /// Versions that follow `id` within its model, in commit order.
    pub fn next(&self, id: &Id) -> Result<Vec<Id>> {
        let mut next = Vec::new();
        for k in self.db.scan_prefix(key(b'x', &[&id.0])).keys() {
            let id = last_id(&k.map_err(failed)?)?;
            next.push((self.order(&id)?, id));
        }
        next.sort();
        Ok(next.into_iter().map(|(_, id)| id).collect())
    }

    /// Bytes of its files, as sled counts them.
    pub fn bytes_on_disk(&self) -> Result<u64> {
        self.db.size_on_disk().map_err(failed)
    }

    /// Makes it durable. Not needed for safety: what is lost is replayed.
    pub fn flush(&self) -> Result<()> {
        self.db.flush().map(|_| ()).map_err(failed)
    }

    fn order(&self, id: &Id) -> Result<(u64, u64)> {
        Ok(self.by_id(id)?.map_or((u64::MAX, u64::MAX), |h| h.order()))
    }

    fn must(&self, id: &Id) -> Result<Head> {
        self.by_id(id)?.ok_or_else(|| senseless("a name without a head"))
    }

    fn get(&self, key: &[u8]) -> Result<Option<sled::IVec>> {
        self.db.get(key).map_err(failed)
    }
}

impl Drop for Catalog {
    fn drop(&mut self) {
        let _ = catch_unwind(AssertUnwindSafe(|| self.flush()));
    }
}

fn is_locked(e: &sled::Error) -> bool {
    matches!(e, sled::Error::Io(io) if io.to_string().contains("could not acquire lock"))
}

/// The writes of one frame, which its later events already see.
struct Frame<'a> {
    catalog: &'a Catalog,
    seq: u64,
    writes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Frame<'_> {
    fn take(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Commit {
                model,
                version,
                id,
                pack,
                created,
                bytes,
                previous,
                guess,
                settled,
                lossy,
                replaces,
                parents,
            } => {
                if self.head(id)?.is_some() {
                    return Ok(());
                }
                let head = Head {
                    model: model.clone(),
                    version: version.clone(),
                    id: *id,
                    seq: self.seq,
                    pack: pack.clone(),
                    created: *created,
                    bytes: *bytes,
                    previous: *previous,
                    guess: *guess,
                    settled: *settled,
                    lossy: *lossy,
                    place: replaces.map(|r| self.head(&r)).transpose()?.flatten().map(|h| h.order().0),
                    removed: false,
                    removed_at: None,
                };
                self.commit(head, parents)
            }
            Event::Remove { id, at, .. } => self.change(id, |h| (h.removed, h.removed_at) = (true, *at)),
            Event::Restore { id, .. } => {
                let Some(head) = self.head(id)? else { return Ok(()) };
                self.put(name_key(&head.model, &head.version), id.0.to_vec());
                self.change(id, |h| (h.removed, h.removed_at) = (false, None))
            }
            Event::Tag { model, tag, id } => {
                self.writes.insert(tag_key(model, tag), id.map(|id| id.0.to_vec()));
                Ok(())
            }
            Event::Rename { from, to } => self.rename(from, to),
            Event::Seal { id } => self.change(id, |h| h.settled = false),
            &Event::Link { child, parent: id, relation, coefficient, guess, distance } => {
                self.link(&child, ParentEdge { id, relation, coefficient, guess, distance })
            }
            Event::Follow { id, previous, guess } => self.follow(id, Some(*previous), *guess),
            Event::Unlink { child, parent } => self.unlink(child, parent),
            work => self.take_work(work),
        }
    }

    fn commit(&mut self, head: Head, parents: &[ParentEdge]) -> Result<()> {
        let id = head.id.0.to_vec();
        let mut order = model_prefix(&head.model);
        order.extend(head.place.iter().flat_map(|place| place.to_be_bytes()));
        order.extend_from_slice(&head.seq.to_be_bytes());
        self.put(order, id.clone());
        self.put(seq_key(head.seq), id.clone());
        self.put([pack_prefix(&head.pack), head.seq.to_be_bytes().to_vec()].concat(), id.clone());
        self.put(name_key(&head.model, &head.version), id);
        if let Some(previous) = head.previous {
            self.put(key(b'x', &[&previous.0, &head.id.0]), vec![]);
        }
        self.put(head_key(&head.id), text(&head));
        self.seq += 1;
        parents.iter().try_for_each(|p| self.link(&head.id, *p))
    }

    fn link(&mut self, child: &Id, new: ParentEdge) -> Result<()> {
        let mut parents = self.parents(child)?;
        match parents.iter_mut().find(|p| p.id == new.id) {
            Some(edge) => *edge = new,
            None => parents.push(new),
        }
        self.put(key(b'e', &[&child.0]), text(&parents));
        self.put(key(b'k', &[&new.id.0, &child.0]), text(&new.relation));
        Ok(())
    }

    fn unlink(&mut self, child: &Id, parent: &Id) -> Result<()> {
        let mut parents = self.parents(child)?;
        parents.retain(|p| p.id != *parent);
        let edges = Some(text(&parents)).filter(|_| !parents.is_empty());
        self.writes.insert(key(b'e', &[&child.0]), edges);
        self.writes.insert(key(b'k', &[&parent.0, &child.0]), None);
        match self.head(child)? {
            Some(head) if head.previous == Some(*parent) => self.follow(child, None, false),
            _ => Ok(()),
        }
    }

    fn follow(&mut self, id: &Id, previous: Option<Id>, guess: bool) -> Result<()> {
        let Some(head) = self.head(id)? else { return Ok(()) };
        if let Some(old) = head.previous {
            self.writes.insert(key(b'x', &[&old.0, &id.0]), None);
        }
        if let Some(new) = previous {
            self.put(key(b'x', &[&new.0, &id.0]), vec![]);
        }
        self.put(head_key(id), text(&Head { previous, guess, ..head }));
        Ok(())
    }

    /// All keys of the model `from` become keys of `to`, and so do the heads.
    fn rename(&mut self, from: &ModelName, to: &ModelName) -> Result<()> {
        for tag in *b"mng" {
            let prefix = |model: &ModelName| key(tag, &[model.as_str().as_bytes(), &[0]]);
            let (old, new) = (prefix(from), prefix(to));
            for (k, id) in self.scan(&old)? {
                let id_is = id_of(&id)?;
                self.writes.insert(k.clone(), None);
                self.put([&new, &k[old.len()..]].concat(), id);
                self.change(&id_is, |h| {
                    if h.model == *from {
                        h.model = to.clone();
                    }
                })?;
            }
        }
        Ok(())
    }

    /// All keys that begin so, with what this frame has written already.
    fn scan(&self, prefix: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let mut found = BTreeMap::new();
        for item in self.catalog.db.scan_prefix(prefix) {
            let (k, v) = item.map_err(failed)?;
            found.insert(k.to_vec(), v.to_vec());
        }
        for (k, v) in self.writes.range(prefix.to_vec()..).take_while(|(k, _)| k.starts_with(prefix)) {
            match v {
                Some(v) => found.insert(k.clone(), v.clone()),
                None => found.remove(k),
            };
        }
        Ok(found)
    }

    fn change(&mut self, id: &Id, f: impl FnOnce(&mut Head)) -> Result<()> {
        let Some(mut head) = self.head(id)? else { return Ok(()) };
        f(&mut head);
        self.put(head_key(id), text(&head));
        Ok(())
    }

    fn head(&self, id: &Id) -> Result<Option<Head>> {
        self.get(&head_key(id))?.map(|v| parse(&v, "a head")).transpose()
    }

    fn parents(&self, child: &Id) -> Result<Vec<ParentEdge>> {
        Ok(self.get(&key(b'e', &[&child.0]))?.map(|v| parse(&v, "parents")).transpose()?.unwrap_or_default())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.writes.get(key) {
            Some(written) => Ok(written.clone()),
            None => Ok(self.catalog.get(key)?.map(|v| v.to_vec())),
        }
    }

    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.writes.insert(key, Some(value));
    }
}

#[cfg(test)]
mod tests;
