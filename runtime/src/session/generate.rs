//! Generation as a caller sees it: a prompt in; events, to a callback or one after another, and an outcome out.

use super::generation::{Generation, Listener};
use super::timeline::Session;
use crate::error::{Error, Result};
use crate::sampler::{Sampler, Sampling};
use crate::telemetry::CancelToken;
use std::collections::VecDeque;
use std::iter::FusedIterator;
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
    /// A token of what the model thinks before it answers, where its vocabulary marks that (gpt-oss). It is no part of the answer.
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

impl Session {
    /// Makes the timeline read `prompt` and continues it. Whatever the cache already holds of the prompt's beginning is
    /// reused, the rest of the cache is forgotten; afterwards the cache holds the prompt and all but the last of the
    /// generated tokens. `on_event` hears what happens, and may end it ([`Reply`]).
    ///
    /// # Errors
    /// `ContextFull` where the prompt does not fit, `Invalid` for an empty prompt or bad options. Cancellation is no
    /// error. After an error the session is usable.
    pub fn generate<R: Reply>(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_event: &mut dyn FnMut(Event) -> R,
    ) -> Result<Outcome> {
        to_end(&mut self.begin(prompt, options)?, on_event)
    }

    /// [`Session::generate`] as an iterator over its events.
    ///
    /// # Errors
    /// As [`Session::generate`]; those of computing come from the iterator.
    pub fn stream(&mut self, prompt: &[u32], options: &GenerateOptions) -> Result<Events<'_>> {
        Ok(Events::new(Box::new(self.begin(prompt, options)?)))
    }

    fn begin(&mut self, prompt: &[u32], options: &GenerateOptions) -> Result<Continuing<'_>> {
        let mut sampler = self.engine().sampler(options.sampling.clone())?;
        let generation = Generation::new(self, prompt, options, &mut sampler)?;
        Ok(Continuing { session: self, sampler, generation: Some(generation) })
    }
}

/// What goes on step by step until there is an outcome.
pub(super) trait Steps {
    /// One step; the outcome, where it was the last. Not to be called again after that, or after an error.
    fn step(&mut self, listener: &mut Listener) -> Result<Option<Outcome>>;
}

/// Takes all steps, of which a callback hears.
pub(super) fn to_end<R: Reply>(
    steps: &mut dyn Steps,
    on_event: &mut dyn FnMut(Event) -> R,
) -> Result<Outcome> {
    let mut on_event = |event| on_event(event).flow();
    let mut listener = Listener::new(&mut on_event);
    loop {
        if let Some(outcome) = steps.step(&mut listener)? {
            return Ok(outcome);
        }
    }
}

/// A session that continues a prompt.
struct Continuing<'a> {
    session: &'a mut Session,
    sampler: Sampler,
    generation: Option<Generation>,
}

impl Steps for Continuing<'_> {
    fn step(&mut self, listener: &mut Listener) -> Result<Option<Outcome>> {
        let Some(generation) = &mut self.generation else { return Err(Error::Cancelled) };
        let over = generation.step(self.session, &mut self.sampler, listener)?;
        Ok(self.generation.take_if(|_| over).map(Generation::outcome))
    }
}

/// The events of a generation, one after another: [`Chat::stream`](super::Chat::stream), [`Session::stream`].
///
/// Each is computed when it is asked for, on the thread that asks; nothing is computed meanwhile. Dropping the iterator ends the
/// generation as cancelling does: what was generated so far stays, and the chat or session can go on at once. After an error there
/// are no more events.
#[must_use = "nothing is generated until events are asked for"]
pub struct Events<'a> {
    run: Box<dyn Steps + Send + 'a>,
    heard: VecDeque<Event>,
    end: End,
}

/// Whether it has ended, and with what.
enum End {
    Open,
    Done(Outcome),
    /// An error that is not returned yet.
    Failed(Error),
    Told,
}

impl<'a> Events<'a> {
    pub(super) fn new(run: Box<dyn Steps + Send + 'a>) -> Events<'a> {
        Events { run, heard: VecDeque::new(), end: End::Open }
    }

    /// What came of it, once the last event was returned.
    pub fn outcome(&self) -> Option<&Outcome> {
        match &self.end {
            End::Done(outcome) if self.heard.is_empty() => Some(outcome),
            _ => None,
        }
    }

    /// Generates the rest, whose events nobody sees, and returns what came of it all.
    ///
    /// # Errors
    /// Those of computing; `Cancelled` where the iterator has returned an error already.
    pub fn finish(mut self) -> Result<Outcome> {
        for event in &mut self {
            event?;
        }
        match self.end {
            End::Done(outcome) => Ok(outcome),
            _ => Err(Error::Cancelled),
        }
    }
}

impl Iterator for Events<'_> {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Result<Event>> {
        loop {
            if let Some(event) = self.heard.pop_front() {
                return Some(Ok(event));
            }
            match std::mem::replace(&mut self.end, End::Told) {
                End::Open => self.end = End::Open,
                End::Failed(e) => return Some(Err(e)),
                over => {
                    self.end = over;
                    return None;
                }
            }
            let mut hear = |event| {
                self.heard.push_back(event);
                ControlFlow::Continue(())
            };
            let mut listener = Listener::new(&mut hear);
            self.end = match self.run.step(&mut listener) {
                Ok(None) => End::Open,
                Ok(Some(outcome)) => End::Done(outcome),
                Err(e) => End::Failed(e),
            };
        }
    }
}

impl FusedIterator for Events<'_> {}
