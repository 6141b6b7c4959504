//! Pure values: ids, names, the layout of safetensors files, recipes, version records, journal events,
//! the lineage, and drawings of it. No I/O.
pub mod dtype;
pub mod event;
pub mod graph;
pub mod id;
pub mod layout;
pub mod lineage;
pub mod name;
pub mod number;
pub mod object;
pub mod recipe;
pub mod record;
pub mod sketch;
pub mod wire;
