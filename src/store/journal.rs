//! The journal: every change to what can change, in order. With the packs it is all that a repository is.
//!
//! A frame is acknowledged when its sync has returned, and its check covers the check before it, so a lost,
//! doubled, swapped or changed frame breaks the chain. What follows the last whole frame is a crash's leftover
//! if it can be one (the rest of one unacknowledged append): it is ignored, and cut off by the next append. It is damage
//! if a reader knows an acknowledged position beyond it, or if whole frames can still be seen in it. Layout in
//! `format.md`.
//!
//! It doesn't know what events mean. One process appends at a time: whoever holds the repository's lock.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::check::{HEADER, check8, header, read_header};
use super::disk::{Disk, DiskFile};
use super::{At, Result, StoreError, root};
use crate::model::event::Event;

const MAGIC: &[u8; 8] = b"mgit-log";
const NAME: &str = "000001.log";
/// Number of the log file, in its header.
const NUMBER: [u8; 8] = 1u64.to_le_bytes();
/// Bytes of a frame before its payload.
const FRAME: usize = 12;

/// A place between two frames: where it is, and the check of the frame before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    pub offset: u64,
    pub chain: [u8; 8],
}

pub struct Journal {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    /// End of what is known to be whole.
    end: Mutex<Option<Position>>,
    poisoned: bool,
}

/// The position before the first frame.
fn start() -> Position {
    Position { offset: HEADER as u64, chain: check8(&[&header(MAGIC, NUMBER)]) }
}

fn put_frame(out: &mut Vec<u8>, before: [u8; 8], payload: &[u8]) {
    let len = (payload.len() as u32).to_le_bytes();
    out.extend_from_slice(&len);
    out.extend_from_slice(&check8(&[&before, &len, payload]));
    out.extend_from_slice(payload);
}

/// Payload of the frame that `bytes` begin with, if there are enough of them.
fn payload_of(bytes: &[u8]) -> Option<&[u8]> {
    let len = u32::from_le_bytes(*bytes.first_chunk()?) as usize;
    bytes.get(FRAME..)?.get(..len)
}

fn check_of(bytes: &[u8]) -> Option<[u8; 8]> {
    bytes.get(4..FRAME)?.first_chunk().copied()
}

/// Payload of the frame that `bytes` begin with, if it is whole and follows `before`.
fn frame_after(bytes: &[u8], before: [u8; 8]) -> Option<&[u8]> {
    let payload = payload_of(bytes)?;
    (check_of(bytes)? == check8(&[&before, &bytes[..4], payload])).then_some(payload)
}

/// Walks whole frames from `at` on (`bytes` begin there) and returns where they end.
fn walk(bytes: &[u8], at: Position, f: &mut dyn FnMut(&[u8], Position) -> Result<()>) -> Result<Position> {
    let mut here = at;
    loop {
        let rest = &bytes[(here.offset - at.offset) as usize..];
        let Some(payload) = frame_after(rest, here.chain) else { return Ok(here) };
        let chain = check_of(rest).expect("a whole frame has a check");
        here = Position { offset: here.offset + (FRAME + payload.len()) as u64, chain };
        f(payload, here)?;
    }
}

/// Whether bytes after the last whole frame cannot be a torn append. A torn append is part of one frame, so
/// neither a whole frame's events nor a frame that follows another can be in it.
fn is_damage(rest: &[u8], before: [u8; 8]) -> bool {
    if payload_of(rest).is_some_and(|p| serde_json::from_slice::<Vec<Event>>(p).is_ok()) {
        return true;
    }
    let stored = check_of(rest);
    let computed = payload_of(rest).map(|p| check8(&[&before, &rest[..4], p]));
    let chains: Vec<_> = stored.into_iter().chain(computed).collect();
    (FRAME..rest.len()).any(|at| chains.iter().any(|&c| frame_after(&rest[at..], c).is_some()))
}

fn events(payload: &[u8], what: &str) -> Result<Vec<Event>> {
    serde_json::from_slice(payload).map_err(|e| StoreError::Later { what: format!("{what} ({e})") })
}

impl Journal {
    /// The journal in its directory; an empty one where there is none (then the caller holds the
    /// repository's lock).
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Journal> {
        let path = dir.join(NAME);
        if !disk.exists(&path).at(&path)? {
            root::write_whole(&*disk, &path, &header(MAGIC, NUMBER))?;
        }
        let file = disk.open_append(&path).at(&path)?;
        let journal = Journal { path, file, end: Mutex::new(None), poisoned: false };
        let what = journal.what();
        let mut head = [0; HEADER];
        journal.file.read_at(&mut head, 0).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => StoreError::damaged(format!("{what}: its header")),
            _ => StoreError::Io { what: what.clone(), error },
        })?;
        match read_header(MAGIC, &head, &what)? {
            NUMBER => Ok(journal),
            _ => Err(StoreError::damaged(format!("{what}: it is another log file"))),
        }
    }

    /// Every frame's events in order, each with the position after it: those after `from`, an acknowledged
    /// position, or all. Frames before it are checked too. Returns the end.
    pub fn replay(
        &self,
        from: Option<Position>,
        f: &mut dyn FnMut(&[Event], Position) -> Result<()>,
    ) -> Result<Position> {
        let (what, start, bytes) = (self.what(), start(), self.read(HEADER as u64)?);
        let from = from.unwrap_or(start);
        let gone = || {
            let at = from.offset;
            StoreError::damaged(format!("{what}: what was acknowledged at {at} is gone or was changed"))
        };
        let mut reached = from == start;
        let end = walk(&bytes, start, &mut |payload, at| {
            if !reached {
                reached = at == from;
                return if at.offset < from.offset || reached { Ok(()) } else { Err(gone()) };
            }
            f(&events(payload, &what)?, at)
        })?;
        self.check_rest(&bytes[(end.offset - start.offset) as usize..], end)?;
        if !reached {
            return Err(gone());
        }
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
        Ok(end)
    }

    /// Adds one frame of events, all or none of which will have happened. Durable when it returns.
    /// After an error none of them has, unless the disk also refuses to take them back: then this journal
    /// refuses all more, and reopening it tells.
    pub fn append(&mut self, events: &[Event]) -> Result<Position> {
        if self.poisoned {
            return Err(StoreError::Misuse("the journal failed before: open it again"));
        }
        let end = self.settle()?;
        if events.is_empty() {
            return Ok(end);
        }
        let payload = serde_json::to_vec(events).expect("events have only string keys and plain values");
        if payload.len() > u32::MAX as usize / 2 {
            return Err(StoreError::Misuse("too many events for one frame"));
        }
        let mut frame = Vec::with_capacity(FRAME + payload.len());
        put_frame(&mut frame, end.chain, &payload);
        let written = self.file.append(&frame).and_then(|()| self.file.sync());
        if written.is_err() {
            self.poisoned = self.file.truncate(end.offset).and_then(|()| self.file.sync()).is_err();
        }
        written.at(&self.path)?;
        let chain = check_of(&frame).expect("a frame has a check");
        let now = Position { offset: end.offset + frame.len() as u64, chain };
        self.end = Mutex::new(Some(now));
        Ok(now)
    }

    /// Bytes of the journal's file.
    pub fn bytes(&self) -> Result<u64> {
        self.file.len().at(&self.path)
    }

    /// The end of the whole frames, what a crash left behind it being cut off.
    fn settle(&mut self) -> Result<Position> {
        let known = self.end.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(start());
        let bytes = self.read(known.offset)?;
        let end = walk(&bytes, known, &mut |_, _| Ok(()))?;
        let rest = &bytes[(end.offset - known.offset) as usize..];
        if !rest.is_empty() {
            self.check_rest(rest, end)?;
            self.file.truncate(end.offset).and_then(|()| self.file.sync()).at(&self.path)?;
        }
        Ok(end)
    }

    fn check_rest(&self, rest: &[u8], end: Position) -> Result<()> {
        if !is_damage(rest, end.chain) {
            return Ok(());
        }
        Err(StoreError::damaged(format!("{}: the frame at {}, with others after it", self.what(), end.offset)))
    }

    fn read(&self, from: u64) -> Result<Vec<u8>> {
        let len = self.file.len().at(&self.path)?;
        let Some(n) = len.checked_sub(from) else {
            return Err(StoreError::damaged(format!("{}: it was cut to {len} bytes", self.what())));
        };
        let mut bytes = vec![0; n as usize];
        self.file.read_at(&mut bytes, from).at(&self.path)?;
        Ok(bytes)
    }

    fn what(&self) -> String {
        format!("journal {}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::super::sim::{Fault, SimDisk};
    use super::*;
    use crate::model::id::Id;

    const LOG: &str = "/j/000001.log";

    fn event(n: u8) -> Event {
        Event::Follow { id: Id([n; 32]), previous: Id([n + 100; 32]), guess: false }
    }

    fn disk(seed: u64) -> SimDisk {
        let sim = SimDisk::new(seed);
        sim.create_dir(Path::new("/j")).unwrap();
        sim.sync_dir(Path::new("/")).unwrap();
        sim
    }

    fn open(sim: &SimDisk) -> Result<Journal> {
        Journal::open(Arc::new(sim.clone()), Path::new("/j"))
    }

    fn all(journal: &Journal, from: Option<Position>) -> Result<(Vec<Event>, Position)> {
        let mut out = Vec::new();
        let end = journal.replay(from, &mut |events, _| {
            out.extend_from_slice(events);
            Ok(())
        })?;
        Ok((out, end))
    }

    /// A journal of `n` frames, with the position after each (and before the first).
    fn written(n: u8) -> (SimDisk, Vec<Position>) {
        let sim = disk(1);
        let mut journal = open(&sim).unwrap();
        let mut at = vec![journal.append(&[]).unwrap()];
        at.extend((0..n).map(|i| journal.append(&[event(i)]).unwrap()));
        (sim, at)
    }

    #[test]
    fn events_come_back_from_any_position() {
        let (sim, at) = written(4);
        let journal = open(&sim).unwrap();
        for (i, from) in at.iter().enumerate() {
            let (events, end) = all(&journal, Some(*from)).unwrap();
            assert_eq!(events, (i as u8..4).map(event).collect::<Vec<_>>());
            assert_eq!(end, at[4]);
        }
        assert_eq!(all(&journal, None).unwrap().0.len(), 4);
        let mut two = open(&sim).unwrap();
        two.append(&[event(4), event(5)]).unwrap();
        assert_eq!(all(&journal, Some(at[4])).unwrap().0, [event(4), event(5)]);
    }

    #[test]
    fn golden_bytes() {
        let sim = disk(1);
        let mut journal = open(&sim).unwrap();
        journal.append(&[event(1)]).unwrap();
        let bytes = sim.read(Path::new(LOG));
        let json = format!(r#"[{{"event":"follow","id":"{}","previous":"{}"}}]"#, "01".repeat(32), "65".repeat(32));
        assert_eq!(bytes[40..], *json.as_bytes());
        let hex: String = bytes[..40].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "6d6769742d6c6f67010000000000000001000000000000005450f5f2aa00000094c76454678ac798");
    }

    #[test]
    fn a_torn_tail_is_ignored_and_then_cut_off() {
        let (sim, at) = written(3);
        let whole = sim.read(Path::new(LOG));
        for cut in at[2].offset..at[3].offset {
            sim.write(Path::new(LOG), &whole[..cut as usize]);
            let mut journal = open(&sim).unwrap();
            assert_eq!(all(&journal, Some(at[1])).unwrap(), (vec![event(1)], at[2]));
            assert!(matches!(all(&journal, Some(at[3])), Err(StoreError::Damaged { .. })), "{cut}");
            let now = journal.append(&[event(9)]).unwrap();
            assert_eq!(all(&journal, Some(at[2])).unwrap(), (vec![event(9)], now));
            assert_eq!(journal.bytes().unwrap(), now.offset);
        }
        for cut in 0..at[2].offset {
            sim.write(Path::new(LOG), &whole[..cut as usize]);
            assert!(open(&sim).and_then(|j| all(&j, Some(at[2]))).is_err(), "{cut}");
        }
    }

    #[test]
    fn every_flip_is_seen() {
        let (sim, at) = written(3);
        let whole = sim.read(Path::new(LOG));
        for bit in 0..whole.len() * 8 {
            let mut bad = whole.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            sim.write(Path::new(LOG), &bad);
            let read = |from| open(&sim).and_then(|j| all(&j, from));
            assert!(read(Some(at[3])).is_err(), "{bit}");
            match read(None) {
                Ok((events, _)) => {
                    assert!(bit as u64 / 8 >= at[2].offset, "{bit}");
                    assert_eq!(events, [event(0), event(1)]);
                }
                Err(_) => assert!(open(&sim).and_then(|mut j| j.append(&[event(7)])).is_err(), "{bit}"),
            }
        }
    }

    #[test]
    fn lost_doubled_and_swapped_frames_are_seen() {
        let (sim, at) = written(4);
        let whole = sim.read(Path::new(LOG));
        let frame = |i: usize| &whole[at[i].offset as usize..at[i + 1].offset as usize];
        for order in [&[0usize, 2, 3][..], &[0, 1, 1, 2, 3], &[0, 2, 1, 3], &[1, 0, 2, 3], &[0, 1, 2, 2], &[1, 2, 3]] {
            let mut bytes = whole[..HEADER].to_vec();
            order.iter().for_each(|&i| bytes.extend_from_slice(frame(i)));
            sim.write(Path::new(LOG), &bytes);
            assert!(matches!(all(&open(&sim).unwrap(), None), Err(StoreError::Damaged { .. })), "{order:?}");
        }
    }

    #[test]
    fn events_of_a_later_mgit_are_not_half_understood() {
        let (sim, at) = written(1);
        let mut bytes = sim.read(Path::new(LOG));
        put_frame(&mut bytes, at[1].chain, br#"[{"event":"teleport"}]"#);
        sim.write(Path::new(LOG), &bytes);
        assert!(matches!(all(&open(&sim).unwrap(), None), Err(StoreError::Later { .. })));
    }

    #[test]
    fn a_failed_append_never_counts_later() {
        let begin = written(1).0.ops();
        for op in begin..begin + 2 {
            for fault in [Fault::Broken, Fault::Full] {
                let (sim, at) = written(1);
                let mut journal = open(&sim).unwrap();
                sim.fail_at(op, fault);
                assert!(journal.append(&[event(5)]).is_err());
                assert_eq!(all(&journal, Some(at[1])).unwrap().0, []);
                journal.append(&[event(6)]).unwrap();
                assert_eq!(all(&open(&sim).unwrap(), Some(at[1])).unwrap().0, [event(6)]);
            }
        }
        let (sim, _) = written(1);
        let mut journal = open(&sim).unwrap();
        (begin..begin + 2).for_each(|op| sim.fail_at(op, Fault::Broken));
        assert!(journal.append(&[event(5)]).is_err());
        assert!(matches!(journal.append(&[event(6)]), Err(StoreError::Misuse(_))));
        open(&sim).unwrap().append(&[event(7)]).unwrap();
    }

    #[test]
    fn whatever_was_acknowledged_survives_a_crash_at_every_operation() {
        for seed in 0..40 {
            for at in 0..12 {
                let sim = disk(seed);
                sim.crash_at(at + 2);
                let mut acknowledged = None;
                let mut count = 0;
                if let Ok(mut journal) = open(&sim) {
                    while let Ok(position) = journal.append(&[event(count)]) {
                        acknowledged = Some(position);
                        count += 1;
                    }
                }
                let after = sim.reboot();
                let mut journal = open(&after).unwrap();
                let (events, end) = all(&journal, None).unwrap();
                assert!((count..=count + 1).contains(&(events.len() as u8)));
                assert_eq!(events, (0..events.len() as u8).map(event).collect::<Vec<_>>());
                all(&journal, acknowledged).unwrap();
                journal.append(&[event(50)]).unwrap();
                assert_eq!(all(&journal, Some(end)).unwrap().0, [event(50)]);
            }
        }
    }
}
