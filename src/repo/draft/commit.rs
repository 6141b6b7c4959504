//! The committer: looks after the drafts of a mounted repository, and has those that are ready committed by a process
//! of its own each, one at a time, so that encoding is never the mount's burden.
//!
//! Which are ready is a plain decision over what was seen ([`decide`]). What failed is tried again when it changes.

use std::collections::HashMap;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use super::survey::{self, Survey};
use super::{Area, Slot};
use crate::model::id::Id;
use crate::repo::RepoError;

/// How often drafts are looked at.
const EVERY: Duration = Duration::from_millis(500);
/// The exit status of a committing process that found the draft changed or open: it is to be tried again.
pub const CHANGED_EXIT: u8 = 75;

/// Starts a process that commits a draft: sealed, or settled.
pub type Start = Box<dyn Fn(&Slot, Wish) -> std::io::Result<Child> + Send>;

/// What is to be done with a draft.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    Seal,
    Settle,
}

/// Whether a draft is ready; `idle`: how long nothing in it has changed; `settle`: how long that must be, zero never.
fn decide(sealing: bool, idle: Duration, settle: Duration, whole: impl FnOnce() -> bool) -> Option<Wish> {
    match sealing {
        true => Some(Wish::Seal),
        false if settle > Duration::ZERO && idle >= settle && whole() => Some(Wish::Settle),
        false => None,
    }
}

#[derive(Default)]
struct Shared {
    stop: bool,
}

/// A thread that commits what is ready, until it is stopped.
pub struct Committer {
    shared: Arc<(Mutex<Shared>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Committer {
    pub fn start(area: Arc<Area>, settle: Duration, start: Start) -> Result<Committer, RepoError> {
        let shared = Arc::new((Mutex::new(Shared::default()), Condvar::new()));
        let mut work = Work { area, settle, start, failed: HashMap::new(), shared: shared.clone() };
        let spawned = std::thread::Builder::new().name("committer".to_owned()).spawn(move || work.run());
        let thread = spawned.map_err(|e| RepoError::refused(format!("cannot start a thread: {e}")))?;
        Ok(Committer { shared, thread: Some(thread) })
    }

    /// Ends it; a commit under way is given up, and its draft stays.
    pub fn stop(mut self) {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        self.shared.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Work {
    area: Arc<Area>,
    settle: Duration,
    start: Start,
    /// The mark with which a draft could not be committed.
    failed: HashMap<Slot, Id>,
    shared: Arc<(Mutex<Shared>, Condvar)>,
}

impl Work {
    fn run(&mut self) {
        while !self.pause() {
            let slots = self.area.slots().unwrap_or_else(|e| {
                log::error!("drafts cannot be looked at: {e}");
                vec![]
            });
            self.failed.retain(|slot, _| slots.contains(slot));
            for slot in slots {
                if slot.version().is_ok()
                    && let Some((survey, wish)) = self.ready(&slot)
                {
                    self.commit(&slot, &survey, wish);
                }
                if self.stopping() {
                    return;
                }
            }
        }
    }

    fn ready(&self, slot: &Slot) -> Option<(Survey, Wish)> {
        let path = self.area.path(slot);
        if !std::fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) {
            return None;
        }
        let survey = survey::survey(&path).ok()?; // it may have gone
        if self.failed.get(slot) == Some(&survey.mark) || survey.open_candidates().any(|(_, k)| self.area.is_open(k)) {
            return None;
        }
        let idle = SystemTime::now().duration_since(survey.changed).unwrap_or_default();
        let wish = decide(survey.sealing, idle, self.settle, || survey.is_whole(&path))?;
        Some((survey, wish))
    }

    fn commit(&mut self, slot: &Slot, survey: &Survey, wish: Wish) {
        let outcome = (self.start)(slot, wish).and_then(|child| self.wait(child));
        match outcome {
            Ok(None) => {}
            Ok(Some(status)) if status.success() => log::info!("{slot} is a version"),
            Ok(Some(status)) if status.code() == Some(i32::from(CHANGED_EXIT)) => {}
            Ok(Some(status)) => self.fail(slot, survey, &status.to_string()),
            Err(e) => self.fail(slot, survey, &e.to_string()),
        }
    }

    fn fail(&mut self, slot: &Slot, survey: &Survey, why: &str) {
        log::warn!("{slot} was not committed ({why}) and stays a draft; it is tried again when it changes");
        self.failed.insert(slot.clone(), survey.mark);
    }

    /// The process's end; `None` when it was given up.
    fn wait(&self, mut child: Child) -> std::io::Result<Option<ExitStatus>> {
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Some(status));
            }
            if self.stopping() {
                child.kill()?;
                child.wait()?;
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn stopping(&self) -> bool {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).stop
    }

    /// Waits for the next round. True: there is none.
    fn pause(&self) -> bool {
        let shared = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.shared.1.wait_timeout_while(shared, EVERY, |s| !s.stop);
        waited.unwrap_or_else(PoisonError::into_inner).0.stop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ready() {
        let s = Duration::from_secs;
        assert_eq!(decide(true, s(0), s(0), || false), Some(Wish::Seal));
        assert_eq!(decide(false, s(120), s(120), || true), Some(Wish::Settle));
        assert_eq!(decide(false, s(119), s(120), || true), None);
        assert_eq!(decide(false, s(1000), s(120), || false), None);
        assert_eq!(decide(false, s(1000), s(0), || true), None);
    }
}
