//! The library's log messages, passed to a callback. One sink for the process, like the `log` facade.

use crate::boundary::{Failure, Result, c_string, run};
use crate::status::dollop_status::{self, *};
use ::log::{Level, LevelFilter, Log, Metadata, Record, set_logger, set_max_level};
use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{OnceLock, PoisonError, RwLock};

/// `max_level` of `dollop_set_log`: nothing.
pub const DOLLOP_LOG_OFF: u32 = 0;
/// What failed.
pub const DOLLOP_LOG_ERROR: u32 = 1;
/// What went wrong and was put right: a GPU that the CPU replaces, a read that is tried again, a conversion that is made again.
pub const DOLLOP_LOG_WARN: u32 = 2;
/// Models that were opened, conversions.
pub const DOLLOP_LOG_INFO: u32 = 3;
/// What was chosen: the memory plan, instructions, how storage is read; prompts, resizes, sessions saved and restored.
pub const DOLLOP_LOG_DEBUG: u32 = 4;
/// Every plane of an expert that is read or gives way.
pub const DOLLOP_LOG_TRACE: u32 = 5;

/// Called for each message: its level (a `DOLLOP_LOG_`), the part of the library that it is from, such as "dollop::session", and a line
/// for people. The texts are valid during the callback. Runs on whichever thread logs, on several at a time. Must not throw or
/// `longjmp`. What the library logs while it runs, on its thread, is dropped.
pub type dollop_log_callback = Option<
    unsafe extern "C-unwind" fn(
        level: u32,
        target: *const c_char,
        message: *const c_char,
        user_data: *mut c_void,
    ),
>;

/// A log sink: gets level, target and line, on any thread, on several at a time.
pub(crate) type Sink = Box<dyn Fn(Level, &str, &str) + Send + Sync>;

/// A callback of C.
#[derive(Clone, Copy)]
struct Callback {
    function: unsafe extern "C-unwind" fn(u32, *const c_char, *const c_char, *mut c_void),
    user_data: *mut c_void,
}

// SAFETY: the contract of `dollop_set_log`: the callback may be called from any thread with this pointer, which nothing here
// reads.
unsafe impl Send for Callback {}
// SAFETY: as above; on several threads at a time.
unsafe impl Sync for Callback {}

impl Callback {
    fn hear(&self, level: Level, target: &str, message: &str) {
        let (target, message) = (c_string(target), c_string(message));
        // SAFETY: by the contract of `dollop_set_log` a function of this type, which gets texts that live until it returns.
        unsafe { (self.function)(level as u32, target.as_ptr(), message.as_ptr(), self.user_data) }
    }
}

static SINK: RwLock<Option<Sink>> = RwLock::new(None);

thread_local! {
    /// Whether this thread is inside the callback.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

fn inside() -> bool {
    // A thread that is ending has no storage left for the flag, and calls nothing.
    INSIDE.try_with(Cell::get).unwrap_or(true)
}

struct Logger;

impl Log for Logger {
    /// All messages of Dollop, and only warnings and errors of other libraries.
    fn enabled(&self, of: &Metadata) -> bool {
        of.level() <= Level::Warn || of.target() == "dollop" || of.target().starts_with("dollop::")
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) || inside() {
            return;
        }
        // Held while the callback runs: a call that replaces the sink waits for it.
        let sink = SINK.read().unwrap_or_else(PoisonError::into_inner);
        let Some(sink) = &*sink else { return };
        let message = record.args().to_string();
        INSIDE.set(true);
        // A panic of a callback in Rust ends here: a failing log must not stop the operation.
        let _ = catch_unwind(AssertUnwindSafe(|| sink(record.level(), record.target(), &message)));
        INSIDE.set(false);
    }

    fn flush(&self) {}
}

/// Has `callback` hear what the library logs, up to `max_level` (a `DOLLOP_LOG_`), in place of the one before; NULL ends that.
/// When this returns, the callback before is not running and is not called again, so its `user_data` may be freed. Hold no
/// lock meanwhile that the callback takes. Any thread, but `DOLLOP_BUSY` from the callback itself. `DOLLOP_UNSUPPORTED` in a
/// program that has given the Rust crate `log` another logger.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_set_log(
    callback: dollop_log_callback,
    user_data: *mut c_void,
    max_level: u32,
) -> dollop_status {
    run(|| {
        let sink = callback.map(|function| {
            let callback = Callback { function, user_data };
            Box::new(move |level, target: &str, message: &str| callback.hear(level, target, message)) as Sink
        });
        set(sink, max_level)
    })
}

/// `dollop_set_log` with a sink of any kind.
pub(crate) fn set(sink: Option<Sink>, max_level: u32) -> Result<()> {
    let level = match max_level {
        DOLLOP_LOG_OFF => LevelFilter::Off,
        DOLLOP_LOG_ERROR => LevelFilter::Error,
        DOLLOP_LOG_WARN => LevelFilter::Warn,
        DOLLOP_LOG_INFO => LevelFilter::Info,
        DOLLOP_LOG_DEBUG => LevelFilter::Debug,
        DOLLOP_LOG_TRACE => LevelFilter::Trace,
        other => return Err(Failure::invalid(format!("max_level {other}: it must be a DOLLOP_LOG_"))),
    };
    if inside() {
        return Err(Failure::new(DOLLOP_BUSY, "the log cannot be changed from its own callback"));
    }
    static OURS: OnceLock<bool> = OnceLock::new();
    if !OURS.get_or_init(|| set_logger(&Logger).is_ok()) {
        return Err(Failure::new(DOLLOP_UNSUPPORTED, "this program has another logger for the crate `log`"));
    }
    let mut current = SINK.write().unwrap_or_else(PoisonError::into_inner);
    set_max_level(if sink.is_some() { level } else { LevelFilter::Off });
    let before = std::mem::replace(&mut *current, sink);
    drop(current);
    // Dropped after the lock is released: dropping a sink of Kotlin calls the virtual machine.
    drop(before);
    Ok(())
}
