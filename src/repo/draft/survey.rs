//! A look at a draft: its mark, which changes with anything in it, and whether it could be whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::{SEAL, key};
use crate::model::id::Id;
use crate::model::layout;
use crate::repo::RepoError;

/// Most files that a draft is looked through for.
const MAX_FILES: usize = 1_000_000;
/// What is taken for weights: a directory without them is a work area.
const WEIGHTS: [&str; 6] = ["safetensors", "bin", "pt", "pth", "ckpt", "gguf"];

/// What a draft was when it was looked at.
pub struct Survey {
    /// Of paths, sizes, times and inodes.
    pub mark: Id,
    pub files: u64,
    pub bytes: u64,
    /// The last change.
    pub changed: SystemTime,
    /// Its root holds a [`SEAL`].
    pub sealing: bool,
    regular: BTreeMap<String, (u64, u64)>,
}

impl Survey {
    /// Regular files, by path.
    pub fn open_candidates(&self) -> impl Iterator<Item = (&str, (u64, u64))> {
        self.regular.iter().map(|(name, key)| (name.as_str(), *key))
    }

    /// Whether a draft at `dir` has weights, each safetensors file in it is whole, and of shards none is missing.
    pub fn is_whole(&self, dir: &Path) -> bool {
        let names = || self.regular.keys().map(String::as_str);
        let weights = |n: &str| WEIGHTS.iter().any(|x| n.strip_suffix(x).is_some_and(|stem| stem.ends_with('.')));
        let whole = |n: &str| !n.ends_with(".safetensors") || is_whole_file(&dir.join(n));
        names().any(weights) && shards_are_complete(&names().collect()) && names().all(whole)
    }
}

/// `<stem>-00001-of-00003.safetensors`: its siblings and the index must be there.
fn shards_are_complete(names: &BTreeSet<&str>) -> bool {
    let parts = |n: &str| {
        let (stem, count) = n.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
        let (stem, at) = stem.rsplit_once('-')?;
        let number = |s: &str| (s.len() == 5).then(|| s.parse::<u32>().ok()).flatten();
        Some((stem.to_owned(), number(at)?, number(count)?))
    };
    let complete = |(stem, _, count): (String, u32, u32)| {
        names.contains(format!("{stem}.safetensors.index.json").as_str())
            && (1..=count).all(|i| names.contains(format!("{stem}-{i:05}-of-{count:05}.safetensors").as_str()))
    };
    names.iter().filter_map(|n| parts(n)).all(complete)
}

/// Whether the header of a safetensors file is there and all that it names too.
fn is_whole_file(path: &Path) -> bool {
    let read = || -> std::io::Result<bool> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        let mut first = [0; 8];
        if size < 8 {
            return Ok(false);
        }
        file.read_exact_at(&mut first, 0)?;
        let Ok(length) = layout::header_length(&first, size) else { return Ok(false) };
        let mut header = vec![0; length as usize];
        file.read_exact_at(&mut header, 8)?;
        Ok(layout::cut(&header, size).is_ok())
    };
    read().unwrap_or(false)
}

/// Looks through what is at `path`, a directory or one file.
pub fn survey(path: &Path) -> Result<Survey, RepoError> {
    let (regular, changed) = (BTreeMap::new(), SystemTime::UNIX_EPOCH);
    let mut s = Survey { mark: Id([0; 32]), files: 0, bytes: 0, changed, sealing: false, regular };
    let mut hash = blake3::Hasher::new();
    visit(path, "", &mut s, &mut hash)?;
    s.mark = Id(hash.finalize().into());
    Ok(s)
}

fn visit(path: &Path, name: &str, s: &mut Survey, hash: &mut blake3::Hasher) -> Result<(), RepoError> {
    let at = |e| RepoError::file(path, e);
    let m = fs::symlink_metadata(path).map_err(at)?;
    hash.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
    // A directory's size says nothing that its names do not.
    let size = if m.is_dir() { 0 } else { m.size() };
    for n in [m.mode() as u64, m.ino(), size, m.mtime() as u64, m.mtime_nsec() as u64, m.ctime() as u64] {
        hash.update(&n.to_le_bytes());
    }
    hash.update(&(m.ctime_nsec() as u64).to_le_bytes());
    let (seconds, nanos) = (m.ctime().max(0) as u64, m.ctime_nsec().max(0) as u32);
    s.changed = s.changed.max(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos));
    if m.is_dir() {
        let entries = fs::read_dir(path).and_then(|d| d.collect::<Result<Vec<_>, _>>()).map_err(at)?;
        let mut entries: Vec<_> = entries.into_iter().map(|e| e.path()).collect();
        entries.sort();
        for child in entries {
            let own = child.file_name().unwrap_or_default().to_string_lossy();
            let below = if name.is_empty() { own.into_owned() } else { format!("{name}/{own}") };
            visit(&child, &below, s, hash)?;
        }
        return Ok(());
    }
    (s.files, s.bytes) = (s.files + 1, s.bytes + m.size());
    if s.files as usize > MAX_FILES {
        return Err(RepoError::refused(format!("more than {MAX_FILES} files: is this a model directory?")));
    }
    s.sealing |= name == SEAL;
    if m.is_file() {
        s.regular.insert(name.to_owned(), key(&m));
    }
    Ok(())
}

/// Makes all of a draft durable. It also makes each page that a mapping has written clean, so that writing to it again
/// is seen in the file's times.
pub fn sync(path: &Path) -> Result<(), RepoError> {
    let m = match fs::symlink_metadata(path) {
        Ok(m) => m,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()), // removed meanwhile
        Err(e) => return Err(RepoError::file(path, e)),
    };
    if m.is_dir() {
        let entries = fs::read_dir(path).map_err(|e| RepoError::file(path, e))?;
        entries.flatten().try_for_each(|e| sync(&e.path()))?;
    }
    if m.is_dir() || m.is_file() {
        match File::open(path).and_then(|f| f.sync_all()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(RepoError::file(path, e)),
            _ => {}
        }
    }
    Ok(())
}

/// Whether anybody, a mapping in the kernel too, has the file open for writing: only then is a read lease refused.
/// Where leases are not known, the answer is no.
pub fn is_written(path: &Path) -> bool {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let Ok(file) = OpenOptions::new().read(true).custom_flags(flags).open(path) else { return false };
    // SAFETY: the descriptor is open, and these commands take an integer.
    unsafe {
        let refused = libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) < 0;
        let why = std::io::Error::last_os_error().raw_os_error();
        if !refused {
            libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK);
        }
        refused && why == Some(libc::EAGAIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_need_their_siblings_and_index() {
        let set = |names: &[&'static str]| names.iter().copied().collect::<BTreeSet<_>>();
        let (a, b, i) = ("m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors", "m.safetensors.index.json");
        assert!(shards_are_complete(&set(&[a, b, i])) && shards_are_complete(&set(&["model.safetensors"])));
        assert!(!shards_are_complete(&set(&[a, i])) && !shards_are_complete(&set(&[a, b])));
        assert!(shards_are_complete(&set(&["x-of-y.safetensors"])));
    }

    #[test]
    fn a_mark_changes_with_anything() {
        let t = tempfile::tempdir().unwrap();
        let d = t.path().join("d");
        fs::create_dir_all(d.join("sub")).unwrap();
        fs::write(d.join("a"), b"1234").unwrap();
        let mut marks = vec![survey(&d).unwrap().mark];
        let mut changed = |what: &str, change: &dyn Fn()| {
            std::thread::sleep(Duration::from_millis(20));
            change();
            let mark = survey(&d).unwrap().mark;
            assert!(!marks.contains(&mark), "{what}");
            marks.push(mark);
        };
        changed("a byte", &|| fs::write(d.join("a"), b"1235").unwrap());
        changed("a name", &|| fs::rename(d.join("a"), d.join("b")).unwrap());
        changed("a directory", &|| fs::create_dir(d.join("sub/more")).unwrap());
        changed("a removal", &|| fs::remove_file(d.join("b")).unwrap());
        changed("a wish", &|| fs::write(d.join(SEAL), b"").unwrap());
        assert!(survey(&d).unwrap().sealing);
        assert_eq!(survey(&d).unwrap().mark, *marks.last().unwrap());
    }

    #[test]
    fn an_open_file_is_seen() {
        let t = tempfile::tempdir().unwrap();
        let path = t.path().join("f");
        let file = File::create(&path).unwrap();
        assert!(is_written(&path));
        drop(file);
        assert!(!is_written(&path));
        let _reader = File::open(&path).unwrap();
        assert!(!is_written(&path));
    }

    #[test]
    fn a_half_written_file_is_not_whole() {
        let t = tempfile::tempdir().unwrap();
        let dir = t.path();
        let header = br#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let file = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 8]].concat();
        for n in 0..=file.len() {
            fs::write(dir.join("model.safetensors"), &file[..n]).unwrap();
            assert_eq!(survey(dir).unwrap().is_whole(dir), n == file.len(), "{n}");
        }
        fs::remove_file(dir.join("model.safetensors")).unwrap();
        fs::write(dir.join("events.log"), b"x").unwrap();
        assert!(!survey(dir).unwrap().is_whole(dir), "a work area");
    }
}
