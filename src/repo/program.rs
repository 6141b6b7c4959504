//! Running a user's program: in a process group of its own, with a time limit, its output bounded.
//!
//! Invariants: memory does not grow with what it prints; when [`run`] returns, nothing of its process group is left; when
//! this process is killed, so is the program. It reads nothing from standard input.
//!
//! It doesn't know what the program is for.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use super::RepoError;
use super::progress::Progress;
use crate::model::name::printable;

/// Bytes of output that are kept: the last.
const TAIL: usize = 4000;
/// Longest last line that is looked at.
const LINE: usize = 64 << 10;
/// Between asking it to end and ending it.
const GRACE: Duration = Duration::from_secs(2);
/// How long what it has printed may take to arrive after its end.
const DRAIN: Duration = Duration::from_secs(1);
/// Every variable that says something to a program: those that are not given are taken away.
pub const VARIABLES: [&str; 7] =
    ["MGIT_PATH", "MGIT_MODEL", "MGIT_VERSION", "MGIT_PARENTS", "MGIT_OUT", "MGIT_PREVIOUS", "MGIT_EXAMPLES"];

/// What to run.
pub struct Program<'a> {
    pub command: &'a [String],
    /// Its working directory.
    pub dir: &'a Path,
    pub env: Vec<(String, OsString)>,
    pub timeout: Option<Duration>,
}

/// How it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    Exit(i32),
    Signal(i32),
    TimedOut(Duration),
}

impl How {
    /// In words, unless it was exit 0.
    pub fn why(&self) -> Option<String> {
        match self {
            How::Exit(0) => None,
            How::Exit(n) => Some(format!("exit {n}")),
            How::Signal(n) => Some(format!("killed by signal {n}")),
            How::TimedOut(t) => Some(format!("timed out after {} s", t.as_secs_f64())),
        }
    }
}

/// What a run gave.
pub struct Ended {
    pub how: How,
    /// The end of what it printed, standard output and error as they came.
    pub output: String,
    /// The last line of standard output that is not empty, unless it is too long.
    pub last: Option<String>,
    pub took: Duration,
}

/// The end of a stream.
#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
    max: usize,
    cut: bool,
}

impl Tail {
    fn new(max: usize) -> Arc<Mutex<Tail>> {
        Arc::new(Mutex::new(Tail { max, ..Tail::default() }))
    }

    fn push(&mut self, more: &[u8]) {
        self.bytes.extend_from_slice(more);
        if self.bytes.len() > 2 * self.max {
            self.bytes.drain(..self.bytes.len() - self.max);
            self.cut = true;
        }
    }

    fn text(&self) -> String {
        let from = self.bytes.len().saturating_sub(self.max);
        let text = String::from_utf8_lossy(&self.bytes[from..]).into_owned();
        if from > 0 || self.cut { format!("…{text}") } else { text }
    }

    fn last_line(&self) -> Option<String> {
        let end = self.bytes.trim_ascii_end();
        let start = end.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let whole = start > 0 || !self.cut;
        let line = std::str::from_utf8(&end[start..]).ok()?;
        (whole && line.len() <= self.max && !line.is_empty()).then(|| line.to_owned())
    }
}

/// Runs it to its end. Fails when it cannot be started, or when `progress` says to stop: then it is killed.
pub fn run(program: &Program, progress: &dyn Progress) -> Result<Ended, RepoError> {
    let start = Instant::now();
    let mut child = spawn(program)?;
    let (all, out) = (Tail::new(TAIL), Tail::new(LINE));
    let (done, drained) = mpsc::channel();
    read_into(child.stdout.take(), vec![all.clone(), out.clone()], done.clone());
    read_into(child.stderr.take(), vec![all.clone()], done);
    let waited = wait(&child, program.timeout, start, progress);
    signal_group(&child, libc::SIGKILL); // Whatever it left running, while its number is still its own.
    let status = child.wait().map_err(cannot_wait)?;
    let until = Instant::now() + DRAIN;
    while drained.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok() {}
    let locked = |tail: &Mutex<Tail>| tail.lock().unwrap_or_else(PoisonError::into_inner).text();
    let last = out.lock().unwrap_or_else(PoisonError::into_inner).last_line();
    let how = waited?.map_or_else(|| how(status), How::TimedOut);
    Ok(Ended { how, output: locked(&all), last, took: start.elapsed() })
}

fn spawn(program: &Program) -> Result<Child, RepoError> {
    let name = program.command.first().map_or("", String::as_str);
    let mut command = Command::new(name);
    command.args(&program.command[1.min(program.command.len())..]).current_dir(program.dir);
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    command.envs(program.env.iter().map(|(k, v)| (k, v)));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    // SAFETY: between fork and exec, only prctl is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let failed = |e| RepoError::refused(format!("cannot run '{}' in {}: {e}", printable(name), program.dir.display()));
    command.spawn().map_err(failed)
}

/// Reads until the end on a thread of its own.
fn read_into(stream: Option<impl Read + Send + 'static>, tails: Vec<Arc<Mutex<Tail>>>, done: mpsc::Sender<()>) {
    let Some(mut stream) = stream else { return };
    std::thread::spawn(move || {
        let mut buf = [0; 16 << 10];
        while let Ok(n @ 1..) = stream.read(&mut buf) {
            tails.iter().for_each(|t| t.lock().unwrap_or_else(PoisonError::into_inner).push(&buf[..n]));
        }
        drop(done);
    });
}

/// Waits for its end, which nobody has taken note of yet, or for the limit, which it returns.
fn wait(
    child: &Child,
    timeout: Option<Duration>,
    start: Instant,
    progress: &dyn Progress,
) -> Result<Option<Duration>, RepoError> {
    let mut nap = Duration::from_millis(1);
    while !has_ended(child)? {
        let late = timeout.filter(|t| start.elapsed() >= *t);
        let stop = progress.check();
        if late.is_some() || stop.is_err() {
            ask_to_end(child)?;
            return stop.map(|()| late);
        }
        std::thread::sleep(nap);
        nap = (nap * 2).min(Duration::from_millis(20));
    }
    Ok(None)
}

fn cannot_wait(e: std::io::Error) -> RepoError {
    RepoError::refused(format!("cannot wait for a program: {e}"))
}

/// Whether it has ended; its number stays its own until it is waited for.
fn has_ended(child: &Child) -> Result<bool, RepoError> {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: all zeroes is a valid siginfo_t, which waitid fills or leaves alone; si_pid is set by waitid, else zero.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        match libc::waitid(libc::P_PID, child.id(), &mut info, flags) {
            0 => Ok(info.si_pid() != 0),
            _ => Err(cannot_wait(std::io::Error::last_os_error())),
        }
    }
}

fn how(status: ExitStatus) -> How {
    match status.code() {
        Some(code) => How::Exit(code),
        None => How::Signal(status.signal().unwrap_or(0)),
    }
}

/// Asks it to end, and gives it a little time for it.
fn ask_to_end(child: &Child) -> Result<(), RepoError> {
    signal_group(child, libc::SIGTERM);
    let until = Instant::now() + GRACE;
    while Instant::now() < until && !has_ended(child)? {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn signal_group(child: &Child, signal: i32) {
    // SAFETY: kill takes plain numbers. The group is the child's own, whose number is not given away before it was waited
    // for; an empty group is an error that says nothing.
    unsafe { libc::kill(-(child.id() as i32), signal) };
}

/// Directories as one variable holds them.
pub fn joined(dirs: &[impl AsRef<OsStr>]) -> OsString {
    dirs.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(OsStr::new(":"))
}

#[cfg(test)]
mod tests {
    use super::super::progress::Silent;
    use super::*;

    fn sh(script: &str, timeout: Option<u64>) -> Ended {
        let command = ["sh", "-c", script].map(str::to_owned);
        let timeout = timeout.map(Duration::from_millis);
        let env = vec![("MGIT_MODEL".to_owned(), "m".into())];
        run(&Program { command: &command, dir: Path::new("/"), env, timeout }, &Silent).unwrap()
    }

    #[test]
    fn ends_are_told_apart() {
        assert_eq!(sh("exit 3", None).how, How::Exit(3));
        assert_eq!(sh("kill -9 $$", None).how, How::Signal(9));
        let hung = sh("trap '' TERM; echo begun; sleep 60 & wait; sleep 60", Some(100));
        assert_eq!(hung.how, How::TimedOut(Duration::from_millis(100)));
        assert!(hung.took < Duration::from_secs(20) && hung.output.contains("begun"));
        let nothing = ["/no/such/program".to_owned()];
        let (env, dir) = (vec![], Path::new("/"));
        assert!(run(&Program { command: &nothing, dir, env, timeout: None }, &Silent).is_err());
    }

    #[test]
    fn output_is_bounded_and_the_last_line_found() {
        let ended = sh("echo one; echo $MGIT_MODEL; echo err >&2; yes | head -c 3000000; echo '{\"a\":1}'; echo", None);
        assert_eq!(ended.last.as_deref(), Some("{\"a\":1}"));
        assert!(ended.output.len() < TAIL + 10 && ended.output.starts_with('…'), "{}", ended.output.len());
        assert_eq!(sh("printf m", None).last.as_deref(), Some("m"));
        assert_eq!(sh("yes | tr -d '\\n' | head -c 3000000", None).last, None);
        assert_eq!(sh("true", None).last, None);
    }

    #[test]
    fn what_it_leaves_running_does_not_outlive_it() {
        let ended = sh("sleep 77 & echo $!", None);
        assert!(ended.took < Duration::from_secs(5));
        let pid: i32 = ended.last.unwrap().parse().unwrap();
        let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let since = Instant::now();
        while !(state().is_empty() || state().contains(") Z")) {
            assert!(since.elapsed() < Duration::from_secs(5), "it is still there: {}", state());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
