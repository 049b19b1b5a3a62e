//! Generation: a prompt in, events out.

use super::stop::StopFilter;
use super::timeline::{Session, Step, Wish};
use crate::error::{Error, Result};
use crate::kernels::MAX_BEST;
use crate::sampler::{Sampler, Sampling};
use crate::telemetry::CancelToken;
use std::ops::ControlFlow;
use std::time::Instant;

/// How to continue a prompt.
#[derive(Clone, Debug)]
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

/// What happens during a generation, in order.
#[derive(Clone, Debug, PartialEq)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model ended its turn.
    EndOfTurn,
    /// A stop string was met.
    StopString,
    /// `max_tokens` were generated.
    MaxTokens,
    /// The caller cancelled, or a callback said [`ControlFlow::Break`].
    Cancelled,
    /// The KV cache is full.
    ContextFull,
}

/// A finished generation.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Outcome {
    /// The answer, without stop strings and end-of-turn tokens.
    pub text: String,
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

/// Moves the quality against the time that a token took, as a multiple of the time it should take. Half a bit is about
/// an eighth of a token's bytes; small steps do not swing.
fn steer(streamer: &crate::sched::Streamer, taken: f64) {
    let step = if taken > 1.05 {
        -0.1
    } else if taken < 0.9 {
        0.05
    } else {
        0.0
    };
    if step != 0.0 {
        streamer.set_quality(streamer.quality() + step);
    }
}

/// A callback for events, which may end them.
pub(super) struct Listener<'a> {
    on_event: &'a mut dyn FnMut(Event) -> ControlFlow<()>,
    stopped: bool,
}

impl<'a> Listener<'a> {
    pub(super) fn new(on_event: &'a mut dyn FnMut(Event) -> ControlFlow<()>) -> Listener<'a> {
        Listener { on_event, stopped: false }
    }

    /// # Errors
    /// `Cancelled` from the first time on that the answer is to stop.
    fn tell(&mut self, event: Event) -> Result<()> {
        self.stopped = self.stopped || (self.on_event)(event).is_break();
        if self.stopped { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// What the next token is chosen from: as little as the sampler needs, for a device would have to send all of it back.
struct Next {
    wish: Wish,
    logits: Vec<f32>,
    best: Vec<(u32, f32)>,
}

impl Next {
    fn new(sampler: &Sampler) -> Next {
        let wish = sampler.enough().filter(|&k| k <= MAX_BEST).map_or(Wish::Last, Wish::Best);
        Next { wish, logits: Vec::new(), best: Vec::new() }
    }

    fn hear(&mut self, step: Step, listener: &mut Listener) -> Result<()> {
        match step {
            Step::Read(_) => {}
            Step::Logits(_, last) => last.clone_into(&mut self.logits),
            Step::Best(best) => best.clone_into(&mut self.best),
            Step::Moved(why) => listener.tell(Event::GpuLost { note: why.to_owned() })?,
        }
        Ok(())
    }

    fn sample(&mut self, sampler: &mut Sampler) -> u32 {
        match self.wish {
            Wish::Best(_) => sampler.sample_best(&self.best),
            Wish::All | Wish::Last => sampler.sample(&mut self.logits),
        }
    }
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
        let mut sampler = self.engine().sampler(options.sampling.clone())?;
        let mut on_event = |event| on_event(event).flow();
        self.generate_with(prompt, options, &mut sampler, &mut Listener::new(&mut on_event))
    }

    /// [`Session::generate`] with a sampler that outlives the call.
    pub(super) fn generate_with(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        sampler: &mut Sampler,
        listener: &mut Listener,
    ) -> Result<Outcome> {
        if prompt.is_empty() {
            return Err(Error::Invalid("the prompt is empty: there is nothing to continue".into()));
        }
        if prompt.len() > self.context() {
            return Err(Error::ContextFull { needed: prompt.len(), limit: self.context() });
        }
        // The last prompt token is always computed: its logits are where the answer begins.
        let same = self.tokens().iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let reused = same.min(prompt.len() - 1);
        self.rewind(reused);

        let mut outcome = Outcome {
            text: String::new(),
            tokens: Vec::new(),
            stop: StopReason::MaxTokens,
            prompt_tokens: prompt.len(),
            reused_tokens: reused,
            prefill_s: 0.0,
            decode_s: 0.0,
        };
        let fresh = &prompt[reused..];
        let start = Instant::now();
        let mut next = Next::new(sampler);
        let read = self.append(fresh, next.wish, Some(&options.cancel), &mut |step| {
            if let Step::Read(done) = step {
                listener.tell(Event::Prefill { done, total: fresh.len() })?;
            }
            next.hear(step, listener)
        });
        outcome.prefill_s = start.elapsed().as_secs_f64();
        match read {
            Err(Error::Cancelled) => {
                outcome.stop = StopReason::Cancelled;
                return Ok(outcome);
            }
            other => other?,
        }
        // The prompt is all of the text: a context that slid has another beginning than before.
        sampler.restart();
        prompt.iter().for_each(|&t| sampler.accept(t));
        let start = Instant::now();
        self.decode(next, options, sampler, listener, &mut outcome)?;
        outcome.decode_s = start.elapsed().as_secs_f64();
        Ok(outcome)
    }

    /// Samples, shows and appends tokens until something ends the answer.
    fn decode(
        &mut self,
        mut next: Next,
        options: &GenerateOptions,
        sampler: &mut Sampler,
        listener: &mut Listener,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let engine = self.engine().clone();
        let mut detokenizer = engine.tokenizer().ok().map(|t| t.stream());
        let mut filter = StopFilter::new(&options.stop);
        outcome.stop = loop {
            if outcome.tokens.len() == options.max_tokens {
                break StopReason::MaxTokens;
            }
            if options.cancel.is_cancelled() {
                break StopReason::Cancelled;
            }
            let id = next.sample(sampler);
            if engine.special_tokens().ends_turn(id) && !options.ignore_eos {
                break StopReason::EndOfTurn;
            }
            sampler.accept(id);
            outcome.tokens.push(id);
            let piece = detokenizer.as_mut().map_or_else(String::new, |d| d.push(id));
            let (text, met) = filter.push(&piece);
            let heard = listener.tell(Event::Token { id, text });
            if met {
                break StopReason::StopString;
            }
            if heard.is_err() {
                break StopReason::Cancelled;
            }
            if outcome.tokens.len() == options.max_tokens {
                break StopReason::MaxTokens;
            }
            if self.tokens().len() == self.context() {
                break StopReason::ContextFull;
            }
            let start = Instant::now();
            let (wish, cancel) = (next.wish, Some(&options.cancel));
            let read = self.append(&[id], wish, cancel, &mut |step| next.hear(step, listener));
            match read {
                Err(Error::Cancelled) => break StopReason::Cancelled,
                other => other?,
            }
            if let (Some(target), Some(streamer)) = (options.target_tps, engine.streamer()) {
                steer(streamer, target * start.elapsed().as_secs_f64());
            }
        };
        if outcome.stop != StopReason::StopString {
            let mut rest = detokenizer.map_or_else(String::new, |mut d| d.finish());
            rest = filter.push(&rest).0 + &filter.finish();
            if !rest.is_empty() && !listener.stopped {
                // It is over whatever the answer is.
                let _ = listener.tell(Event::Rest { text: rest });
            }
        }
        outcome.text = filter.text;
        Ok(())
    }
}
