//! What the journal says: every change to what can change. All names, edges and removals follow from
//! replaying these in order.
//!
//! Stored as one JSON object each, tagged by `"event"`; a journal frame holds an array of them, all or none of
//! which happened. An unknown tag is an error on replay: a journal
//! that a later mgit wrote must not be half understood.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::build::Build;
use super::cascade::{Plan, State};
use super::id::Id;
use super::name::{ModelName, VersionName};
use super::record::{ParentEdge, Real, Relation, VersionRecord, is_false};
use super::test::{Test, TestName, TestResult};

/// One journal entry.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// `id` is from now on `model@version`; its record lies in pack `pack`.
    Commit {
        model: ModelName,
        version: VersionName,
        id: Id,
        /// Pack that the commit added, as its file stem.
        pack: String,
        created: Timestamp,
        /// Logical bytes of all files.
        bytes: u64,
        previous: Option<Id>,
        /// `previous` was found by content alone.
        #[serde(default, skip_serializing_if = "is_false")]
        guess: bool,
        /// Made by settling: it may be written again, and then gives its name to what takes its place.
        #[serde(default, skip_serializing_if = "is_false")]
        settled: bool,
        /// Its record says so.
        #[serde(default, skip_serializing_if = "is_false")]
        lossy: bool,
        /// The version whose place in the model's order it takes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replaces: Option<Id>,
        parents: Vec<ParentEdge>,
    },
    /// A settled version is from now on as final as any other.
    Seal {
        id: Id,
    },
    /// The version is gone; its name is not used again, unless it was a settled one's.
    Remove {
        model: ModelName,
        version: VersionName,
        id: Id,
        /// When; older journals don't say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<Timestamp>,
    },
    /// A removed version is back, and has its name again.
    Restore {
        model: ModelName,
        version: VersionName,
        id: Id,
    },
    /// The model's tag leads to `id`, or to nothing any longer.
    Tag {
        model: ModelName,
        tag: VersionName,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<Id>,
    },
    /// All versions and tags of the model `from`, the removed ones too, are `to`'s. That had none.
    Rename {
        from: ModelName,
        to: ModelName,
    },
    /// A provenance edge, appended to the child's parents (or its relation replaced).
    Link {
        child: Id,
        parent: Id,
        relation: Relation,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        coefficient: Option<Real>,
        #[serde(default, skip_serializing_if = "is_false")]
        guess: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        distance: Option<Real>,
    },
    /// A version edge: `id` follows `previous` within its model.
    Follow {
        id: Id,
        previous: Id,
        #[serde(default, skip_serializing_if = "is_false")]
        guess: bool,
    },
    /// No edge of either kind from `child` to `parent` any longer.
    Unlink {
        child: Id,
        parent: Id,
    },
    /// A test is registered, or registered anew under its name.
    Test(Test),
    /// The test is registered no longer; its results stay.
    TestRemove {
        test: TestName,
    },
    /// What a run of a test gave; in place of what the same test content gave on the same version before.
    Result(Box<TestResult>),
    /// How the version is made from its parents.
    Recipe {
        id: Id,
        recipe: Box<Build>,
    },
    RecipeRemove {
        id: Id,
    },
    /// An update cascade begins, in place of any before it.
    Update(Box<Plan>),
    /// A step of the last cascade is so far.
    UpdateStep {
        step: usize,
        state: State,
    },
}

impl Event {
    /// The commit that a record tells of; `guess`: its `previous` was found by content alone.
    pub fn commit(r: &VersionRecord, id: Id, pack: String, guess: bool, replaces: Option<Id>) -> Event {
        Event::Commit {
            model: r.model.clone(),
            version: r.version.clone(),
            id,
            pack,
            created: r.created,
            bytes: r.logical_bytes(),
            previous: r.previous,
            guess,
            settled: false,
            lossy: r.lossy.is_some(),
            replaces,
            parents: r.parents.clone(),
        }
    }

    /// The edge from `child` up.
    pub fn link(child: Id, edge: ParentEdge) -> Event {
        let ParentEdge { id: parent, relation, coefficient, guess, distance } = edge;
        Event::Link { child, parent, relation, coefficient, guess, distance }
    }
}
