//! mgit: model versioning as a filesystem.
pub mod model;
pub mod store;
