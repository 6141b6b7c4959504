//! From a directory of `lineage/` to what is in it and back: by name, as a list, and up.

use std::sync::Arc;

use super::super::source::{Page, Source};
use super::super::{VfsError, locked};
use super::place::{DRAWINGS, SHEETS};
use super::{Kin, Lineage, MAX_KINS, Now, Place};
use crate::model::family::{Card, Spot};
use crate::model::id::Id;
use crate::model::name::ModelName;

impl Lineage {
    /// What stands at `name` in a directory.
    pub fn child(&self, source: &impl Source, dir: &Place, name: &str) -> Result<Option<Place>, VfsError> {
        let now = self.now(source)?;
        let found = match dir {
            Place::Top => now.in_top(name),
            Place::Tree => now.at_root(name),
            Place::Spot(key) => now.in_spot(now.spot(key)?, name),
            Place::Of => now.family.by_dir(name).map(|m| Place::Model(now.family.models[m].name.clone())),
            Place::Model(model) => now.in_model(now.model(model)?, name),
            Place::Card(id) => now.in_card(now.version(id)?, name),
            Place::Kin(id, kin) => now.in_kin(now.version(id)?, *kin, name),
            Place::Link { .. } | Place::Text(_) | Place::Unread(_) => return Err(VfsError::NotDir),
        };
        match found {
            Some(Place::Unread(page)) => self.text_of(&now, source, page).map(Some),
            other => Ok(other),
        }
    }

    /// What a directory holds.
    pub fn names(&self, source: &impl Source, dir: &Place) -> Result<Vec<(String, Place)>, VfsError> {
        let now = self.now(source)?;
        let listed = |(name, place)| (name, Lineage::listed(&now, place));
        Ok(now.entries(dir)?.into_iter().map(listed).collect())
    }

    /// The directory that one is in; `None` for the topmost.
    pub fn parent(&self, source: &impl Source, dir: &Place) -> Result<Option<Place>, VfsError> {
        let now = self.now(source)?;
        Ok(Some(match dir {
            Place::Tree | Place::Of => Place::Top,
            Place::Spot(key) => {
                let above = now.family.models[now.spot(key)?].spot.as_ref().and_then(|s| s.parent);
                above.and_then(|m| now.spot_entry(m)).map_or(Place::Tree, |entry| entry.1)
            }
            Place::Model(_) => Place::Of,
            Place::Card(id) => {
                let card = now.family.card(now.version(id)?).ok_or(VfsError::Stale)?;
                Place::Model(now.family.models[card.model].name.clone())
            }
            Place::Kin(id, _) => Place::Card(*id),
            _ => return Ok(None),
        }))
    }
}

impl Now {
    /// What a directory holds, its texts unread.
    fn entries(&self, dir: &Place) -> Result<Vec<(String, Place)>, VfsError> {
        Ok(match dir {
            Place::Top => self.top(),
            Place::Tree => self.family.roots.iter().filter_map(|&m| self.spot_entry(m)).collect(),
            Place::Spot(key) => self.spot_entries(self.spot(key)?),
            Place::Of => self.family.models.iter().map(|m| (m.dir.clone(), Place::Model(m.name.clone()))).collect(),
            Place::Model(model) => {
                let cards = self.family.models[self.model(model)?].cards.iter();
                cards.filter_map(|&n| Some((self.family.card(n)?.name.clone(), self.card(n)))).collect()
            }
            Place::Card(id) => self.card_entries(self.version(id)?),
            Place::Kin(id, kin) => {
                let kin = self.kin(self.version(id)?, *kin);
                kin.iter()
                    .filter_map(|&n| Some((self.family.label(self.family.card(n)?), self.to_card(3, n)?)))
                    .collect()
            }
            Place::Link { .. } | Place::Text(_) | Place::Unread(_) => return Err(VfsError::NotDir),
        })
    }

    pub(super) fn spot(&self, key: &Id) -> Result<usize, VfsError> {
        self.family.by_key(key).ok_or(VfsError::Stale)
    }

    pub(super) fn model(&self, name: &ModelName) -> Result<usize, VfsError> {
        self.family.by_dir(&name.dir_name()).ok_or(VfsError::Stale)
    }

    pub(super) fn version(&self, id: &Id) -> Result<usize, VfsError> {
        self.family.by_id(id).ok_or(VfsError::Stale)
    }

    // ---- the top

    fn top(&self) -> Vec<(String, Place)> {
        let dirs = [("tree".to_owned(), Place::Tree), ("of".to_owned(), Place::Of)];
        let drawings = DRAWINGS.map(|(name, d)| (name.to_owned(), Place::Unread(Page::Graph(d))));
        dirs.into_iter().chain(drawings).collect()
    }

    fn in_top(&self, name: &str) -> Option<Place> {
        self.top().into_iter().find(|e| e.0 == name).map(|e| e.1)
    }

    // ---- the tree

    fn at_root(&self, name: &str) -> Option<Place> {
        let m = self.family.by_dir(name)?;
        let spot = self.family.models[m].spot.as_ref()?;
        spot.parent.is_none().then_some(Place::Spot(spot.key))
    }

    fn spot_entry(&self, m: usize) -> Option<(String, Place)> {
        let model = &self.family.models[m];
        Some((model.dir.clone(), Place::Spot(model.spot.as_ref()?.key)))
    }

    fn spot_entries(&self, m: usize) -> Vec<(String, Place)> {
        let Some(spot) = &self.family.models[m].spot else { return vec![] };
        let version = |&n: &usize| {
            let name = format!("@{}", self.family.card(n)?.name);
            Some((name, self.to_version(spot.depth + 2, n)?))
        };
        let link = |&l: &usize| Some((self.family.models[l].dir.clone(), self.to_spot(spot, l)?));
        let children = spot.children.iter().filter_map(|&c| self.spot_entry(c));
        spot.living.iter().filter_map(version).chain(children).chain(spot.links.iter().filter_map(link)).collect()
    }

    fn in_spot(&self, m: usize, name: &str) -> Option<Place> {
        let model = &self.family.models[m];
        let spot = model.spot.as_ref()?;
        if let Some(version) = name.strip_prefix('@') {
            let n = self.family.by_label(&format!("{}@{version}", model.dir))?;
            return self.to_version(spot.depth + 2, n);
        }
        let other = self.family.by_dir(name)?;
        match self.family.models[other].spot.as_ref()?.parent == Some(m) {
            true => self.spot_entry(other).map(|e| e.1),
            false => self.links_to(spot, other).then(|| self.to_spot(spot, other))?,
        }
    }

    /// Whether a model holds a link to another: they are sorted by name.
    fn links_to(&self, spot: &Spot, m: usize) -> bool {
        let dir = |m: usize| self.family.models[m].dir.as_str();
        spot.links.binary_search_by(|&l| dir(l).cmp(dir(m))).is_ok()
    }

    // ---- cards

    fn card(&self, n: usize) -> Place {
        Place::Card(self.graph.nodes[n].id)
    }

    fn in_model(&self, m: usize, name: &str) -> Option<Place> {
        self.family.by_label(&format!("{}@{name}", self.family.models[m].dir)).map(|n| self.card(n))
    }

    fn card_entries(&self, n: usize) -> Vec<(String, Place)> {
        let Some(card) = self.family.card(n) else { return vec![] };
        let id = self.graph.nodes[n].id;
        let links = ["model", "previous", "next"].into_iter().filter_map(|l| Some((l, self.card_link(n, card, l)?)));
        let kin = Kin::ALL.map(|kin| (kin.as_str(), Place::Kin(id, kin)));
        let sheets = SHEETS.map(|(name, sheet)| (name, Place::Unread(Page::Version(id, sheet))));
        links.chain(kin).chain(sheets).map(|(name, place)| (name.to_owned(), place)).collect()
    }

    fn in_card(&self, n: usize, name: &str) -> Option<Place> {
        self.card_entries(n).into_iter().find(|e| e.0 == name).map(|e| e.1)
    }

    fn card_link(&self, n: usize, card: &Card, name: &str) -> Option<Place> {
        match name {
            "model" => self.to_version(4, n),
            "previous" => self.to_card(2, card.previous?),
            _ => self.to_card(2, card.next?),
        }
    }

    fn in_kin(&self, n: usize, kin: Kin, name: &str) -> Option<Place> {
        let other = self.family.by_label(name)?;
        let is_there = match kin {
            // The younger end has few parents, the older may have thousands of children.
            Kin::Parents => self.family.card(n)?.parents.contains(&other),
            Kin::Children => self.family.card(other)?.parents.contains(&n),
            Kin::Ancestors | Kin::Descendants => self.kin(n, kin).contains(&other),
        };
        is_there.then(|| self.to_card(3, other))?
    }

    /// The versions in a directory of kin; where they have to be looked for, they are remembered.
    fn kin(&self, n: usize, kin: Kin) -> Arc<Vec<usize>> {
        let of_card =
            |list: fn(&Card) -> &Vec<usize>| Arc::new(self.family.card(n).map(list).cloned().unwrap_or_default());
        match kin {
            Kin::Parents => of_card(|card| &card.parents),
            Kin::Children => of_card(|card| &card.children),
            Kin::Ancestors => self.remembered((n, kin), || self.family.ancestors(n)),
            Kin::Descendants => self.remembered((n, kin), || self.family.descendants(n)),
        }
    }

    fn remembered(&self, key: (usize, Kin), find: impl FnOnce() -> Vec<usize>) -> Arc<Vec<usize>> {
        if let Some(known) = locked(self.kin.lock()).get(&key) {
            return known.clone();
        }
        let found = Arc::new(find());
        let mut all = locked(self.kin.lock());
        if all.len() >= MAX_KINS {
            all.clear();
        }
        all.insert(key, found.clone());
        found
    }

    // ---- symlinks: relative, from a directory so many levels below what is named

    /// To a living version, from `up` levels below the mount.
    fn to_version(&self, up: usize, n: usize) -> Option<Place> {
        let (node, card) = (&self.graph.nodes[n], self.family.card(n)?);
        let dir = &self.family.models[card.model].dir;
        let target = format!("{}models/{dir}/{}", "../".repeat(up), node.version);
        (!node.removed).then_some(Place::Link { target, time: node.created })
    }

    /// To a card, from `up` levels below `of`.
    fn to_card(&self, up: usize, n: usize) -> Option<Place> {
        let card = self.family.card(n)?;
        let dir = &self.family.models[card.model].dir;
        let target = format!("{}{dir}/{}", "../".repeat(up), card.name);
        Some(Place::Link { target, time: self.graph.nodes[n].created })
    }

    /// From one model's place in the tree to another's.
    fn to_spot(&self, from: &Spot, m: usize) -> Option<Place> {
        let model = &self.family.models[m];
        let target = format!("{}{}", "../".repeat(from.depth), model.spot.as_ref()?.path);
        Some(Place::Link { target, time: model.time })
    }
}
