//! Extended attributes: what mgit knows of a file, for `getfattr -d`.
//!
//! | attribute | on a file | on a version's directory |
//! |---|---|---|
//! | `user.mgit.id` | the version's id | the same |
//! | `user.mgit.blake3` | what `b3sum` prints | – |
//! | `user.mgit.parents` | the version's parents, `model@version`, space separated | the same |
//! | `user.mgit.stored_bytes` | what it is charged in the store | the sum over its files |

use super::VfsError;

/// The kernel's limit on a value.
const MAX_VALUE: usize = 64 << 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Name {
    Id,
    Blake3,
    Parents,
    StoredBytes,
}

pub(super) const OF_FILE: &[Name] = &[Name::Id, Name::Blake3, Name::Parents, Name::StoredBytes];
pub(super) const OF_VERSION: &[Name] = &[Name::Id, Name::Parents, Name::StoredBytes];

impl Name {
    pub fn as_str(self) -> &'static str {
        match self {
            Name::Id => "user.mgit.id",
            Name::Blake3 => "user.mgit.blake3",
            Name::Parents => "user.mgit.parents",
            Name::StoredBytes => "user.mgit.stored_bytes",
        }
    }
}

/// The answer to a request for an attribute or for their names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Xattr {
    /// How long the value is: the caller asked with size 0.
    Size(u32),
    Value(Vec<u8>),
}

/// `value` for a caller who has room for `size` bytes.
pub(super) fn sized(value: Vec<u8>, size: u32) -> Result<Xattr, VfsError> {
    match (size as usize, value.len()) {
        (0, len) => Ok(Xattr::Size(len as u32)),
        (room, len) if room < len => Err(VfsError::Range),
        _ => Ok(Xattr::Value(value)),
    }
}

/// The list of names as the kernel wants it: each ends in a NUL.
pub(super) fn list(names: &[Name]) -> Vec<u8> {
    names.iter().flat_map(|n| n.as_str().bytes().chain([0])).collect()
}

/// As many of the space-separated words of `text` as a value may hold.
pub(super) fn clipped(mut text: String) -> Vec<u8> {
    if text.len() > MAX_VALUE {
        let cut = text.as_bytes()[..=MAX_VALUE].iter().rposition(|b| *b == b' ').unwrap_or(0);
        text.truncate(cut);
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_end_at_a_word() {
        assert_eq!(clipped("a@v1 b@v2".into()), b"a@v1 b@v2");
        let clip = clipped("abc@v1 ".repeat(20_000));
        assert!(clip.len() <= MAX_VALUE && clip.ends_with(b"abc@v1"));
        assert_eq!(clipped("é".repeat(MAX_VALUE)), b"");
    }
}
