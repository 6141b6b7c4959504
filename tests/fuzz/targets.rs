//! What mgit reads that others may have written, given any bytes at all: six functions, which libFuzzer calls (`main.rs`)
//! and so do the ordinary tests (`../fuzz_corpus.rs`).
//!
//! Each says whether it could make sense of the bytes, and panics where something that holds for all bytes does not.
//! The checks of packs and journals are made right first as well, or hardly any change would get past them.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use mgit::control::{self, Mounted, Request, Response};
use mgit::model::event::Event;
use mgit::model::graph;
use mgit::model::id::Id;
use mgit::model::layout::{self, Piece, What};
use mgit::model::name::{ModelName, VersionName, VersionRef};
use mgit::model::object::ObjectRecord;
use mgit::model::pattern::VersionPattern;
use mgit::model::record::VersionRecord;
use mgit::repo::Repo;
use mgit::repo::draft::Area;
use mgit::repo::engine::Engine;
use mgit::repo::progress::Silent;
use mgit::store::journal::{self, Journal};
use mgit::store::packs::Listed;
use mgit::store::sim::SimDisk;
use mgit::store::{Catalog, Disk, Kind, ScanItem, StoreError, lock_exclusive};
use mgit::vfs::drafts::Drafts;
use mgit::vfs::fake::Fake;
use mgit::vfs::{Found, ROOT, Vfs, VfsError};

pub type Target = fn(&[u8]) -> bool;

pub const TARGETS: [(&str, Target); 6] = [
    ("safetensors", safetensors),
    ("packs", packs),
    ("journal", journal),
    ("versions", versions),
    ("control", control),
    ("names", names),
];

/// Runs the target of that name.
pub fn run(name: &str, data: &[u8]) -> bool {
    TARGETS.iter().find(|t| t.0 == name).expect("a target has this name").1(data)
}

// ---- safetensors: the file's size (8 bytes), then how the file begins

fn safetensors(data: &[u8]) -> bool {
    let Some((size, file)) = data.split_first_chunk() else { return false };
    let size = u64::from_le_bytes(*size);
    let Ok(length) = layout::header_length(&file[..file.len().min(8)], size) else { return false };
    let Some(header) = file.get(8..).and_then(|rest| rest.get(..length as usize)) else { return false };
    let Ok(pieces) = layout::cut(header, size) else { return false };
    let (mut at, mut info) = (0, serde_json::Map::new());
    for piece in &pieces {
        assert_eq!(piece.offset, at, "pieces cover the file");
        assert!(piece.length > 0 && piece.row_bytes() <= piece.length);
        at += piece.length;
        if let What::Tensor { name, dtype, shape } = &piece.what {
            let from = piece.offset - pieces[0].length;
            let told = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [from, from + piece.length]});
            assert!(info.insert(name.clone(), told).is_none(), "a name comes once");
        }
    }
    assert_eq!(at, size, "pieces cover the file");
    let (text, data) = (layout::header(&info.into()), size - pieces[0].length);
    if let Some(size) = data.checked_add(text.len() as u64) {
        let again = layout::cut(&text[8..], size).expect("what was found can be told again");
        let places = |all: &[Piece]| -> Vec<_> {
            all[1..].iter().map(|p| (p.offset - all[0].length, p.length, p.what.clone())).collect()
        };
        assert_eq!(places(&again), places(&pieces));
    }
    true
}

// ---- packs: a pack file

const PACK: &str = "0123456789abcdef";
const REPO: &str = "/r";
/// Bytes of a file that are read.
const ENOUGH: u64 = 1 << 18;

fn packs(data: &[u8]) -> bool {
    read_pack(data) | read_pack(&signed_pack(data))
}

/// A disk with a repository of one pack and one journal.
fn disk(pack: &[u8], log: &[u8]) -> Arc<SimDisk> {
    let sim = SimDisk::new(1);
    mgit::store::create(&(Arc::new(sim.clone()) as Arc<dyn Disk>), Path::new(REPO)).expect("an empty disk takes it");
    sim.write(&Path::new(REPO).join(format!("packs/{PACK}.pack")), pack);
    if !log.is_empty() {
        sim.write(&Path::new(REPO).join("journal/000001.log"), log);
    }
    Arc::new(sim)
}

fn read_pack(bytes: &[u8]) -> bool {
    let sim = disk(bytes, &[]);
    let repo = Repo::open(Path::new(REPO), sim, 1 << 20).expect("a bad pack never stops a repository");
    let mut sound = 0;
    let scanned = repo.packs.scan(PACK, &mut |item| match item {
        ScanItem::Object(o) => {
            let again = ObjectRecord::decode(&o.record.encode()).expect("a record can be written again");
            assert_eq!(again, ObjectRecord { empty_frames: false, ..o.record.clone() });
        }
        ScanItem::Block { owner, index, encoded } => {
            assert_eq!(owner.record.blocks[index as usize].encoded as usize, encoded.len());
        }
        ScanItem::Recipe { id, recipe } => assert_eq!(recipe.id(), id),
        ScanItem::Version { id, bytes } => assert_eq!(Id::of(bytes), id),
        ScanItem::Damage(_) => {}
    });
    assert!(matches!(scanned, Ok(_) | Err(StoreError::Later { .. } | StoreError::Missing { .. })), "{scanned:?}");
    for Listed { kind, id, .. } in repo.packs.listing(PACK).things {
        sound += match kind {
            Kind::Object => read_object(&repo, &id),
            Kind::Recipe => read_file(&repo, &id),
            _ => repo.record(&id).is_ok(),
        } as usize;
    }
    sound > 0
}

fn read_object(repo: &Arc<Repo>, id: &Id) -> bool {
    let Ok(object) = repo.open_object(id) else { return false };
    let read = |index| repo.block(&object, index).map(|block| assert!(!block.is_empty())).is_ok();
    (0..object.blocks().min(4)).filter(|index| read(*index)).count() > 0
}

fn read_file(repo: &Arc<Repo>, recipe: &Id) -> bool {
    let Ok(file) = repo.open_file(recipe) else { return false };
    let mut bytes = vec![0; file.size().min(ENOUGH) as usize];
    file.read_at(0, &mut bytes).is_ok()
}

fn check4(parts: &[&[u8]]) -> [u8; 4] {
    let hash = parts.iter().fold(blake3::Hasher::new(), |mut h, part| h.update(part).clone()).finalize();
    *hash.as_bytes().first_chunk().expect("a hash has 32 bytes")
}

fn sign_header(file: &mut [u8]) {
    if let Some((head, check)) = file.get_mut(..28).map(|header| header.split_at_mut(24)) {
        check.copy_from_slice(&check4(&[head]));
    }
}

fn length(bytes: &[u8]) -> Option<usize> {
    bytes.first_chunk().map(|len| u32::from_le_bytes(*len) as usize)
}

/// The pack with all its checks right: what somebody would make who wants to be believed.
fn signed_pack(data: &[u8]) -> Vec<u8> {
    let mut out = data.to_vec();
    sign_header(&mut out);
    let mut at = 28;
    while let Some(end) = out.get(at + 1..).and_then(length).map(|len| at + 9 + len).filter(|end| *end <= out.len()) {
        let check = check4(&[&out[at..at + 5], &out[at + 9..end]]);
        out[at + 5..at + 9].copy_from_slice(&check);
        let digest = blake3::hash(&out[at + 9..end]);
        if out[at] == Kind::Footer as u8 && out.len() - end == 56 {
            out[end + 16..end + 48].copy_from_slice(digest.as_bytes());
        }
        at = end;
    }
    out
}

// ---- journal: a journal file

fn journal(data: &[u8]) -> bool {
    read_journal(data) | read_journal(&signed_journal(data))
}

fn replayed(sim: &SimDisk) -> mgit::store::Result<(Journal, Vec<Vec<Event>>)> {
    let journal = Journal::open(Arc::new(sim.clone()), &Path::new(REPO).join("journal"))?;
    let mut frames = Vec::new();
    journal.replay(None, &mut |events, _| {
        frames.push(events.to_vec());
        Ok(())
    })?;
    Ok((journal, frames))
}

fn read_journal(bytes: &[u8]) -> bool {
    let (sim, dir) = (disk(&[], bytes), Path::new(REPO).join("journal"));
    let salvaged = journal::salvage(&*sim, &dir);
    let Ok((mut log, frames)) = replayed(&sim) else {
        if let Ok(left) = salvaged {
            journal::write_anew(&*sim, &dir, &left.frames).expect("the disk works");
            assert_eq!(replayed(&sim).expect("it was written anew").1, left.frames);
        }
        return false;
    };
    assert_eq!(salvaged.expect("it can be read").frames, frames, "nothing is lost of what is whole");
    let more = [Event::Seal { id: Id([7; 32]) }];
    log.append(&more).expect("the disk works");
    drop(log);
    let (log, longer) = replayed(&sim).expect("what was appended can be read");
    assert_eq!(longer, [&frames[..], &[more.to_vec()]].concat());
    drop(log);
    open(&sim).is_ok_and(|engine| look_around(&engine))
}

/// The repository on a disk, with what its journal says.
fn open(sim: &Arc<SimDisk>) -> Result<Engine, mgit::repo::RepoError> {
    let repo = Repo::open(Path::new(REPO), sim.clone(), 1 << 20)?;
    let lock = lock_exclusive(&repo.disk, &repo.dir, false)?.expect("nobody else is here");
    Engine::with(repo, Catalog::temporary()?, lock)
}

/// Whatever the journal says, it can be told.
fn look_around(engine: &Engine) -> bool {
    let heads = engine.catalog().all().expect("the catalog can be read");
    heads.iter().for_each(|head| drop(engine.detail_of(head.clone())));
    let all =
        mgit::repo::graph::graph(engine).map(|g| (graph::json::json(&g), graph::dot::dot(&g), graph::svg::svg(&g)));
    all.is_ok() && !heads.is_empty()
}

/// The journal with all its checks right.
fn signed_journal(data: &[u8]) -> Vec<u8> {
    let mut out = data.to_vec();
    sign_header(&mut out);
    let check8 = |parts: &[&[u8]]| *blake3::hash(&parts.concat()).as_bytes().first_chunk::<8>().expect("32 bytes");
    let mut chain = check8(&[&out[..out.len().min(28)]]);
    let mut at = 28;
    while let Some(end) = out.get(at..).and_then(length).map(|len| at + 12 + len).filter(|end| *end <= out.len()) {
        chain = check8(&[&chain, &out[at..at + 4], &out[at + 12..end]]);
        out[at + 4..at + 12].copy_from_slice(&chain);
        at = end;
    }
    out
}

// ---- versions: a version record

fn versions(data: &[u8]) -> bool {
    let Ok(record) = VersionRecord::decode(data) else { return false };
    assert_eq!(VersionRecord::decode(&record.encode()).as_ref(), Ok(&record));
    let inside = |path: &str| Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    assert!(record.files.iter().all(|f| inside(&f.path)), "a path leads out");
    let fake = Fake::new();
    fake.commit_entries(record.model.as_str(), record.version.as_str(), record.files.clone());
    let vfs = Vfs::new(fake);
    let path = ["models", &record.model.dir_name(), record.version.as_str()];
    let Some(top) = path.iter().try_fold(ROOT, |dir, name| find(&vfs, dir, OsStr::new(name))) else {
        panic!("the version is not there");
    };
    let seen = walk(&vfs, top);
    let want = record.files.iter().map(|f| f.path.clone());
    let missing: Vec<String> = want.filter(|path| !seen.contains(path)).collect();
    assert!(missing.is_empty(), "{missing:?} are not in the mount");
    true
}

fn find(vfs: &Vfs<Fake>, dir: u64, name: &OsStr) -> Option<u64> {
    match vfs.lookup(dir, name) {
        Ok(Found::Entry(e)) => Some(e.attr.ino),
        _ => None,
    }
}

/// All paths below a directory. What is listed is found.
fn walk(vfs: &Vfs<Fake>, top: u64) -> BTreeSet<String> {
    let (mut seen, mut queue) = (BTreeSet::new(), vec![(String::new(), top)]);
    while let Some((prefix, dir)) = queue.pop() {
        let opened = vfs.opendir(dir).expect("a directory opens");
        let mut listed = Vec::new();
        vfs.readdir(opened.fh, 0, |l| {
            listed.push((l.name.to_owned(), l.ino, l.kind));
            false
        })
        .expect("it can be listed");
        vfs.release(opened.fh);
        for (name, ino, kind) in listed.into_iter().skip(2) {
            let found = find(vfs, dir, OsStr::new(&name));
            let page = prefix.starts_with("lineage/"); // has a number for each of its texts
            assert!(found == Some(ino) || page && found.is_some(), "{prefix}{name:?} is listed and not found");
            assert!(seen.insert(format!("{prefix}{name}")), "{prefix}{name:?} is listed twice");
            if kind == mgit::vfs::Kind::Directory {
                queue.push((format!("{prefix}{name}/"), ino));
            }
        }
    }
    seen
}

// ---- control: requests and responses, a line each

thread_local! {
    /// One that nothing was changed in.
    static ASKED: Cell<Option<Asked>> = const { Cell::new(None) };
}

fn control(data: &[u8]) -> bool {
    let (mut asked, mut sense) = (None, false);
    for line in data.split(|b| *b == b'\n').take(8) {
        if let Ok(response) = serde_json::from_slice::<Response>(line) {
            let text = serde_json::to_string(&response).expect("plain values");
            let again: Response = serde_json::from_str(&text).expect("what was told can be told again");
            assert_eq!(serde_json::to_string(&again).expect("plain values"), text);
            sense = true;
        }
        let Ok(request) = serde_json::from_slice::<Request>(line) else { continue };
        let text = serde_json::to_string(&request).expect("plain values");
        let again: Request = serde_json::from_str(&text).expect("what was asked can be asked again");
        assert_eq!(serde_json::to_string(&again).expect("plain values"), text);
        let of_this_user = matches!(request, Request::CacheList | Request::CacheAdd(_) | Request::CacheRemove(_));
        if !of_this_user {
            let asked: &Asked = asked.get_or_insert_with(|| ASKED.take().unwrap_or_else(Asked::new));
            drop(control::answer(&asked.engine, request, Some(&asked.mounted), &Silent));
        }
        sense = true;
    }
    if let Some(asked) = asked {
        check_outside(asked.dir.path());
        match asked.is_as_new() {
            true => ASKED.set(Some(asked)),
            false => drop(look_around(&asked.engine)),
        }
    }
    sense
}

/// A repository that is asked, with a draft, in a directory whose other files are no business of it.
struct Asked {
    engine: Engine,
    sim: Arc<SimDisk>,
    /// How much had been written when it was made.
    ops: u64,
    mounted: Mounted,
    dir: tempfile::TempDir,
}

impl Asked {
    fn new() -> Asked {
        let sim = disk(include_bytes!("corpus/packs/family"), include_bytes!("corpus/journal/family"));
        let dir = scratch();
        let area = Arc::new(Area::new(&dir.path().join("repo")));
        fs::create_dir_all(area.dir().join("a/draft")).expect("the disk works");
        let mounted = Mounted { mountpoint: PathBuf::from("/m"), keeper: None, drafts: area };
        let engine = open(&sim).expect("a sound repository");
        Asked { engine, ops: sim.ops(), sim, mounted, dir }
    }

    fn is_as_new(&self) -> bool {
        let drafts = self.mounted.drafts.list();
        self.sim.ops() == self.ops && drafts.is_ok_and(|d| matches!(&d[..], [one] if one.slot.name == "draft"))
    }
}

/// A directory with room for a repository, and a file outside of that.
fn scratch() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("the disk works");
    fs::create_dir_all(dir.path().join("repo/drafts")).expect("the disk works");
    fs::write(dir.path().join("outside"), "x").expect("the disk works");
    dir
}

fn check_outside(dir: &Path) {
    let names = |dir: &Path| -> BTreeSet<_> {
        fs::read_dir(dir).expect("it is there").map(|e| e.expect("the disk works").file_name()).collect()
    };
    assert_eq!(names(dir), BTreeSet::from(["outside".into(), "repo".into()]), "something was written outside");
    assert_eq!(names(&dir.join("repo")), BTreeSet::from(["drafts".into()]), "something was written outside");
    assert_eq!(fs::read(dir.join("outside")).expect("it is there"), b"x", "a file outside was changed");
}

// ---- names: what the kernel asks, a line each: a letter for what, then the name

fn names(data: &[u8]) -> bool {
    let sense = std::str::from_utf8(data).is_ok_and(parse_names);
    let (dir, fake) = (scratch(), Fake::new());
    fake.commit("acme/m", "v1", &[("config.json", b"{}"), ("sub/w.bin", &[7; 99]), ("void/", b"")]);
    fake.commit("m", "v1", &[("w", b"1")]);
    fake.settle("m");
    let area = Arc::new(Area::new(&dir.path().join("repo")));
    let vfs = Vfs::new(fake).with_drafts(Drafts::open(area, 0).expect("the disk works"));
    let mut here = ROOT;
    for line in data.split(|b| *b == b'\n').take(32).filter(|line| !line.is_empty()) {
        let (name, more) = match line.iter().position(|b| *b == b'\t') {
            Some(tab) => (&line[1..tab.max(1)], &line[tab + 1..]),
            None => (&line[1..], &b""[..]),
        };
        here = ask(&vfs, here, line[0], OsStr::from_bytes(name), OsStr::from_bytes(more));
    }
    walk(&vfs, ROOT);
    drop(vfs);
    check_outside(dir.path());
    sense || fs::read_dir(dir.path().join("repo/drafts")).expect("it is there").next().is_some()
}

/// What a name is, it is in all its forms.
fn parse_names(text: &str) -> bool {
    let model = text.parse::<ModelName>();
    if let Ok(model) = &model {
        assert_eq!((model.as_str(), ModelName::from_dir_name(&model.dir_name()).as_ref()), (text, Ok(model)));
        assert!(is_plain(model.dir_name().as_bytes()));
    }
    if let Ok(version) = text.parse::<VersionName>() {
        assert!(version.as_str() == text && is_plain(text.as_bytes()));
        let more = version.with_suffix(u64::MAX).to_string();
        assert!(more.parse::<VersionName>().is_ok(), "{more}");
    }
    let reference = text.parse::<VersionRef>();
    if let Ok(reference) = &reference {
        assert_eq!(reference.to_string().parse().as_ref(), Ok(reference));
    }
    if let Ok(pattern) = VersionPattern::new(text) {
        let long: ModelName = "a".repeat(80).parse().expect("a name");
        pattern.matches(&long, &"v1".parse().expect("a name"));
    }
    model.is_ok() || reference.is_ok()
}

/// Whether it is one name of a directory, and no way to elsewhere.
fn is_plain(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|b| matches!(b, b'/' | 0)) && name.len() <= 255
}

/// One call; returns the directory for the next.
fn ask(vfs: &Vfs<Fake>, here: u64, what: u8, name: &OsStr, more: &OsStr) -> u64 {
    let found = match what {
        b'u' => return ROOT,
        b'd' => {
            let down = find(vfs, here, name);
            assert!(down.is_none() || is_plain(name.as_bytes()), "{name:?} was found");
            return down
                .filter(|ino| vfs.getattr(*ino, None).is_ok_and(|(a, _)| a.kind == mgit::vfs::Kind::Directory))
                .unwrap_or(here);
        }
        b'm' => vfs.mkdir(here, name, 0o755).map(drop),
        b'c' => vfs.create(here, name, 0o644, libc_flags()).map(|(_, opened)| vfs.release(opened.fh)),
        b's' => vfs.symlink(here, name, more).map(drop),
        b'r' => vfs.rename(here, name, here, more, 0),
        b'l' => find(vfs, here, name).map_or(Err(VfsError::NotFound), |ino| vfs.link(ino, here, more).map(drop)),
        b'x' => vfs.unlink(here, name),
        b'y' => vfs.rmdir(here, name),
        b'a' => return attribute(vfs, here, name, more),
        _ => return here,
    };
    assert!(found.is_err() || is_plain(name.as_bytes()), "{name:?} was taken for a name");
    assert!(
        found.is_err() || !matches!(what, b'r' | b'l') || is_plain(more.as_bytes()),
        "{more:?} was taken for a name"
    );
    here
}

/// Read and write.
fn libc_flags() -> i32 {
    2
}

fn attribute(vfs: &Vfs<Fake>, here: u64, name: &OsStr, value: &OsStr) -> u64 {
    let set = vfs.setxattr(here, name, value.as_bytes(), 0);
    assert!(set.is_err() || name.as_bytes().starts_with(b"user."), "{name:?} was taken for an attribute");
    let _ = (vfs.getxattr(here, name, 0), vfs.listxattr(here, 1 << 16), vfs.removexattr(here, name));
    here
}
