//! What `stat` shows of a node.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;

/// The preferred size of one read: a block of the store.
pub const BLOCK_SIZE: u32 = 64 << 10;

/// Names that may come and go: `models/` and what stands directly in it and in a model.
pub const LIVE: Duration = Duration::from_millis(400);
/// The same where the kernel is told of each change. Not forever: an answer may cross a message on the way.
pub const TOLD: Duration = Duration::from_secs(60);
/// Names inside a version never change.
pub const FOREVER: Duration = Duration::from_secs(24 * 3600);
/// Drafts change through this mount alone, but for their commit.
pub const DRAFT: Duration = Duration::from_secs(1);
/// All but the charged blocks of a file is immutable; those move when other versions go.
pub const SETTLED: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    File,
    Directory,
    Symlink,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    pub ino: u64,
    pub kind: Kind,
    /// Logical bytes.
    pub size: u64,
    /// What it costs in the store, in units of 512 bytes.
    pub blocks: u64,
    /// Of a version, modification, change and access are one: the commit.
    pub time: SystemTime,
    /// The last change of anything about it.
    pub changed: SystemTime,
    pub mode: u16,
    /// Always 1, which tells `find` that it cannot count subdirectories by it.
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
}

/// `st_blocks` of a file of `bytes` that is charged `stored` bytes. A non-empty file never has 0, which
/// `tar -S` and `cp --sparse` would take for a hole.
pub fn blocks(bytes: u64, stored: u64) -> u64 {
    if bytes == 0 { 0 } else { stored.div_ceil(512).max(1) }
}

/// A commit's time as the system has it.
pub fn time(at: Timestamp) -> SystemTime {
    let since = Duration::new(at.as_second().unsigned_abs(), at.subsec_nanosecond().unsigned_abs());
    if at < Timestamp::UNIX_EPOCH { SystemTime::UNIX_EPOCH - since } else { SystemTime::UNIX_EPOCH + since }
}
