//! Saves, loads and forks sessions; saves and loads conversations.

use crate::arguments::{self, Struct};
use crate::boundary::run;
use crate::handles::{self, Exclusive, dollop_chat, dollop_engine, dollop_session};
use crate::outputs::Out;
use crate::session::dollop_session_options;
use crate::status::dollop_status;
use std::ffi::c_char;
use std::sync::Arc;

/// Writes the session to a file: its tokens, and the keys and values computed for them. An existing file is
/// replaced only when the new one is complete and on disk. `bytes`, if not NULL, receives the file's size. One call
/// at a time, else `DOLLOP_BUSY`. After a failure the session and the old file are unchanged.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_session_save(
    session: *const dollop_session,
    path: *const c_char,
    bytes: *mut u64,
) -> dollop_status {
    run(|| {
        let session = handles::get(session)?;
        // SAFETY: by the pointer contract of `lib.rs`, for a path and a number.
        let (path, bytes) = unsafe { (arguments::path("path", path)?, Out::optional(bytes)) };
        bytes.set(session.take()?.save(&path)?);
        Ok(())
    })
}

/// Loads a session that `dollop_session_save` or `dollop_chat_save` wrote, also in another process. On the same
/// backend and at exact precision its logits are the same as without saving. The context is that of `options`,
/// which may be NULL. `DOLLOP_MALFORMED` for a damaged file, `DOLLOP_UNSUPPORTED` for another model, precision or
/// version, `DOLLOP_CONTEXT_FULL` if the tokens do not fit. Writes a new handle to `*session`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_session_load(
    engine: *const dollop_engine,
    path: *const c_char,
    options: *const dollop_session_options,
    session: *mut *mut dollop_session,
) -> dollop_status {
    run(|| {
        let engine = handles::get(engine)?;
        // SAFETY: by the pointer contract of `lib.rs`, for a path, options, and a handle's destination.
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

/// Copies a session, to continue one prefix in several ways. Computes nothing. Writes a new handle to `*fork`;
/// close it with `dollop_session_free`. One call at a time, else `DOLLOP_BUSY`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_session_fork(
    session: *const dollop_session,
    fork: *mut *mut dollop_session,
) -> dollop_status {
    run(|| {
        let session = handles::get(session)?;
        // SAFETY: by the pointer contract of `lib.rs`.
        let fork = unsafe { Out::new("fork", fork) }?;
        let second = session.take()?.fork()?;
        fork.set(handles::open(Arc::new(Exclusive::new(second)))?);
        Ok(())
    })
}

/// Writes the conversation to a file: its session, its messages with the system prompt, the overflow option, and
/// the template's variables, but not the time. Otherwise as `dollop_session_save`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_save(
    chat: *const dollop_chat,
    path: *const c_char,
    bytes: *mut u64,
) -> dollop_status {
    run(|| {
        let chat = handles::get(chat)?;
        // SAFETY: by the pointer contract of `lib.rs`, for a path and a number.
        let (path, bytes) = unsafe { (arguments::path("path", path)?, Out::optional(bytes)) };
        bytes.set(chat.take()?.save(&path)?);
        Ok(())
    })
}

/// Loads a conversation that `dollop_chat_save` wrote. `DOLLOP_MALFORMED` for a session without a conversation.
/// Otherwise as `dollop_session_load`. Writes a new handle to `*chat`; close it with `dollop_chat_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_load(
    engine: *const dollop_engine,
    path: *const c_char,
    options: *const dollop_session_options,
    chat: *mut *mut dollop_chat,
) -> dollop_status {
    run(|| {
        let engine = handles::get(engine)?;
        // SAFETY: by the pointer contract of `lib.rs`, for a path, options, and a handle's destination.
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
