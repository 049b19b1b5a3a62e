//! Passes the library's log messages to a callback. There is one sink per process, as in the `log` facade.

use crate::boundary::{Failure, Result, c_string, run};
use crate::status::dollop_status::{self, *};
use ::log::{Level, LevelFilter, Log, Metadata, Record, set_logger, set_max_level};
use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{OnceLock, PoisonError, RwLock};

/// `max_level` of `dollop_set_log`: no messages.
pub const DOLLOP_LOG_OFF: u32 = 0;
/// Errors.
pub const DOLLOP_LOG_ERROR: u32 = 1;
/// Problems with a recovery: a GPU that failed and was replaced by the CPU, a repeated read, a repeated conversion.
pub const DOLLOP_LOG_WARN: u32 = 2;
/// Opened models, conversions.
pub const DOLLOP_LOG_INFO: u32 = 3;
/// Decisions (memory plan, instruction set, how files are read), prompts, resizes, saved and loaded sessions.
pub const DOLLOP_LOG_DEBUG: u32 = 4;
/// Every expert plane that is read or evicted.
pub const DOLLOP_LOG_TRACE: u32 = 5;

/// Receives one message: its level (a `DOLLOP_LOG_` constant), the module it comes from, such as "dollop::session", and
/// one line to display. The texts are valid during the callback. It runs on the logging thread, on several at a time. It
/// must not throw or `longjmp`. Messages that the library logs on this thread during the callback are dropped.
pub type dollop_log_callback = Option<
    unsafe extern "C-unwind" fn(
        level: u32,
        target: *const c_char,
        message: *const c_char,
        user_data: *mut c_void,
    ),
>;

/// A log sink. Takes level, target and message, on any thread, on several at a time.
pub(crate) type Sink = Box<dyn Fn(Level, &str, &str) + Send + Sync>;

/// A C callback.
#[derive(Clone, Copy)]
struct Callback {
    function: unsafe extern "C-unwind" fn(u32, *const c_char, *const c_char, *mut c_void),
    user_data: *mut c_void,
}

// SAFETY: by the contract of `dollop_set_log`, the callback may be called from any thread with this pointer.
// Nothing here dereferences it.
unsafe impl Send for Callback {}
// SAFETY: as above, on several threads at a time.
unsafe impl Sync for Callback {}

impl Callback {
    fn call(&self, level: Level, target: &str, message: &str) {
        let (target, message) = (c_string(target), c_string(message));
        // SAFETY: by the contract of `dollop_set_log` a function of this type. The texts are valid until it returns.
        unsafe { (self.function)(level as u32, target.as_ptr(), message.as_ptr(), self.user_data) }
    }
}

static SINK: RwLock<Option<Sink>> = RwLock::new(None);

thread_local! {
    /// Whether this thread is inside the callback.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

fn inside() -> bool {
    // If the thread is ending, its storage for the flag is gone. It then calls nothing.
    INSIDE.try_with(Cell::get).unwrap_or(true)
}

struct Logger;

impl Log for Logger {
    /// All messages of Dollop; only warnings and errors of other libraries.
    fn enabled(&self, of: &Metadata) -> bool {
        of.level() <= Level::Warn || of.target() == "dollop" || of.target().starts_with("dollop::")
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) || inside() {
            return;
        }
        // Held while the callback runs, so that a call that replaces the sink waits for it.
        let sink = SINK.read().unwrap_or_else(PoisonError::into_inner);
        let Some(sink) = &*sink else { return };
        let message = record.args().to_string();
        INSIDE.set(true);
        // A panic of a callback in Rust ends here: a failure to log must not stop the operation.
        let _ = catch_unwind(AssertUnwindSafe(|| sink(record.level(), record.target(), &message)));
        INSIDE.set(false);
    }

    fn flush(&self) {}
}

/// Sets the callback for log messages up to `max_level` (a `DOLLOP_LOG_` constant). It replaces the previous one;
/// NULL removes it. When this returns, the previous callback is not running and will not be called again, so its
/// `user_data` may be freed. The caller must hold no lock that the callback takes. Any thread, but `DOLLOP_BUSY`
/// from the callback itself. `DOLLOP_UNSUPPORTED` if the program has set another logger for the Rust crate `log`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_set_log(
    callback: dollop_log_callback,
    user_data: *mut c_void,
    max_level: u32,
) -> dollop_status {
    run(|| {
        let sink = callback.map(|function| {
            let callback = Callback { function, user_data };
            Box::new(move |level, target: &str, message: &str| callback.call(level, target, message)) as Sink
        });
        set(sink, max_level)
    })
}

/// `dollop_set_log` for any kind of sink.
pub(crate) fn set(sink: Option<Sink>, max_level: u32) -> Result<()> {
    let level = match max_level {
        DOLLOP_LOG_OFF => LevelFilter::Off,
        DOLLOP_LOG_ERROR => LevelFilter::Error,
        DOLLOP_LOG_WARN => LevelFilter::Warn,
        DOLLOP_LOG_INFO => LevelFilter::Info,
        DOLLOP_LOG_DEBUG => LevelFilter::Debug,
        DOLLOP_LOG_TRACE => LevelFilter::Trace,
        other => return Err(Failure::invalid(format!("max_level {other}: not a DOLLOP_LOG_ constant"))),
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
    // Dropped after the lock is released, because dropping a Kotlin sink calls the virtual machine.
    drop(before);
    Ok(())
}
