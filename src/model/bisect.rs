//! Where along a path of versions a test began to fail, in as few runs as there can be.
//!
//! A path is in order of descent; its last version is the one that fails. What is known of each is all that the next step
//! follows from, so recorded results and fresh ones count alike. Whatever the answers, what is found is a version that
//! failed right after one that passed, or the first of all; between them lie at most versions that could not tell.

use super::test::Verdict;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// Run the test on this one.
    Run(usize),
    /// The first that fails, and the last before it that passes, if any does. Those between could not tell.
    Found { bad: usize, good: Option<usize> },
    /// The last of the path does not fail.
    Passes,
    /// The last of the path could not tell.
    Unclear,
}

/// What to do next, `known` being the path's verdicts so far.
pub fn next(known: &[Option<Verdict>]) -> Next {
    let Some(last) = known.len().checked_sub(1) else { return Next::Passes };
    match known[last] {
        None => return Next::Run(last),
        Some(Verdict::Pass) => return Next::Passes,
        Some(Verdict::Skip) => return Next::Unclear,
        Some(Verdict::Fail) => {}
    }
    let good = known.iter().rposition(|v| *v == Some(Verdict::Pass));
    let low = good.map_or(0, |g| g + 1);
    let bad = (low..=last).find(|&i| known[i] == Some(Verdict::Fail)).unwrap_or(last);
    // With nothing known to pass, the first may fail too: the middle is one nearer to it.
    let middle = (good.map_or(-1, |g| g as isize) + bad as isize) / 2;
    let open = (low..bad).filter(|&i| known[i].is_none());
    match open.min_by_key(|&i| (i as isize - middle).abs()) {
        Some(i) => Next::Run(i),
        None => Next::Found { bad, good },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bisects a chain that fails from `first` on; those in `skips` cannot tell. What was found, and in how many runs.
    fn bisect(n: usize, first: usize, skips: &[usize], mut known: Vec<Option<Verdict>>) -> (Next, usize) {
        for runs in 0.. {
            match next(&known) {
                Next::Run(i) => {
                    assert_eq!(known[i], None, "a result that was known is made again");
                    known[i] = Some(match i {
                        i if skips.contains(&i) => Verdict::Skip,
                        i if i >= first => Verdict::Fail,
                        _ => Verdict::Pass,
                    });
                }
                found => return (found, runs),
            }
            assert!(runs < n);
        }
        unreachable!()
    }

    fn most_runs(n: usize) -> usize {
        1 + (n as f64).log2().ceil() as usize
    }

    #[test]
    fn every_position_of_every_chain_is_found_in_few_runs() {
        for n in (1..=40).chain([1000]) {
            for first in 0..n {
                let (found, runs) = bisect(n, first, &[], vec![None; n]);
                assert_eq!(found, Next::Found { bad: first, good: first.checked_sub(1) }, "{first} of {n}");
                assert!(runs <= most_runs(n), "{runs} runs for {first} of {n}");
            }
        }
        assert_eq!(most_runs(1000), 11);
    }

    #[test]
    fn what_passes_or_cannot_tell_is_said() {
        assert_eq!(bisect(5, 9, &[], vec![None; 5]), (Next::Passes, 1));
        assert_eq!(bisect(5, 0, &[4], vec![None; 5]), (Next::Unclear, 1));
        assert_eq!(bisect(6, 4, &[2, 3], vec![None; 6]).0, Next::Found { bad: 4, good: Some(1) });
        assert_eq!(bisect(3, 0, &[0, 1], vec![None; 3]).0, Next::Found { bad: 2, good: None });
    }

    proptest! {
        #[test]
        fn what_is_found_failed_right_after_what_passed(
            known in prop::collection::vec(prop::option::of(0..3u8), 1..30),
            truth in prop::collection::vec(0..3u8, 30),
        ) {
            let verdict = |n: u8| [Verdict::Pass, Verdict::Fail, Verdict::Skip][n as usize];
            let mut known: Vec<_> = known.into_iter().map(|v| v.map(verdict)).collect();
            while let Next::Run(i) = next(&known) {
                prop_assert!(known[i].is_none());
                known[i] = Some(verdict(truth[i]));
            }
            if let Next::Found { bad, good } = next(&known) {
                prop_assert_eq!(known[bad], Some(Verdict::Fail));
                prop_assert!(good.is_none_or(|g| known[g] == Some(Verdict::Pass)));
                let between = &known[good.map_or(0, |g| g + 1)..bad];
                prop_assert!(between.iter().all(|v| *v == Some(Verdict::Skip)), "{:?}", known);
            }
        }
    }
}
