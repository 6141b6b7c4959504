//! The journal: every change to what can change, in order. With the packs it is all that a repository is.
//!
//! A frame is acknowledged when its sync has returned, and its check covers the check before it, so a lost,
//! doubled, swapped or changed frame breaks the chain. What follows the last whole frame is a crash's leftover
//! if it can be one (the rest of one unacknowledged append): it is ignored, and cut off by the next append. It is damage
//! if a reader knows an acknowledged position beyond it, if it is longer than a frame can be, or if whole frames can still be
//! seen in it. So that the last
//! frame, too, has one behind it, whoever lets go of the journal after an append, or after a crash left it so, leaves an empty
//! one, which nobody waits for. Layout in `format.md`.
//!
//! [`salvage`] reads what is whole of a damaged journal.
//!
//! It doesn't know what events mean. One process appends at a time: whoever holds the repository's lock.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
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
/// Bytes that are hashed in a search for whole frames: enough for whatever a crash leaves. What takes more was made to.
const SEARCHED: u64 = 1 << 30;
/// Bytes before a position in which the frame that ends there is looked for: nearly all are short.
const ANCHORS: [u64; 2] = [1 << 14, 1 << 20];
/// Longest payload: a hundred thousand removals take a fifth of it.
const MAX_PAYLOAD: usize = 1 << 27;
/// Most bytes of one frame that a crash leaves.
const MAX_TORN: u64 = (FRAME + MAX_PAYLOAD) as u64;
/// What is passed over at once in a search.
const HOLE: [u8; 4096] = [0; 4096];
/// Bytes that are read at once.
const WINDOW: u64 = 1 << 20;
/// Bytes of a damaged journal that are searched for what is whole.
const MAX_SALVAGED: u64 = 1 << 32;
const FAILED_BEFORE: StoreError = StoreError::Misuse("the journal failed before: open it again");

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
    /// Nothing follows the last frame, which holds events.
    bare: AtomicBool,
    /// It lies where nothing can be written.
    read_only: bool,
}

impl Drop for Journal {
    /// Behind the last frame comes an empty one: if that is seen, the frame was acknowledged.
    fn drop(&mut self) {
        let end = self.end.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Some(end) = end.filter(|_| *self.bare.get_mut() && !self.poisoned && !self.read_only) else { return };
        let mut frame = Vec::new();
        put_frame(&mut frame, end.chain, b"[]");
        // Behind what a crash left it would not be seen.
        if !self.file.len().is_ok_and(|len| len == end.offset) {
            return;
        }
        if self.file.append(&frame).is_err() {
            let _ = self.file.truncate(end.offset);
        }
    }
}

/// The position before the first frame.
fn start() -> Position {
    Position { offset: HEADER as u64, chain: check8(&[&header(MAGIC, NUMBER)]) }
}

/// Whether it failed because nothing can be written there.
pub fn is_read_only(e: &std::io::Error) -> bool {
    matches!(e.kind(), std::io::ErrorKind::ReadOnlyFilesystem | std::io::ErrorKind::PermissionDenied)
}

fn put_frame(out: &mut Vec<u8>, before: [u8; 8], payload: &[u8]) {
    let len = (payload.len() as u32).to_le_bytes();
    out.extend_from_slice(&len);
    out.extend_from_slice(&check8(&[&before, &len, payload]));
    out.extend_from_slice(payload);
}

/// Length of the payload of the frame that `bytes` begin with, if it can be one. The least is that of no events.
fn payload_len(bytes: &[u8]) -> Option<usize> {
    let len = u32::from_le_bytes(*bytes.first_chunk()?) as usize;
    (2..=MAX_PAYLOAD).contains(&len).then_some(len)
}

/// Payload of the frame that `bytes` begin with, if there are enough of them.
fn payload_of(bytes: &[u8]) -> Option<&[u8]> {
    bytes.get(FRAME..)?.get(..payload_len(bytes)?)
}

fn check_of(bytes: &[u8]) -> Option<[u8; 8]> {
    bytes.get(4..FRAME)?.first_chunk().copied()
}

/// Payload of the frame that `bytes` begin with, if it is whole and follows `before`.
fn frame_after(bytes: &[u8], before: [u8; 8]) -> Option<&[u8]> {
    let payload = payload_of(bytes)?;
    (check_of(bytes)? == check8(&[&before, &bytes[..4], payload])).then_some(payload)
}

/// A file's bytes, some at a time: what it holds decides what it takes, not how long it says that it is.
struct Window<'a> {
    file: &'a dyn DiskFile,
    path: &'a Path,
    /// Where the bytes end.
    len: u64,
    at: u64,
    held: Vec<u8>,
}

impl<'a> Window<'a> {
    fn new(file: &'a dyn DiskFile, path: &'a Path) -> Result<Window<'a>> {
        Ok(Window { file, path, len: file.len().at(path)?, at: 0, held: vec![] })
    }

    /// `n` bytes from `at` on, where there are so many.
    fn bytes(&mut self, at: u64, n: u64) -> Result<Option<&[u8]>> {
        let Some(left) = self.len.checked_sub(at).filter(|left| n <= *left) else { return Ok(None) };
        if at < self.at || at + n > self.at + self.held.len() as u64 {
            self.held.resize(n.max(WINDOW).min(left) as usize, 0);
            self.file.read_at(&mut self.held, at).at(self.path)?;
            self.at = at;
        }
        let start = (at - self.at) as usize;
        Ok(Some(&self.held[start..start + n as usize]))
    }

    /// As many bytes as the head of a frame at `at` says that it has.
    fn claimed(&mut self, at: u64) -> Result<Option<&[u8]>> {
        let head = self.bytes(at, FRAME as u64)?;
        let Some(len) = head.and_then(payload_len) else { return Ok(None) };
        self.bytes(at, (FRAME + len) as u64)
    }

    /// The frame at `here`, if it is whole.
    fn frame(&mut self, here: Position) -> Result<Option<&[u8]>> {
        Ok(self.claimed(here.offset)?.filter(|frame| frame_after(frame, here.chain).is_some()))
    }

    /// Walks whole frames from `here` on and returns where they end.
    fn walk(&mut self, mut here: Position, f: &mut dyn FnMut(&[u8], Position) -> Result<()>) -> Result<Position> {
        while let Some(frame) = self.frame(here)? {
            let chain = check_of(frame).expect("a whole frame has a check");
            here = Position { offset: here.offset + frame.len() as u64, chain };
            f(&frame[FRAME..], here)?;
        }
        Ok(here)
    }

    /// Whether what follows the last whole frame cannot be a torn append.
    fn is_damage_from(&mut self, end: Position) -> Result<bool> {
        let rest = self.len - end.offset;
        Ok(rest > MAX_TORN || self.bytes(end.offset, rest)?.is_some_and(|rest| is_damage(rest, end.chain)))
    }

    /// The first that `f` says of a place after `from`, being given what follows it: a frame's bytes at least.
    fn find<T>(&mut self, from: u64, mut f: impl FnMut(u64, &[u8]) -> Option<T>) -> Result<Option<T>> {
        let mut at = from + 1;
        while at < self.len {
            let n = (self.len - at).min(2 * MAX_TORN);
            let places = if at + n == self.len { n } else { n - MAX_TORN };
            let bytes = self.bytes(at, n)?.unwrap_or_default();
            let mut i = 0;
            while i < places {
                let rest = &bytes[i as usize..];
                if let Some(found) = f(at + i, rest) {
                    return Ok(Some(found));
                }
                // No frame begins with a length of zero.
                i += if rest.starts_with(&HOLE) { HOLE.len() as u64 - 3 } else { 1 };
            }
            at += places;
        }
        Ok(None)
    }

    /// Where the first frame behind the damaged one at `end` begins, and what its check covers if that is known.
    fn next_frame(&mut self, end: Position) -> Result<Option<Position>> {
        let damaged = self.claimed(end.offset)?.map(<[u8]>::to_vec);
        let damaged = match damaged {
            Some(frame) => frame,
            None => self.bytes(end.offset, (self.len - end.offset).min(FRAME as u64))?.unwrap_or_default().to_vec(),
        };
        let mut search = Search::new(&damaged, end.chain, self.len - end.offset);
        let mut orphan = None;
        let found = self.find(end.offset, |offset, bytes| {
            if orphan.is_none() && payload_of(bytes).is_some_and(holds_events) {
                orphan = Some(Position { offset, chain: [0; 8] });
            }
            Some(Position { offset, chain: search.follows(bytes)? })
        })?;
        Ok(found.or(orphan))
    }
}

/// A search for a frame that follows a damaged or torn one.
struct Search {
    /// What its check may cover.
    chains: Vec<[u8; 8]>,
    /// Bytes that may still be hashed; none: it was given up.
    left: u64,
}

impl Search {
    /// `damaged` are the bytes of that frame, as far as they are there, with the check that it should cover; `searched` how
    /// many are to be looked through.
    fn new(damaged: &[u8], before: [u8; 8], searched: u64) -> Search {
        let computed = payload_of(damaged).map(|p| check8(&[&before, &damaged[..4], p]));
        let chains = check_of(damaged).into_iter().chain(computed).collect();
        Search { chains, left: SEARCHED + 64 * searched }
    }

    /// What the frame that `bytes` begin with follows, if there is one.
    fn follows(&mut self, bytes: &[u8]) -> Option<[u8; 8]> {
        let hashed = payload_of(bytes)?.len() * self.chains.len();
        self.left = self.left.saturating_sub(hashed as u64);
        self.chains.iter().copied().find(|&c| self.left > 0 && frame_after(bytes, c).is_some())
    }
}

/// Whether bytes after the last whole frame cannot be a torn append. A torn append is part of one frame, so
/// neither a whole frame's events nor a frame that follows another can be in it.
fn is_damage(rest: &[u8], before: [u8; 8]) -> bool {
    if (0..rest.len()).any(|at| payload_of(&rest[at..]).is_some_and(holds_events)) {
        return true;
    }
    let mut search = Search::new(rest, before, rest.len() as u64);
    (FRAME..rest.len()).any(|at| search.follows(&rest[at..]).is_some()) || search.left == 0
}

/// What can be read of a journal that is damaged.
#[derive(Default)]
pub struct Salvage {
    /// The events of the frames that are left, in order.
    pub frames: Vec<Vec<Event>>,
    /// First and last byte but one of what cannot be read.
    pub lost: Vec<(u64, u64)>,
}

/// Reads past damage. After it, a frame is believed when its check fits what is left of the one before, else when it holds
/// events and the frames behind it follow from it.
pub fn salvage(disk: &dyn Disk, dir: &Path) -> Result<Salvage> {
    let path = dir.join(NAME);
    let mut out = Salvage::default();
    let file = match disk.open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(out),
        opened => opened.at(&path)?,
    };
    let mut window = Window::new(&*file, &path)?;
    let whole = window.len;
    window.len = whole.min(MAX_SALVAGED);
    let what = format!("journal {}", path.display());
    let head = window.bytes(0, HEADER as u64)?.and_then(<[u8]>::first_chunk).map(|h| read_header(MAGIC, h, &what));
    match head {
        Some(Err(e @ StoreError::Later { .. })) => return Err(e),
        Some(Ok(NUMBER)) => {}
        _ => out.lost.push((0, window.len.min(HEADER as u64))),
    }
    let mut here = start();
    while here.offset <= window.len {
        let end = window.walk(here, &mut |payload, _| {
            out.frames.push(events(payload, &what)?);
            Ok(())
        })?;
        if !window.is_damage_from(end)? {
            break;
        }
        let Some(next) = window.next_frame(end)? else {
            out.lost.push((end.offset, window.len));
            break;
        };
        out.lost.push((end.offset, next.offset));
        here = next;
        // Where its check cannot be told, for what stood before it is gone, the frames that follow it tell.
        if let Some(orphan) = window.claimed(next.offset)?.filter(|frame| frame_after(frame, next.chain).is_none()) {
            out.frames.push(events(&orphan[FRAME..], &what)?);
            let chain = check_of(orphan).expect("a whole frame has a check");
            here = Position { offset: next.offset + orphan.len() as u64, chain };
        }
    }
    if whole > window.len {
        out.lost.push((window.len, whole));
    }
    out.frames.retain(|f| !f.is_empty());
    Ok(out)
}

fn holds_events(payload: &[u8]) -> bool {
    payload.len() > 2 && serde_json::from_slice::<Vec<Event>>(payload).is_ok()
}

/// Puts a journal of these frames in the place of what is there, which is kept as `000001.damaged`.
pub fn write_anew(disk: &dyn Disk, dir: &Path, frames: &[Vec<Event>]) -> Result<()> {
    let path = dir.join(NAME);
    if let Ok(old) = disk.open(&path) {
        root::copy_whole(disk, &*old, &path.with_extension("damaged"))?;
    }
    let (mut out, mut chain) = (header(MAGIC, NUMBER).to_vec(), start().chain);
    for payload in frames.iter().map(|f| serde_json::to_vec(f).expect("plain values")).chain([b"[]".to_vec()]) {
        let at = out.len();
        put_frame(&mut out, chain, &payload);
        chain = check_of(&out[at..]).expect("a whole frame has a check");
    }
    root::write_whole(disk, &path, &out)
}

fn events(payload: &[u8], what: &str) -> Result<Vec<Event>> {
    serde_json::from_slice(payload).map_err(|e| StoreError::Later { what: format!("{what} ({e})") })
}

impl Journal {
    pub fn exists(disk: &dyn Disk, dir: &Path) -> Result<bool> {
        let path = dir.join(NAME);
        disk.exists(&path).at(&path)
    }

    /// The journal in its directory; an empty one where there is none (then the caller holds the
    /// repository's lock).
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Journal> {
        let path = dir.join(NAME);
        if !Journal::exists(&*disk, dir)? {
            root::write_whole(&*disk, &path, &header(MAGIC, NUMBER))?;
        }
        let (file, read_only) = match disk.open_append(&path) {
            Err(e) if is_read_only(&e) => (disk.open(&path).at(&path)?, true),
            opened => (opened.at(&path)?, false),
        };
        let journal =
            Journal { path, file, end: Mutex::new(None), poisoned: false, bare: AtomicBool::new(false), read_only };
        let what = journal.what();
        let mut head = [0; HEADER];
        journal.file.read_at(&mut head, 0).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => StoreError::damaged(format!("{what}: its header")),
            _ => StoreError::Io { what: what.clone(), error },
        })?;
        if read_header(MAGIC, &head, &what)? != NUMBER {
            return Err(StoreError::damaged(format!("{what}: it is another log file")));
        }
        journal.sync_names(&*disk)?;
        Ok(journal)
    }

    /// Whoever made the file may have died before its name was durable, or that of its directory.
    fn sync_names(&self, disk: &dyn Disk) -> Result<()> {
        if self.read_only || self.bytes()? > HEADER as u64 {
            return Ok(());
        }
        let above = self.path.ancestors().skip(1).take(2).filter(|dir| !dir.as_os_str().is_empty());
        above.into_iter().try_for_each(|dir| disk.sync_dir(dir).at(dir))
    }

    /// Every frame's events in order, each with the position after it: those after `from`, an acknowledged
    /// position, or all. What comes before it is not looked at where the frame is found that ends there: whoever
    /// knows the position knows what was said. Returns the end.
    pub fn replay(
        &self,
        from: Option<Position>,
        f: &mut dyn FnMut(&[Event], Position) -> Result<()>,
    ) -> Result<Position> {
        let from = from.unwrap_or(start());
        let start = if self.is_anchored(from)? { from } else { start() };
        let (what, mut window) = (self.what(), self.window(start.offset)?);
        let gone = || {
            let at = from.offset;
            StoreError::damaged(format!("{what}: what was acknowledged at {at} is gone or was changed"))
        };
        let (mut reached, mut bare) = (from == start, start.offset > HEADER as u64);
        let end = window.walk(start, &mut |payload, at| {
            bare = payload.len() > 2;
            if !reached {
                reached = at == from;
                return if at.offset < from.offset || reached { Ok(()) } else { Err(gone()) };
            }
            match &events(payload, &what)?[..] {
                [] => Ok(()),
                some => f(some, at),
            }
        })?;
        self.check_rest(&mut window, end)?;
        if !reached {
            return Err(gone());
        }
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
        self.bare.fetch_or(bare, Ordering::Relaxed); // A crash left it so.
        Ok(end)
    }

    /// Whether the frame that ends at a position is found, by its check and length.
    fn is_anchored(&self, at: Position) -> Result<bool> {
        if self.bytes()? < at.offset {
            return Ok(false);
        }
        for window in ANCHORS.map(|w| w.min(at.offset.saturating_sub(HEADER as u64))) {
            let mut bytes = vec![0; window as usize];
            self.file.read_at(&mut bytes, at.offset - window).at(&self.path)?;
            let ends = |i: usize| payload_of(&bytes[i..]).is_some_and(|p| i + FRAME + p.len() == bytes.len());
            if bytes.windows(at.chain.len()).enumerate().any(|(i, w)| w == at.chain && i >= 4 && ends(i - 4)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes what is there durable: whoever wrote its end, or cut it off, may have died or failed before that was. Comes
    /// before anything is done that follows from what a replay says.
    pub fn sync(&self) -> Result<()> {
        match (self.poisoned, self.read_only) {
            (true, _) => Err(FAILED_BEFORE),
            (_, true) => Ok(()),
            _ => self.file.sync().at(&self.path),
        }
    }

    /// Adds one frame of events, all or none of which will have happened. Durable when it returns.
    /// After an error none of them has, unless the disk also refuses to take them back: then this journal
    /// refuses all more, and reopening it tells.
    pub fn append(&mut self, events: &[Event]) -> Result<Position> {
        if self.poisoned {
            return Err(FAILED_BEFORE);
        }
        if self.read_only {
            return Err(std::io::Error::from_raw_os_error(libc::EROFS)).at(&self.path);
        }
        let end = self.settle()?;
        if events.is_empty() {
            return Ok(end);
        }
        let payload = serde_json::to_vec(events).expect("events have only string keys and plain values");
        if payload.len() > MAX_PAYLOAD {
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
        (self.end, self.bare) = (Mutex::new(Some(now)), AtomicBool::new(true));
        Ok(now)
    }

    /// Bytes of the journal's file.
    pub fn bytes(&self) -> Result<u64> {
        self.file.len().at(&self.path)
    }

    /// The end of the whole frames, what a crash left behind it being cut off.
    fn settle(&mut self) -> Result<Position> {
        let known = self.end.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(start());
        let mut window = self.window(known.offset)?;
        let end = window.walk(known, &mut |_, _| Ok(()))?;
        if window.len > end.offset {
            self.check_rest(&mut window, end)?;
            self.file.truncate(end.offset).and_then(|()| self.file.sync()).at(&self.path)?;
        }
        Ok(end)
    }

    fn check_rest(&self, window: &mut Window, end: Position) -> Result<()> {
        if !window.is_damage_from(end)? {
            return Ok(());
        }
        let more =
            if window.len - end.offset > MAX_TORN { "more after it than a crash leaves" } else { "others after it" };
        Err(StoreError::damaged(format!("{}: the frame at {}, with {more}", self.what(), end.offset)))
    }

    fn window(&self, from: u64) -> Result<Window<'_>> {
        let window = Window::new(&*self.file, &self.path)?;
        match window.len {
            len if len < from => Err(StoreError::damaged(format!("{}: it was cut to {len} bytes", self.what()))),
            _ => Ok(window),
        }
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
    /// Bytes of an empty frame.
    const EMPTY: u64 = FRAME as u64 + 2;

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
            assert_eq!(end.offset, at[4].offset + EMPTY);
        }
        assert_eq!(all(&journal, None).unwrap().0.len(), 4);
        let mut two = open(&sim).unwrap();
        two.append(&[event(4), event(5)]).unwrap();
        assert_eq!(all(&journal, Some(at[4])).unwrap().0, [event(4), event(5)]);
    }

    #[test]
    fn a_position_behind_a_frame_of_any_length_is_found() {
        let (sim, _) = written(1);
        let mut journal = open(&sim).unwrap();
        for n in [1, 1 << 7, 1 << 14] {
            let at = journal.append(&vec![event(1); n]).unwrap();
            journal.append(&[event(2)]).unwrap();
            assert_eq!(all(&open(&sim).unwrap(), Some(at)).unwrap().0, [event(2)], "{n}");
            for not in [Position { offset: at.offset - 1, ..at }, Position { chain: [7; 8], ..at }] {
                assert!(matches!(all(&open(&sim).unwrap(), Some(not)), Err(StoreError::Damaged { .. })));
            }
        }
        assert!(journal.bytes().unwrap() > 2 * ANCHORS[1]);
    }

    #[test]
    fn golden_bytes() {
        let sim = disk(1);
        let mut journal = open(&sim).unwrap();
        journal.append(&[event(1)]).unwrap();
        let bytes = sim.read(Path::new(LOG));
        let json = format!(r#"[{{"event":"follow","id":"{}","previous":"{}"}}]"#, "01".repeat(32), "65".repeat(32));
        drop(journal);
        assert_eq!(sim.read(Path::new(LOG)).len() as u64, 40 + json.len() as u64 + EMPTY);
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
    fn a_search_for_frames_ends_however_the_bytes_were_chosen() {
        let (sim, _) = written(2);
        let lengths = [0u8, 0, 1, 0].repeat(1 << 18); // at each of four places a frame might be of 64 KiB
        sim.write(Path::new(LOG), &[sim.read(Path::new(LOG)), lengths].concat());
        assert!(matches!(all(&open(&sim).unwrap(), None), Err(StoreError::Damaged { .. })));
        assert_eq!(salvage(&sim, Path::new("/j")).unwrap().frames.len(), 2);
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
            if bit as u64 / 8 >= at[3].offset {
                assert_eq!(read(Some(at[3])).unwrap().0, []);
                assert_eq!(read(None).unwrap().0, [event(0), event(1), event(2)], "{bit}");
                continue;
            }
            assert!(read(None).is_err(), "{bit}");
            // Who knows what was said up to here looks only at the last frame's head.
            let told = read(Some(at[3]));
            let head = at[2].offset..at[2].offset + FRAME as u64;
            let seen = (bit / 8) < HEADER || head.contains(&(bit as u64 / 8));
            assert!(if seen { told.is_err() } else { told.unwrap().0.is_empty() }, "{bit}");
            assert!(open(&sim).and_then(|mut j| j.append(&[event(7)])).is_err(), "{bit}");
        }
    }

    #[test]
    fn what_is_whole_is_salvaged() {
        let (sim, at) = written(5);
        let whole = sim.read(Path::new(LOG));
        let salvaged = |bytes: &[u8]| {
            sim.write(Path::new(LOG), bytes);
            let s = salvage(&sim, Path::new("/j")).unwrap();
            (s.frames.concat(), s.lost)
        };
        assert_eq!(salvaged(&whole), ((0..5).map(event).collect(), vec![]));
        for bit in HEADER * 8..at[5].offset as usize * 8 {
            let mut bad = whole.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let hit = at.iter().filter(|p| p.offset <= bit as u64 / 8).count() as u8 - 1;
            let (events, lost) = salvaged(&bad);
            assert_eq!(events, (0..5).filter(|n| *n != hit).map(event).collect::<Vec<_>>(), "{bit}");
            assert_eq!(lost, [(at[hit as usize].offset, at[hit as usize + 1].offset)], "{bit}");
        }
        // Two frames at once, and the header.
        let mut bad = whole.clone();
        bad[at[1].offset as usize + 3..at[3].offset as usize - 3].fill(0);
        assert_eq!(salvaged(&bad).0, [event(0), event(3), event(4)]);
        bad = whole.clone();
        bad[3] ^= 1;
        assert_eq!(salvaged(&bad), ((0..5).map(event).collect(), vec![(0, HEADER as u64)]));
        assert_eq!(salvaged(&whole[..at[2].offset as usize + 7]).0, [event(0), event(1)]);
        assert_eq!(salvaged(&[]), (vec![], vec![(0, 0)]));
        // And written anew.
        write_anew(&sim, Path::new("/j"), &[vec![event(1)], vec![event(2), event(3)]]).unwrap();
        assert_eq!(all(&open(&sim).unwrap(), None).unwrap().0, [event(1), event(2), event(3)]);
        assert_eq!(sim.read(Path::new("/j/000001.damaged")), b"");
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
        bytes.truncate(at[1].offset as usize);
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
    fn what_a_crash_left_bare_gets_a_frame_behind_it() {
        let (sim, at) = written(2);
        let whole = sim.read(Path::new(LOG));
        sim.write(Path::new(LOG), &whole[..at[2].offset as usize]);
        let read = open(&sim).unwrap();
        assert_eq!(all(&read, None).unwrap().0.len(), 2);
        drop(read);
        assert_eq!(sim.read(Path::new(LOG)), whole);
    }

    #[test]
    fn what_a_killed_process_wrote_is_durable_before_it_counts() {
        for seed in 0..40 {
            let sim = disk(seed);
            let mut journal = open(&sim).unwrap();
            journal.append(&[event(1)]).unwrap();
            sim.crash_at(sim.ops() + 1); // Within the append, before its sync.
            assert!(journal.append(&[event(2)]).is_err());
            let sim = sim.restart();
            let next = open(&sim).unwrap();
            next.sync().unwrap();
            assert_eq!(all(&next, None).unwrap().0, [event(1), event(2)]);
            let after = open(&sim.reboot()).unwrap();
            assert_eq!(all(&after, None).unwrap().0, [event(1), event(2)], "{seed}");
        }
    }

    #[test]
    fn the_name_of_a_journal_is_durable_before_its_first_frame() {
        for seed in 0..40 {
            let sim = disk(seed);
            sim.crash_at(sim.ops() + 4); // When all but the name is durable.
            assert!(open(&sim).is_err());
            let sim = sim.restart();
            open(&sim).unwrap().append(&[event(1)]).unwrap();
            assert_eq!(all(&open(&sim.reboot()).unwrap(), None).unwrap().0, [event(1)], "{seed}");
        }
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
