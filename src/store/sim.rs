//! A disk in memory that keeps only what it promised: for tests, those of other rooms included.
//!
//! It numbers every mutating operation (create, append, sync, truncate, rename, remove, create a directory,
//! sync a directory) from 0, and can crash at one or fail one. After a crash every call fails, and
//! [`SimDisk::reboot`] yields a disk that a machine could find afterwards:
//! - what was synced is there;
//! - of each file, what was appended since is lost, or kept, or kept up to a sector (512 bytes), or there
//!   with some sectors holding zeros or garbage; a cut since is done or not;
//! - each name created, renamed or removed since its directory was synced is done or not, each on its own.
//!
//! The choices follow from the seed. Locks and open handles don't outlive a reboot.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use jiff::Timestamp;

use super::disk::{Disk, DiskFile};
use crate::sync::{Condvar, Mutex, MutexGuard};

const SECTOR: usize = 512;

/// How an operation fails. What a sync that fails was asked for may be durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// EIO. Of an append, some prefix may be there.
    Broken,
    /// ENOSPC. Of an append, some prefix may be there.
    Full,
}

/// The simulated disk; clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    unlocked: Condvar,
}

#[derive(Default)]
struct State {
    seed: u64,
    ops: u64,
    syncs: u64,
    crash_at: Option<u64>,
    crashed: bool,
    faults: BTreeMap<u64, Fault>,
    full_from: Option<u64>,
    nodes: Vec<Inode>,
    names: BTreeMap<PathBuf, Node>,
    durable: BTreeMap<PathBuf, Node>,
    pending: Vec<Change>,
    handles: u64,
    /// Milliseconds since it was made; each look takes one.
    time: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Node {
    Dir,
    File(usize),
}

/// A change of names that a crash may undo.
struct Change {
    gone: Option<PathBuf>,
    new: Option<(PathBuf, Node)>,
}

#[derive(Default, Clone)]
struct Inode {
    data: Vec<u8>,
    durable: Vec<u8>,
    /// Length of the prefix on which the two agree.
    stable: usize,
    locks: Vec<(u64, bool)>,
}

struct SimFile {
    shared: Arc<Shared>,
    handle: u64,
    node: usize,
    writable: bool,
}

fn error(kind: io::ErrorKind, path: &Path) -> io::Error {
    io::Error::new(kind, format!("{}", path.display()))
}

fn crashed() -> io::Error {
    io::Error::other("the simulated machine crashed")
}

impl State {
    /// splitmix64.
    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.random() % n.max(1) as u64) as usize
    }

    fn alive(&self) -> io::Result<()> {
        if self.crashed { Err(crashed()) } else { Ok(()) }
    }

    /// Counts a mutating operation. `Err` is what it must fail with.
    fn begin(&mut self) -> io::Result<()> {
        self.alive()?;
        let op = self.ops;
        self.ops += 1;
        if self.crash_at == Some(op) {
            self.crashed = true;
            return Err(crashed());
        }
        let full = self.full_from.filter(|&from| op >= from).map(|_| Fault::Full);
        match self.faults.get(&op).copied().or(full) {
            Some(Fault::Broken) => Err(io::Error::from_raw_os_error(libc::EIO)),
            Some(Fault::Full) => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            None => Ok(()),
        }
    }

    fn file(&self, path: &Path) -> io::Result<usize> {
        match self.names.get(path) {
            Some(Node::File(n)) => Ok(*n),
            Some(Node::Dir) => Err(error(io::ErrorKind::IsADirectory, path)),
            None => Err(error(io::ErrorKind::NotFound, path)),
        }
    }

    fn is_dir(&self, path: &Path) -> bool {
        path.parent().is_none_or(|_| path == Path::new("")) || path == Path::new(".") || self.dir_named(path)
    }

    fn dir_named(&self, path: &Path) -> bool {
        self.names.get(path) == Some(&Node::Dir)
    }

    fn free_name(&self, path: &Path) -> io::Result<()> {
        if self.names.contains_key(path) {
            return Err(error(io::ErrorKind::AlreadyExists, path));
        }
        match path.parent() {
            Some(dir) if self.is_dir(dir) => Ok(()),
            _ => Err(error(io::ErrorKind::NotFound, path)),
        }
    }

    fn change(&mut self, gone: Option<PathBuf>, new: Option<(PathBuf, Node)>) {
        let change = Change { gone, new };
        change.apply(&mut self.names);
        self.pending.push(change);
    }

    fn add_file(&mut self, path: &Path) -> usize {
        self.nodes.push(Inode::default());
        let node = self.nodes.len() - 1;
        self.change(None, Some((path.to_owned(), Node::File(node))));
        node
    }

    /// What a reboot finds of the names.
    fn surviving_names(&mut self) -> BTreeMap<PathBuf, Node> {
        let mut names = self.durable.clone();
        for change in std::mem::take(&mut self.pending) {
            if self.random().is_multiple_of(2) {
                change.apply(&mut names);
            }
        }
        let all = names.clone();
        names.retain(|p, _| p.ancestors().skip(1).all(|a| a.parent().is_none() || all.contains_key(a)));
        names
    }

    /// What a reboot finds in a file.
    fn surviving_data(&mut self, node: &Inode) -> Vec<u8> {
        let was_cut = node.stable < node.durable.len();
        if was_cut && self.random().is_multiple_of(2) {
            return node.durable.clone();
        }
        let mut out = node.data[..node.stable].to_vec();
        let tail = &node.data[node.stable..];
        match self.below(4) {
            0 => {}
            1 => out.extend_from_slice(tail),
            2 => self.keep_sectors(&mut out, tail),
            _ => self.spoil_sectors(&mut out, tail),
        }
        out
    }

    fn keep_sectors(&mut self, out: &mut Vec<u8>, tail: &[u8]) {
        let end = out.len() + self.below(tail.len() + 1);
        let cut = (end / SECTOR * SECTOR).max(out.len());
        out.extend_from_slice(&tail[..cut - out.len()]);
    }

    fn spoil_sectors(&mut self, out: &mut Vec<u8>, tail: &[u8]) {
        let from = out.len();
        let length = self.below(tail.len() + 1);
        out.extend_from_slice(&tail[..length]);
        let mut at = from;
        while at < out.len() {
            let next = ((at / SECTOR + 1) * SECTOR).min(out.len());
            match self.below(3) {
                0 => out[at..next].fill(0),
                1 => (at..next).for_each(|i| out[i] = self.random() as u8),
                _ => {}
            }
            at = next;
        }
    }
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<PathBuf, Node>) {
        if let Some(gone) = &self.gone {
            names.remove(gone);
        }
        if let Some((path, node)) = &self.new {
            names.insert(path.clone(), *node);
        }
    }

    fn is_in(&self, dir: &Path) -> bool {
        let inside = |p: &Path| p.parent() == Some(dir) || (dir == Path::new(".") && p.parent() == Some(Path::new("")));
        self.gone.as_deref().is_some_and(inside) || self.new.as_ref().is_some_and(|(p, _)| inside(p))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(self: &Arc<Self>, state: &mut State, node: usize, writable: bool) -> Box<dyn DiskFile> {
        state.handles += 1;
        Box::new(SimFile { shared: self.clone(), handle: state.handles, node, writable })
    }
}

impl SimDisk {
    /// An empty disk.
    pub fn new(seed: u64) -> SimDisk {
        SimDisk::from(State { seed, ..State::default() })
    }

    fn from(state: State) -> SimDisk {
        SimDisk { shared: Arc::new(Shared { state: Mutex::new(state), unlocked: Condvar::new() }) }
    }

    /// Mutating operations so far: the number of the next.
    pub fn ops(&self) -> u64 {
        self.shared.lock().ops
    }

    /// Syncs so far, of files and directories.
    pub fn syncs(&self) -> u64 {
        self.shared.lock().syncs
    }

    /// The machine stops when operation `op` begins (an append may have got some way).
    pub fn crash_at(&self, op: u64) {
        self.shared.lock().crash_at = Some(op);
    }

    /// The machine stops now.
    pub fn crash(&self) {
        self.shared.lock().crashed = true;
    }

    /// Operation `op` fails.
    pub fn fail_at(&self, op: u64, fault: Fault) {
        self.shared.lock().faults.insert(op, fault);
    }

    /// No operation fails any more.
    pub fn heal(&self) {
        let mut state = self.shared.lock();
        state.faults.clear();
        state.full_from = None;
    }

    /// From operation `op` on the disk is full, for everything but removals; `None`: it has space.
    pub fn full_from(&self, op: Option<u64>) {
        self.shared.lock().full_from = op;
    }

    /// The disk that the machine finds when it starts again. This one fails every call from now on.
    pub fn reboot(&self) -> SimDisk {
        let mut old = self.shared.lock();
        old.crashed = true;
        let names = old.surviving_names();
        let nodes = std::mem::take(&mut old.nodes);
        let settle = |data: Vec<u8>| Inode { stable: data.len(), durable: data.clone(), data, locks: vec![] };
        let nodes = nodes.iter().map(|n| settle(old.surviving_data(n))).collect();
        let (seed, time) = (old.random(), old.time);
        SimDisk::from(State { seed, time, nodes, durable: names.clone(), names, ..State::default() })
    }

    /// The disk as it goes on when the process that used it is killed: all that was written is seen, also what is not
    /// durable. Locks are released; this one fails every call from now on.
    pub fn restart(&self) -> SimDisk {
        let mut old = self.shared.lock();
        let (seed, time, ops, syncs) = (old.random(), old.time, old.ops, old.syncs);
        let mut next = State { seed, time, ops, syncs, ..State::default() };
        next.nodes = std::mem::take(&mut old.nodes);
        next.nodes.iter_mut().for_each(|n| n.locks.clear());
        next.names = std::mem::take(&mut old.names);
        next.durable = std::mem::take(&mut old.durable);
        next.pending = std::mem::take(&mut old.pending);
        old.crashed = true;
        SimDisk::from(next)
    }

    /// All files, sorted.
    pub fn files(&self) -> Vec<PathBuf> {
        let state = self.shared.lock();
        state.names.iter().filter(|(_, n)| **n != Node::Dir).map(|(p, _)| p.clone()).collect()
    }

    /// A file's bytes; panics where there is none.
    pub fn read(&self, path: &Path) -> Vec<u8> {
        let state = self.shared.lock();
        let node = state.file(path).expect("a file to read");
        state.nodes[node].data.clone()
    }

    /// Replaces a file's bytes (or makes it), durably, past all schedules.
    pub fn write(&self, path: &Path, bytes: &[u8]) {
        let mut state = self.shared.lock();
        let node = state.file(path).unwrap_or_else(|_| state.add_file(path));
        let inode = &mut state.nodes[node];
        (inode.data, inode.durable, inode.stable) = (bytes.to_vec(), bytes.to_vec(), bytes.len());
        state.durable.insert(path.to_owned(), Node::File(node));
    }

    /// Flips one bit of a file, durably.
    pub fn flip(&self, path: &Path, byte: usize, bit: u8) {
        let mut bytes = self.read(path);
        bytes[byte] ^= 1 << bit;
        self.write(path, &bytes);
    }

    /// Removes a file, durably, past all schedules.
    pub fn lose(&self, path: &Path) {
        let mut state = self.shared.lock();
        state.names.remove(path);
        state.durable.remove(path);
    }
}

impl Disk for SimDisk {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.shared.lock();
        state.begin()?;
        state.free_name(path)?;
        let node = state.add_file(path);
        Ok(self.shared.handle(&mut state, node, true))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.shared.lock();
        state.alive()?;
        let node = state.file(path)?;
        Ok(self.shared.handle(&mut state, node, false))
    }

    fn open_append(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.shared.lock();
        state.alive()?;
        let node = state.file(path)?;
        Ok(self.shared.handle(&mut state, node, true))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.shared.lock();
        state.begin()?;
        let node = Node::File(state.file(from)?);
        state.change(Some(from.to_owned()), Some((to.to_owned(), node)));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.shared.lock();
        match state.begin() {
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => {}
            other => other?,
        }
        state.file(path)?;
        state.change(Some(path.to_owned()), None);
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.shared.lock();
        state.alive()?;
        if !state.is_dir(dir) {
            return Err(error(io::ErrorKind::NotFound, dir));
        }
        let here = state.names.keys().filter(|p| p.parent() == Some(dir));
        Ok(here.filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned())).collect())
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.shared.lock();
        state.begin()?;
        state.free_name(path)?;
        state.change(None, Some((path.to_owned(), Node::Dir)));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.shared.lock();
        state.begin()?;
        state.syncs += 1;
        let (done, open) = std::mem::take(&mut state.pending).into_iter().partition(|c| c.is_in(dir));
        state.pending = open;
        done.iter().for_each(|c: &Change| c.apply(&mut state.durable));
        Ok(())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let state = self.shared.lock();
        state.alive()?;
        Ok(state.is_dir(path) || state.names.contains_key(path))
    }

    fn now(&self) -> Timestamp {
        let mut state = self.shared.lock();
        state.time += 1;
        Timestamp::from_millisecond(1_700_000_000_000 + state.time).expect("a time of this century")
    }

    fn random(&self) -> u64 {
        self.shared.lock().random()
    }
}

impl SimFile {
    fn write_check(&self) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EBADF)) }
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let state = self.shared.lock();
        state.alive()?;
        let data = &state.nodes[self.node].data;
        let from = usize::try_from(at).unwrap_or(usize::MAX);
        let part = from.checked_add(buf.len()).and_then(|end| data.get(from..end));
        buf.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        drop(state);
        self.shared.lock().alive() // What was read may be old when the reader goes on.
    }

    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        self.write_check()?;
        let mut state = self.shared.lock();
        state.alive()?;
        let begun = state.begin();
        let n = if begun.is_ok() { bytes.len() } else { state.below(bytes.len() + 1) };
        state.nodes[self.node].data.extend_from_slice(&bytes[..n]);
        begun
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.shared.lock();
        state.alive()?;
        let begun = state.begin();
        if begun.is_err() && (state.crashed || state.random().is_multiple_of(2)) {
            return begun;
        }
        state.syncs += 1;
        let node = &mut state.nodes[self.node];
        node.durable.truncate(node.stable);
        node.durable.extend_from_slice(&node.data[node.stable..]);
        node.stable = node.data.len();
        begun
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.shared.lock();
        state.alive()?;
        Ok(state.nodes[self.node].data.len() as u64)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.write_check()?;
        let mut state = self.shared.lock();
        state.begin()?;
        let node = &mut state.nodes[self.node];
        node.data.resize(len as usize, 0);
        node.stable = node.stable.min(len as usize);
        Ok(())
    }

    fn lock(&self, exclusive: bool, wait: bool) -> io::Result<bool> {
        let mut state = self.shared.lock();
        loop {
            state.alive()?;
            let locks = &mut state.nodes[self.node].locks;
            if !locks.iter().any(|&(h, x)| h != self.handle && (x || exclusive)) {
                locks.retain(|&(h, _)| h != self.handle);
                locks.push((self.handle, exclusive));
                return Ok(true);
            }
            if !wait {
                return Ok(false);
            }
            state = self.shared.unlocked.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if let Some(node) = state.nodes.get_mut(self.node) {
            node.locks.retain(|&(h, _)| h != self.handle);
        }
        drop(state);
        self.shared.unlocked.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_file(seed: u64, name_synced: bool) -> SimDisk {
        let disk = SimDisk::new(seed);
        let f = disk.create_new(Path::new("/f")).unwrap();
        f.append(&[1; 700]).unwrap();
        f.sync().unwrap();
        f.append(&[2; 2000]).unwrap();
        if name_synced {
            disk.sync_dir(Path::new("/")).unwrap();
        }
        disk
    }

    #[test]
    fn synced_bytes_survive_and_others_may_not() {
        let after = |seed| one_file(seed, true).reboot().read(Path::new("/f"));
        let all: Vec<_> = (0..200).map(after).collect();
        assert!(all.iter().all(|d| d[..700] == [1; 700] && d.len() <= 2700));
        assert!(all.iter().any(|d| d.len() == 700) && all.iter().any(|d| d.len() == 2700));
        assert!(all.iter().any(|d| d.len() == 1024) && all.iter().any(|d| d[700..].contains(&0)));
        assert!(all.iter().any(|d| d[700..].iter().any(|b| *b > 2)));
    }

    #[test]
    fn names_survive_once_synced() {
        let there = |synced| (0..50).filter(|&s| !one_file(s, synced).reboot().files().is_empty()).count();
        assert_eq!(there(true), 50);
        assert!((1..50).contains(&there(false)));
    }

    #[test]
    fn a_killed_process_takes_nothing_with_it() {
        let disk = one_file(3, false);
        let open = disk.open(Path::new("/f")).unwrap();
        assert!(open.lock(true, false).unwrap());
        let next = disk.restart();
        assert!(open.len().is_err() && disk.list(Path::new("/")).is_err());
        assert_eq!(next.read(Path::new("/f")).len(), 2700);
        assert!(next.open(Path::new("/f")).unwrap().lock(true, false).unwrap());
        let lost = (0..50).filter(|&s| one_file(s, false).restart().reboot().files().is_empty()).count();
        assert!((1..50).contains(&lost));
    }

    #[test]
    fn a_schedule_repeats() {
        assert_eq!(one_file(9, true).reboot().read(Path::new("/f")), one_file(9, true).reboot().read(Path::new("/f")));
    }

    #[test]
    fn faults_strike_once_and_crashes_last() {
        let disk = SimDisk::new(1);
        disk.fail_at(1, Fault::Full);
        let f = disk.create_new(Path::new("/f")).unwrap();
        assert_eq!(f.append(&[1; 100]).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        assert!(f.len().unwrap() <= 100);
        f.append(b"x").unwrap();
        disk.crash_at(disk.ops());
        assert!(f.sync().is_err() && f.len().is_err() && disk.exists(Path::new("/f")).is_err());
        assert_eq!((disk.ops(), disk.syncs()), (4, 0));
    }
}
