//! How long work tells that it goes on, and is told to stop.

use super::RepoError;

/// Called from the working threads; must be cheap.
pub trait Progress: Sync {
    /// Bytes of this file set are to come.
    fn expect(&self, _bytes: u64) {}
    /// So many more bytes were hashed.
    fn hashed(&self, _bytes: u64) {}
    /// So many more bytes were stored, checked or written.
    fn stored(&self, _bytes: u64) {}
    /// An error as soon as the user wants to stop.
    fn check(&self) -> Result<(), RepoError> {
        Ok(())
    }
}

/// Says nothing, never stops.
pub struct Silent;
impl Progress for Silent {}
