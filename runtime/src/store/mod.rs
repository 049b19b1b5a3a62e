//! Access to files of weights. Today: read-only mappings; positioned and direct reads come with streaming.

mod os;

pub use os::{map, release};
