//! What a generation is asked, what it tells while it runs, and what comes of it.

use crate::grammar::Constraint;
use crate::sampler::Sampling;
use crate::telemetry::CancelToken;
use crate::tools::Format;
use std::ops::ControlFlow;

/// How to continue a prompt.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GenerateOptions {
    /// Most tokens to generate; 0 only processes the prompt.
    pub max_tokens: usize,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Go on after an end-of-turn token (benchmarks).
    pub ignore_eos: bool,
    /// Where experts are streamed adaptively: the quality is lowered or raised from token to token to reach this many
    /// tokens per second. Results then depend on the machine's speed.
    pub target_tps: Option<f64>,
    /// What the answer has to be. It ends where that is complete and nothing may follow.
    pub constraint: Option<Constraint>,
    /// The form of calls that the answer may have: their markers are then part of its text, which [`Parser`](crate::tools::Parser) reads.
    pub tools: Option<Format>,
    /// Stops the generation from another thread; what was generated so far is kept.
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
            cancel: CancelToken::new(),
        }
    }
}

impl GenerateOptions {
    /// Most tokens to generate.
    #[must_use]
    pub fn with_max_tokens(mut self, tokens: usize) -> Self {
        self.max_tokens = tokens;
        self
    }

    /// How the next token is chosen.
    #[must_use]
    pub fn with_sampling(mut self, sampling: Sampling) -> Self {
        self.sampling = sampling;
        self
    }

    /// Texts that end the answer.
    #[must_use]
    pub fn with_stop(mut self, texts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.stop = texts.into_iter().map(Into::into).collect();
        self
    }

    /// What the answer has to be.
    #[must_use]
    pub fn with_constraint(mut self, constraint: Constraint) -> Self {
        self.constraint = Some(constraint);
        self
    }

    /// The form of calls that the answer may have.
    #[must_use]
    pub fn with_tools(mut self, format: Format) -> Self {
        self.tools = Some(format);
        self
    }

    /// What stops it from another thread.
    #[must_use]
    pub fn with_cancel(mut self, cancel: CancelToken) -> Self {
        self.cancel = cancel;
        self
    }
}

/// What happens during a generation, in order.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// Prompt tokens computed so far, of those that were not in the cache.
    Prefill {
        /// Done.
        done: usize,
        /// In all.
        total: usize,
    },
    /// A token was generated; `text` is what became showable, perhaps nothing (part of a character, or the possible
    /// beginning of a stop string).
    Token {
        /// Its id.
        id: u32,
        /// Whole characters.
        text: String,
    },
    /// A token of what the model thinks before it answers, where its vocabulary marks that (gpt-oss, `<think>`), or a marker of it. It is
    /// no part of the answer.
    Reasoning {
        /// Its id.
        id: u32,
        /// Whole characters.
        text: String,
    },
    /// The GPU failed and the CPU goes on in its place, reading again what was lost: no token is lost or repeated.
    GpuLost {
        /// What happened, in one line.
        note: String,
    },
    /// The end of the text, where something was held back until it was certain that nothing follows.
    Rest {
        /// Whole characters.
        text: String,
    },
}

/// What a callback answers to an [`Event`]: nothing, or whether to go on. After [`ControlFlow::Break`] the generation ends as a
/// cancelled one does, and the callback is not called again.
pub trait Reply {
    /// Whether to go on.
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
    /// A stop string was met.
    StopString,
    /// `max_tokens` were generated.
    MaxTokens,
    /// The caller cancelled, a callback said [`ControlFlow::Break`], or an iterator was dropped: no other reason came first.
    #[default]
    Cancelled,
    /// The KV cache is full.
    ContextFull,
}

/// A finished generation.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Outcome {
    /// The answer, without stop strings and end-of-turn tokens.
    pub text: String,
    /// What the model thought before, where its vocabulary marks that.
    pub reasoning: String,
    /// The generated ids, an end-of-turn token excluded.
    pub tokens: Vec<u32>,
    /// Tokens that a constraint left no choice about.
    pub forced_tokens: usize,
    /// Why it ended.
    pub stop: StopReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of those, found in the cache.
    pub reused_tokens: usize,
    /// Seconds for the rest of the prompt.
    pub prefill_s: f64,
    /// Seconds for the generated tokens.
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
