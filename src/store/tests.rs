//! Packs, scan and journal together: golden bytes, every flip, every cut, every crash and every fault.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::check::header_of;
use super::pack::remove_leftovers;
use super::sim::{Fault, SimDisk};
use super::*;
use crate::model::event::Event;
use crate::model::id::{BLOCK, block_value, fold, object_id};
use crate::model::object::{BlockInfo, ObjectRecord};
use crate::model::recipe::{Extent, Recipe};

const DIR: &str = "/r/packs";

/// An object stored as it is, and its blocks.
fn object(byte: u8, len: u64) -> (ObjectRecord, Vec<Vec<u8>>) {
    let data: Vec<u8> = (0..len).map(|i| byte.wrapping_add((i % 7) as u8)).collect();
    let blocks: Vec<Vec<u8>> = data.chunks(BLOCK as usize).map(<[u8]>::to_vec).collect();
    let values: Vec<_> = (0..).zip(&blocks).map(|(i, b)| block_value(b, i, len)).collect();
    let id = object_id("U8", &[len], &fold(&values, len));
    let info = blocks.iter().map(|b| BlockInfo { tag: 0, encoded: b.len() as u32 }).collect();
    let (dtype, shape) = ("U8".to_owned(), vec![len]);
    let (bases, params) = (vec![], vec![]);
    let (cost, row_bytes, empty_frames) = (1, 0, false);
    let length = len;
    let blocks_of = |blocks| ObjectRecord {
        id,
        dtype,
        shape,
        length,
        cost,
        row_bytes,
        bases,
        params,
        blocks,
        values,
        empty_frames,
    };
    (blocks_of(info), blocks)
}

fn recipe(of: &ObjectRecord) -> Recipe {
    let extent = Extent { object: of.id, offset: 0, length: of.length.max(1) };
    Recipe { digest: Id::of(b"file"), extents: vec![extent] }
}

fn put(w: &mut PackWriter, (record, blocks): &(ObjectRecord, Vec<Vec<u8>>)) -> Result<()> {
    blocks.iter().try_for_each(|b| w.put_block(b))?;
    w.put_object(record)
}

fn new_disk(seed: u64) -> (SimDisk, Arc<dyn Disk>) {
    let sim = SimDisk::new(seed);
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    create(&disk, Path::new("/r")).unwrap();
    (sim, disk)
}

fn packs(disk: &Arc<dyn Disk>) -> Packs {
    Packs::open(disk.clone(), Path::new(DIR)).unwrap()
}

fn path(name: &str) -> std::path::PathBuf {
    Path::new(DIR).join(format!("{name}.pack"))
}

/// The disk twice, ids, and the pack's name.
type Tiny = (SimDisk, Arc<dyn Disk>, Vec<(Kind, Id)>, String);

/// A disk with one pack of two objects, a recipe and a version, and all their ids.
fn tiny() -> Tiny {
    let (sim, disk) = new_disk(1);
    let mut w = PackWriter::create_named(disk.clone(), Path::new(DIR), [0, 1, 2, 3, 4, 5, 6, 7]).unwrap();
    let (a, empty) = (object(65, 5), object(0, 0));
    put(&mut w, &a).unwrap();
    put(&mut w, &empty).unwrap();
    let r = w.put_recipe(&recipe(&a.0)).unwrap();
    let v = w.put_version(b"{}").unwrap();
    assert_eq!(w.put_version(b"{}").unwrap(), v);
    let name = w.seal().unwrap().name;
    let mut ids = vec![(Kind::Object, a.0.id), (Kind::Object, empty.0.id), (Kind::Recipe, r), (Kind::Version, v)];
    ids.sort();
    (sim, disk, ids, name)
}

/// What the index says that a pack holds.
fn listed(packs: &Packs, name: &str) -> Vec<(Kind, Id)> {
    packs.listing(name).things.iter().map(|t| (t.kind, t.id)).collect()
}

/// Everything that scanning a pack yields: things, and damage.
fn scanned(packs: &Packs, name: &str) -> (Vec<(Kind, Id)>, Vec<Finding>) {
    let (mut things, mut damage) = (Vec::new(), Vec::new());
    let done = packs.scan(name, &mut |item| match item {
        ScanItem::Object(o) => things.push((Kind::Object, o.record.id)),
        ScanItem::Block { owner, index, encoded } => {
            assert_eq!(block_value(encoded, index, owner.record.length), owner.record.values[index as usize]);
        }
        ScanItem::Recipe { id, recipe } => {
            assert_eq!(recipe.id(), id);
            things.push((Kind::Recipe, id));
        }
        ScanItem::Version { id, bytes } => {
            assert_eq!(Id::of(bytes), id);
            things.push((Kind::Version, id));
        }
        ScanItem::Damage(d) => damage.push(d),
    });
    if let Err(e) = done {
        let what = e.to_string();
        damage.push(Finding { pack: name.to_owned(), offset: 0, what, of: None, block: None });
    }
    things.sort();
    (things, damage)
}

/// Reads a thing as a reader would. What comes is right, or an error.
fn read(packs: &Packs, (kind, id): (Kind, Id)) -> Result<()> {
    match kind {
        Kind::Recipe => assert_eq!(packs.recipe(&id)?.id(), id),
        Kind::Version => assert_eq!(Id::of(&packs.version(&id)?), id),
        _ => {
            let object = packs.object(&id)?;
            assert_eq!(object.record.id, id);
            let mut buf = Vec::new();
            for (index, value) in (0..).zip(&object.record.values) {
                packs.read_block(&object, index, &mut buf)?;
                if buf.len() != model_len(&object, index) || block_value(&buf, index, object.record.length) != *value {
                    return Err(StoreError::damaged(object.describe_block(index)));
                }
            }
        }
    }
    Ok(())
}

fn model_len(object: &StoredObject, index: u64) -> usize {
    crate::model::id::block_len(object.record.length, index)
}

#[test]
fn what_is_put_comes_back() {
    let (_, disk) = new_disk(1);
    let objects: Vec<_> = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 20 * BLOCK + 3]
        .iter()
        .zip(10..)
        .map(|(len, byte)| object(byte, *len))
        .collect();
    let mut w = PackWriter::create(disk.clone(), Path::new(DIR)).unwrap();
    assert!(w.is_empty());
    for o in &objects {
        put(&mut w, o).unwrap();
        assert!(w.has_object(&o.0.id));
    }
    let r = w.put_recipe(&recipe(&objects[5].0)).unwrap();
    let sealed = w.seal().unwrap();
    let packs = packs(&disk);
    assert_eq!((packs.pack_names(), packs.pack_bytes()), (vec![sealed.name.clone()], sealed.bytes));
    for (record, blocks) in &objects {
        let object = packs.object(&record.id).unwrap();
        assert_eq!(object.record, *record);
        let own = 9 + record.encode().len() as u64 + blocks.iter().map(|b| 9 + b.len() as u64).sum::<u64>();
        assert_eq!(packs.object_stored_bytes(&record.id), Some(own));
        assert_eq!(packs.pack_of_object(&record.id).as_ref(), Some(&sealed.name));
        read(&packs, (Kind::Object, record.id)).unwrap();
    }
    assert_eq!(packs.recipe(&r).unwrap(), recipe(&objects[5].0));
    assert_eq!(listed(&packs, &sealed.name).len(), 7);
    assert_eq!(scanned(&packs, &sealed.name), (listed(&packs, &sealed.name), vec![]));
    let missing = packs.recipe(&Id([1; 32])).unwrap_err();
    assert!(matches!(missing, StoreError::Missing { what: "recipe", .. }), "{missing}");
}

#[test]
fn golden_bytes_of_a_pack() {
    let (sim, _, _, name) = tiny();
    assert_eq!(name, "0001020304050607");
    let hex: String = sim.read(&path(&name)).iter().map(|b| format!("{b:02x}")).collect();
    let lines: Vec<_> = hex.as_bytes().chunks(112).map(|c| std::str::from_utf8(c).unwrap()).collect();
    let golden: Vec<_> = include_str!("golden-pack-2.txt").lines().collect();
    assert_eq!(lines, golden, "\n{}", lines.join("\n"));
}

#[test]
fn a_pack_with_objects_of_layout_1_is_read() {
    let (sim, disk, ids, name) = tiny();
    let hex = include_str!("golden-pack-1.txt").replace('\n', "");
    let bytes = hex.as_bytes().chunks(2).map(|c| std::str::from_utf8(c).unwrap());
    let old: Vec<u8> = bytes.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    sim.write(&path(&name), &old);
    let packs = packs(&disk);
    assert_eq!(scanned(&packs, &name), (listed(&packs, &name), vec![]));
    ids.iter().for_each(|i| read(&packs, *i).unwrap());
}

#[test]
fn a_block_of_no_bytes_takes_none() {
    let (sim, disk) = new_disk(1);
    let (mut record, mut blocks) = object(7, 3 * BLOCK);
    (record.blocks[1].encoded, blocks[1]) = (0, vec![]);
    let mut w = PackWriter::create(disk.clone(), Path::new(DIR)).unwrap();
    put(&mut w, &(record.clone(), blocks.clone())).unwrap();
    let name = w.seal().unwrap().name;
    let packs = packs(&disk);
    let object = packs.object(&record.id).unwrap();
    let mut buf = vec![1];
    for (index, block) in (0..).zip(&blocks) {
        packs.read_block(&object, index, &mut buf).unwrap();
        assert_eq!(buf, *block);
    }
    let mut seen = vec![];
    let mut see = |item: ScanItem| match item {
        ScanItem::Block { index, encoded, .. } => seen.push((index, encoded.to_vec())),
        ScanItem::Damage(d) => panic!("{d:?}"),
        _ => {}
    };
    packs.scan(&name, &mut see).unwrap();
    assert_eq!(seen, (0..).zip(blocks).collect::<Vec<_>>());
    let frames = 2 * (9 + BLOCK) + 9 + record.encode().len() as u64;
    assert_eq!(packs.object_stored_bytes(&record.id), Some(frames));
    assert_eq!(sim.read(&path(&name)).len() as u64, 28 + frames + 9 + 53 + 56);
}

#[test]
fn every_flip_of_a_pack_is_reported_and_never_read_as_right() {
    let (sim, disk, ids, name) = tiny();
    let whole = sim.read(&path(&name));
    for bit in 0..whole.len() * 8 {
        let mut bad = whole.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        sim.write(&path(&name), &bad);
        let packs = packs(&disk);
        let (things, damage) = scanned(&packs, &name);
        assert!(!damage.is_empty(), "bit {bit}");
        assert!(things.iter().all(|t| ids.contains(t)), "bit {bit}");
        let lost = ids.iter().filter(|i| read(&packs, **i).is_err()).count();
        assert!(lost <= 1, "bit {bit}: one flip costs {lost} things");
    }
}

#[test]
fn every_cut_of_a_pack_is_reported_and_the_rest_is_read() {
    let (sim, disk, ids, name) = tiny();
    let whole = sim.read(&path(&name));
    for cut in 0..whole.len() {
        sim.write(&path(&name), &whole[..cut]);
        let packs = packs(&disk);
        assert!(!scanned(&packs, &name).1.is_empty() && !packs.findings().is_empty(), "{cut}");
        let readable = ids.iter().filter(|i| read(&packs, **i).is_ok()).count();
        assert!(cut + 56 < whole.len() || readable == ids.len(), "{cut}: {readable}");
    }
}

#[test]
fn a_damaged_footer_costs_nothing_and_a_damaged_block_one_object() {
    let (sim, disk) = new_disk(1);
    let mut w = PackWriter::create(disk.clone(), Path::new(DIR)).unwrap();
    let (a, b) = (object(1, 3 * BLOCK), object(2, 100));
    put(&mut w, &a).unwrap();
    put(&mut w, &b).unwrap();
    let name = w.seal().unwrap().name;
    let len = sim.read(&path(&name)).len();
    sim.flip(&path(&name), len - 100, 3);
    sim.flip(&path(&name), 28 + 9 + BLOCK as usize + 3, 5);
    let packs = packs(&disk);
    read(&packs, (Kind::Object, a.0.id)).unwrap();
    read(&packs, (Kind::Object, b.0.id)).unwrap();
    let (things, damage) = scanned(&packs, &name);
    assert_eq!(things.len(), 2);
    let named = |d: &&Finding| d.of == Some((Kind::Object, a.0.id)) && d.block == Some(1);
    assert_eq!(damage.iter().filter(named).count(), 1, "{damage:?}");
    assert_eq!(damage.len(), 2, "{damage:?}");
}

#[test]
fn packs_come_and_go() {
    let (sim, disk) = new_disk(1);
    let packs = packs(&disk);
    let (a, b) = (object(1, 10), object(2, 10));
    let one = |o| {
        let mut w = PackWriter::create(disk.clone(), Path::new(DIR)).unwrap();
        put(&mut w, o).unwrap();
        w.seal().unwrap().name
    };
    let (first, second, copy) = (one(&a), one(&b), one(&a));
    assert!(!packs.has_object(&a.0.id));
    packs.refresh().unwrap();
    assert!(packs.has_object(&a.0.id) && packs.has_object(&b.0.id));
    sim.lose(&path(&second));
    sim.lose(&path(&first));
    packs.refresh().unwrap();
    assert!(!packs.has_object(&b.0.id));
    assert_eq!(packs.pack_of_object(&a.0.id), Some(copy));
    read(&packs, (Kind::Object, a.0.id)).unwrap();
}

#[test]
fn what_a_pack_holds_does_not_hang_on_reading_it_again() {
    let (sim, disk, ..) = tiny();
    let packs = packs(&disk);
    let name = packs.pack_names().remove(0);
    let before = packs.listing(&name);
    assert!(before.sound && !before.things.is_empty());
    sim.write(&path(&name), b"");
    packs.refresh().unwrap();
    assert_eq!((packs.listing(&name).things, packs.listing(&name).bytes), (before.things, before.bytes));
}

/// More packs than are worth reading each, the file of their footers beside them, and the ids of what each holds.
fn many() -> (SimDisk, Arc<dyn Disk>, BTreeMap<String, Id>) {
    let (sim, disk) = new_disk(1);
    let one = |n: u8| {
        let mut w = PackWriter::create(disk.clone(), Path::new(DIR)).unwrap();
        let o = object(n, 10 + n as u64);
        put(&mut w, &o).unwrap();
        (w.seal().unwrap().name, o.0.id)
    };
    let ids: BTreeMap<String, Id> = (0..70).map(one).collect();
    packs(&disk).save_footers().unwrap();
    (sim, disk, ids)
}

#[test]
fn what_the_file_of_footers_says_is_what_the_packs_say() {
    let (sim, disk, ids) = many();
    let all =
        |packs: &Packs| -> Vec<_> { ids.keys().map(|n| (packs.listing(n).bytes, packs.listing(n).things)).collect() };
    let file = Path::new(DIR).join("footers");
    let whole = sim.read(&file);
    sim.lose(&file);
    let of_packs = all(&packs(&disk));
    assert!(of_packs.iter().all(|(_, things)| things.len() == 1));
    // Where the file is sound, a pack's own footer is not read, and what is wrong with it is found by who looks there.
    sim.write(&file, &whole);
    let first = ids.keys().next().unwrap();
    let sound = sim.read(&path(first));
    sim.flip(&path(first), sound.len() - 70, 1);
    let opened = packs(&disk);
    assert_eq!(all(&opened), of_packs);
    assert!(opened.listing(first).sound && opened.findings().is_empty());
    ids.values().for_each(|id| read(&opened, (Kind::Object, *id)).unwrap());
    let held = opened.object(&ids[first]).unwrap();
    let moves = opened.moves();
    opened.distrust_footers().unwrap();
    assert!(!opened.listing(first).sound && opened.findings().len() == 1 && opened.moves() > moves);
    assert_eq!((all(&opened), opened.objects().len()), (of_packs.clone(), ids.len()));
    opened.read_block(&held, 0, &mut vec![]).unwrap();
    sim.write(&path(first), &sound);
    // Whatever is wrong with the file, nothing else is.
    for at in 0..whole.len() {
        let mut bad = whole.clone();
        bad[at] ^= 1 << (at % 8);
        sim.write(&file, &bad);
        assert_eq!(all(&packs(&disk)), of_packs, "flipped at {at}");
    }
    for cut in (0..whole.len()).step_by(7) {
        sim.write(&file, &whole[..cut]);
        assert_eq!(all(&packs(&disk)), of_packs, "cut at {cut}");
    }
    for more in [vec![0; 1 << 17], vec![255; 99], whole.clone()] {
        sim.write(&file, &[&whole[..], &more].concat());
        assert_eq!(all(&packs(&disk)), of_packs);
    }
}

#[test]
fn the_file_of_footers_follows_the_packs() {
    let (sim, disk, ids) = many();
    let file = Path::new(DIR).join("footers");
    let written = sim.read(&file);
    let gone: Vec<_> = ids.keys().take(20).collect();
    gone.iter().for_each(|name| sim.lose(&path(name)));
    let opened = packs(&disk);
    let left: Vec<_> = ids.keys().skip(20).cloned().collect();
    assert_eq!(opened.pack_names(), left);
    assert!(ids.iter().all(|(name, id)| opened.has_object(id) == left.contains(name)));
    // It is written anew when enough packs are not in it, and not before.
    for n in 0..40 {
        opened.save_footers().unwrap();
        assert_eq!(sim.read(&file) == written, n <= 32, "{n}");
        let mut w = PackWriter::create(disk.clone(), Path::new(DIR)).unwrap();
        put(&mut w, &object(100 + n, 10)).unwrap();
        w.seal().unwrap();
        opened.refresh().unwrap();
    }
    let again = packs(&disk);
    assert_eq!((again.pack_names(), again.objects().len()), (opened.pack_names(), 90));
    assert!(again.findings().is_empty());
}

#[test]
fn a_crash_while_the_file_of_footers_is_written_costs_nothing() {
    let mut crashed = 0;
    for at in 0.. {
        let (sim, disk, ids) = many();
        sim.lose(&Path::new(DIR).join("footers"));
        let held = packs(&disk);
        sim.crash_at(sim.ops() + at);
        let saved = held.save_footers().is_ok();
        let after: Arc<dyn Disk> = Arc::new(sim.reboot());
        let opened = packs(&after);
        ids.values().for_each(|id| read(&opened, (Kind::Object, *id)).unwrap());
        opened.save_footers().unwrap();
        if saved {
            break;
        }
        crashed += 1;
    }
    assert!(crashed >= 3, "{crashed}");
}

/// What any two of these do to the directory of packs, a refresh finds as an opening would.
#[test]
fn a_refresh_finds_what_an_opening_finds() {
    let objects: Vec<_> = (1..=3).map(|n| object(n, 10)).collect();
    for order in 0..64 {
        let (sim, disk) = new_disk(1);
        let sealed = |which: usize| {
            let mut w = PackWriter::create(disk.clone(), Path::new(DIR)).unwrap();
            objects.iter().enumerate().filter(|(i, _)| which >> i & 1 == 1).for_each(|(_, o)| put(&mut w, o).unwrap());
            w.seal().unwrap().name
        };
        let held = packs(&disk);
        for which in [order & 7, order >> 3, 7] {
            let names = [sealed(which), sealed(order & 7)];
            held.refresh().unwrap();
            sim.lose(&path(&names[order % 2]));
            let moves = held.moves();
            held.refresh().unwrap();
            assert!(held.moves() > moves);
            let (opened, none) = (packs(&disk), Vec::<Finding>::new());
            for (o, _) in &objects {
                assert_eq!(held.pack_of_object(&o.id), opened.pack_of_object(&o.id), "{order}");
                assert_eq!(read(&held, (Kind::Object, o.id)).is_ok(), held.has_object(&o.id));
            }
            assert_eq!((held.pack_names(), held.findings()), (opened.pack_names(), none));
        }
    }
}

#[test]
fn a_pack_of_a_later_mgit_is_refused_and_the_others_are_not() {
    let (sim, disk, ids, _) = tiny();
    for later in [header_of(b"mgitpack", 2, 0, [9; 8]), header_of(b"mgitpack", 1, 1, [9; 8])] {
        sim.write(&path("0909090909090909"), &later);
        let packs = packs(&disk);
        ids.iter().for_each(|i| read(&packs, *i).unwrap());
        let e = packs.version(&Id([3; 32])).unwrap_err();
        assert!(matches!(e, StoreError::Later { .. }) && e.to_string().contains("later mgit"), "{e}");
        assert!(packs.scan("0909090909090909", &mut |_| ()).is_err());
    }
}

#[test]
fn an_unfinished_pack_leaves_nothing_and_misuse_is_refused() {
    let (sim, disk) = new_disk(1);
    let mut w = PackWriter::create(disk.clone(), Path::new(DIR)).unwrap();
    let mut before = sim.files();
    before.retain(|f| f.extension().is_none_or(|e| e != "tmp"));
    w.put_block(&[1, 2, 3]).unwrap();
    let (a, _) = object(65, 5);
    assert!(matches!(w.put_object(&a), Err(StoreError::Misuse(_))));
    assert!(matches!(w.put_version(b"{}"), Err(StoreError::Misuse(_))));
    assert!(remove_leftovers(&*disk, Path::new(DIR)).unwrap().is_empty());
    assert!(w.seal().is_err());
    assert_eq!(sim.files(), before);
    sim.write(&Path::new(DIR).join("00000000000000aa.tmp"), b"half");
    assert_eq!(remove_leftovers(&*disk, Path::new(DIR)).unwrap(), ["00000000000000aa.tmp"]);
    assert_eq!(sim.files(), before);
}

#[test]
fn the_real_disk_holds_packs_too() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    create(&disk, &dir.path().join("r")).unwrap();
    let at = dir.path().join("r/packs");
    let mut w = PackWriter::create(disk.clone(), &at).unwrap();
    let a = object(7, 40 * BLOCK);
    put(&mut w, &a).unwrap();
    let name = w.seal().unwrap().name;
    let packs = Packs::open(disk, &at).unwrap();
    read(&packs, (Kind::Object, a.0.id)).unwrap();
    assert!(scanned(&packs, &name).1.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_bytes_make_a_reader_panic(
        patches in proptest::collection::vec((any::<prop::sample::Index>(), any::<[u8; 4]>()), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let (sim, disk, ids, name) = tiny();
        let mut bytes = sim.read(&path(&name));
        let whole = bytes.clone();
        for (at, patch) in &patches {
            let at = at.index(bytes.len() - 4);
            bytes[at..at + 4].copy_from_slice(patch);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        sim.write(&path(&name), &bytes);
        let packs = packs(&disk);
        let (things, damage) = scanned(&packs, &name);
        prop_assert!(bytes == whole || !damage.is_empty());
        prop_assert!(things.iter().all(|t| ids.contains(t)));
        ids.iter().for_each(|i| drop(read(&packs, *i)));
    }
}

/// One commit as an import does it.
fn commit(disk: &Arc<dyn Disk>, n: u8) -> Result<Position> {
    let mut w = PackWriter::create(disk.clone(), Path::new(DIR))?;
    put(&mut w, &object(n, 18 * BLOCK + 5))?;
    let id = w.put_version(&[n; 10])?;
    let sealed = w.seal()?;
    let event = Event::Commit {
        model: "m".parse().expect("a name"),
        version: crate::model::name::VersionName::numbered(n as u64),
        id,
        pack: sealed.name.clone(),
        created: jiff::Timestamp::UNIX_EPOCH,
        bytes: 1,
        previous: None,
        guess: false,
        settled: false,
        lossy: false,
        replaces: None,
        parents: vec![],
    };
    Journal::open(disk.clone(), Path::new("/r/journal"))?.append(&[event])
}

/// Every version that the journal names, each found whole; and no pack is damaged.
fn whole_versions(disk: &Arc<dyn Disk>, acknowledged: Option<Position>) -> Vec<Id> {
    let packs = packs(disk);
    for name in packs.pack_names() {
        assert_eq!(scanned(&packs, &name).1, []);
    }
    let journal = Journal::open(disk.clone(), Path::new("/r/journal")).unwrap();
    journal.replay(acknowledged, &mut |_, _| Ok(())).unwrap();
    let mut ids = Vec::new();
    let each = &mut |events: &[Event], _| {
        for e in events {
            let Event::Commit { id, pack, .. } = e else { panic!("{e:?}") };
            assert!(packs.pack_names().contains(pack));
            read(&packs, (Kind::Version, *id)).unwrap();
            read(&packs, (Kind::Object, object(packs.version(id).unwrap()[0], 18 * BLOCK + 5).0.id)).unwrap();
            ids.push(*id);
        }
        Ok(())
    };
    journal.replay(None, each).unwrap();
    ids
}

#[test]
fn a_crash_at_every_operation_leaves_whole_versions_only() {
    for seed in 0..8 {
        let (mut op, mut finished) = (0, false);
        while !finished {
            let (sim, disk) = new_disk(seed * 1000 + op);
            sim.crash_at(sim.ops() + op);
            let (mut done, mut acknowledged) = (vec![], None);
            for n in 1..4 {
                let Ok(at) = commit(&disk, n) else { break };
                acknowledged = Some(at);
                done.push(Id::of(&[n; 10]));
            }
            finished = done.len() == 3;
            let after: Arc<dyn Disk> = Arc::new(sim.reboot());
            let found = whole_versions(&after, acknowledged);
            assert!(found.starts_with(&done) && found.len() <= done.len() + 1, "operation {op}");
            remove_leftovers(&*after, Path::new(DIR)).unwrap();
            let names = after.list(Path::new(DIR)).unwrap();
            assert!(names.iter().all(|n| n.ends_with(".pack") || n == "gate"), "{names:?}");
            let at = commit(&after, 9).unwrap();
            assert_eq!(whole_versions(&after, Some(at)).len(), found.len() + 1);
            op += 1;
        }
        assert!(op > 20, "{op}");
    }
}

#[test]
fn a_fault_at_every_operation_is_an_error_and_no_more() {
    for fault in [Fault::Broken, Fault::Full] {
        let (mut op, mut finished) = (0, false);
        while !finished {
            let (sim, disk) = new_disk(op);
            commit(&disk, 1).unwrap();
            sim.fail_at(sim.ops() + op, fault);
            finished = commit(&disk, 2).is_ok();
            sim.heal();
            let found = whole_versions(&disk, None);
            assert_eq!(found.len(), if finished { 2 } else { 1 }, "operation {op}");
            remove_leftovers(&*disk, Path::new(DIR)).unwrap();
            let at = commit(&disk, 3).unwrap();
            assert_eq!(whole_versions(&disk, Some(at)).len(), found.len() + 1);
            op += 1;
        }
        assert!(op > 5, "{op}");
    }
}

#[test]
fn a_full_disk_leaves_no_pack() {
    let (sim, disk) = new_disk(1);
    commit(&disk, 1).unwrap();
    let before = sim.files();
    sim.full_from(Some(sim.ops()));
    assert!(commit(&disk, 2).is_err());
    sim.full_from(None);
    let mut w = PackWriter::create(disk.clone(), Path::new(DIR)).unwrap();
    sim.full_from(Some(sim.ops()));
    let failed = put(&mut w, &object(3, 40 * BLOCK)).unwrap_err();
    assert_eq!(failed.io().and_then(std::io::Error::raw_os_error), Some(libc::ENOSPC));
    assert!(w.seal().is_err());
    sim.full_from(None);
    assert_eq!(sim.files(), before);
}

#[test]
fn what_counts_is_durable_before_the_other_copy_goes() {
    for seed in 0..40 {
        let (sim, disk) = new_disk(seed);
        let (dir, thing) = (Path::new(DIR), object(65, 5));
        let seal = |disk: &Arc<dyn Disk>| {
            let mut w = PackWriter::create_beside(disk.clone(), dir).unwrap();
            put(&mut w, &thing).unwrap();
            w.seal()
        };
        let old = seal(&disk).unwrap().name.clone();
        sim.crash_at(sim.ops() + 4); // When all but the name of the second is durable.
        assert!(seal(&disk).is_err());
        let sim = sim.restart();
        let disk: Arc<dyn Disk> = Arc::new(sim.clone());
        assert_eq!(packs(&disk).pack_names().len(), 2);
        sim.crash_at(sim.ops() + 2); // Within the removal, when the old one is gone.
        assert!(packs(&disk).remove(&[old]).is_err());
        let disk: Arc<dyn Disk> = Arc::new(sim.reboot());
        packs(&disk).object(&thing.0.id).unwrap();
    }
}
