//! mgit: model versioning as a filesystem.
pub mod fuse;
pub mod model;
pub mod mount;
pub mod vfs;
