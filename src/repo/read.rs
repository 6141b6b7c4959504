//! Decoded bytes: blocks through a cache bounded in bytes, and files put together from their extents.
//!
//! Invariants:
//! - A byte that leaves [`Repo::block`] or [`FileReader::read_at`] has been checked against its object's
//!   id since it was decoded. Bases on the way are not checked: a wrong base makes a wrong block, which is.
//! - A block for the cache is decoded by one thread at a time; others wait for it and share it. What is read whole and
//!   built on others goes to its reader only.
//! - An object's bases all cost less than it does, and all that one block needs is at most [`MAX_COST`] blocks, so a
//!   hostile pack can make neither a circle of bases nor a block that takes long.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use rayon::prelude::*;

use super::{Repo, RepoError};
use crate::codec::{self, Formula, Plan, Spec};
use crate::model::dtype::Elem;
use crate::model::id::{BLOCK, Id, block_count, block_len, block_value};
use crate::model::object::{Base, MAX_COST, Mapping, ObjectRecord};
use crate::model::recipe::{Extent, Recipe};
use crate::store::StoreError;
use crate::store::packs::{StoredObject, is_gone};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, thread_local};

/// An object with what decoding its blocks takes.
pub struct OpenObject {
    pub stored: Arc<StoredObject>,
    plan: Plan,
    formula: Option<Formula>,
    bases: Vec<MappedBase>,
    /// Every object that a block of this one is made of, itself first, and how many of its blocks.
    needs: Vec<(Id, u64)>,
}

/// A base, and which of its bytes a block is built on.
#[derive(Clone)]
pub struct MappedBase {
    pub object: Arc<OpenObject>,
    pub mapping: Mapping,
}

/// Every object that a block of `id`, of elements of `width` bytes, on these bases is made of, and how many blocks of it.
/// What several bases share is decoded once.
fn needs(id: Id, width: usize, bases: &[MappedBase]) -> Vec<(Id, u64)> {
    let mut out = vec![(id, 1)];
    for MappedBase { object, mapping } in bases {
        let blocks = mapping.blocks(width, object.length(), object.elem().width());
        for &(id, n) in &object.needs {
            let n = n.saturating_mul(blocks);
            match out.iter_mut().find(|o| o.0 == id) {
                Some(o) => o.1 = o.1.max(n),
                None => out.push((id, n)),
            }
        }
    }
    out
}

/// Blocks decoded for one of an object of elements of `width` bytes on these bases; `None` where there are too many.
pub(super) fn cost(width: usize, bases: &[MappedBase]) -> Option<u8> {
    // Its own id matters to nobody yet.
    total(&needs(Id([0; 32]), width, bases))
}

fn total(needs: &[(Id, u64)]) -> Option<u8> {
    let total = needs.iter().fold(0u64, |sum, n| sum.saturating_add(n.1));
    (total <= MAX_COST as u64).then_some(total as u8)
}

fn spec_of(record: &ObjectRecord) -> Spec {
    Spec { elem: Elem::of(&record.dtype), row_bytes: record.row_bytes as usize }
}

/// What stands in for the base of block `index`; `bytes`: what each base has in its place.
pub(super) fn predict(
    formula: &Formula,
    spec: Spec,
    index: u64,
    bases: &[MappedBase],
    bytes: &[&[u8]],
    len: usize,
) -> Result<Vec<u8>, codec::Damage> {
    let typed: Vec<(Elem, &[u8])> = bases.iter().map(|b| b.object.elem()).zip(bytes.iter().copied()).collect();
    let mut out = vec![0; len];
    formula.predict(spec, index, &typed, &mut out)?;
    Ok(out)
}

impl OpenObject {
    pub fn length(&self) -> u64 {
        self.stored.record.length
    }

    pub fn blocks(&self) -> u64 {
        block_count(self.length())
    }

    pub fn id(&self) -> Id {
        self.stored.record.id
    }

    fn key(&self, index: u64) -> BlockKey {
        (self.stored.pack_key(), self.id(), index)
    }

    pub fn bases(&self) -> &[MappedBase] {
        &self.bases
    }

    pub fn elem(&self) -> Elem {
        Elem::of(&self.stored.record.dtype)
    }

    fn spec(&self) -> Spec {
        spec_of(&self.stored.record)
    }

    fn check(&self, index: u64, bytes: &[u8]) -> Result<(), RepoError> {
        match block_value(bytes, index, self.length()) == self.stored.record.values[index as usize] {
            true => Ok(()),
            false => Err(RepoError::damaged(format!("block {index} of object {}: wrong bytes", self.id()))),
        }
    }
}

thread_local! {
    /// A block as it is stored; borrowed only when its bases are there.
    static ENCODED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A decoded block, and whether it was checked.
pub struct Block {
    bytes: Box<[u8]>,
    checked: AtomicBool,
}

impl std::ops::Deref for Block {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Counts a block as its bytes.
#[derive(Clone)]
pub(super) struct ByBytes;

/// A block of an object as one pack file has it: another may have it on other bases. Its bases are blocks of pack files
/// too, each of an object that costs less ([`Repo::open_object`]): so waiting for who decodes them never goes round.
type BlockKey = (u64, Id, u64);

impl Weighter<BlockKey, Arc<Block>> for ByBytes {
    fn weight(&self, _: &BlockKey, block: &Arc<Block>) -> u64 {
        block.bytes.len() as u64 + 128
    }
}

impl Weighter<Id, Arc<OpenObject>> for ByBytes {
    fn weight(&self, _: &Id, o: &Arc<OpenObject>) -> u64 {
        512 + 48 * o.stored.record.blocks.len() as u64
            + o.stored.record.params.len() as u64
            + o.plan.memory()
            + o.formula.as_ref().map_or(0, Formula::memory)
    }
}

/// The two caches of a repository's readers.
pub(super) struct Caches {
    blocks: Cache<BlockKey, Arc<Block>, ByBytes>,
    objects: Cache<Id, Arc<OpenObject>, ByBytes>,
    /// How often things had moved when `objects` was emptied last.
    moves: AtomicU64,
}

/// Recipes of the files that are open in this process, and how often.
pub(super) type Pins = Arc<Mutex<HashMap<Id, usize>>>;

/// Keeps what a file is made of in the store, also when its version is removed.
pub struct Pin {
    pins: Pins,
    recipe: Id,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        match pins.get_mut(&self.recipe) {
            Some(n) if *n > 1 => *n -= 1,
            _ => drop(pins.remove(&self.recipe)),
        }
    }
}

/// Bytes that opened objects may hold.
const OBJECT_CACHE: u64 = 40 << 20;

impl Caches {
    pub fn new(bytes: u64) -> Caches {
        let items = (bytes / BLOCK).max(16) as usize;
        Caches {
            blocks: Cache::with_weighter(items, bytes.max(4 * BLOCK), ByBytes),
            objects: Cache::with_weighter(4096, OBJECT_CACHE, ByBytes),
            moves: AtomicU64::new(0),
        }
    }

    /// Objects are opened anew where they lie now.
    pub fn forget_moved(&self, moves: u64) {
        if self.moves.swap(moves, Ordering::Relaxed) != moves {
            self.objects.clear();
        }
    }
}

impl Repo {
    /// Opens an object and all its bases.
    pub fn open_object(&self, id: &Id) -> Result<Arc<OpenObject>, RepoError> {
        self.open_below(id, u8::MAX)
    }

    fn open_below(&self, id: &Id, cost: u8) -> Result<Arc<OpenObject>, RepoError> {
        // One that was held since before a repack may cost more than what is built on it now.
        let held = self.caches.objects.get(id).filter(|open| open.stored.record.cost < cost);
        let stored = held.as_ref().map_or_else(|| self.packs.object(id), |open| Ok(open.stored.clone()))?;
        // Before its bases are opened, or a circle of them would never end.
        if stored.record.cost >= cost {
            return Err(RepoError::damaged(format!("object {id}: its cost is not below that of what is built on it")));
        }
        held.map_or_else(|| self.open_fresh(stored), Ok)
    }

    fn open_fresh(&self, stored: Arc<StoredObject>) -> Result<Arc<OpenObject>, RepoError> {
        let (id, r) = (stored.record.id, &stored.record);
        let spec = spec_of(r);
        let damaged = |e: codec::Damage| RepoError::damaged(format!("object {id}: {e}"));
        let (formula, plan) = codec::split_params(spec, &r.params).map_err(damaged)?;
        let base =
            |b: &Base| Ok::<_, RepoError>(MappedBase { object: self.open_below(&b.id, r.cost)?, mapping: b.mapping });
        let bases = r.bases.iter().map(base).collect::<Result<Vec<_>, _>>()?;
        let needs = needs(id, spec.elem.width(), &bases);
        if total(&needs).is_none() {
            return Err(damaged(codec::Damage("a block needs too many others")));
        }
        let open = Arc::new(OpenObject { stored, plan, formula, bases, needs });
        self.caches.objects.insert(id, open.clone());
        Ok(open)
    }

    /// Block `index` of an object, checked.
    pub fn block(&self, object: &OpenObject, index: u64) -> Result<Arc<Block>, RepoError> {
        match self.block_as_it_is(object, index) {
            Err(e) if self.mend(object, &e) => self.block_as_it_is(&*self.open_object(&object.id())?, index),
            done => done,
        }
    }

    /// Whether parity made something whole that a block of this object needs.
    fn mend(&self, object: &OpenObject, e: &RepoError) -> bool {
        if !matches!(e, RepoError::Damaged(_) | RepoError::Store(StoreError::Damaged { .. })) {
            return false;
        }
        let packs: BTreeSet<String> = object.needs.iter().filter_map(|(id, _)| self.packs.pack_of_object(id)).collect();
        let mended = packs.iter().filter(|pack| self.packs.mend(pack)).count();
        if mended > 0 {
            self.caches.objects.clear();
            self.caches.blocks.clear();
        }
        mended > 0
    }

    fn block_as_it_is(&self, object: &OpenObject, index: u64) -> Result<Arc<Block>, RepoError> {
        let block = self.unchecked_block(object, index)?;
        if !block.checked.load(Ordering::Acquire) {
            if let Err(e) = object.check(index, &block) {
                self.caches.blocks.remove(&object.key(index));
                return Err(e);
            }
            block.checked.store(true, Ordering::Release);
        }
        Ok(block)
    }

    /// Fills `out` from byte `from` of block `index` on, checked.
    fn read_block(&self, object: &OpenObject, index: u64, from: usize, out: &mut [u8]) -> Result<(), RepoError> {
        let whole = out.len() == block_len(object.length(), index);
        // What is built on others is seldom a base, and the kernel keeps what it has read: our cache is for bases.
        if whole && !object.bases.is_empty() && self.caches.blocks.peek(&object.key(index)).is_none() {
            match self.decode(object, index, Via::Cache, out).and_then(|()| object.check(index, out)) {
                Err(e) if self.mend(object, &e) => {}
                done => return done,
            }
        }
        let block = self.block(object, index)?;
        out.copy_from_slice(&block[from..from + out.len()]);
        Ok(())
    }

    fn unchecked_block(&self, object: &OpenObject, index: u64) -> Result<Arc<Block>, RepoError> {
        self.caches.blocks.get_or_insert_with(&object.key(index), || self.decoded(object, index, Via::Cache))
    }

    fn decoded(&self, object: &OpenObject, index: u64, via: Via<'_>) -> Result<Arc<Block>, RepoError> {
        let mut bytes = vec![0; block_len(object.length(), index)].into_boxed_slice();
        self.decode(object, index, via, &mut bytes)?;
        Ok(Arc::new(Block { bytes, checked: AtomicBool::new(false) }))
    }

    fn decode(&self, object: &OpenObject, index: u64, via: Via<'_>, out: &mut [u8]) -> Result<(), RepoError> {
        let info = object.stored.record.blocks[index as usize];
        let (width, len) = (object.elem().width(), out.len());
        let base = |b| self.base_block(b, width, index, len, via);
        let bases = match codec::needs_bases(info.tag) {
            true => object.bases.iter().map(base).collect::<Result<Vec<BaseBlock>, _>>()?,
            false => vec![],
        };
        let damaged = |e| RepoError::damaged(format!("block {index} of object {}: {e}", object.id()));
        let predicted;
        let mut bases: Vec<&[u8]> = bases.iter().map(BaseBlock::bytes).collect();
        if let (Some(formula), false) = (&object.formula, bases.is_empty()) {
            predicted = predict(formula, object.spec(), index, &object.bases, &bases, out.len()).map_err(damaged)?;
            bases.truncate(formula.is_gated() as usize);
            bases.insert(0, &predicted);
        }
        let decoded = ENCODED.with(|encoded| {
            let encoded = &mut *encoded.borrow_mut();
            self.packs.read_block(&object.stored, index, encoded)?;
            object.plan.decode(index, info.tag, encoded, &bases, out).map_err(damaged)
        });
        match (decoded, via) {
            (Err(RepoError::Store(e)), Via::Alone(made)) if is_gone(&e) => {
                self.decode_moved(object, index, made, out, e)
            }
            (Err(RepoError::Store(e)), _) if is_gone(&e) => self.decode_moved(object, index, &Made::default(), out, e),
            (done, _) => done,
        }
    }

    fn decoded_alone(&self, object: &OpenObject, index: u64, made: &Made) -> Result<Arc<Block>, RepoError> {
        let key = object.key(index);
        if let Some(block) = made.borrow().get(&key) {
            return Ok(block.clone());
        }
        let block = self.decoded(object, index, Via::Alone(made))?;
        made.borrow_mut().insert(key, block.clone());
        Ok(block)
    }

    /// The pack has vanished since the object was opened: another has it, maybe encoded in another way. What was a base may
    /// be built on this object now, and whoever decodes that may be waiting for this: so nobody is waited for.
    fn decode_moved(
        &self,
        object: &OpenObject,
        index: u64,
        made: &Made,
        out: &mut [u8],
        gone: StoreError,
    ) -> Result<(), RepoError> {
        self.refresh()?;
        let (id, same) = (object.id(), |now: &OpenObject| now.stored.pack() == object.stored.pack());
        let mut now = self.open_object(&id)?;
        if same(&now) {
            // A reader that was slower than the move has put the old one among those that are held.
            now = self.open_fresh(self.packs.object(&id)?)?;
        }
        match same(&now) {
            true => Err(gone.into()),
            false => self.decode(&now, index, Via::Alone(made), out),
        }
    }

    /// Keeps what the recipe's file is made of from [`super::gc`] while it is held.
    pub fn pin(&self, recipe: &Id) -> Pin {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        *pins.entry(*recipe).or_default() += 1;
        Pin { pins: self.pins.clone(), recipe: *recipe }
    }

    /// Recipes of the files that are open.
    pub fn pinned(&self) -> Vec<Id> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// What a base has for block `index` (`len` bytes, of elements of `width`), zeros past the base's end.
    pub(super) fn base_block(
        &self,
        base: &MappedBase,
        width: usize,
        index: u64,
        len: usize,
        via: Via<'_>,
    ) -> Result<BaseBlock, RepoError> {
        let object = &*base.object;
        let (start, len) = base.mapping.range(index, len, width, object.length(), object.elem().width());
        let block = |index| match via {
            Via::Checked => self.block(object, index),
            Via::Cache => self.unchecked_block(object, index),
            Via::Alone(made) => self.decoded_alone(object, index, made),
        };
        let from = (start % BLOCK) as usize;
        if start < object.length() && from + len <= block_len(object.length(), start / BLOCK) {
            return Ok(BaseBlock::Shared(block(start / BLOCK)?, from..from + len));
        }
        let mut out = vec![0; len];
        let mut done = 0;
        while done < len && start + (done as u64) < object.length() {
            let at = start + done as u64;
            let block = block(at / BLOCK)?;
            let from = (at % BLOCK) as usize;
            let n = (block.len() - from).min(len - done);
            out[done..done + n].copy_from_slice(&block[from..from + n]);
            done += n;
        }
        Ok(BaseBlock::Copied(out))
    }

    /// A reader of the file that a recipe makes.
    pub fn open_file(self: &Arc<Self>, recipe: &Id) -> Result<FileReader, RepoError> {
        let pin = self.pin(recipe);
        let recipe = self.packs.recipe(recipe)?;
        Ok(FileReader::new(self.clone(), recipe, pin))
    }
}

/// Blocks that one call has decoded.
type Made = RefCell<HashMap<BlockKey, Arc<Block>>>;

/// How a base's block is come by.
#[derive(Clone, Copy)]
pub(super) enum Via<'a> {
    /// The cache of decoded blocks, once it is checked.
    Checked,
    /// That cache; what is made of it is checked.
    Cache,
    /// Decoded here, each once, whatever others are at.
    Alone(&'a Made),
}

/// A base's bytes for one block: shared with the cache where they lie in one of its blocks.
pub(super) enum BaseBlock {
    Shared(Arc<Block>, Range<usize>),
    Copied(Vec<u8>),
}

impl BaseBlock {
    pub fn bytes(&self) -> &[u8] {
        match self {
            BaseBlock::Shared(block, range) => &block[range.clone()],
            BaseBlock::Copied(bytes) => bytes,
        }
    }
}

/// Reads any range of one file.
pub struct FileReader {
    repo: Arc<Repo>,
    /// First byte of each extent in the file, then the file's size.
    starts: Vec<u64>,
    extents: Vec<Extent>,
    _pin: Pin,
}

impl FileReader {
    fn new(repo: Arc<Repo>, recipe: Recipe, pin: Pin) -> FileReader {
        let mut at = 0;
        let mut starts = vec![0];
        for e in &recipe.extents {
            at += e.length;
            starts.push(at);
        }
        FileReader { repo, starts, extents: recipe.extents, _pin: pin }
    }

    pub fn size(&self) -> u64 {
        self.starts[self.extents.len()]
    }

    /// Fills `out` from byte `offset` on. The range must lie within the file.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), RepoError> {
        let mut done = 0;
        while done < out.len() {
            let at = offset + done as u64;
            if at >= self.size() {
                return Err(RepoError::damaged("a read goes past the end of its file".to_owned()));
            }
            let i = self.starts.partition_point(|&s| s <= at) - 1;
            let n = (out.len() - done).min((self.starts[i + 1] - at) as usize);
            self.read_extent(&self.extents[i], at - self.starts[i], &mut out[done..done + n])?;
            done += n;
        }
        Ok(())
    }

    /// As [`read_at`](Self::read_at), on all cores: for large ranges.
    pub fn read_parallel(&self, offset: u64, out: &mut [u8]) -> Result<(), RepoError> {
        const STEP: usize = 4 * BLOCK as usize;
        out.par_chunks_mut(STEP).enumerate().try_for_each(|(i, part)| self.read_at(offset + (i * STEP) as u64, part))
    }

    fn read_extent(&self, extent: &Extent, skip: u64, out: &mut [u8]) -> Result<(), RepoError> {
        let object = self.repo.open_object(&extent.object)?;
        let mut at = extent.offset + skip;
        if at + out.len() as u64 > object.length() {
            return Err(RepoError::damaged(format!("object {} is shorter than its extent", extent.object)));
        }
        let mut rest = out;
        while !rest.is_empty() {
            let (index, from) = (at / BLOCK, (at % BLOCK) as usize);
            let (now, later) = rest.split_at_mut(rest.len().min(block_len(object.length(), index) - from));
            self.repo.read_block(&object, index, from, now)?;
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::id::object_id;
    use crate::model::object::BlockInfo;
    use crate::store::disk::Disk;
    use crate::store::pack::PackWriter;
    use crate::store::sim::SimDisk;

    fn object(byte: u8, cost: u8, bases: Vec<Base>) -> ObjectRecord {
        let (value, shape) = (block_value(&[byte], 0, 1), vec![1]);
        let id = object_id("U8", &shape, &Id(value));
        let (blocks, values) = (vec![BlockInfo { tag: codec::RAW, encoded: 1 }], vec![value]);
        let (dtype, length, row_bytes, params) = ("U8".to_owned(), 1, 0, vec![]);
        let empty_frames = false;
        ObjectRecord { id, dtype, shape, length, cost, row_bytes, bases, params, blocks, values, empty_frames }
    }

    #[test]
    fn a_circle_of_bases_is_damage_and_ends() {
        let (sim, dir) = (SimDisk::new(1), std::path::Path::new("/r"));
        let disk: Arc<dyn Disk> = Arc::new(sim);
        crate::store::create(&disk, dir).unwrap();
        let (a, b) = (object(1, 1, vec![]).id, object(2, 1, vec![]).id);
        let mut writer = PackWriter::create(disk.clone(), &dir.join("packs")).unwrap();
        for (byte, base) in [(1, b), (2, a)] {
            writer.put_block(&[byte]).unwrap();
            writer.put_object(&object(byte, 2, vec![Base { id: base, mapping: Mapping::Bytes }])).unwrap();
        }
        writer.seal().unwrap();
        let repo = Repo::open(dir, disk, 1 << 20).unwrap();
        for id in [a, b] {
            let why = repo.open_object(&id).err().expect("a circle").to_string();
            assert!(why.contains("its cost is not below"), "{why}");
        }
    }

    /// The same byte, 7, as two tensors of these dtypes in a new pack: the first is stored, the second is said to be the
    /// same. The pack's name, and the second's id.
    pub fn two(disk: &Arc<dyn Disk>, dir: &std::path::Path, of: [&str; 2]) -> (String, Id) {
        let typed = |dtype: &str, cost, bases| {
            let record = object(7, cost, bases);
            let id = object_id(dtype, &record.shape, &Id(record.values[0]));
            ObjectRecord { id, dtype: dtype.to_owned(), ..record }
        };
        let stored = typed(of[0], 1, vec![]);
        let mut same = typed(of[1], 2, vec![Base { id: stored.id, mapping: Mapping::Bytes }]);
        same.blocks = vec![BlockInfo { tag: codec::SAME, encoded: 0 }];
        let mut writer = PackWriter::create(disk.clone(), &dir.join("packs")).unwrap();
        for (record, bytes) in [(&stored, &[7][..]), (&same, &[])] {
            writer.put_block(bytes).unwrap();
            writer.put_object(record).unwrap();
        }
        (writer.seal().unwrap().name, same.id)
    }

    #[test]
    fn what_was_a_base_may_be_built_on_what_was_built_on_it() {
        let dir = std::path::Path::new("/r");
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
        crate::store::create(&disk, dir).unwrap();
        let (old, id) = two(&disk, dir, ["U8", "I8"]);
        let repo = Repo::open(dir, disk.clone(), 1 << 20).unwrap();
        let held = repo.open_object(&id).unwrap();
        two(&disk, dir, ["I8", "U8"]);
        repo.refresh().unwrap();
        repo.packs.remove(&[old]).unwrap();
        let (done, waits) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(repo.block(&held, 0).map(|b| b.to_vec())));
        let read = waits.recv_timeout(std::time::Duration::from_secs(60)).expect("it waits for itself");
        assert_eq!(read.unwrap(), [7]);
    }
}
