//! What there is to import: the files of a model directory, and the model directories below a place.
//!
//! Symlinks are followed, as a Hugging Face cache needs; one that leads back to a directory above itself is
//! refused. So is all that is not a file or a directory: a FIFO would hang a reader.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::RepoError;
use crate::model::name::{printable, safe_path};

/// A path to store, and where its bytes are now.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    File { name: String, source: PathBuf, bytes: u64 },
    EmptyDirectory { name: String },
}

impl Found {
    pub fn name(&self) -> &str {
        match self {
            Found::File { name, .. } | Found::EmptyDirectory { name } => name,
        }
    }
}

/// Deepest nesting of directories in a version.
const MAX_DEPTH: usize = 64;
/// Most entries of one version.
const MAX_ENTRIES: usize = 1_000_000;

/// Bytes of all files.
pub fn bytes(found: &[Found]) -> u64 {
    let of = |f: &Found| match f {
        Found::File { bytes, .. } => *bytes,
        Found::EmptyDirectory { .. } => 0,
    };
    found.iter().map(of).sum()
}

/// The files at `path`, sorted by name: one safetensors file, or all below a directory.
pub fn find(path: &Path) -> Result<Vec<Found>, RepoError> {
    let meta = fs::metadata(path).map_err(|e| RepoError::file(path, e))?;
    let mut out = Vec::new();
    if meta.is_file() {
        let name = utf8_name(path)?;
        if !name.ends_with(".safetensors") {
            let what = printable(&path.to_string_lossy());
            return Err(RepoError::refused(format!("{what}: not a directory or a .safetensors file")));
        }
        out.push(Found::File { name, source: path.to_owned(), bytes: meta.len() });
    } else {
        let root = fs::canonicalize(path).map_err(|e| RepoError::file(path, e))?;
        descend(path, "", &mut vec![root], &mut out)?;
        if out.is_empty() {
            let what = printable(&path.to_string_lossy());
            return Err(RepoError::refused(format!("{what}: an empty directory; there is nothing to import")));
        }
    }
    out.sort_by(|a, b| a.name().cmp(b.name()));
    Ok(out)
}

fn utf8_name(path: &Path) -> Result<String, RepoError> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if path.file_name().and_then(|n| n.to_str()).is_none() {
        return Err(RepoError::refused(format!("{}: the file name is not UTF-8", printable(&path.to_string_lossy()))));
    }
    Ok(name)
}

/// `above` holds the real paths of the directories that are being walked.
fn descend(dir: &Path, prefix: &str, above: &mut Vec<PathBuf>, out: &mut Vec<Found>) -> Result<(), RepoError> {
    let mut entries: Vec<_> = fs::read_dir(dir)
        .and_then(|d| d.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>())
        .map_err(|e| RepoError::file(dir, e))?;
    entries.sort();
    if entries.is_empty() && !prefix.is_empty() {
        out.push(Found::EmptyDirectory { name: prefix.trim_end_matches('/').to_owned() });
    }
    for path in entries {
        let name = format!("{prefix}{}", utf8_name(&path)?);
        safe_path(&name).map_err(|why| RepoError::refused(format!("{}: {why}", printable(&name))))?;
        visit(&path, name, above, out)?;
        if out.len() > MAX_ENTRIES {
            return Err(RepoError::refused(format!("more than {MAX_ENTRIES} files: is this a model directory?")));
        }
    }
    Ok(())
}

fn visit(path: &Path, name: String, above: &mut Vec<PathBuf>, out: &mut Vec<Found>) -> Result<(), RepoError> {
    let meta = fs::metadata(path).map_err(|e| RepoError::file(path, e))?;
    let kind = meta.file_type();
    if meta.is_file() {
        out.push(Found::File { name, source: path.to_owned(), bytes: meta.len() });
    } else if meta.is_dir() {
        let real = fs::canonicalize(path).map_err(|e| RepoError::file(path, e))?;
        let wrong = match () {
            _ if above.contains(&real) => Some("a loop of symlinks".to_owned()),
            _ if above.len() > MAX_DEPTH => Some(format!("more than {MAX_DEPTH} directories deep")),
            _ => None,
        };
        if let Some(wrong) = wrong {
            return Err(RepoError::refused(format!("{}: {wrong}", printable(&name))));
        }
        above.push(real);
        descend(path, &format!("{name}/"), above, out)?;
        above.pop();
    } else {
        let what = match () {
            _ if kind.is_fifo() => "a FIFO",
            _ if kind.is_socket() => "a socket",
            _ => "a device",
        };
        return Err(RepoError::refused(format!(
            "{}: {what}, not a file; remove it and import again",
            printable(&name)
        )));
    }
    Ok(())
}

/// The model directories below `dir` with the name each should get: those that hold weights, outermost
/// first; in a Hugging Face cache, the snapshots, named `owner/name`.
pub fn each_model(dir: &Path) -> Result<Vec<(PathBuf, String)>, RepoError> {
    let mut found = Vec::new();
    let mut queue = vec![(dir.to_owned(), 0)];
    while let Some((at, depth)) = queue.pop() {
        if let Some(name) = hub_name(&at) {
            let snapshots = subdirectories(&at.join("snapshots")).unwrap_or_default();
            found.extend(snapshots.into_iter().map(|s| (s, name.clone())));
            continue;
        }
        if depth > 0 && holds_weights(&at)? {
            found.push((at.clone(), utf8_name(&at)?));
            continue;
        }
        if depth < MAX_DEPTH {
            queue.extend(subdirectories(&at)?.into_iter().rev().map(|b| (b, depth + 1)));
        }
    }
    Ok(found)
}

fn subdirectories(dir: &Path) -> Result<Vec<PathBuf>, RepoError> {
    let read = || -> std::io::Result<Vec<PathBuf>> {
        let mut dirs = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            }
        }
        dirs.sort();
        Ok(dirs)
    };
    read().map_err(|e| RepoError::file(dir, e))
}

fn hub_name(dir: &Path) -> Option<String> {
    let name = dir.file_name()?.to_str()?.strip_prefix("models--")?;
    dir.join("snapshots").is_dir().then(|| name.replacen("--", "/", 1))
}

fn holds_weights(dir: &Path) -> Result<bool, RepoError> {
    const WEIGHTS: [&str; 6] = ["safetensors", "bin", "pt", "pth", "ckpt", "gguf"];
    let entries = fs::read_dir(dir).map_err(|e| RepoError::file(dir, e))?;
    let weights =
        |p: PathBuf| p.is_file() && p.extension().and_then(|x| x.to_str()).is_some_and(|x| WEIGHTS.contains(&x));
    Ok(entries.flatten().any(|e| weights(e.path())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_links_and_refuses_what_is_no_file() {
        let t = tempfile::tempdir().unwrap();
        let d = t.path().join("m");
        fs::create_dir_all(d.join("a/empty")).unwrap();
        fs::write(d.join("b"), b"x").unwrap();
        std::os::unix::fs::symlink(d.join("b"), d.join("a/link")).unwrap();
        let names: Vec<_> = find(&d).unwrap().iter().map(|f| f.name().to_owned()).collect();
        assert_eq!(names, ["a/empty", "a/link", "b"]);
        std::os::unix::fs::symlink(&d, d.join("a/loop")).unwrap();
        assert!(find(&d).unwrap_err().to_string().contains("loop"));
        fs::remove_file(d.join("a/loop")).unwrap();
        let fifo = std::ffi::CString::new(d.join("f").to_str().unwrap()).unwrap();
        // SAFETY: the path is a NUL-terminated string that lives through the call.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
        assert!(find(&d).unwrap_err().to_string().contains("FIFO"));
    }

    #[test]
    fn a_hub_cache_names_its_models() {
        let t = tempfile::tempdir().unwrap();
        let snapshot = t.path().join("hub/models--acme--bert/snapshots/abc");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(t.path().join("x/plain")).unwrap();
        fs::write(t.path().join("x/plain/model.safetensors"), b"").unwrap();
        let found = each_model(t.path()).unwrap();
        assert_eq!(found[0], (snapshot, "acme/bert".to_owned()));
        assert_eq!(found[1].1, "plain");
    }
}
