//! Limits how many requests run at a time. Further requests wait in a bounded first-in, first-out queue.

use crate::refusal::Refusal;
use dollop::CancelToken;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Upper limit of `Retry-After`, in seconds.
const MOST_SECONDS: u64 = 60;

/// The queue of requests that wait for a session.
pub struct Queue {
    permits: Arc<Semaphore>,
    sessions: usize,
    limit: usize,
    waiting: AtomicUsize,
    stopping: AtomicBool,
    running: Mutex<BTreeMap<u64, CancelToken>>,
    next: AtomicU64,
    /// Moving average of the time per request, in milliseconds.
    mean_ms: AtomicU64,
}

impl Queue {
    /// A queue with at most `limit` waiting requests for `sessions` sessions.
    pub fn new(sessions: usize, limit: usize) -> Queue {
        Queue {
            permits: Arc::new(Semaphore::new(sessions)),
            sessions,
            limit,
            waiting: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            running: Mutex::default(),
            next: AtomicU64::new(0),
            mean_ms: AtomicU64::new(1000),
        }
    }

    /// Waits until the request may use a session.
    ///
    /// # Errors
    /// 429 if the queue is full, 503 if the server is stopping.
    pub async fn enter(self: &Arc<Self>) -> Result<Turn, Refusal> {
        if self.is_stopping() {
            return Err(Refusal::stopping());
        }
        let permit = match self.permits.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let _waits = Waits::new(self)?;
                self.permits.clone().acquire_owned().await.map_err(|_| Refusal::stopping())?
            }
        };
        let (id, cancel) = (self.next.fetch_add(1, Ordering::Relaxed), CancelToken::new());
        self.running().insert(id, cancel.clone());
        Ok(Turn { queue: self.clone(), id, cancel, start: Instant::now(), _permit: permit })
    }

    /// Refuses new and waiting requests from now on.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.permits.close();
    }

    /// Whether the server is stopping.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Cancels all running requests.
    pub fn cancel(&self) {
        self.running().values().for_each(CancelToken::cancel);
    }

    /// Numbers of running and waiting requests.
    pub fn load(&self) -> (usize, usize) {
        (self.running().len(), self.waiting.load(Ordering::Relaxed))
    }

    fn running(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, CancelToken>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Estimated wait of a refused client in seconds: the time to serve the running requests and a full
    /// queue.
    fn seconds(&self) -> u64 {
        let ms = self.mean_ms.load(Ordering::Relaxed) * (1 + self.limit / self.sessions) as u64;
        ms.div_ceil(1000).clamp(1, MOST_SECONDS)
    }
}

/// A place in the queue, freed on drop.
struct Waits<'a>(&'a Queue);

impl<'a> Waits<'a> {
    fn new(queue: &'a Queue) -> Result<Waits<'a>, Refusal> {
        if queue.waiting.fetch_add(1, Ordering::SeqCst) >= queue.limit {
            queue.waiting.fetch_sub(1, Ordering::SeqCst);
            return Err(Refusal::busy(queue.seconds()));
        }
        Ok(Waits(queue))
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Permission to use a session, until this is dropped.
pub struct Turn {
    queue: Arc<Queue>,
    id: u64,
    /// Cancels the generation.
    pub cancel: CancelToken,
    start: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.queue.running().remove(&self.id);
        let (ms, mean) =
            (self.start.elapsed().as_millis() as u64, self.queue.mean_ms.load(Ordering::Relaxed));
        self.queue.mean_ms.store((mean * 7 + ms) / 8, Ordering::Relaxed);
    }
}
