//! Reading a pack without trust: its index (from the footer or, where that is damaged, from its frames), and
//! the walk over every byte that fsck makes.
//!
//! Every byte of a pack is covered: the header by its check, frames by theirs, the footer also by the trailer,
//! the trailer by what it points to, and what lies between entries is reported as such. Damage is an item of
//! the walk and never ends it.
//!
//! It doesn't know other packs, nor what blocks decode to.

use std::sync::Arc;

use super::check::{HEADER, read_header};
use super::disk::DiskFile;
use super::index::Pack;
use super::pack::{
    END, ENTRY, Entry, FRAME, Kind, MAGIC, MAX_PAYLOAD, TRAILER, frame_check, parse_name, version_bytes,
};
use super::packs::StoredObject;
use super::{Result, StoreError};
use crate::model::id::{BLOCK, Id};
use crate::model::object::ObjectRecord;
use crate::model::recipe::Recipe;

/// Bytes of a pack's end that are read at once. Most footers lie within.
const TAIL: u64 = 4096;
/// Bytes of a longer footer that are read at once: whole entries.
const PIECE: usize = ENTRY << 14;

/// Something wrong in a pack.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The pack's file stem.
    pub pack: String,
    pub offset: u64,
    pub what: String,
    /// Whom it concerns, where that is known.
    pub of: Option<(Kind, Id)>,
    /// Which block of that object.
    pub block: Option<u64>,
}

/// What [`super::Packs::scan`] comes across. A damaged thing is a `Damage` and nothing else.
pub enum ScanItem<'a> {
    /// Comes before its blocks.
    Object(&'a Arc<StoredObject>),
    /// A block whose frame is whole. Whether it decodes to what `owner` promises is for the caller to say.
    Block {
        owner: &'a Arc<StoredObject>,
        index: u64,
        encoded: &'a [u8],
    },
    Recipe {
        id: Id,
        recipe: &'a Recipe,
    },
    Version {
        id: Id,
        bytes: &'a [u8],
    },
    Damage(Finding),
}

/// What a pack holds.
pub(super) struct Indexed {
    /// Sorted by kind and id.
    pub entries: Vec<Entry>,
    pub findings: Vec<Finding>,
    /// Where the frames end, if the footer is good.
    footer: Option<u64>,
    pub bytes: u64,
}

fn finding(pack: &str, offset: u64, what: impl Into<String>) -> Finding {
    Finding { pack: pack.to_owned(), offset, what: what.into(), of: None, block: None }
}

/// Bytes from `at` on, as far as `end` allows.
fn read(file: &dyn DiskFile, at: u64, len: u64, end: u64) -> Result<Vec<u8>, String> {
    if at.checked_add(len).is_none_or(|e| e > end) {
        return Err("it ends early".to_owned());
    }
    let mut bytes = vec![0; len as usize];
    file.read_at(&mut bytes, at).map_err(|e| e.to_string())?;
    Ok(bytes)
}

/// A frame's payload, its kind, length and check being right; at the front `FRAME` bytes that are not payload.
pub(super) fn read_frame(file: &dyn DiskFile, kind: Kind, at: u64, len: u32) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; FRAME as usize + len as usize];
    file.read_at(&mut bytes, at).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => "it ends early".to_owned(),
        _ => e.to_string(),
    })?;
    frame_of(kind, len, bytes)
}

/// These bytes, if they are such a frame.
fn frame_of(kind: Kind, len: u32, bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    let (head, payload) = bytes.split_at(FRAME as usize);
    if head[0] != kind as u8 || head[1..5] != len.to_le_bytes() {
        return Err("its frame's head is not as expected".to_owned());
    }
    if head[5..] != frame_check(kind as u8, len, payload) {
        return Err("its check fails".to_owned());
    }
    Ok(bytes)
}

/// The index of pack `name`. Only a pack of a later format is an error.
pub(super) fn index(file: &dyn DiskFile, name: &str) -> Result<Indexed> {
    let bytes = file.len().map_err(|error| StoreError::Io { what: format!("pack {name}"), error })?;
    let mut findings = Vec::new();
    match read_pack_header(file, name, bytes) {
        Err(e @ StoreError::Later { .. }) => return Err(e),
        Err(e) => findings.push(finding(name, 0, e.to_string())),
        Ok(id) if parse_name(name) != Some(id) => findings.push(finding(name, 16, "it is not the pack of its name")),
        Ok(_) => {}
    }
    let (entries, footer) = match read_footer(file, bytes) {
        Ok((entries, footer)) => (entries, Some(footer)),
        Err((at, why)) => {
            findings.push(finding(name, at, format!("footer: {why}")));
            (recover(file, bytes), None)
        }
    };
    Ok(Indexed { entries, findings, footer, bytes })
}

fn read_pack_header(file: &dyn DiskFile, name: &str, end: u64) -> Result<[u8; 8]> {
    let bytes = read(file, 0, HEADER as u64, end).map_err(|e| StoreError::damaged(format!("pack {name}: {e}")))?;
    read_header(MAGIC, bytes.first_chunk().expect("as many as asked for"), &format!("pack {name}"))
}

/// Entries and where the footer's frame begins; or where it fails and why. Mostly one read: of the pack's end.
fn read_footer(file: &dyn DiskFile, end: u64) -> Result<(Vec<Entry>, u64), (u64, String)> {
    let (trailer_at, tail_at) = (end.saturating_sub(TRAILER as u64), end.saturating_sub(TAIL.max(TRAILER as u64)));
    let tail = read(file, tail_at, end - tail_at, end).map_err(|e| (trailer_at, e))?;
    let trailer = tail.last_chunk::<TRAILER>().ok_or((trailer_at, "it ends early".to_owned()))?;
    let word = |at: usize| u64::from_le_bytes(*trailer[at..].first_chunk().expect("a trailer has 56 bytes"));
    let (offset, count) = (word(0), word(8));
    let fits = count.checked_mul(ENTRY as u64).and_then(|n| n.checked_add(offset)?.checked_add(FRAME));
    if trailer[48..] != *END || fits != Some(trailer_at) || offset < HEADER as u64 {
        return Err((trailer_at, "the trailer is damaged".to_owned()));
    }
    let len = u32::try_from(trailer_at - offset - FRAME).map_err(|_| (trailer_at, "it is too long".to_owned()))?;
    let piece = |at: u64, n: u64| match at.checked_sub(tail_at) {
        Some(start) => Ok(tail[start as usize..][..n as usize].to_vec()),
        None => read(file, at, n, end),
    };
    let (entries, digest) = read_entries(offset, len, piece).map_err(|e| (offset, e))?;
    match trailer[16..48] == digest {
        true => Ok((entries.ok_or((offset, "an entry makes no sense".to_owned()))?, offset)),
        false => Err((trailer_at, "the trailer is of another footer".to_owned())),
    }
}

/// A footer's entries, if they make sense, and its payload's digest. Read in pieces: what makes no sense takes no memory,
/// however long it says that it is.
fn read_entries(
    offset: u64,
    len: u32,
    piece: impl Fn(u64, u64) -> Result<Vec<u8>, String>,
) -> Result<(Option<Vec<Entry>>, [u8; 32]), String> {
    let head = piece(offset, FRAME)?;
    if head[0] != Kind::Footer as u8 || head[1..5] != len.to_le_bytes() {
        return Err("its frame's head is not as expected".to_owned());
    }
    let (mut check, mut digest) = (blake3::Hasher::new(), blake3::Hasher::new());
    check.update(&head[..5]);
    let (mut entries, mut sense) = (Vec::new(), true);
    for at in (0..len as u64).step_by(PIECE) {
        let bytes = piece(offset + FRAME + at, (len as u64 - at).min(PIECE as u64))?;
        check.update(&bytes);
        digest.update(&bytes);
        for e in bytes.chunks_exact(ENTRY) {
            let after = |e: &Entry| entries.last().is_none_or(|l: &Entry| (l.kind, l.id) < (e.kind, e.id));
            let entry = e.first_chunk().and_then(|e| Entry::read(e, offset)).filter(|e| sense && after(e));
            sense &= entry.is_some();
            entries.extend(entry);
        }
    }
    match check.finalize().as_bytes()[..4] == head[5..] {
        true => Ok((sense.then_some(entries), *digest.finalize().as_bytes())),
        false => Err("its check fails".to_owned()),
    }
}

/// Entries from the frames themselves, as far as they are whole.
fn recover(file: &dyn DiskFile, end: u64) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut at = HEADER as u64;
    let mut free = at;
    let mut budget = 8 * end + (64 << 20);
    while at < end {
        let Some((kind, frame)) = whole_frame(file, at, end, &mut budget) else {
            match resync(file, at + 1, end, &mut budget) {
                Some(next) => at = next,
                None => break,
            }
            continue;
        };
        let next = at + frame.len() as u64;
        if let Some(entry) = entry_of(kind, at, &frame[FRAME as usize..]).filter(|e| e.start() >= free) {
            free = next;
            entries.push(entry);
        }
        at = next;
    }
    entries.sort_unstable();
    entries.dedup_by_key(|e| (e.kind, e.id));
    entries
}

/// The entry that a footer would have for this frame.
fn entry_of(kind: Kind, offset: u64, payload: &[u8]) -> Option<Entry> {
    let len = payload.len() as u32;
    let own = FRAME + len as u64;
    let (id, stored) = match kind {
        Kind::Object => {
            let record = ObjectRecord::decode(payload).ok()?;
            (record.id, super::pack::block_frames(&record).checked_add(own)?)
        }
        Kind::Recipe => (Id::of(payload), own),
        Kind::Version => (Id::of(version_bytes(payload)?), own),
        Kind::Block | Kind::Footer => return None,
    };
    let start = (offset + own).checked_sub(stored)?;
    (start >= HEADER as u64).then_some(Entry { kind, id, offset, len, stored })
}

/// A frame's kind and length from its head, if they are plausible.
fn plausible(head: &[u8], at: u64, end: u64) -> Option<(Kind, u32)> {
    let kind = Kind::of(head[0])?;
    let len = u32::from_le_bytes(*head[1..].first_chunk()?);
    let most = if kind == Kind::Block { BLOCK as u32 } else { MAX_PAYLOAD };
    (len <= most && at + FRAME + len as u64 <= end).then_some((kind, len))
}

fn whole_frame(file: &dyn DiskFile, at: u64, end: u64, budget: &mut u64) -> Option<(Kind, Vec<u8>)> {
    let head = read(file, at, FRAME, end).ok()?;
    let (kind, len) = plausible(&head, at, end)?;
    *budget = budget.checked_sub(len as u64)?;
    Some((kind, read_frame(file, kind, at, len).ok()?))
}

/// The next place at or after `from` where a whole frame begins.
fn resync(file: &dyn DiskFile, from: u64, end: u64, budget: &mut u64) -> Option<u64> {
    let mut base = from;
    while base + FRAME <= end {
        let window = read(file, base, (1 << 16).min(end - base), end).ok()?;
        let places = window.len() + 1 - (FRAME as usize).min(window.len());
        for i in 0..places {
            let at = base + i as u64;
            if plausible(&window[i..], at, end).is_some() && whole_frame(file, at, end, budget).is_some() {
                return Some(at);
            }
            if *budget == 0 {
                return None;
            }
        }
        base += places as u64;
    }
    None
}

/// The record at an entry, checked against it.
pub(super) fn read_object(pack: &Arc<Pack>, file: &dyn DiskFile, entry: &Entry) -> Result<StoredObject, String> {
    let frame = read_frame(file, Kind::Object, entry.offset, entry.len)?;
    let record = ObjectRecord::decode(&frame[FRAME as usize..]).map_err(|e| e.to_string())?;
    let own = FRAME + entry.len as u64;
    if record.id != entry.id || super::pack::block_frames(&record).checked_add(own) != Some(entry.stored) {
        return Err("the record is not the one that the index names".to_owned());
    }
    Ok(StoredObject::new(record, pack.clone(), entry.start()))
}

/// A recipe or version record at an entry: its bytes, which hash to its id.
pub(super) fn read_plain(file: &dyn DiskFile, entry: &Entry) -> Result<Vec<u8>, String> {
    let mut frame = read_frame(file, entry.kind, entry.offset, entry.len)?;
    let skip = FRAME as usize + if entry.kind == Kind::Version { 4 } else { 0 };
    if entry.kind == Kind::Version && version_bytes(&frame[FRAME as usize..]).is_none() {
        return Err("its length is wrong".to_owned());
    }
    frame.drain(..skip);
    if Id::of(&frame) != entry.id {
        return Err("it does not hash to its id".to_owned());
    }
    Ok(frame)
}

/// Walks all that the index names, in file order, and tells `f`.
pub(super) fn walk(pack: &Arc<Pack>, file: &dyn DiskFile, indexed: &Indexed, f: &mut dyn FnMut(ScanItem)) {
    indexed.findings.iter().for_each(|d| f(ScanItem::Damage(d.clone())));
    let mut entries = indexed.entries.clone();
    entries.sort_unstable_by_key(|e| e.offset);
    let mut at = HEADER as u64;
    for e in &entries {
        seam(&pack.name, at, e.start(), f);
        at = e.end();
        match e.kind {
            Kind::Object => walk_object(pack, file, e, f),
            _ => walk_plain(pack, file, e, f),
        }
    }
    if let Some(footer) = indexed.footer {
        seam(&pack.name, at, footer, f);
    }
}

/// Entries must follow one another without gap or overlap.
fn seam(pack: &str, end: u64, next: u64, f: &mut dyn FnMut(ScanItem)) {
    if next > end {
        f(ScanItem::Damage(finding(pack, end, format!("{} bytes belong to nothing", next - end))));
    } else if next < end {
        f(ScanItem::Damage(finding(pack, next, "two entries overlap")));
    }
}

fn walk_object(pack: &Arc<Pack>, file: &dyn DiskFile, entry: &Entry, f: &mut dyn FnMut(ScanItem)) {
    let owner = match read_object(pack, file, entry) {
        Ok(owner) => Arc::new(owner),
        Err(why) => return f(ScanItem::Damage(damage(pack, entry, why))),
    };
    f(ScanItem::Object(&owner));
    for (index, info) in (0..).zip(&owner.record.blocks) {
        let at = owner.block_offset(index);
        if !owner.record.has_frame(info) {
            f(ScanItem::Block { owner: &owner, index, encoded: &[] });
            continue;
        }
        match read_frame(file, Kind::Block, at, info.encoded) {
            Ok(frame) => f(ScanItem::Block { owner: &owner, index, encoded: &frame[FRAME as usize..] }),
            Err(why) => {
                let what = format!("object {}, block {index}: {why}", entry.id);
                let of = Some((Kind::Object, entry.id));
                f(ScanItem::Damage(Finding { of, block: Some(index), ..finding(&pack.name, at, what) }));
            }
        }
    }
}

fn walk_plain(pack: &Arc<Pack>, file: &dyn DiskFile, entry: &Entry, f: &mut dyn FnMut(ScanItem)) {
    let read = read_plain(file, entry).and_then(|bytes| match entry.kind {
        Kind::Recipe => {
            let recipe = Recipe::decode(&bytes).map_err(|e| e.to_string())?;
            f(ScanItem::Recipe { id: entry.id, recipe: &recipe });
            Ok(())
        }
        _ => {
            f(ScanItem::Version { id: entry.id, bytes: &bytes });
            Ok(())
        }
    });
    if let Err(why) = read {
        f(ScanItem::Damage(damage(pack, entry, why)));
    }
}

fn damage(pack: &Arc<Pack>, entry: &Entry, why: String) -> Finding {
    let what = format!("{} {}: {why}", entry.kind.as_str(), entry.id);
    Finding { of: Some((entry.kind, entry.id)), ..finding(&pack.name, entry.offset, what) }
}
