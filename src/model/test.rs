//! Tests: which versions one is for, what a run of it gave, which examples flipped between two runs, and whether a failure
//! came from a parent.
//!
//! A test is a command of the user's. A result hangs on the version's id and the test's content id, which covers the command
//! and the files that it names, so a changed script makes old results say nothing.
//!
//! It doesn't know how a command is run, nor where its files lie.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use glob::Pattern;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::id::Id;
use super::name::{ModelName, NameError, VersionName, printable, segment};

/// A test's name: what a segment of a model's name may be.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct TestName(String);

impl TestName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for TestName {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        segment(s)?;
        Ok(TestName(s.to_owned()))
    }
}

impl<'de> Deserialize<'de> for TestName {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Names of models, and perhaps of versions, with `*`, `?` and `[…]`; a `*` takes in an owner's `/` too.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(transparent)]
pub struct Glob(String);

impl Glob {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn matches(&self, model: &ModelName, version: &VersionName) -> bool {
        let fits = |pattern: &str, name: &str| Pattern::new(pattern).is_ok_and(|p| p.matches(name));
        match self.0.split_once('@') {
            Some((m, v)) => fits(m, model.as_str()) && fits(v, version.as_str()),
            None => fits(&self.0, model.as_str()),
        }
    }

    /// Whether it names a test.
    pub fn names(&self, test: &TestName) -> bool {
        Pattern::new(&self.0).is_ok_and(|p| p.matches(test.as_str()))
    }
}

impl FromStr for Glob {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let part =
            |p: &str| Pattern::new(p).map(drop).map_err(|e| format!("bad pattern '{}': {}", printable(s), e.msg));
        s.split('@').try_for_each(part)?;
        match s.matches('@').count() {
            0 | 1 => Ok(Glob(s.to_owned())),
            _ => Err(format!("bad pattern '{}': it is MODEL or MODEL@VERSION", printable(s))),
        }
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<'de> Deserialize<'de> for Glob {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Which way a metric is better.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    Higher,
    Lower,
}

/// The metric that a test is about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Metric {
    pub name: String,
    pub better: Better,
}

/// A registered test.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Test {
    pub name: TestName,
    /// Only for these; for all where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Glob>,
    /// Only for those whose `config.json` names this architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<Metric>,
    pub command: Vec<String>,
    /// Where it was registered: what relative paths in the command start from.
    pub dir: String,
}

impl Test {
    /// Whether it is for such a version. `archs` is asked only where that matters.
    pub fn is_for(&self, model: &ModelName, version: &VersionName, archs: impl FnOnce() -> Vec<String>) -> bool {
        self.model.as_ref().is_none_or(|g| g.matches(model, version))
            && self.arch.as_ref().is_none_or(|a| archs().contains(a))
    }
}

/// The architectures that a `config.json` names.
pub fn architectures(config: &[u8]) -> Vec<String> {
    let config: Value = serde_json::from_slice(config).unwrap_or_default();
    let names = config["architectures"].as_array().into_iter().flatten();
    names.filter_map(|n| n.as_str().map(str::to_owned)).collect()
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Pass,
    Fail,
    /// The program says that it cannot tell (exit 125).
    Skip,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
            Verdict::Skip => "skip",
        }
    }
}

/// What a run of a test on a version gave.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TestResult {
    pub test: TestName,
    pub content: Id,
    pub version: Id,
    pub verdict: Verdict,
    /// How it ended, where that was not exit 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metrics: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub examples: Option<Examples>,
    pub millis: u64,
    /// The end of what it printed.
    pub output: String,
    pub date: Timestamp,
}

/// Outcomes by example: how many, and the kept file that holds them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Examples {
    pub file: Id,
    pub right: u64,
    pub total: u64,
}

/// Where a failure comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// What the version comes from has it already.
    Inherited,
    /// What the version comes from passes.
    Introduced,
}

/// From what the versions that one comes from directly gave; `None` where none of them was asked.
pub fn origin(verdict: Verdict, above: impl IntoIterator<Item = Verdict>) -> Option<Origin> {
    let above: Vec<Verdict> = above.into_iter().filter(|v| *v != Verdict::Skip).collect();
    match verdict {
        Verdict::Fail if above.contains(&Verdict::Fail) => Some(Origin::Inherited),
        Verdict::Fail if !above.is_empty() => Some(Origin::Introduced),
        _ => None,
    }
}

/// Right or wrong, by example.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Outcomes(pub BTreeMap<String, bool>);

const IDS: [&str; 6] = ["id", "example", "name", "key", "index", "idx"];
const RIGHTS: [&str; 8] = ["ok", "correct", "right", "pass", "passed", "success", "outcome", "result"];
const SAID: [(&str, &str); 4] =
    [("prediction", "label"), ("predicted", "expected"), ("pred", "label"), ("output", "expected")];

impl Outcomes {
    /// From JSON lines: `{"id": …, "ok": true}`, `{"id": …, "prediction": …, "label": …}`, or only `true` or `false`.
    /// Without an id, an example's is its line's number.
    pub fn parse(text: &str) -> Result<Outcomes, String> {
        let mut all = BTreeMap::new();
        for (n, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            let bad = |why: &str| format!("examples, line {}: {why}", n + 1);
            let value: Value = serde_json::from_str(line).map_err(|_| bad("not JSON"))?;
            let right = right(&value).ok_or_else(|| bad("neither \"ok\" nor \"prediction\" and \"label\""))?;
            let id = IDS.iter().find_map(|k| value.get(k)).map_or_else(|| (n + 1).to_string(), plain);
            if all.insert(id.clone(), right).is_some() {
                return Err(bad(&format!("'{}' was told before", printable(&id))));
            }
        }
        Ok(Outcomes(all))
    }

    pub fn right(&self) -> u64 {
        self.0.values().filter(|right| **right).count() as u64
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn right(value: &Value) -> Option<bool> {
    let as_bool = |v: &Value| match v {
        Value::Bool(b) => Some(*b),
        Value::Number(n) => n.as_f64().filter(|n| *n == 0.0 || *n == 1.0).map(|n| n == 1.0),
        Value::String(s) => match s.as_str() {
            "pass" | "passed" | "ok" | "right" | "correct" | "true" => Some(true),
            "fail" | "failed" | "wrong" | "incorrect" | "false" => Some(false),
            _ => None,
        },
        _ => None,
    };
    let said = || SAID.iter().find_map(|(is, ought)| Some(value.get(is)? == value.get(ought)?));
    match value {
        Value::Object(map) => RIGHTS.iter().find_map(|k| as_bool(map.get(*k)?)).or_else(said),
        other => as_bool(other),
    }
}

/// How outcomes changed from one run to another, over the examples of both.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Flips {
    /// Examples of both.
    pub common: u64,
    /// Right before, wrong now.
    pub negative: Vec<String>,
    /// Wrong before, right now.
    pub positive: Vec<String>,
}

impl Flips {
    pub fn between(before: &Outcomes, after: &Outcomes) -> Flips {
        let mut flips = Flips { common: 0, negative: vec![], positive: vec![] };
        for (id, was) in &before.0 {
            let Some(is) = after.0.get(id) else { continue };
            flips.common += 1;
            match (was, is) {
                (true, false) => flips.negative.push(id.clone()),
                (false, true) => flips.positive.push(id.clone()),
                _ => {}
            }
        }
        flips
    }

    /// The share of `n` in the examples of both.
    pub fn rate(&self, n: usize) -> f64 {
        n as f64 / self.common.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(text: &str) -> Outcomes {
        Outcomes::parse(text).unwrap()
    }

    #[test]
    fn examples_are_read_as_people_write_them() {
        let text = "{\"id\": 7, \"ok\": true}\n\n{\"id\":\"x\",\"prediction\":2,\"label\":3}\nfalse\n{\"example\":\"y\",\"correct\":1}";
        let want = [("4", false), ("7", true), ("x", false), ("y", true)].map(|(k, v)| (k.to_owned(), v));
        assert_eq!(outcomes(text).0, BTreeMap::from(want));
        for (bad, why) in
            [("{", "not JSON"), ("{\"id\":1}", "neither"), ("{\"id\":1,\"ok\":0}\n{\"id\":\"1\",\"ok\":1}", "before")]
        {
            assert!(Outcomes::parse(bad).unwrap_err().contains(why), "{bad}");
        }
    }

    #[test]
    fn flips_count_only_what_both_have() {
        let a = outcomes("{\"id\":1,\"ok\":1}\n{\"id\":2,\"ok\":1}\n{\"id\":3,\"ok\":0}\n{\"id\":4,\"ok\":1}");
        let b = outcomes("{\"id\":1,\"ok\":1}\n{\"id\":2,\"ok\":0}\n{\"id\":3,\"ok\":1}\n{\"id\":5,\"ok\":0}");
        let flips = Flips::between(&a, &b);
        assert_eq!(
            (flips.common, &flips.negative[..], &flips.positive[..]),
            (3, &["2".to_owned()][..], &["3".to_owned()][..])
        );
        assert_eq!(Flips::between(&a, &Outcomes::default()).rate(0), 0.0);
    }

    #[test]
    fn a_failure_is_inherited_from_any_parent_that_has_it() {
        use Verdict::{Fail, Pass, Skip};
        assert_eq!(origin(Fail, [Pass, Fail]), Some(Origin::Inherited));
        assert_eq!(origin(Fail, [Pass, Skip]), Some(Origin::Introduced));
        assert_eq!((origin(Fail, [Skip]), origin(Fail, []), origin(Pass, [Fail])), (None, None, None));
    }

    #[test]
    fn globs_take_owners_and_versions() {
        let fits =
            |g: &str, m: &str| g.parse::<Glob>().unwrap().matches(&m.parse().unwrap(), &VersionName::numbered(3));
        assert!(fits("*", "acme/bert") && fits("acme/*", "acme/bert") && fits("bert", "bert") && fits("b*@v3", "bert"));
        assert!(!fits("acme", "acme/bert") && !fits("bert@v1", "bert") && !fits("bert", "bert2"));
        assert!("a@b@c".parse::<Glob>().is_err() && "[".parse::<Glob>().is_err());
    }
}
