//! `mgit gc`

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use super::{Global, out};
use crate::control::{Request, Response, unexpected};
use crate::repo::gc::{Fate, Outcome, PackPlan, Rules, STEP};

/// How long an import that is running is waited for, before each step.
const PATIENCE: Duration = Duration::from_secs(10);

/// Free the space of removed versions and of what crashed imports left
///
/// What any living version needs stays, and so does a file that is open in the
/// mount. Afterwards `mgit undo` cannot bring back what was freed. Safe at any
/// time: it can be stopped, and beside a running import it does nothing. What
/// takes longer goes in steps, between which imports have their turn.
///
///   mgit gc --dry-run        what would be freed
///   mgit gc --grace 1day     keeps what was removed within the last day
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Only tell what would be freed
    #[arg(long)]
    dry_run: bool,
    /// Keep what was removed less long ago: 90s, 1h, 2days, …
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = time)]
    grace: Duration,
    /// Write a pack anew when more of it than this is dead, in per cent
    #[arg(long, value_name = "PERCENT", default_value = "20", value_parser = clap::value_parser!(u8).range(0..=100))]
    dead_share: u8,
}

fn time(s: &str) -> Result<Duration, String> {
    let span = s.parse::<jiff::SignedDuration>().map_err(|e| e.to_string());
    let days = s.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim().parse::<u64>();
    match (span, days) {
        (_, Ok(n)) if ["d", "day", "days"].iter().any(|unit| s.trim().ends_with(unit)) => {
            Ok(Duration::from_secs(n.saturating_mul(86_400)))
        }
        (span, _) => span?.try_into().map_err(|_| "a time is not negative".to_owned()),
    }
}

pub fn run(g: &Global, a: &Args) -> Result<ExitCode> {
    let rules = Rules { dry_run: a.dry_run, grace: a.grace, dead_percent: a.dead_share, step: STEP };
    let outcome = collect(g, &rules)?;
    match g.json {
        true => out::print_json(&as_json(&rules, outcome.as_ref()))?,
        false => out::print_lines(as_text(&rules, outcome.as_ref()))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// All steps; `None`, or an outcome with more to do, when an import goes on for longer than we wait. The repository is let go
/// of meanwhile: the import may want it.
pub(super) fn collect(g: &Global, rules: &Rules) -> Result<Option<Outcome>> {
    let bar = out::Bar::new("freeing", false)?;
    let (mut start, mut all, mut rules) = (Instant::now(), None::<Outcome>, *rules);
    loop {
        let (_, mut session) = g.session()?;
        let began = Instant::now();
        let step = match session.call_telling(Request::Gc(rules), &bar)? {
            Response::Gc(step) => step,
            other => return Err(unexpected(&other).into()),
        };
        drop(session);
        if let Some(step) = step {
            // Where planning takes long a step does more, or most of the time would go into plans.
            rules.step <<= u32::from(step.planning * 4 > began.elapsed());
            (start, rules.step) = (Instant::now(), rules.step.min(1 << 40));
            all = Some(all.unwrap_or_default().and(step));
        }
        if all.as_ref().is_some_and(|all| !all.more) || start.elapsed() > PATIENCE {
            bar.done();
            return Ok(all);
        }
        crate::repo::progress::Progress::check(&bar)?;
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn of(outcome: &Outcome, fate: Fate) -> Vec<&PackPlan> {
    outcome.packs.iter().filter(|p| p.fate == fate).collect()
}

fn as_json(rules: &Rules, outcome: Option<&Outcome>) -> serde_json::Value {
    let none = Outcome::default();
    let o = outcome.unwrap_or(&none);
    json!({
        "dry_run": rules.dry_run, "busy": outcome.is_none_or(|o| o.more), "freed_bytes": o.freed_bytes, "leftovers": o.leftovers,
        "removed": of(o, Fate::Remove), "compacted": of(o, Fate::Compact),
    })
}

fn as_text(rules: &Rules, outcome: Option<&Outcome>) -> Vec<String> {
    let Some(o) = outcome else {
        return vec!["an import is running: nothing was freed; run 'mgit gc' again afterwards".to_owned()];
    };
    let row = |p: &&PackPlan| {
        let fate = if p.fate == Fate::Remove { "nothing needs it" } else { "is written anew" };
        format!("pack {}  {}, {} of it dead: {fate}", p.pack, out::size(p.bytes), out::size(p.dead))
    };
    let mut lines: Vec<String> = [of(o, Fate::Remove), of(o, Fate::Compact)].concat().iter().map(row).collect();
    if o.leftovers > 0 {
        lines.push(format!("{} unfinished packs of stopped imports removed", o.leftovers));
    }
    lines.push(format!("{}{}", if rules.dry_run { "would free " } else { "freed " }, out::size(o.freed_bytes)));
    if o.more {
        lines.push("an import is running: more is to be freed; run 'mgit gc' again afterwards".to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, seconds) in [("0s", 0), ("90s", 90), ("1h", 3600), ("2days", 172_800), ("1d", 86_400), ("5m", 300)] {
            assert_eq!(time(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert!(time("-1h").is_err() && time("soon").is_err() && time("-1d").is_err());
    }
}
