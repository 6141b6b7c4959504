//! What a lossy version says of itself, and whether what its tests gave lets it be.
//!
//! Part of the version record, so covered by the id. The gate compares what a test gave on the exact version with what it
//! gave on the lossy one: a metric may get worse by a share of its size, in the metric's own direction; and so many of
//! the examples may have been right and be wrong now. Nothing is divided by a metric, for it may be 0.
//!
//! It doesn't know how a version is made lossy (repo/lossy), nor how tests are run.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::id::Id;
use super::record::Real;
use super::test::{Better, Flips, Metric, TestName, TestResult, Verdict};

/// By how much a weight may be changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Bound {
    /// By no more than this.
    #[serde(rename = "max_error")]
    Absolute(Real),
    /// By no more than this share of the root mean square of what the tensor differs from its base by.
    #[serde(rename = "max_rel_error")]
    Relative(Real),
}

/// A file as it was exactly.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Exact {
    pub path: String,
    pub blake3: Id,
}

/// What a lossy version was made from, and how far it is from it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lossy {
    pub bound: Bound,
    /// The largest change of a weight, and their root mean square over all weights of the files below.
    pub max_error: Real,
    pub rms_error: Real,
    pub weights: u64,
    /// The exact version; of an import the id that it would have had.
    pub original: Id,
    /// BLAKE3 of the exact file; where there are several, of their lines as `b3sum` prints them.
    pub blake3: Id,
    /// The files that are not exact.
    pub files: Vec<Exact>,
    /// Empty where no test was asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gate: Vec<Gated>,
}

impl Lossy {
    /// What [`Lossy::blake3`] is of these files, sorted by path.
    pub fn digest(files: &[Exact]) -> Id {
        match files {
            [one] => one.blake3,
            _ => Id::of(files.iter().map(|f| format!("{}  {}\n", f.blake3, f.path)).collect::<String>().as_bytes()),
        }
    }
}

/// What one test said of the exact and of the lossy version.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Gated {
    pub test: TestName,
    pub result: Verdict,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<Compared>,
    /// Examples that both told of, and how many of them were right and are wrong now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub examples: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_flips: Option<u64>,
}

/// A metric before and after.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Compared {
    pub name: String,
    pub better: Better,
    pub exact: Real,
    pub lossy: Real,
}

impl Compared {
    /// By how much it got worse; negative where it got better.
    fn fall(&self) -> f64 {
        match self.better {
            Better::Higher => self.exact.0 - self.lossy.0,
            Better::Lower => self.lossy.0 - self.exact.0,
        }
    }
}

/// What the gate lets pass.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How much worse a metric may be, as a share of its size.
    pub tolerance: f64,
    /// How many examples may be wrong that were right, as a share of all.
    pub max_flips: f64,
}

/// What a test gave on the exact and on the lossy version; why that is too much.
pub fn judge(
    limits: &Limits,
    metric: Option<&Metric>,
    (exact, lossy): (&TestResult, &TestResult),
    flips: Option<&Flips>,
) -> Result<Gated, String> {
    let test = &lossy.test;
    if lossy.verdict == Verdict::Fail && exact.verdict != Verdict::Fail {
        let why = lossy.why.as_deref().map_or_else(String::new, |w| format!(", {w}"));
        return Err(format!("test {test} fails{why}"));
    }
    let compared =
        metric.map(|m| compare(m, exact, lossy)).transpose().map_err(|e| format!("test {test}: {e}"))?.flatten();
    if let Some(c) = compared.as_ref().filter(|c| c.fall() > limits.tolerance * c.exact.0.abs()) {
        let (name, before, after) = (&c.name, c.exact.0, c.lossy.0);
        return Err(format!("test {test}: {name} goes from {before} to {after}; {} is better", word(c.better)));
    }
    let (common, negative) = (flips.map(|f| f.common), flips.map(|f| f.negative.len() as u64));
    if let Some(f) = flips.filter(|f| f.rate(f.negative.len()) > limits.max_flips) {
        let (n, of) = (f.negative.len(), f.common);
        return Err(format!("test {test}: {n} of {of} examples were right before and are wrong now"));
    }
    Ok(Gated {
        test: test.clone(),
        result: lossy.verdict,
        metric: compared,
        examples: common,
        negative_flips: negative,
    })
}

fn word(better: Better) -> &'static str {
    match better {
        Better::Higher => "higher",
        Better::Lower => "lower",
    }
}

/// `None` where the exact version gave no such number.
fn compare(metric: &Metric, exact: &TestResult, lossy: &TestResult) -> Result<Option<Compared>, String> {
    let number = |r: &TestResult| r.metrics.get(&metric.name).and_then(Value::as_f64).filter(|v| v.is_finite());
    let Some(before) = number(exact) else { return Ok(None) };
    let after = number(lossy).ok_or_else(|| format!("no {} on the lossy version", metric.name))?;
    let (name, better) = (metric.name.clone(), metric.better);
    Ok(Some(Compared { name, better, exact: Real(before), lossy: Real(after) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use serde_json::json;

    fn result(verdict: Verdict, metric: Option<f64>) -> TestResult {
        TestResult {
            test: "t".parse().unwrap(),
            content: Id([0; 32]),
            version: Id([0; 32]),
            verdict,
            why: None,
            metrics: metric.map(|m| ("m".to_owned(), json!(m))).into_iter().collect(),
            examples: None,
            millis: 1,
            output: String::new(),
            date: Timestamp::UNIX_EPOCH,
        }
    }

    fn passes(better: Better, exact: f64, lossy: f64) -> bool {
        let metric = Metric { name: "m".to_owned(), better };
        let limits = Limits { tolerance: 0.02, max_flips: 0.0 };
        let pair = (&result(Verdict::Pass, Some(exact)), &result(Verdict::Pass, Some(lossy)));
        judge(&limits, Some(&metric), pair, None).is_ok()
    }

    #[test]
    fn a_metric_may_get_worse_by_a_share_in_its_own_direction() {
        use Better::{Higher, Lower};
        assert!(passes(Higher, 0.5, 0.491) && !passes(Higher, 0.5, 0.489) && passes(Higher, 0.5, 9.0));
        assert!(passes(Lower, 0.5, 0.509) && !passes(Lower, 0.5, 0.511) && passes(Lower, 0.5, -9.0));
        assert!(passes(Higher, -1.0, -1.01) && !passes(Higher, -1.0, -1.03));
        assert!(passes(Higher, 0.0, 0.0) && !passes(Higher, 0.0, -1e-9) && !passes(Lower, 0.0, 1e-9));
    }

    #[test]
    fn verdicts_and_flips_count_too() {
        let limits = Limits { tolerance: 0.02, max_flips: 0.25 };
        let (pass, fail) = (result(Verdict::Pass, None), result(Verdict::Fail, None));
        assert!(judge(&limits, None, (&pass, &fail), None).unwrap_err().contains("fails"));
        assert!(judge(&limits, None, (&fail, &fail), None).is_ok());
        let flips = |n: usize| Flips { common: 4, negative: vec![String::new(); n], positive: vec![] };
        assert_eq!(judge(&limits, None, (&pass, &pass), Some(&flips(1))).unwrap().negative_flips, Some(1));
        assert!(judge(&limits, None, (&pass, &pass), Some(&flips(2))).unwrap_err().contains("2 of 4"));
        let metric = Metric { name: "m".to_owned(), better: Better::Lower };
        assert!(judge(&limits, Some(&metric), (&result(Verdict::Pass, Some(1.0)), &pass), None).is_err());
        assert!(judge(&limits, Some(&metric), (&pass, &pass), None).unwrap().metric.is_none());
    }

    #[test]
    fn a_bound_reads_as_it_prints() {
        for (bound, text) in [
            (Bound::Absolute(Real(1e-4)), r#"{"max_error":0.0001}"#),
            (Bound::Relative(Real(0.5)), r#"{"max_rel_error":0.5}"#),
        ] {
            assert_eq!(serde_json::to_string(&bound).unwrap(), text);
            assert_eq!(serde_json::from_str::<Bound>(text).unwrap(), bound);
        }
    }
}
