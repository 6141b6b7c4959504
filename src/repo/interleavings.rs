//! Readers of one block, a pack that moves beneath them or beside another process, and pins, under threads that take turns
//! in many orders (feature `shuttle`).

use std::path::Path;
use std::sync::Arc;

use shuttle::thread;

use super::Repo;
use super::read::{OpenObject, tests::two};
use crate::codec;
use crate::model::id::{Id, block_value, object_id};
use crate::model::object::{BlockInfo, ObjectRecord};
use crate::model::recipe::{Extent, Recipe};
use crate::store::disk::Disk;
use crate::store::pack::{Kind, PackWriter};
use crate::store::sim::SimDisk;

const DIR: &str = "/r";
const BYTES: [u8; 5] = *b"bytes";

fn explore(f: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_random(f.clone(), 1_000);
    shuttle::check_pct(f.clone(), 2_000, 2);
    shuttle::check_pct(f, 1_000, 3);
}

/// A repository of one object of one block, and a recipe of it.
fn repo() -> (SimDisk, Arc<Repo>, ObjectRecord, Id) {
    let sim = SimDisk::new(1);
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    crate::store::create(&disk, Path::new(DIR)).unwrap();
    let (value, shape) = (block_value(&BYTES, 0, 5), vec![5]);
    let object = ObjectRecord {
        id: object_id("U8", &shape, &Id(value)),
        dtype: "U8".to_owned(),
        shape,
        length: 5,
        cost: 1,
        row_bytes: 0,
        bases: vec![],
        params: vec![],
        blocks: vec![BlockInfo { tag: codec::RAW, encoded: 5 }],
        values: vec![value],
        empty_frames: false,
    };
    let mut writer = PackWriter::create(disk.clone(), &Path::new(DIR).join("packs")).unwrap();
    writer.put_block(&BYTES).unwrap();
    writer.put_object(&object).unwrap();
    let extents = vec![Extent { object: object.id, offset: 0, length: 5 }];
    let recipe = writer.put_recipe(&Recipe { digest: Id::of(&BYTES), extents }).unwrap();
    writer.seal().unwrap();
    (sim, Repo::open(Path::new(DIR), disk, 1 << 20).unwrap(), object, recipe)
}

/// What gc and repack do: the same in a new pack, then the old one goes.
fn moved(repo: &Repo, object: &ObjectRecord, recipe: &Id) {
    let old = repo.packs.pack_names();
    let mut writer = PackWriter::create(repo.disk.clone(), &Path::new(DIR).join("packs")).unwrap();
    repo.packs.copy(Kind::Object, &object.id, &mut writer).unwrap();
    repo.packs.copy(Kind::Recipe, recipe, &mut writer).unwrap();
    writer.seal().unwrap();
    repo.refresh().unwrap();
    repo.packs.remove(&old).unwrap();
    repo.refresh().unwrap();
}

#[test]
fn those_who_want_a_block_at_once_share_one_decoding() {
    explore(|| {
        let (_, repo, object, _) = repo();
        let read = || {
            let (repo, id) = (repo.clone(), object.id);
            thread::spawn(move || repo.block(&*repo.open_object(&id).unwrap(), 0).unwrap())
        };
        let blocks: Vec<_> = [read(), read(), read()].into_iter().map(|h| h.join().unwrap()).collect();
        assert!(blocks.iter().all(|b| b[..] == BYTES && Arc::ptr_eq(b, &blocks[0])));
    });
}

#[test]
fn readers_find_what_moves_to_another_pack_beneath_them() {
    // One alone finds no block that another has read.
    for readers in [1, 2] {
        explore(move || {
            let (_, repo, object, recipe) = repo();
            let read = |_| {
                let repo = repo.clone();
                thread::spawn(move || {
                    let mut bytes = [0; 5];
                    repo.open_file(&recipe).unwrap().read_at(0, &mut bytes).unwrap();
                    assert_eq!(bytes, BYTES);
                })
            };
            let reading: Vec<_> = (0..readers).map(read).collect();
            moved(&repo, &object, &recipe);
            reading.into_iter().chain([read(0)]).for_each(|h| h.join().unwrap());
            assert_eq!(repo.packs.pack_names().len(), 1);
        });
    }
}

#[test]
fn another_process_finds_what_moves_while_it_opens_or_looks_again() {
    explore(|| {
        let (sim, repo, object, recipe) = repo();
        let disk: Arc<dyn Disk> = Arc::new(sim);
        let held = Repo::open(Path::new(DIR), disk.clone(), 1 << 20).unwrap();
        let read = move |repo: Arc<Repo>| {
            let mut bytes = [0; 5];
            repo.open_file(&recipe).unwrap().read_at(0, &mut bytes).unwrap();
            assert_eq!(bytes, BYTES);
        };
        let opens = thread::spawn(move || read(Repo::open(Path::new(DIR), disk, 1 << 20).unwrap()));
        let looks = thread::spawn(move || {
            held.refresh().unwrap();
            read(held);
        });
        moved(&repo, &object, &recipe);
        moved(&repo, &object, &recipe);
        [opens, looks].into_iter().for_each(|h| h.join().unwrap());
    });
}

#[test]
fn readers_of_an_old_and_a_new_view_do_not_wait_for_each_other() {
    for gone in [false, true] {
        explore(move || {
            let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
            crate::store::create(&disk, Path::new(DIR)).unwrap();
            let (old, first) = two(&disk, Path::new(DIR), ["U8", "I8"]);
            let repo = Repo::open(Path::new(DIR), disk.clone(), 1 << 20).unwrap();
            let before = repo.open_object(&first).unwrap();
            let (_, second) = two(&disk, Path::new(DIR), ["I8", "U8"]);
            repo.refresh().unwrap();
            if gone {
                repo.packs.remove(&[old]).unwrap();
            }
            let after = repo.open_object(&second).unwrap();
            let read = |view: Arc<OpenObject>| {
                let repo = repo.clone();
                thread::spawn(move || assert_eq!(repo.block(&view, 0).unwrap()[..], [7]))
            };
            [read(before), read(after)].into_iter().for_each(|h| h.join().unwrap());
        });
    }
}

#[test]
fn a_damaged_block_is_nobody_s() {
    explore(|| {
        let (sim, repo, object, _) = repo();
        let path = Path::new(DIR).join("packs").join(format!("{}.pack", repo.packs.pack_names()[0]));
        let mut bad = sim.read(&path);
        let at = bad.windows(5).position(|w| w == BYTES).unwrap();
        bad[at] ^= 1;
        sim.write(&path, &bad);
        let read = || {
            let (repo, id) = (repo.clone(), object.id);
            thread::spawn(move || assert!(repo.block(&*repo.open_object(&id).unwrap(), 0).is_err()))
        };
        [read(), read(), read()].into_iter().for_each(|h| h.join().unwrap());
    });
}

#[test]
fn what_is_open_is_pinned_until_its_last_reader_goes() {
    explore(|| {
        let (_, repo, _, recipe) = repo();
        let open = || {
            let repo = repo.clone();
            thread::spawn(move || {
                let pin = repo.pin(&recipe);
                assert_eq!(repo.pinned(), [recipe]);
                drop(pin);
            })
        };
        [open(), open(), open()].into_iter().for_each(|h| h.join().unwrap());
        assert!(repo.pinned().is_empty());
    });
}
