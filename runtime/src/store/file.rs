//! Positioned reads of a file, past the page cache where that works.
//!
//! [`Storage`] is the port between whoever streams and where bytes come from; tests put faults in between. A
//! [`FileStorage`] may be read from any number of threads at once. It does not retry: `sched` does.

use super::os::{self, Arena, End, Slab};
use crate::error::{Error, Result};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes at offsets.
pub trait Storage: Send + Sync {
    /// Reads up to `to.len()` bytes at `offset`; fewer at the end of the file or where the system stopped early.
    ///
    /// # Errors
    /// Whatever the system says.
    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<usize>;

    /// How it reads, for people.
    fn access(&self) -> Access;

    /// How fast it proved to be, where that was measured.
    fn measured(&self) -> Option<Measured> {
        None
    }
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

/// How fast storage proved to be when it was opened.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Measured {
    /// Reads at a time.
    pub lanes: usize,
    /// With so many.
    pub bytes_per_second: f64,
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
    measured: Option<Measured>,
}

/// Numbers of reads at a time that are tried, the one that wins a tie first. One leaves the disk idle between reads; more
/// than four never gave more (benches/records/streaming.md).
const LANES: [usize; 2] = [4, 2];

/// No more probes are begun after this long: opening a model from a slow card should not take seconds.
const PROBE_TIME: Duration = Duration::from_millis(50);

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
        Ok(FileStorage { path: path.to_path_buf(), buffered, direct, measured: None })
    }

    /// Opens a file and decides by measurement how to read it, and with how many reads at a time (`lanes`, if that is
    /// not for us to decide): `probes` (offset, length) are read in all the ways there are, each part by one of them
    /// only, and `at_once` at most, each of which has memory of its own. Direct reads win unless they are clearly slower,
    /// because they leave the page cache to others.
    ///
    /// # Errors
    /// `Io`; `Invalid` where there is no memory to read into.
    pub fn open_measured(
        path: &Path,
        probes: &[(u64, usize)],
        at_once: usize,
        lanes: Option<usize>,
    ) -> Result<FileStorage> {
        let mut storage = FileStorage::open(path, true)?;
        let counts: &[usize] = match &lanes {
            Some(n) => std::slice::from_ref(n),
            None => &LANES,
        };
        let direct = storage.direct.is_some();
        let part = (probes.len() / (counts.len() + usize::from(direct))).min(at_once).max(1);
        let mut parts = probes.chunks(part);
        // What happens to be in the page cache says nothing about the disk.
        for &(offset, len) in probes {
            os::forget(&storage.buffered, offset, len as u64);
        }
        let mut best: Option<Measured> = None;
        let mut rates = |storage: &FileStorage, counts: &[usize]| -> Result<Option<Measured>> {
            let mut best: Option<Measured> = None;
            for &lanes in counts {
                let Some(rate) = storage.rate(parts.next().unwrap_or(&[]), lanes)? else { continue };
                if best.is_none_or(|b| rate > 1.15 * b.bytes_per_second) {
                    best = Some(Measured { lanes, bytes_per_second: rate });
                }
            }
            Ok(best)
        };
        if direct {
            best = rates(&storage, counts)?;
        }
        // Through the page cache with one number of lanes only.
        let file = storage.direct.take();
        let buffered = rates(&storage, if direct { &counts[..1] } else { counts })?;
        match (best, buffered) {
            (Some(d), Some(b)) if d.bytes_per_second < 0.5 * b.bytes_per_second => best = buffered,
            (Some(_), _) => storage.direct = file,
            (None, _) => best = buffered,
        }
        storage.measured = best;
        Ok(storage)
    }

    /// Bytes per second of reading `probes` with `lanes` reads at a time; `None` where nothing was read. Each has memory of
    /// its own, touched before: into a buffer that the processor's caches hold, reads are faster than into a cache of
    /// experts.
    fn rate(&self, probes: &[(u64, usize)], lanes: usize) -> Result<Option<f64>> {
        let longest = probes.iter().map(|p| p.1).max().unwrap_or(0).next_multiple_of(4096);
        let arena = Arena::new(probes.len() * longest, 4096)?;
        let mut slabs: Vec<Slab> = probes.iter().filter_map(|_| arena.alloc(longest, End::Low)).collect();
        slabs.iter_mut().for_each(|slab| slab.fill(1));
        let (work, bytes) = (Mutex::new(probes.iter().zip(slabs)), AtomicUsize::new(0));
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..lanes {
                let (work, bytes) = (&work, &bytes);
                // A thread that the system refuses is one lane fewer.
                let _ = std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, move || {
                    let next = || work.lock().unwrap_or_else(PoisonError::into_inner).next();
                    // The first probe is read however slow the disk is.
                    while let Some((&(offset, len), mut slab)) = next() {
                        if read_exact(self, offset, &mut slab[..len]).is_ok() {
                            bytes.fetch_add(len, Ordering::Relaxed);
                        }
                        if start.elapsed() > PROBE_TIME {
                            break;
                        }
                    }
                });
            }
        });
        let bytes = bytes.into_inner();
        Ok((bytes > 0).then(|| bytes as f64 / start.elapsed().as_secs_f64()))
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

    fn measured(&self) -> Option<Measured> {
        self.measured
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
        let mut slab = arena.alloc(8192, End::Low).unwrap();
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
        let probes: Vec<(u64, usize)> = (0..8).map(|i| (i * 8192, 4096)).collect();
        for lanes in [None, Some(3)] {
            let storage = FileStorage::open_measured(&path, &probes, 3, lanes).unwrap();
            let measured = storage.measured().unwrap();
            assert!(measured.bytes_per_second > 0.0 && storage.path() == path);
            assert!(lanes.map_or(LANES.contains(&measured.lanes), |n| n == measured.lanes), "{measured:?}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
