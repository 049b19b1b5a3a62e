//! The state machine of one generation. A step reads a piece of the prompt, or chooses one token. Callbacks,
//! iterators and batches take the same steps.

use super::event::{Event, GenerateOptions, Outcome, StopReason};
use super::guided::Guided;
use super::listener::Listener;
use super::next::Next;
use super::timeline::{Session, Step};
use super::wording::Wording;
use crate::error::{Error, Result};
use crate::model::forward::Want;
use crate::sampler::Sampler;
use crate::telemetry::CancelToken;
use std::time::Instant;

/// Adjusts the quality, in bits, to the target speed. `taken` is the time of a token as a multiple of its
/// target. Half a bit is about an eighth of a token's bytes. Small steps prevent oscillation.
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

/// A generation's part in a step of several sessions.
pub(super) struct Joining<'a> {
    /// The token to append.
    pub(super) token: u32,
    pub(super) want: Want,
    pub(super) cancel: &'a CancelToken,
    /// Receives the logits.
    pub(super) next: &'a mut Next,
    /// The constraint that the next token must follow.
    pub(super) guided: Option<&'a mut Guided>,
}

/// A generation: prefill of a prompt, then decoding.
pub(super) struct Generation {
    options: GenerateOptions,
    /// The prompt's tokens that were not in the cache, and how many of them were read.
    fresh: Vec<u32>,
    read: usize,
    next: Next,
    /// The last token, which is not in the cache yet, and the tokens that a constraint forced after it.
    pending: Vec<u32>,
    guided: Option<Guided>,
    wording: Wording,
    /// Whether the last step was taken.
    over: bool,
    outcome: Outcome,
}

impl Generation {
    /// Drops the part of `session` that `prompt` does not begin with. Restarts the sampler on the prompt.
    ///
    /// # Errors
    /// `ContextFull` if the prompt does not fit; `Invalid` for an empty prompt, a token outside the
    /// vocabulary, or a constraint that does not compile.
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
        let guided = Guided::new(session.engine(), options)?;
        // The last prompt token is always computed, because its logits give the first token of the answer.
        let same = session.tokens().iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let reused = session.rewind(same.min(prompt.len() - 1));
        log::debug!("a prompt of {} tokens, {reused} of them in the cache", prompt.len());
        // If the session rewound further than asked, we drop the tokens between and compute them as part of
        // the prompt.
        session.rewind(reused);
        session.mark();
        // For the sampler, the prompt is the whole text. After the context slid, it begins elsewhere than
        // before.
        sampler.restart();
        prompt.iter().for_each(|&t| sampler.accept(t));
        Ok(Generation {
            options: options.clone(),
            fresh: prompt[reused..].to_vec(),
            read: 0,
            next: Next::new(sampler, guided.is_some(), options.logprobs),
            pending: Vec::new(),
            guided,
            wording: Wording::new(session.engine().tokenizer().ok(), prompt, options),
            over: false,
            outcome: Outcome { prompt_tokens: prompt.len(), reused_tokens: reused, ..Outcome::default() },
        })
    }

    /// Takes out the constraint's state, for the next part of the answer.
    pub(super) fn guided(&mut self) -> Option<Guided> {
        self.guided.take()
    }

    /// Continues with the constraint's state of the previous part of the answer.
    pub(super) fn follow(&mut self, guided: Option<Guided>) {
        if guided.is_some() {
            (self.guided, self.next.want) = (guided, Want::Last);
        }
    }

    /// Whether the next step reads a piece of the prompt.
    pub(super) fn reads(&self) -> bool {
        self.read < self.fresh.len()
    }

    /// The number of tokens that the next step appends.
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// This generation's part in a shared step. `None` unless the next step appends exactly one token.
    pub(super) fn joining(&mut self) -> Option<Joining<'_>> {
        let &[token] = &self.pending[..] else { return None };
        let (cancel, answers) = (&self.options.cancel, self.wording.answers());
        let guided = self.guided.as_mut().and_then(|guided| guided.acting(answers));
        let joining = Joining { token, want: self.next.want, cancel, next: &mut self.next, guided };
        (!self.over && !cancel.is_cancelled()).then_some(joining)
    }

    /// Completes a shared step that appended the token.
    pub(super) fn joined(&mut self, session: &Session, seconds: f64) {
        self.pending.clear();
        self.outcome.decode_s += seconds;
        self.steer(session, seconds);
    }

    /// Adjusts the quality towards the target speed.
    fn steer(&self, session: &Session, seconds: f64) {
        if let (Some(target), Some(streamer)) = (self.options.target_tps, session.engine().streamer()) {
            steer(streamer, target * seconds);
        }
    }

    /// Takes one step; returns whether it was the last. Cancellation is no error.
    ///
    /// # Errors
    /// Those of computing. The session stays usable.
    pub(super) fn step(
        &mut self,
        session: &mut Session,
        sampler: &mut Sampler,
        listener: &mut Listener,
    ) -> Result<bool> {
        let (start, prompt) = (Instant::now(), self.reads());
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
        session.engine().0.keep_pipelines();
        if stop != StopReason::StopString {
            let rest = self.wording.rest();
            if !rest.is_empty() && !listener.has_stopped() {
                // The generation has ended, whatever the callback returns.
                let _ = listener.send(Event::Rest { text: rest });
            }
        }
        Ok(true)
    }

    /// The outcome so far.
    pub(super) fn outcome(mut self) -> Outcome {
        if !self.over {
            self.wording.rest();
        }
        Outcome { text: self.wording.text(), ..self.outcome }
    }

    /// Reads the next piece of the prompt.
    fn read_on(&mut self, session: &mut Session, listener: &mut Listener) -> Result<()> {
        let (before, total) = (self.read, self.fresh.len());
        let end = before + session.piece(total - before);
        let want = if end == total { self.next.want } else { Want::Nothing };
        let (next, cancel) = (&mut self.next, Some(&self.options.cancel));
        session.append(&self.fresh[before..end], want, cancel, &mut |step| {
            match step {
                Step::Read(done) => listener.send(Event::Prefill { done: before + done, total })?,
                Step::Layer => listener.pause(),
                _ => {}
            }
            next.handle(step, listener)
        })?;
        self.read = end;
        if end == total {
            session.mark();
        }
        Ok(())
    }

    /// Appends the pending tokens, then chooses and shows the next token and any forced after it. Returns a
    /// reason if the generation ends.
    fn say(
        &mut self,
        session: &mut Session,
        sampler: &mut Sampler,
        listener: &mut Listener,
    ) -> Result<Option<StopReason>> {
        self.append(session, listener)?;
        if self.outcome.tokens.len() == self.options.max_tokens {
            return Ok(Some(StopReason::MaxTokens));
        }
        if self.options.cancel.is_cancelled() {
            return Ok(Some(StopReason::Cancelled));
        }
        self.next.note();
        let mut ids = self.forced();
        if ids.is_empty() {
            ids.push(self.choose(sampler)?);
        }
        while !ids.is_empty() {
            for id in ids {
                let stop = self.take(id, session, sampler, listener)?;
                if stop.is_some() {
                    return Ok(stop);
                }
            }
            let hurried = self.guided.as_ref().is_some_and(Guided::is_hurried);
            ids = if hurried { self.forced() } else { Vec::new() };
        }
        Ok(None)
    }

    /// Appends the last token and those that were forced after it.
    fn append(&mut self, session: &mut Session, listener: &mut Listener) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() {
            return Ok(());
        }
        let (start, options, next) = (Instant::now(), &self.options, &mut self.next);
        let answers = self.wording.answers();
        let guided = self.guided.as_mut().and_then(|guided| guided.acting(answers));
        Guided::beside(guided.into_iter().collect::<Vec<_>>().as_mut_slice(), || {
            session
                .append(&pending, next.want, Some(&options.cancel), &mut |step| next.handle(step, listener))
        })?;
        self.steer(session, start.elapsed().as_secs_f64() / pending.len() as f64);
        Ok(())
    }

    /// The tokens that the constraint forces next.
    fn forced(&mut self) -> Vec<u32> {
        let answers = self.wording.answers();
        let forced = self.guided.as_mut().map_or_else(Vec::new, |guided| guided.forced(answers));
        self.outcome.forced_tokens += forced.len();
        forced
    }

    fn choose(&mut self, sampler: &mut Sampler) -> Result<u32> {
        match &mut self.guided {
            Some(guided) => guided.choose(&mut self.next.logits, sampler, self.wording.answers()),
            None => Ok(self.next.sample(sampler)),
        }
    }

    /// Adds a token to the answer. Returns a reason if the generation ends.
    fn take(
        &mut self,
        id: u32,
        session: &Session,
        sampler: &mut Sampler,
        listener: &mut Listener,
    ) -> Result<Option<StopReason>> {
        let (options, outcome) = (&self.options, &mut self.outcome);
        // A constrained answer that is complete cannot continue.
        let ends = !options.ignore_eos || self.guided.is_some();
        if ends && session.engine().special_tokens().ends_turn(id) {
            return Ok(Some(StopReason::EndOfTurn));
        }
        if let Some(guided) = &mut self.guided {
            guided.take(id, self.wording.answers())?;
        }
        sampler.accept(id);
        outcome.tokens.push(id);
        let (event, met) = self.wording.push(id, outcome);
        let noted = self.next.logprobs(id).map_or(Ok(()), |likely| listener.send(likely));
        let sent = noted.and_then(|()| listener.send(event));
        if met {
            return Ok(Some(StopReason::StopString));
        }
        sent?;
        if self.guided.as_ref().is_some_and(Guided::is_over) {
            return Ok(Some(StopReason::EndOfTurn));
        }
        if outcome.tokens.len() == options.max_tokens {
            return Ok(Some(StopReason::MaxTokens));
        }
        if session.tokens().len() + self.pending.len() == session.context() {
            return Ok(Some(StopReason::ContextFull));
        }
        self.pending.push(id);
        Ok(None)
    }
}
