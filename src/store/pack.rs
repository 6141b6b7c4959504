//! The layout of a pack (`format.md`) and its one writer. A pack holds what never changes: objects with their
//! encoded blocks, recipes, version records. It is written once, whole, and then only read or removed.
//!
//! Invariants: a name ending in `.pack` stands for a whole, synced file; an object's block frames lie directly
//! before its record; no id stands twice. A pack being written is `<id>.tmp`, held under a lock (the lease)
//! that lasts until its [`SealedPack`] is dropped: what can be locked is a crash's leftover. Until then it also holds
//! the gate ([`super::gate`]), so nothing is removed beside it.
//! A new pack's name sorts before those that are there: of two copies of a thing, the newer one counts.
//!
//! It doesn't know what blocks decode to.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::check::{HEADER, check4, header};
use super::disk::{Disk, DiskFile};
use super::gate::{self, Gate};
use super::{At, Result, StoreError, parity, root};
use crate::model::id::{BLOCK, Id};
use crate::model::object::ObjectRecord;
use crate::model::recipe::Recipe;

pub(super) const MAGIC: &[u8; 8] = b"mgitpack";
pub(super) const END: &[u8; 8] = b"mgit-end";
/// Bytes of a frame before its payload.
pub(super) const FRAME: u64 = 9;
/// Bytes of one entry of the footer.
pub(super) const ENTRY: usize = 53;
/// Bytes after the footer.
pub(super) const TRAILER: usize = 56;
/// The longest payload, footers apart.
pub(super) const MAX_PAYLOAD: u32 = 1 << 28;
/// Bytes gathered before they are written.
const BUFFER: usize = 1 << 20;

/// What a frame holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Kind {
    Block = 1,
    Object = 2,
    Recipe = 3,
    Version = 4,
    Footer = 5,
}

impl Kind {
    pub(super) fn of(byte: u8) -> Option<Kind> {
        [Kind::Block, Kind::Object, Kind::Recipe, Kind::Version, Kind::Footer].into_iter().find(|k| *k as u8 == byte)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Block => "block",
            Kind::Object => "object",
            Kind::Recipe => "recipe",
            Kind::Version => "version",
            Kind::Footer => "footer",
        }
    }
}

/// A line of the footer: where a thing lies. Sorted by kind, then id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Entry {
    pub kind: Kind,
    pub id: Id,
    /// Where its frame begins.
    pub offset: u64,
    /// Bytes of its payload.
    pub len: u32,
    /// Bytes of its frame and, for an object, of its block frames.
    pub stored: u64,
}

impl Entry {
    /// First byte after its frame.
    pub fn end(&self) -> u64 {
        self.offset + FRAME + self.len as u64
    }

    /// First byte of its first frame.
    pub fn start(&self) -> u64 {
        self.end() - self.stored
    }

    pub fn put(&self, out: &mut Vec<u8>) {
        out.push(self.kind as u8);
        out.extend_from_slice(&self.id.0);
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.len.to_le_bytes());
        out.extend_from_slice(&self.stored.to_le_bytes());
    }

    /// An entry that points between the header and `limit`, else `None`.
    pub fn read(bytes: &[u8; ENTRY], limit: u64) -> Option<Entry> {
        let word = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("an entry has 53 bytes"));
        let entry = Entry {
            kind: Kind::of(bytes[0])?,
            id: Id(*bytes[1..].first_chunk()?),
            offset: word(33),
            len: u32::from_le_bytes(*bytes[41..].first_chunk()?),
            stored: word(45),
        };
        let end = entry.offset.checked_add(FRAME + entry.len as u64)?;
        let start = end.checked_sub(entry.stored)?;
        let own = FRAME + entry.len as u64;
        let fits = match entry.kind {
            Kind::Object => entry.stored >= own,
            Kind::Recipe | Kind::Version => entry.stored == own,
            Kind::Block | Kind::Footer => false,
        };
        (fits && entry.len <= MAX_PAYLOAD && start >= HEADER as u64 && end <= limit).then_some(entry)
    }
}

/// What a frame's check covers, and in which order.
pub(super) fn frame_check(kind: u8, len: u32, payload: &[u8]) -> [u8; 4] {
    check4(&[&[kind], &len.to_le_bytes(), payload])
}

pub(super) fn put_frame(out: &mut Vec<u8>, kind: Kind, payload: &[u8]) {
    let len = payload.len() as u32;
    out.push(kind as u8);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&frame_check(kind as u8, len, payload));
    out.extend_from_slice(payload);
}

/// The footer frame and the trailer, for a pack whose frames end at `at`. Sorts the entries.
pub(super) fn footer(entries: &mut [Entry], at: u64) -> Vec<u8> {
    entries.sort_unstable();
    let mut payload = Vec::with_capacity(entries.len() * ENTRY);
    entries.iter().for_each(|e| e.put(&mut payload));
    let mut out = Vec::with_capacity(payload.len() + TRAILER + FRAME as usize);
    put_frame(&mut out, Kind::Footer, &payload);
    out.extend_from_slice(&at.to_le_bytes());
    out.extend_from_slice(&(entries.len() as u64).to_le_bytes());
    out.extend_from_slice(&Id::of(&payload).0);
    out.extend_from_slice(END);
    out
}

/// A version record's payload: its plain length, then its bytes.
pub(super) fn version_payload(bytes: &[u8]) -> Vec<u8> {
    let mut out = (bytes.len() as u32).to_le_bytes().to_vec();
    out.extend_from_slice(bytes);
    out
}

/// The bytes of a version record's payload.
pub(super) fn version_bytes(payload: &[u8]) -> Option<&[u8]> {
    let (len, bytes) = payload.split_first_chunk::<4>()?;
    (u32::from_le_bytes(*len) as usize == bytes.len()).then_some(bytes)
}

/// Bytes of all block frames of an object.
pub(super) fn block_frames(record: &ObjectRecord) -> u64 {
    record.encoded_bytes() + FRAME * record.blocks.iter().filter(|b| record.has_frame(b)).count() as u64
}

/// Sixteen hex digits, or nothing.
pub(super) fn parse_name(name: &str) -> Option<[u8; 8]> {
    let digits = name.len() == 16 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    digits.then(|| u64::from_str_radix(name, 16).ok()).flatten().map(u64::to_be_bytes)
}

/// Writes one pack. Dropped without [`PackWriter::seal`], it removes what it wrote.
pub struct PackWriter {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    name: String,
    /// `None` once sealed.
    file: Option<Box<dyn DiskFile>>,
    buffer: Vec<u8>,
    /// Bytes handed over, the buffer's included.
    at: u64,
    entries: Vec<Entry>,
    held: HashSet<(Kind, Id)>,
    /// Lengths of the blocks since the last object.
    blocks: Vec<u32>,
    failed: bool,
    gate: Option<Gate>,
}

/// A pack that is durably there. Until it is dropped, its lock keeps gc off: keep it until the journal names it.
pub struct SealedPack {
    /// The file's stem.
    pub name: String,
    /// With its parity.
    pub bytes: u64,
    _lease: Box<dyn DiskFile>,
    _gate: Option<Gate>,
}

impl PackWriter {
    /// A new pack in the directory of packs. What is stored already is to be looked up afterwards.
    pub fn create(disk: Arc<dyn Disk>, dir: &Path) -> Result<PackWriter> {
        let gate = gate::enter(&*disk, dir)?;
        let mut writer = PackWriter::create_beside(disk, dir)?;
        writer.gate = Some(gate);
        Ok(writer)
    }

    /// As [`PackWriter::create`], for who holds the gate.
    pub fn create_beside(disk: Arc<dyn Disk>, dir: &Path) -> Result<PackWriter> {
        let id = new_name(&*disk, dir)?;
        PackWriter::create_named(disk, dir, id)
    }

    /// As [`PackWriter::create_beside`], for tests that compare bytes.
    pub fn create_named(disk: Arc<dyn Disk>, dir: &Path, mut id: [u8; 8]) -> Result<PackWriter> {
        loop {
            let name = format!("{:016x}", u64::from_be_bytes(id));
            if let Some(file) = lease(&*disk, dir, &name)? {
                let (entries, held, blocks) = Default::default();
                let buffer = header(MAGIC, id).to_vec();
                let (dir, file, at) = (dir.to_owned(), Some(file), HEADER as u64);
                let (failed, gate) = (false, None);
                return Ok(PackWriter { disk, dir, name, file, buffer, at, entries, held, blocks, failed, gate });
            }
            id = new_name(&*disk, dir)?;
        }
    }

    /// The next block of the object that the next [`PackWriter::put_object`] names.
    pub fn put_block(&mut self, encoded: &[u8]) -> Result<()> {
        if encoded.len() as u64 > BLOCK {
            return Err(StoreError::Misuse("an encoded block is larger than a block"));
        }
        self.blocks.push(encoded.len() as u32);
        if encoded.is_empty() { Ok(()) } else { self.frame(Kind::Block, encoded) }
    }

    /// The record of the object whose blocks were put since the last.
    pub fn put_object(&mut self, record: &ObjectRecord) -> Result<()> {
        if !record.blocks.iter().map(|b| b.encoded).eq(self.blocks.iter().copied()) {
            return Err(StoreError::Misuse("an object's table is not that of the blocks before it"));
        }
        if self.has_object(&record.id) {
            return Err(StoreError::Misuse("an object stands twice in a pack"));
        }
        self.blocks.clear();
        self.put(Kind::Object, record.id, &record.encode(), block_frames(record))
    }

    /// A recipe; nothing if it is here already.
    pub fn put_recipe(&mut self, recipe: &Recipe) -> Result<Id> {
        let bytes = recipe.encode();
        self.put_plain(Kind::Recipe, Id::of(&bytes), &bytes)
    }

    /// A version record's bytes; nothing if it is here already.
    pub fn put_version(&mut self, bytes: &[u8]) -> Result<Id> {
        self.put_plain(Kind::Version, Id::of(bytes), &version_payload(bytes))
    }

    /// A recipe's bytes, as another pack has them; nothing if it is here already.
    pub(super) fn put_recipe_bytes(&mut self, bytes: &[u8]) -> Result<Id> {
        self.put_plain(Kind::Recipe, Id::of(bytes), bytes)
    }

    pub fn has_object(&self, id: &Id) -> bool {
        self.held.contains(&(Kind::Object, *id))
    }

    pub fn has_recipe(&self, id: &Id) -> bool {
        self.held.contains(&(Kind::Recipe, *id))
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.at == HEADER as u64
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.at
    }

    /// The name that it will have.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Finishes the pack. When this returns it is durably there under its name.
    pub fn seal(mut self) -> Result<SealedPack> {
        if self.failed || !self.blocks.is_empty() {
            return Err(StoreError::Misuse("a pack was sealed after a failure or within an object"));
        }
        if self.entries.len() * ENTRY > u32::MAX as usize {
            return Err(StoreError::Misuse("too many things for one pack"));
        }
        let end = footer(&mut self.entries, self.at);
        self.at += end.len() as u64;
        self.buffer.extend_from_slice(&end);
        self.flush()?;
        let (tmp, pack) = (self.path("tmp"), self.path("pack"));
        self.file().sync().at(&tmp)?;
        self.disk.rename(&tmp, &pack).at(&pack)?;
        let named = self.disk.sync_dir(&self.dir).at(&self.dir);
        if named.is_err() {
            let _ = self.disk.remove(&pack);
        }
        let lease = self.file.take().expect("a pack is sealed once");
        named?;
        let permille = self.dir.parent().map_or(0, |root| root::parity(&*self.disk, root));
        let more = if permille > 0 { parity::write(&*self.disk, &self.dir, &self.name, permille)? } else { 0 };
        let (gate, bytes) = (self.gate.take(), self.at + more);
        Ok(SealedPack { name: self.name.clone(), bytes, _lease: lease, _gate: gate })
    }

    fn put_plain(&mut self, kind: Kind, id: Id, payload: &[u8]) -> Result<Id> {
        if !self.blocks.is_empty() {
            return Err(StoreError::Misuse("something stands between an object and its blocks"));
        }
        if !self.held.contains(&(kind, id)) {
            self.put(kind, id, payload, 0)?;
        }
        Ok(id)
    }

    fn put(&mut self, kind: Kind, id: Id, payload: &[u8], before: u64) -> Result<()> {
        if payload.len() > MAX_PAYLOAD as usize {
            return Err(StoreError::Misuse("a record is too long"));
        }
        let len = payload.len() as u32;
        self.entries.push(Entry { kind, id, offset: self.at, len, stored: before + FRAME + len as u64 });
        self.held.insert((kind, id));
        self.frame(kind, payload)
    }

    fn frame(&mut self, kind: Kind, payload: &[u8]) -> Result<()> {
        self.at += FRAME + payload.len() as u64;
        put_frame(&mut self.buffer, kind, payload);
        if self.buffer.len() < BUFFER { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<()> {
        if self.failed {
            return Err(StoreError::Misuse("a pack is written after a failure"));
        }
        let done = self.file().append(&self.buffer);
        self.failed = done.is_err();
        self.buffer.clear();
        done.at(&self.path("tmp"))
    }

    fn file(&self) -> &dyn DiskFile {
        self.file.as_deref().expect("a pack's file is open until it is sealed")
    }

    fn path(&self, extension: &str) -> PathBuf {
        self.dir.join(format!("{}.{extension}", self.name))
    }
}

impl Drop for PackWriter {
    fn drop(&mut self) {
        if self.file.is_some() {
            let _ = self.disk.remove(&self.path("tmp"));
        }
    }
}

/// The most that a new pack's name lies below the least: there is room for some ten million.
const NAME_STEP: u64 = 1 << 40;

/// A name that sorts before all that are there, as long as there are any.
fn new_name(disk: &dyn Disk, dir: &Path) -> Result<[u8; 8]> {
    let random = disk.random();
    let names = disk.list(dir).at(dir)?;
    let taken = names.iter().filter_map(|n| parse_name(n.split_once('.')?.0)).map(u64::from_be_bytes);
    let below = taken.min().and_then(|least| least.checked_sub(1 + random % NAME_STEP));
    Ok(below.unwrap_or(random | 1 << 63).to_be_bytes())
}

/// A new `<name>.tmp` under its lock; `None` when the name is taken.
fn lease(disk: &dyn Disk, dir: &Path, name: &str) -> Result<Option<Box<dyn DiskFile>>> {
    let (tmp, pack) = (dir.join(format!("{name}.tmp")), dir.join(format!("{name}.pack")));
    if disk.exists(&pack).at(&pack)? {
        return Ok(None);
    }
    let file = match disk.create_new(&tmp) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Ok(None),
        other => other.at(&tmp)?,
    };
    file.lock(true, true).at(&tmp)?;
    // Between the two, a sweep may have taken it for a leftover.
    Ok(disk.exists(&tmp).at(&tmp)?.then_some(file))
}

/// Removes packs that a crash left unfinished; returns their file names. Those being written are left alone.
pub fn remove_leftovers(disk: &dyn Disk, dir: &Path) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for name in disk.list(dir).at(dir)? {
        if name.strip_suffix(".tmp").and_then(parse_name).is_none() {
            continue;
        }
        let path = dir.join(&name);
        let Ok(file) = disk.open(&path) else { continue };
        if file.lock(true, false).at(&path)? && disk.exists(&path).at(&path)? {
            disk.remove(&path).at(&path)?;
            removed.push(name);
        }
    }
    Ok(removed)
}
