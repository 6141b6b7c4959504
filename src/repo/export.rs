//! Export writes a version's files out; verify compares a directory with a version, byte for byte.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use super::progress::Progress;
use super::walk::{self, Found};
use super::{Repo, RepoError};
use crate::model::id::Id;
use crate::model::record::{EntryKind, FileEntry, VersionRecord};

/// Bytes moved at once.
const CHUNK: u64 = 4 << 20;

/// Writes all files of `record` below `target`, which must not exist or be empty. On failure what was
/// written is removed again.
pub fn export(
    repo: &Arc<Repo>,
    record: &VersionRecord,
    target: &Path,
    progress: &dyn Progress,
) -> Result<(), RepoError> {
    let fail = |e| RepoError::file(target, e);
    let existed = target.exists();
    if existed && fs::read_dir(target).map_err(fail)?.next().is_some() {
        return Err(RepoError::refused(format!("{}: not empty; export into a new directory", target.display())));
    }
    progress.expect(record.logical_bytes());
    fs::create_dir_all(target).map_err(fail)?;
    let done = record.files.iter().try_for_each(|f| export_entry(repo, f, target, progress));
    if done.is_err() {
        let _ = fs::remove_dir_all(target);
        if existed {
            let _ = fs::create_dir(target);
        }
    }
    done
}

fn export_entry(repo: &Arc<Repo>, entry: &FileEntry, target: &Path, progress: &dyn Progress) -> Result<(), RepoError> {
    let path = target.join(&entry.path);
    let fail = |e| RepoError::file(&path, e);
    if entry.kind == EntryKind::Directory {
        return fs::create_dir_all(&path).map_err(fail);
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(fail)?;
    }
    let mut out = File::create_new(&path).map_err(fail)?;
    copy_checked(repo, entry, progress, &mut |bytes| out.write_all(bytes).map_err(fail))?;
    out.sync_all().map_err(fail)
}

/// Hands all bytes of a file to `sink`, and fails unless they are what the record says.
pub fn copy_checked(
    repo: &Arc<Repo>,
    entry: &FileEntry,
    progress: &dyn Progress,
    sink: &mut dyn FnMut(&[u8]) -> Result<(), RepoError>,
) -> Result<(), RepoError> {
    let reader = repo.open_file(&entry.recipe)?;
    if reader.size() != entry.bytes {
        return Err(RepoError::damaged(format!("file '{}': its recipe makes another size", entry.path)));
    }
    let mut buf = Vec::new();
    let mut whole = blake3::Hasher::new();
    let mut at = 0;
    while at < entry.bytes {
        progress.check()?;
        buf.resize(CHUNK.min(entry.bytes - at) as usize, 0);
        reader.read_parallel(at, &mut buf)?;
        whole.update_rayon(&buf);
        sink(&buf)?;
        at += buf.len() as u64;
        progress.stored(buf.len() as u64);
    }
    match Id(*whole.finalize().as_bytes()) == entry.digest {
        true => Ok(()),
        false => Err(RepoError::damaged(format!("file '{}': its bytes do not make its digest", entry.path))),
    }
}

/// How `path` differs from the version; empty when it holds the same files with the same bytes.
///
/// Both sides are read: a version that verifies can be given back, and the originals can go.
pub fn verify(
    repo: &Arc<Repo>,
    record: &VersionRecord,
    path: &Path,
    progress: &dyn Progress,
) -> Result<Vec<String>, RepoError> {
    let found = walk::find(path)?;
    progress.expect(record.logical_bytes());
    let mut differences = Vec::new();
    for f in &found {
        if record.files.binary_search_by(|e| e.path.as_str().cmp(f.name())).is_err() {
            differences.push(format!("{}: not in the version", f.name()));
        }
    }
    for entry in &record.files {
        match found.binary_search_by(|f| f.name().cmp(&entry.path)) {
            Err(_) => differences.push(format!("{}: missing", entry.path)),
            Ok(i) => differences.extend(compare(repo, entry, &found[i], progress)?),
        }
    }
    Ok(differences)
}

fn compare(
    repo: &Arc<Repo>,
    entry: &FileEntry,
    found: &Found,
    progress: &dyn Progress,
) -> Result<Option<String>, RepoError> {
    use std::os::unix::fs::FileExt;
    let (source, bytes) = match (found, entry.kind) {
        (Found::File { source, bytes, .. }, EntryKind::File) => (source, *bytes),
        (Found::EmptyDirectory { .. }, EntryKind::Directory) => return Ok(None),
        _ => return Ok(Some(format!("{}: a file on one side, a directory on the other", entry.path))),
    };
    if bytes != entry.bytes {
        return Ok(Some(format!("{}: {bytes} bytes, the version has {}", entry.path, entry.bytes)));
    }
    let file = File::open(source).map_err(|e| RepoError::file(source, e))?;
    let (mut same, mut at, mut theirs) = (true, 0u64, Vec::new());
    copy_checked(repo, entry, progress, &mut |ours| {
        theirs.resize(ours.len(), 0);
        file.read_exact_at(&mut theirs, at).map_err(|e| RepoError::file(source, e))?;
        at += ours.len() as u64;
        same &= theirs == ours;
        Ok(())
    })?;
    Ok((!same).then(|| format!("{}: different bytes", entry.path)))
}
