//! The locks and counters of what many threads share: those of std. Under the feature `shuttle`, those of shuttle, which
//! runs a test's threads in turns, in as many orders as it is told: so small concurrent parts are tried in orders that
//! chance would hardly ever bring (`interleavings.rs` in some rooms).
//!
//! A lock that is held while one of these is taken must be one of these, too: shuttle's threads are not the system's.

#[cfg(not(feature = "shuttle"))]
pub use std::{
    sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic},
    thread_local,
};

#[cfg(feature = "shuttle")]
pub use shuttle::{
    sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic},
    thread_local,
};
