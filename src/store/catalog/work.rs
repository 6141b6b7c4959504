//! The part of the catalog that is about work on versions: registered tests and their results, recipes, the last update.
//!
//! ```text
//! t test                   a registered test, JSON
//! r id test 0 content      the last result of that test content on the version, JSON
//! b id                     the version's build recipe, JSON
//! u                        the last update cascade and how far it is, JSON
//! ```

use super::{Catalog, Frame, Result, failed, key, last_id, parse, text};
use crate::model::build::Build;
use crate::model::cascade::Cascade;
use crate::model::event::Event;
use crate::model::id::Id;
use crate::model::test::{Test, TestResult};

/// Tags of the keys here.
const TAGS: [u8; 4] = *b"trbu";

impl Catalog {
    /// All registered tests, by name.
    pub fn tests(&self) -> Result<Vec<Test>> {
        self.db.scan_prefix(b"t").values().map(|v| parse(&v.map_err(failed)?, "a test")).collect()
    }

    /// All results, or those of a version, by version and test; of each the one of each test content.
    pub fn results(&self, version: Option<&Id>) -> Result<Vec<TestResult>> {
        let prefix = version.map_or_else(|| key(b'r', &[]), |id| key(b'r', &[&id.0]));
        self.db.scan_prefix(prefix).values().map(|v| parse(&v.map_err(failed)?, "a result")).collect()
    }

    /// The recipe of a version.
    pub fn build(&self, id: &Id) -> Result<Option<Build>> {
        self.get(&key(b'b', &[&id.0]))?.map(|v| parse(&v, "a recipe")).transpose()
    }

    /// All versions with a recipe.
    pub fn builds(&self) -> Result<Vec<Id>> {
        self.db.scan_prefix(b"b").keys().map(|k| last_id(&k.map_err(failed)?)).collect()
    }

    /// The last update.
    pub fn cascade(&self) -> Result<Option<Cascade>> {
        self.get(b"u")?.map(|v| parse(&v, "an update")).transpose()
    }

    /// All of this part, to be compared.
    pub fn work(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut all = Vec::new();
        for tag in TAGS {
            for item in self.db.scan_prefix([tag]) {
                let (k, v) = item.map_err(failed)?;
                all.push((k.to_vec(), v.to_vec()));
            }
        }
        Ok(all)
    }
}

impl Frame<'_> {
    /// Takes in an event that is about work on versions.
    pub(super) fn take_work(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Test(test) => self.put(key(b't', &[test.name.as_str().as_bytes()]), text(test)),
            Event::TestRemove { test } => {
                self.writes.insert(key(b't', &[test.as_str().as_bytes()]), None);
            }
            Event::Result(r) => {
                self.put(key(b'r', &[&r.version.0, r.test.as_str().as_bytes(), &[0], &r.content.0]), text(r));
            }
            Event::Recipe { id, recipe } => self.put(key(b'b', &[&id.0]), text(recipe)),
            Event::RecipeRemove { id } => {
                self.writes.insert(key(b'b', &[&id.0]), None);
            }
            Event::Update(plan) => self.put(b"u".to_vec(), text(&Cascade::new((**plan).clone()))),
            Event::UpdateStep { step, state } => {
                if let Some(v) = self.get(b"u")? {
                    let mut cascade: Cascade = parse(&v, "an update")?;
                    cascade.set(*step, state.clone());
                    self.put(b"u".to_vec(), text(&cascade));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
