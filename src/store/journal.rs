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
        let bytes = journal.read(0)?;
        let head = bytes.first_chunk().ok_or_else(|| StoreError::damaged(format!("{what}: its header")))?;
        match read_header(MAGIC, head, &what)? {
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
