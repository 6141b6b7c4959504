//! Which open files the kernel reads by itself, from a backing file.
//!
//! Of one inode, the kernel has either open files that go through its page cache or open files that are passed through
//! to one backing file, never both: it fails an open that mixes them. So the first open decides, and all that are
//! opened while any is open follow. When the last is closed, the next decides anew.
//!
//! The kernel forgets an open file's mode before it sends the file's release, so our count is never behind its own.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, PoisonError};

use crate::sync::{Mutex, MutexGuard};

/// The open files of one inode; `backing`: what they are passed through to, if they are.
struct Mode<B> {
    backing: Option<Arc<B>>,
    open: u64,
}

/// The modes of all inodes with open files.
pub struct Modes<B>(Mutex<HashMap<u64, Mode<B>>>);

impl<B> Default for Modes<B> {
    fn default() -> Modes<B> {
        Modes(Mutex::default())
    }
}

impl<B> Modes<B> {
    /// One more open file, and what it is passed through to. `wish` is asked only when this open decides.
    pub fn open(&self, ino: u64, wish: impl FnOnce() -> Option<B>) -> Option<Arc<B>> {
        let mut modes = self.modes();
        let mode = match modes.entry(ino) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Mode { backing: wish().map(Arc::new), open: 0 }),
        };
        mode.open += 1;
        mode.backing.clone()
    }

    /// One open file less.
    pub fn close(&self, ino: u64) {
        if let Entry::Occupied(mut entry) = self.modes().entry(ino) {
            entry.get_mut().open -= 1;
            if entry.get().open == 0 {
                entry.remove();
            }
        }
    }

    fn modes(&self) -> MutexGuard<'_, HashMap<u64, Mode<B>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_open_decides_until_the_last_is_closed() {
        let modes = Modes::default();
        assert_eq!(modes.open(1, || None), None);
        assert_eq!(modes.open(1, || Some("late")), None, "others go through the page cache");
        assert_eq!(modes.open(2, || Some("two")).as_deref(), Some(&"two"));
        modes.close(1);
        assert_eq!(modes.open(1, || Some("late")), None);
        modes.close(1);
        modes.close(1);
        assert_eq!(modes.open(1, || Some("one")).as_deref(), Some(&"one"));
        assert_eq!(modes.open(1, || unreachable!()).as_deref(), Some(&"one"));
        modes.close(7);
        assert_eq!(modes.modes().len(), 2);
    }
}
