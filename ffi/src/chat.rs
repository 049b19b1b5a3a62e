//! A conversation: messages, rendered by the model's template, on a separate timeline.

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

/// `dollop_chat_options.overflow`: a conversation that outgrows the context is `DOLLOP_CONTEXT_FULL`.
pub const DOLLOP_OVERFLOW_ERROR: u32 = 0;
/// The oldest turns are forgotten; the system prompt stays.
pub const DOLLOP_OVERFLOW_SLIDE: u32 = 1;

/// How a conversation is made. Fill with `dollop_chat_options_init`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dollop_chat_options {
    /// Bytes of this struct.
    pub struct_size: usize,
    /// System prompt; NULL for the template's own.
    pub system: *const c_char,
    /// Positions of the KV cache; 0 for what the engine's budget was planned for.
    pub context: u32,
    /// Tokens of a prompt that pass through the layers together; 0 for the plan's.
    pub chunk: u32,
    /// A `DOLLOP_OVERFLOW_`.
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

// SAFETY: `repr(C)`, a size first, then numbers and a raw pointer.
unsafe impl Struct for dollop_chat_options {
    const NAME: &'static str = "dollop_chat_options";
}

/// Seconds until the end of the year 9999.
pub(crate) const END_OF_TIME: u64 = 253_402_300_800;

/// One message of a conversation.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dollop_message {
    /// "system", "user", "assistant" or what else the template knows.
    pub role: *const c_char,
    /// The text.
    pub content: *const c_char,
}

/// # Safety
/// `from` is NULL or has `count` messages, whose texts are NULL or end with a NUL.
unsafe fn messages(from: *const dollop_message, count: usize) -> Result<Vec<Message>> {
    // SAFETY: as of this function.
    let list = unsafe { arguments::array("messages", from, count) }?;
    let one = |m: &dollop_message| {
        // SAFETY: as of this function.
        let (role, content) =
            unsafe { (arguments::text("role", m.role)?, arguments::text("content", m.content)?) };
        Ok(Message::new(role, content))
    };
    list.iter().map(one).collect()
}

/// Fills `options` with the defaults; `struct_size` is `sizeof *options`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_options_init(
    options: *mut dollop_chat_options,
    struct_size: usize,
) -> dollop_status {
    // SAFETY: the contract of pointers in `lib.rs`.
    run(|| unsafe { arguments::init(options, struct_size, |o| o.struct_size = struct_size) })
}

/// Begins a conversation on a new timeline. `options` may be NULL. `DOLLOP_UNSUPPORTED` for a model without tokenizer or
/// chat template. Writes a handle to `*chat`, which `dollop_chat_free` closes. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_new(
    engine: *const dollop_engine,
    options: *const dollop_chat_options,
    chat: *mut *mut dollop_chat,
) -> dollop_status {
    run(|| {
        let engine = handles::get(engine)?;
        // SAFETY: the contract of pointers in `lib.rs`, for options with their text and a place for a handle.
        let (o, chat) = unsafe { (dollop_chat_options::read_or_default(options)?, Out::new("chat", chat)?) };
        // SAFETY: the same.
        let system = unsafe { arguments::optional_text("system", o.system) }?;
        let overflow = match o.overflow {
            DOLLOP_OVERFLOW_ERROR => Overflow::Error,
            DOLLOP_OVERFLOW_SLIDE => Overflow::Slide,
            other => return Err(Failure::invalid(format!("overflow {other}: it must be 0 or 1"))),
        };
        let of = dollop_session_options { context: o.context, chunk: o.chunk, ..Default::default() };
        let new = Chat::new(engine.session(of.options())?, system.map(str::to_owned), overflow)?;
        chat.set(handles::open(Arc::new(Exclusive::new(new)))?);
        Ok(())
    })
}

/// Closes the handle; NULL is fine. Any thread: a generation that runs is cancelled, keeps what it needs, and calls its
/// callback at most once more, before its own call returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_free(chat: *mut dollop_chat) -> dollop_status {
    run(|| {
        if let Some(chat) = handles::close(chat)? {
            chat.cancel();
        }
        Ok(())
    })
}

/// Stops the generation that runs on this chat; its call returns `DOLLOP_OK` with `DOLLOP_STOP_CANCELLED`, and the answer
/// stays in the conversation as far as it came. Does nothing if none runs. Any thread, also from a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_cancel(chat: *const dollop_chat) -> dollop_status {
    run(|| {
        handles::get(chat)?.cancel();
        Ok(())
    })
}

/// Says `message` as the user and generates the answer. `options` may be NULL. `answer`, if not NULL, gets its text, to be
/// freed with `dollop_text_free`; `outcome`, if not NULL, has its `struct_size` set and is filled. Blocks; one call at a time
/// (`DOLLOP_BUSY`). After a failure the conversation is as it was.
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
        // SAFETY: the contract of pointers in `lib.rs`, for a text, and all that the options point to.
        unsafe {
            let message = arguments::text("message", message)?;
            let body =
                |c: &mut Chat, options: &_, hear: &mut dyn FnMut(_)| Ok(c.send(message, options, hear)?);
            generate(&chat, |c| c.session().engine().clone(), options, answer, outcome, Box::new(body))
        }
    })
}

/// Takes the last answer back and answers the same message again. Otherwise as `dollop_chat_send`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_regenerate(
    chat: *const dollop_chat,
    options: *const dollop_generate_options,
    answer: *mut *mut c_char,
    outcome: *mut dollop_outcome,
) -> dollop_status {
    run(|| {
        let chat = handles::get(chat)?;
        let body = |c: &mut Chat, options: &_, hear: &mut dyn FnMut(_)| Ok(c.regenerate(options, hear)?);
        // SAFETY: the contract of pointers in `lib.rs`, for all that the options point to.
        unsafe { generate(&chat, |c| c.session().engine().clone(), options, answer, outcome, Box::new(body)) }
    })
}

/// Forgets the conversation but not the system prompt. One call at a time (`DOLLOP_BUSY`).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_reset(chat: *const dollop_chat) -> dollop_status {
    run(|| {
        handles::get(chat)?.take()?.reset();
        Ok(())
    })
}

/// Replaces the conversation, the system prompt included, by `count` messages. One call at a time (`DOLLOP_BUSY`).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_set_messages(
    chat: *const dollop_chat,
    list: *const dollop_message,
    count: usize,
) -> dollop_status {
    run(|| {
        let chat = handles::get(chat)?;
        // SAFETY: the contract of pointers in `lib.rs`.
        let list = unsafe { messages(list, count) }?;
        chat.take()?.restore(list);
        Ok(())
    })
}

/// The conversation as a JSON array of objects with `role` and `content`. `*json` is freed with `dollop_text_free`. One call
/// at a time (`DOLLOP_BUSY`).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_messages_json(
    chat: *const dollop_chat,
    json: *mut *mut c_char,
) -> dollop_status {
    run(|| {
        let chat = handles::get(chat)?;
        // SAFETY: the contract of pointers in `lib.rs`.
        let json = unsafe { Out::new("json", json) }?;
        let text = serde_json::json!(chat.take()?.messages()).to_string();
        json.set_text(&text);
        Ok(())
    })
}

/// Sets what the template sees beside the messages, such as {"enable_thinking": false}: a JSON object, in place of what was
/// set before. One call at a time (`DOLLOP_BUSY`).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_set_variables(
    chat: *const dollop_chat,
    json: *const c_char,
) -> dollop_status {
    run(|| {
        let chat = handles::get(chat)?;
        // SAFETY: the contract of pointers in `lib.rs`.
        let json = unsafe { arguments::text("json", json) }?;
        let variables = serde_json::from_str(json)
            .map_err(|e| Failure::invalid(format!("the variables are no JSON object: {e}")))?;
        chat.take()?.set_variables(variables);
        Ok(())
    })
}

/// Sets the local time for templates that say it, in seconds since 1970 as if the local clock showed UTC: the library reads
/// no clock. One call at a time (`DOLLOP_BUSY`).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_set_time(chat: *const dollop_chat, seconds: u64) -> dollop_status {
    run(|| {
        let chat = handles::get(chat)?;
        if seconds >= END_OF_TIME {
            return Err(Failure::invalid(format!("{seconds} seconds are after the year 9999")));
        }
        chat.take()?.set_now(DateTime::from_unix(seconds));
        Ok(())
    })
}

/// Fills `info`, whose `struct_size` is set, with the numbers of the chat's timeline. One call at a time (`DOLLOP_BUSY`).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_chat_get(
    chat: *const dollop_chat,
    info: *mut dollop_session_info,
) -> dollop_status {
    run(|| {
        let chat = handles::get(chat)?;
        // SAFETY: the contract of pointers in `lib.rs`.
        let info = unsafe { OutStruct::new(info) }?;
        info.set(info_of(chat.take()?.session()));
        Ok(())
    })
}

/// Renders messages with the model's chat template, at the end the beginning of an answer if `add_generation_prompt` is not
/// 0. `*text` is freed with `dollop_text_free`. Any thread.
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
        // SAFETY: the contract of pointers in `lib.rs`.
        let (list, text) = unsafe { (messages(list, count)?, Out::new("text", text)?) };
        let (tokenizer, special) = (engine.tokenizer()?, engine.special_tokens());
        let spelling = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default();
        let context = RenderContext {
            bos_token: spelling(special.bos),
            eos_token: spelling(special.eos),
            add_generation_prompt: add_generation_prompt != 0,
            ..RenderContext::default()
        };
        text.set_text(&engine.chat_template()?.render(&list, &context)?);
        Ok(())
    })
}
