//! What the store must keep: the roots of [`super::gc`], and all that follows from them.
//!
//! Everything that may not be freed is named here, a function for each reason, and nowhere else. A new kind of
//! thing that a journal entry or a file of the repository refers to gets a function and a line in [`Roots::of`].

use std::collections::HashSet;

use jiff::Timestamp;

use super::{Head, Repo, RepoError};
use crate::model::id::Id;
use crate::model::record::EntryKind;
use crate::store::catalog::Catalog;

/// What is needed for itself.
#[derive(Default)]
pub struct Roots {
    /// Version records.
    pub versions: HashSet<Id>,
    /// Recipes, with the objects of their extents.
    pub recipes: HashSet<Id>,
    /// Objects beside those.
    pub objects: HashSet<Id>,
}

/// All that is needed.
#[derive(Default)]
pub struct Live {
    pub versions: HashSet<Id>,
    pub recipes: HashSet<Id>,
    pub objects: HashSet<Id>,
}

impl Roots {
    /// What `catalog` and this process need. Versions that went away after `since` stay too.
    pub fn of(repo: &Repo, catalog: &Catalog, since: Timestamp) -> Result<Roots, RepoError> {
        let mut roots = Roots::default();
        roots.living(repo, catalog)?;
        roots.lately_removed(repo, catalog, since)?;
        roots.lately_sealed(repo, catalog, since)?;
        roots.remembered(repo, catalog)?;
        roots.open_files(repo);
        Ok(roots)
    }

    /// What one version needs.
    pub fn of_version(repo: &Repo, id: &Id) -> Result<Roots, RepoError> {
        let mut roots = Roots::default();
        roots.version(repo, id)?;
        Ok(roots)
    }

    fn living(&mut self, repo: &Repo, catalog: &Catalog) -> Result<(), RepoError> {
        catalog.all()?.iter().try_for_each(|h| self.version(repo, &h.id))
    }

    /// As far as an earlier gc with less grace has left them whole.
    fn lately_removed(&mut self, repo: &Repo, catalog: &Catalog, since: Timestamp) -> Result<(), RepoError> {
        let at = |h: &Head| h.removed_at.unwrap_or(Timestamp::UNIX_EPOCH);
        let kept = |h: &Head| h.removed && at(h) >= since && repo.packs.has_version(&h.id);
        for head in catalog.ever_all()?.into_iter().filter(kept) {
            if Roots::of_version(repo, &head.id).is_ok_and(|roots| roots.live(repo).is_ok()) {
                self.version(repo, &head.id)?;
            }
        }
        Ok(())
    }

    /// Packs whose version no journal entry names.
    fn lately_sealed(&mut self, repo: &Repo, catalog: &Catalog, since: Timestamp) -> Result<(), RepoError> {
        for id in repo.packs.versions() {
            if catalog.by_id(&id)?.is_none() && repo.record(&id).is_ok_and(|r| r.created >= since) {
                self.version(repo, &id)?;
            }
        }
        Ok(())
    }

    /// Of removed versions that living ones come from, the record: their cards tell of it.
    fn remembered(&mut self, repo: &Repo, catalog: &Catalog) -> Result<(), RepoError> {
        let (mut todo, mut seen) = (Vec::new(), HashSet::new());
        todo.extend(catalog.all()?.into_iter().map(|h| h.id));
        while let Some(id) = todo.pop() {
            if !seen.insert(id) {
                continue;
            }
            todo.extend(catalog.parents(&id)?.iter().map(|p| p.id));
            todo.extend(catalog.by_id(&id)?.and_then(|h| h.previous));
        }
        self.versions.extend(seen.into_iter().filter(|id| repo.packs.has_version(id)));
        Ok(())
    }

    /// A file that is open stays readable until it is closed.
    fn open_files(&mut self, repo: &Repo) {
        self.recipes.extend(repo.pinned().into_iter().filter(|id| repo.packs.has_recipe(id)));
    }

    fn version(&mut self, repo: &Repo, id: &Id) -> Result<(), RepoError> {
        let record = repo.record(id)?;
        self.versions.insert(*id);
        self.recipes.extend(record.files.iter().filter(|f| f.kind == EntryKind::File).map(|f| f.recipe));
        Ok(())
    }

    /// With the objects that recipes name, and the bases of bases. Fails where something of it is damaged or missing.
    pub fn live(self, repo: &Repo) -> Result<Live, RepoError> {
        let mut todo: Vec<Id> = self.objects.into_iter().collect();
        for recipe in &self.recipes {
            todo.extend(repo.packs.recipe(recipe)?.extents.iter().map(|e| e.object));
        }
        let mut objects = HashSet::new();
        while let Some(id) = todo.pop() {
            if objects.insert(id) {
                todo.extend(repo.packs.object(&id)?.record.bases.iter().map(|b| b.id));
            }
        }
        Ok(Live { versions: self.versions, recipes: self.recipes, objects })
    }
}
