//! Housekeeping: a removal undone, tags, another name for a model.
//!
//! Each is one journal frame. None of it touches packs; a removal can be undone for as long as [`super::gc`] has left
//! what the version needs.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::engine::{Engine, label};
use super::roots::Roots;
use super::{Head, RepoError};
use crate::model::event::Event;
use crate::model::name::{ModelName, VersionName, VersionRef};
use crate::store::gate;

/// What can be asked; answered with the versions that it is about.
#[derive(Debug, Serialize, Deserialize)]
pub enum Ask {
    /// The last removal, of one version or several.
    Undo,
    Tag(VersionRef, VersionName),
    Untag(ModelName, VersionName),
    Rename(ModelName, ModelName),
}

pub fn answer(engine: &Engine, ask: &Ask) -> Result<Vec<Head>, RepoError> {
    match ask {
        Ask::Undo => engine.undo(),
        Ask::Tag(version, tag) => engine.tag(version, tag),
        Ask::Untag(model, tag) => engine.untag(model, tag),
        Ask::Rename(from, to) => engine.rename(from, to),
    }
}

impl Engine {
    /// Brings back what was removed last.
    pub fn undo(&self) -> Result<Vec<Head>, RepoError> {
        let Some(_gate) = gate::try_enter(&*self.repo.disk, &self.repo.dir.join("packs"))? else {
            return Err(RepoError::refused("gc is running; try again in a moment"));
        };
        self.repo.refresh()?;
        self.change(|| {
            let heads = self.last_removed()?;
            for h in &heads {
                let whole = Roots::of_version(&self.repo, &h.id).and_then(|roots| roots.live(&self.repo));
                whole.map_err(|e| RepoError::refused(format!("{} cannot come back: gc freed it ({e})", label(h))))?;
            }
            let back = heads.iter().map(|h| self.restored(h)).collect::<Result<Vec<_>, _>>()?;
            Ok((back.concat(), heads))
        })
    }

    /// The versions of the last removal whose names nobody else has, but for lossy ones in their place.
    fn last_removed(&self) -> Result<Vec<Head>, RepoError> {
        let catalog = self.catalog();
        let mut gone: Vec<(Timestamp, Head)> = Vec::new();
        for head in catalog.ever_all()?.into_iter().filter(|h| h.removed) {
            let owner = catalog.last_named(&head.model, &head.version)?;
            let is_free = owner.is_some_and(|o| o.id == head.id) || self.heir(&head)?.is_some();
            if let Some(at) = head.removed_at.filter(|_| is_free) {
                gone.push((at, head));
            }
        }
        let Some(last) = gone.iter().map(|(at, _)| *at).max() else {
            return Err(RepoError::refused("there is no removal to undo"));
        };
        Ok(gone.into_iter().filter(|(at, _)| *at == last).map(|(_, head)| head).collect())
    }

    /// Lets a tag lead to a version, wherever it led before.
    pub fn tag(&self, version: &VersionRef, tag: &VersionName) -> Result<Vec<Head>, RepoError> {
        self.change(|| {
            let head = self.resolve(version)?;
            if self.catalog().name_used(&head.model, tag)? {
                let model = &head.model;
                return Err(RepoError::refused(format!("{model}@{tag} is or was a version; choose another tag")));
            }
            let event = Event::Tag { model: head.model.clone(), tag: tag.clone(), id: Some(head.id) };
            Ok((vec![event], vec![head]))
        })
    }

    pub fn untag(&self, model: &ModelName, tag: &VersionName) -> Result<Vec<Head>, RepoError> {
        self.change(|| {
            let Some(id) = self.catalog().tagged(model, tag)? else {
                return Err(RepoError::refused(format!("{model} has no tag '{tag}'; 'mgit tag' lists them")));
            };
            let event = Event::Tag { model: model.clone(), tag: tag.clone(), id: None };
            Ok((vec![event], self.catalog().by_id(&id)?.into_iter().collect()))
        })
    }

    /// Gives a model another name, with all its versions.
    pub fn rename(&self, from: &ModelName, to: &ModelName) -> Result<Vec<Head>, RepoError> {
        self.change(|| {
            if self.catalog().ever(from)? == 0 {
                return Err(RepoError::refused(format!("no model '{from}' here; 'mgit ls' shows what there is")));
            }
            if self.catalog().ever(to)? > 0 {
                return Err(RepoError::refused(format!("{to} is or was a model already; choose another name")));
            }
            Ok((vec![Event::Rename { from: from.clone(), to: to.clone() }], ()))
        })?;
        Ok(self.catalog().versions(to)?)
    }

    /// The living version that a tag leads to.
    pub(super) fn tagged(&self, model: &ModelName, tag: &VersionName) -> Result<Option<Head>, RepoError> {
        let Some(id) = self.catalog().tagged(model, tag)? else { return Ok(None) };
        Ok(self.catalog().by_id(&id)?.filter(|h| !h.removed))
    }

    pub fn tags_of(&self, head: &Head) -> Result<Vec<VersionName>, RepoError> {
        let tags = self.catalog().tags(&head.model)?.into_iter();
        Ok(tags.filter(|(_, id)| *id == head.id).map(|(tag, _)| tag).collect())
    }

    pub(super) fn refuse_tagged(&self, head: &Head) -> Result<(), RepoError> {
        match self.tags_of(head)?.first() {
            None => Ok(()),
            Some(tag) => {
                let (name, model) = (label(head), &head.model);
                let hint = format!("'mgit tag --delete {model}@{tag}' takes the tag away");
                Err(RepoError::refused(format!("{name} is tagged '{tag}' and stays; {hint}")))
            }
        }
    }
}
