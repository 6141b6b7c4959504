//! What `mgit import` and `mgit repack` share to make a version lossy: the options, the search for the largest bound, and
//! the tests that the result has to pass while nobody sees it.
//!
//! The lossy candidate lies in a directory of the run's own, the very files that will be stored; what does not change is a
//! link to the exact file, and parents are in the mount. Nothing is published here: a crash leaves what was.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::out;
use super::served::Served;
use super::test::{rate, seconds};
use crate::codec::Effort;
use crate::control::{Request, Response};
use crate::model::id::Id;
use crate::model::lossy::{Bound, Gated, Limits, Lossy};
use crate::model::name::{ModelName, VersionName};
use crate::model::record::Real;
use crate::model::test::TestResult;
use crate::repo::Repo;
use crate::repo::import::{Entry, Hashed};
use crate::repo::lossy::{Gate, Moved, Passed, lay_out, quantize};
use crate::repo::progress::Progress;
use crate::repo::scratch::Scratch;
use crate::repo::tests::Subject;
use crate::repo::work::{Answer, Ask};
use crate::work;

/// Metrics and examples may get worse by this share where nobody says otherwise.
const TOLERANCE: f64 = 0.02;
/// The search tries bounds of 2^(n/2) times the update's root mean square, n from here to there.
const SEARCH: std::ops::RangeInclusive<i32> = -16..=4;

/// To store weights that are not exact.
#[derive(clap::Args, Clone, Default)]
#[command(next_help_heading = "Lossy storage")]
pub struct LossyArgs {
    /// Change no weight by more than E, so that the version takes less; the registered tests must still pass
    #[arg(long, value_name = "E", value_parser = positive, conflicts_with_all = ["max_rel_error", "lossy_gate"])]
    pub max_error: Option<f64>,
    /// By no more than R times the root mean square of what the tensor differs from its base by
    #[arg(long, value_name = "R", value_parser = positive, conflicts_with = "lossy_gate")]
    pub max_rel_error: Option<f64>,
    /// Search the largest such R with which the registered tests pass
    #[arg(long, conflicts_with = "ungated")]
    pub lossy_gate: bool,
    /// How much worse a test's metric may be than on the exact version, as a share of its size [default: 2%]
    #[arg(long, value_name = "T", value_parser = rate)]
    pub tolerance: Option<f64>,
    /// How many of a test's examples may be right on the exact version and wrong now, as a share of all [default: 2%]
    #[arg(long, value_name = "S", value_parser = rate)]
    pub max_negative_flips: Option<f64>,
    /// Seconds after which a test has failed
    #[arg(long, value_name = "T", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// Run no test, or go without one
    #[arg(long)]
    pub ungated: bool,
}

fn positive(s: &str) -> Result<f64, String> {
    s.parse::<f64>().ok().filter(|v| v.is_normal() && *v > 0.0).ok_or_else(|| "a number above 0, as 1e-4".to_owned())
}

impl LossyArgs {
    /// Whether anything lossy is asked for. Options that only serve that are an error without.
    pub fn wanted(&self) -> Result<bool> {
        let wanted = self.max_error.is_some() || self.max_rel_error.is_some() || self.lossy_gate;
        let serving = self.tolerance.is_some() || self.max_negative_flips.is_some() || self.ungated;
        ensure!(wanted || !serving, "nothing lossy is asked for; add --max-error, --max-rel-error or --lossy-gate");
        Ok(wanted)
    }

    /// `None`: to be searched.
    pub fn bound(&self) -> Option<Bound> {
        let absolute = self.max_error.map(|e| Bound::Absolute(Real(e)));
        absolute.or(self.max_rel_error.map(|r| Bound::Relative(Real(r))))
    }

    fn limits(&self) -> Limits {
        let max_flips = self.max_negative_flips.unwrap_or(TOLERANCE);
        Limits { tolerance: self.tolerance.unwrap_or(TOLERANCE), max_flips }
    }
}

/// A version as it is exactly.
pub struct Original<'a> {
    pub entries: &'a [Entry],
    pub model: &'a ModelName,
    pub version: &'a VersionName,
    /// Its id, stored or not.
    pub id: Id,
    /// It is stored, and the mount has it.
    pub stored: bool,
    /// Versions that it may be built on.
    pub bases: Vec<Id>,
    pub parents: Vec<(ModelName, VersionName)>,
    pub previous: Option<(ModelName, VersionName)>,
    /// What happens when the gate refuses, in words.
    pub otherwise: &'a str,
}

/// What is to be stored instead.
pub struct Made {
    pub hashed: Hashed,
    pub lossy: Lossy,
    pub results: Vec<TestResult>,
    /// Its files lie here.
    _scratch: Arc<Scratch>,
}

/// Moves the weights and puts the result to the tests. `None` where nothing gets smaller by it.
pub fn make(repo: &Arc<Repo>, a: &LossyArgs, exact: &Original, effort: Effort, bar: &out::Bar) -> Result<Option<Made>> {
    let maker = Maker { repo, exact, effort, bar, scratch: Arc::new(Scratch::new(repo)?) };
    let judge = if a.ungated { None } else { Some(Judge::open(&maker, a)?) };
    match (a.bound(), &judge) {
        (Some(bound), _) => {
            let Some((moved, dir)) = maker.move_to(bound)? else { return Ok(None) };
            let passed = judge.as_ref().map(|j| j.pass(&maker, &moved, dir)).transpose()?;
            match passed.transpose() {
                Ok(passed) => Ok(Some(maker.made(bound, moved, passed))),
                Err(why) => bail!("{why}; {}. A smaller bound may pass, --lossy-gate finds one", exact.otherwise),
            }
        }
        (None, Some(judge)) => search(&maker, judge),
        (None, None) => bail!("--lossy-gate needs tests"),
    }
}

/// The largest bound that passes, for what passes at a bound is taken to pass at all smaller ones.
fn search(maker: &Maker, judge: &Judge) -> Result<Option<Made>> {
    let (mut low, mut high) = (*SEARCH.start() - 1, *SEARCH.end() + 1);
    let (mut best, mut why) = (None, String::new());
    while high - low > 1 {
        let n = low + (high - low) / 2;
        let bound = Bound::Relative(Real(2f64.powf(n as f64 / 2.0)));
        let Some((moved, dir)) = maker.move_to(bound)? else {
            low = n; // So little room that exact values take no more.
            continue;
        };
        match judge.pass(maker, &moved, dir)? {
            Ok(passed) => (best, low) = (Some(maker.made(bound, moved, Some(passed))), n),
            Err(w) => (why, high) = (w, n),
        }
    }
    match best {
        None if !why.is_empty() => bail!("no bound passes: {why}; {}", maker.exact.otherwise),
        best => Ok(best),
    }
}

struct Maker<'a> {
    repo: &'a Arc<Repo>,
    exact: &'a Original<'a>,
    effort: Effort,
    bar: &'a out::Bar,
    scratch: Arc<Scratch>,
}

impl Maker<'_> {
    /// Into a directory of its own. `None` where nothing was moved.
    fn move_to(&self, bound: Bound) -> Result<Option<(Moved, PathBuf)>> {
        let name = match bound {
            Bound::Absolute(e) => format!("error-{}", e.0),
            Bound::Relative(r) => format!("rel-error-{}", r.0),
        };
        let dir = self.scratch.dir(&name)?;
        let (exact, bar): (_, &dyn Progress) = (self.exact, self.bar);
        let moved = quantize(self.repo, exact.entries, &exact.bases, bound, self.effort, &dir, bar)?;
        Ok(Some((moved, dir)).filter(|(m, _)| !m.files.is_empty()))
    }

    fn made(&self, bound: Bound, moved: Moved, passed: Option<Passed>) -> Made {
        let (gate, results): (Vec<Gated>, Vec<TestResult>) =
            passed.map_or_else(Default::default, |p| (p.gated, p.results));
        let lossy = Lossy {
            bound,
            max_error: Real(moved.errors.max),
            rms_error: Real(moved.errors.rms()),
            weights: moved.errors.weights,
            original: self.exact.id,
            blake3: Lossy::digest(&moved.files),
            files: moved.files,
            gate,
        };
        Made { hashed: moved.hashed, lossy, results, _scratch: self.scratch.clone() }
    }
}

/// The gate, and the mount that its programs see.
struct Judge {
    gate: Gate,
    served: Served,
    subject: Subject,
}

impl Judge {
    fn open(maker: &Maker, a: &LossyArgs) -> Result<Judge> {
        let (repo, exact) = (maker.repo, maker.exact);
        let (served, mut session) = Served::open(repo)?;
        let tests = work!(session, Ask::Tests, Answer::Tests(t) => t)?;
        let known = match exact.stored {
            true => work!(session, Ask::Rows(Some(exact.id)), Answer::Rows(r) => r)?,
            false => vec![],
        };
        drop(session);
        let known: Vec<TestResult> = known.into_iter().map(|row| row.result).collect();
        let path = |(model, version): &(ModelName, VersionName)| served.path(model, version);
        let own = match exact.stored {
            true => served.path(exact.model, exact.version),
            false => {
                let dir = maker.scratch.dir("exact")?;
                lay_out(exact.entries, |p| PathBuf::from(p), &dir)?;
                dir
            }
        };
        let subject = Subject {
            path: own,
            model: exact.model.clone(),
            version: exact.version.clone(),
            parents: exact.parents.iter().map(path).collect(),
            previous: exact.previous.as_ref().map(path),
        };
        let gate = Gate::new(repo, (tests, &known), &subject, a.limits(), a.timeout, maker.bar)?;
        let Some(gate) = gate else {
            bail!(
                "no test is registered for {}, so nothing says what it may lose; 'mgit test add' registers one, --ungated \
                 goes without",
                exact.model
            );
        };
        Ok(Judge { gate, served, subject })
    }

    fn pass(&self, maker: &Maker, moved: &Moved, dir: PathBuf) -> Result<Result<Passed, String>> {
        let exact = maker.exact;
        let at = |p: &str| self.served.path(exact.model, exact.version).join(p);
        lay_out(moved.hashed.entries(), at, &dir)?;
        let subject = Subject { path: dir, ..self.subject.clone() };
        Ok(self.gate.pass(maker.repo, &subject, maker.bar)?)
    }
}

/// `error at most 0.0001 (largest 0.0000998, RMS 0.00004)`.
pub fn words(l: &Lossy) -> String {
    let bound = match l.bound {
        Bound::Absolute(e) => format!("{}", e.0),
        Bound::Relative(r) => format!("{:.4} of the update", r.0),
    };
    format!("each weight within {bound} (most {:.3e}, RMS {:.3e})", l.max_error.0, l.rms_error.0)
}

/// What the gate said, a line for each test.
pub fn gate_words(l: &Lossy) -> Vec<String> {
    let line = |g: &Gated| {
        let metric = g.metric.iter().map(|m| format!("{} {} -> {}", m.name, m.exact.0, m.lossy.0));
        let flips = g.examples.zip(g.negative_flips).map(|(of, n)| format!("{n} of {of} examples no longer right"));
        let all: Vec<String> = std::iter::once(g.result.as_str().to_owned()).chain(metric).chain(flips).collect();
        format!("{}: {}", g.test, all.join(", "))
    };
    match l.gate.is_empty() {
        true => vec!["no test was asked".to_owned()],
        false => l.gate.iter().map(line).collect(),
    }
}
