//! The footers of most packs in one file: a repository of a thousand packs opens by reading one file, not each.
//!
//! ```text
//! magic      8   "mgitfoot"
//! then, for each pack:
//! len        4   bytes of the payload, LE
//! check      4   check4 of the payload
//! payload        name 8 · bytes u64 LE · n × the 53 bytes of an entry of its footer, in their order
//! ```
//! All of it is derived from packs that were sound, and nobody changes a pack: what stands here of one that is there is
//! what stands in it, but for damage, which shows where a thing is read. It can be deleted at any time. It is replaced as
//! a whole, not synced; what does not check out, and all behind it, is read from the packs. Who looks for damage, and who
//! removes packs, never looks here.
//!
//! It doesn't know which packs there are.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::check::check4;
use super::disk::{Disk, DiskFile};
use super::index::Pack;
use super::pack::{ENTRY, Entry, parse_name};
use super::{At, Result, parallel};

const MAGIC: &[u8; 8] = b"mgitfoot";
/// Its name beside the packs, and while it is written.
const FOOTERS: &str = "footers";
const TEMPORARY: &str = "footers.tmp";
/// Bytes of a frame before its payload, and of a payload before its entries.
const HEAD: usize = 8;
const NAMED: usize = 16;
/// Most bytes of a payload: the footer of a larger pack is read there.
const MAX_PAYLOAD: usize = 1 << 22;
/// Most bytes of a pack: sums over all packs never overflow.
const MAX_BYTES: u64 = 1 << 48;
/// Bytes that are read at once: more than the longest frame.
const PIECE: u64 = 8 << 20;

/// What stands here of one pack.
pub(super) struct Footer {
    pub bytes: u64,
    pub entries: Vec<Entry>,
}

/// What stands here of the packs that are `wanted`, by name. Empty where the file is not there or no such file.
pub(super) fn read(disk: &dyn Disk, dir: &Path, wanted: impl Fn(&str) -> bool + Sync) -> HashMap<String, Footer> {
    let mut found = HashMap::new();
    let Ok(file) = disk.open(&dir.join(FOOTERS)) else { return found };
    let Ok(len) = file.len() else { return found };
    if bytes(&*file, 0, MAGIC.len() as u64, len).is_none_or(|m| m != MAGIC) {
        return found;
    }
    let mut at = MAGIC.len() as u64;
    while let Some(piece) = bytes(&*file, at, PIECE, len).filter(|p| !p.is_empty()) {
        let frames: Vec<&[u8]> = frames(&piece).collect();
        let read = parallel::map(&frames, |frame| footer(frame, &wanted));
        let sound = read.iter().take_while(|f| f.is_ok()).count();
        found.extend(read.into_iter().map_while(Result::ok).flatten());
        at += frames[..sound].iter().map(|f| f.len() as u64).sum::<u64>();
        if sound == 0 || sound < frames.len() {
            break;
        }
    }
    found
}

/// As many bytes as there are, at most `count`; `None` where they can't be read.
fn bytes(file: &dyn DiskFile, at: u64, count: u64, len: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; count.min(len.saturating_sub(at)) as usize];
    file.read_at(&mut bytes, at).ok()?;
    Some(bytes)
}

/// The frames that are there in full.
fn frames(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let len = u32::from_le_bytes(*rest.first_chunk()?) as usize;
        let (frame, after) = rest.split_at_checked(HEAD + len).filter(|_| (NAMED..=MAX_PAYLOAD).contains(&len))?;
        rest = after;
        Some(frame)
    })
}

/// A frame that does not check out.
struct Damaged;

fn footer(frame: &[u8], wanted: impl Fn(&str) -> bool) -> Result<Option<(String, Footer)>, Damaged> {
    let (check, payload) = (&frame[4..HEAD], &frame[HEAD..]);
    if check4(&[payload]) != *check {
        return Err(Damaged);
    }
    let word = |at: usize| payload[at..].first_chunk().copied().unwrap_or_default();
    let (name, bytes) = (format!("{:016x}", u64::from_be_bytes(word(0))), u64::from_le_bytes(word(8)));
    if !wanted(&name) {
        return Ok(None);
    }
    let (entries, rest) = payload[NAMED..].as_chunks::<ENTRY>();
    let entries: Option<Vec<Entry>> = entries.iter().map(|e| Entry::read(e, bytes)).collect();
    let makes_sense = |e: &Vec<Entry>| {
        let sum = e.iter().try_fold(0u64, |sum, e| sum.checked_add(e.stored)).filter(|sum| *sum <= bytes);
        rest.is_empty() && bytes <= MAX_BYTES && sum.is_some() && e.is_sorted_by(|a, b| (a.kind, a.id) < (b.kind, b.id))
    };
    let entries = entries.filter(makes_sense).ok_or(Damaged)?;
    Ok(Some((name, Footer { bytes, entries })))
}

/// Whether a pack is small enough to stand here.
pub(super) fn takes(pack: &Pack) -> bool {
    pack.entries.len() <= (MAX_PAYLOAD - NAMED) / ENTRY && pack.bytes <= MAX_BYTES
}

/// Replaces the file by one of these packs, each of which it [`takes`].
pub(super) fn write<'a>(disk: &dyn Disk, dir: &Path, packs: impl Iterator<Item = &'a Arc<Pack>>) -> Result<()> {
    let mut out = MAGIC.to_vec();
    packs.for_each(|pack| put(&mut out, pack));
    let (path, temporary) = (dir.join(FOOTERS), dir.join(TEMPORARY));
    // Two that write at once may mix what they wrote up: each frame checks out or not.
    let _ = disk.remove(&temporary);
    let file = disk.create_new(&temporary).at(&temporary)?;
    let written = file.append(&out).and_then(|()| disk.rename(&temporary, &path));
    if written.is_err() {
        let _ = disk.remove(&temporary);
    }
    written.at(&path)
}

fn put(out: &mut Vec<u8>, pack: &Pack) {
    let len = NAMED + ENTRY * pack.entries.len();
    let Some(name) = parse_name(&pack.name) else { return };
    out.extend_from_slice(&(len as u32).to_le_bytes());
    let check = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&name);
    out.extend_from_slice(&pack.bytes.to_le_bytes());
    pack.entries.iter().for_each(|e| e.put(out));
    let value = check4(&[&out[check + 4..]]);
    out[check..check + 4].copy_from_slice(&value);
}

#[cfg(test)]
mod tests {
    use super::super::pack::Kind;
    use super::super::sim::SimDisk;
    use super::*;
    use crate::model::id::Id;

    fn found(bytes: u64, entries: Vec<Entry>) -> usize {
        let (disk, dir) = (SimDisk::new(1), Path::new("/"));
        let (name, path) = ("00000000000000aa".to_owned(), Default::default());
        write(&disk, dir, [Arc::new(Pack { name, key: 0, path, bytes, entries })].iter()).unwrap();
        read(&disk, dir, |_| true).len()
    }

    #[test]
    fn what_makes_no_sense_is_not_believed_though_it_checks_out() {
        let entry = |n: u8| Entry { kind: Kind::Recipe, id: Id([n; 32]), offset: 100, len: 10, stored: 19 };
        assert_eq!(found(1000, vec![entry(1), entry(2)]), 1);
        assert_eq!(found(1000, vec![]), 1);
        assert_eq!(found(110, vec![entry(1)]), 0, "it lies behind the end");
        assert_eq!(found(1000, vec![entry(2), entry(1)]), 0, "not sorted");
        assert_eq!(found(1000, vec![entry(1), entry(1)]), 0, "twice");
        assert_eq!(found(120, vec![entry(1); 7]), 0, "more than there is");
        assert_eq!(found(MAX_BYTES + 1, vec![entry(1)]), 0, "longer than any file");
        assert_eq!(found(1000, vec![Entry { stored: 500, ..entry(1) }]), 0, "larger than its frames");
    }
}
