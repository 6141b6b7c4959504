//! mgit: model versioning as a filesystem.
//!
//! The rooms, from pure to practical; `tests/tidy.rs` holds who may import whom:
//! [`model`] values · [`codec`] bytes to bytes · [`store`] durable bytes · [`repo`] what the system can do ·
//! [`vfs`] filesystem semantics · [`fuse`] and [`mount`] the kernel's side · [`control`] who answers when it
//! is mounted · [`cli`] the command line. `sync`: the locks of them all.
#[cfg(all(feature = "shuttle", not(test)))]
compile_error!("the feature `shuttle` is for `cargo test --lib` only: its locks work nowhere else");

pub mod cli;
pub mod codec;
pub mod control;
pub mod fuse;
pub mod model;
pub mod mount;
pub mod repo;
pub mod store;
mod sync;
pub mod vfs;
