//! The repository as a filesystem's source.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::source::{Drawing, Page, ReadAt, ReadError, Sheet, Source, Version};
use crate::model::event::Event;
use crate::model::graph::{Graph, dot, json, svg};
use crate::model::id::Id;
use crate::model::name::{ModelName, VersionName, VersionRef};
use crate::model::record::{FileEntry, VersionRecord};
use crate::repo::Head;
use crate::repo::card::{Cards, Diffs};
use crate::repo::charge::Charges;
use crate::repo::engine::{Engine, label};
use crate::repo::keep::{Count, Keeper};
use crate::repo::read::FileReader;
use crate::repo::{Repo, RepoError, tests, update};

/// Models whose versions are held in memory.
const MAX_MODELS: usize = 1 << 16;

/// What the catalog said last, until it changes.
#[derive(Default)]
struct Memo {
    /// Rises with each change: what was asked before it is not remembered after it.
    changes: u64,
    models: Option<Arc<Vec<ModelName>>>,
    versions: HashMap<ModelName, Arc<Vec<Version>>>,
    charges: Option<Arc<Charges>>,
    cards: Option<Arc<Cards>>,
}

/// Answers from the engine that this process holds.
pub struct RepoSource {
    engine: Arc<Engine>,
    keeper: Option<Arc<Keeper>>,
    memo: Mutex<Memo>,
    diffs: Arc<Diffs>,
}

impl RepoSource {
    /// `keeper`: the disk cache, where there is one.
    pub fn new(engine: Arc<Engine>, keeper: Option<Arc<Keeper>>) -> RepoSource {
        RepoSource { engine, keeper, memo: Mutex::default(), diffs: Arc::default() }
    }

    /// To be called after each change of the catalog.
    pub fn changed(&self, events: &[Event]) {
        let mut memo = self.memo();
        memo.changes += 1;
        (memo.models, memo.charges, memo.cards) = (None, None, None);
        for event in events {
            match event {
                Event::Commit { model, .. } | Event::Remove { model, .. } | Event::Restore { model, .. } => {
                    drop(memo.versions.remove(model))
                }
                Event::Rename { .. } | Event::Seal { .. } => memo.versions.clear(),
                _ => {}
            }
        }
    }

    /// What `get` finds in the memo, else what `ask` says, which `put` then writes there.
    fn remembered<T: Clone>(
        &self,
        get: impl Fn(&Memo) -> Option<T>,
        ask: impl FnOnce() -> Result<T, RepoError>,
        put: impl FnOnce(&mut Memo, T),
    ) -> Result<T, RepoError> {
        let before = {
            let memo = self.memo();
            if let Some(known) = get(&memo) {
                return Ok(known);
            }
            memo.changes
        };
        let answer = ask()?;
        let mut memo = self.memo();
        if memo.changes == before {
            put(&mut memo, answer.clone());
        }
        Ok(answer)
    }

    fn charges(&self) -> Result<Arc<Charges>, RepoError> {
        let all = || Ok(Arc::new(Charges::new(self.engine.repo.clone(), self.engine.catalog().all()?)));
        self.remembered(|m| m.charges.clone(), all, |m, charges| m.charges = Some(charges))
    }

    fn cards(&self) -> Result<Arc<Cards>, RepoError> {
        let make = || Ok(Arc::new(Cards::new(self.engine.clone(), self.charges()?, self.diffs.clone())?));
        self.remembered(|m| m.cards.clone(), make, |m, cards| m.cards = Some(cards))
    }

    fn text(&self, page: &Page) -> Result<Arc<str>, RepoError> {
        let cards = self.cards()?;
        Ok(match page {
            Page::Version(id, Sheet::Info) => cards.info(id)?.into(),
            Page::Version(id, Sheet::Diff) => cards.diff(id)?,
            Page::Version(id, Sheet::Log) => cards.log(id)?.into(),
            Page::Version(id, Sheet::Tests) => tests::card(&self.engine, id)?.into(),
            Page::Graph(Drawing::Dot) => dot::dot(&cards.charged()).into(),
            Page::Graph(Drawing::Svg) => svg::svg(&cards.charged()).into(),
            Page::Graph(Drawing::Update) => update::page(&self.engine)?.into(),
            Page::Graph(Drawing::Json) => json::json(&cards.charged()).into(),
        })
    }

    fn living(&self, model: &ModelName) -> Result<Arc<Vec<Version>>, RepoError> {
        let ask = || Ok(Arc::new(self.engine.catalog().versions(model)?.into_iter().map(version).collect::<Vec<_>>()));
        let put = |memo: &mut Memo, found: Arc<Vec<Version>>| {
            if found.is_empty() {
                return; // Any name can be asked for.
            }
            if memo.versions.len() >= MAX_MODELS {
                memo.versions.clear();
            }
            memo.versions.insert(model.clone(), found);
        };
        self.remembered(|m| m.versions.get(model).cloned(), ask, put)
    }

    /// What was read of a version. If that was removed, gc may have freed it: then it is gone, and nothing is wrong.
    fn told_of<T>(&self, id: &Id, read: Result<T, RepoError>) -> Result<T, ReadError> {
        let lives = || self.engine.catalog().by_id(id).is_ok_and(|head| head.is_some_and(|h| !h.removed));
        if read.is_ok() || lives() { told(read) } else { Err(ReadError::Gone) }
    }

    fn memo(&self) -> MutexGuard<'_, Memo> {
        self.memo.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Logs why, for an error that the kernel can only number.
fn told<T>(result: Result<T, RepoError>) -> Result<T, ReadError> {
    result.map_err(|e| {
        log::error!("{e}");
        ReadError::Damaged
    })
}

fn version(head: Head) -> Version {
    Version {
        seq: head.order().0,
        model: head.model,
        version: head.version,
        id: head.id,
        created: head.created,
        settled: head.settled,
    }
}

impl Source for RepoSource {
    fn models(&self) -> Result<Arc<Vec<ModelName>>, ReadError> {
        let all = || Ok(Arc::new(self.engine.catalog().models()?));
        told(self.remembered(|m| m.models.clone(), all, |m, models| m.models = Some(models)))
    }

    fn versions(&self, model: &ModelName) -> Result<Arc<Vec<Version>>, ReadError> {
        told(self.living(model))
    }

    fn tags(&self, model: &ModelName) -> Result<Vec<(VersionName, Version)>, ReadError> {
        let find = || -> Result<Vec<(VersionName, Version)>, RepoError> {
            let tags = self.engine.catalog().tags(model)?;
            let living = if tags.is_empty() { Arc::default() } else { self.living(model)? };
            let find = |(tag, id): (VersionName, Id)| Some((tag, living.iter().find(|v| v.id == id)?.clone()));
            Ok(tags.into_iter().filter_map(find).collect())
        };
        told(find())
    }

    fn record(&self, id: &Id) -> Result<Arc<VersionRecord>, ReadError> {
        self.told_of(id, self.engine.repo.record(id)).map(Arc::new)
    }

    fn stored_bytes(&self, id: &Id) -> Result<Arc<Vec<u64>>, ReadError> {
        self.told_of(id, self.charges().and_then(|charges| charges.of_version(id)))
    }

    fn parents_text(&self, id: &Id) -> Result<String, ReadError> {
        let text = || -> Result<String, RepoError> {
            let Some(head) = self.engine.catalog().by_id(id)? else { return Ok(String::new()) };
            let detail = self.engine.detail_of(head)?;
            Ok(detail.parents.iter().map(|(p, _)| label(p)).collect::<Vec<_>>().join(" "))
        };
        told(text())
    }

    fn graph(&self) -> Result<Arc<Graph>, ReadError> {
        told(self.cards()).map(|cards| cards.graph().clone())
    }

    fn page(&self, page: &Page) -> Result<Arc<str>, ReadError> {
        told(self.text(page))
    }

    fn open(&self, entry: &FileEntry) -> Result<Arc<dyn ReadAt>, ReadError> {
        let repo = &self.engine.repo;
        if let Some(file) = self.keeper.as_ref().and_then(|k| k.file(entry)) {
            return Ok(Arc::new(Plain { file, repo: repo.clone(), recipe: entry.recipe }));
        }
        let reader = told(repo.open_file(&entry.recipe))?;
        Ok(match self.keeper.as_ref().and_then(|k| k.count(entry)) {
            Some(count) => Arc::new(Counted { reader, count }),
            None => Arc::new(reader),
        })
    }

    fn remove(&self, version: &Version) -> Result<(), ReadError> {
        let name = VersionRef { model: version.model.clone(), version: Some(version.version.clone()) };
        told(self.engine.remove(&[name])).map(drop)
    }

    fn is_taken(&self, model: &ModelName, version: &VersionName) -> Result<bool, ReadError> {
        told(self.engine.catalog().last_named(model, version).map_err(RepoError::from))
            .map(|last| last.is_some_and(|h| !h.settled))
    }

    fn statfs_path(&self) -> &Path {
        &self.engine.repo.dir
    }
}

impl ReadAt for FileReader {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        told(FileReader::read_at(self, offset, buf))
    }
}

/// A file that may be kept plain once it has been read.
struct Counted {
    reader: FileReader,
    count: Arc<Count>,
}

impl ReadAt for Counted {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        told(self.reader.read_at(offset, buf))?;
        self.count.add(buf.len() as u64);
        Ok(())
    }
}

/// A file that is kept plain. What cannot be read of it is rebuilt.
struct Plain {
    file: File,
    repo: Arc<Repo>,
    recipe: Id,
}

impl ReadAt for Plain {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.file.read_exact_at(buf, offset).or_else(|e| {
            log::warn!("a file of the disk cache cannot be read ({e}); it is rebuilt from the store");
            told(self.repo.open_file(&self.recipe).and_then(|reader| reader.read_at(offset, buf)))
        })
    }

    fn plain(&self) -> Option<&File> {
        Some(&self.file)
    }
}
