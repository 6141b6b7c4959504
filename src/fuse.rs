//! The FUSE protocol: translates between kernel requests and [`Vfs`], and decides nothing.
//!
//! A file whose bytes an ordinary file has is passed through to the kernel (passthrough.rs), which reads it by itself.
//!
//! Several threads take requests from the kernel, each through its own `/dev/fuse` descriptor, and answer
//! them where they stand. Reads fill one buffer for each thread, made once. A panic below is one EIO and a log line.

mod passthrough;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BackingId, BsdFileFlags, Config, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType,
    Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags,
    PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};

use passthrough::Modes;

use crate::vfs::{
    Attr, BLOCK_SIZE, Change, Entry, Found, Kind, MAX_READ, Opened, Source, Stale, Vfs, VfsError, When, Xattr,
};

/// Requests that the kernel may have under way beside those a caller waits for (readahead).
const MAX_BACKGROUND: u16 = 64;
const CONGESTED: u16 = 48;
/// Of what was only read, a close has nothing to flush.
const NOFLUSH: FopenFlags = FopenFlags::FOPEN_NOFLUSH;
/// The kernel's largest request (`fs.fuse.max_pages_limit`).
const MAX_REQUEST: u32 = 1 << 20;

/// A session that answers the kernel, until the filesystem is unmounted.
pub struct Served(BackgroundSession);

impl Served {
    /// A way to tell the kernel what it may no longer believe.
    pub fn teller(&self) -> Teller {
        Teller(self.0.notifier())
    }

    /// Waits for the end of the session.
    pub fn join(self) -> io::Result<()> {
        self.0.join()
    }
}

/// Tells the kernel what it may no longer believe.
#[derive(Clone)]
pub struct Teller(Notifier);

impl Teller {
    /// May wait for requests under way in the same directory: not to be called by what answers them.
    pub fn tell(&self, stale: &[Stale]) {
        for s in stale {
            // An error: the kernel does not know it, or the mount has ended.
            let _ = match s {
                Stale::Name { parent, name } => self.0.inval_entry(INodeNo(*parent), OsStr::new(name)),
                // A negative offset leaves the pages alone: waiting for one could wait for ourselves.
                Stale::Attr(ino) => self.0.inval_inode(INodeNo(*ino), -1, 0),
            };
        }
    }
}

/// Answers the kernel's requests from `device`, an open `/dev/fuse` that is mounted somewhere. Returns when
/// the kernel and the session have agreed on the protocol.
pub fn serve<S: Source>(vfs: Arc<Vfs<S>>, device: OwnedFd) -> io::Result<Served> {
    let mut config = Config::default();
    config.n_threads = Some(threads());
    config.clone_fd = true;
    // The kernel itself holds off other users, unless mounted with `allow_other`.
    let fuse = Fuse { vfs, modes: Modes::default() };
    Session::from_fd(fuse, device, SessionACL::All, config)?.spawn().map(Served)
}

/// A request may wait for the disk or for another's decoding, so more threads than cores. On two busy cores
/// eight read 1.3 times as fast as four, and those 1.6 times as fast as two.
fn threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    (cores * 2).clamp(8, 64)
}

struct Fuse<S: Source> {
    vfs: Arc<Vfs<S>>,
    modes: Modes<BackingId>,
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What `f` says, or EIO when it panics: an event thread must not die of one request.
fn guarded<T>(f: impl FnOnce() -> Result<T, VfsError>) -> Result<T, Errno> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(Errno::from_i32(e.errno())),
        Err(_) => {
            log::error!("a request panicked; it is answered with an input/output error");
            Err(Errno::EIO)
        }
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
    }
}

fn file_attr(a: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(a.ino),
        size: a.size,
        blocks: a.blocks,
        atime: a.time,
        mtime: a.time,
        ctime: a.changed,
        crtime: a.time,
        kind: file_type(a.kind),
        perm: a.mode,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: 0,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// The protocol's way to say that a name holds nothing and that this may be believed: node 0.
fn nothing() -> FileAttr {
    let (time, mode) = (SystemTime::UNIX_EPOCH, 0);
    file_attr(&Attr {
        ino: 0,
        kind: Kind::File,
        size: 0,
        blocks: 0,
        time,
        changed: time,
        mode,
        nlink: 0,
        uid: 0,
        gid: 0,
    })
}

fn opened(result: Result<Opened, Errno>, flags: FopenFlags, reply: ReplyOpen) {
    let kept = |o: &Opened| if o.unchanged { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
    match result {
        Ok(o) => reply.opened(FileHandle(o.fh), flags | kept(&o)),
        Err(e) => reply.error(e),
    }
}

fn xattr(result: Result<Xattr, Errno>, reply: ReplyXattr) {
    match result {
        Ok(Xattr::Size(size)) => reply.size(size),
        Ok(Xattr::Value(value)) => reply.data(&value),
        Err(e) => reply.error(e),
    }
}

fn done(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(e),
    }
}

fn entry(result: Result<Entry, Errno>, reply: ReplyEntry) {
    match result {
        Ok(e) => reply.entry_with_ttls(&e.attr_for, &e.name_for, &file_attr(&e.attr), Generation(0)),
        Err(e) => reply.error(e),
    }
}

fn when(time: TimeOrNow) -> When {
    match time {
        TimeOrNow::SpecificTime(at) => When::At(at),
        TimeOrNow::Now => When::Now,
    }
}

impl<S: Source> Fuse<S> {
    fn closed(&self, fh: FileHandle, reply: ReplyEmpty) {
        let release = || {
            self.vfs.release(fh.0);
            Ok(())
        };
        match guarded(release) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn reply_read(&self, fh: u64, offset: u64, size: u32, reply: ReplyData) {
        let size = size as usize;
        if size > MAX_READ {
            return reply.error(Errno::EINVAL);
        }
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            match guarded(|| self.vfs.read(fh, offset, &mut buffer[..size])) {
                Ok(n) => reply.data(&buffer[..n]),
                Err(e) => reply.error(e),
            }
        });
    }
}

/// How long both a name and its attributes hold: readdirplus has one lifetime for the two.
fn both(entry: &Entry) -> Duration {
    entry.name_for.min(entry.attr_for)
}

#[allow(clippy::too_many_arguments)]
impl<S: Source> Filesystem for Fuse<S> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_PASSTHROUGH,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2, // no file has privileges to kill: else each write would ask for them
            InitFlags::FUSE_CACHE_SYMLINKS,     // each leads to one place for good
        ];
        for flag in wanted {
            if config.add_capabilities(flag).is_err() {
                log::info!("this kernel does not offer {flag:?}");
            }
        }
        // Each setter answers an impossible value with the nearest possible one.
        let _ = config.set_max_write(MAX_REQUEST);
        if let Err(most) = config.set_max_readahead(MAX_REQUEST) {
            let _ = config.set_max_readahead(most);
        }
        // Files that are passed through lie on an ordinary file system, not on a stacked one.
        let _ = config.set_max_stack_depth(1);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_congestion_threshold(CONGESTED);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match guarded(|| self.vfs.lookup(parent.0, name)) {
            Ok(Found::Entry(e)) => {
                reply.entry_with_ttls(&e.attr_for, &e.name_for, &file_attr(&e.attr), Generation(0));
            }
            Ok(Found::Nothing(Duration::ZERO)) => reply.error(Errno::ENOENT),
            Ok(Found::Nothing(held)) => reply.entry(&held, &nothing(), Generation(0)),
            Err(e) => reply.error(e),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        self.vfs.forget(ino.0, count);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        match guarded(|| self.vfs.getattr(ino.0, fh.map(|fh| fh.0))) {
            Ok((attr, held)) => reply.attr(&held, &file_attr(&attr)),
            Err(e) => reply.error(e),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match guarded(|| self.vfs.readlink(ino.0)) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(e) => reply.error(e),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let file = guarded(|| self.vfs.open(ino.0, flags.0));
        let keep = if flags.0 & libc::O_ACCMODE == libc::O_RDONLY { NOFLUSH } else { FopenFlags::empty() };
        let Ok(Opened { fh, .. }) = file else { return opened(file, keep, reply) };
        // Fails where the kernel cannot, or may not for this process: then it asks us for each read.
        let backing = || self.vfs.with_plain(fh, |plain| reply.open_backing(plain).ok());
        match self.modes.open(ino.0, backing) {
            Some(id) => reply.opened_passthrough(FileHandle(fh), keep, &id),
            None => opened(file, keep, reply),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.reply_read(fh.0, offset, size, reply);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.modes.close(ino.0);
        self.closed(fh, reply);
    }

    fn fsync(&self, _: &Request, _: INodeNo, fh: FileHandle, data_only: bool, reply: ReplyEmpty) {
        done(guarded(|| self.vfs.fsync(fh.0, data_only)), reply);
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        opened(guarded(|| self.vfs.opendir(ino.0)), FopenFlags::FOPEN_CACHE_DIR, reply);
    }

    fn readdir(&self, _: &Request, _: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = guarded(|| {
            self.vfs.readdir(fh.0, offset, |l| reply.add(INodeNo(l.ino), l.next, file_type(l.kind), l.name))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn readdirplus(&self, _: &Request, _: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let listed = guarded(|| {
            self.vfs.readdirplus(fh.0, offset, |l, e| {
                reply.add(INodeNo(l.ino), l.next, l.name, &both(e), &file_attr(&e.attr), Generation(0))
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.closed(fh, reply);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, fh: FileHandle, data_only: bool, reply: ReplyEmpty) {
        done(guarded(|| self.vfs.fsync(fh.0, data_only)), reply);
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match guarded(|| self.vfs.statfs()) {
            Ok(s) => reply.statfs(
                s.blocks,
                s.free,
                s.available,
                s.files,
                s.files_free,
                s.block_size,
                s.name_max,
                s.fragment_size,
            ),
            Err(e) => reply.error(e),
        }
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        xattr(guarded(|| self.vfs.getxattr(ino.0, name, size)), reply);
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        xattr(guarded(|| self.vfs.listxattr(ino.0, size)), reply);
    }

    // What follows changes something, or is refused.

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        owner: Option<u32>,
        group: Option<u32>,
        size: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        fh: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (accessed, modified) = (accessed.map(when), modified.map(when));
        let change = Change { mode, owner, group, size, accessed, modified };
        match guarded(|| self.vfs.setattr(ino.0, fh.map(|fh| fh.0), &change)) {
            Ok((attr, held)) => reply.attr(&held, &file_attr(&attr)),
            Err(e) => reply.error(e),
        }
    }

    fn mknod(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: u32, reply: ReplyEntry) {
        entry(guarded(|| self.vfs.mknod(parent.0, name, mode)), reply);
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        entry(guarded(|| self.vfs.mkdir(parent.0, name, mode)), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(guarded(|| self.vfs.unlink(parent.0, name)), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(guarded(|| self.vfs.rmdir(parent.0, name)), reply);
    }

    fn symlink(&self, _: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        entry(guarded(|| self.vfs.symlink(parent.0, name, target.as_os_str())), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        new: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        done(guarded(|| self.vfs.rename(parent.0, name, to.0, new, flags.bits())), reply);
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(guarded(|| self.vfs.link(ino.0, parent.0, name)), reply);
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, flags: i32, reply: ReplyCreate) {
        let (e, fh) = match guarded(|| self.vfs.create(parent.0, name, mode, flags)) {
            Ok((e, Opened { fh, .. })) => (e, fh),
            Err(e) => return reply.error(e),
        };
        let backing = || self.vfs.with_plain(fh, |plain| reply.open_backing(plain).ok());
        let (held, attr, fh, none) = (both(&e), file_attr(&e.attr), FileHandle(fh), FopenFlags::empty());
        match self.modes.open(e.attr.ino, backing) {
            Some(id) => reply.created_passthrough(&held, &attr, Generation(0), fh, none, &id),
            None => reply.created(&held, &attr, Generation(0), fh, none),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match guarded(|| self.vfs.write(fh.0, offset, data)) {
            Ok(n) => reply.written(n as u32),
            Err(e) => reply.error(e),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        done(guarded(|| self.vfs.fallocate(fh.0, offset, length, mode)), reply);
    }

    fn setxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, _: u32, reply: ReplyEmpty) {
        done(guarded(|| self.vfs.setxattr(ino.0, name, value, flags)), reply);
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(guarded(|| self.vfs.removexattr(ino.0, name)), reply);
    }

    // What follows the kernel does itself once it has heard ENOSYS.

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }
}
