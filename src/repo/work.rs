//! What can be asked about work on versions (tests and their results, recipes, updates), answered where the catalog is.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::engine::{Engine, label};
use super::fsck::Finding;
use super::origin::Move;
use super::tests::{self, Row};
use super::{Head, Repo, RepoError};
use crate::model::build::Build;
use crate::model::cascade::{Cascade, Fact, Plan, State};
use crate::model::event::Event;
use crate::model::id::Id;
use crate::model::name::printable;
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
    /// Of a version, or takes it away.
    SetRecipe(Id, Option<Build>),
    /// That of a version, or of the nearest before it that has one.
    Recipe(Id),
    /// All versions that have one of their own.
    Recipes,
    /// All versions by what they are made from.
    Facts,
    /// The last update.
    Cascade,
    BeginUpdate(Plan),
    UpdateStep(usize, State),
    Publish(Box<Publication>),
}

/// A version to be published, and what is to happen with it or not at all.
#[derive(Debug, Serialize, Deserialize)]
pub struct Publication {
    pub commit: Event,
    pub moves: Vec<Move>,
    pub results: Vec<TestResult>,
    pub recipe: Option<Build>,
    /// The step of the last update that it does.
    pub step: Option<usize>,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    Done,
    Tests(Vec<Test>),
    Results(Vec<TestResult>),
    Rows(Vec<Row>),
    Files(Vec<(Id, String)>),
    /// And whose it is.
    Recipe(Option<(Head, Build)>),
    Ids(Vec<Id>),
    Facts(Vec<Fact>),
    Cascade(Option<Cascade>),
    Head(Head),
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
        Ask::SetRecipe(id, Some(recipe)) => record(vec![Event::Recipe { id, recipe: Box::new(recipe) }]),
        Ask::SetRecipe(id, None) => match engine.catalog().build(&id)? {
            Some(_) => record(vec![Event::RecipeRemove { id }]),
            None => Err(RepoError::refused("it has no recipe of its own; 'mgit recipe show' says whose it is")),
        },
        Ask::Recipe(id) => Ok(Answer::Recipe(recipe(engine, id)?)),
        Ask::Recipes => Ok(Answer::Ids(engine.catalog().builds()?)),
        Ask::Facts => Ok(Answer::Facts(facts(engine)?)),
        Ask::Cascade => Ok(Answer::Cascade(engine.catalog().cascade()?)),
        Ask::BeginUpdate(plan) => record(vec![Event::Update(Box::new(plan))]),
        Ask::UpdateStep(step, state) => record(vec![Event::UpdateStep { step, state }]),
        Ask::Publish(p) => publish(engine, *p).map(Answer::Head),
        Ask::Files => Ok(Answer::Files(wanted(engine)?)),
        Ask::Rows(version) => Ok(Answer::Rows(tests::rows(engine, version.as_ref())?)),
    }
}

/// All of it, or nothing.
fn publish(engine: &Engine, p: Publication) -> Result<Head, RepoError> {
    let Event::Commit { id, replaces, .. } = &p.commit else {
        return Err(RepoError::refused("only a commit can be published"));
    };
    let (id, replaces) = (*id, replaces.is_some());
    let mut more: Vec<Event> = p.results.into_iter().map(|r| Event::Result(Box::new(r))).collect();
    more.extend(p.recipe.map(|recipe| Event::Recipe { id, recipe: Box::new(recipe) }));
    more.extend(p.step.map(|step| Event::UpdateStep { step, state: State::Done { id } }));
    match replaces {
        true => engine.replace(p.commit, more),
        false => engine.publish_with(p.commit, &p.moves, more),
    }
}

/// A version's recipe, or that of the nearest before it that has one.
fn recipe(engine: &Engine, id: Id) -> Result<Option<(Head, Build)>, RepoError> {
    let (mut next, mut seen) = (Some(id), HashSet::new());
    while let Some(id) = next.filter(|id| seen.insert(*id)) {
        let Some(head) = engine.catalog().by_id(&id)? else { break };
        if let Some(build) = engine.catalog().build(&id)? {
            return Ok(Some((head, build)));
        }
        next = head.previous;
    }
    Ok(None)
}

/// All versions by what they are made from, in commit order.
pub fn facts(engine: &Engine) -> Result<Vec<Fact>, RepoError> {
    let fact = |h: Head| -> Result<Fact, RepoError> {
        let parents = engine.catalog().parents(&h.id)?.into_iter().map(|e| (e.id, e.relation)).collect();
        Ok(Fact { id: h.id, model: h.model, version: h.version, removed: h.removed, previous: h.previous, parents })
    };
    engine.catalog().ever_all()?.into_iter().map(fact).collect()
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
    for id in engine.catalog().builds()? {
        let of = engine.catalog().by_id(&id)?.map_or_else(|| id.short(), |h| label(&h));
        let build = engine.catalog().build(&id)?;
        let named = build.into_iter().flat_map(|b| b.files);
        files.extend(named.map(|f| (f.id, format!("file {} of the recipe of {of}", printable(&f.name)))));
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
