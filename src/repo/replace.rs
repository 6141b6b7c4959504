//! A lossy version in the place of the exact one, and the way back: one journal frame each.
//!
//! Who comes takes the name, the place in the model's order, the tags, the recipe and the children of who goes; their order
//! of parents stays. Who goes is removed, and comes back by `undo` for as long as gc has left what it needs.

use super::engine::{Engine, label};
use super::{Head, RepoError};
use crate::model::event::Event;
use crate::model::id::Id;
use crate::model::record::ParentEdge;

impl Engine {
    /// Makes a sealed version visible in the place of the one that its commit names; `more` happens with it.
    pub fn replace(&self, commit: Event, more: Vec<Event>) -> Result<Head, RepoError> {
        let Event::Commit { model, version, id, replaces: Some(old), .. } = &commit else {
            return Err(RepoError::refused("only a commit in another's place can replace it"));
        };
        let (id, old) = (*id, *old);
        self.check_commit(&commit)?;
        let name = format!("{model}@{version}");
        self.change(|| {
            let living = self.catalog().find(model, version)?.filter(|h| h.id == old);
            let old = living.ok_or_else(|| RepoError::refused(format!("{name} was changed meanwhile; try again")))?;
            let at = Some(self.repo.disk.now());
            let gone = Event::Remove { model: old.model.clone(), version: old.version.clone(), id: old.id, at };
            let after = self.inherited(&old, id)?;
            Ok(([gone, commit.clone()].into_iter().chain(after).chain(more).collect(), ()))
        })?;
        self.catalog().by_id(&id)?.ok_or_else(|| RepoError::damaged("a published version is not there".into()))
    }

    /// What makes the heir of a version stand where it stood.
    pub(super) fn inherited(&self, old: &Head, heir: Id) -> Result<Vec<Event>, RepoError> {
        let (catalog, mut events) = (self.catalog(), Vec::new());
        for child in catalog.children(&old.id)? {
            let parents = catalog.parents(&child.id)?;
            events.extend(parents.iter().map(|p| Event::Unlink { child: child.id, parent: p.id }));
            let moved = |p: &ParentEdge| ParentEdge { id: if p.id == old.id { heir } else { p.id }, ..*p };
            events.extend(parents.iter().map(|p| Event::link(child.id, moved(p))));
        }
        for id in catalog.next(&old.id)? {
            let guess = catalog.by_id(&id)?.is_some_and(|h| h.guess);
            events.push(Event::Follow { id, previous: heir, guess });
        }
        let (model, id) = (&old.model, Some(heir));
        events.extend(self.tags_of(old)?.into_iter().map(|tag| Event::Tag { model: model.clone(), tag, id }));
        let recipe = catalog.build(&old.id)?;
        events.extend(recipe.map(|r| Event::Recipe { id: heir, recipe: Box::new(r) }));
        Ok(events)
    }

    /// The living lossy version that took a removed one's place, if there is one.
    pub(super) fn heir(&self, gone: &Head) -> Result<Option<Head>, RepoError> {
        let named = self.catalog().find(&gone.model, &gone.version)?;
        Ok(named.filter(|h| h.id != gone.id && h.lossy && h.place == Some(gone.order().0)))
    }

    /// What brings a removed version back, in the place of its heir where it has one.
    pub(super) fn restored(&self, gone: &Head) -> Result<Vec<Event>, RepoError> {
        let back = Event::Restore { model: gone.model.clone(), version: gone.version.clone(), id: gone.id };
        let Some(heir) = self.heir(gone)? else { return Ok(vec![back]) };
        log::info!("{} is exact again", label(gone));
        // Who took its place is not what a later `undo` is about.
        let leaves = Event::Remove { model: heir.model.clone(), version: heir.version.clone(), id: heir.id, at: None };
        let after = self.inherited(&heir, gone.id)?;
        Ok([leaves, back].into_iter().chain(after).collect())
    }
}
