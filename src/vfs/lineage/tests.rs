//! The lineage in the mount, without FUSE.
