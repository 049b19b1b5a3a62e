//! Access to weight files: read-only mappings, positioned reads past the page cache, and the memory those reads fill.
//! Knows bytes only.

mod again;
mod file;
mod os;
mod place;
mod probe;

pub(crate) use again::read_again;
pub use file::{Access, FileStorage, Measured, PART_BYTES, Reads, Storage, read_exact};
pub use os::{Arena, End, Ring, Room, Slab, anonymous_bytes, available_bytes, map, release};
pub use place::{PART_ALIGNMENT, Place};
