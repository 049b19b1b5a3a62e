//! Threads that read. A lane owns the part of a slab that it fills.

use super::parts::{Part, Reader, cut};
use super::{Landed, Request, lock};
use crate::error::{Error, Result};
use crate::store::Slab;
use crate::telemetry::{Trace, Track};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Instant;

#[derive(Default)]
struct Queue {
    wanted: VecDeque<(Part, Slab)>,
    ahead: VecDeque<(Part, Slab)>,
    stop: bool,
}

struct Shared {
    reader: Arc<Reader>,
    queue: Mutex<Queue>,
    wake: Condvar,
    mailbox: Mutex<VecDeque<Landed>>,
    landed: Condvar,
    trace: Option<Arc<Trace>>,
}

/// The threads.
pub(super) struct Threads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Threads {
    pub(super) fn new(count: usize, reader: Arc<Reader>, trace: Option<Arc<Trace>>) -> Result<Threads> {
        let shared = Arc::new(Shared {
            reader,
            queue: Mutex::default(),
            wake: Condvar::new(),
            mailbox: Mutex::default(),
            landed: Condvar::new(),
            trace,
        });
        let mut threads = Threads { shared, threads: Vec::new() };
        let (starting, started) = mpsc::channel::<()>();
        for i in 0..count {
            let (shared, starting) = (threads.shared.clone(), starting.clone());
            let thread = thread::Builder::new().name(format!("dollop-io-{i}")).stack_size(256 << 10);
            let failed = |e| Error::Invalid(format!("no threads for {count} I/O lanes: {e}"));
            let run = move || {
                drop(starting);
                work(&shared, i);
            };
            threads.threads.push(thread.spawn(run).map_err(failed)?);
        }
        // A thread allocates memory when it starts. Wait for that, also on a busy machine, so that later
        // reads allocate nothing.
        drop(starting);
        let _ = started.recv();
        Ok(threads)
    }

    pub(super) fn submit(&self, requests: impl Iterator<Item = Request>, ahead: bool) {
        let mut queue = lock(&self.shared.queue);
        let to = if ahead { &mut queue.ahead } else { &mut queue.wanted };
        to.extend(requests.flat_map(|request| cut(request, self.threads.len() == 1)));
        drop(queue);
        self.shared.wake.notify_all();
    }

    pub(super) fn poll(&self) -> Option<Landed> {
        lock(&self.shared.mailbox).pop_front()
    }

    pub(super) fn wait(&self) -> Landed {
        let mut mailbox = lock(&self.shared.mailbox);
        loop {
            if let Some(landed) = mailbox.pop_front() {
                return landed;
            }
            mailbox = self.shared.landed.wait(mailbox).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        lock(&self.shared.queue).stop = true;
        self.shared.wake.notify_all();
        self.threads.drain(..).for_each(|t| drop(t.join()));
    }
}

fn work(shared: &Shared, lane: usize) {
    let reader = &shared.reader;
    loop {
        let mut queue = lock(&shared.queue);
        let (part, mut slab) = loop {
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
        let name = shared.trace.as_ref().map(|_| part.name());
        let read = reader.fill(&part, &mut slab);
        let landed = reader.arrived(part, slab, read);
        reader.busy_ns.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        if let (Some(trace), Some(name)) = (&shared.trace, name) {
            trace.span(Track::Lane(lane), start, || name);
        }
        if let Some(landed) = landed {
            lock(&shared.mailbox).push_back(landed);
            shared.landed.notify_one();
        }
    }
}
