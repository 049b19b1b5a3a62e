//! One timeline of a model: plain text and tokens, without a chat template.

use crate::arguments::{self, Struct};
use crate::boundary::{Failure, run};
use crate::generate::{dollop_generate_options, dollop_outcome, generate};
use crate::handles::{self, Exclusive, dollop_engine, dollop_session};
use crate::outputs::{Out, OutArray, OutStruct};
use crate::status::dollop_status;
use runtime::{Session, SessionOptions};
use std::ffi::c_char;
use std::sync::Arc;

/// How a session is made. Fill with `dollop_session_options_init`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dollop_session_options {
    /// Bytes of this struct.
    pub struct_size: usize,
    /// Positions of the KV cache; 0 for what the engine's budget was planned for.
    pub context: u32,
    /// Tokens of a prompt that pass through the layers together; 0 for the plan's. Results do not depend on it.
    pub chunk: u32,
}

impl Default for dollop_session_options {
    fn default() -> Self {
        dollop_session_options { struct_size: size_of::<Self>(), context: 0, chunk: 0 }
    }
}

// SAFETY: `repr(C)`, a size first, then numbers.
unsafe impl Struct for dollop_session_options {
    const NAME: &'static str = "dollop_session_options";
}

impl dollop_session_options {
    pub(crate) fn options(&self) -> SessionOptions {
        let given = |n: u32| (n != 0).then_some(n as usize);
        let mut options = SessionOptions::default();
        (options.context, options.chunk) = (given(self.context), given(self.chunk));
        options
    }
}

/// Fills `options` with the defaults; `struct_size` is `sizeof *options`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_session_options_init(
    options: *mut dollop_session_options,
    struct_size: usize,
) -> dollop_status {
    // SAFETY: the contract of pointers in `lib.rs`.
    run(|| unsafe { arguments::init(options, struct_size, |o| o.struct_size = struct_size) })
}

/// Makes an empty timeline; all its memory is allocated here. `options` may be NULL. Writes a handle to `*session`, which
/// `dollop_session_free` closes. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_session_new(
    engine: *const dollop_engine,
    options: *const dollop_session_options,
    session: *mut *mut dollop_session,
) -> dollop_status {
    run(|| {
        let engine = handles::get(engine)?;
        // SAFETY: the contract of pointers in `lib.rs`, for options and a place for a handle.
        let (options, session) =
            unsafe { (dollop_session_options::read_or_default(options)?, Out::new("session", session)?) };
        let new = engine.session(options.options())?;
        session.set(handles::open(Arc::new(Exclusive::new(new)))?);
        Ok(())
    })
}

/// Closes the handle; NULL is fine. Any thread: a generation that runs is cancelled, keeps what it needs, and calls its
/// callback at most once more, before its own call returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_session_free(session: *mut dollop_session) -> dollop_status {
    run(|| {
        if let Some(session) = handles::close(session)? {
            session.cancel();
        }
        Ok(())
    })
}

/// Stops the generation that runs on this session; its call returns `DOLLOP_OK` with `DOLLOP_STOP_CANCELLED`, and what was
/// generated stays. Does nothing if none runs. Any thread, also from a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_session_cancel(session: *const dollop_session) -> dollop_status {
    run(|| {
        handles::get(session)?.cancel();
        Ok(())
    })
}

/// Reads the prompt `ids` and continues it. What the cache holds of the prompt's beginning is reused; the rest of the cache
/// is forgotten. `options` may be NULL. `text`, if not NULL, gets the answer, to be freed with `dollop_text_free`;
/// `outcome`, if not NULL, has its `struct_size` set and is filled. Blocks; one call at a time (`DOLLOP_BUSY`).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_session_generate(
    session: *const dollop_session,
    ids: *const u32,
    count: usize,
    options: *const dollop_generate_options,
    text: *mut *mut c_char,
    outcome: *mut dollop_outcome,
) -> dollop_status {
    run(|| {
        let session = handles::get(session)?;
        // SAFETY: the contract of pointers in `lib.rs`, for an array of `count`, and all that the options point to.
        unsafe {
            let prompt = arguments::array("ids", ids, count)?;
            continue_from(&session, |_| Ok(prompt.to_vec()), options, text, outcome)
        }
    })
}

/// As `dollop_session_generate`, with the prompt as text, in front of which come the tokens that the model wants at the
/// beginning of a text. The chat template is not used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_session_complete(
    session: *const dollop_session,
    prompt: *const c_char,
    options: *const dollop_generate_options,
    text: *mut *mut c_char,
    outcome: *mut dollop_outcome,
) -> dollop_status {
    run(|| {
        let session = handles::get(session)?;
        // SAFETY: the contract of pointers in `lib.rs`, for a text, and all that the options point to.
        unsafe {
            let prompt = arguments::text("prompt", prompt)?;
            let encode = |s: &Session| Ok(s.engine().encode_text(prompt)?);
            continue_from(&session, encode, options, text, outcome)
        }
    })
}

/// # Safety
/// As `generate`.
unsafe fn continue_from(
    session: &Exclusive<Session>,
    prompt: impl FnOnce(&Session) -> crate::boundary::Result<Vec<u32>>,
    options: *const dollop_generate_options,
    text: *mut *mut c_char,
    outcome: *mut dollop_outcome,
) -> crate::boundary::Result<()> {
    let body = |s: &mut Session, options: &_, hear: &mut dyn FnMut(_)| {
        let prompt = prompt(s)?;
        Ok(s.generate(&prompt, options, hear)?)
    };
    // SAFETY: as of this function.
    unsafe { generate(session, |s| s.engine().clone(), options, text, outcome, Box::new(body)) }
}

/// Appends `ids` to the timeline and writes the logits of the token after them (unnormalised log probabilities, by token id)
/// to `logits`, which has room for `capacity`: at least `dollop_model_info.vocab`, else `DOLLOP_TOO_SMALL`. Blocks; one call
/// at a time (`DOLLOP_BUSY`). After a failure the timeline is as it was.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_session_logits(
    session: *const dollop_session,
    ids: *const u32,
    count: usize,
    logits: *mut f32,
    capacity: usize,
) -> dollop_status {
    run(|| {
        let session = handles::get(session)?;
        // SAFETY: the contract of pointers in `lib.rs`, for an array of `count` and one of `capacity`.
        let (ids, out) = unsafe { (arguments::array("ids", ids, count)?, OutArray::new(logits, capacity)) };
        // SAFETY: as above; this only asks whether it is NULL.
        unsafe { Out::new("logits", logits) }?;
        if ids.is_empty() {
            return Err(Failure::invalid("no ids: there is no token to follow"));
        }
        let mut session = session.take()?;
        out.check("logits", session.engine().info().vocab)?;
        let before = session.tokens().len();
        let last = session.last_logits(ids);
        if last.is_err() {
            // The first chunks of a long prompt may have been appended.
            session.rewind(before);
        }
        let last = last?;
        out.set("logits", &last)
    })
}

/// Forgets all but the first `count` tokens of the timeline; no failure if there are fewer. One call at a time
/// (`DOLLOP_BUSY`).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_session_rewind(
    session: *const dollop_session,
    count: usize,
) -> dollop_status {
    run(|| {
        handles::get(session)?.take()?.rewind(count);
        Ok(())
    })
}

/// The tokens of the timeline. Writes `*count`, and the ids to `ids`, which has room for `capacity`; with `ids` NULL only
/// the count. One call at a time (`DOLLOP_BUSY`).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_session_tokens(
    session: *const dollop_session,
    ids: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> dollop_status {
    run(|| {
        let session = handles::get(session)?;
        // SAFETY: the contract of pointers in `lib.rs`, for an array of `capacity` and a number.
        let (ids, count) = unsafe { (OutArray::new(ids, capacity), Out::new("count", count)?) };
        let session = session.take()?;
        ids.set("ids", session.tokens())?;
        count.set(session.tokens().len());
        Ok(())
    })
}

/// A timeline in numbers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dollop_session_info {
    /// Bytes of this struct.
    pub struct_size: usize,
    /// Positions of the KV cache.
    pub context: u64,
    /// Tokens in it.
    pub tokens: u64,
    /// Tokens computed since the session was made: what reuse of the cache saves does not appear here.
    pub processed_tokens: u64,
}

impl Default for dollop_session_info {
    fn default() -> Self {
        dollop_session_info { struct_size: size_of::<Self>(), context: 0, tokens: 0, processed_tokens: 0 }
    }
}

// SAFETY: `repr(C)`, a size first, then numbers.
unsafe impl Struct for dollop_session_info {
    const NAME: &'static str = "dollop_session_info";
}

/// Clears `info` and sets its size; `struct_size` is `sizeof *info`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_session_info_init(
    info: *mut dollop_session_info,
    struct_size: usize,
) -> dollop_status {
    // SAFETY: the contract of pointers in `lib.rs`.
    run(|| unsafe { arguments::init(info, struct_size, |i| i.struct_size = struct_size) })
}

pub(crate) fn info_of(session: &Session) -> dollop_session_info {
    dollop_session_info {
        context: session.context() as u64,
        tokens: session.tokens().len() as u64,
        processed_tokens: session.processed_tokens(),
        ..dollop_session_info::default()
    }
}

/// Fills `info`, whose `struct_size` is set. One call at a time (`DOLLOP_BUSY`).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_session_get(
    session: *const dollop_session,
    info: *mut dollop_session_info,
) -> dollop_status {
    run(|| {
        let session = handles::get(session)?;
        // SAFETY: the contract of pointers in `lib.rs`.
        let info = unsafe { OutStruct::new(info) }?;
        info.set(info_of(&*session.take()?));
        Ok(())
    })
}
