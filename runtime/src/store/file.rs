//! Positioned reads of a file, past the page cache where that works.
//!
//! [`Storage`] is the port between whoever streams and where bytes come from; tests put faults in between. A
//! [`FileStorage`] may be read from any number of threads at once. It does not retry: `sched` does.

use super::os;
use crate::error::{Error, Result};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Bytes at offsets.
pub trait Storage: Send + Sync {
    /// Reads up to `to.len()` bytes at `offset`; fewer at the end of the file or where the system stopped early.
    ///
    /// # Errors
    /// Whatever the system says.
    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<usize>;

    /// How it reads, for people.
    fn access(&self) -> Access;
}

/// How a file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Past the page cache (O_DIRECT, F_NOCACHE).
    Direct,
    /// Through the page cache, which is told to forget what was read.
    Buffered,
}

/// Fills `to`.
///
/// # Errors
/// Whatever the system says; `UnexpectedEof` where the file ends before.
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

/// A file on a disk.
pub struct FileStorage {
    path: PathBuf,
    buffered: File,
    direct: Option<File>,
}

/// Direct reads must begin and end at multiples of this, in the file and in memory. Disks with larger blocks refuse, and
/// the read is done buffered.
const BLOCK: usize = 512;

impl FileStorage {
    /// Opens a file, for direct reads where `direct` says so and the system can.
    ///
    /// # Errors
    /// `Io`.
    pub fn open(path: &Path, direct: bool) -> Result<FileStorage> {
        let buffered = File::open(path).map_err(|e| Error::io(path, e))?;
        let direct = if direct { os::open_direct(path) } else { None };
        Ok(FileStorage { path: path.to_path_buf(), buffered, direct })
    }

    /// Opens a file and decides by measurement how to read it: `probes` (offset, length) are read both ways, each part
    /// by one of them only, into `scratch`. Direct reads win unless they are clearly slower, because they leave the
    /// page cache to others. Returns bytes per second of the way taken as well.
    ///
    /// # Errors
    /// `Io`.
    pub fn open_measured(
        path: &Path,
        probes: &[(u64, usize)],
        scratch: &mut [u8],
    ) -> Result<(FileStorage, Option<f64>)> {
        let mut storage = FileStorage::open(path, true)?;
        let half = probes.len() / 2;
        let mut rate = |storage: &FileStorage, probes: &[(u64, usize)]| {
            let (start, mut bytes) = (Instant::now(), 0);
            for &(offset, len) in probes {
                let part = scratch.get_mut(..len)?;
                read_exact(storage, offset, part).ok()?;
                bytes += len;
            }
            (bytes > 0).then(|| bytes as f64 / start.elapsed().as_secs_f64())
        };
        // What happens to be in the page cache says nothing about the disk.
        for &(offset, len) in probes {
            os::forget(&storage.buffered, offset, len as u64);
        }
        let direct = storage.direct.take();
        let buffered = rate(&storage, &probes[half..]);
        storage.direct = direct;
        let direct = storage.direct.is_some().then(|| rate(&storage, &probes[..half])).flatten();
        Ok(match (direct, buffered) {
            (Some(d), Some(b)) if d < 0.5 * b => {
                storage.direct = None;
                (storage, Some(b))
            }
            (Some(d), _) => (storage, Some(d)),
            (None, b) => {
                storage.direct = None;
                (storage, b)
            }
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Storage for FileStorage {
    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<usize> {
        let aligned = |n: usize| n.is_multiple_of(BLOCK);
        if let Some(direct) = &self.direct
            && aligned(offset as usize)
            && aligned(to.len())
            && aligned(to.as_ptr() as usize)
        {
            match os::read_at(direct, offset, to) {
                // The disk's blocks are larger than ours, or the file system does not do it after all.
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => {}
                other => return other,
            }
        }
        let n = os::read_at(&self.buffered, offset, to)?;
        os::forget(&self.buffered, offset, n as u64);
        Ok(n)
    }

    fn access(&self) -> Access {
        if self.direct.is_some() { Access::Direct } else { Access::Buffered }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_read_the_same_bytes_and_the_end_is_an_error() {
        let path = std::env::temp_dir().join(format!("dollop-storage-{}", std::process::id()));
        let bytes: Vec<u8> = (0..100_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let arena = super::super::Arena::new(1 << 16, 4096).unwrap();
        let mut slab = arena.alloc(8192).unwrap();
        for direct in [true, false] {
            let storage = FileStorage::open(&path, direct).unwrap();
            read_exact(&storage, 4096, &mut slab).unwrap();
            assert!(slab[..] == bytes[4096..4096 + 8192]);
            // Not aligned.
            let mut small = [0u8; 100];
            read_exact(&storage, 333, &mut small).unwrap();
            assert!(small[..] == bytes[333..433]);
            let end = read_exact(&storage, 99_000, &mut [0; 4096]).unwrap_err();
            assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
        }
        let (storage, rate) =
            FileStorage::open_measured(&path, &[(0, 4096), (8192, 4096)], &mut slab).unwrap();
        assert!(rate.unwrap() > 0.0 && storage.path() == path);
        std::fs::remove_file(&path).unwrap();
    }
}
