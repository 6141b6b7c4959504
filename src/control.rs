//! What needs the catalog, as one request and one response: answered in this process, or by the daemon
//! over a Unix socket when the repository is mounted.
//!
//! On the wire each is one line of JSON; a line is at most [`MAX_LINE`] bytes. The socket lies in a directory
//! of mode 0700 below `$XDG_RUNTIME_DIR` (else `/tmp/mgit-<uid>`), named after the repository's path, so
//! that its own path is short whatever the repository's.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::model::event::Event;
use crate::model::graph::Graph;
use crate::model::id::{Id, path_tag};
use crate::model::name::{ModelName, VersionName, VersionRef};
use crate::model::record::Relation;
use crate::repo::Head;
use crate::repo::draft::{Area, Begun, Listed, Slot};
use crate::repo::engine::{Above, Detail, Engine};
use crate::repo::keep::{self, Keeper, Kept};
use crate::repo::origin::Move;
use crate::repo::progress::{Progress, Silent};
use crate::repo::work;
use crate::repo::{Repo, RepoError};
use crate::repo::{gc, graph, history, house};

/// Longest request or response on the wire.
pub const MAX_LINE: u64 = 256 << 20;
/// How long a command waits for another one that holds the repository.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an ending daemon waits for what it is asked to do.
const CLOSING: Duration = Duration::from_secs(5);
const LAST_CALL: Duration = Duration::from_millis(150);
/// How long a daemon may take to say who it is.
const HELLO: Duration = Duration::from_secs(5);

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Who answers.
    Hello,
    Resolve(VersionRef),
    Detail(VersionRef),
    /// All living versions in commit order.
    List,
    /// Of each pack, the oldest living version that brought it.
    Bringers(Vec<String>),
    /// The version and all it comes from, newest first; of all living versions without a reference.
    History(Option<VersionRef>),
    /// All versions, the removed ones too, and their edges.
    Graph,
    NextName(ModelName),
    /// Fails when the name was ever used.
    CheckName(ModelName, VersionName),
    /// A commit, and the guessed edges that move to it.
    Publish(Event, Vec<Move>),
    /// A draft, or a model's loose files, and what it shall be called: what is to be done to seal it.
    Begin(ModelName, Option<String>, Option<VersionRef>),
    /// The commit that a draft was encoded to; without one, it holds what the version in its place does, and goes.
    PublishDraft(Option<Event>, Vec<Move>, Slot, Id),
    Discard(Slot),
    Drafts,
    /// The ids of all commits from that one on.
    Since(u64),
    /// A living version and what it comes from.
    Above(Id),
    Remove(Vec<VersionRef>),
    Link(VersionRef, VersionRef, Option<Relation>),
    Unlink(VersionRef, VersionRef),
    /// Undoing a removal, tags, another name for a model.
    House(house::Ask),
    /// A model's tags.
    Tags(ModelName),
    /// Frees what nothing needs.
    Gc(gc::Rules),
    /// Makes the catalog anew.
    Rebuild,
    /// What is damaged in the journal.
    CheckJournal,
    /// What in the catalog differs from the journal.
    CheckCatalog,
    /// What the disk cache holds.
    CacheList,
    CacheAdd(Vec<VersionRef>),
    CacheRemove(Vec<VersionRef>),
    /// Of tests, results, recipes and updates.
    Work(work::Ask),
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
pub enum Response {
    Hello {
        mountpoint: Option<PathBuf>,
    },
    Head(Head),
    Heads(Vec<Head>),
    Bringers(Vec<Option<Head>>),
    Pair(Head, Head),
    Detail(Detail),
    Above(Option<Above>),
    Ids(Vec<Id>),
    Details(Vec<Detail>),
    Graph(Graph),
    Name(VersionName),
    Damage(Option<String>),
    Differences(Vec<String>),
    Tags(Vec<(VersionName, Id)>),
    /// None while something adds to the packs.
    Gc(Option<gc::Outcome>),
    /// And how many bytes there is room for, where a daemon keeps it.
    Cached(Vec<Kept>, Option<u64>),
    /// Files and their bytes.
    Sum(u64, u64),
    Work(work::Answer),
    Begun(Begun),
    /// The draft has changed since its commit began.
    Changed,
    Drafts(Vec<Listed>),
    Done,
    /// One line for the user.
    Failed(String),
    /// Nothing was done: the daemon is ending.
    Ending,
}

impl Request {
    /// Whether it can be asked again when nobody knows if it was answered.
    fn only_reads(&self) -> bool {
        use work::Ask::{Cascade, Facts, Files, Recipe, Recipes, Results, Rows, Tests};
        matches!(
            self,
            Request::Hello
                | Request::Resolve(_)
                | Request::Detail(_)
                | Request::List
                | Request::Bringers(_)
                | Request::History(_)
                | Request::Graph
                | Request::NextName(_)
                | Request::CheckName(..)
                | Request::Drafts
                | Request::Since(_)
                | Request::Above(_)
                | Request::Tags(_)
                | Request::CheckJournal
                | Request::CheckCatalog
                | Request::Work(Tests | Results | Rows(_) | Files | Recipe(_) | Recipes | Facts | Cascade)
        )
    }
}

/// What a daemon has beside the catalog.
pub struct Mounted {
    pub mountpoint: PathBuf,
    pub keeper: Option<Arc<Keeper>>,
    pub drafts: Arc<Area>,
}

/// Answers a request from the catalog at hand.
pub fn answer(
    engine: &Engine,
    request: Request,
    mounted: Option<&Mounted>,
    progress: &dyn Progress,
) -> Result<Response, RepoError> {
    let keeper = mounted.and_then(|m| m.keeper.as_ref());
    Ok(match request {
        Request::Hello => Response::Hello { mountpoint: mounted.map(|m| m.mountpoint.clone()) },
        Request::Resolve(r) => Response::Head(engine.resolve(&r)?),
        Request::Detail(r) => Response::Detail(engine.detail(&r)?),
        Request::List => Response::Heads(engine.catalog().all()?),
        Request::Bringers(packs) => {
            let catalog = engine.catalog();
            Response::Bringers(packs.iter().map(|p| catalog.bringer(p)).collect::<Result<_, _>>()?)
        }
        Request::History(r) => Response::Details(history::history(engine, r.as_ref())?),
        Request::Graph => Response::Graph(graph::graph(engine)?),
        Request::NextName(m) => Response::Name(engine.next_name(&m)?),
        Request::CheckName(m, v) => engine.refuse_used(&m, &v).map(|()| Response::Done)?,
        Request::Publish(event, moves) => Response::Head(engine.publish(event, &moves)?),
        Request::Begin(..) | Request::PublishDraft(..) | Request::Discard(_) | Request::Drafts => {
            let alone;
            let area = match mounted {
                Some(m) => &*m.drafts,
                None => {
                    alone = Area::new(&engine.repo.dir);
                    alone.recover(engine)?;
                    &alone
                }
            };
            return answer_of_drafts(engine, area, request);
        }
        Request::Since(seq) => Response::Ids(engine.catalog().since(seq)?),
        Request::Above(id) => Response::Above(engine.above(&id)?),
        Request::Remove(refs) => Response::Heads(engine.remove(&refs)?),
        Request::Link(c, p, r) => pair(engine.link(&c, &p, r)?),
        Request::Unlink(c, p) => pair(engine.unlink(&c, &p)?),
        Request::House(ask) => Response::Heads(house::answer(engine, &ask)?),
        Request::Tags(model) => Response::Tags(engine.catalog().tags(&model)?),
        Request::Gc(rules) => Response::Gc(gc::collect(engine, &rules, progress)?),
        Request::Rebuild => engine.rebuild().map(|()| Response::Done)?,
        Request::CheckJournal => Response::Damage(engine.journal_damage()?),
        Request::CheckCatalog => Response::Differences(engine.check_catalog()?),
        Request::CacheList => match keeper {
            Some(k) => Response::Cached(keep::list(engine, k.files())?, Some(k.files().limit())),
            None => Response::Cached(keep::list(engine, &keep::unattended(&engine.repo.dir)?)?, None),
        },
        Request::CacheAdd(versions) => match keeper {
            Some(k) => sum(k.add(engine, &versions)?),
            None => {
                return Err(RepoError::refused("there is no disk cache; mount with 'mgit mount --disk-cache SIZE'"));
            }
        },
        Request::Work(ask) => Response::Work(work::answer(engine, ask)?),
        Request::CacheRemove(versions) => match keeper {
            Some(k) => sum(keep::remove(engine, k.files(), &versions)?),
            None => sum(keep::remove(engine, &keep::unattended(&engine.repo.dir)?, &versions)?),
        },
    })
}

fn answer_of_drafts(engine: &Engine, area: &Area, request: Request) -> Result<Response, RepoError> {
    Ok(match request {
        Request::Begin(model, name, to) => {
            let to = to.map(|r| {
                Ok::<_, RepoError>((r.model.clone(), r.version.map_or_else(|| engine.next_name(&r.model), Ok)?))
            });
            Response::Begun(area.begin(engine, &model, name.as_deref(), to.transpose()?)?)
        }
        Request::PublishDraft(Some(event), moves, slot, mark) => {
            area.publish(engine, event, &moves, &slot, &mark)?.map_or(Response::Changed, Response::Head)
        }
        Request::PublishDraft(None, _, slot, mark) => match area.give_back(&slot, &mark)? {
            true => Response::Done,
            false => Response::Changed,
        },
        Request::Discard(slot) => area.discard(engine, &slot).map(|_| Response::Done)?,
        _ => Response::Drafts(area.list()?),
    })
}

fn sum((files, bytes): (u64, u64)) -> Response {
    Response::Sum(files, bytes)
}

fn pair((a, b): (Head, Head)) -> Response {
    Response::Pair(a, b)
}

/// Where the daemon of a repository listens.
pub fn socket_path(repo_dir: &Path) -> PathBuf {
    let real = repo_dir.canonicalize().unwrap_or_else(|_| repo_dir.to_owned());
    runtime_dir().join(path_tag(&real) + ".sock")
}

/// Where sockets are, and what else lives as long as a command.
pub fn runtime_dir() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if Path::new(&dir).is_dir() => PathBuf::from(dir).join("mgit"),
        // SAFETY: getuid takes nothing and cannot fail.
        _ => PathBuf::from(format!("/tmp/mgit-{}", unsafe { libc::getuid() })),
    }
}

/// Binds the socket, in a directory that is ours alone.
pub fn listen(repo_dir: &Path) -> std::io::Result<UnixListener> {
    let path = socket_path(repo_dir);
    let dir = path.parent().expect("a socket lies in a directory");
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let meta = std::fs::symlink_metadata(dir)?;
    // SAFETY: getuid takes nothing and cannot fail.
    if !meta.is_dir() || meta.uid() != unsafe { libc::getuid() } || meta.mode() & 0o077 != 0 {
        return Err(std::io::Error::other(format!("{} is not a directory of mode 0700 of yours", dir.display())));
    }
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Lets requests in until it is closed.
#[derive(Default)]
pub struct Door {
    /// Requests that are being answered, and whether it is closed.
    state: Mutex<(usize, bool)>,
    left: Condvar,
}

/// A request that is being answered.
struct Guest<'a>(&'a Door);

impl Door {
    fn state(&self) -> MutexGuard<'_, (usize, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self) -> Option<Guest<'_>> {
        let mut state = self.state();
        if state.1 {
            return None;
        }
        state.0 += 1;
        Some(Guest(self))
    }

    /// From now on nothing is begun. Waits until those within have had their answer, but not forever.
    pub fn close(&self) {
        let mut state = self.state();
        state.1 = true;
        let _ = self.left.wait_timeout_while(state, CLOSING, |s| s.0 > 0);
        std::thread::sleep(LAST_CALL); // Who asks meanwhile is told.
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        self.0.state().0 -= 1;
        self.0.left.notify_all();
    }
}

/// Answers all who connect, each in a thread of its own, until the process ends.
pub fn serve(engine: Arc<Engine>, listener: UnixListener, mounted: Mounted) -> Arc<Door> {
    let (mounted, door) = (Arc::new(mounted), Arc::new(Door::default()));
    let entrance = door.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (engine, mounted, door) = (engine.clone(), mounted.clone(), entrance.clone());
            std::thread::spawn(move || {
                if let Err(e) = converse(&engine, stream, &mounted, &door) {
                    log::debug!("a client of the control socket went away: {e}");
                }
            });
        }
    });
    door
}

fn converse(engine: &Engine, stream: UnixStream, mounted: &Mounted, door: &Door) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    while let Some(line) = read_line(&mut reader)? {
        let Some(_within) = door.enter() else {
            write_line(&mut writer, &Response::Ending)?;
            continue;
        };
        let response = match serde_json::from_str(&line) {
            Ok(request) => {
                answer(engine, request, Some(mounted), &Silent).unwrap_or_else(|e| Response::Failed(e.to_string()))
            }
            Err(e) => Response::Failed(format!("the daemon does not know this request ({e}); remount with this mgit")),
        };
        write_line(&mut writer, &response)?;
    }
    Ok(())
}

fn read_line(reader: &mut impl BufRead) -> std::io::Result<Option<String>> {
    let mut line = String::new();
    reader.take(MAX_LINE).read_line(&mut line)?;
    match line.ends_with('\n') {
        true => Ok(Some(line)),
        false if line.is_empty() => Ok(None),
        false => Err(std::io::Error::other("a message is cut short or too long")),
    }
}

fn write_line(writer: &mut impl Write, value: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    writer.write_all(&line)
}

/// A way to ask: the catalog in this process, or the daemon's.
pub enum Session {
    Local(Box<Engine>),
    Remote(BufReader<UnixStream>, Arc<Repo>),
}

impl Session {
    /// The daemon when there is one, else the catalog itself, waiting for another command to let go of it.
    pub fn open(repo: &Arc<Repo>) -> Result<Session, RepoError> {
        let start = Instant::now();
        loop {
            if let Some((daemon, _)) = connect(&socket_path(&repo.dir)) {
                return Ok(Session::Remote(daemon, repo.clone()));
            }
            match Engine::try_open(repo.clone())? {
                Some(engine) => return Ok(Session::Local(Box::new(engine))),
                None if start.elapsed() > PATIENCE => {
                    return Err(RepoError::refused(format!(
                        "another mgit has held {} for a minute; see 'fuser {}'",
                        repo.dir.display(),
                        repo.dir.join("format.json").display()
                    )));
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    pub fn call(&mut self, request: Request) -> Result<Response, RepoError> {
        self.call_telling(request, &Silent)
    }

    /// As [`call`](Self::call), for what takes long: it tells how far it is and can be stopped, unless a daemon does it.
    pub fn call_telling(&mut self, request: Request, progress: &dyn Progress) -> Result<Response, RepoError> {
        let response = match self {
            Session::Local(engine) => answer(engine, request, None, progress)?,
            Session::Remote(stream, repo) => match ask(stream, &request) {
                // What could not be sent whole was not taken.
                Err(e) if !request.only_reads() && e.kind() != std::io::ErrorKind::BrokenPipe => {
                    return Err(RepoError::refused(format!("the daemon of this repository went away: {e}")));
                }
                // It is ending, or gone: another one answers, or this process.
                Ok(Response::Ending) | Err(_) => {
                    *self = Session::open(&repo.clone())?;
                    return self.call_telling(request, progress);
                }
                Ok(response) => response,
            },
        };
        match response {
            Response::Failed(why) => Err(RepoError::Refused(why)),
            other => Ok(other),
        }
    }

    /// Where the repository is mounted, when a daemon answers.
    pub fn mountpoint(&mut self) -> Result<Option<PathBuf>, RepoError> {
        match self.call(Request::Hello)? {
            Response::Hello { mountpoint } => Ok(mountpoint),
            other => Err(unexpected(&other)),
        }
    }
}

/// A daemon that answers, and where it mounts. One that is just ending, or hangs, does not.
fn connect(socket: &Path) -> Option<(BufReader<UnixStream>, Option<PathBuf>)> {
    let mut stream = BufReader::new(UnixStream::connect(socket).ok()?);
    stream.get_ref().set_read_timeout(Some(HELLO)).ok()?;
    let Response::Hello { mountpoint } = ask(&mut stream, &Request::Hello).ok()? else { return None };
    stream.get_ref().set_read_timeout(None).ok()?;
    Some((stream, mountpoint))
}

/// A connection to the daemon of a mount.
pub struct Daemon(BufReader<UnixStream>);

/// The daemon that serves the mount at `mountpoint`, whatever its repository.
pub fn daemon_of(mountpoint: &Path) -> Option<Daemon> {
    let sockets = std::fs::read_dir(runtime_dir()).ok()?;
    let mut daemons = sockets.flatten().filter_map(|e| connect(&e.path()));
    daemons.find(|(_, at)| at.as_deref() == Some(mountpoint)).map(|(stream, _)| Daemon(stream))
}

impl Daemon {
    /// Returns when the daemon's process is gone (and its locks with it), or after ten seconds.
    pub fn wait_for_end(mut self) {
        let _ = self.0.get_ref().set_read_timeout(Some(Duration::from_secs(10)));
        let _ = self.0.read(&mut [0]);
    }
}

fn ask(stream: &mut BufReader<UnixStream>, request: &Request) -> std::io::Result<Response> {
    write_line(stream.get_mut(), request)?;
    let line = read_line(stream)?.ok_or_else(|| std::io::Error::other("it closed the connection"))?;
    Ok(serde_json::from_str(&line)?)
}

/// A response that does not answer the request: another mgit's daemon.
pub fn unexpected(response: &Response) -> RepoError {
    RepoError::refused(format!("the daemon answered something else ({response:.60?}); remount with this mgit"))
}

/// Asks, and takes apart the one response that fits.
#[macro_export]
macro_rules! ask {
    ($session:expr, $request:expr, $pattern:pat => $value:expr) => {
        match $session.call($request)? {
            $pattern => Ok($value),
            other => Err($crate::control::unexpected(&other)),
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_door_waits_for_those_within_and_lets_nobody_in() {
        let door = Door::default();
        let within = door.enter().unwrap();
        std::thread::scope(|s| {
            s.spawn(|| door.close());
            while door.enter().is_some() {
                std::thread::yield_now();
            }
            assert!(door.enter().is_none());
            drop(within);
        });
        assert_eq!(*door.state(), (0, true));
    }
}
