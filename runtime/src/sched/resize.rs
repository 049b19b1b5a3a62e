//! Resizes the expert cache while a model runs.
//!
//! [`Streamer::resize`] can be called from any thread. It stores a request, which is executed between two
//! servings: by the calling thread if no layer is being served, otherwise by the serving thread before its
//! next layer. Exact results do not depend on it (R2).

use super::home::Home;
use super::{State, Streamer};
use crate::error::{Error, Result};
use crate::quant::Level;
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

/// The wait between two attempts of a caller to execute its request itself.
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
    /// The number of requests so far, and the number of executed ones.
    asked: u64,
    done: u64,
    /// The last result: bytes given back, or the error.
    result: Option<Result<u64, String>>,
}

impl Requests {
    fn lock(&self) -> MutexGuard<'_, Request> {
        self.request.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The smallest host cache that holds one expert of every layer at `floor`, with equal shares for all layers.
pub(super) fn least_bytes(homes: &[Option<Home>], granule: usize, floor: Level) -> u64 {
    let bytes = |home: &Home| home.table.expert_bytes(floor).next_multiple_of(granule) as u64;
    let routed = || homes.iter().flatten();
    routed().map(bytes).max().unwrap_or(0) * routed().count() as u64
}

/// The most bytes that may be cached, in all layers.
pub(super) fn capacity(homes: &[Option<Home>]) -> u64 {
    homes.iter().flatten().map(|home| home.cache.capacity() as u64).sum()
}

impl Streamer {
    /// The most bytes that cached experts may take now.
    pub fn cache_bytes(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Resizes the cache to `bytes`, with equal shares for all layers, from any thread. Returns the bytes given back to
    /// the system, after at most the computation of the current layer. No layer gets more than all its experts take.
    ///
    /// # Errors
    /// `Invalid` if `bytes` is less than one expert of every layer, or the system does not provide the memory;
    /// `Unsupported` if the experts are on a device.
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

    /// Executes a pending request. Only between two servings.
    pub(super) fn fulfil(&self, state: &mut State) {
        if !self.asked.swap(false, Ordering::Acquire) {
            return;
        }
        let (bytes, number) = {
            let request = self.requests.lock();
            (request.bytes, request.asked)
        };
        // The slabs of prefetches in flight cannot be moved before these complete.
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
