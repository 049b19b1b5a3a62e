//! Requests cut into parts that are read on their own: whoever reads the last one joins them and compares the checksum, which
//! is made part by part, while others are still coming.

use super::{Landed, Request, lock};
use crate::store::{PART_BYTES, Slab, Storage, read_again};
use crc32fast::Hasher;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A request whose parts are under way.
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

/// Which part of which request.
pub(super) struct Part {
    whole: Arc<Whole>,
    index: usize,
    /// Where it is in the file.
    pub(super) offset: u64,
}

/// Cuts a request into parts with their slabs, or leaves it `whole`.
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
    /// What it is read for, for traces.
    pub(super) fn name(&self) -> String {
        let Whole { layer, expert, plane, .. } = *self.whole;
        format!("read layer {layer} expert {expert} plane {plane}")
    }
}

/// Reads, and reads again what went wrong.
pub(super) struct Reader {
    storage: Arc<dyn Storage>,
    /// Nanoseconds that reads have taken.
    pub(super) busy_ns: AtomicU64,
    /// Reads that had to be repeated.
    pub(super) retries: AtomicU64,
}

impl Reader {
    pub(super) fn new(storage: Arc<dyn Storage>) -> Reader {
        Reader { storage, busy_ns: AtomicU64::new(0), retries: AtomicU64::new(0) }
    }

    /// A part that was not read, or not whole, is read now.
    pub(super) fn fill(&self, part: &Part, slab: &mut Slab) -> io::Result<()> {
        self.read(part.offset, slab, None)
    }

    /// Counts a read that has to be repeated.
    pub(super) fn retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Puts a part beside the others; the whole, where it was the last.
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
                // Once more, in one piece.
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
