//! The scheduler: one thread that runs the generations of all requests with a session, as one batch.

use crate::work::Work;
use dollop::internal::{Batch, BatchStats};
use dollop::{Engine, Error};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Interval at which `stop` checks whether the thread has ended.
const LOOK: Duration = Duration::from_millis(10);

/// Sends requests to the scheduler thread. The thread ends when the channel is closed and the batch is empty.
pub struct Scheduler {
    requests: Mutex<Option<Sender<Work>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    stats: Arc<Mutex<BatchStats>>,
}

impl Scheduler {
    /// Starts the thread. Decoding waits for another request's prefill for about `stall` at most.
    ///
    /// # Errors
    /// `Io` if the thread cannot be created.
    pub fn new(engine: &Engine, stall: Duration) -> Result<Scheduler, Error> {
        let (requests, receiver) = channel();
        let stats = Arc::<Mutex<BatchStats>>::default();
        let (batch, told) = (Batch::new(engine).with_stall(stall), stats.clone());
        let thread = std::thread::Builder::new().name("generations".into());
        let thread = thread.spawn(move || run(batch, &receiver, &told));
        let thread = thread.map_err(|source| Error::Io { path: "generations".into(), source })?;
        Ok(Scheduler { requests: Mutex::new(Some(requests)), thread: Mutex::new(Some(thread)), stats })
    }

    /// Queues a request for the thread. After [`Scheduler::stop`], the request is dropped.
    pub fn begin(&self, work: Work) {
        if let Some(requests) = &*lock(&self.requests) {
            let _ = requests.send(work);
        }
    }

    /// Statistics of the batch so far.
    pub fn stats(&self) -> BatchStats {
        *lock(&self.stats)
    }

    /// Closes the channel and waits until running generations end, at most for `most`.
    pub fn stop(&self, most: Duration) {
        *lock(&self.requests) = None;
        let (start, thread) = (Instant::now(), lock(&self.thread).take());
        while thread.as_ref().is_some_and(|thread| !thread.is_finished()) && start.elapsed() < most {
            std::thread::sleep(LOOK);
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(mut batch: Batch<Work>, requests: &Receiver<Work>, stats: &Mutex<BatchStats>) {
    loop {
        if batch.is_empty() {
            let Ok(work) = requests.recv() else { return };
            work.begin(&mut batch);
        }
        requests.try_iter().for_each(|work| work.begin(&mut batch));
        let step = || batch.step(&mut |work: &mut Work, event| work.hear(event));
        let ended = catch_unwind(AssertUnwindSafe(step));
        *lock(stats) = batch.stats();
        match ended {
            Ok(ended) => {
                for one in ended {
                    if let Some(more) = one.tag.ended(one.session, one.outcome) {
                        more.begin(&mut batch);
                    }
                }
            }
            // A panic is a bug in this program. All running requests fail; the thread continues with later
            // ones.
            Err(_) => batch.clear().into_iter().for_each(|one| one.tag.broken(one.session)),
        }
    }
}
