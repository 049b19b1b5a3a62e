//! Handles, which represent Rust values in C.
//!
//! A handle is not an address but a number that is used only once, with the type in its low bits. One table maps all
//! open handles to their values. So closed handles, handles of another type and invalid ones are detected without
//! reading freed memory. If a handle is closed while another thread computes with it, that thread keeps the value.

use crate::boundary::{Failure, Result};
use crate::status::dollop_status::*;
use runtime::{CancelToken, Chat, Engine, MemoryPlan, Session};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, RwLock, TryLockError};

/// A loaded model. Any thread, any number of threads at a time.
pub struct dollop_engine {
    _opaque: [u8; 0],
}

/// A session: a sequence of tokens with its KV cache. One call at a time; other threads may cancel or free.
pub struct dollop_session {
    _opaque: [u8; 0],
}

/// A conversation, with its own session. One call at a time; other threads may cancel or free.
pub struct dollop_chat {
    _opaque: [u8; 0],
}

/// How a memory budget is spent. Any thread, any number of threads at a time.
pub struct dollop_plan {
    _opaque: [u8; 0],
}

/// A value for one call at a time, and the token that cancels that call.
pub(crate) struct Exclusive<T> {
    value: Mutex<T>,
    running: Mutex<Option<CancelToken>>,
}

impl<T> Exclusive<T> {
    pub(crate) fn new(value: T) -> Exclusive<T> {
        Exclusive { value: Mutex::new(value), running: Mutex::new(None) }
    }

    /// Locks the value, unless another call holds it.
    pub(crate) fn take(&self) -> Result<MutexGuard<'_, T>> {
        self.value.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => {
                Failure::new(DOLLOP_BUSY, "another call on this handle has not returned")
            }
            TryLockError::Poisoned(_) => {
                Failure::new(DOLLOP_PANIC, "an earlier call on this handle panicked: free the handle")
            }
        })
    }

    /// Sets the token that [`Exclusive::cancel`] cancels, until the guard is dropped.
    pub(crate) fn cancels(&self, token: &CancelToken) -> impl Drop + '_ {
        struct Running<'a>(&'a Mutex<Option<CancelToken>>);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
            }
        }
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.clone());
        Running(&self.running)
    }

    /// Cancels the running generation, if any.
    pub(crate) fn cancel(&self) {
        if let Some(token) = &*self.running.lock().unwrap_or_else(PoisonError::into_inner) {
            token.cancel();
        }
    }
}

/// The value of an open handle.
pub(crate) enum Object {
    Engine(Engine),
    Session(Arc<Exclusive<Session>>),
    Chat(Arc<Exclusive<Chat>>),
    Plan(Arc<MemoryPlan>),
}

const NAMES: [&str; 4] = ["engine", "session", "chat", "plan"];

/// A type of handle.
pub(crate) trait Handle {
    /// The type of the value. A clone is the same object.
    type Value: Clone;
    /// The index in `NAMES`, and the low bits of the handle's number.
    const TAG: usize;
    fn wrap(value: Self::Value) -> Object;
    fn unwrap(object: &Object) -> Option<&Self::Value>;
}

macro_rules! handle {
    ($type:ident, $variant:ident, $value:ty, $tag:expr) => {
        impl Handle for $type {
            type Value = $value;
            const TAG: usize = $tag;
            fn wrap(value: $value) -> Object {
                Object::$variant(value)
            }
            fn unwrap(object: &Object) -> Option<&$value> {
                match object {
                    Object::$variant(value) => Some(value),
                    _ => None,
                }
            }
        }
    };
}
handle!(dollop_engine, Engine, Engine, 0);
handle!(dollop_session, Session, Arc<Exclusive<Session>>, 1);
handle!(dollop_chat, Chat, Arc<Exclusive<Chat>>, 2);
handle!(dollop_plan, Plan, Arc<MemoryPlan>, 3);

/// The open handles by number, and the next unused number.
struct Table {
    open: HashMap<usize, Object>,
    next: usize,
}

static TABLE: LazyLock<RwLock<Table>> =
    LazyLock::new(|| RwLock::new(Table { open: HashMap::new(), next: 1 }));

/// Creates a handle for a value.
///
/// # Errors
/// `DOLLOP_OTHER` after 2^26 handles on a 32-bit machine, because numbers are not reused.
pub(crate) fn open<H: Handle>(value: H::Value) -> Result<*mut H> {
    let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
    let number = table.next.checked_mul(16).map(|n| n + H::TAG);
    let number = number.ok_or_else(|| Failure::new(DOLLOP_OTHER, "no more handles can be made"))?;
    table.next += 1;
    table.open.insert(number, H::wrap(value));
    Ok(std::ptr::without_provenance_mut(number))
}

/// Why `number` is not an open handle of type `H`.
fn unknown<H: Handle>(number: usize, open: bool) -> Failure {
    let (name, tag) = (NAMES[H::TAG], number % 16);
    match NAMES.get(tag) {
        Some(other) if open && tag != H::TAG => Failure::new(
            DOLLOP_WRONG_HANDLE,
            format!("the {name} argument is a handle of another type: {other}"),
        ),
        _ => Failure::new(DOLLOP_CLOSED, format!("the {name} is closed, or never was valid")),
    }
}

/// The value of an open handle. The clone stays valid if the handle is closed.
pub(crate) fn get<H: Handle>(handle: *const H) -> Result<H::Value> {
    if handle.is_null() {
        return Err(Failure::new(DOLLOP_NULL, format!("the {} is NULL", NAMES[H::TAG])));
    }
    let number = handle.addr();
    let table = TABLE.read().unwrap_or_else(PoisonError::into_inner);
    let found = table.open.get(&number);
    found.and_then(H::unwrap).cloned().ok_or_else(|| unknown::<H>(number, found.is_some()))
}

/// Closes a handle; NULL does nothing. Returns its value, so that it is dropped outside the table's lock.
pub(crate) fn close<H: Handle>(handle: *mut H) -> Result<Option<H::Value>> {
    if handle.is_null() {
        return Ok(None);
    }
    let value = get(handle.cast_const())?;
    let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
    // Another thread may have closed it in the meantime.
    match table.open.remove(&handle.addr()) {
        Some(_) => Ok(Some(value)),
        None => Err(unknown::<H>(handle.addr(), false)),
    }
}

/// The number of open handles in this process. Tests use it to find leaks. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn dollop_open_handles() -> usize {
    TABLE.read().unwrap_or_else(PoisonError::into_inner).open.len()
}
