//! A generation under way: a piece of the prompt a step, then a token a step. Callbacks and iterators take the same steps.

use super::channels::{Channels, Part};
use super::event::{Event, GenerateOptions, Outcome, StopReason};
use super::stop::StopFilter;
use super::timeline::{Session, Step, Wish};
use crate::error::{Error, Result};
use crate::kernels::MAX_BEST;
use crate::sampler::Sampler;
use crate::tokenizer::Detokenizer;
use std::ops::ControlFlow;
use std::time::Instant;

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

/// What hears events, and may end them.
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
            Wish::Nothing | Wish::All | Wish::Last => sampler.sample(&mut self.logits),
        }
    }
}

/// A prompt that is read, and then continued.
pub(super) struct Generation {
    options: GenerateOptions,
    /// What of the prompt the cache did not hold, and how much of that is read.
    fresh: Vec<u32>,
    read: usize,
    next: Next,
    /// The last token, which the cache does not hold yet.
    pending: Option<u32>,
    detokenizer: Option<Detokenizer>,
    channels: Channels,
    filter: StopFilter,
    /// Whether the last step was taken.
    over: bool,
    outcome: Outcome,
}

impl Generation {
    /// Forgets what `session` holds and `prompt` does not begin with. The sampler begins anew behind the prompt.
    ///
    /// # Errors
    /// `ContextFull` where the prompt does not fit, `Invalid` for an empty prompt or a token outside the vocabulary.
    pub(super) fn new(
        session: &mut Session,
        prompt: &[u32],
        options: &GenerateOptions,
        sampler: &mut Sampler,
    ) -> Result<Generation> {
        if prompt.is_empty() {
            return Err(Error::Invalid("the prompt is empty: there is nothing to continue".into()));
        }
        if prompt.len() > session.context() {
            return Err(Error::ContextFull { needed: prompt.len(), limit: session.context() });
        }
        session.check_vocabulary(prompt)?;
        // The last prompt token is always computed: its logits are where the answer begins.
        let same = session.tokens().iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let reused = session.rewind(same.min(prompt.len() - 1));
        log::debug!("a prompt of {} tokens, {reused} of them in the cache", prompt.len());
        // What is to be computed again is read as a part of the prompt.
        session.rewind(reused);
        session.mark();
        // The prompt is all of the text: a context that slid has another beginning than before.
        sampler.restart();
        prompt.iter().for_each(|&t| sampler.accept(t));
        let tokenizer = session.engine().tokenizer().ok();
        // A prompt may end within a message: that of a conversation which slid does.
        let mut channels = Channels::new(tokenizer);
        for &id in prompt {
            channels.next(id);
        }
        Ok(Generation {
            options: options.clone(),
            fresh: prompt[reused..].to_vec(),
            read: 0,
            next: Next::new(sampler),
            pending: None,
            detokenizer: tokenizer.map(|t| t.stream()),
            channels,
            filter: StopFilter::new(&options.stop),
            over: false,
            outcome: Outcome { prompt_tokens: prompt.len(), reused_tokens: reused, ..Outcome::default() },
        })
    }

    /// One step; whether it was the last. Cancellation is no error.
    ///
    /// # Errors
    /// Those of computing. The session is usable after them.
    pub(super) fn step(
        &mut self,
        session: &mut Session,
        sampler: &mut Sampler,
        listener: &mut Listener,
    ) -> Result<bool> {
        let (start, prompt) = (Instant::now(), self.read < self.fresh.len());
        let stop = match prompt {
            true => self.read_on(session, listener).map(|()| None),
            false => self.say(session, sampler, listener),
        };
        let seconds = start.elapsed().as_secs_f64();
        match prompt {
            true => self.outcome.prefill_s += seconds,
            false => self.outcome.decode_s += seconds,
        }
        let stop = match stop {
            Err(Error::Cancelled) => StopReason::Cancelled,
            other => match other? {
                Some(stop) => stop,
                None => return Ok(false),
            },
        };
        (self.outcome.stop, self.over) = (stop, true);
        if stop != StopReason::StopString {
            let rest = self.rest();
            if !rest.is_empty() && !listener.stopped {
                // It is over whatever the answer is.
                let _ = listener.tell(Event::Rest { text: rest });
            }
        }
        Ok(true)
    }

    /// What came of it, as far as it went.
    pub(super) fn outcome(mut self) -> Outcome {
        if !self.over {
            self.rest();
        }
        Outcome { text: self.filter.text, ..self.outcome }
    }

    /// The end of the text, where some was held back.
    fn rest(&mut self) -> String {
        let rest = self.detokenizer.as_mut().map_or_else(String::new, Detokenizer::finish);
        self.filter.push(&rest).0 + &self.filter.finish()
    }

    /// Reads the next piece of the prompt.
    fn read_on(&mut self, session: &mut Session, listener: &mut Listener) -> Result<()> {
        let (before, total) = (self.read, self.fresh.len());
        let end = before + session.piece(total - before);
        let wish = if end == total { self.next.wish } else { Wish::Nothing };
        let (next, cancel) = (&mut self.next, Some(&self.options.cancel));
        session.append(&self.fresh[before..end], wish, cancel, &mut |step| {
            if let Step::Read(done) = step {
                listener.tell(Event::Prefill { done: before + done, total })?;
            }
            next.hear(step, listener)
        })?;
        self.read = end;
        if end == total {
            session.mark();
        }
        Ok(())
    }

    /// Appends the last token, if there is one, and chooses and shows the next; why it is the last, if it is.
    fn say(
        &mut self,
        session: &mut Session,
        sampler: &mut Sampler,
        listener: &mut Listener,
    ) -> Result<Option<StopReason>> {
        let (options, next) = (&self.options, &mut self.next);
        if let Some(id) = self.pending.take() {
            let start = Instant::now();
            session.append(&[id], next.wish, Some(&options.cancel), &mut |step| next.hear(step, listener))?;
            if let (Some(target), Some(streamer)) = (options.target_tps, session.engine().streamer()) {
                steer(streamer, target * start.elapsed().as_secs_f64());
            }
        }
        let outcome = &mut self.outcome;
        if outcome.tokens.len() == options.max_tokens {
            return Ok(Some(StopReason::MaxTokens));
        }
        if options.cancel.is_cancelled() {
            return Ok(Some(StopReason::Cancelled));
        }
        let id = next.sample(sampler);
        if session.engine().special_tokens().ends_turn(id) && !options.ignore_eos {
            return Ok(Some(StopReason::EndOfTurn));
        }
        sampler.accept(id);
        outcome.tokens.push(id);
        let part = self.channels.next(id);
        let mut piece = || self.detokenizer.as_mut().map_or_else(String::new, |d| d.push(id));
        let (event, met) = match part {
            Part::Answer => {
                let (text, met) = self.filter.push(&piece());
                (Event::Token { id, text }, met)
            }
            Part::Reasoning => {
                let text = piece();
                outcome.reasoning.push_str(&text);
                (Event::Reasoning { id, text }, false)
            }
            Part::Marker => (Event::Reasoning { id, text: String::new() }, false),
        };
        let heard = listener.tell(event);
        if met {
            return Ok(Some(StopReason::StopString));
        }
        heard?;
        if outcome.tokens.len() == options.max_tokens {
            return Ok(Some(StopReason::MaxTokens));
        }
        if session.tokens().len() == session.context() {
            return Ok(Some(StopReason::ContextFull));
        }
        self.pending = Some(id);
        Ok(None)
    }
}
