//! Saving and restoring sessions and conversations, and copies of them.

use crate::arguments::{self, Struct};
use crate::boundary::run;
use crate::handles::{self, Exclusive, dollop_chat, dollop_engine, dollop_session};
use crate::outputs::Out;
use crate::session::dollop_session_options;
use crate::status::dollop_status;
use std::ffi::c_char;
use std::sync::Arc;

/// Writes the timeline to a file: its tokens, and the keys and values that were computed of them. It takes the place of a
/// file that is there only when it is whole and on the disk. `bytes`, if not NULL, gets its size. One call at a time
/// (`DOLLOP_BUSY`). After a failure the timeline and the old file are as they were.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_session_save(
    session: *const dollop_session,
    path: *const c_char,
    bytes: *mut u64,
) -> dollop_status {
    run(|| {
        let session = handles::get(session)?;
        // SAFETY: the contract of pointers in `lib.rs`, for a path and a number.
        let (path, bytes) = unsafe { (arguments::path("path", path)?, Out::optional(bytes)) };
        bytes.set(session.take()?.save(&path)?);
        Ok(())
    })
}

/// Goes on with a timeline that `dollop_session_save` or `dollop_chat_save` wrote, perhaps in another process. On one backend
/// and at exact precision its logits are those of the timeline that never stopped. The context is that of `options`, which may
/// be NULL. `DOLLOP_MALFORMED` for a damaged file, `DOLLOP_UNSUPPORTED` for one of another model, precision or version,
/// `DOLLOP_CONTEXT_FULL` where its tokens do not fit. Writes a handle to `*session`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_session_load(
    engine: *const dollop_engine,
    path: *const c_char,
    options: *const dollop_session_options,
    session: *mut *mut dollop_session,
) -> dollop_status {
    run(|| {
        let engine = handles::get(engine)?;
        // SAFETY: the contract of pointers in `lib.rs`, for a path, options, and a place for a handle.
        let (path, options, session) = unsafe {
            (
                arguments::path("path", path)?,
                dollop_session_options::read_or_default(options)?,
                Out::new("session", session)?,
            )
        };
        let loaded = engine.load_session(&path, options.options())?;
        session.set(handles::open(Arc::new(Exclusive::new(loaded)))?);
        Ok(())
    })
}

/// A second timeline that begins with what this one holds, to continue one prefix in several ways; nothing is computed.
/// Writes a handle to `*fork`, which `dollop_session_free` closes. One call at a time (`DOLLOP_BUSY`).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_session_fork(
    session: *const dollop_session,
    fork: *mut *mut dollop_session,
) -> dollop_status {
    run(|| {
        let session = handles::get(session)?;
        // SAFETY: the contract of pointers in `lib.rs`.
        let fork = unsafe { Out::new("fork", fork) }?;
        let second = session.take()?.fork()?;
        fork.set(handles::open(Arc::new(Exclusive::new(second)))?);
        Ok(())
    })
}

/// Writes the conversation to a file: its timeline, its messages with the system prompt, what to do on overflow, and the
/// template's variables, but not the time. Otherwise as `dollop_session_save`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_save(
    chat: *const dollop_chat,
    path: *const c_char,
    bytes: *mut u64,
) -> dollop_status {
    run(|| {
        let chat = handles::get(chat)?;
        // SAFETY: the contract of pointers in `lib.rs`, for a path and a number.
        let (path, bytes) = unsafe { (arguments::path("path", path)?, Out::optional(bytes)) };
        bytes.set(chat.take()?.save(&path)?);
        Ok(())
    })
}

/// Goes on with a conversation that `dollop_chat_save` wrote. Otherwise as `dollop_session_load`; a timeline without a
/// conversation is `DOLLOP_MALFORMED`. Writes a handle to `*chat`, which `dollop_chat_free` closes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_load(
    engine: *const dollop_engine,
    path: *const c_char,
    options: *const dollop_session_options,
    chat: *mut *mut dollop_chat,
) -> dollop_status {
    run(|| {
        let engine = handles::get(engine)?;
        // SAFETY: the contract of pointers in `lib.rs`, for a path, options, and a place for a handle.
        let (path, options, chat) = unsafe {
            (
                arguments::path("path", path)?,
                dollop_session_options::read_or_default(options)?,
                Out::new("chat", chat)?,
            )
        };
        let loaded = engine.load_chat(&path, options.options())?;
        chat.set(handles::open(Arc::new(Exclusive::new(loaded)))?);
        Ok(())
    })
}
