//! Writers of a draft beside its sealing, under threads that take turns in many orders (feature `shuttle`): what a version
//! holds is what was written, all of it, or the draft stays.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use shuttle::thread;

use super::{Area, Begun, Slot, key};
use crate::model::event::Event;
use crate::model::id::Id;
use crate::model::name::VersionName;
use crate::model::record::{EntryKind, FileEntry, VersionRecord};
use crate::repo::Repo;
use crate::repo::engine::Engine;
use crate::store::catalog::Catalog;
use crate::store::disk::Disk;
use crate::store::pack::PackWriter;
use crate::store::sim::SimDisk;

/// A draft `m@v1` with one file, in a real directory, and a repository that is simulated.
struct Scene {
    area: Arc<Area>,
    engine: Engine,
    slot: Slot,
    /// Bytes whose writing was acknowledged.
    written: Mutex<u64>,
    _dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let root = Path::new("/r");
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
        crate::store::create(&disk, root).unwrap();
        let repo = Repo::open(root, disk.clone(), 1 << 20).unwrap();
        let lock = crate::store::lock_exclusive(&disk, root, false).unwrap().unwrap();
        let engine = Engine::with(repo, Catalog::temporary().unwrap(), lock).unwrap();
        let area = Arc::new(Area::new(dir.path()));
        let slot = Slot::of(&VersionName::numbered(1), &"m".parse().unwrap());
        fs::create_dir_all(area.path(&slot)).unwrap();
        fs::write(area.path(&slot).join("w"), b"").unwrap();
        Scene { area, engine, slot, written: Mutex::new(0), _dir: dir }
    }

    /// As the mount does it: open, write and close, each inside the gate. `false`: the draft is gone.
    fn write(&self) -> bool {
        let opened = {
            let _gate = self.area.enter();
            OpenOptions::new().append(true).open(self.area.path(&self.slot).join("w")).map(|file| {
                let writing = self.area.writing(key(&file.metadata().unwrap()));
                (file, writing)
            })
        };
        let Ok((mut file, writing)) = opened else { return false };
        {
            let _gate = self.area.enter();
            file.write_all(b"x").unwrap();
            *self.written.lock().unwrap() += 1;
        }
        thread::yield_now();
        drop::<File>(file);
        drop(writing);
        true
    }

    /// The bytes of the version, if it came to that.
    fn seal(&self) -> Option<u64> {
        let begun = self.area.begin(&self.engine, &self.slot.model, Some(&self.slot.name), None).unwrap();
        let Begun::Job(job) = begun else { return None };
        let encoded = fs::metadata(job.dir.join("w")).unwrap().len();
        thread::yield_now();
        let event = self.commit(encoded);
        self.area.publish(&self.engine, event, &[], &self.slot, &job.mark).unwrap().map(|_| encoded)
    }

    /// A version record in a pack of its own, whose one directory's name tells how much was encoded.
    fn commit(&self, encoded: u64) -> Event {
        let zero = Id([0; 32]);
        let path = format!("d{encoded}");
        let entry = FileEntry { path, kind: EntryKind::Directory, bytes: 0, digest: zero, recipe: zero };
        let record = VersionRecord {
            model: self.slot.model.clone(),
            version: self.slot.version().unwrap(),
            created: Timestamp::UNIX_EPOCH,
            message: String::new(),
            previous: None,
            parents: vec![],
            origin: None,
            merge: None,
            lossy: None,
            files: vec![entry],
        };
        let disk = self.engine.repo.disk.clone();
        let mut writer = PackWriter::create(disk, &self.engine.repo.dir.join("packs")).unwrap();
        let pack = writer.name().to_owned();
        let id = writer.put_version(&record.encode()).unwrap();
        writer.seal().unwrap();
        Event::commit(&record, id, pack, false, None)
    }
}

fn play() {
    let scene = Arc::new(Scene::new());
    let writer = || {
        let scene = scene.clone();
        thread::spawn(move || {
            scene.write();
        })
    };
    let hands = [writer(), writer()];
    let sealed = scene.seal();
    hands.into_iter().for_each(|h| h.join().unwrap());
    let (written, there) = (*scene.written.lock().unwrap(), scene.area.path(&scene.slot).exists());
    match sealed {
        Some(encoded) => assert_eq!((encoded, there), (written, false), "no write that was acknowledged is lost"),
        None => assert!(there && fs::metadata(scene.area.path(&scene.slot).join("w")).unwrap().len() == written),
    }
    let versions = scene.engine.catalog().all().unwrap().len();
    assert_eq!(versions, sealed.is_some() as usize);
}

#[test]
fn no_write_falls_between_a_commit_s_last_look_and_its_end() {
    shuttle::check_random(play, 100);
    shuttle::check_pct(play, 100, 3);
}
