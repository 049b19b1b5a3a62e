//! I/O lanes: threads that fill slabs with what storage holds, and nothing else.
//!
//! Requests are taken in the order given; those made ahead of need wait behind all others. A lane owns a request's slab
//! while it writes it. What was read lands in one mailbox, which the caller empties when it wants to.

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
pub const DEFAULT_LANES: usize = 2;

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
    pub(super) slab: Arc<Slab>,
}

/// A request that was dealt with.
pub(super) struct Landed {
    pub(super) request: Request,
    pub(super) result: io::Result<()>,
}

#[derive(Default)]
struct Queue {
    wanted: VecDeque<Request>,
    ahead: VecDeque<Request>,
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
    pub(super) fn new(
        count: usize,
        storage: Arc<dyn Storage>,
        trace: Option<Arc<Trace>>,
    ) -> io::Result<Lanes> {
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
            lanes.threads.push(thread.spawn(move || work(&shared, i))?);
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
        to.extend(requests);
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
        let mut request = loop {
            if queue.stop {
                return;
            }
            let Queue { wanted, ahead, .. } = &mut *queue;
            if let Some(request) = wanted.pop_front().or_else(|| ahead.pop_front()) {
                break request;
            }
            queue = shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        };
        drop(queue);
        let start = Instant::now();
        let result = fill(shared, &mut request);
        shared.busy_ns.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        if let Some(trace) = &shared.trace {
            let Request { layer, expert, plane, .. } = request;
            trace.span(Track::Lane(lane), start, || {
                format!("read layer {layer} expert {expert} plane {plane}")
            });
        }
        lock(&shared.mailbox).push_back(Landed { request, result });
        shared.landed.notify_one();
    }
}

fn fill(shared: &Shared, request: &mut Request) -> io::Result<()> {
    let slab = Arc::get_mut(&mut request.slab).expect("a slab under way belongs to its lane");
    let mut tries = 0;
    loop {
        let read = read_exact(&*shared.storage, request.offset, slab).and_then(|()| match request.checksum {
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
