//! Generation for C: options in, events through a callback, an outcome out.

use crate::arguments::{self, Struct};
use crate::boundary::{Failure, Result, run};
use crate::handles::Exclusive;
use crate::outputs::{Out, OutStruct};
use crate::sampling::dollop_sampling;
use crate::status::dollop_status::{self, *};
use runtime::{CancelToken, Constraint, Engine, Event, GenerateOptions, Outcome, StopReason};
use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// `dollop_event.kind`: a part of the prompt was read: `done` of `total` tokens.
pub const DOLLOP_EVENT_PREFILL: u32 = 0;
/// A token was generated: `token`, and in `text` what can be shown by now, perhaps nothing. A token of a model's reasoning has none.
pub const DOLLOP_EVENT_TOKEN: u32 = 1;
/// The end of the text that was held back until now: `text`.
pub const DOLLOP_EVENT_REST: u32 = 2;
/// The GPU failed and the CPU goes on: `text` says why.
pub const DOLLOP_EVENT_GPU_LOST: u32 = 3;

/// `dollop_outcome.stop`: the model ended its turn.
pub const DOLLOP_STOP_END_OF_TURN: u32 = 0;
/// A stop text was met.
pub const DOLLOP_STOP_TEXT: u32 = 1;
/// `max_tokens` were generated.
pub const DOLLOP_STOP_MAX_TOKENS: u32 = 2;
/// A callback or another thread asked for it.
pub const DOLLOP_STOP_CANCELLED: u32 = 3;
/// The KV cache is full.
pub const DOLLOP_STOP_CONTEXT_FULL: u32 = 4;
/// A reason that has no number yet.
pub const DOLLOP_STOP_OTHER: u32 = 99;

/// What happens during a generation. Programs ignore kinds that they do not know.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dollop_event {
    /// A `DOLLOP_EVENT_`.
    pub kind: u32,
    /// The token's id.
    pub token: u32,
    /// Whole UTF-8 characters with a NUL behind them; never NULL. Valid during the callback.
    pub text: *const c_char,
    /// Bytes of `text`, the NUL not counted.
    pub text_len: usize,
    /// Prompt tokens read.
    pub done: u64,
    /// Prompt tokens to be read in all.
    pub total: u64,
}

/// Receives events, on the thread that generates. Returns 0 to go on, anything else to stop: the generation then ends with
/// `DOLLOP_STOP_CANCELLED`, and the callback is not called again. May call any function of this library; those on the
/// generating session or chat, but for `_cancel` and `_free`, are `DOLLOP_BUSY`. Must not throw or `longjmp`.
pub type dollop_event_callback =
    Option<unsafe extern "C-unwind" fn(event: *const dollop_event, user_data: *mut c_void) -> i32>;

/// How to generate. Fill with `dollop_generate_options_init`, then change what should differ. Pointers must stay valid until
/// the call that takes the options returns.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dollop_generate_options {
    /// Bytes of this struct.
    pub struct_size: usize,
    /// Most tokens to generate; 0 only reads the prompt. 512.
    pub max_tokens: u32,
    /// Not 0: go on after an end-of-turn token.
    pub ignore_eos: i32,
    /// How tokens are chosen; NULL for the model's own way.
    pub sampling: *const dollop_sampling,
    /// Texts that end the answer and are not part of it; NULL for none.
    pub stop: *const *const c_char,
    /// Elements of `stop`.
    pub stop_count: usize,
    /// Where experts are streamed adaptively: the precision follows this many tokens per second, and results depend on the
    /// machine's speed. 0 for not.
    pub target_tps: f64,
    /// Receives events; NULL for none.
    pub on_event: dollop_event_callback,
    /// Handed to `on_event`.
    pub user_data: *mut c_void,
    /// The answer is JSON that obeys this JSON Schema, given as its text; NULL for any answer. One of `json_schema`, `regex` and `grammar`
    /// at most.
    pub json_schema: *const c_char,
    /// The answer is what this regular expression matches as a whole; NULL for any answer.
    pub regex: *const c_char,
    /// The answer is what this grammar derives from `start`, in llguidance's form of Lark; NULL for any answer.
    pub grammar: *const c_char,
}

impl Default for dollop_generate_options {
    fn default() -> Self {
        dollop_generate_options {
            struct_size: size_of::<Self>(),
            max_tokens: 512,
            ignore_eos: 0,
            sampling: std::ptr::null(),
            stop: std::ptr::null(),
            stop_count: 0,
            target_tps: 0.0,
            on_event: None,
            user_data: std::ptr::null_mut(),
            json_schema: std::ptr::null(),
            regex: std::ptr::null(),
            grammar: std::ptr::null(),
        }
    }
}

impl dollop_generate_options {
    /// # Safety
    /// The contract of pointers in `lib.rs`.
    unsafe fn constraint(&self) -> Result<Option<Constraint>> {
        // SAFETY: as of this function.
        let texts = unsafe {
            (
                arguments::optional_text("json_schema", self.json_schema)?,
                arguments::optional_text("regex", self.regex)?,
                arguments::optional_text("grammar", self.grammar)?,
            )
        };
        match texts {
            (None, None, None) => Ok(None),
            (Some(text), None, None) => Ok(Some(Constraint::json_schema(text))),
            (None, Some(text), None) => Ok(Some(Constraint::regex(text))),
            (None, None, Some(text)) => Ok(Some(Constraint::lark(text))),
            _ => Err(Failure::invalid("json_schema, regex and grammar: set one of them at most")),
        }
    }
}

// SAFETY: `repr(C)`, a size first, then numbers, raw pointers and an optional function.
unsafe impl Struct for dollop_generate_options {
    const NAME: &'static str = "dollop_generate_options";
    const FIRST: usize = std::mem::offset_of!(dollop_generate_options, json_schema);
}

/// Fills `options` with the defaults; `struct_size` is `sizeof *options`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_generate_options_init(
    options: *mut dollop_generate_options,
    struct_size: usize,
) -> dollop_status {
    // SAFETY: the contract of pointers in `lib.rs`.
    run(|| unsafe { arguments::init(options, struct_size, |o| o.struct_size = struct_size) })
}

/// A finished generation.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dollop_outcome {
    /// Bytes of this struct.
    pub struct_size: usize,
    /// A `DOLLOP_STOP_`.
    pub stop: u32,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of those, found in the cache.
    pub reused_tokens: u32,
    /// Tokens generated, an end-of-turn token excluded.
    pub generated_tokens: u32,
    /// Seconds for the rest of the prompt.
    pub prefill_seconds: f64,
    /// Seconds for the generated tokens.
    pub decode_seconds: f64,
}

impl Default for dollop_outcome {
    fn default() -> Self {
        dollop_outcome {
            struct_size: size_of::<Self>(),
            stop: DOLLOP_STOP_OTHER,
            prompt_tokens: 0,
            reused_tokens: 0,
            generated_tokens: 0,
            prefill_seconds: 0.0,
            decode_seconds: 0.0,
        }
    }
}

// SAFETY: `repr(C)`, a size first, then numbers.
unsafe impl Struct for dollop_outcome {
    const NAME: &'static str = "dollop_outcome";
}

/// Zeroes `outcome` and sets its size; `struct_size` is `sizeof *outcome`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_outcome_init(
    outcome: *mut dollop_outcome,
    struct_size: usize,
) -> dollop_status {
    // SAFETY: the contract of pointers in `lib.rs`.
    run(|| unsafe { arguments::init(outcome, struct_size, |o| o.struct_size = struct_size) })
}

pub(crate) fn outcome_of(o: &Outcome) -> dollop_outcome {
    let n = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    dollop_outcome {
        stop: match o.stop {
            StopReason::EndOfTurn => DOLLOP_STOP_END_OF_TURN,
            StopReason::StopString => DOLLOP_STOP_TEXT,
            StopReason::MaxTokens => DOLLOP_STOP_MAX_TOKENS,
            StopReason::Cancelled => DOLLOP_STOP_CANCELLED,
            StopReason::ContextFull => DOLLOP_STOP_CONTEXT_FULL,
            #[allow(unreachable_patterns)] // Further reasons may be added.
            _ => DOLLOP_STOP_OTHER,
        },
        prompt_tokens: n(o.prompt_tokens),
        reused_tokens: n(o.reused_tokens),
        generated_tokens: n(o.tokens.len()),
        prefill_seconds: o.prefill_s,
        decode_seconds: o.decode_s,
        ..dollop_outcome::default()
    }
}

/// A caller's callback, and its state.
struct Listener {
    callback: dollop_event_callback,
    user_data: *mut c_void,
    cancel: CancelToken,
    /// The text with its NUL; the buffer is reused for every event.
    text: Vec<u8>,
    stopped: bool,
    panicked: bool,
}

impl Listener {
    fn hear(&mut self, event: Event) {
        let Some(callback) = self.callback.filter(|_| !self.stopped) else { return };
        let (kind, token, text, done, total) = match &event {
            Event::Prefill { done, total } => (DOLLOP_EVENT_PREFILL, 0, "", *done, *total),
            // Reasoning is no part of the answer: it is reported as a token without text, and the callback's answer
            // counts as for any other.
            Event::Reasoning { id, .. } => (DOLLOP_EVENT_TOKEN, *id, "", 0, 0),
            Event::Token { id, text } => (DOLLOP_EVENT_TOKEN, *id, text.as_str(), 0, 0),
            Event::Rest { text } => (DOLLOP_EVENT_REST, 0, text.as_str(), 0, 0),
            Event::GpuLost { note } => (DOLLOP_EVENT_GPU_LOST, 0, note.as_str(), 0, 0),
            #[allow(unreachable_patterns)] // Further events may be added.
            _ => return,
        };
        self.text.clear();
        self.text.extend_from_slice(text.as_bytes());
        self.text.push(0);
        let event = dollop_event {
            kind,
            token,
            text: self.text.as_ptr().cast(),
            text_len: text.len(),
            done: done as u64,
            total: total as u64,
        };
        let user_data = self.user_data;
        // SAFETY: by the contract of `lib.rs` a function of this type, which gets an event that lives until it returns. What
        // a callback in Rust may unwind with ends here.
        let called = catch_unwind(AssertUnwindSafe(|| unsafe { callback(&event, user_data) }));
        self.panicked = called.is_err();
        if called.unwrap_or(1) != 0 {
            self.stopped = true;
            self.cancel.cancel();
        }
    }
}

/// The part of a call that generates, with exclusive access to the value.
pub(crate) type Body<'a, T> =
    dyn FnOnce(&mut T, &GenerateOptions, &mut dyn FnMut(Event)) -> Result<Outcome> + 'a;

/// Takes a session or a chat, generates, and writes the answer and the outcome.
///
/// # Safety
/// The contract of pointers in `lib.rs` for `options`, and all that they point to, `answer` and `outcome`.
pub(crate) unsafe fn generate<T>(
    with: &Exclusive<T>,
    engine: impl FnOnce(&T) -> Engine,
    options: *const dollop_generate_options,
    answer: *mut *mut c_char,
    outcome: *mut dollop_outcome,
    body: Box<Body<T>>,
) -> Result<()> {
    // SAFETY: as of this function.
    let (answer, outcome, given) = unsafe {
        (
            Out::optional(answer),
            OutStruct::optional(outcome)?,
            dollop_generate_options::read_or_default(options)?,
        )
    };
    let mut value = with.take()?;
    let own = engine(&value).sampling().clone();
    let sampling = match given.sampling.is_null() {
        true => own,
        // SAFETY: as of this function: not NULL, and its own pointers are as they should be.
        false => unsafe { dollop_sampling::read(given.sampling)?.sampling(&own) }?,
    };
    let stop = match given.stop.is_null() {
        true => Vec::new(),
        // SAFETY: as of this function.
        false => unsafe { arguments::texts("stop", given.stop, given.stop_count) }?,
    };
    if !(0.0..=1e6).contains(&given.target_tps) {
        return Err(Failure::invalid(format!("target_tps {}: it must be 0 to 1000000", given.target_tps)));
    }
    let cancel = CancelToken::new();
    let mut options = GenerateOptions::default()
        .with_max_tokens(given.max_tokens as usize)
        .with_sampling(sampling)
        .with_stop(stop)
        .with_cancel(cancel.clone());
    options.ignore_eos = given.ignore_eos != 0;
    options.target_tps = (given.target_tps > 0.0).then_some(given.target_tps);
    // SAFETY: as of this function.
    options.constraint = unsafe { given.constraint() }?;
    let mut listener = Listener {
        callback: given.on_event,
        user_data: given.user_data,
        cancel: cancel.clone(),
        text: Vec::new(),
        stopped: false,
        panicked: false,
    };
    let running = with.cancels(&cancel);
    let done = body(&mut value, &options, &mut |event| listener.hear(event));
    drop((running, value));
    if listener.panicked {
        return Err(Failure::new(
            DOLLOP_CALLBACK_PANIC,
            "the event callback panicked: the generation was stopped",
        ));
    }
    let done = done?;
    answer.set_text(&done.text);
    outcome.set(outcome_of(&done));
    Ok(())
}
