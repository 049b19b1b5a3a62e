//! Statuses: a fixed number for each kind of failure, and its name.

use runtime::Error;
use std::ffi::{CStr, c_char};

/// The result of a call. Numbers are never reused. A program must treat unknown ones as failures.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum dollop_status {
    /// Success.
    DOLLOP_OK = 0,
    /// The operating system reported an error: no such file, no permission, no space, a failed read.
    DOLLOP_IO = 1,
    /// A file is truncated, corrupted or hostile: it contradicts itself or its format.
    DOLLOP_MALFORMED = 2,
    /// A valid file or request that this version cannot run.
    DOLLOP_UNSUPPORTED = 3,
    /// An option or argument is out of range. The error text names the allowed values.
    DOLLOP_INVALID = 4,
    /// The model's chat template does not parse, or rejects the messages.
    DOLLOP_TEMPLATE = 5,
    /// The prompt or the conversation does not fit the context.
    DOLLOP_CONTEXT_FULL = 6,
    /// The memory budget is too small for this model. The error text names the smallest budget that works.
    DOLLOP_BUDGET = 7,
    /// The model computed values that are not finite.
    DOLLOP_NOT_FINITE = 8,
    /// A callback or another thread cancelled a call that has no partial result.
    DOLLOP_CANCELLED = 9,
    /// The GPU is missing, was lost, is out of memory, or rejected a command.
    DOLLOP_DEVICE = 10,
    /// An error without a number of its own.
    DOLLOP_OTHER = 99,
    /// A pointer argument that must not be NULL is NULL.
    DOLLOP_NULL = 100,
    /// The library has no version of the struct with this `struct_size`: it was not initialised, or the header is newer.
    DOLLOP_STRUCT_SIZE = 101,
    /// A text is not UTF-8.
    DOLLOP_UTF8 = 102,
    /// A handle is closed or invalid.
    DOLLOP_CLOSED = 103,
    /// A handle has another type.
    DOLLOP_WRONG_HANDLE = 104,
    /// Another call on this session or chat has not returned. Only one call may run at a time, and none from its own callbacks.
    DOLLOP_BUSY = 105,
    /// The buffer has too few elements. Nothing was written.
    DOLLOP_TOO_SMALL = 106,
    /// A callback written in Rust panicked. The session is in the same state as if the callback had stopped the call.
    DOLLOP_CALLBACK_PANIC = 107,
    /// The library panicked; this is a bug. The session or chat of this call is unusable: free it.
    DOLLOP_PANIC = 108,
}

use dollop_status::*;

/// The status for an error of the library.
pub(crate) fn of(error: &Error) -> dollop_status {
    match error {
        Error::Io { .. } => DOLLOP_IO,
        Error::Malformed { .. } => DOLLOP_MALFORMED,
        Error::Unsupported { .. } => DOLLOP_UNSUPPORTED,
        Error::Invalid(_) => DOLLOP_INVALID,
        Error::Template(_) => DOLLOP_TEMPLATE,
        Error::ContextFull { .. } => DOLLOP_CONTEXT_FULL,
        Error::Budget { .. } => DOLLOP_BUDGET,
        Error::NotFinite { .. } => DOLLOP_NOT_FINITE,
        Error::Cancelled => DOLLOP_CANCELLED,
        Error::Device(_) => DOLLOP_DEVICE,
        _ => DOLLOP_OTHER,
    }
}

/// All statuses, in the order of their numbers.
pub(crate) const ALL: [(dollop_status, &CStr); 21] = [
    (DOLLOP_OK, c"DOLLOP_OK"),
    (DOLLOP_IO, c"DOLLOP_IO"),
    (DOLLOP_MALFORMED, c"DOLLOP_MALFORMED"),
    (DOLLOP_UNSUPPORTED, c"DOLLOP_UNSUPPORTED"),
    (DOLLOP_INVALID, c"DOLLOP_INVALID"),
    (DOLLOP_TEMPLATE, c"DOLLOP_TEMPLATE"),
    (DOLLOP_CONTEXT_FULL, c"DOLLOP_CONTEXT_FULL"),
    (DOLLOP_BUDGET, c"DOLLOP_BUDGET"),
    (DOLLOP_NOT_FINITE, c"DOLLOP_NOT_FINITE"),
    (DOLLOP_CANCELLED, c"DOLLOP_CANCELLED"),
    (DOLLOP_DEVICE, c"DOLLOP_DEVICE"),
    (DOLLOP_OTHER, c"DOLLOP_OTHER"),
    (DOLLOP_NULL, c"DOLLOP_NULL"),
    (DOLLOP_STRUCT_SIZE, c"DOLLOP_STRUCT_SIZE"),
    (DOLLOP_UTF8, c"DOLLOP_UTF8"),
    (DOLLOP_CLOSED, c"DOLLOP_CLOSED"),
    (DOLLOP_WRONG_HANDLE, c"DOLLOP_WRONG_HANDLE"),
    (DOLLOP_BUSY, c"DOLLOP_BUSY"),
    (DOLLOP_TOO_SMALL, c"DOLLOP_TOO_SMALL"),
    (DOLLOP_CALLBACK_PANIC, c"DOLLOP_CALLBACK_PANIC"),
    (DOLLOP_PANIC, c"DOLLOP_PANIC"),
];

/// The name of a status, such as "DOLLOP_BUDGET"; "unknown status" for any other number. Any thread. The text is never freed.
#[unsafe(no_mangle)]
pub extern "C" fn dollop_status_name(status: i32) -> *const c_char {
    let found = ALL.iter().find(|(s, _)| *s as i32 == status);
    found.map_or(c"unknown status", |(_, name)| name).as_ptr()
}
