//! I/O lanes: they fill slabs from storage, and do nothing else.
//!
//! Requests are served in order; prefetches come after all other requests. A long request is read in several parts
//! at once, because it is often the only one. If the storage supports io_uring, requests are submitted to it
//! ([`flights`]); otherwise threads read ([`threads`]). Completed reads go to one mailbox, which the caller polls.

mod flights;
mod parts;
mod threads;

use crate::error::Result;
use crate::store::{Slab, Storage};
use crate::telemetry::Trace;
use flights::Flights;
use parts::Reader;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use threads::Threads;

/// The largest number of lanes.
pub const MAX_LANES: usize = 32;

/// The number of lanes if none was measured.
pub const DEFAULT_LANES: usize = 4;

/// A slab to fill.
pub(super) struct Request {
    pub(super) layer: usize,
    pub(super) expert: usize,
    pub(super) plane: usize,
    pub(super) offset: u64,
    /// The CRC-32 of the bytes, if it is to be checked.
    pub(super) checksum: Option<u32>,
    pub(super) slab: Slab,
}

/// A finished request.
pub(super) struct Landed {
    pub(super) layer: usize,
    pub(super) expert: usize,
    pub(super) plane: usize,
    pub(super) offset: u64,
    pub(super) result: io::Result<Slab>,
}

/// The lanes of one file.
pub(super) struct Lanes {
    count: usize,
    reader: Arc<Reader>,
    waits: AtomicU64,
    how: How,
}

enum How {
    Threads(Threads),
    Flights(Box<Mutex<Flights>>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lanes {
    /// Starts `count` lanes.
    ///
    /// # Errors
    /// `Invalid` if the system cannot start a thread.
    pub(super) fn new(count: usize, storage: Arc<dyn Storage>, trace: Option<Arc<Trace>>) -> Result<Lanes> {
        let count = count.clamp(1, MAX_LANES);
        let ring = storage.ring(flights::KNOWN);
        let reader = Arc::new(Reader::new(storage));
        let how = match ring {
            Some(ring) => {
                How::Flights(Box::new(Mutex::new(Flights::new(ring, count, reader.clone(), trace))))
            }
            None => How::Threads(Threads::new(count, reader.clone(), trace)?),
        };
        Ok(Lanes { count, reader, waits: AtomicU64::new(0), how })
    }

    /// The number of lanes.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Submits requests: prefetches if `ahead`, otherwise needed now.
    pub(super) fn submit(&self, requests: impl IntoIterator<Item = Request>, ahead: bool) {
        let requests = requests.into_iter();
        match &self.how {
            How::Threads(threads) => threads.submit(requests, ahead),
            How::Flights(flights) => lock(flights).submit(requests, ahead),
        }
    }

    /// The next completed request, without waiting.
    pub(super) fn poll(&self) -> Option<Landed> {
        match &self.how {
            How::Threads(threads) => threads.poll(),
            How::Flights(flights) => lock(flights).poll(),
        }
    }

    /// Waits until a request completes. Call it only while one is in flight.
    pub(super) fn wait(&self) -> Landed {
        self.waits.fetch_add(1, Ordering::Release);
        match &self.how {
            How::Threads(threads) => threads.wait(),
            How::Flights(flights) => lock(flights).wait(),
        }
    }

    /// The number of waits so far. Takes no lock, so that a test that blocks reads can detect when to release them.
    pub(super) fn waits(&self) -> u64 {
        self.waits.load(Ordering::Acquire)
    }

    /// Nanoseconds spent reading, summed over lanes, and the number of retries.
    pub(super) fn counters(&self) -> (u64, u64) {
        let Reader { busy_ns, retries, .. } = &*self.reader;
        (busy_ns.load(Ordering::Relaxed), retries.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests;
