//! Generation for C. Takes options, reports events through a callback, returns an outcome.

use crate::arguments::{self, Struct};
use crate::boundary::{Failure, Result, run};
use crate::handles::Exclusive;
use crate::outputs::{Out, OutStruct};
use crate::sampling::dollop_sampling;
use crate::status::dollop_status::{self, *};
use runtime::{CancelToken, Constraint, Engine, Event, GenerateOptions, Outcome, StopReason};
use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// `dollop_event.kind`: prefill progress, `done` of `total` tokens.
pub const DOLLOP_EVENT_PREFILL: u32 = 0;
/// A token was generated: `token`. `text` can be shown now and may be empty; for a token of the model's reasoning it is empty.
pub const DOLLOP_EVENT_TOKEN: u32 = 1;
/// The end of the text, held back until the generation ended: `text`.
pub const DOLLOP_EVENT_REST: u32 = 2;
/// The GPU failed and the CPU continues: `text` is the reason.
pub const DOLLOP_EVENT_GPU_LOST: u32 = 3;

/// `dollop_outcome.stop`: the model ended its turn.
pub const DOLLOP_STOP_END_OF_TURN: u32 = 0;
/// The answer contained a stop string.
pub const DOLLOP_STOP_TEXT: u32 = 1;
/// `max_tokens` tokens were generated.
pub const DOLLOP_STOP_MAX_TOKENS: u32 = 2;
/// A callback or another thread cancelled the generation.
pub const DOLLOP_STOP_CANCELLED: u32 = 3;
/// The KV cache is full.
pub const DOLLOP_STOP_CONTEXT_FULL: u32 = 4;
/// A reason without a number of its own.
pub const DOLLOP_STOP_OTHER: u32 = 99;

/// An event of a generation. Programs must ignore unknown kinds.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dollop_event {
    /// A `DOLLOP_EVENT_` constant.
    pub kind: u32,
    /// The token's id.
    pub token: u32,
    /// Whole UTF-8 characters, NUL-terminated; never NULL. Valid during the callback.
    pub text: *const c_char,
    /// Bytes of `text`, without the terminating NUL.
    pub text_len: usize,
    /// Prompt tokens computed so far.
    pub done: u64,
    /// Prompt tokens to compute in all.
    pub total: u64,
}

/// Receives events, on the thread that generates. Returns 0 to continue, anything else to stop: the generation then ends
/// with `DOLLOP_STOP_CANCELLED`, and the callback is not called again. May call any function of this library. On the
/// generating session or chat, all but `_cancel` and `_free` return `DOLLOP_BUSY`. Must not throw or `longjmp`.
pub type dollop_event_callback =
    Option<unsafe extern "C-unwind" fn(event: *const dollop_event, user_data: *mut c_void) -> i32>;

/// Options for generating. Call `dollop_generate_options_init`, then change what should differ. Pointers must stay
/// valid until the call with these options returns.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dollop_generate_options {
    /// Size of this struct, in bytes.
    pub struct_size: usize,
    /// The most tokens to generate, by default 512; 0 only processes the prompt.
    pub max_tokens: u32,
    /// If not 0, continues after an end-of-turn token.
    pub ignore_eos: i32,
    /// How tokens are chosen; NULL for the model's own sampling.
    pub sampling: *const dollop_sampling,
    /// Stop strings: texts that end the answer and are not part of it; NULL for none.
    pub stop: *const *const c_char,
    /// Elements of `stop`.
    pub stop_count: usize,
    /// Target speed in tokens per second, if experts are streamed with adaptive precision: the precision then
    /// follows it, and results depend on the machine's speed. 0 for none.
    pub target_tps: f64,
    /// Receives events; NULL for none.
    pub on_event: dollop_event_callback,
    /// Passed to `on_event`.
    pub user_data: *mut c_void,
    /// JSON Schema, as a text: the answer is JSON that is valid under it; NULL for any answer. At most one of
    /// `json_schema`, `regex` and `grammar` may be set.
    pub json_schema: *const c_char,
    /// Regular expression that the whole answer must match; NULL for any answer.
    pub regex: *const c_char,
    /// Grammar in llguidance's dialect of Lark that must derive the answer from `start`; NULL for any answer.
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
    /// The pointer contract of `lib.rs`.
    unsafe fn constraint(&self) -> Result<Option<Constraint>> {
        // SAFETY: by this function's contract.
        let texts = unsafe {
            [
                arguments::optional_text("json_schema", self.json_schema)?,
                arguments::optional_text("regex", self.regex)?,
                arguments::optional_text("grammar", self.grammar)?,
            ]
        };
        constraint(texts)
    }
}

/// The constraint of a JSON Schema, a regular expression or a grammar, of which at most one is given.
pub(crate) fn constraint(texts: [Option<&str>; 3]) -> Result<Option<Constraint>> {
    match texts {
        [None, None, None] => Ok(None),
        [Some(text), None, None] => Ok(Some(Constraint::json_schema(text))),
        [None, Some(text), None] => Ok(Some(Constraint::regex(text))),
        [None, None, Some(text)] => Ok(Some(Constraint::lark(text))),
        _ => Err(Failure::invalid("json_schema, regex and grammar: set at most one of them")),
    }
}

/// A target speed in tokens per second; 0 for none.
pub(crate) fn target(tps: f64) -> Result<Option<f64>> {
    if !(0.0..=1e6).contains(&tps) {
        return Err(Failure::invalid(format!("target_tps {tps}: it must be 0 to 1000000")));
    }
    Ok((tps > 0.0).then_some(tps))
}

// SAFETY: `repr(C)`; the first field is the size, the others are numbers, raw pointers and an optional function.
unsafe impl Struct for dollop_generate_options {
    const NAME: &'static str = "dollop_generate_options";
    const FIRST: usize = std::mem::offset_of!(dollop_generate_options, json_schema);
}

/// Sets all fields of `options` to their defaults. `struct_size` must be `sizeof *options`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_generate_options_init(
    options: *mut dollop_generate_options,
    struct_size: usize,
) -> dollop_status {
    // SAFETY: by the pointer contract of `lib.rs`.
    run(|| unsafe { arguments::init(options, struct_size, |o| o.struct_size = struct_size) })
}

/// The result of a generation.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dollop_outcome {
    /// Size of this struct, in bytes.
    pub struct_size: usize,
    /// A `DOLLOP_STOP_` constant.
    pub stop: u32,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Prompt tokens that were already in the KV cache.
    pub reused_tokens: u32,
    /// Generated tokens, without the end-of-turn token.
    pub generated_tokens: u32,
    /// Seconds spent on the other prompt tokens.
    pub prefill_seconds: f64,
    /// Seconds spent on the generated tokens.
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

// SAFETY: `repr(C)`; the first field is the size, the others are numbers.
unsafe impl Struct for dollop_outcome {
    const NAME: &'static str = "dollop_outcome";
}

/// Initialises `outcome`. `struct_size` must be `sizeof *outcome`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_outcome_init(
    outcome: *mut dollop_outcome,
    struct_size: usize,
) -> dollop_status {
    // SAFETY: by the pointer contract of `lib.rs`.
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

/// A caller's callback and its state.
struct Listener {
    callback: dollop_event_callback,
    user_data: *mut c_void,
    cancel: CancelToken,
    /// The event's text with its NUL. The buffer is reused.
    text: Vec<u8>,
    stopped: bool,
    panicked: bool,
}

impl Listener {
    fn receive(&mut self, event: Event) {
        let Some(callback) = self.callback.filter(|_| !self.stopped) else { return };
        let (kind, token, text, done, total) = match &event {
            Event::Prefill { done, total } => (DOLLOP_EVENT_PREFILL, 0, "", *done, *total),
            // Reasoning is not part of the answer, so it is reported as a token without text. The callback's return
            // value has the same effect as for other events.
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
        // SAFETY: by the contract of `lib.rs` a function of this type. Its argument is valid until it returns. A
        // panic of a callback in Rust ends here.
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

/// Locks a session or a chat, generates, and writes the answer and the outcome.
///
/// # Safety
/// The pointer contract of `lib.rs`, for `options` with everything they point to, `answer`, and `outcome`.
pub(crate) unsafe fn generate<T>(
    with: &Exclusive<T>,
    engine: impl FnOnce(&T) -> Engine,
    options: *const dollop_generate_options,
    answer: *mut *mut c_char,
    outcome: *mut dollop_outcome,
    body: Box<Body<T>>,
) -> Result<()> {
    // SAFETY: by this function's contract.
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
        // SAFETY: by this function's contract: not NULL, and its own pointers are valid.
        false => unsafe { dollop_sampling::read(given.sampling)?.sampling(&own) }?,
    };
    let stop = match given.stop.is_null() {
        true => Vec::new(),
        // SAFETY: by this function's contract.
        false => unsafe { arguments::texts("stop", given.stop, given.stop_count) }?,
    };
    let target = target(given.target_tps)?;
    let cancel = CancelToken::new();
    let mut options = GenerateOptions::default()
        .with_max_tokens(given.max_tokens as usize)
        .with_sampling(sampling)
        .with_stop(stop)
        .with_cancel(cancel.clone());
    options.ignore_eos = given.ignore_eos != 0;
    options.target_tps = target;
    // SAFETY: by this function's contract.
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
    let done = body(&mut value, &options, &mut |event| listener.receive(event));
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
