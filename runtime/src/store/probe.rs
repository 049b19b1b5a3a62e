//! Finds the fastest way to read a file, by measuring at open. Reads slabs that are spread over the file.

use super::file::{Access, FileStorage, Measured, PART_BYTES, Reads, read_exact};
use super::os::{self, Arena, End, Ring, Slab};
use super::place::Place;
use crate::error::{Error, Result};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Numbers of threads to try; the first wins a tie. One thread leaves the disk idle between reads; more than
/// four were never faster (benches/records/streaming.md).
const LANES: [usize; 2] = [4, 2];

/// Reads in flight through io_uring. A disk serves all of them side by side: with more, an expert would
/// arrive no sooner than those after it (benches/records/streaming.md).
const RING_LANES: usize = 8;

/// No probe begins after this time: opening a model from a slow card should not take seconds.
const PROBE_TIME: Duration = Duration::from_millis(50);

impl FileStorage {
    /// Opens a file and measures how to read it, and with how many reads in flight (`lanes` fixes that
    /// number). The `probes` (offset, length) are divided among the ways of reading that `reads` allows. Each
    /// way reads its own share, at most `at_once` probes, into separate buffers. Direct reads win unless they
    /// are clearly slower, because they leave the page cache to other programs. Reads through io_uring win
    /// ties, because they leave the CPU to other work.
    ///
    /// # Errors
    /// `Io`; `Invalid` if there is no memory to read into; `Unsupported` if `reads` requires io_uring and the
    /// system lacks it.
    pub fn open_measured(
        place: impl Into<Place>,
        probes: &[(u64, usize)],
        at_once: usize,
        lanes: Option<usize>,
        reads: Reads,
    ) -> Result<FileStorage> {
        let mut storage = FileStorage::open(place, true)?;
        let ring = storage.direct.as_ref().is_some_and(|file| Ring::new(file, 0, 1).is_ok())
            && reads != Reads::Threads;
        if reads == Reads::Ring && !ring {
            return Err(Error::unsupported(
                "this system does not read by itself (io_uring, direct reads); leave that to threads",
            ));
        }
        let threads: &[usize] = match &lanes {
            Some(n) => std::slice::from_ref(n),
            None => &LANES,
        };
        // The first way wins a tie. If there is any other way, the page cache is tried with one number of threads only.
        let mut ways = Vec::new();
        ways.extend(ring.then_some((Access::Ring, lanes.unwrap_or(RING_LANES))));
        if storage.direct.is_some() && reads != Reads::Ring {
            ways.extend(threads.iter().map(|&n| (Access::Direct, n)));
        }
        if reads != Reads::Ring {
            let buffered = if ways.is_empty() { threads.len() } else { 1 };
            ways.extend(threads[..buffered].iter().map(|&n| (Access::Buffered, n)));
        }
        let part = (probes.len() / ways.len()).min(at_once).max(1);
        let mut parts = probes.chunks(part);
        // Drop the probes from the page cache: a cached read does not measure the disk.
        for &(offset, len) in probes {
            os::forget(&storage.buffered, storage.base.saturating_add(offset), len as u64);
        }
        let mut best: Option<(Access, Measured)> = None;
        for (access, lanes) in ways {
            let probes = parts.next().unwrap_or(&[]);
            let rate = match access {
                Access::Ring => storage.ring_rate(probes, lanes)?,
                Access::Direct => storage.rate(probes, lanes)?,
                Access::Buffered => {
                    let direct = storage.direct.take();
                    let rate = storage.rate(probes, lanes);
                    storage.direct = direct;
                    rate?
                }
            };
            let Some(bytes_per_second) = rate else { continue };
            let clearly =
                |best: Access| if access == Access::Buffered && best != access { 2.0 } else { 1.15 };
            if best.is_none_or(|b| bytes_per_second > clearly(b.0) * b.1.bytes_per_second) {
                best = Some((access, Measured { lanes, bytes_per_second }));
            }
        }
        let access =
            best.map_or(if reads == Reads::Ring { Access::Ring } else { Access::Direct }, |best| best.0);
        storage.measured = best.map(|best| best.1);
        storage.ring = access == Access::Ring;
        storage.direct = storage.direct.filter(|_| access != Access::Buffered);
        Ok(storage)
    }

    /// A separate buffer for each probe, touched beforehand. A buffer in the CPU's caches would be filled
    /// faster than the expert cache will be.
    fn slabs(probes: &[(u64, usize)]) -> Result<Vec<Slab>> {
        let size = |p: &(u64, usize)| p.1.next_multiple_of(4096);
        let arena = Arena::new(probes.iter().map(size).sum(), 4096)?;
        let mut slabs: Vec<Slab> = probes.iter().filter_map(|p| arena.alloc(p.1, End::Low)).collect();
        slabs.iter_mut().for_each(|slab| slab.fill(1));
        Ok(slabs)
    }

    /// Bytes per second of reading `probes` with `lanes` threads; `None` if nothing was read.
    fn rate(&self, probes: &[(u64, usize)], lanes: usize) -> Result<Option<f64>> {
        let slabs = FileStorage::slabs(probes)?;
        let (work, bytes) = (Mutex::new(probes.iter().zip(slabs)), AtomicUsize::new(0));
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..lanes {
                let (work, bytes) = (&work, &bytes);
                // If the system refuses a thread, there is one lane less.
                let _ = std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, move || {
                    let next = || work.lock().unwrap_or_else(PoisonError::into_inner).next();
                    // The first probe is read even if the disk is slow.
                    while let Some((&(offset, len), mut slab)) = next() {
                        if read_exact(self, offset, &mut slab).is_ok() {
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

    /// The same through io_uring, in parts of the size used for experts, with up to `depth` in flight.
    fn ring_rate(&self, probes: &[(u64, usize)], depth: usize) -> Result<Option<f64>> {
        let slabs = FileStorage::slabs(probes)?;
        let Some(mut ring) = self.direct.as_ref().and_then(|file| Ring::new(file, self.base, depth).ok())
        else {
            return Ok(None);
        };
        let mut parts = probes.iter().zip(slabs).flat_map(|(&(offset, _), slab)| {
            let start = slab.offset();
            slab.cut(PART_BYTES).into_iter().map(move |part| (offset + (part.offset() - start) as u64, part))
        });
        let (mut bytes, start) = (0, Instant::now());
        loop {
            while ring.flying() < ring.depth() && (bytes == 0 || start.elapsed() < PROBE_TIME) {
                let Some((offset, part)) = parts.next() else { break };
                if ring.read(offset, part, false).is_err() {
                    break;
                }
            }
            if ring.flying() == 0 || ring.wait().is_err() {
                break;
            }
            while let Some((_, part, read)) = ring.done() {
                bytes += if matches!(read, Ok(n) if n == part.len()) { part.len() } else { 0 };
            }
        }
        Ok((bytes > 0).then(|| bytes as f64 / start.elapsed().as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Storage;

    #[test]
    fn every_way_of_reading_that_was_asked_for_is_measured() {
        let path = std::env::temp_dir().join(format!("dollop-probe-{}", std::process::id()));
        std::fs::write(&path, vec![7; 100_000]).unwrap();
        let probes: Vec<(u64, usize)> = (0..8).map(|i| (i * 8192, 4096)).collect();
        for lanes in [None, Some(3)] {
            for reads in [Reads::Measured, Reads::Threads, Reads::Ring] {
                let storage = match FileStorage::open_measured(&path, &probes, 3, lanes, reads) {
                    // Not every system has io_uring.
                    Err(Error::Unsupported { .. }) if reads == Reads::Ring => continue,
                    storage => storage.unwrap(),
                };
                let measured = storage.measured().unwrap();
                assert!(measured.bytes_per_second > 0.0 && storage.path() == path);
                let known = |n| LANES.contains(&n) || n == RING_LANES;
                assert!(lanes.map_or(known(measured.lanes), |n| n == measured.lanes), "{measured:?}");
                let ring = storage.access() == Access::Ring;
                assert_eq!(storage.ring(4).is_some(), ring);
                assert!(reads == Reads::Measured || ring == (reads == Reads::Ring), "{reads:?}: {ring}");
            }
        }
        std::fs::remove_file(&path).unwrap();
    }
}
