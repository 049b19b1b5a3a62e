//! Access to weight files: read-only mappings, positioned reads that bypass the page cache, and the memory
//! for those reads. Handles only bytes.

mod again;
mod file;
mod os;
mod place;
mod probe;

pub(crate) use again::read_again;
pub use file::{Access, FileStorage, Measured, PART_BYTES, Reads, Storage, read_exact};
pub use os::{Arena, End, Ring, Room, Slab, anonymous_bytes, available_bytes, map, release};
pub use place::{PART_ALIGNMENT, Place};
