//! What a file costs in the store.
//!
//! Bytes that several versions share are charged once, to the oldest living one that uses them; so that
//! the charges of all living versions add up to nearly all of the packs. Usually that is the version that
//! brought them, whose pack they lie in: only where that version is gone do all others have to be looked at.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::{Head, Repo, RepoError};
use crate::model::id::Id;
use crate::model::record::{EntryKind, VersionRecord};

/// Answers for one state of the catalog.
pub struct Charges {
    repo: Arc<Repo>,
    /// Living versions in commit order.
    living: Vec<Head>,
    /// Pack of each living version → its place in `living`.
    by_pack: HashMap<String, usize>,
    by_id: HashMap<Id, usize>,
    /// Objects and recipes in packs of the departed → place of the oldest living version that uses them.
    orphans: OnceLock<HashMap<Id, usize>>,
    /// Answers so far.
    known: Mutex<HashMap<Id, Arc<Vec<u64>>>>,
}

/// Versions whose answers are held.
const MAX_KNOWN: usize = 1 << 14;

/// The packs in which what a version needs lies, sorted.
pub fn packs_of(repo: &Repo, record: &VersionRecord) -> Result<Vec<String>, RepoError> {
    let mut packs = BTreeSet::new();
    for f in record.files.iter().filter(|f| f.kind == EntryKind::File) {
        packs.extend(repo.packs.pack_of_recipe(&f.recipe));
        packs.extend(repo.packs.recipe(&f.recipe)?.extents.iter().filter_map(|e| repo.packs.pack_of_object(&e.object)));
    }
    Ok(packs.into_iter().collect())
}

impl Charges {
    pub fn new(repo: Arc<Repo>, living: Vec<Head>) -> Charges {
        let by_pack = living.iter().enumerate().map(|(i, h)| (h.pack.clone(), i)).collect();
        let by_id = living.iter().enumerate().map(|(i, h)| (h.id, i)).collect();
        Charges { repo, living, by_pack, by_id, orphans: OnceLock::new(), known: Mutex::default() }
    }

    /// Of one version, where all living ones need not be asked: `bringers` are those of [`packs_of`]. `None` where one of
    /// the packs has none.
    pub fn of_one(
        repo: &Arc<Repo>,
        head: &Head,
        record: &VersionRecord,
        bringers: Vec<Option<Head>>,
    ) -> Result<Option<Vec<u64>>, RepoError> {
        let Some(bringers) = bringers.into_iter().collect::<Option<Vec<_>>>() else { return Ok(None) };
        let few = std::iter::once(head.clone()).chain(bringers).collect();
        Charges::new(repo.clone(), few).of(&head.id, record).map(Some)
    }

    /// As [`Charges::of`], remembered.
    pub fn of_version(&self, id: &Id) -> Result<Arc<Vec<u64>>, RepoError> {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(charges) = known().get(id) {
            return Ok(charges.clone());
        }
        let charges = Arc::new(self.of(id, &self.repo.record(id)?)?);
        let mut known = known();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(*id, charges.clone());
        Ok(charges)
    }

    /// Bytes that each file of the version is charged, in the record's order.
    pub fn of(&self, id: &Id, record: &VersionRecord) -> Result<Vec<u64>, RepoError> {
        let Some(&place) = self.by_id.get(id) else {
            return Ok(vec![0; record.files.len()]);
        };
        let mut seen = HashSet::new();
        record.files.iter().map(|f| self.file(place, &f.recipe, &mut seen)).collect()
    }

    fn file(&self, place: usize, recipe: &Id, seen: &mut HashSet<Id>) -> Result<u64, RepoError> {
        if *recipe == Id([0; 32]) || !seen.insert(*recipe) {
            return Ok(0);
        }
        let mut sum = 0;
        if self.owner(recipe, self.repo.packs.pack_of_recipe(recipe))? == Some(place) {
            sum += self.repo.packs.recipe_stored_bytes(recipe).unwrap_or(0);
        }
        for e in self.repo.packs.recipe(recipe)?.extents {
            if seen.insert(e.object) && self.owner(&e.object, self.repo.packs.pack_of_object(&e.object))? == Some(place)
            {
                sum += self.repo.packs.object_stored_bytes(&e.object).unwrap_or(0);
            }
        }
        Ok(sum)
    }

    fn owner(&self, id: &Id, pack: Option<String>) -> Result<Option<usize>, RepoError> {
        let Some(pack) = pack else { return Ok(None) };
        match self.by_pack.get(&pack) {
            Some(&place) => Ok(Some(place)),
            None => Ok(self.orphans.get_or_init(|| self.find_orphans()).get(id).copied()),
        }
    }

    fn find_orphans(&self) -> HashMap<Id, usize> {
        let mut owners = HashMap::new();
        for (place, head) in self.living.iter().enumerate() {
            // A damaged record or recipe costs its own version's charge, not everybody's.
            let Ok(record) = self.repo.record(&head.id) else { continue };
            for f in &record.files {
                let Ok(recipe) = self.repo.packs.recipe(&f.recipe) else { continue };
                owners.entry(f.recipe).or_insert(place);
                recipe.extents.iter().for_each(|e| {
                    owners.entry(e.object).or_insert(place);
                });
            }
        }
        owners
    }
}
