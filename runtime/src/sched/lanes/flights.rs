//! Reads that the system works off by itself: whoever asks for them hands them over and looks, when it likes, which are done.
//!
//! A lane is a chain of reads, each of which the system begins when the one before is done. So no thread has to be woken for
//! a read to begin or to go on, which two busy cores would not do at once, and experts come one after another all the same,
//! where a disk that is given everything at a time would bring everything at the end. What was not read, or not whole, is
//! read by the caller ([`Reader`]).

use super::parts::{Part, Reader, cut};
use super::{Landed, Request};
use crate::store::{Ring, Slab};
use crate::telemetry::{Trace, Track};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Reads that the system may know of: more than what a step of a prompt reads while it is computed.
pub(super) const KNOWN: usize = 256;

/// Lanes for reads ahead of need: whoever is wanted next shares the disk with them.
const AHEAD: usize = 2;

/// Reads under way, and those that wait for their turn.
pub(super) struct Flights {
    ring: Ring,
    reader: Arc<Reader>,
    /// When each lane was done with a read last.
    lanes: Vec<Instant>,
    wanted: VecDeque<(Part, Slab)>,
    ahead: VecDeque<(Part, Slab)>,
    /// By place in the ring, what is read there.
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
                // What is under way is done all the same, some time.
                std::thread::yield_now();
            }
        }
    }

    /// Hands over all reads that the system may know of.
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
            // What the system does not take is offered again when something is waited for.
            let _ = self.ring.submit();
        }
    }

    /// Prepares as many of `parts` as there are places for, in `lanes` chains: the first of each is read first.
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

    /// Takes what is done and goes on with the rest.
    fn land(&mut self) {
        while let Some((place, mut slab, read)) = self.ring.done() {
            let Some(Flight { part, lane, since }) = self.flying[place].take() else { continue };
            // The reads of a lane's several chains lie side by side.
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
