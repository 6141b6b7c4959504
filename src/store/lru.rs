//! A map bounded by weight that forgets what was used longest ago. Safe to share; values are cloned out.
//!
//! For few, coarse things (open files, object records); decoded blocks have a cache of their own in repo.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(super) struct Lru<K, V> {
    inner: Mutex<Inner<K, V>>,
    capacity: u64,
}

struct Inner<K, V> {
    map: HashMap<K, Slot<V>>,
    by_age: BTreeMap<u64, K>,
    clock: u64,
    weight: u64,
}

struct Slot<V> {
    value: V,
    weight: u64,
    used: u64,
}

impl<K: Hash + Eq + Clone, V: Clone> Lru<K, V> {
    pub fn new(capacity: u64) -> Self {
        let inner = Inner { map: HashMap::new(), by_age: BTreeMap::new(), clock: 0, weight: 0 };
        Lru { inner: Mutex::new(inner), capacity }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<K, V>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, key: &K) -> Option<V> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let slot = inner.map.get_mut(key)?;
        inner.clock += 1;
        let owned = inner.by_age.remove(&slot.used)?;
        slot.used = inner.clock;
        inner.by_age.insert(slot.used, owned);
        Some(slot.value.clone())
    }

    pub fn put(&self, key: K, value: V, weight: u64) {
        let mut inner = self.lock();
        inner.forget(&key);
        if weight > self.capacity {
            return;
        }
        inner.clock += 1;
        let used = inner.clock;
        inner.by_age.insert(used, key.clone());
        inner.map.insert(key, Slot { value, weight, used });
        inner.weight += weight;
        while inner.weight > self.capacity {
            let oldest = inner.by_age.values().next().cloned();
            oldest.iter().for_each(|k| inner.forget(k));
        }
    }

    pub fn clear(&self) {
        let mut inner = self.lock();
        inner.map.clear();
        inner.by_age.clear();
        inner.weight = 0;
    }
}

impl<K: Hash + Eq, V> Inner<K, V> {
    fn forget(&mut self, key: &K) {
        if let Some(slot) = self.map.remove(key) {
            self.by_age.remove(&slot.used);
            self.weight -= slot.weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_unused_goes_first() {
        let lru = Lru::new(10);
        lru.put(1, 'a', 4);
        lru.put(2, 'b', 4);
        assert_eq!(lru.get(&1), Some('a'));
        lru.put(3, 'c', 4);
        assert_eq!((lru.get(&1), lru.get(&2), lru.get(&3)), (Some('a'), None, Some('c')));
        lru.put(4, 'd', 11);
        assert_eq!(lru.get(&4), None);
        lru.put(1, 'e', 10);
        assert_eq!((lru.get(&1), lru.get(&3)), (Some('e'), None));
        lru.clear();
        assert_eq!(lru.get(&1), None);
    }
}
