//! A conversation: messages, rendered by the model's template, in its own session.

use crate::arguments::{self, Struct};
use crate::boundary::{Failure, Result, run};
use crate::generate::{dollop_generate_options, dollop_outcome, generate};
use crate::handles::{self, Exclusive, dollop_chat, dollop_engine};
use crate::outputs::{Out, OutStruct};
use crate::session::{dollop_session_info, dollop_session_options, info_of};
use crate::status::dollop_status;
use runtime::template::{DateTime, Message, RenderContext};
use runtime::{Chat, Engine, Overflow};
use std::ffi::c_char;
use std::sync::Arc;

/// `dollop_chat_options.overflow`: a prompt that no longer fits the context is `DOLLOP_CONTEXT_FULL`.
pub const DOLLOP_OVERFLOW_ERROR: u32 = 0;
/// The oldest turns are dropped; the system prompt stays.
pub const DOLLOP_OVERFLOW_SLIDE: u32 = 1;

/// Options for creating a conversation. Call `dollop_chat_options_init` first.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dollop_chat_options {
    /// Size of this struct, in bytes.
    pub struct_size: usize,
    /// System prompt; NULL for the template's own.
    pub system: *const c_char,
    /// Positions of the KV cache; 0 for the number that the engine planned for.
    pub context: u32,
    /// Tokens per prefill chunk; 0 for the planned number.
    pub chunk: u32,
    /// A `DOLLOP_OVERFLOW_` constant.
    pub overflow: u32,
    /// Always 0.
    pub reserved: u32,
}

impl Default for dollop_chat_options {
    fn default() -> Self {
        dollop_chat_options {
            struct_size: size_of::<Self>(),
            system: std::ptr::null(),
            context: 0,
            chunk: 0,
            overflow: DOLLOP_OVERFLOW_ERROR,
            reserved: 0,
        }
    }
}

// SAFETY: `repr(C)`; the first field is the size, the others are numbers and a raw pointer.
unsafe impl Struct for dollop_chat_options {
    const NAME: &'static str = "dollop_chat_options";
}

/// A `DOLLOP_OVERFLOW_` constant in the library's type.
pub(crate) fn overflow(number: u32) -> Result<Overflow> {
    match number {
        DOLLOP_OVERFLOW_ERROR => Ok(Overflow::Error),
        DOLLOP_OVERFLOW_SLIDE => Ok(Overflow::Slide),
        other => Err(Failure::invalid(format!("overflow {other}: it must be 0 or 1"))),
    }
}

/// The end of the year 9999, in seconds since 1970.
pub(crate) const END_OF_TIME: u64 = 253_402_300_800;

/// One message of a conversation.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dollop_message {
    /// "system", "user", "assistant", or another role that the template supports.
    pub role: *const c_char,
    /// The message's text.
    pub content: *const c_char,
}

/// # Safety
/// `from` is NULL or has `count` messages, whose texts are NULL or NUL-terminated.
unsafe fn messages(from: *const dollop_message, count: usize) -> Result<Vec<Message>> {
    // SAFETY: by this function's contract.
    let list = unsafe { arguments::array("messages", from, count) }?;
    let one = |m: &dollop_message| {
        // SAFETY: by this function's contract.
        let (role, content) =
            unsafe { (arguments::text("role", m.role)?, arguments::text("content", m.content)?) };
        Ok(Message::new(role, content))
    };
    list.iter().map(one).collect()
}

/// Sets all fields of `options` to their defaults. `struct_size` must be `sizeof *options`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_options_init(
    options: *mut dollop_chat_options,
    struct_size: usize,
) -> dollop_status {
    // SAFETY: by the pointer contract of `lib.rs`.
    run(|| unsafe { arguments::init(options, struct_size, |o| o.struct_size = struct_size) })
}

/// Creates a conversation with a new session. `options` may be NULL. `DOLLOP_UNSUPPORTED` if the model has no
/// tokenizer or chat template. Writes a new handle to `*chat`; close it with `dollop_chat_free`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_new(
    engine: *const dollop_engine,
    options: *const dollop_chat_options,
    chat: *mut *mut dollop_chat,
) -> dollop_status {
    run(|| {
        let engine = handles::get(engine)?;
        // SAFETY: by the pointer contract of `lib.rs`, for options with their text and a handle's destination.
        let (o, chat) = unsafe { (dollop_chat_options::read_or_default(options)?, Out::new("chat", chat)?) };
        // SAFETY: as above.
        let system = unsafe { arguments::optional_text("system", o.system) }?;
        let overflow = overflow(o.overflow)?;
        let of = dollop_session_options { context: o.context, chunk: o.chunk, ..Default::default() };
        let new = Chat::new(engine.session(of.options())?, system.map(str::to_owned), overflow)?;
        chat.set(handles::open(Arc::new(Exclusive::new(new)))?);
        Ok(())
    })
}

/// Closes the handle. NULL does nothing. Any thread. A running generation is cancelled and keeps what it needs. It
/// calls its callback at most once more, before its own call returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_free(chat: *mut dollop_chat) -> dollop_status {
    run(|| {
        if let Some(chat) = handles::close(chat)? {
            chat.cancel();
        }
        Ok(())
    })
}

/// Cancels the running generation of this chat. Its call returns `DOLLOP_OK` with `DOLLOP_STOP_CANCELLED`; the
/// answer so far stays in the conversation. Does nothing if none runs. Any thread, also from a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_cancel(chat: *const dollop_chat) -> dollop_status {
    run(|| {
        handles::get(chat)?.cancel();
        Ok(())
    })
}

/// Adds `message` as the user's turn and generates the answer. `options` may be NULL. `answer`, if not NULL,
/// receives the text: free it with `dollop_text_free`. `outcome`, if not NULL, is filled; its `struct_size` must be
/// set. Blocks. One call at a time, else `DOLLOP_BUSY`. After a failure the conversation is unchanged.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_send(
    chat: *const dollop_chat,
    message: *const c_char,
    options: *const dollop_generate_options,
    answer: *mut *mut c_char,
    outcome: *mut dollop_outcome,
) -> dollop_status {
    run(|| {
        let chat = handles::get(chat)?;
        // SAFETY: by the pointer contract of `lib.rs`, for a text, and everything that the options point to.
        unsafe {
            let message = arguments::text("message", message)?;
            let body = |c: &mut Chat, options: &_, on_event: &mut dyn FnMut(_)| {
                Ok(c.send(message, options, on_event)?)
            };
            generate(&chat, |c| c.session().engine().clone(), options, answer, outcome, Box::new(body))
        }
    })
}

/// Removes the last answer and answers the same message again. Otherwise as `dollop_chat_send`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_regenerate(
    chat: *const dollop_chat,
    options: *const dollop_generate_options,
    answer: *mut *mut c_char,
    outcome: *mut dollop_outcome,
) -> dollop_status {
    run(|| {
        let chat = handles::get(chat)?;
        let body =
            |c: &mut Chat, options: &_, on_event: &mut dyn FnMut(_)| Ok(c.regenerate(options, on_event)?);
        // SAFETY: by the pointer contract of `lib.rs`, for everything that the options point to.
        unsafe { generate(&chat, |c| c.session().engine().clone(), options, answer, outcome, Box::new(body)) }
    })
}

/// Clears the conversation; the system prompt stays. One call at a time, else `DOLLOP_BUSY`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_reset(chat: *const dollop_chat) -> dollop_status {
    run(|| {
        handles::get(chat)?.take()?.reset();
        Ok(())
    })
}

/// Replaces the conversation and its system prompt by `count` messages. One call at a time, else `DOLLOP_BUSY`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_set_messages(
    chat: *const dollop_chat,
    list: *const dollop_message,
    count: usize,
) -> dollop_status {
    run(|| {
        let chat = handles::get(chat)?;
        // SAFETY: by the pointer contract of `lib.rs`.
        let list = unsafe { messages(list, count) }?;
        chat.take()?.restore(list);
        Ok(())
    })
}

/// The conversation as a JSON array of objects with `role` and `content`. Free `*json` with `dollop_text_free`. One
/// call at a time, else `DOLLOP_BUSY`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_messages_json(
    chat: *const dollop_chat,
    json: *mut *mut c_char,
) -> dollop_status {
    run(|| {
        let chat = handles::get(chat)?;
        // SAFETY: by the pointer contract of `lib.rs`.
        let json = unsafe { Out::new("json", json) }?;
        let text = serde_json::json!(chat.take()?.messages()).to_string();
        json.set_text(&text);
        Ok(())
    })
}

/// Sets the template's variables besides the messages, as a JSON object such as {"enable_thinking": false}. It
/// replaces those set before. One call at a time, else `DOLLOP_BUSY`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_set_variables(
    chat: *const dollop_chat,
    json: *const c_char,
) -> dollop_status {
    run(|| {
        let chat = handles::get(chat)?;
        // SAFETY: by the pointer contract of `lib.rs`.
        let json = unsafe { arguments::text("json", json) }?;
        let variables = serde_json::from_str(json)
            .map_err(|e| Failure::invalid(format!("the variables are not a JSON object: {e}")))?;
        chat.take()?.set_variables(variables);
        Ok(())
    })
}

/// Sets the local time for templates that use it, in seconds since 1970 as if the local clock showed UTC. The
/// library reads no clock. One call at a time, else `DOLLOP_BUSY`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_set_time(chat: *const dollop_chat, seconds: u64) -> dollop_status {
    run(|| {
        let chat = handles::get(chat)?;
        if seconds >= END_OF_TIME {
            return Err(Failure::invalid(format!("{seconds} seconds: the time is after the year 9999")));
        }
        chat.take()?.set_now(DateTime::from_unix(seconds));
        Ok(())
    })
}

/// Fills `info` with the numbers of the chat's session. `info->struct_size` must be set. One call at a time, else `DOLLOP_BUSY`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_get(
    chat: *const dollop_chat,
    info: *mut dollop_session_info,
) -> dollop_status {
    run(|| {
        let chat = handles::get(chat)?;
        // SAFETY: by the pointer contract of `lib.rs`.
        let info = unsafe { OutStruct::new(info) }?;
        info.set(info_of(chat.take()?.session()));
        Ok(())
    })
}

/// Renders `count` messages with the model's chat template. If `add_generation_prompt` is not 0, the text ends with
/// the beginning of an answer. Free `*text` with `dollop_text_free`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_engine_render(
    engine: *const dollop_engine,
    list: *const dollop_message,
    count: usize,
    add_generation_prompt: i32,
    text: *mut *mut c_char,
) -> dollop_status {
    run(|| {
        let engine: Engine = handles::get(engine)?;
        // SAFETY: by the pointer contract of `lib.rs`.
        let (list, text) = unsafe { (messages(list, count)?, Out::new("text", text)?) };
        text.set_text(&rendered(&engine, &list, add_generation_prompt != 0)?);
        Ok(())
    })
}

/// Messages as the model's chat template renders them.
pub(crate) fn rendered(engine: &Engine, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
    let (tokenizer, special) = (engine.tokenizer()?, engine.special_tokens());
    let spelling = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default();
    let context = RenderContext {
        bos_token: spelling(special.bos),
        eos_token: spelling(special.eos),
        add_generation_prompt,
        ..RenderContext::default()
    };
    Ok(engine.chat_template()?.render(messages, &context)?)
}
