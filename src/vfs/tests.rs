//! Tests of the filesystem without FUSE.
