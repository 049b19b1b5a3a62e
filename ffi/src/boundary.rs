//! The boundary between Rust and C: turns failures into a status and a text, and panics into a status.

use crate::status::{self, dollop_status};
use runtime::Error;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Why a call failed.
pub(crate) struct Failure {
    pub(crate) status: dollop_status,
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn new(status: dollop_status, text: impl Into<String>) -> Failure {
        Failure { status, text: text.into() }
    }

    pub(crate) fn invalid(text: impl Into<String>) -> Failure {
        Failure::new(dollop_status::DOLLOP_INVALID, text)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::new(status::of(&error), error.to_string())
    }
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Runs the body of a C function.
pub(crate) fn run(body: impl FnOnce() -> Result<()>) -> dollop_status {
    match guarded(body) {
        Ok(()) => dollop_status::DOLLOP_OK,
        Err(failure) => remember(failure),
    }
}

/// Runs the body of a function that another language calls. The only place where a panic of the library is caught.
pub(crate) fn guarded<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    // A body changes state only behind a handle's lock, which a panic poisons (`handles.rs`), or as its last step.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(result) => result,
        Err(payload) => Err(Failure::new(dollop_status::DOLLOP_PANIC, panicked(&*payload))),
    }
}

fn panicked(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    format!("a bug in Dollop: {}", text.unwrap_or("a panic without a message"))
}

fn remember(failure: Failure) -> dollop_status {
    // If the thread is ending, its storage for the text may be gone.
    let _ = LAST.try_with(|last| *last.borrow_mut() = c_string(&failure.text));
    failure.status
}

/// A text for C, for errors and names only. A NUL would end it in C, so each becomes a space.
pub(crate) fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}

/// The reason for the last failed call on this thread, as one line to display; "" if none failed. Successful calls
/// do not change it. The text is valid until the next call on this thread fails.
#[unsafe(no_mangle)]
pub extern "C" fn dollop_last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}
