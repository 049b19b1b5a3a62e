//! The options, events and outcome of a generation.

use crate::grammar::Constraint;
use crate::sampler::Sampling;
use crate::telemetry::CancelToken;
use crate::tools::Format;
use std::ops::ControlFlow;

/// Options for continuing a prompt.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GenerateOptions {
    /// The most tokens to generate; 0 only processes the prompt.
    pub max_tokens: usize,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Stop strings: texts that end the answer. They are not part of it.
    pub stop: Vec<String>,
    /// Continues after an end-of-turn token (for benchmarks).
    pub ignore_eos: bool,
    /// The target speed in tokens per second, if experts are streamed with adaptive precision. The quality is
    /// lowered or raised after each token to reach it. Results then depend on the machine's speed.
    pub target_tps: Option<f64>,
    /// The constraint on the answer, such as a grammar or a JSON schema. The answer ends when it is complete
    /// and nothing may follow.
    pub constraint: Option<Constraint>,
    /// The format of tool calls in the answer. The markers of calls are then part of its text, so that
    /// [`Parser`](crate::tools::Parser) can read them.
    pub tools: Option<Format>,
    /// Reports the log probability of each token, and those of this many likeliest tokens (at most 256), as
    /// [`Event::Logprobs`]. A device then sends back all logits, and tokens that a constraint forces are
    /// computed one by one.
    pub logprobs: Option<usize>,
    /// Stops the generation from another thread. The tokens generated so far are kept.
    pub cancel: CancelToken,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_tokens: 512,
            sampling: Sampling::default(),
            stop: Vec::new(),
            ignore_eos: false,
            target_tps: None,
            constraint: None,
            tools: None,
            logprobs: None,
            cancel: CancelToken::new(),
        }
    }
}

impl GenerateOptions {
    /// Sets the most tokens to generate.
    #[must_use]
    pub fn with_max_tokens(mut self, tokens: usize) -> Self {
        self.max_tokens = tokens;
        self
    }

    /// Sets how the next token is chosen.
    #[must_use]
    pub fn with_sampling(mut self, sampling: Sampling) -> Self {
        self.sampling = sampling;
        self
    }

    /// Sets the stop strings, which end the answer.
    #[must_use]
    pub fn with_stop(mut self, texts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.stop = texts.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the constraint that the answer must follow.
    #[must_use]
    pub fn with_constraint(mut self, constraint: Constraint) -> Self {
        self.constraint = Some(constraint);
        self
    }

    /// Sets the format of tool calls in the answer.
    #[must_use]
    pub fn with_tools(mut self, format: Format) -> Self {
        self.tools = Some(format);
        self
    }

    /// Sets the token that stops the generation from another thread.
    #[must_use]
    pub fn with_cancel(mut self, cancel: CancelToken) -> Self {
        self.cancel = cancel;
        self
    }
}

/// An event of a generation. Events come in order.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// Progress of prefill. Prompt tokens that were already in the KV cache do not count.
    Prefill {
        /// Tokens computed so far.
        done: usize,
        /// Tokens to compute in all.
        total: usize,
    },
    /// The log probability of the token whose event comes next: the log-softmax of the model's logits, before
    /// sampling and constraints change them. Only with [`GenerateOptions::logprobs`].
    Logprobs {
        /// The token's id.
        id: u32,
        /// The natural logarithm of the token's probability.
        logprob: f32,
        /// The likeliest tokens with their log probabilities, likeliest first.
        top: Vec<(u32, f32)>,
    },
    /// A token was generated. Its `text` may be empty, if the token ends within a character or could begin a
    /// stop string.
    Token {
        /// The token's id.
        id: u32,
        /// The text that can be shown now, in whole characters.
        text: String,
    },
    /// A token of the model's reasoning before the answer, or one of the markers around it, if the vocabulary
    /// has such markers (gpt-oss, `<think>`). It is not part of the answer.
    Reasoning {
        /// The token's id.
        id: u32,
        /// The text that can be shown now, in whole characters; empty for a marker.
        text: String,
    },
    /// The GPU failed and the CPU continues. It computes the lost KV cache again. No token is lost or
    /// repeated.
    GpuLost {
        /// What happened, in one line.
        note: String,
    },
    /// The end of the text, if some was held back until the generation ended.
    Rest {
        /// The text, in whole characters.
        text: String,
    },
}

/// The return value of an event callback: `()`, or whether to continue. [`ControlFlow::Break`] ends the
/// generation as cancelling does, and the callback is not called again.
pub trait Reply {
    /// Whether to continue.
    fn flow(self) -> ControlFlow<()>;
}

impl Reply for () {
    fn flow(self) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

impl Reply for ControlFlow<()> {
    fn flow(self) -> ControlFlow<()> {
        self
    }
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model ended its turn.
    EndOfTurn,
    /// The answer contained a stop string.
    StopString,
    /// `max_tokens` tokens were generated.
    MaxTokens,
    /// The caller cancelled, a callback returned [`ControlFlow::Break`], or an iterator was dropped before
    /// the generation ended.
    #[default]
    Cancelled,
    /// The KV cache is full.
    ContextFull,
}

/// The result of a generation.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Outcome {
    /// The answer, without stop strings and end-of-turn tokens.
    pub text: String,
    /// The model's reasoning before the answer, if its vocabulary marks it.
    pub reasoning: String,
    /// The ids of the generated tokens, without the end-of-turn token.
    pub tokens: Vec<u32>,
    /// Tokens that the constraint forced.
    pub forced_tokens: usize,
    /// Why the generation ended.
    pub stop: StopReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Prompt tokens that were already in the KV cache.
    pub reused_tokens: usize,
    /// Seconds spent on the other prompt tokens.
    pub prefill_s: f64,
    /// Seconds spent on the generated tokens.
    pub decode_s: f64,
}

impl Outcome {
    /// Prompt tokens computed per second.
    pub fn prefill_tps(&self) -> f64 {
        rate(self.prompt_tokens - self.reused_tokens, self.prefill_s)
    }

    /// Generated tokens per second. The first one comes from the prompt's logits and is not counted.
    pub fn decode_tps(&self) -> f64 {
        rate(self.tokens.len().saturating_sub(1), self.decode_s)
    }
}

fn rate(n: usize, seconds: f64) -> f64 {
    if n == 0 || seconds <= 0.0 { 0.0 } else { n as f64 / seconds }
}
