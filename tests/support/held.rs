//! A file whose reads a test can block until an event, or make fail. Delays would not work: whether a read of
//! some milliseconds is too late depends on the machine.

use dollop::internal::store::{Access, FileStorage, Storage};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Turns a hang into a failure. A busy machine stays far below this.
const PATIENCE: Duration = Duration::from_secs(1800);

/// A file with a latch.
pub struct HeldFile {
    file: FileStorage,
    held: Mutex<bool>,
    let_go: Condvar,
    fails: AtomicBool,
    /// Reads that were blocked by the latch.
    stopped: AtomicU64,
}

impl HeldFile {
    /// The file at `path`, with an open latch.
    pub fn open(path: &Path) -> Arc<HeldFile> {
        let file = FileStorage::open(path, true).expect("the file is there");
        let (held, let_go, fails, stopped) = Default::default();
        Arc::new(HeldFile { file, held, let_go, fails, stopped })
    }

    /// Closes the latch, or opens it.
    pub fn hold(&self, held: bool) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
        self.let_go.notify_all();
    }

    /// Whether every read fails.
    pub fn fail(&self, fails: bool) {
        self.fails.store(fails, Ordering::Relaxed);
    }

    /// Reads that were blocked so far.
    pub fn stopped(&self) -> u64 {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Runs `token` with a closed latch until `waits`, the count of waits for reads, increases. Then calls
    /// `meanwhile`, opens the latch and lets `token` continue. If `token` waits for nothing, `meanwhile` is
    /// not called and the latch stays closed, so that reads of a later token are blocked as well.
    ///
    /// # Panics
    /// If nothing happens for half an hour.
    pub fn late<T: Send>(
        &self,
        waits: &dyn Fn() -> u64,
        token: impl FnOnce() -> T + Send,
        meanwhile: impl FnOnce(),
    ) -> T {
        let (before, start) = (waits(), Instant::now());
        self.hold(true);
        thread::scope(|scope| {
            let token = scope.spawn(token);
            while !token.is_finished() && waits() == before && start.elapsed() < PATIENCE {
                thread::sleep(Duration::from_millis(1));
            }
            let waited = waits() > before;
            if waited {
                meanwhile();
            }
            if waited || !token.is_finished() {
                self.hold(false);
            }
            token.join().expect("the token is computed")
        })
    }
}

impl Storage for HeldFile {
    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<usize> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(io::Error::other("EIO"));
        }
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        self.stopped.fetch_add(u64::from(*held), Ordering::Relaxed);
        let wait = self.let_go.wait_timeout_while(held, PATIENCE, |held| *held);
        drop(wait.unwrap_or_else(PoisonError::into_inner));
        self.file.read_at(offset, to)
    }

    fn access(&self) -> Access {
        self.file.access()
    }
}
