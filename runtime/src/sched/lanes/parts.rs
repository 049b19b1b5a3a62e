//! Requests split into parts that are read independently. The reader of the last part joins them and compares
//! the checksum; checksums of parts are computed while other parts are still being read.

use super::{Landed, Request, lock};
use crate::store::{PART_BYTES, Slab, Storage, read_again};
use crc32fast::Hasher;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A request whose parts are in flight.
pub(super) struct Whole {
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
    parts: Vec<Option<(Slab, Hasher)>>,
    failure: Option<io::Error>,
}

/// One part of a request.
pub(super) struct Part {
    whole: Arc<Whole>,
    index: usize,
    /// Its offset in the file.
    pub(super) offset: u64,
}

/// Splits a request into parts with their slabs, or keeps it in one part if `whole`.
pub(super) fn cut(request: Request, whole: bool) -> impl Iterator<Item = (Part, Slab)> {
    let Request { layer, expert, plane, offset, checksum, slab } = request;
    let start = slab.offset();
    let slabs = if whole || slab.len() < 2 * PART_BYTES { vec![slab] } else { slab.cut(PART_BYTES) };
    let parts = slabs.iter().map(|_| None).collect();
    let done = Mutex::new(Done { left: slabs.len(), parts, failure: None });
    let whole = Arc::new(Whole { layer, expert, plane, offset, checksum, done });
    slabs.into_iter().enumerate().map(move |(index, slab)| {
        let offset = offset + (slab.offset() - start) as u64;
        (Part { whole: whole.clone(), index, offset }, slab)
    })
}

impl Part {
    /// The name of the read in traces.
    pub(super) fn name(&self) -> String {
        let Whole { layer, expert, plane, .. } = *self.whole;
        format!("read layer {layer} expert {expert} plane {plane}")
    }
}

/// Reads, with retries.
pub(super) struct Reader {
    storage: Arc<dyn Storage>,
    /// Nanoseconds spent reading.
    pub(super) busy_ns: AtomicU64,
    /// Number of retries.
    pub(super) retries: AtomicU64,
}

impl Reader {
    pub(super) fn new(storage: Arc<dyn Storage>) -> Reader {
        Reader { storage, busy_ns: AtomicU64::new(0), retries: AtomicU64::new(0) }
    }

    /// Reads a part again whose read failed or was short.
    pub(super) fn fill(&self, part: &Part, slab: &mut Slab) -> io::Result<()> {
        self.read(part.offset, slab, None)
    }

    /// Counts a retry.
    pub(super) fn retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Stores a part; returns the whole request if this was its last part.
    pub(super) fn arrived(&self, part: Part, slab: Slab, read: io::Result<()>) -> Option<Landed> {
        let Part { whole, index, .. } = part;
        let mut hasher = Hasher::new();
        if whole.checksum.is_some() && read.is_ok() {
            hasher.update(&slab);
        }
        let mut done = lock(&whole.done);
        done.parts[index] = Some((slab, hasher));
        done.failure = done.failure.take().or(read.err());
        done.left -= 1;
        if done.left > 0 {
            return None;
        }
        let (mut slabs, mut hash) = (Vec::with_capacity(done.parts.len()), Hasher::new());
        for (slab, hasher) in done.parts.drain(..).flatten() {
            hash.combine(&hasher);
            slabs.push(slab);
        }
        let mut slab = Slab::join(slabs);
        let failure = done.failure.take();
        drop(done);
        let Whole { layer, expert, plane, offset, checksum, .. } = *whole;
        let result = match (failure, checksum) {
            (Some(e), _) => Err(e),
            (None, Some(sum)) if hash.finalize() != sum => {
                // Retry the whole request in one piece.
                log::warn!("layer {layer}, expert {expert}, plane {plane}: another checksum, read again");
                self.retry();
                self.read(offset, &mut slab, Some(sum))
            }
            _ => Ok(()),
        };
        Some(Landed { layer, expert, plane, offset, result: result.map(|()| slab) })
    }

    fn read(&self, offset: u64, slab: &mut Slab, checksum: Option<u32>) -> io::Result<()> {
        read_again(&*self.storage, offset, slab, checksum, &self.retries)
    }
}
