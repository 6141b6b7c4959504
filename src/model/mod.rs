//! Pure values: ids, names, the layout of safetensors files, recipes, version records, journal events,
//! the lineage, drawings and places of it, what a lossy version says of itself, and tables. No I/O.
pub mod bisect;
pub mod build;
pub mod cascade;
pub mod dtype;
pub mod event;
pub mod family;
pub mod feeds;
pub mod graph;
pub mod id;
pub mod layout;
pub mod lineage;
pub mod lossy;
pub mod name;
pub mod number;
pub mod object;
pub mod pattern;
pub mod recipe;
pub mod record;
pub mod sketch;
pub mod table;
pub mod test;
pub mod wire;
