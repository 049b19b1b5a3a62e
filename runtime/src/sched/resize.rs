//! Resizes the expert cache while a model runs.
//!
//! [`Streamer::resize`], callable from any thread, leaves a request. It is carried out between two servings: by the
//! calling thread if no layer is being served, otherwise by the serving thread before its next layer. Exact results do
//! not depend on it (R2).

use super::home::Home;
use super::{State, Streamer};
use crate::error::{Error, Result};
use crate::quant::Level;
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

/// How long a call waits before it tries again to carry out its request itself.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Requested resizes.
#[derive(Default)]
pub(super) struct Requests {
    request: Mutex<Request>,
    fulfilled: Condvar,
}

#[derive(Default)]
struct Request {
    bytes: usize,
    /// The number of requests so far, and up to which they are done.
    asked: u64,
    done: u64,
    /// The result of the last one: bytes given back, or the error.
    result: Option<Result<u64, String>>,
}

impl Requests {
    fn lock(&self) -> MutexGuard<'_, Request> {
        self.request.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The smallest cache on the host that holds one expert of every layer at `floor`, all layers with the same share.
pub(super) fn least_bytes(homes: &[Option<Home>], granule: usize, floor: Level) -> u64 {
    let bytes = |home: &Home| home.table.expert_bytes(floor).next_multiple_of(granule) as u64;
    let routed = || homes.iter().flatten();
    routed().map(bytes).max().unwrap_or(0) * routed().count() as u64
}

/// Bytes that may be cached, in all layers.
pub(super) fn capacity(homes: &[Option<Home>]) -> u64 {
    homes.iter().flatten().map(|home| home.cache.capacity() as u64).sum()
}

impl Streamer {
    /// Bytes of memory that cached experts may take now.
    pub fn cache_bytes(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Makes the cache as large as `bytes`, the same for every layer, from any thread. Returns the bytes that went back
    /// to the system, at the latest when the current layer is computed. No layer gets more than all its experts take.
    ///
    /// # Errors
    /// `Invalid` if `bytes` is less than one expert of every layer, or the system has no such memory; `Unsupported` if
    /// a device keeps the experts.
    pub fn resize(&self, bytes: u64) -> Result<u64> {
        if !self.on_host.load(Ordering::Relaxed) {
            return Err(Error::unsupported("the cache of experts is on a GPU, where it cannot be resized"));
        }
        if bytes < self.least {
            let least = self.least;
            return Err(Error::Invalid(format!("a cache of {bytes} bytes: {least} are needed at least")));
        }
        let number = {
            let mut request = self.requests.lock();
            request.bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            request.asked += 1;
            self.asked.store(true, Ordering::Release);
            request.asked
        };
        loop {
            match self.state.try_lock() {
                Ok(mut state) => self.fulfil(&mut state),
                Err(TryLockError::Poisoned(state)) => self.fulfil(&mut state.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
            let request = self.requests.lock();
            if request.done >= number {
                return match &request.result {
                    Some(Err(what)) => Err(Error::Invalid(what.clone())),
                    Some(Ok(bytes)) => Ok(*bytes),
                    None => Ok(0),
                };
            }
            let woken = self.requests.fulfilled.wait_timeout(request, LOOK_AGAIN);
            drop(woken.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Carries out a pending request. Between two servings only.
    pub(super) fn fulfil(&self, state: &mut State) {
        if !self.asked.swap(false, Ordering::Acquire) {
            return;
        }
        let (bytes, number) = {
            let request = self.requests.lock();
            (request.bytes, request.asked)
        };
        // Slabs of prefetches in flight cannot be moved before they land.
        while state.pending > 0 {
            let _ = self.wait(state);
        }
        self.take_back(state);
        let share = bytes / state.homes.iter().flatten().count().max(1);
        let mut result = Ok(0);
        let State { homes, stats, .. } = state;
        for home in homes.iter_mut().flatten() {
            match home.resize(share, self.granule) {
                Ok(done) => {
                    result = result.map(|bytes| bytes + done.given_back as u64);
                    stats.bytes_given_back += done.given_back as u64;
                    stats.bytes_moved += done.moved;
                    stats.evictions += done.gave_way[0];
                    stats.downgrades += done.gave_way[1..].iter().sum::<u64>();
                }
                Err(e) => result = Err(e.to_string()),
            }
        }
        stats.resizes += 1;
        self.capacity.store(capacity(homes), Ordering::Relaxed);
        match &result {
            Ok(given) => log::debug!("the cache has {} bytes, {given} went back", self.cache_bytes()),
            Err(e) => log::warn!("the cache was not resized: {e}"),
        }
        let mut request = self.requests.lock();
        request.done = number;
        request.result = Some(result);
        drop(request);
        self.requests.fulfilled.notify_all();
    }
}
