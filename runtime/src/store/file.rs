//! Positioned reads of a file that bypass the page cache if the system supports it.
//!
//! [`Storage`] is the interface between readers and the source of bytes; tests inject faults through it. Any
//! number of threads may read one [`FileStorage`] at once. It does not retry: `sched` does.

use super::os::{self, Ring};
use super::place::Place;
use crate::error::Result;
use std::fs::File;
use std::io;
use std::path::Path;

/// A source of bytes at offsets.
pub trait Storage: Send + Sync {
    /// Reads up to `to.len()` bytes at `offset`; fewer at the end of the file or if the system stopped early.
    ///
    /// # Errors
    /// The system's errors.
    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<usize>;

    /// A hint that these bytes will be read soon. The system starts reading them if it can, so that scattered
    /// reads do not wait for one another.
    fn will_read(&self, offset: u64, len: usize) {
        let _ = (offset, len);
    }

    /// How the file is read, for display.
    fn access(&self) -> Access;

    /// The throughput measured at open, if it was measured.
    fn measured(&self) -> Option<Measured> {
        None
    }

    /// A ring for up to `depth` reads in flight, if the file is read through io_uring.
    fn ring(&self, depth: usize) -> Option<Ring> {
        let _ = depth;
        None
    }
}

/// How a file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Bypasses the page cache through io_uring: no thread waits.
    Ring,
    /// Bypasses the page cache (O_DIRECT, F_NOCACHE).
    Direct,
    /// Through the page cache, with a hint to drop the bytes afterwards.
    Buffered,
}

/// How reads that bypass the page cache are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reads {
    /// By the method that measures faster.
    #[default]
    Measured,
    /// With io_uring.
    Ring,
    /// With threads.
    Threads,
}

/// The throughput measured when the storage was opened.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Measured {
    /// Reads in flight.
    pub lanes: usize,
    /// Throughput with this many reads in flight.
    pub bytes_per_second: f64,
}

/// Fills `to`.
///
/// # Errors
/// The system's errors; `UnexpectedEof` if the file ends first.
pub fn read_exact(storage: &dyn Storage, offset: u64, to: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < to.len() {
        match storage.read_at(offset + done as u64, &mut to[done..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n.min(to.len() - done),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// A file, or a part of one.
pub struct FileStorage {
    place: Place,
    /// The part's offset in the file, and its length if it is not the whole file.
    pub(super) base: u64,
    len: Option<u64>,
    pub(super) buffered: File,
    pub(super) direct: Option<File>,
    /// Whether reads go through io_uring.
    pub(super) ring: bool,
    pub(super) measured: Option<Measured>,
}

/// The size of one read: shorter reads reach less of a disk's throughput.
pub const PART_BYTES: usize = 512 << 10;

/// Direct reads must begin and end at multiples of this, in the file and in memory. A disk with larger blocks
/// rejects them, and the read then uses the page cache.
const BLOCK: usize = 512;

impl FileStorage {
    /// Opens a file. Threads read it directly if `direct` is set and the system supports direct reads.
    ///
    /// # Errors
    /// `Io`.
    pub fn open(place: impl Into<Place>, direct: bool) -> Result<FileStorage> {
        let place = place.into();
        let buffered = place.open()?;
        let direct = if direct { place.open_direct() } else { None };
        let (base, len) = place.span();
        Ok(FileStorage { place, base, len, buffered, direct, ring: false, measured: None })
    }

    /// Opens a file for short scattered reads through the page cache, with read-ahead off.
    ///
    /// # Errors
    /// `Io`.
    pub fn open_scattered(place: impl Into<Place>) -> Result<FileStorage> {
        let storage = FileStorage::open(place, false)?;
        os::scattered(&storage.buffered);
        Ok(storage)
    }

    /// The file's name.
    pub fn path(&self) -> &Path {
        self.place.name()
    }
}

impl Storage for FileStorage {
    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<usize> {
        let left = self.len.map_or(u64::MAX, |len| len.saturating_sub(offset));
        let to = match usize::try_from(left) {
            Ok(left) if left < to.len() => &mut to[..left],
            _ => to,
        };
        let Some(offset) = self.base.checked_add(offset) else { return Ok(0) };
        let aligned = |n: usize| n.is_multiple_of(BLOCK);
        if let Some(direct) = &self.direct
            && aligned(offset as usize)
            && aligned(to.len())
            && aligned(to.as_ptr() as usize)
        {
            match os::read_at(direct, offset, to) {
                // The disk's blocks are larger than ours, or the file system does not support direct reads after all.
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => {}
                other => return other,
            }
        }
        let n = os::read_at(&self.buffered, offset, to)?;
        os::forget(&self.buffered, offset, n as u64);
        Ok(n)
    }

    fn will_read(&self, offset: u64, len: usize) {
        if self.direct.is_none() {
            os::expect(&self.buffered, self.base.saturating_add(offset), len as u64);
        }
    }

    fn access(&self) -> Access {
        match (&self.direct, self.ring) {
            (Some(_), true) => Access::Ring,
            (Some(_), false) => Access::Direct,
            (None, _) => Access::Buffered,
        }
    }

    fn ring(&self, depth: usize) -> Option<Ring> {
        // If the system rejects a ring now, threads read.
        self.direct.as_ref().filter(|_| self.ring).and_then(|file| Ring::new(file, self.base, depth).ok())
    }

    fn measured(&self) -> Option<Measured> {
        self.measured
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Arena, End};

    #[test]
    fn all_ways_read_the_same_bytes_and_the_end_is_an_error() {
        let path = std::env::temp_dir().join(format!("dollop-storage-{}", std::process::id()));
        let bytes: Vec<u8> = (0..100_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let arena = Arena::new(1 << 16, 4096).unwrap();
        let mut slab = arena.alloc(8192, End::Low).unwrap();
        let open = |direct| FileStorage::open(&path, direct).unwrap();
        for storage in [open(true), open(false), FileStorage::open_scattered(&path).unwrap()] {
            // A hint for bytes beyond the end of the file is not an error.
            [0, 4096, 99_999, 1 << 40].into_iter().for_each(|offset| storage.will_read(offset, 8192));
            read_exact(&storage, 4096, &mut slab).unwrap();
            assert!(slab[..] == bytes[4096..4096 + 8192]);
            // An unaligned read.
            let mut small = [0u8; 100];
            read_exact(&storage, 333, &mut small).unwrap();
            assert!(small[..] == bytes[333..433]);
            let end = read_exact(&storage, 99_000, &mut [0; 4096]).unwrap_err();
            assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
        }
        std::fs::remove_file(&path).unwrap();
    }
}
