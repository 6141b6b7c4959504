//! Drafts: directories on their way to be versions, as plain files below `drafts/` (layout in `store/format.md`).
//!
//! What is written through the mount is written straight into these files. A draft becomes a version in three steps:
//! [`Area::begin`] syncs it and takes its mark, an importing process encodes it, and [`Area::publish`] makes the version
//! visible if the mark still holds and nobody has a file of it open for writing; else the commit starts again. Only
//! when the version is durable does the draft go.
//!
//! Whoever changes a draft through the mount holds the gate open; begin and publish hold it shut, for as long as a look
//! at the draft takes. It does not know who writes (vfs) or how a draft is encoded (import).

mod commit;
#[cfg(all(test, feature = "shuttle"))]
mod interleavings;
mod survey;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::engine::{Engine, label};
use super::origin::Move;
use super::{Head, RepoError};
use crate::model::event::Event;
use crate::model::id::Id;
use crate::model::name::{ModelName, VersionName, VersionRef, printable};
use crate::model::record::ParentEdge;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use commit::{CHANGED_EXIT, Committer, Start, Wish};
pub use survey::Survey;

/// Names in a repository, and in its drafts.
pub const DRAFTS: &str = "drafts";
/// A file of this name in a draft asks for it to be sealed.
pub const SEAL: &str = ".seal";
/// Extended attributes of a draft's directory.
pub const PARENT: &str = "user.mgit.parent";
pub const MESSAGE: &str = "user.mgit.message";
const TRASH: &str = ".trash";
const COPY: &str = ".copy";
const COMMIT: &str = ".commit";
/// Changes within one tick of the clock that stamps files cannot be told apart: a mark is older than its files by this.
const TICK: Duration = Duration::from_millis(20);

/// `models/<model>/<name>`: a draft, or a file or directory of a work area.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Slot {
    pub model: ModelName,
    #[serde(deserialize_with = "read_name")]
    pub name: String,
}

impl Slot {
    pub fn of(version: &VersionName, model: &ModelName) -> Slot {
        Slot { model: model.clone(), name: version.to_string() }
    }

    /// From `<model>/<name>` as directories are called.
    fn parse(text: &str) -> Option<Slot> {
        let (model, name) = text.split_once('/')?;
        Some(Slot { model: ModelName::from_dir_name(model).ok()?, name: name.to_owned() }).filter(|s| is_name(&s.name))
    }

    /// The version's name to be, if it can be one.
    pub fn version(&self) -> Result<VersionName, RepoError> {
        self.name.parse().map_err(|e| RepoError::refused(format!("{self}: it cannot be a version's name: {e}")))
    }
}

impl std::fmt::Display for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.model.dir_name(), printable(&self.name))
    }
}

/// A name that stands directly in a directory.
pub fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

/// A slot's name that another process sends.
fn read_name<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let name = String::deserialize(d)?;
    if is_name(&name) { Ok(name) } else { Err(D::Error::custom(format_args!("bad name '{}'", printable(&name)))) }
}

/// A draft, for a list of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Listed {
    pub slot: Slot,
    pub directory: bool,
    pub files: u64,
    pub bytes: u64,
    /// The last change.
    pub changed: Timestamp,
}

/// What there is to encode.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    pub slot: Slot,
    pub version: VersionName,
    pub dir: PathBuf,
    pub mark: Id,
    pub parents: Vec<VersionRef>,
    pub message: String,
    /// The settled version whose place it takes.
    pub replaces: Option<(Head, Vec<(Head, ParentEdge)>)>,
}

/// What became of a wish to commit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Begun {
    /// There was no draft, but a settled version, which is final now.
    Sealed(Head),
    Job(Box<Job>),
    /// This file is open for writing.
    Open(String),
}

type Gone = Box<dyn Fn(&Slot) + Send + Sync>;

/// All drafts of a repository.
pub struct Area {
    dir: PathBuf,
    gate: RwLock<()>,
    /// By device and inode: how often a file is open for writing.
    writers: Mutex<HashMap<(u64, u64), usize>>,
    /// Told of a draft that was discarded or renamed otherwise than through the mount.
    gone: RwLock<Option<Gone>>,
    last: AtomicU64,
}

/// A file that is open for writing.
pub struct Writing {
    area: std::sync::Arc<Area>,
    key: (u64, u64),
}

impl Drop for Writing {
    fn drop(&mut self) {
        let mut writers = self.area.writers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = writers.get_mut(&self.key) {
            *n -= 1;
            if *n == 0 {
                writers.remove(&self.key);
            }
        }
    }
}

impl Area {
    /// The drafts of the repository in `repo`, whose path is real.
    pub fn new(repo: &Path) -> Area {
        let (gate, writers, gone) = Default::default();
        Area { dir: repo.join(DRAFTS), gate, writers, gone, last: AtomicU64::new(0) }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn path(&self, slot: &Slot) -> PathBuf {
        self.dir.join(slot.model.dir_name()).join(&slot.name)
    }

    /// Takes away what a crash left, and finishes what it interrupted. Nobody may be using the area.
    pub fn recover(&self, engine: &Engine) -> Result<(), RepoError> {
        make_dir(&self.dir)?;
        for name in names(&self.dir.join(COMMIT))? {
            let note = self.dir.join(COMMIT).join(&name);
            let slot = fs::read_to_string(&note).ok().and_then(|text| Slot::parse(&text));
            let id = name.parse::<Id>().ok();
            if let (Some(slot), Some(id)) = (slot, id)
                && engine.catalog().by_id(&id)?.is_some()
            {
                self.drop_draft(&slot)?;
            }
            remove(&note)?;
        }
        remove(&self.dir.join(COPY))?;
        remove(&self.dir.join(TRASH))
    }

    /// Whoever changes a draft through the mount holds this meanwhile.
    pub fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn shut(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called, inside the gate, before a file is opened for writing.
    pub fn writing(self: &std::sync::Arc<Area>, key: (u64, u64)) -> Writing {
        *self.writers.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default() += 1;
        Writing { area: self.clone(), key }
    }

    fn is_open(&self, key: (u64, u64)) -> bool {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&key)
    }

    pub fn on_gone(&self, gone: Gone) {
        *self.gone.write().unwrap_or_else(PoisonError::into_inner) = Some(gone);
    }

    fn tell_gone(&self, slot: &Slot) {
        if let Some(gone) = &*self.gone.read().unwrap_or_else(PoisonError::into_inner) {
            gone(slot);
        }
    }

    /// A place beside the drafts that nothing else uses; its directory is there.
    fn aside(&self, kind: &str) -> Result<PathBuf, RepoError> {
        let dir = self.dir.join(kind);
        make_dir(&dir)?;
        let n = self.last.fetch_add(1, Ordering::Relaxed);
        Ok(dir.join(format!("{}-{n}", std::process::id())))
    }

    /// A new directory to copy a version up into.
    pub fn copy_place(&self) -> Result<PathBuf, RepoError> {
        let path = self.aside(COPY)?;
        make_dir(&path)?;
        Ok(path)
    }

    /// Puts a whole, synced copy of a version where its draft belongs.
    pub fn put_copy(&self, copy: &Path, slot: &Slot) -> Result<(), RepoError> {
        let to = self.path(slot);
        make_dir(to.parent().expect("a slot lies in a model"))?;
        fs::rename(copy, &to).map_err(|e| RepoError::file(&to, e))?;
        sync_dir(to.parent().expect("a slot lies in a model"))
    }

    // ---- what there is

    fn slots(&self) -> Result<Vec<Slot>, RepoError> {
        let mut slots = Vec::new();
        for model in names(&self.dir)? {
            let Ok(name) = ModelName::from_dir_name(&model) else { continue };
            let inside = names(&self.dir.join(&model))?.into_iter();
            slots.extend(inside.map(|n| Slot { model: name.clone(), name: n }));
        }
        slots.sort();
        Ok(slots)
    }

    /// All drafts and loose files.
    pub fn list(&self) -> Result<Vec<Listed>, RepoError> {
        let look = |slot: Slot| {
            let path = self.path(&slot);
            let directory = fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir());
            let s = survey::survey(&path).ok()?; // it may have gone
            let changed = Timestamp::try_from(s.changed).unwrap_or(Timestamp::UNIX_EPOCH);
            Some(Listed { slot, directory, files: s.files, bytes: s.bytes, changed })
        };
        Ok(self.slots()?.into_iter().filter_map(look).collect())
    }

    /// The path in the draft of a file that somebody has open for writing.
    fn open_file(&self, slot: &Slot, survey: &Survey) -> Option<String> {
        let path = self.path(slot);
        survey.open_candidates().find(|(name, key)| self.is_open(*key) || survey::is_written(&path.join(name))).map(
            |(name, _)| match name {
                "" => slot.to_string(),
                name => format!("{slot}/{}", printable(name)),
            },
        )
    }

    // ---- committing

    /// Syncs a draft and says what there is to encode. `rename`: it shall be that version; a model without a name
    /// gives its loose files.
    pub fn begin(
        &self,
        engine: &Engine,
        model: &ModelName,
        name: Option<&str>,
        rename: Option<(ModelName, VersionName)>,
    ) -> Result<Begun, RepoError> {
        let mut slot = match (name, &rename) {
            (Some(name), _) if is_name(name) => Slot { model: model.clone(), name: name.to_owned() },
            (Some(name), _) => return Err(RepoError::refused(format!("bad name '{}'", printable(name)))),
            (None, Some((m, v))) => self.gather(engine, model, &Slot::of(v, m))?,
            (None, None) => {
                return Err(RepoError::refused(format!(
                    "{model}: name one draft, or give its loose files a name by --as"
                )));
            }
        };
        if let (Some(_), Some((m, v))) = (name, &rename) {
            slot = self.rename(engine, slot, &Slot::of(v, m))?;
        }
        let path = self.path(&slot);
        if fs::symlink_metadata(&path).is_err() {
            return self.seal_settled(engine, &slot);
        }
        let version = slot.version()?;
        let replaced = engine.in_place_of(&slot.model, &version)?;
        if !path.is_dir() {
            return Err(RepoError::refused(format!(
                "{slot}: a loose file; 'mgit seal MODEL --as {slot}' takes them all"
            )));
        }
        survey::sync(&path)?;
        let _shut = self.shut();
        survey::sync(&path)?; // what was written since: little
        let mut survey = survey::survey(&path)?;
        if let Some(file) = self.open_file(&slot, &survey) {
            return Ok(Begun::Open(file));
        }
        if SystemTime::now().duration_since(survey.changed).unwrap_or_default() < TICK {
            std::thread::sleep(TICK);
            survey = survey::survey(&path)?;
        }
        let replaces = replaced.map(|h| Ok::<_, RepoError>((h.clone(), engine.detail_of(h)?.parents))).transpose()?;
        let parents = attribute(&path, PARENT).unwrap_or_default();
        let parents = parents.split_whitespace().map(str::parse).collect::<Result<Vec<VersionRef>, _>>();
        let parents = parents.map_err(|e| RepoError::refused(format!("{slot}: {PARENT}: {e}")))?;
        let message = attribute(&path, MESSAGE).unwrap_or_default();
        Ok(Begun::Job(Box::new(Job { slot, version, dir: path, mark: survey.mark, parents, message, replaces })))
    }

    fn seal_settled(&self, engine: &Engine, slot: &Slot) -> Result<Begun, RepoError> {
        let version = slot.version()?;
        match engine.catalog().find(&slot.model, &version)? {
            Some(head) if engine.seal(&head)? => Ok(Begun::Sealed(Head { settled: false, ..head })),
            Some(head) => Err(RepoError::refused(format!("{} is sealed already", label(&head)))),
            None => Err(RepoError::refused(format!("there is no draft {slot}; 'mgit ls --drafts' lists them"))),
        }
    }

    fn refuse_taken(&self, engine: &Engine, to: &Slot) -> Result<(), RepoError> {
        if let Some(head) = engine.in_place_of(&to.model, &to.version()?)? {
            return Err(RepoError::refused(format!("{} exists already; choose another name", label(&head))));
        }
        match fs::symlink_metadata(self.path(to)).is_ok() {
            true => Err(RepoError::refused(format!("there is a draft {to} already; choose another name"))),
            false => Ok(()),
        }
    }

    fn rename(&self, engine: &Engine, from: Slot, to: &Slot) -> Result<Slot, RepoError> {
        if from == *to {
            return Ok(from);
        }
        if let Ok(version) = from.version()
            && let Some(head) = engine.catalog().find(&from.model, &version)?
        {
            return Err(RepoError::refused(format!("{} has its name already; leave --as out", label(&head))));
        }
        self.refuse_taken(engine, to)?;
        let _shut = self.shut();
        let (a, b) = (self.path(&from), self.path(to));
        make_dir(b.parent().expect("a slot lies in a model"))?;
        fs::rename(&a, &b).map_err(|_| RepoError::refused(format!("there is no draft {from}")))?;
        self.tell_gone(&from);
        Ok(to.clone())
    }

    /// Moves a model's loose files into a new draft.
    fn gather(&self, engine: &Engine, model: &ModelName, to: &Slot) -> Result<Slot, RepoError> {
        self.refuse_taken(engine, to)?;
        let _shut = self.shut();
        let from = self.dir.join(model.dir_name());
        let is_file = |n: &String| fs::symlink_metadata(from.join(n)).is_ok_and(|m| m.is_file());
        let files: Vec<String> = names(&from)?.into_iter().filter(is_file).collect();
        if files.is_empty() {
            return Err(RepoError::refused(format!(
                "{model} has no loose files; 'mgit ls --drafts' lists what there is"
            )));
        }
        let dir = self.path(to);
        make_dir(&dir)?;
        for name in files {
            fs::rename(from.join(&name), dir.join(&name)).map_err(|e| RepoError::file(&dir, e))?;
            self.tell_gone(&Slot { model: model.clone(), name });
        }
        Ok(to.clone())
    }

    /// Makes the version that a draft was encoded to visible, and the draft go. `None`: it has changed meanwhile.
    pub fn publish(
        &self,
        engine: &Engine,
        event: Event,
        moves: &[Move],
        slot: &Slot,
        mark: &Id,
    ) -> Result<Option<Head>, RepoError> {
        let Event::Commit { id, .. } = &event else { return Err(RepoError::refused("only a commit can be published")) };
        let (note, path) = (self.dir.join(COMMIT).join(id.to_string()), self.path(slot));
        let shut = self.shut();
        match survey::survey(&path) {
            Ok(s) if s.mark == *mark && self.open_file(slot, &s).is_none() => {}
            _ => return Ok(None),
        }
        make_dir(&self.dir.join(COMMIT))?;
        let text = format!("{}/{}", slot.model.dir_name(), slot.name);
        write_synced(&note, text.as_bytes())?;
        let head = match engine.publish_draft(event, moves) {
            Ok(head) => head,
            Err(e) => {
                remove(&note)?;
                return Err(e);
            }
        };
        let trash = self.to_trash(slot);
        drop(shut);
        let gone = trash.and_then(|trash| remove(&trash)).and_then(|()| remove(&note));
        if let Err(e) = gone {
            log::warn!("{}: committed, but the draft's bytes are still there: {e}", label(&head));
        }
        Ok(Some(head))
    }

    /// Removes a draft that came to nothing new. False: it has changed meanwhile.
    pub fn give_back(&self, slot: &Slot, mark: &Id) -> Result<bool, RepoError> {
        let shut = self.shut();
        match survey::survey(&self.path(slot)) {
            Ok(s) if s.mark == *mark && self.open_file(slot, &s).is_none() => {}
            _ => return Ok(false),
        }
        let trash = self.to_trash(slot)?;
        drop(shut);
        self.tell_gone(slot);
        remove(&trash).map(|()| true)
    }

    fn to_trash(&self, slot: &Slot) -> Result<PathBuf, RepoError> {
        let (path, trash) = (self.path(slot), self.aside(TRASH)?);
        fs::rename(&path, &trash).map_err(|e| RepoError::file(&path, e))?;
        let model = path.parent().expect("a slot lies in a model");
        let _ = fs::remove_dir(model); // only when nothing else is in it
        sync_dir(if model.exists() { model } else { &self.dir })?;
        Ok(trash)
    }

    fn drop_draft(&self, slot: &Slot) -> Result<(), RepoError> {
        match fs::symlink_metadata(self.path(slot)).is_ok() {
            true => remove(&self.to_trash(slot)?),
            false => Ok(()),
        }
    }

    /// Removes a draft.
    pub fn discard(&self, engine: &Engine, slot: &Slot) -> Result<Slot, RepoError> {
        let shut = self.shut();
        if !is_name(&slot.name) || fs::symlink_metadata(self.path(slot)).is_err() {
            let version = slot.name.parse::<VersionName>().ok();
            let head = version.map(|v| engine.catalog().find(&slot.model, &v)).transpose()?.flatten();
            return Err(RepoError::refused(match head {
                Some(head) => format!("{0} is a version, not a draft; 'mgit rm {0}' removes it", label(&head)),
                None => format!("there is no draft {slot}; 'mgit ls --drafts' lists them"),
            }));
        }
        let model = self.dir.join(slot.model.dir_name());
        let trash = self.to_trash(slot)?;
        make_dir(&model)?; // the model stays, as it does when the last draft is removed through the mount
        drop(shut);
        self.tell_gone(slot);
        remove(&trash)?;
        Ok(slot.clone())
    }
}

/// The names in a directory; none where there is no such directory. What is not UTF-8 never was made by us.
fn names(dir: &Path) -> Result<Vec<String>, RepoError> {
    match fs::read_dir(dir) {
        Ok(entries) => Ok(entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect()),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(vec![]),
        Err(e) => Err(RepoError::file(dir, e)),
    }
}

fn make_dir(dir: &Path) -> Result<(), RepoError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| RepoError::file(dir, e))
}

fn sync_dir(dir: &Path) -> Result<(), RepoError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| RepoError::file(dir, e))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), RepoError> {
    let write = || {
        fs::write(path, bytes)?;
        File::open(path)?.sync_all()?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().map_err(|e| RepoError::file(path, e))
}

/// Removes a file or a directory with all below it, if it is there.
fn remove(path: &Path) -> Result<(), RepoError> {
    let done = match fs::symlink_metadata(path) {
        Ok(m) if m.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match done {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(RepoError::file(path, e)),
        _ => Ok(()),
    }
}

/// An extended attribute as text, if it is one.
fn attribute(path: &Path, name: &str) -> Option<String> {
    let mut value = vec![0u8; 64 << 10];
    let n = rustix::fs::getxattr(path, name, &mut value[..]).ok()?;
    value.truncate(n);
    String::from_utf8(value).ok()
}

/// What tells a file from all others on this machine.
pub fn key(m: &fs::Metadata) -> (u64, u64) {
    (m.dev(), m.ino())
}
