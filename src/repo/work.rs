//! What can be asked about work on versions (tests and their results), answered where the catalog is.

use serde::{Deserialize, Serialize};

use super::engine::{Engine, label};
use super::fsck::Finding;
use super::tests::{self, Row};
use super::{Repo, RepoError};
use crate::model::event::Event;
use crate::model::id::Id;
use crate::model::test::{Test, TestName, TestResult};

#[derive(Debug, Serialize, Deserialize)]
pub enum Ask {
    /// All registered tests.
    Tests,
    AddTest(Test),
    RemoveTest(TestName),
    /// Takes down what tests gave.
    AddResults(Vec<TestResult>),
    /// All results, those of former test contents too.
    Results,
    /// The last result of each registered test on each living version, or on one.
    Rows(Option<Id>),
    /// The kept files that are wanted, and by whom.
    Files,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    Done,
    Tests(Vec<Test>),
    Results(Vec<TestResult>),
    Rows(Vec<Row>),
    Files(Vec<(Id, String)>),
}

pub fn answer(engine: &Engine, ask: Ask) -> Result<Answer, RepoError> {
    let record = |events| engine.record(events).map(|()| Answer::Done);
    match ask {
        Ask::Tests => Ok(Answer::Tests(engine.catalog().tests()?)),
        Ask::AddTest(test) => record(vec![Event::Test(test)]),
        Ask::RemoveTest(test) => match engine.catalog().tests()?.iter().any(|t| t.name == test) {
            true => record(vec![Event::TestRemove { test }]),
            false => Err(RepoError::refused(format!("no test '{test}'; 'mgit test ls' lists them"))),
        },
        Ask::AddResults(results) => record(results.into_iter().map(|r| Event::Result(Box::new(r))).collect()),
        Ask::Results => Ok(Answer::Results(engine.catalog().results(None)?)),
        Ask::Files => Ok(Answer::Files(wanted(engine)?)),
        Ask::Rows(version) => Ok(Answer::Rows(tests::rows(engine, version.as_ref())?)),
    }
}

/// The kept files that events name, of removed versions too.
fn wanted(engine: &Engine) -> Result<Vec<(Id, String)>, RepoError> {
    let mut files = Vec::new();
    for r in engine.catalog().results(None)? {
        let of = || engine.catalog().by_id(&r.version).map(|h| h.map_or_else(|| r.version.short(), |h| label(&h)));
        if let Some(examples) = &r.examples {
            files.push((examples.file, format!("the outcomes of test {} on {}", r.test, of()?)));
        }
    }
    Ok(files)
}

/// What is wrong with kept files.
pub fn check_files(repo: &Repo, wanted: &[(Id, String)]) -> Vec<Finding> {
    let check = |(id, whose): &(Id, String)| {
        let what = format!("{whose}: {}", repo.files().get(id).err()?);
        Some(Finding { kind: "file".to_owned(), what, place: format!("journal/files/{id}") })
    };
    wanted.iter().filter_map(check).collect()
}
