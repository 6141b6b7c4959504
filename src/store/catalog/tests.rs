//! The catalog against the plainest way to take events in, and on a real disk.

use super::*;
use crate::model::record::{Real, Relation};
use proptest::prelude::*;

fn id(n: u8) -> Id {
    Id([n; 32])
}

fn at(n: u64) -> Position {
    Position { offset: n, chain: n.to_le_bytes() }
}

fn commit(n: u8, model: u8, version: u8, previous: Option<u8>, parents: &[u8]) -> Event {
    Event::Commit {
        model: ["a", "a.b", "x/a", "a-b"][model as usize % 4].parse().unwrap(),
        version: VersionName::numbered(version as u64),
        id: id(n),
        pack: format!("{:016x}", n / 2),
        created: Timestamp::UNIX_EPOCH,
        bytes: n as u64 * 1000,
        previous: previous.map(id),
        guess: n % 2 == 1,
        settled: n % 3 == 1,
        lossy: n % 5 == 1,
        replaces: (n % 5 == 1).then(|| id(n / 2)),
        parents: parents.iter().map(|&p| ParentEdge::new(id(p), Relation::Derived)).collect(),
    }
}

/// What the catalog must agree with, in the plainest way.
#[derive(Default)]
struct Naive {
    heads: Vec<Head>,
    edges: Vec<(Id, ParentEdge)>,
    tags: BTreeMap<(ModelName, VersionName), Id>,
    /// Who has a name, or had it last.
    names: BTreeMap<(ModelName, VersionName), Id>,
}

impl Naive {
    fn take(&mut self, event: &Event) {
        match event.clone() {
            commit @ Event::Commit { .. } => self.commit(commit),
            Event::Remove { id, at, .. } => self.head(&id, |h| (h.removed, h.removed_at) = (true, at)),
            Event::Restore { id, .. } => {
                self.head(&id, |h| (h.removed, h.removed_at) = (false, None));
                let head = self.heads.iter().find(|h| h.id == id);
                self.names.extend(head.map(|h| ((h.model.clone(), h.version.clone()), id)));
            }
            Event::Tag { model, tag, id: Some(id) } => drop(self.tags.insert((model, tag), id)),
            Event::Tag { model, tag, id: None } => drop(self.tags.remove(&(model, tag))),
            // Only onto a name that nobody has: else two versions could be called the same.
            Event::Rename { from, to } => {
                self.heads.iter_mut().filter(|h| h.model == from).for_each(|h| h.model = to.clone());
                let moved = |((m, t), id)| ((if m == from { to.clone() } else { m }, t), id);
                self.tags = std::mem::take(&mut self.tags).into_iter().map(&moved).collect();
                self.names = std::mem::take(&mut self.names).into_iter().map(&moved).collect();
            }
            Event::Seal { id } => self.head(&id, |h| h.settled = false),
            Event::Link { child, parent: id, relation, coefficient, guess, distance } => {
                self.link(child, ParentEdge { id, relation, coefficient, guess, distance })
            }
            Event::Follow { id, previous, guess } => {
                self.head(&id, |h| (h.previous, h.guess) = (Some(previous), guess))
            }
            Event::Unlink { child, parent } => {
                self.edges.retain(|(c, p)| (*c, p.id) != (child, parent));
                self.head(&child, |h| {
                    if h.previous == Some(parent) {
                        (h.previous, h.guess) = (None, false);
                    }
                });
            }
            _ => {}
        }
    }

    fn commit(&mut self, event: Event) {
        let Event::Commit {
            model,
            version,
            id,
            pack,
            created,
            bytes,
            previous,
            guess,
            settled,
            lossy,
            replaces,
            parents,
        } = event
        else {
            return;
        };
        if self.heads.iter().any(|h| h.id == id) {
            return;
        }
        let place = replaces.and_then(|r| self.heads.iter().find(|h| h.id == r)).map(|h| h.order().0);
        let (seq, removed, removed_at) = (self.heads.len() as u64, false, None);
        self.heads.push(Head {
            model,
            version,
            id,
            seq,
            pack,
            created,
            bytes,
            previous,
            guess,
            settled,
            lossy,
            place,
            removed,
            removed_at,
        });
        let head = &self.heads[seq as usize];
        self.names.insert((head.model.clone(), head.version.clone()), id);
        parents.iter().for_each(|p| self.link(id, *p));
    }

    /// A model is renamed only to a name that none has.
    fn may(&self, event: &Event) -> bool {
        let Event::Rename { to, .. } = event else { return true };
        self.heads.iter().all(|h| h.model != *to) && self.tags.keys().all(|(m, _)| m != to)
    }

    fn link(&mut self, child: Id, edge: ParentEdge) {
        match self.edges.iter_mut().find(|(c, p)| (*c, p.id) == (child, edge.id)) {
            Some((_, old)) => *old = edge,
            None => self.edges.push((child, edge)),
        }
    }

    fn head(&mut self, id: &Id, f: impl FnOnce(&mut Head)) {
        self.heads.iter_mut().find(|h| h.id == *id).map_or((), f)
    }

    fn order(&self, id: &Id) -> ((u64, u64), Id) {
        (self.heads.iter().find(|h| h.id == *id).map_or((u64::MAX, u64::MAX), |h| h.order()), *id)
    }

    fn agrees(&self, c: &Catalog) {
        let mut living: Vec<_> = self.heads.iter().filter(|h| !h.removed).cloned().collect();
        living.sort_by_key(Head::order);
        assert_eq!(c.all().unwrap(), living);
        let ids: Vec<_> = self.heads.iter().map(|h| h.id).collect();
        assert_eq!((c.since(0).unwrap(), c.since(2).unwrap()), (ids.clone(), ids.get(2..).unwrap_or(&[]).to_vec()));
        for ((model, tag), id) in &self.tags {
            assert_eq!(c.tagged(model, tag).unwrap(), Some(*id));
            assert!(c.tags(model).unwrap().contains(&(tag.clone(), *id)));
        }
        let models: std::collections::BTreeSet<_> = living.iter().map(|h| h.model.clone()).collect();
        assert_eq!(c.models().unwrap(), models.into_iter().collect::<Vec<_>>());
        for h in &self.heads {
            let of: Vec<_> = living.iter().filter(|l| l.model == h.model).cloned().collect();
            assert_eq!(c.newest(&h.model).unwrap(), of.last().cloned());
            assert_eq!(c.versions(&h.model).unwrap(), of);
            let ever = self.heads.iter().filter(|l| l.model == h.model && l.place.is_none()).count();
            assert_eq!(c.ever(&h.model).unwrap(), ever as u64);
            let named = &self.names[&(h.model.clone(), h.version.clone())];
            let named = self.heads.iter().find(|l| l.id == *named).cloned();
            assert_eq!(c.find(&h.model, &h.version).unwrap(), named.filter(|l| !l.removed));
            assert!(c.name_used(&h.model, &h.version).unwrap());
            let bringer = self.heads.iter().find(|l| l.pack == h.pack && !l.removed).cloned();
            assert_eq!(c.bringer(&h.pack).unwrap(), bringer);
        }
        (0..8).for_each(|n| self.agrees_on(c, id(n)));
    }

    fn agrees_on(&self, c: &Catalog, id: Id) {
        assert_eq!(c.by_id(&id).unwrap().as_ref(), self.heads.iter().find(|h| h.id == id));
        let parents: Vec<_> = self.edges.iter().filter(|(c, _)| *c == id).map(|(_, p)| *p).collect();
        assert_eq!(c.parents(&id).unwrap(), parents);
        let of = self.edges.iter().filter(|(_, p)| p.id == id);
        let mut children: Vec<_> = of.map(|(c, p)| ParentEdge::new(*c, p.relation)).collect();
        children.sort_by_key(|e| self.order(&e.id));
        assert_eq!(c.children(&id).unwrap(), children);
        let mut next: Vec<_> = self.heads.iter().filter(|h| h.previous == Some(id)).map(|h| h.id).collect();
        next.sort_by_key(|id| self.order(id));
        assert_eq!(c.next(&id).unwrap(), next);
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    let n = 0u8..8;
    let parents = proptest::collection::vec(n.clone(), 0..3);
    prop_oneof![
        4 => (n.clone(), 0u8..4, 0u8..3, proptest::option::of(n.clone()), parents)
            .prop_map(|(i, m, v, p, ps)| commit(i, m, v, p, &ps)),
        1 => n.clone().prop_map(|i| Event::Remove {
            model: "a".parse().unwrap(),
            version: VersionName::numbered(1),
            id: id(i),
            at: Some(Timestamp::UNIX_EPOCH).filter(|_| i % 2 == 0),
        }),
        1 => n.clone().prop_map(|i| Event::Restore {
            model: "a".parse().unwrap(),
            version: VersionName::numbered(1),
            id: id(i),
        }),
        1 => (0usize..4, 0usize..4).prop_map(|(from, to)| Event::Rename {
            from: ["a", "a.b", "x/a", "r0"][from].parse().unwrap(),
            to: ["r0", "r1", "x/r", "a"][to].parse().unwrap(),
        }),
        1 => (0u8..3, 0u8..2, proptest::option::of(n.clone())).prop_map(|(m, t, i)| Event::Tag {
            model: ["a", "a.b", "x/a"][m as usize].parse().unwrap(),
            tag: ["prod", "p"][t as usize].parse().unwrap(),
            id: i.map(id),
        }),
        1 => n.clone().prop_map(|i| Event::Seal { id: id(i) }),
        1 => (n.clone(), n.clone(), 0usize..12).prop_map(|(a, b, r)| {
            let coefficient = Some(Real(r as f64 / 4.0)).filter(|_| r > 4);
            let edge = ParentEdge { coefficient, guess: r % 2 == 0, ..ParentEdge::new(id(b), Relation::ALL[r]) };
            Event::link(id(a), edge)
        }),
        1 => (n.clone(), n.clone())
            .prop_map(|(a, b)| Event::Follow { id: id(a), previous: id(b), guess: a % 2 == 0 }),
        1 => (n.clone(), n).prop_map(|(a, b)| Event::Unlink { child: id(a), parent: id(b) }),
    ]
}

#[test]
fn it_is_what_the_events_say() {
    let catalog = Catalog::temporary().unwrap();
    let frames = proptest::collection::vec(proptest::collection::vec(any_event(), 0..5), 1..8);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(200));
    let run = runner.run(&frames, |frames| {
        catalog.clear().unwrap();
        let mut naive = Naive::default();
        for (n, frame) in (1..).zip(&frames) {
            let mut taken = Vec::new();
            for e in frame {
                if naive.may(e) {
                    naive.take(e);
                    taken.push(e.clone());
                }
            }
            catalog.apply(&taken, at(n)).unwrap();
            assert_eq!(catalog.position().unwrap(), Some(at(n)));
        }
        naive.agrees(&catalog);
        Ok(())
    });
    run.unwrap();
}

#[test]
fn it_persists_is_small_and_clears() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog");
    let catalog = Catalog::open(&path).unwrap();
    assert_eq!(catalog.position().unwrap(), None);
    for n in 0..20 {
        catalog.apply(&[commit(n, n, n, None, &[0])], at(n as u64)).unwrap();
    }
    drop(catalog);
    let catalog = Catalog::open(&path).unwrap();
    assert_eq!((catalog.position().unwrap(), catalog.all().unwrap().len()), (Some(at(19)), 20));
    let on_disk = catalog.bytes_on_disk().unwrap();
    assert!(on_disk < 150_000, "{on_disk}");
    catalog.clear().unwrap();
    assert_eq!((catalog.position().unwrap(), catalog.all().unwrap().len()), (None, 0));
}

#[test]
fn a_broken_catalog_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog");
    drop(Catalog::open(&path).unwrap());
    for file in ["conf", "db"] {
        std::fs::write(path.join(file), [0xa5; 3000]).unwrap();
    }
    assert!(matches!(Catalog::open(&path), Err(StoreError::Catalog { .. })));
    Catalog::delete(&path).unwrap();
    assert_eq!(Catalog::open(&path).unwrap().position().unwrap(), None);
}
