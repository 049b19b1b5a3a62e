//! I/O lanes: threads that fill slabs with what storage holds, and nothing else.
//!
//! Requests are taken in the order given; those made ahead of need wait behind all others. A long one is read in parts by
//! several lanes, for often it is the only one. A lane owns the part of a slab that it writes; whoever reads the last part
//! joins them and compares the checksum. What was read lands in one mailbox, which the caller empties when it wants to.

use crate::error::{Error, Result};
use crate::store::{Slab, Storage, read_exact};
use crate::telemetry::{Trace, Track};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

/// Lanes at most.
pub const MAX_LANES: usize = 32;

/// Lanes where nothing was measured.
pub const DEFAULT_LANES: usize = 4;

/// A failed read is tried again this often: a device that hiccups is not a device that is gone.
const RETRIES: usize = 2;

/// A slab to fill.
pub(super) struct Request {
    pub(super) layer: usize,
    pub(super) expert: usize,
    pub(super) plane: usize,
    pub(super) offset: u64,
    /// CRC-32 that the bytes must have, where that is checked.
    pub(super) checksum: Option<u32>,
    pub(super) slab: Slab,
}

/// A request that was dealt with.
pub(super) struct Landed {
    pub(super) layer: usize,
    pub(super) expert: usize,
    pub(super) plane: usize,
    pub(super) offset: u64,
    pub(super) result: io::Result<Slab>,
}

/// Bytes that are worth a read of their own: shorter reads get less out of a disk.
const PART: usize = 512 << 10;

/// A request whose parts are under way.
struct Whole {
    layer: usize,
    expert: usize,
    plane: usize,
    offset: u64,
    checksum: Option<u32>,
    done: Mutex<Done>,
}

struct Done {
    /// Parts that are not read yet.
    left: usize,
    parts: Vec<Option<Slab>>,
    failure: Option<io::Error>,
}

struct Part {
    whole: Arc<Whole>,
    index: usize,
    offset: u64,
    slab: Slab,
}

#[derive(Default)]
struct Queue {
    wanted: VecDeque<Part>,
    ahead: VecDeque<Part>,
    stop: bool,
}

struct Shared {
    storage: Arc<dyn Storage>,
    queue: Mutex<Queue>,
    wake: Condvar,
    mailbox: Mutex<VecDeque<Landed>>,
    landed: Condvar,
    busy_ns: AtomicU64,
    retries: AtomicU64,
    trace: Option<Arc<Trace>>,
}

/// The threads.
pub(super) struct Lanes {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lanes {
    /// Starts `count` lanes.
    ///
    /// # Errors
    /// `Invalid` where the system has no thread for one.
    pub(super) fn new(count: usize, storage: Arc<dyn Storage>, trace: Option<Arc<Trace>>) -> Result<Lanes> {
        let shared = Arc::new(Shared {
            storage,
            queue: Mutex::default(),
            wake: Condvar::new(),
            mailbox: Mutex::default(),
            landed: Condvar::new(),
            busy_ns: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            trace,
        });
        let mut lanes = Lanes { shared, threads: Vec::new() };
        for i in 0..count.clamp(1, MAX_LANES) {
            let shared = lanes.shared.clone();
            let thread = thread::Builder::new().name(format!("dollop-io-{i}")).stack_size(256 << 10);
            let failed = |e| Error::Invalid(format!("no threads for {count} I/O lanes: {e}"));
            lanes.threads.push(thread.spawn(move || work(&shared, i)).map_err(failed)?);
        }
        Ok(lanes)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.threads.len()
    }

    /// Hands over requests: `ahead` of need, or wanted now.
    pub(super) fn submit(&self, requests: impl IntoIterator<Item = Request>, ahead: bool) {
        let mut queue = lock(&self.shared.queue);
        let to = if ahead { &mut queue.ahead } else { &mut queue.wanted };
        for request in requests {
            let Request { layer, expert, plane, offset, checksum, slab } = request;
            let start = slab.offset();
            let cut = self.threads.len() > 1 && slab.len() >= 2 * PART;
            let slabs = if cut { slab.cut(PART) } else { vec![slab] };
            let parts = slabs.iter().map(|_| None).collect();
            let done = Mutex::new(Done { left: slabs.len(), parts, failure: None });
            let whole = Arc::new(Whole { layer, expert, plane, offset, checksum, done });
            to.extend(slabs.into_iter().enumerate().map(|(index, slab)| Part {
                whole: whole.clone(),
                index,
                offset: offset + (slab.offset() - start) as u64,
                slab,
            }));
        }
        drop(queue);
        self.shared.wake.notify_all();
    }

    /// What has landed, without waiting.
    pub(super) fn poll(&self) -> Option<Landed> {
        lock(&self.shared.mailbox).pop_front()
    }

    /// Waits for something to land. Only to be called while something is under way.
    pub(super) fn wait(&self) -> Landed {
        let mut mailbox = lock(&self.shared.mailbox);
        loop {
            if let Some(landed) = mailbox.pop_front() {
                return landed;
            }
            mailbox = self.shared.landed.wait(mailbox).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Nanoseconds that lanes have spent on reads, summed over lanes, and reads that had to be repeated.
    pub(super) fn counters(&self) -> (u64, u64) {
        (self.shared.busy_ns.load(Ordering::Relaxed), self.shared.retries.load(Ordering::Relaxed))
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        lock(&self.shared.queue).stop = true;
        self.shared.wake.notify_all();
        self.threads.drain(..).for_each(|t| drop(t.join()));
    }
}

fn work(shared: &Shared, lane: usize) {
    loop {
        let mut queue = lock(&shared.queue);
        let part = loop {
            if queue.stop {
                return;
            }
            let Queue { wanted, ahead, .. } = &mut *queue;
            if let Some(part) = wanted.pop_front().or_else(|| ahead.pop_front()) {
                break part;
            }
            queue = shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        };
        drop(queue);
        let start = Instant::now();
        let whole = part.whole.clone();
        let landed = read_part(shared, part);
        shared.busy_ns.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        if let Some(trace) = &shared.trace {
            let Whole { layer, expert, plane, .. } = *whole;
            trace.span(Track::Lane(lane), start, || {
                format!("read layer {layer} expert {expert} plane {plane}")
            });
        }
        if let Some(landed) = landed {
            lock(&shared.mailbox).push_back(landed);
            shared.landed.notify_one();
        }
    }
}

/// Reads a part; the whole, where it was the last.
fn read_part(shared: &Shared, part: Part) -> Option<Landed> {
    let Part { whole, index, offset, mut slab } = part;
    let read = fill(shared, offset, &mut slab, None);
    let mut done = lock(&whole.done);
    done.parts[index] = Some(slab);
    done.failure = done.failure.take().or(read.err());
    done.left -= 1;
    if done.left > 0 {
        return None;
    }
    let mut slab = Slab::join(done.parts.drain(..).flatten().collect());
    let failure = done.failure.take();
    drop(done);
    let Whole { layer, expert, plane, offset, checksum, .. } = *whole;
    let result = match (failure, checksum) {
        (Some(e), _) => Err(e),
        (None, Some(sum)) if crc32fast::hash(&slab) != sum => {
            // Once more, in one piece.
            shared.retries.fetch_add(1, Ordering::Relaxed);
            fill(shared, offset, &mut slab, Some(sum))
        }
        _ => Ok(()),
    };
    Some(Landed { layer, expert, plane, offset, result: result.map(|()| slab) })
}

fn fill(shared: &Shared, offset: u64, slab: &mut Slab, checksum: Option<u32>) -> io::Result<()> {
    let mut tries = 0;
    loop {
        let read = read_exact(&*shared.storage, offset, slab).and_then(|()| match checksum {
            Some(sum) if crc32fast::hash(slab) != sum => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the checksum is not that of the bytes written; copy or convert the file again",
            )),
            _ => Ok(()),
        });
        match read {
            // The file has become shorter: reading again will not bring it back.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(io::Error::new(e.kind(), "the file ends here: it was cut while it was in use"));
            }
            Err(e) if tries == RETRIES => return Err(e),
            Err(_) => {
                tries += 1;
                shared.retries.fetch_add(1, Ordering::Relaxed);
            }
            Ok(()) => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
