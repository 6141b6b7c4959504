//! The part of the catalog that is about work on versions: registered tests and their results.
//!
//! ```text
//! t test                   a registered test, JSON
//! r id test 0 content      the last result of that test content on the version, JSON
//! ```

use super::{Catalog, Frame, Result, failed, key, parse, text};
use crate::model::event::Event;
use crate::model::id::Id;
use crate::model::test::{Test, TestResult};

/// Tags of the keys here.
const TAGS: [u8; 2] = *b"tr";

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
    pub(super) fn take_work(&mut self, event: &Event) {
        match event {
            Event::Test(test) => self.put(key(b't', &[test.name.as_str().as_bytes()]), text(test)),
            Event::TestRemove { test } => {
                self.writes.insert(key(b't', &[test.as_str().as_bytes()]), None);
            }
            Event::Result(r) => {
                self.put(key(b'r', &[&r.version.0, r.test.as_str().as_bytes(), &[0], &r.content.0]), text(r));
            }
            _ => {}
        }
    }
}
