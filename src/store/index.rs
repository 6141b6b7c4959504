//! Where every object, recipe and version lies: the entries of all packs' footers, and one table over them.
//!
//! Of two copies of a thing, that in the pack whose name sorts first counts, in whatever order the packs came. An entry
//! takes its 56 bytes and some ten of the table, whose slots only point: the table of a thousand packs fits a cache.
//!
//! It doesn't know files, nor what is wrong with them.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::path::PathBuf;
use std::sync::Arc;

use hashbrown::hash_table::Entry::{Occupied, Vacant};
use hashbrown::{DefaultHashBuilder, HashTable};

use super::pack::{Entry, Kind};
use crate::model::id::Id;

/// One pack file.
pub(super) struct Pack {
    pub name: String,
    /// Unlike a name, never used for another file.
    pub key: u64,
    pub path: PathBuf,
    pub bytes: u64,
    /// Sorted by kind and id.
    pub entries: Vec<Entry>,
}

/// Where a thing lies.
#[derive(Clone)]
pub(super) struct Place {
    pub pack: Arc<Pack>,
    pub entry: Entry,
}

/// A pack's number and an entry's in it.
#[derive(Clone, Copy)]
struct Spot {
    pack: u32,
    entry: u32,
}

fn entry<'a>(packs: &'a [Arc<Pack>], spot: &Spot) -> &'a Entry {
    &packs[spot.pack as usize].entries[spot.entry as usize]
}

fn hash(hasher: &DefaultHashBuilder, e: &Entry) -> u64 {
    hash_of(hasher, e.kind, &e.id)
}

fn hash_of(hasher: &DefaultHashBuilder, kind: Kind, id: &Id) -> u64 {
    hasher.hash_one((kind as u8, id.0))
}

#[derive(Default)]
pub(super) struct Index {
    packs: BTreeMap<String, Arc<Pack>>,
    numbered: Vec<Arc<Pack>>,
    table: HashTable<Spot>,
    hasher: DefaultHashBuilder,
}

impl Index {
    pub fn packs(&self) -> &BTreeMap<String, Arc<Pack>> {
        &self.packs
    }

    /// `true` where something is now read from another pack than before.
    pub fn add(&mut self, packs: Vec<Arc<Pack>>) -> bool {
        let (first, more) = (self.numbered.len(), packs.iter().map(|p| p.entries.len()).sum());
        self.numbered.extend(packs.iter().cloned());
        self.table.reserve(more, |s| hash(&self.hasher, entry(&self.numbered, s)));
        let moved = (first..).zip(&packs).fold(false, |moved, (number, pack)| self.add_entries(number, pack) || moved);
        self.packs.extend(packs.into_iter().map(|p| (p.name.clone(), p)));
        moved
    }

    fn add_entries(&mut self, number: usize, pack: &Pack) -> bool {
        let (numbered, hasher) = (&self.numbered, &self.hasher);
        let mut moved = false;
        for (at, e) in (0..).zip(&pack.entries) {
            let spot = Spot { pack: number as u32, entry: at };
            let same = |s: &Spot| (entry(numbered, s).id, entry(numbered, s).kind) == (e.id, e.kind);
            match self.table.entry(hash(hasher, e), same, |s| hash(hasher, entry(numbered, s))) {
                Vacant(free) => drop(free.insert(spot)),
                Occupied(mut held) if numbered[held.get().pack as usize].name > pack.name => {
                    *held.get_mut() = spot;
                    moved = true;
                }
                Occupied(_) => {}
            }
        }
        moved
    }

    /// Takes out the packs that are not to `stay`; returns them.
    pub fn retain(&mut self, stay: impl Fn(&str) -> bool) -> Vec<Arc<Pack>> {
        let (stayed, gone): (Vec<_>, Vec<_>) = self.packs.values().cloned().partition(|pack| stay(&pack.name));
        if !gone.is_empty() {
            *self = Index::default();
            self.add(stayed);
        }
        gone
    }

    pub fn find(&self, kind: Kind, id: &Id) -> Option<(&Arc<Pack>, &Entry)> {
        let is_it = |s: &Spot| (entry(&self.numbered, s).id, entry(&self.numbered, s).kind) == (*id, kind);
        let spot = self.table.find(hash_of(&self.hasher, kind, id), is_it)?;
        Some((&self.numbered[spot.pack as usize], entry(&self.numbered, spot)))
    }

    /// All of a kind.
    pub fn ids(&self, kind: Kind) -> Vec<Id> {
        let entries = self.table.iter().map(|s| entry(&self.numbered, s));
        entries.filter(|e| e.kind == kind).map(|e| e.id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(name: &str, ids: &[u8]) -> Arc<Pack> {
        let entry = |n: &u8| Entry {
            kind: Kind::Object,
            id: Id::of(&[*n]),
            offset: 100,
            len: *n as u32,
            stored: *n as u64 + 9,
        };
        let entries = ids.iter().map(entry).collect();
        Arc::new(Pack { name: name.to_owned(), key: 0, path: PathBuf::from(name), bytes: 0, entries })
    }

    fn place(index: &Index, n: u8) -> Option<&str> {
        index.find(Kind::Object, &Id::of(&[n])).map(|(pack, entry)| {
            assert_eq!(entry.len, n as u32);
            &pack.name[..]
        })
    }

    #[test]
    fn the_first_name_counts_in_whatever_order_packs_come_and_go() {
        let (a, b, c) = (pack("a", &[1, 2]), pack("b", &[2, 3]), pack("c", &[1, 2, 3, 4]));
        let mut index = Index::default();
        assert!(!index.add(vec![c.clone()]));
        assert!(index.add(vec![b.clone(), a.clone()]));
        assert!(!index.add(vec![pack("d", &[1, 5])]));
        let found: Vec<_> = (1..7).map(|n| place(&index, n)).collect();
        assert_eq!(found, [Some("a"), Some("a"), Some("b"), Some("c"), Some("d"), None]);
        assert!(index.find(Kind::Version, &Id::of(&[1])).is_none());
        assert_eq!((index.ids(Kind::Object).len(), index.ids(Kind::Recipe).len()), (5, 0));
        assert_eq!(index.retain(|_| true).len(), 0);
        assert_eq!(index.packs().len(), 4);
        let gone = index.retain(|name| name != "a");
        assert_eq!(gone[0].name, "a");
        let found: Vec<_> = (1..6).map(|n| place(&index, n)).collect();
        assert_eq!(found, [Some("c"), Some("b"), Some("b"), Some("c"), Some("d")]);
    }
}
