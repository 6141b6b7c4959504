//! What stands below `lineage/`: the family tree, a card for each version, and the drawings.
//!
//! ```text
//! lineage/tree/<root>/<child>/…          in each @<v> -> the version, and links to models that stand elsewhere
//! lineage/of/<model>/<version>/          model, previous, next -> …   parents/ children/ ancestors/ descendants/
//!                                        info.json  diff.txt  log.txt  tests.json
//! lineage/graph.dot  graph.svg  graph.json  update.json
//! ```
//! All of it follows from the source's graph, and is made anew when that changes. A symlink's and a text's number is
//! that of what it holds: one that comes to hold something else is another node, so that what the kernel knows of a
//! number, and what an open file reads, stays true. Opening what no longer holds is [`VfsError::Stale`], upon which the
//! kernel looks the name up again.
//!
//! A change may touch any card (the removal of a version moves what others are charged), so the kernel is not told of
//! each: it may believe names here for as short as where it is told of nothing ([`LIVE`]).
//!
//! Texts are made when somebody looks at them, not when a directory is listed: what a listing names before that is a
//! node of its own ([`Place::Unread`]) that nobody may believe for any time, so that whoever asks for its attributes
//! looks the name up again and finds the text. What a text's length is, is remembered until something changes, and so
//! are the texts used last.

mod place;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::attr::{self, FOREVER, LIVE};
use super::source::{Page, Source};
use super::{VfsError, locked};
use crate::model::family::Family;
use crate::model::graph::Graph;
use crate::model::id::Id;
use place::Text;
pub(super) use place::{Kin, Place};

/// Bytes of texts that are held.
const TEXTS: u64 = 8 << 20;
/// Texts whose lengths are held.
const MAX_FACTS: usize = 1 << 17;
/// Directories of kin that are held.
const MAX_KINS: usize = 256;

/// A text's length, and what it hashes to.
type Facts = (u64, Id);

/// The versions in directories of kin.
type Kins = HashMap<(usize, Kin), Arc<Vec<usize>>>;

/// One state of the lineage.
pub(super) struct Now {
    /// Which of the states since the mount.
    pub number: u64,
    graph: Arc<Graph>,
    family: Family,
    newest: Option<Timestamp>,
    facts: Mutex<HashMap<Page, Facts>>,
    kin: Mutex<Kins>,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Id, Arc<str>> for ByBytes {
    fn weight(&self, _: &Id, text: &Arc<str>) -> u64 {
        text.len() as u64 + 96
    }
}

/// What is remembered of `lineage/`.
pub(super) struct Lineage {
    now: Mutex<Option<Arc<Now>>>,
    /// By what they hash to.
    texts: Cache<Id, Arc<str>, ByBytes>,
}

impl Default for Lineage {
    fn default() -> Lineage {
        Lineage { now: Mutex::default(), texts: Cache::with_weighter(1024, TEXTS, ByBytes) }
    }
}

impl Lineage {
    /// The state that the source is in.
    pub fn now(&self, source: &impl Source) -> Result<Arc<Now>, VfsError> {
        let graph = source.graph()?;
        let mut now = locked(self.now.lock());
        match &*now {
            Some(now) if Arc::ptr_eq(&now.graph, &graph) => Ok(now.clone()),
            before => {
                let number = before.as_ref().map_or(0, |b| b.number) + 1;
                let fresh = Arc::new(Now::new(number, graph));
                *now = Some(fresh.clone());
                Ok(fresh)
            }
        }
    }

    /// The node of a page, once its text is known.
    fn text_of(&self, now: &Now, source: &impl Source, page: Page) -> Result<Place, VfsError> {
        let known = locked(now.facts.lock()).get(&page).copied();
        let (len, digest) = match known {
            Some(facts) => facts,
            None => self.made(now, source, page)?.0,
        };
        Ok(Place::Text(Text { page, len, digest, time: now.time_of(&page) }))
    }

    /// A page's node as far as it is known without making its text.
    fn listed(now: &Now, place: Place) -> Place {
        let Place::Unread(page) = place else { return place };
        match locked(now.facts.lock()).get(&page) {
            Some(&(len, digest)) => Place::Text(Text { page, len, digest, time: now.time_of(&page) }),
            None => place,
        }
    }

    /// Makes a page's text and remembers it.
    fn made(&self, now: &Now, source: &impl Source, page: Page) -> Result<(Facts, Arc<str>), VfsError> {
        let text = source.page(&page)?;
        let facts = (text.len() as u64, Id::of(text.as_bytes()));
        let mut all = locked(now.facts.lock());
        if all.len() >= MAX_FACTS {
            all.clear();
        }
        all.insert(page, facts);
        self.texts.insert(facts.1, text.clone());
        Ok((facts, text))
    }

    /// What a text node holds; fails when its page says something else by now and what it said is forgotten.
    pub fn read(&self, source: &impl Source, text: &Text) -> Result<Arc<str>, VfsError> {
        if let Some(known) = self.texts.get(&text.digest) {
            return Ok(known);
        }
        let now = self.now(source)?;
        if now.gone(&text.page) {
            return Err(VfsError::Stale);
        }
        let (facts, made) = self.made(&now, source, text.page)?;
        if facts.1 == text.digest { Ok(made) } else { Err(VfsError::Stale) }
    }
}

impl Now {
    fn new(number: u64, graph: Arc<Graph>) -> Now {
        let newest = graph.nodes.iter().map(|n| n.created).max();
        let (facts, kin) = Default::default();
        Now { number, family: Family::new(&graph), newest, graph, facts, kin }
    }

    fn gone(&self, page: &Page) -> bool {
        matches!(page, Page::Version(id, _) if self.family.by_id(id).is_none())
    }

    fn time_of(&self, page: &Page) -> Option<Timestamp> {
        match page {
            Page::Version(id, _) => self.family.by_id(id).map(|n| self.graph.nodes[n].created),
            Page::Graph(_) => self.newest,
        }
    }

    /// When what stands there was made; `None` for what no commit made, and an error for what is gone.
    pub fn time(&self, place: &Place) -> Result<Option<SystemTime>, VfsError> {
        let time = match place {
            Place::Top | Place::Tree | Place::Of => None,
            Place::Spot(key) => Some(self.family.models[self.spot(key)?].time),
            Place::Model(name) => Some(self.family.models[self.model(name)?].time),
            Place::Card(id) | Place::Kin(id, _) => Some(self.graph.nodes[self.version(id)?].created),
            Place::Link { time, .. } => Some(*time),
            Place::Text(text) => text.time,
            Place::Unread(page) => self.time_of(page),
        };
        Ok(time.map(attr::time))
    }
}

/// How long a node's name and attributes may be believed.
pub(super) fn lifetimes(place: &Place) -> (Duration, Duration) {
    match place {
        Place::Top | Place::Tree | Place::Of => (FOREVER, LIVE),
        Place::Spot(_) | Place::Model(_) => (LIVE, LIVE),
        Place::Unread(_) => (Duration::ZERO, Duration::ZERO),
        Place::Kin(..) => (FOREVER, FOREVER),
        Place::Card(_) | Place::Link { .. } | Place::Text(_) => (LIVE, FOREVER),
    }
}
