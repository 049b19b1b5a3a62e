//! A small thread pool for operations of tens of microseconds: workers spin briefly for the next job, then park.
//!
//! Each thread has a range of the tasks and takes them in order, so it reads one contiguous run of memory, which
//! prefetches well. When its range is done, a thread takes tasks from other ranges, so a slow task delays no
//! thread. Each output element belongs to one task, so results do not depend on which thread computes it.
#![allow(unsafe_code)]

use super::cores;
use crate::telemetry::{Trace, Track};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Instant;

/// Polls of the job counter before a worker parks. This takes about as long as the gap between two operations
/// of a token, and is short enough for an idle phone.
const SPINS: usize = 4000;

/// The bit of [`Shared::door`] that is set while workers may join the job.
const OPEN: usize = 1 << (usize::BITS - 1);

/// Arguments: the thread's number and the task's number.
type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// The current job. `task` is dereferenced only between its publication and the end of [`Pool::run`].
#[derive(Clone, Copy)]
struct Job {
    task: *const Task<'static>,
    tasks: usize,
}

// SAFETY: the pointer is to a `Sync` closure, and `Pool::run` keeps it alive until no worker uses it any more.
unsafe impl Send for Job {}

/// A counter in its own cache line.
#[repr(align(64))]
#[derive(Default)]
struct Next(AtomicUsize);

struct Shared {
    job: Mutex<Option<Job>>,
    wake: Condvar,
    /// Number of jobs published so far. A worker that reads a new value has work.
    epoch: AtomicUsize,
    /// For each thread, the first unclaimed task of its range.
    next: Vec<Next>,
    /// The number of workers in the current job, and [`OPEN`] while more may join.
    door: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    cores: Option<Vec<usize>>,
    traced: Option<Traced>,
}

/// Receives the spans of each thread.
struct Traced {
    trace: Arc<Trace>,
    /// The current operation.
    operation: Mutex<&'static str>,
}

thread_local! {
    /// The pool whose cores this thread was last bound to, by its address.
    static BOUND: Cell<usize> = const { Cell::new(0) };
}

impl Shared {
    /// The first task of thread `i`'s range.
    fn start(&self, job: Job, i: usize) -> usize {
        job.tasks * i / self.next.len()
    }

    /// Binds the calling thread to the pool's cores, if the pool has a list and the thread is not bound yet.
    fn bind(&self) {
        if let Some(list) = &self.cores
            && BOUND.replace(std::ptr::from_ref(self).addr()) != std::ptr::from_ref(self).addr()
        {
            cores::bind(list);
        }
    }

    /// Calls `f`, which returns the number of tasks it ran, and records a span if there were any.
    fn record(&self, thread: usize, f: impl FnOnce() -> usize) {
        let Some(traced) = &self.traced else {
            f();
            return;
        };
        let start = Instant::now();
        if f() > 0 {
            let operation = *traced.operation.lock().unwrap_or_else(PoisonError::into_inner);
            traced.trace.span(Track::Compute(thread), start, || operation.to_owned());
        }
    }
}

/// Threads that run jobs together with the caller.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held during a job: jobs run one at a time.
    turn: Mutex<()>,
}

impl Pool {
    /// A pool of `threads` threads, the caller's included, on these cores. `trace` receives their spans.
    pub fn new(threads: usize, cores: Option<Vec<usize>>, trace: Option<Arc<Trace>>) -> Pool {
        if let Some(trace) = &trace {
            trace.threads(threads.max(1));
        }
        let shared = Arc::new(Shared {
            job: Mutex::new(None),
            wake: Condvar::new(),
            epoch: AtomicUsize::new(0),
            next: (0..threads.max(1)).map(|_| Next::default()).collect(),
            door: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            cores,
            traced: trace.map(|trace| Traced { trace, operation: Mutex::new("") }),
        });
        let (starting, started) = mpsc::channel::<()>();
        // If the system refuses a thread, the pool has one less. That is not a failure.
        let spawn = |i| {
            let (shared, starting) = (shared.clone(), starting.clone());
            let run = move || {
                drop(starting);
                work(&shared, i);
            };
            thread::Builder::new().name(format!("dollop-{i}")).spawn(run).ok()
        };
        let workers = (1..threads.max(1)).filter_map(spawn).collect();
        // A thread allocates memory when it starts; on a busy machine that may be in the middle of a token.
        // So wait until all have started.
        drop(starting);
        let _ = started.recv();
        Pool { shared, workers, turn: Mutex::new(()) }
    }

    /// Threads that share the work, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Names the operation of the following jobs, for traces.
    pub fn operation(&self, name: &'static str) {
        if let Some(traced) = &self.shared.traced {
            *traced.operation.lock().unwrap_or_else(PoisonError::into_inner) = name;
        }
    }

    /// Calls `task` for every number below `tasks`, on all threads, and returns when all calls have returned.
    ///
    /// # Panics
    /// If a task panicked.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.run_numbered(tasks, &|_, i| task(i));
    }

    /// [`Pool::run`], with one `T` for each thread; there must be [`Pool::numbers`] of them.
    ///
    /// The caller allocates for each `T` what the tasks need: a thread that joins late, as on a busy machine,
    /// must not allocate then.
    pub fn run_with<T: Send>(&self, tasks: usize, own: &[Mutex<T>], task: &(dyn Fn(usize, &mut T) + Sync)) {
        self.run_numbered(tasks, &|thread, i| {
            task(i, &mut own[thread].lock().unwrap_or_else(PoisonError::into_inner));
        });
    }

    /// The number of thread numbers, which begin at 0. Threads that the system refused count.
    pub fn numbers(&self) -> usize {
        self.shared.next.len()
    }

    fn run_numbered(&self, tasks: usize, task: &Task<'_>) {
        self.shared.bind();
        if tasks <= 1 || self.workers.is_empty() {
            return self.shared.record(0, || {
                (0..tasks).for_each(|i| task(0, i));
                tasks
            });
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let s = &*self.shared;
        // SAFETY: only the lifetime changes. `run` does not return, nor unwind, before `OPEN` is cleared and
        // no worker is in the job, and a worker uses the pointer only while it is in the job.
        let task: *const Task<'static> =
            unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(task) };
        let job = Job { task, tasks };
        (0..s.next.len()).for_each(|i| s.next[i].0.store(s.start(job, i), Ordering::Relaxed));
        {
            let mut published = s.job.lock().unwrap_or_else(PoisonError::into_inner);
            *published = Some(job);
            s.door.store(OPEN, Ordering::Release);
            s.epoch.fetch_add(1, Ordering::Release);
        }
        s.wake.notify_all();
        let mine = catch_unwind(AssertUnwindSafe(|| claim(s, job, 0)));
        // All tasks are taken. Do not wait for sleeping workers: waking one may take longer than the job.
        s.door.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0usize;
        while s.door.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins.is_multiple_of(64) { thread::yield_now() } else { std::hint::spin_loop() }
        }
        if let Err(panic) = mine {
            s.panicked.store(false, Ordering::Relaxed);
            resume_unwind(panic);
        }
        assert!(!s.panicked.swap(false, Ordering::Relaxed), "a worker thread panicked");
    }
}

/// Runs tasks of thread `me`'s range, then of the ranges after it.
fn claim(s: &Shared, job: Job, me: usize) {
    // SAFETY: see `Pool::run`: the closure outlives the job.
    let task = unsafe { &*job.task };
    let threads = s.next.len();
    s.record(me, || {
        let mut done = 0;
        for owner in (me..me + threads).map(|i| i % threads) {
            let end = s.start(job, owner + 1);
            loop {
                let i = s.next[owner].0.fetch_add(1, Ordering::Relaxed);
                if i >= end {
                    break;
                }
                task(me, i);
                done += 1;
            }
        }
        done
    });
}

fn work(s: &Shared, me: usize) {
    s.bind();
    let mut seen = 0;
    loop {
        let mut spins = 0;
        while s.epoch.load(Ordering::Acquire) == seen && !s.stop.load(Ordering::Relaxed) {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
                continue;
            }
            let job = s.job.lock().unwrap_or_else(PoisonError::into_inner);
            // The epoch changes under this lock, so no wake-up is missed between the check and the wait.
            let idle = |_: &mut Option<Job>| {
                s.epoch.load(Ordering::Acquire) == seen && !s.stop.load(Ordering::Relaxed)
            };
            drop(s.wake.wait_while(job, idle));
        }
        if s.stop.load(Ordering::Relaxed) {
            return;
        }
        // Jobs that this worker missed are done.
        seen = s.epoch.load(Ordering::Acquire);
        let open = |door: usize| (door & OPEN != 0).then_some(door + 1);
        if s.door.fetch_update(Ordering::AcqRel, Ordering::Relaxed, open).is_err() {
            continue;
        }
        // While a worker is in, `run` does not return, so no other job is published: this is the job that was joined.
        let job = *s.job.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(job) = job
            && catch_unwind(AssertUnwindSafe(|| claim(s, job, me))).is_err()
        {
            s.panicked.store(true, Ordering::Relaxed);
        }
        s.door.fetch_sub(1, Ordering::Release);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        {
            let _job = self.shared.job.lock().unwrap_or_else(PoisonError::into_inner);
            self.shared.stop.store(true, Ordering::Relaxed);
        }
        self.shared.wake.notify_all();
        self.workers.drain(..).for_each(|w| drop(w.join()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_and_the_pool_survives_a_panic() {
        let pool = Pool::new(3, None, None);
        for tasks in [0, 1, 2, 100, 1000] {
            let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(tasks, &|i| {
                counts[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
        }
        let bad = catch_unwind(AssertUnwindSafe(|| pool.run(50, &|i| assert_ne!(i, 7))));
        assert!(bad.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(10, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }

    #[test]
    fn nobody_waits_for_a_worker_that_does_not_wake_up() {
        let mut pool = Pool::new(2, None, None);
        // Replace the only worker by a thread that never joins a job.
        pool.shared.stop.store(true, Ordering::Relaxed);
        drop(pool.shared.job.lock());
        pool.shared.wake.notify_all();
        pool.workers.drain(..).for_each(|w| w.join().unwrap());
        pool.shared.stop.store(false, Ordering::Relaxed);
        pool.workers.push(thread::spawn(|| ()));
        let sum = AtomicUsize::new(0);
        pool.run(100, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 4950, "the caller does what is left");
    }
}
