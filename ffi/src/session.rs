//! A session: plain text and tokens, without a chat template.

use crate::arguments::{self, Struct};
use crate::boundary::{Failure, Result, run};
use crate::generate::{dollop_generate_options, dollop_outcome, generate};
use crate::handles::{self, Exclusive, dollop_engine, dollop_session};
use crate::outputs::{Out, OutArray, OutStruct};
use crate::status::dollop_status;
use runtime::{Session, SessionOptions};
use std::ffi::c_char;
use std::sync::Arc;

/// Options for creating a session. Call `dollop_session_options_init` first.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dollop_session_options {
    /// Size of this struct, in bytes.
    pub struct_size: usize,
    /// Positions of the KV cache; 0 for the number that the engine planned for.
    pub context: u32,
    /// Tokens per prefill chunk; 0 for the planned number. From 32 on, results do not depend on it.
    pub chunk: u32,
}

impl Default for dollop_session_options {
    fn default() -> Self {
        dollop_session_options { struct_size: size_of::<Self>(), context: 0, chunk: 0 }
    }
}

// SAFETY: `repr(C)`; the first field is the size, the others are numbers.
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

/// Sets all fields of `options` to their defaults. `struct_size` must be `sizeof *options`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_session_options_init(
    options: *mut dollop_session_options,
    struct_size: usize,
) -> dollop_status {
    // SAFETY: by the pointer contract of `lib.rs`.
    run(|| unsafe { arguments::init(options, struct_size, |o| o.struct_size = struct_size) })
}

/// Creates an empty session and allocates all its memory. `options` may be NULL. Writes a new handle to `*session`;
/// close it with `dollop_session_free`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_session_new(
    engine: *const dollop_engine,
    options: *const dollop_session_options,
    session: *mut *mut dollop_session,
) -> dollop_status {
    run(|| {
        let engine = handles::get(engine)?;
        // SAFETY: by the pointer contract of `lib.rs`, for options and a handle's destination.
        let (options, session) =
            unsafe { (dollop_session_options::read_or_default(options)?, Out::new("session", session)?) };
        let new = engine.session(options.options())?;
        session.set(handles::open(Arc::new(Exclusive::new(new)))?);
        Ok(())
    })
}

/// Closes the handle. NULL does nothing. Any thread. A running generation is cancelled and keeps what it needs. It
/// calls its callback at most once more, before its own call returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_session_free(session: *mut dollop_session) -> dollop_status {
    run(|| {
        if let Some(session) = handles::close(session)? {
            session.cancel();
        }
        Ok(())
    })
}

/// Cancels the running generation of this session. Its call returns `DOLLOP_OK` with `DOLLOP_STOP_CANCELLED`; the
/// generated tokens stay. Does nothing if none runs. Any thread, also from a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_session_cancel(session: *const dollop_session) -> dollop_status {
    run(|| {
        handles::get(session)?.cancel();
        Ok(())
    })
}

/// Processes the prompt `ids` and continues it. Tokens of the session that the prompt begins with are reused, the others
/// are dropped. `options` may be NULL. `text`, if not NULL, receives the answer: free it with `dollop_text_free`.
/// `outcome`, if not NULL, is filled; its `struct_size` must be set. Blocks. One call at a time, else `DOLLOP_BUSY`.
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
        // SAFETY: by the pointer contract of `lib.rs`, for an array of `count`, and everything that the options point to.
        unsafe {
            let prompt = arguments::array("ids", ids, count)?;
            continue_from(&session, |_| Ok(prompt.to_vec()), options, text, outcome)
        }
    })
}

/// As `dollop_session_generate`, but the prompt is a text. The tokens that the model wants around a text (BOS, EOS)
/// are added. The chat template is not used.
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
        // SAFETY: by the pointer contract of `lib.rs`, for a text, and everything that the options point to.
        unsafe {
            let prompt = arguments::text("prompt", prompt)?;
            let encode = |s: &Session| Ok(s.engine().encode_text(prompt)?);
            continue_from(&session, encode, options, text, outcome)
        }
    })
}

/// # Safety
/// As for [`generate`].
unsafe fn continue_from(
    session: &Exclusive<Session>,
    prompt: impl FnOnce(&Session) -> crate::boundary::Result<Vec<u32>>,
    options: *const dollop_generate_options,
    text: *mut *mut c_char,
    outcome: *mut dollop_outcome,
) -> crate::boundary::Result<()> {
    let body = |s: &mut Session, options: &_, on_event: &mut dyn FnMut(_)| {
        let prompt = prompt(s)?;
        Ok(s.generate(&prompt, options, on_event)?)
    };
    // SAFETY: by this function's contract.
    unsafe { generate(session, |s| s.engine().clone(), options, text, outcome, Box::new(body)) }
}

/// Appends `ids` to the session and writes the logits of the next token to `logits`: unnormalised log probabilities
/// by token id. `capacity` must be at least `dollop_model_info.vocab`, else `DOLLOP_TOO_SMALL`. Blocks. One call at
/// a time, else `DOLLOP_BUSY`. After a failure the session is unchanged, but empty after `DOLLOP_NOT_FINITE`.
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
        // SAFETY: by the pointer contract of `lib.rs`, for an array of `count` and one of `capacity`.
        let (ids, out) = unsafe { (arguments::array("ids", ids, count)?, OutArray::new(logits, capacity)) };
        // SAFETY: as above. This only checks for NULL.
        unsafe { Out::new("logits", logits) }?;
        let mut session = session.take()?;
        out.check("logits", session.engine().info().vocab)?;
        out.set("logits", &next_logits(&mut session, ids)?)
    })
}

/// Appends `ids` and returns the logits of the next token. After a failure the session is unchanged.
pub(crate) fn next_logits(session: &mut Session, ids: &[u32]) -> Result<Vec<f32>> {
    if ids.is_empty() {
        return Err(Failure::invalid("ids is empty: there is no token to append"));
    }
    let before = session.tokens().len();
    let logits = session.last_logits(ids);
    if logits.is_err() {
        // The first chunks of a long prompt may have been appended.
        session.rewind(before);
    }
    Ok(logits?)
}

/// Drops all but the first `count` tokens of the session. If there are fewer, does nothing. One call at a time,
/// else `DOLLOP_BUSY`.
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

/// The tokens of the session. Writes their number to `*count`. Writes the ids to `ids`, which has room for
/// `capacity` elements, unless it is NULL. One call at a time, else `DOLLOP_BUSY`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_session_tokens(
    session: *const dollop_session,
    ids: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> dollop_status {
    run(|| {
        let session = handles::get(session)?;
        // SAFETY: by the pointer contract of `lib.rs`, for an array of `capacity` and a number.
        let (ids, count) = unsafe { (OutArray::new(ids, capacity), Out::new("count", count)?) };
        let session = session.take()?;
        ids.set("ids", session.tokens())?;
        count.set(session.tokens().len());
        Ok(())
    })
}

/// The numbers of a session.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dollop_session_info {
    /// Size of this struct, in bytes.
    pub struct_size: usize,
    /// Positions of the KV cache.
    pub context: u64,
    /// Tokens in the session.
    pub tokens: u64,
    /// Tokens computed since the session was created. Reused tokens do not count.
    pub processed_tokens: u64,
}

impl Default for dollop_session_info {
    fn default() -> Self {
        dollop_session_info { struct_size: size_of::<Self>(), context: 0, tokens: 0, processed_tokens: 0 }
    }
}

// SAFETY: `repr(C)`; the first field is the size, the others are numbers.
unsafe impl Struct for dollop_session_info {
    const NAME: &'static str = "dollop_session_info";
}

/// Initialises `info`. `struct_size` must be `sizeof *info`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_session_info_init(
    info: *mut dollop_session_info,
    struct_size: usize,
) -> dollop_status {
    // SAFETY: by the pointer contract of `lib.rs`.
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

/// Fills `info`. `info->struct_size` must be set. One call at a time, else `DOLLOP_BUSY`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_session_get(
    session: *const dollop_session,
    info: *mut dollop_session_info,
) -> dollop_status {
    run(|| {
        let session = handles::get(session)?;
        // SAFETY: by the pointer contract of `lib.rs`.
        let info = unsafe { OutStruct::new(info) }?;
        info.set(info_of(&*session.take()?));
        Ok(())
    })
}
