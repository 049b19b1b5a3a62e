//! Reads through io_uring: the caller submits them and polls for completions.
//!
//! A lane is a chain of linked reads: the kernel starts each read when the one before it is done. So no
//! thread must wake to start the next read, which would take time while both cores are busy. Experts arrive
//! one after another; with all reads submitted at once, a disk would finish all of them at the end. The
//! caller itself repeats a read that failed or was short ([`Reader`]).

use super::parts::{Part, Reader, cut};
use super::{Landed, Request};
use crate::store::{Ring, Slab};
use crate::telemetry::{Trace, Track};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// The most reads in flight: more than the reads of one step of a prompt.
pub(super) const KNOWN: usize = 256;

/// Lanes for prefetches, which share the disk with the next wanted expert.
const AHEAD: usize = 2;

/// Reads in flight, and reads that wait for a slot.
pub(super) struct Flights {
    ring: Ring,
    reader: Arc<Reader>,
    /// When each lane last finished a read.
    lanes: Vec<Instant>,
    wanted: VecDeque<(Part, Slab)>,
    ahead: VecDeque<(Part, Slab)>,
    /// Indexed by ring slot: the read in it.
    flying: Vec<Option<Flight>>,
    mailbox: VecDeque<Landed>,
    trace: Option<Arc<Trace>>,
}

struct Flight {
    part: Part,
    lane: usize,
    since: Instant,
}

impl Flights {
    pub(super) fn new(ring: Ring, lanes: usize, reader: Arc<Reader>, trace: Option<Arc<Trace>>) -> Flights {
        let flying = (0..ring.depth()).map(|_| None).collect();
        let (wanted, ahead, mailbox) = Default::default();
        let lanes = vec![Instant::now(); lanes];
        Flights { ring, reader, lanes, wanted, ahead, flying, mailbox, trace }
    }

    pub(super) fn submit(&mut self, requests: impl Iterator<Item = Request>, ahead: bool) {
        let to = if ahead { &mut self.ahead } else { &mut self.wanted };
        to.extend(requests.flat_map(|request| cut(request, self.lanes.len() == 1)));
        self.begin();
    }

    pub(super) fn poll(&mut self) -> Option<Landed> {
        self.land();
        self.mailbox.pop_front()
    }

    pub(super) fn wait(&mut self) -> Landed {
        loop {
            if let Some(landed) = self.poll() {
                return landed;
            }
            if self.ring.wait().is_err() {
                // The reads in flight will still complete.
                std::thread::yield_now();
            }
        }
    }

    /// Submits as many reads as the ring has slots for.
    fn begin(&mut self) {
        let before = self.ring.flying();
        let mut wanted = std::mem::take(&mut self.wanted);
        self.chain(&mut wanted, self.lanes.len());
        self.wanted = wanted;
        if self.wanted.is_empty() {
            let mut ahead = std::mem::take(&mut self.ahead);
            self.chain(&mut ahead, AHEAD.min(self.lanes.len()));
            self.ahead = ahead;
        }
        if self.ring.flying() > before {
            // Entries that the kernel rejected are submitted again at the next wait.
            let _ = self.ring.submit();
        }
    }

    /// Prepares as many of `parts` as there are free slots, in `lanes` chains. The first part of each chain is read
    /// first.
    fn chain(&mut self, parts: &mut VecDeque<(Part, Slab)>, lanes: usize) {
        let n = parts.len().min(self.ring.depth() - self.ring.flying());
        let since = Instant::now();
        let mut now: Vec<Option<(Part, Slab)>> = parts.drain(..n).map(Some).collect();
        for lane in 0..lanes.min(n) {
            for i in (lane..n).step_by(lanes) {
                let (part, slab) = now[i].take().expect("each is in one chain");
                let place = self.ring.read(part.offset, slab, i + lanes < n);
                let place = place.ok().expect("no more than there are places for");
                self.flying[place] = Some(Flight { part, lane, since });
            }
        }
    }

    /// Takes the completed reads and submits waiting ones.
    fn land(&mut self) {
        while let Some((place, mut slab, read)) = self.ring.done() {
            let Some(Flight { part, lane, since }) = self.flying[place].take() else { continue };
            // A lane's chains may overlap in time; no time is counted twice.
            let since = since.max(self.lanes[lane]);
            self.lanes[lane] = Instant::now();
            let whole = matches!(read, Ok(n) if n == slab.len());
            let read = match whole {
                true => Ok(()),
                false => {
                    log::warn!("{}: not read, or not whole: {read:?}; read again", part.name());
                    self.reader.retry();
                    self.reader.fill(&part, &mut slab)
                }
            };
            self.reader.busy_ns.fetch_add(since.elapsed().as_nanos() as u64, Ordering::Relaxed);
            if let Some(trace) = &self.trace {
                trace.span(Track::Lane(lane), since, || part.name());
            }
            self.mailbox.extend(self.reader.arrived(part, slab, read));
        }
        self.begin();
    }
}
