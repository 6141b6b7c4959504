//! mgit: model versioning as a filesystem.
pub mod codec;
pub mod model;
