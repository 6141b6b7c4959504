//! Sketches of the versions that were committed, in commit order: what a search for parents looks through.
//!
//! ```text
//! magic      8   "mgitskt3"
//! then, for each version:
//! len        4   bytes of the payload, LE
//! check      4   check4 of the payload
//! payload        number u32 LE, from 0 · id 32 · lanes 8 × u32 LE · count u8,
//!                then for each sketch: class u32 LE · first u32 LE · n u8 · n × f32 LE
//! len        4   once more: how many versions there are is read from the end
//! ```
//! All of it is derived from the packs and can be deleted at any time. It is not synced: what is torn or does not
//! check out is cut off, and sketched again by whoever has the file's lock ([`SketchFile::open`]).
//!
//! It doesn't know which versions there are, nor how they are sketched.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Disk, DiskFile};
use super::root::SKETCHES;
use super::{At, Result, parallel};
use crate::model::id::Id;
use crate::model::sketch::Sketch;
use crate::model::wire::{Cursor, Malformed};

const MAGIC: &[u8; 8] = b"mgitskt3";
/// Fewest and most bytes of one version.
const MIN_PAYLOAD: usize = 4 + 32 + 4 * LANES + 1;
const MAX_PAYLOAD: usize = 1 << 16;
/// Bytes that are read at once: what the file holds decides what it takes, not how long it says that it is.
const PIECE: u64 = 4 << 20;
/// Bytes of a frame beside its payload.
const OVERHEAD: usize = 12;
/// Hash functions of a version's set of objects.
pub const LANES: usize = 8;

/// Some tensors of a version, and the least hashes of all its objects' ids: equal in about the share of lanes that
/// two versions have of all their objects in common (min-wise hashing, Broder 1997).
#[derive(Clone, PartialEq, Debug)]
pub struct VersionSketch {
    pub id: Id,
    pub lanes: [u32; LANES],
    pub tensors: Vec<Sketch>,
}

/// The least of each of the eight words of the ids.
pub fn lanes<'a>(objects: impl Iterator<Item = &'a Id>) -> [u32; LANES] {
    objects.fold([u32::MAX; LANES], |mut least, id| {
        for (l, word) in least.iter_mut().zip(id.0.as_chunks::<4>().0) {
            *l = (*l).min(u32::from_le_bytes(*word));
        }
        least
    })
}

impl VersionSketch {
    fn encode(&self, number: u32) -> Vec<u8> {
        let mut out = number.to_le_bytes().to_vec();
        out.extend_from_slice(&self.id.0);
        self.lanes.iter().for_each(|l| out.extend_from_slice(&l.to_le_bytes()));
        out.push(self.tensors.len() as u8);
        for t in &self.tensors {
            out.extend_from_slice(&t.class.to_le_bytes());
            out.extend_from_slice(&t.first.to_le_bytes());
            out.push(t.values.len() as u8);
            t.values.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes()));
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<VersionSketch, Malformed> {
        let mut c = Cursor(bytes);
        c.take(4)?;
        let id = Id(c.array()?);
        let mut lanes = [0; LANES];
        for l in &mut lanes {
            *l = u32::from_le_bytes(c.array()?);
        }
        let count = c.byte()?;
        let tensors = (0..count).map(|_| decode_sketch(&mut c)).collect::<Result<Vec<_>, _>>()?;
        c.end()?;
        Ok(VersionSketch { id, lanes, tensors })
    }
}

fn decode_sketch(c: &mut Cursor) -> Result<Sketch, Malformed> {
    let (class, first) = (u32::from_le_bytes(c.array()?), u32::from_le_bytes(c.array()?));
    let n = c.byte()? as usize;
    let values = c.take(4 * n)?.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    Sketch::new(class, first, values).ok_or(Malformed("a sketch that tells nothing"))
}

/// The file, locked: what it holds, and a way to add to it.
pub struct SketchFile {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    /// How many versions it holds, and the last of them.
    pub count: usize,
    pub last: Option<Id>,
}

impl SketchFile {
    pub fn exists(disk: &Arc<dyn Disk>, root: &Path) -> bool {
        disk.exists(&root.join(SKETCHES)).unwrap_or(false)
    }

    /// Below the repository at `root`; made if it is not there. Waits for another process that has it. A torn end is cut
    /// off; what comes before is looked at by [`read`](Self::read).
    pub fn open(disk: &Arc<dyn Disk>, root: &Path) -> Result<SketchFile> {
        let path = root.join(SKETCHES);
        let file = match disk.create_new(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => disk.open_append(&path).at(&path)?,
            made => made.at(&path)?,
        };
        file.lock(true, true).at(&path)?;
        let mut out = SketchFile { path, file, count: 0, last: None };
        let len = out.file.len().at(&out.path)?;
        if out.bytes(0, MAGIC.len() as u64, len)?.is_none_or(|m| m != MAGIC) {
            out.file.truncate(0).at(&out.path)?;
            out.file.append(MAGIC).at(&out.path)?;
        } else if len > MAGIC.len() as u64 && !out.take_last(len)? {
            out.read()?;
        }
        Ok(out)
    }

    /// Some of its bytes, where it has them.
    fn bytes(&self, at: u64, count: u64, len: u64) -> Result<Option<Vec<u8>>> {
        if at.checked_add(count).is_none_or(|end| end > len) {
            return Ok(None);
        }
        let mut bytes = vec![0; count as usize];
        self.file.read_at(&mut bytes, at).at(&self.path)?;
        Ok(Some(bytes))
    }

    /// Learns from the last frame what there is; `false` where the file does not end with a sound one.
    fn take_last(&mut self, len: u64) -> Result<bool> {
        let end = self.bytes(len.saturating_sub(4), 4, len)?;
        let size = end.and_then(|e| Some(u32::from_le_bytes(*e.first_chunk()?))).filter(|n| *n as usize <= MAX_PAYLOAD);
        let size = size.map(|n| n as u64 + OVERHEAD as u64);
        let Some((at, size)) = size.and_then(|size| Some((len.checked_sub(size)?, size))) else { return Ok(false) };
        let bytes = self.bytes(at, size, len)?.unwrap_or_default();
        let Some(frame) = Frame::at(&bytes).filter(|f| f.len() == bytes.len() && f.is_sound()) else {
            return Ok(false);
        };
        (self.count, self.last) = (frame.number().map_or(0, |n| n as usize + 1), frame.id());
        Ok(true)
    }

    /// All versions, up to the first that does not check out: that and what follows is cut off.
    pub fn read(&mut self) -> Result<Vec<VersionSketch>> {
        let len = self.file.len().at(&self.path)?;
        let (mut versions, mut at) = (Vec::new(), MAGIC.len() as u64);
        while at < len {
            let bytes = self.bytes(at, PIECE.min(len - at), len)?.unwrap_or_default();
            let taken = take_frames(&bytes, &mut versions);
            if taken == 0 {
                self.file.truncate(at).at(&self.path)?;
                break;
            }
            at += taken;
        }
        (self.count, self.last) = (versions.len(), versions.last().map(|v| v.id));
        Ok(versions)
    }

    /// Forgets everything.
    pub fn clear(&mut self) -> Result<()> {
        (self.count, self.last) = (0, None);
        self.file.truncate(MAGIC.len() as u64).at(&self.path)
    }

    /// Adds versions at the end.
    pub fn add(&mut self, versions: &[VersionSketch]) -> Result<()> {
        let mut out = Vec::new();
        for (number, v) in (self.count..).zip(versions) {
            let payload = v.encode(number as u32);
            let len = (payload.len() as u32).to_le_bytes();
            out.extend_from_slice(&len);
            out.extend_from_slice(&Id::of(&payload).0[..4]);
            out.extend_from_slice(&payload);
            out.extend_from_slice(&len);
        }
        self.file.append(&out).at(&self.path)?;
        (self.count, self.last) = (self.count + versions.len(), versions.last().map(|v| v.id).or(self.last));
        Ok(())
    }
}

/// Takes the versions of the frames that `bytes` begin with, up to one that is not whole, does not check out or is not in
/// its place. Returns how many bytes they took.
fn take_frames(bytes: &[u8], versions: &mut Vec<VersionSketch>) -> u64 {
    let frames: Vec<Frame> = frames(bytes).collect();
    let in_place = |(i, v): (usize, Option<(u32, VersionSketch)>)| v.filter(|(n, _)| *n as usize == i);
    let found = (versions.len()..).zip(parallel::map(&frames, Frame::version)).map_while(in_place);
    let before = versions.len();
    versions.extend(found.map(|(_, version)| version));
    frames[..versions.len() - before].iter().map(Frame::len).sum::<usize>() as u64
}

/// The frames that are there in full.
fn frames(bytes: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let frame = Frame::at(rest)?;
        rest = &rest[frame.len()..];
        Some(frame)
    })
}

/// A version's bytes as they lie in the file.
struct Frame<'a> {
    check: &'a [u8],
    payload: &'a [u8],
}

impl Frame<'_> {
    fn at(bytes: &[u8]) -> Option<Frame<'_>> {
        let head: &[u8; 4] = bytes.first_chunk()?;
        let len = u32::from_le_bytes(*head) as usize;
        let frame = bytes.get(..len + OVERHEAD).filter(|_| (MIN_PAYLOAD..=MAX_PAYLOAD).contains(&len))?;
        frame.ends_with(head).then(|| Frame { check: &frame[4..8], payload: &frame[8..8 + len] })
    }

    fn len(&self) -> usize {
        OVERHEAD + self.payload.len()
    }

    fn number(&self) -> Option<u32> {
        self.payload.first_chunk().map(|n| u32::from_le_bytes(*n))
    }

    fn id(&self) -> Option<Id> {
        self.payload.get(4..)?.first_chunk().map(|id| Id(*id))
    }

    fn is_sound(&self) -> bool {
        *self.check == Id::of(self.payload).0[..4]
    }

    /// With its number.
    fn version(&self) -> Option<(u32, VersionSketch)> {
        let version = VersionSketch::decode(self.payload).ok().filter(|_| self.is_sound())?;
        Some((self.number()?, version))
    }
}

#[cfg(test)]
mod tests {
    use super::super::sim::SimDisk;
    use super::*;

    fn version(n: u8) -> VersionSketch {
        let values = (0..64).map(|i| (i * (n as i32 + 3) % 17) as f32 - 8.0).collect();
        let id = Id::of(&[n]);
        VersionSketch {
            id,
            lanes: lanes([id].iter()),
            tensors: vec![Sketch::new(7, 9, values).unwrap(); n as usize % 3],
        }
    }

    #[test]
    fn what_was_added_is_there_and_what_is_torn_is_cut_off() {
        let sim = SimDisk::new(1);
        let disk: Arc<dyn Disk> = Arc::new(sim.clone());
        let root = Path::new("/r");
        super::super::create(&disk, root).unwrap();
        let all: Vec<_> = (0..5).map(version).collect();
        SketchFile::open(&disk, root).unwrap().add(&all).unwrap();
        let mut file = SketchFile::open(&disk, root).unwrap();
        assert_eq!((file.count, file.last), (5, Some(all[4].id)));
        assert_eq!(file.read().unwrap(), all);
        drop(file);
        let path = root.join(SKETCHES);
        let whole = sim.read(&path);
        for cut in 0..whole.len() {
            sim.write(&path, &whole[..cut]);
            let mut torn = SketchFile::open(&disk, root).unwrap();
            let kept = torn.count;
            assert!(kept < 5 && torn.read().unwrap() == all[..kept] && torn.count == kept);
            torn.add(&all[kept..]).unwrap();
            drop(torn);
            assert_eq!(sim.read(&path), whole, "cut at {cut}");
        }
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 1;
            sim.write(&path, &bad);
            let found = SketchFile::open(&disk, root).unwrap().read().unwrap();
            assert!(found.len() < 5 && found == all[..found.len()]);
        }
        let mut file = SketchFile::open(&disk, root).unwrap();
        file.clear().unwrap();
        drop(file);
        assert!(SketchFile::open(&disk, root).unwrap().read().unwrap().is_empty());
    }

    #[test]
    fn lanes_agree_in_about_the_share_of_what_is_common() {
        let set =
            |range: std::ops::Range<u32>| lanes(range.map(|i| Id::of(&i.to_le_bytes())).collect::<Vec<_>>().iter());
        let common = |a: [u32; LANES], b: [u32; LANES]| a.iter().zip(&b).filter(|(x, y)| x == y).count();
        assert_eq!(common(set(0..100), set(0..100)), LANES);
        assert!(common(set(0..1000), set(20..1000)) >= 5 && common(set(0..1000), set(1000..2000)) <= 1);
    }
}
