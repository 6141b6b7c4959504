//! Mounting and unmounting, and the life of the process that serves a mount.
//!
//! mgit mounts by itself and hands fuser only the open `/dev/fuse`: fuser 0.18 lets a comma in a name add mount
//! options, asks wrongly whether its mount is still there, and gives up on a busy unmount. A user without
//! the right to mount goes through `fusermount3`, as libfuse does.
//!
//! A mount ends when anybody unmounts it ([`unmount`], `umount`, `fusermount3 -u`), or when its process is
//! told to stop ([`Stopper`]). A killed process leaves a dead mount ("Transport endpoint is not
//! connected") that [`unmount`] removes and [`mount`] replaces.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSliceMut, PipeReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use crate::fuse::{self, Teller};
use crate::model::id::path_tag;
use crate::vfs::{Source, Stale, Vfs};

/// What a mount is called in `findmnt -t fuse.mgit`.
const SUBTYPE: &str = "mgit";
/// Readahead of a mount in KiB, where this process may set it.
const READ_AHEAD_KB: &str = "4096";
/// How long an answer may take from here into the kernel.
const ON_THE_WAY: Duration = Duration::from_millis(100);
/// The variable that tells a background process for which one it was started.
const LIVES_WITH: &str = "MGIT_LIVES_WITH";
/// The variable that tells it where to report that it is ready.
const READY_FD: &str = "MGIT_READY_FD";
/// A longer log is put aside when the next mount starts.
const MAX_LOG: u64 = 4 << 20;

/// What went wrong, in one line, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what}{}", self.hint.as_ref().map(|h| format!(" ({h})")).unwrap_or_default())]
pub struct MountError {
    pub what: String,
    pub hint: Option<String>,
}

pub type Result<T> = std::result::Result<T, MountError>;

fn fail<T>(what: impl Into<String>) -> Result<T> {
    Err(MountError { what: what.into(), hint: None })
}

fn fail_hint<T>(what: impl Into<String>, hint: impl Into<String>) -> Result<T> {
    Err(MountError { what: what.into(), hint: Some(hint.into()) })
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountOptions {
    /// Other users may use the mount, as far as modes let them.
    pub allow_other: bool,
    /// The kernel itself refuses all writes.
    pub read_only: bool,
    /// The source that `findmnt` and `df` show.
    pub fs_name: String,
}

impl Default for MountOptions {
    fn default() -> MountOptions {
        MountOptions { allow_other: false, read_only: true, fs_name: "mgit".to_owned() }
    }
}

// ---- mounting

/// A live mount. Dropping it detaches the mount.
pub struct Mounted {
    stopper: Stopper,
    teller: Teller,
    ended: mpsc::Receiver<io::Result<()>>,
}

/// Ends a mount from anywhere, e.g. on a signal.
#[derive(Clone)]
pub struct Stopper {
    mountpoint: Arc<PathBuf>,
    device: (u32, u32),
    end: Arc<Mutex<mpsc::Sender<io::Result<()>>>>,
}

impl Stopper {
    /// Unmounts. What is still in use is detached instead: it fails from when this process ends.
    pub fn stop(&self) {
        if self.is_there() && unmount(&self.mountpoint, false).is_err() && self.is_there() {
            log::warn!("{} is in use; it is detached", self.mountpoint.display());
            if let Err(e) = unmount(&self.mountpoint, true) {
                log::error!("{e}");
            }
        }
        let _ = self.end.lock().unwrap_or_else(PoisonError::into_inner).send(Ok(()));
    }

    /// Whether what is mounted there is still this mount.
    fn is_there(&self) -> bool {
        top_mount(&self.mountpoint).is_ok_and(|m| m.is_some_and(|m| m.device == self.device))
    }
}

impl Mounted {
    pub fn mountpoint(&self) -> &Path {
        &self.stopper.mountpoint
    }

    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Tells the kernel of changes, in order, from a thread of its own.
    pub fn telling(&self) -> impl Fn(Vec<Stale>) + Send + Sync + use<> {
        let (send, changes) = mpsc::channel::<Vec<Stale>>();
        let teller = self.teller.clone();
        thread::spawn(move || tell_all(&teller, &changes));
        move |stale| {
            let _ = send.send(stale); // an error is the end of the process
        }
    }

    /// Unmounts and waits for the session's end. Fails, and stays mounted, when something in it is open.
    pub fn unmount(self) -> std::result::Result<(), (Mounted, MountError)> {
        if self.stopper.is_there()
            && let Err(e) = unmount(&self.stopper.mountpoint, false)
        {
            return Err((self, e));
        }
        let _ = self.ended.recv();
        Ok(())
    }

    /// Waits until somebody unmounts it or a [`Stopper`] has stopped it.
    pub fn wait(self) -> Result<()> {
        match self.ended.recv() {
            Ok(Err(e)) => fail(format!("the mount at {} ended: {e}", self.mountpoint().display())),
            _ => Ok(()),
        }
    }
}

/// Tells of each change at once, and once more a little later: an answer from before it may have been on its way.
fn tell_all(teller: &Teller, changes: &mpsc::Receiver<Vec<Stale>>) {
    let mut again = Vec::new();
    loop {
        match if again.is_empty() {
            changes.recv().or(Err(None))
        } else {
            changes.recv_timeout(ON_THE_WAY).map_err(Some)
        } {
            Ok(stale) => {
                teller.tell(&stale);
                again.extend(stale);
            }
            Err(Some(mpsc::RecvTimeoutError::Timeout)) => teller.tell(&std::mem::take(&mut again)),
            Err(_) => return,
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.stopper.is_there() {
            self.stopper.stop();
        }
    }
}

/// Mounts at an empty directory and serves it in the background. A dead mount there is removed first.
pub fn mount<S: Source>(vfs: Arc<Vfs<S>>, mountpoint: &Path, options: &MountOptions) -> Result<Mounted> {
    let mountpoint = prepare(mountpoint)?;
    if options.allow_other {
        may_allow_other()?;
    }
    let device = attach(&mountpoint, options)?;
    let served = fuse::serve(vfs, device).or_else(|e| {
        let _ = unmount(&mountpoint, true);
        fail(format!("cannot serve the mount at {}: {e}", mountpoint.display()))
    })?;
    let teller = served.teller();
    let (end, ended) = mpsc::channel();
    let session_end = end.clone();
    thread::spawn(move || session_end.send(served.join()));
    let device = match top_mount(&mountpoint)? {
        Some(m) => m.device,
        None => return fail(format!("{} was unmounted at once", mountpoint.display())),
    };
    raise_readahead(device);
    let end = Arc::new(Mutex::new(end));
    Ok(Mounted { stopper: Stopper { mountpoint: Arc::new(mountpoint), device, end }, teller, ended })
}

/// The mountpoint's real path, once it is known to be an empty directory without a mount.
fn prepare(mountpoint: &Path) -> Result<PathBuf> {
    let path = resolve(mountpoint)?;
    let shown = mountpoint.display();
    if let Some(m) = top_mount(&path)?.filter(Mount::is_mgit) {
        if !is_dead(&path) {
            return fail_hint(
                format!("{shown} is already a mount of {}", m.source),
                format!("`mgit umount {shown}` first"),
            );
        }
        log::info!("removing the dead mount at {shown}");
        unmount(&path, true)?;
    }
    match fs::metadata(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return fail_hint(format!("{shown} does not exist"), format!("`mkdir -p {shown}` makes it"));
        }
        Err(e) => return fail(format!("cannot mount at {shown}: {e}")),
        Ok(m) if !m.is_dir() => return fail_hint(format!("{shown} is not a directory"), "mount at an empty directory"),
        Ok(_) => {}
    }
    match fs::read_dir(&path).map(|mut names| names.next().is_some()) {
        Ok(false) => Ok(path),
        Ok(true) => fail_hint(format!("{shown} is not empty"), "a mount would hide what is in it"),
        Err(e) => fail(format!("cannot read {shown}: {e}")),
    }
}

/// The real path of what may be a dead mount, which itself cannot be looked at.
fn resolve(path: &Path) -> Result<PathBuf> {
    if let Ok(real) = path.canonicalize() {
        return Ok(real);
    }
    let absolute = std::path::absolute(path).or_else(|e| fail(format!("bad path {}: {e}", path.display())))?;
    match (absolute.parent().map(Path::canonicalize), absolute.file_name()) {
        (Some(Ok(parent)), Some(name)) => Ok(parent.join(name)),
        _ => Ok(absolute),
    }
}

/// Whether it is a mount whose process is gone.
pub fn is_dead(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN))
}

fn is_root() -> bool {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

fn may_allow_other() -> Result<()> {
    let allowed = |conf: String| conf.lines().any(|l| l.trim() == "user_allow_other");
    if is_root() || fs::read_to_string("/etc/fuse.conf").is_ok_and(allowed) {
        return Ok(());
    }
    fail_hint("--allow-other is not allowed to users here", "root can add a line `user_allow_other` to /etc/fuse.conf")
}

/// Mounts, and returns the open `/dev/fuse` through which the kernel asks.
fn attach(mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd> {
    let device = match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(device) => device,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return fail_hint(
                "there is no /dev/fuse",
                "`modprobe fuse`; in a container, --device /dev/fuse --cap-add SYS_ADMIN",
            );
        }
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            return fail_hint("this user may not open /dev/fuse", "run mgit as root, or `chmod 666 /dev/fuse` as root");
        }
        Err(e) => return fail(format!("cannot open /dev/fuse: {e}")),
    };
    match mount_directly(&device, mountpoint, options) {
        Ok(()) => Ok(device.into()),
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => mount_by_helper(mountpoint, options),
        Err(e) => fail(format!("cannot mount at {}: {e}", mountpoint.display())),
    }
}

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn mount_directly(device: &File, mountpoint: &Path, options: &MountOptions) -> io::Result<()> {
    // SAFETY: these calls take nothing and cannot fail.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let allow_other = if options.allow_other { ",allow_other" } else { "" };
    let data = format!(
        "fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions{allow_other}",
        device.as_raw_fd()
    );
    let (source, data) = (c_string(options.fs_name.as_bytes())?, c_string(data.as_bytes())?);
    let (target, kind) = (c_string(mountpoint.as_os_str().as_bytes())?, c_string(b"fuse.mgit")?);
    let read_only = if options.read_only { libc::MS_RDONLY } else { 0 };
    let flags = libc::MS_NODEV | libc::MS_NOSUID | libc::MS_NOATIME | read_only;
    // SAFETY: all four strings end in a NUL and outlive the call.
    let rc = unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast::<libc::c_void>())
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A name as `fusermount3` takes it: it splits options at commas.
fn escaped(name: &str) -> String {
    name.replace('\\', "\\\\").replace(',', "\\,")
}

fn mount_by_helper(mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair().or_else(|e| fail(format!("cannot make a socket: {e}")))?;
    let mut words = format!("fsname={},subtype={SUBTYPE},nodev,nosuid,noatime", escaped(&options.fs_name));
    words += ",default_permissions";
    words += if options.read_only { ",ro" } else { "" };
    words += if options.allow_other { ",allow_other" } else { "" };
    let mut command = Command::new(helper()?);
    command.args(["-o", &words, "--"]).arg(mountpoint).env("_FUSE_COMMFD", theirs.as_raw_fd().to_string());
    inherit(&mut command, theirs.as_raw_fd());
    let out = command.stdin(Stdio::null()).output().or_else(|e| fail(format!("cannot run fusermount3: {e}")))?;
    drop(theirs);
    match received(&ours) {
        Ok(device) if out.status.success() => Ok(device),
        _ => fail(format!("cannot mount at {}: {}", mountpoint.display(), said(&out))),
    }
}

/// What a helper said on its way to failure, on one line.
fn said(out: &Output) -> String {
    let text = String::from_utf8_lossy(&out.stderr);
    let line = text.trim().replace('\n', "; ");
    if line.is_empty() { format!("the helper ended with {}", out.status) } else { line }
}

fn helper() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/bin", "/bin", "/sbin"].map(PathBuf::from));
    let all = places.flat_map(|dir| [dir.join("fusermount3"), dir.join("fusermount")]);
    let mut found = all.filter(|p| p.is_file());
    found.next().map_or_else(
        || fail_hint("mounting as a user needs fusermount3", "`apt install fuse3`, or run mgit as root"),
        Ok,
    )
}

/// Lets the command's process have `fd`, open now and until it runs.
fn inherit(command: &mut Command, fd: RawFd) {
    // SAFETY: between fork and exec, only fcntl is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(
            move || {
                if libc::fcntl(fd, libc::F_SETFD, 0) < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
            },
        );
    }
}

/// The descriptor that the helper passes through the socket.
fn received(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0u8];
    let mut data = [IoSliceMut::new(&mut byte)];
    let mut control = [0u64; 8]; // room for one descriptor, aligned for a header
    // SAFETY: all zeroes is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = data.as_mut_ptr().cast(); // an IoSliceMut is an iovec, as std promises
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the message points to one buffer and the control room, which both live until the end.
    let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) };
    if n <= 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has filled `message`; the header it gives, when not null, is whole, and one of
    // SCM_RIGHTS holds at least one descriptor, which is ours from now on.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&message);
        if header.is_null() || (*header).cmsg_level != libc::SOL_SOCKET || (*header).cmsg_type != libc::SCM_RIGHTS {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned()))
    }
}

/// Raises the kernel's readahead; only root may, and less readahead is no error.
fn raise_readahead((major, minor): (u32, u32)) {
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(e) = fs::write(&path, READ_AHEAD_KB) {
        log::info!("readahead stays as it is: {path}: {e}");
    }
}

// ---- what is mounted

#[derive(Clone, PartialEq, Eq, Debug)]
struct Mount {
    device: (u32, u32),
    kind: String,
    source: String,
}

impl Mount {
    fn is_mgit(&self) -> bool {
        self.kind == format!("fuse.{SUBTYPE}")
    }
}

/// The topmost mount at exactly `path`.
fn top_mount(path: &Path) -> Result<Option<Mount>> {
    let table = fs::read("/proc/self/mountinfo").or_else(|e| fail(format!("cannot read /proc/self/mountinfo: {e}")))?;
    Ok(table.split(|b| *b == b'\n').filter_map(parse_mount).rfind(|(at, _)| at == path).map(|(_, m)| m))
}

/// A line of proc(5)'s mountinfo: `id parent major:minor root at options [fields…] - type source …`.
fn parse_mount(line: &[u8]) -> Option<(PathBuf, Mount)> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = fields.iter().position(|f| *f == b"-")?;
    let (major, minor) = std::str::from_utf8(fields.get(2)?).ok()?.split_once(':')?;
    let at = PathBuf::from(OsString::from_vec(unescaped(fields.get(4)?)));
    let text = |f: &[u8]| String::from_utf8_lossy(&unescaped(f)).into_owned();
    let device = (major.parse().ok()?, minor.parse().ok()?);
    Some((at, Mount { device, kind: text(fields.get(dash + 1)?), source: text(fields.get(dash + 2)?) }))
}

/// Undoes the kernel's `\040` for bytes that would split a line.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        match (first, code.and_then(|d| u8::from_str_radix(d, 8).ok())) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

// ---- unmounting

/// Unmounts what mgit has mounted at `mountpoint`, also when its process is dead. `lazy` detaches it even
/// while files are open; they keep working until they are closed.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<()> {
    let path = resolve(mountpoint)?;
    let shown = mountpoint.display();
    match top_mount(&path)? {
        Some(m) if m.is_mgit() => {}
        Some(m) => return fail(format!("{shown} is not a mount of mgit: {} is mounted there", m.kind)),
        None => return fail_hint(format!("{shown} is not a mount of mgit"), "`findmnt -t fuse.mgit` lists them"),
    }
    match unmount_directly(&path, lazy) {
        Ok(()) => Ok(()),
        Err(e) => match e.raw_os_error() {
            Some(libc::EPERM) => unmount_by_helper(&path, lazy),
            Some(libc::EBUSY) => busy(&path),
            Some(libc::EINVAL) => Ok(()), // somebody was faster
            _ => fail(format!("cannot unmount {shown}: {e}")),
        },
    }
}

fn unmount_directly(path: &Path, lazy: bool) -> io::Result<()> {
    let target = c_string(path.as_os_str().as_bytes())?;
    let flags = libc::UMOUNT_NOFOLLOW | if lazy { libc::MNT_DETACH } else { 0 };
    // SAFETY: the path ends in a NUL and outlives the call.
    let rc = unsafe { libc::umount2(target.as_ptr(), flags) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn unmount_by_helper(path: &Path, lazy: bool) -> Result<()> {
    let mut command = Command::new(helper()?);
    command.arg(if lazy { "-uz" } else { "-u" }).arg("--").arg(path).stdin(Stdio::null());
    let out = command.env("LC_ALL", "C").output().or_else(|e| fail(format!("cannot run fusermount3: {e}")))?;
    match said(&out) {
        _ if out.status.success() => Ok(()),
        line if line.contains("busy") => busy(path),
        line => fail(format!("cannot unmount {}: {line}", path.display())),
    }
}

fn busy<T>(path: &Path) -> Result<T> {
    let users = users_of(path);
    let by = if users.is_empty() { String::new() } else { format!(", by {}", users.join(", ")) };
    fail_hint(
        format!("{} is busy: files or directories in it are still open{by}", path.display()),
        "close them, or detach it with `mgit umount --lazy`",
    )
}

/// At most three processes, as `name (pid)`, that have something below `path` open or work in it.
fn users_of(path: &Path) -> Vec<String> {
    let uses = |process: &Path| {
        let fds = fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|e| e.path());
        let links = fds.chain([process.join("cwd"), process.join("root"), process.join("exe")]);
        links.into_iter().any(|l| fs::read_link(l).is_ok_and(|target| target.starts_with(path)))
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|e| e.path());
    let pid = |p: &Path| p.file_name().and_then(OsStr::to_str).and_then(|n| n.parse::<u32>().ok());
    let using = processes.filter(|p| pid(p).is_some() && uses(p));
    let named = using.map(|p| {
        let name = fs::read_to_string(p.join("comm")).unwrap_or_default();
        format!("{} ({})", crate::model::name::printable(name.trim()), pid(&p).unwrap_or(0))
    });
    named.take(3).collect()
}

// ---- the process behind a mount

/// Where the background process of a repository writes its log.
pub fn log_path(repo: &Path) -> Result<PathBuf> {
    let repo = repo.canonicalize().unwrap_or_else(|_| repo.to_path_buf());
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|h| h.join(".local/state")));
    let Some(state) = state else {
        return fail_hint("there is no place for a log", "set HOME or XDG_STATE_HOME");
    };
    Ok(state.join("mgit").join(path_tag(&repo) + ".log"))
}

fn open_log(path: &Path) -> io::Result<File> {
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    if fs::symlink_metadata(path).is_ok_and(|m| m.size() > MAX_LOG) {
        fs::rename(path, path.with_extension("log.old"))?;
    }
    OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// Runs this program again with the same arguments and `--foreground`, in a session of its own with its output in
/// `log`, and returns what it says of itself through [`notify_ready`]: when this returns, the mount is there.
pub fn daemonize(log: &Path) -> Result<()> {
    let program = std::env::current_exe().or_else(|e| fail(format!("cannot find mgit's own program: {e}")))?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).arg("--foreground");
    start_in_background(command, log)
}

/// Like [`start_in_background`]; the command is told to stop when this process ends, however it does. To be called from a
/// thread that lasts as long.
pub fn start_for_this_process(mut command: Command, log: &Path) -> Result<()> {
    command.env(LIVES_WITH, std::process::id().to_string());
    // SAFETY: between fork and exec, only prctl is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    start_in_background(command, log)
}

/// Whether the process that this one was started for has ended. Until a handler is there ([`on_signals`]), what tells of that
/// can be lost: to be asked once it is.
pub fn is_orphan() -> bool {
    let parent = std::env::var(LIVES_WITH).ok().and_then(|pid| pid.parse::<u32>().ok());
    parent.is_some_and(|pid| pid != std::os::unix::process::parent_id())
}

/// Like [`daemonize`], for any command that calls [`notify_ready`].
pub fn start_in_background(mut command: Command, log: &Path) -> Result<()> {
    let file = open_log(log).or_else(|e| fail(format!("cannot open the log {}: {e}", log.display())))?;
    let err = file.try_clone().or_else(|e| fail(format!("cannot open the log {}: {e}", log.display())))?;
    let (ready, report) = io::pipe().or_else(|e| fail(format!("cannot make a pipe: {e}")))?;
    command.env(READY_FD, report.as_raw_fd().to_string()).stdin(Stdio::null()).stdout(file).stderr(err);
    inherit(&mut command, report.as_raw_fd());
    // SAFETY: between fork and exec, only setsid is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| if libc::setsid() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) });
    }
    let mut child = command.spawn().or_else(|e| fail(format!("cannot start the mount's process: {e}")))?;
    drop((command, report)); // else the pipe would never end
    match first_line(ready).as_str() {
        "ok" => Ok(()),
        "" => {
            let status = child.wait().map_or_else(|e| e.to_string(), |s| s.to_string());
            fail_hint(format!("the mount's process ended early: {status}"), format!("see {}", log.display()))
        }
        error => {
            let _ = child.wait();
            fail(error)
        }
    }
}

fn first_line(pipe: PipeReader) -> String {
    let mut text = Vec::new();
    let _ = pipe.take(64 << 10).read_to_end(&mut text);
    String::from_utf8_lossy(&text).lines().next().unwrap_or("").to_owned()
}

/// Tells the process that waits in [`daemonize`], if one does, that the mount is there or why it is not.
/// Only the first call does anything.
pub fn notify_ready(result: std::result::Result<(), &str>) {
    static DONE: AtomicBool = AtomicBool::new(false);
    let Some(fd) = std::env::var(READY_FD).ok().and_then(|v| v.parse::<RawFd>().ok()) else { return };
    if DONE.swap(true, Ordering::SeqCst) || !is_pipe(fd) {
        return;
    }
    // SAFETY: the descriptor was made for this call alone by the parent, and is taken once.
    let mut pipe = unsafe { File::from_raw_fd(fd) };
    let line = match result {
        Ok(()) => "ok\n".to_owned(),
        Err(e) => format!("{}\n", e.replace('\n', " ")),
    };
    let _ = pipe.write_all(line.as_bytes()); // nobody waits any longer: the mount goes on
}

/// Whether `fd` is an open pipe: a stale variable must not close somebody else's file.
fn is_pipe(fd: RawFd) -> bool {
    let link = fs::read_link(format!("/proc/self/fd/{fd}"));
    fd > 2 && link.is_ok_and(|l| l.as_os_str().as_bytes().starts_with(b"pipe:"))
}

/// Calls `stop` on each SIGTERM, SIGINT or SIGHUP from now on, from a thread of its own.
pub fn on_signals(mut stop: impl FnMut() + Send + 'static) -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]);
    let mut signals = signals.or_else(|e| fail(format!("cannot wait for signals: {e}")))?;
    let wait = move || signals.forever().for_each(|_| stop());
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)
        .map(drop)
        .or_else(|e| fail(format!("cannot start a thread: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_as_the_kernel_writes_it() {
        let line = br"36 35 98:0 /mnt1 /a\040b\134c rw,noatime shared:1 - fuse.mgit my\054repo rw,user_id=0";
        let (at, m) = parse_mount(line).unwrap();
        assert_eq!(at, Path::new(r"/a b\c"));
        assert!(m.is_mgit() && m.source == "my,repo" && m.device == (98, 0));
        for bad in [&b""[..], b"-", b"1 2 3 - fuse x", b"1 2 a:b / / rw - fuse x", b"\\0\\ - - -"] {
            assert_eq!(parse_mount(bad), None);
        }
        assert_eq!(unescaped(br"\9\04\777\"), br"\9\04\777\");
    }

    #[test]
    fn an_option_cannot_be_smuggled_into_the_source() {
        assert_eq!(escaped(r"a,suid\,dev"), r"a\,suid\\\,dev");
    }
}
