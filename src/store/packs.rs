//! The set of packs: where every object, recipe and version lies, and their bytes. For many threads.
//!
//! The index is in memory, read from one file that has most packs' footers ([`super::footers`]), else from the packs.
//! One whose footer is damaged is read by its frames and remembered as a finding; one of a later format is left out, and
//! what can't be found is then said to be there. One bad pack never stops the others. Records are checked when they are
//! read; a block is not: its caller checks the decoded bytes against the record, and so against the id.
//!
//! Of two copies of a thing, that in the pack whose name sorts first counts ([`super::index`]): the newer one, for every
//! process alike.
//! A pack can vanish at any time, its things having moved to another: who meets that looks again. One that is damaged and
//! has parity is mended where it is met.
//!
//! It doesn't know which things are wanted (repo), nor what blocks decode to (codec).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, PoisonError};

use quick_cache::sync::Cache;

use super::disk::{Disk, DiskFile};
use super::footers::{self, Footer};
use super::index::{Index, Pack, Place};
use super::pack::{Entry, FRAME, Kind, PackWriter, parse_name};
use super::scan::{self, Finding, ScanItem};
use super::{At, Result, StoreError, parallel, parity};
use crate::model::id::Id;
use crate::model::object::ObjectRecord;
use crate::model::recipe::Recipe;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, RwLock, RwLockReadGuard};

/// Pack files kept open.
const OPEN_FILES: usize = 256;
/// How often the directory is read at most until two readings agree: more is a storm of new packs, not one that moved.
const READINGS: usize = 16;
/// Packs that are worth no look into the file of footers, and none to write it anew for. Tests lower it.
pub static FEW: AtomicUsize = AtomicUsize::new(32);
/// It is written anew when of so many packs one is not in it.
const SHARE: usize = 16;
/// How often a thing is followed from a pack that has vanished to another.
const MOVES: usize = 16;

/// An object's record, and where its blocks lie.
pub struct StoredObject {
    pub record: ObjectRecord,
    pack: Arc<Pack>,
    /// Where each block's frame begins, if it has one.
    starts: Vec<u64>,
}

impl StoredObject {
    pub(super) fn new(record: ObjectRecord, pack: Arc<Pack>, start: u64) -> StoredObject {
        let mut at = start;
        let next = |b: &crate::model::object::BlockInfo| {
            let here = at;
            at += if record.has_frame(b) { FRAME + b.encoded as u64 } else { 0 };
            here
        };
        let starts = record.blocks.iter().map(next).collect();
        StoredObject { record, pack, starts }
    }

    /// Where the frame of a block begins in its pack.
    pub fn block_offset(&self, index: u64) -> u64 {
        self.starts[index as usize]
    }

    /// The pack that it was read from, as its file stem.
    pub fn pack(&self) -> &str {
        &self.pack.name
    }

    /// Of the pack file that it was read from: unlike a name, never used for another.
    pub fn pack_key(&self) -> u64 {
        self.pack.key
    }

    /// Names a block of this object, for an error: object, block, pack and offset.
    pub fn describe_block(&self, index: u64) -> String {
        let at = self.starts.get(index as usize).copied().unwrap_or(0);
        format!("object {}, block {index}, pack {} at {at}", self.record.id, self.pack.name)
    }
}

#[derive(Default)]
struct State {
    index: Index,
    findings: BTreeMap<String, Vec<Finding>>,
    /// Packs that only a later mgit can read.
    later: BTreeMap<String, String>,
}

impl State {
    /// Whether these are the packs that are known, each of which could be read.
    fn are(&self, names: &[String]) -> bool {
        let packs = self.index.packs();
        self.later.is_empty() && self.findings.keys().all(|n| packs.contains_key(n)) && packs.keys().eq(names)
    }

    /// Takes in what was loaded, of a directory of these names. Returns whether a thing may be read from another
    /// place than before, and the packs that vanished.
    fn take(&mut self, names: &[String], loaded: BTreeMap<String, Loaded>) -> (bool, Vec<Arc<Pack>>) {
        let is_there = |name: &str| names.binary_search_by(|n| n.as_str().cmp(name)).is_ok();
        let vanished = self.index.retain(|name| is_there(name) && !loaded.contains_key(name));
        self.findings.retain(|name, _| is_there(name));
        self.later.retain(|name, _| is_there(name));
        let there = loaded.into_iter().filter(|(name, _)| is_there(name));
        let packs = there.filter_map(|(name, l)| self.take_one(name, l)).collect();
        let replaced = self.index.add(packs);
        (replaced || !vanished.is_empty(), vanished)
    }

    fn take_one(&mut self, name: String, loaded: Loaded) -> Option<Arc<Pack>> {
        match loaded {
            Loaded::Index(pack, findings) => {
                self.later.remove(&name);
                self.findings.remove(&name);
                if !findings.is_empty() {
                    self.findings.insert(name, findings);
                }
                return Some(pack);
            }
            Loaded::Later(what) => drop(self.later.insert(name, what)),
            Loaded::Unreadable(finding) => drop(self.findings.insert(name, vec![finding])),
            Loaded::Gone => {}
        }
        None
    }
}

enum Loaded {
    Index(Arc<Pack>, Vec<Finding>),
    Later(String),
    Unreadable(Finding),
    Gone,
}

/// All packs of a repository.
pub struct Packs {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    state: RwLock<State>,
    refreshing: Mutex<()>,
    mending: Mutex<()>,
    keys: AtomicU64,
    moves: AtomicU64,
    /// Packs that the file of footers could have, and were read themselves.
    apart: AtomicU64,
    /// The file of footers is not asked.
    distrusts: AtomicBool,
    files: Cache<u64, Arc<dyn DiskFile>>,
}

/// One thing in a pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listed {
    pub kind: Kind,
    pub id: Id,
    /// Bytes that go with it.
    pub stored: u64,
    /// This copy is the one that is read.
    pub counts: bool,
}

/// What a pack holds.
pub struct Listing {
    pub bytes: u64,
    /// Nothing was found wrong with its structure.
    pub sound: bool,
    pub things: Vec<Listed>,
}

impl Packs {
    /// The packs in a directory.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Packs> {
        let (state, refreshing, mending, keys, moves, apart, distrusts) = Default::default();
        let (dir, files) = (dir.to_owned(), Cache::new(OPEN_FILES));
        let packs = Packs { disk, dir, state, refreshing, mending, keys, moves, apart, distrusts, files };
        packs.refresh()?;
        Ok(packs)
    }

    /// Takes in packs that appeared, and forgets those that vanished. Packs of which an object is still held
    /// remain readable through it while their file is open.
    ///
    /// A pack may vanish between the reading of the directory and its own, and a reading that another process is beside
    /// may show neither the old pack of a thing nor its new one: what is read counts when a second reading is the same.
    pub fn refresh(&self) -> Result<()> {
        let _one_at_a_time = self.refreshing.lock().unwrap_or_else(PoisonError::into_inner);
        self.look(false)
    }

    /// Reads every pack itself, now and from now on: for who is to find damage, and for who removes packs.
    pub fn distrust_footers(&self) -> Result<()> {
        let _one_at_a_time = self.refreshing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.distrusts.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let looked = self.look(true);
        self.distrusts.store(looked.is_ok(), Ordering::Relaxed);
        looked
    }

    /// At the packs that are not known yet, or at all anew. Who calls is the only one that refreshes.
    fn look(&self, anew: bool) -> Result<()> {
        let mut names = pack_names(&*self.disk, &self.dir)?;
        if !anew && self.state().are(&names) {
            return Ok(());
        }
        let mut loaded = BTreeMap::new();
        for _ in 0..READINGS {
            let held = |name: &String| !anew && self.state().index.packs().contains_key(name);
            let known = |name: &String| loaded.contains_key(name) || held(name);
            let new: Vec<String> = names.iter().filter(|n| !known(n)).cloned().collect();
            loaded.extend(self.load_all(new));
            let again = pack_names(&*self.disk, &self.dir)?;
            if again == names {
                break;
            }
            names = again;
        }
        let (moved, vanished) = self.state.write().unwrap_or_else(PoisonError::into_inner).take(&names, loaded);
        self.moves.fetch_add(moved as u64, Ordering::Relaxed);
        vanished.iter().for_each(|pack| drop(self.files.remove(&pack.key)));
        Ok(())
    }

    /// Rises when a thing may be read from another place than before.
    pub fn moves(&self) -> u64 {
        self.moves.load(Ordering::Relaxed)
    }

    /// Where many are new, most by the file of footers.
    fn load_all(&self, mut new: Vec<String>) -> Vec<(String, Loaded)> {
        let mut loaded = Vec::with_capacity(new.len());
        if new.len() > FEW.load(Ordering::Relaxed) && !self.distrusts.load(Ordering::Relaxed) {
            let mut footers = footers::read(&*self.disk, &self.dir, |n| new.binary_search_by(|x| x[..].cmp(n)).is_ok());
            new.retain(|name| match footers.remove(name) {
                Some(Footer { bytes, entries }) => {
                    loaded.push((name.clone(), Loaded::Index(self.pack(name, bytes, entries), vec![])));
                    false
                }
                None => true,
            });
        }
        let read = parallel::map(&new, |n| self.load(n));
        let apart =
            read.iter().filter(|l| matches!(l, Loaded::Index(p, found) if found.is_empty() && footers::takes(p)));
        self.apart.fetch_add(apart.count() as u64, Ordering::Relaxed);
        loaded.extend(new.into_iter().zip(read));
        loaded
    }

    /// Writes the file of footers anew where a fair share of the packs is not in it.
    pub fn save_footers(&self) -> Result<()> {
        let apart = self.apart.load(Ordering::Relaxed) as usize;
        if apart <= FEW.load(Ordering::Relaxed) || apart * SHARE < self.state().index.packs().len() {
            return Ok(());
        }
        let packs: Vec<Arc<Pack>> = {
            let state = self.state();
            let sound = state.index.packs().values().filter(|p| !state.findings.contains_key(&p.name));
            sound.filter(|p| footers::takes(p)).cloned().collect()
        };
        footers::write(&*self.disk, &self.dir, packs.iter())?;
        self.apart.store(0, Ordering::Relaxed);
        Ok(())
    }

    fn pack(&self, name: &str, bytes: u64, entries: Vec<Entry>) -> Arc<Pack> {
        let (key, path) = (self.keys.fetch_add(1, Ordering::Relaxed), self.path(name));
        Arc::new(Pack { name: name.to_owned(), key, path, bytes, entries })
    }

    fn path(&self, pack: &str) -> PathBuf {
        self.dir.join(format!("{pack}.pack"))
    }

    fn load(&self, name: &str) -> Loaded {
        let path = self.path(name);
        let unreadable = |what: String| {
            let finding = Finding { pack: name.to_owned(), offset: 0, what, of: None, block: None };
            Loaded::Unreadable(finding)
        };
        let file = match self.disk.open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Loaded::Gone,
            Err(e) => return unreadable(e.to_string()),
        };
        let mut index = scan::index(&*file, name);
        if index.as_ref().map_or_else(is_damage, |i| !i.findings.is_empty()) && self.mend(name) {
            index = self.disk.open(&path).at(&path).and_then(|file| scan::index(&*file, name));
        }
        match index {
            Ok(i) => Loaded::Index(self.pack(name, i.bytes, i.entries), i.findings),
            Err(StoreError::Later { what }) => Loaded::Later(what),
            Err(e) => unreadable(e.to_string()),
        }
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, kind: Kind, id: &Id) -> bool {
        self.state().index.find(kind, id).is_some()
    }

    fn stored(&self, kind: Kind, id: &Id) -> Option<u64> {
        self.state().index.find(kind, id).map(|(_, e)| e.stored)
    }

    fn pack_of(&self, kind: Kind, id: &Id) -> Option<String> {
        self.state().index.find(kind, id).map(|(pack, _)| pack.name.clone())
    }

    pub fn has_object(&self, id: &Id) -> bool {
        self.has(Kind::Object, id)
    }

    pub fn has_recipe(&self, id: &Id) -> bool {
        self.has(Kind::Recipe, id)
    }

    pub fn has_version(&self, id: &Id) -> bool {
        self.has(Kind::Version, id)
    }

    /// An object's record and place, read anew each time: readers keep what they open.
    pub fn object(&self, id: &Id) -> Result<Arc<StoredObject>> {
        let (place, mut file) = self.find_open(Kind::Object, id)?;
        let mut read = scan::read_object(&place.pack, &*file, &place.entry);
        if read.is_err() && self.mend(&place.pack.name) {
            file = self.file(&place.pack)?;
            read = scan::read_object(&place.pack, &*file, &place.entry);
        }
        Ok(Arc::new(read.map_err(|why| damaged(&place, &why))?))
    }

    /// The encoded bytes of a block, into `buf`. Not checked: the caller checks what they decode to.
    pub fn read_block(&self, object: &StoredObject, index: u64, buf: &mut Vec<u8>) -> Result<()> {
        let info = object.record.blocks.get(index as usize);
        let info = info.ok_or(StoreError::Misuse("an object has no such block"))?;
        buf.resize(info.encoded as usize, 0);
        if buf.is_empty() {
            return Ok(());
        }
        let file = self.file(&object.pack)?;
        file.read_at(buf, object.block_offset(index) + FRAME).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                StoreError::damaged(format!("{}: the pack ends early", object.describe_block(index)))
            }
            _ => StoreError::Io { what: object.describe_block(index), error },
        })
    }

    pub fn recipe(&self, id: &Id) -> Result<Recipe> {
        let (place, bytes) = self.plain(Kind::Recipe, id)?;
        Recipe::decode(&bytes).map_err(|e| damaged(&place, &e.to_string()))
    }

    /// A version record's bytes, which hash to `id`.
    pub fn version(&self, id: &Id) -> Result<Vec<u8>> {
        Ok(self.plain(Kind::Version, id)?.1)
    }

    /// Bytes that an object takes in its pack: blocks, record and frames.
    pub fn object_stored_bytes(&self, id: &Id) -> Option<u64> {
        self.stored(Kind::Object, id)
    }

    /// The pack that an object is read from.
    pub fn pack_of_object(&self, id: &Id) -> Option<String> {
        self.pack_of(Kind::Object, id)
    }

    /// The pack that a version record is read from.
    pub fn pack_of_version(&self, id: &Id) -> Option<String> {
        self.pack_of(Kind::Version, id)
    }

    /// The pack that a recipe is read from.
    pub fn pack_of_recipe(&self, id: &Id) -> Option<String> {
        self.pack_of(Kind::Recipe, id)
    }

    /// Bytes that a recipe takes in its pack.
    pub fn recipe_stored_bytes(&self, id: &Id) -> Option<u64> {
        self.stored(Kind::Recipe, id)
    }

    /// Whether the pack's index could be read.
    pub fn is_known(&self, pack: &str) -> bool {
        self.state().index.packs().contains_key(pack)
    }

    /// All objects.
    pub fn objects(&self) -> Vec<Id> {
        self.state().index.ids(Kind::Object)
    }

    /// All version records.
    pub fn versions(&self) -> Vec<Id> {
        self.state().index.ids(Kind::Version)
    }

    /// File stems, sorted; those that cannot be read included.
    pub fn pack_names(&self) -> Vec<String> {
        let state = self.state();
        let mut names: Vec<_> =
            state.index.packs().keys().chain(state.later.keys()).chain(state.findings.keys()).collect();
        names.sort();
        names.dedup();
        names.into_iter().cloned().collect()
    }

    /// Bytes of all readable packs.
    pub fn pack_bytes(&self) -> u64 {
        self.state().index.packs().values().map(|p| p.bytes).sum()
    }

    /// What was found wrong when packs were read; those by the file of footers were not.
    pub fn findings(&self) -> Vec<Finding> {
        self.state().findings.values().flatten().cloned().collect()
    }

    /// What a pack holds, by the index: what cannot be read just now is not taken for gone. Of one that is not known: nothing,
    /// and it is not sound.
    pub fn listing(&self, pack: &str) -> Listing {
        let state = self.state();
        let Some(held) = state.index.packs().get(pack) else {
            return Listing { bytes: 0, sound: false, things: vec![] };
        };
        let listed = |e: &Entry| {
            let counts = state.index.find(e.kind, &e.id).is_some_and(|(p, _)| p.name == pack);
            Listed { kind: e.kind, id: e.id, stored: e.stored, counts }
        };
        let things = held.entries.iter().map(listed).collect();
        Listing { bytes: held.bytes, sound: !state.findings.contains_key(pack), things }
    }

    /// Copies a thing into a new pack as it is stored; every frame is checked on the way.
    pub fn copy(&self, kind: Kind, id: &Id, writer: &mut PackWriter) -> Result<()> {
        match kind {
            Kind::Recipe => writer.put_recipe_bytes(&self.plain(kind, id)?.1).map(drop),
            Kind::Version => writer.put_version(&self.plain(kind, id)?.1).map(drop),
            _ => self.copy_object(&*self.object(id)?, None, writer),
        }
    }

    /// As [`copy`](Self::copy), with zeros for a block that cannot be read: it stays unreadable, as all it decodes to is checked.
    /// `false` where nothing can be copied.
    pub fn copy_lossy(&self, kind: Kind, id: &Id, writer: &mut PackWriter) -> Result<bool> {
        if kind != Kind::Object {
            return match self.copy(kind, id, writer) {
                Err(StoreError::Damaged { .. }) => Ok(false),
                other => other.map(|()| true),
            };
        }
        let Ok(object) = self.object(id) else { return Ok(false) };
        let mut encoded = Vec::new();
        for (index, info) in (0..).zip(&object.record.blocks) {
            if self.read_block(&object, index, &mut encoded).is_err() {
                encoded = vec![0; info.encoded as usize];
            }
            writer.put_block(&encoded)?;
        }
        writer.put_object(&ObjectRecord { empty_frames: false, ..object.record.clone() })?;
        Ok(true)
    }

    /// Takes a pack out of use, its file being kept as `<name>.damaged`.
    pub fn set_aside(&self, pack: &str) -> Result<()> {
        let path = self.path(pack);
        self.forget_parity(&path)?;
        self.disk.rename(&path, &path.with_extension("damaged")).at(&path)?;
        self.disk.sync_dir(&self.dir).at(&self.dir)?;
        self.refresh()
    }

    fn forget_parity(&self, pack: &Path) -> Result<()> {
        let parity = pack.with_extension("parity");
        match self.disk.remove(&parity) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            done => done.at(&parity),
        }
    }

    /// Copies an object's blocks, and its record or another one with the same table.
    pub fn copy_object(&self, object: &StoredObject, as_: Option<ObjectRecord>, writer: &mut PackWriter) -> Result<()> {
        let file = self.file(&object.pack)?;
        for (index, info) in (0..).zip(&object.record.blocks) {
            if info.encoded == 0 {
                writer.put_block(&[])?;
                continue;
            }
            let frame = scan::read_frame(&*file, Kind::Block, object.block_offset(index), info.encoded);
            let frame = frame.map_err(|why| StoreError::damaged(format!("{}: {why}", object.describe_block(index))))?;
            writer.put_block(&frame[FRAME as usize..])?;
        }
        let record = as_.unwrap_or_else(|| object.record.clone());
        writer.put_object(&ObjectRecord { empty_frames: false, ..record })
    }

    /// Makes a damaged pack what it was, where it has parity enough. `true` when it was changed.
    pub fn mend(&self, pack: &str) -> bool {
        let _one_at_a_time = self.mending.lock().unwrap_or_else(PoisonError::into_inner);
        match parity::mend(&*self.disk, &self.dir, pack) {
            Ok(Some(n)) if n > 0 => {
                log::warn!("pack {pack}: {n} damaged places were mended by its parity");
                self.files.clear();
                true
            }
            Ok(_) => false,
            Err(e) => {
                log::error!("pack {pack} cannot be mended: {e}");
                false
            }
        }
    }

    /// Removes packs. Who calls holds the gate alone. They are gone for good when it returns.
    pub fn remove(&self, packs: &[String]) -> Result<()> {
        if packs.is_empty() {
            return Ok(());
        }
        // The names of those that hold what counts come first: who sealed them may have died before they were durable.
        self.disk.sync_dir(&self.dir).at(&self.dir)?;
        let mut each = packs.iter().map(|name| self.path(name));
        let removed = each.try_for_each(|path| {
            self.forget_parity(&path)?;
            self.disk.remove(&path).at(&path)
        });
        let removed = removed.and_then(|()| self.disk.sync_dir(&self.dir).at(&self.dir));
        self.refresh()?;
        removed
    }

    /// Reads and checks every byte of a pack, for fsck. Damage goes to `f`; an error is a pack that can't be
    /// opened or that a later mgit wrote. Returns the objects, recipes and versions that its index names, sorted.
    pub fn scan(&self, pack: &str, f: &mut dyn FnMut(ScanItem)) -> Result<Vec<(Kind, Id)>> {
        self.mend(pack);
        let path = self.path(pack);
        let file = self.disk.open(&path).at(&path)?;
        let indexed = scan::index(&*file, pack)?;
        scan::walk(&self.pack(pack, indexed.bytes, vec![]), &*file, &indexed, f);
        Ok(indexed.entries.iter().map(|e| (e.kind, e.id)).collect())
    }

    fn find(&self, kind: Kind, id: &Id) -> Result<Place> {
        let state = self.state();
        let Some((pack, entry)) = state.index.find(kind, id) else {
            return Err(match state.later.values().next() {
                Some(what) => StoreError::Later { what: what.clone() },
                None => StoreError::Missing { what: kind.as_str(), id: *id },
            });
        };
        Ok(Place { pack: pack.clone(), entry: *entry })
    }

    /// As [`find`](Self::find), with the file open. Looks again where the pack has vanished.
    fn find_open(&self, kind: Kind, id: &Id) -> Result<(Place, Arc<dyn DiskFile>)> {
        let mut moves = 0..MOVES;
        loop {
            let place = self.find(kind, id)?;
            match self.file(&place.pack) {
                Err(e) if is_gone(&e) && moves.next().is_some() => self.refresh()?,
                file => return Ok((place, file?)),
            }
        }
    }

    fn plain(&self, kind: Kind, id: &Id) -> Result<(Place, Vec<u8>)> {
        let (place, mut file) = self.find_open(kind, id)?;
        let mut read = scan::read_plain(&*file, &place.entry);
        if read.is_err() && self.mend(&place.pack.name) {
            file = self.file(&place.pack)?;
            read = scan::read_plain(&*file, &place.entry);
        }
        let bytes = read.map_err(|why| damaged(&place, &why))?;
        Ok((place, bytes))
    }

    fn file(&self, pack: &Pack) -> Result<Arc<dyn DiskFile>> {
        if let Some(file) = self.files.get(&pack.key) {
            return Ok(file);
        }
        let file: Arc<dyn DiskFile> = self.disk.open(&pack.path).at(&pack.path)?.into();
        self.files.insert(pack.key, file.clone());
        Ok(file)
    }
}

fn is_damage(e: &StoreError) -> bool {
    matches!(e, StoreError::Damaged { .. })
}

/// Whether a read failed because its pack is no longer there.
pub fn is_gone(e: &StoreError) -> bool {
    e.io().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound)
}

fn damaged(place: &Place, why: &str) -> StoreError {
    let (Entry { kind, id, offset, .. }, pack) = (place.entry, &place.pack.name);
    StoreError::damaged(format!("{} {id}, pack {pack} at {offset}: {why}", kind.as_str()))
}

/// Stems of the packs in a directory, sorted.
fn pack_names(disk: &dyn Disk, dir: &Path) -> Result<Vec<String>> {
    let stem = |n: &String| n.strip_suffix(".pack").filter(|s| parse_name(s).is_some()).map(str::to_owned);
    Ok(disk.list(dir).at(dir)?.iter().filter_map(stem).collect())
}
